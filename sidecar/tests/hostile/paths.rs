//! Odd paths and forged internal headers.

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::{
    call, cases, guarded,
    meter::{self, Spent},
    wire::{Answer, Raw, request},
};

/// Requests that are on their way at once on a connection.
const PIPELINED: usize = 50;

/// Pieces that have been read in two ways by some pair of programs.
const PIECES: &[&str] = &[
    "/",
    "//",
    "/./",
    "/../",
    "mcp",
    "MCP",
    "Mcp",
    "m%63p",
    "%6dcp",
    "%2f",
    "%2F",
    "%252f",
    "%5c",
    "\\",
    "%2e",
    "%2e%2e",
    "..;",
    ";",
    ";x=1",
    "%00",
    "%0a",
    "%0d%0a",
    "%09",
    "%20",
    "?",
    "?x=/mcp",
    "#",
    "%23",
    "%3f",
    "x",
    "admin",
    "metrics",
    "status",
    ".",
    "..",
    "*",
    "%c0%af",
    "%e0%80%af",
    "%u002f",
    "mc\u{70}",
    "http://127.0.0.1",
    "http://orders.shop.svc",
    "@",
    ":",
    "[",
    "]",
    "|",
    "~",
    "+",
    "mcp%00",
    "mcp;",
    "mcp.",
];

/// Headers by which some program would take a request for another one, or for
/// one that was let in already.
const FORGED: &[(&str, &str)] = &[
    ("toolward-peer", "eyJhbGciOiJub25lIn0.e30."),
    ("toolward-identity", "alice"),
    ("x-forwarded-user", "alice"),
    ("x-forwarded-for", "127.0.0.1"),
    ("x-forwarded-host", "localhost"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-prefix", "/mcp"),
    ("forwarded", "for=127.0.0.1;host=localhost"),
    ("x-real-ip", "127.0.0.1"),
    ("x-original-url", "/mcp"),
    ("x-rewrite-url", "/mcp"),
    ("x-http-method-override", "GET"),
    ("x-envoy-original-path", "/mcp"),
    ("x-envoy-internal", "true"),
    ("x-remote-user", "alice"),
    ("x-remote-group", "staff"),
    ("x-auth-request-user", "alice"),
    ("x-ms-client-principal-name", "alice"),
    ("proxy-authorization", "Bearer x"),
    ("authorization", "Bearer x"),
    ("authorization", "Basic YWxpY2U6"),
    ("cookie", "token=x"),
    ("connection", "authorization"),
    ("connection", "host, toolward-peer"),
];

/// An odd target; whether it is the endpoint's path all the same.
fn target(random: &mut StdRng) -> (String, bool) {
    if random.random_ratio(1, 10) {
        return (format!("/mcp?{}", random.random::<u16>()), true);
    }
    let count = random.random_range(1..7);
    let mut target: String = (0..count)
        .map(|_| *PIECES.choose(random).unwrap())
        .collect();
    if random.random_ratio(3, 4) && !target.starts_with("http") {
        target.insert(0, '/');
    }
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let path = ["http://127.0.0.1", "http://orders.shop.svc"]
        .iter()
        .find_map(|origin| path.strip_prefix(origin))
        .unwrap_or(path);
    let is_endpoint = path == "/mcp";
    (target, is_endpoint)
}

struct Sent {
    bytes: Vec<u8>,
    shown: String,
    /// Whether it may be answered as a good request is.
    may_pass: bool,
}

fn odd(random: &mut StdRng, token: Option<&str>) -> Sent {
    let (target, is_endpoint) = target(random);
    let body = call("x").to_string();
    let (length, bearer) = (
        body.len().to_string(),
        token.map(|token| format!("Bearer {token}")),
    );
    let mut headers = vec![
        ("host", "orders.shop.svc"),
        ("user-agent", "odd"),
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        ("content-length", &length),
    ];
    if let Some(bearer) = &bearer {
        headers.push(("authorization", bearer));
    } else {
        let count = random.random_range(0..4);
        headers.extend((0..count).map(|_| *FORGED.choose(random).unwrap()));
    }
    let shown = format!("{target} {:?}", &headers[5..]);
    Sent {
        bytes: request(
            &format!("POST {target} HTTP/1.1"),
            &headers,
            body.as_bytes(),
        ),
        shown,
        may_pass: bearer.is_some() && is_endpoint,
    }
}

/// Sends all, pipelined, and gives each its answer; a connection that ends is
/// opened anew after the request that ended it.
async fn exchange(
    address: std::net::SocketAddr,
    requests: Vec<Sent>,
    spent: &mut Spent,
) -> Vec<(Sent, Option<Answer>)> {
    let mut answered = Vec::with_capacity(requests.len());
    let mut left = std::collections::VecDeque::from(requests);
    while !left.is_empty() {
        let mut raw = Raw::connect(address).await;
        spent.connections += 1;
        let mut open = true;
        while open && !left.is_empty() {
            let count = left.len().min(PIPELINED);
            let batch: Vec<u8> = left
                .iter()
                .take(count)
                .flat_map(|sent| sent.bytes.clone())
                .collect();
            spent.bytes += batch.len() as u64;
            let _ = raw.send(&batch).await; // What was answered before it broke counts.
            for _ in 0..count {
                let answer = raw.answer().await;
                open = answer
                    .as_ref()
                    .is_some_and(|answer| !answer.head.contains("connection: close"));
                let is_first = answered
                    .last()
                    .is_none_or(|(_, last): &(Sent, Option<Answer>)| last.is_some());
                match (answer, left.pop_front()) {
                    (Some(answer), Some(sent)) => answered.push((sent, Some(answer))),
                    // Closed without an answer: by the request before, or by this one.
                    (None, Some(sent)) if is_first => left.push_front(sent),
                    (None, Some(sent)) => answered.push((sent, None)),
                    (_, None) => unreachable!("one answer for each request"),
                }
                if !open {
                    break;
                }
            }
        }
    }
    answered
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_paths_and_forged_headers_let_nobody_in() {
    let (script, sidecar) = guarded().await;
    let (token, address, count) = (sidecar.token("alice"), sidecar.mcp, cases());
    let got = std::sync::Arc::clone(&script.got);
    let (cost, answered) = meter::attack(
        &sidecar,
        || got.lock().unwrap().len(),
        move || async move {
            let mut random = StdRng::seed_from_u64(7);
            let requests = (0..count)
                .map(|case| odd(&mut random, (case % 2 == 0).then_some(token.as_str())))
                .collect();
            let mut spent = Spent::default();
            let answered = exchange(address, requests, &mut spent).await;
            (spent, answered)
        },
    )
    .await;
    let (mut allowed, mut refused) = (0, 0);
    for (sent, answer) in &answered {
        let status = answer.as_ref().map_or(0, |answer| answer.status);
        match (sent.may_pass, status) {
            (true, 200) => allowed += 1,
            (false, 0 | 400 | 401 | 403 | 404 | 414 | 431) => refused += 1,
            _ => panic!("{status}: {}", sent.shown),
        }
    }
    assert_eq!(answered.len(), count);
    assert!(
        allowed > count / 50,
        "the good ones among them are not tried"
    );
    // What reached the server is what was allowed, and nothing else.
    assert_eq!(cost.upstream, allowed);
    for got in script.got.lock().unwrap().iter() {
        for (name, _) in FORGED {
            assert!(!got.headers.contains_key(*name), "{name} passed");
        }
    }
    cost.report("odd paths");
    println!(
        "row 7: {count} odd paths: {refused} refused, {allowed} good ones allowed, 0 unauthenticated forwards"
    );
}
