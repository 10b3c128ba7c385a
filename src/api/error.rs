use std::time::Duration;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use tracing::error;

use super::{IDEMPOTENT_REPLAYED, auth::Scope, problem::Problem};
use crate::{
    dojo,
    payment_link::{Failure, FailureKind, Fault, OperationId, PaymentLinkId},
    protocol, store,
    telemetry::causes,
};

/// Every way in which a request can fail, each with its answer. `?` carries all of them.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("there is nothing at this address")]
    NotFound,
    #[error("there is no such link, or it is not open to this API key")]
    NoSuchLink,
    #[error("the API key is missing, wrong, expired or revoked: Authorization: Bearer dpl_…")]
    Unauthenticated,
    #[error("the API key lacks the scope {}", .0.as_str())]
    Forbidden(Scope),
    #[error("the client sends more requests a second than it may; nothing was done")]
    RateLimited(Duration),
    #[error("the body has to be application/json")]
    NotJson,
    #[error("the body is no JSON: {0}")]
    MalformedJson(String),
    #[error("the request has {} {}", .0.len(), if .0.len() == 1 { "fault" } else { "faults" })]
    Invalid(Vec<Fault>),
    #[error("the body is larger than {0} bytes")]
    BodyTooLarge(usize),
    #[error("the body did not arrive whole")]
    BodyIncomplete,
    #[error(
        "this Idempotency-Key came with another request before; use a new key for a new request"
    )]
    IdempotencyKeyReused,
    #[error("a request with this Idempotency-Key is being worked on; repeat it for its outcome")]
    Running(Subject),
    #[error("Dojo's answer was lost, so it is not known yet whether {}", match .0 {
        Subject::Link(_) => {
            "the link exists: repeat the request with the same Idempotency-Key, or read the link; do not ask for another one"
        }
        Subject::Operation { .. } => {
            "it was done: repeat the request with the same Idempotency-Key, or read the link's operations; do not ask for \
             it with another key"
        }
    })]
    DojoUnsure(Subject),
    #[error("{}", dojo_failed(subject, failure))]
    DojoFailed {
        subject: Subject,
        failure: Failure,
        retry_after: Option<Duration>,
        replayed: bool,
    },
    #[error("{0}")]
    NotPossible(String),
    #[error(
        "another operation on this payment is being worked on; its outcome has to be known first"
    )]
    OperationRunning,
    #[error(
        "it is not clear yet whether that much is left to refund: other refunds of this payment are under way or \
         recent, or Dojo's responses about it contradict each other; nothing was done"
    )]
    RefundableUnclear { retry_after: Duration },
    #[error(
        "Dojo's answer was lost, and nothing at Dojo tells whether it was done: look at the payment in Dojo's portal"
    )]
    Unconfirmed(Subject),
    #[error("the webhook could not be kept; send it again")]
    NotKept(#[source] store::Error),
    #[error("too many calls to Dojo are under way; nothing was done")]
    Overloaded,
    #[error("the signature is missing or not that of this body")]
    BadSignature,
    #[error("{}", if .0.is_outage() {
        "the service cannot reach its database; repeat the request, with the same Idempotency-Key if it has one"
    } else {
        "the service has a fault"
    })]
    Store(#[from] store::Error),
    #[error("Dojo was not reached, or its answer was lost; nothing has changed")]
    DojoSilent(#[source] protocol::Error),
    #[error("Dojo refused this service's own key")]
    DojoRefusesUs(#[source] dojo::Error),
    #[error("the link's account is configured no longer, so Dojo cannot be asked about it")]
    AccountNotConfigured(PaymentLinkId),
}

/// What a request came to, or may have come to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Subject {
    /// A link.
    Link(PaymentLinkId),
    /// An operation on a link.
    Operation {
        id: OperationId,
        link_id: PaymentLinkId,
    },
}

fn dojo_failed(subject: &Subject, failure: &Failure) -> String {
    let nothing = match subject {
        Subject::Link(_) => "nothing was created",
        Subject::Operation { .. } => "nothing was done",
    };
    let detail = &failure.detail;
    match failure.reason {
        FailureKind::Refused => format!("Dojo refused the request: {detail}"),
        FailureKind::KeyRefused => format!("Dojo refused this service's own key; {nothing}"),
        FailureKind::Misrouted => {
            format!("what answered at Dojo's address is not its API; {nothing}")
        }
        FailureKind::NotCreated | FailureKind::NotDone => format!("{nothing}: {detail}"),
        FailureKind::NotReached => {
            format!(
                "Dojo could not be reached; {nothing}: repeat the request with the same Idempotency-Key"
            )
        }
    }
}

impl From<protocol::Error> for Error {
    fn from(error: protocol::Error) -> Self {
        match error {
            protocol::Error::Store(error) => Self::Store(error),
            protocol::Error::Dojo(error @ dojo::Error::KeyRejected { .. }) => {
                Self::DojoRefusesUs(error)
            }
            error => Self::DojoSilent(error),
        }
    }
}

impl Error {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotFound | Self::NoSuchLink => StatusCode::NOT_FOUND,
            Self::Unauthenticated | Self::BadSignature => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::RateLimited(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::MalformedJson(_) | Self::BodyIncomplete => StatusCode::BAD_REQUEST,
            Self::Invalid(_) | Self::IdempotencyKeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Running(_)
            | Self::NotPossible(_)
            | Self::OperationRunning
            | Self::RefundableUnclear { .. }
            | Self::Unconfirmed(_) => StatusCode::CONFLICT,
            Self::DojoUnsure(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::DojoFailed {
                failure, subject, ..
            } => match failure.reason {
                // A refusal that names no field is about the state that the payment is in.
                FailureKind::Refused
                    if matches!(subject, Subject::Operation { .. })
                        && failure.errors.is_empty() =>
                {
                    StatusCode::CONFLICT
                }
                FailureKind::Refused => StatusCode::UNPROCESSABLE_ENTITY,
                FailureKind::KeyRefused | FailureKind::Misrouted => StatusCode::BAD_GATEWAY,
                FailureKind::NotReached => StatusCode::SERVICE_UNAVAILABLE,
                FailureKind::NotCreated | FailureKind::NotDone => StatusCode::CONFLICT,
            },
            Self::DojoRefusesUs(_) => StatusCode::BAD_GATEWAY,
            Self::DojoSilent(_)
            | Self::Overloaded
            | Self::NotKept(_)
            | Self::AccountNotConfigured(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Store(error) if error.is_outage() => StatusCode::SERVICE_UNAVAILABLE,
            Self::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// What a program can tell the failures apart by; see [`Problem::kind`].
    fn slug(&self) -> &'static str {
        match self {
            Self::NotFound | Self::NoSuchLink => "not-found",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden(_) => "forbidden",
            Self::RateLimited(_) => "rate-limited",
            Self::NotJson => "unsupported-media-type",
            Self::MalformedJson(_) => "malformed-json",
            Self::Invalid(_) => "invalid-request",
            Self::BodyTooLarge(_) => "body-too-large",
            Self::BodyIncomplete => "body-incomplete",
            Self::IdempotencyKeyReused => "idempotency-key-reused",
            Self::Running(_) => "request-in-progress",
            Self::DojoUnsure(_) => "outcome-unknown",
            Self::DojoFailed { failure, .. } => match failure.reason {
                FailureKind::Refused => "refused-by-dojo",
                FailureKind::KeyRefused => "dojo-key-refused",
                FailureKind::Misrouted => "dojo-misrouted",
                FailureKind::NotReached => "dojo-not-reached",
                FailureKind::NotCreated => "not-created",
                FailureKind::NotDone => "not-done",
            },
            Self::NotPossible(_) => "not-possible",
            Self::OperationRunning => "operation-in-progress",
            Self::RefundableUnclear { .. } => "refundable-amount-unclear",
            Self::Unconfirmed(_) => "outcome-unconfirmed",
            Self::BadSignature => "bad-signature",
            Self::Overloaded => "overloaded",
            Self::NotKept(error) if error.is_outage() => "database-unavailable",
            Self::NotKept(_) => "not-kept",
            Self::DojoSilent(_) => "dojo-not-reached",
            Self::DojoRefusesUs(_) => "dojo-key-refused",
            Self::AccountNotConfigured(_) => "account-not-configured",
            Self::Store(error) if error.is_outage() => "database-unavailable",
            Self::Store(_) => "internal-error",
        }
    }

    /// How long to wait before another try, where trying again makes sense.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited(wait) | Self::RefundableUnclear { retry_after: wait } => Some(*wait),
            Self::Running(_) | Self::OperationRunning | Self::Overloaded | Self::NotKept(_) => {
                Some(Duration::from_secs(1))
            }
            Self::Store(error) if error.is_outage() => Some(Duration::from_secs(1)),
            Self::DojoSilent(protocol::Error::Dojo(error)) => {
                Some(error.retry_after().unwrap_or(Duration::from_secs(5)))
            }
            Self::DojoUnsure(_) | Self::DojoSilent(_) => Some(Duration::from_secs(5)),
            Self::DojoFailed {
                failure,
                retry_after,
                ..
            } if failure.reason == FailureKind::NotReached => {
                Some(retry_after.unwrap_or(Duration::from_secs(5)))
            }
            _ => None,
        }
    }

    /// What is told of it in the answer's body.
    pub(super) fn problem(&self) -> Problem {
        let mut problem = Problem::new(self.status(), self.slug(), self.to_string());
        match self {
            Self::Invalid(faults) => problem.errors.clone_from(faults),
            Self::Running(subject) | Self::DojoUnsure(subject) | Self::Unconfirmed(subject) => {
                problem.about(*subject);
            }
            Self::AccountNotConfigured(id) => problem.about(Subject::Link(*id)),
            Self::DojoFailed {
                subject, failure, ..
            } => {
                problem.about(*subject);
                problem.errors.clone_from(&failure.errors);
            }
            _ => {}
        }
        problem
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        if let Self::Store(_) | Self::NotKept(_) | Self::DojoRefusesUs(_) = &self {
            error!(error = %causes(&self), "a request failed");
        }
        // RFC 9110 has every 401 name a way to do better, RFC 6750 what a bearer token lacks.
        let challenge = match &self {
            Self::Unauthenticated => Some("Bearer"),
            Self::Forbidden(_) => Some("Bearer error=\"insufficient_scope\""),
            Self::BadSignature => Some("Dojo-Signature"),
            _ => None,
        };

        let mut response = self.problem().into_response();
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after() {
            headers.insert(
                header::RETRY_AFTER,
                HeaderValue::from(wait.as_secs().max(1)),
            );
        }
        if let Self::DojoFailed { replayed: true, .. } = self {
            headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
        }
        if let Some(challenge) = challenge {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static(challenge),
            );
        }
        response
    }
}
