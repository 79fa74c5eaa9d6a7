//! Bodies at the cap, in pieces, and encoded.

use sidecar::front::MAX_BODY;

use crate::{
    common::Got,
    guarded,
    wire::{Answer, Raw, request},
};

/// A call of exactly this many bytes.
fn call_of(size: usize) -> Vec<u8> {
    let call = |filler: &str| {
        format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"get_order","arguments":{{"a":"{filler}"}}}}}}"#
        )
    };
    let filler = "x".repeat(size - call("").len());
    let body = call(&filler).into_bytes();
    assert_eq!(body.len(), size);
    body
}

fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len() + body.len() / size * 8);
    for chunk in body.chunks(size) {
        bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
        bytes.extend(chunk);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    bytes
}

/// gzip with stored blocks (RFC 1951 §3.2.4, RFC 1952 §2.3); the checksum does
/// not matter, as nobody may unpack it.
fn gzip(body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap();
    let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
    bytes.extend(length.to_le_bytes());
    bytes.extend((!length).to_le_bytes());
    bytes.extend(body);
    bytes.extend([0; 8]);
    bytes
}

struct Case {
    what: &'static str,
    headers: Vec<(&'static str, String)>,
    sent: Vec<u8>,
    /// The body as it has to arrive; none where it may not.
    body: Option<Vec<u8>>,
    /// Statuses that it may get.
    status: &'static [u16],
}

fn sized(what: &'static str, size: usize, status: &'static [u16]) -> Case {
    let body = call_of(size);
    Case {
        what,
        headers: vec![("content-length", size.to_string())],
        sent: body.clone(),
        body: (status == [200]).then_some(body),
        status,
    }
}

fn in_chunks(what: &'static str, size: usize, chunk: usize, status: &'static [u16]) -> Case {
    let body = call_of(size);
    Case {
        what,
        headers: vec![("transfer-encoding", "chunked".into())],
        sent: chunked(&body, chunk),
        body: (status == [200]).then_some(body),
        status,
    }
}

fn encoded(what: &'static str, encodings: &[&str], sent: Vec<u8>, passes: bool) -> Case {
    let length = ("content-length", sent.len().to_string());
    let encodings = encodings
        .iter()
        .map(|encoding| ("content-encoding", (*encoding).to_owned()));
    Case {
        what,
        headers: std::iter::once(length).chain(encodings).collect(),
        body: passes.then(|| sent.clone()),
        sent,
        status: if passes { &[200] } else { &[400, 415] },
    }
}

fn transferred(what: &'static str, encodings: &[&str], sent: Vec<u8>) -> Case {
    let encodings = encodings
        .iter()
        .map(|encoding| ("transfer-encoding", (*encoding).to_owned()));
    Case {
        what,
        headers: encodings.collect(),
        sent,
        body: None,
        status: &[400],
    }
}

fn cases() -> Vec<Case> {
    let plain = || call_of(300);
    let zipped = || gzip(&plain());
    vec![
        sized("one below the cap", MAX_BODY - 1, &[200]),
        sized("at the cap", MAX_BODY, &[200]),
        sized("one above the cap", MAX_BODY + 1, &[413]),
        in_chunks("one below the cap, chunked", MAX_BODY - 1, 65_521, &[200]),
        in_chunks("at the cap, chunked", MAX_BODY, 65_521, &[200]),
        in_chunks("one above the cap, chunked", MAX_BODY + 1, 65_521, &[413]),
        in_chunks(
            "above the cap by a small last chunk",
            MAX_BODY + 1,
            MAX_BODY,
            &[413],
        ),
        in_chunks("a byte a chunk", 300, 1, &[200]),
        encoded("gzip", &["gzip"], zipped(), false),
        encoded("gzip, in capitals", &["GZIP"], zipped(), false),
        encoded("x-gzip", &["x-gzip"], zipped(), false),
        encoded("deflate", &["deflate"], plain(), false),
        encoded("br", &["br"], plain(), false),
        encoded("zstd", &["zstd"], plain(), false),
        encoded("unknown", &["rot13"], plain(), false),
        encoded("two in one", &["identity, gzip"], zipped(), false),
        encoded("two", &["identity", "gzip"], zipped(), false),
        encoded("two, plain", &["identity", "gzip"], plain(), false),
        encoded("empty", &[""], plain(), false),
        encoded("gzip that is not said", &[], zipped(), false),
        encoded("identity", &["identity"], plain(), true),
        transferred(
            "gzip on the way",
            &["gzip, chunked"],
            chunked(&zipped(), 100),
        ),
        transferred(
            "chunked twice",
            &["chunked, chunked"],
            chunked(&chunked(&plain(), 100), 100),
        ),
        transferred(
            "chunked in two headers",
            &["chunked", "chunked"],
            chunked(&plain(), 100),
        ),
        transferred(
            "identity, then chunked",
            &["identity", "chunked"],
            chunked(&plain(), 100),
        ),
        transferred(
            "chunked, then identity",
            &["chunked", "identity"],
            chunked(&plain(), 100),
        ),
        transferred("xchunked", &["xchunked"], chunked(&plain(), 100)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn no_byte_is_forwarded_that_was_not_looked_at() {
    let (script, sidecar) = guarded().await;
    let bearer = format!("Bearer {}", sidecar.token("alice"));
    let all = cases();
    let mut forwarded = 0;
    for case in &all {
        let mut headers = vec![
            ("host", "orders.shop.svc"),
            ("user-agent", "bodies"),
            ("content-type", "application/json"),
            ("accept", "application/json, text/event-stream"),
            ("authorization", bearer.as_str()),
        ];
        headers.extend(
            case.headers
                .iter()
                .map(|(name, value)| (*name, value.as_str())),
        );
        let mut raw = Raw::connect(sidecar.mcp).await;
        let sent = raw
            .send(request("POST /mcp HTTP/1.1", &headers, &case.sent))
            .await;
        let Some(Answer { status, body, .. }) = raw.answer().await else {
            panic!("{}: no answer ({sent:?})", case.what);
        };
        let said = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
        assert!(
            case.status.contains(&status),
            "{}: {status} {said}",
            case.what
        );
        let got: Vec<Got> = std::mem::take(&mut *script.got.lock().unwrap());
        let got: Vec<_> = got.into_iter().map(|got| got.body.to_vec()).collect();
        let wanted: Vec<_> = case.body.iter().cloned().collect();
        assert!(
            got == wanted,
            "{}: {} bodies arrived, or another one",
            case.what,
            got.len()
        );
        forwarded += got.len();
    }
    println!(
        "row 9: {} bodies: {forwarded} forwarded byte by byte, {} refused, 0 bytes uninspected",
        all.len(),
        all.len() - forwarded
    );
}
