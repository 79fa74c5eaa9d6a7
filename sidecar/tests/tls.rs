//! TLS on the MCP port: the real binary, and clients that trust one authority.
#![allow(clippy::unwrap_used, missing_docs)]

use sidecar_tests::common;

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use common::{LIFETIME, PATIENCE, Reply, Script, Sidecar, allow, binary, bundle, echo, until};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use policy::bundle::hash;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::{
    ALL_VERSIONS, ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName},
    version::{TLS12, TLS13},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

const URL: &str = "https://orders.shop.svc/mcp";
const METADATA: &str = "/.well-known/oauth-protected-resource/mcp";
/// More calls than a rotation takes.
const MANY: usize = 100_000;

/// Who vouches for the certificates.
struct Authority {
    issuer: rcgen::Issuer<'static, KeyPair>,
    roots: RootCertStore,
}

/// A certificate and its key.
struct Pair {
    certificate: String,
    key: String,
    der: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "ours");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let mut roots = RootCertStore::empty();
        let certificate = params.self_signed(&key).unwrap();
        roots.add(certificate.der().clone()).unwrap();
        Self {
            issuer: rcgen::Issuer::new(params, key),
            roots,
        }
    }

    fn pair(&self) -> Pair {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["orders.shop.svc".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            der: certificate.der().clone(),
        }
    }

    fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&[u8]],
    ) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }

    /// One that remembers nothing of earlier connections.
    fn fresh(&self) -> Arc<ClientConfig> {
        self.client(ALL_VERSIONS, &[b"h2", b"http/1.1"])
    }
}

/// Writes a pair as a person does.
fn write_plainly(folder: &Path, pair: &Pair) {
    std::fs::write(folder.join("tls.crt"), &pair.certificate).unwrap();
    std::fs::write(folder.join("tls.key"), &pair.key).unwrap();
}

/// Writes a pair as the kubelet does: into a new folder, to which a link is then
/// renamed.
fn write_as_kubelet(folder: &Path, pair: &Pair) {
    let name = format!("..{}", &hash(&pair.der)[7..20]);
    std::fs::create_dir(folder.join(&name)).unwrap();
    write_plainly(&folder.join(&name), pair);
    symlink(&name, folder.join("..data_tmp")).unwrap();
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    for file in ["tls.crt", "tls.key"] {
        if !folder.join(file).exists() {
            symlink(format!("..data/{file}"), folder.join(file)).unwrap();
        }
    }
}

async fn shake_hands(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("orders.shop.svc").unwrap();
    let connector = TlsConnector::from(Arc::clone(config));
    connector.connect(name, stream).await
}

/// A connection over which calls go.
struct Client {
    sender: Sender,
    certificate: CertificateDer<'static>,
    kind: HandshakeKind,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    async fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let stream = shake_hands(address, config).await?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(&b"h2"[..]);
        Self::over(stream, is_http2).await
    }

    async fn over(stream: TlsStream<TcpStream>, is_http2: bool) -> io::Result<Self> {
        let session = stream.get_ref().1;
        let certificate = session.peer_certificates().unwrap()[0].clone();
        let kind = session.handshake_kind().unwrap();
        let io = TokioIo::new(stream);
        let sender = if is_http2 {
            let shaken = http2::handshake(TokioExecutor::new(), io).await;
            let (sender, connection) = shaken.map_err(io::Error::other)?;
            tokio::spawn(connection);
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await.map_err(io::Error::other)?;
            tokio::spawn(connection);
            Sender::Http1(sender)
        };
        Ok(Self {
            sender,
            certificate,
            kind,
        })
    }

    fn is_http2(&self) -> bool {
        matches!(self.sender, Sender::Http2(_))
    }

    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> hyper::Result<Reply> {
        let request = match self.sender {
            Sender::Http1(_) => Request::builder()
                .uri(path)
                .header("host", "orders.shop.svc"),
            Sender::Http2(_) => Request::builder().uri(format!("https://orders.shop.svc{path}")),
        };
        let mut request = request
            .method(method)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("user-agent", "test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        let answer = match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        let (parts, body) = answer.into_parts();
        Ok(Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.collect().await?.to_bytes(),
        })
    }

    /// Calls a tool, and gives the answer's text.
    async fn call(&mut self, token: &str) -> String {
        let call = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "get_order", "arguments": {"a": 1}}});
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str())];
        let reply = self.ask(Method::POST, "/mcp", &headers, call.to_string());
        let reply = tokio::time::timeout(PATIENCE, reply).await.unwrap();
        let reply = reply.unwrap_or_else(|error| panic!("a call fails: {error:?}"));
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()["result"]["content"][0]["text"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

/// What a call of [`Client::call`] is answered with.
const ANSWER: &str = r#"{"a":1}"#;

/// A sidecar that follows a folder, in front of a server.
struct World {
    authority: Authority,
    script: Script,
    sidecar: Sidecar,
    files: PathBuf,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.files);
    }
}

