//! The strict reader and the envelope: what they accept is JSON, has one meaning,
//! and the meaning that is decided on is the one that stands in the body.
#![no_main]

use fuzz::envelope::{Kind, Members, Message, Messages};
use fuzz::strict;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use serde_json::value::RawValue;

fuzz_target!(|body: &[u8]| fuzz::limited(|| one_meaning(body)));

fn one_meaning(body: &[u8]) {
    let _ = Message::parse(body); // What servers send: it must not panic.
    let messages = Messages::parse(body);
    if let Err(fault) = strict::check(body) {
        assert!(!fault.to_string().is_empty());
        assert!(messages.is_err());
        return;
    }
    let whole: Value = serde_json::from_slice(body).expect("what is accepted is JSON");
    // Written anew it is accepted again, and the same: no name was lost.
    let again = serde_json::to_vec(&whole).expect("a value can be written");
    assert_eq!(strict::check(&again), Ok(()));
    let read_again = serde_json::from_slice::<Value>(&again);
    assert_eq!(read_again.ok().as_ref(), Some(&whole));
    match (messages, &whole) {
        (Err(_), _) => {}
        (Ok(messages), Value::Array(elements)) => {
            assert!(messages.is_batch && messages.list.len() == elements.len());
            for (message, element) in messages.list.iter().zip(elements) {
                decided_as_read(message, element);
            }
        }
        (Ok(messages), whole) => {
            assert!(!messages.is_batch && messages.list.len() == 1);
            decided_as_read(&messages.list[0], whole);
        }
    }
}

fn decided_as_read(message: &Message<'_>, whole: &Value) {
    let value = |raw: &str| serde_json::from_str::<Value>(raw).expect("a part of JSON is JSON");
    assert_eq!(&value(message.text), whole, "this is what is forwarded");
    assert_eq!(
        message.id.map(|id| value(id.get())).as_ref(),
        whole.get("id")
    );
    let (method, params) = match &message.kind {
        Kind::Request { method, params } | Kind::Notification { method, params } => {
            (method, params)
        }
        Kind::Response { result, error } => {
            let value = |raw: &Option<&RawValue>| raw.map(|raw| value(raw.get()));
            assert_eq!(value(result).as_ref(), whole.get("result"));
            assert_eq!(value(error).as_ref(), whole.get("error"));
            return;
        }
    };
    assert_eq!(whole["method"], **method);
    assert_eq!(
        params.map(|params| value(params.get())).as_ref(),
        whole.get("params")
    );
    let Some(members) = params.and_then(|params| Members::parse(params).ok()) else {
        return;
    };
    assert_eq!(
        members.0.len(),
        whole["params"].as_object().map_or(0, |params| params.len())
    );
    for name in ["name", "uri"] {
        if let Ok(text) = members.text(name) {
            assert_eq!(whole["params"][name], *text);
        }
    }
}
