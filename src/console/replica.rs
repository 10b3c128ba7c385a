//! What this replica's own metrics say. Each finding has its alert in `ops/prometheus/alerts.yml`, which sees all replicas.

use std::time::Duration;

use time::OffsetDateTime;

use super::{
    finding::{Finding, capitalized, spoken},
    runbook::Entry,
    words::Tone,
};
use crate::telemetry::recent::{Counted, Sample};

/// How long a job may make no progress. The alert has the same limit.
const JOB_PATIENCE: i64 = 300;

/// How long ago the last webhook may be while links are being paid. The alert has the same limit.
const WEBHOOK_PATIENCE: time::Duration = time::Duration::HOUR;

/// Something that shouldn't happen, or not often.
struct Signal {
    name: &'static str,
    counter: &'static str,
    is_counted: fn(Sample<'_>) -> bool,
    /// How many in an hour are no reason to do anything.
    most: u64,
    tone: Tone,
    /// The label whose values say more.
    detail: Option<&'static str>,
    /// What it means, and what to do.
    advice: &'static str,
    runbook: &'static [Entry],
}

impl Signal {
    fn finding(&self, counted: &Counted<'_>) -> Finding {
        let number = counted.sum(self.counter, self.is_counted);
        if number == 0 {
            return Finding::new(self.name, Tone::Good, "None.");
        }
        let detail = self.detail.map(|label| {
            let samples = counted.of(self.counter);
            let values = samples
                .filter(|sample| (self.is_counted)(*sample))
                .map(|sample| sample.label(label));
            let mut values: Vec<_> = values.collect();
            values.sort_unstable();
            values.dedup();
            format!(" ({})", values.join(", "))
        });
        let text = format!("{number}{}.", detail.unwrap_or_default());
        if number <= self.most {
            return Finding::new(self.name, Tone::Good, text);
        }
        Finding::new(self.name, self.tone, text).advice(self.advice, self.runbook)
    }
}

/// A share of something that shouldn't be large.
struct Share {
    name: &'static str,
    /// A counter, and which of it.
    part: (&'static str, fn(Sample<'_>) -> bool),
    whole: (&'static str, fn(Sample<'_>) -> bool),
    /// Whether the part is what the whole has and `part` doesn't: the buckets of a histogram count what took less.
    is_rest: bool,
    percent: u64,
    /// How many are too few to be a reason to do anything.
    few: u64,
    tone: Tone,
    advice: &'static str,
    runbook: &'static [Entry],
}

impl Share {
    fn finding(&self, counted: &Counted<'_>) -> Finding {
        let whole = counted.sum(self.whole.0, self.whole.1);
        let part = counted.sum(self.part.0, self.part.1);
        let part = if self.is_rest {
            whole.saturating_sub(part)
        } else {
            part
        };
        let text = match (part, whole) {
            (_, 0) => "There was nothing to count.".to_owned(),
            (0, _) => format!("None of {whole}."),
            _ => format!("{part} of {whole}."),
        };
        if part <= self.few || part * 100 <= whole * self.percent {
            return Finding::new(self.name, Tone::Good, text);
        }
        Finding::new(self.name, self.tone, text).advice(self.advice, self.runbook)
    }
}

/// Whether it is about a request that somebody waits for.
fn is_request(sample: Sample<'_>) -> bool {
    !matches!(sample.label("route"), "/healthz" | "/readyz" | "/metrics")
}

/// Whether it is a creation or an operation.
fn is_change(sample: Sample<'_>) -> bool {
    sample.label("method") == "POST" && sample.label("route").starts_with("/v1/")
}

