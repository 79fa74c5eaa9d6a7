//! The life of servers in pods that Toolward did not make, against an API server
//! in memory.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{collections::BTreeSet, sync::Mutex};

use operator_tests::fake;

use fake::Fake;
use http::Method;
use kube::Client;
use operator::{
    injection,
    names::Key,
    server::Servers,
    workers::{Next, Reconcile},
};
use serde_json::{Value, json};

fn server(spec: Value) -> Value {
    let mut server = json!({
        "metadata": {"name": "orders", "namespace": "shop", "uid": "uid-orders", "generation": 1},
        "spec": {"transport": {"type": "StreamableHttp"}},
    });
    for (field, value) in spec.as_object().unwrap() {
        server["spec"][field] = value.clone();
    }
    server
}

fn injected() -> Value {
    server(json!({"injected": {}}))
}

fn deployed() -> Value {
    server(json!({"deployment": {"image": "registry.example/orders:1"}}))
}

fn everyone() -> Value {
    json!({
        "metadata": {"name": "p", "namespace": "shop", "uid": "uid-p", "generation": 1},
        "spec": {
            "targetRefs": [{"name": "orders"}],
            "rules": [{"name": "r", "effect": "Allow", "from": [{"everyone": true}], "tools": ["*"]}],
        },
    })
}

/// A pod as the webhook leaves it.
fn pod(name: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-{name}"),
            "labels": {"toolward.dev/server": "orders"},
            "annotations": {"toolward.dev/server": "orders"},
        },
        "spec": {
            "containers": [],
            "initContainers": [{
                "name": "toolward-sidecar", "restartPolicy": "Always",
                "args": ["serve", "--upstream", "http://127.0.0.1:8080/mcp"],
            }],
        },
        "status": {"phase": "Running", "podIP": "10.1.0.1"},
    })
}

/// A pod that was there before the webhook could see it.
fn bare(name: &str) -> Value {
    let mut pod = pod(name);
    pod["metadata"]["labels"] = json!({});
    pod["spec"]["initContainers"] = json!([]);
    pod
}

fn bundle(fake: &Fake) -> Value {
    let map = fake.get("configmaps", "orders-toolward").unwrap();
    serde_json::from_str(map["data"]["bundle.json"].as_str().unwrap()).unwrap()
}

/// Whether garbage collection would take the bundle with the server.
fn is_owned(fake: &Fake) -> bool {
    let map = fake.get("configmaps", "orders-toolward").unwrap();
    map["metadata"]["ownerReferences"].is_array()
}

fn condition(fake: &Fake, type_: &str) -> (String, String) {
    let object = fake.get("mcpservers", "orders").unwrap();
    let conditions = object["status"]["conditions"].as_array().unwrap();
    let condition = conditions.iter().find(|c| c["type"] == type_).unwrap();
    let text = |field: &str| condition[field].as_str().unwrap();
    (
        format!("{}/{}", text("status"), text("reason")),
        text("message").to_owned(),
    )
}

/// One round of a server, with watches that are up to date.
async fn round(fake: &Fake) -> Servers {
    let servers = fake.servers();
    let key = Fake::key("orders");
    servers
        .reconcile(&key, &mut Default::default())
        .await
        .unwrap();
    servers
}

/// Rounds of what is left of a server, until nothing more is written.
async fn clean_up(fake: &Fake, servers: &Servers) -> Vec<String> {
    let (orphans, key) = (fake.orphans(servers), Fake::key("orders"));
    let (mut memory, mut written) = (Default::default(), Vec::new());
    loop {
        fake.sync();
        if !orphans.exists(&key) {
            orphans.retired(&key);
            return written;
        }
        let next = orphans.reconcile(&key, &mut memory).await.unwrap();
        assert_eq!(next, Next::WhenWoken);
        match fake.writes() {
            writes if writes.is_empty() => return written,
            writes => written.extend(writes),
        }
    }
}

