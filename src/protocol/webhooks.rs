//! Receiving a webhook: store it once and apply the rules to its link's status.

use sha2::{Digest, Sha256};
use tracing::{info, warn};

use super::Context;
use crate::{
    dojo::webhook::Event,
    store::{
        self,
        webhooks::{Effect, Webhook},
    },
};

/// Stores a webhook whose signature is valid, and applies it to its link's status. Once this returns `Ok`, the webhook is
/// committed, and a duplicate of it changes nothing.
pub async fn receive(context: &Context, body: &[u8]) -> Result<(), store::Error> {
    let parsed = Event::parse(body);
    let (dedup_key, event) = match &parsed {
        Ok(event) => (event.id.clone(), Ok(event)),
        Err(error) => {
            let reason = error.reason();
            warn!(
                reason,
                "a webhook with a valid signature was not understood; it is stored in webhook_events"
            );
            let hash = hex::encode(Sha256::digest(body));
            (format!("sha256:{hash}"), Err(reason))
        }
    };
    let is_understood = event.is_ok();
    let webhook = Webhook {
        account: &context.account.name,
        dedup_key: &dedup_key,
        body,
        event,
    };
    let effect = store::webhooks::record(&context.pool, webhook).await?;
    context.wake.notify_waiters();

    match effect {
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
