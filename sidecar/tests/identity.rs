//! Who calls, as the server is told: assertions over HTTP and stdio, to callers
//! and servers of both eras, and the key by which they are checked.
#![allow(clippy::unwrap_used, missing_docs)]

use sidecar_tests::common;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use common::{
    Got, LIFETIME, OPERATOR, Reply, Script, ScriptBody, Shim, Sidecar, allow, bundle, echo,
    json_answer, script, send, text, until,
};
use crds::SigningAlgorithm;
use http::{Request, Response};
use http_body_util::Full;
use jsonwebtoken::jwk::{Jwk, ThumbprintHash};
use policy::Bundle;
use sealed::{KeySet, Nonce, Opener, Proof, PublicKey, SealError, Sealed};
use serde_json::{Value, json};
use sidecar::{
    auth::{Keys, verify_signature},
    dev,
    pipeline::now,
};

const URL: &str = "http://orders.shop.svc/mcp";
const HEADER: &str = "toolward-identity";
const MEMBER: &str = "toolward.dev/identity";
const POD_TOKEN: &str = "the.token.of-this-pod";

fn no_limits() -> Value {
    json!([{"name": "wide", "tools": ["*"], "requests": 1_000_000, "per": "1s"}])
}

fn everything() -> Value {
    allow(json!(["*"]))
}

/// A sidecar that is to tell its server who calls.
struct Told {
    sidecar: Sidecar,
    keys: PathBuf,
}

impl Told {
    async fn start(target: &[&str], change: impl FnOnce(&mut Bundle)) -> Self {
        let keys = common::folder();
        let token = keys.join("token");
        std::fs::write(&token, format!("{POD_TOKEN}\n")).unwrap();
        let own = [
            "--identity-token",
            token.to_str().unwrap(),
            "--identity-keys",
            keys.to_str().unwrap(),
        ];
        let sidecar = Sidecar::serve(&[target, &own[..]].concat(), |issuer| {
            let mut bundle = bundle(issuer, everything(), no_limits());
            bundle.identity = true;
            change(&mut bundle);
            Some(bundle)
        })
        .await;
        Self { sidecar, keys }
    }

    /// Started, and its key published, as the operator does it.
    async fn published(target: &[&str], change: impl FnOnce(&mut Bundle)) -> (Self, PublicKey) {
        let told = Self::start(target, change).await;
        let key = told.key().await.jwk;
        told.publish(std::slice::from_ref(&key));
        until("ready", async || {
            told.sidecar.admin("/readyz").await.0 == 200
        })
        .await;
        (told, key)
    }

    fn publish(&self, keys: &[PublicKey]) {
        let (new, file) = (self.keys.join("new"), self.keys.join(sealed::KEYS_FILE));
        let keys = keys.to_vec();
        std::fs::write(&new, serde_json::to_vec(&KeySet { keys }).unwrap()).unwrap();
        std::fs::rename(new, file).unwrap();
    }

    /// Asks for the key in the operator's place, once there is a bundle.
    async fn key(&self) -> Proof {
        let question = Question::new();
        let token = question.token(&self.sidecar);
        until("a bundle is in force", async || {
            self.sidecar.admin("/status").await.0 == 200
        })
        .await;
        let reply = question.ask(&self.sidecar, &token).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        question.open(&reply).unwrap()
    }
}

struct Question {
    opener: Opener,
    nonce: Nonce,
}

impl Question {
    fn new() -> Self {
        let (opener, nonce) = (Opener::new().unwrap(), Nonce::new().unwrap());
        Self { opener, nonce }
    }

    /// The operator's token for this question.
    fn token(&self, sidecar: &Sidecar) -> String {
        let audience = sealed::audience("shop", "orders", self.opener.public_key());
        signed(sidecar, OPERATOR, &audience)
    }

    fn headers(&self) -> Vec<(&'static str, String)> {
        vec![
            (
                sealed::PUBLIC_KEY_HEADER,
                self.opener.public_key().point_text(),
            ),
            (sealed::NONCE_HEADER, self.nonce.text()),
        ]
    }

    async fn ask(&self, sidecar: &Sidecar, token: &str) -> Reply {
        ask_with(sidecar, token, &self.headers()).await
    }

