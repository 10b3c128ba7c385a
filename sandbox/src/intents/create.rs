//! Creation.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::Duration;

use super::intent::{
    Address, AutoExpireAction, CaptureMode, Config, Customer, Intent, ItemLine, ShippingDetails,
    Status, TaxLine,
};
use crate::account::Account;
use crate::clock::Timestamp;
use crate::ids;
use crate::money::Money;
use crate::problem::FieldErrors;
use crate::transactions::PaymentProduct;

/// How long an intent can be paid, unless the request sets `expireAt`.
const DEFAULT_LIFETIME: Duration = Duration::days(30);

/// The body of `POST /payment-intents`, after validation.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CreateIntent {
    amount: Money,
    reference: String,
    description: Option<String>,
    #[serde(default)]
    capture_mode: CaptureMode,
    auto_expire_in: Option<String>,
    auto_expire_at: Option<String>,
    auto_expire_action: Option<AutoExpireAction>,
    expire_at: Option<String>,
    tips_amount: Option<Money>,
    cashback_amount: Option<Money>,
    service_charge_amount: Option<Money>,
    customer: Option<Customer>,
    billing_address: Option<Address>,
    shipping_details: Option<ShippingDetails>,
    card_holder_not_present: Option<bool>,
    config: Option<Config>,
    request_security: Option<Value>,
    item_lines: Option<Vec<ItemLine>>,
    tax_lines: Option<Vec<TaxLine>>,
    payment_methods: Option<Vec<String>>,
    action_link: Option<Value>,
    metadata: Option<Map<String, Value>>,
    setup_intent_id: Option<String>,
    order_details: Option<Value>,
    #[serde(default)]
    generate_remote_token: bool,
    payment_source: Option<String>,
    #[serde(default)]
    is_not_online_checkout: bool,
}

#[derive(Debug)]
pub(crate) struct CreationContext<'a> {
    pub(crate) account: Account,
    pub(crate) public_url: &'a str,
    pub(crate) now: Timestamp,
}

impl Intent {
    /// A new intent with status `Created`.
    pub(crate) fn create(request: CreateIntent, context: CreationContext<'_>) -> Self {
        let id = ids::prefixed("pi_sandbox_");
        let now = context.now;
        let expire_at = request.expire_at.as_deref().and_then(Timestamp::parse);
        let auto_expire_at = request.auto_expire_at.as_deref().and_then(Timestamp::parse);
        // Without a remote token, Dojo returns .NET's zero date.
        let (secret, secret_expires) = if request.generate_remote_token {
            (
                Some(ids::base64_url(152)),
                now.plus(Duration::minutes(30)).to_string(),
            )
        } else {
            (None, "0001-01-01T00:00:00Z".to_owned())
        };
        let is_payment_link = request.is_not_online_checkout
            || request.payment_source.as_deref() == Some("payment-links");
        let mut intent = Self {
            payment_link: format!("{}/checkout/{id}", context.public_url),
            id,
            account: context.account,
            capture_mode: request.capture_mode,
            card_holder_not_present: request.card_holder_not_present.unwrap_or(false),
            client_session_secret: secret,
            client_session_secret_expiration_date: secret_expires,
            payment_details: None,
            status: Status::Created,
            payment_methods: request
                .payment_methods
                .unwrap_or_else(|| vec!["Card".to_owned()]),
            amount: request.amount,
            tips_amount: request.tips_amount,
            cashback_amount: request.cashback_amount,
            service_charge_amount: request.service_charge_amount,
            requested_amount: None,
            total_amount: request.amount,
            refunded_amount: 0,
            customer: request.customer,
            request_security: request.request_security,
            billing_address: request.billing_address,
            shipping_details: request.shipping_details,
            created_at: now,
            updated_at: now,
            reference: request.reference,
            description: request.description,
            item_lines: request.item_lines.unwrap_or_default(),
            tax_lines: request.tax_lines.unwrap_or_default(),
            action_link: request.action_link,
            merchant_config: json!({
                "supportedPaymentMethods": {
                    "cardSchemes": ["VISA", "MASTERCARD", "MAESTRO", "DISCOVER", "DCI", "AMEX"],
                    "wallets": ["APPLE_PAY", "GOOGLE_PAY"],
                }
            }),
            config: request.config.unwrap_or_default(),
            payment_source: request.payment_source.unwrap_or_else(|| "api".to_owned()),
            auto_expire_action: request.auto_expire_action,
            auto_expire_in: request.auto_expire_in,
            auto_expire_at,
            expire_at: expire_at.unwrap_or_else(|| now.plus(DEFAULT_LIFETIME)),
            metadata: request.metadata.unwrap_or_default(),
            order_details: request.order_details,
            setup_intent_id: request.setup_intent_id,
            payment_events: Vec::new(),
            terminal_session_history: Vec::new(),
            captures: Vec::new(),
            refunds: Vec::new(),
            authorized_at: None,
            challenge: None,
            expired: false,
            approved: None,
            payment_product: if is_payment_link {
                PaymentProduct::PaymentLinks
            } else {
                PaymentProduct::OnlineCheckout
            },
            movements: Vec::new(),
        };
        intent.update_total();
        intent
    }

