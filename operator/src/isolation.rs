//! Whether anybody reaches a server past its sidecar: what listens in its pods
//! beyond loopback is connected to from outside, again and again.
//!
//! Invariants:
//! - Only addresses that Kubernetes gives a pod are connected to, whatever its
//!   sidecar says.
//! - A connection that is taken is proof. One that is not counts when the next
//!   is not taken either, and only while the MCP port of the pod, which is open to
//!   all, takes one: a network that fails is not taken for one that protects.
//! - What was found of a pod stays until all of what there is now has been
//!   tried, so that it does not change to and fro.
//! - The number of connections at a time is bounded.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use crds::{HttpTransport, McpServerSpec, TransportType};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use policy::report::{ListenerReport, MAX_LISTENERS, Report, UpstreamState};
use tokio::net::TcpStream;

use crate::{
    board::{Board, Sight},
    error::Error,
    metrics::Metrics,
    names::{Key, MCP_PORT},
    server::Servers,
    status::pod::sidecar_runs,
    workers::{Next, Reconcile, Workers},
    world::World,
};

/// Between two connections to the same port.
const AGAIN: Duration = Duration::from_secs(30);
/// Before a connection that was not taken is tried once more.
const SOON: Duration = Duration::from_secs(1);
/// Before one that could not be tried is tried after all.
const LATER: Duration = Duration::from_secs(5);
/// For one connection.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many in a row that are not taken prove that a port is shut.
const PROOF: u32 = 2;
/// Connections to pods of one server at the same time.
const AT_ONCE: usize = 8;
/// Connections of one round; then it is looked at what there is, and it goes on.
const ROUND: usize = 16;

/// What was found of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Nothing listens beyond loopback.
    Loopback,
    /// Ports listen beyond loopback, and none of them can be reached.
    Shut,
    /// These ports can be reached.
    Open(BTreeSet<u16>),
    /// It cannot be found out: why.
    Unclear(String),
}

/// Tries the ports of all servers.
pub struct Isolations {
    /// Where is told what listens, and what was found.
    pub board: Arc<Board>,
    /// Where servers and pods stand.
    pub world: Arc<World>,
    /// What is counted.
    pub metrics: Metrics,
    /// Woken when something new is found.
    pub servers: Arc<OnceLock<Arc<Workers<Servers>>>>,
}

/// What is remembered of one server: its pods, by uid.
#[derive(Default)]
pub struct Memory(HashMap<String, PodMemory>);

#[derive(Default)]
struct PodMemory {
    /// As it is now.
    pod: Known,
    tries: BTreeMap<SocketAddr, Try>,
    found: Option<Isolation>,
}

/// What is known of a pod before its ports are tried.
#[derive(Debug, Default, PartialEq, Eq)]
struct Known {
    /// Whether its sidecar answered when it was asked last.
    answers: bool,
    /// Whether its server answered, so that its ports are open.
    serves: bool,
    /// What is to be tried, and whether the sidecar says that it listens.
    targets: BTreeMap<SocketAddr, bool>,
    /// Why that is not all.
    unclear: Option<String>,
}

/// What is known of one port.
#[derive(Debug)]
struct Try {
    /// Whether the sidecar said that it listens.
    listed: bool,
    /// Whether it can be reached.
    open: Option<bool>,
    /// How often in a row it could not.
    failures: u32,
    /// Why it was not tried, where that was so.
    untried: Option<String>,
    next: Instant,
}

/// What became of a connection.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Taken,
    NotTaken,
    /// It says nothing of the port.
    Untried(String),
}

/// Which ports of a server's pods are nobody's business.
#[derive(Clone, Copy, Debug)]
struct Ports<'a> {
    /// Where the server listens, if it listens; tried whatever a sidecar says.
    own: Option<u16>,
    /// Open on purpose.
    open: &'a [u16],
}

impl<'a> Ports<'a> {
    fn of(spec: &'a McpServerSpec) -> Self {
        let http = spec.transport.http.as_ref();
        let port = http.map_or_else(|| HttpTransport::default().port, |http| http.port);
        let open = spec.injected.as_ref().and_then(|it| it.ports.as_deref());
        Self {
            own: (spec.transport.type_ == TransportType::StreamableHttp).then_some(port),
            open: open.unwrap_or_default(),
        }
    }
}

