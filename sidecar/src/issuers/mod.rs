//! The keys of issuers outside of the bundle: found (RFC 8414, OpenID Connect
//! Discovery), fetched, and kept.
//!
//! Invariants:
//! - Nobody but the one task of a source fetches its keys (single flight), and
//!   however often it is asked, it begins not more often than [`Times::pause`].
//! - The last good keys stay while the issuer is down, for `maxKeyAge`. An issuer
//!   that answers with a set of which no key can be used is not down: it has
//!   withdrawn them.
//! - Who asks for keys that are new gets none that were read before, or begun to
//!   be read: a key that was just made is not called unknown.
//! - Whoever waits for keys waits a bounded time, and not many do at once.
//! - A source that nobody uses fetches nothing.

mod address;
mod discovery;
mod fetch;
mod fetcher;
mod times;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use crds::SigningAlgorithm;
use policy::{
    bundle::{Issuer, KeySource},
    report::{IssuerReport, IssuerState},
};
use serde_json::Value;
use tokio::{
    sync::{Semaphore, watch},
    task::AbortHandle,
    time::Instant,
};

use crate::auth::Keys;
use address::Networks;
use fetcher::Fetcher;
pub use times::Times;

/// Requests that wait for the keys of one issuer.
const MAX_WAITING: usize = 256;

/// Sources of keys, kept while any configuration uses them.
#[derive(Debug, Default)]
pub struct Issuers {
    /// Where files of authorities are, by the name of the issuer.
    authorities: Option<PathBuf>,
    times: Times,
    sources: Mutex<Vec<Weak<Source>>>,
}

impl Issuers {
    /// Sources that find the certificates of private authorities in a folder,
    /// as `NAME.pem`.
    pub fn new(authorities: Option<PathBuf>) -> Self {
        Self::with_times(authorities, Times::default())
    }

    /// The same with other times.
    pub fn with_times(authorities: Option<PathBuf>, times: Times) -> Self {
        Self {
            authorities,
            times,
            sources: Mutex::default(),
        }
    }

    /// The source of an issuer's keys: the one that is there, or a new one, which
    /// begins to fetch.
    pub fn source(&self, issuer: &Issuer, networks: &[String]) -> Arc<Source> {
        let networks = Networks::new(networks);
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.retain(|source| source.strong_count() > 0);
        let known: Vec<_> = sources.iter().filter_map(Weak::upgrade).collect();
        if let Some(source) = known.iter().find(|it| it.is_of(issuer, &networks)) {
            return Arc::clone(source);
        }
        // Of the same place, what was read is as good as before.
        let had = known.iter().find(|it| it.is_from(issuer, &networks));
        let good = had.and_then(|source| source.good(issuer));
        let authorities = self.authorities.as_deref();
        let source = Source::start(issuer, networks, authorities, &self.times, good);
        let source = Arc::new(source);
        sources.push(Arc::downgrade(&source));
        source
    }
}

/// The keys of one issuer.
#[derive(Debug)]
pub struct Source {
    issuer: Issuer,
    networks: Networks,
    wait: Duration,
    kept: Arc<Kept>,
    waiting: Semaphore,
    task: Option<AbortHandle>,
}

/// What the task of a source and those who wait for it share.
#[derive(Debug, Default)]
struct Kept {
    state: watch::Sender<State>,
    /// The attempt that somebody waits for.
    wanted: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// The last good keys.
    good: Option<Good>,
    /// What went wrong since.
    error: Option<String>,
    /// Attempts that have begun.
    begun: u64,
    /// Attempts that have ended.
    ended: u64,
}

/// Keys as they came.
struct Good {
    keys: Arc<Keys>,
    jwks: Value,
    read: Instant,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} attempts, {:?}", self.ended, self.error)
    }
}

/// What of an issuer its keys depend on. Its name is that of its file of
/// authorities.
fn about_keys(issuer: &Issuer) -> (&str, &str, &KeySource, &[SigningAlgorithm]) {
    let Issuer {
        name,
        issuer,
        keys,
        algorithms,
        service_accounts: _,
        claims: _,
        types: _,
    } = issuer;
    (name, issuer, keys, algorithms)
}

/// How long keys of an issuer are used that cannot be read anew.
fn max_age(issuer: &Issuer) -> Duration {
    match &issuer.keys {
        KeySource::Remote(remote) => Duration::from_secs(remote.max_age_seconds),
        KeySource::Inline(_) => Duration::MAX,
    }
}

