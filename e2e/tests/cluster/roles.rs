//! Who may do what: Kubernetes' own roles with what the chart adds to them, the
//! bounds that the chart sets, and the operator's account, of which each tries more
//! than is theirs.

use anyhow::{Result, ensure};
use e2e::{Image, release};
use serde_json::{Value, json};

use crate::suite::{ACCEPTED, Scope, allow, beside};
use crate::trust::{binding, idle, may, may_not, member, team};

/// What the operator is told of pods.
const ONE_ANNOTATION: &str = "may change only the annotation toolward.dev/bundle";

#[tokio::test]
async fn roles_say_who_changes_servers_and_policies() -> Result<()> {
    beside("trust-roles", async |scope: &Scope| {
        team(scope).await?;
        let policy = |tool| allow("callers", "orders", &scope.caller_subject(), &[tool]);
        scope.apply(&[idle("orders"), policy("get-sum")]).await?;
        scope.server_says("orders", ACCEPTED).await?;
        for role in ["view", "edit"] {
            let who = member(scope, role);
            may(scope, &who, &["get", "mcps,mtp"], None).await?;
            for (kind, name) in [("mcps", "orders"), ("mtp", "callers")] {
                let status = ["get", kind, name, "--subresource=status"];
                may(scope, &who, &status, None).await?;
            }
            changes_are_refused(scope, &who).await?;
        }
        let admin = member(scope, "admin");
        let status = json!({"status": {"conditions": []}}).to_string();
        for (kind, name) in [("mcps", "orders"), ("mtp", "callers")] {
            let patch = ["patch", kind, name, "--subresource=status", "--type=merge"];
            let patch = [&patch[..], &["-p", &status]].concat();
            let says = "cannot patch resource";
            may_not(scope, &admin, &patch, None, says).await?;
        }
        let apply = ["apply", "-f", "-"];
        may(scope, &admin, &apply, Some(&idle("invoices"))).await?;
        may(scope, &admin, &apply, Some(&policy("echo"))).await?;
        let scale = ["scale", "mcps/invoices", "--replicas=0"];
        may(scope, &admin, &scale, None).await?;
        may(scope, &admin, &["delete", "mcps", "invoices"], None).await?;
        may(scope, &admin, &["delete", "mtp", "--all"], None).await
    })
    .await
}

async fn changes_are_refused(scope: &Scope, who: &str) -> Result<()> {
    let everyone = json!({"everyone": true});
    let policy = allow("more", "orders", &everyone, &["*"]);
    let all = |kind: &str| {
        let namespace = &scope.namespace;
        format!("/apis/toolward.dev/v1alpha1/namespaces/{namespace}/{kind}")
    };
    let (servers, policies) = (all("mcpservers"), all("mcptoolpolicies"));
    let merge = |kind: &'static str, name: &'static str, patch: &'static str| {
        vec!["patch", kind, name, "--type=merge", "-p", patch]
    };
    let anonymous = r#"{"spec": {"authentication": {"mode": "Anonymous"}}}"#;
    let status = r#"{"status": {"conditions": []}}"#;
    let apply = vec!["apply", "-f", "-"];
    let tries: [(Vec<&str>, Option<Value>, &str); 9] = [
        (
            apply.clone(),
            Some(idle("mine")),
            "cannot create resource \"mcpservers\"",
        ),
        (
            apply,
            Some(policy),
            "cannot create resource \"mcptoolpolicies\"",
        ),
        (
            merge("mcps", "orders", anonymous),
            None,
            "cannot patch resource \"mcpservers\"",
        ),
        (
            merge("mtp", "callers", r#"{"spec": {"rules": null}}"#),
            None,
            "cannot patch resource \"mcptoolpolicies\"",
        ),
        (
            [
                &merge("mcps", "orders", status)[..],
                &["--subresource=status"],
            ]
            .concat(),
            None,
            "cannot patch resource \"mcpservers/status\"",
        ),
        (
            vec!["scale", "mcps/orders", "--replicas=1"],
            None,
            "resource \"mcpservers/scale\"",
        ),
        (
            vec!["delete", "mtp", "callers"],
            None,
            "cannot delete resource \"mcptoolpolicies\"",
        ),
        (
            vec!["delete", "--raw", &servers],
            None,
            "cannot deletecollection resource \"mcpservers\"",
        ),
        (
            vec!["delete", "--raw", &policies],
            None,
            "cannot deletecollection resource \"mcptoolpolicies\"",
        ),
    ];
    for (args, stdin, says) in tries {
        may_not(scope, who, &args, stdin.as_ref(), says).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_chart_bounds_what_a_team_may_ask_for() -> Result<()> {
    beside("trust-bounds", async |scope: &Scope| {
        team(scope).await?;
        let admin = member(scope, "admin");
        let apply = ["apply", "-f", "-"];
        may(scope, &admin, &apply, Some(&idle("orders"))).await?;
        let foreign = json!({
            "audience": "orders",
            "issuers": [{"name": "acme", "issuer": "https://foreign.example.com/realms/acme"}],
        });
        for (authentication, path, value) in [
            (
                json!({"mode": "Anonymous"}),
                "spec.authentication.mode",
                "allowAnonymous",
            ),
            (
                foreign,
                "spec.authentication.issuers[0].issuer",
                "allowedIssuers",
            ),
        ] {
            let mut fresh = idle("fresh");
            fresh["spec"]["authentication"] = authentication.clone();
            let patch = json!({"spec": {"authentication": authentication}}).to_string();
            let patch = ["patch", "mcps", "orders", "--type=merge", "-p", &patch];
            for says in [path, value] {
                may_not(scope, &admin, &apply, Some(&fresh), says).await?;
                may_not(scope, &admin, &patch, None, says).await?;
            }
        }
        let servers = scope.kubectl(&["get", "mcps", "-o", "name"]).await?;
        ensure!(!servers.contains("fresh"), "{servers}");
        scope.server_says("orders", ACCEPTED).await.map(drop)
    })
    .await
}

/// One that never runs.
fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "labels": {"app": "bystander"}, "annotations": {"of": "the team"},
        },
        "spec": {
            "schedulingGates": [{"name": "e2e/never"}],
            "securityContext": {
                "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container("main")],
        },
    })
}

