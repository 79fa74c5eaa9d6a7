//! The keys of the cluster's own token issuer, from the API server.
//!
//! Invariant: the last good keys stay until others are read.

use std::{sync::Arc, time::Duration};

use kube::Client;
use policy::bundle::Issuer;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{backoff::Backoff, error::call};

const REFRESH: Duration = Duration::from_secs(60);
const RETRY: Backoff = Backoff {
    first: Duration::from_millis(500),
    cap: Duration::from_secs(30),
};

/// The cluster's issuer; none until it has been read for the first time.
pub type Current = watch::Receiver<Option<Arc<Issuer>>>;

/// Reads the keys, again and again, until nobody listens.
pub async fn follow(client: Client, sender: watch::Sender<Option<Arc<Issuer>>>) {
    let mut failures = 0;
    while !sender.is_closed() {
        let wait = match read(&client).await {
            Ok(issuer) => {
                failures = 0;
                publish(&sender, issuer);
                REFRESH.mul_f64(rand::random_range(0.9..=1.0))
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read the keys of the cluster's token issuer");
                failures += 1;
                RETRY.after(failures)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = sender.closed() => {}
        }
    }
}

fn publish(sender: &watch::Sender<Option<Arc<Issuer>>>, issuer: Issuer) {
    sender.send_if_modified(|current| {
        let changed = current.as_deref() != Some(&issuer);
        if changed {
            tracing::info!(issuer = issuer.issuer, "keys of the cluster's token issuer");
            *current = Some(Arc::new(issuer));
        }
        changed
    });
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Api(#[from] crate::error::Error),
    #[error("{0}")]
    Answer(&'static str),
    #[error(transparent)]
    Request(#[from] http::Error),
}

async fn read(client: &Client) -> Result<Issuer, ReadError> {
    let discovery = get(client, "/.well-known/openid-configuration").await?;
    let keys = get(client, "/openid/v1/jwks").await?;
    issuer(&discovery, &keys).map_err(ReadError::Answer)
}

async fn get(client: &Client, path: &str) -> Result<Value, ReadError> {
    let request = http::Request::get(path).body(Vec::new())?;
    Ok(call(|| format!("GET {path}"), client.request(request)).await?)
}

/// The issuer, with its keys in one order, whichever API server answers.
fn issuer(discovery: &Value, keys: &Value) -> Result<Issuer, &'static str> {
    let issuer = discovery["issuer"].as_str().filter(|text| !text.is_empty());
    let issuer = issuer.ok_or("/.well-known/openid-configuration names no issuer")?;
    let mut keys = keys["keys"].as_array().cloned().unwrap_or_default();
    if keys.is_empty() {
        return Err("/openid/v1/jwks has no keys");
    }
    keys.sort_by_cached_key(Value::to_string);
    Ok(Issuer::cluster(issuer, json!({ "keys": keys })))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_in_one_order_and_an_empty_answer_is_refused() {
        let discovery = json!({"issuer": "https://kubernetes.default.svc"});
        let (a, b) = (json!({"kid": "a"}), json!({"kid": "b"}));
        let one = issuer(&discovery, &json!({"keys": [a, b]})).unwrap();
        let other = issuer(&discovery, &json!({"keys": [b, a]})).unwrap();
        assert_eq!(one, other);
        assert!(one.service_accounts);
        assert!(issuer(&discovery, &json!({"keys": []})).is_err());
        assert!(issuer(&discovery, &json!("?")).is_err());
        assert!(issuer(&json!({"issuer": ""}), &json!({"keys": [a]})).is_err());
    }
}
