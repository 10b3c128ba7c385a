//! The validator: what in a request or a response violates the document.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use jsonschema::error::ValidationErrorKind;
use jsonschema::{ValidationError, Validator};
use serde_json::{Value, json};

use crate::exceptions;
use crate::schema::{self, array};

/// An OpenAPI 3.0 document.
#[derive(Debug)]
pub struct Document {
    /// The API version that the document describes, such as `2026-02-27`.
    version: String,
    components: Value,
    operations: Vec<Operation>,
    /// Compiled schemas, by their text.
    validators: Mutex<HashMap<String, Arc<Validator>>>,
}

#[derive(Debug)]
struct Operation {
    method: String,
    /// `/payment-intents/{paymentIntentId}`
    path: String,
    parameters: Vec<Value>,
    request_body: Value,
    responses: Value,
}

impl Document {
    /// Reads a document in JSON.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let document = serde_json::from_slice(&std::fs::read(path)?)?;
        Ok(Self::new(document))
    }

    /// The document that `DOJO_OPENAPI` names, or `None` if the variable isn't set. Each process reads it only once.
    pub fn from_env() -> io::Result<Option<Arc<Self>>> {
        static CACHE: Mutex<Option<Arc<Document>>> = Mutex::new(None);
        let Some(path) = std::env::var_os("DOJO_OPENAPI").filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        let mut cached = lock(&CACHE);
        if cached.is_none() {
            *cached = Some(Arc::new(Self::open(path)?));
        }
        Ok(cached.clone())
    }

    /// Prepares a document for validation.
    #[must_use]
    pub fn new(mut document: Value) -> Self {
        schema::replace_nullable(&mut document);
        let version = document["info"]["version"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let mut components = document["components"].take();
        schema::merge_inherited(&mut components["schemas"]);
        exceptions::add_members_of_examples(&mut components["schemas"]);
        exceptions::allow_plain_http_webhooks(&mut components["schemas"]);
        let mut operations = Vec::new();
        for (path, item) in document["paths"].as_object().into_iter().flatten() {
            let shared = array(&item["parameters"]);
            for (method, operation) in item.as_object().into_iter().flatten() {
                if method == "parameters" {
                    continue;
                }
                let parameters = shared.iter().chain(array(&operation["parameters"]));
                operations.push(Operation {
                    method: method.to_uppercase(),
                    path: path.clone(),
                    parameters: parameters
                        .map(|parameter| resolved(parameter, &components))
                        .collect(),
                    request_body: operation["requestBody"].clone(),
                    responses: operation["responses"].clone(),
                });
            }
        }
        Self {
            version,
            components,
            operations,
            validators: Mutex::default(),
        }
    }

    /// What in a request violates the document, or what Dojo's guide says about the API key.
    #[must_use]
    pub fn request_violations(&self, request: &Request<Bytes>) -> Vec<String> {
        let Some(operation) = self.operation(request) else {
            return vec![format!("{}: is not in the document", call_name(request))];
        };
        let mut violations: Vec<String> = exceptions::authorization_violation(request.headers())
            .into_iter()
            .collect();
        violations.extend(self.parameter_violations(operation, request));
        violations.extend(self.body_violations(operation, request));
        prefixed(&format!("request {}", call_name(request)), violations)
    }

    /// What in a response violates the document. Responses to calls that the document doesn't list, and to calls of an
    /// older version, aren't checked.
    #[must_use]
    pub fn response_violations(
        &self,
        request: &Request<Bytes>,
        response: &Response<Bytes>,
    ) -> Vec<String> {
        let version = request.headers().get("version");
        if version.is_some_and(|version| version.as_bytes() < self.version.as_bytes()) {
            return Vec::new();
        }
        let Some(operation) = self.operation(request) else {
            return Vec::new();
        };
        let prefix = format!("response {} to {}", response.status(), call_name(request));
        prefixed(&prefix, self.response_body_violations(operation, response))
    }

    /// What in a value violates one of the document's schemas.
    #[must_use]
    pub fn schema_violations(&self, schema: &str, value: &Value) -> Vec<String> {
        let schema = json!({"$ref": format!("#/components/schemas/{schema}")});
        self.value_violations(&schema, value)
    }

    /// The operation whose path has the fewest variables: `/payment-intents/search` isn't the path of an intent.
    fn operation(&self, request: &Request<Bytes>) -> Option<&Operation> {
        self.operations
            .iter()
            .filter(|operation| operation.method == request.method().as_str())
            .filter_map(|operation| {
                Some((variables(&operation.path, request.uri().path())?, operation))
            })
            .min_by_key(|(variables, _)| variables.len())
            .map(|(_, operation)| operation)
    }

    fn parameter_violations(&self, operation: &Operation, request: &Request<Bytes>) -> Vec<String> {
        let mut violations = Vec::new();
        let variables = variables(&operation.path, request.uri().path()).unwrap_or_default();
        let query = pairs(request.uri().query().unwrap_or_default());
        for (key, _) in &query {
            let known =
                |parameter: &&Value| parameter["in"] == "query" && parameter["name"] == *key;
            if !operation
                .parameters
                .iter()
                .any(|parameter| known(&parameter))
            {
                violations.push(format!("query {key}: is not in the document"));
            }
        }
        for parameter in &operation.parameters {
            let key = parameter["name"].as_str().unwrap_or_default();
            let place = parameter["in"].as_str().unwrap_or_default();
            let value = match place {
                "header" => request
                    .headers()
                    .get(key)
                    .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()),
                "query" => value_of(&query, key),
                _ => value_of(&variables, key),
            };
            let found = match value {
                Some(value) => self.text_violations(&parameter["schema"], &value),
                None if parameter["required"] == true => vec![": is missing".to_owned()],
                None => Vec::new(),
            };
            violations.extend(
                found
                    .iter()
                    .map(|violation| format!("{place} {key}{violation}")),
            );
        }
        violations
    }

    fn body_violations(&self, operation: &Operation, request: &Request<Bytes>) -> Vec<String> {
        let body = request.body();
        if operation.request_body.is_null() {
            return unexpected_body(body);
        }
        let mut body = match json_body(request.headers(), body) {
            Ok(body) => body,
            Err(violation) => return vec![violation],
        };
        exceptions::remove_payment_source(&operation.method, &operation.path, &mut body);
        self.content_violations(&operation.request_body, &body)
    }

    fn response_body_violations(
        &self,
        operation: &Operation,
        response: &Response<Bytes>,
    ) -> Vec<String> {
        let status = response.status();
        let responses = &operation.responses;
        let documented = &responses[status.as_str()];
        let described = if documented.is_object() {
            documented
        } else if status.is_client_error() {
            // The document lists only a few of the possible 4xx responses. All have the same schema.
            let mut rejections = responses.as_object().into_iter().flatten();
            match rejections.find(|(status, _)| status.starts_with('4')) {
                Some((_, rejection)) => rejection,
                None => return vec!["the document lists no 4xx response".to_owned()],
            }
        } else {
            return vec!["the status is not in the document".to_owned()];
        };
        if described["content"].is_null() {
            return unexpected_body(response.body());
        }
        match json_body(response.headers(), response.body()) {
            Ok(body) => {
                let mut violations = self.content_violations(described, &body);
                if status != StatusCode::OK && body["status"] != status.as_u16() {
                    violations.push("body/status: differs from the HTTP status".to_owned());
                }
                violations
            }
            Err(violation) => vec![violation],
        }
    }

    fn content_violations(&self, described: &Value, body: &Value) -> Vec<String> {
        let schema = &described["content"]["application/json"]["schema"];
        let violations = self.value_violations(schema, body);
        violations
            .iter()
            .map(|violation| format!("body{violation}"))
            .collect()
    }

    /// Checks a parameter. Its text may be a string, a number or a boolean.
    fn text_violations(&self, schema: &Value, text: &str) -> Vec<String> {
        let violations = self.value_violations(schema, &json!(text));
        match serde_json::from_str(text) {
            Ok(value) if !violations.is_empty() => self.value_violations(schema, &value),
            _ => violations,
        }
    }

    fn value_violations(&self, schema: &Value, value: &Value) -> Vec<String> {
        let text = schema.to_string();
        let mut validators = lock(&self.validators);
        let validator = match validators.get(&text) {
            Some(validator) => Arc::clone(validator),
            None => match self.compile(schema) {
                Ok(validator) => {
                    let validator = Arc::new(validator);
                    validators.insert(text, Arc::clone(&validator));
                    validator
                }
                Err(error) => return vec![format!(": the document's schema is invalid: {error}")],
            },
        };
        drop(validators);
        validator
            .iter_errors(value)
            .flat_map(|error| explain(&error))
            .collect()
    }

    fn compile(&self, schema: &Value) -> Result<Validator, ValidationError<'static>> {
        jsonschema::draft202012::options()
            .should_validate_formats(true)
            .build(&json!({"components": self.components, "allOf": [schema]}))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn resolved(parameter: &Value, components: &Value) -> Value {
    let target = parameter["$ref"]
        .as_str()
        .and_then(|reference| components.pointer(reference.strip_prefix("#/components")?));
    target.unwrap_or(parameter).clone()
}

