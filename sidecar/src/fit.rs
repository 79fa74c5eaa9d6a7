//! What the server says, made to fit the caller: lists show what may be used,
//! requests of the server are noted so that only they can be answered, tasks so
//! that only their caller can ask for them.

use std::{sync::Arc, time::Duration};

use moka::{policy::EvictionPolicy, sync::Cache};
use policy::{Caller, Operation};
use serde_json::value::RawValue;

use crate::{
    Shared,
    envelope::{Kind, Message, Refusal},
    era::Era,
    filter::{self, Item},
    pipeline::now,
    sessions::{Asked, Session},
    state::{self, Seal},
    upstream::{self, Principal},
    wire,
};

/// Tasks whose caller is known; the longest unused one is forgotten first.
const MAX_TASKS: u64 = 65_536;
const TASK_IDLE: Duration = Duration::from_secs(24 * 60 * 60);
/// Callers without a session whom the server asked something.
const MAX_CALLERS: u64 = 4096;
const ASKED_IDLE: Duration = Duration::from_secs(600);

/// What belongs to callers, not to a session.
pub struct Strays {
    /// Seals what callers bring back.
    pub seal: Seal,
    tasks: Cache<String, (Principal, String)>,
    asked: Cache<Principal, Arc<Asked>>,
}

impl Strays {
    /// None of any caller.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn new() -> Result<Self, String> {
        let tasks = Cache::builder()
            .eviction_policy(EvictionPolicy::lru())
            .max_capacity(MAX_TASKS)
            .time_to_idle(TASK_IDLE)
            .build();
        let asked = Cache::builder()
            .max_capacity(MAX_CALLERS)
            .time_to_idle(ASKED_IDLE)
            .build();
        let seal = Seal::new()?;
        Ok(Self { seal, tasks, asked })
    }

    /// The tool whose call made the task, where it was this caller's.
    pub fn tool_of(&self, task: &str, caller: &Caller) -> Option<String> {
        let (owner, tool) = self.tasks.get(task)?;
        owner.is(caller).then_some(tool)
    }

    /// Requests of the server to a caller without a session.
    pub fn asked(&self, caller: &Caller) -> Arc<Asked> {
        self.asked.get_with(Principal::of(caller), Arc::default)
    }
}

/// What becomes of a message of the server.
pub enum Fitted {
    /// It passes as it is.
    Same,
    /// It passes, changed.
    Changed(Vec<u8>),
    /// It does not pass.
    Dropped,
}

/// To whom the messages go.
pub struct Fit {
    /// What requests share.
    pub shared: Arc<Shared>,
    /// The caller.
    pub caller: Arc<Caller>,
    /// The era that the caller speaks.
    pub era: Era,
    /// The session, where there is one.
    pub session: Option<Arc<Session>>,
    /// The tool that is called, where its answer may be a task.
    pub tool: Option<String>,
}

impl Fit {
    /// Fits a message, or a batch of them.
    ///
    /// # Errors
    /// It cannot be read, so it must not pass.
    pub fn data(&self, data: &[u8]) -> Result<Fitted, Refusal> {
        if !data.trim_ascii_start().starts_with(b"[") {
            return self.message(&Message::parse(data)?);
        }
        let messages: Vec<&RawValue> =
            serde_json::from_slice(data).map_err(|error| error.to_string())?;
        let (mut out, mut is_same) = (Vec::with_capacity(messages.len()), true);
        for raw in messages {
            match self.message(&Message::parse(raw.get().as_bytes())?)? {
                Fitted::Same => out.push(raw.get().as_bytes().to_vec()),
                Fitted::Changed(changed) => {
                    is_same = false;
                    out.push(changed);
                }
                Fitted::Dropped => is_same = false,
            }
        }
        Ok(match (is_same, out.is_empty()) {
            (true, _) => Fitted::Same,
            (false, true) => Fitted::Dropped,
            (false, false) => Fitted::Changed([&b"["[..], &out.join(&b","[..]), b"]"].concat()),
        })
    }

