//! Shapes the generated schemas so that client generators make good types of them.
//!
//! `serde` flattens and tags types in ways that `utoipa` describes with `allOf` and anonymous variants. Generators drop those or
//! invent names for them. Here they become plain objects, and unions of named variants with a discriminator.

use serde_json::{Map, Value, json};

use super::problem_type::{PREFIX, ProblemType};
use crate::payment_link::{feed::Happening, timeline::Kind};

/// The schemas of responses whose members are always present. What has no value is `null`.
const COMPLETE: [&str; 17] = [
    "PaymentLink",
    "PerformedOperation",
    "Payment",
    "Capture",
    "Attempt",
    "Failure",
    "TimelineEntry",
    "CreatedDetail",
    "WebhookDetail",
    "ReconciledDetail",
    "MismatchDetail",
    "ReminderDueDetail",
    "Message",
    "CallbackEndpoint",
    "CallbackDelivery",
    "CallbackAttempt",
    "CallbackPong",
];

/// The same for schemas whose members have nothing to do with what a request sends.
const BOOKS: [&str; 6] = [
    "Movement",
    "DailyTotal",
    "DailyReconciliation",
    "Difference",
    "ComparedMovement",
    "Transaction",
];

/// The schemas of lists of these items, as `utoipa` names them.
const PAGES: [(&str, &str); 8] = [
    ("Page_PaymentLink", "PaymentLink"),
    ("Page_Operation", "Operation"),
    ("Page_Message", "Message"),
    ("Page_Movement", "Movement"),
    ("Page_DailyTotal", "DailyTotal"),
    ("Page_ComparedDay", "ComparedDay"),
    ("Page_Entry", "TimelineEntry"),
    ("Page_CallbackDelivery", "CallbackDelivery"),
];

