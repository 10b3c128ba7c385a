//! Operations on a payment: what they do, what they reject, and that each is performed once.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    Service, TestApp, eventually, manual, pounds, program, send, ten_pounds, text, within,
};

fn detail(problem: &Value) -> &str {
    text(&problem["detail"])
}

#[tokio::test]
async fn an_unpaid_link_is_canceled() {
    let app = TestApp::start().await;
    let link = app.created().await;
    let answer = app.operate(&link, "cancel", &Value::Null).await.expect(200);
    assert_eq!(answer.json()["status"], "Canceled");
    assert!(answer.header("operation-id").starts_with("op_"));
    let intent = app.sandbox.intent(&link["paymentIntentId"]).await;
    assert_eq!(intent["status"], "Canceled");

    let problem = app.operate(&link, "cancel", &json!({})).await;
    assert_eq!(
        detail(&problem.problem(409, "not-possible")),
        "already canceled"
    );
    assert_eq!(app.sandbox.requests("cancel").await.len(), 1);
}

#[tokio::test]
async fn an_authorized_payment_is_captured_in_full() {
    let app = TestApp::start().await;
    let link = app.authorized().await;
    assert_eq!(link["capturedAmount"]["value"], 0);
    let captured = app.operate(&link, "captures", &json!({})).await;
    let captured = captured.expect(200).json();
    assert_eq!(captured["status"], "Captured");
    assert_eq!(captured["capturedAmount"]["value"], 1000);
    let intent = app.sandbox.intent(&link["paymentIntentId"]).await;
    assert_eq!(captured["captures"][0]["id"], intent["captures"][0]["id"]);

    let [operation] = &app.operations(&link).await[..] else {
        panic!("there is one operation");
    };
    assert_eq!(operation["type"], "capture");
    assert_eq!(operation["request"], json!({"amount": pounds(1000)}));
    assert_eq!(operation["status"], "Succeeded");
    assert_eq!(operation["dojoId"], intent["captures"][0]["id"]);
    assert_eq!(operation["createdBy"], "bootstrap");
    let timeline = app.timeline(&link["id"]).await;
    for kind in ["operationRequested", "operationSucceeded"] {
        let entry = timeline.iter().find(|entry| entry["type"] == kind).unwrap();
        assert_eq!(entry["cause"]["type"], "request");
        assert_eq!(entry["cause"]["client"], "bootstrap");
        assert_eq!(entry["detail"]["operationId"], operation["id"]);
    }

    let problem = app.operate(&link, "captures", &json!({})).await;
    let problem = problem.problem(409, "not-possible");
    assert_eq!(detail(&problem), "already captured: refund it");
}

#[tokio::test]
async fn a_payment_is_captured_in_parts_up_to_its_total_including_the_tip() {
    let app = TestApp::start().await;
    let mut body = manual("Order 1");
    body["tipsAmount"] = pounds(100);
    let link = app.create(&body).await.expect(201).json();
    app.sandbox.pay(&link["paymentIntentId"]).await;

    // The webhook may not have arrived yet. The operation reads Dojo itself.
    let part = json!({"amount": pounds(400), "tipsAmount": pounds(40)});
    let first = app
        .operate(&link, "captures", &part)
        .await
        .expect(200)
        .json();
    assert_eq!(first["capturedAmount"]["value"], 440);
    assert_eq!(first["totalAmount"], pounds(1100));

    let too_much = json!({"amount": pounds(601)});
    let problem = app.operate(&link, "captures", &too_much).await;
    let problem = problem.problem(409, "not-possible");
    assert_eq!(detail(&problem), "only 6.00 GBP is left to capture");

    let rest = app.operate(&link, "captures", &json!({})).await;
    let rest = rest.expect(200).json();
    assert_eq!(rest["capturedAmount"]["value"], 1100);
    assert_eq!(rest["captures"].as_array().unwrap().len(), 2);
    assert_eq!(rest["captures"][1]["tipsAmount"], pounds(60));
}

#[tokio::test]
async fn a_partly_captured_payment_is_refunded_up_to_the_captured_amount() {
    let app = TestApp::start().await;
    let link = app.authorized().await;
    let part = json!({"amount": pounds(350)});
    app.operate(&link, "captures", &part).await.expect(200);
    let problem = app
        .operate_with_key("r1", &link, "refunds", &json!({"amount": pounds(351)}))
        .await
        .problem(409, "not-possible");
    assert_eq!(detail(&problem), "only 3.50 GBP is left to refund");
    let whole = app
        .operate_with_key("r1", &link, "refunds", &json!({}))
        .await;
    assert_eq!(whole.expect(200).json()["refundedAmount"]["value"], 350);
}

