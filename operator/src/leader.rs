//! Which replica acts: the one that holds the Lease `toolward-operator`.
//!
//! All replicas watch and are ready; the holder alone reconciles, delivers and
//! writes. Invariants:
//! - No other machine's clock is believed: a lease has expired where this process
//!   has seen it unchanged for as long as it is for.
//! - The holder counts from before it asked, and for less than others wait: it
//!   stops before another one may start.
//! - What would be written by a guarded client after that does not leave the
//!   process, whatever is still under way.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::{Method, Request};
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams, client::Body};
use tower::BoxError;

use crate::error::{Error, call};

/// Name of the Lease, in the operator's namespace.
pub const LEASE: &str = "toolward-operator";
/// Time to give the lease up at the end.
const RELEASE: Duration = Duration::from_secs(3);

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// A lease that others saw unchanged for this long has expired.
    pub lease: Duration,
    /// The holder stops after this time without having renewed it.
    pub renew: Duration,
    /// Between two attempts.
    pub retry: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            renew: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// Why a replica no longer holds the lease.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Another one has it.
    #[error("the Lease {LEASE} is held by {0}")]
    Taken(String),
    /// It was not renewed in time.
    #[error("the Lease {LEASE} could not be renewed in time")]
    Expired,
}

/// Until when this process may write.
#[derive(Debug, Default)]
pub struct Fence(Mutex<Option<Instant>>);

impl Fence {
    /// Whether this process holds the lease.
    pub fn is_open(&self) -> bool {
        !self.left().is_zero()
    }

    fn left(&self) -> Duration {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.map_or(Duration::ZERO, |until| {
            until.saturating_duration_since(Instant::now())
        })
    }

    fn set(&self, until: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// A client that reads at any time, and writes only while the fence is open.
    pub fn guard(self: &Arc<Self>, client: &Client) -> Client {
        let namespace = client.default_namespace().to_owned();
        let (client, fence) = (client.clone(), self.clone());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (client, fence) = (client.clone(), fence.clone());
            async move {
                if request.method() == Method::GET {
                    return client.send(request).await.map_err(BoxError::from);
                }
                let lost = || BoxError::from("this replica does not hold the lease");
                let left = fence.left();
                // A time-out of no time would still send it.
                if left.is_zero() {
                    return Err(lost());
                }
                let sent = tokio::time::timeout(left, client.send(request)).await;
                sent.map_err(|_| lost())?.map_err(BoxError::from)
            }
        });
        Client::new(service, namespace)
    }
}

/// What one process knows of the lease; time comes in from outside.
#[derive(Debug)]
struct Candidate {
    me: String,
    times: Times,
    /// The lease as it was found last, and since when it is so.
    seen: Option<(Lease, Instant)>,
}

/// What to do about the lease.
#[derive(Debug)]
enum Step {
    /// It is free, has expired, or is this process's own: write it.
    Write(Box<Lease>),
    /// Somebody else holds it.
    Wait(String),
}

impl Candidate {
    /// What to do about the lease as it was found. One that was deleted is still
    /// held by who held it.
    fn step(&mut self, found: Option<Lease>, now: Instant, clock: Timestamp) -> Step {
        if let Some(lease) = &found {
            let version = &lease.metadata.resource_version;
            let seen = self.seen.as_ref();
            if seen.is_none_or(|(seen, _)| seen.metadata.resource_version != *version) {
                self.seen = Some((lease.clone(), now));
            }
        }
        match self.holder(now) {
            Some(holder) => Step::Wait(holder.to_owned()),
            None => Step::Write(Box::new(self.own(found, clock))),
        }
    }

    /// Who else holds it.
    fn holder(&self, now: Instant) -> Option<&str> {
        let (lease, since) = self.seen.as_ref()?;
        let spec = lease.spec.as_ref()?;
        let holder = spec.holder_identity.as_deref()?;
        let seconds = spec.lease_duration_seconds;
        let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let lasts = seconds.map_or(self.times.lease, Duration::from_secs);
        let is_valid = now.saturating_duration_since(*since) < lasts;
        (!holder.is_empty() && holder != self.me && is_valid).then_some(holder)
    }