const SHARES: [Share; 8] = [
    Share {
        name: "Requests that got 503",
        part: ("http_requests_total", |sample| {
            is_request(sample) && sample.label("status") == "503"
        }),
        whole: ("http_requests_total", is_request),
        is_rest: false,
        percent: 5,
        few: 0,
        tone: Tone::Bad,
        advice: "The database or Dojo can’t be reached, or the replica has too much to do. Nothing was done that clients can’t \
                 repeat with the same Idempotency-Key.",
        runbook: &[Entry::AnswersUnavailable],
    },
    Share {
        name: "Creations and operations with an unknown outcome (504)",
        part: ("http_requests_total", |sample| {
            is_change(sample) && sample.label("status") == "504"
        }),
        whole: ("http_requests_total", is_change),
        is_rest: false,
        percent: 2,
        few: 0,
        tone: Tone::Waiting,
        advice: "Dojo’s responses were lost. The background jobs find out what happened. Look at the calls to Dojo below.",
        runbook: &[Entry::LinksStayPending],
    },
    Share {
        name: "Calls to Dojo that failed",
        part: ("dojo_requests_total", |sample| {
            matches!(sample.label("outcome"), "unreachable" | "response_lost")
        }),
        whole: ("dojo_requests_total", |_| true),
        is_rest: false,
        percent: 10,
        few: 0,
        tone: Tone::Bad,
        advice: "Dojo, or the network on the way there, doesn’t respond. Reading and webhooks still work. There is nothing to \
                 restart.",
        runbook: &[Entry::DojoUnreachable],
    },
    Share {
        name: "Calls to Dojo that took over 5 s",
        part: ("dojo_request_duration_seconds_bucket", |sample| {
            sample.label("le") == "5"
        }),
        whole: ("dojo_request_duration_seconds_count", |_| true),
        is_rest: true,
        percent: 1,
        few: 0,
        tone: Tone::Waiting,
        advice: "Calls that take longer than DOJO_TIMEOUT count as lost. Ask Dojo. If it lasts, raise DOJO_TIMEOUT and \
                 REQUEST_TIMEOUT.",
        runbook: &[Entry::DojoSlow],
    },
    Share {
        name: "Calls that Dojo throttled (429)",
        part: ("dojo_requests_total", |sample| {
            sample.label("outcome") == "busy"
        }),
        whole: ("dojo_requests_total", |_| true),
        is_rest: false,
        percent: 5,
        few: 0,
        tone: Tone::Waiting,
        advice: "Dojo asks for fewer calls. Lower BACKGROUND_RATE, or ask Dojo for a higher limit.",
        runbook: &[Entry::DojoThrottles],
    },
    Share {
        name: "Requested links that weren’t created",
        part: ("payment_links_total", |sample| {
            !matches!(sample.label("outcome"), "created" | "rejected")
        }),
        whole: ("payment_links_total", |_| true),
        is_rest: false,
        percent: 50,
        few: 2,
        tone: Tone::Bad,
        advice: "Dojo can’t be reached, doesn’t respond, or rejects the key.",
        runbook: &[Entry::DojoUnreachable],
    },
    Share {
        name: "Requested links that Dojo rejected",
        part: ("payment_links_total", |sample| {
            sample.label("outcome") == "rejected"
        }),
        whole: ("payment_links_total", |_| true),
        is_rest: false,
        percent: 50,
        few: 2,
        tone: Tone::Waiting,
        advice: "Clients send requests that Dojo doesn’t accept. The failure on the page of such a link says why.",
        runbook: &[Entry::DojoRejectsLinks],
    },
    Share {
        name: "Webhooks that took over 1 s to store",
        part: ("http_request_duration_seconds_bucket", |sample| {
            sample.label("le") == "1" && sample.label("route").starts_with("/webhooks/")
        }),
        whole: ("http_request_duration_seconds_count", |sample| {
            sample.label("route").starts_with("/webhooks/")
        }),
        is_rest: true,
        percent: 1,
        few: 0,
        tone: Tone::Waiting,
        advice: "The database takes long to commit. Dojo may send webhooks again, which does no harm.",
        runbook: &[Entry::WebhooksSlow],
    },
];

