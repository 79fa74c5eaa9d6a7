//! Other replicas of the same server: which of them holds a session, how a
//! request gets there, and who may come in by the peer port.
//!
//! Invariants:
//! - A legacy session id is 32 hexadecimal digits of randomness, `-`, and the
//!   name of the replica that holds the session. The name is looked up among
//!   known peers, and never dialled as given.
//! - A request that came by the peer port is never forwarded again, and its
//!   caller is checked there as on any other port.
//! - Whoever comes by the peer port proves to be a pod of this server; nothing
//!   that comes by the MCP port can pass for that.

mod gate;
mod list;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header, request::Parts,
};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use policy::Reason;
use tokio::sync::watch;

pub use gate::{ViaPeer, admit};
pub use list::FILE;
use list::List;

use crate::{
    body::{self, Body},
    refusal::Refusal,
    source,
    upstream::UpstreamError,
};

/// The peer port.
pub const PORT: u16 = 9442;
/// The name of a replica that has no peers.
pub const LOCAL: &str = "local";
/// Carries the token of the sidecar that forwards.
pub const HEADER: HeaderName = HeaderName::from_static("toolward-peer");

/// News of a replica take this long to reach the others, at most: an unknown
/// name is waited for.
const LAG: Duration = Duration::from_secs(1);
/// How long a connection to a peer waits for its next request, in whole seconds.
/// A peer that leaves keeps it for longer, so that it never ends while it is used.
pub const KEPT: Duration = Duration::from_secs(1);
/// Until a connection to a peer is there.
const CONNECT: Duration = Duration::from_secs(2);
/// Until the head of its answer is there: longer than its own longest call.
const ANSWER: Duration = Duration::from_secs(310);
/// Largest token, in bytes.
const MAX_TOKEN: usize = 16 * 1024;
/// Digits of randomness in a session id.
const DIGITS: usize = 32;
/// Headers of one connection (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// The other replicas.
pub struct Peers {
    /// Name of this replica.
    name: String,
    /// Peer port of the others.
    port: u16,
    lag: Duration,
    list: watch::Sender<List>,
    token: ArcSwapOption<HeaderValue>,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// Who holds a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This replica.
    Here,
    /// Another one.
    Peer(Peer),
    /// No replica that is known, or the id is none of ours.
    Unknown,
}

/// Another replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its peer port.
    pub address: SocketAddr,
}

impl Peers {
    /// No other replicas, as on a laptop.
    pub fn alone() -> Self {
        Self {
            lag: Duration::ZERO,
            ..Self::new(LOCAL.into(), PORT)
        }
    }

