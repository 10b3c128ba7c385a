//! Receiving a webhook: store it once and apply the rules to its link's status.

use sha2::{Digest, Sha256};
use tracing::warn;

use super::intake::{Intake, NotStored};
use crate::{
    dojo::webhook::Event,
    payment_link::{PaymentLinkId, Status},
    store::webhooks::{Effect, Webhook},
};

/// What became of a webhook.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// The same in every copy of the webhook.
    pub dedup_key: String,
    /// In one word, as in the metric `webhooks_total`.
    pub verdict: String,
    /// The webhook's link with its status before and after, if the webhook was judged.
    pub judged: Option<(PaymentLinkId, Status, Status)>,
}

/// Stores a webhook whose signature is valid for this account, and applies it to its link's status. Once this returns `Ok`,
/// the webhook is committed, and a duplicate of it changes nothing.
pub async fn receive(intake: &Intake, account: &str, body: Vec<u8>) -> Result<Receipt, NotStored> {
    let event = Event::parse(&body).map_err(|error| error.reason());
    let dedup_key = match &event {
        Ok(event) => event.id.clone(),
        Err(reason) => {
            warn!(
                reason,
                "a webhook with a valid signature was not understood; it is stored in webhook_events"
            );
            format!("sha256:{}", hex::encode(Sha256::digest(&body)))
        }
    };
    let is_understood = event.is_ok();
    let webhook = Webhook {
        account: account.to_owned(),
        dedup_key: dedup_key.clone(),
        body,
        event,
    };
    let effect = intake.store(webhook).await?;
    let verdict = effect.word(is_understood).to_owned();
    let judged = match effect {
        Effect::Judged {
            link_id,
            before,
            after,
            ..
        } => Some((link_id, before, after)),
        Effect::Duplicate | Effect::NoLink => None,
    };
    Ok(Receipt {
        dedup_key,
        verdict,
        judged,
    })
}
