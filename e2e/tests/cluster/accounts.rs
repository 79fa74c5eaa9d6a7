//! Service accounts as callers: with the cluster's own tokens, and no identity
//! provider at all.

use anyhow::{Context, Result, bail, ensure};
use e2e::mcp::{self, Called};
use e2e::statements::{self as promise, Caller};
use e2e::{Image, PATIENCE, wait_for};
use serde_json::{Value, json};

use crate::suite::{self, Scope, allow, beside, stdio};

const SERVER: &str = "orders";
/// A service account of the test's namespace that runs a pod, and that pod.
const ROBOT: &str = "robot";
const POD: &str = "robot-7";

#[tokio::test]
async fn service_accounts_need_no_provider() -> Result<()> {
    beside("accounts", async |scope: &Scope| {
        let namespaces = scope.cluster.checkout().join("examples/namespace.yaml");
        let namespaces = namespaces.display().to_string();
        let apply = ["apply", "-f", &namespaces];
        scope.cluster.kubectl(&apply).await?;
        let robot = format!("{}/{ROBOT}", scope.namespace);
        let of = |accounts: &[&str]| json!({"serviceAccounts": accounts});
        scope
            .apply(&[
                json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ROBOT}}),
                stdio(SERVER),
                allow("reporter", SERVER, &of(&["agents/reporter"]), &["get-sum"]),
                allow("agents", SERVER, &of(&["agents/*"]), &["echo"]),
                allow("robot", SERVER, &of(&[robot.as_str()]), &["get-sum"]),
            ])
            .await?;
        scope.serving(SERVER).await?;
        for (account, shown) in [
            (("agents", "reporter"), &["echo", "get-sum"][..]),
            (("agents", "default"), &["echo"]),
            ((scope.namespace.as_str(), "default"), &[]),
        ] {
            decides(scope, account, shown).await?;
        }
        the_audit_names_the_pod(scope).await
    })
    .await
}

/// A service account is shown these tools, and can use `get-sum` where that is
/// among them.
async fn decides(scope: &Scope, account: (&str, &str), shown: &[&str]) -> Result<()> {
    // In a namespace that is new, `default` takes a moment.
    let caller = wait_for("a token", PATIENCE, || async {
        suite::caller(&scope.cluster, &scope.servers(), SERVER, account).await
    })
    .await?;
    let mcp = caller.connect().await?;
    let tools = promise::listing(&mcp).await?.tools;
    ensure!(tools == shown, "{account:?} is shown {tools:?}");
    let called = mcp::call(&mcp, "get-sum", json!({"a": 2, "b": 40})).await?;
    match called {
        Called::Text(_) if shown.contains(&"get-sum") => {}
        Called::Error { code: -32602, .. } if !shown.contains(&"get-sum") => {}
        other => bail!("{account:?}: get-sum gives {other:?}"),
    }
    mcp.cancel().await?;
    Ok(())
}

/// One that never runs: a token can be bound to it all the same.
fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD},
        "spec": {
            "serviceAccountName": ROBOT,
            "schedulingGates": [{"name": "e2e/never"}],
            "securityContext": {
                "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "robot", "image": Image::ServerEverything.name(),
                "securityContext": {
                    "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    })
}

async fn the_audit_names_the_pod(scope: &Scope) -> Result<()> {
    scope.apply(&[pod()]).await?;
    let robot = (scope.namespace.as_str(), ROBOT);
    let unbound = suite::caller(&scope.cluster, &scope.servers(), SERVER, robot).await?;
    let audience = format!("--audience=http://{SERVER}.{}.svc/mcp", scope.namespace);
    let name = format!("--bound-object-name={POD}");
    let create = ["create", "token", ROBOT, &audience];
    let bound = ["--bound-object-kind=Pod", &name];
    let token = scope.kubectl(&[&create[..], &bound].concat()).await?;
    let bound = Caller {
        endpoint: unbound.endpoint.clone(),
        token: token.trim().to_owned(),
    };
    for (caller, pod) in [(bound, json!(POD)), (unbound, Value::Null)] {
        let mcp = caller.connect().await?;
        promise::permitted(&mcp).await?.check()?;
        mcp.cancel().await?;
        is_recorded(scope, &pod).await?;
    }
    Ok(())
}

/// The audit has a call of the robot's, from this pod or from none.
async fn is_recorded(scope: &Scope, pod: &Value) -> Result<()> {
    let label = format!("toolward.dev/server={SERVER}");
    let logs = ["logs", "-l", &label, "-c", "toolward-sidecar", "--tail=-1"];
    let user = format!("system:serviceaccount:{}:{ROBOT}", scope.namespace);
    let what = format!("a record of the robot with the pod {pod}");
    let record = wait_for(&what, PATIENCE, || async {
        let log = scope.kubectl(&logs).await?;
        let lines = log.lines();
        let mut records = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let record = records.find(|record| {
            record["tool"] == "get-sum" && record["user"] == *user && record["pod"] == *pod
        });
        record.context("no such record")
    })
    .await?;
    for (field, value) in [
        ("issuer", "cluster"),
        ("agent", &*user),
        ("decision", "Allow"),
        ("policy", "robot"),
        ("rule", "allow"),
    ] {
        ensure!(record[field] == value, "{field}: {record}");
    }
    Ok(())
}
