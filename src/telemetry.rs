//! Logs and metrics.

use std::{
    error::Error,
    fmt::Display,
    io::{self, IsTerminal},
    sync::OnceLock,
};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        self, FmtContext, FormatEvent, FormatFields,
        format::{Format, Json, JsonFields, Writer},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::config::{LogFormat, LogSettings};

/// The environment to add to log lines, once it is known.
static ENVIRONMENT: OnceLock<&'static str> = OnceLock::new();

/// Adds the environment to every log line from here on. A span couldn't do that: log lines come from any task and any
/// crate, and the environment applies to all of them.
pub fn set_environment(environment: &'static str) {
    // A process has only one environment, so a second call would set the same one.
    let _ = ENVIRONMENT.set(environment);
}

/// Formats log lines with the environment in front.
struct WithEnvironment<F>(F);

impl<S, N> FormatEvent<S, N> for WithEnvironment<Format<Json>>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let Some(environment) = ENVIRONMENT.get() else {
            return self.0.format_event(context, writer, event);
        };
        let mut line = String::new();
        self.0
            .format_event(context, Writer::new(&mut line), event)?;
        let rest = line.strip_prefix('{').unwrap_or(&line);
        write!(writer, "{{\"environment\":\"{environment}\",{rest}")
    }
}

impl<S, N> FormatEvent<S, N> for WithEnvironment<Format<fmt::format::Compact>>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        if let Some(environment) = ENVIRONMENT.get() {
            write!(writer, "{environment} ")?;
        }
        self.0.format_event(context, writer, event)
    }
}

/// Starts logging to standard error. Standard output is for the results of commands.
pub fn init_logs(settings: &LogSettings) {
    let filter = EnvFilter::new(&settings.log_filter);
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
                    .event_format(WithEnvironment(
                        fmt::format()
                            .json()
                            .flatten_event(true)
                            .with_span_list(false),
                    ))
                    .fmt_fields(JsonFields::new())
                    .with_writer(io::stderr),
            )
            .init(),
        LogFormat::Text => registry
            .with(
                fmt::layer()
                    .event_format(WithEnvironment(fmt::format().compact()))
                    .with_writer(io::stderr),
            )
            .init(),
    }
    // Log a panic like everything else: in one line, and within the request's span.
    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string);
        tracing::error!(panic = panic.payload_as_str(), at, "a panic");
    }));
}

/// Formats an error and its causes in one line. A cause that the text before already ends with is left out.
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

/// Installs the metrics recorder. The handle renders the metrics as Prometheus text.
pub fn init_metrics() -> Result<PrometheusHandle, metrics_exporter_prometheus::BuildError> {
    const SECONDS: [f64; 11] = [
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 10.0,
    ];

    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .install_recorder()?;
    metrics::describe_counter!(
        "http_requests_total",
        "HTTP requests, by method, route and status"
    );
    metrics::describe_histogram!(
        "http_request_duration_seconds",
        "Duration of HTTP requests, by route"
    );
    metrics::describe_counter!(
        "dojo_requests_total",
        "Calls to Dojo, by operation and outcome"
    );
    metrics::describe_histogram!(
        "dojo_request_duration_seconds",
        "Duration of calls to Dojo, by operation"
    );
    metrics::describe_counter!(
        "payment_links_total",
        "Links requested, by outcome of the creation"
    );
    metrics::describe_counter!(
        "operations_total",
        "Operations on payments, by operation and outcome"
    );
    metrics::describe_gauge!(
        "backlog_operations",
        "Lost operations that are due for recovery, by account"
    );
    metrics::describe_counter!("recoveries_total", "Lost creations, by outcome");
    metrics::describe_counter!(
        "jobs_total",
        "Items processed by background jobs, by job and outcome"
    );
    metrics::describe_counter!(
        "job_restarts_total",
        "Restarts of background jobs, by job and cause"
    );
    metrics::describe_gauge!(
        "job_last_progress_timestamp_seconds",
        "When a background job last made progress, by account and job"
    );
    metrics::describe_counter!(
        "conflicting_responses_total",
        "Responses from Dojo that contradict what is stored, by reason"
    );
    metrics::describe_counter!(
        "amount_mismatches_total",
        "Links for which Dojo reports a different amount"
    );
    metrics::describe_counter!(
        "intents_missing_total",
        "Reconciliations of links whose intent Dojo does not have"
    );
    metrics::describe_counter!(
        "intents_of_other_links_total",
        "Intents that Dojo returned for one link although they belong to another"
    );
    metrics::describe_counter!("surplus_paid_total", "Surplus intents that somebody paid");
    metrics::describe_gauge!(
        "backlog_links",
        "Links waiting for a background job, by account and state"
    );
    metrics::describe_gauge!(
        "backlog_lag_seconds",
        "How long the oldest of these links has been due, by account"
    );
    metrics::describe_counter!(
        "database_connections_discarded_total",
        "Times that all open connections to the database were discarded, by reason"
    );
    metrics::describe_counter!("webhooks_total", "Webhooks received, by verdict");
    Ok(handle)
}
