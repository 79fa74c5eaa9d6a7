//! Seals a key and a token to the operator's public key: ECDH over P-256 with a
//! key for this answer alone, HKDF-SHA-256 with the question's nonce as its salt,
//! AES-256-GCM.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, UnboundKey},
    agreement::{
        ECDH_P256, EphemeralPrivateKey, PrivateKey, UnparsedPublicKey, agree, agree_ephemeral,
    },
    hkdf::{HKDF_SHA256, Salt},
    rand::{self, SystemRandom},
};
use serde::{Deserialize, Serialize};

use crate::{PublicKey, SealError, bytes, text};

/// Bytes of the nonce of a question.
const NONCE_BYTES: usize = 32;
/// What keys are derived for; the two public keys follow.
const CONTEXT: &[u8] = b"toolward-identity sealed answer v1";

/// Makes a question one that was not asked before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nonce([u8; NONCE_BYTES]);

impl Nonce {
    /// A new one.
    ///
    /// # Errors
    /// [`SealError::System`].
    pub fn new() -> Result<Self, SealError> {
        let mut nonce = [0; NONCE_BYTES];
        rand::fill(&mut nonce).map_err(|_| SealError::System)?;
        Ok(Self(nonce))
    }

    /// The one that a header carries.
    ///
    /// # Errors
    /// [`SealError::Nonce`]: it is none.
    pub fn of_text(nonce: &str) -> Result<Self, SealError> {
        let bytes = bytes(nonce).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or(SealError::Nonce)
    }

    /// As a header carries it.
    pub fn text(&self) -> String {
        text(&self.0)
    }
}

/// What a sidecar tells: its key, and a token of its pod, which shows that the
/// key is that pod's sidecar's.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// The key.
    pub jwk: PublicKey,
    /// The token.
    pub token: String,
}

/// Without the token.
impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proof = &mut f.debug_struct("Proof");
        proof.field("jwk", &self.jwk).finish_non_exhaustive()
    }
}

/// A sealed answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sealed {
    /// The point of the key that was made for this answer, in base64url.
    public_key: String,
    /// Cipher text and tag, in base64url.
    sealed: String,
}

/// Seals a proof to a public key, as the answer to the question with this nonce.
///
/// # Errors
/// [`SealError::System`].
pub fn seal(proof: &Proof, to: &PublicKey, nonce: &Nonce) -> Result<Sealed, SealError> {
    let own = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new())
        .map_err(|_| SealError::System)?;
    let point = own.compute_public_key().map_err(|_| SealError::System)?;
    let from = PublicKey::of_point(point.as_ref())?;
    let peer = UnparsedPublicKey::new(&ECDH_P256, to.point());
    let cipher = agree_ephemeral(own, peer, SealError::System, |secret| {
        cipher(secret, nonce, &from, to)
    })?;
    let mut content = serde_json::to_vec(proof).map_err(|_| SealError::Content)?;
    cipher
        .seal_in_place_append_tag(once(), Aad::empty(), &mut content)
        .map_err(|_| SealError::System)?;
    Ok(Sealed {
        public_key: from.point_text(),
        sealed: text(&content),
    })
}

/// Opens what was sealed to its public key.
pub struct Opener {
    private: PrivateKey,
    public: PublicKey,
}

impl Opener {
    /// Makes a key.
    ///
    /// # Errors
    /// [`SealError::System`].
    pub fn new() -> Result<Self, SealError> {
        let private = PrivateKey::generate(&ECDH_P256).map_err(|_| SealError::System)?;
        let point = private
            .compute_public_key()
            .map_err(|_| SealError::System)?;
        let public = PublicKey::of_point(point.as_ref())?;
        Ok(Self { private, public })
    }

    /// The public half.
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// Opens the answer to the question with this nonce.
    ///
    /// # Errors
    /// [`SealError::NotForUs`] where it is the answer to another question, and
    /// where it is none; [`SealError::Content`] where something else was sealed.
    pub fn open(&self, answer: &Sealed, nonce: &Nonce) -> Result<Proof, SealError> {
        let from = PublicKey::of_text(&answer.public_key).map_err(|_| SealError::NotForUs)?;
        let mut content = bytes(&answer.sealed).ok_or(SealError::NotForUs)?;
        let peer = UnparsedPublicKey::new(&ECDH_P256, from.point());
        let cipher = agree(&self.private, peer, SealError::NotForUs, |secret| {
            cipher(secret, nonce, &from, &self.public)
        })?;
        let opened = cipher
            .open_in_place(once(), Aad::empty(), &mut content)
            .map_err(|_| SealError::NotForUs)?;
        serde_json::from_slice(opened).map_err(|_| SealError::Content)
    }
}

/// Without the private half.
impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opener({:?})", self.public)
    }
}

