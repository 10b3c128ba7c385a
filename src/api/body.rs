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

    /// Reads a body. If it fits the schema: what it says, and what `rules` find wrong with it. If not: every fault
    /// at once, those of the schema and of the rules.
    pub(crate) fn parse<T: DeserializeOwned>(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        rules: impl FnOnce(&Value) -> Vec<Fault>,
    ) -> Result<(T, Vec<Fault>), Error> {
        if !is_json(headers) {
            return Err(Error::NotJson);
        }
        // The parser's own words tell a place and a kind of fault, and quote nothing.
        let mut value: Value = serde_json::from_slice(body)
            .map_err(|error| Error::MalformedJson(error.to_string()))?;
        whole_numbers(&mut value);
        let mut faults = Vec::new();
        for error in self.validator.iter_errors(&value).take(MOST_FAULTS) {
            explain(&error, &mut faults);
        }
        nul_characters(&value, "", &mut faults);
        let broken = rules(&value);
        if faults.is_empty() {
            // What a schema lets through and a type does not would be a gap between the two.
            let parsed = serde_json::from_value(value)
                .map_err(|_| Error::Invalid(vec![Fault::new("", "has the wrong form")]))?;
            return Ok((parsed, broken));
        }
        faults.extend(broken);
        // One fault a place is what a caller can mend; `null` where a word has to be is two to a schema.
        faults.sort_by(|a, b| a.pointer.cmp(&b.pointer));
        faults.dedup_by(|a, b| a.pointer == b.pointer);
        faults.truncate(MOST_FAULTS);
        Err(Error::Invalid(faults))
    }
}

/// How many faults are told at once. A body with more is not one that somebody mends by reading them.
const MOST_FAULTS: usize = 100;

/// Writes `1.0` as `1`: both are the same integer to a schema, and not to a type.
fn whole_numbers(value: &mut Value) {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) => {
            let whole = number
                .as_f64()
                .filter(|n| number.is_f64() && n.fract() == 0.0 && n.abs() < EXACT);
            #[expect(
                clippy::cast_possible_truncation,
                reason = "it is whole and small enough"
            )]
            if let Some(whole) = whole {
                *value = Value::from(whole as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(fields) => fields.values_mut().for_each(whole_numbers),
        _ => {}
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
    let below = |name: &str| Fault::below(&at, name);
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
        Kind::MinLength { limit: 1 } | Kind::MinItems { limit: 1 } => {
            "must not be empty".to_owned()
        }
        Kind::MinLength { limit } => format!("must have at least {limit} characters"),
        Kind::MaxLength { limit } => format!("must have at most {limit} characters"),
        Kind::MinItems { limit } => format!("must have at least {limit} entries"),
        Kind::MaxItems { limit } => format!("must have at most {limit} entries"),
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
                    &Fault::below(at, &name.replace('\0', "\u{fffd}")),
                    faults,
                );
            }
        }
        _ => {}
    }
}