    fn open(&self, reply: &Reply) -> Result<Proof, SealError> {
        let answer: Sealed = serde_json::from_slice(&reply.body).unwrap();
        self.opener.open(&answer, &self.nonce)
    }
}

async fn ask_with(sidecar: &Sidecar, token: &str, headers: &[(&str, String)]) -> Reply {
    let mut request = Request::get(format!("http://{}{}", sidecar.admin, sealed::PATH));
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    send(request.body(Full::default()).unwrap()).await
}

fn signed(sidecar: &Sidecar, subject: &str, audience: &str) -> String {
    let token = sidecar
        .issuer
        .token(subject, &[], audience, now(), LIFETIME);
    token.unwrap()
}

/// What an assertion says, once it is checked as a server would.
fn checked(assertion: &str, key: &PublicKey) -> Value {
    let (keys, left_out) = Keys::read(&json!({"keys": [key]}), &[SigningAlgorithm::ES256]);
    assert_eq!(left_out, 0);
    assert_eq!(verify_signature(assertion, &keys), Ok(()));
    let part = |index: usize| -> Value {
        let part = assertion.split('.').nth(index).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    };
    let head = json!({"typ": "toolward-identity+jwt", "alg": "ES256", "kid": key.kid()});
    assert_eq!(part(0), head);
    part(1)
}

/// Who called, and nothing else that differs from call to call.
fn caller(assertion: &str, key: &PublicKey) -> Value {
    let claims = checked(assertion, key);
    assert_eq!((&claims["iss"], &claims["aud"]), (&json!(URL), &json!(URL)));
    claims["sub_id"]["sub"].clone()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Era {
    Legacy,
    Modern,
}

const ERAS: [Era; 2] = [Era::Legacy, Era::Modern];

/// Calls a tool with what a caller could make up.
async fn forge(sidecar: &Sidecar, era: Era, token: &str, tool: &str, params: Value) -> Reply {
    let mut call = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params});
    call["params"]["name"] = tool.into();
    let meta = &mut call["params"]["_meta"];
    meta[MEMBER] = "forged".into();
    meta["example.com/kept"] = json!({MEMBER: 1});
    if era == Era::Modern {
        meta["io.modelcontextprotocol/protocolVersion"] = "2026-07-28".into();
        meta["io.modelcontextprotocol/clientCapabilities"] = json!({});
        let headers = [
            ("mcp-protocol-version", "2026-07-28"),
            ("mcp-method", "tools/call"),
            ("mcp-name", tool),
            ("Toolward-Identity", "forged"),
        ];
        return sidecar.post(token, &headers, call.to_string()).await;
    }
    let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "_meta": {MEMBER: "forged"},
    }});
    let hello = sidecar.post(token, &[], hello.to_string()).await;
    assert_eq!(hello.status, 200, "{hello:?}");
    let mut headers = vec![
        ("mcp-protocol-version", "2025-11-25"),
        ("Toolward-Identity", "forged"),
    ];
    if let Some(session) = hello.headers.get("mcp-session-id") {
        headers.push(("mcp-session-id", session.to_str().unwrap()));
    }
    let ready = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    let ready = sidecar.post(token, &headers, ready.to_string()).await;
    assert_eq!(ready.status, 202, "{ready:?}");
    sidecar.post(token, &headers, call.to_string()).await
}

/// The handshakes and lists of a server that speaks these eras; calls are for the
/// script.
fn server(
    eras: &'static [Era],
    seen: Arc<Mutex<Vec<Got>>>,
) -> impl Fn(&Got) -> Option<Response<ScriptBody>> + Send + Sync + 'static {
    move |got| {
        let message: Value = serde_json::from_slice(&got.body).unwrap_or_default();
        let method = message["method"].as_str();
        if message.is_array() || method == Some("tools/call") {
            return None;
        }
        seen.lock().unwrap().push(got.clone());
        let result = match method {
            Some("server/discover") if eras.contains(&Era::Modern) => {
                json!({"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, "resultType": "complete"})
            }
            Some("initialize") if eras.contains(&Era::Legacy) => {
                json!({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}})
            }
            Some("tools/list") => json!({"tools": common::tools(), "resultType": "complete"}),
            Some("initialize" | "server/discover") => {
                let error = json!({"code": -32601, "message": "not in this era"});
                return Some(json_answer(
                    &json!({"jsonrpc": "2.0", "id": message["id"], "error": error}),
                ));
            }
            _ if got.method == "GET" => {
                return Some(Response::builder().status(405).body(text("")).unwrap());
            }
            _ => return Some(Response::builder().status(202).body(text("")).unwrap()),
        };
        Some(json_answer(
            &json!({"jsonrpc": "2.0", "id": message["id"], "result": result}),
        ))
    }
}

