//! Between the eras: what a caller of one asks is asked of a server of the other.
//! Lists, tools, prompts, resources, completion and their notifications pass.
//! Requests of the server, input that a modern server asks for (`input_required`)
//! and tasks do not: they get a clear error.

use serde_json::{json, value::RawValue};

use crate::{
    envelope::{Kind, Message, Refusal},
    era::{META_CAPABILITIES, META_VERSION, Revision},
    link::Info,
    wire,
};

const META_CLIENT: &str = "io.modelcontextprotocol/clientInfo";
const META_LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";
const META_SERVER: &str = "io.modelcontextprotocol/serverInfo";
const INTERNAL: i64 = -32603;
const INVALID_PARAMS: i64 = -32602;
/// Resource not found, up to revision 2025-11-25.
const RESOURCE_NOT_FOUND: i64 = -32002;
/// URL elicitation required, up to revision 2025-11-25.
const URL_ELICITATION: i64 = -32042;
/// Codes of revision 2026-07-28.
const MODERN_CODES: std::ops::RangeInclusive<i64> = -32099..=-32020;

/// Results that a modern client may keep.
const CACHEABLE: &[&str] = &[
    "tools/list",
    "prompts/list",
    "resources/list",
    "resources/templates/list",
    "resources/read",
];

/// The parameters of a modern request for a legacy server.
///
/// # Errors
/// Why it cannot be asked.
pub fn params_for_legacy(method: &str, params: Option<&RawValue>) -> Result<String, Refusal> {
    if method.starts_with("tasks/") {
        return Err("the server speaks a revision without this extension: tasks do not pass between revisions".into());
    }
    for member in ["inputResponses", "requestState"] {
        if wire::member(params, &[member]).is_some() {
            return Err(format!(
                "params.{member}: the server speaks a revision up to 2025-11-25, which asks for no input in this way"
            ));
        }
    }
    let mut params = params.map_or_else(|| "{}".to_owned(), |params| params.get().to_owned());
    for key in [META_VERSION, META_CAPABILITIES, META_CLIENT, META_LOG_LEVEL] {
        params = wire::edit(&params, &["_meta", key], None)?;
    }
    let raw: &RawValue = serde_json::from_str(&params).map_err(|error| error.to_string())?;
    if wire::member(Some(raw), &["_meta"]).is_some_and(|meta| meta.get() == "{}") {
        params = wire::edit(&params, &["_meta"], None)?;
    }
    Ok(params)
}

