//! A client of one era and a server of the other, over HTTP and over stdio.
#![allow(clippy::unwrap_used, missing_docs)]

use sidecar_tests::common;

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use common::{PATIENCE, Reply, Shim, Sidecar, bundle, folder, open, send, until};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use sidecar::era::encode;

const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

/// A server of one era behind the sidecar.
struct Server {
    sidecar: Sidecar,
    _shim: Option<Shim>,
    _process: Option<Process>,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn rules() -> Value {
    let staff = json!([{"groups": ["staff"]}]);
    json!([
        {"name": "not", "effect": "Deny", "from": staff, "tools": ["hidden"]},
        {"name": "staff", "effect": "Allow", "from": staff, "tools": ["*"], "prompts": ["*"], "resources": ["**"]},
    ])
}

async fn behind(era: &str, transport: &str) -> Server {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("eras.py");
    let command = ["python3", script.to_str().unwrap(), era, transport];
    let (mut shim, mut process, mut target) = (None, None, Vec::new());
    if transport == "stdio" {
        let started = Shim::start(rustix::process::getuid().as_raw(), &command).await;
        target.extend([
            "--socket".to_owned(),
            started.socket.to_str().unwrap().to_owned(),
        ]);
        shim = Some(started);
    } else {
        let mut command = Command::new(command[0]);
        command.args(["-u", script.to_str().unwrap(), era, transport]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut port)
            .unwrap();
        target.extend([
            "--upstream".to_owned(),
            format!("http://127.0.0.1:{}/mcp", port.trim()),
        ]);
        process = Some(Process(child));
    }
    let target: Vec<_> = target.iter().map(String::as_str).collect();
    let sidecar = serve(&target).await.ready().await;
    Server {
        sidecar,
        _shim: shim,
        _process: process,
    }
}

async fn serve(target: &[&str]) -> Sidecar {
    let limits = json!([{"name": "wide", "tools": ["*"], "requests": 1_000_000, "per": "1s"}]);
    let sidecar = Sidecar::serve(target, |issuer| Some(bundle(issuer, rules(), limits)));
    sidecar.await.configured().await
}

/// The messages of a stream, one by one.
struct Messages {
    body: Incoming,
    read: Vec<u8>,
}

impl Messages {
    fn of(body: Incoming) -> Self {
        Self {
            body,
            read: Vec::new(),
        }
    }

    /// The next one; none at the end, or where none comes in time.
    async fn next(&mut self, patience: Duration) -> Option<Value> {
        tokio::time::timeout(patience, self.read())
            .await
            .ok()
            .flatten()
    }

    async fn read(&mut self) -> Option<Value> {
        loop {
            while let Some(end) = self.read.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.read.drain(..end + 2).collect();
                let event = String::from_utf8(event).unwrap();
                let data = event.lines().find_map(|line| line.strip_prefix("data:"));
                if let Some(data) = data.map(str::trim).filter(|data| !data.is_empty()) {
                    return Some(serde_json::from_str(data).unwrap());
                }
            }
            let frame = self.body.frame().await?.unwrap();
            self.read.extend_from_slice(&frame.into_data().unwrap());
        }
    }
}

/// What a tool said as text, which is JSON.
fn said(reply: &Reply) -> Value {
    let message = reply.json();
    let text = message["result"]["content"][0]["text"].as_str();
    serde_json::from_str(text.unwrap_or_else(|| panic!("{message}"))).unwrap()
}

/// A client of either era, whose name is alice.
trait Caller {
    fn request(&self, message: &Value) -> Request<Full<Bytes>>;

    async fn ask(&self, method: &str, params: Value) -> Reply {
        send(self.request(&message(method, params))).await
    }

    async fn tool(&self, name: &str, arguments: Value) -> Reply {
        self.ask("tools/call", json!({"name": name, "arguments": arguments}))
            .await
    }

    /// Asks for the same again and again until the stream has the message.
    async fn changed(&self, stream: &mut Messages, wanted: &str) -> Value {
        for _ in 0..10 {
            assert_eq!(said(&self.tool("change", json!({})).await), "changed");
            while let Some(message) = stream.next(Duration::from_secs(1)).await {
                if message["method"] == wanted {
                    return message;
                }
            }
        }
        panic!("{wanted} never came");
    }
}

fn message(method: &str, params: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": "mine", "method": method, "params": params})
}

fn posted(sidecar: &Sidecar) -> http::request::Builder {
    sidecar.request(&sidecar.token("alice"))
}

struct Modern<'s>(&'s Sidecar);

