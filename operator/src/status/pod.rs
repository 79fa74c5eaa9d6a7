//! What a pod says of itself.

use crds::Reason;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodCondition};
use kube::ResourceExt;

use super::tail;
use crate::names::{SERVER_CONTAINER, SIDECAR_CONTAINER};

/// The most that is told of a server's last words.
const MAX_WORDS: usize = 1024;

/// Why a pod does not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// As one word.
    pub reason: Reason,
    /// For a person.
    pub message: String,
}

/// Whether the pod's sidecar runs, so that it can be spoken to.
pub fn sidecar_runs(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref();
    let mut statuses = statuses
        .and_then(|status| status.init_container_statuses.as_ref())
        .into_iter()
        .flatten();
    is_live(pod)
        && statuses.any(|status| {
            let running = status.state.as_ref().is_some_and(|s| s.running.is_some());
            status.name == SIDECAR_CONTAINER && running
        })
}

/// Whether the sidecar has run, and does not now: its ports are free for whatever
/// else is in the pod.
pub fn sidecar_is_down(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref();
    let statuses = statuses.and_then(|status| status.init_container_statuses.as_ref());
    let mut statuses = statuses.into_iter().flatten();
    statuses.any(|status| {
        let state = status.state.as_ref();
        let is_running = state.is_some_and(|state| state.running.is_some());
        let has_ended = state.is_some_and(|state| state.terminated.is_some());
        status.name == SIDECAR_CONTAINER && !is_running && (has_ended || status.restart_count > 0)
    })
}

/// Whether the pod is there to stay.
pub fn is_live(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && !is_finished(pod)
}

/// Whether nothing of the pod runs any more.
pub fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}

/// Whether the pod is ready.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == type_)
}

/// Why the pod does not start or stay up, where that is known.
pub fn trouble(pod: &Pod) -> Option<Trouble> {
    let status = pod.status.as_ref()?;
    let unscheduled = condition(pod, "PodScheduled").filter(|c| c.status == "False");
    if let Some(condition) = unscheduled {
        let why = condition.message.as_deref().unwrap_or("no node fits");
        return Some(failing(format!(
            "pod {} cannot be scheduled: {why}",
            pod.name_any()
        )));
    }
    let containers = [&status.init_container_statuses, &status.container_statuses];
    let mut containers = containers.into_iter().flatten().flatten();
    containers.find_map(|container| container_trouble(pod, container))
}

fn failing(message: String) -> Trouble {
    Trouble {
        reason: Reason::PodsFailing,
        message,
    }
}

fn container_trouble(pod: &Pod, status: &ContainerStatus) -> Option<Trouble> {
    let place = || format!("container {} of pod {}", status.name, pod.name_any());
    let state = status.state.as_ref();
    let waiting = state.and_then(|state| state.waiting.as_ref());
    let why = waiting
        .and_then(|w| w.reason.as_deref())
        .unwrap_or_default();
    if !matches!(
        why,
        "" | "PodInitializing" | "ContainerCreating" | "CrashLoopBackOff"
    ) {
        // The image, a missing Secret or ConfigMap, a command that does not exist.
        let message = waiting.and_then(|w| w.message.as_deref()).unwrap_or("");
        return Some(failing(format!(
            "{}: {why}: {}",
            place(),
            tail(message, MAX_WORDS)
        )));
    }
    let ended = state.and_then(ending).or_else(|| {
        let last = status.last_state.as_ref().and_then(ending);
        last.filter(|_| !status.ready)
    })?;
    let reason = if status.name == SERVER_CONTAINER {
        Reason::ServerFailed
    } else {
        Reason::PodsFailing
    };
    let restarts = match status.restart_count {
        0 => String::new(),
        1 => " after 1 restart".to_owned(),
        count => format!(" after {count} restarts"),
    };
    Some(Trouble {
        reason,
        message: format!("{} {ended}{restarts}: {}", place(), words(status)),
    })
}

/// How a container ended. An init container that did its work is no trouble.
fn ending(state: &ContainerState) -> Option<String> {
    let ended = state.terminated.as_ref()?;
    let oom = ended.reason.as_deref() == Some("OOMKilled");
    match (ended.exit_code, ended.reason.as_deref()) {
        (_, Some("Completed")) => None,
        _ if oom => Some("ran out of memory (raise resources.limits.memory)".to_owned()),
        (code, Some("ContainerCannotRun" | "StartError")) => {
            Some(format!("could not be started (exit code {code})"))
        }
        (code, _) => Some(format!("ended with exit code {code}")),
    }
}

/// The last of what the container said.
fn words(status: &ContainerStatus) -> String {
    let states = [&status.state, &status.last_state];
    let said = states
        .into_iter()
        .flatten()
        .filter_map(|state| state.terminated.as_ref()?.message.as_deref())
        .find(|message| !message.trim().is_empty());
    said.map_or_else(
        || {
            format!(
                "it said nothing; see kubectl logs -c {} --previous",
                status.name
            )
        },
        |message| tail(message, MAX_WORDS),
    )
}
