//! The admission webhook as API servers and kubectl see it: what waits for it and
//! what does not, its certificate, and its words.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::release::{self, NAMESPACE, OPERATOR};
use e2e::{PATIENCE, PATIENT, wait_for};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::operator::requests;
use crate::suite::{INJECTION, Scope, VALIDATION, allow, alone, install, opted_in, stdio};

pub const SERVICE: &str = "toolward-webhook";
pub const SECRET: &str = "toolward-webhook-tls";
/// A Service that leads to the webhook, by a name that its certificate does not have.
const STRANGE: &str = "strange-webhook";
/// A Service that leads to who takes connections and says nothing.
const SILENT: &str = "silent-webhook";
const OPT_IN: &str = "toolward.dev/injection=enabled";

/// A pod that restricted pod security lets in; it is never started.
fn pod(name: &str, namespace: &str, annotations: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
        "spec": {
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "app", "image": "registry.example/app:1",
                "securityContext": {
                    "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    })
}

fn asks(namespace: &str, server: &str) -> Value {
    pod("asks", namespace, json!({"toolward.dev/server": server}))
}

fn in_namespace(mut object: Value, namespace: &str) -> Value {
    object["metadata"]["namespace"] = json!(namespace);
    object
}

/// What kubectl says to an object that is not kept, and whether it was let in.
async fn tried(scope: &Scope, object: &Value) -> Result<(String, bool)> {
    let args = ["apply", "--dry-run=server", "-f", "-"];
    let object = object.to_string();
    let output = scope.cluster.kubectl_output(&args, Some(&object)).await?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok((said, output.status.success()))
}

async fn let_in(scope: &Scope, object: &Value) -> Result<String> {
    let (said, success) = tried(scope, object).await?;
    ensure!(success, "{}: {said}", object["kind"]);
    Ok(said)
}

async fn refused(scope: &Scope, object: &Value, parts: &[&str]) -> Result<()> {
    let (said, success) = tried(scope, object).await?;
    ensure!(!success, "{} is let in", object["kind"]);
    for part in parts {
        ensure!(said.contains(part), "{said:?} does not say {part:?}");
    }
    Ok(())
}

/// What waits for the webhook is refused, and says why; nothing else is.
async fn closed(scope: &Scope, elsewhere: &str) -> Result<()> {
    let here = scope.namespace.as_str();
    let server = in_namespace(stdio("late"), here);
    let policy = allow("late", "late", &json!({"everyone": true}), &["*"]);
    let policy = in_namespace(policy, here);
    for (object, hook) in [
        (asks(here, "orders"), "pods.toolward.dev"),
        (server, "servers.toolward.dev"),
        (policy, "policies.toolward.dev"),
    ] {
        let says = format!("failed calling webhook \"{hook}\"");
        // An API server learns what was changed a moment later.
        let parts = [says.as_str()];
        wait_for(&says, PATIENCE, || refused(scope, &object, &parts)).await?;
    }
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "any", "namespace": here},
    });
    let template = &asks(here, "orders");
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "any", "namespace": here},
        "spec": {
            "selector": {"matchLabels": {"app": "any"}},
            "template": {
                "metadata": {
                    "labels": {"app": "any"},
                    "annotations": template["metadata"]["annotations"],
                },
                "spec": template["spec"],
            },
        },
    });
    for object in [
        pod("plain", here, Value::Null),
        pod("other", here, json!({"toolward.dev/other": "orders"})),
        map,
        deployment,
        // A namespace that did not opt in, and those that cannot.
        asks(elsewhere, "orders"),
        asks("kube-system", "orders"),
        asks(NAMESPACE, "orders"),
    ] {
        let namespace = object["metadata"]["namespace"].clone();
        let_in(scope, &object)
            .await
            .with_context(|| format!("in {namespace}"))?;
    }
    Ok(())
}

/// Lets API servers call the webhook by another Service.
async fn redirect(scope: &Scope, service: &str) -> Result<()> {
    let hook = |name: &str| json!({"name": name, "clientConfig": {"service": {"name": service, "namespace": NAMESPACE}}});
    for (configuration, hooks) in [
        (INJECTION, &["pods.toolward.dev"][..]),
        (
            VALIDATION,
            &["servers.toolward.dev", "policies.toolward.dev"][..],
        ),
    ] {
        let hooks: Vec<Value> = hooks.iter().map(|name| hook(name)).collect();
        let patch = json!({"webhooks": hooks}).to_string();
        let args = ["patch", configuration, "--type=strategic", "-p", &patch];
        scope.cluster.kubectl(&args).await?;
    }
    Ok(())
}

