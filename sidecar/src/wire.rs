//! Messages written anew: only what has to change does, everything else is
//! copied as it was written.

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::envelope::{Kind, Members, Message, Refusal};

/// Member of `_meta` that names the `subscriptions/listen` request of a
/// notification.
pub const SUBSCRIPTION_ID: &str = "io.modelcontextprotocol/subscriptionId";

/// An object with the member at `path` replaced, added (and with it the objects
/// above), or, with no value, removed.
///
/// # Errors
/// It is no object, or has a member twice.
pub fn edit(object: &str, path: &[&str], value: Option<&str>) -> Result<String, Refusal> {
    let Some((name, rest)) = path.split_first() else {
        return Ok(value.unwrap_or("{}").to_owned());
    };
    let raw: &RawValue = serde_json::from_str(object).map_err(|error| error.to_string())?;
    let members = Members::parse(raw)?;
    let old = members.0.iter().find(|(key, _)| key == name);
    let new: Option<Cow<'_, str>> = match (rest.is_empty(), old, value) {
        (true, _, value) => value.map(Cow::Borrowed),
        (false, None, None) => None,
        (false, Some((_, old)), value) => Some(edit(old.get(), rest, value)?.into()),
        (false, None, Some(_)) => Some(edit("{}", rest, value)?.into()),
    };
    let mut out = String::with_capacity(object.len() + value.map_or(0, str::len) + 16);
    out.push('{');
    let mut add = |key: &str, value: &str| -> Result<(), Refusal> {
        if out.len() > 1 {
            out.push(',');
        }
        out.push_str(&serde_json::to_string(key).map_err(|error| error.to_string())?);
        out.push(':');
        out.push_str(value);
        Ok(())
    };
    for (key, old) in &members.0 {
        match (key == name, &new) {
            (false, _) => add(key, old.get())?,
            (true, Some(new)) => add(key, new)?,
            (true, None) => {}
        }
    }
    if let (None, Some(new)) = (old, &new) {
        add(name, new)?;
    }
    out.push('}');
    Ok(out)
}

/// The member at `path`, where there is one that can be read.
pub fn member<'a>(object: Option<&'a RawValue>, path: &[&str]) -> Option<&'a RawValue> {
    path.iter().try_fold(object?, |object, name| {
        Members::parse(object).ok()?.get(name).ok().flatten()
    })
}

/// A request or notification.
pub fn message(id: Option<&str>, method: &str, params: Option<&str>) -> String {
    let mut out = String::with_capacity(64 + params.map_or(0, str::len));
    out.push_str(r#"{"jsonrpc":"2.0""#);
    if let Some(id) = id {
        out.push_str(r#","id":"#);
        out.push_str(id);
    }
    out.push_str(r#","method":"#);
    out.push_str(&serde_json::Value::from(method).to_string());
    if let Some(params) = params {
        out.push_str(r#","params":"#);
        out.push_str(params);
    }
    out.push('}');
    out
}

/// A result.
pub fn result(id: &str, result: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#)
}

/// An error.
pub fn error(id: &str, error: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#)
}

/// An answer with another id.
pub fn readdressed(answer: &Message<'_>, id: &str) -> Option<String> {
    match &answer.kind {
        Kind::Response {
            result: Some(found),
            ..
        } => Some(result(id, found.get())),
        Kind::Response {
            error: Some(found), ..
        } => Some(error(id, found.get())),
        _ => None,
    }
}

/// The message as one line. Line breaks can stand only between tokens: inside
/// a string they are not valid JSON.
pub fn line(message: impl Into<Vec<u8>>) -> Vec<u8> {
    let mut line: Vec<u8> = message.into();
    for byte in &mut line {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    line.push(b'\n');
    line
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_to_change_does() {
        let object = r#"{"a":1.0, "_meta":{"x":[1, 2],"t":"old"}}"#;
        let set = edit(object, &["_meta", "t"], Some("7")).unwrap();
        assert_eq!(set, r#"{"a":1.0,"_meta":{"x":[1, 2],"t":7}}"#);
        let removed = edit(object, &["_meta", "t"], None).unwrap();
        assert_eq!(removed, r#"{"a":1.0,"_meta":{"x":[1, 2]}}"#);
        assert_eq!(
            edit("{}", &["_meta", "t"], Some("7")).unwrap(),
            r#"{"_meta":{"t":7}}"#
        );
        assert_eq!(edit("{}", &["_meta", "t"], None).unwrap(), "{}");
        assert!(edit("[]", &["a"], None).is_err());
    }
}
