//! Long answers and long silences: what is large streams through in constant
//! memory, what is quiet stays open.
#![allow(clippy::unwrap_used, missing_docs)]

use sidecar_tests::common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use common::{Got, Script, ScriptBody, Shim, Sidecar, allow, bundle, script, until};
use futures::StreamExt;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::json;
use tokio::sync::broadcast;

const MIB: usize = 1024 * 1024;
/// What the sidecar may hold of an answer that passes unread, beside what the
/// kernel holds.
const MAX_GROWTH: usize = 16 * MIB;
/// The same where events are read one by one (8 MiB at most each).
const MAX_GROWTH_EVENTS: usize = 40 * MIB;
/// Kernel buffers of two connections, and what is in between.
const MAX_AHEAD: usize = 48 * MIB;

fn limits() -> serde_json::Value {
    json!([{"name": "wide", "tools": ["*"], "requests": 1_000_000, "per": "1s"}])
}

async fn in_front_of(script: &Script) -> Sidecar {
    let upstream = format!("http://{}/mcp", script.address);
    Sidecar::serve(&["--upstream", &upstream], |issuer| {
        Some(bundle(issuer, allow(json!(["*"])), limits()))
    })
    .await
    .ready()
    .await
}

/// A call, the head of whose answer is there.
async fn open(sidecar: &Sidecar, tool: &str, http2: bool) -> Incoming {
    let message =
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool}});
    let request = Request::post(format!("http://{}/mcp", sidecar.mcp))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(message.to_string())))
        .unwrap();
    opened(sidecar, request, http2).await
}

async fn opened(sidecar: &Sidecar, mut request: Request<Full<Bytes>>, http2: bool) -> Incoming {
    let token = format!("Bearer {}", sidecar.token("alice"));
    for (name, value) in [
        ("user-agent", "test"),
        ("accept", "application/json, text/event-stream"),
        ("authorization", &token),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let client = Client::builder(TokioExecutor::new())
        .http2_only(http2)
        .build_http();
    let answer = tokio::time::timeout(Duration::from_secs(60), client.request(request)).await;
    let answer = answer.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    answer.into_body()
}

// ---- Large answers

/// Memory of the sidecar in bytes: now, and at most so far.
fn memory(sidecar: &Sidecar) -> (usize, usize) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", sidecar.child.id())).unwrap();
    let of = |key: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap();
        line.split_whitespace()
            .next()
            .unwrap()
            .parse::<usize>()
            .unwrap()
            * 1024
    };
    (of("VmRSS:"), of("VmHWM:"))
}

/// An answer of `total` bytes in `parts`, each made when there is room for it.
fn parts(
    kind: &'static str,
    first: Bytes,
    part: Bytes,
    last: Bytes,
    total: usize,
    made: Arc<AtomicUsize>,
) -> Response<ScriptBody> {
    let count = total.div_ceil(part.len());
    let all = std::iter::once(first)
        .chain(std::iter::repeat_n(part, count))
        .chain([last]);
    let frames = futures::stream::iter(all).map(move |part| {
        made.fetch_add(part.len(), Ordering::Relaxed);
        Ok(Frame::data(part))
    });
    Response::builder()
        .header("content-type", kind)
        .body(BodyExt::boxed_unsync(StreamBody::new(frames)))
        .unwrap()
}

/// By the name of the tool: `json 10` has 10 MiB, `sse 10` has them in events.
fn large(got: &Got, made: &Arc<AtomicUsize>) -> Response<ScriptBody> {
    let message: serde_json::Value = serde_json::from_slice(&got.body).unwrap();
    let tool = message["params"]["name"].as_str().unwrap();
    let (kind, size) = tool.split_once(' ').unwrap();
    let total = size.parse::<usize>().unwrap() * MIB;
    let made = Arc::clone(made);
    if kind == "json" {
        let first = Bytes::from_static(
            br#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":""#,
        );
        let last = Bytes::from_static(br#""}]}}"#);
        return parts(
            "application/json",
            first,
            Bytes::from(vec![b'x'; 64 * 1024]),
            last,
            total,
            made,
        );
    }
    let data = json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "x".repeat(32 * 1024)}});
    let event = |data: &serde_json::Value| Bytes::from(format!("data: {data}\n\n"));
    let last = json!({"jsonrpc": "2.0", "id": 1, "result": {"content": []}});
    parts(
        "text/event-stream",
        Bytes::new(),
        event(&data),
        event(&last),
        total,
        made,
    )
}

/// Reads an answer that the server makes as fast as it can: first not at all,
/// then slowly.
async fn passes(kind: &str, mib: usize, bound: usize) {
    let made = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&made);
    let script = Script::start(move |got| large(got, &counted)).await;
    let sidecar = in_front_of(&script).await;
    // One of the same kind before: what is once is no growth.
    let mut warm = open(&sidecar, &format!("{kind} 1"), false).await;
    while let Some(frame) = warm.frame().await {
        frame.unwrap();
    }
    let (before, _) = memory(&sidecar);
    made.store(0, Ordering::Relaxed);
    let mut body = open(&sidecar, &format!("{kind} {mib}"), false).await;
    let mut last = usize::MAX;
    until("the server waits for the reader", async || {
        let now = made.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(200)).await;
        std::mem::replace(&mut last, now) == now
    })
    .await;
    let ahead = last;
    assert!(
        ahead < MAX_AHEAD.min(mib * MIB + MIB),
        "{ahead} bytes were taken for a reader that reads nothing"
    );
    let (mut read, mut slowed) = (0, 0);
    while let Some(frame) = body.frame().await {
        read += frame.unwrap().into_data().map_or(0, |data| data.len());
        if read / MIB > slowed {
            slowed = read / MIB;
            tokio::time::sleep(Duration::from_millis(2)).await; // A slow reader.
        }
    }
    assert_eq!(read, made.load(Ordering::Relaxed));
    assert!(read >= mib * MIB);
    let (_, most) = memory(&sidecar);
    let growth = most.saturating_sub(before);
    println!(
        "{kind}, {mib} MiB: {} MiB before, {:.1} MiB more at most; {:.1} MiB ahead of the reader",
        before / MIB,
        growth as f64 / MIB as f64,
        ahead as f64 / MIB as f64
    );
    assert!(growth < bound, "{kind}, {mib} MiB: {growth} bytes more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_answers_stream_through_in_constant_memory() {
    for mib in [10, 200] {
        passes("json", mib, MAX_GROWTH).await;
        passes("sse", mib, MAX_GROWTH_EVENTS).await;
    }
}