#[tokio::test]
async fn an_injected_server_has_a_service_and_a_bundle_and_no_deployment() {
    let fake = Fake::new();
    fake.put("mcpservers", injected());
    // Its users' own, of the same name.
    fake.put_unlabelled("deployments", "orders");
    round(&fake).await;
    let writes = fake.writes();
    for wanted in ["PATCH services/orders", "PATCH configmaps/orders-toolward"] {
        assert!(writes.iter().any(|write| write == wanted), "{writes:?}");
    }
    let deployment = |write: &&String| write.contains("deployments");
    assert_eq!(writes.iter().find(deployment), None);
    assert!(!is_owned(&fake));
    assert_eq!(condition(&fake, "Accepted").0, "True/Accepted");
    let (verdict, message) = condition(&fake, "Ready");
    assert_eq!(verdict, "False/Starting");
    assert!(
        message.contains("the annotation toolward.dev/server: orders"),
        "{message}"
    );
    let status = &fake.get("mcpservers", "orders").unwrap()["status"];
    assert_eq!(status["injection"], json!({"injected": 0, "missing": 0}));

    fake.writes();
    round(&fake).await;
    assert_eq!(fake.writes(), [""; 0]);
}

#[tokio::test]
async fn a_server_changes_between_pods_of_its_own_and_those_of_others() {
    let fake = Fake::new();
    fake.put("mcpservers", deployed());
    round(&fake).await;
    assert!(is_owned(&fake));
    assert!(fake.get("deployments", "orders").is_some());
    for _ in 0..2 {
        fake.put("mcpservers", injected());
        fake.writes();
        round(&fake).await;
        assert!(!is_owned(&fake));
        assert_eq!(fake.get("deployments", "orders"), None);
        fake.put("mcpservers", deployed());
        round(&fake).await;
        assert!(is_owned(&fake));
        assert!(fake.get("deployments", "orders").is_some());
    }
}

#[tokio::test]
async fn only_its_own_deployment_is_deleted() {
    let fake = Fake::new();
    fake.put("mcpservers", injected());
    let mut theirs = json!({
        "metadata": {
            "name": "orders", "namespace": "shop", "uid": "theirs",
            "labels": {"toolward.dev/server": "orders", "toolward.dev/managed": "false"},
        },
        "spec": {"selector": {}, "template": {}},
    });
    for owner in [
        Value::Null,
        json!([{"apiVersion": "apps/v1", "kind": "App", "name": "a", "uid": "u", "controller": true}]),
    ] {
        theirs["metadata"]["ownerReferences"] = owner;
        fake.put("deployments", theirs.clone());
        round(&fake).await;
        assert!(fake.get("deployments", "orders").is_some());
        assert_eq!(condition(&fake, "Accepted").0, "True/Accepted");
    }
}

#[tokio::test]
async fn the_bundle_of_an_unreadable_injected_server_stays_without_an_owner() {
    let fake = Fake::new();
    fake.put("mcpservers", injected());
    round(&fake).await;
    let mut unreadable = injected();
    unreadable["spec"]["transport"]["type"] = "Telepathy".into();
    unreadable["metadata"]["generation"] = 2.into();
    fake.put("mcpservers", unreadable);
    round(&fake).await;
    assert!(!is_owned(&fake));
    assert!(bundle(&fake)["denyAll"].is_string());
    assert_eq!(condition(&fake, "Accepted").0, "False/Undecodable");
}

#[tokio::test]
async fn what_a_deleted_server_leaves_denies_until_its_last_pod_is_gone() {
    let fake = Fake::new();
    fake.put("mcpservers", injected());
    fake.put("mcptoolpolicies", everyone());
    fake.put("pods", pod("orders-a"));
    let servers = round(&fake).await;
    assert_eq!(bundle(&fake)["rules"].as_array().unwrap().len(), 1);
    fake.writes();
    assert_eq!(clean_up(&fake, &servers).await, [""; 0], "it is there");

    let key = Fake::key("orders");
    fake.remove("mcpservers", "orders");
    fake.sync();
    servers.retired(&key);
    let written = clean_up(&fake, &servers).await;
    assert_eq!(written, ["PATCH configmaps/orders-toolward"]);
    let denying = bundle(&fake);
    assert_eq!((&denying["rules"], is_owned(&fake)), (&json!([]), false));
    let why = denying["denyAll"].as_str().unwrap();
    assert!(why.contains("was deleted"), "{why}");
    // Replicas no longer know each other, and the operator can still ask.
    assert_eq!(denying.get("peerAudience"), None);
    assert!(denying["operator"].is_string());
    let map = fake.get("configmaps", "orders-toolward").unwrap();
    let text = map["data"]["bundle.json"].as_str().unwrap();
    let wanted = servers.board.wanted(&key).unwrap();
    assert_eq!(wanted.bundle, policy::bundle::hash(text.as_bytes()));
    // After a restart of the operator nothing is written.
    let again = fake.servers();
    assert_eq!(clean_up(&fake, &again).await, [""; 0]);

    // One that has ended needs nothing.
    fake.change("pods", "orders-a", |pod| {
        pod["status"]["phase"] = "Succeeded".into();
    });
    clean_up(&fake, &servers).await;
    assert_eq!(fake.get("configmaps", "orders-toolward"), None);
    assert_eq!(servers.board.wanted(&key), None);
}

