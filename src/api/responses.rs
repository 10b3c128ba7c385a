//! Error responses that several routes have in common, for the OpenAPI document.

use utoipa::IntoResponses;

use super::problem::Problem;

/// The error responses of every route that requires an API key.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes the responses that `Error` creates")]
pub(super) enum Guarded {
    /// The API key is missing or invalid.
    #[response(status = 401, content_type = "application/problem+json", examples(("unauthenticated" = ())))]
    Unauthenticated(Problem),
    /// The API key lacks the required scope.
    #[response(status = 403, content_type = "application/problem+json", examples(("forbidden" = ())))]
    Forbidden(Problem),
    /// The client exceeded its rate limit. Nothing was done. Retry after `Retry-After`.
    #[response(status = 429, content_type = "application/problem+json", examples(("rate-limited" = ())))]
    RateLimited(Problem),
    /// An internal error occurred.
    #[response(status = 500, content_type = "application/problem+json", examples(("internal-error" = ())))]
    Internal(Problem),
    /// The database could not be reached. Retry after `Retry-After`.
    #[response(status = 503, content_type = "application/problem+json", examples(("database-unavailable" = ()), ("timed-out" = ())))]
    Unavailable(Problem),
}

/// The error responses of every route that reads a body.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes the responses that `Error` creates")]
pub(super) enum BadBody {
    /// The body is not valid JSON, or was cut off.
    #[response(status = 400, content_type = "application/problem+json", examples(("malformed-json" = ()), ("body-incomplete" = ())))]
    Malformed(Problem),
    /// The body is larger than 256 KiB.
    #[response(status = 413, content_type = "application/problem+json", examples(("body-too-large" = ())))]
    TooLarge(Problem),
    /// The content type is not `application/json`.
    #[response(status = 415, content_type = "application/problem+json", examples(("unsupported-media-type" = ())))]
    NotJson(Problem),
}

/// There is no such payment link.
#[derive(IntoResponses)]
#[response(status = 404, content_type = "application/problem+json", examples(("not-found" = ())))]
#[expect(dead_code, reason = "describes the response that `Error` creates")]
pub(super) struct NoSuchLink(Problem);

/// There is no such operation.
#[derive(IntoResponses)]
#[response(status = 404, content_type = "application/problem+json", examples(("not-found" = ())))]
#[expect(dead_code, reason = "describes the response that `Error` creates")]
pub(super) struct NoSuchOperation(Problem);

/// There is no such payment link or message.
#[derive(IntoResponses)]
#[response(status = 404, content_type = "application/problem+json", examples(("not-found" = ())))]
#[expect(dead_code, reason = "describes the response that `Error` creates")]
pub(super) struct NoSuchMessage(Problem);

/// The query is invalid. `errors` lists everything that is wrong.
#[derive(IntoResponses)]
#[response(status = 422, content_type = "application/problem+json", examples(("invalid-request" = ())))]
#[expect(dead_code, reason = "describes the response that `Error` creates")]
pub(super) struct InvalidQuery(Problem);
