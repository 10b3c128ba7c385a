//! What a payment link is and how its state moves.
//!
//! Pure: no I/O and no clock of its own. Everything here can be tested without a database, and the API, the webhooks and the
//! background jobs all use the same rules.

pub mod creation_recovery;
pub mod daily_reconciliation;
pub(crate) mod day;
pub mod erasure;
mod fault;
pub mod feed;
mod id;
mod link;
pub mod message;
mod money;
pub mod movement;
pub mod operation;
pub(crate) mod optional_timestamp;
pub mod orphaned_intent;
pub mod pruning;
pub mod reconciliation;
pub mod refundable;
mod renewal;
mod settlement;
mod short_code;
mod status;
mod terms;
mod time;
pub mod timeline;
pub(crate) mod timestamp;
mod unpayable;

pub use day::parse_day;
pub use fault::Fault;
pub use id::{EventId, MessageId, MovementId, OperationId, PaymentLinkId};
pub use link::{
    Attempt, Capture, Environment, Failure, FailureKind, LinkCapture, Payment, PaymentLink,
    Progress, ReportedAmount,
};
pub use message::{Channel, Message, MessageStatus, NewMessage, Purpose, Reminder, SendByEmail};
pub use money::{Currency, Money};
pub use renewal::{NotRenewable, Renewal};
pub use settlement::{RecoveryLimits, SettlementWindow};
pub use short_code::ShortCode;
pub use status::{Status, Verdict};
pub use terms::{
    ActionLink, ActionType, Address, AutoExpireAction, CaptureMode, CheckoutConfig, Collection,
    Customer, DetailsConfig, ItemLine, Metadata, Modifier, NewPaymentLink, OrderDetails,
    PaymentConfig, PaymentMethod, RequestSecurity, ShippingDetails, TaxLine, Terms, broken_rules,
};
pub use time::parse_time;
pub use unpayable::Unpayable;
