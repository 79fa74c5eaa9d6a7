//! A server behind a conversation of the sidecar's own, shown to callers as a
//! Streamable HTTP server of both eras: stdio servers, and HTTP servers that
//! speak only the other era.
//!
//! Invariants: the number of processes is bounded; a process that serves one
//! caller serves no other; what callers share is told apart by ids of ours.

pub mod legacy;
pub mod modern;
pub mod stream;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    net::UnixStream,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};

use crate::{
    body::{self, Body},
    era::Era,
    link::{
        Link, Said, Wire,
        http::HttpClient,
        process::{Duplex, Process, Scope},
    },
    request::accepts,
    shim,
    upstream::{Eras, Learned, Principal, UpstreamError, http::Server},
};
use legacy::LegacySession;

/// Until an answer that comes alone is sent as JSON; what takes longer becomes a
/// stream, which can be kept alive and resumed.
pub const ALONE: Duration = Duration::from_millis(500);
/// A call of which nothing is heard for this time is given up.
pub const SILENCE: Duration = Duration::from_secs(300);

/// How processes are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Sharing {
    /// A process for each legacy session; one for all modern requests of a caller.
    #[default]
    PerSession,
    /// A process for each caller.
    PerUser,
    /// One process for all.
    Shared,
}

impl From<crds::ProcessMode> for Sharing {
    fn from(mode: crds::ProcessMode) -> Self {
        match mode {
            crds::ProcessMode::PerSession => Self::PerSession,
            crds::ProcessMode::PerUser => Self::PerUser,
            crds::ProcessMode::Shared => Self::Shared,
        }
    }
}

/// How many processes there are, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Who gets a process.
    pub sharing: Sharing,
    /// Processes at most, beside the sidecar's own.
    pub max_processes: usize,
    /// A process without a call and without an open stream ends after this time.
    pub idle_timeout: Duration,
    /// Until the handshake has to be done.
    pub startup_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sharing: Sharing::PerSession,
            max_processes: 50,
            idle_timeout: Duration::from_secs(600),
            startup_timeout: Duration::from_secs(60),
        }
    }
}

/// How a conversation is begun.
pub enum Connector {
    /// By the shim behind this socket.
    Socket(PathBuf),
    /// By this process (`run`), with the shim's own code.
    Command(Vec<String>),
    /// Over HTTP.
    Http(Arc<Server>),
}

impl Connector {
    /// Opens a conversation; nothing is said yet.
    ///
    /// # Errors
    /// The shim is not there.
    pub async fn open(
        &self,
        scope: Scope,
        place: Option<OwnedSemaphorePermit>,
        said: Said,
    ) -> Result<Wire, UpstreamError> {
        let duplex: Duplex = match self {
            Self::Http(server) => return Ok(Wire::Http(HttpClient::new(Arc::clone(server), said))),
            Self::Socket(path) => {
                let unreachable =
                    |error| UpstreamError::Connect(format!("{}: {error}", path.display()));
                Box::new(UnixStream::connect(path).await.map_err(unreachable)?)
            }
            Self::Command(command) => {
                let (ours, theirs) = tokio::io::duplex(64 * 1024);
                let command = command.clone();
                // It ends with its connection; nothing else stops it.
                let (never, stop) = watch::channel(false);
                tokio::spawn(async move {
                    shim::serve(theirs, &command, stop).await;
                    drop(never);
                });
                Box::new(ours)
            }
        };
        Ok(Wire::Process(Process::start(duplex, scope, place, said)))
    }

    fn is_process(&self) -> bool {
        !matches!(self, Self::Http(_))
    }
}

/// Listeners to what the server says by itself in a conversation that is shared.
#[derive(Default)]
pub struct Hub {
    listeners: Mutex<HashMap<u64, Said>>,
    /// How often each resource is subscribed to.
    subscriptions: Mutex<HashMap<String, usize>>,
    next: std::sync::atomic::AtomicU64,
}

impl Hub {
    fn listeners(&self) -> MutexGuard<'_, HashMap<u64, Said>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens until the guard is dropped.
    pub fn listen(self: &Arc<Self>, said: Said) -> Listening {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.listeners().insert(number, said);
        Listening {
            hub: Arc::clone(self),
            number,
        }
    }

