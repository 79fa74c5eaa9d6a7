//! Claims whose signature is right, and which are not for us, not now, or say
//! nobody (RFC 7519 §4.1, RFC 9068 §2.2 and §4).

use policy::Reason::{
    self, ClaimInvalid, ProofRequired, TokenExpired, TokenLifetime, TokenNotYetValid, TokenType,
    WrongAudience,
};
use serde_json::{Value, json};

use super::kit::{ACME, AUDIENCE, Case, Expected, NOW, WORLD, claims, header};

pub fn cases() -> Vec<Case> {
    [
        issuer(),
        audience(),
        times(),
        names(),
        proof(),
        mappings(),
        kinds(),
        actors(),
        accounts(),
    ]
    .concat()
}

/// Tokens of acme with one claim that is another: each value, and what becomes
/// of it.
fn each(name: &str, values: impl IntoIterator<Item = (Value, Expected)>) -> Vec<Case> {
    let of = |(value, expected): (Value, Expected)| {
        let shown: String = value.to_string().chars().take(60).collect();
        (format!("{name}: {shown}"), raw(name, &value), expected)
    };
    values.into_iter().map(of).collect()
}

/// A token of acme with this claim: null is null here.
fn raw(name: &str, value: &Value) -> String {
    let mut claims = claims();
    claims[name] = value.clone();
    WORLD.ec.token(header().to_string(), claims.to_string())
}

fn refused<const N: usize>(reason: Reason, values: [Value; N]) -> [(Value, Expected); N] {
    values.map(|value| (value, Err(reason)))
}

fn accepted<const N: usize>(values: [Value; N]) -> [(Value, Expected); N] {
    values.map(|value| (value, Ok(())))
}

fn without(name: &str, reason: Reason) -> Case {
    let token = WORLD.acme(&json!({}), &json!({name: null}));
    (format!("{name} is missing"), token, Err(reason))
}

fn issuer() -> Vec<Case> {
    let mut cases = each(
        "iss",
        refused(
            ClaimInvalid,
            [
                json!([ACME]),
                json!({"a": ACME}),
                json!(1),
                json!(null),
                json!(true),
            ],
        ),
    );
    cases.push(without("iss", ClaimInvalid));
    cases
}

/// `aud` is this server's, in one of the spellings of the same URL.
fn audience() -> Vec<Case> {
    let others = [
        "https://invoices.example/mcp",
        "https://orders.example",
        "https://orders.example/",
        "https://orders.example/mc",
        "https://orders.example/mcpx",
        "https://orders.example/mcp/x",
        "https://orders.example/mcp//",
        "https://orders.example//mcp",
        "https://orders.example/MCP",
        "http://orders.example/mcp",
        "https://orders.example:8443/mcp",
        "https://orders.example:80/mcp",
        "https://orders.example/mcp?x=1",
        "https://orders.example/mcp?",
        "https://orders.example/mcp#x",
        "https://orders.example/mcp#",
        "https://user@orders.example/mcp",
        "https://orders.example@evil.example/mcp",
        "https://orders.example/%6dcp",
        "https://orders.example/x/../mcp",
        "https://orders.example/./mcp",
        "https://orders.example\\mcp",
        "https://orders.example./mcp",
        "https://\u{43e}rders.example/mcp",
        "https://evil.example/https://orders.example/mcp",
        "xhttps://orders.example/mcp",
        " https://orders.example/mcp",
        "https://orders.example/mcp ",
        "https://orders.example/mcp\u{0}",
        "https://orders.example/mcp https://evil.example/mcp",
        "orders.example/mcp",
        "orders",
        "toolward-peer/1",
        "toolward-admin/shop/orders",
        "*",
        "",
    ];
    let ours = [
        AUDIENCE,
        "HTTPS://orders.example/mcp",
        "https://ORDERS.Example/mcp",
        "https://orders.example:443/mcp",
        "https://orders.example/mcp/",
        "HTTPS://ORDERS.EXAMPLE:443/mcp/",
    ];
    let mut cases = each(
        "aud",
        others.map(|other| (json!(other), Err(WrongAudience))),
    );
    cases.extend(each(
        "aud",
        others.map(|other| (json!([other]), Err(WrongAudience))),
    ));
    cases.extend(each("aud", ours.map(|ours| (json!(ours), Ok(())))));
    cases.extend(each(
        "aud",
        ours.map(|ours| (json!(["https://invoices.example/mcp", ours]), Ok(()))),
    ));
    cases.extend(each(
        "aud",
        refused(WrongAudience, [json!([]), json!(others.to_vec())]),
    ));
    cases.extend(each(
        "aud",
        refused(
            ClaimInvalid,
            [
                json!(null),
                json!(1),
                json!(true),
                json!({"aud": AUDIENCE}),
                json!([AUDIENCE, 1]),
                json!([AUDIENCE, null]),
                json!([[AUDIENCE]]),
                json!([{"aud": AUDIENCE}, AUDIENCE]),
            ],
        ),
    ));
    cases.push(without("aud", ClaimInvalid));
    cases
}

