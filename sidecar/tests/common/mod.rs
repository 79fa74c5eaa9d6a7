//! The real binary in front of a scripted server, on loopback.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, LazyLock, Mutex, mpsc},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use policy::{Bundle, Context, PolicySource, bundle::Issuer, compile};
use serde_json::{Value, json};
use sidecar::dev::DevIssuer;

pub const OPERATOR: &str = "system:serviceaccount:toolward-system:toolward-operator";
/// Seconds for which tokens are valid: as long as a server accepts by itself.
pub const LIFETIME: u64 = 3600;
/// How long is waited for what has to come: a slow machine is no failure.
pub const PATIENCE: Duration = Duration::from_secs(120);
pub type ScriptBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// A request as the wrapped server saw it.
#[derive(Clone, Debug)]
pub struct Got {
    pub method: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub connection: usize,
}

/// A server that answers as it is told.
pub struct Script {
    pub address: SocketAddr,
    pub got: Arc<Mutex<Vec<Got>>>,
}

type Own = Arc<dyn Fn(&Got) -> Option<Response<ScriptBody>> + Send + Sync>;
pub type Answer = Arc<dyn Fn(&Got) -> Response<ScriptBody> + Send + Sync>;

impl Script {
    /// Answers handshake and lists of the probe itself, all else by `answer`.
    pub async fn start(
        answer: impl Fn(&Got) -> Response<ScriptBody> + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(of_probe, answer).await
    }

    /// Answers what `own` does not answer by `answer`, and remembers only that.
    pub async fn start_with(
        own: impl Fn(&Got) -> Option<Response<ScriptBody>> + Send + Sync + 'static,
        answer: impl Fn(&Got) -> Response<ScriptBody> + Send + Sync + 'static,
    ) -> Self {
        let own: Own = Arc::new(own);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let got = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen): (Answer, _) = (Arc::new(answer), Arc::clone(&got));
        tokio::spawn(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let own = Arc::clone(&own);
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let own = Arc::clone(&own);
                        let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                        async move {
                            let (parts, body) = request.into_parts();
                            // A caller that leaves within its request has sent none.
                            let body = body.collect().await?.to_bytes();
                            let got = Got {
                                method: parts.method.to_string(),
                                headers: parts.headers,
                                body,
                                connection,
                            };
                            if let Some(answer) = own(&got) {
                                return Ok::<_, hyper::Error>(answer);
                            }
                            seen.lock().unwrap().push(got.clone());
                            Ok(answer(&got))
                        }
                    });
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, got }
    }

    pub fn last(&self) -> Got {
        self.got.lock().unwrap().last().unwrap().clone()
    }
}

pub fn of_probe(got: &Got) -> Option<Response<ScriptBody>> {
    let is_probe = got.headers.get("user-agent").is_none();
    let message: Value = serde_json::from_slice(&got.body).unwrap_or_default();
    let result = match (message["method"].as_str(), got.method.as_str()) {
        _ if !is_probe => return None,
        (Some("initialize"), _) => {
            json!({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}})
        }
        (Some("tools/list"), _) => json!({"tools": tools()}),
        (_, "GET") => return Some(Response::builder().status(405).body(text("")).unwrap()),
        _ => return Some(Response::builder().status(202).body(text("")).unwrap()),
    };
    Some(json_answer(
        &json!({"jsonrpc": "2.0", "id": message["id"], "result": result}),
    ))
}

pub fn tools() -> Value {
    json!([{"name": "get_order", "inputSchema": {"type": "object"}}, {"name": "delete_order", "inputSchema": {"type": "object"}}])
}

pub fn text(text: &str) -> ScriptBody {
    Full::new(Bytes::from(text.to_owned()))
        .map_err(|never| match never {})
        .boxed_unsync()
}

pub fn json_answer(value: &Value) -> Response<ScriptBody> {
    Response::builder()
        .header("content-type", "application/json")
        .body(text(&value.to_string()))
        .unwrap()
}

/// Answers a call with its own arguments.
pub fn echo(got: &Got) -> Response<ScriptBody> {
    let message: Value = serde_json::from_slice(&got.body).unwrap_or_default();
    let result = match message["method"].as_str() {
        Some("tools/list") => json!({"tools": tools(), "nextCursor": "2"}),
        _ => {
            json!({"content": [{"type": "text", "text": message["params"]["arguments"].to_string()}]})
        }
    };
    json_answer(&json!({"jsonrpc": "2.0", "id": message["id"], "result": result}))
}

