//! Toolward's own objects as read. One that cannot be decoded stays, as a
//! tombstone that denies; it is never dropped.

use std::collections::BTreeSet;

use crds::{Document, McpServer, McpToolPolicy};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DynamicObject;
use serde_json::Value;

use crate::{names::Key, table::Row};

/// An object of Toolward.
#[derive(Debug)]
pub struct Entry<T> {
    /// Its metadata.
    pub meta: ObjectMeta,
    /// Its status as written, read leniently.
    pub status: Value,
    /// The object, or why it cannot be decoded.
    pub decoded: Result<T, String>,
    /// The servers that it speaks of.
    targets: BTreeSet<Key>,
}

/// A kind of Toolward.
pub trait Kind: kube::Resource<DynamicType = ()> + Clone + Send + Sync + 'static {
    /// The object, where the document is of this kind.
    fn from_document(document: Document) -> Option<Self>;
    /// The servers that the object speaks of, as far as that can be read.
    fn targets(namespace: &str, data: &Value) -> BTreeSet<Key>;
}

/// Stands for every server of a namespace: no object has an empty name.
pub fn every_server(namespace: &str) -> Key {
    Key::new(namespace, "")
}

impl Kind for McpServer {
    fn from_document(document: Document) -> Option<Self> {
        match document {
            Document::McpServer(server) => Some(*server),
            Document::McpToolPolicy(_) => None,
        }
    }

    fn targets(_: &str, _: &Value) -> BTreeSet<Key> {
        BTreeSet::new()
    }
}

impl Kind for McpToolPolicy {
    fn from_document(document: Document) -> Option<Self> {
        match document {
            Document::McpToolPolicy(policy) => Some(*policy),
            Document::McpServer(_) => None,
        }
    }

    /// From the raw object: a policy that cannot be decoded must still deny.
    fn targets(namespace: &str, data: &Value) -> BTreeSet<Key> {
        let every = || BTreeSet::from([every_server(namespace)]);
        let Some(refs) = data["spec"]["targetRefs"].as_array() else {
            return every();
        };
        let targets: Option<BTreeSet<_>> = refs
            .iter()
            .map(|target| Some(Key::new(namespace, target["name"].as_str()?)))
            .collect();
        targets.filter(|set| !set.is_empty()).unwrap_or_else(every)
    }
}

impl<T: Kind> Entry<T> {
    /// Reads an object. What was decoded before is kept where only metadata or
    /// status changed: `generation` tells.
    pub fn read(object: DynamicObject, before: Option<&Self>) -> Self {
        let DynamicObject {
            mut metadata, data, ..
        } = object;
        metadata.managed_fields = None;
        let namespace = metadata.namespace.clone().unwrap_or_default();
        let decoded = match before {
            Some(before) if same_spec(&before.meta, &metadata) => before.decoded.clone(),
            _ => decode(&metadata, &data),
        };
        Self {
            targets: T::targets(&namespace, &data),
            status: data.get("status").cloned().unwrap_or_default(),
            meta: metadata,
            decoded,
        }
    }

    /// `metadata.generation`.
    pub fn generation(&self) -> i64 {
        self.meta.generation.unwrap_or_default()
    }
}

fn same_spec(before: &ObjectMeta, now: &ObjectMeta) -> bool {
    now.generation.is_some() && before.generation == now.generation && before.uid == now.uid
}

fn decode<T: Kind>(metadata: &ObjectMeta, data: &Value) -> Result<T, String> {
    let mut object = data.as_object().cloned().unwrap_or_default();
    let metadata = serde_json::to_value(metadata).map_err(|error| error.to_string())?;
    // The watch says what kind it is; items of a list may leave it out.
    object.insert("apiVersion".into(), T::api_version(&()).into());
    object.insert("kind".into(), T::kind(&()).into());
    object.insert("metadata".into(), metadata);
    let document = crds::parse(object.into()).map_err(|error| match error {
        crds::ParseError::Invalid { errors, .. } => {
            let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
            errors.join("; ")
        }
        other => other.to_string(),
    })?;
    T::from_document(document).ok_or_else(|| "is of another kind".to_owned())
}

impl<T> Row for Entry<T> {
    fn key(&self) -> Key {
        Key {
            namespace: self.meta.namespace.clone().unwrap_or_default(),
            name: self.meta.name.clone().unwrap_or_default(),
        }
    }

    fn groups(&self) -> BTreeSet<Key> {
        self.targets.clone()
    }

    fn version(&self) -> Option<String> {
        self.meta.resource_version.clone()
    }
}

#[cfg(test)]
mod tests;
