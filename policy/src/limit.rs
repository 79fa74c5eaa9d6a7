//! Rate limits by the generic cell rate algorithm (GCRA, ITU-T I.371): one
//! number per count, the theoretical arrival time (TAT) of the next call.

use std::time::Duration;

use crate::{Caller, bundle::Limit};

/// Nanoseconds on a clock that never goes back; zero is the caller's choice.
pub type Nanos = u64;

/// A call that comes too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooEarly {
    /// After this time the call would be let through.
    pub retry_after: Duration,
}

/// The arithmetic of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Time that one call costs.
    interval: Nanos,
    /// How far ahead of the clock the TAT may be.
    tolerance: Nanos,
}

impl Quota {
    /// The quota of a limit. `requests` of 0 cannot come from a valid policy
    /// and lets one call through in a span.
    pub fn of(limit: &Limit) -> Self {
        let span = Duration::from_secs(limit.per_seconds).as_nanos();
        let interval = span / u128::from(limit.requests.max(1));
        let tolerance = interval * u128::from(limit.burst.max(1) - 1);
        let clamp = |nanos: u128| Nanos::try_from(nanos).unwrap_or(Nanos::MAX / 4);
        Self {
            interval: clamp(interval).max(1),
            tolerance: clamp(tolerance),
        }
    }

    /// Whether a call may pass at `now`, given the TAT that was stored (none:
    /// no call yet). Returns the TAT to store.
    ///
    /// # Errors
    /// The call comes too early; nothing is to be stored.
    pub fn check(self, tat: Option<Nanos>, now: Nanos) -> Result<Nanos, TooEarly> {
        // A TAT that this quota could not have made comes from the limit as it was
        // before an edit: it counts as a full burst.
        let latest = now
            .saturating_add(self.tolerance)
            .saturating_add(self.interval);
        let tat = tat.unwrap_or(now).clamp(now, latest);
        let ahead = tat - now;
        if ahead > self.tolerance {
            return Err(TooEarly {
                retry_after: Duration::from_nanos(ahead - self.tolerance),
            });
        }
        Ok(tat.saturating_add(self.interval))
    }
}

/// The name of the count that a call belongs to. Parts are prefixed by their
/// length, so that no caller can choose a name that runs into another's.
pub fn bucket(limit: &Limit, caller: &Caller, tool: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(192);
    let mut part = |text: Option<&str>| {
        let text = text.unwrap_or_default();
        key.extend_from_slice(&text.len().to_ne_bytes());
        key.extend_from_slice(text.as_bytes());
    };
    part(Some(&limit.policy));
    part(Some(&limit.name));
    for by in &limit.by {
        match by {
            crds::LimitKey::User => {
                part(caller.issuer.as_deref());
                part(caller.user.as_deref());
            }
            crds::LimitKey::Agent => {
                part(caller.issuer.as_deref());
                part(caller.agent.as_deref());
            }
            crds::LimitKey::Issuer => part(caller.issuer.as_deref()),
            crds::LimitKey::Tool => part(Some(tool)),
        }
    }
    key
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limit(requests: u32, per_seconds: u64, burst: u32) -> Limit {
        let (policy, name) = ("p".into(), "l".into());
        Limit {
            policy,
            name,
            tools: vec![],
            requests,
            per_seconds,
            burst,
            by: vec![],
        }
    }

    #[test]
    fn a_burst_passes_and_the_next_call_learns_when() {
        let quota = Quota::of(&limit(60, 60, 3));
        let mut tat = None;
        for _ in 0..3 {
            tat = Some(quota.check(tat, 1_000).unwrap());
        }
        let early = quota.check(tat, 1_000).unwrap_err();
        assert_eq!(early.retry_after, Duration::from_secs(1));
        assert!(quota.check(tat, 1_000 + 1_000_000_000).is_ok());
    }

    #[test]
    fn an_edited_limit_is_in_force_at_once() {
        let before = Quota::of(&limit(1, 86_400, 1)).check(None, 0).unwrap();
        let early = Quota::of(&limit(60, 60, 1))
            .check(Some(before), 0)
            .unwrap_err();
        assert_eq!(early.retry_after, Duration::from_secs(1));
    }

    #[test]
    fn callers_cannot_choose_a_name_that_is_another_count() {
        let mut limit = limit(1, 1, 1);
        limit.by = vec![crds::LimitKey::User, crds::LimitKey::Agent];
        let caller = |user: &str, agent: &str| Caller {
            issuer: Some("i".into()),
            user: Some(user.into()),
            agent: Some(agent.into()),
            ..Caller::default()
        };
        assert_ne!(
            bucket(&limit, &caller("a1:b", "c"), "t"),
            bucket(&limit, &caller("a", "b1:c"), "t")
        );
    }

    proptest! {
        /// In any time span, no more than burst + rate × span pass; and whoever
        /// waits as told passes.
        #[test]
        fn never_more_than_the_rate(requests in 1u32..1000, per in 1u64..3600, burst in 1u32..1000,
                                    gaps in proptest::collection::vec(0u64..10_000_000_000, 1..200)) {
            let quota = Quota::of(&limit(requests, per, burst.min(requests)));
            let (mut now, mut tat, mut passed) = (0u64, None, 0u128);
            for gap in gaps {
                now += gap;
                match quota.check(tat, now) {
                    Ok(next) => { tat = Some(next); passed += 1; }
                    Err(early) => {
                        let then = now + u64::try_from(early.retry_after.as_nanos()).unwrap();
                        prop_assert!(quota.check(tat, then).is_ok());
                        prop_assert!(quota.check(tat, then - 1).is_err());
                    }
                }
                let interval = u128::from(per) * 1_000_000_000 / u128::from(requests);
                let most = u128::from(burst.min(requests)) + u128::from(now) / interval.max(1);
                prop_assert!(passed <= most, "{passed} passed, at most {most}");
            }
        }
    }
}
