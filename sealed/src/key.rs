//! A public key of P-256, as a JSON Web Key (RFC 7517) and by its thumbprint.

use std::fmt;

use aws_lc_rs::agreement::{ECDH_P256, ParsedPublicKey, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{SealError, bytes, text};

/// Bytes of a coordinate.
const COORDINATE: usize = 32;
/// Bytes of a point in its uncompressed form (SEC 1 §2.3.3).
const POINT: usize = 1 + 2 * COORDINATE;

/// A public key: a point that is on the curve.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Given", into = "Jwk")]
pub struct PublicKey([u8; POINT]);

/// What is taken of a key that somebody gives: what it is, and nothing that it
/// says of itself.
#[derive(Deserialize)]
struct Given {
    kty: String,
    crv: String,
    x: String,
    y: String,
}

/// What is told of a key.
#[derive(Serialize)]
struct Jwk {
    kty: &'static str,
    crv: &'static str,
    x: String,
    y: String,
    alg: &'static str,
    #[serde(rename = "use")]
    use_: &'static str,
    kid: String,
}

/// A JSON Web Key Set (RFC 7517 §5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySet {
    /// The keys.
    pub keys: Vec<PublicKey>,
}

impl PublicKey {
    /// The key of a point in its uncompressed form.
    ///
    /// # Errors
    /// [`SealError::Key`]: it is no such point, or not on the curve.
    pub fn of_point(point: &[u8]) -> Result<Self, SealError> {
        let point: [u8; POINT] = point.try_into().map_err(|_| SealError::Key)?;
        if point[0] != 4 {
            return Err(SealError::Key);
        }
        let parsed = ParsedPublicKey::try_from(UnparsedPublicKey::new(&ECDH_P256, &point[..]));
        parsed.map_err(|_| SealError::Key)?;
        Ok(Self(point))
    }

    /// The key of a point in base64url, as a header carries it.
    ///
    /// # Errors
    /// [`SealError::Key`]: it is none.
    pub fn of_text(point: &str) -> Result<Self, SealError> {
        Self::of_point(&bytes(point).ok_or(SealError::Key)?)
    }

    /// The point in its uncompressed form.
    pub fn point(&self) -> &[u8] {
        &self.0
    }

    /// The point in base64url.
    pub fn point_text(&self) -> String {
        text(&self.0)
    }

    /// The SHA-256 of the point, in base64url.
    pub fn digest(&self) -> String {
        text(&Sha256::digest(self.0))
    }

    /// The thumbprint of the key (RFC 7638), by which it is known.
    pub fn kid(&self) -> String {
        let (x, y) = self.coordinates();
        // The required members, in the order of their names (RFC 7638 §3).
        let members = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        text(&Sha256::digest(members))
    }

    fn coordinates(&self) -> (String, String) {
        let (x, y) = self.0[1..].split_at(COORDINATE);
        (text(x), text(y))
    }
}

/// By its thumbprint.
impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.kid())
    }
}

impl TryFrom<Given> for PublicKey {
    type Error = SealError;

    fn try_from(given: Given) -> Result<Self, SealError> {
        let Given { kty, crv, x, y } = given;
        if (kty.as_str(), crv.as_str()) != ("EC", "P-256") {
            return Err(SealError::Key);
        }
        let coordinate = |text: &str| {
            let bytes = bytes(text).filter(|bytes| bytes.len() == COORDINATE);
            bytes.ok_or(SealError::Key)
        };
        Self::of_point(&[&[4_u8][..], &coordinate(&x)?[..], &coordinate(&y)?[..]].concat())
    }
}

impl From<PublicKey> for Jwk {
    fn from(key: PublicKey) -> Self {
        let (x, y) = key.coordinates();
        Self {
            kty: "EC",
            crv: "P-256",
            x,
            y,
            alg: "ES256",
            use_: "sig",
            kid: key.kid(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The key of RFC 7515 §A.3.
    const X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
    const Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";

    fn given(kty: &str, crv: &str, x: &str, y: &str) -> Result<PublicKey, serde_json::Error> {
        let more = r#""kid":"chosen","alg":"none","use":"enc","d":"secret""#;
        serde_json::from_str(&format!(
            r#"{{"kty":"{kty}","crv":"{crv}","x":"{x}","y":"{y}",{more}}}"#
        ))
    }

    #[test]
    fn a_key_is_told_by_what_it_is() {
        let key = given("EC", "P-256", X, Y).unwrap();
        let members = format!(r#"{{"crv":"P-256","kty":"EC","x":"{X}","y":"{Y}"}}"#);
        let kid = text(&Sha256::digest(members));
        assert_eq!(key.kid(), kid);
        let told = serde_json::to_string(&key).unwrap();
        assert_eq!(
            told,
            format!(
                r#"{{"kty":"EC","crv":"P-256","x":"{X}","y":"{Y}","alg":"ES256","use":"sig","kid":"{kid}"}}"#
            )
        );
        assert_eq!(serde_json::from_str::<PublicKey>(&told).unwrap(), key);
        assert_eq!(PublicKey::of_text(&key.point_text()).unwrap(), key);
        let set = KeySet { keys: vec![key] };
        let text = serde_json::to_string(&set).unwrap();
        assert_eq!(serde_json::from_str::<KeySet>(&text).unwrap(), set);
    }

    #[test]
    fn what_is_no_key_of_the_curve_is_refused() {
        for (kty, crv, x, y) in [
            ("RSA", "P-256", X, Y),
            ("EC", "P-384", X, Y),
            ("EC", "P-256", Y, X),
            ("EC", "P-256", X, X),
            ("EC", "P-256", "", Y),
            ("EC", "P-256", &X[1..], Y),
            ("EC", "P-256", "AAAA", Y),
            ("EC", "P-256", X, "+/=="),
        ] {
            assert!(given(kty, crv, x, y).is_err(), "{kty} {crv} {x} {y}");
        }
        let good = given("EC", "P-256", X, Y).unwrap();
        for first in [0, 2, 3, 6, 7] {
            let mut point = good.point().to_vec();
            point[0] = first;
            assert_eq!(PublicKey::of_point(&point), Err(SealError::Key), "{first}");
        }
        assert_eq!(
            PublicKey::of_point(&good.point()[..33]),
            Err(SealError::Key)
        );
        assert_eq!(PublicKey::of_point(&[4; POINT]), Err(SealError::Key));
        assert_eq!(PublicKey::of_text("?"), Err(SealError::Key));
    }
}
