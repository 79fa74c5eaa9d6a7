//! Names that are a contract between the operator, the sidecar and users.

use std::fmt;

use kube::Resource;

/// The field manager of everything that the operator applies.
pub const FIELD_MANAGER: &str = "toolward-operator";
/// Label with the name of the `McpServer` on all that belongs to it.
pub const SERVER_LABEL: &str = "toolward.dev/server";
/// Annotation on pods with the name of the `McpServer` whose sidecar they get.
pub const SERVER_ANNOTATION: &str = "toolward.dev/server";
/// Annotation on pods with the name of the container that runs a stdio server.
pub const CONTAINER_ANNOTATION: &str = "toolward.dev/container";
/// Annotation on pods that tells what the webhook did.
pub const INJECTED_ANNOTATION: &str = "toolward.dev/injected";
/// Annotations on pods with compute resources of the sidecar.
pub const RESOURCE_ANNOTATIONS: [&str; 4] = [
    "toolward.dev/cpu-request",
    "toolward.dev/cpu-limit",
    "toolward.dev/memory-request",
    "toolward.dev/memory-limit",
];
/// Label of namespaces that opted in to injection; its value is `enabled`.
pub const INJECTION_LABEL: &str = "toolward.dev/injection";
/// Label of the ConfigMaps that only the operator may write.
pub const MANAGED_LABEL: &str = "toolward.dev/managed";
/// Annotation on pods that makes the kubelet look at the ConfigMap at once.
pub const BUNDLE_ANNOTATION: &str = "toolward.dev/bundle";
/// Annotation with the hash of what was applied last.
pub const APPLIED_ANNOTATION: &str = "toolward.dev/applied";

/// Container of the wrapped server.
pub const SERVER_CONTAINER: &str = "server";
/// Container of the sidecar.
pub const SIDECAR_CONTAINER: &str = "toolward-sidecar";
/// Init container that copies the shim.
pub const INSTALL_CONTAINER: &str = "toolward-install";

/// Port of the MCP endpoint in the pod.
pub const MCP_PORT: i32 = 9440;
/// Port of health, metrics, `/status` and `/identity` in the pod.
pub const ADMIN_PORT: u16 = 9441;
/// Port in the pod on which sidecars of one server speak to each other.
pub const PEER_PORT: i32 = 9442;

/// Name of the ConfigMap that holds a server's bundle.
pub fn config_map_name(server: &str) -> String {
    format!("{server}-toolward")
}

/// Name of the NetworkPolicy of a server's pods.
pub fn network_policy_name(server: &str) -> String {
    format!("{server}-toolward")
}

/// Name of the ConfigMap that holds the public keys of a server's sidecars.
pub fn identity_map_name(server: &str) -> String {
    format!("{server}-toolward-identity")
}

/// The audience of the operator's tokens for one server's admin port.
pub fn admin_audience(server: &Key) -> String {
    format!("toolward-admin/{}/{}", server.namespace, server.name)
}

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// A key of its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// The key of an object.
    pub fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
