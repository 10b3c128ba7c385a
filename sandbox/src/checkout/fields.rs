//! The fields of the form, and their initial values.

use super::form::RequiredParts;
use crate::intents::Intent;

pub(super) struct Section {
    pub(super) title: &'static str,
    pub(super) note: Option<&'static str>,
    pub(super) fields: Vec<Field>,
}

pub(super) struct Field {
    pub(super) id: String,
    pub(super) label: &'static str,
    pub(super) autocomplete: String,
    pub(super) kind: &'static str,
    pub(super) inputmode: &'static str,
    pub(super) maxlength: u16,
    pub(super) placeholder: Option<&'static str>,
    pub(super) hint: Option<&'static str>,
    pub(super) required: bool,
    pub(super) half: bool,
    pub(super) capitalize: bool,
    pub(super) value: String,
    pub(super) error: Option<&'static str>,
}

impl Field {
    fn text(id: impl Into<String>, label: &'static str, autocomplete: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            label,
            autocomplete: autocomplete.into(),
            kind: "text",
            inputmode: "text",
            maxlength: 100,
            placeholder: None,
            hint: None,
            required: true,
            half: false,
            capitalize: true,
            value: String::new(),
            error: None,
        }
    }

    fn digits(self, maxlength: u16) -> Self {
        Self {
            inputmode: "numeric",
            maxlength,
            capitalize: false,
            ..self
        }
    }

    fn half(self) -> Self {
        Self { half: true, ..self }
    }

    fn optional(self) -> Self {
        Self {
            required: false,
            ..self
        }
    }

    pub(super) fn is_country(&self) -> bool {
        self.id.ends_with("-country")
    }

    /// The ids for `aria-describedby`.
    pub(super) fn described_by(&self) -> Option<String> {
        let hint = self.hint.map(|_| format!("{}-hint", self.id));
        let error = self.error.map(|_| format!("{}-error", self.id));
        let both: Vec<String> = error.into_iter().chain(hint).collect();
        (!both.is_empty()).then(|| both.join(" "))
    }
}

/// All sections of the form. The card is last.
pub(super) fn sections(required_parts: RequiredParts) -> Vec<Section> {
    let mut sections = Vec::new();
    if required_parts.email {
        let email = Field {
            kind: "email",
            inputmode: "email",
            maxlength: 254,
            capitalize: false,
            hint: Some("We’ll send your receipt to this address."),
            ..Field::text("email", "Email address", "email")
        };
        sections.push(Section {
            title: "Contact",
            note: None,
            fields: vec![email],
        });
    }
    if required_parts.shipping {
        let mut fields = vec![Field::text("shipping-name", "Full name", "shipping name")];
        fields.extend(address_fields("shipping"));
        let notes = Field::text("shipping-notes", "Delivery notes", "off").optional();
        fields.push(Field {
            maxlength: 1024,
            ..notes
        });
        sections.push(Section {
            title: "Delivery address",
            note: None,
            fields,
        });
    }
    if required_parts.billing {
        let fields = address_fields("billing");
        sections.push(Section {
            title: "Billing address",
            note: None,
            fields,
        });
    }
    sections.push(Section {
        title: "Card details",
        note: Some("Visa, Mastercard, Maestro, Amex, Discover, Diners Club"),
        fields: vec![
            Field::text("card-number", "Card number", "cc-number").digits(23),
            Field {
                placeholder: Some("MM/YY"),
                ..Field::text("expiry", "Expiry date", "cc-exp")
                    .digits(9)
                    .half()
            },
            Field {
                hint: Some("3 digits on the back, or 4 on the front of Amex cards."),
                ..Field::text("cvv", "CVV", "cc-csc").digits(4).half()
            },
            Field::text("name", "Name on card", "cc-name"),
        ],
    });
    sections
}

fn address_fields(whose: &str) -> Vec<Field> {
    let field = |part: &str, label, autocomplete: &str| {
        Field::text(
            format!("{whose}-{part}"),
            label,
            format!("{whose} {autocomplete}"),
        )
    };
    vec![
        field("country", "Country", "country"),
        field("address1", "Address line 1", "address-line1"),
        field("address2", "Address line 2", "address-line2").optional(),
        field("city", "Town or city", "address-level2").half(),
        Field {
            maxlength: 50,
            ..field("postcode", "Postcode", "postal-code").half()
        },
    ]
}

/// The value of a field in the intent.
pub(super) fn initial_value(intent: &Intent, field: &str) -> String {
    let shipping = intent.shipping_details.as_ref();
    if let Some((whose, part)) = field.split_once('-')
        && part != "name"
        && part != "notes"
    {
        let address = match whose {
            "billing" => intent.billing_address.as_ref(),
            "shipping" => shipping.and_then(|shipping| shipping.address.as_ref()),
            _ => None,
        };
        let Some(address) = address else {
            return String::new();
        };
        let text = match part {
            "address1" => &address.address1,
            "address2" => &address.address2,
            "city" => &address.city,
            "postcode" => &address.postcode,
            _ => return address.country_code.clone(),
        };
        return text.clone().unwrap_or_default();
    }
    let text = match field {
        "email" => intent
            .customer
            .as_ref()
            .and_then(|customer| customer.email_address.as_ref()),
        "shipping-name" => shipping.and_then(|shipping| shipping.name.as_ref()),
        "shipping-notes" => shipping.and_then(|shipping| shipping.delivery_notes.as_ref()),
        _ => None,
    };
    text.cloned().unwrap_or_default()
}
