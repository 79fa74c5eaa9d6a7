//! Why a request was let through or refused: one enum for the audit log, the
//! metric's label and the answer to the caller.

use serde::{Deserialize, Serialize};

/// Reason of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// A rule allows it.
    AllowedByRule,
    /// Handshake, ping and discovery are open to every caller that is let in.
    AlwaysAllowed,
    /// No rule allows it.
    NoRuleMatched,
    /// A rule denies it.
    DeniedByRule,
    /// The URI is not in the normal form that rules are written in, so that it
    /// could be another spelling of one that is denied.
    UriNotNormal,
    /// The policies or the server could not be compiled; every tool, prompt and
    /// resource is denied.
    ConfigurationInvalid,
    /// No bundle has been read since the start.
    NoBundle,
    /// The request carries no token.
    TokenMissing,
    /// The token is malformed, its signature is wrong, or its issuer is unknown.
    TokenInvalid,
    /// The token has expired, or is not valid yet.
    TokenExpired,
    /// The token was issued for another server.
    WrongAudience,
    /// A limit is reached.
    LimitExceeded,
    /// The method is unknown, or none that a policy can allow.
    MethodNotAllowed,
    /// The request cannot be read in one way only.
    Malformed,
    /// The request is larger than the sidecar accepts.
    TooLarge,
    /// The `Host` header names another server.
    HostNotAllowed,
    /// The `Origin` header names a foreign site.
    OriginNotAllowed,
    /// The session is unknown, or another caller's.
    SessionUnknown,
    /// Too many sessions, requests or streams are open.
    Overloaded,
    /// The wrapped server does not answer, or answers what cannot be read.
    UpstreamUnavailable,
}

impl Reason {
    /// The name in audit records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllowedByRule => "AllowedByRule",
            Self::AlwaysAllowed => "AlwaysAllowed",
            Self::NoRuleMatched => "NoRuleMatched",
            Self::DeniedByRule => "DeniedByRule",
            Self::UriNotNormal => "UriNotNormal",
            Self::ConfigurationInvalid => "ConfigurationInvalid",
            Self::NoBundle => "NoBundle",
            Self::TokenMissing => "TokenMissing",
            Self::TokenInvalid => "TokenInvalid",
            Self::TokenExpired => "TokenExpired",
            Self::WrongAudience => "WrongAudience",
            Self::LimitExceeded => "LimitExceeded",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::Malformed => "Malformed",
            Self::TooLarge => "TooLarge",
            Self::HostNotAllowed => "HostNotAllowed",
            Self::OriginNotAllowed => "OriginNotAllowed",
            Self::SessionUnknown => "SessionUnknown",
            Self::Overloaded => "Overloaded",
            Self::UpstreamUnavailable => "UpstreamUnavailable",
        }
    }
}
