//! Logs and metrics.

use std::{
    error::Error,
    fmt::Display,
    io::{self, IsTerminal},
};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{ConfigError, LogFormat, LogSettings};

/// Sends the log to standard error. Standard output belongs to what a command answers.
pub fn init_logs(settings: &LogSettings) -> Result<(), ConfigError> {
    let filter = EnvFilter::try_new(&settings.log_filter)
        .map_err(|error| ConfigError::with_source("LOG_FILTER", "is no filter", error))?;
    let format = settings
        .log_format
        .unwrap_or(if io::stderr().is_terminal() {
            LogFormat::Text
        } else {
            LogFormat::Json
        });
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Json => registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_span_list(false)
                    .with_writer(io::stderr),
            )
            .init(),
        LogFormat::Text => registry
            .with(fmt::layer().compact().with_writer(io::stderr))
            .init(),
    }
    // A panic is told like everything else, in one line and in the request's span.
    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string);
        tracing::error!(panic = panic.payload_as_str(), at, "a panic");
    }));
    Ok(())
}

/// Writes an error and what caused it in one line. What a cause only repeats is left out.
#[must_use]
pub fn causes(error: &dyn Error) -> impl Display + use<> {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// Starts to count and time; the handle writes what was counted as Prometheus text.
pub fn init_metrics() -> Result<PrometheusHandle, metrics_exporter_prometheus::BuildError> {
    const SECONDS: [f64; 11] = [
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 10.0,
    ];

    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .install_recorder()?;
    metrics::describe_counter!(
        "http_requests_total",
        "Requests answered, by method, route and status"
    );
    metrics::describe_histogram!(
        "http_request_duration_seconds",
        "How long they took, by route"
    );
    metrics::describe_counter!(
        "dojo_requests_total",
        "Calls to Dojo, by operation and outcome"
    );
    metrics::describe_histogram!(
        "dojo_request_duration_seconds",
        "How long they took, by operation"
    );
    metrics::describe_counter!(
        "payment_links_total",
        "Links asked for, by what became of the creation"
    );
    metrics::describe_counter!(
        "operations_total",
        "Operations on payments, by kind and what became of them"
    );
    metrics::describe_gauge!(
        "backlog_operations",
        "Operations whose outcome is to be found out, by account"
    );
    metrics::describe_counter!("recoveries_total", "Lost creations, by what became of them");
    metrics::describe_counter!(
        "jobs_total",
        "Pieces of background work, by job and outcome"
    );
    metrics::describe_counter!(
        "disputes_total",
        "Answers of Dojo's that were behind what a webhook told"
    );
    metrics::describe_counter!(
        "amount_mismatches_total",
        "Links for which Dojo reports another amount"
    );
    metrics::describe_counter!(
        "intents_missing_total",
        "Looks at intents that Dojo does not know"
    );
    metrics::describe_counter!(
        "surplus_paid_total",
        "Second intents of a link that somebody paid"
    );
    metrics::describe_gauge!(
        "backlog_links",
        "Links that wait for the background, by account and state"
    );
    metrics::describe_gauge!(
        "backlog_lag_seconds",
        "How long the oldest of them has been due, by account"
    );
    metrics::describe_counter!("webhooks_total", "Webhooks received, by what they meant");
    Ok(handle)
}
