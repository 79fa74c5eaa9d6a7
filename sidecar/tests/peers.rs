//! Several sidecars of one server: the peer port, and sessions across replicas.
#![allow(clippy::unwrap_used, missing_docs)]

use sidecar_tests::common;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use common::{
    Got, PATIENCE, Reply, Script, ScriptBody, Sidecar, allow, bundle, echo, send, text, until,
};
use futures::StreamExt;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use policy::bundle::Issuer;
use serde_json::{Value, json};
use sidecar::{
    dev::DevIssuer,
    peer::{Owner, Peer, Peers},
    pipeline::now,
};
use tokio::sync::mpsc;

const CLUSTER: &str = "https://kubernetes.default.svc";
const AUDIENCE: &str = "toolward-peer/3f2c";

/// An address of this process alone, on which all ports are free.
fn address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(64);
    let [.., a, b] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, NEXT.fetch_add(1, Ordering::Relaxed), a, b).into()
}

fn free_port(address: IpAddr) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Who signs the tokens of pods, and those of callers, for all replicas.
struct Cluster {
    pods: DevIssuer,
    callers: DevIssuer,
}

impl Cluster {
    fn new() -> Self {
        Self {
            pods: DevIssuer::new().unwrap(),
            callers: DevIssuer::new().unwrap(),
        }
    }

    fn issuer(&self) -> Issuer {
        Issuer {
            name: "cluster".into(),
            issuer: CLUSTER.into(),
            service_accounts: true,
            ..self.pods.issuer()
        }
    }

    fn claims(pod: &str) -> Value {
        json!({
            "iss": CLUSTER, "aud": [AUDIENCE], "sub": "system:serviceaccount:shop:default",
            "iat": now(), "nbf": now(), "exp": now() + 600,
            "kubernetes.io": {
                "namespace": "shop",
                "pod": {"name": pod, "uid": "0c0ffee0"},
                "serviceaccount": {"name": "default", "uid": "1c0ffee1"},
            },
        })
    }

    fn token(&self, pod: &str) -> String {
        self.pods.sign(&Self::claims(pod)).unwrap()
    }

    fn caller(&self, user: &str) -> String {
        let audience = "http://orders.shop.svc/mcp";
        self.callers
            .token(user, &["staff".into()], audience, now(), common::LIFETIME)
            .unwrap()
    }

    /// A token with other claims: what is null here is left out.
    fn token_with(&self, changes: &Value) -> String {
        let mut claims = Self::claims("orders-0");
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
                value => claims[name] = value.clone(),
            }
        }
        self.pods.sign(&claims).unwrap()
    }
}

/// A sidecar with a peer port.
struct Replica {
    sidecar: Sidecar,
    name: String,
    peer: SocketAddr,
}

impl Replica {
    async fn start(name: &str, peer: SocketAddr, cluster: &Cluster, script: &Script) -> Self {
        let token = common::folder().join("token");
        std::fs::write(&token, cluster.token(name) + "\n").unwrap();
        let (upstream, port) = (
            format!("http://{}/mcp", script.address),
            peer.port().to_string(),
        );
        let args = [
            "--upstream",
            &upstream,
            "--replica",
            name,
            "--peer-token",
            token.to_str().unwrap(),
            "--peer",
            &peer.to_string(),
            "--peer-port",
            &port,
        ];
        let sidecar = Sidecar::serve(&args, |issuer| {
            let limits =
                json!([{"name": "wide", "tools": ["*"], "requests": 1_000_000, "per": "1s"}]);
            let mut bundle = bundle(issuer, allow(json!(["*"])), limits);
            bundle.peer_audience = Some(AUDIENCE.into());
            bundle.authentication.issuers = vec![cluster.callers.issuer(), cluster.issuer()];
            bundle.cluster = Some(cluster.issuer());
            Some(bundle)
        });
        Self {
            sidecar: sidecar.await.ready().await,
            name: name.to_owned(),
            peer,
        }
    }

    /// Writes the list of replicas, as the kubelet does.
    async fn knows(&self, replicas: &[(&str, IpAddr)]) {
        let replicas: Vec<_> = replicas
            .iter()
            .map(|(name, address)| json!({"name": name, "address": address}))
            .collect();
        let said = format!("count={}", replicas.len());
        let list = json!({"version": 1, "replicas": replicas}).to_string();
        let folder = &self.sidecar.folder;
        std::fs::write(folder.join("new-peers"), list).unwrap();
        std::fs::rename(folder.join("new-peers"), folder.join("peers.json")).unwrap();
        until("the list is read", async || {
            let log = self.sidecar.log.lock().unwrap();
            log.iter()
                .any(|line| line.contains("replicas are known") && line.contains(&said))
        })
        .await;
    }

