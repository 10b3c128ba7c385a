//! Converts the OpenAPI document from 3.1 to 3.0, for tools that don't read 3.1.
//!
//! Each kind of object has a list of the keywords of OpenAPI 3.0 that may stay. What only 3.1 has is rewritten first. Any other
//! keyword is an error: a tool would ignore or reject it, and clients would differ from the document.

use std::fmt;

use serde_json::{Map, Value, json};

use Object::{
    Components, Document, Example, Header, Info, License, MediaType, Operation, Parameter,
    PathItem, RequestBody, Response, Schema, SecurityRequirement, SecurityScheme, Server, Tag,
};
use Part::{Additional, List, Maps, One, Plain};

type Members = Map<String, Value>;

/// Where the document uses what OpenAPI 3.0 cannot express, as JSON pointers.
#[derive(Debug, PartialEq, Eq)]
pub struct NotIn30(Vec<String>);

impl fmt::Display for NotIn30 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenAPI 3.0 cannot express {}", self.0.join(", "))
    }
}

impl std::error::Error for NotIn30 {}

/// The document in OpenAPI 3.0.
pub(super) fn convert(document: Value) -> Result<Value, NotIn30> {
    let mut conversion = Conversion {
        schemas: document["components"]["schemas"].clone(),
        schemes: document["components"]["securitySchemes"].clone(),
        unknown: Vec::new(),
    };
    let converted = conversion.object(Document, document, "");
    if conversion.unknown.is_empty() {
        Ok(converted)
    } else {
        Err(NotIn30(conversion.unknown))
    }
}

/// The kinds of objects in a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Object {
    Document,
    Info,
    License,
    Server,
    Tag,
    Components,
    PathItem,
    Operation,
    Parameter,
    RequestBody,
    Response,
    Header,
    MediaType,
    Example,
    SecurityScheme,
    SecurityRequirement,
    Schema,
}

/// What a member of an object contains.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// A value that is the same in both versions.
    Plain,
    One(Object),
    List(Object),
    /// An object with members of any name.
    Maps(Object),
    /// A schema, `true` or `false`.
    Additional,
}

impl Object {
    /// The keywords that this kind of object has in OpenAPI 3.0. Leaves out what the document has never used.
    fn keywords(self) -> &'static [(&'static str, Part)] {
        match self {
            Document => &[
                ("openapi", Plain),
                ("info", One(Info)),
                ("servers", List(Server)),
                ("paths", Maps(PathItem)),
                ("x-webhooks", Maps(PathItem)),
                ("components", One(Components)),
                ("security", List(SecurityRequirement)),
                ("tags", List(Tag)),
            ],
            Info => &[
                ("title", Plain),
                ("description", Plain),
                ("termsOfService", Plain),
                ("contact", Plain),
                ("license", One(License)),
                ("version", Plain),
            ],
            License => &[("name", Plain), ("url", Plain)],
            Server => &[("url", Plain), ("description", Plain)],
            Tag => &[("name", Plain), ("description", Plain)],
            Components => &[
                ("schemas", Maps(Schema)),
                ("responses", Maps(Response)),
                ("parameters", Maps(Parameter)),
                ("examples", Maps(Example)),
                ("requestBodies", Maps(RequestBody)),
                ("headers", Maps(Header)),
                ("securitySchemes", Maps(SecurityScheme)),
            ],
            PathItem => &[
                ("summary", Plain),
                ("description", Plain),
                ("get", One(Operation)),
                ("put", One(Operation)),
                ("post", One(Operation)),
                ("delete", One(Operation)),
                ("options", One(Operation)),
                ("head", One(Operation)),
                ("patch", One(Operation)),
                ("parameters", List(Parameter)),
            ],
            Operation => &[
                ("tags", Plain),
                ("summary", Plain),
                ("description", Plain),
                ("operationId", Plain),
                ("parameters", List(Parameter)),
                ("requestBody", One(RequestBody)),
                ("responses", Maps(Response)),
                ("deprecated", Plain),
                ("security", List(SecurityRequirement)),
            ],
            Parameter => &[
                ("name", Plain),
                ("in", Plain),
                ("description", Plain),
                ("required", Plain),
                ("deprecated", Plain),
                ("style", Plain),
                ("explode", Plain),
                ("schema", One(Schema)),
                ("example", Plain),
                ("examples", Maps(Example)),
            ],
            RequestBody => &[
                ("description", Plain),
                ("content", Maps(MediaType)),
                ("required", Plain),
            ],
            Response => &[
                ("description", Plain),
                ("headers", Maps(Header)),
                ("content", Maps(MediaType)),
            ],
            Header => &[
                ("description", Plain),
                ("required", Plain),
                ("deprecated", Plain),
                ("schema", One(Schema)),
                ("example", Plain),
            ],
            MediaType => &[
                ("schema", One(Schema)),
                ("example", Plain),
                ("examples", Maps(Example)),
            ],
            Example => &[("summary", Plain), ("description", Plain), ("value", Plain)],
            SecurityScheme => &[
                ("type", Plain),
                ("description", Plain),
                ("name", Plain),
                ("in", Plain),
                ("scheme", Plain),
                ("bearerFormat", Plain),
            ],
            // Its members are the names of schemes.
            SecurityRequirement => &[],
            Schema => &[
                ("$ref", Plain),
                ("title", Plain),
                ("description", Plain),
                ("type", Plain),
                ("format", Plain),
                ("enum", Plain),
                ("nullable", Plain),
                ("minimum", Plain),
                ("exclusiveMinimum", Plain),
                ("maximum", Plain),
                ("exclusiveMaximum", Plain),
                ("multipleOf", Plain),
                ("minLength", Plain),
                ("maxLength", Plain),
                ("pattern", Plain),
                ("minItems", Plain),
                ("maxItems", Plain),
                ("uniqueItems", Plain),
                ("minProperties", Plain),
                ("maxProperties", Plain),
                ("required", Plain),
                ("items", One(Schema)),
                ("properties", Maps(Schema)),
                ("additionalProperties", Additional),
                ("allOf", List(Schema)),
                ("oneOf", List(Schema)),
                ("anyOf", List(Schema)),
                ("not", One(Schema)),
                ("discriminator", Plain),
                ("default", Plain),
                ("example", Plain),
                ("readOnly", Plain),
                ("writeOnly", Plain),
                ("deprecated", Plain),
            ],
        }
    }
}

