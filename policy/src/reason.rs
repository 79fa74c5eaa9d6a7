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
    /// The token is no JSON Web Token.
    TokenOpaque,
    /// The token is encrypted.
    TokenEncrypted,
    /// The token cannot be read, or can be read in two ways.
    TokenMalformed,
    /// The token is larger than the sidecar reads.
    TokenTooLarge,
    /// `typ` of the token is not one of an access token of its issuer.
    TokenType,
    /// The token's algorithm is not one that its issuer signs with.
    AlgorithmNotAllowed,
    /// The token asks for an extension that is not known (`crit`).
    CriticalHeader,
    /// The token's issuer is none that this server accepts.
    UnknownIssuer,
    /// The issuer has no such key.
    UnknownKey,
    /// The signature is not the issuer's.
    SignatureInvalid,
    /// A claim is missing or is not what it should be.
    ClaimInvalid,
    /// The token is bound to a key that the caller would have to prove (`cnf`).
    ProofRequired,
    /// The token has expired.
    TokenExpired,
    /// The token is not valid yet.
    TokenNotYetValid,
    /// The token is valid for longer than the server accepts.
    TokenLifetime,
    /// The token was issued for another server.
    WrongAudience,
    /// The keys of the token's issuer cannot be had.
    IssuerUnavailable,
    /// Scopes alone are missing.
    InsufficientScope,
    /// The server is to be told who calls, and could not check it yet.
    IdentityUnavailable,
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
    /// The `requestState` was given to another caller, or nobody can open it.
    StateUnknown,
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
            Self::TokenOpaque => "TokenOpaque",
            Self::TokenEncrypted => "TokenEncrypted",
            Self::TokenMalformed => "TokenMalformed",
            Self::TokenTooLarge => "TokenTooLarge",
            Self::TokenType => "TokenType",
            Self::AlgorithmNotAllowed => "AlgorithmNotAllowed",
            Self::CriticalHeader => "CriticalHeader",
            Self::UnknownIssuer => "UnknownIssuer",
            Self::UnknownKey => "UnknownKey",
            Self::SignatureInvalid => "SignatureInvalid",
            Self::ClaimInvalid => "ClaimInvalid",
            Self::ProofRequired => "ProofRequired",
            Self::TokenExpired => "TokenExpired",
            Self::TokenNotYetValid => "TokenNotYetValid",
            Self::TokenLifetime => "TokenLifetime",
            Self::WrongAudience => "WrongAudience",
            Self::IssuerUnavailable => "IssuerUnavailable",
            Self::InsufficientScope => "InsufficientScope",
            Self::IdentityUnavailable => "IdentityUnavailable",
            Self::LimitExceeded => "LimitExceeded",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::Malformed => "Malformed",
            Self::TooLarge => "TooLarge",
            Self::HostNotAllowed => "HostNotAllowed",
            Self::OriginNotAllowed => "OriginNotAllowed",
            Self::SessionUnknown => "SessionUnknown",
            Self::StateUnknown => "StateUnknown",
            Self::Overloaded => "Overloaded",
            Self::UpstreamUnavailable => "UpstreamUnavailable",
        }
    }
}