    /// The replicas beside the one of this name, whose peer port is `port`.
    /// None is known before [`Peers::load`].
    pub fn new(name: String, port: u16) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        // A stream from a node that is gone must break, not hang.
        connector.set_keepalive(Some(Duration::from_secs(15)));
        connector.set_keepalive_interval(Some(Duration::from_secs(5)));
        connector.set_keepalive_retries(Some(3));
        connector.set_tcp_user_timeout(Some(Duration::from_secs(30)));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEPT)
            .pool_max_idle_per_host(64)
            .build(connector);
        Self {
            name,
            port,
            lag: LAG,
            list: watch::channel(List::default()).0,
            token: ArcSwapOption::empty(),
            client,
        }
    }

    /// Reads the list and the token again whenever their files change.
    pub async fn follow(self: Arc<Self>, list: PathBuf, token: PathBuf) {
        let (ours, its_list) = (Arc::clone(&self), list.clone());
        let lists = source::watch(vec![list], move || {
            let read = source::read(&its_list, policy::peers::MAX_BYTES)
                .map_err(|error| error.to_string());
            match read.and_then(|bytes| ours.load(&bytes)) {
                Ok(count) => tracing::info!(count, "replicas are known"),
                Err(error) => tracing::warn!(
                    error,
                    file = %its_list.display(),
                    "the list of replicas cannot be read; the last good one stays in force"
                ),
            }
        });
        let its_token = token.clone();
        let tokens = source::watch(vec![token], move || {
            let read = source::read(&its_token, MAX_TOKEN).map_err(|error| error.to_string());
            let value = read.and_then(|bytes| {
                let value = HeaderValue::from_bytes(bytes.trim_ascii());
                value.map_err(|error| error.to_string())
            });
            match value {
                Ok(mut value) => {
                    value.set_sensitive(true);
                    self.token.store(Some(Arc::new(value)));
                }
                Err(error) => tracing::warn!(
                    error,
                    file = %its_token.display(),
                    "the token for other replicas cannot be read"
                ),
            }
        });
        tokio::join!(lists, tokens);
    }

    /// Takes a written list, and gives how many replicas it has.
    ///
    /// # Errors
    /// It cannot be read: the last good one stays in force.
    pub fn load(&self, bytes: &[u8]) -> Result<usize, String> {
        let list = List::from_json(bytes)?;
        let count = list.replicas.len();
        self.list.send_replace(list);
        Ok(count)
    }

    /// `sha256:…` of the list in force; none before the first.
    pub fn hash(&self) -> Option<String> {
        self.list.borrow().hash.clone()
    }

    /// A new session id of this replica.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn new_session_id(&self) -> Result<String, UpstreamError> {
        let mut random = [0_u8; DIGITS / 2];
        getrandom::fill(&mut random)
            .map_err(|_| UpstreamError::Overloaded("no randomness for a session id".into()))?;
        Ok(format!(
            "{:032x}-{}",
            u128::from_be_bytes(random),
            self.name
        ))
    }

    /// Who holds a session.
    pub async fn owner(&self, session_id: &str) -> Owner {
        match replica_of(session_id) {
            Some(name) => self.replica(name).await,
            None => Owner::Unknown,
        }
    }

    /// The name of this replica.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which replica has a name. One that is unknown is waited for, a moment.
    pub async fn replica(&self, name: &str) -> Owner {
        if name == self.name {
            return Owner::Here;
        }
        self.find(name).await.map_or(Owner::Unknown, |address| {
            Owner::Peer(Peer {
                name: name.to_owned(),
                address: SocketAddr::new(address, self.port),
            })
        })
    }

    /// The address of a replica, once it is known.
    async fn find(&self, name: &str) -> Option<IpAddr> {
        let mut list = self.list.subscribe();
        let known = list.wait_for(|list| list.replicas.contains_key(name));
        let known = tokio::time::timeout(self.lag, known).await.ok()?.ok()?;
        known.replicas.get(name).copied()
    }

    /// Sends a request to the replica that holds its session, as it came, and
    /// gives the answer, its body still to stream. Where that breaks midway, so
    /// does the answer.
    ///
    /// # Errors
    /// The replica is gone (404, so that the client starts anew), or does not
    /// answer (502).
    pub async fn forward(
        &self,
        peer: &Peer,
        parts: &Parts,
        body: Bytes,
    ) -> Result<Response<Body>, Refusal> {
        let unanswered = |error: &str| {
            tracing::warn!(peer.name, error, "no answer of another replica");
            let message = "the replica that holds the session does not answer";
            Refusal::new(
                Reason::UpstreamUnavailable,
                StatusCode::BAD_GATEWAY,
                message,
            )
        };
        let Some(token) = self.token.load_full() else {
            return Err(unanswered("no token to show it"));
        };
        let request = outgoing(peer, parts, body, &token)
            .map_err(|error| Refusal::malformed(error.to_string()))?;
        let answer = tokio::time::timeout(ANSWER, self.client.request(request)).await;
        let answer = match answer.map_err(|_| unanswered("time is up"))? {
            Ok(answer) => answer,
            Err(error) if error.is_connect() => {
                tracing::info!(peer.name, %error, "a replica is gone");
                return Err(UpstreamError::SessionUnknown.into());
            }
            Err(error) => return Err(unanswered(&format!("{:#}", anyhow::Error::from(error)))),
        };
        if answer.headers().contains_key(HEADER) {
            return Err(unanswered("it does not take requests of this replica"));
        }
        let mut answer = answer.map(|body| body.map_err(body::Error::new).boxed_unsync());
        end_to_end(answer.headers_mut());
        Ok(answer)
    }
}

