//! How the service is doing, in plain words: what `/readyz`, the metrics and the command `check` know.

use std::time::Duration;

use askama::Template;
use axum::{extract::State, http::StatusCode, response::Response};
use time::{Date, OffsetDateTime};

use super::{
    api_client::get_raw,
    book_words::{UNAVAILABLE, counted, kinds},
    page::{Layout, Part, Stop, day_text, out_of_order, page},
    person::Person,
    state::Console,
    words::Tone,
};
use crate::{
    payment_link::{Status, daily_reconciliation::DayState},
    store::{self, condition, daily_reconciliation::Filter},
};

/// How long background work may wait before somebody should know. The alerts have the same limits.
const PATIENCE: Duration = Duration::from_mins(10);

/// How long a business day may wait for its comparison with Dojo's list. The alert has the same limit.
const COMPARISON_PATIENCE: Duration = Duration::from_hours(6);

/// Something that was looked at, and what was found.
struct Finding {
    name: String,
    text: String,
    tone: &'static str,
    /// What the tone means, for those who don't see colors.
    word: &'static str,
}

fn finding(name: impl Into<String>, text: impl Into<String>, tone: Tone) -> Finding {
    Finding {
        name: name.into(),
        text: text.into(),
        tone: tone.class(),
        word: match tone {
            Tone::Good => "Fine",
            Tone::Neutral => "Note",
            Tone::Waiting => "Slow",
            Tone::Bad => "Wrong",
        },
    }
}

/// What was found about one thing.
struct Group {
    id: String,
    title: String,
    findings: Vec<Finding>,
}

#[derive(Template)]
#[template(path = "console/health.html")]
struct HealthPage {
    layout: Layout,
    version: &'static str,
    groups: Vec<Group>,
}

pub(super) async fn show_health(
    State(console): State<Console>,
    person: Person,
) -> Result<Response, Stop> {
    let mut groups = vec![Group {
        id: "service".to_owned(),
        title: "This replica".to_owned(),
        findings: vec![readiness(&console, &person).await],
    }];
    let found = async {
        let mut found = vec![database(&console).await?];
        // They are about all accounts.
        if person.accounts().is_none() {
            found.push(books(&console).await?);
        }
        let days = console.state.books.days();
        let today = store::movements::current_day(&console.state.pool, &days).await?;
        for account in console.state.accounts.iter() {
            if person.may_see(&account.name) {
                found.push(account_group(&console, &account.name, today).await?);
            }
        }
        Ok::<_, store::Error>(found)
    };
    let found = found.await.map_err(out_of_order(&console, &person))?;
    groups.extend(found);
    groups.push(Group {
        id: "jobs".to_owned(),
        title: "Background jobs of this replica".to_owned(),
        findings: jobs(&console, &person),
    });
    let page_of = HealthPage {
        layout: Layout::new(&console, &person, Part::Health, "Health"),
        version: env!("CARGO_PKG_VERSION"),
        groups,
    };
    Ok(page(StatusCode::OK, &page_of))
}

async fn readiness(console: &Console, person: &Person) -> Finding {
    match get_raw(console, person, "/readyz").await {
        Ok(_) => finding("Ready", "It serves requests.", Tone::Good),
        Err(problem) => finding(
            "Ready",
            format!("It serves no requests: {}.", problem.detail),
            Tone::Bad,
        ),
    }
}

