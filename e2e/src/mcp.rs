//! MCP as a client sees it: the official SDK for what should work, plain HTTP
//! for what should be refused.

use std::error::Error;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use http::Uri;
use rmcp::model::{CallToolRequestParams, CallToolResult};
use rmcp::service::{ClientInitializeError, RunningService};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::{
    StreamableHttpClientTransportConfig, StreamableHttpError,
};
use rmcp::{RoleClient, ServiceError, ServiceExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::harness::Cluster;
use crate::wait::{PATIENCE, wait_for};

/// A connected MCP client: `list_all_tools`, `call_tool` and so on; `cancel`
/// ends the session.
pub type Mcp = RunningService<RoleClient, ()>;

/// The URL of a server, and a way to it from this machine.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// What a client is configured with, such as `status.url`.
    pub url: String,
    client: reqwest::Client,
}

impl Endpoint {
    /// A URL that this machine can reach as it is.
    pub fn direct(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            client: reqwest::Client::new(),
        }
    }

    /// A URL of the cluster. Its name is looked up in the cluster's DNS, as a
    /// pod would.
    pub async fn in_cluster(cluster: &Cluster, url: &str) -> Result<Self> {
        Self::in_cluster_with(cluster, url, reqwest::Client::builder()).await
    }

    /// As [`Endpoint::in_cluster`], with a connection of its own for each
    /// request, so that a Service spreads them over its pods.
    pub async fn in_cluster_spread(cluster: &Cluster, url: &str) -> Result<Self> {
        let client = reqwest::Client::builder().pool_max_idle_per_host(0);
        Self::in_cluster_with(cluster, url, client).await
    }

    /// As [`Endpoint::in_cluster_spread`], for a server for which only this
    /// authority vouches (a certificate in PEM form). Answers tell which
    /// certificate was seen: `reqwest::tls::TlsInfo` is among their extensions.
    pub async fn in_cluster_trusting(
        cluster: &Cluster,
        url: &str,
        authority: &str,
    ) -> Result<Self> {
        let authority = reqwest::Certificate::from_pem(authority.as_bytes())?;
        let client = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .tls_certs_only([authority])
            .tls_info(true);
        Self::in_cluster_with(cluster, url, client).await
    }

    /// A URL that is answered by this address, and not by what its name leads to.
    pub fn at(url: &str, address: SocketAddr) -> Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("the URL {url:?}"))?;
        let host = uri.host().with_context(|| format!("{url:?} has no host"))?;
        let client = reqwest::Client::builder().resolve(host, address);
        Ok(Self {
            url: url.to_owned(),
            client: client.build()?,
        })
    }

    async fn in_cluster_with(
        cluster: &Cluster,
        url: &str,
        client: reqwest::ClientBuilder,
    ) -> Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("the URL {url:?}"))?;
        let host = uri
            .host()
            .with_context(|| format!("{url:?} has no host"))?
            .to_owned();
        let full = match host.ends_with(".svc") {
            true => format!("{host}.cluster.local"),
            false => host.clone(),
        };
        let default = match uri.scheme_str() {
            Some("https") => 443,
            _ => 80,
        };
        let port = uri.port_u16().unwrap_or(default);
        // A new Service takes a moment to be known, and another to answer.
        let address = wait_for(&format!("{full} to answer"), PATIENCE, || async {
            let address = SocketAddr::from((cluster.resolve(&full).await?, port));
            TcpStream::connect(address).await?;
            Ok(address)
        })
        .await?;
        let client = client.resolve(&host, address).build()?;
        Ok(Self {
            url: url.to_owned(),
            client,
        })
    }

    /// Shakes hands with the official client.
    pub async fn connect(&self, token: Option<&str>) -> Result<Mcp, Box<ClientInitializeError>> {
        let mut config = StreamableHttpClientTransportConfig::with_uri(self.url.clone());
        if let Some(token) = token {
            config = config.auth_header(token);
        }
        let transport = StreamableHttpClientTransport::with_client(self.client.clone(), config);
        ().serve(transport).await.map_err(Box::new)
    }

    /// Posts one JSON-RPC message (or anything else), with further headers such
    /// as `Mcp-Session-Id`.
    pub async fn post(
        &self,
        token: Option<&str>,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Result<reqwest::Response> {
        let request = self.client.post(&self.url).json(body);
        self.send(request, token, headers).await
    }

    /// Sends a request without a body, such as GET for a session's stream and
    /// DELETE for its end.
    pub async fn bare(
        &self,
        method: http::Method,
        token: Option<&str>,
        headers: &[(&str, &str)],
    ) -> Result<reqwest::Response> {
        let request = self.client.request(method, &self.url);
        self.send(request, token, headers).await
    }

    async fn send(
        &self,
        request: reqwest::RequestBuilder,
        token: Option<&str>,
        headers: &[(&str, &str)],
    ) -> Result<reqwest::Response> {
        let mut request = request.header("Accept", "application/json, text/event-stream");
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request
            .send()
            .await
            .with_context(|| format!("no answer from {}", self.url))
    }
}

