//! What has to hold before a cluster is of use. Each wait that fails shows the
//! end of the log of the part that did not do its job.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::{Api, Client};

use super::dns;
use super::plan::Plan;
use super::state::State;
use crate::sh::{self, command, run, say};
use crate::wait::{PATIENCE, wait_for};

/// containerd takes calls.
pub async fn containerd(state: &State) -> Result<()> {
    let socket = state.containerd();
    step(state, "containerd", &["containerd"], || async {
        if !socket.exists() {
            bail!("no socket yet");
        }
        run(command("ctr", &["--address"]).arg(&socket).arg("version")).map(drop)
    })
    .await
}

/// The API server says that it is ready.
pub async fn api(state: &State, timeout: Duration) -> Result<()> {
    let client = client(state).await?;
    wait_for("the API server", timeout, || readyz(&client)).await
}

/// The whole cluster.
pub async fn all(state: &State, plan: Plan, node_name: &str) -> Result<()> {
    let client = client(state).await?;
    step(state, "the API server", &["etcd", "kube-apiserver"], || {
        readyz(&client)
    })
    .await?;
    let nodes: Api<Node> = Api::all(client.clone());
    let parts = ["containerd", "kubelet", "kube-controller-manager"];
    step(state, "the node", &parts, || node_ready(&nodes, node_name)).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    step(
        state,
        "the default service account",
        &["kube-controller-manager"],
        || async { Ok(accounts.get("default").await.map(drop)?) },
    )
    .await?;
    step(state, "DNS", &["coredns"], || async {
        let name = "kubernetes.default.svc.cluster.local";
        dns::resolve(plan.node_ip(), name).await.map(drop)
    })
    .await?;
    step(state, "Service addresses", &["kube-proxy"], || async {
        tokio::net::TcpStream::connect((plan.kubernetes_ip(), 443))
            .await
            .map(drop)
            .with_context(|| format!("{}:443 does not answer", plan.kubernetes_ip()))
    })
    .await
}

async fn client(state: &State) -> Result<Client> {
    crate::harness::client_of(&state.kubeconfig()).await
}

async fn readyz(client: &Client) -> Result<()> {
    let request = http::Request::get("/readyz").body(Vec::new())?;
    client
        .request_text(request)
        .await
        .map(drop)
        .context("/readyz")
}

async fn node_ready(nodes: &Api<Node>, name: &str) -> Result<()> {
    let node = nodes.get(name).await?;
    let conditions = node
        .status
        .and_then(|status| status.conditions)
        .unwrap_or_default();
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready");
    match ready {
        Some(condition) if condition.status == "True" => {}
        Some(condition) => bail!("{}", condition.message.as_deref().unwrap_or("not ready")),
        None => bail!("the kubelet has not reported yet"),
    }
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    if let Some(taint) = taints.first() {
        bail!("still tainted with {}", taint.key);
    }
    Ok(())
}

async fn step<F, Fut>(state: &State, what: &str, parts: &[&str], check: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<()>>,
{
    say(format!("waiting for {what}"));
    let result = tokio::select! {
        result = wait_for(what, PATIENCE, check) => result,
        () = node_ended(state) => Err(anyhow!("the node ended while waiting for {what}")),
    };
    result.map_err(|error| {
        let logs: Vec<String> = ["node-init"]
            .iter()
            .chain(parts)
            .map(|part| {
                let log = state.log(part);
                format!("--- the end of {}\n{}", log.display(), sh::tail(&log, 15))
            })
            .collect();
        anyhow!("{error:#}\n{}", logs.join("\n"))
    })
}

async fn node_ended(state: &State) {
    while state.record().is_some_and(|record| record.running()) {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
