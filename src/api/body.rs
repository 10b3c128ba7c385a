//! Request bodies: read them, check them against their schema, and parse them.

use std::{collections::HashMap, sync::OnceLock};

use axum::{
    body::Bytes,
    extract::{FromRequest, Request, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header},
};
use jsonschema::{ValidationError, Validator, error::ValidationErrorKind};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::error::Error;
use crate::payment_link::Fault;

/// The maximum size of a request's body in bytes. A link with hundreds of item lines needs a tenth of it.
pub(crate) const LIMIT: usize = 256 * 1024;

/// The bytes of a body, at most [`LIMIT`].
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

/// Returns the OpenAPI document of the whole API. The handlers take this function, because the document is made from them.
pub(crate) type Document = fn() -> &'static Value;

/// The names of the schemas that the routes of an OpenAPI document declare as their request bodies.
pub(super) fn request_bodies(document: &Value) -> impl Iterator<Item = &str> {
    let paths = document["paths"].as_object().into_iter().flatten();
    let routes = paths.flat_map(|(_, path)| path.as_object().into_iter().flatten());
    routes.filter_map(|(_, route)| {
        let body = &route["requestBody"]["content"]["application/json"];
        body["schema"]["$ref"].as_str()?.rsplit('/').next()
    })
}

/// The schemas of the OpenAPI document's request bodies. The service enforces exactly what it documents.
pub(super) struct RequestSchemas {
    document: Document,
    /// By the name of the schema. Each is made for its first body, so that the service starts quickly.
    validators: OnceLock<HashMap<&'static str, OnceLock<Validator>>>,
}

impl RequestSchemas {
    pub(super) fn of(document: Document) -> Self {
        Self {
            document,
            validators: OnceLock::new(),
        }
    }

    fn validator(&self, name: &str) -> &Validator {
        let document = (self.document)();
        let validators = self.validators.get_or_init(|| {
            request_bodies(document)
                .map(|name| (name, OnceLock::new()))
                .collect()
        });
        validators
            .get(name)
            .expect("a route that reads this type declares it as its request body")
            .get_or_init(|| {
                let schema = json!({
                    "$ref": format!("#/components/schemas/{name}"),
                    "components": {"schemas": reachable(&document["components"]["schemas"], name)},
                });
                jsonschema::draft202012::options()
                    .should_validate_formats(true)
                    .build(&schema)
                    .expect("the document is generated, and a test builds it")
            })
    }

    /// Parses a body of the type `T`. If it matches the type's schema, returns it with the faults that `rules` finds.
    /// If not, the error contains every fault, those of the schema and those of the rules.
    pub(super) fn parse<T: ToSchema + DeserializeOwned>(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        rules: impl FnOnce(&Value) -> Vec<Fault>,
    ) -> Result<(T, Vec<Fault>), Error> {
        if !is_json(headers) {
            return Err(Error::NotJson);
        }
        // The parser's message contains the position and the kind of error, and nothing of the body.
        let mut value: Value = serde_json::from_slice(body)
            .map_err(|error| Error::MalformedJson(error.to_string()))?;
        whole_numbers(&mut value);
        let mut faults = Vec::new();
        let validator = self.validator(T::name().as_ref());
        for error in validator.iter_errors(&value).take(MAX_FAULTS) {
            explain(&error, &mut faults);
        }
        nul_characters(&value, "", &mut faults);
        let broken = rules(&value);
        if faults.is_empty() {
            // This fails only if the schema allows something that the type doesn't.
            let parsed = serde_json::from_value(value)
                .map_err(|_| Error::Invalid(vec![Fault::new("", "has the wrong form")]))?;
            return Ok((parsed, broken));
        }
        faults.extend(broken);
        // One fault per place is enough to fix it. A schema reports two for a `null` where a string must be.
        faults.sort_by(|a, b| a.pointer.cmp(&b.pointer));
        faults.dedup_by(|a, b| a.pointer == b.pointer);
        faults.truncate(MAX_FAULTS);
        Err(Error::Invalid(faults))
    }
}

/// The schema of this name and those that it refers to. A validator keeps a copy of all schemas that it is given.
fn reachable(schemas: &Value, name: &str) -> Map<String, Value> {
    let mut found = Map::new();
    let mut names = vec![name];
    while let Some(name) = names.pop() {
        if !found.contains_key(name) {
            referenced(&schemas[name], &mut names);
            found.insert(name.to_owned(), schemas[name].clone());
        }
    }
    found
}

/// Adds the names of the schemas that this one refers to.
fn referenced<'a>(schema: &'a Value, names: &mut Vec<&'a str>) {
    match schema {
        Value::Object(members) => {
            let reference = members.get("$ref").and_then(Value::as_str);
            names.extend(reference.and_then(|at| at.rsplit('/').next()));
            for member in members.values() {
                referenced(member, names);
            }
        }
        Value::Array(items) => {
            for item in items {
                referenced(item, names);
            }
        }
        _ => {}
    }
}

/// How many faults a response lists at most. Nobody fixes a body with more by reading them.
const MAX_FAULTS: usize = 100;

/// Replaces `1.0` by `1`: a schema treats both as the same integer, and serde doesn't.
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

/// Describes an error to the caller without repeating the value: callers may log responses, and what customers typed
/// must not end up in logs.
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
                    .map(|name| Fault::new(below(name), "is not a known field")),
            );
            return;
        }
        // The schema of an optional object is "null or the object". Only the faults of the object help the caller.
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
            "date-time" => "must be an RFC 3339 time, for example 2026-01-31T12:00:00Z".to_owned(),
            "uri" => "must be an absolute URI".to_owned(),
            other => format!("must be a valid {other}"),
        },
        other => format!("violates the schema's {:?} rule", other.keyword()),
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

/// Postgres can't store the NUL character in text, and no legitimate value contains one.
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
                        "must not contain a field with the NUL character in its name",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_of_every_request_body_is_valid() {
        let document = crate::api::document;
        let schemas = RequestSchemas::of(document);
        let names: Vec<_> = request_bodies(document()).collect();
        assert!(names.contains(&"NewPaymentLink"), "{names:?}");
        for name in names {
            schemas.validator(name);
        }
    }
}
