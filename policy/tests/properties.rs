//! What must always hold, for any policies and any caller.
#![allow(clippy::unwrap_used, missing_docs)]

use crds::{McpServer, McpToolPolicy};
use policy::{
    Bundle, Caller, Context, Operation, PolicySource, Reason, Template, UriGlob,
    bundle::{Effect, Issuer},
    compile, decide, uri, visible,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;
const NAMES: [&str; 4] = ["a", "b", "ab", "abc"];
const URIS: [&str; 6] = ["x:a", "x:b/a", "x://a/b", "x://a/b/ab", "y:a", "x://a/../b"];
const TEMPLATES: [&str; 4] = ["x:{a}", "x://a/{b}", "x:{+a}", "x:a"];

/// What a caller may want, for a strategy.
#[derive(Clone, Debug)]
enum Wanted {
    Tool(String),
    Prompt(String),
    Resource(String),
    Template(String),
}

impl Wanted {
    fn operation(&self) -> Operation<'_> {
        match self {
            Self::Tool(name) => Operation::Tool(name),
            Self::Prompt(name) => Operation::Prompt(name),
            Self::Resource(uri) => Operation::Resource(uri),
            Self::Template(template) => Operation::Template(template),
        }
    }
}

fn a_wanted() -> impl Strategy<Value = Wanted> {
    let of = |list: &'static [&'static str]| proptest::sample::select(list).prop_map(str::to_owned);
    prop_oneof![
        a_name().prop_map(Wanted::Tool),
        a_name().prop_map(Wanted::Prompt),
        of(&URIS).prop_map(Wanted::Resource),
        of(&TEMPLATES).prop_map(Wanted::Template),
    ]
}

fn server() -> McpServer {
    serde_json::from_value(json!({
        "apiVersion": "toolward.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "s", "namespace": "n"},
        "spec": {"deployment": {"image": "i"}, "transport": {"type": "StreamableHttp"}},
    })).unwrap()
}

fn context() -> Context {
    Context {
        default_url: "http://s.n.svc/mcp".into(),
        cluster: Some(Issuer::cluster("https://c", json!({"keys": []}))),
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
        Just(json!({"serviceAccounts": ["ns/*"]})),
        Just(json!({"serviceAccounts": ["n/*"]})),
        list().prop_map(|agents| json!({"agents": agents})),
        list().prop_map(|scopes| json!({"scopes": scopes})),
        (list(), list()).prop_map(|(groups, scopes)| json!({"groups": groups, "scopes": scopes})),
        (list(), list()).prop_map(|(users, agents)| json!({"issuer": "cluster", "users": users, "agents": agents})),
        (list(), list()).prop_map(|(users, groups)| json!({"users": users, "groups": groups})),
    ]
}

fn a_uri_pattern() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("**".to_owned()),
        "[xy]:[ab/]{0,2}(\\*{0,2}[ab/]{0,2}){0,2}",
        "x://a/[ab/*]{0,4}",
    ]
    .prop_filter("in normal form", |pattern| {
        uri::check_pattern(pattern).is_ok()
    })
}

/// At least one of tools, prompts and resources.
fn a_rule(effect: impl Strategy<Value = &'static str>) -> impl Strategy<Value = Value> {
    let names = || proptest::option::of(proptest::collection::vec(a_pattern(), 1..3));
    (
        effect,
        proptest::collection::vec(a_subject(), 1..3),
        names(),
        names(),
        proptest::option::of(proptest::collection::vec(a_uri_pattern(), 1..3)),
    )
        .prop_map(|(effect, from, tools, prompts, resources)| {
            let mut rule = json!({"effect": effect, "from": from});
            if tools.is_none() && prompts.is_none() && resources.is_none() {
                rule["tools"] = json!(["*"]);
            }
            for (field, list) in [
                ("tools", tools),
                ("prompts", prompts),
                ("resources", resources),
            ] {
                if let Some(list) = list {
                    rule[field] = list.into();
                }
            }
            rule
        })
}

fn rules() -> impl Strategy<Value = Vec<Value>> {
    proptest::collection::vec(a_rule(prop_oneof![Just("Allow"), Just("Deny")]), 0..8)
}

