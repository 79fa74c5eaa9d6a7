//! An API server in memory: objects by path, server-side apply as a merge.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, OnceLock},
};

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod, Service},
    networking::v1::NetworkPolicy,
};
use kube::{Client, client::Body, runtime::watcher::Event};
use operator::{
    Settings,
    board::Board,
    delivery::Delivery,
    desired::SidecarImage,
    entry::{Entry, Kind},
    events::Events,
    identity::Identities,
    isolation::Isolations,
    metrics::Metrics,
    names::Key,
    orphans::Orphans,
    policies::Policies,
    server::Servers,
    table::{Row, Table},
    tokens::Tokens,
    world::World,
};
use policy::bundle::Issuer;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::status;

type Objects = BTreeMap<(String, String), Value>;

#[derive(Default)]
struct Store {
    objects: Objects,
    version: u64,
    writes: Vec<String>,
    refused: Option<(Method, String, u16, String)>,
    /// What a review says of tokens, by token.
    tokens: BTreeMap<String, Value>,
}

/// The API server, and an operator's view of it.
pub struct Fake {
    store: Arc<Mutex<Store>>,
    world: Arc<World>,
}

impl Fake {
    pub fn new() -> Self {
        let settings = Settings {
            sidecar: SidecarImage {
                image: "sidecar:1".into(),
                pull_policy: "IfNotPresent".into(),
            },
            allow_anonymous: false,
            allowed_issuers: Vec::new(),
            issuer_networks: Vec::new(),
            cluster_domain: "cluster.local".into(),
            account: Key::new("toolward-system", "toolward-operator"),
            pod_labels: BTreeMap::from([("app".into(), "operator".into())]),
            monitoring_namespace: None,
            pod: "operator-0".into(),
        };
        let issuer = Issuer::cluster("https://kubernetes.default.svc", json!({"keys": []}));
        let (_, current) = tokio::sync::watch::channel(Some(Arc::new(issuer)));
        let operator = "system:serviceaccount:toolward-system:toolward-operator";
        Self {
            store: Arc::default(),
            world: Arc::new(World::new(settings, operator.into(), current)),
        }
    }

    pub fn key(name: &str) -> Key {
        Key::new("shop", name)
    }

    fn locked<T>(&self, f: impl FnOnce(&mut Store) -> T) -> T {
        f(&mut self.store.lock().unwrap())
    }

    /// Adds or replaces an object.
    pub fn put(&self, plural: &str, object: Value) {
        self.locked(|store| store.put(plural, object));
    }

    /// Adds an object that is not of Toolward.
    pub fn put_unlabelled(&self, plural: &str, name: &str) {
        self.put(
            plural,
            json!({"metadata": {"name": name, "namespace": "shop", "uid": "foreign"}}),
        );
    }

    pub fn get(&self, plural: &str, name: &str) -> Option<Value> {
        self.locked(|store| store.objects.get(&(plural.into(), name.into())).cloned())
    }

    pub fn change(&self, plural: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let mut object = self.get(plural, name).unwrap();
        change(&mut object);
        self.put(plural, object);
    }

    pub fn remove(&self, plural: &str, name: &str) {
        self.locked(|store| store.objects.remove(&(plural.into(), name.into())));
    }

    /// Refuses all requests of one method for one kind.
    pub fn refuse(&self, method: Method, plural: &str, code: u16, message: &str) {
        let refused = Some((method, plural.into(), code, message.into()));
        self.locked(|store| store.refused = refused);
    }

    /// What was written since the last time.
    pub fn writes(&self) -> Vec<String> {
        self.locked(|store| std::mem::take(&mut store.writes))
    }

