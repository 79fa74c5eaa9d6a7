//! Writes a status, only where it differs, and never over what was not seen.

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    entry::{Entry, Kind},
    error::{Error, call},
    names::{FIELD_MANAGER, Key},
};

/// What became of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It was written.
    Yes,
    /// There was nothing to write.
    Same,
    /// What the status was made from is out of date; the watch will tell.
    Stale,
}

/// The version that was written over last: until the watch tells the next one,
/// what it told is known to be out of date.
#[derive(Debug, Default)]
pub struct LastStatus(Option<String>);

/// Writes a status on the version that it was made from.
///
/// # Errors
/// What the API server answers.
pub async fn write<T: Kind>(
    client: &Client,
    key: &Key,
    entry: &Entry<T>,
    status: &Value,
    last: &mut LastStatus,
) -> Result<Written, Error> {
    let version = &entry.meta.resource_version;
    if last.0.is_some() && last.0 == *version {
        return Ok(Written::Stale);
    }
    if entry.status == *status {
        return Ok(Written::Same);
    }
    let resource = ApiResource::erase::<T>(&());
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), &key.namespace, &resource);
    let patch = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": key.name, "resourceVersion": version, "uid": entry.meta.uid},
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let action = || format!("writing the status of {} {key}", resource.kind);
    match call(
        action,
        api.patch_status(&key.name, &params, &Patch::Apply(&patch)),
    )
    .await
    {
        Ok(written) => {
            if written.metadata.resource_version != *version {
                last.0.clone_from(version);
            }
            Ok(Written::Yes)
        }
        // Changed or gone in the meantime.
        Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(Written::Stale),
        Err(error) => Err(error),
    }
}
