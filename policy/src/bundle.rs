//! The wire form of what the sidecar needs to know: one JSON document, written
//! by the operator, read by the sidecar.
//!
//! Operators and sidecars of different releases meet: the sidecar reads every
//! version from [`OLDEST`] to [`VERSION`], and the operator writes the newest
//! one that all running sidecars of a server read.

mod v1;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Glob, UriGlob};

/// The newest version of the wire form: the one that this code writes where it
/// may choose.
pub const VERSION: u32 = 2;
/// The oldest version that this code reads, and can still write.
pub const OLDEST: u32 = 1;
/// The largest bundle: a ConfigMap holds 1 MiB, names and metadata included.
pub const MAX_BYTES: usize = 900 * 1024;
/// The key in the ConfigMap, and so the file's name in the mounted folder.
pub const FILE: &str = "bundle.json";

/// All that concerns one server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bundle {
    /// Version of the wire form.
    pub version: u32,
    /// The `McpServer`.
    pub server: ServerRef,
    /// Public URL; its path is the MCP endpoint.
    pub url: String,
    /// The audience that a token must name.
    pub audience: String,
    /// Names that a `Host` or `Origin` header may carry, beside loopback.
    pub hosts: Vec<String>,
    /// `sub` of the operator's own tokens; without it the admin port is open
    /// (`run` on a laptop).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// The audience of the tokens with which sidecars of this server prove who
    /// they are to each other; without it they do not speak to each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_audience: Option<String>,
    /// Whether a token is needed, and who may issue it.
    pub authentication: Authentication,
    /// Set where the configuration is not valid: everything is denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny_all: Option<String>,
    /// Rules, sorted by policy and name.
    pub rules: Vec<Rule>,
    /// Limits, sorted by policy and name.
    pub limits: Vec<Limit>,
}

/// Name of an `McpServer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Whether a token is needed, and who may issue it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Authentication {
    /// Whether callers without a token are let in, as nobody.
    pub anonymous: bool,
    /// Issuers whose tokens are accepted.
    pub issuers: Vec<Issuer>,
}

/// An issuer of tokens, with its keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Issuer {
    /// Name in rules and in the audit log.
    pub name: String,
    /// The `iss` claim, exactly.
    pub issuer: String,
    /// Whether subjects are service accounts of this cluster.
    #[serde(default)]
    pub service_accounts: bool,
    /// JSON Web Key Set (RFC 7517) with public keys only.
    pub jwks: serde_json::Value,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Allows, unless a rule denies.
    Allow,
    /// Denies.
    Deny,
}

/// A compiled rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Name of the `McpToolPolicy`.
    pub policy: String,
    /// Name of the rule in it.
    pub name: String,
    /// What it does.
    pub effect: Effect,
    /// Callers; any item.
    pub from: Vec<Subject>,
    /// Tools; any pattern.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Glob>,
    /// Prompts; any pattern.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<Glob>,
    /// Resources, by their URI; any pattern.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<UriGlob>,
}

/// Callers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Subject {
    /// Everyone who is let in.
    Everyone,
    /// Callers that fit every list that is not empty; at least one is not.
    Match {
        /// Service accounts as `namespace/name`.
        #[serde(
            default,
            rename = "serviceAccounts",
            skip_serializing_if = "Vec::is_empty"
        )]
        service_accounts: Vec<String>,
        /// Users.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        users: Vec<String>,
        /// Groups; one suffices.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        groups: Vec<String>,
    },
}

/// A compiled limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limit {
    /// Name of the `McpToolPolicy`.
    pub policy: String,
    /// Name of the limit in it.
    pub name: String,
    /// Tools; any pattern.
    pub tools: Vec<Glob>,
    /// Calls in each span.
    pub requests: u32,
    /// The span, in seconds.
    pub per_seconds: u64,
    /// Calls at once.
    pub burst: u32,
    /// A count of its own for each combination of these.
    pub by: Vec<crds::LimitKey>,
}

/// Why a bundle cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It is larger than [`MAX_BYTES`].
    #[error("the bundle has {0} bytes; at most {MAX_BYTES} are read")]
    TooLarge(usize),
    /// It is of a version that this code does not read.
    #[error("the bundle is of version {0}; this release reads versions {OLDEST} to {VERSION}")]
    Version(u64),
    /// It is not what it should be.
    #[error("the bundle cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

impl Bundle {
    /// Reads a bundle.
    ///
    /// # Errors
    /// See [`BundleError`]. A field that is not known is an error: it may be
    /// one that denies.
    pub fn from_json(bytes: &[u8]) -> Result<Self, BundleError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u64,
        }
        if bytes.len() > MAX_BYTES {
            return Err(BundleError::TooLarge(bytes.len()));
        }
        let Versioned { version } = serde_json::from_slice(bytes)?;
        match version {
            1 => Ok(serde_json::from_slice::<v1::Bundle>(bytes)?.into()),
            2 => Ok(serde_json::from_slice(bytes)?),
            _ => Err(BundleError::Version(version)),
        }
    }

    /// Writes the bundle in its own version; equal bundles give equal bytes.
    ///
    /// # Errors
    /// See [`Bundle::to_json_version`].
    pub fn to_json(&self) -> Result<String, BundleError> {
        self.to_json_version(self.version)
    }

    /// Writes the bundle for sidecars that read this version. What an older
    /// version has no words for is left out where its sidecars deny that anyway.
    ///
    /// # Errors
    /// The version is unknown, or the bundle cannot be written as JSON.
    pub fn to_json_version(&self, version: u32) -> Result<String, BundleError> {
        match version {
            1 => Ok(serde_json::to_string(&v1::Bundle::from(self.clone()))?),
            2 if self.version == version => Ok(serde_json::to_string(self)?),
            2 => Ok(serde_json::to_string(&Self {
                version,
                ..self.clone()
            })?),
            _ => Err(BundleError::Version(version.into())),
        }
    }
}

/// The hash by which a written bundle is known: `sha256:` and hexadecimal digits.
pub fn hash(bytes: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
