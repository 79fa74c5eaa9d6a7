//! What can go wrong when the operator talks to the API server.

use std::{future::Future, time::Duration};

use kube::core::Status;

/// Longer, and a request to the API server is given up and tried again.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The [`Error::category`] of what comes too late for a namespace that is being deleted.
pub const ENDING: &str = "NamespaceEnding";

/// Why a reconciliation did not reach its end. All of them are tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused, or did not answer.
    #[error("{action}: {}", describe(.source))]
    Api {
        /// What was tried.
        action: String,
        /// What came back.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server took too long.
    #[error("{action}: no answer within {} seconds", TIMEOUT.as_secs())]
    Timeout {
        /// What was tried.
        action: String,
    },
    /// An object of an earlier `McpServer` of the same name is still there.
    #[error("{object} belongs to an earlier McpServer of this name and is still being removed")]
    Removing {
        /// Kind and name.
        object: String,
    },
    /// The keys of the cluster's token issuer have never been read.
    #[error("the keys of the cluster's token issuer have not been read yet")]
    NoKeys,
    /// What was to be written cannot be written as JSON.
    #[error("writing JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The bundle cannot be written.
    #[error(transparent)]
    Bundle(#[from] policy::bundle::BundleError),
    /// The list of replicas cannot be written.
    #[error(transparent)]
    Peers(#[from] policy::peers::PeersError),
    /// No certificate can be made for the webhook.
    #[error("making a certificate: {0}")]
    Certificate(String),
}

impl Error {
    /// One word for logs and as the label of a metric.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => match status.code {
                    403 if is_ending(status) => ENDING,
                    403 => "Forbidden",
                    404 => "NotFound",
                    409 => "Conflict",
                    422 => "Invalid",
                    429 => "TooManyRequests",
                    500.. => "ServerError",
                    _ => "Refused",
                },
                _ => "Unreachable",
            },
            Self::Timeout { .. } => "Timeout",
            Self::Removing { .. } => "Removing",
            Self::NoKeys => "NoKeys",
            Self::Json(_) | Self::Bundle(_) | Self::Peers(_) | Self::Certificate(_) => "Internal",
        }
    }

    /// The status code with which the API server refused.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Whether a write was refused because its namespace is being deleted: the end of
/// what concerns it, and no news to anybody.
pub fn is_ending(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let mut reasons = causes.map(|cause| cause.reason.as_str());
    reasons.any(|reason| reason == "NamespaceTerminating")
}

/// The API server's own words, without the client's wrapping.
fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// One request to the API server, with a time-out.
///
/// # Errors
/// What the API server answers, with what was tried.
pub async fn call<T>(
    action: impl Fn() -> String,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, Error> {
    match tokio::time::timeout(TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(Error::Api {
            action: action(),
            source: Box::new(source),
        }),
        Err(_) => Err(Error::Timeout { action: action() }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn the_end_of_a_namespace_is_told_from_missing_rights() {
        let category = |reason: &str| {
            let status = json!({
                "status": "Failure", "code": 403, "reason": "Forbidden", "message": "no",
                "details": {"causes": [{"reason": reason, "message": "m", "field": "f"}]},
            });
            let status = serde_json::from_value::<Status>(status).unwrap();
            let source = Box::new(kube::Error::Api(Box::new(status)));
            let action = String::new();
            Error::Api { action, source }.category()
        };
        assert_eq!(category("NamespaceTerminating"), ENDING);
        assert_eq!(category("FieldValueForbidden"), "Forbidden");
    }
}
