//! Gets the wanted bundle and list of replicas to the sidecars, and learns what
//! they have.
//!
//! Pod and ConfigMap reach the kubelet by separate watches: an annotation on
//! the pod makes it look again, and where that came too early, the next one
//! does. Invariants: a pod is only written to while its sidecar has not got
//! what is wanted; each question has a deadline.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use policy::report::{Report, UpstreamState};
use serde_json::json;

use crate::{
    backoff::Backoff,
    board::{Board, Sight, Sights, Wanted},
    error::{Error, call},
    identity::{Asked, Identities},
    isolation::Isolations,
    metrics::Metrics,
    names::{ADMIN_PORT, BUNDLE_ANNOTATION, FIELD_MANAGER, Key},
    probe::{self, ProbeError},
    server::Servers,
    status::pod::sidecar_runs,
    tokens::Tokens,
    workers::{Next, Reconcile, Workers},
    world::World,
};

/// Waits between two annotations on the same pod.
const NUDGES: Backoff = Backoff {
    first: Duration::from_millis(300),
    cap: Duration::from_secs(30),
};
/// Waits between two questions to a sidecar that is not yet where it should be.
const POLLS: Backoff = Backoff {
    first: Duration::from_millis(100),
    cap: Duration::from_secs(10),
};
/// Wait between two questions to a sidecar that is.
const SETTLED: Backoff = Backoff {
    first: Duration::from_secs(15),
    cap: Duration::from_secs(15),
};
/// So often a sidecar may fail to answer before its last word is forgotten.
const PATIENCE: u32 = 3;
/// Pods of one server that are spoken to at the same time.
const AT_ONCE: usize = 8;

/// Delivery for all servers.
pub struct Delivery {
    /// For the annotations.
    pub client: Client,
    /// For the questions.
    pub tokens: Arc<Tokens>,
    /// For the keys of sidecars.
    pub identities: Identities,
    /// Where wanted and seen bundles stand.
    pub board: Arc<Board>,
    /// Where the pods stand.
    pub world: Arc<World>,
    /// What is counted.
    pub metrics: Metrics,
    /// Woken when something new is seen.
    pub servers: Arc<OnceLock<Arc<Workers<Servers>>>>,
    /// As well: what listens in a pod may be new.
    pub isolations: Arc<OnceLock<Arc<Workers<Isolations>>>>,
}

/// What is remembered of one server.
#[derive(Default)]
pub struct Memory {
    wanted: Option<Wanted>,
    pods: HashMap<String, PodMemory>,
}

/// What is remembered of one pod.
struct PodMemory {
    version: Option<String>,
    sight: Option<Sight>,
    failures: u32,
    polls: u32,
    next_poll: Instant,
    nudges: u32,
    next_nudge: Option<Instant>,
    annotation: Option<String>,
}

impl PodMemory {
    fn new(now: Instant) -> Self {
        Self {
            version: None,
            sight: None,
            failures: 0,
            polls: 0,
            next_poll: now,
            nudges: 0,
            next_nudge: None,
            annotation: None,
        }
    }

    /// Something else is wanted.
    fn expect(&mut self, now: Instant) {
        self.nudges = 0;
        self.next_nudge = Some(now);
    }

    /// The pod was annotated.
    fn nudged(&mut self, annotation: String, now: Instant) {
        self.annotation = Some(annotation);
        self.next_nudge = Some(now + NUDGES.after(self.nudges));
        self.nudges += 1;
        self.polls = 0;
        self.next_poll = now + POLLS.after(0);
    }

    /// The sidecar answered, or did not.
    fn polled(&mut self, answer: Result<Report, String>, wanted: &Wanted, now: Instant) {
        let has = |report: &Report| wanted.is_had(report);
        let wait = match &answer {
            Ok(report)
                if has(report)
                    && wanted.lacks(report).is_none()
                    && report.upstream.state == UpstreamState::Serving =>
            {
                self.polls = 0;
                SETTLED.after(0)
            }
            _ => POLLS.after(self.polls),
        };
        self.polls += 1;
        self.next_poll = now + wait;
        match answer {
            Ok(report) => {
                self.failures = 0;
                if has(&report) {
                    self.nudges = 0;
                    self.next_nudge = None;
                } else {
                    self.next_nudge.get_or_insert(now);
                }
                self.sight = Some(Sight {
                    report: Some(report),
                    ..Sight::default()
                });
            }
            Err(error) => {
                self.failures += 1;
                let patient = self.failures < PATIENCE;
                let report = self.sight.take().and_then(|sight| sight.report);
                self.sight = Some(Sight {
                    report: report.filter(|_| patient),
                    error: Some(error),
                    ..Sight::default()
                });
            }
        }
    }

    /// Why the sidecar's key was not taken, where it was asked for.
    fn key_refused(&mut self, why: Option<String>) {
        if let Some(sight) = &mut self.sight {
            sight.key = why;
        }
    }

