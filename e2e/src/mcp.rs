//! MCP as a client sees it: the official SDK for what should work, plain HTTP
//! for what should be refused.

use anyhow::{Context, Result};
use rmcp::service::RunningService;
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{RoleClient, ServiceExt};
use serde_json::Value;

/// A connected MCP client: `list_all_tools`, `call_tool` and so on; `cancel`
/// ends the session.
pub type Mcp = RunningService<RoleClient, ()>;

/// Connects to an MCP endpoint over streamable HTTP and shakes hands.
pub async fn mcp_connect(url: &str, token: Option<&str>) -> Result<Mcp> {
    let mut config = StreamableHttpClientTransportConfig::with_uri(url);
    if let Some(token) = token {
        config = config.auth_header(token);
    }
    let transport = StreamableHttpClientTransport::from_config(config);
    ().serve(transport)
        .await
        .with_context(|| format!("no MCP session with {url}"))
}

/// Posts one JSON-RPC message (or anything else) to an MCP endpoint.
pub async fn post(url: &str, token: Option<&str>, body: &Value) -> Result<reqwest::Response> {
    post_with(url, token, &[], body).await
}

/// [`post`] with further headers, such as `Mcp-Session-Id`.
pub async fn post_with(
    url: &str,
    token: Option<&str>,
    headers: &[(&str, &str)],
    body: &Value,
) -> Result<reqwest::Response> {
    let mut request = reqwest::Client::new()
        .post(url)
        .header("Accept", "application/json, text/event-stream")
        .json(body);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request
        .send()
        .await
        .with_context(|| format!("no answer from {url}"))
}

/// The JSON-RPC message of an answer, whether it came as JSON or as the first
/// event of a stream.
pub async fn message(response: reqwest::Response) -> Result<Value> {
    let text = response.text().await?;
    let data = text.lines().find_map(|line| {
        line.strip_prefix("data:")
            .map(str::trim)
            .filter(|d| !d.is_empty())
    });
    serde_json::from_str(data.unwrap_or(&text)).with_context(|| format!("not JSON-RPC: {text}"))
}
