//! The checkout page, as a browser without JavaScript uses it.

use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::support::{Rig, event_types, id, ten_pounds};

const GOOD: &str = "5200 0000 0000 1005";
const CHALLENGED: &str = "5200000000001096";

async fn visit(rig: &Rig, path: &str) -> Response {
    rig.request(Method::GET, &format!("/checkout/{path}"))
        .send()
        .await
        .expect("a page")
}

/// The page's status and text.
async fn page(rig: &Rig, path: &str) -> (u16, String) {
    content(visit(rig, path).await).await
}

async fn content(response: Response) -> (u16, String) {
    (
        response.status().as_u16(),
        response.text().await.expect("text"),
    )
}

async fn submit(rig: &Rig, path: &str, fields: &[(&str, &str)]) -> Response {
    rig.request(Method::POST, &format!("/checkout/{path}"))
        .form(fields)
        .send()
        .await
        .expect("a page")
}

async fn pay_with(rig: &Rig, id: &str, card: &str, cvv: &str) -> Response {
    let fields = [
        ("card-number", card),
        ("expiry", "12/29"),
        ("cvv", cvv),
        ("name", "Jo Bloggs"),
    ];
    submit(rig, id, &fields).await
}

/// Whether a field of the page contains this.
fn shows(html: &str, answer: &str) -> bool {
    html.contains(&format!("value=\"{answer}\""))
}

fn location(response: &Response) -> &str {
    assert_eq!(response.status(), 303);
    response.headers()["location"].to_str().expect("text")
}

async fn create(rig: &Rig, config: Value) -> String {
    let mut body = ten_pounds();
    body["config"] = config;
    id(&rig.create(&body).await)
}

#[tokio::test]
async fn the_page_shows_what_is_paid_for_and_escapes_it() {
    let rig = Rig::start().await;
    let mut body = ten_pounds();
    body["amount"]["value"] = json!(123_456);
    body["reference"] = json!("<script>alert(1)</script>");
    body["description"] = json!("Tea & \"cake\"");
    body["config"] = json!({"title": "Complete your order"});
    body["itemLines"] = json!([{
        "name": "Cake <b>", "quantity": 2,
        "amountTotal": {"value": 120_000, "currencyCode": "GBP"},
    }]);
    body["taxLines"] = json!([{
        "caption": "VAT", "amountTotal": {"value": 3456, "currencyCode": "GBP"},
    }]);
    let id = id(&rig.create(&body).await);
    let (status, html) = page(&rig, &id).await;
    assert_eq!(status, 200);
    for shown in [
        "£1,234.56",
        "Complete your order",
        "2 × Cake",
        "£1,200.00",
        "VAT",
        "£34.56",
    ] {
        assert!(html.contains(shown), "{shown}");
    }
    assert!(html.contains("Sandbox – no real money moves"));
    assert!(!html.contains("<script>") && !html.contains("Cake <b>"));
    for label in ["card-number", "expiry", "cvv", "name"] {
        assert!(html.contains(&format!("<label for=\"{label}\"")), "{label}");
    }
}

#[tokio::test]
async fn the_page_keeps_to_itself() {
    let rig = Rig::start().await;
    let id = create(
        &rig,
        json!({"redirectUrl": "https://shop.example/thanks?a=1"}),
    )
    .await;
    for path in [id.as_str(), "unknown"] {
        let response = visit(&rig, path).await;
        let headers = response.headers();
        assert_eq!(headers["cache-control"], "no-store");
        assert_eq!(headers["referrer-policy"], "no-referrer");
        let policy = headers["content-security-policy"]
            .to_str()
            .expect("text")
            .to_owned();
        assert!(
            policy.starts_with("default-src 'none'; style-src 'nonce-"),
            "{policy}"
        );
        // Only the page's own script runs, not one that found its way into the page.
        assert!(
            policy.contains("; script-src 'nonce-") && !policy.contains("unsafe"),
            "{policy}"
        );
        // Without it, a browser stops the redirect that ends the payment.
        assert_eq!(
            policy.contains("form-action 'self' https://shop.example;"),
            path == id
        );
        let html = response.text().await.expect("text");
        assert!(!html.contains("src=") && !html.contains("@import") && !html.contains("url("));
    }
}

