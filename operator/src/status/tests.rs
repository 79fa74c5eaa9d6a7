#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use ::policy::report::{
    BundleReport, IdentityReport, IssuerReport, IssuerState, RejectedBundle, Report, TlsReport,
    ToolReport, UpstreamReport, UpstreamState,
};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use serde_json::json;

use super::{policy::Target, server::Seen, *};
use crate::{
    board::{Sight, Sights},
    injection,
    isolation::Isolation,
};

const WANTED: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const OLD: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// A pod `p0`, `p1`, … whose sidecar runs; `more` goes over its status.
fn pod(index: u8, ready: bool, more: Value) -> Pod {
    let mut status = json!({
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        "initContainerStatuses": [container("toolward-sidecar", json!({"state": {"running": {}}}))],
        "containerStatuses": [container("server", json!({"state": {"running": {}}, "ready": ready}))],
    });
    for (name, value) in more.as_object().unwrap() {
        status[name] = value.clone();
    }
    object(json!({
        "metadata": {
            "name": format!("p{index}"), "uid": format!("u{index}"),
            "creationTimestamp": format!("2026-01-01T00:00:0{index}Z"),
        },
        "status": status,
    }))
}

fn container(name: &str, more: Value) -> Value {
    let mut status =
        json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0});
    for (name, value) in more.as_object().unwrap() {
        status[name] = value.clone();
    }
    status
}

fn server_container(more: Value) -> Value {
    json!({"containerStatuses": [container("server", more)]})
}

fn deployment(replicas: i32, more: Value) -> Deployment {
    object(json!({
        "spec": {"replicas": replicas, "selector": {}, "template": {}},
        "status": more,
    }))
}

fn report(hash: &str, state: UpstreamState) -> Report {
    Report {
        bundle: BundleReport {
            hash: Some(hash.to_owned()),
            ..BundleReport::default()
        },
        peers: None,
        tls: None,
        identity: None,
        listeners: None,
        upstream: UpstreamReport {
            state,
            message: "exit status: 2; the end of its standard error: no database".to_owned(),
        },
        issuers: Vec::new(),
        tools: None,
    }
}

fn sights(reports: Vec<Report>) -> Sights {
    let sight = |(index, report): (usize, Report)| {
        let report = Some(report);
        (
            format!("u{index}"),
            Sight {
                report,
                ..Sight::default()
            },
        )
    };
    reports.into_iter().enumerate().map(sight).collect()
}

fn seen<'a>(deployment: &'a Deployment, pods: &'a [Pod], sights: &'a Sights) -> Seen<'a> {
    Seen {
        name: "orders",
        endpoint: Some(("http://orders.shop.svc/mcp", "http://orders.shop.svc/mcp")),
        refused: None,
        apply_error: None,
        policies: 1,
        wanted: Some(WANTED),
        limits: false,
        anonymous: false,
        deployment: Some(deployment),
        injection: None,
        pods: pods.iter().collect(),
        sights,
    }
}

/// What is seen of an injected server.
fn seen_injected<'a>(
    injection: &'a injection::Pods,
    pods: &'a [Pod],
    sights: &'a Sights,
) -> Seen<'a> {
    Seen {
        name: "orders",
        endpoint: None,
        refused: None,
        apply_error: None,
        policies: 1,
        wanted: Some(WANTED),
        limits: false,
        anonymous: false,
        deployment: None,
        injection: Some(injection),
        pods: pods.iter().collect(),
        sights,
    }
}

/// A pod as the webhook leaves it, or one that only has its label.
fn app_pod(index: u8, ready: bool, injected: bool) -> Pod {
    let sidecar = json!({"name": "toolward-sidecar", "restartPolicy": "Always"});
    let more = match injected {
        true => json!({}),
        false => json!({"initContainerStatuses": []}),
    };
    let mut pod = pod(index, ready, more);
    pod.spec = Some(object(json!({
        "containers": [{"name": "app"}],
        "initContainers": if injected { json!([sidecar]) } else { json!([]) },
    })));
    pod
}

fn stale(names: &[&str]) -> Vec<injection::Stale> {
    let stale = |name: &&str| injection::Stale {
        pod: (*name).to_owned(),
        remedy: "`kubectl rollout restart --namespace shop deployment/orders`".to_owned(),
    };
    names.iter().map(stale).collect()
}

