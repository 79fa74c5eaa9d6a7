//! The status of an `McpServer`.

use std::collections::{BTreeMap, BTreeSet};

use crds::{
    BundleStatus, ConditionStatus, ConditionType, InjectionStatus, McpServerStatus, Reason,
    RunningBundle, ToolStatus,
};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::ResourceExt;
use policy::report::{IssuerReport, IssuerState, Report, UpstreamState};

use super::{
    Stamp, Verdict, clip, injected,
    isolated::isolated,
    pod::{Trouble, is_live, is_ready, sidecar_runs, trouble},
    tail,
};
use crate::{board::Sights, inject::has_sidecar, injection, names::SERVER_LABEL};

const MAX_TOOLS: usize = 256;
const MAX_BUNDLES: usize = 16;
const MAX_WORDS: usize = 1024;

/// All that was seen of a server.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// Name of the server.
    pub name: &'a str,
    /// URL and audience, where the server can be decoded.
    pub endpoint: Option<(&'a str, &'a str)>,
    /// Why the server is refused, where it is.
    pub refused: Option<(Reason, String)>,
    /// Why something could not be written.
    pub apply_error: Option<String>,
    /// Number of policies that target it.
    pub policies: usize,
    /// Hash of the wanted bundle, once it is written.
    pub wanted: Option<&'a str>,
    /// Whether the bundle has limits.
    pub limits: bool,
    /// Whether the server asks for no token.
    pub anonymous: bool,
    /// The Deployment, where it is ours.
    pub deployment: Option<&'a Deployment>,
    /// Who has the sidecar and who lacks it, where the server is injected.
    pub injection: Option<&'a injection::Pods>,
    /// The pods.
    pub pods: Vec<&'a Pod>,
    /// What their sidecars say.
    pub sights: &'a Sights,
}

/// The status of a server.
pub fn status(seen: &Seen<'_>, stamp: Stamp<'_>) -> McpServerStatus {
    let accepted = accepted(seen);
    // Callers of a server that is refused are denied, whatever runs.
    let or_refused = |verdict: Verdict| match accepted.status {
        ConditionStatus::True => verdict,
        _ => accepted.clone(),
    };
    let conditions = vec![
        stamp.condition(ConditionType::Accepted, accepted.clone()),
        stamp.condition(ConditionType::Programmed, programmed(seen)),
        stamp.condition(ConditionType::Ready, or_refused(ready(seen))),
        stamp.condition(ConditionType::Enforced, or_refused(enforced(seen))),
        stamp.condition(ConditionType::AuthReady, or_refused(auth_ready(seen))),
        // Also of a server that is refused: it runs.
        stamp.condition(ConditionType::Isolated, isolated(seen)),
    ];
    let (tool_count, tools) = tools(seen);
    let deployed = seen.deployment.and_then(|it| it.status.as_ref());
    let deployed = deployed.map(|status| status.replicas.unwrap_or_default());
    let replicas = seen.injection.map(|pods| count(pods.injected)).or(deployed);
    McpServerStatus {
        observed_generation: Some(stamp.generation),
        url: seen.endpoint.map(|(url, _)| clip(url, 2048)),
        audience: seen.endpoint.map(|(_, audience)| clip(audience, 2048)),
        replicas,
        selector: Some(format!("{SERVER_LABEL}={}", seen.name)),
        tool_count: tool_count.map(count),
        policy_count: Some(count(seen.policies)),
        bundle: seen.wanted.map(|wanted| BundleStatus {
            wanted: wanted.to_owned(),
            running: running(seen),
        }),
        truncated: tool_count.is_some_and(|count| count > tools.len()),
        tools,
        injection: seen.injection.map(|pods| InjectionStatus {
            injected: count(pods.injected),
            missing: count(pods.missing.len()),
        }),
        conditions,
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

pub(super) fn pods(number: usize) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} pod{plural}")
}

fn accepted(seen: &Seen<'_>) -> Verdict {
    match &seen.refused {
        Some((reason, message)) => Verdict::no(*reason, message),
        None if seen.policies == 0 => Verdict::yes(
            Reason::Accepted,
            "No McpToolPolicy targets this server, so every call is denied.",
        ),
        None => Verdict::yes(Reason::Accepted, "Toolward acts on this server."),
    }
}

fn report<'a>(seen: &Seen<'a>, pod: &Pod) -> Option<&'a Report> {
    seen.sights.get(&pod.uid()?)?.report.as_ref()
}

/// Pods whose sidecar runs: those that decide on calls.
pub(super) fn deciding<'a>(seen: &Seen<'a>) -> Vec<&'a Pod> {
    let pods = seen.pods.iter().copied();
    pods.filter(|pod| sidecar_runs(pod)).collect()
}

