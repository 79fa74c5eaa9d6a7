//! The listener of the MCP port, and how it ends.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderValue, header};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};

use crate::{Shared, pipeline};

/// Connections at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 10_000;
/// Time for the head of a request to arrive.
const HEAD: Duration = Duration::from_secs(10);
/// Largest head of a request, in bytes, and number of headers in it.
const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 100;

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Serving,
    /// Not ready any more, so that no new caller is sent here; those that come
    /// all the same are served, and told to close their connection.
    Leaving,
    /// No new connections; calls in flight finish.
    Draining,
}

/// Binds a listener. `None`: the port on all addresses, IPv6 where there is any.
///
/// # Errors
/// Where the address cannot be had.
pub async fn bind(address: Option<SocketAddr>, port: u16) -> io::Result<TcpListener> {
    if let Some(address) = address {
        return TcpListener::bind(address).await;
    }
    match TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, port)).await
        }
        bound => bound,
    }
}

/// Accepts connections until the phase is `Draining`, then waits for those that
/// are open.
pub async fn serve(shared: Arc<Shared>, listener: TcpListener, mut phase: watch::Receiver<Phase>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = draining(&mut phase) => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (shared, phase) = (Arc::clone(&shared), phase.clone());
                connections.spawn(async move {
                    connection(shared, stream, phase).await;
                    drop(place);
                });
            }
            Err(error) => {
                // No descriptors left, most likely: those that are open must end first.
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn draining(phase: &mut watch::Receiver<Phase>) {
    let _ = phase.wait_for(|phase| *phase == Phase::Draining).await; // Its sender gone: the end as well.
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, mut phase: watch::Receiver<Phase>) {
    let _ = stream.set_nodelay(true); // Only speed is at stake.
    let leaving = phase.clone();
    let service = service_fn(move |request| {
        let (shared, leaving) = (Arc::clone(&shared), *leaving.borrow() > Phase::Serving);
        async move {
            let open = Open::new(&shared);
            let mut answer = pipeline::handle(&shared, request).await;
            if leaving {
                answer
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(
                answer.map(|body| crate::body::Body::new(Held { body, _open: open })),
            )
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = draining(&mut phase) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended with an error");
    }
}

/// Counts a request until its answer has been sent.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.metrics.open_requests.inc();
        Self(Arc::clone(shared))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.metrics.open_requests.dec();
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
