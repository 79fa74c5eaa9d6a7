//! Tokens as canaries: of many, no piece is found anywhere but with their owner
//! and in the sidecar.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::laptop::{Running, free_port};
use e2e::mcp::initialize;
use e2e::sh::command;
use e2e::wait_for;
use futures::{StreamExt, TryStreamExt, stream};
use reqwest::Response;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::audit;
use crate::lab::{Config, Guarded, Lab, Message, access_token, call, request};
use crate::tee::Tee;

/// How many calls are made; `TOOLWARD_CANARIES` names another number.
const CALLS: usize = 2000;
/// How many calls each token is used for.
const EACH: usize = 4;
/// How many are made at once.
const AT_ONCE: usize = 8;
/// How many kinds of calls there are; the last one is of those that are broken.
const KINDS: usize = 20;
/// Of how many calls one meets a server that hangs up.
const HANGS_UP: usize = 50;

const RULES: &str = r#"
- name: reads
  effect: Allow
  from: [{issuer: acme, groups: [staff], scopes: ["orders:read"]}]
  tools: [echo, get-sum]
- name: writes
  effect: Allow
  from: [{issuer: acme, groups: [staff], scopes: ["orders:write"]}]
  tools: [get-structured-content]
"#;

/// Bytes of a piece: each token is cut into such pieces, and any of them that is
/// found gives it away, so nothing twice as long can pass unseen.
const PIECE: usize = 12;

/// Pieces of tokens.
struct Canaries(HashSet<[u8; PIECE]>);

impl Canaries {
    fn new<'t>(tokens: impl IntoIterator<Item = &'t String>) -> Self {
        // Header, claims and signature: none of them may be found by itself.
        let parts = tokens.into_iter().flat_map(|token| token.split('.'));
        let pieces = parts.flat_map(|part| part.as_bytes().chunks_exact(PIECE));
        Self(pieces.filter_map(|piece| piece.try_into().ok()).collect())
    }

    /// A place where one is, with some of what is around it.
    fn found(&self, text: &[u8]) -> Option<String> {
        let is_piece = |window: &[u8]| {
            let window: Result<&[u8; PIECE], _> = window.try_into();
            window.is_ok_and(|window| self.0.contains(window))
        };
        let at = text.windows(PIECE).position(is_piece)?;
        let around = &text[at.saturating_sub(100)..text.len().min(at + 200)];
        Some(String::from_utf8_lossy(around).into_owned())
    }

    fn none_in(&self, place: &str, text: &[u8]) -> Result<()> {
        match self.found(text) {
            None => Ok(()),
            Some(around) => anyhow::bail!("a token is in {place}: …{around}…"),
        }
    }
}

/// Everything that the sidecar answered.
#[derive(Default)]
struct Answers(Mutex<Vec<u8>>);

impl Answers {
    fn add(&self, text: &str) -> Result<()> {
        let mut all = self.0.lock().ok().context("a test has panicked")?;
        all.extend_from_slice(text.as_bytes());
        Ok(())
    }

    async fn keep(&self, answer: Response) -> Result<(u16, String)> {
        let status = answer.status().as_u16();
        let headers = format!("{:?}\n", answer.headers());
        let body = answer.text().await?;
        self.add(&headers)?;
        self.add(&body)?;
        Ok((status, body))
    }
}

/// What all calls share.
struct Flight {
    guarded: Guarded,
    answers: Answers,
    /// Of the same user and agent as all tokens.
    session: String,
    client: reqwest::Client,
}

