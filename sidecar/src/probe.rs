//! The sidecar's own session with the server: handshake and lists, at the start
//! and when the list changes. What it sees is what `/readyz` and `/status` tell.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use policy::report::{ToolReport, UpstreamReport, UpstreamState};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};

use crate::{
    envelope::{Kind, Message},
    era::{Era, ParamHeader, param_headers},
    link::{Call, Event, Link, OnDrop, Said, Wire, own_meta, process::Scope},
    upstream::{Eras, Learned, Upstream, UpstreamError},
};

/// Longest answer to the probe.
const ANSWER: Duration = Duration::from_secs(60);
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
pub async fn run(upstream: Arc<Upstream>, seen: watch::Sender<Seen>, eras: watch::Sender<Learned>) {
    let (mut wait, started) = (RETRY, Instant::now());
    loop {
        match watch_server(&upstream, &seen, &eras).await {
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
                        eras.send_if_modified(|eras| {
                            let first = *eras == Learned::Nothing;
                            *eras = if first { Learned::Failed } else { *eras };
                            first
                        });
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

/// One conversation: returns when it ended in good order.
async fn watch_server(
    upstream: &Upstream,
    seen: &watch::Sender<Seen>,
    eras: &watch::Sender<Learned>,
) -> Result<(), UpstreamError> {
    let changed = Arc::new(Notify::new());
    let said: Said = {
        let changed = Arc::clone(&changed);
        Arc::new(move |message: Bytes| {
            if is_list_changed(&message) {
                changed.notify_one();
            }
        })
    };
    let connector = upstream.host.connector();
    let patience = upstream.host.settings().startup_timeout;
    // Until it has spoken, the conversation serves nobody: whatever ends this, ends it.
    let wire = Open(
        connector
            .open(Scope::Session, None, Arc::clone(&said))
            .await?,
    );
    let link = match Link::detect(wire.0.clone(), patience).await {
        Ok(link) => link,
        // Some servers end when they are asked what they do not know.
        Err(UpstreamError::Exited(_)) => {
            let wire = connector.open(Scope::Session, None, said).await?;
            return talk(
                upstream,
                Open(wire.clone()),
                Link::legacy(wire, patience).await?,
                &changed,
                seen,
                eras,
            )
            .await;
        }
        Err(error) => return Err(error),
    };
    talk(upstream, wire, link, &changed, seen, eras).await
}

/// A conversation that is closed when it is dropped: left open, it would hold a
/// process.
struct Open(Wire);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Lists, again and again. Ends in good order when the server ends the
/// conversation.
async fn talk(
    upstream: &Upstream,
    wire: Open,
    link: Link,
    changed: &Notify,
    seen: &watch::Sender<Seen>,
    eras: &watch::Sender<Learned>,
) -> Result<(), UpstreamError> {
    let speaks = match link.era {
        Era::Legacy => Eras {
            legacy: true,
            modern: false,
        },
        Era::Modern => Eras {
            legacy: speaks_legacy(upstream).await?,
            modern: true,
        },
    };
    let listening = link.era == Era::Modern && link.info.has(&["tools", "listChanged"]);
    let mut listening = match listening {
        true => Some(link.wire.call(listen(&listen_params())).await?),
        false => None,
    };
    loop {
        let (tools, params) = match link.info.has(&["tools"]) {
            true => list_tools(&link).await?,
            false => (Vec::new(), HashMap::new()),
        };
        upstream.params.set(params);
        let speaks = Learned::Speaks(speaks);
        eras.send_if_modified(|eras| std::mem::replace(eras, speaks) != speaks);
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
        // A server that tells changes is asked when it does, one behind HTTP also
        // from time to time: its stream may break.
        let again = match &wire.0 {
            Wire::Http(_) => AGAIN,
            Wire::Process(_) => Duration::from_secs(24 * 3600),
        };
        tokio::select! {
            () = changed.notified() => {}
            event = async { match &mut listening {
                Some(ongoing) => ongoing.next().await,
                None => std::future::pending().await,
            } } => match event {
                Event::Message(message) if !is_list_changed(&message) => {}
                Event::Message(_) => {}
                Event::Answer(Err(error)) => return Err(error),
                Event::Answer(Ok(_)) => return Ok(()),
            },
            () = wire.over() => return Err(UpstreamError::Exited(wire.why())),
            () = tokio::time::sleep(again) => {}
        }
        tokio::time::sleep(PAUSE).await; // A server that changes all the time must not keep us busy.
    }
}

impl Open {
    async fn over(&self) {
        match &self.0 {
            Wire::Process(process) => process.over().await,
            Wire::Http(client) => client.over().await,
        }
    }

    fn why(&self) -> String {
        let why = match &self.0 {
            Wire::Process(process) => process.ended(),
            Wire::Http(_) => None,
        };
        why.unwrap_or_else(|| "its connection was closed".into())
    }
}

fn listen_params() -> String {
    format!(
        r#"{{"notifications":{{"toolsListChanged":true}},"_meta":{}}}"#,
        own_meta()
    )
}

fn listen(params: &str) -> Call<'_> {
    Call {
        id: "0",
        method: "subscriptions/listen",
        params: Some(params),
        on_drop: OnDrop::Cancel,
        streams: true,
        identity: None,
    }
}

/// Whether a server that speaks the modern revision speaks older ones as well:
/// asked in a conversation of its own, since the first request decides.
async fn speaks_legacy(upstream: &Upstream) -> Result<bool, UpstreamError> {
    let nobody: Said = Arc::new(|_| {});
    let wire = Open(
        upstream
            .host
            .connector()
            .open(Scope::Session, None, nobody)
            .await?,
    );
    match Link::legacy(wire.0.clone(), upstream.host.settings().startup_timeout).await {
        Ok(_) => Ok(true),
        Err(UpstreamError::Invalid(_) | UpstreamError::Exited(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

type Listed = (Vec<ToolReport>, HashMap<String, Arc<[ParamHeader]>>);

async fn list_tools(link: &Link) -> Result<Listed, UpstreamError> {
    let (mut tools, mut wanted, mut params) = (Vec::new(), HashMap::new(), json!({}));
    for _ in 0..MAX_PAGES {
        let page = link.ask("tools/list", &params.to_string(), ANSWER).await?;
        let page: Value = serde_json::from_str(page.get())
            .map_err(|error| UpstreamError::Invalid(format!("tools/list: {error}")))?;
        for tool in page["tools"].as_array().into_iter().flatten() {
            let Some(name) = tool["name"].as_str() else {
                continue;
            };
            if tools.len() < MAX_TOOLS && name.len() <= MAX_NAME {
                let headers = param_headers(&tool["inputSchema"]);
                if !headers.is_empty() {
                    wanted.insert(name.to_owned(), headers.into());
                }
                let digest = digest(tool);
                tools.push(ToolReport {
                    name: name.to_owned(),
                    digest,
                });
            }
        }
        match page["nextCursor"].as_str() {
            Some(cursor) => params = json!({"cursor": cursor}),
            None => break,
        }
    }
    tools.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((tools, wanted))
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

fn is_list_changed(message: &[u8]) -> bool {
    let Ok(Message {
        kind: Kind::Notification { method, .. },
        ..
    }) = Message::parse(message)
    else {
        return false;
    };
    method == "notifications/tools/list_changed"
}
