//! Tokens that are no tokens, or could be read in two ways. Where a signature is
//! possible, it is right: the form alone is what is refused.

use policy::Reason::{CriticalHeader, TokenEncrypted, TokenMalformed, TokenOpaque, TokenTooLarge};
use serde_json::json;

use super::kit::{Case, WORLD, claims, encode, header};
use crate::auth::token::MAX_BYTES;

pub fn cases() -> Vec<Case> {
    [parts(), encodings(), headers(), payloads(), sizes()].concat()
}

fn good() -> String {
    WORLD.acme(&json!({}), &json!({}))
}

fn parts() -> Vec<Case> {
    let good = good();
    let [first, second, third] = good.split('.').collect::<Vec<_>>()[..] else {
        unreachable!()
    };
    let json = json!({"payload": second, "protected": first, "signature": third}).to_string();
    let encrypted = encode(r#"{"alg":"RSA-OAEP","enc":"A256GCM"}"#);
    let inner = WORLD.ec.token(
        r#"{"alg":"ES256","typ":"at+jwt","kid":"ec","enc":"A256GCM"}"#,
        claims().to_string(),
    );
    let cases = [
        ("nothing", String::new(), TokenOpaque),
        ("opaque", "2YotnFZFEjr1zCsicMWpAA".into(), TokenOpaque),
        ("two parts", format!("{first}.{second}"), TokenOpaque),
        ("four parts", format!("{good}.x"), TokenOpaque),
        (
            "four parts, the last empty",
            format!("{good}."),
            TokenOpaque,
        ),
        ("six parts", format!("{good}.a.b.c"), TokenOpaque),
        (
            "a dot that is encoded",
            good.replace('.', "%2e"),
            TokenOpaque,
        ),
        ("JSON serialization", json, TokenMalformed),
        ("encrypted", format!("{encrypted}.a.b.c.d"), TokenEncrypted),
        (
            "five parts of a good one",
            format!("{good}.a.b"),
            TokenEncrypted,
        ),
        (
            "three parts, and says it is encrypted",
            inner,
            TokenEncrypted,
        ),
        ("no header", format!(".{second}.{third}"), TokenMalformed),
        ("no payload", format!("{first}..{third}"), TokenMalformed),
        ("three empty parts", "..".into(), TokenMalformed),
        (
            "header and payload change places",
            format!("{second}.{first}.{third}"),
            TokenMalformed,
        ),
        ("garbage in three parts", "x.y.z".into(), TokenMalformed),
    ];
    cases.map(named).into()
}

fn named((name, token, reason): (&str, String, policy::Reason)) -> Case {
    (name.into(), token, Err(reason))
}

/// A part whose last letter has bits that mean nothing, set.
fn with_odd_bits(encoded: &str) -> String {
    const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    assert_ne!(encoded.len() % 4, 0, "all bits mean something");
    let (rest, last) = encoded.split_at(encoded.len() - 1);
    let at = LETTERS.find(last).unwrap();
    format!("{rest}{}", &LETTERS[at + 1..at + 2])
}

/// A JSON text with blanks, until its encoding is as wanted.
fn padded(json: &str, is_good: impl Fn(&str) -> bool) -> String {
    let texts = (0..4).map(|blanks| encode(format!("{json}{}", " ".repeat(blanks))));
    texts.into_iter().find(|encoded| is_good(encoded)).unwrap()
}

/// Other spellings of the same bytes (RFC 7515 §2: without padding, RFC 4648 §5).
fn encodings() -> Vec<Case> {
    let sign =
        |header: &str, payload: &str| WORLD.ec.sign_text("ES256", &format!("{header}.{payload}"));
    let has_spare = |encoded: &str| !encoded.len().is_multiple_of(4);
    let pad = |encoded: &str| format!("{encoded}{}", "=".repeat(4 - encoded.len() % 4));
    // `~~~` is written with other letters in the two alphabets.
    let in_header =
        json!({"alg": "ES256", "typ": "at+jwt", "kid": "ec", "x": "~~~???"}).to_string();
    let (header, payload) = (
        padded(&header().to_string(), has_spare),
        padded(&claims().to_string(), has_spare),
    );
    let special = |encoded: &str| encoded.contains(['-', '_']);
    let other = |encoded: &str| encoded.replace('-', "+").replace('_', "/");
    let special_header = padded(&in_header, special);
    let in_claims = claims().to_string().replacen('{', r#"{"x":"~~~???","#, 1);
    let special_payload = padded(&in_claims, special);
    let good = sign(&header, &payload);
    let signature = good.rsplit('.').next().unwrap();
    let resigned = |signature: &str| format!("{header}.{payload}.{signature}");
    let half = payload.len() / 2;
    let cases = [
        ("padding of the header", sign(&pad(&header), &payload)),
        ("padding of the payload", sign(&header, &pad(&payload))),
        (
            "spare bits of the header",
            sign(&with_odd_bits(&header), &payload),
        ),
        (
            "spare bits of the payload",
            sign(&header, &with_odd_bits(&payload)),
        ),
        (
            "the other alphabet in the header",
            sign(&other(&special_header), &payload),
        ),
        (
            "the other alphabet in the payload",
            sign(&header, &other(&special_payload)),
        ),
        (
            "a blank in the payload",
            sign(
                &header,
                &format!("{} {}", &payload[..half], &payload[half..]),
            ),
        ),
        (
            "a blank in the signature",
            resigned(&format!("{} {}", &signature[..9], &signature[9..])),
        ),
        (
            "a letter of no alphabet",
            sign(&header, &format!("{payload}*")),
        ),
        (
            "one letter too many",
            sign(&header, &payload[..payload.len() - payload.len() % 4 + 1]),
        ),
    ];
    let of_signature = [
        ("padding of the signature", resigned(&pad(signature))),
        (
            "spare bits of the signature",
            resigned(&with_odd_bits(signature)),
        ),
        (
            "the other alphabet in the signature",
            resigned(&format!("+/{}", &signature[2..])),
        ),
    ];
    let accepted = [
        ("blanks in the header's JSON", sign(&header, &payload)),
        (
            "the right alphabet",
            sign(&special_header, &special_payload),
        ),
    ];
    let refused = cases.map(|(name, token)| named((name, token, TokenMalformed)));
    let of_signature =
        of_signature.map(|(name, token)| named((name, token, policy::Reason::SignatureInvalid)));
    let accepted = accepted.map(|(name, token)| (name.to_owned(), token, Ok(())));
    [refused.to_vec(), of_signature.to_vec(), accepted.to_vec()].concat()
}

/// What a header may not be, and may not say.
fn headers() -> Vec<Case> {
    let rest = r#""typ":"at+jwt","kid":"ec""#;
    let sign = |header: &[u8]| WORLD.ec.token(header, claims().to_string());
    let malformed: [(&str, &[u8]); 20] = [
        (
            "alg twice",
            br#"{"alg":"ES256","typ":"at+jwt","kid":"ec","alg":"none"}"#,
        ),
        (
            "alg twice, once by an escape",
            br#"{"alg":"ES256","typ":"at+jwt","kid":"ec","\u0061lg":"none"}"#,
        ),
        (
            "kid twice",
            br#"{"alg":"ES256","typ":"at+jwt","kid":"ec","kid":"rsa"}"#,
        ),
        (
            "no UTF-8",
            b"{\"alg\":\"ES256\",\"typ\":\"at+jwt\",\"kid\":\"ec\",\"x\":\"\xff\"}",
        ),
        (
            "an overlong form",
            b"{\"alg\":\"ES256\",\"typ\":\"at+jwt\",\"kid\":\"ec\",\"x\":\"\xc0\xae\"}",
        ),
        (
            "a byte order mark",
            b"\xef\xbb\xbf{\"alg\":\"ES256\",\"typ\":\"at+jwt\",\"kid\":\"ec\"}",
        ),
        (
            "an array",
            br#"[{"alg":"ES256","typ":"at+jwt","kid":"ec"}]"#,
        ),
        ("a string", br#""ES256""#),
        ("null", b"null"),
        (
            "something after it",
            br#"{"alg":"ES256","typ":"at+jwt","kid":"ec"}{}"#,
        ),
        ("no alg", br#"{"typ":"at+jwt","kid":"ec"}"#),
        (
            "alg in capitals",
            br#"{"ALG":"ES256","typ":"at+jwt","kid":"ec"}"#,
        ),
        (
            "alg is a number",
            br#"{"alg":256,"typ":"at+jwt","kid":"ec"}"#,
        ),
        ("alg is null", br#"{"alg":null,"typ":"at+jwt","kid":"ec"}"#),
        (
            "alg is a list",
            br#"{"alg":["ES256"],"typ":"at+jwt","kid":"ec"}"#,
        ),
        ("alg is true", br#"{"alg":true,"typ":"at+jwt","kid":"ec"}"#),
        (
            "typ is a list",
            br#"{"alg":"ES256","typ":["at+jwt"],"kid":"ec"}"#,
        ),
        (
            "kid is a number",
            br#"{"alg":"ES256","typ":"at+jwt","kid":1}"#,
        ),
        (
            "kid is null",
            br#"{"alg":"ES256","typ":"at+jwt","kid":null}"#,
        ),
        (
            "kid is an object",
            br#"{"alg":"ES256","typ":"at+jwt","kid":{"ec":1}}"#,
        ),
    ];
    let critical = [
        r#""crit":["exp"],"exp":1"#,
        r#""crit":["b64"],"b64":false"#,
        r#""crit":["x"]"#,
        r#""crit":[]"#,
        r#""crit":"b64""#,
        r#""crit":null"#,
        r#""b64":false"#,
        r#""b64":true"#,
    ];
    let malformed = malformed
        .map(|(name, header)| named((&format!("header: {name}"), sign(header), TokenMalformed)));
    let critical = critical.map(|member| {
        let header = format!(r#"{{"alg":"ES256",{rest},{member}}}"#);
        named((member, sign(header.as_bytes()), CriticalHeader))
    });
    [malformed.to_vec(), critical.to_vec()].concat()
}

/// What claims may not be, and two meanings of them.
fn payloads() -> Vec<Case> {
    let sign = |payload: &[u8]| WORLD.ec.token(header().to_string(), payload);
    let claims = claims().to_string();
    let more = |member: &str| format!("{},{member}}}", &claims[..claims.len() - 1]).into_bytes();
    let wide: Vec<u8> = claims.bytes().flat_map(|byte| [byte, 0]).collect();
    let nested = format!(r#""x":{}1{}"#, "[".repeat(200), "]".repeat(200));
    let digits = format!(r#""x":{}"#, "1".repeat(400));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("sub twice", more(r#""sub":"root""#)),
        ("sub twice, once by an escape", more(r#""s\u0075b":"root""#)),
        (
            "aud twice, the same",
            more(&format!(r#""aud":"{}""#, super::kit::AUDIENCE)),
        ),
        (
            "a name twice in an object",
            more(r#""act":{"sub":"a","sub":"b"}"#),
        ),
        ("a name twice in a list", more(r#""x":[{"a":1,"a":2}]"#)),
        ("a name with NUL", more(r#""sub\u0000":"root""#)),
        (
            "no UTF-8",
            [&more(r#""x":""#)[..claims.len() + 5], b"\xff\"}"].concat(),
        ),
        (
            "a byte order mark",
            [&b"\xef\xbb\xbf"[..], claims.as_bytes()].concat(),
        ),
        ("UTF-16", wide),
        ("half a surrogate pair", more(r#""x":"\ud800""#)),
        ("an array", format!("[{claims}]").into_bytes()),
        ("a string", b"\"alice\"".to_vec()),
        ("a number", b"1".to_vec()),
        ("null", b"null".to_vec()),
        ("two objects", format!("{claims}{{}}").into_bytes()),
        ("a comma too many", more("")),
        ("a comment", format!("{claims}//").into_bytes()),
        ("single quotes", more("'x':1")),
        ("NaN", more(r#""x":NaN"#)),
        ("beyond a double", more(r#""x":1e400"#)),
        (
            "an integer that parsers round",
            more(r#""x":9007199254740993"#),
        ),
        ("minus zero", more(r#""x":-0"#)),
        ("400 digits", more(&digits)),
        ("200 levels", more(&nested)),
        ("a raw line break", more("\"x\":\"a\nb\"")),
    ];
    let cases = cases.into_iter();
    cases
        .map(|(name, payload)| named((&format!("claims: {name}"), sign(&payload), TokenMalformed)))
        .collect()
}

fn sizes() -> Vec<Case> {
    // A token of so many bytes, whose signature is right.
    let sized = |bytes: usize| {
        let short = WORLD.acme(&json!({}), &json!({"x": ""}));
        let room = (bytes - short.len()) * 3 / 4;
        // Not each length is one of an encoding: the header makes up for it.
        let mut near =
            (0..3).flat_map(|more| (room - 20..room + 8).map(move |length| (more, length)));
        let token = |(more, length)| {
            let text = |length| json!({"x": "x".repeat(length)});
            let token = WORLD.acme(&text(more), &text(length));
            (token.len() == bytes).then_some(token)
        };
        near.find_map(token).unwrap()
    };
    vec![
        ("as large as can be".into(), sized(MAX_BYTES), Ok(())),
        (
            "too large, and good".into(),
            sized(MAX_BYTES + 2),
            Err(TokenTooLarge),
        ),
        (
            "too large, and nothing".into(),
            "x".repeat(MAX_BYTES + 1),
            Err(TokenTooLarge),
        ),
        (
            "very large".into(),
            format!("{}{}", good(), "A".repeat(200_000)),
            Err(TokenTooLarge),
        ),
    ]
}
