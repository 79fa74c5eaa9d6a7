//! Who calls: verifies bearer tokens (RFC 6750, RFC 7519) against the keys in
//! the bundle.
//!
//! Invariants:
//! - The algorithm comes from the key, never from the token alone (RFC 8725 §3.1).
//! - A key belongs to one issuer; `kid` only chooses among its keys.
//! - A remembered token is forgotten when keys, issuers or audience change.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, header::AUTHORIZATION};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
};
use policy::{
    Caller, Reason,
    bundle::{Authentication, Issuer},
};
use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

/// A longer token is refused unread.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Verified tokens that are remembered.
const REMEMBERED: u64 = 10_000;
/// Verified tokens of pods that are remembered.
const REMEMBERED_PODS: u64 = 1_000;
/// How far a token's `nbf` and `iat` may be ahead of our clock, in seconds.
const LEEWAY: u64 = 60;

/// Verifies tokens for one audience.
pub struct Authenticator {
    authentication: Authentication,
    audience: String,
    issuers: Vec<Keys>,
    verified: moka::sync::Cache<[u8; 32], Arc<Caller>>,
    pods: moka::sync::Cache<[u8; 32], Arc<Pod>>,
    anonymous: Arc<Caller>,
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

struct Keys {
    issuer: Issuer,
    keys: Vec<Key>,
}

struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: f64,
    nbf: Option<f64>,
    iat: Option<f64>,
    azp: Option<String>,
    client_id: Option<String>,
    #[serde(default)]
    groups: Vec<String>,
}

/// Claims of a token that is bound to a pod.
#[derive(Deserialize)]
struct PodClaims {
    #[serde(flatten)]
    claims: Claims,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: String,
    pod: PodName,
}

#[derive(Deserialize)]
struct PodName {
    name: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Audience {
    fn names(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Several(several) => several.iter().any(|one| one == audience),
        }
    }
}

impl Authenticator {
    /// Takes the keys of all issuers. A key that cannot be used is left out
    /// with a warning: its tokens are refused.
    pub fn new(authentication: &Authentication, audience: &str) -> Self {
        let keys_of = |issuer: &Issuer| Keys {
            issuer: issuer.clone(),
            keys: usable_keys(issuer),
        };
        Self {
            authentication: authentication.clone(),
            audience: audience.to_owned(),
            issuers: authentication.issuers.iter().map(keys_of).collect(),
            verified: moka::sync::Cache::new(REMEMBERED),
            pods: moka::sync::Cache::new(REMEMBERED_PODS),
            anonymous: Arc::default(),
        }
    }

    /// Whether this one serves such a configuration, with what it remembers.
    pub fn fits(&self, authentication: &Authentication, audience: &str) -> bool {
        self.authentication == *authentication && self.audience == audience
    }

