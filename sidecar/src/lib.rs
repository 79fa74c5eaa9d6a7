//! The data plane of Toolward: a reverse proxy for one MCP server that decides
//! on every message before the server sees it.
//!
//! A request goes through [`pipeline`]; [`config`] holds what it decides with,
//! [`upstream`] is where it goes. `serve` (in a pod) and `run` (on a laptop)
//! differ only in where the configuration comes from.

pub mod admin;
pub mod app_probes;
pub mod audit;
pub mod auth;
pub mod body;
pub mod bridge;
pub mod config;
pub mod counters;
pub mod dev;
pub mod drain;
pub mod envelope;
pub mod era;
pub mod filter;
pub mod fit;
pub mod frame;
pub mod front;
pub mod guard;
pub mod host;
pub mod identity;
pub mod issuers;
pub mod link;
pub mod listeners;
pub mod method;
pub mod metrics;
pub mod peer;
pub mod pipeline;
pub mod probe;
pub mod refusal;
pub mod request;
pub mod resource;
pub mod run;
pub mod serve;
pub mod server;
pub mod sessions;
pub mod shim;
pub mod source;
pub mod sse;
pub mod state;
pub mod strict;
pub mod tls;
pub mod upstream;
pub mod wire;

use tokio::sync::watch;

/// All that requests share.
pub struct Shared {
    /// The configuration in force.
    pub config: config::Store,
    /// The wrapped server.
    pub upstream: std::sync::Arc<upstream::Upstream>,
    /// Other replicas of the server.
    pub peers: std::sync::Arc<peer::Peers>,
    /// TLS on the MCP port; none where that speaks in the clear.
    pub tls: Option<std::sync::Arc<tls::Tls>>,
    /// Probes of the app that the admin port makes.
    pub app_probes: app_probes::AppProbes,
    /// Tells the server who calls.
    pub identity: identity::Identity,
    /// Reads the bodies of requests.
    pub intake: front::Intake,
    /// Legacy sessions.
    pub sessions: sessions::Sessions,
    /// What belongs to callers without a session.
    pub strays: fit::Strays,
    /// Counts of the limits.
    pub counters: counters::Counters,
    /// The audit log.
    pub audit: audit::Audit,
    /// Metrics.
    pub metrics: metrics::Metrics,
    /// What the sidecar's own session has seen.
    pub seen: watch::Receiver<probe::Seen>,
    /// Whether it stands in a pod, and tells who else listens there.
    pub in_pod: bool,
    /// Serving, leaving or draining.
    pub phase: watch::Receiver<front::Phase>,
}
