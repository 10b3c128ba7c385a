//! Giving a link its intent, and reporting what is wrong with it, however the intent was learned of.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use tracing::{error, warn};

use super::Context;
use crate::{
    dojo::PaymentIntent,
    payment_link::{PaymentLink, PaymentLinkId, timeline::Cause},
    store::{self, creation::Adopted},
};

/// Gives a link the intent that Dojo has for it, if it waits for one; any other intent of the link is surplus, and is
/// canceled later. Reports a surplus intent, one over another amount than was asked for, and one that is another link's.
pub(super) async fn adopt_intent(
    context: &Context,
    link_id: PaymentLinkId,
    intent: &PaymentIntent,
    cause: &Cause,
) -> Result<Adopted, store::Error> {
    let pool = &context.pool;
    let url = context.account.checkout_page(&intent.id);
    // What Dojo answered is in this process's memory alone, so a moment's outage must not lose it.
    let confirmed = (|| store::creation::adopt_intent(pool, link_id, intent, &url, cause))
        .retry(
            ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(100))
                .with_max_times(3),
        )
        .when(store::Error::is_outage)
        .await
        .inspect_err(|error| {
            if let store::Error::IntentOfAnotherLink { owner, .. } = error {
                error!(
                    %link_id, payment_intent_id = intent.id, %owner,
                    "Dojo answered an intent for this link that belongs to another one"
                );
                metrics::counter!("intents_of_other_links_total").increment(1);
            }
        })?;
    if confirmed.surplus {
        warn!(%link_id, payment_intent_id = intent.id, "a second intent is to be canceled");
        metrics::counter!("recoveries_total", "outcome" => "surplus").increment(1);
    }
    if confirmed.mismatch {
        report_mismatch(&confirmed.link, intent);
    }
    Ok(confirmed)
}

/// Reports that Dojo has another amount than was asked for.
pub(super) fn report_mismatch(link: &PaymentLink, intent: &PaymentIntent) {
    error!(
        link_id = %link.id, payment_intent_id = intent.id, asked_for = %link.amount, reported = ?intent.amount,
        "Dojo reports another amount than was asked for"
    );
    metrics::counter!("amount_mismatches_total").increment(1);
}
