//! What cannot be compiled denies, and says where.
#![allow(clippy::unwrap_used, missing_docs)]

use crds::{McpServer, McpToolPolicy, Reason};
use policy::{Bundle, Compiled, Context, PolicySource, bundle::Issuer, compile};
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
        issuers: vec![Issuer {
            name: "cluster".into(),
            issuer: "https://kubernetes.default.svc".into(),
            service_accounts: true,
            jwks: json!({"keys": []}),
        }],
        operator: Some("system:serviceaccount:toolward-system:toolward-operator".into()),
        allow_anonymous: false,
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
        issuers: vec![Issuer {
            service_accounts: false,
            ..context().issuers[0].clone()
        }],
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

/// The wire form of version 1. Later sidecars and operators must still agree
/// on this file, so a change here needs a new version.
#[test]
fn the_wire_form_of_version_1_is_as_it_was() {
    let policy = policy(json!({"users": ["eve"], "groups": ["guests"]}));
    let compiled = compile(
        &server(json!({})),
        &[PolicySource::Valid(&policy)],
        &context(),
    );
    let fixture = include_str!("../testdata/bundle-v1.json").trim_end();
    assert_eq!(compiled.bundle.to_json().unwrap(), fixture);
    assert_eq!(
        Bundle::from_json(fixture.as_bytes()).unwrap(),
        compiled.bundle
    );
}
