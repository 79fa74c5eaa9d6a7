//! A stdio server as a Streamable HTTP server: a session is a connection to the
//! shim, and so a process of its own.
//!
//! Invariants: the number of processes is bounded; a session belongs to its
//! principal; an id is in flight once.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    net::UnixStream,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};

use super::{Forward, Principal, UpstreamError, http::SESSION_ID};
use crate::{
    body::{self, Body},
    envelope::{Kind, Message},
    shim, sse,
    stdio_session::{Duplex, Session},
};

/// Processes at most, beside the sidecar's own.
const MAX_PROCESSES: usize = 50;
/// Sessions of one caller at most.
const MAX_PER_CALLER: usize = 25;
/// A session without a request and without an open stream ends after this time.
const IDLE: Duration = Duration::from_secs(600);
/// Longest call.
const ANSWER: Duration = Duration::from_secs(300);

/// How a process is started.
pub enum Connector {
    /// By the shim behind this socket.
    Socket(PathBuf),
    /// By this process (`run`), with the shim's own code.
    Command(Vec<String>),
}

impl Connector {
    /// Starts a process.
    ///
    /// # Errors
    /// The shim is not there.
    pub async fn connect(&self) -> Result<Duplex, UpstreamError> {
        match self {
            Self::Socket(path) => match UnixStream::connect(path).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(UpstreamError::Connect(format!(
                    "{}: {error}",
                    path.display()
                ))),
            },
            Self::Command(command) => {
                let (ours, theirs) = tokio::io::duplex(64 * 1024);
                let command = command.clone();
                // It ends with its connection; nothing else stops it.
                let (never, stop) = watch::channel(false);
                tokio::spawn(async move {
                    shim::serve(theirs, &command, stop).await;
                    drop(never);
                });
                Ok(Box::new(ours))
            }
        }
    }
}

struct Entry {
    principal: Principal,
    session: Arc<Session>,
}

/// Processes behind the shim.
pub struct StdioUpstream {
    connector: Connector,
    sessions: Mutex<HashMap<String, Entry>>,
    /// One for each process of a caller; held until the process is gone.
    places: Arc<Semaphore>,
    processes: Gauge,
}

impl StdioUpstream {
    /// Processes that `connector` starts; `processes` counts them.
    pub fn new(connector: Connector, processes: Gauge) -> Self {
        let places = Arc::new(Semaphore::new(MAX_PROCESSES));
        Self {
            connector,
            sessions: Mutex::default(),
            places,
            processes,
        }
    }