impl World {
    /// With nothing in the folder yet.
    async fn start() -> Self {
        let (script, files) = (Script::start(echo).await, common::folder());
        let upstream = format!("http://{}/mcp", script.address);
        let args = ["--upstream", &upstream, "--tls", files.to_str().unwrap()];
        let limits = json!([{"name": "wide", "tools": ["*"], "requests": 1_000_000, "per": "1s"}]);
        let sidecar = Sidecar::serve(&args, |issuer| {
            Some(policy::Bundle {
                url: URL.into(),
                audience: URL.into(),
                ..bundle(issuer, allow(json!(["get_*"])), limits)
            })
        })
        .await;
        Self {
            authority: Authority::new(),
            script,
            sidecar,
            files,
        }
    }

    /// With this pair, and ready.
    async fn with(write: impl Fn(&Path, &Pair)) -> (Self, Pair) {
        let world = Self::start().await;
        let pair = world.authority.pair();
        write(&world.files, &pair);
        world.ready().await;
        (world, pair)
    }

    async fn ready(&self) {
        let sidecar = &self.sidecar;
        until("ready", async || sidecar.admin("/readyz").await.0 == 200).await;
    }

    fn token(&self) -> String {
        let (issuer, now) = (&self.sidecar.issuer, sidecar::pipeline::now());
        let groups = ["staff".to_owned()];
        issuer.token("alice", &groups, URL, now, LIFETIME).unwrap()
    }

    async fn connect(&self) -> io::Result<Client> {
        Client::connect(self.sidecar.mcp, &self.authority.fresh()).await
    }

    /// What `/status` says of the certificate.
    async fn status(&self) -> Value {
        let (status, report) = self.sidecar.admin("/status").await;
        assert_eq!(status, 200, "{report}");
        let report: Value = serde_json::from_str(&report).unwrap();
        report["tls"].clone()
    }

    /// All that comes in answer to these bytes, until the end.
    async fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.sidecar.mcp).await.unwrap();
        let _ = stream.write_all(bytes).await; // It may be closed already.
        end_of(&mut stream).await
    }
}

/// Reads until the other side ends the connection, in good order or not.
async fn end_of(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut received = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut received));
    assert!(end.await.is_ok(), "the connection stays open: {received:?}");
    received
}

#[tokio::test]
async fn http_1_and_2_pass_as_agreed() {
    let (world, _) = World::with(write_as_kubelet).await;
    let (token, address) = (world.token(), world.sidecar.mcp);
    let (h1, h2): (&[u8], &[u8]) = (b"http/1.1", b"h2");
    for version in [&TLS12, &TLS13] {
        for (protocols, is_http2) in [
            (&[h2, h1][..], true),
            (&[h1, h2], true),
            (&[h2], true),
            (&[h1], false),
            (&[], false),
        ] {
            let config = world.authority.client(&[version], protocols);
            let mut client = Client::connect(address, &config).await.unwrap();
            assert_eq!(client.is_http2(), is_http2, "{protocols:?}");
            assert_eq!(client.call(&token).await, ANSWER, "{protocols:?}");
        }
        // With prior knowledge, where nothing was agreed.
        let config = world.authority.client(&[version], &[]);
        let stream = shake_hands(address, &config).await.unwrap();
        let mut client = Client::over(stream, true).await.unwrap();
        assert_eq!(client.call(&token).await, ANSWER);
    }
    let stranger = world.authority.client(ALL_VERSIONS, &[b"spdy/3"]);
    assert!(shake_hands(address, &stranger).await.is_err());
}

