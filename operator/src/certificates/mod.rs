//! The webhook's certificates: made here and changed in time ([`plan`]), or taken
//! from a Secret that others write; kept in a Secret and in the webhook
//! configurations ([`store`]), so that all replicas use the same.
//!
//! Invariants:
//! - A pair is used where the API server says that it is the current one and that
//!   each webhook is trusted by it; a pair that is in use stays in use until there
//!   is such another one. One that is over is not taken up in place of a good one.
//! - Every replica does all of this. Steps name what they were decided on, so that
//!   one that is late does nothing.

pub mod pair;
pub mod plan;
pub mod store;

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures::{FutureExt, StreamExt};
use kube::Client;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::sync::Mutex;

use crate::{backoff::Backoff, error::Error, metrics::Metrics};
use pair::{HORIZON, Life, Pair, Seconds};
use plan::{Source, State, Step, Timing, trusts};
use store::{Found, Names, Store};

/// All is looked at again after this time, should no watch tell.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// The shortest time between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// Tries after a failed look.
const RETRY: Backoff = Backoff {
    first: Duration::from_millis(300),
    cap: Duration::from_secs(10),
};

/// What TLS uses.
#[derive(Default)]
struct InUse {
    pair: Option<(Life, Arc<CertifiedKey>)>,
    /// When it was last found to be the current one.
    confirmed: Option<Instant>,
    /// Whether each webhook was trusted by it at the last look.
    trusted: bool,
}

/// What is remembered between looks.
#[derive(Default)]
struct Memory {
    /// Since when each webhook has been trusted by which next pair.
    trusted: Option<(String, Instant)>,
    /// Since when which pair has been the current one, with none to come.
    still: Option<(String, Instant)>,
    /// What was told last of what cannot be used.
    faults: Vec<String>,
}

/// The certificate of the webhook, for TLS and for readiness.
pub struct Certificates {
    store: Store,
    timing: Timing,
    metrics: Metrics,
    in_use: RwLock<InUse>,
    memory: Mutex<Memory>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.read(|in_use| Some(in_use.pair.as_ref()?.1.clone()))
    }
}

impl Certificates {
    /// Nothing is in use before the first look.
    pub fn new(client: Client, names: Names, timing: Timing, metrics: Metrics) -> Self {
        Self {
            store: Store::new(client, names),
            timing,
            metrics,
            in_use: RwLock::default(),
            memory: Mutex::default(),
        }
    }

