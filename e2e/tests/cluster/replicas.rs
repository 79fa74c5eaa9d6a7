//! Legacy sessions over several replicas: each lives in one process on one
//! replica, and is reached through any of them.
//!
//! Every request has a connection of its own, so that kube-proxy sends it to any
//! replica: that [`MANY`] calls all land on the one that holds the session does
//! not happen.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::mcp::{Endpoint, initialize, message};
use e2e::{PATIENCE, PATIENT, release, wait_for};
use futures::future::try_join_all;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::suite::{Scope, allow, beside, server};

const SERVER: &str = "counter";
const REPLICAS: usize = 3;
/// Callers, with a session each: more than replicas, so that all of them hold some.
const CALLERS: usize = 6;
/// Calls in a row.
const MANY: usize = 12;
/// Sessions that are opened before all replicas hold one, at most.
const ATTEMPTS: usize = 100;
/// Between two calls of a session that goes on.
const PACE: Duration = Duration::from_millis(25);
const REVISION: (&str, &str) = ("MCP-Protocol-Version", "2025-06-18");

#[tokio::test]
async fn sessions_are_reached_through_any_replica() -> Result<()> {
    beside("replicas", async |scope: &Scope| {
        let callers = start(scope).await?;
        known_everywhere(&callers[0]).await?;
        let mut sessions = try_join_all(callers.iter().map(Session::open)).await?;
        try_join_all(sessions.iter_mut().map(Session::count_many)).await?;
        every_replica_holds_sessions(scope, &callers[0]).await?;
        try_join_all(sessions.iter_mut().map(Session::hears)).await?;
        let [first, second, ..] = &mut sessions[..] else {
            bail!("too few sessions");
        };
        first.is_hidden_from(&callers[1]).await?;
        nobody_follows_names(&callers[0], &first.id).await?;
        second.end().await?;
        sessions.remove(1);

        let sessions = through_a_rollout(scope, sessions).await?;
        known_everywhere(&callers[0]).await?;
        // Those that were opened while replicas came and went.
        for mut session in sessions {
            session.settle().await?;
            session.count_many().await?;
        }
        Ok(())
    })
    .await
}

/// A token of the pod's own would let the wrapped server speak as a replica.
#[tokio::test]
async fn the_wrapped_server_sees_no_token() -> Result<()> {
    beside("peer-token", async |scope: &Scope| {
        scope.apply(&[counter(1)]).await?;
        scope.serving(SERVER).await?;
        let look = "for (const dir of ['/var/run/toolward', '/var/run/secrets', '/run/toolward']) \
                    if (require('node:fs').existsSync(dir)) throw new Error(dir + ' is there')";
        let (namespace, deployment) = (&scope.namespace, format!("deployment/{SERVER}"));
        let exec = ["exec", "-n", namespace, &deployment, "-c", "server"];
        let args = [&exec[..], &["--", "node", "-e", look]].concat();
        scope.cluster.kubectl(&args).await.map(drop)
    })
    .await
}

fn counter(replicas: usize) -> Value {
    let command = ["node", "-e", include_str!("counter.js")];
    let mut counter = server(SERVER, &command, "Stdio");
    counter["spec"]["deployment"]["replicas"] = json!(replicas);
    counter
}

/// The server, and callers that are allowed to use it.
async fn start(scope: &Scope) -> Result<Vec<Caller>> {
    let accounts: Vec<String> = (0..CALLERS)
        .map(|index| format!("caller-{index}"))
        .collect();
    let account = |name: &String| {
        json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name},
        })
    };
    let namespace = &scope.namespace;
    let names: Vec<_> = accounts
        .iter()
        .map(|name| format!("{namespace}/{name}"))
        .collect();
    let policy = allow(
        "callers",
        SERVER,
        &json!({"serviceAccounts": names}),
        &["*"],
    );
    let accounts_made: Vec<_> = accounts.iter().map(account).collect();
    scope.apply(&accounts_made).await?;
    scope.apply(&[counter(REPLICAS), policy]).await?;
    // The Deployment exists from then on; its other replicas may still start.
    scope.serving(SERVER).await?;
    rolled_out(scope).await?;
    let status = scope
        .servers()
        .get(SERVER)
        .await?
        .status
        .context("no status")?;
    let url = status.url.context("no status.url")?;
    let audience = status.audience.context("no status.audience")?;
    let endpoint = Endpoint::in_cluster_spread(&scope.cluster, &url).await?;
    try_join_all(accounts.iter().map(async |account| {
        Ok(Caller {
            endpoint: endpoint.clone(),
            token: release::token(&scope.cluster, namespace, account, &audience).await?,
        })
    }))
    .await
}

async fn rolled_out(scope: &Scope) -> Result<()> {
    let deployment = format!("deployment/{SERVER}");
    let args = ["rollout", "status", &deployment, PATIENT];
    scope.kubectl(&args).await.map(drop)
}