/// The bundle of a server with this policy.
pub fn bundle(issuer: &DevIssuer, rules: Value, limits: Value) -> Bundle {
    let object = |kind: &str, name: &str, spec: Value| {
        json!({
            "apiVersion": "toolward.dev/v1alpha1", "kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec,
        })
    };
    let server = object(
        "McpServer",
        "orders",
        json!({"deployment": {"image": "i"}, "transport": {"type": "StreamableHttp"}}),
    );
    let policy = object(
        "McpToolPolicy",
        "p",
        json!({"targetRefs": [{"name": "orders"}], "rules": rules, "limits": limits}),
    );
    let context = Context {
        default_url: "http://orders.shop.svc/mcp".into(),
        dev: Some(issuer.issuer()),
        operator: Some(OPERATOR.into()),
        ..Context::default()
    };
    let policy = serde_json::from_value(policy).unwrap();
    let compiled = compile(
        &serde_json::from_value(server).unwrap(),
        &[PolicySource::Valid(&policy)],
        &context,
    );
    assert_eq!(compiled.diagnostics, []);
    // The operator's tokens are by the same key.
    let cluster = Issuer {
        name: "cluster".into(),
        service_accounts: true,
        ..issuer.issuer()
    };
    Bundle {
        cluster: Some(cluster),
        ..compiled.bundle
    }
}

pub fn allow(tools: Value) -> Value {
    json!([{"name": "staff", "effect": "Allow", "from": [{"groups": ["staff"]}], "tools": tools}])
}

/// A token with one letter of the signature changed.
pub fn forged(token: &str) -> String {
    let (rest, signature) = token.rsplit_once('.').unwrap();
    let first = if signature.starts_with('A') { "B" } else { "A" };
    format!("{rest}.{first}{}", &signature[1..])
}

/// The binary, running.
pub struct Sidecar {
    pub child: Child,
    pub mcp: SocketAddr,
    pub admin: SocketAddr,
    pub folder: PathBuf,
    pub issuer: DevIssuer,
    audit: Mutex<mpsc::Receiver<Value>>,
    pub log: Arc<Mutex<VecDeque<String>>>,
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
        if std::thread::panicking() {
            for line in self.log.lock().iter().flat_map(|log| log.iter()) {
                eprintln!("sidecar: {line}");
            }
        }
    }
}

/// The program that is tested: beside the folder of this one, as Cargo puts it.
pub fn binary() -> &'static str {
    static PATH: LazyLock<String> = LazyLock::new(|| {
        let own = std::env::current_exe().unwrap();
        let path = own.parent().unwrap().with_file_name("toolward-sidecar");
        assert!(
            path.is_file(),
            "there is no {}: `make check` builds it",
            path.display()
        );
        path.to_str().unwrap().to_owned()
    });
    &PATH
}

