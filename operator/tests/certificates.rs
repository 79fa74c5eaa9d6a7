//! The webhook's certificates against an API server in memory: whatever happens,
//! a replica that is ready uses what every webhook is trusted by.
#![allow(clippy::unwrap_used, missing_docs)]

use operator_tests::hooks;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hooks::{GIVEN, Gate, Hooks, names};
use operator::{
    certificates::{
        Certificates,
        pair::{DAY, LIFETIME, Pair, Seconds},
        plan::{MAX_CAS, Timing, trusts},
        store::Names,
    },
    metrics::Metrics,
};
use proptest::{prelude::*, test_runner::TestCaseResult};

const NOW: Seconds = 1_800_000_000;

/// The time of day, and a clock that nobody sets.
struct Clock {
    start: Instant,
    elapsed: AtomicU64,
    now: AtomicU64,
}

impl Clock {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            elapsed: AtomicU64::new(0),
            now: AtomicU64::new(NOW),
        })
    }

    fn at(&self) -> Instant {
        self.start + Duration::from_secs(self.elapsed.load(Ordering::SeqCst))
    }

    fn now(&self) -> Seconds {
        self.now.load(Ordering::SeqCst)
    }

    fn advance(&self, time: Duration) {
        let seconds = time.as_secs();
        self.elapsed.fetch_add(seconds, Ordering::SeqCst);
        self.now.fetch_add(seconds, Ordering::SeqCst);
    }

    fn jump(&self, days: i64) {
        let seconds = days.unsigned_abs() * DAY;
        let now = match days {
            0.. => self.now().saturating_add(seconds),
            _ => self.now().saturating_sub(seconds),
        };
        self.now.store(now, Ordering::SeqCst);
    }
}

fn certificates(hooks: &Hooks, names: Names, gate: Option<Arc<Gate>>) -> Certificates {
    let client = hooks.client(gate);
    Certificates::new(client, names, Timing::default(), Metrics::default())
}

/// One replica alone, without hurry.
struct One {
    hooks: Hooks,
    clock: Arc<Clock>,
    certificates: Certificates,
}

impl One {
    fn new(names: Names) -> Self {
        let hooks = Hooks::new();
        Self {
            certificates: certificates(&hooks, names, None),
            clock: Clock::new(),
            hooks,
        }
    }

    /// Rounds until nothing is left to do.
    async fn settle(&self) {
        for _ in 0..20 {
            let before = self.hooks.writes();
            let round = self
                .certificates
                .round(self.clock.now(), || self.clock.at());
            round.await.unwrap();
            if self.hooks.writes() == before {
                return;
            }
        }
        panic!("there is no end to the writing");
    }

    async fn settle_twice(&self) {
        self.settle().await;
        self.clock.advance(Timing::default().settle);
        self.settle().await;
    }

    fn certificate(&self) -> String {
        self.certificates.in_use().unwrap().id
    }

    fn is_ready(&self) -> bool {
        self.certificates.ready(self.clock.at()).is_ok()
    }
}

#[tokio::test]
async fn the_first_pair_is_used_when_it_is_trusted_and_then_nothing_is_written() {
    let one = One::new(names());
    assert!(!one.is_ready());
    one.settle().await;
    assert!(!one.is_ready(), "API servers have not learnt its CA yet");
    one.settle_twice().await;
    assert!(one.is_ready());
    let life = one.certificates.in_use().unwrap();
    assert_eq!(one.hooks.bundles(), vec![life.cas.clone(); 3]);
    assert_eq!(
        life.until,
        one.clock.now() - Timing::default().settle.as_secs() + LIFETIME
    );
    assert_eq!(one.hooks.secret("next-tls.key"), None);
    let writes = one.hooks.writes();
    for _ in 0..5 {
        one.clock.advance(Duration::from_secs(3600));
        one.settle().await;
    }
    assert_eq!(one.hooks.writes(), writes);
    // Another replica takes what is there.
    let other = certificates(&one.hooks, names(), None);
    other
        .round(one.clock.now(), || one.clock.at())
        .await
        .unwrap();
    assert_eq!(other.in_use(), Some(life));
}

#[tokio::test]
async fn a_pair_that_ends_soon_is_replaced_and_its_ca_leaves_later() {
    let one = One::new(names());
    one.settle_twice().await;
    let (first, cas) = (one.certificate(), one.hooks.bundles().concat());
    one.clock.jump(61);
    one.settle().await;
    assert_eq!(one.certificate(), first);
    assert_eq!(one.hooks.bundles()[0].len(), 2);
    one.settle_twice().await;
    assert_ne!(one.certificate(), first);
    assert!(one.is_ready());
    one.clock.advance(Timing::default().leave / 2);
    one.settle().await;
    assert!(
        one.hooks
            .bundles()
            .iter()
            .all(|bundle| bundle.contains(&cas[0]))
    );
    one.clock.advance(Timing::default().leave);
    one.settle().await;
    let life = one.certificates.in_use().unwrap();
    assert_eq!(one.hooks.bundles(), vec![life.cas; 3]);
}