impl Caller for Modern<'_> {
    fn request(&self, message: &Value) -> Request<Full<Bytes>> {
        let mut message = message.clone();
        let meta = &mut message["params"]["_meta"];
        meta["io.modelcontextprotocol/protocolVersion"] = "2026-07-28".into();
        meta["io.modelcontextprotocol/clientCapabilities"] = json!({"elicitation": {}});
        let method = message["method"].as_str().unwrap();
        let mut request = posted(self.0)
            .header("mcp-protocol-version", "2026-07-28")
            .header("mcp-method", method);
        let member = match method {
            "tools/call" | "prompts/get" => "name",
            "resources/read" => "uri",
            "tasks/get" => "taskId",
            _ => "",
        };
        if let Some(name) = message["params"][member].as_str() {
            request = request.header("mcp-name", encode(name));
        }
        request
            .body(Full::new(Bytes::from(message.to_string())))
            .unwrap()
    }
}

struct Legacy<'s> {
    sidecar: &'s Sidecar,
    session: String,
    hello: Value,
}

impl<'s> Legacy<'s> {
    async fn new(sidecar: &'s Sidecar) -> Self {
        let params = json!({"protocolVersion": "2025-11-25", "capabilities": {"elicitation": {}}, "clientInfo": {"name": "c", "version": "1"}});
        let hello = posted(sidecar).body(Full::new(Bytes::from(
            message("initialize", params).to_string(),
        )));
        let reply = send(hello.unwrap()).await;
        let session = reply.headers["mcp-session-id"].to_str().unwrap().to_owned();
        let this = Self {
            sidecar,
            session,
            hello: reply.json(),
        };
        let ready = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        assert_eq!(send(this.request(&ready)).await.status, 202);
        this
    }

    async fn stream(&self) -> Messages {
        let (mut parts, _) = self.request(&Value::Null).into_parts();
        parts.method = http::Method::GET;
        let answer = open(Request::from_parts(parts, Full::default())).await;
        assert_eq!(answer.status(), 200);
        Messages::of(answer.into_body())
    }
}

impl Caller for Legacy<'_> {
    fn request(&self, message: &Value) -> Request<Full<Bytes>> {
        posted(self.sidecar)
            .header("mcp-protocol-version", "2025-11-25")
            .header("mcp-session-id", &self.session)
            .body(Full::new(Bytes::from(message.to_string())))
            .unwrap()
    }
}

/// What passes between the eras either way.
async fn the_same_in_both(client: &impl Caller) {
    let tools = client.ask("tools/list", json!({})).await.json();
    assert_eq!(tools["id"], "mine");
    let names = tools["result"]["tools"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| &tool["name"]);
    assert_eq!(
        names.collect::<Vec<_>>(),
        ["seen", "count"],
        "`hidden` may not be called"
    );
    let hidden = client.tool("hidden", json!({})).await.json();
    assert_eq!(hidden["error"]["message"], "Unknown tool: hidden");
    let seen = said(&client.tool("seen", json!({"a": [1, "ö"]})).await);
    assert_eq!(
        (&seen["name"], &seen["arguments"]),
        (&json!("seen"), &json!({"a": [1, "ö"]}))
    );
    let unknown = client.tool("nothing", json!({})).await.json();
    assert_eq!(
        unknown["error"],
        json!({"code": -32602, "message": "Unknown tool: nothing"})
    );

    let prompts = client.ask("prompts/list", json!({})).await.json();
    assert_eq!(prompts["result"]["prompts"], json!([{"name": "greet"}]));
    let prompt = client
        .ask("prompts/get", json!({"name": "greet"}))
        .await
        .json();
    assert_eq!(prompt["result"]["messages"][0]["content"]["text"], "greet");
    let resources = client.ask("resources/list", json!({})).await.json();
    assert_eq!(resources["result"]["resources"][0]["uri"], "x:y");
    let templates = client
        .ask("resources/templates/list", json!({}))
        .await
        .json();
    assert_eq!(
        templates["result"]["resourceTemplates"][0]["uriTemplate"],
        "x:{z}"
    );
    let read = client
        .ask("resources/read", json!({"uri": "x:y"}))
        .await
        .json();
    assert_eq!(read["result"]["contents"][0]["text"], "content");
    let completion = json!({"ref": {"type": "ref/prompt", "name": "greet"}, "argument": {"name": "a", "value": "v"}});
    let completed = client.ask("completion/complete", completion).await.json();
    assert_eq!(completed["result"]["completion"]["values"], json!(["v!"]));

    let counted = json!({"name": "count", "_meta": {"progressToken": "my token"}});
    let counted = client.ask("tools/call", counted).await.messages();
    let progress = |n: u32| json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": "my token", "progress": n}});
    assert_eq!(counted[..3], [progress(1), progress(2), progress(3)]);
    assert_eq!(counted[3]["result"]["content"][0]["text"], "\"counted\"");
}

/// Files by which a call that hangs says how far it is.
struct Hanging(Value);