async fn scale(scope: &Scope, replicas: &str) -> Result<()> {
    let deployment = format!("deployment/{OPERATOR}");
    let replicas = format!("--replicas={replicas}");
    let args = ["scale", &deployment, "-n", NAMESPACE, &replicas];
    scope.cluster.kubectl(&args).await.map(drop)
}

async fn replicas(scope: &Scope) -> Result<String> {
    let field = "jsonpath={.spec.replicas}";
    let args = ["get", "deployment", OPERATOR, "-n", NAMESPACE, "-o", field];
    scope.cluster.kubectl(&args).await
}

/// Takes connections, and says nothing.
async fn silence(scope: &Scope) -> Result<JoinHandle<()>> {
    let host = scope.cluster.plan().host_ip();
    let listener = TcpListener::bind((host, 0)).await?;
    let port = listener.local_addr()?.port();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": SILENT, "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": SILENT},
        },
        "addressType": "IPv4",
        "ports": [{"name": "webhook", "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [host], "conditions": {"ready": true}}],
    });
    scope.cluster.apply(&slice.to_string()).await?;
    scope
        .cluster
        .apply(&service(SILENT, None).to_string())
        .await?;
    Ok(tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.push(stream);
        }
    }))
}

fn service(name: &str, selector: Option<Value>) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"ports": [{"name": "webhook", "port": 443, "targetPort": "webhook"}]},
    });
    if let Some(selector) = selector {
        service["spec"]["selector"] = selector;
    }
    service
}

async fn harms(scope: &Scope, elsewhere: &str) -> Result<()> {
    let cluster = &scope.cluster;
    let selector = json!({"app.kubernetes.io/component": "operator"});
    let strange = service(STRANGE, Some(selector)).to_string();
    cluster.apply(&strange).await?;
    redirect(scope, STRANGE).await?;
    closed(scope, elsewhere)
        .await
        .context("with a certificate of another name")?;

    let silence = silence(scope).await?;
    redirect(scope, SILENT).await?;
    let outcome = closed(scope, elsewhere).await;
    silence.abort();
    outcome.context("with a webhook that says nothing")?;

    redirect(scope, SERVICE).await?;
    release::admits(cluster).await?;
    scope.apply(&[stdio("leaves")]).await?;
    let keep = json!({"metadata": {"finalizers": ["e2e.toolward.dev/keep"]}}).to_string();
    let patch = ["patch", "mcps", "leaves", "--type=merge", "-p", &keep];
    scope.kubectl(&patch).await?;
    scale(scope, "0").await?;
    closed(scope, elsewhere)
        .await
        .context("without an operator")?;
    // Who leaves can leave.
    let scale = ["scale", "mcps/leaves", "--replicas=0"];
    scope.kubectl(&scale).await?;
    let delete = ["delete", "mcps", "leaves", "--wait=false"];
    scope.kubectl(&delete).await?;
    let let_go = json!({"metadata": {"finalizers": null}}).to_string();
    let patch = ["patch", "mcps", "leaves", "--type=merge", "-p", &let_go];
    scope.kubectl(&patch).await?;
    let gone = ["wait", "--for=delete", "mcps/leaves", PATIENT];
    scope.kubectl(&gone).await.map(drop)
}

/// A namespace that did not opt in, and that pods can be made in.
async fn make_namespace(scope: &Scope, name: &str) -> Result<()> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    scope.cluster.apply(&namespace.to_string()).await?;
    let account = ["get", "serviceaccount", "default", "-n", name];
    wait_for("the default service account", PATIENCE, || async {
        scope.cluster.kubectl(&account).await.map(drop)
    })
    .await
}

