//! What all pages have in common: the frame around them, and the pages that say what went wrong.

use std::fmt;

use askama::Template;
use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use sha2::{Digest, Sha256};
use time::{
    Date, OffsetDateTime, UtcOffset,
    format_description::{BorrowedFormatItem, well_known::Rfc3339},
    macros::format_description,
};

use super::{
    person::{Person, Preferences},
    state::Console,
};
use crate::{
    api::{FailureCause, ForPeople, Problem},
    api_key::Scope,
    payment_link::{Environment, Fault},
    store,
    telemetry::causes,
};

/// Marks a request that a page sends by itself, to bring itself up to date. The value is the position in the feed up to which
/// the page is up to date; the response has the header as well, for the new content. Such a request doesn't count as use of the
/// session.
pub(super) const LIVE: HeaderName = HeaderName::from_static("x-live");

/// The parts of the console that the navigation leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Links,
    Create,
    Attention,
    Approvals,
    Books,
    Audit,
    Health,
    /// None of them.
    Other,
}

impl Part {
    /// Its name in the template.
    fn as_str(self) -> &'static str {
        match self {
            Self::Links => "links",
            Self::Create => "create",
            Self::Attention => "attention",
            Self::Approvals => "approvals",
            Self::Books => "books",
            Self::Audit => "audit",
            Self::Health => "health",
            Self::Other => "",
        }
    }
}

/// The frame around a page's content.
pub(super) struct Layout {
    pub(super) title: String,
    part: Part,
    /// `None`: nobody is signed in.
    pub(super) person: Option<SignedIn>,
    /// Whether no real money moves.
    pub(super) is_sandbox: bool,
    pub(super) preferences: Preferences,
}

/// What the frame shows about the person.
pub(super) struct SignedIn {
    pub(super) name: String,
    pub(super) form_token: String,
    pub(super) may_create: bool,
}

impl Layout {
    pub(super) fn new(
        console: &Console,
        person: &Person,
        part: Part,
        title: impl Into<String>,
    ) -> Self {
        Self {
            person: Some(SignedIn {
                name: person.who.client.clone(),
                form_token: person.token.form_token(),
                may_create: person.may(Scope::LinksWrite),
            }),
            part,
            preferences: person.preferences,
            ..Self::for_anybody(console, title)
        }
    }

    pub(super) fn for_anybody(console: &Console, title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            part: Part::Other,
            person: None,
            is_sandbox: console.state.accounts.environment() == Environment::Sandbox,
            preferences: Preferences::ALL_ON,
        }
    }

    /// Whether the page is in this part.
    pub(super) fn is_in(&self, part: &str) -> bool {
        self.part.as_str() == part
    }
}

/// A point in time. Where scripts run, it is shown in the person's own time zone.
#[derive(Debug, Clone, Copy)]
pub(super) struct When(pub(super) OffsetDateTime);

const DAY_AND_TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[day padding:none] [month repr:short] [year], [hour]:[minute] UTC");

impl When {
    /// The time as text: `27 Nov 2026, 14:02 UTC`.
    pub(super) fn text(self) -> String {
        let at = self.0.to_offset(UtcOffset::UTC).format(DAY_AND_TIME);
        at.unwrap_or_else(|_| self.0.to_string())
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = self.0.to_offset(UtcOffset::UTC).format(&Rfc3339);
        let exact = exact.unwrap_or_default();
        write!(f, "<time datetime=\"{exact}\">{}</time>", self.text())
    }
}

/// Templates don't escape it. It contains digits and the names of months.
impl askama::filters::HtmlSafe for When {}