/// All that reached the server in one request, as text.
fn whole(got: &Got) -> String {
    format!("{:?}\n{}", got.headers, String::from_utf8_lossy(&got.body))
}

#[tokio::test]
async fn the_operator_gets_the_key_and_nobody_else() {
    let server = Script::start(echo).await;
    let upstream = format!("http://{}/mcp", server.address);
    let told = Told::start(&["--upstream", &upstream], |_| {}).await;
    let sidecar = &told.sidecar;
    let proof = told.key().await;
    assert_eq!(proof.token, POD_TOKEN);
    let status: Value = serde_json::from_str(&sidecar.admin("/status").await.1).unwrap();
    let own = json!({"kid": proof.jwk.kid(), "published": false});
    assert_eq!(status["identity"], own);
    let jwk: Jwk = serde_json::from_value(json!(proof.jwk)).unwrap();
    let thumbprint = jwk.thumbprint(ThumbprintHash::SHA256).unwrap();
    assert_eq!(thumbprint, proof.jwk.kid(), "RFC 7638");

    let (question, other) = (Question::new(), Question::new());
    let audience =
        |namespace, name| sealed::audience(namespace, name, question.opener.public_key());
    let good = question.token(sidecar);
    for (why, token) in [
        ("none", String::new()),
        (
            "another subject",
            signed(sidecar, "alice", &audience("shop", "orders")),
        ),
        (
            "another server",
            signed(sidecar, OPERATOR, &audience("shop", "invoices")),
        ),
        (
            "another namespace",
            signed(sidecar, OPERATOR, &audience("other", "orders")),
        ),
        (
            "for /status",
            signed(sidecar, OPERATOR, "toolward-admin/shop/orders"),
        ),
        ("of a question with another key", other.token(sidecar)),
        ("a caller's", sidecar.token("alice")),
        ("forged", common::forged(&good)),
    ] {
        let reply = question.ask(sidecar, &token).await;
        assert_eq!(reply.status, 401, "{why}: {reply:?}");
    }
    let [key, nonce] = [0, 1].map(|index| question.headers()[index].clone());
    let bad = |text: &str| vec![(key.0, text.to_owned()), nonce.clone()];
    for (why, headers) in [
        ("no key", vec![nonce.clone()]),
        ("no nonce", vec![key.clone()]),
        ("two keys", vec![key.clone(), key.clone(), nonce.clone()]),
        (
            "two nonces",
            vec![key.clone(), nonce.clone(), nonce.clone()],
        ),
        ("no point", bad("AAAA")),
        ("no base64url", bad("+/+/")),
        (
            "a short nonce",
            vec![key.clone(), (nonce.0, "AAAA".to_owned())],
        ),
    ] {
        let reply = ask_with(sidecar, &good, &headers).await;
        assert_eq!(reply.status, 400, "{why}: {reply:?}");
    }
    // Whoever saw the question can ask it again, and cannot read the answer.
    let seen = question.ask(sidecar, &good).await;
    assert_eq!(seen.status, 200);
    assert!(!String::from_utf8_lossy(&seen.body).contains(POD_TOKEN));
    assert_eq!(other.open(&seen), Err(SealError::NotForUs));
    assert_eq!(question.open(&seen), Ok(proof));

    let silent = Sidecar::serve(&["--upstream", &upstream], |issuer| {
        Some(bundle(issuer, everything(), no_limits()))
    })
    .await
    .ready()
    .await;
    let reply = question.ask(&silent, &question.token(&silent)).await;
    assert_eq!(reply.status, 404, "{reply:?}");
}

