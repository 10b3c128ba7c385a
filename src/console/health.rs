//! How the service is doing, in plain words: what `/readyz`, the metrics, the alerts and the command `check` know.
//!
//! Loading the page makes few queries and no calls to Dojo or the mail server: see [`super::readings`] and
//! [`super::dojo_checks`].

use std::time::{Duration, Instant};

use askama::Template;
use axum::{
    extract::{Query, State},
    http::StatusCode,
    response::Response,
};
use serde::Deserialize;
use time::OffsetDateTime;

use super::{
    api_client::get_raw,
    book_words::{UNAVAILABLE, counted, kinds},
    dojo_checks::Latest,
    finding::{Finding, Group, measured, spoken},
    page::{Layout, Part, Stop, When, day_text, out_of_order, page, redirect},
    person::Person,
    readings::{OfAccount, OfAll, OfBooks, OfEndpoint},
    replica,
    runbook::Entry,
    session::Submission,
    state::Console,
    words::Tone,
};
use crate::{
    api_key::Scope,
    payment_link::{Status, daily_reconciliation::DayState},
    store::{self, attention::MOST_COUNTED},
};

/// How long background work may wait before somebody should know. The alerts have the same limits.
const PATIENCE: Duration = Duration::from_mins(10);
const MESSAGE_PATIENCE: Duration = Duration::from_mins(30);
const CALLBACK_PATIENCE: Duration = Duration::from_mins(30);
const COMPARISON_PATIENCE: Duration = Duration::from_hours(6);

#[derive(Template)]
#[template(path = "console/health.html")]
struct HealthPage {
    layout: Layout,
    version: &'static str,
    groups: Vec<Group>,
    /// When Dojo was last asked.
    checked: Option<When>,
    is_checking: bool,
    /// The person had Dojo asked too often.
    is_too_soon: bool,
    form_token: String,
}

impl HealthPage {
    /// The groups in which something is wrong.
    fn wrong(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().filter(|group| group.wrong() > 0)
    }
}

/// What a link to this page says has just happened.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Happened {
    /// Dojo was asked too often.
    soon: Option<String>,
}

pub(super) async fn show_health(
    State(console): State<Console>,
    person: Person,
    Query(happened): Query<Happened>,
) -> Result<Response, Stop> {
    let at_dojo = console.dojo_checks.latest().await;
    let mut groups = vec![Group::new(
        "service",
        "This replica",
        vec![readiness(&console, &person).await],
    )];
    let found = groups_from_database(&console, &person, &at_dojo).await;
    groups.extend(found.map_err(out_of_order(&console, &person))?);
    let page_of = HealthPage {
        layout: Layout::new(&console, &person, Part::Health, "Health"),
        version: env!("CARGO_PKG_VERSION"),
        groups,
        checked: at_dojo.found.as_ref().map(|found| When(found.at)),
        is_checking: at_dojo.is_checking,
        is_too_soon: happened.soon.is_some(),
        form_token: person.token.form_token(),
    };
    Ok(page(StatusCode::OK, &page_of))
}

/// Asks Dojo again. It only reads there, so everybody may, and all people together are limited.
pub(super) async fn check_again(
    State(console): State<Console>,
    Submission { .. }: Submission,
) -> Response {
    if console.dojo_checks.again() {
        redirect("/health")
    } else {
        redirect("/health?soon=1")
    }
}

