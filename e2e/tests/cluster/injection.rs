//! Pods that Toolward did not make: one annotation puts the sidecar into them.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use crds::{Condition, ConditionStatus, ConditionType, InjectionStatus, Reason};
use e2e::mcp::{self, Called, Endpoint};
use e2e::statements::{self as promise, Caller};
use e2e::{Image, PATIENCE, PATIENT, release, wait_for};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams};
use operator::inject::{has_sidecar, testing};
use serde_json::{Value, json};

use crate::denials::answers;
use crate::injected_traffic::APP;
use crate::suite::{INJECTION, Scope, Verdict, allow, beside, not_ready, number, opted_in};
use crate::webhook::answered;

/// Pods that the API server is asked about; `TOOLWARD_PODS` names another number.
const GENERATED: u64 = 500;
/// No more: they would wait for the processors and not for the webhook.
const AT_ONCE: usize = 2;
/// Where containers have the token of their pod's account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io";
const UNGUARDED: Verdict = (
    ConditionType::Enforced,
    ConditionStatus::False,
    Reason::SidecarMissing,
);

/// A server that runs in pods of its users.
pub fn injected(name: &str, transport: &str) -> Value {
    json!({
        "apiVersion": "toolward.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": name},
        "spec": {"injected": {}, "transport": {"type": transport}},
    })
}

/// A container of a team that knows nothing of Toolward.
pub fn container(command: &[&str]) -> Value {
    json!({
        "name": "app", "image": Image::ServerEverything.name(), "command": command,
        "env": [{"name": "PORT", "value": "8080"}],
        "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"},
        },
    })
}

/// The reference server, as it is started over a transport.
fn everything(transport: &str) -> Value {
    match transport {
        "Stdio" => container(&["node", "/srv/index.js", "stdio"]),
        _ => container(&["node", "/srv/index.js", "streamableHttp"]),
    }
}

/// A pod template with the one annotation.
pub fn template(server: &str, container: &Value) -> Value {
    json!({
        "metadata": {"labels": {"app": server}, "annotations": {"toolward.dev/server": server}},
        "spec": {"containers": [container]},
    })
}

