//! Says of each `McpToolPolicy` whether it is in force.

use std::{sync::Arc, time::Duration};

use crds::McpToolPolicy;
use jiff::Timestamp;
use kube::Client;

use crate::{
    entry::Entry,
    error::Error,
    events::{Events, news},
    injection,
    metrics::Metrics,
    names::Key,
    status::{
        Stamp,
        policy::{Target, status, undecodable},
        server::desired_replicas,
    },
    workers::{Next, Reconcile},
    world::World,
    writer::{LastStatus, Written, write},
};

/// As for servers.
const STALE: Duration = Duration::from_secs(1);

/// The reconciler of policies.
pub struct Policies {
    /// To write with.
    pub client: Client,
    /// What is known.
    pub world: Arc<World>,
    /// Where Events go.
    pub events: Events,
    /// What is counted.
    pub metrics: Metrics,
}

impl Reconcile for Policies {
    type Key = Key;
    type Memory = LastStatus;
    const NAME: &'static str = "mcptoolpolicy";

    fn exists(&self, key: &Key) -> bool {
        self.world.policies.get(key).is_some()
    }

    async fn reconcile(&self, key: &Key, last: &mut LastStatus) -> Result<Next, Error> {
        let Some(entry) = self.world.policies.get(key) else {
            return Ok(Next::WhenWoken);
        };
        if entry.meta.deletion_timestamp.is_some() {
            return Ok(Next::WhenWoken);
        }
        if !self.world.ready() {
            return Err(Error::NoKeys);
        }
        let stamp = Stamp {
            before: &entry.status,
            generation: entry.generation(),
            now: Timestamp::now(),
        };
        let status = match &entry.decoded {
            Ok(policy) => {
                let limits = policy.spec.limits.as_ref();
                let limits = limits.is_some_and(|limits| !limits.is_empty());
                status(&self.targets(key, policy), limits, stamp)
            }
            Err(error) => undecodable(error, stamp),
        };
        let json = serde_json::to_value(&status)?;
        let written = write(&self.client, key, &entry, &json, last).await?;
        match written {
            Written::Stale => return Ok(Next::After(STALE)),
            Written::Same => {}
            Written::Yes => self.tell(&entry, &status.conditions).await,
        }
        Ok(Next::WhenWoken)
    }
}

impl Policies {
    async fn tell(&self, entry: &Entry<McpToolPolicy>, conditions: &[crds::Condition]) {
        self.metrics.wrote_status();
        let news = news(&entry.status, conditions, false);
        self.events
            .publish::<McpToolPolicy>(&entry.meta, news)
            .await;
    }

    fn targets(&self, key: &Key, policy: &McpToolPolicy) -> Vec<Target> {
        let refs = policy.spec.target_refs.iter();
        refs.map(|target| self.target(key, Key::new(&key.namespace, &target.name)))
            .collect()
    }

    fn target(&self, policy: &Key, server: Key) -> Target {
        let entry = self.world.servers.get(&server);
        let decoded = entry.as_ref().and_then(|entry| entry.decoded.as_ref().ok());
        let faults = decoded.map(|decoded| {
            let policies = self.world.policies_of(&server);
            let compiled = self.world.compile(&server, decoded, &policies, &[]);
            let faults = compiled.diagnostics.into_iter();
            faults
                .filter(|fault| fault.policy.as_deref() == Some(&policy.name))
                .map(|fault| format!("{}: {}", fault.path, fault.message))
                .collect()
        });
        let asked = decoded.and_then(|server| server.spec.deployment.as_ref()?.replicas);
        let is_injected = decoded.is_some_and(|server| server.spec.injected.is_some());
        Target {
            exists: entry.is_some(),
            faults: faults.unwrap_or_default(),
            replicas: asked.unwrap_or_else(|| self.running(&server, is_injected)),
            name: server.name,
        }
    }

    /// How many replicas a server has that does not say how many.
    fn running(&self, server: &Key, is_injected: bool) -> i32 {
        if is_injected {
            let pods = self.world.pods.group(server);
            return i32::try_from(injection::injected(&pods)).unwrap_or(i32::MAX);
        }
        let deployment = self.world.deployments.get(server);
        deployment.map_or(0, |deployment| desired_replicas(&deployment))
    }
}
