//! The strict reader and the envelope: what they accept is JSON, has one meaning,
//! and the meaning that is decided on is the one that stands in the body.
#![no_main]

use fuzz::envelope::{Kind, Members, Message};
use fuzz::strict;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|body: &[u8]| fuzz::limited(|| one_meaning(body)));

fn one_meaning(body: &[u8]) {
    let checked = strict::check(body);
    let message = Message::parse(body); // Must not panic, whatever the body is.
    if let Err(fault) = checked {
        assert!(!fault.to_string().is_empty());
        return;
    }
    let whole: Value = serde_json::from_slice(body).expect("what is accepted is JSON");
    // Written anew it is accepted again, and the same: no name was lost.
    let again = serde_json::to_vec(&whole).expect("a value can be written");
    assert_eq!(strict::check(&again), Ok(()));
    assert_eq!(
        serde_json::from_slice::<Value>(&again).ok().as_ref(),
        Some(&whole)
    );
    if let Ok(message) = message {
        decided_as_read(&message, &whole);
    }
}

fn decided_as_read(message: &Message<'_>, whole: &Value) {
    let value = |raw: &str| serde_json::from_str::<Value>(raw).expect("a part of JSON is JSON");
    assert_eq!(
        message.id.map(|id| value(id.get())).as_ref(),
        whole.get("id")
    );
    let (method, params) = match &message.kind {
        Kind::Request { method, params } | Kind::Notification { method, params } => {
            (method, params)
        }
        Kind::Response { result, .. } => {
            assert_eq!(
                result.map(|result| value(result.get())).as_ref(),
                whole.get("result")
            );
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
