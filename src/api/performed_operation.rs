//! The response to an operation.

use serde::Serialize;
use utoipa::ToSchema;

use crate::payment_link::{PaymentLink, operation::Operation};

/// A link after an operation on it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PerformedOperation {
    /// The operation that the request performed.
    pub(super) operation: Operation,
    #[serde(flatten)]
    pub(super) link: PaymentLink,
}
