//! Injected pods come and go under calls, and while the operator is away.
//!
//! Every call has a connection of its own, so that kube-proxy sends it to any pod,
//! and no session, so that any pod can answer it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::mcp::{Endpoint, message};
use e2e::{PATIENCE, PATIENT, release, wait_for};
use futures::future::try_join_all;
use http::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, EvictParams, ListParams};
use serde_json::{Value, json};

use crate::injection::{container, counts, injected, template, workload};
use crate::operator::{kill, operators};
use crate::suite::{Scope, allow, alone, opted_in};

/// An MCP server with the tools `wait` and `finish`.
pub const APP: &str = concat!(include_str!("serve.js"), include_str!("app.js"));
const SERVER: &str = "busy";
const REPLICAS: usize = 2;
/// Callers, each with one call after the other.
const CALLERS: usize = 4;
/// Between two calls: each takes a port of this machine for a minute.
const PACE: Duration = Duration::from_millis(25);
const REVISION: (&str, &str) = ("MCP-Protocol-Version", "2025-06-18");
/// Deployments that roll while the operator dies.
const ROLLING: [&str; 4] = ["a", "b", "c", "d"];

/// A server, its policy, and a Deployment of so many pods.
fn app(scope: &Scope, server: &str, replicas: usize) -> [Value; 3] {
    let app = container(&["node", "-e", APP]);
    let mut deployment = workload("Deployment", server, template(server, &app));
    deployment["spec"]["replicas"] = json!(replicas);
    [
        injected(server, "StreamableHttp"),
        allow(server, server, &scope.caller_subject(), &["wait"]),
        deployment,
    ]
}

/// Calls until it is `over`; gives how many were answered. Each has to be.
async fn calls(endpoint: &Endpoint, token: &str, over: &AtomicBool) -> Result<u64> {
    let params = json!({"name": "wait", "arguments": {}});
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
    let mut answered = 0;
    while !over.load(Ordering::Relaxed) {
        let answer = endpoint.post(Some(token), &[REVISION], &call).await;
        let answer = answer.with_context(|| format!("after {answered} calls"))?;
        let status = answer.status();
        let message = message(answer).await?;
        let text = message["result"]["content"][0]["text"].as_str();
        ensure!(
            status == StatusCode::OK && text == Some("wait"),
            "after {answered} calls: {status}: {message}"
        );
        answered += 1;
        tokio::time::sleep(PACE).await;
    }
    Ok(answered)
}

#[tokio::test]
async fn rollouts_and_evictions_lose_no_call() -> Result<()> {
    opted_in("busy", async |scope: &Scope| {
        scope.apply(&app(scope, SERVER, REPLICAS)).await?;
        scope.serving(SERVER).await?;
        rolled_out(scope, SERVER).await?;
        let status = scope.servers().get(SERVER).await?.status;
        let url = status.and_then(|it| it.url).context("no status.url")?;
        let token = release::token(&scope.cluster, &scope.namespace, "default", &url).await?;
        let endpoint = Endpoint::in_cluster_spread(&scope.cluster, &url).await?;

        let over = AtomicBool::new(false);
        let callers = (0..CALLERS).map(|_| calls(&endpoint, &token, &over));
        let disturb = async {
            let outcome = disturbances(scope).await;
            over.store(true, Ordering::Relaxed);
            outcome
        };
        let (answered, ()) = futures::try_join!(try_join_all(callers), disturb)?;
        ensure!(answered.iter().all(|calls| *calls > 0), "{answered:?}");
        println!(
            "{} calls were answered while all pods were replaced twice",
            answered.iter().sum::<u64>()
        );
        Ok(())
    })
    .await
}

/// A rolling update, and then what a drained node does to each pod.
async fn disturbances(scope: &Scope) -> Result<()> {
    let before = names(scope).await?;
    let deployment = format!("deployment/{SERVER}");
    scope.kubectl(&["rollout", "restart", &deployment]).await?;
    rolled_out(scope, SERVER).await?;
    gone(scope, &before).await?;
    let pods = api(scope);
    for pod in names(scope).await? {
        all_ready(scope).await?;
        pods.evict(&pod, &EvictParams::default()).await?;
        gone(scope, std::slice::from_ref(&pod)).await?;
    }
    all_ready(scope).await
}

