#![allow(clippy::unwrap_used)]

mod claims;
mod headers;
mod hostile;
mod keys;
mod kit;
mod properties;
mod shape;
mod signatures;

use http::HeaderValue;
use policy::bundle::Claims;
use serde_json::json;

use super::{claims::service_account, *};
use crate::dev::DevIssuer;
use kit::{AUDIENCE, NESTED, NOW, WORLD, authenticate, bearer};

fn authenticator(issuer: &DevIssuer) -> Authenticator {
    let bundle = kit::bundle(vec![issuer.issuer()], None);
    Authenticator::new(&bundle, &Issuers::default())
}

fn of_dev() -> serde_json::Value {
    json!({"iss": crate::dev::ISSUER, "sub": "alice", "aud": AUDIENCE, "iat": NOW, "exp": NOW + 60, "groups": ["staff"]})
}

#[test]
fn a_good_token_names_its_caller() {
    let issuer = DevIssuer::new().unwrap();
    let token = issuer.sign(&of_dev()).unwrap();
    let authenticator = authenticator(&issuer);
    for _ in 0..2 {
        let caller = authenticate(&authenticator, &bearer(&token), NOW).unwrap();
        assert_eq!(
            (caller.issuer.as_deref(), caller.user.as_deref()),
            (Some("dev"), Some("alice"))
        );
        assert_eq!(caller.groups, ["staff"]);
        assert_eq!(caller.expires_at, Some(NOW + 60));
    }
    // Remembered, and yet it expires.
    assert_eq!(
        authenticate(&authenticator, &bearer(&token), NOW + 60),
        Err(Reason::TokenExpired)
    );
}

#[test]
fn each_bad_claim_has_its_reason() {
    let issuer = DevIssuer::new().unwrap();
    let authenticator = authenticator(&issuer);
    let cases = [
        (json!({"aud": "http://other/mcp"}), Reason::WrongAudience),
        (
            json!({"aud": ["http://other/mcp", "https://orders"]}),
            Reason::WrongAudience,
        ),
        (json!({"aud": null}), Reason::ClaimInvalid),
        (json!({"exp": NOW}), Reason::TokenExpired),
        (json!({"exp": null}), Reason::ClaimInvalid),
        (json!({"exp": "tomorrow"}), Reason::ClaimInvalid),
        (json!({"exp": -1}), Reason::ClaimInvalid),
        (json!({"nbf": NOW + 3600}), Reason::TokenNotYetValid),
        (json!({"iat": NOW + 3600}), Reason::TokenNotYetValid),
        (json!({"iat": NOW - 3600}), Reason::TokenLifetime),
        (json!({"iss": "https://elsewhere"}), Reason::UnknownIssuer),
        (json!({"sub": ""}), Reason::ClaimInvalid),
        (json!({"groups": "staff"}), Reason::ClaimInvalid),
    ];
    for (change, reason) in cases {
        let mut claims = of_dev();
        for (name, value) in change.as_object().unwrap() {
            claims[name] = value.clone();
        }
        let token = issuer.sign(&claims).unwrap();
        let found = authenticate(&authenticator, &bearer(&token), NOW);
        assert_eq!(found.map(drop), Err(reason), "{change}");
    }
}

