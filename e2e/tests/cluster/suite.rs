//! What the tests have in common: one cluster, one installation, a namespace
//! each, and a report when a test fails.

use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use crds::{Condition, ConditionStatus, ConditionType, McpServer, McpToolPolicy, Reason};
use e2e::mcp::Endpoint;
use e2e::statements::Caller;
use e2e::{Cluster, Image, PATIENCE, diagnose, release, wait_for};
use futures::FutureExt;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::{OnceCell, RwLock};

use crate::{isolation, issuers, manifests};

/// What makes API servers ask the webhook.
pub const INJECTION: &str = "mutatingwebhookconfiguration/toolward-injection";
pub const VALIDATION: &str = "validatingwebhookconfiguration/toolward-validation";

/// Namespaces with this label are not shown to some webhooks.
const UNSEEN: &str = "e2e.toolward.dev/unseen";
/// What a busy API server says of a webhook that took too long, or whose replica has
/// just died: one asks again.
const HURRIED: [&str; 3] = [
    "context deadline exceeded",
    "looking it up failed",
    "connect: connection refused",
];
const ATTEMPTS: u32 = 10;

static INSTALLED: OnceCell<Cluster> = OnceCell::const_new();
static OPERATOR: RwLock<()> = RwLock::const_new(());

/// A test's own namespace.
pub struct Scope {
    pub cluster: Cluster,
    pub client: Client,
    pub namespace: String,
}

/// Runs a test beside others.
pub async fn beside(name: &str, test: impl AsyncFnOnce(&Scope) -> Result<()>) -> Result<()> {
    let cluster = installed().await?;
    let _shared = OPERATOR.read().await;
    run(cluster, name, false, test).await
}

/// As [`beside`], in a namespace that opted in to injection.
pub async fn opted_in(name: &str, test: impl AsyncFnOnce(&Scope) -> Result<()>) -> Result<()> {
    let cluster = installed().await?;
    let _shared = OPERATOR.read().await;
    run(cluster, name, true, test).await
}

/// The number that an environment variable names, or else this one.
pub fn number(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(number) => number.parse().with_context(|| variable.to_owned()),
        Err(_) => Ok(default),
    }
}

/// Runs a test that no other may disturb, or that would disturb others.
pub async fn alone(name: &str, test: impl AsyncFnOnce(&Scope) -> Result<()>) -> Result<()> {
    let cluster = installed().await?;
    let _exclusive = OPERATOR.write().await;
    run(cluster, name, false, test).await
}

async fn installed() -> Result<Cluster> {
    let cluster = INSTALLED.get_or_try_init(async || {
        let cluster = Cluster::ensure().await?;
        cluster.load_images_as_built(&Image::ALL).await?;
        install(&cluster, &[]).await?;
        anyhow::Ok(cluster)
    });
    Ok(cluster.await?.clone())
}

/// Installs the chart, with what is allowed to those tests that need it: so they need
/// not change the installation, and run beside others. `more` are further `--set`s.
pub async fn install(cluster: &Cluster, more: &[&str]) -> Result<()> {
    let issuers = issuers::allowed();
    let issuers = issuers.iter().map(String::as_str);
    let issuers: Vec<_> = issuers.chain(manifests::ISSUERS).collect();
    let values = [
        format!("allowedIssuers={{{}}}", issuers.join(",")),
        format!("issuerNetworks={{{}}}", cluster.plan().service_cidr()),
        format!("monitoringNamespace={}", isolation::MONITORING),
    ];
    let values: Vec<_> = values.iter().map(String::as_str).collect();
    release::install(cluster, &[&values[..], more].concat()).await
}

async fn run(
    cluster: Cluster,
    name: &str,
    is_opted_in: bool,
    test: impl AsyncFnOnce(&Scope) -> Result<()>,
) -> Result<()> {
    let namespace = format!("t-{name}");
    let scope = Scope {
        client: cluster.client().await?,
        cluster,
        namespace,
    };
    scope.create_namespace().await?;
    if is_opted_in {
        scope.opt_in().await?;
    }
    let outcome = AssertUnwindSafe(test(&scope)).catch_unwind().await;
    let outcome = outcome.unwrap_or_else(|_| Err(anyhow!("the test panicked; see above")));
    if let Err(error) = &outcome {
        let found = diagnose::namespace(&scope.cluster, &scope.namespace).await;
        eprintln!("{error:#}\n\n{found}");
    }
    let delete = ["delete", "namespace", &scope.namespace, "--wait=false"];
    let deleted = scope.cluster.kubectl(&delete).await;
    outcome.and(deleted.map(drop))
}

