//! Conditions of a status, with typed reasons.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a condition speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ConditionType {
    /// The object is valid and Toolward acts on it.
    Accepted,
    /// What is running is what is wanted.
    Programmed,
    /// Callers are served.
    Ready,
    /// What the object asks for holds where it runs.
    Enforced,
    /// Tokens of all issuers can be checked.
    AuthReady,
    /// Nobody reaches the server but through the sidecar.
    Isolated,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It is not known whether it holds.
    Unknown,
}

/// Why a condition is as it is. Also the reason of Events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Reason {
    /// Valid, and acted on.
    Accepted,
    /// The object cannot be read in the version that the operator knows.
    Undecodable,
    /// A Service or Deployment of the server's name exists and is not Toolward's.
    NameTaken,
    /// `Anonymous` was asked for and the chart's `allowAnonymous` does not allow it.
    AnonymousNotAllowed,
    /// A policy of this server cannot be compiled; its callers are denied.
    PolicyInvalid,
    /// The server's own configuration cannot be compiled; its callers are denied.
    ServerInvalid,
    /// A target of the policy does not exist.
    TargetNotFound,
    /// Every running sidecar has the wanted bundle.
    InForce,
    /// Some sidecars do not have the wanted bundle yet.
    Pending,
    /// A sidecar cannot read the wanted bundle and keeps the last good one.
    BundleRejected,
    /// Replicas are ready and the server answered.
    Serving,
    /// Replicas are starting.
    Starting,
    /// `replicas` is 0.
    ScaledToZero,
    /// The wrapped server ended, failed to start, or does not answer.
    ServerFailed,
    /// The pods cannot be created or started.
    PodsFailing,
    /// A sidecar cannot use the certificate of `spec.tls`, and has no older one.
    CertificateInvalid,
    /// The API server refused what the operator wanted to write.
    ApplyFailed,
    /// All of it is enforced.
    Enforced,
    /// Limits are counted by each replica for itself.
    PerReplica,
    /// The keys of every issuer are there.
    KeysAvailable,
    /// The keys of an issuer cannot be read.
    IssuerUnavailable,
    /// An issuer was asked for that the chart's `allowedIssuers` does not allow.
    IssuerNotAllowed,
    /// No token is asked for.
    Anonymous,
    /// The server listens on loopback only.
    LoopbackOnly,
    /// The server's ports are open, and a NetworkPolicy keeps others from them.
    NetworkPolicyEnforced,
    /// The operator reached a port of the server, past the sidecar.
    ServerPortReachable,
    /// The sidecar was put into a pod.
    Injected,
    /// Pods ask for the sidecar and do not have it.
    SidecarMissing,
    /// The sidecar of pods that Toolward did not make was started with an earlier spec.
    SidecarOutdated,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

/// A condition of an object (`metav1.Condition` with typed fields).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What the condition speaks of.
    #[serde(rename = "type")]
    pub type_: ConditionType,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, as one word.
    pub reason: Reason,
    /// Why, for a person, and what to do.
    #[schemars(length(max = 4096))]
    pub message: String,
    /// When `status` last changed.
    pub last_transition_time: Time,
    /// The generation of the spec that this speaks of.
    pub observed_generation: i64,
}
