//! An issuer that answers as it is told, and counts who asks.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use bytes::Bytes;
use futures::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use policy::bundle::{Claims, DEFAULT_ALGORITHMS, Issuer, KeySource, Remote, Types};
use rustix::net::sockopt;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use crate::{common::ScriptBody, world::AUDIENCE};

/// Where its key set is.
pub const JWKS: &str = "/jwks";
/// The path of its URL.
pub const REALM: &str = "/realms/acme";
/// The three places of its metadata, in the order of the specification.
pub const PLACES: [&str; 3] = [
    "/.well-known/oauth-authorization-server/realms/acme",
    "/.well-known/openid-configuration/realms/acme",
    "/realms/acme/.well-known/openid-configuration",
];

/// A key of an issuer.
pub struct Key {
    id: Option<String>,
    secret: EncodingKey,
    public: Value,
}

impl Key {
    pub fn new(id: &str) -> Self {
        Self::of(Some(id.to_owned()))
    }

    /// One whose tokens name no key.
    pub fn nameless() -> Self {
        Self::of(None)
    }

    fn of(id: Option<String>) -> Self {
        let (curve, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(curve, &random).unwrap();
        let secret = EncodingKey::from_ec_der(pkcs8.as_ref());
        let jwk = Jwk::from_encoding_key(&secret, Algorithm::ES256).unwrap();
        let mut public = serde_json::to_value(jwk).unwrap();
        public["use"] = json!("sig");
        if let Some(id) = &id {
            public["kid"] = json!(id);
        }
        Self { id, secret, public }
    }

    /// The key under another id: that of somebody else's.
    pub fn under(&self, id: &str) -> Self {
        let mut public = self.public.clone();
        public["kid"] = json!(id);
        Self {
            id: Some(id.to_owned()),
            secret: self.secret.clone(),
            public,
        }
    }

    pub fn jwk(&self) -> Value {
        self.public.clone()
    }

    pub fn sign(&self, claims: &Value) -> String {
        let header = Header {
            typ: Some("at+jwt".into()),
            kid: self.id.clone(),
            ..Header::new(Algorithm::ES256)
        };
        jsonwebtoken::encode(&header, claims, &self.secret).unwrap()
    }

    /// A token of `issuer` for alice, of staff, that never was before.
    pub fn token(&self, issuer: &str) -> String {
        self.sign(&claims(issuer))
    }
}

/// The claims of a token for alice, of staff.
pub fn claims(issuer: &str) -> Value {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (now, id) = (
        sidecar::pipeline::now(),
        NEXT.fetch_add(1, Ordering::Relaxed),
    );
    json!({
        "iss": issuer, "sub": "alice", "aud": AUDIENCE, "iat": now, "exp": now + 600,
        "client_id": "agent", "jti": id.to_string(), "groups": ["staff"],
    })
}

/// An issuer as a bundle names it.
pub fn remote(name: &str, issuer: &str) -> Issuer {
    Issuer {
        name: name.to_owned(),
        issuer: issuer.to_owned(),
        service_accounts: false,
        keys: KeySource::Remote(Remote {
            jwks_uri: None,
            private_ca: false,
            max_age_seconds: 24 * 3600,
        }),
        claims: Claims::default(),
        types: Types::default(),
        algorithms: DEFAULT_ALGORITHMS.to_vec(),
    }
}

/// Changes where the keys of an issuer come from.
pub fn keys_of(issuer: &mut Issuer, change: impl FnOnce(&mut Remote)) {
    let KeySource::Remote(remote) = &mut issuer.keys else {
        unreachable!("{issuer:?}")
    };
    change(remote);
}

/// A key set.
pub fn set<'a>(keys: impl IntoIterator<Item = &'a Key>) -> Value {
    let keys: Vec<_> = keys.into_iter().map(Key::jwk).collect();
    json!({"keys": keys})
}

/// How it answers.
#[derive(Clone)]
pub enum Answer {
    Json(Value),
    Raw(u16, Bytes),
    Redirect(u16, String),
    /// The head, and then nothing.
    Half,
    /// Nothing, for as long as anybody waits.
    Hang,
    /// The end of the connection.
    Close,
    /// Its end by RST.
    Reset,
}

/// The issuer.
pub struct Idp {
    pub address: SocketAddr,
    /// Its URL.
    pub url: String,
    told: Arc<Told>,
}

struct Told {
    /// By path; everything else is 404.
    answers: Mutex<BTreeMap<String, Answer>>,
    /// In place of all of them.
    fault: Mutex<Option<Answer>>,
    delay: Mutex<Duration>,
    held: watch::Sender<bool>,
    asked: Mutex<Vec<String>>,
    connections: AtomicUsize,
}

impl Idp {
    /// With this key, and metadata in the first place.
    pub async fn start(key: &Key) -> Self {
        Self::start_with(None).await.serving(key)
    }

    /// The same over TLS, under this name.
    pub async fn start_tls(key: &Key, acceptor: TlsAcceptor, host: &str) -> Self {
        let mut idp = Self::start_with(Some(acceptor)).await;
        idp.url = format!("https://{host}:{}{REALM}", idp.address.port());
        idp.serving(key)
    }