fn times() -> Vec<Case> {
    let no_dates = || {
        [
            json!("tomorrow"),
            json!((NOW + 300).to_string()),
            json!(-1),
            json!(-0.5),
            json!(null),
            json!(true),
            json!([NOW + 300]),
            json!({"at": NOW + 300}),
            json!(1e12),
            json!(1e300),
            json!("NaN"),
            json!("Infinity"),
        ]
    };
    let mut cases = each("exp", refused(ClaimInvalid, no_dates()));
    cases.extend(each("iat", refused(ClaimInvalid, no_dates())));
    cases.extend(each("nbf", refused(ClaimInvalid, no_dates())));
    // What has expired is not accepted, whatever our clock and theirs.
    let past = [
        json!(0),
        json!(1),
        json!(NOW - 1),
        json!(NOW),
        json!(1_800_000_000.9),
    ];
    cases.extend(each("exp", refused(TokenExpired, past)));
    cases.extend(each(
        "exp",
        refused(
            TokenLifetime,
            [
                json!(NOW + 3601),
                json!(253_402_300_799_u64),
                json!(999_999_999_999_u64),
            ],
        ),
    ));
    cases.extend(each(
        "exp",
        accepted([json!(NOW + 1), json!(NOW + 3600), json!(1_800_000_300.5)]),
    ));
    cases.extend(each(
        "iat",
        refused(
            TokenNotYetValid,
            [
                json!(NOW + 61),
                json!(NOW + 3600),
                json!(999_999_999_999_u64),
            ],
        ),
    ));
    // As old as it may be with an end in 300 s, and older.
    cases.extend(each(
        "iat",
        refused(TokenLifetime, [json!(NOW - 3301), json!(0)]),
    ));
    cases.extend(each("iat", accepted([json!(NOW - 3300), json!(NOW + 60)])));
    cases.extend(each(
        "nbf",
        refused(
            TokenNotYetValid,
            [
                json!(NOW + 61),
                json!(NOW + 299),
                json!(999_999_999_999_u64),
            ],
        ),
    ));
    cases.extend(each(
        "nbf",
        accepted([json!(0), json!(NOW), json!(NOW + 60)]),
    ));
    cases.extend([without("exp", ClaimInvalid), without("iat", ClaimInvalid)]);
    cases
}

