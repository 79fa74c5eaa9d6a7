//! The admission webhook: what it answers to API servers, over TLS too while its
//! certificate changes.
#![allow(clippy::unwrap_used, missing_docs)]

use operator_tests::{fake, hooks};

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use fake::Fake;
use hooks::Hooks;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, client::Body};
use operator::{
    certificates::{pair::LIFETIME, plan::Timing},
    events::Events,
    inject::has_sidecar,
    metrics::Metrics,
    webhook::{Options, Webhook},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, RwLock},
};
use tokio_rustls::TlsConnector;

const PODS: &str = "/mutate/pods";
const SERVERS: &str = "/validate/servers";
const POLICIES: &str = "/validate/policies";
/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn webhook(fake: &Fake) -> Webhook {
    Webhook::new(
        fake.client(),
        fake.world(),
        Events::new(fake.client()),
        Metrics::default(),
        Options::default(),
    )
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "toolward.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "generation": 1},
        "spec": spec,
    })
}

fn server(name: &str) -> Value {
    let spec = json!({"injected": {}, "transport": {"type": "StreamableHttp"}});
    object("McpServer", name, spec)
}

fn tool_policy(name: &str, target: &str, from: Value) -> Value {
    let rule = json!({"name": "r", "effect": "Allow", "from": [from], "tools": ["get_*"]});
    let spec = json!({"targetRefs": [{"name": target}], "rules": [rule]});
    object("McpToolPolicy", name, spec)
}

fn everyone() -> Value {
    json!({"everyone": true})
}

fn pod(annotations: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"generateName": "web-", "namespace": "shop", "annotations": annotations},
        "spec": {"containers": [{"name": "app", "image": "app:1", "future": {"x": 1}}]},
    })
}

fn asks_for(server: &str) -> Value {
    pod(json!({"toolward.dev/server": server}))
}

fn review(path: &str, object: Value, old: Value) -> Value {
    let (group, version, resource) = match path {
        PODS => ("", "v1", "pods"),
        SERVERS => ("toolward.dev", "v1alpha1", "mcpservers"),
        _ => ("toolward.dev", "v1alpha1", "mcptoolpolicies"),
    };
    let kind = if object.is_null() { &old } else { &object };
    let kind = kind["kind"].clone();
    let operation = if old.is_null() { "CREATE" } else { "UPDATE" };
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u1", "operation": operation, "namespace": "shop",
            "kind": {"group": group, "version": version, "kind": kind},
            "resource": {"group": group, "version": version, "resource": resource},
            "userInfo": {"username": "alice"}, "dryRun": false,
            "object": object, "oldObject": old,
        },
    })
}

fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
    request.body(Full::new(body.into())).unwrap()
}

async fn ask(webhook: &Webhook, path: &str, review: Value) -> Value {
    let response = webhook.answer(post(path, review.to_string())).await;
    assert_eq!(response.status(), StatusCode::OK);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let mut answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(answer["response"]["uid"], "u1");
    answer["response"].take()
}

async fn created(webhook: &Webhook, path: &str, object: Value) -> Value {
    ask(webhook, path, review(path, object, Value::Null)).await
}

async fn updated(webhook: &Webhook, path: &str, old: &Value, new: &Value) -> Value {
    ask(webhook, path, review(path, new.clone(), old.clone())).await
}

fn allowed(answer: &Value) {
    assert_eq!(answer["allowed"], true, "{answer}");
}