async fn groups_from_database(
    console: &Console,
    person: &Person,
    at_dojo: &Latest,
) -> Result<Vec<Group>, store::Error> {
    let (pool, readings) = (&console.state.pool, &console.readings);
    let environment = console.state.accounts.environment();
    let all = readings.of_all(pool, environment).await?;
    let checks = all.checks.iter().map(Finding::of_check).collect();
    let mut groups = vec![Group::new("database", "Database", checks), mail(at_dojo)];
    let days = console.state.books.days();
    let are_books_compared = console.state.books.reconciled_days().is_some();
    for account in console.state.accounts.iter() {
        if !person.may_see(&account.name) {
            continue;
        }
        let found = readings
            .of_account(pool, &account.name, &days, are_books_compared)
            .await?;
        let recent = readings.recent_links(pool, &account.name).await?;
        let mut findings = dojo(at_dojo, &account.name);
        findings.extend(of_account(&found));
        findings.push(links_of_day(&recent));
        groups.push(Group::new(
            format!("account-{}", account.name),
            format!("Account {}", account.name),
            findings,
        ));
    }
    let callbacks = if person.may(Scope::CallbacksManage) {
        let endpoints = readings.of_endpoints(pool).await?;
        let open = endpoints
            .iter()
            .filter(|endpoint| endpoint.is_open_to(person.accounts()));
        callbacks(open)
    } else {
        let text = format!(
            "Not shown: you lack the permission {}. Ask whoever manages API keys.",
            Scope::CallbacksManage
        );
        vec![Finding::new("Callbacks", Tone::Neutral, text)]
    };
    groups.push(Group::new("callbacks", "Callbacks", callbacks));
    groups.extend(of_replica(console, person, &all));
    Ok(groups)
}

async fn readiness(console: &Console, person: &Person) -> Finding {
    match get_raw(console, person, "/readyz").await {
        Ok(_) => Finding::new("Ready", Tone::Good, "It serves requests."),
        Err(problem) => Finding::new(
            "Ready",
            Tone::Bad,
            format!("It serves no requests: {}.", problem.detail),
        )
        .advice(
            "Nothing is lost: clients and Dojo repeat their requests. Bring the database back. The service needs no restart.",
            &[Entry::DatabaseDown],
        ),
    }
}

/// What `check` has found at the mail server.
fn mail(at_dojo: &Latest) -> Group {
    let note = |text| vec![Finding::new("Mail server", Tone::Neutral, text)];
    let findings = match at_dojo.found.as_ref().map(|found| &found.mail) {
        Some(Some(checks)) => checks.iter().map(Finding::of_check).collect(),
        Some(None) => note("No emails are sent (SMTP_URL)."),
        None => note(
            "Not known yet: it is checked together with Dojo. Load the page again in a moment.",
        ),
    };
    Group::new("mail", "Mail", findings)
}

/// What `check` has found at Dojo about an account.
fn dojo(at_dojo: &Latest, account: &str) -> Vec<Finding> {
    let Some(found) = &at_dojo.found else {
        let text = "It is being asked, and hasn’t answered yet. Load the page again in a moment.";
        return vec![Finding::new("Dojo", Tone::Neutral, text)];
    };
    let of_account = found
        .checks
        .iter()
        .filter(|check| check.account.as_deref() == Some(account));
    of_account.map(Finding::of_check).collect()
}

fn of_account(found: &OfAccount) -> Vec<Finding> {
    let mut findings = vec![
        backlog(
            "Links to read from Dojo",
            "link",
            (found.links.due, found.links.lag),
            PATIENCE,
        )
        .advice(
            "If Dojo can’t be reached, wait. Otherwise raise BACKGROUND_RATE, if Dojo allows it, and look at the background jobs \
             below.",
            &[Entry::JobsFallBehind],
        ),
        backlog(
            "Links that are not created yet",
            "link",
            (found.links.unsettled, found.links.lag),
            PATIENCE,
        )
        .advice(
            "Dojo’s responses were lost. The service finds out what happened as soon as Dojo responds. If they stay although it \
             does, look at the background jobs below.",
            &[Entry::LinksStayPending],
        ),
        backlog(
            "Operations whose outcome isn’t known yet",
            "operation",
            (found.operations.operations, found.operations.lag),
            PATIENCE,
        )
        .advice(
            "The service finds out what happened as soon as Dojo responds. Until then, these payments accept no other change.",
            &[Entry::OperationStaysPending],
        ),
        backlog(
            "Messages to send",
            "message",
            (found.messages.messages, found.messages.lag),
            MESSAGE_PATIENCE,
        )
        .advice(
            "The mail server can’t be reached or rejects the password (SMTP_URL), or Dojo can’t be reached: nobody should be asked \
             to pay twice. The log says why.",
            &[Entry::MessagesNotSent],
        ),
    ];
    for (name, count, runbook) in [
        (
            "Operations with an unconfirmed outcome",
            found.attention.unconfirmed_operations,
            &[Entry::OperationUnconfirmed] as &[_],
        ),
        (
            "Links with another amount at Dojo",
            found.attention.mismatches,
            &[Entry::DifferentAmount],
        ),
        (
            "Second payments for one link",
            found.attention.paid_surplus,
            &[Entry::SurplusPaid],
        ),
    ] {
        findings.push(needs_attention(name, count, runbook));
    }
    findings.extend(comparison(found.books.as_ref()));
    findings
}

