//! Pods that cannot be injected as they are: where, why, and what to write.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, PodSpec, VolumeMount};

use super::{Refusal, Target, app_containers, is_tcp, server_of};
use crate::{
    desired::{
        self,
        pod::{BIN_VOLUME, RUN_VOLUME, SIDECAR_UID},
    },
    names::{
        ADMIN_PORT, BUNDLE_ANNOTATION, CONTAINER_ANNOTATION, INJECTED_ANNOTATION, MCP_PORT,
        PEER_PORT, RESOURCE_ANNOTATIONS, SERVER_ANNOTATION, SERVER_LABEL,
    },
};

/// Names of our containers and volumes begin so.
const PREFIX: &str = "toolward-";
/// Where a stdio server's container has what it shares with the sidecar.
const FOLDER: &str = "/toolward";
/// Ports of the sidecar.
const PORTS: [i32; 3] = [MCP_PORT, ADMIN_PORT as i32, PEER_PORT];
/// What stood for a profile of a container before that was a field; the API server
/// still reads it, and writes it.
const PROFILE_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/toolward-";

/// All that is wrong with a pod, but for its probes and what concerns the server's
/// container alone. `server` is the name of that.
pub(super) fn all(
    pod: &Pod,
    spec: &PodSpec,
    target: &Target<'_>,
    server: Option<&str>,
) -> Vec<Refusal> {
    let mut refusals: Vec<_> = named(pod, target).into_iter().collect();
    refusals.extend(keys(pod));
    refusals.extend(profiles(pod));
    refusals.extend(host(spec));
    refusals.extend(volumes(spec, target));
    let user = spec.security_context.as_ref().and_then(|it| it.run_as_user);
    refusals.extend(sidecars_user("spec", user));
    for (path, container) in app_containers(spec, target.is_stdio()) {
        let is_main = path.starts_with("spec.containers");
        let has_shim = target.is_stdio() && is_main && server == Some(container.name.as_str());
        refusals.extend(name(&path, container));
        refusals.extend(sidecars_user(&path, user_of(container)));
        refusals.extend(ports(&path, container, target));
        refusals.extend(mounts(&path, container, has_shim));
    }
    refusals
}

/// The server that the pod names is the target, and one that is injected.
fn named(pod: &Pod, target: &Target<'_>) -> Option<Refusal> {
    let name = &target.owner.name;
    match server_of(pod) {
        Err(refusal) => Some(refusal),
        Ok(found) if found != Some(name.as_str()) => Some(Refusal::annotation(
            SERVER_ANNOTATION,
            format!("it does not name McpServer {name}: write that name"),
        )),
        Ok(_) if target.spec.injected.is_none() => Some(Refusal::annotation(
            SERVER_ANNOTATION,
            format!(
                "Toolward makes the pods of McpServer {name} itself: write injected: {{}} in place of deployment in its spec, or remove the annotation"
            ),
        )),
        Ok(_) => None,
    }
}

/// An unknown key is a typing error, and one of `toolward.dev/container` would put
/// the shim in front of another container: so it is refused, not warned of.
fn keys(pod: &Pod) -> Vec<Refusal> {
    let [a, b, c, d] = RESOURCE_ANNOTATIONS;
    let metadata = &pod.metadata;
    let (server, container) = (SERVER_ANNOTATION, CONTAINER_ANNOTATION);
    let may_be_written = [server, container, a, b, c, d];
    let is_set_by_us = [INJECTED_ANNOTATION, BUNDLE_ANNOTATION];
    let mut refusals = unknown("annotations", &metadata.annotations, &may_be_written);
    refusals.retain(|(key, _)| !is_set_by_us.contains(&key.as_str()));
    refusals.extend(unknown("labels", &metadata.labels, &[SERVER_LABEL]));
    refusals.into_iter().map(|(_, refusal)| refusal).collect()
}

fn unknown(
    field: &str,
    map: &Option<BTreeMap<String, String>>,
    known: &[&str],
) -> Vec<(String, Refusal)> {
    let keys = map.iter().flat_map(BTreeMap::keys);
    let ours = keys.filter(|key| key.split_once('/').is_some_and(|(at, _)| at == crds::GROUP));
    let unknown = ours.filter(|key| !known.contains(&key.as_str()));
    let refusal = |key: &String| {
        let message = format!(
            "it means nothing: remove it, or write one of {}",
            known.join(", ")
        );
        (
            key.clone(),
            Refusal::new(format!("metadata.{field}[{key}]"), message),
        )
    };
    unknown.map(refusal).collect()
}

fn profiles(pod: &Pod) -> Vec<Refusal> {
    let annotations = pod.metadata.annotations.iter().flatten();
    let profiles = annotations.filter(|(key, value)| {
        key.starts_with(PROFILE_ANNOTATION) && value.as_str() != "runtime/default"
    });
    let message = "the sidecar's containers have the runtime's own profile: remove the annotation";
    profiles
        .map(|(key, _)| Refusal::annotation(key, message))
        .collect()
}

