//! What each server's sidecars are to have, what they say they have, and whether
//! anybody gets past them: the reconciler of servers writes the first, delivery
//! the second, isolation the third.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
};

use policy::report::Report;
use sealed::PublicKey;

use crate::{isolation::Isolation, names::Key};

/// What is known of one pod's sidecar.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sight {
    /// What it said last.
    pub report: Option<Report>,
    /// Why it says nothing, where it does not.
    pub error: Option<String>,
    /// Why the key by which it asserts who calls is not taken, where it is not.
    pub key: Option<String>,
    /// Whether its server is reached past it; none before that is known.
    pub isolation: Option<Isolation>,
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
    /// Thumbprints of the keys that are published; none where sidecars are not to
    /// assert who calls.
    pub identity: Option<BTreeSet<String>>,
}

impl Wanted {
    /// Whether a sidecar has all of it. One that uses no list of replicas does
    /// not tell of any. Of the keys, only its own matters to it.
    pub fn is_had(&self, report: &Report) -> bool {
        let peers = report.peers.as_ref();
        let own = report.identity.as_ref();
        let own = own.filter(|own| self.has_key(&own.kid));
        report.bundle.hash.as_ref() == Some(&self.bundle)
            && peers.is_none_or(|peers| *peers == self.peers)
            && own.is_none_or(|own| own.published)
    }

    /// Whether a key is published.
    pub fn has_key(&self, kid: &str) -> bool {
        let kids = self.identity.as_ref();
        kids.is_some_and(|kids| kids.contains(kid))
    }

    /// The key of a sidecar that is to be published and is not.
    pub fn lacks<'a>(&self, report: &'a Report) -> Option<&'a str> {
        let own = report.identity.as_ref()?.kid.as_str();
        (self.identity.is_some() && !self.has_key(own)).then_some(own)
    }
}

#[derive(Debug, Default)]
struct Post {
    wanted: Wanted,
    /// Without what was found of their isolation.
    sights: Sights,
    /// That, by the uid of the pod.
    isolation: BTreeMap<String, Isolation>,
    /// Keys that were proven, by the uid of their pod.
    keys: BTreeMap<String, PublicKey>,
    /// Whether the server is gone, and its sidecars are not.
    is_orphan: bool,
}

/// Wanted and seen bundles by server.
#[derive(Debug, Default)]
pub struct Board(Mutex<HashMap<Key, Post>>);

impl Board {
    /// Sets what is wanted; whether that is something else than before.
    pub fn want(&self, server: &Key, wanted: Wanted) -> bool {
        self.set(server, wanted, false)
    }

    /// As [`Self::want`], for the sidecars of a server that is gone.
    pub fn want_orphan(&self, server: &Key, wanted: Wanted) -> bool {
        self.set(server, wanted, true)
    }

    fn set(&self, server: &Key, wanted: Wanted, is_orphan: bool) -> bool {
        self.locked(|posts| {
            let post = posts.entry(server.clone()).or_default();
            let changed = post.wanted != wanted;
            post.wanted = wanted;
            post.is_orphan = is_orphan;
            changed
        })
    }

    /// What is wanted.
    pub fn wanted(&self, server: &Key) -> Option<Wanted> {
        self.locked(|posts| posts.get(server).map(|post| post.wanted.clone()))
    }

    /// Sets what the sidecars say; whether that is something else than before.
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

    /// Sets what was found of the isolation of pods; whether that is something
    /// else than before.
    pub fn isolate(&self, server: &Key, found: BTreeMap<String, Isolation>) -> bool {
        self.locked(|posts| {
            let Some(post) = posts.get_mut(server) else {
                return false;
            };
            let changed = post.isolation != found;
            post.isolation = found;
            changed
        })
    }

    /// What is seen.
    pub fn sights(&self, server: &Key) -> Sights {
        self.locked(|posts| {
            let Some(post) = posts.get(server) else {
                return Sights::new();
            };
            let mut sights = post.sights.clone();
            for (uid, sight) in &mut sights {
                sight.isolation = post.isolation.get(uid).cloned();
            }
            sights
        })
    }

    /// A key was proven to be that of the sidecar of a pod.
    pub fn prove(&self, server: &Key, pod: &str, key: PublicKey) {
        self.locked(|posts| {
            if let Some(post) = posts.get_mut(server) {
                post.keys.insert(pod.to_owned(), key);
            }
        });
    }

    /// Whether this key of a pod was proven.
    pub fn is_proven(&self, server: &Key, pod: &str, kid: &str) -> bool {
        self.locked(|posts| {
            let key = posts.get(server).and_then(|post| post.keys.get(pod));
            key.is_some_and(|key| key.kid() == kid)
        })
    }

    /// The keys that were proven; those of other pods than these are forgotten.
    pub fn keys(&self, server: &Key, pods: &BTreeSet<String>) -> BTreeMap<String, PublicKey> {
        self.locked(|posts| {
            let Some(post) = posts.get_mut(server) else {
                return BTreeMap::new();
            };
            post.keys.retain(|pod, _| pods.contains(pod));
            post.keys.clone()
        })
    }

    /// The server is gone.
    pub fn forget(&self, server: &Key) {
        self.locked(|posts| posts.remove(server));
    }

    /// The sidecars of a server that is gone are gone too. Where it came back in the
    /// meantime, nothing is forgotten.
    pub fn forget_orphan(&self, server: &Key) {
        self.locked(|posts| {
            if posts.get(server).is_some_and(|post| post.is_orphan) {
                posts.remove(server);
            }
        });
    }

    fn locked<T>(&self, f: impl FnOnce(&mut HashMap<Key, Post>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
