//! `toolward-sidecar shim`: runs in the server's container, starts the server's
//! command for each connection of the sidecar and splices its standard input
//! and output to a Unix socket. No port, so nothing to go around.

use std::{
    collections::VecDeque,
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    process::{Child, ChildStderr, ChildStdin, Command},
    signal::unix::{SignalKind, signal},
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
};

use crate::frame::{self, Frame, MAX_PAYLOAD};

/// Connections, and so processes, at most.
const MAX_CONNECTIONS: usize = 64;
/// What is kept of a process's standard error, in bytes.
const TAIL: usize = 1024;
/// What is held of input that a process does not read, in parts of 64 KiB.
const HELD_PARTS: usize = 64;
/// A process that reads nothing for this time, though much waits, is given up.
const STUCK: Duration = Duration::from_secs(60);
/// Time for a process to end by itself, and again after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);

/// Listens on `socket` and serves until SIGTERM. Only processes of user
/// `peer_uid` are served.
///
/// # Errors
/// Where the socket cannot be made.
pub async fn listen(socket: &Path, peer_uid: u32, command: &[String]) -> anyhow::Result<()> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error)
                .with_context(|| format!("the old socket {} cannot be removed", socket.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket)
        .with_context(|| format!("no socket can be made at {}", socket.display()))?;
    // The sidecar has a user of its own; who connects is checked by SO_PEERCRED.
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666))?;
    let mut stop = signal(SignalKind::terminate())?;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (stopping, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = stop.recv() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        if accepted.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await; // No descriptors left, most likely.
        }
        let Some(stream) = accepted
            .ok()
            .map(|(stream, _)| stream)
            .filter(|stream| is_peer(stream, peer_uid))
        else {
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!("all {MAX_CONNECTIONS} connections are in use; one is refused");
            continue;
        };
        let (command, stopped) = (command.to_vec(), stopped.clone());
        connections.spawn(async move {
            serve(stream, &command, stopped).await;
            drop(place);
        });
    }
    drop(listener);
    // The sidecar has finished its calls by now (its preStop hook runs first):
    // close each standard input, wait, SIGTERM, wait, SIGKILL.
    stopping.send_replace(true);
    let all = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(4 * GRACE, all).await; // What is left ends with its group.
    connections.shutdown().await;
    Ok(())
}

fn is_peer(stream: &UnixStream, peer_uid: u32) -> bool {
    let uid = stream.peer_cred().map(|cred| cred.uid());
    let is_peer = uid.as_ref().is_ok_and(|uid| *uid == peer_uid);
    if !is_peer {
        tracing::warn!(?uid, peer_uid, "a connection of another user is refused");
    }
    is_peer
}

/// Serves one connection: starts the command, splices, reports its end.
pub async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    command: &[String],
    stop: watch::Receiver<bool>,
) {
    let (read, mut write) = tokio::io::split(stream);
    let spawned = Command::new(command.first().map_or("", String::as_str))
        .args(command.get(1..).unwrap_or_default())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let end = match spawned {
        Ok(child) => splice(child, read, &mut write, stop).await,
        Err(error) => format!("{command:?} cannot be started: {error}"),
    };
    tracing::info!(?end, "the server's process ended");
    // The sidecar may be gone, or not reading.
    let _ = tokio::time::timeout(GRACE, frame::write(&mut write, &Frame::Exit(end))).await;
}

async fn splice(
    mut child: Child,
    read: impl AsyncRead + Send + Unpin + 'static,
    write: &mut (impl AsyncWrite + Unpin),
    mut stop: watch::Receiver<bool>,
) -> String {
    let _group = Group(child.id());
    let (Some(stdin), Some(mut stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return "the process has no standard streams".into();
    };
    let tail = Tail::default();
    let stderr = tokio::spawn(copy_stderr(stderr, tail.clone()));
    let mut input = tokio::spawn(feed(read, stdin));
    let stop_input = input.abort_handle();
    let output = async {
        let mut buffer = vec![0; MAX_PAYLOAD];
        while let Ok(n @ 1..) = stdout.read(&mut buffer).await {
            if frame::write(write, &Frame::Stdout(Bytes::copy_from_slice(&buffer[..n])))
                .await
                .is_err()
            {
                break;
            }
        }
    };
    let closing = async {
        tokio::select! {
            _ = &mut input => {}
            _ = stop.wait_for(|stop| *stop) => stop_input.abort(), // Which closes the standard input.
        }
        tokio::time::sleep(GRACE).await; // Now the process is to end by itself.
    };
    tokio::pin!(output, closing);
    let mut output_done = false;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            () = &mut output, if !output_done => output_done = true,
            () = &mut closing => break terminate(&mut child).await,
        }
    };
    stop_input.abort();
    if !output_done {
        // What it wrote last; a child of its own may keep the pipe open.
        let _ = tokio::time::timeout(GRACE, output).await;
    }
    let _ = tokio::time::timeout(GRACE, stderr).await;
    describe(status, &tail.text())
}

/// Hands on what the sidecar sends, until it closes. What a process does not
/// read is held up to a bound, so that the end of the connection is seen; a
/// process that reads nothing for a while is given up.
async fn feed(mut read: impl AsyncRead + Unpin, mut stdin: ChildStdin) {
    let (sender, mut parts) = mpsc::channel::<Bytes>(HELD_PARTS);
    let receive = async move {
        let mut buffer = vec![0; MAX_PAYLOAD];
        while let Ok(n @ 1..) = read.read(&mut buffer).await {
            let part = Bytes::copy_from_slice(&buffer[..n]);
            if sender.send_timeout(part, STUCK).await.is_err() {
                break;
            }
        }
        sender // Keeps the channel open until the grace time of a full one is over.
    };
    let write = async move {
        while let Some(part) = parts.recv().await {
            if stdin.write_all(&part).await.is_err() {
                return;
            }
        }
    };
    tokio::pin!(receive, write);
    tokio::select! {
        sender = &mut receive => {
            drop(sender);
            let _ = tokio::time::timeout(GRACE, write).await; // What is held is still handed on.
        }
        () = &mut write => {}
    }
}

async fn terminate(child: &mut Child) -> io::Result<ExitStatus> {
    if let Some(group) = pid(child.id()) {
        let _ = kill_process_group(group, Signal::TERM); // It may have ended meanwhile.
    }
    match tokio::time::timeout(GRACE, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            child.start_kill()?;
            child.wait().await
        }
    }
}

fn describe(status: io::Result<ExitStatus>, tail: &str) -> String {
    let what = match status {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    match tail.trim() {
        "" => format!("{what}; it wrote nothing to standard error"),
        tail => format!("{what}; the end of its standard error: {tail}"),
    }
}

fn pid(id: Option<u32>) -> Option<Pid> {
    Pid::from_raw(i32::try_from(id?).ok()?)
}

/// Ends what a process has started, when its connection ends.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = pid(self.0) {
            let _ = kill_process_group(group, Signal::KILL); // Most often nobody is left.
        }
    }
}

/// The end of a process's standard error.
#[derive(Clone, Default)]
struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(bytes);
        let excess = tail.len().saturating_sub(TAIL);
        tail.drain(..excess);
    }

    fn text(&self) -> String {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(tail.make_contiguous()).into_owned()
    }
}

/// Standard error goes on to the container's log; its end is kept.
async fn copy_stderr(mut stderr: ChildStderr, tail: Tail) {
    let mut buffer = vec![0; 4096];
    let mut log = tokio::io::stderr();
    while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
        tail.push(&buffer[..n]);
        let _ = log.write_all(&buffer[..n]).await; // A closed log must not stop the server.
    }
}
