//! A stream ends with its token, and with what its token is good by.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Response};
use http_body::Frame;
use http_body_util::{BodyDataStream, BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use policy::bundle::KeySource;
use serde_json::json;
use tokio::sync::broadcast;

use crate::{
    common::{Got, Script, ScriptBody},
    idp::{Idp, Key, claims, keys_of},
    world::{World, bundle, refused, staff, verdict},
};

/// How long the token is valid, in seconds.
const LEFT: u64 = 4;

/// Events that the test sends one by one.
fn events(feed: broadcast::Receiver<Bytes>) -> Response<ScriptBody> {
    let frames = futures::stream::unfold(feed, |mut feed| async move {
        let event = feed.recv().await.ok()?;
        Some((Ok(Frame::data(event)), feed))
    });
    Response::builder()
        .header("content-type", "text/event-stream")
        .body(BodyExt::boxed_unsync(StreamBody::new(frames)))
        .unwrap()
}

/// A call or what the server says by itself, as a stream.
async fn opened(world: &World, token: &str, method: Method) -> BodyDataStream<Incoming> {
    let call =
        json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "get_order"}});
    let mut request = world.sidecar.request(token).body(Full::default()).unwrap();
    *request.method_mut() = method;
    if request.method() == Method::POST {
        *request.body_mut() = Full::new(Bytes::from(call.to_string()));
    }
    let answer = world.open(request).await;
    assert_eq!(answer.status(), 200);
    answer.into_body().into_data_stream()
}

fn event(n: u32) -> Bytes {
    let message = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"n": n}});
    Bytes::from(format!("data: {message}\n\n"))
}

/// The next event, or the end.
async fn soon(stream: &mut BodyDataStream<Incoming>) -> Option<Result<Bytes, hyper::Error>> {
    loop {
        let next = tokio::time::timeout(Duration::from_secs(30), stream.next()).await;
        match next.expect("nothing comes, and no end") {
            // A comment, where it was quiet for long.
            Some(Ok(bytes)) if bytes.starts_with(b":") => {}
            next => return next,
        }
    }
}

#[tokio::test]
async fn an_open_stream_ends_when_its_token_expires() {
    let (feed, _) = broadcast::channel(16);
    let source = feed.clone();
    let script = Script::start(move |_: &Got| events(source.subscribe())).await;
    let key = Key::new("k");
    let idp = Idp::start(&key).await;
    let issuers = vec![idp.issuer("idp")];
    let world = World::in_front_of(script, &[], |dev| bundle(dev, staff(), issuers)).await;
    let token = |left: u64| {
        let mut claims = claims(&idp.url);
        claims["exp"] = json!(sidecar::pipeline::now() + left);
        (claims["exp"].as_u64().unwrap(), key.sign(&claims))
    };
    let ((expires, short), (_, long)) = (token(LEFT), token(600));
    let mut ending = [
        opened(&world, &short, Method::POST).await,
        opened(&world, &short, Method::GET).await,
    ];
    let mut staying = [
        opened(&world, &long, Method::POST).await,
        opened(&world, &long, Method::GET).await,
    ];
    feed.send(event(1)).unwrap();
    for stream in ending.iter_mut().chain(&mut staying) {
        assert_eq!(soon(stream).await.unwrap().unwrap(), event(1));
    }
    for stream in &mut ending {
        let end = soon(stream).await;
        assert!(
            end.is_some_and(|end| end.is_err()),
            "it ended as if it were whole"
        );
        assert!(sidecar::pipeline::now() >= expires, "it ended too early");
    }
    feed.send(event(2)).unwrap();
    for stream in &mut staying {
        assert_eq!(soon(stream).await.unwrap().unwrap(), event(2));
    }
    let reply = world.call(&short).await;
    assert_eq!(verdict(&reply), refused(401, "TokenExpired"));
}

#[tokio::test]
async fn an_open_stream_outlives_new_keys_and_not_its_issuer() {
    let (feed, _) = broadcast::channel(16);
    let source = feed.clone();
    let script = Script::start(move |_: &Got| events(source.subscribe())).await;
    let key = Key::new("k");
    let idp = Idp::start(&key).await;
    let issuers = vec![idp.issuer("idp")];
    let first = issuers.clone();
    let world = World::in_front_of(script, &[], |dev| bundle(dev, staff(), first)).await;
    let token = key.token(&idp.url);
    let mut streams = [
        opened(&world, &token, Method::POST).await,
        opened(&world, &token, Method::GET).await,
    ];
    // The cluster's keys, as where a rotation begins.
    let mut rotated = bundle(&world.sidecar.issuer, staff(), issuers.clone());
    let cluster = rotated.cluster.as_mut().unwrap();
    let KeySource::Inline(jwks) = &mut cluster.keys else {
        unreachable!()
    };
    let keys = jwks["keys"].as_array_mut().unwrap();
    keys.push(Key::new("next").jwk());
    world.sidecar.rewrite(&rotated).await;
    // What is said of this issuer's callers, to the same effect.
    let mut longer = issuers.clone();
    keys_of(&mut longer[0], |keys| keys.max_age_seconds += 60);
    world.renew(longer).await;
    feed.send(event(1)).unwrap();
    for stream in &mut streams {
        assert_eq!(soon(stream).await.unwrap().unwrap(), event(1));
    }
    // Who it is may be another now.
    let mut others = issuers;
    others[0].claims.agent = Some("jti".to_owned());
    world.renew(others).await;
    for stream in &mut streams {
        let end = soon(stream).await;
        assert!(end.is_some_and(|end| end.is_err()), "it goes on");
    }
}
