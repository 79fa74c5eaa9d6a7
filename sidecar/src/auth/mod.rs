//! Who calls: verifies bearer tokens (RFC 6750, RFC 7519, RFC 9068) against the
//! keys of their issuers.
//!
//! Invariants:
//! - The algorithm comes from the issuer and the key, never from the token alone
//!   (RFC 8725 §3.1).
//! - A key belongs to one issuer; `kid` only chooses among its keys.
//! - A remembered token is forgotten when keys, issuers or audience change.
//! - Where the issuer's keys cannot be had, that is what is said: a good token
//!   is never called a bad one.

mod claims;
mod keys;
mod sound;
mod token;

use std::{collections::HashMap, sync::Arc, time::Duration};

use http::{HeaderMap, header::AUTHORIZATION};
use policy::{
    Bundle, Caller, Reason,
    bundle::{Authentication, Issuer, KeySource},
    report::IssuerReport,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

pub use keys::Keys;

use crate::issuers::{Issuers, Source};
use claims::{Audience, Validity};
use token::{Jws, Token};

/// Verified tokens that are remembered, in bytes of what they say.
const REMEMBERED: u64 = 32 * 1024 * 1024;
/// Verified tokens of pods that are remembered.
const REMEMBERED_PODS: u64 = 1_000;

type Digested = [u8; 32];

/// Verifies tokens for one audience.
pub struct Authenticator {
    authentication: Authentication,
    cluster: Option<Issuer>,
    audience: Audience,
    /// By `iss`.
    issuers: HashMap<String, Known>,
    /// For the operator and other replicas.
    platform: Option<Known>,
    verified: moka::sync::Cache<Digested, Arc<Verified>>,
    pods: moka::sync::Cache<Digested, Arc<Pod>>,
    anonymous: Arc<Caller>,
}

/// An issuer with its keys.
struct Known {
    issuer: Issuer,
    keys: Held,
}

enum Held {
    Fixed(Arc<Keys>),
    Fetched(Arc<Source>),
}

/// A token that was verified, and by which keys.
struct Verified {
    caller: Arc<Caller>,
    keys: Arc<Keys>,
    iss: String,
}

/// What a request shows of its caller.
enum Shown<'r> {
    /// One that is known already, or nobody where nobody has to be.
    Caller(Arc<Caller>),
    /// A token whose signature has to be checked.
    Token(Box<ShownToken<'r>>),
}

struct ShownToken<'r> {
    digest: Digested,
    token: Token<'r>,
    known: &'r Known,
    /// Whether it would do, were it signed by its issuer.
    validity: Result<Validity, Reason>,
}

/// A pod of this cluster, as its token names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace, which is its service account's.
    pub namespace: String,
    /// Its name.
    pub name: String,
    expires_at: u64,
}

impl Known {
    fn new(issuer: &Issuer, source: impl FnOnce(&Issuer) -> Arc<Source>) -> Self {
        let keys = match &issuer.keys {
            KeySource::Inline(jwks) => Held::Fixed(Arc::new(usable(issuer, jwks))),
            KeySource::Remote(_) => Held::Fetched(source(issuer)),
        };
        Self {
            issuer: issuer.clone(),
            keys,
        }
    }

    /// The keys that are there now.
    fn keys(&self) -> Result<Arc<Keys>, Reason> {
        match &self.keys {
            Held::Fixed(keys) => Ok(Arc::clone(keys)),
            Held::Fetched(source) => source.keys().ok_or(Reason::IssuerUnavailable),
        }
    }

    /// The keys by which type and signature of a token are right. Those that have
    /// to be fetched first are waited for, a bounded time: also newer ones, where
    /// the token may be signed by a key that was just made.
    async fn checked(&self, token: &Token<'_>) -> Result<Arc<Keys>, Reason> {
        let source = match &self.keys {
            Held::Fixed(keys) => return self.check(token, keys).map(|()| Arc::clone(keys)),
            Held::Fetched(source) => source,
        };
        let keys = source.present().await.ok_or(Reason::IssuerUnavailable)?;
        let keys = match self.check(token, &keys) {
            Ok(()) => return Ok(keys),
            Err(Reason::UnknownKey) => source.renewed().await,
            // Without an id, it may be the successor of the one key that there is.
            Err(Reason::SignatureInvalid) if token.jws.key_id.is_none() => source.renewed().await,
            Err(reason) => return Err(reason),
        };
        // Whether it is good cannot be told without them.
        let keys = keys.ok_or(Reason::IssuerUnavailable)?;
        self.check(token, &keys).map(|()| keys)
    }