#[tokio::test]
async fn paying_leads_to_success() {
    let rig = Rig::start().await;
    let id = rig.create_simple().await;
    let response = pay_with(&rig, &id, GOOD, "020").await;
    assert_eq!(location(&response), format!("/checkout/{id}/success"));
    let (status, html) = page(&rig, &format!("{id}/success")).await;
    assert_eq!(status, 200);
    assert!(html.contains("<title>Payment successful") && html.contains("ending 1005"));
    assert!(html.contains("You can close this page"));
    let intent = rig.intent(&id).await;
    assert_eq!(intent["status"], "Captured");
    assert_eq!(intent["paymentDetails"]["card"]["cardName"], "Jo Bloggs");
    assert!(!intent.to_string().contains("5200000000001005"));
}

#[tokio::test]
async fn the_merchant_says_where_a_customer_goes_next() {
    let rig = Rig::start().await;
    let config = json!({
        "redirectUrl": "https://shop.example/thanks",
        "cancelUrl": "https://shop.example/basket",
    });
    let id = create(&rig, config).await;
    let response = submit(&rig, &format!("{id}/cancel"), &[]).await;
    assert_eq!(location(&response), "https://shop.example/basket");
    let response = pay_with(&rig, &id, GOOD, "020").await;
    assert_eq!(location(&response), "https://shop.example/thanks");

    let id = create(&rig, json!({"redirectUrl": "javascript:alert(1)"})).await;
    let response = pay_with(&rig, &id, GOOD, "020").await;
    assert_eq!(location(&response), format!("/checkout/{id}/success"));
}

#[tokio::test]
async fn a_declined_card_leads_back_to_the_form() {
    let rig = Rig::start().await;
    let id = rig.create_simple().await;
    let (status, html) = content(pay_with(&rig, &id, "4456530000001013", "341").await).await;
    assert_eq!(status, 402);
    assert!(html.contains("Payment declined") && html.contains("Your bank declined this card"));
    assert!(shows(&html, "Jo Bloggs") && shows(&html, "12/29"));
    assert!(shows(&html, "4456530000001013") && !shows(&html, "341"));
    let intent = rig.intent(&id).await;
    assert_eq!(
        (&intent["status"], event_types(&intent)),
        (&json!("Created"), vec!["Declined"])
    );
    assert_eq!(pay_with(&rig, &id, GOOD, "020").await.status(), 303);
    assert_eq!(rig.intent(&id).await["status"], "Captured");
}

#[tokio::test]
async fn a_challenge_is_approved_or_not() {
    let rig = Rig::start().await;
    let id = rig.create_simple().await;
    for answer in ["fail", "approve"] {
        let response = pay_with(&rig, &id, CHALLENGED, "020").await;
        let challenge = format!("{id}/challenge");
        assert_eq!(location(&response), format!("/checkout/{challenge}"));
        let (status, html) = page(&rig, &challenge).await;
        assert!(status == 200 && html.contains("ending 1096") && html.contains("£10.00"));
        assert!(html.contains("<span class=\"whole\">3-D Secure</span>"));
        let response = submit(&rig, &challenge, &[("answer", answer)]).await;
        if answer == "approve" {
            assert_eq!(location(&response), format!("/checkout/{id}/success"));
        } else {
            // The customer said no, not the bank.
            let (status, html) = content(response).await;
            assert!(status == 402 && html.contains("You did not approve this payment"));
            assert!(!html.contains("Your bank"));
            assert!(shows(&html, "Jo Bloggs") && !shows(&html, CHALLENGED));
        }
    }
    let events = ["AuthChallenged", "Declined", "AuthChallenged", "Captured"];
    assert_eq!(event_types(&rig.intent(&id).await), events);
}