#[tokio::test]
async fn what_callers_are_told_is_https() {
    let (world, _) = World::with(write_plainly).await;
    let mut client = world.connect().await.unwrap();
    let reply = client.ask(Method::GET, METADATA, &[], String::new()).await;
    let reply = reply.unwrap();
    assert_eq!(
        (reply.status, &reply.json()["resource"]),
        (200, &json!(URL))
    );
    let reply = client.ask(Method::POST, "/mcp", &[], "{}".into()).await;
    let reply = reply.unwrap();
    let challenge = format!(r#"Bearer resource_metadata="https://orders.shop.svc{METADATA}""#);
    assert_eq!(reply.headers["www-authenticate"], challenge.as_str());

    // A token for the same name without TLS is one for somebody else.
    let bearer = format!("Bearer {}", world.sidecar.token("alice"));
    let headers = [("authorization", bearer.as_str())];
    let reply = client
        .ask(Method::POST, "/mcp", &headers, "{}".into())
        .await;
    let reply = reply.unwrap();
    assert_eq!(
        (reply.status, &reply.json()["error"]["data"]["reason"]),
        (401, &json!("WrongAudience"))
    );

    // Whoever is on the way can show a page under our name without TLS.
    let bearer = format!("Bearer {}", world.token());
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).to_string();
    for (origin, status) in [
        ("https://orders.shop.svc", 200),
        ("https://ORDERS.shop.svc:8443", 200),
        ("http://localhost:6274", 200),
        ("http://127.0.0.1", 200),
        ("http://orders.shop.svc", 403),
        ("http://orders.shop.svc:443", 403),
        ("https://evil.example", 403),
    ] {
        let headers = [("authorization", bearer.as_str()), ("origin", origin)];
        let reply = client.ask(Method::POST, "/mcp", &headers, ping.clone());
        assert_eq!(reply.await.unwrap().status, status, "{origin}");
    }
}

#[tokio::test]
async fn nothing_is_said_in_the_clear() {
    let world = World::start().await;
    let post = format!(
        "POST /mcp HTTP/1.1\r\nhost: orders.shop.svc\r\nuser-agent: plain\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}",
        world.token()
    );
    let get = format!("GET {METADATA} HTTP/1.1\r\nhost: orders.shop.svc\r\n\r\n");
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let is_silent = async |when: &str| {
        for said in [post.as_str(), get.as_str(), preface] {
            let answer = world.raw(said.as_bytes()).await;
            let text = String::from_utf8_lossy(&answer);
            // An alert (RFC 8446 §6), or nothing at all.
            assert!(
                answer.is_empty() || answer[0] == 21,
                "{when}, {said:?}: {text:?}"
            );
            assert!(!text.contains("HTTP"), "{when}, {said:?}: {text:?}");
        }
    };
    is_silent("without a certificate").await;
    write_plainly(&world.files, &world.authority.pair());
    world.ready().await;
    is_silent("with one").await;
    let got = world.script.got.lock().unwrap().len();
    assert_eq!(got, 0, "it reached the server");
}

async fn rotates(write: impl Fn(&Path, &Pair)) {
    let (world, first) = World::with(&write).await;
    let (token, second) = (world.token(), world.authority.pair());
    let mut old = world.connect().await.unwrap();
    assert_eq!(old.certificate, first.der);
    let is_done = AtomicBool::new(false);
    let calls = async {
        for count in 0..MANY {
            if is_done.load(Ordering::Relaxed) {
                return count;
            }
            let mut new = world.connect().await.unwrap();
            assert!([&first.der, &second.der].contains(&&new.certificate));
            assert_eq!(new.call(&token).await, ANSWER);
            assert_eq!(old.call(&token).await, ANSWER);
        }
        panic!("no rotation within {MANY} calls");
    };
    let rotation = async {
        write(&world.files, &second);
        until("new connections see the new certificate", async || {
            world.connect().await.unwrap().certificate == second.der
        })
        .await;
        is_done.store(true, Ordering::Relaxed);
    };
    let (count, ()) = tokio::join!(calls, rotation);
    assert!(count > 0, "nobody called");
    assert_eq!(old.call(&token).await, ANSWER, "an old connection broke");
    let wanted = json!({"certificate": hash(&second.der), "error": null});
    until("all is well", async || world.status().await == wanted).await;
}

#[tokio::test]
async fn a_pair_that_the_kubelet_swaps_is_taken_and_no_call_fails() {
    rotates(write_as_kubelet).await;
}

#[tokio::test]
async fn a_pair_that_is_written_file_by_file_is_taken_and_no_call_fails() {
    rotates(write_plainly).await;
}

