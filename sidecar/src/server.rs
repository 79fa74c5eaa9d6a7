//! Starts the parts and ends them in order, for `serve` and for `run`.

use std::{
    net::SocketAddr,
    os::fd::{AsFd, IntoRawFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

use crate::{
    Shared, admin,
    app_probes::AppProbes,
    audit::Audit,
    config, counters,
    fit::Strays,
    front::{self, Door, Phase},
    host::{Connector, Host, Settings},
    identity::Identity,
    issuers::Issuers,
    metrics::Metrics,
    peer::{self, Peers},
    probe::{self, Seen},
    sessions::Sessions,
    tls::Tls,
    upstream::{Learned, ParamHeaders, Upstream, credential::Credential, http},
};

/// The MCP port.
pub const MCP_PORT: u16 = 9440;
/// The admin port.
pub const ADMIN_PORT: u16 = 9441;
/// After a drain was asked for, new connections are still served for this time:
/// the news that this pod is leaving has to reach every node, also a busy one.
pub const LEAVE: Duration = Duration::from_secs(5);
/// From the request to drain until calls in flight are cut off.
pub const DRAIN: Duration = Duration::from_secs(10);

/// Writes what is left of the audit log. To be waited for when the runtime, and
/// with it whoever can still log, is gone.
pub type AuditThread = std::thread::JoinHandle<()>;

/// Where the wrapped server is.
pub enum Target {
    /// Behind a port, and what every request to it carries.
    Url(::http::Uri, Option<Arc<Credential>>),
    /// Behind the shim.
    Socket(PathBuf),
    /// A command of our own.
    Command(Vec<String>),
}

/// Where a sidecar listens, and beside whom.
pub struct Listen {
    /// Address of the MCP port; none: all addresses.
    pub mcp: Option<SocketAddr>,
    /// Address of the admin port; none: all addresses.
    pub admin: Option<SocketAddr>,
    /// Probes of the app that the admin port makes.
    pub app_probes: AppProbes,
    /// Address of the peer port, where there is to be one; none: all addresses.
    pub peer: Option<Option<SocketAddr>>,
    /// Folder with the certificate of the MCP port and its key; none: no TLS.
    pub tls: Option<PathBuf>,
    /// Whether that is a pod: who else listens there is the operator's business.
    pub in_pod: bool,
}

/// A sidecar whose listeners are bound.
pub struct Server {
    /// What requests share.
    pub shared: Arc<Shared>,
    /// Address of the MCP port.
    pub address: SocketAddr,
    mcp: TcpListener,
    admin: TcpListener,
    peer: Option<TcpListener>,
    phase: watch::Sender<Phase>,
    seen: watch::Sender<Seen>,
    eras: watch::Sender<Learned>,
    audit_thread: AuditThread,
}

impl Server {
    /// Binds the ports. Nothing is served before [`Server::run`].
    ///
    /// # Errors
    /// Where an address cannot be had.
    pub fn bind(
        listen: Listen,
        peers: Peers,
        target: Target,
        settings: Settings,
        issuers: Issuers,
        identity: Identity,
    ) -> anyhow::Result<Self> {
        let mcp = bind("--listen", listen.mcp, MCP_PORT)?;
        let admin = bind("--admin", listen.admin, ADMIN_PORT)?;
        let peer = match listen.peer {
            Some(address) => Some(bind("--peer", address, peer::PORT)?),
            None => None,
        };
        let metrics = Metrics::default();
        let (eras, eras_seen) = watch::channel(Learned::default());
        let upstream = upstream(target, settings, &metrics, eras_seen)?;
        let (audit, audit_thread) = Audit::start(std::io::stdout())?;
        let (phase, phase_seen) = watch::channel(Phase::Serving);
        let (seen, seen_seen) = watch::channel(Seen::default());
        let shared = Arc::new(Shared {
            config: config::Store::new(issuers),
            upstream: Arc::new(upstream),
            peers: Arc::new(peers),
            tls: listen.tls.map(Tls::follow),
            app_probes: listen.app_probes,
            identity,
            intake: front::Intake::default(),
            sessions: Sessions::default(),
            strays: Strays::new().map_err(anyhow::Error::msg)?,
            counters: counters::Counters::default(),
            audit,
            metrics,
            seen: seen_seen,
            in_pod: listen.in_pod,
            phase: phase_seen,
        });
        let address = mcp.local_addr()?;
        if let Some(peer) = &peer {
            tracing::info!(peer = %peer.local_addr()?, "listening");
        }
        tracing::info!(mcp = %address, admin = %admin.local_addr()?, "listening");
        Ok(Self {
            shared,
            address,
            mcp,
            admin,
            peer,
            phase,
            seen,
            eras,
            audit_thread,
        })
    }

    /// Serves until SIGTERM or SIGINT; SIGUSR1 drains without ending.
    ///
    /// # Errors
    /// Where signals cannot be had.
    pub async fn run(self) -> anyhow::Result<AuditThread> {
        let Self {
            shared,
            address: _,
            mcp,
            admin,
            peer,
            phase,
            seen,
            eras,
            audit_thread,
        } = self;
        let (mut term, mut int) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );
        let mut drain = signal(SignalKind::user_defined1())?;
        tokio::spawn(admin::serve(Arc::clone(&shared), admin));
        tokio::spawn(probe::run(Arc::clone(&shared.upstream), seen, eras));
        tokio::spawn(sweep(Arc::clone(&shared.upstream)));
        let (open, mut ended) = mpsc::channel(1);
        for (listener, door) in [(Some(mcp), Door::Callers), (peer, Door::Peers)] {
            let Some(listener) = listener else { continue };
            let (shared, phase) = (Arc::clone(&shared), phase.subscribe());
            tokio::spawn(front::serve(shared, listener, door, phase, open.clone()));
        }
        drop(open);
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            _ = drain.recv() => {
                tracing::info!("draining");
                phase.send_replace(Phase::Leaving);
                tokio::time::sleep(LEAVE).await;
                phase.send_replace(Phase::Draining);
                tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            }
        }
        phase.send_replace(Phase::Ending);
        let finished = async {
            tokio::select! { _ = ended.recv() => true, _ = int.recv() => false, () = tokio::time::sleep(DRAIN) => false }
        };
        if !finished.await {
            tracing::warn!("calls in flight are cut off");
        }
        drop(shared);
        Ok(audit_thread)
    }
}

