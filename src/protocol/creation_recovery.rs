//! Recovering a lost creation: one whose response was lost, so that it is not known whether an intent exists.
//!
//! A search for the link's intents settles that ([`super::intent_search`]). The intent is created again only once it is too
//! late for one to appear.

use std::time::Duration;

use time::OffsetDateTime;
use tracing::{info, warn};

use super::{Context, Error, adoption::adopt_intent, intent_search::SearchedCreation};
use crate::{
    dojo::{CreatePaymentIntent, PaymentIntent, SendBy},
    payment_link::{
        Failure, FailureKind, PaymentLinkId,
        creation_recovery::{Found, Step, next_step},
        timeline::Cause,
    },
    store::{self, creation_recovery::LostCreation},
};

/// Takes the next step for a claimed link, by what a search for its intents has found.
pub async fn recover(
    context: &Context,
    SearchedCreation { lost, intents }: &SearchedCreation,
) -> Result<(), Error> {
    let Context { pool, limits, .. } = context;
    let LostCreation { id, new, now, .. } = lost;
    let since = |at: OffsetDateTime| Duration::try_from(*now - at).unwrap_or_default();
    if lost.failed {
        adopt_all(context, *id, intents).await?;
        // An intent may still appear late. After many settlement windows, the search ends.
        let again = lost
            .sent_until
            .and_then(|sent_until| limits.window.late_check(since(sent_until)));
        return Ok(store::creation_recovery::release(pool, lost, again).await?);
    }
    let expired = new
        .terms
        .expire_at
        .is_some_and(|expire_at| expire_at <= *now);
    let mut left: Vec<&PaymentIntent> = intents.iter().collect();
    loop {
        let candidates: Vec<Found> = left.iter().map(|intent| intent.found()).collect();
        let step = next_step(
            &candidates,
            lost.sent_until.map(since),
            since(lost.created_at),
            expired,
            *limits,
        );
        match step {
            Step::Adopt(best) => {
                // Adopt the best one first, so that all others become surplus.
                let best = left.swap_remove(best);
                match adopt_intent(context, *id, best, &Cause::Recovery).await {
                    // This intent belongs to another link. The next best one may be this link's. If there is no other, a person must find
                    // out whose it is, and the creation must not be retried meanwhile.
                    Err(store::Error::IntentOfAnotherLink { .. }) if !left.is_empty() => continue,
                    adopted => adopted?,
                };
                info!(link_id = %id, payment_intent_id = best.id, "the intent of a lost creation was found");
                count("found");
                adopt_all(context, *id, left).await?;
            }
            Step::Wait => {
                let wait = limits.window.recheck_interval();
                store::creation_recovery::release(pool, lost, Some(wait)).await?;
            }
            Step::CreateAgain => create_again(context, lost).await?,
            Step::GiveUp => {
                let failure = Failure {
                    reason: FailureKind::NotCreated,
                    status: None,
                    detail: if expired {
                        "the link expired before it could be created at Dojo".to_owned()
                    } else {
                        "the link could not be created at Dojo in time".to_owned()
                    },
                    errors: Vec::new(),
                };
                warn!(link_id = %id, expired, "gave up on a lost creation; nothing was created");
                count("given_up");
                let late_check = Some(limits.window.length());
                store::creation::fail(
                    pool,
                    *id,
                    lost.lease,
                    &failure,
                    late_check,
                    &Cause::Recovery,
                )
                .await?;
            }
        }
        return Ok(());
    }
}

/// Has the link adopt the first of these intents if it is pending, and marks all others as surplus. Intents of other links
/// are left alone, and reported.
async fn adopt_all<'a>(
    context: &Context,
    id: PaymentLinkId,
    intents: impl IntoIterator<Item = &'a PaymentIntent>,
) -> Result<(), store::Error> {
    for intent in intents {
        match adopt_intent(context, id, intent, &Cause::Recovery).await {
            Ok(_) | Err(store::Error::IntentOfAnotherLink { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn create_again(context: &Context, lost: &LostCreation) -> Result<(), Error> {
    let Context {
        pool,
        account,
        limits,
        ..
    } = context;
    let (id, cause) = (lost.id, &Cause::Recovery);
    // Longer than the call can take, so that no other worker works on the link meanwhile.
    let lease = account.client.creation_lease();
    let Some(lease) = store::creation_recovery::retry(pool, lost, lease, cause).await? else {
        return Ok(());
    };
    let request_id = format!("recovery-{id}");
    let response = account
        .client
        .create_payment_intent(CreatePaymentIntent {
            link_id: id,
            new: &lost.new,
            request_id: &request_id,
            send_by: SendBy::within(lease.left()),
        })
        .await;
    let error = match response {
        Ok(intent) => {
            count("created");
            adopt_intent(context, id, &intent, cause).await?;
            return Ok(());
        }
        Err(error) => error,
    };
    match error.proves_nothing_was_created() {
        Some(failure) if failure.reason == FailureKind::Rejected => {
            count("rejected");
            let late_check = Some(limits.window.length());
            store::creation::fail(pool, id, lease, &failure, late_check, cause).await?;
            return Ok(());
        }
        // Dojo can't be reached or is busy. The next try need not wait for an intent to appear.
        Some(_) => {
            let wait = Duration::from_secs(5);
            store::creation_recovery::undo_retry(pool, lost, lease, wait).await?;
        }
        None => {
            let reason = error.to_string();
            store::creation::record_lost_response(pool, id, lease, &reason, cause).await?;
        }
    }
    Err(error.into())
}

fn count(outcome: &'static str) {
    metrics::counter!("recoveries_total", "outcome" => outcome).increment(1);
}