/// Shapes all schemas of the document.
pub(super) fn shape(document: &mut Value) {
    let schemas = &mut document["components"]["schemas"];
    // What a request sends is absent from a response unless it was sent, with two exceptions.
    let mut sent = names(&schemas["Terms"]["properties"]);
    sent.retain(|name| name != "captureMode" && name != "expireAt");
    sent.extend(["send", "reminders"].map(str::to_owned));
    for name in [
        "PaymentLink",
        "PerformedOperation",
        "CallbackEndpointWithSecret",
    ] {
        merge(schemas, name);
    }
    require_all(&mut schemas["CallbackEndpointWithSecret"], &[]);
    require_all(&mut schemas["Operation"]["allOf"][1], &[]);
    distribute(schemas, "Operation");
    name_variants(schemas, "Operation");
    name_variants(schemas, "Cause");
    distribute(schemas, "Event");
    name_variants(schemas, "Event");
    for kind in Happening::TYPES {
        require_all(&mut schemas[format!("{}Event", pascal(kind))], &[]);
    }
    type_entries(schemas);
    for name in COMPLETE {
        require_all(&mut schemas[name], &sent);
    }
    require_all(&mut schemas["PaymentLink"], &sent);
    for name in BOOKS {
        require_all(&mut schemas[name], &[]);
    }
    open_problem_type(schemas);
    for unused in ["Terms", "Action", "Entry", "Kind", "Happening"] {
        if let Some(schemas) = schemas.as_object_mut() {
            schemas.remove(unused);
        }
    }
    rename_pages(document);
    drop_defaults(&mut document["components"]["schemas"]);
    drop_names_of_members(&mut document["components"]["schemas"]);
    lift_descriptions(&mut document["components"]["schemas"]);
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// The schema that this one refers to, or itself.
fn resolve(schemas: &Value, schema: &Value) -> Value {
    match schema["$ref"].as_str().and_then(|at| at.rsplit('/').next()) {
        Some(name) => schemas[name].clone(),
        None => schema.clone(),
    }
}

fn names(properties: &Value) -> Vec<String> {
    let members = properties.as_object().into_iter().flatten();
    members.map(|(name, _)| name.clone()).collect()
}

/// Adds the members of `part` to `whole`. Those of `part` replace those of the same name.
fn add(whole: &mut Value, part: &Value) {
    for (name, schema) in part["properties"].as_object().into_iter().flatten() {
        whole["properties"][name] = schema.clone();
    }
    let mut required: Vec<Value> = whole["required"].as_array().cloned().unwrap_or_default();
    for name in part["required"].as_array().into_iter().flatten() {
        if !required.contains(name) {
            required.push(name.clone());
        }
    }
    whole["required"] = Value::Array(required);
    whole["type"] = json!("object");
}

/// Turns a schema that is composed of others into one object.
fn merge(schemas: &mut Value, name: &str) {
    let mut parts = schemas[name]["allOf"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    // Its own members come first, and then those that it shares.
    parts.sort_by_key(|part| part["$ref"].is_string());
    let mut whole = json!({"description": schemas[name]["description"]});
    for part in parts {
        add(&mut whole, &resolve(schemas, &part));
    }
    schemas[name] = whole;
}

/// Turns `allOf` of a union and an object into a union of objects.
fn distribute(schemas: &mut Value, name: &str) {
    let parts: Vec<_> = schemas[name]["allOf"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let (mut variants, mut rest) = (Vec::new(), json!({}));
    for part in &parts {
        let part = resolve(schemas, part);
        match part["oneOf"].as_array() {
            Some(union) => variants.clone_from(union),
            None => add(&mut rest, &part),
        }
    }
    for variant in &mut variants {
        add(variant, &rest);
    }
    schemas[name] = json!({"description": schemas[name]["description"], "oneOf": variants});
}

/// Moves the variants of a union, each with a `type` of its own, into schemas of their own.
fn name_variants(schemas: &mut Value, union: &str) {
    let variants = schemas[union]["oneOf"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let (mut refs, mut mapping) = (Vec::new(), Map::new());
    for variant in variants {
        let tag = variant["properties"]["type"]["enum"][0]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let name = format!("{}{union}", pascal(&tag));
        let mut variant = variant;
        variant["properties"]["type"] = json!({"type": "string", "const": tag});
        mapping.insert(tag, json!(format!("#/components/schemas/{name}")));
        refs.push(reference(&name));
        schemas[name] = variant;
    }
    schemas[union]["oneOf"] = json!(refs);
    schemas[union]["discriminator"] = json!({"propertyName": "type", "mapping": mapping});
}

/// Makes the timeline's entries a union by their type, each with its own detail.
fn type_entries(schemas: &mut Value) {
    let entry = schemas["Entry"].clone();
    let (mut refs, mut mapping) = (Vec::new(), Map::new());
    for kind in Kind::ALL {
        let (tag, mut variant) = (kind.as_str(), entry.clone());
        variant["description"] = json!(kind.about());
        variant["properties"]["type"] = json!({"type": "string", "const": tag});
        variant["properties"]["detail"] = match kind.detail_schema() {
            Some(name) => reference(&name),
            None => json!({"type": "null"}),
        };
        require_all(&mut variant, &[]);
        let name = format!("{}Entry", pascal(tag));
        mapping.insert(
            tag.to_owned(),
            json!(format!("#/components/schemas/{name}")),
        );
        refs.push(reference(&name));
        schemas[name] = variant;
    }
    schemas["TimelineEntry"] = json!({
        "description": entry["description"],
        "oneOf": refs,
        "discriminator": {"propertyName": "type", "mapping": mapping},
    });
}

/// Makes members required. Those that are required already keep their order, which is that of the type and of every example.
fn require_all(schema: &mut Value, except: &[String]) {
    let mut required = schema["required"].as_array().cloned().unwrap_or_default();
    for name in names(&schema["properties"]) {
        let is_new = !except.contains(&name) && !required.iter().any(|known| *known == name);
        if is_new {
            required.push(Value::String(name));
        }
    }
    if !required.is_empty() {
        schema["required"] = Value::Array(required);
    }
}

/// New types of problems may be added, so a client must accept any text.
fn open_problem_type(schemas: &mut Value) {
    let known: Vec<_> = ProblemType::ALL
        .iter()
        .map(|kind| format!("{PREFIX}{}", kind.slug()))
        .collect();
    let names: Vec<_> = ProblemType::ALL
        .iter()
        .map(|kind| kind.slug().replace('-', "_").to_uppercase())
        .collect();
    schemas["ProblemType"] = json!({
        "type": "string",
        "description": "The types of problems that this version knows.",
        "enum": known,
        "x-enum-varnames": names,
    });
    schemas["Sort"]["x-enum-varnames"] = json!(["NEWEST_FIRST", "BY_UPDATE"]);
    let of_problem = &mut schemas["Problem"]["properties"]["type"];
    *of_problem = json!({
        "description": of_problem["description"],
        "anyOf": [reference("ProblemType"), {"type": "string"}],
    });
}

fn rename_pages(document: &mut Value) {
    for (generated, item) in PAGES {
        let name = format!("{item}Page");
        let schemas = &mut document["components"]["schemas"];
        let mut page = schemas[generated].take();
        if let Some(schemas) = schemas.as_object_mut() {
            schemas.remove(generated);
        }
        page["properties"]["data"]["items"] = reference(item);
        schemas[&name] = page;
        replace_references(document, generated, &name);
    }
}

fn replace_references(value: &mut Value, from: &str, to: &str) {
    match value {
        Value::Object(members) => {
            if members.get("$ref") == Some(&json!(format!("#/components/schemas/{from}"))) {
                members.insert(
                    "$ref".to_owned(),
                    json!(format!("#/components/schemas/{to}")),
                );
            }
            members
                .values_mut()
                .for_each(|value| replace_references(value, from, to));
        }
        Value::Array(items) => items
            .iter_mut()
            .for_each(|value| replace_references(value, from, to)),
        _ => {}
    }
}

/// Removes defaults, because generators make a member with a default one that is always sent. Descriptions name them.
fn drop_defaults(value: &mut Value) {
    match value {
        Value::Object(members) => {
            // A member may be called `default`.
            if members
                .get("default")
                .is_some_and(|default| !default.is_object())
            {
                members.remove("default");
            }
            members.values_mut().for_each(drop_defaults);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_defaults),
        _ => {}
    }
}

/// Removes what `utoipa` says of the names of a map's members: that they are strings, as in any JSON. OpenAPI 3.0 has no keyword
/// for it.
fn drop_names_of_members(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.remove("propertyNames");
            members.values_mut().for_each(drop_names_of_members);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_names_of_members),
        _ => {}
    }
}

/// Moves the description of a nullable reference to where generators look for it.
fn lift_descriptions(value: &mut Value) {
    match value {
        Value::Object(members) => {
            let described = members
                .get_mut("oneOf")
                .and_then(Value::as_array_mut)
                .filter(|parts| parts.iter().any(|part| part["type"] == "null"))
                .into_iter()
                .flatten()
                .find_map(|part| part.as_object_mut()?.remove("description"));
            if let Some(description) = described {
                members.insert("description".to_owned(), description);
            }
            members.values_mut().for_each(lift_descriptions);
        }
        Value::Array(items) => items.iter_mut().for_each(lift_descriptions),
        _ => {}
    }
}

/// `tipsAmount` becomes `TipsAmount`, and `payment_link.captured` becomes `PaymentLinkCaptured`.
fn pascal(text: &str) -> String {
    let words = text.split(['_', '.']).map(|word| {
        let mut letters = word.chars();
        let first = letters.next().into_iter().flat_map(char::to_uppercase);
        first.chain(letters).collect::<String>()
    });
    words.collect()
}