/// Binds a port, which stays ours until the process ends: also when the runtime
/// has ended, and with it whoever listens there.
fn bind(flag: &str, address: Option<SocketAddr>, port: u16) -> anyhow::Result<TcpListener> {
    let bound = front::bind(address, port).and_then(|listener| {
        let _never_closed = listener.as_fd().try_clone_to_owned()?.into_raw_fd();
        Ok(listener)
    });
    bound.with_context(|| {
        let address = address.map_or_else(|| format!("port {port}"), |address| address.to_string());
        format!("{address} cannot be bound: choose another address with {flag}")
    })
}

fn upstream(
    target: Target,
    settings: Settings,
    metrics: &Metrics,
    eras: watch::Receiver<Learned>,
) -> anyhow::Result<Upstream> {
    let params = Arc::new(ParamHeaders::default());
    let (server, connector) = match target {
        Target::Socket(path) => (None, Connector::Socket(path)),
        Target::Command(command) => (None, Connector::Command(command)),
        Target::Url(uri, credential) => {
            let server = http::Server::new(uri, Arc::clone(&params), credential);
            let server = server.map_err(anyhow::Error::msg)?;
            let server = Arc::new(server);
            (Some(Arc::clone(&server)), Connector::Http(server))
        }
    };
    let host = Host::new(connector, settings, metrics.processes.clone(), eras.clone());
    Ok(Upstream {
        server,
        host,
        eras,
        params,
    })
}

async fn sweep(upstream: Arc<Upstream>) {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        upstream.host.sweep();
        if let Some(server) = &upstream.server {
            server.sweep();
        }
    }
}
