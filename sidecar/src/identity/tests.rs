#![allow(clippy::unwrap_used)]

use crds::SigningAlgorithm;
use policy::bundle::Issuer;
use proptest::prelude::*;
use serde_json::{Map, Value};

use super::*;
use crate::auth::{Keys, verify_signature};

const URL: &str = "https://orders.example.com/mcp";
const NOW: u64 = 1_800_000_000;

fn bundle() -> Bundle {
    let context = policy::Context {
        default_url: URL.into(),
        ..policy::Context::default()
    };
    let issuer = |name, url| Issuer::inline(name, url, json!({"keys": []}));
    let mut bundle = policy::deny_all("shop", "orders", &context, "test");
    bundle.authentication.issuers = vec![
        issuer("acme", "https://idp.example.com/realms/acme"),
        issuer("other", "https://other.example.com"),
    ];
    bundle.identity = true;
    bundle
}

fn caller(user: &str) -> Caller {
    Caller {
        issuer: Some("acme".into()),
        user: Some(user.into()),
        agent: Some("reporter".into()),
        groups: vec!["staff".into(), "admins".into()],
        scopes: vec!["orders:read".into()],
        expires_at: Some(NOW + 3600),
        ..Caller::default()
    }
}

fn part(text: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap()
}

fn claims(assertion: &Assertion) -> Value {
    part(assertion.0.to_str().unwrap().split('.').nth(1).unwrap())
}

fn assert(identity: &Identity, caller: &Caller, now: u64) -> Assertion {
    let made = identity.assertion(&bundle(), caller, now);
    made.unwrap().unwrap()
}

#[test]
fn an_assertion_says_who_calls_and_is_signed() {
    let identity = Identity::new(None).unwrap();
    let made = assert(&identity, &caller("alice"), NOW);
    let text = made.header().to_str().unwrap().to_owned();
    assert!(!format!("{made:?}").contains(&text));
    let key = identity.key.as_ref().unwrap();
    let head = json!({"typ": "toolward-identity+jwt", "alg": "ES256", "kid": key.public.kid()});
    assert_eq!(part(text.split('.').next().unwrap()), head);
    let mut said = claims(&made);
    let id = said.as_object_mut().unwrap().remove("jti").unwrap();
    assert_eq!(
        URL_SAFE_NO_PAD.decode(id.as_str().unwrap()).unwrap().len(),
        16
    );
    let expected = json!({
        "iss": URL, "aud": URL, "iat": NOW, "nbf": NOW, "exp": NOW + 60,
        "sub_id": {"format": "iss_sub", "iss": "https://idp.example.com/realms/acme", "sub": "alice"},
        "act": {"iss": "https://idp.example.com/realms/acme", "sub": "reporter"},
        "groups": ["staff", "admins"],
    });
    assert_eq!(said, expected);
    let keys = json!({"keys": [key.public]});
    let (keys, left_out) = Keys::read(&keys, &[SigningAlgorithm::ES256]);
    assert_eq!((keys.len(), left_out), (1, 0));
    assert_eq!(verify_signature(&text, &keys), Ok(()));
    let others = json!({"keys": [Identity::new(None).unwrap().key.unwrap().public]});
    let (others, _) = Keys::read(&others, &[SigningAlgorithm::ES256]);
    assert!(verify_signature(&text, &others).is_err());
}

