//! No keys yet: what callers are told, and that it passes by itself.

use futures::{StreamExt, stream};

use crate::{
    common::until,
    idp::{Answer, Idp, JWKS, Key, PLACES, keys_of},
    world::{PASSED, World, assert_unavailable, refused, verdict},
};

#[tokio::test]
async fn without_any_keys_a_token_is_neither_good_nor_bad() {
    let (key, stranger) = (Key::new("k"), Key::new("k"));
    let idp = Idp::start(&key).await;
    idp.fault(Some(Answer::Reset));
    let world = World::of(vec![idp.issuer("idp")]).await;
    let good = key.token(&idp.url);
    let (signed, _) = good.rsplit_once('.').unwrap();
    let garbage = format!("{signed}.{}", "A".repeat(86));
    for token in [
        &good,
        &stranger.token(&idp.url),
        &Key::new("x").token(&idp.url),
        &garbage,
    ] {
        assert_unavailable(&world.call(token).await);
        assert_eq!(world.sidecar.audited()["reason"], "IssuerUnavailable");
    }
    // What is wrong whatever the keys is still said.
    let foreign = key.token("https://elsewhere.example.com");
    let reply = world.call(&foreign).await;
    assert_eq!(verdict(&reply), refused(401, "UnknownIssuer"));
    let (state, message) = world.issuer("idp").await;
    assert_eq!(state, "Unavailable");
    for place in PLACES {
        assert!(
            message.contains(&format!("{}{place}", idp.origin())),
            "{message}"
        );
    }
    assert_eq!(world.script.got.lock().unwrap().len(), 0, "nothing passed");

    idp.fault(None);
    until("the same token passes", async || {
        verdict(&world.call(&good).await) == PASSED
    })
    .await;
    assert_eq!(
        world.issuer("idp").await,
        ("Available".into(), String::new())
    );
    for bad in [&stranger.token(&idp.url), &garbage] {
        let reply = world.call(bad).await;
        assert_eq!(verdict(&reply), refused(401, "SignatureInvalid"));
        assert!(reply.headers.contains_key("www-authenticate"));
    }
}

#[tokio::test]
async fn two_hundred_first_requests_wait_for_one_fetch() {
    let key = Key::new("k");
    let idp = Idp::start(&key).await;
    idp.hold(true);
    let world = World::of(vec![idp.issuer("idp")]).await;
    let tokens: Vec<_> = (0..200).map(|_| key.token(&idp.url)).collect();
    let calls = stream::iter(&tokens).map(|token| world.call(token));
    let calls = calls.buffer_unordered(200).map(|reply| verdict(&reply));
    let release = async {
        until("all of them wait", async || {
            world.metric("toolward_open_requests").await >= 200.0
        })
        .await;
        assert_eq!(world.issuer("idp").await.0, "Pending");
        idp.hold(false);
    };
    let (verdicts, ()) = tokio::join!(calls.collect::<Vec<_>>(), release);
    assert_eq!(verdicts, vec![PASSED; 200]);
    assert_eq!(idp.asked(), [PLACES[0], JWKS]);
    assert_eq!(idp.connections(), 2);
}

#[tokio::test]
async fn keys_outlive_an_outage_until_they_are_too_old() {
    let key = Key::new("k");
    let idp = Idp::start(&key).await;
    let mut issuer = idp.issuer("idp");
    keys_of(&mut issuer, |keys| keys.max_age_seconds = 12);
    let world = World::of(vec![issuer]).await;
    let remembered = key.token(&idp.url);
    assert_eq!(verdict(&world.call(&remembered).await), PASSED);
    idp.fault(Some(Answer::Raw(500, "oops".into())));
    until("the outage is seen", async || {
        world.issuer("idp").await.0 == "Stale"
    })
    .await;
    let (_, message) = world.issuer("idp").await;
    assert!(message.contains("status 500"), "{message}");
    for token in [&remembered, &key.token(&idp.url)] {
        let reply = world.call(token).await;
        // Read before the verdict, so that it cannot be of a later time.
        let state = world.issuer("idp").await.0;
        if state == "Stale" {
            assert_eq!(verdict(&reply), PASSED);
        }
    }
    until("the keys are too old", async || {
        world.issuer("idp").await.0 == "Unavailable"
    })
    .await;
    for token in [&remembered, &key.token(&idp.url)] {
        assert_unavailable(&world.call(token).await);
    }
    idp.fault(None);
    until("it passes again", async || {
        verdict(&world.call(&remembered).await) == PASSED
    })
    .await;
}
