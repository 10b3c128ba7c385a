//! Probes, metrics, and the OpenAPI document.

use std::{sync::OnceLock, time::Duration};

use axum::{extract::State, http::header, response::IntoResponse};
use futures_util::future::{Either, select};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    openapi,
    problem::{NO_DATABASE, Problem},
    problem_type::ProblemType,
    state::AppState,
};
use crate::store::{
    self,
    condition::{Readiness, readiness},
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    liveness()
        .routes(routes!(readyz))
        .routes(routes!(metrics))
        .routes(routes!(openapi_yaml))
}

/// The only one of these routes that is also served on the public address. It discloses nothing, and calls nothing that
/// strangers could overload.
pub(super) fn liveness() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(healthz))
}

/// Checks whether the process is alive.
///
/// It does not check the database, so that an outage of the database makes no orchestrator restart the service.
#[utoipa::path(get, path = "/healthz", operation_id = "getHealth", tag = "Service", security(()), responses(
    (status = 200, description = "The process is alive.", body = String, content_type = "text/plain", example = json!("ok")),
))]
async fn healthz() -> &'static str {
    "ok"
}

/// Checks whether the service is ready.
///
/// It is ready if the database is reachable, migrated and writable, and belongs to the service's environment.
#[utoipa::path(get, path = "/readyz", operation_id = "getReadiness", tag = "Service", security(()), responses(
    (status = 200, description = "The service is ready.", body = String, content_type = "text/plain", example = json!("ready")),
    (status = 503, description = "The service is not ready. `detail` says why.", body = Problem,
     content_type = "application/problem+json", examples(("not-ready" = ()))),
))]
async fn readyz(State(state): State<AppState>) -> Result<&'static str, Problem> {
    // Shorter than the timeout of any probe, so that the probe gets the reason.
    let ready = tokio::time::timeout(Duration::from_secs(2), is_ready(&state)).await;
    let reason = match ready {
        Ok(Ok(Readiness::Ready)) => return Ok("ready"),
        Ok(Ok(Readiness::ReadOnly)) => "the database is read-only, like a standby",
        Ok(Ok(Readiness::CommitsHang)) => {
            "commits wait for a synchronous standby that does not respond"
        }
        Ok(Ok(Readiness::NotMigrated)) => "the database lacks migrations that this version needs",
        Ok(Ok(Readiness::NotClaimed)) => {
            "the database has not been assigned to an environment (sandbox or production) yet"
        }
        Ok(Ok(Readiness::OtherEnvironment)) => {
            "the database contains links of the other environment"
        }
        Ok(Err(_)) | Err(_) => NO_DATABASE,
    };
    Err(Problem::new(ProblemType::NotReady, reason))
}

/// Asks on the reserved connection, which no request keeps busy, and on one of the pool's. One `Ready` is enough: the reserved
/// connection may be the last one to notice that the database has moved.
async fn is_ready(state: &AppState) -> Result<Readiness, store::Error> {
    let environment = state.accounts.environment();
    let reserved = Box::pin(readiness(&state.probes, environment));
    let shared = Box::pin(readiness(&state.pool, environment));
    let (Either::Left((first, other)) | Either::Right((first, other))) =
        select(reserved, shared).await;
    if matches!(first, Ok(Readiness::Ready)) {
        return first;
    }
    let second = other.await;
    if matches!(second, Ok(Readiness::Ready)) {
        return second;
    }
    first
}

/// Returns the metrics.
///
/// They are in Prometheus's text format.
#[utoipa::path(get, path = "/metrics", operation_id = "getMetrics", tag = "Service", security(()), responses(
    (status = 200, description = "The metrics.", body = String, content_type = "text/plain",
     example = json!("# HELP webhooks_total Webhooks received, by verdict\n# TYPE webhooks_total counter\nwebhooks_total{verdict=\"applied\"} 6\n")),
))]
async fn metrics(State(state): State<AppState>) -> impl IntoResponse {
    state.pool.report();
    state.intake.report();
    let text = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (text, state.metrics.render())
}

/// Returns this document.
///
/// It is the OpenAPI document of the version that is running, as YAML.
#[utoipa::path(get, path = "/openapi.yaml", operation_id = "getOpenApiDocument", tag = "Service", security(()), responses(
    (status = 200, description = "The OpenAPI document.", body = String, content_type = "application/yaml"),
))]
async fn openapi_yaml(State(state): State<AppState>) -> impl IntoResponse {
    static YAML: OnceLock<String> = OnceLock::new();
    let yaml = YAML.get_or_init(|| openapi::to_yaml((state.document)()));
    ([(header::CONTENT_TYPE, "application/yaml")], yaml.as_str())
}
