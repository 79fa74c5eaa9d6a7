//! What is checked on a request before its body is read: path, host, origin,
//! headers. What passes on to the server is an allow-list of headers, so that
//! nothing that means something inside the pod can come from outside.

use http::{
    HeaderMap, HeaderName, Method, StatusCode, Uri, header, request::Parts, uri::Authority,
};
use policy::Reason;

use crate::{
    config::Active,
    era::{Era, MCP_METHOD, MCP_NAME, PARAM_PREFIX},
    guard::{self, Guard},
    refusal::Refusal,
    sessions::SESSION_ID,
};

/// Headers that pass on to the server, and whether each may come only once.
const FORWARDED: &[(&str, bool)] = &[
    ("accept", false),
    ("accept-language", false),
    ("baggage", false),
    ("content-type", true),
    ("last-event-id", true),
    ("mcp-method", true),
    ("mcp-name", true),
    ("mcp-protocol-version", true),
    ("mcp-session-id", true),
    ("traceparent", true),
    ("tracestate", false),
    ("user-agent", false),
];

/// Checks `Host` and `Origin` against the names of this server (DNS rebinding).
///
/// # Errors
/// The refusal.
pub fn check_names(parts: &Parts, active: &Active) -> Result<(), Refusal> {
    let forbidden =
        |reason, message: String| Err(Refusal::new(reason, StatusCode::FORBIDDEN, message));
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next(), parts.uri.authority()) {
        (Some(host), None, None) => host.to_str().ok().and_then(|host| host.parse().ok()),
        (None, _, Some(authority)) => Some(authority.clone()),
        (Some(host), None, Some(authority)) if host == authority.as_str() => {
            Some(authority.clone())
        }
        _ => None,
    };
    let host = host.filter(is_host_and_port);
    if !host.is_some_and(|host| is_ours(host.host(), active)) {
        let hint = "set spec.url of the McpServer to the URL that clients use";
        return forbidden(
            Reason::HostNotAllowed,
            format!("the Host header does not name this server: {hint}"),
        );
    }
    if !guard::is_on(Guard::Origin) {
        return Ok(());
    }
    let mut origins = parts.headers.get_all(header::ORIGIN).iter();
    let origin = match (origins.next(), origins.next()) {
        (None, _) => return Ok(()),
        (Some(origin), None) => origin
            .to_str()
            .ok()
            .and_then(|origin| origin.parse::<Uri>().ok()),
        _ => None,
    };
    let is_plain = |origin: &&Uri| {
        let is_web = matches!(origin.scheme_str(), Some("http" | "https"));
        is_web && origin.authority().is_some_and(is_host_and_port)
    };
    match origin.as_ref().filter(is_plain).and_then(Uri::host) {
        Some(host) if is_ours(host, active) => Ok(()),
        _ => forbidden(
            Reason::OriginNotAllowed,
            "the Origin header names a foreign site".into(),
        ),
    }
}

/// Whether there is no user in it, and its port, if any, is a number.
fn is_host_and_port(authority: &Authority) -> bool {
    match authority.as_str().strip_prefix(authority.host()) {
        Some("") => true,
        Some(rest) => rest.strip_prefix(':').is_some_and(|port| {
            port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
        }),
        None => false,
    }
}

fn is_ours(host: &str, active: &Active) -> bool {
    let host = host.to_ascii_lowercase();
    ["localhost", "127.0.0.1", "[::1]"].contains(&host.as_str()) || active.hosts.contains(&host)
}

/// The headers that pass on to the server.
///
/// # Errors
/// One that may come once came twice, or a POST does not carry JSON.
pub fn forwarded_headers(method: &Method, headers: &HeaderMap) -> Result<HeaderMap, Refusal> {
    let mut forwarded = HeaderMap::with_capacity(8);
    for (name, value) in headers {
        let known = FORWARDED.iter().find(|(known, _)| name == known);
        let once = match known {
            Some((_, once)) => *once,
            None if name.as_str().starts_with(PARAM_PREFIX) => true,
            None => continue,
        };
        if once && forwarded.contains_key(name) {
            return Err(Refusal::malformed(format!(
                "the header {name} came more than once"
            )));
        }
        forwarded.append(name.clone(), value.clone());
    }
    let unsupported = |message: &str| {
        Err(Refusal::new(
            Reason::Malformed,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            message,
        ))
    };
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    if !encodings.all(|encoding| encoding == "identity") {
        return unsupported("content encodings are not accepted: send the body as it is");
    }
    if *method == Method::POST
        && !headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| is_type(value.as_bytes(), "application/json"))
    {
        return unsupported("Content-Type must be application/json");
    }
    Ok(forwarded)
}

/// Headers that mean nothing in an era do not pass in it.
pub fn keep_to_era(headers: &mut HeaderMap, era: Era) {
    match era {
        // No sessions; a stale one means nothing.
        Era::Modern => drop(headers.remove(SESSION_ID)),
        Era::Legacy => {
            let params: Vec<_> = headers
                .keys()
                .filter(|name| name.as_str().starts_with(PARAM_PREFIX))
                .cloned()
                .collect();
            for name in params.iter().chain([&MCP_METHOD, &MCP_NAME]) {
                headers.remove(name);
            }
        }
    }
}

/// Whether `Accept` takes a type (RFC 9110 §12.5.1; weights are not looked at).
/// Without the header, anything goes.
pub fn accepts(headers: &HeaderMap, wanted: &str) -> bool {
    let mut values = headers.get_all(header::ACCEPT).iter().peekable();
    if values.peek().is_none() {
        return true;
    }
    let (main, _) = wanted.split_once('/').unwrap_or_default();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|range| {
            let range = range.split(';').next().unwrap_or_default().trim();
            let is_main = range
                .strip_suffix("/*")
                .is_some_and(|range| range.eq_ignore_ascii_case(main));
            range == "*/*" || is_main || range.eq_ignore_ascii_case(wanted)
        })
}

/// Whether a `Content-Type` names this type, whatever its parameters.
pub fn is_type(value: &[u8], wanted: &str) -> bool {
    let essence = value.split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes())
}

/// The `Allow` header of 405 in revision 2026-07-28.
pub const ALLOW_POST: (HeaderName, http::HeaderValue) =
    (header::ALLOW, http::HeaderValue::from_static("POST"));

/// The `Allow` header of 405.
pub const ALLOW: (HeaderName, http::HeaderValue) = (
    header::ALLOW,
    http::HeaderValue::from_static("GET, POST, DELETE"),
);
