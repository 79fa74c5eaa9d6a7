//! What is to be done next about the webhook's certificates, by a pure function
//! of what the API server has.
//!
//! A new pair comes in four steps, each of which any replica may take, or take
//! up after another one:
//! 1. [`Step::Make`]: the pair is written down as the next one. Nobody uses it.
//! 2. [`Step::Trust`]: its CA joins the others in each `caBundle`.
//! 3. [`Step::Promote`], a while later, when every API server has learnt that:
//!    the pair becomes the current one, and replicas change to it.
//! 4. [`Step::Trust`], when no replica can still use the pair before: the CAs
//!    that no pair needs leave.
//!
//! Invariants:
//! - A CA leaves no `caBundle` while a replica that is ready may use a pair of it.
//!   What a replica uses it has found to be current in the last
//!   [`Timing::fence`], else it is not ready; a CA leaves when its pair has not
//!   been current for [`Timing::leave`], which is longer.
//! - Waiting is measured by a clock that nobody sets; the other one, which says
//!   what is good and what is due, makes a step come early and never wrongly.

use std::time::Duration;

use super::pair::{DAY, LIFETIME, Life, Seconds};

/// What is left of a pair's time when the next one is made.
const RENEW: Seconds = 30 * DAY;
/// The most CAs in a `caBundle`: pairs are not made faster than they leave, unless
/// there is none that is good.
pub const MAX_CAS: usize = 16;

/// How long is waited.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// From when each `caBundle` has a CA until its pair is used: API servers
    /// watch their configurations and need a moment.
    pub settle: Duration,
    /// For how long a replica is ready with a pair that it cannot find to be the
    /// current one.
    pub fence: Duration,
    /// From when a pair is not current any more until its CA leaves.
    pub leave: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            settle: Duration::from_secs(10),
            fence: Duration::from_secs(10 * 60),
            leave: Duration::from_secs(30 * 60),
        }
    }
}

/// Where pairs come from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// They are made here.
    Own,
    /// From a Secret that others write, where there is one that can be used.
    Given(Option<&'a Life>),
}

/// What the API server has, and for how long this process has seen it so.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// The pair in use.
    pub current: Option<&'a Life>,
    /// The one to come.
    pub next: Option<&'a Life>,
    /// Where pairs come from.
    pub source: Source<'a>,
    /// The CAs in the `caBundle` of each webhook.
    pub bundles: &'a [Vec<String>],
    /// For how long each `caBundle` has had the CA of the next pair.
    pub trusted_for: Duration,
    /// For how long the current pair has been current, and none was to come.
    pub still_for: Duration,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Wait,
    /// Write down another pair as the next one.
    Make,
    /// Let each `caBundle` be this.
    Trust(Vec<String>),
    /// Let the next pair be the current one.
    Promote,
}

/// Whether API servers accept a pair by what they are told.
pub fn trusts(bundles: &[Vec<String>], life: &Life) -> bool {
    let has_all = |bundle: &Vec<String>| life.cas.iter().all(|ca| bundle.contains(ca));
    !bundles.is_empty() && bundles.iter().all(has_all)
}

/// What is to be done next.
pub fn next(state: &State<'_>, now: Seconds, timing: Timing) -> Step {
    let newest = state.next.or(state.current);
    let known = union(state.bundles.iter().flatten());
    let is_full = known.len() >= MAX_CAS && newest.is_some_and(|life| life.is_good(now));
    if wants_another(newest, state.source, now) && !is_full {
        return Step::Make;
    }
    let wanted = [state.current, state.next].into_iter().flatten();
    let wanted = union(wanted.flat_map(|life| &life.cas));
    let may_leave =
        state.current.is_some() && state.next.is_none() && state.still_for >= timing.leave;
    let target = if may_leave {
        wanted
    } else {
        bounded(union(known.iter().chain(&wanted)), &wanted)
    };
    if state.bundles.iter().any(|bundle| *bundle != target) {
        return Step::Trust(target);
    }
    match state.next {
        Some(next) if trusts(state.bundles, next) && state.trusted_for >= timing.settle => {
            Step::Promote
        }
        _ => Step::Wait,
    }
}

fn wants_another(newest: Option<&Life>, source: Source<'_>, now: Seconds) -> bool {
    match (source, newest) {
        (Source::Own, newest) => newest.is_none_or(|life| is_due(life, now)),
        (Source::Given(None), _) => false,
        (Source::Given(Some(given)), newest) => {
            given.is_good(now) && newest.is_none_or(|life| life.id != given.id)
        }
    }
}

/// Soon over, not good yet, or good for longer than pairs are made: by a clock
/// that was ahead.
fn is_due(life: &Life, now: Seconds) -> bool {
    !life.is_good(now)
        || !life.is_good(now.saturating_add(RENEW))
        || life.until > now.saturating_add(LIFETIME + DAY)
}

fn union<'a>(cas: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut union = Vec::new();
    for ca in cas {
        if !union.contains(ca) {
            union.push(ca.clone());
        }
    }
    union
}

