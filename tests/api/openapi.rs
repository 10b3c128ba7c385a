//! `openapi.yaml` is in step with the code, and its examples are right.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::support::{TestApp, program};

#[test]
fn the_committed_document_is_that_of_the_code() {
    let made = program().arg("openapi").output().unwrap();
    assert!(made.status.success());
    let committed = include_str!("../../openapi.yaml");
    assert!(
        String::from_utf8(made.stdout).unwrap() == committed,
        "openapi.yaml is behind the code: cargo run -- openapi > openapi.yaml"
    );
}

#[tokio::test]
async fn the_document_is_served() {
    let app = TestApp::start().await;
    let document = app.get("/openapi.yaml").await.expect(200);
    assert_eq!(document.text, include_str!("../../openapi.yaml"));
}

/// The document.
fn document() -> Value {
    yaml_serde::from_str(include_str!("../../openapi.yaml")).unwrap()
}

/// Every response with a body: what it is of, its status, media type, and body.
fn bodies(document: &Value) -> Vec<(String, u16, &str, &Value)> {
    let mut bodies = Vec::new();
    for (path, item) in members(&document["paths"]) {
        for (method, call) in members(item) {
            for (status, response) in members(&call["responses"]) {
                for (media_type, body) in members(&response["content"]) {
                    let of = format!("{method} {path} {status}");
                    bodies.push((of, status.parse().unwrap(), media_type.as_str(), body));
                }
            }
        }
    }
    bodies
}

fn members(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flatten()
}

/// The examples of a body, by name.
fn examples<'a>(document: &'a Value, body: &'a Value) -> Vec<(&'a str, &'a Value)> {
    let named = members(&body["examples"]).map(|(name, example)| {
        let at = example["$ref"]
            .as_str()
            .map(|at| at.trim_start_matches('#'));
        let example = at.map_or(example, |at| document.pointer(at).unwrap());
        (name.as_str(), &example["value"])
    });
    let single = body.get("example").map(|value| ("", value));
    single.into_iter().chain(named).collect()
}

/// What is wrong with a value by a schema of the document.
fn objections(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let schema = json!({"components": document["components"], "allOf": [schema]});
    let validator = jsonschema::options()
        .with_draft(jsonschema::Draft::Draft202012)
        .build(&schema)
        .unwrap();
    let errors = validator.iter_errors(value);
    errors
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

#[test]
fn every_example_is_as_its_schema_says() {
    let document = document();
    let mut requests = 0;
    for (path, item) in members(&document["paths"]) {
        for (method, call) in members(item) {
            for (_, body) in members(&call["requestBody"]["content"]) {
                let examples = examples(&document, body);
                assert!(!examples.is_empty(), "{method} {path} shows no request");
                for (_, example) in examples {
                    let objections = objections(&document, &body["schema"], example);
                    assert!(objections.is_empty(), "{method} {path}: {objections:#?}");
                    requests += 1;
                }
            }
        }
    }
    assert!(requests > 6);
    for (of, status, media_type, body) in bodies(&document) {
        let examples = examples(&document, body);
        // A link that is behind is no more than one as it was before.
        let is_due = media_type.ends_with("json") && status != 202;
        assert!(!is_due || !examples.is_empty(), "{of} shows no response");
        for (name, example) in examples {
            let objections = objections(&document, &body["schema"], example);
            assert!(objections.is_empty(), "{of} {name}: {objections:#?}");
        }
    }
}

#[test]
fn every_error_names_its_types_and_shows_each_with_its_own_status() {
    let document = document();
    let mut shown = HashSet::new();
    for (of, status, media_type, body) in bodies(&document) {
        if status < 400 {
            continue;
        }
        assert_eq!(media_type, "application/problem+json", "{of}");
        for (slug, problem) in examples(&document, body) {
            let kind = format!("urn:problem-type:dojo-payment-links:{slug}");
            assert_eq!(problem["type"], kind, "{of}");
            assert_eq!(problem["status"], status, "{of} {slug}");
            let title = reqwest::StatusCode::from_u16(status).unwrap();
            assert_eq!(problem["title"], title.canonical_reason().unwrap(), "{of}");
            shown.insert(slug.to_owned());
        }
    }
    // Examples of single members are what renderers make up problems from, of one type with the status of another.
    for (name, member) in members(&document["components"]["schemas"]["Problem"]["properties"]) {
        assert!(member.get("example").is_none(), "{name}");
    }
    // These come from before any operation.
    shown.extend(["method-not-allowed", "error"].map(str::to_owned));
    assert_eq!(shown, problem_types().into_iter().collect());
}

/// The types of problems that `docs/problems.md` tells of.
pub fn problem_types() -> Vec<String> {
    let rows = include_str!("../../docs/problems.md").lines();
    let types = rows.filter_map(|row| row.strip_prefix("| `")?.split('`').next());
    types.map(str::to_owned).collect()
}
