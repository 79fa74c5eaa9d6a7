//! HTTP/2 floods. (h2spec is in `e2e/tests`.)

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::AsyncWriteExt,
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

use crate::{
    call, cases, guarded,
    meter::{self, Cost, Spent},
    wire::{PATIENCE, h2},
};

/// Growth of memory that any of these may cause at its peak.
const MAX_GROWTH: u64 = 64 << 20;
/// What a flood sends at most, where nobody stops it: 10 MiB, and more in `make prove`.
fn max_flood() -> u64 {
    cases() as u64 * 1024
}

/// An HTTP/2 connection of somebody who does not care.
struct Rude {
    write: OwnedWriteHalf,
    /// Ends with the connection; gives the reason of GOAWAY.
    read: JoinHandle<Option<u32>>,
    stream: u32,
    spent: Spent,
}

impl Rude {
    async fn connect(address: SocketAddr) -> Self {
        let (read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
        let preface = h2::preface();
        write.write_all(&preface).await.unwrap();
        Self {
            write,
            read: tokio::spawn(goaway(read)),
            stream: 1,
            spent: Spent {
                connections: 1,
                bytes: preface.len() as u64,
            },
        }
    }

    /// Whether it could be sent.
    async fn send(&mut self, bytes: &[u8]) -> bool {
        if self.read.is_finished() {
            return false;
        }
        let sent = tokio::time::timeout(PATIENCE, self.write.write_all(bytes)).await;
        self.spent.bytes += bytes.len() as u64;
        tokio::task::yield_now().await;
        sent.is_ok_and(|sent| sent.is_ok())
    }

    fn next_stream(&mut self) -> u32 {
        self.stream += 2;
        self.stream - 2
    }

    async fn end(self) -> Option<u32> {
        drop(self.write);
        tokio::time::timeout(PATIENCE, self.read)
            .await
            .expect("it is still open")
            .unwrap()
    }
}

/// Reads frames to the end of the connection.
async fn goaway(mut read: OwnedReadHalf) -> Option<u32> {
    let mut reason = None;
    while let Some(frame) = h2::next(&mut read).await {
        if frame.kind == h2::GOAWAY {
            reason = frame.number(4);
        }
    }
    reason
}

pub fn request(token: Option<&str>) -> Vec<u8> {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let mut fields = vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/mcp"),
        (":authority", "orders.shop.svc"),
        ("user-agent", "rude"),
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
    ];
    fields.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
    h2::fields(&fields)
}

/// How each stream is given up.
#[derive(Clone, Copy, Debug)]
enum Reset {
    /// At once: CVE-2023-44487.
    AtOnce,
    /// When the server has begun to work on it.
    Later,
    /// By an error that makes the server reset it: CVE-2025-8671.
    MadeByServer,
}

/// Opens and gives up `count` streams, on as many connections as that takes.
async fn reset(
    address: SocketAddr,
    how: Reset,
    token: Option<String>,
    count: usize,
) -> (Spent, u64) {
    const AT_ONCE: usize = 50;
    let fields = request(token.as_deref());
    let body = call("x").to_string();
    let (mut spent, mut cut, mut done) = (Spent::default(), 0, 0);
    while done < count {
        let mut rude = Rude::connect(address).await;
        let mut is_open = true;
        while is_open && done < count {
            let streams: Vec<u32> = (0..AT_ONCE).map(|_| rude.next_stream()).collect();
            let give_up = |stream| match how {
                Reset::AtOnce | Reset::Later => {
                    h2::frame(h2::RST_STREAM, 0, stream, &8_u32.to_be_bytes())
                }
                Reset::MadeByServer => h2::frame(h2::WINDOW_UPDATE, 0, stream, &[0; 4]),
            };
            let open = |stream| {
                let headers = h2::frame(h2::HEADERS, h2::END_HEADERS, stream, &fields);
                let data = h2::frame(h2::DATA, h2::END_STREAM, stream, body.as_bytes());
                match how {
                    Reset::Later => headers,
                    Reset::AtOnce | Reset::MadeByServer => [headers, data].concat(),
                }
            };
            is_open = match how {
                Reset::Later => {
                    let opened: Vec<u8> = streams.iter().copied().flat_map(open).collect();
                    let given_up: Vec<u8> = streams.iter().copied().flat_map(give_up).collect();
                    rude.send(&opened).await && {
                        tokio::time::sleep(Duration::from_millis(1)).await; // It is begun, or it is not: both are tried.
                        rude.send(&given_up).await
                    }
                }
                _ => {
                    let both = |stream| [open(stream), give_up(stream)].concat();
                    let bytes: Vec<u8> = streams.iter().copied().flat_map(both).collect();
                    rude.send(&bytes).await
                }
            };
            done += AT_ONCE;
        }
        spent.connections += 1;
        spent.bytes += rude.spent.bytes;
        cut += u64::from(rude.end().await.is_some() || !is_open);
    }
    (spent, cut)
}

