//! Probes of the app by the real binary: the kubelet asks the admin port, the
//! sidecar asks the app on loopback.
#![allow(clippy::unwrap_used, missing_docs)]

use sidecar_tests::common;

use std::{
    net::SocketAddr,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{Script, Sidecar, allow, binary, bundle, echo, folder, send, until};
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// An app whose answers are in the paths.
struct App {
    port: u16,
    seen: Arc<Mutex<Seen>>,
    /// Answers `/held`.
    release: watch::Sender<bool>,
}

#[derive(Default)]
struct Seen {
    /// Heads of requests.
    heads: Vec<String>,
    /// Requests that are being answered, now and at most.
    open: usize,
    most: usize,
}

impl App {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::<Mutex<Seen>>::default();
        let (release, held) = watch::channel(false);
        let app = Arc::clone(&seen);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answer(stream, Arc::clone(&app), held.clone()));
            }
        });
        Self {
            port,
            seen,
            release,
        }
    }

    fn heads(&self, path: &str) -> Vec<String> {
        let first = format!("GET {path} HTTP/1.1\r\n");
        let seen = self.seen.lock().unwrap();
        let heads = seen.heads.iter().filter(|head| head.starts_with(&first));
        heads.cloned().collect()
    }
}

async fn answer(mut stream: TcpStream, seen: Arc<Mutex<Seen>>, mut held: watch::Receiver<bool>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return, // A connection was all that was asked for.
        }
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    {
        let mut seen = seen.lock().unwrap();
        seen.heads.push(head);
        seen.open += 1;
        seen.most = seen.most.max(seen.open);
    }
    let status = match path.as_str() {
        "/moved" => "302 Found\r\nLocation: /final?x=1#there",
        "/away" => "301 Moved Permanently\r\nLocation: http://elsewhere.example/never",
        "/secure" => "307 Temporary Redirect\r\nLocation: https://app.internal/never",
        "/loop" => "303 See Other\r\nLocation: /loop",
        "/bad" => "500 Internal Server Error",
        "/gone" => "",
        "/held" => {
            let _ = held.wait_for(|is_released| *is_released).await;
            "200 OK"
        }
        // Longer than the admin port takes for all else.
        "/late" => {
            tokio::time::sleep(Duration::from_millis(2500)).await;
            "204 No Content"
        }
        _ => "200 OK",
    };
    seen.lock().unwrap().open -= 1;
    if !status.is_empty() {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}

async fn sidecar(probes: &Value) -> Sidecar {
    let script = Script::start(echo).await;
    let upstream = format!("http://{}/mcp", script.address);
    let probes = probes.to_string();
    let limits = json!([{"name": "wide", "tools": ["*"], "requests": 1000, "per": "1s"}]);
    Sidecar::serve(
        &["--upstream", &upstream, "--app-probes", &probes],
        |issuer| Some(bundle(issuer, allow(json!(["*"])), limits)),
    )
    .await
}

/// As the kubelet asks: without a token.
async fn asked(admin: SocketAddr, path: &str) -> (u16, String) {
    let request = Request::get(format!("http://{admin}{path}")).body(Full::default());
    let reply = send(request.unwrap()).await;
    let body = String::from_utf8(reply.body.to_vec()).unwrap();
    (reply.status, body)
}

#[tokio::test]
async fn the_kubelet_learns_how_the_app_is() {
    let app = App::start().await;
    let port = app.port;
    // Nobody listens there any more.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = closed.local_addr().unwrap().port();
    drop(closed);
    let get = |path: &str| {
        let headers = json!([{"name": "Host", "value": "app.internal"}]);
        json!({"httpGet": {"port": port, "path": path, "httpHeaders": headers}, "timeoutSeconds": 60})
    };
    let sidecar = sidecar(&json!({
        "web/liveness": get("/well"),
        "web/readiness": get("/moved"),
        "web/startup": get("/bad"),
        "tail/liveness": get("/gone"),
        "tail/readiness": {"tcpSocket": {"port": port}},
        "tail/startup": {"tcpSocket": {"port": nobody}, "timeoutSeconds": 60},
        "late/startup": get("/late"),
        "none/startup": {"httpGet": {"port": nobody}, "timeoutSeconds": 60},
        "away/liveness": get("/away"),
        "away/readiness": get("/secure"),
        "away/startup": get("/loop"),
    }))
    .await;
    for (name, status, said) in [
        ("web/liveness", 200, "ok\n"),
        ("web/readiness", 200, "ok\n"),
        ("web/startup", 503, "the app answered 500\n"),
        ("tail/liveness", 503, "no answer: "),
        ("tail/readiness", 200, "ok\n"),
        ("tail/startup", 503, "no connection to 127.0.0.1:"),
        ("late/startup", 200, "ok\n"),
        ("none/startup", 503, "no connection to 127.0.0.1:"),
        ("away/liveness", 200, "ok\n"),
        (
            "away/readiness",
            503,
            "the app redirects to \"https://app.internal/never\"",
        ),
        ("away/startup", 503, "the app redirects more than 10 times"),
        ("web/other", 404, "try /healthz"),
        ("web/liveness/", 404, "try /healthz"),
    ] {
        let (found, body) = asked(sidecar.admin, &format!("/probe/{name}")).await;
        assert_eq!(found, status, "{name}: {body}");
        assert!(body.starts_with(said), "{name}: {body}");
    }
    assert_eq!(app.heads("/final?x=1").len(), 1);
    assert_eq!(app.heads("/loop").len(), 11);
    assert_eq!(app.heads("/never"), [""; 0], "it left the app's port");
    let post = Request::post(format!("http://{}/probe/web/liveness", sidecar.admin));
    let post = send(post.body(Full::default()).unwrap()).await;
    assert_eq!(post.status, 405);
    assert_eq!(app.heads("/well").len(), 1);
}

