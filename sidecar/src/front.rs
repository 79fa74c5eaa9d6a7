//! The listener of the MCP port, and how it ends: HTTP/1.1, and HTTP/2 by TLS
//! (RFC 9113 §3.2) or with prior knowledge (§3.3), on one port.
//!
//! Invariants: connections, handshakes, requests, heads, streams, windows and
//! buffers are bounded; a connection without a request in flight ends after a
//! time, one with a stream in flight lives as long as that; what the pipeline
//! reads has one framing only.

mod activity;
mod intake;
mod stream;
mod unread;

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use policy::Reason;
use rustix::net::sockopt;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{sleep, timeout},
};

pub use intake::{Intake, MAX_BODIES, MAX_BODY, discard};

use crate::{Shared, body::Body, peer, pipeline, refusal::Refusal, upstream::UpstreamError};
use activity::{Activity, InFlight, Overdue, Socket};
use stream::{Stream, Tcp};

/// Connections at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 10_000;
/// The kernel's queue. The usual 128 overflow in a burst of clients, and whoever
/// is dropped tries again a second later.
const BACKLOG: u32 = 4096;
/// Requests and streams at once, on all connections; more get 503.
const MAX_REQUESTS: usize = 10_000;
/// Time for the head of a request to arrive; the first one's counts from the
/// start of the connection, and has the handshake of TLS in it.
const HEAD: Duration = Duration::from_secs(10);
/// A connection without a request in flight ends after this time.
const IDLE: Duration = Duration::from_secs(60);
/// When calls are taken no more, a connection on which nothing was asked yet may
/// wait this long for its first request, so that it is answered.
const FIRST: Duration = Duration::from_secs(2);
/// And one of another replica, which asks nothing on it after [`peer::KEPT`].
const UNUSED: Duration = Duration::from_secs(5 * peer::KEPT.as_secs());
/// A peer that takes nothing of what is written for this time is cut off.
const STUCK: Duration = Duration::from_secs(60);
/// Largest head of a request, in bytes, and number of headers in it.
const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 100;

/// HTTP/2: requests and streams at once on a connection (RFC 9113 §5.1.2).
const H2_STREAMS: u32 = 100;
/// HTTP/2: bytes that a client may send before they are read, for a stream and
/// for a connection; fixed, so that memory is bounded.
const H2_STREAM_WINDOW: u32 = 128 * 1024;
const H2_CONNECTION_WINDOW: u32 = 512 * 1024;
/// HTTP/2: largest frame, the least that RFC 9113 §4.2 allows.
const H2_FRAME: u32 = 16 * 1024;
/// HTTP/2: bytes of an answer that wait for a client that does not read.
const H2_SEND_BUFFER: usize = 64 * 1024;
/// HTTP/2: streams that a client reset before they were looked at, and streams
/// that were reset for its errors; more end the connection (CVE-2023-44487,
/// CVE-2025-8671).
const H2_PENDING_RESETS: usize = 20;
const H2_ERROR_RESETS: usize = 100;
/// A peer that is gone is found by a ping after this time (HTTP/2), or by the
/// kernel's probes (HTTP/1.1), when it does not answer in `PING_TIMEOUT`.
const PING: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Serving,
    /// Not ready any more, so that no new caller is sent here; those that come
    /// all the same are served, and told to close their connection.
    Leaving,
    /// No new calls; those in flight finish.
    Draining,
    /// The same, and the process ends when they have.
    Ending,
}

/// Who comes by a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Callers, by the MCP port.
    Callers,
    /// Other replicas, by the peer port.
    Peers,
}

