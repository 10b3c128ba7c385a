//! Intents that a webhook named and no link claimed, and intents that are one too many for their link.

use std::time::Duration;

use tracing::{error, info, warn};

use super::{Context, Error, adoption::adopt_intent};
use crate::{
    dojo,
    payment_link::{
        Status,
        timeline::{Cause, Kind},
    },
    store::{self, orphaned_intents::OrphanedIntent},
    telemetry::causes,
};

/// Finds out whose an intent is, or cancels it if it is known to be one too many.
///
/// An intent that names one of our links is that link's, if the link waits for one: this is how a lost creation
/// is found within seconds where its webhook was not lost.
pub async fn look(context: &Context, orphan: &OrphanedIntent) -> Result<(), Error> {
    let Context { pool, account, .. } = context;
    let intent = account
        .client
        .payment_intent(&orphan.id, orphan.surplus_of)
        .await?;
    let Some(intent) = intent else {
        // Dojo told of it itself, so a copy of its data that lags is the likely reason.
        if orphan.recent {
            store::orphaned_intents::release(pool, orphan, Duration::from_secs(30)).await?;
        } else {
            store::orphaned_intents::settle(pool, &orphan.id).await?;
        }
        return Ok(());
    };
    if orphan.surplus_of.is_some() {
        return cancel(context, orphan, intent.known_status()).await;
    }
    let link = match intent.link_id() {
        Some(id) => store::links::find(pool, id).await?,
        None => None,
    };
    let Some(link) = link.filter(|link| link.account == account.name) else {
        // Somebody else's: made in Dojo's portal, or by another program with the same account.
        return Ok(store::orphaned_intents::settle(pool, &orphan.id).await?);
    };
    let confirmed = adopt_intent(context, link.id, &intent, &Cause::Recovery).await?;
    if !confirmed.surplus {
        info!(link_id = %link.id, payment_intent_id = intent.id, "an intent was traced to its link");
        store::orphaned_intents::settle(pool, &orphan.id).await?;
    }
    Ok(())
}

async fn cancel(
    context: &Context,
    orphan: &OrphanedIntent,
    status: Option<Status>,
) -> Result<(), Error> {
    let Context { pool, account, .. } = context;
    let kind = match status {
        // Nothing was paid, or nothing is left of it.
        Some(Status::Canceled | Status::Reversed | Status::Refunded) => Kind::SurplusCanceled,
        Some(Status::Created) => match account
            .client
            .cancel_payment_intent(&orphan.id, orphan.surplus_of)
            .await
        {
            Ok(()) => Kind::SurplusCanceled,
            // Paid or canceled in this very moment: the next look tells.
            Err(error @ dojo::Error::Rejected { .. }) => {
                warn!(
                    payment_intent_id = orphan.id, error = %causes(&error),
                    "a second intent was not canceled yet"
                );
                let wait = Duration::from_secs(10);
                return Ok(store::orphaned_intents::release(pool, orphan, wait).await?);
            }
            Err(error) => return Err(error.into()),
        },
        Some(_) => {
            error!(
                payment_intent_id = orphan.id,
                "a second intent for one link has been paid: somebody has to refund it"
            );
            metrics::counter!("surplus_paid_total").increment(1);
            Kind::SurplusPaid
        }
        None => {
            return Ok(
                store::orphaned_intents::release(pool, orphan, Duration::from_mins(5)).await?,
            );
        }
    };
    Ok(store::orphaned_intents::settle_surplus(pool, &orphan.id, kind, &Cause::Recovery).await?)
}