/// All calls, and all places.
pub async fn nowhere() -> Result<()> {
    let calls = match std::env::var("TOOLWARD_CANARIES") {
        Ok(number) => number.parse::<usize>().context("TOOLWARD_CANARIES")?,
        Err(_) => CALLS,
    };
    let lab = Lab::new()?;
    let port = free_port()?;
    let [node, script] = lab.reference_server();
    let mut server = command(node, &[&script, "streamableHttp"]);
    let _server = Running::start(server.env("PORT", port.to_string()))?;
    let upstream = format!("http://127.0.0.1:{port}/mcp");
    wait_for("the reference server", Duration::from_secs(120), || async {
        reqwest::get(&upstream).await.map(drop).context("not yet")
    })
    .await?;
    let tee = Tee::start(port).await?;
    let provider = lab.provider("RS256", &json!({"alice": ["staff"]}))?;
    let authentication = format!(
        "audience: AUDIENCE\nissuers: [{{name: acme, issuer: \"{}\"}}]",
        provider.issuer
    );
    let config = Config::new(&authentication, RULES)?;
    let upstream = format!("http://{}/mcp", tee.address);
    let guarded = lab
        .guarded_with(&config, &["--upstream", &upstream])
        .await?;
    let grant = async |resource: &str, count: usize| {
        let scope = "orders:read";
        let grants = lab.grants(&provider, "alice", scope, Some(resource), count);
        grants
            .await?
            .iter()
            .map(access_token)
            .collect::<Result<Vec<_>>>()
    };
    let tokens = grant(&guarded.url, calls.div_ceil(EACH)).await?;
    let strangers = grant("https://other.example.com/mcp", calls.div_ceil(100)).await?;
    let canaries = Canaries::new(tokens.iter().chain(&strangers));
    let flight = Flight::new(guarded, tokens.first().context("no token")?).await?;
    control(&canaries, &tee, &tokens[0]).await?;

    let one = |number: usize| {
        let stranger = &strangers[number % strangers.len()];
        let token = &tokens[number / EACH];
        let flight = &flight;
        async move {
            let sent = flight.one(number, token, stranger).await;
            sent.with_context(|| format!("call {number}"))
        }
    };
    let all = stream::iter(0..calls).map(one).buffer_unordered(AT_ONCE);
    let statuses: Vec<u16> = all.try_collect().await?;
    tee.hang_up(true);
    let failing = stream::iter(0..calls.div_ceil(HANGS_UP));
    let failing = failing.then(|number| flight.lost(&tokens[number % tokens.len()]));
    let lost: Vec<u16> = failing.try_collect().await?;
    tee.hang_up(false);

    let passed = statuses.iter().filter(|status| **status == 200).count();
    eprintln!(
        "canaries: {} tokens, {} calls, {passed} of them answered 200",
        tokens.len() + strangers.len(),
        statuses.len() + lost.len()
    );
    ensure!(passed > calls / 2, "only {passed} of {calls} passed");
    let decided = (0..calls).filter(|number| is_decided(*number)).count() + lost.len();
    search(&canaries, &flight, &tee, decided).await
}

/// That a token would be found, at the server and cut out of a text.
async fn control(canaries: &Canaries, tee: &Tee, token: &str) -> Result<()> {
    canaries.none_in("what the server received", &tee.received())?;
    let signature = token.rsplit('.').next().context("no signature")?;
    let cut = format!("before {} after", &signature[5..5 + 2 * PIECE]);
    ensure!(canaries.found(cut.as_bytes()).is_some(), "not found: {cut}");
    let apart = Tee::start(tee.address.port()).await?;
    let url = format!("http://{}/mcp", apart.address);
    apart.hang_up(true);
    let sent = e2e::post(&url, Some(token), &json!({})).await;
    ensure!(sent.is_err(), "it should hang up");
    ensure!(
        canaries.found(&apart.received()).is_some(),
        "what a server receives is not kept"
    );
    Ok(())
}

/// Whether a call gets as far as to a decision: not where its head cannot be read,
/// or names another path.
fn is_decided(number: usize) -> bool {
    number % KINDS < KINDS - 1 || (number / KINDS).is_multiple_of(4)
}

