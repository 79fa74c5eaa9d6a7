//! A certificate of the webhook with its key, and the CA that signed it.
//!
//! Invariants:
//! - What is read verifies: by its own CA, for the webhook's name, with its key.
//! - A CA of our own signs one certificate, and its key is forgotten with that:
//!   nothing is left that could sign another.

use std::{sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::{
    CertificateError, Error, InconsistentKeys, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};

/// Seconds since 1970.
pub type Seconds = u64;

/// A day.
pub const DAY: Seconds = 86_400;
/// For how long a pair of our own is good.
pub const LIFETIME: Seconds = 90 * DAY;

/// Last second that a certificate can name: 9999-12-31T23:59:59Z (RFC 5280
/// §4.1.2.5).
const LAST: Seconds = 253_402_300_799;
/// Later times count as this one, so that there always is a pair that is good.
pub const HORIZON: Seconds = LAST - 2 * LIFETIME;
/// Pairs of our own are good since 2000-01-01, so that none is too new for a
/// clock that is behind ours.
const FIRST: Seconds = 946_684_800;

/// A pair as plans see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// Differs when the certificate or its CA differs.
    pub id: String,
    /// The CAs by which it verifies, each in PEM form.
    pub cas: Vec<String>,
    /// Good from this second.
    pub from: Seconds,
    /// Good up to this second.
    pub until: Seconds,
}

impl Life {
    /// Whether the pair is good now.
    pub fn is_good(&self, now: Seconds) -> bool {
        (self.from..=self.until).contains(&now)
    }
}

/// A certificate with its chain, its key and its CA, all in PEM form.
#[derive(Clone)]
pub struct Pair {
    /// The CAs, one after the other.
    pub ca: String,
    /// The certificate, and what is between it and its CA.
    pub certificate: String,
    /// The private key.
    pub key: String,
    /// As plans see it.
    pub life: Life,
    /// As TLS uses it.
    pub certified: Arc<CertifiedKey>,
}

impl std::fmt::Debug for Pair {
    /// Nothing of the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pair").field(&self.life).finish()
    }
}

impl Pair {
    /// Makes a pair for a name, with a CA of its own (ECDSA, P-256).
    ///
    /// # Errors
    /// The cryptography of this system fails, or the name is none of DNS.
    pub fn make(name: &str, now: Seconds) -> Result<Self, String> {
        let (ca, certificate, key) = sign(name, now).map_err(|error| error.to_string())?;
        Self::read(name, &ca, &certificate, &key)
    }

    /// Reads a pair for a name. Errors have nothing of the key in them.
    ///
    /// # Errors
    /// What is wrong with which part.
    pub fn read(name: &str, ca: &str, certificate: &str, key: &str) -> Result<Self, String> {
        let cas = authorities(ca);
        if cas.is_empty() {
            return Err("ca.crt: no certificate of a CA in PEM form".to_owned());
        }
        let wrong = |error: &dyn std::fmt::Display| format!("tls.crt: {error}");
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes());
        let chain = chain.collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| wrong(&error))?;
        let der = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| {
            "tls.key: no key in PEM form (PKCS#8, PKCS#1 or SEC1, not encrypted)".to_owned()
        })?;
        let certified = CertifiedKey::from_der(chain, der, &aws_lc_rs::default_provider());
        let certified = certified.map_err(|error| match error {
            Error::NoCertificatesPresented => wrong(&"no certificate in PEM form"),
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                "tls.key is not the key of the first certificate in tls.crt".to_owned()
            }
            error => wrong(&error),
        })?;
        let (from, until) = span(name, &cas, &certified.cert).map_err(|error| wrong(&error))?;
        let id = policy::bundle::hash(format!("{ca}\n{certificate}").as_bytes());
        Ok(Self {
            ca: ca.to_owned(),
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            life: Life {
                id,
                cas,
                from,
                until,
            },
            certified: Arc::new(certified),
        })
    }
}

