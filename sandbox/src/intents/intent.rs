//! What a payment intent consists of.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::cards::Card;
use crate::account::Account;
use crate::clock::Timestamp;
use crate::money::Money;
use crate::transactions::{Movement, PaymentProduct};

/// A payment intent. Its JSON form is the response of Dojo's API.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Intent {
    pub(crate) id: String,
    #[serde(skip)]
    pub(crate) account: Account,
    pub(crate) capture_mode: CaptureMode,
    pub(crate) card_holder_not_present: bool,
    pub(crate) client_session_secret: Option<String>,
    pub(crate) client_session_secret_expiration_date: String,
    pub(crate) payment_details: Option<PaymentDetails>,
    pub(crate) status: Status,
    pub(crate) payment_methods: Vec<String>,
    pub(crate) amount: Money,
    pub(crate) tips_amount: Option<Money>,
    pub(crate) cashback_amount: Option<Money>,
    pub(crate) service_charge_amount: Option<Money>,
    /// The original `amount`, if it was changed.
    pub(crate) requested_amount: Option<Money>,
    pub(crate) total_amount: Money,
    /// Minor units.
    pub(crate) refunded_amount: i64,
    pub(crate) customer: Option<Customer>,
    pub(crate) request_security: Option<Value>,
    pub(crate) billing_address: Option<Address>,
    pub(crate) shipping_details: Option<ShippingDetails>,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
    pub(crate) reference: String,
    pub(crate) description: Option<String>,
    pub(crate) item_lines: Vec<ItemLine>,
    pub(crate) tax_lines: Vec<TaxLine>,
    pub(crate) action_link: Option<Value>,
    pub(crate) merchant_config: Value,
    pub(crate) config: Config,
    pub(crate) payment_source: String,
    pub(crate) auto_expire_action: Option<AutoExpireAction>,
    pub(crate) auto_expire_in: Option<String>,
    /// Version 2022-04-07 has this instead of `autoExpireIn`.
    pub(crate) auto_expire_at: Option<Timestamp>,
    pub(crate) expire_at: Timestamp,
    pub(crate) metadata: Map<String, Value>,
    pub(crate) order_details: Option<Value>,
    pub(crate) setup_intent_id: Option<String>,
    pub(crate) payment_events: Vec<PaymentEvent>,
    pub(crate) payment_link: String,
    pub(crate) terminal_session_history: Vec<Value>,
    pub(crate) captures: Vec<Capture>,
    #[serde(skip)]
    pub(crate) refunds: Vec<Refund>,
    /// When the card was authorized. The start of the seven days, or of `autoExpireIn`.
    #[serde(skip)]
    pub(crate) authorized_at: Option<Timestamp>,
    /// The attempt whose 3-D Secure challenge is in progress.
    #[serde(skip)]
    pub(crate) challenge: Option<Attempt>,
    /// Whether the intent was voided because nobody paid in time. False if it was canceled.
    #[serde(skip)]
    pub(crate) expired: bool,
    /// The attempt that the issuer approved.
    #[serde(skip)]
    pub(crate) approved: Option<Attempt>,
    #[serde(skip)]
    pub(crate) payment_product: PaymentProduct,
    /// Changes of the record of transactions that aren't made yet.
    #[serde(skip)]
    pub(crate) movements: Vec<Movement>,
}

/// An attempt to pay.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    /// The `transactionId` in events and payment details, and the id of the attempt's transaction.
    pub(crate) id: String,
    /// Empty until the issuer approves.
    pub(crate) auth_code: String,
    pub(crate) card: Card,
}

impl Attempt {
    pub(crate) fn is_approved(&self) -> bool {
        !self.auth_code.is_empty()
    }
}