const SIGNALS: [Signal; 19] = [
    Signal {
        name: "Requests that failed (500)",
        counter: "http_requests_total",
        is_counted: |sample| sample.label("status") == "500",
        most: 0,
        tone: Tone::Bad,
        detail: Some("route"),
        advice: "A bug. Clients may repeat the requests with the same Idempotency-Key. Look for the error in the log, and report it.",
        runbook: &[Entry::RequestFails],
    },
    Signal {
        name: "Requests that came too fast (429)",
        counter: "http_requests_total",
        is_counted: |sample| sample.label("status") == "429",
        most: 600,
        tone: Tone::Waiting,
        detail: None,
        advice: "A client sends more than CLIENT_RATE allows. The log says which one. Have it slow down, or raise the limit.",
        runbook: &[Entry::ClientThrottled],
    },
    Signal {
        name: "Attempts to sign in that failed",
        counter: "console_sign_ins_total",
        is_counted: |sample| {
            matches!(
                sample.label("outcome"),
                "rejected" | "limited" | "foreign" | "unclear"
            )
        },
        most: 20,
        tone: Tone::Waiting,
        detail: Some("outcome"),
        advice: "Somebody is trying out keys, a program uses a revoked key, or the proxy passes on headers that it shouldn’t. Audit \
                 has the addresses.",
        runbook: &[Entry::SignInsFail],
    },
    Signal {
        name: "Webhooks without a valid signature",
        counter: "webhooks_total",
        is_counted: |sample| sample.label("verdict") == "rejected",
        most: 10,
        tone: Tone::Waiting,
        detail: None,
        advice: "Somebody sends forgeries, or a secret that Dojo signs with is missing in the settings: see Webhook secret above. \
                 Links are read from Dojo meanwhile.",
        runbook: &[Entry::WebhooksRejected],
    },
    Signal {
        name: "Webhooks that aren’t understood",
        counter: "webhooks_total",
        is_counted: |sample| sample.label("verdict") == "not_understood",
        most: 0,
        tone: Tone::Waiting,
        detail: None,
        advice: "Dojo may have changed its format. They are stored, and their links are read from Dojo. Report it.",
        runbook: &[Entry::WebhookNotUnderstood],
    },
    Signal {
        name: "Webhooks that were turned away",
        counter: "webhook_queue_full_total",
        is_counted: |_| true,
        most: 0,
        tone: Tone::Waiting,
        detail: None,
        advice: "They arrive faster than the database stores them. Dojo sends them again.",
        runbook: &[Entry::WebhooksTurnedAway],
    },
    Signal {
        name: "Calls for which Dojo rejected the key",
        counter: "dojo_requests_total",
        // Not every key may read transactions or manage webhooks, and payments don't depend on it.
        is_counted: |sample| {
            sample.label("outcome") == "key_rejected"
                && !matches!(sample.label("operation"), "transactions" | "webhooks")
        },
        most: 0,
        tone: Tone::Bad,
        detail: Some("operation"),
        advice: "An account’s key is wrong, was revoked, or lacks a permission: see Dojo and the API key above.",
        runbook: &[Entry::DojoRejectsKey],
    },
    Signal {
        name: "Lost creations that were given up",
        counter: "recoveries_total",
        is_counted: |sample| sample.label("outcome") == "given_up",
        most: 0,
        tone: Tone::Waiting,
        detail: None,
        advice: "These links can’t be paid. The clients must request new ones.",
        runbook: &[Entry::CreationGivenUp],
    },
    Signal {
        name: "Second intents for a link",
        counter: "recoveries_total",
        is_counted: |sample| sample.label("outcome") == "surplus",
        most: 0,
        tone: Tone::Waiting,
        detail: None,
        advice: "They were cancelled, and nobody got their address. Dojo’s search lags by more than RECOVERY_SETTLE: raise it.",
        runbook: &[Entry::SurplusIntents],
    },
    Signal {
        name: "Intents that Dojo doesn’t know",
        counter: "intents_missing_total",
        is_counted: |_| true,
        most: 0,
        tone: Tone::Bad,
        detail: None,
        advice: "Most likely, an account’s key was replaced by the key of another account at Dojo. The log names the links.",
        runbook: &[Entry::IntentMissing],
    },
    Signal {
        name: "Intents that belong to another link",
        counter: "intents_of_other_links_total",
        is_counted: |_| true,
        most: 0,
        tone: Tone::Bad,
        detail: None,
        advice: "Dojo returned one intent for two links. The first one keeps it. Look for a cache or a proxy on the way to Dojo.",
        runbook: &[Entry::IntentOfAnotherLink],
    },
    Signal {
        name: "Responses of Dojo that contradict a webhook",
        counter: "conflicting_responses_total",
        is_counted: |sample| sample.label("reason") == "behind",
        // Dojo's data lags now and then.
        most: 10,
        tone: Tone::Waiting,
        detail: None,
        advice: "If it passes, Dojo’s data was lagging. If it persists, somebody may have signed a webhook with a stolen secret.",
        runbook: &[Entry::BehindWebhooks],
    },
    Signal {
        name: "Responses of Dojo that are older than earlier ones",
        counter: "conflicting_responses_total",
        is_counted: |sample| sample.label("reason") == "older",
        most: 10,
        tone: Tone::Waiting,
        detail: None,
        advice: "Usually Dojo’s data is lagging, and the next response is fine. If it happens often, tell Dojo.",
        runbook: &[Entry::ContradictsItself],
    },
    Signal {
        name: "Background work that failed",
        counter: "jobs_total",
        is_counted: |sample| sample.label("outcome") != "ok",
        // It is repeated, at most 15 minutes later.
        most: 3,
        tone: Tone::Waiting,
        detail: Some("outcome"),
        advice: "It is tried again. If it keeps failing, the log names what it is about.",
        runbook: &[Entry::JobsFail],
    },
    Signal {
        name: "Background jobs that were restarted",
        counter: "job_restarts_total",
        is_counted: |_| true,
        most: 0,
        tone: Tone::Waiting,
        detail: Some("job_name"),
        advice: "They hung, panicked or ended. The log says where. Report it.",
        runbook: &[Entry::JobStuck],
    },
    Signal {
        name: "Messages that could not be sent",
        counter: "messages_total",
        is_counted: |sample| sample.label("outcome") == "failed",
        most: 0,
        tone: Tone::Waiting,
        detail: None,
        advice: "The mail server refused them, or they couldn’t be sent within a day. The log says why.",
        runbook: &[Entry::MessagesNotSent],
    },
    Signal {
        name: "Messages that may or may not have been sent",
        counter: "messages_total",
        is_counted: |sample| sample.label("outcome") == "unknown",
        most: 0,
        tone: Tone::Waiting,
        detail: None,
        advice: "The mail server’s response was lost. Its log knows. They aren’t sent again by themselves.",
        runbook: &[Entry::MessageUnknown],
    },
    Signal {
        name: "Statements that got no database connection",
        counter: "database_acquire_timeouts_total",
        is_counted: |_| true,
        most: 0,
        tone: Tone::Bad,
        detail: None,
        advice: "The database is slow, something there holds a lock, or the replica has too much to do.",
        runbook: &[Entry::PoolExhausted],
    },
    Signal {
        name: "Database connections that were discarded",
        counter: "database_connections_discarded_total",
        is_counted: |_| true,
        most: 0,
        tone: Tone::Waiting,
        detail: Some("reason"),
        advice: "The server didn’t respond or was read-only. A failover causes this once. If it goes on, see the runbook.",
        runbook: &[Entry::ConnectionsDiscarded],
    },
];