#[tokio::test]
async fn a_payment_is_refunded_in_parts_until_nothing_is_left() {
    let app = TestApp::start().await;
    let link = app.paid().await;
    let body =
        json!({"amount": pounds(650), "refundReason": "Returned goods", "notes": "One of two"});
    let part = app.operate_with_key("a", &link, "refunds", &body).await;
    let part = part.expect(200).json();
    assert_eq!(part["refundedAmount"]["value"], 650);
    assert_eq!(part["status"], "Captured");

    let [call] = &app.sandbox.requests("refund").await[..] else {
        panic!("there is one refund");
    };
    assert_eq!(
        call["body"],
        json!({"amount": 650, "refundReason": "Returned goods", "notes": "One of two"})
    );
    assert_eq!(text(&call["headers"]["idempotencykey"]).len(), 64);

    let problem = app
        .operate_with_key("b", &link, "refunds", &json!({"amount": pounds(351)}))
        .await
        .problem(409, "not-possible");
    assert_eq!(detail(&problem), "only 3.50 GBP is left to refund");
    let rest = app
        .operate_with_key("b", &link, "refunds", &json!({}))
        .await;
    let rest = rest.expect(200).json();
    assert_eq!(rest["status"], "Refunded");
    assert_eq!(rest["refundedAmount"]["value"], 1000);
    let problem = app
        .operate_with_key("c", &link, "refunds", &json!({}))
        .await;
    let problem = problem.problem(409, "not-possible");
    assert_eq!(detail(&problem), "already refunded in full");
    assert_eq!(app.sandbox.requests("refund").await.len(), 2);

    let operations = app.operations(&link).await;
    let refunded: Vec<_> = operations
        .iter()
        .map(|operation| &operation["request"]["amount"]["value"])
        .collect();
    assert_eq!(refunded, [650, 350]);
}

#[tokio::test]
async fn a_payment_is_reversed_on_the_same_day_only() {
    let app = TestApp::start().await;
    let link = app.paid().await;
    let reversed = app.operate(&link, "reversal", &Value::Null).await;
    let reversed = reversed.expect(200).json();
    assert_eq!(reversed["status"], "Reversed");
    assert_eq!(reversed["capturedAmount"]["value"], 0);

    let authorized = app.authorized().await;
    let released = app.operate(&authorized, "reversal", &json!({})).await;
    assert_eq!(released.expect(200).json()["status"], "Reversed");

    // Dojo's own clock decides.
    let link = app.paid().await;
    app.sandbox
        .control("clock", json!({"advanceSeconds": 86400}))
        .await;
    let problem = app.operate(&link, "reversal", &Value::Null).await;
    let problem = problem.problem(409, "rejected-by-dojo");
    assert!(
        detail(&problem).contains("on the day of the payment"),
        "{problem}"
    );
    assert_eq!(problem["paymentLinkId"], link["id"]);
    let [operation] = &app.operations(&link).await[..] else {
        panic!("there is one operation");
    };
    assert_eq!(operation["id"], problem["operationId"]);
    assert_eq!(operation["status"], "Failed");
    assert_eq!(operation["failure"]["reason"], "rejected");
    assert_eq!(operation["failure"]["status"], 409);
    assert_eq!(
        app.operation_entries(&link).await,
        ["operationRequested", "operationFailed"]
    );
}

#[tokio::test]
async fn a_changed_amount_and_tip_are_what_the_customer_pays() {
    let app = TestApp::quick(&[]).await;
    let mut body = manual("Order 1");
    body["captureMode"] = json!("Auto");
    let link = app.create(&body).await.expect(201).json();
    let lines = json!([{"id": "1", "quantity": 1, "name": "Ticket", "amountTotal": pounds(1250)}]);
    let new = json!({"amount": pounds(1250), "itemLines": lines});
    let changed = app.operate(&link, "amount", &new).await.expect(200).json();
    assert_eq!(changed["amount"], pounds(1250));
    assert_eq!(changed["totalAmount"], pounds(1250));
    assert_eq!(changed["itemLines"], lines);
    let tip = json!({"tipsAmount": pounds(50)});
    let changed = app.operate(&link, "tips-amount", &tip).await;
    assert_eq!(changed.expect(200).json()["totalAmount"], pounds(1300));

    app.sandbox.pay(&link["paymentIntentId"]).await;
    let paid = app.read_until_confirmed(&link["id"]).await;
    assert_eq!(paid["status"], "Captured");
    assert_eq!(paid["capturedAmount"]["value"], 1300);
    // Dojo reports what was requested: no mismatch at any time.
    assert_eq!(paid["reportedAmount"], Value::Null);
    let timeline = app.timeline(&link["id"]).await;
    assert!(
        timeline
            .iter()
            .all(|entry| entry["type"] != "amountMismatch")
    );

    let problem = app.operate(&link, "amount", &new).await;
    let problem = problem.problem(409, "not-possible");
    assert_eq!(detail(&problem), "already captured: refund it");
}