fn container(name: &str) -> Value {
    json!({
        "name": name, "image": Image::ServerEverything.name(),
        "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
        },
    })
}

/// What an operator could write into a pod that it must not.
const PATCHES: [&str; 10] = [
    r#"{"metadata": {"labels": {"toolward.dev/server": "orders"}}}"#,
    r#"{"metadata": {"labels": null}}"#,
    r#"{"metadata": {"annotations": {"toolward.dev/server": "orders"}}}"#,
    r#"{"metadata": {"annotations": {"toolward.dev/bundle": "b", "of": "others"}}}"#,
    r#"{"metadata": {"annotations": null}}"#,
    r#"{"metadata": {"finalizers": ["example.com/stay"]}}"#,
    r#"{"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]}}"#,
    r#"{"spec": {"activeDeadlineSeconds": 1}}"#,
    r#"{"spec": {"tolerations": [{"key": "a", "operator": "Exists"}]}}"#,
    r#"{"spec": {"schedulingGates": null}}"#,
];

#[tokio::test]
async fn the_operator_changes_one_annotation_of_a_pod() -> Result<()> {
    beside("trust-pods", async |scope: &Scope| {
        team(scope).await?;
        let account = (release::NAMESPACE, release::OPERATOR);
        // With all rights in the namespace: it is not RBAC that refuses.
        let everything = binding(scope, "everything", "cluster-admin", account);
        scope.apply(&[pod("bystander"), everything]).await?;
        let operator = format!("system:serviceaccount:{}:{}", account.0, account.1);
        let bundle = ["annotate", "pod", "bystander", "toolward.dev/bundle=a"];
        may(scope, &operator, &bundle, None).await?;
        for patch in PATCHES {
            let patch = ["patch", "pod", "bystander", "--type=merge", "-p", patch];
            may_not(scope, &operator, &patch, None, ONE_ANNOTATION).await?;
        }
        for (args, stdin) in other_ways(scope).await? {
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            may_not(scope, &operator, &args, stdin.as_ref(), ONE_ANNOTATION).await?;
        }
        let remove = ["annotate", "pod", "bystander", "toolward.dev/bundle-"];
        may(scope, &operator, &remove, None).await?;
        // Others do with their pods what they like.
        let edit = member(scope, "edit");
        let label = ["label", "pod", "bystander", "toolward.dev/of=team"];
        may(scope, &edit, &label, None).await?;
        may(scope, &edit, &["delete", "pod", "bystander"], None).await
    })
    .await
}

/// By subresources, and by verbs: arguments of kubectl, and what it reads.
async fn other_ways(scope: &Scope) -> Result<Vec<(Vec<String>, Option<Value>)>> {
    let pods = format!("/api/v1/namespaces/{}/pods", scope.namespace);
    let one = format!("{pods}/bystander");
    let found = ["get", "pod", "bystander", "-o", "json"];
    let mut debugged: Value = serde_json::from_str(&scope.kubectl(&found).await?)?;
    debugged["spec"]["ephemeralContainers"] = json!([container("debugger")]);
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": "bystander", "namespace": scope.namespace},
    });
    let ephemeral = format!("{one}/ephemeralcontainers");
    let status = r#"{"status": {"message": "all is well"}}"#;
    let ways = [
        (format!("replace --raw {ephemeral} -f -"), Some(debugged)),
        (format!("create --raw {one}/eviction -f -"), Some(eviction)),
        ("create -f -".to_owned(), Some(pod("another"))),
        ("exec bystander -- true".to_owned(), None),
        (format!("get --raw {one}/proxy/"), None),
        ("delete pod bystander".to_owned(), None),
        (format!("delete --raw {pods}"), None),
    ];
    let split = |(args, stdin): (String, Option<Value>)| {
        let args: Vec<_> = args.split(' ').map(str::to_owned).collect();
        (args, stdin)
    };
    let mut ways: Vec<_> = ways.into_iter().map(split).collect();
    let patch = "patch pod bystander --subresource=status --type=merge -p";
    let patch = patch.split(' ').chain([status]).map(str::to_owned);
    ways.push((patch.collect(), None));
    Ok(ways)
}