    /// Whether the sidecar told of a key that is published.
    fn has_key_in(&self, wanted: &Wanted) -> bool {
        let report = self.sight.as_ref().and_then(|sight| sight.report.as_ref());
        let own = report.and_then(|report| report.identity.as_ref());
        own.is_some_and(|own| wanted.has_key(&own.kid))
    }

    /// Whether the sidecar told that it uses the list of replicas.
    fn knows_peers(&self) -> bool {
        let report = self.sight.as_ref().and_then(|sight| sight.report.as_ref());
        report.is_some_and(|report| report.peers.is_some())
    }

    fn due(&self) -> Instant {
        let nudge = self.next_nudge.unwrap_or(self.next_poll);
        self.next_poll.min(nudge)
    }
}

/// A pod that can be spoken to.
struct Peer {
    uid: String,
    name: String,
    address: SocketAddr,
    account: String,
    version: Option<String>,
    annotation: Option<String>,
}

impl Peer {
    fn of(pod: &Pod) -> Option<Self> {
        if !sidecar_runs(pod) {
            return None;
        }
        let ip: IpAddr = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
        let spec = pod.spec.as_ref();
        let account = spec.and_then(|spec| spec.service_account_name.clone());
        Some(Self {
            uid: pod.uid()?,
            name: pod.name_any(),
            address: (ip, ADMIN_PORT).into(),
            account: account.unwrap_or_else(|| "default".to_owned()),
            version: pod.resource_version(),
            annotation: pod.annotations().get(BUNDLE_ANNOTATION).cloned(),
        })
    }
}

/// Whether a pod's sidecar can be asked for its status.
pub fn can_be_asked(pod: &Pod) -> bool {
    Peer::of(pod).is_some()
}

impl Memory {
    /// Brings what is remembered up to what there is.
    fn update(&mut self, wanted: &Wanted, peers: &[Peer], now: Instant) {
        self.pods
            .retain(|uid, _| peers.iter().any(|p| p.uid == *uid));
        let before = self.wanted.replace(wanted.clone());
        let bundle = before
            .as_ref()
            .is_some_and(|old| old.bundle != wanted.bundle);
        let replicas = before.as_ref().is_some_and(|old| old.peers != wanted.peers);
        // Its key was published just now.
        let key = |pod: &PodMemory| {
            let was_there = |old: &Wanted| pod.has_key_in(old);
            pod.has_key_in(wanted) && before.as_ref().is_some_and(|old| !was_there(old))
        };
        for peer in peers {
            let pod = self.pods.entry(peer.uid.clone());
            let pod = pod.or_insert_with(|| PodMemory::new(now));
            if pod.version != peer.version {
                // Its readiness may have changed: ask at once.
                pod.version.clone_from(&peer.version);
                pod.next_poll = now;
            }
            if bundle || replicas && pod.knows_peers() || key(pod) {
                pod.expect(now);
            }
        }
    }

    fn due<'a>(&self, peers: &'a [Peer], when: impl Fn(&PodMemory) -> bool) -> Vec<&'a Peer> {
        let due = |peer: &&Peer| self.pods.get(&peer.uid).is_some_and(&when);
        peers.iter().filter(due).collect()
    }

    fn sights(&self) -> Sights {
        let seen = |(uid, pod): (&String, &PodMemory)| Some((uid.clone(), pod.sight.clone()?));
        self.pods.iter().filter_map(seen).collect()
    }
}

impl Reconcile for Delivery {
    type Key = Key;
    type Memory = Memory;
    const NAME: &'static str = "delivery";

    fn exists(&self, key: &Key) -> bool {
        self.board.wanted(key).is_some()
    }

    async fn reconcile(&self, key: &Key, memory: &mut Memory) -> Result<Next, Error> {
        let Some(wanted) = self.board.wanted(key) else {
            return Ok(Next::WhenWoken);
        };
        let pods = self.world.pods.group(key);
        let peers: Vec<_> = pods.iter().filter_map(|pod| Peer::of(pod)).collect();
        memory.update(&wanted, &peers, Instant::now());
        self.nudge(key, memory, &peers, &wanted).await;
        self.poll(key, memory, &peers, &wanted).await;
        if self.board.see(key, memory.sights()) {
            if let Some(servers) = self.servers.get() {
                servers.wake(key);
            }
            if let Some(isolations) = self.isolations.get() {
                isolations.wake(key);
            }
        }
        let due = memory.pods.values().map(PodMemory::due).min();
        let now = Instant::now();
        Ok(due.map_or(Next::WhenWoken, |due| {
            Next::After(due.saturating_duration_since(now))
        }))
    }

    fn retired(&self, key: &Key) {
        self.tokens.forget(key);
    }
}