    /// The watches catch up.
    pub fn sync(&self) {
        let world = &self.world;
        relist(&world.servers, self.own("mcpservers"));
        relist(&world.policies, self.own("mcptoolpolicies"));
        relist(
            &world.deployments,
            self.labelled::<Deployment>("deployments"),
        );
        relist(&world.services, self.labelled::<Service>("services"));
        relist(&world.config_maps, self.labelled::<ConfigMap>("configmaps"));
        relist(
            &world.network_policies,
            self.labelled::<NetworkPolicy>("networkpolicies"),
        );
        relist(&world.pods, self.labelled::<Pod>("pods"));
    }

    fn list(&self, plural: &str) -> Vec<Value> {
        self.locked(|store| {
            let of_kind = store.objects.iter().filter(|((kind, _), _)| kind == plural);
            of_kind.map(|(_, object)| object.clone()).collect()
        })
    }

    fn own<T: Kind>(&self, plural: &str) -> Vec<Entry<T>> {
        let read = |object| Entry::read(serde_json::from_value(object).unwrap(), None);
        self.list(plural).into_iter().map(read).collect()
    }

    fn labelled<K: DeserializeOwned>(&self, plural: &str) -> Vec<K> {
        let mut objects = self.list(plural);
        objects.retain(|object| object["metadata"]["labels"]["toolward.dev/server"].is_string());
        let read = |object| serde_json::from_value(object).unwrap();
        objects.into_iter().map(read).collect()
    }

    /// The reconciler of servers, with watches that are up to date.
    pub fn servers(&self) -> Servers {
        self.sync();
        self.servers_as_seen()
    }

    /// The reconciler of servers, with what the watches told last.
    pub fn servers_as_seen(&self) -> Servers {
        Servers {
            client: self.client(),
            world: self.world.clone(),
            board: Arc::new(Board::default()),
            events: Events::new(self.client()),
            metrics: Metrics::default(),
            deliveries: Arc::new(OnceLock::new()),
            orphans: Arc::default(),
        }
    }

    /// What looks after servers that are gone, with what the watches told last.
    pub fn orphans(&self, servers: &Servers) -> Orphans {
        Orphans {
            client: self.client(),
            world: self.world.clone(),
            board: servers.board.clone(),
            deliveries: Arc::default(),
        }
    }

    /// Delivery for these servers, with what the watches told last.
    pub fn delivery(&self, servers: &Servers) -> Delivery {
        let account = Key::new("toolward-system", "toolward-operator");
        let tokens = Arc::new(Tokens::new(self.client(), account));
        Delivery {
            client: self.client(),
            identities: Identities::new(self.client(), tokens.clone()),
            tokens,
            board: servers.board.clone(),
            world: self.world.clone(),
            metrics: Metrics::default(),
            servers: Arc::default(),
            isolations: Arc::default(),
        }
    }

    /// Who tries the ports of these servers, with what the watches told last.
    pub fn isolations(&self, servers: &Servers) -> Isolations {
        Isolations {
            board: servers.board.clone(),
            world: self.world.clone(),
            metrics: Metrics::default(),
            servers: Arc::default(),
        }
    }

    /// Lets a token be one of a pod, for an audience.
    pub fn know_token(&self, token: &str, audience: &str, (account, pod, uid): (&str, &str, &str)) {
        let extra = json!({
            "authentication.kubernetes.io/pod-name": [pod],
            "authentication.kubernetes.io/pod-uid": [uid],
        });
        let username = format!("system:serviceaccount:shop:{account}");
        let status = json!({
            "authenticated": true, "audiences": [audience],
            "user": {"username": username, "extra": extra},
        });
        self.locked(|store| store.tokens.insert(token.to_owned(), status));
    }

    /// The reconciler of policies, with watches that are up to date.
    pub fn policies(&self) -> Policies {
        self.sync();
        Policies {
            client: self.client(),
            world: self.world.clone(),
            events: Events::new(self.client()),
            metrics: Metrics::default(),
        }
    }

    /// What the watches told.
    pub fn world(&self) -> Arc<World> {
        self.world.clone()
    }

