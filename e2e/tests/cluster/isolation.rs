//! Nobody goes around the sidecar, or the condition `Isolated` says so: on a node
//! that enforces no NetworkPolicy, and on one that does.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use crds::{ConditionStatus, ConditionType, Reason};
use e2e::mcp::{self, Called, Endpoint};
use e2e::statements as promise;
use e2e::{Image, Mcp, PATIENCE, PATIENT, wait_for};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::injection::{container, injected, template, workload};
use crate::suite::{Scope, Verdict, allow, beside, http, opted_in, server, stdio};

/// Where the chart has it that metrics are read from.
pub const MONITORING: &str = "t-isolation-reach-monitoring";
/// An MCP server whose tools open and close ports.
const OPENS: &str = concat!(include_str!("serve.js"), include_str!("ports.js"));
const SERVER: &str = "guarded";
/// A pod that connects to others.
const CLIENT: &str = "client";
/// The ports of the sidecar, and the server's own.
const PORTS: [u16; 4] = [MCP, ADMIN, PEERS, OWN];
const MCP: u16 = 9440;
const ADMIN: u16 = 9441;
const PEERS: u16 = 9442;
const OWN: u16 = 8080;
/// How long a connection may take; what keeps it out gives no answer.
const CONNECT: Duration = Duration::from_secs(3);

const LOOPBACK: Verdict = (
    ConditionType::Isolated,
    ConditionStatus::True,
    Reason::LoopbackOnly,
);
const ENFORCED: Verdict = (
    ConditionType::Isolated,
    ConditionStatus::True,
    Reason::NetworkPolicyEnforced,
);
const REACHABLE: Verdict = (
    ConditionType::Isolated,
    ConditionStatus::False,
    Reason::ServerPortReachable,
);

/// Waits until the status says that these ports are reached.
async fn reachable(scope: &Scope, ports: &str) -> Result<()> {
    wait_for(&format!("{ports} to be reached"), PATIENCE, || async {
        let condition = scope.server_says(SERVER, REACHABLE).await?;
        let said = condition.message;
        ensure!(said.starts_with(&format!("{ports} of pod ")), "{said}");
        Ok(())
    })
    .await
}

/// The names and addresses of the server's pods that are there to stay.
async fn pods(scope: &Scope) -> Result<Vec<(String, String)>> {
    let pods = Api::<Pod>::namespaced(scope.client.clone(), &scope.namespace);
    let label = format!("toolward.dev/server={SERVER}");
    let pods = pods.list(&ListParams::default().labels(&label)).await?;
    let stays = |pod: &Pod| pod.metadata.deletion_timestamp.is_none();
    let pods = pods.items.into_iter().filter(stays).map(|pod| {
        let address = pod.status.and_then(|status| status.pod_ip);
        Some((pod.metadata.name?, address?))
    });
    pods.collect::<Option<_>>().context("a pod has no address")
}

/// Which ports of an address this machine can connect to: it is outside of the
/// cluster.
async fn from_outside(address: &str, ports: &[u16]) -> Vec<u16> {
    let reach = |port: u16| async move {
        let connect = TcpStream::connect((address, port));
        let connected = tokio::time::timeout(CONNECT, connect).await;
        matches!(connected, Ok(Ok(_))).then_some(port)
    };
    let reached = join_all(ports.iter().map(|port| reach(*port))).await;
    reached.into_iter().flatten().collect()
}

/// Which ports of an address a container of a pod can connect to.
async fn from_pod(
    scope: &Scope,
    (namespace, pod, container): (&str, &str, &str),
    address: &str,
) -> Result<Vec<u16>> {
    let ports = PORTS.map(|port| port.to_string());
    let mut exec = vec!["exec", "-n", namespace, pod, "-c", container, "--"];
    exec.extend(["node", "-e", include_str!("reach.js"), address]);
    exec.extend(ports.iter().map(String::as_str));
    let reached = scope.cluster.kubectl(&exec).await?;
    let reached = reached.split_whitespace().map(str::parse::<u16>);
    Ok(reached.collect::<Result<_, _>>()?)
}