impl Known {
    fn of(ports: Ports<'_>, addresses: &[IpAddr], report: &Report, answers: bool) -> Self {
        let mut known = Self {
            answers,
            serves: report.upstream.state == UpstreamState::Serving,
            ..Self::default()
        };
        if let Some(port) = ports.own {
            let own = |ip: &IpAddr| (SocketAddr::new(*ip, port), false);
            known.targets.extend(addresses.iter().map(own));
        }
        let Some(listeners) = &report.listeners else {
            let why = "its sidecar does not tell what listens there; it is of an earlier release, or cannot read /proc/net/tcp";
            known.unclear = Some(why.to_owned());
            return known;
        };
        if listeners.len() >= MAX_LISTENERS {
            known.unclear = Some(format!("{MAX_LISTENERS} ports or more listen there"));
        }
        let listeners = listeners.iter().take(MAX_LISTENERS);
        for listener in listeners.filter(|it| !ports.open.contains(&it.port)) {
            known.add(*listener, addresses);
        }
        known
    }

    /// Adds the addresses at which a listener can be reached.
    fn add(&mut self, ListenerReport { address, port }: ListenerReport, addresses: &[IpAddr]) {
        let address = address.to_canonical();
        if address.is_loopback() {
            return;
        }
        let reaches = |ip: &IpAddr| match address {
            IpAddr::V4(it) if it.is_unspecified() => ip.is_ipv4(),
            // Of both families, as a rule.
            IpAddr::V6(it) if it.is_unspecified() => true,
            it => it == *ip,
        };
        let reached = addresses.iter().copied().filter(reaches);
        let targets: Vec<_> = reached.map(|ip| SocketAddr::new(ip, port)).collect();
        if targets.is_empty() {
            let at = SocketAddr::new(address, port);
            let why = format!("it listens on {at}, which is no address that Kubernetes knows");
            self.unclear.get_or_insert(why);
        }
        self.targets
            .extend(targets.into_iter().map(|at| (at, true)));
    }
}

/// The addresses of a pod.
fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let status = pod.status.as_ref();
    let all = status.and_then(|status| status.pod_ips.as_ref());
    let all = all.into_iter().flatten().map(|ip| &ip.ip);
    let first = status.and_then(|status| status.pod_ip.as_ref());
    let all: BTreeSet<IpAddr> = all.chain(first).filter_map(|ip| ip.parse().ok()).collect();
    all.into_iter().collect()
}

impl Try {
    fn new(listed: bool, now: Instant) -> Self {
        Self {
            listed,
            open: None,
            failures: 0,
            untried: None,
            next: now,
        }
    }

    fn tried(&mut self, outcome: Outcome, now: Instant) {
        self.untried = None;
        let wait = match outcome {
            Outcome::Taken => {
                (self.open, self.failures) = (Some(true), 0);
                AGAIN
            }
            Outcome::NotTaken => {
                self.failures = self.failures.saturating_add(1);
                if self.failures < PROOF {
                    SOON
                } else {
                    self.open = Some(false);
                    AGAIN
                }
            }
            Outcome::Untried(why) => {
                self.untried = Some(why);
                LATER
            }
        };
        self.next = now + wait;
    }
}

impl PodMemory {
    fn update(&mut self, pod: Known, now: Instant) {
        self.tries
            .retain(|address, _| pod.targets.contains_key(address));
        for (address, listed) in &pod.targets {
            let new = || Try::new(*listed, now);
            let known = self.tries.entry(*address).or_insert_with(new);
            if *listed && !known.listed {
                // What was found before it listened says nothing.
                *known = new();
            }
            known.listed = *listed;
        }
        self.pod = pod;
    }

    /// What is found; none where not all is known yet.
    fn look(&self) -> Option<Isolation> {
        let open = self.tries.iter().filter(|(_, it)| it.open == Some(true));
        let open: BTreeSet<_> = open.map(|(address, _)| address.port()).collect();
        let untried = self.tries.iter().find_map(|(address, it)| {
            let why = it.untried.as_ref().filter(|_| it.open.is_none())?;
            Some(format!("{address} cannot be tried: {why}"))
        });
        if !open.is_empty() {
            return Some(Isolation::Open(open));
        }
        let is_new = |it: &Try| it.open.is_none() && it.untried.is_none();
        // A server that has not answered yet may be about to listen.
        if !self.pod.serves || self.tries.values().any(is_new) {
            return None;
        }
        if let Some(why) = untried.or_else(|| self.pod.unclear.clone()) {
            return Some(Isolation::Unclear(why));
        }
        let listens = self.tries.values().any(|it| it.listed);
        Some(if listens {
            Isolation::Shut
        } else {
            Isolation::Loopback
        })
    }
}

impl Memory {
    fn update(&mut self, pods: HashMap<String, Known>, now: Instant) {
        self.0.retain(|uid, _| pods.contains_key(uid));
        for (uid, known) in pods {
            self.0.entry(uid).or_default().update(known, now);
        }
    }

