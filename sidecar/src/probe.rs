//! The sidecar's own session with the server: handshake and lists, at the start
//! and when the list changes. What it sees is what `/readyz` and `/status` tell.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Method, Response, header};
use http_body_util::{BodyExt, BodyStream, Limited};
use policy::report::{ToolReport, UpstreamReport, UpstreamState};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::{
    body::Body,
    request::is_type,
    sse,
    stdio_session::Session,
    upstream::{
        Upstream, UpstreamError,
        http::{HttpUpstream, PROTOCOL_VERSION, SESSION_ID, json_headers},
    },
};

/// Revision that the probe offers; the server answers with the one it speaks.
const REVISION: &str = "2025-11-25";
/// Longest answer to the probe.
const ANSWER: Duration = Duration::from_secs(60);
/// Largest answer to the probe.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// Pages of a list, and tools, at most.
const MAX_PAGES: usize = 100;
const MAX_TOOLS: usize = 10_000;
/// Longest name of a tool that is looked at, in bytes.
const MAX_NAME: usize = 1024;
/// Between two lists at least.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a server that tells nothing by itself is asked again.
const AGAIN: Duration = Duration::from_secs(30);
/// Until a server that does not listen counts as failed.
const SLOW: Duration = Duration::from_secs(30);
/// Between attempts, before the first answer and afterwards.
const RETRY: Duration = Duration::from_millis(100);
const MAX_RETRY: Duration = Duration::from_secs(10);

/// What the probe has seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Whether the server answered once.
    pub answered: bool,
    /// Whether it answers now.
    pub upstream: UpstreamReport,
    /// Its tools.
    pub tools: Option<Vec<ToolReport>>,
}

/// Probes for as long as the process lives.
pub async fn run(upstream: Arc<Upstream>, seen: watch::Sender<Seen>) {
    let (mut wait, started) = (RETRY, Instant::now());
    loop {
        match watch_server(&upstream, &seen).await {
            Ok(()) => wait = RETRY,
            Err(error) => {
                let message = error.to_string();
                tracing::info!(?message, "the server does not answer the handshake");
                seen.send_if_modified(|seen| {
                    // A server that is only slow to listen has not failed.
                    let starting = !seen.answered
                        && matches!(error, UpstreamError::Connect(_))
                        && started.elapsed() < SLOW;
                    let state = if starting {
                        UpstreamState::Starting
                    } else {
                        UpstreamState::Failed
                    };
                    let now = UpstreamReport { state, message };
                    std::mem::replace(&mut seen.upstream, now.clone()) != now
                });
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(MAX_RETRY);
            }
        }
    }
}

/// One session: returns when it ended in good order.
async fn watch_server(
    upstream: &Arc<Upstream>,
    seen: &watch::Sender<Seen>,
) -> Result<(), UpstreamError> {
    let mut client = match &**upstream {
        Upstream::Http(server) => Client::Http(Box::new(HttpClient {
            server,
            session: None,
            revision: None,
        })),
        Upstream::Stdio(server) => Client::Stdio(server.own_session().await?),
    };
    let ended = talk(&mut client, seen).await;
    client.close().await; // Also after an error: a session left open holds a process.
    ended
}

/// Handshake, then lists, again and again. Ends in good order when the server
/// ends the session.
async fn talk(client: &mut Client<'_>, seen: &watch::Sender<Seen>) -> Result<(), UpstreamError> {
    let handshake = json!({
        "protocolVersion": REVISION, "capabilities": {},
        "clientInfo": {"name": "toolward-sidecar", "version": env!("CARGO_PKG_VERSION")},
    });
    let result = client.request("initialize", handshake).await?;
    if let Client::Http(client) = client {
        client.revision = result["protocolVersion"].as_str().map(str::to_owned);
    }
    client.notify("notifications/initialized").await?;
    let has_tools = result["capabilities"]["tools"].is_object();
    loop {
        let tools = match has_tools {
            true => list_tools(client).await?,
            false => Vec::new(),
        };
        seen.send_if_modified(|seen| {
            let upstream = UpstreamReport {
                state: UpstreamState::Serving,
                message: String::new(),
            };
            let now = Seen {
                answered: true,
                upstream,
                tools: Some(tools),
            };
            std::mem::replace(seen, now.clone()) != now
        });
        let changed = client.changed().await;
        tokio::time::sleep(PAUSE).await; // A server that changes all the time must not keep us busy.
        if !changed? {
            return Ok(());
        }
    }
}

