//! stdio servers behind the real shim and its Unix socket.
#![allow(clippy::unwrap_used, missing_docs)]

use sidecar_tests::common;

use std::{io::Read, os::unix::net::UnixStream, process::Command, time::Duration};

use bytes::Bytes;
use common::{PATIENCE, Reply, Shim, Sidecar, allow, bundle, folder, open, script, send, until};
use futures::StreamExt;
use http::Request;
use http_body_util::{BodyDataStream, BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};

async fn in_front_of(shim: &Shim) -> Sidecar {
    with(shim, &[]).await
}

async fn with(shim: &Shim, arguments: &[&str]) -> Sidecar {
    let target = [&["--socket", shim.socket.to_str().unwrap()], arguments].concat();
    let limits = json!([{"name": "wide", "tools": ["*"], "requests": 1_000_000, "per": "1s"}]);
    Sidecar::serve(&target, |issuer| {
        Some(bundle(issuer, allow(json!(["*"])), limits))
    })
    .await
    .configured()
    .await
}

async fn scripted() -> (Shim, Sidecar) {
    scripted_with(&[]).await
}

async fn scripted_with(arguments: &[&str]) -> (Shim, Sidecar) {
    let shim = Shim::start(rustix::process::getuid().as_raw(), &["python3", &script()]).await;
    let sidecar = with(&shim, arguments).await.ready().await;
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

/// Says in a session what the id and the token of another one are as well, and
/// gets what belongs to it.
async fn hears_only_its_own(sidecar: &Sidecar, user: &str, session: &str) {
    for n in 0..30 {
        let tool = if n % 2 == 0 { "echo" } else { "progress" };
        let params =
            json!({"name": tool, "arguments": {"of": user, "n": n}, "_meta": {"progressToken": 1}});
        let message = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
        let headers = [("mcp-session-id", session)];
        let reply = sidecar
            .post(&sidecar.token(user), &headers, message.to_string())
            .await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let text = String::from_utf8(reply.body.to_vec()).unwrap();
        assert!(text.contains(user) && text.contains(r#""id":1,"#), "{text}");
        let other = if user == "alice" { "bob" } else { "alice" };
        assert!(!text.contains(other), "{user} got {text}");
        if tool == "progress" {
            assert!(
                text.contains("notifications/progress") && text.contains(r#""progressToken":1"#),
                "{text}"
            );
        }
    }
}

#[tokio::test]
async fn callers_of_a_shared_process_are_told_apart() {
    let (_shim, sidecar) = scripted_with(&["--process", "shared"]).await;
    let (alice, bob) = (
        session(&sidecar, "alice").await,
        session(&sidecar, "bob").await,
    );
    let process = pid(&call(&sidecar, "alice", &alice, json!(1), "pid").await);
    assert_eq!(
        process,
        pid(&call(&sidecar, "bob", &bob, json!(1), "pid").await)
    );
    let mut stream = listen(&sidecar, &bob, "bob", None).await;
    assert!(
        stream
            .next()
            .await
            .unwrap()
            .unwrap()
            .starts_with(b"id: 0-0")
    );
    // Log messages without a request are nobody's here.
    assert_eq!(
        call(&sidecar, "alice", &alice, json!(2), "notify")
            .await
            .status,
        200
    );
    tokio::join!(
        hears_only_its_own(&sidecar, "alice", &alice),
        hears_only_its_own(&sidecar, "bob", &bob),
    );
    let heard = tokio::time::timeout(Duration::from_millis(300), stream.next()).await;
    assert!(heard.is_err(), "bob heard {heard:?}");
    // The end of one session is not the end of the process.
    let delete = Request::delete(format!("http://{}/mcp", sidecar.mcp))
        .header("mcp-session-id", &alice)
        .header(
            "authorization",
            format!("Bearer {}", sidecar.token("alice")),
        );
    assert_eq!(
        send(delete.body(Full::default()).unwrap()).await.status,
        200
    );
    assert_eq!(
        process,
        pid(&call(&sidecar, "bob", &bob, json!(3), "pid").await)
    );

    // A crash ends all sessions; the next one gets a process that runs.
    let crashed = call(&sidecar, "bob", &bob, json!(4), "crash").await;
    assert!(crashed.json()["error"].is_object(), "{crashed:?}");
    until("the session is over", async || {
        call(&sidecar, "bob", &bob, json!(5), "pid").await.status == 404
    })
    .await;
    let again = session(&sidecar, "bob").await;
    assert_ne!(
        process,
        pid(&call(&sidecar, "bob", &again, json!(1), "pid").await)
    );
}

#[tokio::test]
async fn a_process_for_each_user() {
    let (_shim, sidecar) = scripted_with(&["--process", "per-user"]).await;
    let (first, second) = (
        session(&sidecar, "alice").await,
        session(&sidecar, "alice").await,
    );
    let bob = session(&sidecar, "bob").await;
    let alices = pid(&call(&sidecar, "alice", &first, json!(1), "pid").await);
    assert_eq!(
        alices,
        pid(&call(&sidecar, "alice", &second, json!(1), "pid").await)
    );
    assert_ne!(
        alices,
        pid(&call(&sidecar, "bob", &bob, json!(1), "pid").await)
    );
    assert_eq!(
        call(&sidecar, "bob", &first, json!(1), "pid").await.status,
        404
    );
}

#[tokio::test]
async fn a_handshake_has_its_time() {
    let file = folder().join("pid");
    let command = format!("echo $$ > {}; exec sleep 600", file.display());
    let shim = Shim::start(rustix::process::getuid().as_raw(), &["sh", "-c", &command]).await;
    let sidecar = with(&shim, &["--startup-timeout", "1s"]).await;
    until("the process runs", async || {
        std::fs::read_to_string(&file).is_ok_and(|pid| pid.ends_with('\n'))
    })
    .await;
    let process: u32 = std::fs::read_to_string(&file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    until("the failure is reported", async || {
        let (_, report) = sidecar.admin("/status").await;
        report.contains("\"Failed\"") && report.contains("did not answer within 1 s")
    })
    .await;
    until("the process was ended", async || !runs(process)).await;
}

#[tokio::test]
async fn batches_get_all_their_answers() {
    let (_shim, sidecar) = scripted().await;
    let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-03-26", "capabilities": {}}});
    let reply = sidecar.call(&hello).await;
    let session = reply.headers["mcp-session-id"].to_str().unwrap().to_owned();
    let call = |id: Value, n: u32| json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": "echo", "arguments": {"n": n}}});
    let cancelled = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "none"}});
    let headers = [("mcp-session-id", session.as_str())];
    let batch = json!([call(json!("a"), 1), cancelled, call(json!(2), 2)]);
    let reply = sidecar
        .post(&sidecar.token("alice"), &headers, batch.to_string())
        .await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let mut answers: Vec<_> = reply
        .json()
        .as_array()
        .unwrap()
        .iter()
        .map(|answer| {
            (
                answer["id"].to_string(),
                answer["result"]["content"][0]["text"].to_string(),
            )
        })
        .collect();
    answers.sort();
    let told = |n: u32| json!(json!({"n": n}).to_string().replace(':', ": ")).to_string();
    assert_eq!(
        answers,
        [("\"a\"".to_owned(), told(1)), ("2".to_owned(), told(2))]
    );
    let only = sidecar
        .post(
            &sidecar.token("alice"),
            &headers,
            json!([cancelled]).to_string(),
        )
        .await;
    assert_eq!((only.status, only.body.len()), (202, 0));
}

/// The stream of a session, or one that broke after an event.
async fn listen(
    sidecar: &Sidecar,
    session: &str,
    user: &str,
    after: Option<&str>,
) -> BodyDataStream<Incoming> {
    let mut get = Request::get(format!("http://{}/mcp", sidecar.mcp))
        .header("accept", "text/event-stream")
        .header("mcp-session-id", session)
        .header("authorization", format!("Bearer {}", sidecar.token(user)));
    if let Some(after) = after {
        get = get.header("last-event-id", after);
    }
    let answer = open(get.body(Full::<Bytes>::default()).unwrap()).await;
    assert_eq!(answer.status(), 200);
    answer.into_body().into_data_stream()
}

/// The next event that says something, and its id.
async fn event(stream: &mut BodyDataStream<Incoming>) -> (String, String) {
    loop {
        let frame = tokio::time::timeout(PATIENCE, stream.next()).await;
        let text = String::from_utf8(frame.unwrap().unwrap().unwrap().to_vec()).unwrap();
        if text.contains("jsonrpc") {
            let id = text
                .lines()
                .find_map(|line| line.strip_prefix("id: "))
                .unwrap()
                .to_owned();
            return (id, text);
        }
    }
}

#[tokio::test]
async fn a_stream_that_broke_goes_on_after_its_last_event() {
    let (_shim, sidecar) = scripted().await;
    let session = session(&sidecar, "alice").await;
    let token = sidecar.token("alice");
    let headers = [
        ("mcp-session-id", session.as_str()),
        ("accept", "application/json"),
    ];
    let notify = async |id: u32| {
        let message = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": "notify"}});
        assert_eq!(
            sidecar
                .post(&token, &headers, message.to_string())
                .await
                .status,
            200
        );
    };
    let mut stream = listen(&sidecar, &session, "alice", None).await;
    notify(1).await;
    let (first, _) = event(&mut stream).await;
    drop(stream);
    notify(2).await;
    notify(3).await;
    let mut stream = listen(&sidecar, &session, "alice", Some(&first)).await;
    let (second, _) = event(&mut stream).await;
    let (third, _) = event(&mut stream).await;
    assert!(
        first != second && second != third,
        "{first}, {second}, {third}"
    );
    // Once more, from the same event on: what was lost on the way is there still.
    let mut stream = listen(&sidecar, &session, "alice", Some(&first)).await;
    assert_eq!(event(&mut stream).await.0, second);

    // The stream of a call, which goes on without its caller.
    let (begun, release) = (sidecar.folder.join("begun"), sidecar.folder.join("release"));
    let slow = json!({"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": {"name": "slow", "arguments": {"begun": begun, "release": release}}});
    let call = Request::post(format!("http://{}/mcp", sidecar.mcp))
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("mcp-session-id", &session)
        .header("authorization", format!("Bearer {token}"))
        .body(Full::new(Bytes::from(slow.to_string())))
        .unwrap();
    let mut stream = open(call).await.into_body().into_data_stream();
    let primed = String::from_utf8(stream.next().await.unwrap().unwrap().to_vec()).unwrap();
    let last = primed
        .lines()
        .find_map(|line| line.strip_prefix("id: "))
        .unwrap()
        .to_owned();
    drop(stream);
    std::fs::write(&release, "").unwrap();
    let mut stream = listen(&sidecar, &session, "alice", Some(&last)).await;
    let (_, answer) = event(&mut stream).await;
    assert!(
        answer.contains(r#""id":9"#) && answer.contains("content"),
        "{answer}"
    );
    // Nobody else's, whatever id they name.
    let get = Request::get(format!("http://{}/mcp", sidecar.mcp))
        .header("mcp-session-id", &session)
        .header("last-event-id", &last)
        .header("authorization", format!("Bearer {}", sidecar.token("bob")));
    assert_eq!(send(get.body(Full::default()).unwrap()).await.status, 404);
}

#[tokio::test]
async fn a_server_of_the_first_revision_works_with_its_header() {
    let (_shim, sidecar) = scripted().await;
    let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2024-11-05", "capabilities": {}}});
    let token = sidecar.token("alice");
    let hello = sidecar.post(&token, &[], hello.to_string()).await;
    assert_eq!(hello.json()["result"]["protocolVersion"], "2024-11-05");
    let session = hello.headers["mcp-session-id"].to_str().unwrap();
    let call =
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "pid"}});
    let status = async |revision: &str| {
        let headers = [
            ("mcp-session-id", session),
            ("mcp-protocol-version", revision),
        ];
        sidecar
            .post(&token, &headers, call.to_string())
            .await
            .status
    };
    assert_eq!(status("2024-11-05").await, 200);
    assert_eq!(status("2024-11-04").await, 400, "there is no such revision");
}

