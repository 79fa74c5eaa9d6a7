//! A NetworkPolicy enforcer for the node, which has none by itself: a test starts
//! it to see the other side.
//!
//! It looks at policies, pods and namespaces a few times a second and writes
//! nftables rules into the node's network where they differ. What it knows is
//! what Toolward's policies are made of: ingress over IPv4, TCP ports by number,
//! pods and namespaces by labels; anything else is an error. As everywhere, a node
//! reaches its own pods, a pod reaches itself, and connections that are there go
//! on.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use tokio::task::JoinHandle;

use super::process::Process;
use crate::sh::{self, command, say};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(200);

/// Enforces the policies of one namespace until it is dropped.
#[derive(Debug)]
pub struct Enforcer {
    table: Arc<Table>,
    task: JoinHandle<()>,
}

impl Enforcer {
    /// Returns when the rules for what there is now are in place.
    pub(crate) async fn start(client: Client, node: Process, namespace: &str) -> Result<Self> {
        let table = Arc::new(Table {
            node,
            name: format!("enforcer_{}", namespace.replace('-', "_")),
            ended: Mutex::new(false),
        });
        let seen = Seen::look(&client, namespace).await?;
        let rules = seen.rules()?;
        Arc::clone(&table).write(rules.clone()).await?;
        let follow = follow(client, namespace.to_owned(), Arc::clone(&table), rules);
        let task = tokio::spawn(follow);
        Ok(Self { table, task })
    }
}

impl Drop for Enforcer {
    fn drop(&mut self) {
        self.task.abort();
        if let Err(error) = self.table.remove() {
            say(format!("the enforcer's rules stay: {error:#}"));
        }
    }
}