fn a_caller() -> impl Strategy<Value = Caller> {
    let name = || proptest::option::of(a_name());
    let names = || proptest::collection::vec(a_name(), 0..3);
    (name(), name(), name(), names(), names()).prop_map(|(user, agent, account, groups, scopes)| {
        Caller {
            issuer: Some("cluster".into()),
            agent,
            user,
            groups,
            scopes,
            service_account: account.map(|account| format!("ns/{account}")),
            pod: None,
            expires_at: Some(NOW + 1),
        }
    })
}

fn effect(
    bundle: &Bundle,
    caller: &Caller,
    wanted: &Wanted,
) -> (Effect, Reason, Option<(String, String)>) {
    let decision = decide(bundle, caller, wanted.operation(), NOW);
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
    fn default_deny(rules in proptest::collection::vec(a_rule(Just("Deny")), 0..4), caller in a_caller(), wanted in a_wanted()) {
        prop_assert_eq!(effect(&bundle(&policies_of(&rules, &[], 2)), &caller, &wanted).0, Effect::Deny);
    }

    #[test]
    fn deny_dominates(rules in rules(), deny in a_rule(Just("Deny")), at in 0usize..8, caller in a_caller(), wanted in a_wanted()) {
        let alone = bundle(&policies_of(std::slice::from_ref(&deny), &[], 1));
        let mut all = rules;
        all.insert(at.min(all.len()), deny);
        if effect(&alone, &caller, &wanted).1 == Reason::DeniedByRule {
            prop_assert_eq!(effect(&bundle(&policies_of(&all, &[], 3)), &caller, &wanted).1, Reason::DeniedByRule);
        }
    }

    #[test]
    fn one_more_deny_never_allows_and_one_more_allow_never_denies(rules in rules(), more in a_rule(prop_oneof![Just("Allow"), Just("Deny")]), caller in a_caller(), wanted in a_wanted()) {
        let before = effect(&bundle(&policies_of(&rules, &[], 3)), &caller, &wanted).0;
        let mut all = rules;
        let adds = more["effect"].clone();
        all.push(more);
        let after = effect(&bundle(&policies_of(&all, &[], 3)), &caller, &wanted).0;
        prop_assert!(before == after || (adds == "Allow") == (after == Effect::Allow));
    }

    #[test]
    fn order_does_not_matter((rules, shuffled) in rules().prop_flat_map(|rules| (Just(rules.clone()), Just(rules).prop_shuffle())),
                             split in 0usize..8, caller in a_caller(), wanted in a_wanted()) {
        let (one, other) = (bundle(&policies_of(&rules, &[], split)), bundle(&policies_of(&shuffled, &[], 8 - split)));
        prop_assert_eq!(effect(&one, &caller, &wanted).0, effect(&other, &caller, &wanted).0);
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
    fn a_list_shows_exactly_what_may_be_called_or_lacks_scopes_alone(rules in rules(), caller in a_caller()) {
        let bundle = bundle(&policies_of(&rules, &[], 3));
        let tools = NAMES.map(Operation::Tool);
        let prompts = NAMES.map(Operation::Prompt);
        let resources = URIS.map(Operation::Resource);
        let templates = TEMPLATES.map(Operation::Template);
        for operation in [&tools[..], &prompts, &resources, &templates].concat() {
            let decision = decide(&bundle, &caller, operation, NOW);
            prop_assert_eq!(visible(&bundle, &caller, operation, NOW), decision.is_allowed() || decision.reason == Reason::InsufficientScope);
        }
    }

    #[test]
    fn the_scopes_that_are_asked_for_suffice(rules in rules(), caller in a_caller(), wanted in a_wanted()) {
        let bundle = bundle(&policies_of(&rules, &[], 3));
        let decision = decide(&bundle, &caller, wanted.operation(), NOW);
        prop_assert_eq!(decision.scopes.is_empty(), decision.reason != Reason::InsufficientScope);
        let with = |more: &[String]| Caller { scopes: [&caller.scopes[..], more].concat(), ..caller.clone() };
        if decision.reason == Reason::InsufficientScope {
            prop_assert_eq!(decision.effect, Effect::Deny);
            prop_assert!(decision.scopes.iter().any(|scope| !caller.scopes.contains(scope)));
            prop_assert!(decide(&bundle, &with(decision.scopes), wanted.operation(), NOW).is_allowed());
        } else if !decision.is_allowed() {
            // No scopes of the rules would have helped.
            for scopes in NAMES.iter().map(|name| vec![(*name).to_owned()]) {
                prop_assert!(!decide(&bundle, &with(&scopes), wanted.operation(), NOW).is_allowed());
            }
        }
    }

    #[test]
    fn the_wire_form_loses_nothing(rules in rules(), patterns in proptest::collection::vec(a_pattern(), 1..3), requests in 1u32..1000) {
        let limit = json!({"tools": patterns, "requests": requests, "per": "1m", "by": ["Tool", "User"]});
        let bundle = bundle(&policies_of(&rules, &[limit], 3));
        for version in [1, 2] {
            let json = bundle.to_json_version(version).unwrap();
            let read = Bundle::from_json(json.as_bytes()).unwrap();
            prop_assert_eq!(read.to_json().unwrap(), json);
            if version == bundle.version {
                prop_assert_eq!(read, bundle.clone());
            }
        }
    }

    #[test]
    fn an_older_version_never_allows_more(rules in rules(), caller in a_caller(), wanted in a_wanted()) {
        let new = bundle(&policies_of(&rules, &[], 3));
        let old = Bundle::from_json(new.to_json_version(1).unwrap().as_bytes()).unwrap();
        // It has no words for agents, scopes and whole namespaces.
        let allowed = effect(&old, &caller, &wanted).0 == Effect::Allow;
        prop_assert!(!allowed || effect(&new, &caller, &wanted).0 == Effect::Allow);
        prop_assert!(!allowed || matches!(wanted, Wanted::Tool(_)));
        let is_old = |rule: &Value| rule["from"].as_array().unwrap().iter().all(|from| {
            let new = ["agents", "scopes", "issuer"].iter().any(|field| from.get(field).is_some());
            !new && !from.to_string().contains('*')
        });
        if let Wanted::Tool(_) = wanted && rules.iter().all(is_old) {
            prop_assert_eq!(effect(&old, &caller, &wanted), effect(&new, &caller, &wanted));
        }
    }

    #[test]
    fn an_expired_caller_and_a_deny_all_bundle_get_nothing(rules in rules(), caller in a_caller(), wanted in a_wanted()) {
        let good = bundle(&policies_of(&rules, &[], 3));
        let denied = decide(&good, &caller, wanted.operation(), NOW + 1);
        prop_assert_eq!((denied.effect, denied.reason), (Effect::Deny, Reason::TokenExpired));
        let bundle = Bundle { deny_all: Some("why".into()), ..good };
        prop_assert_eq!(effect(&bundle, &caller, &wanted).1, Reason::ConfigurationInvalid);
    }

    #[test]
    fn noise_is_no_bundle(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Bundle::from_json(&noise).is_err());
    }
}

