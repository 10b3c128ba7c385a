//! Payment intents and their rules: creation, payment, management and expiry. Pure: no I/O, and the caller passes the
//! current time.

mod cards;
mod create;
mod intent;
mod manage;
mod movements;
mod payment;

pub(crate) use cards::{Card, IssuerDecision, is_test_card};
pub(crate) use create::{
    CreateIntent, CreationContext, check as check_creation, check_auto_expire_action,
};
pub(crate) use intent::{
    Address, CaptureMode, Collection, Config, Intent, ItemLine, Refund, RefundRequest,
    ShippingDetails, Status, TaxLine,
};
pub(crate) use payment::{PaymentOutcome, Rejection};