fn scaled_to_zero(seen: &Seen<'_>) -> bool {
    let spec = seen.deployment.and_then(|d| d.spec.as_ref());
    spec.is_some_and(|spec| spec.replicas == Some(0))
}

fn programmed(seen: &Seen<'_>) -> Verdict {
    if let Some(error) = &seen.apply_error {
        let message = format!("{error}. Toolward tries again by itself.");
        return Verdict::no(Reason::ApplyFailed, message);
    }
    let Some(wanted) = seen.wanted else {
        return Verdict::no(Reason::Pending, "Nothing has been written for this server.");
    };
    let sidecars = deciding(seen);
    if sidecars.is_empty() {
        return if scaled_to_zero(seen) || seen.injection.is_some_and(|pods| pods.injected == 0) {
            Verdict::yes(
                Reason::InForce,
                "No sidecar runs; the next one starts with the wanted bundle.",
            )
        } else {
            Verdict::no(Reason::Pending, "No sidecar runs yet.")
        };
    }
    let reports: Vec<_> = sidecars.iter().map(|pod| report(seen, pod)).collect();
    let rejected = reports.iter().flatten().find_map(|report| {
        let rejected = report.bundle.rejected.as_ref();
        rejected.filter(|rejected| rejected.hash == wanted)
    });
    if let Some(rejected) = rejected {
        let error = tail(&rejected.error, MAX_WORDS);
        let message = format!(
            "A sidecar cannot read the wanted bundle and keeps the last good one: {error}. Operator and sidecar must be of one release."
        );
        return Verdict::no(Reason::BundleRejected, message);
    }
    let has = |report: &&Report| report.bundle.hash.as_deref() == Some(wanted);
    let having = reports.iter().flatten().copied().filter(has).count();
    if having == sidecars.len() {
        return Verdict::yes(
            Reason::InForce,
            format!("All sidecars ({having}) enforce the wanted bundle."),
        );
    }
    let silent = sidecars.iter().find_map(|pod| {
        let error = seen.sights.get(&pod.uid()?)?.error.as_ref()?;
        Some(format!("; the sidecar of pod {} {error}", pod.name_any()))
    });
    let message = format!(
        "{having} of {} sidecars enforce the wanted bundle{}.",
        sidecars.len(),
        silent.unwrap_or_default()
    );
    Verdict::no(Reason::Pending, message)
}

fn ready(seen: &Seen<'_>) -> Verdict {
    // Of an injected server, a pod without the sidecar serves nobody.
    let counts = |pod: &&Pod| is_live(pod) && (seen.injection.is_none() || has_sidecar(pod));
    let live: Vec<_> = seen.pods.iter().copied().filter(counts).collect();
    let failed = |pod: &Pod| {
        let report = report(seen, pod)?;
        (report.upstream.state == UpstreamState::Failed).then(|| Trouble {
            reason: Reason::ServerFailed,
            message: format!(
                "the server in pod {} does not answer: {}",
                pod.name_any(),
                tail(&report.upstream.message, MAX_WORDS)
            ),
        })
    };
    // The server of a pod that is ready has answered: a sidecar that says
    // otherwise said so before, and is being asked again.
    let is_old = |pod: &Pod| {
        report(seen, pod).is_some_and(|report| report.upstream.state == UpstreamState::Starting)
    };
    let outdated = seen.injection.map(outdated_names).unwrap_or_default();
    let is_outdated = |pod: &Pod| outdated.contains(pod.name_any().as_str());
    let serves =
        |pod: &Pod| is_ready(pod) && !is_old(pod) && !is_outdated(pod) && failed(pod).is_none();
    let serving = live.iter().filter(|pod| serves(pod)).count();
    let trouble = live
        .iter()
        .find_map(|pod| trouble(pod))
        .or_else(|| live.iter().find_map(|pod| certificate(seen, pod)))
        .or_else(|| live.iter().find_map(|pod| failed(pod)))
        .or_else(|| live.iter().find_map(|pod| unpublished(seen, pod)))
        .or_else(|| replica_failure(seen.deployment?));
    if serving > 0 {
        let trouble = trouble.map(|trouble| trouble.message);
        let more = trouble.or_else(|| waiting(seen, &live));
        let more = more.or_else(|| injected::missing(seen.injection?));
        let more = more.or_else(|| injected::outdated(seen.injection?));
        let more = more.map(|more| format!("; but {more}"));
        let message = format!(
            "{serving} of {} serving{}.",
            pods(live.len()),
            more.unwrap_or_default()
        );
        return Verdict::yes(Reason::Serving, message);
    }
    if scaled_to_zero(seen) {
        return Verdict::no(
            Reason::ScaledToZero,
            "The number of replicas is 0: scale up to serve.",
        );
    }
    if let Some(Trouble { reason, message }) = trouble {
        return Verdict::no(reason, capital(&message));
    }
    if live.iter().all(|pod| is_outdated(pod)) {
        // There are none, or there is nothing to wait for.
        if let Some(outdated) = seen.injection.and_then(injected::outdated) {
            return Verdict::no(Reason::SidecarOutdated, capital(&format!("{outdated}.")));
        }
        if let Some(missing) = seen.injection.and_then(injected::missing) {
            return Verdict::no(Reason::SidecarMissing, capital(&format!("{missing}.")));
        }
    }
    Verdict::no(Reason::Starting, starting(seen, &live))
}

