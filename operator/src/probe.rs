//! Asks a sidecar for its status. Pods are untrusted peers: the answer has a
//! deadline and a greatest size.

use std::{net::SocketAddr, time::Duration};

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use policy::report::Report;
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(1);
const MAX_BYTES: usize = 1024 * 1024;

/// Why a sidecar did not tell its status.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The pod does not answer.
    #[error("cannot be reached: {0}")]
    Connect(#[from] std::io::Error),
    /// The answer came too late.
    #[error("does not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The answer is not HTTP.
    #[error("does not speak HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// The request cannot be made.
    #[error("cannot be asked: {0}")]
    Request(#[from] http::Error),
    /// The sidecar refused.
    #[error("answers {0}")]
    Refused(StatusCode),
    /// The body is too large or breaks off.
    #[error("sends a body that cannot be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// The body is not a report.
    #[error("sends no report: {0}")]
    Json(#[from] serde_json::Error),
}

impl ProbeError {
    /// One word for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Connect(_) => "Unreachable",
            Self::Timeout => "Timeout",
            Self::Refused(_) => "Refused",
            Self::Http(_) | Self::Request(_) | Self::Body(_) | Self::Json(_) => "Invalid",
        }
    }
}

/// The status of the sidecar at an address.
///
/// # Errors
/// See [`ProbeError`].
pub async fn report(address: SocketAddr, token: &str) -> Result<Report, ProbeError> {
    let answer = tokio::time::timeout(TIMEOUT, ask(address, token)).await;
    answer.unwrap_or(Err(ProbeError::Timeout))
}

async fn ask(address: SocketAddr, token: &str) -> Result<Report, ProbeError> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/status")
        .header(header::HOST, address.to_string())
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(ProbeError::Refused(response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_BYTES)
            .collect()
            .await;
        let body = body.map_err(ProbeError::Body)?.to_bytes();
        Ok(serde_json::from_slice(&body)?)
    };
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        // The connection may end before the answer has been read to its end.
        _ = connection => exchange.await,
    }
}

#[cfg(test)]
mod tests;
