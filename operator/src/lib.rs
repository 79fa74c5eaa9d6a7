//! The operator: what users ask for in `McpServer` and `McpToolPolicy` becomes
//! what runs, and what runs is told in their status.
//!
//! Data flows one way: watch ([`watch`]) → tables ([`table`], [`entry`]) →
//! `policy::compile` → desired state ([`desired`]) → server-side apply
//! ([`apply`]) → delivery ([`delivery`]) → isolation ([`isolation`]) → status
//! ([`status`], [`writer`]). Beside it the admission webhook ([`webhook`]), with its
//! certificates ([`certificates`]).
//!
//! Invariants:
//! - All replicas watch; only the one that holds the lease acts ([`leader`]).
//! - Nothing is compiled before all policies are known.
//! - An object that cannot be decoded denies; it is never dropped.
//! - Nothing is written where nothing changes.

pub mod apply;
pub mod backoff;
pub mod board;
pub mod certificates;
pub mod covers;
pub mod delivery;
pub mod desired;
pub mod entry;
pub mod error;
pub mod events;
pub mod http;
pub mod identity;
pub mod inject;
pub mod injection;
pub mod isolation;
pub mod issuer;
pub mod leader;
pub mod metrics;
pub mod names;
pub mod orphans;
pub mod policies;
pub mod probe;
pub mod replicas;
pub mod server;
pub mod status;
pub mod table;
pub mod tokens;
pub mod watch;
pub mod webhook;
pub mod workers;
pub mod world;
pub mod writer;

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use kube::Client;
use tokio::sync::watch as channel;

use crate::{
    board::Board,
    delivery::Delivery,
    desired::SidecarImage,
    events::Events,
    identity::Identities,
    isolation::Isolations,
    leader::{Election, Fence, Lost, Times},
    metrics::Metrics,
    names::Key,
    orphans::Orphans,
    policies::Policies,
    server::Servers,
    tokens::Tokens,
    watch::Wakers,
    webhook::Webhook,
    workers::Workers,
    world::World,
};

/// Reconciliations of one kind at the same time.
const CONCURRENCY: usize = 16;
/// Servers whose pods are spoken to at the same time.
const DELIVERIES: usize = 64;
/// Servers whose ports are tried at the same time.
const ISOLATIONS: usize = 64;
/// Servers that are gone and looked after at the same time.
const ORPHANS: usize = 4;
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
    /// Labels by which the operator's own pods are known.
    pub pod_labels: BTreeMap<String, String>,
    /// Namespace of those who may read metrics of sidecars.
    pub monitoring_namespace: Option<String>,
    /// Name of the operator's own pod.
    pub pod: String,
}

/// The operator, ready to run.
pub struct Operator {
    client: Client,
    election: Election,
    wakers: Wakers,
    issuer: channel::Sender<Option<Arc<policy::bundle::Issuer>>>,
    stop: channel::Sender<bool>,
    metrics: Metrics,
    webhook: Arc<Webhook>,
}

impl Operator {
    /// An operator that does nothing yet; within a runtime. What only one replica may
    /// do gets a client that writes while this one holds the lease.
    pub fn new(client: Client, settings: Settings, options: webhook::Options) -> Self {
        let metrics = Metrics::default();
        let fence = Arc::new(Fence::default());
        let election = election(&client, &settings, &fence);
        let acting = fence.guard(&client);
        let (stop, stopping) = channel::channel(false);
        let (issuer, current) = channel::channel(None);
        let tokens = Arc::new(Tokens::new(acting.clone(), settings.account.clone()));
        let world = Arc::new(World::new(settings, tokens.subject(), current));
        let board = Arc::new(Board::default());
        let events = Events::new(acting.clone());
        let to_deliveries = Arc::new(OnceLock::new());
        let to_servers = Arc::new(OnceLock::new());
        let to_isolations = Arc::new(OnceLock::new());
        let to_orphans = Arc::new(OnceLock::new());
        let servers = Servers {
            client: acting.clone(),
            world: world.clone(),
            board: board.clone(),
            events: events.clone(),
            metrics: metrics.clone(),
            deliveries: to_deliveries.clone(),
            orphans: to_orphans.clone(),
        };
        let orphans = Orphans {
            client: acting.clone(),
            world: world.clone(),
            board: board.clone(),
            deliveries: to_deliveries.clone(),
        };
        let webhook = Webhook::new(
            client.clone(),
            world.clone(),
            // Those that do not act answer, too.
            Events::new(client.clone()),
            metrics.clone(),
            options,
        );
        let policies = Policies {
            client: acting.clone(),
            world: world.clone(),
            events,
            metrics: metrics.clone(),
        };
        let delivery = Delivery {
            client: acting.clone(),
            identities: Identities::new(acting, tokens.clone()),
            tokens,
            board: board.clone(),
            world: world.clone(),
            metrics: metrics.clone(),
            servers: to_servers.clone(),
            isolations: to_isolations.clone(),
        };
        let isolations = Isolations {
            board,
            world: world.clone(),
            metrics: metrics.clone(),
            servers: to_servers.clone(),
        };
        let servers = Workers::new(servers, CONCURRENCY, metrics.clone(), stopping.clone());
        let policies = Workers::new(policies, CONCURRENCY, metrics.clone(), stopping.clone());
        let deliveries = Workers::new(delivery, DELIVERIES, metrics.clone(), stopping.clone());
        let isolations = Workers::new(isolations, ISOLATIONS, metrics.clone(), stopping.clone());
        let orphans = Workers::new(orphans, ORPHANS, metrics.clone(), stopping);
        to_servers.get_or_init(|| servers.clone());
        to_deliveries.get_or_init(|| deliveries.clone());
        to_isolations.get_or_init(|| isolations.clone());
        to_orphans.get_or_init(|| orphans.clone());
        let wakers = Wakers {
            world,
            servers,
            policies,
            deliveries,
            isolations,
            orphans,
            fence,
        };
        Self {
            client,
            election,
            wakers,
            issuer,
            stop,
            metrics,
            webhook: Arc::new(webhook),
        }
    }

