//! What cannot be compiled denies, and says where.
#![allow(clippy::unwrap_used, missing_docs)]

use crds::{McpServer, McpToolPolicy, Reason};
use policy::{AllowedIssuers, Bundle, Compiled, Context, PolicySource, bundle::Issuer, compile};
use serde_json::{Value, json};

fn server(spec: Value) -> McpServer {
    let mut server = json!({
        "apiVersion": "toolward.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "orders", "namespace": "shop"},
        "spec": {"deployment": {"image": "i"}, "transport": {"type": "StreamableHttp"}},
    });
    for (name, value) in spec.as_object().unwrap() {
        server["spec"][name] = value.clone();
    }
    serde_json::from_value(server).unwrap()
}

fn policy(from: Value) -> McpToolPolicy {
    serde_json::from_value(json!({
        "apiVersion": "toolward.dev/v1alpha1", "kind": "McpToolPolicy", "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"targetRefs": [{"name": "orders"}], "rules": [
            {"name": "all", "effect": "Allow", "from": [{"everyone": true}], "tools": ["*"]},
            {"name": "some", "effect": "Deny", "from": [from], "tools": ["delete_*"]},
        ], "limits": [{"name": "each", "tools": ["*"], "requests": 30, "per": "1m", "by": ["User"]}]},
    })).unwrap()
}

fn context() -> Context {
    Context {
        default_url: "http://orders.shop.svc/mcp".into(),
        hosts: vec!["orders.shop.svc".into(), "10.0.0.1".into()],
        cluster: Some(Issuer::cluster(
            "https://kubernetes.default.svc",
            json!({"keys": []}),
        )),
        operator: Some("system:serviceaccount:toolward-system:toolward-operator".into()),
        uid: Some("0c5f4e6a-1111-2222-3333-444455556666".into()),
        ..Context::default()
    }
}

fn assert_denied(
    compiled: &Compiled,
    policy: Option<&str>,
    path: &str,
    reason: Reason,
    says: &str,
) {
    let found = compiled.diagnostics.iter().any(|d| {
        d.policy.as_deref() == policy
            && d.path == path
            && d.reason == reason
            && d.message.contains(says)
    });
    assert!(found, "{:?}", compiled.diagnostics);
    let Bundle {
        deny_all,
        rules,
        limits,
        peer_audience: _,
        authentication,
        ..
    } = &compiled.bundle;
    assert!(
        deny_all.as_ref().is_some_and(|why| why.contains(path)),
        "{deny_all:?}"
    );
    assert!(rules.is_empty() && limits.is_empty() && !authentication.anonymous);
}

#[test]
fn a_rule_that_could_never_hold_is_refused() {
    let anonymous = server(json!({"authentication": {"mode": "Anonymous"}}));
    let allowed = Context {
        allow_anonymous: true,
        ..context()
    };
    let users = policy(json!({"users": ["eve"]}));
    let compiled = compile(&anonymous, &[PolicySource::Valid(&users)], &allowed);
    assert_denied(
        &compiled,
        Some("p"),
        "spec.rules[1].from[0]",
        Reason::PolicyInvalid,
        "write everyone: true",
    );

    let foreign = Context {
        cluster: context().cluster.map(|issuer| Issuer {
            service_accounts: false,
            ..issuer
        }),
        ..context()
    };
    let accounts = policy(json!({"serviceAccounts": ["agents/reporter"]}));
    let compiled = compile(
        &server(json!({})),
        &[PolicySource::Valid(&accounts)],
        &foreign,
    );
    assert_denied(
        &compiled,
        Some("p"),
        "spec.rules[1].from[0]",
        Reason::PolicyInvalid,
        "cluster's issuer",
    );
}

#[test]
fn an_empty_subject_would_match_everyone_and_is_refused() {
    let empty = policy(json!({}));
    let compiled = compile(
        &server(json!({})),
        &[PolicySource::Valid(&empty)],
        &context(),
    );
    assert_denied(
        &compiled,
        Some("p"),
        "spec.rules[1].from[0]",
        Reason::PolicyInvalid,
        "names no caller",
    );
}

