//! Warnings: what is likely a mistake gets one, with path and advice; what people
//! write every day gets none.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;

use crds::{Document, McpServer, McpServerStatus, McpToolPolicy};
use policy::suspicious::{self, MAX_CHARS, MAX_WARNINGS};
use serde_json::{Value, json};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A server of a cluster with these fields; `tools` are in its status, where it
/// has one.
fn server(name: &str, spec: &Value, tools: Option<&[&str]>) -> McpServer {
    let mut server = json!({
        "apiVersion": "toolward.dev/v1alpha1", "kind": "McpServer",
        "metadata": {"name": name, "namespace": "shop", "uid": "0c5f4e6a"},
        "spec": {"deployment": {"image": "i"}, "transport": {"type": "StreamableHttp"}},
    });
    for (field, value) in spec.as_object().unwrap() {
        server["spec"][field] = value.clone();
    }
    if let Some(tools) = tools {
        let tool = |name: &&str| json!({"name": name, "digest": "sha256:0"});
        server["status"] = json!({"tools": tools.iter().map(tool).collect::<Vec<_>>()});
    }
    serde_json::from_value(server).unwrap()
}

fn policy(spec: &Value) -> McpToolPolicy {
    let mut policy = json!({
        "apiVersion": "toolward.dev/v1alpha1", "kind": "McpToolPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"targetRefs": [{"name": "orders"}]},
    });
    for (field, value) in spec.as_object().unwrap() {
        policy["spec"][field] = value.clone();
    }
    serde_json::from_value(policy).unwrap()
}

fn rule(effect: &str, from: Value, tools: &[&str]) -> Value {
    let name = effect.to_lowercase();
    json!({"name": name, "effect": effect, "from": [from], "tools": tools})
}

/// Exactly these warnings, each by its path and a part of what it says.
fn assert_warnings(case: &str, warnings: &[String], expected: &[(&str, &str)]) {
    assert_eq!(warnings.len(), expected.len(), "{case}: {warnings:#?}");
    for (warning, (path, says)) in warnings.iter().zip(expected) {
        let told = warning
            .strip_prefix(path)
            .and_then(|rest| rest.strip_prefix(": "));
        assert!(
            told.is_some_and(|told| told.contains(says)),
            "{case}: {says:?} at {path}: {warning}"
        );
        assert!(warning.chars().count() <= MAX_CHARS, "{case}: {warning}");
    }
}

#[test]
fn servers() {
    let acme = json!([{"name": "acme", "issuer": "https://idp.example.com"}]);
    let url = |url: &str| json!({"url": url});
    let authentication = |fields: Value| json!({"authentication": fields});
    let clear = [("spec.url", "https URL")];
    for (case, spec, expected) in [
        ("nothing special", json!({}), &[][..]),
        (
            "anonymous",
            authentication(json!({"mode": "Anonymous"})),
            &[("spec.authentication.mode", "use Required")],
        ),
        (
            "an audience that clients do not ask for",
            authentication(json!({"audience": "orders", "issuers": acme})),
            &[("spec.authentication.audience", "\"orders\" is no URL")],
        ),
        (
            "the same, where it is the cluster's",
            authentication(json!({"audience": "orders", "issuers": [{"name": "cluster"}]})),
            &[],
        ),
        (
            "the same, by default",
            authentication(json!({"audience": "orders"})),
            &[],
        ),
        (
            "a URL",
            authentication(json!({"audience": "https://orders.example.com/mcp", "issuers": acme})),
            &[],
        ),
        (
            "tokens for a day",
            authentication(json!({"maxTokenLifetime": "24h"})),
            &[("spec.authentication.maxTokenLifetime", "up to 24h")],
        ),
        (
            "for half a day",
            authentication(json!({"maxTokenLifetime": "12h"})),
            &[],
        ),
        ("in the clear", url("http://orders.example.com/mcp"), &clear),
        (
            "in the clear, by address",
            url("http://203.0.113.7:8080/mcp"),
            &clear,
        ),
        (
            "in the clear, by IPv6",
            url("http://[2001:db8::1]/mcp"),
            &clear,
        ),
        ("over TLS", url("https://orders.example.com/mcp"), &[]),
        ("a Service", url("http://orders.shop.svc/mcp"), &[]),
        (
            "a Service in full",
            url("http://orders.shop.svc.cluster.local:80/mcp"),
            &[],
        ),
        ("a short name", url("http://orders/mcp"), &[]),
        ("loopback", url("http://127.0.0.1:9440/mcp"), &[]),
        ("a private address", url("http://10.1.2.3/mcp"), &[]),
        (
            "a private address, IPv6",
            url("http://[fd00::1]:8080/mcp"),
            &[],
        ),
        (
            "anonymous in the clear gives no token away",
            json!({"authentication": {"mode": "Anonymous"}, "url": "http://orders.example.com/mcp"}),
            &[("spec.authentication.mode", "use Required")],
        ),
    ] {
        let warnings = suspicious::server(&server("orders", &spec, None), &[]);
        assert_warnings(case, &warnings, expected);
    }
}

