//! Events: what changed for an object, told once.

use std::time::Duration;

use crds::{Condition, ConditionStatus, ConditionType, McpServer, Reason};
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::Value;

use crate::{desired::Owner, entry::Kind, error::is_ending, status::find};

/// The API server refuses a longer note.
const MAX_NOTE: usize = 1000;
/// Longer, and an Event is written again, so often.
const TIMEOUT: Duration = Duration::from_secs(10);
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// What a change of status tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Whether somebody has to do something.
    pub warning: bool,
    /// Why, as one word.
    pub reason: Reason,
    /// Why, for a person.
    pub note: String,
    /// Which condition it speaks of.
    pub about: ConditionType,
}

/// What is new in the conditions since the status that was written before.
pub fn news(before: &Value, conditions: &[Condition], new_bundle: bool) -> Vec<News> {
    let refused = conditions
        .iter()
        .find(|c| c.type_ == ConditionType::Accepted && c.status != ConditionStatus::True);
    let new = |condition: &&Condition| {
        let old = find(before, condition.type_);
        let text = |field: &str| old.and_then(|old| old[field].as_str());
        let changed = text("status") != Some(&format!("{:?}", condition.status))
            || text("reason") != Some(&condition.reason.to_string());
        let told_already = condition.type_ != ConditionType::Accepted
            && refused.is_some_and(|refused| refused.reason == condition.reason);
        let again = new_bundle && condition.reason == Reason::InForce;
        (changed || again) && !told_already && is_worth_telling(condition.reason)
    };
    let news = |condition: &Condition| News {
        warning: condition.status != ConditionStatus::True,
        reason: condition.reason,
        note: condition.message.clone(),
        about: condition.type_,
    };
    let mut told: Vec<_> = conditions.iter().filter(new).map(news).collect();
    told.dedup_by_key(|news| news.reason);
    told
}

/// Steps on the way are no news.
fn is_worth_telling(reason: Reason) -> bool {
    match reason {
        Reason::Pending
        | Reason::Starting
        | Reason::Enforced
        | Reason::ScaledToZero
        | Reason::KeysAvailable
        | Reason::Anonymous
        | Reason::LoopbackOnly
        | Reason::NetworkPolicyEnforced => false,
        Reason::Accepted
        | Reason::Undecodable
        | Reason::NameTaken
        | Reason::AnonymousNotAllowed
        | Reason::PolicyInvalid
        | Reason::ServerInvalid
        | Reason::TargetNotFound
        | Reason::InForce
        | Reason::BundleRejected
        | Reason::Serving
        | Reason::ServerFailed
        | Reason::PodsFailing
        | Reason::CertificateInvalid
        | Reason::ApplyFailed
        | Reason::IssuerUnavailable
        | Reason::IssuerNotAllowed
        | Reason::PerReplica
        | Reason::ServerPortReachable
        | Reason::Injected
        | Reason::SidecarMissing
        | Reason::SidecarOutdated => true,
    }
}

/// Tells news as Events.
#[derive(Clone)]
pub struct Events(Recorder);

impl Events {
    /// Events of the operator.
    pub fn new(client: Client) -> Self {
        Self(Recorder::new(client, Reporter::from("toolward-operator")))
    }

    /// Tells on a server that its sidecar was put into the pods of somebody.
    pub async fn injected(&self, server: &Owner, into: ObjectReference, note: String) {
        let reference = ObjectReference {
            api_version: Some(<McpServer as kube::Resource>::api_version(&()).into_owned()),
            kind: Some(<McpServer as kube::Resource>::kind(&()).into_owned()),
            name: Some(server.name.clone()),
            namespace: Some(server.namespace.clone()),
            uid: Some(server.uid.clone()),
            ..ObjectReference::default()
        };
        // The library counts Events of one action, whatever their notes: another note,
        // with another warning, is another one.
        let told = policy::bundle::hash(note.as_bytes());
        let event = Event {
            type_: EventType::Normal,
            reason: Reason::Injected.to_string(),
            note: Some(short(note)),
            action: format!("Inject {told}"),
            secondary: Some(into),
        };
        self.write(&event, &reference).await;
    }

    async fn write(&self, event: &Event, about: &ObjectReference) {
        let reason = &event.reason;
        for attempt in 1..=ATTEMPTS {
            if attempt > 1 {
                tokio::time::sleep(PAUSE).await;
            }
            match tokio::time::timeout(TIMEOUT, self.0.publish(event, about)).await {
                Ok(Ok(())) => return,
                Ok(Err(kube::Error::Api(status))) if is_ending(&status) => {
                    tracing::debug!(reason, "the namespace ends");
                    return;
                }
                Ok(Err(kube::Error::Api(status))) if status.code < 500 && status.code != 429 => {
                    tracing::warn!(error = %status, reason, "an Event was refused");
                    return;
                }
                Ok(Err(error)) => tracing::warn!(%error, reason, attempt, "cannot write an Event"),
                Err(_) => tracing::warn!(reason, attempt, "an Event took too long"),
            }
        }
    }

    /// Publishes news of an object. An Event that cannot be written is logged:
    /// the status says the same.
    pub async fn publish<T: Kind>(&self, meta: &ObjectMeta, news: Vec<News>) {
        let reference = ObjectReference {
            api_version: Some(T::api_version(&()).into_owned()),
            kind: Some(T::kind(&()).into_owned()),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            ..ObjectReference::default()
        };
        for News {
            warning,
            reason,
            note,
            about,
        } in news
        {
            let event = Event {
                type_: if warning {
                    EventType::Warning
                } else {
                    EventType::Normal
                },
                reason: reason.to_string(),
                note: Some(short(note)),
                action: format!("{about:?}"),
                secondary: None,
            };
            self.write(&event, &reference).await;
        }
    }
}

fn short(mut note: String) -> String {
    note.truncate(note.floor_char_boundary(MAX_NOTE));
    note
}

#[cfg(test)]
mod tests;
