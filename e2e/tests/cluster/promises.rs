//! The promises of the demonstration, for both transports, with the examples
//! as they are.

use anyhow::Result;
use e2e::demo::{CALLER, EXAMPLES, NAMESPACE, NO_SUMS, SERVERS};
use e2e::statements::{self as promise, Caller};
use e2e::{PATIENCE, release, wait_for};
use kube::Api;

use crate::suite::{self, Scope, alone};

#[tokio::test]
async fn a_stdio_server_is_guarded() -> Result<()> {
    alone("promises-stdio", async |scope: &Scope| {
        promises(scope, SERVERS[0]).await
    })
    .await
}

#[tokio::test]
async fn an_http_server_is_guarded() -> Result<()> {
    alone("promises-http", async |scope: &Scope| {
        promises(scope, SERVERS[1]).await
    })
    .await
}

async fn promises(scope: &Scope, server: &str) -> Result<()> {
    let caller = ready(scope, server).await?;
    let mcp = caller.connect().await?;
    wait_for("the example's policy", PATIENCE, || async {
        promise::listing(&mcp).await?.check()
    })
    .await?;
    promise::permitted(&mcp).await?.check()?;
    promise::forbidden(&mcp).await?.check()?;
    let burst = promise::burst(&mcp).await?;
    burst.check()?;
    let other = release::token(
        &scope.cluster,
        CALLER.0,
        CALLER.1,
        "http://other.demo.svc/mcp",
    )
    .await?;
    promise::unauthorized(&caller.endpoint, &other)
        .await?
        .check()?;
    let [denied, allowed] = edits(scope, server, &mcp).await?;
    println!(
        "{server}: {} calls in a burst, Retry-After {} s; in force after {:.2} s and {:.2} s",
        burst.answered,
        burst.retry_after,
        denied.took.as_secs_f32(),
        allowed.took.as_secs_f32(),
    );
    // Of another server, though for the same account: not accepted here.
    let theirs = SERVERS
        .iter()
        .find(|other| **other != server)
        .copied()
        .unwrap_or_default();
    let theirs = format!("http://{theirs}.{NAMESPACE}.svc/mcp");
    let theirs = release::token(&scope.cluster, CALLER.0, CALLER.1, &theirs).await?;
    promise::unauthorized(&caller.endpoint, &theirs)
        .await?
        .check()
}

async fn edits(scope: &Scope, server: &str, mcp: &e2e::Mcp) -> Result<[promise::Change; 2]> {
    let cluster = &scope.cluster;
    let patch = [
        "patch",
        "mtp",
        server,
        "-n",
        NAMESPACE,
        "--type=json",
        "-p",
        NO_SUMS,
    ];
    let denied = promise::change(mcp, "get-sum", false, cluster.kubectl(&patch)).await?;
    let file = cluster.checkout().join(format!("examples/{server}.yaml"));
    let file = file.display().to_string();
    let apply = ["apply", "-f", &file];
    let allowed = promise::change(mcp, "get-sum", true, cluster.kubectl(&apply)).await?;
    Ok([denied, allowed])
}

/// Applies the examples and waits for one of their servers.
async fn ready(scope: &Scope, server: &str) -> Result<Caller> {
    let cluster = &scope.cluster;
    for file in EXAMPLES {
        let file = cluster.checkout().join(file).display().to_string();
        cluster.kubectl(&["apply", "-f", &file]).await?;
    }
    let examples = Scope {
        cluster: cluster.clone(),
        client: scope.client.clone(),
        namespace: NAMESPACE.to_owned(),
    };
    if let Err(error) = examples.serving(server).await {
        eprintln!("{}", e2e::diagnose::namespace(cluster, NAMESPACE).await);
        return Err(error);
    }
    let servers = Api::namespaced(scope.client.clone(), NAMESPACE);
    suite::caller(cluster, &servers, server, CALLER).await
}