#[test]
fn headers_that_carry_no_token_or_two() {
    let good = WORLD.acme(&json!({}), &json!({}));
    let headers = |values: &[&str]| {
        let values = values
            .iter()
            .map(|value| HeaderValue::from_str(value).unwrap());
        values
            .map(|value| (AUTHORIZATION, value))
            .collect::<HeaderMap>()
    };
    let bearer = format!("Bearer {good}");
    let cases = [
        (headers(&[]), Err(Reason::TokenMissing)),
        (headers(&[""]), Err(Reason::TokenMissing)),
        (headers(&["Bearer"]), Err(Reason::TokenMissing)),
        (headers(&["Basic YTpi"]), Err(Reason::TokenMissing)),
        (headers(&[&good]), Err(Reason::TokenMissing)),
        (
            headers(&[&format!("Basic {good}")]),
            Err(Reason::TokenMissing),
        ),
        (
            headers(&[&format!("DPoP {good}")]),
            Err(Reason::TokenMissing),
        ),
        (
            headers(&[&format!("Bearer{good}")]),
            Err(Reason::TokenMissing),
        ),
        (
            headers(&[&format!("Bearer\t{good}")]),
            Err(Reason::TokenMissing),
        ),
        (
            headers(&[&format!("Token {good}")]),
            Err(Reason::TokenMissing),
        ),
        (headers(&[&bearer, &bearer]), Err(Reason::TokenMalformed)),
        (headers(&[&bearer, "Bearer x"]), Err(Reason::TokenMalformed)),
        (
            headers(&["Basic YTpi", &bearer]),
            Err(Reason::TokenMalformed),
        ),
        (
            headers(&[&format!("{bearer}, {bearer}")]),
            Err(Reason::TokenMalformed),
        ),
        (
            headers(&[&format!("{bearer},{good}")]),
            Err(Reason::TokenMalformed),
        ),
        (
            headers(&[&format!("{bearer} {good}")]),
            Err(Reason::TokenMalformed),
        ),
        (
            headers(&[&format!("Bearer \"{good}\"")]),
            Err(Reason::TokenMalformed),
        ),
        (headers(&[&format!("bearer {good}")]), Ok(())),
        (headers(&[&format!("BEARER {good}")]), Ok(())),
        (headers(&[&format!("Bearer  {good}")]), Ok(())),
    ];
    for (headers, expected) in cases {
        let found = authenticate(&WORLD.authenticator, &headers, NOW);
        assert_eq!(found.map(drop), expected, "{headers:?}");
    }
    let no_text = HeaderValue::from_bytes(b"Bearer \xe9").unwrap();
    let no_text = HeaderMap::from_iter([(AUTHORIZATION, no_text)]);
    let found = authenticate(&WORLD.authenticator, &no_text, NOW);
    assert_eq!(found, Err(Reason::TokenMalformed));
}

#[test]
fn who_is_not_asked_for_a_token_is_not_believed() {
    let mut bundle = WORLD.bundle.clone();
    bundle.authentication.anonymous = true;
    let authenticator = Authenticator::new(&bundle, &Issuers::default());
    let good = WORLD.acme(&json!({}), &json!({}));
    for headers in [HeaderMap::new(), bearer(&good), bearer("x")] {
        let found = authenticate(&authenticator, &headers, NOW);
        assert_eq!(found, Ok(Caller::default()));
    }
    let mut two = bearer(&good);
    two.append(AUTHORIZATION, HeaderValue::from_static("Bearer x"));
    assert_eq!(
        authenticate(&authenticator, &two, NOW),
        Err(Reason::TokenMalformed)
    );
}

/// Another bundle has another authenticator, which remembers nothing of this
/// one, where anything that decides on tokens is another.
#[test]
fn what_is_remembered_belongs_to_one_configuration() {
    let authenticator = &WORLD.authenticator;
    let changed = |change: fn(&mut Bundle)| {
        let mut bundle = WORLD.bundle.clone();
        change(&mut bundle);
        bundle
    };
    assert!(authenticator.fits(&changed(|bundle| bundle.deny_all = None)));
    let changes: [fn(&mut Bundle); 9] = [
        |bundle| bundle.audience.push('/'),
        |bundle| bundle.cluster = None,
        |bundle| bundle.authentication.anonymous = true,
        |bundle| bundle.authentication.max_token_lifetime_seconds = 60,
        |bundle| drop(bundle.authentication.issuers.pop()),
        |bundle| bundle.authentication.issuers[0].keys = KeySource::Inline(json!({"keys": []})),
        |bundle| bundle.authentication.issuers[0].types.jwt = true,
        |bundle| bundle.authentication.issuers[0].algorithms.truncate(1),
        |bundle| bundle.authentication.issuers[0].claims.groups = Some("roles".into()),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        assert!(!authenticator.fits(&changed(change)), "change {index}");
    }
}