/// Connects to an MCP endpoint over streamable HTTP and shakes hands.
pub async fn mcp_connect(url: &str, token: Option<&str>) -> Result<Mcp> {
    Endpoint::direct(url)
        .connect(token)
        .await
        .with_context(|| format!("no MCP session with {url}"))
}

/// How a tool call ended.
#[derive(Debug)]
pub enum Called {
    /// The server answered; its text.
    Text(String),
    /// A JSON-RPC error.
    Error {
        /// Its code.
        code: i32,
        /// Its message.
        message: String,
    },
    /// The answer was an HTTP error.
    Http {
        /// Its status.
        status: u16,
        /// Its `Retry-After`.
        retry_after: Option<String>,
    },
}

/// Calls a tool.
pub async fn call(mcp: &Mcp, tool: &str, arguments: Value) -> Result<Called> {
    let mut params = CallToolRequestParams::new(tool.to_owned());
    if let Value::Object(arguments) = arguments {
        params = params.with_arguments(arguments);
    }
    match mcp.call_tool(params).await {
        Ok(result) => Ok(Called::Text(text(&result))),
        Err(ServiceError::McpError(error)) => Ok(Called::Error {
            code: error.code.0,
            message: error.message.into_owned(),
        }),
        Err(error) => match http_status(&error) {
            Some((status, retry_after)) => Ok(Called::Http {
                status,
                retry_after,
            }),
            None => Err(error).with_context(|| format!("calling {tool}")),
        },
    }
}

/// The names of the tools that a caller is shown, sorted.
pub async fn tools(mcp: &Mcp) -> Result<Vec<String>> {
    let tools = mcp.list_all_tools().await.context("tools/list")?;
    let mut names: Vec<String> = tools.into_iter().map(|tool| tool.name.into()).collect();
    names.sort();
    Ok(names)
}

fn text(result: &CallToolResult) -> String {
    let parts = result.content.iter().filter_map(|part| part.as_text());
    parts.map(|part| part.text.as_str()).collect()
}

/// The HTTP answer behind an error of the SDK.
fn http_status(error: &(dyn Error + 'static)) -> Option<(u16, Option<String>)> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(StreamableHttpError::HttpStatus(answer)) =
            error.downcast_ref::<StreamableHttpError<reqwest::Error>>()
        {
            return Some((answer.status, answer.retry_after.clone()));
        }
        next = error.source();
    }
    None
}

/// Posts one JSON-RPC message (or anything else) to an MCP endpoint.
pub async fn post(url: &str, token: Option<&str>, body: &Value) -> Result<reqwest::Response> {
    Endpoint::direct(url).post(token, &[], body).await
}

/// An `initialize` request, for plain HTTP.
pub fn initialize() -> Value {
    json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18", "capabilities": {},
            "clientInfo": {"name": "e2e", "version": "1"},
        },
    })
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
    match serde_json::from_str(data.unwrap_or(&text)) {
        Ok(message) => Ok(message),
        Err(error) => bail!("not JSON-RPC ({error}): {text}"),
    }
}
