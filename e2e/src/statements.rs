//! What Toolward promises of every server, each promise as a function: it does
//! what a client or a user does and returns what came back; `check` holds that
//! against the promise. The demonstration prints it, the tests assert it.
//!
//! The expectations are those of the policies in `examples/`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::mcp::{self, Called, Endpoint, Mcp};
use crate::wait::wait_for;

/// The tools that the examples permit, sorted. `get-env` is denied.
pub const PERMITTED: [&str; 7] = [
    "echo",
    "get-annotated-message",
    "get-resource-links",
    "get-resource-reference",
    "get-structured-content",
    "get-sum",
    "get-tiny-image",
];
/// A tool that the server has and the examples deny.
pub const FORBIDDEN: &str = "get-env";
/// The tool that the examples limit.
pub const LIMITED: &str = "echo";
/// How many calls the limit lets through at once.
pub const BURST: usize = 5;
/// Within which time a change is in force.
pub const IN_FORCE: Duration = Duration::from_secs(2);

const NO_TOOL: &str = "no-such-tool";
/// More calls than a burst, even if each takes so long that others refill it.
const MANY: usize = 60;

/// Who calls what.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The server.
    pub endpoint: Endpoint,
    /// The bearer token.
    pub token: String,
}

impl Caller {
    /// Shakes hands.
    pub async fn connect(&self) -> Result<Mcp> {
        let Self { endpoint, token } = self;
        endpoint
            .connect(Some(token))
            .await
            .with_context(|| format!("no MCP session with {}", endpoint.url))
    }
}

/// What `tools/list` shows.
#[derive(Debug)]
pub struct Listing {
    /// Names, sorted.
    pub tools: Vec<String>,
}

/// Lists the tools.
pub async fn listing(mcp: &Mcp) -> Result<Listing> {
    let tools = mcp::tools(mcp).await?;
    Ok(Listing { tools })
}

impl Listing {
    /// Only the permitted tools, and all of them.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.tools == PERMITTED,
            "tools/list should show {PERMITTED:?}, it shows {:?}",
            self.tools
        );
        Ok(())
    }
}

/// The answer to a permitted call.
#[derive(Debug)]
pub struct Permitted {
    /// Its text.
    pub text: String,
}

/// Calls `get-sum`.
pub async fn permitted(mcp: &Mcp) -> Result<Permitted> {
    match mcp::call(mcp, "get-sum", json!({"a": 2, "b": 40})).await? {
        Called::Text(text) => Ok(Permitted { text }),
        other => bail!("get-sum should answer, it gives {other:?}"),
    }
}

impl Permitted {
    /// It is the server's answer.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.text.contains("42"),
            "get-sum of 2 and 40 says {:?}",
            self.text
        );
        Ok(())
    }
}

/// A JSON-RPC error.
#[derive(Debug, PartialEq, Eq)]
pub struct RpcError {
    /// Its code.
    pub code: i32,
    /// Its message.
    pub message: String,
}

/// The answers to a call of a forbidden tool and of one that does not exist.
#[derive(Debug)]
pub struct Forbidden {
    /// For the forbidden tool.
    pub forbidden: RpcError,
    /// For a tool that does not exist.
    pub unknown: RpcError,
}

/// Calls a forbidden tool and one that does not exist.
pub async fn forbidden(mcp: &Mcp) -> Result<Forbidden> {
    let refused = async |tool: &str| match mcp::call(mcp, tool, json!({})).await? {
        Called::Error { code, message } => Ok(RpcError { code, message }),
        other => bail!("{tool} should be refused, it gives {other:?}"),
    };
    Ok(Forbidden {
        forbidden: refused(FORBIDDEN).await?,
        unknown: refused(NO_TOOL).await?,
    })
}

impl Forbidden {
    /// Nobody can tell one from the other.
    pub fn check(&self) -> Result<()> {
        for (error, tool) in [(&self.forbidden, FORBIDDEN), (&self.unknown, NO_TOOL)] {
            let message = format!("Unknown tool: {tool}");
            let wanted = RpcError {
                code: -32602,
                message,
            };
            ensure!(
                *error == wanted,
                "a call of {tool} should give {wanted:?}, it gives {error:?}"
            );
        }
        Ok(())
    }
}

/// The answer to a token that is not for this server.
#[derive(Debug)]
pub struct Unauthorized {
    /// HTTP status.
    pub status: u16,
    /// `WWW-Authenticate`.
    pub challenge: String,
    /// What the official client makes of it.
    pub client: String,
}

