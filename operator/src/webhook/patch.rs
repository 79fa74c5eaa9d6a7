//! The change of an object as a JSON patch.
//!
//! Invariant: what is put between others moves them, and they stay what they are,
//! with all that this version of Toolward does not know of them.

use json_patch::{AddOperation, Patch, PatchOperation, diff, jsonptr::PointerBuf};
use serde_json::Value;

/// The patch that makes one value of the other. A library compares lists place by
/// place, so that what is new in them is put in first.
pub fn between(mut before: Value, after: &Value) -> Patch {
    let mut operations = Vec::new();
    insert(&mut before, after, &mut PointerBuf::new(), &mut operations);
    operations.extend(diff(&before, after).0);
    Patch(operations)
}

/// Puts items that have a name that is new into the lists of `before`.
fn insert(
    before: &mut Value,
    after: &Value,
    path: &mut PointerBuf,
    operations: &mut Vec<PatchOperation>,
) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (field, before) in before.iter_mut() {
                if let Some(after) = after.get(field) {
                    path.push_back(field.as_str());
                    insert(before, after, path, operations);
                    path.pop_back();
                }
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            for (index, after) in after.iter().enumerate() {
                path.push_back(index);
                insert_item(before, index, after, path, operations);
                path.pop_back();
            }
        }
        _ => {}
    }
}

fn insert_item(
    before: &mut Vec<Value>,
    index: usize,
    after: &Value,
    path: &mut PointerBuf,
    operations: &mut Vec<PatchOperation>,
) {
    let Some(name) = name(after) else { return };
    if let Some(before) = before.get_mut(index)
        && self::name(before) == Some(name)
    {
        insert(before, after, path, operations);
    } else if index <= before.len() && before.iter().all(|item| self::name(item) != Some(name)) {
        before.insert(index, after.clone());
        operations.push(PatchOperation::Add(AddOperation {
            path: path.clone(),
            value: after.clone(),
        }));
    }
}

/// By what an item is known in its list: containers, volumes and variables by
/// their name, mounts by their path.
fn name(item: &Value) -> Option<&str> {
    let path = item.get("mountPath").or_else(|| item.get("devicePath"));
    path.or_else(|| item.get("name"))?.as_str()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_that_is_not_known_gets_lost_or_to_somebody_else() {
        let original = json!({
            "spec": {
                "initContainers": [{"name": "a", "future": 1}, {"name": "b", "future": 2}],
                "containers": [{
                    "name": "app", "future": {"x": [1]},
                    "volumeMounts": [{"name": "v", "mountPath": "/v", "future": 3}],
                }],
            },
        });
        let known = json!({
            "spec": {
                "initContainers": [{"name": "a"}, {"name": "b"}],
                "containers": [{
                    "name": "app", "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                }],
            },
        });
        let after = json!({
            "metadata": {"labels": {"l/x": "1"}},
            "spec": {
                "initContainers": [{"name": "new"}, {"name": "a"}, {"name": "mid"}, {"name": "b"}],
                "containers": [{
                    "name": "app", "command": ["shim", "--"],
                    "volumeMounts": [
                        {"name": "v", "mountPath": "/n"}, {"name": "v", "mountPath": "/v"},
                    ],
                }],
                "volumes": [{"name": "new"}],
            },
        });
        let patch = between(known, &after);
        let mut patched = original;
        json_patch::patch(&mut patched, &patch).unwrap();
        let expected = json!({
            "metadata": {"labels": {"l/x": "1"}},
            "spec": {
                "initContainers": [
                    {"name": "new"}, {"name": "a", "future": 1},
                    {"name": "mid"}, {"name": "b", "future": 2},
                ],
                "containers": [{
                    "name": "app", "future": {"x": [1]}, "command": ["shim", "--"],
                    "volumeMounts": [
                        {"name": "v", "mountPath": "/n"},
                        {"name": "v", "mountPath": "/v", "future": 3},
                    ],
                }],
                "volumes": [{"name": "new"}],
            },
        });
        assert_eq!(patched, expected);
    }

    #[test]
    fn no_change_is_an_empty_patch() {
        let value = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(between(value.clone(), &value), Patch(Vec::new()));
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(json!(1)), Just(json!("x")), Just(Value::Null)];
        leaf.prop_recursive(4, 32, 4, |inner| {
            let field = prop::sample::select(vec!["name", "mountPath", "a/b", "c~d"]);
            let name = prop::sample::select(vec!["p", "q", "r", "s"]);
            let named =
                (name, inner.clone()).prop_map(|(name, more)| json!({"name": name, "more": more}));
            prop_oneof![
                prop::collection::vec(named, 0..4).prop_map(Value::Array),
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                prop::collection::vec((field, inner), 0..4)
                    .prop_map(|fields| fields.into_iter().collect::<Value>()),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_patch_makes_one_value_of_the_other(before in values(), after in values()) {
            let mut patched = before.clone();
            json_patch::patch(&mut patched, &between(before, &after)).unwrap();
            prop_assert_eq!(patched, after);
        }
    }
}