    fn signal(&self, name: &str) {
        let pid = self.sidecar.child.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status();
        assert!(sent.unwrap().success());
    }

    async fn ended(&mut self) {
        until("the sidecar has ended", async || {
            self.sidecar.child.try_wait().unwrap().is_some()
        })
        .await;
    }

    /// A call by the peer port.
    async fn by_peer_port(&self, headers: &[(&str, &str)]) -> Reply {
        let mut request = Request::post(format!("http://{}/mcp", self.peer))
            .header("host", "orders.shop.svc")
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("user-agent", "test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        send(request.body(Full::from(call().to_string())).unwrap()).await
    }
}

fn call() -> Value {
    json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "get_order", "arguments": {"a": 1}}})
}

/// One replica that knows itself and another.
async fn alone(script: &Script) -> (Replica, Cluster) {
    let (cluster, address) = (Cluster::new(), address());
    let peer = SocketAddr::new(address, free_port(address));
    let replica = Replica::start("orders-1", peer, &cluster, script).await;
    let other = Ipv4Addr::new(127, 1, 2, 3).into();
    replica
        .knows(&[("orders-1", address), ("orders-0", other)])
        .await;
    (replica, cluster)
}

/// What a token can lack, the tokens shown, and the reason.
fn bad_tokens(cluster: &Cluster) -> Vec<(&'static str, Vec<String>, &'static str)> {
    let good = cluster.token("orders-0");
    let other_key = Cluster::new().token("orders-0");
    let of_callers_issuer = {
        let mut claims = Cluster::claims("orders-0");
        claims["iss"] = json!(sidecar::dev::ISSUER);
        cluster.callers.sign(&claims).unwrap()
    };
    let pod = |namespace: &str| json!({"kubernetes.io": {"namespace": namespace, "pod": {"name": "orders-0"}}});
    let both = json!({"sub": "system:serviceaccount:bank:default", "kubernetes.io": {"namespace": "bank", "pod": {"name": "orders-0"}}});
    vec![
        ("missing", vec![], "TokenMissing"),
        ("empty", vec![String::new()], "TokenOpaque"),
        ("garbage", vec!["x.y.z".into()], "TokenMalformed"),
        (
            "the caller's",
            vec![cluster.caller("alice")],
            "UnknownIssuer",
        ),
        ("twice", vec![good.clone(), good.clone()], "TokenMalformed"),
        (
            "with Bearer",
            vec![format!("Bearer {good}")],
            "TokenMalformed",
        ),
        ("another key", vec![other_key], "SignatureInvalid"),
        (
            "the callers' issuer",
            vec![of_callers_issuer],
            "UnknownIssuer",
        ),
        (
            "another audience",
            vec![cluster.token_with(&json!({"aud": ["toolward-peer/other"]}))],
            "WrongAudience",
        ),
        (
            "the server's audience",
            vec![cluster.token_with(&json!({"aud": "http://orders.shop.svc/mcp"}))],
            "WrongAudience",
        ),
        (
            "expired",
            vec![cluster.token_with(&json!({"exp": now() - 1}))],
            "TokenExpired",
        ),
        (
            "not yet",
            vec![cluster.token_with(&json!({"nbf": now() + 3600}))],
            "TokenNotYetValid",
        ),
        (
            "no pod",
            vec![cluster.token_with(&json!({"kubernetes.io": {"namespace": "shop"}}))],
            "ClaimInvalid",
        ),
        (
            "no binding",
            vec![cluster.token_with(&json!({"kubernetes.io": null}))],
            "ClaimInvalid",
        ),
        (
            "another namespace",
            vec![cluster.token_with(&both)],
            "ClaimInvalid",
        ),
        (
            "a pod of another namespace",
            vec![cluster.token_with(&pod("bank"))],
            "ClaimInvalid",
        ),
        (
            "an account of another namespace",
            vec![cluster.token_with(&json!({"sub": "system:serviceaccount:bank:default"}))],
            "ClaimInvalid",
        ),
        (
            "no service account",
            vec![cluster.token_with(&json!({"sub": "alice"}))],
            "ClaimInvalid",
        ),
        (
            "not a peer",
            vec![cluster.token("invoices-0")],
            "ClaimInvalid",
        ),
    ]
}

