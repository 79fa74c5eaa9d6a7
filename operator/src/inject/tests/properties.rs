//! What holds for every pod.

use std::sync::LazyLock;

use k8s_openapi::{
    api::core::v1::{EnvVar, Probe, VolumeMount},
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::{inject::testing, webhook};

static SERVERS: LazyLock<Vec<McpServer>> = LazyLock::new(|| testing::servers().unwrap());
/// Where a built-in plugin mounts a token into every container.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A generated pod, its server, and the pod with the sidecar.
fn case(seed: u64) -> (Pod, &'static McpServer, Injected) {
    let pod = testing::pod(seed);
    let name = server_of(&pod).unwrap().unwrap();
    let mut servers = SERVERS.iter();
    let server = servers.find(|server| server.metadata.name.as_deref() == Some(name));
    let server = server.unwrap();
    let injected = injected(&pod, server).unwrap_or_else(|refusals| panic!("{refusals:?}"));
    (pod, server, injected)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(10_000),
        ..ProptestConfig::default()
    })]

    #[test]
    fn of_every_pod(seed in any::<u64>()) {
        let (before, server, once) = case(seed);
        let twice = injected(&once.pod, server).unwrap();
        prop_assert_eq!(&twice, &once);
        prop_assert!(has_sidecar(&once.pod) && !has_sidecar(&before));
        prop_assert_eq!(as_before(&before, &once.pod, server), before.clone());
        is_restricted(&before, &once.pod);
        is_patched(&before, &once.pod);
        is_stable(&once.pod, server);
    }
}

/// The pods are of all kinds, so that the property says something.
#[test]
fn generated_pods_differ() {
    let (mut restricted, mut stdio, mut asked, mut named, mut init) = (0, 0, 0, 0, 0);
    for seed in 0..1000 {
        let (before, server, after) = case(seed);
        restricted += usize::from(security::violations(&before).is_empty());
        stdio += usize::from(desired::pod::is_stdio(&server.spec.transport));
        asked += usize::from(!asks(ours(&after.pod, SIDECAR_CONTAINER)).is_empty());
        named += usize::from(annotation(&before, "toolward.dev/container").is_some());
        init += usize::from(before.spec.unwrap().init_containers.is_some());
    }
    for (what, count) in [
        ("restricted", restricted),
        ("stdio", stdio),
        ("asked", asked),
        ("named", named),
        ("init", init),
    ] {
        assert!((100..900).contains(&count), "{what}: {count} of 1000");
    }
}

/// What the sidecar is told to ask.
fn asks(sidecar: &Container) -> BTreeMap<String, Probe> {
    let mut args = sidecar.args.iter().flatten();
    let json = args.find(|arg| *arg == "--app-probes").and(args.next());
    let json = json.map_or("{}", String::as_str);
    assert!(!json.contains('$'), "Kubernetes would change it: {json}");
    serde_json::from_str(json).unwrap()
}