/// What makes pods of a template, or a pod alone.
pub fn workload(kind: &str, name: &str, mut template: Value) -> Value {
    let selector = json!({"matchLabels": template["metadata"]["labels"]});
    let (group, spec) = match kind {
        "Pod" => {
            template["metadata"]["name"] = name.into();
            template["apiVersion"] = "v1".into();
            template["kind"] = kind.into();
            return template;
        }
        "Job" => {
            template["spec"]["restartPolicy"] = "Never".into();
            ("batch/v1", json!({"template": template, "backoffLimit": 0}))
        }
        "StatefulSet" => (
            "apps/v1",
            json!({"selector": selector, "template": template, "serviceName": name}),
        ),
        _ => (
            "apps/v1",
            json!({"selector": selector, "template": template}),
        ),
    };
    json!({"apiVersion": group, "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// Waits until a server's status counts so many pods with and without the sidecar.
pub async fn counts(scope: &Scope, server: &str, injected: i32, missing: i32) -> Result<()> {
    let wanted = Some(InjectionStatus { injected, missing });
    let api = scope.servers();
    let what = format!("{injected} pods with the sidecar of {server}, and {missing} without");
    wait_for(&what, PATIENCE, || async {
        let found = api.get(server).await?.status.and_then(|it| it.injection);
        ensure!(found == wanted, "status.injection is {found:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn every_kind_of_workload_gets_the_sidecar() -> Result<()> {
    opted_in("workloads", async |scope: &Scope| {
        let kinds = [
            ("Deployment", "StreamableHttp"),
            ("StatefulSet", "Stdio"),
            ("DaemonSet", "StreamableHttp"),
            ("Pod", "Stdio"),
        ];
        let (mut objects, from) = (Vec::new(), scope.caller_subject());
        for (kind, transport) in kinds {
            let name = kind.to_lowercase();
            objects.push(injected(&name, transport));
            objects.push(allow(&name, &name, &from, &["get-sum"]));
            // At once: the webhook looks a server up that it does not know yet.
            let mut template = template(&name, &everything(transport));
            if kind == "Pod" {
                second(&mut template);
            }
            objects.push(workload(kind, &name, template));
        }
        scope.apply(&objects).await?;
        for (kind, _) in kinds {
            let name = kind.to_lowercase();
            scope
                .serving(&name)
                .await
                .with_context(|| kind.to_owned())?;
            answers(scope, &name)
                .await
                .with_context(|| kind.to_owned())?;
            counts(scope, &name, 1, 0).await?;
            told(scope, &name).await?;
        }
        Ok(())
    })
    .await
}

/// The server's container is not the first one any more, and an annotation names it;
/// the pod sets users and groups for all.
fn second(template: &mut Value) {
    template["spec"]["securityContext"] = json!({
        "runAsUser": 12_345, "runAsGroup": 12_345, "fsGroup": 23_456,
        "supplementalGroups": [34_567],
    });
    let mut other = container(&["node", "-e", "setInterval(() => {}, 1000000)"]);
    other["name"] = "other".into();
    template["metadata"]["annotations"]["toolward.dev/container"] = "app".into();
    let server = template["spec"]["containers"][0].take();
    template["spec"]["containers"] = json!([other, server]);
}

/// The pod and an Event say what was done.
async fn told(scope: &Scope, server: &str) -> Result<()> {
    let label = format!("toolward.dev/server={server}");
    let field = r"jsonpath={.items[*].metadata.annotations.toolward\.dev/injected}";
    let pod = ["get", "pods", "-l", &label, "-o", field];
    let said = scope.kubectl(&pod).await?;
    ensure!(said.contains(&format!("McpServer {server}")), "{said:?}");
    let event = format!("mcpserver/{server}");
    wait_for("the Event", PATIENCE, || async {
        let said = scope.kubectl(&["events", "--for", &event]).await?;
        ensure!(said.contains("Injected"), "{said}");
        Ok(())
    })
    .await
}

/// A sidecar that went on would keep the Job from ending.
#[tokio::test]
async fn a_job_ends_with_its_main_container() -> Result<()> {
    opted_in("job", async |scope: &Scope| {
        let app = container(&["node", "-e", APP]);
        let from = scope.caller_subject();
        scope
            .apply(&[
                injected("job", "StreamableHttp"),
                allow("job", "job", &from, &["*"]),
                workload("Job", "job", template("job", &app)),
            ])
            .await?;
        scope.serving("job").await?;
        let mcp = scope.caller("job").await?.connect().await?;
        let said = mcp::call(&mcp, "finish", json!({})).await?;
        ensure!(
            matches!(&said, Called::Text(text) if text == "finish"),
            "{said:?}"
        );
        scope
            .kubectl(&["wait", "--for=condition=complete", "job/job", PATIENT])
            .await?;
        counts(scope, "job", 0, 0).await
    })
    .await
}

#[tokio::test]
async fn pods_that_were_there_before_are_reported_until_they_are_restarted() -> Result<()> {
    beside("before", async |scope: &Scope| {
        let from = scope.caller_subject();
        let template = template("before", &everything("StreamableHttp"));
        scope
            .apply(&[
                injected("before", "StreamableHttp"),
                allow("before", "before", &from, &["get-sum"]),
                workload("Deployment", "before", template),
            ])
            .await?;
        let missing = scope
            .server_says("before", not_ready(Reason::SidecarMissing))
            .await?;
        let restart = format!(
            "`kubectl rollout restart --namespace {} deployment/before`",
            scope.namespace
        );
        says(&missing, &[&restart, "toolward.dev/injection: enabled"])?;
        says(&scope.server_says("before", UNGUARDED).await?, &[&restart])?;
        counts(scope, "before", 0, 1).await?;

        scope.opt_in().await?;
        scope
            .kubectl(&["rollout", "restart", "deployment/before"])
            .await?;
        scope
            .kubectl(&["rollout", "status", "deployment/before", PATIENT])
            .await?;
        counts(scope, "before", 1, 0).await?;
        scope.serving("before").await?;
        answers(scope, "before").await?;
        a_new_spec_needs_a_restart(scope).await
    })
    .await
}

/// Pods keep the sidecar that they were made with.
async fn a_new_spec_needs_a_restart(scope: &Scope) -> Result<()> {
    let mut asserting = injected("before", "StreamableHttp");
    asserting["spec"]["identity"] = json!({});
    scope.apply(&[asserting]).await?;
    let outdated = not_ready(Reason::SidecarOutdated);
    let restart = ["kubectl rollout restart", "deployment/before"];
    says(&scope.server_says("before", outdated).await?, &restart)?;
    scope
        .kubectl(&["rollout", "restart", "deployment/before"])
        .await?;
    scope.serving("before").await?;
    answers(scope, "before").await
}

fn says(condition: &Condition, parts: &[&str]) -> Result<()> {
    let message = &condition.message;
    for part in parts {
        ensure!(message.contains(part), "{part}: {message}");
    }
    Ok(())
}

/// A pod of the HTTP server `orders`, with a change.
fn changed(change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = workload(
        "Pod",
        "p",
        template("orders", &everything("StreamableHttp")),
    );
    change(&mut pod);
    pod
}

fn annotated(key: &str, value: &str) -> Value {
    changed(|pod| pod["metadata"]["annotations"][key] = value.into())
}

fn bad_pods() -> Vec<(Value, [&'static str; 2])> {
    let server = "metadata.annotations[toolward.dev/server]";
    let entrypoint = changed(|pod| {
        pod["metadata"]["annotations"]["toolward.dev/server"] = "lines".into();
        pod["spec"]["containers"][0]["command"] = Value::Null;
    });
    let port = |number: u16| {
        changed(|pod| {
            pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": number}]);
        })
    };
    vec![
        (
            annotated("toolward.dev/server", "nobody"),
            [server, "there is no McpServer nobody"],
        ),
        (
            annotated("toolward.dev/server", "orders,lines"),
            [server, "write one name"],
        ),
        (
            annotated("toolward.dev/server", "made"),
            [server, "write spec.injected: {}"],
        ),
        (
            annotated("toolward.dev/container", "other"),
            [
                "metadata.annotations[toolward.dev/container]",
                "write one of app",
            ],
        ),
        (
            annotated("toolward.dev/sever", "orders"),
            ["metadata.annotations[toolward.dev/sever]", "write one of"],
        ),
        (
            entrypoint,
            ["spec.containers[0].command", "write the server's command"],
        ),
        (
            changed(|pod| pod["spec"]["hostNetwork"] = true.into()),
            ["spec.hostNetwork", "remove it"],
        ),
        (
            changed(|pod| pod["spec"]["shareProcessNamespace"] = true.into()),
            ["spec.shareProcessNamespace", "remove it"],
        ),
        (port(9440), ["ports[0].containerPort", "port 9440"]),
        (port(9441), ["ports[0].containerPort", "port 9441"]),
        (port(9442), ["ports[0].containerPort", "port 9442"]),
    ]
}

#[tokio::test]
async fn bad_input_is_refused_with_what_to_write() -> Result<()> {
    opted_in("bad-pods", async |scope: &Scope| {
        let made = json!({
            "apiVersion": "toolward.dev/v1alpha1", "kind": "McpServer",
            "metadata": {"name": "made"},
            "spec": {
                "deployment": {"image": "registry.example/absent:1"},
                "transport": {"type": "StreamableHttp"},
            },
        });
        scope
            .apply(&[
                injected("orders", "StreamableHttp"),
                injected("lines", "Stdio"),
                made,
            ])
            .await?;
        let (said, taken) = scope.tries(&changed(|_| ())).await?;
        ensure!(taken && said.is_empty(), "the good one: {said}");
        for (pod, parts) in bad_pods() {
            let (said, taken) = scope.tries(&pod).await?;
            let tells = parts.iter().all(|part| said.contains(part));
            ensure!(!taken && tells, "{parts:?}: {said}");
        }
        // What is legal and maybe not meant.
        let ports = json!([{"containerPort": 8080}, {"containerPort": 8081}]);
        let open = changed(|pod| pod["spec"]["containers"][0]["ports"] = ports);
        let (said, taken) = scope.tries(&open).await?;
        let parts = ["Warning", "8081", "spec.injected.ports"];
        let tells = parts.iter().all(|part| said.contains(part));
        ensure!(taken && tells && !said.contains("8080"), "{said}");
        // A key that is misspelt, in a pod and in a template.
        let misspelt = changed(|pod| {
            let annotations = json!({"toolward.dev/sever": "orders"});
            pod["metadata"]["annotations"] = annotations;
        });
        let template = json!({"metadata": misspelt["metadata"], "spec": misspelt["spec"]});
        for object in [misspelt, workload("Deployment", "misspelt", template)] {
            let (said, taken) = scope.tries(&object).await?;
            let parts = ["Warning", "toolward.dev/sever", "toolward.dev/server"];
            let tells = parts.iter().all(|part| said.contains(part));
            ensure!(taken && tells, "{}: {said}", object["kind"]);
        }
        a_deployment_tells_why_it_has_no_pods(scope).await
    })
    .await
}

async fn a_deployment_tells_why_it_has_no_pods(scope: &Scope) -> Result<()> {
    let template = template("nobody", &everything("StreamableHttp"));
    scope
        .apply(&[workload("Deployment", "refused", template)])
        .await?;
    let field = r#"jsonpath={.status.conditions[?(@.type=="ReplicaFailure")].message}"#;
    wait_for("the Deployment to say why", PATIENCE, || async {
        let get = ["get", "deployment", "refused", "-o", field];
        let said = scope.kubectl(&get).await?;
        ensure!(said.contains("there is no McpServer nobody"), "{said:?}");
        Ok(())
    })
    .await
}

/// One that another webhook changed after ours was asked: it added the annotation, or
/// took away what ours had put there.
#[tokio::test]
async fn a_pod_that_asks_never_comes_without_the_sidecar() -> Result<()> {
    opted_in("changed", async |scope: &Scope| {
        scope.apply(&[injected("orders", "StreamableHttp")]).await?;
        let before = scope.unseen(INJECTION).await?;
        let outcome = without_the_webhook(scope).await;
        scope.configure(INJECTION, &before).await?;
        outcome
    })
    .await
}

async fn without_the_webhook(scope: &Scope) -> Result<()> {
    let sidecar = |label: &'static str| {
        changed(move |pod| {
            let mut sidecar = container(&["node", "-e", "0"]);
            sidecar["name"] = "toolward-sidecar".into();
            sidecar["restartPolicy"] = "Always".into();
            pod["spec"]["initContainers"] = json!([sidecar]);
            pod["metadata"]["labels"]["toolward.dev/server"] = label.into();
        })
    };
    let stopped = changed(|pod| {
        *pod = sidecar("orders");
        pod["spec"]["initContainers"][0]["restartPolicy"] = Value::Null;
    });
    for pod in [changed(|_| ()), sidecar("invoices"), stopped] {
        wait_for("the pod to be refused", PATIENCE, || async {
            let (said, taken) = scope.tries(&pod).await?;
            ensure!(!taken && said.contains("after Toolward's"), "{said}");
            Ok(())
        })
        .await?;
    }
    let plain = changed(|pod| pod["metadata"]["annotations"] = Value::Null);
    for pod in [sidecar("orders"), plain] {
        let (said, taken) = scope.tries(&pod).await?;
        ensure!(taken, "{said}");
    }
    Ok(())
}

/// The caller of a server, at a pod of it: the Service goes with the server.
async fn at_pod(scope: &Scope, server: &str) -> Result<Caller> {
    let label = format!("toolward.dev/server={server}");
    let field = "jsonpath={.items[0].status.podIP}";
    let address = scope
        .kubectl(&["get", "pods", "-l", &label, "-o", field])
        .await?;
    let address = address.parse::<IpAddr>().context(address)?;
    let status = scope.servers().get(server).await?.status;
    let url = status.and_then(|it| it.url).context("no status.url")?;
    let token = release::token(&scope.cluster, &scope.namespace, "default", &url).await?;
    let endpoint = Endpoint::at(&url, SocketAddr::from((address, 9440)))?;
    Ok(Caller { endpoint, token })
}

#[tokio::test]
async fn a_deleted_server_denies_until_its_pods_are_gone() -> Result<()> {
    opted_in("orphans", async |scope: &Scope| {
        let from = scope.caller_subject();
        let server = injected("left", "StreamableHttp");
        let policy = allow("left", "left", &from, &["get-sum"]);
        let app = template("left", &everything("StreamableHttp"));
        let deployment = workload("Deployment", "left", app.clone());
        scope.apply(&[server.clone(), policy, deployment]).await?;
        scope.serving("left").await?;
        let caller = at_pod(scope, "left").await?;
        let mcp = caller.connect().await?;
        promise::permitted(&mcp).await?.check()?;

        scope.kubectl(&["delete", "mcps", "left"]).await?;
        denied(&mcp).await?;
        let fresh = caller.connect().await.context("a session after it")?;
        denied(&fresh).await?;
        let late = workload("Pod", "late", app);
        // Each replica of the operator learns of it by itself.
        wait_for("new pods to be refused", PATIENCE, || async {
            let (said, taken) = scope.tries(&late).await?;
            ensure!(!taken && said.contains("no McpServer left"), "{said}");
            Ok(())
        })
        .await?;

        // Made anew, it takes over.
        scope.apply(&[server]).await?;
        wait_for("calls to be answered again", PATIENCE, || async {
            promise::permitted(&mcp).await?.check()
        })
        .await?;
        scope.kubectl(&["delete", "mcps", "left"]).await?;
        denied(&mcp).await?;

        let kinds = "configmaps,networkpolicies";
        let left = ["get", kinds, "-l", "toolward.dev/server=left", "-o", "name"];
        let there = scope.kubectl(&left).await?;
        ensure!(there.contains("configmap/left-toolward"), "{there:?}");
        scope.kubectl(&["delete", "deployment", "left"]).await?;
        wait_for("nothing to be left", PATIENCE, || async {
            let there = scope.kubectl(&left).await?;
            ensure!(there.is_empty(), "{there} is left");
            Ok(())
        })
        .await
    })
    .await
}

/// Waits until a caller sees nothing and can call nothing.
async fn denied(mcp: &e2e::Mcp) -> Result<()> {
    wait_for("everything to be denied", PATIENCE, || async {
        let tools = promise::listing(mcp).await?.tools;
        ensure!(tools.is_empty(), "shown: {tools:?}");
        Ok(())
    })
    .await?;
    let call = mcp::call(mcp, "get-sum", json!({"a": 1, "b": 2})).await?;
    ensure!(matches!(call, Called::Error { .. }), "{call:?}");
    Ok(())
}

/// The servers that generated pods ask for, in a namespace that takes all kinds.
pub async fn generated(scope: &Scope) -> Result<Api<Pod>> {
    // Half of them are not restricted.
    let label = "pod-security.kubernetes.io/enforce=privileged";
    let args = ["label", "namespace", &scope.namespace, "--overwrite", label];
    scope.cluster.kubectl(&args).await?;
    let servers = testing::servers()?.into_iter().map(serde_json::to_value);
    let servers = servers.collect::<Result<Vec<_>, _>>()?;
    scope.apply(&servers).await?;
    let pods = Api::<Pod>::namespaced(scope.client.clone(), &scope.namespace);
    accepted(&pods, 0).await?;
    Ok(pods)
}

/// Of all kinds that people write, with what built-in plugins check behind the
/// webhook.
#[tokio::test]
async fn the_api_server_accepts_injected_pods_of_all_kinds() -> Result<()> {
    opted_in("generated", async |scope: &Scope| {
        let pods = generated(scope).await?;
        let number = number("TOOLWARD_PODS", GENERATED)?;
        let faults: Vec<_> = stream::iter(1..number)
            .map(|seed| accepted(&pods, seed))
            .buffer_unordered(AT_ONCE)
            .filter_map(async |accepted| accepted.err())
            .map(|error| format!("{error:#}"))
            .collect()
            .await;
        let first = || {
            faults
                .iter()
                .take(5)
                .cloned()
                .collect::<Vec<_>>()
                .join("\n")
        };
        ensure!(
            faults.is_empty(),
            "{} of {number}: {}",
            faults.len(),
            first()
        );
        let (all, soon) = answered(scope).await?;
        ensure!(all > 0, "the metrics tell of none");
        println!("{number} injected pods are accepted; of {all} answers, {soon} within 50 ms");
        Ok(())
    })
    .await
}

/// The API server takes a generated pod as the webhook leaves it.
pub async fn accepted(pods: &Api<Pod>, seed: u64) -> Result<()> {
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let pod = testing::pod(seed);
    let created = pods.create(&params, &pod).await;
    let created = created.with_context(|| format!("seed {seed}"))?;
    ensure!(has_sidecar(&created), "seed {seed}: no sidecar");
    // A built-in plugin gives the app's token to all containers, after the webhook,
    // which is asked again and takes it from ours.
    let spec = created.spec.unwrap_or_default();
    let init = spec.init_containers.iter().flatten();
    let ours = init.filter(|container| container.name.starts_with("toolward-"));
    let mut mounts = ours.flat_map(|container| container.volume_mounts.iter().flatten());
    let has_token = mounts.any(|mount| mount.mount_path.starts_with(ACCOUNT));
    ensure!(!has_token, "seed {seed}: the sidecar has the app's token");
    Ok(())
}
