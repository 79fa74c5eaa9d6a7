//! What is said to a head that hyper cannot read. It never reaches the service:
//! hyper answers by itself, without a body, and ends the connection.

use std::io::Write;

use http::StatusCode;
use policy::Reason;

use super::{MAX_HEAD, MAX_HEADERS};
use crate::refusal::Refusal;

/// What hyper says by itself has this header, and no body.
const NO_BODY: &[u8] = b"content-length: 0\r\n";
/// Where the status stands in `HTTP/1.1 431 `.
const STATUS: std::ops::Range<usize> = 9..12;

/// An answer that hyper made by itself, with a body that tells the reason; none
/// where `written` is something else. Nothing of the head changes but what is
/// said of the body.
pub fn with_reason(written: &[u8]) -> Option<Vec<u8>> {
    if !written.starts_with(b"HTTP/1.") || !written.ends_with(b"\r\n\r\n") {
        return None;
    }
    let status = StatusCode::from_bytes(written.get(STATUS)?).ok()?;
    if !status.is_client_error() {
        return None;
    }
    let at = written
        .windows(NO_BODY.len())
        .position(|part| part == NO_BODY)?;
    let body = refusal(status).message(None);
    let mut whole = Vec::with_capacity(written.len() + body.len() + 64);
    whole.extend_from_slice(&written[..at]);
    let length = body.len();
    let about = write!(
        whole,
        "content-type: application/json\r\ncontent-length: {length}\r\n"
    );
    about.ok()?;
    whole.extend_from_slice(&written[at + NO_BODY.len()..]);
    whole.extend_from_slice(body.as_bytes());
    Some(whole)
}

fn refusal(status: StatusCode) -> Refusal {
    match status {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE | StatusCode::URI_TOO_LONG => too_large(status),
        _ => Refusal::malformed(
            "the head of the request cannot be read: it is not as RFC 9112 has it",
        ),
    }
}

/// Of a head that is too large.
pub fn too_large(status: StatusCode) -> Refusal {
    let message =
        format!("the head of a request has at most {MAX_HEAD} bytes and {MAX_HEADERS} headers");
    Refusal::new(Reason::TooLarge, status, message)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_hyper_says_gets_a_body_of_the_length_that_is_said() {
        for (status, code, reason) in [
            ("400 Bad Request", -32600, "Malformed"),
            ("414 URI Too Long", 414, "TooLarge"),
            ("431 Request Header Fields Too Large", 431, "TooLarge"),
        ] {
            let said = format!(
                "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\ndate: today\r\n\r\n"
            );
            let whole = String::from_utf8(with_reason(said.as_bytes()).unwrap()).unwrap();
            let (head, body) = whole.split_once("\r\n\r\n").unwrap();
            assert_eq!(
                head,
                format!(
                    "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\ndate: today",
                    body.len()
                )
            );
            let body: Value = serde_json::from_str(body).unwrap();
            assert_eq!(body["error"]["code"], code);
            assert_eq!(body["error"]["data"]["reason"], reason);
        }
    }

    #[test]
    fn anything_else_stays_as_it_is() {
        for written in [
            "",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 1\r\n\r\nx",
            "HTTP/1.1 400 Bad Request\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/2 400\r\ncontent-length: 0\r\n\r\n",
        ] {
            assert_eq!(with_reason(written.as_bytes()), None, "{written}");
        }
    }
}
