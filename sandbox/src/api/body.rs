//! Reading request bodies. All errors are reported at once, in the format of Dojo's API.

use std::sync::LazyLock;

use jsonschema::error::ValidationErrorKind;
use jsonschema::{ValidationError, Validator};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::names::{field_name, lower_initials};
use super::version::Version;
use crate::problem::{FieldErrors, Problem};

/// The request bodies with a schema in `requests.schema.json`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BodySchema {
    CreatePaymentIntent(Version),
    Search,
    SearchTransactions,
    Capture,
    Refund,
    SetAmount,
    SetTipsAmount,
    SendReceipt,
    Subscription,
    SubscriptionUpdate,
}

impl BodySchema {
    fn validator(self) -> &'static Validator {
        static CREATE: LazyLock<[Validator; 4]> =
            LazyLock::new(|| Version::ALL.map(compile_creation));
        static SEARCH: LazyLock<Validator> = LazyLock::new(|| compile("Search"));
        static TRANSACTIONS: LazyLock<Validator> = LazyLock::new(|| compile("SearchTransactions"));
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
            Self::SearchTransactions => &TRANSACTIONS,
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
    compile_from(schemas(), name)
}

/// The members of a creation depend on the version.
fn compile_creation(version: Version) -> Validator {
    const NAME: &str = "CreatePaymentIntent";
    let mut schemas = schemas();
    let members = schemas["$defs"][NAME]["properties"]
        .as_object_mut()
        .expect("the schema of a creation has properties");
    if version < Version::V2026_02_27 {
        members.remove("isNotOnlineCheckout");
    }
    if version == Version::V2022_04_07 {
        members.insert(
            "autoExpireAt".to_owned(),
            json!({"$ref": "#/$defs/OptionalMoment"}),
        );
    }
    compile_from(schemas, NAME)
}

fn schemas() -> Value {
    // The file is compiled into the program, and a test compiles each of its schemas.
    serde_json::from_str(include_str!("requests.schema.json"))
        .expect("requests.schema.json is valid JSON")
}

fn compile_from(mut schemas: Value, name: &str) -> Validator {
    schemas["$ref"] = json!(format!("#/$defs/{name}"));
    jsonschema::options()
        .should_validate_formats(true)
        .build(&schemas)
        .expect("requests.schema.json is a valid JSON Schema")
}

/// Reads a body that its schema validates completely.
pub(crate) fn read<T: DeserializeOwned>(schema: BodySchema, bytes: &[u8]) -> Result<T, Problem> {
    read_with(schema, bytes, |_| FieldErrors::new())
}

/// Reads a body with rules that its schema can't express. `rules` also receives bodies that the schema rejects, so that
/// all errors are reported at once.
pub(crate) fn read_with<T: DeserializeOwned>(
    schema: BodySchema,
    bytes: &[u8],
    rules: impl FnOnce(&Value) -> FieldErrors,
) -> Result<T, Problem> {
    let mut body: Value = serde_json::from_slice(bytes).map_err(|error| {
        Problem::invalid_field("$", format!("The body is not valid JSON: {error}."))
    })?;
    lower_initials(&mut body);

    let mut errors = FieldErrors::new();
    for error in schema.validator().iter_errors(&body) {
        for (field, message) in explain(&error) {
            errors.entry(field).or_default().push(message);
        }
    }
    for (field, messages) in rules(&body) {
        errors.entry(field).or_default().extend(messages);
    }
    if !errors.is_empty() {
        return Err(Problem::invalid(errors));
    }
    serde_json::from_value(body)
        .map_err(|error| Problem::invalid_field("$", format!("The body cannot be read: {error}.")))
}

/// The error as pairs of field and message. The message never contains the value, which may be personal data.
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
                (field.clone(), format!("The field {field} does not exist."))
            })
            .collect(),
        _ => {
            let field = field_name(place);
            vec![(field, format!("{}.", error.masked_with("The value")))]
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{BodySchema, Version};

    #[test]
    fn every_schema_compiles() {
        for schema in [
            BodySchema::CreatePaymentIntent(Version::V2022_04_07),
            BodySchema::CreatePaymentIntent(Version::V2026_02_27),
            BodySchema::Search,
            BodySchema::SearchTransactions,
            BodySchema::Capture,
            BodySchema::Refund,
            BodySchema::SetAmount,
            BodySchema::SetTipsAmount,
            BodySchema::SendReceipt,
            BodySchema::Subscription,
            BodySchema::SubscriptionUpdate,
        ] {
            assert!(!schema.validator().is_valid(&Value::Null), "{schema:?}");
        }
    }
}
