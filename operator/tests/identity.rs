//! The keys of sidecars, from their admin ports to the ConfigMap: what an honest
//! sidecar tells is published, and what a server tells in its place is not.
#![allow(clippy::unwrap_used, missing_docs)]

use operator_tests::fake;

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use fake::Fake;
use http::{HeaderMap, Request, Response, StatusCode, header::AUTHORIZATION};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use operator::{
    delivery::Delivery,
    names::{ADMIN_PORT, Key},
    server::Servers,
    workers::Reconcile,
};
use sealed::{Nonce, Opener, Proof, PublicKey, Sealed, seal};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// How long is waited for what has to come: a slow machine is no failure.
const PATIENCE: Duration = Duration::from_secs(60);
const POD: (&str, &str, &str) = ("default", "orders-a", "uid-orders-a");
const AUDIENCE: &str = "toolward-identity/uid-orders";

/// An address of this process alone, on which the admin port is free.
fn address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(128);
    let [.., a, b] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, NEXT.fetch_add(1, Ordering::Relaxed), a, b).into()
}

fn key() -> PublicKey {
    Opener::new().unwrap().public_key().clone()
}

/// What the admin port answers to a question for the key.
type Answer = Box<dyn Fn(&Question) -> (u16, String) + Send + Sync>;

/// A question, as whoever has the admin port sees it.
struct Question {
    token: String,
    key: PublicKey,
    nonce: Nonce,
}

impl Question {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers[name].to_str().unwrap();
        let token = text(AUTHORIZATION.as_str());
        Self {
            token: token.strip_prefix("Bearer ").unwrap().to_owned(),
            key: PublicKey::of_text(text(sealed::PUBLIC_KEY_HEADER)).unwrap(),
            nonce: Nonce::of_text(text(sealed::NONCE_HEADER)).unwrap(),
        }
    }

    fn sealed(&self, jwk: &PublicKey, token: &str) -> Sealed {
        let proof = Proof {
            jwk: jwk.clone(),
            token: token.to_owned(),
        };
        seal(&proof, &self.key, &self.nonce).unwrap()
    }

    fn answer(&self, jwk: &PublicKey, token: &str) -> (u16, String) {
        let sealed = self.sealed(jwk, token);
        (200, serde_json::to_string(&sealed).unwrap())
    }
}

/// Whoever has the admin port of a pod.
struct Port {
    address: IpAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    /// What `/status` says.
    status: Value,
    answer: Answer,
    asked: u32,
}

impl Port {
    async fn open() -> Self {
        let address = address();
        let listener = TcpListener::bind((address, ADMIN_PORT)).await.unwrap();
        let state = State {
            status: json!({"bundle": {"reads": 2}, "upstream": {"state": "Serving"}}),
            answer: Box::new(|_| (404, String::new())),
            asked: 0,
        };
        let state = Arc::new(Mutex::new(state));
        let serving = Arc::clone(&state);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = Arc::clone(&serving);
                let service = service_fn(move |request: Request<Incoming>| {
                    let (status, body) = state.lock().unwrap().answer(&request);
                    let answer = Response::builder().status(StatusCode::from_u16(status).unwrap());
                    let answer = answer.body(Full::new(Bytes::from(body))).unwrap();
                    async move { Ok::<_, Infallible>(answer) }
                });
                tokio::spawn(async move {
                    let connection = http1::Builder::new();
                    // Whoever asks may hang up.
                    drop(
                        connection
                            .serve_connection(TokioIo::new(stream), service)
                            .await,
                    );
                });
            }
        });
        Self { address, state }
    }

    /// Names a key in the status, and answers like this where it is asked for.
    fn is(&self, kid: &str, answer: impl Fn(&Question) -> (u16, String) + Send + Sync + 'static) {
        let mut state = self.state.lock().unwrap();
        state.status["identity"] = json!({"kid": kid, "published": false});
        state.answer = Box::new(answer);
        state.asked = 0;
    }

    /// The sidecar itself, with this key and the token of its pod.
    fn is_honest(&self, own: &PublicKey) {
        let (kid, own) = (own.kid(), own.clone());
        self.is(&kid, move |question| question.answer(&own, "the pod's"));
    }

    fn asked(&self) -> u32 {
        self.state.lock().unwrap().asked
    }
}