impl Delivery {
    /// Annotates the pods whose sidecars lack what is wanted.
    async fn nudge(&self, server: &Key, memory: &mut Memory, peers: &[Peer], wanted: &Wanted) {
        let now = Instant::now();
        let due = memory.due(peers, |pod| pod.next_nudge.is_some_and(|at| at <= now));
        let nudges = due.into_iter().map(|peer| {
            let before = memory.pods.get(&peer.uid);
            let before = before.and_then(|pod| pod.annotation.as_ref());
            let value = annotation(wanted, before.or(peer.annotation.as_ref()));
            async move {
                if let Err(error) = self.annotate(server, peer, &value).await {
                    tracing::debug!(%server, pod = peer.name, %error, "cannot annotate the pod");
                }
                (peer, value)
            }
        });
        let nudges: Vec<_> = nudges.collect();
        let done: Vec<_> = stream::iter(nudges)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let now = Instant::now();
        for (peer, value) in done {
            if let Some(pod) = memory.pods.get_mut(&peer.uid) {
                pod.nudged(value, now);
            }
        }
    }

    async fn annotate(&self, server: &Key, peer: &Peer, value: &str) -> Result<(), Error> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &server.namespace);
        let patch = json!({"metadata": {
            "uid": peer.uid,
            "annotations": {BUNDLE_ANNOTATION: value},
        }});
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let action = || format!("annotating Pod {}", peer.name);
        call(
            action,
            api.patch_metadata(&peer.name, &params, &Patch::Merge(&patch)),
        )
        .await?;
        self.metrics.nudged();
        Ok(())
    }

    /// Asks the sidecars that are due.
    async fn poll(&self, server: &Key, memory: &mut Memory, peers: &[Peer], wanted: &Wanted) {
        let now = Instant::now();
        let due = memory.due(peers, |pod| pod.next_poll <= now);
        if due.is_empty() {
            return;
        }
        let token = self.tokens.get(server).await;
        let token = token.map_err(|error| error.to_string());
        let polls = due.into_iter().map(|peer| {
            let token = token.clone();
            async move {
                let answer = match token {
                    Ok(token) => self.ask(server, peer, &token).await,
                    Err(error) => Err(error),
                };
                let refused = match &answer {
                    Ok(report) => self.take_key(server, peer, wanted, report).await,
                    Err(_) => None,
                };
                (peer, answer, refused)
            }
        });
        let polls: Vec<_> = polls.collect();
        let answers: Vec<_> = stream::iter(polls)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let now = Instant::now();
        for (peer, answer, refused) in answers {
            if let Some(pod) = memory.pods.get_mut(&peer.uid) {
                pod.polled(answer, wanted, now);
                pod.key_refused(refused);
            }
        }
    }

    /// Takes the key of a sidecar, where it is to be published; gives why not.
    async fn take_key(
        &self,
        server: &Key,
        peer: &Peer,
        wanted: &Wanted,
        report: &Report,
    ) -> Option<String> {
        let kid = wanted.lacks(report)?;
        if self.board.is_proven(server, &peer.uid, kid) {
            return None; // It is being written.
        }
        let uid = self.world.servers.get(server)?.meta.uid.clone()?;
        let pod = Asked {
            address: peer.address,
            name: &peer.name,
            uid: &peer.uid,
            account: &peer.account,
        };
        match self.identities.key(server, &uid, &pod, kid).await {
            Ok(key) => {
                tracing::info!(%server, pod = peer.name, kid, "the key of a sidecar is proven");
                self.board.prove(server, &peer.uid, key);
                if let Some(servers) = self.servers.get() {
                    servers.wake(server);
                }
                None
            }
            Err(error) => {
                tracing::warn!(%server, pod = peer.name, %error, "the key of a sidecar is not taken");
                Some(error.to_string())
            }
        }
    }

    async fn ask(&self, server: &Key, peer: &Peer, token: &str) -> Result<Report, String> {
        let answer = probe::report(peer.address, token).await;
        let result = answer.as_ref().map_or_else(ProbeError::category, |_| "ok");
        self.metrics.polled(result);
        answer.map_err(|error| {
            if let ProbeError::Refused(_) = error {
                self.tokens.refused(server);
            }
            tracing::debug!(%server, pod = peer.name, %error, "no status");
            error.to_string()
        })
    }
}

/// The annotation's next value: another than it has, so that the kubelet looks.
fn annotation(wanted: &Wanted, now: Option<&String>) -> String {
    const DIGITS: usize = 12;
    let peers = wanted.peers.trim_start_matches("sha256:");
    let peers = peers.get(..DIGITS).unwrap_or(peers);
    let next = format!("{}+{peers}", wanted.bundle);
    let now = now.map(String::as_str).unwrap_or_default();
    match now.strip_prefix(&next) {
        None => next,
        Some(counter) => {
            let counter: u64 = counter.trim_start_matches('.').parse().unwrap_or_default();
            format!("{next}.{}", counter.wrapping_add(1))
        }
    }
}

#[cfg(test)]
mod tests;