fn lacking(names: &[&str], injected: usize) -> injection::Pods {
    injection::Pods {
        injected,
        outdated: Vec::new(),
        missing: stale(names),
    }
}

const NEW: Stamp<'_> = Stamp {
    before: &Value::Null,
    generation: 3,
    now: Timestamp::UNIX_EPOCH,
};

/// `Type=Status/Reason`, and the message.
fn verdict(conditions: &[Condition], type_: ConditionType) -> (String, String) {
    let condition = conditions.iter().find(|c| c.type_ == type_).unwrap();
    let Condition {
        status,
        reason,
        message,
        ..
    } = condition;
    (format!("{status:?}/{reason}"), message.clone())
}

fn check(seen: &Seen<'_>, type_: ConditionType, expected: &str, says: &str) {
    let status = server::status(seen, NEW);
    let (verdict, message) = verdict(&status.conditions, type_);
    assert_eq!(verdict, expected, "{message}");
    assert!(message.contains(says), "{message:?} does not say {says:?}");
}

#[test]
fn ready_says_why_not() {
    use UpstreamState::{Failed, Serving, Starting};
    let crash = json!({"exitCode": 1, "reason": "Error", "message": "boot\nno database\n"});
    let running = || json!({"state": {"running": {}}});
    let last = |state: Value| {
        server_container(
            json!({"state": state, "lastState": {"terminated": crash}, "restartCount": 2}),
        )
    };
    let waiting = |reason: &str, message: &str| {
        server_container(json!({"state": {"waiting": {"reason": reason, "message": message}}}))
    };
    let unscheduled = json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]});
    let oom = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
    for (pod, upstream, expected, says) in [
        (
            pod(0, true, json!({})),
            Serving,
            "True/Serving",
            "1 of 1 pod serving.",
        ),
        (
            pod(0, false, json!({})),
            Starting,
            "False/Starting",
            "Waiting for 1 pod",
        ),
        (
            pod(0, true, json!({})),
            Failed,
            "False/ServerFailed",
            "no database",
        ),
        (
            pod(0, false, last(running()["state"].clone())),
            Failed,
            "False/ServerFailed",
            "ended with exit code 1 after 2 restarts: boot\nno database",
        ),
        (
            pod(
                0,
                false,
                last(json!({"waiting": {"reason": "CrashLoopBackOff"}})),
            ),
            Starting,
            "False/ServerFailed",
            "no database",
        ),
        (
            pod(0, false, server_container(json!({"state": oom}))),
            Starting,
            "False/ServerFailed",
            "ran out of memory",
        ),
        (
            pod(
                0,
                false,
                waiting("ImagePullBackOff", "Back-off pulling image"),
            ),
            Starting,
            "False/PodsFailing",
            "Container server of pod p0: ImagePullBackOff: Back-off",
        ),
        (
            pod(
                0,
                false,
                waiting("CreateContainerConfigError", "secret \"s\" not found"),
            ),
            Starting,
            "False/PodsFailing",
            "secret \"s\" not found",
        ),
        (
            pod(0, false, waiting("ContainerCreating", "")),
            Starting,
            "False/Starting",
            "Waiting",
        ),
        (
            pod(0, false, unscheduled),
            Starting,
            "False/PodsFailing",
            "0/1 nodes are available",
        ),
    ] {
        let pods = [pod];
        let sights = sights(vec![report(WANTED, upstream)]);
        check(
            &seen(&deployment(1, json!({})), &pods, &sights),
            ConditionType::Ready,
            expected,
            says,
        );
    }
}

/// What the sidecar said before the kubelet found it ready: its tools are not
/// known yet.
#[test]
fn ready_waits_for_the_word_of_a_sidecar_that_is_ready() {
    let pods = [pod(0, true, json!({}))];
    let deployment = deployment(1, json!({}));
    for (state, expected, says) in [
        (
            UpstreamState::Starting,
            "False/Starting",
            "Waiting for 1 pod",
        ),
        (
            UpstreamState::Serving,
            "True/Serving",
            "1 of 1 pod serving.",
        ),
    ] {
        let sights = sights(vec![report(WANTED, state)]);
        check(
            &seen(&deployment, &pods, &sights),
            ConditionType::Ready,
            expected,
            says,
        );
    }
    // One that cannot be asked is as ready as the kubelet says.
    check(
        &seen(&deployment, &pods, &Sights::new()),
        ConditionType::Ready,
        "True/Serving",
        "1 of 1 pod serving.",
    );
}

