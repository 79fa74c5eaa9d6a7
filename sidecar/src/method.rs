//! What each MCP method means for the decision. A method that is not here is
//! unknown and never forwarded.

use std::borrow::Cow;

use policy::Operation;

use crate::{
    envelope::{Members, Message, Refusal},
    era::Era,
};

/// Resources that one `subscriptions/listen` may name.
const MAX_URIS: usize = 256;

/// What a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Handshake, ping, discovery, logging and their notifications.
    Open,
    /// A list; its items are decided one by one.
    List,
    /// Call a tool.
    Tool(String),
    /// Get a prompt, or complete its arguments.
    Prompt(String),
    /// Read a resource, or subscribe to it.
    Resource(String),
    /// Complete the variables of a template of resources.
    Template(String),
    /// Listen to the changes of these resources.
    Listen(Vec<String>),
    /// Ask about a task, which belongs to the call that made it.
    Task(String),
    /// No method that can be allowed.
    Unknown,
}

impl Action {
    /// The action of a request.
    ///
    /// # Errors
    /// Its params do not name what it wants.
    pub fn of_request(era: Era, method: &str, request: &Message<'_>) -> Result<Self, Refusal> {
        let name = |member: &str| -> Result<String, Refusal> {
            let params = request.params()?;
            let params = params.ok_or_else(|| format!("params.{member} is required"))?;
            params.text(member).map(Cow::into_owned)
        };
        Ok(match (method, era) {
            ("initialize" | "ping" | "logging/setLevel", Era::Legacy)
            | ("server/discover", Era::Modern) => Self::Open,
            ("tools/list" | "prompts/list" | "resources/list" | "resources/templates/list", _)
            | ("tasks/list", Era::Legacy) => Self::List,
            ("tools/call", _) => Self::Tool(name("name")?),
            ("prompts/get", _) => Self::Prompt(name("name")?),
            ("resources/read", _)
            | ("resources/subscribe" | "resources/unsubscribe", Era::Legacy) => {
                Self::Resource(name("uri")?)
            }
            ("completion/complete", _) => Self::of_completion(request)?,
            ("subscriptions/listen", Era::Modern) => Self::Listen(listened(request)?),
            ("tasks/get" | "tasks/cancel", _)
            | ("tasks/result", Era::Legacy)
            | ("tasks/update", Era::Modern) => Self::Task(name("taskId")?),
            _ => Self::Unknown,
        })
    }

    /// The action of a notification.
    pub fn of_notification(era: Era, method: &str) -> Self {
        match (method, era) {
            ("notifications/cancelled" | "notifications/progress", _)
            | (
                "notifications/initialized"
                | "notifications/roots/list_changed"
                | "notifications/tasks/status",
                Era::Legacy,
            ) => Self::Open,
            _ => Self::Unknown,
        }
    }

    fn of_completion(request: &Message<'_>) -> Result<Self, Refusal> {
        let missing = || "params.ref is required".to_owned();
        let params = request.params()?.ok_or_else(missing)?;
        let reference = Members::parse(params.get("ref")?.ok_or_else(missing)?)
            .map_err(|error| format!("params.ref: {error}"))?;
        let text = |name: &str| {
            let text = reference.text(name).map(Cow::into_owned);
            text.map_err(|error| format!("params.ref: {error}"))
        };
        match text("type")?.as_str() {
            "ref/prompt" => Ok(Self::Prompt(text("name")?)),
            "ref/resource" => Ok(Self::Template(text("uri")?)),
            _ => Err("params.ref.type must be ref/prompt or ref/resource".into()),
        }
    }

    /// What the policy is asked, each of which must be allowed; nothing for what
    /// no policy can allow. A task is asked for as the tool that made it.
    pub fn operations(&self) -> Option<Vec<Operation<'_>>> {
        Some(match self {
            Self::Open | Self::List => vec![Operation::Open],
            Self::Tool(name) => vec![Operation::Tool(name)],
            Self::Prompt(name) => vec![Operation::Prompt(name)],
            Self::Resource(uri) => vec![Operation::Resource(uri)],
            Self::Template(uri) => vec![Operation::Template(uri)],
            Self::Listen(uris) => {
                let uris = uris.iter().map(|uri| Operation::Resource(uri));
                std::iter::once(Operation::Open).chain(uris).collect()
            }
            Self::Task(_) | Self::Unknown => return None,
        })
    }
}

/// The resources that `subscriptions/listen` names.
fn listened(request: &Message<'_>) -> Result<Vec<String>, Refusal> {
    let missing = || "params.notifications is required".to_owned();
    let params = request.params()?.ok_or_else(missing)?;
    let wanted = Members::parse(params.get("notifications")?.ok_or_else(missing)?)
        .map_err(|error| format!("params.notifications: {error}"))?;
    let Some(uris) = wanted.get("resourceSubscriptions")? else {
        return Ok(Vec::new());
    };
    let uris: Vec<String> = serde_json::from_str(uris.get())
        .map_err(|_| "params.notifications.resourceSubscriptions must be a list of URIs")?;
    if uris.len() > MAX_URIS || uris.iter().any(|uri| uri.len() > crate::envelope::MAX_NAME) {
        return Err(format!(
            "params.notifications.resourceSubscriptions has at most {MAX_URIS} URIs of {} bytes",
            crate::envelope::MAX_NAME
        ));
    }
    Ok(uris)
}

/// The method as a metric's label: callers must not make new ones.
pub fn label(method: &str) -> &'static str {
    const KNOWN: &[&str] = &[
        "tools/call",
        "tools/list",
        "initialize",
        "ping",
        "server/discover",
        "subscriptions/listen",
        "logging/setLevel",
        "completion/complete",
        "prompts/get",
        "prompts/list",
        "resources/list",
        "resources/templates/list",
        "resources/read",
        "resources/subscribe",
        "resources/unsubscribe",
        "tasks/get",
        "tasks/result",
        "tasks/list",
        "tasks/cancel",
        "tasks/update",
        "notifications/initialized",
        "notifications/cancelled",
        "notifications/progress",
        "notifications/roots/list_changed",
        "notifications/tasks/status",
        "response",
        "GET",
        "POST",
        "DELETE",
    ];
    KNOWN
        .iter()
        .find(|known| **known == method)
        .copied()
        .unwrap_or("other")
}
