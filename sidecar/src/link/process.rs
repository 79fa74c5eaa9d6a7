//! One connection to the shim, and so one process: newline-delimited JSON-RPC in
//! both directions.
//!
//! Invariants: an id of ours is in flight once; what waits is bounded; a process
//! that ends answers all that wait for it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{OwnedSemaphorePermit, mpsc, watch},
};

use super::{Call, Event, Guard, OnDrop, Ongoing, Said, Sink};
use crate::{
    envelope::{Kind, Message},
    frame::{self, Frame},
    upstream::UpstreamError,
    wire::{self, SUBSCRIPTION_ID},
};

/// Longest message of the server.
const MAX_LINE: usize = 16 * 1024 * 1024;
/// Messages to the server that wait.
const OUTBOX: usize = 64;
/// Time for a message to be taken by the process.
const SEND: Duration = Duration::from_secs(30);
/// After it was closed, a process has this time to say its last words.
const LINGER: Duration = Duration::from_secs(12);
/// Calls in flight in one process.
const MAX_PENDING: usize = 1024;
/// Time for a caller to take what it asked for, before the server waits no longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same where callers share the process.
const SHARED_PATIENCE: Duration = Duration::from_millis(500);
/// Method not found (JSON-RPC 2.0 §5.1).
const NO_SUCH_METHOD: &str = r#"{"code":-32601,"message":"this conversation belongs to several requests: a request of the server cannot be matched to one"}"#;

/// A connection.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}
/// Any connection.
pub type Duplex = Box<dyn Connection>;

/// Whom a process serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One session of one caller: all that the process says belongs to it.
    Session,
    /// Requests of one caller that do not know of each other.
    Principal,
    /// Everybody.
    Shared,
}

/// A process.
pub struct Process {
    scope: Scope,
    state: Mutex<State>,
    closed: watch::Sender<bool>,
    said: Said,
}

struct State {
    /// None: closed by us.
    outbox: Option<mpsc::Sender<Bytes>>,
    pending: BTreeMap<u64, Pending>,
    next: u64,
    /// Set when the process is gone.
    ended: Option<String>,
    last_used: Instant,
}

/// A request that was sent.
struct Pending {
    /// None: whoever asked has left, and the answer is still to come.
    sink: Option<Sink>,
    /// Id and progress token as they came.
    id: String,
    token: Option<Box<RawValue>>,
    streams: bool,
    /// Whether it asked for log messages, where requests say so.
    logs: bool,
}

impl Process {
    /// Starts to read from and write to a process. `place` is given back when
    /// the process is gone.
    pub fn start(
        connection: Duplex,
        scope: Scope,
        place: Option<OwnedSemaphorePermit>,
        said: Said,
    ) -> Arc<Self> {
        let (read, write) = tokio::io::split(connection);
        let (outbox, outgoing) = mpsc::channel(OUTBOX);
        let state = State {
            outbox: Some(outbox),
            pending: BTreeMap::new(),
            next: 1,
            ended: None,
            last_used: Instant::now(),
        };
        let (state, closed) = (Mutex::new(state), watch::channel(false).0);
        let process = Arc::new(Self {
            scope,
            state,
            closed,
            said,
        });
        let (writer, reader) = (Arc::clone(&process), Arc::clone(&process));
        // A process that does not read must not keep the connection open.
        tokio::spawn(async move {
            tokio::select! { () = write_all(outgoing, write) => {} () = writer.closed_for(LINGER) => {} }
        });
        tokio::spawn(async move {
            let why = tokio::select! {
                why = reader.read_all(read) => why,
                () = reader.closed_for(LINGER) => "it was closed".into(),
            };
            reader.end(&why);
            drop(place);
        });
        process
    }

