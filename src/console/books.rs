//! The books: what was captured, refunded and reversed on business days, and what that adds up to.

use std::collections::BTreeMap;

use askama::Template;
use axum::{
    body::Body,
    extract::{Query, State},
    http::{Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, de::DeserializeOwned};
use time::Date;
use tower::ServiceExt;

use super::{
    amount::show,
    api_client::{List, get, with_query},
    book_words::{calendar, done_by, movement_name, outcome},
    page::{
        Choice, Layout, Part, Stop, When, day_text, not_found, open_accounts, out_of_order, page,
        redirect, stop,
    },
    person::Person,
    state::Console,
};
use crate::{
    api::{Authenticated, REQUEST_ID},
    payment_link::{
        Currency, Money,
        daily_reconciliation::ComparedDay,
        movement::{DailyTotal, DatedBy, MetadataKeys, Movement},
        parse_day,
    },
    store,
};

/// How many movements a page has.
const PAGE: &str = "50";

/// How many business days a page covers at most: as many as a quarter has. A file has no limit.
const MOST_DAYS: i64 = 92;

/// What the page was asked for. Everything is text that anybody may have typed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    from: String,
    to: String,
    account: String,
    metadata: String,
    after: String,
}

impl Asked {
    /// What was typed, as a query for the page, which says what is wrong with it.
    fn query(&self) -> [(&str, &str); 4] {
        [
            ("from", &self.from),
            ("to", &self.to),
            ("account", &self.account),
            ("metadata", &self.metadata),
        ]
    }
}

/// The business days, the account and the metadata that the page is about.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Selection {
    from: Date,
    to: Date,
    /// Empty: all accounts.
    account: String,
    /// `None`: those that the operator has chosen.
    metadata: Option<MetadataKeys>,
}

impl Selection {
    /// Reads what was asked for. A day alone is the first and the last one. Without any, it is today.
    fn read(asked: &Asked, today: Date) -> Result<Self, Vec<String>> {
        let mut faults = Vec::new();
        let mut day = |text: &str| {
            let day = parse_day(text);
            if day.is_none() && !text.is_empty() {
                faults.push(format!("“{text}” is not a date such as 2026-11-27."));
            }
            day
        };
        let (from, to) = (day(&asked.from), day(&asked.to));
        let (from, to) = match (from, to) {
            (Some(from), Some(to)) => (from, to),
            (Some(day), None) | (None, Some(day)) => (day, day),
            (None, None) => (today, today),
        };
        if from > to {
            faults.push("The first day is after the last one.".to_owned());
        }
        if asked.account.chars().count() > 60 {
            faults.push("No account has such a long name.".to_owned());
        }
        let metadata = MetadataKeys::typed(&asked.metadata);
        if metadata.is_none() {
            faults.push(
                "Metadata takes up to 20 names of up to 100 characters, separated by commas."
                    .to_owned(),
            );
        }
        if faults.is_empty() {
            Ok(Self {
                from,
                to,
                account: asked.account.clone(),
                metadata: metadata.filter(|keys| !keys.keys().is_empty()),
            })
        } else {
            Err(faults)
        }
    }

    fn of_day(&self, day: Date) -> Self {
        Self {
            from: day,
            to: day,
            ..self.clone()
        }
    }

    fn is_one_day(&self) -> bool {
        self.from == self.to
    }

    fn is_too_long(&self) -> bool {
        (self.to - self.from).whole_days() >= MOST_DAYS
    }

    fn title(&self) -> String {
        if self.is_one_day() {
            day_text(self.from)
        } else {
            format!("{} to {}", day_text(self.from), day_text(self.to))
        }
    }

    /// A path of the API with the days and the account, and with what else is asked for.
    fn of_api(&self, path: &str, more: &[(&str, &str)]) -> String {
        let (from, to) = (self.from.to_string(), self.to.to_string());
        let own = [
            ("from", from.as_str()),
            ("to", &to),
            ("account", &self.account),
        ];
        with_query(path, own.into_iter().chain(more.iter().copied()))
    }

