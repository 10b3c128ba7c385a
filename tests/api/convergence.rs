//! Links converge on Dojo's state, whether their webhooks arrive, lie, or never arrive.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::support::{TestApp, eventually, received_at, ten_pounds, text};

/// A link for which Dojo sends no webhooks, so that all come from the test.
async fn link_without_webhooks(app: &TestApp) -> Value {
    app.sandbox.drop_webhooks().await;
    app.created().await
}

/// Waits until the link satisfies a condition.
async fn once(app: &TestApp, id: &Value, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    eventually(what, async || {
        let link = app.link(id).await;
        is_so(&link).then_some(link)
    })
    .await
}

/// Delivers a correctly signed event with this status.
async fn report(app: &TestApp, link: &Value, id: &str, status: &str) {
    let event = json!({"id": id, "event": "payment_intent.status_updated",
        "data": {"paymentIntentId": link["paymentIntentId"], "paymentStatus": status}});
    app.deliver(&event.to_string()).await.expect(204);
}

async fn due_at(app: &TestApp) -> Option<OffsetDateTime> {
    sqlx::query_scalar("SELECT due_at FROM payment_links")
        .fetch_one(&app.pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_payment_without_webhooks_is_found_by_the_schedule() {
    let app = TestApp::quick(&[]).await;
    let link = link_without_webhooks(&app).await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.link_with_status(&link["id"], "Captured").await;
    assert_eq!(app.stored_webhooks().await, 0);
}

#[tokio::test]
async fn reconciliation_finds_attempts_payment_and_refunds_without_webhooks() {
    let app = TestApp::quick(&[]).await;
    let link = link_without_webhooks(&app).await;
    let (id, intent) = (&link["id"], &link["paymentIntentId"]);

    app.sandbox.act(intent, "decline", json!({})).await;
    app.sandbox.act(intent, "challenge", json!({})).await;
    app.all_are_due().await;
    let link = once(&app, id, "the attempts are stored", |link| {
        link["attempts"].as_array().unwrap().len() == 2
    })
    .await;
    assert_eq!(link["status"], "Created", "a declined attempt ends nothing");
    for attempt in link["attempts"].as_array().unwrap() {
        assert!(attempt["transactionDateTime"].is_string(), "{attempt}");
    }
    let attempts = link["attempts"].as_array().unwrap().iter();
    let attempts: Vec<_> = attempts
        .map(|attempt| text(&attempt["eventType"]))
        .collect();
    assert_eq!(attempts, ["Declined", "AuthChallenged"]);

    app.sandbox.pay(intent).await;
    app.all_are_due().await;
    let link = app.link_with_status(id, "Captured").await;
    for known in ["transactionId", "authCode", "cardNumber"] {
        assert!(!text(&link["payment"][known]).is_empty(), "{known}: {link}");
    }
    assert_eq!(
        link["payment"]["last4"], "1096",
        "the card that was challenged"
    );

    app.sandbox.refund(intent, 300).await;
    app.all_are_due().await;
    let link = once(&app, id, "the refund is stored", |link| {
        link["refundedAmount"]["value"] == 300
    })
    .await;
    assert_eq!(link["status"], "Captured", "only a part was refunded");

    app.sandbox.refund(intent, 700).await;
    app.all_are_due().await;
    let link = app.link_with_status(id, "Refunded").await;
    assert_eq!(link["refundedAmount"]["value"], 1000);
    assert_eq!(due_at(&app).await, None, "nothing can change any more");

    let changes = app.told(id, "reconciled").await;
    assert_eq!(
        changes.len(),
        4,
        "each change is recorded once: {changes:#?}"
    );
    assert!(
        changes
            .iter()
            .all(|entry| entry["cause"]["type"] == "reconciliation")
    );
}

#[tokio::test]
async fn a_link_that_expires_without_a_webhook_is_canceled() {
    let app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    let mut body = ten_pounds("Order 1");
    let expire_at = OffsetDateTime::now_utc() + Duration::from_mins(20);
    body["expireAt"] = json!(
        expire_at
            .format(&time::format_description::well_known::Rfc3339)
            .unwrap()
    );
    let link = app.create(&body).await.expect(201).json();

    // At the age of a day it would be reconciled every six hours if it were not about to expire.
    sqlx::query("UPDATE payment_links SET created_at = now() - interval '1 day', due_at = now()")
        .execute(&app.pool)
        .await
        .unwrap();
    let due = eventually("it was reconciled", async || {
        due_at(&app)
            .await
            .filter(|due| *due > OffsetDateTime::now_utc())
    })
    .await;
    let after_expiry = due - expire_at;
    assert!(after_expiry > Duration::ZERO && after_expiry < Duration::from_mins(1));

    app.sandbox
        .control("clock", json!({"advanceSeconds": 1300}))
        .await;
    app.all_are_due().await;
    app.link_with_status(&link["id"], "Canceled").await;
    assert_eq!(due_at(&app).await, None);
}

#[tokio::test]
async fn dojos_response_beats_a_contradictory_webhook() {
    let app = TestApp::quick(&[]).await;
    // Dojo says the same as the first webhook.
    let paid = link_without_webhooks(&app).await;
    app.sandbox.pay(&paid["paymentIntentId"]).await;
    report(&app, &paid, "evt_1", "Captured").await;
    report(&app, &paid, "evt_2", "Canceled").await;
    let known = |link: &Value| link["status"] == "Captured" && !link["payment"].is_null();
    once(&app, &paid["id"], "the intent was read", known).await;

    // A webhook reports something that never happened, and no webhook reports the payment.
    let other = link_without_webhooks(&app).await;
    app.sandbox.pay(&other["paymentIntentId"]).await;
    report(&app, &other, "evt_3", "Canceled").await;
    let link = app.link_with_status(&other["id"], "Captured").await;
    assert!(!link["payment"].is_null());
    let last = app.told(&link["id"], "reconciled").await.pop().unwrap();
    assert_eq!(
        last["detail"]["changed"]["status"],
        json!({"from": "Canceled", "to": "Captured"})
    );
}

#[tokio::test]
async fn a_forged_payment_is_corrected_once_dojo_stands_by_its_response() {
    let app = TestApp::quick(&[]).await;
    let link = link_without_webhooks(&app).await;
    report(&app, &link, "evt_1", "Captured").await;
    assert_eq!(app.link(&link["id"]).await["status"], "Captured");

    let link = app.link_with_status(&link["id"], "Created").await;
    let told: Vec<_> = app
        .timeline(&link["id"])
        .await
        .iter()
        .map(|entry| {
            let kind = text(&entry["type"]).to_owned();
            (kind, text(&entry["statusAfter"]).to_owned())
        })
        .collect();
    let expected = [
        ("requested", "Pending"),
        ("created", "Created"),
        ("webhook", "Captured"),
        ("conflictingResponse", "Captured"),
        ("reconciled", "Created"),
    ];
    let expected = expected.map(|(kind, status)| (kind.to_owned(), status.to_owned()));
    assert_eq!(
        told, expected,
        "recorded once, however often the intent was read"
    );
    assert!(app.sandbox.requests("get").await.len() >= 3);

    // The customer can still pay.
    app.sandbox.clear("webhook-faults").await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.link_with_status(&link["id"], "Captured").await;
    app.in_step_with_dojo().await;
}

#[tokio::test]
async fn a_response_that_lags_behind_its_webhook_is_not_accepted() {
    let app = TestApp::quick(&[("RECOVERY_SETTLE", "30s")]).await;
    let link = link_without_webhooks(&app).await;
    report(&app, &link, "evt_1", "Captured").await;
    eventually("Dojo's response is behind", async || {
        app.told(&link["id"], "conflictingResponse").await.pop()
    })
    .await;
    assert_eq!(app.link(&link["id"]).await["status"], "Captured");
    app.sandbox.pay(&link["paymentIntentId"]).await;
    let known = |link: &Value| !link["payment"].is_null();
    let link = once(&app, &link["id"], "Dojo has caught up", known).await;
    let was = app.timeline(&link["id"]).await;
    let statuses: Vec<_> = was.iter().map(|entry| &entry["statusAfter"]).collect();
    let at = statuses.iter().position(|status| *status == "Captured");
    assert!(
        statuses[at.unwrap()..]
            .iter()
            .all(|status| *status == "Captured")
    );
}

#[tokio::test]
async fn an_unknown_status_changes_nothing_and_is_recorded() {
    let app = TestApp::quick(&[]).await;
    let link = link_without_webhooks(&app).await;
    let (id, intent) = (&link["id"], &link["paymentIntentId"]);
    app.sandbox
        .act(intent, "status", json!({"status": "Chargeback"}))
        .await;
    app.all_are_due().await;
    let told = eventually("it is recorded", async || {
        app.told(id, "reconciled").await.pop()
    })
    .await;
    assert_eq!(told["detail"]["changed"]["reported"]["to"], "Chargeback");
    assert_eq!(app.link(id).await["status"], "Created");
    app.logged("Chargeback").await;

    app.sandbox
        .act(intent, "status", json!({"status": "Captured"}))
        .await;
    app.all_are_due().await;
    app.link_with_status(id, "Captured").await;
}

#[tokio::test]
async fn a_webhook_during_a_read_triggers_another_read() {
    let app = TestApp::quick(&[("DOJO_TIMEOUT", "10s")]).await;
    let link = app.created().await;
    let (id, intent) = (&link["id"], &link["paymentIntentId"]);
    app.sandbox.pay(intent).await;
    let known = |link: &Value| link["status"] == "Captured" && !link["payment"].is_null();
    once(&app, id, "the payment is stored", known).await;
    app.in_step_with_dojo().await;

    // The response that is on its way does not include what the webhook reports, and the next scheduled read is far away.
    app.sandbox.clear("requests").await;
    app.sandbox
        .next("get", "latencyAfter", json!({"latencyMs": 1500}))
        .await;
    app.all_are_due().await;
    eventually("the intent is being read", async || {
        app.sandbox.requests("get").await.pop()
    })
    .await;
    app.sandbox
        .act(intent, "status", json!({"status": "PartiallyRefunded"}))
        .await;
    eventually("the second response is stored", async || {
        let told = app.told(id, "reconciled").await.pop()?;
        (told["detail"]["changed"]["reported"]["to"] == "PartiallyRefunded").then_some(())
    })
    .await;
}

/// An event about the creation, as Dojo sends it with each intent.
async fn announce(app: &TestApp, intent: &Value, id: &str) {
    let event = json!({"id": id, "event": "payment_intent.created",
        "data": {"paymentIntentId": intent, "paymentStatus": "Created"}});
    app.deliver(&event.to_string()).await.expect(204);
}

#[tokio::test]
async fn a_webhook_that_only_repeats_the_creation_makes_no_link_due() {
    let app = TestApp::start().await;
    let link = link_without_webhooks(&app).await;
    let (id, intent) = (&link["id"], &link["paymentIntentId"]);
    let before = due_at(&app).await;
    announce(&app, intent, "evt_1").await;
    assert_eq!(app.told(id, "webhook").await.len(), 1);
    assert_eq!(due_at(&app).await, before);

    // Any other event may mean that something has happened, even if the status is the same.
    report(&app, &link, "evt_2", "Created").await;
    let after = due_at(&app).await;
    assert_ne!(after, before);

    // Dojo's last response contained another word, so it didn't confirm the status.
    sqlx::query("UPDATE payment_links SET unsettled_status = 'Chargeback'")
        .execute(&app.pool)
        .await
        .unwrap();
    announce(&app, intent, "evt_3").await;
    assert_ne!(due_at(&app).await, after);
}

#[tokio::test]
async fn a_webhook_that_repeats_the_creation_before_its_response_makes_no_link_due() {
    let app = TestApp::start().await;
    let soon = "SELECT due_at < now() + interval '5 seconds' FROM payment_links WHERE payment_intent_id = $1";
    for (status, is_soon) in [("Created", false), ("Captured", true)] {
        app.sandbox
            .next("create", "latencyAfter", json!({"latencyMs": 1000}))
            .await;
        let body = ten_pounds(status);
        let creating = app.create(&body);
        let announcing = async {
            let intent = eventually("the intent exists", async || {
                let mut intents = app.sandbox.intents().await;
                intents.retain(|intent| intent["reference"] == status);
                intents.pop()
            })
            .await;
            if status == "Captured" {
                app.sandbox.pay(&intent["id"]).await;
            }
            eventually("what has happened is announced", async || {
                let stored = "SELECT count(*) FROM webhook_events WHERE payment_intent_id = $1 AND payment_status = $2";
                let stored: i64 = sqlx::query_scalar(stored)
                    .bind(text(&intent["id"]))
                    .bind(status)
                    .fetch_one(&app.pool)
                    .await
                    .unwrap();
                (stored == 1).then_some(())
            })
            .await;
        };
        let (response, ()) = tokio::join!(creating, announcing);
        let link = response.expect(201).json();
        assert_eq!(link["status"], status);
        let due: bool = sqlx::query_scalar(soon)
            .bind(text(&link["paymentIntentId"]))
            .fetch_one(&app.pool)
            .await
            .unwrap();
        assert_eq!(due, is_soon, "{status}");
    }
}

#[tokio::test]
async fn an_amount_mismatch_is_reported_once() {
    let app = TestApp::quick(&[]).await;
    let link = link_without_webhooks(&app).await;
    let id = &link["id"];
    app.sandbox
        .act(&link["paymentIntentId"], "amount", json!({"amount": 100}))
        .await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.all_are_due().await;
    app.link_with_status(id, "Captured").await;
    for _ in 0..3 {
        assert_eq!(
            app.refresh(id).await.expect(200).json()["status"],
            "Captured"
        );
    }
    let told = app.told(id, "amountMismatch").await;
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!(told[0]["detail"]["requested"]["value"], 1000);
    assert_eq!(told[0]["detail"]["reported"]["value"], 100);
    let errors = app.logged("an amount other than").await;
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(errors[0].contains(text(id)) && errors[0].contains(r#""level":"ERROR""#));
    eventually("the metric counts it", async || {
        let count = app.metric("amount_mismatches_total").await;
        ((count - 1.0).abs() < f64::EPSILON).then_some(())
    })
    .await;
    let link = app.link(id).await;
    assert_eq!(link["amount"]["value"], 1000, "the requested amount");
    assert_eq!(link["totalAmount"]["value"], 100, "the amount at Dojo");
}

#[tokio::test]
async fn a_response_overtaken_by_a_newer_one_changes_nothing() {
    let app = TestApp::with(&[("DOJO_TIMEOUT", "10s")]).await;
    let link = link_without_webhooks(&app).await;
    let id = &link["id"];
    app.sandbox
        .next("get", "latencyAfter", json!({"latencyMs": 1500}))
        .await;
    let slow = async { app.refresh(id).await.expect(200).json() };
    let quick = async {
        eventually("the first read has begun", async || {
            app.sandbox.requests("get").await.pop()
        })
        .await;
        app.sandbox.pay(&link["paymentIntentId"]).await;
        app.refresh(id).await.expect(200).json()
    };
    let (slow, quick) = tokio::join!(slow, quick);
    assert_eq!(quick["status"], "Captured");
    assert_eq!(slow["status"], "Captured");
    assert_eq!(app.link(id).await["payment"], quick["payment"]);
    assert_eq!(app.told(id, "reconciled").await.len(), 1);
}

#[tokio::test]
async fn many_due_links_are_reconciled_by_pages() {
    let app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    let orders: Vec<_> = (0..60).map(|n| ten_pounds(&format!("Order {n}"))).collect();
    let links = join_all(orders.iter().map(async |body| {
        let key = text(&body["reference"]);
        app.outcome(key, body).await.expect(201).json()
    }))
    .await;
    for link in &links {
        app.sandbox.pay(&link["paymentIntentId"]).await;
    }
    sqlx::query("UPDATE payment_links SET due_at = now() + interval '1 hour'")
        .execute(&app.pool)
        .await
        .unwrap();
    app.sandbox.clear("requests").await;
    app.all_are_due().await;
    app.in_step_with_dojo().await;
    for link in &links {
        assert_eq!(app.link(&link["id"]).await["status"], "Captured");
    }
    let (gets, searches) = (
        app.sandbox.requests("get").await.len(),
        app.sandbox.requests("search").await.len(),
    );
    assert_eq!((gets, searches), (0, 1), "calls for 60 links");
}

#[tokio::test]
async fn links_that_search_does_not_show_are_read_one_by_one() {
    let app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    app.sandbox.search_lags(600.0).await;
    let orders: Vec<_> = (0..20).map(|n| ten_pounds(&format!("Order {n}"))).collect();
    join_all(orders.iter().map(async |body| {
        let key = text(&body["reference"]);
        let link = app.outcome(key, body).await.expect(201).json();
        app.sandbox.pay(&link["paymentIntentId"]).await;
    }))
    .await;
    app.all_are_due().await;
    app.in_step_with_dojo().await;
}

#[tokio::test]
async fn the_background_pauses_while_dojo_is_down_and_resumes() {
    // One call after the other, so that the pauses between them can be measured.
    let app = TestApp::quick(&[("BACKGROUND_CONCURRENCY", "1")]).await;
    app.sandbox.drop_webhooks().await;
    let orders: Vec<_> = (0..30).map(|n| ten_pounds(&format!("Order {n}"))).collect();
    join_all(orders.iter().map(async |body| {
        let key = text(&body["reference"]);
        let link = app.outcome(key, body).await.expect(201).json();
        app.sandbox.pay(&link["paymentIntentId"]).await;
    }))
    .await;
    let down = json!({"operation": "any", "kind": "status", "status": 503, "share": 1.0});
    app.sandbox.control("faults", down).await;
    app.sandbox.clear("requests").await;
    app.all_are_due().await;

    let calls = eventually("it has retried several times", async || {
        let calls = [
            app.sandbox.requests("get").await,
            app.sandbox.requests("search").await,
        ]
        .concat();
        (calls.len() >= 5).then_some(calls)
    })
    .await;
    let mut times: Vec<_> = calls.iter().map(received_at).collect();
    times.sort();
    let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // Two failures are tolerated. From the third on it waits 1 s, 2 s, and so on, give or take a quarter.
    assert!(pauses[2] >= Duration::from_millis(700), "{pauses:?}");
    assert!(pauses[3] >= Duration::from_millis(1400), "{pauses:?}");
    assert!(
        calls.len() <= 6,
        "30 links are due, and {} calls",
        calls.len()
    );

    let due = r#"backlog_links{account="default",state="due"}"#;
    let lag = r#"backlog_lag_seconds{account="default"}"#;
    eventually("the metrics show the backlog", async || {
        (app.metric(due).await >= 20.0 && app.metric(lag).await > 0.0).then_some(())
    })
    .await;
    app.sandbox.clear("faults").await;
    app.in_step_with_dojo().await;
    eventually("the backlog is gone", async || {
        (app.metric(due).await < 1.0 && app.metric(lag).await < 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_background_waits_for_dojos_retry_after() {
    let app = TestApp::quick(&[]).await;
    let link = link_without_webhooks(&app).await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.sandbox
        .next("get", "status", json!({"status": 429, "retryAfter": 3}))
        .await;
    app.all_are_due().await;
    app.link_with_status(&link["id"], "Captured").await;
    let times: Vec<_> = app
        .sandbox
        .requests("get")
        .await
        .iter()
        .map(received_at)
        .collect();
    assert_eq!(times.len(), 2);
    let pause = times[1] - times[0];
    assert!(pause >= Duration::from_secs(3), "{pause}");
}
