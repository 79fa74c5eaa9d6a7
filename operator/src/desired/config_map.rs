//! The ConfigMap that carries the bundle.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;

use super::Owner;
use crate::names::{MANAGED_LABEL, config_map_name};

/// The ConfigMap with a server's bundle.
pub fn config_map(owner: &Owner, bundle: String) -> ConfigMap {
    ConfigMap {
        metadata: owner.metadata(config_map_name(&owner.name), &[(MANAGED_LABEL, "true")]),
        data: Some(BTreeMap::from([(policy::bundle::FILE.to_owned(), bundle)])),
        ..ConfigMap::default()
    }
}
