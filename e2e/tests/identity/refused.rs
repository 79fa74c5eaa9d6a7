//! Tokens that real providers issue and that are not for this server.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::audit;
use crate::lab::{Config, Guarded, Lab, access_token};

const RULES: &str = "
- name: staff
  effect: Allow
  from: [{groups: [staff]}]
  tools: [echo]
";

/// Each with its reason.
pub async fn all() -> Result<()> {
    let lab = Lab::new()?;
    let users = json!({"alice": ["staff"]});
    let provider = lab.provider("ES256", &users)?;
    let stranger = lab.provider("ES256", &users)?;
    let authentication = format!(
        "audience: AUDIENCE\nissuers: [{{name: acme, issuer: \"{}\"}}]",
        provider.issuer
    );
    let config = Config::new(&authentication, RULES)?;
    let guarded = lab.guarded(&config).await?;
    let url = guarded.url.as_str();
    let good = lab
        .grants(&provider, "alice", "openid orders:read", Some(url), 1)
        .await?;
    let good = good.first().context("no answer")?;
    let text = |name: &str| {
        good[name]
            .as_str()
            .map(str::to_owned)
            .context(name.to_owned())
    };
    let token = access_token(good)?;
    let called = guarded
        .call(&token, "echo", &json!({"message": "hi"}))
        .await?;
    ensure!(called.text.as_deref() == Some("Echo: hi"), "{called:?}");

    // Another spelling of the same URL.
    let spelt = lab
        .token(&provider, "alice", "orders:read", &format!("{url}/"))
        .await?;
    let called = guarded
        .call(&spelt, "echo", &json!({"message": "hi"}))
        .await?;
    ensure!(called.status == 200, "{called:?}");

    refused(&guarded, &text("id_token")?, "TokenType").await?;
    refused(&guarded, &text("refresh_token")?, "TokenOpaque").await?;
    let opaque = lab.grants(&provider, "alice", "openid", None, 1).await?;
    let opaque = access_token(opaque.first().context("no answer")?)?;
    refused(&guarded, &opaque, "TokenOpaque").await?;
    for other in [
        "https://other.example.com/mcp".to_owned(),
        format!("{url}2"),
        format!("{url}/more"),
        url.trim_end_matches("/mcp").to_owned(),
        url.replace("127.0.0.1", "localhost"),
    ] {
        let token = lab.token(&provider, "alice", "orders:read", &other).await?;
        let message = refused(&guarded, &token, "WrongAudience").await?;
        ensure!(message.contains(url), "should name the audience: {message}");
    }
    let token = lab.token(&stranger, "alice", "orders:read", url).await?;
    refused(&guarded, &token, "UnknownIssuer").await?;
    let token = access_token(good)?;
    let (head, signature) = token.rsplit_once('.').context("no signature")?;
    let first = if signature.starts_with('A') { 'B' } else { 'A' };
    let forged = format!("{head}.{first}{}", &signature[1..]);
    refused(&guarded, &forged, "SignatureInvalid").await?;
    refused(&guarded, head, "TokenOpaque").await?;
    refused(&guarded, &format!("{head}."), "SignatureInvalid").await?;
    // The good one is still good.
    let called = guarded
        .call(&token, "echo", &json!({"message": "hi"}))
        .await?;
    ensure!(called.status == 200, "{called:?}");
    Ok(())
}

/// That a token is refused for a reason, which caller and audit log are told;
/// returns the message.
async fn refused(guarded: &Guarded, token: &str, reason: &str) -> Result<String> {
    let called = guarded
        .call(token, "echo", &json!({"message": "hi"}))
        .await?;
    ensure!(
        called.status == 401 && called.error["data"]["reason"] == reason,
        "should be {reason}: {called:?}"
    );
    let challenge = called.challenge.unwrap_or_default();
    let origin = guarded.url.trim_end_matches("/mcp");
    let metadata =
        format!(r#"resource_metadata="{origin}/.well-known/oauth-protected-resource/mcp""#);
    ensure!(
        challenge.starts_with(r#"Bearer error="invalid_token", error_description=""#)
            && challenge.contains(&metadata),
        "{reason}: {challenge}"
    );
    let record = audit::has(guarded, &[("reason", reason), ("decision", "Deny")]).await?;
    ensure!(record["user"].is_null(), "nobody is known: {record}");
    let message = called.error["message"].as_str();
    Ok(message.unwrap_or_default().to_owned())
}
