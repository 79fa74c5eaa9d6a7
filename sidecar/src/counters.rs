//! The counts of all limits of this replica: bounded, and kept when a bundle
//! changes.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use policy::{
    Caller,
    bundle::Limit,
    limit::{Nanos, Quota, TooEarly, bucket},
};

/// Counts that are kept at most. Where all of them are in use, calls under a
/// limit are refused: a doubt denies.
const MAX_COUNTS: usize = 65_536;
/// When no place is free, the caller is to come back after this time.
const FULL: TooEarly = TooEarly {
    retry_after: Duration::from_secs(60),
};

#[derive(Default)]
struct Counts {
    tats: HashMap<Vec<u8>, Nanos>,
    swept: Nanos,
}

/// Between two sweeps of a full table: a sweep looks at every count.
const SWEEP: Nanos = 1_000_000_000;

/// The counts.
pub struct Counters {
    start: Instant,
    counts: Mutex<Counts>,
    capacity: usize,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            counts: Mutex::default(),
            capacity: MAX_COUNTS,
        }
    }
}

impl Counters {
    /// Charges a call to all `limits`, or to none.
    ///
    /// # Errors
    /// The limit that is reached, and when to come back.
    pub fn charge<'l>(
        &self,
        limits: &[&'l Limit],
        caller: &Caller,
        tool: &str,
    ) -> Result<(), (&'l Limit, TooEarly)> {
        if limits.is_empty() {
            return Ok(());
        }
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(Nanos::MAX);
        self.charge_at(limits, caller, tool, now)
    }

    fn charge_at<'l>(
        &self,
        limits: &[&'l Limit],
        caller: &Caller,
        tool: &str,
        now: Nanos,
    ) -> Result<(), (&'l Limit, TooEarly)> {
        let mut table = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let Counts {
            tats: counts,
            swept,
        } = &mut *table;
        let mut charged = Vec::with_capacity(limits.len());
        let mut refused: Option<(&Limit, TooEarly)> = None;
        let mut new = 0;
        for limit in limits {
            let key = bucket(limit, caller, tool);
            let stored = counts.get(&key).copied();
            new += usize::from(stored.is_none());
            match Quota::of(limit).check(stored, now) {
                Ok(tat) => charged.push((key, tat)),
                // The longest wait is the one that helps.
                Err(early)
                    if refused.is_none_or(|(_, other)| other.retry_after < early.retry_after) =>
                {
                    refused = Some((limit, early))
                }
                Err(_) => {}
            }
        }
        if let Some(refused) = refused {
            return Err(refused);
        }
        if new > 0 && counts.len() + new > self.capacity {
            if now.saturating_sub(*swept) >= SWEEP {
                counts.retain(|_, tat| *tat > now); // The others allow a full burst, as if never used.
                *swept = now;
            }
            if counts.len() + new > self.capacity {
                return limits.first().map_or(Ok(()), |limit| Err((*limit, FULL)));
            }
        }
        counts.extend(charged);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use policy::Glob;

    use super::*;

    fn limit(name: &str, burst: u32) -> Limit {
        let (policy, tools) = ("p".into(), vec![Glob("*".into())]);
        Limit {
            policy,
            name: name.into(),
            tools,
            requests: burst,
            per_seconds: 1,
            burst,
            by: vec![crds::LimitKey::Tool],
        }
    }

    #[test]
    fn a_refused_call_charges_nothing() {
        let (counters, caller) = (Counters::default(), Caller::default());
        let (wide, narrow) = (limit("wide", 2), limit("narrow", 1));
        assert!(
            counters
                .charge_at(&[&wide, &narrow], &caller, "t", 0)
                .is_ok()
        );
        let refused = counters.charge_at(&[&wide, &narrow], &caller, "t", 0);
        assert!(matches!(refused, Err((limit, _)) if limit.name == "narrow"));
        assert!(
            counters.charge_at(&[&wide], &caller, "t", 0).is_ok(),
            "the refused call was charged"
        );
        assert!(counters.charge_at(&[&wide], &caller, "t", 0).is_err());
    }

    #[test]
    fn the_number_of_counts_is_bounded() {
        let counters = Counters {
            capacity: 10,
            ..Counters::default()
        };
        let (limit, caller) = (limit("l", 1), Caller::default());
        for tool in 0..10 {
            assert!(
                counters
                    .charge_at(&[&limit], &caller, &tool.to_string(), 0)
                    .is_ok()
            );
        }
        assert!(
            counters
                .charge_at(&[&limit], &caller, "one more", 0)
                .is_err()
        );
        assert!(
            counters
                .charge_at(&[&limit], &caller, "one more", 1_000_000_000)
                .is_ok(),
            "idle counts make room"
        );
    }
}
