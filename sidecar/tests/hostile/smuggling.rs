//! Request smuggling, with real servers behind the sidecar.
//!
//! On each connection goes a mutation, and then a good request. What a server
//! saw has to be what the audit log says was allowed, one by one.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use futures::{StreamExt, stream};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    common::{self, Got, Script, Sidecar, allow, bundle, echo, until},
    mutations::{Parts, follow},
    no_limits,
    wire::{PATIENCE, Raw, h2},
};

/// Connections at once.
const AT_ONCE: usize = 400;
/// The call after which nothing comes any more.
const LAST: &str = "get_last";

/// A server, and what it saw.
struct Upstream {
    name: &'static str,
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    child: Option<Child>,
}

/// A request as a server saw it.
#[derive(Clone, Debug)]
struct Seen {
    method: String,
    agent: String,
    body: String,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("hostile/upstreams")
        .join(name)
}

impl Upstream {
    /// A server in this process.
    async fn hyper() -> (Self, Script) {
        let script = Script::start(echo).await;
        let upstream = Self {
            name: "hyper",
            address: script.address,
            seen: Arc::default(),
            child: None,
        };
        (upstream, script)
    }

    /// A server that writes what it sees to its standard output.
    fn start(name: &'static str, mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let first: Value =
            serde_json::from_str(&lines.next().expect("it does not listen")).unwrap();
        let port = u16::try_from(first["listening"].as_u64().unwrap()).unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let log = Arc::clone(&seen);
        std::thread::spawn(move || {
            for line in lines {
                let line: Value = serde_json::from_str(&line).unwrap();
                let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
                log.lock().unwrap().push(Seen {
                    method: text("method"),
                    agent: text("agent"),
                    body: text("body"),
                });
            }
        });
        Self {
            name,
            address: ([127, 0, 0, 1], port).into(),
            seen,
            child: Some(child),
        }
    }

    fn node() -> Self {
        let mut command = Command::new("node");
        command.arg(source("server.mjs"));
        Self::start("Node", command)
    }

    fn python() -> Self {
        let mut command = Command::new("python3");
        command.arg(source("server.py"));
        Self::start("Python", command)
    }

