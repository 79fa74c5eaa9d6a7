//! The status of an `McpToolPolicy`.

use crds::{ConditionStatus, ConditionType, McpToolPolicyStatus, Reason};

use super::{Stamp, Verdict, server::per_replica};

/// What one target makes of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Name of the `McpServer`.
    pub name: String,
    /// Whether it exists.
    pub exists: bool,
    /// What is wrong with the policy for it, with the field's path.
    pub faults: Vec<String>,
    /// Number of replicas that are asked for.
    pub replicas: i32,
}

/// The status of a policy that can be decoded.
pub fn status(targets: &[Target], limits: bool, stamp: Stamp<'_>) -> McpToolPolicyStatus {
    let accepted = accepted(targets);
    let enforced = match accepted.status {
        ConditionStatus::True => enforced(targets, limits),
        _ => accepted.clone(),
    };
    conditions(accepted, enforced, stamp)
}

/// The status of a policy that cannot be decoded.
pub fn undecodable(error: &str, stamp: Stamp<'_>) -> McpToolPolicyStatus {
    let message = format!("{error}. Until this is mended, the servers it targets deny every call.");
    let verdict = Verdict::no(Reason::PolicyInvalid, message);
    conditions(verdict.clone(), verdict, stamp)
}

fn conditions(accepted: Verdict, enforced: Verdict, stamp: Stamp<'_>) -> McpToolPolicyStatus {
    McpToolPolicyStatus {
        observed_generation: Some(stamp.generation),
        conditions: vec![
            stamp.condition(ConditionType::Accepted, accepted),
            stamp.condition(ConditionType::Enforced, enforced),
        ],
    }
}

fn names<'a>(targets: impl Iterator<Item = &'a Target>) -> String {
    let names: Vec<_> = targets.map(|target| target.name.as_str()).collect();
    names.join(", ")
}

fn accepted(targets: &[Target]) -> Verdict {
    let faults: Vec<_> = targets
        .iter()
        .flat_map(|target| {
            let fault = |fault: &String| format!("for McpServer {}: {fault}", target.name);
            target.faults.iter().map(fault)
        })
        .collect();
    if !faults.is_empty() {
        let message = format!(
            "{}. Until this is mended, these servers deny every call.",
            faults.join("; ")
        );
        return Verdict::no(Reason::PolicyInvalid, message);
    }
    let missing = names(targets.iter().filter(|target| !target.exists));
    if !missing.is_empty() {
        let message = format!(
            "spec.targetRefs: no McpServer of this name in this namespace: {missing}. Create it, or correct the name; other targets are served."
        );
        return Verdict::no(Reason::TargetNotFound, message);
    }
    let message = format!("Acts on McpServer {}.", names(targets.iter()));
    Verdict::yes(Reason::Accepted, message)
}

fn enforced(targets: &[Target], limits: bool) -> Verdict {
    let most = targets.iter().map(|target| target.replicas).max();
    match most {
        Some(replicas) if limits && replicas > 1 => per_replica(replicas),
        _ => Verdict::yes(Reason::Enforced, "All rules and limits hold as written."),
    }
}
