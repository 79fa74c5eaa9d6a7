//! Who calls, as a server is told: the assertion is checked by the keys that the
//! operator publishes, and a server cannot have one of its own published.

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use crds::SigningAlgorithm;
use e2e::mcp::{Called, call};
use e2e::{PATIENCE, PATIENT, release, wait_for};
use serde_json::{Value, json};
use sidecar::auth::{Keys, verify_signature};

use crate::operator::kill;
use crate::suite::{Scope, allow, beside, server};

const SERVER: &str = "told";
const KEYS: &str = "told-toolward-identity";
const SCRIPT: &str = concat!(include_str!("serve.js"), include_str!("identity.js"));

async fn start(scope: &Scope, hostile: bool) -> Result<()> {
    let command = ["node", "-e", "eval(process.env.SCRIPT)"];
    let mut told = server(SERVER, &command, "StreamableHttp");
    told["spec"]["identity"] = json!({});
    let hostile = if hostile { "yes" } else { "" };
    told["spec"]["deployment"]["env"] = json!([
        {"name": "SCRIPT", "value": SCRIPT},
        {"name": "HOSTILE", "value": hostile},
    ]);
    let policy = allow("callers", SERVER, &scope.caller_subject(), &["told"]);
    scope.apply(&[told, policy]).await?;
    scope.serving(SERVER).await
}

/// The public keys as the ConfigMap has them.
async fn keys(scope: &Scope) -> Result<Vec<Value>> {
    let output = r"jsonpath={.data.jwks\.json}";
    let args = ["get", "configmap", KEYS, "-o", output];
    let set: Value = serde_json::from_str(&scope.kubectl(&args).await?)?;
    let keys = set["keys"].as_array().cloned();
    keys.context("no keys in the ConfigMap")
}

fn part(jwt: &str, index: usize) -> Result<Value> {
    let part = jwt.split('.').nth(index).context("no JWT")?;
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part)?)?)
}

/// Calls, and checks what the server was told.
async fn told(scope: &Scope) -> Result<()> {
    let caller = scope.caller(SERVER).await?;
    let mcp = caller.connect().await?;
    let answer = call(&mcp, "told", json!({})).await?;
    mcp.cancel().await?;
    let Called::Text(text) = answer else {
        bail!("{answer:?}")
    };
    ensure!(!text.contains(&caller.token), "the caller's own token");
    let seen: Value = serde_json::from_str(&text)?;
    let assertion = seen["headers"]["toolward-identity"].as_str();
    let assertion = assertion.with_context(|| format!("no assertion: {text}"))?;
    let published = keys(scope).await?;
    let kid = part(assertion, 0)?["kid"].clone();
    let key = published.iter().find(|key| key["kid"] == kid);
    let key = key.with_context(|| format!("{kid} is not among {published:?}"))?;
    let (keys, _) = Keys::read(&json!({"keys": [key]}), &[SigningAlgorithm::ES256]);
    if let Err(reason) = verify_signature(assertion, &keys) {
        bail!("{assertion}: {}", reason.as_str());
    }
    let (claims, own) = (part(assertion, 1)?, part(&caller.token, 1)?);
    let url = format!("http://{SERVER}.{}.svc/mcp", scope.namespace);
    let who = json!({"iss": own["iss"], "sub": own["sub"]});
    for (name, expected) in [
        ("iss", json!(url)),
        ("aud", json!(url)),
        ("act", who),
        ("groups", json!([])),
        (
            "sub_id",
            json!({"format": "iss_sub", "iss": own["iss"], "sub": own["sub"]}),
        ),
    ] {
        ensure!(claims[name] == expected, "{name} in {claims}");
    }
    let lifetime = claims["exp"].as_u64().zip(claims["iat"].as_u64());
    let lifetime = lifetime.map(|(exp, iat)| exp.saturating_sub(iat));
    ensure!(lifetime == Some(60), "{claims}");
    Ok(())
}