/// The answer of a legacy server for a modern client.
///
/// # Errors
/// It cannot be read.
pub fn answer_for_modern(method: &str, answer: &[u8]) -> Result<String, Refusal> {
    let message = Message::parse(answer)?;
    let id = message.id.map_or("null", RawValue::get);
    match message.kind {
        Kind::Response {
            result: Some(result),
            ..
        } => {
            let mut result = with(result.get(), "resultType", r#""complete""#)?;
            if CACHEABLE.contains(&method) {
                result = with(&result, "ttlMs", "0")?;
                result = with(&result, "cacheScope", r#""private""#)?;
            }
            Ok(wire::result(id, &result))
        }
        Kind::Response {
            error: Some(error), ..
        } => {
            let error = match code(error) {
                RESOURCE_NOT_FOUND => {
                    wire::edit(error.get(), &["code"], Some(&INVALID_PARAMS.to_string()))?
                }
                URL_ELICITATION => unsupported(
                    "it asks the user to open a URL, which does not pass between revisions",
                ),
                _ => error.get().to_owned(),
            };
            Ok(wire::error(id, &error))
        }
        _ => Err("the server's answer is no answer".into()),
    }
}

/// The object with a member that it may have already.
fn with(object: &str, name: &str, value: &str) -> Result<String, Refusal> {
    let raw: &RawValue = serde_json::from_str(object).map_err(|error| error.to_string())?;
    match wire::member(Some(raw), &[name]) {
        Some(_) => Ok(object.to_owned()),
        None => wire::edit(object, &[name], Some(value)),
    }
}

fn code(error: &RawValue) -> i64 {
    let code = wire::member(Some(error), &["code"]).and_then(|code| code.get().parse().ok());
    code.unwrap_or(INTERNAL)
}

fn unsupported(why: &str) -> String {
    json!({"code": INTERNAL, "message": format!("the server cannot answer this client: {why}")})
        .to_string()
}

/// The answer to `server/discover` in the name of a legacy server.
pub fn discovery(id: &str, info: &Info) -> String {
    let result = json!({
        "supportedVersions": [Revision::NEWEST.as_str()],
        "capabilities": without_legacy(info),
        "instructions": info.instructions,
        "resultType": "complete", "ttlMs": 0, "cacheScope": "private",
        "_meta": {META_SERVER: info.server_info},
    });
    wire::result(id, &without_null(result, "instructions"))
}

/// What does not exist in the modern era, or does not pass.
fn without_legacy(info: &Info) -> serde_json::Value {
    let mut capabilities: serde_json::Value =
        serde_json::from_str(info.capabilities.get()).unwrap_or_else(|_| json!({}));
    if let Some(capabilities) = capabilities.as_object_mut() {
        capabilities.remove("tasks");
        capabilities.remove("logging");
    }
    capabilities
}

fn without_null(mut object: serde_json::Value, name: &str) -> String {
    if let Some(members) = object.as_object_mut()
        && members.get(name).is_some_and(serde_json::Value::is_null)
    {
        members.remove(name);
    }
    object.to_string()
}

/// The answer to `initialize` in the name of a server whose handshake is done.
/// `asked` is the revision that the client wants.
pub fn initialization(id: &str, info: &Info, revision: Revision) -> String {
    let mut capabilities: serde_json::Value =
        serde_json::from_str(info.capabilities.get()).unwrap_or_else(|_| json!({}));
    if let Some(capabilities) = capabilities.as_object_mut() {
        capabilities.remove("tasks");
        capabilities.remove("extensions");
    }
    let result = json!({
        "protocolVersion": revision.as_str(),
        "capabilities": capabilities,
        "serverInfo": info.server_info,
        "instructions": info.instructions,
    });
    wire::result(id, &without_null(result, "instructions"))
}

/// What a legacy client said of itself in its handshake.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// Its name and version, an object.
    pub info: Option<Box<RawValue>>,
    /// The level of log messages that it asked for, a string.
    pub log_level: Option<Box<RawValue>>,
}

/// The parameters of a legacy request for a modern server.
///
/// # Errors
/// Why it cannot be asked.
pub fn params_for_modern(
    method: &str,
    params: Option<&RawValue>,
    client: &Client,
) -> Result<String, Refusal> {
    if method.starts_with("tasks/") || wire::member(params, &["task"]).is_some() {
        return Err(
            "the server speaks revision 2026-07-28: tasks do not pass between revisions".into(),
        );
    }
    // They belong to revisions with multi round-trip requests: there, what comes
    // back is known to have been given.
    for member in ["inputResponses", "requestState"] {
        if wire::member(params, &[member]).is_some() {
            return Err(format!("params.{member} does not exist in this revision"));
        }
    }
    let mut params = params.map_or_else(|| "{}".to_owned(), |params| params.get().to_owned());
    let version = format!("\"{}\"", Revision::NEWEST.as_str());
    let mut set = |key: &str, value: &str| -> Result<(), Refusal> {
        params = wire::edit(&params, &["_meta", key], Some(value))?;
        Ok(())
    };
    set(META_VERSION, &version)?;
    // None: the server must not ask this client for anything.
    set(META_CAPABILITIES, "{}")?;
    if let Some(info) = &client.info {
        set(META_CLIENT, info.get())?;
    }
    if let Some(level) = &client.log_level {
        set(META_LOG_LEVEL, level.get())?;
    }
    Ok(params)
}

/// The answer of a modern server for a legacy client.
///
/// # Errors
/// It cannot be read.
pub fn answer_for_legacy(method: &str, answer: &[u8]) -> Result<String, Refusal> {
    let message = Message::parse(answer)?;
    let id = message.id.map_or("null", RawValue::get);
    match message.kind {
        Kind::Response {
            result: Some(result),
            ..
        } => {
            let kind = wire::member(Some(result), &["resultType"]).map(RawValue::get);
            match kind {
                None | Some(r#""complete""#) => {}
                Some(r#""input_required""#) => {
                    return Ok(wire::error(
                        id,
                        &unsupported(
                            "it asks for input in a way that revisions up to 2025-11-25 do not have",
                        ),
                    ));
                }
                Some(_) => {
                    return Ok(wire::error(
                        id,
                        &unsupported(
                            "its result is of a kind that revisions up to 2025-11-25 do not have",
                        ),
                    ));
                }
            }
            let mut result = result.get().to_owned();
            for name in ["resultType", "ttlMs", "cacheScope"] {
                result = wire::edit(&result, &[name], None)?;
            }
            let raw: &RawValue =
                serde_json::from_str(&result).map_err(|error| error.to_string())?;
            let structured = wire::member(Some(raw), &["structuredContent"]);
            if method == "tools/call"
                && structured.is_some_and(|content| !content.get().starts_with('{'))
            {
                result = wire::edit(&result, &["structuredContent"], None)?;
            }
            Ok(wire::result(id, &result))
        }
        Kind::Response {
            error: Some(error), ..
        } => {
            let error = match code(error) {
                found if MODERN_CODES.contains(&found) => {
                    wire::edit(error.get(), &["code"], Some(&INTERNAL.to_string()))?
                }
                INVALID_PARAMS if method == "resources/read" => wire::edit(
                    error.get(),
                    &["code"],
                    Some(&RESOURCE_NOT_FOUND.to_string()),
                )?,
                _ => error.get().to_owned(),
            };
            Ok(wire::error(id, &error))
        }
        _ => Err("the server's answer is no answer".into()),
    }
}

/// A notification of a modern server's stream for a legacy client: without its
/// tag. None: it is only for the stream itself.
pub fn notification_for_legacy(message: &[u8]) -> Option<String> {
    let message = Message::parse(message).ok()?;
    let Kind::Notification { method, params } = &message.kind else {
        return None;
    };
    if method == "notifications/subscriptions/acknowledged" {
        return None;
    }
    let Some(params) = params else {
        return Some(message.text.to_owned());
    };
    let untagged = wire::edit(params.get(), &["_meta", wire::SUBSCRIPTION_ID], None).ok()?;
    Some(wire::message(None, method, Some(&untagged)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn value(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn modern_asks_legacy() {
        let params = r#"{"name":"t","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"progressToken":1}}"#;
        let raw: &RawValue = serde_json::from_str(params).unwrap();
        let legacy = params_for_legacy("tools/call", Some(raw)).unwrap();
        assert_eq!(legacy, r#"{"name":"t","_meta":{"progressToken":1}}"#);
        let answer = answer_for_modern(
            "tools/list",
            br#"{"jsonrpc":"2.0","id":1,"result":{"tools":[]}}"#,
        );
        assert_eq!(
            value(&answer.unwrap())["result"],
            json!({"tools": [], "resultType": "complete", "ttlMs": 0, "cacheScope": "private"})
        );
        let missing = answer_for_modern("resources/read", br#"{"jsonrpc":"2.0","id":1,"error":{"code":-32002,"message":"no","data":{"uri":"a:b"}}}"#);
        assert_eq!(
            value(&missing.unwrap())["error"],
            json!({"code": -32602, "message": "no", "data": {"uri": "a:b"}})
        );
        let retry: &RawValue = serde_json::from_str(r#"{"name":"t","inputResponses":{}}"#).unwrap();
        assert!(params_for_legacy("tools/call", Some(retry)).is_err());
        assert!(params_for_legacy("tasks/get", None).is_err());
    }

    #[test]
    fn legacy_asks_modern() {
        let raw: &RawValue = serde_json::from_str(r#"{"name":"t"}"#).unwrap();
        let modern = params_for_modern("tools/call", Some(raw), &Client::default()).unwrap();
        assert_eq!(
            value(&modern)["_meta"],
            json!({META_VERSION: "2026-07-28", META_CAPABILITIES: {}})
        );
        for odd in [
            r#"{"name":"t","requestState":"forged"}"#,
            r#"{"name":"t","request\u0053tate":"forged"}"#,
            r#"{"name":"t","inputResponses":{}}"#,
            r#"{"name":"t","task":{}}"#,
        ] {
            let odd: &RawValue = serde_json::from_str(odd).unwrap();
            let refused = params_for_modern("tools/call", Some(odd), &Client::default());
            assert!(refused.is_err(), "{refused:?}");
        }
        let answer = answer_for_legacy("tools/call", br#"{"jsonrpc":"2.0","id":1,"result":{"content":[],"resultType":"complete","structuredContent":[1]}}"#);
        assert_eq!(value(&answer.unwrap())["result"], json!({"content": []}));
        let asks = answer_for_legacy("tools/call", br#"{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","inputRequests":{}}}"#);
        assert_eq!(value(&asks.unwrap())["error"]["code"], INTERNAL);
        let tagged = br#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"1"}}}"#;
        assert_eq!(
            value(&notification_for_legacy(tagged).unwrap())["params"],
            json!({"_meta": {}})
        );
    }
}
