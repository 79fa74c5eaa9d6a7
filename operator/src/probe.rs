//! Asks a sidecar for its status, and for its key. Pods are untrusted peers: an
//! answer has a deadline and a greatest size.

use std::{net::SocketAddr, time::Duration};

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use policy::report::Report;
use sealed::{NONCE_HEADER, Nonce, PUBLIC_KEY_HEADER, PublicKey, Sealed};
use tokio::net::TcpStream;

/// Of a pod on a busy node, too.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Largest status, and largest sealed answer.
const MAX_STATUS: usize = 1024 * 1024;
const MAX_SEALED: usize = 32 * 1024;

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
    /// The body is not what was asked for; where it stops being that.
    #[error("sends what was not asked for, at line {}, column {}", .0.line(), .0.column())]
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
    let body = get(address, "/status", token, &[], MAX_STATUS).await?;
    Ok(serde_json::from_slice(&body)?)
}

/// The key of the sidecar at an address, sealed to `key`.
///
/// # Errors
/// See [`ProbeError`].
pub async fn sealed(
    address: SocketAddr,
    token: &str,
    key: &PublicKey,
    nonce: &Nonce,
) -> Result<Sealed, ProbeError> {
    let headers = [
        (PUBLIC_KEY_HEADER, key.point_text()),
        (NONCE_HEADER, nonce.text()),
    ];
    let body = get(address, sealed::PATH, token, &headers, MAX_SEALED).await?;
    Ok(serde_json::from_slice(&body)?)
}

async fn get(
    address: SocketAddr,
    path: &str,
    token: &str,
    headers: &[(&str, String)],
    max: usize,
) -> Result<Bytes, ProbeError> {
    let answer = tokio::time::timeout(TIMEOUT, ask(address, path, token, headers, max)).await;
    answer.unwrap_or(Err(ProbeError::Timeout))
}

async fn ask(
    address: SocketAddr,
    path: &str,
    token: &str,
    headers: &[(&str, String)],
    max: usize,
) -> Result<Bytes, ProbeError> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::AUTHORIZATION, format!("Bearer {token}"));
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let request = request.body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(ProbeError::Refused(response.status()));
        }
        let body = Limited::new(response.into_body(), max).collect().await;
        Ok(body.map_err(ProbeError::Body)?.to_bytes())
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