const DAY: &[BorrowedFormatItem<'_>] =
    format_description!("[day padding:none] [month repr:short] [year]");

/// A business day as text: `27 Nov 2026`.
pub(super) fn day_text(day: Date) -> String {
    day.format(DAY).unwrap_or_else(|_| day.to_string())
}

/// A part of a page that is rendered already.
pub(super) struct Region(String);

impl Region {
    pub(super) fn of(template: &impl Template) -> Self {
        Self(rendered(template))
    }

    /// Distinguishes its content from any other.
    pub(super) fn tag(&self) -> String {
        let hash = Sha256::digest(&self.0);
        format!("\"{}\"", hex::encode(&hash[..16]))
    }

    /// The response to a page that brings itself up to date, and has the content with the tag `known`. `seen` is the position in
    /// the feed before the content was read.
    pub(super) fn response(self, known: Option<&HeaderValue>, seen: i64) -> Response {
        let tag = self.tag();
        let status = if known.is_some_and(|known| known == tag.as_str()) {
            StatusCode::NOT_MODIFIED
        } else {
            StatusCode::OK
        };
        let body = if status == StatusCode::OK {
            self.0
        } else {
            String::new()
        };
        let described = [(header::ETAG, tag), (LIVE, seen.to_string())];
        (status, described, Html(body)).into_response()
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Its own template has escaped it.
impl askama::filters::HtmlSafe for Region {}

fn rendered(template: &impl Template) -> String {
    template
        .render()
        .expect("the templates render: they only write into memory")
}

/// A page for people, whatever its status.
pub(super) fn page(status: StatusCode, template: &impl Template) -> Response {
    let mut response = (status, Html(rendered(template))).into_response();
    response.extensions_mut().insert(ForPeople);
    response
}

/// Leads on to another page, which a reload doesn't repeat.
pub(super) fn redirect(to: &str) -> Response {
    // The path consists of ids and encoded text.
    let location = HeaderValue::try_from(to).unwrap_or(HeaderValue::from_static("/"));
    (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response()
}

/// Ends the handling of a request with this response.
pub(super) struct Stop(Box<Response>);

impl From<Response> for Stop {
    fn from(response: Response) -> Self {
        Self(Box::new(response))
    }
}

impl IntoResponse for Stop {
    fn into_response(self) -> Response {
        *self.0
    }
}

/// What went wrong, in words.
pub(super) struct Trouble {
    pub(super) title: String,
    pub(super) detail: String,
    /// What is wrong with values that no field shows.
    pub(super) errors: Vec<Fault>,
    /// What the payment allows instead.
    pub(super) instead: Option<String>,
    /// A page that says more: its path and its name.
    pub(super) more: Option<(String, String)>,
    pub(super) request_id: String,
}

impl Trouble {
    pub(super) fn new(
        title: impl Into<String>,
        detail: impl Into<String>,
        request_id: &str,
    ) -> Self {
        Self {
            title: title.into(),
            detail: detail.into(),
            errors: Vec::new(),
            instead: None,
            more: None,
            request_id: request_id.to_owned(),
        }
    }

    pub(super) fn of(problem: &Problem) -> Self {
        let allowed = problem.allowed_actions.as_ref().map(|allowed| {
            let names = allowed.iter().map(|kind| kind.as_str());
            possible_now(names)
        });
        Self {
            errors: problem.errors.clone(),
            instead: allowed,
            more: problem
                .payment_link_id
                .map(|id| (format!("/links/{id}"), "Open the link".to_owned())),
            ..Self::new(
                problem.title.clone(),
                capitalized(&problem.detail),
                &problem.request_id,
            )
        }
    }
}

/// What can be done instead, by name.
pub(super) fn possible_now<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names = names.collect::<Vec<_>>().join(", ");
    if names.is_empty() {
        "Nothing else is possible now.".to_owned()
    } else {
        format!("Possible now: {names}.")
    }
}

/// The text as a sentence: details of problems continue one.
fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(char::to_uppercase);
    let mut sentence: String = first.into_iter().flatten().chain(letters).collect();
    if !sentence.is_empty() && !sentence.ends_with(['.', '!', '?', '…']) {
        sentence.push('.');
    }
    sentence
}

#[derive(Template)]
#[template(path = "console/trouble.html")]
struct TroublePage {
    layout: Layout,
    trouble: Trouble,
    /// Whether the console's other pages can be opened from here.
    has_pages: bool,
}

/// A value of a filter.
pub(super) struct Choice {
    pub(super) name: String,
    /// The name in words.
    pub(super) text: String,
    pub(super) is_chosen: bool,
}

impl Choice {
    pub(super) fn new(name: String, chosen: &str) -> Self {
        Self {
            is_chosen: name == chosen,
            text: name.clone(),
            name,
        }
    }
}

/// The configured accounts that the person may see.
pub(super) fn open_accounts(console: &Console, person: &Person) -> Vec<String> {
    let names = console.state.accounts.iter().map(|account| &account.name);
    names.filter(|name| person.may_see(name)).cloned().collect()
}

/// A page that says what went wrong.
pub(super) fn trouble(
    console: &Console,
    person: Option<&Person>,
    status: StatusCode,
    trouble: Trouble,
) -> Response {
    let layout = match person {
        Some(person) => Layout::new(console, person, Part::Other, &*trouble.title),
        None => Layout::for_anybody(console, &*trouble.title),
    };
    let page_of = TroublePage {
        layout,
        trouble,
        has_pages: status != StatusCode::MISDIRECTED_REQUEST,
    };
    page(status, &page_of)
}

/// Ends the handling of a request because of a problem that the API found.
pub(super) fn stop(console: &Console, person: &Person) -> impl Fn(Box<Problem>) -> Stop {
    move |problem| {
        let what = Trouble::of(&problem);
        trouble(console, Some(person), status_of(&problem), what).into()
    }
}

/// The status of the response to a problem.
pub(super) fn status_of(problem: &Problem) -> StatusCode {
    StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Ends the handling of a request for something that isn't there.
pub(super) fn not_found(console: &Console, person: &Person) -> Stop {
    let detail = "There is no such page, or you don’t have access to it.".to_owned();
    let missing = Trouble::new("Not found", detail, &person.request_id);
    trouble(console, Some(person), StatusCode::NOT_FOUND, missing).into()
}

/// Ends the handling of a request that needs a scope that the person lacks.
pub(super) fn forbidden(console: &Console, person: &Person, scope: Scope) -> Stop {
    let detail = format!("You lack the permission {scope}. Ask whoever manages API keys.");
    let missing = Trouble::new("Not permitted", detail, &person.request_id);
    trouble(console, Some(person), StatusCode::FORBIDDEN, missing).into()
}

/// Ends the handling of a person's request because of an error of the database.
pub(super) fn out_of_order(console: &Console, person: &Person) -> impl Fn(store::Error) -> Stop {
    move |error| broken(console, Some(person), &person.request_id, &error)
}

/// Ends the handling of a request because of an error of the database.
pub(super) fn broken(
    console: &Console,
    person: Option<&Person>,
    request_id: &str,
    error: &store::Error,
) -> Stop {
    let (status, title, detail) = if error.is_outage() {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "The database can’t be reached",
            "Nothing was done. Try again in a moment.",
        )
    } else {
        (
            StatusCode::INTERNAL_SERVER_ERROR,
            "Something went wrong",
            "Report it, and quote the request id below.",
        )
    };
    let what = Trouble::new(title, detail, request_id);
    let mut response = trouble(console, person, status, what);
    let cause = FailureCause(causes(error).to_string());
    response.extensions_mut().insert(cause);
    response.into()
}
