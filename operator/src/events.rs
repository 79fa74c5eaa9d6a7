//! Events: what changed for an object, told once.

use crds::{Condition, ConditionStatus, ConditionType, Reason};
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::Value;

use crate::{entry::Kind, status::find};

/// The API server refuses a longer note.
const MAX_NOTE: usize = 1000;

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
    conditions.iter().filter(new).map(news).collect()
}

/// Steps on the way are no news.
fn is_worth_telling(reason: Reason) -> bool {
    match reason {
        Reason::Pending
        | Reason::Starting
        | Reason::Enforced
        | Reason::ScaledToZero
        | Reason::KeysAvailable
        | Reason::Anonymous => false,
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
        | Reason::PerReplica => true,
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
            mut note,
            about,
        } in news
        {
            note.truncate(note.floor_char_boundary(MAX_NOTE));
            let event = Event {
                type_: if warning {
                    EventType::Warning
                } else {
                    EventType::Normal
                },
                reason: reason.to_string(),
                note: Some(note),
                action: format!("{about:?}"),
                secondary: None,
            };
            if let Err(error) = self.0.publish(&event, &reference).await {
                tracing::warn!(%error, reason = %reason, "cannot write an Event");
            }
        }
    }
}

#[cfg(test)]
mod tests;
