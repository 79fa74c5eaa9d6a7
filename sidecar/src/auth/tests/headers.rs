//! Headers that ask for another algorithm, another key or another kind of token
//! than those of the issuer (RFC 8725 §3.1, §3.11).

use aws_lc_rs::hmac;
use policy::Reason::{
    self, AlgorithmNotAllowed, SignatureInvalid, TokenMalformed, TokenType, UnknownKey,
};
use serde_json::{Value, json};

use super::kit::{
    ACME, CLUSTER, Case, ES, Expected, Key, OTHER, RS, WORLD, claims, claims_of, encode, header,
    with,
};

pub fn cases() -> Vec<Case> {
    [
        none(),
        confusion(),
        algorithms(),
        types(),
        embedded(),
        ids(),
    ]
    .concat()
}

fn refused(name: String, token: String, reason: Reason) -> Case {
    (name, token, Err(reason))
}

/// A token of acme by its key `ec`, whatever the header says.
fn by_ec(changes: &Value) -> String {
    WORLD.acme(changes, &json!({}))
}

/// A token of acme by its RSA key, whatever the header says.
fn by_rsa(changes: &Value) -> String {
    let header = with(header(), &json!({"alg": "RS256", "kid": "rsa"}));
    WORLD
        .rsa
        .token(with(header, changes).to_string(), claims().to_string())
}

