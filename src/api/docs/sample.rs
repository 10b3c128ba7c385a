//! Formats examples: JSON in the order of its schema, and requests as curl commands.

use serde_json::Value;
use url::form_urlencoded;

use super::schema::Schemas;

/// The maximum length of an object or array on a single line.
const LINE: usize = 60;

/// Indented JSON, with members in the order of the schema.
pub(super) fn json(schemas: Schemas<'_>, value: &Value, schema: &Value) -> String {
    let mut out = String::new();
    write(&mut out, schemas, value, schema, 0);
    out
}

fn write(out: &mut String, schemas: Schemas<'_>, value: &Value, schema: &Value, depth: usize) {
    let (open, close, items): (_, _, Vec<(Option<&str>, &Value, &Value)>) = match value {
        Value::Object(members) => {
            let order = schemas.order(schema);
            let mut names: Vec<&str> = members.keys().map(String::as_str).collect();
            // The sort is stable: members that the schema doesn't name come last, by name.
            names.sort_by_key(|name| {
                order
                    .iter()
                    .position(|known| known == name)
                    .unwrap_or(usize::MAX)
            });
            let items = names
                .into_iter()
                .map(|name| (Some(name), &members[name], schemas.member(schema, name)))
                .collect();
            ('{', '}', items)
        }
        Value::Array(values) => {
            let items = schemas.items(schema);
            (
                '[',
                ']',
                values.iter().map(|value| (None, value, items)).collect(),
            )
        }
        _ => {
            out.push_str(&value.to_string());
            return;
        }
    };
    let is_flat = items
        .iter()
        .all(|(_, value, _)| !value.is_object() && !value.is_array());
    let in_a_line = items.is_empty()
        || is_flat && value.to_string().len() <= LINE && (depth > 0 || items.len() < 2);
    let indent = "  ".repeat(if in_a_line { 0 } else { depth + 1 });
    out.push(open);
    for (n, (name, value, schema)) in items.into_iter().enumerate() {
        out.push_str(match (n, in_a_line) {
            (0, true) => "",
            (_, true) => ", ",
            (0, false) => "\n",
            (_, false) => ",\n",
        });
        out.push_str(&indent);
        if let Some(name) = name {
            out.push_str(&Value::from(name).to_string());
            out.push_str(": ");
        }
        write(out, schemas, value, schema, depth + 1);
    }
    if !in_a_line {
        out.push('\n');
        out.push_str(&"  ".repeat(depth));
    }
    out.push(close);
}

/// A request, to be formatted as a curl command. It uses the variables `$URL` and `$API_KEY`.
#[derive(Debug, Default)]
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    /// With its parameters filled in.
    pub(super) path: &'a str,
    pub(super) query: Vec<(&'a str, String)>,
    /// Whether it takes an API key.
    pub(super) with_key: bool,
    pub(super) headers: Vec<(&'a str, String)>,
    pub(super) body: Option<String>,
}

impl Request<'_> {
    pub(super) fn curl(&self) -> String {
        // curl sends a POST if there is a body, and a GET otherwise.
        let implied = if self.body.is_some() { "POST" } else { "GET" };
        let method = match self.method {
            method if method == implied => String::new(),
            method => format!(" -X {method}"),
        };
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(&self.query);
        let query = query.finish();
        let mark = if query.is_empty() { "" } else { "?" };
        let mut words = vec![format!("curl{method} \"$URL{}{mark}{query}\"", self.path)];
        if self.with_key {
            words.push("-H \"Authorization: Bearer $API_KEY\"".to_owned());
        }
        for (name, value) in &self.headers {
            words.push(format!("-H {}", quoted(&format!("{name}: {value}"))));
        }
        if let Some(body) = &self.body {
            words.push(format!("-d {}", quoted(body)));
        }
        words.join(" \\\n  ")
    }
}

/// Quotes a word for the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_is_in_the_order_of_its_schema() {
        let document = json!({"components": {"schemas": {
            "Money": {
                "properties": {"currencyCode": {}, "value": {}},
                "required": ["value", "currencyCode"],
            },
        }}});
        let schema = json!({"allOf": [
            {"properties": {"lines": {"items": {"$ref": "#/components/schemas/Money"}}}},
            {"properties": {"amount": {"oneOf": [{"$ref": "#/components/schemas/Money"}, {"type": "null"}]}, "id": {}},
             "required": ["id", "amount"]},
        ]});
        let value = json!({
            "amount": {"currencyCode": "GBP", "value": 1},
            "id": "a",
            "extra": [],
            "lines": [{"currencyCode": "GBP", "value": 2}],
        });
        assert_eq!(
            json(Schemas::of(&document), &value, &schema),
            "{\n  \"id\": \"a\",\n  \"amount\": {\"value\": 1, \"currencyCode\": \"GBP\"},\n  \"lines\": [\n    \
             {\"value\": 2, \"currencyCode\": \"GBP\"}\n  ],\n  \"extra\": []\n}"
        );
    }

    #[test]
    fn a_shell_parses_the_command_correctly() {
        let request = Request {
            method: "POST",
            path: "/echo",
            query: vec![("q", "a b&c".to_owned())],
            with_key: true,
            headers: vec![("x-note", "it's $HOME".to_owned())],
            body: Some("{\"a\": \"it's `id`\"}".to_owned()),
        };
        // The shell prints what it would have run.
        let script = format!("curl() {{ printf '%s\\n' \"$@\"; }}\n{}", request.curl());
        let shell = std::process::Command::new("sh")
            .args(["-euc", &script])
            .env("URL", "http://localhost:1")
            .env("API_KEY", "dpl_key")
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(shell.stdout).unwrap(),
            "http://localhost:1/echo?q=a+b%26c\n-H\nAuthorization: Bearer dpl_key\n-H\nx-note: it's $HOME\n\
             -d\n{\"a\": \"it's `id`\"}\n"
        );
    }
}
