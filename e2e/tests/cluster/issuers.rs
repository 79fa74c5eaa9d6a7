//! Issuers of tokens beside the cluster's own: one that runs in the cluster, over
//! https and with an authority of its own, and those that the chart does not
//! allow.

use std::cell::Cell;

use anyhow::{Context, Result, ensure};
use crds::{ConditionStatus, ConditionType, Reason};
use e2e::mcp::{Endpoint, message};
use e2e::statements::{self as promise, Caller};
use e2e::{Image, PATIENCE, PATIENT, wait_for};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::denials;
use crate::suite::{IN_FORCE, Scope, Verdict, allow, beside, refused, stdio};
use crate::tls::{Authority, nudge};

/// Of the test's namespace, without its prefix.
const NAME: &str = "issuers";
/// The issuer: its Deployment, and the Service that the chart allows.
const ISSUER: &str = "acme";
/// The same issuer behind a Service without an address of its own: its name leads
/// to addresses of pods, which the chart does not allow.
const INSIDE: &str = "inside";
const AUTHORITY: &str = "authority";
const FILES: &str = "issuer-keys";
const PAIR: &str = "issuer-pair";
/// The server that is there from the beginning, one whose issuer is inside, one
/// that comes in the outage, and one that does not know whom to trust.
const ORDERS: &str = "orders";
const PRIVATE: &str = "private";
const LATE: &str = "late";
const BLIND: &str = "blind";

const KEYS: Verdict = (
    ConditionType::AuthReady,
    ConditionStatus::True,
    Reason::KeysAvailable,
);
const NO_KEYS: Verdict = (
    ConditionType::AuthReady,
    ConditionStatus::False,
    Reason::IssuerUnavailable,
);
const NOT_ALLOWED: Verdict = (
    ConditionType::AuthReady,
    ConditionStatus::False,
    Reason::IssuerNotAllowed,
);

/// A key of an issuer.
struct Key {
    id: &'static str,
    secret: EncodingKey,
    public: Value,
}

impl Key {
    fn new(id: &'static str) -> Result<Self> {
        let secret = EncodingKey::from_ec_der(&KeyPair::generate()?.serialize_der());
        let jwk = Jwk::from_encoding_key(&secret, Algorithm::ES256)?;
        let mut public = serde_json::to_value(jwk)?;
        public["kid"] = json!(id);
        Ok(Self { id, secret, public })
    }

    /// A token that never was before: signatures of ES256 are random.
    fn sign(&self, claims: &Value) -> Result<String> {
        let header = Header {
            typ: Some("at+jwt".to_owned()),
            kid: Some(self.id.to_owned()),
            ..Header::new(Algorithm::ES256)
        };
        Ok(jsonwebtoken::encode(&header, claims, &self.secret)?)
    }
}

/// The claims of an access token (RFC 9068) for alice of the staff.
fn claims(issuer: &str, audience: &str) -> Value {
    let now = sidecar::pipeline::now();
    json!({
        "iss": issuer, "aud": audience, "sub": "alice", "groups": ["staff"],
        "client_id": "agent", "jti": "1", "iat": now, "exp": now + 1800,
    })
}

/// The URL of an issuer behind a Service.
fn issuer_url(service: &str) -> String {
    format!("https://{service}.t-{NAME}.svc/realms/acme")
}

/// What the chart allows for this.
pub fn allowed() -> [String; 2] {
    [ISSUER, INSIDE].map(issuer_url)
}

/// The URL of a server, which is its audience.
fn server_url(scope: &Scope, server: &str) -> String {
    format!("http://{server}.{}.svc/mcp", scope.namespace)
}

/// A server that accepts tokens of an issuer and of the cluster.
fn guarded(scope: &Scope, name: &str, issuer: &Value) -> Value {
    let mut server = stdio(name);
    server["spec"]["authentication"] = json!({
        "audience": server_url(scope, name),
        "issuers": [issuer, {"name": "cluster"}],
    });
    server
}

