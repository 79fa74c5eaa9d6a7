//! Key sets that give no key, or another one than it seems (RFC 7517 §4, RFC
//! 8725 §3.4). Each has a token whose signature would be right.

use policy::{
    Reason::{self, AlgorithmNotAllowed, SignatureInvalid, UnknownKey},
    bundle::Issuer,
};
use serde_json::{Value, json};

use super::{
    kit::{self, ACME, Key, NOW, WORLD, claims, encode, header, with},
    signatures::padded_hash,
};
use crate::{
    auth::{Authenticator, Keys},
    issuers::Issuers,
};

type Case = (String, Value, String, Result<(), Reason>);

/// Looks at every set, and returns how many there are.
pub fn check() -> usize {
    let cases = [
        uses(),
        private(),
        weak(),
        mismatched(),
        shapes(),
        same_ids(),
    ]
    .concat();
    for (name, set, token, expected) in &cases {
        let issuer = Issuer::inline("acme", ACME, set.clone());
        let bundle = kit::bundle(vec![issuer], None);
        let authenticator = Authenticator::new(&bundle, &Issuers::default());
        let found = kit::authenticate(&authenticator, &kit::bearer(token), NOW);
        assert_eq!(found.map(drop), *expected, "{name}: {set}");
    }
    cases.len()
}

fn ec() -> Value {
    WORLD.ec.jwk("ec")
}

fn rsa() -> Value {
    WORLD.rsa.jwk("rsa")
}

fn by_ec() -> String {
    WORLD.acme(&json!({}), &json!({}))
}

fn by_rsa() -> String {
    let header = with(header(), &json!({"alg": "RS256", "kid": "rsa"}));
    WORLD.rsa.token(header.to_string(), claims().to_string())
}

/// A set with this key.
fn one(name: &str, key: Value, token: String, expected: Result<(), Reason>) -> Case {
    (name.into(), json!({"keys": [key]}), token, expected)
}

/// The EC key with other members.
fn ec_with(name: &str, changes: Value, expected: Result<(), Reason>) -> Case {
    one(name, with(ec(), &changes), by_ec(), expected)
}

fn uses() -> Vec<Case> {
    let null = |name: &str| {
        let mut key = ec();
        key[name] = Value::Null;
        one(&format!("{name} is null"), key, by_ec(), Ok(()))
    };
    vec![
        ec_with("no use", json!({}), Ok(())),
        ec_with("use sig", json!({"use": "sig"}), Ok(())),
        ec_with("use enc", json!({"use": "enc"}), Err(UnknownKey)),
        ec_with("use unknown", json!({"use": "tls"}), Err(UnknownKey)),
        ec_with("use in capitals", json!({"use": "SIG"}), Err(UnknownKey)),
        ec_with("use is a list", json!({"use": ["sig"]}), Err(UnknownKey)),
        ec_with("key_ops verify", json!({"key_ops": ["verify"]}), Ok(())),
        ec_with(
            "key_ops sign",
            json!({"key_ops": ["sign"]}),
            Err(UnknownKey),
        ),
        ec_with(
            "key_ops encrypt",
            json!({"key_ops": ["encrypt", "wrapKey"]}),
            Err(UnknownKey),
        ),
        ec_with("key_ops empty", json!({"key_ops": []}), Err(UnknownKey)),
        ec_with(
            "key_ops as a text",
            json!({"key_ops": "verify"}),
            Err(UnknownKey),
        ),
        ec_with(
            "use sig, key_ops encrypt",
            json!({"use": "sig", "key_ops": ["encrypt"]}),
            Err(UnknownKey),
        ),
        null("use"),
        null("key_ops"),
    ]
}

/// Whoever gives its private keys away has to make new ones, all of them.
fn private() -> Vec<Case> {
    let secret = encode([7; 32]);
    let oct = json!({"kty": "oct", "k": encode("secret"), "kid": "oct", "alg": "HS256"});
    let mut cases = vec![
        ec_with("its private key", json!({"d": secret}), Err(UnknownKey)),
        one(
            "a symmetric key",
            with(oct.clone(), &json!({"kid": "ec"})),
            by_ec(),
            Err(UnknownKey),
        ),
    ];
    let beside = [
        ("a symmetric key beside it", oct),
        (
            "another's private key beside it",
            with(WORLD.other.jwk("other"), &json!({"d": secret})),
        ),
        (
            "a private RSA key beside it",
            with(rsa(), &json!({"p": secret, "q": secret})),
        ),
    ];
    for (name, key) in beside {
        cases.push((
            name.into(),
            json!({"keys": [ec(), key]}),
            by_ec(),
            Err(UnknownKey),
        ));
    }
    cases
}

