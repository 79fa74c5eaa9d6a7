//! `toolward-sidecar serve`, the real binary, in front of a scripted server.
#![allow(clippy::unwrap_used, missing_docs)]

use sidecar_tests::common;

use std::{process::Command, time::Duration};

use bytes::Bytes;
use common::{
    PATIENCE, Script, Sidecar, allow, binary, bundle, echo, json_answer, open, send, text, until,
};
use futures::StreamExt;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::{Value, json};

fn call(tool: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": tool, "arguments": {"a": 1}}})
}

async fn in_front_of(script: &Script, rules: Value, limits: Value) -> Sidecar {
    let upstream = format!("http://{}/mcp", script.address);
    Sidecar::serve(&["--upstream", &upstream], |issuer| {
        Some(bundle(issuer, rules, limits))
    })
    .await
    .ready()
    .await
}

fn no_limits() -> Value {
    json!([{"name": "wide", "tools": ["*"], "requests": 1_000_000, "per": "1s"}])
}

#[tokio::test]
async fn a_call_passes_unchanged_and_nothing_else_does() {
    let script = Script::start(echo).await;
    let sidecar = in_front_of(&script, allow(json!(["get_*"])), no_limits()).await;
    let odd = "{ \"jsonrpc\":\"2.0\", \"id\": \"\\u0041\",\n\"method\":\"tools/call\",\"params\":{\"arguments\":{\"n\":1.50,\"big\":9007199254740991},\"name\":\"get_order\"}}";
    let forged = [
        ("toolward-identity", "x"),
        ("x-forwarded-user", "root"),
        ("cookie", "a=b"),
        ("accept-encoding", "gzip"),
        ("traceparent", "00-1-1-01"),
    ];
    let reply = sidecar
        .post(&sidecar.token("alice"), &forged, odd.into())
        .await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let got = script.last();
    assert_eq!(
        got.body, odd,
        "the bytes that were decided on are not those that were forwarded"
    );
    for name in [
        "authorization",
        "toolward-identity",
        "x-forwarded-user",
        "cookie",
        "accept-encoding",
    ] {
        assert!(!got.headers.contains_key(name), "{name} passed");
    }
    assert_eq!(got.headers["traceparent"], "00-1-1-01");
    assert_eq!(got.headers["host"], script.address.to_string());

    let before = script.got.lock().unwrap().len();
    let reply = sidecar.call(&call("delete_order")).await;
    let absent = sidecar.call(&call("no_such_tool")).await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.json()["error"],
        json!({"code": -32602, "message": "Unknown tool: delete_order"})
    );
    // What exists and may not be used cannot be told from what does not exist.
    let same =
        |reply: &common::Reply, name: &str| String::from_utf8_lossy(&reply.body).replace(name, "X");
    assert_eq!(same(&reply, "delete_order"), same(&absent, "no_such_tool"));
    assert_eq!(
        script.got.lock().unwrap().len(),
        before,
        "a refused call reached the server"
    );

    let records: Vec<_> = (0..3).map(|_| sidecar.audited()).collect();
    assert_eq!(records[0]["decision"], "Allow");
    assert_eq!(
        (
            &records[0]["tool"],
            &records[0]["user"],
            &records[0]["issuer"]
        ),
        (&json!("get_order"), &json!("alice"), &json!("dev"))
    );
    assert_eq!(
        (&records[0]["policy"], &records[0]["rule"]),
        (&json!("p"), &json!("staff"))
    );
    assert_eq!(
        (&records[1]["decision"], &records[1]["reason"]),
        (&json!("Deny"), &json!("NoRuleMatched"))
    );
}

#[tokio::test]
async fn a_list_shows_what_may_be_called() {
    let script = Script::start(echo).await;
    let sidecar = in_front_of(&script, allow(json!(["get_*"])), no_limits()).await;
    let reply = sidecar
        .call(&json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}))
        .await;
    let result = &reply.json()["result"];
    assert_eq!(result["tools"], json!([common::tools()[0]]));
    assert_eq!(result["nextCursor"], "2");
    let stranger = sidecar
        .issuer
        .token(
            "eve",
            &[],
            "http://orders.shop.svc/mcp",
            sidecar::pipeline::now(),
            common::LIFETIME,
        )
        .unwrap();
    let reply = sidecar
        .post(
            &stranger,
            &[],
            json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).to_string(),
        )
        .await;
    assert_eq!(reply.json()["result"]["tools"], json!([]));
    let (status, report) = sidecar.admin("/status").await;
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(
        (status, report["tools"].as_array().unwrap().len()),
        (200, 2)
    );
}

