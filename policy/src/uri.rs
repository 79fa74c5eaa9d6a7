//! Resource URIs in one spelling only: the normal form of RFC 3986, section 6.
//!
//! A rule is compared with a URI as text, so two spellings of one resource
//! would be a way around a rule that denies. What is not in normal form is
//! denied, and not rewritten: the server must read what was decided on.
//!
//! Beyond RFC 3986, section 6.2.2, refused is what a server may read as another
//! resource: a fragment (it is the client's, and many parsers drop it), control
//! characters, dot segments behind an encoded slash, and by scheme:
//! - `http`, `https`, `ws`, `wss` (RFC 9110, section 4.2): a user, a default
//!   port, an empty path, a host that ends with a dot or is a number that is no
//!   plain IPv4 address;
//! - `file` (RFC 8089): anything but `file:///…` or `file://host/…`, the host
//!   `localhost`, a query, an empty segment, an encoded slash.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The longest URI that is decided on, in bytes (RFC 9110, section 4.1 asks for
/// 8,000 of HTTP; resources are far below).
pub const MAX_BYTES: usize = 4096;

/// Whether a URI is in normal form.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn check(uri: &str) -> Result<(), &'static str> {
    check_text(uri, Wildcards::None)
}

/// Whether a pattern of URIs (see [`crate::UriGlob`]) is in normal form: it
/// could match nothing otherwise.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn check_pattern(pattern: &str) -> Result<(), &'static str> {
    if pattern.contains("***") {
        return Err("*** says no more than **: write **");
    }
    check_text(pattern, Wildcards::Stars)
}

/// Whether `*` stands for itself or for other text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wildcards {
    None,
    Stars,
}

/// A part of a URI.
#[derive(Clone, Copy)]
struct Part<'a> {
    text: &'a str,
    wildcards: Wildcards,
}

impl<'a> Part<'a> {
    fn of(self, text: &'a str) -> Self {
        Self { text, ..self }
    }

    /// Whether it holds a wildcard, so that it is more than what it says.
    fn is_open(self) -> bool {
        self.wildcards == Wildcards::Stars && self.text.contains('*')
    }

    fn starts_open(self) -> bool {
        self.wildcards == Wildcards::Stars && self.text.starts_with('*')
    }
}

fn check_text(text: &str, wildcards: Wildcards) -> Result<(), &'static str> {
    if text.len() > MAX_BYTES {
        return Err("is too long: at most 4096 bytes are read");
    }
    check_characters(text)?;
    let all = Part { text, wildcards };
    if all.starts_open() {
        // Of a pattern for any scheme only the segments can be judged.
        let path = text.split_once('?').map_or(text, |(path, _)| path);
        return check_segments(path).and_then(|()| no_brackets(path));
    }
    let (scheme, rest) = split_scheme(text)?;
    let (hierarchy, query) = match rest.split_once('?') {
        Some((hierarchy, query)) => (hierarchy, Some(query)),
        None => (rest, None),
    };
    no_brackets(query.unwrap_or_default())?;
    let (authority, path) = match hierarchy.strip_prefix("//") {
        Some(after) => {
            let end = after.find('/').unwrap_or(after.len());
            (Some(all.of(&after[..end])), &after[end..])
        }
        None => (None, hierarchy),
    };
    no_brackets(path)?;
    check_segments(path)?;
    let parsed = authority.map(Authority::parse).transpose()?;
    match scheme {
        "http" | "https" | "ws" | "wss" => check_http(scheme, parsed, all.of(path)),
        "file" => check_file(parsed, all.of(path), query),
        _ => Ok(()),
    }
}

/// The scheme, and what follows its colon.
pub(crate) fn split_scheme(text: &str) -> Result<(&str, &str), &'static str> {
    let end = text.find([':', '/', '?']);
    let Some((scheme, rest)) =
        end.and_then(|end| Some((&text[..end], text[end..].strip_prefix(':')?)))
    else {
        return Err("has no scheme: write the whole URI, for example file:///reports/a.csv");
    };
    let mut bytes = scheme.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_lowercase());
    let more = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b);
    if first && bytes.all(more) {
        Ok((scheme, rest))
    } else {
        Err(
            "its scheme must be written out in lower case: a letter, then letters, digits, +, - and .",
        )
    }
}

/// Every character is one of a URI (RFC 3986, section 2), encoded where it must
/// be and only there.
pub(crate) fn check_characters(text: &str) -> Result<(), &'static str> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'#' => {
                return Err("a fragment is not part of what is read: leave # and what follows out");
            }
            b'%' => {
                check_encoded(bytes.get(at..at + 2))?;
                at += 2;
            }
            byte if is_unreserved(byte) || is_reserved(byte) => {}
            _ => {
                return Err(
                    "has a character that must be percent-encoded, for example a blank as %20",
                );
            }
        }
    }
    Ok(())
}

fn check_encoded(digits: Option<&[u8]>) -> Result<(), &'static str> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    };
    let Some(&[high, low]) = digits else {
        return Err("has a % without two digits: write %25 for a % itself");
    };
    let (Some(high), Some(low)) = (value(high), value(low)) else {
        return Err(
            "percent-encodings have two hexadecimal digits in upper case: write %2F, not %2f",
        );
    };
    match high * 16 + low {
        byte if is_unreserved(byte) => {
            Err("letters, digits, -, ., _ and ~ are not percent-encoded: write a, not %61")
        }
        byte if byte.is_ascii_control() => Err("has an encoded control character: leave it out"),
        _ => Ok(()),
    }
}

/// RFC 3986, section 2.3.
pub(crate) fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// RFC 3986, section 2.2, without `#`.
pub(crate) fn is_reserved(byte: u8) -> bool {
    b":/?[]@!$&'()*+,;=".contains(&byte)
}

