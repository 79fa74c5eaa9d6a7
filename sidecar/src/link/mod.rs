//! The sidecar as an MCP client: a conversation with the wrapped server in the
//! server's own era. The sidecar's own probe, servers on stdio, and callers of
//! another era go through it.
//!
//! Ids and progress tokens on this wire are the sidecar's own, so that callers
//! that share a conversation cannot meet each other's.

pub mod http;
pub mod process;

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::{json, value::RawValue};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};

use crate::{
    envelope::{Kind, Members, Message},
    era::{Era, META_CAPABILITIES, META_VERSION, Revision},
    identity::Assertion,
    upstream::UpstreamError,
    wire,
};

/// Bytes, in KiB, that wait for whoever asked; the server waits when it is more.
const BUDGET: u32 = 20 * 1024;
/// How long only the answer to `server/discover` is waited for. Then the server
/// is asked in the other era as well: one of that era may say nothing.
const DISCOVER: Duration = Duration::from_secs(5);

/// The answer to a request: a JSON-RPC response.
pub type Answer = Result<Bytes, UpstreamError>;
/// Takes what the server says by itself.
pub type Said = Arc<dyn Fn(Bytes) + Send + Sync>;

/// A request to the server.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The id that its answer is to carry, as written.
    pub id: &'a str,
    /// The method.
    pub method: &'a str,
    /// The parameters, an object.
    pub params: Option<&'a str>,
    /// What happens when whoever asked goes away.
    pub on_drop: OnDrop,
    /// Whether whoever asked can take messages before the answer.
    pub streams: bool,
    /// Who asks, where the server is told; the sidecar itself is nobody.
    pub identity: Option<&'a Assertion>,
}

/// What happens when whoever asked goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDrop {
    /// The server is told to stop (revision 2026-07-28).
    Cancel,
    /// The server goes on; its answer is dropped.
    Abandon,
}

/// What comes for a request.
#[derive(Debug)]
pub enum Event {
    /// A notification or a request of the server that belongs to it.
    Message(Bytes),
    /// The answer: the last event.
    Answer(Answer),
}

/// The sending end of the events of a request. What waits is bounded in bytes.
#[derive(Clone)]
pub struct Sink {
    events: mpsc::UnboundedSender<(Event, Option<OwnedSemaphorePermit>)>,
    budget: Arc<Semaphore>,
}

impl Sink {
    /// Hands on an event, and waits for room. False: nobody takes it.
    pub async fn push(&self, event: Event, patience: Duration) -> bool {
        let size = match &event {
            Event::Message(bytes) | Event::Answer(Ok(bytes)) => bytes.len(),
            Event::Answer(Err(_)) => 0,
        };
        let kib = u32::try_from(size / 1024 + 1).unwrap_or(BUDGET).min(BUDGET);
        let room = Arc::clone(&self.budget).acquire_many_owned(kib);
        match timeout(patience, room).await {
            Ok(Ok(permit)) => self.events.send((event, Some(permit))).is_ok(),
            _ => false,
        }
    }

    /// Tells the end without waiting.
    pub fn fail(&self, error: UpstreamError) {
        let _ = self.events.send((Event::Answer(Err(error)), None)); // Nobody may be left.
    }
}

/// A request that is under way. Dropped, it is cancelled or abandoned.
pub struct Ongoing {
    events: mpsc::UnboundedReceiver<(Event, Option<OwnedSemaphorePermit>)>,
    guard: Box<dyn Guard>,
}

/// What stands between a request and the one who asked.
pub trait Guard: Send + Sync {
    /// Tells the server that no answer is wanted. `params` are those of
    /// `notifications/cancelled`.
    fn cancel(&self, params: &str);
}

impl Ongoing {
    /// The two ends.
    pub fn new(guard: impl Guard + 'static) -> (Sink, Self) {
        let (sender, events) = mpsc::unbounded_channel();
        let budget = Arc::new(Semaphore::new(BUDGET as usize));
        let sink = Sink {
            events: sender,
            budget,
        };
        (
            sink,
            Self {
                events,
                guard: Box::new(guard),
            },
        )
    }

    /// Tells the server that no answer is wanted; it may answer all the same.
    pub fn cancel(&self, params: &str) {
        self.guard.cancel(params);
    }

    /// The next event.
    pub async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some((event, _)) => event,
            None => Event::Answer(Err(UpstreamError::Exited(
                "its connection was closed".into(),
            ))),
        }
    }

    /// The answer; messages before it are dropped.
    ///
    /// # Errors
    /// There is none.
    pub async fn answer(mut self) -> Answer {
        loop {
            if let Event::Answer(answer) = self.next().await {
                return answer;
            }
        }
    }
}

/// How messages get to the server.
#[derive(Clone)]
pub enum Wire {
    /// Standard input and output of a process.
    Process(Arc<process::Process>),
    /// Streamable HTTP.
    Http(Arc<http::HttpClient>),
}

