//! Server-side apply of what a server owns.
//!
//! Invariants:
//! - An object that the `McpServer` does not control is never written to.
//! - Nothing is written where nothing would change.

use std::{fmt::Debug, sync::Arc};

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Client, Resource, ResourceExt,
    api::{Api, Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    covers::covers,
    desired::Owner,
    error::{Error, call},
    names::{APPLIED_ANNOTATION, FIELD_MANAGER, Key},
    table::Table,
};

/// A kind that is applied for a server.
pub trait Child:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
    + Send
    + Sync
    + 'static
{
}

impl<K> Child for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
        + Send
        + Sync
        + 'static
{
}

/// What stands under a name.
#[derive(Debug)]
pub enum Found<K> {
    /// Nothing.
    Nothing,
    /// An object of this server.
    Ours(Arc<K>),
    /// An object of somebody else: what it is, for a person.
    Foreign(String),
}

impl<K> Found<K> {
    /// Who has the name, where it is somebody else.
    pub fn foreign(&self) -> Option<&str> {
        match self {
            Self::Foreign(what) => Some(what),
            Self::Nothing | Self::Ours(_) => None,
        }
    }

    /// The object, where it is this server's.
    pub fn ours(&self) -> Option<&Arc<K>> {
        match self {
            Self::Ours(object) => Some(object),
            Self::Nothing | Self::Foreign(_) => None,
        }
    }
}

/// What the last write gave: the watch may still tell what was before it.
#[derive(Debug)]
pub struct Last<K> {
    /// The version before, and the object after.
    written: Option<(Option<String>, Arc<K>)>,
}

impl<K> Default for Last<K> {
    fn default() -> Self {
        Self { written: None }
    }
}

/// Looks a name up, in the table first: other people's objects are not in it.
///
/// # Errors
/// [`Error::Removing`] where an earlier server of this name still has it, and
/// what the API server answers.
pub async fn find<K: Child>(
    client: &Client,
    table: &Table<K>,
    owner: &Owner,
    name: &str,
    last: &Last<K>,
) -> Result<Found<K>, Error> {
    let what = || format!("{} {name}", K::kind(&()));
    let object = match table.get(&Key::new(&owner.namespace, name)) {
        Some(object) => Some(newest(object, last)),
        None => {
            let api = Api::<K>::namespaced(client.clone(), &owner.namespace);
            let action = || format!("looking for {}", what());
            call(action, api.get_opt(name)).await?.map(Arc::new)
        }
    };
    let Some(object) = object else {
        return Ok(Found::Nothing);
    };
    let controller = object
        .owner_references()
        .iter()
        .find(|r| r.controller == Some(true));
    match controller {
        Some(it) if it.uid == owner.uid && object.meta().deletion_timestamp.is_none() => {
            Ok(Found::Ours(object))
        }
        Some(it) if it.uid == owner.uid || is_earlier(it, owner) => {
            Err(Error::Removing { object: what() })
        }
        Some(it) => Ok(Found::Foreign(format!(
            "{}, which belongs to {} {}",
            what(),
            it.kind,
            it.name
        ))),
        None => Ok(Found::Foreign(what())),
    }
}

fn is_earlier(controller: &OwnerReference, owner: &Owner) -> bool {
    let group = controller
        .api_version
        .split_once('/')
        .map(|(group, _)| group);
    group == Some(crds::GROUP) && controller.kind == "McpServer" && controller.name == owner.name
}

/// What was written last, while the table still has what was before it.
fn newest<K: Child>(known: Arc<K>, last: &Last<K>) -> Arc<K> {
    match &last.written {
        Some((Some(before), after)) if known.resource_version().as_ref() == Some(before) => {
            after.clone()
        }
        _ => known,
    }
}

/// Makes an object what it is to be; returns it as it then is.
///
/// # Errors
/// What the API server answers.
pub async fn apply<K: Child>(
    client: &Client,
    found: Option<&Arc<K>>,
    mut wanted: K,
    last: &mut Last<K>,
) -> Result<Arc<K>, Error> {
    let json = serde_json::to_value(&wanted)?;
    let hash = policy::bundle::hash(json.to_string().as_bytes());
    if let Some(found) = found
        && found.annotations().get(APPLIED_ANNOTATION) == Some(&hash)
        && covers(&serde_json::to_value(&**found)?, &json)
    {
        return Ok(found.clone());
    }
    wanted
        .annotations_mut()
        .insert(APPLIED_ANNOTATION.to_owned(), hash);
    let (name, namespace) = (wanted.name_any(), wanted.namespace().unwrap_or_default());
    let patch = patch(&wanted, found.and_then(|found| found.uid()))?;
    let mut params = PatchParams::apply(FIELD_MANAGER);
    // Without force, an object that somebody made in this moment is a conflict.
    params.force = found.is_some();
    let api = Api::<K>::namespaced(client.clone(), &namespace);
    let action = || format!("applying {} {name}", K::kind(&()));
    let written = call(action, api.patch(&name, &params, &Patch::Apply(&patch))).await?;
    tracing::info!(kind = %K::kind(&()), %namespace, %name, "applied");
    let written = Arc::new(written);
    let before = found.and_then(|found| found.resource_version());
    last.written = Some((before, written.clone()));
    Ok(written)
}

/// The object as a patch. The uid makes the API server refuse it where another
/// object has taken the place of the one that was looked at.
fn patch<K: Child>(wanted: &K, uid: Option<String>) -> Result<Value, Error> {
    let mut patch = serde_json::to_value(wanted)?;
    patch["apiVersion"] = K::api_version(&()).into();
    patch["kind"] = K::kind(&()).into();
    if let Some(uid) = uid {
        patch["metadata"]["uid"] = uid.into();
    }
    Ok(patch)
}