/// A pod that does nothing by itself.
fn client() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": CLIENT},
        "spec": {
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": CLIENT, "image": Image::ServerEverything.name(),
                "command": ["node", "-e", "setInterval(() => {}, 1000000)"],
                "resources": {"requests": {"cpu": "100m"}},
                "securityContext": {
                    "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    })
}

async fn text(mcp: &Mcp, tool: &str, port: u16) -> Result<()> {
    match mcp::call(mcp, tool, json!({"port": port})).await? {
        Called::Text(text) => {
            ensure!(text.ends_with(&port.to_string()), "{text}");
            Ok(())
        }
        other => bail!("{tool} gives {other:?}"),
    }
}

#[tokio::test]
async fn a_port_that_opens_beside_a_server_on_loopback_is_found() -> Result<()> {
    beside("isolation-ports", async |scope: &Scope| {
        let command = ["node", "-e", OPENS];
        let ports = server(SERVER, &command, "StreamableHttp");
        let policy = allow("callers", SERVER, &scope.caller_subject(), &["*"]);
        scope.apply(&[ports, policy]).await?;
        scope.serving(SERVER).await?;
        scope.server_says(SERVER, LOOPBACK).await?;
        let mcp = scope.caller(SERVER).await?.connect().await?;

        text(&mcp, "listen", 3000).await?;
        reachable(scope, "Port 3000").await?;
        text(&mcp, "listen", 3001).await?;
        reachable(scope, "Ports 3000, 3001").await?;
        let object = format!("mcpserver/{SERVER}");
        wait_for("an Event", PATIENCE, || async {
            let events = scope.kubectl(&["events", "--for", &object]).await?;
            ensure!(events.contains("ServerPortReachable"), "{events}");
            Ok(())
        })
        .await?;

        let enforcer = scope.cluster.enforce(&scope.namespace).await?;
        scope.server_says(SERVER, ENFORCED).await?;
        let pods = pods(scope).await?;
        let (_, address) = pods.first().context("no pod")?;
        let reached = from_outside(address, &[MCP, 3000, 3001]).await;
        ensure!(reached == [MCP], "{reached:?}");
        text(&mcp, "close", 3000).await?;
        text(&mcp, "close", 3001).await?;
        scope.server_says(SERVER, LOOPBACK).await?;
        drop(enforcer);
        Ok(())
    })
    .await
}

/// What an app team's pod had before stays: probes of a server on loopback, and the
/// ports that the `McpServer` lists.
#[tokio::test]
async fn an_injected_pod_keeps_its_probes_and_its_listed_ports() -> Result<()> {
    opted_in("isolation-injected", async |scope: &Scope| {
        let mut app = container(&["node", "-e", OPENS]);
        app["ports"] = json!([{"name": "mcp", "containerPort": OWN}]);
        app["readinessProbe"] = json!({
            "httpGet": {"path": "/healthz", "port": "mcp"}, "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 10,
        });
        let mut template = template(SERVER, &app);
        template["metadata"]["annotations"]["toolward.dev/cpu-request"] = "15m".into();
        let mut guarded = injected(SERVER, "StreamableHttp");
        guarded["spec"]["injected"] = json!({"ports": [3000]});
        let policy = allow("callers", SERVER, &scope.caller_subject(), &["*"]);
        let deployment = workload("Deployment", SERVER, template);
        scope.apply(&[guarded, policy, deployment]).await?;
        scope.serving(SERVER).await?;
        scope.server_says(SERVER, LOOPBACK).await?;
        let sidecar = r#"jsonpath={.items[0].spec.initContainers[?(@.name=="toolward-sidecar")].resources.requests.cpu}"#;
        let pod = ["get", "pods", "-l", "toolward.dev/server=guarded"];
        let cpu = scope.kubectl(&[&pod[..], &["-o", sidecar]].concat()).await?;
        ensure!(cpu == "15m", "the sidecar asks for {cpu}");

        let mcp = scope.caller(SERVER).await?.connect().await?;
        text(&mcp, "listen", 3000).await?;
        text(&mcp, "listen", 3001).await?;
        reachable(scope, "Port 3001").await?;
        let enforcer = scope.cluster.enforce(&scope.namespace).await?;
        scope.server_says(SERVER, ENFORCED).await?;
        let pods = pods(scope).await?;
        let (_, address) = pods.first().context("no pod")?;
        let reached = from_outside(address, &[MCP, OWN, 3000, 3001]).await;
        ensure!(reached == [MCP, 3000], "{reached:?}");
        drop(enforcer);

        // What the app says of itself is what the kubelet gets to hear.
        text(&mcp, "health", 503).await?;
        let unready = ["wait", "--for=condition=Ready=false", PATIENT, "pods", "-l"];
        let label = ["toolward.dev/server=guarded"];
        scope.kubectl(&[&unready[..], &label].concat()).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn a_server_on_all_addresses_is_found_until_a_policy_is_enforced() -> Result<()> {
    beside("isolation-open", async |scope: &Scope| {
        let policy = allow("callers", SERVER, &scope.caller_subject(), &["get-sum"]);
        scope.apply(&[http(SERVER), policy]).await?;
        scope.serving(SERVER).await?;
        reachable(scope, "Port 8080").await?;
        let before = pods(scope).await?;
        let (_, address) = before.first().context("no pod")?;
        // What that means: no token, and all tools.
        let around = Endpoint::direct(format!("http://{address}:8080/mcp"));
        let mcp = around.connect(None).await.context("past the sidecar")?;
        let tools = promise::listing(&mcp).await?.tools;
        ensure!(tools.len() > 1, "{tools:?}");
        mcp.cancel().await?;

        let enforcer = scope.cluster.enforce(&scope.namespace).await?;
        scope.server_says(SERVER, ENFORCED).await?;
        let reached = from_outside(address, &PORTS).await;
        ensure!(reached == [MCP], "{reached:?}");
        let mcp = scope.caller(SERVER).await?.connect().await?;
        promise::permitted(&mcp).await?.check()?;
        mcp.cancel().await?;

        // Of pods that come later as well.
        let deployment = format!("deployment/{SERVER}");
        scope.kubectl(&["rollout", "restart", &deployment]).await?;
        let rollout = ["rollout", "status", &deployment, PATIENT];
        scope.kubectl(&rollout).await?;
        let after = wait_for("the pod of the rollout alone", PATIENCE, || async {
            let now = pods(scope).await?;
            ensure!(now.len() == 1 && now != before, "{now:?}");
            Ok(now)
        })
        .await?;
        let (_, address) = after.first().context("no pod")?;
        wait_for("the policy to be enforced", PATIENCE, || async {
            let reached = from_outside(address, &PORTS).await;
            ensure!(reached == [MCP], "{reached:?}");
            Ok(())
        })
        .await?;
        scope.server_says(SERVER, ENFORCED).await?;

        drop(enforcer);
        reachable(scope, "Port 8080").await
    })
    .await
}

#[tokio::test]
async fn a_stdio_server_has_no_port() -> Result<()> {
    beside("isolation-stdio", async |scope: &Scope| {
        scope.apply(&[stdio(SERVER)]).await?;
        scope.serving(SERVER).await?;
        scope.server_says(SERVER, LOOPBACK).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn everybody_reaches_what_is_theirs() -> Result<()> {
    beside("isolation-reach", async |scope: &Scope| {
        let outcome = reach(scope, MONITORING).await;
        let delete = [
            "delete",
            "namespace",
            MONITORING,
            "--ignore-not-found",
            "--wait=false",
        ];
        let deleted = scope.cluster.kubectl(&delete).await;
        outcome.and(deleted.map(drop))
    })
    .await
}

async fn reach(scope: &Scope, monitoring: &str) -> Result<()> {
    let delete = ["delete", "namespace", monitoring, "--ignore-not-found"];
    scope.cluster.kubectl(&delete).await?;
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": monitoring}});
    scope.cluster.apply(&namespace.to_string()).await?;
    let mut guarded = http(SERVER);
    guarded["spec"]["deployment"]["replicas"] = json!(2);
    let from = scope.caller_subject();
    let policy = allow("callers", SERVER, &from, &["get-sum"]);
    scope.apply(&[guarded, policy, client()]).await?;
    let apply = ["apply", "-n", monitoring, "-f", "-"];
    let pod = client().to_string();
    wait_for("the namespace to take pods", PATIENCE, || async {
        scope.cluster.kubectl_stdin(&apply, &pod).await
    })
    .await?;
    for namespace in [scope.namespace.as_str(), monitoring] {
        let pod = format!("pod/{CLIENT}");
        let wait = [
            "wait",
            "-n",
            namespace,
            "--for=condition=Ready",
            &pod,
            PATIENT,
        ];
        scope.cluster.kubectl(&wait).await?;
    }
    // The Deployment exists from then on; its other replica may still start.
    scope.serving(SERVER).await?;
    let deployment = format!("deployment/{SERVER}");
    let rollout = ["rollout", "status", &deployment, PATIENT];
    scope.kubectl(&rollout).await?;
    let pods = pods(scope).await?;
    let [(first, _), (_, address)] = &pods[..] else {
        bail!("two pods were asked for: {pods:?}")
    };

    // A node that knows of no policies keeps nobody out.
    let reached = from_outside(address, &PORTS).await;
    ensure!(reached == PORTS, "{reached:?}");
    let _enforcer = scope.cluster.enforce(&scope.namespace).await?;
    let reached = from_outside(address, &PORTS).await;
    ensure!(reached == [MCP], "from outside: {reached:?}");
    for (who, expected) in [
        ((scope.namespace.as_str(), CLIENT, CLIENT), &[MCP][..]),
        ((monitoring, CLIENT, CLIENT), &[MCP, ADMIN]),
        (
            (scope.namespace.as_str(), first.as_str(), "server"),
            &[MCP, PEERS],
        ),
    ] {
        wait_for("what the policy allows", PATIENCE, || async {
            let reached = from_pod(scope, who, address).await?;
            ensure!(reached == expected, "{who:?}: {reached:?}");
            Ok(())
        })
        .await?;
    }
    // The operator reads and delivers, and is kept out as all others.
    scope.server_says(SERVER, ENFORCED).await?;
    let more = allow("callers", SERVER, &from, &["get-sum", "echo"]);
    scope.apply(&[more]).await?;
    let mcp = scope.caller(SERVER).await?.connect().await?;
    wait_for("the changed policy", PATIENCE, || async {
        let tools = promise::listing(&mcp).await?.tools;
        ensure!(tools == ["echo", "get-sum"], "{tools:?}");
        Ok(())
    })
    .await?;
    scope.serving(SERVER).await
}
