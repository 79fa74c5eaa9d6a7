//! How connections end, and how they do not.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::mpsc,
};

use crate::{
    call,
    common::{Got, Script, ScriptBody, Sidecar, allow, bundle, text, until},
    guarded, no_limits,
    wire::{PATIENCE, Raw, request},
};

/// The largest head (docs/architecture.md).
const MAX_HEAD: usize = 64 * 1024;
const EVENT: &str = "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{\"data\":\"one\"}}\n\n";

/// A sidecar in front of a server that streams what it is given.
async fn streaming() -> (Script, Sidecar, mpsc::Sender<Bytes>) {
    let (give, given) = mpsc::channel::<Bytes>(8);
    let given = std::sync::Mutex::new(Some(given));
    let script = Script::start(move |_: &Got| -> Response<ScriptBody> {
        let Some(mut given) = given.lock().unwrap().take() else {
            return Response::builder().status(500).body(text("")).unwrap();
        };
        let events = futures::stream::poll_fn(move |cx| given.poll_recv(cx));
        let events = events.map(|event| Ok(Frame::data(event)));
        let answer = Response::builder().header("content-type", "text/event-stream");
        answer.body(StreamBody::new(events).boxed_unsync()).unwrap()
    })
    .await;
    let upstream = format!("http://{}/mcp", script.address);
    let sidecar = Sidecar::serve(&["--upstream", &upstream], |issuer| {
        Some(bundle(issuer, allow(serde_json::json!(["*"])), no_limits()))
    })
    .await;
    (script, sidecar.ready().await, give)
}

fn post(sidecar: &Sidecar) -> Request<Full<Bytes>> {
    sidecar
        .request(&sidecar.token("alice"))
        .body(Full::from(call("x").to_string()))
        .unwrap()
}