#[tokio::test]
async fn every_mistake_is_told_beside_its_field() {
    let rig = Rig::start().await;
    let id = rig.create_simple().await;
    let fields = [
        ("card-number", "4111 1111 1111 1112"),
        ("expiry", "01/20"),
        ("cvv", "12"),
    ];
    let (status, html) = content(submit(&rig, &id, &fields).await).await;
    assert_eq!(status, 422);
    assert!(html.contains("role=\"alert\" tabindex=\"-1\" autofocus"));
    for field in ["card-number", "expiry", "cvv", "name"] {
        assert!(html.contains(&format!("href=\"#{field}\"")), "{field}");
        assert!(html.contains(&format!("id=\"{field}-error\"")), "{field}");
        assert!(
            html.contains(&format!("aria-describedby=\"{field}-error")),
            "{field}"
        );
    }
    assert_eq!(html.matches(" aria-invalid=\"true\"").count(), 4);
    // The CVV's error replaces its hint, which says the same.
    assert!(!html.contains("cvv-hint"));
    assert!(page(&rig, &id).await.1.contains("cvv-hint"));
    assert!(event_types(&rig.intent(&id).await).is_empty());
}

#[tokio::test]
async fn a_mistake_costs_only_the_answer_that_was_wrong() {
    let rig = Rig::start().await;
    let asked = json!({"collectionRequired": true});
    let id = create(&rig, json!({"shippingDetails": asked})).await;
    let with = |number| {
        [
            ("card-number", number),
            ("expiry", "12 / 29"),
            ("cvv", "020"),
            ("name", "Jo Bloggs"),
            ("shipping-city", "Leeds"),
        ]
    };
    // Also a slip in the number is there to be corrected, and not the whole number to be typed again.
    for number in [GOOD, "5200 0000 0000 1006"] {
        let (status, html) = content(submit(&rig, &id, &with(number)).await).await;
        assert_eq!(status, 422);
        for kept in [number, "12 / 29", "Jo Bloggs", "Leeds"] {
            assert!(shows(&html, kept), "{kept}");
        }
        assert!(!shows(&html, "020"));
    }
    // What may be somebody's own card is in no answer.
    let (status, html) = content(submit(&rig, &id, &with("4111 1111 1111 1111")).await).await;
    assert!(status == 422 && !html.contains("1111"));
    assert!(shows(&html, "12 / 29") && shows(&html, "Jo Bloggs"));
}

#[tokio::test]
async fn what_the_merchant_asks_for_is_collected() {
    let rig = Rig::start().await;
    let asked = json!({"collectionRequired": true});
    let config = json!({"customerEmail": asked, "billingAddress": asked, "shippingDetails": asked});
    let id = create(&rig, config).await;
    let (status, _) = content(pay_with(&rig, &id, GOOD, "020").await).await;
    assert_eq!(status, 422);

    let fields = [
        ("email", "jo@example.com"),
        ("shipping-name", "Jo Bloggs"),
        ("shipping-country", "IE"),
        ("shipping-address1", "1 Quay Street"),
        ("shipping-city", "Galway"),
        ("shipping-postcode", "H91 0000"),
        ("shipping-notes", "Ring twice"),
        ("billing-country", "GB"),
        ("billing-address1", "2 High Street"),
        ("billing-city", "Leeds"),
        ("billing-postcode", "LS1 1AA"),
        ("card-number", GOOD),
        ("expiry", "12/29"),
        ("cvv", "020"),
        ("name", "Jo Bloggs"),
    ];
    assert_eq!(submit(&rig, &id, &fields).await.status(), 303);
    let intent = rig.intent(&id).await;
    assert_eq!(intent["customer"]["emailAddress"], "jo@example.com");
    assert_eq!(intent["billingAddress"]["city"], "Leeds");
    assert_eq!(intent["shippingDetails"]["address"]["countryCode"], "IE");
    assert_eq!(intent["shippingDetails"]["deliveryNotes"], "Ring twice");
}

