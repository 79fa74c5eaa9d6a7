use policy::report::{BundleReport, IdentityReport, UpstreamReport};

use super::*;

fn peer(uid: &str, version: &str) -> Peer {
    Peer {
        uid: uid.to_owned(),
        name: uid.to_owned(),
        address: ([127, 0, 0, 1], 1).into(),
        account: "default".to_owned(),
        version: Some(version.to_owned()),
        annotation: None,
    }
}

fn wanted(bundle: &str) -> Wanted {
    replicas(bundle, "r")
}

fn replicas(bundle: &str, peers: &str) -> Wanted {
    Wanted {
        bundle: bundle.to_owned(),
        peers: peers.to_owned(),
        identity: None,
    }
}

fn report(hash: &str, state: UpstreamState) -> Report {
    Report {
        bundle: BundleReport {
            hash: Some(hash.to_owned()),
            ..BundleReport::default()
        },
        upstream: UpstreamReport {
            state,
            message: String::new(),
        },
        ..Report::default()
    }
}

fn nudge_due(memory: &Memory, uid: &str) -> bool {
    memory.pods[uid].next_nudge.is_some()
}

#[test]
fn the_annotation_always_changes() {
    let wanted = replicas("sha256:a", "sha256:0123456789abcdef");
    for (now, next) in [
        (None, "sha256:a+0123456789ab"),
        (Some("sha256:b+0123456789ab"), "sha256:a+0123456789ab"),
        (Some("sha256:b+0123456789ab.7"), "sha256:a+0123456789ab"),
        (Some("sha256:a+ffffffffffff.7"), "sha256:a+0123456789ab"),
        (Some("sha256:a.7"), "sha256:a+0123456789ab"),
        (Some("sha256:a+0123456789ab"), "sha256:a+0123456789ab.1"),
        (Some("sha256:a+0123456789ab.1"), "sha256:a+0123456789ab.2"),
        (
            Some("sha256:a+0123456789ab.what"),
            "sha256:a+0123456789ab.1",
        ),
        (
            Some("sha256:a+0123456789ab.18446744073709551615"),
            "sha256:a+0123456789ab.0",
        ),
    ] {
        let now = now.map(str::to_owned);
        assert_eq!(annotation(&wanted, now.as_ref()), next);
    }
}

/// Sidecars of the first release know no list of replicas, and are left alone.
#[test]
fn other_replicas_are_told_to_sidecars_that_use_them() {
    let (now, mut memory) = (Instant::now(), Memory::default());
    let peers = [peer("old", "1"), peer("new", "1")];
    memory.update(&replicas("a", "r"), &peers, now);
    for (uid, told) in [("old", None), ("new", Some("r".to_owned()))] {
        let report = Report {
            peers: told,
            ..report("a", UpstreamState::Serving)
        };
        let pod = memory
            .pods
            .entry(uid.to_owned())
            .or_insert_with(|| PodMemory::new(now));
        pod.polled(Ok(report.clone()), &replicas("a", "r"), now);
        assert!(pod.next_nudge.is_none());
    }
    memory.update(&replicas("a", "s"), &peers, now);
    assert!(nudge_due(&memory, "new") && !nudge_due(&memory, "old"));
    let has = |peers: Option<&str>| {
        let report = Report {
            peers: peers.map(str::to_owned),
            ..report("a", UpstreamState::Serving)
        };
        replicas("a", "s").is_had(&report)
    };
    assert!(has(Some("s")) && has(None) && !has(Some("r")));
    memory.update(&replicas("b", "s"), &peers, now);
    assert!(nudge_due(&memory, "old"));
}

/// A sidecar with a key of this name.
fn with_key(kid: &str, published: bool) -> Report {
    Report {
        identity: Some(IdentityReport {
            kid: kid.to_owned(),
            published,
        }),
        ..report("a", UpstreamState::Serving)
    }
}