/// Looks everywhere.
async fn search(canaries: &Canaries, flight: &Flight, tee: &Tee, decided: usize) -> Result<()> {
    let Flight {
        guarded, answers, ..
    } = flight;
    wait_for("all audit records", Duration::from_secs(60), || async {
        let records = audit::records(guarded)?.len();
        ensure!(records >= decided, "{records} of {decided}");
        Ok(())
    })
    .await?;
    let received = tee.received();
    let called = String::from_utf8_lossy(&received);
    let called = called.matches(r#""method":"tools/call""#).count();
    ensure!(
        called > decided / 4,
        "the server received {called} of {decided}"
    );
    canaries.none_in("what the server received", &received)?;
    for (place, lines) in [
        ("standard output", &guarded.running.stdout),
        ("standard error", &guarded.running.stderr),
    ] {
        let text = lines.all().join("\n");
        ensure!(!text.is_empty(), "{place} is empty");
        canaries.none_in(place, text.as_bytes())?;
    }
    for path in ["/metrics", "/status"] {
        let text = guarded.admin(path).await?;
        ensure!(!text.is_empty(), "{path} is empty");
        canaries.none_in(path, text.as_bytes())?;
    }
    let answers = answers.0.lock().ok().context("a test has panicked")?;
    canaries.none_in("an answer", &answers)
}

impl Flight {
    async fn new(guarded: Guarded, token: &str) -> Result<Self> {
        let answer = guarded
            .endpoint
            .post(Some(token), &[], &initialize())
            .await?;
        let session = answer
            .headers()
            .get("mcp-session-id")
            .context("no session")?;
        let session = session.to_str()?.to_owned();
        let flight = Self {
            guarded,
            answers: Answers::default(),
            session,
            client: reqwest::Client::new(),
        };
        flight.answers.keep(answer).await?;
        Ok(flight)
    }

    /// One call, each of another kind than the last; its status.
    async fn one(&self, number: usize, token: &str, stranger: &str) -> Result<u16> {
        let echo = || call("echo", &json!({"message": format!("number {number}")}));
        let sum = || call("get-sum", &json!({"a": number, "b": 1}));
        let bearer = |token: &str| [("Authorization", format!("Bearer {token}"))];
        let (expected, answer) = match number % KINDS {
            0 => (
                200,
                self.post(&bearer(token), &request("tools/list", json!({})))
                    .await?,
            ),
            1..=5 => (200, self.post(&bearer(token), &echo()).await?),
            6..=8 => (200, self.in_session(&self.session, number, token).await?),
            9 => (200, self.everywhere(token, &sum()).await?),
            10 => (200, self.query(Some(token), token, &sum()).await?),
            11 => (401, self.query(None, token, &sum()).await?),
            12 => (
                400,
                self.post(&bearer(token), &call("get-env", &json!({})))
                    .await?,
            ),
            13 => {
                let message = call("get-structured-content", &json!({"location": "Chicago"}));
                (403, self.post(&bearer(token), &message).await?)
            }
            14 => (
                401,
                self.post(&bearer(&format!("{token}A")), &echo()).await?,
            ),
            15 => (401, self.post(&bearer(stranger), &echo()).await?),
            16 => {
                let twice = [bearer(token), bearer(stranger)].concat();
                (401, self.post(&twice, &echo()).await?)
            }
            17 => (404, self.in_session(token, number, token).await?),
            18 => {
                let foreign = [bearer(token), [("Host", "foreign.example.com".to_owned())]];
                (403, self.post(&foreign.concat(), &echo()).await?)
            }
            _ => return self.broken(number, token).await,
        };
        let (status, body) = self.answers.keep(answer).await?;
        let is_refused = body.contains(r#""error":"#);
        ensure!(
            status == expected && is_refused == (expected != 200),
            "{status} and not {expected}: {body}"
        );
        Ok(status)
    }

    /// A call that the server hangs up on.
    async fn lost(&self, token: &str) -> Result<u16> {
        let bearer = [("Authorization", format!("Bearer {token}"))];
        let message = call("echo", &json!({"message": "lost"}));
        let answer = self.post(&bearer, &message).await?;
        let (status, body) = self.answers.keep(answer).await?;
        ensure!(status >= 400, "{status}: {body}");
        Ok(status)
    }

    async fn post(&self, headers: &[(&str, String)], (own, body): &Message) -> Result<Response> {
        self.send(&self.guarded.url, headers, own, body).await
    }

    async fn send(
        &self,
        url: &str,
        headers: &[(&str, String)],
        own: &[(&str, String)],
        body: &Value,
    ) -> Result<Response> {
        let mut request = self.client.post(url).json(body);
        request = request.header("Accept", "application/json, text/event-stream");
        for (name, value) in headers.iter().chain(own) {
            request = request.header(*name, value);
        }
        Ok(request.send().await?)
    }

    /// In a session of the old kind.
    async fn in_session(&self, session: &str, number: usize, token: &str) -> Result<Response> {
        let headers = [
            ("Authorization", format!("bearer {token}")),
            ("Mcp-Session-Id", session.to_owned()),
            ("MCP-Protocol-Version", "2025-06-18".to_owned()),
        ];
        let body = json!({
            "jsonrpc": "2.0", "id": number + 10, "method": "tools/call",
            "params": {"name": "echo", "arguments": {"message": "in a session"}},
        });
        self.send(&self.guarded.url, &headers, &[], &body).await
    }

    /// With the token in every header in which somebody might look for one.
    async fn everywhere(&self, token: &str, message: &Message) -> Result<Response> {
        let mut headers = vec![("Authorization", format!("Bearer {token}"))];
        for name in [
            "Proxy-Authorization",
            "X-Authorization",
            "X-Forwarded-Authorization",
            "X-Forwarded-Access-Token",
            "X-Api-Key",
            "X-Original-Authorization",
            "Authentication",
        ] {
            headers.push((name, format!("Bearer {token}")));
        }
        headers.push(("Cookie", format!("token={token}")));
        headers.push(("Referer", format!("http://127.0.0.1/?access_token={token}")));
        self.post(&headers, message).await
    }

    /// With a token in the query, where none is looked for (MCP authorization,
    /// token requirements).
    async fn query(
        &self,
        bearer: Option<&str>,
        token: &str,
        (own, body): &Message,
    ) -> Result<Response> {
        let headers: Vec<_> = bearer
            .map(|token| ("Authorization", format!("Bearer {token}")))
            .into_iter()
            .collect();
        let url = format!("{}?access_token={token}", self.guarded.url);
        self.send(&url, &headers, own, body).await
    }

    /// What can hardly be read: a body, a head; and what is nowhere.
    async fn broken(&self, number: usize, token: &str) -> Result<u16> {
        const BODY: &str = r#"{"jsonrpc": "2.0", "id": 1, "id": 2, "method": "tools/list"}"#;
        let head = |path: &str, rest: &str, length: usize| {
            format!(
                "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n{rest}\r\n"
            )
        };
        let text = match number / KINDS % 4 {
            0 => format!("{}{BODY}", head("/mcp", "", BODY.len())),
            1 => head("/mcp", &format!("{token} no header\r\n"), 0),
            2 => head("/mcp", &format!("X-{token}: \u{1}\r\n"), 0),
            _ => head(&format!("/{token}"), "", 0),
        };
        let mut stream = TcpStream::connect(("127.0.0.1", self.port()?)).await?;
        stream.write_all(text.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        self.answers.add(&answer)?;
        let status = answer
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse::<u16>().ok());
        let status = status.with_context(|| format!("no HTTP: {answer}"))?;
        ensure!((400..500).contains(&status), "{answer}");
        Ok(status)
    }

    fn port(&self) -> Result<u16> {
        let url: http::Uri = self.guarded.url.parse()?;
        url.port_u16().context("no port")
    }
}
