//! Pods of injected servers: those that have the sidecar, and those that ask for
//! it and do not have it.
//!
//! The webhook labels each pod that it puts the sidecar into, and pods with that
//! label are watched. A pod that was there before, or came while its namespace had
//! not opted in, has the annotation alone: in namespaces with an injected server
//! such pods are looked for, again and again, by their metadata. Invariant: an
//! annotation grants nothing, so what it says is only counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crds::McpServerSpec;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, PartialObjectMeta},
};

use crate::{
    error::{Error, call},
    inject::{Wanted, has_sidecar},
    names::{Key, SERVER_ANNOTATION, SERVER_LABEL},
    status::pod::is_live,
    world::World,
};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(20);
/// Time for one namespace.
const TIMEOUT: Duration = Duration::from_secs(20);
/// A pod is told of within a minute, also where its namespace takes all that time. So
/// far, 16 namespaces may.
const _: () = assert!(PAUSE.as_secs() + TIMEOUT.as_secs() < 60);
/// Pods in one answer of the API server, and answers for one namespace.
const CHUNK: u32 = 500;
const MAX_CHUNKS: usize = 40;
/// Namespaces that are looked at at the same time.
const AT_ONCE: usize = 16;

/// How many live pods of a server have the sidecar.
pub fn injected(pods: &[Arc<Pod>]) -> usize {
    let live = pods.iter().filter(|pod| is_live(pod));
    live.filter(|pod| has_sidecar(pod)).count()
}

/// A pod that has to be made anew.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stale {
    /// Its name.
    pub pod: String,
    /// What to do, to go on with after a colon.
    pub remedy: String,
}

/// The pods of one injected server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// How many have the sidecar.
    pub injected: usize,
    /// Of these, those whose sidecar was started with an earlier spec, by name.
    pub outdated: Vec<Stale>,
    /// Those that ask for the sidecar and do not have it, by name.
    pub missing: Vec<Stale>,
}

impl Pods {
    /// Of pods that are watched, and of those that were found beside them.
    pub fn new(watched: &[Arc<Pod>], spec: &McpServerSpec, mut missing: Vec<Stale>) -> Self {
        let live = watched.iter().filter(|pod| is_live(pod));
        let (injected, bare): (Vec<_>, Vec<_>) = live.partition(|pod| has_sidecar(pod));
        missing.extend(bare.iter().map(|pod| Stale::labelled(pod)));
        missing.sort();
        let wanted = Wanted::by(spec);
        let outdated = injected.iter().filter(|pod| !wanted.is_in(pod));
        let mut outdated: Vec<_> = outdated.map(|pod| Stale::of(&***pod)).collect();
        outdated.sort();
        Self {
            injected: injected.len(),
            outdated,
            missing,
        }
    }
}

impl Stale {
    /// One that has the label and not the sidecar: where the annotation is missing, no
    /// restart would help.
    fn labelled(pod: &Pod) -> Self {
        if pod.annotations().contains_key(SERVER_ANNOTATION) {
            return Self::of(pod);
        }
        let server = pod.labels().get(SERVER_LABEL).map_or("", String::as_str);
        Self {
            pod: pod.name_any(),
            remedy: format!(
                "write {SERVER_ANNOTATION}: {server} as an annotation of the template first, in the place of the label, which the webhook sets"
            ),
        }
    }

    /// What makes a pod anew is found by who made it.
    fn of<K: ResourceExt>(pod: &K) -> Self {
        let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
        let mut owners = pod.owner_references().iter();
        let owner = owners.find(|owner| owner.controller == Some(true));
        let restart =
            |what: String| format!("`kubectl rollout restart --namespace {namespace} {what}`");
        let remedy = match owner.map(|owner| (owner.kind.as_str(), owner.name.as_str())) {
            Some((kind @ ("StatefulSet" | "DaemonSet"), name)) => {
                restart(format!("{}/{name}", kind.to_ascii_lowercase()))
            }
            Some(("ReplicaSet", set)) => match deployment(pod, set) {
                Some(name) => restart(format!("deployment/{name}")),
                None => format!("`kubectl delete --namespace {namespace} pod/{name}`"),
            },
            Some((kind, owner)) => format!("delete {kind} {owner} and create it again"),
            None => format!("delete Pod {name} and create it again"),
        };
        Self { pod: name, remedy }
    }
}

