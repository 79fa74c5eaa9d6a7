//! Server-side apply of what a server owns.
//!
//! Invariants:
//! - An object is only written to or deleted where the `McpServer` controls it, or
//!   where nobody does and it carries the labels that only the operator may write.
//!   Everyone can name a server as the owner, so a ConfigMap has to carry the label
//!   in any case.
//! - Nothing is written where nothing would change.

use std::{fmt::Debug, sync::Arc};

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Client, Resource, ResourceExt,
    api::{Api, DeleteParams, Patch, PatchParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    covers::covers,
    desired::Owner,
    error::{Error, call},
    names::{APPLIED_ANNOTATION, FIELD_MANAGER, Key, MANAGED_LABEL, SERVER_LABEL},
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
    if !is_marked(&*object) {
        return Ok(Found::Foreign(what()));
    }
    let ends = object.meta().deletion_timestamp.is_some();
    match controller(&*object) {
        Some(it) if it.uid == owner.uid && !ends => Ok(Found::Ours(object)),
        Some(it) if it.uid == owner.uid || is_earlier(it, owner) => {
            Err(Error::Removing { object: what() })
        }
        None if is_kept(&*object, &owner.name) => match ends {
            false => Ok(Found::Ours(object)),
            true => Err(Error::Removing { object: what() }),
        },
        Some(it) => Ok(Found::Foreign(format!(
            "{}, which belongs to {} {}",
            what(),
            it.kind,
            it.name
        ))),
        None => Ok(Found::Foreign(what())),
    }
}

/// Whether the label says that the operator wrote it, of the kinds of which only
/// the operator can write it: what sidecars and servers believe without question.
fn is_marked<K: Child>(object: &K) -> bool {
    K::kind(&()) != "ConfigMap" || object.labels().contains_key(MANAGED_LABEL)
}

/// As [`find`]; where none is wanted, one that the watch does not tell of is not
/// looked for.
///
/// # Errors
/// As [`find`].
pub async fn find_if<K: Child>(
    is_wanted: bool,
    client: &Client,
    table: &Table<K>,
    owner: &Owner,
    name: &str,
    last: &Last<K>,
) -> Result<Option<Found<K>>, Error> {
    if !is_wanted && table.get(&Key::new(&owner.namespace, name)).is_none() {
        return Ok(None);
    }
    find(client, table, owner, name, last).await.map(Some)
}

fn controller<K: Resource>(object: &K) -> Option<&OwnerReference> {
    let mut owners = object.owner_references().iter();
    owners.find(|owner| owner.controller == Some(true))
}

/// Whether an object of a server has no owner, so that it outlives the server:
/// it is known by its labels.
pub fn is_kept<K: Resource>(object: &K, server: &str) -> bool {
    let labels = object.labels();
    controller(object).is_none()
        && labels.get(SERVER_LABEL).is_some_and(|name| name == server)
        && labels.get(MANAGED_LABEL).is_some_and(|is| is == "true")
}

fn is_earlier(controller: &OwnerReference, owner: &Owner) -> bool {
    let group = controller
        .api_version
        .split_once('/')
        .map(|(group, _)| group);
    group == Some(crds::GROUP) && controller.kind == "McpServer" && controller.name == owner.name
}

/// What was written last, while the table still has what was before it.
pub fn newest<K: Child>(known: Arc<K>, last: &Last<K>) -> Arc<K> {
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
    wanted: K,
    last: &mut Last<K>,
) -> Result<Arc<K>, Error> {
    write(client, found, wanted, None, last).await
}

/// As [`apply`], on the version that was found and no other: what somebody wrote
/// since is not written over.
///
/// # Errors
/// What the API server answers; 409 where there is another version.
pub async fn apply_to<K: Child>(
    client: &Client,
    found: &Arc<K>,
    wanted: K,
    last: &mut Last<K>,
) -> Result<Arc<K>, Error> {
    let version = found.resource_version();
    write(client, Some(found), wanted, version, last).await
}

async fn write<K: Child>(
    client: &Client,
    found: Option<&Arc<K>>,
    mut wanted: K,
    version: Option<String>,
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
    let patch = patch(&wanted, found.and_then(|found| found.uid()), version)?;
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
/// object has taken the place of the one that was looked at, the version also where
/// that was changed.
fn patch<K: Child>(
    wanted: &K,
    uid: Option<String>,
    version: Option<String>,
) -> Result<Value, Error> {
    let mut patch = serde_json::to_value(wanted)?;
    patch["apiVersion"] = K::api_version(&()).into();
    patch["kind"] = K::kind(&()).into();
    if let Some(uid) = uid {
        patch["metadata"]["uid"] = uid.into();
    }
    if let Some(version) = version {
        patch["metadata"]["resourceVersion"] = version.into();
    }
    Ok(patch)
}

/// Deletes an object as it was found. One that was changed since, or is gone, is
/// left: the watch tells.
///
/// # Errors
/// What else the API server answers.
pub async fn delete<K: Child>(client: &Client, found: &K) -> Result<(), Error> {
    let (name, namespace) = (found.name_any(), found.namespace().unwrap_or_default());
    let params = DeleteParams::background().preconditions(Preconditions {
        uid: found.uid(),
        resource_version: found.resource_version(),
    });
    let api = Api::<K>::namespaced(client.clone(), &namespace);
    let action = || format!("deleting {} {name}", K::kind(&()));
    match call(action, api.delete(&name, &params)).await {
        Ok(_) => {
            tracing::info!(kind = %K::kind(&()), %namespace, %name, "deleted");
            Ok(())
        }
        Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Service};

    use super::*;

    #[test]
    fn a_config_map_is_marked_by_the_label_alone() {
        let mut map = ConfigMap::default();
        assert!(!is_marked(&map));
        let label = (MANAGED_LABEL.to_owned(), "true".to_owned());
        map.labels_mut().extend([label]);
        assert!(is_marked(&map));
        assert!(is_marked(&Service::default()));
    }
}
