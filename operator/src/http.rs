//! The operator's own port: health and metrics.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};

use crate::{metrics::Metrics, world::World};

/// What answers on the operator's own port.
pub fn router(world: Arc<World>, metrics: Metrics) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready).with_state(world))
        .route("/metrics", get(text).with_state(metrics))
}

/// Ready once all that bundles depend on is known.
async fn ready(State(world): State<Arc<World>>) -> impl IntoResponse {
    if world.ready() {
        (StatusCode::OK, "ok")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "the watches or the issuer's keys are not there yet",
        )
    }
}

async fn text(State(metrics): State<Metrics>) -> impl IntoResponse {
    const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