#[test]
fn a_server_that_has_been_there_and_whose_every_call_is_denied() {
    let with = |effect| policy(&json!({"rules": [rule(effect, json!({"users": ["a"]}), &["t"])]}));
    let (allow, deny) = (with("Allow"), with("Deny"));
    let elsewhere = json!({"targetRefs": [{"name": "other"}], "rules": allow.spec.rules});
    let elsewhere = policy(&elsewhere);
    let limits =
        policy(&json!({"limits": [{"name": "l", "tools": ["*"], "requests": 9, "per": "1m"}]}));
    let none = [("metadata.name", "targetRefs: [{name: orders}]")];
    let only = [("metadata.name", "effect: Allow")];
    for (case, status, policies, expected) in [
        ("new", None, &[][..], &[][..]),
        ("new, with denials only", None, &[&deny], &[]),
        ("alone", Some(&[][..]), &[], &none),
        ("with a policy of another", Some(&[]), &[&elsewhere], &none),
        (
            "with denials only",
            Some(&[]),
            &[&deny, &limits, &elsewhere],
            &only,
        ),
        ("with a policy", Some(&[]), &[&deny, &allow], &[]),
    ] {
        let warnings = suspicious::server(&server("orders", &json!({}), status), policies);
        assert_warnings(case, &warnings, expected);
    }
}

/// Warnings for rules of a server with two issuers, whose tools are not known.
fn of_rules(rules: &Value) -> Vec<String> {
    let several = json!({
        "authentication": {"audience": "https://o.example.com/mcp", "issuers": [
            {"name": "acme", "issuer": "https://idp.example.com"}, {"name": "cluster"},
        ]},
    });
    let orders = server("orders", &several, None);
    suspicious::policy(&policy(&json!({"rules": rules})), &[&orders])
}

fn staff() -> Value {
    json!({"groups": ["staff"], "issuer": "acme"})
}

fn everyone() -> Value {
    json!({"everyone": true})
}

#[test]
fn rules() {
    let allow = |from, tools: &[&str]| json!([rule("Allow", from, tools)]);
    for (case, rules, expected) in [
        ("some tools to some", allow(staff(), &["get_*"]), &[][..]),
        ("all tools to some", allow(staff(), &["*"]), &[]),
        ("some tools to all", allow(everyone(), &["get_*"]), &[]),
        (
            "all tools to all",
            allow(everyone(), &["get_*", "**"]),
            &[("spec.rules[0]", "name the callers")],
        ),
        (
            "all tools denied to all",
            json!([rule("Deny", everyone(), &["*"])]),
            &[],
        ),
        (
            "a regular expression",
            allow(staff(), &["admin.*", "get_.*", ".*"]),
            &[
                ("spec.rules[0].tools[1]", "write \"get_*\""),
                ("spec.rules[0].tools[2]", "write \"*\""),
            ],
        ),
    ] {
        assert_warnings(case, &of_rules(&rules), expected);
    }
}