#[tokio::test]
async fn the_app_sees_the_probe_that_was_written() {
    let app = App::start().await;
    let headers = json!([
        {"name": "X-Probe", "value": "$(NAME) \"1\""},
        {"name": "X-Probe", "value": "2"},
        {"name": "Host", "value": "orders.internal"},
        {"name": "Content-Length", "value": "7"},
    ]);
    let sidecar = sidecar(&json!({
        "web/liveness": {"httpGet": {"port": app.port, "path": "/a%20b?x=1&y={}", "httpHeaders": headers}},
        "web/startup": {"httpGet": {"port": app.port}},
    }))
    .await;
    for name in ["web/liveness", "web/startup"] {
        let request = Request::get(format!("http://{}/probe/{name}?x=2", sidecar.admin))
            .header("x-of-the-caller", "1")
            .header("cookie", "a=b");
        let reply = send(request.body(Full::default()).unwrap()).await;
        assert_eq!(reply.status, 200);
    }
    let lines = |path: &str| -> Vec<String> {
        let heads = app.heads(path);
        assert_eq!(heads.len(), 1, "{heads:?}");
        let mut lines: Vec<_> = heads[0].trim().lines().skip(1).map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let agent = format!(
        "user-agent: kube-probe/1 toolward/{}",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(
        lines("/a%20b?x=1&y={}"),
        [
            "accept: */*",
            "connection: close",
            "host: orders.internal",
            agent.as_str(),
            "x-probe: $(NAME) \"1\"",
            "x-probe: 2",
        ]
    );
    assert_eq!(
        lines("/"),
        [
            "accept: */*",
            "connection: close",
            format!("host: 127.0.0.1:{}", app.port).as_str(),
            agent.as_str(),
        ]
    );
}

/// Whoever reaches the admin port cannot make the app work: one probe of a kind is
/// made at a time, and all who ask get its outcome.
#[tokio::test]
async fn one_probe_of_a_kind_is_made_at_a_time() {
    let app = App::start().await;
    let held = json!({"httpGet": {"port": app.port, "path": "/held"}, "timeoutSeconds": 60});
    let sidecar = sidecar(&json!({"web/liveness": held})).await;
    let admin = sidecar.admin;
    let askers = (0..50).map(|_| tokio::spawn(asked(admin, "/probe/web/liveness")));
    let askers: Vec<_> = askers.collect();
    until("the app is asked", async || !app.heads("/held").is_empty()).await;
    // All else is answered meanwhile.
    assert_eq!(sidecar.admin("/healthz").await.0, 200);
    app.release.send_replace(true);
    for asker in askers {
        assert_eq!(asker.await.unwrap(), (200, "ok\n".to_owned()));
    }
    assert_eq!(app.seen.lock().unwrap().most, 1);
}

#[tokio::test]
async fn a_probe_ends_at_its_timeout() {
    let app = App::start().await;
    let held = json!({"httpGet": {"port": app.port, "path": "/held"}, "timeoutSeconds": 1});
    let sidecar = sidecar(&json!({"web/liveness": held})).await;
    for _ in 0..2 {
        assert_eq!(
            asked(sidecar.admin, "/probe/web/liveness").await,
            (503, "no answer within 1 s\n".to_owned())
        );
    }
    app.release.send_replace(true);
    until("the app is well", async || {
        asked(sidecar.admin, "/probe/web/liveness").await.0 == 200
    })
    .await;
}

#[test]
fn an_argument_that_cannot_be_used_ends_it() {
    let output = Command::new(binary())
        .args(["serve", "--upstream", "http://127.0.0.1:1/mcp"])
        .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .arg("--bundle")
        .arg(folder())
        .args([
            "--app-probes",
            "{\"web/liveness\":{\"tcpSocket\":{\"port\":1,\"host\":\"10.0.0.1\"}}}",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let wanted = "--app-probes: web/liveness: host \"10.0.0.1\": only 127.0.0.1 is asked";
    assert!(said.contains(wanted), "{said}");
}