    /// As [`Self::checked`], by the keys that are there now.
    fn checked_now(&self, token: &Token<'_>) -> Result<Arc<Keys>, Reason> {
        let keys = self.keys()?;
        self.check(token, &keys).map(|()| keys)
    }

    /// Checks type and signature.
    fn check(&self, token: &Token<'_>, keys: &Keys) -> Result<(), Reason> {
        let types = &self.issuer.types;
        let is_allowed = match token.jws.short_type().as_deref() {
            None => types.none,
            Some("at+jwt") => types.access_token,
            Some("jwt") => types.jwt,
            // `id+jwt`, `logout+jwt`, `dpop+jwt` and the like are no access tokens.
            Some(_) => false,
        };
        // Where `typ` tells nothing, what only tokens of other kinds have does.
        let is_plain = !matches!(token.jws.short_type().as_deref(), Some("at+jwt"));
        if !is_allowed || is_plain && claims::is_of_another_kind(&token.claims) {
            return Err(Reason::TokenType);
        }
        token.jws.verify(keys)
    }
}

/// Checks a JSON Web Signature in compact form, whatever it signs, as it is done
/// for every token.
///
/// # Errors
/// Why it cannot be read, or see [`Keys::verify`].
pub fn verify_signature(jws: &str, keys: &Keys) -> Result<(), Reason> {
    Jws::parse(jws)?.verify(keys)
}

fn usable(issuer: &Issuer, jwks: &Value) -> Keys {
    let (keys, left_out) = Keys::read(jwks, &issuer.algorithms);
    if left_out > 0 || keys.is_empty() {
        tracing::warn!(
            issuer = issuer.name,
            left_out,
            usable = keys.len(),
            "keys of the issuer that cannot be used are left out"
        );
    }
    keys
}

impl Authenticator {
    /// Takes the issuers of a bundle. A key that cannot be used is left out
    /// with a warning: its tokens are refused. Keys that are not in the bundle
    /// are those that `issuers` fetches.
    pub fn new(bundle: &Bundle, issuers: &Issuers) -> Self {
        let Authentication {
            issuers: accepted,
            networks,
            ..
        } = &bundle.authentication;
        let known = |issuer: &Issuer| Known::new(issuer, |issuer| issuers.source(issuer, networks));
        let by_url = |issuer: &Issuer| (issuer.issuer.clone(), known(issuer));
        let lifetime = bundle.authentication.max_token_lifetime_seconds;
        let lifetime = Duration::from_secs(lifetime);
        Self {
            authentication: bundle.authentication.clone(),
            cluster: bundle.cluster.clone(),
            audience: Audience::new(&bundle.audience),
            issuers: accepted.iter().map(by_url).collect(),
            platform: bundle.cluster.as_ref().map(known),
            verified: moka::sync::Cache::builder()
                .max_capacity(REMEMBERED)
                .weigher(|_, verified: &Arc<Verified>| weight(&verified.caller))
                .time_to_live(lifetime)
                .build(),
            pods: moka::sync::Cache::new(REMEMBERED_PODS),
            anonymous: Arc::default(),
        }
    }

    /// Whether this one serves such a configuration, with what it remembers.
    pub fn fits(&self, bundle: &Bundle) -> bool {
        self.authentication == bundle.authentication
            && self.cluster == bundle.cluster
            && self.audience.as_str() == bundle.audience
    }

