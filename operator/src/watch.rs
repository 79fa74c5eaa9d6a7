//! Watches that fill the tables and wake whom a change concerns.

use std::{collections::BTreeSet, fmt::Debug, sync::Arc};

use futures::{StreamExt, pin_mut};
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;

use crate::{
    apply::Child,
    delivery::Delivery,
    entry::{Entry, Kind, every_server},
    isolation::Isolations,
    leader::Fence,
    names::{Key, SERVER_LABEL},
    orphans::Orphans,
    policies::Policies,
    server::Servers,
    table::{Change, Row, Table},
    workers::Workers,
    world::World,
};

/// Whom changes concern.
#[derive(Clone)]
pub struct Wakers {
    /// What is known.
    pub world: Arc<World>,
    /// Reconcilers of servers.
    pub servers: Arc<Workers<Servers>>,
    /// Reconcilers of policies.
    pub policies: Arc<Workers<Policies>>,
    /// Delivery of bundles.
    pub deliveries: Arc<Workers<Delivery>>,
    /// Those who try ports from outside.
    pub isolations: Arc<Workers<Isolations>>,
    /// Reconcilers of what servers left.
    pub orphans: Arc<Workers<Orphans>>,
    /// Open while this replica is the one that acts.
    pub fence: Arc<Fence>,
}

impl Wakers {
    /// Everything has to be looked at: all is known now and this replica acts, or
    /// the keys changed.
    pub fn everything(&self) {
        for key in self.world.servers.keys() {
            self.servers.wake(&key);
        }
        for key in self.world.policies.keys() {
            self.policies.wake(&key);
        }
        for key in self.world.config_maps.servers() {
            self.orphans.wake(&key);
        }
    }

    /// Before all is known nobody can act, and only one replica may; then
    /// [`Self::everything`] is woken.
    fn when_ready(&self, change: &Change, wake: fn(&Self, &Change)) {
        if self.fence.is_open() && self.world.ready() {
            wake(self, change);
        }
    }

    /// A server came, changed or went.
    pub fn server(&self, change: &Change) {
        self.servers.wake(&change.key);
        self.isolations.wake(&change.key);
        self.orphans.wake(&change.key);
        self.policies_of(&change.key);
    }

    /// A policy came, changed or went.
    pub fn policy(&self, change: &Change) {
        self.policies.wake(&change.key);
        for target in &change.groups {
            if *target == every_server(&target.namespace) {
                let all = self.world.servers.keys_in(&target.namespace);
                all.iter().for_each(|key| self.servers.wake(key));
            } else {
                self.servers.wake(target);
            }
        }
    }

    /// Something that a server owns came, changed or went.
    pub fn child(&self, change: &Change) {
        change.groups.iter().for_each(|key| self.servers.wake(key));
    }

    /// As [`Self::child`]; it may be that of a server that is gone.
    pub fn config_map(&self, change: &Change) {
        self.child(change);
        change.groups.iter().for_each(|key| self.orphans.wake(key));
    }

    /// As [`Self::child`]; policies speak of the number of replicas.
    pub fn deployment(&self, change: &Change) {
        self.child(change);
        change.groups.iter().for_each(|key| self.policies_of(key));
    }

    /// As [`Self::child`]; a new pod is asked what it has, and its ports are tried.
    /// It may be the last one of a server that is gone, or one more of a server
    /// whose pods are counted for policies.
    pub fn pod(&self, change: &Change) {
        for key in &change.groups {
            self.deliveries.wake(key);
            self.isolations.wake(key);
            self.orphans.wake(key);
            if self.world.is_injected(key) {
                self.policies_of(key);
            }
        }
        self.child(change);
    }

    fn policies_of(&self, server: &Key) {
        let policies = self.world.policies_of(server);
        let keys: BTreeSet<_> = policies.iter().map(|policy| policy.key()).collect();
        keys.iter().for_each(|key| self.policies.wake(key));
    }
}

/// Watches one of Toolward's own kinds: as dynamic objects, so that one that
/// cannot be decoded is seen as well, and its deletion too.
pub async fn own<T: Kind>(
    client: Client,
    wakers: Wakers,
    rows: fn(&World) -> &Table<Entry<T>>,
    wake: fn(&Wakers, &Change),
) {
    let resource = ApiResource::erase::<T>(&());
    let api = Api::<DynamicObject>::all_with(client, &resource);
    let rows = rows(&wakers.world);
    let read = |object: DynamicObject| {
        let before = rows.get(&Key::of(&object));
        Entry::read(object, before.as_deref())
    };
    let wake = |change: &Change| wakers.when_ready(change, wake);
    let config = watcher::Config::default();
    follow(api, config, &resource.kind, rows, read, wake).await;
}

/// Watches a kind of which servers own objects.
pub async fn children<K: Child>(
    client: Client,
    wakers: Wakers,
    rows: fn(&World) -> &Table<K>,
    wake: fn(&Wakers, &Change),
) {
    let config = watcher::Config::default().labels(SERVER_LABEL);
    let strip = |mut object: K| {
        object.meta_mut().managed_fields = None;
        object
    };
    let rows = rows(&wakers.world);
    let wake = |change: &Change| wakers.when_ready(change, wake);
    follow(Api::all(client), config, &K::kind(&()), rows, strip, wake).await;
}

async fn follow<K, V>(
    api: Api<K>,
    config: watcher::Config,
    kind: &str,
    rows: &Table<V>,
    read: impl Fn(K) -> V,
    wake: impl Fn(&Change),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    V: Row,
{
    let events = watcher(api, config).default_backoff();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => rows.apply(map(event, &read)).iter().for_each(&wake),
            Err(error) => tracing::warn!(kind, %error, "watch failed; it is tried again"),
        }
    }
}

fn map<K, V>(event: Event<K>, read: impl Fn(K) -> V) -> Event<V> {
    match event {
        Event::Apply(object) => Event::Apply(read(object)),
        Event::Delete(object) => Event::Delete(read(object)),
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(read(object)),
        Event::InitDone => Event::InitDone,
    }
}