struct Conversion {
    /// The schemas by name, in 3.1.
    schemas: Value,
    /// The security schemes by name.
    schemes: Value,
    /// Pointers to what can't be converted.
    unknown: Vec<String>,
}

impl Conversion {
    fn object(&mut self, kind: Object, value: Value, at: &str) -> Value {
        let Value::Object(mut members) = value else {
            // Only 3.1 has schemas that are `true` or `false`.
            self.unknown.push(at.to_owned());
            return value;
        };
        match kind {
            Document => {
                members.insert("openapi".to_owned(), json!("3.0.3"));
                members.remove("jsonSchemaDialect");
                // Many tools know webhooks by this name in a 3.0 document.
                if let Some(webhooks) = members.remove("webhooks") {
                    members.insert("x-webhooks".to_owned(), webhooks);
                }
            }
            Info => {
                members.remove("summary");
            }
            // Its name says the same.
            License => {
                members.remove("identifier");
            }
            SecurityRequirement => return self.requirement(members),
            Schema => self.schema(&mut members, at),
            PathItem => {}
            // In 3.0, a reference has no other members. In 3.1, they replace texts of what it refers to.
            _ if members.contains_key("$ref") => {
                members.retain(|name, _| name != "summary" && name != "description");
                for name in members.keys().filter(|name| *name != "$ref") {
                    self.unknown.push(pointer(at, name));
                }
                return Value::Object(members);
            }
            _ => {}
        }
        let keywords = kind.keywords();
        let converted = members.into_iter().map(|(name, value)| {
            let below = pointer(at, &name);
            let known = keywords.iter().find(|(keyword, _)| *keyword == name);
            let value = if let Some((_, part)) = known {
                self.part(*part, value, &below)
            } else {
                if !name.starts_with("x-") {
                    self.unknown.push(below);
                }
                value
            };
            (name, value)
        });
        Value::Object(converted.collect())
    }

    fn part(&mut self, part: Part, value: Value, at: &str) -> Value {
        match (part, value) {
            (One(kind), value) => self.object(kind, value, at),
            (Additional, value @ Value::Object(_)) => self.object(Schema, value, at),
            (List(kind), Value::Array(items)) => items
                .into_iter()
                .enumerate()
                .map(|(index, item)| self.object(kind, item, &pointer(at, &index.to_string())))
                .collect(),
            (Maps(kind), Value::Object(members)) => members
                .into_iter()
                .map(|(name, member)| {
                    let below = pointer(at, &name);
                    let member = self.object(kind, member, &below);
                    (name, member)
                })
                .collect(),
            (_, value) => value,
        }
    }

    /// In 3.0, only the schemes `oauth2` and `openIdConnect` have scopes.
    fn requirement(&self, mut members: Members) -> Value {
        for (name, scopes) in &mut members {
            let kind = &self.schemes[name]["type"];
            if kind != "oauth2" && kind != "openIdConnect" {
                *scopes = json!([]);
            }
        }
        Value::Object(members)
    }