#[tokio::test]
async fn a_receipt_is_sent_for_a_paid_link_only() {
    let app = TestApp::start().await;
    let link = app.created().await;
    let emails = json!({"emails": ["mari@example.com", "gabriel@example.com"]});
    let problem = app.operate(&link, "receipt", &emails).await;
    let problem = problem.problem(409, "not-possible");
    assert_eq!(detail(&problem), "not paid yet, so there is no receipt");
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.operate(&link, "receipt", &emails).await.expect(200);
    let [call] = &app.sandbox.requests("receipt").await[..] else {
        panic!("there is one call");
    };
    assert_eq!(call["body"], emails);
    assert!(!app.service.log().contains("mari@example.com"));
}

#[tokio::test]
async fn each_rejection_says_what_is_possible_instead() {
    let app = TestApp::start().await;
    let created = app.created().await;
    let authorized = app.authorized().await;
    let captured = app.authorized().await;
    app.operate(&captured, "captures", &json!({}))
        .await
        .expect(200);
    let paid = app.paid().await;
    let reversed = app.paid().await;
    app.operate(&reversed, "reversal", &Value::Null)
        .await
        .expect(200);
    let before = app.sandbox.requests("any").await.len();

    let amount = json!({"amount": pounds(5)});
    let tip = json!({"tipsAmount": pounds(5)});
    let nothing = json!({});
    for (link, operation, body, expected) in [
        (
            &created,
            "captures",
            &nothing,
            "not paid yet: it is captured automatically when it is paid",
        ),
        (&created, "refunds", &nothing, "not paid yet: cancel it"),
        (&created, "reversal", &nothing, "not paid yet: cancel it"),
        (
            &created,
            "amount",
            &amount,
            "the link was created without config.payment.customAmountAllowed: cancel it and create a new link",
        ),
        (
            &created,
            "tips-amount",
            &tip,
            "the link was created without config.payment.tipsAllowed: cancel it and create a new link",
        ),
        (&authorized, "cancel", &nothing, "authorized: reverse it"),
        (
            &authorized,
            "refunds",
            &nothing,
            "authorized and not captured: reverse it, or capture it first",
        ),
        (&captured, "cancel", &nothing, "captured: refund it"),
        (&captured, "reversal", &nothing, "captured: refund it"),
        (
            &captured,
            "tips-amount",
            &tip,
            "already captured: refund it",
        ),
        (&paid, "cancel", &nothing, "captured: refund or reverse it"),
        (&paid, "captures", &nothing, "already captured: refund it"),
        (&reversed, "cancel", &nothing, "already reversed"),
        (&reversed, "captures", &nothing, "already reversed"),
        (&reversed, "refunds", &nothing, "already reversed"),
        (&reversed, "reversal", &nothing, "already reversed"),
        (&reversed, "amount", &amount, "already reversed"),
    ] {
        let problem = app.operate_with_key("a", link, operation, body).await;
        let problem = problem.problem(409, "not-possible");
        assert_eq!(detail(&problem), expected, "{operation}");
    }
    // The payments were read from Dojo. Nothing else was requested.
    let calls = app.sandbox.requests("any").await;
    assert!(
        calls[before..]
            .iter()
            .all(|call| call["operation"] == "get"),
        "{calls:?}"
    );
    // Nothing was saved, so the key is free.
    assert_eq!(app.operations(&created).await.len(), 0);
    app.operate_with_key("a", &created, "cancel", &nothing)
        .await
        .expect(200);
}

