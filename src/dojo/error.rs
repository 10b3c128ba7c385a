use std::{collections::BTreeMap, time::Duration};

use reqwest::StatusCode;
use serde::Deserialize;

use crate::payment_link::{Failure, FailureKind, Fault};

/// Why a call to Dojo did not succeed. What matters about each: whether Dojo may have done the work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request never left: refused connection, DNS, TLS. Dojo has done nothing.
    #[error("Dojo was not reached")]
    NotReached(#[source] reqwest::Error),
    /// Dojo has no time for us (429). It has done nothing.
    #[error("Dojo asks for fewer calls")]
    Busy {
        /// How long to wait, where Dojo said so.
        retry_after: Option<Duration>,
    },
    /// Dojo refused our key (401, 403). It has done nothing.
    #[error("Dojo refused this service's API key with status {status}")]
    KeyRefused {
        /// 401 or 403.
        status: StatusCode,
    },
    /// Dojo refused what was asked for (any other 4xx). It has done nothing.
    #[error("Dojo refused the request with status {status}")]
    Refused {
        /// The status it answered with.
        status: StatusCode,
        /// Its reasons.
        problem: Problem,
    },
    /// The request left and no readable answer came back: timeout, cut connection, 5xx. Dojo may or may
    /// not have done the work.
    #[error("Dojo's answer was lost: {reason}")]
    Unanswered {
        /// What came instead of an answer.
        reason: String,
        /// The error beneath, where there is one.
        #[source]
        source: Option<reqwest::Error>,
    },
}

/// Dojo's error body, in the form of RFC 7807.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// What is wrong, in short.
    pub title: Option<String>,
    /// What is wrong, at length.
    pub detail: Option<String>,
    /// Dojo's own id for the call, to name when asking Dojo about it.
    #[serde(rename = "traceId")]
    pub trace_id: Option<String>,
    /// From a field's name to what is wrong with it.
    pub errors: Option<BTreeMap<String, Vec<String>>>,
}

impl Problem {
    /// Dojo's objections as faults of the request.
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

    /// Dojo's reasons as a sentence.
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
    /// What to keep about a link that could not be created, or `None` if it may have been.
    #[must_use]
    pub fn proves_nothing_was_created(&self) -> Option<Failure> {
        // A conflict may be with the very intent that we ask for. Any other 4xx than these is not about the request:
        // Dojo documents none for a creation.
        self.proves_nothing_was_done(
            |status, _| matches!(status, 400 | 413 | 415 | 422),
            |status| status == 409,
        )
    }

    /// What to keep about an operation that was not carried out, or `None` if it may have been.
    ///
    /// `conflict_is_refusal`: whether a 409 means that Dojo will not do it. Of a refund, which has a key, it may mean that
    /// its own first try is being worked on.
    #[must_use]
    pub fn proves_nothing_was_changed(&self, conflict_is_refusal: bool) -> Option<Failure> {
        // Dojo documents 400, 404, 405 and 409 as refusals. A 404 that says nothing may be anybody's.
        self.proves_nothing_was_done(
            |status, problem| match status {
                400 | 405 | 409 | 413 | 415 | 422 => true,
                404 => problem.title.is_some() || problem.detail.is_some(),
                _ => false,
            },
            |status| status == 409 && !conflict_is_refusal,
        )
    }

    /// `is_refusal` tells which statuses mean that Dojo refused what was asked for, `is_unsure` which of them leave open
    /// whether it was done before.
    fn proves_nothing_was_done(
        &self,
        is_refusal: impl Fn(u16, &Problem) -> bool,
        is_unsure: impl Fn(u16) -> bool,
    ) -> Option<Failure> {
        let failure = |reason, status: Option<StatusCode>, detail: String, errors| Failure {
            reason,
            status: status.map(|status| status.as_u16()),
            detail,
            errors,
        };
        match self {
            Self::NotReached(_) => Some(failure(
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
            Self::KeyRefused { status } => Some(failure(
                FailureKind::KeyRefused,
                Some(*status),
                self.to_string(),
                Vec::new(),
            )),
            // 499 is a gateway's word for a caller that hung up, which says nothing of what stands behind it.
            Self::Refused { status, .. }
                if status.as_u16() == 499 || is_unsure(status.as_u16()) =>
            {
                None
            }
            Self::Refused { status, problem } if is_refusal(status.as_u16(), problem) => {
                Some(failure(
                    FailureKind::Refused,
                    Some(*status),
                    problem.words(),
                    problem.faults(),
                ))
            }
            Self::Refused { status, .. } => Some(failure(
                FailureKind::Misrouted,
                Some(*status),
                format!("status {status} instead of an answer; is DOJO_API_URL right?"),
                Vec::new(),
            )),
            Self::Unanswered { .. } => None,
        }
    }

    /// Whether the same call may well succeed in a moment, and may be made again because Dojo has done nothing.
    #[must_use]
    pub fn is_worth_a_retry(&self) -> bool {
        matches!(self, Self::NotReached(_) | Self::Busy { .. })
    }

    /// Whether a question that changes nothing may well be answered in a moment.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::NotReached(_) | Self::Busy { .. } | Self::Unanswered { .. }
        )
    }

    /// How long Dojo asks to be left alone, where it does.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after } => *retry_after,
            _ => None,
        }
    }

    /// The error's name in metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotReached(_) => "not_reached",
            Self::Busy { .. } => "busy",
            Self::KeyRefused { .. } => "key_refused",
            Self::Refused { .. } => "refused",
            Self::Unanswered { .. } => "unanswered",
        }
    }

    pub(super) fn from_send(error: reqwest::Error) -> Self {
        // The connection comes before the first byte of the request, so its failure proves that nothing
        // was asked for. A builder error never gets that far.
        if error.is_connect() || error.is_builder() {
            Self::NotReached(error)
        } else {
            Self::unanswered("the connection broke or timed out", Some(error))
        }
    }

    pub(super) fn unanswered(reason: impl Into<String>, source: Option<reqwest::Error>) -> Self {
        Self::Unanswered {
            reason: reason.into(),
            source,
        }
    }
}

/// Dojo names a field as .NET does, `Amount.CurrencyCode` or `itemLines[0].name`; we as a JSON pointer.
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
    fn names_fields_as_json_pointers() {
        assert_eq!(pointer("Amount.CurrencyCode"), "/amount/currencyCode");
        assert_eq!(pointer("itemLines[0].name"), "/itemLines/0/name");
        assert_eq!(pointer("$.reference"), "/reference");
        assert_eq!(pointer(""), "");
    }

    #[test]
    fn what_is_not_about_the_request_is_no_final_answer() {
        let reason = |status: u16| {
            let error = Error::Refused {
                status: StatusCode::from_u16(status).unwrap(),
                problem: Problem::default(),
            };
            error
                .proves_nothing_was_created()
                .map(|failure| failure.reason)
        };
        assert_eq!(reason(400), Some(FailureKind::Refused));
        assert_eq!(reason(404), Some(FailureKind::Misrouted));
        assert_eq!(reason(409), None);
        assert_eq!(reason(499), None);
    }

    #[test]
    fn reads_an_error_body_that_lacks_everything() {
        let problem: Problem = serde_json::from_str(r#"{"title": null, "errors": null}"#).unwrap();
        assert_eq!(problem.words(), "Dojo gave no reason");
        assert!(problem.faults().is_empty());
    }
}
