//! Which revision a request speaks, and whether its headers say the same as its
//! body (revision 2026-07-28, Streamable HTTP, "Header Validation").

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, StatusCode};
use policy::Reason;
use serde_json::{json, value::RawValue};

use crate::{
    envelope::{Kind, Members, Message, Messages},
    guard::{self, Guard},
    refusal::Refusal,
};

/// Header of the revision.
pub const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
/// Header with the method of a modern request.
pub const MCP_METHOD: HeaderName = HeaderName::from_static("mcp-method");
/// Header with the name or URI of a modern request.
pub const MCP_NAME: HeaderName = HeaderName::from_static("mcp-name");
/// Prefix of headers that a tool's schema names.
pub const PARAM_PREFIX: &str = "mcp-param-";
/// Member of `_meta` with the revision of a modern request.
pub const META_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
/// Member of `_meta` with what the client can do.
pub const META_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";

const HEADER_MISMATCH: i64 = -32020;
const UNSUPPORTED_VERSION: i64 = -32022;
const INVALID_PARAMS: i64 = -32602;

/// With or without handshake and sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Era {
    /// Up to revision 2025-11-25: `initialize`, sessions.
    Legacy,
    /// Revision 2026-07-28: each request stands alone.
    Modern,
}

/// A revision of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Revision {
    /// 2024-11-05: over stdio only.
    V2024_11_05,
    /// 2025-03-26: with batches.
    V2025_03_26,
    /// 2025-06-18.
    V2025_06_18,
    /// 2025-11-25.
    V2025_11_25,
    /// 2026-07-28: modern.
    V2026_07_28,
}

impl Revision {
    /// The newest with a handshake.
    pub const NEWEST_LEGACY: Self = Self::V2025_11_25;
    /// The newest.
    pub const NEWEST: Self = Self::V2026_07_28;
    const ALL: [Self; 5] = [
        Self::V2024_11_05,
        Self::V2025_03_26,
        Self::V2025_06_18,
        Self::V2025_11_25,
        Self::V2026_07_28,
    ];

    /// As it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V2024_11_05 => "2024-11-05",
            Self::V2025_03_26 => "2025-03-26",
            Self::V2025_06_18 => "2025-06-18",
            Self::V2025_11_25 => "2025-11-25",
            Self::V2026_07_28 => "2026-07-28",
        }
    }

    /// Reads what stands on the wire; none for a revision that is not known.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == text)
    }

    /// Its era.
    pub fn era(self) -> Era {
        match self {
            Self::V2026_07_28 => Era::Modern,
            _ => Era::Legacy,
        }
    }
}

/// The header, where there is one.
///
/// # Errors
/// It came twice, or is no text.
fn once<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value
            .to_str()
            .map(Some)
            .map_err(|_| mismatch(format!("the header {name} is no visible ASCII"))),
        (Some(_), Some(_)) => Err(mismatch(format!("the header {name} came more than once"))),
    }
}

/// The refusal of headers that do not say what the body says: 400 and −32020.
pub fn mismatch(message: impl Into<String>) -> Refusal {
    Refusal {
        code: HEADER_MISMATCH,
        ..Refusal::malformed(message)
    }
}

fn unsupported(requested: &str) -> Refusal {
    let requested: String = requested.chars().take(64).collect();
    if requested.as_str() <= Revision::NEWEST_LEGACY.as_str() {
        let known: Vec<_> = Revision::ALL.iter().map(|known| known.as_str()).collect();
        return Refusal::malformed(format!(
            "the header MCP-Protocol-Version names no revision that is known: {}",
            known.join(", ")
        ));
    }
    let supported = [Revision::NEWEST.as_str()];
    let mut refusal = Refusal::new(
        Reason::Malformed,
        StatusCode::BAD_REQUEST,
        "unsupported protocol version",
    );
    refusal.code = UNSUPPORTED_VERSION;
    refusal.data = Some(Box::new(
        json!({"supported": supported, "requested": requested}),
    ));
    refusal
}

/// Whether the version header alone says that a request is modern: enough to
/// choose the form of a refusal before the body is read.
pub fn hint(headers: &HeaderMap) -> Era {
    let version = headers.get(PROTOCOL_VERSION).and_then(|v| v.to_str().ok());
    match version.is_some_and(|version| version > Revision::NEWEST_LEGACY.as_str()) {
        true => Era::Modern,
        false => Era::Legacy,
    }
}

/// The revision that a GET or DELETE names; none where it names none.
///
/// # Errors
/// It names one that is not known.
pub fn of_headers(headers: &HeaderMap) -> Result<Option<Revision>, Refusal> {
    let Some(text) = once(headers, &PROTOCOL_VERSION)? else {
        return Ok(None);
    };
    Revision::parse(text)
        .map(Some)
        .ok_or_else(|| unsupported(text))
}

