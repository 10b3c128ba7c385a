//! The OpenAPI document, made from the handlers and types that it describes.

use serde_json::{Value, json};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};

use super::{
    documented, examples, operations,
    problem::{self, Problem},
};
use crate::payment_link::NewPaymentLink;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Dojo payment links",
        description = "Makes payment links at Dojo and tells what became of them.\n\n\
            Money is in minor units (1000 is 10.00 GBP), times are RFC 3339 in UTC. Every error is \
            `application/problem+json` (RFC 9457) and names each fault of a request at once. Every answer \
            carries `x-request-id`.\n\n\
            Hand over goods only when a link is `Captured` **and** `confirmed` is `true`. A webhook moves `status` at \
            once; `confirmed` says whether Dojo's own answer to this service's key agrees. Amounts, captures and \
            payment details come only from Dojo's answers.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    tags(
        (name = "Payment links", description = "Ask for a link, and read what became of it."),
        (name = "Operations", description = "Capture, refund, reverse and cancel payments."),
        (name = "Webhooks", description = "Dojo sends its webhooks here."),
        (name = "Service", description = "Probes, metrics, and this document."),
    ),
    components(schemas(Problem)),
    modifiers(&ApiKeyScheme),
    security(("apiKey" = [])),
)]
struct Header;

struct ApiKeyScheme;

impl Modify for ApiKeyScheme {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "An API key, `dpl_…`, made by `dojo-payment-links api-keys create`.",
            ))
            .build();
        openapi
            .components
            .get_or_insert_default()
            .add_security_scheme("apiKey", SecurityScheme::Http(scheme));
    }
}

/// The document's head, without any route.
pub(super) fn header() -> utoipa::openapi::OpenApi {
    Header::openapi()
}

/// The whole document.
#[expect(
    clippy::missing_panics_doc,
    reason = "plain structs become JSON, and JSON is YAML"
)]
#[must_use]
pub fn document() -> Value {
    let document = documented().into_openapi();
    let mut document = serde_json::to_value(document).expect("plain structs become JSON");
    let schemas = &mut document["components"]["schemas"];
    merge_all_of(schemas);
    schemas["Problem"]["properties"]["type"]["description"] = json!(problem::description());
    close(schemas, NewPaymentLink::SCHEMA_NAME);
    for name in operations::BODIES {
        close(schemas, name);
    }
    examples::complete(&mut document);
    // Whom each tag is for. Not part of OpenAPI, but known to many renderers.
    document["x-tagGroups"] = json!([
        {"name": "For callers", "tags": ["Payment links", "Operations"]},
        {"name": "For Dojo and for operators", "tags": ["Webhooks", "Service"]},
    ]);
    document
}

/// Has a request's schema, and all that it refers to, refuse unknown fields. The types themselves do not: they also
/// read what a newer version has stored.
fn close(schemas: &mut Value, name: &str) {
    let schema = &mut schemas[name];
    if schema["type"] != "object" || schema.get("additionalProperties").is_some() {
        return;
    }
    schema["additionalProperties"] = json!(false);
    let mut below = Vec::new();
    references(schema, &mut below);
    for name in below {
        close(schemas, &name);
    }
}

/// The names of the schemas that this one refers to.
fn references(schema: &Value, found: &mut Vec<String>) {
    match schema {
        Value::Object(fields) => {
            let name = fields
                .get("$ref")
                .and_then(Value::as_str)
                .and_then(|at| at.rsplit('/').next());
            found.extend(name.map(str::to_owned));
            fields.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

/// Makes one object of the request, which is composed of two: only a whole can refuse unknown fields, and
/// `unevaluatedProperties`, the keyword for composed schemas, would also refuse each field of a part that
/// has any fault.
fn merge_all_of(schemas: &mut Value) {
    let terms = schemas["Terms"].clone();
    let request = &mut schemas[NewPaymentLink::SCHEMA_NAME];
    let mut whole = request["allOf"]
        .as_array_mut()
        .and_then(Vec::pop)
        .unwrap_or_default();
    for (name, schema) in terms["properties"].as_object().into_iter().flatten() {
        whole["properties"][name] = schema.clone();
    }
    if let (Some(required), Some(more)) = (
        whole["required"].as_array_mut(),
        terms["required"].as_array(),
    ) {
        required.extend_from_slice(more);
    }
    whole["description"] = request["description"].clone();
    *request = whole;
}

/// The document as YAML, as it is committed in `openapi.yaml`.
#[expect(
    clippy::missing_panics_doc,
    reason = "plain structs become JSON, and JSON is YAML"
)]
#[must_use]
pub fn to_yaml(document: &Value) -> String {
    yaml_serde::to_string(document).expect("JSON is YAML")
}