async fn list_tools(client: &mut Client<'_>) -> Result<Vec<ToolReport>, UpstreamError> {
    let (mut tools, mut params) = (Vec::new(), json!({}));
    for _ in 0..MAX_PAGES {
        let page = client.request("tools/list", params).await?;
        for tool in page["tools"].as_array().into_iter().flatten() {
            if let Some(name) = tool["name"].as_str()
                && tools.len() < MAX_TOOLS
                && name.len() <= MAX_NAME
            {
                tools.push(ToolReport {
                    name: name.to_owned(),
                    digest: digest(tool),
                });
            }
        }
        match page["nextCursor"].as_str() {
            Some(cursor) => params = json!({"cursor": cursor}),
            None => break,
        }
    }
    tools.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tools)
}

/// SHA-256 of a definition, written with sorted keys.
fn digest(tool: &Value) -> String {
    fn sorted(value: &Value, out: &mut Sha256) {
        match value {
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                fields.sort_by_key(|(name, _)| *name);
                out.update("{");
                for (name, value) in fields {
                    out.update(Value::String(name.clone()).to_string());
                    out.update(":");
                    sorted(value, out);
                    out.update(",");
                }
                out.update("}");
            }
            Value::Array(items) => {
                out.update("[");
                for item in items {
                    sorted(item, out);
                    out.update(",");
                }
                out.update("]");
            }
            value => out.update(value.to_string()),
        }
    }
    let mut hash = Sha256::new();
    sorted(tool, &mut hash);
    hash.finalize()
        .iter()
        .fold(String::from("sha256:"), |text, byte| {
            format!("{text}{byte:02x}")
        })
}

enum Client<'u> {
    Http(Box<HttpClient<'u>>),
    Stdio(Arc<Session>),
}

struct HttpClient<'u> {
    server: &'u HttpUpstream,
    session: Option<HeaderValue>,
    revision: Option<String>,
}

impl Client<'_> {
    async fn request(&mut self, method: &str, params: Value) -> Result<Value, UpstreamError> {
        let body =
            json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        let answer = tokio::time::timeout(ANSWER, async {
            match self {
                Self::Stdio(session) => session.request("1", body.into()).await,
                Self::Http(client) => client.request(method, body).await,
            }
        });
        let answer = answer
            .await
            .map_err(|_| UpstreamError::TimedOut(ANSWER.as_secs()))??;
        let mut answer: Value = serde_json::from_slice(&answer)
            .map_err(|error| UpstreamError::Invalid(error.to_string()))?;
        match &answer["error"] {
            Value::Null => Ok(answer["result"].take()),
            error => Err(UpstreamError::Invalid(format!("{method}: {error}"))),
        }
    }

    async fn notify(&mut self, method: &str) -> Result<(), UpstreamError> {
        let body = json!({"jsonrpc": "2.0", "method": method}).to_string();
        match self {
            Self::Stdio(session) => session.send(body.into()).await,
            Self::Http(client) => client.send(Method::POST, body).await.map(drop),
        }
    }

    /// Waits until the tools may have changed (true), or the session is to be
    /// opened anew (false).
    async fn changed(&self) -> Result<bool, UpstreamError> {
        match self {
            Self::Stdio(session) => {
                let mut messages = session.messages().ok_or(UpstreamError::SessionUnknown)?;
                while let Some(message) = messages.next().await {
                    if is_list_changed(&message) {
                        return Ok(true);
                    }
                }
                Err(UpstreamError::Exited(
                    session
                        .ended()
                        .unwrap_or_else(|| "its connection was closed".into()),
                ))
            }
            Self::Http(client) => client.changed().await,
        }
    }

    async fn close(&mut self) {
        match self {
            Self::Stdio(session) => session.close(),
            // Best effort: a server may not offer it.
            Self::Http(client) => drop(client.send(Method::DELETE, String::new()).await),
        }
    }
}

