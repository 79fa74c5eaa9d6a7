//! Tells the server who calls: a short-lived assertion, a JWT that the sidecar
//! signs with a key of its own.
//!
//! Invariants:
//! - The key is made at start and never leaves this process; its public half is
//!   published by the operator (see [`publish`]).
//! - Nobody's assertion is reused for anybody else, and none outlives the token
//!   of the call that it was made for.
//! - What looks like an assertion and comes from outside never reaches the server
//!   (see [`foreign`]), whether the server is told or not.

pub mod foreign;
pub mod publish;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderName, HeaderValue, StatusCode, header::RETRY_AFTER};
use policy::{Bundle, Caller, Reason, report::IdentityReport};
use sealed::{KeySet, PublicKey};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{refusal::Refusal, wire};

/// The header of requests to a server behind HTTP.
pub const HEADER: HeaderName = HeaderName::from_static("toolward-identity");
/// The member of `_meta` of requests to a server on stdio.
pub const MEMBER: &str = "toolward.dev/identity";
/// `typ` of an assertion.
pub const TYPE: &str = "toolward-identity+jwt";
/// An assertion is valid for this time, in seconds; less where the caller's token
/// is.
pub const LIFETIME: u64 = 60;
/// It is used for calls of the same caller for this time, in seconds.
const REUSED: u64 = 20;
/// And only while it is valid for this time, in seconds.
const LEFT: u64 = 30;
/// Assertions that are kept for it.
const MAX_KEPT: usize = 10_000;

/// The sidecar's own identity, and what it asserts of others.
pub struct Identity {
    key: Option<Key>,
    /// File with the token of this pod, for the operator.
    token: Option<PathBuf>,
    published: AtomicBool,
    kept: Mutex<Kept>,
}

struct Key {
    pair: EcdsaKeyPair,
    public: PublicKey,
    kid: String,
    /// The header of all its assertions, and the dot after it.
    head: String,
}

/// Assertions by the SHA-256 of whom they are of.
#[derive(Default)]
struct Kept {
    assertions: HashMap<[u8; 32], Made>,
    swept: u64,
}

struct Made {
    assertion: Assertion,
    at: u64,
    expires: u64,
}

impl Made {
    fn is_fresh(&self, now: u64) -> bool {
        (self.at..self.at + REUSED).contains(&now) && now + LEFT <= self.expires
    }
}

/// A signed assertion. Its text is not shown by `Debug`.
#[derive(Clone, Debug)]
pub struct Assertion(HeaderValue);

impl Assertion {
    /// As the value of [`HEADER`].
    pub fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    /// The parameters of a request, with the assertion as [`MEMBER`] of `_meta`.
    ///
    /// # Errors
    /// `_meta` is no object.
    pub fn in_params(&self, params: Option<&str>) -> Result<String, String> {
        let text = self.0.to_str().map_err(|error| error.to_string())?;
        let value = json!(text).to_string();
        let added = wire::edit(params.unwrap_or("{}"), &["_meta", MEMBER], Some(&value));
        added.map_err(|error| format!("params._meta: {error}"))
    }
}

/// What an assertion says.
#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    iat: u64,
    nbf: u64,
    exp: u64,
    jti: &'a str,
    /// The user (RFC 9493 §3.2.4).
    sub_id: SubjectId<'a>,
    /// The agent (RFC 8693 §4.1).
    #[serde(skip_serializing_if = "Option::is_none")]
    act: Option<Actor<'a>>,
    groups: &'a [String],
}

#[derive(Serialize)]
struct SubjectId<'a> {
    format: &'static str,
    iss: &'a str,
    sub: &'a str,
}

#[derive(Serialize)]
struct Actor<'a> {
    iss: &'a str,
    sub: &'a str,
}

/// Of whom an assertion is, and for which server.
#[derive(Clone, Copy)]
struct Of<'a> {
    url: &'a str,
    /// The issuer's URL.
    issuer: &'a str,
    user: &'a str,
    agent: Option<&'a str>,
    groups: &'a [String],
}

