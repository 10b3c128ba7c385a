//! Whether the service is alive and ready, and its metrics.

use std::time::Duration;

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{AppState, problem::Problem};
use crate::store::condition::{Readiness, readiness};

/// Why the service is not ready when it has no database to work with.
pub(super) const NO_DATABASE: &str = "the database cannot be reached, or was never migrated";

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(metrics))
        .routes(routes!(openapi_yaml))
}

/// Is the process alive?
#[utoipa::path(get, path = "/healthz", tag = "Service", security(()), responses(
    (status = 200, description = "It is.", body = String, content_type = "text/plain", example = json!("ok")),
))]
async fn healthz() -> &'static str {
    "ok"
}

/// Can it do its work: is the database reachable, migrated, and can it be written to?
#[utoipa::path(get, path = "/readyz", tag = "Service", security(()), responses(
    (status = 200, description = "It can.", body = String, content_type = "text/plain", example = json!("ready")),
    (status = 503, description = "It cannot; `detail` says why.", body = Problem,
     content_type = "application/problem+json", examples(("not-ready" = ()))),
))]
async fn readyz(State(state): State<AppState>) -> Result<&'static str, Problem> {
    // Shorter than any probe waits, so that the reason is told and not a time-out.
    let ready = tokio::time::timeout(
        Duration::from_secs(2),
        readiness(&state.pool, state.accounts.environment()),
    )
    .await;
    let reason = match ready {
        Ok(Ok(Readiness::Ready)) => return Ok("ready"),
        Ok(Ok(Readiness::ReadsOnly)) => "the database only reads, as a standby does",
        Ok(Ok(Readiness::CommitsHang)) => {
            "commits wait for a synchronous standby that does not respond"
        }
        Ok(Ok(Readiness::NotMigrated)) => "the database lacks migrations of this version",
        Ok(Ok(Readiness::NotClaimed)) => {
            "the database is not settled yet to be for test money or for real money"
        }
        Ok(Ok(Readiness::OtherEnvironment)) => "the database holds links of the other environment",
        Ok(Err(_)) | Err(_) => NO_DATABASE,
    };
    Err(Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "not-ready",
        reason,
    ))
}

/// Metrics, as Prometheus text.
#[utoipa::path(get, path = "/metrics", tag = "Service", security(()), responses(
    (status = 200, description = "The metrics.", body = String, content_type = "text/plain",
     example = json!("# HELP webhooks_total Webhooks received, by what they meant\n# TYPE webhooks_total counter\nwebhooks_total{verdict=\"applied\"} 6\n")),
))]
async fn metrics(State(state): State<AppState>) -> impl IntoResponse {
    let text = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (text, state.metrics.render())
}

/// This document.
#[utoipa::path(get, path = "/openapi.yaml", tag = "Service", security(()), responses(
    (status = 200, description = "The document.", body = Object, content_type = "application/yaml"),
))]
async fn openapi_yaml(State(state): State<AppState>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/yaml")],
        state.openapi.clone(),
    )
}