#[test]
fn anonymous_has_to_be_allowed() {
    let compiled = compile(
        &server(json!({"authentication": {"mode": "Anonymous"}})),
        &[],
        &context(),
    );
    assert_denied(
        &compiled,
        None,
        "spec.authentication.mode",
        Reason::AnonymousNotAllowed,
        "allowAnonymous",
    );
}

#[test]
fn an_audience_that_is_another_url_is_refused() {
    let compiled = compile(
        &server(json!({"authentication": {"audience": "http://invoices.shop.svc/mcp"}})),
        &[],
        &context(),
    );
    assert_denied(
        &compiled,
        None,
        "spec.authentication.audience",
        Reason::ServerInvalid,
        "http://orders.shop.svc/mcp",
    );
}

#[test]
fn a_policy_that_cannot_be_read_denies_what_others_allow() {
    let good = policy(json!({"users": ["eve"]}));
    let unreadable = PolicySource::Unreadable {
        name: "later".into(),
        error: "unknown field `when`".into(),
    };
    let compiled = compile(
        &server(json!({})),
        &[PolicySource::Valid(&good), unreadable],
        &context(),
    );
    assert_denied(
        &compiled,
        Some("later"),
        "spec",
        Reason::Undecodable,
        "when",
    );
}

#[test]
fn too_many_rules_deny() {
    let policies: Vec<McpToolPolicy> = (0..600)
        .map(|i| {
            let mut policy = policy(json!({"users": ["eve"]}));
            policy.metadata.name = Some(format!("p{i}"));
            policy
        })
        .collect();
    let sources: Vec<_> = policies.iter().map(PolicySource::Valid).collect();
    let compiled = compile(&server(json!({})), &sources, &context());
    assert_denied(&compiled, None, "spec", Reason::PolicyInvalid, "1200 rules");
}

fn rules(rules: Value) -> McpToolPolicy {
    let mut policy = policy(json!({"users": ["eve"]}));
    policy.spec.rules = Some(serde_json::from_value(rules).unwrap());
    policy
}

#[test]
fn a_rule_that_could_match_nothing_is_refused() {
    let rule = |what: Value| {
        let mut rule = json!({"name": "r", "effect": "Deny", "from": [{"everyone": true}]});
        for (name, value) in what.as_object().unwrap() {
            rule[name] = value.clone();
        }
        rules(
            json!([{"name": "a", "effect": "Allow", "from": [{"everyone": true}], "tools": ["*"]}, rule]),
        )
    };
    for (what, path, says) in [
        (
            json!({}),
            "spec.rules[1]",
            "at least one of tools, prompts and resources",
        ),
        (
            json!({"resources": ["**", "file:///a/../b"]}),
            "spec.rules[1].resources[1]",
            "write the path without it",
        ),
        (
            json!({"resources": ["FILE:///a"]}),
            "spec.rules[1].resources[0]",
            "\"FILE:///a\": its scheme must be written out in lower case",
        ),
        (
            json!({"resources": ["https://h:443/**"]}),
            "spec.rules[1].resources[0]",
            "leave it out",
        ),
    ] {
        let policy = rule(what);
        let compiled = compile(
            &server(json!({})),
            &[PolicySource::Valid(&policy)],
            &context(),
        );
        assert_denied(&compiled, Some("p"), path, Reason::PolicyInvalid, says);
    }
}

/// The wire form of version 1. Sidecars of that release must still be able to
/// read what is written for them, so a change here needs a new version.
#[test]
fn the_wire_form_of_version_1_is_as_it_was() {
    let policy = policy(json!({"users": ["eve"], "groups": ["guests"]}));
    let compiled = compile(
        &server(json!({})),
        &[PolicySource::Valid(&policy)],
        &context(),
    );
    let fixture = include_str!("../testdata/bundle-v1.json").trim_end();
    assert_eq!(compiled.bundle.to_json_version(1).unwrap(), fixture);
    let read = Bundle::from_json(fixture.as_bytes()).unwrap();
    assert_eq!(read.to_json().unwrap(), fixture);
    let expected = Bundle {
        version: 1,
        peer_audience: None,
        ..compiled.bundle
    };
    assert_eq!(read, expected);
}