/// A good call over HTTP/1.1.
fn good_call(bearer: &str, body: &str) -> Vec<u8> {
    let length = body.len().to_string();
    let headers = [
        ("host", "orders.shop.svc"),
        ("user-agent", "test"),
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        ("content-length", &length),
        ("authorization", bearer),
    ];
    request("POST /mcp HTTP/1.1", &headers, body.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_drains_with_goaway_and_streams_end_as_they_will() {
    let (_script, sidecar, give) = streaming().await;
    let stream = TcpStream::connect(sidecar.mcp).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(post(&sidecar)).await.unwrap();
    assert_eq!(
        (answer.version(), answer.status().as_u16()),
        (Version::HTTP_2, 200)
    );
    let pid = Pid::from_raw(sidecar.child.id().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::USR1).unwrap();
    // It shows by a request that is refused by the client itself.
    until("GOAWAY", async || {
        let other = Request::get(format!("http://{}/other", sidecar.mcp));
        let other = other.body(Full::default()).unwrap();
        sender.send_request(other).await.is_err()
    })
    .await;
    for _ in 0..2 {
        give.send(EVENT.into()).await.unwrap();
    }
    drop(give);
    let body = answer
        .into_body()
        .collect()
        .await
        .expect("the stream was cut")
        .to_bytes();
    assert_eq!(body, EVENT.repeat(2));
    let ended = tokio::time::timeout(PATIENCE, connection)
        .await
        .expect("it stays open");
    ended.unwrap().expect("it did not end in good order");
    until("drained", async || sidecar.admin("/drained").await.0 == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_leaves_the_connection_usable() {
    let (_script, sidecar) = guarded().await;
    let (bearer, body) = (
        format!("Bearer {}", sidecar.token("alice")),
        call("x").to_string(),
    );
    let head = |bearer: &str| -> Vec<u8> {
        let mut call = good_call(bearer, &body);
        call.truncate(call.len() - body.len());
        call
    };
    let with = |from: &str, to: &str| {
        let head = String::from_utf8(head(&bearer)).unwrap();
        assert!(head.contains(from));
        head.replacen(from, to, 1).into_bytes()
    };
    let refused = [
        (head("Bearer x"), 401),
        (with("/mcp", "/other"), 404),
        (with("orders", "others"), 403),
        (with("POST", "PUT"), 405),
        (with("application/json", "text/plain"), 415),
        (with("\r\n", "\r\nexpect: x\r\n"), 417),
        (
            with(
                "\r\n",
                &format!("\r\nx: {}\r\n", "y".repeat(MAX_HEAD - 250)),
            ),
            431,
        ),
    ];
    let mut raw = Raw::connect(sidecar.mcp).await;
    for (head, status) in refused {
        raw.send(head).await.unwrap();
        // The body in a packet of its own, as many clients send it.
        tokio::time::sleep(Duration::from_millis(50)).await;
        raw.send(&body).await.unwrap();
        let answer = raw.answer().await.expect("no answer");
        assert_eq!(answer.status, status);
        let said: Value = serde_json::from_slice(&answer.body).expect("no body");
        assert!(said["error"]["data"]["reason"].is_string(), "{said}");
        raw.send(good_call(&bearer, &body)).await.unwrap();
        let next = raw.answer().await;
        assert_eq!(next.map(|next| next.status), Some(200), "after {status}");
    }
    // Where two could see the end of a body in two places, what follows is not read.
    let mut doubtful = Raw::connect(sidecar.mcp).await;
    let doubt = with(
        &format!("content-length: {}", body.len()),
        "transfer-encoding: identity, chunked",
    );
    let chunk = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let both = [doubt, chunk.into_bytes(), good_call(&bearer, &body)].concat();
    doubtful.send(both).await.unwrap();
    assert_eq!(doubtful.answer().await.expect("no answer").status, 400);
    assert!(doubtful.answer().await.is_none());
    // Whoever asks before it sends is answered at once, and sends nothing.
    let asks = String::from_utf8(head("Bearer x")).unwrap().replacen(
        "\r\n",
        "\r\nexpect: 100-continue\r\n",
        1,
    );
    raw.send(asks).await.unwrap();
    assert_eq!(raw.answer().await.expect("no answer").status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_not_lost_to_what_is_still_sent() {
    let (_script, sidecar) = guarded().await;
    let head = format!(
        "POST /mcp HTTP/1.1\r\nhost: orders.shop.svc\r\ncontent-type: application/json\r\nauthorization: Bearer {}\r\ntransfer-encoding: chunked\r\n\r\n",
        sidecar.token("alice")
    );
    let (mut read, mut write) = TcpStream::connect(sidecar.mcp).await.unwrap().into_split();
    let chunk = [
        format!("{:x}\r\n", 1 << 20).as_bytes(),
        &vec![b'x'; 1 << 20],
        b"\r\n",
    ]
    .concat();
    let sending = tokio::spawn(async move {
        write.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..20 {
            if write.write_all(&chunk).await.is_err() {
                break;
            }
        }
        write
    });
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, read.read_to_end(&mut answer)).await;
    read.expect("the connection stays open")
        .expect("reset before the answer was read");
    assert!(
        answer.starts_with(b"HTTP/1.1 413 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    drop(sending);
}

/// Heads that hyper refuses by itself, and the status and reason they get.
fn unreadable_heads() -> Vec<(String, u16, &'static str)> {
    let with = |lines: &str| format!("POST /mcp HTTP/1.1\r\nhost: orders.shop.svc\r\n{lines}\r\n");
    let chunked = "transfer-encoding: chunked\r\n";
    let mut heads: Vec<_> = [
        with("no colon\r\n"),
        with("x: \0\r\n"),
        with("x y: z\r\n"),
        with("x: y\r\n folded: z\r\n"),
        with("content-length: x\r\n"),
        with("content-length: 1\r\ncontent-length: 2\r\n"),
        with("transfer-encoding: gzip\r\n"),
        with(chunked).replace("1.1", "1.0"),
        with("").replace("/mcp", "/\0"),
        with("").replace("POST", "P(ST"),
    ]
    .map(|head| (head, 400, "Malformed"))
    .to_vec();
    // hyper may have read more than the largest head before it looks.
    let large = "x".repeat(4 * MAX_HEAD);
    let large = [
        with(&"x: y\r\n".repeat(100)),
        with(&format!("x: {large}\r\n")),
        with("").replace("/mcp", &format!("/{large}")),
    ];
    heads.extend(large.map(|head| (head, 431, "TooLarge")));
    heads
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_cannot_be_read_is_told_why() {
    let (script, sidecar) = guarded().await;
    let (bearer, body) = (
        format!("Bearer {}", sidecar.token("alice")),
        call("x").to_string(),
    );
    let good = good_call(&bearer, &body);
    let heads = unreadable_heads();
    let mut goods = 0;
    for (head, status, reason) in &heads {
        for before in [0, 1, 3] {
            let mut raw = Raw::connect(sidecar.mcp).await;
            let bytes = [good.repeat(before), head.clone().into_bytes()].concat();
            let _ = raw.send(bytes).await; // It may have had enough before the end.
            for _ in 0..before {
                assert_eq!(raw.answer().await.expect("no answer").status, 200);
            }
            goods += before;
            let shown: String = head.chars().take(100).collect();
            let answer = raw.answer().await.expect("no answer");
            assert_eq!(answer.status, *status, "{shown:?} after {before}");
            assert!(answer.head.contains("connection: close"), "{answer:?}");
            let said: Value = serde_json::from_slice(&answer.body).expect("no body");
            assert_eq!(said["error"]["data"]["reason"], *reason, "{said}");
            assert_eq!(
                (&said["jsonrpc"], &said["id"]),
                (&"2.0".into(), &Value::Null)
            );
            assert!(raw.answer().await.is_none(), "more than one answer");
        }
    }
    assert_eq!(script.got.lock().unwrap().len(), goods);
    println!(
        "{} heads that cannot be read: all told why, alone and after good ones",
        heads.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_has_a_largest_size_wherever_it_comes() {
    let (_script, sidecar) = guarded().await;
    let (bearer, body) = (
        format!("Bearer {}", sidecar.token("alice")),
        call("x").to_string(),
    );
    let good = good_call(&bearer, &body);
    let sized = |size: usize| {
        let rest = good.len() - body.len() + "x: \r\n".len();
        let filler = format!("\r\nx: {}\r\n", "y".repeat(size - rest));
        let call = String::from_utf8(good.clone()).unwrap();
        call.replacen("\r\n", &filler, 1).into_bytes()
    };
    for (size, status) in [(MAX_HEAD - 64, 200), (MAX_HEAD + 64, 431)] {
        for before in [0, 1, 3] {
            let mut raw = Raw::connect(sidecar.mcp).await;
            let _ = raw.send([good.repeat(before), sized(size)].concat()).await;
            for _ in 0..before {
                assert_eq!(raw.answer().await.expect("no answer").status, 200);
            }
            let answer = raw.answer().await.expect("no answer");
            assert_eq!(answer.status, status, "{size} bytes after {before}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http_gets_no_answer() {
    let (_script, sidecar) = guarded().await;
    for (bytes, answers) in [
        (&b"INVALID CONNECTION PREFACE\r\n\r\n"[..], false),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", false),
        (b"SSH-2.0-OpenSSH_9.2\r\n", false),
        (b"\n", true),
        (b"GET /mcp HTTP/1.1\r\n\r\n", true),
        (b"\r\nGET /mcp HTTP/1.0\r\n\r\n", true),
        (b"G\x00T /mcp HTTP/1.1\r\n\r\n", true),
    ] {
        let mut stream = TcpStream::connect(sidecar.mcp).await.unwrap();
        for byte in bytes {
            stream.write_all(&[*byte]).await.unwrap_or_default(); // It may have had enough.
        }
        stream.shutdown().await.unwrap_or_default();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        let _ = read.expect("the connection stays open"); // A reset is an end as well.
        assert!(
            answers || answer.is_empty(),
            "{:?}: {:?}",
            String::from_utf8_lossy(bytes),
            String::from_utf8_lossy(&answer)
        );
    }
}

/// In real time, so by `make prove` only.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes more than a minute"]
async fn idle_and_stuck_connections_end_and_open_streams_do_not() {
    let minute = Duration::from_secs(60);
    let (_script, sidecar, give) = streaming().await;
    let mut idle = Raw::connect(sidecar.mcp).await;
    idle.send("GET /other HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(idle.answer().await.unwrap().status, 404);
    // Takes nothing: its buffers fill, and then the sidecar's.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stuck = socket.connect(sidecar.mcp).await.unwrap();
    let (authorization, body) = (
        format!("Bearer {}", sidecar.token("alice")),
        call("x").to_string(),
    );
    stuck
        .write_all(&good_call(&authorization, &body))
        .await
        .unwrap();
    let event = Bytes::from(EVENT.replace("one", &"y".repeat(1 << 16)));
    let start = Instant::now();
    let filled = async {
        while give.send(event.clone()).await.is_ok() && start.elapsed() < 3 * minute {}
        start.elapsed()
    };
    let idled = async {
        let end = tokio::time::timeout(2 * minute, idle.closed()).await;
        end.expect("an idle connection stays open");
        start.elapsed()
    };
    let (stuck_for, idle_for) = tokio::join!(filled, idled);
    println!(
        "a connection without a request ended after {idle_for:.0?}, one that takes nothing after {stuck_for:.0?}"
    );
    let early = Duration::from_secs(45);
    assert!(idle_for >= early && stuck_for >= early && stuck_for < 2 * minute);
    let (_script, sidecar, give) = streaming().await;
    let client = crate::common::open(post(&sidecar)).await;
    tokio::time::sleep(minute + minute / 6).await; // Longer than any idle time-out.
    give.send(EVENT.into()).await.unwrap();
    drop(give);
    let said = client.into_body().collect().await.unwrap().to_bytes();
    let said = String::from_utf8(said.to_vec()).unwrap();
    assert_eq!(said.replace(": keep-alive\n\n", ""), EVENT);
}