/// An issuer as servers name it, with the authority of its certificate.
fn named(url: &str) -> Value {
    json!({
        "name": "acme", "issuer": url, "caSecretRef": {"name": AUTHORITY, "key": "ca.crt"},
    })
}

fn staff_may_sum(server: &str) -> Value {
    let staff = json!({"issuer": "acme", "groups": ["staff"]});
    allow(&format!("{server}-staff"), server, &staff, &["get-sum"])
}

/// The issuer that runs in the test's namespace.
struct Issuer<'s> {
    scope: &'s Scope,
    url: String,
    looked: Cell<u32>,
}

impl<'s> Issuer<'s> {
    async fn start(scope: &'s Scope, key: &Key) -> Result<Self> {
        let authority = Authority::new()?;
        let pair = authority.pair(&format!("{ISSUER}.{}.svc", scope.namespace))?;
        let secret = |name: &str, data: Value| {
            json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
                "stringData": data,
            })
        };
        let service = |name: &str| {
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                "spec": {"selector": {"app": ISSUER}, "ports": [{"port": 443, "targetPort": 8443}]},
            })
        };
        let mut inside = service(INSIDE);
        inside["spec"]["clusterIP"] = json!("None");
        let issuer = Self {
            scope,
            url: issuer_url(ISSUER),
            looked: Cell::default(),
        };
        let objects = [
            secret(AUTHORITY, json!({"ca.crt": authority.pem})),
            secret(
                PAIR,
                json!({"tls.crt": pair.certificate, "tls.key": pair.key}),
            ),
            service(ISSUER),
            inside,
            issuer.deployment(),
        ];
        issuer.publish(&[key]).await?;
        scope.apply(&objects).await?;
        issuer.scale(1).await?;
        Ok(issuer)
    }

    fn deployment(&self) -> Value {
        let labels = json!({"app": ISSUER});
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": ISSUER},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {
                    "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 1,
                    "securityContext": {
                        "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [{
                        "name": "issuer", "image": Image::ServerEverything.name(),
                        "command": ["node", "-e", include_str!("issuer.js")],
                        "env": [{"name": "ISSUER", "value": self.url}],
                        "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1},
                        "resources": {"requests": {"cpu": "100m"}},
                        "securityContext": {
                            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                        },
                        "volumeMounts": [{"name": "files", "mountPath": "/files"}],
                    }],
                    "volumes": [{"name": "files", "projected": {"sources": [
                        {"secret": {"name": PAIR}}, {"configMap": {"name": FILES}},
                    ]}}],
                }},
            },
        })
    }

    async fn scale(&self, replicas: u32) -> Result<()> {
        let deployment = format!("deployment/{ISSUER}");
        let replicas = format!("--replicas={replicas}");
        let scale = ["scale", &deployment, &replicas];
        self.scope.kubectl(&scale).await?;
        let args = ["rollout", "status", &deployment, PATIENT];
        self.scope.kubectl(&args).await.map(drop)
    }

    async fn down(&self) -> Result<()> {
        self.scale(0).await?;
        let label = format!("app={ISSUER}");
        wait_for("the issuer to be gone", PATIENCE, || async {
            let args = ["get", "pods", "-l", &label, "-o", "name"];
            let left = self.scope.kubectl(&args).await?;
            ensure!(left.is_empty(), "there is {left}");
            Ok(())
        })
        .await
    }

    /// Publishes these keys, and no others.
    async fn publish(&self, keys: &[&Key]) -> Result<()> {
        let keys: Vec<_> = keys.iter().map(|key| &key.public).collect();
        let jwks = json!({"keys": keys}).to_string();
        let files = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": FILES},
            "data": {"jwks.json": jwks},
        });
        self.scope.apply(&[files]).await
    }

    /// A token for a server, for alice of the staff.
    fn token(&self, key: &Key, server: &str) -> Result<String> {
        key.sign(&claims(&self.url, &server_url(self.scope, server)))
    }
}

/// How a server answers to the question for its tools.
#[derive(Debug)]
struct Answer {
    status: u16,
    retry_after: Option<String>,
    tools: Vec<String>,
}

