//! One worker per object: woken by what changes, it brings the object to where
//! it should be, and tries again with backoff where that failed.
//!
//! Invariants:
//! - At most one round per object is under way, and a wake-up during a round
//!   leads to another one: nothing that changed is missed.
//! - The number of rounds under way is bounded.

use std::{
    collections::HashMap,
    fmt::Display,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, Semaphore, watch};

use crate::{
    backoff::Backoff,
    error::{ENDING, Error},
    metrics::Metrics,
};

/// Retries after a failed round.
const RETRY: Backoff = Backoff {
    first: Duration::from_millis(300),
    cap: Duration::from_secs(60),
};
/// The shortest time between two rounds, so that a burst of changes is one.
const PAUSE: Duration = Duration::from_millis(20);
/// A wake-up does not shorten the wait after a failure below this.
const FAILURE_PAUSE: Duration = Duration::from_secs(2);

/// When to come back without being woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Not before something changes.
    WhenWoken,
    /// After this time.
    After(Duration),
}

/// What a worker does for one kind of object.
pub trait Reconcile: Send + Sync + 'static {
    /// Names an object.
    type Key: Clone + Display + Eq + Hash + Send + Sync + 'static;
    /// What is remembered of an object between rounds.
    type Memory: Default + Send + 'static;
    /// For logs and metrics.
    const NAME: &'static str;

    /// Whether there is anything left to do for the object.
    fn exists(&self, key: &Self::Key) -> bool;

    /// One round.
    fn reconcile(
        &self,
        key: &Self::Key,
        memory: &mut Self::Memory,
    ) -> impl Future<Output = Result<Next, Error>> + Send;

    /// The object is gone.
    fn retired(&self, _key: &Self::Key) {}
}

/// The workers of one kind of object.
pub struct Workers<R: Reconcile> {
    reconcile: R,
    metrics: Metrics,
    permits: Semaphore,
    stop: watch::Receiver<bool>,
    wakers: Mutex<HashMap<R::Key, Arc<Notify>>>,
}

impl<R: Reconcile> Workers<R> {
    /// Workers that run at most `concurrency` rounds at a time, until `stop`.
    pub fn new(
        reconcile: R,
        concurrency: usize,
        metrics: Metrics,
        stop: watch::Receiver<bool>,
    ) -> Arc<Self> {
        Arc::new(Self {
            reconcile,
            metrics,
            permits: Semaphore::new(concurrency),
            stop,
            wakers: Mutex::default(),
        })
    }

    /// Something changed that concerns this object.
    pub fn wake(self: &Arc<Self>, key: &R::Key) {
        let mut wakers = self.lock();
        if let Some(waker) = wakers.get(key) {
            waker.notify_one();
        } else if self.reconcile.exists(key) {
            let waker = Arc::new(Notify::new());
            wakers.insert(key.clone(), waker.clone());
            tokio::spawn(self.clone().work(key.clone(), waker));
        }
    }

    /// Waits until all workers have stopped.
    pub async fn stopped(&self) {
        while !self.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<R::Key, Arc<Notify>>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn work(self: Arc<Self>, key: R::Key, waker: Arc<Notify>) {
        let mut stop = self.stop.clone();
        let mut memory = R::Memory::default();
        let mut failures = 0;
        while !*stop.borrow_and_update() {
            let next = self.round(&key, &mut memory, &mut failures).await;
            if self.retire(&key) {
                return;
            }
            tokio::select! {
                () = self.wait(next, failures, &waker) => {}
                _ = stop.changed() => {}
            }
        }
        self.lock().remove(&key);
    }

    async fn round(&self, key: &R::Key, memory: &mut R::Memory, failures: &mut u32) -> Next {
        let Ok(_permit) = self.permits.acquire().await else {
            return Next::WhenWoken;
        };
        let start = Instant::now();
        let result = self.reconcile.reconcile(key, memory).await;
        let category = result.as_ref().err().map(Error::category);
        self.metrics.reconciled(R::NAME, category, start.elapsed());
        match result {
            Ok(next) => {
                *failures = 0;
                next
            }
            Err(error) => {
                let wait = RETRY.after(*failures);
                *failures = failures.saturating_add(1);
                let retry_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                match error.category() {
                    ENDING => tracing::debug!(kind = R::NAME, %key, %error, "the namespace ends"),
                    category => {
                        tracing::warn!(kind = R::NAME, %key, category, %error, retry_ms, "reconciliation failed");
                    }
                }
                Next::After(wait)
            }
        }
    }

    async fn wait(&self, next: Next, failures: u32, waker: &Notify) {
        match next {
            Next::WhenWoken => waker.notified().await,
            Next::After(wait) => {
                if failures > 0 {
                    tokio::time::sleep(wait.min(FAILURE_PAUSE)).await;
                }
                let rest = wait.saturating_sub(FAILURE_PAUSE);
                let rest = if failures > 0 { rest } else { wait };
                let _ = tokio::time::timeout(rest, waker.notified()).await;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }

    /// Ends the worker of an object that is gone. Under the lock that
    /// [`Self::wake`] takes, so that one that came back is not forgotten.
    fn retire(&self, key: &R::Key) -> bool {
        let mut wakers = self.lock();
        if self.reconcile.exists(key) {
            return false;
        }
        wakers.remove(key);
        self.reconcile.retired(key);
        true
    }
}

#[cfg(test)]
mod tests;
