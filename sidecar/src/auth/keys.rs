//! The keys of an issuer (RFC 7517), as far as they can be used.
//!
//! Invariants: a key has at least one algorithm, and all of them are of its own
//! kind and among those that the issuer signs with (RFC 8725 §3.1); there are no
//! symmetric keys; a set that gives a private key away gives no key at all; a key
//! by which others than its owner can sign is none.

use crds::SigningAlgorithm;
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use policy::Reason;
use serde_json::Value;

use super::sound;

/// Keys of a set that are looked at, at most.
const MAX_KEYS: usize = 100;
/// Keys that a token may mean, at most: those of the id that it names, or where
/// it names none (RFC 7515 §4.1.4), all that fit. Each is tried.
const MAX_SAME: usize = 4;

/// The keys of one issuer.
pub struct Keys {
    keys: Vec<Key>,
    /// Algorithms that the issuer signs with.
    algorithms: Vec<Algorithm>,
}

struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl Keys {
    /// The keys of a set that can be used, and how many others it has.
    pub fn read(jwks: &Value, algorithms: &[SigningAlgorithm]) -> (Self, usize) {
        let algorithms: Vec<_> = algorithms.iter().map(|name| algorithm(*name)).collect();
        let given = jwks["keys"].as_array().map(Vec::as_slice);
        let given = given.unwrap_or_default();
        let keys = match Self::gives_one_away(jwks) {
            true => Vec::new(),
            false => {
                let looked_at = given.iter().take(MAX_KEYS);
                looked_at
                    .filter_map(|jwk| Key::read(jwk, &algorithms))
                    .collect()
            }
        };
        let left_out = given.len() - keys.len();
        (Self { keys, algorithms }, left_out)
    }

    /// Whether a set has the private part of a key in it (RFC 7518 §6), or a
    /// symmetric one.
    pub fn gives_one_away(jwks: &Value) -> bool {
        let is_private = |jwk: &Value| {
            ["d", "p", "q", "dp", "dq", "qi", "k"]
                .iter()
                .any(|name| jwk.get(name).is_some())
        };
        let keys = jwks["keys"].as_array();
        keys.is_some_and(|keys| keys.iter().any(is_private))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Checks the `signature` (encoded) of `signed` under the algorithm that a
    /// token names, by the key whose id it names, or where it names none, by any
    /// of a few.
    ///
    /// # Errors
    /// [`Reason::AlgorithmNotAllowed`], [`Reason::UnknownKey`] or
    /// [`Reason::SignatureInvalid`].
    pub fn verify(
        &self,
        algorithm: &str,
        id: Option<&str>,
        signed: &[u8],
        signature: &str,
    ) -> Result<(), Reason> {
        let is_named = |known: &&Algorithm| format!("{known:?}") == algorithm;
        let algorithm = self.algorithms.iter().find(is_named);
        let algorithm = *algorithm.ok_or(Reason::AlgorithmNotAllowed)?;
        let fits = |key: &&Key| key.algorithms.contains(&algorithm);
        let candidates: Vec<_> = match id {
            Some(id) => {
                let named = || self.keys.iter().filter(|key| key.id.as_deref() == Some(id));
                if named().next().is_some() && !named().any(|key| fits(&key)) {
                    return Err(Reason::AlgorithmNotAllowed);
                }
                named().filter(fits).take(MAX_SAME).collect()
            }
            None => {
                let all: Vec<_> = self.keys.iter().filter(fits).collect();
                if all.len() <= MAX_SAME {
                    all
                } else {
                    Vec::new()
                }
            }
        };
        if candidates.is_empty() {
            return Err(Reason::UnknownKey);
        }
        let is_signed = |key: &&Key| {
            jsonwebtoken::crypto::verify(signature, signed, &key.key, algorithm).unwrap_or(false)
        };
        match candidates.iter().any(is_signed) {
            true => Ok(()),
            false => Err(Reason::SignatureInvalid),
        }
    }
}

impl Key {
    fn read(value: &Value, allowed: &[Algorithm]) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
        let common = &jwk.common;
        if !matches!(common.public_key_use, None | Some(PublicKeyUse::Signature)) {
            return None;
        }
        if let Some(operations) = &common.key_operations
            && !operations.contains(&KeyOperations::Verify)
        {
            return None;
        }
        let mut algorithms = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => vec![
                Algorithm::RS256,
                Algorithm::RS384,
                Algorithm::RS512,
                Algorithm::PS256,
                Algorithm::PS384,
                Algorithm::PS512,
            ],
            AlgorithmParameters::EllipticCurve(key) => match key.curve {
                EllipticCurve::P256 => vec![Algorithm::ES256],
                EllipticCurve::P384 => vec![Algorithm::ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                vec![Algorithm::EdDSA]
            }
            _ => return None,
        };
        algorithms.retain(|algorithm| allowed.contains(algorithm));
        if let Some(only) = value.get("alg") {
            algorithms.retain(|algorithm| *only == format!("{algorithm:?}"));
        }
        if algorithms.is_empty() || !sound::is_sound(&jwk.algorithm) {
            return None;
        }
        Some(Self {
            id: common.key_id.clone(),
            algorithms,
            key: DecodingKey::from_jwk(&jwk).ok()?,
        })
    }
}

fn algorithm(name: SigningAlgorithm) -> Algorithm {
    match name {
        SigningAlgorithm::RS256 => Algorithm::RS256,
        SigningAlgorithm::RS384 => Algorithm::RS384,
        SigningAlgorithm::RS512 => Algorithm::RS512,
        SigningAlgorithm::PS256 => Algorithm::PS256,
        SigningAlgorithm::PS384 => Algorithm::PS384,
        SigningAlgorithm::PS512 => Algorithm::PS512,
        SigningAlgorithm::ES256 => Algorithm::ES256,
        SigningAlgorithm::ES384 => Algorithm::ES384,
        SigningAlgorithm::EdDSA => Algorithm::EdDSA,
    }
}