    /// The caller of a request. `now` is in seconds since 1970. Where the token
    /// names a key that its issuer may just have made, its keys are read first.
    ///
    /// # Errors
    /// Why the request is not let in.
    pub async fn authenticate(&self, headers: &HeaderMap, now: u64) -> Result<Arc<Caller>, Reason> {
        let shown = match self.shown(headers, now)? {
            Shown::Caller(caller) => return Ok(caller),
            Shown::Token(shown) => shown,
        };
        let keys = match &shown.validity {
            Ok(_) => shown.known.checked(&shown.token).await,
            // It will not do whoever signed it, so nothing is fetched for it, and
            // no key that is not there is a reason.
            Err(reason) => match shown.known.checked_now(&shown.token) {
                Err(Reason::IssuerUnavailable | Reason::UnknownKey) => Err(*reason),
                checked => checked,
            },
        };
        self.let_in(shown, keys?)
    }

    /// The caller of a request that was let in before, perhaps by another
    /// configuration; nothing is waited for.
    ///
    /// # Errors
    /// Why it would not be let in now.
    pub fn again(&self, headers: &HeaderMap, now: u64) -> Result<Arc<Caller>, Reason> {
        match self.shown(headers, now)? {
            Shown::Caller(caller) => Ok(caller),
            Shown::Token(shown) => {
                let keys = shown.known.checked_now(&shown.token)?;
                self.let_in(shown, keys)
            }
        }
    }

    /// What a request shows of its caller, before any signature is checked.
    fn shown<'r>(&'r self, headers: &'r HeaderMap, now: u64) -> Result<Shown<'r>, Reason> {
        if self.authentication.anonymous {
            // A token is not asked for, so it is not believed either; two are
            // still one too many.
            return match headers.get_all(AUTHORIZATION).iter().nth(1) {
                None => Ok(Shown::Caller(Arc::clone(&self.anonymous))),
                Some(_) => Err(Reason::TokenMalformed),
            };
        }
        let token = bearer(headers)?;
        if token.len() > token::MAX_BYTES {
            return Err(Reason::TokenTooLarge);
        }
        let digest = Sha256::digest(token).into();
        if let Some(caller) = self.remembered(&digest) {
            return match caller.expires_at {
                Some(expires) if now < expires => Ok(Shown::Caller(caller)),
                _ => Err(Reason::TokenExpired),
            };
        }
        let token = Token::parse(token)?;
        let iss = token.issuer().ok_or(Reason::ClaimInvalid)?;
        let known = self.issuers.get(iss).ok_or(Reason::UnknownIssuer)?;
        let validity = self.validity(&token, now);
        Ok(Shown::Token(Box::new(ShownToken {
            digest,
            token,
            known,
            validity,
        })))
    }

    /// Whether a token is for this server and valid now, whoever signed it.
    fn validity(&self, token: &Token<'_>, now: u64) -> Result<Validity, Reason> {
        let validity = claims::validity(token, &self.audience, now)?;
        let lifetime = validity.expires_at.saturating_sub(validity.issued_at);
        match lifetime <= self.authentication.max_token_lifetime_seconds {
            true => Ok(validity),
            false => Err(Reason::TokenLifetime),
        }
    }

    /// The caller of a token whose signature is right by `keys`.
    fn let_in(&self, shown: Box<ShownToken<'_>>, keys: Arc<Keys>) -> Result<Arc<Caller>, Reason> {
        let ShownToken {
            digest,
            token,
            known,
            validity,
        } = *shown;
        let caller = Arc::new(claims::caller(&token, &known.issuer, validity?)?);
        let verified = Verified {
            caller: Arc::clone(&caller),
            keys,
            iss: known.issuer.issuer.clone(),
        };
        self.verified.insert(digest, Arc::new(verified));
        Ok(caller)
    }

    /// What there is to say of issuers whose keys are fetched.
    pub fn report(&self) -> Vec<IssuerReport> {
        let fetched = self.issuers.values().filter_map(|known| match &known.keys {
            Held::Fixed(_) => None,
            Held::Fetched(source) => Some(source.report()),
        });
        let mut reports: Vec<_> = fetched.collect();
        reports.sort_by(|a, b| a.name.cmp(&b.name));
        reports
    }