/// Names of the pods that there are.
async fn pods(scope: &Scope) -> Result<BTreeSet<String>> {
    let label = format!("toolward.dev/server={SERVER}");
    let args = [
        "get",
        "pods",
        "-l",
        &label,
        "-o",
        "jsonpath={.items[*].metadata.name}",
    ];
    let names = scope.kubectl(&args).await?;
    Ok(names.split_whitespace().map(str::to_owned).collect())
}

/// Replicas learn of each other a moment after they are there.
async fn known_everywhere(caller: &Caller) -> Result<()> {
    wait_for(
        "sessions to be found on every replica",
        PATIENCE,
        || async {
            // One of each replica: the last part of an id names it.
            let mut holders = BTreeSet::new();
            for _ in 0..ATTEMPTS {
                let mut session = Session::open(caller).await?;
                let counted = session.count_many().await;
                let id = session.close().await?;
                counted?;
                holders.extend(id.split_once('-').map(|(_, pod)| pod.to_owned()));
                if holders.len() >= REPLICAS {
                    return Ok(());
                }
            }
            bail!("{ATTEMPTS} sessions are all on {holders:?}")
        },
    )
    .await
}

/// Without it, the calls before might have proved nothing. A session's id names
/// the replica that holds it.
async fn every_replica_holds_sessions(scope: &Scope, caller: &Caller) -> Result<()> {
    let pods = pods(scope).await?;
    ensure!(pods.len() == REPLICAS, "there are {pods:?}");
    let mut holders = BTreeSet::new();
    for _ in 0..ATTEMPTS {
        let session = Session::open(caller).await?;
        let id = session.close().await?;
        let holder = pods.iter().find(|pod| id.ends_with(&format!("-{pod}")));
        holders.insert(holder.with_context(|| format!("{id} names none of {pods:?}"))?);
        if holders.len() == REPLICAS {
            return Ok(());
        }
    }
    bail!("{ATTEMPTS} sessions are all on {holders:?}")
}

/// What names a replica in a session's id is never dialled.
async fn nobody_follows_names(caller: &Caller, id: &str) -> Result<()> {
    let (random, _) = id
        .split_once('-')
        .with_context(|| format!("{id} names no replica"))?;
    for name in ["elsewhere", "127.0.0.1", "kubernetes.default.svc", ""] {
        let made_up = format!("{random}-{name}");
        let status = caller.call(&made_up, "count").await?.status();
        ensure!(status == StatusCode::NOT_FOUND, "{made_up}: {status}");
    }
    Ok(())
}

/// All sessions go on while every replica is replaced: those of a replica that
/// is gone are answered with 404 once, and opened anew.
async fn through_a_rollout(scope: &Scope, sessions: Vec<Session>) -> Result<Vec<Session>> {
    let before = pods(scope).await?;
    let over = AtomicBool::new(false);
    let calls = try_join_all(sessions.into_iter().map(|session| session.go_on(&over)));
    let restart = async {
        let deployment = format!("deployment/{SERVER}");
        scope.kubectl(&["rollout", "restart", &deployment]).await?;
        rolled_out(scope).await?;
        wait_for("the old replicas to be gone", PATIENCE, || async {
            let left: Vec<_> = pods(scope).await?.intersection(&before).cloned().collect();
            ensure!(left.is_empty(), "{left:?} are there");
            Ok(())
        })
        .await?;
        over.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let (sessions, ()) = futures::try_join!(calls, restart)?;
    for Session { id, opened, .. } in &sessions {
        ensure!(*opened > 1, "{id} was never opened anew");
        ensure!(
            !before.iter().any(|pod| id.ends_with(pod)),
            "{id} is of a replica that is gone"
        );
    }
    Ok(sessions)
}

#[derive(Clone)]
struct Caller {
    endpoint: Endpoint,
    token: String,
}

impl Caller {
    async fn post(&self, session: &str, body: &Value) -> Result<reqwest::Response> {
        let headers = [REVISION, ("Mcp-Session-Id", session)];
        self.endpoint.post(Some(&self.token), &headers, body).await
    }

    async fn bare(&self, method: Method, session: &str) -> Result<reqwest::Response> {
        let headers = [REVISION, ("Mcp-Session-Id", session)];
        self.endpoint
            .bare(method, Some(&self.token), &headers)
            .await
    }

    async fn call(&self, session: &str, tool: &str) -> Result<reqwest::Response> {
        let params = json!({"name": tool, "arguments": {}});
        let call = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params});
        self.post(session, &call).await
    }
}

/// A session, and what its process said last.
struct Session {
    caller: Caller,
    id: String,
    process: Option<String>,
    calls: u64,
    /// How often it was opened.
    opened: u32,
}

