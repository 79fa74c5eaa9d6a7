//! `toolward-operator`.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use clap::Parser;
use kube::{Client, Config};
use operator::{Operator, Settings, desired::SidecarImage, names::Key, webhook};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
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
    /// Labels of the operator's own pods, as KEY=VALUE with commas between them:
    /// NetworkPolicies let pods with all of them reach the admin ports of sidecars.
    #[arg(long, env = "TOOLWARD_POD_LABELS", value_delimiter = ',', value_parser = label,
        default_value = "app.kubernetes.io/name=toolward,app.kubernetes.io/component=operator")]
    pod_labels: Vec<(String, String)>,
    /// Namespace whose pods may reach the admin ports of sidecars too, for metrics.
    #[arg(long, env = "TOOLWARD_MONITORING_NAMESPACE")]
    monitoring_namespace: Option<String>,
    /// Name of the operator's pod, by which the Lease tells who acts.
    #[arg(long, env = "POD_NAME")]
    pod: String,
    /// Service account of the operator, for tokens that sidecars know it by.
    #[arg(long, env = "POD_SERVICE_ACCOUNT")]
    service_account: String,
    /// Where health and metrics are served.
    #[arg(long, env = "TOOLWARD_LISTEN", default_value = "[::]:8080")]
    listen: SocketAddr,
    /// Where the admission webhook is served, by TLS.
    #[arg(long, env = "TOOLWARD_WEBHOOK_LISTEN", default_value = "[::]:9443")]
    webhook_listen: SocketAddr,
    /// Service in front of the webhook, in the operator's namespace.
    #[arg(
        long,
        env = "TOOLWARD_WEBHOOK_SERVICE",
        default_value = "toolward-webhook"
    )]
    webhook_service: String,
    /// MutatingWebhookConfiguration of the webhook, whose caBundle the operator writes.
    #[arg(
        long,
        env = "TOOLWARD_WEBHOOK_MUTATING",
        default_value = "toolward-injection"
    )]
    webhook_mutating: String,
    /// ValidatingWebhookConfiguration of the webhook, whose caBundle the operator writes.
    #[arg(
        long,
        env = "TOOLWARD_WEBHOOK_VALIDATING",
        default_value = "toolward-validation"
    )]
    webhook_validating: String,
    /// Secret in the operator's namespace with the webhook's certificate, as
    /// cert-manager writes it (tls.crt, tls.key, ca.crt). Left out or empty, the
    /// operator makes and changes certificates itself.
    #[arg(long, env = "TOOLWARD_WEBHOOK_SECRET")]
    webhook_secret: Option<String>,
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
        pod_labels,
        monitoring_namespace,
        pod,
        service_account,
        listen,
        webhook_listen,
        webhook_service,
        webhook_mutating,
        webhook_validating,
        webhook_secret,
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
        pod_labels: pod_labels.into_iter().collect(),
        monitoring_namespace: monitoring_namespace.filter(|name| !name.is_empty()),
        pod,
    };
    let options = webhook::Options {
        service: webhook_service,
        mutating: webhook_mutating,
        validating: webhook_validating,
        secret: webhook_secret.filter(|name| !name.is_empty()),
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        ?settings,
        ?options,
        "starting"
    );
    let mut config = Config::infer()
        .await
        .context("finding the API server: neither a pod's service account nor a kubeconfig")?;
    config.connect_timeout = Some(Duration::from_secs(5));
    // Whoever asks tries again, by its own clock; what is sent again below that
    // would outlive the lease.
    config.default_retry = false;
    let client = Client::try_from(config).context("making a client of the API server")?;
    let operator = Operator::new(client, settings, options);
    let (leave, mut leaving) = watch::channel(false);
    let router = operator.router(leaving.clone());
    tokio::spawn(axum::serve(bind(listen).await?, router).into_future());
    let left = async move {
        let _ = leaving.wait_for(|leaves| *leaves).await;
    };
    let listener = bind(webhook_listen).await?;
    let webhook = tokio::spawn(operator.webhook().serve(listener, left));
    let (mut term, mut int) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let stop = async {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        // The webhook answers on while the rest stops: others still come to it.
        leave.send_replace(true);
    };
    let ended = operator.run(stop).await;
    leave.send_replace(true);
    let served = webhook.await.context("the webhook failed");
    ended.context("this replica acted, and may no longer: it is to be started anew")?;
    served
}

/// A label as `KEY=VALUE`.
fn label(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, for example app.kubernetes.io/component=operator"),
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}"))
}

/// An empty variable has one empty item.
fn given(list: Vec<String>) -> Vec<String> {
    list.into_iter().filter(|item| !item.is_empty()).collect()
}