impl Hanging {
    fn new(sidecar: &Sidecar, name: &str) -> Self {
        let file = |what: &str| sidecar.folder.join(format!("{name}-{what}"));
        Self(json!({"begun": file("begun"), "cancelled": file("cancelled")}))
    }

    fn has(&self, what: &str) -> bool {
        Path::new(self.0[what].as_str().unwrap()).exists()
    }

    async fn until(&self, what: &str) {
        until(what, async || self.has(what)).await;
    }
}

fn assert_clear(reply: &Reply, says: &str) {
    let message = reply.json();
    let text = message["error"]["message"]
        .as_str()
        .unwrap_or_else(|| panic!("{message}"));
    assert!(text.contains(says), "{text}");
    assert_eq!(message["id"], "mine");
}

async fn a_modern_client_of_a_legacy_server(transport: &str) {
    let server = behind("legacy", transport).await;
    let client = Modern(&server.sidecar);
    the_same_in_both(&client).await;

    let discovered = client.ask("server/discover", json!({})).await.json()["result"].clone();
    assert_eq!(discovered["supportedVersions"], json!(["2026-07-28"]));
    assert_eq!(
        (&discovered["resultType"], &discovered["instructions"]),
        (&json!("complete"), &json!("be kind"))
    );
    for absent in ["logging", "tasks"] {
        assert!(
            discovered["capabilities"][absent].is_null()
                && discovered["capabilities"]["tools"].is_object()
        );
    }
    let tools = client.ask("tools/list", json!({})).await.json()["result"].clone();
    let hints = (&tools["resultType"], &tools["ttlMs"], &tools["cacheScope"]);
    assert_eq!(hints, (&json!("complete"), &json!(0), &json!("private")));
    let seen = said(&client.tool("seen", json!({})).await);
    assert!(
        seen["_meta"].is_null(),
        "a legacy server does not know {seen}"
    );
    let missing = client.ask("resources/read", json!({"uri": "x:no"})).await;
    assert_eq!(
        (missing.status, &missing.json()["error"]["code"]),
        (400, &json!(-32602))
    );

    // Subscriptions.
    let wanted =
        json!({"notifications": {"toolsListChanged": true, "resourceSubscriptions": ["x:y"]}});
    let listen = open(client.request(&message("subscriptions/listen", wanted))).await;
    let mut stream = Messages::of(listen.into_body());
    let first = stream.next(PATIENCE).await.unwrap();
    assert_eq!(first["method"], "notifications/subscriptions/acknowledged");
    assert_eq!(
        first["params"]["notifications"],
        json!({"toolsListChanged": true, "resourceSubscriptions": ["x:y"]})
    );
    let changed = client
        .changed(&mut stream, "notifications/tools/list_changed")
        .await;
    for message in [&first, &changed] {
        assert_eq!(message["params"]["_meta"][SUBSCRIPTION], "mine");
    }
    let updated = client
        .changed(&mut stream, "notifications/resources/updated")
        .await;
    assert_eq!(updated["params"]["uri"], "x:y");
    while let Some(message) = stream.next(Duration::from_millis(200)).await {
        let unwanted = [
            "notifications/prompts/list_changed",
            "notifications/resources/list_changed",
        ];
        assert!(
            !unwanted.iter().any(|method| message["method"] == *method)
                && message["params"]["uri"] != "x:z",
            "{message}"
        );
    }

    // A caller that leaves has cancelled.
    let hanging = Hanging::new(&server.sidecar, "left");
    let call = client.request(&message(
        "tools/call",
        json!({"name": "hang", "arguments": hanging.0}),
    ));
    let call = tokio::spawn(open(call));
    hanging.until("begun").await;
    call.abort();
    drop(call.await); // Its head, too, where it came.
    hanging.until("cancelled").await;

    // What does not pass.
    let asked = said(&client.tool("ask", json!({})).await);
    assert_eq!(
        asked["error"]["code"], -32601,
        "the server is told that nobody answers: {asked}"
    );
    let retry = json!({"name": "seen", "inputResponses": {"a": {}}});
    assert_clear(
        &client.ask("tools/call", retry).await,
        "asks for no input in this way",
    );
    let task = client.ask("tasks/get", json!({"taskId": "t"})).await;
    assert!(task.json()["error"]["message"].is_string(), "{task:?}");
}