#[tokio::test]
async fn a_pod_that_no_watch_has_told_of_keeps_the_bundle() {
    let fake = Fake::new();
    fake.put("mcpservers", injected());
    let servers = round(&fake).await;
    fake.remove("mcpservers", "orders");
    fake.sync();
    fake.put("pods", pod("orders-a"));
    let orphans = fake.orphans(&servers);
    let key = Fake::key("orders");
    fake.writes();
    let mut memory = Default::default();
    orphans.reconcile(&key, &mut memory).await.unwrap();
    assert_eq!(fake.writes(), ["PATCH configmaps/orders-toolward"]);
}

#[tokio::test]
async fn the_network_policy_goes_with_the_bundle_and_others_stay() {
    for (labels, goes) in [
        (
            json!({"toolward.dev/server": "orders", "toolward.dev/managed": "true"}),
            true,
        ),
        (json!({"toolward.dev/server": "orders"}), false),
    ] {
        let fake = Fake::new();
        fake.put("mcpservers", injected());
        let servers = round(&fake).await;
        let policy = json!({
            "metadata": {"name": "orders-toolward", "namespace": "shop", "uid": "n", "labels": labels},
        });
        fake.put("networkpolicies", policy);
        fake.remove("mcpservers", "orders");
        fake.writes();
        clean_up(&fake, &servers).await;
        assert_eq!(fake.get("configmaps", "orders-toolward"), None);
        let left = fake.get("networkpolicies", "orders-toolward");
        assert_eq!(left.is_none(), goes);
    }
}

#[tokio::test]
async fn a_server_made_anew_takes_over_what_was_left() {
    for anew in [injected(), deployed()] {
        let fake = Fake::new();
        fake.put("mcpservers", injected());
        fake.put("mcptoolpolicies", everyone());
        fake.put("pods", pod("orders-a"));
        let servers = round(&fake).await;
        fake.remove("mcpservers", "orders");
        clean_up(&fake, &servers).await;
        assert!(bundle(&fake)["denyAll"].is_string());
        // What garbage collection takes.
        fake.remove("services", "orders");
        let mut anew = anew;
        anew["metadata"]["uid"] = "another".into();
        fake.put("mcpservers", anew);
        let servers = round(&fake).await;
        assert_eq!(bundle(&fake)["denyAll"], Value::Null);
        assert_eq!(bundle(&fake)["peerAudience"], "toolward-peer/another");
        let key = Fake::key("orders");
        assert!(!fake.orphans(&servers).exists(&key));
        // What ends now was of the one before, and takes nothing from this one.
        fake.orphans(&servers).retired(&key);
        assert!(servers.board.wanted(&key).is_some());
    }
}

/// It came between the look and the write.
#[tokio::test]
async fn a_bundle_that_was_written_anew_is_not_written_over() {
    let fake = Fake::new();
    fake.put("mcpservers", injected());
    fake.put("mcptoolpolicies", everyone());
    fake.put("pods", pod("orders-a"));
    let servers = round(&fake).await;
    let gone = fake.get("mcpservers", "orders").unwrap();
    fake.remove("mcpservers", "orders");
    fake.sync();
    fake.put("mcpservers", gone);
    fake.change("configmaps", "orders-toolward", |map| {
        map["metadata"]["annotations"]["x"] = "y".into();
    });
    let orphans = fake.orphans(&servers);
    let (key, mut memory) = (Fake::key("orders"), Default::default());
    let error = orphans.reconcile(&key, &mut memory).await.unwrap_err();
    assert_eq!(error.code(), Some(409));
    assert_eq!(bundle(&fake)["denyAll"], Value::Null);
}

#[tokio::test]
async fn a_bundle_that_its_owner_takes_along_is_no_orphan() {
    let fake = Fake::new();
    fake.put("mcpservers", deployed());
    let servers = round(&fake).await;
    fake.remove("mcpservers", "orders");
    fake.sync();
    assert!(!fake.orphans(&servers).exists(&Fake::key("orders")));
}

