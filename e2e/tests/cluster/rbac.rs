//! The operator's rights: those that are granted are used, and those that are
//! used are granted.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use crds::Reason;
use e2e::{PATIENCE, PATIENT, release, wait_for};
use serde_json::{Value, json};

use crate::operator::requests;
use crate::suite::{Scope, allow, alone, beside, not_ready, server, stdio};
use crate::webhook;

/// Granted, and no request of its own: why.
const UNSEEN: [(&str, &str); 2] = [
    // Admission asks for it where an owner reference blocks the owner's deletion.
    ("update", "toolward.dev/mcpservers/finalizers"),
    // Asked for only where an Event repeats.
    ("patch", "events.k8s.io/events"),
];

type Right = (String, String);

fn words(value: &Value) -> impl Iterator<Item = &str> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

fn granted(role: &Value) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        for verb in words(&rule["verbs"]) {
            let resources = words(&rule["resources"]).flat_map(|resource| {
                words(&rule["apiGroups"]).map(move |group| format!("{group}/{resource}"))
            });
            let urls = words(&rule["nonResourceURLs"]).map(str::to_owned);
            rights.extend(resources.chain(urls).map(|what| (verb.to_owned(), what)));
        }
    }
    rights
}

fn used(event: &Value) -> Vec<Right> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = &event["objectRef"];
    let verb = text(&event["verb"]);
    let uri = text(&event["requestURI"]);
    if object["resource"].is_null() {
        return vec![(verb, uri.split('?').next().unwrap_or_default().to_owned())];
    }
    let mut what = format!(
        "{}/{}",
        text(&object["apiGroup"]),
        text(&object["resource"])
    );
    if let Some(subresource) = object["subresource"].as_str() {
        what = format!("{what}/{subresource}");
    }
    // An apply that creates needs both.
    let creates = verb == "patch" && event["responseStatus"]["code"] == 201;
    let create = creates.then(|| ("create".to_owned(), what.clone()));
    create.into_iter().chain([(verb, what)]).collect()
}

/// Everything that an operator does.
async fn exercise(scope: &Scope) -> Result<()> {
    let from = scope.caller_subject();
    let mut used = stdio("used");
    used["spec"]["identity"] = json!({});
    scope
        .apply(&[used, allow("callers", "used", &from, &["echo"])])
        .await?;
    scope.serving("used").await?;
    scope
        .apply(&[allow("callers", "used", &from, &["get-*"])])
        .await?;
    // The webhook looks for a server that it does not know.
    let early = allow("early", "nobody", &from, &["echo"]);
    scope.apply(&[early]).await?;
    webhook::certificate_deleted(scope).await?;
    scope
        .apply(&[server("bad", &["node", "-e", "process.exit(1)"], "Stdio")])
        .await?;
    scope
        .server_says("bad", not_ready(Reason::ServerFailed))
        .await?;
    let env = json!([{"op": "remove", "path": "/spec/deployment/env"}]).to_string();
    scope
        .kubectl(&["patch", "mcps", "used", "--type=json", "-p", &env])
        .await?;
    scope
        .kubectl(&["rollout", "status", "deployment/used", PATIENT])
        .await?;
    scope.serving("used").await?;
    // What Toolward made goes, and what pods of users could need.
    let injected = json!([
        {"op": "remove", "path": "/spec/deployment"},
        {"op": "add", "path": "/spec/injected", "value": {}},
    ]);
    scope
        .kubectl(&[
            "patch",
            "mcps",
            "used",
            "--type=json",
            "-p",
            &injected.to_string(),
        ])
        .await?;
    gone(scope, "deployment/used").await?;
    scope.kubectl(&["delete", "mcps", "used"]).await?;
    gone(scope, "configmap/used-toolward").await
}