    fn go() -> Self {
        let program = common::folder().join("server");
        let built = Command::new("go")
            .env("CGO_ENABLED", "0")
            .args(["build", "-o"])
            .arg(&program)
            .arg(source("server.go"))
            .status();
        assert!(built.unwrap().success(), "go build failed");
        Self::start("Go", Command::new(program))
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Seen {
    /// What it asks for: its tool, or its method.
    fn asked(&self) -> String {
        let Self { method, body, .. } = self;
        let message: Value = serde_json::from_str(body).unwrap_or_default();
        match (method.as_str(), &message["method"]) {
            ("POST", Value::String(rpc)) => {
                message["params"]["name"].as_str().unwrap_or(rpc).to_owned()
            }
            ("POST", _) => format!("unreadable: {body:?}"),
            (method, _) => method.to_owned(),
        }
    }
}

impl From<&Got> for Seen {
    fn from(got: &Got) -> Self {
        let agent = got.headers.get("user-agent");
        let agent = agent.map(|agent| String::from_utf8_lossy(agent.as_bytes()).into_owned());
        Self {
            method: got.method.clone(),
            agent: agent.unwrap_or_default(),
            body: String::from_utf8_lossy(&got.body).into_owned(),
        }
    }
}

/// Names with how often each came.
fn count(names: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    names
        .into_iter()
        .for_each(|name| *counts.entry(name).or_default() += 1);
    counts
}

/// Sends a mutation and what follows; gives all that comes back.
async fn exchange(address: SocketAddr, bytes: Vec<u8>) -> String {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let sending = tokio::spawn(async move {
        // The other side may have had enough of it.
        let _ = write.write_all(&bytes).await;
        write
    });
    let mut answers = Vec::new();
    let end = tokio::time::timeout(PATIENCE, read.read_to_end(&mut answers)).await;
    assert!(
        end.is_ok(),
        "the connection is left open: {}",
        String::from_utf8_lossy(&answers)
    );
    sending.abort();
    String::from_utf8_lossy(&answers).into_owned()
}

/// The same over HTTP/2: until the answer on stream 3, or the end.
async fn exchange_http2(address: SocketAddr, bytes: Vec<u8>) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(&bytes).await;
    let answers = async {
        let mut answers = Vec::new();
        while let Some(frame) = h2::next(&mut stream).await {
            let is_data = frame.kind == h2::DATA;
            if is_data {
                answers.extend(frame.payload);
            }
            let is_end =
                frame.kind == h2::RST_STREAM || (is_data && frame.flags & h2::END_STREAM > 0);
            if is_end && frame.stream == 3 {
                break;
            }
        }
        answers
    };
    let answers = tokio::time::timeout(PATIENCE, answers)
        .await
        .expect("neither an answer nor an end");
    String::from_utf8_lossy(&answers).into_owned()
}

async fn in_front_of(upstream: &Upstream) -> Sidecar {
    let url = format!("http://{}/mcp", upstream.address);
    let sidecar = Sidecar::serve(&["--upstream", &url], |issuer| {
        Some(bundle(
            issuer,
            allow(serde_json::json!(["get_*"])),
            no_limits(),
        ))
    })
    .await;
    sidecar.ready().await
}

/// The names that the audit log says were allowed, up to the last call.
fn allowed(sidecar: &Sidecar) -> (BTreeMap<String, usize>, usize) {
    let (mut names, mut denied) = (Vec::new(), 0);
    loop {
        let record = sidecar.audited();
        let text = |key: &str| record[key].as_str().map(ToOwned::to_owned);
        let name = text("tool").or_else(|| text("method")).unwrap();
        if record["decision"] != "Allow" {
            denied += 1;
            continue;
        }
        let is_last = name == LAST;
        names.push(name);
        if is_last {
            return (count(names), denied);
        }
    }
}

/// A mutation with a call that follows it on the same connection.
struct Attempt {
    /// In the name of the call that follows, so that answers can be told apart.
    number: usize,
    name: String,
    bytes: Vec<u8>,
    is_http2: bool,
}

fn attempts(bearer: &str) -> Vec<Attempt> {
    let parts = Parts {
        bearer,
        outer: "get_outer",
        inner: "delete_inner",
    };
    let http1 = parts.all();
    let first = http1.len();
    let http1 = http1.into_iter().enumerate();
    let http1 = http1.map(|(number, (name, bytes))| Attempt {
        number,
        name,
        bytes: [bytes, follow(bearer, &format!("get_follow_{number}."))].concat(),
        is_http2: false,
    });
    let http2 = (0..parts.http2("").len()).map(|at| {
        let number = first + at;
        let (name, bytes) = parts
            .http2(&format!("get_follow_{number}."))
            .swap_remove(at);
        Attempt {
            number,
            name,
            bytes,
            is_http2: true,
        }
    });
    http1.chain(http2).collect()
}

impl Attempt {
    /// What is wrong with the answers, if anything.
    async fn run(self, address: SocketAddr) -> Option<String> {
        let answers = match self.is_http2 {
            true => exchange_http2(address, self.bytes).await,
            false => exchange(address, self.bytes).await,
        };
        // An answer for somebody else's request is a desync as well.
        let follows = answers.matches("get_follow_").count();
        let own = format!("get_follow_{}.", self.number);
        let own = answers.matches(&own).count();
        let ran = answers.contains(r#""text":"delete_inner""#);
        (ran || follows != own || own > 1).then(|| format!("{}: {answers}", self.name))
    }
}

/// What the server saw, without what the sidecar asks by itself.
async fn seen(upstream: &Upstream, script: Option<&Script>) -> BTreeMap<String, usize> {
    const OF_PROBE: [&str; 7] = [
        "server/discover",
        "initialize",
        "notifications/initialized",
        "notifications/cancelled",
        "tools/list",
        "GET",
        "DELETE",
    ];
    let all = || match script {
        Some(script) => script.got.lock().unwrap().iter().map(Seen::from).collect(),
        None => upstream.seen(),
    };
    until("the server has seen the last call", async || {
        all().iter().any(|seen| seen.asked() == LAST)
    })
    .await;
    let of_callers = all().into_iter().filter_map(|seen| {
        let asked = seen.asked();
        let is_probe = seen.agent.is_empty() && OF_PROBE.contains(&asked.as_str());
        (!is_probe).then_some(asked)
    });
    count(of_callers)
}

/// Sends all mutations; gives how many there were, and what is wrong.
async fn smuggle(upstream: &Upstream, script: Option<&Script>) -> (usize, Vec<String>) {
    let sidecar = in_front_of(upstream).await;
    let bearer = format!("Bearer {}", sidecar.token("alice"));
    let attempts = attempts(&bearer);
    let total = attempts.len();
    let mut wrong: Vec<_> = stream::iter(attempts)
        .map(|attempt| attempt.run(sidecar.mcp))
        .buffer_unordered(AT_ONCE)
        .filter_map(async |wrong| wrong)
        .collect()
        .await;
    let mut raw = Raw::connect(sidecar.mcp).await;
    raw.send(follow(&bearer, LAST)).await.unwrap();
    assert_eq!(raw.answer().await.unwrap().status, 200);
    let (allowed, denied) = allowed(&sidecar);
    drop(sidecar);
    let seen = seen(upstream, script).await;
    let names: BTreeSet<_> = seen.keys().chain(allowed.keys()).collect();
    wrong.extend(names.into_iter().filter_map(|name| {
        let (saw, may) = (seen.get(name), allowed.get(name));
        (saw != may).then(|| format!("{name}: seen {saw:?}, allowed {may:?}"))
    }));
    println!(
        "row 23: {} saw {} requests of {total} mutations and what follows them, each of them allowed; {denied} were refused by decision, the rest before",
        upstream.name,
        seen.values().sum::<usize>()
    );
    let wrong = wrong
        .iter()
        .map(|wrong| format!("{}: {wrong}", upstream.name));
    (total, wrong.collect())
}

/// Sends all mutations without a sidecar; gives how many hidden requests ran.
async fn directly(upstream: &Upstream) -> usize {
    let parts = Parts {
        bearer: "Bearer x",
        outer: "get_outer",
        inner: "delete_inner",
    };
    let exchanges = stream::iter(parts.all()).map(|(_, bytes)| async move {
        let mut stream = TcpStream::connect(upstream.address).await.unwrap();
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let mut answers = Vec::new();
        let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answers)).await;
        assert!(end.is_ok(), "{} leaves the connection open", upstream.name);
    });
    exchanges.buffer_unordered(AT_ONCE).collect::<()>().await;
    let ran = |seen: &&Seen| seen.asked() == "delete_inner";
    upstream.seen().iter().filter(ran).count()
}

/// The test above can fail: with nobody in between, hidden requests run.
#[tokio::test(flavor = "multi_thread")]
async fn hidden_requests_run_where_nobody_guards() {
    let python = Upstream::python();
    let ran = directly(&python).await;
    println!("row 23: without the sidecar, Python runs {ran} hidden requests");
    assert!(ran > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_server_sees_a_request_that_was_not_decided() {
    let (hyper, script) = Upstream::hyper().await;
    let (node, python) = (Upstream::node(), Upstream::python());
    let go = tokio::task::spawn_blocking(Upstream::go).await.unwrap();
    let (hyper, node, python, go) = tokio::join!(
        smuggle(&hyper, Some(&script)),
        smuggle(&node, None),
        smuggle(&python, None),
        smuggle(&go, None),
    );
    let all = [hyper, node, python, go];
    let wrong: Vec<_> = all.iter().flat_map(|(_, wrong)| wrong).collect();
    assert!(wrong.is_empty(), "{} desyncs: {wrong:#?}", wrong.len());
    println!(
        "row 23: {} mutations before each of hyper, Node, Python and Go: 0 desyncs",
        all[0].0
    );
}