    /// The caller of a request. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// Why the request is answered with 401.
    pub fn authenticate(&self, headers: &HeaderMap, now: u64) -> Result<Arc<Caller>, Reason> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let value = match (values.next(), values.next()) {
            (Some(value), None) => value,
            (Some(_), Some(_)) => return Err(Reason::TokenInvalid),
            (None, _) if self.authentication.anonymous => return Ok(Arc::clone(&self.anonymous)),
            (None, _) => return Err(Reason::TokenMissing),
        };
        if self.authentication.anonymous {
            // The token is not asked for, so it is not believed either.
            return Ok(Arc::clone(&self.anonymous));
        }
        let value = value.to_str().map_err(|_| Reason::TokenInvalid)?;
        let token = match value.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            _ => return Err(Reason::TokenMissing),
        };
        let caller = self.remembered(token, now)?;
        match caller.expires_at {
            Some(expires) if now < expires => Ok(caller),
            _ => Err(Reason::TokenExpired),
        }
    }

    fn remembered(&self, token: &str, now: u64) -> Result<Arc<Caller>, Reason> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Reason::TokenInvalid);
        }
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(caller) = self.verified.get(&digest) {
            return Ok(caller);
        }
        let caller = Arc::new(self.verify(token, &self.audience, now)?);
        self.verified.insert(digest, Arc::clone(&caller));
        Ok(caller)
    }

    /// Whether `headers` carry a token of `subject` for `audience`; for the
    /// admin port.
    pub fn is_subject(&self, headers: &HeaderMap, subject: &str, audience: &str, now: u64) -> bool {
        let token = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let Some(token) = token.filter(|token| token.len() <= MAX_TOKEN_BYTES) else {
            return false;
        };
        self.verify(token, audience, now).is_ok_and(|caller| {
            caller.user.as_deref() == Some(subject)
                && caller.expires_at.is_some_and(|expires| now < expires)
        })
    }

    /// The pod that a token for `audience` is bound to; for the peer port.
    ///
    /// # Errors
    /// Why the token proves nothing. One that is bound to no pod is invalid.
    pub fn pod(&self, token: &str, audience: &str, now: u64) -> Result<Arc<Pod>, Reason> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Reason::TokenInvalid);
        }
        let mut digest = Sha256::new_with_prefix(audience);
        digest.update([0]);
        digest.update(token);
        let digest: [u8; 32] = digest.finalize().into();
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
        let (PodClaims { claims, kubernetes }, issuer) = self.claims(token)?;
        let caller = caller_of(claims, issuer, audience, now)?;
        let account = caller.service_account.ok_or(Reason::TokenInvalid)?;
        let Kubernetes { namespace, pod } = kubernetes;
        if account.split_once('/').map(|(namespace, _)| namespace) != Some(&namespace) {
            return Err(Reason::TokenInvalid);
        }
        Ok(Pod {
            namespace,
            name: pod.name,
            expires_at: caller.expires_at.ok_or(Reason::TokenInvalid)?,
        })
    }

    fn verify(&self, token: &str, audience: &str, now: u64) -> Result<Caller, Reason> {
        let (claims, issuer) = self.claims(token)?;
        caller_of(claims, issuer, audience, now)
    }

    /// What a token claims, its signature checked and nothing else.
    fn claims<C: DeserializeOwned>(&self, token: &str) -> Result<(C, &Issuer), Reason> {
        let header = decode_header(token).map_err(|_| Reason::TokenInvalid)?;
        if !header
            .typ
            .as_deref()
            .is_none_or(|typ| ["jwt", "at+jwt"].contains(&typ.to_ascii_lowercase().as_str()))
        {
            return Err(Reason::TokenInvalid);
        }
        if header.crit.is_some() {
            return Err(Reason::TokenInvalid); // RFC 7515 §4.1.11: we know none of them.
        }
        let named = unverified_issuer(token).ok_or(Reason::TokenInvalid)?;
        let issuer = self
            .issuers
            .iter()
            .find(|keys| keys.issuer.issuer == named)
            .ok_or(Reason::TokenInvalid)?;
        let mut candidates = issuer.keys.iter().filter(|key| match &header.kid {
            Some(id) => key.id.as_ref() == Some(id),
            None => issuer.keys.len() == 1,
        });
        let key = candidates
            .find(|key| key.algorithms.contains(&header.alg))
            .ok_or(Reason::TokenInvalid)?;
        let claims = decode::<C>(token, &key.key, &signature_only(header.alg))
            .map_err(|_| Reason::TokenInvalid)?
            .claims;
        Ok((claims, &issuer.issuer))
    }
}

/// The signature is checked by the library, the claims by [`caller_of`], so
/// that each failure has a reason of its own.
fn signature_only(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation
}

/// The `iss` of a token that is not verified yet: it only chooses the keys.
fn unverified_issuer(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        iss: String,
    }
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice::<Named>(&payload)
        .ok()
        .map(|named| named.iss)
}

