//! Where keys are found: RFC 8414 and OpenID Connect Discovery, in the order of
//! the specification.

use serde_json::json;

use crate::{
    common::until,
    idp::{Answer, Idp, JWKS, Key, PLACES, REALM, keys_of, remote},
    world::{PASSED, World, refused, verdict},
};

#[tokio::test]
async fn each_place_alone_suffices_and_they_are_tried_in_order() {
    let key = Key::new("k");
    let mut idps = Vec::new();
    for place in PLACES {
        let idp = Idp::start(&key).await;
        idp.forget(PLACES[0]);
        idp.answer(place, Answer::Json(idp.metadata()));
        idps.push(idp);
    }
    let issuers = idps.iter().enumerate();
    let issuers = issuers.map(|(index, idp)| idp.issuer(&format!("idp-{index}")));
    let world = World::of(issuers.collect()).await;
    for (index, idp) in idps.iter().enumerate() {
        let reply = world.call(&key.token(&idp.url)).await;
        assert_eq!(verdict(&reply), PASSED, "{}: {reply:?}", PLACES[index]);
        let mut tried = PLACES[..=index].to_vec();
        tried.push(JWKS);
        assert_eq!(idp.asked(), tried, "nothing else, and nothing twice");
        let state = world.issuer(&format!("idp-{index}")).await;
        assert_eq!(state, ("Available".into(), String::new()));
    }
}

#[tokio::test]
async fn an_issuer_without_a_path_has_two_places() {
    let key = Key::new("k");
    let idp = Idp::start(&key).await;
    let url = idp.origin().to_owned();
    let last = "/.well-known/openid-configuration";
    let metadata = json!({"issuer": url, "jwks_uri": idp.jwks_uri()});
    idp.answer(last, Answer::Json(metadata));
    let world = World::of(vec![remote("idp", &url)]).await;
    let reply = world.call(&key.token(&url)).await;
    assert_eq!(verdict(&reply), PASSED, "{reply:?}");
    let first = "/.well-known/oauth-authorization-server";
    assert_eq!(idp.asked(), [first, last, JWKS]);
}

#[tokio::test]
async fn what_is_no_metadata_of_this_issuer_is_not_used_and_the_next_is_tried() {
    let (key, evil) = (Key::new("k"), Key::new("evil"));
    let wrong = |idp: &Idp, issuer: &str| {
        let uri = format!("{}/evil", idp.origin());
        Answer::Json(json!({"issuer": issuer, "jwks_uri": uri}))
    };
    let first = async |name: &str| {
        let idp = Idp::start(&key).await;
        idp.answer("/evil", Answer::Json(crate::idp::set([&evil])));
        idp.answer(PLACES[2], Answer::Json(idp.metadata()));
        let metadata = match name {
            "other" => wrong(&idp, "https://accounts.example.com"),
            "slash" => wrong(&idp, &format!("{}/", idp.url)),
            "case" => wrong(&idp, &idp.url.replace(REALM, "/realms/Acme")),
            "silent" => Answer::Json(json!({"issuer": idp.url})),
            "list" => Answer::Json(json!([idp.metadata()])),
            "html" => Answer::Raw(200, "<html>".into()),
            "twice" => {
                let twice = format!(
                    r#"{{"issuer": "{}", "jwks_uri": "{}/evil", "jwks_uri": "{}"}}"#,
                    idp.url,
                    idp.origin(),
                    idp.jwks_uri()
                );
                Answer::Raw(200, twice.into())
            }
            "created" => Answer::Raw(201, idp.metadata().to_string().into()),
            _ => Answer::Redirect(302, format!("{}{}", idp.origin(), PLACES[2])),
        };
        idp.answer(PLACES[0], metadata);
        (name.to_owned(), idp)
    };
    let names = [
        "other", "slash", "case", "silent", "list", "html", "twice", "created", "redirect",
    ];
    let mut idps = Vec::new();
    for name in names {
        idps.push(first(name).await);
    }
    let issuers = idps.iter().map(|(name, idp)| idp.issuer(name)).collect();
    let world = World::of(issuers).await;
    for (name, idp) in &idps {
        let reply = world.call(&key.token(&idp.url)).await;
        assert_eq!(verdict(&reply), PASSED, "{name}: {reply:?}");
        let asked = idp.asked();
        assert_eq!(asked, [PLACES[0], PLACES[1], PLACES[2], JWKS], "{name}");
    }
    // In the order of their asking, so that they wait together.
    let forged = idps.iter().map(|(_, idp)| evil.token(&idp.url));
    let forged: Vec<_> = forged.collect();
    let replies = futures::future::join_all(forged.iter().map(|token| world.call(token))).await;
    for ((name, idp), reply) in idps.iter().zip(replies) {
        assert_eq!(verdict(&reply), refused(401, "UnknownKey"), "{name}");
        assert_eq!(idp.count("/evil"), 0, "{name}");
    }
}

#[tokio::test]
async fn a_key_set_that_is_named_is_not_looked_for() {
    let key = Key::new("k");
    let (idp, elsewhere) = (Idp::start(&key).await, Idp::start(&key).await);
    let mut issuer = idp.issuer("idp");
    keys_of(&mut issuer, |keys| {
        keys.jwks_uri = Some(elsewhere.jwks_uri())
    });
    let world = World::of(vec![issuer]).await;
    let reply = world.call(&key.token(&idp.url)).await;
    assert_eq!(verdict(&reply), PASSED, "{reply:?}");
    assert_eq!(elsewhere.asked(), [JWKS]);
    assert_eq!(idp.asked(), [""; 0]);
}

#[tokio::test]
async fn what_was_tried_is_told_and_stays_short() {
    let idp = Idp::start(&Key::new("k")).await;
    let endless = "x".repeat(400_000);
    idp.answer(
        PLACES[0],
        Answer::Json(json!({"issuer": endless, "jwks_uri": "https://x"})),
    );
    let long = format!("https://x/{endless}");
    idp.answer(
        PLACES[1],
        Answer::Json(json!({"issuer": idp.url, "jwks_uri": long})),
    );
    let world = World::of(vec![idp.issuer("idp")]).await;
    until("three places were tried", async || {
        world.issuer("idp").await.0 == "Unavailable"
    })
    .await;
    let (_, message) = world.issuer("idp").await;
    for place in PLACES {
        assert!(message.contains(place), "{message}");
    }
    for said in ["its issuer is", "longer than 2048 bytes", "status 404"] {
        assert!(message.contains(said), "{message}");
    }
    assert!(message.len() < 2000, "{} bytes", message.len());
}
