//! What is to exist for a server, by pure functions: the same input gives the
//! same bytes.

mod config_map;
mod deployment;
mod network_policy;
pub(crate) mod pod;
mod service;
#[cfg(test)]
mod tests;
mod volumes;

use std::collections::BTreeMap;

use crds::McpServer;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;

pub use config_map::{config_map, identity_map};
pub use deployment::deployment;
pub use network_policy::network_policy;
pub use service::service;
pub(crate) use volumes::{secrets, volumes};

use crate::names::SERVER_LABEL;

/// The image of the sidecar, as the chart sets it.
#[derive(Clone, Debug)]
pub struct SidecarImage {
    /// Reference of the image.
    pub image: String,
    /// `imagePullPolicy` of the containers that run it.
    pub pull_policy: String,
}

/// The owner of all that exists for a server: `kubectl delete` removes it all.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Namespace of the `McpServer`.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl Owner {
    fn metadata(&self, name: String, more: &[(&str, &str)]) -> ObjectMeta {
        let mut labels = labels(&self.name);
        labels.extend(more.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        ObjectMeta {
            namespace: Some(self.namespace.clone()),
            name: Some(name),
            labels: Some(labels),
            owner_references: Some(vec![self.reference()]),
            ..ObjectMeta::default()
        }
    }

    fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: <McpServer as Resource>::api_version(&()).into_owned(),
            kind: <McpServer as Resource>::kind(&()).into_owned(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }
}

/// The object without an owner: garbage collection leaves it when the `McpServer`
/// is deleted. Pods that Toolward did not make need their configuration until they
/// end.
pub fn kept<K: Resource>(mut object: K) -> K {
    object.meta_mut().owner_references = None;
    object
}

fn labels(server: &str) -> BTreeMap<String, String> {
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    BTreeMap::from([
        label(SERVER_LABEL, server),
        label("app.kubernetes.io/name", server),
        label("app.kubernetes.io/managed-by", "toolward"),
    ])
}

/// The label by which Deployment and Service find the pods.
fn selector(server: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(SERVER_LABEL.to_owned(), server.to_owned())])
}
