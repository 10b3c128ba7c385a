//! The checkout page, in a browser without JavaScript.

use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::support::{TestSandbox, event_types, id, ten_pounds};

const APPROVED: &str = "5200 0000 0000 1005";
const CHALLENGED: &str = "5200000000001096";

async fn visit(sandbox: &TestSandbox, path: &str) -> Response {
    sandbox
        .request(Method::GET, &format!("/checkout/{path}"))
        .send()
        .await
        .expect("a page")
}

/// The status and HTML of a page.
async fn page(sandbox: &TestSandbox, path: &str) -> (u16, String) {
    content(visit(sandbox, path).await).await
}

async fn content(response: Response) -> (u16, String) {
    (
        response.status().as_u16(),
        response.text().await.expect("text"),
    )
}

async fn submit(sandbox: &TestSandbox, path: &str, fields: &[(&str, &str)]) -> Response {
    sandbox
        .request(Method::POST, &format!("/checkout/{path}"))
        .form(fields)
        .send()
        .await
        .expect("a page")
}

async fn pay_with(sandbox: &TestSandbox, id: &str, card: &str, cvv: &str) -> Response {
    let fields = [
        ("card-number", card),
        ("expiry", "12/29"),
        ("cvv", cvv),
        ("name", "Jo Bloggs"),
    ];
    submit(sandbox, id, &fields).await
}

/// Whether a field of the form has this value.
fn has_value(html: &str, value: &str) -> bool {
    html.contains(&format!("value=\"{value}\""))
}

fn location(response: &Response) -> &str {
    assert_eq!(response.status(), 303);
    response.headers()["location"].to_str().expect("text")
}

async fn create(sandbox: &TestSandbox, config: Value) -> String {
    let mut body = ten_pounds();
    body["config"] = config;
    id(&sandbox.create(&body).await)
}

#[tokio::test]
async fn the_page_shows_the_order_and_escapes_it() {
    let sandbox = TestSandbox::start().await;
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
    let id = id(&sandbox.create(&body).await);
    let (status, html) = page(&sandbox, &id).await;
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
    assert!(html.contains("Sandbox – no real payments"));
    assert!(!html.contains("<script>") && !html.contains("Cake <b>"));
    for label in ["card-number", "expiry", "cvv", "name"] {
        assert!(html.contains(&format!("<label for=\"{label}\"")), "{label}");
    }
}

#[tokio::test]
async fn the_page_has_strict_security_headers() {
    let sandbox = TestSandbox::start().await;
    let id = create(
        &sandbox,
        json!({"redirectUrl": "https://shop.example/thanks?a=1"}),
    )
    .await;
    for path in [id.as_str(), "unknown"] {
        let response = visit(&sandbox, path).await;
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
        // Only the page's own script may run, not an injected one.
        assert!(
            policy.contains("; script-src 'nonce-") && !policy.contains("unsafe"),
            "{policy}"
        );
        // Without this, a browser blocks the redirect after the payment.
        assert_eq!(
            policy.contains("form-action 'self' https://shop.example;"),
            path == id
        );
        let html = response.text().await.expect("text");
        assert!(!html.contains("src=") && !html.contains("@import") && !html.contains("url("));
    }
}

#[tokio::test]
async fn a_payment_leads_to_the_success_page() {
    let sandbox = TestSandbox::start().await;
    let id = sandbox.create_simple().await;
    let response = pay_with(&sandbox, &id, APPROVED, "020").await;
    assert_eq!(location(&response), format!("/checkout/{id}/success"));
    let (status, html) = page(&sandbox, &format!("{id}/success")).await;
    assert_eq!(status, 200);
    assert!(html.contains("<title>Payment successful") && html.contains("ending 1005"));
    assert!(html.contains("You can close this page"));
    let intent = sandbox.intent(&id).await;
    assert_eq!(intent["status"], "Captured");
    assert_eq!(intent["paymentDetails"]["card"]["cardName"], "Jo Bloggs");
    assert!(!intent.to_string().contains("5200000000001005"));
}

#[tokio::test]
async fn the_customer_is_redirected_to_the_merchants_urls() {
    let sandbox = TestSandbox::start().await;
    let config = json!({
        "redirectUrl": "https://shop.example/thanks",
        "cancelUrl": "https://shop.example/basket",
    });
    let id = create(&sandbox, config).await;
    let response = submit(&sandbox, &format!("{id}/cancel"), &[]).await;
    assert_eq!(location(&response), "https://shop.example/basket");
    let response = pay_with(&sandbox, &id, APPROVED, "020").await;
    assert_eq!(location(&response), "https://shop.example/thanks");

    let id = create(&sandbox, json!({"redirectUrl": "javascript:alert(1)"})).await;
    let response = pay_with(&sandbox, &id, APPROVED, "020").await;
    assert_eq!(location(&response), format!("/checkout/{id}/success"));
}

