//! Fetches a document of an issuer: https only (http where it is on this host),
//! no redirects, from addresses that are allowed, within bounds.
//!
//! Invariant: what was looked at is what is connected to: the name is resolved
//! once, and never again for the same connection (DNS rebinding).

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::{Times, address::Networks};
use crate::source;

/// Largest document.
const MAX_BYTES: usize = 512 * 1024;
/// Largest file of certificates.
const MAX_CA: usize = 1024 * 1024;

/// Why a document could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL is not one that is fetched.
    #[error(
        "the URL must be https with a host, and a port that is a number; without user or fragment"
    )]
    Url,
    /// The name cannot be resolved.
    #[error("the name cannot be resolved: {0}")]
    Resolve(io::Error),
    /// The address is not allowed.
    #[error(
        "{0} is an address that issuers may not have here: allow its network with the chart value issuerNetworks"
    )]
    Forbidden(std::net::IpAddr),
    /// http, and not on this host.
    #[error("http is accepted for a loopback address only")]
    Plain,
    /// No connection.
    #[error("no connection: {0}")]
    Connect(String),
    /// The certificates of the issuer's authorities cannot be read.
    #[error("the certificates of its authorities cannot be read: {0}")]
    Authorities(String),
    /// No HTTP.
    #[error("no answer: {0}")]
    Http(String),
    /// Another status than 200.
    #[error("status {0}; 200 is expected, and redirects are not followed")]
    Status(StatusCode),
    /// Too slow.
    #[error("not there within {0:?}")]
    Timeout(Duration),
}

/// A document, and for how long it may be kept, where it says so.
#[derive(Debug)]
pub struct Document {
    /// Its bytes.
    pub body: Bytes,
    /// `max-age` of `Cache-Control` (RFC 9111 §5.2.2.1).
    pub max_age: Option<Duration>,
}

/// How documents are fetched.
#[derive(Debug)]
pub struct Way<'a> {
    /// A file of certificates that alone are trusted; none: the public ones.
    pub authorities: Option<&'a Path>,
    /// Where issuers may be.
    pub networks: &'a Networks,
    /// How long it may take.
    pub times: &'a Times,
}

/// Fetches `url`.
///
/// # Errors
/// See [`FetchError`].
pub async fn get(url: &str, way: &Way<'_>) -> Result<Document, FetchError> {
    let limit = way.times.document;
    let fetched = tokio::time::timeout(limit, fetch(url, way, resolve)).await;
    fetched.unwrap_or(Err(FetchError::Timeout(limit)))
}

async fn resolve(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((host, port)).await?.collect())
}

/// `resolve` is asked once, by its type.
async fn fetch<Resolved>(
    url: &str,
    way: &Way<'_>,
    resolve: impl FnOnce(String, u16) -> Resolved,
) -> Result<Document, FetchError>
where
    Resolved: Future<Output = io::Result<Vec<SocketAddr>>>,
{
    // A fragment is dropped by the parser.
    let uri: Uri = url.parse().map_err(|_| FetchError::Url)?;
    let place = Place::of(&uri).filter(|_| !url.contains('#'));
    let place = place.ok_or(FetchError::Url)?;
    let addresses = resolve(place.host.to_owned(), place.port).await;
    let addresses = addresses.map_err(FetchError::Resolve)?;
    for address in &addresses {
        if !way.networks.allow(address.ip()) {
            return Err(FetchError::Forbidden(address.ip()));
        }
        if place.is_plain && !address.ip().is_loopback() {
            return Err(FetchError::Plain);
        }
    }
    let stream = connect(&addresses, way.times.connect).await?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(header::HOST, place.authority)
        .header(header::ACCEPT, "application/json")
        .header(
            header::USER_AGENT,
            concat!("toolward/", env!("CARGO_PKG_VERSION")),
        )
        .body(Empty::<Bytes>::new())
        .map_err(|_| FetchError::Url)?;
    if place.is_plain {
        return exchange(stream, request).await;
    }
    let name = ServerName::try_from(place.host.to_owned()).map_err(|_| FetchError::Url)?;
    let connector = TlsConnector::from(Arc::new(config(way.authorities)?));
    let stream = connector.connect(name, stream).await;
    let stream = stream.map_err(|error| FetchError::Connect(of_tls(&error)))?;
    exchange(stream, request).await
}

