//! The list of links, and the search.

use askama::Template;
use axum::{
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use serde::Deserialize;
use time::{Date, OffsetDateTime, macros::format_description};

use super::{
    amount::show,
    api_client::{List, get, with_query},
    page::{
        Choice, LIVE, Layout, Part, Region, Stop, When, open_accounts, out_of_order, page,
        redirect, stop,
    },
    person::Person,
    search::{By, amount_of, essence, ways},
    state::Console,
    words::{card, in_british, state_word},
};
use crate::{
    payment_link::{PaymentLink, ShortCode, Status},
    store,
};

/// How many links a page has.
const PAGE: &str = "25";

/// What the list was asked for. Everything is text that anybody may have typed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    /// What was typed into the search box.
    q: String,
    /// How to read it.
    by: String,
    account: String,
    status: String,
    from: String,
    to: String,
    after: String,
}

/// One link in the list.
struct Row {
    id: String,
    reference: String,
    amount: String,
    word: &'static str,
    tone: &'static str,
    account: String,
    created: When,
    /// The card, or the customer's address.
    who: String,
}

impl Row {
    fn new(link: &PaymentLink, now: OffsetDateTime) -> Self {
        let (word, tone) = state_word(link, now);
        let customer = link.terms.customer.as_ref();
        let email = customer.and_then(|customer| customer.email_address.clone());
        let reference = link.terms.reference.trim();
        Self {
            id: link.id.to_string(),
            reference: if reference.is_empty() {
                link.id.to_string()
            } else {
                reference.to_owned()
            },
            amount: show(link.total_amount.unwrap_or(link.amount)),
            word,
            tone: tone.class(),
            account: link.account.clone(),
            created: When(link.created_at),
            who: card(link).or(email).unwrap_or_default(),
        }
    }
}

/// The part of the page that changes as things happen.
#[derive(Template)]
#[template(path = "console/rows.html")]
struct ListPart {
    rows: Vec<Row>,
    /// Whether there is more than one account.
    has_accounts: bool,
    /// What to say if there are no rows.
    nothing: Option<&'static str>,
    /// The query of the next page.
    next: Option<String>,
    /// The query of the first page.
    first: String,
    /// Whether this isn't the first page.
    is_later: bool,
}

