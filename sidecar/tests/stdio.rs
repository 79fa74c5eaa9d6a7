//! stdio servers behind the real shim and its Unix socket.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::{
    io::Read,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use bytes::Bytes;
use common::{Reply, Sidecar, allow, binary, bundle, folder, open, send, until};
use futures::StreamExt;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

struct Shim {
    child: Child,
    socket: PathBuf,
}

impl Shim {
    async fn start(peer_uid: u32, command: &[&str]) -> Self {
        let socket = std::env::temp_dir().join(format!(
            "toolward-{}-{}.sock",
            std::process::id(),
            folder().file_name().unwrap().to_string_lossy()
        ));
        let child = Command::new(binary())
            .args(["shim", "--socket"])
            .arg(&socket)
            .args(["--peer-uid", &peer_uid.to_string(), "--"])
            .args(command)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("the shim listens", async || socket.exists()).await;
        Self { child, socket }
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn script() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/stdio.py")
        .to_str()
        .unwrap()
        .to_owned()
}

async fn in_front_of(shim: &Shim) -> Sidecar {
    let limits = json!([{"name": "wide", "tools": ["*"], "requests": 1_000_000, "per": "1s"}]);
    Sidecar::serve(&["--socket", shim.socket.to_str().unwrap()], |issuer| {
        Some(bundle(issuer, allow(json!(["*"])), limits))
    })
    .await
}

async fn scripted() -> (Shim, Sidecar) {
    let shim = Shim::start(rustix::process::getuid().as_raw(), &["python3", &script()]).await;
    let sidecar = in_front_of(&shim).await.ready().await;
    (shim, sidecar)
}

async fn initialize(sidecar: &Sidecar, user: &str) -> Reply {
    let message = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25", "capabilities": {}}});
    // With line breaks, as a client may write it: for the server it must be one line.
    sidecar
        .post(
            &sidecar.token(user),
            &[],
            serde_json::to_string_pretty(&message).unwrap(),
        )
        .await
}

async fn session(sidecar: &Sidecar, user: &str) -> String {
    let reply = initialize(sidecar, user).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.headers["mcp-session-id"].to_str().unwrap().to_owned()
}

async fn call(sidecar: &Sidecar, user: &str, session: &str, id: Value, tool: &str) -> Reply {
    let message =
        json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool}});
    sidecar
        .post(
            &sidecar.token(user),
            &[("mcp-session-id", session)],
            message.to_string(),
        )
        .await
}

fn pid(reply: &Reply) -> u32 {
    reply.json()["result"]["content"][0]["text"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn each_session_has_a_process_that_nobody_else_reaches() {
    let (_shim, sidecar) = scripted().await;
    let (first, second) = (
        session(&sidecar, "alice").await,
        session(&sidecar, "alice").await,
    );
    assert!(first.len() > 32 && first.ends_with("-local") && first != second);
    let one = pid(&call(&sidecar, "alice", &first, json!(1), "pid").await);
    assert_eq!(
        one,
        pid(&call(&sidecar, "alice", &first, json!("1"), "noise").await)
    );
    assert_ne!(
        one,
        pid(&call(&sidecar, "alice", &second, json!(1), "pid").await)
    );
    for (user, session) in [
        ("bob", first.as_str()),
        ("alice", "00000000000000000000000000000000-local"),
    ] {
        let reply = call(&sidecar, user, session, json!(1), "pid").await;
        assert_eq!(
            (reply.status, &reply.json()["error"]["data"]["reason"]),
            (404, &json!("SessionUnknown"))
        );
    }
    let none = sidecar
        .call(
            &json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "pid"}}),
        )
        .await;
    assert_eq!(none.status, 400);

    let delete = Request::delete(format!("http://{}/mcp", sidecar.mcp))
        .header("mcp-session-id", &first)
        .header(
            "authorization",
            format!("Bearer {}", sidecar.token("alice")),
        );
    assert_eq!(
        send(delete.body(Full::default()).unwrap()).await.status,
        200
    );
    until("the process has ended", async || !runs(one)).await;
    assert_eq!(
        call(&sidecar, "alice", &first, json!(1), "pid")
            .await
            .status,
        404
    );
}

#[tokio::test]
async fn a_crash_is_told_to_the_calls_in_flight() {
    let (_shim, sidecar) = scripted().await;
    let session = session(&sidecar, "alice").await;
    let begun = sidecar.folder.join("begun");
    let hang = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "hang", "arguments": {"begun": begun}}});
    let token = sidecar.token("alice");
    // Without streams, the answer has a status of its own.
    let header = [
        ("mcp-session-id", session.as_str()),
        ("accept", "application/json"),
    ];
    let hanging = sidecar.post(&token, &header, hang.to_string());
    let crashing = async {
        until("the first call is in flight", async || begun.exists()).await;
        call(&sidecar, "alice", &session, json!(2), "crash").await
    };
    let (hung, crashed) = tokio::join!(hanging, crashing);
    for reply in [hung, crashed] {
        // What the server said last may hold secrets: callers do not get it.
        assert_eq!(reply.status, 502);
        assert_eq!(reply.json()["error"]["message"], "the server ended");
    }
    until("the log has its last words", async || {
        let log = sidecar.log.lock().unwrap();
        log.iter()
            .any(|line| line.contains("exit status: 3") && line.contains("the disk is full"))
    })
    .await;
    assert_eq!(
        call(&sidecar, "alice", &session, json!(3), "pid")
            .await
            .status,
        404,
        "the client is to start anew"
    );
    assert_eq!(
        sidecar.admin("/readyz").await.0,
        200,
        "one session's crash is not the server's"
    );
}

