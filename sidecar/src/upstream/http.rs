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
use moka::sync::Cache;

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
            .max_capacity(SESSIONS)
            .time_to_idle(SESSION_IDLE)
            .build();
        Ok(Self {
            client,
            uri,
            sessions,
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

    /// Sends a decided request, where its session belongs to the caller.
    pub(super) async fn forward(&self, forward: Forward) -> Result<Response<Body>, UpstreamError> {
        let Forward {
            method,
            headers,
            body,
            rpc_method,
            id: _,
            principal,
        } = forward;
        let session = headers
            .get(SESSION_ID)
            .map(|id| id.to_str().map(str::to_owned))
            .transpose();
        let session = session.map_err(|_| UpstreamError::SessionUnknown)?;
        if let Some(session) = &session
            && self
                .sessions
                .get(session)
                .is_none_or(|owner| owner != principal)
        {
            return Err(UpstreamError::SessionUnknown);
        }
        let ends_session = method == Method::DELETE;
        let mut answer = self.send(method, headers, body).await?;
        match answer.status() {
            StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                // The caller would take it for ours, and drop a good token.
                return Err(UpstreamError::Invalid(format!(
                    "status {}: the server asks for credentials of its own",
                    answer.status()
                )));
            }
            status if status.is_success() => {
                if let Some(session) = session.filter(|_| ends_session) {
                    self.sessions.invalidate(&session);
                }
                let new = answer
                    .headers()
                    .get(SESSION_ID)
                    .and_then(|id| id.to_str().ok());
                if let Some(id) = new.filter(|_| rpc_method.as_deref() == Some("initialize")) {
                    self.sessions.insert(id.to_owned(), principal);
                }
            }
            _ => {}
        }
        strip(answer.headers_mut());
        Ok(answer)
    }
}

/// Removes what concerns one connection only (RFC 9110 §7.6.1), and what the
/// server may not say in our name.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::TE,
        header::TRAILER,
        header::UPGRADE,
        header::PROXY_AUTHENTICATE,
        header::WWW_AUTHENTICATE,
        header::SET_COOKIE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ] {
        headers.remove(name);
    }
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
