//! The request for a link: every parameter of Dojo's `CreatePaymentIntentRequest` (API version 2026-02-27) under Dojo's own
//! name, with its documented limits.
//!
//! The limits are written once, as schema attributes. The OpenAPI document is generated from them, and requests are
//! checked against the same schema. Rules that a schema can't express are in [`broken_rules`].

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use utoipa::ToSchema;

use super::{Fault, Money, Reminder, SendByEmail, message::broken_sending_rules, parse_time};

/// A payment link to be created.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewPaymentLink {
    /// The Dojo account that takes the money, by its name in this service. Default: `default`.
    #[serde(default = "default_account")]
    #[schema(
        min_length = 1,
        max_length = 60,
        default = "default",
        example = "default"
    )]
    pub account: String,
    /// What the customer pays, without tips, service charge and cashback. At least 1.
    pub amount: Money,
    /// The tip, on top of `amount`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tips_amount: Option<Money>,
    /// Sends the link to the customer by email as soon as it can be paid.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub send: Option<SendByEmail>,
    /// When to remind the customer, if nobody has paid the link by then. Each reminder is an event in the feed, and, if there
    /// is a `send`, an email. Dojo is asked first, so that nobody is reminded of something they have paid. At most 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 10, nullable = false, example = json!([{"after": "P3D"}, {"beforeExpiry": "P1D"}]))]
    pub reminders: Option<Vec<Reminder>>,
    /// All other parameters.
    #[serde(flatten)]
    pub terms: Terms,
}

fn default_account() -> String {
    NewPaymentLink::DEFAULT_ACCOUNT.to_owned()
}

impl NewPaymentLink {
    /// The account for a request that names none.
    pub const DEFAULT_ACCOUNT: &str = "default";

    /// The metadata entry that names the link at Dojo, so that the intent of a lost creation can be found. Callers can't set
    /// it.
    pub const ID_METADATA_KEY: &str = "paymentLinkId";
}

/// The terms of a payment: what it is for, how it is collected, and what the checkout page shows.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Terms {
    /// Your own reference for the payment.
    #[schema(min_length = 1, max_length = 60, example = "Order 236")]
    pub reference: String,
    /// What the payment is for. Shown on the checkout page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 4096, example = "Two tickets")]
    pub description: Option<String>,
    /// How the payment is collected.
    #[serde(default)]
    pub capture_mode: CaptureMode,
    /// Who pays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub customer: Option<Customer>,
    /// Where the invoice is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub billing_address: Option<Address>,
    /// Where the goods are sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shipping_details: Option<ShippingDetails>,
    /// Whether the card's details are entered while the card holder is not present.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub card_holder_not_present: Option<bool>,
    /// What the checkout page shows and asks for, and where it leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<CheckoutConfig>,
    /// The customer's device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_security: Option<RequestSecurity>,
    /// What the customer buys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_lines: Option<Vec<ItemLine>>,
    /// The taxes that are included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tax_lines: Option<Vec<TaxLine>>,
    /// How the customer may pay. Default: every method that the account offers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment_methods: Option<Vec<PaymentMethod>>,
    /// A link shown with the payment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action_link: Option<ActionLink>,
    /// When an unpaid link expires. Must be in the future. Default: 30 days after its creation.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub expire_at: Option<OffsetDateTime>,
    /// How long after its authorization a `Manual` payment is captured or released, as `dd.hh:MM:ss` or `hh:MM:ss`. More than
    /// 30 seconds, less than 7 days.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "00.10:00:00")]
    pub auto_expire_in: Option<String>,
    /// What happens to a `Manual` payment that is not captured within `autoExpireIn`. Required if `captureMode` is `Manual`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_expire_action: Option<AutoExpireAction>,
    /// Your own entries, which Dojo stores with the payment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Metadata>,
    /// The setup intent that the payment belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setup_intent_id: Option<String>,
    /// The order that the payment is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_details: Option<OrderDetails>,
    /// The cashback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cashback_amount: Option<Money>,
    /// The service charge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_charge_amount: Option<Money>,
    /// Whether Dojo generates a token with which the payment can be taken remotely.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generate_remote_token: Option<bool>,
    /// Whether payment links are accepted without an online-checkout integration. Requires a verified partner integration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_not_online_checkout: Option<bool>,
}

impl fmt::Debug for Terms {
    /// Shows nothing, because customers' names, addresses and devices must not be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Terms(..)")
    }
}

/// How a payment is collected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum CaptureMode {
    /// At once, when the customer's bank approves.
    #[default]
    Auto,
    /// When you request it, within 7 days.
    Manual,
}

