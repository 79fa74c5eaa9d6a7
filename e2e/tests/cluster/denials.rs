//! What cannot be compiled denies, and says so.

use anyhow::{Result, ensure};
use crds::Reason;
use e2e::statements as promise;
use e2e::{PATIENCE, PATIENT, wait_for};
use serde_json::json;

use crate::suite::{ACCEPTED, IN_FORCE, Scope, allow, beside, not_ready, refused, server, stdio};

/// Refused, a server is not ready for callers, though its pods run.
pub async fn refuses(scope: &Scope, server: &str, reason: Reason) -> Result<()> {
    scope.server_says(server, not_ready(reason)).await?;
    scope.server_says(server, IN_FORCE).await?;
    let deployment = format!("deployment/{server}");
    scope
        .kubectl(&["rollout", "status", &deployment, PATIENT])
        .await?;
    denies_all(scope, server).await
}

/// Whoever is let in sees nothing and can call nothing.
async fn denies_all(scope: &Scope, server: &str) -> Result<()> {
    let mcp = scope.caller(server).await?.connect().await?;
    let tools = promise::listing(&mcp).await?.tools;
    ensure!(tools.is_empty(), "shown: {tools:?}");
    let call = promise::permitted(&mcp).await;
    ensure!(call.is_err(), "get-sum is answered: {call:?}");
    mcp.cancel().await?;
    Ok(())
}

/// Connects to a server and uses it once.
pub async fn answers(scope: &Scope, server: &str) -> Result<()> {
    let caller = scope.caller(server).await?;
    wait_for(&format!("{server} to answer"), PATIENCE, || async {
        let mcp = caller.connect().await?;
        promise::permitted(&mcp).await?.check()?;
        mcp.cancel().await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn without_a_policy_everything_is_denied() -> Result<()> {
    beside("no-policy", async |scope: &Scope| {
        scope.apply(&[stdio("bare")]).await?;
        scope.serving("bare").await?;
        denies_all(scope, "bare").await
    })
    .await
}

#[tokio::test]
async fn anonymous_is_refused_where_the_chart_does_not_allow_it() -> Result<()> {
    beside("anonymous", async |scope: &Scope| {
        scope.unchecked().await?;
        let mut open = stdio("open");
        open["spec"]["authentication"] = json!({"mode": "Anonymous"});
        let named = allow("named", "open", &scope.caller_subject(), &["*"]);
        let everyone = allow("everyone", "open", &json!({"everyone": true}), &["*"]);
        scope.apply(&[open, named, everyone]).await?;
        let condition = scope
            .server_says("open", refused(Reason::AnonymousNotAllowed))
            .await?;
        for part in ["spec.authentication.mode", "allowAnonymous", "denied"] {
            ensure!(
                condition.message.contains(part),
                "{part}: {}",
                condition.message
            );
        }
        // A rule that names callers could never hold there.
        let condition = scope
            .policy_says("named", refused(Reason::PolicyInvalid))
            .await?;
        for part in ["spec.rules[0].from[0]", "everyone: true"] {
            ensure!(
                condition.message.contains(part),
                "{part}: {}",
                condition.message
            );
        }
        refuses(scope, "open", Reason::AnonymousNotAllowed).await?;
        let caller = scope.caller("open").await?;
        let anonymous = caller
            .endpoint
            .post(None, &[], &e2e::mcp::initialize())
            .await?;
        ensure!(
            anonymous.status() == 401,
            "without a token: {}",
            anonymous.status()
        );
        // Mended, it serves.
        scope.apply(&[stdio("open")]).await?;
        scope.server_says("open", ACCEPTED).await?;
        scope.serving("open").await?;
        answers(scope, "open").await
    })
    .await
}

#[tokio::test]
async fn an_audience_that_is_another_url_denies_all() -> Result<()> {
    beside("audience", async |scope: &Scope| {
        scope.unchecked().await?;
        let mut other = stdio("other");
        other["spec"]["authentication"] = json!({"audience": "https://elsewhere.example/mcp"});
        let policy = allow("callers", "other", &scope.caller_subject(), &["*"]);
        scope.apply(&[other, policy]).await?;
        let condition = scope
            .server_says("other", refused(Reason::ServerInvalid))
            .await?;
        let url = format!("http://other.{}.svc/mcp", scope.namespace);
        for part in ["spec.authentication.audience", &url] {
            ensure!(
                condition.message.contains(part),
                "{part}: {}",
                condition.message
            );
        }
        refuses(scope, "other", Reason::ServerInvalid).await
    })
    .await
}

#[tokio::test]
async fn an_audience_that_is_no_url_is_the_one_to_ask_for() -> Result<()> {
    beside("audience-name", async |scope: &Scope| {
        let mut named = stdio("named");
        named["spec"]["authentication"] = json!({"audience": "orders"});
        let policy = allow("callers", "named", &scope.caller_subject(), &["get-sum"]);
        scope.apply(&[named, policy]).await?;
        scope.serving("named").await?;
        let status = scope
            .servers()
            .get("named")
            .await?
            .status
            .unwrap_or_default();
        ensure!(status.audience.as_deref() == Some("orders"), "{status:?}");
        answers(scope, "named").await
    })
    .await
}

#[tokio::test]
async fn a_policy_whose_target_is_missing_says_so() -> Result<()> {
    beside("target", async |scope: &Scope| {
        let policy = allow("early", "late", &scope.caller_subject(), &["get-sum"]);
        scope.apply(&[policy]).await?;
        let condition = scope
            .policy_says("early", refused(Reason::TargetNotFound))
            .await?;
        ensure!(condition.message.contains("late"), "{}", condition.message);
        // The order in which objects come does not matter.
        scope
            .apply(&[server("late", &["node", "/srv/index.js", "stdio"], "Stdio")])
            .await?;
        scope.policy_says("early", ACCEPTED).await?;
        scope.serving("late").await?;
        answers(scope, "late").await
    })
    .await
}
