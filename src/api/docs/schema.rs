//! Describes the schemas of an OpenAPI document in words.

use serde_json::Value;

use super::text::{Html, block, escape, inline, schema_anchor};

static NOTHING: Value = Value::Null;

/// The keywords that compose a schema from others.
const COMPOSED: [&str; 3] = ["allOf", "oneOf", "anyOf"];

/// The named schemas of a document.
#[derive(Clone, Copy)]
pub(super) struct Schemas<'a>(&'a Value);

/// A member of an object, a parameter, or a header.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) required: bool,
    pub(super) kind: Html,
    pub(super) limits: Html,
    pub(super) description: Html,
}

/// What a schema allows.
#[derive(Default)]
pub(super) struct Shape {
    pub(super) description: Html,
    /// The type, if there are no members, variants or values.
    pub(super) kind: Option<Html>,
    pub(super) values: Vec<String>,
    pub(super) members: Vec<Member>,
    pub(super) variants: Vec<Variant>,
}

/// One of several alternatives.
pub(super) struct Variant {
    /// The member that distinguishes it from the others, as JSON.
    pub(super) mark: Option<String>,
    pub(super) shape: Shape,
}

impl<'a> Schemas<'a> {
    pub(super) fn of(document: &'a Value) -> Self {
        Self(&document["components"]["schemas"])
    }

    pub(super) fn all(self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.0.as_object().into_iter().flatten()
    }