    /// A client of this API server.
    pub fn client(&self) -> Client {
        let store = self.store.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let store = store.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let (code, answer) = store.lock().unwrap().answer(&head, &body);
                let response = Response::builder().status(code);
                let body = Body::from(answer.to_string().into_bytes());
                Ok::<_, Infallible>(response.body(body).unwrap())
            }
        });
        Client::new(service, "default")
    }
}

fn relist<V: Row>(table: &Table<V>, rows: Vec<V>) {
    table.apply(Event::Init);
    for row in rows {
        table.apply(Event::InitApply(row));
    }
    table.apply(Event::InitDone);
}

impl Store {
    fn put(&mut self, plural: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        self.objects.insert((plural.into(), name), object.clone());
        object
    }

    fn answer(&mut self, head: &http::request::Parts, body: &[u8]) -> (u16, Value) {
        let asked = serde_json::from_slice(body).unwrap_or_default();
        if let Some(answer) = self.of_tokens(head.uri.path(), asked) {
            return (201, answer);
        }
        if head.uri.path().contains("/leases") {
            return self.of_leases(&head.method, body);
        }
        let path = head
            .uri
            .path()
            .split('/')
            .skip_while(|part| *part != "shop");
        let path: Vec<_> = path.skip(1).collect();
        if head.method != Method::GET {
            self.writes
                .push(format!("{} {}", head.method, path.join("/")));
        }
        if let Some((method, plural, code, message)) = &self.refused
            && path[0] == plural
            && head.method == method
        {
            return status(*code, message);
        }
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        match (&head.method, &path[..]) {
            (&Method::GET, [plural, name]) => {
                let object = self.objects.get(&((*plural).into(), (*name).into()));
                object.map_or_else(|| status(404, "not found"), |object| (200, object.clone()))
            }
            (&Method::GET, [plural]) => {
                (200, self.list(plural, head.uri.query().unwrap_or_default()))
            }
            (&Method::DELETE, [plural, name]) => self.delete(plural, name, &body["preconditions"]),
            (&Method::PATCH, [plural, name]) => self.patch(plural, name, body),
            (&Method::PATCH, [plural, name, "status"]) => self.patch_status(plural, name, &body),
            _ => (201, body),
        }
    }

    /// A token of the operator says for what it is; others are known, or not.
    fn of_tokens(&self, path: &str, mut asked: Value) -> Option<Value> {
        let audience = asked["spec"]["audiences"][0].clone();
        if path.ends_with("/serviceaccounts/toolward-operator/token") {
            let token = format!("operator:{}", audience.as_str().unwrap());
            asked["status"] =
                json!({"token": token, "expirationTimestamp": "2100-01-01T00:00:00Z"});
            return Some(asked);
        }
        if path != "/apis/authentication.k8s.io/v1/tokenreviews" {
            return None;
        }
        let known = self.tokens.get(asked["spec"]["token"].as_str().unwrap());
        let known = known.filter(|status| status["audiences"][0] == audience);
        let unknown =
            || json!({"authenticated": false, "error": "no such token for this audience"});
        asked["status"] = known.cloned().unwrap_or_else(unknown);
        Some(asked)
    }