fn outdated_names(pods: &injection::Pods) -> BTreeSet<&str> {
    pods.outdated.iter().map(|stale| &*stale.pod).collect()
}

fn starting(seen: &Seen<'_>, live: &[&Pod]) -> String {
    if live.is_empty() {
        return match seen.injection {
            Some(_) => injected::nobody(seen.name),
            None => "No pod exists yet.".to_owned(),
        };
    }
    let reports = || live.iter().filter_map(|pod| report(seen, pod));
    let said = reports().find_map(|report| {
        let message = tail(&report.upstream.message, MAX_WORDS);
        (!message.is_empty()).then(|| format!(" Its sidecar says: {message}."))
    });
    let waits = waiting(seen, live).map(|waits| format!(" Now {waits}."));
    let said = said.or_else(|| {
        let mut keys = reports().filter_map(|report| report.identity.as_ref());
        let waits = keys.any(|key| !key.published);
        waits.then(|| " The key by which it asserts who calls is being published.".to_owned())
    });
    format!(
        "Waiting for {} to get ready.{}",
        pods(live.len()),
        said.or(waits).unwrap_or_default()
    )
}

/// What pods that have not started cannot do without: neither pod nor Deployment
/// tells that a Secret is missing.
fn waiting(seen: &Seen<'_>, live: &[&Pod]) -> Option<String> {
    let waiting = live.iter().filter(|pod| !sidecar_runs(pod)).count();
    let spec = match seen.deployment {
        Some(deployment) => deployment.spec.as_ref()?.template.spec.as_ref()?,
        None => live.first()?.spec.as_ref()?,
    };
    // Of a pod of its users, only those of the sidecar are known.
    let volumes = spec.volumes.iter().flatten();
    let volumes =
        volumes.filter(|volume| seen.injection.is_none() || volume.name.starts_with("toolward-"));
    let projected = volumes.filter_map(|volume| volume.projected.as_ref()?.sources.as_ref());
    let secrets = projected
        .flatten()
        .filter_map(|source| source.secret.as_ref())
        .filter(|secret| secret.optional != Some(true));
    let secrets = secrets.map(|secret| {
        let keys = secret.items.iter().flatten().map(|item| item.key.as_str());
        let keys: Vec<_> = keys.collect();
        format!("Secret {} ({})", secret.name, keys.join(", "))
    });
    let secrets: Vec<_> = secrets.collect();
    (waiting > 0 && !secrets.is_empty()).then(|| {
        format!(
            "{} cannot start without {}",
            pods(waiting),
            secrets.join(", ")
        )
    })
}

/// Why the MCP port of a pod has no certificate, or only an older one.
fn certificate(seen: &Seen<'_>, pod: &Pod) -> Option<Trouble> {
    let tls = report(seen, pod)?.tls.as_ref()?;
    let error = tail(tls.error.as_ref()?, MAX_WORDS);
    let instead = match tls.certificate {
        Some(_) => " (the one before it stays in use)",
        None => "",
    };
    let pod = pod.name_any();
    Some(Trouble {
        reason: Reason::CertificateInvalid,
        message: format!(
            "the certificate of spec.tls cannot be used by pod {pod}{instead}: {error}"
        ),
    })
}

/// Why the server could not check who calls by the assertions of this pod.
fn unpublished(seen: &Seen<'_>, pod: &Pod) -> Option<Trouble> {
    let why = seen.sights.get(&pod.uid()?)?.key.as_ref()?;
    let why = tail(why, MAX_WORDS);
    Some(Trouble {
        reason: Reason::Starting,
        message: format!("the key of pod {} is not published: {why}", pod.name_any()),
    })
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}

/// Why the Deployment cannot create pods: quota, pod security, a webhook.
fn replica_failure(deployment: &Deployment) -> Option<Trouble> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let failure = conditions
        .iter()
        .find(|c| c.type_ == "ReplicaFailure" && c.status == "True")?;
    let message = failure.message.as_deref().unwrap_or("no reason is given");
    Some(Trouble {
        reason: Reason::PodsFailing,
        message: format!("pods cannot be created: {}", tail(message, MAX_WORDS)),
    })
}

