//! The API of `toolward.dev/v1alpha1`: types, schemas and validation.
//!
//! Invariants:
//! - Every list and every string has a maximum, and every field is enforced
//!   somewhere: nothing is accepted that has no effect.
//! - What [`parse`] refuses, the API server refuses, and the other way round:
//!   both read the same generated schema and the same CEL rules.

mod bounded;
mod condition;
mod document;
mod duration;
pub mod manifest;
mod schema;
mod server;
#[cfg(feature = "testing")]
pub mod testing;
mod tool_policy;

pub use bounded::*;
pub use condition::{Condition, ConditionStatus, ConditionType, Reason};
pub use document::{Document, FieldError, ParseError, documents, parse};
pub use duration::{Duration, InvalidDuration};
pub use server::*;
pub use tool_policy::*;

/// API group of every kind of Toolward.
pub const GROUP: &str = "toolward.dev";
/// API version of every kind of Toolward.
pub const VERSION: &str = "v1alpha1";

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

/// The CustomResourceDefinitions, in the order in which they are to be applied.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![definition::<McpServer>(), definition::<McpToolPolicy>()]
}

/// The CustomResourceDefinition of one kind. Its fields are not nullable: for
/// CEL, `has()` of a null is true, so a null could stand for a value that a
/// rule asks for.
fn definition<T: CustomResourceExt>() -> CustomResourceDefinition {
    let mut definition = T::crd();
    for version in &mut definition.spec.versions {
        if let Some(schema) = version
            .schema
            .as_mut()
            .and_then(|s| s.open_api_v3_schema.as_mut())
        {
            tidy(schema);
        }
    }
    definition
}

fn tidy(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    // Formats that Kubernetes does not know, and kubectl warns of.
    schema.format = schema
        .format
        .take()
        .filter(|format| !format.starts_with("uint"));
    schema
        .properties
        .iter_mut()
        .flat_map(|p| p.values_mut())
        .for_each(tidy);
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => tidy(items),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(tidy),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        tidy(values);
    }
}
