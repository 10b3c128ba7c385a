//! Error responses: `application/problem+json` (RFC 9457).

use axum::{
    Json,
    extract::Request,
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    observe::RequestId,
    problem_type::{PREFIX, ProblemType},
};
use crate::payment_link::{
    Fault, Money, OperationId, PaymentLinkId,
    operation::{ActionKind, permission::NotPossible},
};

/// Why the service is not ready if it has no usable database.
pub(super) const NO_DATABASE: &str = "the database cannot be reached, or was never migrated";

/// The body of every response of the API with a status of 400 or more.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Problem {
    // The OpenAPI document replaces this description by one that lists every type.
    /// The type of problem: the path of its documentation in this service.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The problem type in a few words. The same for every problem of the type.
    pub(crate) title: String,
    /// The HTTP status.
    pub(crate) status: u16,
    /// What went wrong and what to do about it, for people to read.
    pub(crate) detail: String,
    /// The path of the request.
    pub(crate) instance: String,
    /// The request's id, as in `x-request-id`. Include it when you report the problem.
    pub(crate) request_id: String,
    /// Everything that is wrong with the request, one entry per value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) errors: Vec<Fault>,
    /// The operations that the payment allows now, if it doesn't allow the requested one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) allowed_actions: Option<Vec<ActionKind>>,
    /// How much is left to capture or to refund, if the payment doesn't allow the requested capture or refund.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) remaining: Option<Money>,
    /// The payment link that the problem is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) payment_link_id: Option<PaymentLinkId>,
    /// The operation that the problem is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) operation_id: Option<OperationId>,
}

/// What a request created or changed, or may have created or changed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Subject {
    Link(PaymentLinkId),
    Operation {
        id: OperationId,
        link_id: PaymentLinkId,
    },
}

impl Problem {
    /// A problem with the usual status of its type. [`complete`] adds the path and the id of the request.
    pub(super) fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        let usual = kind.statuses().first().copied();
        let problem = Self {
            kind: format!("{PREFIX}{}", kind.slug()),
            title: kind.title().to_owned(),
            status: 0,
            detail: detail.into(),
            instance: String::new(),
            request_id: String::new(),
            errors: Vec::new(),
            allowed_actions: None,
            remaining: None,
            payment_link_id: None,
            operation_id: None,
        };
        problem.with_status(usual.unwrap_or(500))
    }

    pub(super) fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    pub(super) fn with_alternatives(mut self, denial: &NotPossible) -> Self {
        self.allowed_actions = Some(denial.allowed_actions.clone());
        self.remaining = denial.remaining;
        self
    }

    pub(super) fn about(mut self, subject: Subject) -> Self {
        match subject {
            Subject::Link(id) => self.payment_link_id = Some(id),
            Subject::Operation { id, link_id } => {
                self.payment_link_id = Some(link_id);
                self.operation_id = Some(id);
            }
        }
        self
    }

    pub(super) fn with_errors(mut self, errors: &[Fault]) -> Self {
        self.errors = errors.to_vec();
        self
    }

    /// A problem for an error response of the framework, which has only a status.
    pub(super) fn of_status(status: StatusCode) -> Self {
        let (kind, detail) = match status {
            StatusCode::NOT_FOUND => (ProblemType::NotFound, "there is nothing at this path"),
            StatusCode::METHOD_NOT_ALLOWED => (
                ProblemType::MethodNotAllowed,
                "this path does not support the method; the Allow header lists those it supports",
            ),
            StatusCode::SERVICE_UNAVAILABLE => (
                ProblemType::TimedOut,
                "the request took too long; send it again with the same Idempotency-Key to get its outcome",
            ),
            StatusCode::INTERNAL_SERVER_ERROR => {
                (ProblemType::InternalError, "an internal error occurred")
            }
            _ => (ProblemType::Other, "the request was rejected"),
        };
        Self::new(kind, detail).with_status(status.as_u16())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Marks a response whose body is a page for people. It stays as it is, whatever its status.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ForPeople;

/// Writes the body of every error response of the API, whether it comes from a handler, the router, a time limit or a panic.
pub(crate) async fn complete(request: Request, next: Next) -> Response {
    let instance = request.uri().path().to_owned();
    let request_id = RequestId::of(&request);
    let mut response = next.run(request).await;
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if !is_error || response.extensions().get::<ForPeople>().is_some() {
        return response;
    }
    let problem = response.extensions_mut().remove::<Problem>();
    let problem = Problem {
        instance,
        request_id,
        ..problem.unwrap_or_else(|| Problem::of_status(status))
    };
    let (mut parts, _) = response.into_parts();
    let (written, body) = Json(problem).into_response().into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.extend(written.headers);
    parts.headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    Response::from_parts(parts, body)
}
