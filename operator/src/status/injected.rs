//! What the status says of pods that Toolward did not make.

use super::server::pods;
use crate::{
    injection::{self, Stale},
    names::{INJECTION_LABEL, SERVER_ANNOTATION},
};

/// So many pods are named.
const NAMED: usize = 3;

/// Which pods ask for the sidecar and do not have it, and what to do; none where
/// all have it.
pub fn missing(seen: &injection::Pods) -> Option<String> {
    let first = seen.missing.first()?;
    let ask = match seen.missing.len() {
        1 => "asks for the sidecar and does not have it",
        _ => "ask for the sidecar and do not have it",
    };
    Some(format!(
        "{} {ask} ({}). The webhook sees pods when they are made, in namespaces with the label {INJECTION_LABEL}: enabled. Restart the pods: {}",
        pods(seen.missing.len()),
        named(&seen.missing),
        first.remedy
    ))
}

/// Which pods have the sidecar of an earlier spec, and what to do; none where all
/// have that of the present one.
pub fn outdated(seen: &injection::Pods) -> Option<String> {
    let first = seen.outdated.first()?;
    let has = match seen.outdated.len() {
        1 => "has",
        _ => "have",
    };
    Some(format!(
        "{} {has} the sidecar of an earlier spec ({}). Rules and limits reach it while it runs, all else when the pod is made. Restart the pods: {}",
        pods(seen.outdated.len()),
        named(&seen.outdated),
        first.remedy
    ))
}

fn named(stale: &[Stale]) -> String {
    let names = stale.iter().take(NAMED).map(|stale| &*stale.pod);
    let names: Vec<_> = names.collect();
    let more = match stale.len() > NAMED {
        true => ", …",
        false => "",
    };
    format!("{}{more}", names.join(", "))
}

/// What to do where no pod has the sidecar, and none asks for it.
pub fn nobody(server: &str) -> String {
    format!(
        "No pod has the sidecar yet: write the annotation {SERVER_ANNOTATION}: {server} into the template of the pods, and give their namespace the label {INJECTION_LABEL}: enabled. Where that is so, `kubectl describe` of what makes the pods says why they are refused."
    )
}
