//! The audit log: one line of JSON on standard output for each decision.
//!
//! Lines go through a bounded queue to a thread that writes many at once; where
//! the reader of standard output is slow, requests wait, and none is decided
//! unlogged.

use std::{
    borrow::Cow,
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use policy::{Caller, Reason};
use serde::Serialize;
use tokio::sync::Notify;

/// Bytes that wait to be written.
const QUEUE: usize = 1024 * 1024;
/// So long the thread waits for more before it writes: waking it for each line
/// would cost more than the line.
const LINGER: Duration = Duration::from_millis(5);
/// Where so much waits already, it writes at once.
const LINGER_BELOW: usize = 64 * 1024;

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
    /// The pod that a service account's token is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<&'a str>,
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
            pod: of(|caller| caller.pod.as_deref()),
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
pub struct Audit(Arc<End>);

/// The producing end; the thread ends when the last one is gone.
struct End(Arc<Queue>);

struct Queue {
    state: Mutex<State>,
    /// Wakes the thread.
    filled: Condvar,
    /// Wakes requests that wait for room.
    room: Notify,
}

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    /// The thread waits: it has to be woken.
    asleep: bool,
    /// Nobody can log any more.
    closed: bool,
    /// What cannot be written is not logged.
    failed: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lines. None: all is written, and nobody can log any more.
    fn take(&self, empty: Vec<u8>) -> Option<Vec<u8>> {
        let mut state = self.state();
        while state.lines.is_empty() {
            if state.closed {
                return None;
            }
            state.asleep = true;
            state = self
                .filled
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.asleep = false;
        if !state.closed && state.lines.len() < LINGER_BELOW {
            drop(state);
            std::thread::sleep(LINGER);
            state = self.state();
        }
        let lines = std::mem::replace(&mut state.lines, empty);
        drop(state);
        self.room.notify_waiters();
        Some(lines)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.filled.notify_one();
    }
}

impl Audit {
    /// Starts the thread that writes to `out`. It ends, all written, when the
    /// last `Audit` is dropped.
    ///
    /// # Errors
    /// Where the thread cannot be started.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<(Self, JoinHandle<()>)> {
        let (filled, room) = (Condvar::new(), Notify::new());
        let queue = Arc::new(Queue {
            state: Mutex::default(),
            filled,
            room,
        });
        let ours = Arc::clone(&queue);
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || write_all(&ours, out))?;
        Ok((Self(Arc::new(End(queue))), thread))
    }

    /// Logs a decision. False: the log is gone, and the request must not go on.
    pub async fn log(&self, record: &Record<'_>) -> bool {
        let Self(end) = self;
        let queue = &end.0;
        loop {
            let room = queue.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            {
                let mut state = queue.state();
                if state.failed {
                    return false;
                }
                if state.lines.len() < QUEUE {
                    let before = state.lines.len();
                    if serde_json::to_writer(&mut state.lines, record).is_err() {
                        state.lines.truncate(before);
                        return false;
                    }
                    state.lines.push(b'\n');
                    if std::mem::take(&mut state.asleep) {
                        queue.filled.notify_one();
                    }
                    return true;
                }
            }
            room.await;
        }
    }
}

fn write_all(queue: &Queue, mut out: impl Write) {
    let mut lines = Vec::new();
    while let Some(taken) = queue.take(lines) {
        lines = taken;
        let written = out.write_all(&lines).and_then(|()| out.flush());
        lines.clear();
        if let Err(error) = written {
            tracing::error!(%error, "the audit log cannot be written; all requests are refused");
            queue.state().failed = true;
            queue.room.notify_waiters();
            return;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes a write when it is told to; fails when nobody tells any more.
    struct Slow(mpsc::Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(|_| io::Error::other("gone"))?;
            self.1.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn record() -> Record<'static> {
        Record::new(
            "shop/orders",
            "tools/call",
            None,
            Reason::TokenMissing,
            false,
        )
    }

    #[tokio::test]
    async fn all_is_written_and_who_logs_waits_for_room() {
        let (go, gate) = mpsc::channel();
        let written = Arc::default();
        let (audit, thread) = Audit::start(Slow(gate, Arc::clone(&written))).unwrap();
        let mut logged = 0;
        while tokio::time::timeout(Duration::from_millis(200), audit.log(&record()))
            .await
            .is_ok()
        {
            logged += 1;
        }
        assert!(logged * 100 < 2 * QUEUE + 1000, "{logged} lines are held");
        for _ in 0..3 {
            go.send(()).unwrap();
        }
        assert!(audit.log(&record()).await, "there is room again");
        drop(audit);
        thread.join().unwrap();
        let lines = written
            .lock()
            .unwrap()
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        assert_eq!(lines, logged + 1);
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_refused() {
        let (go, gate) = mpsc::channel();
        drop(go);
        let (audit, thread) = Audit::start(Slow(gate, Arc::default())).unwrap();
        audit.log(&record()).await;
        thread.join().unwrap();
        assert!(!audit.log(&record()).await);
    }
}