#[tokio::test]
async fn an_idle_session_ends_with_its_process() {
    let (_shim, sidecar) = scripted_with(&["--idle-timeout", "1s"]).await;
    let session = session(&sidecar, "alice").await;
    let (begun, release) = (sidecar.folder.join("begun"), sidecar.folder.join("release"));
    let slow = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "slow", "arguments": {"begun": begun, "release": release}}});
    // A call that takes longer than the time-out is no idleness.
    let token = sidecar.token("alice");
    let headers = [
        ("mcp-session-id", session.as_str()),
        ("accept", "application/json"),
    ];
    let (reply, ()) = tokio::join!(sidecar.post(&token, &headers, slow.to_string()), async {
        until("the call is in flight", async || begun.exists()).await;
        tokio::time::sleep(Duration::from_secs(3)).await; // It is the time that matters.
        std::fs::write(&release, "").unwrap();
    });
    let process = pid(&reply);
    until("the process has ended", async || !runs(process)).await;
    let reply = call(&sidecar, "alice", &session, json!(2), "pid").await;
    assert_eq!(
        (reply.status, &reply.json()["error"]["data"]["reason"]),
        (404, &json!("SessionUnknown"))
    );
}

/// A server that reads nothing: what it is sent waits in bounded pipes, callers
/// wait for it, others are served, and its end is told to all who wait.
#[tokio::test]
async fn a_deaf_server_holds_back_its_own_callers_only() {
    const CALLS: usize = 16;
    let (_shim, sidecar) = scripted().await;
    let (deaf, other) = (
        session(&sidecar, "alice").await,
        session(&sidecar, "bob").await,
    );
    let process = pid(&call(&sidecar, "alice", &deaf, json!(0), "pid").await);
    let (begun, release) = (sidecar.folder.join("begun"), sidecar.folder.join("release"));
    let token = sidecar.token("alice");
    let headers = [("mcp-session-id", deaf.as_str())];
    let slow = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "slow", "arguments": {"begun": begun, "release": release}}});
    let large = |id: usize| {
        let arguments = json!({"a": "x".repeat(1 << 20)});
        json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": "echo", "arguments": arguments}})
    };
    let stuck = async {
        let calls = (2..2 + CALLS).map(|id| sidecar.post(&token, &headers, large(id).to_string()));
        let first = sidecar.post(&token, &headers, slow.to_string());
        tokio::join!(first, futures::future::join_all(calls))
    };
    let others = async {
        until("the server is busy", async || begun.exists()).await;
        for id in 0..100 {
            let reply = call(&sidecar, "bob", &other, json!(id), "pid").await;
            assert_eq!(reply.status, 200);
        }
        let process = i32::try_from(process).unwrap();
        let process = rustix::process::Pid::from_raw(process).unwrap();
        rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    };
    let ((first, rest), ()) = tokio::join!(stuck, others);
    for reply in rest.iter().chain([&first]) {
        let reason = &reply.json()["error"]["data"]["reason"];
        assert!(
            [json!("UpstreamUnavailable"), json!("SessionUnknown")].contains(reason),
            "{reply:?}"
        );
    }
}
