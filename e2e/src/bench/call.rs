//! The calls that are measured, as bytes, and a plain HTTP/1.1 client for them.

use std::borrow::Cow;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::{TOOL, upstream};

/// Until an answer is there. Far longer than anything that is measured.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest answer that is read.
const MAX_ANSWER: usize = 1024 * 1024;
/// Ids have ten digits, so that all requests are of one length. No two calls of
/// a session have the same: those of wrk, those at a fixed rate, all others.
pub const WRK_IDS: u64 = 1_000_000_000;
/// See [`WRK_IDS`].
pub const LOAD_IDS: u64 = 5_000_000_000;
/// See [`WRK_IDS`].
pub const FIRST_IDS: u64 = 9_000_000_000;

/// How the caller speaks MCP.
#[derive(Clone, Debug)]
pub enum Era {
    /// In the session with this id.
    Legacy(String),
    /// Revision 2026-07-28.
    Modern,
}

/// A request of which only the token and the id change.
#[derive(Clone, Debug)]
pub struct Request {
    /// Up to the token.
    pub before_token: String,
    /// From the token to the id.
    pub before_id: String,
    /// From the id on.
    pub after_id: String,
}

impl Request {
    /// `tools/call` of the one tool.
    pub fn call(address: SocketAddr, era: &Era) -> Self {
        let arguments = r#""arguments":{"order":"4711","fields":["state","date"]}"#;
        let (headers, meta) = match era {
            Era::Legacy(session) => (
                format!("Mcp-Protocol-Version: 2025-11-25\r\nMcp-Session-Id: {session}\r\n"),
                "",
            ),
            Era::Modern => (
                format!(
                    "Mcp-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name: {TOOL}\r\n"
                ),
                r#","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"bench","version":"1"}}"#,
            ),
        };
        let params = format!(r#""params":{{"name":"{TOOL}",{arguments}{meta}}}"#);
        Self::new(address, &headers, "tools/call", &params)
    }

    /// The handshake of a legacy session.
    pub fn initialize(address: SocketAddr) -> Self {
        let params = r#""params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}"#;
        Self::new(address, "", "initialize", params)
    }

    fn new(address: SocketAddr, headers: &str, method: &str, params: &str) -> Self {
        let before_id = r#"{"jsonrpc":"2.0","id":"#;
        let after_id = format!(r#","method":"{method}",{params}}}"#);
        let length = before_id.len() + WRK_IDS.to_string().len() + after_id.len();
        Self {
            before_token: format!(
                "POST /mcp HTTP/1.1\r\nHost: {address}\r\nUser-Agent: bench\r\nAccept: application/json, text/event-stream\r\nContent-Type: application/json\r\n{headers}Authorization: Bearer "
            ),
            before_id: format!("\r\nContent-Length: {length}\r\n\r\n{before_id}"),
            after_id,
        }
    }

    /// Its bytes.
    pub fn bytes(&self, token: &str, id: u64) -> Vec<u8> {
        let Self {
            before_token,
            before_id,
            after_id,
        } = self;
        format!("{before_token}{token}{before_id}{id}{after_id}").into_bytes()
    }
}

/// A connection that is kept alive.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    head: String,
    body: Vec<u8>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// Where nobody listens.
    pub fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        Ok(Self {
            stream,
            buffer: Vec::with_capacity(4096),
        })
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// Where there is none, or it is not HTTP.
    pub fn send(&mut self, request: &[u8]) -> Result<Answer> {
        self.stream.write_all(request)?;
        self.buffer.clear();
        loop {
            if let Some(answer) = parse(&self.buffer)? {
                return Ok(answer);
            }
            ensure!(self.buffer.len() < MAX_ANSWER, "the answer is too long");
            let mut chunk = [0; 4096];
            let count = match self.stream.read(&mut chunk) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    bail!("no answer within {ANSWER:?}")
                }
                read => read?,
            };
            ensure!(count > 0, "the connection was closed");
            self.buffer.extend_from_slice(&chunk[..count]);
        }
    }
}

