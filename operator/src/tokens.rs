//! Tokens of the operator's own service account for the admin ports of
//! sidecars: one audience per server, so that no server can use what it was
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

/// Tokens by server.
pub struct Tokens {
    client: Client,
    account: Key,
    cache: Mutex<HashMap<Key, (String, Instant)>>,
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

    /// A token for the admin port of a server.
    ///
    /// # Errors
    /// What the API server answers.
    pub async fn get(&self, server: &Key) -> Result<String, Error> {
        let known = self.locked(|cache| cache.get(server).cloned());
        if let Some((token, since)) = known
            && since.elapsed() < USE
        {
            return Ok(token);
        }
        let token = self.request(server).await?;
        let entry = (token.clone(), Instant::now());
        self.locked(|cache| cache.insert(server.clone(), entry));
        Ok(token)
    }

    /// A pod refused the token.
    pub fn refused(&self, server: &Key) {
        self.locked(|cache| {
            if cache.get(server).is_some_and(|(_, s)| s.elapsed() > KEEP) {
                cache.remove(server);
            }
        });
    }

    /// The server is gone.
    pub fn forget(&self, server: &Key) {
        self.locked(|cache| cache.remove(server));
    }

    async fn request(&self, server: &Key) -> Result<String, Error> {
        let Key { namespace, name } = &self.account;
        let request = TokenRequest {
            metadata: ObjectMeta::default(),
            spec: TokenRequestSpec {
                audiences: vec![admin_audience(server)],
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

    fn locked<T>(&self, f: impl FnOnce(&mut HashMap<Key, (String, Instant)>) -> T) -> T {
        f(&mut self.cache.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
