#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;

fn object(spec: Value) -> DynamicObject {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "shop", "generation": 1, "uid": "u"},
        "spec": spec,
        "status": {"conditions": "not what it should be"},
    }))
    .unwrap()
}

fn targets(spec: Value) -> Vec<String> {
    let entry = Entry::<McpToolPolicy>::read(object(spec), None);
    entry.groups().into_iter().map(|key| key.name).collect()
}

#[test]
fn a_policy_that_cannot_be_decoded_keeps_its_targets() {
    let every = [""];
    assert_eq!(
        targets(json!({"targetRefs": [{"name": "a"}, {"name": "b", "new": 1}]})),
        ["a", "b"]
    );
    for unreadable in [
        json!({}),
        json!(null),
        json!({"targetRefs": []}),
        json!({"targetRefs": "a"}),
        json!({"targetRefs": [{"name": "a"}, {"name": 1}]}),
        json!({"targetRefs": [{"name": "a"}, {"selector": {}}]}),
    ] {
        assert_eq!(targets(unreadable.clone()), every, "{unreadable}");
    }
}

#[test]
fn an_object_that_cannot_be_decoded_says_why_and_where() {
    let spec =
        json!({"targetRefs": [{"name": "a"}], "rules": [{"name": "r", "effect": "Perhaps"}]});
    let entry = Entry::<McpToolPolicy>::read(object(spec), None);
    let error = entry.decoded.unwrap_err();
    assert!(error.contains("spec.rules[0]"), "{error}");
}

#[test]
fn a_valid_object_is_decoded_without_its_kind_and_whatever_its_status() {
    let spec = json!({
        "deployment": {"image": "i"}, "transport": {"type": "StreamableHttp"},
    });
    let entry = Entry::<McpServer>::read(object(spec), None);
    assert_eq!(&*entry.decoded.unwrap().spec.deployment.unwrap().image, "i");
}

#[test]
fn a_new_spec_is_decoded_anew() {
    let read = |image: &str, generation: i64, before: Option<&Entry<McpServer>>| {
        let spec = json!({"deployment": {"image": image}, "transport": {"type": "StreamableHttp"}});
        let mut object = object(spec);
        object.metadata.generation = Some(generation);
        Entry::<McpServer>::read(object, before)
    };
    let image = |entry: &Entry<McpServer>| {
        entry
            .decoded
            .as_ref()
            .unwrap()
            .spec
            .deployment
            .as_ref()
            .unwrap()
            .image
            .to_string()
    };
    let one = read("one", 1, None);
    assert_eq!(image(&read("two", 2, Some(&one))), "two");
    assert_eq!(image(&read("one", 1, Some(&one))), "one");
}