#[tokio::test]
async fn a_form_sent_many_times_at_once_charges_once() {
    let rig = Rig::start().await;
    let id = rig.create_simple().await;
    let pay = || pay_with(&rig, &id, GOOD, "020");
    let answers = tokio::join!(pay(), pay(), pay(), pay());
    for response in [answers.0, answers.1, answers.2, answers.3] {
        assert_eq!(location(&response), format!("/checkout/{id}/success"));
    }
    assert_eq!(event_types(&rig.intent(&id).await), ["Captured"]);
}

#[tokio::test]
async fn nobody_pays_another_amount_than_they_saw() {
    let rig = Rig::start().await;
    let id = rig.create_simple().await;
    let fields = [
        ("amount", "999"),
        ("card-number", GOOD),
        ("expiry", "12/29"),
        ("cvv", "020"),
        ("name", "Jo Bloggs"),
    ];
    let (status, html) = content(submit(&rig, &id, &fields).await).await;
    assert!(status == 409 && html.contains("The amount has changed"));
    assert_eq!(rig.intent(&id).await["status"], "Created");
}

#[tokio::test]
async fn canceling_leaves_the_intent_to_be_paid_later() {
    let rig = Rig::start().await;
    let id = rig.create_simple().await;
    let response = submit(&rig, &format!("{id}/cancel"), &[]).await;
    assert_eq!(location(&response), format!("/checkout/{id}/canceled"));
    let (status, html) = page(&rig, &format!("{id}/canceled")).await;
    assert!(status == 200 && html.contains("Payment not completed"));
    assert!(html.contains("You cancelled"));
    assert_eq!(rig.intent(&id).await["status"], "Created");
    assert_eq!(page(&rig, &id).await.0, 200);
}

#[tokio::test]
async fn a_link_that_leads_nowhere_says_why() {
    let rig = Rig::start().await;
    let (status, html) = page(&rig, "pi_sandbox_unknown").await;
    assert!(status == 404 && html.contains("cannot find this payment"));

    let canceled = rig.create_simple().await;
    rig.delete(&format!("/payment-intents/{canceled}")).await;
    let expired = rig.create_simple().await;
    rig.control(&format!("payment-intents/{expired}/expire"), &json!({}))
        .await;
    for (id, message) in [
        (&canceled, "This payment was cancelled"),
        (&expired, "This payment link has expired"),
    ] {
        let (status, html) = page(&rig, id).await;
        assert!(status == 410 && html.contains(message), "{message}");
    }
    let (status, _) = content(pay_with(&rig, &expired, GOOD, "020").await).await;
    assert_eq!(status, 410);
}

#[tokio::test]
async fn a_link_that_was_paid_reassures_whoever_opens_it_again() {
    let rig = Rig::start().await;
    let paid = rig.create_simple().await;
    rig.pay(&paid).await;
    let (status, html) = page(&rig, &paid).await;
    assert!(status == 200 && html.contains("This has already been paid"));
    assert!(html.contains("£10.00 was paid to Sandbox Trading Ltd on "));
    assert!(html.contains("badge good") && html.contains("You can close this page"));
    assert_eq!(page(&rig, &format!("{paid}/success")).await.0, 200);
    assert_eq!(
        visit(&rig, &format!("{paid}/challenge")).await.status(),
        303
    );

    for (status, heading) in [
        ("Reversed", "This payment was reversed"),
        ("Refunded", "This payment was refunded"),
    ] {
        let path = format!("payment-intents/{paid}/status");
        rig.control(&path, &json!({"status": status})).await;
        for path in [paid.clone(), format!("{paid}/success")] {
            let (status, html) = page(&rig, &path).await;
            assert!(status == 200 && html.contains(heading), "{heading}");
            assert!(html.contains("The money goes back to the card that paid"));
        }
    }
}
