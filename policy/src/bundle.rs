//! The wire form of what the sidecar needs to know: one JSON document, written
//! by the operator, read by the sidecar.
//!
//! Operators and sidecars of different releases meet: the sidecar reads every
//! version from [`OLDEST`] to [`VERSION`], and the operator writes the newest
//! one that all running sidecars of a server read.

mod v1;

use crds::SigningAlgorithm;
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
    /// The cluster's own issuer, by whose tokens the operator and other replicas
    /// prove who they are. That callers may use its tokens is said by
    /// [`Authentication::issuers`] alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Issuer>,
    /// Whether a token is needed, and who may issue it.
    pub authentication: Authentication,
    /// Whether the server is told who calls, by an assertion whose `iss` and
    /// `aud` are [`Bundle::url`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub identity: bool,
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
    /// Issuers whose tokens are accepted. No two have the same name or URL.
    pub issuers: Vec<Issuer>,
    /// A token that is valid for longer than this is refused.
    pub max_token_lifetime_seconds: u64,
    /// Networks (CIDR) beside the public internet in which issuers may be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
}

/// An issuer of tokens.
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
    /// Where its keys come from.
    pub keys: KeySource,
    /// Which claims say who calls.
    #[serde(default)]
    pub claims: Claims,
    /// What `typ` may say.
    #[serde(default)]
    pub types: Types,
    /// Algorithms of its signatures; a key's own `alg` narrows them.
    pub algorithms: Vec<SigningAlgorithm>,
}

/// Where the keys of an issuer come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum KeySource {
    /// They are here: a JSON Web Key Set (RFC 7517) with public keys only.
    Inline(serde_json::Value),
    /// The sidecar fetches them.
    Remote(Remote),
}

/// Keys that the sidecar fetches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Remote {
    /// URL of the key set; none: what the issuer's metadata says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_uri: Option<String>,
    /// Whether only the authorities in the sidecar's file of the issuer's name
    /// are trusted for TLS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub private_ca: bool,
    /// How long keys are used that cannot be read anew.
    pub max_age_seconds: u64,
}

/// Which claims say who calls; see `McpServer`. None: the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// The user; default `sub`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The agent; default `act.sub`, `azp`, `client_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Groups; default `groups`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<String>,
    /// Scopes; default `scope`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<String>,
}

/// What `typ` of an issuer's tokens may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Types {
    /// `at+jwt` (RFC 9068).
    pub access_token: bool,
    /// `JWT`.
    pub jwt: bool,
    /// Nothing, as the cluster's issuer does.
    pub none: bool,
}

impl Default for Types {
    fn default() -> Self {
        Self {
            access_token: true,
            jwt: false,
            none: false,
        }
    }
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
    /// Callers that fit everything that is there; something is.
    Match(Match),
}

/// Callers that fit the issuer and every list that is not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Match {
    /// Name of the issuer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Service accounts as `namespace/name`, or `namespace/*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
    /// Users.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
    /// Agents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agents: Vec<String>,
    /// Groups; one suffices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Scopes; all are needed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
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

/// A token may be valid for as long as this where the server does not say.
pub const DEFAULT_LIFETIME_SECONDS: u64 = 3600;

/// What is taken where an issuer does not say (RFC 8725 §3.1).
pub const DEFAULT_ALGORITHMS: [SigningAlgorithm; 4] = [
    SigningAlgorithm::RS256,
    SigningAlgorithm::PS256,
    SigningAlgorithm::ES256,
    SigningAlgorithm::EdDSA,
];

impl Issuer {
    /// An issuer whose keys are here; of its tokens, `typ` is `at+jwt`, `JWT` or
    /// nothing, as the cluster's issuer and `run --dev-token` make them.
    pub fn inline(name: &str, issuer: &str, jwks: serde_json::Value) -> Self {
        Self {
            name: name.to_owned(),
            issuer: issuer.to_owned(),
            service_accounts: false,
            keys: KeySource::Inline(jwks),
            claims: Claims::default(),
            types: Types {
                access_token: true,
                jwt: true,
                none: true,
            },
            algorithms: DEFAULT_ALGORITHMS.to_vec(),
        }
    }

    /// The cluster's own issuer: its subjects are service accounts. It signs with
    /// what its key is: RSA with RS256, an elliptic curve with ES256 or ES384.
    pub fn cluster(issuer: &str, jwks: serde_json::Value) -> Self {
        use SigningAlgorithm::{ES256, ES384, RS256};
        Self {
            service_accounts: true,
            algorithms: vec![RS256, ES256, ES384],
            ..Self::inline(crds::CLUSTER_ISSUER, issuer, jwks)
        }
    }
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
