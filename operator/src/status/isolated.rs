//! Whether callers can only come through the sidecar, by what was found when the
//! pods' ports were tried from outside ([`crate::isolation`]).

use std::collections::BTreeSet;

use crds::{ConditionStatus, Reason};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::{
    Verdict,
    server::{Seen, deciding},
};
use crate::{isolation::Isolation, names::network_policy_name};

/// Ports of a pod that a message names.
const MAX_PORTS: usize = 8;

/// One port that can be reached is enough; then one pod of which that is not
/// known.
pub(super) fn isolated(seen: &Seen<'_>) -> Verdict {
    let pods = deciding(seen);
    let found: Vec<_> = pods.iter().map(|pod| (*pod, found(seen, pod))).collect();
    let open: Vec<_> = found.iter().filter_map(is_open).collect();
    if let [(pod, ports), others @ ..] = &open[..] {
        let message = reachable(seen, pod, ports, others.len());
        return Verdict::no(Reason::ServerPortReachable, message);
    }
    let unknown = found.iter().find_map(|(pod, found)| match found {
        None => Some(format!(
            "It is not known yet whether the server in pod {} can be reached past its sidecar.",
            pod.name_any()
        )),
        Some(Isolation::Unclear(why)) => Some(format!(
            "It cannot be told whether the server in pod {} can be reached past its sidecar: {why}.",
            pod.name_any()
        )),
        Some(_) => None,
    });
    let bare = seen.injection.filter(|pods| !pods.missing.is_empty());
    if let Some(pods) = bare {
        let message = format!(
            "It cannot be told whether servers can be reached in pods without the sidecar: {}.",
            pods.missing.len()
        );
        return Verdict::new(ConditionStatus::Unknown, Reason::SidecarMissing, message);
    }
    let nobody = || Some("No sidecar runs yet.".to_owned()).filter(|_| pods.is_empty());
    if let Some(message) = unknown.or_else(nobody) {
        return Verdict::new(ConditionStatus::Unknown, Reason::Pending, message);
    }
    let is_shut = |(_, found): &(&Pod, Option<&Isolation>)| *found == Some(&Isolation::Shut);
    if found.iter().any(is_shut) {
        let policy = network_policy_name(seen.name);
        let message = format!(
            "Ports of the pods are open beyond loopback and cannot be reached from outside: NetworkPolicy {policy} is enforced."
        );
        return Verdict::yes(Reason::NetworkPolicyEnforced, message);
    }
    Verdict::yes(
        Reason::LoopbackOnly,
        "Nothing in the pods listens beyond loopback but the sidecar.",
    )
}

/// What was found of a pod, while its sidecar answers.
fn found<'a>(seen: &Seen<'a>, pod: &Pod) -> Option<&'a Isolation> {
    let sight = seen.sights.get(&pod.uid()?)?;
    sight.isolation.as_ref().filter(|_| sight.report.is_some())
}

fn is_open<'a>(
    (pod, found): &(&'a Pod, Option<&'a Isolation>),
) -> Option<(&'a Pod, &'a BTreeSet<u16>)> {
    match found {
        Some(Isolation::Open(ports)) => Some((*pod, ports)),
        _ => None,
    }
}

/// Where the server is reached, and what to do.
fn reachable(seen: &Seen<'_>, pod: &Pod, ports: &BTreeSet<u16>, others: usize) -> String {
    let named: Vec<_> = ports.iter().take(MAX_PORTS).map(u16::to_string).collect();
    let more = if ports.len() > MAX_PORTS { ", …" } else { "" };
    let plural = if ports.len() == 1 { "" } else { "s" };
    let others = match others {
        0 => String::new(),
        1 => " (and of 1 other pod)".to_owned(),
        others => format!(" (and of {others} other pods)"),
    };
    format!(
        "Port{plural} {}{more} of pod {}{others} can be reached past the sidecar: whoever reaches the pod needs no token there. Let the server listen on 127.0.0.1 only, or run a network plugin that enforces NetworkPolicies: {} cuts such ports off.",
        named.join(", "),
        pod.name_any(),
        network_policy_name(seen.name),
    )
}