/// What one issuer says of its users is nothing that another one said.
#[test]
fn each_issuer_has_its_own_names() {
    let everything = json!({
        "sub": "17", "email": "bob@other.example", "act": {"sub": "actor"}, "azp": "party", "client": {"id": "own"},
        "groups": ["of-groups"], "https://acme.example/groups": ["of-url"], "realm_access": {"roles": ["of-roles"]},
        "realm_access.roles": ["of-dots"], "scope": "a b", "scp": ["c", "d"],
    });
    let of = |issuer: &str, user: &str, agent: &str, groups: &str, scopes: [&str; 2]| Caller {
        issuer: Some(issuer.into()),
        user: Some(user.into()),
        agent: Some(agent.into()),
        groups: vec![groups.into()],
        scopes: scopes.map(str::to_owned).to_vec(),
        expires_at: Some(NOW + 300),
        ..Caller::default()
    };
    let acme = WORLD.caller(&WORLD.acme(&json!({}), &everything));
    assert_eq!(acme, Ok(of("acme", "17", "actor", "of-groups", ["a", "b"])));
    let other = WORLD.caller(&WORLD.of_other(&everything));
    let expected = of("other", "bob@other.example", "own", "of-url", ["c", "d"]);
    assert_eq!(other, Ok(expected));
    let header = json!({"alg": "ES256", "typ": "at+jwt", "kid": "nested"}).to_string();
    let nested = kit::with(kit::claims_of(NESTED), &everything);
    let nested = WORLD.caller(&WORLD.other.token(header, nested.to_string()));
    assert_eq!(
        nested,
        Ok(of("nested", "17", "actor", "of-roles", ["a", "b"]))
    );
    // No account of this cluster, whatever its name.
    let account = json!({"sub": "system:serviceaccount:agents:reporter", "kubernetes.io": {"pod": {"name": "p"}}});
    let caller = WORLD.caller(&WORLD.acme(&json!({}), &account)).unwrap();
    assert_eq!((caller.service_account, caller.pod), (None, None));
    // And nobody of a group, whatever its token says.
    let caller = WORLD.caller(&WORLD.of_cluster(&json!({"groups": ["staff"], "scope": "a"})));
    let subject = "system:serviceaccount:agents:reporter";
    let expected = Caller {
        issuer: Some("cluster".into()),
        user: Some(subject.into()),
        agent: Some(subject.into()),
        service_account: Some("agents/reporter".into()),
        pod: Some("reporter-0".into()),
        expires_at: Some(NOW + 600),
        ..Caller::default()
    };
    assert_eq!(caller, Ok(expected));
}

#[test]
fn the_agent_is_who_acts_then_who_asked_for_the_token() {
    let caller = |changes| WORLD.caller(&WORLD.acme(&json!({}), &changes)).unwrap();
    for (changes, agent) in [
        (json!({"act": {"sub": "actor"}, "azp": "party"}), "actor"),
        (json!({"azp": "party"}), "party"),
        (json!({}), "agent"),
    ] {
        assert_eq!(caller(changes).agent.as_deref(), Some(agent));
    }
}

