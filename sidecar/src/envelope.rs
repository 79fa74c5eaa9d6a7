//! JSON-RPC envelopes, read without building a tree: members borrow from the
//! body, and the body itself is what is forwarded.
//!
//! Invariant: what passes has one meaning. [`crate::strict`] holds that for JSON
//! as such; here, members that are unknown in the envelope, null ids and
//! fractional ids are refused, because two parsers could read them differently.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

/// Longest id, method, name or URI, in bytes.
pub const MAX_NAME: usize = 4096;
/// Messages of a batch at most.
const MAX_BATCH: usize = 100;
/// Deepest nesting of a message of the server.
const MAX_DEPTH: usize = 128;

/// Why a body is refused, for the caller.
pub type Refusal = String;

/// A JSON-RPC message.
#[derive(Debug)]
pub struct Message<'a> {
    /// What it is.
    pub kind: Kind<'a>,
    /// The id as written; none for a notification.
    pub id: Option<&'a RawValue>,
    /// The whole message, as written.
    pub text: &'a str,
    /// The parameters, read once.
    members: Option<Result<Members<'a>, Refusal>>,
}

/// The body of a request of a caller.
#[derive(Debug)]
pub struct Messages<'a> {
    /// One, or those of a batch.
    pub list: Vec<Message<'a>>,
    /// Whether they stood in an array (revision 2025-03-26).
    pub is_batch: bool,
}

impl<'a> Messages<'a> {
    /// Reads a message or a batch.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(body: &'a [u8]) -> Result<Self, Refusal> {
        crate::strict::check(body).map_err(|fault| fault.to_string())?;
        let text = utf8(body)?;
        let is_batch = text.trim_start().starts_with('[');
        if !is_batch {
            let list = vec![Message::read(text)?];
            return Ok(Self { list, is_batch });
        }
        let Batch(elements) = serde_json::from_str(text)
            .map_err(|error| format!("the body is no batch of JSON-RPC messages: {error}"))?;
        let read = |(index, element): (usize, &'a RawValue)| {
            Message::read(element.get()).map_err(|error| format!("message {index}: {error}"))
        };
        let list = elements
            .into_iter()
            .enumerate()
            .map(read)
            .collect::<Result<_, _>>()?;
        Ok(Self { list, is_batch })
    }
}

fn utf8(body: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(body).map_err(|error| format!("the body is not UTF-8: {error}"))
}

/// What a message is.
#[derive(Debug)]
pub enum Kind<'a> {
    /// Asks for an answer.
    Request {
        /// The method.
        method: Cow<'a, str>,
        /// The parameters, an object.
        params: Option<&'a RawValue>,
    },
    /// Asks for none.
    Notification {
        /// The method.
        method: Cow<'a, str>,
        /// The parameters, an object.
        params: Option<&'a RawValue>,
    },
    /// Answers.
    Response {
        /// The result; none where it is an error.
        result: Option<&'a RawValue>,
        /// The error; none where it is a result.
        error: Option<&'a RawValue>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw<'a> {
    #[serde(borrow)]
    jsonrpc: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present_text")]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    error: Option<&'a RawValue>,
}

/// A member that is there, also where its value is null.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

fn present_text<'de: 'a, 'a, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Cow<'a, str>>, D::Error> {
    Text::deserialize(deserializer).map(|text| Some(text.0))
}

/// A string that borrows where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Message<'a> {
    /// Reads one message.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(body: &'a [u8]) -> Result<Self, Refusal> {
        check_depth(body)?;
        Self::read(utf8(body)?)
    }

    fn read(text: &'a str) -> Result<Self, Refusal> {
        let raw: Raw = serde_json::from_str(text)
            .map_err(|error| format!("the body is no JSON-RPC message: {error}"))?;
        if raw.jsonrpc != "2.0" {
            return Err("jsonrpc must be \"2.0\"".into());
        }
        if let Some(id) = raw.id {
            // An error for a request whose id could not be read has none (JSON-RPC 2.0 §5).
            let is_unread = raw.error.is_some() && id.get() == "null";
            if !is_unread {
                check_id(id.get())?;
            }
        }
        if raw
            .params
            .is_some_and(|params| !params.get().starts_with('{'))
        {
            return Err("params must be an object".into());
        }
        let (id, params) = (raw.id, raw.params);
        let members = params.map(Members::parse);
        let kind = match (raw.method, id, raw.result, raw.error) {
            (Some(method), Some(_), None, None) => Kind::Request {
                method: short(method)?,
                params,
            },
            (Some(method), None, None, None) => Kind::Notification {
                method: short(method)?,
                params,
            },
            (None, Some(_), result @ Some(_), None) if params.is_none() => Kind::Response {
                result,
                error: None,
            },
            (None, Some(_), None, error @ Some(_)) if params.is_none() => Kind::Response {
                result: None,
                error,
            },
            _ => {
                return Err(
                    "the message is neither a request, nor a notification, nor a response".into(),
                );
            }
        };
        Ok(Self {
            kind,
            id,
            text,
            members,
        })
    }

    /// The members of the parameters, where there are any.
    ///
    /// # Errors
    /// A member stands twice.
    pub fn params(&self) -> Result<Option<&Members<'a>>, Refusal> {
        self.members
            .as_ref()
            .map(|members| members.as_ref().map_err(Clone::clone))
            .transpose()
    }
}

