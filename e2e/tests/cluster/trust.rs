//! What sidecars enforce is what the operator wrote: an app team with Kubernetes'
//! own roles in its namespace tries to get around that; the cluster's own
//! controllers go on as ever.

use anyhow::{Result, ensure};
use crds::Reason;
use e2e::{PATIENCE, PATIENT, release, wait_for};
use serde_json::{Value, json};

use crate::suite::{ACCEPTED, Scope, allow, beside, refused, stdio, unhurried};

/// What who writes to a ConfigMap of the operator's is told.
const MANAGED: &str = "only its operator writes and removes them. Change the McpServer";
/// The volume of the bundle.
const BUNDLE_VOLUME: &str = "toolward-bundle";

/// A service account of the test's namespace that is bound to a role there.
pub fn member(scope: &Scope, role: &str) -> String {
    format!("system:serviceaccount:{}:team-{role}", scope.namespace)
}

pub fn binding(scope: &Scope, name: &str, role: &str, subject: (&str, &str)) -> Value {
    let (namespace, account) = subject;
    let group = "rbac.authorization.k8s.io";
    json!({
        "apiVersion": format!("{group}/v1"), "kind": "RoleBinding",
        "metadata": {"name": name, "namespace": scope.namespace},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    })
}

/// A team with a member for each role; waits until what the chart says of them is
/// in force: the API server learns of it in its own time.
pub async fn team(scope: &Scope) -> Result<()> {
    let mut objects = Vec::new();
    for role in ["view", "edit", "admin"] {
        let name = format!("team-{role}");
        objects.push(json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name},
        }));
        objects.push(binding(scope, &name, role, (&scope.namespace, &name)));
    }
    scope.apply(&objects).await?;
    let (edit, admin) = (member(scope, "edit"), member(scope, "admin"));
    let create = ["auth", "can-i", "create", "mcptoolpolicies.toolward.dev"];
    let labelled = ["create", "--dry-run=server", "-f", "-"];
    let map = config_map("labelled", &json!({"toolward.dev/managed": "true"}));
    wait_for("roles and admission policies", PATIENCE, || async {
        may(scope, &admin, &create, None).await?;
        may_not(scope, &edit, &labelled, Some(&map), MANAGED).await
    })
    .await
}

/// Runs kubectl in the test's namespace as somebody else: what it says, and
/// whether it succeeds.
async fn kubectl(
    scope: &Scope,
    who: &str,
    args: &[&str],
    stdin: Option<&Value>,
) -> Result<(String, bool)> {
    let account = format!("--as={who}");
    // First: after `--`, they would go to the command of `exec`.
    let args = [&["-n", &scope.namespace, &account][..], args].concat();
    let stdin = stdin.map(ToString::to_string);
    let asked = unhurried(|| async {
        let output = scope
            .cluster
            .kubectl_output(&args, stdin.as_deref())
            .await?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        Ok((said, output.status.success()))
    });
    asked.await
}

pub async fn may(scope: &Scope, who: &str, args: &[&str], stdin: Option<&Value>) -> Result<()> {
    let (said, success) = kubectl(scope, who, args, stdin).await?;
    let args = args.join(" ");
    ensure!(success, "kubectl {args}, as {who}, should succeed: {said}");
    Ok(())
}

pub async fn may_not(
    scope: &Scope,
    who: &str,
    args: &[&str],
    stdin: Option<&Value>,
    says: &str,
) -> Result<()> {
    let (said, success) = kubectl(scope, who, args, stdin).await?;
    let args = args.join(" ");
    ensure!(
        !success && said.contains(says),
        "kubectl {args}, as {who}, should be refused and say {says:?}: {said}"
    );
    Ok(())
}

fn config_map(name: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels},
        "data": {"bundle.json": "{}", "jwks.json": "{\"keys\": []}"},
    })
}

/// A server for which no pod has to run.
pub fn idle(name: &str) -> Value {
    let mut server = stdio(name);
    server["spec"]["deployment"]["replicas"] = json!(0);
    server
}

