//! The responses to rejected calls.

use axum::http::StatusCode;

use crate::faults::Operation;
use crate::intent_store::ChangeError;
use crate::intents::Rejection;
use crate::problem::Problem;
use crate::webhooks::SubscriptionError;

/// Dojo's OpenAPI file lists 404 for reading, canceling and receipts, and only 400 for everything else.
pub(super) fn unknown_intent(operation: Operation) -> Problem {
    let status = match operation {
        Operation::Get | Operation::Cancel | Operation::Receipt => StatusCode::NOT_FOUND,
        _ => StatusCode::BAD_REQUEST,
    };
    Problem::new(status, "There is no payment intent with this id.")
}

/// Dojo's OpenAPI file lists no 404 for this.
pub(super) fn unknown_refund() -> Problem {
    Problem::bad_request("There is no refund with this id.")
}

pub(super) fn unknown_subscription() -> Problem {
    Problem::not_found("There is no subscription or secret with this id.")
}

/// The status that Dojo's OpenAPI file lists for the operation: 409 for captures and reversals, 405 for changes that
/// the intent doesn't allow, 400 for everything else.
pub(super) fn rejected(operation: Operation) -> impl FnOnce(ChangeError) -> Problem {
    move |error| match error {
        ChangeError::UnknownIntent => unknown_intent(operation),
        ChangeError::Rejected(rejection) => {
            let status = match (operation, &rejection) {
                (_, Rejection::NotAllowed(_)) => StatusCode::METHOD_NOT_ALLOWED,
                (Operation::Capture | Operation::Reversal, _) => StatusCode::CONFLICT,
                _ => StatusCode::BAD_REQUEST,
            };
            Problem::new(status, rejection.to_string())
        }
    }
}

impl From<SubscriptionError> for Problem {
    fn from(error: SubscriptionError) -> Self {
        match error {
            SubscriptionError::UnknownEvent(name) => {
                Self::invalid_field("Events", format!("This account has no event {name}."))
            }
            SubscriptionError::AlreadySubscribed(name) => Self::conflict(format!(
                "This account already has a subscription to {name}."
            )),
            SubscriptionError::NotFound => unknown_subscription(),
            SubscriptionError::TooManySecrets => {
                Self::conflict("The subscription already has the maximum number of secrets.")
            }
        }
    }
}
