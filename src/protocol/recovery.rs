//! Finding out what became of a creation whose answer was lost, and seeing it through.
//!
//! The link's id stands in the metadata of every intent that was ever asked for on its behalf, so a search over
//! the time in which such an intent can lie answers the question. Only when none can come to light any more is
//! the intent created again.

use std::time::Duration;

use time::OffsetDateTime;
use tracing::{info, warn};

use super::{Error, confirm::confirm};
use crate::{
    dojo::{Account, CreatePaymentIntent, PaymentIntent, Window},
    payment_link::{
        Failure, FailureKind, PaymentLinkId,
        recovery::{Found, Patience, Step, next_step},
        timeline::Cause,
    },
    store::{
        self, PgPool,
        creation::{Retry, Unsettled},
        looks::Looked,
    },
};

/// How many pages of a search to read for one link: 10,000 intents around the time of its creation.
pub(super) const PAGES: usize = 100;

/// Takes the next step for a pending link that nobody else works on.
///
/// `lease` is longer than asking Dojo can take: whoever holds the link is alone with it until then.
pub async fn recover(
    pool: &PgPool,
    account: &Account,
    unsettled: &Unsettled,
    patience: Patience,
    lease: Duration,
) -> Result<(), Error> {
    let Unsettled { id, new, now, .. } = unsettled;
    let asked_until = unsettled.asked_until.unwrap_or(unsettled.now);
    let window = window(unsettled.created_at, asked_until, *now);
    let (found, whole) = search(account, *id, window, PAGES).await?;
    if !whole && found.is_empty() {
        // What was not read may hold it, so nothing is known.
        return Err(Error::TooManyIntents);
    }
    let since = |at: OffsetDateTime| Duration::try_from(*now - at).unwrap_or_default();
    let age = since(unsettled.created_at);
    let expired = new
        .terms
        .expire_at
        .is_some_and(|expire_at| expire_at <= *now);
    if unsettled.failed {
        for intent in &found {
            adopt(pool, account, *id, intent).await?;
        }
        // It may come to light late; after so many times of what it should need at most, there is none.
        let in_doubt = unsettled
            .asked_until
            .is_some_and(|asked_until| since(asked_until) < patience.settle * 10);
        let again = in_doubt.then_some(patience.settle * 2);
        return Ok(store::creation::give_back(pool, *id, unsettled.lease, again).await?);
    }
    let candidates: Vec<Found> = found.iter().map(PaymentIntent::found).collect();
    match next_step(
        &candidates,
        unsettled.asked_until.map(since),
        age,
        expired,
        patience,
    ) {
        Step::Adopt(best) => {
            info!(link_id = %id, payment_intent_id = candidates[best].id, "a lost creation was found");
            count("found");
            // The best one first: all others are one too many then.
            let (best, others) = (
                &found[best],
                found.iter().enumerate().filter(|(n, _)| *n != best),
            );
            adopt(pool, account, *id, best).await?;
            for (_, other) in others {
                adopt(pool, account, *id, other).await?;
            }
        }
        Step::Wait => {
            let wait =
                (patience.settle / 10).clamp(Duration::from_millis(500), Duration::from_secs(15));
            store::creation::give_back(pool, *id, unsettled.lease, Some(wait)).await?;
        }
        Step::CreateAgain => create_again(pool, account, unsettled, patience, lease).await?,
        Step::GiveUp => {
            let failure = Failure {
                reason: FailureKind::NotCreated,
                status: None,
                detail: if expired {
                    "the link expired before Dojo could be brought to create it".to_owned()
                } else {
                    "Dojo could not be brought to create it in time".to_owned()
                },
                errors: Vec::new(),
            };
            warn!(link_id = %id, expired, "a lost creation is given up; nothing was created");
            count("given_up");
            store::creation::fail(
                pool,
                *id,
                unsettled.lease,
                &failure,
                Retry::Final,
                Some(patience.settle),
                &Cause::Recovery,
            )
            .await?;
        }
    }
    Ok(())
}

/// Finds second intents of a link that Dojo was asked for more than once: the first may come to light long after the
/// second was created, and its webhook may be lost. Reads at most `pages` pages; if there are more, adopts what those hold
/// and answers [`Error::TooManyIntents`].
pub(super) async fn find_surplus(
    pool: &PgPool,
    account: &Account,
    looked: &Looked,
    pages: usize,
) -> Result<(), Error> {
    let link = &looked.link;
    let asked_until = looked.asked_until.unwrap_or(link.created_at);
    let window = window(link.created_at, asked_until, looked.now);
    let (found, whole) = search(account, link.id, window, pages).await?;
    for intent in found {
        if intent.id != looked.payment_intent_id {
            adopt(pool, account, link.id, &intent).await?;
        }
    }
    if whole {
        Ok(())
    } else {
        Err(Error::TooManyIntents)
    }
}

/// The time in which an intent of a link can lie: Dojo's clock and ours may differ, and a request may be worked on long
/// after it left.
fn window(created_at: OffsetDateTime, asked_until: OffsetDateTime, now: OffsetDateTime) -> Window {
    Window {
        start: created_at - time::Duration::minutes(5),
        end: (asked_until + time::Duration::minutes(15)).min(now + time::Duration::minutes(1)),
    }
}

/// The intents at Dojo that name this link, on at most `pages` pages; and whether that was all of them.
async fn search(
    account: &Account,
    id: PaymentLinkId,
    window: Window,
    pages: usize,
) -> Result<(Vec<PaymentIntent>, bool), Error> {
    let mut found = Vec::new();
    let whole = account
        .client
        .search(window, pages, |intent| {
            if intent.link_id() == Some(id) {
                found.push(intent);
            }
        })
        .await?;
    Ok((found, whole))
}

async fn adopt(
    pool: &PgPool,
    account: &Account,
    id: PaymentLinkId,
    intent: &PaymentIntent,
) -> Result<(), store::Error> {
    confirm(pool, account, id, intent, &Cause::Recovery).await?;
    Ok(())
}

async fn create_again(
    pool: &PgPool,
    account: &Account,
    unsettled: &Unsettled,
    patience: Patience,
    lease: Duration,
) -> Result<(), Error> {
    let id = unsettled.id;
    let Some(lease) = store::creation::ask_again(pool, unsettled, lease, &Cause::Recovery).await?
    else {
        return Ok(());
    };
    let request_id = format!("recovery-{id}");
    let answer = account
        .client
        .create_payment_intent(CreatePaymentIntent {
            link_id: id,
            new: &unsettled.new,
            request_id: &request_id,
        })
        .await;
    match answer {
        Ok(intent) => {
            count("created");
            Ok(adopt(pool, account, id, &intent).await?)
        }
        Err(error) => {
            match error.proves_nothing_was_created() {
                Some(failure) if failure.reason == FailureKind::Refused => {
                    count("refused");
                    store::creation::fail(
                        pool,
                        id,
                        lease,
                        &failure,
                        Retry::Final,
                        Some(patience.settle),
                        &Cause::Recovery,
                    )
                    .await?;
                    return Ok(());
                }
                // Dojo had no time, or no door: the next try need not wait for anything to come to light.
                Some(_) => {
                    store::creation::not_asked(pool, unsettled, lease, Duration::from_secs(5))
                        .await?;
                }
                None => {
                    store::creation::unanswered(
                        pool,
                        id,
                        lease,
                        &error.to_string(),
                        &Cause::Recovery,
                    )
                    .await?;
                }
            }
            Err(error.into())
        }
    }
}

fn count(outcome: &'static str) {
    metrics::counter!("recoveries_total", "outcome" => outcome).increment(1);
}