fn no_brackets(text: &str) -> Result<(), &'static str> {
    match text.contains(['[', ']']) {
        true => Err("has [ or ] outside of a host: write %5B and %5D"),
        false => Ok(()),
    }
}

/// No dot segments (RFC 3986, section 6.2.2.3), not even behind a slash that is
/// encoded: a server may decode it before it looks.
fn check_segments(path: &str) -> Result<(), &'static str> {
    let plain = path.replace("%2F", "/").replace("%5C", "/");
    match plain
        .split('/')
        .any(|segment| matches!(segment, "." | ".."))
    {
        true => Err("has a . or .. as a segment of its path: write the path without it"),
        false => Ok(()),
    }
}

/// RFC 3986, section 3.2.
#[derive(Clone, Copy)]
struct Authority<'a> {
    user: Option<&'a str>,
    host: Part<'a>,
    port: Option<&'a str>,
    /// All of it is `**`.
    any: bool,
}

impl<'a> Authority<'a> {
    fn parse(all: Part<'a>) -> Result<Self, &'static str> {
        let any = all.wildcards == Wildcards::Stars && all.text == "**";
        if all.is_open() && !any && all.text.contains("**") {
            return Err(
                "** in a host also matches other hosts: write a / before it, or * for a part of the host",
            );
        }
        let (user, rest) = match all.text.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, all.text),
        };
        if user.is_some_and(|user| user.contains(['@', '[', ']'])) {
            return Err("has @, [ or ] in its user: write %40, %5B and %5D");
        }
        let end = match rest.rfind(']') {
            Some(bracket) => bracket + 1,
            None => rest.find(':').unwrap_or(rest.len()),
        };
        let (host, port) = rest.split_at(end);
        let port = match port.strip_prefix(':') {
            Some(port) => Some(port),
            None if port.is_empty() => None,
            None => {
                return Err("has text after the ] of its host: write [address] or [address]:port");
            }
        };
        let host = all.of(host);
        check_host(host)?;
        if let Some(port) = port {
            check_port(all.of(port))?;
        }
        Ok(Self {
            user,
            host,
            port,
            any,
        })
    }
}

fn check_host(host: Part<'_>) -> Result<(), &'static str> {
    let Part { text, .. } = host;
    if let Some(address) = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        // RFC 5952 has one spelling for each address; Rust prints that one.
        let parsed = address.parse::<Ipv6Addr>();
        return match parsed.is_ok_and(|parsed| parsed.to_string() == address) {
            true => Ok(()),
            false => Err(
                "[…] in its host must be an IPv6 address in the form of RFC 5952, for example [fd00::1]",
            ),
        };
    }
    if text.contains(['[', ']']) {
        return Err("has [ or ] outside of a host: write %5B and %5D");
    }
    // The digits of an encoding are in upper case, and only they.
    let mut encoded = 0;
    for byte in text.bytes() {
        match byte {
            b'%' => encoded = 2,
            _ if encoded > 0 => encoded -= 1,
            byte if byte.is_ascii_uppercase() => return Err("its host must be in lower case"),
            _ => {}
        }
    }
    Ok(())
}

fn check_port(port: Part<'_>) -> Result<(), &'static str> {
    let number = port.text.parse::<u16>();
    let plain = number.is_ok_and(|number| number > 0 && number.to_string() == port.text);
    let open = port.is_open() && port.text.bytes().all(|b| b.is_ascii_digit() || b == b'*');
    match plain || open {
        true => Ok(()),
        false => {
            Err("its port must be a number from 1 to 65535: leave the : out where there is none")
        }
    }
}

fn check_http(
    scheme: &str,
    authority: Option<Authority<'_>>,
    path: Part<'_>,
) -> Result<(), &'static str> {
    let Some(Authority {
        user,
        host,
        port,
        any,
    }) = authority
    else {
        return match path.starts_open() {
            true => Ok(()),
            false => Err("has no host: write http://host/…"),
        };
    };
    let default = match scheme {
        "http" | "ws" => "80",
        _ => "443",
    };
    if host.text.is_empty() {
        return Err("has no host: write http://host/…");
    }
    if user.is_some() {
        return Err("has a user before its host: leave it out");
    }
    if port == Some(default) {
        return Err("its port is the scheme's own: leave it out");
    }
    if path.text.is_empty() && !any {
        return Err("has no path: write a / after the host");
    }
    let last = host.text.rsplit('.').next().unwrap_or_default();
    if last.is_empty() {
        return Err("its host ends with a dot: leave it out");
    }
    let number = last.bytes().next().is_some_and(|b| b.is_ascii_digit());
    if number && !host.is_open() && host.text.parse::<Ipv4Addr>().is_err() {
        return Err(
            "its host is a number, and no IPv4 address of four decimal parts: write 127.0.0.1",
        );
    }
    Ok(())
}

fn check_file(
    authority: Option<Authority<'_>>,
    path: Part<'_>,
    query: Option<&str>,
) -> Result<(), &'static str> {
    const FORM: &str = "a file is written file:///path";
    if query.is_some() {
        return Err("a file has no query: write %3F for a ? in its name");
    }
    match authority {
        None if path.starts_open() => {}
        None => return Err(FORM),
        Some(Authority { any: true, .. }) => {}
        Some(Authority {
            user, host, port, ..
        }) => {
            if user.is_some() || port.is_some() || host.text == "localhost" {
                return Err(FORM);
            }
            if !path.text.starts_with('/') {
                return Err(FORM);
            }
        }
    }
    let lower = path.text;
    if lower.contains("%2F") || lower.contains("%5C") {
        return Err("a file's name has no / or \\: leave %2F and %5C out");
    }
    let mut segments = lower.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() && segments.peek().is_some() {
            return Err("has an empty segment in its path: write one / only");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