/// The answer, if all of it is there.
fn parse(bytes: &[u8]) -> Result<Option<Answer>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&bytes[..end])?.to_owned();
    let rest = &bytes[end + 4..];
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let mut answer = Answer {
        status: status.with_context(|| format!("not HTTP: {head}"))?,
        head,
        body: Vec::new(),
    };
    if let Some(length) = answer.header("content-length") {
        let length: usize = length.parse()?;
        if rest.len() < length {
            return Ok(None);
        }
        answer.body = rest[..length].to_vec();
    } else if answer.header("transfer-encoding").is_some() {
        let Some(body) = unchunk(rest)? else {
            return Ok(None);
        };
        answer.body = body;
    }
    Ok(Some(answer))
}

/// The body out of its chunks (RFC 9112 §7.1), if all of them are there.
fn unchunk(mut rest: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|window| window == b"\r\n") else {
            return Ok(None);
        };
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end])?, 16)?;
        ensure!(size <= MAX_ANSWER, "a chunk is too long");
        let Some(data) = rest.get(end + 2..end + 2 + size + 2) else {
            return Ok(None);
        };
        if size == 0 {
            return Ok(Some(body));
        }
        body.extend_from_slice(&data[..size]);
        rest = &rest[end + 2 + size + 2..];
    }
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// Checks that this is what the upstream says to the call with this id.
    ///
    /// # Errors
    /// What it is instead.
    pub fn check(&self, id: u64) -> Result<()> {
        #[derive(Deserialize)]
        struct Message<'a> {
            id: u64,
            #[serde(borrow)]
            result: Content<'a>,
        }
        #[derive(Deserialize)]
        struct Content<'a> {
            #[serde(borrow)]
            content: [Text<'a>; 1],
        }
        #[derive(Deserialize)]
        struct Text<'a> {
            #[serde(borrow)]
            text: Cow<'a, str>,
        }
        let wrong = || {
            let body = String::from_utf8_lossy(&self.body);
            format!("not the answer to {id}: {} {body}", self.status)
        };
        ensure!(self.status == 200, wrong());
        let message: Message = serde_json::from_slice(&self.body).with_context(wrong)?;
        ensure!(
            message.id == id && message.result.content[0].text == upstream::TEXT,
            wrong()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_however_they_are_framed() -> Result<()> {
        let framed = [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        ];
        for text in framed {
            for end in 0..text.len() {
                assert!(parse(&text.as_bytes()[..end])?.is_none(), "{end} of {text}");
            }
            let answer = parse(text.as_bytes())?.context("whole")?;
            assert_eq!((answer.status, &*answer.body), (200, &b"hello"[..]));
        }
        assert!(parse(b"nonsense\r\n\r\n").is_err());
        Ok(())
    }

    #[test]
    fn another_answer_is_noticed() -> Result<()> {
        let answer = |id: u64, text: &str| {
            let body = format!(
                r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[{{"type":"text","text":"{text}"}}]}}}}"#
            );
            Answer {
                status: 200,
                head: String::new(),
                body: body.into(),
            }
        };
        answer(5, upstream::TEXT).check(5)?;
        assert!(answer(6, upstream::TEXT).check(5).is_err());
        assert!(answer(5, "denied").check(5).is_err());
        Ok(())
    }

    #[test]
    fn a_request_tells_its_length() -> Result<()> {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        for era in [Era::Legacy("s".into()), Era::Modern] {
            let bytes = Request::call(address, &era).bytes("token", FIRST_IDS);
            let text = String::from_utf8(bytes)?;
            let (head, body) = text.split_once("\r\n\r\n").context("a head")?;
            assert!(
                head.contains(&format!("Content-Length: {}", body.len())),
                "{text}"
            );
            serde_json::from_str::<serde_json::Value>(body)?;
        }
        Ok(())
    }
}