/// Ways around the sidecar: the operator tries each.
#[tokio::test]
async fn the_status_tells_who_listens_beyond_loopback() {
    let script = Script::start(echo).await;
    let sidecar = in_front_of(&script, allow(json!(["*"])), no_limits()).await;
    let told = async || -> Option<Vec<Value>> {
        let (_, report) = sidecar.admin("/status").await;
        let report: Value = serde_json::from_str(&report).unwrap();
        report["listeners"].as_array().cloned()
    };
    let is_at = |listeners: &[Value], port: u16| {
        let there = json!({"address": "0.0.0.0", "port": port});
        listeners.contains(&there)
    };
    let open = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = open.local_addr().unwrap().port();
    let listeners = told().await.unwrap();
    let loopback = script.address.port();
    let others = listeners.iter().filter(|it| it["port"] == loopback);
    assert_eq!(others.count(), 0, "{listeners:?}");
    // On a machine with many of them, it need not be among the first.
    let is_full = listeners.len() == policy::report::MAX_LISTENERS;
    assert!(is_at(&listeners, port) || is_full, "{port}: {listeners:?}");
    drop(open);
    until("the closed port to go", async || {
        !is_at(&told().await.unwrap(), port)
    })
    .await;
}

#[tokio::test]
async fn connections_to_the_server_are_kept() {
    let script = Script::start(echo).await;
    let sidecar = in_front_of(&script, allow(json!(["get_*"])), no_limits()).await;
    for _ in 0..20 {
        assert_eq!(sidecar.call(&call("get_order")).await.status, 200);
    }
    let first = script.got.lock().unwrap()[0].connection;
    assert!(
        script
            .got
            .lock()
            .unwrap()
            .iter()
            .all(|got| got.connection == first)
    );
}

/// Servers close a connection 5 s after they used it, some after 2 s, and a call that
/// is on its way in that moment would be lost.
#[tokio::test]
async fn a_connection_that_the_server_may_be_closing_is_not_used() {
    let script = Script::start(echo).await;
    let sidecar = in_front_of(&script, allow(json!(["get_*"])), no_limits()).await;
    assert_eq!(sidecar.call(&call("get_order")).await.status, 200);
    // What is tested is that time passes.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(sidecar.call(&call("get_order")).await.status, 200);
    let got = script.got.lock().unwrap();
    assert_ne!(got[0].connection, got[got.len() - 1].connection);
}

#[tokio::test]
async fn refusals_before_the_decision() {
    let script = Script::start(echo).await;
    let sidecar = in_front_of(&script, allow(json!(["*"])), no_limits()).await;
    let (token, good) = (sidecar.token("alice"), call("get_order").to_string());
    let other = sidecar
        .issuer
        .token(
            "alice",
            &[],
            "http://invoices/mcp",
            sidecar::pipeline::now(),
            common::LIFETIME,
        )
        .unwrap();
    let batch = format!("[{good}]");
    let twice = good.replace("\"get_order\"", "\"get_order\",\"name\":\"delete_order\"");
    let large = "x".repeat(4 * 1024 * 1024 + 1);
    for (token, headers, body, status, reason) in [
        (
            &token,
            vec![("host", "evil.example")],
            &good,
            403,
            "HostNotAllowed",
        ),
        (
            &token,
            vec![("origin", "https://evil.example")],
            &good,
            403,
            "OriginNotAllowed",
        ),
        (
            &token,
            vec![("origin", "null")],
            &good,
            403,
            "OriginNotAllowed",
        ),
        (&"x".to_owned(), vec![], &good, 401, "TokenOpaque"),
        (&other, vec![], &good, 401, "WrongAudience"),
        (
            &token,
            vec![("content-type", "text/plain")],
            &good,
            415,
            "Malformed",
        ),
        (
            &token,
            vec![("content-encoding", "gzip")],
            &good,
            415,
            "Malformed",
        ),
        (
            &token,
            vec![("mcp-protocol-version", "2025-06-18")],
            &batch,
            400,
            "Malformed",
        ),
        (&token, vec![], &twice, 400, "Malformed"),
        (&token, vec![], &large, 413, "TooLarge"),
    ] {
        let reply = sidecar.post(token, &headers, body.clone()).await;
        assert_eq!(
            (reply.status, &reply.json()["error"]["data"]["reason"]),
            (status, &json!(reason)),
            "{headers:?}"
        );
        assert_eq!(sidecar.audited()["reason"], reason);
        assert_eq!(
            reply.headers.contains_key("www-authenticate"),
            status == 401
        );
    }
    let without = Request::post(format!("http://{}/mcp", sidecar.mcp))
        .body(Full::default())
        .unwrap();
    let reply = send(without).await;
    let metadata = "http://orders.shop.svc/.well-known/oauth-protected-resource/mcp";
    assert_eq!(
        (
            reply.status,
            reply.headers["www-authenticate"].to_str().unwrap()
        ),
        (401, &*format!("Bearer resource_metadata=\"{metadata}\""))
    );
    let elsewhere = Request::post(format!("http://{}/mcp/x", sidecar.mcp))
        .body(Full::default())
        .unwrap();
    assert_eq!(send(elsewhere).await.status, 404);
    let unknown = sidecar.call(&json!({"jsonrpc": "2.0", "id": 1, "method": "tools/Call", "params": {"name": "get_order"}})).await;
    assert_eq!(unknown.json()["error"]["code"], -32601);
    assert_eq!(
        script.got.lock().unwrap().len(),
        0,
        "a refused request reached the server"
    );
}

