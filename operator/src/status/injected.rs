//! What the status says of pods that Toolward did not make.

use super::server::pods;
use crate::{
    injection,
    names::{INJECTION_LABEL, SERVER_ANNOTATION},
};

/// So many pods are named.
const NAMED: usize = 3;

/// Which pods ask for the sidecar and do not have it, and what to do; none where
/// all have it.
pub fn missing(seen: &injection::Pods) -> Option<String> {
    let first = seen.missing.first()?;
    let names = seen.missing.iter().take(NAMED).map(|bare| &*bare.pod);
    let names: Vec<_> = names.collect();
    let more = match seen.missing.len() > NAMED {
        true => ", …",
        false => "",
    };
    let number = seen.missing.len();
    let ask = match number {
        1 => "asks for the sidecar and does not have it",
        _ => "ask for the sidecar and do not have it",
    };
    Some(format!(
        "{} {ask} ({}{more}). The webhook sees pods when they are made, in namespaces with the label {INJECTION_LABEL}: enabled. Restart the pods: {}",
        pods(number),
        names.join(", "),
        first.remedy
    ))
}

/// What to do where no pod has the sidecar, and none asks for it.
pub fn nobody(server: &str) -> String {
    format!(
        "No pod has the sidecar yet: write the annotation {SERVER_ANNOTATION}: {server} into the template of the pods, and give their namespace the label {INJECTION_LABEL}: enabled. Where that is so, `kubectl describe` of what makes the pods says why they are refused."
    )
}