/// Asks for the tools, in revision 2026-07-28, which needs no session.
async fn ask(endpoint: &Endpoint, token: &str) -> Result<Answer> {
    const REVISION: &str = "2026-07-28";
    let headers = [
        ("MCP-Protocol-Version", REVISION),
        ("Mcp-Method", "tools/list"),
    ];
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": REVISION,
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let body = json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta},
    });
    let answer = endpoint.post(Some(token), &headers, &body).await?;
    let status = answer.status().as_u16();
    let retry_after = answer.headers().get("retry-after");
    let retry_after = retry_after
        .map(|value| value.to_str().map(str::to_owned))
        .transpose()?;
    let message = message(answer).await?;
    let tools = message["result"]["tools"].as_array();
    let name = |tool: &Value| tool["name"].as_str().unwrap_or_default().to_owned();
    let mut tools: Vec<_> = tools.into_iter().flatten().map(name).collect();
    tools.sort();
    Ok(Answer {
        status,
        retry_after,
        tools,
    })
}

/// The token is let in, and the rule for its groups decides.
async fn passes(endpoint: &Endpoint, token: &str) -> Result<()> {
    let answer = ask(endpoint, token).await?;
    ensure!(
        answer.status == 200 && answer.tools == ["get-sum"],
        "{answer:?}"
    );
    Ok(())
}

/// The token is not good. As long as the keys are being read anew, nobody can tell.
async fn is_refused(endpoint: &Endpoint, token: &str) -> Result<()> {
    let answer = wait_for("the keys to be read", PATIENCE, || async {
        let answer = ask(endpoint, token).await?;
        ensure!(answer.status != 503, "{answer:?}");
        Ok(answer)
    });
    let answer = answer.await?;
    ensure!(answer.status == 401, "{answer:?}");
    Ok(())
}

/// Nobody can tell whether the token is good: it must not be dropped.
async fn has_to_wait(endpoint: &Endpoint, token: &str) -> Result<()> {
    let answer = ask(endpoint, token).await?;
    ensure!(answer.status == 503, "{answer:?}");
    let seconds: Option<u64> = answer
        .retry_after
        .as_ref()
        .and_then(|text| text.parse().ok());
    ensure!(seconds.is_some_and(|seconds| seconds > 0), "{answer:?}");
    Ok(())
}

