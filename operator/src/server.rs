//! Brings what runs to what an `McpServer` and its policies ask for.
//!
//! Invariants:
//! - A change of policy is delivered also where everything else fails.
//! - What is not the server's own is not touched.

pub mod wire;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use crds::{McpServer, Reason};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod, Service},
    networking::v1::NetworkPolicy,
};
use kube::{Client, ResourceExt};
use policy::{Bundle, Diagnostic, bundle};

use crate::{
    apply::{Child, Found, Last, apply, delete, find, find_if, is_kept},
    board::{Board, Wanted},
    delivery::{self, Delivery},
    desired::{Owner, config_map, deployment, identity_map, kept, network_policy, service},
    entry::Entry,
    error::Error,
    events::{Events, news},
    identity::Published,
    injection,
    metrics::Metrics,
    names::{Key, SERVER_ANNOTATION, config_map_name, identity_map_name, network_policy_name},
    orphans::Orphans,
    replicas::Replicas,
    status::{Stamp, pod::is_finished, server as status},
    workers::{Next, Reconcile, Workers},
    world::World,
    writer::{LastStatus, Written, write},
};

/// A name that somebody else has is looked at again after this time: nobody
/// tells when it gets free.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// A status that was made from an old version is made again after this time,
/// should the watch not tell.
const STALE: Duration = Duration::from_secs(1);

/// The reconciler of servers.
pub struct Servers {
    /// To write with.
    pub client: Client,
    /// What is known.
    pub world: Arc<World>,
    /// Wanted and seen bundles.
    pub board: Arc<Board>,
    /// Where Events go.
    pub events: Events,
    /// What is counted.
    pub metrics: Metrics,
    /// Woken when another bundle is wanted.
    pub deliveries: Arc<OnceLock<Arc<Workers<Delivery>>>>,
    /// Woken when a server is gone.
    pub orphans: Arc<OnceLock<Arc<Workers<Orphans>>>>,
}

/// What is remembered of a server.
#[derive(Default)]
pub struct Memory {
    service: Last<Service>,
    config_map: Last<ConfigMap>,
    identity: Last<ConfigMap>,
    network: Last<NetworkPolicy>,
    deployment: Last<Deployment>,
    replicas: Replicas,
    status: LastStatus,
}

/// What a round found and did.
#[derive(Default)]
struct Outcome {
    /// Who else has the server's name.
    taken: Option<String>,
    /// What is wrong with the server and its policies.
    diagnostics: Vec<Diagnostic>,
    bundle: Option<Bundle>,
    wanted: Option<String>,
    deployment: Option<Arc<Deployment>>,
    policies: usize,
    /// When the list of replicas may be written anew, where it is not up to date.
    replicas_due: Option<Duration>,
    /// The first fault; later steps that do not need the failed one were done.
    error: Option<Error>,
}

impl Outcome {
    /// Keeps the first fault.
    fn note<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        result.map_err(|error| self.error.get_or_insert(error)).ok()
    }
}

impl Reconcile for Servers {
    type Key = Key;
    type Memory = Memory;
    const NAME: &'static str = "mcpserver";

    fn exists(&self, key: &Key) -> bool {
        self.world.servers.get(key).is_some()
    }

    async fn reconcile(&self, key: &Key, memory: &mut Memory) -> Result<Next, Error> {
        let Some(entry) = self.world.servers.get(key) else {
            return Ok(Next::WhenWoken);
        };
        if entry.meta.deletion_timestamp.is_some() {
            return Ok(Next::WhenWoken);
        }
        if !self.world.ready() {
            return Err(Error::NoKeys);
        }
        let outcome = self.act(key, &entry, memory).await;
        if let Some(error @ Error::Removing { .. }) = outcome.error {
            return Err(error); // Not worth telling: it passes.
        }
        let written = self.report(key, &entry, &outcome, memory).await?;
        match (outcome.error, written) {
            (Some(error), _) => Err(error),
            (None, Written::Stale) => Ok(Next::After(STALE)),
            (None, _) => Ok(match (outcome.replicas_due, outcome.taken) {
                (Some(due), _) => Next::After(due),
                (None, Some(_)) => Next::After(LOOK_AGAIN),
                (None, None) => Next::WhenWoken,
            }),
        }
    }

    fn retired(&self, key: &Key) {
        self.board.forget(key);
        if let Some(deliveries) = self.deliveries.get() {
            deliveries.wake(key);
        }
        if let Some(orphans) = self.orphans.get() {
            orphans.wake(key);
        }
    }
}

