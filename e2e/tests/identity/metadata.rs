//! Metadata of the protected resource (RFC 9728).

use anyhow::{Result, ensure};
use e2e::laptop::free_port;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::lab::{Config, Guarded, Lab};

const RULES: &str = r#"
- name: reads
  effect: Allow
  from: [{issuer: acme, groups: [staff], scopes: ["orders:write", "orders:read"]}]
  tools: [echo]
- name: never
  effect: Deny
  from: [{issuer: rival, scopes: ["orders:rival"]}]
  tools: ["*"]
"#;
const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// Where they are, what they say, and to whom.
pub async fn documents() -> Result<()> {
    let lab = Lab::new()?;
    let provider = lab.provider("RS256", &json!({}))?;
    // It need not be there for that.
    let rival = format!("http://127.0.0.1:{}/realms/x", free_port()?);
    let authentication = format!(
        "audience: AUDIENCE\nissuers:\n- {{name: acme, issuer: \"{}\"}}\n- {{name: rival, issuer: \"{rival}\"}}",
        provider.issuer
    );
    let config = Config::new(&authentication, RULES)?;
    let guarded = lab.guarded(&config).await?;
    let expected = json!({
        "resource": guarded.url,
        "authorization_servers": [provider.issuer, rival],
        "scopes_supported": ["orders:read", "orders:write"],
        "bearer_methods_supported": ["header"],
        "resource_name": "orders",
    });
    let inserted = format!("{WELL_KNOWN}/mcp");
    let askers: [&[(&str, &str)]; 3] = [
        &[],
        &[("Origin", "https://foreign.example.com")],
        &[("Authorization", "Bearer nonsense")],
    ];
    for path in [inserted.as_str(), WELL_KNOWN] {
        for headers in askers {
            let answer = get(&guarded, path, headers).await?;
            let (status, header) = (answer.status(), |name: &str| answer.headers().get(name));
            ensure!(status == 200, "{path}, {headers:?}: {answer:?}");
            ensure!(
                header("content-type").is_some_and(|value| value == "application/json")
                    && header("access-control-allow-origin").is_some_and(|value| value == "*"),
                "{path}: {answer:?}"
            );
            let document: Value = answer.json().await?;
            ensure!(document == expected, "{path}: {document}");
        }
        let answer = send(&guarded, Method::HEAD, path, &[]).await?;
        ensure!(answer.status() == 200, "{answer:?}");
        let answer = send(&guarded, Method::POST, path, &[]).await?;
        let allow = answer.headers().get("allow");
        ensure!(
            answer.status() == 405 && allow.is_some_and(|allow| allow == "GET, HEAD"),
            "{answer:?}"
        );
        let answer = get(&guarded, path, &[("Host", "foreign.example.com")]).await?;
        ensure!(answer.status() == 403, "{answer:?}");
        let body = answer.text().await?;
        ensure!(body.contains("HostNotAllowed"), "{body}");
    }
    for path in [
        format!("{WELL_KNOWN}/other"),
        format!("{WELL_KNOWN}/mcp/more"),
        format!("{WELL_KNOWN}mcp"),
    ] {
        let answer = get(&guarded, &path, &[]).await?;
        ensure!(answer.status() == 404, "{path}: {answer:?}");
    }
    Ok(())
}

async fn get(guarded: &Guarded, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
    send(guarded, Method::GET, path, headers).await
}

async fn send(
    guarded: &Guarded,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Response> {
    let origin = guarded.url.trim_end_matches("/mcp");
    let mut request = reqwest::Client::new().request(method, format!("{origin}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Ok(request.send().await?)
}
