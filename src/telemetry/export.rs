//! Exports spans to an OpenTelemetry collector, by OTLP over HTTP.
//!
//! Spans wait in a bounded queue for a thread of their own, which sends them in batches. If the collector is slow or
//! unreachable, the queue fills up and further spans are dropped. Requests never wait for any of this.

use std::{
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};
use reqwest::redirect;
use tokio::runtime::Handle;
use tracing::warn;
use url::Url;

use super::causes;
use crate::config::ConfigError;

/// The time limit of sending one batch, including repetitions.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the last spans may take when the service stops. A collector that doesn't respond must not delay a restart.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the log reports that spans can't be exported.
const REPORT_INTERVAL: Duration = Duration::from_mins(5);

const SERVICE_NAME: &str = "service.name";

/// What makes spans that are exported. A process exports to one collector at most.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// `None` if no spans are exported.
pub(super) fn tracer() -> Option<&'static SdkTracer> {
    TRACER.get()
}

/// Exports the spans of this process from its start on.
#[derive(Debug)]
pub struct Exporter(SdkTracerProvider);

impl Exporter {
    /// Starts exporting to the collector with this base URL. Needs a Tokio runtime.
    pub fn start(endpoint: &Url, environment: &'static str) -> Result<Self, ConfigError> {
        let wrong = |text: String| {
            let text = format!("cannot be exported to: {text}");
            ConfigError::new("OTEL_EXPORTER_OTLP_ENDPOINT", text)
        };
        let client = reqwest::Client::builder()
            .timeout(SEND_TIMEOUT)
            .redirect(redirect::Policy::none())
            .build()
            .map_err(|error| wrong(causes(&error).to_string()))?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(traces_url(endpoint))
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(SEND_TIMEOUT)
            .with_http_client(Sender {
                client,
                runtime: Handle::current(),
                reported: Mutex::new(None),
            })
            .build()
            .map_err(|error| wrong(error.to_string()))?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource(environment))
            .build();
        let _ = TRACER.set(provider.tracer(env!("CARGO_PKG_NAME")));
        Ok(Self(provider))
    }

    /// Exports the spans that are left, within this time, and stops.
    pub async fn finish(self, limit: Duration) {
        let limit = limit.min(FLUSH_TIMEOUT);
        // It blocks its thread.
        let finished = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(limit));
        if !matches!(finished.await, Ok(Ok(()))) {
            warn!("stopped before all spans were exported");
        }
    }
}

/// Where a collector with this base URL receives spans.
fn traces_url(endpoint: &Url) -> Url {
    let mut url = endpoint.clone();
    url.path_segments_mut()
        .expect("the setting admits only http and https, which have paths")
        .pop_if_empty()
        .extend(["v1", "traces"]);
    url
}

/// What the spans say about this process. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` override it.
fn resource(environment: &'static str) -> Resource {
    let own = [
        KeyValue::new(SERVICE_NAME, env!("CARGO_PKG_NAME")),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("deployment.environment.name", environment),
    ];
    let detected = Resource::builder().build();
    let given = detected
        .iter()
        .filter(|(key, value)| {
            // What OpenTelemetry reports if nobody has set the name.
            key.as_str() != SERVICE_NAME || !value.as_str().starts_with("unknown_service")
        })
        .map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    Resource::builder_empty()
        .with_attributes(own)
        .with_attributes(given)
        .build()
}

/// Sends batches. The thread that calls it has no Tokio runtime, which reqwest needs.
#[derive(Debug)]
struct Sender {
    client: reqwest::Client,
    runtime: Handle,
    /// When a failure was last logged.
    reported: Mutex<Option<Instant>>,
}

impl Sender {
    fn report(&self, reason: &str) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL) {
            *reported = Some(Instant::now());
            warn!(
                reason,
                "spans cannot be exported; further failures are not logged for 5 minutes"
            );
        }
    }
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let sending = async move {
            let result = client.send_bytes(request).await;
            result.map_err(|error| match error.downcast::<reqwest::Error>() {
                // The URL may contain a key.
                Ok(error) => HttpError::from(error.without_url()),
                Err(error) => error,
            })
        };
        let result = self.runtime.spawn(sending).await?;
        match &result {
            Ok(response) if response.status().is_success() => {}
            Ok(response) => self.report(&format!("status {}", response.status())),
            Err(error) => self.report(&causes(&**error).to_string()),
        }
        result
    }
}