async fn a_legacy_client_of_a_modern_server(transport: &str) {
    let server = behind("modern", transport).await;
    let client = Legacy::new(&server.sidecar).await;
    let hello = &client.hello["result"];
    assert_eq!(
        (&hello["protocolVersion"], &hello["instructions"]),
        (&json!("2025-11-25"), &json!("be kind"))
    );
    assert_eq!(hello["serverInfo"]["name"], "modern");
    assert!(hello["capabilities"]["tasks"].is_null() && hello["capabilities"]["tools"].is_object());
    the_same_in_both(&client).await;

    let tools = client.ask("tools/list", json!({})).await.json()["result"].clone();
    for absent in ["resultType", "ttlMs", "cacheScope"] {
        assert!(tools[absent].is_null(), "{tools}");
    }
    let seen = said(&client.tool("seen", json!({})).await);
    assert_eq!(
        seen["_meta"]["io.modelcontextprotocol/clientInfo"]["name"],
        "c"
    );
    assert_eq!(
        seen["_meta"]["io.modelcontextprotocol/clientCapabilities"],
        json!({})
    );
    let structured = client.tool("structured", json!({})).await.json();
    assert!(
        structured["result"]["structuredContent"].is_null(),
        "only objects then: {structured}"
    );
    let missing = client
        .ask("resources/read", json!({"uri": "x:no"}))
        .await
        .json();
    assert_eq!(missing["error"]["code"], -32002);
    for (method, params) in [
        ("ping", json!({})),
        ("logging/setLevel", json!({"level": "info"})),
    ] {
        assert_eq!(client.ask(method, params).await.json()["result"], json!({}));
    }
    let seen = said(&client.tool("seen", json!({})).await);
    assert_eq!(seen["_meta"]["io.modelcontextprotocol/logLevel"], "info");

    // Notifications.
    let mut stream = client.stream().await;
    let changed = client
        .changed(&mut stream, "notifications/tools/list_changed")
        .await;
    assert!(
        changed["params"]["_meta"][SUBSCRIPTION].is_null(),
        "{changed}"
    );
    let subscribed = client
        .ask("resources/subscribe", json!({"uri": "x:y"}))
        .await;
    assert_eq!(subscribed.json()["result"], json!({}));
    let updated = client
        .changed(&mut stream, "notifications/resources/updated")
        .await;
    assert_eq!(updated["params"]["uri"], "x:y");
    let (mut parts, _) = client.request(&Value::Null).into_parts();
    parts.method = http::Method::GET;
    let second = send(Request::from_parts(parts, Full::default())).await;
    assert_eq!(second.status, 409, "one stream at a time");

    // A caller that leaves has not cancelled; one that says so has.
    let hanging = Hanging::new(&server.sidecar, "told");
    let mut call = message(
        "tools/call",
        json!({"name": "hang", "arguments": hanging.0}),
    );
    call["id"] = 77.into();
    let call = tokio::spawn(open(client.request(&call)));
    hanging.until("begun").await;
    call.abort();
    drop(call.await);
    assert_eq!(
        said(&client.ask("tools/call", json!({"name": "seen"})).await)["name"],
        "seen"
    );
    assert!(!hanging.has("cancelled"));
    let cancel =
        json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 77}});
    assert_eq!(send(client.request(&cancel)).await.status, 202);
    hanging.until("cancelled").await;

    // What does not pass.
    let asks = client.tool("ask", json!({})).await;
    assert_clear(
        &asks,
        "it asks for input in a way that revisions up to 2025-11-25 do not have",
    );
    let task = client
        .ask("tools/call", json!({"name": "seen", "task": {"ttl": 1}}))
        .await;
    assert_clear(&task, "tasks do not pass between revisions");
}

/// Callers wait for it, and what it speaks is known though it was asked before it
/// was able to answer.
#[tokio::test]
async fn a_server_is_slow_to_start() {
    for era in ["legacy", "modern"] {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("eras.py");
        let slow = folder().join("slow");
        let (script, slow) = (script.to_str().unwrap(), slow.to_str().unwrap());
        let command = ["python3", script, era, "stdio", slow];
        let shim = Shim::start(rustix::process::getuid().as_raw(), &command).await;
        let sidecar = serve(&["--socket", shim.socket.to_str().unwrap()]).await;
        let found = Modern(&sidecar)
            .ask("server/discover", json!({}))
            .await
            .json();
        let name = &found["result"]["_meta"]["io.modelcontextprotocol/serverInfo"]["name"];
        assert_eq!(name, era, "{found}");
        assert_eq!(
            Legacy::new(&sidecar).await.hello["result"]["serverInfo"]["name"],
            era
        );
    }
}

#[tokio::test]
async fn a_modern_client_of_a_legacy_server_behind_http() {
    a_modern_client_of_a_legacy_server("http").await;
}

#[tokio::test]
async fn a_modern_client_of_a_legacy_server_on_stdio() {
    a_modern_client_of_a_legacy_server("stdio").await;
}

#[tokio::test]
async fn a_legacy_client_of_a_modern_server_behind_http() {
    a_legacy_client_of_a_modern_server("http").await;
}

#[tokio::test]
async fn a_legacy_client_of_a_modern_server_on_stdio() {
    a_legacy_client_of_a_modern_server("stdio").await;
}
