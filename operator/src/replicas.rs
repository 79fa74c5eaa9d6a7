//! The list of a server's replicas, as its sidecars are to have it.
//!
//! Each pod that comes or goes changes the list, and the list goes to all pods:
//! while many pods change, the changes are gathered, the longer the more pods
//! there are. Invariant: what is written stays as it is between two changes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt;
use policy::peers::{self, Peers, PeersError, Replica};

use crate::status::pod::{is_finished, sidecar_is_down};

/// The shortest time between two changes of a list, and so much more for each
/// replica in it: at most 50 pods a second are told.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_EACH: Duration = Duration::from_millis(20);

/// What was written of one server.
#[derive(Debug, Default)]
pub struct Replicas {
    written: Option<(Instant, String)>,
}

impl Replicas {
    /// The list that is to be in the ConfigMap now, as text; and after which
    /// time to ask again, where it is not up to date.
    ///
    /// # Errors
    /// The list cannot be written as JSON.
    pub fn list(
        &mut self,
        pods: &[Arc<Pod>],
        map: Option<&ConfigMap>,
    ) -> Result<(String, Option<Duration>), PeersError> {
        self.list_at(pods, map, Instant::now())
    }

    fn list_at(
        &mut self,
        pods: &[Arc<Pod>],
        map: Option<&ConfigMap>,
        now: Instant,
    ) -> Result<(String, Option<Duration>), PeersError> {
        let replicas = Peers::new(pods.iter().filter_map(|pod| replica(pod)));
        let pause =
            PAUSE + PAUSE_EACH * u32::try_from(replicas.replicas().len()).unwrap_or(u32::MAX);
        let wanted = replicas.to_json()?;
        let (since, written) = match &self.written {
            Some((since, written)) => (Some(*since), Some(written.as_str())),
            // After a restart of the operator.
            None => (None, map.and_then(text)),
        };
        if written == Some(&wanted) {
            return Ok((wanted, None));
        }
        let due = since.map(|since| (since + pause).saturating_duration_since(now));
        Ok(match (due, written) {
            (Some(due), Some(written)) if !due.is_zero() => (written.to_owned(), Some(due)),
            _ => {
                self.written = Some((now, wanted.clone()));
                (wanted, None)
            }
        })
    }
}

fn text(map: &ConfigMap) -> Option<&str> {
    Some(map.data.as_ref()?.get(peers::FILE)?.as_str())
}

/// A pod with an address. One that is about to end still has its sessions; one
/// whose sidecar is down has none, and its peer port may be another's.
fn replica(pod: &Pod) -> Option<Replica> {
    let address = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
    (!is_finished(pod) && !sidecar_is_down(pod)).then(|| Replica {
        name: pod.name_any(),
        address,
    })
}

#[cfg(test)]
mod tests;