    /// What is to be tried now: first what was never tried, then what waits
    /// longest.
    fn due(&self, now: Instant) -> Vec<(String, SocketAddr)> {
        let pods = self.0.iter().filter(|(_, pod)| pod.pod.answers);
        let tries = pods.flat_map(|(uid, pod)| pod.tries.iter().map(move |it| (uid, it)));
        let mut due: Vec<_> = tries
            .filter(|(_, (_, it))| it.next <= now)
            .map(|(uid, (address, it))| (it.open.is_some(), it.next, uid, *address))
            .collect();
        due.sort();
        due.truncate(ROUND);
        let due = due.into_iter();
        due.map(|(.., uid, address)| (uid.clone(), address))
            .collect()
    }

    fn tried(&mut self, uid: &str, address: SocketAddr, outcome: Outcome, now: Instant) {
        let pod = self.0.get_mut(uid);
        if let Some(it) = pod.and_then(|pod| pod.tries.get_mut(&address)) {
            it.tried(outcome, now);
        }
    }

    /// What is found of each pod, or was before where not all is known yet.
    fn found(&mut self) -> BTreeMap<String, Isolation> {
        let mut all = BTreeMap::new();
        for (uid, pod) in &mut self.0 {
            pod.found = pod.look().or(pod.found.take());
            all.extend(pod.found.clone().map(|found| (uid.clone(), found)));
        }
        all
    }

    /// When there is something to be tried.
    fn next(&self) -> Option<Instant> {
        let pods = self.0.values().filter(|pod| pod.pod.answers);
        let tries = pods.flat_map(|pod| pod.tries.values());
        tries.map(|it| it.next).min()
    }
}

impl Reconcile for Isolations {
    type Key = Key;
    type Memory = Memory;
    const NAME: &'static str = "isolation";

    fn exists(&self, key: &Key) -> bool {
        self.world.servers.get(key).is_some()
    }

    async fn reconcile(&self, key: &Key, memory: &mut Memory) -> Result<Next, Error> {
        let Some(pods) = self.known(key) else {
            return Ok(Next::WhenWoken);
        };
        memory.update(pods, Instant::now());
        let due = memory.due(Instant::now());
        let tries = due.into_iter().map(|(uid, address)| async move {
            let outcome = attempt(address).await;
            (uid, address, outcome)
        });
        let tries: Vec<_> = tries.collect();
        let tried: Vec<_> = stream::iter(tries)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let now = Instant::now();
        for (uid, address, outcome) in tried {
            self.metrics.tried(outcome.word());
            tracing::debug!(server = %key, %address, ?outcome, "a port was tried");
            memory.tried(&uid, address, outcome, now);
        }
        if self.board.isolate(key, memory.found())
            && let Some(servers) = self.servers.get()
        {
            servers.wake(key);
        }
        Ok(memory.next().map_or(Next::WhenWoken, |next| {
            Next::After(next.saturating_duration_since(now))
        }))
    }
}

impl Isolations {
    /// The pods of a server whose sidecars told what listens; none where it is
    /// not known what the server is.
    fn known(&self, key: &Key) -> Option<HashMap<String, Known>> {
        let entry = self.world.servers.get(key)?;
        let ports = Ports::of(&entry.decoded.as_ref().ok()?.spec);
        let sights = self.board.sights(key);
        let pods = self.world.pods.group(key);
        let known = pods
            .iter()
            .filter(|pod| sidecar_runs(pod))
            .filter_map(|pod| {
                let uid = pod.uid()?;
                let Sight { report, error, .. } = sights.get(&uid)?;
                let known = Known::of(ports, &addresses(pod), report.as_ref()?, error.is_none());
                Some((uid, known))
            });
        Some(known.collect())
    }
}

impl Outcome {
    /// As the label of a metric.
    fn word(&self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::NotTaken => "not_taken",
            Self::Untried(_) => "untried",
        }
    }
}

/// Connects to a port, and where that is not taken, to the MCP port.
async fn attempt(address: SocketAddr) -> Outcome {
    match connect(address).await {
        Outcome::NotTaken => {}
        outcome => return outcome,
    }
    let mcp = SocketAddr::new(address.ip(), MCP_PORT as u16);
    match connect(mcp).await {
        Outcome::Taken => Outcome::NotTaken,
        Outcome::NotTaken => {
            Outcome::Untried(format!("{mcp} is open to all and cannot be reached either"))
        }
        untried => untried,
    }
}

/// Connects, and hangs up.
async fn connect(address: SocketAddr) -> Outcome {
    match tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Outcome::Taken,
        Ok(Err(error)) if is_of_the_network(&error) => Outcome::NotTaken,
        Ok(Err(error)) => Outcome::Untried(error.to_string()),
        Err(_) => Outcome::NotTaken,
    }
}

/// Whether an error is the answer of the pod or of what stands before it, and not
/// one of this process, such as too many open files.
fn is_of_the_network(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, TimedOut};
    matches!(
        error.kind(),
        ConnectionRefused | ConnectionReset | HostUnreachable | TimedOut
    )
}

#[cfg(test)]
mod tests;
