//! The operator as a guest of the cluster: quiet when idle, needless for the
//! data plane, within restricted pod security, and two of it where one acts.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use e2e::release::Leader;
use e2e::statements as promise;
use e2e::{PATIENCE, PATIENT, release, wait_for};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, EvictParams, ListParams};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::injected_traffic::is_ready;
use crate::rotation;
use crate::suite::{Scope, allow, alone, beside, http, stdio};

/// How long an idle operator must have written nothing.
const QUIET: Duration = Duration::from_secs(20);

/// Requests of the operator in the audit log, in order.
pub fn requests(scope: &Scope) -> Result<Vec<Value>> {
    let user = format!(
        "system:serviceaccount:{}:{}",
        release::NAMESPACE,
        release::OPERATOR
    );
    let log = std::fs::read_to_string(scope.cluster.audit_log())?;
    // The last line may be half written.
    let events = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(events
        .filter(|event| event["user"]["username"] == *user)
        .collect())
}

fn writes(scope: &Scope) -> Result<Vec<String>> {
    let reading = ["get", "list", "watch"];
    let mut writes = requests(scope)?;
    writes.retain(|event| !reading.iter().any(|verb| event["verb"] == *verb));
    // By which the replica that acts tells that it lives.
    writes.retain(|event| event["objectRef"]["resource"] != "leases");
    Ok(writes
        .iter()
        .map(|event| format!("{} {}", event["verb"], event["requestURI"]))
        .collect())
}

