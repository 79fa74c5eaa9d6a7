//! Tokens of the operator's own service account for the admin ports of
//! sidecars: audiences of one server each, so that no server can use what it was
//! shown elsewhere.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use crate::{
    error::{Error, call},
    names::{Key, admin_audience},
};

const LIFETIME: Duration = Duration::from_secs(3600);
/// Used no longer than this, so that it never expires on the way.
const USE: Duration = Duration::from_secs(2700);
/// A token that was refused is kept at least this long: a pod that refuses
/// everything must not make the operator ask for a token each time.
const KEEP: Duration = Duration::from_secs(60);

/// Tokens by server and audience, with the time since when they are used.
type Cache = HashMap<(Key, String), (String, Instant)>;

/// Tokens by server.
pub struct Tokens {
    client: Client,
    account: Key,
    cache: Mutex<Cache>,
}

impl Tokens {
    /// Tokens of the service account `account`.
    pub fn new(client: Client, account: Key) -> Self {
        Self {
            client,
            account,
            cache: Mutex::default(),
        }
    }

    /// `sub` of the tokens.
    pub fn subject(&self) -> String {
        let Key { namespace, name } = &self.account;
        format!("system:serviceaccount:{namespace}:{name}")
    }

    /// A token for the status of a server's sidecars.
    ///
    /// # Errors
    /// What the API server answers.
    pub async fn get(&self, server: &Key) -> Result<String, Error> {
        self.get_for(server, &admin_audience(server)).await
    }

    /// A token for another audience of a server.
    ///
    /// # Errors
    /// What the API server answers.
    pub async fn get_for(&self, server: &Key, audience: &str) -> Result<String, Error> {
        let of = (server.clone(), audience.to_owned());
        let known = self.locked(|cache| cache.get(&of).cloned());
        if let Some((token, since)) = known
            && since.elapsed() < USE
        {
            return Ok(token);
        }
        let token = self.request(audience).await?;
        let entry = (token.clone(), Instant::now());
        self.locked(|cache| cache.insert(of, entry));
        Ok(token)
    }

    /// A pod refused the token for its status.
    pub fn refused(&self, server: &Key) {
        self.refused_for(server, &admin_audience(server));
    }

    /// A pod refused the token for this audience.
    pub fn refused_for(&self, server: &Key, audience: &str) {
        let of = (server.clone(), audience.to_owned());
        self.locked(|cache| {
            if cache.get(&of).is_some_and(|(_, s)| s.elapsed() > KEEP) {
                cache.remove(&of);
            }
        });
    }

    /// The server is gone.
    pub fn forget(&self, server: &Key) {
        self.locked(|cache| cache.retain(|(of, _), _| of != server));
    }

    async fn request(&self, audience: &str) -> Result<String, Error> {
        let Key { namespace, name } = &self.account;
        let request = TokenRequest {
            metadata: ObjectMeta::default(),
            spec: TokenRequestSpec {
                audiences: vec![audience.to_owned()],
                expiration_seconds: i64::try_from(LIFETIME.as_secs()).ok(),
                ..TokenRequestSpec::default()
            },
            status: None,
        };
        let api = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace);
        let params = PostParams::default();
        let answer = call(
            || format!("asking for a token of service account {}", self.account),
            api.create_token_request(name, &params, &request),
        )
        .await?;
        Ok(answer.status.map(|status| status.token).unwrap_or_default())
    }

    fn locked<T>(&self, f: impl FnOnce(&mut Cache) -> T) -> T {
        f(&mut self.cache.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