#[tokio::test]
async fn it_is_ready_and_serves_once_its_key_is_published() {
    let server = Script::start(echo).await;
    let upstream = format!("http://{}/mcp", server.address);
    let told = Told::start(&["--upstream", &upstream], |_| {}).await;
    let (sidecar, key) = (&told.sidecar, told.key().await.jwk);
    until("it says what it waits for", async || {
        let (status, why) = sidecar.admin("/readyz").await;
        status == 503 && why.contains("not published")
    })
    .await;
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "get_order", "arguments": {"a": 1}}});
    let refused = async || {
        let reply = sidecar.call(&call).await;
        assert_eq!(
            (reply.status, &reply.json()["error"]["data"]["reason"]),
            (503, &json!("IdentityUnavailable"))
        );
        assert!(reply.headers.contains_key("retry-after"));
        assert_eq!(sidecar.audited()["reason"], "IdentityUnavailable");
    };
    refused().await;
    let stranger = Opener::new().unwrap().public_key().clone();
    told.publish(std::slice::from_ref(&stranger));
    refused().await;
    assert_eq!(sidecar.admin("/readyz").await.0, 503);
    assert_eq!(server.got.lock().unwrap().len(), 0);

    told.publish(&[stranger.clone(), key.clone()]);
    until("ready", async || sidecar.admin("/readyz").await.0 == 200).await;
    let status: Value = serde_json::from_str(&sidecar.admin("/status").await.1).unwrap();
    assert_eq!(
        status["identity"],
        json!({"kid": key.kid(), "published": true})
    );
    assert_eq!(sidecar.call(&call).await.status, 200);
    let header = server.last().headers[HEADER].clone();
    assert_eq!(caller(header.to_str().unwrap(), &key), "alice");

    told.publish(&[stranger]);
    until("not ready", async || {
        sidecar.admin("/readyz").await.0 == 503
    })
    .await;
    // Without it being asked for, a key is no matter.
    let silent = bundle(&sidecar.issuer, everything(), no_limits());
    sidecar.rewrite(&silent).await;
    until("ready", async || sidecar.admin("/readyz").await.0 == 200).await;
    assert_eq!(sidecar.call(&call).await.status, 200);
    assert!(!server.last().headers.contains_key(HEADER));
}

#[tokio::test]
async fn an_assertion_says_who_calls() {
    let server = Script::start(echo).await;
    let upstream = format!("http://{}/mcp", server.address);
    let (told, key) = Told::published(&["--upstream", &upstream], |_| {}).await;
    let sidecar = &told.sidecar;
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "get_order", "arguments": {"a": 1}}}).to_string();
    let told_by = async |token: &str| {
        let before = now();
        let reply = sidecar.post(token, &[], call.clone()).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let got = server.last();
        assert!(!whole(&got).contains(token), "the caller's own token");
        assert_eq!(got.body, call, "the body as it came");
        let mut values = got.headers.get_all(HEADER).iter();
        let value = values.next().unwrap().to_str().unwrap().to_owned();
        assert_eq!(values.next(), None);
        (before, checked(&value, &key), now())
    };
    let (before, mut claims, after) = told_by(&sidecar.token("alice")).await;
    let issued = claims["iat"].as_u64().unwrap();
    assert!((before..=after).contains(&issued));
    let id = claims.as_object_mut().unwrap().remove("jti").unwrap();
    assert_eq!(
        URL_SAFE_NO_PAD.decode(id.as_str().unwrap()).unwrap().len(),
        16
    );
    let expected = json!({
        "iss": URL, "aud": URL, "iat": issued, "nbf": issued, "exp": issued + 60,
        "sub_id": {"format": "iss_sub", "iss": dev::ISSUER, "sub": "alice"},
        "act": {"iss": dev::ISSUER, "sub": "toolward-dev"},
        "groups": ["staff"],
    });
    assert_eq!(claims, expected);
    // It ends with the token.
    let expires = now() + 50;
    let token = json!({"iss": dev::ISSUER, "sub": "bob", "aud": URL, "iat": now(), "exp": expires, "groups": ["staff", "a b"]});
    let (_, claims, _) = told_by(&sidecar.issuer.sign(&token).unwrap()).await;
    assert_eq!(claims["exp"], expires);
    assert_eq!(claims["sub_id"]["sub"], "bob");
    assert_eq!(claims["groups"], json!(["staff", "a b"]));
    assert_eq!(claims.get("act"), None, "no agent");
}