impl Session {
    async fn open(caller: &Caller) -> Result<Self> {
        let answer = caller
            .endpoint
            .post(Some(&caller.token), &[], &initialize())
            .await?;
        let status = answer.status();
        ensure!(
            status == StatusCode::OK,
            "initialize: {status}: {}",
            answer.text().await?
        );
        let id = answer
            .headers()
            .get("mcp-session-id")
            .context("no session id")?;
        let id = id.to_str()?.to_owned();
        let _ = message(answer).await?;
        let mut session = Self {
            caller: caller.clone(),
            id,
            process: None,
            calls: 0,
            opened: 1,
        };
        session.initialized().await?;
        Ok(session)
    }

    /// Tells that the handshake is done. The replica may be gone by then.
    async fn initialized(&mut self) -> Result<()> {
        let done = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        let status = self.caller.post(&self.id, &done).await?.status();
        let good = matches!(status, StatusCode::ACCEPTED | StatusCode::NOT_FOUND);
        ensure!(good, "notifications/initialized: {status}");
        Ok(())
    }

    /// One call; whether the session was still there. It is the process that
    /// answered before, and it has answered nobody else.
    async fn count(&mut self, tool: &str) -> Result<bool> {
        let answer = self.caller.call(&self.id, tool).await?;
        let status = answer.status();
        if status == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        ensure!(
            status == StatusCode::OK,
            "{tool}: {status}: {}",
            answer.text().await?
        );
        let message = message(answer).await?;
        let text = message["result"]["content"][0]["text"].as_str();
        let (process, calls) = text
            .and_then(|text| text.split_once(' '))
            .with_context(|| format!("{message}"))?;
        let before = self.process.get_or_insert_with(|| process.to_owned());
        ensure!(
            before == process,
            "{}: {process} answers, not {before}",
            self.id
        );
        self.calls += 1;
        ensure!(
            calls == self.calls.to_string(),
            "{}: call {} is the {calls}th",
            self.id,
            self.calls
        );
        Ok(true)
    }

    async fn count_many(&mut self) -> Result<()> {
        for _ in 0..MANY {
            ensure!(self.count("count").await?, "{} is unknown", self.id);
        }
        Ok(())
    }

    /// Calls until it is `over`, with a new session where the old one is gone.
    async fn go_on(mut self, over: &AtomicBool) -> Result<Self> {
        loop {
            let last = over.load(Ordering::Relaxed);
            if !self.count("count").await? {
                self.anew().await?;
            } else if last {
                return Ok(self);
            }
            // Each call takes a port of this machine for a minute.
            tokio::time::sleep(PACE).await;
        }
    }

    async fn anew(&mut self) -> Result<()> {
        let opened = self.opened + 1;
        *self = Self {
            opened,
            ..Self::open(&self.caller).await?
        };
        Ok(())
    }

    /// Opens the session anew, should it have been on a replica that nobody knew.
    async fn settle(&mut self) -> Result<()> {
        if !self.count("count").await? {
            self.anew().await?;
        }
        Ok(())
    }

    /// What the process says by itself comes by the session's stream.
    async fn hears(&mut self) -> Result<()> {
        let mut stream = self.caller.bare(Method::GET, &self.id).await?;
        ensure!(
            stream.status() == StatusCode::OK,
            "GET: {}",
            stream.status()
        );
        ensure!(self.count("announce").await?, "{} is unknown", self.id);
        let process = self.process.clone().unwrap_or_default();
        let mut heard = String::new();
        let listen = async {
            while let Some(chunk) = stream.chunk().await? {
                heard.push_str(&String::from_utf8_lossy(&chunk));
                if heard.contains("notifications/message") && heard.contains(&process) {
                    return Ok(());
                }
            }
            bail!("the stream of {} ended", self.id)
        };
        let heard_in_time = tokio::time::timeout(PATIENCE, listen).await;
        heard_in_time.with_context(|| format!("{} heard nothing in time", self.id))?
    }

    /// For others it is as if the session did not exist, and nothing happens to it.
    async fn is_hidden_from(&mut self, other: &Caller) -> Result<()> {
        for _ in 0..MANY {
            let answers = [
                other.call(&self.id, "count").await?,
                other.bare(Method::GET, &self.id).await?,
                other.bare(Method::DELETE, &self.id).await?,
            ];
            for answer in answers {
                let status = answer.status();
                ensure!(
                    status == StatusCode::NOT_FOUND,
                    "{} for another caller: {status}",
                    self.id
                );
            }
        }
        self.count_many().await
    }

    /// Ends it, so that its process makes room; gives its id.
    async fn close(self) -> Result<String> {
        let status = self.caller.bare(Method::DELETE, &self.id).await?.status();
        let good = status.is_success() || status == StatusCode::NOT_FOUND;
        ensure!(good, "DELETE: {status}");
        Ok(self.id)
    }

    /// DELETE ends it, wherever that lands; afterwards nobody knows it.
    async fn end(&mut self) -> Result<()> {
        let status = self.caller.bare(Method::DELETE, &self.id).await?.status();
        ensure!(status.is_success(), "DELETE: {status}");
        for _ in 0..MANY {
            ensure!(
                !self.count("count").await?,
                "{} goes on after DELETE",
                self.id
            );
        }
        Ok(())
    }
}
