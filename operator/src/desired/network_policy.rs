//! The NetworkPolicy of a server's pods: callers reach the sidecar, and nobody
//! the server.
//!
//! It holds where the cluster's network plugin enforces it; whether that is so
//! is tried ([`crate::isolation`]). Kubernetes lets a node reach its own pods
//! whatever a policy says: probes of the kubelet need no rule.

use std::collections::BTreeMap;

use crds::McpServerSpec;
use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
        NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::{Owner, selector};
use crate::{
    Settings,
    names::{ADMIN_PORT, MANAGED_LABEL, MCP_PORT, PEER_PORT, network_policy_name},
};

/// Label of every namespace with its name, which the API server sets.
const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";

/// The NetworkPolicy of a server: the MCP port is open to all, the admin port to
/// the operator and to who reads metrics, the peer port to pods of this server,
/// and what `injected.ports` lists to all.
pub fn network_policy(owner: &Owner, spec: &McpServerSpec, settings: &Settings) -> NetworkPolicy {
    let operator = NetworkPolicyPeer {
        namespace_selector: Some(namespace(&settings.account.namespace)),
        pod_selector: Some(matching(settings.pod_labels.clone())),
        ..NetworkPolicyPeer::default()
    };
    let monitoring = settings.monitoring_namespace.as_deref();
    let monitoring = monitoring.map(|name| NetworkPolicyPeer {
        namespace_selector: Some(namespace(name)),
        ..NetworkPolicyPeer::default()
    });
    let replica = NetworkPolicyPeer {
        pod_selector: Some(matching(selector(&owner.name))),
        ..NetworkPolicyPeer::default()
    };
    let admins = std::iter::once(operator).chain(monitoring).collect();
    let mut ingress = vec![
        rule(&[MCP_PORT], None),
        rule(&[i32::from(ADMIN_PORT)], Some(admins)),
        rule(&[PEER_PORT], Some(vec![replica])),
    ];
    let open = spec.injected.as_ref().and_then(|it| it.ports.as_deref());
    let open: Vec<_> = open.into_iter().flatten().copied().map(i32::from).collect();
    // A rule without ports would open them all.
    if !open.is_empty() {
        ingress.push(rule(&open, None));
    }
    NetworkPolicy {
        metadata: owner.metadata(network_policy_name(&owner.name), &[(MANAGED_LABEL, "true")]),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(matching(selector(&owner.name))),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(ingress),
            ..NetworkPolicySpec::default()
        }),
    }
}

/// Lets these in on these ports; none: everybody.
fn rule(ports: &[i32], from: Option<Vec<NetworkPolicyPeer>>) -> NetworkPolicyIngressRule {
    let port = |port: &i32| NetworkPolicyPort {
        port: Some(IntOrString::Int(*port)),
        protocol: Some("TCP".to_owned()),
        ..NetworkPolicyPort::default()
    };
    NetworkPolicyIngressRule {
        from,
        ports: Some(ports.iter().map(port).collect()),
    }
}

fn namespace(name: &str) -> LabelSelector {
    matching(BTreeMap::from([(
        NAMESPACE_LABEL.to_owned(),
        name.to_owned(),
    )]))
}

fn matching(labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector {
        match_labels: Some(labels),
        ..LabelSelector::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use crds::{Document, Injected, McpServer};
    use serde_json::{Value, json};

    use super::*;
    use crate::{desired::SidecarImage, names::Key};

    fn settings(monitoring_namespace: Option<&str>) -> Settings {
        Settings {
            sidecar: SidecarImage {
                image: "registry.example/sidecar:1".to_owned(),
                pull_policy: "IfNotPresent".to_owned(),
            },
            allow_anonymous: false,
            allowed_issuers: Vec::new(),
            issuer_networks: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            account: Key::new("toolward-system", "toolward-operator"),
            pod_labels: [(
                "app.kubernetes.io/component".to_owned(),
                "operator".to_owned(),
            )]
            .into(),
            monitoring_namespace: monitoring_namespace.map(str::to_owned),
            pod: "toolward-operator-0".to_owned(),
        }
    }

    fn server() -> McpServer {
        let text = "{apiVersion: toolward.dev/v1alpha1, kind: McpServer, metadata: {name: orders, namespace: shop}, spec: {transport: {type: StreamableHttp}, deployment: {image: registry.example/orders-mcp:1.4}}}";
        match crds::documents(text).unwrap().remove(0) {
            Document::McpServer(server) => *server,
            Document::McpToolPolicy(_) => unreachable!(),
        }
    }

    fn policy(spec: &McpServerSpec, monitoring: Option<&str>) -> Value {
        let owner = Owner {
            namespace: "shop".to_owned(),
            name: "orders".to_owned(),
            uid: "uid".to_owned(),
        };
        let policy = network_policy(&owner, spec, &settings(monitoring));
        serde_json::to_value(policy).unwrap()
    }

    fn tcp(ports: &[u16]) -> Value {
        let port = |port: &u16| json!({"port": port, "protocol": "TCP"});
        ports.iter().map(port).collect()
    }

    #[test]
    fn callers_reach_the_sidecar_and_nobody_the_server() {
        let policy = policy(&server().spec, Some("monitoring"));
        assert_eq!(policy["metadata"]["name"], "orders-toolward");
        assert_eq!(
            policy["metadata"]["labels"],
            json!({
                "app.kubernetes.io/managed-by": "toolward",
                "app.kubernetes.io/name": "orders",
                "toolward.dev/managed": "true",
                "toolward.dev/server": "orders",
            })
        );
        let pods = json!({"matchLabels": {"toolward.dev/server": "orders"}});
        let namespace = |name: &str| json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
        let operator = json!({
            "namespaceSelector": namespace("toolward-system"),
            "podSelector": {"matchLabels": {"app.kubernetes.io/component": "operator"}},
        });
        let monitoring = json!({"namespaceSelector": namespace("monitoring")});
        assert_eq!(
            policy["spec"],
            json!({
                "podSelector": pods,
                "policyTypes": ["Ingress"],
                "ingress": [
                    {"ports": tcp(&[9440])},
                    {"ports": tcp(&[9441]), "from": [operator, monitoring]},
                    {"ports": tcp(&[9442]), "from": [{"podSelector": pods}]},
                ],
            })
        );
    }

    #[test]
    fn without_a_monitoring_namespace_only_the_operator_reads() {
        let policy = policy(&server().spec, None);
        let admins = policy["spec"]["ingress"][1]["from"].as_array().unwrap();
        assert_eq!(admins.len(), 1);
        let pods = &admins[0]["podSelector"]["matchLabels"];
        assert_eq!(pods["app.kubernetes.io/component"], "operator");
    }

    #[test]
    fn other_ports_of_injected_pods_are_open_where_they_are_listed() {
        let mut spec = server().spec;
        spec.deployment = None;
        for (ports, expected) in [
            (Some(vec![3000, 9090]), Some(tcp(&[3000, 9090]))),
            (None, None),
            (Some(Vec::new()), None),
        ] {
            spec.injected = Some(Injected { ports });
            let policy = policy(&spec, None);
            let ingress = policy["spec"]["ingress"].as_array().unwrap();
            let more = ingress.get(3).map(|rule| {
                assert_eq!(rule["from"], Value::Null);
                rule["ports"].clone()
            });
            assert_eq!(more, expected);
        }
    }
}