fn caller_of(claims: Claims, issuer: &Issuer, audience: &str, now: u64) -> Result<Caller, Reason> {
    if claims.iss != issuer.issuer || claims.sub.is_empty() {
        return Err(Reason::TokenInvalid);
    }
    if !claims.aud.names(audience) {
        return Err(Reason::WrongAudience);
    }
    let expires_at = seconds(claims.exp).ok_or(Reason::TokenInvalid)?;
    for start in [claims.nbf, claims.iat].into_iter().flatten() {
        if seconds(start).ok_or(Reason::TokenInvalid)? > now + LEEWAY {
            return Err(Reason::TokenExpired);
        }
    }
    let service_account = issuer
        .service_accounts
        .then(|| service_account(&claims.sub))
        .flatten();
    if issuer.service_accounts && service_account.is_none() {
        return Err(Reason::TokenInvalid);
    }
    let agent = match service_account {
        Some(_) => Some(claims.sub.clone()),
        None => claims.azp.or(claims.client_id),
    };
    Ok(Caller {
        issuer: Some(issuer.name.clone()),
        user: Some(claims.sub),
        agent,
        groups: claims.groups,
        service_account,
        expires_at: Some(expires_at),
    })
}

/// A NumericDate (RFC 7519 §2) as whole seconds.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // The range is checked.
fn seconds(date: f64) -> Option<u64> {
    (date.is_finite() && (0.0..1e12).contains(&date)).then_some(date as u64)
}

/// `namespace/name` of `system:serviceaccount:namespace:name`.
fn service_account(subject: &str) -> Option<String> {
    let (namespace, name) = subject
        .strip_prefix("system:serviceaccount:")?
        .split_once(':')?;
    let good = |part: &str| !part.is_empty() && !part.contains([':', '/']);
    (good(namespace) && good(name)).then(|| format!("{namespace}/{name}"))
}