#[tokio::test]
async fn the_peer_port_is_for_pods_of_this_server_only() {
    let script = Script::start(echo).await;
    let (replica, cluster) = alone(&script).await;
    let authorization = format!("Bearer {}", cluster.caller("alice"));
    let (good, cases) = (cluster.token("orders-0"), bad_tokens(&cluster));
    for (what, tokens, reason) in &cases {
        let mut headers = vec![("authorization", authorization.as_str())];
        headers.extend(tokens.iter().map(|token| ("toolward-peer", token.as_str())));
        let reply = replica.by_peer_port(&headers).await;
        assert_eq!(
            (reply.status, &reply.json()["error"]["data"]["reason"]),
            (403, &json!(reason)),
            "{what}: {reply:?}"
        );
        let record = replica.sidecar.audited();
        assert_eq!(
            (&record["decision"], &record["reason"], &record["method"]),
            (&json!("Deny"), &json!(reason), &json!("peer")),
            "{what}"
        );
    }
    assert_eq!(script.got.lock().unwrap().len(), 0, "it was forwarded");

    // The token opens the port, and nothing else: the caller is checked again.
    let reply = replica.by_peer_port(&[("toolward-peer", &good)]).await;
    assert_eq!(reply.status, 401, "{reply:?}");
    let headers = [
        ("toolward-peer", good.as_str()),
        ("authorization", &authorization),
    ];
    let reply = replica.by_peer_port(&headers).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(!script.last().headers.contains_key("toolward-peer"));
    println!(
        "{} peer tokens: {} refused, 1 taken",
        cases.len() + 1,
        cases.len()
    );
}

#[tokio::test]
async fn a_peers_token_means_nothing_on_the_mcp_port() {
    let script = Script::start(echo).await;
    let (replica, cluster) = alone(&script).await;
    let (sidecar, token) = (&replica.sidecar, cluster.token("orders-0"));
    let forged = [("toolward-peer", token.as_str())];
    let reply = sidecar.post("x", &forged, call().to_string()).await;
    assert_eq!(reply.status, 401, "{reply:?}");
    let reply = sidecar.post(&token, &forged, call().to_string()).await;
    assert_eq!(
        reply.status, 401,
        "a peer's token is no caller's: {reply:?}"
    );
    assert_eq!(script.got.lock().unwrap().len(), 0);
    let reply = sidecar
        .post(&cluster.caller("alice"), &forged, call().to_string())
        .await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(!script.last().headers.contains_key("toolward-peer"));
}

#[tokio::test]
async fn ids_of_unknown_replicas_are_404_and_nothing_is_dialled() {
    let script = Script::start(echo).await;
    let (replica, cluster) = alone(&script).await;
    let port = replica.peer.port();
    // What would be dialled if a name were taken as an address.
    let dialled = Arc::new(AtomicUsize::new(0));
    for address in ["127.0.0.1", "127.1.2.4"] {
        let listener = tokio::net::TcpListener::bind((address, port))
            .await
            .unwrap();
        let dialled = Arc::clone(&dialled);
        tokio::spawn(async move {
            while let Ok(connection) = listener.accept().await {
                dialled.fetch_add(1, Ordering::Relaxed);
                drop(connection);
            }
        });
    }
    let digits = "0123456789abcdef0123456789abcdef";
    let names = [
        "127.0.0.1",
        "127.1.2.4",
        "localhost",
        "orders-9",
        "../orders-0",
        "orders-0:80",
        "127.0.0.1:80",
        "http://127.0.0.1",
        "orders-0.",
        "ORDERS-0",
        "orders-0@127.0.0.1",
        "[::1]",
        "2130706433",
    ];
    let asked = names.map(|name| {
        let (sidecar, id) = (&replica.sidecar, format!("{digits}-{name}"));
        let token = cluster.caller("alice");
        async move {
            let headers = [("mcp-session-id", id.as_str())];
            let reply = sidecar.post(&token, &headers, call().to_string()).await;
            assert_eq!(reply.status, 404, "{name}: {reply:?}");
            assert_eq!(
                reply.json()["error"]["data"]["reason"],
                "SessionUnknown",
                "{name}"
            );
        }
    });
    futures::future::join_all(asked).await;
    assert_eq!(dialled.load(Ordering::Relaxed), 0, "a name was dialled");
    assert_eq!(script.got.lock().unwrap().len(), 0);
}

