//! What holds of all tokens.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::kit::{AUDIENCE, NOW, WORLD, authenticate, claims, header, with};
/// A good token by each kind of key.
static GOOD: LazyLock<[String; 4]> = LazyLock::new(|| {
    let by_rsa = |alg: &str| {
        let header = with(header(), &json!({"alg": alg, "kid": "rsa"}));
        WORLD.rsa.token(header.to_string(), claims().to_string())
    };
    let ed = with(header(), &json!({"alg": "EdDSA", "kid": "ed"}));
    [
        WORLD.acme(&json!({}), &json!({})),
        WORLD.ed.token(ed.to_string(), claims().to_string()),
        by_rsa("RS256"),
        by_rsa("PS256"),
    ]
});

/// `token` with another letter at a place.
fn changed(token: &str, at: usize, letter: u8) -> String {
    let mut bytes = token.as_bytes().to_vec();
    bytes[at] = letter;
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_change_of_any_letter_is_refused() {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut tried = 0;
    for token in &*GOOD {
        assert_eq!(WORLD.caller(token).map(drop), Ok(()));
        for (at, letter) in token.bytes().enumerate() {
            // The one letter whose bits differ least, and one that is no letter.
            let place = LETTERS.iter().position(|other| *other == letter);
            let next = place.map_or(b'A', |place| LETTERS[place ^ 1]);
            for other in [next, b'.', b'='] {
                if other != letter {
                    let changed = changed(token, at, other);
                    assert!(WORLD.caller(&changed).is_err(), "{changed}");
                    tried += 1;
                }
            }
        }
    }
    println!("{tried} changes of one letter: all refused");
}

/// JSON of all kinds, not deep.
fn a_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (NOW - 5000..NOW + 5000).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop_oneof![
            Just(AUDIENCE),
            Just("alice"),
            Just("at+jwt"),
            Just("ES256"),
            Just("ec")
        ]
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

const CLAIMS: &[&str] = &[
    "iss",
    "sub",
    "aud",
    "exp",
    "iat",
    "nbf",
    "cnf",
    "jti",
    "client_id",
    "azp",
    "act",
    "groups",
    "scope",
];
const HEADER: &[&str] = &[
    "alg", "typ", "kid", "crit", "b64", "enc", "jwk", "x5c", "zip", "cty",
];

proptest! {
    #[test]
    fn any_change_of_one_letter_is_refused(kind in 0..4_usize, at in any::<prop::sample::Index>(), letter in 0x20..0x7f_u8) {
        let token = &GOOD[kind];
        let at = at.index(token.len());
        prop_assume!(token.as_bytes()[at] != letter);
        let changed = changed(token, at, letter);
        prop_assert!(WORLD.caller(&changed).is_err(), "{}", changed);
    }

    #[test]
    fn noise_is_refused(token in "[ -~]{0,300}", dotted in "[A-Za-z0-9_=-]{0,60}\\.[A-Za-z0-9_=-]{0,60}\\.[A-Za-z0-9_=-]{0,60}") {
        prop_assert!(WORLD.caller(&token).is_err());
        prop_assert!(WORLD.caller(&dotted).is_err());
    }

    #[test]
    fn noise_in_the_header_is_refused(value in prop::collection::vec(any::<u8>(), 0..100)) {
        if let Ok(value) = http::HeaderValue::from_bytes(&[&b"Bearer "[..], &value].concat()) {
            let headers = http::HeaderMap::from_iter([(http::header::AUTHORIZATION, value)]);
            prop_assert!(authenticate(&WORLD.authenticator, &headers, NOW).is_err());
        }
    }

    #[test]
    fn signed_noise_is_refused(header in prop::collection::vec(any::<u8>(), 0..100), payload in prop::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(WORLD.caller(&WORLD.ec.token(&header, &payload)).is_err());
        let good = super::kit::header().to_string();
        prop_assert!(WORLD.caller(&WORLD.ec.token(good, payload)).is_err());
        prop_assert!(WORLD.caller(&WORLD.ec.token(header, claims().to_string())).is_err());
    }

    /// Whatever an issuer signs: who is let in has a name, and for this server,
    /// for now.
    #[test]
    fn what_is_accepted_is_sound(changes in prop::collection::vec((prop::sample::select(CLAIMS), a_value()), 0..3)) {
        let mut claims = claims();
        for (name, value) in changes {
            claims[name] = value;
        }
        let token = WORLD.ec.token(header().to_string(), claims.to_string());
        if let Ok(caller) = WORLD.caller(&token) {
            prop_assert_eq!(caller.issuer.as_deref(), Some("acme"));
            prop_assert_eq!(caller.user.as_deref(), claims["sub"].as_str());
            prop_assert!(caller.user.is_some_and(|user| !user.is_empty()));
            prop_assert!(caller.expires_at.is_some_and(|end| NOW < end && end <= NOW + 60 + 3600));
            prop_assert!(claims.get("cnf").is_none());
            let audience = &claims["aud"];
            prop_assert!(audience == AUDIENCE || audience.as_array().is_some_and(|list| list.contains(&AUDIENCE.into())));
        }
    }

    /// Whatever a header says beside, it is by the issuer's key, or refused.
    #[test]
    fn a_header_of_a_strangers_token_does_not_help(changes in prop::collection::vec((prop::sample::select(HEADER), a_value()), 0..3)) {
        let mut header = header();
        for (name, value) in changes {
            header[name] = value;
        }
        let token = WORLD.stranger.token(header.to_string(), claims().to_string());
        prop_assert!(WORLD.caller(&token).is_err());
    }
}
