//! Bodies that cost a careless reader much. What each takes of
//! CPU and memory is printed, and stays in proportion.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use sidecar::front::MAX_BODY;

use crate::{
    common::{Reply, Sidecar, send},
    guarded,
    meter::{cpu, memory},
};

struct Hostile {
    what: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: Vec<u8>,
    /// The status, and a part of the message where it is refused.
    answer: (u16, &'static str),
}

fn hostile(what: &'static str, body: impl Into<Vec<u8>>, why: &'static str) -> Hostile {
    Hostile {
        what,
        headers: &[],
        body: body.into(),
        answer: (if why.is_empty() { 200 } else { 400 }, why),
    }
}

/// A call whose arguments are `open`, as many parts as fit, and `close`.
fn call(open: &str, parts: impl Iterator<Item = String>, close: &str) -> String {
    let head = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_order","arguments":"#;
    let mut body = format!("{head}{open}");
    for part in parts {
        if body.len() + part.len() + close.len() + 2 > MAX_BODY {
            break;
        }
        body += &part;
    }
    body + close + "}}"
}

/// Members from `first` on, with commas between them.
fn members(names: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
    names.enumerate().map(|(index, name)| {
        let comma = if index == 0 { "" } else { "," };
        format!("{comma}\"{name}\":0")
    })
}

fn numbered() -> impl Iterator<Item = String> {
    (0..).map(|index: u32| index.to_string())
}

/// Names that have one hash in hash functions without a secret, such as Java's.
fn colliding() -> impl Iterator<Item = String> {
    (0..4096_u32).map(|index| {
        let halves = (0..12).map(|bit| if index >> bit & 1 == 0 { "Aa" } else { "BB" });
        halves.collect()
    })
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut gzip = Command::new("gzip")
        .arg("-9")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    gzip.stdin.take().unwrap().write_all(body).unwrap();
    gzip.wait_with_output().unwrap().stdout
}

fn bodies() -> Vec<Hostile> {
    let nothing = || std::iter::empty::<String>();
    let forever = |part: &'static str| std::iter::repeat(part.to_owned());
    let objects = |count: usize| {
        let names: String = members(numbered().take(count)).collect();
        std::iter::once(format!("{{{names}}}")).chain(std::iter::repeat(format!(",{{{names}}}")))
    };
    let deep = ["[".repeat(100_000), "]".repeat(100_000)];
    let bomb = gzip(&vec![b' '; MAX_BODY]);
    assert!(bomb.len() < MAX_BODY / 900, "no bomb: {} bytes", bomb.len());
    vec![
        Hostile {
            what: "gzip, 1000:1",
            headers: &[("content-encoding", "gzip")],
            body: bomb.clone(),
            answer: (415, "content encodings"),
        },
        hostile("gzip that does not say so", bomb, "UTF-8"),
        hostile("brackets", "[".repeat(MAX_BODY), "nested"),
        hostile(
            "depth 100,000",
            call(&deep[0], nothing(), &deep[1]),
            "nested",
        ),
        hostile(
            "1e999999",
            call("1e999999", nothing(), ""),
            "range of a double",
        ),
        hostile("digits", call("", forever("9"), ""), "send it as a string"),
        hostile(
            "100,000 members",
            call("{", members(numbered().take(100_000)), "}"),
            "4096 members",
        ),
        hostile(
            "names with one hash",
            call("{", members(colliding()), "}"),
            "",
        ),
        hostile(
            "one of them twice",
            call(
                "{",
                members(colliding().skip(1).chain(colliding().nth(1))),
                "}",
            ),
            "stands twice",
        ),
        hostile("objects of 16", call("[", objects(16), "]"), ""),
        hostile("objects of 4096", call("[", objects(4096), "]"), ""),
        hostile("escapes", call("\"", forever(r"\ud83d\ude00"), "\""), ""),
        hostile(
            "half pairs",
            call("\"", forever(r"\ud83d"), "\""),
            "surrogate",
        ),
        hostile(
            "numbers",
            call("[0", forever(",1.2345678901234567e-300"), "]"),
            "",
        ),
        hostile("empty messages", call("[{}", forever(",{}"), "]"), ""),
        hostile(
            "an empty batch of much",
            format!("[{}]", " ".repeat(MAX_BODY - 2)),
            "1 to 100",
        ),
        hostile(
            "many in a batch",
            format!("[{}0]", "0,".repeat(MAX_BODY / 2 - 2)),
            "1 to 100",
        ),
        hostile("white space", " ".repeat(MAX_BODY), "JSON"),
    ]
}

impl Hostile {
    async fn send(&self, sidecar: &Sidecar) -> Reply {
        let mut request = Request::post(format!("http://{}/mcp", sidecar.mcp))
            .header("content-type", "application/json")
            .header("user-agent", "bombs")
            .header("accept", "application/json, text/event-stream")
            .header(
                "authorization",
                format!("Bearer {}", sidecar.token("alice")),
            );
        for (name, value) in self.headers {
            request = request.header(*name, *value);
        }
        let body = Full::new(Bytes::from(self.body.clone()));
        send(request.body(body).unwrap()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_bodies_cost_in_proportion() {
    let (script, sidecar) = guarded().await;
    let pid = sidecar.child.id();
    let idle = memory(pid, "VmRSS:");
    let (mut refused, mut read, mut count) = (Duration::ZERO, Duration::ZERO, 0);
    for hostile in bodies() {
        let (status, why) = hostile.answer;
        let (seen, before) = (script.got.lock().unwrap().len(), cpu(pid));
        let reply = hostile.send(&sidecar).await;
        let spent = cpu(pid) - before;
        let slowest = if status >= 400 {
            &mut refused
        } else {
            &mut read
        };
        (*slowest, count) = (spent.max(*slowest), count + 1);
        println!(
            "{:>6.1} ms of CPU, {:>5.1} MiB above idle so far, {}: {:>7} bytes of {}",
            spent.as_secs_f64() * 1e3,
            above(idle, pid) / f64::from(1 << 20),
            reply.status,
            hostile.body.len(),
            hostile.what
        );
        let said = String::from_utf8_lossy(&reply.body);
        let said = said.chars().take(500).collect::<String>();
        assert_eq!(reply.status, status, "{}: {said}", hostile.what);
        assert!(said.contains(why), "{}: {said}", hostile.what);
        let got = script.got.lock().unwrap();
        if status == 200 {
            assert!(
                got.last().unwrap().body == hostile.body,
                "{} was changed",
                hostile.what
            );
        } else {
            assert_eq!(reply.json()["error"]["data"]["reason"], "Malformed");
            assert_eq!(got.len(), seen, "{} reached the server", hostile.what);
        }
    }
    let bodies = above(idle, pid) / MAX_BODY as f64;
    let [refused_ms, read_ms] = [refused, read].map(|spent| spent.as_secs_f64() * 1e3);
    println!(
        "row 27: {count} hostile bodies: at most {refused_ms:.1} ms of CPU to refuse one, {read_ms:.1} ms to read and forward one, and memory of {bodies:.1} bodies of the largest size",
    );
    assert!(bodies <= 4.0, "{bodies} bodies");
    // Whatever the machine: nothing here is worse than linear.
    let slowest = refused.max(read);
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

/// The peak of memory above what it was, in bytes.
fn above(idle: u64, pid: u32) -> f64 {
    memory(pid, "VmHWM:").saturating_sub(idle) as f64
}
