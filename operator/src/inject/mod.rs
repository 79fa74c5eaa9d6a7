//! Puts the sidecar into a pod that asks for it, by a pure function.
//!
//! Invariants:
//! - A pod is injected whole, or refused with all that is to be changed.
//! - Each change is made where it is not there yet: [`inject`] of what it made is
//!   the same again, whatever other webhooks and built-in plugins did between.
//!   The annotation `toolward.dev/injected` is never read.
//! - Of the app's own containers only this changes: `preStop` where there is none,
//!   probes of the server's port, and for Stdio the server's command and two mounts.
//! - Our containers are as the Pod Security Standard `restricted` has it, whatever
//!   the pod sets for all.
//!
//! The sidecar becomes the last init container. What the app does before its
//! server starts stays as it was, a long migration does not count as a server that
//! does not answer, and sidecars of the app, such as the proxy of a mesh, are there
//! before ours and end after it. Where others put init containers behind it, it
//! stays where it is: it needs none of them, and they do not need it.

mod containers;
mod current;
mod probes;
mod refuse;
mod resources;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod warn;

use std::collections::BTreeMap;

pub use current::Wanted;

use crds::McpServerSpec;
use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, PodSpec};

use crate::{
    desired::{self, Owner, SidecarImage},
    names::{
        INJECTED_ANNOTATION, INSTALL_CONTAINER, SERVER_ANNOTATION, SERVER_LABEL, SIDECAR_CONTAINER,
    },
};

/// What of a text that others wrote is shown in a message.
const MAX_SHOWN: usize = 64;
/// Longest name of an `McpServer`.
const MAX_NAME: usize = 52;

/// The server whose sidecar a pod gets.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The `McpServer`.
    pub owner: &'a Owner,
    /// What it asks for.
    pub spec: &'a McpServerSpec,
    /// The sidecar's image.
    pub sidecar: &'a SidecarImage,
}

impl Target<'_> {
    fn is_stdio(&self) -> bool {
        desired::pod::is_stdio(&self.spec.transport)
    }

    /// Where the server listens; nowhere, for Stdio.
    fn port(&self) -> Option<i32> {
        let http = || self.spec.transport.http.clone().unwrap_or_default();
        (!self.is_stdio()).then(|| i32::from(http().port))
    }
}

/// A pod with the sidecar.
#[derive(Clone, Debug, PartialEq)]
pub struct Injected {
    /// The pod.
    pub pod: Pod,
    /// What is legal but suspicious, for whoever makes the pod.
    pub warnings: Vec<String>,
    /// What was done, for the annotation and the Event.
    pub summary: String,
}

/// Why a pod cannot be injected as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Refusal {
    /// Path of the field in the pod.
    pub path: String,
    /// What is wrong, and what to write.
    pub message: String,
}

impl Refusal {
    /// A refusal of a field.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
        }
    }

    /// A refusal of an annotation.
    pub fn annotation(key: &str, message: impl Into<String>) -> Self {
        Self::new(format!("metadata.annotations[{key}]"), message)
    }
}

/// The name of the server whose sidecar a pod asks for; none where it asks for none.
///
/// # Errors
/// Where it names no server, or more than one.
pub fn server_of(pod: &Pod) -> Result<Option<&str>, Refusal> {
    let Some(name) = annotation(pod, SERVER_ANNOTATION) else {
        return Ok(None);
    };
    let labels = pod.metadata.labels.as_ref();
    let label = labels.and_then(|labels| labels.get(SERVER_LABEL));
    if name.trim().contains([',', ';', ' ']) {
        let message = format!(
            "{} names several servers, and a pod has one: write one name, and run each other server in pods of its own",
            quoted(name)
        );
        return Err(Refusal::annotation(SERVER_ANNOTATION, message));
    }
    if !is_name(name) {
        let message = format!(
            "{} is no name of an McpServer: write that of one in the pod's namespace, for example orders",
            quoted(name)
        );
        return Err(Refusal::annotation(SERVER_ANNOTATION, message));
    }
    match label {
        Some(label) if label != name => Err(Refusal::new(
            format!("metadata.labels[{SERVER_LABEL}]"),
            format!(
                "the label says {}, the annotation {name}, and a pod has one server: remove the label, which the webhook sets",
                quoted(label)
            ),
        )),
        _ => Ok(Some(name)),
    }
}

