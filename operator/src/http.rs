//! The operator's own port: health and metrics.

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};

use tokio::sync::watch;

use crate::{certificates::Certificates, metrics::Metrics, world::World};

/// What answers on the operator's own port, until `leaves` is true.
pub fn router(
    world: Arc<World>,
    certificates: Arc<Certificates>,
    metrics: Metrics,
    leaves: watch::Receiver<bool>,
) -> Router {
    let known = (world, certificates, leaves);
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready).with_state(known))
        .route("/metrics", get(text).with_state(metrics))
}

type Known = (Arc<World>, Arc<Certificates>, watch::Receiver<bool>);

/// Ready once all that bundles depend on is known, and while API servers accept
/// the webhook's certificate. Who leaves says so: a replica that lost the Lease is
/// still in the Service's list, as its pod is not being deleted.
async fn ready(State((world, certificates, leaves)): State<Known>) -> impl IntoResponse {
    if *leaves.borrow() {
        return (StatusCode::SERVICE_UNAVAILABLE, "it leaves");
    }
    if !world.ready() {
        let why = "the watches or the issuer's keys are not there yet";
        return (StatusCode::SERVICE_UNAVAILABLE, why);
    }
    match certificates.ready(Instant::now()) {
        Ok(()) => (StatusCode::OK, "ok"),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

async fn text(State(metrics): State<Metrics>) -> impl IntoResponse {
    const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
