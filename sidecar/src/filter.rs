//! Lists show what the caller may use. Items are decided by the same function
//! as calls; what stays is copied as the server wrote it.

use policy::Operation;
use serde_json::value::RawValue;

use crate::envelope::{Kind, Members, Message, Refusal};

/// An item of a list.
#[derive(Clone, Copy, Debug)]
pub enum Item<'a> {
    /// What the policy is asked for.
    Of(Operation<'a>),
    /// A task, which belongs to the caller that made it.
    Task(&'a str),
}

/// The list members of results, and the member that names an item in each.
const LISTS: &[(&str, &str)] = &[
    ("tools", "name"),
    ("prompts", "name"),
    ("resources", "uri"),
    ("resourceTemplates", "uriTemplate"),
    ("tasks", "taskId"),
];

/// Whether a caller sees an item.
pub type Visible<'v> = dyn Fn(Item<'_>) -> bool + 'v;

/// Filters an answer of the server. None: it is no list, forward it as it is.
///
/// # Errors
/// It cannot be read, so it cannot be filtered and must not be forwarded.
pub fn message(message: &Message<'_>, visible: &Visible<'_>) -> Result<Option<Vec<u8>>, Refusal> {
    let (
        Kind::Response {
            result: Some(result),
            ..
        },
        Some(id),
    ) = (&message.kind, message.id)
    else {
        return Ok(None);
    };
    if !result.get().starts_with('{') {
        return Ok(None);
    }
    let members = Members::parse(result)?;
    let mut is_list = false;
    for (list, _) in LISTS {
        is_list |= members.get(list)?.is_some();
    }
    // Whether a resource may be read depends on the caller as well.
    let is_read = members.get("contents")?.is_some() && members.get("cacheScope")?.is_some();
    if !is_list && !is_read {
        return Ok(None);
    }
    let mut out = Vec::with_capacity(message.text.len());
    out.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
    out.extend_from_slice(id.get().as_bytes());
    out.extend_from_slice(br#","result":{"#);
    for (index, (key, value)) in members.0.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&serde_json::to_vec(key).map_err(|error| error.to_string())?);
        out.push(b':');
        match LISTS.iter().find(|(list, _)| list == key) {
            Some((list, name)) => items(value, list, name, visible, &mut out)?,
            // What is filtered by caller must not be cached for others.
            None if key == "cacheScope" => out.extend_from_slice(br#""private""#),
            None => out.extend_from_slice(value.get().as_bytes()),
        }
    }
    out.extend_from_slice(b"}}");
    Ok(Some(out))
}

fn items(
    raw: &RawValue,
    list: &str,
    name: &str,
    visible: &Visible<'_>,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let items: Vec<&RawValue> =
        serde_json::from_str(raw.get()).map_err(|error| format!("result.{list}: {error}"))?;
    out.push(b'[');
    let mut first = true;
    for item in items {
        // An item whose name cannot be read in one way is not shown.
        let Ok(id) = Members::parse(item).and_then(|members| members.text(name)) else {
            continue;
        };
        let shown = match list {
            "tools" => Item::Of(Operation::Tool(&id)),
            "prompts" => Item::Of(Operation::Prompt(&id)),
            "resources" => Item::Of(Operation::Resource(&id)),
            "resourceTemplates" => Item::Of(Operation::Template(&id)),
            _ => Item::Task(&id),
        };
        if visible(shown) {
            if !first {
                out.push(b',');
            }
            first = false;
            out.extend_from_slice(item.get().as_bytes());
        }
    }
    out.push(b']');
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn filtered(body: &str) -> Option<String> {
        let visible = |item: Item<'_>| matches!(item, Item::Of(Operation::Tool("a")));
        message(&Message::parse(body.as_bytes()).unwrap(), &visible)
            .unwrap()
            .map(|out| String::from_utf8(out).unwrap())
    }

    #[test]
    fn what_may_not_be_used_is_not_shown() {
        let out = filtered(
            r#"{"jsonrpc":"2.0","id":7,"result":{"tools":[{"name":"a","x": 1.50},{"name":"b"},{"name":7},{"name":"a","NAME":"b"}],"nextCursor":"","cacheScope":"public"}}"#,
        );
        assert_eq!(
            out.unwrap(),
            r#"{"jsonrpc":"2.0","id":7,"result":{"tools":[{"name":"a","x": 1.50}],"nextCursor":"","cacheScope":"private"}}"#
        );
        let out = filtered(r#"{"jsonrpc":"2.0","id":"x","result":{"prompts":[{"name":"a"}]}}"#);
        assert_eq!(
            out.unwrap(),
            r#"{"jsonrpc":"2.0","id":"x","result":{"prompts":[]}}"#
        );
    }

    #[test]
    fn what_one_caller_may_read_is_not_cached_for_others() {
        let out = filtered(
            r#"{"jsonrpc":"2.0","id":7,"result":{"contents":[{"uri":"a:b","text":"x"}],"cacheScope":"public"}}"#,
        );
        assert_eq!(
            out.unwrap(),
            r#"{"jsonrpc":"2.0","id":7,"result":{"contents":[{"uri":"a:b","text":"x"}],"cacheScope":"private"}}"#
        );
    }

    #[test]
    fn what_is_no_list_stays_as_it_is() {
        for body in [
            r#"{"jsonrpc":"2.0","id":1,"result":{"content":[]}}"#,
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":""}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#,
        ] {
            assert_eq!(filtered(body), None);
        }
    }

    #[test]
    fn a_list_in_disguise_is_refused() {
        let visible = |_: Item<'_>| false;
        for body in [
            r#"{"jsonrpc":"2.0","id":1,"result":{"Tools":[{"name":"b"}]}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[],"tools":[{"name":"b"}]}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":{"0":{"name":"b"}}}}"#,
        ] {
            let parsed = Message::parse(body.as_bytes()).unwrap();
            assert!(message(&parsed, &visible).is_err(), "{body}");
        }
    }
}
