//! Clients that are slow on purpose.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};

use crate::{
    call, guarded,
    meter::{self, Spent},
    wire::h2,
};

const CONNECTIONS: usize = 1_000;
/// After this time a connection that is still open counts as not cut. The
/// sidecar cuts at 10 s; the rest is for a machine that is busy.
const TOO_LATE: Duration = Duration::from_secs(20);

/// What a slow client says at once, and what it then says byte by byte.
struct Slow {
    name: &'static str,
    first: Vec<u8>,
    then: Vec<u8>,
}

fn kinds(token: &str) -> Vec<Slow> {
    let head = format!(
        "POST /mcp HTTP/1.1\r\nhost: orders.shop.svc\r\nuser-agent: slow\r\ncontent-type: application/json\r\naccept: application/json, text/event-stream\r\nauthorization: Bearer {token}\r\n"
    );
    let body = call(&"x".repeat(200)).to_string();
    let fields = h2::fields(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/mcp"),
        (":authority", "orders.shop.svc"),
    ]);
    let headers = h2::frame(h2::HEADERS, 0, 1, &fields);
    let one_field = h2::fields(&[("a", "b")]);
    let continuations = (0..10).flat_map(|_| h2::frame(h2::CONTINUATION, 0, 1, &one_field));
    vec![
        Slow {
            name: "silent",
            first: vec![],
            then: vec![],
        },
        Slow {
            name: "head",
            first: b"GET /mcp HTTP/1.1\r\nx: ".to_vec(),
            then: vec![b'x'; 100],
        },
        Slow {
            name: "head, all but its end",
            first: head.clone().into_bytes(),
            then: vec![b'x'; 100],
        },
        Slow {
            name: "body",
            first: format!("{head}content-length: {}\r\n\r\n", body.len()).into_bytes(),
            then: body.clone().into_bytes(),
        },
        Slow {
            name: "body in chunks",
            first: format!("{head}transfer-encoding: chunked\r\n\r\n1\r\n{{\r\n").into_bytes(),
            then: b"1\r\n \r\n".repeat(20),
        },
        Slow {
            name: "body that never comes",
            first: format!("{head}content-length: 4000000\r\n\r\n").into_bytes(),
            then: vec![],
        },
        Slow {
            name: "HTTP/2 preface",
            first: b"PRI * HTTP".to_vec(),
            then: b"/2.0\r\n\r\nSM\r".to_vec(),
        },
        Slow {
            name: "HTTP/2 and nothing",
            first: h2::preface(),
            then: vec![],
        },
        Slow {
            name: "HTTP/2 head",
            first: [h2::preface(), headers].concat(),
            then: continuations.collect(),
        },
    ]
}

/// Until it is cut: an answer that refuses, or the end.
async fn cut(address: SocketAddr, slow: &Slow) -> Option<Duration> {
    let start = Instant::now();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(&slow.first).await;
    let mut rest = slow.then.iter();
    let mut second = tokio::time::interval(Duration::from_secs(1));
    let mut received = Vec::new();
    while start.elapsed() < TOO_LATE {
        tokio::select! {
            read = stream.read_buf(&mut received) => {
                let is_refused = received.starts_with(b"HTTP/1.1 4");
                if is_refused || read.is_err() || read.is_ok_and(|count| count == 0) {
                    return Some(start.elapsed());
                }
            }
            _ = second.tick() => if let Some(byte) = rest.next() {
                let _ = stream.write_all(&[*byte]).await;
            }
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_cut_and_others_do_not_notice() {
    let (script, sidecar) = guarded().await;
    let (token, address) = (sidecar.token("alice"), sidecar.mcp);
    let good = async |mut until: watch::Receiver<bool>| {
        // At a steady pace, so that its own cost is small.
        let mut pace = tokio::time::interval(Duration::from_millis(5));
        let mut times = Vec::new();
        while !*until.borrow_and_update() {
            pace.tick().await;
            let start = Instant::now();
            let reply = sidecar.call(&call("good")).await;
            assert_eq!(reply.status, 200, "{reply:?}");
            times.push(start.elapsed());
        }
        times.sort();
        times[times.len() * 99 / 100]
    };
    let alone = {
        let (stop, until) = watch::channel(false);
        let timer = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            stop.send_replace(true);
        };
        tokio::join!(good(until), timer).0
    };
    let got = std::sync::Arc::clone(&script.got);
    let slow_ones = || {
        got.lock()
            .unwrap()
            .iter()
            .filter(|got| got.headers["user-agent"] == "slow")
            .count()
    };
    let (stop, until) = watch::channel(false);
    let attacked = async {
        let attack = meter::attack(&sidecar, slow_ones, move || async move {
            let kinds = kinds(&token);
            let all = (0..CONNECTIONS).map(|number| {
                let slow = &kinds[number % kinds.len()];
                async move { (slow.name, cut(address, slow).await) }
            });
            let cuts = join_all(all).await;
            let bytes = kinds
                .iter()
                .map(|slow| slow.first.len() + 10)
                .sum::<usize>()
                * CONNECTIONS
                / kinds.len();
            let spent = Spent {
                connections: CONNECTIONS as u64,
                bytes: bytes as u64,
            };
            (spent, cuts)
        })
        .await;
        stop.send_replace(true);
        attack
    };
    let ((cost, cuts), during) = tokio::join!(attacked, good(until));
    let open: Vec<_> = cuts
        .iter()
        .filter(|(_, cut)| cut.is_none())
        .map(|(name, _)| name)
        .collect();
    assert!(open.is_empty(), "still open after {TOO_LATE:?}: {open:?}");
    let latest = cuts
        .iter()
        .filter_map(|(name, cut)| Some((cut.as_ref()?, name)))
        .max()
        .unwrap();
    cost.report("slow loris");
    assert_eq!(cost.upstream, 0);
    println!(
        "row 25: {CONNECTIONS} slow connections of 9 kinds: all cut, the last after {:.1} s ({}); p99 of good traffic {alone:.1?} alone, {during:.1?} during",
        latest.0.as_secs_f64(),
        latest.1
    );
}