fn short(text: Cow<'_, str>) -> Result<Cow<'_, str>, Refusal> {
    if text.len() > MAX_NAME {
        return Err(format!("a method or name has at most {MAX_NAME} bytes"));
    }
    Ok(text)
}

/// An id as it is compared with others: however a string is written, it is one.
pub fn same_id(id: &str) -> Cow<'_, str> {
    if id == "-0" {
        return "0".into();
    }
    if !id.contains('\\') {
        return id.into();
    }
    let text = serde_json::from_str(id).and_then(|text: String| serde_json::to_string(&text));
    text.map_or(id.into(), Cow::Owned)
}

fn check_id(id: &str) -> Result<(), Refusal> {
    // Beyond this, JavaScript reads two numbers as one (RFC 8259 §6), and the
    // answer to one request could be taken for that to another.
    let number = |text: &str| {
        text.parse::<i64>()
            .is_ok_and(|number| number.unsigned_abs() < 1 << 53)
    };
    if id.len() <= MAX_NAME && (id.starts_with('"') || number(id)) {
        return Ok(());
    }
    Err("id must be a string or an integer that JavaScript can hold (below 2^53)".into())
}

/// Refuses nesting on which a parser behind us could run out of stack.
fn check_depth(body: &[u8]) -> Result<(), Refusal> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for &byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(format!("the body is nested deeper than {MAX_DEPTH}"));
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// The members of an object, in their order, each once.
#[derive(Debug, Default)]
pub struct Members<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// Reads an object.
    ///
    /// # Errors
    /// It is none, or a member stands twice.
    pub fn parse(raw: &'a RawValue) -> Result<Self, Refusal> {
        serde_json::from_str(raw.get()).map_err(|error| error.to_string())
    }

    /// The member of that name.
    ///
    /// # Errors
    /// Another member differs from it only by case.
    pub fn get(&self, name: &str) -> Result<Option<&'a RawValue>, Refusal> {
        let mut found = None;
        for (key, value) in &self.0 {
            if key == name {
                found = Some(*value);
            } else if folds_to(key, name) {
                return Err(format!("the member {key:?} can be taken for {name:?}"));
            }
        }
        Ok(found)
    }

    /// The string of that name.
    ///
    /// # Errors
    /// It is missing, no string, too long, or ambiguous.
    pub fn text(&self, name: &str) -> Result<Cow<'a, str>, Refusal> {
        let raw = self
            .get(name)?
            .ok_or_else(|| format!("params.{name} is required"))?;
        let text: Text = serde_json::from_str(raw.get())
            .map_err(|_| format!("params.{name} must be a string"))?;
        short(text.0)
    }
}

