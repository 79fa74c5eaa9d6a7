//! How the operator learns the key by which a sidecar asserts who calls, across
//! a network that the wrapped server shares with the sidecar.
//!
//! The operator asks with a public key of its own and a nonce, the sidecar seals
//! its key and a token of its pod to that key. Invariants:
//! - Only who made the public key can open the answer.
//! - An answer opens for its own question only: not for an earlier one, and not
//!   for one with another key.
//! - A key is always known by the thumbprint of what it is, never by a name that
//!   came with it.
//!
//! Both sides are here, so that they cannot differ. No I/O and no clock.

mod envelope;
mod key;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

pub use envelope::{Nonce, Opener, Proof, Sealed, seal};
pub use key::{KeySet, PublicKey};

/// The path on a sidecar's admin port.
pub const PATH: &str = "/identity";
/// Header of the question with the operator's public key.
pub const PUBLIC_KEY_HEADER: &str = "toolward-public-key";
/// Header of the question with its nonce.
pub const NONCE_HEADER: &str = "toolward-nonce";
/// The key in the ConfigMap of public keys, and so the file's name in the mounted
/// folder.
pub const KEYS_FILE: &str = "jwks.json";
/// Largest set of keys that is read: that of 1,000 replicas has 250 KiB.
pub const MAX_KEYS_BYTES: usize = 512 * 1024;

/// The audience of the operator's token: for one server, and for one key to
/// answer to, so that whoever sees it can only ask in the operator's place.
pub fn audience(namespace: &str, name: &str, key: &PublicKey) -> String {
    format!("toolward-identity/{namespace}/{name}/{}", key.digest())
}

/// The audience of the token of a pod that is sealed with its key; `uid` is that
/// of the `McpServer`.
pub fn pod_audience(uid: &str) -> String {
    format!("toolward-identity/{uid}")
}

/// Why something cannot be sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// A public key is none.
    #[error("the public key is no point of P-256 in its uncompressed form")]
    Key,
    /// A nonce is none.
    #[error("the nonce is not 32 bytes in base64url")]
    Nonce,
    /// It was sealed to another key, for another question, or was changed.
    #[error("it was not sealed for this question")]
    NotForUs,
    /// What was sealed is something else.
    #[error("what was sealed is not a key and a token")]
    Content,
    /// The cryptography of this system fails.
    #[error("this system gives no key")]
    System,
}

fn text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}