/// The keys of others are no news for a sidecar.
#[test]
fn a_sidecar_is_told_of_its_own_key_once_that_is_published() {
    let (now, mut memory) = (Instant::now(), Memory::default());
    let published = |kids: &[&str]| Wanted {
        identity: Some(kids.iter().map(ToString::to_string).collect()),
        ..wanted("a")
    };
    let peers = [peer("p", "1"), peer("q", "1")];
    memory.update(&published(&[]), &peers, now);
    for uid in ["p", "q"] {
        let pod = memory
            .pods
            .entry(uid.to_owned())
            .or_insert_with(|| PodMemory::new(now));
        pod.polled(Ok(with_key(uid, false)), &published(&[]), now);
        assert!(pod.next_nudge.is_none(), "there is nothing to be told yet");
        assert!(pod.next_poll <= now + POLLS.first, "it is asked again soon");
    }
    memory.update(&published(&["p"]), &peers, now);
    assert!(nudge_due(&memory, "p") && !nudge_due(&memory, "q"));
    let pod = memory
        .pods
        .entry("p".to_owned())
        .or_insert_with(|| PodMemory::new(now));
    pod.nudged("n".to_owned(), now);
    pod.polled(Ok(with_key("p", false)), &published(&["p"]), now);
    assert!(pod.next_nudge.is_some(), "not there yet");
    pod.polled(Ok(with_key("p", true)), &published(&["p"]), now);
    assert!(pod.next_nudge.is_none());
    assert!(pod.next_poll > now + POLLS.cap);
    memory.update(&published(&["p", "q"]), &peers, now);
    assert!(!nudge_due(&memory, "p") && nudge_due(&memory, "q"));
    // A container that restarted has another key.
    let (old, new) = (with_key("p", true), with_key("r", false));
    assert_eq!(published(&["p"]).lacks(&old), None);
    assert_eq!(published(&["p"]).lacks(&new), Some("r"));
    assert_eq!(wanted("a").lacks(&new), None, "none is asked for");
    let keyless = report("a", UpstreamState::Serving);
    assert_eq!(published(&[]).lacks(&keyless), None, "it has none");
    assert!(published(&[]).is_had(&keyless) && published(&[]).is_had(&new));
}

#[test]
fn after_a_restart_of_the_operator_pods_are_asked_and_not_annotated() {
    let (now, mut memory) = (Instant::now(), Memory::default());
    memory.update(&wanted("a"), &[peer("p", "1")], now);
    assert!(!nudge_due(&memory, "p"));
    assert_eq!(memory.pods["p"].next_poll, now);
}

#[test]
fn another_bundle_is_annotated_at_once_until_it_is_there() {
    let (now, mut memory) = (Instant::now(), Memory::default());
    let peers = [peer("p", "1")];
    memory.update(&wanted("a"), &peers, now);
    memory.update(&wanted("b"), &peers, now);
    assert_eq!(memory.pods["p"].next_nudge, Some(now));
    let pod = memory
        .pods
        .entry("p".to_owned())
        .or_insert_with(|| PodMemory::new(now));
    pod.nudged("b".to_owned(), now);
    assert!(pod.next_nudge > Some(now));
    assert!(pod.next_poll > now && pod.next_poll <= now + POLLS.first);
    pod.polled(Ok(report("a", UpstreamState::Serving)), &wanted("b"), now);
    assert!(pod.next_nudge.is_some());
    pod.polled(Ok(report("b", UpstreamState::Serving)), &wanted("b"), now);
    assert!(pod.next_nudge.is_none());
    assert!(pod.next_poll > now + POLLS.cap);
}

#[test]
fn a_pod_that_was_found_behind_is_annotated() {
    let (now, mut memory) = (Instant::now(), Memory::default());
    memory.update(&wanted("b"), &[peer("p", "1")], now);
    let pod = memory
        .pods
        .entry("p".to_owned())
        .or_insert_with(|| PodMemory::new(now));
    pod.polled(Ok(report("a", UpstreamState::Starting)), &wanted("b"), now);
    assert!(nudge_due(&memory, "p"));
}

#[test]
fn a_changed_pod_is_asked_at_once_and_a_gone_one_is_forgotten() {
    let (now, mut memory) = (Instant::now(), Memory::default());
    memory.update(&wanted("a"), &[peer("p", "1"), peer("q", "1")], now);
    for pod in memory.pods.values_mut() {
        pod.polled(Ok(report("a", UpstreamState::Serving)), &wanted("a"), now);
    }
    memory.update(&wanted("a"), &[peer("p", "2")], now);
    assert_eq!(memory.pods["p"].next_poll, now);
    assert_eq!(memory.pods.len(), 1);
}

#[test]
fn the_last_word_of_a_silent_sidecar_is_kept_for_a_while() {
    let now = Instant::now();
    let mut pod = PodMemory::new(now);
    pod.polled(Ok(report("a", UpstreamState::Serving)), &wanted("a"), now);
    let silent = |pod: &mut PodMemory| {
        pod.polled(Err("does not answer".to_owned()), &wanted("a"), now);
        pod.sight
            .as_ref()
            .is_some_and(|sight| sight.report.is_some())
    };
    assert!(silent(&mut pod));
    assert!(silent(&mut pod));
    assert!(!silent(&mut pod));
}