    /// The lease with this process as its holder. The version that was found
    /// stays in it: the API server refuses it where that is not the last one.
    fn own(&self, found: Option<Lease>, clock: Timestamp) -> Lease {
        let Lease { metadata, spec } = found.unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(LEASE.to_owned()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        let before = spec.unwrap_or_default();
        let renews = before.holder_identity.as_ref() == Some(&self.me);
        let now = MicroTime(clock);
        let since = before.acquire_time.clone().filter(|_| renews);
        let changes = before.lease_transitions.unwrap_or_default();
        let spec = LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: Some(seconds(self.times.lease)),
            acquire_time: Some(since.unwrap_or_else(|| now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(changes.saturating_add(i32::from(!renews))),
            ..before
        };
        Lease {
            metadata,
            spec: Some(spec),
        }
    }
}

/// Whole seconds, at least one: the API server takes nothing else.
fn seconds(time: Duration) -> i32 {
    i32::try_from(time.as_secs()).unwrap_or(i32::MAX).max(1)
}

/// How one attempt ended.
enum Attempt {
    /// This process holds the lease.
    Ours,
    /// Somebody else does.
    Theirs(String),
    /// Somebody was faster; who holds it is not known.
    Again,
}

/// The part of this process in the election.
pub struct Election {
    api: Api<Lease>,
    fence: Arc<Fence>,
    candidate: Candidate,
}

impl Election {
    /// The part of `me`, a name that no process had before; `fence` is open
    /// while it holds the lease.
    pub fn new(
        client: Client,
        namespace: &str,
        me: String,
        times: Times,
        fence: Arc<Fence>,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            fence,
            candidate: Candidate {
                me,
                times,
                seen: None,
            },
        }
    }

    /// Waits until this process holds the lease.
    pub async fn win(&mut self) {
        let mut told = None;
        loop {
            match self.attempt().await {
                Ok(Attempt::Ours) if self.fence.is_open() => return,
                Ok(Attempt::Theirs(holder)) if told.as_ref() != Some(&holder) => {
                    tracing::info!(holder, "another replica holds the lease: standing by");
                    told = Some(holder);
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "cannot have the lease; trying again"),
            }
            tokio::time::sleep(self.candidate.times.retry).await;
        }
    }

    /// Renews the lease until it is lost; tells why.
    pub async fn hold(&mut self) -> Lost {
        loop {
            let pause = self.candidate.times.retry.min(self.fence.left());
            tokio::time::sleep(pause).await;
            let left = self.fence.left();
            match tokio::time::timeout(left, self.attempt()).await {
                Ok(Ok(Attempt::Theirs(holder))) => {
                    self.fence.set(None);
                    return Lost::Taken(holder);
                }
                Ok(Ok(Attempt::Ours | Attempt::Again)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "cannot renew the lease; trying again"),
                Err(_) => {}
            }
            if !self.fence.is_open() {
                return Lost::Expired;
            }
        }
    }

    /// Gives the lease up, where this process holds it, so that another one need
    /// not wait until it expires. Nothing is written afterwards.
    pub async fn release(self) {
        let held = self.fence.is_open();
        self.fence.set(None);
        if !held {
            return;
        }
        match tokio::time::timeout(RELEASE, self.give_up()).await {
            Ok(Ok(())) => tracing::info!("the lease is free"),
            Ok(Err(error)) => tracing::warn!(%error, "the lease stays until it expires"),
            Err(_) => tracing::warn!("the lease stays until it expires: no answer"),
        }
    }

    async fn give_up(&self) -> Result<(), Error> {
        let Some(mut lease) = self.read().await? else {
            return Ok(());
        };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_ref() != Some(&self.candidate.me) {
            return Ok(());
        }
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        self.write(&lease).await.map(drop)
    }

    /// One look at the lease, and one write where it can be had.
    async fn attempt(&mut self) -> Result<Attempt, Error> {
        let found = self.read().await?;
        let sent = Instant::now();
        let lease = match self.candidate.step(found, sent, Timestamp::now()) {
            Step::Write(lease) => lease,
            Step::Wait(holder) => return Ok(Attempt::Theirs(holder)),
        };
        match self.write(&lease).await {
            Ok(_) => {
                self.fence.set(Some(sent + self.candidate.times.renew));
                Ok(Attempt::Ours)
            }
            Err(error) if error.code() == Some(409) => Ok(Attempt::Again),
            Err(error) => Err(error),
        }
    }

    async fn read(&self) -> Result<Option<Lease>, Error> {
        let action = || format!("reading Lease {LEASE}");
        call(action, self.api.get_opt(LEASE)).await
    }

    async fn write(&self, lease: &Lease) -> Result<Lease, Error> {
        let (action, params) = (|| format!("writing Lease {LEASE}"), PostParams::default());
        match lease.metadata.resource_version {
            Some(_) => call(action, self.api.replace(LEASE, &params, lease)).await,
            None => call(action, self.api.create(&params, lease)).await,
        }
    }
}

#[cfg(test)]
mod tests;