async fn get(scope: &Scope, kind: &str, name: &str) -> Result<Value> {
    let object = scope.kubectl(&["get", kind, name, "-o", "json"]).await?;
    Ok(serde_json::from_str(&object)?)
}

/// What of a ConfigMap must stay as it is.
async fn contents(scope: &Scope, name: &str) -> Result<Value> {
    let map = get(scope, "configmap", name).await?;
    let metadata = &map["metadata"];
    Ok(json!([
        metadata["uid"],
        metadata["labels"],
        metadata["ownerReferences"],
        metadata["finalizers"],
        map["immutable"],
        map["binaryData"],
        map["data"]["bundle.json"],
        map["data"]["jwks.json"],
        map["data"]["more"],
    ]))
}

/// Waits until the operator has made these.
async fn there(scope: &Scope, objects: &[&str]) -> Result<()> {
    let get = [&["get"], objects].concat();
    wait_for(&format!("{objects:?}"), PATIENCE, || async {
        scope.kubectl(&get).await
    })
    .await
    .map(drop)
}

/// Waits until these are gone.
async fn gone(scope: &Scope, objects: &[&str]) -> Result<()> {
    let get = [&["get", "--ignore-not-found", "-o", "name"], objects].concat();
    wait_for(&format!("the end of {objects:?}"), PATIENCE, || async {
        let left = scope.kubectl(&get).await?;
        ensure!(left.is_empty(), "there is {left}");
        Ok(())
    })
    .await
}

/// What somebody could write into a ConfigMap that is not theirs.
const PATCHES: [&str; 12] = [
    r#"{"data": {"bundle.json": "{}", "jwks.json": "{}"}}"#,
    r#"{"data": {"more": "x"}}"#,
    r#"{"data": null}"#,
    r#"{"binaryData": {"other": "eA=="}}"#,
    r#"{"immutable": true}"#,
    r#"{"metadata": {"labels": {"toolward.dev/managed": null}}}"#,
    r#"{"metadata": {"labels": {"toolward.dev/server": "other"}}}"#,
    r#"{"metadata": {"labels": null}}"#,
    r#"{"metadata": {"annotations": null}}"#,
    r#"{"metadata": {"ownerReferences": null}}"#,
    r#"{"metadata": {"finalizers": ["example.com/stay"]}}"#,
    r#"{"metadata": {"managedFields": [{}]}}"#,
];

/// All that somebody could try with it: arguments of kubectl, and what it reads.
fn tries(map: &str) -> Vec<(Vec<&str>, Option<Value>)> {
    let own = config_map(map, &json!({}));
    let patch = |patch| vec!["patch", "configmap", map, "--type=merge", "-p", patch];
    let mut tries: Vec<_> = PATCHES.map(|content| (patch(content), None)).into();
    tries.extend([
        (
            vec!["apply", "--server-side", "--force-conflicts", "-f", "-"],
            Some(own.clone()),
        ),
        (vec!["replace", "-f", "-"], Some(own.clone())),
        (vec!["replace", "--force", "-f", "-"], Some(own)),
        (vec!["delete", "configmap", map], None),
    ]);
    tries
}

#[tokio::test]
async fn what_sidecars_enforce_is_written_by_the_operator_alone() -> Result<()> {
    beside("trust", async |scope: &Scope| {
        team(scope).await?;
        let from = scope.caller_subject();
        let mut guarded = stdio("guarded");
        guarded["spec"]["identity"] = json!({});
        scope
            .apply(&[guarded, allow("callers", "guarded", &from, &["get-sum"])])
            .await?;
        scope.serving("guarded").await?;
        let (bundle, keys) = ("guarded-toolward", "guarded-toolward-identity");
        for (map, role) in [(bundle, "edit"), (bundle, "admin"), (keys, "edit")] {
            let before = contents(scope, map).await?;
            for (args, stdin) in tries(map) {
                let who = member(scope, role);
                may_not(scope, &who, &args, stdin.as_ref(), MANAGED).await?;
            }
            let after = contents(scope, map).await?;
            ensure!(after == before, "{map} was {before}, now it is {after}");
        }
        all_at_once(scope).await?;
        the_label_is_the_operators(scope).await?;
        nobody_is_the_operator(scope).await?;
        // The operator itself writes as ever.
        scope
            .apply(&[allow("callers", "guarded", &from, &["get-sum", "get-env"])])
            .await?;
        wait_for("the new policy in the bundle", PATIENCE, || async {
            let map = contents(scope, bundle).await?;
            ensure!(map.to_string().contains("get-env"), "{map}");
            Ok(())
        })
        .await?;
        scope.serving("guarded").await
    })
    .await
}

