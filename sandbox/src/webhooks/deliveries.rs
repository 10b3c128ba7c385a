//! The record of webhook deliveries.

use std::collections::VecDeque;

use serde::Serialize;
use serde_json::value::RawValue;

use super::event::Event;
use super::faults::Kind;
use crate::clock::Timestamp;

/// Beyond this number, the oldest records are forgotten.
const MAX_DELIVERIES: usize = 100_000;

/// Limits the size of a record that is redelivered many times.
const MAX_ATTEMPTS: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum State {
    Pending,
    Delivered,
    /// Not sent, because of a fault.
    Dropped,
    /// Rejected too often. Only the control API sends it again.
    GaveUp,
}

/// The delivery of one event to one subscription.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Delivery {
    pub(crate) event_id: String,
    pub(crate) event: String,
    pub(crate) payment_intent_id: String,
    pub(crate) url: String,
    #[serde(serialize_with = "as_json")]
    pub(crate) body: String,
    pub(crate) state: State,
    pub(crate) fault: Option<Kind>,
    pub(crate) attempts: Vec<Attempt>,
    #[serde(skip)]
    pub(crate) subscription_id: String,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Attempt {
    pub(crate) at: Timestamp,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Outcome {
    /// The HTTP status of the receiver's response.
    Status(u16),
    /// Why there was no response.
    Error(String),
}

impl Outcome {
    pub(crate) fn is_success(&self) -> bool {
        matches!(self, Self::Status(200..=299))
    }
}

/// Identifies a delivery while it is recorded.
pub(crate) type DeliveryNumber = u64;

#[derive(Debug, Default)]
pub(crate) struct Deliveries {
    records: VecDeque<Delivery>,
    forgotten: DeliveryNumber,
}

impl Deliveries {
    pub(crate) fn add(
        &mut self,
        event: &Event,
        url: String,
        subscription_id: String,
    ) -> DeliveryNumber {
        if self.records.len() >= MAX_DELIVERIES {
            self.records.pop_front();
            self.forgotten += 1;
        }
        self.records.push_back(Delivery {
            event_id: event.id.clone(),
            event: event.name.clone(),
            payment_intent_id: event.payment_intent_id.clone(),
            url,
            body: event.body.clone(),
            state: State::Pending,
            fault: None,
            attempts: Vec::new(),
            subscription_id,
        });
        self.forgotten + self.records.len() as DeliveryNumber - 1
    }

    /// All recorded deliveries, oldest first.
    pub(crate) fn all(&self) -> impl Iterator<Item = (DeliveryNumber, &Delivery)> {
        (self.forgotten..).zip(&self.records)
    }

    pub(crate) fn update(&mut self, number: DeliveryNumber, change: impl FnOnce(&mut Delivery)) {
        let index = number
            .checked_sub(self.forgotten)
            .and_then(|index| usize::try_from(index).ok());
        if let Some(delivery) = index.and_then(|index| self.records.get_mut(index)) {
            change(delivery);
        }
    }
}

impl Delivery {
    pub(crate) fn record_attempt(&mut self, at: Timestamp, outcome: Outcome) {
        if outcome.is_success() {
            self.state = State::Delivered;
        }
        if self.attempts.len() < MAX_ATTEMPTS {
            self.attempts.push(Attempt { at, outcome });
        }
    }

    /// Called after the last attempt. A duplicated delivery that succeeded once stays delivered.
    pub(crate) fn give_up(&mut self) {
        if self.state == State::Pending {
            self.state = State::GaveUp;
        }
    }
}

fn as_json<S: serde::Serializer>(body: &str, serializer: S) -> Result<S::Ok, S::Error> {
    let raw: &RawValue = serde_json::from_str(body).map_err(serde::ser::Error::custom)?;
    raw.serialize(serializer)
}
