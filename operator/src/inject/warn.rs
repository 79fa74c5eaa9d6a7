//! What is legal in a pod but suspicious: told to whoever makes it. The API server
//! cuts a warning off after 256 characters.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::{Target, app_containers, containers::outlive_intake, is_tcp};
use crate::desired::pod::DRAIN_SECONDS;

/// Time for calls in flight, and a while for the server to end.
const SHORT_GRACE: i64 = 20;
/// Ports of which a warning tells.
const MAX_PORTS: usize = 8;
/// With these, a container can take the sidecar's port or look into its memory.
const CAPABILITIES: [&str; 4] = ["ALL", "NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"];

/// All warnings of a pod that can be injected. `server` is the name of the
/// container that runs the server.
pub(super) fn all(spec: &PodSpec, target: &Target<'_>, server: &str) -> Vec<String> {
    let own = [
        cut_off(spec, target),
        short_grace(spec),
        short_hook(spec, server),
        endless(spec, target, server),
        twice(spec, target),
    ];
    let mighty = app_containers(spec, target.is_stdio()).filter_map(mighty);
    own.into_iter().flatten().chain(mighty).collect()
}

/// Ports that only the pod itself will reach.
fn cut_off(spec: &PodSpec, target: &Target<'_>) -> Option<String> {
    let injected = target.spec.injected.as_ref();
    let open = injected.and_then(|injected| injected.ports.as_deref());
    let open = open.unwrap_or_default();
    let containers = app_containers(spec, target.is_stdio());
    let ports = containers.flat_map(|(_, container)| container.ports.iter().flatten());
    let closed = ports.filter(|port| {
        let number = port.container_port;
        let is_open = open.iter().any(|open| i32::from(*open) == number);
        !is_tcp(port) || !(is_open || target.port() == Some(number))
    });
    let closed: BTreeSet<_> = closed
        .map(|port| {
            (
                port.container_port,
                port.protocol.as_deref().unwrap_or("TCP"),
            )
        })
        .collect();
    if closed.is_empty() {
        return None;
    }
    let shown = closed.iter().take(MAX_PORTS);
    let shown: Vec<_> = shown.map(|(port, kind)| format!("{port}/{kind}")).collect();
    let rest = if closed.len() > MAX_PORTS {
        ", …"
    } else {
        ""
    };
    Some(format!(
        "cut off from outside the pod: {}{rest}; list TCP ports in spec.injected.ports of McpServer {} to keep them open",
        shown.join(", "),
        target.owner.name
    ))
}

fn short_grace(spec: &PodSpec) -> Option<String> {
    let grace = spec.termination_grace_period_seconds;
    let grace = grace.filter(|grace| *grace < SHORT_GRACE)?;
    Some(format!(
        "spec.terminationGracePeriodSeconds: {grace} cuts off calls in flight, which get {DRAIN_SECONDS} s to end: write {SHORT_GRACE} or more"
    ))
}

/// A hook of the server's own, in the place of ours: it ends while calls come in, or
/// nobody can tell how long it lasts.
fn short_hook(spec: &PodSpec, server: &str) -> Option<String> {
    let mut containers = spec.containers.iter().enumerate();
    let (index, container) = containers.find(|(_, container)| container.name == server)?;
    let hook = container.lifecycle.as_ref()?.pre_stop.as_ref()?;
    let lasts = hook.sleep.as_ref().map(|sleep| sleep.seconds);
    let ours = outlive_intake(spec).and_then(|hook| hook.sleep);
    let ours = ours.map(|sleep| sleep.seconds);
    (lasts < ours.or(Some(DRAIN_SECONDS))).then(|| {
        format!(
            "spec.containers[{index}].lifecycle.preStop: the server has to outlive calls in flight, which get {DRAIN_SECONDS} s to end: let it last as long, or remove it"
        )
    })
}

/// The shim waits for calls until it is told to end.
fn endless(spec: &PodSpec, target: &Target<'_>, server: &str) -> Option<String> {
    let ends = spec.restart_policy.as_deref();
    let ends = ends.is_some_and(|policy| policy != "Always");
    (ends && target.is_stdio()).then(|| {
        format!("spec.restartPolicy: container {server} waits for calls until the pod is deleted, so a Job of it does not complete by itself")
    })
}

/// One port, and several that would listen on it.
fn twice(spec: &PodSpec, target: &Target<'_>) -> Option<String> {
    let port = target.port()?;
    let is_on = |container: &Container| {
        let mut ports = container.ports.iter().flatten();
        ports.any(|it| it.container_port == port && is_tcp(it))
    };
    let on = spec.containers.iter().filter(|it| is_on(it)).count();
    (on > 1).then(|| {
        format!(
            "spec.containers: {on} declare the server's port {port}, and only one can listen on it"
        )
    })
}

fn mighty((path, container): (String, &Container)) -> Option<String> {
    let context = container.security_context.as_ref()?;
    let capabilities = context.capabilities.as_ref();
    let mut added = capabilities
        .into_iter()
        .flat_map(|it| it.add.iter().flatten());
    let is_mighty = context.privileged == Some(true)
        || added.any(|it| CAPABILITIES.contains(&it.trim_start_matches("CAP_")));
    is_mighty.then(|| {
        format!(
            "{path}.securityContext: with these privileges the container can get around the sidecar"
        )
    })
}
