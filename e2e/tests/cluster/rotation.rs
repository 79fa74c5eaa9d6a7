//! The webhook's certificate changes, and no pod that asks for a sidecar is refused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Error, Result, ensure};
use e2e::PATIENCE;
use e2e::release::NAMESPACE;
use e2e::wait_for;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use operator::certificates::pair::{DAY, LIFETIME, Pair, Seconds};
use serde_json::json;

use crate::injection::{accepted, generated};
use crate::operator::operators;
use crate::suite::{Scope, alone, install, number};
use crate::webhook::{SECRET, SERVICE};

/// A Secret that others write.
const GIVEN: &str = "webhook-certificate";
/// How often the certificate is taken away; `TOOLWARD_ROTATIONS` names another
/// number.
const ROTATIONS: u64 = 3;
/// Who asks, each with one pod after the other.
const ASKING: u64 = 4;

/// Asks about generated pods until it is `over`; gives how many. Each has to be
/// accepted.
async fn asks(pods: &Api<Pod>, first: u64, over: &AtomicBool) -> Result<u64> {
    let mut asked = 0;
    while !over.load(Ordering::Relaxed) {
        let answer = accepted(pods, first + asked * ASKING).await;
        answer.with_context(|| format!("after {asked} pods"))?;
        asked += 1;
    }
    Ok(asked)
}

async fn certificate(scope: &Scope, secret: &str) -> Result<String> {
    let field = r"jsonpath={.data.tls\.crt}";
    let found = "--ignore-not-found";
    let args = ["get", "secret", secret, "-n", NAMESPACE, found, "-o", field];
    scope.cluster.kubectl(&args).await
}

/// Waits until another certificate is the current one.
async fn changed(scope: &Scope, before: &str) -> Result<()> {
    wait_for("another certificate", PATIENCE, || async {
        let now = certificate(scope, SECRET).await?;
        ensure!(!now.is_empty() && now != before, "it is the same, or none");
        Ok(())
    })
    .await
}

async fn taken_away(scope: &Scope) -> Result<()> {
    let before = certificate(scope, SECRET).await?;
    let delete = ["delete", "secret", SECRET, "-n", NAMESPACE];
    scope.cluster.kubectl(&delete).await?;
    changed(scope, &before).await
}

fn now() -> Result<Seconds> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// A pair for the webhook, made at this time.
fn made(at: Seconds) -> Result<Pair> {
    let host = format!("{SERVICE}.{NAMESPACE}.svc");
    Pair::make(&host, at).map_err(Error::msg)
}

/// Puts a pair into its place that ended yesterday: what a replica finds whose clock
/// has jumped.
async fn over_since_yesterday(scope: &Scope) -> Result<String> {
    let now = now()?;
    let pair = made(now - LIFETIME - DAY)?;
    ensure!(!pair.life.is_good(now), "it is not over");
    let parts = json!({"ca.crt": pair.ca, "tls.crt": pair.certificate, "tls.key": pair.key});
    let patch = json!({"stringData": parts}).to_string();
    let args = ["patch", "secret", SECRET, "-n", NAMESPACE, "-p", &patch];
    // As it was put there: another may have taken its place.
    let field = ["-o", r"jsonpath={.data.tls\.crt}"];
    scope.cluster.kubectl(&[&args[..], &field].concat()).await
}

async fn all_changes(scope: &Scope, rotations: u64) -> Result<()> {
    for _ in 0..rotations {
        taken_away(scope).await?;
    }
    let put = over_since_yesterday(scope).await?;
    changed(scope, &put).await
}

/// Makes a change while pods are asked about; gives how many were.
pub async fn while_asking(
    pods: &Api<Pod>,
    change: impl Future<Output = Result<()>>,
) -> Result<u64> {
    let over = AtomicBool::new(false);
    let asking = (0..ASKING).map(|first| asks(pods, first, &over));
    let change = async {
        let outcome = change.await;
        over.store(true, Ordering::Relaxed);
        outcome
    };
    let (asked, ()) = futures::try_join!(try_join_all(asking), change)?;
    ensure!(asked.iter().all(|pods| *pods > 0), "{asked:?}");
    Ok(asked.iter().sum())
}

#[tokio::test]
async fn no_pod_is_refused_while_certificates_change() -> Result<()> {
    alone("rotation", async |scope: &Scope| {
        let pods = ready(scope).await?;
        let rotations = number("TOOLWARD_ROTATIONS", ROTATIONS)?;
        let asked = while_asking(&pods, all_changes(scope, rotations)).await?;
        let changes = rotations + 1;
        println!("{asked} pods were accepted while the certificate changed {changes} times");
        Ok(())
    })
    .await
}

/// Writes a new pair, as cert-manager does; gives its certificate as Secrets have it.
async fn give(scope: &Scope) -> Result<String> {
    let pair = made(now()?)?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": GIVEN, "namespace": NAMESPACE},
        "stringData": {"ca.crt": pair.ca, "tls.crt": pair.certificate, "tls.key": pair.key},
    });
    scope.cluster.apply(&secret.to_string()).await?;
    certificate(scope, GIVEN).await
}

async fn current_is(scope: &Scope, given: &str) -> Result<()> {
    wait_for("the certificate of others to be used", PATIENCE, || async {
        ensure!(certificate(scope, SECRET).await? == given, "it is not");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_certificate_in_cert_managers_form_is_used_and_changed() -> Result<()> {
    alone("rotation-given", async |scope: &Scope| {
        let pods = ready(scope).await?;
        let first = give(scope).await?;
        let value = format!("webhook.certificate.secretName={GIVEN}");
        install(&scope.cluster, &[&value]).await?;
        let outcome = async {
            current_is(scope, &first).await?;
            let change = async {
                let second = give(scope).await?;
                current_is(scope, &second).await
            };
            while_asking(&pods, change).await
        };
        let outcome = outcome.await;
        install(&scope.cluster, &[]).await?;
        let delete = ["delete", "secret", GIVEN, "-n", NAMESPACE];
        scope.cluster.kubectl(&delete).await?;
        accepted(&pods, 1).await.context("with its own again")?;
        outcome.map(drop)
    })
    .await
}

/// Both replicas start with it, and know none that is good.
#[tokio::test]
async fn replicas_that_find_a_certificate_that_is_over_make_another() -> Result<()> {
    alone("rotation-start", async |scope: &Scope| {
        let pods = ready(scope).await?;
        operators(scope, 0).await?;
        let put = over_since_yesterday(scope).await?;
        operators(scope, e2e::release::REPLICAS).await?;
        changed(scope, &put).await?;
        accepted(&pods, 1).await
    })
    .await
}

/// A namespace that opted in, with the servers of generated pods.
pub async fn ready(scope: &Scope) -> Result<Api<Pod>> {
    scope.opt_in().await?;
    generated(scope).await
}