/// What happens to a `Manual` payment that is not captured in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum AutoExpireAction {
    /// The authorization is released.
    Release,
    /// The money is captured.
    Capture,
}

/// A way to pay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum PaymentMethod {
    /// A card whose details are typed in.
    Card,
    /// Apple Pay or Google Pay.
    Wallet,
    /// A card that the customer saved before.
    SavedCard,
}

/// Who pays.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Customer {
    /// The customer's id at Dojo.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The customer's email address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 254)]
    pub email_address: Option<String>,
    /// The customer's phone number.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 50)]
    pub phone_number: Option<String>,
    /// The customer's secret at Dojo. Passed on to Dojo, and never returned.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub secret: Option<String>,
    /// The customer's saved card.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saved_card_id: Option<String>,
}

/// A postal address.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// Line 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub address1: Option<String>,
    /// Line 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub address2: Option<String>,
    /// Line 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub address3: Option<String>,
    /// Line 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub address4: Option<String>,
    /// City, town or village.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub city: Option<String>,
    /// State, province or region.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub state: Option<String>,
    /// Postal code.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 50)]
    pub postcode: Option<String>,
    /// ISO 3166-1 alpha-2 code.
    #[schema(max_length = 10, example = "GB")]
    pub country_code: String,
    /// A locality within or near the city.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub locality: Option<String>,
    /// County.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub county: Option<String>,
}

/// The caller's own entries, which Dojo stores with the payment. This service sets `paymentLinkId`.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Metadata(BTreeMap<String, String>);

/// Where the goods are sent.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShippingDetails {
    /// Who receives them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub name: Option<String>,
    /// A note for the delivery.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 1024)]
    pub delivery_notes: Option<String>,
    /// The address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
}

/// What the checkout page shows and asks for, and where it leads.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckoutConfig {
    /// The page's title.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub title: Option<String>,
    /// Where the customer goes after the payment.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = "uri")]
    pub redirect_url: Option<String>,
    /// Where the customer goes after canceling.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = "uri")]
    pub cancel_url: Option<String>,
    /// Whether the page asks for an email address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub customer_email: Option<Collection>,
    /// Which details of the order are shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<DetailsConfig>,
    /// Whether the page asks for a billing address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub billing_address: Option<Collection>,
    /// Whether the page asks for shipping details.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shipping_details: Option<Collection>,
    /// What may still be changed about the payment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment: Option<PaymentConfig>,
}

/// Whether the checkout page asks for something.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Collection {
    /// `true` if the customer must enter it.
    #[serde(default)]
    pub collection_required: bool,
}

/// Which details of the order the checkout page shows.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DetailsConfig {
    /// Whether the total is shown.
    #[serde(default)]
    pub show_total: bool,
    /// Whether the reference is shown.
    #[serde(default)]
    pub show_reference: bool,
}

/// What may still be changed about a payment.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PaymentConfig {
    /// Whether the amount may be changed before capture.
    #[serde(default)]
    pub custom_amount_allowed: bool,
    /// Whether a tip may be added.
    #[serde(default)]
    pub tips_allowed: bool,
}

/// The customer's device.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestSecurity {
    /// The browser's user agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 300)]
    pub user_agent: Option<String>,
    /// The IP address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 70)]
    pub ip_address: Option<String>,
    /// The type of device.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 120)]
    pub device: Option<String>,
}

/// An item that the customer buys.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ItemLine {
    /// The line's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 60, nullable = false)]
    pub id: Option<String>,
    /// The number of items.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = -2_147_483_648, maximum = 2_147_483_647, nullable = false)]
    pub quantity: Option<i32>,
    /// The item's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100, nullable = false)]
    pub name: Option<String>,
    /// The item's category.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub category: Option<String>,
    /// What changes the item's price.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub modifiers: Option<Vec<Modifier>>,
    /// The line's total, before discounts and taxes.
    pub amount_total: Money,
    /// The price look-up code.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 200, nullable = false)]
    pub plu: Option<String>,
}

/// A change to the price of an item, such as an extra or a discount.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Modifier {
    /// The modifier's id.
    pub id: String,
    /// The modifier's name.
    pub name: String,
    /// How many times it applies to one item.
    #[schema(minimum = -2_147_483_648, maximum = 2_147_483_647)]
    pub quantity: i32,
    /// How much it adds, or subtracts if negative.
    pub amount_per_modifier: Money,
}