    fn schema(&mut self, members: &mut Members, at: &str) {
        if let Some(value) = members.remove("const") {
            members.insert("enum".to_owned(), json!([value]));
        }
        self.types(members, at);
        self.open_enum(members);
        for (bound, exclusive) in [
            ("minimum", "exclusiveMinimum"),
            ("maximum", "exclusiveMaximum"),
        ] {
            if members.get(exclusive).is_some_and(Value::is_number) {
                if members.contains_key(bound) {
                    self.unknown.push(pointer(at, exclusive));
                } else if let Some(limit) = members.insert(exclusive.to_owned(), json!(true)) {
                    members.insert(bound.to_owned(), limit);
                }
            }
        }
        if let Some(Value::Array(examples)) = members.remove("examples")
            && let Some(first) = examples.into_iter().next()
        {
            members.entry("example").or_insert(first);
        }
        // In 3.0, what is next to a reference is ignored.
        if members.len() > 1
            && let Some(reference) = members.remove("$ref")
        {
            if members.contains_key("allOf") {
                self.unknown.push(pointer(at, "allOf"));
            }
            members.insert("allOf".to_owned(), json!([{"$ref": reference}]));
        }
    }

    /// In 3.0, a schema has at most one type, and `null` isn't one.
    fn types(&mut self, members: &mut Members, at: &str) {
        let mut types = match members.remove("type") {
            Some(Value::Array(types)) => types,
            Some(kind) => vec![kind],
            None => return,
        };
        let all = types.len();
        types.retain(|kind| kind != "null");
        let allows_null = types.len() < all;
        match (types.pop(), types.is_empty()) {
            (Some(kind), true) => {
                members.insert("type".to_owned(), kind);
                if allows_null {
                    members.insert("nullable".to_owned(), json!(true));
                }
            }
            // Not `nullable`, which has no effect without a type, and none on a reference next to it. So an alternative to
            // `null` stays one: validators and generators read it correctly, unlike a nullable `allOf`.
            (None, _) => {
                members.insert("enum".to_owned(), json!([null]));
            }
            (Some(_), false) => self.unknown.push(pointer(at, "type")),
        }
    }

    /// An enum to which values may be added is a union of the named enum and any string, so any string matches it. Generators
    /// that read 3.0 take such alternatives for objects whose members are to be merged, so only a note of the enum is left.
    fn open_enum(&self, members: &mut Members) {
        let Some([known, other]) = members
            .get("anyOf")
            .and_then(Value::as_array)
            .map(Vec::as_slice)
        else {
            return;
        };
        let name = known["$ref"].as_str().and_then(|at| at.rsplit('/').next());
        let is_enum = name.is_some_and(|name| self.schemas[name]["type"] == "string");
        if is_enum && *other == json!({"type": "string"}) {
            let known = known.clone();
            members.remove("anyOf");
            members.insert("type".to_owned(), json!("string"));
            members.insert("x-known-values".to_owned(), known);
        }
    }
}

