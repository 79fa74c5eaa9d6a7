//! The wrapped server: behind HTTP, or behind the shim's socket.

pub mod credential;
pub mod http;
mod pool;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use ::http::{HeaderMap, Method, Response};
use bytes::Bytes;
use policy::{Caller, Reason};
use serde_json::value::RawValue;
use tokio::{sync::watch, time::timeout};

use crate::{
    body::{self, Body},
    envelope::{Kind, Message},
    era::{Era, ParamHeader, Revision},
    host::{self, Host},
    identity::Assertion,
    refusal::Refusal,
    sessions::{At, Session},
};

/// How long requests wait for a server that failed before it said what it speaks.
const RETRIED: Duration = Duration::from_secs(10);

/// Why a request got no answer of the server.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection.
    #[error("the server cannot be reached: {0}")]
    Connect(String),
    /// No answer in time.
    #[error("the server did not answer within {0} s")]
    TimedOut(u64),
    /// The process ended. Its last words are for the operator, not for callers.
    #[error("the server ended: {0}")]
    Exited(String),
    /// The answer cannot be used.
    #[error("the server answered what cannot be forwarded: {0}")]
    Invalid(String),
    /// The session is not known here.
    #[error("the session is unknown or has ended: start a new one with initialize")]
    SessionUnknown,
    /// All places are taken.
    #[error("{0}")]
    Overloaded(String),
    /// The request makes no sense for this transport.
    #[error("{0}")]
    Refused(String),
    /// Something that may be there once is there already.
    #[error("{0}")]
    Conflict(String),
    /// It does not pass between the eras of caller and server.
    #[error("{0}")]
    Unsupported(String),
}

impl UpstreamError {
    /// For audit, metrics and the answer.
    pub fn reason(&self) -> Reason {
        match self {
            Self::SessionUnknown => Reason::SessionUnknown,
            Self::Overloaded(_) => Reason::Overloaded,
            Self::Refused(_) | Self::Conflict(_) | Self::Unsupported(_) => Reason::Malformed,
            Self::Connect(_) | Self::TimedOut(_) | Self::Exited(_) | Self::Invalid(_) => {
                Reason::UpstreamUnavailable
            }
        }
    }

    /// As the answer to a request, where its stream is open already.
    pub fn message(&self, id: &str) -> String {
        let id: Option<&RawValue> = serde_json::from_str(id).ok();
        Refusal::from(self.clone()).message(id)
    }
}

/// Whose session it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Principal {
    issuer: Option<String>,
    user: Option<String>,
}

impl Principal {
    /// Issuer and subject of a caller.
    pub fn of(caller: &Caller) -> Self {
        Self {
            issuer: caller.issuer.clone(),
            user: caller.user.clone(),
        }
    }

    /// In bytes: two that differ have different ones.
    pub fn to_bytes(&self) -> Vec<u8> {
        // `Debug` escapes what could end a name.
        format!("{:?}", (&self.issuer, &self.user)).into_bytes()
    }

    /// Whether it is this caller.
    pub fn is(&self, caller: &Caller) -> bool {
        self.issuer == caller.issuer && self.user == caller.user
    }
}

/// A request that was decided, ready to go.
pub struct Forward<'a> {
    /// HTTP method.
    pub method: Method,
    /// Headers that may pass.
    pub headers: HeaderMap,
    /// The bytes that were decided on.
    pub body: Bytes,
    /// The same, read.
    pub messages: Vec<&'a Message<'a>>,
    /// Whether they stood in an array.
    pub is_batch: bool,
    /// With or without handshake and sessions.
    pub era: Era,
    /// The session that it names.
    pub session: Option<Arc<Session>>,
    /// Whose request it is.
    pub caller: &'a Caller,
    /// The same, as the server is told.
    pub identity: Option<Assertion>,
}

impl Forward<'_> {
    /// Whose request it is.
    pub fn principal(&self) -> Principal {
        Principal::of(self.caller)
    }

    /// The message, where it is `initialize`.
    pub fn handshake(&self) -> Option<&Message<'_>> {
        let is_handshake = |message: &&&Message<'_>| matches!(&message.kind, Kind::Request { method, .. } if method == "initialize");
        self.messages.iter().find(is_handshake).copied()
    }
}

/// The answer to a request.
pub struct Answer {
    /// Head, and body still to stream.
    pub response: Response<Body>,
    /// The session that was opened.
    pub opened: Option<At>,
}

impl From<Response<Body>> for Answer {
    fn from(response: Response<Body>) -> Self {
        Self {
            response,
            opened: None,
        }
    }
}

