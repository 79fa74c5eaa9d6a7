//! The task that fetches the keys of one issuer, again and again.

use std::{path::PathBuf, sync::Arc, time::Duration};

use policy::bundle::{Issuer, Remote};
use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    Good, Kept, Times,
    address::Networks,
    discovery::{jwks_uri, metadata_urls},
    fetch::{self, FetchError, Way},
    max_age,
};
use crate::{auth::Keys, strict};

/// Why there are no keys.
enum Unread {
    /// They could not be had: the last ones stay.
    Away(String),
    /// The issuer has none that can be used, and says so: the last ones are
    /// withdrawn.
    Withdrawn(String),
}

/// Fetches the keys of one issuer.
pub(super) struct Fetcher {
    pub(super) issuer: Issuer,
    pub(super) remote: Remote,
    pub(super) networks: Networks,
    pub(super) authorities: Option<PathBuf>,
    pub(super) times: Times,
    pub(super) kept: Arc<Kept>,
}

impl Fetcher {
    /// Until it is aborted.
    pub(super) async fn run(self) {
        let mut retry = self.times.retry;
        loop {
            let began = Instant::now();
            self.kept.state.send_modify(|state| state.begun += 1);
            let read = self.read().await;
            let fresh = self.keep(read);
            match fresh {
                Some(fresh) => {
                    retry = self.times.retry;
                    self.rest(began, fresh).await;
                }
                None => {
                    sleep(retry).await;
                    retry = (retry * 2).min(self.times.pause);
                }
            }
        }
    }

    /// Waits until the keys are no longer fresh, or somebody asks for newer ones,
    /// who has to wait for the pause.
    async fn rest(&self, began: Instant, fresh: Duration) {
        let due = Instant::now() + fresh;
        sleep_until(due.min(began + self.times.pause)).await;
        let begun = self.kept.state.borrow().begun;
        let mut wanted = self.kept.wanted.subscribe();
        tokio::select! {
            _ = wanted.wait_for(|wanted| *wanted > begun) => {}
            () = sleep_until(due) => {}
        }
    }

    /// Keeps what was read, and ends the attempt. For how long it is fresh; none
    /// where there is nothing.
    fn keep(&self, read: Result<(Good, Duration), Unread>) -> Option<Duration> {
        let (mut fresh, name) = (None, &self.issuer.name);
        self.kept.state.send_modify(|state| {
            state.ended += 1;
            match read {
                Ok((good, time)) => {
                    fresh = Some(time);
                    state.good = Some(good);
                    if state.error.take().is_some() {
                        tracing::info!(issuer = name, "the keys of the issuer can be read again");
                    }
                }
                Err(unread) => {
                    let error = match unread {
                        Unread::Away(error) => error,
                        Unread::Withdrawn(error) => {
                            state.good = None;
                            error
                        }
                    };
                    // Once, not for as long as it lasts.
                    if state.error.as_ref() != Some(&error) {
                        tracing::warn!(
                            issuer = name,
                            error,
                            "the keys of the issuer cannot be read"
                        );
                    }
                    state.error = Some(error);
                }
            }
        });
        fresh
    }

    /// The keys, and for how long they are fresh; or what was tried.
    async fn read(&self) -> Result<(Good, Duration), Unread> {
        let uri = match &self.remote.jwks_uri {
            Some(uri) => uri.clone(),
            None => self.discover().await.map_err(Unread::Away)?,
        };
        let (jwks, said) = self.json(&uri).await.map_err(Unread::Away)?;
        if !jwks["keys"].is_array() {
            let error = format!("{uri}: no key set (RFC 7517 §5)");
            return Err(Unread::Away(error));
        }
        let keys = self.keys(&jwks);
        let keys = keys.map_err(|error| Unread::Withdrawn(format!("{uri}: {error}")))?;
        let read = Instant::now();
        let fresh = self.times.freshness(said, max_age(&self.issuer));
        Ok((Good { keys, jwks, read }, fresh))
    }

    /// The keys of a set. Those that are the same as before stay the same: tokens
    /// that were verified by them are remembered.
    fn keys(&self, jwks: &Value) -> Result<Arc<Keys>, &'static str> {
        let state = self.kept.state.borrow();
        if let Some(known) = state.good.as_ref().filter(|good| good.jwks == *jwks) {
            return Ok(Arc::clone(&known.keys));
        }
        drop(state);
        if Keys::gives_one_away(jwks) {
            return Err(
                "the key set has a private or secret key in it, so none of its keys is trusted",
            );
        }
        let (keys, left_out) = Keys::read(jwks, &self.issuer.algorithms);
        if keys.is_empty() {
            return Err(
                "the key set has no key that can be used: none is for signatures by an algorithm of the issuer's algorithms",
            );
        }
        let (issuer, usable) = (&self.issuer.name, keys.len());
        tracing::info!(issuer, usable, left_out, "keys of the issuer");
        Ok(Arc::new(keys))
    }

    async fn discover(&self) -> Result<String, String> {
        let issuer = &self.issuer.issuer;
        let mut tried = Vec::new();
        for url in metadata_urls(issuer) {
            let metadata = self.json(&url).await;
            let uri = metadata.and_then(|(metadata, _)| {
                jwks_uri(&metadata, issuer).map_err(|error| format!("{url}: {error}"))
            });
            match uri {
                Ok(uri) => return Ok(uri),
                Err(error) => tried.push(error),
            }
        }
        match tried.is_empty() {
            true => Err(format!("{issuer:?} is no URL, so it has no metadata")),
            false => Err(tried.join("; ")),
        }
    }

    async fn json(&self, url: &str) -> Result<(Value, Option<Duration>), String> {
        let wrong = |error: &dyn std::fmt::Display| format!("{url}: {error}");
        let way = Way {
            authorities: self.authorities.as_deref(),
            networks: &self.networks,
            times: &self.times,
        };
        let document = fetch::get(url, &way).await;
        let document = document.map_err(|error: FetchError| wrong(&error))?;
        strict::check_data(&document.body).map_err(|fault| wrong(&fault))?;
        let json = serde_json::from_slice(&document.body).map_err(|error| wrong(&error))?;
        Ok((json, document.max_age))
    }
}
