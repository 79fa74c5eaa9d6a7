//! Probes of the app that the kubelet cannot make: it comes from outside the pod,
//! and the server listens on loopback. The operator points them to the admin port,
//! and tells by `--app-probes` what they were.
//!
//! Invariants: only 127.0.0.1 is asked, and only what the argument says; of one
//! probe one is made at a time, and who asks meanwhile gets its outcome, so that
//! many who ask are no more to the app than one; of an answer only the status and
//! `Location` are read; none takes longer than the probe's own timeout.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, header,
    uri::{Authority, PathAndQuery},
};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::{
    api::core::v1::{HTTPGetAction, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::net::TcpStream;

/// Where the admin port makes them: this, and `CONTAINER/KIND`.
pub const PATH: &str = "/probe/";
/// Longest time for one.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// Most redirections of one probe, as the kubelet has it.
const MAX_REDIRECTIONS: usize = 10;
/// Most of an answer's head, in bytes.
const MAX_HEAD: usize = 32 * 1024;
/// What apps know the kubelet by.
const USER_AGENT: &str = concat!("kube-probe/1 toolward/", env!("CARGO_PKG_VERSION"));

/// Ok, or why the app is not well.
pub type Outcome = Result<(), String>;

type Running = BoxFuture<'static, Outcome>;

/// All probes of the app, by `CONTAINER/KIND`.
#[derive(Default)]
pub struct AppProbes(BTreeMap<String, AppProbe>);

impl AppProbes {
    /// Reads `--app-probes`: an object whose members are probes of Kubernetes, each
    /// with `httpGet` or `tcpSocket`, and `timeoutSeconds` where it is not 1.
    ///
    /// # Errors
    /// What is wrong, and with which.
    pub fn parse(json: &str) -> anyhow::Result<Self> {
        let probes: BTreeMap<String, Probe> = serde_json::from_str(json)?;
        let probes = probes.into_iter().map(|(name, probe)| {
            let probe = AppProbe::new(probe).with_context(|| name.clone())?;
            anyhow::Ok((name, probe))
        });
        Ok(Self(probes.collect::<anyhow::Result<_>>()?))
    }

    /// The probe that a path of the admin port stands for.
    pub fn at(&self, path: &str) -> Option<&AppProbe> {
        self.0.get(path.strip_prefix(PATH)?)
    }
}

/// One probe.
pub struct AppProbe {
    action: Arc<Action>,
    timeout: Duration,
    running: Mutex<Option<WeakShared<Running>>>,
}

enum Action {
    /// A GET is answered with a status from 200 to 399, as the kubelet has it. A
    /// redirection is followed where it stays on the port.
    Get {
        port: u16,
        uri: Uri,
        headers: HeaderMap,
    },
    /// A connection is accepted.
    Connect { port: u16 },
}

impl AppProbe {
    fn new(probe: Probe) -> anyhow::Result<Self> {
        let Probe {
            http_get,
            tcp_socket,
            timeout_seconds,
            ..
        } = probe;
        let action = match (http_get, tcp_socket) {
            (Some(get), None) => Action::get(get)?,
            (None, Some(tcp)) => {
                is_loopback(tcp.host.as_deref())?;
                let port = number(&tcp.port)?;
                Action::Connect { port }
            }
            _ => bail!("it has to have httpGet or tcpSocket, and not both"),
        };
        let seconds = u64::try_from(timeout_seconds.unwrap_or(1)).unwrap_or(1);
        Ok(Self {
            action: Arc::new(action),
            timeout: Duration::from_secs(seconds.max(1)).min(MAX_TIMEOUT),
            running: Mutex::default(),
        })
    }

    /// The longest that it takes.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Makes it, or waits for the one that is under way.
    pub async fn ask(&self) -> Outcome {
        self.running().await
    }

    fn running(&self) -> Shared<Running> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(probe) = running.as_ref().and_then(WeakShared::upgrade) {
            return probe;
        }
        let (action, limit) = (Arc::clone(&self.action), self.timeout);
        let probe = async move {
            let made = tokio::time::timeout(limit, action.make()).await;
            made.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())))
        };
        let probe = probe.boxed().shared();
        *running = probe.downgrade();
        probe
    }
}

