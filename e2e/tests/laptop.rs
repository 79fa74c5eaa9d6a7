//! The third way in: the sidecar on a laptop, by itself. Neither root nor a
//! cluster is needed.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::laptop::{self, Running, caller, free_port};
use e2e::mcp::Endpoint;
use e2e::sh::command;
use e2e::statements::{self as promise, Caller};
use e2e::tools::Tools;
use e2e::{checkout, wait_for};
use serde_json::Value;

const TOKEN: [&str; 2] = ["--dev-token", "alice:staff"];

struct Laptop {
    sidecar: PathBuf,
    node: String,
    script: String,
    config: PathBuf,
}

impl Laptop {
    fn new() -> Result<Self> {
        let checkout = checkout::root()?;
        let (node, script) = Tools::reference_server(&checkout)?;
        Ok(Self {
            sidecar: laptop::sidecar(&checkout)?,
            node: node.display().to_string(),
            script: script.display().to_string(),
            config: checkout.join("examples/laptop.yaml"),
        })
    }

    /// Guards the reference server over stdio.
    fn stdio(&self) -> Result<(Running, Caller)> {
        let arguments = [&TOKEN[..], &["--", &self.node, &self.script, "stdio"]].concat();
        let mut running =
            Running::start(&mut laptop::run(&self.sidecar, &self.config, &arguments))?;
        let caller = caller(&mut running)?;
        Ok((running, caller))
    }

    /// Runs a configuration that must be refused; returns what is said.
    fn refused(&self, config: &Path, arguments: &[&str]) -> Result<String> {
        let output = laptop::run(&self.sidecar, config, arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(2), "{}: {said}", output.status);
        ensure!(
            said.contains(&config.display().to_string()),
            "does not name the file: {said}"
        );
        Ok(said)
    }
}

