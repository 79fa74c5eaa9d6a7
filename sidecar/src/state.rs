//! `requestState` (revision 2026-07-28, multi round-trip requests): what a
//! server gives a caller to bring back with its next request.
//!
//! Invariants:
//! - A caller gets it sealed. It comes back from that caller only, and the
//!   server reads what it wrote: nobody else can write or read it.
//! - It names the replica that it came from, which alone can open it: the server
//!   there may hold the rest in its memory.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use crate::upstream::Principal;

/// Name of the member, in results and in params.
pub const MEMBER: &str = "requestState";

/// Whether a message may have it: also where its letters are written as escapes
/// (RFC 8259 §7: `\uXXXX` alone).
pub fn may_be_in(message: &[u8]) -> bool {
    let has = |part: &[u8]| memchr::memmem::find(message, part).is_some();
    has(MEMBER.as_bytes()) || has(br"\u")
}

/// The key of this process.
pub struct Seal(LessSafeKey);

impl Seal {
    /// A new key.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn new() -> Result<Self, String> {
        let mut key = [0_u8; 32];
        getrandom::fill(&mut key).map_err(|error| error.to_string())?;
        let key = UnboundKey::new(&AES_256_GCM, &key).map_err(|error| error.to_string())?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// What the caller gets for what the server wrote.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn close(
        &self,
        state: &str,
        principal: &Principal,
        replica: &str,
    ) -> Result<String, String> {
        let mut nonce = [0_u8; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|error| error.to_string())?;
        let mut text = state.as_bytes().to_vec();
        let (aad, its_nonce) = (bound_to(principal), Nonce::assume_unique_for_key(nonce));
        self.0
            .seal_in_place_append_tag(its_nonce, aad, &mut text)
            .map_err(|error| error.to_string())?;
        let sealed = BASE64_URL_SAFE_NO_PAD.encode([&nonce[..], &text].concat());
        Ok(format!("{sealed}.{replica}"))
    }

    /// What the server wrote, where this caller was given it here.
    pub fn open(&self, sealed: &str, principal: &Principal) -> Option<String> {
        let (sealed, _) = sealed.split_once('.')?;
        let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (nonce, text) = bytes.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let text = self
            .0
            .open_in_place(nonce, bound_to(principal), text)
            .ok()?;
        std::str::from_utf8(text).ok().map(str::to_owned)
    }
}

/// The replica that sealed it.
pub fn replica(sealed: &str) -> Option<&str> {
    sealed.split_once('.').map(|(_, replica)| replica)
}

fn bound_to(principal: &Principal) -> Aad<Vec<u8>> {
    Aad::from(principal.to_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use policy::Caller;
    use proptest::prelude::*;

    use super::*;

    fn principal(issuer: &str, user: &str) -> Principal {
        Principal::of(&Caller {
            issuer: Some(issuer.to_owned()),
            user: Some(user.to_owned()),
            ..Caller::default()
        })
    }

    #[test]
    fn only_its_caller_brings_it_back() {
        let (seal, alice) = (Seal::new().unwrap(), principal("acme", "alice"));
        let sealed = seal.close("round 2", &alice, "orders-0").unwrap();
        assert_eq!(replica(&sealed), Some("orders-0"));
        assert_eq!(seal.open(&sealed, &alice).as_deref(), Some("round 2"));
        for other in [
            principal("acme", "bob"),
            principal("globex", "alice"),
            // The same characters, divided otherwise.
            principal("acm", "ealice"),
            Principal::of(&Caller::default()),
        ] {
            assert_eq!(seal.open(&sealed, &other), None, "{other:?}");
        }
        assert_eq!(Seal::new().unwrap().open(&sealed, &alice), None);
        assert!(!sealed.contains("round"));
        assert_ne!(sealed, seal.close("round 2", &alice, "orders-0").unwrap());
        for odd in [
            "",
            ".",
            ".orders-0",
            "round 2",
            "AAAA.orders-0",
            "!.orders-0",
        ] {
            assert_eq!(seal.open(odd, &alice), None, "{odd:?}");
        }
    }

    proptest! {
        #[test]
        fn what_was_changed_does_not_open(state in ".{0,64}", at: prop::sample::Index, to in "[A-Za-z0-9_-]") {
            let (seal, alice) = (Seal::new().unwrap(), principal("acme", "alice"));
            let sealed = seal.close(&state, &alice, "r").unwrap();
            let opened = seal.open(&sealed, &alice);
            prop_assert_eq!(opened, Some(state.clone()));
            let mut changed = sealed.clone();
            let at = at.index(sealed.len() - ".r".len());
            changed.replace_range(at..=at, &to);
            prop_assume!(changed != sealed);
            prop_assert_eq!(seal.open(&changed, &alice), None);
        }
    }
}