impl Intent {
    /// The intent as the API returns it. As at Dojo, members without a value are left out.
    pub(crate) fn to_json(&self) -> Value {
        let mut json = serde_json::to_value(self).expect("an intent can be serialized");
        drop_nulls(&mut json);
        json
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Whether an authorized payment is captured at once, or when the merchant captures it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CaptureMode {
    #[default]
    Auto,
    Manual,
}

/// What happens to an authorization that wasn't captured in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AutoExpireAction {
    Release,
    Capture,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Created,
    Authorized,
    Captured,
    Reversed,
    Refunded,
    Canceled,
    /// A status that Dojo doesn't document. Only the control API sets it.
    Other(String),
}

impl Status {
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Created => "Created",
            Self::Authorized => "Authorized",
            Self::Captured => "Captured",
            Self::Reversed => "Reversed",
            Self::Refunded => "Refunded",
            Self::Canceled => "Canceled",
            Self::Other(word) => word,
        }
    }

    pub(crate) fn parse(word: &str) -> Self {
        match word {
            "Created" => Self::Created,
            "Authorized" => Self::Authorized,
            "Captured" => Self::Captured,
            "Reversed" => Self::Reversed,
            "Refunded" => Self::Refunded,
            "Canceled" => Self::Canceled,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl Serialize for Status {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Customer {
    pub(crate) id: Option<String>,
    pub(crate) email_address: Option<String>,
    pub(crate) phone_number: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Address {
    pub(crate) address1: Option<String>,
    pub(crate) address2: Option<String>,
    pub(crate) address3: Option<String>,
    pub(crate) address4: Option<String>,
    pub(crate) city: Option<String>,
    pub(crate) state: Option<String>,
    pub(crate) postcode: Option<String>,
    pub(crate) country_code: String,
    pub(crate) locality: Option<String>,
    pub(crate) county: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ShippingDetails {
    pub(crate) name: Option<String>,
    pub(crate) delivery_notes: Option<String>,
    pub(crate) address: Option<Address>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ItemLine {
    pub(crate) id: Option<String>,
    pub(crate) quantity: Option<i64>,
    pub(crate) name: Option<String>,
    pub(crate) category: Option<String>,
    pub(crate) modifiers: Option<Value>,
    pub(crate) amount_total: Option<Money>,
    pub(crate) plu: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TaxLine {
    pub(crate) id: Option<String>,
    pub(crate) caption: Option<String>,
    pub(crate) sub_caption: Option<String>,
    pub(crate) amount_total: Money,
    pub(crate) affected_plu: Option<String>,
}

/// The appearance of the checkout page, the data that it collects, and the changes that are allowed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Config {
    pub(crate) title: Option<String>,
    pub(crate) redirect_url: Option<String>,
    pub(crate) cancel_url: Option<String>,
    pub(crate) customer_email: Option<Collection>,
    pub(crate) details: Option<Details>,
    pub(crate) billing_address: Option<Collection>,
    pub(crate) shipping_details: Option<Collection>,
    pub(crate) payment: Option<PaymentConfig>,
    pub(crate) branding: Map<String, Value>,
    pub(crate) trading_name: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            title: None,
            redirect_url: None,
            cancel_url: None,
            customer_email: None,
            details: None,
            billing_address: None,
            shipping_details: None,
            payment: None,
            branding: Map::new(),
            trading_name: "Sandbox Trading Ltd".to_owned(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Collection {
    pub(crate) collection_required: bool,
}

impl Collection {
    /// Whether the checkout page must collect it.
    pub(crate) fn required(this: Option<Self>) -> bool {
        this.is_some_and(|collection| collection.collection_required)
    }
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Details {
    pub(crate) show_total: Option<bool>,
    pub(crate) show_reference: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PaymentConfig {
    pub(crate) custom_amount_allowed: bool,
    pub(crate) tips_allowed: bool,
}

/// Details of the payment, once it is final.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PaymentDetails {
    pub(crate) transaction_id: String,
    pub(crate) transaction_date_time: Timestamp,
    pub(crate) message: String,
    pub(crate) auth_code: String,
    pub(crate) card: CardDetails,
    pub(crate) avs_result: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CardDetails {
    pub(crate) card_number: String,
    pub(crate) card_name: String,
    pub(crate) expiry_date: String,
    pub(crate) card_type: String,
    pub(crate) card_funding_type: String,
    #[serde(rename = "last4PAN")]
    pub(crate) last4_pan: String,
    pub(crate) entry_mode: String,
    pub(crate) verification_method: String,
}

/// An event in the history of the payment, including failed attempts.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PaymentEvent {
    pub(crate) transaction_id: String,
    pub(crate) transaction_date_time: Timestamp,
    pub(crate) event_type: &'static str,
    pub(crate) auth_code: String,
    pub(crate) card_number: String,
    pub(crate) expiry_date: String,
    pub(crate) card_type: String,
    pub(crate) cardholder_name: String,
    pub(crate) payment_method_id: String,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Capture {
    pub(crate) id: String,
    /// Minor units, without tips.
    pub(crate) amount: i64,
    /// Minor units.
    pub(crate) tips_amount: Option<i64>,
    pub(crate) status: &'static str,
    pub(crate) created_at: Timestamp,
}

#[derive(Clone, Debug)]
pub(crate) struct Refund {
    pub(crate) id: String,
    pub(crate) idempotency_key: String,
    pub(crate) request: RefundRequest,
}

/// The body of `POST /payment-intents/{id}/refunds`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RefundRequest {
    /// Minor units.
    pub(crate) amount: i64,
    pub(crate) refund_reason: Option<String>,
    pub(crate) notes: Option<String>,
    /// Accepted and compared when the request is repeated. It has no other effect, because Dojo documents none.
    pub(crate) previous_transaction_id: Option<String>,
}
