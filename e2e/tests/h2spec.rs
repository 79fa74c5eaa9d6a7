//! The sidecar's HTTP/2 passes all of h2spec.
#![allow(missing_docs)]

use std::fs;

use anyhow::{Context, Result, ensure};
use e2e::checkout;
use e2e::laptop::{self, Running, free_port};
use e2e::sh::{command, show};
use e2e::tools::Tools;

/// Nobody has a name, so that h2spec's requests, which carry no token, are read
/// to their end before they are answered.
const CONFIG: &str = r"
apiVersion: toolward.dev/v1alpha1
kind: McpServer
metadata: {name: h2spec}
spec:
  deployment: {image: none}
  transport: {type: StreamableHttp}
  authentication: {mode: Anonymous}
";

#[test]
fn http2_conforms() -> Result<()> {
    let checkout = checkout::root()?;
    let h2spec = Tools::h2spec(&checkout)?;
    let config = std::env::temp_dir().join(format!("toolward-h2spec-{}.yaml", std::process::id()));
    fs::write(&config, CONFIG)?;
    // Nothing answers there: the sidecar says so, which is an answer.
    let upstream = format!("http://127.0.0.1:{}/mcp", free_port()?);
    let sidecar = laptop::sidecar(&checkout)?;
    let mut running = Running::start(&mut laptop::run(
        &sidecar,
        &config,
        &["--upstream", &upstream],
    ))?;
    let port = running.wait_for("port", |lines| {
        let mcp = lines.iter().find_map(|line| line.split("mcp=").nth(1))?;
        let address = mcp.split_whitespace().next()?;
        address.rsplit(':').next().map(str::to_owned)
    })?;
    let mut test = command(
        &h2spec,
        &["--strict", "--host", "127.0.0.1", "--path", "/mcp"],
    );
    test.args(["--timeout", "20", "--port", &port]);
    let output = test
        .output()
        .with_context(|| format!("cannot start `{}`", show(&test)))?;
    fs::remove_file(&config)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let figure = said.lines().rfind(|line| line.contains(" tests, "));
    println!("row 26: h2spec: {}", figure.unwrap_or("no figure"));
    ensure!(
        output.status.success()
            && figure.is_some_and(|line| line.ends_with(" 0 skipped, 0 failed")),
        "{said}"
    );
    Ok(())
}