/// The cipher of one answer. All that goes into the context has a fixed length.
fn cipher(
    secret: &[u8],
    nonce: &Nonce,
    from: &PublicKey,
    to: &PublicKey,
) -> Result<LessSafeKey, SealError> {
    let derived = Salt::new(HKDF_SHA256, &nonce.0).extract(secret);
    let info = [CONTEXT, from.point(), to.point()];
    let key = derived
        .expand(&info, &AES_256_GCM)
        .map_err(|_| SealError::System)?;
    Ok(LessSafeKey::new(UnboundKey::from(key)))
}

/// Each key seals one message, so that its nonce may be any.
fn once() -> aws_lc_rs::aead::Nonce {
    aws_lc_rs::aead::Nonce::assume_unique_for_key([0; NONCE_LEN])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Asked {
        opener: Opener,
        nonce: Nonce,
        proof: Proof,
        sealed: Sealed,
    }

    fn asked(token: &str) -> Asked {
        let (opener, nonce) = (Opener::new().unwrap(), Nonce::new().unwrap());
        let proof = Proof {
            jwk: Opener::new().unwrap().public_key().clone(),
            token: token.to_owned(),
        };
        let sealed = seal(&proof, opener.public_key(), &nonce).unwrap();
        Asked {
            opener,
            nonce,
            proof,
            sealed,
        }
    }

    #[test]
    fn who_asked_opens_the_answer_to_the_question() {
        let Asked {
            opener,
            nonce,
            proof,
            sealed,
        } = asked("secret");
        assert_eq!(opener.open(&sealed, &nonce), Ok(proof.clone()));
        let text = serde_json::to_string(&sealed).unwrap();
        assert!(!text.contains("secret"));
        assert!(!format!("{proof:?} {opener:?}").contains("secret"));
        let read: Sealed = serde_json::from_str(&text).unwrap();
        assert_eq!(opener.open(&read, &nonce), Ok(proof.clone()));
        let nonce_read = Nonce::of_text(&nonce.text()).unwrap();
        assert_eq!(nonce_read, nonce);
        // Two answers to one question have nothing in common.
        let again = seal(&proof, opener.public_key(), &nonce).unwrap();
        assert_ne!(again.public_key, sealed.public_key);
        assert_ne!(again.sealed, sealed.sealed);
    }

    #[test]
    fn nobody_else_opens_it_and_no_other_question_is_answered_by_it() {
        let Asked {
            opener,
            nonce,
            sealed,
            ..
        } = asked("secret");
        let other = Opener::new().unwrap();
        assert_eq!(other.open(&sealed, &nonce), Err(SealError::NotForUs));
        let later = Nonce::new().unwrap();
        assert_eq!(opener.open(&sealed, &later), Err(SealError::NotForUs));
        // One who relays it under a key of its own has not got the secret.
        let relayed = Sealed {
            public_key: other.public_key().point_text(),
            ..sealed.clone()
        };
        assert_eq!(opener.open(&relayed, &nonce), Err(SealError::NotForUs));
        for (public_key, content) in [
            ("", sealed.sealed.as_str()),
            ("?", &sealed.sealed),
            (&sealed.public_key[..20], &sealed.sealed),
            (&sealed.public_key, ""),
            (&sealed.public_key, "?"),
            (&sealed.public_key, "AAAA"),
        ] {
            let broken = Sealed {
                public_key: public_key.to_owned(),
                sealed: content.to_owned(),
            };
            assert_eq!(opener.open(&broken, &nonce), Err(SealError::NotForUs));
        }
        for nonce in ["", "?", "AAAA", &text(&[0; 31]), &text(&[0; 33])] {
            assert_eq!(Nonce::of_text(nonce), Err(SealError::Nonce), "{nonce}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn any_token_comes_through(token in ".{0,2000}") {
            let Asked { opener, nonce, proof, sealed } = asked(&token);
            prop_assert_eq!(opener.open(&sealed, &nonce), Ok(proof));
        }

        #[test]
        fn a_bit_that_differs_is_seen(at in any::<prop::sample::Index>(), bit in 0_u8..8, which in 0..3) {
            let Asked { opener, nonce, sealed, .. } = asked("secret");
            let flip = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
                bytes
            };
            let (mut changed, mut asked_by) = (sealed.clone(), nonce.clone());
            match which {
                0 => changed.sealed = text(&flip(&bytes(&sealed.sealed).unwrap())),
                1 => changed.public_key = text(&flip(&bytes(&sealed.public_key).unwrap())),
                _ => asked_by = Nonce(flip(&nonce.0).try_into().unwrap()),
            }
            prop_assert_eq!(opener.open(&changed, &asked_by), Err(SealError::NotForUs));
        }

        #[test]
        fn what_is_made_up_is_never_opened(public_key in any::<Vec<u8>>(), content in any::<Vec<u8>>()) {
            let (opener, nonce) = (Opener::new().unwrap(), Nonce::new().unwrap());
            let made_up = Sealed { public_key: text(&public_key), sealed: text(&content) };
            prop_assert_eq!(opener.open(&made_up, &nonce), Err(SealError::NotForUs));
        }
    }
}