/// The wire form of version 2. Later sidecars and operators must still agree
/// on this file, so a change here needs a new version.
#[test]
fn the_wire_form_of_version_2_is_as_it_was() {
    let policy = rules(json!([
        {"name": "all", "effect": "Allow", "from": [{"everyone": true}],
         "tools": ["*"], "prompts": ["*", "code review"], "resources": ["file:///reports/**", "demo:**"]},
        {"name": "some", "effect": "Deny", "from": [{"users": ["eve"], "groups": ["guests"]}],
         "resources": ["file:///reports/*.key"]},
    ]));
    let compiled = compile(
        &server(json!({})),
        &[PolicySource::Valid(&policy)],
        &context(),
    );
    assert_eq!(compiled.diagnostics, []);
    let fixture = include_str!("../testdata/bundle-v2.json").trim_end();
    assert_eq!(compiled.bundle.to_json().unwrap(), fixture);
    assert_eq!(
        Bundle::from_json(fixture.as_bytes()).unwrap(),
        compiled.bundle
    );
}

#[test]
fn a_bundle_says_whether_the_server_is_told_who_calls() {
    let told = compile(&server(json!({"identity": {}})), &[], &context());
    assert!(told.bundle.identity);
    let json = told.bundle.to_json().unwrap();
    assert!(json.contains(r#""identity":true"#), "{json}");
    assert_eq!(Bundle::from_json(json.as_bytes()).unwrap(), told.bundle);
    // Sidecars of the first release assert nothing, and could not read it.
    let old = told.bundle.to_json_version(1).unwrap();
    assert!(!old.contains("identity"), "{old}");
    assert!(!Bundle::from_json(old.as_bytes()).unwrap().identity);
    let silent = compile(&server(json!({})), &[], &context()).bundle;
    assert!(!silent.identity && !silent.to_json().unwrap().contains("identity"));
}

#[test]
fn version_1_leaves_out_what_its_sidecars_deny_anyway() {
    let policy = rules(json!([
        {"name": "a", "effect": "Allow", "from": [{"everyone": true}], "tools": ["*"], "prompts": ["*"]},
        {"name": "b", "effect": "Allow", "from": [{"everyone": true}], "resources": ["**"]},
        {"name": "c", "effect": "Deny", "from": [{"everyone": true}], "prompts": ["*"]},
    ]));
    let compiled = compile(
        &server(json!({})),
        &[PolicySource::Valid(&policy)],
        &context(),
    );
    let old = Bundle::from_json(compiled.bundle.to_json_version(1).unwrap().as_bytes()).unwrap();
    assert_eq!(old.rules.len(), 1);
    assert_eq!(old.rules[0].tools, compiled.bundle.rules[0].tools);
    assert!(old.rules[0].prompts.is_empty());
}

#[test]
fn no_version_takes_fields_that_it_does_not_know() {
    let v1 = include_str!("../testdata/bundle-v1.json");
    let v2 = include_str!("../testdata/bundle-v2.json");
    for (fixture, old, new) in [
        (v1, "\"tools\":[\"*\"]", "\"tools\":[\"*\"],\"prompts\":[]"),
        (v1, "\"url\"", "\"peerAudience\":\"a\",\"url\""),
        (v1, "\"version\":1", "\"version\":0"),
        (v2, "\"url\"", "\"uri\":\"a\",\"url\""),
        (v2, "\"prompts\":[", "\"when\":\"true\",\"prompts\":["),
        (v2, "\"version\":2", "\"version\":3"),
    ] {
        let changed = fixture.replacen(old, new, 1);
        assert_ne!(changed, fixture, "{old}");
        assert!(Bundle::from_json(fixture.as_bytes()).is_ok());
        assert!(Bundle::from_json(changed.as_bytes()).is_err(), "{new}");
    }
    assert!(
        Bundle::from_json(v2.as_bytes())
            .unwrap()
            .to_json_version(3)
            .is_err()
    );
}

fn issuers(issuers: Value) -> McpServer {
    server(json!({"authentication": {"audience": "orders", "issuers": issuers}}))
}

fn allowing(allowed: &[&str]) -> Context {
    Context {
        issuers: AllowedIssuers::Listed(allowed.iter().map(ToString::to_string).collect()),
        networks: vec!["10.0.0.0/8".into()],
        ..context()
    }
}

#[test]
fn issuers_are_those_that_the_chart_allows() {
    let acme = json!({"name": "acme", "issuer": "https://idp.example.com/realms/acme"});
    let with = |more: Value| {
        let mut issuer = acme.clone();
        for (name, value) in more.as_object().unwrap() {
            issuer[name] = value.clone();
        }
        issuers(json!([issuer]))
    };
    for (allowed, server, path, reason, says) in [
        (
            &[][..],
            with(json!({})),
            ".issuer",
            Reason::IssuerNotAllowed,
            "allowedIssuers",
        ),
        (
            &["https://idp.example.com"],
            with(json!({})),
            ".issuer",
            Reason::IssuerNotAllowed,
            "allowedIssuers",
        ),
        (
            &["*"],
            with(json!({"issuer": "http://idp.example.com"})),
            ".issuer",
            Reason::ServerInvalid,
            "https only",
        ),
        (
            &["*"],
            with(json!({"issuer": "http://127.0.0.1:9"})),
            ".issuer",
            Reason::ServerInvalid,
            "https only",
        ),
        (
            // No host begins with another's.
            &["https://idp.example.com*"],
            with(json!({"issuer": "https://idp.example.com.evil.example/realms/acme"})),
            ".issuer",
            Reason::IssuerNotAllowed,
            "allowedIssuers",
        ),
        (
            &["https://idp.example.com/realms/acme"],
            with(json!({})),
            "",
            Reason::Accepted,
            "",
        ),
        (
            &["*"],
            with(json!({"issuer": "https://kubernetes.default.svc"})),
            "",
            Reason::Accepted,
            "",
        ),
    ] {
        let compiled = compile(&server, &[], &allowing(allowed));
        match says {
            "" => assert_eq!(compiled.diagnostics, []),
            says => {
                let path = format!("spec.authentication.issuers[0]{path}");
                assert_denied(&compiled, None, &path, reason, says);
                assert_eq!(compiled.bundle.authentication.issuers, []);
            }
        }
    }
    let twice = issuers(
        json!([{"name": "cluster"}, {"name": "again", "issuer": "https://kubernetes.default.svc"}]),
    );
    assert_denied(
        &compile(&twice, &[], &allowing(&["*"])),
        None,
        "spec.authentication.issuers[1].issuer",
        Reason::ServerInvalid,
        "same URL",
    );
}

/// Whoever chooses the keys is the issuer.
#[test]
fn key_sets_are_their_issuers_or_allowed() {
    let with = |more: Value| {
        let mut issuer = json!({"name": "acme", "issuer": "https://idp.example.com/realms/acme"});
        for (name, value) in more.as_object().unwrap() {
            issuer[name] = value.clone();
        }
        issuers(json!([issuer]))
    };
    for (allowed, server, path, reason, says) in [
        (
            &["https://idp.example.com/*"][..],
            with(json!({"jwksUri": "https://keys.example.net/k"})),
            ".jwksUri",
            Reason::IssuerNotAllowed,
            "allowedIssuers",
        ),
        (
            // Another realm of the same host is another issuer.
            &["https://idp.example.com/realms/acme"],
            with(json!({"jwksUri": "https://idp.example.com/realms/sandbox/certs"})),
            ".jwksUri",
            Reason::IssuerNotAllowed,
            "allowedIssuers",
        ),
        (
            &["https://idp.example.com/realms/acme"],
            with(json!({"jwksUri": "https://idp.example.com/realms/acme/%2E./sandbox/certs"})),
            ".jwksUri",
            Reason::ServerInvalid,
            "without . and ..",
        ),
        (
            &["https://idp.example.com/realms/*"],
            with(json!({"issuer": "https://idp.example.com/realms/../other"})),
            ".issuer",
            Reason::ServerInvalid,
            "without . and ..",
        ),
        (
            &["https://idp.example.com/*"],
            with(json!({"jwksUri": "https://idp.example.com/keys"})),
            "",
            Reason::Accepted,
            "",
        ),
        (
            &["https://idp.example.com/realms/acme"],
            with(
                json!({"jwksUri": "https://idp.example.com/realms/acme/protocol/openid-connect/certs"}),
            ),
            "",
            Reason::Accepted,
            "",
        ),
    ] {
        let compiled = compile(&server, &[], &allowing(allowed));
        match says {
            "" => assert_eq!(compiled.diagnostics, []),
            says => {
                let path = format!("spec.authentication.issuers[0]{path}");
                assert_denied(&compiled, None, &path, reason, says);
                assert_eq!(compiled.bundle.authentication.issuers, []);
            }
        }
    }
}

#[test]
fn names_belong_to_an_issuer() {
    let two = issuers(
        json!([{"name": "cluster"}, {"name": "acme", "issuer": "https://idp.example.com"}]),
    );
    let only = issuers(json!([{"name": "acme", "issuer": "https://idp.example.com"}]));
    for (server, from, says) in [
        (
            &two,
            json!({"users": ["eve"]}),
            "write issuer, one of cluster, acme",
        ),
        (&two, json!({"issuer": "cluster", "users": ["eve"]}), ""),
        (&two, json!({"issuer": "acme"}), ""),
        (
            &two,
            json!({"issuer": "other", "users": ["eve"]}),
            "none of the server's",
        ),
        (&two, json!({"serviceAccounts": ["agents/*"]}), ""),
        (
            &two,
            json!({"serviceAccounts": ["agents/*"], "scopes": ["read"]}),
            "no groups and no scopes",
        ),
        (
            &two,
            json!({"issuer": "cluster", "groups": ["system:serviceaccounts"]}),
            "no groups and no scopes",
        ),
        (&two, json!({"issuer": "acme", "groups": ["staff"]}), ""),
        (
            &only,
            json!({"serviceAccounts": ["agents/*"]}),
            "add {name: cluster}",
        ),
        (&only, json!({"users": ["eve"]}), ""),
        (&only, json!({"issuer": "cluster"}), "none of the server's"),
    ] {
        let policy = policy(from);
        let compiled = compile(server, &[PolicySource::Valid(&policy)], &allowing(&["*"]));
        match says {
            "" => assert_eq!(compiled.diagnostics, []),
            says => assert_denied(
                &compiled,
                Some("p"),
                "spec.rules[1].from[0]",
                Reason::PolicyInvalid,
                says,
            ),
        }
    }
}

/// Sidecars of version 1 know the cluster's issuer only.
#[test]
fn version_1_denies_where_other_issuers_were_meant() {
    let only = issuers(json!([{"name": "acme", "issuer": "https://idp.example.com"}]));
    let all = policy(json!({"users": ["eve"]}));
    let strict = server(json!({"authentication": {"maxTokenLifetime": "5m"}}));
    for server in [only, strict] {
        let compiled = compile(&server, &[PolicySource::Valid(&all)], &allowing(&["*"]));
        assert_eq!(compiled.diagnostics, []);
        let old =
            Bundle::from_json(compiled.bundle.to_json_version(1).unwrap().as_bytes()).unwrap();
        assert!(old.deny_all.is_some() && old.rules.is_empty());
        // The operator is known all the same.
        assert_eq!(old.cluster, compiled.bundle.cluster);
    }
}