impl State {
    fn answer(&mut self, request: &Request<Incoming>) -> (u16, String) {
        match request.uri().path() {
            "/status" => (200, self.status.to_string()),
            sealed::PATH => {
                self.asked += 1;
                (self.answer)(&Question::of(request.headers()))
            }
            _ => (404, String::new()),
        }
    }
}

/// A server with a pod whose admin port somebody has.
struct World {
    fake: Fake,
    port: Port,
    servers: Servers,
    delivery: Delivery,
    key: Key,
    memories: (
        <Servers as Reconcile>::Memory,
        <Delivery as Reconcile>::Memory,
    ),
}

impl World {
    async fn new() -> Self {
        let (fake, port) = (Fake::new(), Port::open().await);
        fake.put(
            "mcpservers",
            json!({
                "metadata": {"name": "orders", "namespace": "shop", "uid": "uid-orders", "generation": 1},
                "spec": {
                    "identity": {},
                    "deployment": {"image": "registry.example/orders:1"},
                    "transport": {"type": "StreamableHttp"},
                },
            }),
        );
        fake.know_token("the pod's", AUDIENCE, POD);
        let servers = fake.servers();
        let delivery = fake.delivery(&servers);
        let mut world = Self {
            fake,
            port,
            servers,
            delivery,
            key: Fake::key("orders"),
            memories: Default::default(),
        };
        world.round().await;
        assert_eq!(world.keys(), json!([]));
        // A pod does not start without it.
        let writes = world.fake.writes();
        let at = |what: &str| writes.iter().position(|write| write == what).unwrap();
        let made = at("PATCH configmaps/orders-toolward-identity");
        assert!(made < at("PATCH deployments/orders"), "{writes:?}");
        world.put_pod("1");
        world
    }

    fn put_pod(&self, version: &str) {
        let (_, name, uid) = POD;
        self.fake.put(
            "pods",
            json!({
                "metadata": {"name": name, "namespace": "shop", "uid": uid, "labels": {"toolward.dev/server": "orders"}, "annotations": {"of-the-test": version}},
                "spec": {"containers": []},
                "status": {
                    "phase": "Running", "podIP": self.port.address.to_string(),
                    "initContainerStatuses": [{
                        "name": "toolward-sidecar", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                        "state": {"running": {}},
                    }],
                },
            }),
        );
    }

    /// All that there is to do is done once.
    async fn round(&mut self) {
        self.fake.sync();
        let (servers, deliveries) = &mut self.memories;
        self.servers.reconcile(&self.key, servers).await.unwrap();
        self.fake.sync();
        self.delivery
            .reconcile(&self.key, deliveries)
            .await
            .unwrap();
        self.fake.sync();
        self.servers.reconcile(&self.key, servers).await.unwrap();
    }

    /// Rounds until it holds.
    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        self.round().await;
        while !holds(self) {
            assert!(Instant::now() < deadline, "never: {what}: {}", self.says());
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.round().await;
        }
    }

    fn data(&self, file: &str) -> Value {
        let map = self.fake.get("configmaps", "orders-toolward-identity");
        let text = map.unwrap()["data"][file].as_str().unwrap().to_owned();
        serde_json::from_str(&text).unwrap()
    }

    /// The keys that are published.
    fn keys(&self) -> Value {
        self.data("jwks.json")["keys"].clone()
    }

    /// What the status says of readiness.
    fn says(&self) -> String {
        let server = self.fake.get("mcpservers", "orders").unwrap();
        let conditions = server["status"]["conditions"].as_array().cloned();
        let mut conditions = conditions.unwrap_or_default().into_iter();
        let ready = conditions.find(|condition| condition["type"] == "Ready");
        ready.map_or_else(String::new, |ready| {
            format!("{}/{}", ready["reason"], ready["message"])
        })
    }

    /// A key that somebody else would like to be published is not, and why.
    async fn refuses(
        &mut self,
        says: &str,
        kid: &str,
        answer: impl Fn(&Question) -> (u16, String) + Send + Sync + 'static,
    ) {
        let before = self.keys();
        self.port.is(kid, answer);
        self.put_pod(kid); // It is asked at once.
        self.until(says, |world| world.port.asked() > 0).await;
        self.put_pod(says); // And once more.
        self.until(says, |world| {
            world.port.asked() > 1 && world.says().contains(says)
        })
        .await;
        assert_eq!(self.keys(), before, "{says}");
    }
}

