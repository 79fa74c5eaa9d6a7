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
    /// The wrapped server.
    pub upstream: UpstreamReport,
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

/// A bundle that could not be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RejectedBundle {
    /// Its hash.
    pub hash: String,
    /// What is wrong with it.
    pub error: String,
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
