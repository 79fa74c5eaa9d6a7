//! What the tests share: a provider, a sidecar in front of a real server, and
//! tokens.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::laptop::{self, Running, free_port};
use e2e::mcp::Endpoint;
use e2e::sh::{self, command};
use e2e::tools::{Identity, Tools};
use e2e::{checkout, wait_for};
use serde_json::{Value, json};
use tokio::process::Command;

const PATIENCE: Duration = Duration::from_secs(300);
const SCRIPTS: [&str; 5] = [
    "provider.mjs",
    "forms.mjs",
    "browser.mjs",
    "tokens.mjs",
    "flow.mjs",
];

/// Programs, and a folder that goes with the test.
pub struct Lab {
    pub checkout: PathBuf,
    pub tools: Identity,
    pub sidecar: PathBuf,
    pub folder: PathBuf,
}

impl Lab {
    /// Lays out a folder in which the scripts find their packages.
    pub fn new() -> Result<Self> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let name = format!("toolward-identity-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        sh::remove_dir(&folder)?;
        let checkout = checkout::root()?;
        let lab = Self {
            tools: Tools::identity(&checkout)?,
            sidecar: laptop::sidecar(&checkout)?,
            folder,
            checkout,
        };
        for script in SCRIPTS {
            let source = lab.checkout.join("e2e/fixtures/identity").join(script);
            sh::write(&lab.folder.join(script), sh::read(&source)?)?;
        }
        let modules = lab.folder.join("node_modules");
        std::os::unix::fs::symlink(&lab.tools.npm, modules).context("cannot link node_modules")?;
        Ok(lab)
    }

    fn script(&self, script: &str, argument: &Value) -> std::process::Command {
        let script = self.folder.join(script).display().to_string();
        command(&self.tools.node, &[script, argument.to_string()])
    }

    /// An authorization server; `users` are their names and groups.
    pub fn provider(&self, algorithm: &str, users: &Value) -> Result<Provider> {
        let settings = json!({"alg": algorithm, "users": users});
        let mut running = Running::start(&mut self.script("provider.mjs", &settings))?;
        let issuer = laptop::url(&mut running)?;
        Ok(Provider {
            issuer,
            _running: running,
        })
    }

    /// What a script prints, each line read as JSON.
    pub async fn lines(&self, script: &str, argument: &Value) -> Result<Vec<Value>> {
        let mut node = Command::from(self.script(script, argument));
        node.stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, node.output()).await;
        let output = output.with_context(|| format!("{script} does not end"))??;
        let printed = sh::succeed(&format!("{script} {argument}"), &output)?;
        let lines = printed.lines().map(serde_json::from_str);
        lines.collect::<Result<_, _>>().context("a line of JSON")
    }

    /// What a provider answers to a user who wants `count` tokens.
    pub async fn grants(
        &self,
        provider: &Provider,
        user: &str,
        scope: &str,
        resource: Option<&str>,
        count: usize,
    ) -> Result<Vec<Value>> {
        let mut wish = json!({
            "issuer": provider.issuer, "user": user, "scope": scope, "count": count
        });
        if let Some(resource) = resource {
            wish["resource"] = json!(resource);
        }
        self.lines("tokens.mjs", &wish).await
    }

    /// An access token for a resource.
    pub async fn token(
        &self,
        provider: &Provider,
        user: &str,
        scope: &str,
        resource: &str,
    ) -> Result<String> {
        let grants = self.grants(provider, user, scope, Some(resource), 1);
        access_token(grants.await?.first().context("no token")?)
    }

    /// A sidecar in front of the reference server over stdio.
    pub async fn guarded(&self, config: &Config) -> Result<Guarded> {
        let [node, script] = self.reference_server();
        self.guarded_with(config, &["--", &node, &script, "stdio"])
            .await
    }

    /// Node, and the script of the reference server.
    pub fn reference_server(&self) -> [String; 2] {
        let script = "@modelcontextprotocol/server-everything/dist/index.js";
        let script = self.tools.everything.join(script);
        [&self.tools.node, &script].map(|path| path.display().to_string())
    }

    /// A sidecar in front of what these arguments name.
    pub async fn guarded_with(&self, config: &Config, arguments: &[&str]) -> Result<Guarded> {
        let file = self.folder.join("orders.yaml");
        sh::write(&file, &config.yaml)?;
        let listen = format!("127.0.0.1:{}", config.port);
        let mut run = laptop::run_on(&self.sidecar, &file, &listen, arguments);
        let mut running = Running::start(run.env("TOOLWARD_LOG", "debug"))?;
        let url = laptop::url(&mut running)?;
        let admin = laptop::admin(&mut running)?;
        ensure!(url == config.url(), "{url} is not {}", config.url());
        let guarded = Guarded {
            endpoint: Endpoint::direct(&url),
            url,
            admin,
            file,
            running,
        };
        guarded.is_ready().await?;
        Ok(guarded)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder); // Only room is at stake.
    }
}

/// The access token of a provider's answer.
pub fn access_token(grant: &Value) -> Result<String> {
    let token = grant["access_token"].as_str();
    token.map(str::to_owned).with_context(|| grant.to_string())
}