#[tokio::test]
async fn an_honest_sidecars_key_is_published_and_goes_with_its_pod() {
    let mut world = World::new().await;
    let own = key();
    world.port.is_honest(&own);
    world
        .until("published", |world| world.keys() == json!([own]))
        .await;
    let (_, _, uid) = POD;
    assert_eq!(world.data("pods.json"), json!({uid: own.kid()}));
    let map = world.fake.get("configmaps", "orders-toolward-identity");
    let meta = map.unwrap()["metadata"].clone();
    assert_eq!(meta["labels"]["toolward.dev/managed"], "true");
    assert_eq!(meta["ownerReferences"][0]["uid"], "uid-orders");

    // The pod is annotated until its sidecar has seen the key, then nothing more
    // is written; nor after a restart of the operator, which asks for no key again.
    let annotated = |world: &World| {
        let pod = world.fake.get("pods", "orders-a").unwrap();
        pod["metadata"]["annotations"]["toolward.dev/bundle"].is_string()
    };
    world.until("annotated", annotated).await;
    world.settled().await;
    let asked = world.port.asked();
    world.restart();
    world.settled().await;
    assert_eq!((world.port.asked(), world.keys()), (asked, json!([own])));

    // The container restarts, with another key.
    let next = key();
    world.port.is_honest(&next);
    world.put_pod("restarted");
    world
        .until("the next one", |world| world.keys() == json!([next]))
        .await;
    world.fake.remove("pods", "orders-a");
    world.round().await;
    assert_eq!(world.keys(), json!([]));
}

impl World {
    /// The sidecar has all, and a round writes nothing.
    async fn settled(&mut self) {
        let map = self.fake.get("configmaps", "orders-toolward").unwrap();
        let bundle = map["data"]["bundle.json"].as_str().unwrap();
        {
            let mut state = self.port.state.lock().unwrap();
            state.status["bundle"]["hash"] = policy::bundle::hash(bundle.as_bytes()).into();
            state.status["identity"]["published"] = true.into();
        }
        self.put_pod("settled");
        let told = |world: &Self| {
            let sights = world.servers.board.sights(&world.key);
            let report = sights.get(POD.2).and_then(|sight| sight.report.clone());
            let map = world.fake.get("configmaps", "orders-toolward").unwrap();
            // The list of replicas is written after a pause.
            map["data"]["peers.json"].to_string().contains(POD.1)
                && report.is_some_and(|report| report.identity.is_some_and(|own| own.published))
        };
        self.until("told", told).await;
        self.fake.writes();
        for _ in 0..3 {
            self.round().await;
        }
        assert_eq!(self.fake.writes(), [""; 0]);
    }

    /// Another operator takes over.
    fn restart(&mut self) {
        self.servers = self.fake.servers();
        self.delivery = self.fake.delivery(&self.servers);
        self.memories = Default::default();
    }
}

