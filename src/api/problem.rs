//! Error answers: `application/problem+json`, as RFC 9457 has it.

use axum::{
    Json,
    extract::Request,
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoResponses, ToSchema};

use super::{error::Subject, observe::RequestId};
use crate::payment_link::{Fault, OperationId, PaymentLinkId};

/// The body of every answer with a status of 400 or more.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Problem {
    /// Tells the kinds of problems apart: `urn:problem-type:dojo-payment-links:` and a name.
    #[serde(rename = "type")]
    #[schema(example = "urn:problem-type:dojo-payment-links:invalid-request")]
    pub(crate) kind: String,
    /// The HTTP status in words.
    #[schema(example = "Unprocessable Entity")]
    pub(crate) title: String,
    /// The HTTP status.
    #[schema(example = 422)]
    pub(crate) status: u16,
    /// What went wrong and what to do about it.
    #[schema(example = "the request has 1 fault")]
    pub(crate) detail: String,
    /// The path that was asked for.
    #[schema(example = "/v1/payment-links")]
    pub(crate) instance: String,
    /// The request's id, as in `x-request-id`: name it when you ask about the problem.
    pub(crate) request_id: String,
    /// Each fault of the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) errors: Vec<Fault>,
    /// The link that the problem is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) payment_link_id: Option<PaymentLinkId>,
    /// The operation that the problem is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) operation_id: Option<OperationId>,
}

impl Problem {
    /// A problem that does not know yet to which request it belongs; [`complete`] tells it.
    pub(crate) fn new(status: StatusCode, slug: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:problem-type:dojo-payment-links:{slug}"),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            instance: String::new(),
            request_id: String::new(),
            errors: Vec::new(),
            payment_link_id: None,
            operation_id: None,
        }
    }

    /// Names what the problem is about.
    pub(crate) fn about(&mut self, subject: Subject) {
        match subject {
            Subject::Link(id) => self.payment_link_id = Some(id),
            Subject::Operation { id, link_id } => {
                self.payment_link_id = Some(link_id);
                self.operation_id = Some(id);
            }
        }
    }

    /// For an error of the framework, which has a status and nothing more.
    fn of_status(status: StatusCode) -> Self {
        let (slug, detail) = match status {
            StatusCode::NOT_FOUND => ("not-found", "there is nothing at this address"),
            StatusCode::METHOD_NOT_ALLOWED => (
                "method-not-allowed",
                "this address has other methods, see the Allow header",
            ),
            StatusCode::SERVICE_UNAVAILABLE => (
                "timed-out",
                "the request took too long; repeat it with the same Idempotency-Key for its outcome",
            ),
            StatusCode::INTERNAL_SERVER_ERROR => ("internal-error", "the service has a fault"),
            _ => ("error", "the request cannot be answered"),
        };
        Self::new(status, slug, detail)
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

/// What every call behind an API key may be answered, for the document.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes what `Error` makes")]
pub(crate) enum Guarded {
    /// No valid API key.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthenticated(Problem),
    /// The API key lacks the scope that the call needs.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(Problem),
    /// The service has a fault.
    #[response(status = 500, content_type = "application/problem+json")]
    Fault(Problem),
    /// The database or Dojo was not reached, or there is too much to do. Repeat it after `Retry-After`.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(Problem),
}

/// There is no such link.
#[derive(IntoResponses)]
#[response(status = 404, content_type = "application/problem+json")]
#[expect(dead_code, reason = "describes what `Error` makes")]
pub(crate) struct NoSuchLink(Problem);

/// The query has faults; `errors` names each.
#[derive(IntoResponses)]
#[response(status = 422, content_type = "application/problem+json")]
#[expect(dead_code, reason = "describes what `Error` makes")]
pub(crate) struct FaultyQuery(Problem);

/// Writes the body of each error, whoever made it: a handler, the router, a time limit, a panic.
pub(crate) async fn complete(request: Request, next: Next) -> Response {
    let instance = request.uri().path().to_owned();
    let request_id = RequestId::of(&request);
    let mut response = next.run(request).await;
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
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