async fn put_back(scope: &Scope, elsewhere: &str, number: &str) -> Result<()> {
    let cluster = &scope.cluster;
    scale(scope, number).await?;
    redirect(scope, SERVICE).await?;
    let [strange, silent] = [STRANGE, SILENT].map(|name| format!("service/{name}"));
    let slice = format!("endpointslice/{SILENT}");
    let objects = [strange.as_str(), &silent, &slice];
    let delete = ["delete", "--ignore-not-found", "-n", NAMESPACE];
    cluster.kubectl(&[&delete[..], &objects].concat()).await?;
    let opt_out = "toolward.dev/injection-";
    let args = ["label", "namespace", "kube-system", NAMESPACE, opt_out];
    cluster.kubectl(&args).await?;
    let args = ["delete", "namespace", elsewhere, "--wait=false"];
    cluster.kubectl(&args).await?;
    release::admits(cluster).await
}

#[tokio::test]
async fn without_the_webhook_pods_that_ask_for_it_fail_and_nothing_else_is_touched() -> Result<()> {
    alone("webhook-harm", async |scope: &Scope| {
        let (here, elsewhere) = (
            scope.namespace.as_str(),
            format!("{}-other", scope.namespace),
        );
        let number = replicas(scope).await?;
        for namespace in [here, "kube-system", NAMESPACE] {
            let opt_in = ["label", "--overwrite", "namespace", namespace, OPT_IN];
            scope.cluster.kubectl(&opt_in).await?;
        }
        make_namespace(scope, &elsewhere).await?;
        let outcome = harms(scope, &elsewhere).await;
        let restored = put_back(scope, &elsewhere, &number).await;
        outcome.and(restored)
    })
    .await
}

async fn bundle(scope: &Scope, configuration: &str) -> Result<String> {
    let field = "jsonpath={.webhooks[0].clientConfig.caBundle}";
    let args = ["get", configuration, "-o", field];
    scope.cluster.kubectl(&args).await
}

/// Of how many pods the replicas have been asked, and how many they answered for
/// within 50 ms.
pub async fn answered(scope: &Scope) -> Result<(u64, u64)> {
    let names = "jsonpath={.items[*].metadata.name}";
    let pods = ["get", "pods", "-n", NAMESPACE, "-l", release::OPERATOR_PODS];
    let names = [&pods[..], &["-o", names]].concat();
    let (mut all, mut soon) = (0, 0);
    for name in scope.cluster.kubectl(&names).await?.split_whitespace() {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}:8080/proxy/metrics");
        let text = scope.cluster.kubectl(&["get", "--raw", &path]).await?;
        let of_pods = text
            .lines()
            .filter(|line| line.contains("resource=\"pods\""));
        for line in of_pods {
            let number = line
                .rsplit(' ')
                .next()
                .and_then(|it| it.parse::<u64>().ok());
            let number = number.unwrap_or_default();
            if line.starts_with("toolward_admission_duration_seconds_count") {
                all += number;
            } else if line.starts_with("toolward_admission_duration_seconds_bucket")
                && line.contains("le=\"0.05\"")
            {
                soon += number;
            }
        }
    }
    Ok((all, soon))
}

/// How often the operator wrote a caBundle.
fn written(scope: &Scope) -> Result<usize> {
    let is_write = |event: &&Value| {
        let resource = event["objectRef"]["resource"].as_str().unwrap_or_default();
        event["verb"] == "patch" && resource.ends_with("webhookconfigurations")
    };
    Ok(requests(scope)?.iter().filter(is_write).count())
}

#[tokio::test]
async fn a_ca_bundle_that_somebody_changes_is_put_right() -> Result<()> {
    alone("webhook-bundle", async |scope: &Scope| {
        let (cluster, here) = (&scope.cluster, scope.namespace.as_str());
        let ours = ["label", "--overwrite", "namespace", here, OPT_IN];
        cluster.kubectl(&ours).await?;
        // Helm leaves it alone, so that nothing has to be put right.
        let before = written(scope)?;
        install(cluster, &[]).await?;
        ensure!(!bundle(scope, INJECTION).await?.is_empty(), "there is none");
        ensure!(written(scope)? == before, "helm upgrade changed it");

        let path = "/webhooks/0/clientConfig/caBundle";
        let remove = json!([{"op": "remove", "path": path}]);
        let empty = json!([{"op": "replace", "path": path, "value": ""}]);
        for (changed, other, patch) in [
            (INJECTION, VALIDATION, &remove),
            (VALIDATION, INJECTION, &remove),
            (INJECTION, VALIDATION, &empty),
        ] {
            let patch = patch.to_string();
            let args = ["patch", changed, "--type=json", "-p", &patch];
            cluster.kubectl(&args).await?;
            wait_for("the same caBundle everywhere", PATIENCE, || async {
                let (now, right) = (bundle(scope, changed).await?, bundle(scope, other).await?);
                ensure!(!now.is_empty() && now == right, "{now:?} is not {right:?}");
                Ok(())
            })
            .await?;
        }
        // It is trusted again, and asked.
        let parts = ["admission webhook \"pods.toolward.dev\" denied the request"];
        let pod = asks(here, "nobody");
        wait_for(parts[0], PATIENCE, || refused(scope, &pod, &parts)).await?;
        release::admits(cluster).await
    })
    .await
}

