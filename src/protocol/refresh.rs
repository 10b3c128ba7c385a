//! Looking at a link's intent at Dojo, and writing down what is found: what makes every link converge on Dojo's
//! truth, whatever webhooks came, came late, or never came.

use std::{collections::HashMap, future::ready, time::Duration};

use sqlx::PgPool;
use tracing::{error, info, warn};

use super::{Error, recovery};
use crate::{
    dojo::{Account, PaymentIntent, Window},
    payment_link::{
        Status,
        reconcile::{Reading, next_look, reconcile},
        timeline::Cause,
    },
    store::{
        self,
        looks::{Applied, Looked},
    },
    telemetry::causes,
};

/// What a look at Dojo came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// What Dojo answered is what is held now.
    Settled,
    /// The answer could not be taken; the link is to be looked at again.
    Again,
}

/// Asks Dojo about one link and writes what it answers; then searches for a second intent, if there may be one.
///
/// `patience`: how long an answer that is behind what a webhook told has to stand before it is believed.
pub async fn look(
    pool: &PgPool,
    account: &Account,
    looked: &Looked,
    patience: Duration,
    cause: &Cause,
) -> Result<Outcome, Error> {
    let outcome = read(pool, account, looked, patience, cause).await?;
    // After what was found is written: a search that fails must not keep a payment from being told. The next look
    // searches again.
    if looked.asked_again
        && let Err(error) =
            recovery::find_surplus(pool, account, vec![looked.clone()], || ready(())).await
    {
        warn!(link_id = %looked.link.id, error = %causes(&error), "not searched for a second intent");
    }
    Ok(outcome)
}

/// Asks Dojo about one link and writes what it answers. Parameters as for [`look`].
pub async fn read(
    pool: &PgPool,
    account: &Account,
    looked: &Looked,
    patience: Duration,
    cause: &Cause,
) -> Result<Outcome, Error> {
    let Some(intent) = account
        .client
        .payment_intent(&looked.payment_intent_id)
        .await?
    else {
        error!(
            link_id = %looked.link.id, payment_intent_id = looked.payment_intent_id,
            "Dojo does not know the intent of a link; is the account's API key that of another one?"
        );
        metrics::counter!("intents_missing_total").increment(1);
        store::looks::look_again(pool, looked.link.id, Duration::from_mins(5)).await?;
        return Ok(Outcome::Again);
    };
    take(pool, looked, &intent, patience, cause).await
}

/// Weighs an answer by the rules and writes what follows.
async fn take(
    pool: &PgPool,
    looked: &Looked,
    intent: &PaymentIntent,
    patience: Duration,
    cause: &Cause,
) -> Result<Outcome, Error> {
    let link = &looked.link;
    let reading = reconcile(
        looked.held,
        intent.known_status(),
        intent.updated_at,
        patience,
    );
    let status = match reading {
        Reading::Accepted(status) => status,
        Reading::Older => {
            store::looks::look_again(pool, link.id, Duration::from_secs(5)).await?;
            return Ok(Outcome::Again);
        }
        Reading::Disputed => {
            warn!(
                link_id = %link.id, held = link.status.as_str(), answered = intent.status,
                "Dojo's answer is behind what a webhook told"
            );
            metrics::counter!("disputes_total").increment(1);
            let wait = (patience / 8).clamp(Duration::from_millis(500), Duration::from_secs(15));
            store::looks::dispute(pool, looked, &intent.status, wait, cause).await?;
            return Ok(Outcome::Again);
        }
    };
    let next = next(looked, intent, status, patience);
    let applied = store::looks::apply(pool, looked, intent, status, next, cause).await?;
    let Some(Applied { changed, mismatch }) = applied else {
        return Ok(Outcome::Again);
    };
    if intent.known_status().is_none() {
        warn!(link_id = %link.id, reported = intent.status, "Dojo reports a status that is not known here");
    }
    if mismatch {
        error!(
            link_id = %link.id, payment_intent_id = intent.id, asked_for = %link.amount,
            reported = ?intent.amount, "Dojo reports another amount than was asked for"
        );
        metrics::counter!("amount_mismatches_total").increment(1);
    }
    if changed {
        info!(
            link_id = %link.id, before = link.status.as_str(), after = status.as_str(),
            "payment link brought up to Dojo's state"
        );
    }
    Ok(Outcome::Settled)
}

fn next(
    looked: &Looked,
    intent: &PaymentIntent,
    status: Status,
    patience: Duration,
) -> Option<Duration> {
    let now = looked.now;
    let since = |at| Duration::try_from(now - at).unwrap_or_default();
    let link = &looked.link;
    let age = match status {
        Status::Captured if link.status == Status::Captured => since(link.updated_at),
        Status::Captured => Duration::ZERO,
        _ => since(link.created_at),
    };
    let expire_at = intent.expire_at.or(link.terms.expire_at);
    // An expiry that is past tells no time to look any more, and one of a paid link none at all.
    let left = expire_at
        .filter(|_| status == Status::Created)
        .and_then(|at| Duration::try_from(at - now).ok());
    // A second intent may come to light when the link itself is at its end.
    let in_doubt = looked.asked_again
        && looked
            .asked_until
            .is_some_and(|asked_until| since(asked_until) < patience * 10);
    next_look(status, age, left).or_else(|| in_doubt.then_some(patience * 2))
}

/// How many links a page of search has to stand for to be worth its call.
const LINKS_A_PAGE: usize = 10;

/// Looks at many links in few calls: reads the intents of their time from Dojo's search, page by page, and
/// settles what it finds there. Returns the links that are left, to be asked about one by one.
///
/// Search may lag behind, so nothing but a plain acceptance counts that comes from it.
pub async fn sweep(
    pool: &PgPool,
    account: &Account,
    all: Vec<Looked>,
    patience: Duration,
) -> Result<Vec<Looked>, Error> {
    let pages = all.len() / LINKS_A_PAGE;
    let (Some(first), Some(last)) = (
        all.iter().map(|looked| looked.link.created_at).min(),
        all.iter().map(|looked| looked.link.created_at).max(),
    ) else {
        return Ok(all);
    };
    if pages == 0 {
        return Ok(all);
    }
    let margin = time::Duration::minutes(5);
    let window = Window {
        start: first - margin,
        end: last + margin,
    };
    let mut wanted: HashMap<_, _> = all
        .into_iter()
        .map(|looked| (looked.payment_intent_id.clone(), looked))
        .collect();
    let mut found = Vec::new();
    account
        .client
        .search(window, pages, |intent| {
            if let Some(looked) = wanted.remove(&intent.id) {
                found.push((looked, intent));
            }
        })
        .await?;
    let mut left: Vec<_> = wanted.into_values().collect();
    for (looked, intent) in found {
        let reading = reconcile(
            looked.held,
            intent.known_status(),
            intent.updated_at,
            patience,
        );
        // What a webhook has just made due may have reached the intent and not the search.
        let quiet = looked
            .link
            .synced_at
            .is_some_and(|synced_at| synced_at >= looked.link.updated_at);
        if quiet && !looked.asked_again && matches!(reading, Reading::Accepted(_)) {
            take(pool, &looked, &intent, patience, &Cause::Refresh).await?;
        } else {
            left.push(looked);
        }
    }
    Ok(left)
}