/// The pointer to a member.
fn pointer(at: &str, name: &str) -> String {
    format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(schema: &Value) -> Result<Value, NotIn30> {
        let status = json!({"type": "string", "enum": ["a", "b"]});
        let document = json!({"openapi": "3.1.0", "components": {"schemas": {"It": schema, "Status": status}}});
        convert(document).map(|document| document["components"]["schemas"]["It"].clone())
    }

    #[test]
    fn schemas_are_converted() {
        let money = json!({"$ref": "#/components/schemas/Money"});
        for (new, old) in [
            (
                json!({"type": "string", "maxLength": 9}),
                json!({"type": "string", "maxLength": 9}),
            ),
            (
                json!({"type": ["string", "null"], "format": "uri"}),
                json!({"type": "string", "nullable": true, "format": "uri"}),
            ),
            (json!({"type": ["string"]}), json!({"type": "string"})),
            (json!({"type": "null"}), json!({"enum": [null]})),
            (
                json!({"type": "string", "const": "a"}),
                json!({"type": "string", "enum": ["a"]}),
            ),
            (
                json!({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 9}),
                json!({"type": "integer", "minimum": 0, "exclusiveMinimum": true,
                       "maximum": 9, "exclusiveMaximum": true}),
            ),
            (json!({"examples": [1, 2]}), json!({"example": 1})),
            (json!({"example": 1}), json!({"example": 1})),
            (money.clone(), money.clone()),
            (
                json!({"$ref": "#/components/schemas/Money", "description": "The amount."}),
                json!({"allOf": [money], "description": "The amount."}),
            ),
            (
                json!({"oneOf": [money, {"type": "null"}], "description": "The amount."}),
                json!({"oneOf": [money, {"enum": [null]}], "description": "The amount."}),
            ),
            (
                json!({"anyOf": [{"type": ["string", "null"]}, {"const": null}]}),
                json!({"anyOf": [{"type": "string", "nullable": true}, {"enum": [null]}]}),
            ),
            (
                json!({"anyOf": [{"$ref": "#/components/schemas/Status"}, {"type": "string"}], "description": "Open."}),
                json!({"type": "string", "description": "Open.",
                       "x-known-values": {"$ref": "#/components/schemas/Status"}}),
            ),
            (
                json!({"anyOf": [money, {"type": "string"}]}),
                json!({"anyOf": [money, {"type": "string"}]}),
            ),
            (
                json!({"type": "object", "required": ["a"], "additionalProperties": false,
                       "properties": {"a": {"type": ["integer", "null"]}, "const": {}}}),
                json!({"type": "object", "required": ["a"], "additionalProperties": false,
                       "properties": {"a": {"type": "integer", "nullable": true}, "const": {}}}),
            ),
            (
                json!({"type": ["array", "null"], "items": {"oneOf": [money, {"const": 1}]}}),
                json!({"type": "array", "nullable": true, "items": {"oneOf": [money, {"enum": [1]}]}}),
            ),
            (
                json!({"additionalProperties": {"$ref": "#/components/schemas/Money", "deprecated": true}}),
                json!({"additionalProperties": {"allOf": [money], "deprecated": true}}),
            ),
        ] {
            assert_eq!(schema(&new), Ok(old), "{new}");
        }
    }

    #[test]
    fn what_3_0_cannot_express_is_an_error() {
        let at = |pointers: &[&str]| {
            let pointers = pointers.iter().map(|at| (*at).to_owned());
            Err(NotIn30(pointers.collect()))
        };
        for keyword in [
            "$anchor",
            "$comment",
            "$defs",
            "$id",
            "contains",
            "contentEncoding",
            "contentMediaType",
            "dependentRequired",
            "if",
            "patternProperties",
            "prefixItems",
            "propertyNames",
            "unevaluatedProperties",
        ] {
            assert_eq!(
                schema(&json!({"properties": {"a/b": {keyword: {}}}})),
                at(&[&format!("/components/schemas/It/properties/a~1b/{keyword}")])
            );
        }
        assert_eq!(
            schema(&json!({"properties": {"a": true}, "additionalProperties": true})),
            at(&["/components/schemas/It/properties/a"])
        );
        assert_eq!(
            schema(&json!({"type": ["string", "integer"]})),
            at(&["/components/schemas/It/type"])
        );
        assert_eq!(
            schema(&json!({"minimum": 1, "exclusiveMinimum": 2})),
            at(&["/components/schemas/It/exclusiveMinimum"])
        );
        assert_eq!(
            schema(&json!({"$ref": "#/a", "allOf": [{}]})),
            at(&["/components/schemas/It/allOf"])
        );
        let call = json!({"paths": {"/a": {"get": {"responses": {"200": {"content": {"text/plain": {"itemSchema": {}}}}}}}}});
        let error = convert(call).unwrap_err();
        assert_eq!(
            error.to_string(),
            "OpenAPI 3.0 cannot express /paths/~1a/get/responses/200/content/text~1plain/itemSchema"
        );
        assert_eq!(
            convert(json!({"components": {"pathItems": {}}})),
            at(&["/components/pathItems"])
        );
    }

    #[test]
    fn the_rest_of_a_document_is_converted() {
        let post = |security: Value, header: Value| {
            json!({"post": {
                "security": security,
                "responses": {"200": {"description": "Done.", "headers": {"etag": header}}},
            }})
        };
        let header = json!({"$ref": "#/components/headers/ETag"});
        let described = json!({"$ref": "#/components/headers/ETag", "description": "Its tag."});
        let schemes = json!({
            "apiKey": {"type": "http", "scheme": "bearer"},
            "login": {"type": "oauth2"},
        });
        let both = json!([{"apiKey": ["read"]}, {"login": ["read"]}]);
        let document = json!({
            "openapi": "3.1.0",
            "jsonSchemaDialect": "https://spec.openapis.org/oas/3.1/dialect/base",
            "info": {"title": "A", "summary": "B", "license": {"name": "MIT", "identifier": "MIT"}},
            "paths": {"/": post(both, described.clone())},
            "webhooks": {"paid": post(json!([]), described)},
            "components": {"securitySchemes": schemes},
            "x-tagGroups": [{"name": "A", "const": 1}],
        });
        assert_eq!(
            convert(document).unwrap(),
            json!({
                "openapi": "3.0.3",
                "info": {"title": "A", "license": {"name": "MIT"}},
                "paths": {"/": post(json!([{"apiKey": []}, {"login": ["read"]}]), header.clone())},
                "x-webhooks": {"paid": post(json!([]), header)},
                "components": {"securitySchemes": schemes},
                "x-tagGroups": [{"name": "A", "const": 1}],
            })
        );
    }
}