#[test]
fn ready_without_pods() {
    let quota = json!({"conditions": [{"type": "ReplicaFailure", "status": "True",
        "message": "pods \"orders\" is forbidden: exceeded quota"}]});
    let none = Sights::new();
    for (deployment, expected, says) in [
        (
            deployment(1, json!({})),
            "False/Starting",
            "No pod exists yet",
        ),
        (deployment(0, json!({})), "False/ScaledToZero", "scale up"),
        (deployment(1, quota), "False/PodsFailing", "exceeded quota"),
    ] {
        check(
            &seen(&deployment, &[], &none),
            ConditionType::Ready,
            expected,
            says,
        );
    }
}

#[test]
fn pods_with_the_sidecar_of_an_earlier_spec_do_not_count_as_serving() {
    use ConditionType::{Enforced, Ready};
    let serving = sights(vec![report(WANTED, UpstreamState::Serving)]);
    let two = [app_pod(0, true, true), app_pod(1, true, true)];
    let of = |outdated: &[&str]| injection::Pods {
        injected: 2,
        outdated: stale(outdated),
        missing: Vec::new(),
    };
    let restart = "Restart the pods: `kubectl rollout restart --namespace shop deployment/orders`.";
    let one = "1 pod has the sidecar of an earlier spec (p0)";
    let both = "2 pods have the sidecar of an earlier spec (p0, p1)";
    for (outdated, type_, expected, says) in [
        (&["p0", "p1"][..], Ready, "False/SidecarOutdated", both),
        (&["p0", "p1"], Ready, "False/SidecarOutdated", restart),
        (&["p0", "p1"], Enforced, "False/SidecarOutdated", both),
        (&["p0"], Ready, "True/Serving", "1 of 2 pods serving; but 1"),
        (&["p0"], Ready, "True/Serving", one),
        (&["p0"], Enforced, "False/SidecarOutdated", restart),
        (&[], Ready, "True/Serving", "2 of 2 pods serving."),
        (&[], Enforced, "True/Enforced", ""),
    ] {
        let of = of(outdated);
        check(&seen_injected(&of, &two, &serving), type_, expected, says);
    }
    // The new one has not started yet.
    let rolls = [app_pod(0, true, true), app_pod(1, false, true)];
    let of = of(&["p0"]);
    let seen = seen_injected(&of, &rolls, &serving);
    check(&seen, Ready, "False/Starting", "Waiting for");
}

#[test]
fn an_injected_server_says_which_pods_lack_the_sidecar_and_what_to_do() {
    use ConditionType::{Enforced, Isolated, Programmed, Ready};
    let serving = sights(vec![report(WANTED, UpstreamState::Serving)]);
    let with = [app_pod(0, true, true)];
    let without = [app_pod(1, true, false)];
    let both = [app_pod(0, true, true), app_pod(1, true, false)];
    let missing = "1 pod asks for the sidecar and does not have it (p1)";
    let restart = "Restart the pods: `kubectl rollout restart --namespace shop deployment/orders`.";
    let nobody = "write the annotation toolward.dev/server: orders into the template";
    let (none, one, lacks) = (lacking(&[], 0), lacking(&[], 1), lacking(&["p1"], 0));
    let mixed = lacking(&["p1"], 1);
    for (pods, of, type_, expected, says) in [
        (
            &with[..],
            &one,
            Ready,
            "True/Serving",
            "1 of 1 pod serving.",
        ),
        (&with, &one, Enforced, "True/Enforced", ""),
        (&with, &one, Programmed, "True/InForce", "(1)"),
        (
            &both,
            &mixed,
            Isolated,
            "Unknown/SidecarMissing",
            "without the sidecar: 1",
        ),
        (&without, &lacks, Ready, "False/SidecarMissing", missing),
        (&without, &lacks, Ready, "False/SidecarMissing", restart),
        (&without, &lacks, Enforced, "False/SidecarMissing", restart),
        (&[], &lacks, Ready, "False/SidecarMissing", restart),
        // Who has it serves; that others can be called without it is told all the same.
        (&both, &mixed, Ready, "True/Serving", missing),
        (&both, &mixed, Enforced, "False/SidecarMissing", missing),
        (&both, &mixed, Programmed, "True/InForce", "(1)"),
        (&[], &none, Ready, "False/Starting", nobody),
        (&[], &none, Enforced, "True/Enforced", ""),
        (&[], &none, Programmed, "True/InForce", "No sidecar runs"),
    ] {
        check(&seen_injected(of, pods, &serving), type_, expected, says);
    }
    let many = lacking(&["a", "b", "c", "d"], 0);
    check(
        &seen_injected(&many, &[], &serving),
        Ready,
        "False/SidecarMissing",
        "4 pods ask for the sidecar and do not have it (a, b, c, …)",
    );
}

