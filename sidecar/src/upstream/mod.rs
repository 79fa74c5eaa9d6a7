//! The wrapped server: behind HTTP, or behind the shim's socket.

pub mod http;
pub mod stdio;

use ::http::{HeaderMap, Method, Response};
use bytes::Bytes;
use policy::Reason;

use crate::body::Body;

/// Why a request got no answer of the server.
#[derive(Debug, thiserror::Error)]
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
}

impl UpstreamError {
    /// For audit, metrics and the answer.
    pub fn reason(&self) -> Reason {
        match self {
            Self::SessionUnknown => Reason::SessionUnknown,
            Self::Overloaded(_) => Reason::Overloaded,
            Self::Refused(_) => Reason::Malformed,
            Self::Connect(_) | Self::TimedOut(_) | Self::Exited(_) | Self::Invalid(_) => {
                Reason::UpstreamUnavailable
            }
        }
    }
}

/// Whose session it is: issuer and subject.
pub type Principal = (Option<String>, Option<String>);

/// A request that was decided, ready to go.
pub struct Forward {
    /// HTTP method.
    pub method: Method,
    /// Headers that may pass.
    pub headers: HeaderMap,
    /// The bytes that were decided on.
    pub body: Bytes,
    /// MCP method of a request or notification.
    pub rpc_method: Option<String>,
    /// Id of a request, as written.
    pub id: Option<String>,
    /// Whether a list is asked for.
    pub is_list: bool,
    /// Whose request it is.
    pub principal: Principal,
}

/// The wrapped server.
pub enum Upstream {
    /// A server that listens on a port.
    Http(Box<http::HttpUpstream>),
    /// Processes behind the shim.
    Stdio(stdio::StdioUpstream),
}

impl Upstream {
    /// Whether the request's session is there and belongs to its caller: asked
    /// before a decision is logged, and before a limit is charged.
    ///
    /// # Errors
    /// Why the request must not go on.
    pub fn check(&self, request: &Forward) -> Result<(), UpstreamError> {
        match self {
            Self::Http(upstream) => upstream.check(request),
            Self::Stdio(upstream) => upstream.check(request),
        }
    }

    /// Sends a request and gives the head of the answer, its body still to stream.
    ///
    /// # Errors
    /// See [`UpstreamError`].
    pub async fn forward(&self, forward: Forward) -> Result<Response<Body>, UpstreamError> {
        match self {
            Self::Http(upstream) => upstream.forward(forward).await,
            Self::Stdio(upstream) => upstream.forward(forward).await,
        }
    }
}
