use std::{collections::BTreeMap, time::Duration};

use reqwest::StatusCode;
use serde::Deserialize;

use crate::payment_link::{Failure, FailureKind, Fault};

/// Why a call to Dojo failed. The variants differ in whether Dojo may have done the work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request was never sent: connection refused, DNS, TLS. Dojo has done nothing.
    #[error("Dojo is unreachable")]
    Unreachable(#[source] reqwest::Error),
    /// Dojo limits our rate (429). It has done nothing.
    #[error("Dojo limits the rate of calls")]
    Busy {
        /// How long to wait, if Dojo said so.
        retry_after: Option<Duration>,
    },
    /// Dojo rejected our API key (401, 403). It has done nothing.
    #[error("Dojo rejected this service's API key with status {status}")]
    KeyRejected {
        /// 401 or 403.
        status: StatusCode,
    },
    /// Dojo responded with any other 4xx except 408. Usually it has done nothing. After a 409 or 499, it may have.
    #[error("Dojo rejected the request with status {status}")]
    Rejected {
        status: StatusCode,
        /// Dojo's reasons.
        problem: Problem,
    },
    /// The lease on the work expired before the request was sent. This process has done nothing, but another may have taken
    /// over.
    #[error("the lease expired before the call was sent")]
    TooLate,
    /// The request was sent, but no readable response arrived: timeout, cut connection, 5xx. Dojo may or may not have
    /// done the work.
    #[error("Dojo's response was lost: {reason}")]
    ResponseLost {
        /// What happened instead of a response.
        reason: String,
        #[source]
        source: Option<reqwest::Error>,
    },
}

/// What a 409 from Dojo says about an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On409 {
    /// Dojo won't carry it out.
    NotDone,
    /// Nothing: the conflict may be with an earlier attempt of the same operation, which is still in progress.
    Unknown,
}

/// Dojo's error body, as in RFC 7807.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    pub title: Option<String>,
    pub detail: Option<String>,
    /// Dojo's id for the call, to quote when asking Dojo about it.
    #[serde(rename = "traceId")]
    pub trace_id: Option<String>,
    /// What is wrong with each field, by the field's name.
    pub errors: Option<BTreeMap<String, Vec<String>>>,
}

impl Problem {
    /// What is wrong with each field, as faults of the request.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        self.errors
            .iter()
            .flatten()
            .flat_map(|(field, messages)| {
                messages
                    .iter()
                    .map(move |message| Fault::new(pointer(field), message))
            })
            .collect()
    }

    /// Dojo's title and detail in one sentence.
    #[must_use]
    pub fn words(&self) -> String {
        match (&self.title, &self.detail) {
            (Some(title), Some(detail)) => format!("{title}: {detail}"),
            (Some(words), None) | (None, Some(words)) => words.clone(),
            (None, None) => "Dojo gave no reason".to_owned(),
        }
    }
}

impl Error {
    /// Returns the failure to store for a link that was not created, or `None` if it may have been.
    #[must_use]
    pub fn proves_nothing_was_created(&self) -> Option<Failure> {
        // A 409 may be a conflict with the very intent that this call creates. Any other 4xx than these isn't about the
        // request: Dojo documents none for a creation.
        self.proves_nothing_was_done(
            |status, _| matches!(status, 400 | 413 | 415 | 422),
            On409::Unknown,
        )
    }

    /// Returns the failure to store for an operation that was not carried out, or `None` if it may have been.
    ///
    /// Pass [`On409::Unknown`] for a refund. It has an idempotency key, so a 409 may mean that Dojo is still working on
    /// its first attempt.
    #[must_use]
    pub fn proves_nothing_was_changed(&self, on_409: On409) -> Option<Failure> {
        // Dojo documents 400, 404, 405 and 409 as rejections. A 404 without a reason may come from anything in between.
        self.proves_nothing_was_done(
            |status, problem| match status {
                400 | 405 | 409 | 413 | 415 | 422 => true,
                404 => problem.title.is_some() || problem.detail.is_some(),
                _ => false,
            },
            on_409,
        )
    }

