//! What is added to a pod: our containers and volumes, the shim in front of a stdio
//! server, and time for calls to finish.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{
        AppArmorProfile, Container, LifecycleHandler, Pod, PodSecurityContext, PodSpec,
        SELinuxOptions,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::{Refusal, Target, annotation, app_containers, quoted};
use crate::{desired, names::CONTAINER_ANNOTATION};

/// What Kubernetes takes where a pod does not say.
const DEFAULT_GRACE: i64 = 30;

/// Requests or limits.
type Amounts = Option<BTreeMap<String, Quantity>>;

/// The name of the main container that runs the server: the one that the
/// annotation names, else the one that has the shim already, as others may have put
/// theirs before it since then, else the first.
pub(super) fn server(pod: &Pod, spec: &PodSpec, target: &Target<'_>) -> Result<String, Refusal> {
    let named = annotation(pod, CONTAINER_ANNOTATION);
    let found = match named {
        Some(name) => spec.containers.iter().position(|it| it.name == name),
        None => {
            let shimmed = spec.containers.iter().position(has_shim);
            shimmed.filter(|_| target.is_stdio()).or(Some(0))
        }
    };
    let container = found.and_then(|index| Some((index, spec.containers.get(index)?)));
    let Some((index, container)) = container else {
        let Some(name) = named else {
            let message = "there is none: write the server's";
            return Err(Refusal::new("spec.containers", message));
        };
        let names: Vec<_> = spec.containers.iter().map(|c| c.name.as_str()).collect();
        let message = format!(
            "spec.containers has none called {}: write one of {}",
            quoted(name),
            names.join(", ")
        );
        return Err(Refusal::annotation(CONTAINER_ANNOTATION, message));
    };
    if target.is_stdio() && own_command(container).is_empty() {
        let message = format!(
            "the sidecar's shim starts a Stdio server, and cannot see the image's entrypoint: write the server's command, or name its container, if that is not {}, by the annotation {CONTAINER_ANNOTATION}",
            quoted(&container.name)
        );
        let path = format!("spec.containers[{index}].command");
        return Err(Refusal::new(path, message));
    }
    Ok(container.name.clone())
}

fn has_shim(container: &Container) -> bool {
    let command = container.command.as_deref().unwrap_or_default();
    command.first() == desired::pod::shim().first() && !own_command(container).is_empty()
}

/// The command of a stdio server, without a shim of this or of an earlier version
/// in front.
fn own_command(container: &Container) -> &[String] {
    let command = container.command.as_deref().unwrap_or_default();
    let end = command.iter().position(|word| word == "--");
    match end {
        Some(end) if command.first() == desired::pod::shim().first() => {
            command.get(end + 1..).unwrap_or_default()
        }
        _ => command,
    }
}

/// Puts the shim in front of the server's command.
pub(super) fn shim(spec: &mut PodSpec, server: &str) {
    let mut containers = spec.containers.iter_mut();
    let Some(container) = containers.find(|container| container.name == server) else {
        return;
    };
    let own = own_command(container).to_vec();
    container.command = Some(desired::pod::shimmed(own));
    let mounts = container.volume_mounts.get_or_insert_default();
    for mount in desired::pod::server_mounts() {
        match mounts.iter_mut().find(|there| there.name == mount.name) {
            Some(there) => *there = mount,
            None => mounts.push(mount),
        }
    }
}

/// The hook that keeps a main container until calls have finished. One that sleeps
/// for longer than the pod may take is refused by the API server, and one as long
/// leaves the app no time to end.
pub(super) fn outlive_intake(spec: &PodSpec) -> Option<LifecycleHandler> {
    let grace = spec.termination_grace_period_seconds;
    let most = grace.unwrap_or(DEFAULT_GRACE).saturating_sub(1);
    let mut hook = desired::pod::outlive_intake();
    if let Some(sleep) = &mut hook.sleep {
        sleep.seconds = sleep.seconds.min(most);
    }
    (most >= 1).then_some(hook)
}

