//! Webhooks: who is subscribed, what they are told, and how it gets there.

mod courier;
mod deliveries;
mod event;
mod faults;
mod subscriptions;

pub(crate) use courier::{Courier, RetryPolicy};
pub(crate) use event::{EVENTS, Event};
pub(crate) use faults::WebhookFault;
pub(crate) use subscriptions::{SubscribeError, Subscription};