/// Waits until as many pods are ready as there should be: who takes one away now
/// leaves others.
async fn all_ready(scope: &Scope) -> Result<()> {
    let params = ListParams::default().labels(&format!("toolward.dev/server={SERVER}"));
    wait_for("all pods to be ready", PATIENCE, || async {
        let pods = api(scope).list(&params).await?;
        let ready = pods.iter().filter(|pod| is_ready(pod)).count();
        ensure!(ready == REPLICAS, "ready: {ready}");
        Ok(())
    })
    .await
}

/// Whether a pod is ready, and stays.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| &status.conditions);
    let mut conditions = conditions.flatten();
    pod.metadata.deletion_timestamp.is_none()
        && conditions.any(|it| it.type_ == "Ready" && it.status == "True")
}

fn api(scope: &Scope) -> Api<Pod> {
    Api::namespaced(scope.client.clone(), &scope.namespace)
}

/// Names of the server's pods.
async fn names(scope: &Scope) -> Result<Vec<String>> {
    let params = ListParams::default().labels(&format!("toolward.dev/server={SERVER}"));
    let pods = api(scope).list(&params).await?;
    let names: Vec<_> = pods.iter().map(ResourceExt::name_any).collect();
    ensure!(!names.is_empty(), "no pod has the sidecar");
    Ok(names)
}

async fn gone(scope: &Scope, pods: &[String]) -> Result<()> {
    wait_for(&format!("{pods:?} to be gone"), PATIENCE, || async {
        let mut left = names(scope).await?;
        left.retain(|pod| pods.contains(pod));
        ensure!(left.is_empty(), "{left:?} are there");
        Ok(())
    })
    .await
}

async fn rolled_out(scope: &Scope, deployment: &str) -> Result<()> {
    let deployment = format!("deployment/{deployment}");
    let args = ["rollout", "status", &deployment, PATIENT];
    scope.kubectl(&args).await.map(drop)
}

/// Pods that cannot have the sidecar now are not made without it: they wait.
#[tokio::test]
async fn deployments_roll_though_the_operator_dies() -> Result<()> {
    alone("rolling", async |scope: &Scope| {
        scope.opt_in().await?;
        let objects = ROLLING.map(|server| app(scope, server, 1)).concat();
        scope.apply(&objects).await?;
        for server in ROLLING {
            scope.serving(server).await?;
            rolled_out(scope, server).await?;
        }
        let restart = async |server: &str| {
            let deployment = format!("deployment/{server}");
            scope.kubectl(&["rollout", "restart", &deployment]).await
        };
        let [first, others @ ..] = ROLLING;
        restart(first).await?;
        kill_all(scope).await?;
        for server in others {
            restart(server).await?;
        }
        for server in ROLLING {
            rolled_out(scope, server).await?;
            counts(scope, server, 1, 0).await?;
            scope.serving(server).await?;
        }
        // None came without it.
        let label = "app,!toolward.dev/server";
        let bare = scope
            .kubectl(&["get", "pods", "-l", label, "-o", "name"])
            .await?;
        ensure!(bare.is_empty(), "without the sidecar: {bare}");
        operators(scope, release::REPLICAS).await
    })
    .await
}

/// Ends the processes of all replicas.
async fn kill_all(scope: &Scope) -> Result<()> {
    let names = "jsonpath={.items[*].metadata.name}";
    let pods = ["get", "pods", "-l", release::OPERATOR_PODS, "-o", names];
    let args = [&["-n", release::NAMESPACE][..], &pods].concat();
    let pods = scope.cluster.kubectl(&args).await?;
    let mut pods = pods.split_whitespace();
    pods.try_for_each(|pod| kill(pod, "toolward-operator"))
}