impl Of<'_> {
    /// Different for each.
    fn digest(&self) -> [u8; 32] {
        let agent = self.agent.into_iter();
        let fields = [self.url, self.issuer, self.user].into_iter();
        let groups = self.groups.iter().map(String::as_str);
        // Says where groups begin.
        let mut digest = Sha256::new_with_prefix([u8::from(self.agent.is_some())]);
        for field in fields.chain(agent).chain(groups) {
            digest.update(field.len().to_be_bytes());
            digest.update(field);
        }
        digest.finalize().into()
    }
}

impl Identity {
    /// One that asserts nothing.
    pub fn none() -> Self {
        Self {
            key: None,
            token: None,
            published: AtomicBool::new(false),
            kept: Mutex::default(),
        }
    }

    /// Makes a key. `token` is the file with the token of this pod, by which the
    /// operator knows whose the key is.
    ///
    /// # Errors
    /// Where the system gives no key.
    pub fn new(token: Option<PathBuf>) -> anyhow::Result<Self> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .ok()
            .context("the key for assertions cannot be made")?;
        let public = PublicKey::of_point(pair.public_key().as_ref())?;
        let kid = public.kid();
        let head = json!({"typ": TYPE, "alg": "ES256", "kid": kid}).to_string();
        let head = URL_SAFE_NO_PAD.encode(head) + ".";
        let key = Key {
            pair,
            public,
            kid,
            head,
        };
        Ok(Self {
            key: Some(key),
            token,
            ..Self::none()
        })
    }

    /// For `/status`.
    pub fn report(&self) -> Option<IdentityReport> {
        let key = self.key.as_ref()?;
        Some(IdentityReport {
            kid: key.kid.clone(),
            published: self.published.load(Ordering::Acquire),
        })
    }

    /// Takes the set of public keys, as read from its file: whether ours is in it.
    /// One that cannot be read changes nothing.
    pub fn load(&self, read: std::io::Result<Vec<u8>>) {
        let Some(key) = &self.key else { return };
        let set = read.map_err(|error| error.to_string()).and_then(|bytes| {
            serde_json::from_slice::<KeySet>(&bytes).map_err(|error| error.to_string())
        });
        match set {
            Ok(set) => {
                let is_there = set.keys.contains(&key.public);
                let was_there = self.published.swap(is_there, Ordering::AcqRel);
                if is_there != was_there {
                    tracing::info!(kid = key.kid, published = is_there, "key for assertions");
                }
            }
            Err(error) => tracing::warn!(error, "the set of public keys cannot be read"),
        }
    }

    /// Writes the set of public keys, which is ours alone: where there is no
    /// operator.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let keys = self.key.iter().map(|key| key.public.clone()).collect();
        let (file, new) = (folder.join(sealed::KEYS_FILE), folder.join(".jwks.json"));
        std::fs::write(&new, serde_json::to_vec(&KeySet { keys })?)
            .and_then(|()| std::fs::rename(&new, &file))
            .with_context(|| format!("{} cannot be written", file.display()))?;
        self.published.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether what is asserted can be checked, where the server is to be told. A
    /// sidecar that was started before that was asked for has no key: it serves as
    /// before, asserts nothing, and has to be replaced.
    pub fn is_ready(&self, bundle: &Bundle) -> bool {
        !bundle.identity || self.key.is_none() || self.published.load(Ordering::Acquire)
    }

    /// Lets no call pass of which the server could not check who calls.
    ///
    /// # Errors
    /// 503.
    pub fn check(&self, bundle: &Bundle) -> Result<(), Refusal> {
        let not = "the key by which the server knows who calls is not published yet: try again";
        match self.is_ready(bundle) {
            true => Ok(()),
            false => Err(unavailable(not)),
        }
    }

    /// The assertion that a call carries; none where the server is not to be told,
    /// or the caller is nobody. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// 503, where it cannot be made.
    pub fn assertion(
        &self,
        bundle: &Bundle,
        caller: &Caller,
        now: u64,
    ) -> Result<Option<Assertion>, Refusal> {
        let Some(key) = self.key.as_ref().filter(|_| bundle.identity) else {
            return Ok(None);
        };
        let (Some(name), Some(user)) = (&caller.issuer, &caller.user) else {
            return Ok(None);
        };
        let mut issuers = bundle.authentication.issuers.iter();
        let issuer = issuers.find(|issuer| issuer.name == *name);
        let (Some(issuer), Some(token_expires)) = (issuer, caller.expires_at) else {
            return Err(unavailable("who calls cannot be told to the server"));
        };
        let of = Of {
            url: &bundle.url,
            issuer: &issuer.issuer,
            user,
            agent: caller.agent.as_deref(),
            groups: &caller.groups,
        };
        let by = of.digest();
        if let Some(kept) = self.kept(&by, now, token_expires) {
            return Ok(Some(kept));
        }
        let expires = token_expires.min(now + LIFETIME);
        let assertion = key
            .assert(of, now, expires)
            .map_err(|_| unavailable("who calls cannot be signed for the server"))?;
        self.keep(by, now, expires, &assertion);
        Ok(Some(assertion))
    }

    fn kept(&self, by: &[u8; 32], now: u64, token_expires: u64) -> Option<Assertion> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let made = kept.assertions.get(by)?;
        // The token of this call may expire before that of an earlier one.
        let is_good = made.is_fresh(now) && made.expires <= token_expires;
        is_good.then(|| made.assertion.clone())
    }

    fn keep(&self, by: [u8; 32], at: u64, expires: u64, assertion: &Assertion) {
        let made = Made {
            assertion: assertion.clone(),
            at,
            expires,
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Kept { assertions, swept } = &mut *kept;
        // A sweep looks at all of them: not for each. A clock may go back.
        let is_due = !(*swept..*swept + REUSED).contains(&at);
        if is_due || assertions.len() >= MAX_KEPT && *swept != at {
            assertions.retain(|_, made| made.is_fresh(at));
            *swept = at;
        }
        if assertions.len() >= MAX_KEPT && !assertions.contains_key(&by) {
            return; // The next call has one of its own.
        }
        assertions.insert(by, made);
    }
}