/// Since when things are counted.
pub(super) fn window(counted: &Counted<'_>) -> String {
    let window = spoken(counted.window);
    if counted.is_since_start {
        format!("since it started, {window} ago")
    } else {
        format!("in the last {window}")
    }
}

/// What has happened lately. `last_webhook` is when any replica stored one.
pub(super) fn lately(
    counted: &Counted<'_>,
    metrics: &str,
    last_webhook: Option<OffsetDateTime>,
    now: OffsetDateTime,
) -> Vec<Finding> {
    let shares = SHARES.iter().map(|share| share.finding(counted));
    let signals = SIGNALS.iter().map(|signal| signal.finding(counted));
    [webhooks(counted, last_webhook, now), connections(metrics)]
        .into_iter()
        .chain(shares)
        .chain(signals)
        .collect()
}

fn webhooks(counted: &Counted<'_>, last: Option<OffsetDateTime>, now: OffsetDateTime) -> Finding {
    const NAME: &str = "Last genuine webhook, on any replica";

    let text = match last {
        None => "There has been none.".to_owned(),
        Some(at) => format!("{} ago.", spoken((now - at).unsigned_abs())),
    };
    let is_late = last.is_none_or(|at| now - at > WEBHOOK_PATIENCE);
    let paid = counted.sum("link_status_changes_total", |sample| {
        matches!(sample.label("status"), "Authorized" | "Captured")
            && sample.label("cause") != "webhook"
    });
    if !is_late || paid == 0 {
        let tone = if is_late { Tone::Neutral } else { Tone::Good };
        return Finding::new(NAME, tone, text);
    }
    Finding::new(NAME, Tone::Bad, text).advice(
        "Links are being paid, and only reading them from Dojo shows it. Dojo sends no webhooks, or they don’t get through: see \
         Webhook subscription above.",
        &[Entry::NoWebhooks],
    )
}

