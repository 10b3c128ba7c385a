//! What goes wrong between Dojo and the receiver, on demand.

use std::time::Duration;

use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use crate::chance;

/// A fault of webhook delivery.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct WebhookFault {
    pub(crate) kind: Kind,
    /// Only deliveries of this event.
    pub(crate) event: Option<String>,
    /// How long `delay` waits, and how long `reorder` holds out for a successor.
    pub(crate) delay_ms: Option<u64>,
    pub(crate) count: Option<u32>,
    pub(crate) share: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Kind {
    /// Never sent.
    Drop,
    /// Sent twice, at the same time.
    Double,
    /// Sent later.
    Delay,
    /// Sent after the next delivery to the same URL.
    Reorder,
}

impl WebhookFault {
    /// The fault as asked for, or what is wrong with it.
    pub(crate) fn checked(mut self) -> Result<Self, String> {
        chance::check(self.share)?;
        self.count = chance::count_or_once(self.count, self.share);
        match (self.kind, self.delay_ms) {
            (Kind::Delay, None) => Err("A delay needs delayMs.".to_owned()),
            (_, Some(delay)) if delay > 600_000 => Err("delayMs is at most 600000.".to_owned()),
            _ => Ok(self),
        }
    }

    pub(crate) fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms.unwrap_or(2_000))
    }

    /// Whether this delivery meets the fault; uses it up by one where it does.
    pub(crate) fn strikes(&mut self, event: &str, rng: &mut StdRng) -> bool {
        self.event.as_deref().is_none_or(|wanted| wanted == event)
            && chance::strikes(&mut self.count, self.share, rng)
    }
}
