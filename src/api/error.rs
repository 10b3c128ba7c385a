//! Everything that can go wrong with a request, and the response to it.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};

use super::{
    idempotency::IDEMPOTENT_REPLAYED,
    observe::FailureCause,
    problem::{Problem, Subject},
    problem_type::ProblemType,
};
use crate::{
    api_key::Scope,
    callbacks::endpoint::MOST_ENDPOINTS,
    dojo,
    payment_link::{
        Failure, FailureKind, Fault, NotRenewable, PaymentLinkId, Progress, Unpayable,
        erasure::NotErasable, operation::permission::NotPossible,
    },
    protocol::{self, intake::NotStored},
    sharing::qr_code,
    store,
    telemetry::causes,
};

/// Why a request failed. The message becomes the problem's `detail`; [`Error::response`] decides everything else.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("there is nothing at this path")]
    NotFound,
    #[error("there is no such payment link, or the API key has no access to its account")]
    NoSuchLink,
    #[error("there is no such operation, or the API key has no access to its account")]
    NoSuchOperation,
    #[error("the link has no such message")]
    NoSuchMessage,
    #[error(
        "there is no such callback endpoint, or it gets events of accounts that the API key has no access to"
    )]
    NoSuchEndpoint,
    #[error("another callback endpoint has this URL: change that one, or delete it")]
    UrlTaken,
    #[error("there are {MOST_ENDPOINTS} callback endpoints: delete one that is no longer needed")]
    TooManyEndpoints,
    #[error("the endpoint didn't respond before the request's time limit")]
    PingTimedOut,
    #[error("no callbacks can be sent, because the system's certificate authorities can't be read")]
    NoCallbackClient,
    #[error("the API key is missing, wrong, expired or revoked: send Authorization: Bearer dpl_…")]
    Unauthenticated,
    #[error("the API key lacks the scope {0}")]
    Forbidden(Scope),
    #[error("the client exceeded its rate limit; nothing was done")]
    RateLimited(Duration),
    #[error("the content type must be application/json")]
    NotJson,
    #[error("the body is not valid JSON: {0}")]
    MalformedJson(String),
    #[error("the request has {} {}", .0.len(), if .0.len() == 1 { "error" } else { "errors" })]
    Invalid(Vec<Fault>),
    #[error("the body is larger than {0} bytes")]
    BodyTooLarge(usize),
    #[error("the body was cut off")]
    BodyIncomplete,
    #[error(
        "this Idempotency-Key was already used for a different request; use a new key for a new request"
    )]
    IdempotencyKeyReused,
    #[error(
        "an earlier request had this Idempotency-Key, and the personal data of the link that it led to has been erased since; \
         nothing was done"
    )]
    Erased,
    #[error("{}", in_progress(*progress))]
    RequestInProgress {
        subject: Subject,
        progress: Progress,
        retry_after: Duration,
    },
    #[error("Dojo's response was lost or is late, so it is not known yet whether {}", match .0 {
        Subject::Link(_) => {
            "the link was created: send the request again with the same Idempotency-Key, or read the link; do not \
             request another link"
        }
        Subject::Operation { .. } => {
            "the operation took effect: send the request again with the same Idempotency-Key, or read the link's \
             operations; do not retry with another key"
        }
    })]
    OutcomeUnknown(Subject),
    #[error("{}", dojo_failed(subject, failure))]
    DojoFailed {
        subject: Subject,
        failure: Failure,
        retry_after: Option<Duration>,
        replayed: bool,
    },
    #[error("{}", .0.reason)]
    NotPossible(NotPossible),
    #[error("the link can't be paid: {}", .0.reason())]
    NotPayable(Unpayable),
    #[error("{0}")]
    NotRenewable(NotRenewable),
    #[error("nothing was erased: {0}")]
    NotErasable(NotErasable),
    #[error("an internal error occurred")]
    NoImage(#[source] qr_code::Error),
    #[error(
        "another operation on this payment is in progress, and its outcome must be known first; nothing was done"
    )]
    OperationInProgress,
    #[error(
        "it is not clear yet whether enough is left to refund, because other refunds of this payment are in progress or \
         recent, or Dojo's responses about it contradict each other; nothing was done"
    )]
    RefundableUnclear { retry_after: Duration },
    #[error(
        "Dojo's response was lost, and nothing at Dojo shows whether the operation took effect: check the payment in \
         Dojo's portal"
    )]
    Unconfirmed(Subject),
    #[error("the webhook could not be stored; send it again")]
    WebhookNotStored(#[source] NotStored),
    #[error("too many creations, operations and refreshes are in progress; nothing was done")]
    Overloaded,
    #[error("too many requests are waiting for events")]
    TooManyReaders,
    #[error(
        "events after this place in the feed have been removed: list the links that changed since you last read the feed, then read \
         the feed without after"
    )]
    EventsRemoved,
    #[error(
        "this after is not a place in this feed: list the links that changed since you last read the feed, then read the \
         feed without after"
    )]
    CursorUnknown,
    #[error("the signature is missing or does not match the body")]
    BadSignature,
    #[error(
        "the service cannot reach its database; send the request again, with the same Idempotency-Key if it has one"
    )]
    DatabaseUnavailable(#[source] Arc<store::Error>),
    #[error("an internal error occurred")]
    Internal(#[source] Arc<store::Error>),
    #[error("Dojo could not be reached, or its response was lost; nothing has changed")]
    DojoNotReached(#[source] protocol::Error),
    #[error("Dojo rejected this service's API key")]
    DojoKeyRejected(#[source] dojo::Error),
    #[error("the link's account is no longer configured, so the service cannot call Dojo for it")]
    AccountNotConfigured(PaymentLinkId),
}

fn in_progress(progress: Progress) -> String {
    if !progress.is_lost {
        return "an earlier request with this Idempotency-Key is still in progress; send it again to get its outcome"
            .to_owned();
    }
    format!(
        "Dojo's response to an earlier request with this Idempotency-Key was lost {} s ago. The service looks for the \
         outcome at Dojo, next in {} s. Send the request again after Retry-After to get its outcome",
        progress.since_sent.as_secs(),
        progress.until_next.as_secs()
    )
}

fn dojo_failed(subject: &Subject, failure: &Failure) -> String {
    let nothing = match subject {
        Subject::Link(_) => "nothing was created",
        Subject::Operation { .. } => "nothing was done",
    };
    let detail = &failure.detail;
    match failure.reason {
        FailureKind::Rejected => format!("Dojo rejected the request: {detail}"),
        FailureKind::KeyRejected => format!("Dojo rejected this service's API key; {nothing}"),
        FailureKind::Misrouted => {
            format!("the server at Dojo's address is not Dojo's API; {nothing}")
        }
        FailureKind::NotCreated | FailureKind::NotDone => format!("{nothing}: {detail}"),
        FailureKind::NotReached => {
            format!(
                "Dojo could not be reached; {nothing}: send the request again with the same Idempotency-Key"
            )
        }
    }
}

impl From<Infallible> for Error {
    fn from(error: Infallible) -> Self {
        match error {}
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Arc::new(error).into()
    }
}

impl From<Arc<store::Error>> for Error {
    fn from(error: Arc<store::Error>) -> Self {
        if error.is_outage() {
            Self::DatabaseUnavailable(error)
        } else {
            Self::Internal(error)
        }
    }
}

impl From<protocol::Error> for Error {
    fn from(error: protocol::Error) -> Self {
        match error {
            protocol::Error::Store(error) => error.into(),
            protocol::Error::Dojo(error @ dojo::Error::KeyRejected { .. }) => {
                Self::DojoKeyRejected(error)
            }
            error => Self::DojoNotReached(error),
        }
    }
}

/// The response to a failed request.
struct ErrorResponse {
    problem: Problem,
    retry_after: Option<Duration>,
    /// The value of `WWW-Authenticate`.
    challenge: Option<&'static str>,
    replayed: bool,
    /// Whether the error, with its causes, belongs in the log.
    log: bool,
}

impl ErrorResponse {
    fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    fn challenge(mut self, challenge: &'static str) -> Self {
        self.challenge = Some(challenge);
        self
    }

    fn logged(mut self) -> Self {
        self.log = true;
        self
    }

    fn about(mut self, subject: Subject) -> Self {
        self.problem = self.problem.about(subject);
        self
    }

    fn errors(mut self, errors: &[Fault]) -> Self {
        self.problem = self.problem.with_errors(errors);
        self
    }

    fn instead(mut self, denial: &NotPossible) -> Self {
        self.problem = self.problem.with_alternatives(denial);
        self
    }

    fn status(mut self, status: u16) -> Self {
        self.problem = self.problem.with_status(status);
        self
    }
}

impl Error {
    fn response(&self) -> ErrorResponse {
        use ProblemType as Type;

        const SOON: Duration = Duration::from_secs(1);
        const LATER: Duration = Duration::from_secs(5);

        let of = |kind| ErrorResponse {
            problem: Problem::new(kind, self.to_string()),
            retry_after: None,
            challenge: None,
            replayed: false,
            log: false,
        };
        match self {
            Self::NotFound
            | Self::NoSuchLink
            | Self::NoSuchOperation
            | Self::NoSuchMessage
            | Self::NoSuchEndpoint => of(Type::NotFound),
            Self::UrlTaken => of(Type::UrlTaken),
            Self::TooManyEndpoints => of(Type::TooManyEndpoints),
            // RFC 9110 requires a challenge with every 401. RFC 6750 defines the one for a token that lacks a scope.
            Self::Unauthenticated => of(Type::Unauthenticated).challenge("Bearer"),
            Self::Forbidden(_) => {
                of(Type::Forbidden).challenge("Bearer error=\"insufficient_scope\"")
            }
            Self::BadSignature => of(Type::BadSignature).challenge("Dojo-Signature"),
            Self::RateLimited(wait) => of(Type::RateLimited).retry_after(*wait),
            Self::NotJson => of(Type::UnsupportedMediaType),
            Self::MalformedJson(_) => of(Type::MalformedJson),
            Self::Invalid(faults) => of(Type::InvalidRequest).errors(faults),
            Self::BodyTooLarge(_) => of(Type::BodyTooLarge),
            Self::BodyIncomplete => of(Type::BodyIncomplete),
            Self::IdempotencyKeyReused => of(Type::IdempotencyKeyReused),
            Self::Erased => of(Type::Erased),
            Self::NotErasable(why) if why.may_pass() => of(Type::NotErasable).retry_after(LATER),
            Self::NotErasable(_) => of(Type::NotErasable),
            Self::RequestInProgress {
                subject,
                retry_after,
                ..
            } => of(Type::RequestInProgress)
                .about(*subject)
                .retry_after(*retry_after),
            Self::OutcomeUnknown(subject) => {
                of(Type::OutcomeUnknown).about(*subject).retry_after(LATER)
            }
            Self::DojoFailed {
                subject,
                failure,
                retry_after,
                replayed,
            } => {
                let response = match failure.reason {
                    // A rejection that names no field is about the state of the payment.
                    FailureKind::Rejected
                        if matches!(subject, Subject::Operation { .. })
                            && failure.errors.is_empty() =>
                    {
                        of(Type::RejectedByDojo).status(409)
                    }
                    FailureKind::Rejected => of(Type::RejectedByDojo),
                    FailureKind::KeyRejected => of(Type::DojoKeyRejected),
                    FailureKind::Misrouted => of(Type::DojoMisrouted),
                    FailureKind::NotReached => {
                        of(Type::DojoNotReached).retry_after(retry_after.unwrap_or(LATER))
                    }
                    FailureKind::NotCreated => of(Type::NotCreated),
                    FailureKind::NotDone => of(Type::NotDone),
                };
                let response = response.about(*subject).errors(&failure.errors);
                ErrorResponse {
                    replayed: *replayed,
                    ..response
                }
            }
            Self::NotPossible(denial) => of(Type::NotPossible).instead(denial),
            Self::NotPayable(why) if why.may_pass() => of(Type::NotPayable).retry_after(LATER),
            Self::NotPayable(_) => of(Type::NotPayable),
            Self::NotRenewable(why) => {
                let response = of(Type::NotRenewable);
                match why {
                    NotRenewable::Renewed(by) => response.about(Subject::Link(*by)),
                    NotRenewable::BeingRenewed(by) => {
                        response.about(Subject::Link(*by)).retry_after(LATER)
                    }
                    NotRenewable::NotConfirmed => response.retry_after(LATER),
                    _ => response,
                }
            }
            Self::OperationInProgress => of(Type::OperationInProgress).retry_after(SOON),
            Self::RefundableUnclear { retry_after } => {
                of(Type::RefundableAmountUnclear).retry_after(*retry_after)
            }
            Self::Unconfirmed(subject) => of(Type::OutcomeUnconfirmed).about(*subject),
            Self::WebhookNotStored(error) => {
                let kind = match error {
                    NotStored::Store(error) if error.is_outage() => Type::DatabaseUnavailable,
                    _ => Type::NotStored,
                };
                of(kind).retry_after(SOON).logged()
            }
            Self::Overloaded | Self::TooManyReaders => of(Type::Overloaded).retry_after(SOON),
            Self::EventsRemoved => of(Type::EventsRemoved),
            Self::CursorUnknown => of(Type::CursorUnknown),
            Self::DatabaseUnavailable(_) => {
                of(Type::DatabaseUnavailable).retry_after(SOON).logged()
            }
            Self::PingTimedOut => of(Type::TimedOut),
            Self::Internal(_) | Self::NoCallbackClient | Self::NoImage(_) => {
                of(Type::InternalError).logged()
            }
            Self::DojoNotReached(error) => {
                let wait = match error {
                    protocol::Error::Dojo(error) => error.retry_after(),
                    _ => None,
                };
                of(Type::DojoNotReached).retry_after(wait.unwrap_or(LATER))
            }
            Self::DojoKeyRejected(_) => of(Type::DojoKeyRejected).logged(),
            Self::AccountNotConfigured(id) => {
                of(Type::AccountNotConfigured).about(Subject::Link(*id))
            }
        }
    }

    /// The body of the response.
    pub(super) fn problem(&self) -> Problem {
        self.response().problem
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let ErrorResponse {
            problem,
            retry_after,
            challenge,
            replayed,
            log,
        } = self.response();
        let cause = log.then(|| FailureCause(causes(&self).to_string()));
        let mut response = problem.into_response();
        if let Some(cause) = cause {
            response.extensions_mut().insert(cause);
        }

        let headers = response.headers_mut();
        if let Some(wait) = retry_after {
            // Rounded up: a client that retries before the wait is over would be told to wait again.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if replayed {
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