async fn database(console: &Console) -> Result<Group, store::Error> {
    let pool = &console.state.pool;
    let server = condition::server(pool).await?;
    let migrations = condition::migrations(pool).await?;
    let difference = (server.now - OffsetDateTime::now_utc()).unsigned_abs();
    let clocks = if difference > Duration::from_secs(30) {
        finding(
            "Clocks",
            format!(
                "They are {} s apart. Keep both machines on NTP.",
                difference.as_secs()
            ),
            Tone::Bad,
        )
    } else {
        finding("Clocks", "They agree.", Tone::Good)
    };
    let schema = if migrations.pending.is_empty() && migrations.broken.is_empty() {
        finding(
            "Migrations",
            format!("All are applied, up to {}.", migrations.newest),
            Tone::Good,
        )
    } else {
        finding(
            "Migrations",
            "Some are missing: run dojo-payment-links migrate.",
            Tone::Bad,
        )
    };
    let writable = if server.is_read_only {
        finding(
            "Writable",
            "No: the server is read-only, as a standby is.",
            Tone::Bad,
        )
    } else {
        finding(
            "Writable",
            format!("Yes. It is Postgres {}.", server.version),
            Tone::Good,
        )
    };
    Ok(Group {
        id: "database".to_owned(),
        title: "Database".to_owned(),
        findings: vec![writable, schema, clocks],
    })
}

async fn books(console: &Console) -> Result<Group, store::Error> {
    let unbooked = store::movements::backlog(&console.state.pool).await?;
    Ok(Group {
        id: "books".to_owned(),
        title: "Books".to_owned(),
        findings: vec![backlog(
            "Events to be booked",
            "events",
            unbooked.events,
            unbooked.lag,
        )],
    })
}

/// How an account's books compare with Dojo's list of transactions.
async fn comparison(
    console: &Console,
    account: &str,
    today: Date,
) -> Result<Vec<Finding>, store::Error> {
    const COMPARED: &str = "Books compared with Dojo";

    if console.state.books.reconciled_days().is_none() {
        let text = "Switched off (RECONCILE_TRANSACTIONS).";
        return Ok(vec![finding(COMPARED, text, Tone::Neutral)]);
    }
    let pool = &console.state.pool;
    let summary = store::daily_reconciliation::summary(pool, account).await?;
    let filter = Filter {
        account: Some(account.to_owned()),
        from: Some(today.saturating_sub(time::Duration::days(10))),
        ..Filter::default()
    };
    let days = store::daily_reconciliation::list(pool, &filter, None, 11).await?;
    let lag = Duration::from_secs_f64(summary.lag.clamp(0.0, 1e9));
    let compared = match days.last() {
        _ if lag > COMPARISON_PATIENCE => finding(
            COMPARED,
            format!(
                "A business day has been waiting to be compared for {}. If Dojo can’t be reached or throttles the service, wait. \
                 Otherwise, see daily_reconciliation under the background jobs.",
                spoken(lag)
            ),
            Tone::Waiting,
        ),
        Some(day) if day.state == DayState::Unavailable => {
            finding(COMPARED, UNAVAILABLE, Tone::Bad)
        }
        Some(day) => finding(
            COMPARED,
            format!("Up to {}.", day_text(day.business_day)),
            Tone::Good,
        ),
        None => finding(
            COMPARED,
            "No business day of the last ten was compared.",
            Tone::Neutral,
        ),
    };
    let number: i64 = summary.differences.iter().map(|(_, number)| number).sum();
    let differences = if number == 0 {
        finding(
            "Differences from Dojo’s list",
            "None that is older than a day.",
            Tone::Good,
        )
    } else {
        let counted = counted(number, "difference");
        let text = format!(
            "{counted} older than a day: {}. See Needs attention.",
            kinds(summary.differences)
        );
        finding("Differences from Dojo’s list", text, Tone::Bad)
    };
    Ok(vec![compared, differences])
}

/// How much work waits, and for how long the oldest has.
fn backlog(name: &str, what: &str, count: i64, lag: f64) -> Finding {
    if count == 0 {
        return finding(name, format!("No {what} wait."), Tone::Good);
    }
    let lag = Duration::from_secs_f64(lag.clamp(0.0, 1e9));
    let tone = if lag > PATIENCE {
        Tone::Waiting
    } else {
        Tone::Good
    };
    finding(
        name,
        format!("{count} {what} wait, the oldest for {}.", spoken(lag)),
        tone,
    )
}