/// Binds a listener. `None`: the port on all addresses, IPv6 where there is any.
///
/// # Errors
/// Where the address cannot be had.
pub fn bind(address: Option<SocketAddr>, port: u16) -> io::Result<TcpListener> {
    if let Some(address) = address {
        return listen(address);
    }
    match listen((Ipv6Addr::UNSPECIFIED, port).into()) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            listen((Ipv4Addr::UNSPECIFIED, port).into())
        }
        bound => bound,
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves for as long as the runtime lives. `open` is dropped when the phase is
/// `Ending` and the connections that were open then have ended.
///
/// Invariant: the port is ours until the process ends. The wrapped server shares
/// the pod's network: it could listen where nobody does, and would get what
/// callers and other replicas still send, tokens among it.
pub async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    door: Door,
    mut phase: watch::Receiver<Phase>,
    open: mpsc::Sender<Infallible>,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let front = Arc::new(Front {
        shared,
        door,
        requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
        either: builder(),
        http2: builder().http2_only(),
    });
    let mut open = Some(open);
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            // What comes from now on is refused, and does not put the end off.
            () = reached(&mut phase, Phase::Ending), if open.is_some() => {
                open = None;
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (front, phase, open) = (Arc::clone(&front), phase.clone(), open.clone());
                tokio::spawn(async move {
                    front.connection(stream, phase).await;
                    drop((open, place));
                });
            }
            Err(error) => {
                // No descriptors left, most likely: those that are open must end first.
                tracing::warn!(%error, "a connection cannot be accepted");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Resolves when the phase is this one, or a later one.
async fn reached(phase: &mut watch::Receiver<Phase>, at_least: Phase) {
    let _ = phase.wait_for(|phase| *phase >= at_least).await; // Its sender gone: the end as well.
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // `Activity` tells a head that is slow from a connection that is idle.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .adaptive_window(false)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_frame_size(H2_FRAME)
        .max_concurrent_streams(H2_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .max_send_buf_size(H2_SEND_BUFFER)
        .max_pending_accept_reset_streams(H2_PENDING_RESETS)
        .max_local_error_reset_streams(H2_ERROR_RESETS)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// What connections share.
struct Front {
    shared: Arc<Shared>,
    door: Door,
    /// A place for each request in flight.
    requests: Arc<Semaphore>,
    /// For a connection that shows by its first bytes what is spoken.
    either: auto::Builder<TokioExecutor>,
    /// For one on which HTTP/2 was agreed.
    http2: auto::Builder<TokioExecutor>,
}

impl Front {
    async fn connection(self: &Arc<Self>, stream: TcpStream, mut phase: watch::Receiver<Phase>) {
        prepare(&stream);
        let activity = Activity::new();
        let tcp = Tcp::new(stream, Arc::clone(&activity));
        let Some(stream) = self.shake_hands(tcp, &mut phase).await else {
            return;
        };
        let builder = match stream.is_http2() {
            true => &self.http2,
            false => &self.either,
        };
        let socket = Socket::new(stream, Arc::clone(&activity));
        let service = service_fn({
            let (front, activity, phase) = (Arc::clone(self), Arc::clone(&activity), phase.clone());
            move |request: Request<Incoming>| {
                let is_http2 = request.version() == Version::HTTP_2;
                let in_flight = activity.begin(is_http2);
                let (front, phase) = (Arc::clone(&front), phase.clone());
                async move {
                    let mut answer = front.answer(request, in_flight).await;
                    if !is_http2 && *phase.borrow() > Phase::Serving {
                        let close = HeaderValue::from_static("close");
                        answer.headers_mut().insert(header::CONNECTION, close);
                    }
                    Ok::<_, Infallible>(answer)
                }
            }
        });
        let io = TokioIo::new(socket);
        let connection = builder.serve_connection(io, service);
        tokio::pin!(connection);
        let mut ending = false;
        let ended = loop {
            let idle_limit = if ending { HEAD } else { IDLE };
            tokio::select! {
                ended = &mut connection => break ended,
                () = self.has_to_end(&mut phase, &activity), if !ending => {}
                why = activity.overdue(idle_limit) => {
                    if ending || why != Overdue::Idle {
                        break Err(format!("cut off: {why:?}").into());
                    }
                    activity.touch();
                }
            }
            // HTTP/2: GOAWAY; what is in flight ends as it will.
            connection.as_mut().graceful_shutdown();
            ending = true;
        };
        if let Err(error) = ended {
            tracing::debug!(error, "a connection ended with an error");
        }
    }

    /// Resolves when a connection has to end in good order. A request may be on
    /// the way: ended now, its sender could not tell whether it was taken.
    async fn has_to_end(&self, phase: &mut watch::Receiver<Phase>, activity: &Activity) {
        reached(phase, Phase::Draining).await;
        match self.door {
            Door::Callers => drop(timeout(FIRST, activity.begun()).await),
            Door::Peers => activity.unused_for(UNUSED).await,
        }
    }

    /// What HTTP goes over: TLS, where this door has it; none where the handshake
    /// fails, takes too long, or comes at the end.
    async fn shake_hands(&self, tcp: Tcp, phase: &mut watch::Receiver<Phase>) -> Option<Stream> {
        let tls = match (self.door, &self.shared.tls) {
            (Door::Callers, Some(tls)) => tls,
            (Door::Callers, None) | (Door::Peers, _) => return Some(Stream::Plain(tcp)),
        };
        // Boxed: a connection without it needs none of its room.
        let handshake = Box::pin(timeout(HEAD, tls.accept(tcp)));
        let shaken = tokio::select! {
            shaken = handshake => shaken,
            () = async { reached(phase, Phase::Draining).await; sleep(FIRST).await } => return None,
        };
        match shaken {
            Ok(Ok(stream)) => return Some(Stream::Tls(Box::new(stream))),
            Ok(Err(error)) => tracing::debug!(%error, "no TLS handshake"),
            Err(_) => tracing::debug!("cut off: a TLS handshake that is too slow"),
        }
        None
    }

    async fn answer(
        &self,
        mut request: Request<Incoming>,
        mut in_flight: InFlight,
    ) -> Response<Body> {
        if *self.shared.phase.borrow() >= Phase::Draining {
            // Not among the open requests, for which the drain waits.
            in_flight.answered();
            return self.too_late().into_response(None);
        }
        let mut open = Open::new(&self.shared, in_flight);
        let answer = match self.admit(&mut request).await {
            Ok(place) => {
                open.place = Some(place);
                pipeline::handle(&self.shared, request).await
            }
            Err(refusal) => {
                // An answer that is late helps nobody where there are too many.
                let closes = |(name, _): &(_, _)| *name == header::CONNECTION;
                let closes = refusal.header.as_ref().is_some_and(closes);
                if !closes && refusal.reason != Reason::Overloaded {
                    let (parts, body) = request.into_parts();
                    discard(&parts.headers, body).await;
                }
                refusal.into_response(None)
            }
        };
        open.in_flight.answered();
        answer.map(|body| Body::new(Held { body, _open: open }))
    }

    async fn admit(
        &self,
        request: &mut Request<Incoming>,
    ) -> Result<OwnedSemaphorePermit, Refusal> {
        check_head(request)?;
        let place = Arc::clone(&self.requests).try_acquire_owned();
        let place = place.map_err(|_| {
            let message = "too many requests are open: try again later";
            Refusal::new(Reason::Overloaded, StatusCode::SERVICE_UNAVAILABLE, message)
        })?;
        match self.door {
            Door::Peers => peer::admit(&self.shared, request).await?,
            // Only a peer may show its token, and only at its door.
            Door::Callers => drop(request.headers_mut().remove(peer::HEADER)),
        }
        Ok(place)
    }

    /// The answer to what comes when no call is taken any more. A session ends
    /// with its replica: another one that forwards for it says so to its caller.
    fn too_late(&self) -> Refusal {
        if self.door == Door::Peers {
            return UpstreamError::SessionUnknown.into();
        }
        let close = HeaderValue::from_static("close");
        let message = "this replica ends: try again, on a new connection";
        Refusal {
            header: Some((header::CONNECTION, close)),
            ..Refusal::new(Reason::Overloaded, StatusCode::SERVICE_UNAVAILABLE, message)
        }
    }
}

/// Socket options. Where one cannot be set, only speed and the time until a
/// dead peer is found are at stake.
fn prepare(stream: &TcpStream) {
    let timeout = u32::try_from((PING + PING_TIMEOUT).as_millis()).unwrap_or(u32::MAX);
    let set = || -> io::Result<()> {
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, PING)?;
        sockopt::set_tcp_keepintvl(stream, PING_TIMEOUT / 4)?;
        sockopt::set_tcp_keepcnt(stream, 4)?;
        Ok(sockopt::set_tcp_user_timeout(stream, timeout)?)
    };
    if let Err(error) = set() {
        tracing::debug!(%error, "a socket option cannot be set");
    }
}

/// What HTTP leaves open and we do not. The rest is hyper's, and holds (`unread`
/// tells the caller why):
/// different or malformed lengths, HTTP/1.0 with `Transfer-Encoding`, an encoding
/// that does not end in `chunked`, and whitespace or control characters where
/// none may be get 400 and the end of the connection; `Transfer-Encoding` beside
/// `Content-Length` wins, and the connection ends with that request (RFC 9112
/// §6.3); `Upgrade` is ignored, as RFC 9110 §7.8 allows: Java's client offers h2c
/// on each first request. What goes to the server is framed anew.
fn check_head(request: &Request<Incoming>) -> Result<(), Refusal> {
    let headers = request.headers();
    if headers.len() > MAX_HEADERS || head_size(request) > MAX_HEAD {
        return Err(unread::too_large(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        ));
    }
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (encodings.next(), encodings.next()) {
        (None, _) => {}
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => {}
        _ => {
            // Whoever stands between may see another end of this body.
            let close = HeaderValue::from_static("close");
            let message = "Transfer-Encoding must be chunked, and nothing else";
            return Err(Refusal {
                header: Some((header::CONNECTION, close)),
                ..Refusal::malformed(message)
            });
        }
    }
    if !headers
        .get_all(header::EXPECT)
        .iter()
        .all(intake::is_continue)
    {
        let status = StatusCode::EXPECTATION_FAILED;
        let message = "Expect must be 100-continue";
        return Err(Refusal::new(Reason::Malformed, status, message));
    }
    Ok(())
}

/// Bytes of a head, without white space that means nothing. hyper stops reading
/// at about [`MAX_HEAD`]: what has come with a request before may be more.
fn head_size(request: &Request<Incoming>) -> usize {
    let uri = request.uri();
    let line = [
        Some(request.method().as_str()),
        uri.scheme_str(),
        uri.authority().map(http::uri::Authority::as_str),
        uri.path_and_query().map(http::uri::PathAndQuery::as_str),
    ];
    let line: usize = line.iter().flatten().map(|part| part.len()).sum();
    let headers = request.headers().iter();
    let headers: usize = headers
        .map(|(name, value)| name.as_str().len() + ": \r\n".len() + value.len())
        .sum();
    line + headers
}

/// Counts a request until its answer has been sent.
struct Open {
    shared: Arc<Shared>,
    in_flight: InFlight,
    place: Option<OwnedSemaphorePermit>,
}

impl Open {
    fn new(shared: &Arc<Shared>, in_flight: InFlight) -> Self {
        shared.metrics.open_requests.inc();
        Self {
            shared: Arc::clone(shared),
            in_flight,
            place: None,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.metrics.open_requests.dec();
    }
}

/// A body that counts as open until it is dropped.
struct Held {
    body: crate::body::Body,
    _open: Open,
}

impl http_body::Body for Held {
    type Data = bytes::Bytes;
    type Error = crate::body::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, crate::body::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
