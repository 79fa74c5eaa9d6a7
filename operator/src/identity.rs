//! The keys by which sidecars assert who calls, as the operator publishes them.
//!
//! The wrapped server shares the pod's network with its sidecar: it can take the
//! admin port while the sidecar restarts, answer in its place, and see what it is
//! asked with. Invariants:
//! - A key is published only with a token of the pod that was asked, sealed to a
//!   key of this process in answer to a question of its own ([`sealed`]).
//! - Of each pod there is one key at most, and none of a pod that is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus},
    core::v1::ConfigMap,
};
use kube::{Api, Client, api::PostParams};
use sealed::{KEYS_FILE, KeySet, Nonce, Opener, PublicKey, SealError};

use crate::{
    error::{Error, call},
    names::Key,
    probe::{self, ProbeError},
    tokens::Tokens,
};

/// Beside the keys in the ConfigMap: whose they are, by the uids of pods.
const PODS_FILE: &str = "pods.json";
/// Of a pod, in what a review says of its token.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Why a key is not published.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The sidecar does not answer, or not with a sealed answer.
    #[error("asked for it, the sidecar {0}")]
    Ask(#[from] ProbeError),
    /// The answer cannot be opened.
    #[error("the answer is not the sidecar's: {0}")]
    Sealed(#[from] SealError),
    /// The answer has another key than the status names.
    #[error("the answer has another key than the status of the sidecar names")]
    OtherKey,
    /// The API server does not know the token, or not as one for this.
    #[error("the token in the answer is not accepted: {0}")]
    Token(String),
    /// The token is another pod's.
    #[error("the token in the answer is not of this pod, but of {0}")]
    OtherPod(String),
    /// The API server cannot be asked.
    #[error(transparent)]
    Api(#[from] Error),
}

/// A pod whose sidecar is asked.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// Its admin port.
    pub address: SocketAddr,
    /// Name of the pod.
    pub name: &'a str,
    /// Its uid.
    pub uid: &'a str,
    /// Its service account.
    pub account: &'a str,
}

/// Asks sidecars for their keys.
pub struct Identities {
    client: Client,
    tokens: Arc<Tokens>,
    /// Of this process alone, so that nobody else can open an answer.
    opener: Result<Opener, SealError>,
}

impl Identities {
    /// Makes the key to which answers are sealed.
    pub fn new(client: Client, tokens: Arc<Tokens>) -> Self {
        let opener = Opener::new();
        Self {
            client,
            tokens,
            opener,
        }
    }

    /// The key of a pod's sidecar, which the sidecar's status names by `kid`;
    /// `uid` is that of the `McpServer`.
    ///
    /// # Errors
    /// Why it is not known to be that sidecar's.
    pub async fn key(
        &self,
        server: &Key,
        uid: &str,
        pod: &Asked<'_>,
        kid: &str,
    ) -> Result<PublicKey, IdentityError> {
        let opener = self.opener.as_ref().map_err(|error| *error)?;
        let Key { namespace, name } = server;
        let audience = sealed::audience(namespace, name, opener.public_key());
        let token = self.tokens.get_for(server, &audience).await?;
        let nonce = Nonce::new()?;
        let answer = probe::sealed(pod.address, &token, opener.public_key(), &nonce).await;
        let answer = answer.inspect_err(|error| {
            if let ProbeError::Refused(_) = error {
                self.tokens.refused_for(server, &audience);
            }
        })?;
        let proof = opener.open(&answer, &nonce)?;
        // What is in the answer counts; what only the status says does not.
        if proof.jwk.kid() != kid {
            return Err(IdentityError::OtherKey);
        }
        let audience = sealed::pod_audience(uid);
        let review = self.review(&proof.token, &audience).await?;
        check(&review, &audience, namespace, pod)?;
        Ok(proof.jwk)
    }

    async fn review(&self, token: &str, audience: &str) -> Result<TokenReviewStatus, Error> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![audience.to_owned()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let api = Api::<TokenReview>::all(self.client.clone());
        let params = PostParams::default();
        let action = || "having the token of a sidecar reviewed".to_owned();
        let answer = call(action, api.create(&params, &review)).await?;
        Ok(answer.status.unwrap_or_default())
    }
}

/// Whether a token that was reviewed is of this pod, and for this.
fn check(
    review: &TokenReviewStatus,
    audience: &str,
    namespace: &str,
    pod: &Asked<'_>,
) -> Result<(), IdentityError> {
    if review.authenticated != Some(true) {
        let why = review.error.as_deref().filter(|why| !why.is_empty());
        let why = why.unwrap_or("it is not valid");
        return Err(IdentityError::Token(why.to_owned()));
    }
    // An API server that knows no audiences does not say for which it is.
    let mut audiences = review.audiences.iter().flatten();
    if !audiences.any(|for_| for_ == audience) {
        let why = format!("it is not for the audience {audience}");
        return Err(IdentityError::Token(why));
    }
    let user = review.user.clone().unwrap_or_default();
    let extra = |name: &str| match user.extra.as_ref().and_then(|extra| extra.get(name)) {
        Some(values) if values.len() == 1 => values[0].clone(),
        _ => String::new(),
    };
    let account = format!("system:serviceaccount:{namespace}:{}", pod.account);
    let username = user.username.clone().unwrap_or_default();
    let found = (username, extra(POD_NAME), extra(POD_UID));
    if found != (account, pod.name.to_owned(), pod.uid.to_owned()) {
        let (username, name, uid) = found;
        let who = format!("{username}, pod {name:?}, uid {uid:?}");
        return Err(IdentityError::OtherPod(who));
    }
    Ok(())
}

/// Keys by the uids of their pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published(BTreeMap<String, PublicKey>);

impl Published {
    /// Those that a ConfigMap holds; what cannot be read is asked for again.
    pub fn of(map: &ConfigMap) -> Self {
        let text = |file: &str| map.data.as_ref()?.get(file);
        let set = text(KEYS_FILE).and_then(|text| serde_json::from_str::<KeySet>(text).ok());
        let pods = text(PODS_FILE).and_then(|text| serde_json::from_str(text).ok());
        let pods: BTreeMap<String, String> = pods.unwrap_or_default();
        let set = set.unwrap_or_default().keys.into_iter();
        let by_kid: BTreeMap<_, _> = set.map(|key| (key.kid(), key)).collect();
        let key = |(uid, kid): (String, String)| Some((uid, by_kid.get(&kid)?.clone()));
        Self(pods.into_iter().filter_map(key).collect())
    }

    /// These, with newer ones in their places, of these pods only.
    #[must_use]
    pub fn updated(mut self, newer: BTreeMap<String, PublicKey>, pods: &BTreeSet<String>) -> Self {
        self.0.extend(newer);
        self.0.retain(|uid, _| pods.contains(uid));
        self
    }

    /// Their thumbprints.
    pub fn kids(&self) -> BTreeSet<String> {
        self.0.values().map(PublicKey::kid).collect()
    }

    /// As a ConfigMap holds them: in one order, whichever came first.
    ///
    /// # Errors
    /// They cannot be written as JSON.
    pub fn data(&self) -> Result<BTreeMap<String, String>, serde_json::Error> {
        let mut by_kid: Vec<_> = self.0.values().map(|key| (key.kid(), key)).collect();
        by_kid.sort();
        by_kid.dedup();
        let keys = by_kid.into_iter().map(|(_, key)| key.clone()).collect();
        let pods = self.0.iter().map(|(uid, key)| (uid, key.kid()));
        let pods: BTreeMap<_, _> = pods.collect();
        Ok(BTreeMap::from([
            (
                KEYS_FILE.to_owned(),
                serde_json::to_string(&KeySet { keys })?,
            ),
            (PODS_FILE.to_owned(), serde_json::to_string(&pods)?),
        ]))
    }
}

#[cfg(test)]
mod tests;