/// A folder of this test alone.
pub fn folder() -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Beside target/TRIPLE/PROFILE: paths of sockets may not be long.
    let target = Path::new(binary()).ancestors().nth(3).unwrap();
    let folder = target.join("tmp").join(format!(
        "{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    ));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

impl Sidecar {
    /// `serve` in front of a server.
    pub async fn serve(target: &[&str], bundle: impl FnOnce(&DevIssuer) -> Option<Bundle>) -> Self {
        Self::serve_by(Command::new(binary()), target, bundle)
    }

    /// `serve`, by a program that need not be the real one.
    pub fn serve_by(
        mut command: Command,
        target: &[&str],
        bundle: impl FnOnce(&DevIssuer) -> Option<Bundle>,
    ) -> Self {
        let (issuer, folder) = (DevIssuer::new().unwrap(), folder());
        if let Some(bundle) = bundle(&issuer) {
            write(&folder, &bundle.to_json().unwrap());
        }
        command
            .args(["serve", "--bundle"])
            .arg(&folder)
            .args(target);
        Self::start(command, folder, issuer)
    }

    /// Starts any command of the binary that serves.
    pub fn start(mut command: Command, folder: PathBuf, issuer: DevIssuer) -> Self {
        let mut child = command
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, audit) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).for_each(|line| {
                let _ = lines.send(serde_json::from_str(&line).unwrap());
            })
        });
        let (addresses, listening) = mpsc::channel();
        let log: Arc<Mutex<VecDeque<String>>> = Arc::default();
        let (stderr, kept) = (
            BufReader::new(child.stderr.take().unwrap()),
            Arc::clone(&log),
        );
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).for_each(|line| {
                let address = |key: &str| {
                    line.split(key)
                        .nth(1)?
                        .split_whitespace()
                        .next()?
                        .parse::<SocketAddr>()
                        .ok()
                };
                if let (Some(mcp), Some(admin)) = (address("mcp="), address("admin=")) {
                    let _ = addresses.send((mcp, admin));
                }
                kept.lock().unwrap().push_back(line);
            })
        });
        let (mcp, admin) = listening
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("no listener: {log:?}"));
        Self {
            child,
            mcp,
            admin,
            folder,
            issuer,
            audit: Mutex::new(audit),
            log,
        }
    }

    /// Its bundle is in force; its server need not have answered.
    pub async fn configured(self) -> Self {
        until("the bundle is read", async || {
            self.admin("/status").await.0 == 200
        })
        .await;
        self
    }

    pub async fn ready(self) -> Self {
        until("ready", async || self.admin("/readyz").await.0 == 200).await;
        self
    }

    pub fn token(&self, user: &str) -> String {
        self.issuer
            .token(
                user,
                &["staff".into()],
                "http://orders.shop.svc/mcp",
                sidecar::pipeline::now(),
                LIFETIME,
            )
            .unwrap()
    }

    /// Sends a message as a member of staff.
    pub async fn call(&self, message: &Value) -> Reply {
        self.post(&self.token("alice"), &[], message.to_string())
            .await
    }

    /// A POST with the headers that each client sends.
    pub fn request(&self, token: &str) -> http::request::Builder {
        Request::post(format!("http://{}/mcp", self.mcp))
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("user-agent", "test")
            .header("authorization", format!("Bearer {token}"))
    }

    pub async fn post(&self, token: &str, headers: &[(&str, &str)], body: String) -> Reply {
        let mut request = self.request(token);
        for (name, value) in headers {
            request.headers_mut().unwrap().remove(*name);
            request = request.header(*name, *value);
        }
        send(request.body(Full::new(Bytes::from(body))).unwrap()).await
    }

    pub async fn admin(&self, path: &str) -> (u16, String) {
        let token = self
            .issuer
            .token(
                OPERATOR,
                &[],
                "toolward-admin/shop/orders",
                sidecar::pipeline::now(),
                LIFETIME,
            )
            .unwrap();
        self.admin_as(path, &token).await
    }

    pub async fn admin_as(&self, path: &str, token: &str) -> (u16, String) {
        let request = Request::get(format!("http://{}{path}", self.admin))
            .header("authorization", format!("Bearer {token}"));
        let reply = send(request.body(Full::default()).unwrap()).await;
        (
            reply.status,
            String::from_utf8(reply.body.to_vec()).unwrap(),
        )
    }

    /// Waits for the next audit record.
    pub fn audited(&self) -> Value {
        self.audit.lock().unwrap().recv_timeout(PATIENCE).unwrap()
    }

    /// Writes another bundle, as the kubelet does: whole, by a rename.
    pub async fn rewrite(&self, bundle: &Bundle) {
        let json = bundle.to_json().unwrap();
        write(&self.folder, &json);
        let hash = policy::bundle::hash(json.as_bytes());
        until("the new bundle is in force", async || {
            self.admin("/status").await.1.contains(&hash)
        })
        .await;
    }
}

pub fn write(folder: &Path, json: &str) {
    std::fs::write(folder.join("new"), json).unwrap();
    std::fs::rename(folder.join("new"), folder.join("bundle.json")).unwrap();
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    /// The answer. One that took longer came as the last event of a stream.
    pub fn json(&self) -> Value {
        self.messages().pop().unwrap()
    }

    /// All messages of the answer, the last being the response.
    pub fn messages(&self) -> Vec<Value> {
        let text = std::str::from_utf8(&self.body).unwrap();
        let parsed = |json: &str| {
            serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {text:?}"))
        };
        let kind = self.headers.get("content-type");
        if !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream")) {
            return vec![parsed(text)];
        }
        let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
        let data = data.map(str::trim).filter(|data| !data.is_empty());
        data.map(parsed).collect()
    }
}

pub async fn send(request: Request<Full<Bytes>>) -> Reply {
    let (parts, body) = open(request).await.into_parts();
    let body = tokio::time::timeout(PATIENCE, body.collect())
        .await
        .unwrap()
        .unwrap()
        .to_bytes();
    Reply {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body,
    }
}

pub async fn open(request: Request<Full<Bytes>>) -> Response<Incoming> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    tokio::time::timeout(PATIENCE, client.request(request))
        .await
        .unwrap()
        .unwrap()
}

/// Waits for a condition, generously.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The shim, running.
pub struct Shim {
    pub child: Child,
    pub socket: PathBuf,
}

impl Shim {
    pub async fn start(peer_uid: u32, command: &[&str]) -> Self {
        let socket = std::env::temp_dir().join(format!(
            "toolward-{}-{}.sock",
            std::process::id(),
            folder().file_name().unwrap().to_string_lossy()
        ));
        let child = Command::new(binary())
            .args(["shim", "--socket"])
            .arg(&socket)
            .args(["--peer-uid", &peer_uid.to_string(), "--"])
            .args(command)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("the shim listens", async || socket.exists()).await;
        Self { child, socket }
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// The server that does as it is told.
pub fn script() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("stdio.py")
        .to_str()
        .unwrap()
        .to_owned()
}