fn needs_attention(name: &str, count: i64, runbook: &'static [Entry]) -> Finding {
    if count == 0 {
        return Finding::new(name, Tone::Good, "None.");
    }
    let more = if count >= MOST_COUNTED {
        " or more"
    } else {
        ""
    };
    let advice = "A person must look at each: they are listed under Needs attention.";
    Finding::new(name, Tone::Bad, format!("{count}{more}.")).advice(advice, runbook)
}

fn links_of_day(recent: &[(Status, i64)]) -> Finding {
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
    Finding::new("Links of the last 24 hours", Tone::Neutral, of_day)
}

/// How an account's books compare with Dojo's list of transactions.
fn comparison(books: Option<&OfBooks>) -> Vec<Finding> {
    const COMPARED: &str = "Books compared with Dojo";

    let Some(OfBooks { summary, last_day }) = books else {
        let text = "Switched off (RECONCILE_TRANSACTIONS).";
        return vec![Finding::new(COMPARED, Tone::Neutral, text)];
    };
    let lag = measured(summary.lag);
    let compared = match last_day {
        _ if lag > COMPARISON_PATIENCE => {
            let lag = spoken(lag);
            let text = format!("A business day has been waiting to be compared for {lag}.");
            Finding::new(COMPARED, Tone::Waiting, text).advice(
                "If Dojo can’t be reached or throttles the service, wait. Otherwise, see Daily reconciliation under the background \
                 jobs.",
                &[Entry::BooksNotCompared],
            )
        }
        Some(day) if day.state == DayState::Unavailable => {
            let text = "Not compared.";
            Finding::new(COMPARED, Tone::Bad, text).advice(UNAVAILABLE, &[Entry::BooksNotCompared])
        }
        Some(day) => {
            let text = format!("Up to {}.", day_text(day.business_day));
            Finding::new(COMPARED, Tone::Good, text)
        }
        None => Finding::new(
            COMPARED,
            Tone::Neutral,
            "No business day of the last ten was compared.",
        ),
    };
    let number: i64 = summary.differences.iter().map(|(_, number)| number).sum();
    let name = "Differences from Dojo’s list";
    let differences = if number == 0 {
        Finding::new(name, Tone::Good, "None that is older than a day.")
    } else {
        let number = counted(number, "difference");
        let text = format!("{number} older than a day: {}.", kinds(summary.differences));
        Finding::new(name, Tone::Bad, text).advice(
            "Needs attention leads to each of the days, and says what to do.",
            &[Entry::BooksDiffer],
        )
    };
    vec![compared, differences]
}

/// How much work waits, and for how long, in seconds, the oldest has. `what` is one of it.
fn backlog(name: &str, what: &str, (count, lag): (i64, f64), patience: Duration) -> Finding {
    let lag = measured(lag);
    let text = match count {
        0 => return Finding::new(name, Tone::Good, format!("No {what}s wait.")),
        1 => format!("1 {what} waits, for {}.", spoken(lag)),
        _ => format!("{count} {what}s wait, the oldest for {}.", spoken(lag)),
    };
    let tone = if lag > patience {
        Tone::Waiting
    } else {
        Tone::Good
    };
    Finding::new(name, tone, text)
}