fn outgoing(
    peer: &Peer,
    parts: &Parts,
    body: Bytes,
    token: &HeaderValue,
) -> Result<Request<Full<Bytes>>, http::Error> {
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri = Uri::builder()
        .scheme("http")
        .authority(peer.address.to_string())
        .path_and_query(path)
        .build()?;
    let mut headers = parts.headers.clone();
    end_to_end(&mut headers);
    for name in [header::EXPECT, header::CONTENT_LENGTH] {
        headers.remove(name); // They are about how the body came.
    }
    // The name by which the caller knows the server: over HTTP/2, `:authority`.
    if let Some(authority) = parts.uri.authority() {
        headers.insert(header::HOST, HeaderValue::from_str(authority.as_str())?);
    }
    headers.insert(HEADER, token.clone());
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Removes what concerns one connection only.
fn end_to_end(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
    headers.remove(HEADER);
}

/// The replica that a session id names; none where it is not one of ours.
fn replica_of(session_id: &str) -> Option<&str> {
    let (digits, name) = session_id.split_once('-')?;
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let good = digits.len() == DIGITS && digits.bytes().all(is_hex) && list::is_name(name);
    good.then_some(name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peers() -> Peers {
        let peers = Peers {
            lag: Duration::ZERO,
            ..Peers::new("orders-1".into(), PORT)
        };
        let list = r#"{"version":1,"replicas":[{"name":"orders-1","address":"10.0.0.1"},{"name":"orders-2","address":"10.0.0.2"},{"name":"orders-3","address":"fd00::3"}]}"#;
        assert_eq!(peers.load(list.as_bytes()), Ok(3));
        peers
    }

    fn owner(peers: &Peers, id: &str) -> Owner {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        runtime.unwrap().block_on(peers.owner(id))
    }

    #[tokio::test]
    async fn an_id_names_its_replica() {
        let peers = peers();
        let (one, other) = (
            peers.new_session_id().unwrap(),
            peers.new_session_id().unwrap(),
        );
        assert_ne!(one, other);
        assert_eq!(peers.owner(&one).await, Owner::Here);
        for (name, address) in [
            ("orders-2", "10.0.0.2:9442"),
            ("orders-3", "[fd00::3]:9442"),
        ] {
            let (digits, _) = one.split_once('-').unwrap();
            let wanted = Peer {
                name: name.into(),
                address: address.parse().unwrap(),
            };
            assert_eq!(
                peers.owner(&format!("{digits}-{name}")).await,
                Owner::Peer(wanted)
            );
        }
        let alone = Peers::alone();
        let id = alone.new_session_id().unwrap();
        assert!(id.ends_with("-local"));
        assert_eq!(alone.owner(&id).await, Owner::Here);
    }

    #[tokio::test]
    async fn what_is_not_in_the_list_is_never_dialled() {
        let peers = peers();
        let digits = "0123456789abcdef0123456789abcdef";
        for name in [
            "127.0.0.1",
            "10.0.0.2",
            "10.0.0.9",
            "localhost",
            "orders-4",
            "orders-2.",
            ".orders-2",
            "../orders-2",
            "orders-2/..",
            "orders-2:80",
            "ORDERS-2",
            "orders-2 ",
            "",
            "-",
            "orders-2\u{0}",
            "orders–2",
            "http://orders-2",
            "[::1]",
            "orders-2@10.0.0.2",
            "%6frders-2",
        ] {
            let id = format!("{digits}-{name}");
            assert_eq!(peers.owner(&id).await, Owner::Unknown, "{name:?}");
        }
        for id in [
            "",
            "-",
            "orders-2",
            "-orders-2",
            "0123-orders-2",
            "0123456789ABCDEF0123456789ABCDEF-orders-2",
            "0123456789abcdef0123456789abcdeg-orders-2",
            "0123456789abcdef0123456789abcdef0-orders-2",
            "0123456789abcdef0123456789abcdef",
            " 0123456789abcdef0123456789abcde-orders-2",
        ] {
            assert_eq!(peers.owner(id).await, Owner::Unknown, "{id:?}");
        }
    }

    #[tokio::test]
    async fn a_replica_that_is_new_is_waited_for() {
        let peers = Peers {
            lag: Duration::from_secs(60),
            ..Peers::new("orders-1".into(), PORT)
        };
        let id = "0123456789abcdef0123456789abcdef-orders-9";
        let list = r#"{"version":1,"replicas":[{"name":"orders-9","address":"10.0.0.9"}]}"#;
        let (owner, ()) = tokio::join!(peers.owner(id), async {
            tokio::task::yield_now().await;
            peers.load(list.as_bytes()).unwrap();
        });
        assert!(matches!(owner, Owner::Peer(peer) if peer.name == "orders-9"));
    }

    #[test]
    fn what_goes_on_is_the_request_without_its_connection() {
        let request = Request::post("/mcp?x=1")
            .header("host", "orders.shop.svc")
            .header("authorization", "Bearer t")
            .header("mcp-param-region", "eu")
            .header("connection", "close, X-Secret")
            .header("x-secret", "s")
            .header("transfer-encoding", "chunked")
            .header("expect", "100-continue")
            .header("upgrade", "h2c")
            .header("toolward-peer", "forged")
            .body(())
            .unwrap();
        let peer = Peer {
            name: "orders-2".into(),
            address: "10.0.0.2:9442".parse().unwrap(),
        };
        let token = HeaderValue::from_static("ours");
        let (parts, ()) = request.into_parts();
        let sent = outgoing(&peer, &parts, Bytes::from("{}"), &token).unwrap();
        assert_eq!(sent.uri(), "http://10.0.0.2:9442/mcp?x=1");
        let headers: Vec<_> = sent
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        assert_eq!(
            headers,
            [
                "host: orders.shop.svc",
                "authorization: Bearer t",
                "mcp-param-region: eu",
                "toolward-peer: ours"
            ]
        );
    }

    proptest! {
        #[test]
        fn an_owner_is_always_in_the_list(id in "(([0-9a-f]{32})|.{0,40})-(orders-[0-9]|[a-z0-9./:@%-]{0,20}|.{0,20})") {
            let peers = peers();
            if let Owner::Peer(peer) = owner(&peers, &id) {
                prop_assert!(["orders-2", "orders-3"].contains(&peer.name.as_str()));
                prop_assert!(id.ends_with(&peer.name));
                prop_assert_eq!(peer.address.port(), PORT);
            }
        }
    }
}
