//! The fields of a form: as they were sent, and as they are shown again.

use url::form_urlencoded;

use crate::payment_link::Fault;

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
    pub(super) hint: &'static str,
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
            hint: "",
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

    pub(super) fn hint(mut self, hint: &'static str) -> Self {
        self.hint = hint;
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
