//! TLS on the MCP port: a certificate and its key, read again when they change.
//!
//! Invariants:
//! - A port with TLS says nothing in the clear, and before there is a good pair
//!   nothing at all.
//! - A pair that does not fit is never used: the last good one stays.
//! - Who resumes a session has met the certificate in use: sessions go with the
//!   pair under which they began.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwapOption;
use policy::report::TlsReport;
use rustls::{
    Error, InconsistentKeys, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::ParsedCertificate,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::source;

/// The certificate and its chain, and the key: as the keys of a Secret of type
/// `kubernetes.io/tls`.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// Largest file.
const MAX_FILE: usize = 1024 * 1024;
/// What is spoken inside (RFC 7301), the first that a client offers too.
const PROTOCOLS: [&[u8]; 2] = [HTTP2, b"http/1.1"];
/// HTTP/2 (RFC 9113 §3.2).
pub const HTTP2: &[u8] = b"h2";

/// The pair in use.
#[derive(Default)]
pub struct Tls {
    pair: ArcSwapOption<Pair>,
    error: Mutex<Option<String>>,
}

/// A certificate with its chain, and how it is offered.
struct Pair {
    chain: Vec<CertificateDer<'static>>,
    config: Arc<ServerConfig>,
}

impl Tls {
    /// Reads the pair of a folder, soon and whenever it changes.
    pub fn follow(folder: PathBuf) -> Arc<Self> {
        let tls = Arc::new(Self::default());
        let following = Arc::clone(&tls);
        let files = [CERTIFICATE, KEY].map(|name| folder.join(name));
        tokio::spawn(source::watch(files.into(), move || {
            following.load(Pair::read(&folder));
        }));
        tls
    }

    fn load(&self, read: Result<Pair, String>) {
        let error = match read {
            Ok(pair) => {
                let in_use = self.pair.load();
                // What is only written again ends no session.
                if in_use.as_ref().is_none_or(|old| old.chain != pair.chain) {
                    tracing::info!(certificate = pair.hash(), "TLS certificate in use");
                    self.pair.store(Some(Arc::new(pair)));
                }
                None
            }
            Err(error) => {
                tracing::error!(
                    error,
                    "the TLS certificate cannot be used; the last good one, if any, stays in use"
                );
                Some(error)
            }
        };
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    /// Whether there is a pair.
    pub fn is_ready(&self) -> bool {
        self.pair.load().is_some()
    }

    /// Shakes hands. Whoever calls bounds the time for it.
    ///
    /// # Errors
    /// The client does not speak TLS as we do, or there is no pair yet.
    pub async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self
            .pair
            .load()
            .as_ref()
            .map(|pair| Arc::clone(&pair.config));
        let config = config.ok_or_else(|| io::Error::other("there is no certificate yet"))?;
        TlsAcceptor::from(config).accept(stream).await
    }

    /// For `/status`.
    pub fn report(&self) -> TlsReport {
        TlsReport {
            certificate: self.pair.load().as_ref().map(|pair| pair.hash()),
            error: self
                .error
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }
}

impl Pair {
    fn read(folder: &Path) -> Result<Self, String> {
        let read = |name: &str| {
            let file = folder.join(name);
            source::read(&file, MAX_FILE).map_err(|error| format!("{}: {error}", file.display()))
        };
        Self::of(&read(CERTIFICATE)?, &read(KEY)?)
    }

    /// Errors have nothing of the key in them.
    fn of(chain: &[u8], key: &[u8]) -> Result<Self, String> {
        let wrong = |error: &dyn std::fmt::Display| format!("{CERTIFICATE}: {error}");
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| wrong(&error))?;
        if chain.is_empty() {
            return Err(wrong(&"no certificate in PEM form"));
        }
        for certificate in &chain {
            ParsedCertificate::try_from(certificate).map_err(|error| wrong(&error))?;
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
            format!("{KEY}: no key in PEM form (PKCS#8, PKCS#1 or SEC1, not encrypted)")
        })?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_single_cert(chain.clone(), key);
        let mut config = config.map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                format!("{KEY} is not the key of the first certificate in {CERTIFICATE}")
            }
            error => format!("{KEY}: {error}"),
        })?;
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
        Ok(Self {
            chain,
            config: Arc::new(config),
        })
    }

    /// `sha256:…` of the certificate itself.
    fn hash(&self) -> String {
        let certificate = self.chain.first().map(|first| first.as_ref());
        policy::bundle::hash(certificate.unwrap_or_default())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, RsaKeySize};

    use super::*;

    fn certificate(key: &KeyPair) -> String {
        let params = CertificateParams::new(vec!["orders.shop.svc".to_owned()]).unwrap();
        params.self_signed(key).unwrap().pem()
    }

    fn refused(chain: &str, key: &str) -> String {
        let error = Pair::of(chain.as_bytes(), key.as_bytes()).err();
        error.unwrap_or_else(|| panic!("used: {chain} {key}"))
    }

    /// A key in PEM form by another name.
    fn renamed(der: &[u8], name: &str) -> String {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let der = STANDARD.encode(der);
        format!("-----BEGIN {name}-----\n{der}\n-----END {name}-----\n")
    }

    /// The key inside PKCS#8 (RFC 5958 §2), behind all that says which kind it is.
    fn inner(key: &KeyPair, header: usize) -> &[u8] {
        let inner = &key.serialized_der()[header..];
        assert_eq!(inner[0], 0x30, "no sequence");
        inner
    }

    #[test]
    fn keys_of_each_form_are_read() {
        let (ec, rsa) = (
            KeyPair::generate().unwrap(),
            KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(),
        );
        let sec1 = renamed(inner(&ec, 29), "EC PRIVATE KEY");
        let pkcs1 = renamed(inner(&rsa, 26), "RSA PRIVATE KEY");
        for (key, pem) in [
            (&ec, ec.serialize_pem()),
            (&rsa, rsa.serialize_pem()),
            (&ec, sec1),
            (&rsa, pkcs1),
        ] {
            let pair = Pair::of(certificate(key).as_bytes(), pem.as_bytes());
            let pair = pair.map_err(|error| format!("{error}: {pem}")).unwrap();
            assert_eq!(pair.config.alpn_protocols, [&b"h2"[..], b"http/1.1"]);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_says_nothing_of_the_key() {
        let (ours, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let (chain, key) = (certificate(&ours), ours.serialize_pem());
        let secret = key.lines().nth(1).unwrap();
        let broken = chain.replace("-----END CERTIFICATE-----", "");
        let no_der = renamed(b"no certificate", "CERTIFICATE");
        for (chain, key, says) in [
            (&chain, &other.serialize_pem(), "tls.key is not the key of"),
            (&certificate(&other), &key, "tls.key is not the key of"),
            (&String::new(), &key, "tls.crt: no certificate"),
            (&key, &key, "tls.crt: no certificate"),
            (&broken, &key, "tls.crt: "),
            (&no_der, &key, "tls.crt: "),
            // One further up the chain.
            (&format!("{chain}{no_der}"), &key, "tls.crt: "),
            (&chain, &String::new(), "tls.key: no key"),
            (&chain, &chain, "tls.key: no key"),
            (&chain, &key.replace("-----END", "-----"), "tls.key: no key"),
            (
                &chain,
                &renamed(secret.as_bytes(), "ENCRYPTED PRIVATE KEY"),
                "tls.key: no key",
            ),
            (
                &chain,
                &renamed(secret.as_bytes(), "PRIVATE KEY"),
                "tls.key: ",
            ),
        ] {
            let error = refused(chain, key);
            assert!(error.contains(says), "{error:?} does not say {says:?}");
            assert!(!error.contains(secret), "{error}");
        }
    }

    #[test]
    fn the_last_good_pair_stays_and_its_sessions_with_it() {
        let tls = Tls::default();
        let pair =
            |key: &KeyPair, chain: &str| Pair::of(chain.as_bytes(), key.serialize_pem().as_bytes());
        let config = || Arc::as_ptr(&tls.pair.load_full().unwrap().config);
        tls.load(Err("gone".into()));
        assert!(!tls.is_ready());
        let (certificate_hash, error) = (tls.report().certificate, tls.report().error);
        assert_eq!((certificate_hash, error.as_deref()), (None, Some("gone")));

        let (first, second) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let chain = certificate(&first);
        tls.load(pair(&first, &chain));
        let (report, in_use) = (tls.report(), config());
        assert!(tls.is_ready() && report.certificate.is_some() && report.error.is_none());
        tls.load(pair(&second, &chain));
        assert_eq!(tls.report().certificate, report.certificate);
        assert!(tls.report().error.unwrap().contains("is not the key of"));
        // Written again, unchanged.
        tls.load(pair(&first, &chain));
        assert_eq!(tls.report(), report);
        assert_eq!(config(), in_use);
        tls.load(pair(&second, &certificate(&second)));
        assert_ne!(tls.report().certificate, report.certificate);
        assert_ne!(config(), in_use);
    }
}