/// Tries a token that must not be accepted.
pub async fn unauthorized(endpoint: &Endpoint, token: &str) -> Result<Unauthorized> {
    let answer = endpoint.post(Some(token), &[], &mcp::initialize()).await?;
    let challenge = answer.headers().get("www-authenticate");
    let challenge = challenge.and_then(|value| value.to_str().ok());
    let client = match endpoint.connect(Some(token)).await {
        Ok(_) => bail!(
            "the client connects with a token that is not for {}",
            endpoint.url
        ),
        Err(error) => match error.is_authorization_required() {
            true => "authorization required".to_owned(),
            false => bail!("the client does not see a 401 but: {error:#}"),
        },
    };
    Ok(Unauthorized {
        status: answer.status().as_u16(),
        challenge: challenge.unwrap_or_default().to_owned(),
        client,
    })
}

impl Unauthorized {
    /// 401 with a challenge.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.status == 401,
            "the status should be 401, it is {}",
            self.status
        );
        ensure!(
            self.challenge.starts_with("Bearer"),
            "WWW-Authenticate should be a Bearer challenge, it is {:?}",
            self.challenge
        );
        Ok(())
    }
}

/// How a burst of calls ended.
#[derive(Debug)]
pub struct Burst {
    /// How many were answered before the first was refused.
    pub answered: usize,
    /// `Retry-After` of the refusal, in seconds.
    pub retry_after: u64,
    /// Whether a call was answered after that time.
    pub answered_later: bool,
}

/// Calls the limited tool until it is refused, waits as told and calls again.
pub async fn burst(mcp: &Mcp) -> Result<Burst> {
    let echo = async || mcp::call(mcp, LIMITED, json!({"message": "again"})).await;
    let mut answered = 0;
    let retry_after = loop {
        ensure!(
            answered < MANY,
            "{MANY} calls of {LIMITED} are answered, none is refused"
        );
        match echo().await? {
            Called::Text(_) => answered += 1,
            Called::Http {
                status: 429,
                retry_after,
            } => break retry_after.context("the 429 has no Retry-After")?,
            other => bail!("call {} of {LIMITED} gives {other:?}", answered + 1),
        }
    };
    let retry_after = retry_after
        .parse()
        .with_context(|| format!("Retry-After: {retry_after:?} is no number of seconds"))?;
    tokio::time::sleep(Duration::from_secs(retry_after)).await;
    let answered_later = matches!(echo().await?, Called::Text(_));
    Ok(Burst {
        answered,
        retry_after,
        answered_later,
    })
}

impl Burst {
    /// A burst gets through, more do not, and who waits as told is served.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.answered >= BURST,
            "{BURST} calls should be answered at once, {} are",
            self.answered
        );
        ensure!(
            (1..=60).contains(&self.retry_after),
            "Retry-After is {} s",
            self.retry_after
        );
        ensure!(
            self.answered_later,
            "after the {} s of Retry-After a call is still refused",
            self.retry_after
        );
        Ok(())
    }
}

/// How long a change of policy took.
#[derive(Debug)]
pub struct Change {
    /// From the start of kubectl to the first answer under the new policy.
    pub took: Duration,
}

/// Runs an edit of a policy, and waits until `tool` is shown to the caller, or
/// no longer shown: less than the period after which the kubelet looks at a
/// ConfigMap by itself, so that the delivery is seen to work on any machine.
pub async fn change<T>(
    mcp: &Mcp,
    tool: &str,
    shown: bool,
    edit: impl Future<Output = Result<T>>,
) -> Result<Change> {
    let begun = Instant::now();
    edit.await?;
    let what = if shown { "shown" } else { "hidden" };
    wait_for(
        &format!("{tool} to be {what} after the edit"),
        Duration::from_secs(55),
        || async {
            let tools = mcp::tools(mcp).await?;
            ensure!(
                tools.iter().any(|name| name == tool) == shown,
                "tools/list shows {tools:?}"
            );
            Ok(())
        },
    )
    .await?;
    Ok(Change {
        took: begun.elapsed(),
    })
}

impl Change {
    /// Within [`IN_FORCE`]: for the demonstration, since it depends on the
    /// machine.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.took <= IN_FORCE,
            "the edit was in force after {:.2} s; it should be within {} s",
            self.took.as_secs_f32(),
            IN_FORCE.as_secs()
        );
        Ok(())
    }
}