/// `(case, who is allowed what, who is denied what, whether that is all of it)`.
#[test]
fn an_allow_that_a_deny_covers_whole() {
    let accounts = |names: &[&str]| json!({"serviceAccounts": names});
    let groups = |names: &[&str]| json!({"groups": names});
    let (get, all) = (json!({"tools": ["get"]}), json!({"tools": ["*"]}));
    let some = json!({"tools": ["get_*", "put"]});
    let (files, below) = (json!(["file:///a/*"]), json!(["file:///a/**"]));
    for (case, allow, deny, is_all) in [
        ("a part", (staff(), &some), (everyone(), &get), false),
        (
            "others",
            (staff(), &get),
            (json!({"users": ["eve"]}), &all),
            false,
        ),
        (
            "all",
            (staff(), &some),
            (everyone(), &json!({"tools": ["*_*", "put"]})),
            true,
        ),
        ("themselves", (staff(), &get), (staff(), &get), true),
        (
            "them and more",
            (staff(), &get),
            (groups(&["guests", "staff"]), &get),
            true,
        ),
        (
            "those of another issuer",
            (staff(), &get),
            (json!({"groups": ["staff"], "issuer": "other"}), &get),
            false,
        ),
        (
            "those with a scope",
            (staff(), &get),
            (json!({"issuer": "acme", "scopes": ["x"]}), &get),
            false,
        ),
        (
            "a namespace",
            (accounts(&["agents/a", "agents/b"]), &get),
            (accounts(&["agents/*"]), &all),
            true,
        ),
        (
            "another namespace",
            (accounts(&["agents/a"]), &get),
            (accounts(&["agent/*"]), &all),
            false,
        ),
        (
            "all but prompts",
            (staff(), &json!({"tools": ["a"], "prompts": ["p"]})),
            (everyone(), &all),
            false,
        ),
        (
            "resources",
            (staff(), &json!({"resources": files})),
            (everyone(), &json!({"resources": ["**"]})),
            true,
        ),
        (
            "some resources",
            (staff(), &json!({"resources": below})),
            (everyone(), &json!({"resources": files})),
            false,
        ),
    ] {
        let rule = |name: &str, effect: &str, (from, what): (Value, &Value)| {
            let mut rule = what.clone();
            rule["name"] = json!(name);
            rule["effect"] = json!(effect);
            rule["from"] = json!([from]);
            rule
        };
        let rules = json!([rule("first", "Allow", allow), rule("second", "Deny", deny)]);
        let shadowed = [(
            "spec.rules[0]",
            "rule \"second\" (spec.rules[1]) denies all of it",
        )];
        let expected = if is_all { &shadowed[..] } else { &[] };
        assert_warnings(case, &of_rules(&rules), expected);
    }
}