    /// The API's path of the movements.
    fn movements(&self, more: &[(&str, &str)]) -> String {
        let keys = self.metadata.as_ref().map(MetadataKeys::to_string);
        let keys = [("metadataKeys", keys.as_deref().unwrap_or_default())];
        self.of_api("/v1/movements", &[&keys, more].concat())
    }

    /// A path of the console with the whole selection.
    fn path(&self, path: &str, more: &[(&str, &str)]) -> String {
        let keys = self.metadata.as_ref().map(MetadataKeys::to_string);
        let keys = [("metadata", keys.as_deref().unwrap_or_default())];
        self.of_api(path, &[&keys, more].concat())
    }

    /// The name of its file.
    fn file_name(&self) -> String {
        if self.is_one_day() {
            format!("movements-{}.csv", self.from)
        } else {
            format!("movements-{}-to-{}.csv", self.from, self.to)
        }
    }
}

/// Amounts of one account and currency, in minor units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sums {
    captured: i64,
    refunded: i64,
    reversed: i64,
    corrected: i64,
    net: i64,
    movements: i64,
}

impl Sums {
    fn include(&mut self, total: &DailyTotal) {
        for (sum, value) in [
            (&mut self.captured, total.captured.value),
            (&mut self.refunded, total.refunded.value),
            (&mut self.reversed, total.reversed.value),
            (&mut self.corrected, total.corrected.value),
            (&mut self.net, total.net.value),
            (&mut self.movements, total.movements),
        ] {
            *sum = sum.saturating_add(value);
        }
    }
}

/// What some days add up to, by account and currency.
fn sums(days: &[DailyTotal]) -> BTreeMap<(&str, &'static str), (Currency, Sums)> {
    let mut sums = BTreeMap::new();
    for day in days {
        let currency = day.net.currency_code;
        let (_, sum) = sums
            .entry((day.account.as_str(), currency.code()))
            .or_insert((currency, Sums::default()));
        sum.include(day);
    }
    sums
}

/// A text that leads to a page.
struct Way {
    path: String,
    text: String,
}

/// A line of a table of totals.
struct Total {
    /// The business day, if the table has one line for each.
    day: Option<Way>,
    account: String,
    currency: &'static str,
    captured: String,
    refunded: String,
    reversed: String,
    corrected: String,
    net: String,
    movements: i64,
}

impl Total {
    fn new(day: Option<Way>, account: &str, currency_code: Currency, sums: &Sums) -> Self {
        let money = |value| {
            show(Money {
                value,
                currency_code,
            })
        };
        Self {
            day,
            account: account.to_owned(),
            currency: currency_code.code(),
            captured: money(sums.captured),
            refunded: money(sums.refunded),
            reversed: money(sums.reversed),
            corrected: money(sums.corrected),
            net: money(sums.net),
            movements: sums.movements,
        }
    }
}

/// A table of totals.
struct Totals {
    caption: &'static str,
    /// Whether it has one line for each business day.
    has_days: bool,
    /// Whether there were corrections. They are rare.
    has_corrections: bool,
    rows: Vec<Total>,
}

/// The tables for these totals: their sums, and, if they are of several days, those of each day.
fn tables(totals: &[DailyTotal], selection: &Selection) -> Vec<Totals> {
    let has_corrections = totals.iter().any(|total| total.corrected.value != 0);
    let sums = sums(totals);
    let sums = sums.iter();
    let mut tables = vec![Totals {
        caption: "Totals by account and currency",
        has_days: false,
        has_corrections,
        rows: sums
            .map(|((account, _), (currency, sums))| Total::new(None, account, *currency, sums))
            .collect(),
    }];
    if !selection.is_one_day() {
        let of_each_day = totals.iter().map(|total| {
            let mut sums = Sums::default();
            sums.include(total);
            let day = Way {
                path: selection.of_day(total.business_day).path("/books", &[]),
                text: day_text(total.business_day),
            };
            Total::new(Some(day), &total.account, total.net.currency_code, &sums)
        });
        tables.push(Totals {
            caption: "Totals of each business day",
            has_days: true,
            has_corrections,
            rows: of_each_day.collect(),
        });
    }
    tables
}

