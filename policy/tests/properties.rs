//! What must always hold, for any policies and any caller.
#![allow(clippy::unwrap_used, missing_docs)]

use crds::{McpServer, McpToolPolicy};
use policy::{
    Bundle, Caller, Context, Operation, PolicySource, Reason,
    bundle::{Effect, Issuer},
    compile, decide, visible,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;
const NAMES: [&str; 4] = ["a", "b", "ab", "abc"];

fn server() -> McpServer {
    serde_json::from_value(json!({
        "apiVersion": "toolward.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "s", "namespace": "n"},
        "spec": {"deployment": {"image": "i"}, "transport": {"type": "StreamableHttp"}},
    })).unwrap()
}

fn context() -> Context {
    let issuer = Issuer {
        name: "cluster".into(),
        issuer: "https://c".into(),
        service_accounts: true,
        jwks: json!({"keys": []}),
    };
    Context {
        default_url: "http://s.n.svc/mcp".into(),
        issuers: vec![issuer],
        ..Context::default()
    }
}

fn policies_of(rules: &[Value], limits: &[Value], split: usize) -> Vec<McpToolPolicy> {
    let policy = |name: &str, rules: &[Value], limits: &[Value]| {
        let named = |items: &[Value]| {
            items
                .iter()
                .enumerate()
                .map(|(i, item)| {
                    let mut item = item.clone();
                    item["name"] = json!(format!("{name}-{i}"));
                    item
                })
                .collect::<Vec<_>>()
        };
        serde_json::from_value(json!({
            "apiVersion": "toolward.dev/v1alpha1", "kind": "McpToolPolicy", "metadata": {"name": name, "namespace": "n"},
            "spec": {"targetRefs": [{"name": "s"}], "rules": named(rules), "limits": named(limits)},
        })).unwrap()
    };
    let (first, second) = rules.split_at(split.min(rules.len()));
    vec![policy("p", first, limits), policy("q", second, &[])]
}

fn bundle(policies: &[McpToolPolicy]) -> Bundle {
    let sources: Vec<_> = policies.iter().map(PolicySource::Valid).collect();
    let compiled = compile(&server(), &sources, &context());
    assert_eq!(compiled.diagnostics, []);
    compiled.bundle
}

fn a_pattern() -> impl Strategy<Value = String> {
    prop_oneof![Just("*".to_owned()), "[abc]{1,3}", "[abc*]{1,4}"]
}

fn a_name() -> impl Strategy<Value = String> {
    proptest::sample::select(&NAMES[..]).prop_map(str::to_owned)
}

fn a_subject() -> impl Strategy<Value = Value> {
    let list = || proptest::collection::vec(a_name(), 1..3);
    prop_oneof![
        Just(json!({"everyone": true})),
        list().prop_map(|users| json!({"users": users})),
        list().prop_map(|groups| json!({"groups": groups})),
        list().prop_map(|names| json!({"serviceAccounts": names.iter().map(|n| format!("ns/{n}")).collect::<Vec<_>>()})),
        (list(), list()).prop_map(|(users, groups)| json!({"users": users, "groups": groups})),
    ]
}

fn a_rule(effect: impl Strategy<Value = &'static str>) -> impl Strategy<Value = Value> {
    (
        effect,
        proptest::collection::vec(a_subject(), 1..3),
        proptest::collection::vec(a_pattern(), 1..3),
    )
        .prop_map(|(effect, from, tools)| json!({"effect": effect, "from": from, "tools": tools}))
}

fn rules() -> impl Strategy<Value = Vec<Value>> {
    proptest::collection::vec(a_rule(prop_oneof![Just("Allow"), Just("Deny")]), 0..8)
}

fn a_caller() -> impl Strategy<Value = Caller> {
    let name = || proptest::option::of(a_name());
    (name(), name(), proptest::collection::vec(a_name(), 0..3)).prop_map(
        |(user, account, groups)| Caller {
            issuer: Some("cluster".into()),
            agent: user.clone(),
            user,
            groups,
            service_account: account.map(|account| format!("ns/{account}")),
            expires_at: Some(NOW + 1),
        },
    )
}

fn effect(
    bundle: &Bundle,
    caller: &Caller,
    tool: &str,
) -> (Effect, Reason, Option<(String, String)>) {
    let decision = decide(bundle, caller, Operation::Tool(tool), NOW);
    (
        decision.effect,
        decision.reason,
        decision
            .rule
            .map(|rule| (rule.policy.clone(), rule.name.clone())),
    )
}

proptest! {
    #[test]
    fn default_deny(rules in proptest::collection::vec(a_rule(Just("Deny")), 0..4), caller in a_caller(), tool in a_name()) {
        prop_assert_eq!(effect(&bundle(&policies_of(&rules, &[], 2)), &caller, &tool).0, Effect::Deny);
    }

    #[test]
    fn deny_dominates(rules in rules(), deny in a_rule(Just("Deny")), at in 0usize..8, caller in a_caller(), tool in a_name()) {
        let alone = bundle(&policies_of(std::slice::from_ref(&deny), &[], 1));
        let mut all = rules;
        all.insert(at.min(all.len()), deny);
        if effect(&alone, &caller, &tool).1 == Reason::DeniedByRule {
            prop_assert_eq!(effect(&bundle(&policies_of(&all, &[], 3)), &caller, &tool).1, Reason::DeniedByRule);
        }
    }

    #[test]
    fn one_more_deny_never_allows_and_one_more_allow_never_denies(rules in rules(), more in a_rule(prop_oneof![Just("Allow"), Just("Deny")]), caller in a_caller(), tool in a_name()) {
        let before = effect(&bundle(&policies_of(&rules, &[], 3)), &caller, &tool).0;
        let mut all = rules;
        let adds = more["effect"].clone();
        all.push(more);
        let after = effect(&bundle(&policies_of(&all, &[], 3)), &caller, &tool).0;
        prop_assert!(before == after || (adds == "Allow") == (after == Effect::Allow));
    }

    #[test]
    fn order_does_not_matter((rules, shuffled) in rules().prop_flat_map(|rules| (Just(rules.clone()), Just(rules).prop_shuffle())),
                             split in 0usize..8, caller in a_caller(), tool in a_name()) {
        let (one, other) = (bundle(&policies_of(&rules, &[], split)), bundle(&policies_of(&shuffled, &[], 8 - split)));
        prop_assert_eq!(effect(&one, &caller, &tool).0, effect(&other, &caller, &tool).0);
    }

    #[test]
    fn the_order_of_policies_and_rules_gives_the_same_bytes(rules in rules(), caller in a_caller()) {
        let mut policies = policies_of(&rules, &[], 4);
        let one = bundle(&policies).to_json().unwrap();
        policies.reverse();
        policies.iter_mut().for_each(|policy| policy.spec.rules.iter_mut().for_each(|rules| rules.reverse()));
        prop_assert_eq!(one, bundle(&policies).to_json().unwrap());
        let _ = caller;
    }

    #[test]
    fn a_list_shows_exactly_what_may_be_called(rules in rules(), caller in a_caller()) {
        let bundle = bundle(&policies_of(&rules, &[], 3));
        for tool in NAMES {
            let operation = Operation::Tool(tool);
            prop_assert_eq!(visible(&bundle, &caller, operation, NOW), decide(&bundle, &caller, operation, NOW).is_allowed());
        }
    }

    #[test]
    fn the_wire_form_loses_nothing(rules in rules(), patterns in proptest::collection::vec(a_pattern(), 1..3), requests in 1u32..1000) {
        let limit = json!({"tools": patterns, "requests": requests, "per": "1m", "by": ["Tool", "User"]});
        let bundle = bundle(&policies_of(&rules, &[limit], 3));
        let json = bundle.to_json().unwrap();
        let read = Bundle::from_json(json.as_bytes()).unwrap();
        prop_assert_eq!(&read, &bundle);
        prop_assert_eq!(read.to_json().unwrap(), json);
    }

    #[test]
    fn an_expired_caller_and_a_deny_all_bundle_get_nothing(rules in rules(), caller in a_caller(), tool in a_name()) {
        let good = bundle(&policies_of(&rules, &[], 3));
        let denied = decide(&good, &caller, Operation::Tool(&tool), NOW + 1);
        prop_assert_eq!((denied.effect, denied.reason), (Effect::Deny, Reason::TokenExpired));
        let bundle = Bundle { deny_all: Some("why".into()), ..good };
        prop_assert_eq!(effect(&bundle, &caller, &tool).1, Reason::ConfigurationInvalid);
    }

    #[test]
    fn noise_is_no_bundle(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Bundle::from_json(&noise).is_err());
    }
}

#[test]
fn nobody_matches_only_everyone() {
    let rule = |from: Value| json!({"effect": "Allow", "from": [from], "tools": ["*"]});
    let nobody = Caller::default();
    let everyone = bundle(&policies_of(&[rule(json!({"everyone": true}))], &[], 1));
    assert_eq!(effect(&everyone, &nobody, "a").0, Effect::Allow);
    for from in [
        json!({"users": [""]}),
        json!({"users": ["a"]}),
        json!({"groups": ["a"]}),
        json!({"serviceAccounts": ["ns/a"]}),
    ] {
        assert_eq!(
            effect(&bundle(&policies_of(&[rule(from)], &[], 1)), &nobody, "a").0,
            Effect::Deny
        );
    }
}

#[test]
fn prompts_and_resources_are_denied_until_a_rule_can_name_them() {
    let bundle = bundle(&policies_of(
        &[json!({"effect": "Allow", "from": [{"everyone": true}], "tools": ["*"]})],
        &[],
        1,
    ));
    for operation in [Operation::Prompt("a"), Operation::Resource("a://b")] {
        assert!(!decide(&bundle, &Caller::default(), operation, NOW).is_allowed());
    }
}
