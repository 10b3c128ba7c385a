//! Looking at a link's intent at Dojo, and writing down what is found: what makes every link converge on Dojo's
//! truth, whatever webhooks came, came late, or never came.

use std::{collections::HashMap, future::ready, time::Duration};

use tracing::{error, info, warn};

use super::{Error, confirm::report_mismatch, recovery};
use crate::{
    dojo::{Account, PaymentIntent, Window},
    payment_link::{
        PaymentLink, PaymentLinkId, Status,
        reconcile::{Reading, next_look, pause_in_dispute, reconcile},
        timeline::Cause,
    },
    store::{
        self, PgPool,
        looks::{Applied, Looked},
    },
    telemetry::causes,
};

/// How many pages of a search to read for a caller, who waits for it: 500 intents around the time of a link's creation.
const CALLERS_PAGES: usize = 5;

/// What a look at Dojo came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// What Dojo answered is what is held now.
    Settled,
    /// The answer could not be taken; the link is to be looked at again.
    Again,
}

/// Asks Dojo about one link for a caller, and returns the link as it then is. `None` if there is no such link.
///
/// The link is confirmed only if Dojo said so in this very call, whatever it said in others. One without an intent is
/// returned as it is.
pub async fn refresh(
    pool: &PgPool,
    account: &Account,
    id: PaymentLinkId,
    patience: Duration,
    cause: &Cause,
) -> Result<Option<PaymentLink>, Error> {
    let answered = match store::looks::find(pool, id).await? {
        Some(looked) => ask(pool, account, &looked, patience, cause).await?.1,
        None => None,
    };
    let link = store::links::find(pool, id).await?;
    Ok(link.map(|link| PaymentLink {
        confirmed: link.confirmed && answered == Some(link.status),
        ..link
    }))
}

/// Asks Dojo about one link and writes what it answers; then searches for a second intent, if there may be one.
///
/// `patience`: how long an answer in dispute has to stand before it is believed.
pub async fn look(
    pool: &PgPool,
    account: &Account,
    looked: &Looked,
    patience: Duration,
    cause: &Cause,
) -> Result<Outcome, Error> {
    let (outcome, _) = ask(pool, account, looked, patience, cause).await?;
    Ok(outcome)
}

/// The same, with the status that Dojo answered, if it is one that we know.
async fn ask(
    pool: &PgPool,
    account: &Account,
    looked: &Looked,
    patience: Duration,
    cause: &Cause,
) -> Result<(Outcome, Option<Status>), Error> {
    let answered = read_intent(pool, account, looked, patience, cause).await?;
    // After what was found is written: a search that fails must not keep a payment from being told. The next look
    // searches again.
    if looked.asked_again {
        let is_callers = matches!(cause, Cause::Request { .. });
        let pages = if is_callers {
            CALLERS_PAGES
        } else {
            recovery::PAGES
        };
        let links = vec![looked.clone()];
        if let Err(error) = recovery::find_surplus(pool, account, links, pages, || ready(())).await
        {
            let link_id = looked.link.id;
            warn!(%link_id, error = %causes(&error), "not searched for a second intent to the end");
            if is_callers {
                // The background reads the rest, however often callers ask.
                store::looks::keep_due(pool, looked).await?;
            }
        }
    }
    Ok(answered)
}

/// Asks Dojo about one link and writes what it answers. Parameters as for [`look`].
pub async fn read(
    pool: &PgPool,
    account: &Account,
    looked: &Looked,
    patience: Duration,
    cause: &Cause,
) -> Result<Outcome, Error> {
    let (outcome, _) = read_intent(pool, account, looked, patience, cause).await?;
    Ok(outcome)
}

async fn read_intent(
    pool: &PgPool,
    account: &Account,
    looked: &Looked,
    patience: Duration,
    cause: &Cause,
) -> Result<(Outcome, Option<Status>), Error> {
    let Some(intent) = account
        .client
        .payment_intent(&looked.payment_intent_id, Some(looked.link.id))
        .await?
    else {
        error!(
            link_id = %looked.link.id, payment_intent_id = looked.payment_intent_id,
            "Dojo does not know the intent of a link; is the account's API key that of another one?"
        );
        metrics::counter!("intents_missing_total").increment(1);
        store::looks::look_again(pool, looked.link.id, Duration::from_mins(5)).await?;
        return Ok((Outcome::Again, None));
    };
    let outcome = take(pool, looked, &intent, patience, cause).await?;
    Ok((outcome, intent.known_status()))
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
        Reading::Disputed(dispute) => {
            warn!(
                link_id = %link.id, held = link.status.as_str(), answered = intent.status, reason = dispute.name(),
                "Dojo's answer disagrees with what is known; it counts if it stands"
            );
            metrics::counter!("disputes_total", "reason" => dispute.name()).increment(1);
            let wait = pause_in_dispute(looked.held.disputed_for, patience);
            store::looks::dispute(pool, looked, dispute, &intent.status, wait, cause).await?;
            return Ok(Outcome::Again);
        }
    };
    let next = next(looked, intent, status, patience);
    let applied = store::looks::apply(pool, looked, intent, status, next, patience, cause).await?;
    let Some(Applied { changed, mismatch }) = applied else {
        return Ok(Outcome::Again);
    };
    if intent.known_status().is_none() {
        warn!(link_id = %link.id, reported = intent.status, "Dojo reports a status that is not known here");
    }
    if mismatch {
        report_mismatch(link, intent);
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
        Status::Captured | Status::Refunded if link.status == status => since(link.updated_at),
        Status::Captured | Status::Refunded => Duration::ZERO,
        _ => since(link.created_at),
    };
    let money_left = looked.refunded_amount(intent) < looked.captured_amount(intent);
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
    next_look(status, money_left, age, left).or_else(|| in_doubt.then_some(patience * 2))
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
    for (mut looked, intent) in found {
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
        // Search may lag for longer than a dispute lasts.
        let disputed = looked.held.disputed_for.is_some();
        let stranger = intent.is_of_another_link(looked.link.id);
        let plain = quiet && !looked.asked_again && !disputed && !stranger;
        if plain && matches!(reading, Reading::Accepted(_)) {
            looked.from_search = true;
            take(pool, &looked, &intent, patience, &Cause::Refresh).await?;
        } else {
            left.push(looked);
        }
    }
    Ok(left)
}
