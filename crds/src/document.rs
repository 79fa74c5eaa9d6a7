//! Reading manifests outside a cluster: the same schema and the same CEL rules
//! that the API server applies.

use std::fmt;

use kube::{CustomResourceExt, core::cel::Validator};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{GROUP, McpServer, McpToolPolicy, VERSION, schema};

/// One fault of a manifest: where, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field, for example `spec.rules[0].tools`.
    pub path: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl FieldError {
    pub(crate) fn new(path: &str, message: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            message: message.into(),
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// A manifest that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// The text is not YAML.
    #[error("not valid YAML: {0}")]
    Yaml(#[from] serde_yaml::Error),
    /// The object is of a kind or version that is not Toolward's.
    #[error(
        "apiVersion {api_version:?}, kind {kind:?}: expected apiVersion {GROUP}/{VERSION} and kind McpServer or McpToolPolicy"
    )]
    UnknownKind {
        /// `apiVersion` as written.
        api_version: String,
        /// `kind` as written.
        kind: String,
    },
    /// The object does not fit its schema.
    #[error("{kind} {name:?}: {}", .errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid {
        /// Kind of the object.
        kind: String,
        /// Its `metadata.name`.
        name: String,
        /// All that is wrong.
        errors: Vec<FieldError>,
    },
}

/// A valid object of Toolward.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// A server.
    McpServer(Box<McpServer>),
    /// A policy.
    McpToolPolicy(Box<McpToolPolicy>),
}

/// Reads all documents of a YAML text; empty ones are skipped.
///
/// # Errors
/// The first document that is not valid.
pub fn documents(text: &str) -> Result<Vec<Document>, ParseError> {
    let mut documents = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        match Value::deserialize(document)? {
            Value::Null => {}
            value => documents.push(parse(value)?),
        }
    }
    Ok(documents)
}

/// Reads one object. A `status` is ignored: it is what the operator wrote, not
/// what a user asks for.
///
/// # Errors
/// See [`ParseError`].
pub fn parse(mut value: Value) -> Result<Document, ParseError> {
    if let Some(object) = value.as_object_mut() {
        object.remove("status");
    }
    remove_nulls(&mut value);
    let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    match (api_version.split_once('/'), kind.as_str()) {
        (Some((GROUP, VERSION)), "McpServer") => Ok(Document::McpServer(Box::new(typed(value)?))),
        (Some((GROUP, VERSION)), "McpToolPolicy") => {
            Ok(Document::McpToolPolicy(Box::new(typed(value)?)))
        }
        _ => Err(ParseError::UnknownKind { api_version, kind }),
    }
}

/// A field that is null is one that is left out: so the API server reads it,
/// where a schema does not say that it may be null.
fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

fn typed<T>(value: Value) -> Result<T, ParseError>
where
    T: CustomResourceExt + kube::Resource<DynamicType = ()> + DeserializeOwned,
{
    let name = value["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let invalid = |errors| ParseError::Invalid {
        kind: T::kind(&()).into_owned(),
        name: name.clone(),
        errors,
    };
    let mut errors = Vec::new();
    if name.is_empty() {
        errors.push(FieldError::new("metadata.name", "is required"));
    }
    let schema = schema_of::<T>();
    match value.get("spec") {
        Some(spec) => schema::check(&schema["properties"]["spec"], spec, "spec", &mut errors),
        None => errors.push(FieldError::new("spec", "is required")),
    }
    if errors.is_empty() {
        // On the manifest as written: an error of a rule names its field,
        // one of deserialization does not.
        let failed = Validator::new().validate(&schema, &value, None).err();
        errors.extend(
            failed
                .into_iter()
                .flat_map(|failed| failed.into_vec())
                .map(|error| {
                    FieldError::new(error.field_path.trim_start_matches('.'), error.message)
                }),
        );
    }
    if !errors.is_empty() {
        return Err(invalid(errors));
    }
    serde_json::from_value(value)
        .map_err(|error| invalid(vec![FieldError::new("spec", error.to_string())]))
}

/// The schema of a kind, as in its CustomResourceDefinition.
fn schema_of<T: CustomResourceExt>() -> Value {
    let version = crate::definition::<T>().spec.versions.into_iter().next();
    let schema = version.and_then(|version| version.schema?.open_api_v3_schema);
    serde_json::to_value(schema).unwrap_or_default()
}