/// A movement in the table.
struct Row {
    link_id: String,
    reference: String,
    at: When,
    /// Whether it occurred before that, and nobody knows when.
    is_noticed: bool,
    day: String,
    account: String,
    kind: &'static str,
    amount: String,
    net: String,
    /// The card number's last four digits.
    last4: Option<String>,
    auth_code: Option<String>,
    by: String,
    operation: Option<String>,
    /// The metadata entries that are shown, by name.
    metadata: Vec<(String, String)>,
}

impl Row {
    fn new(mut movement: Movement, keys: &[String]) -> Self {
        let metadata = keys.iter().map(|key| {
            let value = movement.metadata.remove(key);
            (key.clone(), value.unwrap_or_default())
        });
        let metadata = metadata.collect();
        let link_id = movement.payment_link_id.to_string();
        let reference = movement.reference.trim();
        Self {
            reference: if reference.is_empty() {
                link_id.clone()
            } else {
                reference.to_owned()
            },
            link_id,
            at: When(movement.occurred_at),
            is_noticed: movement.dated_by == DatedBy::Noticed,
            day: day_text(movement.business_day),
            kind: movement_name(movement.kind),
            amount: show(movement.amount),
            net: show(movement.net),
            by: done_by(&movement).to_owned(),
            operation: movement.operation_id.map(|id| id.to_string()),
            metadata,
            account: movement.account,
            last4: movement.last4,
            auth_code: movement.auth_code,
        }
    }
}

/// How the books of a day compare with Dojo's list.
struct Compared {
    way: Way,
    account: String,
    outcome: String,
}

impl From<ComparedDay> for Compared {
    fn from(day: ComparedDay) -> Self {
        Self {
            way: Way {
                path: comparison_path(&day),
                text: day_text(day.business_day),
            },
            outcome: outcome(&day),
            account: day.account,
        }
    }
}

/// The path of the page about a day's comparison, where it is about this account.
pub(super) fn comparison_path(day: &ComparedDay) -> String {
    let ComparedDay {
        business_day,
        account,
        ..
    } = day;
    format!("/books/reconciliations/{business_day}#account-{account}")
}

/// What the page shows of a selection.
struct Shown {
    title: String,
    is_one_day: bool,
    /// The paths of the days around it.
    previous: Option<String>,
    next: Option<String>,
    tables: Vec<Totals>,
    /// The path of the day's comparison.
    comparison: String,
    compared: Vec<Compared>,
    /// The names of the metadata entries that are shown.
    metadata: Vec<String>,
    rows: Vec<Row>,
    first_page: String,
    next_page: Option<String>,
    /// Whether this isn't the first page.
    is_later: bool,
}

#[derive(Template)]
#[template(path = "console/books.html")]
struct BooksPage {
    layout: Layout,
    from: String,
    to: String,
    accounts: Vec<Choice>,
    calendar: String,
    /// The names of the metadata entries to show, as they are typed.
    metadata: String,
    /// What is wrong with what was asked for.
    faults: Vec<String>,
    /// `None`: there is a fault.
    shown: Option<Shown>,
    /// The path of the file.
    file: Option<String>,
}

/// The business day that has begun and hasn't ended.
pub(super) async fn today(console: &Console, person: &Person) -> Result<Date, Stop> {
    let days = console.state.books.days();
    store::movements::current_day(&console.state.pool, &days)
        .await
        .map_err(out_of_order(console, person))
}

