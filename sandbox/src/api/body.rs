//! Reading request bodies: every fault found and named, in the manner of Dojo's errors.

use std::sync::LazyLock;

use jsonschema::error::ValidationErrorKind;
use jsonschema::{ValidationError, Validator};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::version::Version;
use crate::problem::{FieldErrors, Problem};

/// The request bodies that have a schema, by their name in `requests.schema.json`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    CreatePaymentIntent(Version),
    Search,
    Capture,
    Refund,
    SetAmount,
    SetTipsAmount,
    SendReceipt,
    Subscription,
    SubscriptionUpdate,
}

impl Shape {
    fn validator(self) -> &'static Validator {
        static CREATE: LazyLock<[Validator; 4]> =
            LazyLock::new(|| Version::ALL.map(compile_creation));
        static SEARCH: LazyLock<Validator> = LazyLock::new(|| compile("Search"));
        static CAPTURE: LazyLock<Validator> = LazyLock::new(|| compile("Capture"));
        static REFUND: LazyLock<Validator> = LazyLock::new(|| compile("Refund"));
        static AMOUNT: LazyLock<Validator> = LazyLock::new(|| compile("SetAmount"));
        static TIPS: LazyLock<Validator> = LazyLock::new(|| compile("SetTipsAmount"));
        static RECEIPT: LazyLock<Validator> = LazyLock::new(|| compile("SendReceipt"));
        static SUBSCRIPTION: LazyLock<Validator> = LazyLock::new(|| compile("Subscription"));
        static UPDATE: LazyLock<Validator> = LazyLock::new(|| compile("SubscriptionUpdate"));
        match self {
            Self::CreatePaymentIntent(version) => &CREATE[version as usize],
            Self::Search => &SEARCH,
            Self::Capture => &CAPTURE,
            Self::Refund => &REFUND,
            Self::SetAmount => &AMOUNT,
            Self::SetTipsAmount => &TIPS,
            Self::SendReceipt => &RECEIPT,
            Self::Subscription => &SUBSCRIPTION,
            Self::SubscriptionUpdate => &UPDATE,
        }
    }
}

fn compile(name: &str) -> Validator {
    compile_of(document(), name)
}

/// Creation has members that came or went with a version.
fn compile_creation(version: Version) -> Validator {
    const NAME: &str = "CreatePaymentIntent";
    let mut schema = document();
    let members = schema["$defs"][NAME]["properties"]
        .as_object_mut()
        .expect("a request is described by its members");
    if version < Version::V2026_02_27 {
        members.remove("isNotOnlineCheckout");
    }
    if version == Version::V2022_04_07 {
        members.insert(
            "autoExpireAt".to_owned(),
            json!({"$ref": "#/$defs/OptionalMoment"}),
        );
    }
    compile_of(schema, NAME)
}

fn document() -> Value {
    // The document is part of this program and every entry of it is compiled by a test.
    serde_json::from_str(include_str!("requests.schema.json"))
        .expect("requests.schema.json is JSON")
}

fn compile_of(mut schema: Value, name: &str) -> Validator {
    schema["$ref"] = json!(format!("#/$defs/{name}"));
    jsonschema::options()
        .should_validate_formats(true)
        .build(&schema)
        .expect("requests.schema.json is a JSON Schema")
}

/// Reads a body whose shape alone decides whether it is right.
pub(crate) fn read<T: DeserializeOwned>(shape: Shape, bytes: &[u8]) -> Result<T, Problem> {
    read_with(shape, bytes, |_| FieldErrors::new())
}

