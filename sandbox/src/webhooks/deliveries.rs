//! The record of everything sent, or not sent, to subscribers.

use std::collections::VecDeque;

use serde::Serialize;
use serde_json::value::RawValue;

use super::event::Event;
use super::faults::Kind;
use crate::clock::Timestamp;

/// The oldest records are forgotten beyond this many.
const MOST_DELIVERIES: usize = 100_000;

/// Redelivering again and again must not grow a record without end.
const MOST_ATTEMPTS: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum State {
    Pending,
    Delivered,
    /// A fault kept it from being sent.
    Dropped,
    /// Refused too often; nothing sends it any more.
    GaveUp,
}

/// One event on its way to one subscriber.
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

/// One try, and how the receiver took it.
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
    /// The receiver's HTTP status.
    Status(u16),
    /// Why there was none.
    Error(String),
}

impl Outcome {
    pub(crate) fn is_success(&self) -> bool {
        matches!(self, Self::Status(200..=299))
    }
}

/// Names a delivery for as long as the record keeps it.
pub(crate) type Number = u64;

#[derive(Debug, Default)]
pub(crate) struct Deliveries {
    records: VecDeque<Delivery>,
    forgotten: Number,
}

impl Deliveries {
    pub(crate) fn add(&mut self, event: &Event, url: String, subscription_id: String) -> Number {
        if self.records.len() >= MOST_DELIVERIES {
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
        self.forgotten + self.records.len() as Number - 1
    }

    /// All that are remembered, oldest first.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Number, &Delivery)> {
        (self.forgotten..).zip(&self.records)
    }

    pub(crate) fn update(&mut self, number: Number, change: impl FnOnce(&mut Delivery)) {
        let index = number
            .checked_sub(self.forgotten)
            .and_then(|index| usize::try_from(index).ok());
        if let Some(delivery) = index.and_then(|index| self.records.get_mut(index)) {
            change(delivery);
        }
    }
}

impl Delivery {
    pub(crate) fn tried(&mut self, at: Timestamp, outcome: Outcome) {
        if outcome.is_success() {
            self.state = State::Delivered;
        }
        if self.attempts.len() < MOST_ATTEMPTS {
            self.attempts.push(Attempt { at, outcome });
        }
    }

    /// Ends a series of tries. Of two series for one delivery, one success is enough.
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
