//! Requests for operations on payments.

use reqwest::Method;
use serde_json::{Value, json};

use super::{Answer, TestApp, send, ten_pounds, text, try_send};

/// An amount in GBP; `value` is in minor units.
pub fn pounds(value: i64) -> Value {
    json!({"value": value, "currencyCode": "GBP"})
}

/// A request for a link with manual capture, whose amount and tip may be changed.
pub fn manual(reference: &str) -> Value {
    let mut body = ten_pounds(reference);
    body["captureMode"] = json!("Manual");
    body["autoExpireAction"] = json!("Release");
    body["config"] = json!({"payment": {"customAmountAllowed": true, "tipsAllowed": true}});
    body
}

impl TestApp {
    /// `POST /v1/payment-links/{id}/{operation}`
    pub async fn operate(&self, link: &Value, operation: &str, body: &Value) -> Answer {
        send(self.operation(link, operation, None, body)).await
    }

    /// [`Self::operate`] with an idempotency key.
    pub async fn operate_with_key(
        &self,
        key: &str,
        link: &Value,
        operation: &str,
        body: &Value,
    ) -> Answer {
        send(self.operation(link, operation, Some(key), body)).await
    }

    /// [`Self::operate_with_key`] for a service that may die before it responds.
    pub async fn try_to_operate(
        &self,
        key: &str,
        link: &Value,
        operation: &str,
        body: &Value,
    ) -> reqwest::Result<Answer> {
        try_send(self.operation(link, operation, Some(key), body)).await
    }

    fn operation(
        &self,
        link: &Value,
        operation: &str,
        key: Option<&str>,
        body: &Value,
    ) -> reqwest::RequestBuilder {
        let path = format!("/v1/payment-links/{}/{operation}", text(&link["id"]));
        let mut request = self.request(Method::POST, &path);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        if body.is_null() {
            request
        } else {
            request.json(body)
        }
    }

    /// The operations on a link, from `GET /v1/payment-links/{id}/operations`.
    pub async fn operations(&self, link: &Value) -> Vec<Value> {
        let path = format!("/v1/payment-links/{}/operations", text(&link["id"]));
        let page = self.get(&path).await.expect(200).json();
        page["data"].as_array().unwrap().clone()
    }

    /// The types of a link's timeline entries about operations, oldest first.
    pub async fn operation_entries(&self, link: &Value) -> Vec<String> {
        let timeline = self.timeline(&link["id"]).await;
        timeline
            .iter()
            .map(|entry| text(&entry["type"]).to_owned())
            .filter(|kind| kind.starts_with("operation"))
            .collect()
    }

    /// A paid link whose status is confirmed.
    pub async fn paid_as(&self, body: &Value, status: &str) -> Value {
        let link = self.create(body).await.expect(201).json();
        self.sandbox.pay(&link["paymentIntentId"]).await;
        let link = self.read_until_confirmed(&link["id"]).await;
        assert_eq!(link["status"], status);
        link
    }

    /// A paid link over 10.00 GBP.
    pub async fn paid(&self) -> Value {
        self.paid_as(&ten_pounds("Order 1"), "Captured").await
    }

    /// An authorized link over 10.00 GBP.
    pub async fn authorized(&self) -> Value {
        self.paid_as(&manual("Order 1"), "Authorized").await
    }
}

impl super::TestSandbox {
    /// The calls of one operation that Dojo performed and responded to.
    pub async fn done(&self, operation: &str) -> Vec<Value> {
        let mut requests = self.requests(operation).await;
        requests.retain(|request| request["answered"] == 200 || request["answered"] == 204);
        requests
    }
}
