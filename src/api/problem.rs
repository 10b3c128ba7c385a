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

/// What the `type` of every problem begins with.
const TYPE: &str = "urn:problem-type:dojo-payment-links:";

/// What is to be known about all problems, for `docs/problems.md` and the page at `/docs/problems`. In Markdown.
pub(super) const INTRODUCTION: &str = "\
Every response with a status of 400 or more is [`application/problem+json`](https://www.rfc-editor.org/rfc/rfc9457). Programs go by its
`type`, which is `urn:problem-type:dojo-payment-links:` and one of these. `detail` is for people, and its wording may change. More
types may be added, so treat one that you do not know by its status.

In short: if you got no response, a 429, 503 or 504, or a 409 with `Retry-After`, send the same request again with the same
`Idempotency-Key` (*the key* below). Retrying any other 4xx won't help.
";

/// A kind of problem: the end of its `type`, the statuses that it comes with, and what its receiver does about it.
pub(super) type Kind = (&'static str, &'static str, &'static str);

/// Every kind of problem, for the document and for `docs/problems.md`. A test holds it to what the code answers.
#[rustfmt::skip]
pub(super) const KINDS: [Kind; 32] = [
    ("malformed-json", "400", "Mend the body: it is no JSON."),
    ("body-incomplete", "400", "Send it again: the body did not arrive whole."),
    ("unauthenticated", "401", "Send `Authorization: Bearer dpl_…` with a key that is active."),
    ("bad-signature", "401", "For Dojo's webhooks: sign with a secret that the settings hold."),
    ("forbidden", "403", "Use a key with the scope that `detail` names."),
    ("not-found", "404", "Look at the address and the id. A link of an account that is not open to the key is not there either."),
    ("method-not-allowed", "405", "Use a method that `Allow` names."),
    ("request-in-progress", "409", "Send the same again after `Retry-After`: an earlier request with the same key is being worked on."),
    ("operation-in-progress", "409", "Send the same again after `Retry-After`: the outcome of another operation has to be known first."),
    ("refundable-amount-unclear", "409", "Nothing was done. Send the same again after `Retry-After`: other refunds are under way, and whether as much is left is not clear before their outcome is."),
    ("not-possible", "409", "Nothing was done. `detail` says what the payment allows instead."),
    ("not-created", "409", "Nothing was created. To have a link after all, ask again with a new key."),
    ("not-done", "409", "Nothing was done. To have it done after all, ask again with a new key."),
    ("outcome-unconfirmed", "409", "Nobody can tell by program. Do not simply ask again: an operator has to look at the payment in Dojo's portal and settle it."),
    ("body-too-large", "413", "Send less than 256 KiB."),
    ("unsupported-media-type", "415", "Send `Content-Type: application/json`."),
    ("invalid-request", "422", "Mend what `errors` names, all of it, and send it again."),
    ("idempotency-key-reused", "422", "Use a new key: this one came with another request before."),
    ("refused-by-dojo", "422, 409", "Nothing was done. `detail` and `errors` are Dojo's reasons; mend them, and use a new key. 409 is about the state of the payment."),
    ("rate-limited", "429", "Nothing was done. Send the same again after `Retry-After`, and fewer requests a second."),
    ("internal-error", "500", "Send the same again later, and report it with `requestId`."),
    ("dojo-key-refused", "502", "Nothing was done. For the operator: the account's key to Dojo is wrong or was revoked. Then send the same again."),
    ("dojo-misrouted", "502", "Nothing was done. For the operator: what answers at `DOJO_API_URL` is not Dojo's API. Then send the same again."),
    ("dojo-not-reached", "503", "Nothing was done. Send the same again after `Retry-After`."),
    ("database-unavailable", "503", "Send the same again after `Retry-After`."),
    ("not-kept", "503", "For Dojo's webhooks: send it again."),
    ("overloaded", "503", "Nothing was done. Send the same again after `Retry-After`."),
    ("timed-out", "503", "Send the same again, with the same key, for its outcome."),
    ("account-not-configured", "503", "For the operator: put the link's account back into the settings."),
    ("not-ready", "503", "For operators, of `/readyz` alone: `detail` says what is missing."),
    ("outcome-unknown", "504", "It may have been done. Send the same again after `Retry-After`, with the same key; never with another one."),
    ("error", "any other", "Something before the service's own rules refused it; the status says what."),
];

/// Every kind of problem as a table in Markdown.
pub(super) fn table() -> String {
    let rows = KINDS.map(|(slug, statuses, what)| format!("| `{slug}` | {statuses} | {what} |\n"));
    format!(
        "| type | status | what to do |\n| --- | --- | --- |\n{}",
        rows.concat()
    )
}

/// The description of `type`, with all that it may be.
pub(super) fn description() -> String {
    format!(
        "Tells the kinds of problems apart: `{TYPE}` and one of these. More may come.\n\n{}",
        table()
    )
}

/// The body of every answer with a status of 400 or more.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Problem {
    /// Tells the kinds of problems apart; see [`KINDS`].
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The HTTP status in words.
    pub(crate) title: String,
    /// The HTTP status.
    pub(crate) status: u16,
    /// What went wrong and what to do about it.
    pub(crate) detail: String,
    /// The path that was asked for.
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
        debug_assert!(
            KINDS.iter().any(|(known, ..)| *known == slug),
            "{slug} is not documented"
        );
        Self {
            kind: format!("{TYPE}{slug}"),
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
    pub(super) fn of_status(status: StatusCode) -> Self {
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
    #[response(status = 401, content_type = "application/problem+json", examples(("unauthenticated" = ())))]
    Unauthenticated(Problem),
    /// The API key lacks the scope that the call needs.
    #[response(status = 403, content_type = "application/problem+json", examples(("forbidden" = ())))]
    Forbidden(Problem),
    /// The client sends more requests a second than it may. Nothing was done. Repeat it after `Retry-After`.
    #[response(status = 429, content_type = "application/problem+json", examples(("rate-limited" = ())))]
    RateLimited(Problem),
    /// The service has a fault.
    #[response(status = 500, content_type = "application/problem+json", examples(("internal-error" = ())))]
    Fault(Problem),
    /// The database was not reached. Send it again after `Retry-After`.
    #[response(status = 503, content_type = "application/problem+json", examples(("database-unavailable" = ()), ("timed-out" = ())))]
    Unavailable(Problem),
}

/// There is no such link.
#[derive(IntoResponses)]
#[response(status = 404, content_type = "application/problem+json", examples(("not-found" = ())))]
#[expect(dead_code, reason = "describes what `Error` makes")]
pub(crate) struct NoSuchLink(Problem);

/// The query has faults; `errors` names each.
#[derive(IntoResponses)]
#[response(status = 422, content_type = "application/problem+json", examples(("invalid-request" = ())))]
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The texts in quotes of a piece of source.
    fn texts(source: &str) -> impl Iterator<Item = &str> {
        source.split('"').skip(1).step_by(2)
    }

    #[test]
    fn every_kind_that_there_is_is_documented_and_no_other() {
        let source = include_str!("error.rs");
        let slugs = source.split_once("fn slug(&self)").unwrap().1;
        let slugs = slugs.split_once("\n    }\n").unwrap().0;
        let mut made: BTreeSet<_> = texts(slugs).collect();
        assert!(made.len() > 20, "{made:?}");
        for status in 400..600 {
            let problem = Problem::of_status(StatusCode::from_u16(status).unwrap());
            let slug = problem.kind.strip_prefix(TYPE).unwrap();
            made.extend(KINDS.iter().map(|kind| kind.0).filter(|kind| *kind == slug));
        }
        // Of `/readyz`, the only one that is made elsewhere.
        assert!(include_str!("service.rs").contains("\"not-ready\""));
        made.insert("not-ready");
        let documented: BTreeSet<_> = KINDS.iter().map(|kind| kind.0).collect();
        assert_eq!(documented.len(), KINDS.len());
        assert_eq!(made, documented);
    }

    #[test]
    fn the_page_about_problems_has_the_table() {
        let page = include_str!("../../docs/problems.md");
        assert!(
            page.contains(INTRODUCTION),
            "docs/problems.md begins otherwise than the page at /docs/problems"
        );
        assert!(
            page.contains(&table()),
            "docs/problems.md is behind the code; it has to contain\n{}",
            table()
        );
    }
}