impl Servers {
    async fn act(&self, key: &Key, entry: &Entry<McpServer>, memory: &mut Memory) -> Outcome {
        let (client, world) = (&self.client, &self.world);
        let owner = Owner {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            uid: entry.meta.uid.clone().unwrap_or_default(),
        };
        let map_name = config_map_name(&key.name);
        let server = entry.decoded.as_ref().ok();
        let is_told = server.is_some_and(|server| server.spec.identity.is_some());
        let is_injected = server.is_some_and(|server| server.spec.injected.is_some());
        let is_run = server.is_some() && !is_injected;
        // Also of one that is injected no more, while pods from then are left.
        let outlives = is_injected || self.has_pods_of_others(key);
        let keys_name = identity_map_name(&key.name);
        let (services, deployments, maps, keys, networks) = futures::join!(
            find(client, &world.services, &owner, &key.name, &memory.service),
            // An injected server's name may be that of a Deployment of its users.
            find_if(
                is_run,
                client,
                &world.deployments,
                &owner,
                &key.name,
                &memory.deployment
            ),
            find(
                client,
                &world.config_maps,
                &owner,
                &map_name,
                &memory.config_map
            ),
            find_if(
                is_told,
                client,
                &world.config_maps,
                &owner,
                &keys_name,
                &memory.identity
            ),
            self.find_network(&owner, &memory.network),
        );
        let mut outcome = Outcome::default();
        let services = outcome.note(services);
        let deployments = outcome.note(deployments).flatten();
        let maps = outcome.note(maps);
        let keys = outcome.note(keys).flatten();
        let networks = outcome.note(networks);
        outcome.taken = taken(services.as_ref())
            .or_else(|| taken(deployments.as_ref().filter(|_| is_run)))
            .or_else(|| taken(maps.as_ref()))
            .or_else(|| taken(keys.as_ref().filter(|_| is_told)))
            .or_else(|| taken(networks.as_ref()));
        // Where the name is not free, only the bundle of what is there is kept up.
        let may_write = outcome.taken.is_none() && server.is_some();

        // The Service comes first: the bundle has its address.
        let wanted = server.filter(|_| may_write);
        let wanted = wanted.map(|server| service(&owner, server));
        let service = self
            .ensure(services, wanted, &mut memory.service, &mut outcome)
            .await;
        let addresses = service.map(|s| cluster_ips(&s)).unwrap_or_default();
        self.compile(key, entry, &addresses, &mut outcome);
        let asked = may_write.then_some(is_told);
        let published = self
            .publish(&owner, keys, asked, &mut memory.identity, &mut outcome)
            .await;
        if may_write || maps.as_ref().is_some_and(|maps| maps.ours().is_some()) {
            let published = published.filter(|_| is_told);
            self.program(
                &owner,
                server.map(|_| outlives),
                maps,
                published,
                memory,
                &mut outcome,
            )
            .await;
        }
        // Before the pods, so that new ones find it.
        let wanted = server.filter(|_| may_write);
        let wanted = wanted.map(|server| {
            let policy = network_policy(&owner, &server.spec, &world.settings);
            if outlives { kept(policy) } else { policy }
        });
        self.ensure(networks, wanted, &mut memory.network, &mut outcome)
            .await;
        let sidecar = &world.settings.sidecar;
        let wanted = server.filter(|_| may_write).and_then(|server| {
            let run = server.spec.deployment.as_ref()?;
            Some(deployment(&owner, &server.spec, run, sidecar))
        });
        let unwanted = deployments.as_ref().and_then(|found| found.ours());
        let unwanted = unwanted.filter(|_| may_write && is_injected).cloned();
        outcome.deployment = self
            .ensure(deployments, wanted, &mut memory.deployment, &mut outcome)
            .await;
        if let Some(deployment) = unwanted {
            outcome.note(delete(client, &*deployment).await);
            outcome.deployment = None;
        }
        outcome
    }

