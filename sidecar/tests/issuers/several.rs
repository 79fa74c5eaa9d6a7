//! Several issuers of one server are never taken for each other.

use serde_json::json;

use crate::{
    common::until,
    idp::{Answer, Idp, Key, PLACES, claims},
    world::{PASSED, World, bundle, refused, verdict},
};

#[tokio::test]
async fn the_keys_of_one_issuer_do_not_open_the_other() {
    // The same id in both sets, and one that only the second has.
    let (a, b, only_b) = (Key::new("1"), Key::new("1"), Key::new("2"));
    let (idp_a, idp_b) = (Idp::start(&a).await, Idp::start(&b).await);
    idp_b.publish([&b, &only_b]);
    let rules = json!([
        {"name": "of-a", "effect": "Allow", "from": [{"groups": ["staff"]}], "tools": ["get_*"]},
    ]);
    let issuers = vec![idp_a.issuer("a"), idp_b.issuer("b")];
    let world = World::start(&[], |dev| {
        let mut bundle = bundle(dev, rules, issuers);
        let policy::bundle::Subject::Match(callers) = &mut bundle.rules[0].from[0] else {
            unreachable!()
        };
        callers.issuer = Some("a".into());
        bundle
    })
    .await;
    let (url_a, url_b) = (&idp_a.url, &idp_b.url);
    assert_eq!(verdict(&world.call(&a.token(url_a)).await), PASSED);
    assert_eq!(world.sidecar.audited()["issuer"], "a");
    // Let in, as somebody else: the group of that name is another one.
    let denied = world.call(&b.token(url_b)).await;
    assert_eq!(denied.json()["error"]["message"], "Unknown tool: get_order");
    let record = world.sidecar.audited();
    assert_eq!(
        (&record["issuer"], &record["user"]),
        (&json!("b"), &json!("alice"))
    );
    for (token, reason) in [
        (b.token(url_a), "SignatureInvalid"),
        (a.token(url_b), "SignatureInvalid"),
        (only_b.token(url_a), "UnknownKey"),
    ] {
        assert_eq!(verdict(&world.call(&token).await), refused(401, reason));
    }
    // Who names both issuers is of neither.
    let mut both = claims(url_a);
    both["iss"] = json!([url_a, url_b]);
    let reply = world.call(&a.sign(&both)).await;
    assert_eq!(verdict(&reply), refused(401, "ClaimInvalid"));
    // One that is down does not keep the other.
    idp_b.fault(Some(Answer::Hang));
    assert_eq!(verdict(&world.call(&a.token(url_a)).await), PASSED);
}

#[tokio::test]
async fn an_issuer_that_the_bundle_drops_is_asked_no_more() {
    let (key, other) = (Key::new("k"), Key::new("other"));
    let (kept, dropped) = (Idp::start(&key).await, Idp::start(&other).await);
    // What fails is tried each few seconds.
    for idp in [&kept, &dropped] {
        idp.fault(Some(Answer::Close));
    }
    let world = World::of(vec![kept.issuer("kept"), dropped.issuer("dropped")]).await;
    until("both are tried", async || {
        kept.count(PLACES[0]) > 2 && dropped.count(PLACES[0]) > 2
    })
    .await;
    world.renew(vec![kept.issuer("kept")]).await;
    let count = kept.count(PLACES[0]);
    until("what had been sent has arrived", async || {
        kept.count(PLACES[0]) > count
    })
    .await;
    let before = dropped.asked();
    until("the other is tried on", async || {
        kept.count(PLACES[0]) > count + 3
    })
    .await;
    assert_eq!(dropped.asked(), before);
    let status = world.status().await;
    let names: Vec<_> = status["issuers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|issuer| &issuer["name"])
        .collect();
    assert_eq!(names, ["kept"], "{status}");
    let reply = world.call(&other.token(&dropped.url)).await;
    assert_eq!(verdict(&reply), refused(401, "UnknownIssuer"));
}
