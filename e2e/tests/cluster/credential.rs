//! A credential for the server, from a Secret: the server sees it in requests, and
//! nobody else sees it anywhere.

use std::cell::Cell;

use anyhow::{Context, Result, bail, ensure};
use e2e::mcp::{self, Called, initialize};
use e2e::statements::Caller;
use e2e::{Mcp, PATIENCE, sh, wait_for};
use serde_json::{Value, json};

use crate::suite::{Scope, allow, beside, server};
use crate::tls::{nudge, pods};

const SERVER: &str = "backed";
const SECRET: &str = "backend-key";
/// Values of the header, one after the other.
const VALUES: [&str; 2] = [
    "Bearer first-of-the-backend",
    "Bearer second-of-the-backend",
];

fn secret(value: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET},
        "stringData": {"token": value},
    })
}

/// What the server saw of a request.
struct Seen {
    /// Of its `Authorization`.
    digest: String,
    /// Its other headers.
    others: Value,
}

async fn seen(mcp: &Mcp) -> Result<Seen> {
    let text = match mcp::call(mcp, "headers", json!({})).await? {
        Called::Text(text) => text,
        other => bail!("headers gives {other:?}"),
    };
    let mut seen: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    let digest = seen["digest"].as_str().context("no digest")?.to_owned();
    let others = seen["others"].take();
    Ok(Seen { digest, others })
}

#[tokio::test]
async fn only_the_server_sees_its_credential() -> Result<()> {
    beside("credential", async |scope: &Scope| {
        let command = [
            "node",
            "-e",
            concat!(include_str!("serve.js"), include_str!("headers.js")),
        ];
        let mut backed = server(SERVER, &command, "StreamableHttp");
        backed["spec"]["upstreamCredential"] =
            json!({"secretRef": {"name": SECRET, "key": "token"}});
        let policy = allow("callers", SERVER, &scope.caller_subject(), &["*"]);
        scope.apply(&[secret(VALUES[0]), backed, policy]).await?;
        scope.serving(SERVER).await?;
        let caller = scope.caller(SERVER).await?;
        let mcp = caller.connect().await?;

        let Seen { digest, others } = seen(&mcp).await?;
        ensure!(digest == sh::sha256(VALUES[0]), "{digest}: {others}");
        let others = others.to_string();
        let (_, signature) = caller.token.rsplit_once('.').context("no JWT")?;
        ensure!(!others.contains(signature), "the caller's token: {others}");
        callers_see_nothing(&caller).await?;
        is_for_the_sidecar_alone(scope).await?;

        let (before, count) = (pods(scope).await?, Cell::new(0));
        scope.apply(&[secret(VALUES[1])]).await?;
        wait_for("the changed credential", PATIENCE, || async {
            nudge(scope, &count).await?;
            let Seen { digest, .. } = seen(&mcp).await?;
            ensure!(digest == sh::sha256(VALUES[1]), "the old one");
            Ok(())
        })
        .await?;
        let after = pods(scope).await?;
        ensure!(before == after, "restarted: {before:?}, then {after:?}");
        mcp.cancel().await?;
        is_in_no_log(scope).await
    })
    .await
}

async fn callers_see_nothing(caller: &Caller) -> Result<()> {
    let token = Some(caller.token.as_str());
    let answer = caller.endpoint.post(token, &[], &initialize()).await?;
    let head = format!("{:?}", answer.headers());
    let body = answer.text().await?;
    ensure!(body.contains("serverInfo"), "{body}");
    ensure!(
        !head.contains("of-the-backend") && !body.contains("of-the-backend"),
        "{head} {body}"
    );
    Ok(())
}

/// The Secret is mounted into the sidecar, and nothing of it is in the server's
/// container.
async fn is_for_the_sidecar_alone(scope: &Scope) -> Result<()> {
    let label = format!("toolward.dev/server={SERVER}");
    let get = ["get", "pods", "-l", &label, "-o"];
    let containers = async |kind: &str| {
        let path = format!("jsonpath={{.items[*].spec.{kind}}}");
        scope.kubectl(&[&get[..], &[&*path]].concat()).await
    };
    let sidecar = containers("initContainers").await?;
    ensure!(sidecar.contains("toolward-credential"), "{sidecar}");
    let server = containers("containers").await?;
    ensure!(
        server.contains(r#""name":"server""#)
            && !server.contains("toolward-credential")
            && !server.contains(SECRET),
        "{server}"
    );
    let look = "const fs = require('node:fs'); \
                if (fs.existsSync('/etc/toolward')) throw new Error('/etc/toolward is there'); \
                if (JSON.stringify(process.env).includes('of-the-backend')) throw new Error('it is in env')";
    scope.in_server(SERVER, look).await
}

async fn is_in_no_log(scope: &Scope) -> Result<()> {
    let label = format!("toolward.dev/server={SERVER}");
    let logs = ["logs", "-l", &label, "--all-containers", "--tail=-1"];
    let log = scope.kubectl(&logs).await?;
    ensure!(log.contains(r#""tool":"headers""#), "no call in {log}");
    ensure!(!log.contains("of-the-backend"), "{log}");
    Ok(())
}