/// The pod without what is documented to be added: nothing else may differ.
fn as_before(before: &Pod, after: &Pod, server: &McpServer) -> Pod {
    let mut pod = after.clone();
    let name = server.metadata.name.as_deref().unwrap();
    let labels = pod.metadata.labels.as_mut().unwrap();
    assert_eq!(labels[SERVER_LABEL], name);
    if !before
        .metadata
        .labels
        .as_ref()
        .unwrap()
        .contains_key(SERVER_LABEL)
    {
        labels.remove(SERVER_LABEL);
    }
    let annotations = pod.metadata.annotations.as_mut().unwrap();
    let told = annotations.remove(INJECTED_ANNOTATION);
    assert!(told.unwrap().contains(name));
    if let Some(was) = annotation(before, INJECTED_ANNOTATION) {
        set(&mut pod.metadata.annotations, INJECTED_ANNOTATION, was);
    }

    let asked = asks(ours(after, SIDECAR_CONTAINER));
    let was = before.spec.as_ref().unwrap();
    let spec = pod.spec.as_mut().unwrap();
    let is_apps = |name: &str| !name.starts_with("toolward-");
    let init = spec.init_containers.as_mut().unwrap();
    init.retain(|container| is_apps(&container.name));
    if init.is_empty() {
        spec.init_containers.clone_from(&was.init_containers);
    }
    let volumes = spec.volumes.as_mut().unwrap();
    volumes.retain(|volume| is_apps(&volume.name));
    if volumes.is_empty() {
        spec.volumes.clone_from(&was.volumes);
    }
    let init = spec.init_containers.iter_mut().flatten();
    for (container, was) in init.zip(was.init_containers.iter().flatten()) {
        probes_as_before(container, was, &asked);
    }
    let is_stdio = desired::pod::is_stdio(&server.spec.transport);
    let first = was.containers[0].name.as_str();
    let named = annotation(before, "toolward.dev/container").unwrap_or(first);
    let grace = spec.termination_grace_period_seconds.unwrap_or(30);
    for (container, was) in spec.containers.iter_mut().zip(&was.containers) {
        probes_as_before(container, was, &asked);
        hook_as_before(container, was, grace);
        if is_stdio && container.name == named {
            let command = container.command.as_mut().unwrap();
            let shim = desired::pod::shim();
            assert!(command.starts_with(&shim));
            command.drain(..shim.len());
            let mounts = container.volume_mounts.as_mut().unwrap();
            let added = mounts.split_off(mounts.len() - 2);
            assert_eq!(added, desired::pod::server_mounts());
            if mounts.is_empty() {
                container.volume_mounts.clone_from(&was.volume_mounts);
            }
        }
    }
    pod
}

fn probes_as_before(container: &mut Container, was: &Container, asked: &BTreeMap<String, Probe>) {
    let name = container.name.clone();
    for (kind, probe, was) in [
        (
            "liveness",
            &mut container.liveness_probe,
            &was.liveness_probe,
        ),
        (
            "readiness",
            &mut container.readiness_probe,
            &was.readiness_probe,
        ),
        ("startup", &mut container.startup_probe, &was.startup_probe),
    ] {
        let (Some(probe), Some(was)) = (probe, was) else {
            continue;
        };
        let Some(original) = asked.get(&format!("{name}/{kind}")) else {
            continue;
        };
        let get = probe.http_get.as_ref().unwrap();
        assert_eq!(get.port, IntOrString::Int(9441));
        assert_eq!(get.path, Some(format!("/probe/{name}/{kind}")));
        // The sidecar asks what the kubelet would have asked.
        assert_eq!(original.timeout_seconds, was.timeout_seconds);
        assert_eq!(original.tcp_socket.is_some(), was.tcp_socket.is_some());
        if let Some(get) = &was.http_get {
            let asked = original.http_get.as_ref().unwrap();
            let path = get.path.as_deref().unwrap_or("/").trim_start_matches('/');
            assert_eq!(asked.path.as_deref(), Some(format!("/{path}").as_str()));
            assert_eq!(asked.http_headers, get.http_headers);
        }
        probe.http_get.clone_from(&was.http_get);
        probe.tcp_socket.clone_from(&was.tcp_socket);
    }
}

fn hook_as_before(container: &mut Container, was: &Container, grace: i64) {
    let own = was.lifecycle.as_ref().and_then(|it| it.pre_stop.as_ref());
    if own.is_some() {
        return;
    }
    let lifecycle = container.lifecycle.as_mut();
    match lifecycle.and_then(|lifecycle| lifecycle.pre_stop.take()) {
        None => assert!(grace <= 1, "no hook, though there is time for it"),
        Some(hook) => {
            let seconds = hook.sleep.unwrap().seconds;
            assert!((1..=15).contains(&seconds) && seconds < grace);
        }
    }
    if container.lifecycle == Some(Default::default()) {
        container.lifecycle.clone_from(&was.lifecycle);
    }
}

/// What was as `restricted` has it still is, and our own containers always are.
fn is_restricted(before: &Pod, after: &Pod) {
    if security::violations(before).is_empty() {
        assert_eq!(security::violations(after), [""; 0]);
    }
    let spec = after.spec.as_ref().unwrap();
    let context = spec.security_context.clone().unwrap_or_default();
    let init = spec.init_containers.iter().flatten();
    for container in init.filter(|container| container.name.starts_with("toolward-")) {
        assert_eq!(security::of_container(&context, container), [""; 0]);
    }
}