    /// A session that belongs to the sidecar itself.
    ///
    /// # Errors
    /// See [`Connector::connect`].
    pub async fn own_session(&self) -> Result<Arc<Session>, UpstreamError> {
        Ok(Session::start(self.connector.connect().await?, None))
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends sessions that are idle, and forgets those whose process is gone. To
    /// be called again and again.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.sessions().retain(|_, entry| {
            if entry.session.idle(now) >= IDLE {
                entry.session.close();
            }
            entry.session.ended().is_none()
        });
        let free = self.places.available_permits();
        self.processes
            .set(i64::try_from(MAX_PROCESSES - free).unwrap_or(i64::MAX));
    }

    /// See [`super::Upstream::check`].
    pub(super) fn check(&self, request: &Forward) -> Result<(), UpstreamError> {
        match request.rpc_method.as_deref() {
            Some("initialize" | "server/discover") => Ok(()),
            _ => self.session(request).map(drop),
        }
    }

    pub(super) async fn forward(&self, request: Forward) -> Result<Response<Body>, UpstreamError> {
        match (&request.method, request.rpc_method.as_deref()) {
            (&Method::POST, Some("initialize")) => self.initialize(request).await,
            (&Method::POST, Some("server/discover")) => Err(UpstreamError::Refused(
                "this server speaks the handshake of 2025-11-25 and earlier: send initialize"
                    .into(),
            )),
            (&Method::POST, _) => Self::post(&self.session(&request)?, request).await,
            (&Method::GET, _) => Self::listen(&self.session(&request)?),
            (&Method::DELETE, _) => {
                self.session(&request)?.close();
                Ok(Response::new(body::empty()))
            }
            _ => Err(UpstreamError::Refused(
                "the method is not one of Streamable HTTP".into(),
            )),
        }
    }

    /// The session that a request names, where it is open and the caller's own.
    fn session(&self, request: &Forward) -> Result<Arc<Session>, UpstreamError> {
        let missing =
            "the header Mcp-Session-Id is required: it came with the answer to initialize";
        let id = request
            .headers
            .get(SESSION_ID)
            .ok_or_else(|| UpstreamError::Refused(missing.into()))?;
        let id = id.to_str().map_err(|_| UpstreamError::SessionUnknown)?;
        match self.sessions().get(id) {
            Some(entry) if entry.principal == request.principal && entry.session.is_open() => {
                Ok(Arc::clone(&entry.session))
            }
            _ => Err(UpstreamError::SessionUnknown),
        }
    }

    async fn initialize(&self, request: Forward) -> Result<Response<Body>, UpstreamError> {
        let place = self.place(&request.principal)?;
        let principal = request.principal.clone();
        let started = Started(Some(Session::start(
            self.connector.connect().await?,
            Some(place),
        )));
        let (Some(session), Some(id)) = (&started.0, &request.id) else {
            return Err(UpstreamError::SessionUnknown);
        };
        let line = Self::ask(session, id, request.body).await?;
        let is_session = matches!(
            Message::parse(&line),
            Ok(Message {
                kind: Kind::Response { result: Some(_) },
                ..
            })
        );
        let mut answer = with_type("application/json", body::full(line));
        if is_session {
            let id = random_id()?;
            let value = HeaderValue::from_str(&id)
                .map_err(|error| UpstreamError::Invalid(error.to_string()))?;
            answer.headers_mut().insert(SESSION_ID, value);
            if let Some(session) = started.keep() {
                self.sessions().insert(id, Entry { principal, session });
            }
        }
        self.sweep();
        Ok(answer)
    }

    async fn ask(session: &Arc<Session>, id: &str, body: Bytes) -> Result<Bytes, UpstreamError> {
        let answer = tokio::time::timeout(ANSWER, session.request(id, body)).await;
        answer.map_err(|_| UpstreamError::TimedOut(ANSWER.as_secs()))?
    }

    /// A place for one more process of this caller.
    fn place(&self, principal: &Principal) -> Result<OwnedSemaphorePermit, UpstreamError> {
        self.sweep();
        let of_caller = self
            .sessions()
            .values()
            .filter(|entry| entry.principal == *principal)
            .count();
        if of_caller >= MAX_PER_CALLER {
            return Err(UpstreamError::Overloaded(format!(
                "{of_caller} sessions of this caller are open: end one with DELETE"
            )));
        }
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            UpstreamError::Overloaded(format!(
                "all {MAX_PROCESSES} processes of this server are in use: try again later"
            ))
        })
    }

    async fn post(
        session: &Arc<Session>,
        forward: Forward,
    ) -> Result<Response<Body>, UpstreamError> {
        let Some(id) = forward.id else {
            session.send(forward.body).await?;
            let mut accepted = Response::new(body::empty());
            *accepted.status_mut() = StatusCode::ACCEPTED;
            return Ok(accepted);
        };
        let line = Self::ask(session, &id, forward.body).await?;
        Ok(with_type("application/json", body::full(line)))
    }

    /// The stream of what the server says by itself.
    fn listen(session: &Arc<Session>) -> Result<Response<Body>, UpstreamError> {
        let taken = || UpstreamError::Refused("this session has an open stream already".into());
        let messages = session.messages().ok_or_else(taken)?;
        let events =
            messages.map(|message| Ok::<_, body::Error>(Frame::data(sse::event(&message))));
        // The comment makes clients see the head at once.
        let hello =
            futures::stream::once(async { Ok(Frame::data(Bytes::from_static(b": open\n\n"))) });
        let stream = BodyExt::boxed_unsync(StreamBody::new(hello.chain(events)));
        Ok(with_type("text/event-stream", stream))
    }
}

/// A session that ends unless it is kept: its caller may leave during the
/// handshake, and an error is no session.
struct Started(Option<Arc<Session>>);

impl Started {
    fn keep(mut self) -> Option<Arc<Session>> {
        self.0.take()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(session) = &self.0 {
            session.close();
        }
    }
}

fn with_type(content_type: &'static str, body: Body) -> Response<Body> {
    let mut answer = Response::new(body);
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

fn random_id() -> Result<String, UpstreamError> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| UpstreamError::Overloaded("the system gives no randomness".into()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