impl Action {
    fn get(get: HTTPGetAction) -> anyhow::Result<Self> {
        let HTTPGetAction {
            host,
            http_headers,
            path,
            port,
            scheme,
        } = get;
        is_loopback(host.as_deref())?;
        if scheme.is_some_and(|scheme| scheme != "HTTP") {
            bail!("only plain HTTP is spoken on loopback");
        }
        let port = number(&port)?;
        let path = path.unwrap_or_else(|| "/".to_owned());
        let uri = path.parse::<PathAndQuery>();
        let uri = uri.with_context(|| format!("path {path:?}"))?;
        let mut headers = HeaderMap::new();
        for header in http_headers.into_iter().flatten() {
            let name = HeaderName::from_bytes(header.name.as_bytes())?;
            headers.append(name, HeaderValue::from_str(&header.value)?);
        }
        // There is no body, so nothing may speak of one.
        for name in [
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::TRAILER,
        ] {
            headers.remove(name);
        }
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        let host = HeaderValue::from_str(&format!("127.0.0.1:{port}"))?;
        headers.entry(header::HOST).or_insert(host);
        for (name, value) in [(header::USER_AGENT, USER_AGENT), (header::ACCEPT, "*/*")] {
            let value = HeaderValue::from_static(value);
            headers.entry(name).or_insert(value);
        }
        Ok(Self::Get {
            port,
            uri: uri.into(),
            headers,
        })
    }

    async fn make(&self) -> Outcome {
        match self {
            Self::Connect { port } => connect(*port).await.map(drop),
            Self::Get { port, uri, headers } => get(*port, uri, headers).await,
        }
    }
}

async fn get(port: u16, uri: &Uri, headers: &HeaderMap) -> Outcome {
    let mut uri = uri.clone();
    for _ in 0..=MAX_REDIRECTIONS {
        let (status, location) = head(port, &uri, headers).await?;
        match (status.as_u16(), location) {
            (301 | 302 | 303 | 307 | 308, Some(location)) => {
                match redirected(&location, port, headers)? {
                    Some(next) => uri = next.into(),
                    None => return Ok(()),
                }
            }
            (200..=399, _) => return Ok(()),
            (code, _) => return Err(format!("the app answered {code}")),
        }
    }
    Err(format!(
        "the app redirects more than {MAX_REDIRECTIONS} times"
    ))
}

/// Where a redirection leads; none where that is another host, which counts as
/// success for the kubelet.
fn redirected(
    location: &HeaderValue,
    port: u16,
    headers: &HeaderMap,
) -> Result<Option<PathAndQuery>, String> {
    let text = String::from_utf8_lossy(location.as_bytes());
    let odd = || format!("the app redirects to {text:?}: write the path where that ends");
    let target = text.split('#').next().unwrap_or_default();
    let is_path = target.starts_with('/') && !target.starts_with("//");
    let target: Uri = target.parse().map_err(|_| odd())?;
    if !is_path {
        let authority = target.authority().ok_or_else(odd)?;
        let asked = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        let asked = asked.and_then(|host| host.parse::<Authority>().ok());
        let host = authority.host();
        let is_asked = asked.is_some_and(|asked| asked.host().eq_ignore_ascii_case(host));
        if !is_asked {
            return Ok(None);
        }
        if target.scheme_str() != Some("http") || authority.port_u16().unwrap_or(80) != port {
            return Err(odd());
        }
    }
    let root = || PathAndQuery::from_static("/");
    Ok(Some(target.path_and_query().cloned().unwrap_or_else(root)))
}

async fn connect(port: u16) -> Result<TcpStream, String> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
    stream.map_err(|error| format!("no connection to 127.0.0.1:{port}: {error}"))
}

/// The status of an answer, and where it leads.
async fn head(
    port: u16,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<(StatusCode, Option<HeaderValue>), String> {
    let broken = |error: hyper::Error| format!("no answer: {error}");
    let stream = connect(port).await?;
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = uri.clone();
    *request.headers_mut() = headers.clone();
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_HEAD);
    let connected = builder.handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = connected.map_err(broken)?;
    let head = async {
        let answer = sender.send_request(request).await.map_err(broken)?;
        let location = answer.headers().get(header::LOCATION).cloned();
        Ok::<_, String>((answer.status(), location))
    };
    tokio::pin!(head);
    tokio::select! {
        biased;
        answer = &mut head => answer,
        // It may end before the head has been looked at.
        _ = connection => head.await,
    }
}