/// A length of time in the unit that fits: `3 min`.
fn spoken(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

async fn account_group(
    console: &Console,
    account: &str,
    today: Date,
) -> Result<Group, store::Error> {
    let pool = &console.state.pool;
    let links = store::reconciliation::backlog(pool, account).await?;
    let operations = store::operation_recovery::backlog(pool, account).await?;
    let messages = store::messages::backlog(pool, account).await?;
    let recent = store::links::recent(pool, account).await?;
    let of_day: Vec<_> = Status::ALL
        .iter()
        .filter_map(|status| {
            let (_, links) = recent.iter().find(|(found, _)| found == status)?;
            Some(format!("{links} {}", status.as_str()))
        })
        .collect();
    let of_day = if of_day.is_empty() {
        "None were created.".to_owned()
    } else {
        format!("{}.", of_day.join(", "))
    };
    let mut findings = vec![
        backlog("Links to read from Dojo", "links", links.due, links.lag),
        backlog(
            "Links that are not created yet",
            "links",
            links.unsettled,
            links.lag,
        ),
        backlog(
            "Operations whose outcome isn’t known yet",
            "operations",
            operations.operations,
            operations.lag,
        ),
        backlog(
            "Messages to send",
            "messages",
            messages.messages,
            messages.lag,
        ),
        finding("Links of the last 24 hours", of_day, Tone::Neutral),
    ];
    findings.extend(comparison(console, account, today).await?);
    Ok(Group {
        id: format!("account-{account}"),
        title: format!("Account {account}"),
        findings,
    })
}

/// When each background job of this replica last made progress.
fn jobs(console: &Console, person: &Person) -> Vec<Finding> {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let text = console.state.metrics.render();
    let found: Vec<_> = text
        .lines()
        .filter_map(progress)
        .filter(|progress| progress.account.is_empty() || person.may_see(progress.account))
        .map(|progress| {
            let ago = Duration::from_secs(now.saturating_sub(progress.at).max(0).unsigned_abs());
            let tone = if ago > PATIENCE {
                Tone::Bad
            } else {
                Tone::Good
            };
            let name = format!("{} {}", progress.job, progress.account);
            let text = format!("Made progress {} ago.", spoken(ago));
            finding(name.trim_end(), text, tone)
        })
        .collect();
    if found.is_empty() {
        let text = "This replica runs none (RUN_JOBS). At least one replica must.";
        return vec![finding("Jobs", text, Tone::Neutral)];
    }
    found
}

/// The last progress of a job.
#[derive(Debug, PartialEq, Eq)]
struct JobProgress<'a> {
    job: &'a str,
    account: &'a str,
    /// In seconds since 1970.
    at: i64,
}

/// Reads a line of the metrics.
fn progress(line: &str) -> Option<JobProgress<'_>> {
    let rest = line.strip_prefix("job_last_progress_timestamp_seconds{")?;
    let (labels, at) = rest.rsplit_once("} ")?;
    let label = |name: &str| {
        labels.split(',').find_map(|label| {
            let (given, value) = label.split_once('=')?;
            (given == name).then(|| value.trim_matches('"'))
        })
    };
    let seconds = at.split('.').next()?;
    Some(JobProgress {
        job: label("job_name")?,
        account: label("account").unwrap_or_default(),
        at: seconds.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_of_a_job_is_read_from_its_metric() {
        let line = "job_last_progress_timestamp_seconds{account=\"leeds\",job_name=\"feed\"} 1795534135.25";
        let expected = JobProgress {
            job: "feed",
            account: "leeds",
            at: 1_795_534_135,
        };
        assert_eq!(progress(line), Some(expected));
        for other in [
            "",
            "# HELP job_last_progress_timestamp_seconds When",
            "job_last_progress_timestamp_seconds{account=\"a\"} 1",
            "jobs_total{job_name=\"feed\",outcome=\"ok\"} 1",
        ] {
            assert_eq!(progress(other), None, "{other}");
        }
    }

    #[test]
    fn times_are_spoken_in_the_unit_that_fits() {
        for (seconds, text) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7199, "119 min"),
            (7200, "2 h"),
            (172_800, "2 days"),
        ] {
            assert_eq!(spoken(Duration::from_secs(seconds)), text);
        }
    }
}