    /// What answers on the operator's own port; `leaves` turns true at the end.
    pub fn router(&self, leaves: tokio::sync::watch::Receiver<bool>) -> axum::Router {
        let certificates = self.webhook.certificates().clone();
        http::router(
            self.wakers.world.clone(),
            certificates,
            self.metrics.clone(),
            leaves,
        )
    }

    /// The admission webhook, to be served.
    pub fn webhook(&self) -> Arc<Webhook> {
        self.webhook.clone()
    }

    /// Runs until `signal`, then finishes what is under way.
    ///
    /// # Errors
    /// Where this replica acted and no longer may: it has to end at once.
    pub async fn run(self, signal: impl Future<Output = ()>) -> Result<(), Lost> {
        let Self {
            client,
            mut election,
            wakers,
            issuer,
            stop,
            metrics: _,
            webhook: _,
        } = self;
        let keys = issuer.subscribe();
        tokio::select! {
            () = signal => {}
            () = watch_all(&client, &wakers) => {}
            () = issuer::follow(client.clone(), issuer) => {}
            lost = lead(&mut election, &client, &wakers, keys) => {
                tracing::error!(%lost, "ending at once: another replica may act now");
                return Err(lost);
            }
        }
        tracing::info!("stopping");
        stop.send_replace(true);
        let Wakers {
            world: _,
            servers,
            policies,
            deliveries,
            isolations,
            orphans,
            fence: _,
        } = wakers;
        let stopped = async {
            futures::join!(
                servers.stopped(),
                policies.stopped(),
                deliveries.stopped(),
                isolations.stopped(),
                orphans.stopped()
            );
        };
        // The lease is held until the last write is done.
        tokio::select! {
            biased;
            ended = tokio::time::timeout(STOP, stopped) => {
                if ended.is_err() {
                    tracing::warn!("not all that was under way has ended");
                }
            }
            lost = election.hold() => return Err(lost),
        }
        election.release().await;
        Ok(())
    }
}

/// The part of this process in the election. A container that is started anew in
/// the same pod is another candidate.
fn election(client: &Client, settings: &Settings, fence: &Arc<Fence>) -> Election {
    let me = format!("{}_{:016x}", settings.pod, rand::random::<u64>());
    let namespace = &settings.account.namespace;
    Election::new(
        client.clone(),
        namespace,
        me,
        Times::default(),
        fence.clone(),
    )
}

/// Acts once this replica holds the lease, and until it no longer does; tells why.
async fn lead(
    election: &mut Election,
    client: &Client,
    wakers: &Wakers,
    keys: issuer::Current,
) -> Lost {
    election.win().await;
    tracing::info!("this replica holds the lease: it acts");
    let act = async {
        let wake = |server| wakers.servers.wake(&server);
        let missing = injection::follow(client, &wakers.world, wake);
        futures::join!(wake_all(wakers, keys), missing);
        std::future::pending().await
    };
    tokio::select! {
        lost = election.hold() => lost,
        lost = act => lost,
    }
}

async fn watch_all(client: &Client, wakers: &Wakers) {
    let (c, w) = (|| client.clone(), || wakers.clone());
    futures::join!(
        watch::own(c(), w(), |world| &world.servers, Wakers::server),
        watch::own(c(), w(), |world| &world.policies, Wakers::policy),
        watch::children(c(), w(), |world| &world.deployments, Wakers::deployment),
        watch::children(c(), w(), |world| &world.services, Wakers::child),
        watch::children(c(), w(), |world| &world.config_maps, Wakers::config_map),
        watch::children(c(), w(), |world| &world.network_policies, Wakers::child),
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