/// By the words of the field's documentation, and nothing else.
fn reference(pattern: &[u8], text: &[u8]) -> bool {
    let up_to = |end: usize, rest: &[u8]| (0..=end).any(|at| reference(rest, &text[at..]));
    match pattern {
        [] => text.is_empty(),
        [b'*', b'*', rest @ ..] => up_to(text.len(), rest),
        [b'*', rest @ ..] => {
            let slash = text.iter().position(|&byte| byte == b'/');
            up_to(slash.unwrap_or(text.len()), rest)
        }
        [byte, rest @ ..] => text.first() == Some(byte) && reference(rest, &text[1..]),
    }
}

/// An expression of a template, and one of its expansions by RFC 6570.
fn an_expression() -> impl Strategy<Value = (String, String)> {
    let plain = || "[ab.]{0,2}(%20)?";
    let any = "[ab/.?=]{0,4}";
    prop_oneof![
        "[abx/:]{0,4}".prop_map(|text| (text.clone(), text)),
        plain().prop_map(|text| ("{v}".to_owned(), text)),
        plain().prop_map(|text| ("{v:3}".to_owned(), text)),
        (plain(), plain()).prop_map(|(a, b)| ("{v,w}".to_owned(), format!("{a},{b}"))),
        any.prop_map(|text| ("{+v}".to_owned(), text)),
        any.prop_map(|text| ("{v*}".to_owned(), text)),
        (plain(), plain()).prop_map(|(a, b)| ("{/v*}".to_owned(), format!("/{a}/{b}"))),
        plain().prop_map(|text| ("{.v}".to_owned(), format!(".{text}"))),
        plain().prop_map(|text| ("{;v}".to_owned(), format!(";v={text}"))),
        plain().prop_map(|text| ("{?v}".to_owned(), format!("?v={text}"))),
        plain().prop_map(|text| ("{&v}".to_owned(), format!("&v={text}"))),
        Just(("{#v}".to_owned(), String::new())),
    ]
}