/// Everything that one of the API's lists has about a selection.
async fn all<T: DeserializeOwned>(
    console: &Console,
    person: &Person,
    selection: &Selection,
    path: &str,
    filter: &[(&str, &str)],
) -> Result<Vec<T>, Stop> {
    let mut items = Vec::new();
    let mut after = String::new();
    loop {
        let place = [("limit", "100"), ("after", after.as_str())];
        let path = selection.of_api(path, &[filter, &place].concat());
        let page: List<T> = get(console, person, &path)
            .await
            .map_err(stop(console, person))?;
        items.extend(page.data);
        if !page.has_more {
            return Ok(items);
        }
        after = page.after;
    }
}

/// The metadata entries that the page shows.
fn shown_metadata<'a>(console: &'a Console, selection: &'a Selection) -> &'a MetadataKeys {
    let chosen = console.state.books.metadata();
    selection.metadata.as_ref().unwrap_or(chosen)
}

async fn shown(
    console: &Console,
    person: &Person,
    selection: &Selection,
    today: Date,
    after: &str,
) -> Result<Shown, Stop> {
    let totals: Vec<DailyTotal> =
        all(console, person, selection, "/v1/movements/totals", &[]).await?;
    // Of many days, only those that differ are of interest.
    let of_interest: &[_] = if selection.is_one_day() {
        &[]
    } else {
        &[("state", "Differs")]
    };
    let path = "/v1/reconciliations";
    let compared: Vec<ComparedDay> = all(console, person, selection, path, of_interest).await?;
    let path = selection.movements(&[("limit", PAGE), ("after", after)]);
    let movements: List<Movement> = get(console, person, &path)
        .await
        .map_err(stop(console, person))?;
    let day = |day: Option<Date>| Some(selection.of_day(day?).path("/books", &[]));
    let is_one_day = selection.is_one_day();
    let keys = shown_metadata(console, selection).keys();
    Ok(Shown {
        title: selection.title(),
        is_one_day,
        previous: day(selection.from.previous_day().filter(|_| is_one_day)),
        next: day(selection
            .to
            .next_day()
            .filter(|next| is_one_day && *next <= today)),
        tables: tables(&totals, selection),
        comparison: format!("/books/reconciliations/{}", selection.from),
        compared: compared.into_iter().map(Compared::from).collect(),
        metadata: keys.to_vec(),
        rows: movements
            .data
            .into_iter()
            .map(|movement| Row::new(movement, keys))
            .collect(),
        first_page: selection.path("/books", &[]),
        next_page: movements
            .has_more
            .then(|| selection.path("/books", &[("after", &movements.after)])),
        is_later: !after.is_empty(),
    })
}

pub(super) async fn show_books(
    State(console): State<Console>,
    person: Person,
    Query(asked): Query<Asked>,
) -> Result<Response, Stop> {
    let today = today(&console, &person).await?;
    let accounts = open_accounts(&console, &person).into_iter();
    let mut page_of = BooksPage {
        layout: Layout::new(&console, &person, Part::Books, "Books"),
        accounts: accounts
            .map(|name| Choice::new(name, &asked.account))
            .collect(),
        calendar: calendar(&console.state.books.days()),
        faults: Vec::new(),
        shown: None,
        file: None,
        from: String::new(),
        to: String::new(),
        metadata: String::new(),
    };
    match Selection::read(&asked, today) {
        Ok(selection) => {
            if selection.is_too_long() {
                let fault = format!(
                    "A page covers {MOST_DAYS} days at most. Download the CSV file to get all of these days."
                );
                page_of.faults.push(fault);
            } else {
                let shown = shown(&console, &person, &selection, today, &asked.after).await?;
                page_of.shown = Some(shown);
            }
            page_of.file = Some(selection.path("/books/movements.csv", &[]));
            page_of.from = selection.from.to_string();
            page_of.to = selection.to.to_string();
            page_of.metadata = shown_metadata(&console, &selection).to_string();
        }
        Err(faults) => {
            page_of.faults = faults;
            page_of.from = asked.from;
            page_of.to = asked.to;
            page_of.metadata = asked.metadata;
        }
    }
    Ok(page(StatusCode::OK, &page_of))
}

