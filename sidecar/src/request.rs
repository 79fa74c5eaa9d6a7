//! What is checked on a request before its body is read: path, host, origin,
//! headers. What passes on to the server is an allow-list of headers, so that
//! nothing that means something inside the pod can come from outside.

use http::{
    HeaderMap, HeaderName, Method, StatusCode, Uri, header, request::Parts, uri::Authority,
};
use policy::Reason;

use crate::{
    config::Active,
    era::{self, Era, MCP_METHOD, MCP_NAME, PARAM_PREFIX},
    guard::{self, Guard},
    refusal::Refusal,
    sessions::SESSION_ID,
};

/// Whether a header passes on to the server.
enum Passes {
    /// It does not.
    No,
    /// It may come only once.
    Once,
    /// As often as it comes.
    Often,
}

fn passes(name: &HeaderName) -> Passes {
    match name.as_str() {
        "accept" | "accept-language" | "baggage" | "tracestate" | "user-agent" => Passes::Often,
        "content-type"
        | "last-event-id"
        | "mcp-method"
        | "mcp-name"
        | "mcp-protocol-version"
        | "mcp-session-id"
        | "traceparent" => Passes::Once,
        name if name.starts_with(PARAM_PREFIX) => Passes::Once,
        _ => Passes::No,
    }
}

fn forbidden(reason: Reason, message: impl Into<String>) -> Result<(), Refusal> {
    Err(Refusal::new(reason, StatusCode::FORBIDDEN, message))
}

/// Checks `Host` against the names of this server (DNS rebinding).
///
/// # Errors
/// The refusal.
pub fn check_host(parts: &Parts, active: &Active) -> Result<(), Refusal> {
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
    Ok(())
}

/// Checks `Host` and `Origin` against the names of this server.
///
/// # Errors
/// The refusal.
pub fn check_names(parts: &Parts, active: &Active) -> Result<(), Refusal> {
    check_host(parts, active)?;
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
    // What is shown in the clear under our name may be of anybody on the way.
    let is_safe = |origin: &&Uri| {
        let is_local = origin.host().is_some_and(is_loopback);
        !active.is_https || is_local || origin.scheme_str() == Some("https")
    };
    let origin = origin.as_ref().filter(is_plain).filter(is_safe);
    match origin.and_then(Uri::host) {
        Some(host) if is_ours(host, active) => Ok(()),
        _ => forbidden(
            Reason::OriginNotAllowed,
            "the Origin header names a foreign site",
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
    let is = |name: &String| host.eq_ignore_ascii_case(name);
    is_loopback(host) || active.hosts.iter().any(is)
}

fn is_loopback(host: &str) -> bool {
    let is = |name: &str| host.eq_ignore_ascii_case(name);
    ["localhost", "127.0.0.1", "[::1]"].into_iter().any(is)
}

/// Checks the headers that pass on to the server, and what says how to read the
/// body.
///
/// # Errors
/// One that may come once came twice, or a POST does not carry JSON.
pub fn check_headers(method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
    let is_twice = |name: &&HeaderName| {
        matches!(passes(name), Passes::Once) && headers.get_all(*name).iter().nth(1).is_some()
    };
    if let Some(name) = headers.keys().find(is_twice) {
        let message = format!("the header {name} came more than once");
        // Of two values one at least contradicts the body.
        let speaks_of_body = name.as_str().starts_with("mcp-") && *name != SESSION_ID;
        return Err(match speaks_of_body {
            true => era::mismatch(message),
            false => Refusal::malformed(message),
        });
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
    Ok(())
}

/// The headers that pass on to the server; those that mean nothing in an era do
/// not pass in it.
pub fn forwarded_headers(headers: &HeaderMap, era: Era) -> HeaderMap {
    let means_something = |name: &HeaderName| match era {
        Era::Modern => name != SESSION_ID,
        Era::Legacy => {
            name != MCP_METHOD && name != MCP_NAME && !name.as_str().starts_with(PARAM_PREFIX)
        }
    };
    let mut forwarded = HeaderMap::with_capacity(8);
    for (name, value) in headers {
        if !matches!(passes(name), Passes::No) && means_something(name) {
            forwarded.append(name.clone(), value.clone());
        }
    }
    forwarded
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
