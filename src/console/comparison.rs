//! How the books of a business day compare with Dojo's list of transactions, with what to do about each difference.

use askama::Template;
use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::Response,
};
use serde::Deserialize;
use time::Date;

use super::{
    api_client::{get, with_query},
    book_words::{Meaning, UNAVAILABLE, both_sides, state_word},
    books::today,
    page::{Layout, Part, Stop, When, day_text, not_found, open_accounts, page, stop},
    person::Person,
    state::Console,
};
use crate::payment_link::{
    daily_reconciliation::{DailyReconciliation, DayState, Difference},
    parse_day,
};

/// The results of a business day.
#[derive(Deserialize)]
struct Results {
    data: Vec<DailyReconciliation>,
}

/// A difference.
struct Item {
    /// The reference that the books or Dojo know it by.
    name: String,
    /// The path of the link's page, or of a search for it.
    path: Option<String>,
    sides: String,
    at: Option<When>,
    /// The ids at Dojo.
    transaction: Option<String>,
    intent: Option<String>,
}

impl From<&Difference> for Item {
    fn from(difference: &Difference) -> Self {
        let movement = difference.movement.as_ref();
        let transaction = difference.transaction.as_ref();
        let intent = movement
            .map(|movement| &movement.payment_intent_id)
            .or(transaction.and_then(|listed| listed.payment_intent_id.as_ref()));
        let reference = movement
            .map(|movement| &movement.reference)
            .or(transaction.and_then(|listed| listed.reference.as_ref()))
            .map(|reference| reference.trim())
            .filter(|reference| !reference.is_empty());
        let at = transaction
            .map(|listed| listed.occurred_at)
            .or(movement.map(|movement| movement.occurred_at));
        Self {
            name: reference.unwrap_or("No reference").to_owned(),
            path: match movement {
                Some(movement) => Some(format!("/links/{}", movement.payment_link_id)),
                // The intent may belong to a link. The search for it leads there.
                None => intent.map(|id| with_query("/links", [("q", id.as_str())])),
            },
            sides: both_sides(difference),
            at: at.map(When),
            transaction: transaction.map(|listed| listed.id.clone()),
            intent: intent.cloned(),
        }
    }
}

/// Differences that mean the same.
struct Group {
    title: &'static str,
    advice: &'static str,
    items: Vec<Item>,
}

fn groups(differences: &[Difference]) -> Vec<Group> {
    let groups = Meaning::ALL.into_iter().map(|meaning| {
        let alike = differences
            .iter()
            .filter(|difference| Meaning::of(difference) == meaning);
        Group {
            title: meaning.title(),
            advice: meaning.advice(),
            items: alike.map(Item::from).collect(),
        }
    });
    groups.filter(|group| !group.items.is_empty()).collect()
}

/// The result of an account's comparison.
struct Outcome {
    word: &'static str,
    tone: &'static str,
    /// Why they couldn't be compared, and what to do.
    unavailable: Option<&'static str>,
    at: When,
    transactions: i64,
    matched: i64,
    difference_count: i64,
    groups: Vec<Group>,
    /// How many differences are counted only.
    more: i64,
}

impl From<&DailyReconciliation> for Outcome {
    fn from(result: &DailyReconciliation) -> Self {
        let (word, tone) = state_word(result.state);
        let stored = i64::try_from(result.differences.len()).unwrap_or(i64::MAX);
        Self {
            word,
            tone: tone.class(),
            unavailable: (result.state == DayState::Unavailable).then_some(UNAVAILABLE),
            at: When(result.reconciled_at),
            transactions: result.transactions,
            matched: result.matched,
            difference_count: result.difference_count,
            groups: groups(&result.differences),
            more: result.difference_count.saturating_sub(stored),
        }
    }
}

/// An account, and what its comparison found.
struct Account {
    name: String,
    /// `None`: it has not been compared.
    result: Option<Outcome>,
}

#[derive(Template)]
#[template(path = "console/comparison.html")]
struct ComparisonPage {
    layout: Layout,
    day: String,
    /// The day as in paths and commands: `2026-11-27`.
    date: String,
    previous: Option<String>,
    next: Option<String>,
    accounts: Vec<Account>,
    /// Why an account has no result.
    not_compared: &'static str,
}

