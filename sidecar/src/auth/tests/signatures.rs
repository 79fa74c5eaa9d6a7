//! Signatures that are not the issuer's, and claims that were changed after they
//! were signed.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};
use policy::Reason::{SignatureInvalid, TokenOpaque, UnknownIssuer, UnknownKey};
use serde_json::json;

use super::kit::{
    ACME, CLUSTER, Case, Key, NESTED, OTHER, WORLD, claims, claims_of, decode, encode, header, with,
};

/// The order of P-256 (FIPS 186-5, SP 800-186 §3.2.1.3).
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6,
    0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

pub fn cases() -> Vec<Case> {
    [of_ecdsa(), of_others(), changed(), issuers()].concat()
}

/// Header and payload of a good token, and its signature.
fn split(token: &str) -> (&str, &str) {
    token.rsplit_once('.').unwrap()
}

/// With another signature.
fn wrong(name: &str, signed: &str, signature: impl AsRef<str>) -> Case {
    let token = format!("{signed}.{}", signature.as_ref());
    (name.into(), token, Err(SignatureInvalid))
}

fn of_ecdsa() -> Vec<Case> {
    let good = WORLD.acme(&json!({}), &json!({}));
    let again = WORLD.acme(&json!({}), &json!({"sub": "bob"}));
    let (signed, signature) = split(&good);
    let bytes = decode(signature);
    let (r, s) = bytes.split_at(32);
    let number = |last: u8| [&[0; 31][..], &[last]].concat();
    let mut less = ORDER;
    less[31] -= 1;
    let numbers = [
        ("0", number(0)),
        ("1", number(1)),
        ("n-1", less.to_vec()),
        ("n", ORDER.to_vec()),
        ("2^256-1", vec![0xff; 32]),
    ];
    let mut cases = vec![
        wrong("no signature", signed, ""),
        wrong(
            "a signature that is cut",
            signed,
            &signature[..signature.len() - 4],
        ),
        wrong(
            "a signature that lacks one letter",
            signed,
            &signature[..signature.len() - 1],
        ),
        wrong(
            "a signature that is longer",
            signed,
            format!("{signature}AA"),
        ),
        wrong(
            "a signature with one byte before it",
            signed,
            encode([&[0][..], &bytes[..]].concat()),
        ),
        wrong("the signature of another token", signed, split(&again).1),
        wrong(
            "the signature twice",
            signed,
            format!("{signature}{signature}"),
        ),
        wrong("r and s change places", signed, encode([s, r].concat())),
        wrong("DER", signed, encode(der(signed))),
        wrong(
            "P-384",
            signed,
            encode(Key::ec384().sign("ES384", signed.as_bytes())),
        ),
        wrong(
            "a stranger's",
            signed,
            encode(WORLD.stranger.sign("ES256", signed.as_bytes())),
        ),
        wrong(
            "of RSA",
            signed,
            encode(WORLD.rsa.sign("RS256", signed.as_bytes())),
        ),
        wrong("noise", signed, encode([0x5a; 64])),
        wrong(
            "the header again",
            signed,
            signed.split('.').next().unwrap(),
        ),
        (
            "no signature and no dot".into(),
            signed.into(),
            Err(TokenOpaque),
        ),
    ];
    for (r_name, r) in &numbers {
        for (s_name, s) in &numbers {
            let signature = encode([&r[..], s].concat());
            cases.push(wrong(
                &format!("r is {r_name}, s is {s_name}"),
                signed,
                signature,
            ));
        }
    }
    cases
}

/// A right signature by the key of acme, but as certificates have them.
fn der(signed: &str) -> Vec<u8> {
    use aws_lc_rs::encoding::{AsBigEndian, EcPrivateKeyBin};
    use aws_lc_rs::signature::KeyPair;
    let Key::Ec(key) = &WORLD.ec else {
        unreachable!()
    };
    let private: EcPrivateKeyBin<'_> = key.private_key().as_be_bytes().unwrap();
    let key = EcdsaKeyPair::from_private_key_and_public_key(
        &ECDSA_P256_SHA256_ASN1_SIGNING,
        private.as_ref(),
        key.public_key().as_ref(),
    );
    let signature = key.unwrap().sign(&SystemRandom::new(), signed.as_bytes());
    signature.unwrap().as_ref().to_vec()
}

fn of_others() -> Vec<Case> {
    let token = |key: &Key, changes| {
        let header = with(header(), &changes).to_string();
        key.token(header, claims().to_string())
    };
    let rsa = token(&WORLD.rsa, json!({"alg": "RS256", "kid": "rsa"}));
    let (signed, signature) = split(&rsa);
    let modulus = decode(WORLD.rsa.jwk("rsa")["n"].as_str().unwrap());
    let number = |last: u8| encode([&[0; 255][..], &[last]].concat());
    let pss = token(&WORLD.rsa, json!({"alg": "PS256", "kid": "rsa"}));
    let ed = token(&WORLD.ed, json!({"alg": "EdDSA", "kid": "ed"}));
    let (ed_signed, ed_signature) = split(&ed);
    let zero_s = [&decode(ed_signature)[..32], &[0; 32]].concat();
    vec![
        wrong("RSA: none", signed, ""),
        wrong("RSA: cut", signed, &signature[..signature.len() - 4]),
        wrong(
            "RSA: longer",
            signed,
            encode([&decode(signature)[..], &[0]].concat()),
        ),
        wrong(
            "RSA: a zero before it",
            signed,
            encode([&[0][..], &decode(signature)[..]].concat()),
        ),
        wrong("RSA: 0", signed, number(0)),
        wrong("RSA: 1", signed, number(1)),
        wrong("RSA: n", signed, encode(modulus)),
        wrong(
            "RSA: a stranger's",
            signed,
            encode(Key::rsa().sign("RS256", signed.as_bytes())),
        ),
        wrong(
            "RSA: the padded hash itself",
            signed,
            encode(padded_hash(signed)),
        ),
        wrong(
            "PSS: that of PKCS #1",
            split(&pss).0,
            encode(WORLD.rsa.sign("RS256", split(&pss).0.as_bytes())),
        ),
        wrong("EdDSA: zeros", ed_signed, encode([0; 64])),
        wrong("EdDSA: s is 0", ed_signed, encode(zero_s)),
        wrong(
            "EdDSA: a stranger's",
            ed_signed,
            encode(Key::ed().sign("EdDSA", ed_signed.as_bytes())),
        ),
        wrong(
            "EdDSA: cut",
            ed_signed,
            &ed_signature[..ed_signature.len() - 4],
        ),
    ]
}

