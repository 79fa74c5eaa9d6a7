//! The one place where a refusal becomes an answer: HTTP status and JSON-RPC
//! error.

use std::time::Duration;

use http::{HeaderValue, Response, StatusCode, header};
use policy::Reason;
use serde_json::{Value, json, value::RawValue};

use crate::{
    body::{self, Body},
    config::Active,
    era::Era,
    upstream::UpstreamError,
};

/// Invalid params, also for what a caller may not know of (JSON-RPC 2.0 §5.1).
const INVALID_PARAMS: i64 = -32602;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_REQUEST: i64 = -32600;
const INTERNAL_ERROR: i64 = -32603;
/// Resource not found, up to revision 2025-11-25.
const RESOURCE_NOT_FOUND: i64 = -32002;

/// Longest message about a request that cannot be read, in characters.
const MAX_MESSAGE: usize = 256;

/// Why a request is not answered by the server.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// For audit and metrics.
    pub reason: Reason,
    /// HTTP status.
    pub status: StatusCode,
    /// JSON-RPC code. Our own are HTTP status codes: positive, so outside the
    /// ranges that JSON-RPC and MCP reserve.
    pub code: i64,
    /// For the caller.
    pub message: String,
    /// Whether the caller is told the reason: not where it would give away that
    /// something exists.
    pub told: bool,
    /// Further header.
    pub header: Option<(header::HeaderName, HeaderValue)>,
    /// Further members of the error's `data`.
    pub data: Option<Box<Value>>,
}

impl Refusal {
    /// A refusal whose JSON-RPC code is its HTTP status.
    pub fn new(reason: Reason, status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            reason,
            status,
            code: status.as_u16().into(),
            message: message.into(),
            told: true,
            header: None,
            data: None,
        }
    }

    /// A message that cannot be read in one way.
    pub fn malformed(message: impl Into<String>) -> Self {
        // It may quote the request; the audit log must not grow with that.
        let message: String = message.into().chars().take(MAX_MESSAGE).collect();
        Self {
            code: INVALID_REQUEST,
            ..Self::new(Reason::Malformed, StatusCode::BAD_REQUEST, message)
        }
    }

    /// The answer to a caller without a good token: 401 with a challenge (RFC
    /// 6750 §3), or 503 where it cannot be told whether the token is good.
    pub fn unauthorized(reason: Reason, active: &Active) -> Self {
        if reason == Reason::IssuerUnavailable {
            let message = "the keys of the token's issuer cannot be read at the moment: try again, with the same token";
            return Self {
                header: Some((header::RETRY_AFTER, HeaderValue::from_static("5"))),
                ..Self::new(reason, StatusCode::SERVICE_UNAVAILABLE, message)
            };
        }
        let fault = fault(reason);
        let message = match (reason, fault) {
            (Reason::WrongAudience, _) => format!(
                "the token was issued for another audience; this server's is {}",
                active.bundle.audience
            ),
            (_, None) => "a bearer token is required".to_owned(),
            (_, Some(fault)) => fault.to_owned(),
        };
        let challenge = active
            .resource
            .as_ref()
            .map(|resource| resource.challenge(fault));
        Self {
            header: challenge.and_then(challenged),
            ..Self::new(reason, StatusCode::UNAUTHORIZED, message)
        }
    }

    /// The answer to a caller whose token lacks scopes alone: 403 with all that
    /// the operation needs (MCP authorization, step-up). `had` are those of the
    /// token.
    pub fn insufficient_scope(scopes: &[String], had: &[String], active: &Active) -> Self {
        let message = format!(
            "the token lacks scopes; all of these are needed: {}",
            scopes.join(" ")
        );
        let challenge = active
            .resource
            .as_ref()
            .map(|resource| resource.step_up(scopes, had));
        Self {
            header: challenge.and_then(challenged),
            data: Some(Box::new(json!({"scopes": scopes}))),
            ..Self::new(Reason::InsufficientScope, StatusCode::FORBIDDEN, message)
        }
    }

    /// The answer of a server that does not have what is asked for.
    pub fn unknown(reason: Reason, what: &str, name: &str, era: Era) -> Self {
        let is_resource = what == "resource";
        let (code, status) = match era {
            Era::Legacy if is_resource => (RESOURCE_NOT_FOUND, StatusCode::OK),
            Era::Legacy => (INVALID_PARAMS, StatusCode::OK),
            // Invalid params are a bad request in this era.
            Era::Modern => (INVALID_PARAMS, StatusCode::BAD_REQUEST),
        };
        let data = is_resource.then(|| Box::new(json!({"uri": name})));
        Self {
            code,
            told: false,
            data,
            ..Self::new(reason, status, format!("Unknown {what}: {name}"))
        }
    }

    /// A `requestState` that this caller was not given, or that nobody can open
    /// any more.
    pub fn unknown_state() -> Self {
        let message = "requestState was not given to this caller, or the replica that gave it is gone: send the request anew without it";
        Self {
            code: INVALID_PARAMS,
            ..Self::new(Reason::StateUnknown, StatusCode::BAD_REQUEST, message)
        }
    }

    /// A resource whose URI can be written in another way too.
    pub fn not_normal(era: Era) -> Self {
        let message = "params.uri is not in the normal form of RFC 3986 §6.2.2: lower-case scheme and host, upper-case percent-encodings and only where they are needed, no dot segments";
        let status = match era {
            Era::Legacy => StatusCode::OK,
            Era::Modern => StatusCode::BAD_REQUEST,
        };
        Self {
            code: INVALID_PARAMS,
            ..Self::new(Reason::UriNotNormal, status, message)
        }
    }

    /// The answer of a server that does not have the method.
    pub fn method(method: &str, era: Era) -> Self {
        let status = match era {
            Era::Legacy => StatusCode::OK,
            Era::Modern => StatusCode::NOT_FOUND,
        };
        Self {
            code: METHOD_NOT_FOUND,
            ..Self::new(
                Reason::MethodNotAllowed,
                status,
                format!("Method not found: {method}"),
            )
        }
    }

    /// A limit is reached.
    pub fn too_early(limit: &str, retry_after: Duration) -> Self {
        // Rounded up: whoever waits as told is let through.
        let seconds = retry_after.as_nanos().div_ceil(1_000_000_000).max(1);
        let message = format!("limit {limit} is reached: try again in {seconds} s");
        let header = HeaderValue::from_str(&seconds.to_string())
            .ok()
            .map(|value| (header::RETRY_AFTER, value));
        Self {
            header,
            ..Self::new(
                Reason::LimitExceeded,
                StatusCode::TOO_MANY_REQUESTS,
                message,
            )
        }
    }

    /// The JSON-RPC error, as the answer to the request with this id.
    pub fn message(&self, id: Option<&RawValue>) -> String {
        let mut error = json!({"code": self.code, "message": self.message});
        if let Some(data) = &self.data {
            error["data"] = Value::clone(data);
        }
        if self.told {
            error["data"]["reason"] = json!(self.reason);
        }
        json!({"jsonrpc": "2.0", "id": id, "error": error}).to_string()
    }

    /// The answer, to the request with this id.
    pub fn into_response(self, id: Option<&RawValue>) -> Response<Body> {
        let mut answer = Response::new(body::full(self.message(id)));
        *answer.status_mut() = self.status;
        answer.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some((name, value)) = self.header {
            answer.headers_mut().insert(name, value);
        }
        answer
    }
}