#[test]
fn callers() {
    const AGENT: &str = "system:serviceaccount:agents:reporter";
    let acme = json!([{"name": "acme", "issuer": "https://idp.example.com"}]);
    let foreign = json!({"authentication": {"audience": "https://o.example.com", "issuers": acme}});
    let by_name =
        json!({"authentication": {"issuers": [{"name": "cluster"}], "audience": "orders"}});
    let cluster = json!({});
    let account = "serviceAccounts: [NAMESPACE/NAME]";
    for (case, spec, from, expected) in [
        (
            "accounts",
            &cluster,
            json!({"serviceAccounts": ["agents/*"]}),
            &[][..],
        ),
        (
            "people of theirs",
            &foreign,
            json!({"users": ["alice"], "scopes": ["x"]}),
            &[],
        ),
        (
            "an account by its long name",
            &cluster,
            json!({"users": [AGENT], "agents": [AGENT]}),
            &[],
        ),
        (
            "people of the cluster",
            &cluster,
            json!({"users": [AGENT, "alice"], "agents": ["agents/reporter"]}),
            &[("users[1]", account), ("agents[0]", account)],
        ),
        (
            "the same, where it is named",
            &by_name,
            json!({"users": ["alice"]}),
            &[("users[0]", account)],
        ),
        (
            "groups and scopes of the cluster",
            &cluster,
            json!({"groups": ["staff"], "scopes": ["x"]}),
            &[("groups", "have no groups"), ("scopes", "have no scopes")],
        ),
        (
            "the same, where the rule names it",
            &foreign,
            json!({"issuer": "cluster", "scopes": ["x"]}),
            &[("scopes", "have no scopes")],
        ),
        (
            "one item that should be two",
            &foreign,
            json!({"serviceAccounts": ["agents/a"], "users": ["alice"]}),
            &[("users[0]", account)],
        ),
        (
            "an account of another issuer",
            &foreign,
            json!({"issuer": "acme", "users": [AGENT]}),
            &[("users[0]", "no token of \"acme\"")],
        ),
        (
            "the same, without its name",
            &foreign,
            json!({"agents": [AGENT]}),
            &[("agents[0]", account)],
        ),
        (
            "wildcards",
            &foreign,
            json!({"users": ["*"], "agents": ["bot-*"], "groups": ["staff", "team-*"]}),
            &[
                ("users[0]", "no wildcards"),
                ("agents[0]", "no wildcards"),
                ("groups[1]", "no wildcards"),
            ],
        ),
        (
            "a blank",
            &foreign,
            json!({"groups": ["staff "]}),
            &[("groups[0]", "with a blank")],
        ),
    ] {
        let rules = json!({"rules": [rule("Allow", from, &["get"])]});
        let orders = server("orders", spec, None);
        let warnings = suspicious::policy(&policy(&rules), &[&orders]);
        let path = |(field, says): &(&str, &'static str)| {
            (format!("spec.rules[0].from[0].{field}"), *says)
        };
        let expected: Vec<_> = expected.iter().map(path).collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(path, says)| (path.as_str(), *says))
            .collect();
        assert_warnings(case, &warnings, &expected);
    }
}

/// There is also the issuer of `--dev-token`.
#[test]
fn callers_on_a_laptop() {
    let mut laptop = server("orders", &json!({}), None);
    laptop.metadata.uid = None;
    let from = json!({"groups": ["staff"], "users": ["alice"], "scopes": ["x"]});
    let rules = json!({"rules": [rule("Allow", from, &["get"])]});
    let warnings = suspicious::policy(&policy(&rules), &[&laptop]);
    assert_warnings("laptop", &warnings, &[]);
}

