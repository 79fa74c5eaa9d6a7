//! An API server in memory for the webhook's certificates: Secrets and the two
//! webhook configurations, with versions and conflicts.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use k8s_openapi::ByteString;
use kube::{Client, client::Body};
use operator::certificates::{
    pair::{Pair, authorities},
    store::{Names, SECRET},
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::status;

/// The Secret that others write.
pub const GIVEN: &str = "given";
const CONFIGURATIONS: [(&str, &str, &[&str]); 2] = [
    (
        "mutatingwebhookconfigurations",
        "toolward-injection",
        &["pods.toolward.dev"],
    ),
    (
        "validatingwebhookconfigurations",
        "toolward-validation",
        &["servers.toolward.dev", "policies.toolward.dev"],
    ),
];

/// What the operator looks after.
pub fn names() -> Names {
    Names {
        namespace: "toolward-system".into(),
        service: "toolward-webhook".into(),
        mutating: "toolward-injection".into(),
        validating: "toolward-validation".into(),
        given: None,
    }
}

/// Lets requests through one by one.
pub struct Gate {
    permits: Semaphore,
    asked: AtomicUsize,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            permits: Semaphore::new(0),
            asked: AtomicUsize::new(0),
        }
    }
}

impl Gate {
    /// Waits until the next request stands before the gate.
    pub async fn reached(&self, before: usize) {
        while self.asked.load(Ordering::SeqCst) <= before {
            tokio::task::yield_now().await;
        }
    }

    /// Lets one request through, and waits for the next one.
    pub async fn open(&self) {
        let before = self.asked.load(Ordering::SeqCst);
        self.permits.add_permits(1);
        self.reached(before).await;
    }

    async fn pass(&self) {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.permits.acquire().await.unwrap().forget();
    }
}

#[derive(Default)]
struct Store {
    objects: BTreeMap<(String, String), Value>,
    version: u64,
    writes: usize,
}

/// The API server.
#[derive(Clone, Default)]
pub struct Hooks(Arc<Mutex<Store>>);

impl Hooks {
    /// With the configurations as the chart makes them.
    pub fn new() -> Self {
        let new = Self::default();
        new.apply_chart();
        new
    }

    /// The configurations as the chart makes them: without a caBundle.
    pub fn apply_chart(&self) {
        for (plural, name, hooks) in CONFIGURATIONS {
            let hook = |name: &&str| json!({"name": name, "clientConfig": {}, "sideEffects": "None", "admissionReviewVersions": ["v1"]});
            let hooks: Vec<_> = hooks.iter().map(hook).collect();
            self.locked(|store| {
                store.put(
                    plural,
                    json!({"metadata": {"name": name}, "webhooks": hooks}),
                );
            });
        }
    }

    fn locked<T>(&self, f: impl FnOnce(&mut Store) -> T) -> T {
        f(&mut self.0.lock().unwrap())
    }

    /// How often was written.
    pub fn writes(&self) -> usize {
        self.locked(|store| store.writes)
    }

    /// The caBundle of each webhook.
    pub fn bundles(&self) -> Vec<Vec<String>> {
        let texts = self.locked(|store| {
            let of = |(plural, name, _): (&str, &str, _)| store.get(plural, name).cloned();
            let configurations: Vec<_> = CONFIGURATIONS.into_iter().filter_map(of).collect();
            configurations
        });
        let hooks = texts
            .iter()
            .filter_map(|it| it["webhooks"].as_array())
            .flatten();
        hooks
            .map(|hook| authorities(&decoded(&hook["clientConfig"]["caBundle"])))
            .collect()
    }

    /// Somebody else writes a Secret.
    pub fn write_secret(&self, name: &str, texts: &[(&str, &str)]) {
        let data: Value = texts
            .iter()
            .map(|(key, text)| (*key, encoded(text)))
            .collect();
        self.locked(|store| {
            store.put("secrets", json!({"metadata": {"name": name}, "data": data}))
        });
    }

    /// Somebody else writes a pair as cert-manager does.
    pub fn give(&self, pair: &Pair) {
        self.write_pair(GIVEN, pair);
    }

    /// Somebody else puts a pair into the operator's Secret.
    pub fn replace(&self, pair: &Pair) {
        self.write_pair(SECRET, pair);
    }

