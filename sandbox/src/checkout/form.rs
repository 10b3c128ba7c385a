//! What the page asks for, and whether the answers will do.

use std::collections::BTreeMap;

use time::{Date, Month};

use super::countries::COUNTRIES;
use crate::intents::{Address, Card, Collection, Config, Intent, ShippingDetails, is_test_card};

/// What the customer typed. It has no `Debug`: there is a card in it.
pub(super) struct Entered(BTreeMap<String, String>);

impl Entered {
    pub(super) fn new(pairs: Vec<(String, String)>) -> Self {
        Self(pairs.into_iter().collect())
    }

    /// Only the name on the card, which is all that is left of a form once the bank has asked.
    pub(super) fn holder(name: String) -> Self {
        Self(BTreeMap::from([("name".to_owned(), name)]))
    }

    pub(super) fn get(&self, id: &str) -> &str {
        self.answer(id).unwrap_or_default()
    }

    /// What was typed into this field, if the form had it.
    fn answer(&self, id: &str) -> Option<&str> {
        self.0.get(id).map(|value| value.trim())
    }

    /// What to show again in this field, so that one mistake does not cost the whole form.
    ///
    /// A page can only keep what its answer contains, and no answer may ever contain somebody's card: people do
    /// type their own into a sandbox. So a card number is shown again only if it is one of the published test
    /// cards, or no card's number at all: a slip to correct. The CVV never is.
    pub(super) fn shown_again(&self, id: &str) -> Option<&str> {
        let answer = self.answer(id)?;
        match id {
            "cvv" => None,
            "card-number" => {
                let number = digits_of(answer);
                (is_test_card(&number) || !is_card_number(&number)).then_some(answer)
            }
            _ => Some(answer),
        }
    }

    fn optional(&self, id: &str) -> Option<String> {
        Some(self.get(id))
            .filter(|value| !value.is_empty())
            .map(str::to_owned)
    }
}

/// Which parts the page asks for besides the card, as `config.*.collectionRequired` says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) email: bool,
    pub(super) billing: bool,
    pub(super) shipping: bool,
}

impl Asked {
    pub(super) fn by(config: &Config) -> Self {
        Self {
            email: Collection::required(config.customer_email),
            billing: Collection::required(config.billing_address),
            shipping: Collection::required(config.shipping_details),
        }
    }
}

/// A form that can be acted on.
#[derive(Debug)]
pub(super) struct Filled {
    pub(super) card: Card,
    email: Option<String>,
    billing: Option<Address>,
    shipping: Option<ShippingDetails>,
}

