//! `openapi.yaml` is up to date, and its examples are valid.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::support::{TestApp, program};

#[test]
fn the_committed_document_is_up_to_date() {
    let printed = program().arg("openapi").output().unwrap();
    assert!(printed.status.success());
    let committed = include_str!("../../openapi.yaml");
    assert!(
        String::from_utf8(printed.stdout).unwrap() == committed,
        "openapi.yaml is out of date: run cargo run -- openapi > openapi.yaml"
    );
}

/// `tests/clients/run.sh` validates it.
#[test]
fn the_document_is_printed_in_openapi_3_0() {
    let printed = program()
        .args(["openapi", "--version", "3.0"])
        .output()
        .unwrap();
    assert!(printed.status.success(), "{printed:?}");
    let old: Value = yaml_serde::from_slice(&printed.stdout).unwrap();
    assert_eq!(old["openapi"], "3.0.3");
    let new = document();
    let calls = |document: &Value| -> Vec<String> {
        let calls = members(&document["paths"]).flat_map(|(_, item)| members(item));
        calls
            .map(|(_, call)| call["operationId"].to_string())
            .collect()
    };
    assert_eq!(calls(&old), calls(&new));
    for (kind, parts) in members(&new["components"]) {
        let names = |parts| members(parts).map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(&old["components"][kind]), names(parts), "{kind}");
    }

    let unknown = program()
        .args(["openapi", "--version", "2.0"])
        .output()
        .unwrap();
    assert_eq!(unknown.status.code(), Some(2));
}

#[tokio::test]
async fn the_document_is_served() {
    let app = TestApp::start().await;
    let document = app.get("/openapi.yaml").await.expect(200);
    assert_eq!(document.text, include_str!("../../openapi.yaml"));
}

fn document() -> Value {
    yaml_serde::from_str(include_str!("../../openapi.yaml")).unwrap()
}

/// Every response with a body: its name for messages, its status, its media type, and its body.
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

/// The examples of a body with their names.
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

/// How a value violates a schema of the document.
fn violations(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
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
fn every_example_matches_its_schema() {
    let document = document();
    let mut requests = 0;
    for (path, item) in members(&document["paths"]) {
        for (method, call) in members(item) {
            for (_, body) in members(&call["requestBody"]["content"]) {
                let examples = examples(&document, body);
                assert!(
                    !examples.is_empty(),
                    "{method} {path} has no example of a request"
                );
                for (_, example) in examples {
                    let violations = violations(&document, &body["schema"], example);
                    assert!(violations.is_empty(), "{method} {path}: {violations:#?}");
                    requests += 1;
                }
            }
        }
    }
    assert!(requests > 6);
    for (of, status, media_type, body) in bodies(&document) {
        let examples = examples(&document, body);
        // An outdated link after a 202 looks like any other link.
        let needs_example = media_type.ends_with("json") && status != 202;
        assert!(
            !needs_example || !examples.is_empty(),
            "{of} has no example of a response"
        );
        for (name, example) in examples {
            let violations = violations(&document, &body["schema"], example);
            assert!(violations.is_empty(), "{of} {name}: {violations:#?}");
        }
    }
}

#[test]
fn every_error_response_has_an_example_of_each_problem_type() {
    let document = document();
    let mut shown = HashSet::new();
    for (of, status, media_type, body) in bodies(&document) {
        if status < 400 {
            continue;
        }
        assert_eq!(media_type, "application/problem+json", "{of}");
        for (slug, problem) in examples(&document, body) {
            let kind = format!("/docs/problems#{slug}");
            assert_eq!(problem["type"], kind, "{of}");
            assert_eq!(problem["status"], status, "{of} {slug}");
            let title = problem["title"].as_str().unwrap_or_default();
            assert!(title.len() > 4, "{of} {slug}");
            shown.insert(slug.to_owned());
        }
    }
    // If members had examples of their own, renderers would combine them to problems that don't exist.
    for (name, member) in members(&document["components"]["schemas"]["Problem"]["properties"]) {
        assert!(member.get("example").is_none(), "{name}");
    }
    // The router creates these, so no route documents them.
    shown.extend(["method-not-allowed", "error"].map(str::to_owned));
    assert_eq!(shown, problem_types().into_iter().collect());
}

/// The problem types in `docs/problems.md`.
pub fn problem_types() -> Vec<String> {
    let rows = include_str!("../../docs/problems.md").lines();
    let types = rows.filter_map(|row| row.strip_prefix("| `")?.split('`').next());
    types.map(str::to_owned).collect()
}
