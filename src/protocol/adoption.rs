//! Giving a link its intent, regardless of how the intent was found, and reporting what is wrong with it.

use backon::Retryable;
use tracing::{error, warn};

use super::{Context, through_an_outage};
use crate::{
    dojo::PaymentIntent,
    payment_link::{PaymentLink, PaymentLinkId, timeline::Cause},
    store::{self, adoption::Adopted},
};

/// Gives a link the intent that Dojo has for it, if the link is pending. Any other intent of the link is surplus and is
/// canceled later. Reports a surplus intent, one with an amount other than the requested one, and one of another link.
pub(super) async fn adopt_intent(
    context: &Context,
    link_id: PaymentLinkId,
    intent: &PaymentIntent,
    cause: &Cause,
) -> Result<Adopted, store::Error> {
    let pool = &context.pool;
    let url = context.account.checkout_page(&intent.id);
    let mut attempts = 0;
    // Only this process has Dojo's response, in memory, so a short outage must not lose it.
    let adopted = (|| {
        attempts += 1;
        store::adoption::adopt_intent(pool, link_id, intent, &url, cause)
    })
    .retry(through_an_outage(3))
    .when(store::Error::is_outage)
    .await
    .inspect_err(|error| {
        if let store::Error::IntentOfAnotherLink { owner, .. } = error {
            error!(
                %link_id, payment_intent_id = intent.id, %owner,
                "Dojo returned an intent for this link that belongs to another one"
            );
            metrics::counter!("intents_of_other_links_total").increment(1);
        }
    })?;
    if adopted.has_early_news || adopted.link.send.is_some() {
        // They made the link due before it could be claimed, or there is an email to send.
        context.wake.notify_waiters();
    }
    if adopted.surplus {
        warn!(%link_id, payment_intent_id = intent.id, "a surplus intent will be canceled");
        metrics::counter!("recoveries_total", "outcome" => "surplus").increment(1);
    }
    // The first attempt may have been committed and its response lost. Then the link is no longer pending, and only the
    // link itself shows the mismatch. Reporting it twice is better than never.
    let was_retried = attempts > 1;
    let mismatch_of_lost_attempt =
        was_retried && !adopted.surplus && adopted.link.reported_amount.is_some();
    if adopted.mismatch || mismatch_of_lost_attempt {
        report_mismatch(&adopted.link, intent);
    }
    Ok(adopted)
}

/// Reports that Dojo has an amount other than the requested one.
pub(super) fn report_mismatch(link: &PaymentLink, intent: &PaymentIntent) {
    error!(
        link_id = %link.id, payment_intent_id = intent.id, requested = %link.amount, reported = ?intent.amount,
        "Dojo reports an amount other than the requested one"
    );
    metrics::counter!("amount_mismatches_total").increment(1);
}