/// All promises but that of kubectl.
async fn promises(caller: &Caller) -> Result<()> {
    let mcp = caller.connect().await?;
    promise::listing(&mcp).await?.check()?;
    promise::permitted(&mcp).await?.check()?;
    promise::forbidden(&mcp).await?.check()?;
    promise::burst(&mcp).await?.check()?;
    mcp.cancel().await?;
    // One letter of the signature changed.
    let (rest, signature) = caller.token.rsplit_once('.').context("no JWT")?;
    let first = if signature.starts_with('A') { "B" } else { "A" };
    let forged = format!("{rest}.{first}{}", &signature[1..]);
    promise::unauthorized(&caller.endpoint, &forged)
        .await?
        .check()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stdio_server_is_guarded() -> Result<()> {
    let (mut running, caller) = Laptop::new()?.stdio()?;
    promises(&caller).await?;
    let ended = running.terminate()?;
    ensure!(ended.success(), "{ended}: {:?}", running.stderr.all());
    audit(&running)
}

/// Each decision is one line of JSON.
fn audit(running: &Running) -> Result<()> {
    let lines = running.stdout.all();
    let records: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).with_context(|| format!("no audit record: {line}")))
        .collect::<Result<_>>()?;
    let denied = records
        .iter()
        .find(|r| r["tool"] == promise::FORBIDDEN)
        .context("get-env")?;
    for (field, value) in [
        ("user", "alice"),
        ("method", "tools/call"),
        ("decision", "Deny"),
        ("reason", "DeniedByRule"),
        ("policy", "staff"),
        ("rule", "nobody-reads-env"),
    ] {
        ensure!(
            denied[field] == value,
            "{field} should be {value}: {denied}"
        );
    }
    let reason = |reason: &str| records.iter().any(|record| record["reason"] == reason);
    ensure!(
        reason("LimitExceeded") && reason("SignatureInvalid"),
        "{records:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_behind_a_url_is_guarded() -> Result<()> {
    let laptop = Laptop::new()?;
    let port = free_port()?;
    let upstream = format!("http://127.0.0.1:{port}/mcp");
    let mut server = command(&laptop.node, &[&laptop.script, "streamableHttp"]);
    let _server = Running::start(server.env("PORT", port.to_string()))?;
    wait_for("the reference server", Duration::from_secs(60), || async {
        reqwest::get(&upstream).await.map(drop).context("not yet")
    })
    .await?;
    let arguments = [&TOKEN[..], &["--upstream", &upstream]].concat();
    let mut running = Running::start(&mut laptop::run(
        &laptop.sidecar,
        &laptop.config,
        &arguments,
    ))?;
    let caller = caller(&mut running)?;
    promises(&caller).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_file_is_in_force_and_a_broken_one_is_not() -> Result<()> {
    let mut laptop = Laptop::new()?;
    let folder = Folder::new("edited")?;
    let text = std::fs::read_to_string(&laptop.config)?;
    laptop.config = folder.write("laptop.yaml", &text)?;
    let (mut running, caller) = laptop.stdio()?;
    let mcp = caller.connect().await?;
    promise::listing(&mcp).await?.check()?;
    let edit = async |text: String| folder.write("laptop.yaml", &text).map(drop);
    let denied = text.replace("tools: [get-env]", "tools: [get-env, get-sum]");
    promise::change(&mcp, "get-sum", false, edit(denied))
        .await?
        .check()?;
    edit(text.replace("effect: Allow", "effect: Maybe")).await?;
    running.wait_for("complaint about the broken file", |lines| {
        lines
            .iter()
            .any(|line| line.contains("spec.rules[0].effect"))
            .then_some(())
    })?;
    let tools = promise::listing(&mcp).await?.tools;
    ensure!(
        tools.len() == promise::PERMITTED.len() - 1,
        "the last good one: {tools:?}"
    );
    promise::change(&mcp, "get-sum", true, edit(text.clone()))
        .await?
        .check()
}

#[tokio::test]
async fn anonymous_callers_match_everyone_only() -> Result<()> {
    let laptop = Laptop::new()?;
    let folder = Folder::new("anonymous")?;
    let open = "apiVersion: toolward.dev/v1alpha1\nkind: McpServer\nmetadata: {name: open}\nspec:\n  deployment: {image: x, command: [x]}\n  transport: {type: Stdio}\n  authentication: {mode: Anonymous}\n---\napiVersion: toolward.dev/v1alpha1\nkind: McpToolPolicy\nmetadata: {name: open}\nspec:\n  targetRefs: [{name: open}]\n  rules: [{name: sums, effect: Allow, from: [{everyone: true}], tools: [get-sum]}]\n";
    let config = folder.write("open.yaml", open)?;
    let arguments = ["--", &laptop.node, &laptop.script, "stdio"];
    let mut running = Running::start(&mut laptop::run(&laptop.sidecar, &config, &arguments))?;
    let mcp = Endpoint::direct(laptop::url(&mut running)?)
        .connect(None)
        .await?;
    let tools = promise::listing(&mcp).await?.tools;
    ensure!(tools == ["get-sum"], "{tools:?}");
    promise::permitted(&mcp).await?.check()
}

#[test]
fn a_wrong_configuration_ends_with_2_and_names_file_and_field() -> Result<()> {
    let laptop = Laptop::new()?;
    let folder = Folder::new("wrong")?;
    let good = std::fs::read_to_string(&laptop.config)?;
    let command = [&TOKEN[..], &["--", "true"]].concat();
    for (old, new, says) in [
        ("effect: Allow", "effect: Maybe", "spec.rules[0].effect"),
        ("from:", "form:", "spec.rules[0].form"),
        (
            "tools: [echo, \"get-*\"]",
            "tools: []",
            "spec.rules[0].tools",
        ),
        (
            "type: Stdio",
            "type: Stdio\n    http: {port: 1}",
            "spec.transport.http",
        ),
        (
            "command: [node, /srv/index.js, stdio]",
            "",
            "spec.deployment.command",
        ),
        ("burst: 5", "burst: 500", "spec.limits[0].burst"),
        (
            "groups: [staff]",
            "serviceAccounts: [a/b]",
            "spec.rules[0].from[0]",
        ),
        ("kind: McpServer", "kind: Pod", "McpServer"),
        ("kind: McpServer", "kind: [", "YAML"),
    ] {
        let config = folder.write("wrong.yaml", &good.replacen(old, new, 1))?;
        let said = laptop.refused(&config, &command)?;
        ensure!(
            said.contains(says),
            "{new:?} should be told as {says}: {said}"
        );
    }
    // No way to prove who calls.
    let said = laptop.refused(&laptop.config, &["--", "true"])?;
    ensure!(
        said.contains("spec.authentication.mode") && said.contains("--dev-token"),
        "{said}"
    );
    laptop.refused(&folder.0.join("missing.yaml"), &command)?;
    Ok(())
}

#[test]
fn a_dev_token_is_for_loopback_only() -> Result<()> {
    let laptop = Laptop::new()?;
    let mut run = command(
        &laptop.sidecar,
        &["run", "--listen", "0.0.0.0:0", "--admin", "127.0.0.1:0"],
    );
    let output = run
        .arg("--config")
        .arg(&laptop.config)
        .args(TOKEN)
        .args(["--", "true"])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(2) && said.contains("--dev-token"),
        "{}: {said}",
        output.status
    );
    Ok(())
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("toolward-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0); // Only room is at stake.
    }
}
