//! Logs, metrics and traces.

pub mod export;
pub mod recent;
pub mod trace;

use std::{
    error::Error,
    fmt::Display,
    io::{self, IsTerminal},
    sync::OnceLock,
};

use metrics::Label;
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
    config::{LogFormat, LogSettings},
    payment_link::{Status, operation::ActionKind, timeline::Cause},
};

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

/// The outcomes of a call to Dojo that was certainly not carried out, as `dojo::Error` names them.
const NOT_DONE: [&str; 4] = ["rejected", "unreachable", "busy", "key_rejected"];

/// Installs the metrics recorder. The handle renders the metrics as Prometheus text.
///
/// A counter whose labels are listed here is exported from the start, as 0. Prometheus sees an increase only between two
/// values, so a counter that first appeared with the value 1 would hide the very event that somebody must hear of. The others
/// have too many combinations of labels, and matter only as rates.
pub fn init_metrics() -> Result<PrometheusHandle, metrics_exporter_prometheus::BuildError> {
    const SECONDS: [f64; 11] = [
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 10.0,
    ];

    let sizes = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_size".to_owned()), &sizes)?
        .install_recorder()?;
    describe_requests();
    describe_links();
    describe_messages();
    describe_jobs();
    describe_database();
    Ok(handle)
}

fn describe_requests() {
    metrics::describe_gauge!(
        "dojo_payment_links_build_info",
        "Always 1; the label is the version of the program"
    );
    metrics::gauge!("dojo_payment_links_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1);
    metrics::describe_counter!(
        "http_requests_total",
        "HTTP requests, by method, route and status"
    );
    metrics::describe_histogram!(
        "http_request_duration_seconds",
        "Duration of HTTP requests, by route"
    );
    let outcomes = [
        "done",
        "vouched",
        "rejected",
        "forbidden",
        "limited",
        "foreign",
        "unclear",
    ];
    counter(
        "console_sign_ins_total",
        "Attempts to sign in at the console, by outcome",
        &[("outcome", &outcomes)],
    );
    let verdicts = [
        "applied",
        "unchanged",
        "stale",
        "contradictory",
        "unknownStatus",
        "unknownEvent",
        "kept",
        "duplicate",
        "not_understood",
        "rejected",
    ];
    counter(
        "webhooks_total",
        "Webhooks received, by verdict",
        &[("verdict", &verdicts)],
    );
    metrics::describe_histogram!(
        "webhook_batch_size",
        "Webhooks that were stored in one transaction"
    );
    metrics::describe_histogram!(
        "webhook_batch_duration_seconds",
        "How long it took to store a batch of webhooks, with the commit"
    );
    metrics::describe_gauge!("webhook_queue_length", "Webhooks that wait to be stored");
    metrics::describe_gauge!(
        "webhooks_held_up",
        "Webhooks that were set aside because their link is locked"
    );
    counter(
        "webhook_queue_full_total",
        "Webhooks that were turned away because too many were waiting",
        &[],
    );
    metrics::describe_counter!(
        "dojo_requests_total",
        "Calls to Dojo, by operation and outcome"
    );
    metrics::describe_histogram!(
        "dojo_request_duration_seconds",
        "Duration of calls to Dojo, by operation"
    );
}

fn describe_links() {
    let outcomes = [&["created", "unknown"][..], &NOT_DONE].concat();
    counter(
        "payment_links_total",
        "Links requested, by outcome of the creation",
        &[("outcome", &outcomes)],
    );
    let statuses = Status::ALL.map(Status::as_str);
    counter(
        "link_status_changes_total",
        "Changes of links' status, by new status and cause",
        &[("status", &statuses), ("cause", &Cause::NAMES)],
    );
    counter(
        "erased_links_total",
        "Links whose personal data was erased, by cause",
        &[("cause", &["request", "operator", "retention"])],
    );
    metrics::describe_gauge!(
        "recent_links",
        "Links created in the last 24 hours, at most the newest 100000, by account and status"
    );
    let outcomes = [
        &[
            "succeeded",
            "not_possible",
            "unclear",
            "unknown",
            "found",
            "given_up",
            "unconfirmed",
        ][..],
        &NOT_DONE,
    ]
    .concat();
    let operations = ActionKind::ALL.map(ActionKind::as_str);
    counter(
        "operations_total",
        "Operations on payments, by operation and outcome",
        &[("operation", &operations), ("outcome", &outcomes)],
    );
    let outcomes = ["found", "created", "rejected", "given_up", "surplus"];
    counter(
        "recoveries_total",
        "Lost creations, by outcome",
        &[("outcome", &outcomes)],
    );
    counter(
        "conflicting_responses_total",
        "Responses from Dojo that contradict what is stored, by reason",
        &[("reason", &["behind", "older"])],
    );
    counter(
        "amount_mismatches_total",
        "Links for which Dojo reports a different amount",
        &[],
    );
    counter(
        "intents_missing_total",
        "Reconciliations of links whose intent Dojo does not have",
        &[],
    );
    counter(
        "intents_of_other_links_total",
        "Intents that Dojo returned for one link although they belong to another",
        &[],
    );
    counter(
        "surplus_paid_total",
        "Surplus intents that somebody paid",
        &[],
    );
}

fn describe_messages() {
    counter(
        "messages_total",
        "Attempts to send a message to a customer, by outcome",
        &[(
            "outcome",
            &["sent", "retried", "failed", "canceled", "unknown"],
        )],
    );
    counter(
        "reminders_total",
        "Reminders of links that nobody has paid",
        &[],
    );
    metrics::describe_gauge!(
        "backlog_messages",
        "Messages to customers that wait to be sent, by account"
    );
    metrics::describe_gauge!(
        "backlog_messages_lag_seconds",
        "How long ago the oldest message that waits was requested, by account"
    );
    metrics::describe_gauge!(
        "books_unbooked_events",
        "Events of the feed that are not booked yet"
    );
    metrics::describe_gauge!(
        "daily_reconciliation_differences",
        "Differences between the books and Dojo's transactions on the last business days, by account and kind"
    );
    metrics::describe_gauge!(
        "daily_reconciliation_lag_seconds",
        "How long the oldest business day has been due for its daily reconciliation, by account"
    );
}

fn describe_jobs() {
    let jobs = [
        "creation_recovery",
        "search",
        "reconciliation",
        "sweep",
        "operation_recovery",
        "orphaned_intents",
        "messages",
        "reminders",
        "daily_reconciliation",
        "transactions",
        "pruning",
        "feed",
        "books",
        "callbacks",
    ];
    let outcomes = [
        &[
            "ok",
            "database",
            "timed_out",
            "too_many_intents",
            "too_many_transactions",
            "intent_of_another_link",
            "not_confirmed",
            "panicked",
            "response_lost",
        ][..],
        &NOT_DONE,
    ]
    .concat();
    counter(
        "jobs_total",
        "Items processed by background jobs, by job and outcome",
        &[("job_name", &jobs), ("outcome", &outcomes)],
    );
    let loops = [
        "creation_recovery",
        "reconciliation",
        "operation_recovery",
        "orphaned_intents",
        "messages",
        "reminders",
        "daily_reconciliation",
        "backlog",
        "feed",
        "books",
        "feed_follower",
        "callbacks",
        "pruning",
        "upkeep",
    ];
    counter(
        "job_restarts_total",
        "Restarts of background jobs, by job and cause",
        &[
            ("job_name", &loops),
            ("cause", &["panicked", "ended", "hung"]),
        ],
    );
    counter(
        "pruned_rows_total",
        "Old rows removed by the background job, by table",
        &[(
            "table",
            &[
                "webhook_events",
                "payment_link_events",
                "messages",
                "feed_events",
                "callback_deliveries",
            ],
        )],
    );
    counter(
        "expired_bodies_total",
        "Old bodies of webhooks and stored responses removed by the background job, by table",
        &[(
            "table",
            &["webhook_events", "idempotency_keys", "operations"],
        )],
    );
    metrics::describe_histogram!(
        "feed_delay_seconds",
        "How old the oldest change of a batch was when it got its place in the feed"
    );
    metrics::describe_gauge!("feed_waiting_readers", "Requests that wait for events");
    metrics::describe_counter!(
        "callback_attempts_total",
        "Attempts to deliver a callback, by endpoint and outcome"
    );
    metrics::describe_histogram!(
        "callback_attempt_seconds",
        "How long attempts to deliver a callback took"
    );
    metrics::describe_gauge!(
        "callback_lag_seconds",
        "The age of the oldest event that an endpoint has not got, by endpoint"
    );
    metrics::describe_gauge!(
        "callback_pending",
        "Deliveries that wait for another attempt, by endpoint"
    );
    metrics::describe_gauge!(
        "callback_failed",
        "Deliveries whose attempts all failed and that were not replayed, by endpoint"
    );
    metrics::describe_gauge!(
        "callback_paused",
        "Whether a callback endpoint is paused (1) or not (0), by endpoint"
    );
    metrics::describe_gauge!(
        "job_last_progress_timestamp_seconds",
        "When a background job last made progress, by account and job"
    );
    metrics::describe_gauge!(
        "backlog_links",
        "Links waiting for a background job, by account and state"
    );
    metrics::describe_gauge!(
        "backlog_lag_seconds",
        "How long the oldest of these links has been due, by account"
    );
    metrics::describe_gauge!(
        "backlog_operations",
        "Lost operations that are due for recovery, by account"
    );
    metrics::describe_gauge!(
        "backlog_operations_lag_seconds",
        "How long ago the oldest of these operations was requested, by account"
    );
}

fn describe_database() {
    metrics::describe_gauge!(
        "database_connections",
        "Open connections to the database, by state"
    );
    metrics::describe_gauge!(
        "database_connections_max",
        "The maximum number of connections to the database"
    );
    metrics::describe_histogram!(
        "database_acquire_duration_seconds",
        "How long statements waited for a connection to the database"
    );
    counter(
        "database_acquire_timeouts_total",
        "Statements that got no connection to the database in time",
        &[],
    );
    counter(
        "database_connections_discarded_total",
        "Times that all open connections to the database were discarded, by reason",
        &[("reason", &["silent", "read_only"])],
    );
}

/// Describes a counter, and exports it as 0 for every combination of these labels' values.
fn counter(name: &'static str, about: &'static str, labels: &[(&'static str, &[&'static str])]) {
    metrics::describe_counter!(name, about);
    let mut combinations = vec![Vec::new()];
    for (label, values) in labels {
        combinations = combinations
            .iter()
            .flat_map(|labels: &Vec<Label>| {
                values
                    .iter()
                    .map(|value| [&labels[..], &[Label::new(*label, *value)]].concat())
            })
            .collect();
    }
    for labels in combinations {
        metrics::counter!(name, labels).increment(0);
    }
}
