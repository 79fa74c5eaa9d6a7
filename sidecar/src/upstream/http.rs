//! A server that speaks Streamable HTTP on a port of this pod.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};

use super::{Answer, Forward, ParamHeaders, UpstreamError};
use crate::{
    body::Body,
    era::{PROTOCOL_VERSION, ParamHeader},
    sessions::At,
};

pub use crate::sessions::SESSION_ID;

/// Until a connection is there.
const CONNECT: Duration = Duration::from_secs(5);
/// Until the head of the answer is there. An answer in JSON comes when the call
/// has ended, so this is the longest call.
const ANSWER: Duration = Duration::from_secs(300);

/// A server behind HTTP.
pub struct Server {
    client: Client<HttpConnector, Full<Bytes>>,
    uri: Uri,
    /// Its `Host`: made once, not for each request.
    host: HeaderValue,
    params: Arc<ParamHeaders>,
}

impl Server {
    /// A server at `uri`, which is an `http` URL.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn new(uri: Uri, params: Arc<ParamHeaders>) -> Result<Self, String> {
        if uri.scheme_str() != Some("http") || uri.host().is_none() || uri.query().is_some() {
            return Err(format!(
                "{uri} must be a URL such as http://127.0.0.1:8080/mcp: scheme http, a host, no query"
            ));
        }
        let host = uri.authority().map_or("", |authority| authority.as_str());
        let host = HeaderValue::from_str(host).map_err(|error| format!("{uri}: {error}"))?;
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(256)
            .build(connector);
        Ok(Self {
            client,
            uri,
            host,
            params,
        })
    }

    /// Headers that a tool wants.
    pub fn param_headers(&self, tool: &str) -> Arc<[ParamHeader]> {
        self.params.of(tool).unwrap_or_default()
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
        request
            .headers_mut()
            .insert(header::HOST, self.host.clone());
        let answer = tokio::time::timeout(ANSWER, self.client.request(request)).await;
        let answer = answer.map_err(|_| UpstreamError::TimedOut(ANSWER.as_secs()))?;
        let answer = answer.map_err(|error| UpstreamError::Connect(chain(&error)))?;
        Ok(answer.map(|body| body.map_err(crate::body::Error::new).boxed_unsync()))
    }

    /// Sends a decided request, under the server's own id of its session.
    pub(super) async fn forward(&self, forward: Forward<'_>) -> Result<Answer, UpstreamError> {
        let is_handshake = forward.handshake().is_some();
        let mut headers = forward.headers;
        headers.remove(SESSION_ID);
        if let Some(session) = &forward.session
            && let At::Server(id) = &session.at
        {
            headers.insert(SESSION_ID, id.clone());
        }
        let answer = self.send(forward.method, headers, forward.body).await?;
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
        let session = head.headers.get(SESSION_ID).cloned();
        let opened = session
            .filter(|_| status.is_success() && is_handshake)
            .map(At::Server);
        head.headers = forwarded(&head.headers)?;
        Ok(Answer {
            response: Response::from_parts(head, body),
            opened,
        })
    }
}

/// Answers with which the server would speak in our name.
const NOT_OURS: [StatusCode; 3] = [
    StatusCode::UNAUTHORIZED,
    StatusCode::FORBIDDEN,
    StatusCode::PROXY_AUTHENTICATION_REQUIRED,
];
/// Headers of the server that pass on to callers.
const FORWARDED: [HeaderName; 7] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CACHE_CONTROL,
    header::RETRY_AFTER,
    header::ALLOW,
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
