//! Webhooks: subscriptions, events and their delivery.

mod deliveries;
mod dispatcher;
mod event;
mod faults;
mod subscriptions;

pub(crate) use dispatcher::{Dispatcher, RetryPolicy};
pub(crate) use event::{EVENTS, Event};
pub(crate) use faults::WebhookFault;
pub(crate) use subscriptions::{
    NewSubscription, Subscription, SubscriptionError, SubscriptionUpdate,
};
