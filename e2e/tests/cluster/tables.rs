//! What `kubectl get` shows.

use anyhow::{Context, Result, ensure};
use crds::Reason;
use e2e::{PATIENCE, wait_for};

use crate::suite::{Scope, allow, beside, not_ready, server, stdio};

fn row<'a>(table: &'a str, name: &str) -> Result<Vec<&'a str>> {
    let row = table.lines().find(|line| line.starts_with(name));
    Ok(row
        .with_context(|| table.to_owned())?
        .split_whitespace()
        .collect())
}

#[tokio::test]
async fn kubectl_get_answers_what_one_asks() -> Result<()> {
    beside("tables", async |scope: &Scope| {
        let from = scope.caller_subject();
        scope
            .apply(&[
                stdio("good"),
                allow("one", "good", &from, &["echo"]),
                allow("two", "good", &from, &["get-*"]),
            ])
            .await?;
        scope
            .apply(&[server("bad", &["node", "-e", "process.exit(1)"], "Stdio")])
            .await?;
        scope.serving("good").await?;
        scope
            .server_says("bad", not_ready(Reason::ServerFailed))
            .await?;

        // Tools and policies are counted, and Events written, in their own time.
        wait_for("the tables", PATIENCE, || shows(scope)).await?;
        let all = scope.kubectl(&["get", "toolward"]).await?;
        ensure!(
            all.contains("mcptoolpolicy.toolward.dev/two") && all.contains("/good"),
            "{all}"
        );
        Ok(())
    })
    .await
}

async fn shows(scope: &Scope) -> Result<()> {
    let table = scope.kubectl(&["get", "mcps"]).await?;
    let header: Vec<&str> = table
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    ensure!(
        header == ["NAME", "READY", "TOOLS", "POLICIES", "URL", "AGE"],
        "{table}"
    );
    let url = format!("http://good.{}.svc/mcp", scope.namespace);
    ensure!(
        row(&table, "good")?.starts_with(&["good", "True", "13", "2", &url]),
        "{table}"
    );
    ensure!(
        row(&table, "bad")?.starts_with(&["bad", "False"]),
        "{table}"
    );

    let wide = scope.kubectl(&["get", "mcpservers", "-o", "wide"]).await?;
    ensure!(
        wide.contains("REASON") && wide.contains("MESSAGE"),
        "{wide}"
    );
    ensure!(row(&wide, "bad")?.contains(&"ServerFailed"), "{wide}");

    let policies = scope.kubectl(&["get", "mtp"]).await?;
    ensure!(
        policies.starts_with("NAME   ACCEPTED   ENFORCED   TARGETS   AGE"),
        "{policies}"
    );
    ensure!(
        row(&policies, "one")?.starts_with(&["one", "True", "True", "good"]),
        "{policies}"
    );

    let events = scope.kubectl(&["events", "--for", "mcpserver/bad"]).await?;
    ensure!(events.contains("ServerFailed"), "{events}");
    Ok(())
}

#[tokio::test]
async fn the_status_lists_the_tools() -> Result<()> {
    beside("tools", async |scope: &Scope| {
        scope.apply(&[stdio("tools")]).await?;
        scope.serving("tools").await?;
        wait_for("the tools", PATIENCE, || lists(scope)).await
    })
    .await
}

async fn lists(scope: &Scope) -> Result<()> {
    let status = scope
        .servers()
        .get("tools")
        .await?
        .status
        .unwrap_or_default();
    let names: Vec<&str> = status.tools.iter().map(|tool| tool.name.as_str()).collect();
    ensure!(
        names.contains(&"echo") && names.contains(&"get-env"),
        "{names:?}"
    );
    ensure!(
        status
            .tools
            .iter()
            .all(|tool| tool.digest.starts_with("sha256:")),
        "{status:?}"
    );
    ensure!(
        status.tool_count == Some(names.len().try_into()?),
        "{status:?}"
    );
    let bundle = status.bundle.clone().context("no status.bundle")?;
    let running: Vec<_> = bundle
        .running
        .iter()
        .map(|b| (b.hash.as_str(), b.replicas))
        .collect();
    ensure!(running == [(bundle.wanted.as_str(), 1)], "{bundle:?}");
    Ok(())
}
