//! What each server's sidecars are to have, and what they say they have: the
//! reconciler of servers writes the one, delivery the other.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};

use policy::report::Report;

use crate::names::Key;

/// What is known of one pod's sidecar.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sight {
    /// What it said last.
    pub report: Option<Report>,
    /// Why it says nothing, where it does not.
    pub error: Option<String>,
}

/// Sidecars by the uid of their pod.
pub type Sights = BTreeMap<String, Sight>;

#[derive(Debug, Default)]
struct Post {
    wanted: String,
    sights: Sights,
}

/// Wanted and seen bundles by server.
#[derive(Debug, Default)]
pub struct Board(Mutex<HashMap<Key, Post>>);

impl Board {
    /// Sets the hash of the wanted bundle; whether that is another one.
    pub fn want(&self, server: &Key, hash: &str) -> bool {
        self.locked(|posts| {
            let post = posts.entry(server.clone()).or_default();
            let changed = post.wanted != hash;
            hash.clone_into(&mut post.wanted);
            changed
        })
    }

    /// The hash of the wanted bundle.
    pub fn wanted(&self, server: &Key) -> Option<String> {
        self.locked(|posts| posts.get(server).map(|post| post.wanted.clone()))
    }

    /// Sets what is seen; whether that is something else than before.
    pub fn see(&self, server: &Key, sights: Sights) -> bool {
        self.locked(|posts| {
            let Some(post) = posts.get_mut(server) else {
                return false;
            };
            let changed = post.sights != sights;
            post.sights = sights;
            changed
        })
    }

    /// What is seen.
    pub fn sights(&self, server: &Key) -> Sights {
        self.locked(|posts| posts.get(server).map(|post| post.sights.clone()))
            .unwrap_or_default()
    }

    /// The server is gone.
    pub fn forget(&self, server: &Key) {
        self.locked(|posts| posts.remove(server));
    }

    fn locked<T>(&self, f: impl FnOnce(&mut HashMap<Key, Post>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