impl Scope {
    async fn create_namespace(&self) -> Result<()> {
        // A run before this one may have left it.
        let delete = ["delete", "namespace", &self.namespace, "--ignore-not-found"];
        self.cluster.kubectl(&delete).await?;
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {
                "name": self.namespace,
                "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
            },
        });
        self.cluster.apply(&namespace.to_string()).await?;
        let objects = ["serviceaccount/default", "configmap/kube-root-ca.crt"];
        let objects = [&["get", "-n", &self.namespace][..], &objects].concat();
        wait_for("what each namespace has", PATIENCE, || async {
            self.cluster.kubectl(&objects).await
        })
        .await?;
        Ok(())
    }

    /// Lets pods of the namespace have the sidecar; waits until the API server has
    /// taken note.
    pub async fn opt_in(&self) -> Result<()> {
        let label = "toolward.dev/injection=enabled";
        let args = ["label", "namespace", &self.namespace, "--overwrite", label];
        self.cluster.kubectl(&args).await?;
        // It names no server, so it is refused as soon as it is looked at.
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "probe", "annotations": {"toolward.dev/server": "no-such-server"}},
            "spec": {"containers": [{"name": "app", "image": "registry.example/app:1"}]},
        });
        wait_for("pods to be looked at", PATIENCE, || async {
            let (said, _) = self.tries(&pod).await?;
            ensure!(said.contains("no-such-server"), "{said:?}");
            Ok(())
        })
        .await
    }

    /// Lets objects of the test's namespace by without a look of these webhooks, in a
    /// moment. Who upgrades the chart later needs what was there before, which this
    /// gives as a patch.
    pub async fn unseen(&self, configuration: &str) -> Result<String> {
        let label = format!("{UNSEEN}=true");
        let args = ["label", "namespace", &self.namespace, "--overwrite", &label];
        self.cluster.kubectl(&args).await?;
        let get = ["get", configuration, "-o", "json"];
        let found: Value = serde_json::from_str(&self.cluster.kubectl(&get).await?)?;
        let unless = json!({"key": UNSEEN, "operator": "DoesNotExist"});
        let hook = |hook: &Value| {
            let selector = &hook["namespaceSelector"]["matchExpressions"];
            let mut selector = selector.as_array().cloned().unwrap_or_default();
            if !selector.contains(&unless) {
                selector.push(unless.clone());
            }
            json!({"name": hook["name"], "namespaceSelector": {"matchExpressions": selector}})
        };
        let hooks = found["webhooks"].as_array().context("no webhooks")?;
        let before = |hook: &Value| json!({"name": hook["name"], "namespaceSelector": hook["namespaceSelector"]});
        let before: Vec<_> = hooks.iter().map(before).collect();
        let hooks: Vec<_> = hooks.iter().map(hook).collect();
        self.configure(configuration, &json!({"webhooks": hooks}).to_string())
            .await?;
        Ok(json!({"webhooks": before}).to_string())
    }

    /// Changes what makes API servers ask a webhook.
    pub async fn configure(&self, configuration: &str, patch: &str) -> Result<()> {
        let args = ["patch", configuration, "--type=strategic", "-p", patch];
        self.cluster.kubectl(&args).await.map(drop)
    }

    /// Lets webhooks look again.
    pub async fn seen(&self) -> Result<()> {
        let label = format!("{UNSEEN}-");
        let args = ["label", "namespace", &self.namespace, &label];
        self.cluster.kubectl(&args).await.map(drop)
    }

    /// Lets objects of the test's namespace by without a look of the webhook: for
    /// tests of what the operator makes of those that nobody refused.
    pub async fn unchecked(&self) -> Result<()> {
        self.unseen(VALIDATION).await?;
        let mut refused = stdio("unchecked");
        refused["spec"]["authentication"] = json!({"mode": "Anonymous"});
        let refused = refused.to_string();
        let args = [
            "apply",
            "-n",
            &self.namespace,
            "--dry-run=server",
            "-f",
            "-",
        ];
        wait_for("the webhook to look away", PATIENCE, || async {
            self.cluster.kubectl_stdin(&args, &refused).await.map(drop)
        })
        .await
    }

    /// What the API server says to an object in a dry run, and whether it takes it.
    pub async fn tries(&self, object: &Value) -> Result<(String, bool)> {
        let namespace = &self.namespace;
        let args = ["create", "-n", namespace, "--dry-run=server", "-f", "-"];
        let object = object.to_string();
        let tried = unhurried(|| async {
            let output = self.cluster.kubectl_output(&args, Some(&object)).await?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Ok((said, output.status.success()))
        });
        tried.await
    }

    /// Runs kubectl in the test's namespace.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        // First: after `--`, it would go to the command of `exec`.
        let args = [&["-n", &self.namespace], args].concat();
        self.cluster.kubectl(&args).await
    }

    /// Runs JavaScript in the container of a server that has Node.
    pub async fn in_server(&self, server: &str, script: &str) -> Result<()> {
        let deployment = format!("deployment/{server}");
        let exec = ["exec", &deployment, "-c", "server", "--"];
        let node = ["node", "-e", script];
        self.kubectl(&[&exec[..], &node].concat()).await.map(drop)
    }

    /// Applies objects to the test's namespace.
    pub async fn apply(&self, objects: &[Value]) -> Result<()> {
        let args = ["apply", "-n", &self.namespace, "-f", "-"];
        let again = Cell::new(false);
        let (said, success) = unhurried(|| async {
            let objects = match again.replace(true) {
                true => self.without_pods_that_are_there(objects).await?,
                false => objects.to_vec(),
            };
            let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
            let list = list.to_string();
            let output = self.cluster.kubectl_output(&args, Some(&list)).await?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Ok((said, output.status.success()))
        })
        .await?;
        ensure!(success, "kubectl apply: {said}");
        Ok(())
    }

    /// A pod cannot be applied twice: the webhook has changed what cannot be changed.
    async fn without_pods_that_are_there(&self, objects: &[Value]) -> Result<Vec<Value>> {
        let mut kept = Vec::new();
        for object in objects {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let get = ["get", "pod", name, "--ignore-not-found", "-o", "name"];
            if object["kind"] != "Pod" || self.kubectl(&get).await?.is_empty() {
                kept.push(object.clone());
            }
        }
        Ok(kept)
    }

    pub fn servers(&self) -> Api<McpServer> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn policies(&self) -> Api<McpToolPolicy> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Waits until a server's status says this of its present spec.
    pub async fn server_says(&self, name: &str, wanted: Verdict) -> Result<Condition> {
        let api = self.servers();
        wait_for(
            &format!("McpServer {name} to say {wanted:?}"),
            PATIENCE,
            || async {
                let server = api.get(name).await?;
                let conditions = server.status.map(|status| status.conditions);
                says(
                    &conditions.unwrap_or_default(),
                    server.metadata.generation,
                    wanted,
                )
            },
        )
        .await
    }

    /// Waits until a policy's status says this of its present spec.
    pub async fn policy_says(&self, name: &str, wanted: Verdict) -> Result<Condition> {
        let api = self.policies();
        wait_for(
            &format!("McpToolPolicy {name} to say {wanted:?}"),
            PATIENCE,
            || async {
                let policy = api.get(name).await?;
                let conditions = policy.status.map(|status| status.conditions);
                says(
                    &conditions.unwrap_or_default(),
                    policy.metadata.generation,
                    wanted,
                )
            },
        )
        .await
    }

    /// Waits until a server serves, under its present policies.
    pub async fn serving(&self, name: &str) -> Result<()> {
        self.server_says(name, SERVING).await?;
        self.server_says(name, IN_FORCE).await.map(drop)
    }

    /// The test namespace's default service account, calling a server.
    pub async fn caller(&self, server: &str) -> Result<Caller> {
        caller(
            &self.cluster,
            &self.servers(),
            server,
            (&self.namespace, "default"),
        )
        .await
    }

    /// The subject of a rule that matches [`Scope::caller`].
    pub fn caller_subject(&self) -> Value {
        json!({"serviceAccounts": [format!("{}/default", self.namespace)]})
    }
}