/// What a request speaks.
///
/// # Errors
/// A version that is not known, or headers that do not say what the body says.
pub fn of_request(
    headers: &HeaderMap,
    messages: &Messages<'_>,
) -> Result<(Era, Option<Revision>), Refusal> {
    let header = once(headers, &PROTOCOL_VERSION)?;
    let meta = match messages.list.as_slice() {
        [message] if !messages.is_batch => Meta::of(message).map_err(Refusal::malformed)?,
        _ => Meta::default(),
    };
    let is_modern = meta.version.is_some() || hint(headers) == Era::Modern;
    if !is_modern {
        let known = header.map(|text| Revision::parse(text).ok_or_else(|| unsupported(text)));
        return Ok((Era::Legacy, known.transpose()?));
    }
    let Some(header) = header else {
        return Err(mismatch(
            "the header MCP-Protocol-Version is missing, though _meta names a version",
        ));
    };
    if messages.is_batch {
        return Err(Refusal::malformed(
            "this revision has no batches: send each message in a request of its own",
        ));
    }
    let Some(message) = messages.list.first() else {
        return Err(Refusal::malformed("the body holds no message"));
    };
    // In the order of the reference implementations: what is missing, then what
    // contradicts itself, then what is not supported.
    if matches!(message.kind, Kind::Request { .. }) {
        for (name, is_there) in [
            (META_VERSION, meta.version.is_some()),
            (META_CAPABILITIES, meta.has_capabilities),
        ] {
            if !is_there {
                return Err(invalid_params(format!(
                    "params._meta[\"{name}\"] is required"
                )));
            }
        }
    }
    if let Some(version) = meta.version.filter(|version| version != header) {
        return Err(mismatch(format!(
            "the header MCP-Protocol-Version is {header:?}, but _meta says {version:?}"
        )));
    }
    check_routing(headers, message)?;
    let revision = Revision::parse(header).filter(|revision| revision.era() == Era::Modern);
    let revision = revision.ok_or_else(|| unsupported(header))?;
    Ok((Era::Modern, Some(revision)))
}

fn invalid_params(message: String) -> Refusal {
    Refusal {
        code: INVALID_PARAMS,
        ..Refusal::malformed(message)
    }
}

/// What `_meta` says.
#[derive(Default)]
struct Meta {
    version: Option<String>,
    has_capabilities: bool,
}

impl Meta {
    fn of(message: &Message<'_>) -> Result<Self, String> {
        let Some(params) = message.params()? else {
            return Ok(Self::default());
        };
        let Some(meta) = params.get("_meta")? else {
            return Ok(Self::default());
        };
        let meta = Members::parse(meta).map_err(|error| format!("params._meta: {error}"))?;
        let version = match meta.get(META_VERSION)? {
            None => None,
            Some(_) => Some(meta.text(META_VERSION)?.into_owned()),
        };
        let capabilities = meta.get(META_CAPABILITIES)?;
        let has_capabilities = capabilities.is_some_and(|raw| raw.get().starts_with('{'));
        Ok(Self {
            version,
            has_capabilities,
        })
    }
}

/// `Mcp-Method` and `Mcp-Name` against the body.
fn check_routing(headers: &HeaderMap, message: &Message<'_>) -> Result<(), Refusal> {
    if !guard::is_on(Guard::Header) {
        return Ok(());
    }
    let (method, is_request) = match &message.kind {
        Kind::Request { method, .. } => (method, true),
        Kind::Notification { method, .. } => (method, false),
        Kind::Response { .. } => {
            return Err(Refusal::malformed(
                "this revision has no requests of the server, so no answers to them",
            ));
        }
    };
    match once(headers, &MCP_METHOD)? {
        Some(header) if header == method => {}
        Some(header) => {
            return Err(mismatch(format!(
                "the header Mcp-Method is {header:?}, but the body says {method:?}"
            )));
        }
        None if is_request => return Err(mismatch("the header Mcp-Method is missing")),
        None => {}
    }
    let member = match method.as_ref() {
        "tools/call" | "prompts/get" => "name",
        "resources/read" => "uri",
        "tasks/get" | "tasks/update" | "tasks/cancel" => "taskId",
        _ => return Ok(()),
    };
    let params = message.params().map_err(Refusal::malformed)?;
    let name = params
        .map(|params| params.text(member))
        .transpose()
        .map_err(Refusal::malformed)?;
    let header = once(headers, &MCP_NAME)?;
    match (header.map(decode).transpose()?, name) {
        (Some(header), Some(name)) if header == name => Ok(()),
        (Some(header), Some(name)) => Err(mismatch(format!(
            "the header Mcp-Name is {header:?}, but params.{member} is {name:?}"
        ))),
        (None, Some(_)) => Err(mismatch("the header Mcp-Name is missing")),
        (_, None) => Err(invalid_params(format!("params.{member} is required"))),
    }
}

