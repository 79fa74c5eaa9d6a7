//! The limits of the front, as docs/architecture.md tells them.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read},
    net::{SocketAddr, TcpStream as Blocking},
};

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use crate::{
    call,
    common::until,
    guarded, http2,
    meter::memory,
    wire::{PATIENCE, Raw, h2},
};

const MAX_CONNECTIONS: usize = 10_000;
const MAX_REQUESTS: usize = 10_000;
const MAX_STREAMS: usize = 100;
const MAX_ADMIN: usize = 256;
const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 7;

fn connect(address: SocketAddr, count: usize) -> Vec<Blocking> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let connect = |_| {
        let stream = Blocking::connect(address).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    };
    (0..count).map(connect).collect()
}

/// Whether the other side has ended it.
fn is_closed(mut stream: &Blocking) -> bool {
    let read = stream.read(&mut [0]);
    !read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_waits_until_another_ends() {
    let (_script, sidecar) = guarded().await;
    let (address, pid) = (sidecar.mcp, sidecar.child.id());
    let before = memory(pid, "VmRSS:");
    let others = tokio::task::spawn_blocking(move || connect(address, MAX_CONNECTIONS));
    let others = others.await.unwrap();
    let mut raw = Raw::connect(address).await;
    raw.send("GET /other HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(raw.answer().await.expect("no answer").status, 404);
    let closed = others.iter().filter(|other| is_closed(other)).count();
    assert!(closed > 0, "it did not wait");
    let grown = memory(pid, "VmHWM:").saturating_sub(before);
    println!(
        "row 24: {MAX_CONNECTIONS} silent connections: {} KiB each; one more was served when the first had been cut",
        grown / 1024 / MAX_CONNECTIONS as u64
    );
    drop(others);
    assert_eq!(sidecar.call(&call("after")).await.status, 200);
}

/// Opens streams whose bodies do not come.
async fn hold(address: SocketAddr, streams: usize, fields: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let heads = (0..streams).flat_map(|number| {
        let id = u32::try_from(2 * number + 1).unwrap();
        h2::frame(h2::HEADERS, h2::END_HEADERS, id, fields)
    });
    let bytes = h2::preface().into_iter().chain(heads);
    stream.write_all(&bytes.collect::<Vec<_>>()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_too_many_gets_503() {
    let (script, sidecar) = guarded().await;
    let pid = sidecar.child.id();
    let before = memory(pid, "VmRSS:");
    let fields = http2::request(Some(&sidecar.token("alice")));
    let (mut held, mut refused) = (VecDeque::new(), None);
    // Each stream holds its place for 10 s: on a busy machine it takes more of them.
    until("503", async || {
        for _ in 0..20 {
            held.push_back(hold(sidecar.mcp, MAX_STREAMS, &fields).await);
        }
        let old = held.len().saturating_sub(2 * MAX_REQUESTS / MAX_STREAMS);
        held.drain(..old);
        let reply = sidecar.call(&call("one more")).await;
        let is_refused = reply.status == 503;
        refused = is_refused.then_some(reply);
        is_refused
    })
    .await;
    assert!(held.len() >= MAX_REQUESTS / MAX_STREAMS, "too early");
    let refused = refused.unwrap().json();
    assert_eq!(refused["error"]["data"]["reason"], "Overloaded");
    let grown = memory(pid, "VmHWM:").saturating_sub(before);
    println!(
        "row 24: {MAX_REQUESTS} requests whose bodies do not come: {} KiB each; one more gets 503",
        grown / 1024 / MAX_REQUESTS as u64
    );
    drop(held);
    until("their places are free", async || {
        sidecar.call(&call("after")).await.status == 200
    })
    .await;
    let got = script.got.lock().unwrap();
    assert!(got.iter().all(|got| got.headers["user-agent"] == "test"));
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_says_its_limits_and_keeps_to_them() {
    let (_script, sidecar) = guarded().await;
    let fields = http2::request(Some(&sidecar.token("alice")));
    let mut stream = hold(sidecar.mcp, MAX_STREAMS + 1, &fields).await;
    let first = timeout(PATIENCE, h2::next(&mut stream)).await.unwrap();
    let first = first.expect("no settings");
    assert_eq!(first.kind, h2::SETTINGS);
    let settings = first.payload.chunks(6).map(|setting| {
        let value = setting[2..].try_into().unwrap();
        (setting[1], u32::from_be_bytes(value))
    });
    let settings: std::collections::BTreeMap<u8, u32> = settings.collect();
    // RFC 9113 §6.5.2: streams, window, frame, header list.
    for (setting, value) in [(3, 100), (4, 128 << 10), (5, 16 << 10), (6, 64 << 10)] {
        assert_eq!(settings.get(&setting), Some(&value), "setting {setting}");
    }
    let last = u32::try_from(2 * MAX_STREAMS + 1).unwrap();
    assert_eq!(reset(&mut stream).await, (last, Some(REFUSED_STREAM)));

    let mut stream = TcpStream::connect(sidecar.mcp).await.unwrap();
    let large = h2::fields(&[("x", &"y".repeat(70_000))]);
    let frames = large.chunks(16_000).enumerate().map(|(at, part)| {
        let is_last = (at + 1) * 16_000 >= large.len();
        let flags = if is_last { h2::END_HEADERS } else { 0 };
        h2::frame(h2::CONTINUATION, flags, 1, part)
    });
    let head = h2::frame(h2::HEADERS, 0, 1, &fields);
    let head = frames.fold([h2::preface(), head].concat(), |all, one| {
        [all, one].concat()
    });
    stream.write_all(&head).await.unwrap();
    assert_eq!(reset(&mut stream).await, (1, Some(PROTOCOL_ERROR)));
}

/// The next stream that is reset, and why.
async fn reset(stream: &mut TcpStream) -> (u32, Option<u32>) {
    let reset = async {
        loop {
            let frame = h2::next(stream).await.expect("the connection ended");
            if frame.kind == h2::RST_STREAM {
                return (frame.stream, frame.number(0));
            }
        }
    };
    timeout(PATIENCE, reset).await.expect("nothing was refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_has_places_for_some_and_not_for_long() {
    let (_script, sidecar) = guarded().await;
    let address = sidecar.admin;
    let healthz = async || {
        let mut raw = Raw::connect(address).await;
        let _ = raw.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        raw.answer().await.map(|answer| answer.status)
    };
    let mut refused = false;
    // The places are taken for 2 s each: on a busy machine not all at one time.
    for _ in 0..20 {
        let held = tokio::task::spawn_blocking(move || connect(address, MAX_ADMIN));
        let held = held.await.unwrap();
        refused = healthz().await.is_none();
        drop(held);
        if refused {
            break;
        }
    }
    assert!(refused, "there is always one more place");
    until("a place is free", async || healthz().await == Some(200)).await;
}