    fn said(&self, message: &Bytes) {
        let all: Vec<Said> = self.listeners().values().cloned().collect();
        all.iter().for_each(|said| said(message.clone()));
    }

    /// Counts a subscription; true: it is the first to this resource.
    pub fn subscribe(&self, uri: &str) -> bool {
        let mut subscriptions = self
            .subscriptions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = subscriptions.entry(uri.to_owned()).or_default();
        *count += 1;
        *count == 1
    }

    /// True: nobody is subscribed any more.
    pub fn unsubscribe(&self, uri: &str) -> bool {
        let mut subscriptions = self
            .subscriptions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(count) = subscriptions.get_mut(uri) else {
            return false;
        };
        *count -= 1;
        let is_last = *count == 0;
        if is_last {
            subscriptions.remove(uri);
        }
        is_last
    }
}

/// Listens for as long as it lives.
pub struct Listening {
    hub: Arc<Hub>,
    number: u64,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.hub.listeners().remove(&self.number);
    }
}

/// A conversation that several requests use.
#[derive(Clone)]
pub struct Pooled {
    /// The conversation.
    pub link: Link,
    /// Who listens to it.
    pub hub: Arc<Hub>,
}

/// Whose a pooled conversation is (nobody's: everybody's), and its era.
type Key = (Era, Option<Principal>);

#[derive(Default)]
struct Slot {
    pooled: tokio::sync::Mutex<Option<Pooled>>,
    used: Mutex<Option<Instant>>,
}

/// The server, as shown to callers.
pub struct Host {
    connector: Connector,
    settings: Settings,
    /// One for each process; held until it is gone.
    places: Arc<Semaphore>,
    pool: Mutex<HashMap<Key, Arc<Slot>>>,
    sessions: Mutex<Vec<(Principal, Weak<LegacySession>)>>,
    processes: Gauge,
    eras: watch::Receiver<Learned>,
}

impl Host {
    /// `processes` counts them; `eras` is what the probe has found out.
    pub fn new(
        connector: Connector,
        settings: Settings,
        processes: Gauge,
        eras: watch::Receiver<Learned>,
    ) -> Self {
        let places = Arc::new(Semaphore::new(settings.max_processes));
        let (pool, sessions) = (Mutex::default(), Mutex::default());
        Self {
            connector,
            settings,
            places,
            pool,
            sessions,
            processes,
            eras,
        }
    }

    /// How conversations begin.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// How processes are used.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the server speaks.
    ///
    /// # Errors
    /// It has not said so yet.
    pub async fn eras(&self) -> Result<Eras, UpstreamError> {
        Learned::wait(&self.eras, self.settings.startup_timeout).await
    }

    fn sessions(&self) -> MutexGuard<'_, Vec<(Principal, Weak<LegacySession>)>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more process of this caller, who may hold half of them.
    fn place(&self, principal: &Principal) -> Result<Option<OwnedSemaphorePermit>, UpstreamError> {
        if !self.connector.is_process() {
            return Ok(None);
        }
        let most = self.settings.max_processes.div_ceil(2);
        let own: Vec<_> = {
            let mut sessions = self.sessions();
            sessions.retain(|(_, session)| session.strong_count() > 0);
            let own = sessions.iter().filter(|(owner, _)| owner == principal);
            own.filter_map(|(_, session)| session.upgrade())
                .filter(|session| session.has_process())
                .collect()
        };
        if own.len() >= most {
            // Clients go away without DELETE: the longest idle one makes room.
            let now = Instant::now();
            let oldest = own.iter().max_by_key(|session| session.idle(now));
            match oldest.filter(|session| session.idle(now) > Duration::ZERO) {
                Some(session) => session.close(),
                None => {
                    let message =
                        format!("{most} sessions of this caller are in use: end one with DELETE");
                    return Err(UpstreamError::Overloaded(message));
                }
            }
        }
        let place = Arc::clone(&self.places).try_acquire_owned();
        place.map(Some).map_err(|_| {
            let most = self.settings.max_processes;
            UpstreamError::Overloaded(format!(
                "all {most} processes of this server are in use: try again later"
            ))
        })
    }

