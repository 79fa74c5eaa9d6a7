//! The operator: what users ask for in `McpServer` and `McpToolPolicy` becomes
//! what runs, and what runs is told in their status.
//!
//! Data flows one way: watch ([`watch`]) → tables ([`table`], [`entry`]) →
//! `policy::compile` → desired state ([`desired`]) → server-side apply
//! ([`apply`]) → delivery ([`delivery`]) → status ([`status`], [`writer`]).
//!
//! Invariants:
//! - Nothing is compiled before all policies are known.
//! - An object that cannot be decoded denies; it is never dropped.
//! - Nothing is written where nothing changes.

pub mod apply;
pub mod backoff;
pub mod board;
pub mod covers;
pub mod delivery;
pub mod desired;
pub mod entry;
pub mod error;
pub mod events;
pub mod http;
pub mod identity;
pub mod issuer;
pub mod metrics;
pub mod names;
pub mod policies;
pub mod probe;
pub mod replicas;
pub mod server;
pub mod status;
pub mod table;
pub mod tokens;
pub mod watch;
pub mod workers;
pub mod world;
pub mod writer;

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use kube::Client;
use tokio::sync::watch as channel;

use crate::{
    board::Board, delivery::Delivery, desired::SidecarImage, events::Events, identity::Identities,
    metrics::Metrics, names::Key, policies::Policies, server::Servers, tokens::Tokens,
    watch::Wakers, workers::Workers, world::World,
};

/// Reconciliations of one kind at the same time.
const CONCURRENCY: usize = 16;
/// Servers whose pods are spoken to at the same time.
const DELIVERIES: usize = 64;
/// Time to finish what is under way after the signal to stop.
const STOP: Duration = Duration::from_secs(10);

/// What the operator is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Image of the sidecar.
    pub sidecar: SidecarImage,
    /// Whether servers may ask for `Anonymous`.
    pub allow_anonymous: bool,
    /// URLs of issuers that servers may name beside the cluster's; a `*` at the
    /// end of one stands for any text.
    pub allowed_issuers: Vec<String>,
    /// Networks (CIDR) beside the public internet in which issuers may be.
    pub issuer_networks: Vec<String>,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// The operator's own service account.
    pub account: Key,
}

/// The operator, ready to run.
pub struct Operator {
    client: Client,
    wakers: Wakers,
    issuer: channel::Sender<Option<Arc<policy::bundle::Issuer>>>,
    stop: channel::Sender<bool>,
    metrics: Metrics,
}

impl Operator {
    /// An operator that does nothing yet.
    pub fn new(client: Client, settings: Settings) -> Self {
        let metrics = Metrics::default();
        let (stop, stopping) = channel::channel(false);
        let (issuer, current) = channel::channel(None);
        let tokens = Arc::new(Tokens::new(client.clone(), settings.account.clone()));
        let world = Arc::new(World::new(settings, tokens.subject(), current));
        let board = Arc::new(Board::default());
        let events = Events::new(client.clone());
        let to_deliveries = Arc::new(OnceLock::new());
        let to_servers = Arc::new(OnceLock::new());
        let servers = Servers {
            client: client.clone(),
            world: world.clone(),
            board: board.clone(),
            events: events.clone(),
            metrics: metrics.clone(),
            deliveries: to_deliveries.clone(),
        };
        let policies = Policies {
            client: client.clone(),
            world: world.clone(),
            events,
            metrics: metrics.clone(),
        };
        let delivery = Delivery {
            client: client.clone(),
            identities: Identities::new(client.clone(), tokens.clone()),
            tokens,
            board,
            world: world.clone(),
            metrics: metrics.clone(),
            servers: to_servers.clone(),
        };
        let servers = Workers::new(servers, CONCURRENCY, metrics.clone(), stopping.clone());
        let policies = Workers::new(policies, CONCURRENCY, metrics.clone(), stopping.clone());
        let deliveries = Workers::new(delivery, DELIVERIES, metrics.clone(), stopping);
        to_servers.get_or_init(|| servers.clone());
        to_deliveries.get_or_init(|| deliveries.clone());
        let wakers = Wakers {
            world,
            servers,
            policies,
            deliveries,
        };
        Self {
            client,
            wakers,
            issuer,
            stop,
            metrics,
        }
    }

    /// What answers on the operator's own port.
    pub fn router(&self) -> axum::Router {
        http::router(self.wakers.world.clone(), self.metrics.clone())
    }

    /// Runs until `signal`, then finishes what is under way.
    pub async fn run(self, signal: impl Future<Output = ()>) {
        let Self {
            client,
            wakers,
            issuer,
            stop,
            metrics: _,
        } = self;
        let keys = issuer.subscribe();
        tokio::select! {
            () = signal => {}
            () = watch_all(&client, &wakers) => {}
            () = issuer::follow(client.clone(), issuer) => {}
            () = wake_all(&wakers, keys) => {}
        }
        tracing::info!("stopping");
        stop.send_replace(true);
        let Wakers {
            world: _,
            servers,
            policies,
            deliveries,
        } = wakers;
        let stopped = async {
            futures::join!(servers.stopped(), policies.stopped(), deliveries.stopped());
        };
        if tokio::time::timeout(STOP, stopped).await.is_err() {
            tracing::warn!("not all that was under way has ended");
        }
    }
}

async fn watch_all(client: &Client, wakers: &Wakers) {
    let (c, w) = (|| client.clone(), || wakers.clone());
    futures::join!(
        watch::own(c(), w(), |world| &world.servers, Wakers::server),
        watch::own(c(), w(), |world| &world.policies, Wakers::policy),
        watch::children(c(), w(), |world| &world.deployments, Wakers::deployment),
        watch::children(c(), w(), |world| &world.services, Wakers::child),
        watch::children(c(), w(), |world| &world.config_maps, Wakers::child),
        watch::children(c(), w(), |world| &world.pods, Wakers::pod),
    );
}

/// Wakes everything once all is known, and whenever the issuer's keys change.
async fn wake_all(wakers: &Wakers, mut keys: issuer::Current) {
    while !wakers.world.ready() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tracing::info!("all is known: reconciling");
    loop {
        keys.mark_unchanged();
        wakers.everything();
        if keys.changed().await.is_err() {
            return;
        }
        tracing::info!("the issuer's keys changed: reconciling everything");
    }
}