impl Wire {
    /// Sends a request.
    ///
    /// # Errors
    /// It could not be sent.
    pub async fn call(&self, call: Call<'_>) -> Result<Ongoing, UpstreamError> {
        match self {
            Self::Process(process) => process.call(call).await,
            Self::Http(client) => client.call(call),
        }
    }

    /// Sends a notification, or the answer to a request of the server.
    ///
    /// # Errors
    /// It could not be sent.
    pub async fn send(&self, message: &str) -> Result<(), UpstreamError> {
        match self {
            Self::Process(process) => process.send(wire::line(message).into()).await,
            Self::Http(client) => client.send(message.to_owned()).await,
        }
    }

    /// Whether requests can be sent.
    pub fn is_open(&self) -> bool {
        match self {
            Self::Process(process) => process.is_open(),
            Self::Http(client) => client.is_open(),
        }
    }

    /// Ends the conversation.
    pub fn close(&self) {
        match self {
            Self::Process(process) => process.close(),
            Self::Http(client) => client.close(),
        }
    }

    /// Sends a request and waits for its result.
    ///
    /// # Errors
    /// There is none, or an error in its place.
    pub async fn ask(
        &self,
        method: &str,
        params: Option<&str>,
        identity: Option<&Assertion>,
        patience: Duration,
    ) -> Result<Asked, UpstreamError> {
        let on_drop = match method {
            // Clients must not cancel it (revision 2025-11-25, "Cancellation").
            "initialize" => OnDrop::Abandon,
            _ => OnDrop::Cancel,
        };
        let call = Call {
            id: "0",
            method,
            params,
            on_drop,
            streams: false,
            identity,
        };
        let answer = async { self.call(call).await?.answer().await };
        let answer = timeout(patience, answer)
            .await
            .map_err(|_| UpstreamError::TimedOut(patience.as_secs()))??;
        Asked::of(&answer).map_err(UpstreamError::Invalid)
    }
}

/// A result or an error.
#[derive(Debug)]
pub enum Asked {
    /// The result.
    Result(Box<RawValue>),
    /// The error, and its code.
    Error(i64, Box<RawValue>),
}

impl Asked {
    fn of(answer: &[u8]) -> Result<Self, String> {
        match Message::parse(answer)?.kind {
            Kind::Response {
                result: Some(result),
                ..
            } => Ok(Self::Result(result.to_owned())),
            Kind::Response {
                error: Some(error), ..
            } => {
                #[derive(serde::Deserialize)]
                struct Code {
                    code: i64,
                }
                let code = serde_json::from_str::<Code>(error.get()).map_or(0, |error| error.code);
                Ok(Self::Error(code, error.to_owned()))
            }
            _ => Err("it answered with what is no answer".into()),
        }
    }

    /// The result.
    ///
    /// # Errors
    /// It is an error, which is told.
    pub fn result(self, method: &str) -> Result<Box<RawValue>, UpstreamError> {
        match self {
            Self::Result(result) => Ok(result),
            Self::Error(_, error) => {
                let error: String = error.get().chars().take(512).collect();
                Err(UpstreamError::Invalid(format!("{method}: {error}")))
            }
        }
    }
}

/// What the server said of itself.
#[derive(Clone, Debug)]
pub struct Info {
    /// The revision that is spoken.
    pub revision: Revision,
    /// Its capabilities, an object.
    pub capabilities: Box<RawValue>,
    /// Its name and version, an object.
    pub server_info: Box<RawValue>,
    /// How to use it, a string.
    pub instructions: Option<Box<RawValue>>,
}

