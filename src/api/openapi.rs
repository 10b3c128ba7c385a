//! The OpenAPI document, generated from the handlers and types that it describes.

use serde_json::{Value, json};
use utoipa::{
    Modify, OpenApi, ToSchema,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};

use super::{
    body::request_bodies,
    client_types, examples,
    metadata_entry::MetadataEntry,
    performed_operation::PerformedOperation,
    problem::Problem,
    problem_type::{PREFIX, ProblemType},
    sort::Sort,
};
use crate::{
    callbacks::{
        endpoint::PingEvent,
        signature::{ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER},
    },
    payment_link::{NewPaymentLink, feed::Happening, timeline},
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Dojo payment links",
        description = "Creates payment links at Dojo and keeps track of their payments.\n\n\
            Amounts are in minor units (1000 is 10.00 GBP). Times are RFC 3339 in UTC. Error responses are \
            `application/problem+json` (RFC 9457) and list everything that is wrong with a request at once. Every \
            response includes `x-request-id`.\n\n\
            Hand over goods only when a link is `Captured` **and** `confirmed` is `true`. A webhook changes `status` \
            immediately; `confirmed` says whether Dojo, called with the account's Dojo API key, reports the same \
            status. Amounts, captures and payment details always come from Dojo's responses, never from webhooks.\n\n\
            New members, new values of enums and new types of problems may be added at any time, so ignore what you don't \
            know. Anything else changes only with a new path. The old path is then marked as deprecated here, and its \
            responses have the headers `Deprecation` (RFC 9745) and `Sunset` (RFC 8594) for at least six months. Nothing is \
            deprecated now.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    tags(
        (name = "Payment links", description = "Create payment links, and read their state and history."),
        (name = "Operations", description = "Capture, refund, reverse and cancel payments."),
        (name = "Sharing", description = "Give a link to a customer."),
        (name = "Messages", description = "Send a link to a customer."),
        (name = "Events", description = "Learn of everything that happens to the links, in order."),
        (name = "Callbacks", description = "Be called when something happens. `docs/guide.md` shows receivers."),
        (name = "Books", description = "Every capture, refund and reversal, and their daily totals."),
        (name = "Webhooks", description = "Dojo sends its webhooks here."),
        (name = "Service", description = "Probes, metrics, and this document."),
    ),
    servers((url = "http://localhost:8080", description = "A service on this machine, as the demo starts it.")),
    components(schemas(
        Problem, PerformedOperation, MetadataEntry, Sort,
        timeline::CreatedDetail<'_>, timeline::ResponseLostDetail<'_>, timeline::WebhookDetail<'_>,
        timeline::ReconciledDetail, timeline::Change, timeline::ConflictDetail<'_>, timeline::MismatchDetail<'_>,
        timeline::SurplusDetail<'_>, timeline::OperationDetail, timeline::RenewalDetail,
        timeline::MessageDetail<'_>, timeline::ReminderDueDetail<'_>, PingEvent,
    )),
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
                "Every call below `/v1` needs an API key: `Authorization: Bearer dpl_…`. Each key has scopes, which are the \
                 calls that it may make. `dojo-payment-links api-keys create` creates a key.",
            ))
            .build();
        openapi
            .components
            .get_or_insert_default()
            .add_security_scheme("apiKey", SecurityScheme::Http(scheme));
    }
}

/// The document without any route.
pub(super) fn header() -> utoipa::openapi::OpenApi {
    Header::openapi()
}