    fn message(&self, message: &Message<'_>) -> Result<Fitted, Refusal> {
        match &message.kind {
            Kind::Request { method, .. } => Ok(self.asks(method, message.id)),
            Kind::Notification { .. } | Kind::Response { result: None, .. } => Ok(Fitted::Same),
            Kind::Response { result, .. } => {
                if let (Some(session), Some(revision)) = (&self.session, upstream::agreed(*result))
                {
                    session.agreed(revision);
                }
                if let Some(tool) = &self.tool {
                    self.note_task(*result, tool);
                }
                let sealed = self.sealed(message, *result)?;
                let shows = |item: Item<'_>| self.shows(item);
                let changed = match &sealed {
                    Some(text) => filter::message(&Message::parse(text.as_bytes())?, &shows)?,
                    None => filter::message(message, &shows)?,
                };
                let changed = changed.or(sealed.map(String::into_bytes));
                Ok(changed.map_or(Fitted::Same, Fitted::Changed))
            }
        }
    }

    /// An answer that has something for the caller to bring back, with that sealed.
    fn sealed(
        &self,
        message: &Message<'_>,
        result: Option<&RawValue>,
    ) -> Result<Option<String>, Refusal> {
        let (Some(result), Some(id)) = (result, message.id) else {
            return Ok(None);
        };
        let written = wire::member(Some(result), &[state::MEMBER]);
        let Some(written) = written.filter(|_| self.era == Era::Modern) else {
            return Ok(None);
        };
        let written: String = serde_json::from_str(written.get())
            .map_err(|error| format!("result.{}: {error}", state::MEMBER))?;
        let (principal, peers) = (Principal::of(&self.caller), &self.shared.peers);
        let sealed = self
            .shared
            .strays
            .seal
            .close(&written, &principal, peers.name())?;
        let sealed = serde_json::Value::from(sealed).to_string();
        let result = wire::edit(result.get(), &[state::MEMBER], Some(&sealed))?;
        Ok(Some(wire::result(id.get(), &result)))
    }

    /// A request of the server.
    fn asks(&self, method: &str, id: Option<&RawValue>) -> Fitted {
        if self.era == Era::Modern {
            tracing::warn!(
                method,
                "a request of the server is dropped: this revision has none"
            );
            return Fitted::Dropped;
        }
        let id = id.map_or("null", RawValue::get);
        let is_noted = match &self.session {
            Some(session) => session.asked().add(id),
            None => self.shared.strays.asked(&self.caller).add(id),
        };
        match is_noted {
            true => Fitted::Same,
            false => {
                tracing::warn!(
                    method,
                    "a request of the server is dropped: too many wait for an answer"
                );
                Fitted::Dropped
            }
        }
    }

    fn note_task(&self, result: Option<&RawValue>, tool: &str) {
        let task =
            wire::member(result, &["task", "taskId"]).or_else(|| wire::member(result, &["taskId"]));
        if let Some(task) = task.and_then(|task| serde_json::from_str::<String>(task.get()).ok()) {
            self.shared
                .strays
                .tasks
                .insert(task, (Principal::of(&self.caller), tool.to_owned()));
        }
    }

    /// Whether the caller sees an item of a list, by the configuration of this moment.
    fn shows(&self, item: Item<'_>) -> bool {
        let operation = match item {
            Item::Of(operation) => operation,
            Item::Task(task) => match self.shared.strays.tool_of(task, &self.caller) {
                Some(tool) => return self.may(Operation::Tool(&tool)),
                None => return false,
            },
        };
        self.may(operation)
    }

    fn may(&self, operation: Operation<'_>) -> bool {
        let active = self.shared.config.active();
        active.is_some_and(|active| policy::visible(&active.bundle, &self.caller, operation, now()))
    }
}
