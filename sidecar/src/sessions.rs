//! Legacy sessions of this replica: whose they are, and what holds them.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use http::{HeaderName, HeaderValue};
use moka::{policy::EvictionPolicy, sync::Cache};
use policy::Caller;

use crate::{envelope::same_id, era::Revision, host::legacy::LegacySession, upstream::Principal};

/// Header of legacy sessions.
pub const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");

/// Sessions at once; the longest idle one is forgotten first.
const MAX_SESSIONS: u64 = 65_536;
const IDLE: Duration = Duration::from_secs(24 * 60 * 60);
/// Requests of the server that wait for an answer, in one session.
const MAX_ASKED: usize = 1024;
/// Ids of lists that are remembered in one session.
const MAX_LISTS: usize = 4096;

/// Where a session is held.
#[derive(Clone)]
pub enum At {
    /// By the server behind HTTP, under an id of its own.
    Server(HeaderValue),
    /// By the sidecar.
    Host(Arc<LegacySession>),
}

/// A session.
pub struct Session {
    /// What the client sees.
    pub id: String,
    /// Whose it is.
    pub principal: Principal,
    /// Where it is held.
    pub at: At,
    revision: OnceLock<Revision>,
    asked: Asked,
    lists: Mutex<HashSet<String>>,
}

impl Session {
    /// The revision that was agreed on, where it is known.
    pub fn revision(&self) -> Option<Revision> {
        match &self.at {
            At::Host(session) => Some(session.revision()),
            At::Server(_) => self.revision.get().copied(),
        }
    }

    /// Notes the revision that the server answered.
    pub fn agreed(&self, revision: Revision) {
        let _ = self.revision.set(revision); // The first answer holds.
    }

    /// Requests of the server in this session.
    pub fn asked(&self) -> &Asked {
        &self.asked
    }

    /// Whether the id of a request is new among those of lists: a server that
    /// mixes up two requests of one id would send the list as the answer to a
    /// call, which is not filtered.
    pub fn is_fresh(&self, id: &str, is_list: bool) -> bool {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        match is_list {
            true => {
                if lists.len() >= MAX_LISTS {
                    lists.clear();
                }
                lists.insert(same_id(id).into_owned());
                true
            }
            false => !lists.contains(&*same_id(id)),
        }
    }
}

/// Ids of requests of the server that wait for the caller's answer.
#[derive(Default)]
pub struct Asked(Mutex<HashSet<String>>);

impl Asked {
    fn ids(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server asked. False: too much waits, and the request must not pass.
    pub fn add(&self, id: &str) -> bool {
        let mut ids = self.ids();
        let id = same_id(id);
        ids.contains(&*id) || (ids.len() < MAX_ASKED && ids.insert(id.into_owned()))
    }

    /// The caller answers. False: nobody asked.
    pub fn take(&self, id: &str) -> bool {
        self.ids().remove(&*same_id(id))
    }
}

/// All sessions of this replica.
pub struct Sessions(Cache<String, Arc<Session>>);

impl Default for Sessions {
    fn default() -> Self {
        let sessions = Cache::builder()
            .eviction_policy(EvictionPolicy::lru())
            .max_capacity(MAX_SESSIONS)
            .time_to_idle(IDLE)
            .build();
        Self(sessions)
    }
}

impl Sessions {
    /// Keeps a new session under an id that is not taken.
    pub fn add(&self, id: String, principal: Principal, at: At) -> Arc<Session> {
        let session = Arc::new(Session {
            id: id.clone(),
            principal,
            at,
            revision: OnceLock::new(),
            asked: Asked::default(),
            lists: Mutex::default(),
        });
        self.0.insert(id, Arc::clone(&session));
        session
    }

    /// The session of that id, where it is this caller's.
    pub fn find(&self, id: &str, caller: &Caller) -> Option<Arc<Session>> {
        let session = self.0.get(id)?;
        if let At::Host(host) = &session.at
            && !host.is_open()
        {
            self.0.invalidate(id);
            return None;
        }
        session.principal.is(caller).then_some(session)
    }

    /// Forgets a session.
    pub fn remove(&self, id: &str) {
        self.0.invalidate(id);
    }
}