#[test]
fn nobody_is_asserted_and_nothing_where_it_is_not_asked_for() {
    let identity = Identity::new(None).unwrap();
    let no = |identity: &Identity, bundle: &Bundle, caller: &Caller| {
        identity.assertion(bundle, caller, NOW).unwrap().is_none()
    };
    assert!(no(&identity, &bundle(), &Caller::default()));
    assert!(no(&Identity::none(), &bundle(), &caller("alice")));
    let silent = Bundle {
        identity: false,
        ..bundle()
    };
    assert!(no(&identity, &silent, &caller("alice")));
    let plain = Caller {
        agent: None,
        groups: Vec::new(),
        ..caller("alice")
    };
    let said = claims(&assert(&identity, &plain, NOW));
    assert_eq!((said.get("act"), &said["groups"]), (None, &json!([])));
    // Of an issuer that is not known there is nothing to say.
    let unknown = Caller {
        issuer: Some("gone".into()),
        ..caller("alice")
    };
    let refusal = identity.assertion(&bundle(), &unknown, NOW).unwrap_err();
    assert_eq!(refusal.reason, Reason::IdentityUnavailable);
    assert_eq!(refusal.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn it_is_used_again_for_the_same_caller_only_and_for_a_while() {
    let identity = Identity::new(None).unwrap();
    let alice = caller("alice");
    let first = assert(&identity, &alice, NOW).0;
    assert_eq!(assert(&identity, &alice, NOW + 19).0, first);
    // Scopes are not told.
    let scoped = Caller {
        scopes: Vec::new(),
        ..alice.clone()
    };
    assert_eq!(assert(&identity, &scoped, NOW).0, first);
    let others = [
        caller("bob"),
        Caller {
            issuer: Some("other".into()),
            ..alice.clone()
        },
        Caller {
            agent: None,
            ..alice.clone()
        },
        Caller {
            agent: None,
            groups: ["reporter", "staff", "admins"].map(str::to_owned).to_vec(),
            ..alice.clone()
        },
        Caller {
            groups: vec!["staffadmins".into()],
            ..alice.clone()
        },
        Caller {
            groups: vec!["admins".into(), "staff".into()],
            ..alice.clone()
        },
    ];
    for other in &others {
        assert_ne!(assert(&identity, other, NOW).0, first, "{other:?}");
    }
    let moved = Bundle {
        url: "https://elsewhere.example.com/mcp".into(),
        ..bundle()
    };
    let elsewhere = identity.assertion(&moved, &alice, NOW).unwrap().unwrap();
    assert_eq!(claims(&elsewhere)["aud"], moved.url);
    // Later, and for a clock that was set back, there is a new one.
    for now in [NOW + 20, NOW - 1] {
        let again = assert(&identity, &alice, now);
        assert_eq!(claims(&again)["iat"], now);
    }
}

#[test]
fn it_ends_with_the_token_of_the_call() {
    let identity = Identity::new(None).unwrap();
    let until = |expires_at| Caller {
        expires_at: Some(expires_at),
        ..caller("alice")
    };
    let exp = |expires_at, now| claims(&assert(&identity, &until(expires_at), now))["exp"].clone();
    assert_eq!(exp(NOW + 3600, NOW), NOW + 60);
    // That of the token before would outlive this one.
    assert_eq!(exp(NOW + 45, NOW + 1), NOW + 45);
    assert_eq!(exp(NOW + 3600, NOW + 2), NOW + 45, "30 s are left");
    assert_eq!(
        exp(NOW + 3600, NOW + 16),
        NOW + 76,
        "less than 30 s are left"
    );
    assert_eq!(exp(NOW + 20, NOW + 17), NOW + 20);
}

#[test]
fn what_is_kept_is_bounded() {
    let identity = Identity::new(None).unwrap();
    let assertion = assert(&identity, &caller("alice"), NOW);
    let count = || identity.kept.lock().unwrap().assertions.len();
    let keep = |index: usize, at: u64| {
        let mut by = [0; 32];
        by[..8].copy_from_slice(&index.to_be_bytes());
        identity.keep(by, at, at + 60, &assertion);
    };
    (0..2 * MAX_KEPT).for_each(|index| keep(index, NOW));
    assert_eq!(count(), MAX_KEPT);
    // One that is not kept is made for its call.
    let bob = assert(&identity, &caller("bob"), NOW);
    assert_eq!(claims(&bob)["sub_id"]["sub"], "bob");
    keep(usize::MAX, NOW + REUSED);
    assert_eq!(count(), 1, "what is of no use makes room");
}

#[test]
fn calls_wait_until_the_key_is_published() {
    let identity = Identity::new(None).unwrap();
    let bundle = bundle();
    let set = |keys: &[&PublicKey]| Ok(serde_json::to_vec(&json!({"keys": keys})).unwrap());
    let own = identity.key.as_ref().unwrap().public.clone();
    let other = Identity::new(None).unwrap().key.unwrap().public;
    let is_ready = || {
        assert_eq!(
            identity.report().unwrap().published,
            identity.is_ready(&bundle)
        );
        assert_eq!(identity.check(&bundle).is_ok(), identity.is_ready(&bundle));
        identity.is_ready(&bundle)
    };
    assert!(!is_ready());
    identity.load(Err(std::io::Error::other("not there yet")));
    identity.load(set(&[]));
    identity.load(set(&[&other]));
    assert!(!is_ready());
    identity.load(set(&[&other, &own]));
    assert!(is_ready());
    // The last good set stays.
    identity.load(Err(std::io::Error::other("gone")));
    identity.load(Ok(b"{".to_vec()));
    assert!(is_ready());
    identity.load(set(&[&other]));
    assert!(!is_ready());
    let silent = Bundle {
        identity: false,
        ..bundle.clone()
    };
    assert!(identity.is_ready(&silent) && Identity::none().is_ready(&bundle));
}

/// Values of JSON, with the names that have a meaning here.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            object(inner).prop_map(Value::from),
        ]
    })
}

fn object(
    value: impl Strategy<Value = Value> + 'static,
) -> impl Strategy<Value = Map<String, Value>> {
    let name = prop_oneof![
        Just(MEMBER.to_owned()),
        Just("_meta".to_owned()),
        Just("progressToken".to_owned()),
        "[a-z\"\\\\é/]{0,6}",
    ];
    prop::collection::btree_map(name, value, 0..5).prop_map(|members| members.into_iter().collect())
}

proptest! {
    #[test]
    fn only_the_assertion_is_added_to_params(
        mut params in object(value()),
        meta in prop::option::of(object(value())),
    ) {
        let identity = Identity::new(None).unwrap();
        let assertion = assert(&identity, &caller("alice"), NOW);
        match meta {
            Some(meta) => drop(params.insert("_meta".to_owned(), Value::from(meta))),
            None => drop(params.remove("_meta")),
        }
        let params = Value::from(params);
        let text = params.to_string();
        let added: Value = serde_json::from_str(&assertion.in_params(Some(&text)).unwrap()).unwrap();
        let mut expected = params;
        expected["_meta"][MEMBER] = assertion.header().to_str().unwrap().into();
        prop_assert_eq!(added, expected);
    }
}

#[test]
fn params_are_made_where_there_are_none_and_a_meta_that_is_no_object_is_refused() {
    let identity = Identity::new(None).unwrap();
    let assertion = assert(&identity, &caller("alice"), NOW);
    let made: Value = serde_json::from_str(&assertion.in_params(None).unwrap()).unwrap();
    assert_eq!(
        made,
        json!({"_meta": {MEMBER: assertion.0.to_str().unwrap()}})
    );
    for meta in ["1", "null", "[]", "\"a\""] {
        let params = format!(r#"{{"_meta":{meta}}}"#);
        assert!(assertion.in_params(Some(&params)).is_err(), "{params}");
    }
}