    /// Whether API servers accept what is in use, or else why not.
    ///
    /// # Errors
    /// Why not.
    pub fn ready(&self, at: Instant) -> Result<(), &'static str> {
        self.read(|in_use| {
            if in_use.pair.is_none() {
                return Err("the webhook has no certificate yet that is good now");
            }
            if !in_use.trusted {
                return Err("the webhook's certificate is by no CA of the webhook configurations");
            }
            let since = in_use
                .confirmed
                .map(|when| at.saturating_duration_since(when));
            match since {
                Some(since) if since < self.timing.fence => Ok(()),
                _ => {
                    Err("whether the webhook's certificate is the current one cannot be found out")
                }
            }
        })
    }

    /// The pair in use.
    pub fn in_use(&self) -> Option<Life> {
        self.read(|in_use| Some(in_use.pair.as_ref()?.0.clone()))
    }

    /// Looks, and does what is to be done, for ever.
    pub async fn run(&self) {
        let mut changes = self.store.changes();
        let mut failures = 0;
        loop {
            match self.round(seconds(SystemTime::now()), Instant::now).await {
                Ok(wait) => {
                    failures = 0;
                    // Ended or not: then is the time to look again.
                    let _ = tokio::time::timeout(wait, changes.next()).await;
                }
                Err(error) => {
                    let wait = RETRY.after(failures);
                    failures = failures.saturating_add(1);
                    let category = error.category();
                    tracing::warn!(category, %error, "cannot look after the webhook's certificates");
                    tokio::time::sleep(wait).await;
                }
            }
            while changes.next().now_or_never().flatten().is_some() {}
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// One look, and one step at most; returns when to look again. `now` is the
    /// time of day, `clock` one that nobody sets.
    ///
    /// # Errors
    /// What the API server answers, or what makes no pair.
    pub async fn round(
        &self,
        now: Seconds,
        clock: impl Fn() -> Instant + Send + Sync,
    ) -> Result<Duration, Error> {
        let mut memory = self.memory.lock().await;
        let now = now.min(HORIZON);
        let begun = clock();
        let mut found = self.store.read().await?;
        if found
            .given
            .as_ref()
            .is_some_and(|pair| !pair.life.is_good(now))
        {
            let fault = "that of --webhook-secret is over, or not good yet";
            found.faults.push(fault.to_owned());
        }
        self.use_current(&found, now, begun);
        let at = clock();
        memory.look(&found, at);
        let given = found.given.as_ref().map(|pair| &pair.life);
        let state = State {
            current: found.current.as_ref().map(|pair| &pair.life),
            next: found.next.as_ref().map(|pair| &pair.life),
            source: match self.store.names().given {
                Some(_) => Source::Given(given),
                None => Source::Own,
            },
            bundles: &found.bundles,
            trusted_for: elapsed(memory.trusted.as_ref(), at),
            still_for: elapsed(memory.still.as_ref(), at),
        };
        let step = plan::next(&state, now, self.timing);
        if step == Step::Wait {
            let rest = self.timing.settle.saturating_sub(state.trusted_for);
            return Ok(match state.next {
                Some(_) => rest.max(PAUSE),
                None => LOOK_AGAIN,
            });
        }
        match self.act(step, &found, now).await {
            // Another replica was faster.
            Err(error) if error.code() == Some(409) => Ok(PAUSE),
            Err(error) => Err(error),
            Ok(()) => Ok(Duration::ZERO),
        }
    }

    async fn act(&self, step: Step, found: &Found, now: Seconds) -> Result<(), Error> {
        match step {
            Step::Wait => Ok(()),
            Step::Make => {
                let given = found.given.clone().map(Ok);
                let host = self.store.names().host();
                let pair = given.unwrap_or_else(|| Pair::make(&host, now));
                let pair = pair.map_err(Error::Certificate)?;
                self.store.make(found, &pair).await?;
                tracing::info!(id = pair.life.id, "the webhook's next certificate");
                Ok(())
            }
            Step::Trust(cas) => self.store.trust(found, &cas).await,
            Step::Promote => match &found.next {
                Some(next) => {
                    self.store.promote(found, next).await?;
                    tracing::info!(
                        id = next.life.id,
                        "the webhook's next certificate is current"
                    );
                    Ok(())
                }
                None => Ok(()),
            },
        }
    }

    /// Uses the current pair, where that is trusted and good, or no worse than what
    /// is in use.
    fn use_current(&self, found: &Found, now: Seconds, at: Instant) {
        let mut in_use = self.in_use.write().unwrap_or_else(PoisonError::into_inner);
        let trusted = |life: &Life| trusts(&found.bundles, life);
        let before = in_use.pair.as_ref().map(|(life, _)| life.clone());
        let worse = |life: &Life| match &before {
            Some(before) => before.id != life.id && before.is_good(now) && !life.is_good(now),
            None => !life.is_good(now),
        };
        let current = found.current.as_ref();
        let current = current.filter(|pair| trusted(&pair.life) && !worse(&pair.life));
        if let Some(current) = current {
            if before.is_none_or(|before| before.id != current.life.id) {
                tracing::info!(id = current.life.id, "the webhook's certificate in use");
                in_use.pair = Some((current.life.clone(), current.certified.clone()));
                self.metrics.uses_certificate(current.life.until);
            }
            in_use.confirmed = Some(at);
        }
        in_use.trusted = in_use.pair.as_ref().is_some_and(|(life, _)| trusted(life));
    }

    fn read<T>(&self, read: impl FnOnce(&InUse) -> T) -> T {
        read(&self.in_use.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Memory {
    fn look(&mut self, found: &Found, at: Instant) {
        let trusted = found.next.as_ref();
        let trusted = trusted.filter(|next| trusts(&found.bundles, &next.life));
        let still = found.current.as_ref().filter(|_| found.next.is_none());
        self.trusted = since(self.trusted.take(), trusted, at);
        self.still = since(self.still.take(), still, at);
        if self.faults != found.faults {
            for fault in &found.faults {
                tracing::error!(fault, "a certificate of the webhook cannot be used");
            }
            self.faults.clone_from(&found.faults);
        }
    }
}

/// Since when it has been this pair.
fn since(
    before: Option<(String, Instant)>,
    pair: Option<&Pair>,
    at: Instant,
) -> Option<(String, Instant)> {
    let id = &pair?.life.id;
    let before = before.filter(|(before, _)| before == id);
    Some(before.unwrap_or_else(|| (id.clone(), at)))
}

fn elapsed(since: Option<&(String, Instant)>, at: Instant) -> Duration {
    since.map_or(Duration::ZERO, |(_, since)| {
        at.saturating_duration_since(*since)
    })
}

fn seconds(time: SystemTime) -> Seconds {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
