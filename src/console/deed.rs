//! What a person can do with a link, and the form for it.

use serde_json::{Map, Value, json};
use time::{Date, OffsetDateTime, macros::format_description};

use super::{
    amount::{FORM, field, parse, show},
    form::{Entry, Field, Form},
};
use crate::{
    api_key::Scope,
    payment_link::{
        Fault, LinkCapture, Money, PaymentLink, SettlementWindow,
        operation::{
            ActionKind,
            permission::{OtherOperations, PermitContext, allowed_actions},
        },
    },
};

/// Something to be done with a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    Send,
    Capture,
    Refund,
    Reverse,
    Amount,
    Tip,
    Receipt,
    Cancel,
    Renew,
}

/// What a person has entered, as a request to the API.
pub(super) struct Requested {
    /// The body. `None`: the request has none.
    pub(super) body: Option<Value>,
    /// The money that it moves or sets.
    pub(super) amount: Option<Money>,
}

impl Deed {
    const ALL: [Self; 9] = [
        Self::Send,
        Self::Capture,
        Self::Refund,
        Self::Reverse,
        Self::Amount,
        Self::Tip,
        Self::Receipt,
        Self::Cancel,
        Self::Renew,
    ];

    /// The end of the form's path.
    pub(super) fn slug(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Capture => "capture",
            Self::Refund => "refund",
            Self::Reverse => "reverse",
            Self::Amount => "amount",
            Self::Tip => "tip",
            Self::Receipt => "receipt",
            Self::Cancel => "cancel",
            Self::Renew => "renew",
        }
    }

    pub(super) fn named(slug: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|deed| deed.slug() == slug)
    }

    /// What carries out operations of this kind.
    pub(super) fn of_kind(kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|deed| {
            deed.operation()
                .is_some_and(|operation| operation.as_str() == kind)
        })
    }

    /// The end of the API's path.
    pub(super) fn api_name(self) -> &'static str {
        match self {
            Self::Send => "messages",
            Self::Capture => "captures",
            Self::Refund => "refunds",
            Self::Reverse => "reversal",
            Self::Amount => "amount",
            Self::Tip => "tips-amount",
            Self::Receipt => "receipt",
            Self::Cancel => "cancel",
            Self::Renew => "renew",
        }
    }

    /// The operation that it is, if it is one.
    pub(super) fn operation(self) -> Option<ActionKind> {
        match self {
            Self::Capture => Some(ActionKind::Capture),
            Self::Refund => Some(ActionKind::Refund),
            Self::Reverse => Some(ActionKind::Reversal),
            Self::Amount => Some(ActionKind::Amount),
            Self::Tip => Some(ActionKind::TipsAmount),
            Self::Receipt => Some(ActionKind::Receipt),
            Self::Cancel => Some(ActionKind::Cancel),
            Self::Send | Self::Renew => None,
        }
    }

    pub(super) fn scope(self) -> Scope {
        match self {
            Self::Send => Scope::LinksSend,
            Self::Renew => Scope::LinksWrite,
            Self::Capture
            | Self::Refund
            | Self::Reverse
            | Self::Amount
            | Self::Tip
            | Self::Receipt
            | Self::Cancel => Scope::PaymentsManage,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Send => "Send to the customer",
            Self::Capture => "Capture",
            Self::Refund => "Refund",
            Self::Reverse => "Reverse",
            Self::Amount => "Change the amount",
            Self::Tip => "Change the tip",
            Self::Receipt => "Send a receipt",
            Self::Cancel => "Cancel the link",
            Self::Renew => "Renew",
        }
    }

    /// What it means for the customer, before it is done.
    pub(super) fn meaning(self) -> &'static str {
        match self {
            Self::Send => {
                "The customer gets an email with the link and its QR code. This can’t be undone."
            }
            Self::Capture => "The money is collected from the customer’s card.",
            Self::Refund => "The money goes back to the customer’s card. This can’t be undone.",
            Self::Reverse => "The whole payment is reversed. This can’t be undone.",
            Self::Amount => "The customer pays the new amount instead of the old one.",
            Self::Tip => {
                "The customer pays the new tip on top of the amount, instead of the old one."
            }
            Self::Receipt => "Dojo sends the receipt by email. This can’t be undone.",
            Self::Cancel => "Nobody can pay the link afterwards. This can’t be undone.",
            Self::Renew => {
                "A new link with the same terms takes this one’s place, and gets its short address. Dojo must confirm \
                 first that nobody can pay the old one."
            }
        }
    }

    /// Whether the person sees what they have entered once more before it is done.
    pub(super) fn is_reviewed(self) -> bool {
        matches!(
            self,
            Self::Capture | Self::Refund | Self::Amount | Self::Tip
        )
    }

    /// Whether its request has a body.
    pub(super) fn has_body(self) -> bool {
        !matches!(self, Self::Reverse | Self::Cancel)
    }

    /// Whether it needs a second person if its amount is above the limit.
    pub(super) fn is_limited(self) -> bool {
        matches!(
            self,
            Self::Capture | Self::Refund | Self::Reverse | Self::Amount | Self::Tip
        )
    }

    /// Whether several of a link count together.
    pub(super) fn adds_up(self) -> bool {
        matches!(self, Self::Capture | Self::Refund)
    }

    /// Whether it destroys something.
    pub(super) fn is_dangerous(self) -> bool {
        matches!(self, Self::Refund | Self::Reverse | Self::Cancel)
    }

    /// The text of the button that does it.
    pub(super) fn button(self, amount: Option<Money>) -> String {
        match (self, amount) {
            (Self::Capture, Some(money)) => format!("Capture {}", show(money)),
            (Self::Refund, Some(money)) => format!("Refund {}", show(money)),
            (Self::Amount, Some(money)) => format!("Change the amount to {}", show(money)),
            (Self::Tip, Some(money)) => format!("Change the tip to {}", show(money)),
            (Self::Receipt, _) => "Send the receipt".to_owned(),
            (Self::Reverse, Some(money)) => format!("Reverse {}", show(money)),
            (Self::Send, _) => "Send the email".to_owned(),
            (Self::Renew, _) => "Renew the link".to_owned(),
            (deed, _) => deed.name().to_owned(),
        }
    }

    /// What the link allows now. The API has the last word.
    pub(super) fn possible(
        link: &PaymentLink,
        window: SettlementWindow,
        now: OffsetDateTime,
    ) -> Vec<Self> {
        let context = PermitContext {
            now,
            read_since: None,
            window,
        };
        let allowed = allowed_actions(link, &OtherOperations::default(), context);
        let is_possible = |deed: &Self| match deed {
            Self::Send => may_go_out(link, now),
            Self::Renew => link.replaced_by.is_none() && link.check_renewable().is_ok(),
            Self::Refund => link.refundable_amount.value > 0,
            deed => deed.operation().is_some_and(|kind| allowed.contains(&kind)),
        };
        Self::ALL.into_iter().filter(is_possible).collect()
    }

    /// How much is left for it, which the form begins with.
    fn left(self, link: &PaymentLink) -> Option<Money> {
        match self {
            Self::Refund => Some(link.refundable_amount),
            Self::Amount => Some(link.amount),
            Self::Tip => link.tips_amount,
            Self::Capture => Some(left_to_capture(link, link.amount, |capture| {
                capture.amount.value
            })),
            _ => None,
        }
    }

    /// The form's fields, filled in for this link.
    pub(super) fn fields(self, link: &PaymentLink) -> Vec<Field> {
        let left = self.left(link);
        let is_left = left.map_or_else(String::new, |left| format!("{} is left", show(left)));
        let amount = |label, hint: String| {
            let left = left.map(field).unwrap_or_default();
            Field::new("amount", label, Entry::Amount)
                .required()
                .value(left)
                .hint(hint)
                .limit(30)
        };
        match self {
            Self::Refund => vec![
                amount("Amount to refund", is_left),
                Field::new("reason", "Reason", Entry::Lines)
                    .hint("Dojo stores it with the refund")
                    .limit(1024),
            ],
            Self::Capture => {
                let mut fields = vec![amount(
                    "Amount to capture",
                    format!("{is_left}, without the tip"),
                )];
                if let Some(tip) = link.tips_amount.filter(|tip| tip.value > 0) {
                    let left = left_to_capture(link, tip, |capture| {
                        capture.tips_amount.map_or(0, |tip| tip.value)
                    });
                    fields.push(
                        Field::new("tip", "Tip to capture", Entry::Amount)
                            .value(field(left))
                            .hint("All that is left of the tip, unless you change it")
                            .limit(30),
                    );
                }
                fields
            }
            Self::Amount => vec![amount("New amount", "Without the tip".to_owned())],
            Self::Tip => vec![amount(
                "New tip",
                "On top of the amount. 0.00 for none".to_owned(),
            )],
            Self::Receipt => vec![
                Field::new("emails", "Email addresses", Entry::Lines)
                    .required()
                    .value(address_of(link))
                    .hint("One in each line, 20 at most")
                    .limit(5100),
            ],
            Self::Send => vec![
                Field::new("to", "Email address", Entry::Email)
                    .required()
                    .value(address_of(link))
                    .limit(254),
                Field::new("note", "Note", Entry::Lines)
                    .hint("Your own text, included in the email")
                    .limit(1000),
            ],
            Self::Renew => vec![
                Field::new("expires", "Last day to pay", Entry::Date)
                    .hint("30 days from now, unless you say otherwise; until midnight UTC"),
            ],
            Self::Reverse | Self::Cancel => Vec::new(),
        }
    }

    /// The request that the form asks for, or what is wrong with it.
    pub(super) fn read(self, form: &Form, link: &PaymentLink) -> Result<Requested, Vec<Fault>> {
        let currency_code = link.amount.currency_code;
        let mut faults = Vec::new();
        let mut body = Map::new();
        let mut amount = None;
        let money = |value| Money {
            value,
            currency_code,
        };
        if self.is_reviewed() {
            let name = if self == Self::Tip {
                "tipsAmount"
            } else {
                "amount"
            };
            match parse(form.text("amount"), currency_code) {
                Some(0) if self != Self::Tip => {
                    faults.push(Fault::new("/amount", "must be more than zero"));
                }
                Some(value) => {
                    amount = Some(money(value));
                    body.insert(name.to_owned(), json!(money(value)));
                }
                None => faults.push(Fault::new("/amount", FORM)),
            }
        }
        match self {
            Self::Capture if form.has("tip") => match parse(form.text("tip"), currency_code) {
                Some(0) => {}
                Some(tip) => {
                    body.insert("tipsAmount".to_owned(), json!(money(tip)));
                    amount = amount.map(|amount| money(amount.value.saturating_add(tip)));
                }
                None => faults.push(Fault::new("/tipsAmount", FORM)),
            },
            Self::Receipt => {
                let is_between = |letter: char| letter.is_whitespace() || ",;".contains(letter);
                let emails = form.text("emails").split(is_between);
                let emails: Vec<_> = emails.filter(|email| !email.is_empty()).collect();
                if emails.is_empty() {
                    faults.push(Fault::new("/emails", "must contain an address"));
                }
                body.insert("emails".to_owned(), json!(emails));
            }
            Self::Refund if form.has("reason") => {
                body.insert("refundReason".to_owned(), json!(form.text("reason")));
            }
            Self::Send => {
                body.insert("channel".to_owned(), json!("email"));
                body.insert("to".to_owned(), json!(form.text("to")));
                if form.has("note") {
                    body.insert("note".to_owned(), json!(form.text("note")));
                }
            }
            Self::Renew if form.has("expires") => match end_of_day(form.text("expires")) {
                Some(at) => {
                    body.insert("expireAt".to_owned(), json!(at));
                }
                None => faults.push(Fault::new("/expireAt", "must be a date")),
            },
            Self::Reverse => amount = Some(reversible(link)),
            _ => {}
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Requested {
            body: self.has_body().then_some(Value::Object(body)),
            amount,
        })
    }

    /// The field that a fault is about, by its pointer.
    pub(super) fn field_of(self, pointer: &str) -> Option<&'static str> {
        Some(match pointer {
            "/tipsAmount" | "/tipsAmount/value" if self == Self::Capture => "tip",
            "/amount" | "/amount/value" | "/tipsAmount" | "/tipsAmount/value" => "amount",
            _ if pointer.starts_with("/emails") => "emails",
            "/refundReason" => "reason",
            "/to" => "to",
            "/note" => "note",
            "/expireAt" => "expires",
            _ => return None,
        })
    }
}

