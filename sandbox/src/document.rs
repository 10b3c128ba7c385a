//! Dojo's OpenAPI file, and what in a call is not as it says.
//!
//! The file is Dojo's and not part of this project. Where `DOJO_OPENAPI` names it, tests hold to it what a sandbox
//! is asked and what it answers: see [`Held`].

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use axum::http::{HeaderMap, Request, Response, StatusCode, header};
use jsonschema::error::ValidationErrorKind;
use jsonschema::{ValidationError, Validator};
use serde_json::{Value, json};

use crate::sandbox::Sandbox;
use crate::traffic::Exchange;

/// An OpenAPI 3.0 document.
#[derive(Debug)]
pub struct Document {
    /// The API version that it describes, such as `2026-02-27`.
    version: String,
    components: Value,
    operations: Vec<Operation>,
    /// By the schema's text: each is compiled once.
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
    /// Reads the file.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let document = serde_json::from_slice(&std::fs::read(path)?)?;
        Ok(Self::new(document))
    }

    /// The file that `DOJO_OPENAPI` names, read once in a process; `None` where it names none.
    pub fn at_hand() -> io::Result<Option<Arc<Self>>> {
        static READ: Mutex<Option<Arc<Document>>> = Mutex::new(None);
        let Some(path) = std::env::var_os("DOJO_OPENAPI").filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        let mut read = locked(&READ);
        if read.is_none() {
            *read = Some(Arc::new(Self::open(path)?));
        }
        Ok(read.clone())
    }

    /// Takes a document as it is.
    #[must_use]
    pub fn new(mut document: Value) -> Self {
        as_json_schema(&mut document);
        let version = document["info"]["version"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let mut components = document["components"].take();
        merge_inherited(&mut components["schemas"]);
        admit_what_dojo_shows(&mut components["schemas"]);
        admit_plain_http(&mut components["schemas"]);
        let mut operations = Vec::new();
        for (path, item) in document["paths"].as_object().into_iter().flatten() {
            let shared = list(&item["parameters"]);
            for (method, operation) in item.as_object().into_iter().flatten() {
                if method == "parameters" {
                    continue;
                }
                let parameters = shared.iter().chain(list(&operation["parameters"]));
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

    /// What in a request is not as the document says, or as Dojo's guide says of the key. `paymentSource` is not
    /// looked at: the guide wants it, and the document does not list it.
    #[must_use]
    pub fn faults_of_request(&self, request: &Request<Bytes>) -> Vec<String> {
        let Some(operation) = self.operation(request) else {
            return vec![format!("{}: there is no such call", name(request))];
        };
        let mut faults = key_faults(request.headers());
        faults.extend(self.parameter_faults(operation, request));
        faults.extend(self.body_faults(operation, request));
        named(&format!("request {}", name(request)), faults)
    }

    /// What in an answer is not as the document says of the call that it answers. Nothing is said about calls that
    /// it does not know or that name an older version, and about answers that the sandbox was told to give.
    #[must_use]
    pub fn faults_of_answer(&self, exchange: &Exchange) -> Vec<String> {
        let version = exchange.request.headers().get("version");
        if version.is_some_and(|version| version.as_bytes() < self.version.as_bytes()) {
            return Vec::new();
        }
        let (Some(answer), Some(operation)) = (&exchange.answer, self.operation(&exchange.request))
        else {
            return Vec::new();
        };
        let call = name(&exchange.request);
        let what = format!("answer {} to {call}", answer.status());
        named(&what, self.answer_faults(operation, answer))
    }

    /// What in a value is not as a schema of the document's says.
    #[must_use]
    pub fn faults_of(&self, schema: &str, value: &Value) -> Vec<String> {
        let schema = json!({"$ref": format!("#/components/schemas/{schema}")});
        self.value_faults(&schema, value)
    }

    /// The most literal match: `/payment-intents/search` is no intent's path.
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

    fn parameter_faults(&self, operation: &Operation, request: &Request<Bytes>) -> Vec<String> {
        let mut faults = Vec::new();
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
                faults.push(format!("query {key}: there is no such parameter"));
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
                Some(value) => self.text_faults(&parameter["schema"], &value),
                None if parameter["required"] == true => vec![": is missing".to_owned()],
                None => Vec::new(),
            };
            faults.extend(found.iter().map(|fault| format!("{place} {key}{fault}")));
        }
        faults
    }

    fn body_faults(&self, operation: &Operation, request: &Request<Bytes>) -> Vec<String> {
        let body = request.body();
        if operation.request_body.is_null() {
            let fault = (!body.is_empty()).then(|| "body: there should be none".to_owned());
            return fault.into_iter().collect();
        }
        let mut body = match json_body(request.headers(), body) {
            Ok(body) => body,
            Err(fault) => return vec![fault],
        };
        if operation.method == "POST"
            && operation.path == "/payment-intents"
            && let Some(members) = body.as_object_mut()
        {
            members.remove("paymentSource");
        }
        self.content_faults(&operation.request_body, &body)
    }

    fn answer_faults(&self, operation: &Operation, answer: &Response<Bytes>) -> Vec<String> {
        let status = answer.status();
        let responses = &operation.responses;
        let documented = &responses[status.as_str()];
        let shape = if documented.is_object() {
            documented
        } else if status.is_client_error() {
            // The documents list few of the refusals that there are; all have one shape.
            let mut refusals = responses.as_object().into_iter().flatten();
            match refusals.find(|(status, _)| status.starts_with('4')) {
                Some((_, refusal)) => refusal,
                None => return vec!["the call has no refusal".to_owned()],
            }
        } else {
            return vec!["there is no such status".to_owned()];
        };
        if shape["content"].is_null() {
            let fault =
                (!answer.body().is_empty()).then(|| "body: there should be none".to_owned());
            return fault.into_iter().collect();
        }
        match json_body(answer.headers(), answer.body()) {
            Ok(body) => {
                let mut faults = self.content_faults(shape, &body);
                if status != StatusCode::OK && body["status"] != status.as_u16() {
                    faults.push("body/status: is another one".to_owned());
                }
                faults
            }
            Err(fault) => vec![fault],
        }
    }

    fn content_faults(&self, holder: &Value, body: &Value) -> Vec<String> {
        let schema = &holder["content"]["application/json"]["schema"];
        let faults = self.value_faults(schema, body);
        faults.iter().map(|fault| format!("body{fault}")).collect()
    }

    /// A parameter is text, and may stand for a number or a truth value.
    fn text_faults(&self, schema: &Value, text: &str) -> Vec<String> {
        let faults = self.value_faults(schema, &json!(text));
        match serde_json::from_str(text) {
            Ok(value) if !faults.is_empty() => self.value_faults(schema, &value),
            _ => faults,
        }
    }

    fn value_faults(&self, schema: &Value, value: &Value) -> Vec<String> {
        let text = schema.to_string();
        let mut validators = locked(&self.validators);
        let validator = match validators.get(&text) {
            Some(validator) => Arc::clone(validator),
            None => match self.compile(schema) {
                Ok(validator) => {
                    let validator = Arc::new(validator);
                    validators.insert(text, Arc::clone(&validator));
                    validator
                }
                Err(error) => return vec![format!(": the document's schema is wrong: {error}")],
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

/// A sandbox whose calls are held to Dojo's OpenAPI file, where that is at hand; nothing is held to anything
/// elsewhere. Dropping it panics if anything was not as the file says, so that the test it belongs to fails.
#[derive(Debug, Default)]
pub struct Held {
    faults: Arc<Mutex<Vec<String>>>,
    excused: Mutex<Vec<Value>>,
}

impl Held {
    /// Holds what the sandbox answers from now on. It fails where the file cannot be read.
    pub fn answers(sandbox: &Sandbox) -> io::Result<Self> {
        Self::watch(sandbox, Document::faults_of_answer)
    }

    /// Holds what the sandbox is asked from now on, too.
    pub fn calls(sandbox: &Sandbox) -> io::Result<Self> {
        Self::watch(sandbox, |document, exchange| {
            let mut faults = document.faults_of_request(&exchange.request);
            faults.extend(document.faults_of_answer(exchange));
            faults
        })
    }

    /// A status that the sandbox was told to report is no fault of its own.
    pub fn excuse(&self, status: &Value) {
        locked(&self.excused).push(status.clone());
    }

    fn watch(
        sandbox: &Sandbox,
        check: impl Fn(&Document, &Exchange) -> Vec<String> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let held = Self::default();
        if let Some(document) = Document::at_hand()? {
            let faults = Arc::clone(&held.faults);
            sandbox.watch(move |exchange| {
                let found = check(&document, exchange);
                locked(&faults).extend(found);
            });
        }
        Ok(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let excused = locked(&self.excused);
        let mut faults = locked(&self.faults);
        faults.retain(|fault| {
            !excused
                .iter()
                .any(|status| fault.contains(&format!("/status: {status} is not one of")))
        });
        assert!(
            faults.is_empty(),
            "not as Dojo's OpenAPI file says: {faults:#?}"
        );
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// OpenAPI 3.0 says `nullable` where JSON Schema names a type or an alternative more.
fn as_json_schema(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(as_json_schema),
        Value::Object(members) => {
            members.values_mut().for_each(as_json_schema);
            if members.remove("nullable") == Some(json!(true)) {
                let inner = Value::Object(std::mem::take(members));
                members.insert("anyOf".to_owned(), json!([inner, {"type": "null"}]));
            }
        }
        _ => {}
    }
}

/// Some schemas are made of others as one class is of another: a closed one and a closed one with members more. As
/// JSON Schema reads that, each forbids what the other has, and nothing could ever fit.
fn merge_inherited(schemas: &mut Value) {
    let all = schemas.clone();
    for schema in schemas
        .as_object_mut()
        .into_iter()
        .flat_map(|all| all.values_mut())
    {
        let parts = list(&schema["allOf"]).iter().map(|part| {
            let name = part["$ref"]
                .as_str()?
                .strip_prefix("#/components/schemas/")?;
            all.get(name)
        });
        let parts: Vec<_> = parts
            .zip(list(&schema["allOf"]))
            .map(|(named, part)| named.unwrap_or(part))
            .collect();
        if parts.len() < 2
            || parts
                .iter()
                .any(|part| part["additionalProperties"] != false)
        {
            continue;
        }
        let mut members = serde_json::Map::new();
        let mut required = Vec::new();
        for part in parts {
            members.extend(part["properties"].as_object().cloned().unwrap_or_default());
            required.extend_from_slice(list(&part["required"]));
        }
        *schema = json!({
            "type": "object", "additionalProperties": false,
            "properties": members, "required": required,
        });
    }
}

/// Dojo's own examples show members that its schemas do not list.
fn admit_what_dojo_shows(schemas: &mut Value) {
    let events =
        json!({"type": "array", "items": {"$ref": "#/components/schemas/PaymentStatusResponse"}});
    for (schema, member, shape) in [
        ("PaymentIntent", "paymentEvents", events),
        ("PaymentIntent", "paymentSource", json!({"type": "string"})),
        (
            "PaymentIntentConfigResponse",
            "branding",
            json!({"type": "object"}),
        ),
        (
            "PaymentIntentConfigResponse",
            "tradingName",
            json!({"type": "string"}),
        ),
    ] {
        if let Some(members) = schemas[schema]["properties"].as_object_mut() {
            members.entry(member).or_insert(shape);
        }
    }
}

/// A webhook's URL may be plain http at the sandbox, and only there.
fn admit_plain_http(schemas: &mut Value) {
    for schema in [
        "Subscription",
        "SubscriptionRequest",
        "SubscriptionUpdateRequest",
    ] {
        let url = &mut schemas[schema]["properties"]["url"];
        // What may be null has its shape among the alternatives.
        for place in ["/pattern", "/anyOf/0/pattern"] {
            if let Some(pattern) = url.pointer_mut(place) {
                *pattern = json!("^https?://.+");
            }
        }
    }
}

fn resolved(parameter: &Value, components: &Value) -> Value {
    let target = parameter["$ref"]
        .as_str()
        .and_then(|reference| components.pointer(reference.strip_prefix("#/components")?));
    target.unwrap_or(parameter).clone()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// What stands for the variables of a path, if the path is of this form.
fn variables(form: &str, path: &str) -> Option<Vec<(String, String)>> {
    let mut variables = Vec::new();
    let mut parts = path.split('/');
    for part in form.split('/') {
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

/// The key is sent as it is behind `Basic`, and not in base64.
fn key_faults(headers: &HeaderMap) -> Vec<String> {
    let mut keys = headers.get_all(header::AUTHORIZATION).iter();
    let key = keys.next().and_then(|value| value.to_str().ok());
    let good = key.is_some_and(|key| key.starts_with("Basic sk_")) && keys.next().is_none();
    // The header itself holds a secret.
    let fault = (!good).then(|| "header authorization: is not `Basic sk_…`".to_owned());
    fault.into_iter().collect()
}

fn json_body(headers: &HeaderMap, body: &Bytes) -> Result<Value, String> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    if kind != Some("application/json") {
        let kind = kind.unwrap_or("nothing");
        return Err(format!(
            "header content-type: is {kind}, not application/json"
        ));
    }
    serde_json::from_slice(body).map_err(|error| format!("body: is not JSON: {error}"))
}

/// `/pointer: what is wrong`. Where one of several alternatives has to fit, what keeps each from it, but for null.
fn explain(error: &ValidationError<'_>) -> Vec<String> {
    let mut faults = Vec::new();
    if let ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } =
        error.kind()
    {
        for alternative in context {
            let found: Vec<_> = alternative.iter().flat_map(explain).collect();
            let is_null = |fault: &String| fault.ends_with("is not of type \"null\"");
            if !found.iter().all(is_null) {
                faults.extend(found);
            }
        }
    }
    if faults.is_empty() {
        faults.push(format!("{}: {error}", error.instance_path()));
    }
    faults
}

fn name(request: &Request<Bytes>) -> String {
    format!("{} {}", request.method(), request.uri().path())
}

fn named(what: &str, faults: Vec<String>) -> Vec<String> {
    faults
        .into_iter()
        .map(|fault| format!("{what}: {fault}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use axum::http::{Request, Response};
    use serde_json::{Value, json};

    use super::{Document, Exchange};

    /// A few calls as Dojo has them, in its way of writing.
    fn document() -> Document {
        let version = json!({"name": "version", "in": "header", "required": true,
            "schema": {"type": "string", "format": "date"}});
        let id = json!({"name": "paymentIntentId", "in": "path", "required": true,
            "schema": {"type": "string", "nullable": true}});
        let key = json!({"name": "idempotencyKey", "in": "header", "required": true,
            "schema": {"type": "string", "maxLength": 100}});
        let late = json!({"name": "returnCanceled", "in": "query", "schema": {"type": "boolean"}});
        let holds = |schema: &str| {
            let schema = json!({"$ref": format!("#/components/schemas/{schema}")});
            json!({"content": {"application/json": {"schema": schema}}})
        };
        let version_at = json!({"$ref": "#/components/parameters/Version"});
        Document::new(json!({
            "paths": {
                "/payment-intents": {"post": {
                    "parameters": [version_at],
                    "requestBody": holds("Create"),
                    "responses": {"200": holds("PaymentIntent"), "400": holds("Problem")},
                }},
                "/payment-intents/{paymentIntentId}": {
                    "parameters": [id],
                    "get": {
                        "parameters": [version_at, late],
                        "responses": {"200": holds("PaymentIntent"), "404": holds("Problem")},
                    },
                },
                "/payment-intents/{paymentIntentId}/refunds": {"post": {
                    "parameters": [version_at, id, key],
                    "requestBody": holds("Create"),
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

    fn faults(request: &Request<Bytes>) -> Vec<String> {
        document().faults_of_request(request)
    }

    fn answered(request: Request<Bytes>, status: u16, body: &str) -> Vec<String> {
        let answer = Response::builder()
            .status(status)
            .header("content-type", "application/json")
            .body(Bytes::copy_from_slice(body.as_bytes()))
            .expect("an answer");
        let answer = Some(answer);
        document().faults_of_answer(&Exchange { request, answer })
    }

    #[test]
    fn good_requests_have_no_faults() {
        let body = json!({"amount": {"value": 1}, "tipsAmount": null, "paymentSource": "payment-links",
            "expireAt": "2026-01-31T10:46:46.3202622Z"});
        let none = Vec::<String>::new();
        assert_eq!(faults(&request("POST", "/payment-intents", &body)), none);
        let path = "/payment-intents/pi_1?returnCanceled=true";
        assert_eq!(faults(&request("GET", path, &Value::Null)), none);
    }

    #[test]
    fn each_fault_of_a_request_is_named_with_its_place() {
        let body = json!({"tipsAmount": {"value": "1"}, "unheard": 1, "expireAt": "tomorrow"});
        let told = faults(&request("POST", "/payment-intents", &body)).join("\n");
        for fault in [
            "request POST /payment-intents: body/tipsAmount/value: \"1\" is not of type \"integer\"",
            "body/expireAt: \"tomorrow\" is not a \"date-time\"",
            "\"amount\" is a required property",
            "('unheard' was unexpected)",
        ] {
            assert!(told.contains(fault), "{fault} is missing from\n{told}");
        }

        // Only on creation, and nothing else.
        let mut refund = request(
            "POST",
            "/payment-intents/pi_1/refunds",
            &json!({"amount": {}, "paymentSource": "payment-links"}),
        );
        let told = faults(&refund).join("\n");
        assert!(told.contains("header idempotencyKey: is missing"), "{told}");
        assert!(told.contains("'paymentSource' was unexpected"), "{told}");
        let long = "k".repeat(101).parse().expect("a header");
        refund.headers_mut().insert("idempotencyKey", long);
        assert!(
            faults(&refund)
                .join("\n")
                .contains("header idempotencyKey: \"kkk")
        );

        let path = "/payment-intents/pi_1?all=true&returnCanceled=maybe";
        let mut get = request("GET", path, &json!({}));
        get.headers_mut().remove("authorization");
        get.headers_mut()
            .insert("version", "now".parse().expect("a header"));
        assert_eq!(
            faults(&get),
            [
                "header authorization: is not `Basic sk_…`",
                "query all: there is no such parameter",
                "header version: \"now\" is not a \"date\"",
                "query returnCanceled: \"maybe\" is not of type \"boolean\"",
                "body: there should be none",
            ]
            .map(|fault| format!("request GET /payment-intents/pi_1: {fault}"))
        );
        let unheard = request("PUT", "/payment-intents/pi_1", &Value::Null);
        assert_eq!(
            faults(&unheard),
            ["PUT /payment-intents/pi_1: there is no such call"]
        );
    }

    #[test]
    fn a_schema_that_inherits_another_has_the_members_of_both() {
        let document = document();
        let faults = |value| document.faults_of("Customer", &value).len();
        assert_eq!(faults(json!({"id": "1", "secret": "s"})), 0);
        assert_eq!(faults(json!({"secret": "s"})), 1);
        assert_eq!(faults(json!({"id": "1", "name": "Jo"})), 1);
    }

    #[test]
    fn each_fault_of_an_answer_is_named_with_its_place() {
        let get = || request("GET", "/payment-intents/pi_1", &Value::Null);
        let good = json!({"status": "Created", "paymentSource": "payment-links"}).to_string();
        let none = Vec::<String>::new();
        assert_eq!(answered(get(), 200, &good), none);
        assert_eq!(answered(get(), 404, r#"{"status": 404}"#), none);
        // Not listed, but of the shape that is.
        assert_eq!(answered(get(), 401, r#"{"status": 401}"#), none);

        let told = answered(get(), 200, r#"{"status": "Paid", "amount": 1}"#).join("\n");
        assert!(
            told.contains("answer 200 OK to GET /payment-intents/pi_1: body/status: \"Paid\""),
            "{told}"
        );
        assert!(told.contains("'amount' was unexpected"), "{told}");
        for (status, body, fault) in [
            (201, good.as_str(), "there is no such status"),
            (404, "[]", "body: [] is not of type \"object\""),
            (404, r#"{"status": 400}"#, "body/status: is another one"),
            (
                401,
                r#"{"status": "401"}"#,
                "body/status: \"401\" is not of type \"integer\"",
            ),
            (200, "Created", "body: is not JSON"),
        ] {
            let told = answered(get(), status, body).join("\n");
            assert!(told.contains(fault), "{fault} is missing from\n{told}");
        }
    }
}