/// A path of claims goes into objects; a name that is a URL is one name.
#[test]
fn paths_of_claims() {
    let find = |groups: &str, more: serde_json::Value| {
        let mut issuer = WORLD.bundle.authentication.issuers[0].clone();
        issuer.claims = Claims {
            groups: Some(groups.into()),
            ..Claims::default()
        };
        let bundle = kit::bundle(vec![issuer], None);
        let token = WORLD.acme(&json!({}), &kit::with(json!({"groups": null}), &more));
        let authenticator = Authenticator::new(&bundle, &Issuers::default());
        authenticate(&authenticator, &bearer(&token), NOW).map(|caller| caller.groups)
    };
    let staff = || Ok(vec!["staff".to_owned()]);
    assert_eq!(
        find("a.b.c", json!({"a": {"b": {"c": ["staff"]}}})),
        staff()
    );
    assert_eq!(
        find("urn:acme:groups", json!({"urn:acme:groups": ["staff"]})),
        staff()
    );
    for (path, claims) in [
        ("a.b", json!({"a.b": ["staff"]})),
        ("a.b", json!({"a": ["b"]})),
        ("a.b", json!({"a": "b"})),
        ("a.0", json!({"a": [["staff"]]})),
        ("a", json!({"A": ["staff"]})),
        (
            "https://a.example/g",
            json!({"https://a": {"example/g": ["staff"]}}),
        ),
    ] {
        assert_eq!(find(path, claims), Ok(vec![]), "{path}");
    }
    assert_eq!(
        find("a", json!({"a": {"b": ["staff"]}})),
        Err(Reason::ClaimInvalid)
    );
}

#[test]
fn subjects_of_the_cluster_are_service_accounts() {
    assert_eq!(
        service_account("system:serviceaccount:agents:reporter").as_deref(),
        Some("agents/reporter")
    );
    for subject in [
        "agents/reporter",
        "system:serviceaccount:agents",
        "system:serviceaccount::a",
        "system:serviceaccount:a:b:c",
        "system:serviceaccount:a/b:c",
    ] {
        assert_eq!(service_account(subject), None, "{subject}");
    }
}

/// The operator and other replicas prove who they are by the cluster's tokens,
/// and by those alone, also where callers use other issuers.
#[test]
fn the_platform_believes_the_cluster_alone() {
    let mut bundle = WORLD.bundle.clone();
    bundle.authentication.issuers.truncate(1);
    let authenticator = Authenticator::new(&bundle, &Issuers::default());
    let subject = "system:serviceaccount:agents:reporter";
    let by_cluster = WORLD.of_cluster(&json!({}));
    let by_acme = WORLD.acme(&json!({}), &json!({"sub": subject}));
    let is = |token: &str, subject: &str, audience: &str| {
        authenticator.is_subject(&bearer(token), subject, audience, NOW)
    };
    assert!(is(&by_cluster, subject, AUDIENCE));
    assert!(!is(
        &by_cluster,
        "system:serviceaccount:agents:other",
        AUDIENCE
    ));
    assert!(!is(&by_cluster, subject, "toolward-admin/shop/orders"));
    assert!(!is(&by_acme, subject, AUDIENCE), "acme is not the cluster");
    let pod = authenticator.pod(&by_cluster, AUDIENCE, NOW).unwrap();
    assert_eq!((&*pod.namespace, &*pod.name), ("agents", "reporter-0"));
    let found =
        |token: &str, audience: &str, now| authenticator.pod(token, audience, now).map(drop);
    for _ in 0..2 {
        // What is remembered is so for its audience, and until its end.
        assert_eq!(
            found(&by_cluster, "toolward-peer/1", NOW),
            Err(Reason::WrongAudience)
        );
        assert_eq!(
            found(&by_cluster, AUDIENCE, NOW + 600),
            Err(Reason::TokenExpired)
        );
    }
    assert_eq!(found(&by_acme, AUDIENCE, NOW), Err(Reason::UnknownIssuer));
    let caller = authenticate(&authenticator, &bearer(&by_cluster), NOW);
    assert_eq!(
        caller,
        Err(Reason::UnknownIssuer),
        "and is no issuer of callers"
    );
    bundle.cluster = None;
    let authenticator = Authenticator::new(&bundle, &Issuers::default());
    let found = authenticator.pod(&by_cluster, AUDIENCE, NOW).map(drop);
    assert_eq!(found, Err(Reason::UnknownIssuer));
}