/// A tax on what the customer buys.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaxLine {
    /// The line's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 60, nullable = false)]
    pub id: Option<String>,
    /// The tax's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100, nullable = false)]
    pub caption: Option<String>,
    /// The tax's second name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub sub_caption: Option<String>,
    /// The total of the tax.
    pub amount_total: Money,
    /// The price look-up code that the tax applies to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 200, nullable = false)]
    pub affected_plu: Option<String>,
}

/// A link shown with the payment.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ActionLink {
    /// Where it leads.
    #[schema(format = "uri")]
    pub url: String,
    /// What it does. Default: `OpenLink`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<ActionType>,
    /// The text of the link.
    #[schema(min_length = 1, max_length = 60)]
    pub label: String,
    /// The name of the file behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 256)]
    pub file_name: Option<String>,
}

/// What an action link does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ActionType {
    /// Opens a page.
    OpenLink,
    /// Downloads a file.
    DownloadFile,
}

/// The order that a payment is for.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderDetails {
    /// When it will be ready.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub availability_date: Option<OffsetDateTime>,
    /// Whether it updates an existing order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_update: Option<bool>,
    /// The order's id at Dojo.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The order's id in another system, such as a till.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
}

/// The rules for a [`NewPaymentLink`] that its schema can't express: a fault for each rule that is broken.
///
/// Works on the JSON and not on the type, so that the caller gets these faults and those of the schema at once. The schema
/// reports values that a rule can't read.
#[must_use]
pub fn broken_rules(body: &Value, now: OffsetDateTime) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |pointer: &str, detail: &str| faults.push(Fault::new(pointer, detail));
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str);

    if integer(body, "/amount/value").is_some_and(|value| value < 1) {
        fault("/amount/value", "must be at least 1");
    }
    for name in ["tipsAmount", "cashbackAmount", "serviceChargeAmount"] {
        let pointer = format!("/{name}/value");
        if integer(body, &pointer).is_some_and(|value| value < 0) {
            fault(&pointer, "must not be negative");
        }
    }
    // Their sum is returned as the total, which has the same limit as every amount.
    let parts = [
        "/amount/value",
        "/tipsAmount/value",
        "/cashbackAmount/value",
        "/serviceChargeAmount/value",
    ];
    let parts = parts.map(|pointer| integer(body, pointer).unwrap_or_default());
    let each_fits = parts.iter().all(|part| *part <= Money::MAX);
    if each_fits && parts.into_iter().map(i128::from).sum::<i128>() > i128::from(Money::MAX) {
        let detail = format!(
            "must be at most {} together with tips, cashback and service charge",
            Money::MAX
        );
        fault("/amount/value", &detail);
    }
    // A time that can't be converted to UTC passes the schema, but is too far in the future for Dojo.
    if let Some(at) = text("/expireAt").filter(|at| OffsetDateTime::parse(at, &Rfc3339).is_ok()) {
        match parse_time(at) {
            None => fault("/expireAt", "must be before the year 10000 in UTC"),
            Some(at) if at <= now => fault("/expireAt", "must be in the future"),
            Some(_) => {}
        }
    }
    for pointer in [
        "/config/redirectUrl",
        "/config/cancelUrl",
        "/actionLink/url",
    ] {
        let web = |url: &str| url.starts_with("https://") || url.starts_with("http://");
        if text(pointer).is_some_and(|url| !web(url)) {
            fault(pointer, "must begin with https:// or http://");
        }
    }
    if let Some(span) = text("/autoExpireIn") {
        match parse_timespan(span) {
            None => fault(
                "/autoExpireIn",
                "must have the form dd.hh:MM:ss or hh:MM:ss",
            ),
            Some(span)
                if span <= Duration::from_secs(30) || span >= Duration::from_hours(7 * 24) =>
            {
                fault(
                    "/autoExpireIn",
                    "must be more than 30 seconds and less than 7 days",
                );
            }
            Some(_) => {}
        }
    }
    if text("/captureMode") == Some("Manual")
        && body.get("autoExpireAction").is_none_or(Value::is_null)
    {
        fault(
            "/autoExpireAction",
            "is required if captureMode is Manual: Release or Capture",
        );
    }
    let own_entry = format!("/metadata/{}", NewPaymentLink::ID_METADATA_KEY);
    if body.pointer(&own_entry).is_some() {
        fault(&own_entry, "is set by this service");
    }
    if let Some(currency) = text("/amount/currencyCode") {
        for pointer in other_currencies(body, currency) {
            fault(&pointer, "must be the currency of amount");
        }
    }
    faults.extend(broken_sending_rules(body, now));
    faults
}