#[tokio::test]
async fn past_its_end_a_pair_is_replaced_at_once() {
    let one = One::new(names());
    one.settle_twice().await;
    for days in [91, 10_000, -10_500, 100_000, -3_000_000] {
        let before = one.certificate();
        one.clock.jump(days);
        one.settle_twice().await;
        let life = one.certificates.in_use().unwrap();
        assert_ne!(life.id, before, "{days}");
        assert!(life.is_good(one.clock.now()) && one.is_ready(), "{days}");
    }
}

/// Somebody puts it there, or a replica whose clock is behind made it.
#[tokio::test]
async fn a_pair_that_is_over_is_not_taken_up() {
    let one = One::new(names());
    one.settle_twice().await;
    let before = one.certificate();
    let over = Pair::make(&names().host(), one.clock.now() - LIFETIME - DAY).unwrap();
    one.hooks.replace(&over);
    one.settle().await;
    assert!(trusts(&one.hooks.bundles(), &over.life));
    assert_eq!(one.certificate(), before);
    assert!(one.is_ready());
    let fresh = certificates(&one.hooks, names(), None);
    let round = fresh.round(one.clock.now(), || one.clock.at());
    round.await.unwrap();
    assert_eq!(fresh.in_use(), None);
    one.settle_twice().await;
    let life = one.certificates.in_use().unwrap();
    assert!(life.id != before && life.id != over.life.id && one.is_ready());
}

#[tokio::test]
async fn what_others_destroy_is_made_anew() {
    let one = One::new(names());
    one.settle_twice().await;
    type Harm = fn(&Hooks);
    let harms: [Harm; 4] = [
        Hooks::lose,
        |hooks| hooks.garble("tls.key"),
        |hooks| hooks.garble("tls.crt"),
        |hooks| hooks.garble("ca.crt"),
    ];
    for harm in harms {
        let before = one.certificate();
        harm(&one.hooks);
        one.settle().await;
        // Until there is another one, the one in use is good enough.
        assert_eq!(one.certificate(), before);
        assert!(one.is_ready());
        one.settle_twice().await;
        assert_ne!(one.certificate(), before);
        assert!(one.is_ready());
    }
    // As `helm upgrade --force` does.
    let before = one.certificate();
    one.hooks.apply_chart();
    one.settle().await;
    assert!(one.hooks.bundles().iter().all(|bundle| !bundle.is_empty()));
    one.settle().await;
    assert_eq!(one.certificate(), before);
    assert!(one.is_ready());
    // What comes and is not used is no matter.
    one.hooks.garble("next-tls.crt");
    one.settle_twice().await;
    assert!(one.is_ready());
}

#[tokio::test]
async fn without_the_api_server_a_replica_is_ready_for_a_while() {
    let one = One::new(names());
    one.settle_twice().await;
    assert!(one.is_ready());
    one.clock.advance(Timing::default().fence);
    assert!(!one.is_ready());
    one.settle().await;
    assert!(one.is_ready());
}

#[tokio::test]
async fn a_pair_of_others_is_used_and_changed_like_one_of_ours() {
    let names = Names {
        given: Some(GIVEN.into()),
        ..names()
    };
    let host = names.host();
    let one = One::new(names);
    one.settle_twice().await;
    assert!(!one.is_ready(), "there is none yet");
    let first = Pair::make(&host, one.clock.now()).unwrap();
    one.hooks.give(&first);
    one.settle_twice().await;
    assert!(one.is_ready());
    assert_eq!(one.certificate(), first.life.id);
    // One that cannot be used changes nothing.
    let other = Pair::make("other.svc", one.clock.now()).unwrap();
    let early = Pair::make(&host, 0).unwrap();
    for bad in [&other, &early] {
        one.hooks.give(bad);
        one.settle_twice().await;
        assert_eq!(one.certificate(), first.life.id);
    }
    let second = Pair::make(&host, one.clock.now()).unwrap();
    one.hooks.give(&second);
    one.settle().await;
    assert_eq!(one.certificate(), first.life.id);
    assert_eq!(one.hooks.bundles()[0].len(), 2);
    one.settle_twice().await;
    assert_eq!(one.certificate(), second.life.id);
    // The operator makes none while others do.
    one.clock.jump(1000);
    one.settle_twice().await;
    assert_eq!(one.certificate(), second.life.id);
}