#[tokio::test]
async fn a_declined_card_leads_back_to_the_form() {
    let sandbox = TestSandbox::start().await;
    let id = sandbox.create_simple().await;
    let (status, html) = content(pay_with(&sandbox, &id, "4456530000001013", "341").await).await;
    assert_eq!(status, 402);
    assert!(html.contains("Payment declined") && html.contains("Your bank declined this card"));
    assert!(has_value(&html, "Jo Bloggs") && has_value(&html, "12/29"));
    assert!(has_value(&html, "4456530000001013") && !has_value(&html, "341"));
    let intent = sandbox.intent(&id).await;
    assert_eq!(
        (&intent["status"], event_types(&intent)),
        (&json!("Created"), vec!["Declined"])
    );
    assert_eq!(pay_with(&sandbox, &id, APPROVED, "020").await.status(), 303);
    assert_eq!(sandbox.intent(&id).await["status"], "Captured");
}

#[tokio::test]
async fn a_challenge_can_be_failed_and_passed() {
    let sandbox = TestSandbox::start().await;
    let id = sandbox.create_simple().await;
    for answer in ["fail", "approve"] {
        let response = pay_with(&sandbox, &id, CHALLENGED, "020").await;
        let challenge = format!("{id}/challenge");
        assert_eq!(location(&response), format!("/checkout/{challenge}"));
        let (status, html) = page(&sandbox, &challenge).await;
        assert!(status == 200 && html.contains("ending 1096") && html.contains("£10.00"));
        // The number is in no address, on no other page, and not in what is stored.
        assert!(!html.contains(CHALLENGED) && !html.contains("5200 0000"));
        assert!(!sandbox.intent(&id).await.to_string().contains(CHALLENGED));
        assert!(html.contains("<span class=\"whole\">3-D Secure</span>"));
        let response = submit(&sandbox, &challenge, &[("answer", answer)]).await;
        if answer == "approve" {
            assert_eq!(location(&response), format!("/checkout/{id}/success"));
        } else {
            // It was the customer, not the bank, who didn't approve.
            let (status, html) = content(response).await;
            assert!(status == 402 && html.contains("You did not approve this payment"));
            assert!(!html.contains("Your bank"));
            // Everything but the CVV is there for another try.
            for kept in ["Jo Bloggs", "5200 0000 0000 1096", "12/29"] {
                assert!(has_value(&html, kept), "{kept}");
            }
            assert!(!has_value(&html, "020"));
        }
    }
    let events = ["AuthChallenged", "Declined", "AuthChallenged", "Captured"];
    assert_eq!(event_types(&sandbox.intent(&id).await), events);
}

#[tokio::test]
async fn every_error_is_shown_next_to_its_field() {
    let sandbox = TestSandbox::start().await;
    let id = sandbox.create_simple().await;
    let fields = [
        ("card-number", "4111 1111 1111 1112"),
        ("expiry", "01/20"),
        ("cvv", "12"),
    ];
    let (status, html) = content(submit(&sandbox, &id, &fields).await).await;
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
    // The error of the CVV replaces its hint, which says the same.
    assert!(!html.contains("cvv-hint"));
    assert!(page(&sandbox, &id).await.1.contains("cvv-hint"));
    assert!(event_types(&sandbox.intent(&id).await).is_empty());
}

#[tokio::test]
async fn after_an_error_the_form_is_filled_in_again() {
    let sandbox = TestSandbox::start().await;
    let required = json!({"collectionRequired": true});
    let id = create(&sandbox, json!({"shippingDetails": required})).await;
    let with = |number| {
        [
            ("card-number", number),
            ("expiry", "12 / 29"),
            ("cvv", "020"),
            ("name", "Jo Bloggs"),
            ("shipping-city", "Leeds"),
        ]
    };
    // A mistyped number is also filled in, so that the customer can correct it.
    for number in [APPROVED, "5200 0000 0000 1006"] {
        let (status, html) = content(submit(&sandbox, &id, &with(number)).await).await;
        assert_eq!(status, 422);
        for kept in [number, "12 / 29", "Jo Bloggs", "Leeds"] {
            assert!(has_value(&html, kept), "{kept}");
        }
        assert!(!has_value(&html, "020"));
    }
    // No page contains a card number that may be real.
    let (status, html) = content(submit(&sandbox, &id, &with("4111 1111 1111 1111")).await).await;
    assert!(status == 422 && !html.contains("1111"));
    assert!(has_value(&html, "12 / 29") && has_value(&html, "Jo Bloggs"));
}