/// Each of these is what the wrapped server could do that took the admin port
/// while its sidecar restarted.
#[tokio::test]
async fn a_server_that_answers_in_the_sidecars_place_gets_no_key_published() {
    let mut world = World::new().await;
    let own = key();
    // An answer of the sidecar, as it went over the network of the pod.
    let recorded: Arc<Mutex<Option<String>>> = Arc::default();
    let (record, kept) = (Arc::clone(&recorded), own.clone());
    world.port.is(&own.kid(), move |question| {
        let answer = question.answer(&kept, "the pod's");
        *record.lock().unwrap() = Some(answer.1.clone());
        answer
    });
    world
        .until("the sidecar's own", |world| world.keys() == json!([own]))
        .await;

    let forged = key();
    let theirs = || forged.clone();
    let kid = forged.kid();
    world
        .refuses("no such token for this audience", &kid, {
            let theirs = theirs();
            move |question: &Question| {
                // For this server, and for this question, and yet no pod's.
                assert!(
                    question
                        .token
                        .starts_with("operator:toolward-identity/shop/orders/")
                );
                question.answer(&theirs, &question.token)
            }
        })
        .await;
    world
        .refuses("is not accepted", &kid, {
            let theirs = theirs();
            move |question: &Question| question.answer(&theirs, "")
        })
        .await;
    let old = recorded.lock().unwrap().clone().unwrap();
    world
        .refuses("was not sealed for this question", &kid, move |_| {
            (200, old.clone())
        })
        .await;
    shows_other_tokens(&mut world, &forged).await;
    // The sidecar's answer, relayed, names the sidecar's key.
    world
        .refuses("another key than the status", &kid, {
            let own = own.clone();
            move |question: &Question| question.answer(&own, "the pod's")
        })
        .await;
    for (says, status, body) in [
        ("answers 401", 401, ""),
        ("answers 302", 302, ""),
        ("what was not asked for", 200, "{}"),
        ("what was not asked for", 200, r#"{"keys":[]}"#),
        (
            "was not sealed",
            200,
            r#"{"publicKey":"AAAA","sealed":"AAAA"}"#,
        ),
    ] {
        world
            .refuses(says, &kid, move |_| (status, body.to_owned()))
            .await;
    }
    assert_eq!(world.keys(), json!([own]));

    // The sidecar is back, with a key that was made anew.
    let next = key();
    world.port.is_honest(&next);
    world.put_pod("back");
    world
        .until("the sidecar's next", |world| world.keys() == json!([next]))
        .await;
    world
        .until("no complaint", |world| {
            !world.says().contains("not published")
        })
        .await;
}

/// Tokens that are good, and prove nothing here.
async fn shows_other_tokens(world: &mut World, forged: &PublicKey) {
    let kid = forged.kid();
    world.fake.know_token(
        "another pod's",
        AUDIENCE,
        ("default", "orders-b", "uid-orders-b"),
    );
    world
        .refuses("is not of this pod", &kid, {
            let theirs = forged.clone();
            move |question: &Question| question.answer(&theirs, "another pod's")
        })
        .await;
    let same_name = ("default", "orders-a", "uid-of-an-earlier-pod");
    world
        .fake
        .know_token("an earlier pod's", AUDIENCE, same_name);
    world
        .refuses("uid-of-an-earlier-pod", &kid, {
            let theirs = forged.clone();
            move |question: &Question| question.answer(&theirs, "an earlier pod's")
        })
        .await;
    world
        .fake
        .know_token("for peers", "toolward-peer/uid-orders", POD);
    world
        .refuses("no such token for this audience", &kid, {
            let theirs = forged.clone();
            move |question: &Question| question.answer(&theirs, "for peers")
        })
        .await;
}

/// Where it is asked for no longer, none is left.
#[tokio::test]
async fn without_being_asked_for_nothing_is_published() {
    let mut world = World::new().await;
    let own = key();
    world.port.is_honest(&own);
    world
        .until("published", |world| world.keys() == json!([own]))
        .await;
    world.fake.change("mcpservers", "orders", |server| {
        server["spec"].as_object_mut().unwrap().remove("identity");
        server["metadata"]["generation"] = 2.into();
    });
    world
        .until("empty", |world| world.keys() == json!([]))
        .await;
    let asked = world.port.asked();
    world.put_pod("again");
    world.settled().await;
    assert_eq!((world.port.asked(), world.keys()), (asked, json!([])));

    let fake = Fake::new();
    let mut server = world.fake.get("mcpservers", "orders").unwrap();
    server["metadata"]["resourceVersion"] = Value::Null;
    fake.put("mcpservers", server);
    let mut memory = Default::default();
    let servers = fake.servers();
    servers.reconcile(&world.key, &mut memory).await.unwrap();
    assert_eq!(fake.get("configmaps", "orders-toolward-identity"), None);
}

#[tokio::test]
async fn a_name_that_is_taken_is_left_alone() {
    let mut world = World::new().await;
    world.fake.remove("configmaps", "orders-toolward-identity");
    world
        .fake
        .put_unlabelled("configmaps", "orders-toolward-identity");
    let before = world.fake.get("configmaps", "orders-toolward-identity");
    world.restart();
    world.round().await;
    let after = world.fake.get("configmaps", "orders-toolward-identity");
    assert_eq!(before, after);
    let says = world.says();
    assert!(
        says.contains("ConfigMap orders-toolward-identity"),
        "{says}"
    );
}