/// The Deployment of a ReplicaSet, by how it names them.
fn deployment<'a, K: ResourceExt>(pod: &K, set: &'a str) -> Option<&'a str> {
    let hash = pod.labels().get("pod-template-hash")?;
    set.strip_suffix(hash.as_str())?.strip_suffix('-')
}

/// Pods of one namespace that carry the annotation and not the label, by server.
type Found = BTreeMap<String, Vec<Stale>>;

/// What was found at the last look, by namespace.
#[derive(Debug, Default)]
pub struct Missing(Mutex<BTreeMap<String, Found>>);

impl Missing {
    /// The pods of a server.
    pub fn of(&self, server: &Key) -> Vec<Stale> {
        self.locked(|all| {
            let found = all.get(&server.namespace);
            let pods = found.and_then(|found| found.get(&server.name));
            pods.cloned().unwrap_or_default()
        })
    }

    /// Takes in what was found; gives the servers for which that is news.
    fn set(&self, namespace: &str, found: Found) -> BTreeSet<Key> {
        self.locked(|all| {
            let before = all
                .insert(namespace.to_owned(), found.clone())
                .unwrap_or_default();
            let names = before.keys().chain(found.keys());
            let news = names.filter(|name| before.get(*name) != found.get(*name));
            news.map(|name| Key::new(namespace, name)).collect()
        })
    }

    fn keep(&self, namespaces: &BTreeSet<String>) {
        self.locked(|all| all.retain(|namespace, _| namespaces.contains(namespace)));
    }

    fn locked<T>(&self, f: impl FnOnce(&mut BTreeMap<String, Found>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Looks again and again; tells the servers for which there is news.
pub async fn follow(client: &Client, world: &World, news: impl Fn(Key)) {
    loop {
        if world.ready() {
            look(client, world, &news).await;
        }
        let pause = PAUSE.mul_f64(rand::random_range(0.9..=1.0));
        tokio::time::sleep(pause).await;
    }
}

/// Looks once at each namespace with an injected server; tells the servers for
/// which there is news as it is found: no namespace waits for another one.
pub async fn look(client: &Client, world: &World, news: impl Fn(Key)) {
    let namespaces = namespaces(world);
    world.missing.keep(&namespaces);
    let news = &news;
    stream::iter(&namespaces)
        .for_each_concurrent(AT_ONCE, |namespace| async move {
            match tokio::time::timeout(TIMEOUT, find(client, namespace)).await {
                Ok(Ok(found)) => world
                    .missing
                    .set(namespace, found)
                    .into_iter()
                    .for_each(news),
                Ok(Err(error)) => {
                    tracing::warn!(namespace, %error, "cannot look for pods without the sidecar");
                }
                Err(_) => tracing::warn!(
                    namespace,
                    "looking for pods without the sidecar takes too long"
                ),
            }
        })
        .await;
}

/// Those with an injected server.
fn namespaces(world: &World) -> BTreeSet<String> {
    let keys = world.servers.keys().into_iter();
    let injected = keys.filter(|key| world.is_injected(key));
    injected.map(|key| key.namespace).collect()
}

async fn find(client: &Client, namespace: &str) -> Result<Found, Error> {
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    let mut params = ListParams::default()
        .labels(&format!("!{SERVER_LABEL}"))
        .fields("status.phase!=Succeeded,status.phase!=Failed")
        .limit(CHUNK);
    let mut found = Found::new();
    let mut more = true;
    for _ in 0..MAX_CHUNKS {
        let action = || format!("listing pods of namespace {namespace}");
        let list = call(action, api.list_metadata(&params)).await?;
        for pod in &list.items {
            if let Some(server) = asked(pod) {
                let bare = Stale::of(pod);
                found.entry(server.to_owned()).or_default().push(bare);
            }
        }
        match list.metadata.continue_.filter(|next| !next.is_empty()) {
            Some(next) => params = params.continue_token(&next),
            None => {
                more = false;
                break;
            }
        }
    }
    if more {
        tracing::warn!(namespace, "it has more pods than are looked at");
    }
    found.values_mut().for_each(|pods| pods.sort());
    Ok(found)
}

/// The server whose sidecar a pod asks for, unless it is about to end.
fn asked(pod: &PartialObjectMeta<Pod>) -> Option<&str> {
    let is_ending = pod.metadata.deletion_timestamp.is_some();
    let server = pod.annotations().get(SERVER_ANNOTATION)?;
    (!is_ending).then_some(server.as_str())
}

#[cfg(test)]
mod tests;
