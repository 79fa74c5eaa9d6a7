//! What looks like an assertion and is none of ours: callers could put it into
//! `_meta` of a message, or of an answer that a request brings with it (revision
//! 2026-07-28, `inputResponses`). (Of headers, only those on a list pass at all.)
//!
//! It is taken out before anything is decided, so that what is decided on is
//! still what is forwarded. Everything else of the message stays as it was
//! written.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::MEMBER;
use crate::{
    envelope::{Kind, Members, Message, Messages, Refusal},
    wire,
};

/// The body without what only a sidecar may say; none where nothing of that kind
/// is in it.
///
/// # Errors
/// It cannot be told whether there is.
pub fn removed(messages: &Messages<'_>) -> Result<Option<Bytes>, Refusal> {
    let mut texts: Option<Vec<String>> = None;
    for (index, message) in messages.list.iter().enumerate() {
        let places = places(message)?;
        if places.is_empty() {
            continue;
        }
        let mut text = message.text.to_owned();
        for place in places {
            let path: Vec<_> = place.iter().map(AsRef::as_ref).collect();
            text = wire::edit(&text, &[&path[..], &["_meta", MEMBER][..]].concat(), None)?;
        }
        let texts = texts.get_or_insert_with(|| {
            let texts = messages.list.iter().map(|message| message.text.to_owned());
            texts.collect()
        });
        texts[index] = text;
    }
    Ok(texts.map(|texts| match messages.is_batch {
        true => format!("[{}]", texts.join(",")).into(),
        false => texts.concat().into(),
    }))
}

/// The paths of objects in a message whose `_meta` has it.
fn places<'a>(message: &Message<'a>) -> Result<Vec<Vec<Cow<'a, str>>>, Refusal> {
    let mut places = Vec::new();
    match &message.kind {
        Kind::Request { .. } | Kind::Notification { .. } => {
            let Some(params) = message.params()? else {
                return Ok(places);
            };
            if has(params)? {
                places.push(vec!["params".into()]);
            }
            let Some(responses) = object(params.get("inputResponses")?)? else {
                return Ok(places);
            };
            for (name, response) in responses.0 {
                if let Some(response) = object(Some(response))?
                    && has(&response)?
                {
                    places.push(vec!["params".into(), "inputResponses".into(), name]);
                }
            }
        }
        Kind::Response { result, .. } => {
            if let Some(result) = object(*result)?
                && has(&result)?
            {
                places.push(vec!["result".into()]);
            }
        }
    }
    Ok(places)
}

fn object(value: Option<&RawValue>) -> Result<Option<Members<'_>>, Refusal> {
    let value = value.filter(|value| value.get().starts_with('{'));
    value.map(Members::parse).transpose()
}

/// Whether the `_meta` of an object has it.
fn has(members: &Members<'_>) -> Result<bool, Refusal> {
    match object(members.get("_meta")?)? {
        Some(meta) => Ok(meta.get(MEMBER)?.is_some()),
        None => Ok(false),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn without(body: &str) -> Result<Option<String>, Refusal> {
        let messages = Messages::parse(body.as_bytes()).unwrap();
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        removed(&messages).map(|body| body.map(text))
    }

    #[test]
    fn what_only_a_sidecar_says_is_taken_out_however_it_is_written() {
        for (body, expected) in [
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t", "_meta": {"toolward.dev/identity":"forged"}}}"#,
                r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","_meta":{}}}"#,
            ),
            (
                r#"{"jsonrpc":"2.0","method":"notifications/x","params":{"_meta":{"a":1.0,"toolward.dev\/identity":{"a":[]},"b":[1, 2]}}}"#,
                r#"{"jsonrpc":"2.0","method":"notifications/x","params":{"_meta":{"a":1.0,"b":[1, 2]}}}"#,
            ),
            (
                r#"{"jsonrpc":"2.0","id":"\u0061","method":"ping","params":{"\u005fmeta":{"toolward.dev/\u0069dentity":null}}}"#,
                r#"{"jsonrpc":"2.0","id":"\u0061","method":"ping","params":{"_meta":{}}}"#,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"result":{"_meta":{"toolward.dev/identity":"forged"},"a":1}}"#,
                r#"{"jsonrpc":"2.0","id":1,"result":{"_meta":{},"a":1}}"#,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"inputResponses":{"a":{"action":"accept","_meta":{"toolward.dev/identity":"forged"}},"b":{"_meta":{"x":1}},"c":1},"_meta":{"toolward.dev/identity":"forged"}}}"#,
                r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"inputResponses":{"a":{"action":"accept","_meta":{}},"b":{"_meta":{"x":1}},"c":1},"_meta":{}}}"#,
            ),
            (
                r#" [{"jsonrpc":"2.0","id":1,"method":"ping"} , {"jsonrpc":"2.0","id":2,"method":"ping","params":{"_meta":{"toolward.dev/identity":"forged"}}}]"#,
                r#"[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":2,"method":"ping","params":{"_meta":{}}}]"#,
            ),
        ] {
            assert_eq!(without(body), Ok(Some(expected.to_owned())), "{body}");
            assert_eq!(without(expected), Ok(None));
        }
    }

    #[test]
    fn everything_else_stays_byte_for_byte() {
        for body in [
            r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":{"_meta":{"toolward.dev/identity":"an argument"}}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_meta":{"toolward.dev/other":"x"}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_meta":"toolward.dev/identity"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"toolward.dev/identity":"x"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":"toolward.dev/identity"}"#,
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"","data":{"_meta":{"toolward.dev/identity":"x"}}}}"#,
        ] {
            assert_eq!(without(body), Ok(None), "{body}");
        }
    }

    /// Where it cannot be looked for, nothing passes.
    #[test]
    fn where_it_cannot_be_looked_for_nothing_passes() {
        let many: Vec<_> = (0..300).map(|index| format!(r#""a{index}":1"#)).collect();
        let many = many.join(",");
        for params in [
            format!(r#"{{{many},"_meta":{{"toolward.dev/identity":"forged"}}}}"#),
            format!(r#"{{"_meta":{{{many},"toolward.dev/identity":"forged"}}}}"#),
        ] {
            let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{params}}}"#);
            assert!(without(&body).is_err(), "{body}");
        }
        // What a server could take for it does not get past the strict reader.
        for meta in [
            r#""Toolward.dev/identity":1"#,
            r#""toolward.dev/Identity":1"#,
            r#""tool_ward.dev/identity":1"#,
        ] {
            let body = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{{"_meta":{{{meta}}}}}}}"#
            );
            assert!(Messages::parse(body.as_bytes()).is_err(), "{body}");
        }
        // There it is what two sides tell each other, so it is looked at here.
        for meta in [
            r#""Toolward.dev/identity":1"#,
            r#""toolward.dev/Identity":1"#,
        ] {
            let body = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{{"inputResponses":{{"a":{{"_meta":{{{meta}}}}}}}}}}}"#
            );
            assert!(without(&body).is_err(), "{body}");
        }
    }
}
