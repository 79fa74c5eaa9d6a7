//! A credential that the sidecar puts on each request to the server: read from a
//! file that neither the server nor callers see, and again when that changes.

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwapOption;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::UpstreamError;
use crate::source;

/// Largest file.
const MAX_BYTES: usize = 64 * 1024;

/// A header with a value that is secret.
#[derive(Debug)]
pub struct Credential {
    header: HeaderName,
    value: ArcSwapOption<HeaderValue>,
}

impl Credential {
    /// Reads `file`, now and whenever it changes.
    pub fn follow(header: HeaderName, file: PathBuf) -> Arc<Self> {
        let credential = Arc::new(Self {
            header,
            value: ArcSwapOption::empty(),
        });
        let following = Arc::clone(&credential);
        tokio::spawn(source::watch(vec![file.clone()], move || {
            following.load(source::read(&file, MAX_BYTES));
        }));
        credential
    }

    fn load(&self, read: std::io::Result<Vec<u8>>) {
        match read.map(|bytes| value(&bytes)) {
            Ok(Some(value)) => self.value.store(Some(Arc::new(value))),
            // What it says must not be told; the last good one stays.
            Ok(None) => tracing::error!(
                "the credential for the server is empty, or has characters that no header may have"
            ),
            Err(error) => tracing::error!(%error, "the credential for the server cannot be read"),
        }
    }

    /// Puts it on a request.
    ///
    /// # Errors
    /// There is none yet: the request must not go without.
    pub fn put(&self, headers: &mut HeaderMap) -> Result<(), UpstreamError> {
        let value = self.value.load_full();
        let value = value.ok_or_else(|| {
            UpstreamError::Connect("the credential for it has not been read".to_owned())
        })?;
        headers.insert(self.header.clone(), HeaderValue::clone(&value));
        Ok(())
    }
}

/// The value of the header; the end of the line that editors leave is no part.
fn value(bytes: &[u8]) -> Option<HeaderValue> {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    let mut value = HeaderValue::from_bytes(bytes).ok()?;
    value.set_sensitive(true);
    (!bytes.is_empty()).then_some(value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_request_never_goes_without_and_the_last_good_one_stays() {
        let credential = Credential {
            header: HeaderName::from_static("x-api-key"),
            value: ArcSwapOption::empty(),
        };
        let mut headers = HeaderMap::new();
        credential.load(Err(std::io::Error::other("gone")));
        assert!(credential.put(&mut headers).is_err());
        credential.load(Ok(b"secret\n".to_vec()));
        for bad in [&b""[..], b"\n", b"a\nb", b"a\0"] {
            credential.load(Ok(bad.to_vec()));
        }
        headers.insert("x-api-key", HeaderValue::from_static("the server's"));
        credential.put(&mut headers).unwrap();
        assert_eq!(headers.get_all("x-api-key").iter().count(), 1);
        assert_eq!(headers["x-api-key"], "secret");
        assert!(!format!("{headers:?} {credential:?}").contains("secret"));
    }
}
