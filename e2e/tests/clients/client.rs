//! The clients: how each is started, and what it is able to do.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::sh;
use e2e::tools::Clients;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use crate::outcome::Line;
use crate::plan::{Era, Step};
use crate::server::Server;
use crate::{inspector, rust};

const PATIENCE: Duration = Duration::from_secs(300);

/// Whether everything is asked for, however long it takes.
fn is_long() -> bool {
    std::env::var_os("TOOLWARD_ALL_CLIENTS").is_some()
}

/// A real client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// npm `@modelcontextprotocol/sdk`, version 1.
    Sdk,
    /// npm `@modelcontextprotocol/client`.
    TypeScript,
    /// PyPI `mcp`.
    Python,
    /// PyPI `fastmcp`.
    FastMcp,
    /// crate `rmcp`.
    Rust,
    /// The command line of npm `@modelcontextprotocol/inspector`.
    Inspector,
}

impl Client {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sdk => "sdk",
            Self::TypeScript => "client",
            Self::Python => "mcp",
            Self::FastMcp => "fastmcp",
            Self::Rust => "rmcp",
            Self::Inspector => "inspector",
        }
    }

    /// The eras that it speaks, or, where that takes long, in which it is started.
    pub fn eras(self) -> &'static [Era] {
        match self {
            Self::Sdk => &[Era::Legacy],
            Self::Inspector if !is_long() => &[Era::Auto],
            _ => &[Era::Legacy, Era::Auto, Era::Modern],
        }
    }

    /// The servers that it calls: one of each transport in a run of ordinary length,
    /// where it starts a process for each step (the Inspector), or is one that runs in
    /// full and something around it that takes seconds to start (fastmcp, of mcp).
    pub fn servers(self) -> &'static [Server] {
        match self {
            Self::Inspector | Self::FastMcp if !is_long() => {
                &[Server::EverythingStdio, Server::BothHttp]
            }
            _ => &Server::ALL,
        }
    }

    /// Whether it has the means for a step.
    pub fn able(self, step: &Step) -> bool {
        self != Self::Inspector || inspector::able(step)
    }

    /// Whether its sessions end when it is closed.
    pub fn ends_its_sessions(self) -> bool {
        self != Self::Inspector
    }
}

/// Where a client connects.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "lowercase", untagged)]
pub enum Target {
    /// Streamable HTTP.
    Url {
        /// Of the endpoint.
        url: String,
        /// For `Authorization`.
        #[serde(skip_serializing_if = "Option::is_none")]
        token: Option<String>,
    },
    /// A process and its standard input and output.
    #[serde(serialize_with = "command")]
    Command(Vec<String>),
}

fn command<S: serde::Serializer>(words: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    json!({"command": words}).serialize(serializer)
}

/// What all runs of a test share.
pub struct Bench {
    /// Where programs are.
    pub clients: Clients,
    /// The scripts and plans.
    pub fixtures: PathBuf,
    /// A folder that goes with the test.
    pub folder: PathBuf,
}

impl Bench {
    /// Lays out a folder in which the scripts find their packages.
    pub fn new(clients: Clients, fixtures: PathBuf, folder: PathBuf) -> Result<Self> {
        sh::create_dir(&folder)?;
        for script in ["client.mjs", "sdk.mjs", "modern.mjs"] {
            std::fs::copy(fixtures.join(script), folder.join(script))
                .with_context(|| format!("cannot copy {script}"))?;
        }
        let modules = folder.join("node_modules");
        std::os::unix::fs::symlink(&clients.npm, modules).context("cannot link node_modules")?;
        Ok(Self {
            clients,
            fixtures,
            folder,
        })
    }

    /// Node with a script of a package.
    pub fn node(&self, script: &str) -> Command {
        let mut node = Command::new(&self.clients.node);
        node.arg(self.clients.npm.join(script));
        node
    }
}

/// One run of a plan.
pub struct Run<'a> {
    /// What all runs share.
    pub bench: &'a Bench,
    /// Who runs.
    pub client: Client,
    /// How it connects.
    pub era: Era,
    /// Where.
    pub target: Target,
    /// What it declares.
    pub capabilities: Value,
    /// The roots that it tells.
    pub roots: Value,
    /// What it does.
    pub steps: &'a [Step],
}

impl Run<'_> {
    /// Carries it out.
    pub async fn lines(&self) -> Result<Vec<Line>> {
        match self.client {
            Client::Rust => rust::run(self).await,
            Client::Inspector => inspector::run(self).await,
            _ => self.script().await,
        }
    }

    async fn script(&self) -> Result<Vec<Line>> {
        let file = self.bench.folder.join("plan.json");
        sh::write(&file, self.plan().to_string())?;
        let output = finish(self.interpreter(&file)).await?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        let lines = stdout.lines().map(serde_json::from_str);
        let lines: Vec<Line> = lines.collect::<Result<_, _>>()?;
        // It stops early where it cannot connect, and the line says so.
        let stopped = lines.last().is_some_and(|line| !line.ok);
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(
            lines.len() == self.steps.len() || stopped,
            "{} ends ({}) after {} of {} steps: {}",
            self.client.name(),
            output.status,
            lines.len(),
            self.steps.len(),
            sh::last_lines(&stderr, 20)
        );
        Ok(lines)
    }

    fn plan(&self) -> Value {
        let steps: Vec<&Value> = self.steps.iter().map(|step| &step.raw).collect();
        json!({
            "target": self.target,
            "era": self.era,
            "capabilities": self.capabilities,
            "roots": self.roots,
            "steps": steps,
        })
    }

    fn interpreter(&self, plan: &Path) -> Command {
        let bench = self.bench;
        let mut command = match self.client {
            Client::Python | Client::FastMcp => {
                let mut python = Command::new("python3");
                python.arg("-s").arg(bench.fixtures.join("client.py"));
                python.env("PYTHONPATH", &bench.clients.python);
                python
            }
            _ => {
                let mut node = Command::new(&bench.clients.node);
                node.arg(bench.folder.join("client.mjs"));
                node
            }
        };
        command.arg(self.client.name()).arg(plan);
        command
    }
}

/// Waits for the end of a client; one that does not end is killed.
pub async fn finish(mut command: Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let shown = sh::show(command.as_std());
    let output = timeout(PATIENCE, command.output()).await;
    output
        .with_context(|| format!("`{shown}` does not end"))?
        .with_context(|| format!("cannot start `{shown}`"))
}