/// CA, certificate and key.
fn sign(name: &str, now: Seconds) -> Result<(String, String, String), rcgen::Error> {
    let moment =
        |second: Seconds| date_time_ymd(1970, 1, 1) + Duration::from_secs(second.min(LAST));
    let from = moment(now.min(FIRST));
    let until = moment(now.saturating_add(LIFETIME));
    let named = |name: &str| {
        let mut names = DistinguishedName::new();
        names.push(DnType::CommonName, name);
        names
    };
    let (ca_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
    let mut ca = CertificateParams::default();
    // A name of its own, so that nobody takes one CA for another.
    ca.distinguished_name = named(&format!("toolward-webhook {:016x}", rand::random::<u64>()));
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    ca.not_before = from;
    ca.not_after = until;
    let mut leaf = CertificateParams::new(vec![name.to_owned()])?;
    leaf.distinguished_name = named("toolward-webhook");
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    leaf.not_before = from;
    leaf.not_after = until;
    let authority = ca.self_signed(&ca_key)?.pem();
    let certificate = leaf.signed_by(&key, &Issuer::new(ca, ca_key))?.pem();
    Ok((authority, certificate, key.serialize_pem()))
}

/// When a certificate is good, where it verifies at all.
fn span(
    name: &str,
    cas: &[String],
    chain: &[CertificateDer<'static>],
) -> Result<(Seconds, Seconds), String> {
    let mut roots = RootCertStore::empty();
    for ca in cas {
        let ca =
            CertificateDer::from_pem_slice(ca.as_bytes()).map_err(|error| error.to_string())?;
        roots.add(ca).map_err(|error| error.to_string())?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let verifier = verifier.map_err(|error| error.to_string())?;
    let name = ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?;
    let (first, others) = chain.split_first().ok_or("no certificate in PEM form")?;
    let at = |second| {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(second));
        verifier.verify_server_cert(first, others, &name, &[], time)
    };
    // Out of time, the verifier says since when, and that before all else.
    let until = match at(LAST + 1) {
        Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            not_after.as_secs()
        }
        Err(error) => return Err(error.to_string()),
        Ok(_) => LAST,
    };
    let from = match at(0) {
        Err(Error::InvalidCertificate(CertificateError::NotValidYetContext {
            not_before, ..
        })) => not_before.as_secs(),
        _ => 0,
    };
    at(until).map_err(|error| error.to_string())?;
    Ok((from, until))
}

/// The certificates of CAs in a text, each once and in one spelling; what is
/// none is left out.
pub fn authorities(text: &str) -> Vec<String> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut found: Vec<String> = Vec::new();
    let mut open: Option<String> = None;
    for line in text.lines().map(str::trim) {
        if line == BEGIN {
            open = Some(String::new());
        }
        let Some(block) = &mut open else { continue };
        block.push_str(line);
        block.push('\n');
        if line == END {
            let block = open.take().unwrap_or_default();
            if is_authority(&block) && !found.contains(&block) {
                found.push(block);
            }
        }
    }
    found
}

fn is_authority(block: &str) -> bool {
    let der = CertificateDer::from_pem_slice(block.as_bytes());
    der.is_ok_and(|der| RootCertStore::empty().add(der).is_ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NAME: &str = "toolward-webhook.toolward-system.svc";
    const NOW: Seconds = 1_800_000_000;

    #[test]
    fn a_pair_is_good_for_its_time_whatever_the_clock_says() {
        for now in [0, NOW, LAST - LIFETIME, LAST, u64::MAX] {
            let pair = Pair::make(NAME, now).unwrap();
            let Life { from, until, .. } = pair.life;
            assert_eq!(from, now.min(FIRST), "{now}");
            assert_eq!(until, now.saturating_add(LIFETIME).min(LAST), "{now}");
            let again = Pair::read(NAME, &pair.ca, &pair.certificate, &pair.key).unwrap();
            assert_eq!(again.life, pair.life);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_says_nothing_of_the_key() {
        let (ours, other) = (
            Pair::make(NAME, NOW).unwrap(),
            Pair::make(NAME, NOW).unwrap(),
        );
        let (ca, chain, key) = (&ours.ca, &ours.certificate, &ours.key);
        let secret = key.lines().nth(1).unwrap();
        let empty = String::new();
        for (name, ca, chain, key, says) in [
            (NAME, &empty, chain, key, "ca.crt: no certificate"),
            (NAME, key, chain, key, "ca.crt: no certificate"),
            (NAME, &other.ca, chain, key, "tls.crt: "),
            (NAME, ca, &empty, key, "tls.crt: no certificate"),
            (NAME, ca, key, key, "tls.crt: no certificate"),
            (NAME, ca, &other.certificate, key, "tls.key is not the key"),
            (NAME, ca, chain, &other.key, "tls.key is not the key"),
            (NAME, ca, chain, chain, "tls.key: no key"),
            (NAME, ca, chain, &empty, "tls.key: no key"),
            ("other.toolward-system.svc", ca, chain, key, "tls.crt: "),
            // A CA is no server.
            (NAME, ca, ca, key, "tls.key is not the key"),
        ] {
            let error = Pair::read(name, ca, chain, key).unwrap_err();
            assert!(error.contains(says), "{error:?} does not say {says:?}");
            assert!(!error.contains(secret), "{error}");
        }
        assert!(!format!("{ours:?}").contains(secret));
    }

    #[test]
    fn authorities_are_found_once_among_other_text() {
        let (one, two) = (
            Pair::make(NAME, NOW).unwrap(),
            Pair::make(NAME, NOW).unwrap(),
        );
        let cut = one.ca.replace("-----END CERTIFICATE-----", "");
        let windows = one.ca.replace('\n', "\r\n");
        let text = format!("# ours\n{}{cut}{}\n{windows}{}", one.ca, two.ca, one.key);
        assert_eq!(authorities(&text), [one.ca, two.ca]);
        assert!(authorities("garbage").is_empty());
    }
}
