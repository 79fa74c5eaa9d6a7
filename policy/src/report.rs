//! What the sidecar's `/status` tells the operator.

use serde::{Deserialize, Serialize};

use crate::bundle::{OLDEST, VERSION};

/// State of one sidecar.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The configuration in force.
    pub bundle: BundleReport,
    /// Hash (see [`crate::bundle::hash`]) of the list of replicas in force; none
    /// where the sidecar uses none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<String>,
    /// The certificate of the MCP port; none where that speaks plain HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsReport>,
    /// The key by which the sidecar asserts who calls; none where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<IdentityReport>,
    /// The wrapped server.
    pub upstream: UpstreamReport,
    /// TCP sockets of the pod on which others than the sidecar listen beyond
    /// loopback, the first [`MAX_LISTENERS`]; none where the sidecar cannot read
    /// them, or is in no pod.
    #[serde(default)]
    pub listeners: Option<Vec<ListenerReport>>,
    /// Issuers whose keys the sidecar fetches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub issuers: Vec<IssuerReport>,
    /// The tools that it offers; none until it answered.
    #[serde(default)]
    pub tools: Option<Vec<ToolReport>>,
}

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BundleReport {
    /// The newest version of the wire form that the sidecar reads; it reads all
    /// from [`OLDEST`] on. Sidecars of the first release do not tell: they read 1.
    #[serde(default = "oldest")]
    pub reads: u32,
    /// Hash of the bundle in force; none before the first.
    #[serde(default)]
    pub hash: Option<String>,
    /// Why a later bundle could not be read: its hash and the error.
    #[serde(default)]
    pub rejected: Option<RejectedBundle>,
}

fn oldest() -> u32 {
    OLDEST
}

impl Default for BundleReport {
    fn default() -> Self {
        Self {
            reads: VERSION,
            hash: None,
            rejected: None,
        }
    }
}

/// The key by which a sidecar asserts who calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityReport {
    /// Its thumbprint (RFC 7638).
    pub kid: String,
    /// Whether the sidecar has seen it among the public keys.
    #[serde(default)]
    pub published: bool,
}

/// A bundle that could not be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RejectedBundle {
    /// Its hash.
    pub hash: String,
    /// What is wrong with it.
    pub error: String,
}

/// The certificate of the MCP port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsReport {
    /// SHA-256 of the certificate in use (DER), as `sha256:…`; none before the first.
    #[serde(default)]
    pub certificate: Option<String>,
    /// Why the files, as they are now, cannot be used.
    #[serde(default)]
    pub error: Option<String>,
}

/// The wrapped server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UpstreamReport {
    /// Whether it answers.
    pub state: UpstreamState,
    /// What went wrong last, with the end of the server's standard error where
    /// it is known.
    #[serde(default)]
    pub message: String,
}

/// Sockets that listen beyond loopback are told up to this number.
pub const MAX_LISTENERS: usize = 64;

/// A socket that listens beyond loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListenerReport {
    /// Its address; unspecified means all of the pod's.
    pub address: std::net::IpAddr,
    /// Its port.
    pub port: u16,
}

/// Whether the wrapped server answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpstreamState {
    /// It has not answered yet, and nothing failed.
    #[default]
    Starting,
    /// It answered the last handshake.
    Serving,
    /// The last handshake failed.
    Failed,
}

/// A tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolReport {
    /// Its name.
    pub name: String,
    /// SHA-256 of its definition (JSON with sorted keys), as `sha256:…`.
    pub digest: String,
}

/// An issuer whose keys the sidecar fetches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerReport {
    /// Its name.
    pub name: String,
    /// Whether tokens of it can be checked.
    pub state: IssuerState,
    /// What was tried and went wrong last; empty where nothing did.
    #[serde(default)]
    pub message: String,
}

/// Whether tokens of an issuer can be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IssuerState {
    /// Its keys are being read for the first time.
    Pending,
    /// Its keys are there.
    Available,
    /// Its keys are there, but cannot be read anew.
    Stale,
    /// There are no keys.
    Unavailable,
}