    /// The conversation that a caller's requests of this era share.
    ///
    /// # Errors
    /// It could not be begun.
    pub async fn pooled(&self, era: Era, principal: &Principal) -> Result<Pooled, UpstreamError> {
        let is_shared = self.settings.sharing == Sharing::Shared && self.connector.is_process();
        let owner = (!is_shared).then(|| principal.clone());
        let slot = {
            let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(pool.entry((era, owner)).or_default())
        };
        *slot.used.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let mut pooled = slot.pooled.lock().await;
        if let Some(pooled) = pooled.as_ref().filter(|pooled| pooled.link.wire.is_open()) {
            return Ok(pooled.clone());
        }
        let hub = Arc::new(Hub::default());
        let said: Said = {
            let hub = Arc::clone(&hub);
            Arc::new(move |message| hub.said(&message))
        };
        let scope = if is_shared {
            Scope::Shared
        } else {
            Scope::Principal
        };
        let wire = self
            .connector
            .open(scope, self.place(principal)?, said)
            .await?;
        let patience = self.settings.startup_timeout;
        let opened = match era {
            Era::Modern => Link::modern(wire.clone(), patience).await,
            Era::Legacy => Link::legacy(wire.clone(), patience).await,
        };
        let link = opened.inspect_err(|_| wire.close())?;
        let new = Pooled { link, hub };
        *pooled = Some(new.clone());
        Ok(new)
    }

    /// Opens a session of a legacy client.
    async fn open_session(&self, principal: &Principal, said: Said) -> Result<Wire, UpstreamError> {
        let place = self.place(principal)?;
        self.connector.open(Scope::Session, place, said).await
    }

    fn remember(&self, principal: &Principal, session: &Arc<LegacySession>) {
        self.sessions()
            .push((principal.clone(), Arc::downgrade(session)));
    }

    /// Ends what is idle, and counts. To be called again and again.
    pub fn sweep(&self) {
        let (now, limit) = (Instant::now(), self.settings.idle_timeout);
        let sessions: Vec<_> = {
            let mut sessions = self.sessions();
            sessions.retain(|(_, session)| session.strong_count() > 0);
            sessions
                .iter()
                .filter_map(|(_, session)| session.upgrade())
                .collect()
        };
        for session in sessions {
            session.forget_finished();
            if session.idle(now) > limit {
                session.close();
            }
        }
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        pool.retain(|_, slot| {
            let Ok(mut pooled) = slot.pooled.try_lock() else {
                return true; // It is being opened.
            };
            let Some(open) = pooled.as_ref() else {
                return Arc::strong_count(slot) > 1;
            };
            let used = slot
                .used
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .unwrap_or(now);
            let is_used = !open.hub.listeners().is_empty();
            let idle = match &open.link.wire {
                Wire::Process(process) => process.idle(now),
                Wire::Http(_) => now.saturating_duration_since(used),
            };
            if open.link.wire.is_open() && (is_used || idle <= limit) {
                return true;
            }
            open.link.wire.close();
            *pooled = None;
            Arc::strong_count(slot) > 1
        });
        let taken = self.settings.max_processes - self.places.available_permits();
        self.processes.set(i64::try_from(taken).unwrap_or(i64::MAX));
    }
}

/// An answer in JSON.
pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut answer = Response::new(body::full(body));
    *answer.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, json);
    answer
}

/// The answer to what gets none.
pub fn accepted() -> Response<Body> {
    let mut accepted = Response::new(body::empty());
    *accepted.status_mut() = StatusCode::ACCEPTED;
    accepted
}

/// An answer as a stream of events, each already written.
pub fn events(events: impl Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let frames = events.map(|event| Ok::<_, body::Error>(Frame::data(event)));
    let mut answer = Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)));
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache, no-transform"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// Whether the caller takes streams.
pub fn takes_streams(headers: &HeaderMap) -> bool {
    accepts(headers, "text/event-stream")
}