/// Pods that were injected outlive the switch to pods of the operator's own, and
/// the server too.
#[tokio::test]
async fn pods_of_others_are_denied_though_the_server_had_its_own_in_the_end() {
    let fake = Fake::new();
    fake.put("mcpservers", injected());
    fake.put("mcptoolpolicies", everyone());
    fake.put("pods", pod("orders-a"));
    round(&fake).await;
    fake.put("mcpservers", deployed());
    let servers = round(&fake).await;
    assert!(!is_owned(&fake));
    fake.remove("mcpservers", "orders");
    clean_up(&fake, &servers).await;
    assert!(bundle(&fake)["denyAll"].is_string());
    fake.remove("pods", "orders-a");
    clean_up(&fake, &servers).await;
    assert_eq!(fake.get("configmaps", "orders-toolward"), None);
}

/// Somebody's finalizer may hold it for long.
#[tokio::test]
async fn a_server_that_is_being_deleted_denies() {
    let fake = Fake::new();
    fake.put("mcpservers", injected());
    fake.put("mcptoolpolicies", everyone());
    fake.put("pods", pod("orders-a"));
    let servers = round(&fake).await;
    assert_eq!(bundle(&fake)["denyAll"], Value::Null);
    fake.change("mcpservers", "orders", |server| {
        server["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        server["metadata"]["finalizers"] = json!(["example.com/held"]);
    });
    clean_up(&fake, &servers).await;
    assert!(bundle(&fake)["denyAll"].is_string());
}

/// Looks once; gives the servers for which there is news.
async fn look(client: &Client, fake: &Fake) -> BTreeSet<Key> {
    let news = Mutex::new(BTreeSet::new());
    let tell = |key| news.lock().unwrap().extend([key]);
    injection::look(client, &fake.world(), tell).await;
    news.into_inner().unwrap()
}

#[tokio::test]
async fn pods_without_the_sidecar_are_found_and_reported() {
    let fake = Fake::new();
    fake.put("mcpservers", injected());
    fake.put("pods", pod("orders-a"));
    round(&fake).await;
    let status = || fake.get("mcpservers", "orders").unwrap()["status"]["injection"].clone();
    assert_eq!(status(), json!({"injected": 1, "missing": 0}));
    // More than one answer of the API server holds.
    for index in 0..501 {
        fake.put("pods", bare(&format!("old-{index:03}")));
    }
    let mut finished = bare("finished");
    finished["status"]["phase"] = "Succeeded".into();
    fake.put("pods", finished);
    let mut theirs = bare("theirs");
    theirs["metadata"]["annotations"] = json!({});
    fake.put("pods", theirs);
    let (client, key) = (fake.client(), Fake::key("orders"));
    let news = look(&client, &fake).await;
    assert_eq!(news.into_iter().collect::<Vec<_>>(), [key]);
    round(&fake).await;
    assert_eq!(status(), json!({"injected": 1, "missing": 501}));
    let (verdict, message) = condition(&fake, "Enforced");
    assert_eq!(verdict, "False/SidecarMissing");
    assert!(
        message.contains("(old-000, old-001, old-002, …)"),
        "{message}"
    );

    let news = look(&client, &fake).await;
    assert!(news.is_empty(), "{news:?}");
    // One of them has the label, and still no sidecar.
    for index in 1..501 {
        fake.remove("pods", &format!("old-{index:03}"));
    }
    fake.change("pods", "old-000", |pod| {
        pod["metadata"]["labels"]["toolward.dev/server"] = "orders".into();
    });
    look(&client, &fake).await;
    round(&fake).await;
    assert_eq!(status(), json!({"injected": 1, "missing": 1}));
}

#[tokio::test]
async fn what_was_found_stays_while_the_api_server_cannot_be_asked() {
    let fake = Fake::new();
    fake.put("mcpservers", injected());
    fake.put("pods", bare("old"));
    fake.sync();
    let (client, key) = (fake.client(), Fake::key("orders"));
    look(&client, &fake).await;
    fake.refuse(Method::GET, "pods", 500, "etcd is slow");
    let news = look(&client, &fake).await;
    assert!(news.is_empty(), "{news:?}");
    assert_eq!(fake.world().missing.of(&key).len(), 1);
}

/// Other servers' pods are nobody's business.
#[tokio::test]
async fn namespaces_without_an_injected_server_are_not_looked_at() {
    let fake = Fake::new();
    fake.put("mcpservers", deployed());
    fake.put("pods", bare("old"));
    fake.sync();
    look(&fake.client(), &fake).await;
    assert_eq!(fake.world().missing.of(&Fake::key("orders")), []);
}
