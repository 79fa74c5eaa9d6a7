//! What a deleted `McpServer` leaves: the bundle of pods that Toolward did not make.
//!
//! Garbage collection takes what belongs to a server, but not the bundle of an
//! injected one: its pods run on, and would run on under the last policy.
//! Invariants:
//! - While such a pod is left, its bundle denies everything.
//! - What is written over or deleted is the version that was looked at: a server
//!   that comes under the name takes the bundle over.

use std::sync::{Arc, OnceLock};

use k8s_openapi::api::{
    core::v1::{ConfigMap, Pod},
    networking::v1::NetworkPolicy,
};
use kube::{Api, Client, api::ListParams};
use policy::{bundle, peers::Peers};

use crate::{
    apply::{Last, apply_to, delete, is_kept, newest},
    board::{Board, Wanted},
    delivery::Delivery,
    desired::{Owner, config_map, kept},
    error::{Error, call},
    names::{Key, SERVER_LABEL, config_map_name, network_policy_name},
    server::wire,
    status::pod::is_finished,
    workers::{Next, Reconcile, Workers},
    world::World,
};

/// Why nobody may call.
const WHY: &str = "the McpServer of this pod was deleted; create it again, or remove the annotation toolward.dev/server from the pod's template";

/// The reconciler of servers that are gone.
pub struct Orphans {
    /// To write with.
    pub client: Client,
    /// What is known.
    pub world: Arc<World>,
    /// Wanted and seen bundles.
    pub board: Arc<Board>,
    /// Woken when another bundle is wanted.
    pub deliveries: Arc<OnceLock<Arc<Workers<Delivery>>>>,
}

impl Reconcile for Orphans {
    type Key = Key;
    type Memory = Last<ConfigMap>;
    const NAME: &'static str = "orphan";

    fn exists(&self, key: &Key) -> bool {
        self.left(key).is_some()
    }

    async fn reconcile(&self, key: &Key, last: &mut Last<ConfigMap>) -> Result<Next, Error> {
        let Some(map) = self.left(key) else {
            return Ok(Next::WhenWoken);
        };
        if !self.world.ready() {
            return Err(Error::NoKeys);
        }
        let map = newest(map, last);
        if self.has_pods(key).await? {
            self.deny(key, &map, last).await?;
        } else {
            self.remove(key, &map).await?;
        }
        Ok(Next::WhenWoken) // Pods that end, and the map that goes, wake us.
    }

    fn retired(&self, key: &Key) {
        self.board.forget_orphan(key);
        self.wake(key);
    }
}

impl Orphans {
    /// The bundle that a server left.
    fn left(&self, server: &Key) -> Option<Arc<ConfigMap>> {
        // One that waits for its finalizers is deleted all the same.
        let entry = self.world.servers.get(server);
        if entry.is_some_and(|entry| entry.meta.deletion_timestamp.is_none()) {
            return None;
        }
        let name = config_map_name(&server.name);
        let map = self
            .world
            .config_maps
            .get(&Key::new(&server.namespace, &name))?;
        is_kept(&*map, &server.name).then_some(map)
    }

    /// Whether a pod of the server is left. The API server is asked where none is
    /// known: one may just have come.
    async fn has_pods(&self, server: &Key) -> Result<bool, Error> {
        let pods = self.world.pods.group(server);
        if pods.iter().any(|pod| !is_finished(pod)) {
            return Ok(true);
        }
        let api = Api::<Pod>::namespaced(self.client.clone(), &server.namespace);
        let params = ListParams::default()
            .labels(&format!("{SERVER_LABEL}={}", server.name))
            .fields("status.phase!=Succeeded,status.phase!=Failed")
            .limit(1);
        let action = || format!("looking for pods of {server}");
        let list = call(action, api.list_metadata(&params)).await?;
        Ok(!list.items.is_empty())
    }

    /// Writes a bundle that denies everything, in the form that the one before had,
    /// and has it delivered.
    async fn deny(
        &self,
        server: &Key,
        map: &Arc<ConfigMap>,
        last: &mut Last<ConfigMap>,
    ) -> Result<(), Error> {
        let version = wire::common(std::iter::once(wire::of(map)), None);
        let bundle = self.world.deny_all(server, None, &[], WHY);
        let bundle = bundle.to_json_version(version)?;
        // Nobody is forwarded to: without a uid, replicas do not know each other.
        let peers = Peers::new([]).to_json()?;
        let wanted = Wanted {
            bundle: bundle::hash(bundle.as_bytes()),
            peers: bundle::hash(peers.as_bytes()),
            identity: None,
        };
        let owner = Owner {
            namespace: server.namespace.clone(),
            name: server.name.clone(),
            uid: String::new(),
        };
        let denying = kept(config_map(&owner, bundle, peers));
        apply_to(&self.client, map, denying, last).await?;
        if self.board.want_orphan(server, wanted) {
            tracing::info!(%server, "deleted, and pods still have its sidecar: they deny everything");
            self.wake(server);
        }
        Ok(())
    }

    /// Removes what is left: no pod needs it.
    async fn remove(&self, server: &Key, map: &ConfigMap) -> Result<(), Error> {
        let name = network_policy_name(&server.name);
        let api = Api::<NetworkPolicy>::namespaced(self.client.clone(), &server.namespace);
        let action = || format!("looking for NetworkPolicy {name}");
        let policy = call(action, api.get_opt(&name)).await?;
        if let Some(policy) = policy.filter(|policy| is_kept(policy, &server.name)) {
            delete(&self.client, &policy).await?;
        }
        delete(&self.client, map).await
    }

    fn wake(&self, server: &Key) {
        if let Some(deliveries) = self.deliveries.get() {
            deliveries.wake(server);
        }
    }
}