#[tokio::test]
async fn a_token_that_is_not_good_says_why() {
    let script = Script::start(echo).await;
    let sidecar = in_front_of(&script, allow(json!(["*"])), no_limits()).await;
    let token = sidecar.token("alice");
    let claims = json!({"iss": "https://idp.example.com", "sub": "alice"});
    let stranger = sidecar.issuer.sign(&claims).unwrap();
    for (token, reason, said) in [
        ("x", "TokenOpaque", "opaque"),
        ("x.y.z", "TokenMalformed", "read in two ways"),
        ("a.b.c.d.e", "TokenEncrypted", "encrypted"),
        (&*common::forged(&token), "SignatureInvalid", "signature"),
        (&*stranger, "UnknownIssuer", "issuer"),
        (&*"x".repeat(20_000), "TokenTooLarge", "too large"),
    ] {
        let reply = sidecar
            .post(token, &[], call("get_order").to_string())
            .await;
        let error = &reply.json()["error"];
        assert_eq!(
            (reply.status, &error["data"]["reason"]),
            (401, &json!(reason)),
            "{reply:?}"
        );
        assert_eq!(sidecar.audited()["reason"], reason);
        let challenge = reply.headers["www-authenticate"].to_str().unwrap();
        assert!(
            challenge.contains("error=\"invalid_token\"") && challenge.contains(said),
            "{challenge}"
        );
        // Nothing of the token comes back.
        let shown = format!("{error} {challenge}");
        let parts = token.split('.').filter(|part| part.len() > 8);
        for part in parts {
            assert!(!shown.contains(part), "{shown}");
        }
    }
    assert_eq!(script.got.lock().unwrap().len(), 0);
}

/// A token in the URL, in the body or in another header is none (RFC 9700
/// §4.3.2).
#[tokio::test]
async fn a_token_stands_in_one_header_alone() {
    let script = Script::start(echo).await;
    let sidecar = in_front_of(&script, allow(json!(["*"])), no_limits()).await;
    let (token, message) = (sidecar.token("alice"), call("get_order").to_string());
    let form = format!("access_token={token}");
    for (target, kind, body) in [
        (format!("/mcp?{form}"), "application/json", &message),
        (
            format!("/mcp?authorization=Bearer%20{token}"),
            "application/json",
            &message,
        ),
        (
            "/mcp".to_owned(),
            "application/x-www-form-urlencoded",
            &form,
        ),
    ] {
        let request = Request::post(format!("http://{}{target}", sidecar.mcp))
            .header("content-type", kind)
            .header("accept", "application/json, text/event-stream")
            .header("cookie", &form)
            .header("proxy-authorization", format!("Bearer {token}"))
            .header("x-access-token", &token)
            .body(Full::from(body.clone()))
            .unwrap();
        let reply = send(request).await;
        let reason = &reply.json()["error"]["data"]["reason"];
        assert_eq!(
            (reply.status, reason),
            (401, &json!("TokenMissing")),
            "{target}"
        );
    }
    assert_eq!(script.got.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn a_burst_gets_429_and_counts_survive_a_new_bundle() {
    let limits =
        json!([{"name": "each", "tools": ["*"], "requests": 2, "per": "24h", "by": ["User"]}]);
    let script = Script::start(echo).await;
    let sidecar = in_front_of(&script, allow(json!(["get_*"])), limits.clone()).await;
    for _ in 0..2 {
        assert_eq!(sidecar.call(&call("get_order")).await.status, 200);
    }
    let assert_limited = |reply: common::Reply| {
        assert_eq!((reply.status, &reply.json()["id"]), (429, &json!(7)));
        let wait: u64 = reply.headers["retry-after"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((1..=12 * 3600).contains(&wait), "{wait}");
    };
    assert_limited(sidecar.call(&call("get_order")).await);
    let bob = sidecar.token("bob");
    assert_eq!(
        sidecar
            .post(&bob, &[], call("get_order").to_string())
            .await
            .status,
        200,
        "bob has a count of his own"
    );
    sidecar
        .rewrite(&bundle(&sidecar.issuer, allow(json!(["*"])), limits))
        .await;
    assert_limited(sidecar.call(&call("get_order")).await);
}

fn progress(n: u32) -> Bytes {
    let message = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"n": n}});
    Bytes::from(format!("data: {message}\n\n"))
}

