//! What the operator counts. Labels have few values: no names of objects.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Labels of `toolward_reconciles_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Round {
    controller: &'static str,
    result: &'static str,
}

/// Label of `toolward_reconcile_duration_seconds`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Controller {
    controller: &'static str,
}

/// Labels of `toolward_reconcile_errors_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    controller: &'static str,
    category: &'static str,
}

/// Label of `toolward_sidecar_polls_total` and `toolward_port_tries_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

/// Labels of `toolward_admissions_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Admission {
    resource: &'static str,
    result: &'static str,
}

/// Label of `toolward_admission_duration_seconds`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Admitted {
    resource: &'static str,
}

/// The operator's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    rounds: Family<Round, Counter>,
    seconds: Family<Controller, Histogram, fn() -> Histogram>,
    failures: Family<Failure, Counter>,
    polls: Family<Outcome, Counter>,
    tries: Family<Outcome, Counter>,
    nudges: Counter,
    writes: Counter,
    admissions: Family<Admission, Counter>,
    admission_seconds: Family<Admitted, Histogram, fn() -> Histogram>,
    certificate: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let buckets = || Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0]);
        let fine = || Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0, 5.0]);
        let new = Self {
            registry: Arc::default(),
            rounds: Family::default(),
            seconds: Family::new_with_constructor(buckets),
            failures: Family::default(),
            polls: Family::default(),
            tries: Family::default(),
            nudges: Counter::default(),
            writes: Counter::default(),
            admissions: Family::default(),
            admission_seconds: Family::new_with_constructor(fine),
            certificate: Gauge::default(),
        };
        new.register();
        new
    }
}

impl Metrics {
    fn register(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let registry = registry.sub_registry_with_prefix("toolward");
        registry.register(
            "reconciles",
            "Reconciliations by controller and result",
            self.rounds.clone(),
        );
        registry.register(
            "reconcile_duration_seconds",
            "Duration of reconciliations",
            self.seconds.clone(),
        );
        registry.register(
            "reconcile_errors",
            "Failed reconciliations by category",
            self.failures.clone(),
        );
        registry.register(
            "sidecar_polls",
            "Questions to sidecars for their status, by result",
            self.polls.clone(),
        );
        registry.register(
            "port_tries",
            "Connections to ports of servers past their sidecars, by result: taken is a fault",
            self.tries.clone(),
        );
        registry.register(
            "bundle_nudges",
            "Annotations written to pods so that the kubelet delivers a bundle at once",
            self.nudges.clone(),
        );
        registry.register(
            "status_writes",
            "Writes of the status of Toolward's own objects",
            self.writes.clone(),
        );
        registry.register(
            "admissions",
            "Questions of API servers to the webhook, by resource and result",
            self.admissions.clone(),
        );
        registry.register(
            "admission_duration_seconds",
            "Duration of answers of the webhook",
            self.admission_seconds.clone(),
        );
        registry.register(
            "webhook_certificate_expiry_timestamp_seconds",
            "When the webhook's certificate in use ends; 0 before there is one",
            self.certificate.clone(),
        );
    }

    /// A reconciliation ended; `category` is that of its error.
    pub fn reconciled(
        &self,
        controller: &'static str,
        category: Option<&'static str>,
        took: Duration,
    ) {
        let result = if category.is_some() { "error" } else { "ok" };
        self.rounds
            .get_or_create(&Round { controller, result })
            .inc();
        self.seconds
            .get_or_create(&Controller { controller })
            .observe(took.as_secs_f64());
        if let Some(category) = category {
            let failure = Failure {
                controller,
                category,
            };
            self.failures.get_or_create(&failure).inc();
        }
    }

    /// A sidecar was asked for its status.
    pub fn polled(&self, result: &'static str) {
        self.polls.get_or_create(&Outcome { result }).inc();
    }

    /// A port of a server was tried from outside.
    pub fn tried(&self, result: &'static str) {
        self.tries.get_or_create(&Outcome { result }).inc();
    }

    /// A pod's annotation was set.
    pub fn nudged(&self) {
        self.nudges.inc();
    }

    /// A question of an API server was answered.
    pub fn admitted(&self, resource: &'static str, result: &'static str, took: Duration) {
        let admission = Admission { resource, result };
        self.admissions.get_or_create(&admission).inc();
        self.admission_seconds
            .get_or_create(&Admitted { resource })
            .observe(took.as_secs_f64());
    }

    /// The webhook uses another certificate, which ends then.
    pub fn uses_certificate(&self, until: u64) {
        self.certificate
            .set(i64::try_from(until).unwrap_or(i64::MAX));
    }

    /// A status was written.
    pub fn wrote_status(&self) {
        self.writes.inc();
    }

    /// All metrics in the text format of Prometheus.
    ///
    /// # Errors
    /// Where the text cannot be written.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}
