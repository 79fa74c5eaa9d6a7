//! `toolward-operator`.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use clap::Parser;
use kube::{Client, Config};
use operator::{Operator, Settings, desired::SidecarImage, names::Key};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::EnvFilter;

/// Kubernetes operator for MCP servers.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Image of the sidecar that stands in front of every server.
    #[arg(long, env = "TOOLWARD_SIDECAR_IMAGE")]
    sidecar_image: String,
    /// Pull policy of the sidecar's image: Always, IfNotPresent or Never.
    #[arg(long, env = "TOOLWARD_SIDECAR_IMAGE_PULL_POLICY", default_value = "IfNotPresent",
        value_parser = ["Always", "IfNotPresent", "Never"])]
    sidecar_image_pull_policy: String,
    /// Lets McpServers ask for `authentication.mode: Anonymous`.
    #[arg(long, env = "TOOLWARD_ALLOW_ANONYMOUS")]
    allow_anonymous: bool,
    /// URLs of issuers that McpServers may name beside the cluster's, with commas
    /// between them; a `*` at the end of one stands for any text.
    #[arg(long, env = "TOOLWARD_ALLOWED_ISSUERS", value_delimiter = ',')]
    allowed_issuers: Vec<String>,
    /// Networks (CIDR) beside the public internet in which issuers may be, with
    /// commas between them.
    #[arg(long, env = "TOOLWARD_ISSUER_NETWORKS", value_delimiter = ',')]
    issuer_networks: Vec<String>,
    /// DNS domain of the cluster.
    #[arg(long, env = "TOOLWARD_CLUSTER_DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// Namespace of the operator.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: String,
    /// Service account of the operator, for tokens that sidecars know it by.
    #[arg(long, env = "POD_SERVICE_ACCOUNT")]
    service_account: String,
    /// Where health and metrics are served.
    #[arg(long, env = "TOOLWARD_LISTEN", default_value = "[::]:8080")]
    listen: SocketAddr,
    /// What is logged, for example `info` or `operator=debug`.
    #[arg(long, env = "TOOLWARD_LOG_LEVEL", default_value = "info")]
    log_level: EnvFilter,
    /// Form of the log.
    #[arg(long, env = "TOOLWARD_LOG_FORMAT", default_value = "plain", value_parser = ["plain", "json"])]
    log_format: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Args {
        sidecar_image,
        sidecar_image_pull_policy,
        allow_anonymous,
        allowed_issuers,
        issuer_networks,
        cluster_domain,
        namespace,
        service_account,
        listen,
        log_level,
        log_format,
    } = Args::parse();
    let log = tracing_subscriber::fmt()
        .with_env_filter(log_level)
        .with_writer(std::io::stderr);
    match log_format.as_str() {
        "json" => log.json().init(),
        _ => log.with_ansi(false).init(),
    }
    // kube's default would be ring, which is not built.
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        anyhow::bail!("another TLS provider is installed already");
    }
    let settings = Settings {
        sidecar: SidecarImage {
            image: sidecar_image,
            pull_policy: sidecar_image_pull_policy,
        },
        allow_anonymous,
        allowed_issuers: given(allowed_issuers),
        issuer_networks: given(issuer_networks),
        cluster_domain,
        account: Key::new(&namespace, &service_account),
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), ?settings, "starting");
    let mut config = Config::infer()
        .await
        .context("finding the API server: neither a pod's service account nor a kubeconfig")?;
    config.connect_timeout = Some(Duration::from_secs(5));
    let client = Client::try_from(config).context("making a client of the API server")?;
    let operator = Operator::new(client, settings);
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listening on {listen}"))?;
    let server = axum::serve(listener, operator.router()).into_future();
    tokio::spawn(server);
    let (mut term, mut int) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let stop = async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    };
    operator.run(stop).await;
    Ok(())
}

/// An empty variable has one empty item.
fn given(list: Vec<String>) -> Vec<String> {
    list.into_iter().filter(|item| !item.is_empty()).collect()
}