/// Completes a document that has its routes: with the description of problem types, strict request schemas, and examples.
pub(super) fn complete(document: utoipa::openapi::OpenApi) -> Value {
    let mut document = serde_json::to_value(document).expect("plain structs become JSON");
    let bodies: Vec<_> = request_bodies(&document).map(str::to_owned).collect();
    merge_all_of(&mut document["components"]["schemas"]);
    client_types::shape(&mut document);
    let schemas = &mut document["components"]["schemas"];
    schemas["Problem"]["properties"]["type"]["description"] = json!(format!(
        "The type of problem: `{PREFIX}` followed by one of the types below. New types may be added.\n\n{}",
        ProblemType::table()
    ));
    for name in bodies {
        close(schemas, &name);
    }
    examples::complete(&mut document);
    // Neither text nor an object: tools read YAML as one or the other.
    document["paths"]["/openapi.yaml"]["get"]["responses"]["200"]["content"]["application/yaml"]
        ["schema"] = json!({});
    list_event_types(&mut document);
    describe_callbacks(&mut document);
    declare_headers(&mut document);
    name_scopes(&mut document);
    // Not part of OpenAPI, but many renderers know it.
    document["x-tagGroups"] = json!([
        {"name": "For callers", "tags": ["Payment links", "Operations", "Sharing", "Messages", "Events", "Callbacks", "Books"]},
        {"name": "For Dojo and for operators", "tags": ["Webhooks", "Service"]},
    ]);
    document
}

/// Lists the types of events where they can be chosen.
fn list_event_types(document: &mut Value) {
    let parameters = document["paths"]["/v1/events"]["get"]["parameters"].as_array_mut();
    for parameter in parameters.into_iter().flatten() {
        if parameter["name"] == "types" {
            parameter["schema"]["items"] = json!({"type": "string", "enum": Happening::TYPES});
        }
    }
    for name in ["NewCallbackEndpoint", "ChangedCallbackEndpoint"] {
        let types = &mut document["components"]["schemas"][name]["properties"]["types"];
        types["items"] = json!({"type": "string", "enum": Happening::TYPES});
    }
}

/// Adds the callbacks that the service sends.
fn describe_callbacks(document: &mut Value) {
    let rotation = "/v1/callback-endpoints/{id}/rotate-secret";
    document["paths"][rotation]["post"]["requestBody"]["required"] = json!(false);
    let header = |name: &str, description: &str, example: &str| {
        json!({
            "name": name, "in": "header", "required": true, "description": description, "example": example,
            "schema": {"type": "string"},
        })
    };
    let headers = json!([
        header(
            ID_HEADER,
            "The event's id, the same in every attempt.",
            "evt_01m81mvvmbeqn9q2m6p0s6z8kc"
        ),
        header(
            TIMESTAMP_HEADER,
            "When the attempt began, in seconds since 1970.",
            "1795351900"
        ),
        header(
            SIGNATURE_HEADER,
            "Signatures of the id, the time and the body, separated by spaces. During a rotation, there is one by each secret.",
            "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
        ),
    ]);
    let callback = |operation: &str,
                    summary: &str,
                    description: &str,
                    schema: &str,
                    example: &Value| {
        json!({"post": {
            "operationId": operation,
            "tags": ["Callbacks"],
            "summary": summary,
            "description": description,
            "security": [],
            "parameters": headers,
            "requestBody": {"required": true, "content": {"application/json": {
                "schema": {"$ref": format!("#/components/schemas/{schema}")},
                "example": example,
            }}},
            "responses": {
                "2XX": {"description": "The callback was processed. The body is ignored."},
                "410": {"description": "Pauses the endpoint."},
                "default": {"description": "The callback is sent again later, not before `Retry-After`."},
            },
        }})
    };
    document["webhooks"] = json!({
        "event": callback(
            "receiveEvent",
            "Receives an event.",
            "Verify the signature as [Standard Webhooks](https://www.standardwebhooks.com) specifies before you read the \
             body. An event may arrive more than once, with the same `webhook-id`. Events about one link arrive in the \
             order in which they happened. Ignore types that you don't know.",
            "Event",
            &examples::events()["data"][0],
        ),
        "ping": callback(
            "receivePing",
            "Receives a ping.",
            "Sent on request to test an endpoint. It is signed like an event.",
            "Ping",
            &json!({
                "id": "evt_01m81mvvmbeqn9q2m6p0s6z8kc", "type": "ping", "occurredAt": "2026-11-22T12:51:40.117204Z",
            }),
        ),
    });
}

