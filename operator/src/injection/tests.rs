#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

fn pod(name: &str, metadata: Value, containers: Value) -> Pod {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"containers": [], "initContainers": containers},
        "status": {"phase": "Running"},
    });
    for (field, value) in metadata.as_object().unwrap() {
        pod["metadata"][field] = value.clone();
    }
    serde_json::from_value(pod).unwrap()
}

fn owned(kind: &str, name: &str) -> Value {
    let owner = json!({
        "apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "u", "controller": true,
    });
    json!({"ownerReferences": [owner], "labels": {"pod-template-hash": "5d4f"}})
}

#[test]
fn what_makes_a_pod_anew_depends_on_who_made_it() {
    for (metadata, remedy) in [
        (
            owned("ReplicaSet", "orders-5d4f"),
            "`kubectl rollout restart --namespace shop deployment/orders`",
        ),
        (
            owned("ReplicaSet", "orders"),
            "`kubectl delete --namespace shop pod/p`",
        ),
        (
            owned("StatefulSet", "orders"),
            "`kubectl rollout restart --namespace shop statefulset/orders`",
        ),
        (
            owned("DaemonSet", "orders"),
            "`kubectl rollout restart --namespace shop daemonset/orders`",
        ),
        (
            owned("Job", "orders"),
            "delete Job orders and create it again",
        ),
        (json!({}), "delete Pod p and create it again"),
    ] {
        assert_eq!(Stale::of(&pod("p", metadata, json!([]))).remedy, remedy);
    }
}

fn sidecar() -> Value {
    json!([{"name": "toolward-sidecar", "restartPolicy": "Always"}])
}

#[test]
fn pods_with_the_sidecar_are_counted_and_those_without_are_named() {
    let ending = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
    let mut finished = pod("finished", json!({}), sidecar());
    finished.status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
    let watched = [
        pod("a", json!({}), sidecar()),
        pod("b", json!({}), json!([])),
        pod("c", ending, json!([])),
        finished,
    ];
    let found = Stale {
        pod: "0".to_owned(),
        remedy: String::new(),
    };
    let spec = serde_json::from_value(json!({"transport": {"type": "StreamableHttp"}}));
    let watched = watched.map(Arc::new);
    let pods = Pods::new(&watched, &spec.unwrap(), vec![found]);
    let names: Vec<_> = pods.missing.iter().map(|bare| bare.pod.as_str()).collect();
    assert_eq!((pods.injected, &names[..]), (1, &["0", "b"][..]));
    assert_eq!(injected(&watched), 1);
    // It was started without an --upstream.
    let names: Vec<_> = pods.outdated.iter().map(|it| it.pod.as_str()).collect();
    assert_eq!(names, ["a"]);
}

#[test]
fn where_the_annotation_is_a_label_a_restart_does_not_help() {
    let label = json!({"labels": {"toolward.dev/server": "orders"}});
    let remedy = |pod| Stale::labelled(&pod).remedy;
    let said = remedy(pod("p", label.clone(), json!([])));
    assert!(
        said.starts_with("write toolward.dev/server: orders as an annotation"),
        "{said}"
    );
    let mut both = label;
    both["annotations"] = json!({"toolward.dev/server": "orders"});
    let said = remedy(pod("p", both, json!([])));
    assert_eq!(said, "delete Pod p and create it again");
}

#[test]
fn a_pod_asks_by_its_annotation_until_it_ends() {
    let asks = |metadata: Value| {
        let pod = json!({"metadata": metadata});
        let pod: PartialObjectMeta<Pod> = serde_json::from_value(pod).unwrap();
        asked(&pod).map(str::to_owned)
    };
    let annotations = json!({"toolward.dev/server": "orders"});
    assert_eq!(
        asks(json!({"annotations": annotations})).as_deref(),
        Some("orders")
    );
    let ending = "2026-01-01T00:00:00Z";
    for metadata in [
        json!({}),
        json!({"annotations": {"toolward.dev/container": "orders"}}),
        json!({"annotations": annotations, "deletionTimestamp": ending}),
    ] {
        assert_eq!(asks(metadata), None);
    }
}

#[test]
fn what_differs_from_the_last_look_is_news() {
    let missing = Missing::default();
    let bare = |name: &str| Stale {
        pod: name.to_owned(),
        remedy: String::new(),
    };
    let found = |server: &str, pods: &[&str]| {
        Found::from([(
            server.to_owned(),
            pods.iter().map(|name| bare(name)).collect(),
        )])
    };
    let (orders, stock) = (Key::new("shop", "orders"), Key::new("shop", "stock"));
    let one = |key: &Key| BTreeSet::from([key.clone()]);
    assert_eq!(missing.set("shop", Found::new()), BTreeSet::new());
    assert_eq!(missing.set("shop", found("orders", &["a"])), one(&orders));
    assert_eq!(
        missing.set("shop", found("orders", &["a"])),
        BTreeSet::new()
    );
    assert_eq!(missing.set("shop", found("orders", &["b"])), one(&orders));
    assert_eq!(missing.of(&orders), [bare("b")]);
    let both = BTreeSet::from([orders.clone(), stock.clone()]);
    assert_eq!(missing.set("shop", found("stock", &["c"])), both);
    assert_eq!(missing.of(&orders), []);
    missing.keep(&BTreeSet::from(["other".to_owned()]));
    assert_eq!(missing.of(&stock), []);
}
