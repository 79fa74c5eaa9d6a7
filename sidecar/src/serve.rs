//! `toolward-sidecar serve`: in a pod, with a bundle that the operator wrote.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use crate::{
    Shared, metrics,
    server::{AuditThread, Server, Target},
    source,
    upstream::stdio::Connector,
};

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder with the bundle, a mounted ConfigMap.
    #[arg(long)]
    bundle: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
    /// Who shares a process of a stdio server.
    #[arg(long, value_enum, default_value_t, requires = "socket")]
    process: Process,
    /// The most processes of a stdio server at a time.
    #[arg(long, default_value_t = 50, requires = "socket")]
    max_processes: u32,
    /// A process without a call or a stream for this time is ended.
    #[arg(long, default_value = "10m", requires = "socket")]
    idle_timeout: crds::Duration,
    /// A process that has not answered its handshake after this time has failed.
    #[arg(long, default_value = "60s", requires = "socket")]
    startup_timeout: crds::Duration,
    /// Name of this replica: that of its pod.
    #[arg(long)]
    replica: Option<String>,
    /// File with the token that proves to other replicas who this one is.
    #[arg(long)]
    peer_token: Option<PathBuf>,
    /// Address of the MCP port [default: all addresses, port 9440].
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Address of the admin port [default: all addresses, port 9441].
    #[arg(long)]
    admin: Option<SocketAddr>,
}

/// Who shares a process of a stdio server.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Process {
    /// Nobody.
    #[default]
    PerSession,
    /// The sessions of one caller.
    PerUser,
    /// Everyone.
    Shared,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct TargetArgs {
    /// URL of a Streamable HTTP server in this pod.
    #[arg(long)]
    upstream: Option<http::Uri>,
    /// The shim's socket, for a stdio server.
    #[arg(long)]
    socket: Option<PathBuf>,
}

/// Serves until SIGTERM.
///
/// # Errors
/// Where the ports cannot be bound.
pub async fn main(args: Args) -> anyhow::Result<AuditThread> {
    let Args {
        bundle,
        target: TargetArgs { upstream, socket },
        process: _,
        max_processes: _,
        idle_timeout: _,
        startup_timeout: _,
        replica: _,
        peer_token: _,
        listen,
        admin,
    } = args;
    let target = match (upstream, socket) {
        (Some(url), _) => Target::Url(url),
        (None, Some(socket)) => Target::Process(Connector::Socket(socket)),
        (None, None) => anyhow::bail!("--upstream or --socket is required"),
    };
    let server = Server::bind(listen, admin, target).await?;
    let file = bundle.join(policy::bundle::FILE);
    let shared = Arc::clone(&server.shared);
    tokio::spawn(source::watch(vec![file.clone()], move || {
        load(&shared, &file)
    }));
    server.run().await
}

fn load(shared: &Shared, file: &std::path::Path) {
    let loaded = source::read(file, policy::bundle::MAX_BYTES)
        .map_err(|error| error.to_string())
        .inspect_err(|error| shared.config.reject(error.clone()))
        .and_then(|bytes| shared.config.load(&bytes));
    let count = |result| {
        let labels = metrics::BundleLabels { result };
        shared.metrics.bundles.get_or_create(&labels).inc();
    };
    match loaded {
        Ok(true) => {
            count("accepted");
            tracing::info!(hash = shared.config.report().hash, "bundle in force");
        }
        Ok(false) => {}
        Err(error) => {
            count("rejected");
            tracing::error!(file = %file.display(), error, "the bundle cannot be read; the last good one, if any, stays in force");
        }
    }
}
