//! Comparing the books of a business day with Dojo's list of transactions.

use std::{collections::HashSet, future::Future};

use time::{Date, OffsetDateTime};
use tracing::{info, warn};

use super::Error;
use crate::{
    dojo::{Account, Window},
    payment_link::{
        daily_reconciliation::{Comparison, Listed, Transaction, compare},
        movement::BusinessDays,
        timeline::Cause,
    },
    store::{self, PgPool, daily_reconciliation::Evidence},
};

/// How many pages of 100 transactions are read at most. All of a day's are compared at once, in memory.
const MAX_PAGES: usize = 5000;

/// The two sides may date the same thing a little differently.
const MARGIN: time::Duration = time::Duration::HOUR;

/// Dojo may list a transaction late. A day that is over is compared later than this.
const LISTED_AFTER: time::Duration = time::Duration::HOUR;

/// A business day, and Dojo's transactions of that time.
#[derive(Debug, Clone)]
pub struct ListedDay {
    pub day: Date,
    span: Window,
    /// The time whose transactions these are.
    window: Window,
    /// The part of it of which no more transactions are expected.
    complete: Window,
    transactions: Vec<Transaction>,
}

/// Reads Dojo's transactions of a business day. `throttle` is awaited before each call.
pub async fn list<F: Future<Output = ()> + Send>(
    pool: &PgPool,
    account: &Account,
    days: &BusinessDays,
    day: Date,
    throttle: impl Fn() -> F + Send + Sync,
) -> Result<ListedDay, Error> {
    let span = store::daily_reconciliation::span(pool, days, day).await?;
    let window = Window {
        start: span.start - MARGIN,
        end: span.end + MARGIN,
    };
    let complete = Window {
        start: window.start,
        end: window.end.min(OffsetDateTime::now_utc() - LISTED_AFTER),
    };
    let (mut transactions, mut known) = (Vec::new(), HashSet::new());
    let mut after = None;
    for _ in 0..MAX_PAGES {
        throttle().await;
        let page = account
            .client
            .transactions(window, after.as_deref())
            .await?;
        if page.unreadable > 0 {
            // Without an id, a time and an amount there is nothing to compare. What they stand for appears as missing.
            warn!(
                account = account.name,
                transactions = page.unreadable,
                "Dojo's list contains transactions that cannot be read"
            );
        }
        // Those of other products, such as a terminal, are not compared. Pages may overlap if transactions are added meanwhile.
        transactions.extend(
            page.transactions
                .into_iter()
                .filter(|it| it.payment_intent_id.is_some() || it.is_of_a_payment_link())
                .filter(|it| known.insert(it.id.clone())),
        );
        after = page.after;
        if after.is_none() {
            return Ok(ListedDay {
                day,
                span,
                window,
                complete,
                transactions,
            });
        }
    }
    Err(Error::TooManyTransactions)
}

/// Compares a business day's movements with Dojo's transactions, and stores the result.
pub async fn compare_day(
    pool: &PgPool,
    account: &Account,
    days: &BusinessDays,
    listed: &ListedDay,
) -> Result<Comparison, Error> {
    let ListedDay {
        day,
        span,
        window,
        complete,
        transactions,
    } = listed;
    let day = *day;
    let mut intents: Vec<_> = transactions
        .iter()
        .filter_map(|transaction| transaction.payment_intent_id.clone())
        .collect();
    intents.sort();
    intents.dedup();
    let ours = store::daily_reconciliation::of_our_links(pool, &account.name, &intents).await?;
    let movements =
        store::daily_reconciliation::movements(pool, &account.name, day, *window, &intents).await?;
    let listed: Vec<_> = transactions
        .iter()
        .map(|transaction| Listed {
            transaction,
            is_ours: (transaction.payment_intent_id.as_ref()).is_some_and(|id| ours.contains(id)),
            is_of_day: (span.start..span.end).contains(&transaction.occurred_at),
        })
        .collect();
    let comparison = compare(&movements, &listed);
    store::daily_reconciliation::save(pool, &account.name, days, day, &comparison).await?;
    let evidence: Vec<_> = transactions.iter().filter_map(evidence).collect();
    let proven =
        store::daily_reconciliation::proven_operations(pool, &account.name, *complete, &evidence)
            .await?;
    for id in proven {
        // It was `Unconfirmed`, and Dojo's list leaves no other explanation.
        if store::operations::succeed(pool, id, None, &Cause::Recovery).await? {
            info!(account = account.name, %id, "Dojo's transactions prove an unconfirmed operation");
        }
    }
    let (account, differences) = (&account.name, comparison.differences.len());
    if differences == 0 {
        info!(account, %day, matched = comparison.matched, "the books agree with Dojo");
    } else {
        warn!(
            account,
            %day,
            matched = comparison.matched,
            differences,
            "the books and Dojo's transactions differ"
        );
    }
    Ok(comparison)
}

/// The operation that a transaction may be the outcome of.
fn evidence(transaction: &Transaction) -> Option<Evidence<'_>> {
    let tips = transaction.tips_amount.as_ref();
    Some(Evidence {
        payment_intent_id: transaction.payment_intent_id.as_deref()?,
        kind: transaction.operation()?,
        currency: &transaction.amount.currency_code,
        amount: transaction.amount.value,
        tips: tips.map_or(0, |tips| tips.value),
        at: transaction.occurred_at,
        is_proof: transaction.is_proof(),
    })
}