    /// Updates the total. `amount` excludes tips, service charge and cashback.
    pub(super) fn update_total(&mut self) {
        let extras = [
            self.tips_amount,
            self.cashback_amount,
            self.service_charge_amount,
        ];
        let total = extras
            .into_iter()
            .flatten()
            .fold(self.amount.value, |sum, extra| {
                sum.saturating_add(extra.value)
            });
        self.total_amount = self.amount.with_value(total);
    }

    /// Sets the amount in minor units without applying any rule.
    pub(crate) fn force_amount(&mut self, minor_units: i64) {
        self.amount.value = minor_units;
        self.update_total();
    }

    /// `autoExpireIn` as a length of time.
    pub(super) fn auto_expire_after(&self) -> Option<Duration> {
        self.auto_expire_in.as_deref().and_then(parse_timespan)
    }
}

/// Validates what the schema of the body can't express.
pub(crate) fn check(body: &Value, now: Timestamp) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let mut add_error = |field: &str, message: &str| {
        errors
            .entry(field.to_owned())
            .or_default()
            .push(message.to_owned());
    };

    if let Some(text) = body["autoExpireIn"].as_str() {
        match parse_timespan(text) {
            None => add_error("AutoExpireIn", "The value must be in the form dd.hh:MM:ss."),
            Some(span) if span <= Duration::seconds(30) || span >= Duration::days(7) => {
                add_error(
                    "AutoExpireIn",
                    "The value must be more than 30 seconds and less than 7 days.",
                );
            }
            Some(_) => {}
        }
    }
    for (member, field) in [("expireAt", "ExpireAt"), ("autoExpireAt", "AutoExpireAt")] {
        // The schema reports a time that can't be parsed.
        if body[member]
            .as_str()
            .and_then(Timestamp::parse)
            .is_some_and(|end| end <= now)
        {
            add_error(field, "The value must be in the future.");
        }
    }

    let amount = &body["amount"];
    let mut total = amount["value"].as_i64();
    for (member, field) in [
        ("tipsAmount", "TipsAmount"),
        ("cashbackAmount", "CashbackAmount"),
        ("serviceChargeAmount", "ServiceChargeAmount"),
    ] {
        let extra = &body[member];
        if extra.is_null() {
            continue;
        }
        if extra["currencyCode"] != amount["currencyCode"] {
            add_error(
                &format!("{field}.CurrencyCode"),
                "The currency must be the same as the currency of Amount.",
            );
        }
        total = total.zip(extra["value"].as_i64()).map(|(sum, value)| {
            sum.checked_add(value).unwrap_or_else(|| {
                add_error("Amount.Value", "The total is too large.");
                sum
            })
        });
    }
    errors
}

