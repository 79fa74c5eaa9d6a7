#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use super::*;

fn pod(name: &str, metadata: Value, status: Value) -> Arc<Pod> {
    let mut pod = json!({"metadata": metadata, "status": status});
    pod["metadata"]["name"] = name.into();
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn running(name: &str, ip: &str) -> Arc<Pod> {
    pod(name, json!({}), json!({"phase": "Running", "podIP": ip}))
}

fn with_sidecar(ip: &str, state: Value, restarts: i32) -> Value {
    json!({"phase": "Running", "podIP": ip, "initContainerStatuses": [{
        "name": "toolward-sidecar", "image": "", "imageID": "", "ready": false,
        "restartCount": restarts, "state": state,
    }]})
}

fn map(list: &str) -> ConfigMap {
    serde_json::from_value(json!({"data": {"peers.json": list}})).unwrap()
}

fn names(list: &str) -> Vec<String> {
    let peers = Peers::from_json(list.as_bytes()).unwrap();
    let names = peers.replicas().iter().map(|replica| replica.name.clone());
    names.collect()
}

#[test]
fn all_pods_with_an_address_are_named_until_they_have_ended() {
    let leaving = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
    let pods = [
        running("c", "10.0.0.3"),
        running("a", "fd00::1"),
        pod(
            "leaving",
            leaving,
            json!({"phase": "Running", "podIP": "10.0.0.4"}),
        ),
        pod(
            "starting",
            json!({}),
            json!({"phase": "Pending", "podIP": "10.0.0.5"}),
        ),
        pod("unplaced", json!({}), json!({"phase": "Pending"})),
        pod(
            "down",
            json!({}),
            with_sidecar("10.0.0.8", json!({"waiting": {}}), 1),
        ),
        pod(
            "ended-alone",
            json!({}),
            with_sidecar("10.0.0.9", json!({"terminated": {"exitCode": 137}}), 0),
        ),
        pod(
            "young",
            json!({}),
            with_sidecar("10.0.0.10", json!({"waiting": {}}), 0),
        ),
        pod(
            "again",
            json!({}),
            with_sidecar("10.0.0.11", json!({"running": {}}), 2),
        ),
        pod(
            "ended",
            json!({}),
            json!({"phase": "Succeeded", "podIP": "10.0.0.6"}),
        ),
        pod(
            "evicted",
            json!({}),
            json!({"phase": "Failed", "podIP": "10.0.0.7"}),
        ),
        pod(
            "odd",
            json!({}),
            json!({"phase": "Running", "podIP": "localhost"}),
        ),
    ];
    let (list, due) = Replicas::default().list(&pods, None).unwrap();
    assert_eq!(
        names(&list),
        ["a", "again", "c", "leaving", "starting", "young"]
    );
    assert_eq!(due, None);
}

#[test]
fn a_change_is_written_at_once_and_those_that_follow_are_gathered() {
    let (mut replicas, start) = (Replicas::default(), Instant::now());
    let one = [running("a", "10.0.0.1")];
    let (first, _) = replicas.list_at(&one, None, start).unwrap();
    assert_eq!(names(&first), ["a"]);
    let mut pods = one.to_vec();
    for (index, at) in [(1, 50), (2, 100), (3, 150)] {
        pods.push(running(&format!("b{index}"), "10.0.0.2"));
        let now = start + Duration::from_millis(at);
        let (list, due) = replicas.list_at(&pods, Some(&map(&first)), now).unwrap();
        assert_eq!(list, first);
        // Not before the pause has passed, and not much later.
        let due = now + due.unwrap();
        assert!(due >= start + PAUSE && due <= start + PAUSE + 4 * PAUSE_EACH);
    }
    let later = start + PAUSE + 4 * PAUSE_EACH;
    let (list, due) = replicas.list_at(&pods, Some(&map(&first)), later).unwrap();
    assert_eq!((names(&list).len(), due), (4, None));
    // Nothing changes where nothing came or went.
    let (same, due) = replicas.list_at(&pods, Some(&map(&list)), later).unwrap();
    assert_eq!((same, due), (list, None));
}

#[test]
fn after_a_restart_of_the_operator_only_what_changed_is_written() {
    let pods = [running("a", "10.0.0.1")];
    let (list, _) = Replicas::default().list(&pods, None).unwrap();
    let mut replicas = Replicas::default();
    let again = replicas.list(&pods, Some(&map(&list))).unwrap();
    assert_eq!(again, (list, None));
    let (other, due) = replicas.list(&[], Some(&map("somebody's"))).unwrap();
    assert_eq!((names(&other).len(), due), (0, None));
}

/// A rollout of many pods is no storm: so often each pod is told at most.
#[test]
fn many_pods_are_told_less_often() {
    let (mut replicas, start) = (Replicas::default(), Instant::now());
    let mut pods: Vec<_> = (0..500)
        .map(|index| running(&format!("p{index}"), "10.0.0.1"))
        .collect();
    let (mut before, _) = replicas.list_at(&pods, None, start).unwrap();
    let mut writes = 0;
    for tick in 1..=600 {
        // Ten pods a second.
        pods[tick % 500] = running(&format!("q{tick}"), "10.0.0.1");
        let now = start + Duration::from_millis(100) * u32::try_from(tick).unwrap();
        let (list, _) = replicas.list_at(&pods, None, now).unwrap();
        writes += usize::from(list != before);
        before = list;
    }
    assert!((1..=6).contains(&writes), "{writes} in a minute");
}
