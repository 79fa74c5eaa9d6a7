#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const TIMES: Times = Times {
    lease: Duration::from_secs(15),
    renew: Duration::from_secs(10),
    retry: Duration::from_secs(2),
};

fn candidate(me: &str) -> Candidate {
    Candidate {
        me: me.to_owned(),
        times: TIMES,
        seen: None,
    }
}

/// What the API server has: the lease, and how often it was written.
#[derive(Default)]
struct Store {
    lease: Option<Lease>,
    writes: u64,
}

impl Store {
    /// Optimistic concurrency, as the API server has it.
    fn write(&mut self, mut lease: Lease) -> bool {
        let version = |lease: &Lease| lease.metadata.resource_version.clone();
        if self.lease.as_ref().and_then(version) != version(&lease) {
            return false;
        }
        self.writes += 1;
        lease.metadata.resource_version = Some(self.writes.to_string());
        self.lease = Some(lease);
        true
    }

    fn holder(&self) -> Option<&str> {
        let spec = self.lease.as_ref()?.spec.as_ref()?;
        spec.holder_identity.as_deref()
    }
}

/// Holds where a step is to write.
fn writes(candidate: &mut Candidate, store: &mut Store, now: Instant) -> bool {
    match candidate.step(store.lease.clone(), now, Timestamp::UNIX_EPOCH) {
        Step::Write(lease) => store.write(*lease),
        Step::Wait(_) => false,
    }
}

#[test]
fn the_first_has_it_until_it_no_longer_renews() {
    let (mut a, mut b) = (candidate("a"), candidate("b"));
    let (mut store, start) = (Store::default(), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    assert!(writes(&mut a, &mut store, at(0)));
    // Since when the other knows of it counts, not since when it is so.
    assert!(!writes(&mut b, &mut store, at(10)));
    assert!(!writes(&mut b, &mut store, at(24)));
    assert!(writes(&mut a, &mut store, at(24)));
    assert!(!writes(&mut b, &mut store, at(26)));
    assert!(!writes(&mut b, &mut store, at(40)));
    assert!(writes(&mut b, &mut store, at(41)));
    assert_eq!(store.holder(), Some("b"));
    let spec = store.lease.clone().unwrap().spec.unwrap();
    assert_eq!(spec.lease_transitions, Some(2));
    // It comes back, and waits.
    assert!(!writes(&mut a, &mut store, at(60)));
    assert!(!writes(&mut a, &mut store, at(74)));
    assert!(writes(&mut a, &mut store, at(75)));
}

#[test]
fn a_lease_that_is_given_up_is_taken_at_once_and_one_that_is_deleted_is_not() {
    let (mut a, mut b) = (candidate("a"), candidate("b"));
    let (mut store, start) = (Store::default(), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    assert!(writes(&mut a, &mut store, at(0)));
    assert!(!writes(&mut b, &mut store, at(0)));
    let held = store.lease.take();
    assert!(!writes(&mut b, &mut store, at(14)), "it may still act");
    assert!(writes(&mut b, &mut store, at(15)));
    store.lease = held;
    let spec = store.lease.as_mut().unwrap().spec.as_mut().unwrap();
    spec.holder_identity = None;
    assert!(writes(&mut b, &mut store, at(16)));
    assert_eq!(store.holder(), Some("b"));
}

#[test]
fn what_others_added_to_the_lease_stays() {
    let mut a = candidate("a");
    let mut store = Store::default();
    assert!(writes(&mut a, &mut store, Instant::now()));
    let spec = store.lease.as_mut().unwrap().spec.as_mut().unwrap();
    spec.preferred_holder = Some("c".to_owned());
    let acquired = spec.acquire_time.clone();
    assert!(writes(&mut a, &mut store, Instant::now()));
    let spec = store.lease.unwrap().spec.unwrap();
    assert_eq!(spec.preferred_holder.as_deref(), Some("c"));
    assert_eq!(
        (spec.acquire_time, spec.lease_transitions),
        (acquired, Some(1))
    );
}

/// What may happen to one replica.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// It reads, and sends a write where it may.
    Attempt,
    /// What it sent arrives, and it learns how that ended.
    Answered,
    /// What it sent arrives, and the answer is lost.
    Unanswered,
    /// What it sent is lost.
    Dropped,
    /// It is started anew: another process, with another name.
    Restart,
}

struct Replica {
    candidate: Candidate,
    clock: Timestamp,
    sent: Option<(Lease, Instant)>,
    until: Option<Instant>,
    starts: u32,
}

impl Replica {
    fn new(index: usize, starts: u32) -> Self {
        // Hours apart: nobody may believe another's clock.
        let hours = 3600 * (i64::try_from(index).unwrap() - 1);
        Self {
            candidate: candidate(&format!("{index}-{starts}")),
            clock: Timestamp::from_second(1_000_000 + hours).unwrap(),
            sent: None,
            until: None,
            starts,
        }
    }

    fn acts(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

fn acts() -> impl Strategy<Value = Vec<(usize, Act, u64)>> {
    let act = prop_oneof![
        6 => Just(Act::Attempt),
        6 => Just(Act::Answered),
        1 => Just(Act::Unanswered),
        1 => Just(Act::Dropped),
        1 => Just(Act::Restart),
    ];
    let wait = prop_oneof![4 => 0..3_000u64, 1 => 0..20_000u64];
    proptest::collection::vec((0..3usize, act, wait), 1..300)
}

proptest! {
    /// Whatever is late, lost or restarted, and whatever clocks say.
    #[test]
    fn two_never_act_at_a_time(acts in acts()) {
        let mut store = Store::default();
        let mut replicas: Vec<_> = (0..3).map(|index| Replica::new(index, 0)).collect();
        let mut now = Instant::now();
        for (index, act, wait) in acts {
            now += Duration::from_millis(wait);
            let replica = &mut replicas[index];
            match act {
                Act::Attempt if replica.sent.is_none() => {
                    let found = store.lease.clone();
                    if let Step::Write(lease) = replica.candidate.step(found, now, replica.clock) {
                        replica.sent = Some((*lease, now));
                    }
                }
                Act::Attempt => {}
                Act::Answered => {
                    if let Some((lease, sent)) = replica.sent.take()
                        && store.write(lease)
                    {
                        replica.until = Some(sent + TIMES.renew);
                    }
                }
                Act::Unanswered => {
                    if let Some((lease, _)) = replica.sent.take() {
                        store.write(lease);
                    }
                }
                Act::Dropped => replica.sent = None,
                Act::Restart => *replica = Replica::new(index, replica.starts + 1),
            }
            let acting = replicas.iter().filter(|replica| replica.acts(now)).count();
            prop_assert!(acting <= 1, "{acting} act");
        }
    }
}

#[test]
fn a_fence_is_closed_until_the_lease_is_held_and_after() {
    let fence = Fence::default();
    assert!(!fence.is_open());
    fence.set(Some(Instant::now() + Duration::from_secs(600)));
    assert!(fence.is_open());
    fence.set(Some(Instant::now()));
    assert!(!fence.is_open());
}