/// Events that the test sends one by one.
fn events(
    got: &common::Got,
    feed: tokio::sync::broadcast::Receiver<Bytes>,
) -> Response<common::ScriptBody> {
    assert!(got.headers.contains_key("accept"));
    let frames = futures::stream::unfold(feed, |mut feed| async move {
        let event = feed.recv().await.ok()?;
        Some((Ok(Frame::data(event)), feed))
    });
    Response::builder()
        .header("content-type", "text/event-stream")
        .body(BodyExt::boxed_unsync(StreamBody::new(frames)))
        .unwrap()
}

#[tokio::test]
async fn events_stream_through_and_a_policy_change_resets_the_stream() {
    let (feed, _) = tokio::sync::broadcast::channel(16);
    let source = feed.clone();
    let script = Script::start(move |got| events(got, source.subscribe())).await;
    let sidecar = in_front_of(&script, allow(json!(["get_*"])), no_limits()).await;
    let request = Request::post(format!("http://{}/mcp", sidecar.mcp))
        .header("content-type", "application/json")
        .header("accept", "text/event-stream")
        .header("user-agent", "test")
        .header(
            "authorization",
            format!("Bearer {}", sidecar.token("alice")),
        )
        .body(Full::new(Bytes::from(call("get_order").to_string())))
        .unwrap();
    let mut stream = open(request).await.into_body().into_data_stream();
    for n in [1, 2] {
        let text = progress(n);
        feed.send(text.clone()).unwrap();
        let arrived = tokio::time::timeout(PATIENCE, stream.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(arrived, text, "an answer was held back");
    }
    // A change that still allows leaves the stream alone; one that denies resets it.
    sidecar
        .rewrite(&bundle(
            &sidecar.issuer,
            allow(json!(["get_order"])),
            no_limits(),
        ))
        .await;
    feed.send(progress(3)).unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), progress(3));
    sidecar
        .rewrite(&bundle(
            &sidecar.issuer,
            allow(json!(["delete_order"])),
            no_limits(),
        ))
        .await;
    let end = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap();
    assert!(
        end.is_some_and(|end| end.is_err()),
        "the stream ended as if it were whole"
    );
}