/// Whether a parser that ignores case reads `key` as `name`. Beside ASCII case,
/// two characters fold into ASCII: `ſ` (U+017F) and the Kelvin sign (U+212A).
fn folds_to(key: &str, name: &str) -> bool {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(name.chars().map(fold))
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::with_capacity(4);
                while let Some(Text(key)) = map.next_key()? {
                    if members.iter().any(|(other, _)| *other == key) {
                        return Err(A::Error::custom(format_args!(
                            "the member {key:?} stands twice"
                        )));
                    }
                    if members.len() == 256 {
                        return Err(A::Error::custom("more than 256 members"));
                    }
                    members.push((key, map.next_value()?));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// The messages of a batch. Reading ends at the first that is too many: a body
/// has room for millions.
struct Batch<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Batch<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Array;
        impl<'de> Visitor<'de> for Array {
            type Value = Batch<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "1 to {MAX_BATCH} messages")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut elements: Vec<&'de RawValue> = Vec::with_capacity(4);
                while let Some(element) = seq.next_element()? {
                    if elements.len() == MAX_BATCH {
                        let message = format_args!("a batch has 1 to {MAX_BATCH} messages");
                        return Err(A::Error::custom(message));
                    }
                    elements.push(element);
                }
                if elements.is_empty() {
                    return Err(A::Error::invalid_length(0, &self));
                }
                Ok(Batch(elements))
            }
        }
        deserializer.deserialize_seq(Array)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_is_one_however_it_is_written() {
        assert_eq!(same_id(r#""\u0061sk \/6""#), r#""ask /6""#);
        assert_eq!(same_id(r#""a\"b""#), same_id(r#""a\u0022b""#));
        assert_eq!(same_id("-0"), "0");
        assert_ne!(same_id("1"), same_id(r#""1""#));
    }

    #[test]
    fn the_three_kinds() {
        let request =
            Message::parse(br#"{"jsonrpc":"2.0","id":1,"method":"a","params":{"x":1}}"#).unwrap();
        assert!(matches!(request.kind, Kind::Request { method, params: Some(_) } if method == "a"));
        let notification = Message::parse(br#"{"jsonrpc":"2.0","method":"a"}"#).unwrap();
        assert!(matches!(notification.kind, Kind::Notification { .. }));
        let response = Message::parse(br#"{"jsonrpc":"2.0","id":"x","result":null}"#).unwrap();
        assert!(matches!(
            response.kind,
            Kind::Response {
                result: Some(_),
                ..
            }
        ));
        let error =
            Message::parse(br#"{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":""}}"#)
                .unwrap();
        assert!(matches!(error.kind, Kind::Response { result: None, .. }));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for body in [
            r#"[]"#,
            r#" [[{"jsonrpc":"2.0","id":1,"method":"a"}]]"#,
            r#"[{"jsonrpc":"2.0","id":1,"method":"a"},1]"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"a","Method":"b"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"a","extra":1}"#,
            r#"{"jsonrpc":"2.0","id":null,"method":"a"}"#,
            r#"{"jsonrpc":"2.0","id":1.0,"method":"a"}"#,
            r#"{"jsonrpc":"2.0","id":1e3,"method":"a"}"#,
            r#"{"jsonrpc":"2.0","id":99999999999999999999,"method":"a"}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"a"}"#,
            r#"{"jsonrpc":"2.0","id":9007199254740993,"method":"a"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":null}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"a","params":[]}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"a","params":null}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"a","result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#,
            r#"{"jsonrpc":"1.0","id":1,"method":"a"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"a"} {}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            "",
            "null",
        ] {
            assert!(
                Messages::parse(body.as_bytes()).is_err(),
                "accepted: {body}"
            );
        }
        assert!(Message::parse(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}").is_err());
        let deep = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"a","params":{{"a":{}1{}}}}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        assert!(
            Message::parse(deep.as_bytes())
                .unwrap_err()
                .contains("nested")
        );
    }

    #[test]
    fn members_have_one_meaning() {
        let members = |text: &'static str| serde_json::from_str::<Members>(text);
        assert_eq!(
            members(r#"{"name":"x"}"#).unwrap().text("name").unwrap(),
            "x"
        );
        assert_eq!(
            members(r#"{"n\u0061me":"x"}"#)
                .unwrap()
                .text("name")
                .unwrap(),
            "x"
        );
        assert!(members(r#"{"name":"x","name":"y"}"#).is_err());
        assert!(members(r#"{"name":"x","n\u0061me":"y"}"#).is_err());
        assert!(
            members(r#"{"name":"x","NAME":"y"}"#)
                .unwrap()
                .text("name")
                .is_err()
        );
        assert!(
            members(r#"{"argumentſ":{}}"#)
                .unwrap()
                .get("arguments")
                .is_err()
        );
        assert!(members(r#"{"name":1}"#).unwrap().text("name").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::parse(&body);
        }
    }
}