/// Who calls has a name, and an access token says what RFC 9068 asks for.
fn names() -> Vec<Case> {
    let no_names = || {
        [
            json!(""),
            json!(1),
            json!(null),
            json!(true),
            json!(["alice"]),
            json!({"sub": "alice"}),
            json!("x".repeat(1025)),
        ]
    };
    let mut cases = Vec::new();
    for name in ["sub", "client_id", "jti"] {
        cases.extend(each(name, refused(ClaimInvalid, no_names())));
        cases.extend(each(name, accepted([json!("x".repeat(1024))])));
        cases.push(without(name, ClaimInvalid));
    }
    cases.extend(each(
        "azp",
        refused(ClaimInvalid, [json!(""), json!(1), json!(["agent"])]),
    ));
    cases.extend(each(
        "act",
        refused(
            ClaimInvalid,
            [
                json!({"sub": 1}),
                json!({"sub": ""}),
                json!({"sub": ["agent"]}),
            ],
        ),
    ));
    let long = || "x".repeat(1025);
    cases.extend(each(
        "groups",
        refused(
            ClaimInvalid,
            [
                json!("staff"),
                json!(""),
                json!(1),
                json!({"staff": true}),
                json!(["staff", 1]),
                json!(["staff", ""]),
                json!([["staff"]]),
                json!([null]),
                json!(null),
                json!([long()]),
                json!(vec!["a"; 1001]),
            ],
        ),
    ));
    cases.extend(each(
        "groups",
        accepted([json!([]), json!(vec!["a"; 1000])]),
    ));
    cases.extend(each(
        "scope",
        refused(
            ClaimInvalid,
            [
                json!(1),
                json!(null),
                json!({"a": 1}),
                json!([1]),
                json!([""]),
                json!(long()),
                json!("a ".repeat(1001)),
            ],
        ),
    ));
    cases.extend(each(
        "scope",
        accepted([json!(""), json!("a b"), json!(["a", "b"])]),
    ));
    cases
}