impl Key {
    fn assert(&self, of: Of<'_>, now: u64, expires: u64) -> anyhow::Result<Assertion> {
        let mut random = [0_u8; 16];
        getrandom::fill(&mut random)?;
        let Of {
            url,
            issuer: iss,
            user,
            agent,
            groups,
        } = of;
        let claims = Claims {
            iss: url,
            aud: url,
            iat: now,
            nbf: now,
            exp: expires,
            jti: &URL_SAFE_NO_PAD.encode(random),
            sub_id: SubjectId {
                format: "iss_sub",
                iss,
                sub: user,
            },
            act: agent.map(|sub| Actor { iss, sub }),
            groups,
        };
        let mut jws = self.head.clone();
        URL_SAFE_NO_PAD.encode_string(serde_json::to_vec(&claims)?, &mut jws);
        let signature = self
            .pair
            .sign(&SystemRandom::new(), jws.as_bytes())
            .ok()
            .context("signing")?;
        jws.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut jws);
        let mut value = HeaderValue::try_from(jws)?;
        value.set_sensitive(true);
        Ok(Assertion(value))
    }
}

fn unavailable(message: &str) -> Refusal {
    Refusal {
        header: Some((RETRY_AFTER, HeaderValue::from_static("1"))),
        ..Refusal::new(
            Reason::IdentityUnavailable,
            StatusCode::SERVICE_UNAVAILABLE,
            message,
        )
    }
}

#[cfg(test)]
mod tests;
