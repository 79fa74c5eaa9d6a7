//! What each guard keeps from the server, and that these tests see it when the
//! guard is gone: each scenario runs with the real program, where it must pass,
//! and with one from which that guard was removed, where it must fail.
#![allow(clippy::unwrap_used, missing_docs)]

use sidecar_tests::common;

use std::{path::Path, process::Command};

use common::{Script, Sidecar, allow, binary, bundle, echo};
use serde_json::json;

/// What a caller sends who wants past a guard.
struct Attack {
    headers: Vec<(&'static str, &'static str)>,
    body: String,
    /// Must not be in what the server sees, where it sees anything.
    forbidden: &'static str,
}

/// The server saw what it must not.
#[derive(Debug)]
struct Breach(#[allow(dead_code)] String);

fn call(params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#)
}

/// A call that may not be made, behind one that may.
fn batch() -> Attack {
    let (good, bad) = (
        call(r#"{"name":"get_order"}"#),
        call(r#"{"name":"delete_order"}"#),
    );
    let bad = bad.replace(r#""id":1"#, r#""id":2"#);
    Attack {
        headers: vec![],
        body: format!("[{good},{bad}]"),
        forbidden: "delete_order",
    }
}

/// Headers that name another tool than the body, for a server that reads them.
fn header() -> Attack {
    let body = call(
        r#"{"name":"get_order","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}"#,
    );
    let headers = vec![
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "tools/call"),
        ("mcp-name", "delete_order"),
    ];
    Attack {
        headers,
        body,
        forbidden: "delete_order",
    }
}

/// An argument with two values, of which parsers take either.
fn duplicate_key() -> Attack {
    let body = call(r#"{"name":"get_order","arguments":{"order":"mine","order":"yours"}}"#);
    Attack {
        headers: vec![],
        body,
        forbidden: "yours",
    }
}

/// A page of another site, in the browser of somebody who may call.
fn origin() -> Attack {
    Attack {
        headers: vec![("origin", "https://evil.example")],
        body: call(r#"{"name":"get_order"}"#),
        forbidden: "get_order",
    }
}

/// Attacks a server behind this program. `Err`: the attack got through.
async fn run(program: Command, attack: &Attack) -> Result<(), Breach> {
    let script = Script::start_with(own, echo).await;
    let upstream = format!("http://{}/mcp", script.address);
    let limits = json!([{"name": "wide", "tools": ["*"], "requests": 1_000_000, "per": "1s"}]);
    let sidecar = Sidecar::serve_by(program, &["--upstream", &upstream], |issuer| {
        Some(bundle(issuer, allow(json!(["get_*"])), limits))
    })
    .ready()
    .await;
    // The way is open for what is allowed.
    let token = sidecar.token("alice");
    let good = sidecar
        .post(&token, &[], call(r#"{"name":"get_order"}"#))
        .await;
    assert_eq!(
        (good.status, script.got.lock().unwrap().len()),
        (200, 1),
        "{good:?}"
    );
    sidecar
        .post(&token, &attack.headers, attack.body.clone())
        .await;
    for got in script.got.lock().unwrap().iter().skip(1) {
        let seen = format!("{:?}\n{}", got.headers, String::from_utf8_lossy(&got.body));
        if seen.contains(attack.forbidden) {
            return Err(Breach(seen));
        }
    }
    Ok(())
}

/// The sidecar's own questions: a server of both eras.
fn own(got: &common::Got) -> Option<http::Response<common::ScriptBody>> {
    let message: serde_json::Value = serde_json::from_slice(&got.body).unwrap_or_default();
    if got.headers.contains_key("user-agent") || message["method"] != "server/discover" {
        return common::of_probe(got);
    }
    let result = json!({"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, "resultType": "complete"});
    Some(common::json_answer(
        &json!({"jsonrpc": "2.0", "id": message["id"], "result": result}),
    ))
}

/// The program with one guard removed; with none for "".
fn without(guard: &str) -> Command {
    let program = Path::new(binary()).with_file_name("toolward-sidecar-unguarded");
    assert!(
        program.exists(),
        "{} is not built: cargo build --release --workspace --features sidecar/unguarded --bin toolward-sidecar-unguarded",
        program.display()
    );
    let mut command = Command::new(program);
    command.env("TOOLWARD_UNGUARDED", guard);
    command
}

/// The attack fails on the real program, and on one where all other guards are
/// gone; it gets through where its guard is.
async fn shows(guard: &str, attack: Attack) {
    run(Command::new(binary()), &attack).await.unwrap();
    let all = ["batch", "header", "duplicate-key", "origin"];
    let others: Vec<_> = all.into_iter().filter(|other| *other != guard).collect();
    run(without(&others.join(",")), &attack).await.unwrap();
    let seen = run(without(guard), &attack).await;
    assert!(
        seen.is_err(),
        "without the guard {guard:?} this test must fail, and it does not"
    );
}

#[tokio::test]
async fn each_element_of_a_batch_is_decided_on() {
    shows("batch", batch()).await;
}

#[tokio::test]
async fn headers_say_what_the_body_says() {
    shows("header", header()).await;
}

#[tokio::test]
async fn a_name_stands_once() {
    shows("duplicate-key", duplicate_key()).await;
}

#[tokio::test]
async fn foreign_sites_do_not_call() {
    shows("origin", origin()).await;
}

/// The real program has all guards, whatever its environment says.
#[tokio::test]
async fn no_environment_removes_a_guard() {
    for attack in [batch(), header(), duplicate_key(), origin()] {
        let mut program = Command::new(binary());
        program.env("TOOLWARD_UNGUARDED", "batch,header,duplicate-key,origin");
        run(program, &attack).await.unwrap();
    }
}
