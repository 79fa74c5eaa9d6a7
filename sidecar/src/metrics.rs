//! Prometheus metrics. Labels have few values: never a caller, an argument, or
//! a name that a caller chose.

use std::{fmt, time::Duration};

use policy::Reason;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Buckets of the OpenTelemetry semantic conventions for MCP, in seconds.
const BUCKETS: [f64; 14] = [
    0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
];

/// All metrics of a sidecar.
pub struct Metrics {
    registry: Registry,
    decisions: Family<DecisionLabels, Counter>,
    duration: Family<MethodLabels, Histogram, fn() -> Histogram>,
    /// Requests and streams that are open.
    pub open_requests: Gauge,
    /// Sessions that hold a process.
    pub processes: Gauge,
    /// Bundles that were read, by whether they were taken.
    pub bundles: Family<BundleLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    method: &'static str,
    decision: &'static str,
    reason: ReasonLabel,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabels {
    mcp_method_name: &'static str,
}

/// Whether a bundle was taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BundleLabels {
    /// `accepted` or `rejected`.
    pub result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ReasonLabel(Reason);

impl EncodeLabelValue for ReasonLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), fmt::Error> {
        self.0.as_str().encode(encoder)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let decisions = Family::default();
        registry.register(
            "toolward_decisions",
            "Decisions on messages",
            decisions.clone(),
        );
        let duration =
            Family::new_with_constructor((|| Histogram::new(BUCKETS)) as fn() -> Histogram);
        registry.register_with_unit(
            "mcp_server_operation_duration",
            "From request to the head of the answer",
            Unit::Seconds,
            duration.clone(),
        );
        let open_requests = Gauge::default();
        registry.register(
            "toolward_open_requests",
            "Requests and streams that are open",
            open_requests.clone(),
        );
        let processes = Gauge::default();
        registry.register(
            "toolward_stdio_processes",
            "Processes of a stdio server",
            processes.clone(),
        );
        let bundles = Family::default();
        registry.register("toolward_bundles", "Bundles read", bundles.clone());
        Self {
            registry,
            decisions,
            duration,
            open_requests,
            processes,
            bundles,
        }
    }
}

impl Metrics {
    /// Counts a decision.
    pub fn decided(&self, method: &str, reason: Reason, allowed: bool) {
        let method = crate::method::label(method);
        let decision = if allowed { "Allow" } else { "Deny" };
        self.decisions
            .get_or_create(&DecisionLabels {
                method,
                decision,
                reason: ReasonLabel(reason),
            })
            .inc();
    }

    /// Notes how long a request took.
    pub fn took(&self, method: &str, duration: Duration) {
        let labels = MethodLabels {
            mcp_method_name: crate::method::label(method),
        };
        self.duration
            .get_or_create(&labels)
            .observe(duration.as_secs_f64());
    }

    /// The text of `/metrics` (OpenMetrics 1.0).
    ///
    /// # Errors
    /// Where a value cannot be written.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