/// Why there is no TLS, in words that stay the same as time goes on.
fn of_tls(error: &io::Error) -> String {
    use rustls::{CertificateError, Error::InvalidCertificate};
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(InvalidCertificate(CertificateError::ExpiredContext { .. })) => {
            "its certificate has expired".to_owned()
        }
        Some(InvalidCertificate(CertificateError::NotValidYetContext { .. })) => {
            "its certificate is not valid yet".to_owned()
        }
        _ => error.to_string(),
    }
}

/// What a URL says of where to go.
struct Place<'u> {
    is_plain: bool,
    /// Without brackets.
    host: &'u str,
    port: u16,
    authority: &'u str,
}

impl<'u> Place<'u> {
    /// None where it is neither http nor https, has a user, something encoded in
    /// its host, or a port that is no number: two readers could go to two places.
    fn of(uri: &'u Uri) -> Option<Self> {
        let (is_plain, default) = match uri.scheme_str()? {
            "https" => (false, 443),
            "http" => (true, 80),
            _ => return None,
        };
        let authority = uri.authority()?;
        let (host, authority) = (authority.host(), authority.as_str());
        if host.is_empty() || host.contains('%') {
            return None;
        }
        let port = match authority.strip_prefix(host)? {
            "" => default,
            rest => {
                let digits = rest.strip_prefix(':')?;
                let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
                digits.parse::<u16>().ok().filter(|_| is_number)?
            }
        };
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        Some(Self {
            is_plain,
            host: bare.unwrap_or(host),
            port,
            authority,
        })
    }
}

async fn connect(addresses: &[SocketAddr], limit: Duration) -> Result<TcpStream, FetchError> {
    let mut last = "the name has no address".to_owned();
    for address in addresses {
        match tokio::time::timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = format!("{address}: {error}"),
            Err(_) => last = format!("{address}: none within {limit:?}"),
        }
    }
    Err(FetchError::Connect(last))
}

/// Read for each connection: the file may be another than before.
fn config(authorities: Option<&Path>) -> Result<ClientConfig, FetchError> {
    let mut roots = RootCertStore::empty();
    match authorities {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(file) => {
            let wrong = |error: &dyn std::fmt::Display| {
                FetchError::Authorities(format!("{}: {error}", file.display()))
            };
            let pem = source::read(file, MAX_CA).map_err(|error| wrong(&error))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|error| wrong(&error))?;
                roots.add(certificate).map_err(|error| wrong(&error))?;
            }
            if roots.is_empty() {
                return Err(wrong(&"no certificate in PEM form"));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| FetchError::Connect(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<Document, FetchError> {
    let broken = |error: hyper::Error| FetchError::Http(error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let read = async {
        let answer = sender.send_request(request).await.map_err(broken)?;
        document(answer).await
    };
    tokio::pin!(read);
    tokio::select! {
        biased;
        read = &mut read => read,
        // It may end before the answer has been read to its end.
        _ = connection => read.await,
    }
}

async fn document(answer: Response<Incoming>) -> Result<Document, FetchError> {
    if answer.status() != StatusCode::OK {
        return Err(FetchError::Status(answer.status()));
    }
    let max_age = max_age(answer.headers());
    let body = Limited::new(answer.into_body(), MAX_BYTES).collect().await;
    let body = body.map_err(|error| FetchError::Http(error.to_string()))?;
    Ok(Document {
        body: body.to_bytes(),
        max_age,
    })
}

fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(header::CACHE_CONTROL).iter();
    let directives = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    let directives = directives.map(|directive| directive.trim().to_ascii_lowercase());
    let mut ages = directives.filter_map(|directive| {
        directive
            .strip_prefix("max-age=")?
            .trim_matches('"')
            .parse()
            .ok()
    });
    ages.next().map(Duration::from_secs)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