/// Waits until a condition says this, in these words.
async fn tells(scope: &Scope, server: &str, wanted: Verdict, parts: &[&str]) -> Result<()> {
    let what = format!("{server} to tell {parts:?}");
    wait_for(&what, PATIENCE, || async {
        let said = scope.server_says(server, wanted).await?.message;
        for part in parts {
            ensure!(said.contains(part), "no {part:?}: {said}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_issuer_in_the_cluster_is_believed_as_the_chart_allows() -> Result<()> {
    beside(NAME, whole_life).await
}

async fn whole_life(scope: &Scope) -> Result<()> {
    let keys = [Key::new("first")?, Key::new("second")?, Key::new("third")?];
    let issuer = Issuer::start(scope, &keys[0]).await?;
    let inside = issuer_url(INSIDE);
    let account = format!("system:serviceaccount:{}:default", scope.namespace);
    let account = json!({"issuer": "cluster", "users": [account]});
    scope
        .apply(&[
            guarded(scope, ORDERS, &named(&issuer.url)),
            staff_may_sum(ORDERS),
            allow("account", ORDERS, &account, &["echo"]),
            guarded(scope, PRIVATE, &named(&inside)),
        ])
        .await?;
    scope.serving(ORDERS).await?;
    scope.server_says(ORDERS, KEYS).await?;
    rules_name_whose_names_they_are(&issuer, &keys[0]).await?;
    addresses_are_those_of_the_chart(&issuer, &keys[0], &inside).await?;
    an_authority_may_come_late(&issuer, &keys[0]).await?;
    keys_are_rotated(&issuer, &keys).await?;
    an_outage_passes(&issuer, &keys[1]).await
}

async fn rules_name_whose_names_they_are(issuer: &Issuer<'_>, key: &Key) -> Result<()> {
    let scope = issuer.scope;
    let cluster = scope.caller(ORDERS).await?;
    let endpoint = &cluster.endpoint;
    let of = |changes: Value| -> Result<String> {
        let mut claims = claims(&issuer.url, &server_url(scope, ORDERS));
        for (name, value) in changes.as_object().context("no object")? {
            claims[name] = value.clone();
        }
        key.sign(&claims)
    };
    let account = format!("system:serviceaccount:{}:default", scope.namespace);
    for (whose, token, shown) in [
        ("alice's", of(json!({}))?, &["get-sum"][..]),
        ("bob's", of(json!({"sub": "bob", "groups": []}))?, &[]),
        ("the account's", cluster.token.clone(), &["echo"]),
        // Who is called as the account is called, but by another issuer.
        (
            "a false account's",
            of(json!({"sub": account}))?,
            &["get-sum"],
        ),
        (
            "a false account's, of no group",
            of(json!({"sub": account, "groups": []}))?,
            &[],
        ),
    ] {
        let answer = ask(endpoint, &token).await?;
        ensure!(
            answer.status == 200 && answer.tools == shown,
            "{whose}: {answer:?}"
        );
    }
    let alice = Caller {
        endpoint: endpoint.clone(),
        token: of(json!({}))?,
    };
    let mcp = alice.connect().await?;
    promise::permitted(&mcp).await?.check()?;
    mcp.cancel().await?;
    let elsewhere = of(json!({"aud": server_url(scope, "elsewhere")}))?;
    promise::unauthorized(endpoint, &elsewhere).await?.check()
}

/// A private address has to be allowed, whatever name leads to it.
async fn addresses_are_those_of_the_chart(
    issuer: &Issuer<'_>,
    key: &Key,
    inside: &str,
) -> Result<()> {
    let scope = issuer.scope;
    scope.serving(PRIVATE).await?;
    let metadata = format!("{inside}/.well-known/openid-configuration");
    tells(scope, PRIVATE, NO_KEYS, &[&metadata, "issuerNetworks"]).await?;
    let endpoint = scope.caller(PRIVATE).await?.endpoint;
    let token = key.sign(&claims(inside, &server_url(scope, PRIVATE)))?;
    has_to_wait(&endpoint, &token).await
}

/// A Secret that is missing concerns its issuer alone, and is taken when it comes.
async fn an_authority_may_come_late(issuer: &Issuer<'_>, key: &Key) -> Result<()> {
    const MISSING: &str = "acme-authority-to-come";
    let scope = issuer.scope;
    let mut acme = named(&issuer.url);
    acme["caSecretRef"]["name"] = json!(MISSING);
    let blind = guarded(scope, BLIND, &acme);
    scope.apply(&[blind, staff_may_sum(BLIND)]).await?;
    scope.serving(BLIND).await?;
    tells(scope, BLIND, NO_KEYS, &["issuer acme", "authorities"]).await?;
    let cluster = scope.caller(BLIND).await?;
    let token = issuer.token(key, BLIND)?;
    has_to_wait(&cluster.endpoint, &token).await?;
    let answer = ask(&cluster.endpoint, &cluster.token).await?;
    ensure!(answer.status == 200, "{answer:?}");
    let known = ["get", "secret", AUTHORITY, "-o", "json"];
    let known: Value = serde_json::from_str(&scope.kubectl(&known).await?)?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": MISSING},
        "data": known["data"],
    });
    scope.apply(&[secret]).await?;
    wait_for("the authority to be known", PATIENCE, || async {
        nudge(scope, &issuer.looked).await?;
        passes(&cluster.endpoint, &token).await
    })
    .await?;
    scope.server_says(BLIND, KEYS).await.map(drop)
}

/// Each key is used as soon as it is published, and no longer than it is.
async fn keys_are_rotated(issuer: &Issuer<'_>, keys: &[Key; 3]) -> Result<()> {
    let [first, second, third] = keys;
    let endpoint = issuer.scope.caller(ORDERS).await?.endpoint;
    let known = async |key: &Key| {
        wait_for("a token by the new key to pass", PATIENCE, || async {
            nudge(issuer.scope, &issuer.looked).await?;
            passes(&endpoint, &issuer.token(key, ORDERS)?).await
        })
        .await
    };
    let old = issuer.token(first, ORDERS)?;
    passes(&endpoint, &old).await?;
    issuer.publish(&[first, second]).await?;
    known(second).await?;
    passes(&endpoint, &old).await?;
    issuer.publish(&[second, third]).await?;
    known(third).await?;
    for token in [old, issuer.token(first, ORDERS)?] {
        is_refused(&endpoint, &token).await?;
    }
    passes(&endpoint, &issuer.token(second, ORDERS)?).await
}

async fn an_outage_passes(issuer: &Issuer<'_>, key: &Key) -> Result<()> {
    let scope = issuer.scope;
    let endpoint = scope.caller(ORDERS).await?.endpoint;
    let known = issuer.token(key, ORDERS)?;
    passes(&endpoint, &known).await?;
    issuer.down().await?;
    // The last keys are used: for tokens that came before, and for others.
    for token in [&known, &issuer.token(key, ORDERS)?] {
        passes(&endpoint, token).await?;
    }
    let unheard_of = Key::new("unheard-of")?;
    has_to_wait(&endpoint, &issuer.token(&unheard_of, ORDERS)?).await?;
    tells(scope, ORDERS, NO_KEYS, &["maxKeyAge"]).await?;
    passes(&endpoint, &known).await?;

    let late = guarded(scope, LATE, &named(&issuer.url));
    scope.apply(&[late, staff_may_sum(LATE)]).await?;
    scope.serving(LATE).await?;
    let metadata = format!("{}/.well-known/openid-configuration", issuer.url);
    tells(scope, LATE, NO_KEYS, &["503", &metadata, "no connection"]).await?;
    let account = scope.caller(LATE).await?;
    let waiting = issuer.token(key, LATE)?;
    has_to_wait(&account.endpoint, &waiting).await?;
    // Other issuers have nothing to do with it.
    let answer = ask(&account.endpoint, &account.token).await?;
    ensure!(answer.status == 200, "{answer:?}");

    issuer.scale(1).await?;
    for server in [ORDERS, LATE] {
        scope.server_says(server, KEYS).await?;
    }
    passes(&account.endpoint, &waiting).await?;
    is_refused(&endpoint, &issuer.token(&unheard_of, ORDERS)?).await?;
    passes(&endpoint, &known).await
}

#[tokio::test]
async fn an_issuer_that_the_chart_does_not_list_is_refused() -> Result<()> {
    beside("issuer-not-allowed", async |scope: &Scope| {
        scope.unchecked().await?;
        const FOREIGN: &str = "https://foreign.example.com/realms/acme";
        let issuer = json!({"name": "acme", "issuer": FOREIGN});
        scope
            .apply(&[
                guarded(scope, ORDERS, &issuer),
                staff_may_sum(ORDERS),
                allow("account", ORDERS, &scope.caller_subject(), &["*"]),
            ])
            .await?;
        let parts = [
            "spec.authentication.issuers[0].issuer",
            FOREIGN,
            "allowedIssuers",
        ];
        tells(scope, ORDERS, NOT_ALLOWED, &parts).await?;
        let reason = Reason::IssuerNotAllowed;
        scope.server_says(ORDERS, refused(reason)).await?;
        scope.server_says(ORDERS, IN_FORCE).await?;
        denials::refuses(scope, ORDERS, reason).await?;
        let token = claims(FOREIGN, &server_url(scope, ORDERS));
        let token = Key::new("foreign")?.sign(&token)?;
        let endpoint = scope.caller(ORDERS).await?.endpoint;
        promise::unauthorized(&endpoint, &token).await?.check()?;
        // Without it, the server serves.
        scope.kubectl(&["delete", "mtp", "orders-staff"]).await?;
        scope.apply(&[stdio(ORDERS)]).await?;
        scope.serving(ORDERS).await?;
        scope.server_says(ORDERS, KEYS).await.map(drop)
    })
    .await
}