impl Info {
    /// Reads the result of a handshake.
    ///
    /// # Errors
    /// What is missing in it.
    pub fn of(result: &RawValue, era: Era) -> Result<Self, UpstreamError> {
        let invalid = |what: &str| UpstreamError::Invalid(format!("its handshake {what}"));
        let member = |path: &[&str]| wire::member(Some(result), path).map(ToOwned::to_owned);
        let object = |path: &[&str]| member(path).filter(|raw| raw.get().starts_with('{'));
        let revision = match era {
            Era::Modern => Revision::NEWEST,
            Era::Legacy => {
                let text = Members::parse(result)
                    .and_then(|members| members.text("protocolVersion").map(String::from))
                    .map_err(|_| invalid("names no protocolVersion"))?;
                Revision::parse(&text)
                    .filter(|revision| revision.era() == Era::Legacy)
                    .ok_or_else(|| invalid(&format!("names the unknown revision {text:?}")))?
            }
        };
        let unnamed = || RawValue::from_string(r#"{"name":"unknown","version":"0"}"#.into()).ok();
        let server_info = object(&["serverInfo"])
            .or_else(|| object(&["_meta", "io.modelcontextprotocol/serverInfo"]))
            .or_else(unnamed)
            .ok_or_else(|| invalid("has no serverInfo"))?;
        Ok(Self {
            revision,
            capabilities: object(&["capabilities"])
                .ok_or_else(|| invalid("has no capabilities"))?,
            server_info,
            instructions: member(&["instructions"]).filter(|raw| raw.get().starts_with('"')),
        })
    }

    /// Whether the server has a capability.
    pub fn has(&self, path: &[&str]) -> bool {
        wire::member(Some(&self.capabilities), path)
            .is_some_and(|raw| !matches!(raw.get(), "null" | "false"))
    }
}

/// A conversation whose handshake is done.
#[derive(Clone)]
pub struct Link {
    /// How messages get to the server.
    pub wire: Wire,
    /// The era of the conversation.
    pub era: Era,
    /// What the server said of itself.
    pub info: Arc<Info>,
}

/// `_meta` of the sidecar's own modern requests.
pub fn own_meta() -> String {
    json!({
        META_VERSION: Revision::NEWEST.as_str(),
        META_CAPABILITIES: {},
        "io.modelcontextprotocol/clientInfo": own_info(),
    })
    .to_string()
}

fn own_info() -> serde_json::Value {
    json!({"name": "toolward-sidecar", "version": env!("CARGO_PKG_VERSION")})
}

impl Link {
    /// Asks a server what it speaks: `server/discover`, and where the answer is
    /// not a modern one, `initialize` (revision 2026-07-28, "Version Negotiation").
    /// A server that is silent may be slow to start, or of the other era: it has
    /// both requests then, and what it answers tells.
    ///
    /// # Errors
    /// It speaks neither.
    pub async fn detect(wire: Wire, patience: Duration) -> Result<Self, UpstreamError> {
        let mut modern = pin!(Self::modern(wire.clone(), patience));
        match timeout(DISCOVER, &mut modern).await {
            Ok(Err(_)) if wire.is_open() => return Self::legacy(wire, patience).await,
            Ok(known) => return known,
            Err(_) => {}
        }
        let mut legacy = pin!(Self::legacy(wire.clone(), patience));
        let link = tokio::select! {
            biased;
            link = &mut modern => match link {
                Ok(link) => Ok(link),
                Err(_) => return legacy.await,
            },
            link = &mut legacy => match link {
                Ok(link) => return Ok(link),
                Err(_) => modern.await,
            },
        };
        if let Wire::Http(client) = &wire {
            client.speak(Revision::NEWEST);
        }
        link
    }

    /// A modern conversation.
    ///
    /// # Errors
    /// The server does not speak it.
    pub async fn modern(wire: Wire, patience: Duration) -> Result<Self, UpstreamError> {
        if let Wire::Http(client) = &wire {
            client.speak(Revision::NEWEST);
        }
        let method = "server/discover";
        let params = format!(r#"{{"_meta":{}}}"#, own_meta());
        let result = wire
            .ask(method, Some(&params), None, patience)
            .await?
            .result(method)?;
        let speaks: Vec<String> = wire::member(Some(&result), &["supportedVersions"])
            .and_then(|raw| serde_json::from_str(raw.get()).ok())
            .unwrap_or_default();
        if !speaks
            .iter()
            .any(|version| version == Revision::NEWEST.as_str())
        {
            return Err(UpstreamError::Invalid(format!(
                "{method}: it does not speak {}",
                Revision::NEWEST.as_str()
            )));
        }
        let info = Arc::new(Info::of(&result, Era::Modern)?);
        Ok(Self {
            wire,
            era: Era::Modern,
            info,
        })
    }

    /// A legacy conversation, opened by the sidecar itself.
    ///
    /// # Errors
    /// The server does not speak it.
    pub async fn legacy(wire: Wire, patience: Duration) -> Result<Self, UpstreamError> {
        if let Wire::Http(client) = &wire {
            client.speak(Revision::NEWEST_LEGACY);
        }
        let method = "initialize";
        let params = json!({
            "protocolVersion": Revision::NEWEST_LEGACY.as_str(),
            "capabilities": {},
            "clientInfo": own_info(),
        });
        let result = wire
            .ask(method, Some(&params.to_string()), None, patience)
            .await?
            .result(method)?;
        let info = Arc::new(Info::of(&result, Era::Legacy)?);
        if let Wire::Http(client) = &wire {
            client.speak(info.revision);
        }
        wire.send(&wire::message(None, "notifications/initialized", None))
            .await?;
        Ok(Self {
            wire,
            era: Era::Legacy,
            info,
        })
    }

    /// Sends a request of the sidecar itself, in the era of the conversation.
    ///
    /// # Errors
    /// There is no result.
    pub async fn ask(
        &self,
        method: &str,
        params: &str,
        patience: Duration,
    ) -> Result<Box<RawValue>, UpstreamError> {
        self.ask_for(None, method, params, patience).await
    }

    /// The same in the name of a caller.
    ///
    /// # Errors
    /// There is no result.
    pub async fn ask_for(
        &self,
        identity: Option<&Assertion>,
        method: &str,
        params: &str,
        patience: Duration,
    ) -> Result<Box<RawValue>, UpstreamError> {
        let params = match self.era {
            Era::Legacy => params.to_owned(),
            Era::Modern => {
                wire::edit(params, &["_meta"], Some(&own_meta())).map_err(UpstreamError::Invalid)?
            }
        };
        self.wire
            .ask(method, Some(&params), identity, patience)
            .await?
            .result(method)
    }
}