#[tokio::test]
async fn nobody_resumes_past_a_rotation() {
    let (world, first) = World::with(write_as_kubelet).await;
    let (token, address) = (world.token(), world.sidecar.mcp);
    let second = world.authority.pair();
    let clients = [&TLS12, &TLS13].map(|version| world.authority.client(&[version], &[b"h2"]));
    for config in &clients {
        let mut client = Client::connect(address, config).await.unwrap();
        // With the answer, what is needed to resume has come too.
        assert_eq!(client.call(&token).await, ANSWER);
        let client = Client::connect(address, config).await.unwrap();
        assert_eq!(client.kind, HandshakeKind::Resumed);
        assert_eq!(client.certificate, first.der);
    }
    write_as_kubelet(&world.files, &second);
    until("the new certificate is in use", async || {
        world.status().await["certificate"] == hash(&second.der)
    })
    .await;
    for config in &clients {
        let mut client = Client::connect(address, config).await.unwrap();
        assert_ne!(client.kind, HandshakeKind::Resumed);
        assert_eq!(client.certificate, second.der);
        assert_eq!(client.call(&token).await, ANSWER);
    }
}

#[tokio::test]
async fn a_pair_that_does_not_fit_is_told_and_the_last_good_one_stays() {
    let (world, good) = World::with(write_plainly).await;
    let (token, other) = (world.token(), world.authority.pair());
    let replace = |name: &str, content: &str| {
        std::fs::write(world.files.join("new"), content).unwrap();
        std::fs::rename(world.files.join("new"), world.files.join(name)).unwrap();
    };
    for (name, content, says) in [
        ("tls.key", Some(other.key.as_str()), "is not the key of"),
        (
            "tls.crt",
            Some(other.certificate.as_str()),
            "is not the key of",
        ),
        ("tls.crt", Some("garbage"), "no certificate"),
        ("tls.key", Some("garbage"), "no key"),
        ("tls.key", Some(""), "no key"),
        ("tls.key", None, "tls.key: No such file"),
        ("tls.crt", None, "tls.crt: No such file"),
    ] {
        match content {
            Some(content) => replace(name, content),
            None => std::fs::remove_file(world.files.join(name)).unwrap(),
        }
        until(says, async || {
            let error = world.status().await["error"].clone();
            error.as_str().is_some_and(|error| error.contains(says))
        })
        .await;
        assert_eq!(world.status().await["certificate"], hash(&good.der));
        let mut client = world.connect().await.unwrap();
        assert_eq!(client.certificate, good.der, "{says}");
        assert_eq!(client.call(&token).await, ANSWER);
        assert_eq!(world.sidecar.admin("/readyz").await.0, 200);
        replace("tls.crt", &good.certificate);
        replace("tls.key", &good.key);
        until("all is well", async || {
            world.status().await["error"].is_null()
        })
        .await;
    }
    let log = || world.sidecar.log.lock().unwrap().clone();
    until("each fault is logged", async || {
        let log = log();
        let told = log.iter().filter(|line| line.contains("cannot be used"));
        told.count() >= 7
    })
    .await;
    let log = log();
    for line in good.key.lines().chain(other.key.lines()) {
        let is_secret = !line.starts_with('-') && !line.is_empty();
        assert!(!(is_secret && log.iter().any(|said| said.contains(line))));
    }
}

#[tokio::test]
async fn without_a_pair_it_is_not_ready_and_takes_it_when_it_comes() {
    let world = World::start().await;
    until("all but the certificate is there", async || {
        let (status, why) = world.sidecar.admin("/readyz").await;
        status == 503 && why.contains("no TLS certificate")
    })
    .await;
    let misses = async |file: &str| {
        until(file, async || {
            let status = world.status().await;
            assert_eq!(status["certificate"], Value::Null);
            let error = status["error"].as_str();
            error.is_some_and(|error| error.contains(file))
        })
        .await;
    };
    misses("tls.crt").await;
    assert!(world.connect().await.is_err(), "a handshake without a pair");
    let pair = world.authority.pair();
    std::fs::write(world.files.join("tls.crt"), &pair.certificate).unwrap();
    misses("tls.key").await;
    assert!(world.connect().await.is_err(), "a handshake without a key");
    assert_eq!(world.sidecar.admin("/readyz").await.0, 503);
    std::fs::write(world.files.join("tls.key"), &pair.key).unwrap();
    world.ready().await;
    let mut client = world.connect().await.unwrap();
    assert_eq!(client.call(&world.token()).await, ANSWER);
}

