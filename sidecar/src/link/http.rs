//! A conversation over Streamable HTTP, the sidecar being the client.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, header};
use http_body_util::{BodyExt, BodyStream, Limited};
use serde_json::value::RawValue;
use tokio::{sync::watch, task::AbortHandle};

use super::{Call, Event, Guard, OnDrop, Ongoing, Said, Sink};
use crate::{
    body::Body,
    envelope::{Kind, Message},
    era::{self, Era, MCP_METHOD, MCP_NAME, PROTOCOL_VERSION, Revision},
    identity,
    request::is_type,
    sse,
    upstream::{
        UpstreamError,
        http::{SESSION_ID, Server, json_headers},
    },
    wire,
};

/// Largest answer that is not a stream.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// Time for a caller to take what it asked for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts at the stream of what the server says by itself.
const AGAIN: Duration = Duration::from_secs(5);
/// Method not found (JSON-RPC 2.0 §5.1).
const NO_SUCH_METHOD: &str =
    r#"{"code":-32601,"message":"requests of the server do not pass between eras"}"#;

/// A client of one server.
pub struct HttpClient {
    server: Arc<Server>,
    state: Mutex<State>,
    closed: watch::Sender<bool>,
    said: Said,
}

struct State {
    revision: Revision,
    session: Option<HeaderValue>,
    next: u64,
    /// Reads the stream of what the server says by itself.
    listener: Option<AbortHandle>,
}