#[tokio::test]
async fn required_details_are_collected() {
    let sandbox = TestSandbox::start().await;
    let required = json!({"collectionRequired": true});
    let config =
        json!({"customerEmail": required, "billingAddress": required, "shippingDetails": required});
    let id = create(&sandbox, config).await;
    let (status, _) = content(pay_with(&sandbox, &id, APPROVED, "020").await).await;
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
        ("card-number", APPROVED),
        ("expiry", "12/29"),
        ("cvv", "020"),
        ("name", "Jo Bloggs"),
    ];
    assert_eq!(submit(&sandbox, &id, &fields).await.status(), 303);
    let intent = sandbox.intent(&id).await;
    assert_eq!(intent["customer"]["emailAddress"], "jo@example.com");
    assert_eq!(intent["billingAddress"]["city"], "Leeds");
    assert_eq!(intent["shippingDetails"]["address"]["countryCode"], "IE");
    assert_eq!(intent["shippingDetails"]["deliveryNotes"], "Ring twice");
}

#[tokio::test]
async fn a_form_that_is_submitted_several_times_at_once_charges_once() {
    let sandbox = TestSandbox::start().await;
    let id = sandbox.create_simple().await;
    let pay = || pay_with(&sandbox, &id, APPROVED, "020");
    let responses = tokio::join!(pay(), pay(), pay(), pay());
    for response in [responses.0, responses.1, responses.2, responses.3] {
        assert_eq!(location(&response), format!("/checkout/{id}/success"));
    }
    assert_eq!(event_types(&sandbox.intent(&id).await), ["Captured"]);
}

#[tokio::test]
async fn a_payment_fails_if_the_amount_has_changed() {
    let sandbox = TestSandbox::start().await;
    let id = sandbox.create_simple().await;
    let fields = [
        ("amount", "999"),
        ("card-number", APPROVED),
        ("expiry", "12/29"),
        ("cvv", "020"),
        ("name", "Jo Bloggs"),
    ];
    let (status, html) = content(submit(&sandbox, &id, &fields).await).await;
    assert!(status == 409 && html.contains("The amount has changed"));
    assert_eq!(sandbox.intent(&id).await["status"], "Created");
}

#[tokio::test]
async fn an_intent_can_be_paid_after_the_customer_canceled() {
    let sandbox = TestSandbox::start().await;
    let id = sandbox.create_simple().await;
    let response = submit(&sandbox, &format!("{id}/cancel"), &[]).await;
    assert_eq!(location(&response), format!("/checkout/{id}/canceled"));
    let (status, html) = page(&sandbox, &format!("{id}/canceled")).await;
    assert!(status == 200 && html.contains("Payment not completed"));
    assert!(html.contains("You cancelled this payment"));
    assert_eq!(sandbox.intent(&id).await["status"], "Created");
    assert_eq!(page(&sandbox, &id).await.0, 200);
}

#[tokio::test]
async fn a_link_that_cant_be_paid_says_why() {
    let sandbox = TestSandbox::start().await;
    let (status, html) = page(&sandbox, "pi_sandbox_unknown").await;
    assert!(status == 404 && html.contains("We can’t find this payment"));

    let canceled = sandbox.create_simple().await;
    sandbox
        .delete(&format!("/payment-intents/{canceled}"))
        .await;
    let expired = sandbox.create_simple().await;
    sandbox
        .control(&format!("payment-intents/{expired}/expire"), &json!({}))
        .await;
    for (id, message) in [
        (&canceled, "This payment was cancelled"),
        (&expired, "This payment link has expired"),
    ] {
        let (status, html) = page(&sandbox, id).await;
        assert!(status == 410 && html.contains(message), "{message}");
    }
    let (status, _) = content(pay_with(&sandbox, &expired, APPROVED, "020").await).await;
    assert_eq!(status, 410);
}

#[tokio::test]
async fn a_paid_link_shows_the_payment() {
    let sandbox = TestSandbox::start().await;
    let paid = sandbox.create_simple().await;
    sandbox.pay(&paid).await;
    let (status, html) = page(&sandbox, &paid).await;
    assert!(status == 200 && html.contains("This payment has already been made"));
    assert!(html.contains("£10.00 was paid to Sandbox Trading Ltd on "));
    assert!(html.contains("badge good") && html.contains("You can close this page"));
    assert_eq!(page(&sandbox, &format!("{paid}/success")).await.0, 200);
    assert_eq!(
        visit(&sandbox, &format!("{paid}/challenge")).await.status(),
        303
    );

    for (status, heading) in [
        ("Reversed", "This payment was reversed"),
        ("Refunded", "This payment was refunded"),
    ] {
        let path = format!("payment-intents/{paid}/status");
        sandbox.control(&path, &json!({"status": status})).await;
        for path in [paid.clone(), format!("{paid}/success")] {
            let (status, html) = page(&sandbox, &path).await;
            assert!(status == 200 && html.contains(heading), "{heading}");
            assert!(html.contains("The money is being returned to the card that was used"));
        }
    }
}
