//! Faults in webhook deliveries.

use std::time::Duration;

use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use crate::chance;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct WebhookFault {
    pub(crate) kind: Kind,
    /// Limits the fault to this event.
    pub(crate) event: Option<String>,
    /// How long `delay` waits, and how long `reorder` waits at most for the next delivery.
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
    /// Sent after a delay.
    Delay,
    /// Sent after the next delivery to the same URL.
    Reorder,
}

impl WebhookFault {
    /// Validates the fault, and sets its default count.
    pub(crate) fn validated(mut self) -> Result<Self, String> {
        chance::check(self.share)?;
        self.count = chance::count_or_once(self.count, self.share);
        match (self.kind, self.delay_ms) {
            (Kind::Delay, None) => Err("This kind of fault requires delayMs.".to_owned()),
            (_, Some(delay)) if delay > 600_000 => {
                Err("delayMs must be at most 600000.".to_owned())
            }
            _ => Ok(self),
        }
    }

    pub(crate) fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms.unwrap_or(2_000))
    }

    /// Whether the fault applies to this delivery. If it does, its count goes down by one.
    pub(crate) fn applies(&mut self, event: &str, rng: &mut StdRng) -> bool {
        self.event.as_deref().is_none_or(|wanted| wanted == event)
            && chance::applies(&mut self.count, self.share, rng)
    }
}
