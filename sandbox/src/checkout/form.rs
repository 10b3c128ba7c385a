//! The submitted form and its validation.

use std::collections::BTreeMap;

use time::{Date, Month};

use super::countries::COUNTRIES;
use crate::intents::{Address, Card, Collection, Config, Intent, ShippingDetails, is_test_card};

/// What the customer submitted. It doesn't implement `Debug`, because it contains a card.
pub(super) struct FormInput(BTreeMap<String, String>);

impl FormInput {
    pub(super) fn new(pairs: Vec<(String, String)>) -> Self {
        Self(pairs.into_iter().collect())
    }

    /// What the customer submitted before this card was challenged, as far as it is known. The rest of the form is stored in
    /// the intent.
    pub(super) fn challenged(card: &Card) -> Self {
        let number = card.challenged_number().map(grouped);
        let known = [
            ("name", Some(card.holder.clone())),
            ("card-number", number),
            ("expiry", month_and_year(&card.expiry_date)),
        ];
        let known = known
            .into_iter()
            .filter_map(|(id, value)| Some((id.to_owned(), value?)));
        Self(known.collect())
    }

    pub(super) fn get(&self, id: &str) -> &str {
        self.value(id).unwrap_or_default()
    }

    /// The value of this field, if the form had the field.
    fn value(&self, id: &str) -> Option<&str> {
        self.0.get(id).map(|value| value.trim())
    }

    /// The value to fill in again, so that after a mistake the customer needn't fill in the whole form.
    ///
    /// No page may contain a real card number, and people do enter their own card into a sandbox. So a card number is
    /// only filled in again if it is a published test card, or an invalid number that the customer can correct. The CVV
    /// never is.
    pub(super) fn refill(&self, id: &str) -> Option<&str> {
        let value = self.value(id)?;
        match id {
            "cvv" => None,
            "card-number" => {
                let number = digits_of(value);
                (is_test_card(&number) || !is_card_number(&number)).then_some(value)
            }
            _ => Some(value),
        }
    }

    fn optional(&self, id: &str) -> Option<String> {
        Some(self.get(id))
            .filter(|value| !value.is_empty())
            .map(str::to_owned)
    }
}

/// The parts of the form besides the card, from `config.*.collectionRequired`.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequiredParts {
    pub(super) email: bool,
    pub(super) billing: bool,
    pub(super) shipping: bool,
}

impl RequiredParts {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            email: Collection::required(config.customer_email),
            billing: Collection::required(config.billing_address),
            shipping: Collection::required(config.shipping_details),
        }
    }
}

#[derive(Debug)]
pub(super) struct ValidForm {
    pub(super) card: Card,
    email: Option<String>,
    billing: Option<Address>,
    shipping: Option<ShippingDetails>,
}

impl ValidForm {
    /// Stores the customer's details in the intent.
    pub(super) fn store_in(&self, intent: &mut Intent) {
        if self.email.is_some() {
            intent
                .customer
                .get_or_insert_default()
                .email_address
                .clone_from(&self.email);
        }
        if self.billing.is_some() {
            intent.billing_address.clone_from(&self.billing);
        }
        if self.shipping.is_some() {
            intent.shipping_details.clone_from(&self.shipping);
        }
    }
}