fn not_compared(is_on: bool, day: Date, today: Date) -> &'static str {
    if day >= today {
        "This business day isn’t over. It is compared two hours after its end."
    } else if is_on {
        "Not compared yet. The service compares the business days of the last month, beginning with the account’s first link."
    } else {
        "Not compared. The comparison is switched off (RECONCILE_TRANSACTIONS)."
    }
}

pub(super) async fn show_day(
    State(console): State<Console>,
    person: Person,
    Path(date): Path<String>,
) -> Result<Response, Stop> {
    let day = parse_day(&date).ok_or_else(|| not_found(&console, &person))?;
    let path = format!("/v1/reconciliations/{day}");
    let results: Results = get(&console, &person, &path)
        .await
        .map_err(stop(&console, &person))?;
    let today = today(&console, &person).await?;
    let mut names = open_accounts(&console, &person);
    for result in &results.data {
        // It may no longer be configured.
        if !names.contains(&result.account) {
            names.push(result.account.clone());
        }
    }
    let accounts = names.into_iter().map(|name| {
        let mut found = results.data.iter();
        Account {
            result: found
                .find(|result| result.account == name)
                .map(Outcome::from),
            name,
        }
    });
    let is_on = console.state.books.reconciled_days().is_some();
    let neighbour = |day: Option<Date>| day.map(|day| day.to_string());
    let page_of = ComparisonPage {
        layout: Layout::new(
            &console,
            &person,
            Part::Books,
            format!("{}, compared with Dojo", day_text(day)),
        ),
        day: day_text(day),
        previous: neighbour(day.previous_day()),
        next: neighbour(day.next_day().filter(|next| *next <= today)),
        accounts: accounts.collect(),
        not_compared: not_compared(is_on, day, today),
        date: day.to_string(),
    };
    Ok(page(StatusCode::OK, &page_of))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_difference_leads_to_its_link_or_to_a_search_for_it() {
        let transaction = json!({
            "id": "tx_1", "occurredAt": "2026-11-22T16:20:09Z", "type": "Sale", "status": "Held",
            "amount": {"value": 1000, "currencyCode": "GBP"}, "tipsAmount": null, "cashbackAmount": null,
            "paymentIntentId": "pi_1&x", "reference": " ", "paymentProduct": "PaymentLinks",
        });
        let movement = json!({
            "id": "mov_01kaz8v4wce7q8m6s5gq9nq2fd", "type": "capture",
            "amount": {"value": 1000, "currencyCode": "GBP"}, "occurredAt": "2026-11-22T16:20:09Z", "datedBy": "dojo",
            "paymentLinkId": "plink_01kaz8v4wce7q8m6s5gq9nq2fd", "paymentIntentId": "pi_1", "reference": "Order 1",
        });
        let item = |movement, transaction| {
            let difference =
                json!({"kind": "onlyAtDojo", "movement": movement, "transaction": transaction});
            let difference: Difference = serde_json::from_value(difference).unwrap();
            Item::from(&difference)
        };
        let with_link = item(&movement, &transaction);
        let path = "/links/plink_01kaz8v4wce7q8m6s5gq9nq2fd";
        assert_eq!(with_link.path.as_deref(), Some(path));
        assert_eq!(with_link.name, "Order 1");
        let without = item(&json!(null), &transaction);
        assert_eq!(without.path.as_deref(), Some("/links?q=pi_1%26x"));
        assert_eq!(without.name, "No reference");
    }

    #[test]
    fn differences_are_grouped_by_what_they_mean() {
        let difference = |kind: &str| -> Difference {
            serde_json::from_value(json!({"kind": kind, "movement": null, "transaction": null}))
                .unwrap()
        };
        let found = groups(&[
            difference("held"),
            difference("onlyHere"),
            difference("held"),
        ]);
        let titles: Vec<_> = found
            .iter()
            .map(|group| (group.title, group.items.len()))
            .collect();
        assert_eq!(
            titles,
            [("Only in the books", 1), ("Held or under review", 2)]
        );
    }
}