/// Another replica of `replica`, in this process.
fn other(replica: &Replica, cluster: &Cluster) -> (Arc<Peers>, Peer, tokio::task::JoinHandle<()>) {
    let folder = common::folder();
    let peers = Arc::new(Peers::new("orders-0".into(), replica.peer.port()));
    let list =
        json!({"version": 1, "replicas": [{"name": replica.name, "address": replica.peer.ip()}]});
    let (list_file, token_file) = (folder.join("peers.json"), folder.join("token"));
    std::fs::write(&list_file, list.to_string()).unwrap();
    std::fs::write(&token_file, cluster.token("orders-0")).unwrap();
    let following = tokio::spawn(Arc::clone(&peers).follow(list_file, token_file));
    let peer = Peer {
        name: replica.name.clone(),
        address: replica.peer,
    };
    (peers, peer, following)
}

fn parts(token: &str) -> http::request::Parts {
    let request = Request::post("/mcp")
        .header("host", "orders.shop.svc")
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("user-agent", "test")
        .header("authorization", format!("Bearer {token}"));
    request.body(()).unwrap().into_parts().0
}

/// A server that streams what it is given; what is sent to `ended` tells that
/// its stream was dropped.
async fn streaming() -> (Script, mpsc::Sender<&'static str>, mpsc::Receiver<()>) {
    struct Ends(mpsc::Sender<()>);
    impl Drop for Ends {
        fn drop(&mut self) {
            let _ = self.0.try_send(());
        }
    }
    let (give, given) = mpsc::channel::<&'static str>(8);
    let (ends, ended) = mpsc::channel(8);
    let given = std::sync::Mutex::new(Some(given));
    let script = Script::start(move |_: &Got| -> Response<ScriptBody> {
        let Some(given) = given.lock().unwrap().take() else {
            return Response::builder().status(500).body(text("")).unwrap();
        };
        let state = (given, Ends(ends.clone()));
        let events = futures::stream::unfold(state, |(mut given, ends)| async move {
            let event = given.recv().await?;
            Some((Ok(Frame::data(Bytes::from(event))), (given, ends)))
        });
        Response::builder()
            .header("content-type", "text/event-stream")
            .body(StreamBody::new(events).boxed_unsync())
            .unwrap()
    })
    .await;
    (script, give, ended)
}

const EVENT: &str = "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{\"data\":\"one\"}}\n\n";

#[tokio::test]
async fn a_forwarded_answer_streams_and_its_client_can_leave() {
    let (script, give, mut ended) = streaming().await;
    let (replica, cluster) = alone(&script).await;
    let (peers, peer, following) = other(&replica, &cluster);
    let id = format!("0123456789abcdef0123456789abcdef-{}", replica.name);
    assert_eq!(peers.owner(&id).await, Owner::Peer(peer.clone()));
    let parts = parts(&cluster.caller("alice"));
    until("the token is read", async || {
        // A request that does not reach the server: its path is another.
        let mut other = parts.clone();
        other.uri = "/other".parse().unwrap();
        let answer = peers.forward(&peer, &other, Bytes::new()).await;
        answer.is_ok_and(|answer| answer.status() == 404)
    })
    .await;
    give.send(EVENT).await.unwrap();
    let answer = peers
        .forward(&peer, &parts, call().to_string().into())
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let mut frames = answer.into_body().into_data_stream();
    for _ in 0..2 {
        let event = frames.next().await.unwrap().unwrap();
        assert_eq!(event, EVENT, "held back or changed");
        give.send(EVENT).await.unwrap();
    }
    assert!(ended.try_recv().is_err());
    drop(frames);
    tokio::time::timeout(PATIENCE, ended.recv())
        .await
        .expect("the server was never told that the client left");
    following.abort();
}