#[test]
fn an_injected_server_counts_its_pods() {
    let serving = sights(vec![report(WANTED, UpstreamState::Serving)]);
    let (injection, pods) = (lacking(&["p1"], 2), [app_pod(0, true, true)]);
    let status = server::status(&seen_injected(&injection, &pods, &serving), NEW);
    let counts = crds::InjectionStatus {
        injected: 2,
        missing: 1,
    };
    assert_eq!(status.replicas, Some(2));
    assert_eq!(status.injection, Some(counts));
    let none = lacking(&[], 2);
    let limited = Seen {
        limits: true,
        ..seen_injected(&none, &pods, &serving)
    };
    check(
        &limited,
        ConditionType::Enforced,
        "False/PerReplica",
        "2 replicas",
    );
    // A server that Toolward runs has none to count.
    let one = deployment(1, json!({}));
    let status = server::status(&seen(&one, &pods, &serving), NEW);
    assert_eq!(status.injection, None);
}

/// One that cannot start is told of as that of a Deployment is.
#[test]
fn an_injected_pod_that_cannot_start_says_why() {
    let waiting = json!({"state": {"waiting": {"reason": "ErrImagePull", "message": "gone"}}});
    let mut pod = pod(
        0,
        false,
        json!({"containerStatuses": [container("app", waiting)]}),
    );
    pod.spec = app_pod(0, false, true).spec;
    let (pods, one) = ([pod], lacking(&[], 1));
    check(
        &seen_injected(&one, &pods, &Sights::new()),
        ConditionType::Ready,
        "False/PodsFailing",
        "Container app of pod p0: ErrImagePull: gone",
    );
}

#[test]
fn old_pods_serve_while_new_ones_fail() {
    let waiting = json!({"state": {"waiting": {"reason": "ErrImagePull", "message": "not there"}}});
    let pods = [
        pod(0, true, json!({})),
        pod(1, false, server_container(waiting)),
    ];
    let sights = sights(vec![report(WANTED, UpstreamState::Serving)]);
    let deployment = deployment(1, json!({}));
    check(
        &seen(&deployment, &pods, &sights),
        ConditionType::Ready,
        "True/Serving",
        "1 of 2 pods serving; but container server of pod p1: ErrImagePull",
    );
}

#[test]
fn a_certificate_that_cannot_be_used_is_told() {
    let with = |certificate: Option<&str>, error: Option<&str>| Report {
        tls: Some(TlsReport {
            certificate: certificate.map(str::to_owned),
            error: error.map(str::to_owned),
        }),
        ..report(WANTED, UpstreamState::Serving)
    };
    let one = deployment(1, json!({}));
    for (ready, report, expected, says) in [
        (
            true,
            with(Some("sha256:a"), None),
            "True/Serving",
            "1 of 1 pod serving.",
        ),
        (
            true,
            with(Some("sha256:a"), Some("tls.key: gone")),
            "True/Serving",
            "serving; but the certificate of spec.tls cannot be used by pod p0 (the one before it stays in use): tls.key: gone.",
        ),
        (
            false,
            with(None, Some("tls.key: gone")),
            "False/CertificateInvalid",
            "The certificate of spec.tls cannot be used by pod p0: tls.key: gone",
        ),
    ] {
        let (pods, sights) = ([pod(0, ready, json!({}))], sights(vec![report]));
        check(
            &seen(&one, &pods, &sights),
            ConditionType::Ready,
            expected,
            says,
        );
    }
}

