//! Toolward on the cluster: the chart, installed with the images of this
//! checkout, and tokens of service accounts.

use anyhow::{Result, ensure};

use crate::harness::Cluster;

/// The Helm release.
pub const RELEASE: &str = "toolward";
/// Name of the operator's Deployment, ServiceAccount and roles.
pub const OPERATOR: &str = "toolward-operator";
/// The operator's namespace.
pub const NAMESPACE: &str = "toolward-system";
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
    args.extend(["--wait", "--timeout", "3m"]);
    for value in DEV_IMAGES.iter().chain(values) {
        args.extend(["--set", value]);
    }
    args
}

/// Installs the chart of this checkout, or upgrades to it.
pub async fn install(cluster: &Cluster, values: &[&str]) -> Result<()> {
    let chart = cluster.checkout().join(CHART);
    let chart = chart.display().to_string();
    cluster.helm(&install_args(&chart, values)).await.map(drop)
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
