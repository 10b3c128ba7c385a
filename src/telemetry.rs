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

use crate::{
    config::{ConfigError, LogFormat, LogSettings},
    payment_link::Environment,
};

/// Whether the process moves real money, once its settings tell.
static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();

/// Has every line of the log name the environment from here on. It is one for the whole process, whichever task or crate
/// a line comes from, so no span could carry it to all of them.
pub fn name_environment(environment: Environment) {
    // A second call could only say the same.
    let _ = ENVIRONMENT.set(environment);
}

/// Lines of the log, each with the environment in front.
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
        write!(
            writer,
            "{{\"environment\":\"{}\",{rest}",
            environment.as_str()
        )
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
            write!(writer, "{} ", environment.as_str())?;
        }
        self.0.format_event(context, writer, event)
    }
}

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
        "job_restarts_total",
        "Background jobs started again, by job and cause"
    );
    metrics::describe_gauge!(
        "job_last_progress_timestamp_seconds",
        "When each background job last made progress, by account and job"
    );
    metrics::describe_counter!(
        "conflicting_responses_total",
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
    metrics::describe_counter!(
        "database_connections_discarded_total",
        "Times that every open connection to the database was given up, by reason"
    );
    metrics::describe_counter!("webhooks_total", "Webhooks received, by what they meant");
    Ok(handle)
}