#[tokio::test]
async fn a_replica_that_dies_resets_its_streams_and_then_is_404() {
    let (script, give, _ended) = streaming().await;
    let (mut replica, cluster) = alone(&script).await;
    let (peers, peer, following) = other(&replica, &cluster);
    let parts = parts(&cluster.caller("alice"));
    give.send(EVENT).await.unwrap();
    until("the token is read", async || {
        let mut other = parts.clone();
        other.uri = "/other".parse().unwrap();
        let answer = peers.forward(&peer, &other, Bytes::new()).await;
        answer.is_ok_and(|answer| answer.status() == 404)
    })
    .await;
    let answer = peers
        .forward(&peer, &parts, call().to_string().into())
        .await
        .unwrap();
    let mut frames = answer.into_body().into_data_stream();
    assert_eq!(frames.next().await.unwrap().unwrap(), EVENT);
    replica.sidecar.child.kill().unwrap();
    replica.sidecar.child.wait().unwrap();
    let end = tokio::time::timeout(PATIENCE, frames.next()).await.unwrap();
    assert!(matches!(end, Some(Err(_))), "a clean end: {end:?}");
    let refusal = peers
        .forward(&peer, &parts, call().to_string().into())
        .await
        .unwrap_err();
    assert_eq!(
        (refusal.status.as_u16(), refusal.reason),
        (404, policy::Reason::SessionUnknown)
    );
    following.abort();
}