/// Whether customers may get the link now. Nobody should pay another amount than the one that was requested.
pub(super) fn may_go_out(link: &PaymentLink, now: OffsetDateTime) -> bool {
    link.unpayable(now).is_none() && link.reported_amount.is_none()
}

/// How much a reversal undoes at most. What was captured isn't known before Dojo has confirmed it, so it may be less than what
/// the customer paid.
pub(super) fn reversible(link: &PaymentLink) -> Money {
    let whole = link.total_amount.unwrap_or(link.amount);
    Money {
        value: whole.value.max(link.captured_amount.value),
        ..whole
    }
}

/// How much of a part of the payment is left to capture.
pub(super) fn left_to_capture(
    link: &PaymentLink,
    whole: Money,
    part: fn(&LinkCapture) -> i64,
) -> Money {
    let captures = link.captures.iter().filter(|capture| !capture.is_void());
    let done = captures.map(part).fold(0, i64::saturating_add);
    Money {
        value: whole.value.saturating_sub(done).max(0),
        ..whole
    }
}

/// The customer's email address, or an empty text.
fn address_of(link: &PaymentLink) -> String {
    let customer = link.terms.customer.as_ref();
    let address = customer.and_then(|customer| customer.email_address.clone());
    address.unwrap_or_default()
}

/// The last second of a day in UTC, as the API wants it.
pub(super) fn end_of_day(text: &str) -> Option<String> {
    let form = format_description!("[year]-[month]-[day]");
    let day = Date::parse(text, form).ok()?;
    Some(format!("{day}T23:59:59Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_deed_has_a_path_of_its_own() {
        for deed in Deed::ALL {
            assert_eq!(Deed::named(deed.slug()), Some(deed));
            if let Some(kind) = deed.operation() {
                assert_eq!(Deed::of_kind(kind.as_str()), Some(deed));
            }
        }
        assert_eq!(Deed::named("qr.svg"), None);
    }

    #[test]
    fn a_day_ends_at_its_last_second() {
        assert_eq!(
            end_of_day("2026-12-03").as_deref(),
            Some("2026-12-03T23:59:59Z")
        );
        assert_eq!(end_of_day("3/12/2026"), None);
    }
}