async fn all_at_once(scope: &Scope) -> Result<()> {
    let all = format!(
        "/api/v1/namespaces/{}/configmaps?labelSelector=toolward.dev%2Fserver%3Dguarded",
        scope.namespace
    );
    for role in ["edit", "admin"] {
        let (who, delete) = (member(scope, role), ["delete", "--raw", &all]);
        may_not(scope, &who, &delete, None, MANAGED).await?;
    }
    Ok(())
}

/// ConfigMaps of the team's own are theirs, and never get the label.
async fn the_label_is_the_operators(scope: &Scope) -> Result<()> {
    let edit = member(scope, "edit");
    for value in ["true", "false", ""] {
        let labelled = config_map("own", &json!({"toolward.dev/managed": value}));
        let create = ["create", "-f", "-"];
        may_not(scope, &edit, &create, Some(&labelled), MANAGED).await?;
    }
    let own = config_map("own", &json!({"toolward.dev/server": "guarded"}));
    may(scope, &edit, &["create", "-f", "-"], Some(&own)).await?;
    let label = ["label", "configmap", "own", "toolward.dev/managed=true"];
    may_not(scope, &edit, &label, None, MANAGED).await?;
    may(scope, &edit, &["delete", "configmap", "own"], None).await
}

/// Nor may anybody speak in its name.
async fn nobody_is_the_operator(scope: &Scope) -> Result<()> {
    let account = format!("serviceaccounts/{}", release::OPERATOR);
    let there = ["-n", release::NAMESPACE];
    let collector = "serviceaccounts/generic-garbage-collector";
    for role in ["edit", "admin"] {
        for question in [
            &["impersonate", &account, there[0], there[1]][..],
            &["impersonate", collector, "-n", "kube-system"],
            &[
                "create",
                &account,
                "--subresource=token",
                there[0],
                there[1],
            ],
        ] {
            let can = [&["auth", "can-i"], question].concat();
            let (said, _) = kubectl(scope, &member(scope, role), &can, None).await?;
            ensure!(said.starts_with("no"), "{role}: {question:?}: {said}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_config_map_that_was_there_before_is_not_believed() -> Result<()> {
    beside("trust-early", async |scope: &Scope| {
        team(scope).await?;
        let edit = member(scope, "edit");
        let mut told = idle("told");
        told["spec"]["identity"] = json!({});
        for (server, map) in [
            (idle("early"), "early-toolward"),
            (told, "told-toolward-identity"),
        ] {
            let own = config_map(map, &json!({}));
            may(scope, &edit, &["create", "-f", "-"], Some(&own)).await?;
            scope.apply(&[server]).await?;
        }
        taken(scope, "early", "ConfigMap early-toolward").await?;
        taken(scope, "told", "ConfigMap told-toolward-identity").await?;
        forged(scope, &edit).await?;
        let made = scope.kubectl(&["get", "deployments", "-o", "name"]).await?;
        ensure!(made.is_empty(), "made all the same: {made}");
        // The team can take back what it made, and then all is well.
        for (server, map) in [
            ("early", "early-toolward"),
            ("told", "told-toolward-identity"),
            ("forged", "forged-toolward"),
        ] {
            may(scope, &edit, &["delete", "configmap", map], None).await?;
            scope.server_says(server, ACCEPTED).await?;
        }
        volumes_are_put_back(scope, &edit).await
    })
    .await
}

/// One that says it belongs to the server, and can never be changed.
async fn forged(scope: &Scope, edit: &str) -> Result<()> {
    // As long as the server's name is taken, nothing is made for it.
    let service = ["create", "service", "clusterip", "forged", "--tcp=80"];
    may(scope, edit, &service, None).await?;
    scope.apply(&[idle("forged")]).await?;
    taken(scope, "forged", "Service forged").await?;
    let server = get(scope, "mcps", "forged").await?;
    let mut map = config_map("forged-toolward", &json!({"toolward.dev/server": "forged"}));
    map["immutable"] = json!(true);
    map["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "toolward.dev/v1alpha1", "kind": "McpServer", "name": "forged",
        "uid": server["metadata"]["uid"], "controller": true,
    }]);
    may(scope, edit, &["create", "-f", "-"], Some(&map)).await?;
    may(scope, edit, &["delete", "service", "forged"], None).await?;
    taken(scope, "forged", "ConfigMap forged-toolward").await
}

/// Waits until a server's name is taken by this object.
async fn taken(scope: &Scope, server: &str, by: &str) -> Result<()> {
    wait_for(&format!("{by} to stand in the way"), PATIENCE, || async {
        let verdict = refused(Reason::NameTaken);
        let said = scope.server_says(server, verdict).await?.message;
        let start = format!("{by} exists and is not Toolward's");
        ensure!(said.starts_with(&start), "{said}");
        Ok(())
    })
    .await
}

/// Who may edit Deployments may mount another ConfigMap; the operator takes it out.
async fn volumes_are_put_back(scope: &Scope, edit: &str) -> Result<()> {
    there(scope, &["deployment", "early"]).await?;
    let volumes = json!([{"name": BUNDLE_VOLUME, "configMap": {"name": "own"}}]);
    let patch = json!({"spec": {"template": {"spec": {"volumes": volumes}}}}).to_string();
    may(
        scope,
        edit,
        &["patch", "deployment", "early", "-p", &patch],
        None,
    )
    .await?;
    wait_for("the bundle's volume to be put back", PATIENCE, || async {
        let deployment = get(scope, "deployment", "early").await?;
        let volumes = deployment["spec"]["template"]["spec"]["volumes"].as_array();
        let bundle = |volume: &&Value| volume["name"] == BUNDLE_VOLUME;
        let bundle = volumes.into_iter().flatten().find(bundle);
        let mounted = bundle.map(|volume| &volume["configMap"]["name"]);
        ensure!(
            mounted.is_some_and(|name| name == "early-toolward"),
            "{mounted:?}"
        );
        Ok(())
    })
    .await
}

/// Not only the operator removes what it wrote: the garbage collector does, and
/// the end of a namespace.
#[tokio::test]
async fn servers_and_namespaces_end_as_ever() -> Result<()> {
    beside("trust-ends", async |scope: &Scope| {
        let servers = ["background", "foreground", "orphan"];
        for server in servers {
            let mut server = idle(server);
            server["spec"]["identity"] = json!({});
            scope.apply(&[server]).await?;
        }
        for server in servers {
            let maps = maps_of(server);
            there(scope, &["configmaps", &maps[0], &maps[1]]).await?;
            let cascade = format!("--cascade={server}");
            let delete = ["delete", "mcps", server, &cascade, PATIENT];
            scope.kubectl(&delete).await?;
            if server != "orphan" {
                gone(scope, &["configmaps", &maps[0], &maps[1]]).await?;
            }
        }
        // What was asked for: it runs on, under the configuration it has.
        there(scope, &["deployment", "orphan"]).await?;
        namespace_ends(scope).await
    })
    .await
}

fn maps_of(server: &str) -> [String; 2] {
    ["", "-identity"].map(|end| format!("{server}-toolward{end}"))
}

async fn namespace_ends(scope: &Scope) -> Result<()> {
    let name = format!("{}-short", scope.namespace);
    let cluster = &scope.cluster;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    cluster.apply(&namespace.to_string()).await?;
    let short = Scope {
        cluster: cluster.clone(),
        client: scope.client.clone(),
        namespace: name.clone(),
    };
    short.apply(&[idle("last")]).await?;
    there(&short, &["configmap", &maps_of("last")[0]]).await?;
    let delete = ["delete", "namespace", &name, PATIENT];
    cluster.kubectl(&delete).await.map(drop)
}
