//! Headers that do not say what the body says, and batches
//! with something in them that must not pass.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::{
    common::{self, Got, Reply, Script, ScriptBody, Sidecar, bundle, echo, json_answer, send},
    no_limits,
};

type Headers = Vec<(&'static str, String)>;

/// Answers the sidecar's own questions as a server of revision 2026-07-28.
fn modern(got: &Got) -> Option<Response<ScriptBody>> {
    let message: Value = serde_json::from_slice(&got.body).unwrap_or_default();
    let result = match message["method"].as_str() {
        _ if got.headers.contains_key("user-agent") => return None,
        Some("server/discover") => {
            json!({"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, "resultType": "complete"})
        }
        Some("tools/list") => {
            let region = json!({"type": "string", "x-mcp-header": "Region"});
            let schema = json!({"type": "object", "properties": {"region": region}});
            json!({"tools": [{"name": "get_order", "inputSchema": schema}], "resultType": "complete", "ttlMs": 0, "cacheScope": "public"})
        }
        _ => return common::of_probe(got),
    };
    Some(json_answer(
        &json!({"jsonrpc": "2.0", "id": message["id"], "result": result}),
    ))
}

/// Answers all requests of a batch.
fn each(got: &Got) -> Response<ScriptBody> {
    let Ok(Value::Array(batch)) = serde_json::from_slice(&got.body) else {
        return echo(got);
    };
    let requests = batch.iter().filter(|message| message.get("id").is_some());
    let answers = requests
        .map(|message| json!({"jsonrpc": "2.0", "id": message["id"], "result": {"content": []}}));
    json_answer(&answers.collect())
}

async fn guarded() -> (Script, Sidecar) {
    let script = Script::start_with(modern, each).await;
    let upstream = format!("http://{}/mcp", script.address);
    let rules = json!([{
        "name": "staff", "effect": "Allow", "from": [{"groups": ["staff"]}],
        "tools": ["get_*"], "prompts": ["get_*"], "resources": ["db:**"],
    }]);
    let sidecar = Sidecar::serve(&["--upstream", &upstream], |issuer| {
        Some(bundle(issuer, rules, no_limits()))
    })
    .await;
    (script, sidecar.ready().await)
}

async fn post(sidecar: &Sidecar, headers: &Headers, body: &Value) -> Reply {
    let mut request = sidecar.request(&sidecar.token("alice"));
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    send(
        request
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap(),
    )
    .await
}

/// What a value of a header becomes, none where it is left out.
fn wrong(value: &str) -> Vec<(&'static str, Vec<String>)> {
    let bad = |text: &str| vec![format!("=?base64?{text}?=")];
    let swapped = match value.to_ascii_uppercase() {
        upper if upper == value => format!("{value}X"), // A version has no case.
        upper => upper,
    };
    vec![
        ("missing", vec![]),
        ("empty", vec![String::new()]),
        ("different", vec!["get_other".into()]),
        ("of other case", vec![swapped]),
        ("longer", vec![format!("{value}x")]),
        ("shorter", vec![value[..value.len() - 1].into()]),
        ("repeated", vec![value.into(), value.into()]),
        (
            "repeated with another",
            vec![value.into(), "get_other".into()],
        ),
        (
            "another, and repeated",
            vec!["get_other".into(), value.into()],
        ),
        ("a list", vec![format!("{value}, get_other")]),
        ("quoted", vec![format!("\"{value}\"")]),
        (
            "percent-encoded",
            vec![format!("%{:02x}{}", value.as_bytes()[0], &value[1..])],
        ),
        ("no base64", bad("***")),
        ("base64 that is cut", bad(&STANDARD.encode(value)[1..])),
        ("base64 of no UTF-8", bad(&STANDARD.encode([0xff, 0xfe]))),
        ("base64 of another", bad(&STANDARD.encode("get_other"))),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_do_not_say_what_the_body_says_are_refused() {
    let (script, sidecar) = guarded().await;
    let meta = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}});
    let requests = [
        (
            "tools/call",
            "get_order",
            json!({"name": "get_order", "arguments": {"region": "eu-west"}, "_meta": meta}),
        ),
        (
            "prompts/get",
            "get_help",
            json!({"name": "get_help", "_meta": meta}),
        ),
        (
            "resources/read",
            "db:orders",
            json!({"uri": "db:orders", "_meta": meta}),
        ),
    ];
    let mut refused = 0;
    for (method, name, params) in requests {
        let body = json!({"jsonrpc": "2.0", "id": "mine", "method": method, "params": params});
        let mut good: Headers = vec![
            ("mcp-protocol-version", "2026-07-28".into()),
            ("mcp-method", method.into()),
            ("mcp-name", name.into()),
        ];
        if method == "tools/call" {
            good.push(("mcp-param-region", "eu-west".into()));
        }
        let reply = post(&sidecar, &good, &body).await;
        assert_eq!(reply.status, 200, "{method}: {reply:?}");
        let encoded: Headers = good
            .iter()
            .map(|(header, value)| match *header {
                "mcp-name" | "mcp-param-region" => {
                    (*header, format!("=?base64?{}?=", STANDARD.encode(value)))
                }
                _ => (*header, value.clone()),
            })
            .collect();
        let reply = post(&sidecar, &encoded, &body).await;
        assert_eq!(reply.status, 200, "{method}: {reply:?}");
        let seen = script.got.lock().unwrap().len();
        for (index, (header, value)) in good.iter().enumerate() {
            for (what, values) in wrong(value) {
                let mut headers = good.clone();
                headers.remove(index);
                headers.extend(values.into_iter().map(|value| (*header, value)));
                let reply = post(&sidecar, &headers, &body).await;
                let error = reply.json();
                assert_eq!(
                    (reply.status, &error["error"]["code"]),
                    (400, &json!(-32020)),
                    "{method}: {header} is {what}: {error}"
                );
                refused += 1;
            }
        }
        assert_eq!(script.got.lock().unwrap().len(), seen, "{method} passed");
    }
    println!("{refused} of {refused} with headers that contradict the body: 400, -32020");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_element_of_a_batch_is_decided_on() {
    let (script, sidecar) = guarded().await;
    let call = |id: Value, tool: &str| json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool}});
    let good = |id: u64| call(id.into(), "get_order");
    let bad = |id: u64| call(id.into(), "delete_order");
    let note = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    let answer = json!({"jsonrpc": "2.0", "id": "nobody asked", "result": {}});
    let unknown = json!({"jsonrpc": "2.0", "method": "notifications/made-up"});
    let batches = [
        ("empty", json!([])),
        ("one that is forbidden", json!([bad(1)])),
        ("the last is forbidden", json!([good(1), good(2), bad(3)])),
        ("the first is forbidden", json!([bad(1), good(2)])),
        ("with notifications", json!([note, bad(1), note])),
        (
            "silent: a notification that nobody knows",
            json!([good(1), unknown]),
        ),
        (
            "silent: an answer that nobody asked for",
            json!([good(1), answer]),
        ),
        (
            "silent: a call without an id",
            json!([good(1), {"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "delete_order"}}]),
        ),
        ("an id twice", json!([good(1), bad(1)])),
        (
            "an id twice, written as text",
            json!([good(1), call("1".into(), "delete_order")]),
        ),
        ("a batch in a batch", json!([[good(1)]])),
        ("no object", json!([good(1), 7])),
        ("null", json!([null])),
        (
            "the handshake",
            json!([{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-03-26"}}, bad(2)]),
        ),
        (
            "a list too",
            json!([{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, bad(2)]),
        ),
        ("too many", (0..101).map(good).collect()),
    ];
    let headers = vec![("mcp-protocol-version", "2025-03-26".to_owned())];
    let reply = post(&sidecar, &headers, &json!([good(1), good(2), note])).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    for (what, batch) in &batches {
        let reply = post(&sidecar, &headers, batch).await;
        // Notifications and answers have no answer that could tell.
        let told = String::from_utf8_lossy(&reply.body).into_owned();
        let is_silent = what.starts_with("silent: ");
        assert!(is_silent || told.contains("\"error\""), "{what}: {reply:?}");
    }
    for got in script.got.lock().unwrap().iter() {
        let body = String::from_utf8_lossy(&got.body);
        for forbidden in ["delete_order", "nobody asked", "made-up"] {
            assert!(!body.contains(forbidden), "the server saw {body}");
        }
    }
    println!(
        "{} batches: each element decided on, or all refused",
        batches.len()
    );
}
