//! Many clients, all with the same JSON-RPC ids.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;

use crate::{call, cases, guarded};

/// Calls of each client, with the ids 0, 1, 2, …
const CALLS: usize = 100;
/// Calls of a client on their way at once.
const AT_ONCE: usize = 8;
/// Clients at once: each call holds four descriptors of this machine.
const CLIENTS: usize = 200;

/// Gives how many answers were for somebody else.
async fn client(url: Arc<String>, token: String, name: String, is_http2: bool) -> usize {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new())
        .http2_only(is_http2)
        .build_http();
    let calls = stream::iter(0..CALLS).map(|id| {
        let (client, url, token, argument) = (&client, &url, &token, format!("{name} {id}"));
        async move {
            let mut message = call(&argument);
            message["id"] = id.into();
            let request = Request::post(url.as_str())
                .header("content-type", "application/json")
                .header("accept", "application/json, text/event-stream")
                .header("user-agent", "ids")
                .header("authorization", format!("Bearer {token}"))
                .body(Full::from(message.to_string()))
                .unwrap();
            let answer = client.request(request).await.unwrap();
            assert_eq!(answer.status(), 200);
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            let answer: Value = serde_json::from_slice(&body).unwrap();
            let text = answer["result"]["content"][0]["text"]
                .as_str()
                .unwrap_or_default();
            let echoed: Value = serde_json::from_str(text).unwrap();
            usize::from(answer["id"] != id || echoed["a"] != *argument)
        }
    });
    calls
        .buffer_unordered(AT_ONCE)
        .fold(0, async |sum, wrong| sum + wrong)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_go_to_who_asked() {
    let (script, sidecar) = guarded().await;
    let clients = cases() / CALLS;
    let url = Arc::new(format!("http://{}/mcp", sidecar.mcp));
    let all = stream::iter(0..clients).map(|number| {
        let name = format!("user-{number}");
        let token = sidecar.token(&name);
        // Half of them over HTTP/2, where all calls share a connection.
        tokio::spawn(client(Arc::clone(&url), token, name, number % 2 == 0))
    });
    let wrong = all
        .buffer_unordered(CLIENTS)
        .fold(0, async |sum, wrong| sum + wrong.unwrap())
        .await;
    assert_eq!(script.got.lock().unwrap().len(), clients * CALLS);
    println!(
        "row 10: {clients} clients with the same ids, {CALLS} calls each: {wrong} answers to the wrong caller"
    );
    assert_eq!(wrong, 0);
}