    /// The name of a schema that refers to a named one, or that is identical to one.
    pub(super) fn name(self, schema: &Value) -> Option<&'a str> {
        let found = match schema["$ref"].as_str() {
            Some(at) => self
                .all()
                .find(|(name, _)| Some(name.as_str()) == at.rsplit('/').next()),
            None => self.all().find(|(_, named)| *named == schema),
        };
        found.map(|(name, _)| name.as_str())
    }

    fn resolved(self, schema: &'a Value) -> &'a Value {
        let named = schema["$ref"].as_str().and_then(|at| at.rsplit('/').next());
        named.map_or(schema, |name| &self.0[name])
    }

    /// The schema and all parts that it is composed of, inline parts first.
    fn parts(self, schema: &'a Value) -> Vec<&'a Value> {
        let schema = self.resolved(schema);
        let mut parts: Vec<_> = COMPOSED
            .iter()
            .flat_map(|keyword| list(&schema[*keyword]))
            .collect();
        parts.sort_by_key(|part| part["$ref"].is_string());
        std::iter::once(schema)
            .chain(parts.into_iter().flat_map(|part| self.parts(part)))
            .collect()
    }

    /// The names of an object's members: the required ones in the schema's order, then the others.
    pub(super) fn order(self, schema: &'a Value) -> Vec<&'a str> {
        let parts = self.parts(schema);
        let required = parts
            .iter()
            .flat_map(|part| list(&part["required"]))
            .filter_map(Value::as_str);
        let all = parts
            .iter()
            .filter_map(|part| part["properties"].as_object());
        let mut names = Vec::new();
        for name in required.chain(all.flat_map(|all| all.keys().map(String::as_str))) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    pub(super) fn member(self, schema: &'a Value, name: &str) -> &'a Value {
        let parts = self.parts(schema);
        let found = parts
            .into_iter()
            .find_map(|part| part["properties"].get(name));
        found.unwrap_or(&NOTHING)
    }

    pub(super) fn items(self, schema: &'a Value) -> &'a Value {
        let parts = self.parts(schema);
        parts
            .into_iter()
            .find_map(|part| part.get("items"))
            .unwrap_or(&NOTHING)
    }

    /// The type of a value in a few words. Named schemas are links.
    pub(super) fn kind(self, schema: &'a Value) -> Html {
        if let Some(name) = self.name(schema) {
            let anchor = schema_anchor(name);
            return Html(format!(
                "<a href=\"#{}\">{}</a>",
                escape(&anchor),
                escape(name)
            ));
        }
        let several = |parts: Vec<&'a Value>, word: &str| {
            let parts: Vec<_> = parts.into_iter().map(|part| self.kind(part).0).collect();
            Html(parts.join(&format!(" {word} ")))
        };
        for (keyword, word) in [("oneOf", "or"), ("anyOf", "or"), ("allOf", "and")] {
            if schema[keyword].is_array() {
                return several(list(&schema[keyword]).collect(), word);
            }
        }
        let types: Vec<_> = match &schema["type"] {
            Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
            kind => kind.as_str().into_iter().collect(),
        };
        let words = types.iter().map(|kind| match *kind {
            "array" => format!("array of {}", self.kind(&schema["items"])),
            "object" if schema["additionalProperties"].is_object() => {
                format!("object of {}", self.kind(&schema["additionalProperties"]))
            }
            "string" => match schema["format"].as_str() {
                Some(format) => format!("string ({})", escape(format)),
                None => "string".to_owned(),
            },
            other => escape(other),
        });
        let words: Vec<_> = words.collect();
        Html(if words.is_empty() {
            "any JSON".to_owned()
        } else {
            words.join(" or ")
        })
    }

    /// The limits of a value in words.
    fn limits(self, schema: &'a Value) -> Html {
        let mut limits = Vec::new();
        let mut values: Vec<_> = list(&schema["enum"]).chain(schema.get("const")).collect();
        if self.name(schema).is_none() && !values.is_empty() {
            let values: Vec<_> = values.drain(..).map(code).collect();
            limits.push(format!("one of {}", values.join(", ")));
        }
        for (least, most, unit) in [
            ("minLength", "maxLength", " characters"),
            ("minItems", "maxItems", " items"),
            ("minimum", "maximum", ""),
        ] {
            limits.extend(match (bound(&schema[least]), bound(&schema[most])) {
                (Some(least), Some(most)) => Some(format!("{least} to {most}{unit}")),
                (None, Some(most)) => Some(format!("at most {most}{unit}")),
                (Some(least), None) if least == "1" && !unit.is_empty() => {
                    Some("not empty".to_owned())
                }
                (Some(least), None) => Some(format!("at least {least}{unit}")),
                (None, None) => None,
            });
        }
        limits.extend(
            schema
                .get("pattern")
                .map(|pattern| format!("matches {}", code(pattern))),
        );
        limits.extend(
            schema
                .get("default")
                .map(|default| format!("default {}", code(default))),
        );
        if schema["writeOnly"] == true {
            limits.push("never returned".to_owned());
        }
        Html(limits.join("; "))
    }

    /// A parameter or a header, which has its description beside its schema.
    pub(super) fn parameter(self, name: &str, parameter: &'a Value) -> Member {
        let schema = &parameter["schema"];
        Member {
            name: name.to_owned(),
            required: parameter["required"] == true,
            kind: self.kind(schema),
            limits: self.limits(schema),
            description: block(description(parameter), 5),
        }
    }

    fn members(self, schema: &'a Value, leave_out: Option<&str>) -> Vec<Member> {
        let required: Vec<_> = list(&schema["required"])
            .filter_map(Value::as_str)
            .collect();
        let Some(properties) = schema["properties"].as_object() else {
            return Vec::new();
        };
        let mut names: Vec<_> = properties.keys().map(String::as_str).collect();
        names.sort_by_key(|name| {
            required
                .iter()
                .position(|known| known == name)
                .unwrap_or(usize::MAX)
        });
        let names = names.into_iter().filter(|name| Some(*name) != leave_out);
        names
            .map(|name| {
                let member = &properties[name];
                // If a member is a named type or `null`, its description is beside the reference.
                let parts = COMPOSED.iter().flat_map(|keyword| list(&member[*keyword]));
                let texts = std::iter::once(member).chain(parts).map(description);
                let text = texts.into_iter().find(|text| !text.is_empty());
                Member {
                    name: name.to_owned(),
                    required: required.contains(&name),
                    kind: self.kind(member),
                    limits: self.limits(member),
                    description: block(text.unwrap_or_default(), 4),
                }
            })
            .collect()
    }

    /// A schema in full.
    pub(super) fn shape(self, schema: &'a Value) -> Shape {
        self.shape_without(schema, None)
    }

    fn shape_without(self, schema: &'a Value, leave_out: Option<&str>) -> Shape {
        let resolved = self.resolved(schema);
        let mut shape = Shape {
            description: block(description(resolved), 3),
            members: self.members(resolved, leave_out),
            values: list(&resolved["enum"]).map(plain).collect(),
            ..Shape::default()
        };
        let mut parts: Vec<_> = list(&resolved["allOf"]).collect();
        parts.sort_by_key(|part| part["$ref"].is_string());
        for part in parts {
            let mut part = self.shape(part);
            shape.members.append(&mut part.members);
            shape.variants.append(&mut part.variants);
        }
        // Required members come first.
        shape.members.sort_by_key(|member| !member.required);
        for keyword in ["oneOf", "anyOf"] {
            shape
                .variants
                .extend(list(&resolved[keyword]).map(|variant| {
                    let mark = self.mark(variant);
                    Variant {
                        shape: self.shape_without(variant, mark.map(|(name, _)| name)),
                        mark: mark.map(|(name, value)| format!("\"{name}\": {value}")),
                    }
                }));
        }
        if shape.members.is_empty()
            && shape.variants.is_empty()
            && shape.values.is_empty()
            && leave_out.is_none()
        {
            // The type and not the name, which is the heading.
            let kind = resolved["type"].as_str().unwrap_or("object");
            shape.kind = Some(Html(escape(kind)));
        }
        shape
    }

    /// The name and value of the member that has only one value in this variant.
    fn mark(self, variant: &'a Value) -> Option<(&'a str, &'a Value)> {
        let properties = self.resolved(variant)["properties"].as_object()?;
        properties.iter().find_map(|(name, schema)| {
            let value = match schema["enum"].as_array().map(Vec::as_slice) {
                Some([value]) => value,
                _ => schema.get("const")?,
            };
            Some((name.as_str(), value))
        })
    }
}

/// The items of a list, none if it isn't one.
pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub(super) fn description(about: &Value) -> &str {
    about["description"].as_str().unwrap_or_default()
}

/// A summary as a heading, without the full stop.
pub(super) fn heading(summary: &str) -> Html {
    inline(summary.trim().trim_end_matches('.'))
}

/// A bound of a value, unless it's only that of its integer type.
fn bound(value: &Value) -> Option<String> {
    let number = value.as_i64()?;
    let is_of_type = [i64::from(i32::MIN), i64::from(i32::MAX)].contains(&number);
    (!is_of_type).then(|| number.to_string())
}

/// A value as JSON, but strings without quotes.
pub(super) fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn code(value: &Value) -> String {
    format!("<code>{}</code>", escape(&plain(value)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn types_and_limits_are_described_in_words() {
        let document = json!({"components": {"schemas": {"Money": {"type": "object", "properties": {"value": {}}}}}});
        let schemas = Schemas::of(&document);
        let money = json!({"$ref": "#/components/schemas/Money"});
        let link = "<a href=\"#schema-Money\">Money</a>";
        for (schema, kind, limits) in [
            (
                json!({"type": "string", "format": "uri", "maxLength": 9}),
                "string (uri)",
                "at most 9 characters",
            ),
            (
                json!({"type": ["integer", "null"], "minimum": 1, "maximum": 100, "default": 50}),
                "integer or null",
                "1 to 100; default <code>50</code>",
            ),
            (
                json!({"type": "integer", "minimum": i32::MIN, "maximum": i32::MAX}),
                "integer",
                "",
            ),
            (
                json!({"type": "array", "items": money, "minItems": 1}),
                &format!("array of {link}"),
                "not empty",
            ),
            (
                json!({"oneOf": [money, {"type": "null"}]}),
                &format!("{link} or null"),
                "",
            ),
            (
                json!({"type": "object", "additionalProperties": {"type": "string"}}),
                "object of string",
                "",
            ),
            (
                json!({"type": "string", "enum": ["a", "b"]}),
                "string",
                "one of <code>a</code>, <code>b</code>",
            ),
            (document["components"]["schemas"]["Money"].clone(), link, ""),
            (json!({}), "any JSON", ""),
        ] {
            assert_eq!(schemas.kind(&schema).0, kind);
            assert_eq!(schemas.limits(&schema).0, limits, "{schema}");
        }
    }

    #[test]
    fn variants_are_distinguished_by_their_mark() {
        let document = json!({"components": {"schemas": {"Action": {"oneOf": [
            {"description": "Stops.", "properties": {"type": {"enum": ["stop"]}}},
            {"description": "Goes.", "properties": {"type": {"const": "go"}, "speed": {"type": "integer"}}, "required": ["speed"]},
        ]}}}});
        let schema = json!({"allOf": [
            {"$ref": "#/components/schemas/Action"},
            {"properties": {"id": {"type": "string"}}, "required": ["id"]},
        ]});
        let shape = Schemas::of(&document).shape(&schema);
        let names = |members: &[Member]| {
            members
                .iter()
                .map(|member| member.name.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&shape.members), ["id"]);
        let variants: Vec<_> = shape
            .variants
            .iter()
            .map(|variant| (variant.mark.clone().unwrap(), names(&variant.shape.members)))
            .collect();
        assert_eq!(
            variants,
            [
                ("\"type\": \"stop\"".to_owned(), vec![]),
                ("\"type\": \"go\"".to_owned(), vec!["speed".to_owned()]),
            ]
        );
    }
}
