//! Orphaned intents, which a webhook named but no link claims, and surplus intents, which a link has in addition to its own.

use std::time::Duration;

use tracing::{error, info};

use super::{Context, Error, adoption::adopt_intent};
use crate::{
    dojo::PaymentIntent,
    payment_link::{
        orphaned_intent::{SurplusStep, recheck_interval, surplus_recheck_interval, surplus_step},
        timeline::{Cause, Kind},
    },
    store::{self, orphaned_intents::OrphanedIntent},
};

/// Finds out which link an intent belongs to, or cancels it if it is known to be surplus.
///
/// An intent that names one of our links is that link's, if the link is pending. This is how a lost creation is found within
/// seconds if its webhook arrives.
pub async fn trace(context: &Context, orphan: &OrphanedIntent) -> Result<(), Error> {
    let Context { pool, account, .. } = context;
    let intent = account
        .client
        .payment_intent(&orphan.id, orphan.surplus_of)
        .await?;
    let Some(intent) = intent else {
        let wait = if orphan.surplus_of.is_some() {
            Some(surplus_recheck_interval(orphan.age))
        } else {
            recheck_interval(orphan.age)
        };
        match wait {
            Some(wait) => store::orphaned_intents::release(pool, orphan, wait).await?,
            None => store::orphaned_intents::resolve(pool, &orphan.id).await?,
        }
        return Ok(());
    };
    if orphan.surplus_of.is_some() {
        return resolve_surplus(context, orphan, &intent).await;
    }
    let link = match intent.link_id() {
        Some(id) => store::links::find(pool, id).await?,
        None => None,
    };
    let Some(link) = link.filter(|link| link.account == account.name) else {
        // Somebody else's: created in Dojo's portal, or by another program with the same account.
        return Ok(store::orphaned_intents::resolve(pool, &orphan.id).await?);
    };
    let adopted = adopt_intent(context, link.id, &intent, &Cause::Recovery).await?;
    if !adopted.surplus {
        info!(link_id = %link.id, payment_intent_id = intent.id, "an intent was traced to its link");
        store::orphaned_intents::resolve(pool, &orphan.id).await?;
    }
    Ok(())
}

/// Cancels a surplus intent, or reports that it was paid.
async fn resolve_surplus(
    context: &Context,
    orphan: &OrphanedIntent,
    intent: &PaymentIntent,
) -> Result<(), Error> {
    let Context { pool, account, .. } = context;
    let status = intent.known_status();
    let kind = match surplus_step(status, intent.captured_amount(), intent.refunded_amount) {
        SurplusStep::Done => Kind::SurplusCanceled,
        SurplusStep::Cancel => {
            // If Dojo rejects that, the intent was paid or canceled at this very moment. The next read shows it.
            account
                .client
                .cancel_payment_intent(&orphan.id, orphan.surplus_of)
                .await?;
            Kind::SurplusCanceled
        }
        SurplusStep::ReportPaid => {
            error!(
                payment_intent_id = orphan.id,
                "a surplus intent has been paid: a person must refund it"
            );
            metrics::counter!("surplus_paid_total").increment(1);
            Kind::SurplusPaid
        }
        SurplusStep::Wait => {
            let wait = Duration::from_mins(5);
            return Ok(store::orphaned_intents::release(pool, orphan, wait).await?);
        }
    };
    Ok(store::orphaned_intents::resolve_surplus(pool, &orphan.id, kind, &Cause::Recovery).await?)
}