/// Keeps main containers until calls have finished, unless they have a hook of their
/// own.
pub(super) fn keep_until_drained(spec: &mut PodSpec) {
    let Some(hook) = outlive_intake(spec) else {
        return;
    };
    for container in &mut spec.containers {
        let lifecycle = container.lifecycle.get_or_insert_default();
        lifecycle.pre_stop.get_or_insert_with(|| hook.clone());
    }
}

/// Adds our containers and volumes, or makes those that are there what they
/// should be.
pub(super) fn put(spec: &mut PodSpec, target: &Target<'_>, mut sidecar: Container) {
    leave_port_names(spec, target, &mut sidecar);
    let mut ours = Vec::new();
    if target.is_stdio() {
        let mut install = desired::pod::install(target.spec, target.sidecar);
        // With what annotations ask for.
        install.resources = sidecar.resources.clone();
        ours.push(install);
    }
    ours.push(sidecar);
    let there = spec.init_containers.get_or_insert_default();
    for mut container in ours {
        shield(&mut container, spec.security_context.as_ref());
        match there.iter_mut().find(|it| it.name == container.name) {
            Some(there) => {
                keep(&mut container, there);
                *there = container;
            }
            None => there.push(container),
        }
    }
    let there = spec.volumes.get_or_insert_default();
    for volume in desired::volumes(target.owner, target.spec) {
        match there.iter_mut().find(|it| it.name == volume.name) {
            Some(there) => *there = volume,
            None => there.push(volume),
        }
    }
}

/// A name of a port belongs to the app, where it uses it too: its Services find
/// the port by it.
fn leave_port_names(spec: &PodSpec, target: &Target<'_>, sidecar: &mut Container) {
    let containers = app_containers(spec, target.is_stdio());
    let ports = containers.flat_map(|(_, container)| container.ports.iter().flatten());
    let taken: BTreeSet<_> = ports.filter_map(|port| port.name.as_deref()).collect();
    for port in sidecar.ports.iter_mut().flatten() {
        if port
            .name
            .as_deref()
            .is_some_and(|name| taken.contains(name))
        {
            port.name = None;
        }
    }
}

/// What the pod sets for all containers and would make ours less than restricted,
/// or what is made for the app alone. All else they set themselves.
fn shield(container: &mut Container, pod: Option<&PodSecurityContext>) {
    let (Some(pod), Some(own)) = (pod, &mut container.security_context) else {
        return;
    };
    let profile = pod.app_armor_profile.as_ref();
    if profile.is_some_and(|profile| profile.type_ != "RuntimeDefault") {
        own.app_armor_profile = Some(AppArmorProfile {
            type_: "RuntimeDefault".to_owned(),
            ..AppArmorProfile::default()
        });
    }
    if let Some(options) = &pod.se_linux_options
        && (options.user.is_some() || options.role.is_some() || options.type_.is_some())
    {
        // The volumes have the pod's level.
        own.se_linux_options = Some(SELinuxOptions {
            level: options.level.clone(),
            ..SELinuxOptions::default()
        });
    }
}

/// What built-in plugins (LimitRanger, AlwaysPullImages) set in all containers:
/// without it they would refuse the pod.
fn keep(ours: &mut Container, there: &Container) {
    if there.image_pull_policy.as_deref() == Some("Always") {
        ours.image_pull_policy = there.image_pull_policy.clone();
    }
    let ours = ours.resources.get_or_insert_default();
    let there = there.resources.clone().unwrap_or_default();
    add(&mut ours.limits, there.limits);
    add(&mut ours.requests, there.requests);
}

fn add(ours: &mut Amounts, there: Amounts) {
    for (name, amount) in there.into_iter().flatten() {
        ours.get_or_insert_default().entry(name).or_insert(amount);
    }
}