/// Asks again while the API server says that a webhook was too slow; gives what it
/// says in the end, and whether it agrees.
pub async fn unhurried<Fut>(ask: impl Fn() -> Fut) -> Result<(String, bool)>
where
    Fut: Future<Output = Result<(String, bool)>>,
{
    let mut attempts = 0;
    loop {
        let (said, success) = ask().await?;
        attempts += 1;
        let is_hurried = !success && HURRIED.iter().any(|words| said.contains(words));
        if !is_hurried || attempts == ATTEMPTS {
            return Ok((said, success));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// A service account with a token for a server, at its URL.
pub async fn caller(
    cluster: &Cluster,
    servers: &Api<McpServer>,
    server: &str,
    (namespace, account): (&str, &str),
) -> Result<Caller> {
    let status = servers.get(server).await?.status.context("no status")?;
    let url = status.url.context("no status.url")?;
    let audience = status.audience.context("no status.audience")?;
    Ok(Caller {
        endpoint: Endpoint::in_cluster(cluster, &url).await?,
        token: release::token(cluster, namespace, account, &audience).await?,
    })
}

/// What a condition should say.
pub type Verdict = (ConditionType, ConditionStatus, Reason);

pub const ACCEPTED: Verdict = (
    ConditionType::Accepted,
    ConditionStatus::True,
    Reason::Accepted,
);
pub const SERVING: Verdict = (ConditionType::Ready, ConditionStatus::True, Reason::Serving);
pub const IN_FORCE: Verdict = (
    ConditionType::Programmed,
    ConditionStatus::True,
    Reason::InForce,
);

pub fn refused(reason: Reason) -> Verdict {
    (ConditionType::Accepted, ConditionStatus::False, reason)
}

pub fn not_ready(reason: Reason) -> Verdict {
    (ConditionType::Ready, ConditionStatus::False, reason)
}

fn says(conditions: &[Condition], generation: Option<i64>, wanted: Verdict) -> Result<Condition> {
    let (type_, status, reason) = wanted;
    let found = conditions.iter().find(|c| c.type_ == type_);
    let Some(found) = found else {
        bail!("no condition {type_:?}");
    };
    ensure!(
        (found.status, found.reason) == (status, reason),
        "{type_:?} is {:?}/{}: {}",
        found.status,
        found.reason,
        found.message
    );
    ensure!(
        Some(found.observed_generation) == generation,
        "{type_:?} speaks of generation {}, not {generation:?}",
        found.observed_generation
    );
    Ok(found.clone())
}

/// A server on the reference server's image.
pub fn server(name: &str, command: &[&str], transport: &str) -> Value {
    json!({
        "apiVersion": "toolward.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": name},
        "spec": {
            "deployment": {
                "image": Image::ServerEverything.name(), "command": command,
                "env": [{"name": "PORT", "value": "8080"}],
            },
            "transport": {"type": transport},
        },
    })
}

/// The reference server over stdio.
pub fn stdio(name: &str) -> Value {
    server(name, &["node", "/srv/index.js", "stdio"], "Stdio")
}

/// The reference server over HTTP.
pub fn http(name: &str) -> Value {
    server(
        name,
        &["node", "/srv/index.js", "streamableHttp"],
        "StreamableHttp",
    )
}

/// A policy that allows these tools to these callers.
pub fn allow(name: &str, target: &str, from: &Value, tools: &[&str]) -> Value {
    json!({
        "apiVersion": "toolward.dev/v1alpha1", "kind": "McpToolPolicy", "metadata": {"name": name},
        "spec": {
            "targetRefs": [{"name": target}],
            "rules": [{"name": "allow", "effect": "Allow", "from": [from], "tools": tools}],
        },
    })
}
