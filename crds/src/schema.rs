//! Structural validation against the CRD's own schema: what the API server
//! checks apart from CEL. Only the keywords that our schemas use exist here;
//! a test holds that true.

use serde_json::{Map, Value};

use crate::FieldError;

/// Adds to `errors` each place where `value` does not fit `schema`.
pub(crate) fn check(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if !has_type(schema, value) {
        let wanted = match &schema["x-kubernetes-int-or-string"] {
            Value::Bool(true) => "integer or string",
            _ => schema["type"].as_str().unwrap_or("value"),
        };
        return errors.push(FieldError::new(
            path,
            format!("must be {wanted}, is {}", kind(value)),
        ));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let allowed: Vec<_> = allowed.iter().filter_map(Value::as_str).collect();
        errors.push(FieldError::new(
            path,
            format!("must be one of {}, is {value}", allowed.join(", ")),
        ));
    }
    match value {
        Value::String(text) => check_string(schema, text, path, errors),
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            bound(schema, "minimum", number, path, "must be at least", errors);
            bound(schema, "maximum", number, path, "must be at most", errors);
        }
        Value::Array(items) => check_array(schema, items, path, errors),
        Value::Object(fields) => check_object(schema, fields, path, errors),
        Value::Null | Value::Bool(_) => {}
    }
}

fn has_type(schema: &Value, value: &Value) -> bool {
    if schema["x-kubernetes-int-or-string"] == true {
        return value.is_string() || value.is_i64();
    }
    match schema["type"].as_str() {
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => true,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn bound(
    schema: &Value,
    keyword: &str,
    actual: f64,
    path: &str,
    text: &str,
    errors: &mut Vec<FieldError>,
) {
    let Some(bound) = schema[keyword].as_f64() else {
        return;
    };
    let within = if keyword.starts_with("min") {
        actual >= bound
    } else {
        actual <= bound
    };
    if !within {
        errors.push(FieldError::new(
            path,
            format!("{text} {bound}, is {actual}"),
        ));
    }
}

#[allow(clippy::cast_precision_loss)] // Lengths here are far below 2^52.
fn check_string(schema: &Value, text: &str, path: &str, errors: &mut Vec<FieldError>) {
    let length = text.chars().count() as f64;
    bound(
        schema,
        "minLength",
        length,
        path,
        "must have a length of at least",
        errors,
    );
    bound(
        schema,
        "maxLength",
        length,
        path,
        "must have a length of at most",
        errors,
    );
    if let Some(pattern) = schema["pattern"].as_str() {
        match regex_lite::Regex::new(pattern) {
            Ok(regex) if regex.is_match(text) => {}
            Ok(_) => errors.push(FieldError::new(
                path,
                format!("{text:?} must match {pattern}"),
            )),
            Err(error) => errors.push(FieldError::new(
                path,
                format!("the schema's pattern is invalid: {error}"),
            )),
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn check_array(schema: &Value, items: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    bound(
        schema,
        "minItems",
        items.len() as f64,
        path,
        "must have a number of items of at least",
        errors,
    );
    bound(
        schema,
        "maxItems",
        items.len() as f64,
        path,
        "must have a number of items of at most",
        errors,
    );
    let before = errors.len();
    for (index, item) in items.iter().enumerate() {
        check(&schema["items"], item, &format!("{path}[{index}]"), errors);
    }
    let key = match schema["x-kubernetes-list-type"].as_str() {
        Some("map") => schema["x-kubernetes-list-map-keys"][0].as_str(),
        Some("set") => None,
        _ => return,
    };
    if errors.len() > before {
        return; // A list with wrong items has no keys to compare.
    }
    let identity = |item: &Value| key.map_or_else(|| item.clone(), |key| item[key].clone());
    for (index, item) in items.iter().enumerate() {
        let id = identity(item);
        if items[..index].iter().any(|other| identity(other) == id) {
            errors.push(FieldError::new(
                &format!("{path}[{index}]"),
                format!("duplicate {}: {id}", key.unwrap_or("value")),
            ));
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn check_object(
    schema: &Value,
    fields: &Map<String, Value>,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    bound(
        schema,
        "maxProperties",
        fields.len() as f64,
        path,
        "must have a number of fields of at most",
        errors,
    );
    let child = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    for name in schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        if !fields.contains_key(name) {
            errors.push(FieldError::new(&child(name), "is required"));
        }
    }
    for (name, value) in fields {
        if let Some(property) = schema["properties"].get(name) {
            check(property, value, &child(name), errors);
        } else if let Some(additional) = schema.get("additionalProperties") {
            check(additional, value, &child(name), errors);
        } else {
            errors.push(FieldError::new(&child(name), "unknown field"));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The keywords that [`check`] understands, and those that only describe.
    const KNOWN: &[&str] = &[
        "additionalProperties",
        "default",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minimum",
        "pattern",
        "properties",
        "required",
        "title",
        "type",
        "anyOf",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-validations",
    ];

    /// A keyword that the walker does not know would be accepted and not enforced.
    #[test]
    fn every_keyword_of_our_schemas_is_known() {
        fn walk(schema: &Value, path: &str) {
            for (keyword, value) in schema.as_object().unwrap() {
                assert!(
                    KNOWN.contains(&keyword.as_str()),
                    "{path}: the walker does not check {keyword}"
                );
                match keyword.as_str() {
                    "properties" => {
                        for (name, property) in value.as_object().unwrap() {
                            walk(property, &format!("{path}.{name}"));
                        }
                    }
                    "items" | "additionalProperties" => walk(value, &format!("{path}[]")),
                    _ => {}
                }
            }
        }
        for definition in crate::definitions() {
            let schema = definition.spec.versions[0]
                .schema
                .clone()
                .unwrap()
                .open_api_v3_schema
                .unwrap();
            walk(
                &serde_json::to_value(schema).unwrap()["properties"]["spec"],
                "spec",
            );
        }
    }
}
