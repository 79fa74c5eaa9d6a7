//! The example's MCP server as it is, over both transports, with a real client. The
//! test plays the sidecar: it says who calls.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::laptop::{Running, free_port};
use e2e::mcp::{Called, Mcp, call};
use e2e::sh::command;
use e2e::tools::Tools;
use e2e::{checkout, wait_for};
use http::{HeaderMap, HeaderValue};
use rmcp::ServiceExt;
use rmcp::model::CallToolRequestParams;
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use serde_json::{Value, json};

use crate::kit::{DATABASE, Key, Lab, SERVER};

pub const PATIENCE: Duration = Duration::from_secs(120);

/// How the server is started.
pub struct Server {
    packages: PathBuf,
    script: PathBuf,
    database: String,
}

impl Server {
    pub fn of(lab: &Lab) -> Result<Self> {
        let checkout = checkout::root()?;
        Ok(Self {
            packages: Tools::postgres_rls(&checkout)?,
            script: checkout.join("examples/postgres-rls/server.py"),
            database: lab.postgres.connection(SERVER, DATABASE),
        })
    }

    /// A command line of the server on stdio, which needs no environment.
    pub fn process(&self) -> Vec<String> {
        let (packages, script) = (self.packages.display(), self.script.display());
        let words = [
            "--".to_owned(),
            "env".to_owned(),
            format!("PYTHONPATH={packages}"),
            format!("DATABASE_URL={}", self.database),
            "python3".to_owned(),
            "-s".to_owned(),
            script.to_string(),
            "stdio".to_owned(),
        ];
        words.into()
    }

    pub fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut server = command("python3", &["-s"]);
        server.arg(&self.script).args(arguments);
        server.env("PYTHONPATH", &self.packages);
        server.env("DATABASE_URL", &self.database);
        server
    }
}

/// A client whose requests all have this header.
async fn connect(url: &str, assertion: Option<&str>) -> Result<Mcp> {
    let mut headers = HeaderMap::new();
    if let Some(assertion) = assertion {
        headers.insert("toolward-identity", HeaderValue::from_str(assertion)?);
    }
    let client = reqwest::Client::builder().default_headers(headers);
    let config = StreamableHttpClientTransportConfig::with_uri(url);
    let transport = StreamableHttpClientTransport::with_client(client.build()?, config);
    ().serve(transport).await.context("no MCP session")
}

pub async fn text(mcp: &Mcp, tool: &str, arguments: Value) -> Result<String> {
    match call(mcp, tool, arguments).await? {
        Called::Text(text) => Ok(text),
        other => anyhow::bail!("{tool}: {other:?}"),
    }
}

/// The orders among those that there are.
pub fn items(text: &str) -> Vec<&'static str> {
    let all = ["cocoa", "coffee", "milk", "tea"];
    all.into_iter().filter(|item| text.contains(item)).collect()
}

pub async fn two_users() -> Result<()> {
    let lab = Lab::new().await?;
    let server = Server::of(&lab)?;
    over_http(&server, &lab.key).await?;
    over_stdio(&server, &lab.key).await?;
    let left = lab.superuser("SELECT count(*) FROM toolward.verified")?;
    ensure!(left == ["0"], "{left:?}");
    Ok(())
}

async fn over_http(server: &Server, key: &Key) -> Result<()> {
    let port = free_port()?.to_string();
    let _running = Running::start(&mut server.command(&["http", "--port", &port]))?;
    let url = format!("http://127.0.0.1:{port}/mcp");
    wait_for("the server", PATIENCE, || async {
        reqwest::get(&url).await.map(drop).context("not yet")
    })
    .await?;
    // An assertion lives for a minute: each is made when it is needed.
    let alice = connect(&url, Some(&key.of("alice")?)).await?;
    let listed = text(&alice, "list_orders", json!({})).await?;
    ensure!(items(&listed) == ["tea"], "alice: {listed}");
    let bob = connect(&url, Some(&key.of("bob")?)).await?;
    text(&bob, "place_order", json!({"item": "milk", "quantity": 3})).await?;
    let listed = text(&bob, "list_orders", json!({})).await?;
    ensure!(items(&listed) == ["coffee", "milk"], "bob: {listed}");
    let alice = connect(&url, Some(&key.of("alice")?)).await?;
    let listed = text(&alice, "list_orders", json!({})).await?;
    ensure!(items(&listed) == ["tea"], "alice: {listed}");
    for (assertion, why) in [
        (None, "assertion refused: there is none"),
        (
            Some(Key::new()?.of("alice")?),
            "no sidecar of this server has the key of kid",
        ),
    ] {
        let nobody = connect(&url, assertion.as_deref()).await?;
        for (tool, arguments) in [
            ("list_orders", json!({})),
            ("place_order", json!({"item": "milk", "quantity": 3})),
        ] {
            let said = text(&nobody, tool, arguments).await?;
            ensure!(
                said.contains(why) && items(&said).is_empty(),
                "{tool}: {said}"
            );
        }
    }
    Ok(())
}

async fn over_stdio(server: &Server, key: &Key) -> Result<()> {
    let mut process = tokio::process::Command::from(server.command(&["stdio"]));
    process.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = process.kill_on_drop(true).spawn()?;
    let pipes = process.stdout.take().zip(process.stdin.take());
    let mcp = ().serve(pipes.context("no pipes")?).await?;
    // One process, and each request has its own user.
    for (user, expected) in [
        (Some("alice"), &["tea"][..]),
        (Some("bob"), &["coffee", "milk"][..]),
        (Some("alice"), &["tea"][..]),
        (None, &[][..]),
    ] {
        let mut params = CallToolRequestParams::new("list_orders");
        if let Some(user) = user {
            let meta = json!({"toolward.dev/identity": key.of(user)?});
            params.meta = Some(serde_json::from_value(meta)?);
        }
        let result = tokio::time::timeout(PATIENCE, mcp.call_tool(params)).await??;
        let text = serde_json::to_string(&result)?;
        ensure!(items(&text) == expected, "{user:?}: {text}");
        let refused = text.contains("assertion refused: there is none");
        ensure!(refused == user.is_none(), "{user:?}: {text}");
    }
    mcp.cancel().await?;
    Ok(())
}