/// Keys for which others than their owner can sign.
fn weak() -> Vec<Case> {
    let modulus = |bytes: &[u8]| with(rsa(), &json!({"n": encode(bytes)}));
    let exponent = |bytes: &[u8]| with(rsa(), &json!({"e": encode(bytes)}));
    let bytes = kit::decode(rsa()["n"].as_str().unwrap());
    let mut even = bytes.clone();
    even[255] &= 0xfe;
    let refused = |name: &str, key: Value| one(name, key, by_rsa(), Err(UnknownKey));
    let header = with(header(), &json!({"alg": "RS256", "kid": "rsa"})).to_string();
    let signed = format!("{}.{}", encode(header), encode(claims().to_string()));
    let everybodys = format!("{signed}.{}", encode(padded_hash(&signed)));
    let mut y = kit::decode(ec()["y"].as_str().unwrap());
    y[31] ^= 1;
    let zeros = encode([0; 32]);
    vec![
        one("RSA", rsa(), by_rsa(), Ok(())),
        one(
            "RSA by which everybody signs",
            exponent(&[1]),
            everybodys,
            Err(UnknownKey),
        ),
        refused("RSA of 1024 bits", modulus(&bytes[..128])),
        refused("RSA of 2040 bits", modulus(&bytes[1..])),
        refused("RSA of 16384 bits", modulus(&[0xff; 2048])),
        refused("RSA, even", modulus(&even)),
        refused(
            "RSA with a zero before it",
            modulus(&[&[0][..], &bytes[..]].concat()),
        ),
        refused("RSA, nothing", modulus(&[])),
        refused("RSA of ROCA", modulus(&roca())),
        refused("RSA, exponent 0", exponent(&[0])),
        refused("RSA, no exponent", exponent(&[])),
        refused("RSA, exponent even", exponent(&[1, 0, 0])),
        refused("RSA, exponent of 40 bits", exponent(&[1, 0, 0, 0, 1])),
        refused("RSA, padded base64", with(rsa(), &json!({"e": "AQAB=="}))),
        ec_with(
            "EC, not on the curve",
            json!({"y": encode(&y)}),
            Err(UnknownKey),
        ),
        ec_with(
            "EC, zeros",
            json!({"x": zeros, "y": zeros}),
            Err(UnknownKey),
        ),
        ec_with(
            "EC, x too short",
            json!({"x": encode(&y[1..])}),
            Err(UnknownKey),
        ),
        ec_with(
            "EC, x too long",
            json!({"x": encode([&[0][..], &y[..]].concat())}),
            Err(UnknownKey),
        ),
        ec_with(
            "EC, half of it in y",
            json!({"x": "", "y": encode([y.clone(), y].concat())}),
            Err(UnknownKey),
        ),
        ed("Ed25519", json!({}), Ok(())),
        ed(
            "Ed25519, too short",
            json!({"x": encode([7; 31])}),
            Err(UnknownKey),
        ),
        ed(
            "Ed25519 in a certificate's form",
            json!({"x": encode(WORLD.ed.der())}),
            Err(UnknownKey),
        ),
        ed("Ed448", json!({"crv": "Ed448"}), Err(UnknownKey)),
        ed("X25519", json!({"crv": "X25519"}), Err(UnknownKey)),
    ]
}

fn ed(name: &str, changes: Value, expected: Result<(), Reason>) -> Case {
    let header = with(header(), &json!({"alg": "EdDSA", "kid": "ed"}));
    let token = WORLD.ed.token(header.to_string(), claims().to_string());
    one(name, with(WORLD.ed.jwk("ed"), &changes), token, expected)
}

/// The modulus of Wycheproof's key of ROCA.
fn roca() -> Vec<u8> {
    kit::decode(concat!(
        "AanFpofbj7KjD4Lf-N2hVMKR7yewSyXhhbirIMTGpfYEhZ_lnt5UoK98DnKIgArXGTu3MaW_HhFw16HG",
        "aTDUHqPrId7fe4r11CqRw09yBFuW79V8sYIwHdzCaWflUI6auImYbVfoN9_nD5n8N8SY9DwXw7mwZM9w",
        "REPXoDPgOoIWl6q_MPsp7n0zs3Z5ZaiQWOOzl1S9OhwAfSiiOwz6efnXEaxuTEtPd7BjSx7NaFka8Dx9",
        "U7YqXy2RFj1O9PjyaDGuRh7YXsX3iMUSP_wSyHQg_c_qHRtKUsNSGCT7OZg0hzm2KphtjnayKJvC64vA",
        "bROBR4Ubg6Bxg9IQVZ-QYyE",
    ))
}