    async fn start_with(acceptor: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let told = Arc::new(Told {
            answers: Mutex::default(),
            fault: Mutex::default(),
            delay: Mutex::default(),
            held: watch::Sender::new(false),
            asked: Mutex::default(),
            connections: AtomicUsize::new(0),
        });
        tokio::spawn(listen(listener, acceptor, Arc::clone(&told)));
        Self {
            address,
            url: format!("http://{address}{REALM}"),
            told,
        }
    }

    fn serving(self, key: &Key) -> Self {
        self.publish([key]);
        self.answer(PLACES[0], Answer::Json(self.metadata()));
        self
    }

    pub fn origin(&self) -> &str {
        self.url.strip_suffix(REALM).unwrap()
    }

    pub fn jwks_uri(&self) -> String {
        format!("{}{JWKS}", self.origin())
    }

    pub fn metadata(&self) -> Value {
        json!({"issuer": self.url, "jwks_uri": self.jwks_uri()})
    }

    /// The issuer as a bundle names it.
    pub fn issuer(&self, name: &str) -> Issuer {
        remote(name, &self.url)
    }

    pub fn publish<'a>(&self, keys: impl IntoIterator<Item = &'a Key>) {
        self.answer(JWKS, Answer::Json(set(keys)));
    }

    pub fn answer(&self, path: &str, answer: Answer) {
        let mut answers = self.told.answers.lock().unwrap();
        answers.insert(path.to_owned(), answer);
    }

    pub fn forget(&self, path: &str) {
        self.told.answers.lock().unwrap().remove(path);
    }

    /// Answers everything like this, or as before.
    pub fn fault(&self, fault: Option<Answer>) {
        *self.told.fault.lock().unwrap() = fault;
    }

    /// From the request, when the answer is fixed, until it is sent.
    pub fn delay(&self, delay: Duration) {
        *self.told.delay.lock().unwrap() = delay;
    }

    /// Holds key sets back, or lets them go. What they are is fixed before.
    pub fn hold(&self, held: bool) {
        self.told.held.send_replace(held);
    }

    /// Paths that were asked for, in order.
    pub fn asked(&self) -> Vec<String> {
        self.told.asked.lock().unwrap().clone()
    }

    /// How often a path was asked for.
    pub fn count(&self, path: &str) -> usize {
        self.asked().iter().filter(|asked| *asked == path).count()
    }

    pub fn connections(&self) -> usize {
        self.told.connections.load(Ordering::SeqCst)
    }
}

async fn listen(listener: TcpListener, acceptor: Option<TlsAcceptor>, told: Arc<Told>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        told.connections.fetch_add(1, Ordering::SeqCst);
        stream.set_nodelay(true).unwrap();
        let socket = stream.as_fd().try_clone_to_owned().unwrap();
        let (acceptor, told) = (acceptor.clone(), Arc::clone(&told));
        tokio::spawn(async move {
            match acceptor {
                None => serve(stream, socket, told).await,
                // A client that does not trust us leaves.
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, socket, told).await;
                    }
                }
            }
        });
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    socket: OwnedFd,
    told: Arc<Told>,
) {
    let socket = Arc::new(socket);
    let service = service_fn(|request: Request<Incoming>| {
        let (told, socket) = (Arc::clone(&told), Arc::clone(&socket));
        let path = request.uri().path().to_owned();
        async move { told.answer(&path, &socket).await }
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let _ = connection.await; // Whoever leaves early is no concern of ours.
}

impl Told {
    async fn answer(&self, path: &str, socket: &OwnedFd) -> Result<Response<ScriptBody>, Gone> {
        self.asked.lock().unwrap().push(path.to_owned());
        let fault = self.fault.lock().unwrap().clone();
        let answer = fault.or_else(|| self.answers.lock().unwrap().get(path).cloned());
        let delay = *self.delay.lock().unwrap();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if path == JWKS {
            let mut held = self.held.subscribe();
            held.wait_for(|held| !held).await.unwrap();
        }
        let text = |status: u16, bytes: Bytes| {
            let body = Full::new(bytes).map_err(|never| match never {});
            Response::builder().status(status).body(body.boxed_unsync())
        };
        Ok(match answer.unwrap_or(Answer::Raw(404, Bytes::new())) {
            Answer::Json(json) => text(200, json.to_string().into()),
            Answer::Raw(status, bytes) => text(status, bytes),
            Answer::Redirect(status, to) => Response::builder()
                .status(status)
                .header("location", to)
                .body(crate::common::text("")),
            Answer::Half => {
                let nothing = stream::pending::<Result<Frame<Bytes>, std::io::Error>>();
                Response::builder()
                    .header("content-length", "100")
                    .body(StreamBody::new(nothing).boxed_unsync())
            }
            Answer::Hang => std::future::pending().await,
            Answer::Close => return Err(Gone),
            Answer::Reset => {
                sockopt::set_socket_linger(socket, Some(Duration::ZERO)).unwrap();
                return Err(Gone);
            }
        }
        .unwrap())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("as told")]
struct Gone;
