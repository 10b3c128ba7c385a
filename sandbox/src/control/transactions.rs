//! Reading the record of transactions, and making it wrong: transactions that change, that are missing, and that no
//! intent explains.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::Body;
use super::key::account;
use crate::account::Account;
use crate::app_state::AppState;
use crate::clock::Timestamp;
use crate::money::{Currency, Money};
use crate::problem::{JsonResult, Problem};
use crate::transactions::{PaymentProduct, Transaction, TransactionStatus, TransactionType};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ListQuery {
    payment_intent_id: Option<String>,
}

/// `GET /_sandbox/transactions`: all transactions, including hidden and young ones, oldest first. `?paymentIntentId=`
/// filters by intent.
pub(super) async fn list(
    State(state): State<Arc<AppState>>,
    Query(ListQuery { payment_intent_id }): Query<ListQuery>,
) -> Json<Value> {
    let matches = |transaction: &Transaction| {
        payment_intent_id.is_none() || transaction.payment_intent_id == payment_intent_id
    };
    let found = state.with_intents(|intents| {
        let transactions = intents.transactions.all().values();
        transactions
            .filter(|transaction| matches(transaction))
            .map(to_json)
            .collect::<Vec<_>>()
    });
    Json(Value::Array(found))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Add {
    /// The account that owns the transactions. Default: the first key that the sandbox accepts.
    api_key: Option<String>,
    rows: Vec<NewTransaction>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewTransaction {
    #[serde(rename = "type")]
    kind: TransactionType,
    status: TransactionStatus,
    /// Minor units, without the tip.
    amount: i64,
    /// Minor units.
    #[serde(default)]
    tips_amount: i64,
    /// Default: `GBP`.
    currency_code: Option<Currency>,
    payment_product: PaymentProduct,
    payment_intent_id: Option<String>,
    reference: Option<String>,
    /// Default: now.
    date_time: Option<String>,
}

impl NewTransaction {
    fn into_transaction(self, account: &Account, now: Timestamp) -> Result<Transaction, Problem> {
        let date_time = match self.date_time {
            Some(text) => Timestamp::parse(&text)
                .ok_or_else(|| Problem::bad_request("dateTime must be a time with an offset."))?,
            None => now,
        };
        let amount = Money {
            value: self.amount,
            currency_code: self.currency_code.unwrap_or(Currency::Gbp),
        };
        let mut transaction = Transaction::new(
            account,
            self.kind,
            self.status,
            amount,
            self.payment_product,
            date_time,
        );
        transaction.tips_amount.value = self.tips_amount;
        transaction.payment_intent_id = self.payment_intent_id;
        transaction.reference = self.reference;
        Ok(transaction)
    }
}

/// `POST /_sandbox/transactions`: adds transactions as they are, whether or not an intent explains them, and returns
/// them. All of them without a `dateTime` have the same one.
pub(super) async fn add(
    State(state): State<Arc<AppState>>,
    Body(Add { api_key, rows }): Body<Add>,
) -> JsonResult {
    let account = account(&state, api_key.as_deref())?;
    let now = state.clock.now();
    let transactions = rows
        .into_iter()
        .map(|new| new.into_transaction(&account, now))
        .collect::<Result<Vec<_>, _>>()?;
    let added = transactions.iter().map(to_json).collect();
    state.with_intents(|intents| {
        for transaction in transactions {
            intents.transactions.add(transaction);
        }
    });
    Ok(Json(Value::Array(added)))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Change {
    /// Minor units.
    amount: Option<i64>,
    status: Option<TransactionStatus>,
    hidden: Option<bool>,
}

/// `POST /_sandbox/transactions/{id}`: changes a transaction, but not its intent.
pub(super) async fn change(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
    Body(Change {
        amount,
        status,
        hidden,
    }): Body<Change>,
) -> JsonResult {
    state
        .with_intents(|intents| {
            let transaction = intents.transactions.find_mut(&id)?;
            if let Some(amount) = amount {
                transaction.amount.value = amount;
            }
            if let Some(status) = status {
                transaction.status = status;
            }
            if let Some(hidden) = hidden {
                transaction.hidden = hidden;
            }
            Some(to_json(transaction))
        })
        .map(Json)
        .ok_or_else(|| Problem::not_found("There is no transaction with this id."))
}

/// The transaction as the API returns it, and whether it is hidden there.
fn to_json(transaction: &Transaction) -> Value {
    let mut json = json!(transaction);
    json["hidden"] = json!(transaction.hidden);
    json
}
