//! What a server gives one caller to bring back, another caller cannot bring:
//! `requestState`, task ids and session ids, stolen by a second principal.
#![allow(clippy::unwrap_used, missing_docs)]

use sidecar_tests::common;

use common::{
    Got, Reply, Script, ScriptBody, Sidecar, allow, bundle, json_answer, of_probe, send, text,
};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

const MODERN: &str = "2026-07-28";
const STATE: &str = "round 2 of \"alice\"";

/// A server of the modern revision that asks once, and then wants its state back.
fn asking(got: &Got) -> Response<ScriptBody> {
    let message: Value = serde_json::from_slice(&got.body).unwrap_or_default();
    let params = &message["params"];
    let answer = |result: Value| json!({"jsonrpc": "2.0", "id": message["id"], "result": result});
    let asks = json!({"resultType": "input_required", "requestState": STATE});
    match (
        message["method"].as_str(),
        params["requestState"].as_str(),
        params["name"].as_str(),
    ) {
        (Some("tools/call"), Some(state), _) => json_answer(&answer(
            json!({"resultType": "complete", "content": [{"type": "text", "text": state}]}),
        )),
        (Some("tools/call"), None, Some("ask_json")) => json_answer(&answer(asks)),
        (Some("tools/call"), None, Some("ask_stream")) => Response::builder()
            .header("content-type", "text/event-stream")
            .body(text(&format!("id: 1\ndata: {}\n\n", answer(asks))))
            .unwrap(),
        (Some("tools/call"), None, Some("ask_long")) => {
            let long =
                json!({"resultType": "input_required", "requestState": "x".repeat(300 << 10)});
            json_answer(&answer(long))
        }
        (Some("tools/call"), None, Some("task")) => json_answer(&answer(
            json!({"resultType": "task", "task": {"taskId": "t-1", "status": "working"}}),
        )),
        _ => json_answer(&answer(
            json!({"resultType": "complete", "status": "working", "taskId": "t-1"}),
        )),
    }
}

/// What the sidecar asks by itself is answered as a server of that revision does.
fn discovered(got: &Got) -> Option<Response<ScriptBody>> {
    let message: Value = serde_json::from_slice(&got.body).unwrap_or_default();
    let is_probe = got.headers.get("user-agent").is_none();
    if !is_probe || message["method"] != "server/discover" {
        return of_probe(got);
    }
    Some(json_answer(
        &json!({"jsonrpc": "2.0", "id": message["id"], "result": {
            "resultType": "complete", "supportedVersions": [MODERN], "capabilities": {"tools": {}},
        }}),
    ))
}

struct World {
    script: Script,
    sidecar: Sidecar,
}

impl World {
    async fn new() -> Self {
        let script = Script::start_with(discovered, asking).await;
        let upstream = format!("http://{}/mcp", script.address);
        let wide = json!([{"name": "wide", "tools": ["*"], "requests": 1_000_000, "per": "1s"}]);
        let sidecar = Sidecar::serve(&["--upstream", &upstream], |issuer| {
            Some(bundle(issuer, allow(json!(["*"])), wide))
        })
        .await
        .ready()
        .await;
        Self { script, sidecar }
    }

    fn request(
        &self,
        user: &str,
        method: &str,
        name: &str,
        params: &Value,
    ) -> Request<Full<bytes::Bytes>> {
        let mut message =
            json!({"jsonrpc": "2.0", "id": "mine", "method": method, "params": params});
        let meta = &mut message["params"]["_meta"];
        meta["io.modelcontextprotocol/protocolVersion"] = MODERN.into();
        // Answers that may be tasks are read whole.
        meta["io.modelcontextprotocol/clientCapabilities"] = match name {
            "task" => json!({"extensions": {"io.modelcontextprotocol/tasks": {}}}),
            _ => json!({}),
        };
        self.sidecar
            .request(&self.sidecar.token(user))
            .header("mcp-protocol-version", MODERN)
            .header("mcp-method", method)
            .header("mcp-name", name)
            .body(Full::from(message.to_string()))
            .unwrap()
    }

    async fn call(&self, user: &str, tool: &str, state: Option<&str>) -> Reply {
        let mut params = json!({"name": tool, "arguments": {}});
        if let Some(state) = state {
            params["requestState"] = state.into();
        }
        send(self.request(user, "tools/call", tool, &params)).await
    }

