//! The chart and the manifests over their whole life: upgrade, uninstall, and
//! an installation with kubectl alone.

use anyhow::{Context, Result, ensure};
use e2e::release::{self, DEV_IMAGES, NAMESPACE, OPERATOR, RELEASE};
use e2e::statements as promise;
use e2e::{Cluster, PATIENCE, PATIENT, wait_for};
use serde_json::json;

use crate::suite::{ACCEPTED, Scope, allow, alone, beside, install, stdio};

/// Kinds of the chart's objects that no namespace holds.
const CLUSTER_WIDE: &str = "clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings,mutatingwebhookconfigurations,validatingwebhookconfigurations";

#[tokio::test]
async fn an_upgrade_changes_what_a_server_may_ask_for() -> Result<()> {
    alone("upgrade", async |scope: &Scope| {
        install(&scope.cluster, &["allowAnonymous=true"]).await?;
        let outcome = anonymous(scope).await;
        install(&scope.cluster, &["allowAnonymous=false"]).await?;
        outcome
    })
    .await
}

async fn anonymous(scope: &Scope) -> Result<()> {
    let mut open = stdio("open");
    open["spec"]["authentication"] = json!({"mode": "Anonymous"});
    let everyone = allow("everyone", "open", &json!({"everyone": true}), &["get-sum"]);
    scope.apply(&[open, everyone]).await?;
    scope.server_says("open", ACCEPTED).await?;
    scope.serving("open").await?;
    let endpoint = scope.caller("open").await?.endpoint;
    let mcp = endpoint.connect(None).await.context("without a token")?;
    let tools = promise::listing(&mcp).await?.tools;
    ensure!(tools == ["get-sum"], "{tools:?}");
    promise::permitted(&mcp).await?.check()
}

/// Values that the chart does not know are refused.
#[tokio::test]
async fn a_misspelt_value_is_refused() -> Result<()> {
    beside("values", async |scope: &Scope| {
        let chart = scope
            .cluster
            .checkout()
            .join(e2e::release::CHART)
            .display()
            .to_string();
        for value in ["allowAnonymos=true", "allowAnonymous=maybe", "image.tagg=1"] {
            let args = ["template", RELEASE, &chart, "--set", value];
            let output = scope.cluster.helm_output(&args).await?;
            let said = String::from_utf8_lossy(&output.stderr);
            let name = value.split(['=', '.']).next().unwrap_or_default();
            ensure!(
                !output.status.success() && said.contains(name),
                "{value}: {said}"
            );
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn uninstalled_and_installed_again_with_kubectl() -> Result<()> {
    alone("uninstall", async |scope: &Scope| {
        let outcome = uninstall(scope).await;
        // The others need an operator, whatever went wrong here.
        let _ = scope
            .cluster
            .helm(&["uninstall", RELEASE, "-n", NAMESPACE, "--ignore-not-found"])
            .await;
        let definitions = [
            "delete",
            "crd",
            "mcpservers.toolward.dev",
            "mcptoolpolicies.toolward.dev",
            "--ignore-not-found",
        ];
        let removed = scope.cluster.kubectl(&definitions).await;
        install(&scope.cluster, &[]).await?;
        outcome.and(removed.map(drop))
    })
    .await
}

async fn uninstall(scope: &Scope) -> Result<()> {
    let cluster = &scope.cluster;
    let from = scope.caller_subject();
    scope
        .apply(&[stdio("kept"), allow("callers", "kept", &from, &["get-sum"])])
        .await?;
    scope.serving("kept").await?;
    let mcp = scope.caller("kept").await?.connect().await?;

    cluster
        .helm(&["uninstall", RELEASE, "-n", NAMESPACE, "--wait"])
        .await?;
    nothing_of_the_chart(cluster).await?;
    // `crds.keep`: the objects stay, and their servers answer.
    scope
        .servers()
        .get("kept")
        .await
        .context("the McpServer after helm uninstall")?;
    promise::permitted(&mcp)
        .await?
        .check()
        .context("after helm uninstall")?;

    let manifest = dev_images(&std::fs::read_to_string(
        cluster.checkout().join("manifests/install.yaml"),
    )?);
    let definitions = cluster
        .checkout()
        .join("manifests/crds.yaml")
        .display()
        .to_string();
    cluster.kubectl(&["apply", "-f", &definitions]).await?;
    cluster.apply(&manifest).await?;
    let rollout = format!("deployment/{OPERATOR}");
    cluster
        .kubectl(&["rollout", "status", &rollout, "-n", NAMESPACE, PATIENT])
        .await?;
    release::admits(cluster).await?;
    scope
        .apply(&[allow("callers", "kept", &from, &["get-sum", "echo"])])
        .await?;
    wait_for("a change under the second operator", PATIENCE, || async {
        let tools = promise::listing(&mcp).await?.tools;
        ensure!(tools == ["echo", "get-sum"], "{tools:?}");
        Ok(())
    })
    .await?;

    cluster
        .kubectl_stdin(&["delete", "-f", "-", PATIENT], &manifest)
        .await?;
    nothing_of_the_chart(cluster).await?;
    let definitions = cluster.kubectl(&["get", "crd", "-o", "name"]).await?;
    ensure!(!definitions.contains("toolward.dev"), "{definitions}");
    Ok(())
}

/// Released images cannot be pulled here.
fn dev_images(manifest: &str) -> String {
    let mut text = manifest.to_owned();
    for (name, dev) in [("operator", DEV_IMAGES[0]), ("sidecar", DEV_IMAGES[2])] {
        let repository = dev.split('=').nth(1).unwrap_or_default();
        let lines = text
            .lines()
            .map(|line| match line.find(&format!("/{name}:")) {
                Some(_) => {
                    let key = line.split(": ").next().unwrap_or_default();
                    format!("{key}: {repository}:dev\n")
                }
                None => format!("{line}\n"),
            });
        text = lines.collect();
    }
    text
}

async fn nothing_of_the_chart(cluster: &Cluster) -> Result<()> {
    wait_for("nothing of the chart", PATIENCE, || async {
        let labelled = [
            "get",
            CLUSTER_WIDE,
            "-l",
            "app.kubernetes.io/instance=toolward",
            "-o",
            "name",
        ];
        let left = cluster.kubectl(&labelled).await?;
        ensure!(left.is_empty(), "left: {left}");
        let kinds = "deployments,pods,services,roles,rolebindings,poddisruptionbudgets";
        let left = cluster
            .kubectl(&["get", kinds, "-n", NAMESPACE, "-o", "name"])
            .await?;
        ensure!(left.is_empty(), "left in {NAMESPACE}: {left}");
        Ok(())
    })
    .await
}
