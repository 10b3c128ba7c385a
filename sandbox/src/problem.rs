//! Error responses in the format of Dojo's API.

use std::collections::BTreeMap;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::ids;

/// Messages about invalid fields, by field. Field names are in .NET's spelling, as Dojo writes them:
/// `Amount.CurrencyCode`, `ItemLines[0].Name`.
pub(crate) type FieldErrors = BTreeMap<String, Vec<String>>;

/// An RFC 7807 problem, which is also the HTTP response.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: String,
    errors: FieldErrors,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
            errors: FieldErrors::new(),
        }
    }

    /// Invalid input, with all errors at once.
    pub(crate) fn invalid(errors: FieldErrors) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            detail: "See the errors property for details.".to_owned(),
            errors,
        }
    }

    /// Invalid input with a single error.
    pub(crate) fn invalid_field(field: &str, message: impl Into<String>) -> Self {
        Self::invalid(FieldErrors::from([(
            field.to_owned(),
            vec![message.into()],
        )]))
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    pub(crate) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    fn title(&self) -> &'static str {
        if self.errors.is_empty() {
            self.status.canonical_reason().unwrap_or("Error")
        } else {
            "One or more validation errors occurred."
        }
    }
}

/// The result of a handler that returns JSON.
pub(crate) type JsonResult = Result<Json<Value>, Problem>;

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "type": rfc_section(self.status),
            "title": self.title(),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "traceId": format!("00-{}-{}-00", ids::hex(32), ids::hex(16)),
        });
        if !self.errors.is_empty() {
            body["errors"] = json!(self.errors);
        }
        (self.status, Json(body)).into_response()
    }
}

/// The section of RFC 7231, or of a related RFC, that defines the status: what .NET services put in `type`.
fn rfc_section(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "https://tools.ietf.org/html/rfc7231#section-6.5.1",
        401 => "https://tools.ietf.org/html/rfc7235#section-3.1",
        403 => "https://tools.ietf.org/html/rfc7231#section-6.5.3",
        404 => "https://tools.ietf.org/html/rfc7231#section-6.5.4",
        405 => "https://tools.ietf.org/html/rfc7231#section-6.5.5",
        409 => "https://tools.ietf.org/html/rfc7231#section-6.5.8",
        413 => "https://tools.ietf.org/html/rfc7231#section-6.5.11",
        429 => "https://tools.ietf.org/html/rfc6585#section-4",
        500 => "https://tools.ietf.org/html/rfc7231#section-6.6.1",
        502 => "https://tools.ietf.org/html/rfc7231#section-6.6.3",
        503 => "https://tools.ietf.org/html/rfc7231#section-6.6.4",
        504 => "https://tools.ietf.org/html/rfc7231#section-6.6.5",
        _ => "about:blank",
    }
}
