//! Whether an object already is what is wanted, so that nothing has to be
//! written.

use serde_json::Value;

/// Whether `actual` has all that `wanted` asks for. What the API server adds by
/// defaulting is no difference, nor is another spelling of a quantity.
pub fn covers(actual: &Value, wanted: &Value) -> bool {
    match (actual, wanted) {
        (Value::Object(actual), Value::Object(wanted)) => wanted
            .iter()
            .all(|(name, wanted)| covers(actual.get(name).unwrap_or(&Value::Null), wanted)),
        // Lists of objects with names are merged by these: others may add to them.
        (Value::Array(actual), Value::Array(wanted)) if wanted.iter().all(has_name) => {
            let there = |wanted| actual.iter().any(|actual| covers(actual, wanted));
            wanted.iter().all(there)
        }
        // Others are one value: a rule that somebody added to ours is a change.
        (Value::Array(actual), Value::Array(wanted)) if wanted.iter().all(Value::is_object) => {
            let mut pairs = actual.iter().zip(wanted);
            actual.len() == wanted.len() && pairs.all(|(actual, wanted)| covers(actual, wanted))
        }
        // The API server leaves out what is empty.
        (Value::Null, wanted) => is_empty(wanted),
        (Value::String(actual), Value::String(wanted)) => {
            actual == wanted || quantity(actual).is_some_and(|a| quantity(wanted) == Some(a))
        }
        (actual, wanted) => actual == wanted,
    }
}

fn has_name(item: &Value) -> bool {
    item.get("name").is_some()
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
    }
}

/// A quantity in thousandths: `0.5` is `500m`.
fn quantity(text: &str) -> Option<u128> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor: u128 = match unit {
        "m" => 1,
        "" => 1000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "P" => 1_000_000_000_000_000_000,
        "E" => 1_000_000_000_000_000_000_000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        "Pi" => 1000 << 50,
        "Ei" => 1000 << 60,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole = whole.parse::<u128>().ok()?.checked_mul(factor)?;
    if fraction.is_empty() {
        return Some(whole);
    }
    let digits = u32::try_from(fraction.len()).ok()?;
    let fraction = fraction.parse::<u128>().ok()?.checked_mul(factor)?;
    whole.checked_add(fraction.div_ceil(10u128.checked_pow(digits)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_api_server_adds_or_respells_is_no_difference() {
        for (actual, wanted) in [
            (json!({"a": 1, "b": 2}), json!({"a": 1})),
            (json!({"l": [{"a": 1, "b": 2}]}), json!({"l": [{"a": 1}]})),
            (
                json!({"l": [{"name": "b"}, {"name": "a", "b": 2}]}),
                json!({"l": [{"name": "a"}]}),
            ),
            (json!({}), json!({"value": ""})),
            (json!({}), json!({"readOnly": false})),
            (json!({}), json!({"securityContext": {}})),
            (json!({"cpu": "500m"}), json!({"cpu": "0.5"})),
            (json!({"memory": "1Gi"}), json!({"memory": "1024Mi"})),
            (json!({"cpu": "1"}), json!({"cpu": "1000m"})),
        ] {
            assert!(covers(&actual, &wanted), "{actual} does not cover {wanted}");
        }
    }

    #[test]
    fn what_was_changed_or_removed_is_a_difference() {
        for (actual, wanted) in [
            (json!({}), json!({"a": 1})),
            (json!({"a": 2}), json!({"a": 1})),
            (json!({"l": [1, 2]}), json!({"l": [1]})),
            (json!({"l": []}), json!({"l": [1]})),
            (json!({"l": ["b", "a"]}), json!({"l": ["a", "b"]})),
            (json!({"l": [{"a": 1}]}), json!({"l": [{"a": 1}, {"a": 2}]})),
            (json!({"l": [{"a": 1}, {"a": 2}]}), json!({"l": [{"a": 1}]})),
            (
                json!({"l": [{"a": 2}, {"a": 1}]}),
                json!({"l": [{"a": 1}, {"a": 2}]}),
            ),
            (
                json!({"l": [{"name": "a", "b": 1}]}),
                json!({"l": [{"name": "a", "b": 2}]}),
            ),
            (json!({"cpu": "500m"}), json!({"cpu": "0.6"})),
            (json!({"a": "b"}), json!({"a": "c"})),
            (json!({"a": "1x"}), json!({"a": "1"})),
        ] {
            assert!(!covers(&actual, &wanted), "{actual} covers {wanted}");
        }
    }
}
