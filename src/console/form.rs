//! Forms: their keys, and their fields as they were sent and as they are shown again.

use std::{borrow::Cow, fmt};

use sha2::{Digest, Sha256};
use url::form_urlencoded;
use uuid::{Builder, Uuid};

use crate::payment_link::Fault;

/// The idempotency key of the request that a form leads to. It is in the form's address, so the back button and a reload lead to
/// the same request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FormKey(Uuid);

impl FormKey {
    const PREFIX: &str = "console-";

    pub(super) fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// The key among these fields. `None` if there is none, or if the text isn't exactly what a key is written as.
    pub(super) fn of(form: &Form) -> Option<Self> {
        let text = form.text("key");
        let key = Self(text.strip_prefix(Self::PREFIX)?.parse().ok()?);
        // A UUID can be written in several ways, and each would be another key to the API.
        (key.to_string() == text).then_some(key)
    }

    /// The key in an address.
    pub(super) fn in_query(query: Option<&str>) -> Option<Self> {
        Self::of(&Form::parse(query.unwrap_or_default().as_bytes()))
    }

    /// The key of the form that follows when the request with this one has ended without having done anything.
    ///
    /// It is always the same. So if the browser repeats the request that has ended, the form that follows is the same as well,
    /// and sending it twice is still one request.
    pub(super) fn successor(self) -> Self {
        let hash = Sha256::digest(format!("the form after {self}"));
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash[..16]);
        Self(Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// The address of the form at this path with this key.
    pub(super) fn address(self, path: &str) -> String {
        format!("{path}?key={self}")
    }
}

impl fmt::Display for FormKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::PREFIX, self.0)
    }
}

/// What a browser sent.
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    pub(super) fn parse(body: &[u8]) -> Self {
        Self(form_urlencoded::parse(body).into_owned().collect())
    }

    /// A field's text without white space around it. Empty if there is no such field.
    pub(super) fn text(&self, name: &str) -> &str {
        let mut fields = self.0.iter();
        fields
            .find(|(given, _)| given == name)
            .map_or("", |(_, value)| value.trim())
    }

    /// Whether the field has a text.
    pub(super) fn has(&self, name: &str) -> bool {
        !self.text(name).is_empty()
    }
}

/// How a field is entered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Text,
    Amount,
    Email,
    Date,
    /// Several lines.
    Lines,
    /// One of these, by value and name.
    Choice(Vec<(String, String)>),
    /// Yes, if it is chosen.
    Check,
}

/// A field to show.
#[derive(Debug, Clone)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) label: &'static str,
    pub(super) entry: Entry,
    pub(super) value: String,
    pub(super) hint: Cow<'static, str>,
    pub(super) is_required: bool,
    /// The most characters that it may have.
    pub(super) limit: u16,
    /// What is wrong with its value.
    pub(super) error: Option<String>,
}

impl Field {
    pub(super) fn new(name: &'static str, label: &'static str, entry: Entry) -> Self {
        Self {
            name,
            label,
            entry,
            value: String::new(),
            hint: Cow::Borrowed(""),
            is_required: false,
            limit: 200,
            error: None,
        }
    }

    pub(super) fn required(mut self) -> Self {
        self.is_required = true;
        self
    }

    pub(super) fn value(mut self, value: impl Into<String>) -> Self {
        self.value = value.into();
        self
    }

    pub(super) fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = hint.into();
        self
    }

    pub(super) fn limit(mut self, limit: u16) -> Self {
        self.limit = limit;
        self
    }

    /// The `type` of its `<input>`.
    pub(super) fn input_type(&self) -> &'static str {
        match self.entry {
            Entry::Email => "email",
            Entry::Date => "date",
            Entry::Check => "checkbox",
            Entry::Text | Entry::Amount | Entry::Lines | Entry::Choice(_) => "text",
        }
    }

    pub(super) fn is_amount(&self) -> bool {
        self.entry == Entry::Amount
    }

    pub(super) fn is_lines(&self) -> bool {
        self.entry == Entry::Lines
    }

    pub(super) fn is_check(&self) -> bool {
        self.entry == Entry::Check
    }

    /// Whether it is one of several choices.
    pub(super) fn is_choice(&self) -> bool {
        matches!(self.entry, Entry::Choice(_))
    }

    pub(super) fn choices(&self) -> Vec<Choice<'_>> {
        let Entry::Choice(choices) = &self.entry else {
            return Vec::new();
        };
        let choices = choices.iter().map(|(value, name)| Choice {
            value,
            name,
            is_chosen: *value == self.value,
        });
        choices.collect()
    }
}

/// One of the values that a field may have.
pub(super) struct Choice<'a> {
    pub(super) value: &'a str,
    pub(super) name: &'a str,
    pub(super) is_chosen: bool,
}

/// Fills in what was sent.
pub(super) fn fill(fields: &mut [Field], form: &Form) {
    for field in fields {
        form.text(field.name).clone_into(&mut field.value);
    }
}

/// Adds what is wrong to the field that it is about, and returns what no field shows.
pub(super) fn explain(
    fields: &mut [Field],
    faults: Vec<Fault>,
    field_of: impl Fn(&str) -> Option<&'static str>,
) -> Vec<Fault> {
    let mut rest = Vec::new();
    for fault in faults {
        let name = field_of(&fault.pointer);
        let field = fields.iter_mut().find(|field| Some(field.name) == name);
        match field {
            Some(field) if field.error.is_none() => field.error = Some(fault.detail),
            Some(_) => {}
            None => rest.push(fault),
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<FormKey> {
        FormKey::in_query(Some(&format!("key={text}")))
    }

    #[test]
    fn a_key_is_read_back_and_nothing_else_is_a_key() {
        let key = FormKey::generate();
        assert_eq!(read(&key.to_string()), Some(key));
        let uuid = "0193a1b2-c3d4-7e5f-8a6b-0c1d2e3f4a5b";
        assert!(read(&format!("console-{uuid}")).is_some());
        for wrong in [
            "",
            "console-",
            "console-1",
            uuid,
            &format!("console-{}", uuid.to_uppercase()),
            &format!("console-{}", uuid.replace('-', "")),
            &format!("console-{{{uuid}}}"),
            &format!("console-urn:uuid:{uuid}"),
            &format!("Console-{uuid}"),
            &format!("console-{uuid}x"),
            &format!("console-console-{uuid}"),
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(FormKey::in_query(None), None);
        assert_eq!(FormKey::in_query(Some("other=1")), None);
    }

    #[test]
    fn the_form_after_a_key_is_always_the_same_and_never_an_earlier_one() {
        let first = FormKey::generate();
        let second = first.successor();
        assert_eq!(first.successor(), second);
        assert_ne!(second, first);
        assert_ne!(second.successor(), first);
        assert_ne!(FormKey::generate().successor(), second);
        assert_eq!(read(&second.to_string()), Some(second));
    }
}