    /// The objects of a kind, as far as selectors and pages are used here.
    fn list(&self, plural: &str, query: &str) -> Value {
        let query = query.replace("%2F", "/").replace("%3D", "=");
        let asked = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find_map(|(key, value)| (key == name).then(|| value.to_owned()))
        };
        let label = |object: &Value| object["metadata"]["labels"]["toolward.dev/server"].clone();
        let selector = asked("labelSelector").unwrap_or_default();
        let is_selected = |object: &Value| match selector.split_once('=') {
            Some((_, name)) => label(object) == name,
            None => !selector.starts_with("%21") || label(object).is_null(),
        };
        let unfinished = asked("fieldSelector").is_some();
        let is_finished = |object: &Value| {
            let phase = object["status"]["phase"].as_str();
            matches!(phase, Some("Succeeded" | "Failed"))
        };
        let number = |name: &str| asked(name).and_then(|text| text.parse::<usize>().ok());
        let (start, limit) = (
            number("continue").unwrap_or(0),
            number("limit").unwrap_or(9999),
        );
        let of_kind = self.objects.iter().filter(|((kind, _), _)| kind == plural);
        let items: Vec<_> = of_kind
            .map(|(_, object)| object)
            .filter(|object| is_selected(object) && !(unfinished && is_finished(object)))
            .collect();
        let page: Vec<_> = items.iter().skip(start).take(limit).collect();
        let next = match items.len() > start + limit {
            true => (start + limit).to_string(),
            false => String::new(),
        };
        json!({"kind": "List", "apiVersion": "v1", "metadata": {"continue": next}, "items": page})
    }

    fn delete(&mut self, plural: &str, name: &str, preconditions: &Value) -> (u16, Value) {
        let key = (plural.to_owned(), name.to_owned());
        let Some(object) = self.objects.get(&key) else {
            return status(404, "not found");
        };
        let holds = |field: &str| {
            let wanted = &preconditions[field];
            wanted.is_null() || *wanted == object["metadata"][field]
        };
        if !holds("uid") || !holds("resourceVersion") {
            return status(409, "the object has been modified");
        }
        self.objects.remove(&key);
        (200, json!({"kind": "Status", "status": "Success"}))
    }

    /// The lease of the election, which has a namespace of its own.
    fn of_leases(&mut self, method: &Method, body: &[u8]) -> (u16, Value) {
        if method != Method::GET {
            self.writes.push(format!("{method} leases"));
        }
        if let Some((refused, plural, code, message)) = &self.refused
            && plural == "leases"
            && method == refused
        {
            return status(*code, message);
        }
        let found = ("leases".to_owned(), "toolward-operator".to_owned());
        let found = self.objects.get(&found).cloned();
        if method == Method::GET {
            return found.map_or_else(|| status(404, "not found"), |object| (200, object));
        }
        let lease: Value = serde_json::from_slice(body).unwrap();
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        if found.as_ref().map_or(Value::Null, version) != version(&lease) {
            return status(409, "the object has been modified");
        }
        (200, self.put("leases", lease))
    }

    fn patch(&mut self, plural: &str, name: &str, patch: Value) -> (u16, Value) {
        let uid = json!({"metadata": {"uid": format!("uid-{plural}-{name}")}});
        let old = self.objects.get(&(plural.into(), name.into()));
        let version = patch["metadata"]["resourceVersion"].clone();
        let current = old.map_or(Value::Null, |old| {
            old["metadata"]["resourceVersion"].clone()
        });
        if !version.is_null() && version != current {
            return status(409, "the object has been modified");
        }
        let mut object = old.cloned().unwrap_or(uid);
        // What was applied before and is not applied again is removed.
        let is_applied = patch["kind"].is_string();
        let is_owned = patch["metadata"]["ownerReferences"].is_array();
        if is_applied
            && !is_owned
            && let Some(meta) = object["metadata"].as_object_mut()
        {
            meta.remove("ownerReferences");
        }
        merge(&mut object, patch);
        if plural == "services" {
            object["spec"]["clusterIPs"] = json!(["10.0.0.1", "fd00::1"]);
        }
        if plural == "deployments" {
            // As the API server spells it.
            object["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] =
                "500m".into();
        }
        (200, self.put(plural, object))
    }

    fn patch_status(&mut self, plural: &str, name: &str, patch: &Value) -> (u16, Value) {
        let mut object = self.objects[&(plural.to_owned(), name.to_owned())].clone();
        if patch["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
            return status(409, "the object has been modified");
        }
        object["status"] = patch["status"].clone();
        (200, self.put(plural, object))
    }
}

fn merge(into: &mut Value, from: Value) {
    match from {
        Value::Object(fields) if into.is_object() => {
            for (name, value) in fields {
                merge(&mut into[name], value);
            }
        }
        other => *into = other,
    }
}
