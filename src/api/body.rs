//! Request bodies: read, checked against their schema, and turned into their type.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header},
};
use jsonschema::{ValidationError, Validator, error::ValidationErrorKind};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Error;
use crate::payment_link::Fault;

/// How large the body of a request may be, in bytes. A link with hundreds of item lines takes a tenth.
pub(crate) const LIMIT: usize = 256 * 1024;

/// A body as it came, no larger than [`LIMIT`].
pub(crate) struct Raw(pub(crate) Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        Bytes::from_request(request, state)
            .await
            .map(Self)
            .map_err(|error| too_large(&error))
    }
}

fn too_large(rejection: &BytesRejection) -> Error {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        Error::BodyTooLarge(LIMIT)
    } else {
        Error::BodyIncomplete
    }
}

/// Checks bodies of one type against its schema in the OpenAPI document, so that what is documented is what
/// is enforced.
pub(crate) struct Schema {
    validator: Validator,
}

impl Schema {
    /// The schema called `name` in the OpenAPI document.
    pub(crate) fn new(openapi: &Value, name: &str) -> Result<Self, ValidationError<'static>> {
        let schema = json!({
            "$ref": format!("#/components/schemas/{name}"),
            "components": openapi["components"],
        });
        let validator = jsonschema::draft202012::options()
            .should_validate_formats(true)
            .build(&schema)?;
        Ok(Self { validator })
    }

    /// Reads a body: every fault of it at once, those of the schema and those that `rules` finds.
    pub(crate) fn parse<T: DeserializeOwned>(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        rules: impl FnOnce(&Value) -> Vec<Fault>,
    ) -> Result<T, Error> {
        if !is_json(headers) {
            return Err(Error::NotJson);
        }
        // The parser's own words tell a place and a kind of fault, and quote nothing.
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| Error::MalformedJson(error.to_string()))?;
        let mut faults = Vec::new();
        for error in self.validator.iter_errors(&value) {
            explain(&error, &mut faults);
        }
        faults.extend(rules(&value));
        nul_characters(&value, "", &mut faults);
        if !faults.is_empty() {
            return Err(Error::Invalid(faults));
        }
        // What a schema lets through and a type does not: a number too large for its integer, say.
        serde_path_to_error::deserialize(value).map_err(|error| {
            let pointer = match error.path().to_string() {
                path if path == "." => String::new(),
                path => format!("/{}", path.replace('.', "/").replace(['[', ']'], "")),
            };
            Error::Invalid(vec![Fault::new(pointer, error.into_inner().to_string())])
        })
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// Says what is wrong in words for callers, and without the value: what customers typed stays out of
/// answers that may be logged.
fn explain(error: &ValidationError<'_>, faults: &mut Vec<Fault>) {
    use ValidationErrorKind as Kind;

    let at = error.instance_path().to_string();
    let below = |name: &str| format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
    let detail = match error.kind() {
        Kind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            faults.push(Fault::new(below(name), "is required"));
            return;
        }
        Kind::AdditionalProperties { unexpected } => {
            faults.extend(
                unexpected
                    .iter()
                    .map(|name| Fault::new(below(name), "is no field of this request")),
            );
            return;
        }
        // An optional object is "null or the object": the object's faults are what the caller wants.
        Kind::OneOfNotValid { context } | Kind::AnyOf { context } => {
            let closest = context
                .iter()
                .filter(|branch| !branch.iter().any(|fault| is_null_branch(fault, &at)))
                .min_by_key(|branch| branch.len());
            if let Some(branch) = closest {
                for fault in branch {
                    explain(fault, faults);
                }
                return;
            }
            "has the wrong form".to_owned()
        }
        Kind::Type { kind } => format!("must be {}", types(kind)),
        Kind::Enum { options } => format!("must be one of {}", words(options)),
        Kind::Constant { expected_value } => format!("must be {expected_value}"),
        Kind::MinLength { limit: 1 } => "must not be empty".to_owned(),
        Kind::MinLength { limit } => format!("must have at least {limit} characters"),
        Kind::MaxLength { limit } => format!("must have at most {limit} characters"),
        Kind::Minimum { limit } => format!("must be at least {limit}"),
        Kind::Maximum { limit } => format!("must be at most {limit}"),
        Kind::Format { format } => match format.as_str() {
            "date-time" => {
                "must be a time as in RFC 3339, for example 2026-01-31T12:00:00Z".to_owned()
            }
            "uri" => "must be an absolute URI".to_owned(),
            other => format!("must be a valid {other}"),
        },
        other => format!("breaks the rule {:?} of the schema", other.keyword()),
    };
    faults.push(Fault::new(at, detail));
}

fn is_null_branch(fault: &ValidationError<'_>, at: &str) -> bool {
    use jsonschema::{JsonType, error::TypeKind};
    fault.instance_path().to_string() == at
        && matches!(
            fault.kind(),
            ValidationErrorKind::Type {
                kind: TypeKind::Single(JsonType::Null)
            }
        )
}

fn types(kind: &jsonschema::error::TypeKind) -> String {
    use jsonschema::error::TypeKind;
    match kind {
        TypeKind::Single(one) => format!("of type {one}"),
        TypeKind::Multiple(several) => {
            let names: Vec<_> = several.iter().map(|one| one.to_string()).collect();
            format!("of type {}", names.join(" or "))
        }
    }
}

fn words(options: &Value) -> String {
    let options = options.as_array().map_or(&[][..], Vec::as_slice);
    let words: Vec<_> = options
        .iter()
        .map(|option| {
            option
                .as_str()
                .map_or_else(|| option.to_string(), str::to_owned)
        })
        .collect();
    words.join(", ")
}

/// Postgres cannot hold the NUL character in text, and nobody's reference has one.
fn nul_characters(value: &Value, at: &str, faults: &mut Vec<Fault>) {
    match value {
        Value::String(text) if text.contains('\0') => {
            faults.push(Fault::new(at, "must not contain the NUL character"));
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                nul_characters(item, &format!("{at}/{index}"), faults);
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                if name.contains('\0') {
                    faults.push(Fault::new(
                        at,
                        "must not have a field with the NUL character in its name",
                    ));
                }
                nul_characters(
                    value,
                    &format!("{at}/{}", name.replace('\0', "\u{fffd}")),
                    faults,
                );
            }
        }
        _ => {}
    }
}