    fn write_pair(&self, name: &str, pair: &Pair) {
        let Pair {
            ca,
            certificate,
            key,
            ..
        } = pair;
        let parts = [("ca.crt", ca), ("tls.crt", certificate), ("tls.key", key)];
        self.write_secret(name, &parts.map(|(key, text)| (key, text.as_str())));
    }

    /// Somebody else changes the operator's Secret, where there is one.
    pub fn garble(&self, key: &str) {
        self.locked(|store| {
            if let Some(mut secret) = store.get("secrets", SECRET).cloned() {
                secret["data"][key] = encoded("garbage");
                store.put("secrets", secret);
            }
        });
    }

    /// Somebody else deletes the operator's Secret.
    pub fn lose(&self) {
        self.locked(|store| store.objects.remove(&("secrets".into(), SECRET.into())));
    }

    /// A part of the operator's Secret.
    pub fn secret(&self, key: &str) -> Option<String> {
        let secret = self.locked(|store| store.get("secrets", SECRET).cloned())?;
        secret["data"][key].as_str()?;
        Some(decoded(&secret["data"][key]))
    }

    /// A client, behind a gate where there is one.
    pub fn client(&self, gate: Option<Arc<Gate>>) -> Client {
        let hooks = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (hooks, gate) = (hooks.clone(), gate.clone());
            async move {
                if let Some(gate) = gate {
                    gate.pass().await;
                }
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let (code, answer) = hooks.locked(|store| store.answer(&head, &body));
                let response = Response::builder().status(code);
                let body = Body::from(answer.to_string().into_bytes());
                Ok::<_, Infallible>(response.body(body).unwrap())
            }
        });
        Client::new(service, "default")
    }
}

fn encoded(text: &str) -> Value {
    json!(ByteString(text.as_bytes().to_vec()))
}

fn decoded(value: &Value) -> String {
    let bytes: ByteString = serde_json::from_value(value.clone()).unwrap();
    String::from_utf8(bytes.0).unwrap()
}

impl Store {
    fn get(&self, plural: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(plural.to_owned(), name.to_owned()))
    }

    fn put(&mut self, plural: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        self.objects.insert((plural.into(), name), object.clone());
        object
    }

    fn answer(&mut self, head: &http::request::Parts, body: &[u8]) -> (u16, Value) {
        let mut path = head.uri.path().rsplit('/');
        let (name, plural) = (path.next().unwrap(), path.next().unwrap());
        let found = self.get(plural, name).cloned();
        if head.method == Method::GET {
            return found.map_or_else(|| status(404, "not found"), |object| (200, object));
        }
        assert_eq!(head.method, Method::PATCH, "{}", head.uri);
        let patch: Value = serde_json::from_slice(body).unwrap();
        let kind = head.headers["content-type"].to_str().unwrap();
        let wanted = &patch["metadata"]["resourceVersion"];
        let mut object = match (found, plural, kind) {
            (Some(object), _, _) => object,
            (None, "secrets", "application/apply-patch+yaml") => {
                json!({"metadata": {"name": name}})
            }
            (None, _, _) => return status(404, "not found"),
        };
        if !wanted.is_null() && *wanted != object["metadata"]["resourceVersion"] {
            return status(409, "another version");
        }
        self.writes += 1;
        match (plural, kind) {
            ("secrets", "application/merge-patch+json") => {
                for (key, value) in patch["data"].as_object().unwrap() {
                    let data = &mut object["data"];
                    match value {
                        Value::Null if data.is_object() => {
                            data.as_object_mut().unwrap().remove(key);
                        }
                        Value::Null => {}
                        value => data[key] = value.clone(),
                    }
                }
            }
            // Applied, it has no data: those of others stay.
            ("secrets", _) => assert!(patch["data"].is_null()),
            _ => {
                for hook in patch["webhooks"].as_array().unwrap() {
                    let mut hooks = object["webhooks"].as_array_mut().unwrap().iter_mut();
                    let of = hooks.find(|it| it["name"] == hook["name"]).unwrap();
                    of["clientConfig"]["caBundle"] = hook["clientConfig"]["caBundle"].clone();
                }
            }
        }
        (200, self.put(plural, object))
    }
}