async fn gone(scope: &Scope, object: &str) -> Result<()> {
    let get = ["get", object, "--ignore-not-found", "-o", "name"];
    wait_for(&format!("{object} to be gone"), PATIENCE, || async {
        let left = scope.kubectl(&get).await?;
        ensure!(left.is_empty(), "{left} is there");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn rights_are_those_that_are_used() -> Result<()> {
    alone("rbac", async |scope: &Scope| {
        // Before, an uninstallation may have taken the rights of an operator that ended.
        let earlier = requests(scope)?.len();
        exercise(scope).await?;
        let mut rights = BTreeSet::new();
        for kind in ["clusterrole", "role"] {
            let args = [
                "get",
                kind,
                release::OPERATOR,
                "-n",
                release::NAMESPACE,
                "-o",
                "json",
            ];
            let role: Value = serde_json::from_str(&scope.cluster.kubectl(&args).await?)?;
            let secrets = role["rules"].as_array().into_iter().flatten();
            let secrets =
                secrets.filter(|rule| words(&rule["resources"]).any(|it| it == "secrets"));
            for rule in secrets {
                let its_own =
                    kind == "role" && rule["resourceNames"] == json!(["toolward-webhook-tls"]);
                ensure!(its_own, "{kind}: {rule}");
            }
            rights.extend(granted(&role));
        }
        let wild: Vec<_> = rights
            .iter()
            .filter(|(verb, what)| verb == "*" || what.contains('*'))
            .collect();
        ensure!(wild.is_empty(), "wildcards: {wild:?}");

        let requests = requests(scope)?;
        // Not every 403 is a matter of rights: a namespace that ends takes nothing new.
        let forbidden = |e: &&Value| e["annotations"]["authorization.k8s.io/decision"] == "forbid";
        let refused: Vec<_> = requests[earlier..].iter().filter(forbidden).collect();
        ensure!(refused.is_empty(), "refused: {refused:?}");
        let used: BTreeSet<Right> = requests.iter().flat_map(used).collect();
        let unseen = |right: &&Right| UNSEEN.contains(&(right.0.as_str(), right.1.as_str()));
        let unused: Vec<_> = rights
            .difference(&used)
            .filter(|right| !unseen(right))
            .collect();
        ensure!(
            unused.is_empty(),
            "granted and not used: {unused:?}; used: {used:?}"
        );
        // Every service account may ask for these.
        let public =
            |right: &&Right| right.1.starts_with("/api") || right.1.starts_with("/version");
        let more: Vec<_> = used
            .difference(&rights)
            .filter(|right| !public(right))
            .collect();
        ensure!(
            more.is_empty(),
            "used and not granted by the chart: {more:?}"
        );
        Ok(())
    })
    .await
}

/// A role lets the operator delete whatever is of a kind; the chart bounds it to
/// what it made.
#[tokio::test]
async fn the_operator_deletes_nothing_of_others() -> Result<()> {
    beside("deletes", async |scope: &Scope| {
        let labels = json!({"toolward.dev/server": "made-up"});
        let meta = json!({"name": "theirs", "labels": labels});
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta});
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta,
            "spec": {"podSelector": {}},
        });
        let labels = json!({"app": "theirs"});
        let container = json!({"name": "app", "image": "registry.example/app:1"});
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta,
            "spec": {
                "replicas": 0, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            },
        });
        scope.apply(&[map, policy, deployment]).await?;
        let operator = format!(
            "--as=system:serviceaccount:{}:{}",
            release::NAMESPACE,
            release::OPERATOR
        );
        for object in [
            "configmap/kube-root-ca.crt",
            "configmap/theirs",
            "networkpolicy/theirs",
            "deployment/theirs",
        ] {
            let args = ["delete", "-n", &scope.namespace, object, &operator];
            let output = scope.cluster.kubectl_output(&args, None).await?;
            let said = String::from_utf8_lossy(&output.stderr);
            let why = "the operator deletes only what it made for an McpServer";
            ensure!(
                !output.status.success() && said.contains(why),
                "{object}: {said}"
            );
        }
        Ok(())
    })
    .await
}