/// A template, and one of its expansions.
fn a_template() -> impl Strategy<Value = (String, String)> {
    let parts = proptest::collection::vec(an_expression(), 0..4);
    let start = proptest::sample::select(&["x:", "x://a/", "x://a", "file:///", "", "x:/"][..]);
    (start, parts).prop_map(|(start, parts)| {
        let (template, uri): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        (
            format!("{start}{}", template.concat()),
            format!("{start}{}", uri.concat()),
        )
    })
}

/// A normal URI, and the same resource in another spelling (RFC 3986, section 6).
fn two_spellings() -> impl Strategy<Value = (String, String)> {
    let uri = (
        proptest::sample::select(&["http", "https", "file", "demo", "ws"][..]),
        "[a-z]{1,3}(\\.[a-z]{2})?",
        "(/[a-z0-9_~-]{1,3}(%C3%A4)?){1,4}",
        0usize..12,
        any::<proptest::sample::Index>(),
    );
    uri.prop_map(|(scheme, host, path, kind, at)| {
        let normal = format!("{scheme}://{host}{path}");
        let (upper, slash) = (
            host.to_ascii_uppercase(),
            at.index(path.matches('/').count()),
        );
        let (cut, _) = path.match_indices('/').nth(slash).unwrap_or((0, ""));
        let (before, after) = path.split_at(cut);
        let letters: Vec<_> = path
            .char_indices()
            .filter(|(_, c)| c.is_ascii_lowercase())
            .collect();
        let other = match kind {
            0 => format!("{}://{host}{path}", scheme.to_ascii_uppercase()),
            1 => format!("{scheme}://{upper}{path}"),
            2 => format!("{scheme}://{host}{before}/.{after}"),
            3 => format!("{scheme}://{host}{before}/z/..{after}"),
            4 => format!("{scheme}://{host}{path}/."),
            5 => format!("{scheme}://{host}{path}#part"),
            6 => format!("{scheme}://{host}:{path}"),
            7 => format!("{normal}%c3%a4"),
            8 => format!("{scheme}://{host}{before}/z%2F..{after}"),
            9 => format!("{normal}\u{e4}"),
            10 => match letters.get(at.index(letters.len().max(1))) {
                Some((place, letter)) => {
                    let (before, after) = (&path[..*place], &path[place + 1..]);
                    format!(
                        "{scheme}://{host}{before}%{:02X}{after}",
                        u32::from(*letter)
                    )
                }
                None => format!("{normal}%7E"),
            },
            _ => match scheme {
                "file" => format!("file://{host}{before}/{after}"),
                "demo" => format!("{normal}%00"),
                "https" => format!("https://{host}:443{path}"),
                scheme => format!("{scheme}://{host}:80{path}"),
            },
        };
        (normal, other)
    })
}

