//! Dojo's list of transactions, which is an API of its own with its own version.

use reqwest::Method;
use serde_json::{Map, Value};

use super::{Client, Error, Window, intent::Fields};
use crate::payment_link::daily_reconciliation::Transaction;

/// The version of the API that this module knows.
const VERSION: &str = "2023-11-12";

/// One page of transactions.
#[derive(Debug)]
pub struct TransactionPage {
    pub transactions: Vec<Transaction>,
    /// How many entries of the page can't be parsed: without an id, a time or an amount.
    pub unreadable: usize,
    /// The cursor of the next page. `None` on the last page.
    pub after: Option<String>,
}

impl Client {
    /// `POST /transactions/search`: up to 100 transactions of the account in the window, which may be 7 days long, starting after
    /// the cursor `after`.
    ///
    /// Dojo doesn't document whether every key may read transactions.
    pub async fn transactions(
        &self,
        window: Window,
        after: Option<&str>,
    ) -> Result<TransactionPage, Error> {
        let request = self
            .request(Method::POST, &["transactions", "search"])
            .header("version", VERSION);
        let page = Self::page("transactions", request, window, after).await?;
        let all = page.data.len();
        let transactions: Vec<_> = page.data.into_iter().filter_map(parse).collect();
        Ok(TransactionPage {
            unreadable: all - transactions.len(),
            transactions,
            after: page.after,
        })
    }
}

/// Reads a transaction. `None` if it has no id, time or amount. Any other member may be missing or malformed.
fn parse(value: Value) -> Option<Transaction> {
    let Value::Object(members) = value else {
        return None;
    };
    let mut fields = Fields::of(members);
    let details: Option<Map<String, Value>> = fields.take("paymentDetails");
    let mut details = Fields::of(details.unwrap_or_default());
    Some(Transaction {
        id: fields.take("id").filter(|id: &String| !id.is_empty())?,
        occurred_at: fields.take_time("dateTime")?,
        kind: fields.take("type").unwrap_or_default(),
        status: fields.take("status").unwrap_or_default(),
        amount: fields.take("amount")?,
        tips_amount: fields.take("tipsAmount"),
        cashback_amount: fields.take("cashbackAmount"),
        payment_intent_id: fields.take("paymentIntentId"),
        reference: fields.take("reference"),
        payment_product: details.take("paymentProduct"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_an_id_a_time_and_an_amount_are_needed() {
        let whole = json!({
            "id": "tx_1", "dateTime": "2026-11-20T12:00:00.1234567Z", "type": "Sale", "status": "Authorized",
            "amount": {"value": 1000, "currencyCode": "GBP"}, "tipsAmount": {"value": 0, "currencyCode": "GBP"},
            "paymentIntentId": "pi_1", "reference": "Order 1",
            "paymentDetails": {"paymentProduct": "PaymentLinks", "card": null},
        });
        let transaction = parse(whole.clone()).unwrap();
        assert_eq!(transaction.kind, "Sale");
        assert!(transaction.is_of_a_payment_link());
        for name in ["id", "dateTime", "amount"] {
            let mut broken = whole.clone();
            broken[name] = json!("");
            assert_eq!(parse(broken), None, "{name}");
        }
        for name in [
            "type",
            "status",
            "tipsAmount",
            "paymentIntentId",
            "reference",
            "paymentDetails",
        ] {
            let mut odd = whole.clone();
            odd[name] = json!([1]);
            assert!(parse(odd).is_some(), "{name}");
        }
        assert_eq!(parse(json!("text")), None);
    }
}
