//! The audit log: one line of JSON on standard output for each decision.
//!
//! Lines go through a bounded queue to a thread that writes; where the reader
//! of standard output is slow, requests wait, and none is decided unlogged.

use std::{
    borrow::Cow,
    io::{self, Write},
    thread::JoinHandle,
};

use policy::{Caller, Reason};
use serde::Serialize;
use tokio::sync::mpsc;

const QUEUE: usize = 4096;

/// One decision.
#[derive(Debug, Serialize)]
pub struct Record<'a> {
    /// When, RFC 3339 in UTC.
    pub time: jiff::Timestamp,
    /// The `McpServer` as `namespace/name`.
    pub server: &'a str,
    /// MCP method; `GET` and `DELETE` for streams and ends of sessions.
    pub method: &'a str,
    /// Name of the tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<&'a str>,
    /// Name of the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<&'a str>,
    /// URI of the resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<&'a str>,
    /// Name of the issuer.
    pub issuer: Option<&'a str>,
    /// The end user.
    pub user: Option<&'a str>,
    /// The agent.
    pub agent: Option<&'a str>,
    /// `Allow` or `Deny`.
    pub decision: &'static str,
    /// Why.
    pub reason: Reason,
    /// The policy whose rule or limit decided.
    pub policy: Option<&'a str>,
    /// The rule or limit that decided.
    pub rule: Option<&'a str>,
    /// What was wrong with a request that could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<Cow<'a, str>>,
}

impl<'a> Record<'a> {
    /// A record of a caller that may not be known yet.
    pub fn new(
        server: &'a str,
        method: &'a str,
        caller: Option<&'a Caller>,
        reason: Reason,
        allowed: bool,
    ) -> Self {
        let of = |field: fn(&Caller) -> Option<&str>| caller.and_then(field);
        Self {
            time: jiff::Timestamp::now(),
            server,
            method,
            tool: None,
            prompt: None,
            resource: None,
            issuer: of(|caller| caller.issuer.as_deref()),
            user: of(|caller| caller.user.as_deref()),
            agent: of(|caller| caller.agent.as_deref()),
            decision: if allowed { "Allow" } else { "Deny" },
            reason,
            policy: None,
            rule: None,
            detail: None,
        }
    }
}

/// Where records go.
#[derive(Clone)]
pub struct Audit(mpsc::Sender<Vec<u8>>);

impl Audit {
    /// Starts the thread that writes to `out`. It ends, all written, when the
    /// last `Audit` is dropped.
    ///
    /// # Errors
    /// Where the thread cannot be started.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<(Self, JoinHandle<()>)> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || write_all(receiver, out))?;
        Ok((Self(sender), thread))
    }

    /// Logs a decision. False: the log is gone, and the request must not go on.
    pub async fn log(&self, record: &Record<'_>) -> bool {
        match serde_json::to_vec(record) {
            Ok(mut line) => {
                line.push(b'\n');
                self.0.send(line).await.is_ok()
            }
            Err(_) => false,
        }
    }
}

fn write_all(mut lines: mpsc::Receiver<Vec<u8>>, out: impl Write) {
    let mut out = io::BufWriter::with_capacity(64 * 1024, out);
    while let Some(mut line) = lines.blocking_recv() {
        let written = loop {
            let written = out.write_all(&line);
            match (written, lines.try_recv()) {
                (Ok(()), Ok(next)) => line = next,
                (written, _) => break written.and_then(|()| out.flush()),
            }
        };
        if let Err(error) = written {
            // The queue closes with this thread, and requests are refused.
            tracing::error!(%error, "the audit log cannot be written; all requests are refused");
            return;
        }
    }
}
