//! A server that speaks Streamable HTTP on a port of this pod.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
};
use http_body_util::{BodyExt, Full};

use super::{Answer, Forward, ParamHeaders, UpstreamError, credential::Credential, pool::Pool};
use crate::{body::Body, era::ParamHeader, identity, sessions::At};

pub use crate::sessions::SESSION_ID;

/// Until the head of the answer is there. An answer in JSON comes when the call
/// has ended, so this is the longest call.
const ANSWER: Duration = Duration::from_secs(300);

/// A server behind HTTP.
pub struct Server {
    pool: Arc<Pool>,
    /// The path, as it stands in requests.
    path: Uri,
    /// Its `Host`: made once, not for each request.
    host: HeaderValue,
    params: Arc<ParamHeaders>,
    credential: Option<Arc<Credential>>,
}

impl Server {
    /// A server at `uri`, which is an `http` URL.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn new(
        uri: Uri,
        params: Arc<ParamHeaders>,
        credential: Option<Arc<Credential>>,
    ) -> Result<Self, String> {
        if uri.scheme_str() != Some("http") || uri.host().is_none() || uri.query().is_some() {
            return Err(format!(
                "{uri} must be a URL such as http://127.0.0.1:8080/mcp: scheme http, a host, no query"
            ));
        }
        let wrong = |error: &dyn std::fmt::Display| format!("{uri}: {error}");
        let authority = uri.authority().ok_or_else(|| wrong(&"no host"))?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|error| wrong(&error))?;
        let path = uri.path().parse().map_err(|error| wrong(&error))?;
        Ok(Self {
            pool: Arc::new(Pool::new(authority)),
            path,
            host,
            params,
            credential,
        })
    }

    /// Closes connections that were not used for long.
    pub fn sweep(&self) {
        self.pool.sweep();
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
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = headers;
        request
            .headers_mut()
            .insert(header::HOST, self.host.clone());
        if let Some(credential) = &self.credential {
            credential.put(request.headers_mut())?;
        }
        let answer = tokio::time::timeout(ANSWER, self.pool.send(request)).await;
        let answer = answer.map_err(|_| UpstreamError::TimedOut(ANSWER.as_secs()))??;
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
        if let Some(assertion) = &forward.identity {
            headers.insert(identity::HEADER, assertion.header());
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

/// Whether a header of the server passes on to callers.
fn passes(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "content-type"
            | "content-length"
            | "cache-control"
            | "retry-after"
            | "allow"
            | "mcp-protocol-version"
            | "x-accel-buffering"
    )
}

fn forwarded(headers: &HeaderMap) -> Result<HeaderMap, UpstreamError> {
    let invalid = |what: &str| Err(UpstreamError::Invalid(what.into()));
    if headers
        .get(header::CONTENT_ENCODING)
        .is_some_and(|encoding| encoding != "identity")
    {
        return invalid("it has a content encoding, though none was accepted");
    }
    let mut forwarded = HeaderMap::with_capacity(4);
    for name in headers.keys().filter(|name| passes(name)) {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => drop(forwarded.insert(name, value.clone())),
            (Some(_), Some(_)) if name == header::CONTENT_TYPE => {
                return invalid("it has two types");
            }
            _ => {}
        }
    }
    Ok(forwarded)
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
