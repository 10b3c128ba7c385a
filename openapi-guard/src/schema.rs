//! OpenAPI 3.0 schemas as JSON Schema.

use serde_json::{Map, Value, json};

/// Replaces OpenAPI 3.0's `nullable` with an alternative of type `null`.
pub(crate) fn replace_nullable(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(replace_nullable),
        Value::Object(members) => {
            members.values_mut().for_each(replace_nullable);
            if members.remove("nullable") == Some(json!(true)) {
                let inner = Value::Object(std::mem::take(members));
                members.insert("anyOf".to_owned(), json!([inner, {"type": "null"}]));
            }
        }
        _ => {}
    }
}

/// Merges schemas that inherit from another one. Dojo's document writes inheritance as `allOf` of two closed schemas.
/// In JSON Schema, each of them would forbid the members of the other, and nothing could ever be valid.
pub(crate) fn merge_inherited(schemas: &mut Value) {
    let originals = schemas.clone();
    let schemas = schemas.as_object_mut().into_iter();
    for schema in schemas.flat_map(|schemas| schemas.values_mut()) {
        let parts: Vec<&Value> = array(&schema["allOf"])
            .iter()
            .map(|part| referenced(part, &originals).unwrap_or(part))
            .collect();
        let closed = |part: &&Value| part["additionalProperties"] == false;
        if parts.len() < 2 || !parts.iter().all(closed) {
            continue;
        }
        let mut members = Map::new();
        let mut required = Vec::new();
        for part in parts {
            members.extend(part["properties"].as_object().cloned().unwrap_or_default());
            required.extend_from_slice(array(&part["required"]));
        }
        *schema = json!({
            "type": "object", "additionalProperties": false,
            "properties": members, "required": required,
        });
    }
}

fn referenced<'a>(part: &Value, schemas: &'a Value) -> Option<&'a Value> {
    let name = part["$ref"].as_str()?;
    schemas.get(name.strip_prefix("#/components/schemas/")?)
}

/// The items of an array, or none.
pub(crate) fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