    /// Resolves some time after the process was closed.
    async fn closed_for(&self, linger: Duration) {
        let mut closed = self.closed.subscribe();
        let _ = closed.wait_for(|closed| *closed).await; // Its sender lives as long as we.
        tokio::time::sleep(linger).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether requests can be sent.
    pub fn is_open(&self) -> bool {
        let state = self.state();
        state.outbox.is_some() && state.ended.is_none()
    }

    /// Why the process is gone; none while it runs.
    pub fn ended(&self) -> Option<String> {
        self.state().ended.clone()
    }

    /// Resolves when the process is gone or closed.
    pub async fn over(&self) {
        let mut closed = self.closed.subscribe();
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// How long nothing happened; zero while somebody waits for an answer.
    pub fn idle(&self, now: Instant) -> Duration {
        let state = self.state();
        match state.pending.values().any(|pending| pending.sink.is_some()) {
            false => now.saturating_duration_since(state.last_used),
            true => Duration::ZERO,
        }
    }

    /// Closes the standard input of the process, which then is to end.
    pub fn close(&self) {
        self.state().outbox = None;
        self.closed.send_replace(true);
    }

    /// Sends a line that gets no answer.
    ///
    /// # Errors
    /// The process is gone, or takes no input.
    pub async fn send(&self, line: Bytes) -> Result<(), UpstreamError> {
        let outbox = {
            let mut state = self.state();
            state.last_used = Instant::now();
            match (&state.outbox, &state.ended) {
                (Some(outbox), None) => outbox.clone(),
                (_, Some(why)) => return Err(UpstreamError::Exited(why.clone())),
                (None, None) => return Err(UpstreamError::SessionUnknown),
            }
        };
        let sent = tokio::time::timeout(SEND, outbox.send(line)).await;
        let sent = sent.map_err(|_| UpstreamError::TimedOut(SEND.as_secs()))?;
        sent.map_err(|_| {
            let why = self.ended();
            UpstreamError::Exited(why.unwrap_or_else(|| "its standard input is closed".into()))
        })
    }

    /// Sends a request.
    ///
    /// # Errors
    /// The process is gone, or too much is in flight.
    pub async fn call(self: &Arc<Self>, call: Call<'_>) -> Result<Ongoing, UpstreamError> {
        let params = call.params;
        let raw: Option<&RawValue> = params.and_then(|params| serde_json::from_str(params).ok());
        let token = wire::member(raw, &["_meta", "progressToken"]).map(ToOwned::to_owned);
        let logs = wire::member(raw, &["_meta", "io.modelcontextprotocol/logLevel"]).is_some();
        // Before it counts as sent: what cannot be written must leave nothing behind.
        let number = self.number();
        let own = number.to_string();
        let params = match (&token, params) {
            (Some(_), Some(params)) => {
                let with_own = wire::edit(params, &["_meta", "progressToken"], Some(&own));
                Some(with_own.map_err(UpstreamError::Refused)?)
            }
            (_, params) => params.map(str::to_owned),
        };
        // Last: with it, there may be more members than are read.
        let params = match call.identity {
            Some(assertion) => {
                let told = assertion.in_params(params.as_deref());
                Some(told.map_err(UpstreamError::Refused)?)
            }
            None => params,
        };
        let (sink, ongoing) = {
            let mut state = self.state();
            if state.pending.len() >= MAX_PENDING {
                let message = format!("{MAX_PENDING} calls are in flight in one process");
                return Err(UpstreamError::Overloaded(message));
            }
            let forget = Forget {
                process: Arc::clone(self),
                number,
                on_drop: call.on_drop,
            };
            let (sink, ongoing) = Ongoing::new(forget);
            let pending = Pending {
                sink: Some(sink.clone()),
                id: call.id.to_owned(),
                token: token.clone(),
                streams: call.streams,
                logs,
            };
            state.pending.insert(number, pending);
            (sink, ongoing)
        };
        drop(sink);
        let request = wire::message(Some(&own), call.method, params.as_deref());
        match self.send(wire::line(request).into()).await {
            Ok(()) => Ok(ongoing),
            Err(error) => {
                self.state().pending.remove(&number);
                Err(error)
            }
        }
    }

    /// The number of the next request.
    fn number(&self) -> u64 {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        number
    }

    async fn read_all(&self, mut read: ReadHalf<Duplex>) -> String {
        let mut line = BytesMut::new();
        loop {
            match frame::read(&mut read).await {
                Ok(Some(Frame::Stdout(bytes))) => {
                    for part in bytes.split_inclusive(|byte| *byte == b'\n') {
                        if line.len() + part.len() > MAX_LINE {
                            return format!("it sent a message of more than {MAX_LINE} bytes");
                        }
                        line.extend_from_slice(part);
                        if part.ends_with(b"\n") {
                            self.received(line.split().freeze()).await;
                        }
                    }
                }
                // It goes into logs and into the status: no line breaks, no escapes.
                Ok(Some(Frame::Exit(why))) => return why.replace(char::is_control, " "),
                Ok(None) => return "its connection was closed".into(),
                Err(error) => return error.to_string(),
            }
        }
    }

    async fn received(&self, line: Bytes) {
        let line = line.slice_ref(line.trim_ascii());
        if line.is_empty() {
            return;
        }
        let message = match Message::parse(&line) {
            Ok(message) => message,
            // Servers print to standard output what belongs on standard error.
            Err(error) => {
                return tracing::warn!(
                    error,
                    "the server wrote a line that is no message; it is dropped"
                );
            }
        };
        let patience = match self.scope {
            Scope::Session => PATIENCE,
            Scope::Principal | Scope::Shared => SHARED_PATIENCE,
        };
        match self.route(&message, &line) {
            Route::To(number, sink, event) => {
                let is_answer = matches!(event, Event::Answer(_));
                if !sink.push(event, patience).await && !is_answer {
                    // Whoever asked does not read: the others must not wait for it.
                    let mut state = self.state();
                    if let Some(pending) = state.pending.get_mut(&number) {
                        pending.sink = None;
                    }
                }
            }
            Route::General => (self.said)(line.clone()),
            Route::Refuse(id) => {
                let _ = self
                    .send(wire::line(wire::error(&id, NO_SUCH_METHOD)).into())
                    .await; // It is gone.
            }
            Route::Nobody => tracing::debug!("a message came that nobody waits for"),
        }
    }

    /// Where a message of the server goes. The pipe does not say what belongs to
    /// what, so where it is not written in the message, the newest request in
    /// flight is taken, or the stream of what the server says by itself.
    fn route(&self, message: &Message<'_>, line: &Bytes) -> Route {
        let mut state = self.state();
        let number = |raw: Option<&RawValue>| raw.and_then(|raw| raw.get().parse::<u64>().ok());
        let to = |number: u64, pending: &Pending, text: Option<String>| match &pending.sink {
            Some(sink) => {
                let bytes = text.map_or_else(|| line.clone(), Bytes::from);
                Route::To(number, sink.clone(), Event::Message(bytes))
            }
            None => Route::Nobody,
        };
        let (method, params) = match &message.kind {
            Kind::Response { .. } => {
                let Some((number, pending)) =
                    number(message.id).and_then(|number| state.pending.remove_entry(&number))
                else {
                    return Route::Nobody;
                };
                let answer = wire::readdressed(message, &pending.id);
                let answer = answer.map(|answer| retagged_result(answer, number, &pending.id));
                return match (pending.sink, answer) {
                    (Some(sink), Some(answer)) => {
                        Route::To(number, sink, Event::Answer(Ok(answer.into())))
                    }
                    _ => Route::Nobody,
                };
            }
            Kind::Request { method, .. } => {
                if self.scope == Scope::Session {
                    let newest = state.newest(|pending| pending.streams);
                    return newest.map_or(Route::General, |(number, pending)| {
                        to(number, pending, None)
                    });
                }
                tracing::warn!(%method, "a request of the server that belongs to no session is refused");
                return message
                    .id
                    .map_or(Route::Nobody, |id| Route::Refuse(id.get().to_owned()));
            }
            Kind::Notification { method, params } => (method, *params),
        };
        if method == "notifications/progress"
            && let Some(own) = number(wire::member(params, &["progressToken"]))
            && let Some(pending) = state.pending.get(&own)
            && let (Some(token), Some(params)) = (&pending.token, params)
        {
            let params = wire::edit(params.get(), &["progressToken"], Some(token.get()));
            return params.map_or(Route::Nobody, |params| {
                to(
                    own,
                    pending,
                    Some(wire::message(None, method, Some(&params))),
                )
            });
        }
        if let Some(own) = number(wire::member(params, &["_meta", SUBSCRIPTION_ID])) {
            let Some((pending, params)) = state.pending.get(&own).zip(params) else {
                return Route::Nobody;
            };
            let params = wire::edit(params.get(), &["_meta", SUBSCRIPTION_ID], Some(&pending.id));
            return params.map_or(Route::Nobody, |params| {
                to(
                    own,
                    pending,
                    Some(wire::message(None, method, Some(&params))),
                )
            });
        }
        match (method.as_ref(), self.scope) {
            (
                "notifications/tools/list_changed"
                | "notifications/prompts/list_changed"
                | "notifications/resources/list_changed"
                | "notifications/resources/updated",
                _,
            ) => Route::General,
            (_, Scope::Session) => {
                let newest = state.newest(|pending| pending.streams);
                newest.map_or(Route::General, |(number, pending)| {
                    to(number, pending, None)
                })
            }
            // Only to a request that asked for it, and only where it can be no other's.
            ("notifications/message", _) => {
                let mut asked = state
                    .pending
                    .iter()
                    .filter(|(_, pending)| pending.logs && pending.streams);
                match (asked.next(), asked.next(), self.scope) {
                    (Some((number, pending)), None, _)
                        if state.pending.len() == 1 || self.scope == Scope::Principal =>
                    {
                        to(*number, pending, None)
                    }
                    _ => Route::Nobody,
                }
            }
            _ => Route::Nobody,
        }
    }

    fn end(&self, why: &str) {
        let pending = {
            let mut state = self.state();
            state.ended = Some(why.to_owned());
            state.outbox = None;
            std::mem::take(&mut state.pending)
        };
        self.closed.send_replace(true);
        for sink in pending.into_values().filter_map(|pending| pending.sink) {
            sink.fail(UpstreamError::Exited(why.to_owned()));
        }
    }
}

/// The result of `subscriptions/listen` names its request once more.
fn retagged_result(answer: String, number: u64, id: &str) -> String {
    if !answer.contains(SUBSCRIPTION_ID) {
        return answer;
    }
    let path = ["result", "_meta", SUBSCRIPTION_ID];
    let raw: Option<&RawValue> = serde_json::from_str(&answer).ok();
    let is_ours = wire::member(raw, &path).is_some_and(|tag| tag.get() == number.to_string());
    match is_ours.then(|| wire::edit(&answer, &path, Some(id))) {
        Some(Ok(edited)) => edited,
        _ => answer,
    }
}

impl State {
    fn newest(&self, wanted: impl Fn(&Pending) -> bool) -> Option<(u64, &Pending)> {
        let newest = self
            .pending
            .iter()
            .rev()
            .find(|(_, pending)| pending.sink.is_some() && wanted(pending));
        newest.map(|(number, pending)| (*number, pending))
    }
}

enum Route {
    /// To whoever asked.
    To(u64, Sink, Event),
    /// To the stream of what the server says by itself.
    General,
    /// It cannot be delivered, and the server is told.
    Refuse(String),
    /// It is dropped.
    Nobody,
}

/// Marks a request whose caller has left.
struct Forget {
    process: Arc<Process>,
    number: u64,
    on_drop: OnDrop,
}

impl Guard for Forget {
    fn cancel(&self, params: &str) {
        let Ok(params) = wire::edit(params, &["requestId"], Some(&self.number.to_string())) else {
            return;
        };
        let cancelled = wire::message(None, "notifications/cancelled", Some(&params));
        if let Some(outbox) = &self.process.state().outbox {
            // A full outbox belongs to a process that reads nothing.
            let _ = outbox.try_send(wire::line(cancelled).into());
        }
    }
}

impl Drop for Forget {
    fn drop(&mut self) {
        let was_pending = {
            let mut state = self.process.state();
            state.last_used = Instant::now();
            match (state.pending.get_mut(&self.number), self.on_drop) {
                (None, _) => false,
                // A cancelled request gets no answer.
                (Some(_), OnDrop::Cancel) => state.pending.remove(&self.number).is_some(),
                // The number stays taken until its answer came.
                (Some(pending), OnDrop::Abandon) => {
                    pending.sink = None;
                    false
                }
            }
        };
        if was_pending {
            self.cancel("{}");
        }
    }
}

async fn write_all(mut outgoing: mpsc::Receiver<Bytes>, mut write: WriteHalf<Duplex>) {
    while let Some(message) = outgoing.recv().await {
        if write.write_all(&message).await.is_err() {
            return; // The reader learns why.
        }
    }
    let _ = write.shutdown().await; // Closes the standard input; it may be closed already.
}
