//! Foreign hosts and origins (DNS rebinding).

use serde_json::Value;

use crate::{
    call, guarded,
    wire::{Raw, request},
};

const FOREIGN_HOSTS: &[&[&str]] = &[
    &[],
    &[""],
    &["evil.example"],
    &["evil.example:9440"],
    &["orders.shop.svc.evil.example"],
    &["orders.shop.svc@evil.example"],
    &["evil.example@orders.shop.svc"],
    &["orders.shop.svc."],
    &["127.0.0.1.evil.example"],
    &["127.1"],
    &["2130706433"],
    &["0x7f000001"],
    &["0.0.0.0"],
    &["[::]"],
    &["[::ffff:127.0.0.1]"],
    &["169.254.169.254"],
    &["localhost.evil.example"],
    &["localhost:x"],
    &["localhost:"],
    &["localhost:+80"],
    &["localhost:65536"],
    &["orders.shop.svc orders.shop.svc"],
    &["orders.shop.svc, evil.example"],
    &["orders.shop.svc/evil"],
    &["orders.shop.svc", "evil.example"],
    &["evil.example", "orders.shop.svc"],
    &["orders.shop.svc", "orders.shop.svc"],
    &["xn--orders-shop-svc"],
    &["ordеrs.shop.svc"],
];
const FOREIGN_ORIGINS: &[&[&str]] = &[
    &[""],
    &["null"],
    &["http://evil.example"],
    &["https://evil.example"],
    &["http://evil.example:9440"],
    &["http://orders.shop.svc.evil.example"],
    &["http://orders.shop.svc@evil.example"],
    &["orders.shop.svc"],
    &["//orders.shop.svc"],
    &["file://orders.shop.svc"],
    &["file:///"],
    &["chrome-extension://orders.shop.svc"],
    &["ws://orders.shop.svc"],
    &["http:orders.shop.svc"],
    &["http://"],
    &["http://127.0.0.1.evil.example"],
    &["http://[::ffff:127.0.0.1]"],
    &["http://0.0.0.0"],
    &["http://2130706433"],
    &["http://orders.shop.svc http://evil.example"],
    &["http://orders.shop.svc, http://evil.example"],
    &["http://orders.shop.svc", "http://evil.example"],
    &["http://evil.example", "http://orders.shop.svc"],
    &["http://orders.shop.svc", "http://orders.shop.svc"],
    &["http://orders.shop.svc."],
    &["http://orders.shop.svc:x"],
    &["http://localhost:+80"],
    &["http://ordеrs.shop.svc"],
];

#[tokio::test(flavor = "multi_thread")]
async fn foreign_hosts_and_origins_are_403() {
    let (script, sidecar) = guarded().await;
    let (bearer, body) = (
        format!("Bearer {}", sidecar.token("alice")),
        call("x").to_string(),
    );
    let length = body.len().to_string();
    let send = async |hosts: &[&str], origins: &[&str]| {
        let mut headers = vec![
            ("user-agent", "foreign"),
            ("content-type", "application/json"),
            ("accept", "application/json, text/event-stream"),
            ("content-length", &length),
            ("authorization", &bearer),
        ];
        headers.extend(hosts.iter().map(|host| ("host", *host)));
        headers.extend(origins.iter().map(|origin| ("origin", *origin)));
        let mut raw = Raw::connect(sidecar.mcp).await;
        raw.send(request("POST /mcp HTTP/1.1", &headers, body.as_bytes()))
            .await
            .unwrap();
        raw.answer().await.expect("no answer")
    };
    let ours = ["orders.shop.svc"];
    let mut wrong = Vec::new();
    let foreign = FOREIGN_HOSTS.iter().map(|hosts| (*hosts, &[][..]));
    let foreign = foreign.chain(FOREIGN_ORIGINS.iter().map(|origins| (&ours[..], *origins)));
    for (hosts, origins) in foreign {
        let answer = send(hosts, origins).await;
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let reason = body["error"]["data"]["reason"].as_str().unwrap_or_default();
        if answer.status != 403 || !["HostNotAllowed", "OriginNotAllowed"].contains(&reason) {
            wrong.push((hosts, origins, answer.status, body));
        }
    }
    assert!(wrong.is_empty(), "not refused with 403: {wrong:#?}");
    assert_eq!(
        script.got.lock().unwrap().len(),
        0,
        "a foreign request was forwarded"
    );
    let origins: [&[&str]; 4] = [
        &[],
        &["http://orders.shop.svc"],
        &["https://ORDERS.shop.svc:8443"],
        &["http://localhost:3000"],
    ];
    for origins in origins {
        assert_eq!(send(&ours, origins).await.status, 200, "{origins:?}");
    }
    let count = FOREIGN_HOSTS.len() + FOREIGN_ORIGINS.len();
    println!("row 14: {count} of {count} foreign hosts and origins refused with 403");
}
