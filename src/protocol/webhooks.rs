//! Receiving a webhook: store it once and apply the rules to its link's status.

use sha2::{Digest, Sha256};
use tracing::{info, warn};

use super::intake::{Intake, NotStored};
use crate::{
    dojo::webhook::Event,
    store::webhooks::{Effect, Webhook},
};

/// Stores a webhook whose signature is valid for this account, and applies it to its link's status. Once this returns `Ok`,
/// the webhook is committed, and a duplicate of it changes nothing.
pub async fn receive(intake: &Intake, account: &str, body: Vec<u8>) -> Result<(), NotStored> {
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
    match intake.store(webhook).await? {
        Effect::Judged {
            link_id,
            before,
            after,
            verdict,
        } => {
            count(&verdict);
            info!(
                %link_id, event_id = dedup_key, verdict, before = before.as_str(), after = after.as_str(),
                "webhook processed"
            );
        }
        Effect::Duplicate => {
            count("duplicate");
            info!(event_id = dedup_key, "webhook received again");
        }
        Effect::NoLink => {
            count(if is_understood {
                "kept"
            } else {
                "not_understood"
            });
            info!(
                event_id = dedup_key,
                "webhook stored; it is not about a known link yet"
            );
        }
    }
    Ok(())
}

fn count(verdict: &str) {
    metrics::counter!("webhooks_total", "verdict" => verdict.to_owned()).increment(1);
}