/// What the server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eras {
    /// Revisions up to 2025-11-25.
    pub legacy: bool,
    /// Revision 2026-07-28.
    pub modern: bool,
}

/// What the probe has found out of what the server speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Learned {
    /// Nothing: the server starts.
    #[default]
    Nothing,
    /// It failed before it said anything; it is tried again and again.
    Failed,
    /// What it said, last.
    Speaks(Eras),
}

impl Learned {
    /// What the server speaks, where it has said so.
    pub fn eras(self) -> Option<Eras> {
        match self {
            Self::Speaks(eras) => Some(eras),
            Self::Nothing | Self::Failed => None,
        }
    }

    /// Waits until the server has said what it speaks: for as long as it may take
    /// to start, and shortly where it failed to.
    ///
    /// # Errors
    /// It has not in time.
    pub async fn wait(
        seen: &watch::Receiver<Self>,
        startup: Duration,
    ) -> Result<Eras, UpstreamError> {
        let mut seen = seen.clone();
        let learn = async {
            let first = seen.wait_for(|learned| *learned != Self::Nothing);
            let first = *timeout(startup, first).await.ok()?.ok()?;
            if first != Self::Failed {
                return first.eras();
            }
            let next = seen.wait_for(|learned| learned.eras().is_some());
            timeout(RETRIED, next).await.ok()?.ok()?.eras()
        };
        let why = "it has not answered the handshake yet";
        learn
            .await
            .ok_or_else(|| UpstreamError::Connect(why.into()))
    }
}

/// Headers that tools want (`x-mcp-header`), as the sidecar's own lists tell.
#[derive(Default)]
pub struct ParamHeaders(RwLock<HashMap<String, Arc<[ParamHeader]>>>);

impl ParamHeaders {
    /// Replaces what is known.
    pub fn set(&self, all: HashMap<String, Arc<[ParamHeader]>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = all;
    }

    /// Those of a tool.
    pub fn of(&self, tool: &str) -> Option<Arc<[ParamHeader]>> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(tool).cloned()
    }
}

/// The wrapped server.
pub struct Upstream {
    /// Set where it is behind HTTP: requests of an era that it speaks pass as
    /// they are.
    pub server: Option<Arc<http::Server>>,
    /// Everything else goes through conversations of the sidecar's own.
    pub host: Host,
    /// What it speaks.
    pub eras: watch::Receiver<Learned>,
    /// Headers that its tools want.
    pub params: Arc<ParamHeaders>,
}

impl Upstream {
    /// Sends a request and gives the head of the answer, its body still to stream.
    ///
    /// # Errors
    /// See [`UpstreamError`].
    pub async fn forward(&self, forward: Forward<'_>) -> Result<Answer, UpstreamError> {
        if let Some(session) = &forward.session
            && let At::Host(held) = &session.at
        {
            let held = Arc::clone(held);
            return self.held(&held, &forward).await.map(Answer::from);
        }
        if let Some(server) = &self.server {
            // Before it has said what it speaks, its own answer is the best one.
            let passes = self
                .eras
                .borrow()
                .eras()
                .is_none_or(|eras| match forward.era {
                    Era::Legacy => eras.legacy || forward.session.is_some(),
                    Era::Modern => eras.modern,
                });
            if passes {
                return server.forward(forward).await;
            }
        }
        match (forward.era, forward.handshake()) {
            (Era::Modern, _) => host::modern::post(&self.host, &forward)
                .await
                .map(Answer::from),
            (Era::Legacy, Some(message)) if !forward.is_batch => {
                let (response, session) = host::legacy::open(&self.host, &forward, message).await?;
                Ok(Answer {
                    response,
                    opened: session.map(At::Host),
                })
            }
            (Era::Legacy, _) => {
                let missing = "the header Mcp-Session-Id is required: begin with initialize, alone in its request";
                Err(UpstreamError::Refused(missing.into()))
            }
        }
    }

    async fn held(
        &self,
        session: &Arc<host::legacy::LegacySession>,
        forward: &Forward<'_>,
    ) -> Result<Response<Body>, UpstreamError> {
        match forward.method {
            Method::POST => session.post(forward).await,
            Method::GET => session.get(&forward.headers),
            _ => {
                session.close();
                Ok(Response::new(body::empty()))
            }
        }
    }
}

/// The revision in the result of a handshake.
pub fn agreed(result: Option<&RawValue>) -> Option<Revision> {
    let version = crate::wire::member(result, &["protocolVersion"])?;
    Revision::parse(&serde_json::from_str::<String>(version.get()).ok()?)
}
