//! The page at `/docs`: every route of the OpenAPI document, with a request to try and its responses.

use std::collections::BTreeSet;

use askama::Template;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{
    sample::{self, Request},
    schema::{Member, Schemas, Shape, description, heading, list, plain},
    text::{Html, anchor, block, escape, schema_anchor},
};

/// The methods of a path in display order.
const METHODS: [&str; 7] = ["post", "get", "put", "patch", "delete", "head", "options"];

/// The media type of problems (RFC 9457).
const PROBLEM: &str = "application/problem+json";

#[derive(Template)]
#[template(path = "docs/reference.html")]
pub(super) struct Page {
    title: String,
    version: String,
    description: Html,
    authentication: Vec<Html>,
    groups: Vec<Group>,
    objects: Vec<Object>,
}

/// The calls for one audience.
struct Group {
    name: String,
    anchor: String,
    tags: Vec<Tag>,
}

struct Tag {
    name: String,
    anchor: String,
    description: Html,
    calls: Vec<Call>,
}

struct Call {
    anchor: String,
    method: String,
    path: Html,
    summary: Html,
    description: Html,
    deprecated: bool,
    /// Whether it takes an API key.
    with_key: bool,
    parameters: Vec<(&'static str, Vec<Member>)>,
    body: Option<Body>,
    curl: String,
    /// Examples of other bodies.
    more: Vec<Example>,
    responses: Vec<Response>,
    problems: Vec<Response>,
}

struct Body {
    description: Html,
    kind: Html,
    required: bool,
    /// The members, unless they are described elsewhere on the page.
    object: Option<Object>,
}

struct Response {
    status: String,
    reason: &'static str,
    description: Html,
    kind: Option<Html>,
    headers: Vec<Member>,
    examples: Vec<Example>,
}

struct Example {
    name: String,
    text: String,
}

struct Object {
    name: String,
    anchor: String,
    shape: Shape,
}

impl Page {
    pub(super) fn new(document: &Value) -> Self {
        let info = &document["info"];
        let schemas = Schemas::of(document);
        let mut reader = Reader {
            document,
            schemas,
            described: BTreeSet::new(),
        };
        let groups = reader.groups();
        let described = reader.described;
        let security = document["components"]["securitySchemes"].as_object();
        Self {
            title: plain(&info["title"]),
            version: plain(&info["version"]),
            description: block(description(info), 1),
            authentication: security
                .into_iter()
                .flat_map(|schemes| schemes.values())
                .map(|scheme| block(description(scheme), 2))
                .filter(|text| !text.is_empty())
                .collect(),
            groups,
            objects: schemas
                .all()
                .filter(|(name, _)| !described.contains(name.as_str()))
                .map(|(name, schema)| object(schemas, name, schema))
                .collect(),
        }
    }
}

fn object(schemas: Schemas<'_>, name: &str, schema: &Value) -> Object {
    Object {
        name: name.to_owned(),
        anchor: schema_anchor(name),
        shape: schemas.shape(schema),
    }
}

struct Reader<'a> {
    document: &'a Value,
    schemas: Schemas<'a>,
    /// The schemas that are described where they are used.
    described: BTreeSet<&'a str>,
}

impl<'a> Reader<'a> {
    /// All calls, grouped by `x-tagGroups` and by tag.
    fn groups(&mut self) -> Vec<Group> {
        let document = self.document;
        let whole = json!([{"name": "Calls", "tags": list(&document["tags"]).map(|tag| &tag["name"]).collect::<Vec<_>>()}]);
        let groups = document.get("x-tagGroups").unwrap_or(&whole);
        let groups: Vec<_> = list(groups)
            .map(|group| {
                let name = plain(&group["name"]);
                let tags = list(&group["tags"])
                    .map(|tag| self.tag(&plain(tag)))
                    .collect();
                Group {
                    anchor: anchor(&name),
                    name,
                    tags,
                }
            })
            .collect();
        groups
    }

    fn tag(&mut self, name: &str) -> Tag {
        let mut calls = Vec::new();
        for (path, item) in self.document["paths"].as_object().into_iter().flatten() {
            for method in METHODS {
                let call = &item[method];
                if list(&call["tags"]).any(|tag| *tag == name) {
                    calls.push(self.call(method, path, call));
                }
            }
        }
        let about = list(&self.document["tags"]).find(|tag| tag["name"] == name);
        Tag {
            name: name.to_owned(),
            anchor: anchor(name),
            description: block(about.map(description).unwrap_or_default(), 3),
            calls,
        }
    }

