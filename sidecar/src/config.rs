//! The configuration in force: a bundle, swapped whole.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use policy::{
    Bundle,
    report::{BundleReport, RejectedBundle},
};
use tokio::sync::watch;

use crate::{auth::Authenticator, issuers::Issuers, resource::Resource};

/// What the pipeline decides with.
pub struct Active {
    /// The bundle.
    pub bundle: Bundle,
    /// `sha256:…` of its bytes.
    pub hash: String,
    /// Verifies tokens.
    pub authenticator: Arc<Authenticator>,
    /// `namespace/name`, for the audit log.
    pub server: String,
    /// Path of the MCP endpoint.
    pub path: String,
    /// Hosts that requests may name, in lower case, without port.
    pub hosts: Vec<String>,
    /// Whether callers come by https: the URL says so.
    pub is_https: bool,
    /// What callers without a token are told; none where no token is asked for.
    pub resource: Option<Resource>,
}

/// Holds the [`Active`] configuration. Without one, everything is denied.
pub struct Store {
    active: ArcSwapOption<Active>,
    rejected: Mutex<Option<RejectedBundle>>,
    changed: watch::Sender<()>,
    issuers: Issuers,
}

impl Default for Store {
    fn default() -> Self {
        Self::new(Issuers::default())
    }
}

impl Store {
    /// Without a configuration.
    pub fn new(issuers: Issuers) -> Self {
        Self {
            active: ArcSwapOption::empty(),
            rejected: Mutex::default(),
            changed: watch::channel(()).0,
            issuers,
        }
    }

    /// The configuration in force; none before the first bundle.
    pub fn active(&self) -> Option<Arc<Active>> {
        self.active.load_full()
    }

    /// Resolves after each change.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Puts a written bundle in force; false: it is already.
    ///
    /// # Errors
    /// It cannot be read: the last good one stays in force, and
    /// [`Store::report`] says so.
    pub fn load(&self, bytes: &[u8]) -> Result<bool, String> {
        let hash = policy::bundle::hash(bytes);
        let is_active = self.active().is_some_and(|active| active.hash == hash);
        let taken = match is_active {
            true => Ok(()),
            false => Bundle::from_json(bytes)
                .map_err(|error| error.to_string())
                .and_then(|bundle| self.activate(bundle, &hash)),
        };
        match taken {
            Ok(()) => {
                *self.rejected.lock().unwrap_or_else(PoisonError::into_inner) = None;
                if !is_active {
                    self.changed.send_replace(());
                }
                Ok(!is_active)
            }
            Err(error) => {
                let rejected = RejectedBundle {
                    hash,
                    error: error.clone(),
                };
                *self.rejected.lock().unwrap_or_else(PoisonError::into_inner) = Some(rejected);
                Err(error)
            }
        }
    }

    fn activate(&self, bundle: Bundle, hash: &str) -> Result<(), String> {
        let url: http::Uri = bundle
            .url
            .parse()
            .map_err(|error| format!("url {:?}: {error}", bundle.url))?;
        let host = url
            .host()
            .ok_or_else(|| format!("url {:?} has no host", bundle.url))?;
        let hosts = std::iter::once(host)
            .chain(bundle.hosts.iter().map(String::as_str))
            .map(str::to_ascii_lowercase)
            .collect();
        let kept = self
            .active()
            .filter(|active| active.authenticator.fits(&bundle));
        let authenticator = match kept {
            Some(active) => Arc::clone(&active.authenticator),
            None => Arc::new(Authenticator::new(&bundle, &self.issuers)),
        };
        let resource = Resource::new(&bundle, &url);
        let server = format!("{}/{}", bundle.server.namespace, bundle.server.name);
        let path = url.path().to_owned();
        let is_https = url.scheme() == Some(&http::uri::Scheme::HTTPS);
        self.active.store(Some(Arc::new(Active {
            bundle,
            hash: hash.to_owned(),
            authenticator,
            server,
            path,
            hosts,
            is_https,
            resource,
        })));
        Ok(())
    }

    /// Notes a bundle that could not even be read from its file.
    pub fn reject(&self, error: String) {
        let rejected = RejectedBundle {
            hash: String::new(),
            error,
        };
        *self.rejected.lock().unwrap_or_else(PoisonError::into_inner) = Some(rejected);
    }

    /// For `/status`.
    pub fn report(&self) -> BundleReport {
        BundleReport {
            reads: policy::bundle::VERSION,
            hash: self.active().map(|active| active.hash.clone()),
            rejected: self
                .rejected
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_later_bundle_that_cannot_be_read_leaves_the_last_good_one() {
        let store = Store::default();
        assert!(store.load(b"{}").is_err());
        assert!(
            store.active().is_none(),
            "no bundle since the start: nothing is in force"
        );
        let context = policy::Context {
            default_url: "http://orders.shop.svc/mcp".into(),
            ..policy::Context::default()
        };
        let good = policy::deny_all("shop", "orders", &context, "test")
            .to_json()
            .unwrap();
        store.load(good.as_bytes()).unwrap();
        let hash = store.report().hash;
        for bad in [
            good.replace("\"version\":2", "\"version\":3"),
            good.replace("\"rules\"", "\"rulez\""),
            good[..50].to_owned(),
        ] {
            assert!(store.load(bad.as_bytes()).is_err());
            assert_eq!(store.report().hash, hash);
            assert_eq!(
                store.report().rejected.unwrap().hash,
                policy::bundle::hash(bad.as_bytes())
            );
        }
        store.load(good.as_bytes()).unwrap();
        assert_eq!(store.report().rejected, None);
    }
}
