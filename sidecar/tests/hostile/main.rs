//! Hostile clients against the real binary: each test prints its figure.
//!
//! `HOSTILE_CASES` is how many odd paths and resets are tried.
#![allow(clippy::unwrap_used, missing_docs)]

use sidecar_tests::common;

mod bodies;
mod bombs;
mod connection;
mod headers;
mod http2;
mod ids;
mod limits;
mod meter;
mod mutations;
mod names;
mod paths;
mod slow;
mod smuggling;
mod wire;

use common::{Script, Sidecar, allow, bundle, echo};
use serde_json::{Value, json};

/// How many cases are tried of what there is no end of.
fn cases() -> usize {
    std::env::var("HOSTILE_CASES").map_or(10_000, |cases| cases.parse().unwrap())
}

fn no_limits() -> Value {
    json!([{"name": "wide", "tools": ["*"], "requests": 1_000_000, "per": "1s"}])
}

fn call(argument: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "get_order", "arguments": {"a": argument}}})
}

/// A sidecar in front of a server that answers a call with its arguments.
async fn guarded() -> (Script, Sidecar) {
    let script = Script::start(echo).await;
    let upstream = format!("http://{}/mcp", script.address);
    let sidecar = Sidecar::serve(&["--upstream", &upstream], |issuer| {
        Some(bundle(issuer, allow(json!(["get_*"])), no_limits()))
    })
    .await;
    (script, sidecar.ready().await)
}