fn none() -> Vec<Case> {
    let spellings = [
        "none",
        "None",
        "NONE",
        "nOnE",
        "none ",
        "",
        "null",
        "None\u{0}",
    ];
    let tokens = spellings.iter().flat_map(|alg| {
        let signed = by_ec(&json!({"alg": alg}));
        let unsigned = format!("{}.", signed.rsplit_once('.').unwrap().0);
        [
            refused(format!("alg {alg:?}, signed"), signed, AlgorithmNotAllowed),
            refused(
                format!("alg {alg:?}, not signed"),
                unsigned,
                AlgorithmNotAllowed,
            ),
        ]
    });
    let bare = format!(
        "{}.{}.",
        encode(r#"{"alg":"none"}"#),
        encode(claims_of(RS).to_string())
    );
    let bare = refused(
        "alg none and nothing else".into(),
        bare,
        AlgorithmNotAllowed,
    );
    tokens.chain([bare]).collect()
}

/// A public key as the secret of an HMAC.
fn confusion() -> Vec<Case> {
    let (rsa, ec) = (WORLD.rsa.jwk("rsa"), WORLD.ec.jwk("ec"));
    let bytes = |jwk: &Value| jwk.to_string().into_bytes();
    let text = |number: &Value| number.as_str().unwrap().as_bytes().to_vec();
    let secrets = [
        ("the RSA key as PEM", "rsa", WORLD.rsa.pem().into_bytes()),
        (
            "the RSA key as PEM without its last line break",
            "rsa",
            WORLD.rsa.pem().trim_end().into(),
        ),
        ("the RSA key as DER", "rsa", WORLD.rsa.der()),
        ("n of the JWK", "rsa", text(&rsa["n"])),
        ("the RSA key as JWK", "rsa", bytes(&rsa)),
        ("the EC key as PEM", "ec", WORLD.ec.pem().into_bytes()),
        ("the EC key as DER", "ec", WORLD.ec.der()),
        ("x of the JWK", "ec", text(&ec["x"])),
        ("the EC key as JWK", "ec", bytes(&ec)),
        ("nothing", "ec", Vec::new()),
    ];
    let sign = |alg: &str, algorithm, kid: &str, secret: &[u8]| {
        let header = with(header(), &json!({"alg": alg, "kid": kid})).to_string();
        let signed = format!("{}.{}", encode(header), encode(claims().to_string()));
        let key = hmac::Key::new(algorithm, secret);
        format!("{signed}.{}", encode(hmac::sign(&key, signed.as_bytes())))
    };
    let all = secrets.iter().flat_map(|(name, kid, secret)| {
        [
            ("HS256", hmac::HMAC_SHA256),
            ("HS384", hmac::HMAC_SHA384),
            ("HS512", hmac::HMAC_SHA512),
        ]
        .map(|(alg, algorithm)| {
            let token = sign(alg, algorithm, kid, secret);
            refused(format!("{alg} by {name}"), token, AlgorithmNotAllowed)
        })
    });
    all.collect()
}

/// Real signatures: by an issuer, a key, under an algorithm, with an id.
fn algorithms() -> Vec<Case> {
    let (ec, rsa, ed) = (&WORLD.ec, &WORLD.rsa, &WORLD.ed);
    let rows: [(&str, &Key, &str, &str, Expected); 16] = [
        (ES, rsa, "RS256", "rsa", Err(AlgorithmNotAllowed)),
        (ES, ec, "ES256", "rsa", Err(UnknownKey)),
        (ES, ec, "ES256", "ec", Ok(())),
        (RS, ec, "ES256", "ec", Err(AlgorithmNotAllowed)),
        (RS, rsa, "PS256", "rsa", Err(AlgorithmNotAllowed)),
        (RS, rsa, "RS256", "rsa", Ok(())),
        (ACME, rsa, "RS384", "rsa", Err(AlgorithmNotAllowed)),
        (ACME, rsa, "PS256", "rsa-256", Err(AlgorithmNotAllowed)),
        (ACME, rsa, "RS256", "rsa-256", Ok(())),
        (ACME, rsa, "RS256", "rsa", Ok(())),
        (ACME, rsa, "PS256", "rsa", Ok(())),
        (ACME, rsa, "RS256", "ec", Err(AlgorithmNotAllowed)),
        (ACME, ec, "ES256", "rsa", Err(AlgorithmNotAllowed)),
        (ACME, ec, "ES256", "ed", Err(AlgorithmNotAllowed)),
        (ACME, ed, "EdDSA", "ec", Err(AlgorithmNotAllowed)),
        (ACME, ed, "EdDSA", "ed", Ok(())),
    ];
    let of = |(issuer, key, alg, kid, expected): (&str, &Key, &str, &str, Expected)| {
        let header = with(header(), &json!({"alg": alg, "kid": kid})).to_string();
        let token = key.token(header, claims_of(issuer).to_string());
        (format!("{alg} by {kid} of {issuer}"), token, expected)
    };
    // Not known, not allowed, or written otherwise.
    let unknown = [
        "ES512",
        "ES256K",
        "Ed25519",
        "RS1",
        "dir",
        "RSA-OAEP",
        "es256",
        "ES256 ",
        "ES256\u{0}",
        "X",
    ];
    let unknown = unknown.map(|alg| {
        let token = by_ec(&json!({"alg": alg}));
        refused(format!("alg {alg:?}"), token, AlgorithmNotAllowed)
    });
    let relabelled = [("RS256", "PS256"), ("PS256", "RS256")].map(|(by, says)| {
        let token = relabelled(by, says);
        refused(format!("{by} that says {says}"), token, SignatureInvalid)
    });
    rows.map(of)
        .into_iter()
        .chain(unknown)
        .chain(relabelled)
        .collect()
}

/// A signature of RSA in one way, of a header that says the other.
fn relabelled(by: &str, says: &str) -> String {
    let header = with(header(), &json!({"alg": says, "kid": "rsa"})).to_string();
    WORLD.rsa.sign_text(
        by,
        &format!("{}.{}", encode(header), encode(claims().to_string())),
    )
}

fn types() -> Vec<Case> {
    let forbidden = [
        "id+jwt",
        "ID+JWT",
        "application/id+jwt",
        "logout+jwt",
        "dpop+jwt",
        "secevent+jwt",
        "JWT",
        "jwt",
        "application/JWT",
        "JWE",
        "kb+jwt",
        "token-introspection+jwt",
        "",
        " at+jwt",
        "at+jwt ",
        "at+jwt;v=1",
        "at_jwt",
        "application/application/at+jwt",
        "application/",
        "text/at+jwt",
        "at+jwt\u{0}",
    ];
    let allowed = [
        "at+jwt",
        "AT+JWT",
        "application/at+jwt",
        "Application/At+Jwt",
    ];
    let mut cases: Vec<_> = forbidden
        .iter()
        .map(|typ| {
            refused(
                format!("typ {typ:?}"),
                by_ec(&json!({"typ": typ})),
                TokenType,
            )
        })
        .collect();
    cases.extend(allowed.map(|typ| (format!("typ {typ:?}"), by_ec(&json!({"typ": typ})), Ok(()))));
    cases.push(refused(
        "no typ".into(),
        by_ec(&json!({"typ": null})),
        TokenType,
    ));
    // Where `JWT` and `at+jwt` are issued, or nothing is said.
    let by_other = |typ: Value| {
        let header = json!({"alg": "ES256", "kid": "other", "typ": typ}).to_string();
        let claims = with(claims(), &json!({"iss": OTHER, "email": "bob"}));
        WORLD.other.token(header, claims.to_string())
    };
    for (typ, expected) in [
        ("JWT", Ok(())),
        ("at+jwt", Ok(())),
        ("id+jwt", Err(TokenType)),
    ] {
        cases.push((
            format!("typ {typ} where JWT is issued"),
            by_other(json!(typ)),
            expected,
        ));
    }
    let header = json!({"alg": "ES256", "kid": "other"}).to_string();
    let untyped = with(claims(), &json!({"iss": OTHER, "email": "bob"}));
    let untyped = WORLD.other.token(header, untyped.to_string());
    cases.push(("no typ where JWT is issued".into(), untyped, Ok(())));
    let by_cluster = |typ: &str| {
        let header = json!({"alg": "ES256", "kid": "cluster", "typ": typ}).to_string();
        let subject = json!({"iss": CLUSTER, "sub": "system:serviceaccount:agents:reporter"});
        WORLD
            .cluster
            .token(header, with(claims(), &subject).to_string())
    };
    cases.push(refused(
        "typ id+jwt of the cluster".into(),
        by_cluster("id+jwt"),
        TokenType,
    ));
    cases.push((
        "no typ, of the cluster".into(),
        WORLD.of_cluster(&json!({})),
        Ok(()),
    ));
    cases
}

/// What a header says of where its key is, is never looked at.
fn embedded() -> Vec<Case> {
    let key = WORLD.stranger.jwk("ec");
    let chain = certificate();
    let places = [
        ("jwk", json!({"jwk": key})),
        ("jku", json!({"jku": "https://evil.example/jwks.json"})),
        ("x5u", json!({"x5u": "https://evil.example/key.pem"})),
        ("x5c", json!({"x5c": [chain]})),
        ("x5t#S256", json!({"x5t#S256": encode([7; 32])})),
    ];
    let of = |(name, place): (&str, Value)| {
        let by_stranger = |changes: Value| {
            let header = with(with(header(), &place), &changes).to_string();
            WORLD.stranger.token(header, claims().to_string())
        };
        [
            refused(
                format!("{name} of a stranger"),
                by_stranger(json!({})),
                SignatureInvalid,
            ),
            refused(
                format!("{name} of a stranger, no kid"),
                by_stranger(json!({"kid": null})),
                SignatureInvalid,
            ),
            refused(
                format!("{name} of a stranger, its kid"),
                by_stranger(json!({"kid": "evil"})),
                UnknownKey,
            ),
            (format!("{name} in a good token"), by_ec(&place), Ok(())),
        ]
    };
    places.into_iter().flat_map(of).collect()
}

/// The stranger's key where a certificate would be: nobody reads it.
fn certificate() -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.encode(WORLD.stranger.der())
}