    /// `is_rejection` decides whether a status means that Dojo rejected the request itself.
    fn proves_nothing_was_done(
        &self,
        is_rejection: impl Fn(u16, &Problem) -> bool,
        on_409: On409,
    ) -> Option<Failure> {
        let failure = |reason, status: Option<StatusCode>, detail: String, errors| Failure {
            reason,
            status: status.map(|status| status.as_u16()),
            detail,
            errors,
        };
        match self {
            Self::Unreachable(_) => Some(failure(
                FailureKind::NotReached,
                None,
                self.to_string(),
                Vec::new(),
            )),
            Self::Busy { .. } => Some(failure(
                FailureKind::NotReached,
                Some(StatusCode::TOO_MANY_REQUESTS),
                self.to_string(),
                Vec::new(),
            )),
            Self::KeyRejected { status } => Some(failure(
                FailureKind::KeyRejected,
                Some(*status),
                self.to_string(),
                Vec::new(),
            )),
            // 499 is how a gateway reports that its caller hung up. It says nothing about what Dojo did.
            Self::Rejected { status, .. } if status.as_u16() == 499 => None,
            Self::Rejected { status, .. }
                if *status == StatusCode::CONFLICT && on_409 == On409::Unknown =>
            {
                None
            }
            Self::Rejected { status, problem } if is_rejection(status.as_u16(), problem) => {
                Some(failure(
                    FailureKind::Rejected,
                    Some(*status),
                    problem.words(),
                    problem.faults(),
                ))
            }
            Self::Rejected { status, .. } => Some(failure(
                FailureKind::Misrouted,
                Some(*status),
                format!("status {status} instead of a response from Dojo; is DOJO_API_URL right?"),
                Vec::new(),
            )),
            Self::ResponseLost { .. } | Self::TooLate => None,
        }
    }

    /// Whether the call is safe to retry, because Dojo has done nothing, and may succeed in a moment.
    #[must_use]
    pub fn is_worth_a_retry(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Busy { .. })
    }

    /// Whether a call that only reads may succeed in a moment.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::Busy { .. } | Self::ResponseLost { .. }
        )
    }

    /// How long Dojo asks us to wait, if it does.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after } => *retry_after,
            _ => None,
        }
    }

    /// The error's label in metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Busy { .. } => "busy",
            Self::KeyRejected { .. } => "key_rejected",
            Self::Rejected { .. } => "rejected",
            Self::ResponseLost { .. } => "response_lost",
            Self::TooLate => "too_late",
        }
    }

    /// For a response that repeats the outcome of an earlier call, such as one from a faulty cache. The response to this call
    /// is lost.
    #[must_use]
    pub fn about_another(dojo_id: &str) -> Self {
        Self::response_lost(
            format!("the response repeats {dojo_id}, the outcome of an earlier operation"),
            None,
        )
    }

    pub(super) fn from_send(error: reqwest::Error) -> Self {
        // The connection is made before the first byte of the request is sent, so its failure proves that Dojo received
        // nothing. A builder error doesn't even get that far.
        if error.is_connect() || error.is_builder() {
            Self::Unreachable(error)
        } else {
            Self::response_lost("the connection broke or timed out", Some(error))
        }
    }

    pub(super) fn response_lost(reason: impl Into<String>, source: Option<reqwest::Error>) -> Self {
        Self::ResponseLost {
            reason: reason.into(),
            source,
        }
    }
}

/// Turns a field's name in .NET's form, `Amount.CurrencyCode` or `itemLines[0].name`, into a JSON pointer.
fn pointer(field: &str) -> String {
    let mut pointer = String::new();
    let field = field.strip_prefix('$').unwrap_or(field);
    for part in field.split(['.', '[']).filter(|part| !part.is_empty()) {
        let mut letters = part.trim_end_matches(']').chars();
        let first = letters.next().map(|first| first.to_ascii_lowercase());
        let name: String = first.into_iter().chain(letters).collect();
        pointer = Fault::below(&pointer, &name);
    }
    pointer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_was_not_sent_in_time_proves_nothing() {
        // Another worker may have taken over and done the work.
        assert!(Error::TooLate.proves_nothing_was_created().is_none());
        assert!(
            Error::TooLate
                .proves_nothing_was_changed(On409::NotDone)
                .is_none()
        );
        assert!(!Error::TooLate.is_worth_a_retry());
    }

    #[test]
    fn field_names_become_json_pointers() {
        assert_eq!(pointer("Amount.CurrencyCode"), "/amount/currencyCode");
        assert_eq!(pointer("itemLines[0].name"), "/itemLines/0/name");
        assert_eq!(pointer("$.reference"), "/reference");
        assert_eq!(pointer(""), "");
    }

    #[test]
    fn only_a_rejection_of_the_request_itself_is_final() {
        let reason = |status: u16| {
            let error = Error::Rejected {
                status: StatusCode::from_u16(status).unwrap(),
                problem: Problem::default(),
            };
            error
                .proves_nothing_was_created()
                .map(|failure| failure.reason)
        };
        assert_eq!(reason(400), Some(FailureKind::Rejected));
        assert_eq!(reason(404), Some(FailureKind::Misrouted));
        assert_eq!(reason(409), None);
        assert_eq!(reason(499), None);
    }

    #[test]
    fn an_empty_error_body_is_accepted() {
        let problem: Problem = serde_json::from_str(r#"{"title": null, "errors": null}"#).unwrap();
        assert_eq!(problem.words(), "Dojo gave no reason");
        assert!(problem.faults().is_empty());
    }
}