fn enforced(seen: &Seen<'_>) -> Verdict {
    if let Some(missing) = seen.injection.and_then(injected::missing) {
        return Verdict::no(Reason::SidecarMissing, capital(&format!("{missing}.")));
    }
    if let Some(outdated) = seen.injection.and_then(injected::outdated) {
        return Verdict::no(Reason::SidecarOutdated, capital(&format!("{outdated}.")));
    }
    let injected = seen.injection.map(|pods| count(pods.injected));
    let deployed = seen.deployment.map(desired_replicas);
    let replicas = injected.or(deployed).unwrap_or_default();
    match seen.limits && replicas > 1 {
        true => per_replica(replicas),
        false => Verdict::yes(Reason::Enforced, "All rules and limits hold as written."),
    }
}

/// Whether the sidecars can check the tokens of all issuers.
fn auth_ready(seen: &Seen<'_>) -> Verdict {
    if seen.anonymous {
        return Verdict::yes(Reason::Anonymous, "No token is asked for.");
    }
    let reports = || {
        deciding(seen)
            .into_iter()
            .filter_map(|pod| report(seen, pod))
    };
    let issuers: Vec<_> = reports().flat_map(|report| &report.issuers).collect();
    let one = |state| issuers.iter().copied().find(|issuer| issuer.state == state);
    let told = |issuer: &IssuerReport| (clip(&issuer.name, 63), tail(&issuer.message, MAX_WORDS));
    if let Some(issuer) = one(IssuerState::Unavailable) {
        let (name, said) = told(issuer);
        let message = format!(
            "The keys of issuer {name} cannot be read, so its tokens are answered with 503. Tried: {said}"
        );
        return Verdict::no(Reason::IssuerUnavailable, message);
    }
    if let Some(issuer) = one(IssuerState::Stale) {
        let (name, said) = told(issuer);
        let message = format!(
            "The keys of issuer {name} cannot be read anew; the last ones are used until maxKeyAge. Tried: {said}"
        );
        return Verdict::no(Reason::IssuerUnavailable, message);
    }
    let mut late = one(IssuerState::Pending).map(|issuer| {
        let (name, _) = told(issuer);
        format!("The keys of issuer {name} are being read.")
    });
    if reports().next().is_none() {
        late = Some("No sidecar has said yet whether it has the keys.".to_owned());
    }
    match late {
        Some(message) => Verdict::new(ConditionStatus::Unknown, Reason::Pending, message),
        None => Verdict::yes(
            Reason::KeysAvailable,
            "Tokens of all issuers can be checked.",
        ),
    }
}

/// Limits of a server with several replicas.
pub(super) fn per_replica(replicas: i32) -> Verdict {
    Verdict::no(
        Reason::PerReplica,
        format!(
            "Each of {replicas} replicas counts calls for itself, so a caller may get up to {replicas} times what a limit says. Set deployment.replicas to 1 for exact limits."
        ),
    )
}

/// How many pods a Deployment asks for.
pub fn desired_replicas(deployment: &Deployment) -> i32 {
    let spec = deployment.spec.as_ref();
    spec.and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Bundles in force, by hash, with the number of pods that have them.
fn running(seen: &Seen<'_>) -> Vec<RunningBundle> {
    let mut bundles = BTreeMap::<&str, i32>::new();
    for pod in deciding(seen) {
        let hash = report(seen, pod).and_then(|report| report.bundle.hash.as_deref());
        if let Some(hash) = hash.filter(|hash| is_hash(hash)) {
            *bundles.entry(hash).or_default() += 1;
        }
    }
    let running = |(hash, replicas): (&str, i32)| RunningBundle {
        hash: hash.to_owned(),
        replicas,
    };
    bundles.into_iter().map(running).take(MAX_BUNDLES).collect()
}

/// Pods are untrusted: what they call a hash may be anything.
fn is_hash(text: &str) -> bool {
    let digits = text.strip_prefix("sha256:");
    digits.is_some_and(|d| d.len() == 64 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The tools of the youngest pod that tells any: in a rollout, the new ones.
fn tools(seen: &Seen<'_>) -> (Option<usize>, Vec<ToolStatus>) {
    let told = deciding(seen).into_iter().filter_map(|pod| {
        let tools = report(seen, pod)?.tools.as_ref()?;
        Some(((pod.creation_timestamp(), pod.name_any()), tools))
    });
    let Some((_, tools)) = told.max_by(|(a, _), (b, _)| a.cmp(b)) else {
        return (None, Vec::new());
    };
    let mut list: Vec<_> = tools
        .iter()
        .map(|tool| ToolStatus {
            name: clip(&tool.name, 256),
            digest: clip(&tool.digest, 80),
        })
        .collect();
    list.sort_by(|a, b| a.name.cmp(&b.name));
    list.truncate(MAX_TOOLS);
    (Some(tools.len()), list)
}
