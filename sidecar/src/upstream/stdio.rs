//! A stdio server as a Streamable HTTP server: a session is a connection to the
//! shim, and so a process of its own.
//!
//! Invariants: the number of processes is bounded; a session belongs to its
//! principal; an id is in flight once.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::UnixStream;

use super::{Forward, Principal, UpstreamError, http::SESSION_ID};
use crate::{
    body::{self, Body},
    shim, sse,
    stdio_session::{Duplex, Session},
};

/// Processes at most, beside the sidecar's own.
const MAX_PROCESSES: usize = 50;
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
                tokio::spawn(async move { shim::serve(theirs, &command).await });
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
    processes: Gauge,
}

impl StdioUpstream {
    /// Processes that `connector` starts; `processes` counts them.
    pub fn new(connector: Connector, processes: Gauge) -> Self {
        Self {
            connector,
            sessions: Mutex::default(),
            processes,
        }
    }

    /// A session that belongs to the sidecar itself.
    ///
    /// # Errors
    /// See [`Connector::connect`].
    pub async fn own_session(&self) -> Result<Arc<Session>, UpstreamError> {
        Ok(Session::start(self.connector.connect().await?))
    }

    /// Ends sessions that are idle or whose process is gone. To be called again
    /// and again.
    pub fn sweep(&self) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, entry| {
            entry.session.is_open() && entry.session.idle(Instant::now()) < IDLE
        });
        self.processes
            .set(i64::try_from(sessions.len()).unwrap_or(i64::MAX));
    }

    pub(super) async fn forward(&self, forward: Forward) -> Result<Response<Body>, UpstreamError> {
        let session_id = forward
            .headers
            .get(SESSION_ID)
            .and_then(|id| id.to_str().ok());
        match (&forward.method, forward.rpc_method.as_deref()) {
            (&Method::POST, Some("initialize")) => self.initialize(forward).await,
            (&Method::POST, Some("server/discover")) => Err(UpstreamError::Refused(
                "this server speaks the handshake of 2025-11-25 and earlier: send initialize"
                    .into(),
            )),
            (&Method::POST, _) => {
                let session = self.session(session_id, &forward.principal)?;
                Self::post(&session, forward).await
            }
            (&Method::GET, _) => Self::listen(self.session(session_id, &forward.principal)?),
            (&Method::DELETE, _) => {
                self.session(session_id, &forward.principal)?.close();
                self.sweep();
                Ok(Response::new(body::empty()))
            }
            _ => Err(UpstreamError::Refused(
                "the method is not one of Streamable HTTP".into(),
            )),
        }
    }

    fn session(
        &self,
        id: Option<&str>,
        principal: &Principal,
    ) -> Result<Arc<Session>, UpstreamError> {
        let id = id.ok_or_else(|| {
            UpstreamError::Refused(
                "the header Mcp-Session-Id is required: it came with the answer to initialize"
                    .into(),
            )
        })?;
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        match sessions.get(id) {
            Some(entry) if entry.principal == *principal && entry.session.is_open() => {
                Ok(Arc::clone(&entry.session))
            }
            _ => Err(UpstreamError::SessionUnknown),
        }
    }

    async fn initialize(&self, forward: Forward) -> Result<Response<Body>, UpstreamError> {
        let id = self.reserve(&forward.principal).await?;
        let session = self.session(Some(&id), &forward.principal)?;
        let answer = Self::post(&session, forward).await;
        match answer {
            Ok(mut answer) => {
                let value = HeaderValue::from_str(&id)
                    .map_err(|error| UpstreamError::Invalid(error.to_string()))?;
                answer.headers_mut().insert(SESSION_ID, value);
                Ok(answer)
            }
            Err(error) => {
                session.close();
                self.sweep();
                Err(error)
            }
        }
    }

    /// Makes a session under a new id of 128 random bits.
    async fn reserve(&self, principal: &Principal) -> Result<String, UpstreamError> {
        self.sweep();
        let full = || {
            UpstreamError::Overloaded(format!(
                "all {MAX_PROCESSES} processes of this server are in use: try again later"
            ))
        };
        let count = || {
            self.sessions
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .len()
        };
        if count() >= MAX_PROCESSES {
            return Err(full());
        }
        let session = Session::start(self.connector.connect().await?);
        let id = random_id()?;
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= MAX_PROCESSES {
            session.close();
            return Err(full());
        }
        sessions.insert(
            id.clone(),
            Entry {
                principal: principal.clone(),
                session,
            },
        );
        self.processes
            .set(i64::try_from(sessions.len()).unwrap_or(i64::MAX));
        Ok(id)
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
        let answer = tokio::time::timeout(ANSWER, session.request(&id, forward.body)).await;
        let line = answer.map_err(|_| UpstreamError::TimedOut(ANSWER.as_secs()))??;
        Ok(with_type("application/json", body::full(line)))
    }

    /// The stream of what the server says by itself.
    fn listen(session: Arc<Session>) -> Result<Response<Body>, UpstreamError> {
        let messages = session.messages().ok_or_else(|| {
            UpstreamError::Refused("this session has an open stream already".into())
        })?;
        let events =
            messages.map(|message| Ok::<_, body::Error>(Frame::data(sse::event(&message))));
        // The comment makes clients see the head at once.
        let hello =
            futures::stream::once(async { Ok(Frame::data(Bytes::from_static(b": open\n\n"))) });
        Ok(with_type(
            "text/event-stream",
            BodyExt::boxed_unsync(StreamBody::new(hello.chain(events))),
        ))
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