    /// Writes the bundle and the list of replicas, and has them delivered. Whether
    /// they outlive the server is not known of one that cannot be decoded.
    async fn program(
        &self,
        owner: &Owner,
        outlives: Option<bool>,
        maps: Option<Found<ConfigMap>>,
        identity: Option<BTreeSet<String>>,
        memory: &mut Memory,
        outcome: &mut Outcome,
    ) {
        let key = Key::new(&owner.namespace, &owner.name);
        let there = maps.as_ref().and_then(|maps| maps.ours());
        let there = there.map(|map| &**map);
        let version = self.version(&key, there);
        let bundle = outcome.bundle.as_ref();
        let bundle = bundle.map(|bundle| bundle.to_json_version(version));
        let bundle = outcome.note(bundle.transpose().map_err(Error::from));
        let Some(bundle) = bundle.flatten() else {
            return;
        };
        let pods = self.world.pods.group(&key);
        let list = memory.replicas.list(&pods, there);
        let Some((peers, due)) = outcome.note(list.map_err(Error::from)) else {
            return;
        };
        outcome.replicas_due = due;
        let wanted = Wanted {
            bundle: bundle::hash(bundle.as_bytes()),
            peers: bundle::hash(peers.as_bytes()),
            identity,
        };
        outcome.wanted = Some(wanted.bundle.clone());
        // Of a server that cannot be decoded, the map stays as it is.
        let is_kept =
            outlives.unwrap_or_else(|| there.is_some_and(|map| is_kept(map, &owner.name)));
        let map = config_map(owner, bundle, peers);
        let map = Some(if is_kept { kept(map) } else { map });
        let map = self
            .ensure(maps, map, &mut memory.config_map, outcome)
            .await;
        if map.is_some() {
            self.deliver(&key, wanted);
        }
    }

    /// Whether a pod that Toolward did not make has the sidecar of the server.
    fn has_pods_of_others(&self, key: &Key) -> bool {
        let pods = self.world.pods.group(key);
        let is_asked = |pod: &Pod| pod.annotations().contains_key(SERVER_ANNOTATION);
        pods.iter().any(|pod| is_asked(pod) && !is_finished(pod))
    }

    async fn find_network(
        &self,
        owner: &Owner,
        last: &Last<NetworkPolicy>,
    ) -> Result<Found<NetworkPolicy>, Error> {
        let (table, name) = (&self.world.network_policies, &owner.name);
        find(&self.client, table, owner, &network_policy_name(name), last).await
    }

    /// Publishes the keys of the sidecars that there are, or none where none is
    /// asked for; gives the thumbprints of those that are published then. `asked`
    /// is none where nothing may be written.
    async fn publish(
        &self,
        owner: &Owner,
        found: Option<Found<ConfigMap>>,
        asked: Option<bool>,
        last: &mut Last<ConfigMap>,
        outcome: &mut Outcome,
    ) -> Option<BTreeSet<String>> {
        let before = found.as_ref()?.ours().map(|map| Published::of(map));
        let key = Key::new(&owner.namespace, &owner.name);
        let pods = self.world.pods.group(&key);
        let pods = pods.iter().filter(|pod| !is_finished(pod));
        let pods: BTreeSet<_> = pods.filter_map(|pod| pod.metadata.uid.clone()).collect();
        let wanted = match asked {
            Some(true) => {
                let newer = self.board.keys(&key, &pods);
                Some(before.unwrap_or_default().updated(newer, &pods))
            }
            Some(false) if before.is_some() => Some(Published::default()),
            _ => None,
        };
        let data = wanted.map(|keys| keys.data()).transpose();
        let data = outcome.note(data.map_err(Error::from)).flatten();
        let map = data.map(|data| identity_map(owner, data));
        let map = self.ensure(found, map, last, outcome).await?;
        Some(Published::of(&map).kids())
    }

    /// Makes an object what it is to be, where it may be written to.
    async fn ensure<K: Child>(
        &self,
        found: Option<Found<K>>,
        wanted: Option<K>,
        last: &mut Last<K>,
        outcome: &mut Outcome,
    ) -> Option<Arc<K>> {
        let found = found?;
        match wanted {
            Some(wanted) if found.foreign().is_none() => {
                outcome.note(apply(&self.client, found.ours(), wanted, last).await)
            }
            _ => found.ours().cloned(),
        }
    }

    fn compile(
        &self,
        key: &Key,
        entry: &Entry<McpServer>,
        addresses: &[String],
        outcome: &mut Outcome,
    ) {
        let policies = self.world.policies_of(key);
        outcome.policies = policies.len();
        match &entry.decoded {
            Ok(server) => {
                let compiled = self.world.compile(key, server, &policies, addresses);
                outcome.bundle = Some(compiled.bundle);
                outcome.diagnostics = compiled.diagnostics;
            }
            Err(error) => {
                outcome.bundle =
                    Some(
                        self.world
                            .deny_all(key, entry.meta.uid.as_deref(), addresses, error),
                    );
                outcome.diagnostics = vec![Diagnostic {
                    policy: None,
                    path: String::new(),
                    message: error.clone(),
                    reason: Reason::Undecodable,
                }];
            }
        }
    }