    /// How many requests of callers the server has seen.
    fn seen(&self) -> usize {
        self.script.got.lock().unwrap().len()
    }
}

fn state_of(reply: &Reply) -> String {
    let state = &reply.json()["result"]["requestState"];
    state
        .as_str()
        .unwrap_or_else(|| panic!("{reply:?}"))
        .to_owned()
}

#[tokio::test]
async fn a_request_state_comes_back_from_its_caller_only() {
    let world = World::new().await;
    for tool in ["ask_json", "ask_stream"] {
        let state = state_of(&world.call("alice", tool, None).await);
        assert!(!state.contains("round"), "{tool}: {state}");
        let reply = world.call("alice", tool, Some(&state)).await;
        let said = reply.json()["result"]["content"][0]["text"].clone();
        assert_eq!(said, STATE, "{tool}: the server reads what it wrote");

        let before = world.seen();
        let mut tampered = state.clone();
        tampered.replace_range(20..21, if &state[20..21] == "A" { "B" } else { "A" });
        let elsewhere = format!("{}.orders-9", state.split_once('.').unwrap().0);
        for (what, user, state) in [
            ("another caller's", "bob", state.as_str()),
            ("tampered with", "alice", &tampered),
            ("of a replica that is not there", "alice", &elsewhere),
            ("never given", "alice", STATE),
            ("empty", "alice", ""),
        ] {
            let reply = world.call(user, tool, Some(state)).await;
            let error = &reply.json()["error"];
            assert_eq!(
                (
                    reply.status,
                    &error["code"],
                    &error["data"]["reason"],
                    &reply.json()["id"]
                ),
                (400, &json!(-32602), &json!("StateUnknown"), &json!("mine")),
                "{tool}, {what}: {reply:?}"
            );
        }
        assert_eq!(world.seen(), before, "the server saw what was refused");
    }
}

/// A name can be written with escapes.
#[tokio::test]
async fn a_request_state_is_looked_for_in_every_spelling() {
    let world = World::new().await;
    let given = state_of(&world.call("alice", "ask_json", None).await);
    let before = world.seen();
    let spelled = async |user: &str, state: &str| {
        let params = json!({"name": "ask_json", "arguments": {}, "requestState": state});
        let (parts, body) = world
            .request(user, "tools/call", "ask_json", &params)
            .into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        let body = body.replace("requestState", r"request\u0053tate");
        send(Request::from_parts(parts, Full::from(body))).await
    };
    for (user, state) in [("bob", given.as_str()), ("alice", STATE), ("alice", "")] {
        let reply = spelled(user, state).await;
        let reason = &reply.json()["error"]["data"]["reason"];
        assert_eq!(reason, "StateUnknown", "{user} {state}: {reply:?}");
    }
    assert_eq!(world.seen(), before, "the server saw what was refused");
    let reply = spelled("alice", &given).await;
    assert_eq!(reply.json()["result"]["content"][0]["text"], STATE);
}

/// It is not held back to be read whole, so the caller gets what the server wrote:
/// brought back, it is refused, by whomever.
#[tokio::test]
async fn a_request_state_that_was_not_sealed_is_never_taken() {
    let world = World::new().await;
    let state = state_of(&world.call("alice", "ask_long", None).await);
    assert_eq!(state.len(), 300 << 10);
    for user in ["alice", "bob"] {
        let reply = world.call(user, "ask_long", Some(&state)).await;
        assert_eq!(reply.json()["error"]["data"]["reason"], "StateUnknown");
    }
}

#[tokio::test]
async fn a_task_belongs_to_its_caller() {
    let world = World::new().await;
    let made = world.call("alice", "task", None).await;
    assert_eq!(made.json()["result"]["task"]["taskId"], "t-1", "{made:?}");
    let asked = |user: &'static str, method: &'static str| {
        let params = json!({"taskId": "t-1", "inputResponses": {}});
        send(world.request(user, method, "t-1", &params))
    };
    for method in ["tasks/get", "tasks/update", "tasks/cancel"] {
        let before = world.seen();
        let stolen = asked("bob", method).await;
        assert_eq!(
            stolen.json()["error"]["code"],
            -32602,
            "{method}: {stolen:?}"
        );
        assert_eq!(world.seen(), before, "{method}: the server saw it");
        let own = asked("alice", method).await;
        assert_eq!(
            own.json()["result"]["status"],
            "working",
            "{method}: {own:?}"
        );
    }
}
