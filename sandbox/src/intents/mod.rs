//! Payment intents: what they hold, how one begins, and the rules by which it moves. All of it pure:
//! no I/O and no clock, the moment is always handed in.

mod cards;
mod create;
mod manage;
mod rules;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

pub(crate) use cards::{Card, Reaction, is_test_card};
pub(crate) use create::{CreateIntent, Origin, check as check_creation, check_auto_expire_action};
pub(crate) use rules::{Attempt, Refusal};

use crate::account::Account;
use crate::clock::Timestamp;
use crate::money::Money;

/// One payment intent, whole. Its JSON form is what Dojo's API answers.
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
    /// What `amount` was before it was changed, if it was.
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
    /// What version 2022-04-07 knew in place of `autoExpireIn`; an intent has it only if it was created with it.
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
    /// When the card was authorized; what the seven days and `autoExpireIn` count from.
    #[serde(skip)]
    pub(crate) authorized_at: Option<Timestamp>,
    /// The attempt that waits for the cardholder's answer on the 3-D Secure page.
    #[serde(skip)]
    pub(crate) challenge: Option<Transaction>,
    /// Whether it was voided because nobody paid in time, and not because somebody canceled it.
    #[serde(skip)]
    pub(crate) expired: bool,
    /// The attempt that succeeded.
    #[serde(skip)]
    pub(crate) transaction: Option<Transaction>,
}

/// One attempt to pay.
#[derive(Clone, Debug)]
pub(crate) struct Transaction {
    pub(crate) id: String,
    /// Empty until the issuer approves.
    pub(crate) auth_code: String,
    pub(crate) card: Card,
}

impl Intent {
    /// The intent as the API shows it: what it does not have is left out, as Dojo does.
    pub(crate) fn to_json(&self) -> Value {
        // Strings, numbers and string-keyed maps only: there is nothing in it that JSON cannot hold.
        let mut json = serde_json::to_value(self).expect("an intent is JSON");
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

/// Whether an authorized payment is captured at once or when the merchant says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CaptureMode {
    #[default]
    Auto,
    Manual,
}

/// What becomes of an authorization that nobody captured in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AutoExpireAction {
    Release,
    Capture,
}

/// Where a payment intent stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Created,
    Authorized,
    Captured,
    Reversed,
    Refunded,
    Canceled,
    /// A word that Dojo does not document today; only the controls put an intent there.
    Other(String),
}

impl Status {
    pub(crate) fn word(&self) -> &str {
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

    pub(crate) fn from_word(word: &str) -> Self {
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
        serializer.serialize_str(self.word())
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

/// How the checkout page looks and what it asks for, and which changes are allowed.
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
    /// Whether the checkout page has to ask.
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

/// How the payment went; there once it is final.
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

/// One thing that happened to the payment, an attempt that failed included.
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

/// Money taken from an authorization.
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

/// Money given back.
#[derive(Clone, Debug)]
pub(crate) struct Refund {
    pub(crate) id: String,
    pub(crate) idempotency_key: String,
    pub(crate) request: RefundRequest,
}

/// What `POST /payment-intents/{id}/refunds` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RefundRequest {
    /// Minor units.
    pub(crate) amount: i64,
    pub(crate) refund_reason: Option<String>,
    pub(crate) notes: Option<String>,
    /// Taken in and compared on a repeat, but without effect: Dojo does not document any.
    pub(crate) previous_transaction_id: Option<String>,
}