/// The values of the variables in a path template, if the path matches it.
fn variables(template: &str, path: &str) -> Option<Vec<(String, String)>> {
    let mut variables = Vec::new();
    let mut parts = path.split('/');
    for part in template.split('/') {
        let actual = parts.next()?;
        match part
            .strip_prefix('{')
            .and_then(|part| part.strip_suffix('}'))
        {
            Some(variable) if !actual.is_empty() => {
                variables.push((variable.to_owned(), actual.to_owned()));
            }
            None if part == actual => {}
            _ => return None,
        }
    }
    parts.next().is_none().then_some(variables)
}

fn pairs(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn value_of(pairs: &[(String, String)], key: &str) -> Option<String> {
    let found = pairs.iter().find(|(name, _)| name == key);
    found.map(|(_, value)| value.clone())
}

fn unexpected_body(body: &Bytes) -> Vec<String> {
    if body.is_empty() {
        Vec::new()
    } else {
        vec!["body: must be empty".to_owned()]
    }
}

fn json_body(headers: &HeaderMap, body: &Bytes) -> Result<Value, String> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    if content_type != Some("application/json") {
        let content_type = content_type.unwrap_or("missing");
        return Err(format!(
            "header content-type: is {content_type}, not application/json"
        ));
    }
    serde_json::from_slice(body).map_err(|error| format!("body: is not valid JSON: {error}"))
}