#[tokio::test]
async fn over_http_only_the_sidecars_word_reaches_the_server_in_all_eras() {
    const SPEAKS: [&[Era]; 3] = [&[Era::Legacy], &[Era::Modern], &ERAS];
    for eras in SPEAKS {
        for asked in [true, false] {
            let others: Arc<Mutex<Vec<Got>>> = Arc::default();
            let script = Script::start_with(server(eras, Arc::clone(&others)), echo).await;
            let upstream = format!("http://{}/mcp", script.address);
            let change = |bundle: &mut Bundle| bundle.identity = asked;
            let (told, key) = Told::published(&["--upstream", &upstream], change).await;
            let token = told.sidecar.token("alice");
            for era in ERAS {
                let reply = forge(&told.sidecar, era, &token, "get_order", json!({})).await;
                assert_eq!(reply.status, 200, "{eras:?} {era:?}: {reply:?}");
                let got = script.last();
                let seen = whole(&got);
                assert!(!seen.contains("forged"), "{eras:?} {era:?}: {seen}");
                assert!(!seen.contains(&token), "{eras:?} {era:?}: {seen}");
                let message: Value = serde_json::from_slice(&got.body).unwrap();
                let meta = &message["params"]["_meta"];
                assert_eq!(meta["example.com/kept"], json!({MEMBER: 1}), "{seen}");
                assert_eq!(meta.get(MEMBER), None, "{seen}");
                let told: Vec<_> = got.headers.get_all(HEADER).iter().collect();
                match asked {
                    true => assert_eq!(caller(told[0].to_str().unwrap(), &key), "alice"),
                    false => assert!(told.is_empty(), "{told:?}"),
                }
                assert!(told.len() < 2);
            }
            for got in others.lock().unwrap().iter() {
                let seen = whole(got);
                assert!(!seen.contains("forged"), "{seen}");
                // What the sidecar asks by itself is nobody's. It names no client; a
                // subscription may be in a caller's name.
                let is_own = !got.headers.contains_key("user-agent")
                    && !seen.contains("subscriptions/listen");
                assert!(!(is_own && got.headers.contains_key(HEADER)), "{seen}");
            }
        }
    }
}

#[tokio::test]
async fn over_stdio_only_the_sidecars_word_reaches_the_server_in_all_eras() {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("eras.py");
    for speaks in ["legacy", "modern"] {
        for asked in [true, false] {
            let command = ["python3", program.to_str().unwrap(), speaks, "stdio"];
            let shim = Shim::start(rustix::process::getuid().as_raw(), &command).await;
            let target = ["--socket", shim.socket.to_str().unwrap()];
            let change = |bundle: &mut Bundle| bundle.identity = asked;
            let (told, key) = Told::published(&target, change).await;
            let token = told.sidecar.token("alice");
            for era in ERAS {
                let params = json!({"arguments": {"a": 1.0}, "_meta": {"progressToken": "mine"}});
                let reply = forge(&told.sidecar, era, &token, "seen", params).await;
                assert_eq!(reply.status, 200, "{speaks} {era:?}: {reply:?}");
                let answer = reply.json();
                let seen = answer["result"]["content"][0]["text"].as_str().unwrap();
                let params: Value = serde_json::from_str(seen).unwrap();
                assert!(!seen.contains("forged") && !seen.contains(&token), "{seen}");
                assert_eq!(params["arguments"], json!({"a": 1.0}));
                let meta = &params["_meta"];
                assert_eq!(meta["example.com/kept"], json!({MEMBER: 1}), "{seen}");
                match asked {
                    true => assert_eq!(caller(meta[MEMBER].as_str().unwrap(), &key), "alice"),
                    false => assert_eq!(meta.get(MEMBER), None, "{seen}"),
                }
            }
        }
    }
}

