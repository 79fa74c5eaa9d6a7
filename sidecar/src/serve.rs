//! `toolward-sidecar serve`: in a pod, with a bundle that the operator wrote.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Context;

use crate::{
    Shared,
    app_probes::AppProbes,
    host::{Settings, Sharing},
    identity::Identity,
    issuers::Issuers,
    metrics,
    peer::{self, Peers},
    server::{AuditThread, Listen, Server, Target},
    source,
    upstream::credential::Credential,
};

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder with the bundle, a mounted ConfigMap.
    #[arg(long)]
    bundle: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
    /// Address of the MCP port [default: all addresses, port 9440].
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Address of the admin port [default: all addresses, port 9441].
    #[arg(long)]
    admin: Option<SocketAddr>,
    /// Probes of the app that the kubelet asks the admin port for, as
    /// {"CONTAINER/KIND": PROBE}: httpGet or tcpSocket of a port on loopback.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    app_probes: String,
    /// Who gets a process of a stdio server.
    #[arg(long, value_enum, default_value = "per-session")]
    process: Sharing,
    /// Processes of a stdio server at most, beside the sidecar's own.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..))]
    max_processes: u16,
    /// A process without a call and without an open stream ends after this time.
    #[arg(long, default_value = "10m")]
    idle_timeout: crds::Duration,
    /// Until the handshake with a server has to be done.
    #[arg(long, default_value = "60s")]
    startup_timeout: crds::Duration,
    /// Folder with tls.crt and tls.key: the MCP port speaks TLS.
    #[arg(long, value_name = "FOLDER")]
    tls: Option<PathBuf>,
    /// Folder with the certificates of private authorities of issuers, as
    /// NAME.pem.
    #[arg(long, value_name = "FOLDER")]
    issuer_authorities: Option<PathBuf>,
    #[command(flatten)]
    credential: CredentialArgs,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    peer: PeerArgs,
}

#[derive(Debug, clap::Args)]
struct CredentialArgs {
    /// File with a credential that every request to the server carries.
    #[arg(long, value_name = "FILE", requires = "upstream")]
    upstream_credential: Option<PathBuf>,
    /// The header that carries it.
    #[arg(long, value_name = "NAME", default_value = "authorization")]
    upstream_credential_header: http::HeaderName,
}

#[derive(Debug, clap::Args)]
struct IdentityArgs {
    /// File with the token by which the operator knows whose key it is by which
    /// this replica asserts who calls. Without it there is none.
    #[arg(long, value_name = "FILE", requires = "identity_keys")]
    identity_token: Option<PathBuf>,
    /// Folder with the public keys of all replicas, a mounted ConfigMap.
    #[arg(long, value_name = "FOLDER", requires = "identity_token")]
    identity_keys: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct PeerArgs {
    /// Name of this replica, as others know it: the pod's.
    #[arg(long, value_name = "NAME", default_value = peer::LOCAL)]
    replica: String,
    /// File with the token that this replica shows to others. Without it there
    /// are no others, and no peer port.
    #[arg(long, value_name = "FILE")]
    peer_token: Option<PathBuf>,
    /// Address of the peer port [default: all addresses, port 9442].
    #[arg(long, value_name = "ADDRESS", requires = "peer_token")]
    peer: Option<SocketAddr>,
    /// Peer port of the others.
    #[arg(long, value_name = "PORT", default_value_t = peer::PORT)]
    peer_port: u16,
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
        listen,
        admin,
        app_probes,
        process,
        max_processes,
        idle_timeout,
        startup_timeout,
        tls,
        issuer_authorities,
        credential,
        identity: IdentityArgs {
            identity_token,
            identity_keys,
        },
        peer,
    } = args;
    raise_descriptor_limit();
    let settings = Settings {
        sharing: process,
        max_processes: max_processes.into(),
        idle_timeout: idle_timeout.get(),
        startup_timeout: startup_timeout.get(),
    };
    let target = match (upstream, socket) {
        (Some(url), _) => {
            let header = credential.upstream_credential_header;
            let follow = |file| Credential::follow(header, file);
            Target::Url(url, credential.upstream_credential.map(follow))
        }
        (None, Some(socket)) => Target::Socket(socket),
        (None, None) => anyhow::bail!("--upstream or --socket is required"),
    };
    let listen = Listen {
        mcp: listen,
        admin,
        app_probes: AppProbes::parse(&app_probes).context("--app-probes")?,
        peer: peer.peer_token.is_some().then_some(peer.peer),
        tls,
        in_pod: true,
    };
    let peers = match &peer.peer_token {
        Some(_) => Peers::new(peer.replica, peer.peer_port),
        None => Peers::alone(),
    };
    let issuers = Issuers::new(issuer_authorities);
    let identity = match identity_token {
        Some(token) => Identity::new(Some(token))?,
        None => Identity::none(),
    };
    let server = Server::bind(listen, peers, target, settings, issuers, identity)?;
    if let Some(folder) = identity_keys {
        let (shared, file) = (Arc::clone(&server.shared), folder.join(sealed::KEYS_FILE));
        tokio::spawn(source::watch(vec![file.clone()], move || {
            let read = source::read(&file, sealed::MAX_KEYS_BYTES);
            shared.identity.load(read);
        }));
    }
    if let Some(token) = peer.peer_token {
        let peers = Arc::clone(&server.shared.peers);
        tokio::spawn(peers.follow(bundle.join(peer::FILE), token));
    }
    let file = bundle.join(policy::bundle::FILE);
    let shared = Arc::clone(&server.shared);
    tokio::spawn(source::watch(vec![file.clone()], move || {
        load(&shared, &file)
    }));
    server.run().await
}

/// A container often starts with 1,024 descriptors and may have many more. Each
/// call can take two. Nothing that we start inherits it: `serve` starts nothing.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of descriptors cannot be raised");
    }
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
