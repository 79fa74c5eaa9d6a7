//! The ConfigMaps: one carries the bundle and the list of replicas, one the public
//! keys of the sidecars, which others read too.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use policy::{bundle, peers};

use super::Owner;
use crate::names::{MANAGED_LABEL, config_map_name, identity_map_name};

/// The ConfigMap with a server's bundle and its list of replicas.
pub fn config_map(owner: &Owner, bundle: String, peers: String) -> ConfigMap {
    ConfigMap {
        metadata: owner.metadata(config_map_name(&owner.name), &[(MANAGED_LABEL, "true")]),
        data: Some(BTreeMap::from([
            (bundle::FILE.to_owned(), bundle),
            (peers::FILE.to_owned(), peers),
        ])),
        ..ConfigMap::default()
    }
}

/// The ConfigMap with the public keys of a server's sidecars.
pub fn identity_map(owner: &Owner, keys: BTreeMap<String, String>) -> ConfigMap {
    ConfigMap {
        metadata: owner.metadata(identity_map_name(&owner.name), &[(MANAGED_LABEL, "true")]),
        data: Some(keys),
        ..ConfigMap::default()
    }
}