/// Keys of one kind that say they are of another.
fn mismatched() -> Vec<Case> {
    let mut null = ec();
    null["alg"] = Value::Null;
    vec![
        ec_with("alg ES256", json!({"alg": "ES256"}), Ok(())),
        ec_with(
            "alg ES384 on P-256",
            json!({"alg": "ES384"}),
            Err(UnknownKey),
        ),
        ec_with(
            "alg RS256 on P-256",
            json!({"alg": "RS256"}),
            Err(UnknownKey),
        ),
        ec_with(
            "alg HS256 on P-256",
            json!({"alg": "HS256"}),
            Err(UnknownKey),
        ),
        ec_with("alg none", json!({"alg": "none"}), Err(UnknownKey)),
        ec_with(
            "alg in small letters",
            json!({"alg": "es256"}),
            Err(UnknownKey),
        ),
        ec_with(
            "alg of encryption",
            json!({"alg": "ECDH-ES"}),
            Err(UnknownKey),
        ),
        ec_with("alg is a list", json!({"alg": ["ES256"]}), Err(UnknownKey)),
        one("alg is null", null, by_ec(), Err(UnknownKey)),
        ec_with("P-384", json!({"crv": "P-384"}), Err(UnknownKey)),
        ec_with("P-521", json!({"crv": "P-521"}), Err(UnknownKey)),
        ec_with("secp256k1", json!({"crv": "secp256k1"}), Err(UnknownKey)),
        ec_with("no curve", json!({"crv": null}), Err(UnknownKey)),
        ec_with("kty RSA", json!({"kty": "RSA"}), Err(UnknownKey)),
        ec_with("kty OKP", json!({"kty": "OKP"}), Err(UnknownKey)),
        ec_with(
            "kty in small letters",
            json!({"kty": "ec"}),
            Err(UnknownKey),
        ),
        ec_with("no kty", json!({"kty": null}), Err(UnknownKey)),
        one(
            "RSA for PS256 alone",
            with(rsa(), &json!({"alg": "PS256"})),
            by_rsa(),
            Err(AlgorithmNotAllowed),
        ),
        // That the issuer signs with neither, the key does not change.
        one(
            "RSA for RS512",
            with(rsa(), &json!({"alg": "RS512"})),
            by_rsa(),
            Err(UnknownKey),
        ),
        // A key of another kind under the id.
        one(
            "RSA under the id of an EC key",
            WORLD.rsa.jwk("ec"),
            by_ec(),
            Err(AlgorithmNotAllowed),
        ),
        one(
            "P-384 under the id",
            Key::ec384().jwk("ec"),
            by_ec(),
            Err(UnknownKey),
        ),
    ]
}

fn shapes() -> Vec<Case> {
    let set = |name: &str, set: Value, expected| (name.to_owned(), set, by_ec(), expected);
    let many = |count| {
        let mut keys = vec![WORLD.stranger.jwk("x"); count];
        keys.push(ec());
        json!({"keys": keys})
    };
    vec![
        set("no set", json!({}), Err(UnknownKey)),
        set("null", Value::Null, Err(UnknownKey)),
        set("a list", json!([ec()]), Err(UnknownKey)),
        set(
            "keys as an object",
            json!({"keys": {"ec": ec()}}),
            Err(UnknownKey),
        ),
        set("one key", ec(), Err(UnknownKey)),
        set("no keys", json!({"keys": []}), Err(UnknownKey)),
        set(
            "what is no key",
            json!({"keys": [null, 1, "ec", [], {}]}),
            Err(UnknownKey),
        ),
        set(
            "what is no key, and a key",
            json!({"keys": [null, 1, "ec", [], {}, ec()]}),
            Ok(()),
        ),
        set("100 keys", many(99), Ok(())),
        set("too many keys", many(100), Err(UnknownKey)),
        ec_with("another id", json!({"kid": "ec2"}), Err(UnknownKey)),
        ec_with("no id", json!({"kid": null}), Err(UnknownKey)),
        ec_with("an id that is a number", json!({"kid": 1}), Err(UnknownKey)),
        one(
            "no id on both sides",
            with(ec(), &json!({"kid": null})),
            WORLD.acme(&json!({"kid": null}), &json!({})),
            Ok(()),
        ),
    ]
}

/// Several keys with one id: each is tried, up to a bound.
fn same_ids() -> Vec<Case> {
    let before = |count| {
        let mut keys: Vec<_> = (0..count).map(|_| Key::ec().jwk("ec")).collect();
        keys.push(ec());
        json!({"keys": keys})
    };
    let other_kind = json!({"keys": [WORLD.rsa.jwk("ec"), ec()]});
    vec![
        ("the second with the id".into(), before(1), by_ec(), Ok(())),
        ("the fourth with the id".into(), before(3), by_ec(), Ok(())),
        (
            "the fifth with the id".into(),
            before(4),
            by_ec(),
            Err(SignatureInvalid),
        ),
        (
            "one of another kind has the id too".into(),
            other_kind,
            by_ec(),
            Ok(()),
        ),
    ]
}

#[test]
fn what_is_left_out_of_a_set_is_counted() {
    let algorithms = policy::bundle::DEFAULT_ALGORITHMS;
    let keys = json!({"keys": [ec(), with(rsa(), &json!({"use": "enc"})), null, rsa()]});
    let (keys, left_out) = Keys::read(&keys, &algorithms);
    assert_eq!((keys.len(), left_out, keys.is_empty()), (2, 2, false));
    let (keys, left_out) = Keys::read(
        &json!({"keys": [with(ec(), &json!({"d": "AA"})), rsa()]}),
        &algorithms,
    );
    assert_eq!((keys.len(), left_out, keys.is_empty()), (0, 2, true));
}