/// Deletes the webhook's certificate, and waits until there is another one; what is
/// asked meanwhile is answered.
pub async fn certificate_deleted(scope: &Scope) -> Result<()> {
    let cluster = &scope.cluster;
    let field = r"jsonpath={.data.tls\.crt}";
    let certificate = ["get", "secret", SECRET, "-n", NAMESPACE, "-o", field];
    let before = cluster.kubectl(&certificate).await?;
    ensure!(!before.is_empty(), "there is none");
    let server = in_namespace(stdio("meanwhile"), &scope.namespace);
    let delete = ["delete", "secret", SECRET, "-n", NAMESPACE];
    cluster.kubectl(&delete).await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Not one may fail, so none is tried again.
        let_in(scope, &server)
            .await
            .context("while the certificate changes")?;
        let now = cluster.kubectl(&certificate).await.unwrap_or_default();
        if !now.is_empty() && now != before {
            return let_in(scope, &server).await.map(drop);
        }
        ensure!(Instant::now() < deadline, "there is no other certificate");
    }
}

#[tokio::test]
async fn a_certificate_that_somebody_deletes_is_replaced_and_no_question_is_lost() -> Result<()> {
    alone("webhook-secret", async |scope: &Scope| {
        certificate_deleted(scope).await
    })
    .await
}

#[tokio::test]
async fn kubectl_shows_what_is_refused_and_what_is_suspicious() -> Result<()> {
    opted_in("webhook-words", async |scope: &Scope| {
        let here = scope.namespace.as_str();
        let mut open = in_namespace(stdio("open"), here);
        open["spec"]["authentication"] = json!({"mode": "Anonymous"});
        let says = [
            "admission webhook \"servers.toolward.dev\" denied the request: spec.authentication.mode: ",
            "allowAnonymous",
            "(AnonymousNotAllowed)",
        ];
        refused(scope, &open, &says).await?;

        scope.apply(&[stdio("orders")]).await?;
        let stranger = json!({"issuer": "acme", "users": ["alice"]});
        let policy = in_namespace(allow("p", "orders", &stranger, &["*"]), here);
        let says = [
            "admission webhook \"policies.toolward.dev\" denied the request: spec.rules[0].from[0]: ",
            "[McpServer orders]",
            "(PolicyInvalid)",
        ];
        // The operator may not have heard of the server: then it asks.
        refused(scope, &policy, &says).await?;
        let nobody = asks(here, "nobody");
        let says = [
            "admission webhook \"pods.toolward.dev\" denied the request: metadata.annotations[toolward.dev/server]: ",
            "there is no McpServer nobody in namespace",
            "spec.injected: {}",
        ];
        refused(scope, &nobody, &says).await?;
        broken_can_be_mended(scope, &open).await
    })
    .await
}

/// What came in without a look can be changed, and says what is wrong.
async fn broken_can_be_mended(scope: &Scope, open: &Value) -> Result<()> {
    scope.unchecked().await?;
    scope.apply(std::slice::from_ref(open)).await?;
    scope.seen().await?;
    let mut changed = open.clone();
    changed["spec"]["authentication"]["audience"] = json!("orders");
    let warning = "Warning: every call is denied: spec.authentication.mode: ";
    wait_for(warning, PATIENCE, || async {
        let said = let_in(scope, &changed).await?;
        ensure!(said.contains(warning), "{said}");
        Ok(())
    })
    .await?;
    let mended = in_namespace(stdio("open"), &scope.namespace);
    let said = let_in(scope, &mended).await?;
    ensure!(!said.contains("every call is denied"), "{said}");
    Ok(())
}