#[tokio::test]
async fn a_token_that_the_peer_does_not_take_is_502_and_a_new_one_is_read() {
    let script = Script::start(echo).await;
    let (replica, cluster) = alone(&script).await;
    let folder = common::folder();
    let (list, token) = (folder.join("peers.json"), folder.join("token"));
    let peers = Arc::new(Peers::new("orders-0".into(), replica.peer.port()));
    std::fs::write(&token, cluster.token("invoices-0")).unwrap();
    let following = tokio::spawn(Arc::clone(&peers).follow(list, token.clone()));
    let peer = Peer {
        name: replica.name.clone(),
        address: replica.peer,
    };
    let parts = parts(&cluster.caller("alice"));
    let forward = async || {
        peers
            .forward(&peer, &parts, call().to_string().into())
            .await
    };
    assert_eq!(forward().await.unwrap_err().status, 502);
    // As the kubelet does: a new file in place of the old one.
    let next = folder.join("next");
    std::fs::write(&next, cluster.token("orders-0")).unwrap();
    std::fs::rename(&next, &token).unwrap();
    until("the new token is shown", async || {
        forward().await.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    following.abort();
}

/// What a leaving replica does not take is answered with 404: no request ends
/// without an answer, which would leave it open whether it was carried out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_leaves_answers_all_that_reaches_it() {
    let script = Script::start(echo).await;
    let (mut replica, cluster) = alone(&script).await;
    let (peers, peer, following) = other(&replica, &cluster);
    let parts = parts(&cluster.caller("alice"));
    until("the token is read", async || {
        let answer = peers
            .forward(&peer, &parts, call().to_string().into())
            .await;
        answer.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    // Each calls on, as callers do that know nothing, until its session is gone.
    let callers = (0..16).map(|_| {
        let (peers, peer, parts) = (Arc::clone(&peers), peer.clone(), parts.clone());
        tokio::spawn(async move {
            for answered in 0_u64.. {
                let answer = peers
                    .forward(&peer, &parts, call().to_string().into())
                    .await
                    .map_err(|refusal| (refusal.status, refusal.message))
                    .unwrap();
                let status = answer.status();
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                match status.as_u16() {
                    200 => {}
                    404 => return answered,
                    _ => panic!("{status}: {body:?}"),
                }
            }
            0
        })
    });
    let callers: Vec<_> = callers.collect();
    replica.signal("-USR1");
    let answered = tokio::time::timeout(PATIENCE, futures::future::try_join_all(callers));
    let answered: u64 = answered.await.unwrap().unwrap().iter().sum();
    replica.signal("-TERM");
    replica.ended().await;
    println!("{answered} calls answered while it left, then 16 of 16 were told");
    following.abort();
}

/// Its kubelet brings it no news of replicas that come now: their callers start anew.
#[tokio::test]
async fn a_replica_that_leaves_tells_new_ones_that_its_sessions_are_over() {
    let script = Script::start(echo).await;
    let (mut replica, cluster) = alone(&script).await;
    let (token, caller) = (cluster.token("orders-9"), cluster.caller("alice"));
    let caller = format!("Bearer {caller}");
    let headers = [
        ("toolward-peer", token.as_str()),
        ("authorization", &caller),
    ];
    let reply = replica.by_peer_port(&headers).await;
    assert_eq!(reply.status, 403);
    assert_eq!(reply.headers["toolward-peer"], "refused");
    replica.signal("-USR1");
    until("it leaves", async || {
        let reply = replica.by_peer_port(&headers).await;
        reply.status == 404 && !reply.headers.contains_key("toolward-peer")
    })
    .await;
    // Those that it knows are served on.
    let token = cluster.token("orders-0");
    let headers = [
        ("toolward-peer", token.as_str()),
        ("authorization", &caller),
    ];
    assert_eq!(replica.by_peer_port(&headers).await.status, 200);
    replica.signal("-TERM");
    replica.ended().await;
}

/// The server could listen in its place, and would get what is still sent.
#[tokio::test]
async fn a_replica_that_ends_holds_its_ports() {
    let (script, give, _ended) = streaming().await;
    let (mut replica, cluster) = alone(&script).await;
    give.send(EVENT).await.unwrap();
    let request = replica.sidecar.request(&cluster.caller("alice"));
    let request = request.body(Full::from(call().to_string())).unwrap();
    let mut stream = common::open(request).await.into_body().into_data_stream();
    assert_eq!(stream.next().await.unwrap().unwrap(), EVENT);
    replica.signal("-TERM");
    until("calls are taken no more", async || {
        let reply = replica.by_peer_port(&[]).await;
        reply.status == 404 && reply.headers["connection"] == "close"
    })
    .await;
    for address in [replica.sidecar.mcp, replica.sidecar.admin, replica.peer] {
        assert!(TcpListener::bind(address).is_err(), "{address} is free");
    }
    assert!(replica.sidecar.child.try_wait().unwrap().is_none());
    drop((stream, give));
    replica.ended().await;
}

/// A server with sessions, whose ids say which server it is.
async fn with_sessions(name: &'static str) -> Script {
    Script::start(move |got| {
        let message: Value = serde_json::from_slice(&got.body).unwrap_or_default();
        let mut answer = echo(got);
        if message["method"] == "initialize" {
            let result = json!({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": name, "version": "1"}});
            answer = common::json_answer(&json!({"jsonrpc": "2.0", "id": message["id"], "result": result}));
            let id = format!("session-of-{name}").parse().unwrap();
            answer.headers_mut().insert("mcp-session-id", id);
        }
        answer.headers_mut().insert("x-server", name.parse().unwrap());
        answer
    })
    .await
}

fn session_of(headers: &HeaderMap) -> String {
    headers["mcp-session-id"].to_str().unwrap().to_owned()
}

/// Three replicas, each with a server of its own: a session works through any of
/// them, belongs to its caller everywhere, and is 404 when its replica is gone.
#[tokio::test]
async fn a_session_works_through_every_replica() {
    let cluster = Cluster::new();
    let addresses = [address(), address(), address()];
    let port = free_port(addresses[0]);
    let names = ["orders-0", "orders-1", "orders-2"];
    let mut replicas = Vec::new();
    let mut scripts = Vec::new();
    for (name, address) in names.into_iter().zip(addresses) {
        let script = with_sessions(name).await;
        let peer = SocketAddr::new(address, port);
        replicas.push(Replica::start(name, peer, &cluster, &script).await);
        scripts.push(script);
    }
    let all: Vec<_> = names.into_iter().zip(addresses).collect();
    for replica in &replicas {
        replica.knows(&all).await;
    }
    let initialize = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}});
    let mut answered = 0;
    for (home, script) in scripts.iter().enumerate() {
        let owner = &replicas[home];
        let reply = owner
            .sidecar
            .post(&cluster.caller("alice"), &[], initialize.to_string())
            .await;
        let id = session_of(&reply.headers);
        assert_eq!(id.split_once('-').unwrap().1, names[home], "{id}");
        for replica in &replicas {
            let before = script.got.lock().unwrap().len();
            let headers = [("mcp-session-id", id.as_str())];
            let reply = replica
                .sidecar
                .post(&cluster.caller("alice"), &headers, call().to_string())
                .await;
            assert_eq!(
                reply.status, 200,
                "{} through {}: {reply:?}",
                names[home], replica.name
            );
            assert_eq!(script.got.lock().unwrap().len(), before + 1);
            answered += 1;
            let thief = cluster.caller("mallory");
            let reply = replica
                .sidecar
                .post(&thief, &headers, call().to_string())
                .await;
            assert_eq!(reply.status, 404, "another caller's session: {reply:?}");
        }
    }
    println!("{answered} calls through every replica to every other: all answered");
}
