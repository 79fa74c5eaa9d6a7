//! One connection to the shim: newline-delimited JSON-RPC in both directions.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
};

use crate::{
    envelope::{Kind, Message},
    frame::{self, Frame},
    upstream::UpstreamError,
};

/// Longest message of the server.
const MAX_LINE: usize = 16 * 1024 * 1024;
/// Messages to the server that wait.
const OUTBOX: usize = 64;
/// Messages of the server that wait for a stream to be opened; later ones are dropped.
const INBOX: usize = 256;
/// Bytes of such messages.
const INBOX_BYTES: usize = 8 * 1024 * 1024;
/// Time for a message to be taken by the process.
const SEND: Duration = Duration::from_secs(30);
/// After it was closed, a process has this time to say its last words.
const LINGER: Duration = Duration::from_secs(12);
/// Calls in flight in one session.
const MAX_PENDING: usize = 1024;

/// A connection.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}
/// Any connection.
pub type Duplex = Box<dyn Connection>;

type Answer = Result<Bytes, UpstreamError>;

/// A session with a process.
pub struct Session {
    state: Mutex<State>,
    closed: watch::Sender<bool>,
    /// Bytes that wait in the inbox.
    inbox_bytes: AtomicUsize,
}

struct State {
    /// None: closed by us.
    outbox: Option<mpsc::Sender<Bytes>>,
    /// None: whoever asked has left, and the answer is still to come.
    pending: HashMap<Id, Option<oneshot::Sender<Answer>>>,
    /// None: a stream has it.
    inbox: Option<mpsc::Receiver<Bytes>>,
    /// Set when the process is gone.
    ended: Option<String>,
    last_used: Instant,
}

/// An id, by its meaning and not by how it is written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Id {
    Number(i64),
    Text(String),
}

impl Id {
    fn parse(raw: &str) -> Option<Self> {
        match raw.starts_with('"') {
            true => serde_json::from_str(raw).ok().map(Self::Text),
            false => raw.parse().ok().map(Self::Number),
        }
    }
}

impl Session {
    /// Starts to read from and write to a process.
    /// `place` is given back when the process is gone.
    pub fn start(connection: Duplex, place: Option<OwnedSemaphorePermit>) -> Arc<Self> {
        let (read, write) = tokio::io::split(connection);
        let (outbox, outgoing) = mpsc::channel(OUTBOX);
        let (messages, inbox) = mpsc::channel(INBOX);
        let state = State {
            outbox: Some(outbox),
            pending: HashMap::new(),
            inbox: Some(inbox),
            ended: None,
            last_used: Instant::now(),
        };
        let session = Arc::new(Self {
            state: Mutex::new(state),
            closed: watch::channel(false).0,
            inbox_bytes: AtomicUsize::new(0),
        });
        let (writer, reader) = (Arc::clone(&session), Arc::clone(&session));
        // A process that does not read must not keep the connection open.
        tokio::spawn(async move {
            tokio::select! { () = write_all(outgoing, write) => {} () = writer.closed_for(LINGER) => {} }
        });
        tokio::spawn(async move {
            let why = tokio::select! {
                why = reader.read_all(read, messages) => why,
                () = reader.closed_for(LINGER) => "it was closed".into(),
            };
            reader.end(&why);
            drop(place);
        });
        session
    }

    /// Resolves some time after the session was closed.
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

    /// How long nothing happened; zero while a call or a stream is open.
    pub fn idle(&self, now: Instant) -> Duration {
        let state = self.state();
        let waits = state.pending.values().any(Option::is_some);
        match !waits && state.inbox.is_some() {
            true => now.saturating_duration_since(state.last_used),
            false => Duration::ZERO,
        }
    }

    /// Closes the standard input of the process, which then is to end.
    pub fn close(&self) {
        self.state().outbox = None;
        self.closed.send_replace(true);
    }