/// The endpoints that don't get what they should.
fn callbacks<'a>(endpoints: impl Iterator<Item = &'a OfEndpoint>) -> Vec<Finding> {
    let mut fine = 0;
    let mut findings = Vec::new();
    for endpoint in endpoints {
        let backlog = &endpoint.backlog;
        let name = format!("{} ({})", endpoint.url, endpoint.id);
        let lag = measured(backlog.lag);
        if endpoint.is_paused {
            let one = Finding::new(name, Tone::Waiting, "It is paused, and gets nothing.");
            findings.push(one.advice(
                "Ask its owner. Once it works again, an operator resumes it with callback-endpoints resume.",
                &[Entry::EndpointPaused],
            ));
        } else if lag > CALLBACK_PATIENCE {
            let text = format!(
                "The oldest event that it hasn’t got is {} old.",
                spoken(lag)
            );
            let one = Finding::new(name, Tone::Waiting, text);
            findings.push(one.advice(
                "It fails, or is too slow. Ask its owner. callback-endpoints deliveries shows each attempt.",
                &[Entry::CallbacksFallBehind],
            ));
        } else if backlog.failed > 0 {
            let text = format!(
                "{} failed, after all attempts.",
                counted(backlog.failed, "callback")
            );
            let one = Finding::new(name, Tone::Waiting, text);
            findings.push(one.advice(
                "Needs attention lists them. Once it is repaired, an operator sends them again with callback-endpoints replay.",
                &[Entry::CallbackFailed],
            ));
        } else {
            fine += 1;
        }
    }
    if findings.is_empty() {
        let text = match fine {
            0 => "There are no endpoints.".to_owned(),
            1 => "The only endpoint gets its events.".to_owned(),
            _ => format!("All {fine} get their events."),
        };
        findings.push(Finding::new("Endpoints", Tone::Good, text));
    } else if fine > 0 {
        let text = format!("{} without problems.", counted(fine, "endpoint"));
        findings.push(Finding::new("Other endpoints", Tone::Good, text));
    }
    findings
}

/// What this replica's metrics say. What they count is about all accounts, apart from the jobs.
fn of_replica(console: &Console, person: &Person, all: &OfAll) -> Vec<Group> {
    console.state.pool.report();
    let metrics = console.state.metrics.render();
    let now = OffsetDateTime::now_utc();
    let jobs = replica::jobs(&metrics, now, |account| person.may_see(account));
    let mut groups = vec![Group::new("jobs", "Background jobs of this replica", jobs)];
    if person.accounts().is_some() {
        let text = "Not shown: they cover all accounts, and you have access to only some.";
        let hidden = Finding::new("Books, requests and calls", Tone::Neutral, text);
        groups.push(Group::new("lately", "For all accounts", vec![hidden]));
        return groups;
    }
    let unbooked = (all.unbooked.events, all.unbooked.lag);
    let unbooked = backlog("Events to be booked", "event", unbooked, PATIENCE).advice(
        "At least one replica must run background jobs. See Books under the background jobs.",
        &[Entry::JobStuck],
    );
    groups.push(Group::new("books", "Books", vec![unbooked]));
    let recent = console.state.recent.counted(Instant::now(), &metrics);
    let counts = replica::lately(&recent, &metrics, all.last_webhook, now);
    groups.push(Group {
        intro: Some(format!(
            "What this replica has counted {}. The alerts look at all replicas, and mostly at shorter times.",
            replica::window(&recent)
        )),
        ..Group::new("lately", "Requests and calls", counts)
    });
    let text = "Whether other replicas run, are ready and have the same version; what they have counted; and for how long something \
                has been wrong.";
    let elsewhere = Finding::new("Other replicas", Tone::Neutral, text).advice(
        "If there are alerts about them, the runbook says what to do.",
        &[Entry::ServiceDown, Entry::VersionsDiffer],
    );
    groups.push(Group::new(
        "monitoring",
        "What only the monitoring knows",
        vec![elsewhere],
    ));
    groups
}