async fn pod(scope: &Scope) -> Result<String> {
    let label = format!("toolward.dev/server={SERVER}");
    let output = "jsonpath={.items[*].metadata.name}";
    let pods = scope
        .kubectl(&["get", "pods", "-l", &label, "-o", output])
        .await?;
    let mut pods = pods.split_whitespace();
    match (pods.next(), pods.next()) {
        (Some(pod), None) => Ok(pod.to_owned()),
        _ => bail!("not one pod"),
    }
}

#[tokio::test]
async fn the_server_can_check_who_calls() -> Result<()> {
    beside("identity", async |scope: &Scope| {
        start(scope, false).await?;
        told(scope).await?;
        // Nothing of it is in the server's container.
        let look = "for (const dir of ['/var/run/toolward', '/var/run/secrets', '/run/toolward']) \
                    if (require('node:fs').existsSync(dir)) throw new Error(dir + ' is there')";
        scope.in_server(SERVER, look).await?;
        let deployment = format!("deployment/{SERVER}");
        // Each replica has a key, and each key goes with its pod.
        let name = format!("mcps/{SERVER}");
        for replicas in [3, 1] {
            let scale = format!("--replicas={replicas}");
            scope.kubectl(&["scale", &name, &scale]).await?;
            wait_for(&format!("{replicas} keys"), PATIENCE, || async {
                let keys = keys(scope).await?;
                ensure!(keys.len() == replicas, "{keys:?}");
                Ok(())
            })
            .await?;
            scope
                .kubectl(&["rollout", "status", &deployment, PATIENT])
                .await?;
            told(scope).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_server_that_takes_the_admin_port_gets_no_key_published() -> Result<()> {
    beside("identity-hostile", async |scope: &Scope| {
        start(scope, true).await?;
        told(scope).await?;
        let (pod, before) = (pod(scope).await?, keys(scope).await?);
        let args = ["logs", pod.as_str(), "-c", "server"];
        let logs = || scope.kubectl(&args);
        let log = logs().await?;
        let theirs = log.lines().find_map(|line| line.strip_prefix("kid="));
        let theirs = theirs.with_context(|| format!("no key of its own: {log}"))?;
        let not_theirs = async || {
            let keys = keys(scope).await?;
            ensure!(!keys.iter().any(|key| key["kid"] == theirs), "{keys:?}");
            anyhow::Ok(keys)
        };

        kill(&pod, "\0serve\0")?;
        let mut poke = 0;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            not_theirs().await?;
            let log = logs().await?;
            if log.contains("gave the port back") {
                break;
            }
            // The sidecar that was started again may have been faster than the server.
            if !log.contains("took the port") {
                kill(&pod, "\0serve\0").ok();
            }
            ensure!(tokio::time::Instant::now() < deadline, "never asked: {log}");
            // The operator looks at a pod that changes.
            poke += 1;
            let note = format!("e2e.example/poke={poke}");
            scope
                .kubectl(&["annotate", "pod", &pod, &note, "--overwrite"])
                .await?;
        }
        wait_for("the operator to say why", PATIENCE, || async {
            let log = release::logs(&scope.cluster, None).await?;
            let mut lines = log.lines().filter(|line| line.contains(&pod));
            let why = "the token in the answer is not accepted";
            ensure!(lines.any(|line| line.contains(why)), "nothing of {pod}");
            Ok(())
        })
        .await?;

        // The sidecar comes back with a key made anew, and only that is published.
        wait_for("the sidecar's next key", PATIENCE * 2, || async {
            let keys = not_theirs().await?;
            ensure!(keys.len() == 1 && keys != before, "{keys:?}");
            Ok(())
        })
        .await?;
        scope.serving(SERVER).await?;
        wait_for("calls to be answered again", PATIENCE, || told(scope)).await?;
        not_theirs().await.map(drop)
    })
    .await
}
