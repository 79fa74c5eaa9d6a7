//! Two issuers that both know an alice of the staff.

use anyhow::{Context, Result, ensure};
use e2e::mcp::initialize;
use serde_json::json;

use crate::audit;
use crate::lab::{Config, Lab, Provider};

const RULES: &str = "
- name: staff-of-acme
  effect: Allow
  from: [{issuer: acme, groups: [staff]}]
  tools: [echo]
- name: alice-of-acme
  effect: Allow
  from: [{issuer: acme, users: [alice]}]
  tools: [get-sum]
- name: alice-of-rival
  effect: Allow
  from: [{issuer: rival, users: [alice]}]
  tools: [get-tiny-image]
";

/// What one gives is not the other's.
pub async fn are_not_confused() -> Result<()> {
    let lab = Lab::new()?;
    let users = json!({"alice": ["staff"]});
    let acme = lab.provider("RS256", &users)?;
    let rival = lab.provider("ES256", &users)?;
    let authentication = format!(
        "audience: AUDIENCE\nissuers:\n- {{name: acme, issuer: \"{}\"}}\n- {{name: rival, issuer: \"{}\"}}",
        acme.issuer, rival.issuer
    );
    let config = Config::new(&authentication, RULES)?;
    let guarded = lab.guarded(&config).await?;
    let of = async |provider: &Provider| {
        lab.token(provider, "alice", "orders:read", &guarded.url)
            .await
    };
    let (first, second) = (of(&acme).await?, of(&rival).await?);
    for (token, issuer, shown) in [
        (&first, "acme", &["echo", "get-sum"][..]),
        (&second, "rival", &["get-tiny-image"][..]),
    ] {
        let tools = guarded.tools(token).await?;
        ensure!(tools == shown, "{issuer}: {tools:?}");
        for (tool, arguments) in [
            ("echo", json!({"message": "hi"})),
            ("get-sum", json!({"a": 1, "b": 2})),
            ("get-tiny-image", json!({})),
        ] {
            let called = guarded.call(token, tool, &arguments).await?;
            let is_allowed = called.error.is_null();
            ensure!(
                is_allowed == shown.contains(&tool),
                "{issuer}, {tool}: {called:?}"
            );
            let decision = if is_allowed { "Allow" } else { "Deny" };
            let members = [
                ("tool", tool),
                ("issuer", issuer),
                ("user", "alice"),
                ("decision", decision),
            ];
            audit::has(&guarded, &members).await?;
        }
    }
    // Nor is a session the other's, though user and agent have the same names.
    let answer = guarded
        .endpoint
        .post(Some(&first), &[], &initialize())
        .await?;
    let session = answer
        .headers()
        .get("mcp-session-id")
        .context("no session")?;
    let session = session.to_str()?.to_owned();
    let headers = [
        ("Mcp-Session-Id", session.as_str()),
        ("MCP-Protocol-Version", "2025-06-18"),
    ];
    let ping = json!({"jsonrpc": "2.0", "id": 2, "method": "ping"});
    for (token, status) in [(&second, 404_u16), (&first, 200)] {
        let answer = guarded.endpoint.post(Some(token), &headers, &ping).await?;
        ensure!(answer.status() == status, "{status}: {answer:?}");
    }
    Ok(())
}
