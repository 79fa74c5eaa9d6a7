//! Servers that do not run: the status says why.

use anyhow::{Result, ensure};
use crds::Reason;
use serde_json::json;

use crate::suite::{Scope, beside, not_ready, refused, server, stdio};
use e2e::{PATIENCE, wait_for};

const CRASH: [&str; 3] = [
    "node",
    "-e",
    "console.error('no database at db:5432'); process.exit(3)",
];

#[tokio::test]
async fn a_stdio_server_that_crashes_shows_what_it_said() -> Result<()> {
    beside("crash-stdio", async |scope: &Scope| {
        scope.apply(&[server("crashing", &CRASH, "Stdio")]).await?;
        tells(
            scope,
            "crashing",
            Reason::ServerFailed,
            &["no database at db:5432"],
        )
        .await
    })
    .await
}

#[tokio::test]
async fn an_http_server_that_crashes_shows_what_it_said() -> Result<()> {
    beside("crash-http", async |scope: &Scope| {
        scope
            .apply(&[server("crashing", &CRASH, "StreamableHttp")])
            .await?;
        tells(
            scope,
            "crashing",
            Reason::ServerFailed,
            &["no database at db:5432"],
        )
        .await
    })
    .await
}

#[tokio::test]
async fn a_command_that_does_not_exist_shows_its_name() -> Result<()> {
    beside("no-command", async |scope: &Scope| {
        scope
            .apply(&[server("missing", &["/srv/nowhere"], "Stdio")])
            .await?;
        tells(scope, "missing", Reason::ServerFailed, &["/srv/nowhere"]).await
    })
    .await
}

#[tokio::test]
async fn an_image_that_does_not_exist_shows_its_name() -> Result<()> {
    beside("no-image", async |scope: &Scope| {
        let mut absent = stdio("absent");
        absent["spec"]["deployment"]["image"] = json!("registry.example/absent:1");
        scope.apply(&[absent]).await?;
        tells(
            scope,
            "absent",
            Reason::PodsFailing,
            &["registry.example/absent:1"],
        )
        .await
    })
    .await
}

async fn tells(scope: &Scope, name: &str, reason: Reason, parts: &[&str]) -> Result<()> {
    wait_for(
        &format!("Ready=False/{reason} with {parts:?}"),
        PATIENCE,
        || async {
            let condition = scope.server_says(name, not_ready(reason)).await?;
            for part in parts {
                ensure!(condition.message.contains(part), "{}", condition.message);
            }
            Ok(())
        },
    )
    .await
}

#[tokio::test]
async fn a_name_that_is_taken_is_left_alone() -> Result<()> {
    beside("taken", async |scope: &Scope| {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "theirs"},
            "spec": {"ports": [{"port": 80}], "selector": {"app": "theirs"}},
        });
        scope.apply(&[service]).await?;
        let version = [
            "get",
            "service",
            "theirs",
            "-o",
            "jsonpath={.metadata.resourceVersion}",
        ];
        let before = scope.kubectl(&version).await?;
        scope.apply(&[stdio("theirs")]).await?;
        let condition = scope
            .server_says("theirs", refused(Reason::NameTaken))
            .await?;
        ensure!(
            condition.message.contains("Service"),
            "{}",
            condition.message
        );
        let after = scope.kubectl(&version).await?;
        ensure!(before == after, "the Service was written to");
        let made = scope.kubectl(&["get", "deployments", "-o", "name"]).await?;
        ensure!(made.is_empty(), "made all the same: {made}");
        // Free again, it is used.
        scope.kubectl(&["delete", "service", "theirs"]).await?;
        scope.serving("theirs").await
    })
    .await
}