#[tokio::test]
async fn a_server_that_cannot_start_says_so() {
    for command in [
        vec!["sh", "-c", "echo no licence found >&2; exit 4"],
        vec!["/no/such/server"],
    ] {
        let shim = Shim::start(rustix::process::getuid().as_raw(), &command).await;
        let sidecar = in_front_of(&shim).await;
        let says = if command.len() > 1 {
            "no licence found"
        } else {
            "cannot be started"
        };
        until("the failure is reported", async || {
            let (_, report) = sidecar.admin("/status").await;
            report.contains("\"Failed\"") && report.contains(says)
        })
        .await;
        let (status, why) = sidecar.admin("/readyz").await;
        assert!(status == 503 && !why.contains(says), "{why}");
        assert_eq!(initialize(&sidecar, "alice").await.status, 502);
    }
}

#[tokio::test]
async fn what_the_server_says_by_itself_comes_on_the_stream() {
    let (_shim, sidecar) = scripted().await;
    let session = session(&sidecar, "alice").await;
    let get = || {
        Request::get(format!("http://{}/mcp", sidecar.mcp))
            .header("accept", "text/event-stream")
            .header("mcp-session-id", &session)
            .header(
                "authorization",
                format!("Bearer {}", sidecar.token("alice")),
            )
            .body(Full::<Bytes>::default())
            .unwrap()
    };
    let mut stream = open(get()).await.into_body().into_data_stream();
    assert_eq!(
        stream.next().await.unwrap().unwrap(),
        "id: 0-0\nretry: 1000\ndata: \n\n"
    );
    assert_eq!(send(get()).await.status, 409, "one stream at a time");
    let notify =
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "notify"}});
    let json_only = [
        ("mcp-session-id", session.as_str()),
        ("accept", "application/json"),
    ];
    let reply = sidecar
        .post(&sidecar.token("alice"), &json_only, notify.to_string())
        .await;
    assert_eq!(reply.status, 200);
    let event = String::from_utf8(stream.next().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(
        event.contains("notifications/message") && event.contains("hello"),
        "{event}"
    );
}

#[tokio::test]
async fn processes_are_bounded() {
    let (_shim, sidecar) = scripted().await;
    // No caller can take all places: the longest idle session makes room.
    let first = session(&sidecar, "alice").await;
    for _ in 0..25 {
        session(&sidecar, "alice").await;
    }
    let reply = call(&sidecar, "alice", &first, json!(1), "pid").await;
    assert_eq!(reply.status, 404);
    // Nor anybody more than there are.
    for _ in 0..25 {
        session(&sidecar, "bob").await;
    }
    let reply = initialize(&sidecar, "carol").await;
    assert_eq!(
        (reply.status, &reply.json()["error"]["data"]["reason"]),
        (503, &json!("Overloaded"))
    );
    until("they are counted", async || {
        let (_, metrics) = sidecar.admin("/metrics").await;
        metrics.contains("toolward_stdio_processes 50")
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_nobody_waits_for_goes_to_nobody() {
    let (_shim, sidecar) = scripted().await;
    let session = session(&sidecar, "alice").await;
    let (begun, release) = (sidecar.folder.join("begun"), sidecar.folder.join("release"));
    let slow = json!({"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": {"name": "slow", "arguments": {"begun": begun, "release": release}}}).to_string();
    let body = format!(
        "POST /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nMcp-Session-Id: {session}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{slow}",
        sidecar.token("alice"),
        slow.len(),
    );
    use std::io::Write;
    let mut leaving = std::net::TcpStream::connect(sidecar.mcp).unwrap();
    leaving.write_all(body.as_bytes()).unwrap();
    until("the call is in flight", async || begun.exists()).await;
    drop(leaving);
    // Until its answer came, the id is taken; then it is free again.
    assert_eq!(
        call(&sidecar, "alice", &session, json!(5), "pid")
            .await
            .status,
        400
    );
    std::fs::write(&release, "").unwrap();
    until("the id is free", async || {
        call(&sidecar, "alice", &session, json!(5), "pid")
            .await
            .status
            == 200
    })
    .await;
}

#[tokio::test]
async fn failed_handshakes_leave_no_process() {
    let (_shim, sidecar) = scripted().await;
    for _ in 0..30 {
        let message =
            json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"fail": true}});
        let reply = sidecar
            .post(&sidecar.token("alice"), &[], message.to_string())
            .await;
        assert!(
            reply.status == 200 && reply.json()["error"].is_object(),
            "{reply:?}"
        );
        assert!(!reply.headers.contains_key("mcp-session-id"));
    }
    until("all processes have ended", async || {
        sidecar
            .admin("/metrics")
            .await
            .1
            .contains("toolward_stdio_processes 0")
    })
    .await;
}

#[tokio::test]
async fn the_shim_serves_its_sidecar_only_and_leaves_no_process() {
    let stranger = Shim::start(
        rustix::process::getuid().as_raw() + 1,
        &["python3", &script()],
    )
    .await;
    let mut answer = Vec::new();
    // Refused: closed without a byte.
    let _ = UnixStream::connect(&stranger.socket)
        .unwrap()
        .read_to_end(&mut answer);
    assert_eq!(answer, b"");

    let (mut shim, sidecar) = scripted().await;
    let session = session(&sidecar, "alice").await;
    let process = pid(&call(&sidecar, "alice", &session, json!(1), "pid").await);
    assert!(
        Command::new("kill")
            .args(["-TERM", &shim.child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    until("the shim has ended", async || {
        shim.child.try_wait().unwrap().is_some()
    })
    .await;
    until("its process has ended", async || !runs(process)).await;
    assert_eq!(
        call(&sidecar, "alice", &session, json!(2), "pid")
            .await
            .status,
        404
    );
}