fn number(port: &IntOrString) -> anyhow::Result<u16> {
    match port {
        IntOrString::Int(number) => match u16::try_from(*number) {
            Ok(number) if number > 0 => Ok(number),
            _ => bail!("{number} is no port"),
        },
        IntOrString::String(name) => bail!("{name:?} is no number of a port"),
    }
}

fn is_loopback(host: Option<&str>) -> anyhow::Result<()> {
    match host {
        None | Some("") => Ok(()),
        Some(host) => bail!("host {host:?}: only 127.0.0.1 is asked, and it goes without saying"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_made_is_refused() {
        for (json, why) in [
            ("", "EOF"),
            ("[]", "invalid type"),
            ("{\"a/liveness\":{}}", "a/liveness: it has to have"),
            ("{\"a/liveness\":{\"exec\":{}}}", "it has to have"),
            (
                "{\"a/liveness\":{\"httpGet\":{\"port\":1},\"tcpSocket\":{\"port\":1}}}",
                "not both",
            ),
            (
                "{\"a/liveness\":{\"tcpSocket\":{\"port\":0}}}",
                "0 is no port",
            ),
            (
                "{\"a/liveness\":{\"tcpSocket\":{\"port\":65536}}}",
                "65536 is no port",
            ),
            (
                "{\"a/liveness\":{\"tcpSocket\":{\"port\":\"mcp\"}}}",
                "\"mcp\" is no number",
            ),
            (
                "{\"a/liveness\":{\"tcpSocket\":{\"port\":1,\"host\":\"10.0.0.1\"}}}",
                "host \"10.0.0.1\"",
            ),
            (
                "{\"a/liveness\":{\"httpGet\":{\"port\":1,\"host\":\"10.0.0.1\"}}}",
                "host \"10.0.0.1\"",
            ),
            (
                "{\"a/liveness\":{\"httpGet\":{\"port\":1,\"scheme\":\"HTTPS\"}}}",
                "plain HTTP",
            ),
            (
                "{\"a/liveness\":{\"httpGet\":{\"port\":1,\"path\":\"/a b\"}}}",
                "path \"/a b\"",
            ),
            (
                "{\"a/liveness\":{\"httpGet\":{\"port\":1,\"httpHeaders\":[{\"name\":\"a b\",\"value\":\"\"}]}}}",
                "header name",
            ),
            (
                "{\"a/liveness\":{\"httpGet\":{\"port\":1,\"httpHeaders\":[{\"name\":\"a\",\"value\":\"\\n\"}]}}}",
                "header value",
            ),
        ] {
            let Err(error) = AppProbes::parse(json) else {
                panic!("{json} is taken");
            };
            let error = format!("{error:#}");
            assert!(error.contains(why), "{json}: {error}");
        }
    }

    #[test]
    fn a_probe_has_its_own_time() {
        for (json, seconds) in [
            ("{\"tcpSocket\":{\"port\":1}}", 1),
            ("{\"tcpSocket\":{\"port\":1},\"timeoutSeconds\":0}", 1),
            ("{\"tcpSocket\":{\"port\":1},\"timeoutSeconds\":-5}", 1),
            ("{\"tcpSocket\":{\"port\":1},\"timeoutSeconds\":7}", 7),
            ("{\"tcpSocket\":{\"port\":1},\"timeoutSeconds\":3600}", 60),
        ] {
            let probes = AppProbes::parse(&format!("{{\"a/startup\":{json}}}")).unwrap();
            let probe = probes.at("/probe/a/startup").unwrap();
            assert_eq!(probe.timeout(), Duration::from_secs(seconds), "{json}");
        }
    }

    #[test]
    fn paths_are_taken_as_they_are() {
        let probes = AppProbes::parse("{\"a/liveness\":{\"tcpSocket\":{\"port\":1}}}").unwrap();
        assert!(probes.at("/probe/a/liveness").is_some());
        for path in [
            "/probe/a/readiness",
            "/probe/a/liveness/",
            "/probe//a/liveness",
            "/probe/",
            "a/liveness",
        ] {
            assert!(probes.at(path).is_none(), "{path}");
        }
    }
}
