//! Whether the sandbox's answers are what Dojo's OpenAPI file says. The file is Dojo's and not part
//! of this project, so this runs on demand:
//! `DOJO_OPENAPI=openapi.json cargo test -p dojo-sandbox -- --ignored`

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Receiver, Rig, answer, id, ten_pounds, ten_pounds_manual};

/// OpenAPI 3.0 says `nullable` where JSON Schema names a type or an alternative more.
fn as_json_schema(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(as_json_schema),
        Value::Object(members) => {
            members.values_mut().for_each(as_json_schema);
            if members.remove("nullable") == Some(json!(true)) {
                let inner = Value::Object(std::mem::take(members));
                members.insert("anyOf".to_owned(), json!([inner, {"type": "null"}]));
            }
        }
        _ => {}
    }
}

struct Document(Value);

impl Document {
    fn open() -> Self {
        let path = std::env::var("DOJO_OPENAPI").expect("DOJO_OPENAPI names Dojo's OpenAPI file");
        let text = std::fs::read_to_string(path).expect("a readable file");
        let mut document: Value = serde_json::from_str(&text).expect("JSON");
        as_json_schema(&mut document["components"]["schemas"]);
        Self(document)
    }

    fn check(&self, schema: &str, value: &Value) {
        let mut document = json!({"components": self.0["components"]});
        document["$ref"] = json!(format!("#/components/schemas/{schema}"));
        let validator = jsonschema::validator_for(&document).expect("a schema");
        let faults: Vec<String> = validator
            .iter_errors(value)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(faults.is_empty(), "{schema}: {faults:#?}\n{value:#}");
    }

    /// Dojo's own examples show members that its schema does not list.
    fn check_intent(&self, intent: &Value) {
        let mut intent = intent.clone();
        let members = intent.as_object_mut().expect("an object");
        let events = members.remove("paymentEvents").expect("events");
        members.remove("paymentSource").expect("a source");
        let config = members["config"].as_object_mut().expect("an object");
        config.remove("branding").expect("branding");
        config.remove("tradingName").expect("a name");
        self.check("PaymentIntent", &intent);
        for event in events.as_array().expect("a list") {
            self.check("PaymentStatusResponse", event);
        }
    }
}

#[tokio::test]
#[ignore = "needs Dojo's OpenAPI file"]
async fn answers_are_of_the_documented_shapes() {
    let document = Document::open();
    let receiver = Receiver::start().await;
    let rig = Rig::telling(&receiver).await;

    let mut body = ten_pounds_manual("Capture");
    body["autoExpireIn"] = json!("1.00:00:00");
    body["billingAddress"] = json!({"countryCode": "GB", "city": "Leeds"});
    body["customer"] = json!({"emailAddress": "jo@example.com", "secret": "s", "savedCardId": "c"});
    body["itemLines"] =
        json!([{"name": "Tea", "quantity": 1, "amountTotal": ten_pounds()["amount"]}]);
    body["taxLines"] = json!([{"caption": "VAT", "amountTotal": ten_pounds()["amount"]}]);
    body["config"] = json!({"title": "Tea", "payment": {"tipsAllowed": true}});
    body["generateRemoteToken"] = json!(true);
    let manual = rig.create(&body).await;
    document.check_intent(&manual);
    document.check_intent(&rig.pay(&id(&manual)).await);
    rig.control("clock", &json!({"advanceSeconds": 86_400}))
        .await;
    document.check_intent(&rig.intent(&id(&manual)).await);

    let auto = rig.create(&ten_pounds()).await;
    document.check_intent(&auto);
    let path = format!("payment-intents/{}", id(&auto));
    document.check_intent(&rig.control(&format!("{path}/decline"), &json!({})).await);
    document.check_intent(&rig.control(&format!("{path}/challenge"), &json!({})).await);
    document.check_intent(&rig.pay(&id(&auto)).await);

    let path = format!("/payment-intents/{}", id(&auto));
    let refund = rig
        .api(Method::POST, &format!("{path}/refunds"))
        .header("idempotencyKey", "r");
    let (_, refund) = answer(refund.json(&json!({"amount": 400, "notes": "Cold"}))).await;
    document.check("Refund", &refund);
    document.check_intent(&rig.intent(&id(&auto)).await);

    let open = id(&rig.create(&ten_pounds_manual("Release")).await);
    rig.pay(&open).await;
    let path = format!("/payment-intents/{open}");
    let capture = json!({"amount": 400});
    document.check(
        "Capture",
        &rig.post(&format!("{path}/captures"), &capture).await.1,
    );
    document.check_intent(&rig.intent(&open).await);

    let reversed = rig.create_simple().await;
    rig.pay(&reversed).await;
    let path = format!("/payment-intents/{reversed}/reversal");
    document.check("Reversal", &rig.post(&path, &json!({})).await.1);
    document.check_intent(&rig.intent(&reversed).await);

    let canceled = rig.create_simple().await;
    document.check_intent(&rig.delete(&format!("/payment-intents/{canceled}")).await.1);

    let (_, page) = rig
        .post("/payment-intents/search", &json!({"cursor": {"limit": 2}}))
        .await;
    for intent in page["data"].as_array().expect("a list") {
        document.check_intent(intent);
    }
    let mut page = page;
    page["data"] = json!([]);
    document.check("PagedResultOfPaymentIntent", &page);

    let (_, subscriptions) = rig.get("/webhooks").await;
    document.check("Subscription", &https(&subscriptions[0]));
    for events in rig
        .get("/webhooks/events")
        .await
        .1
        .as_array()
        .expect("a list")
    {
        document.check("WebhookEvents", events);
    }
    let secrets = format!("/webhooks/{}/secrets", id(&subscriptions[0]));
    document.check("SecretsResponse", &rig.post(&secrets, &json!({})).await.1);

    let (_, problem) = rig.post("/payment-intents", &json!({"unheard": 1})).await;
    document.check("ProblemDetails", &problem);
    document.check("ErrorResponse", &problem);
    document.check("ErrorResponse", &rig.delete("/webhooks/ws_unknown").await.1);
}

/// A URL may be plain http here, and only here.
fn https(subscription: &Value) -> Value {
    let mut subscription = subscription.clone();
    subscription["url"] = json!("https://localhost/hook");
    subscription
}