#[test]
fn secrets_without_which_no_pod_starts_are_named() {
    let mut one = json!({
        "spec": {"replicas": 1, "selector": {}, "template": {"spec": {"containers": []}}},
    });
    let none = Sights::new();
    let creating = json!({"state": {"waiting": {"reason": "ContainerCreating"}}});
    let creating = json!({
        "initContainerStatuses": [container("toolward-sidecar", creating.clone())],
        "containerStatuses": [container("server", creating)],
    });
    let pods = [pod(0, true, json!({})), pod(1, false, creating)];
    let says = |deployment: &Value, pods: &[Pod], expected: &str, says: &str| {
        let deployment = object(deployment.clone());
        check(
            &seen(&deployment, pods, &none),
            ConditionType::Ready,
            expected,
            says,
        );
    };
    says(
        &one,
        &pods[1..],
        "False/Starting",
        "Waiting for 1 pod to get ready.",
    );
    one["spec"]["template"]["spec"]["volumes"] = json!([
        {"name": "a", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
        {"name": "b", "projected": {"sources": [{"secret": {"name": "orders-tls", "items": [
            {"key": "tls.crt", "path": "tls.crt"}, {"key": "tls.key", "path": "tls.key"}]}}]}},
        {"name": "c", "projected": {"sources": [{"secret": {"name": "acme-ca", "optional": true, "items": [
            {"key": "ca.crt", "path": "acme.pem"}]}}]}},
    ]);
    let waits = "1 pod cannot start without Secret orders-tls (tls.crt, tls.key).";
    says(&one, &pods[1..], "False/Starting", waits);
    says(
        &one,
        &pods,
        "True/Serving",
        &format!("serving; but {waits}"),
    );
    says(&one, &pods[..1], "True/Serving", "1 of 1 pod serving.");
}

#[test]
fn programmed_counts_sidecars() {
    let one = deployment(1, json!({}));
    let pods = [pod(0, true, json!({})), pod(1, true, json!({}))];
    let with = |hash| report(hash, UpstreamState::Serving);
    let mut rejecting = with(OLD);
    rejecting.bundle.rejected = Some(RejectedBundle {
        hash: WANTED.into(),
        error: "version 2".into(),
    });
    let mut other = with(WANTED);
    other.bundle.rejected = Some(RejectedBundle {
        hash: OLD.into(),
        error: "version 2".into(),
    });
    for (reports, expected, says) in [
        (vec![with(WANTED), with(WANTED)], "True/InForce", "(2)"),
        (vec![with(WANTED), other], "True/InForce", "(2)"),
        (vec![with(WANTED), with(OLD)], "False/Pending", "1 of 2"),
        (vec![with(WANTED)], "False/Pending", "1 of 2"),
        (
            vec![with(WANTED), rejecting],
            "False/BundleRejected",
            "version 2",
        ),
    ] {
        let sights = sights(reports);
        check(
            &seen(&one, &pods, &sights),
            ConditionType::Programmed,
            expected,
            says,
        );
    }
    let none = Sights::new();
    check(
        &seen(&one, &[], &none),
        ConditionType::Programmed,
        "False/Pending",
        "No sidecar runs yet",
    );
    check(
        &seen(&deployment(0, json!({})), &[], &none),
        ConditionType::Programmed,
        "True/InForce",
        "No sidecar runs",
    );
    let refused = Seen {
        apply_error: Some("applying Deployment orders: nope".into()),
        ..seen(&one, &[], &none)
    };
    check(
        &refused,
        ConditionType::Programmed,
        "False/ApplyFailed",
        "nope. Toolward tries again",
    );
    let silent = Sights::from([(
        "u0".into(),
        Sight {
            report: None,
            error: Some("does not answer".into()),
            ..Sight::default()
        },
    )]);
    check(
        &seen(&one, &pods[..1], &silent),
        ConditionType::Programmed,
        "False/Pending",
        "the sidecar of pod p0 does not answer",
    );
}

#[test]
fn ready_says_why_a_key_is_not_published() {
    let one = deployment(1, json!({}));
    let asserting = |published: bool| Report {
        identity: Some(IdentityReport {
            kid: "k".into(),
            published,
        }),
        ..report(WANTED, UpstreamState::Serving)
    };
    let silent = |published: bool| {
        let mut report = asserting(published);
        report.upstream.message.clear();
        report
    };
    let waiting = sights(vec![silent(false)]);
    check(
        &seen(&one, &[pod(0, false, json!({}))], &waiting),
        ConditionType::Ready,
        "False/Starting",
        "is being published",
    );
    let mut refused = sights(vec![silent(false), silent(true)]);
    let sight = refused.get_mut("u0").unwrap();
    sight.key = Some("the token in the answer is not accepted: it is not valid".into());
    check(
        &seen(&one, &[pod(0, false, json!({}))], &refused),
        ConditionType::Ready,
        "False/Starting",
        "The key of pod p0 is not published: the token in the answer is not accepted",
    );
    let pods = [pod(0, false, json!({})), pod(1, true, json!({}))];
    check(
        &seen(&one, &pods, &refused),
        ConditionType::Ready,
        "True/Serving",
        "1 of 2 pods serving; but the key of pod p0 is not published",
    );
}

/// What is answered with 503 is told before what still works.
#[test]
fn auth_ready_tells_the_worst_first() {
    let deployment = deployment(2, json!({"replicas": 2}));
    let pods = [pod(0, true, json!({})), pod(1, true, json!({}))];
    let issuer = |name: &str, state| IssuerReport {
        name: name.to_owned(),
        state,
        message: format!("tried {name}"),
    };
    use IssuerState::{Available, Pending, Stale, Unavailable};
    for (first, second, expected, says) in [
        (
            [Available, Available],
            [Available, Available],
            "True/KeysAvailable",
            "",
        ),
        (
            [Pending, Available],
            [Available, Available],
            "Unknown/Pending",
            "issuer a are being read",
        ),
        (
            [Stale, Available],
            [Pending, Available],
            "False/IssuerUnavailable",
            "issuer a cannot be read anew",
        ),
        (
            [Stale, Available],
            [Available, Unavailable],
            "False/IssuerUnavailable",
            "issuer b cannot be read, so its tokens are answered with 503. Tried: tried b",
        ),
    ] {
        let reports = [first, second].map(|[a, b]| Report {
            issuers: vec![issuer("a", a), issuer("b", b)],
            ..report(WANTED, UpstreamState::Serving)
        });
        let sights = sights(reports.into());
        let seen = seen(&deployment, &pods, &sights);
        check(&seen, ConditionType::AuthReady, expected, says);
    }
}

#[test]
fn enforced_and_refused() {
    let none = Sights::new();
    let (one, two) = (deployment(1, json!({})), deployment(2, json!({})));
    let limits = |deployment| Seen {
        limits: true,
        ..seen(deployment, &[], &none)
    };
    check(&limits(&one), ConditionType::Enforced, "True/Enforced", "");
    check(
        &limits(&two),
        ConditionType::Enforced,
        "False/PerReplica",
        "2 replicas",
    );
    check(
        &seen(&two, &[], &none),
        ConditionType::Enforced,
        "True/Enforced",
        "",
    );
    let refused = Seen {
        refused: Some((Reason::PolicyInvalid, "p: spec.rules[0]".into())),
        ..limits(&two)
    };
    for type_ in [
        ConditionType::Accepted,
        ConditionType::Ready,
        ConditionType::Enforced,
    ] {
        check(&refused, type_, "False/PolicyInvalid", "spec.rules[0]");
    }
    let unguarded = Seen {
        policies: 0,
        ..seen(&one, &[], &none)
    };
    check(
        &unguarded,
        ConditionType::Accepted,
        "True/Accepted",
        "No McpToolPolicy targets",
    );
}

/// What was found of pods `p0`, `p1`, ….
fn isolated(found: &[Option<Isolation>]) -> Sights {
    let reports = found.iter().map(|_| report(WANTED, UpstreamState::Serving));
    let mut sights = sights(reports.collect());
    for (sight, found) in sights.values_mut().zip(found) {
        sight.isolation.clone_from(found);
    }
    sights
}

#[test]
fn isolated_says_who_can_be_reached() {
    use Isolation::{Loopback, Open, Shut, Unclear};
    let three = deployment(3, json!({}));
    let pods = [0, 1, 2].map(|index| pod(index, true, json!({})));
    let open = |ports: &[u16]| Some(Open(ports.iter().copied().collect()));
    let unclear = || Some(Unclear("it listens on 192.168.5.2:8080".into()));
    for (found, expected, says) in [
        (
            [Some(Loopback), Some(Loopback), Some(Loopback)],
            "True/LoopbackOnly",
            "Nothing in the pods listens beyond loopback",
        ),
        (
            [Some(Loopback), Some(Shut), Some(Loopback)],
            "True/NetworkPolicyEnforced",
            "NetworkPolicy orders-toolward is enforced",
        ),
        (
            [Some(Shut), Some(Loopback), None],
            "Unknown/Pending",
            "not known yet whether the server in pod p2",
        ),
        (
            [Some(Shut), unclear(), Some(Loopback)],
            "Unknown/Pending",
            "the server in pod p1 can be reached past its sidecar: it listens on 192.168.5.2:8080.",
        ),
        (
            [None, unclear(), open(&[8080])],
            "False/ServerPortReachable",
            "Port 8080 of pod p2 can be reached",
        ),
        (
            [Some(Shut), open(&[9090, 3000]), open(&[8080])],
            "False/ServerPortReachable",
            "Ports 3000, 9090 of pod p1 (and of 1 other pod) can be reached",
        ),
    ] {
        let sights = isolated(&found);
        let seen = seen(&three, &pods, &sights);
        check(&seen, ConditionType::Isolated, expected, says);
    }
    let many: Vec<u16> = (1..100).collect();
    check(
        &seen(&three, &pods, &isolated(&[open(&many), None, None])),
        ConditionType::Isolated,
        "False/ServerPortReachable",
        "Ports 1, 2, 3, 4, 5, 6, 7, 8, … of pod p0 can be reached",
    );
}

/// A server that is refused runs all the same.
#[test]
fn isolated_speaks_of_what_runs() {
    let one = deployment(1, json!({}));
    let pods = [pod(0, true, json!({}))];
    let sights = isolated(&[Some(Isolation::Open([8080].into()))]);
    let refused = Seen {
        refused: Some((Reason::PolicyInvalid, "p: spec.rules[0]".into())),
        ..seen(&one, &pods, &sights)
    };
    check(
        &refused,
        ConditionType::Isolated,
        "False/ServerPortReachable",
        "Port 8080 of pod p0",
    );
    // What was found of a sidecar that fell silent since says nothing.
    let mut silent = sights.clone();
    silent.values_mut().for_each(|sight| sight.report = None);
    check(
        &seen(&one, &pods, &silent),
        ConditionType::Isolated,
        "Unknown/Pending",
        "not known yet",
    );
    check(
        &seen(&one, &[], &sights),
        ConditionType::Isolated,
        "Unknown/Pending",
        "No sidecar runs yet.",
    );
}

#[test]
fn what_pods_report_is_bounded() {
    let tool = |index: usize| ToolReport {
        name: format!("t{index:03}\u{7}{}", "x".repeat(300)),
        digest: "d".repeat(300),
    };
    let mut big = report("not a hash", UpstreamState::Failed);
    big.upstream.message = "m\u{1b}".repeat(100_000);
    big.tools = Some((0..1000).rev().map(tool).collect());
    let (sights, one, pods) = (
        sights(vec![big]),
        deployment(1, json!({})),
        [pod(0, true, json!({}))],
    );
    let status = server::status(&seen(&one, &pods, &sights), NEW);
    assert_eq!(
        (status.tool_count, status.tools.len(), status.truncated),
        (Some(1000), 256, true)
    );
    assert!(
        status.tools[0].name.starts_with("t000x") && status.tools[0].name.chars().count() == 256
    );
    assert_eq!(status.tools[0].digest.chars().count(), 80);
    assert_eq!(status.bundle.unwrap().running, []);
    assert!(
        status
            .conditions
            .iter()
            .all(|c| c.message.len() < 2000 && !c.message.contains('\u{1b}'))
    );
}

#[test]
fn tools_are_those_of_the_youngest_pod_that_tells() {
    let tools = |name: &str| {
        let mut report = report(WANTED, UpstreamState::Serving);
        report.tools = Some(vec![ToolReport {
            name: name.into(),
            digest: String::new(),
        }]);
        report
    };
    let pods = [
        pod(0, true, json!({})),
        pod(1, true, json!({})),
        pod(2, true, json!({})),
    ];
    let sights = sights(vec![
        tools("old"),
        tools("new"),
        report(WANTED, UpstreamState::Starting),
    ]);
    let status = server::status(&seen(&deployment(1, json!({})), &pods, &sights), NEW);
    assert_eq!(status.tools[0].name, "new");
}

#[test]
fn the_transition_time_moves_with_the_status_only() {
    let before = json!({"conditions": [
        {"type": "Ready", "status": "True", "reason": "OfAnotherVersion", "lastTransitionTime": "2020-01-01T00:00:00Z"},
        {"type": "Accepted", "status": "False", "lastTransitionTime": "2020-01-01T00:00:00Z"},
        {"type": "Programmed", "status": "True", "lastTransitionTime": 7},
    ]});
    let stamp = Stamp {
        before: &before,
        ..NEW
    };
    let time = |type_| {
        let verdict = Verdict::yes(Reason::Serving, "");
        stamp
            .condition(type_, verdict)
            .last_transition_time
            .0
            .to_string()
    };
    assert_eq!(time(ConditionType::Ready), "2020-01-01T00:00:00Z");
    assert_eq!(time(ConditionType::Accepted), "1970-01-01T00:00:00Z");
    assert_eq!(time(ConditionType::Programmed), "1970-01-01T00:00:00Z");
    assert_eq!(time(ConditionType::Enforced), "1970-01-01T00:00:00Z");
}

#[test]
fn policies_say_what_they_act_on() {
    let target = |name: &str| Target {
        name: name.into(),
        exists: true,
        faults: vec![],
        replicas: 1,
    };
    let missing = Target {
        exists: false,
        ..target("gone")
    };
    let fault = Target {
        faults: vec!["spec.rules[0].from[1]: nobody".into()],
        ..target("b")
    };
    let two = Target {
        replicas: 2,
        ..target("b")
    };
    for (targets, limits, accepted, enforced, says) in [
        (
            vec![target("a"), target("b")],
            true,
            "True/Accepted",
            "True/Enforced",
            "a, b",
        ),
        (
            vec![target("a"), missing.clone()],
            false,
            "False/TargetNotFound",
            "False/TargetNotFound",
            ": gone.",
        ),
        (
            vec![missing, fault],
            false,
            "False/PolicyInvalid",
            "False/PolicyInvalid",
            "for McpServer b: spec.rules[0].from[1]: nobody",
        ),
        (
            vec![target("a"), two.clone()],
            true,
            "True/Accepted",
            "False/PerReplica",
            "",
        ),
        (vec![two], false, "True/Accepted", "True/Enforced", ""),
    ] {
        let status = policy::status(&targets, limits, NEW);
        let (verdict_accepted, message) = verdict(&status.conditions, ConditionType::Accepted);
        assert_eq!(verdict_accepted, accepted, "{message}");
        assert!(message.contains(says), "{message}");
        assert_eq!(
            verdict(&status.conditions, ConditionType::Enforced).0,
            enforced
        );
    }
    let status = policy::undecodable("spec.rules[0].effect: unknown", NEW);
    let (accepted, message) = verdict(&status.conditions, ConditionType::Accepted);
    assert_eq!(accepted, "False/PolicyInvalid");
    assert!(message.contains("spec.rules[0].effect"), "{message}");
}

#[test]
fn clipping_counts_characters() {
    let cases = BTreeMap::from([
        ("  ab \n", "ab"),
        ("abcd", "abcd"),
        ("abcde", "abc…"),
        ("äöüßé", "äöü…"),
    ]);
    for (text, expected) in cases {
        assert_eq!(clip(text, 4), expected);
    }
    assert_eq!(tail("abcdef\n", 3), "def");
}