#[tokio::test]
async fn an_idle_operator_writes_nothing() -> Result<()> {
    alone("idle", async |scope: &Scope| {
        let policy = allow("callers", "idle", &scope.caller_subject(), &["*"]);
        scope
            .apply(&[stdio("idle"), http("idle-http"), policy])
            .await?;
        scope.serving("idle").await?;
        scope.serving("idle-http").await?;
        let (mut before, mut since) = (writes(scope)?, std::time::Instant::now());
        // Namespaces of earlier tests may still be ending.
        let deadline = std::time::Instant::now() + PATIENCE;
        while since.elapsed() < QUIET {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = writes(scope)?;
            if now.len() > before.len() {
                let news = now[before.len()..].join("\n");
                ensure!(
                    std::time::Instant::now() < deadline,
                    "never quiet; the last writes:\n{news}"
                );
                (before, since) = (now, std::time::Instant::now());
            }
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn all_pods_keep_to_restricted_pod_security() -> Result<()> {
    beside("restricted", async |scope: &Scope| {
        scope
            .apply(&[stdio("over-stdio"), http("over-http")])
            .await?;
        scope.serving("over-stdio").await?;
        scope.serving("over-http").await?;
        for namespace in [scope.namespace.as_str(), release::NAMESPACE] {
            let label = "pod-security.kubernetes.io/enforce=restricted";
            let args = [
                "label",
                "--dry-run=server",
                "--overwrite",
                "namespace",
                namespace,
                label,
            ];
            let output = scope.cluster.kubectl_output(&args, None).await?;
            let warnings = String::from_utf8_lossy(&output.stderr);
            ensure!(
                output.status.success() && warnings.is_empty(),
                "{namespace}: {warnings}"
            );
            let pods = ["get", "pods", "-n", namespace, "-o", "name"];
            ensure!(
                !scope.cluster.kubectl(&pods).await?.is_empty(),
                "no pods in {namespace}"
            );
        }
        Ok(())
    })
    .await
}

/// Scales the operator; waits until all of its replicas are ready.
pub async fn operators(scope: &Scope, number: usize) -> Result<()> {
    let deployment = format!("deployment/{}", release::OPERATOR);
    let replicas = format!("--replicas={number}");
    let scale = ["scale", &deployment, "-n", release::NAMESPACE, &replicas];
    scope.cluster.kubectl(&scale).await?;
    let pods = [
        "get",
        "pods",
        "-n",
        release::NAMESPACE,
        "-l",
        release::OPERATOR_PODS,
    ];
    let ready = [
        &pods[..],
        &[
            "-o",
            "jsonpath={.items[*].status.containerStatuses[*].ready}",
        ],
    ]
    .concat();
    let wanted = vec!["true"; number].join(" ");
    wait_for(&format!("{number} operators"), PATIENCE, || async {
        let ready = scope.cluster.kubectl(&ready).await?;
        ensure!(ready == wanted, "ready: {ready:?}");
        Ok(())
    })
    .await?;
    if number == 0 {
        return Ok(());
    }
    release::admits(&scope.cluster).await
}

/// Waits until another process than this one acts.
async fn another_acts(scope: &Scope, than: &Leader) -> Result<Leader> {
    wait_for("another replica to act", PATIENCE, || async {
        let leader = release::leader(&scope.cluster).await?;
        ensure!(leader != *than, "{leader:?} still holds the Lease");
        Ok(leader)
    })
    .await
}

/// Ends the process of a container at once, and all that it would still do. The
/// kubelet starts it anew.
pub fn kill(pod: &str, program: &str) -> Result<()> {
    let variable = format!("POD_NAME={pod}\0");
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        // Processes come and go meanwhile.
        let read = |file: &str| fs::read(path.join(file)).unwrap_or_default();
        let environment = String::from_utf8_lossy(&read("environ")).into_owned();
        let arguments = String::from_utf8_lossy(&read("cmdline")).into_owned();
        if environment.contains(&variable) && arguments.contains(program) {
            let pid = path
                .file_name()
                .and_then(|name| name.to_str()?.parse().ok());
            let pid = pid.and_then(Pid::from_raw).context("no process id")?;
            return Ok(kill_process(pid, Signal::KILL)?);
        }
    }
    bail!("no process {program} of pod {pod}")
}

#[tokio::test]
async fn when_one_replica_ends_or_dies_another_acts() -> Result<()> {
    alone("takeover", async |scope: &Scope| {
        let from = scope.caller_subject();
        scope
            .apply(&[stdio("kept"), allow("callers", "kept", &from, &["get-sum"])])
            .await?;
        scope.serving("kept").await?;
        let mcp = scope.caller("kept").await?.connect().await?;
        let shows = async |tools: &[&str]| {
            scope
                .apply(&[allow("callers", "kept", &from, tools)])
                .await?;
            wait_for("the change to be in force", PATIENCE, || async {
                let shown = promise::listing(&mcp).await?.tools;
                ensure!(shown == tools, "shown: {shown:?}");
                Ok(())
            })
            .await
        };
        // In good order, as in a rollout or a drain: the Lease is given up.
        let first = release::leader(&scope.cluster).await?;
        let delete = ["delete", "pod", &first.pod, "-n", release::NAMESPACE];
        scope.cluster.kubectl(&delete).await?;
        let second = another_acts(scope, &first).await?;
        shows(&["echo", "get-sum"]).await?;
        operators(scope, release::REPLICAS).await?;
        // Without a word: the Lease expires.
        kill(&second.pod, "toolward-operator")?;
        another_acts(scope, &second).await?;
        shows(&["echo"]).await?;
        operators(scope, release::REPLICAS).await
    })
    .await
}

/// What a drain does to each replica: the other stays until there are two again.
async fn drained(scope: &Scope) -> Result<()> {
    let pods = Api::<Pod>::namespaced(scope.client.clone(), release::NAMESPACE);
    let params = ListParams::default().labels(release::OPERATOR_PODS);
    let [first, second] = wait_for("two replicas that are ready", PATIENCE, || async {
        let pods = pods.list(&params).await?;
        let ready = pods.iter().filter(|pod| is_ready(pod));
        let ready: Vec<_> = ready.map(ResourceExt::name_any).collect();
        let ready: [String; 2] = ready.try_into().map_err(|it| anyhow!("ready: {it:?}"))?;
        ensure!(pods.items.len() == 2, "there are {}", pods.items.len());
        Ok(ready)
    })
    .await?;
    // The client, as kubectl, asks again while the answer is 429.
    for pod in [first, second] {
        wait_for("a replica to be let go", PATIENCE, || async {
            Ok(pods.evict(&pod, &EvictParams::default()).await?)
        })
        .await?;
        let stay = pods.list(&params).await?;
        let stay = stay.iter().filter(|pod| is_ready(pod)).count();
        ensure!(stay > 0, "nobody stays when {pod} goes");
    }
    operators(scope, release::REPLICAS).await
}

#[tokio::test]
async fn a_drain_leaves_a_replica_and_no_pod_is_refused() -> Result<()> {
    alone("drained", async |scope: &Scope| {
        let pods = rotation::ready(scope).await?;
        operators(scope, release::REPLICAS).await?;
        rotation::while_asking(&pods, drained(scope))
            .await
            .map(drop)
    })
    .await
}

#[tokio::test]
async fn servers_answer_without_an_operator() -> Result<()> {
    alone("no-operator", async |scope: &Scope| {
        let from = scope.caller_subject();
        scope
            .apply(&[
                stdio("alone"),
                allow("callers", "alone", &from, &["get-sum"]),
            ])
            .await?;
        scope.serving("alone").await?;
        let caller = scope.caller("alone").await?;
        let open = caller.connect().await?;
        promise::permitted(&open).await?.check()?;

        operators(scope, 0).await?;
        promise::permitted(&open)
            .await?
            .check()
            .context("a session that was open")?;
        let fresh = caller.connect().await.context("a new session")?;
        promise::permitted(&fresh).await?.check()?;
        // A pod that starts now finds its configuration.
        let old = scope
            .kubectl(&[
                "get",
                "pods",
                "-l",
                "toolward.dev/server=alone",
                "-o",
                "name",
            ])
            .await?;
        scope
            .kubectl(&["rollout", "restart", "deployment/alone"])
            .await?;
        scope
            .kubectl(&["rollout", "status", "deployment/alone", PATIENT])
            .await?;
        // A session that is opened with a pod that leaves would end with it.
        scope
            .kubectl(&["wait", "--for=delete", old.trim(), PATIENT])
            .await?;
        let restarted = caller
            .connect()
            .await
            .context("after a restart of the pod")?;
        promise::permitted(&restarted).await?.check()?;

        // Nobody is told that a rule holds which nobody has looked at.
        let more = [allow("callers", "alone", &from, &["get-sum", "echo"])];
        let refused = scope.apply(&more).await;
        operators(scope, release::REPLICAS).await?;
        let error = format!("{:#}", refused.err().context("a policy was changed")?);
        ensure!(error.contains("failed calling webhook"), "{error}");
        scope.apply(&more).await?;
        wait_for("the change", PATIENCE, || async {
            let tools = promise::listing(&restarted).await?.tools;
            ensure!(tools == ["echo", "get-sum"], "shown: {tools:?}");
            Ok(())
        })
        .await?;
        scope.serving("alone").await
    })
    .await
}