/// Without the oldest ones that no pair needs, where there are too many.
fn bounded(mut cas: Vec<String>, wanted: &[String]) -> Vec<String> {
    let mut over = cas.len().saturating_sub(MAX_CAS);
    cas.retain(|ca| {
        let leaves = over > 0 && !wanted.contains(ca);
        over -= usize::from(leaves);
        !leaves
    });
    cas
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Seconds = 1_800_000_000;
    const LONG: Duration = Duration::from_secs(86_400);
    const ZERO: Duration = Duration::ZERO;

    fn life(name: &str, until: Seconds) -> Life {
        Life {
            id: name.into(),
            cas: vec![format!("ca of {name}")],
            from: 0,
            until,
        }
    }

    fn good(name: &str) -> Life {
        life(name, NOW + LIFETIME)
    }

    fn bundle(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| format!("ca of {name}")).collect()
    }

    fn state<'a>(
        current: Option<&'a Life>,
        to_come: Option<&'a Life>,
        bundles: &'a [Vec<String>],
    ) -> State<'a> {
        State {
            current,
            next: to_come,
            source: Source::Own,
            bundles,
            trusted_for: ZERO,
            still_for: ZERO,
        }
    }

    fn step(state: State<'_>) -> Step {
        next(&state, NOW, Timing::default())
    }

    #[test]
    fn a_pair_is_made_trusted_promoted_and_the_old_ca_leaves() {
        let (a, b) = (good("a"), good("b"));
        let both = [bundle(&["a"]), bundle(&[])];
        assert_eq!(step(state(None, None, &[bundle(&[])])), Step::Make);
        let old = life("a", NOW + RENEW - 1);
        assert_eq!(step(state(Some(&old), None, &[bundle(&["a"])])), Step::Make);
        let trust = Step::Trust(bundle(&["a", "b"]));
        assert_eq!(step(state(Some(&a), Some(&b), &both)), trust);

        let both = [bundle(&["a", "b"]), bundle(&["a", "b"])];
        let trusted = state(Some(&a), Some(&b), &both);
        assert_eq!(step(trusted), Step::Wait);
        let settled = State {
            trusted_for: LONG,
            ..trusted
        };
        assert_eq!(step(settled), Step::Promote);

        let promoted = state(Some(&b), None, &both);
        assert_eq!(step(promoted), Step::Wait);
        let still = State {
            still_for: LONG,
            ..promoted
        };
        assert_eq!(step(still), Step::Trust(bundle(&["b"])));
        let only = [bundle(&["b"]), bundle(&["b"])];
        let done = State {
            bundles: &only,
            ..still
        };
        assert_eq!(step(done), Step::Wait);
    }

    #[test]
    fn a_pair_that_the_clock_has_left_behind_is_replaced() {
        for (until, from) in [
            (NOW - 1, 0),
            (NOW + RENEW - 1, 0),
            (NOW + LIFETIME, NOW + 1),
            (NOW + LIFETIME + DAY + 1, 0),
            (u64::MAX, 0),
        ] {
            let mut old = life("a", until);
            old.from = from;
            let bundles = [bundle(&["a"])];
            assert_eq!(step(state(Some(&old), None, &bundles)), Step::Make);
            // Nor is it waited for one that never was used.
            assert_eq!(step(state(None, Some(&old), &bundles)), Step::Make);
        }
    }

    #[test]
    fn without_a_current_pair_nothing_leaves() {
        let b = good("b");
        let bundles = [bundle(&["a", "b"])];
        let lost = State {
            trusted_for: LONG,
            still_for: LONG,
            ..state(None, Some(&b), &bundles)
        };
        assert_eq!(step(lost), Step::Promote);
        let reset = [bundle(&["a"]), bundle(&[])];
        let lost = State {
            bundles: &reset,
            ..lost
        };
        assert_eq!(step(lost), Step::Trust(bundle(&["a", "b"])));
    }

    #[test]
    fn a_webhook_that_is_not_there_trusts_nobody() {
        let a = good("a");
        let settled = State {
            trusted_for: LONG,
            ..state(None, Some(&a), &[])
        };
        assert_eq!(step(settled), Step::Wait);
    }

    #[test]
    fn a_full_bundle_waits_unless_nothing_is_good() {
        let names: Vec<_> = (0..MAX_CAS).map(|i| i.to_string()).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let full = [bundle(&names)];
        let due = life("15", NOW + 1);
        assert_eq!(step(state(Some(&due), None, &full)), Step::Wait);
        let over = life("15", NOW - 1);
        assert_eq!(step(state(Some(&over), None, &full)), Step::Make);
        let b = good("b");
        let Step::Trust(cas) = step(state(Some(&over), Some(&b), &full)) else {
            panic!("its CA does not come in");
        };
        assert_eq!(cas.len(), MAX_CAS);
        assert!(!cas.contains(&"ca of 0".to_owned()));
        assert!(cas.contains(&"ca of 15".to_owned()) && cas.contains(&"ca of b".to_owned()));
    }

    #[test]
    fn a_pair_of_others_is_taken_when_it_changes_and_is_good() {
        let (a, b, over) = (good("a"), good("b"), life("c", NOW - 1));
        let bundles = [bundle(&["a"])];
        for (given, expected) in [
            (None, Step::Wait),
            (Some(&a), Step::Wait),
            (Some(&b), Step::Make),
            (Some(&over), Step::Wait),
        ] {
            let state = State {
                source: Source::Given(given),
                ..state(Some(&a), None, &bundles)
            };
            assert_eq!(step(state), expected, "{given:?}");
        }
        // Its time is the business of others.
        let old = life("a", NOW + 1);
        let state = State {
            source: Source::Given(Some(&old)),
            ..state(Some(&old), None, &bundles)
        };
        assert_eq!(step(state), Step::Wait);
    }
}