/// With what the sidecar adds, there are more members than it reads.
#[tokio::test]
async fn a_progress_token_is_the_sidecars_own_whatever_stands_beside_it() {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("eras.py");
    let command = ["python3", program.to_str().unwrap(), "modern", "stdio"];
    let shim = Shim::start(rustix::process::getuid().as_raw(), &command).await;
    let target = ["--socket", shim.socket.to_str().unwrap()];
    let (told, key) = Told::published(&target, |_| {}).await;
    let mut meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "progressToken": "mine",
    });
    (0..253).for_each(|index| meta[format!("a{index}")] = index.into());
    assert_eq!(meta.as_object().unwrap().len(), 256);
    let params = json!({"name": "seen", "arguments": {}, "_meta": meta});
    let call = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params});
    let headers = [
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "tools/call"),
        ("mcp-name", "seen"),
    ];
    let token = told.sidecar.token("alice");
    let reply = told.sidecar.post(&token, &headers, call.to_string()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let answer = reply.json();
    let seen = answer["result"]["content"][0]["text"].as_str().unwrap();
    let params: Value = serde_json::from_str(seen).unwrap();
    let meta = &params["_meta"];
    assert_eq!(caller(meta[MEMBER].as_str().unwrap(), &key), "alice");
    assert!(meta["progressToken"].is_number(), "{seen}");
}

fn batch() -> Value {
    let call = |id: u8, tool: &str, meta: Value| {
        let params = json!({"name": tool, "arguments": {}, "_meta": meta});
        json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params})
    };
    json!([
        call(1, "params", json!({})),
        call(2, "params", json!({MEMBER: {"deep": ["forged"]}, "example.com/kept": 1})),
        {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1, "progress": 1, "_meta": {MEMBER: "forged"}}},
    ])
}

#[tokio::test]
async fn each_message_of_a_batch_is_looked_at() {
    let each = |got: &Got| {
        let Ok(Value::Array(batch)) = serde_json::from_slice(&got.body) else {
            return echo(got);
        };
        let requests = batch.iter().filter(|message| message.get("id").is_some());
        let answers = requests.map(
            |message| json!({"jsonrpc": "2.0", "id": message["id"], "result": {"content": []}}),
        );
        json_answer(&answers.collect())
    };
    let legacy = server(&[Era::Legacy], Arc::default());
    let script_server = Script::start_with(legacy, each).await;
    let upstream = format!("http://{}/mcp", script_server.address);
    let (told, key) = Told::published(&["--upstream", &upstream], |_| {}).await;
    let token = told.sidecar.token("alice");
    let version = ("mcp-protocol-version", "2025-03-26");
    let reply = told
        .sidecar
        .post(&token, &[version], batch().to_string())
        .await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let got = script_server.last();
    assert_eq!(caller(got.headers[HEADER].to_str().unwrap(), &key), "alice");
    let mut expected = batch();
    for message in expected.as_array_mut().unwrap() {
        let meta = message["params"]["_meta"].as_object_mut().unwrap();
        meta.remove(MEMBER);
    }
    assert_eq!(
        serde_json::from_slice::<Value>(&got.body).unwrap(),
        expected
    );

    let command = ["python3", &script()];
    let shim = Shim::start(rustix::process::getuid().as_raw(), &command).await;
    let target = ["--socket", shim.socket.to_str().unwrap()];
    let (told, key) = Told::published(&target, |_| {}).await;
    let token = told.sidecar.token("bob");
    let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-03-26", "capabilities": {}}});
    let hello = told.sidecar.post(&token, &[], hello.to_string()).await;
    let session = hello.headers["mcp-session-id"].to_str().unwrap();
    let headers = [version, ("mcp-session-id", session)];
    let reply = told
        .sidecar
        .post(&token, &headers, batch().to_string())
        .await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let text = String::from_utf8(reply.body.to_vec()).unwrap();
    assert!(!text.contains("forged"), "{text}");
    let answers: Vec<Value> = match reply.headers["content-type"] == "text/event-stream" {
        true => text
            .lines()
            .filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
            .collect(),
        false => serde_json::from_str(&text).unwrap(),
    };
    assert_eq!(answers.len(), 2, "{text}");
    for answer in &answers {
        let said = answer["result"]["content"][0]["text"].as_str().unwrap();
        let params: Value = serde_json::from_str(said).unwrap();
        let meta = &params["_meta"];
        assert_eq!(caller(meta[MEMBER].as_str().unwrap(), &key), "bob");
        let kept = (answer["id"] == 2).then(|| json!(1));
        assert_eq!(meta.get("example.com/kept"), kept.as_ref());
    }
}