#[derive(Template)]
#[template(path = "console/links.html")]
struct LinksPage {
    layout: Layout,
    asked: Asked,
    accounts: Vec<Choice>,
    statuses: Vec<Choice>,
    /// How the search was read.
    meaning: Option<&'static str>,
    term: String,
    /// Other ways to read it, by the query that asks for them.
    others: Vec<(&'static str, String)>,
    /// What is wrong with the filters.
    faults: Vec<String>,
    region: Region,
    /// Where the page brings itself up to date.
    here: String,
    /// The position in the feed up to which the page is up to date.
    seen: i64,
}

/// The list's own path with this query.
fn query(asked: &Asked, by: Option<By>, after: Option<&str>) -> String {
    let by = match by {
        Some(by) => by.as_str(),
        None => &asked.by,
    };
    let parameters = [
        ("q", asked.q.as_str()),
        ("by", by),
        ("account", &asked.account),
        ("status", &asked.status),
        ("from", &asked.from),
        ("to", &asked.to),
        ("after", after.unwrap_or_default()),
    ];
    with_query("/links", parameters)
}

/// The first moment of a day that was typed.
fn day(text: &str) -> Option<Date> {
    let form = format_description!("[year]-[month]-[day]");
    Date::parse(text, form).ok()
}

/// The filters as parameters of the API's list. Adds what is wrong with them.
fn filters(asked: &Asked, faults: &mut Vec<String>) -> Vec<(&'static str, String)> {
    let mut filters = Vec::new();
    for (name, value) in [("account", &asked.account), ("status", &asked.status)] {
        if !value.is_empty() {
            filters.push((name, value.clone()));
        }
    }
    for (name, text, is_end) in [
        ("createdAfter", &asked.from, false),
        ("createdBefore", &asked.to, true),
    ] {
        if text.is_empty() {
            continue;
        }
        let day = day(text).and_then(|day| if is_end { day.next_day() } else { Some(day) });
        match day {
            Some(day) => filters.push((name, format!("{day}T00:00:00Z"))),
            None => faults.push(format!("“{text}” is not a date such as 2026-11-27.")),
        }
    }
    filters
}

/// The parameter of the API's list for a search.
fn parameter(by: By, text: &str) -> Option<(&'static str, String)> {
    Some(match by {
        By::Id | By::Reference => ("q", text.to_owned()),
        By::Email => ("customerEmail", text.to_owned()),
        By::Card => ("cardLast4", text.to_owned()),
        By::Amount => ("amount", amount_of(text)?.to_string()),
        By::Code => return None,
    })
}

/// The links that a search finds.
async fn find(
    console: &Console,
    person: &Person,
    search: Option<(&'static str, String)>,
    filters: &[(&'static str, String)],
    after: &str,
) -> Result<List<PaymentLink>, Stop> {
    let conditions = search.iter().chain(filters);
    let conditions = conditions.map(|(name, value)| (*name, value.as_str()));
    let parameters = conditions.chain([("limit", PAGE), ("after", after)]);
    let path = with_query("/v1/payment-links", parameters);
    get(console, person, &path)
        .await
        .map_err(stop(console, person))
}

/// The link with this short address, unless the person may not see it.
async fn find_code(
    console: &Console,
    person: &Person,
    text: &str,
) -> Result<Option<PaymentLink>, Stop> {
    let Ok(code) = text.parse::<ShortCode>() else {
        return Ok(None);
    };
    let link = store::short_addresses::find(&console.state.pool, &code).await;
    let link = link.map_err(out_of_order(console, person))?;
    Ok(link.filter(|link| person.may_see(&link.account)))
}

/// The first way to read the search that finds something. If none does, the first one.
async fn search(
    console: &Console,
    person: &Person,
    text: &str,
    ways: &[By],
    filters: &[(&'static str, String)],
    after: &str,
) -> Result<(By, List<PaymentLink>), Stop> {
    let mut first = None;
    for by in ways {
        let found = match parameter(*by, text) {
            Some(parameter) => find(console, person, Some(parameter), filters, after).await?,
            None => List {
                data: find_code(console, person, text)
                    .await?
                    .into_iter()
                    .collect(),
                after: String::new(),
                has_more: false,
            },
        };
        if !found.data.is_empty() {
            return Ok((*by, found));
        }
        first.get_or_insert((*by, found));
    }
    match first {
        Some(first) => Ok(first),
        None => Ok((
            By::Reference,
            find(console, person, None, filters, after).await?,
        )),
    }
}

pub(super) async fn list(
    State(console): State<Console>,
    person: Person,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Result<Response, Stop> {
    let (now, seen) = (OffsetDateTime::now_utc(), console.state.feed_position());
    let text = essence(&asked.q).to_owned();
    let possible = ways(&text);
    let chosen: Vec<_> = By::named(&asked.by)
        .filter(|by| possible.contains(by))
        .map_or_else(|| possible.clone(), |by| vec![by]);
    let mut faults = Vec::new();
    let filters = filters(&asked, &mut faults);
    let (by, found) = if faults.is_empty() {
        search(&console, &person, &text, &chosen, &filters, &asked.after).await?
    } else {
        let nothing = List {
            data: Vec::new(),
            after: String::new(),
            has_more: false,
        };
        (By::Reference, nothing)
    };
    // An id, a code or an intent leads to its link.
    if let [link] = &found.data[..]
        && matches!(by, By::Id | By::Code)
        && !text.is_empty()
        && asked.after.is_empty()
    {
        return Ok(redirect(&format!("/links/{}", link.id)));
    }

    let accounts = open_accounts(&console, &person);
    let is_search = !text.is_empty();
    let region = Region::of(&ListPart {
        rows: found.data.iter().map(|link| Row::new(link, now)).collect(),
        has_accounts: accounts.len() > 1,
        nothing: faults
            .is_empty()
            .then_some(if is_search || !filters.is_empty() {
                "Nothing was found."
            } else {
                "There are no links here yet."
            }),
        next: found
            .has_more
            .then(|| query(&asked, is_search.then_some(by), Some(&found.after))),
        first: query(&asked, is_search.then_some(by), None),
        is_later: !asked.after.is_empty(),
    });
    if headers.contains_key(LIVE) {
        return Ok(region.response(headers.get(header::IF_NONE_MATCH), seen));
    }
    let others = possible.iter().filter(|other| is_search && **other != by);
    let page_of = LinksPage {
        layout: Layout::new(&console, &person, Part::Links, "Links"),
        accounts: accounts
            .into_iter()
            .map(|name| Choice::new(name, &asked.account))
            .collect(),
        statuses: Status::ALL
            .iter()
            .map(|status| Choice::new(status.as_str().to_owned(), &asked.status))
            .map(|choice| Choice {
                text: in_british(&choice.text),
                ..choice
            })
            .collect(),
        meaning: is_search.then(|| by.meaning()),
        others: others
            .map(|other| (other.meaning(), query(&asked, Some(*other), None)))
            .collect(),
        here: query(
            &asked,
            is_search.then_some(by),
            Some(&asked.after)
                .filter(|after| !after.is_empty())
                .map(String::as_str),
        ),
        term: text,
        asked,
        faults,
        region,
        seen,
    };
    Ok(page(StatusCode::OK, &page_of))
}
