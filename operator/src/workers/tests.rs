use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

#[derive(Default)]
struct State {
    exists: AtomicBool,
    rounds: AtomicUsize,
    failures: AtomicUsize,
    retired: AtomicUsize,
    hold: Gate,
    seen: Notify,
}

/// A gate for each round.
struct Gate(Semaphore);

impl Default for Gate {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

struct Fake(Arc<State>);

impl Reconcile for Fake {
    type Key = String;
    type Memory = ();
    const NAME: &'static str = "fake";

    fn exists(&self, _: &String) -> bool {
        self.0.exists.load(Ordering::SeqCst)
    }

    async fn reconcile(&self, _: &String, (): &mut ()) -> Result<Next, Error> {
        self.0.rounds.fetch_add(1, Ordering::SeqCst);
        self.0.seen.notify_one();
        if let Ok(permit) = self.0.hold.0.acquire().await {
            permit.forget();
        }
        match self.0.failures.load(Ordering::SeqCst) {
            0 => Ok(Next::WhenWoken),
            left => {
                self.0.failures.store(left - 1, Ordering::SeqCst);
                Err(Error::NoKeys)
            }
        }
    }

    fn retired(&self, _: &String) {
        self.0.retired.fetch_add(1, Ordering::SeqCst);
        self.0.seen.notify_one();
    }
}

fn workers() -> (Arc<State>, Arc<Workers<Fake>>, watch::Sender<bool>) {
    let state = Arc::new(State::default());
    state.exists.store(true, Ordering::SeqCst);
    let (stop, stopping) = watch::channel(false);
    let workers = Workers::new(Fake(state.clone()), 4, Metrics::default(), stopping);
    (state, workers, stop)
}

#[tokio::test]
async fn a_wake_up_during_a_round_leads_to_another() {
    let (state, workers, _stop) = workers();
    let key = "a".to_owned();
    workers.wake(&key);
    state.seen.notified().await;
    workers.wake(&key);
    workers.wake(&key);
    state.hold.0.add_permits(1);
    state.seen.notified().await;
    assert_eq!(state.rounds.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_failed_round_is_tried_again() {
    let (state, workers, _stop) = workers();
    state.failures.store(1, Ordering::SeqCst);
    state.hold.0.add_permits(2);
    workers.wake(&"a".to_owned());
    state.seen.notified().await;
    state.seen.notified().await;
    assert_eq!(state.rounds.load(Ordering::SeqCst), 2);
    let text = workers.metrics.text().unwrap_or_default();
    let line = "toolward_reconcile_errors_total{controller=\"fake\",category=\"NoKeys\"} 1";
    assert!(text.contains(line), "{text}");
}

#[tokio::test]
async fn a_worker_ends_with_its_object_and_starts_again_with_it() {
    let (state, workers, _stop) = workers();
    let key = "a".to_owned();
    workers.wake(&key);
    state.seen.notified().await;
    state.exists.store(false, Ordering::SeqCst);
    state.hold.0.add_permits(1);
    state.seen.notified().await;
    assert_eq!(state.retired.load(Ordering::SeqCst), 1);
    workers.wake(&key); // Nothing is there.
    state.exists.store(true, Ordering::SeqCst);
    workers.wake(&key);
    state.seen.notified().await;
    assert_eq!(state.rounds.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn all_workers_end_when_told_to() {
    let (state, workers, stop) = workers();
    state.hold.0.add_permits(1);
    workers.wake(&"a".to_owned());
    state.seen.notified().await;
    stop.send_replace(true);
    workers.stopped().await;
}