// ---- Long silences

/// How long nothing is said: longer than every idle time-out, of which that of a
/// connection without a request, 60 s, is the longest.
const QUIET: Duration = Duration::from_secs(65);

/// Reads comments for as long as nothing is said; says something then, and reads
/// that.
async fn stays_open(what: &str, mut body: Incoming, say: impl AsyncFnOnce()) {
    let (start, mut comments) = (Instant::now(), 0);
    let end = tokio::time::sleep(QUIET);
    tokio::pin!(end);
    loop {
        let frame = tokio::select! {
            () = &mut end => break,
            frame = body.frame() => frame,
        };
        let frame = frame.unwrap_or_else(|| panic!("{what}: closed after {:?}", start.elapsed()));
        let data = frame.unwrap().into_data().unwrap();
        comments += usize::from(data == ": keep-alive\n\n");
        assert!(
            comments > 0 || start.elapsed() < Duration::from_secs(10),
            "{what}: {data:?}"
        );
    }
    assert!(
        comments >= 2,
        "{what}: {comments} comments in {:?}",
        start.elapsed()
    );
    say().await;
    let spoken = async {
        while let Some(frame) = body.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            if String::from_utf8_lossy(&data).contains("notifications/message") {
                return;
            }
        }
        panic!("{what}: ended without what was said");
    };
    tokio::time::timeout(Duration::from_secs(30), spoken)
        .await
        .unwrap();
}

/// Streams on which the test speaks.
fn silent(feed: broadcast::Receiver<Bytes>) -> Response<ScriptBody> {
    let frames = futures::stream::unfold(feed, |mut feed| async move {
        let event = feed.recv().await.ok()?;
        Some((Ok(Frame::data(event)), feed))
    });
    // The head goes out with the first event.
    let first = futures::stream::iter([Ok(Frame::data(Bytes::from_static(b": open\n\n")))]);
    Response::builder()
        .header("content-type", "text/event-stream")
        .body(BodyExt::boxed_unsync(StreamBody::new(first.chain(frames))))
        .unwrap()
}

fn get(sidecar: &Sidecar, session: Option<&str>) -> Request<Full<Bytes>> {
    let mut request = Request::get(format!("http://{}/mcp", sidecar.mcp))
        .header("mcp-protocol-version", "2025-11-25");
    if let Some(session) = session {
        request = request.header("mcp-session-id", session);
    }
    request.body(Full::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quiet_streams_of_a_server_behind_http_stay_open() {
    let (feed, _) = broadcast::channel(16);
    let source = feed.clone();
    let script = Script::start(move |_| silent(source.subscribe())).await;
    let sidecar = in_front_of(&script).await;
    let call = open(&sidecar, "wait", false).await;
    let call_http2 = open(&sidecar, "wait", true).await;
    let general = opened(&sidecar, get(&sidecar, None), false).await;
    let hello = Bytes::from(
        "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{}}\n\n",
    );
    let say = async || assert!(feed.send(hello.clone()).is_ok());
    tokio::join!(
        stays_open("a call", call, say),
        stays_open("a call over HTTP/2", call_http2, say),
        stays_open("GET", general, say),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quiet_streams_of_a_process_stay_open() {
    let shim = Shim::start(rustix::process::getuid().as_raw(), &["python3", &script()]).await;
    let target = [
        "--socket",
        shim.socket.to_str().unwrap(),
        "--idle-timeout",
        "2s",
    ];
    let sidecar = Sidecar::serve(&target, |issuer| {
        Some(bundle(issuer, allow(json!(["*"])), limits()))
    })
    .await
    .ready()
    .await;
    let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25", "capabilities": {}}});
    let session = async || {
        let reply = sidecar.call(&hello).await;
        reply.headers["mcp-session-id"].to_str().unwrap().to_owned()
    };
    let (read, unread) = (session().await, session().await);
    let call = |session: String, tool: &'static str| {
        let (token, sidecar) = (sidecar.token("alice"), &sidecar);
        let message =
            json!({"jsonrpc": "2.0", "id": tool, "method": "tools/call", "params": {"name": tool}});
        async move {
            let headers = [
                ("mcp-session-id", session.as_str()),
                ("accept", "application/json"),
            ];
            sidecar
                .post(&token, &headers, message.to_string())
                .await
                .status
        }
    };
    let stream = opened(&sidecar, get(&sidecar, Some(&read)), false).await;
    stays_open("GET", stream, async || {
        assert_eq!(call(read.clone(), "notify").await, 200);
    })
    .await;
    // Without a stream, a session has ended long ago.
    assert_eq!(call(unread, "pid").await, 404);
}