#[tokio::test]
async fn lists_in_events_are_filtered_too() {
    let list = json!({"jsonrpc": "2.0", "id": 1, "result": {"tools": common::tools()}}).to_string();
    let script = Script::start(move |got| {
        let (feed, events_of) = tokio::sync::broadcast::channel(4);
        feed.send(Bytes::from(format!(
            "event: message\nid: 9\ndata: {list}\n\n"
        )))
        .unwrap();
        events(got, events_of)
    })
    .await;
    let sidecar = in_front_of(&script, allow(json!(["get_*"])), no_limits()).await;
    let get = Request::get(format!("http://{}/mcp", sidecar.mcp))
        .header("accept", "text/event-stream")
        .header("user-agent", "test")
        .header("last-event-id", "8")
        .header(
            "authorization",
            format!("Bearer {}", sidecar.token("alice")),
        )
        .body(Full::default())
        .unwrap();
    let replayed = String::from_utf8(send(get).await.body.to_vec()).unwrap();
    let listed = sidecar
        .call(&json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}))
        .await;
    for text in [replayed, String::from_utf8(listed.body.to_vec()).unwrap()] {
        assert!(
            text.contains("get_order") && text.contains("id: 9") && !text.contains("delete_order"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_broken_server_gives_an_error_with_a_reason() {
    let script = Script::start(|got| {
        let message: Value = serde_json::from_slice(&got.body).unwrap();
        match message["params"]["name"].as_str() {
            Some("html") => Response::builder()
                .header("content-type", "text/html")
                .body(text("<p>"))
                .unwrap(),
            Some("login") => Response::builder()
                .status(401)
                .header("www-authenticate", "Basic")
                .body(text(""))
                .unwrap(),
            _ => json_answer(&json!({"jsonrpc": "2.0", "id": 1, "result": {"Tools": []}})),
        }
    })
    .await;
    let sidecar = in_front_of(&script, allow(json!(["*"])), no_limits()).await;
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
    for message in [call("html"), call("login"), list] {
        let reply = sidecar.call(&message).await;
        assert_eq!(
            (reply.status, &reply.json()["error"]["data"]["reason"]),
            (502, &json!("UpstreamUnavailable"))
        );
        assert_eq!(reply.json()["id"], message["id"]);
        assert!(!reply.headers.contains_key("www-authenticate"));
    }
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let upstream = format!("http://{gone}/mcp");
    let sidecar = Sidecar::serve(&["--upstream", &upstream], |issuer| {
        Some(bundle(issuer, allow(json!(["*"])), no_limits()))
    })
    .await
    .configured()
    .await;
    let reply = sidecar.call(&call("get_order")).await;
    assert_eq!(reply.status, 502);
    assert!(
        reply.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("refused"),
        "{reply:?}"
    );
    let (status, why) = sidecar.admin("/readyz").await;
    assert!(
        status == 503 && why.contains("has not answered yet"),
        "{why}"
    );
}

#[tokio::test]
async fn sessions_belong_to_whoever_opened_them() {
    let script = Script::start(|got| {
        let mut answer = echo(got);
        answer
            .headers_mut()
            .insert("mcp-session-id", http::HeaderValue::from_static("s-1"));
        answer
    })
    .await;
    let sidecar = in_front_of(&script, allow(json!(["*"])), no_limits()).await;
    let session = [("mcp-session-id", "s-1")];
    let (alice, bob) = (sidecar.token("alice"), sidecar.token("bob"));
    let unknown = sidecar
        .post(&alice, &session, call("get_order").to_string())
        .await;
    assert_eq!(unknown.status, 404, "a session that nobody opened");
    let initialize =
        json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}).to_string();
    let opened = sidecar.post(&alice, &[], initialize).await;
    let id = opened.headers["mcp-session-id"].to_str().unwrap();
    assert!(id.len() > 32 && id.ends_with("-local"), "{id}");
    let session = [("mcp-session-id", id)];
    assert_eq!(
        sidecar
            .post(&alice, &session, call("get_order").to_string())
            .await
            .status,
        200
    );
    assert_eq!(
        script.last().headers["mcp-session-id"],
        "s-1",
        "the server's own id"
    );
    let stolen = sidecar
        .post(&bob, &session, call("get_order").to_string())
        .await;
    assert_eq!(
        (stolen.status, &stolen.json()["error"]["data"]["reason"]),
        (404, &json!("SessionUnknown"))
    );
}

#[tokio::test]
async fn without_a_bundle_everything_is_denied_and_a_bad_one_changes_nothing() {
    let script = Script::start(echo).await;
    let upstream = format!("http://{}/mcp", script.address);
    let sidecar = Sidecar::serve(&["--upstream", &upstream], |_| None).await;
    assert_eq!(sidecar.call(&call("get_order")).await.status, 503);
    assert_eq!(sidecar.admin("/healthz").await.0, 200);
    assert_eq!(sidecar.admin("/readyz").await.0, 503);
    common::write(&sidecar.folder, "{\"version\":1,");
    until("the bad bundle was seen", async || {
        sidecar
            .admin("/metrics")
            .await
            .1
            .contains("result=\"rejected\"")
    })
    .await;
    assert_eq!(sidecar.call(&call("get_order")).await.status, 503);

    let good = bundle(&sidecar.issuer, allow(json!(["*"])), no_limits());
    sidecar.rewrite(&good).await;
    until("ready", async || sidecar.admin("/readyz").await.0 == 200).await;
    assert_eq!(sidecar.call(&call("get_order")).await.status, 200);
    let newer = good
        .to_json()
        .unwrap()
        .replace("\"version\":2", "\"version\":9");
    common::write(&sidecar.folder, &newer);
    until("the newer bundle was refused", async || {
        sidecar.admin("/status").await.1.contains("version 9")
    })
    .await;
    assert_eq!(
        sidecar.call(&call("get_order")).await.status,
        200,
        "the last good one stays in force"
    );

    let forged = sidecar
        .issuer
        .token(
            "someone",
            &[],
            "toolward-admin/shop/orders",
            sidecar::pipeline::now(),
            common::LIFETIME,
        )
        .unwrap();
    assert_eq!(
        sidecar.admin_as("/status", &forged).await.0,
        401,
        "whoever can choose an audience is not the operator"
    );
    assert_eq!(
        sidecar.admin_as("/status", &sidecar.token("alice")).await.0,
        401
    );
}

#[tokio::test]
async fn drain_finishes_what_is_in_flight_and_takes_nothing_new() {
    let (feed, _) = tokio::sync::broadcast::channel(16);
    let source = feed.clone();
    let script = Script::start(move |got| events(got, source.subscribe())).await;
    let mut sidecar = in_front_of(&script, allow(json!(["*"])), no_limits()).await;
    let request = Request::post(format!("http://{}/mcp", sidecar.mcp))
        .header("content-type", "application/json")
        .header("accept", "text/event-stream")
        .header("user-agent", "test")
        .header(
            "authorization",
            format!("Bearer {}", sidecar.token("alice")),
        )
        .body(Full::new(Bytes::from(call("get_order").to_string())))
        .unwrap();
    let mut stream = open(request).await.into_body().into_data_stream();
    // Every client listens to what the server says by itself: that is no call.
    let get = Request::get(format!("http://{}/mcp", sidecar.mcp))
        .header("accept", "text/event-stream")
        .header("user-agent", "test");
    let get = get
        .header(
            "authorization",
            format!("Bearer {}", sidecar.token("alice")),
        )
        .body(Full::default())
        .unwrap();
    let mut listening = open(get).await.into_body().into_data_stream();
    let pid = sidecar.child.id().to_string();
    let mut drain = Command::new(binary())
        .args([
            "drain",
            "--pid",
            &pid,
            "--admin-port",
            &sidecar.admin.port().to_string(),
        ])
        .spawn()
        .unwrap();
    until("not ready", async || {
        sidecar.admin("/readyz").await.0 == 503
    })
    .await;
    until("a new call is told to go elsewhere", async || {
        let request = sidecar.request(&sidecar.token("alice"));
        let call = Bytes::from(call("get_order").to_string());
        let answer = open(request.body(Full::new(call)).unwrap()).await;
        assert_eq!(answer.headers()["connection"], "close");
        answer.status() == 503
    })
    .await;
    let taken = std::net::TcpListener::bind(sidecar.mcp);
    assert!(taken.is_err(), "the server could listen in its place");
    assert!(
        drain.try_wait().unwrap().is_none(),
        "drained with a call in flight"
    );
    let ended = tokio::time::timeout(PATIENCE, listening.next())
        .await
        .unwrap();
    assert!(ended.is_none(), "it ends in good order: {ended:?}");
    feed.send(progress(4)).unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), progress(4));
    drop((stream, feed));
    let drained = tokio::task::spawn_blocking(move || drain.wait().unwrap())
        .await
        .unwrap();
    assert!(drained.success());
    assert!(
        sidecar.child.try_wait().unwrap().is_none(),
        "the sidecar ends with SIGTERM only"
    );
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    until("the sidecar has ended", async || {
        sidecar.child.try_wait().unwrap().is_some()
    })
    .await;
}

