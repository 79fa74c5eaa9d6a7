//! What the operator says of an object, by pure functions of what it saw.
//!
//! Invariants: a condition's `lastTransitionTime` only moves with its status;
//! what was written before is read leniently, so that a version of Toolward
//! that knows other reasons is no obstacle.

mod injected;
mod isolated;
pub mod pod;
pub mod policy;
pub mod server;

use crds::{Condition, ConditionStatus, ConditionType, Reason};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

/// The longest message of a condition.
const MAX_MESSAGE: usize = 4096;

/// Whether a condition holds, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, as one word.
    pub reason: Reason,
    /// Why, for a person, and what to do.
    pub message: String,
}

impl Verdict {
    fn yes(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(ConditionStatus::True, reason, message)
    }

    fn no(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(ConditionStatus::False, reason, message)
    }

    fn new(status: ConditionStatus, reason: Reason, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            status,
            reason,
            message,
        }
    }
}

/// Makes conditions: knows the ones before, the generation and the time.
#[derive(Clone, Copy, Debug)]
pub struct Stamp<'a> {
    /// The status as it was written last.
    pub before: &'a Value,
    /// Generation of the object that is spoken of.
    pub generation: i64,
    /// The time.
    pub now: Timestamp,
}

impl Stamp<'_> {
    fn condition(&self, type_: ConditionType, verdict: Verdict) -> Condition {
        let Verdict {
            status,
            reason,
            message,
        } = verdict;
        let before = find(self.before, type_);
        let same = before.is_some_and(|before| before["status"] == format!("{status:?}"));
        let since = before.filter(|_| same).and_then(|before| {
            let time = before["lastTransitionTime"].as_str()?;
            time.parse().ok()
        });
        Condition {
            type_,
            status,
            reason,
            message: clip(&message, MAX_MESSAGE),
            last_transition_time: Time(since.unwrap_or_else(|| seconds(self.now))),
            observed_generation: self.generation,
        }
    }
}

/// A condition of a status as written.
pub fn find(status: &Value, type_: ConditionType) -> Option<&Value> {
    let type_ = format!("{type_:?}");
    let conditions = status["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == type_)
}

fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// The start of a text that is too long; control characters are left out.
pub fn clip(text: &str, max: usize) -> String {
    let visible = |c: &char| !c.is_control() || *c == '\n' || *c == '\t';
    let mut clipped: String = text.trim().chars().filter(visible).take(max).collect();
    if text.trim().chars().filter(visible).nth(max).is_some() {
        clipped.pop();
        clipped.push('…');
    }
    clipped
}

/// The end of a text that is too long: where a server says why it failed.
fn tail(text: &str, max: usize) -> String {
    let text = text.trim_end();
    let skip = text.chars().count().saturating_sub(max);
    let text: String = text.chars().skip(skip).collect();
    clip(&text, max)
}

#[cfg(test)]
mod tests;