/// The movements of the selection as a file. It is passed on while the API writes it, because it can be of any size.
pub(super) async fn download(
    State(console): State<Console>,
    person: Person,
    Query(asked): Query<Asked>,
) -> Result<Response, Stop> {
    let today = today(&console, &person).await?;
    let Ok(selection) = Selection::read(&asked, today) else {
        // That page says what is wrong.
        return Ok(redirect(&with_query("/books", asked.query())));
    };
    let request = Request::get(selection.movements(&[]))
        .header(header::ACCEPT, "text/csv")
        .header(REQUEST_ID, &person.request_id)
        .extension(Authenticated(person.who.clone()))
        .body(Body::empty())
        .map_err(|_| not_found(&console, &person))?;
    let Ok(response) = console.api.clone().oneshot(request).await;
    if response.status() != StatusCode::OK {
        return Ok(response);
    }
    let headers = [
        (
            header::CONTENT_TYPE,
            "text/csv; charset=utf-8; header=present".to_owned(),
        ),
        (
            header::CONTENT_DISPOSITION,
            format!("attachment; filename=\"{}\"", selection.file_name()),
        ),
    ];
    Ok((headers, response.into_body()).into_response())
}

#[cfg(test)]
mod tests {
    use time::macros::date;

    use super::*;

    const TODAY: Date = date!(2026 - 11 - 27);

    fn read(from: &str, to: &str) -> Result<Selection, Vec<String>> {
        let asked = Asked {
            from: from.to_owned(),
            to: to.to_owned(),
            ..Asked::default()
        };
        Selection::read(&asked, TODAY)
    }

    #[test]
    fn days_are_read_and_a_day_alone_is_both() {
        for (from, to, title) in [
            ("", "", "27 Nov 2026"),
            ("2026-11-01", "", "1 Nov 2026"),
            ("", "2026-11-01", "1 Nov 2026"),
            ("2026-11-01", "2026-11-30", "1 Nov 2026 to 30 Nov 2026"),
        ] {
            assert_eq!(read(from, to).unwrap().title(), title);
        }
        let faults = read("yesterday", "2026-02-30").unwrap_err();
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert_eq!(read("2026-11-02", "2026-11-01").unwrap_err().len(), 1);
        assert!(!read("2026-07-01", "2026-09-30").unwrap().is_too_long());
        assert!(read("2026-07-01", "2026-10-01").unwrap().is_too_long());
    }

    #[test]
    fn totals_are_added_up_by_account_and_currency() {
        let total = |day, account: &str, currency_code, captured, refunded| {
            let money = |value| Money {
                value,
                currency_code,
            };
            DailyTotal {
                business_day: day,
                account: account.to_owned(),
                captured: money(captured),
                refunded: money(refunded),
                reversed: money(0),
                corrected: money(0),
                net: money(captured - refunded),
                movements: 1,
            }
        };
        let yesterday = date!(2026 - 11 - 26);
        let totals = [
            total(yesterday, "leeds", Currency::Gbp, 1000, 0),
            total(TODAY, "leeds", Currency::Eur, 500, 0),
            total(TODAY, "leeds", Currency::Gbp, 100, 300),
            total(TODAY, "york", Currency::Gbp, 1, 0),
        ];
        let found: Vec<_> = sums(&totals)
            .into_iter()
            .map(|(key, (_, sums))| (key, sums.captured, sums.refunded, sums.net, sums.movements))
            .collect();
        assert_eq!(
            found,
            [
                (("leeds", "EUR"), 500, 0, 500, 1),
                (("leeds", "GBP"), 1100, 300, 800, 2),
                (("york", "GBP"), 1, 0, 1, 1),
            ]
        );
        let selection = read("2026-11-26", "2026-11-27").unwrap();
        let tables = tables(&totals, &selection);
        assert_eq!((tables[0].rows.len(), tables[1].rows.len()), (3, 4));
        assert_eq!(tables[0].rows[1].net, "£8.00");
        assert!(!tables[0].has_corrections);
    }
}