#[tokio::test]
async fn a_stream_ends_with_its_token() {
    let (feed, _) = tokio::sync::broadcast::channel(16);
    let script = Script::start(move |got| events(got, feed.subscribe())).await;
    let sidecar = in_front_of(&script, allow(json!(["*"])), no_limits()).await;
    let now = sidecar::pipeline::now();
    let claims = json!({"iss": sidecar::dev::ISSUER, "sub": "alice", "groups": ["staff"], "aud": "http://orders.shop.svc/mcp", "iat": now, "exp": now + 3});
    let get = Request::get(format!("http://{}/mcp", sidecar.mcp))
        .header("accept", "text/event-stream")
        .header("user-agent", "test");
    let get = get
        .header(
            "authorization",
            format!("Bearer {}", sidecar.issuer.sign(&claims).unwrap()),
        )
        .body(Full::default())
        .unwrap();
    let mut stream = open(get).await.into_body().into_data_stream();
    let end = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap();
    assert!(
        end.is_some_and(|end| end.is_err()),
        "the stream outlived its token"
    );
}

#[tokio::test]
async fn what_the_server_must_not_say_does_not_pass() {
    let script = Script::start(|got| {
        let message: Value = serde_json::from_slice(&got.body).unwrap();
        let answer = json_answer(&json!({"jsonrpc": "2.0", "id": 1, "result": {}}));
        let (mut head, body) = answer.into_parts();
        match message["params"]["name"].as_str() {
            Some("redirect") => {
                head.status = http::StatusCode::TEMPORARY_REDIRECT;
                head.headers.insert(
                    "location",
                    http::HeaderValue::from_static("http://evil.example/"),
                );
            }
            Some("zip") => drop(
                head.headers
                    .insert("content-encoding", http::HeaderValue::from_static("gzip")),
            ),
            Some("types") => drop(head.headers.append(
                "content-type",
                http::HeaderValue::from_static("text/event-stream"),
            )),
            _ => drop(
                head.headers
                    .insert("alt-svc", http::HeaderValue::from_static("h2=\":1\"")),
            ),
        }
        Response::from_parts(head, body)
    })
    .await;
    let sidecar = in_front_of(&script, allow(json!(["*"])), no_limits()).await;
    for tool in ["redirect", "zip", "types"] {
        let reply = sidecar.call(&call(tool)).await;
        assert!(
            reply.status == 502 && !reply.headers.contains_key("location"),
            "{tool}: {reply:?}"
        );
    }
    let reply = sidecar.call(&call("other")).await;
    assert!(reply.status == 200 && !reply.headers.contains_key("alt-svc"));
}