    /// The caller of a token that was verified before, by keys that still hold.
    fn remembered(&self, digest: &Digested) -> Option<Arc<Caller>> {
        let verified = self.verified.get(digest)?;
        let keys = self.issuers.get(&verified.iss)?.keys().ok()?;
        Arc::ptr_eq(&keys, &verified.keys).then(|| Arc::clone(&verified.caller))
    }

    /// Whether `headers` carry a token of `subject` for `audience`; for the
    /// admin port.
    pub fn is_subject(&self, headers: &HeaderMap, subject: &str, audience: &str, now: u64) -> bool {
        let checked = bearer(headers).and_then(|token| self.platform(token, audience, now));
        checked.is_ok_and(|(caller, _)| caller.user.as_deref() == Some(subject))
    }

    /// The pod that a token for `audience` is bound to; for the peer port.
    ///
    /// # Errors
    /// Why the token proves nothing. One that is bound to no pod is invalid.
    pub fn pod(&self, token: &str, audience: &str, now: u64) -> Result<Arc<Pod>, Reason> {
        let mut digest = Sha256::new_with_prefix(audience);
        digest.update([0]);
        digest.update(token);
        let digest: Digested = digest.finalize().into();
        let pod = match self.pods.get(&digest) {
            Some(pod) => pod,
            None => {
                let pod = Arc::new(self.verify_pod(token, audience, now)?);
                self.pods.insert(digest, Arc::clone(&pod));
                pod
            }
        };
        if now < pod.expires_at {
            Ok(pod)
        } else {
            Err(Reason::TokenExpired)
        }
    }

    fn verify_pod(&self, token: &str, audience: &str, now: u64) -> Result<Pod, Reason> {
        let (caller, namespace) = self.platform(token, audience, now)?;
        let account = caller.service_account.ok_or(Reason::ClaimInvalid)?;
        if account.split_once('/').map(|(namespace, _)| namespace) != namespace.as_deref() {
            return Err(Reason::ClaimInvalid);
        }
        Ok(Pod {
            namespace: namespace.ok_or(Reason::ClaimInvalid)?,
            name: caller.pod.ok_or(Reason::ClaimInvalid)?,
            expires_at: caller.expires_at.ok_or(Reason::ClaimInvalid)?,
        })
    }

    /// The service account of a token of the cluster's for another audience, and
    /// the namespace that the token says it is of.
    fn platform(
        &self,
        token: &str,
        audience: &str,
        now: u64,
    ) -> Result<(Caller, Option<String>), Reason> {
        let known = self.platform.as_ref().ok_or(Reason::UnknownIssuer)?;
        let token = Token::parse(token)?;
        if token.issuer() != Some(&known.issuer.issuer) {
            return Err(Reason::UnknownIssuer);
        }
        known.check(&token, &*known.keys()?)?;
        let validity = claims::validity(&token, &Audience::new(audience), now)?;
        let namespace = claims::find_in(&token.claims, &["kubernetes.io", "namespace"]);
        let namespace = namespace.and_then(Value::as_str).map(str::to_owned);
        Ok((claims::caller(&token, &known.issuer, validity)?, namespace))
    }
}

/// What a caller takes in memory, about, in bytes.
fn weight(caller: &Caller) -> u32 {
    let names = caller.groups.iter().chain(&caller.scopes);
    let names = names.map(|name| name.len() + size_of::<String>());
    let bytes = size_of::<Caller>() + 512 + names.sum::<usize>();
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// The token of a request (RFC 6750 §2.1).
fn bearer(headers: &HeaderMap) -> Result<&str, Reason> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().map_err(|_| Reason::TokenMalformed)?,
        (Some(_), Some(_)) => return Err(Reason::TokenMalformed),
        (None, _) => return Err(Reason::TokenMissing),
    };
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => match token.trim() {
            // Two in one line.
            token if token.contains([' ', '\t', ',']) => Err(Reason::TokenMalformed),
            token => Ok(token),
        },
        _ => Err(Reason::TokenMissing),
    }
}

#[cfg(test)]
mod tests;