fn refused(answer: &Value, parts: &[&str]) {
    assert_eq!(answer["allowed"], false, "{answer}");
    let message = answer["status"]["message"].as_str().unwrap();
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

fn warned(answer: &Value, parts: &[&str]) {
    allowed(answer);
    let warnings = answer["warnings"].to_string();
    for part in parts {
        assert!(warnings.contains(part), "{warnings} do not say {part:?}");
    }
}

/// The object as the API server would have it.
fn patched(answer: &Value, object: &Value) -> Value {
    assert_eq!(answer["patchType"], "JSONPatch", "{answer}");
    let patch: Vec<u8> = serde_json::from_value(answer["patch"].clone()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut object = object.clone();
    json_patch::patch(&mut object, &patch).unwrap();
    object
}

async fn told(fake: &Fake) {
    let events = async {
        while !fake.writes().iter().any(|write| write == "POST events") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, events).await.unwrap();
}

#[tokio::test]
async fn a_pod_that_asks_for_it_gets_the_sidecar_and_an_event_tells() {
    let fake = Fake::new();
    fake.put("mcpservers", server("orders"));
    fake.sync();
    let webhook = webhook(&fake);
    let before = asks_for("orders");
    let mut dry = review(PODS, before.clone(), Value::Null);
    dry["request"]["dryRun"] = true.into();
    let answer = ask(&webhook, PODS, dry).await;
    let after = patched(&answer, &before);
    // What this version does not know is where it was.
    let mut containers = after["spec"]["containers"].as_array().unwrap().iter();
    let app = containers.find(|container| container["name"] == "app");
    assert_eq!(app.unwrap()["future"], json!({"x": 1}));
    let typed: Pod = serde_json::from_value(after.clone()).unwrap();
    assert!(has_sidecar(&typed));

    let answer = created(&webhook, PODS, before.clone()).await;
    assert_eq!(patched(&answer, &before), after);
    // The dry run told nothing: one pod, one Event.
    told(&fake).await;
    // Called again, there is nothing to do, and so nothing to tell.
    let again = created(&webhook, PODS, after).await;
    allowed(&again);
    assert!(again["patch"].is_null(), "{again}");
    tokio::task::yield_now().await;
    assert_eq!(fake.writes(), [""; 0]);
}

#[tokio::test]
async fn other_pods_are_let_through() {
    let fake = Fake::new();
    let webhook = webhook(&fake);
    let annotated = asks_for("orders");
    let mut ended = review(PODS, Value::Null, annotated.clone());
    ended["request"]["operation"] = "DELETE".into();
    for review in [
        review(PODS, pod(json!({"other": "x"})), Value::Null),
        review(PODS, pod(Value::Null), Value::Null),
        review(PODS, annotated.clone(), annotated),
        ended,
    ] {
        let answer = ask(&webhook, PODS, review).await;
        allowed(&answer);
        assert!(answer["patch"].is_null(), "{answer}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_known_yet_is_looked_up() {
    let fake = Fake::new();
    fake.sync();
    let webhook = webhook(&fake);
    let missing = created(&webhook, PODS, asks_for("orders")).await;
    let at = "metadata.annotations[toolward.dev/server]";
    refused(
        &missing,
        &[at, "no McpServer orders in namespace shop", "spec.injected"],
    );
    // No watch has told of it.
    fake.put("mcpservers", server("orders"));
    let answer = created(&webhook, PODS, asks_for("orders")).await;
    patched(&answer, &asks_for("orders"));
    fake.refuse(Method::GET, "mcpservers", 500, "the database is gone");
    let answer = created(&webhook, PODS, asks_for("orders")).await;
    refused(&answer, &[at, "the database is gone", "try again"]);
}

#[tokio::test]
async fn a_server_that_takes_no_pods_is_refused_with_what_to_write() {
    let fake = Fake::new();
    let run = json!({"image": "registry.example/orders:1"});
    let spec = json!({"deployment": run, "transport": {"type": "StreamableHttp"}});
    fake.put("mcpservers", object("McpServer", "own", spec));
    let mut gone = server("gone");
    gone["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    fake.put("mcpservers", gone);
    fake.put(
        "mcpservers",
        object("McpServer", "odd", json!({"injected": {}})),
    );
    let mut taken = server("taken");
    taken["status"] = json!({"conditions": [{
        "type": "Accepted", "status": "False", "reason": "NameTaken",
        "message": "ConfigMap taken-toolward exists and is not Toolward's",
    }]});
    fake.put("mcpservers", taken);
    fake.sync();
    let webhook = webhook(&fake);
    for (name, says) in [
        ("own", "spec.injected: {}"),
        ("gone", "is being deleted"),
        ("odd", "spec.transport"),
        ("taken", "ConfigMap taken-toolward exists"),
    ] {
        let answer = created(&webhook, PODS, asks_for(name)).await;
        refused(&answer, &[name, says]);
    }
    // Changed a moment ago, which the watch did not tell yet.
    for name in ["own", "taken"] {
        fake.put("mcpservers", server(name));
        allowed(&created(&webhook, PODS, asks_for(name)).await);
    }
}

#[tokio::test]
async fn requests_that_are_no_questions_are_refused_by_status() {
    let fake = Fake::new();
    let webhook = webhook(&fake);
    let good = review(PODS, asks_for("orders"), Value::Null).to_string();
    let plain = Request::post(PODS).header(header::CONTENT_TYPE, "text/plain");
    let plain = plain.body(Full::new(Bytes::from(good.clone()))).unwrap();
    let get = Request::get(PODS).body(Full::new(Bytes::new())).unwrap();
    let large = " ".repeat(8 * 1024 * 1024 + 1);
    for (request, code) in [
        (post("/", good.clone()), 404),
        (post("/mutate/pods/", good.clone()), 404),
        (get, 405),
        (plain, 415),
        (post(PODS, large), 413),
        (post(PODS, ""), 400),
        (post(PODS, "{}"), 400),
        (post(SERVERS, good.clone()), 400),
        (post(POLICIES, good), 400),
    ] {
        let (method, path) = (request.method().clone(), request.uri().clone());
        let response = webhook.answer(request).await;
        assert_eq!(response.status(), code, "{method} {path}");
        let why = response.into_body().collect().await.unwrap().to_bytes();
        assert!(!why.is_empty(), "{method} {path} is not told why");
    }
}

#[tokio::test]
async fn before_all_is_known_objects_are_refused_and_pods_are_not() {
    let fake = Fake::new();
    let webhook = webhook(&fake);
    fake.put("mcpservers", server("orders"));
    let policy = tool_policy("p", "orders", everyone());
    for (path, object) in [(SERVERS, server("orders")), (POLICIES, policy)] {
        let answer = created(&webhook, path, object).await;
        refused(&answer, &["is starting", "try again"]);
        assert_eq!(answer["status"]["code"], 503);
    }
    patched(
        &created(&webhook, PODS, asks_for("orders")).await,
        &asks_for("orders"),
    );
}

fn anonymous(name: &str) -> Value {
    let mut server = server(name);
    server["spec"]["authentication"] = json!({"mode": "Anonymous"});
    server
}

#[tokio::test]
async fn a_server_that_would_deny_everything_is_refused() {
    let fake = Fake::new();
    let stranger = json!({"issuer": "acme", "users": ["alice"]});
    fake.put("mcptoolpolicies", tool_policy("p", "early", stranger));
    fake.sync();
    let webhook = webhook(&fake);
    allowed(&created(&webhook, SERVERS, server("orders")).await);
    let answer = created(&webhook, SERVERS, anonymous("orders")).await;
    let parts = [
        "spec.authentication.mode",
        "allowAnonymous",
        "AnonymousNotAllowed",
    ];
    refused(&answer, &parts);
    assert_eq!(answer["status"]["code"], 422);
    // Nor one under whose policies nobody could do anything.
    let answer = created(&webhook, SERVERS, server("early")).await;
    refused(
        &answer,
        &["McpToolPolicy p", "spec.rules[0].from[0]", "PolicyInvalid"],
    );
    let mut odd = server("orders");
    odd["spec"]["transport"] = json!({"type": "Smoke"});
    refused(
        &created(&webhook, SERVERS, odd).await,
        &["spec.transport.type"],
    );
}

#[tokio::test]
async fn an_edit_of_a_server_is_refused_for_what_it_breaks_only() {
    let fake = Fake::new();
    fake.sync();
    let webhook = webhook(&fake);
    let (good, bad) = (server("orders"), anonymous("orders"));
    refused(
        &updated(&webhook, SERVERS, &good, &bad).await,
        &["spec.authentication.mode"],
    );
    allowed(&updated(&webhook, SERVERS, &bad, &good).await);
    // What is broken already can be changed, labelled and removed.
    let mut other = bad.clone();
    other["spec"]["transport"]["http"] = json!({"port": 8081});
    warned(
        &updated(&webhook, SERVERS, &bad, &other).await,
        &["spec.authentication.mode"],
    );
    let mut labelled = bad.clone();
    labelled["metadata"]["labels"] = json!({"a": "b"});
    labelled["status"] = json!({"toolCount": 1});
    allowed(&updated(&webhook, SERVERS, &bad, &labelled).await);
    let mut leaving = bad.clone();
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    allowed(&updated(&webhook, SERVERS, &good, &leaving).await);
    // From one that could not be read to one that can.
    let mut unread = good.clone();
    unread["spec"]["transport"] = json!({"type": "Smoke"});
    warned(
        &updated(&webhook, SERVERS, &unread, &bad).await,
        &["spec.authentication.mode"],
    );
}

#[tokio::test]
async fn a_policy_is_compiled_with_each_of_its_servers() {
    let fake = Fake::new();
    fake.put("mcpservers", server("orders"));
    fake.sync();
    let webhook = webhook(&fake);
    let good = tool_policy("p", "orders", everyone());
    let stranger = json!({"issuer": "acme", "users": ["alice"]});
    let bad = tool_policy("p", "orders", stranger.clone());
    let parts = [
        "spec.rules[0].from[0]",
        "issuer acme",
        "McpServer orders",
        "PolicyInvalid",
    ];
    allowed(&created(&webhook, POLICIES, good.clone()).await);
    refused(&created(&webhook, POLICIES, bad.clone()).await, &parts);
    refused(&updated(&webhook, POLICIES, &good, &bad).await, &parts);
    allowed(&updated(&webhook, POLICIES, &bad, &good).await);
    // One of two faults is mended.
    let mut worse = bad.clone();
    let second = json!({
        "name": "s", "effect": "Deny", "from": [{"issuer": "other", "users": ["eve"]}], "tools": ["x"],
    });
    worse["spec"]["rules"]
        .as_array_mut()
        .unwrap()
        .insert(0, second);
    refused(
        &updated(&webhook, POLICIES, &bad, &worse).await,
        &["issuer other"],
    );
    warned(
        &updated(&webhook, POLICIES, &worse, &bad).await,
        &["issuer acme"],
    );
    // Of a server that is not there, the status tells.
    allowed(
        &created(
            &webhook,
            POLICIES,
            tool_policy("q", "late", stranger.clone()),
        )
        .await,
    );
    // One that came with it, and no watch has told of, is found.
    fake.put("mcpservers", server("late"));
    let answer = created(&webhook, POLICIES, tool_policy("q", "late", stranger)).await;
    refused(&answer, &["McpServer late"]);
    // So is what changed a moment ago: nobody has a name on an Anonymous server.
    let named = tool_policy("n", "orders", json!({"users": ["alice"]}));
    fake.put("mcpservers", anonymous("orders"));
    fake.sync();
    refused(
        &created(&webhook, POLICIES, named.clone()).await,
        &["McpServer orders", "PolicyInvalid"],
    );
    fake.put("mcpservers", server("orders"));
    allowed(&created(&webhook, POLICIES, named).await);
    let mut odd = good.clone();
    odd["spec"]["rules"][0]["tools"] = json!([]);
    refused(
        &created(&webhook, POLICIES, odd).await,
        &["spec.rules[0].tools"],
    );
}

#[tokio::test]
async fn what_is_legal_and_likely_a_mistake_is_a_warning() {
    let fake = Fake::new();
    fake.put("mcpservers", server("orders"));
    fake.sync();
    let webhook = webhook(&fake);
    let plain = created(&webhook, SERVERS, server("orders")).await;
    allowed(&plain);
    assert!(plain["warnings"].is_null(), "{plain}");
    let mut long = server("orders");
    long["spec"]["authentication"] = json!({"maxTokenLifetime": "24h"});
    let path = "spec.authentication.maxTokenLifetime";
    warned(&created(&webhook, SERVERS, long).await, &[path]);
    let nobody = tool_policy("p", "orders", json!({"users": ["alice"]}));
    let path = "spec.rules[0].from[0].users[0]";
    warned(&created(&webhook, POLICIES, nobody).await, &[path]);
}

#[tokio::test]
async fn what_others_broke_is_not_held_against_a_policy() {
    let fake = Fake::new();
    fake.put("mcpservers", anonymous("open"));
    let named = json!({"users": ["alice"]});
    fake.put("mcptoolpolicies", tool_policy("named", "open", named));
    fake.sync();
    let webhook = webhook(&fake);
    let answer = created(&webhook, POLICIES, tool_policy("p", "open", everyone())).await;
    warned(
        &answer,
        &[
            "every call is denied",
            "McpToolPolicy named",
            "AnonymousNotAllowed",
        ],
    );
}

/// One API server for what the webhook knows, one for its certificates.
fn both(fake: &Fake, hooks: &Hooks) -> Client {
    let (objects, hooks) = (fake.client(), hooks.client(None));
    let service = tower::service_fn(move |request: Request<Body>| {
        let path = request.uri().path();
        let is_hook = path.contains("/secrets/") || path.contains("webhookconfigurations");
        let client = if is_hook {
            hooks.clone()
        } else {
            objects.clone()
        };
        async move { client.send(request).await }
    });
    Client::new(service, "default")
}

/// Asks as an API server does: by a connection of its own, whose certificate has to
/// be by a CA of the caBundle.
async fn admit(address: SocketAddr, bundle: &[String], review: &Value) -> anyhow::Result<Value> {
    let mut roots = RootCertStore::empty();
    for ca in bundle {
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes())?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(hooks::names().host())?;
    let stream = TcpStream::connect(address).await?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(post(PODS, review.to_string())).await?;
    let code = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    anyhow::ensure!(
        code == StatusCode::OK,
        "{code}: {}",
        String::from_utf8_lossy(&body)
    );
    let answer: Value = serde_json::from_slice(&body)?;
    anyhow::ensure!(answer["response"]["patch"].is_array(), "{answer}");
    Ok(answer)
}

/// What the clients did.
#[derive(Default)]
struct Load {
    done: AtomicBool,
    answers: AtomicUsize,
    took: Mutex<Vec<Duration>>,
    failures: Mutex<Vec<String>>,
    /// Held by each client from when it reads the caBundle to its answer.
    under_way: RwLock<()>,
}

impl Load {
    async fn client(&self, address: SocketAddr, hooks: &Hooks) {
        let review = review(PODS, asks_for("orders"), Value::Null);
        while !self.done.load(Ordering::SeqCst) {
            let _under_way = self.under_way.read().await;
            let bundle = hooks.bundles().swap_remove(0);
            let begun = Instant::now();
            match admit(address, &bundle, &review).await {
                Ok(_) => self.took.lock().await.push(begun.elapsed()),
                Err(error) => self.failures.lock().await.push(format!("{error:#}")),
            }
            self.answers.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Waits until some more clients have their answers.
    async fn goes_on(&self) {
        let before = self.answers.load(Ordering::SeqCst);
        let more = async {
            while self.answers.load(Ordering::SeqCst) < before + 3 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, more).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn no_question_is_lost_while_certificates_change() {
    const ROTATIONS: usize = 100;
    let (fake, hooks) = (Fake::new(), Hooks::new());
    fake.put("mcpservers", server("orders"));
    fake.sync();
    let events = Events::new(fake.client());
    let (client, metrics) = (both(&fake, &hooks), Metrics::default());
    let webhook = Webhook::new(client, fake.world(), events, metrics, Options::default());
    let certificates = webhook.certificates().clone();
    let timing = Timing::default();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let (mut now, mut at) = (now.unwrap().as_secs(), Instant::now());
    while certificates.ready(at).is_err() {
        certificates.round(now, || at).await.unwrap();
        at += timing.settle;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(Arc::new(webhook).listen(listener, std::future::pending()));
    let load = Arc::new(Load::default());
    let clients = (0..3).map(|_| {
        let (load, hooks) = (load.clone(), hooks.clone());
        tokio::spawn(async move { load.client(address, &hooks).await })
    });
    let clients: Vec<_> = clients.collect();
    for _ in 0..ROTATIONS {
        let before = certificates.in_use().unwrap().id;
        now += LIFETIME;
        while certificates.in_use().unwrap().id == before {
            certificates.round(now, || at).await.unwrap();
            // What the wait is for: who knows the caBundle of before is done.
            drop(load.under_way.write().await);
            at += timing.settle;
        }
        load.goes_on().await;
        at += timing.leave;
        certificates.round(now, || at).await.unwrap();
        assert_eq!(hooks.bundles()[0].len(), 1);
    }
    load.goes_on().await;
    load.done.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    server.abort();
    let failures = load.failures.lock().await;
    assert!(
        failures.is_empty(),
        "{} failed: {:?}",
        failures.len(),
        failures.first()
    );
    let mut took = load.took.lock().await;
    took.sort();
    let p99 = took[took.len() * 99 / 100];
    println!(
        "{} questions over {ROTATIONS} rotations of certificate and CA, each by a TLS connection of its own: 0 failed, p50 {:?}, p99 {p99:?}",
        took.len(),
        took[took.len() / 2],
    );
}