impl Filled {
    /// Keeps with the intent what the customer told about themselves.
    pub(super) fn note_on(&self, intent: &mut Intent) {
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

/// A field's id and what is wrong with its answer.
pub(super) type Fault = (String, &'static str);

/// Checks all answers, in the order in which the page asks.
pub(super) fn check(entered: &Entered, asked: Asked, today: Date) -> Result<Filled, Vec<Fault>> {
    let mut faults = Vec::new();
    let email = asked.email.then(|| entered.get("email").to_owned());
    if email.as_deref().is_some_and(|email| !is_email(email)) {
        fault(
            &mut faults,
            "email",
            "Enter an email address, like name@example.com",
        );
    }
    let shipping = asked.shipping.then(|| {
        if entered.get("shipping-name").is_empty() {
            fault(
                &mut faults,
                "shipping-name",
                "Enter the name of who receives the order",
            );
        }
        too_long(entered, &mut faults, "shipping-name", 100);
        too_long(entered, &mut faults, "shipping-notes", 1024);
        ShippingDetails {
            name: entered.optional("shipping-name"),
            delivery_notes: entered.optional("shipping-notes"),
            address: Some(address(entered, &mut faults, "shipping")),
        }
    });
    let billing = asked
        .billing
        .then(|| address(entered, &mut faults, "billing"));

    let number = digits_of(entered.get("card-number"));
    if number.is_empty() {
        fault(&mut faults, "card-number", "Enter the card number");
    } else if !is_card_number(&number) {
        fault(
            &mut faults,
            "card-number",
            "Check the card number: it does not look right",
        );
    }
    let expiry = expiry(entered.get("expiry"));
    match expiry {
        None => fault(&mut faults, "expiry", "Enter the expiry date as MM/YY"),
        Some(end) if end < today => fault(&mut faults, "expiry", "This card has expired"),
        Some(_) => {}
    }
    let cvv = entered.get("cvv");
    let cvv_digits = if is_amex(&number) { 4 } else { 3 };
    if cvv.len() != cvv_digits || !is_digits(cvv) {
        let message = if cvv_digits == 4 {
            "Enter the CVV: 4 digits on the front"
        } else {
            "Enter the CVV: 3 digits on the back"
        };
        fault(&mut faults, "cvv", message);
    }
    let holder = entered.get("name");
    if holder.is_empty() {
        fault(&mut faults, "name", "Enter the name on the card");
    }
    too_long(entered, &mut faults, "name", 100);

    match expiry {
        Some(expiry) if faults.is_empty() => {
            let card = Card::presented(&number, cvv, expiry.to_string(), holder.to_owned());
            Ok(Filled {
                card,
                email,
                billing,
                shipping,
            })
        }
        _ => Err(faults),
    }
}

fn address(entered: &Entered, faults: &mut Vec<Fault>, whose: &str) -> Address {
    let id = |part: &str| format!("{whose}-{part}");
    let country = entered.get(&id("country"));
    if !COUNTRIES.iter().any(|(code, _)| *code == country) {
        fault(faults, &id("country"), "Choose a country");
    }
    // The list of faults above the form has to say which of the two addresses it means.
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
        if entered.get(&id(part)).is_empty() {
            fault(faults, &id(part), message);
        }
    }
    for part in ["address1", "address2", "city"] {
        too_long(entered, faults, &id(part), 100);
    }
    too_long(entered, faults, &id("postcode"), 50);
    Address {
        address1: entered.optional(&id("address1")),
        address2: entered.optional(&id("address2")),
        city: entered.optional(&id("city")),
        postcode: entered.optional(&id("postcode")),
        country_code: country.to_owned(),
        ..Address::default()
    }
}

fn fault(faults: &mut Vec<Fault>, id: &str, message: &'static str) {
    faults.push((id.to_owned(), message));
}

fn too_long(entered: &Entered, faults: &mut Vec<Fault>, id: &str, most: usize) {
    if entered.get(id).chars().count() > most {
        fault(faults, id, "Enter less: this is too long");
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

/// A card number without what people put between its groups.
fn digits_of(number: &str) -> String {
    number.replace([' ', '-'], "")
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_amex(number: &str) -> bool {
    number.starts_with("34") || number.starts_with("37")
}

/// The length that schemes allow, and the Luhn check digit.
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

/// Reads `MM/YY`, `MM/YYYY` and the same with spaces or without the slash: the month's last day.
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

    use super::{Asked, Entered, check, expiry, is_card_number, is_email};
    use crate::intents::Reaction;

    const CARD_ONLY: Asked = Asked {
        email: false,
        billing: false,
        shipping: false,
    };

    fn faults(pairs: &[(&str, &str)], asked: Asked) -> Vec<String> {
        let pairs = pairs
            .iter()
            .map(|(id, value)| ((*id).to_owned(), (*value).to_owned()));
        match check(&Entered::new(pairs.collect()), asked, date!(2026 - 11 - 22)) {
            Ok(_) => Vec::new(),
            Err(faults) => faults.into_iter().map(|(id, _)| id).collect(),
        }
    }

    #[test]
    fn a_test_card_passes_however_it_is_spaced() {
        let pairs = [
            ("card-number", "5200 0000-0000 1096"),
            ("expiry", " 12 / 29 "),
            ("cvv", "020"),
            ("name", "A Customer"),
        ];
        let pairs = pairs.map(|(id, value)| (id.to_owned(), value.to_owned()));
        let filled = check(
            &Entered::new(pairs.to_vec()),
            CARD_ONLY,
            date!(2026 - 11 - 22),
        );
        let card = filled
            .map(|filled| filled.card)
            .map_err(|faults| faults.len());
        let card = card.map(|card| (card.reaction, card.expiry_date));
        assert_eq!(card, Ok((Reaction::Challenge, "2029-12-31".to_owned())));
    }

    #[test]
    fn every_fault_is_told_in_the_order_of_the_page() {
        let all = Asked {
            email: true,
            billing: true,
            shipping: true,
        };
        assert_eq!(
            faults(&[("email", "no"), ("billing-country", "GB")], all),
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
    fn a_card_is_good_until_the_end_of_its_month() {
        let with = |expiry| {
            let number = ("card-number", "5200000000001005");
            faults(
                &[number, ("expiry", expiry), ("cvv", "020"), ("name", "A")],
                CARD_ONLY,
            )
        };
        assert!(with("11/26").is_empty());
        assert_eq!(with("10/26"), ["expiry"]);
    }

    #[test]
    fn a_card_that_may_be_somebodys_is_not_shown_again() {
        let again = |id: &str, answer: &str| {
            Entered::new(vec![(id.to_owned(), answer.to_owned())])
                .shown_again(id)
                .map(str::to_owned)
        };
        for number in [
            "5200 0000 0000 1005", // a test card
            "5200000000001006",    // with a slip
            "5200 0000",
            "",
        ] {
            assert_eq!(again("card-number", number).as_deref(), Some(number));
        }
        for number in ["4111 1111 1111 1111", "4111-1111-1111-1111"] {
            assert_eq!(again("card-number", number), None);
        }
        assert_eq!(again("cvv", "020"), None);
        assert_eq!(again("expiry", "12/29").as_deref(), Some("12/29"));
        assert_eq!(Entered::new(Vec::new()).shown_again("name"), None);
    }

    #[test]
    fn reads_expiry_dates_as_people_type_them() {
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
    fn knows_a_card_number_and_an_address_when_it_sees_one() {
        assert!(is_card_number("4456530000001013"));
        assert!(!is_card_number("4456530000001014"));
        assert!(!is_card_number("42"));
        assert!(is_email("a@b.co"));
        for wrong in ["a", "a@b", "@b.co", "a@b..co", "a b@c.de", "a@b@c.de"] {
            assert!(!is_email(wrong), "{wrong}");
        }
    }
}
