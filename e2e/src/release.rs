//! Toolward on the cluster: the chart, installed with the images of this
//! checkout, and tokens of service accounts.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::harness::Cluster;
use crate::wait::{PATIENCE, PATIENT, wait_for};

/// The Helm release.
pub const RELEASE: &str = "toolward";
/// Name of the operator's Deployment, ServiceAccount and roles.
pub const OPERATOR: &str = "toolward-operator";
/// The operator's namespace.
pub const NAMESPACE: &str = "toolward-system";
/// The label of the operator's pods.
pub const OPERATOR_PODS: &str = "app.kubernetes.io/component=operator";
/// How many of them the chart makes.
pub const REPLICAS: usize = 2;
/// The chart, from the checkout's root.
pub const CHART: &str = "charts/toolward";
/// Images of this checkout in place of released ones.
pub const DEV_IMAGES: [&str; 4] = [
    "image.repository=toolward/operator",
    "image.tag=dev",
    "sidecar.image.repository=toolward/sidecar",
    "sidecar.image.tag=dev",
];

/// The helm command that installs this checkout, or upgrades to it; `values`
/// are further `--set`s.
pub fn install_args<'a>(chart: &'a str, values: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["upgrade", "--install", RELEASE, chart];
    args.extend(["--namespace", NAMESPACE, "--create-namespace"]);
    args.extend(["--wait", PATIENT]);
    for value in DEV_IMAGES.iter().chain(values) {
        args.extend(["--set", value]);
    }
    args
}

/// Installs the chart of this checkout, or upgrades to it.
pub async fn install(cluster: &Cluster, values: &[&str]) -> Result<()> {
    let chart = cluster.checkout().join(CHART);
    let chart = chart.display().to_string();
    cluster.helm(&install_args(&chart, values)).await?;
    admits(cluster).await
}

/// Waits until API servers reach the webhook of the operators that stay: those that
/// leave answer for a while, as they were started.
pub async fn admits(cluster: &Cluster) -> Result<()> {
    let leaving = "jsonpath={.items[*].metadata.deletionTimestamp}";
    let pods = ["get", "pods", "-n", NAMESPACE, "-l", OPERATOR_PODS];
    let pods = [&pods[..], &["-o", leaving]].concat();
    let server = json!({
        "apiVersion": "toolward.dev/v1alpha1", "kind": "McpServer",
        "metadata": {"name": "admitted", "namespace": "default"},
        "spec": {"injected": {}, "transport": {"type": "StreamableHttp"}},
    })
    .to_string();
    let apply = ["apply", "--dry-run=server", "-f", "-"];
    wait_for("the webhook to answer", PATIENCE, || async {
        let leaving = cluster.kubectl(&pods).await?;
        ensure!(leaving.is_empty(), "operators leave since {leaving}");
        cluster.kubectl_stdin(&apply, &server).await.map(drop)
    })
    .await
}

/// What the operator's replicas logged: all of it, or the last lines of each.
pub async fn logs(cluster: &Cluster, lines: Option<u32>) -> Result<String> {
    let tail = lines.map_or_else(|| "--tail=-1".to_owned(), |lines| format!("--tail={lines}"));
    let args = [
        "logs",
        "-n",
        NAMESPACE,
        "-l",
        OPERATOR_PODS,
        "--prefix",
        &tail,
    ];
    cluster.kubectl(&args).await
}

/// Who of the operator's replicas acts: the process that holds the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// As the Lease names it: no process has the name of another.
    pub identity: String,
    /// Its pod.
    pub pod: String,
}

/// Who acts.
pub async fn leader(cluster: &Cluster) -> Result<Leader> {
    let holder = "jsonpath={.spec.holderIdentity}";
    let args = ["get", "lease", OPERATOR, "-n", NAMESPACE, "-o", holder];
    let identity = cluster.kubectl(&args).await?;
    let pod = identity.rsplit_once('_').map(|(pod, _)| pod.to_owned());
    let pod = pod.with_context(|| format!("nobody holds the Lease: {identity:?}"))?;
    Ok(Leader { identity, pod })
}

/// A token of a service account, from the TokenRequest API.
pub async fn token(
    cluster: &Cluster,
    namespace: &str,
    account: &str,
    audience: &str,
) -> Result<String> {
    let audience = format!("--audience={audience}");
    let args = ["create", "token", account, "-n", namespace, &audience];
    let token = cluster.kubectl(&args).await?.trim().to_owned();
    ensure!(!token.is_empty(), "kubectl create token gave nothing");
    Ok(token)
}
