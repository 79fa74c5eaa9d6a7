//! A relay that adds a token, for clients that cannot send one, and records
//! what passes.
//!
//! It changes nothing else: every request has a connection of its own to the
//! server, bodies stream both ways, and when one side leaves, so does the other.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Either, Empty};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{client, server};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// How much of the record is kept, in bytes.
const RECORD: usize = 256 * 1024;

/// A relay of this machine; it ends when dropped.
#[derive(Debug)]
pub struct Relay {
    /// What a client is given in place of the server's URL.
    pub url: String,
    record: Record,
    task: JoinHandle<()>,
}

impl Relay {
    /// Starts a relay to a URL, with `Authorization: Bearer` where there is a token.
    pub async fn start(upstream: &str, token: Option<&str>) -> Result<Self> {
        let uri: Uri = upstream.parse()?;
        let to = uri.authority().context("no authority")?.to_string();
        let token = token
            .map(|token| HeaderValue::try_from(format!("Bearer {token}")))
            .transpose()?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}{}", listener.local_addr()?, uri.path());
        let record = Record::default();
        let route = Arc::new(Route {
            to,
            token,
            record: record.clone(),
        });
        let task = tokio::spawn(accept(listener, route));
        Ok(Self { url, record, task })
    }

    /// What passed so far, without the token.
    pub fn record(&self) -> String {
        self.record.lines(|lines| lines.clone())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Route {
    to: String,
    token: Option<HeaderValue>,
    record: Record,
}

async fn accept(listener: TcpListener, route: Arc<Route>) {
    // Dropped with this task, and all connections with it.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let route = route.clone();
        let service = service_fn(move |request| {
            let route = route.clone();
            async move { Ok::<_, Infallible>(route.relay(request).await) }
        });
        connections.spawn(
            server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
        );
        while connections.try_join_next().is_some() {}
    }
}

impl Route {
    async fn relay(
        &self,
        request: Request<Incoming>,
    ) -> Response<Either<impl Body<Data = Bytes, Error = hyper::Error> + use<>, Empty<Bytes>>> {
        match self.forward(request).await {
            Ok(response) => response.map(Either::Left),
            Err(error) => {
                self.record.add(0, '!', &format!("{error:#}"));
                let mut response = Response::new(Either::Right(Empty::new()));
                *response.status_mut() = StatusCode::BAD_GATEWAY;
                response
            }
        }
    }

    async fn forward(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<impl Body<Data = Bytes, Error = hyper::Error> + use<>>> {
        let stream = TcpStream::connect(&self.to).await?;
        let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection); // It ends with `sender` and the bodies.
        let (mut head, body) = request.into_parts();
        let number = self.record.number();
        let line = format!("{} {}\n{}", head.method, head.uri, shown(&head.headers));
        self.record.add(number, '>', &line);
        if let Some(token) = &self.token {
            head.headers.insert(AUTHORIZATION, token.clone());
        }
        let body = self.record.follow(number, '>', body);
        let response = sender.send_request(Request::from_parts(head, body)).await?;
        let line = format!("{}\n{}", response.status(), shown(response.headers()));
        self.record.add(number, '<', &line);
        Ok(response.map(|body| self.record.follow(number, '<', body)))
    }
}

fn shown(headers: &HeaderMap) -> String {
    let mut lines = String::new();
    for (name, value) in headers {
        let _ = writeln!(lines, "{name}: {}", value.to_str().unwrap_or("(binary)"));
    }
    lines
}

/// Lines of exchanges: their number, `>` for what the client sent and `<` for
/// what the server did.
#[derive(Clone, Debug, Default)]
struct Record(Arc<(Mutex<String>, AtomicUsize)>);

impl Record {
    fn number(&self) -> usize {
        self.0.1.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn lines<T>(&self, with: impl FnOnce(&mut String) -> T) -> T {
        with(&mut self.0.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, number: usize, direction: char, text: &str) {
        self.lines(|lines| {
            for line in text.lines() {
                if lines.len() < RECORD {
                    let _ = writeln!(lines, "{number:3} {direction} {line}");
                }
            }
        });
    }

    /// The same body; its data is recorded as it passes.
    fn follow(
        &self,
        number: usize,
        direction: char,
        body: Incoming,
    ) -> impl Body<Data = Bytes, Error = hyper::Error> + use<> {
        let record = self.clone();
        body.map_frame(move |frame: Frame<Bytes>| {
            if let Some(data) = frame.data_ref() {
                record.add(number, direction, &String::from_utf8_lossy(data));
            }
            frame
        })
    }
}