impl HttpClient {
    /// A client that has said nothing yet.
    pub fn new(server: Arc<Server>, said: Said) -> Arc<Self> {
        let state = State {
            revision: Revision::NEWEST,
            session: None,
            next: 1,
            listener: None,
        };
        let (state, closed) = (Mutex::new(state), watch::channel(false).0);
        Arc::new(Self {
            server,
            state,
            closed,
            said,
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the revision that requests name.
    pub fn speak(&self, revision: Revision) {
        self.state().revision = revision;
    }

    /// Whether requests can be sent.
    pub fn is_open(&self) -> bool {
        !*self.closed.borrow()
    }

    /// Resolves when the conversation is over.
    pub async fn over(&self) {
        let mut closed = self.closed.subscribe();
        let _ = closed.wait_for(|closed| *closed).await; // Its sender lives as long as we.
    }

    /// Ends the session, where there is one.
    pub fn close(self: &Arc<Self>) {
        if self.closed.send_replace(true) {
            return;
        }
        let listener = self.state().listener.take();
        listener.inspect(AbortHandle::abort);
        if self.state().session.is_some() {
            let client = Arc::clone(self);
            // Best effort: a server may not offer it.
            tokio::spawn(async move {
                drop(
                    client
                        .http(Method::DELETE, client.headers(None, None), String::new())
                        .await,
                )
            });
        }
    }

    fn headers(&self, method: Option<&str>, params: Option<&str>) -> HeaderMap {
        let mut headers = json_headers();
        let state = self.state();
        if let Some(session) = &state.session {
            headers.insert(SESSION_ID, session.clone());
        }
        if method != Some("initialize") {
            headers.insert(
                PROTOCOL_VERSION,
                HeaderValue::from_static(state.revision.as_str()),
            );
        }
        if let (Era::Modern, Some(method)) = (state.revision.era(), method) {
            let raw: Option<&RawValue> =
                params.and_then(|params| serde_json::from_str(params).ok());
            let name = wire::member(
                raw,
                &[if method == "resources/read" {
                    "uri"
                } else {
                    "name"
                }],
            );
            let name = name.and_then(|name| serde_json::from_str::<String>(name.get()).ok());
            let mut add = |header: HeaderName, value: &str| {
                if let Ok(value) = HeaderValue::from_str(value) {
                    headers.insert(header, value);
                }
            };
            add(MCP_METHOD, method);
            if let Some(name) =
                name.filter(|_| ["tools/call", "prompts/get", "resources/read"].contains(&method))
            {
                add(MCP_NAME, &era::encode(&name));
                if method == "tools/call" {
                    for (header, value) in era::param_values(raw, &self.server.param_headers(&name))
                    {
                        HeaderName::try_from(header)
                            .into_iter()
                            .for_each(|header| add(header, &value));
                    }
                }
            }
        }
        headers
    }

    async fn http(
        &self,
        method: Method,
        mut headers: HeaderMap,
        body: String,
    ) -> Result<Response<Body>, UpstreamError> {
        if method != Method::POST {
            headers.remove(header::CONTENT_TYPE);
        }
        self.server.send(method, headers, body.into()).await
    }

    /// Sends a notification or an answer.
    ///
    /// # Errors
    /// The server does not take it.
    pub async fn send(self: &Arc<Self>, message: String) -> Result<(), UpstreamError> {
        let parsed = Message::parse(message.as_bytes()).map_err(UpstreamError::Refused)?;
        let method = match &parsed.kind {
            Kind::Notification { method, .. } => Some(method.as_ref()),
            _ => None,
        };
        let headers = self.headers(method, None);
        let is_initialized = method == Some("notifications/initialized");
        let answer = self.http(Method::POST, headers, message).await?;
        if !answer.status().is_success() {
            return Err(UpstreamError::Invalid(format!(
                "a notification: status {}",
                answer.status()
            )));
        }
        if is_initialized {
            self.listen();
        }
        Ok(())
    }

    /// Sends a request.
    ///
    /// # Errors
    /// The conversation is over.
    pub fn call(self: &Arc<Self>, call: Call<'_>) -> Result<Ongoing, UpstreamError> {
        if !self.is_open() {
            return Err(UpstreamError::SessionUnknown);
        }
        let number = {
            let mut state = self.state();
            state.next += 1;
            state.next
        };
        let own = number.to_string();
        let raw: Option<&RawValue> = call
            .params
            .and_then(|params| serde_json::from_str(params).ok());
        let token = wire::member(raw, &["_meta", "progressToken"]).map(ToOwned::to_owned);
        let params = match (&token, call.params) {
            (Some(_), Some(params)) => {
                let with_own = wire::edit(params, &["_meta", "progressToken"], Some(&own));
                Some(with_own.map_err(UpstreamError::Refused)?)
            }
            (_, params) => params.map(str::to_owned),
        };
        let mut headers = self.headers(Some(call.method), params.as_deref());
        if let Some(assertion) = call.identity {
            headers.insert(identity::HEADER, assertion.header());
        }
        let exchange = Exchange {
            client: Arc::clone(self),
            own,
            id: call.id.to_owned(),
            token,
            is_handshake: call.method == "initialize",
        };
        let body = wire::message(Some(&exchange.own), call.method, params.as_deref());
        let stop = Stop {
            client: Arc::clone(self),
            own: exchange.own.clone(),
            on_drop: call.on_drop,
            task: Mutex::default(),
        };
        let stop = Arc::new(stop);
        let (sink, ongoing) = Ongoing::new(StopOnDrop(Arc::clone(&stop)));
        let task = tokio::spawn(async move {
            let answer = exchange.run(headers, body, &sink).await;
            if let Err(error) = answer {
                sink.fail(error);
            }
        });
        *stop.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
        Ok(ongoing)
    }

    /// Reads the stream of what the server says by itself, again and again.
    fn listen(self: &Arc<Self>) {
        let client = Arc::clone(self);
        if client.state().revision.era() == Era::Modern {
            return;
        }
        let task = tokio::spawn(async move {
            while client.is_open() {
                match client
                    .http(Method::GET, client.headers(None, None), String::new())
                    .await
                {
                    Ok(answer) if answer.status().is_success() && is_event_stream(&answer) => {
                        let mut events = Events::new(answer.into_body());
                        while let Ok(Some(data)) = events.next().await {
                            client.heard(data).await;
                        }
                    }
                    Ok(answer) if answer.status().is_client_error() => return, // It offers none.
                    _ => {}
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
        self.state().listener = Some(task.abort_handle());
    }

    async fn heard(self: &Arc<Self>, data: Vec<u8>) {
        let refused = match Message::parse(&data) {
            Ok(Message {
                kind: Kind::Request { .. },
                id: Some(id),
                ..
            }) => wire::error(id.get(), NO_SUCH_METHOD),
            Ok(Message {
                kind: Kind::Notification { .. },
                ..
            }) => return (self.said)(data.into()),
            _ => return,
        };
        let headers = self.headers(None, None);
        drop(self.http(Method::POST, headers, refused).await); // It cannot do more than wait.
    }
}

/// Stops an exchange whose caller has left.
struct Stop {
    client: Arc<HttpClient>,
    own: String,
    on_drop: OnDrop,
    task: Mutex<Option<AbortHandle>>,
}

impl Stop {
    fn cancel(&self, params: &str) {
        if self.client.state().revision.era() == Era::Modern {
            return self.abort(); // The closed connection is the cancellation.
        }
        let Ok(params) = wire::edit(params, &["requestId"], Some(&self.own)) else {
            return;
        };
        let client = Arc::clone(&self.client);
        tokio::spawn(async move {
            drop(
                client
                    .send(wire::message(
                        None,
                        "notifications/cancelled",
                        Some(&params),
                    ))
                    .await,
            );
        });
    }

    fn abort(&self) {
        let task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        task.inspect(AbortHandle::abort);
    }
}

struct StopOnDrop(Arc<Stop>);

impl Guard for StopOnDrop {
    fn cancel(&self, params: &str) {
        self.0.cancel(params);
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        let is_finished = {
            let task = self.0.task.lock().unwrap_or_else(PoisonError::into_inner);
            task.as_ref().is_none_or(AbortHandle::is_finished)
        };
        if !is_finished && self.0.on_drop == OnDrop::Cancel {
            self.0.cancel("{}");
        }
        self.0.abort();
    }
}

/// One request and its answer.
struct Exchange {
    client: Arc<HttpClient>,
    own: String,
    id: String,
    token: Option<Box<RawValue>>,
    is_handshake: bool,
}

impl Exchange {
    async fn run(
        &self,
        headers: HeaderMap,
        body: String,
        sink: &Sink,
    ) -> Result<(), UpstreamError> {
        let answer = self.client.http(Method::POST, headers, body).await?;
        if self.is_handshake && answer.status().is_success() {
            self.client.state().session = answer.headers().get(SESSION_ID).cloned();
        }
        let invalid = |error: &dyn std::fmt::Display| UpstreamError::Invalid(error.to_string());
        if !is_event_stream(&answer) {
            let status = answer.status();
            let whole = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            let whole = whole.map_err(|error| invalid(&error))?.to_bytes();
            if status == http::StatusCode::NOT_FOUND && self.client.state().session.is_some() {
                self.client.close(); // It has forgotten the session: the next one gets a new conversation.
                return Err(UpstreamError::SessionUnknown);
            }
            return match self.take(&whole, sink).await? {
                true => Ok(()),
                false => Err(invalid(&format!(
                    "status {status} and no answer to the request"
                ))),
            };
        }
        let mut events = Events::new(answer.into_body());
        while let Some(data) = events.next().await? {
            if self.take(&data, sink).await? {
                return Ok(());
            }
        }
        Err(invalid(&"the stream ended without an answer"))
    }

    /// Hands on a message; true: it was the answer.
    async fn take(&self, data: &[u8], sink: &Sink) -> Result<bool, UpstreamError> {
        let message = Message::parse(data).map_err(UpstreamError::Invalid)?;
        match &message.kind {
            Kind::Response { .. } => {
                let is_ours = message
                    .id
                    .is_some_and(|id| id.get() == self.own || id.get() == "null");
                let answer = wire::readdressed(&message, &self.id).filter(|_| is_ours);
                let answer = answer
                    .ok_or_else(|| UpstreamError::Invalid("it answered another request".into()))?;
                let path = ["result", "_meta", wire::SUBSCRIPTION_ID];
                let raw: Option<&RawValue> = serde_json::from_str(&answer).ok();
                let answer = match wire::member(raw, &path) {
                    Some(_) => wire::edit(&answer, &path, Some(&self.id))
                        .map_err(UpstreamError::Invalid)?,
                    None => answer,
                };
                sink.push(Event::Answer(Ok(answer.into())), PATIENCE).await;
                Ok(true)
            }
            Kind::Request { .. } => {
                self.client.heard(data.to_vec()).await;
                Ok(false)
            }
            Kind::Notification { method, params } => {
                let edited = match (method.as_ref(), params, &self.token) {
                    ("notifications/progress", Some(params), Some(token)) => {
                        wire::edit(params.get(), &["progressToken"], Some(token.get())).ok()
                    }
                    (_, Some(params), _)
                        if wire::member(Some(params), &["_meta", wire::SUBSCRIPTION_ID])
                            .is_some() =>
                    {
                        wire::edit(
                            params.get(),
                            &["_meta", wire::SUBSCRIPTION_ID],
                            Some(&self.id),
                        )
                        .ok()
                    }
                    _ => None,
                };
                let bytes = match edited {
                    Some(params) => Bytes::from(wire::message(None, method, Some(&params))),
                    None => Bytes::copy_from_slice(data),
                };
                match sink.push(Event::Message(bytes), PATIENCE).await {
                    true => Ok(false),
                    false => Err(UpstreamError::Overloaded(
                        "the caller does not take the answer".into(),
                    )),
                }
            }
        }
    }
}

fn is_event_stream(answer: &Response<Body>) -> bool {
    answer
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| is_type(value.as_bytes(), "text/event-stream"))
}

/// The data of a stream of events.
struct Events {
    body: BodyStream<Body>,
    splitter: sse::Splitter,
}

impl Events {
    fn new(body: Body) -> Self {
        let (body, splitter) = (BodyStream::new(body), sse::Splitter::default());
        Self { body, splitter }
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
                let pushed = self.splitter.push(&bytes);
                pushed.map_err(|error| UpstreamError::Invalid(error.to_string()))?;
            }
        }
    }
}