/// A token that is bound to a key is none for whoever only shows it.
fn proof() -> Vec<Case> {
    each(
        "cnf",
        refused(
            ProofRequired,
            [
                json!({"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}),
                json!({"x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"}),
                json!({"jwk": WORLD.ec.jwk("ec")}),
                json!({"jku": "https://evil.example/jwks.json"}),
                json!({"kid": "ec"}),
                json!({}),
                json!(null),
                json!(""),
                json!(false),
                json!([]),
            ],
        ),
    )
}

/// Where an issuer has names of its own, these are needed and no others.
fn mappings() -> Vec<Case> {
    let groups = "https://acme.example/groups";
    let cases = [
        ("no user", json!({"email": null}), Err(ClaimInvalid)),
        (
            "a user who is a list",
            json!({"email": ["bob"]}),
            Err(ClaimInvalid),
        ),
        ("no subject", json!({"sub": null}), Err(ClaimInvalid)),
        (
            "groups as a text",
            json!({groups: "staff"}),
            Err(ClaimInvalid),
        ),
        (
            "an agent who is a number",
            json!({"client": {"id": 1}}),
            Err(ClaimInvalid),
        ),
        ("scopes as a number", json!({"scp": 1}), Err(ClaimInvalid)),
        ("no groups, scopes and agent", json!({}), Ok(())),
        (
            "groups where others have them",
            json!({"groups": "no list, and nobody looks"}),
            Ok(()),
        ),
        ("nothing to go into", json!({"client": "id"}), Ok(())),
        (
            "groups that are elsewhere",
            json!({"_claim_names": {groups: "src1"}}),
            Err(ClaimInvalid),
        ),
        (
            "an agent that is elsewhere",
            json!({"_claim_names": {"client": "src1"}}),
            Err(ClaimInvalid),
        ),
        (
            "what nobody looks at is elsewhere",
            json!({"_claim_names": {"groups": "src1"}, "hasgroups": true}),
            Ok(()),
        ),
    ];
    cases
        .map(|(name, changes, expected)| {
            (
                format!("own names: {name}"),
                WORLD.of_other(&changes),
                expected,
            )
        })
        .into()
}

/// Tokens that are no access tokens, where `typ` tells nothing.
fn kinds() -> Vec<Case> {
    let mut cases: Vec<Case> = [
        json!({"at_hash": "77QmUPtjPfzWtF2AnpK9RQ"}),
        json!({"c_hash": "LDktKdoQak3Pk0cnXxCltA"}),
        json!({"s_hash": "x"}),
        json!({"events": {"http://schemas.openid.net/event/backchannel-logout": {}}}),
        json!({"typ": "ID"}),
        json!({"typ": "Refresh"}),
        json!({"typ": "Offline"}),
        json!({"typ": "Logout"}),
    ]
    .map(|claims| {
        let name = format!("JWT with {claims}");
        (name, WORLD.of_other(&claims), Err(TokenType))
    })
    .into();
    cases.extend([
        (
            "JWT that says Bearer".into(),
            WORLD.of_other(&json!({"typ": "Bearer", "nonce": "n", "auth_time": NOW})),
            Ok(()),
        ),
        (
            "an access token says what it is".into(),
            WORLD.acme(&json!({}), &json!({"at_hash": "x"})),
            Ok(()),
        ),
    ]);
    cases
}

/// Who acts for the user belongs to the same issuer, and groups are here.
fn actors() -> Vec<Case> {
    [
        each(
            "act",
            refused(
                ClaimInvalid,
                [
                    json!({"iss": "https://partner.example", "sub": "reporter"}),
                    json!({"iss": format!("{ACME}/"), "sub": "reporter"}),
                    json!({"iss": null, "sub": "reporter"}),
                    json!({"sub": 1}),
                    json!("reporter"),
                    json!(null),
                ],
            ),
        ),
        each(
            "act",
            accepted([
                json!({"iss": ACME, "sub": "reporter"}),
                json!({"sub": "reporter"}),
            ]),
        ),
        each(
            "_claim_names",
            refused(
                ClaimInvalid,
                [json!({"groups": "src1"}), json!({"scope": "src1"})],
            ),
        ),
        each("_claim_names", accepted([json!({"address": "src1"})])),
        each("hasgroups", refused(ClaimInvalid, [json!(true)])),
    ]
    .concat()
}

/// Subjects of the cluster are service accounts.
fn accounts() -> Vec<Case> {
    let subjects = [
        "alice",
        "agents/reporter",
        "system:serviceaccount:agents",
        "system:serviceaccount:agents:",
        "system:serviceaccount::reporter",
        "system:serviceaccount:agents:a:b",
        "system:serviceaccount:a/b:c",
        "system:serviceaccount:agents:*",
        "system:serviceaccount:*:c",
        "system:serviceaccounts:agents:reporter",
        "System:serviceaccount:agents:reporter",
        "x:system:serviceaccount:agents:reporter",
        "system:node:a",
        "system:anonymous",
        "system:admin",
        "",
    ];
    let of = |subject: &str| {
        (
            format!("account {subject:?}"),
            WORLD.of_cluster(&json!({"sub": subject})),
            Err(ClaimInvalid),
        )
    };
    let mut cases: Vec<Case> = subjects.iter().map(|subject| of(subject)).collect();
    let pod = |pod: Value| {
        WORLD.of_cluster(&json!({"kubernetes.io": {"namespace": "agents", "pod": pod}}))
    };
    cases.extend([
        (
            "account: a pod whose name is a number".into(),
            pod(json!({"name": 1})),
            Err(ClaimInvalid),
        ),
        (
            "account: a pod without a name".into(),
            pod(json!({"name": ""})),
            Err(ClaimInvalid),
        ),
        (
            "account: no pod".into(),
            WORLD.of_cluster(&json!({"kubernetes.io": null})),
            Ok(()),
        ),
        (
            "account: for the API server".into(),
            WORLD.of_cluster(&json!({"aud": ["https://kubernetes.default.svc"]})),
            Err(WrongAudience),
        ),
        (
            "account: a token for a year".into(),
            WORLD.of_cluster(&json!({"exp": NOW + 31_536_000})),
            Err(TokenLifetime),
        ),
    ]);
    cases
}
