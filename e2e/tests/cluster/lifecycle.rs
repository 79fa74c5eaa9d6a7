//! Scaling, limits over several replicas, and the end of a server.

use anyhow::{Result, ensure};
use crds::{ConditionStatus, ConditionType, Reason};
use e2e::{PATIENCE, PATIENT, wait_for};
use serde_json::json;

use crate::suite::{Scope, Verdict, allow, beside, http, stdio};

const PER_REPLICA: Verdict = (
    ConditionType::Enforced,
    ConditionStatus::False,
    Reason::PerReplica,
);
const ENFORCED: Verdict = (
    ConditionType::Enforced,
    ConditionStatus::True,
    Reason::Enforced,
);

async fn replicas(scope: &Scope, server: &str, wanted: usize) -> Result<()> {
    let field = [
        "get",
        "deployment",
        server,
        "-o",
        "jsonpath={.status.readyReplicas}",
    ];
    wait_for(
        &format!("{wanted} ready replicas of {server}"),
        PATIENCE,
        || async {
            let ready = scope.kubectl(&field).await?;
            ensure!(ready == wanted.to_string(), "{ready:?} are ready");
            Ok(())
        },
    )
    .await
}

#[tokio::test]
async fn limits_over_two_replicas_say_that_each_counts_for_itself() -> Result<()> {
    beside("per-replica", async |scope: &Scope| {
        let mut twice = stdio("twice");
        twice["spec"]["deployment"]["replicas"] = json!(2);
        let mut policy = allow("limited", "twice", &scope.caller_subject(), &["*"]);
        policy["spec"]["limits"] =
            json!([{"name": "a", "tools": ["*"], "requests": 5, "per": "1m"}]);
        scope.apply(&[twice.clone(), policy]).await?;
        replicas(scope, "twice", 2).await?;
        scope.server_says("twice", PER_REPLICA).await?;
        scope.policy_says("limited", PER_REPLICA).await?;
        twice["spec"]["deployment"]["replicas"] = json!(1);
        scope.apply(&[twice]).await?;
        scope.server_says("twice", ENFORCED).await?;
        scope.policy_says("limited", ENFORCED).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn replicas_that_are_not_set_belong_to_who_scales() -> Result<()> {
    beside("scale", async |scope: &Scope| {
        scope.apply(&[stdio("scaled")]).await?;
        scope.serving("scaled").await?;
        scope.kubectl(&["scale", "deployment/scaled", "--replicas=2"]).await?;
        replicas(scope, "scaled", 2).await?;
        // A change of the server is applied, and the number is left alone.
        let env = r#"[{"op": "add", "path": "/spec/deployment/env/-", "value": {"name": "A", "value": "b"}}]"#;
        scope.kubectl(&["patch", "mcps", "scaled", "--type=json", "-p", env]).await?;
        scope.kubectl(&["rollout", "status", "deployment/scaled", PATIENT]).await?;
        scope.serving("scaled").await?;
        replicas(scope, "scaled", 2).await?;
        // By the scale subresource, the server owns the number.
        scope.kubectl(&["scale", "mcps/scaled", "--replicas=1"]).await?;
        replicas(scope, "scaled", 1).await?;
        scope.kubectl(&["scale", "mcps/scaled", "--replicas=0"]).await?;
        let zero = (ConditionType::Ready, ConditionStatus::False, Reason::ScaledToZero);
        scope.server_says("scaled", zero).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn a_deleted_server_leaves_nothing() -> Result<()> {
    beside("deletion", async |scope: &Scope| {
        scope.apply(&[http("gone")]).await?;
        scope.serving("gone").await?;
        scope.kubectl(&["delete", "mcps", "gone"]).await?;
        let kinds = "deployments,replicasets,pods,services,configmaps,networkpolicies,secrets,serviceaccounts";
        wait_for("nothing of the server", PATIENCE, || async {
            let left = scope.kubectl(&["get", kinds, "-o", "name"]).await?;
            let ours: Vec<&str> = left
                .lines()
                .filter(|name| {
                    !matches!(
                        *name,
                        "configmap/kube-root-ca.crt" | "serviceaccount/default"
                    )
                })
                .collect();
            ensure!(ours.is_empty(), "left: {ours:?}");
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_server_of_the_same_name_can_come_at_once() -> Result<()> {
    beside("again", async |scope: &Scope| {
        scope.apply(&[stdio("again")]).await?;
        scope.serving("again").await?;
        scope.kubectl(&["delete", "mcps", "again"]).await?;
        scope.apply(&[http("again")]).await?;
        scope.serving("again").await
    })
    .await
}