#[tokio::test]
async fn made_up_names_share_one_count() {
    let limits =
        json!([{"name": "each", "tools": ["*"], "requests": 2, "per": "24h", "by": ["Tool"]}]);
    let script = Script::start(echo).await;
    let sidecar = in_front_of(&script, allow(json!(["*"])), limits).await;
    let mut refused = 0;
    for name in ["a", "b", "c"] {
        refused += u32::from(sidecar.call(&call(name)).await.status == 429);
    }
    assert_eq!(refused, 1);
    assert_eq!(sidecar.call(&call("get_order")).await.status, 200);
}

#[tokio::test]
async fn a_task_belongs_to_the_caller_whose_call_made_it() {
    let script = Script::start(|got| {
        let message: Value = serde_json::from_slice(&got.body).unwrap();
        let task = |id: &str| json!({"taskId": id, "status": "working"});
        let result = match message["method"].as_str() {
            Some("tools/call") => json!({"task": task("t-1")}),
            Some("tasks/list") => json!({"tasks": [task("t-1"), task("of-another")]}),
            _ => task("t-1"),
        };
        json_answer(&json!({"jsonrpc": "2.0", "id": message["id"], "result": result}))
    })
    .await;
    let sidecar = in_front_of(&script, allow(json!(["get_*"])), no_limits()).await;
    let ask = async |user: &str, method: &str, params: Value| {
        let message = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let token = sidecar.token(user);
        sidecar.post(&token, &[], message.to_string()).await.json()
    };
    let task = json!({"taskId": "t-1"});
    let unknown = ask("alice", "tasks/get", task.clone()).await;
    assert!(unknown["error"]["code"].is_i64(), "{unknown}");
    let made = json!({"name": "get_order", "task": {}});
    let made = ask("alice", "tools/call", made).await;
    assert_eq!(made["result"]["task"]["taskId"], "t-1", "{made}");
    for method in ["tasks/get", "tasks/result", "tasks/cancel"] {
        let own = ask("alice", method, task.clone()).await;
        assert_eq!(own["result"]["taskId"], "t-1", "{method}: {own}");
        let seen = script.got.lock().unwrap().len();
        let foreign = ask("bob", method, task.clone()).await;
        assert_eq!(
            foreign["error"], unknown["error"],
            "{method}: as if there were none"
        );
        assert_eq!(script.got.lock().unwrap().len(), seen, "{method} passed");
    }
    let list = ask("alice", "tasks/list", json!({})).await;
    assert_eq!(
        list["result"]["tasks"],
        json!([{"taskId": "t-1", "status": "working"}])
    );
    let list = ask("bob", "tasks/list", json!({})).await;
    assert_eq!(list["result"]["tasks"], json!([]));
    // What the call may no longer do, nobody may ask about.
    let other = bundle(&sidecar.issuer, allow(json!(["other"])), no_limits());
    sidecar.rewrite(&other).await;
    let denied = ask("alice", "tasks/get", task).await;
    assert!(denied["error"]["code"].is_i64(), "{denied}");
}