    /// Sends a message that gets no answer.
    ///
    /// # Errors
    /// The process is gone.
    pub async fn send(&self, message: Bytes) -> Result<(), UpstreamError> {
        let outbox = {
            let mut state = self.state();
            state.last_used = Instant::now();
            match (&state.outbox, &state.ended) {
                (Some(outbox), None) => outbox.clone(),
                (_, Some(why)) => return Err(UpstreamError::Exited(why.clone())),
                (None, None) => return Err(UpstreamError::SessionUnknown),
            }
        };
        let sent = tokio::time::timeout(SEND, outbox.send(one_line(message))).await;
        let sent = sent.map_err(|_| UpstreamError::TimedOut(SEND.as_secs()))?;
        sent.map_err(|_| {
            UpstreamError::Exited(
                self.ended()
                    .unwrap_or_else(|| "its standard input is closed".into()),
            )
        })
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// The process is gone, or the id is in flight already.
    pub async fn request(self: &Arc<Self>, id: &str, message: Bytes) -> Answer {
        let id = Id::parse(id).ok_or_else(|| {
            UpstreamError::Refused("the id is neither a string nor an integer".into())
        })?;
        let (sender, answer) = oneshot::channel();
        {
            let mut state = self.state();
            if state.pending.len() >= MAX_PENDING {
                return Err(UpstreamError::Overloaded(format!(
                    "{MAX_PENDING} calls are in flight in this session"
                )));
            }
            if state.pending.contains_key(&id) {
                return Err(UpstreamError::Refused(
                    "the id is in use by a request in flight".into(),
                ));
            }
            state.pending.insert(id.clone(), Some(sender));
        }
        let _forget = Forget { session: self, id };
        self.send(message).await?;
        match answer.await {
            Ok(answer) => answer,
            Err(_) => Err(UpstreamError::Exited(self.ended().unwrap_or_default())),
        }
    }

    /// What the server says by itself; none while another stream has it.
    pub fn messages(self: &Arc<Self>) -> Option<Messages> {
        let inbox = self.state().inbox.take()?;
        Some(Messages {
            session: Arc::clone(self),
            inbox: Some(inbox),
        })
    }

    async fn read_all(&self, mut read: ReadHalf<Duplex>, messages: mpsc::Sender<Bytes>) -> String {
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
                            self.received(line.split().freeze(), &messages);
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

    fn received(&self, line: Bytes, messages: &mpsc::Sender<Bytes>) {
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
        match (&message.kind, message.id.and_then(|id| Id::parse(id.get()))) {
            (Kind::Response { .. }, Some(id)) => {
                let waiting = self.state().pending.remove(&id).flatten();
                if waiting.is_none_or(|waiting| waiting.send(Ok(line.clone())).is_err()) {
                    tracing::debug!("an answer came for which nobody waits");
                }
            }
            _ => {
                let waiting = self.inbox_bytes.load(Ordering::Relaxed);
                if waiting + line.len() <= INBOX_BYTES && messages.try_send(line.clone()).is_ok() {
                    self.inbox_bytes.fetch_add(line.len(), Ordering::Relaxed);
                } else {
                    tracing::warn!(
                        "nobody listens to what the server says by itself; a message is dropped"
                    );
                }
            }
        }
    }

    fn end(&self, why: &str) {
        let mut state = self.state();
        state.ended = Some(why.to_owned());
        state.outbox = None;
        for waiting in state.pending.drain().filter_map(|(_, waiting)| waiting) {
            let _ = waiting.send(Err(UpstreamError::Exited(why.to_owned()))); // The caller may have left.
        }
    }
}

/// Marks a request whose caller has left.
struct Forget<'s> {
    session: &'s Session,
    id: Id,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        // The place of the id stays taken until its answer came: else the answer
        // could be taken for that to a later request.
        let mut state = self.session.state();
        if let Some(waiting) = state.pending.get_mut(&self.id) {
            *waiting = None;
        }
    }
}

/// What the server says by itself. When it is dropped, another stream can take over.
pub struct Messages {
    session: Arc<Session>,
    inbox: Option<mpsc::Receiver<Bytes>>,
}

impl Stream for Messages {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match &mut self.inbox {
            Some(inbox) => {
                let received = std::task::ready!(inbox.poll_recv(cx));
                if let Some(message) = &received {
                    self.session
                        .inbox_bytes
                        .fetch_sub(message.len(), Ordering::Relaxed);
                }
                Poll::Ready(received)
            }
            None => Poll::Ready(None),
        }
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        let mut state = self.session.state();
        state.inbox = self.inbox.take();
        state.last_used = Instant::now();
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

/// The message as one line. Line breaks can stand only between tokens: inside
/// a string they are not valid JSON.
fn one_line(message: Bytes) -> Bytes {
    let mut line: Vec<u8> = message.into();
    for byte in &mut line {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    line.push(b'\n');
    line.into()
}