#[test]
fn tools_and_targets() {
    let orders = server(
        "orders",
        &json!({}),
        Some(&["get-order", "get-env", "list"]),
    );
    let stock = server("stock", &json!({}), Some(&["count"]));
    let silent = server("stock", &json!({}), None);
    let both = json!([{"name": "orders"}, {"name": "stock"}]);
    let with = |effect, tools: &[&str]| {
        let from = json!({"serviceAccounts": ["agents/a"]});
        json!({"rules": [rule(effect, from, tools)]})
    };
    let of_both = |mut spec: Value| {
        spec["targetRefs"] = both.clone();
        spec
    };
    let limit = |tools: &[&str]| json!({"limits": [{"name": "l", "tools": tools, "requests": 9, "per": "1m"}]});
    let tools = "spec.rules[0].tools";
    for (case, spec, servers, expected) in [
        (
            "all known",
            with("Allow", &["get-*", "list"]),
            &[&orders][..],
            &[][..],
        ),
        (
            "a pattern for later",
            with("Allow", &["get-*", "delete-*"]),
            &[&orders],
            &[],
        ),
        (
            "nothing fits",
            with("Allow", &["delete-*", "drop-*"]),
            &[&orders],
            &[(
                tools,
                "\"delete-*\", like another pattern, fits no tool of McpServer orders:",
            )],
        ),
        (
            "a slip",
            with("Allow", &["list", "get_order"]),
            &[&orders],
            &[(tools, "orders (there is \"get-order\"): correct it")],
        ),
        (
            "denied in advance",
            with("Deny", &["delete-*"]),
            &[&orders],
            &[],
        ),
        (
            "a slip in a denial",
            with("Deny", &["getEnv", "delete-*"]),
            &[&orders],
            &[(tools, "(there is \"get-env\")")],
        ),
        (
            "a limit of nothing",
            limit(&["delete-*"]),
            &[&orders],
            &[("spec.limits[0].tools", "fits no tool")],
        ),
        (
            "a tool of the other",
            of_both(with("Allow", &["count"])),
            &[&orders, &stock],
            &[],
        ),
        (
            "of neither",
            of_both(with("Allow", &["sum"])),
            &[&orders, &stock],
            &[(tools, "orders, stock")],
        ),
        (
            "of one that has not told",
            of_both(with("Allow", &["sum"])),
            &[&orders, &silent],
            &[],
        ),
        (
            "no such server",
            of_both(with("Allow", &["sum"])),
            &[&orders],
            &[("spec.targetRefs[1].name", "no McpServer \"stock\"")],
        ),
    ] {
        let warnings = suspicious::policy(&policy(&spec), servers);
        assert_warnings(case, &warnings, expected);
    }
    let mut truncated = orders.clone();
    truncated.status.as_mut().unwrap().truncated = true;
    let warnings = suspicious::policy(&policy(&with("Allow", &["sum"])), &[&truncated]);
    assert_warnings("more than are told", &warnings, &[]);
}

#[test]
fn limits() {
    let named = server("orders", &json!({}), None);
    let anonymous = server(
        "orders",
        &json!({"authentication": {"mode": "Anonymous"}}),
        None,
    );
    for (case, server, limit, expected) in [
        (
            "everyday",
            &named,
            json!({"requests": 60, "per": "1m", "burst": 5, "by": ["Agent"]}),
            &[][..],
        ),
        (
            "a quota",
            &named,
            json!({"requests": 1000, "per": "24h", "by": ["User"]}),
            &[],
        ),
        (
            "one for each",
            &named,
            json!({"requests": 1, "per": "1h", "by": ["User"]}),
            &[],
        ),
        (
            "one for all",
            &named,
            json!({"requests": 1, "per": "1h"}),
            &[("spec.limits[0].requests", "get 1 call in 1h")],
        ),
        (
            "two for all",
            &named,
            json!({"requests": 2, "per": "1h"}),
            &[],
        ),
        (
            "hardly any at once",
            &named,
            json!({"requests": 600, "per": "1m", "burst": 1}),
            &[(
                "spec.limits[0].burst",
                "after 1 call at once only one passes each 100ms",
            )],
        ),
        (
            "names that nobody has",
            &anonymous,
            json!({"requests": 60, "per": "1m", "by": ["Tool", "User"]}),
            &[("spec.limits[0].by", "McpServer orders are Anonymous")],
        ),
        (
            "by tool",
            &anonymous,
            json!({"requests": 60, "per": "1m", "by": ["Tool"]}),
            &[],
        ),
    ] {
        let mut limit = limit;
        limit["name"] = json!("l");
        limit["tools"] = json!(["*"]);
        let policy = policy(&json!({"limits": [limit]}));
        assert_warnings(case, &suspicious::policy(&policy, &[server]), expected);
    }
}

