//! All that the operator knows: what the watches tell, and the keys of the
//! cluster's token issuer.

use std::sync::Arc;

use crds::{McpServer, McpToolPolicy};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod, Service},
    networking::v1::NetworkPolicy,
};
use policy::{AllowedIssuers, Bundle, Compiled, Context, PolicySource, bundle::Issuer};

use crate::{
    Settings,
    entry::{Entry, every_server},
    injection::Missing,
    issuer,
    names::Key,
    table::Table,
};

/// Tables of all that is watched.
pub struct World {
    /// Servers.
    pub servers: Table<Entry<McpServer>>,
    /// Policies, by the servers that they target.
    pub policies: Table<Entry<McpToolPolicy>>,
    /// Deployments of servers.
    pub deployments: Table<Deployment>,
    /// Services of servers.
    pub services: Table<Service>,
    /// ConfigMaps of servers.
    pub config_maps: Table<ConfigMap>,
    /// NetworkPolicies of servers.
    pub network_policies: Table<NetworkPolicy>,
    /// Pods of servers.
    pub pods: Table<Pod>,
    /// Pods that ask for the sidecar of an injected server and are not labelled.
    pub missing: Missing,
    /// The cluster's token issuer.
    pub issuer: issuer::Current,
    /// What the operator was started with.
    pub settings: Settings,
    /// `sub` of the operator's own tokens.
    pub operator: String,
}

impl World {
    /// Tables with nothing in them yet.
    pub fn new(settings: Settings, operator: String, issuer: issuer::Current) -> Self {
        Self {
            servers: Table::default(),
            policies: Table::default(),
            deployments: Table::default(),
            services: Table::default(),
            config_maps: Table::default(),
            network_policies: Table::default(),
            pods: Table::default(),
            missing: Missing::default(),
            issuer,
            settings,
            operator,
        }
    }

    /// Whether all is known that a bundle depends on. Before that nothing may
    /// be compiled: a rule that denies could be missing.
    pub fn ready(&self) -> bool {
        self.servers.synced()
            && self.policies.synced()
            && self.deployments.synced()
            && self.services.synced()
            && self.config_maps.synced()
            && self.network_policies.synced()
            && self.pods.synced()
            && self.issuer.borrow().is_some()
    }

    /// Whether a server runs in pods that Toolward did not make.
    pub fn is_injected(&self, server: &Key) -> bool {
        let entry = self.servers.get(server);
        let server = entry.as_ref().and_then(|entry| entry.decoded.as_ref().ok());
        server.is_some_and(|server| server.spec.injected.is_some())
    }

    /// The policies that target a server, and those of which that is not known.
    pub fn policies_of(&self, server: &Key) -> Vec<Arc<Entry<McpToolPolicy>>> {
        let mut policies = self.policies.group(server);
        policies.extend(self.policies.group(&every_server(&server.namespace)));
        policies
    }

    /// The bundle of a server with all its policies.
    pub fn compile(
        &self,
        key: &Key,
        server: &McpServer,
        policies: &[Arc<Entry<McpToolPolicy>>],
        cluster_ips: &[String],
    ) -> Compiled {
        let sources: Vec<_> = policies.iter().map(|entry| source(entry)).collect();
        let uid = server.metadata.uid.as_deref();
        let mut context = self.context(key, uid, cluster_ips);
        context.default_url = default_url(key, server.spec.tls.is_some());
        context
            .hosts
            .extend(server.spec.url.as_deref().and_then(host));
        policy::compile(server, &sources, &context)
    }

    /// The bundle of a server that cannot be decoded.
    pub fn deny_all(
        &self,
        key: &Key,
        uid: Option<&str>,
        cluster_ips: &[String],
        why: &str,
    ) -> Bundle {
        let context = self.context(key, uid, cluster_ips);
        policy::deny_all(&key.namespace, &key.name, &context, why)
    }

    fn context(&self, key: &Key, uid: Option<&str>, cluster_ips: &[String]) -> Context {
        let Key { namespace, name } = key;
        let domain = &self.settings.cluster_domain;
        let mut hosts = vec![
            name.clone(),
            format!("{name}.{namespace}"),
            format!("{name}.{namespace}.svc"),
            format!("{name}.{namespace}.svc.{domain}"),
        ];
        hosts.extend_from_slice(cluster_ips);
        let issuer: Option<Issuer> = self.issuer.borrow().as_deref().cloned();
        Context {
            default_url: default_url(key, false),
            hosts,
            cluster: issuer,
            dev: None,
            issuers: AllowedIssuers::Listed(self.settings.allowed_issuers.clone()),
            networks: self.settings.issuer_networks.clone(),
            operator: Some(self.operator.clone()),
            uid: uid.map(str::to_owned),
            allow_anonymous: self.settings.allow_anonymous,
        }
    }
}

/// The URL of a server that names none: that of its Service.
fn default_url(Key { namespace, name }: &Key, is_tls: bool) -> String {
    let scheme = if is_tls { "https" } else { "http" };
    format!("{scheme}://{name}.{namespace}.svc/mcp")
}

fn source(entry: &Entry<McpToolPolicy>) -> PolicySource<'_> {
    match &entry.decoded {
        Ok(policy) => PolicySource::Valid(policy),
        Err(error) => PolicySource::Unreadable {
            name: entry.meta.name.clone().unwrap_or_default(),
            error: error.clone(),
        },
    }
}

/// The host of a URL, without the port.
fn host(url: &str) -> Option<String> {
    let uri: http::Uri = url.parse().ok()?;
    uri.host().map(|host| host.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_url_has_no_port() {
        for (url, expected) in [
            ("https://Orders.example.com/mcp", Some("orders.example.com")),
            ("http://10.0.0.1:8080/mcp", Some("10.0.0.1")),
            ("http://[fd00::1]:80/mcp", Some("[fd00::1]")),
            ("/mcp", None),
        ] {
            assert_eq!(host(url).as_deref(), expected, "{url}");
        }
    }
}