fn check(cost: &Cost, what: &str) {
    cost.report(what);
    assert!(
        cost.grown < MAX_GROWTH,
        "{what}: memory grew by {} MiB",
        cost.grown >> 20
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_end_the_connection_and_cost_little() {
    let (script, sidecar) = guarded().await;
    let (address, count) = (sidecar.mcp, cases());
    let rude = || {
        script
            .got
            .lock()
            .unwrap()
            .iter()
            .filter(|got| got.headers["user-agent"] == "rude")
            .count()
    };
    for how in [Reset::AtOnce, Reset::Later, Reset::MadeByServer] {
        for token in [None, Some(sidecar.token("alice"))] {
            let who = if token.is_some() {
                "a caller"
            } else {
                "nobody"
            };
            let (cost, cut) =
                meter::attack(&sidecar, rude, move || reset(address, how, token, count)).await;
            let what = format!("{count} resets ({how:?}) of {who}");
            check(&cost, &what);
            assert!(cut > 0, "{what}: no connection was ended");
            assert!(
                cost.upstream <= count,
                "{what}: more requests than were sent"
            );
            println!(
                "row 26: {what}: {cut} of {} connections ended by the sidecar",
                cost.spent.connections
            );
        }
    }
    assert_eq!(sidecar.call(&call("after")).await.status, 200);
}

/// Sends the same frames until it is stopped; gives how much was sent.
async fn flood(
    address: SocketAddr,
    first: Vec<u8>,
    frames: Vec<u8>,
) -> (Spent, (bool, Option<u32>)) {
    let mut rude = Rude::connect(address).await;
    let mut is_open = rude.send(&first).await;
    // A piece of a good size, whatever the frame's.
    let piece = frames.repeat((64 * 1024 / frames.len()).max(1));
    let end = Instant::now() + PATIENCE;
    while is_open && rude.spent.bytes < max_flood() && Instant::now() < end {
        is_open = rude.send(&piece).await;
    }
    let spent = rude.spent;
    (spent, (!is_open, rude.end().await))
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_are_stopped_or_cost_no_memory() {
    let (script, sidecar) = guarded().await;
    let address = sidecar.mcp;
    let good = request(Some(&sidecar.token("alice")));
    let many: Vec<(String, String)> = (0..400)
        .map(|n| (format!("x-{n}"), "y".repeat(24)))
        .collect();
    let many: Vec<_> = many
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let open = h2::frame(h2::HEADERS, 0, 1, &good);
    let get = h2::fields(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/mcp"),
        (":authority", "orders.shop.svc"),
    ]);
    // One large field in the table, and then references to it (RFC 7541 §6.1).
    let mut bomb = get.clone();
    bomb.push(0x40);
    h2::string(&mut bomb, "x");
    h2::string(&mut bomb, &"y".repeat(3900));
    bomb.extend(vec![0x80 | 62; 12_000]);
    let stopped = true;
    let cases = [
        (
            "CONTINUATION with fields",
            open.clone(),
            h2::frame(h2::CONTINUATION, 0, 1, &h2::fields(&many)),
            stopped,
        ),
        (
            "CONTINUATION, empty",
            open,
            h2::frame(h2::CONTINUATION, 0, 1, &[]),
            stopped,
        ),
        (
            "a bomb of references",
            vec![],
            h2::frame(h2::HEADERS, h2::END_HEADERS | h2::END_STREAM, 1, &bomb),
            stopped,
        ),
        (
            "DATA, empty",
            h2::frame(h2::HEADERS, h2::END_HEADERS, 1, &good),
            h2::frame(h2::DATA, 0, 1, &[]),
            !stopped,
        ),
        ("PING", vec![], h2::frame(h2::PING, 0, 0, &[0; 8]), !stopped),
        (
            "SETTINGS",
            vec![],
            h2::frame(h2::SETTINGS, 0, 0, &[]),
            !stopped,
        ),
        (
            "PRIORITY",
            vec![],
            h2::frame(h2::PRIORITY, 0, 1, &[0, 0, 0, 3, 16]),
            !stopped,
        ),
        (
            "WINDOW_UPDATE",
            vec![],
            h2::frame(h2::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()),
            !stopped,
        ),
        (
            "unknown frames",
            vec![],
            h2::frame(0xfa, 0, 0, &[0; 100]),
            !stopped,
        ),
    ];
    for (what, first, frames, must_be_stopped) in cases {
        let (cost, (stopped, reason)) = meter::attack(
            &sidecar,
            || script.got.lock().unwrap().len(),
            move || flood(address, first, frames),
        )
        .await;
        check(&cost, what);
        println!(
            "row 26: flood of {what}: {} after {} KiB, GOAWAY {reason:?}",
            if stopped { "ended" } else { "borne" },
            cost.spent.bytes / 1024
        );
        assert!(stopped || !must_be_stopped, "{what}: was not stopped");
        assert_eq!(cost.upstream, 0, "{what}");
    }
    assert_eq!(sidecar.call(&call("after")).await.status, 200);
}