#[tokio::test]
async fn no_operation_is_possible_on_a_link_that_was_not_created() {
    let app = TestApp::start().await;
    app.sandbox
        .next("create", "status", json!({"status": 400}))
        .await;
    let failed = app.create(&ten_pounds("Order 1")).await.expect(422).json();
    let failed = json!({"id": failed["paymentLinkId"]});
    let problem = app.operate(&failed, "cancel", &Value::Null).await;
    let problem = problem.problem(409, "not-possible");
    assert!(
        detail(&problem).contains("could not be created"),
        "{problem}"
    );

    app.sandbox.next("create", "cutAfter", json!({})).await;
    let pending = app.create(&ten_pounds("Order 2")).await.expect(504).json();
    let pending = json!({"id": pending["paymentLinkId"]});
    let problem = app.operate(&pending, "cancel", &Value::Null).await;
    let problem = problem.problem(409, "not-possible");
    assert!(detail(&problem).contains("not confirmed"), "{problem}");

    let nobody = json!({"id": "plink_01kaz8v4wce7q8m6s5gq9nq2fd"});
    app.operate(&nobody, "cancel", &Value::Null)
        .await
        .problem(404, "not-found");
}

/// Dojo returns 404 for a cancellation and 400 for the other operations. Both are final rejections.
#[tokio::test]
async fn operations_on_an_intent_unknown_to_dojo_are_rejected_for_good() {
    let app = TestApp::start().await;
    let unpaid = app.create(&manual("Order 1")).await.expect(201).json();
    let links = [app.paid().await, app.authorized().await, unpaid];
    sqlx::query("UPDATE payment_links SET payment_intent_id = 'pi_sandbox_unknown_' || id")
        .execute(&app.pool)
        .await
        .unwrap();
    let [paid, authorized, unpaid] = &links;
    let five = json!({"amount": pounds(500)});
    // Without a response from Dojo, what is left to refund is unknown.
    app.operate_with_key("refunds", paid, "refunds", &five)
        .await
        .problem(409, "refundable-amount-unclear");
    for (link, operation, body) in [
        (authorized, "captures", &five),
        (authorized, "reversal", &Value::Null),
        (unpaid, "amount", &five),
        (unpaid, "tips-amount", &json!({"tipsAmount": pounds(5)})),
        (unpaid, "cancel", &Value::Null),
    ] {
        let first = app.operate_with_key(operation, link, operation, body).await;
        let problem = first.problem(409, "rejected-by-dojo");
        assert!(
            detail(&problem).contains("no payment intent with this id"),
            "{operation}: {problem}"
        );
        let again = app.operate_with_key(operation, link, operation, body).await;
        assert_eq!(again.header("idempotent-replayed"), "true", "{operation}");
        let operations = app.operations(link).await;
        let failed = |operation: &Value| operation["status"] == "Failed";
        assert!(operations.iter().all(failed), "{operations:#?}");
    }
}

#[tokio::test]
async fn all_faults_of_a_request_are_reported() {
    let app = TestApp::start().await;
    let link = app.paid().await;
    let at = |problem: Value| -> Vec<String> {
        let errors = problem["errors"].as_array().unwrap();
        errors
            .iter()
            .map(|error| text(&error["pointer"]).to_owned())
            .collect()
    };
    let euros = json!({"value": 5, "currencyCode": "EUR"});
    let wrong = json!({"amount": pounds(0), "refundReason": "x".repeat(1025), "amuont": 1});
    let problem = app.operate(&link, "refunds", &wrong).await;
    assert_eq!(
        at(problem.problem(422, "invalid-request")),
        [
            "/amount/value",
            "/amuont",
            "/refundReason",
            "Idempotency-Key"
        ]
    );
    let problem = app.operate(&link, "refunds", &json!({})).await;
    assert_eq!(
        at(problem.problem(422, "invalid-request")),
        ["Idempotency-Key"]
    );
    let problem = app
        .operate_with_key("a", &link, "refunds", &json!({"amount": euros}))
        .await;
    assert_eq!(
        at(problem.problem(422, "invalid-request")),
        ["/amount/currencyCode"]
    );
    let problem = app
        .operate(&link, "captures", &json!({"tipsAmount": pounds(-1)}))
        .await;
    assert_eq!(
        at(problem.problem(422, "invalid-request")),
        ["/tipsAmount/value"]
    );
    let authorized = app.authorized().await;
    let problem = app
        .operate(&authorized, "captures", &json!({"tipsAmount": pounds(1)}))
        .await;
    assert_eq!(at(problem.problem(422, "invalid-request")), ["/amount"]);
    let problem = app
        .operate(&link, "receipt", &json!({"emails": ["mari", "a@b", ""]}))
        .await;
    assert_eq!(
        at(problem.problem(422, "invalid-request")),
        ["/emails/0", "/emails/2"]
    );
    let problem = app.operate(&link, "receipt", &json!({"emails": []})).await;
    assert_eq!(at(problem.problem(422, "invalid-request")), ["/emails"]);
    let problem = app.operate(&link, "amount", &json!({})).await;
    assert_eq!(at(problem.problem(422, "invalid-request")), ["/amount"]);
    // There is no partial reversal, so an amount is a mistake.
    let problem = app
        .operate(&link, "reversal", &json!({"amount": pounds(5)}))
        .await;
    assert_eq!(at(problem.problem(422, "invalid-request")), ["/amount"]);
    assert_eq!(
        app.sandbox.intent(&link["paymentIntentId"]).await["status"],
        "Captured"
    );
    assert_eq!(app.operations(&link).await.len(), 0);
}