/// The patch gives the pod, and leaves alone what a later version of Kubernetes
/// added to it.
fn is_patched(before: &Pod, after: &Pod) {
    let (from, to) = (
        serde_json::to_value(before).unwrap(),
        serde_json::to_value(after).unwrap(),
    );
    let patch = webhook::patch::between(from.clone(), &to);
    let later = json!({"of": ["a later version"]});
    let mut document = from;
    for place in ["/spec", "/metadata"] {
        document.pointer_mut(place).unwrap()["later"] = later.clone();
    }
    let mut there = Vec::new();
    for item in items(&mut document) {
        item["later"] = later.clone();
        there.push(item["name"].clone());
    }
    json_patch::patch(&mut document, &patch.0).unwrap();
    let remove = |object: &mut Value| object.as_object_mut().unwrap().remove("later");
    for place in ["/spec", "/metadata"] {
        let object = document.pointer_mut(place).unwrap();
        assert_eq!(remove(object), Some(later.clone()));
    }
    let kept = items(&mut document).filter_map(|item| {
        let kept = remove(item)?;
        assert_eq!(kept, later);
        Some(item["name"].clone())
    });
    assert_eq!(kept.collect::<Vec<_>>(), there);
    assert_eq!(document, to);
}

/// Containers and volumes of a pod.
fn items(pod: &mut Value) -> impl Iterator<Item = &mut Value> {
    let spec = pod["spec"].as_object_mut().unwrap().iter_mut();
    let lists = spec
        .filter(|(field, _)| ["containers", "initContainers", "volumes"].contains(&field.as_str()));
    lists.flat_map(|(_, list)| list.as_array_mut().unwrap())
}

/// Between two calls, built-in plugins and other webhooks change the pod.
fn is_stable(once: &Pod, server: &McpServer) {
    let mut changed = once.clone();
    let spec = changed.spec.as_mut().unwrap();
    let init = spec.init_containers.as_mut().unwrap();
    let container = |name: &str| Container {
        name: name.to_owned(),
        ..Container::default()
    };
    init.insert(0, container("early"));
    init.push(container("late"));
    for container in init.iter_mut().chain(&mut spec.containers) {
        container.image_pull_policy = Some("Always".to_owned());
        container.image = Some("mirror.example/any:1".to_owned());
        container.env.get_or_insert_default().push(EnvVar {
            name: "SSL_CERT_FILE".to_owned(),
            ..EnvVar::default()
        });
        container
            .volume_mounts
            .get_or_insert_default()
            .push(VolumeMount {
                name: "account".to_owned(),
                mount_path: ACCOUNT.to_owned(),
                ..VolumeMount::default()
            });
        let resources = container.resources.get_or_insert_default();
        let limits = resources.limits.get_or_insert_default();
        let one = || Quantity("1".to_owned());
        limits.entry("cpu".to_owned()).or_insert_with(one);
    }
    // The proxy of a mesh, where no annotation says which container is the server's.
    spec.containers.insert(0, container("proxy"));
    let twice = injected(&changed, server).unwrap();
    assert_eq!(injected(&twice.pod, server).unwrap(), twice);
    // The sidecar is as it was, but for what the plugins insist on.
    let mut wanted = ours(once, SIDECAR_CONTAINER).clone();
    let found = ours(&twice.pod, SIDECAR_CONTAINER);
    wanted.image_pull_policy = Some("Always".to_owned());
    let resources = wanted.resources.get_or_insert_default();
    let limits = resources.limits.get_or_insert_default();
    let one = || Quantity("1".to_owned());
    limits.entry("cpu".to_owned()).or_insert_with(one);
    assert_eq!(found, &wanted);
    let names = |pod: &Pod| -> Vec<String> {
        let spec = pod.spec.as_ref().unwrap();
        let init = spec.init_containers.iter().flatten();
        init.map(|container| container.name.clone()).collect()
    };
    assert_eq!(names(&twice.pod), names(&changed), "nothing moves");
}