async fn follow(client: Client, namespace: String, table: Arc<Table>, mut written: Vec<String>) {
    loop {
        tokio::time::sleep(PERIOD).await;
        let seen = Seen::look(&client, &namespace).await;
        let wrote = match seen.and_then(|seen| seen.rules()) {
            Ok(rules) if rules == written => continue,
            Ok(rules) => {
                written.clone_from(&rules);
                Arc::clone(&table).write(rules).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = wrote {
            say(format!("the enforcer of {namespace}: {error:#}"));
            written.clear();
        }
    }
}

/// A table of rules in the node's network.
#[derive(Debug)]
struct Table {
    node: Process,
    name: String,
    /// Nothing is written after the end, whatever is still under way.
    ended: Mutex<bool>,
}

impl Table {
    /// Replaces the rules, in one step.
    async fn write(self: Arc<Self>, rules: Vec<String>) -> Result<()> {
        let write = move || {
            let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            let name = &self.name;
            let rules = rules.join("\n    ");
            let script = format!(
                "table inet {name}
delete table inet {name}
table inet {name} {{
  chain ingress {{
    type filter hook forward priority -1; policy accept;
    ct state established,related accept
    {rules}
  }}
}}
"
            );
            if *ended {
                return Ok(());
            }
            self.nft(&script)
        };
        tokio::task::spawn_blocking(write).await?
    }

    fn remove(&self) -> Result<()> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        *ended = true;
        if self.node.alive() {
            self.nft(&format!("delete table inet {}\n", self.name))?;
        }
        Ok(())
    }

    fn nft(&self, script: &str) -> Result<()> {
        ensure!(self.node.alive(), "the node is gone");
        let pid = self.node.pid.to_string();
        let args = ["--target", &pid, "--net", "nft", "--file", "-"];
        let mut child = command("nsenter", &args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start nsenter")?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that ends early closes the pipe; its status tells why.
            let _ = stdin.write_all(script.as_bytes());
        }
        let output = child.wait_with_output()?;
        sh::succeed("nsenter … nft --file -", &output)
            .map(drop)
            .with_context(|| script.to_owned())
    }
}

/// What rules are made of.
struct Seen {
    policies: Vec<NetworkPolicy>,
    pods: Vec<Pod>,
    /// Labels of namespaces, by name.
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

impl Seen {
    async fn look(client: &Client, namespace: &str) -> Result<Self> {
        // From the API server's cache: it costs little.
        let all = ListParams::default().match_any();
        let policies = Api::<NetworkPolicy>::namespaced(client.clone(), namespace);
        let pods = Api::<Pod>::all(client.clone());
        let namespaces = Api::<Namespace>::all(client.clone());
        let (policies, pods, namespaces) =
            tokio::try_join!(policies.list(&all), pods.list(&all), namespaces.list(&all))?;
        let labels = |namespace: &Namespace| (namespace.name_any(), namespace.labels().clone());
        Ok(Self {
            policies: policies.items,
            pods: pods.items,
            namespaces: namespaces.items.iter().map(labels).collect(),
        })
    }

    /// The rules for all pods that a policy selects.
    fn rules(&self) -> Result<Vec<String>> {
        let mut rules = Vec::new();
        for pod in &self.pods {
            let Some(address) = address(pod) else {
                continue;
            };
            let mut selected = false;
            let mut allowed = Vec::new();
            for policy in &self.policies {
                if self.selects(policy, pod)? {
                    selected = true;
                    let ingress = policy.spec.iter().flat_map(|spec| &spec.ingress);
                    for rule in ingress.flatten() {
                        allowed.extend(self.allowed(policy, rule)?);
                    }
                }
            }
            if selected {
                rules.push(format!("ip daddr {address} ip saddr {address} accept"));
                let allow = |what: String| format!("ip daddr {address}{what} accept");
                rules.extend(allowed.into_iter().map(allow));
                rules.push(format!("ip daddr {address} drop"));
            }
        }
        Ok(rules)
    }

    fn selects(&self, policy: &NetworkPolicy, pod: &Pod) -> Result<bool> {
        let spec = policy.spec.as_ref().context("a policy without spec")?;
        let types = spec.policy_types.iter().flatten();
        let types: Vec<_> = types.map(String::as_str).collect();
        ensure!(types == ["Ingress"], "policyTypes {types:?} are not known");
        let is_selected = match &spec.pod_selector {
            Some(selector) => matches(selector, pod.labels())?,
            None => true,
        };
        Ok(is_selected && policy.namespace() == pod.namespace())
    }

    /// Whom a rule lets in where, as nftables says it; none where nobody.
    fn allowed(
        &self,
        policy: &NetworkPolicy,
        rule: &NetworkPolicyIngressRule,
    ) -> Result<Option<String>> {
        let mut text = String::new();
        let from: Vec<_> = rule.from.iter().flatten().collect();
        if !from.is_empty() {
            let mut sources = BTreeSet::new();
            for peer in from {
                sources.extend(self.sources(policy, peer)?);
            }
            if sources.is_empty() {
                return Ok(None);
            }
            text.push_str(&format!(" ip saddr {}", set(&sources)));
        }
        let ports = rule.ports.iter().flatten().map(port);
        let ports: BTreeSet<_> = ports.collect::<Result<_>>()?;
        if !ports.is_empty() {
            text.push_str(&format!(" tcp dport {}", set(&ports)));
        }
        Ok(Some(text))
    }

    /// The addresses of the pods that a peer stands for.
    fn sources(&self, policy: &NetworkPolicy, peer: &NetworkPolicyPeer) -> Result<Vec<Ipv4Addr>> {
        ensure!(peer.ip_block.is_none(), "ipBlock is not known");
        let mut sources = Vec::new();
        let nothing = BTreeMap::new();
        for pod in &self.pods {
            let namespace = pod.namespace().unwrap_or_default();
            let is_in = match &peer.namespace_selector {
                Some(selector) => {
                    let labels = self.namespaces.get(&namespace);
                    matches(selector, labels.unwrap_or(&nothing))?
                }
                None => policy.namespace().as_ref() == Some(&namespace),
            };
            let is_meant = match &peer.pod_selector {
                Some(selector) => matches(selector, pod.labels())?,
                None => true,
            };
            if is_in && is_meant {
                sources.extend(address(pod));
            }
        }
        Ok(sources)
    }
}

/// The address of a pod that is of its own and in use.
fn address(pod: &Pod) -> Option<Ipv4Addr> {
    let is_of_the_node = pod
        .spec
        .as_ref()
        .is_some_and(|s| s.host_network == Some(true));
    let status = pod.status.as_ref()?;
    let is_finished = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
    let address = status.pod_ip.as_ref()?.parse().ok();
    address.filter(|_| !is_of_the_node && !is_finished)
}

fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> Result<bool> {
    let expressions = selector.match_expressions.iter().flatten();
    ensure!(expressions.count() == 0, "matchExpressions are not known");
    let mut wanted = selector.match_labels.iter().flatten();
    Ok(wanted.all(|(name, value)| labels.get(name) == Some(value)))
}

fn port(port: &NetworkPolicyPort) -> Result<i32> {
    let is_tcp = port.protocol.as_deref().unwrap_or("TCP") == "TCP";
    match &port.port {
        Some(IntOrString::Int(number)) if is_tcp && port.end_port.is_none() => Ok(*number),
        _ => anyhow::bail!("a port other than a TCP port by number is not known: {port:?}"),
    }
}

fn set(items: &BTreeSet<impl ToString>) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    format!("{{ {} }}", items.join(", "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::*;

    fn of<T: serde::de::DeserializeOwned>(object: Value) -> T {
        serde_json::from_value(object).unwrap()
    }

    fn pod(namespace: &str, app: &str, ip: &str) -> Pod {
        of(json!({
            "metadata": {"name": app, "namespace": namespace, "labels": {"app": app}},
            "status": {"podIP": ip, "phase": "Running"},
        }))
    }

    fn seen(ingress: Value) -> Seen {
        let policy = json!({
            "metadata": {"name": "p", "namespace": "shop"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "orders"}},
                "policyTypes": ["Ingress"], "ingress": ingress,
            },
        });
        let labels = |name: &str| [("name".to_owned(), name.to_owned())].into();
        Seen {
            policies: vec![of(policy)],
            pods: vec![
                pod("shop", "orders", "10.99.0.5"),
                pod("shop", "other", "10.99.0.6"),
                pod("eyes", "orders", "10.99.0.7"),
                pod("eyes", "other", "10.99.0.8"),
            ],
            namespaces: ["shop", "eyes"]
                .map(|name| (name.to_owned(), labels(name)))
                .into(),
        }
    }

    #[test]
    fn policies_become_rules() {
        let tcp = |port: u16| json!({"port": port, "protocol": "TCP"});
        let eyes = json!({"matchLabels": {"name": "eyes"}});
        let other = json!({"matchLabels": {"app": "other"}});
        for (rule, expected) in [
            (json!({"ports": [tcp(9440)]}), Some(" tcp dport { 9440 }")),
            (
                json!({"ports": [tcp(2), tcp(1)], "from": [{"namespaceSelector": eyes}]}),
                Some(" ip saddr { 10.99.0.7, 10.99.0.8 } tcp dport { 1, 2 }"),
            ),
            (
                json!({"from": [{"namespaceSelector": eyes, "podSelector": other}]}),
                Some(" ip saddr { 10.99.0.8 }"),
            ),
            (
                json!({"from": [{"podSelector": other}, {"namespaceSelector": eyes}]}),
                Some(" ip saddr { 10.99.0.6, 10.99.0.7, 10.99.0.8 }"),
            ),
            (
                json!({"from": [{"podSelector": {"matchLabels": {"app": "none"}}}]}),
                None,
            ),
            (json!({}), Some("")),
        ] {
            let mut all = vec!["ip daddr 10.99.0.5 ip saddr 10.99.0.5 accept".to_owned()];
            all.extend(expected.map(|what| format!("ip daddr 10.99.0.5{what} accept")));
            all.push("ip daddr 10.99.0.5 drop".to_owned());
            assert_eq!(seen(json!([rule])).rules().unwrap(), all, "{rule}");
        }
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        for rule in [
            json!({"ports": [{"port": "http"}]}),
            json!({"ports": [{"port": 1, "endPort": 2}]}),
            json!({"ports": [{"port": 1, "protocol": "UDP"}]}),
            json!({"ports": [{}]}),
            json!({"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}),
            json!({"from": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}}]}),
        ] {
            assert!(seen(json!([rule])).rules().is_err(), "{rule}");
        }
    }

    #[test]
    fn pods_without_an_address_of_their_own_are_nobody() {
        let mut pods = seen(json!([])).pods;
        let [running, finished, pending, hosted] = &mut pods[..] else {
            panic!("four pods")
        };
        finished.status.as_mut().unwrap().phase = Some("Succeeded".into());
        pending.status.as_mut().unwrap().pod_ip = None;
        hosted.spec.get_or_insert_default().host_network = Some(true);
        assert_eq!(address(running), Some(Ipv4Addr::new(10, 99, 0, 5)));
        for pod in [finished, pending, hosted] {
            assert_eq!(address(pod), None);
        }
    }
}