#[tokio::test]
async fn operations_require_the_scope_payments_manage() {
    let app = TestApp::start().await;
    let link = app.paid().await;
    let made = program()
        .args([
            "api-keys",
            "create",
            "--name",
            "crm",
            "--scopes",
            "links:read,links:write",
        ])
        .env("DATABASE_URL", &app.database_url)
        .output()
        .unwrap();
    let key = String::from_utf8(made.stdout).unwrap();
    let path = format!("/v1/payment-links/{}", text(&link["id"]));
    for operation in [
        "cancel",
        "captures",
        "refunds",
        "reversal",
        "amount",
        "tips-amount",
        "receipt",
    ] {
        let request = app.anonymous(Method::POST, &format!("{path}/{operation}"));
        let answer = send(request.bearer_auth(key.trim()).json(&json!({}))).await;
        let problem = answer.problem(403, "forbidden");
        assert!(detail(&problem).contains("payments:manage"));
    }
    let request = app.anonymous(Method::GET, &format!("{path}/operations"));
    send(request.bearer_auth(key.trim())).await.expect(200);
}

#[tokio::test]
async fn a_repetition_gets_the_same_operation_and_the_link_as_it_is_now() {
    let app = TestApp::start().await;
    let link = app.paid().await;
    let part = json!({"amount": pounds(300)});
    let first = app
        .operate_with_key("a", &link, "refunds", &part)
        .await
        .expect(200);
    app.operate_with_key("b", &link, "refunds", &part)
        .await
        .expect(200);
    let again = app
        .operate_with_key("a", &link, "refunds", &part)
        .await
        .expect(200);
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.header("operation-id"), first.header("operation-id"));
    assert_eq!(again.json()["operation"], first.json()["operation"]);
    assert_eq!(again.json()["refundedAmount"], pounds(600));
    assert_eq!(app.sandbox.requests("refund").await.len(), 2);

    // The same key for another amount, another operation, another link, or a new link.
    let other = app.paid().await;
    for (link, operation, body) in [
        (&link, "refunds", json!({"amount": pounds(301)})),
        (&link, "reversal", json!({})),
        (&other, "refunds", part.clone()),
    ] {
        let problem = app.operate_with_key("a", link, operation, &body).await;
        problem.problem(422, "idempotency-key-reused");
    }
    let problem = app.create_with_key("a", &ten_pounds("Order 2")).await;
    problem.problem(422, "idempotency-key-reused");

    // Keys also work for operations that do not require one.
    let emails = json!({"emails": ["mari@example.com"]});
    for (operation, call, body, link) in [
        ("cancel", "cancel", Value::Null, app.created().await),
        (
            "captures",
            "capture",
            json!({"amount": pounds(5)}),
            app.authorized().await,
        ),
        ("reversal", "reversal", json!({}), app.paid().await),
        (
            "amount",
            "amount",
            json!({"amount": pounds(5)}),
            app.authorized().await,
        ),
        (
            "tips-amount",
            "tips",
            json!({"tipsAmount": pounds(5)}),
            app.authorized().await,
        ),
        ("receipt", "receipt", emails, app.paid().await),
    ] {
        let first = app
            .operate_with_key(operation, &link, operation, &body)
            .await;
        let first = first.expect(200);
        let again = app
            .operate_with_key(operation, &link, operation, &body)
            .await;
        let again = again.expect(200);
        assert_eq!(again.header("idempotent-replayed"), "true");
        assert_eq!(again.text, first.text);
        assert_eq!(app.sandbox.requests(call).await.len(), 1, "{operation}");
    }
}

#[tokio::test]
async fn a_refund_without_an_amount_refunds_what_dojo_has_left() {
    let app = TestApp::start().await;
    let link = app.paid().await;
    // A refund in Dojo's portal. A partial refund causes no webhook.
    app.sandbox.refund(&link["paymentIntentId"], 400).await;
    let rest = app
        .operate_with_key("a", &link, "refunds", &json!({}))
        .await;
    assert_eq!(rest.expect(200).json()["refundedAmount"]["value"], 1000);
    assert_eq!(
        app.operations(&link).await[0]["request"]["amount"],
        pounds(600)
    );
}

