#![allow(clippy::unwrap_used)]

use policy::report::UpstreamState;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

/// A peer that answers one request with these bytes and then hangs.
async fn ask_peer(answer: Vec<u8>) -> (Result<Report, ProbeError>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let peer = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let length = stream.read(&mut request).await.unwrap();
        // The other side may hang up in the middle.
        let _ = stream.write_all(&answer).await;
        let request = String::from_utf8_lossy(&request[..length]).into_owned();
        (stream, request)
    };
    let (report, (_stream, request)) = futures::join!(report(address, "secret"), peer);
    (report, request)
}

async fn category(answer: &str) -> &'static str {
    let (report, _) = ask_peer(answer.as_bytes().to_vec()).await;
    report.unwrap_err().category()
}

#[tokio::test]
async fn a_report_is_read_without_waiting_for_the_connection_to_end() {
    let body = r#"{"bundle":{"hash":"h"},"upstream":{"state":"Serving"},"later":1}"#;
    let length = body.len();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
    let (report, request) = ask_peer(answer.into_bytes()).await;
    assert_eq!(report.unwrap().upstream.state, UpstreamState::Serving);
    assert!(request.starts_with("GET /status HTTP/1.1\r\n"), "{request}");
    assert!(
        request.contains("authorization: Bearer secret\r\n"),
        "{request}"
    );
}

#[tokio::test]
async fn a_hostile_peer_costs_little() {
    assert_eq!(category("").await, "Timeout");
    assert_eq!(
        category("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{").await,
        "Timeout"
    );
    assert_eq!(category("SSH-2.0-OpenSSH\r\n").await, "Invalid");
    assert_eq!(
        category("HTTP/1.1 401 Unauthorized\r\n\r\n").await,
        "Refused"
    );
    assert_eq!(
        category("HTTP/1.1 302 Found\r\nlocation: http://x/\r\n\r\n").await,
        "Refused"
    );
    assert_eq!(
        category("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]").await,
        "Invalid"
    );
    let huge = "x".repeat(2 * MAX_STATUS);
    let huge = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n200000\r\n{huge}");
    assert_eq!(category(&huge).await, "Invalid");
}

#[tokio::test]
async fn a_pod_without_a_listener_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = report(address, "secret").await.unwrap_err();
    assert_eq!(error.category(), "Unreachable");
}