/// Objects as large as the schema lets them be, where all is wrong.
#[test]
fn warnings_are_few_and_short_and_soon_there() {
    let name = "é\u{202e}".repeat(126);
    let pattern = |end: usize| format!("{}{end}", "*a".repeat(60));
    let patterns: Vec<_> = (0..64).map(pattern).collect();
    let item = json!({"users": vec![&name; 64], "agents": vec!["*"; 64]});
    let rule = |index: usize| {
        let effect = if index.is_multiple_of(2) {
            "Allow"
        } else {
            "Deny"
        };
        json!({
            "name": format!("r{index}"), "effect": effect, "from": vec![&item; 2],
            "tools": patterns, "prompts": patterns,
        })
    };
    let rules: Vec<_> = (0..128).map(rule).collect();
    let tools: Vec<_> = (0..256)
        .map(|index| format!("{}{index}", "a".repeat(250)))
        .collect();
    let tools: Vec<_> = tools.iter().map(String::as_str).collect();
    let orders = server("orders", &json!({}), Some(&tools));
    let warnings = suspicious::policy(&policy(&json!({"rules": rules})), &[&orders]);
    assert_eq!(warnings.len(), MAX_WARNINGS, "{warnings:#?}");
    let last = warnings.last().unwrap();
    assert!(
        last.starts_with("and ") && last.ends_with(" more"),
        "{last}"
    );
    for warning in &warnings {
        assert!(warning.chars().count() <= MAX_CHARS, "{warning}");
        assert!(!warning.contains(['\u{202e}', '\n']), "{warning}");
    }
}

/// Manifests of examples and documents, by the file's name.
fn everyday() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in ["examples", "examples/postgres-rls"] {
        for entry in fs::read_dir(format!("{ROOT}/{folder}")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.ends_with(".yaml") {
                found.push((name, fs::read_to_string(path).unwrap()));
            }
        }
    }
    let readme = fs::read_to_string(format!("{ROOT}/README.md")).unwrap();
    let blocks = readme.split("```yaml\n").skip(1);
    for block in blocks.filter_map(|block| block.split("```").next()) {
        found.push(("README.md".to_owned(), block.to_owned()));
    }
    let notes = format!("{ROOT}/charts/toolward/templates/NOTES.txt");
    let notes = fs::read_to_string(notes).unwrap();
    let block = notes.split("<<'YAML'\n").nth(1).unwrap();
    let lines = block.lines().take_while(|line| line.trim() != "YAML");
    let lines: Vec<_> = lines
        .map(|line| line.strip_prefix("  ").unwrap_or(line))
        .collect();
    found.push(("NOTES.txt".to_owned(), lines.join("\n")));
    found
}

/// Toolward's objects in a manifest.
fn objects(manifest: &str) -> (Vec<McpServer>, Vec<McpToolPolicy>) {
    let (mut servers, mut policies) = (Vec::new(), Vec::new());
    let documents = manifest.split("\n---\n");
    for document in documents.filter(|text| text.contains("apiVersion: toolward.dev/")) {
        for object in crds::documents(document).unwrap() {
            match object {
                Document::McpServer(server) => servers.push(*server),
                Document::McpToolPolicy(policy) => policies.push(*policy),
            }
        }
    }
    (servers, policies)
}

#[test]
fn what_people_write_every_day_gets_none() {
    let mut number = 0;
    for (name, manifest) in everyday() {
        let (mut servers, policies) = objects(&manifest);
        for is_in_cluster in [false, true] {
            if is_in_cluster {
                for server in &mut servers {
                    server.metadata.uid = Some("0c5f4e6a".to_owned());
                    server.status = Some(McpServerStatus::default());
                }
            }
            let known_policies: Vec<_> = policies.iter().collect();
            let known_servers: Vec<_> = servers.iter().collect();
            let of_servers = servers.iter();
            let mut warnings: Vec<_> = of_servers
                .flat_map(|server| suspicious::server(server, &known_policies))
                .collect();
            for policy in &policies {
                warnings.extend(suspicious::policy(policy, &known_servers));
                number += 1;
            }
            // Its groups are those of --dev-token, which no cluster has.
            let expected: &[_] = match (name.as_str(), is_in_cluster) {
                ("laptop.yaml", true) => &[("spec.rules[0].from[0].groups", "have no groups")],
                _ => &[],
            };
            assert_warnings(&name, &warnings, expected);
        }
    }
    assert!(number >= 12, "only {number} policies were found");
}