/// An authorization server that runs.
pub struct Provider {
    /// Its URL.
    pub issuer: String,
    _running: Running,
}

/// The configuration of a sidecar.
pub struct Config {
    /// Where it will listen: the server's URL, which is the audience, is part of
    /// the configuration.
    pub port: u16,
    /// For `--config`.
    pub yaml: String,
}

impl Config {
    /// A server whose issuers are `issuers`, in YAML and by what is under
    /// `authentication`, with these rules.
    pub fn new(authentication: &str, rules: &str) -> Result<Self> {
        let port = free_port()?;
        let yaml = format!(
            r"apiVersion: toolward.dev/v1alpha1
kind: McpServer
metadata: {{name: orders}}
spec:
  url: http://127.0.0.1:{port}/mcp
  deployment: {{image: orders, command: [node]}}
  transport: {{type: Stdio}}
  authentication:
    {}
---
apiVersion: toolward.dev/v1alpha1
kind: McpToolPolicy
metadata: {{name: orders}}
spec:
  targetRefs: [{{name: orders}}]
  rules:
    {}
",
            authentication.trim().replace('\n', "\n    "),
            rules.trim().replace('\n', "\n    "),
        )
        .replace("AUDIENCE", &format!("http://127.0.0.1:{port}/mcp"));
        Ok(Self { port, yaml })
    }

    /// The server's URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/mcp", self.port)
    }
}

/// A sidecar that runs.
pub struct Guarded {
    /// The server's URL, and the audience of its tokens.
    pub url: String,
    /// The same, to send requests to.
    pub endpoint: Endpoint,
    /// URL of the admin port.
    pub admin: String,
    /// Its configuration.
    pub file: PathBuf,
    /// The process.
    pub running: Running,
}

impl Guarded {
    /// Until the server has answered: before that, lists may be empty.
    async fn is_ready(&self) -> Result<()> {
        let url = format!("{}/readyz", self.admin);
        wait_for("a ready sidecar", Duration::from_secs(120), || async {
            let answer = reqwest::get(&url).await?;
            let status = answer.status();
            let text = answer.text().await?;
            ensure!(status.is_success(), "{status}: {text}");
            Ok(())
        })
        .await
    }

    /// A document of the admin port.
    pub async fn admin(&self, path: &str) -> Result<String> {
        let answer = reqwest::get(format!("{}{path}", self.admin)).await?;
        Ok(answer.error_for_status()?.text().await?)
    }

    /// A new configuration.
    pub fn configure(&self, yaml: &str) -> Result<()> {
        sh::write(&self.file, yaml)
    }
}

/// Headers and body of a request.
pub type Message = (Vec<(&'static str, String)>, Value);

/// A call of a tool in revision 2026-07-28, which needs no session.
pub fn call(tool: &str, arguments: &Value) -> Message {
    let (mut headers, body) = request("tools/call", json!({"name": tool, "arguments": arguments}));
    headers.push(("Mcp-Name", tool.to_owned()));
    (headers, body)
}

/// A request of revision 2026-07-28.
pub fn request(method: &str, mut params: Value) -> Message {
    const REVISION: &str = "2026-07-28";
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": REVISION,
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let headers = vec![
        ("MCP-Protocol-Version", REVISION.to_owned()),
        ("Mcp-Method", method.to_owned()),
    ];
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    (headers, body)
}

impl Guarded {
    /// Sends a message with a token.
    pub async fn send(&self, token: Option<&str>, message: &Message) -> Result<reqwest::Response> {
        let (headers, body) = message;
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        self.endpoint.post(token, &headers, body).await
    }

    /// The names of the tools that a caller is shown.
    pub async fn tools(&self, token: &str) -> Result<Vec<String>> {
        let answer = self
            .send(Some(token), &request("tools/list", json!({})))
            .await?;
        let message = e2e::message(answer).await?;
        let tools = message["result"]["tools"].as_array();
        let tools = tools.with_context(|| format!("no list: {message}"))?;
        let name = |tool: &Value| tool["name"].as_str().unwrap_or_default().to_owned();
        let mut names: Vec<_> = tools.iter().map(name).collect();
        names.sort();
        Ok(names)
    }

    /// Calls a tool; the text of the answer, or the error.
    pub async fn call(&self, token: &str, tool: &str, arguments: &Value) -> Result<Called> {
        let answer = self.send(Some(token), &call(tool, arguments)).await?;
        let status = answer.status().as_u16();
        let challenge = answer.headers().get("www-authenticate");
        let challenge = challenge
            .map(|value| value.to_str().map(str::to_owned))
            .transpose()?;
        let message = e2e::message(answer).await?;
        Ok(Called {
            status,
            challenge,
            text: message["result"]["content"][0]["text"]
                .as_str()
                .map(str::to_owned),
            error: message["error"].clone(),
        })
    }
}

/// How a call ended.
#[derive(Debug)]
pub struct Called {
    /// Of HTTP.
    pub status: u16,
    /// `WWW-Authenticate`.
    pub challenge: Option<String>,
    /// Of the server.
    pub text: Option<String>,
    /// Of JSON-RPC; null: there is none.
    pub error: Value,
}