fn challenged(challenge: String) -> Option<(header::HeaderName, HeaderValue)> {
    let value = HeaderValue::from_str(&challenge).ok()?;
    Some((header::WWW_AUTHENTICATE, value))
}

/// What is wrong with a token, for its owner; none: there is no token. Without
/// quotes: it stands in a header.
fn fault(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::TokenMissing => return None,
        Reason::TokenOpaque => "the token is opaque; this server needs a JSON Web Token",
        Reason::TokenEncrypted => {
            "the token is encrypted; this server needs a signed JSON Web Token"
        }
        Reason::TokenMalformed => "the token cannot be read, or can be read in two ways",
        Reason::TokenTooLarge => "the token is too large",
        Reason::TokenType => "typ of the token is not that of an access token of its issuer",
        Reason::AlgorithmNotAllowed => "the token is signed with an algorithm that is not accepted",
        Reason::CriticalHeader => "the token asks for an extension that is not known",
        Reason::UnknownIssuer => "the issuer of the token is not one that this server accepts",
        Reason::UnknownKey => "the issuer of the token has no such key",
        Reason::SignatureInvalid => "the signature of the token is wrong",
        Reason::ClaimInvalid => "a claim of the token is missing or wrong",
        Reason::ProofRequired => {
            "the token is bound to a key, and proof of possession is not accepted here"
        }
        Reason::TokenExpired => "the token has expired",
        Reason::TokenNotYetValid => "the token is not valid yet",
        Reason::TokenLifetime => "the token is valid for longer than this server accepts",
        Reason::WrongAudience => "the token was issued for another audience",
        _ => "the token is not valid here",
    })
}

impl From<UpstreamError> for Refusal {
    fn from(error: UpstreamError) -> Self {
        let status = match &error {
            UpstreamError::SessionUnknown => StatusCode::NOT_FOUND,
            UpstreamError::Overloaded(_) => StatusCode::SERVICE_UNAVAILABLE,
            UpstreamError::Refused(_) => StatusCode::BAD_REQUEST,
            UpstreamError::Conflict(_) => StatusCode::CONFLICT,
            UpstreamError::Unsupported(_) => StatusCode::OK,
            UpstreamError::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
            UpstreamError::Connect(_) | UpstreamError::Exited(_) | UpstreamError::Invalid(_) => {
                StatusCode::BAD_GATEWAY
            }
        };
        // The end of standard error may hold secrets: it goes to the status only.
        let message = match &error {
            UpstreamError::Exited(_) => "the server ended".to_owned(),
            error => error.to_string(),
        };
        let refusal = Self::new(error.reason(), status, message);
        match error {
            UpstreamError::Unsupported(_) => Self {
                code: INTERNAL_ERROR,
                ..refusal
            },
            _ => refusal,
        }
    }
}
