//! Key ids that nobody has: no lever against the issuer, and no trouble for
//! others.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};

use crate::{
    idp::{Idp, JWKS, Key},
    world::{PASSED, World, refused, verdict},
};

const TOKENS: usize = 2000;
/// Between two readings of keys, whoever asks; see `issuers::Times`.
const PAUSE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn two_thousand_unknown_keys_cost_the_issuer_a_handful_of_requests() {
    let (key, stranger) = (Key::new("k"), Key::new("x"));
    let idp = Idp::start(&key).await;
    let world = World::of(vec![idp.issuer("idp")]).await;
    assert_eq!(verdict(&world.call(&key.token(&idp.url)).await), PASSED);
    assert_eq!(idp.count(JWKS), 1);

    let (start, done) = (Instant::now(), AtomicBool::new(false));
    let tokens: Vec<_> = (0..TOKENS)
        .map(|_| stranger.under(&format!("{:032x}", rand::random::<u128>())))
        .map(|key| key.token(&idp.url))
        .collect();
    let flood = async {
        let calls = stream::iter(&tokens).map(|token| world.call(token));
        let verdicts: Vec<_> = calls
            .buffer_unordered(300)
            .map(|reply| verdict(&reply))
            .collect()
            .await;
        done.store(true, Ordering::SeqCst);
        verdicts
    };
    let good = async {
        let mut passed = 0;
        while !done.load(Ordering::SeqCst) {
            assert_eq!(verdict(&world.call(&key.token(&idp.url)).await), PASSED);
            passed += 1;
        }
        passed
    };
    let (verdicts, passed) = tokio::join!(flood, good);
    let asked = idp.count(JWKS) - 1;
    let unknown = verdicts
        .iter()
        .filter(|&verdict| *verdict == refused(401, "UnknownKey"))
        .count();
    let unsure = verdicts
        .iter()
        .filter(|&verdict| *verdict == refused(503, "IssuerUnavailable"))
        .count();
    println!("{unknown} × 401, {unsure} × 503; {passed} good ones passed; {asked} fetches");
    assert_eq!(unknown + unsure, TOKENS);
    assert!(unknown > 0 && passed > 0);
    let pauses = start.elapsed().as_secs() / PAUSE.as_secs();
    assert!(
        asked as u64 <= pauses + 1,
        "{asked} fetches in {pauses} pauses"
    );
}