    /// The newest version of the wire form that all running sidecars read.
    fn version(&self, key: &Key, before: Option<&ConfigMap>) -> u32 {
        let sights = self.board.sights(key);
        let pods = self.world.pods.group(key);
        let running = pods.iter().filter(|pod| delivery::can_be_asked(pod));
        let reads = running.map(|pod| {
            let sight = sights.get(pod.metadata.uid.as_deref().unwrap_or_default())?;
            sight.report.as_ref().map(|report| report.bundle.reads)
        });
        wire::common(reads, before.and_then(wire::of))
    }

    fn deliver(&self, key: &Key, wanted: Wanted) {
        if self.board.want(key, wanted)
            && let Some(deliveries) = self.deliveries.get()
        {
            deliveries.wake(key);
        }
    }

    /// Writes the status, and Events of what is new in it.
    async fn report(
        &self,
        key: &Key,
        entry: &Entry<McpServer>,
        outcome: &Outcome,
        memory: &mut Memory,
    ) -> Result<Written, Error> {
        let pods = self.world.pods.group(key);
        let sights = self.board.sights(key);
        let unseen = |pod: &Arc<k8s_openapi::api::core::v1::Pod>| {
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            delivery::can_be_asked(pod) && !sights.contains_key(uid)
        };
        if self.board.wanted(key).is_some() && pods.iter().any(unseen) {
            return Ok(Written::Same); // Delivery asks at once, and then wakes us.
        }
        let bundle = outcome.bundle.as_ref();
        let server = entry.decoded.as_ref().ok();
        let decoded = server.is_some();
        let injected = server.filter(|server| server.spec.injected.is_some());
        let injection = injected
            .map(|server| injection::Pods::new(&pods, &server.spec, self.world.missing.of(key)));
        let seen = status::Seen {
            name: &key.name,
            endpoint: bundle
                .filter(|_| decoded)
                .map(|bundle| (bundle.url.as_str(), bundle.audience.as_str())),
            refused: refused(outcome),
            apply_error: outcome.error.as_ref().map(ToString::to_string),
            policies: outcome.policies,
            wanted: outcome.wanted.as_deref(),
            limits: bundle.is_some_and(|bundle| !bundle.limits.is_empty()),
            anonymous: bundle.is_some_and(|bundle| bundle.authentication.anonymous),
            deployment: outcome.deployment.as_deref(),
            injection: injection.as_ref(),
            pods: pods.iter().map(|pod| &**pod).collect(),
            sights: &sights,
        };
        let stamp = Stamp {
            before: &entry.status,
            generation: entry.generation(),
            now: Timestamp::now(),
        };
        let status = status::status(&seen, stamp);
        let json = serde_json::to_value(&status)?;
        let written = write(&self.client, key, entry, &json, &mut memory.status).await?;
        if written == Written::Yes {
            self.metrics.wrote_status();
            let before = &entry.status;
            let new_bundle = before["bundle"]["wanted"] != json["bundle"]["wanted"];
            let news = news(before, &status.conditions, new_bundle);
            self.events.publish::<McpServer>(&entry.meta, news).await;
        }
        Ok(written)
    }
}

fn taken<K>(found: Option<&Found<K>>) -> Option<String> {
    found?.foreign().map(str::to_owned)
}

/// The Service's addresses as a `Host` header carries them.
fn cluster_ips(service: &Service) -> Vec<String> {
    let spec = service.spec.as_ref();
    let ips = spec.and_then(|spec| spec.cluster_ips.as_ref());
    let host = |ip: &String| match ip.parse().ok()? {
        IpAddr::V4(ip) => Some(ip.to_string()),
        IpAddr::V6(ip) => Some(format!("[{ip}]")),
    };
    ips.into_iter().flatten().filter_map(host).collect()
}

/// Why the server is refused, where it is.
fn refused(outcome: &Outcome) -> Option<(Reason, String)> {
    if let Some(taken) = &outcome.taken {
        let message = format!(
            "{taken} exists and is not Toolward's; it was left as it is. Remove or rename it, or give this McpServer another name."
        );
        return Some((Reason::NameTaken, message));
    }
    let first = outcome.diagnostics.first()?;
    let reason = match (first.reason, &first.policy) {
        (Reason::Undecodable, Some(_)) => Reason::PolicyInvalid,
        (reason, _) => reason,
    };
    let faults: Vec<_> = outcome.diagnostics.iter().map(fault).collect();
    let message = format!(
        "{}. Until this is mended, every call is denied.",
        faults.join("; ")
    );
    Some((reason, message))
}

fn fault(diagnostic: &Diagnostic) -> String {
    if diagnostic.path.is_empty() {
        diagnostic.message.clone()
    } else {
        diagnostic.to_string()
    }
}