/// The value of a header that may be written as `=?base64?…?=`.
fn decode(header: &str) -> Result<String, Refusal> {
    let Some(encoded) = header
        .strip_prefix("=?base64?")
        .and_then(|rest| rest.strip_suffix("?="))
    else {
        return Ok(header.to_owned());
    };
    let bytes = STANDARD.decode(encoded).ok();
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| mismatch("a header's =?base64?…?= does not hold UTF-8 in base64"))
}

/// Writes a value so that it can stand in a header.
pub fn encode(value: &str) -> String {
    let is_plain = value.bytes().all(|byte| (0x20..0x7f).contains(&byte))
        && value.trim() == value
        && !value.starts_with("=?base64?");
    match is_plain {
        true => value.to_owned(),
        false => format!("=?base64?{}?=", STANDARD.encode(value)),
    }
}

/// An argument that a tool wants repeated in a header (`x-mcp-header`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamHeader {
    /// The header, in lower case, with its prefix.
    pub header: String,
    /// Where the argument is: members from `arguments` on.
    pub path: Vec<String>,
}

/// The headers that a tool's `inputSchema` asks for. A schema that breaks the
/// rules makes the tool unusable for HTTP clients; here, it asks for none.
pub fn param_headers(schema: &serde_json::Value) -> Vec<ParamHeader> {
    fn walk(schema: &serde_json::Value, path: &mut Vec<String>, found: &mut Vec<ParamHeader>) {
        const MAX_DEPTH: usize = 16;
        const MAX_HEADERS: usize = 64;
        if path.len() == MAX_DEPTH {
            return;
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            path.push(name.clone());
            let is_simple = matches!(
                property["type"].as_str(),
                Some("string" | "integer" | "boolean")
            );
            if let Some(header) = property["x-mcp-header"].as_str().filter(|_| is_simple)
                && found.len() < MAX_HEADERS
                && HeaderName::try_from(header).is_ok()
            {
                let header = format!("{PARAM_PREFIX}{}", header.to_ascii_lowercase());
                found.push(ParamHeader {
                    header,
                    path: path.clone(),
                });
            }
            walk(property, path, found);
            path.pop();
        }
    }
    let mut found = Vec::new();
    walk(schema, &mut Vec::new(), &mut found);
    let mut names: Vec<_> = found.iter().map(|param| &param.header).collect();
    names.sort();
    names.dedup();
    if names.len() < found.len() {
        return Vec::new();
    }
    found
}

/// The argument as its header has it; none where it is absent or null.
fn argument(params: Option<&RawValue>, path: &[String]) -> Option<String> {
    let params: serde_json::Value = serde_json::from_str(params?.get()).ok()?;
    let mut value = &params["arguments"];
    for member in path {
        value = value.get(member)?;
    }
    match value {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text.clone()),
        value => Some(value.to_string()),
    }
}

/// `Mcp-Param-*` against the arguments of a call.
///
/// # Errors
/// One is missing, differs, or stands for an argument that is not there.
pub fn check_params(
    headers: &HeaderMap,
    params: Option<&RawValue>,
    wanted: &[ParamHeader],
) -> Result<(), Refusal> {
    if !guard::is_on(Guard::Header) {
        return Ok(());
    }
    for ParamHeader { header, path } in wanted {
        let Ok(name) = HeaderName::try_from(header.as_str()) else {
            continue;
        };
        let sent = once(headers, &name)?.map(decode).transpose()?;
        let said = argument(params, path);
        let same = match (&sent, &said) {
            (Some(sent), Some(said)) => sent == said || same_number(sent, said),
            (None, None) => true,
            _ => false,
        };
        if !same {
            let path = path.join(".");
            return Err(mismatch(match (sent, said) {
                (None, _) => {
                    format!("the header {header} is missing, though the argument {path} is there")
                }
                (Some(_), None) => {
                    format!("the header {header} is there, but the argument {path} is not")
                }
                (Some(sent), Some(said)) => {
                    format!("the header {header} is {sent:?}, but the argument {path} is {said:?}")
                }
            }));
        }
    }
    Ok(())
}

/// Integers are compared by value: `42` and `42.0` are the same.
fn same_number(sent: &str, said: &str) -> bool {
    let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite());
    number(sent).is_some_and(|sent| number(said) == Some(sent))
}

/// The headers that go with a call to a modern server behind HTTP.
pub fn param_values(params: Option<&RawValue>, wanted: &[ParamHeader]) -> Vec<(String, String)> {
    let value = |param: &ParamHeader| {
        argument(params, &param.path).map(|value| (param.header.clone(), encode(&value)))
    };
    wanted.iter().filter_map(value).collect()
}
