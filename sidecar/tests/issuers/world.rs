//! The real binary in front of a scripted server, with issuers of its own.

use std::process::Command;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use policy::{Bundle, Context, PolicySource, bundle::Issuer, compile};
use serde_json::{Value, json};
use sidecar::dev::DevIssuer;

use crate::common::{OPERATOR, Reply, Script, Sidecar, binary, echo};

pub const AUDIENCE: &str = "http://orders.shop.svc/mcp";

/// What staff may do.
pub fn staff() -> Value {
    json!([{"name": "staff", "effect": "Allow", "from": [{"groups": ["staff"]}], "tools": ["get_*"]}])
}

/// The bundle of a server with these rules and issuers, which may be on this
/// host. The operator's tokens are those of `dev`, whose callers are not let in.
pub fn bundle(dev: &DevIssuer, rules: Value, issuers: Vec<Issuer>) -> Bundle {
    let object = |kind: &str, name: &str, spec: Value| {
        json!({
            "apiVersion": "toolward.dev/v1alpha1", "kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec,
        })
    };
    let server = json!({"deployment": {"image": "i"}, "transport": {"type": "StreamableHttp"}});
    let server = serde_json::from_value(object("McpServer", "orders", server)).unwrap();
    let policy = json!({"targetRefs": [{"name": "orders"}], "rules": rules});
    let policy = serde_json::from_value(object("McpToolPolicy", "p", policy)).unwrap();
    let context = Context {
        default_url: AUDIENCE.into(),
        cluster: Some(dev.issuer()),
        operator: Some(OPERATOR.into()),
        ..Context::default()
    };
    let compiled = compile(&server, &[PolicySource::Valid(&policy)], &context);
    assert_eq!(compiled.diagnostics, []);
    let mut bundle = compiled.bundle;
    bundle.authentication.issuers = issuers;
    bundle.authentication.networks = vec!["127.0.0.0/8".into()];
    bundle
}

pub struct World {
    pub script: Script,
    pub sidecar: Sidecar,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl World {
    pub async fn of(issuers: Vec<Issuer>) -> Self {
        Self::start(&[], |dev| bundle(dev, staff(), issuers)).await
    }

    /// With further arguments.
    pub async fn start(arguments: &[&str], bundle: impl FnOnce(&DevIssuer) -> Bundle) -> Self {
        let script = Script::start(echo).await;
        Self::in_front_of(script, arguments, bundle).await
    }

    pub async fn in_front_of(
        script: Script,
        arguments: &[&str],
        bundle: impl FnOnce(&DevIssuer) -> Bundle,
    ) -> Self {
        let upstream = format!("http://{}/mcp", script.address);
        let own = ["--upstream", upstream.as_str()];
        let arguments = [&own[..], arguments].concat();
        let command = Command::new(binary());
        let sidecar = Sidecar::serve_by(command, &arguments, |dev| Some(bundle(dev)));
        Self {
            script,
            sidecar: sidecar.ready().await,
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    /// Puts these issuers in force.
    pub async fn renew(&self, issuers: Vec<Issuer>) {
        let bundle = bundle(&self.sidecar.issuer, staff(), issuers);
        self.sidecar.rewrite(&bundle).await;
    }

    /// Calls a tool, on a connection that is kept.
    pub async fn call(&self, token: &str) -> Reply {
        self.call_tool(token, "get_order").await
    }

    pub async fn call_tool(&self, token: &str, tool: &str) -> Reply {
        let message =
            json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": tool}});
        let request = self.sidecar.request(token);
        self.send(request.body(Full::new(message.to_string().into())).unwrap())
            .await
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Reply {
        let (parts, body) = self.open(request).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        }
    }

    pub async fn open(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        self.client.request(request).await.unwrap()
    }

    /// A request without a token, by the method, of this path.
    pub async fn ask(&self, method: &str, path: &str) -> Reply {
        let uri = format!("http://{}{path}", self.sidecar.mcp);
        let request = Request::builder().method(method).uri(uri);
        self.send(request.body(Full::default()).unwrap()).await
    }

    pub async fn status(&self) -> Value {
        let (status, report) = self.sidecar.admin("/status").await;
        assert_eq!(status, 200, "{report}");
        serde_json::from_str(&report).unwrap()
    }

    /// State and message of an issuer, by `/status`.
    pub async fn issuer(&self, name: &str) -> (String, String) {
        let status = self.status().await;
        let mut issuers = status["issuers"].as_array().into_iter().flatten();
        let issuer = issuers.find(|issuer| issuer["name"] == name);
        let issuer = issuer.unwrap_or_else(|| panic!("no issuer {name}: {status}"));
        let text = |field: &str| issuer[field].as_str().unwrap().to_owned();
        (text("state"), text("message"))
    }

    /// A value of a metric without labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, metrics) = self.sidecar.admin("/metrics").await;
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value
            .unwrap_or_else(|| panic!("no {name}: {metrics}"))
            .parse()
            .unwrap()
    }
}

/// Status and reason of an answer; its message where the caller is not told the
/// reason, and none where it is no refusal.
pub fn verdict(reply: &Reply) -> (u16, Option<String>) {
    let json: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let error = &json["error"];
    let reason = error["data"]["reason"]
        .as_str()
        .or_else(|| error["message"].as_str());
    (reply.status, reason.map(str::to_owned))
}

pub fn refused(status: u16, reason: &str) -> (u16, Option<String>) {
    (status, Some(reason.to_owned()))
}

pub const PASSED: (u16, Option<String>) = (200, None);

/// That it could not be told whether the token is good, in all its parts.
pub fn assert_unavailable(reply: &Reply) {
    assert_eq!(
        verdict(reply),
        refused(503, "IssuerUnavailable"),
        "{reply:?}"
    );
    assert_eq!(reply.headers["retry-after"], "5");
    assert!(!reply.headers.contains_key("www-authenticate"), "{reply:?}");
}
