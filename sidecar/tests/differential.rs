//! Generated exchanges with a scripted server, each sent to it directly and
//! through the sidecar: what comes back is equal but for [`DIFFERENCES`], and
//! what the server sees is the same bytes. Of what has to be refused, the server
//! sees nothing. `TOOLWARD_SEED` repeats a run.
#![allow(clippy::unwrap_used, missing_docs)]

use sidecar_tests::common;

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use common::{Got, Reply, Script, ScriptBody, Sidecar, bundle, json_answer, text};
use futures::StreamExt;
use http::{HeaderMap, HeaderName, Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json, value::RawValue};
use sidecar::era::encode;
use tokio::sync::oneshot;

const EXCHANGES: usize = 5000;
const WORKERS: usize = 8;
/// Of a hundred scenarios, so many have to be refused.
const REFUSED: usize = 25;

/// What may differ, and why.
const DIFFERENCES: &[(&str, &str)] = &[
    (
        "value of Mcp-Session-Id",
        "it is the sidecar's own, bound to caller and replica; the server sees its own",
    ),
    (
        "writing of results that are lists",
        "each item is decided on; items and other members stay as they were written",
    ),
    (
        "cacheScope of lists",
        "what is filtered by caller is private",
    ),
    (
        "headers beside MEANINGFUL",
        "they are hop-by-hop (Transfer-Encoding, Content-Length), of the connection (Date), or could speak in our name",
    ),
    (
        "comments and framing of a stream",
        "they mean nothing; the sidecar sends its own",
    ),
];
/// Headers of answers that mean something to clients of MCP.
const MEANINGFUL: &[&str] = &[
    "content-type",
    "mcp-protocol-version",
    "retry-after",
    "cache-control",
    "allow",
    "x-accel-buffering",
];
/// Headers of requests that the server has to see as they were.
const SEEN: &[&str] = &[
    "accept",
    "accept-language",
    "baggage",
    "content-type",
    "last-event-id",
    "mcp-method",
    "mcp-name",
    "mcp-param-other",
    "mcp-param-region",
    "mcp-protocol-version",
    "tracestate",
    "user-agent",
];
const LISTS: &[&str] = &["tools", "prompts", "resources", "resourceTemplates"];
const NAMES: &[&str] = &[
    "get_order",
    "delete_order",
    "ünïcode",
    "a.b-c",
    "with space",
    "日本",
    "quote\"d",
    "regional",
];
const URIS: &[&str] = &[
    "file:///a/b",
    "db://orders?id=1",
    "x:y",
    "file:///%C3%B6/%E6%97%A5",
];

/// splitmix64: a seed repeats a run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    /// In so many of a hundred cases.
    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

// ---- JSON, oddly written

fn word(random: &mut Random) -> String {
    let chars = [
        'a',
        'Z',
        '0',
        ' ',
        '"',
        '\\',
        '/',
        '\n',
        '\t',
        '\u{1}',
        '\u{7f}',
        'é',
        'ß',
        '日',
        '\u{2028}',
        '\u{fffd}',
        '😀',
        '\u{10ffff}',
    ];
    (0..random.below(12)).map(|_| random.pick(&chars)).collect()
}

fn tree(random: &mut Random, depth: usize) -> Value {
    match random.below(if depth == 0 { 6 } else { 8 }) {
        0 => Value::Null,
        1 => random.chance(50).into(),
        2 => (i64::try_from(random.next() % (1 << 53)).unwrap() - (1 << 52)).into(),
        3 => json!(random.next() as f64 / 1e5),
        4 | 5 => word(random).into(),
        6 => (0..random.below(5))
            .map(|_| tree(random, depth - 1))
            .collect(),
        _ => {
            let count = random.below(5);
            let member =
                |index: usize| (format!("{}{index}", word(random)), tree(random, depth - 1));
            Value::Object((0..count).map(member).collect())
        }
    }
}

/// Writes JSON as no library does, but as RFC 8259 allows.
fn odd(value: &Value, random: &mut Random) -> String {
    let mut out = String::new();
    let is_plain = random.chance(30);
    write(value, random, is_plain, false, &mut out);
    out
}

fn write(value: &Value, random: &mut Random, is_plain: bool, is_free: bool, out: &mut String) {
    let space = |random: &mut Random, out: &mut String| {
        if !is_plain && random.chance(25) {
            out.push_str(random.pick(&[" ", "\n", "\t", "\r\n", "   "]));
        }
    };
    space(random, out);
    match value {
        Value::String(text) => string(text, random, is_plain, out),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { "," } else { "" });
                write(item, random, is_plain, is_free, out);
            }
            space(random, out);
            out.push(']');
        }
        Value::Object(members) => {
            out.push('{');
            let mut members: Vec<_> = members.iter().collect();
            if !is_plain {
                let by = random.below(members.len().max(1));
                members.rotate_left(by);
            }
            for (index, (name, value)) in members.into_iter().enumerate() {
                out.push_str(if index > 0 { "," } else { "" });
                space(random, out);
                string(name, random, is_plain, out);
                space(random, out);
                out.push(':');
                let is_free = is_free || name == "arguments";
                write(value, random, is_plain, is_free, out);
            }
            space(random, out);
            out.push('}');
        }
        // Ids have to stay integers.
        Value::Number(number) if is_free && !is_plain && number.is_i64() => {
            out.push_str(&number.to_string());
            out.push_str(random.pick(&["", "", ".0", ".00", "e0", "E+0"]));
        }
        value => out.push_str(&value.to_string()),
    }
    space(random, out);
}