fn integer(body: &Value, pointer: &str) -> Option<i64> {
    body.pointer(pointer).and_then(Value::as_i64)
}

/// Parses the .NET time span that Dojo uses, `[d.]hh:mm:ss`.
fn parse_timespan(text: &str) -> Option<Duration> {
    fn number(text: &str, below: u64) -> Option<u64> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits
            .then(|| text.parse().ok())
            .flatten()
            .filter(|n| *n < below)
    }
    let (days, clock) = text.split_once('.').unwrap_or(("0", text));
    let mut parts = clock.split(':');
    let (hours, minutes, seconds) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let hours = number(days, 10_000)? * 24 + number(hours, 24)?;
    let minutes = hours * 60 + number(minutes, 60)?;
    Some(Duration::from_secs(minutes * 60 + number(seconds, 60)?))
}

/// Pointers to each currency code that is not `currency`. Skips the caller's metadata, which contains no amounts.
fn other_currencies(body: &Value, currency: &str) -> Vec<String> {
    fn walk(value: &Value, at: &str, currency: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let here = Fault::below(at, name);
                    if name == "currencyCode" && value.as_str().is_some_and(|code| code != currency)
                    {
                        found.push(here);
                    } else if here != "/metadata" {
                        walk(value, &here, currency, found);
                    }
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    walk(item, &format!("{at}/{index}"), currency, found);
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(body, "", currency, &mut found);
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::datetime;

    use super::*;

    fn faults(body: &Value) -> Vec<String> {
        broken_rules(body, datetime!(2026-01-01 00:00 UTC))
            .into_iter()
            .map(|fault| fault.pointer)
            .collect()
    }

    #[test]
    fn reports_every_broken_rule_at_once() {
        let body = json!({
            "amount": {"value": 0, "currencyCode": "GBP"},
            "tipsAmount": {"value": -1, "currencyCode": "EUR"},
            "itemLines": [{"amountTotal": {"value": 1, "currencyCode": "EUR"}}],
            "expireAt": "2025-12-31T23:59:59Z",
            "autoExpireIn": "00:00:30",
            "captureMode": "Manual",
            "metadata": {"paymentLinkId": "mine", "currencyCode": "USD"},
        });
        assert_eq!(
            faults(&body),
            [
                "/amount/value",
                "/tipsAmount/value",
                "/expireAt",
                "/autoExpireIn",
                "/autoExpireAction",
                "/metadata/paymentLinkId",
                "/itemLines/0/amountTotal/currencyCode",
                "/tipsAmount/currencyCode",
            ]
        );
    }

    #[test]
    fn the_total_has_the_limit_of_every_amount() {
        let with_tips = |tips: i64| {
            faults(&json!({
                "amount": {"value": 1, "currencyCode": "GBP"},
                "tipsAmount": {"value": tips, "currencyCode": "GBP"},
            }))
        };
        assert!(with_tips(Money::MAX - 1).is_empty());
        assert_eq!(with_tips(Money::MAX), ["/amount/value"]);
        assert!(
            with_tips(Money::MAX + 1).is_empty(),
            "the schema reports it"
        );
    }

    #[test]
    fn leaves_what_the_schema_reports_to_the_schema() {
        assert_eq!(faults(&json!({"amount": "ten", "expireAt": 5})), [""; 0]);
        assert_eq!(faults(&json!([])), [""; 0]);
    }

    #[test]
    fn reads_time_spans_as_dojo_writes_them() {
        let seconds = |text| parse_timespan(text).map(|span| span.as_secs());
        assert_eq!(seconds("00:00:55"), Some(55));
        assert_eq!(seconds("01.02:03:04"), Some(93_784));
        assert_eq!(seconds("6.23:59:59"), Some(604_799));
        for text in [
            "",
            "55",
            "00:55",
            "24:00:00",
            "00:60:00",
            "1.1.00:00:31",
            "+1:00:00",
            "00:00:31.5",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    #[test]
    fn customers_never_show_in_debug_output() {
        let new: NewPaymentLink = serde_json::from_value(json!({
            "amount": {"value": 1, "currencyCode": "GBP"}, "reference": "Ann",
            "customer": {"emailAddress": "ann@example.com"}, "requestSecurity": {"ipAddress": "192.0.2.1"},
            "send": {"email": "ann@example.com", "note": "Dear Ann"},
        }))
        .unwrap();
        let shown = format!("{new:?}");
        assert!(!shown.contains("nn") && !shown.contains("192"), "{shown}");
    }
}