/// A field's id and an error message.
pub(super) type FieldError = (String, &'static str);

/// Validates all fields, in the order of the page.
pub(super) fn check(
    input: &FormInput,
    required_parts: RequiredParts,
    today: Date,
) -> Result<ValidForm, Vec<FieldError>> {
    let mut errors = Vec::new();
    let email = required_parts.email.then(|| input.get("email").to_owned());
    if email.as_deref().is_some_and(|email| !is_email(email)) {
        add_error(
            &mut errors,
            "email",
            "Enter an email address, such as name@example.com",
        );
    }
    let shipping = required_parts.shipping.then(|| {
        if input.get("shipping-name").is_empty() {
            add_error(
                &mut errors,
                "shipping-name",
                "Enter the name of the person who will receive the order",
            );
        }
        check_length(input, &mut errors, "shipping-name", 100);
        check_length(input, &mut errors, "shipping-notes", 1024);
        ShippingDetails {
            name: input.optional("shipping-name"),
            delivery_notes: input.optional("shipping-notes"),
            address: Some(address(input, &mut errors, "shipping")),
        }
    });
    let billing = required_parts
        .billing
        .then(|| address(input, &mut errors, "billing"));

    let number = digits_of(input.get("card-number"));
    if number.is_empty() {
        add_error(&mut errors, "card-number", "Enter your card number");
    } else if !is_card_number(&number) {
        add_error(
            &mut errors,
            "card-number",
            "Check that your card number is correct",
        );
    }
    let expiry = expiry(input.get("expiry"));
    match expiry {
        None => add_error(
            &mut errors,
            "expiry",
            "Enter the expiry date in the format MM/YY",
        ),
        Some(end) if end < today => add_error(&mut errors, "expiry", "This card has expired"),
        Some(_) => {}
    }
    let cvv = input.get("cvv");
    let cvv_digits = if is_amex(&number) { 4 } else { 3 };
    if cvv.len() != cvv_digits || !is_digits(cvv) {
        let message = if cvv_digits == 4 {
            "Enter the CVV, the 4 digits on the front of your card"
        } else {
            "Enter the CVV, the 3 digits on the back of your card"
        };
        add_error(&mut errors, "cvv", message);
    }
    let holder = input.get("name");
    if holder.is_empty() {
        add_error(&mut errors, "name", "Enter the name on your card");
    }
    check_length(input, &mut errors, "name", 100);

    match expiry {
        Some(expiry) if errors.is_empty() => {
            let card = Card::new(&number, cvv, expiry.to_string(), holder.to_owned());
            Ok(ValidForm {
                card,
                email,
                billing,
                shipping,
            })
        }
        _ => Err(errors),
    }
}

fn address(input: &FormInput, errors: &mut Vec<FieldError>, whose: &str) -> Address {
    let id = |part: &str| format!("{whose}-{part}");
    let country = input.get(&id("country"));
    if !COUNTRIES.iter().any(|(code, _)| *code == country) {
        add_error(errors, &id("country"), "Select a country");
    }
    // The list of errors above the form must distinguish the two addresses.
    let missing = if whose == "billing" {
        [
            ("address1", "Enter the first line of the billing address"),
            ("city", "Enter the town or city of the billing address"),
            ("postcode", "Enter the postcode of the billing address"),
        ]
    } else {
        [
            ("address1", "Enter the first line of the delivery address"),
            ("city", "Enter the town or city of the delivery address"),
            ("postcode", "Enter the postcode of the delivery address"),
        ]
    };
    for (part, message) in missing {
        if input.get(&id(part)).is_empty() {
            add_error(errors, &id(part), message);
        }
    }
    for part in ["address1", "address2", "city"] {
        check_length(input, errors, &id(part), 100);
    }
    check_length(input, errors, &id("postcode"), 50);
    Address {
        address1: input.optional(&id("address1")),
        address2: input.optional(&id("address2")),
        city: input.optional(&id("city")),
        postcode: input.optional(&id("postcode")),
        country_code: country.to_owned(),
        ..Address::default()
    }
}

fn add_error(errors: &mut Vec<FieldError>, id: &str, message: &'static str) {
    errors.push((id.to_owned(), message));
}

fn check_length(input: &FormInput, errors: &mut Vec<FieldError>, id: &str, max: usize) {
    if input.get(id).chars().count() > max {
        add_error(errors, id, "This is too long. Enter fewer characters");
    }
}

fn is_email(text: &str) -> bool {
    text.len() <= 254
        && !text.contains(char::is_whitespace)
        && text.split_once('@').is_some_and(|(name, domain)| {
            !name.is_empty()
                && !domain.contains('@')
                && domain.split('.').count() > 1
                && domain.split('.').all(|label| !label.is_empty())
        })
}

/// A card number without spaces and dashes.
fn digits_of(number: &str) -> String {
    number.replace([' ', '-'], "")
}

/// A card number in groups of four digits, as on the card.
fn grouped(number: &str) -> String {
    let digits: Vec<char> = number.chars().collect();
    let groups: Vec<String> = digits.chunks(4).map(String::from_iter).collect();
    groups.join(" ")
}

/// `12/29` for `2029-12-31`.
fn month_and_year(date: &str) -> Option<String> {
    let mut parts = date.split('-');
    let (year, month) = (parts.next()?, parts.next()?);
    Some(format!("{month}/{}", year.get(2..)?))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_amex(number: &str) -> bool {
    number.starts_with("34") || number.starts_with("37")
}

/// Checks the length and the Luhn check digit.
fn is_card_number(number: &str) -> bool {
    if !(12..=19).contains(&number.len()) || !is_digits(number) {
        return false;
    }
    let sum: u32 = number
        .bytes()
        .rev()
        .enumerate()
        .map(|(place, byte)| {
            let digit = u32::from(byte - b'0');
            match (place % 2, digit * 2) {
                (0, _) => digit,
                (_, doubled) if doubled > 9 => doubled - 9,
                (_, doubled) => doubled,
            }
        })
        .sum();
    sum.is_multiple_of(10)
}

/// Parses `MM/YY` or `MM/YYYY`, with or without spaces and the slash. Returns the last day of the month.
fn expiry(text: &str) -> Option<Date> {
    let text: String = text
        .chars()
        .filter(|letter| !letter.is_whitespace())
        .collect();
    let (month, year) = match text.split_once(['/', '-']) {
        Some((month, year)) => (month, year),
        None if is_digits(&text) && text.len() >= 4 => text.split_at(2),
        None => return None,
    };
    if !is_digits(month) || month.len() > 2 || !is_digits(year) {
        return None;
    }
    let year: i32 = match year.len() {
        2 => 2000 + year.parse::<i32>().ok()?,
        4 => year.parse().ok()?,
        _ => return None,
    };
    let month = Month::try_from(month.parse::<u8>().ok()?).ok()?;
    Date::from_calendar_date(year, month, month.length(year)).ok()
}

#[cfg(test)]
mod tests {
    use time::macros::date;

    use super::{FormInput, RequiredParts, check, expiry, is_card_number, is_email};
    use crate::intents::IssuerDecision;

    const CARD_ONLY: RequiredParts = RequiredParts {
        email: false,
        billing: false,
        shipping: false,
    };

    fn errors(pairs: &[(&str, &str)], required_parts: RequiredParts) -> Vec<String> {
        let pairs = pairs
            .iter()
            .map(|(id, value)| ((*id).to_owned(), (*value).to_owned()));
        match check(
            &FormInput::new(pairs.collect()),
            required_parts,
            date!(2026 - 11 - 22),
        ) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.into_iter().map(|(id, _)| id).collect(),
        }
    }

    #[test]
    fn a_test_card_is_valid_with_any_spacing() {
        let pairs = [
            ("card-number", "5200 0000-0000 1096"),
            ("expiry", " 12 / 29 "),
            ("cvv", "020"),
            ("name", "A Customer"),
        ];
        let pairs = pairs.map(|(id, value)| (id.to_owned(), value.to_owned()));
        let form = check(
            &FormInput::new(pairs.to_vec()),
            CARD_ONLY,
            date!(2026 - 11 - 22),
        );
        let card = form.map(|form| form.card).map_err(|errors| errors.len());
        let card = card.map(|card| (card.decision, card.expiry_date));
        assert_eq!(
            card,
            Ok((IssuerDecision::Challenge, "2029-12-31".to_owned()))
        );
    }

    #[test]
    fn all_errors_are_reported_in_the_order_of_the_page() {
        let all = RequiredParts {
            email: true,
            billing: true,
            shipping: true,
        };
        assert_eq!(
            errors(&[("email", "no"), ("billing-country", "GB")], all),
            [
                "email",
                "shipping-name",
                "shipping-country",
                "shipping-address1",
                "shipping-city",
                "shipping-postcode",
                "billing-address1",
                "billing-city",
                "billing-postcode",
                "card-number",
                "expiry",
                "cvv",
                "name",
            ]
        );
    }

    #[test]
    fn a_card_is_valid_until_the_end_of_its_month() {
        let with = |expiry| {
            let number = ("card-number", "5200000000001005");
            errors(
                &[number, ("expiry", expiry), ("cvv", "020"), ("name", "A")],
                CARD_ONLY,
            )
        };
        assert!(with("11/26").is_empty());
        assert_eq!(with("10/26"), ["expiry"]);
    }

    #[test]
    fn a_card_that_may_be_real_is_not_filled_in_again() {
        let refill = |id: &str, value: &str| {
            FormInput::new(vec![(id.to_owned(), value.to_owned())])
                .refill(id)
                .map(str::to_owned)
        };
        for number in [
            "5200 0000 0000 1005", // a test card
            "5200000000001006",    // with a typo
            "5200 0000",
            "",
        ] {
            assert_eq!(refill("card-number", number).as_deref(), Some(number));
        }
        for number in ["4111 1111 1111 1111", "4111-1111-1111-1111"] {
            assert_eq!(refill("card-number", number), None);
        }
        assert_eq!(refill("cvv", "020"), None);
        assert_eq!(refill("expiry", "12/29").as_deref(), Some("12/29"));
        assert_eq!(FormInput::new(Vec::new()).refill("name"), None);
    }

    #[test]
    fn parses_expiry_dates_as_people_type_them() {
        for text in ["12/29", "12/2029", "12 / 29", "1229", "12-29", "122029"] {
            assert_eq!(expiry(text), Some(date!(2029 - 12 - 31)), "{text}");
        }
        for text in [
            "", "13/29", "0/29", "12/9", "12", "12/29/30", "ab/cd", "é1/29",
        ] {
            assert_eq!(expiry(text), None, "{text}");
        }
    }

    #[test]
    fn recognizes_card_numbers_and_email_addresses() {
        assert!(is_card_number("4456530000001013"));
        assert!(!is_card_number("4456530000001014"));
        assert!(!is_card_number("42"));
        assert!(is_email("a@b.co"));
        for invalid in ["a", "a@b", "@b.co", "a@b..co", "a b@c.de", "a@b@c.de"] {
            assert!(!is_email(invalid), "{invalid}");
        }
    }
}