/// Violations as `/pointer: what is wrong`. If no alternative of an `anyOf` or `oneOf` matches, the violations of each
/// alternative, except for `null`.
fn explain(error: &ValidationError<'_>) -> Vec<String> {
    let mut violations = Vec::new();
    if let ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } =
        error.kind()
    {
        for alternative in context {
            let found: Vec<_> = alternative.iter().flat_map(explain).collect();
            let is_null = |violation: &String| violation.ends_with("is not of type \"null\"");
            if !found.iter().all(is_null) {
                violations.extend(found);
            }
        }
    }
    if violations.is_empty() {
        violations.push(format!("{}: {error}", error.instance_path()));
    }
    violations
}

fn call_name(request: &Request<Bytes>) -> String {
    format!("{} {}", request.method(), request.uri().path())
}

fn prefixed(prefix: &str, violations: Vec<String>) -> Vec<String> {
    violations
        .into_iter()
        .map(|violation| format!("{prefix}: {violation}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{Request, Response};
    use serde_json::{Value, json};

    use super::Document;

    /// A few calls in the style of Dojo's document.
    fn document() -> Document {
        let version = json!({"name": "version", "in": "header", "required": true,
            "schema": {"type": "string", "format": "date"}});
        let id = json!({"name": "paymentIntentId", "in": "path", "required": true,
            "schema": {"type": "string", "nullable": true}});
        let key = json!({"name": "idempotencyKey", "in": "header", "required": true,
            "schema": {"type": "string", "maxLength": 100}});
        let return_canceled =
            json!({"name": "returnCanceled", "in": "query", "schema": {"type": "boolean"}});
        let content = |schema: &str| {
            let schema = json!({"$ref": format!("#/components/schemas/{schema}")});
            json!({"content": {"application/json": {"schema": schema}}})
        };
        let version_at = json!({"$ref": "#/components/parameters/Version"});
        Document::new(json!({
            "paths": {
                "/payment-intents": {"post": {
                    "parameters": [version_at],
                    "requestBody": content("Create"),
                    "responses": {"200": content("PaymentIntent"), "400": content("Problem")},
                }},
                "/payment-intents/{paymentIntentId}": {
                    "parameters": [id],
                    "get": {
                        "parameters": [version_at, return_canceled],
                        "responses": {"200": content("PaymentIntent"), "404": content("Problem")},
                    },
                },
                "/payment-intents/{paymentIntentId}/refunds": {"post": {
                    "parameters": [version_at, id, key],
                    "requestBody": content("Create"),
                    "responses": {"204": {}},
                }},
            },
            "components": {
                "parameters": {"Version": version},
                "schemas": {
                    "Create": {
                        "type": "object", "additionalProperties": false, "required": ["amount"],
                        "properties": {
                            "amount": {"$ref": "#/components/schemas/Money"},
                            "tipsAmount": {"nullable": true, "oneOf": [{"$ref": "#/components/schemas/Money"}]},
                            "expireAt": {"type": "string", "format": "date-time", "nullable": true},
                        },
                    },
                    "Money": {
                        "type": "object", "additionalProperties": false,
                        "properties": {"value": {"type": "integer"}},
                    },
                    "PaymentIntent": {
                        "type": "object", "additionalProperties": false,
                        "properties": {"status": {"type": "string", "enum": ["Created", "Captured"]}},
                    },
                    "PaymentStatusResponse": {"type": "object"},
                    "Customer": {"allOf": [
                        {"$ref": "#/components/schemas/Person"},
                        {
                            "type": "object", "additionalProperties": false,
                            "properties": {"secret": {"type": "string"}},
                        },
                    ]},
                    "Person": {
                        "type": "object", "additionalProperties": false, "required": ["id"],
                        "properties": {"id": {"type": "string"}},
                    },
                    "Problem": {"type": "object", "properties": {"status": {"type": "integer"}}},
                },
            },
        }))
    }

    fn request(method: &str, path: &str, body: &Value) -> Request<Bytes> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("version", "2026-02-27")
            .header("authorization", "Basic sk_sandbox_1");
        let (request, body) = if body.is_null() {
            (request, String::new())
        } else {
            (
                request.header("content-type", "application/json"),
                body.to_string(),
            )
        };
        request.body(body.into()).expect("a request")
    }

    fn violations(request: &Request<Bytes>) -> Vec<String> {
        document().request_violations(request)
    }

    fn response_violations(request: &Request<Bytes>, status: u16, body: &str) -> Vec<String> {
        let response = Response::builder()
            .status(status)
            .header("content-type", "application/json")
            .body(Bytes::copy_from_slice(body.as_bytes()))
            .expect("a response");
        document().response_violations(request, &response)
    }

    #[test]
    fn valid_requests_have_no_violations() {
        let body = json!({"amount": {"value": 1}, "tipsAmount": null, "paymentSource": "payment-links",
            "expireAt": "2026-01-31T10:46:46.3202622Z"});
        let none = Vec::<String>::new();
        assert_eq!(
            violations(&request("POST", "/payment-intents", &body)),
            none
        );
        let path = "/payment-intents/pi_1?returnCanceled=true";
        assert_eq!(violations(&request("GET", path, &Value::Null)), none);
    }

    #[test]
    fn each_request_violation_names_its_place() {
        let body = json!({"tipsAmount": {"value": "1"}, "unexpected": 1, "expireAt": "tomorrow"});
        let found = violations(&request("POST", "/payment-intents", &body)).join("\n");
        for violation in [
            "request POST /payment-intents: body/tipsAmount/value: \"1\" is not of type \"integer\"",
            "body/expireAt: \"tomorrow\" is not a \"date-time\"",
            "\"amount\" is a required property",
            "('unexpected' was unexpected)",
        ] {
            assert!(
                found.contains(violation),
                "{violation} is missing from\n{found}"
            );
        }

        // `paymentSource` is only allowed on creation.
        let mut refund = request(
            "POST",
            "/payment-intents/pi_1/refunds",
            &json!({"amount": {}, "paymentSource": "payment-links"}),
        );
        let found = violations(&refund).join("\n");
        assert!(
            found.contains("header idempotencyKey: is missing"),
            "{found}"
        );
        assert!(found.contains("'paymentSource' was unexpected"), "{found}");
        let long = "k".repeat(101).parse().expect("a header");
        refund.headers_mut().insert("idempotencyKey", long);
        assert!(
            violations(&refund)
                .join("\n")
                .contains("header idempotencyKey: \"kkk")
        );

        let path = "/payment-intents/pi_1?all=true&returnCanceled=maybe";
        let mut get = request("GET", path, &json!({}));
        get.headers_mut().remove("authorization");
        get.headers_mut()
            .insert("version", "now".parse().expect("a header"));
        assert_eq!(
            violations(&get),
            [
                "header authorization: is not `Basic sk_…`",
                "query all: is not in the document",
                "header version: \"now\" is not a \"date\"",
                "query returnCanceled: \"maybe\" is not of type \"boolean\"",
                "body: must be empty",
            ]
            .map(|violation| format!("request GET /payment-intents/pi_1: {violation}"))
        );
        let unknown = request("PUT", "/payment-intents/pi_1", &Value::Null);
        assert_eq!(
            violations(&unknown),
            ["PUT /payment-intents/pi_1: is not in the document"]
        );
    }

    #[test]
    fn an_inheriting_schema_has_the_members_of_both() {
        let document = document();
        let violations = |value| document.schema_violations("Customer", &value).len();
        assert_eq!(violations(json!({"id": "1", "secret": "s"})), 0);
        assert_eq!(violations(json!({"secret": "s"})), 1);
        assert_eq!(violations(json!({"id": "1", "name": "Jo"})), 1);
    }

    #[test]
    fn each_response_violation_names_its_place() {
        let get = || request("GET", "/payment-intents/pi_1", &Value::Null);
        let valid = json!({"status": "Created", "paymentSource": "payment-links"}).to_string();
        let none = Vec::<String>::new();
        assert_eq!(response_violations(&get(), 200, &valid), none);
        assert_eq!(response_violations(&get(), 404, r#"{"status": 404}"#), none);
        // Not listed, but with the schema of the listed 4xx response.
        assert_eq!(response_violations(&get(), 401, r#"{"status": 401}"#), none);

        let found =
            response_violations(&get(), 200, r#"{"status": "Paid", "amount": 1}"#).join("\n");
        assert!(
            found.contains("response 200 OK to GET /payment-intents/pi_1: body/status: \"Paid\""),
            "{found}"
        );
        assert!(found.contains("'amount' was unexpected"), "{found}");
        for (status, body, violation) in [
            (201, valid.as_str(), "the status is not in the document"),
            (404, "[]", "body: [] is not of type \"object\""),
            (
                404,
                r#"{"status": 400}"#,
                "body/status: differs from the HTTP status",
            ),
            (
                401,
                r#"{"status": "401"}"#,
                "body/status: \"401\" is not of type \"integer\"",
            ),
            (200, "Created", "body: is not valid JSON"),
        ] {
            let found = response_violations(&get(), status, body).join("\n");
            assert!(
                found.contains(violation),
                "{violation} is missing from\n{found}"
            );
        }
    }
}
