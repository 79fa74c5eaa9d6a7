//! Real clients, which are told a URL and find the rest, and what becomes of a
//! caller who lacks scopes.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::audit;
use crate::lab::{Config, Guarded, Lab, Provider};

/// What a scope opens is shown to those who lack the scope alone.
const RULES: &str = r#"
- name: reads
  effect: Allow
  from: [{issuer: acme, groups: [staff], scopes: ["orders:read"]}]
  tools: [echo]
- name: writes
  effect: Allow
  from: [{issuer: acme, groups: [staff], scopes: ["orders:write"]}]
  tools: [get-sum]
- name: both
  effect: Allow
  from: [{issuer: acme, groups: [staff], scopes: ["orders:read", "orders:write"]}]
  tools: [get-structured-content]
- name: guests
  effect: Allow
  from: [{issuer: acme, groups: [guests]}]
  tools: [get-tiny-image]
"#;
/// What alice is shown, whatever her scopes.
const OF_STAFF: [&str; 3] = ["echo", "get-structured-content", "get-sum"];

/// A real client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// npm `@modelcontextprotocol/sdk`, version 1.
    Sdk,
    /// npm `@modelcontextprotocol/client`, version 2.
    TypeScript,
}

impl Client {
    fn name(self) -> &'static str {
        match self {
            Self::Sdk => "sdk",
            Self::TypeScript => "client",
        }
    }
}

/// What runs ends before its folder goes.
struct Stage {
    guarded: Guarded,
    provider: Provider,
    lab: Lab,
}

impl Stage {
    async fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let users = json!({"alice": ["staff"], "bob": ["guests"]});
        let provider = lab.provider("RS256", &users)?;
        let authentication = format!(
            "audience: AUDIENCE\nissuers: [{{name: acme, issuer: \"{}\"}}]",
            provider.issuer
        );
        let config = Config::new(&authentication, RULES)?;
        let guarded = lab.guarded(&config).await?;
        Ok(Self {
            lab,
            provider,
            guarded,
        })
    }

    /// Runs a client; what each of its steps came to.
    async fn flow(
        &self,
        client: Client,
        user: &str,
        grants: Value,
        steps: Value,
    ) -> Result<Vec<Step>> {
        let url = &self.guarded.url;
        let plan = json!({
            "client": client.name(), "url": url, "user": user, "grants": grants, "steps": steps
        });
        let lines = self.lab.lines("flow.mjs", &plan).await?;
        Ok(lines.into_iter().map(Step).collect())
    }
}

/// What a step of a client came to.
#[derive(Debug)]
struct Step(Value);

impl Step {
    /// What was sent, to whom and how it was answered; without the stream of the
    /// old revisions, which is opened at some time or other.
    fn requests(&self, stage: &Stage) -> Vec<String> {
        let requests = self.0["requests"].as_array();
        let requests = requests.map(Vec::as_slice).unwrap_or_default();
        let shown = |request: &Value| {
            let to = match request["origin"] == stage.provider.issuer.as_str() {
                true => "provider",
                false => "server",
            };
            let text = |name: &str| request[name].as_str().unwrap_or_default();
            let status = &request["status"];
            format!("{} {to} {} {status}", text("method"), text("path"))
        };
        let shown = requests.iter().map(shown);
        let is_stream = |shown: &String| shown.starts_with("GET server /mcp ");
        shown.filter(|shown| !is_stream(shown)).collect()
    }

    /// The form that was posted to a path.
    fn posted(&self, path: &str) -> Result<&Value> {
        let requests = self.0["requests"].as_array().context("no requests")?;
        let mut fits = requests.iter().filter(|request| request["path"] == path);
        Ok(&fits.next().with_context(|| format!("nothing to {path}"))?["sent"])
    }

    fn value(&self, value: Value) -> Result<()> {
        ensure!(self.0["value"] == value, "not {value}: {}", self.0);
        Ok(())
    }

    fn logins(&self) -> usize {
        self.0["authorizations"].as_array().map_or(0, Vec::len)
    }

    /// That the user was asked once, for these scopes.
    fn asked(&self, scope: &str) -> Result<()> {
        let asked = &self.0["authorizations"];
        ensure!(
            self.logins() == 1 && asked[0]["scope"] == scope,
            "should ask for {scope}: {asked}"
        );
        Ok(())
    }
}

fn calls() -> [Value; 4] {
    [
        json!({"do": "connect"}),
        json!({"do": "tools"}),
        json!({"do": "call", "tool": "echo", "arguments": {"message": "hi"}}),
        json!({"do": "call", "tool": "get-sum", "arguments": {"a": 1, "b": 2}}),
    ]
}

const ECHO: &str = "Echo: hi";
const SUM: &str = "The sum of 1 and 2 is 3.";

