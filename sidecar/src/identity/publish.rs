//! Gives the operator the public key, in an answer that nobody else can open and
//! nobody else can make (ADR 10).

use http::{HeaderMap, StatusCode};
use policy::Bundle;
use sealed::{NONCE_HEADER, Nonce, PUBLIC_KEY_HEADER, Proof, PublicKey, SealError, seal};

use super::Identity;
use crate::{auth::Authenticator, source};

/// Largest token, in bytes.
const MAX_TOKEN: usize = 16 * 1024;

/// Why the operator, or whoever it is, gets no answer.
pub type Refused = (StatusCode, String);

impl Identity {
    /// The answer to a question for the key, as JSON.
    ///
    /// # Errors
    /// Who asks is not the operator, asks badly, or there is no key.
    pub fn answer(
        &self,
        bundle: &Bundle,
        authenticator: &Authenticator,
        headers: &HeaderMap,
        now: u64,
    ) -> Result<String, Refused> {
        let (Some(key), Some(token), Some(operator)) = (&self.key, &self.token, &bundle.operator)
        else {
            let why = "this sidecar asserts nothing\n";
            return Err((StatusCode::NOT_FOUND, why.to_owned()));
        };
        let to = PublicKey::of_text(one(headers, PUBLIC_KEY_HEADER)?).map_err(bad)?;
        let nonce = Nonce::of_text(one(headers, NONCE_HEADER)?).map_err(bad)?;
        let server = &bundle.server;
        let audience = sealed::audience(&server.namespace, &server.name, &to);
        if !authenticator.is_subject(headers, operator, &audience, now) {
            let why = format!("a token of {operator} for audience {audience} is required\n");
            return Err((StatusCode::UNAUTHORIZED, why));
        }
        let failed = |error: &dyn std::fmt::Display| {
            tracing::error!(%error, "the operator cannot be told the key for assertions");
            let why = "the key cannot be told; see the sidecar's log\n";
            (StatusCode::SERVICE_UNAVAILABLE, why.to_owned())
        };
        let token = source::read(token, MAX_TOKEN).map_err(|error| failed(&error))?;
        let token = String::from_utf8(token).map_err(|_| failed(&"the token is no text"))?;
        let proof = Proof {
            jwk: key.public.clone(),
            token: token.trim().to_owned(),
        };
        let sealed = seal(&proof, &to, &nonce).map_err(|error| failed(&error))?;
        serde_json::to_string(&sealed).map_err(|error| failed(&error))
    }
}

fn one<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Refused> {
    let mut values = headers.get_all(name).iter();
    let value = match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    };
    value.ok_or_else(|| {
        let why = format!("the header {name} is required, once\n");
        (StatusCode::BAD_REQUEST, why)
    })
}

fn bad(error: SealError) -> Refused {
    (StatusCode::BAD_REQUEST, format!("{error}\n"))
}