impl HttpClient<'_> {
    async fn send(&self, method: Method, body: String) -> Result<Response<Body>, UpstreamError> {
        let mut headers = json_headers();
        if method != Method::POST {
            headers.remove(header::CONTENT_TYPE);
        }
        if let Some(session) = &self.session {
            headers.insert(SESSION_ID, session.clone());
        }
        if let Some(revision) = self
            .revision
            .as_deref()
            .and_then(|revision| HeaderValue::from_str(revision).ok())
        {
            headers.insert(PROTOCOL_VERSION, revision);
        }
        self.server.send(method, headers, body.into()).await
    }

    async fn request(&mut self, method: &str, body: String) -> Result<Bytes, UpstreamError> {
        let answer = self.send(Method::POST, body).await?;
        if !answer.status().is_success() {
            return Err(UpstreamError::Invalid(format!(
                "{method}: status {}",
                answer.status()
            )));
        }
        if method == "initialize" {
            self.session = answer.headers().get(SESSION_ID).cloned();
        }
        let invalid = |error: &dyn std::fmt::Display| UpstreamError::Invalid(error.to_string());
        if !is_event_stream(&answer) {
            let whole = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            return Ok(whole.map_err(|error| invalid(&error))?.to_bytes());
        }
        let mut events = Events::new(answer.into_body());
        while let Some(data) = events.next().await? {
            let message: Value = serde_json::from_slice(&data).map_err(|error| invalid(&error))?;
            if message["id"] == 1 && message.get("method").is_none() {
                return Ok(data.into());
            }
        }
        Err(UpstreamError::Invalid(format!(
            "{method}: the stream ended without an answer"
        )))
    }

    async fn changed(&self) -> Result<bool, UpstreamError> {
        let answer = self.send(Method::GET, String::new()).await?;
        if !answer.status().is_success() || !is_event_stream(&answer) {
            tokio::time::sleep(AGAIN).await; // No stream to be had: ask again later.
            return Ok(true);
        }
        let mut events = Events::new(answer.into_body());
        while let Some(data) = events.next().await? {
            if is_list_changed(&data) {
                return Ok(true);
            }
        }
        Ok(false) // A server may close its stream at any time.
    }
}

fn is_event_stream(answer: &Response<Body>) -> bool {
    answer
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| is_type(value.as_bytes(), "text/event-stream"))
}

fn is_list_changed(message: &[u8]) -> bool {
    let message: Value = serde_json::from_slice(message).unwrap_or_default();
    message["method"] == "notifications/tools/list_changed"
}

/// The data of a stream of events.
struct Events {
    body: BodyStream<Body>,
    splitter: sse::Splitter,
}

impl Events {
    fn new(body: Body) -> Self {
        Self {
            body: BodyStream::new(body),
            splitter: sse::Splitter::default(),
        }
    }

    async fn next(&mut self) -> Result<Option<Vec<u8>>, UpstreamError> {
        loop {
            while let Some(event) = self.splitter.next_event() {
                if let Some(data) = sse::data(&event).filter(|data| !data.is_empty()) {
                    return Ok(Some(data));
                }
            }
            let Some(frame) = self.body.next().await else {
                return Ok(None);
            };
            let frame = frame.map_err(|error| UpstreamError::Connect(error.to_string()))?;
            if let Ok(bytes) = frame.into_data() {
                self.splitter
                    .push(&bytes)
                    .map_err(|error| UpstreamError::Invalid(error.to_string()))?;
            }
        }
    }
}