/// Puts the sidecar of `target` into a pod.
///
/// # Errors
/// All that keeps the pod from being injected, never nothing.
pub fn inject(pod: &Pod, target: &Target<'_>) -> Result<Injected, Vec<Refusal>> {
    let Some(mut spec) = pod.spec.clone() else {
        let message = "there is none: write the containers of the pod";
        return Err(vec![Refusal::new("spec", message)]);
    };
    let mut refusals = Vec::new();
    let server = containers::server(pod, &spec, target)
        .map_err(|refusal| refusals.push(refusal))
        .ok();
    refusals.extend(refuse::all(pod, &spec, target, server.as_deref()));
    let mut sidecar = desired::pod::sidecar(target.spec, target.sidecar);
    refusals.extend(resources::annotated(pod, &mut sidecar));
    let asked = probes::rewrite(&mut spec, target, &mut refusals);
    let arguments = probes::arguments(&asked).map_err(|refusal| refusals.push(refusal));
    let (Some(server), Ok(arguments), true) = (server, arguments, refusals.is_empty()) else {
        return Err(refusals);
    };
    sidecar.args.get_or_insert_default().extend(arguments);

    let warnings = warn::all(&spec, target, &server);
    let summary = summary(target, &server, asked.len());
    if target.is_stdio() {
        containers::shim(&mut spec, &server);
    }
    containers::keep_until_drained(&mut spec);
    containers::put(&mut spec, target, sidecar);
    let mut metadata = pod.metadata.clone();
    set(&mut metadata.labels, SERVER_LABEL, &target.owner.name);
    set(&mut metadata.annotations, INJECTED_ANNOTATION, &summary);
    let pod = Pod {
        metadata,
        spec: Some(spec),
        status: pod.status.clone(),
    };
    Ok(Injected {
        pod,
        warnings,
        summary,
    })
}

/// Whether a pod has the sidecar.
pub fn has_sidecar(pod: &Pod) -> bool {
    let containers = pod.spec.iter().flat_map(|spec| &spec.init_containers);
    let mut containers = containers.flatten();
    containers.any(|container| container.name == SIDECAR_CONTAINER && is_sidecar(container))
}

fn summary(target: &Target<'_>, server: &str, probes: usize) -> String {
    let front = match target.port() {
        Some(port) => format!("port {port}"),
        None => format!("the command of container {server}"),
    };
    let asked = match probes {
        0 => String::new(),
        _ => format!("; probes of the app that it makes: {probes}"),
    };
    format!(
        "the sidecar of McpServer {} stands in front of {front}{asked}",
        target.owner.name
    )
}

fn set(map: &mut Option<BTreeMap<String, String>>, key: &str, value: &str) {
    let map = map.get_or_insert_default();
    map.insert(key.to_owned(), value.to_owned());
}

fn annotation<'p>(pod: &'p Pod, key: &str) -> Option<&'p str> {
    pod.metadata
        .annotations
        .as_ref()?
        .get(key)
        .map(String::as_str)
}

/// Whether a text is a DNS-1035 label, no longer than that of an `McpServer`.
fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_inner = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    bytes.len() <= MAX_NAME
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last().is_some_and(|last| *last != b'-')
        && bytes.iter().all(is_inner)
}

/// A text that others wrote, as it is shown in a message.
fn quoted(text: &str) -> String {
    let shown: String = text.chars().take(MAX_SHOWN).collect();
    let rest = if shown.len() < text.len() { "…" } else { "" };
    format!("{shown:?}{rest}")
}

/// Whether an init container runs beside the main ones.
fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Whether an init container is one that we put there.
fn is_ours(container: &Container, is_stdio: bool) -> bool {
    let mut args = container.args.iter().flatten();
    let command = args.next().map(String::as_str);
    match container.name.as_str() {
        SIDECAR_CONTAINER => is_sidecar(container) && command == Some("serve"),
        INSTALL_CONTAINER => is_stdio && command == Some("install"),
        _ => false,
    }
}

/// The app's containers, each with its path in the pod.
fn app_containers(spec: &PodSpec, is_stdio: bool) -> impl Iterator<Item = (String, &Container)> {
    let init = spec.init_containers.iter().flatten().enumerate();
    let init = init.filter(move |(_, container)| !is_ours(container, is_stdio));
    let init = init.map(|(index, c)| (format!("spec.initContainers[{index}]"), c));
    let main = spec.containers.iter().enumerate();
    init.chain(main.map(|(index, c)| (format!("spec.containers[{index}]"), c)))
}

fn is_tcp(port: &ContainerPort) -> bool {
    port.protocol
        .as_deref()
        .is_none_or(|protocol| protocol == "TCP")
}