#[tokio::test]
async fn the_stream_of_a_task_ends_when_its_tool_is_denied() {
    let (feed, _) = tokio::sync::broadcast::channel(16);
    let source = feed.clone();
    let script = Script::start(move |got| {
        let message: Value = serde_json::from_slice(&got.body).unwrap();
        if message["method"] == "tasks/result" {
            return events(got, source.subscribe());
        }
        let result = json!({"task": {"taskId": "t-1", "status": "working"}});
        json_answer(&json!({"jsonrpc": "2.0", "id": message["id"], "result": result}))
    })
    .await;
    let sidecar = in_front_of(&script, allow(json!(["get_*"])), no_limits()).await;
    let request = |method: &str, params: Value| {
        let message = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let request = sidecar.request(&sidecar.token("alice"));
        request.body(Full::new(Bytes::from(message.to_string())))
    };
    let made = json!({"name": "get_order", "task": {}});
    assert_eq!(send(request("tools/call", made).unwrap()).await.status, 200);
    let result = request("tasks/result", json!({"taskId": "t-1"})).unwrap();
    let mut stream = open(result).await.into_body().into_data_stream();
    let allowed = bundle(&sidecar.issuer, allow(json!(["get_order"])), no_limits());
    sidecar.rewrite(&allowed).await;
    feed.send(progress(1)).unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), progress(1));
    let denied = bundle(&sidecar.issuer, allow(json!(["other"])), no_limits());
    sidecar.rewrite(&denied).await;
    let end = tokio::time::timeout(PATIENCE, stream.next()).await;
    assert!(end.unwrap().is_some_and(|end| end.is_err()), "it goes on");
}

#[tokio::test]
async fn only_whom_the_server_asked_can_answer() {
    let script = Script::start(|got| {
        let message: Value = serde_json::from_slice(&got.body).unwrap();
        if message.get("method").is_none() {
            return Response::builder().status(202).body(text("")).unwrap();
        }
        let question = json!({"jsonrpc": "2.0", "id": "q", "method": "roots/list"});
        let answer = json!({"jsonrpc": "2.0", "id": message["id"], "result": {}});
        Response::builder()
            .header("content-type", "text/event-stream")
            .body(text(&format!("data: {question}\n\ndata: {answer}\n\n")))
            .unwrap()
    })
    .await;
    let sidecar = in_front_of(&script, allow(json!(["*"])), no_limits()).await;
    let (alice, bob) = (sidecar.token("alice"), sidecar.token("bob"));
    let answer = json!({"jsonrpc": "2.0", "id": "q", "result": {"roots": []}}).to_string();
    let status = async |token: &str| sidecar.post(token, &[], answer.clone()).await.status;
    assert_eq!(status(&alice).await, 400, "nobody asked yet");
    let asked = sidecar.post(&alice, &[], call("get_order").to_string());
    assert_eq!(asked.await.status, 200);
    assert_eq!(status(&bob).await, 400, "another was asked");
    let seen = script.got.lock().unwrap().len();
    assert_eq!(status(&alice).await, 202);
    assert_eq!(script.got.lock().unwrap().len(), seen + 1);
    assert_eq!(status(&alice).await, 400, "it was answered");
}

#[tokio::test]
async fn a_client_of_the_old_transport_is_told_what_to_use() {
    let script = Script::start(|_| Response::builder().status(405).body(text("")).unwrap()).await;
    let sidecar = in_front_of(&script, allow(json!(["*"])), no_limits()).await;
    for (path, status) in [("/mcp", 405), ("/sse", 404)] {
        let request = Request::get(format!("http://{}{path}", sidecar.mcp))
            .header("accept", "text/event-stream")
            .header(
                "authorization",
                format!("Bearer {}", sidecar.token("alice")),
            );
        let reply = send(request.body(Full::default()).unwrap()).await;
        let message = reply.json()["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        assert_eq!(reply.status, status, "{path}: {message}");
        for part in [
            "HTTP+SSE transport of revision 2024-11-05",
            "Streamable HTTP",
            "/mcp",
        ] {
            assert!(message.contains(part), "{path}: {message}");
        }
    }
}