fn string(text: &str, random: &mut Random, is_plain: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '/' if !is_plain && random.chance(50) => out.push_str("\\/"),
            '"' | '\\' | '\0'..='\u{1f}' => {
                let quoted = Value::from(c.to_string()).to_string();
                out.push_str(&quoted[1..quoted.len() - 1]);
            }
            c if !is_plain && random.chance(5) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let digits = format!("{unit:04x}");
                    let digits = if random.chance(50) {
                        digits.to_uppercase()
                    } else {
                        digits
                    };
                    out.push_str(&format!("\\u{digits}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

// ---- The server: what it answers follows from the request alone

type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<Bytes>>>>;

fn answer(got: &Got, waiting: &Waiting) -> Response<ScriptBody> {
    let last = got
        .headers
        .get("last-event-id")
        .map(|id| id.as_bytes().to_vec());
    let random = &mut Random(hash((&got.method, &last, &got.body)));
    match got.method.as_str() {
        "GET" if random.chance(30) => plain(405, &[("allow", "POST, DELETE")], ""),
        "GET" => {
            let events: Vec<_> = (0..random.below(6)).map(|_| notification(random)).collect();
            sse(&events, random)
        }
        "DELETE" => plain(random.pick(&[200, 204, 405]), &[], ""),
        _ => {
            let body: Value = serde_json::from_slice(&got.body).unwrap();
            match &body {
                Value::Array(batch) => batch_answer(batch, random),
                message => message_answer(got, message, random, waiting),
            }
        }
    }
}

fn plain(status: u16, headers: &[(&str, &str)], body: &str) -> Response<ScriptBody> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(text(body)).unwrap()
}

fn batch_answer(batch: &[Value], random: &mut Random) -> Response<ScriptBody> {
    let requests = batch
        .iter()
        .filter(|message| message["id"] != Value::Null && message["method"] != Value::Null);
    let answers: Vec<_> = requests
        .map(|message| reply_to(message, false, random))
        .collect();
    if answers.is_empty() {
        return plain(202, &[], "");
    }
    if random.chance(30) {
        return sse(&answers, random);
    }
    let body = odd(&answers.into(), random);
    plain(200, &[("content-type", "application/json")], &body)
}

fn message_answer(
    got: &Got,
    message: &Value,
    random: &mut Random,
    waiting: &Waiting,
) -> Response<ScriptBody> {
    let mark = &got.headers["traceparent"].to_str().unwrap()[..1];
    let Some(method) = message["method"].as_str() else {
        let key = format!("{mark}{}", message["id"]);
        let asked = waiting.lock().unwrap().remove(&key);
        let status = if asked.is_some_and(|asked| asked.send(got.body.clone()).is_ok()) {
            202
        } else {
            400
        };
        return plain(status, &[], "");
    };
    if message["id"].is_null() {
        return plain(202, &[], "");
    }
    let is_modern = got.headers.get("mcp-method").is_some();
    if method == "initialize" {
        return initialized(got, message, random);
    }
    if message["params"]["name"] == "ask" {
        return ask(mark, message, random, waiting);
    }
    let reply = reply_to(message, is_modern, random);
    match random.below(20) {
        0 => {
            let headers = [
                ("content-type", "application/json"),
                ("retry-after", "7"),
                ("cache-control", "no-store"),
            ];
            let error = json!({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32000, "message": word(random)}});
            plain(
                random.pick(&[429, 503, 400, 404]),
                &headers,
                &odd(&error, random),
            )
        }
        1 => plain(500, &[("content-type", "text/plain")], "it broke\n"),
        2..=6 => {
            let mut events: Vec<_> = (0..random.below(5)).map(|_| notification(random)).collect();
            events.push(reply);
            sse(&events, random)
        }
        _ => {
            let status = if is_modern && !reply["error"].is_null() {
                400
            } else {
                200
            };
            let kind = random.pick(&[
                "application/json",
                "application/json; charset=utf-8",
                "Application/JSON",
            ]);
            let headers = [
                ("content-type", kind),
                ("cache-control", random.pick(&["no-cache", "private"])),
            ];
            plain(status, &headers, &odd(&reply, random))
        }
    }
}

fn initialized(got: &Got, message: &Value, random: &mut Random) -> Response<ScriptBody> {
    let result = json!({
        "protocolVersion": message["params"]["protocolVersion"],
        "capabilities": {"tools": {}, "x": tree(random, 2)},
        "serverInfo": {"name": word(random), "version": "1"},
    });
    let reply = json!({"jsonrpc": "2.0", "id": message["id"], "result": result});
    let mut response = match random.chance(30) {
        true => sse(&[reply], random),
        false => plain(
            200,
            &[("content-type", "application/json")],
            &odd(&reply, random),
        ),
    };
    if message["params"]["clientInfo"]["name"] == "with a session" {
        let id = format!("of-{}", got.headers["traceparent"].to_str().unwrap());
        response
            .headers_mut()
            .insert("mcp-session-id", id.parse().unwrap());
    }
    response
}

/// Asks the client, and answers when the client has.
fn ask(
    mark: &str,
    message: &Value,
    random: &mut Random,
    waiting: &Waiting,
) -> Response<ScriptBody> {
    let id = json!(format!("ask {}", message["id"]));
    let question = json!({"jsonrpc": "2.0", "id": id, "method": "sampling/createMessage", "params": {"messages": tree(random, 2)}});
    let (sender, answered) = oneshot::channel();
    waiting
        .lock()
        .unwrap()
        .insert(format!("{mark}{id}"), sender);
    let (first, id) = (event(&question, random), message["id"].clone());
    let last = async move {
        let body = answered.await.map_err(std::io::Error::other)?;
        let reply = json!({"jsonrpc": "2.0", "id": id, "result": {"content": [{"type": "text", "text": hash(&body).to_string()}]}});
        Ok(Frame::data(Bytes::from(format!("data: {reply}\n\n"))))
    };
    let first = futures::future::ready(Ok(Frame::data(Bytes::from(first))));
    let events = futures::stream::once(first).chain(futures::stream::once(last));
    Response::builder()
        .header("content-type", "text/event-stream")
        .body(BodyExt::boxed_unsync(StreamBody::new(events)))
        .unwrap()
}

fn reply_to(message: &Value, is_modern: bool, random: &mut Random) -> Value {
    if random.chance(10) {
        let error = json!({"code": random.pick(&[-32602, -32603, 7]), "message": word(random), "data": tree(random, 2)});
        return json!({"jsonrpc": "2.0", "id": message["id"], "error": error});
    }
    let items = |key: &str, random: &mut Random| -> Value {
        let count = random.below(6);
        let item = |index: usize| {
            let name = format!("{}{index}", random.pick(NAMES));
            json!({key: name, "x": tree(random, 2)})
        };
        (0..count).map(item).collect()
    };
    let mut result = match message["method"].as_str().unwrap() {
        "tools/list" => json!({"tools": items("name", random), "nextCursor": word(random)}),
        "prompts/list" => json!({"prompts": items("name", random)}),
        "resources/list" => {
            json!({"resources": [{"uri": random.pick(URIS), "x": tree(random, 2)}]})
        }
        "resources/templates/list" => {
            json!({"resourceTemplates": [{"uriTemplate": "file:///{path}", "x": tree(random, 1)}]})
        }
        "ping" | "logging/setLevel" | "resources/subscribe" | "resources/unsubscribe" => json!({}),
        "completion/complete" => json!({"completion": {"values": [word(random)]}}),
        _ => {
            json!({"content": [{"type": "text", "text": word(random)}], "structuredContent": tree(random, 3)})
        }
    };
    if !message["params"]["task"].is_null() {
        result = json!({"task": {"taskId": "t", "status": "working"}});
    }
    if is_modern {
        result["resultType"] = "complete".into();
        result["ttlMs"] = random.below(1000).into();
        result["cacheScope"] = random.pick(&["public", "private"]).into();
    }
    json!({"jsonrpc": "2.0", "id": message["id"], "result": result})
}

fn notification(random: &mut Random) -> Value {
    let method = random.pick(&[
        "notifications/progress",
        "notifications/message",
        "notifications/tools/list_changed",
    ]);
    json!({"jsonrpc": "2.0", "method": method, "params": {"progressToken": 1, "data": tree(random, 2)}})
}

/// An event, with the fields and line ends that a server may use.
fn event(data: &Value, random: &mut Random) -> String {
    let end = random.pick(&["\n", "\n", "\r\n", "\r"]);
    let mut out = String::new();
    if random.chance(20) {
        out.push_str(&format!(": a comment{end}"));
    }
    if random.chance(50) {
        out.push_str(&format!("event: message{end}"));
    }
    if random.chance(50) {
        out.push_str(&format!("id: {}{end}", random.below(1000)));
    }
    // A line break between tokens of JSON is one between lines of data.
    for line in odd(data, random).lines().flat_map(|line| line.split('\r')) {
        out.push_str(random.pick(&["data: ", "data:"]));
        out.push_str(line);
        out.push_str(end);
    }
    out.push_str(end);
    out
}

fn sse(data: &[Value], random: &mut Random) -> Response<ScriptBody> {
    let mut all = random
        .pick(&[
            "",
            "\u{feff}",
            ": hello\n\n",
            "id: 0\nretry: 500\ndata: \n\n",
        ])
        .to_owned();
    data.iter()
        .for_each(|data| all.push_str(&event(data, random)));
    let (mut rest, mut frames) = (Bytes::from(all), Vec::new());
    while !rest.is_empty() {
        let length = (1 + random.below(200)).min(rest.len());
        frames.push(Ok(Frame::data(rest.split_to(length))));
    }
    Response::builder()
        .header(
            "content-type",
            random.pick(&["text/event-stream", "text/event-stream; charset=utf-8"]),
        )
        .header("cache-control", "no-cache")
        .body(BodyExt::boxed_unsync(StreamBody::new(
            futures::stream::iter(frames),
        )))
        .unwrap()
}

/// The sidecar's own questions: a server of both eras.
fn own(got: &Got) -> Option<Response<ScriptBody>> {
    if got.headers.contains_key("user-agent") {
        return None;
    }
    let message: Value = serde_json::from_slice(&got.body).unwrap_or_default();
    let region = json!({"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}});
    let result = match message["method"].as_str() {
        Some("initialize") => {
            json!({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}})
        }
        Some("server/discover") => {
            json!({"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, "resultType": "complete", "ttlMs": 0, "cacheScope": "private"})
        }
        Some("tools/list") => {
            json!({"tools": [{"name": "regional", "inputSchema": region}], "resultType": "complete"})
        }
        _ => return Some(plain(if got.method == "GET" { 405 } else { 202 }, &[], "")),
    };
    Some(json_answer(
        &json!({"jsonrpc": "2.0", "id": message["id"], "result": result}),
    ))
}

// ---- What clients send

#[derive(Clone, Debug)]
struct Sent {
    method: Method,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl Sent {
    fn new(method: Method, random: &mut Random) -> Self {
        let accept = [
            "application/json, text/event-stream",
            "*/*",
            "text/event-stream, application/json;q=0.9",
        ];
        let mut headers = vec![
            ("accept", random.pick(&accept).to_owned()),
            ("user-agent", "test/1".to_owned()),
        ];
        if method == Method::POST {
            let kinds = [
                "application/json",
                "application/json; charset=utf-8",
                "Application/JSON",
            ];
            headers.push(("content-type", random.pick(&kinds).to_owned()));
        }
        for (name, value) in [
            ("accept-language", "de, en;q=0.5"),
            ("baggage", "a=b"),
            ("tracestate", "x=1"),
            ("cookie", "c=d"),
        ] {
            if random.chance(10) {
                headers.push((name, value.to_owned()));
            }
        }
        Self {
            method,
            headers,
            body: String::new(),
        }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn body(mut self, body: impl Into<String>) -> Self {
        self.body = body.into();
        self
    }
}

fn arguments(random: &mut Random) -> Value {
    let mut arguments = json!({"a": tree(random, 3), "Ünï": tree(random, 2), "A": null});
    match random.below(300) {
        0 => arguments["big"] = "x".repeat(1 << 20).into(),
        1..=5 => arguments["big"] = (0..2000).map(|_| word(random)).collect(),
        _ => {}
    }
    arguments
}

/// A method that both eras have, and its parameters.
fn common_method(random: &mut Random) -> (&'static str, Value) {
    let (name, uri) = (random.pick(&NAMES[..NAMES.len() - 1]), random.pick(URIS));
    let page = if random.chance(50) {
        json!({"cursor": word(random)})
    } else {
        json!({})
    };
    match random.below(14) {
        0 => ("tools/list", page),
        1 => ("prompts/list", page),
        2 => ("resources/list", page),
        3 => ("resources/templates/list", page),
        4 => (
            "prompts/get",
            json!({"name": name, "arguments": {"a": word(random)}}),
        ),
        5 => ("resources/read", json!({"uri": uri})),
        6 => (
            "completion/complete",
            json!({"ref": {"type": "ref/prompt", "name": name}, "argument": {"name": "a", "value": word(random)}}),
        ),
        7 => (
            "completion/complete",
            json!({"ref": {"type": "ref/resource", "uri": "file:///{path}"}, "argument": {"name": "path", "value": ""}}),
        ),
        _ => (
            "tools/call",
            json!({"name": name, "arguments": arguments(random)}),
        ),
    }
}

fn legacy_method(random: &mut Random) -> (&'static str, Option<Value>) {
    match random.below(20) {
        0 => ("ping", None),
        1 => ("logging/setLevel", Some(json!({"level": "info"}))),
        2 => (
            "resources/subscribe",
            Some(json!({"uri": random.pick(URIS)})),
        ),
        3 => (
            "resources/unsubscribe",
            Some(json!({"uri": random.pick(URIS)})),
        ),
        4 => (
            "tools/call",
            Some(json!({"name": "get_order", "arguments": {}, "task": {"ttl": 1000}})),
        ),
        _ => {
            let (method, mut params) = common_method(random);
            if random.chance(30) {
                params["_meta"] = json!({"progressToken": random.pick(&[json!(1), json!("t")])});
            }
            (method, Some(params))
        }
    }
}

/// An id that no other request has.
fn id(number: usize, random: &mut Random) -> Value {
    match random.below(3) {
        0 => number.into(),
        1 => (-i64::try_from(number).unwrap()).into(),
        _ => format!("{}{number}", word(random)).into(),
    }
}

fn message(id: Option<Value>, method: &str, params: Option<Value>) -> Value {
    let mut message = json!({"jsonrpc": "2.0", "method": method});
    id.into_iter().for_each(|id| message["id"] = id);
    params
        .into_iter()
        .for_each(|params| message["params"] = params);
    message
}

fn legacy_notification(random: &mut Random) -> Value {
    match random.below(3) {
        0 => message(
            None,
            "notifications/cancelled",
            Some(json!({"requestId": "none", "reason": word(random)})),
        ),
        1 => message(
            None,
            "notifications/progress",
            Some(json!({"progressToken": 1, "progress": 0.5})),
        ),
        _ => message(None, "notifications/roots/list_changed", None),
    }
}

fn legacy(revision: &'static str, number: usize, random: &mut Random) -> Sent {
    let mut sent = Sent::new(Method::POST, random);
    if revision > "2025-03-26" || random.chance(30) {
        sent = sent.with("mcp-protocol-version", revision);
    }
    let body = match random.below(10) {
        0 => legacy_notification(random),
        1 | 2 if revision == "2025-03-26" => {
            let count = random.below(5);
            let element = |index: usize| {
                if random.chance(25) {
                    return legacy_notification(random);
                }
                let (method, params) = legacy_method(random);
                message(Some(format!("{number}-{index}").into()), method, params)
            };
            (0..=count).map(element).collect()
        }
        _ => {
            let (method, params) = legacy_method(random);
            message(Some(id(number, random)), method, params)
        }
    };
    sent.body(odd(&body, random))
}

fn modern(number: usize, random: &mut Random) -> Sent {
    let mut sent = Sent::new(Method::POST, random).with("mcp-protocol-version", "2026-07-28");
    if random.chance(5) {
        let cancelled = message(
            None,
            "notifications/cancelled",
            Some(json!({"requestId": number})),
        );
        return sent
            .with("mcp-method", "notifications/cancelled")
            .body(odd(&cancelled, random));
    }
    let (method, mut params) = match random.below(12) {
        0 => ("server/discover", json!({})),
        1 => {
            let region = word(random);
            sent = sent
                .with("mcp-param-region", encode(&region))
                .with("mcp-param-other", "o");
            (
                "tools/call",
                json!({"name": "regional", "arguments": {"region": region}}),
            )
        }
        2 => (
            "tools/call",
            json!({"name": "regional", "arguments": {"region": null}}),
        ),
        3 => (
            "subscriptions/listen",
            json!({"notifications": {"toolsListChanged": true, "resourceSubscriptions": ["x:y"]}}),
        ),
        _ => common_method(random),
    };
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": word(random), "version": "1"},
    });
    sent = sent.with("mcp-method", method);
    let name = match method {
        "tools/call" | "prompts/get" => params["name"].as_str(),
        "resources/read" => params["uri"].as_str(),
        _ => None,
    };
    if let Some(name) = name {
        sent = sent.with("mcp-name", encode(name));
    }
    sent.body(odd(
        &message(Some(id(number, random)), method, Some(params)),
        random,
    ))
}

/// What has to be refused, and with which status.
fn refused(number: usize, random: &mut Random) -> (Sent, u16) {
    let plain = Sent::new(Method::POST, random);
    let call = |params: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":{number},"method":"tools/call","params":{params}}}"#)
    };
    let good = call(r#"{"name":"get_order","arguments":{}}"#);
    let replaced = |name: &str, value: &str| {
        let mut sent = plain.clone().body(good.clone());
        sent.headers.retain(|(other, _)| *other != name);
        sent.with(
            if name == "content-type" {
                "content-type"
            } else {
                "content-encoding"
            },
            value,
        )
    };
    let meta = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;
    let modern = |headers: &[(&'static str, &str)]| {
        let mut sent = plain.clone().body(call(&format!(
            r#"{{"name":"regional","arguments":{{"region":"eu"}},{meta}}}"#
        )));
        for (name, value) in headers {
            sent = sent.with(name, *value);
        }
        sent
    };
    let version = ("mcp-protocol-version", "2026-07-28");
    let (method, name) = (("mcp-method", "tools/call"), ("mcp-name", "regional"));
    let bodies = [
        call(r#"{"name":"get_order","name":"delete_order"}"#),
        call(r#"{"name":"get_order","n\u0061me":"delete_order"}"#),
        call(r#"{"name":"get_order","arguments":{"a":{"b":1,"b":2}}}"#),
        call(r#"{"name":"get_order","Name":"delete_order"}"#),
        call(r#"{"name":"get_order","argumentſ":{}}"#),
        call(r#"{"name":"get_order","arguments":{"a":"\ud800"}}"#),
        call(r#"{"name":"get_order","arguments":{"a":-0}}"#),
        call(r#"{"name":"get_order","arguments":{"a":9007199254740993}}"#),
        call(r#"{"name":"get_order","arguments":{"a":1e400}}"#),
        call(r#"{"name":"get_order","arguments":{"a":NaN}}"#),
        call(r#"{"name":"get_order",}"#),
        good.replace(r#""id""#, r#""ID":1,"id""#),
        good.replace(r#""method""#, r#""method":"ping","method""#),
        format!("\u{feff}{good}"),
        format!("{good}{good}"),
        format!(r#"{{"jsonrpc":"2.0","id":"nobody asked {number}","result":{{}}}}"#),
        format!("[{good},{}]", call(r#"{"name":"a","name":"b"}"#)),
        "[]".into(),
    ];
    match random.below(16) {
        0 => (
            plain
                .clone()
                .with("origin", "https://evil.example")
                .body(good),
            403,
        ),
        1 => (plain.clone().with("host", "evil.example").body(good), 403),
        2 => (replaced("content-type", "text/plain"), 415),
        3 => (replaced("content-encoding", "gzip"), 415),
        4 => (
            plain
                .clone()
                .with("mcp-protocol-version", "2025-06-18")
                .body(format!("[{good}]")),
            400,
        ),
        5 => (
            plain
                .clone()
                .with("mcp-protocol-version", "2025-01-01")
                .body(good),
            400,
        ),
        6 => (
            plain.clone().with("mcp-session-id", "unknown").body(good),
            404,
        ),
        7 => (modern(&[version, ("mcp-method", "tools/list"), name]), 400),
        8 => (modern(&[version, method, ("mcp-name", "get_order")]), 400),
        9 => (modern(&[version, method]), 400),
        10 => (
            modern(&[version, method, name, ("mcp-param-region", "us")]),
            400,
        ),
        11 => (
            modern(&[version, version, method, name, ("mcp-param-region", "eu")]),
            400,
        ),
        _ => (plain.clone().body(random.pick(&bodies)), 400),
    }
}

// ---- The run

/// The server itself, or the sidecar in front of it.
struct Side {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    token: String,
    mark: char,
}

impl Side {
    async fn open(&self, sent: &Sent, number: usize, session: Option<&str>) -> Response<Incoming> {
        let mut request = Request::builder().method(&sent.method).uri(&self.url);
        let own = [
            ("authorization", Some(format!("Bearer {}", self.token))),
            ("traceparent", Some(format!("{}-{number}", self.mark))),
            ("mcp-session-id", session.map(str::to_owned)),
        ];
        let own = own
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        for (name, value) in sent.headers.clone().into_iter().chain(own) {
            request = request.header(name, value);
        }
        let request = request
            .body(Full::new(Bytes::from(sent.body.clone())))
            .unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(60), self.client.request(request));
        answer
            .await
            .unwrap_or_else(|_| panic!("no answer to {sent:?}"))
            .unwrap()
    }

    async fn send(&self, sent: &Sent, number: usize, session: Option<&str>) -> Reply {
        let (parts, body) = self.open(sent, number, session).await.into_parts();
        let body = tokio::time::timeout(Duration::from_secs(60), body.collect()).await;
        let body = body.unwrap_or_else(|_| panic!("no end of the answer to {sent:?}"));
        let body = body
            .unwrap_or_else(|error| panic!("{error}: {sent:?}"))
            .to_bytes();
        Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        }
    }

    /// Sends a request to which the server asks something, and answers that.
    async fn converse(
        &self,
        sent: &Sent,
        number: usize,
        session: Option<&str>,
        answer: &str,
    ) -> Reply {
        let (parts, mut body) = self.open(sent, number, session).await.into_parts();
        let mut bytes = Vec::new();
        while events(&bytes).is_empty() {
            let frame = tokio::time::timeout(Duration::from_secs(60), body.frame())
                .await
                .unwrap();
            bytes.extend_from_slice(&frame.unwrap().unwrap().into_data().unwrap_or_default());
        }
        let question: Value = serde_json::from_slice(&events(&bytes)[0].data).unwrap();
        let posted = Sent {
            body: answer.replace("ID", &question["id"].to_string()),
            ..sent.clone()
        };
        let taken = self.send(&posted, number + 1, session).await;
        assert_eq!(taken.status, 202, "{}: {posted:?}: {taken:?}", self.mark);
        let rest = tokio::time::timeout(Duration::from_secs(60), body.collect())
            .await
            .unwrap();
        bytes.extend_from_slice(&rest.unwrap().to_bytes());
        Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: bytes.into(),
        }
    }
}

#[derive(Debug, Default, PartialEq)]
struct Event {
    name: Vec<u8>,
    id: Vec<u8>,
    retry: Vec<u8>,
    data: Vec<u8>,
}

/// The whole events of a stream; comments are none.
fn events(stream: &[u8]) -> Vec<Event> {
    let text = String::from_utf8_lossy(stream)
        .replace("\r\n", "\n")
        .replace('\r', "\n");
    let (mut events, mut rest) = (Vec::new(), text.trim_start_matches('\u{feff}'));
    while let Some((block, after)) = rest.split_once("\n\n") {
        rest = after;
        let (mut event, mut data) = (Event::default(), Vec::new());
        for line in block.split('\n') {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => event.name = value.into(),
                "id" => event.id = value.into(),
                "retry" => event.retry = value.into(),
                "data" => data.push(value),
                _ => {}
            }
        }
        event.data = data.join("\n").into_bytes();
        if event != Event::default() {
            events.push(event);
        }
    }
    events
}

fn is_stream(headers: &HeaderMap) -> bool {
    headers
        .get("content-type")
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

/// Whether two answers are equal but for [`DIFFERENCES`].
fn compare(direct: &Reply, through: &Reply) -> Result<(), String> {
    let differs = |what: &str| {
        Err(format!(
            "{what} differs\ndirect:  {direct:?}\nthrough: {through:?}"
        ))
    };
    if direct.status != through.status {
        return differs("the status");
    }
    for name in MEANINGFUL {
        if direct.headers.get(*name) != through.headers.get(*name) {
            return differs(name);
        }
    }
    if direct.headers.contains_key("mcp-session-id")
        != through.headers.contains_key("mcp-session-id")
    {
        return differs("the presence of mcp-session-id");
    }
    if !is_stream(&direct.headers) {
        return if same(&direct.body, &through.body) {
            Ok(())
        } else {
            differs("the body")
        };
    }
    let (direct_events, through_events) = (events(&direct.body), events(&through.body));
    let is_same = |(one, other): (&Event, &Event)| {
        (&one.name, &one.id, &one.retry) == (&other.name, &other.id, &other.retry)
            && same(&one.data, &other.data)
    };
    if direct_events.len() != through_events.len()
        || !direct_events.iter().zip(&through_events).all(is_same)
    {
        return differs("an event");
    }
    Ok(())
}

/// The same bytes, or the same list.
fn same(direct: &[u8], through: &[u8]) -> bool {
    type Members = serde_json::Map<String, Value>;
    let batch = |bytes: &[u8]| serde_json::from_slice::<Vec<Box<RawValue>>>(bytes).ok();
    if let (Some(direct), Some(through)) = (batch(direct), batch(through)) {
        let mut pairs = direct.iter().zip(&through);
        return direct.len() == through.len()
            && pairs.all(|(one, other)| same(one.get().as_bytes(), other.get().as_bytes()));
    }
    if direct == through {
        return true;
    }
    let result = |bytes: &[u8]| -> Option<(Value, HashMap<String, Box<RawValue>>)> {
        let message: HashMap<String, Box<RawValue>> = serde_json::from_slice(bytes).ok()?;
        let id = serde_json::from_str(message.get("id")?.get()).ok()?;
        Some((id, serde_json::from_str(message.get("result")?.get()).ok()?))
    };
    let names = |bytes: &[u8]| {
        serde_json::from_slice::<Members>(bytes)
            .map(|all| all.keys().cloned().collect::<Vec<_>>())
            .ok()
    };
    let (Some((id, direct_result)), Some((other, mut through_result))) =
        (result(direct), result(through))
    else {
        return false;
    };
    let is_list = direct_result
        .keys()
        .any(|name| LISTS.contains(&name.as_str()));
    let mut all_same = id == other && is_list && names(direct) == names(through);
    for (name, value) in direct_result {
        let Some(other) = through_result.remove(&name) else {
            return false;
        };
        all_same &= match name.as_str() {
            "cacheScope" => other.get() == r#""private""#,
            name if LISTS.contains(&name) => {
                let items = |raw: &RawValue| {
                    let items: Vec<Box<RawValue>> = serde_json::from_str(raw.get()).unwrap();
                    items
                        .iter()
                        .map(|item| item.get().to_owned())
                        .collect::<Vec<_>>()
                };
                items(&value) == items(&other)
            }
            _ => value.get() == other.get(),
        };
    }
    all_same && through_result.is_empty()
}

type Seen = Arc<Mutex<HashMap<String, Got>>>;

/// One of those that send at the same time.
struct Worker {
    random: Random,
    direct: Side,
    through: Side,
    seen: Seen,
    number: usize,
    refused: usize,
}

/// The session's id as each side knows it.
type Ids = (String, String);

impl Worker {
    fn next(&mut self) -> usize {
        self.number += 1;
        self.number
    }

    /// Sends to both, and compares what comes back and what the server saw.
    async fn exchange(
        &mut self,
        sent: &Sent,
        number: usize,
        session: Option<&Ids>,
    ) -> (Reply, Reply) {
        let (one, other) = (
            session.map(|ids| ids.0.as_str()),
            session.map(|ids| ids.1.as_str()),
        );
        let (direct, through) = tokio::join!(
            self.direct.send(sent, number, one),
            self.through.send(sent, number, other)
        );
        if let Err(difference) = compare(&direct, &through) {
            panic!("{difference}\nsent: {sent:?}\nmay differ: {DIFFERENCES:?}");
        }
        self.compare_seen(sent, number);
        (direct, through)
    }

    fn compare_seen(&self, sent: &Sent, number: usize) {
        let take = |mark: char| {
            let got = self
                .seen
                .lock()
                .unwrap()
                .remove(&format!("{mark}-{number}"));
            got.unwrap_or_else(|| panic!("{mark}: the server did not see {sent:?}"))
        };
        let (direct, through) = (take('d'), take('s'));
        assert_eq!(
            (&direct.method, &direct.body),
            (&through.method, &through.body)
        );
        for name in SEEN {
            let all = |got: &Got| {
                got.headers
                    .get_all(*name)
                    .iter()
                    .cloned()
                    .collect::<Vec<_>>()
            };
            assert_eq!(all(&direct), all(&through), "{name} of {sent:?}");
        }
        for name in ["authorization", "cookie"] {
            assert!(!through.headers.contains_key(name), "{name} passed");
        }
        let session = |got: &Got| {
            got.headers
                .get("mcp-session-id")
                .map(|id| id.to_str().unwrap()[4..].to_owned())
        };
        assert_eq!(
            session(&direct),
            session(&through),
            "the server's own session"
        );
    }

    /// A client up to revision 2025-11-25.
    async fn legacy(&mut self, has_session: bool) {
        let revision = self.random.pick(&[
            "2024-11-05",
            "2025-03-26",
            "2025-03-26",
            "2025-06-18",
            "2025-11-25",
        ]);
        let name = if has_session {
            "with a session"
        } else {
            "without"
        };
        let params = json!({"protocolVersion": revision, "capabilities": {"sampling": {}}, "clientInfo": {"name": name, "version": "1"}});
        let number = self.next();
        let hello = message(Some(number.into()), "initialize", Some(params));
        let hello = Sent::new(Method::POST, &mut self.random).body(odd(&hello, &mut self.random));
        let (direct, through) = self.exchange(&hello, number, None).await;
        let id = |reply: &Reply| {
            Some(
                reply
                    .headers
                    .get("mcp-session-id")?
                    .to_str()
                    .unwrap()
                    .to_owned(),
            )
        };
        let session = id(&direct).zip(id(&through));
        assert_eq!(session.is_some(), has_session);
        let number = self.next();
        let ready = Sent::new(Method::POST, &mut self.random)
            .with("mcp-protocol-version", revision)
            .body(odd(
                &message(None, "notifications/initialized", None),
                &mut self.random,
            ));
        self.exchange(&ready, number, session.as_ref()).await;
        for _ in 0..2 + self.random.below(8) {
            match self.random.below(10) {
                0 => {
                    let number = self.next();
                    let mut get = Sent::new(Method::GET, &mut self.random)
                        .with("mcp-protocol-version", revision);
                    if self.random.chance(30) {
                        get = get.with("last-event-id", number.to_string());
                    }
                    self.exchange(&get, number, session.as_ref()).await;
                }
                1 => self.asked(revision, session.as_ref()).await,
                _ => {
                    let number = self.next();
                    let sent = legacy(revision, number, &mut self.random);
                    self.exchange(&sent, number, session.as_ref()).await;
                }
            }
        }
        if session.is_some() && self.random.chance(50) {
            let number = self.next();
            let delete =
                Sent::new(Method::DELETE, &mut self.random).with("mcp-protocol-version", revision);
            self.exchange(&delete, number, session.as_ref()).await;
        }
    }

    /// The server asks the client: two exchanges.
    async fn asked(&mut self, revision: &'static str, session: Option<&Ids>) {
        let (number, posted) = (self.next(), self.next());
        let call = message(
            Some(number.into()),
            "tools/call",
            Some(json!({"name": "ask"})),
        );
        let sent = Sent::new(Method::POST, &mut self.random)
            .with("mcp-protocol-version", revision)
            .body(odd(&call, &mut self.random));
        let answer = match self.random.chance(70) {
            true => {
                r#"{"jsonrpc":"2.0", "id": ID,"result":{"role":"assistant","content":{"x":1.50}}}"#
            }
            false => r#"{"jsonrpc":"2.0","id":ID,"error":{"code":-1,"message":"no"}}"#,
        };
        let (one, other) = (
            session.map(|ids| ids.0.as_str()),
            session.map(|ids| ids.1.as_str()),
        );
        let (direct, through) = tokio::join!(
            self.direct.converse(&sent, number, one, answer),
            self.through.converse(&sent, number, other, answer)
        );
        if let Err(difference) = compare(&direct, &through) {
            panic!("{difference}\nsent: {sent:?}");
        }
        self.compare_seen(&sent, number);
        self.compare_seen(&sent, posted);
    }

    async fn refused(&mut self) {
        let number = self.next();
        let (sent, status) = refused(number, &mut self.random);
        let reply = self.through.send(&sent, number, None).await;
        assert_eq!(reply.status, status, "{sent:?}: {reply:?}");
        let seen = self.seen.lock().unwrap().remove(&format!("s-{number}"));
        assert!(seen.is_none(), "the server saw {sent:?}");
        assert!(reply.json()["error"]["code"].is_i64(), "{reply:?}");
        self.refused += 1;
    }

    async fn run(mut self, until: usize) -> usize {
        while self.number < until {
            match self.random.below(100) {
                n if n < REFUSED => self.refused().await,
                n if n < REFUSED + 15 => self.legacy(true).await,
                n if n < REFUSED + 22 => self.legacy(false).await,
                _ => {
                    let number = self.next();
                    let sent = modern(number, &mut self.random);
                    self.exchange(&sent, number, None).await;
                }
            }
        }
        self.refused
    }
}

fn everything() -> Value {
    json!([{
        "name": "staff", "effect": "Allow", "from": [{"groups": ["staff"]}],
        "tools": ["*"], "prompts": ["*"], "resources": ["**"],
    }])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_the_sidecar_all_is_as_it_is_without() {
    let clock = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .subsec_nanos();
    let seed =
        std::env::var("TOOLWARD_SEED").map_or(u64::from(clock), |seed| seed.parse().unwrap());
    println!("TOOLWARD_SEED={seed}");
    let (seen, waiting) = (Seen::default(), Waiting::default());
    let kept = Arc::clone(&seen);
    let script = Script::start_with(own, move |got| {
        let key = got.headers[HeaderName::from_static("traceparent")]
            .to_str()
            .unwrap()
            .to_owned();
        kept.lock().unwrap().insert(key, got.clone());
        answer(got, &waiting)
    })
    .await;
    let upstream = format!("http://{}/mcp", script.address);
    let limits = json!([{"name": "wide", "tools": ["*"], "requests": 1_000_000, "per": "1s"}]);
    let sidecar = Sidecar::serve(&["--upstream", &upstream], |issuer| {
        Some(bundle(issuer, everything(), limits))
    })
    .await
    .ready()
    .await;
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..WORKERS {
        let side = |mark: char, url: String| Side {
            client: client.clone(),
            url,
            // A principal of its own: what it was asked, no other worker answers.
            token: sidecar.token(&format!("worker-{worker}")),
            mark,
        };
        let first = worker * 1_000_000;
        let worker = Worker {
            random: Random(seed ^ hash(worker)),
            direct: side('d', upstream.clone()),
            through: side('s', format!("http://{}/mcp", sidecar.mcp)),
            seen: Arc::clone(&seen),
            number: first,
            refused: 0,
        };
        workers.spawn(worker.run(first + EXCHANGES.div_ceil(WORKERS)));
    }
    let mut refused = 0;
    while let Some(worker) = workers.join_next().await {
        refused += worker.unwrap_or_else(|error| panic!("TOOLWARD_SEED={seed}: {error}"));
    }
    println!("{EXCHANGES} exchanges, of which {refused} had to be refused");
    assert!(refused > EXCHANGES / 20, "{refused}");
    assert!(
        seen.lock().unwrap().is_empty(),
        "the server saw more than was sent"
    );
}
