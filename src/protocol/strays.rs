//! Intents that a webhook named and no link claimed, and intents that are one too many for their link.

use std::time::Duration;

use tracing::{error, info, warn};

use super::{Error, confirm::confirm};
use crate::{
    dojo::{self, Account},
    payment_link::{
        Status,
        timeline::{Cause, Kind},
    },
    store::{self, PgPool, intents::Stray},
    telemetry::causes,
};

/// Finds out whose an intent is, or cancels it if it is known to be one too many.
///
/// An intent that names one of our links is that link's, if the link waits for one: this is how a lost creation
/// is found within seconds where its webhook was not lost.
pub async fn look(pool: &PgPool, account: &Account, stray: &Stray) -> Result<(), Error> {
    let intent = account
        .client
        .payment_intent(&stray.id, stray.surplus_of)
        .await?;
    let Some(intent) = intent else {
        // Dojo told of it itself, so a copy of its data that lags is the likely reason.
        if stray.recent {
            store::intents::ask_later(pool, &stray.id, Duration::from_secs(30)).await?;
        } else {
            store::intents::settle(pool, &stray.id).await?;
        }
        return Ok(());
    };
    if stray.surplus_of.is_some() {
        return cancel(pool, account, stray, intent.known_status()).await;
    }
    let link = match intent.link_id() {
        Some(id) => store::links::find(pool, id).await?,
        None => None,
    };
    let Some(link) = link.filter(|link| link.account == account.name) else {
        // Somebody else's: made in Dojo's portal, or by another program with the same account.
        return Ok(store::intents::settle(pool, &stray.id).await?);
    };
    let confirmed = confirm(pool, account, link.id, &intent, &Cause::Recovery).await?;
    if !confirmed.surplus {
        info!(link_id = %link.id, payment_intent_id = intent.id, "an intent was traced to its link");
        store::intents::settle(pool, &stray.id).await?;
    }
    Ok(())
}

async fn cancel(
    pool: &PgPool,
    account: &Account,
    stray: &Stray,
    status: Option<Status>,
) -> Result<(), Error> {
    let kind = match status {
        // Nothing was paid, or nothing is left of it.
        Some(Status::Canceled | Status::Reversed | Status::Refunded) => Kind::SurplusCanceled,
        Some(Status::Created) => match account.client.cancel_payment_intent(&stray.id).await {
            Ok(()) => Kind::SurplusCanceled,
            // Paid or canceled in this very moment: the next look tells.
            Err(error @ dojo::Error::Refused { .. }) => {
                warn!(
                    payment_intent_id = stray.id, error = %causes(&error),
                    "a second intent was not canceled yet"
                );
                let wait = Duration::from_secs(10);
                return Ok(store::intents::ask_later(pool, &stray.id, wait).await?);
            }
            Err(error) => return Err(error.into()),
        },
        Some(_) => {
            error!(
                payment_intent_id = stray.id,
                "a second intent for one link has been paid: somebody has to refund it"
            );
            metrics::counter!("surplus_paid_total").increment(1);
            Kind::SurplusPaid
        }
        None => {
            return Ok(store::intents::ask_later(pool, &stray.id, Duration::from_mins(5)).await?);
        }
    };
    Ok(store::intents::settle_surplus(pool, &stray.id, kind, &Cause::Recovery).await?)
}