/// How many connections to the database are in use at the moment.
fn connections(metrics: &str) -> Finding {
    const NAME: &str = "Database connections in use";

    let value = |name: &str, state: &str| {
        Sample::all(metrics)
            .find(|sample| sample.name() == name && sample.label("state") == state)
            .map_or(0.0, |sample| sample.value)
    };
    let used = value("database_connections", "used");
    let most = value("database_connections_max", "");
    let text = format!("{used} of {most}.");
    if most == 0.0 || used < 0.9 * most {
        return Finding::new(NAME, Tone::Good, text);
    }
    Finding::new(NAME, Tone::Waiting, text).advice(
        "Load the page again. If it stays so, the database is slow, or the replica has too much to do.",
        &[Entry::PoolExhausted],
    )
}

/// When each background job of this replica last made progress. `is_open` says whether an account may be shown.
pub(super) fn jobs(
    metrics: &str,
    now: OffsetDateTime,
    is_open: impl Fn(&str) -> bool,
) -> Vec<Finding> {
    let progress = Sample::all(metrics)
        .filter(|sample| sample.name() == "job_last_progress_timestamp_seconds")
        .filter(|sample| sample.label("account").is_empty() || is_open(sample.label("account")));
    let found: Vec<_> = progress
        .map(|sample| {
            #[expect(clippy::cast_possible_truncation, reason = "whole seconds are enough")]
            let at = sample.value as i64;
            let ago = now.unix_timestamp().saturating_sub(at).max(0);
            let job = sample.label("job_name");
            let name = capitalized(&job.replace('_', " "));
            let name = match sample.label("account") {
                "" => name,
                account => format!("{name}, account {account}"),
            };
            let text = format!("Made progress {} ago.", spoken(Duration::from_secs(ago.unsigned_abs())));
            if ago <= JOB_PATIENCE {
                return Finding::new(name, Tone::Good, text);
            }
            let advice = format!(
                "It can’t query the database, or it hangs and is restarted by itself. The log says why (job_name {job}). Other \
                 replicas do its work."
            );
            Finding::new(name, Tone::Bad, text).advice(advice, &[Entry::JobStuck])
        })
        .collect();
    if found.is_empty() {
        let text = "This replica runs none (RUN_JOBS). At least one replica must. If work has been waiting above for long, none does.";
        return vec![Finding::new("Jobs", Tone::Neutral, text).advice(
            "Only the monitoring knows whether another replica does.",
            &[Entry::NoJobs],
        )];
    }
    found
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::telemetry::recent::Recent;

    /// The findings about these metrics that are wrong, by name.
    fn wrong(metrics: &str) -> Vec<String> {
        let (start, now) = (Instant::now(), OffsetDateTime::UNIX_EPOCH);
        let recent = Recent::new(start);
        let found = lately(&recent.counted(start, metrics), metrics, Some(now), now);
        assert_eq!(found.len(), SHARES.len() + SIGNALS.len() + 2);
        let found = found.into_iter().filter(Finding::is_wrong);
        found.map(|one| one.name).collect()
    }

    #[test]
    fn nothing_is_wrong_until_more_than_a_few_things_go_wrong() {
        assert_eq!(wrong(""), <[&str; 0]>::default());
        for (metrics, name) in [
            (
                "http_requests_total{method=\"GET\",route=\"/v1/x\",status=\"503\"} 1",
                "Requests that got 503",
            ),
            (
                "http_requests_total{method=\"POST\",route=\"/v1/x\",status=\"504\"} 1",
                "Creations and operations with an unknown outcome (504)",
            ),
            (
                "http_requests_total{method=\"GET\",route=\"/v1/x\",status=\"500\"} 1",
                "Requests that failed (500)",
            ),
            (
                "http_requests_total{route=\"/v1/x\",status=\"429\"} 601",
                "Requests that came too fast (429)",
            ),
            (
                "dojo_requests_total{operation=\"get\",outcome=\"response_lost\"} 1",
                "Calls to Dojo that failed",
            ),
            (
                "dojo_requests_total{operation=\"get\",outcome=\"busy\"} 1",
                "Calls that Dojo throttled (429)",
            ),
            (
                "dojo_requests_total{operation=\"get\",outcome=\"key_rejected\"} 1",
                "Calls for which Dojo rejected the key",
            ),
            (
                "dojo_request_duration_seconds_count 10\ndojo_request_duration_seconds_bucket{le=\"5\"} 9",
                "Calls to Dojo that took over 5 s",
            ),
            (
                "http_request_duration_seconds_count{route=\"/webhooks/dojo\"} 10\n\
                 http_request_duration_seconds_bucket{route=\"/webhooks/dojo\",le=\"1\"} 9",
                "Webhooks that took over 1 s to store",
            ),
            (
                "payment_links_total{outcome=\"unknown\"} 3",
                "Requested links that weren’t created",
            ),
            (
                "payment_links_total{outcome=\"rejected\"} 3",
                "Requested links that Dojo rejected",
            ),
            (
                "webhooks_total{verdict=\"rejected\"} 11",
                "Webhooks without a valid signature",
            ),
            (
                "job_restarts_total{job_name=\"feed\",cause=\"hung\"} 1",
                "Background jobs that were restarted",
            ),
            (
                "jobs_total{job_name=\"feed\",outcome=\"database\"} 4",
                "Background work that failed",
            ),
            (
                "database_connections{state=\"used\"} 9\ndatabase_connections_max 10",
                "Database connections in use",
            ),
        ] {
            assert_eq!(wrong(metrics), [name], "{metrics}");
        }
        for fine in [
            "http_requests_total{method=\"GET\",route=\"/readyz\",status=\"503\"} 9",
            "dojo_requests_total{operation=\"webhooks\",outcome=\"key_rejected\"} 9",
            "dojo_requests_total{operation=\"get\",outcome=\"ok\"} 10\ndojo_requests_total{operation=\"get\",outcome=\"busy\"} 0",
            "payment_links_total{outcome=\"unknown\"} 2",
            "webhooks_total{verdict=\"rejected\"} 10",
            "jobs_total{job_name=\"feed\",outcome=\"ok\"} 1000",
        ] {
            assert_eq!(wrong(fine), <[&str; 0]>::default(), "{fine}");
        }
    }

    #[test]
    fn no_webhooks_are_wrong_only_while_links_are_paid() {
        let (start, now) = (Instant::now(), OffsetDateTime::UNIX_EPOCH);
        let recent = Recent::new(start);
        let paid = "link_status_changes_total{status=\"Captured\",cause=\"reconciliation\"} 1";
        let found = |metrics, last| webhooks(&recent.counted(start, metrics), last, now).is_wrong();
        let old = Some(now - 2 * WEBHOOK_PATIENCE);
        assert!(found(paid, old) && found(paid, None));
        assert!(!found(paid, Some(now)) && !found("", old) && !found("", None));
        let by_webhook = "link_status_changes_total{status=\"Captured\",cause=\"webhook\"} 1";
        assert!(!found(by_webhook, old));
    }

    #[test]
    fn a_job_that_makes_no_progress_is_wrong() {
        let now = OffsetDateTime::from_unix_timestamp(1_000_000).unwrap();
        let metrics = "job_last_progress_timestamp_seconds{account=\"leeds\",job_name=\"reconciliation\"} 999699.5\n\
                       job_last_progress_timestamp_seconds{account=\"\",job_name=\"feed\"} 999999\n\
                       job_last_progress_timestamp_seconds{account=\"york\",job_name=\"backlog\"} 1\n";
        let found = jobs(metrics, now, |account| account == "leeds");
        let found: Vec<_> = found
            .iter()
            .map(|one| (&*one.name, one.is_wrong()))
            .collect();
        let expected = [("Reconciliation, account leeds", true), ("Feed", false)];
        assert_eq!(found, expected);
        assert!(!jobs("", now, |_| true)[0].is_wrong());
    }
}