    fn call(&mut self, method: &str, path: &str, call: &'a Value) -> Call {
        let method = method.to_uppercase();
        let parameters: Vec<_> = list(&call["parameters"]).collect();
        let of = |place: &str| -> Vec<&'a Value> {
            parameters
                .iter()
                .filter(|parameter| parameter["in"] == place)
                .copied()
                .collect()
        };
        let samples = |place: &str| -> Vec<(&'a str, String)> {
            let typical = of(place).into_iter().filter(|about| is_typical(about));
            typical
                .flat_map(|parameter| {
                    let name = parameter["name"].as_str().unwrap_or_default();
                    samples_of(parameter)
                        .into_iter()
                        .map(move |sample| (name, sample))
                })
                .collect()
        };
        let mut filled = path.to_owned();
        for (name, value) in samples("path") {
            filled = filled.replace(&format!("{{{name}}}"), &value);
        }
        let with_key = self.takes_key(call);
        let mut bodies = Vec::new();
        let mut headers = Vec::new();
        if let Some((media_type, media)) = first_content(&call["requestBody"]) {
            headers.push(("Content-Type", media_type.to_owned()));
            bodies = self.examples(media, None);
        }
        headers.extend(samples("header"));
        let request = Request {
            method: &method,
            path: &filled,
            query: samples("query"),
            with_key,
            headers,
            body: bodies.first().map(|example| example.text.clone()),
        };
        let (problems, responses) = call["responses"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(status, response)| self.response(status, response, &filled))
            .partition(|response| response.status.as_str() >= "400");
        Call {
            anchor: anchor(&format!("{method} {path}")),
            summary: heading(call["summary"].as_str().unwrap_or(path)),
            description: block(description(call), 4),
            deprecated: call["deprecated"] == true,
            with_key,
            parameters: [("Path", "path"), ("Query", "query"), ("Headers", "header")]
                .map(|(title, place)| {
                    let members = of(place).into_iter();
                    let members = members.map(|parameter| {
                        self.schemas
                            .parameter(&plain(&parameter["name"]), parameter)
                    });
                    (title, members.collect::<Vec<_>>())
                })
                .into_iter()
                .filter(|(_, members)| !members.is_empty())
                .collect(),
            body: self.body(&call["requestBody"]),
            curl: request.curl(),
            more: bodies.into_iter().skip(1).collect(),
            responses,
            problems,
            // A line may break after each part of a long path.
            path: Html(escape(path).replace('/', "/<wbr>")),
            method,
        }
    }

    fn takes_key(&self, call: &Value) -> bool {
        let required = call.get("security").unwrap_or(&self.document["security"]);
        list(required).any(|ways| ways.as_object().is_some_and(|ways| !ways.is_empty()))
    }

    /// What a reference refers to, or the value itself.
    fn resolved(&self, value: &'a Value) -> &'a Value {
        let target = value["$ref"].as_str().map(|at| at.trim_start_matches('#'));
        target
            .and_then(|at| self.document.pointer(at))
            .unwrap_or(value)
    }

    fn body(&mut self, body: &'a Value) -> Option<Body> {
        let (_, media) = first_content(body)?;
        let schema = &media["schema"];
        let name = self.schemas.name(schema);
        let is_first = name.is_some_and(|name| self.described.insert(name));
        Some(Body {
            description: block(description(body), 5),
            kind: self.schemas.kind(schema),
            required: body["required"] == true,
            object: name
                .filter(|_| is_first)
                .map(|name| object(self.schemas, name, schema)),
        })
    }

    fn response(&self, status: &str, response: &'a Value, path: &str) -> Response {
        let content = first_content(response);
        let reason = status
            .parse()
            .ok()
            .and_then(|status| StatusCode::from_u16(status).ok());
        Response {
            status: status.to_owned(),
            reason: reason
                .and_then(|status| status.canonical_reason())
                .unwrap_or_default(),
            description: block(description(response), 5),
            kind: content.map(|(_, media)| self.schemas.kind(&media["schema"])),
            headers: response["headers"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, header)| self.schemas.parameter(name, self.resolved(header)))
                .collect(),
            examples: content
                .map(|(media_type, media)| {
                    self.examples(media, (media_type == PROBLEM).then_some(path))
                })
                .unwrap_or_default(),
        }
    }

    /// The examples of a body. If `path` is given, the example of a problem is shown with it.
    fn examples(&self, media: &'a Value, path: Option<&str>) -> Vec<Example> {
        let named = media["examples"].as_object().into_iter().flatten();
        let named = named.map(|(name, example)| {
            let example = self.resolved(example);
            (name.clone(), &example["value"])
        });
        let single = media.get("example").map(|value| (String::new(), value));
        single
            .into_iter()
            .chain(named)
            .map(|(name, value)| {
                let mut value = value.clone();
                if let (Some(instance), Some(path)) = (value.get_mut("instance"), path) {
                    *instance = json!(path);
                }
                let text = match value {
                    Value::String(text) => text,
                    value => sample::json(self.schemas, &value, &media["schema"]),
                };
                Example { name, text }
            })
            .collect()
    }
}

/// Whether a typical request has this parameter, if there is an example of it: what is required, the key that makes retries
/// safe, and the most common filter of a list.
fn is_typical(parameter: &Value) -> bool {
    parameter["required"] == true
        || parameter["in"] == "query"
        || parameter["name"] == "Idempotency-Key"
}

/// The values of a parameter in a sample request: its example, if it has one. A list is a repeated parameter.
fn samples_of(parameter: &Value) -> Vec<String> {
    let example = parameter
        .get("example")
        .or_else(|| parameter["schema"].get("example"));
    match example {
        Some(Value::Array(values)) => values.iter().map(plain).collect(),
        example => example.map(plain).into_iter().collect(),
    }
}

/// The first media type of a body.
fn first_content(body: &Value) -> Option<(&str, &Value)> {
    let (media_type, media) = body["content"].as_object()?.iter().next()?;
    Some((media_type, media))
}
