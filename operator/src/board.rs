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

/// What a server's sidecars are to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Hash of the bundle.
    pub bundle: String,
    /// Hash of the list of replicas.
    pub peers: String,
}

impl Wanted {
    /// Whether a sidecar has all of it. One that uses no list of replicas does
    /// not tell of any.
    pub fn is_had(&self, report: &Report) -> bool {
        let peers = report.peers.as_ref();
        report.bundle.hash.as_ref() == Some(&self.bundle)
            && peers.is_none_or(|peers| *peers == self.peers)
    }
}

#[derive(Debug, Default)]
struct Post {
    wanted: Wanted,
    sights: Sights,
}

/// Wanted and seen bundles by server.
#[derive(Debug, Default)]
pub struct Board(Mutex<HashMap<Key, Post>>);

impl Board {
    /// Sets what is wanted; whether that is something else than before.
    pub fn want(&self, server: &Key, wanted: Wanted) -> bool {
        self.locked(|posts| {
            let post = posts.entry(server.clone()).or_default();
            let changed = post.wanted != wanted;
            post.wanted = wanted;
            changed
        })
    }

    /// What is wanted.
    pub fn wanted(&self, server: &Key) -> Option<Wanted> {
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