/// An id of a key is data, and chooses among the keys of one issuer only.
fn ids() -> Vec<Case> {
    let unknown = [
        "../../../../dev/null",
        "/etc/passwd",
        "file:///dev/null",
        "' OR '1'='1",
        "ec'; DROP TABLE keys; --",
        "$(id)",
        "{{7*7}}",
        "ec\u{0}",
        "\u{0}",
        "",
        " ec",
        "ec ",
        "EC",
        "e\u{441}",
        "*",
        "0",
        "other",
        "nested",
        "cluster",
        "https://acme.example/realms/a#ec",
    ];
    let mut cases: Vec<_> = unknown
        .iter()
        .map(|kid| {
            refused(
                format!("kid {kid:?}"),
                by_ec(&json!({"kid": kid})),
                UnknownKey,
            )
        })
        .collect();
    let by_other = |kid: &str| {
        let header = with(header(), &json!({"kid": kid})).to_string();
        WORLD.other.token(header, claims().to_string())
    };
    cases.extend([
        refused(
            "kid of 1 KiB".into(),
            by_ec(&json!({"kid": "k".repeat(1024)})),
            UnknownKey,
        ),
        refused(
            "kid that is too long".into(),
            by_ec(&json!({"kid": "k".repeat(1025)})),
            TokenMalformed,
        ),
        refused(
            "kid and key of another issuer".into(),
            by_other("other"),
            UnknownKey,
        ),
        refused(
            "key of another issuer by this one's kid".into(),
            by_other("ec"),
            SignatureInvalid,
        ),
        (
            "no kid, and two keys".into(),
            by_rsa(&json!({"kid": null})),
            Ok(()),
        ),
        refused(
            "no kid, and a key of nobody's".into(),
            WORLD.stranger.token(
                with(header(), &json!({"kid": null})).to_string(),
                claims().to_string(),
            ),
            SignatureInvalid,
        ),
        (
            "no kid, and one key".into(),
            by_ec(&json!({"kid": null})),
            Ok(()),
        ),
    ]);
    cases
}