/// From the URL to a call, and to what is denied.
pub async fn finds_its_way(client: Client) -> Result<()> {
    let stage = Stage::new().await?;
    let all = json!([["orders:read", "orders:write"]]);
    let mut plan = calls().to_vec();
    plan.push(json!({"do": "call", "tool": "get-tiny-image"}));
    let steps = stage
        .flow(client, "alice", all.clone(), Value::from(plan.clone()))
        .await?;
    let [connect, tools, echo, sum, denied] = &steps[..] else {
        anyhow::bail!("{steps:?}");
    };
    let requests = connect.requests(&stage);
    let way = [
        "POST server /mcp 401",
        "GET server /.well-known/oauth-protected-resource/mcp 200",
        "GET provider /.well-known/oauth-authorization-server 200",
        "POST provider /reg 201",
        "POST provider /token 200",
        "POST server /mcp 200",
    ];
    ensure!(
        requests.starts_with(&way.map(str::to_owned)),
        "{requests:#?}"
    );
    connect.asked("orders:read orders:write")?;
    let asked = &connect.0["authorizations"][0];
    ensure!(
        asked["resource"] == *stage.guarded.url && asked["code_challenge_method"] == "S256",
        "{asked}"
    );
    let posted = connect.posted("/token")?;
    ensure!(
        posted["resource"] == *stage.guarded.url && posted["code_verifier"].is_string(),
        "{posted}"
    );
    tools.value(json!(OF_STAFF))?;
    echo.value(json!(ECHO))?;
    sum.value(json!(SUM))?;
    // Not told apart from a tool that the server does not have.
    ensure!(denied.0["error"]["code"] == -32602, "{:?}", denied.0);
    let logins: usize = steps[1..].iter().map(Step::logins).sum();
    ensure!(logins == 0, "one login should do: {steps:#?}");
    // The agent is the client, by the id that the provider gave it.
    let agent = asked["client_id"].as_str().context("client_id")?;
    for (tool, decision) in [("echo", "Allow"), ("get-tiny-image", "Deny")] {
        let of_alice = [("issuer", "acme"), ("user", "alice"), ("agent", agent)];
        let members = [("tool", tool), ("decision", decision)];
        audit::has(&stage.guarded, &[&of_alice[..], &members].concat()).await?;
    }
    let steps = stage.flow(client, "bob", all, Value::from(plan)).await?;
    let [_, tools, echo, _, image] = &steps[..] else {
        anyhow::bail!("{steps:?}");
    };
    tools.value(json!(["get-tiny-image"]))?;
    ensure!(echo.0["error"]["code"] == -32602, "{:?}", echo.0);
    ensure!(image.0.get("error").is_none(), "{:?}", image.0);
    Ok(())
}

/// The user grants less than what was asked for, and more when a call needs it.
pub async fn steps_up(client: Client) -> Result<()> {
    let stage = Stage::new().await?;
    let [connect, tools, echo, sum] = calls();
    let plan = json!([connect, tools, echo, sum, sum, echo]);
    let grants = json!([["orders:read"], ["orders:read", "orders:write"]]);
    let steps = stage.flow(client, "alice", grants, plan).await?;
    let [connect, tools, echo, sum, again, back] = &steps[..] else {
        anyhow::bail!("{steps:?}");
    };
    ensure!(connect.0["scope"] == "orders:read", "{:?}", connect.0);
    tools.value(json!(OF_STAFF))?;
    echo.value(json!(ECHO))?;
    sum.value(json!(SUM))?;
    let requests = sum.requests(&stage);
    let way = [
        "POST server /mcp 403",
        "POST provider /token 200",
        "POST server /mcp 200",
    ];
    ensure!(requests == way, "{requests:#?}");
    again.value(json!(SUM))?;
    back.value(json!(ECHO))?;
    ensure!(again.logins() == 0, "{:?}", again.0);
    // The SDK asks for what the challenge names and for nothing else: it names what
    // the token had as well.
    sum.asked("orders:read orders:write")?;
    ensure!(back.logins() == 0, "{:?}", back.0);
    let rule = ("rule", "writes");
    audit::has(&stage.guarded, &[rule, ("reason", "InsufficientScope")]).await?;
    audit::has(&stage.guarded, &[rule, ("reason", "AllowedByRule")]).await?;
    Ok(())
}

/// What the answer says, to the letter.
pub async fn challenges() -> Result<()> {
    let stage = Stage::new().await?;
    let Stage {
        lab,
        provider,
        guarded,
    } = &stage;
    let origin = guarded.url.trim_end_matches("/mcp");
    let metadata =
        format!(r#"resource_metadata="{origin}/.well-known/oauth-protected-resource/mcp""#);
    let token = lab
        .token(provider, "alice", "orders:read", &guarded.url)
        .await?;
    let asked = "orders:read orders:write";
    for (tool, scopes) in [
        ("get-sum", &["orders:write"][..]),
        ("get-structured-content", &["orders:read", "orders:write"]),
    ] {
        let called = guarded.call(&token, tool, &json!({"a": 1, "b": 2})).await?;
        let challenge = format!(
            r#"Bearer error="insufficient_scope", scope="{asked}", {metadata}, error_description="the token lacks scopes that this needs""#
        );
        ensure!(
            called.status == 403 && called.challenge.as_ref() == Some(&challenge),
            "should be {challenge}: {called:?}"
        );
        let data = json!({"reason": "InsufficientScope", "scopes": scopes});
        ensure!(
            called.error["code"] == 403 && called.error["data"] == data,
            "{called:?}"
        );
    }
    // Scopes do not make a guest one of the staff, so none is asked for.
    let token = lab
        .token(provider, "bob", "orders:read", &guarded.url)
        .await?;
    let called = guarded
        .call(&token, "get-sum", &json!({"a": 1, "b": 2}))
        .await?;
    ensure!(
        called.challenge.is_none() && called.error["code"] == -32602,
        "{called:?}"
    );
    // Without a token, all scopes that some rule asks for.
    let answer = guarded
        .send(None, &crate::lab::request("tools/list", json!({})))
        .await?;
    ensure!(answer.status() == 401, "{answer:?}");
    let challenge = format!(r#"Bearer {metadata}, scope="orders:read orders:write""#);
    ensure!(
        answer.headers()["www-authenticate"] == *challenge,
        "should be {challenge}: {answer:?}"
    );
    Ok(())
}
