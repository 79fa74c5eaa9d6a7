//! What each MCP method means for the decision. A method that is not here is
//! unknown and never forwarded.

use std::borrow::Cow;

use policy::Operation;
use serde_json::value::RawValue;

use crate::envelope::{Members, Refusal};

/// What a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Handshake, ping, discovery and their notifications.
    Open,
    /// A list; its items are decided one by one.
    List,
    /// Call a tool.
    Tool(String),
    /// Get a prompt.
    Prompt(String),
    /// Read a resource.
    Resource(String),
    /// No method that can be allowed.
    Unknown,
}

impl Action {
    /// The action of a request.
    ///
    /// # Errors
    /// Its params do not name what it wants.
    pub fn of_request(method: &str, params: Option<&RawValue>) -> Result<Self, Refusal> {
        let name = |member: &str| -> Result<String, Refusal> {
            let params = params.ok_or_else(|| format!("params.{member} is required"))?;
            Members::parse(params)?.text(member).map(Cow::into_owned)
        };
        Ok(match method {
            "initialize" | "ping" | "server/discover" => Self::Open,
            "tools/list" | "prompts/list" | "resources/list" | "resources/templates/list" => {
                Self::List
            }
            "tools/call" => Self::Tool(name("name")?),
            "prompts/get" => Self::Prompt(name("name")?),
            "resources/read" | "resources/subscribe" | "resources/unsubscribe" => {
                Self::Resource(name("uri")?)
            }
            _ => Self::Unknown,
        })
    }

    /// The action of a notification.
    pub fn of_notification(method: &str) -> Self {
        match method {
            "notifications/initialized"
            | "notifications/cancelled"
            | "notifications/progress"
            | "notifications/roots/list_changed" => Self::Open,
            _ => Self::Unknown,
        }
    }

    /// What the policy is asked; nothing for a method that is unknown.
    pub fn operation(&self) -> Option<Operation<'_>> {
        match self {
            Self::Open | Self::List => Some(Operation::Open),
            Self::Tool(name) => Some(Operation::Tool(name)),
            Self::Prompt(name) => Some(Operation::Prompt(name)),
            Self::Resource(uri) => Some(Operation::Resource(uri)),
            Self::Unknown => None,
        }
    }
}

/// The method as a metric's label: callers must not make new ones.
pub fn label(method: &str) -> &'static str {
    const KNOWN: &[&str] = &[
        "initialize",
        "ping",
        "server/discover",
        "tools/list",
        "prompts/list",
        "resources/list",
        "resources/templates/list",
        "tools/call",
        "prompts/get",
        "resources/read",
        "resources/subscribe",
        "resources/unsubscribe",
        "notifications/initialized",
        "notifications/cancelled",
        "notifications/progress",
        "notifications/roots/list_changed",
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