impl Source {
    fn start(
        issuer: &Issuer,
        networks: Networks,
        authorities: Option<&Path>,
        times: &Times,
        good: Option<Good>,
    ) -> Self {
        let kept = Arc::<Kept>::default();
        kept.state.send_modify(|state| state.good = good);
        let task = match &issuer.keys {
            KeySource::Inline(_) => None,
            KeySource::Remote(remote) => {
                let file = authorities.map(|folder| folder.join(format!("{}.pem", issuer.name)));
                let fetcher = Fetcher {
                    issuer: issuer.clone(),
                    remote: remote.clone(),
                    networks: networks.clone(),
                    // Without the folder, the file that is not there: nobody is trusted.
                    authorities: remote.private_ca.then(|| file.unwrap_or_default()),
                    times: times.clone(),
                    kept: Arc::clone(&kept),
                };
                Some(tokio::spawn(fetcher.run()).abort_handle())
            }
        };
        Self {
            issuer: issuer.clone(),
            networks,
            wait: times.wait,
            kept,
            waiting: Semaphore::new(MAX_WAITING),
            task,
        }
    }

    /// Whether the keys of such an issuer are these, whatever else is said of it.
    fn is_of(&self, issuer: &Issuer, networks: &Networks) -> bool {
        about_keys(&self.issuer) == about_keys(issuer) && self.networks == *networks
    }

    /// Whether it reads what the keys of such an issuer are in, from the same place.
    fn is_from(&self, issuer: &Issuer, networks: &Networks) -> bool {
        let is_place = match (&self.issuer.keys, &issuer.keys) {
            (KeySource::Remote(old), KeySource::Remote(new)) => {
                old.jwks_uri == new.jwks_uri && old.private_ca == new.private_ca
            }
            _ => false,
        };
        is_place
            && self.issuer.name == issuer.name
            && self.issuer.issuer == issuer.issuer
            && self.networks == *networks
    }

    /// What was read, as keys of such an issuer.
    fn good(&self, issuer: &Issuer) -> Option<Good> {
        let state = self.kept.state.borrow();
        let Good { jwks, read, .. } = state.good.as_ref()?;
        let (keys, _) = Keys::read(jwks, &issuer.algorithms);
        (!keys.is_empty()).then(|| Good {
            keys: Arc::new(keys),
            jwks: jwks.clone(),
            read: *read,
        })
    }

    /// The keys that are there now, as far as they are not too old.
    pub fn keys(&self) -> Option<Arc<Keys>> {
        let state = self.kept.state.borrow();
        let Good { keys, read, .. } = state.good.as_ref()?;
        (read.elapsed() <= max_age(&self.issuer)).then(|| Arc::clone(keys))
    }

    /// The keys that are there; where there are none, those of the attempt that is
    /// under way, or of a new one. Waits a bounded time.
    pub async fn present(&self) -> Option<Arc<Keys>> {
        let keys = self.keys();
        if keys.is_none() {
            self.attempt(|state| state.ended + 1).await;
            return self.keys();
        }
        keys
    }

    /// The keys, read from now on. Waits a bounded time; none where they cannot
    /// be read.
    pub async fn renewed(&self) -> Option<Arc<Keys>> {
        let is_read = self.attempt(|state| state.begun + 1).await;
        is_read.then(|| self.keys()).flatten()
    }

    /// Waits for an attempt; whether it was made in time, and went well.
    async fn attempt(&self, which: impl FnOnce(&State) -> u64) -> bool {
        let Ok(_place) = self.waiting.try_acquire() else {
            return false;
        };
        let mut state = self.kept.state.subscribe();
        let number = which(&state.borrow());
        self.kept.wanted.send_if_modified(|wanted| {
            let is_first = number > *wanted;
            *wanted = number.max(*wanted);
            is_first
        });
        let ended = state.wait_for(|state| state.ended >= number);
        let ended = tokio::time::timeout(self.wait, ended).await;
        matches!(ended, Ok(Ok(state)) if state.error.is_none())
    }

    /// For `/status`.
    pub fn report(&self) -> IssuerReport {
        let has_keys = self.keys().is_some();
        let state = self.kept.state.borrow();
        let (state, message) = match (has_keys, &state.error) {
            (true, None) => (IssuerState::Available, String::new()),
            (true, Some(error)) => (IssuerState::Stale, error.clone()),
            (false, Some(error)) => (IssuerState::Unavailable, error.clone()),
            (false, None) => (IssuerState::Pending, String::new()),
        };
        IssuerReport {
            name: self.issuer.name.clone(),
            state,
            message,
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