/// What the pod would share with its node, or its containers with each other.
fn host(spec: &PodSpec) -> Vec<Refusal> {
    let set = |flag: Option<bool>| flag == Some(true);
    let os = "kubernetes.io/os";
    let selected = spec.node_selector.as_ref().and_then(|it| it.get(os));
    let windows = "the sidecar runs on Linux only: remove the annotation toolward.dev/server";
    let process = "containers of the pod could reach the sidecar's process, with its keys and tokens: remove it";
    let network = "in the node's network the server can be reached around the sidecar, and its ports are the node's: remove it";
    let checks = [
        ("hostNetwork", set(spec.host_network), network),
        ("hostPID", set(spec.host_pid), process),
        (
            "shareProcessNamespace",
            set(spec.share_process_namespace),
            process,
        ),
        (
            "os.name",
            spec.os.as_ref().is_some_and(|os| os.name == "windows"),
            windows,
        ),
        (
            "nodeSelector[kubernetes.io/os]",
            selected.is_some_and(|os| os == "windows"),
            windows,
        ),
    ];
    let refused = checks.into_iter().filter(|(_, is_wrong, _)| *is_wrong);
    refused
        .map(|(field, _, message)| Refusal::new(format!("spec.{field}"), message))
        .collect()
}

fn volumes(spec: &PodSpec, target: &Target<'_>) -> Vec<Refusal> {
    let ours = desired::volumes(target.owner, target.spec);
    let volumes = spec.volumes.iter().flatten().enumerate();
    let taken = volumes.filter(|(_, volume)| {
        volume.name.starts_with(PREFIX) && !ours.iter().any(|ours| ours.name == volume.name)
    });
    taken
        .map(|(index, _)| Refusal::new(format!("spec.volumes[{index}].name"), another_name()))
        .collect()
}

fn name(path: &str, container: &Container) -> Option<Refusal> {
    let is_taken = container.name.starts_with(PREFIX);
    is_taken.then(|| Refusal::new(format!("{path}.name"), another_name()))
}

fn another_name() -> String {
    format!("names that begin with {PREFIX} are the sidecar's: write another")
}

fn user_of(container: &Container) -> Option<i64> {
    container.security_context.as_ref()?.run_as_user
}

/// Whoever has the sidecar's user could do what the shim and the kernel allow it.
fn sidecars_user(path: &str, user: Option<i64>) -> Option<Refusal> {
    let message = format!("user {SIDECAR_UID} is the sidecar's: write another");
    let path = format!("{path}.securityContext.runAsUser");
    (user == Some(SIDECAR_UID)).then(|| Refusal::new(path, message))
}

fn ports(path: &str, container: &Container, target: &Target<'_>) -> Vec<Refusal> {
    let ports = container.ports.iter().flatten().enumerate();
    let refused = |(index, port): (usize, &ContainerPort)| {
        let path = format!("{path}.ports[{index}]");
        let number = port.container_port;
        if PORTS.contains(&number) {
            let message = format!(
                "port {number} is the sidecar's: let the container listen on another one, and write that"
            );
            return Some(Refusal::new(format!("{path}.containerPort"), message));
        }
        let is_servers = target.port() == Some(number) && is_tcp(port);
        let is_open = port.host_port.is_some_and(|port| port > 0);
        (is_servers && is_open).then(|| {
            let message = format!(
                "the node's port would lead to the server around the sidecar: remove it, and call the Service {}",
                target.owner.name
            );
            Refusal::new(format!("{path}.hostPort"), message)
        })
    };
    ports.filter_map(refused).collect()
}

/// Our volumes hold tokens and keys: none is mounted into a container of the app,
/// but the two that the shim needs.
fn mounts(path: &str, container: &Container, has_shim: bool) -> Vec<Refusal> {
    let mut free: Vec<_> = match has_shim {
        true => vec![BIN_VOLUME, RUN_VOLUME],
        false => Vec::new(),
    };
    let mounts = container.volume_mounts.iter().flatten().enumerate();
    let refused = |(index, mount): (usize, &VolumeMount)| {
        let path = format!("{path}.volumeMounts[{index}]");
        if let Some(at) = free.iter().position(|name| *name == mount.name) {
            free.remove(at); // Put there by us, and once.
            return None;
        }
        if mount.name.starts_with(PREFIX) {
            let message = format!(
                "volumes whose names begin with {PREFIX} are the sidecar's alone: remove the mount"
            );
            return Some(Refusal::new(format!("{path}.name"), message));
        }
        let rest = mount.mount_path.strip_prefix(FOLDER);
        let is_within = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        (has_shim && is_within).then(|| {
            let message =
                format!("{FOLDER} holds the shim and its socket: mount the volume elsewhere");
            Refusal::new(format!("{path}.mountPath"), message)
        })
    };
    mounts.filter_map(refused).collect()
}
