//! The runbook, as a page: the part of docs/operations.md that says what to do, of the same version as the service.

use std::{collections::HashSet, sync::LazyLock};

use askama::Template;
use axum::{extract::State, http::StatusCode, response::Response};
use pulldown_cmark::{CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd, html};

use super::{
    page::{Layout, Part, Stop, page},
    person::Person,
    state::Console,
};

/// The entries of the runbook that pages lead to, by their headings.
macro_rules! entries {
    ($($name:ident = $title:literal,)+) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Entry {
            $($name,)+
        }

        impl Entry {
            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$name,)+];

            /// Its heading.
            pub(super) fn title(self) -> &'static str {
                match self {
                    $(Self::$name => $title,)+
                }
            }
        }
    };
}

entries! {
    AnswersUnavailable = "Clients get 503",
    RequestFails = "A request gets 500",
    ClientThrottled = "A client gets 429",
    SignInsFail = "Attempts to sign in fail",
    DatabaseDown = "The database is down",
    PoolExhausted = "The connection pool is exhausted",
    ConnectionsDiscarded = "Connections to the database are discarded",
    WebhooksSlow = "Webhooks are slow",
    WebhooksTurnedAway = "Webhooks are turned away",
    DoesNotStart = "The service doesn't start",
    DojoUnreachable = "Dojo is unreachable",
    DojoSlow = "Dojo is slow",
    DojoThrottles = "Dojo throttles the service",
    DojoRejectsKey = "Dojo rejects the key",
    DojoRejectsLinks = "Dojo rejects most links",
    NoWebhooks = "No webhooks arrive",
    WebhookNotUnderstood = "A webhook is not understood",
    WebhooksRejected = "Webhooks are rejected",
    BehindWebhooks = "Dojo contradicts a webhook",
    ContradictsItself = "Dojo contradicts itself",
    IntentOfAnotherLink = "One intent, two links",
    IntentMissing = "Dojo doesn't know an intent",
    LinksStayPending = "Links stay Pending",
    CreationGivenUp = "A lost creation is given up",
    SurplusIntents = "Surplus intents appear",
    NoJobs = "No replica runs background jobs",
    JobsFail = "Background work keeps failing",
    JobStuck = "A job makes no progress",
    OperationStaysPending = "An operation stays Pending",
    OperationUnconfirmed = "An operation is Unconfirmed",
    JobsFallBehind = "Background jobs fall behind",
    EndpointPaused = "A callback endpoint is paused",
    CallbacksFallBehind = "Callbacks fall behind",
    CallbackFailed = "A callback failed",
    MessagesNotSent = "Messages are not sent",
    MessageUnknown = "A message is Unknown",
    BooksDiffer = "The books and Dojo's transactions differ",
    BooksNotCompared = "The books are not compared",
    DifferentAmount = "Dojo reports a different amount",
    SurplusPaid = "A surplus intent was paid",
    VersionsDiffer = "Replicas run different versions",
    ServiceDown = "The service is down",
}

impl Entry {
    /// The path that leads to it.
    pub(super) fn path(self) -> String {
        format!("/runbook#{}", anchor(self.title()))
    }
}

const OPERATIONS: &str = include_str!("../../docs/operations.md");

/// The heading above the runbook, which is the last part of the document.
const HEADING: &str = "\n## What to do\n";

/// The part of the document that is the runbook.
fn runbook() -> &'static str {
    OPERATIONS
        .split_once(HEADING)
        .map_or("", |(_, entries)| entries)
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter_map(|letter| match letter {
        ' ' | '-' => Some('-'),
        _ => letter
            .is_alphanumeric()
            .then(|| letter.to_ascii_lowercase()),
    });
    kept.collect()
}

/// The runbook as HTML. Links to other parts of the documentation, which the console doesn't have, become text.
fn rendered(markdown: &str) -> String {
    let events: Vec<_> = Parser::new_ext(markdown, Options::ENABLE_TABLES).collect();
    let anchors: Vec<_> = (0..events.len())
        .filter(|at| matches!(events[*at], Event::Start(Tag::Heading { .. })))
        .map(|at| anchor(&heading_at(&events, at)))
        .collect();
    let known: HashSet<_> = anchors.iter().map(|anchor| format!("#{anchor}")).collect();
    let mut anchors = anchors.iter();
    let mut is_here = true;
    let shown = events.iter().filter_map(|event| {
        Some(match event {
            Event::Start(Tag::Heading { .. }) => Event::Start(Tag::Heading {
                level: HeadingLevel::H2,
                id: anchors.next().map(|anchor| CowStr::from(anchor.as_str())),
                classes: Vec::new(),
                attrs: Vec::new(),
            }),
            Event::End(TagEnd::Heading(_)) => Event::End(TagEnd::Heading(HeadingLevel::H2)),
            Event::Start(Tag::Link { dest_url, .. }) => {
                is_here = known.contains(&**dest_url);
                return is_here.then(|| event.clone());
            }
            Event::End(TagEnd::Link) => return is_here.then(|| event.clone()),
            Event::Html(text) | Event::InlineHtml(text) => Event::Text(text.clone()),
            event => event.clone(),
        })
    });
    let mut out = String::new();
    html::push_html(&mut out, shown);
    out
}

/// The text of the heading that begins at this event.
fn heading_at(events: &[Event<'_>], at: usize) -> String {
    let inside = events[at + 1..]
        .iter()
        .take_while(|event| !matches!(event, Event::End(TagEnd::Heading(_))));
    let texts = inside.filter_map(|event| match event {
        Event::Text(text) | Event::Code(text) => Some(&**text),
        _ => None,
    });
    texts.collect()
}

#[derive(Template)]
#[template(path = "console/runbook.html")]
struct RunbookPage {
    layout: Layout,
    /// HTML, of nothing but the service's own documentation.
    entries: &'static str,
}

pub(super) async fn show_runbook(
    State(console): State<Console>,
    person: Person,
) -> Result<Response, Stop> {
    static ENTRIES: LazyLock<String> = LazyLock::new(|| rendered(runbook()));

    let page_of = RunbookPage {
        layout: Layout::new(&console, &person, Part::Health, "Runbook"),
        entries: &ENTRIES,
    };
    Ok(page(StatusCode::OK, &page_of))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_that_a_page_leads_to_exists() {
        let html = rendered(runbook());
        for entry in Entry::ALL {
            let heading = format!("<h2 id=\"{}\">", anchor(entry.title()));
            assert!(html.contains(&heading), "{heading}");
        }
    }

    #[test]
    fn a_page_leads_to_the_entry_of_every_alert() {
        let alerts = include_str!("../../ops/prometheus/alerts.yml");
        let entries = alerts
            .lines()
            .filter_map(|line| line.trim().strip_prefix("runbook_url: docs/operations.md#"));
        let mut count = 0;
        for alert in entries {
            let is_entry = |entry: &&Entry| anchor(entry.title()) == alert;
            assert!(Entry::ALL.iter().any(|entry| is_entry(&entry)), "{alert}");
            count += 1;
        }
        assert!(count > 40, "{count}");
    }

    #[test]
    fn links_within_the_runbook_stay_and_others_become_text() {
        let html = rendered(
            "### One's *own*\n\nSee [Two](#two), [elsewhere](#deploy) or <b>.\n\n### Two\n",
        );
        assert_eq!(
            html,
            "<h2 id=\"ones-own\">One's <em>own</em></h2>\n<p>See <a href=\"#two\">Two</a>, elsewhere or &lt;b&gt;.</p>\n\
             <h2 id=\"two\">Two</h2>\n"
        );
    }
}