/// Declares the headers of responses.
fn declare_headers(document: &mut Value) {
    document["components"]["headers"] = json!({
        "x-request-id": {
            "description": "The id of the request: the one that the request sent, or a new one.",
            "schema": {"type": "string"},
        },
        "Retry-After": {
            "description": "In how many seconds to send the same request again, with the same `Idempotency-Key`. If it is \
                            absent, the problem's type says whether repeating helps.",
            "schema": {"type": "integer", "minimum": 1},
        },
        "Location": {
            "description": "The path of what was created.",
            "schema": {"type": "string"},
        },
        "Idempotent-Replayed": {
            "description": "`true` if an earlier request with the same key had this outcome. Absent otherwise.",
            "schema": {"type": "string", "enum": ["true"]},
        },
        "Preference-Applied": {
            "description": "The `wait` of `Prefer` that was honored.",
            "schema": {"type": "string"},
        },
        "Operation-Id": {
            "description": "The id of the operation, `op_…`.",
            "schema": {"type": "string"},
        },
        "ETag": {
            "description": "Identifies this state of the link, for `If-None-Match`.",
            "schema": {"type": "string"},
        },
        "WWW-Authenticate": {
            "description": "How to authenticate.",
            "schema": {"type": "string"},
        },
    });
    for (path, method, mut call) in calls(document) {
        let sends_key = call["parameters"].as_array().is_some_and(|parameters| {
            parameters
                .iter()
                .any(|parameter| parameter["name"] == "Idempotency-Key")
        });
        for (status, response) in call["responses"].as_object_mut().into_iter().flatten() {
            let mut names = vec!["x-request-id"];
            if matches!(status.as_str(), "409" | "429" | "503" | "504") {
                names.push("Retry-After");
            }
            if status == "401" || status == "403" {
                names.push("WWW-Authenticate");
            }
            if sends_key
                && matches!(
                    status.as_str(),
                    "200" | "201" | "202" | "409" | "422" | "502" | "503"
                )
            {
                names.push("Idempotent-Replayed");
                names.push("Preference-Applied");
            }
            if status == "201" {
                names.push("Location");
            }
            if sends_key && matches!(status.as_str(), "200" | "202") {
                names.push("Operation-Id");
            }
            if path == "/v1/payment-links/{id}"
                && method == "get"
                && matches!(status.as_str(), "200" | "304")
            {
                names.push("ETag");
            }
            for name in names {
                response["headers"][name] = json!({"$ref": format!("#/components/headers/{name}")});
            }
        }
        document["paths"][&path][&method] = call;
    }
}

/// Says in each call's description which scope it requires.
fn name_scopes(document: &mut Value) {
    for (path, method, mut call) in calls(document) {
        // How utoipa says that a call needs no API key means to some generators that it needs an unknown one.
        if call["security"] == json!([{}]) {
            document["paths"][&path][&method]["security"] = json!([]);
        }
        if let Some(scope) = call["security"][0]["apiKey"][0].as_str() {
            let text = call["description"].as_str().unwrap_or_default();
            let text = format!("{text}\n\nRequires an API key with the scope `{scope}`.")
                .trim_start()
                .to_owned();
            call["description"] = json!(text);
            document["paths"][&path][&method] = call;
        }
    }
}

/// Every call in the document, with its path and method.
fn calls(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().into_iter().flatten();
    paths
        .flat_map(|(path, calls)| {
            let calls = calls.as_object().into_iter().flatten();
            calls.map(move |(method, call)| (path.clone(), method.clone(), call.clone()))
        })
        .collect()
}

/// Makes a request's schema, and all schemas that it refers to, reject unknown fields. The Rust types don't reject them,
/// because they also read what a newer version has stored.
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

/// Merges the schema of [`NewPaymentLink`], which is composed of two, into one object. Only a single object can reject
/// unknown fields: `unevaluatedProperties`, the keyword for composed schemas, would also reject each field of a part that
/// has any fault.
fn merge_all_of(schemas: &mut Value) {
    let terms = schemas["Terms"].clone();
    let request = &mut schemas[NewPaymentLink::name().as_ref()];
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

/// The document as YAML, as it is in `openapi.yaml`.
#[must_use]
pub(super) fn to_yaml(document: &Value) -> String {
    yaml_serde::to_string(document).expect("JSON is YAML")
}
