//! Listens, over TLS with the certificate of the moment, and leaves without losing
//! a question.
//!
//! API servers keep connections open and do not ask again what they have written
//! to one that ends: so it is them who end idle ones, and a replica that leaves
//! asks them to.

use std::{
    convert::Infallible,
    future::Future,
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::{HeaderValue, Request, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
};
use rustls::{ServerConfig, server::NoServerSessionStorage};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::TlsAcceptor;

use super::Webhook;

/// Connections at the same time; others wait in the kernel.
const CONNECTIONS: usize = 512;
/// Time to shake hands.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A connection without a question ends after this time; API servers end theirs
/// after 90 s.
const IDLE: Duration = Duration::from_secs(120);
/// For how long questions are answered after the signal to stop: the news that this
/// replica is leaving has to reach every node.
const LEAVE: Duration = Duration::from_secs(5);
/// Then, time for what is under way.
const DRAIN: Duration = Duration::from_secs(5);
/// After a failed accept, for want of files for example.
const PAUSE: Duration = Duration::from_millis(100);

impl Webhook {
    /// Serves, and looks after the certificate, until some time after `leave`.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, leave: impl Future<Output = ()>) {
        let certificates = self.certificates.clone();
        tokio::select! {
            () = self.listen(listener, leave) => {}
            () = certificates.run() => {}
        }
    }

    /// Serves with whatever certificate is in use, until some time after `leave`.
    pub async fn listen(self: Arc<Self>, listener: TcpListener, leave: impl Future<Output = ()>) {
        let acceptor = match self.acceptor() {
            Ok(acceptor) => acceptor,
            Err(error) => {
                tracing::error!(%error, "the webhook cannot serve");
                return;
            }
        };
        let graceful = GracefulShutdown::new();
        let leave = async {
            leave.await;
            self.leaving.store(true, Ordering::Relaxed);
            tokio::time::sleep(LEAVE).await;
        };
        tokio::select! {
            () = leave => {}
            () = self.accept(&listener, &acceptor, &graceful) => {}
        }
        drop(listener);
        if tokio::time::timeout(DRAIN, graceful.shutdown())
            .await
            .is_err()
        {
            tracing::warn!("connections of the webhook are cut off");
        }
    }

    /// HTTP/1.1 is all that API servers speak to webhooks. A connection is never
    /// resumed: each meets the certificate in use.
    fn acceptor(&self) -> Result<TlsAcceptor, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(self.certificates.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Takes connections for ever.
    async fn accept(
        self: &Arc<Self>,
        listener: &TcpListener,
        acceptor: &TlsAcceptor,
        graceful: &GracefulShutdown,
    ) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        while let Ok(permit) = permits.clone().acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (webhook, acceptor) = (self.clone(), acceptor.clone());
                    let watcher = graceful.watcher();
                    tokio::spawn(webhook.connection(stream, acceptor, watcher, permit));
                }
                Err(error) => {
                    tracing::warn!(%error, "the webhook cannot take a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        acceptor: TlsAcceptor,
        watcher: Watcher,
        _permit: OwnedSemaphorePermit,
    ) {
        // A question is one small write; so is its answer.
        let _ = stream.set_nodelay(true);
        let shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
        let stream = match shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, "no TLS with who connected to the webhook");
                return;
            }
        };
        let service = service_fn(move |request: Request<Incoming>| {
            let webhook = self.clone();
            async move {
                let mut response = webhook.answer(request).await;
                if webhook.leaving.load(Ordering::Relaxed) {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(header::CONNECTION, close);
                }
                Ok::<_, Infallible>(response)
            }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(IDLE);
        let connection = http.serve_connection(TokioIo::new(stream), service);
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(%error, "a connection to the webhook ended");
        }
    }
}
