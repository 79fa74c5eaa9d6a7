//! A server that speaks Streamable HTTP on a port of this pod.

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use moka::{policy::EvictionPolicy, sync::Cache};

use super::{Forward, Principal, UpstreamError};
use crate::body::Body;

/// Until a connection is there.
const CONNECT: Duration = Duration::from_secs(5);
/// Until the head of the answer is there. An answer in JSON comes when the call
/// has ended, so this is the longest call.
const ANSWER: Duration = Duration::from_secs(300);
/// Sessions whose owner is known; the longest idle one is forgotten first.
const SESSIONS: u64 = 65_536;
const SESSION_IDLE: Duration = Duration::from_secs(24 * 60 * 60);

/// Header of legacy sessions.
pub const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
/// Header of the revision.
pub const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");

/// A server behind HTTP.
pub struct HttpUpstream {
    client: Client<HttpConnector, Full<Bytes>>,
    uri: Uri,
    sessions: Cache<String, Principal>,
    /// Ids of lists, by session, for longer than an answer can take.
    list_ids: Cache<(String, String), ()>,
}

impl HttpUpstream {
    /// A server at `uri`, which is an `http` URL.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn new(uri: Uri) -> Result<Self, String> {
        if uri.scheme_str() != Some("http") || uri.host().is_none() || uri.query().is_some() {
            return Err(format!(
                "{uri} must be a URL such as http://127.0.0.1:8080/mcp: scheme http, a host, no query"
            ));
        }
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(256)
            .build(connector);
        let sessions = Cache::builder()
            .eviction_policy(EvictionPolicy::lru())
            .max_capacity(SESSIONS)
            .time_to_idle(SESSION_IDLE)
            .build();
        let list_ids = Cache::builder()
            .eviction_policy(EvictionPolicy::lru())
            .max_capacity(SESSIONS)
            .time_to_live(2 * ANSWER)
            .build();
        Ok(Self {
            client,
            uri,
            sessions,
            list_ids,
        })
    }

    /// Sends a request as it is; no session is looked at.
    ///
    /// # Errors
    /// See [`UpstreamError`].
    pub async fn send(
        &self,
        method: Method,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Body>, UpstreamError> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers;
        let answer = tokio::time::timeout(ANSWER, self.client.request(request)).await;
        let answer = answer.map_err(|_| UpstreamError::TimedOut(ANSWER.as_secs()))?;
        let answer = answer.map_err(|error| UpstreamError::Connect(chain(&error)))?;
        Ok(answer.map(|body| body.map_err(crate::body::Error::new).boxed_unsync()))
    }

    /// Whether the session of a request belongs to the caller, and the id of a
    /// list is new in it.
    ///
    /// # Errors
    /// Why the request must not go on.
    pub(super) fn check(&self, request: &Forward) -> Result<(), UpstreamError> {
        let Some(session) = request.headers.get(SESSION_ID) else {
            return Ok(());
        };
        let session = session
            .to_str()
            .map_err(|_| UpstreamError::SessionUnknown)?;
        let owner = self.sessions.get(session);
        if owner.is_none_or(|owner| owner != request.principal) {
            return Err(UpstreamError::SessionUnknown);
        }
        // A server that mixes up two requests of one id would send the list as
        // the answer to a call, which is not filtered.
        let Some(id) = &request.id else { return Ok(()) };
        let key = (session.to_owned(), id.clone());
        if request.is_list {
            self.list_ids.insert(key, ());
        } else if self.list_ids.contains_key(&key) {
            let message = "the id was used by a list in this session: each request needs a new one";
            return Err(UpstreamError::Refused(message.into()));
        }
        Ok(())
    }

    /// Sends a decided request.
    pub(super) async fn forward(&self, request: Forward) -> Result<Response<Body>, UpstreamError> {
        let ended = request.headers.get(SESSION_ID).cloned();
        let ended = ended.filter(|_| request.method == Method::DELETE);
        let answer = self
            .send(request.method, request.headers, request.body)
            .await?;
        let status = answer.status();
        if status.is_informational() || status.is_redirection() {
            return Err(UpstreamError::Invalid(format!("status {status}")));
        }
        if NOT_OURS.contains(&status) {
            // The caller would take it for ours, and drop a good token.
            let what = format!("status {status}: the server asks for credentials of its own");
            return Err(UpstreamError::Invalid(what));
        }
        let (mut head, body) = answer.into_parts();
        if status.is_success() {
            if let Some(session) = ended.as_ref().and_then(|id| id.to_str().ok()) {
                self.sessions.invalidate(session);
            }
            if request.rpc_method.as_deref() == Some("initialize") {
                self.remember(&head.headers, request.principal)?;
            }
        }
        head.headers = forwarded(&head.headers)?;
        Ok(Response::from_parts(head, body))
    }

    fn remember(&self, headers: &HeaderMap, principal: Principal) -> Result<(), UpstreamError> {
        let Some(id) = headers.get(SESSION_ID).and_then(|id| id.to_str().ok()) else {
            return Ok(());
        };
        if self
            .sessions
            .get(id)
            .is_some_and(|owner| owner != principal)
        {
            let what = "it gave a session to a caller that belongs to another";
            return Err(UpstreamError::Invalid(what.into()));
        }
        self.sessions.insert(id.to_owned(), principal);
        Ok(())
    }
}

/// Answers with which the server would speak in our name.
const NOT_OURS: [StatusCode; 3] = [
    StatusCode::UNAUTHORIZED,
    StatusCode::FORBIDDEN,
    StatusCode::PROXY_AUTHENTICATION_REQUIRED,
];
/// Headers of the server that pass on to callers.
const FORWARDED: [HeaderName; 8] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CACHE_CONTROL,
    header::RETRY_AFTER,
    header::ALLOW,
    SESSION_ID,
    PROTOCOL_VERSION,
    HeaderName::from_static("x-accel-buffering"),
];

fn forwarded(headers: &HeaderMap) -> Result<HeaderMap, UpstreamError> {
    let invalid = |what: &str| Err(UpstreamError::Invalid(what.into()));
    if headers
        .get(header::CONTENT_ENCODING)
        .is_some_and(|encoding| encoding != "identity")
    {
        return invalid("it has a content encoding, though none was accepted");
    }
    let mut forwarded = HeaderMap::with_capacity(FORWARDED.len());
    for name in FORWARDED {
        let mut values = headers.get_all(&name).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => forwarded.insert(name, value.clone()),
            (None, _) => None,
            (Some(_), Some(_)) if name == header::CONTENT_TYPE => {
                return invalid("it has two types");
            }
            (Some(_), Some(_)) => None,
        };
    }
    Ok(forwarded)
}

/// The error with all its causes: hyper keeps "connection refused" in the last.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// `application/json`, as sent with each message.
pub fn json_headers() -> HeaderMap {
    HeaderMap::from_iter([
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        ),
        (
            header::ACCEPT,
            HeaderValue::from_static("application/json, text/event-stream"),
        ),
    ])
}