/// Validates that a manual capture has an `autoExpireAction`. The first version of the API doesn't require it.
pub(crate) fn check_auto_expire_action(body: &Value) -> FieldErrors {
    if body["captureMode"] != "Manual" || !body["autoExpireAction"].is_null() {
        return FieldErrors::new();
    }
    let message = "The AutoExpireAction field is required when CaptureMode is Manual.";
    FieldErrors::from([("AutoExpireAction".to_owned(), vec![message.to_owned()])])
}

/// Reads `dd.hh:MM:ss` or `hh:MM:ss`.
fn parse_timespan(text: &str) -> Option<Duration> {
    let (days, clock) = match text.split_once('.') {
        Some((days, clock)) => (number(days, 1..=8)?, clock),
        None => (0, text),
    };
    let mut parts = clock.split(':').map(|part| number(part, 2..=2));
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() || hours > 23 || minutes > 59 || seconds > 59 {
        return None;
    }
    Some(Duration::seconds(
        ((days * 24 + hours) * 60 + minutes) * 60 + seconds,
    ))
}

fn number(digits: &str, length: std::ops::RangeInclusive<usize>) -> Option<i64> {
    let plain = length.contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use time::Duration;

    use super::{check, check_auto_expire_action, parse_timespan};
    use crate::clock::Timestamp;

    fn invalid_fields(body: &Value) -> Vec<String> {
        let now = Timestamp::parse("2026-03-01T12:00:00Z").expect("a time");
        check(body, now).into_keys().collect()
    }

    #[test]
    fn parses_both_forms_of_a_timespan() {
        assert_eq!(parse_timespan("00:00:55"), Some(Duration::seconds(55)));
        assert_eq!(
            parse_timespan("6.23:59:59"),
            Some(Duration::seconds(7 * 86400 - 1))
        );
        assert_eq!(parse_timespan("02.01:00:00"), Some(Duration::hours(49)));
        for invalid in [
            "",
            "55",
            "00:55",
            "0:0:55",
            "24:00:00",
            "00:60:00",
            "1.",
            "a.00:00:01",
            "1:2:3:4",
        ] {
            assert_eq!(parse_timespan(invalid), None, "{invalid}");
        }
    }

    #[test]
    fn auto_expire_in_is_between_30_seconds_and_7_days() {
        for (span, valid) in [
            ("00:00:30", false),
            ("00:00:31", true),
            ("6.23:59:59", true),
            ("7.00:00:00", false),
        ] {
            assert_eq!(
                invalid_fields(&json!({"autoExpireIn": span})).is_empty(),
                valid,
                "{span}"
            );
        }
    }

    #[test]
    fn manual_capture_requires_an_auto_expire_action() {
        let manual = json!({"captureMode": "Manual"});
        assert!(check_auto_expire_action(&manual).contains_key("AutoExpireAction"));
        let with_action = json!({"captureMode": "Manual", "autoExpireAction": "Release"});
        assert!(check_auto_expire_action(&with_action).is_empty());
    }

    #[test]
    fn expire_at_must_be_in_the_future() {
        assert_eq!(
            invalid_fields(&json!({"expireAt": "2026-03-01T11:59:59Z"})),
            ["ExpireAt"]
        );
        assert!(invalid_fields(&json!({"expireAt": "2026-03-01T12:00:01Z"})).is_empty());
    }

    #[test]
    fn amounts_share_a_currency_and_their_sum_fits() {
        let pounds = |value: i64| json!({"value": value, "currencyCode": "GBP"});
        let euros = json!({"value": 1, "currencyCode": "EUR"});
        assert_eq!(
            invalid_fields(&json!({"amount": pounds(100), "tipsAmount": euros})),
            ["TipsAmount.CurrencyCode"]
        );
        assert_eq!(
            invalid_fields(&json!({"amount": pounds(i64::MAX), "tipsAmount": pounds(1)})),
            ["Amount.Value"]
        );
    }
}