#[tokio::test]
async fn the_captured_amount_is_unknown_until_dojo_is_read() {
    let app = TestApp::start().await;
    let link = app.authorized().await;
    let failing = json!({"operation": "get", "kind": "status", "status": 500, "share": 1.0});
    app.sandbox.control("faults", failing).await;
    let captures = format!(
        "/payment-intents/{}/captures",
        text(&link["paymentIntentId"])
    );
    app.sandbox
        .api(Method::POST, &captures, &json!({"amount": 300}))
        .await;
    let shown = app.link_with_status(&link["id"], "Captured").await;
    assert_eq!(shown["capturedAmount"]["value"], 0);
    let problem = app
        .operate_with_key("a", &link, "refunds", &json!({}))
        .await;
    // An unknown amount is no reason to reject the refund.
    problem.problem(503, "dojo-not-reached");
    app.sandbox.clear("faults").await;
    let refunded = app
        .operate_with_key("a", &link, "refunds", &json!({}))
        .await;
    let refunded = refunded.expect(200).json();
    assert_eq!(refunded["capturedAmount"]["value"], 300);
    assert_eq!(refunded["refundedAmount"]["value"], 300);
}

#[tokio::test]
async fn an_expired_authorization_is_released_or_captured_as_the_link_says() {
    let app = TestApp::quick(&[]).await;
    for (action, status, captured) in [("Release", "Reversed", 0), ("Capture", "Captured", 1000)] {
        let mut body = manual(action);
        body["autoExpireIn"] = json!("00:10:00");
        body["autoExpireAction"] = json!(action);
        let link = app.create(&body).await.expect(201).json();
        app.sandbox.pay(&link["paymentIntentId"]).await;
        app.link_with_status(&link["id"], "Authorized").await;
        app.sandbox
            .control("clock", json!({"advanceSeconds": 601}))
            .await;
        eventually("the authorization has expired", async || {
            let link = app.link(&link["id"]).await;
            (link["status"] == status && link["capturedAmount"]["value"] == captured).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_rejection_by_dojo_is_passed_on_and_repeated_for_the_same_key() {
    let app = TestApp::start().await;
    let link = app.paid().await;
    app.sandbox
        .next("refund", "status", json!({"status": 400}))
        .await;
    let first = app
        .operate_with_key("a", &link, "refunds", &json!({}))
        .await;
    let problem = first.problem(409, "rejected-by-dojo");
    let again = app
        .operate_with_key("a", &link, "refunds", &json!({}))
        .await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(
        again.problem(409, "rejected-by-dojo")["detail"],
        problem["detail"]
    );
    assert_eq!(app.sandbox.requests("refund").await.len(), 1);
    // The amount that was not refunded is still refundable.
    let refunded = app
        .operate_with_key("b", &link, "refunds", &json!({}))
        .await;
    assert_eq!(refunded.expect(200).json()["refundedAmount"]["value"], 1000);
}

#[tokio::test]
async fn a_key_can_be_retried_if_dojo_provably_did_nothing() {
    let app = TestApp::with(&[("DOJO_TIMEOUT", "1s")]).await;
    let link = app.paid().await;
    for (status, response, slug) in [
        (429, 503, "dojo-not-reached"),
        (401, 502, "dojo-key-rejected"),
    ] {
        app.sandbox
            .control(
                "faults",
                json!({"operation": "refund", "kind": "status", "status": status, "share": 1.0}),
            )
            .await;
        let problem = app
            .operate_with_key("a", &link, "refunds", &json!({}))
            .await;
        let problem = problem.problem(response, slug);
        assert!(detail(&problem).contains("nothing was done"), "{problem}");
        app.sandbox.clear("faults").await;
    }
    // A refund is sent once for each read: somebody may refund in the portal in between.
    let refunds = app.sandbox.requests("refund").await;
    assert_eq!(refunds.len(), 2, "{refunds:#?}");
    let part = json!({"amount": pounds(5)});
    // A capture is sent only if the earlier captures are known.
    let authorized = app.authorized().await;
    app.sandbox.next("get", "cutAfter", json!({})).await;
    let problem = app
        .operate_with_key("c", &authorized, "captures", &part)
        .await;
    problem.problem(503, "dojo-not-reached");
    assert_eq!(app.sandbox.requests("capture").await.len(), 0);

    app.operate_with_key("a", &link, "refunds", &json!({}))
        .await
        .expect(200);
    app.operate_with_key("c", &authorized, "captures", &part)
        .await
        .expect(200);
    assert_eq!(app.sandbox.done("refund").await.len(), 1);
}

#[tokio::test]
async fn of_twenty_concurrent_refunds_of_a_tenth_ten_succeed() {
    // For one settlement window, Dojo's refund total may lack a refund, so that part of what is left is unclear.
    let settings = [("RECOVERY_SETTLE", "1s")];
    let app = TestApp::with(&settings).await;
    let replica = Service::start(&app.database_url, &app.sandbox.url, &settings).await;
    let link = app.paid().await;
    let tenth = json!({"amount": pounds(100)});
    let refund = |n: usize| {
        let service = if n.is_multiple_of(2) {
            &app.service.url
        } else {
            &replica.url
        };
        let path = format!("{service}/v1/payment-links/{}/refunds", text(&link["id"]));
        let request = reqwest::Client::new()
            .post(path)
            .bearer_auth(crate::support::API_KEY)
            .header("idempotency-key", format!("refund-{n}"))
            .json(&tenth);
        send(request)
    };
    // Callers who are told to retry do so. What is left is clear once earlier refunds have ended and settled.
    let retrying = async |n| {
        within(
            Duration::from_mins(1),
            "the refund succeeds or is rejected",
            async {
                loop {
                    let answer = refund(n).await;
                    if answer.header("retry-after").is_empty() {
                        return answer;
                    }
                    // On a busy machine, twenty refunds at once may use up the database connections.
                    if answer.status != 503 {
                        answer.problem(409, "refundable-amount-unclear");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        )
        .await
    };
    let answers = join_all((0..20).map(retrying)).await;
    let succeeded = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(succeeded, 10);
    for answer in answers.into_iter().filter(|answer| answer.status != 200) {
        answer.problem(409, "not-possible");
    }
    let intent = app.sandbox.intent(&link["paymentIntentId"]).await;
    assert_eq!(intent["refundedAmount"], 1000);
    // Dojo had to reject none.
    assert_eq!(app.sandbox.requests("refund").await.len(), 10);
    let operations = app.operations(&link).await;
    assert_eq!(operations.len(), 10);
    assert!(
        operations
            .iter()
            .all(|operation| operation["status"] == "Succeeded")
    );
}

#[tokio::test]
async fn one_refund_requested_twenty_times_at_once_is_made_once() {
    let app = TestApp::start().await;
    let link = app.paid().await;
    let tenth = json!({"amount": pounds(100)});
    let requests = (0..20).map(|_| app.operate_with_key("a", &link, "refunds", &tenth));
    for answer in join_all(requests).await {
        match answer.status.as_u16() {
            200 => {}
            _ => {
                answer.problem(409, "request-in-progress");
            }
        }
    }
    assert_eq!(app.sandbox.requests("refund").await.len(), 1);
    assert_eq!(
        app.sandbox.intent(&link["paymentIntentId"]).await["refundedAmount"],
        100
    );
}

#[tokio::test]
async fn a_link_has_one_pending_change_at_a_time() {
    let app = TestApp::start().await;
    let link = app.authorized().await;
    app.sandbox
        .next("capture", "latency", json!({"latencyMs": 700}))
        .await;
    let part = json!({"amount": pounds(100)});
    let capture = app.operate(&link, "captures", &part);
    let other = async {
        eventually("the capture is under way", async || {
            (!app.sandbox.requests("capture").await.is_empty()).then_some(())
        })
        .await;
        app.operate(&link, "reversal", &Value::Null).await
    };
    let (captured, other) = futures_util::future::join(capture, other).await;
    captured.expect(200);
    assert_eq!(other.header("retry-after"), "1");
    other.problem(409, "operation-in-progress");
    app.operate(&link, "captures", &part).await.expect(200);
}

#[tokio::test]
async fn a_success_is_reported_even_if_the_link_cannot_be_read_back() {
    let app = TestApp::quick(&[]).await;
    let link = app.paid().await;
    app.sandbox
        .next("refund", "latencyAfter", json!({"latencyMs": 1000}))
        .await;
    let nothing = json!({});
    let refund = app.operate_with_key("a", &link, "refunds", &nothing);
    // By then, the service has read what is left to refund.
    let break_reads = async {
        eventually("Dojo has made the refund", async || {
            let intent = app.sandbox.intent(&link["paymentIntentId"]).await;
            (intent["refundedAmount"] == 1000).then_some(())
        })
        .await;
        let failing = json!({"operation": "get", "kind": "status", "status": 500, "share": 1.0});
        app.sandbox.control("faults", failing).await;
    };
    let (answer, ()) = futures_util::future::join(refund, break_reads).await;
    let answer = answer.expect(202);
    assert_eq!(answer.json()["refundedAmount"]["value"], 0);
    assert_eq!(answer.json()["confirmed"], false);
    app.sandbox.clear("faults").await;
    eventually("the link is brought up to date", async || {
        let link = app.link(&link["id"]).await;
        (link["status"] == "Refunded" && link["refundedAmount"]["value"] == 1000).then_some(())
    })
    .await;
    // A repetition returns the link as it is by now.
    let again = app
        .operate_with_key("a", &link, "refunds", &json!({}))
        .await
        .expect(200);
    assert_eq!(again.json()["status"], "Refunded");
    assert_eq!(app.sandbox.requests("refund").await.len(), 1);
}

#[tokio::test]
async fn after_an_operation_the_link_is_not_confirmed_until_it_is_read() {
    let app = TestApp::start().await;
    let created = app.created().await;
    for (operation, link, before, after) in [
        ("cancel", &created, "Created", "Canceled"),
        ("reversal", &app.paid().await, "Captured", "Reversed"),
        (
            "reversal",
            &app.authorized().await,
            "Authorized",
            "Reversed",
        ),
    ] {
        app.sandbox.drop_webhooks().await;
        let failing = json!({"operation": "get", "kind": "status", "status": 500, "share": 1.0});
        app.sandbox.control("faults", failing).await;
        let answer = app
            .operate_with_key(text(&link["id"]), link, operation, &json!({}))
            .await
            .expect(202);
        for link in [answer.json(), app.link(&link["id"]).await] {
            assert_eq!(link["status"], before, "{operation}");
            assert_eq!(link["confirmed"], false, "{operation}");
            // The amounts stay those that Dojo reported.
            let captured = if before == "Captured" { 1000 } else { 0 };
            assert_eq!(link["capturedAmount"]["value"], captured, "{operation}");
        }
        app.sandbox.clear("faults").await;
        let link = app.refresh(&link["id"]).await.expect(200).json();
        assert_eq!(link["status"], after, "{operation}");
        assert_eq!(link["confirmed"], true, "{operation}");
    }
}

#[tokio::test]
async fn a_read_from_before_an_operation_does_not_confirm_the_link() {
    let app = TestApp::start().await;
    let link = app.created().await;
    app.sandbox.drop_webhooks().await;
    // The response to the first read arrives after the link was canceled.
    app.sandbox
        .next("get", "latencyAfter", json!({"latencyMs": 2000}))
        .await;
    let refresh = app.refresh(&link["id"]);
    let cancel = async {
        eventually("the read has reached Dojo", async || {
            (!app.sandbox.requests("get").await.is_empty()).then_some(())
        })
        .await;
        let failing = json!({"operation": "get", "kind": "status", "status": 500, "share": 1.0});
        app.sandbox.control("faults", failing).await;
        app.operate(&link, "cancel", &Value::Null).await.expect(202);
    };
    let (refreshed, ()) = futures_util::future::join(refresh, cancel).await;
    assert_eq!(refreshed.expect(200).json()["confirmed"], false);
    let link = app.link(&link["id"]).await;
    assert_eq!(
        (&link["status"], &link["confirmed"]),
        (&json!("Created"), &json!(false))
    );
}

#[tokio::test]
async fn operations_are_listed_page_by_page() {
    let app = TestApp::start().await;
    let link = app.paid().await;
    for n in 0..5 {
        let body = json!({"amount": pounds(100 + n)});
        app.operate_with_key(&n.to_string(), &link, "refunds", &body)
            .await
            .expect(200);
    }
    let path = format!("/v1/payment-links/{}/operations?limit=2", text(&link["id"]));
    let (mut amounts, mut after) = (Vec::new(), String::new());
    loop {
        let page = app.get(&format!("{path}{after}")).await.expect(200).json();
        for operation in page["data"].as_array().unwrap() {
            amounts.push(operation["request"]["amount"]["value"].as_i64().unwrap());
        }
        match page["after"].as_str().filter(|_| page["hasMore"] == true) {
            Some(cursor) => after = format!("&after={cursor}"),
            None => break,
        }
    }
    assert_eq!(amounts, [100, 101, 102, 103, 104]);
    app.get(&format!("{path}&after=x"))
        .await
        .problem(422, "invalid-request");
}