/// What an RSA signature is where everybody can make one (RFC 8017 §9.2).
pub fn padded_hash(signed: &str) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    const SHA256: [u8; 19] = [
        0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01,
        0x05, 0x00, 0x04, 0x20,
    ];
    let hash = Sha256::digest(signed);
    [&[0, 1][..], &[0xff; 202], &[0], &SHA256, &hash].concat()
}

/// The signature of a good token, over something else.
fn changed() -> Vec<Case> {
    let good = WORLD.acme(&json!({}), &json!({}));
    let (_, signature) = split(&good);
    let kept = |name: &str, header: String, claims: String| {
        wrong(
            name,
            &format!("{}.{}", encode(header), encode(claims)),
            signature,
        )
    };
    let claims_with = |changes| with(claims(), &changes).to_string();
    let plain = header().to_string();
    vec![
        kept(
            "another user",
            plain.clone(),
            claims_with(json!({"sub": "root"})),
        ),
        kept(
            "another group",
            plain.clone(),
            claims_with(json!({"groups": ["admins"]})),
        ),
        kept(
            "more scopes",
            plain.clone(),
            claims_with(json!({"scope": "orders:write"})),
        ),
        kept(
            "a later end",
            plain.clone(),
            claims_with(json!({"exp": super::kit::NOW + 3000})),
        ),
        kept(
            "a blank in the claims",
            plain.clone(),
            format!("{} ", claims()),
        ),
        kept(
            "a blank in the header",
            format!("{plain} "),
            claims().to_string(),
        ),
        kept(
            "no kid",
            with(header(), &json!({"kid": null})).to_string(),
            claims().to_string(),
        ),
        kept(
            "another spelling of typ",
            with(header(), &json!({"typ": "AT+JWT"})).to_string(),
            claims().to_string(),
        ),
    ]
}

/// A key is one issuer's, and an issuer is one name, exactly.
fn issuers() -> Vec<Case> {
    let token = |key: &Key, kid: &str, iss: &str| {
        let header = with(header(), &json!({"kid": kid})).to_string();
        key.token(header, claims_of(iss).to_string())
    };
    let mut cases = vec![
        (
            "acme's key for another's token",
            token(&WORLD.ec, "ec", OTHER),
            UnknownKey,
        ),
        (
            "acme's key by another's kid",
            token(&WORLD.ec, "other", OTHER),
            SignatureInvalid,
        ),
        (
            "another's key for acme's token",
            token(&WORLD.other, "other", ACME),
            UnknownKey,
        ),
        (
            "the cluster's key for acme's token",
            token(&WORLD.cluster, "cluster", ACME),
            UnknownKey,
        ),
        (
            "the cluster's key by acme's kid",
            token(&WORLD.cluster, "ec", ACME),
            SignatureInvalid,
        ),
        (
            "acme's key for the cluster's token",
            token(&WORLD.ec, "ec", CLUSTER),
            UnknownKey,
        ),
        (
            "acme's key by the cluster's kid",
            token(&WORLD.ec, "cluster", CLUSTER),
            SignatureInvalid,
        ),
        // These two have the same key.
        (
            "another's kid of the same key",
            token(&WORLD.other, "other", NESTED),
            UnknownKey,
        ),
    ];
    let slash = format!("{ACME}/");
    let dot = ACME.replace("acme.example", "acme.example.");
    let port = ACME.replace("acme.example", "acme.example:443");
    for iss in [
        slash.as_str(),
        "https://ACME.example/realms/a",
        "HTTPS://acme.example/realms/a",
        "https://acme.example/realms/A",
        "http://acme.example/realms/a",
        "https://acme.example",
        "https://acme.example/realms/a?x",
        "https://acme.example/realms/a#x",
        "https://acme.example/realms/%61",
        "https://acme.example/realms/../realms/a",
        "acme",
        " https://acme.example/realms/a",
        "https://acme.example/realms/a\u{0}",
        "https://\u{430}cme.example/realms/a",
        dot.as_str(),
        port.as_str(),
        "https://acme.example@evil.example/realms/a",
        "https://evil.example/",
        "",
    ] {
        cases.push((iss, token(&WORLD.ec, "ec", iss), UnknownIssuer));
    }
    let named = |(name, token, reason)| (format!("issuer: {name:?}"), token, Err(reason));
    cases.into_iter().map(named).collect()
}
