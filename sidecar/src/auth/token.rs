//! A token as it comes: a JSON Web Signature in compact form (RFC 7515 §7.1),
//! taken apart and believed in nothing.
//!
//! Invariant: header and claims can be read in one way only. What a header says
//! of where keys are (`jku`, `jwk`, `x5u`, `x5c`) is never looked at.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use policy::Reason;
use serde_json::{Map, Value};

use super::Keys;
use crate::strict;

/// A longer token is refused unread.
pub const MAX_BYTES: usize = 16 * 1024;
/// Longest key id.
const MAX_ID: usize = 1024;

/// A signature that can be read, whatever it signs. It has not been checked.
#[derive(Debug)]
pub struct Jws<'a> {
    /// `alg`.
    algorithm: String,
    /// `typ`, as written.
    typ: Option<String>,
    /// `kid`.
    pub key_id: Option<String>,
    /// What was signed, decoded.
    payload: Vec<u8>,
    /// Header and payload as they were signed.
    signed: &'a str,
    /// The signature, encoded.
    signature: &'a str,
}

/// A token that can be read: a signature of claims. It has not been checked.
#[derive(Debug)]
pub struct Token<'a> {
    /// The signature.
    pub jws: Jws<'a>,
    /// The payload.
    pub claims: Map<String, Value>,
}

impl<'a> Jws<'a> {
    /// Takes a signature apart.
    ///
    /// # Errors
    /// Why it cannot be used whatever signed it.
    pub fn parse(token: &'a str) -> Result<Self, Reason> {
        if token.len() > MAX_BYTES {
            return Err(Reason::TokenTooLarge);
        }
        let (signed, signature) = match token.split('.').count() {
            3 => token.rsplit_once('.').ok_or(Reason::TokenMalformed)?,
            5 => return Err(Reason::TokenEncrypted), // RFC 7516 §7.1
            _ => return Err(Reason::TokenOpaque),
        };
        let (header, payload) = signed.split_once('.').ok_or(Reason::TokenMalformed)?;
        let header = object(&decode(header)?)?;
        if header.contains_key("enc") {
            return Err(Reason::TokenEncrypted);
        }
        // RFC 7515 §4.1.11: we know none of them; `b64` (RFC 7797) is one.
        if header.contains_key("crit") || header.contains_key("b64") {
            return Err(Reason::CriticalHeader);
        }
        let text = |name: &str| match header.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(Reason::TokenMalformed),
        };
        let key_id = text("kid")?;
        if key_id.as_ref().is_some_and(|id| id.len() > MAX_ID) {
            return Err(Reason::TokenMalformed);
        }
        Ok(Self {
            algorithm: text("alg")?.ok_or(Reason::TokenMalformed)?,
            typ: text("typ")?,
            key_id,
            payload: decode(payload)?,
            signed,
            signature,
        })
    }

    /// Checks the signature (RFC 7515 §5.2) by the keys of an issuer.
    ///
    /// # Errors
    /// See [`Keys::verify`].
    pub fn verify(&self, keys: &Keys) -> Result<(), Reason> {
        keys.verify(
            &self.algorithm,
            self.key_id.as_deref(),
            self.signed.as_bytes(),
            self.signature,
        )
    }

    /// `typ` without the prefix that may be left out (RFC 7515 §4.1.9), in small
    /// letters.
    pub fn short_type(&self) -> Option<String> {
        let typ = self.typ.as_ref()?.to_ascii_lowercase();
        Some(typ.strip_prefix("application/").unwrap_or(&typ).to_owned())
    }
}

impl<'a> Token<'a> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// Why it cannot be used whatever its signature.
    pub fn parse(token: &'a str) -> Result<Self, Reason> {
        let jws = Jws::parse(token)?;
        let claims = object(&jws.payload)?;
        Ok(Self { jws, claims })
    }

    /// The issuer that it names.
    pub fn issuer(&self) -> Option<&str> {
        self.claims.get("iss").and_then(Value::as_str)
    }
}

/// What is encoded as in RFC 7515 §2: without padding, and in one way only.
fn decode(encoded: &str) -> Result<Vec<u8>, Reason> {
    let bytes = URL_SAFE_NO_PAD.decode(encoded);
    bytes.map_err(|_| Reason::TokenMalformed)
}

/// A JSON object that can be read in one way only.
fn object(bytes: &[u8]) -> Result<Map<String, Value>, Reason> {
    strict::check_data(bytes).map_err(|_| Reason::TokenMalformed)?;
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        _ => Err(Reason::TokenMalformed),
    }
}
