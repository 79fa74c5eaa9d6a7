//! Keys that change under load: what should pass passes, what should not does
//! not.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use policy::Reason;

use crate::{
    common::until,
    idp::{Idp, JWKS, Key},
    seam::{self, Seam},
    world::{PASSED, World, refused, verdict},
};

const CLIENTS: usize = 20;
const ROTATIONS: usize = 10;
/// Between two calls of a client.
const BETWEEN: Duration = Duration::from_millis(40);

/// Keys of an issuer, the newest of which signs.
struct Keys {
    all: Mutex<Vec<Arc<Key>>>,
    /// Clients that a token of the newest has let in.
    let_in: Vec<AtomicUsize>,
    done: AtomicBool,
}

impl Keys {
    fn new(first: Key) -> Arc<Self> {
        Arc::new(Self {
            all: Mutex::new(vec![Arc::new(first)]),
            let_in: (0..CLIENTS).map(|_| AtomicUsize::new(0)).collect(),
            done: AtomicBool::new(false),
        })
    }

    /// The newest, and how many there are with it.
    fn newest(&self) -> (Arc<Key>, usize) {
        let all = self.all.lock().unwrap();
        (Arc::clone(all.last().unwrap()), all.len())
    }

    fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }

    /// Publishes a new key beside the newest, has it sign at once, and takes the
    /// old one away when every client was let in by the new one.
    async fn rotate(&self, idp: &Idp) {
        for _ in 0..ROTATIONS {
            let (old, count) = self.newest();
            let new = Arc::new(Key::new(&format!("k{count}")));
            idp.publish([&*old, &*new]);
            self.all.lock().unwrap().push(Arc::clone(&new));
            until("all clients come in by the new key", async || {
                let seen = self.let_in.iter().map(|seen| seen.load(Ordering::SeqCst));
                self.is_done() || seen.min() > Some(count)
            })
            .await;
            idp.publish([&*new]);
        }
        self.done.store(true, Ordering::SeqCst);
    }

    /// Calls until the rotations are done; the number of calls, or what failed.
    async fn client<E>(
        &self,
        idp: &Idp,
        index: usize,
        call: impl AsyncFn(String) -> Result<(), E>,
        between: Duration,
    ) -> Result<usize, (usize, E)> {
        let mut calls = 0;
        while !self.is_done() {
            let (key, count) = self.newest();
            if let Err(error) = call(key.token(&idp.url)).await {
                self.done.store(true, Ordering::SeqCst);
                return Err((count, error));
            }
            calls += 1;
            self.let_in[index].fetch_max(count, Ordering::SeqCst);
            tokio::time::sleep(between).await;
        }
        Ok(calls)
    }
}

#[tokio::test]
async fn ten_rotations_under_load_cost_no_request() {
    let keys = Keys::new(Key::new("k0"));
    let idp = Idp::start(&keys.newest().0).await;
    let world = World::of(vec![idp.issuer("idp")]).await;
    let call = async |token: String| {
        let verdict = verdict(&world.call(&token).await);
        if verdict == PASSED {
            Ok(())
        } else {
            Err(verdict)
        }
    };
    let clients = (0..CLIENTS).map(|index| keys.client(&idp, index, &call, BETWEEN));
    let clients = futures::future::join_all(clients);
    let (calls, ()) = tokio::join!(clients, keys.rotate(&idp));
    let calls: Result<Vec<usize>, _> = calls.into_iter().collect();
    let calls: usize = calls.unwrap().iter().sum();
    println!(
        "{calls} calls, {ROTATIONS} rotations, {} fetches, 0 failed",
        idp.count(JWKS)
    );

    // The last key that was taken away is found out with the next unknown one.
    let unknown = Key::new("unknown").token(&idp.url);
    assert_eq!(
        verdict(&world.call(&unknown).await),
        refused(401, "UnknownKey")
    );
    let all = keys.all.lock().unwrap().clone();
    let (newest, old) = all.split_last().unwrap();
    assert_eq!(old.len(), ROTATIONS);
    let tokens: Vec<_> = old.iter().map(|key| key.token(&idp.url)).collect();
    let replies = futures::future::join_all(tokens.iter().map(|token| world.call(token))).await;
    for reply in replies {
        assert_eq!(verdict(&reply), refused(401, "UnknownKey"));
    }
    assert_eq!(verdict(&world.call(&newest.token(&idp.url)).await), PASSED);
}

#[tokio::test]
async fn a_key_that_is_made_while_keys_are_read_is_found_too() {
    let keys = Keys::new(Key::new("k0"));
    let idp = Idp::start(&keys.newest().0).await;
    // What is answered is fixed when it is asked, so that most keys are made
    // between the two.
    idp.delay(Duration::from_millis(100));
    let seam = Seam::new(vec![idp.issuer("idp")], seam::quick());
    let call = async |token: String| seam.who(&token).await.map(|_| ());
    let clients =
        (0..CLIENTS).map(|index| keys.client(&idp, index, &call, Duration::from_millis(5)));
    let clients = futures::future::join_all(clients);
    let (calls, ()) = tokio::join!(clients, keys.rotate(&idp));
    let calls: Result<Vec<usize>, _> = calls.into_iter().collect();
    assert!(calls.unwrap().iter().all(|calls| *calls > ROTATIONS));
}

#[tokio::test]
async fn keys_without_ids_are_renewed_too() {
    let (old, new) = (Key::nameless(), Key::nameless());
    let idp = Idp::start(&old).await;
    let seam = Seam::new(vec![idp.issuer("idp")], seam::quick());
    assert!(seam.who(&old.token(&idp.url)).await.is_ok());
    idp.publish([&new]);
    assert!(seam.who(&new.token(&idp.url)).await.is_ok());
    let refused = seam.who(&old.token(&idp.url)).await.map(|_| ());
    assert_eq!(refused, Err(Reason::SignatureInvalid));
    // Of a few without ids, each is tried: who rotates publishes two.
    idp.publish([&old, &new]);
    seam.read_anew(&idp).await;
    for key in [&old, &new] {
        assert!(seam.who(&key.token(&idp.url)).await.is_ok());
    }
    let refused = seam.who(&Key::nameless().token(&idp.url)).await.map(|_| ());
    assert_eq!(refused, Err(Reason::SignatureInvalid));
}
