//! The issuer of `run --dev-token`: a key that lives in memory only.

use anyhow::Context;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use policy::bundle::Issuer;
use serde_json::json;

/// The `iss` of its tokens.
pub const ISSUER: &str = "toolward-dev";

/// Signs tokens for a laptop.
pub struct DevIssuer {
    key: EncodingKey,
    jwk: Jwk,
}

impl DevIssuer {
    /// Makes a key.
    ///
    /// # Errors
    /// Where the system gives no randomness.
    pub fn new() -> anyhow::Result<Self> {
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .ok()
                .context("the key of the dev issuer cannot be made")?;
        let key = EncodingKey::from_ec_der(pkcs8.as_ref());
        let jwk = Jwk::from_encoding_key(&key, Algorithm::ES256)?;
        Ok(Self { key, jwk })
    }

    /// The issuer as a bundle names it.
    pub fn issuer(&self) -> Issuer {
        Issuer::inline("dev", ISSUER, json!({"keys": [self.jwk]}))
    }

    /// A token for `user`, valid for `lifetime` seconds from `now` (seconds since
    /// 1970).
    ///
    /// # Errors
    /// Where signing fails.
    pub fn token(
        &self,
        user: &str,
        groups: &[String],
        audience: &str,
        now: u64,
        lifetime: u64,
    ) -> anyhow::Result<String> {
        self.sign(&json!({
            "iss": ISSUER, "sub": user, "azp": "toolward-dev", "aud": audience,
            "iat": now, "exp": now + lifetime, "groups": groups,
        }))
    }

    /// Signs any claims.
    ///
    /// # Errors
    /// Where signing fails.
    pub fn sign(&self, claims: &serde_json::Value) -> anyhow::Result<String> {
        Ok(encode(&Header::new(Algorithm::ES256), claims, &self.key)?)
    }
}