/// Each of them holds a place among connections for as long as it may.
#[tokio::test]
async fn who_is_slow_or_silent_is_cut_off() {
    let (world, _) = World::with(write_plainly).await;
    let (token, address) = (world.token(), world.sidecar.mcp);
    // The head of a record with a handshake message, and all but the rest of it.
    let part_of_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let shaken = async |said: &[u8]| {
        let config = world.authority.client(ALL_VERSIONS, &[b"http/1.1"]);
        let mut stream = shake_hands(address, &config).await.unwrap();
        stream.write_all(said).await.unwrap();
        stream.flush().await.unwrap();
        let received = end_of(&mut stream).await;
        assert_eq!(received, b"", "{said:?}");
    };
    let silent = async |said: &[u8]| {
        let received = world.raw(said).await;
        assert_eq!(received, b"", "{said:?}");
    };
    let others = async {
        let mut client = world.connect().await.unwrap();
        assert_eq!(client.call(&token).await, ANSWER);
    };
    tokio::join!(
        silent(b""),
        silent(part_of_hello),
        shaken(b""),
        shaken(b"POST /mcp HTTP/1.1\r\nhost: "),
        others
    );
}

#[tokio::test]
async fn on_a_laptop_it_is_a_flag() {
    let (script, files, config) = (
        Script::start(echo).await,
        common::folder(),
        common::folder(),
    );
    let authority = Authority::new();
    write_plainly(&files, &authority.pair());
    let file = config.join("server.yaml");
    let manifest = |more: &str| {
        format!(
            "apiVersion: toolward.dev/v1alpha1\nkind: McpServer\nmetadata: {{name: orders}}\nspec:\n  deployment: {{image: i}}\n  transport: {{type: StreamableHttp}}\n{more}---\napiVersion: toolward.dev/v1alpha1\nkind: McpToolPolicy\nmetadata: {{name: p}}\nspec:\n  targetRefs: [{{name: orders}}]\n  rules: [{{name: staff, effect: Allow, from: [{{groups: [staff]}}], tools: [\"*\"]}}]\n"
        )
    };
    let upstream = format!("http://{}/mcp", script.address);
    let run = |flags: &[&str]| {
        let mut command = Command::new(binary());
        command.args(["run", "--config"]).arg(&file);
        command.args(["--upstream", &upstream, "--dev-token", "alice:staff"]);
        command.args(flags);
        command
    };
    let tls = ["--tls", files.to_str().unwrap()];
    for (more, flags, says) in [
        ("  tls: {secretName: x}\n", &[][..], "by --tls FOLDER"),
        ("  url: http://127.0.0.1/mcp\n", &tls, "write an https URL"),
    ] {
        std::fs::write(&file, manifest(more)).unwrap();
        let output = run(flags)
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(says), "{said}");
    }
    for more in ["", "  tls: {secretName: x}\n"] {
        std::fs::write(&file, manifest(more)).unwrap();
        let issuer = sidecar::dev::DevIssuer::new().unwrap();
        let sidecar = Sidecar::start(run(&tls), common::folder(), issuer)
            .ready()
            .await;
        let line = |start: &str| {
            let log = sidecar.log.lock().unwrap();
            let at = log.iter().position(|line| line.contains(start))?;
            Some((log[at].clone(), log.get(at + 1)?.clone()))
        };
        until("the token is printed", async || {
            line("dev token for").is_some()
        })
        .await;
        let (listens, _) = line("listens on").unwrap();
        let (_, token) = line("dev token for").unwrap();
        let url = format!("https://{}/mcp", sidecar.mcp);
        assert!(listens.ends_with(&url), "{listens}");
        let mut client = Client::connect(sidecar.mcp, &authority.fresh())
            .await
            .unwrap();
        // Its Host is none of those of a laptop.
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str())];
        let reply = client
            .ask(Method::POST, "/mcp", &headers, "{}".into())
            .await;
        assert_eq!(reply.unwrap().status, 403);
        let stream = shake_hands(sidecar.mcp, &authority.client(ALL_VERSIONS, &[])).await;
        let local = call_as_local(stream.unwrap(), &sidecar, &token).await;
        assert!(local.starts_with("HTTP/1.1 200 "), "{local}");
    }
    for folder in [files, config] {
        std::fs::remove_dir_all(folder).unwrap();
    }
}

/// Calls by the URL that is printed.
async fn call_as_local(mut stream: TlsStream<TcpStream>, sidecar: &Sidecar, token: &str) -> String {
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).to_string();
    let request = format!(
        "POST /mcp HTTP/1.1\r\nhost: {}\r\nuser-agent: test\r\naccept: application/json, text/event-stream\r\ncontent-type: application/json\r\nconnection: close\r\nauthorization: Bearer {token}\r\ncontent-length: {}\r\n\r\n{call}",
        sidecar.mcp,
        call.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    String::from_utf8(end_of(&mut stream).await).unwrap()
}