proptest! {
    #[test]
    fn uri_patterns_mean_what_is_written(pattern in "[ab/*]{0,8}", text in "[ab/]{0,8}") {
        prop_assert_eq!(UriGlob(pattern.clone()).matches(&text), reference(pattern.as_bytes(), text.as_bytes()));
    }

    #[test]
    fn a_template_is_shown_where_one_of_its_uris_may_be_read(rules in rules(), caller in a_caller(), (template, uri) in a_template()) {
        let bundle = bundle(&policies_of(&rules, &[], 3));
        if decide(&bundle, &caller, Operation::Resource(&uri), NOW).is_allowed() {
            prop_assert!(visible(&bundle, &caller, Operation::Template(&template), NOW), "{} of {}", uri, template);
        }
    }

    #[test]
    fn what_covers_a_template_matches_all_of_its_uris(pattern in a_uri_pattern(), (template, uri) in a_template()) {
        let pattern = UriGlob(pattern);
        if let Ok(template) = Template::parse(&template) {
            prop_assert!(!pattern.covers(&template) || pattern.matches(&uri));
            prop_assert!(!pattern.matches(&uri) || pattern.meets(&template));
            prop_assert!(!pattern.covers(&template) || pattern.meets(&template));
        }
    }

    #[test]
    fn no_other_spelling_of_a_uri_is_decided_on((normal, other) in two_spellings()) {
        prop_assert_eq!(uri::check(&normal), Ok(()));
        prop_assert!(uri::check(&other).is_err(), "{}", other);
        let all = json!({"effect": "Allow", "from": [{"everyone": true}], "resources": ["**"]});
        let bundle = bundle(&policies_of(&[all], &[], 1));
        let decision = |uri: &str| decide(&bundle, &Caller::default(), Operation::Resource(uri), NOW).reason;
        prop_assert_eq!(decision(&normal), Reason::AllowedByRule);
        prop_assert_eq!(decision(&other), Reason::UriNotNormal);
    }

    #[test]
    fn noise_is_judged_and_never_panics(text in any::<String>(), uri in "[a-z]{0,2}:?/{0,2}[a-zA-Z0-9@:\\[\\]%./?#*{}é-]{0,20}") {
        for text in [&text, &uri] {
            let plain = uri::check(text).is_ok();
            prop_assert!(!plain || text.is_ascii());
            // A text without wildcards is a pattern of itself alone.
            if !text.contains('*') {
                prop_assert_eq!(uri::check_pattern(text).is_ok(), plain);
            }
            if !text.contains(['{', '}']) {
                prop_assert_eq!(Template::parse(text).is_ok(), plain);
            }
            let _ = Template::parse(text);
            prop_assert!(!plain || text.contains('*') || UriGlob(text.clone()).matches(text));
        }
    }
}

#[test]
fn nobody_matches_only_everyone() {
    let rule = |from: Value| json!({"effect": "Allow", "from": [from], "tools": ["*"]});
    let nobody = Caller::default();
    let everyone = bundle(&policies_of(&[rule(json!({"everyone": true}))], &[], 1));
    let wanted = Wanted::Tool("a".into());
    assert_eq!(effect(&everyone, &nobody, &wanted).0, Effect::Allow);
    for from in [
        json!({"users": [""]}),
        json!({"users": ["a"]}),
        json!({"groups": ["a"]}),
        json!({"serviceAccounts": ["ns/a"]}),
    ] {
        assert_eq!(
            effect(
                &bundle(&policies_of(&[rule(from)], &[], 1)),
                &nobody,
                &wanted
            )
            .0,
            Effect::Deny
        );
    }
}

#[test]
fn a_rule_says_nothing_of_the_kinds_that_it_does_not_list() {
    let operations = [
        Operation::Tool("a"),
        Operation::Prompt("a"),
        Operation::Resource("x:a"),
        Operation::Template("x:{a}"),
    ];
    for (field, patterns, allowed) in [
        ("tools", json!(["*"]), [true, false, false, false]),
        ("prompts", json!(["*"]), [false, true, false, false]),
        ("resources", json!(["**"]), [false, false, true, true]),
    ] {
        let rule = json!({"effect": "Allow", "from": [{"everyone": true}], field: patterns});
        let bundle = bundle(&policies_of(&[rule], &[], 1));
        let decided = operations
            .map(|operation| decide(&bundle, &Caller::default(), operation, NOW).is_allowed());
        assert_eq!(decided, allowed, "{field}");
    }
}

#[test]
fn limits_are_on_tools_alone() {
    let rule = json!({"effect": "Allow", "from": [{"everyone": true}], "tools": ["*"], "prompts": ["*"], "resources": ["**"]});
    let limit = json!({"tools": ["*"], "requests": 1, "per": "1m"});
    let bundle = bundle(&policies_of(&[rule], &[limit], 1));
    for (operation, limits) in [
        (Operation::Tool("a"), 1),
        (Operation::Prompt("a"), 0),
        (Operation::Resource("x:a"), 0),
        (Operation::Template("x:{a}"), 0),
    ] {
        let decision = decide(&bundle, &Caller::default(), operation, NOW);
        assert!(decision.is_allowed());
        assert_eq!(decision.limits.len(), limits);
    }
}
