//! The MCP server behind everything that is measured, as small as it can be:
//! over HTTP in both eras, and over stdio. It ends with its standard input, so
//! it never outlives the measurement.

use std::borrow::Cow;
use std::convert::Infallible;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::TOOL;
use super::cores::pin;

/// What every call answers; with its envelope about 200 bytes.
pub const TEXT: &str = "The order was placed on Monday, packed on Tuesday and left the house on Wednesday morning; it is expected on Friday.";

/// Header of a legacy session.
const SESSION: &str = "mcp-session-id";
/// First revision without handshake.
const MODERN: &str = "2026-07-28";

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
}

/// The answer to a message; none to a notification.
fn answer(message: &[u8], modern: bool) -> Option<(bool, Vec<u8>)> {
    let Ok(Message { id, method }) = serde_json::from_slice(message) else {
        let refusal =
            r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"not JSON-RPC"}}"#;
        return Some((false, refusal.into()));
    };
    let id = id?.get();
    let complete = if modern {
        r#""resultType":"complete","#
    } else {
        ""
    };
    let cached = if modern {
        r#""ttlMs":60000,"cacheScope":"public","#
    } else {
        ""
    };
    let result = match method.as_deref() {
        Some("tools/call") => {
            format!(r#"{{{complete}"content":[{{"type":"text","text":"{TEXT}"}}]}}"#)
        }
        Some("tools/list") => format!(
            r#"{{{complete}{cached}"tools":[{{"name":"{TOOL}","inputSchema":{{"type":"object"}}}}]}}"#
        ),
        Some("initialize") if !modern => r#"{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"bench","version":"1"}}"#.into(),
        Some("ping") if !modern => "{}".into(),
        Some("server/discover") if modern => format!(
            r#"{{{complete}{cached}"supportedVersions":["{MODERN}"],"capabilities":{{"tools":{{}}}}}}"#
        ),
        _ => {
            let error = format!(
                r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32601,"message":"no such method"}}}}"#
            );
            return Some((false, error.into()));
        }
    };
    let answer = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#);
    Some((true, answer.into()))
}

/// Serves HTTP on a free port of 127.0.0.1, which it prints; pinned to `core`.
///
/// # Errors
/// Where it cannot listen.
pub fn serve_http(core: Option<usize>) -> Result<()> {
    pin(core)?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("cannot listen")?;
    listener.set_nonblocking(true)?;
    println!("{}", listener.local_addr()?.port());
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new()); // Nothing is ever sent.
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(
                http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(respond)),
            );
        }
    })
}

async fn respond(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    static SESSIONS: AtomicU64 = AtomicU64::new(0);
    let (head, body) = request.into_parts();
    let Ok(body) = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
    else {
        return Ok(status(StatusCode::BAD_REQUEST));
    };
    let modern = head
        .headers
        .get("mcp-protocol-version")
        .is_some_and(|revision| revision == MODERN);
    match head.method {
        Method::POST => {}
        Method::DELETE if !modern => return Ok(status(StatusCode::OK)),
        _ => return Ok(status(StatusCode::METHOD_NOT_ALLOWED)),
    }
    let is_handshake = !modern && !head.headers.contains_key(SESSION);
    let Some((known, answer)) = answer(&body, modern) else {
        return Ok(status(StatusCode::ACCEPTED));
    };
    let mut response = Response::new(Full::new(answer.into()));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if modern && !known {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    if is_handshake {
        let session = SESSIONS.fetch_add(1, Ordering::Relaxed).into();
        response.headers_mut().insert(SESSION, session);
    }
    Ok(response)
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

/// Serves stdio, pinned to `core` whatever core its parent has.
///
/// # Errors
/// Where the pipes break.
pub fn serve_stdio(core: Option<usize>) -> Result<()> {
    pin(core)?;
    let mut input = BufReader::with_capacity(64 * 1024, std::io::stdin().lock());
    let mut output = BufWriter::with_capacity(64 * 1024, std::io::stdout().lock());
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if let Some((_, answer)) = answer(&line, false) {
            output.write_all(&answer)?;
            output.write_all(b"\n")?;
        }
        // As many answers in one write as there were messages in one read.
        if input.buffer().is_empty() {
            output.flush()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(message: &str, modern: bool) -> Option<String> {
        answer(message.as_bytes(), modern)
            .map(|(_, answer)| String::from_utf8_lossy(&answer).into())
    }

    #[test]
    fn a_call_is_answered_with_about_200_bytes() {
        let call = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{}}"#;
        for modern in [false, true] {
            let answer = text(call, modern).expect("an answer");
            assert!((180..260).contains(&answer.len()), "{}", answer.len());
            assert!(answer.contains(r#""id":7"#) && answer.contains(TEXT));
            assert_eq!(answer.contains("resultType"), modern);
        }
    }

    #[test]
    fn each_era_has_its_own_handshake() {
        let of = |method: &str, modern| {
            let message = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}"}}"#);
            answer(message.as_bytes(), modern).map(|(known, _)| known)
        };
        assert_eq!(of("initialize", false), Some(true));
        assert_eq!(of("initialize", true), Some(false));
        assert_eq!(of("server/discover", false), Some(false));
        assert_eq!(of("server/discover", true), Some(true));
        let notification = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        assert_eq!(text(notification, false), None);
    }
}