/// One of two replicas, each request of which waits for its turn.
struct Replica {
    gate: Arc<Gate>,
    certificates: Arc<Certificates>,
    task: tokio::task::JoinHandle<()>,
}

impl Replica {
    async fn start(hooks: &Hooks, clock: &Arc<Clock>) -> Self {
        let gate = Arc::new(Gate::default());
        let certificates = Arc::new(certificates(hooks, names(), Some(gate.clone())));
        let (looking, clock) = (certificates.clone(), clock.clone());
        let task = tokio::spawn(async move {
            loop {
                // What is refused is tried again.
                let _ = looking.round(clock.now(), || clock.at()).await;
            }
        });
        gate.reached(0).await;
        Self {
            gate,
            certificates,
            task,
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Debug)]
enum Action {
    /// One request of a replica is answered.
    Answer(usize),
    /// Time passes.
    Advance(Duration),
    /// Somebody sets the time of day.
    Jump(i64),
    Restart(usize),
    Lose,
    Garble(&'static str),
}

impl Action {
    /// Each leads to one CA at most.
    fn is_harm(&self) -> bool {
        matches!(self, Self::Jump(_) | Self::Lose | Self::Garble(_))
    }
}

fn action() -> impl Strategy<Value = Action> {
    let part = prop::sample::select(vec!["tls.crt", "tls.key", "ca.crt", "next-tls.crt"]);
    prop_oneof![
        30 => (0..2usize).prop_map(Action::Answer),
        3 => (0..10u64).prop_map(|time| Action::Advance(Duration::from_secs(time))),
        2 => (0..4000u64).prop_map(|time| Action::Advance(Duration::from_secs(time))),
        1 => (-300..300i64).prop_map(Action::Jump),
        1 => (0..2usize).prop_map(Action::Restart),
        1 => Just(Action::Lose),
        1 => part.prop_map(Action::Garble),
    ]
}

fn ready_is_trusted(hooks: &Hooks, clock: &Clock, replicas: &[Replica; 2]) -> TestCaseResult {
    let bundles = hooks.bundles();
    for (index, replica) in replicas.iter().enumerate() {
        if replica.certificates.ready(clock.at()).is_ok() {
            let life = replica.certificates.in_use().unwrap();
            prop_assert!(trusts(&bundles, &life), "replica {index} is not trusted");
        }
    }
    Ok(())
}

/// What may happen while two replicas read and write in any order.
async fn happens(actions: Vec<Action>) -> TestCaseResult {
    let (hooks, clock) = (Hooks::new(), Clock::new());
    let start = || Replica::start(&hooks, &clock);
    let mut replicas = [start().await, start().await];
    let mut harms = 0;
    for action in actions {
        harms += usize::from(action.is_harm());
        if action.is_harm() && harms + 3 > MAX_CAS {
            continue;
        }
        match action {
            Action::Answer(index) => replicas[index].gate.open().await,
            Action::Advance(time) => clock.advance(time),
            Action::Jump(days) => clock.jump(days),
            Action::Restart(index) => replicas[index] = start().await,
            Action::Lose => hooks.lose(),
            Action::Garble(part) => hooks.garble(part),
        }
        ready_is_trusted(&hooks, &clock, &replicas)?;
    }
    // Left alone, both get to the same good end: soon, where nothing gets due now.
    for _ in 0..2 {
        answer_all(&hooks, &clock, &replicas, Duration::from_secs(1)).await?;
        clock.advance(Timing::default().leave);
        answer_all(&hooks, &clock, &replicas, Duration::ZERO).await?;
        if ended_well(&hooks, &clock, &replicas) {
            return Ok(());
        }
    }
    let lives = replicas
        .each_ref()
        .map(|replica| replica.certificates.in_use());
    Err(TestCaseError::fail(format!("{lives:?}")))
}

async fn answer_all(
    hooks: &Hooks,
    clock: &Clock,
    replicas: &[Replica; 2],
    each: Duration,
) -> TestCaseResult {
    for _ in 0..60 {
        for replica in replicas {
            replica.gate.open().await;
            ready_is_trusted(hooks, clock, replicas)?;
        }
        clock.advance(each);
    }
    Ok(())
}

fn ended_well(hooks: &Hooks, clock: &Clock, replicas: &[Replica; 2]) -> bool {
    let Some(life) = replicas[0].certificates.in_use() else {
        return false;
    };
    let is_ready = |replica: &Replica| replica.certificates.ready(clock.at()).is_ok();
    life.is_good(clock.now())
        && replicas.iter().all(is_ready)
        && replicas[1].certificates.in_use().as_ref() == Some(&life)
        && hooks.bundles() == vec![life.cas; 3]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_replica_that_is_ready_is_trusted(actions in prop::collection::vec(action(), 0..250)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(happens(actions))?;
    }
}
