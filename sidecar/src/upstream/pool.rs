//! Connections to the wrapped server, kept for the next request.
//!
//! Invariants: a connection carries one request at a time, and the next one only
//! when the answer has been read to its end; what may have been written to a
//! connection is not sent again.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, uri::Authority};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::UpstreamError;

/// Until a connection is there.
const CONNECT: Duration = Duration::from_secs(5);
/// A connection that is not used for this time is not used again: servers close
/// theirs after a while (Node.js and uvicorn after 5 s, gunicorn after 2 s), at the
/// very moment when a request may be on its way, and the busier they are, the longer
/// it takes until that is read. Another connection costs nearly nothing within a pod.
const IDLE: Duration = Duration::from_secs(1);
/// Connections that are kept while they are not used.
const MAX_IDLE: usize = 256;

type Sender = SendRequest<Full<Bytes>>;

/// Connections to one server.
pub struct Pool {
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    /// Those that are not used, and since when; the newest last.
    idle: Mutex<Vec<(Sender, Instant)>>,
}

impl Pool {
    /// None is there before the first request.
    pub fn new(authority: &Authority) -> Self {
        Self {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            idle: Mutex::default(),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Sender, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes connections that were not used for long. Those that the server has
    /// closed are forgotten.
    pub fn sweep(&self) {
        self.idle()
            .retain(|(sender, since)| !sender.is_closed() && since.elapsed() < IDLE);
    }

    /// Sends a request, and gives the head of the answer.
    ///
    /// # Errors
    /// [`UpstreamError::Connect`]: no connection, or it broke.
    pub async fn send(
        self: &Arc<Self>,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Answering>, UpstreamError> {
        let broken = |error: hyper::Error| UpstreamError::Connect(chain(&error));
        // The newest first, so that those that are not needed grow old.
        while let Some((mut sender, since)) = { self.idle().pop() } {
            if since.elapsed() >= IDLE || sender.ready().await.is_err() {
                continue; // The server has closed it, or is about to.
            }
            match sender.try_send_request(request).await {
                Ok(answer) => return Ok(self.answering(answer, sender)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(broken(error.into_error())),
                },
            }
        }
        let mut sender = self.connect().await?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        Ok(self.answering(answer, sender))
    }

    async fn connect(&self) -> Result<Sender, UpstreamError> {
        let connected =
            tokio::time::timeout(CONNECT, TcpStream::connect((self.host.as_str(), self.port)));
        let stream = match connected.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(UpstreamError::Connect(error.to_string())),
            Err(_) => {
                let message = format!("no connection within {} s", CONNECT.as_secs());
                return Err(UpstreamError::Connect(message));
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a socket option cannot be set");
        }
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| UpstreamError::Connect(chain(&error)))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the server ended with an error");
            }
        });
        Ok(sender)
    }

    fn answering(
        self: &Arc<Self>,
        answer: Response<Incoming>,
        sender: Sender,
    ) -> Response<Answering> {
        answer.map(|body| {
            let mut answering = Answering {
                body,
                connection: Some((Arc::clone(self), sender)),
            };
            if answering.body.is_end_stream() {
                answering.give_back();
            }
            answering
        })
    }
}

/// The body of an answer. Its connection is closed where it is dropped before
/// its end.
pub struct Answering {
    body: Incoming,
    connection: Option<(Arc<Pool>, Sender)>,
}

impl Answering {
    fn give_back(&mut self) {
        if let Some((pool, sender)) = self.connection.take() {
            let mut idle = pool.idle();
            if !sender.is_closed() && idle.len() < MAX_IDLE {
                idle.push((sender, Instant::now()));
            }
        }
    }
}

impl http_body::Body for Answering {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            self.give_back();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The error with all its causes: hyper keeps what matters in the last.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