fn usable_keys(issuer: &Issuer) -> Vec<Key> {
    let keys = issuer.jwks["keys"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let usable = |value: &serde_json::Value| {
        let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
        if !matches!(
            jwk.common.public_key_use,
            None | Some(PublicKeyUse::Signature)
        ) {
            return None;
        }
        let mut algorithms = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => vec![Algorithm::RS256, Algorithm::PS256],
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                vec![Algorithm::ES256]
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                vec![Algorithm::EdDSA]
            }
            _ => return None,
        };
        if let Some(only) = &jwk.common.key_algorithm {
            algorithms.retain(|algorithm| format!("{algorithm:?}") == only.to_string());
        }
        Some(Key {
            id: jwk.common.key_id.clone(),
            algorithms,
            key: DecodingKey::from_jwk(&jwk).ok()?,
        })
    };
    let usable: Vec<_> = keys.iter().filter_map(usable).collect();
    if usable.len() < keys.len() || usable.is_empty() {
        tracing::warn!(
            issuer = issuer.name,
            given = keys.len(),
            usable = usable.len(),
            "keys of the issuer that cannot be used are left out"
        );
    }
    usable
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::HeaderValue;
    use serde_json::json;

    use super::*;
    use crate::dev::DevIssuer;

    const NOW: u64 = 1_800_000_000;

    fn authenticator(issuer: &DevIssuer) -> Authenticator {
        let authentication = Authentication {
            anonymous: false,
            issuers: vec![issuer.issuer()],
        };
        Authenticator::new(&authentication, "http://orders/mcp")
    }

    fn bearer(token: &str) -> HeaderMap {
        let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
        HeaderMap::from_iter([(AUTHORIZATION, value)])
    }

    fn claims() -> serde_json::Value {
        json!({"iss": crate::dev::ISSUER, "sub": "alice", "aud": "http://orders/mcp", "exp": NOW + 60, "groups": ["staff"]})
    }

    #[test]
    fn a_good_token_names_its_caller() {
        let issuer = DevIssuer::new().unwrap();
        let token = issuer.sign(&claims()).unwrap();
        let authenticator = authenticator(&issuer);
        for _ in 0..2 {
            let caller = authenticator.authenticate(&bearer(&token), NOW).unwrap();
            assert_eq!(
                (caller.issuer.as_deref(), caller.user.as_deref()),
                (Some("dev"), Some("alice"))
            );
            assert_eq!(caller.groups, ["staff"]);
        }
        // Remembered, and yet it expires.
        assert_eq!(
            authenticator.authenticate(&bearer(&token), NOW + 60),
            Err(Reason::TokenExpired)
        );
    }

    #[test]
    fn each_bad_token_has_its_reason() {
        let issuer = DevIssuer::new().unwrap();
        let authenticator = authenticator(&issuer);
        let cases = [
            (json!({"aud": "http://other/mcp"}), Reason::WrongAudience),
            (
                json!({"aud": ["http://other/mcp", "http://orders"]}),
                Reason::WrongAudience,
            ),
            (json!({"aud": null}), Reason::TokenInvalid),
            (json!({"exp": NOW}), Reason::TokenExpired),
            (json!({"exp": null}), Reason::TokenInvalid),
            (json!({"exp": "tomorrow"}), Reason::TokenInvalid),
            (json!({"exp": -1}), Reason::TokenInvalid),
            (json!({"nbf": NOW + 3600}), Reason::TokenExpired),
            (json!({"iat": NOW + 3600}), Reason::TokenExpired),
            (json!({"iss": "https://elsewhere"}), Reason::TokenInvalid),
            (json!({"sub": ""}), Reason::TokenInvalid),
            (json!({"groups": "staff"}), Reason::TokenInvalid),
        ];
        for (change, reason) in cases {
            let mut claims = claims();
            for (name, value) in change.as_object().unwrap() {
                claims[name] = value.clone();
            }
            let token = issuer.sign(&claims).unwrap();
            assert_eq!(
                authenticator.authenticate(&bearer(&token), NOW).map(|_| ()),
                Err(reason),
                "{change}"
            );
        }
    }

    #[test]
    fn forged_signatures_and_algorithms_are_refused() {
        let (issuer, stranger) = (DevIssuer::new().unwrap(), DevIssuer::new().unwrap());
        let authenticator = authenticator(&issuer);
        let good = issuer.sign(&claims()).unwrap();
        let mut parts: Vec<_> = good.split('.').collect();
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        let hmac = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
        let id_token = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","typ":"logout+jwt"}"#);
        for header in [&none, &hmac, &id_token] {
            parts[0] = header;
            assert_eq!(
                authenticator.authenticate(&bearer(&parts.join(".")), NOW),
                Err(Reason::TokenInvalid)
            );
        }
        for token in [
            stranger.sign(&claims()).unwrap(),
            "a.b.c".into(),
            "x".repeat(20_000),
            format!("{good}x"),
            good[..good.len() - 4].into(),
        ] {
            assert_eq!(
                authenticator.authenticate(&bearer(&token), NOW),
                Err(Reason::TokenInvalid)
            );
        }
        let mut twice = bearer(&good);
        twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        assert_eq!(
            authenticator.authenticate(&twice, NOW),
            Err(Reason::TokenInvalid)
        );
        assert_eq!(
            authenticator.authenticate(&HeaderMap::new(), NOW),
            Err(Reason::TokenMissing)
        );
        let basic = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static("Basic YTpi"))]);
        assert_eq!(
            authenticator.authenticate(&basic, NOW),
            Err(Reason::TokenMissing)
        );
    }

    #[test]
    fn subjects_of_the_cluster_are_service_accounts() {
        assert_eq!(
            service_account("system:serviceaccount:agents:reporter").as_deref(),
            Some("agents/reporter")
        );
        for subject in [
            "agents/reporter",
            "system:serviceaccount:agents",
            "system:serviceaccount::a",
            "system:serviceaccount:a:b:c",
            "system:serviceaccount:a/b:c",
        ] {
            assert_eq!(service_account(subject), None, "{subject}");
        }
    }
}