/// Reads a body that must also keep rules that its shape cannot express. `rules` gets the body as it
/// came, maybe misshapen, so that all faults are told at once.
pub(crate) fn read_with<T: DeserializeOwned>(
    shape: Shape,
    bytes: &[u8],
    rules: impl FnOnce(&Value) -> FieldErrors,
) -> Result<T, Problem> {
    let mut body: Value = serde_json::from_slice(bytes)
        .map_err(|error| Problem::invalid_field("$", format!("The body is not JSON: {error}.")))?;
    lower_initials(&mut body);

    let mut faults = FieldErrors::new();
    for error in shape.validator().iter_errors(&body) {
        for (field, message) in explain(&error) {
            faults.entry(field).or_default().push(message);
        }
    }
    for (field, messages) in rules(&body) {
        faults.entry(field).or_default().extend(messages);
    }
    if !faults.is_empty() {
        return Err(Problem::invalid(faults));
    }
    serde_json::from_value(body)
        .map_err(|error| Problem::invalid_field("$", format!("The body cannot be read: {error}.")))
}

/// Dojo reads `AutoExpireIn` as `autoExpireIn`: its own example for manual capture is written so.
pub(super) fn lower_initials(value: &mut Value) {
    match value {
        Value::Object(members) => {
            *members = std::mem::take(members)
                .into_iter()
                .map(|(name, mut member)| {
                    let name = lower_initial(&name);
                    // The keys of metadata are the caller's own.
                    if name != "metadata" {
                        lower_initials(&mut member);
                    }
                    (name, member)
                })
                .collect();
        }
        Value::Array(items) => items.iter_mut().for_each(lower_initials),
        _ => {}
    }
}

fn lower_initial(name: &str) -> String {
    let mut letters = name.chars();
    letters
        .next()
        .map(|first| first.to_lowercase().chain(letters).collect())
        .unwrap_or_default()
}

/// A fault as (field, message) pairs; the value itself is never repeated, it may be personal.
fn explain(error: &ValidationError<'_>) -> Vec<(String, String)> {
    let place = error.instance_path().as_str();
    match error.kind() {
        ValidationErrorKind::Required { property } => {
            let field = property.as_str().unwrap_or_default();
            let field = field_name(&format!("{place}/{field}"));
            vec![(field.clone(), format!("The {field} field is required."))]
        }
        ValidationErrorKind::AdditionalProperties { unexpected } => unexpected
            .iter()
            .map(|name| {
                let field = field_name(&format!("{place}/{name}"));
                (field.clone(), format!("There is no field {field}."))
            })
            .collect(),
        _ => {
            let field = field_name(place);
            vec![(field, format!("{}.", error.masked_with("The value")))]
        }
    }
}

/// `/itemLines/0/amountTotal` as .NET names it: `ItemLines[0].AmountTotal`.
fn field_name(pointer: &str) -> String {
    let mut name = String::new();
    for part in pointer.split('/').filter(|part| !part.is_empty()) {
        if part.bytes().all(|byte| byte.is_ascii_digit()) {
            name.push('[');
            name.push_str(part);
            name.push(']');
            continue;
        }
        if !name.is_empty() {
            name.push('.');
        }
        let mut letters = part.chars();
        name.extend(letters.next().into_iter().flat_map(char::to_uppercase));
        name.extend(letters);
    }
    if name.is_empty() {
        "$".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Shape, Version, field_name, lower_initials};

    #[test]
    fn every_shape_compiles() {
        for shape in [
            Shape::CreatePaymentIntent(Version::V2022_04_07),
            Shape::CreatePaymentIntent(Version::V2026_02_27),
            Shape::Search,
            Shape::Capture,
            Shape::Refund,
            Shape::SetAmount,
            Shape::SetTipsAmount,
            Shape::SendReceipt,
            Shape::Subscription,
            Shape::SubscriptionUpdate,
        ] {
            assert!(!shape.validator().is_valid(&Value::Null), "{shape:?}");
        }
    }

    #[test]
    fn names_fields_as_dot_net_does() {
        assert_eq!(
            field_name("/itemLines/0/amountTotal"),
            "ItemLines[0].AmountTotal"
        );
        assert_eq!(field_name(""), "$");
    }

    #[test]
    fn reads_pascal_case_but_leaves_metadata_alone() {
        let mut body = json!({"AutoExpireIn": "00:00:55", "Metadata": {"Site": "1"}});
        lower_initials(&mut body);
        assert_eq!(
            body,
            json!({"autoExpireIn": "00:00:55", "metadata": {"Site": "1"}})
        );
    }
}