#[tokio::test]
async fn of_nobody_nothing_is_said() {
    let server = Script::start(echo).await;
    let upstream = format!("http://{}/mcp", server.address);
    let everyone =
        json!([{"name": "all", "effect": "Allow", "from": [{"everyone": true}], "tools": ["*"]}]);
    let change = |bundle: &mut Bundle| {
        let rules = everyone.clone();
        bundle.rules = common::bundle(&dev::DevIssuer::new().unwrap(), rules, no_limits()).rules;
        bundle.authentication.anonymous = true;
        bundle.authentication.issuers = Vec::new();
    };
    let (told, _) = Told::published(&["--upstream", &upstream], change).await;
    // A token that nobody asked for says nothing either.
    let token = told.sidecar.token("alice");
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "get_order", "_meta": {MEMBER: "forged"}}});
    let headers = [("Toolward-Identity", "forged")];
    let reply = told.sidecar.post(&token, &headers, call.to_string()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let got = server.last();
    assert!(!got.headers.contains_key(HEADER));
    assert!(!whole(&got).contains("forged"));
}

/// `run` in front of a server, with what this manifest asks for.
fn laptop(spec: &str, upstream: &str, more: &[&str]) -> (Command, PathBuf) {
    let folder = common::folder();
    let config = folder.join("config.yaml");
    let text = format!(
        "apiVersion: toolward.dev/v1alpha1
kind: McpServer
metadata: {{name: orders, namespace: shop}}
spec: {{deployment: {{image: i}}, transport: {{type: StreamableHttp}}{spec}}}
---
apiVersion: toolward.dev/v1alpha1
kind: McpToolPolicy
metadata: {{name: p, namespace: shop}}
spec:
  targetRefs: [{{name: orders}}]
  rules: [{{name: staff, effect: Allow, from: [{{groups: [staff]}}], tools: ['*']}}]
"
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(common::binary());
    command.args(["run", "--dev-token", "alice:staff", "--upstream", upstream]);
    command.arg("--config").arg(&config).args(more);
    (command, folder)
}

#[tokio::test]
async fn on_a_laptop_the_public_key_goes_into_a_folder() {
    let server = Script::start(echo).await;
    let upstream = format!("http://{}/mcp", server.address);
    let keys = common::folder();
    let more = ["--identity-keys", keys.to_str().unwrap()];
    for (spec, more, says) in [
        (", identity: {}", &[][..], "--identity-keys FOLDER"),
        ("", &more[..], "spec.identity"),
    ] {
        let (mut command, _) = laptop(spec, &upstream, more);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(says), "{said}");
    }
    let (command, folder) = laptop(", identity: {}", &upstream, &more);
    let issuer = dev::DevIssuer::new().unwrap();
    let sidecar = Sidecar::start(command, folder, issuer).ready().await;
    let mut token = None;
    until("the dev token", async || {
        let log = sidecar.log.lock().unwrap();
        token = log.iter().find(|line| line.starts_with("eyJ")).cloned();
        token.is_some()
    })
    .await;
    let call =
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "get_order"}});
    let reply = sidecar.post(&token.unwrap(), &[], call.to_string()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let set = std::fs::read(keys.join(sealed::KEYS_FILE)).unwrap();
    let set: KeySet = serde_json::from_slice(&set).unwrap();
    let header = server.last().headers[HEADER].clone();
    let claims = checked(header.to_str().unwrap(), &set.keys[0]);
    let url = format!("http://{}/mcp", sidecar.mcp);
    assert_eq!((&claims["iss"], &claims["aud"]), (&json!(url), &json!(url)));
    let alice = json!({"format": "iss_sub", "iss": dev::ISSUER, "sub": "alice"});
    assert_eq!(claims["sub_id"], alice);
}
