//! A link is `confirmed` only while Dojo's own response to our key agrees with its status, and its amounts come only from such
//! responses.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use sqlx::{migrate::Migrator, postgres::PgPoolOptions};
use time::OffsetDateTime;

use crate::support::{
    TestApp, empty_database, eventually, for_each_case, pounds, program, received_at, ten_pounds,
    text,
};

/// A link for which Dojo sends no webhooks, so that all come from the test.
async fn link_without_webhooks(app: &TestApp) -> Value {
    app.sandbox.drop_webhooks().await;
    app.created().await
}

/// Delivers a correctly signed event with this status.
async fn report(app: &TestApp, link: &Value, id: &str, event: &str, status: &str) {
    let event = json!({"id": id, "event": event,
        "data": {"paymentIntentId": link["paymentIntentId"], "paymentStatus": status}});
    app.deliver(&event.to_string()).await.expect(204);
}

const UPDATED: &str = "payment_intent.status_updated";

async fn refreshed(app: &TestApp, link: &Value) -> Value {
    app.refresh(&link["id"]).await.expect(200).json()
}

/// Status, whether it is confirmed, and how much was captured.
fn state(link: &Value) -> (&str, bool, i64) {
    let confirmed = link["confirmed"].as_bool().unwrap();
    let captured = link["capturedAmount"]["value"].as_i64().unwrap();
    (text(&link["status"]), confirmed, captured)
}

#[tokio::test]
async fn a_forged_payment_is_never_confirmed() {
    let app = TestApp::quick(&[]).await;
    let link = link_without_webhooks(&app).await;
    assert_eq!(state(&link), ("Created", true, 0));
    report(&app, &link, "evt_1", UPDATED, "Captured").await;
    let forged = app.link(&link["id"]).await;
    assert_eq!(state(&forged), ("Captured", false, 0));
    let refund = json!({"amount": pounds(300)});
    // Dojo contradicts the webhook, so no refund is requested from it.
    app.operate_with_key("r", &forged, "refunds", &refund)
        .await
        .problem(409, "refundable-amount-unclear");
    assert_eq!(app.sandbox.requests("refund").await.len(), 0);

    eventually("the response that Dojo stands by is accepted", async || {
        for link in [refreshed(&app, &link).await, app.link(&link["id"]).await] {
            let (status, confirmed, captured) = state(&link);
            assert_eq!(confirmed, status == "Created", "{link:#}");
            assert_eq!((captured, &link["payment"]), (0, &Value::Null), "{link:#}");
        }
        let link = app.link(&link["id"]).await;
        (state(&link) == ("Created", true, 0)).then_some(())
    })
    .await;
    assert_eq!(app.sandbox.requests("refund").await.len(), 0);
}

#[tokio::test]
async fn a_payment_is_confirmed_by_the_read_that_follows_its_webhook() {
    let app = TestApp::start().await;
    let link = app.created().await;
    let id = &link["id"];
    app.sandbox.pay(&link["paymentIntentId"]).await;
    let told = app.link_with_status(id, "Captured").await;
    assert_eq!(state(&told), ("Captured", false, 0));
    assert_eq!(told["payment"], Value::Null);

    let read = refreshed(&app, &link).await;
    assert_eq!(state(&read), ("Captured", true, 1000));
    assert_eq!(app.link(id).await, read);
    let told = app.told(id, "reconciled").await.pop().unwrap();
    let changed = &told["detail"]["changed"];
    assert_eq!(changed["confirmed"], json!({"from": false, "to": true}));
    assert_eq!(changed["capturedAmount"], json!({"from": 0, "to": 1000}));

    report(&app, &link, "evt_again", UPDATED, "Captured").await;
    let told = app.told(id, "webhook").await.pop().unwrap();
    assert_eq!(told["detail"]["verdict"], "unchanged");
    assert_eq!(state(&app.link(id).await), ("Captured", true, 1000));
    report(&app, &link, "evt_back", UPDATED, "Refunded").await;
    let link = app.link(id).await;
    assert_eq!(state(&link), ("Refunded", false, 1000));
    assert_eq!(link["refundedAmount"]["value"], 0);
}

#[tokio::test]
async fn a_pending_link_is_not_confirmed() {
    let app = TestApp::start().await;
    app.sandbox
        .next("create", "status", json!({"status": 500}))
        .await;
    let problem = app.create(&ten_pounds("Order 1")).await;
    let problem = problem.problem(504, "outcome-unknown");
    let link = app.link(&problem["paymentLinkId"]).await;
    assert_eq!(state(&link), ("Pending", false, 0));
    assert_eq!(state(&refreshed(&app, &link).await), ("Pending", false, 0));
}

#[tokio::test]
async fn an_event_of_another_kind_moves_nothing_and_makes_the_link_due() {
    let app = TestApp::start().await;
    let link = link_without_webhooks(&app).await;
    let before = OffsetDateTime::now_utc();
    for (n, event) in ["payment_intent.captured", "order.status_updated"]
        .iter()
        .enumerate()
    {
        report(&app, &link, &format!("evt_{n}"), event, "Captured").await;
    }
    assert_eq!(state(&app.link(&link["id"]).await), ("Created", true, 0));
    let told = app.told(&link["id"], "webhook").await;
    assert_eq!(told.len(), 2);
    for entry in told {
        assert_eq!(entry["detail"]["verdict"], "unknownEvent");
        assert_eq!(entry["detail"]["reported"], "Captured");
    }
    let due: OffsetDateTime = sqlx::query_scalar("SELECT due_at FROM payment_links")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert!(
        due < before + Duration::from_secs(5),
        "due at once, not {due}"
    );
    let metric = r#"webhooks_total{verdict="unknownEvent"}"#;
    assert!((app.metric(metric).await - 2.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn an_early_event_of_another_kind_moves_nothing() {
    let app = TestApp::start().await;
    app.sandbox.drop_webhooks().await;
    app.sandbox
        .next("create", "latencyAfter", json!({"latencyMs": 1000}))
        .await;
    let body = ten_pounds("Order 1");
    let early = async {
        let link = json!({"paymentIntentId": app.sandbox.first_intent().await["id"]});
        report(&app, &link, "evt_1", "payment_intent.captured", "Captured").await;
    };
    let (response, ()) = tokio::join!(app.create(&body), early);
    let link = response.expect(201).json();
    assert_eq!(state(&link), ("Created", true, 0));
    let told = app.told(&link["id"], "webhook").await;
    assert_eq!(told[0]["detail"]["verdict"], "unknownEvent");
}

#[tokio::test]
async fn the_creation_does_not_confirm_an_early_webhook() {
    let app = TestApp::start().await;
    app.sandbox.drop_webhooks().await;
    app.sandbox
        .next("create", "latencyAfter", json!({"latencyMs": 1000}))
        .await;
    let body = ten_pounds("Order 1");
    let early = async {
        let link = json!({"paymentIntentId": app.sandbox.first_intent().await["id"]});
        report(&app, &link, "evt_1", UPDATED, "Captured").await;
    };
    let (response, ()) = tokio::join!(app.create_with_key("a", &body), early);
    let link = response.expect(201).json();
    assert_eq!(state(&link), ("Captured", false, 0));
    let replayed = app.create_with_key("a", &body).await.expect(201).json();
    assert_eq!(replayed, link);
}

#[tokio::test]
async fn an_older_response_that_disagrees_revokes_only_the_confirmation() {
    let app = TestApp::start().await;
    let link = app.created().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    let paid = app.read_until_confirmed(&link["id"]).await;
    assert_eq!(state(&paid), ("Captured", true, 1000));

    // A copy of Dojo's data that lags.
    let before =
        json!({"status": "Created", "updatedAt": link["createdAt"], "paymentDetails": null});
    app.sandbox.next_fields("get", before).await;
    let doubted = refreshed(&app, &link).await;
    assert_eq!(state(&doubted), ("Captured", false, 1000));
    assert_eq!(doubted["payment"], paid["payment"]);
    assert_eq!(app.link(&link["id"]).await, doubted);
    let told = app.told(&link["id"], "conflictingResponse").await;
    assert_eq!(told.len(), 1);
    assert_eq!(
        told[0]["detail"],
        json!({"reported": "Created", "reason": "older"})
    );

    assert_eq!(
        state(&refreshed(&app, &link).await),
        ("Captured", true, 1000)
    );
    // An older response with the same status changes nothing.
    app.sandbox
        .next("get", "clockSkew", json!({"skewMs": -3_600_000}))
        .await;
    assert_eq!(
        state(&refreshed(&app, &link).await),
        ("Captured", true, 1000)
    );
    assert_eq!(
        state(&app.link(&link["id"]).await),
        ("Captured", true, 1000)
    );
}

#[tokio::test]
async fn an_unknown_status_confirms_nothing_and_keeps_the_amounts() {
    let app = TestApp::start().await;
    let link = app.created().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.read_until_confirmed(&link["id"]).await;
    let word = json!({"status": "PartiallySettled"});
    app.sandbox
        .act(&link["paymentIntentId"], "status", word)
        .await;
    assert_eq!(
        state(&refreshed(&app, &link).await),
        ("Captured", false, 1000)
    );

    // If Dojo has never reported the payment, a webhook does not make it captured.
    let other = link_without_webhooks(&app).await;
    report(&app, &other, "evt_1", UPDATED, "Captured").await;
    let word = json!({"status": "Settling"});
    app.sandbox
        .act(&other["paymentIntentId"], "status", word)
        .await;
    assert_eq!(
        state(&refreshed(&app, &other).await),
        ("Captured", false, 0)
    );
}

/// Reads the link from a node of Dojo's whose clock is an hour ahead.
async fn read_from_a_clock_ahead(app: &TestApp, link: &Value) -> Value {
    app.sandbox
        .next("get", "clockSkew", json!({"skewMs": 3_600_000}))
        .await;
    refreshed(app, link).await
}

#[tokio::test]
async fn responses_are_accepted_again_after_an_updated_at_in_the_future() {
    let app = TestApp::quick(&[]).await;
    let link = link_without_webhooks(&app).await;
    let intent = &link["paymentIntentId"];
    app.sandbox.pay(intent).await;
    let paid = read_from_a_clock_ahead(&app, &link).await;
    assert_eq!(state(&paid), ("Captured", true, 1000));
    app.sandbox.refund(intent, 300).await;
    app.sandbox.clear("requests").await;
    // This might as well come from a copy that lags.
    assert_eq!(refreshed(&app, &link).await["refundedAmount"]["value"], 0);

    let refunded = eventually("the refund is accepted", async || {
        let link = app.link(&link["id"]).await;
        (link["refundedAmount"]["value"] == 300).then_some(link)
    })
    .await;
    assert_eq!(state(&refunded), ("Captured", true, 1000));
    let calls = app.sandbox.requests("get").await;
    assert!(calls.len() <= 8, "{} calls", calls.len());
    let waited = received_at(calls.last().unwrap()) - received_at(&calls[0]);
    assert!(
        waited >= Duration::from_millis(1900),
        "accepted after {waited}"
    );

    // The stored time is Dojo's again, so the next response is newer.
    app.sandbox.refund(intent, 200).await;
    assert_eq!(refreshed(&app, &link).await["refundedAmount"]["value"], 500);
    app.in_step_with_dojo().await;
}

#[tokio::test]
async fn a_payment_is_accepted_at_once_after_an_updated_at_in_the_future() {
    let app = TestApp::start().await;
    for webhook in [false, true] {
        let link = link_without_webhooks(&app).await;
        let ahead = read_from_a_clock_ahead(&app, &link).await;
        assert_eq!(state(&ahead), ("Created", true, 0));
        app.sandbox.pay(&link["paymentIntentId"]).await;
        if webhook {
            report(&app, &link, "evt_1", UPDATED, "Captured").await;
            assert_eq!(state(&app.link(&link["id"]).await), ("Captured", false, 0));
        }
        // No copy of an unpaid intent can show the payment, however old it seems.
        let paid = refreshed(&app, &link).await;
        assert_eq!(state(&paid), ("Captured", true, 1000), "webhook: {webhook}");
        assert_ne!(paid["payment"], Value::Null, "webhook: {webhook}");
        assert_eq!(app.link(&link["id"]).await, paid, "webhook: {webhook}");
        let conflicts = app.told(&link["id"], "conflictingResponse").await;
        assert_eq!(conflicts, Vec::<Value>::new(), "webhook: {webhook}");
    }
}

/// Whether the first webhook arrives before the response to the creation.
#[tokio::test]
async fn no_amount_comes_from_a_webhook_after_a_creation_with_an_odd_status() {
    let cases = [false, true];
    for_each_case(&cases, &[("RUN_JOBS", "false")], async |app, is_early| {
        app.sandbox.drop_webhooks().await;
        let fields = json!({"fields": {"status": null}, "latencyMs": 1000});
        app.sandbox.next("create", "fields", fields).await;
        let body = ten_pounds("Order 1");
        let link = if *is_early {
            let early = async {
                let link = json!({"paymentIntentId": app.sandbox.first_intent().await["id"]});
                report(&app, &link, "evt_1", UPDATED, "Captured").await;
            };
            let (response, ()) = tokio::join!(app.create(&body), early);
            response.expect(201).json()
        } else {
            let link = app.create(&body).await.expect(201).json();
            assert_eq!(state(&link), ("Created", false, 0));
            report(&app, &link, "evt_1", UPDATED, "Captured").await;
            app.link(&link["id"]).await
        };
        assert_eq!(state(&link), ("Captured", false, 0), "early: {is_early}");

        app.sandbox.pay(&link["paymentIntentId"]).await;
        let paid = refreshed(&app, &link).await;
        assert_eq!(state(&paid), ("Captured", true, 1000), "early: {is_early}");
    })
    .await;
}

#[tokio::test]
async fn a_webhook_during_a_conflicting_read_makes_the_link_due_at_once() {
    let app = TestApp::with(&[("RECOVERY_SETTLE", "1h")]).await;
    let link = link_without_webhooks(&app).await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    assert_eq!(
        state(&refreshed(&app, &link).await),
        ("Captured", true, 1000)
    );
    app.sandbox.clear("requests").await;
    let lagging = json!({"latencyMs": 1500,
        "fields": {"status": "Created", "updatedAt": link["createdAt"]}});
    app.sandbox.next("get", "fields", lagging).await;
    let webhook = async {
        eventually("the intent is being read", async || {
            app.sandbox.requests("get").await.pop()
        })
        .await;
        report(&app, &link, "evt_1", UPDATED, "Captured").await;
    };
    let (read, ()) = tokio::join!(refreshed(&app, &link), webhook);
    assert_eq!(state(&read), ("Captured", false, 1000));
    let due = due(&app).await.unwrap();
    assert!(due <= OffsetDateTime::now_utc(), "due at once, not {due}");
}

#[tokio::test]
async fn a_partial_refund_that_dojo_calls_refunded_is_not_final() {
    let app = TestApp::quick(&[]).await;
    let link = link_without_webhooks(&app).await;
    let (id, intent) = (&link["id"], &link["paymentIntentId"]);
    let become_ = async |status| {
        app.sandbox
            .act(intent, "status", json!({"status": status}))
            .await
    };
    app.sandbox.pay(intent).await;
    app.sandbox.refund(intent, 300).await;
    become_("Refunded").await;
    app.all_are_due().await;
    let part = app.link_with_status(id, "Refunded").await;
    assert_eq!(part["refundedAmount"]["value"], 300);
    assert_ne!(due(&app).await, None, "7.00 can still be refunded");

    // The sandbox only refunds what is `Captured`.
    become_("Captured").await;
    app.sandbox.refund(intent, 700).await;
    app.all_are_due().await;
    eventually("the rest is stored", async || {
        (app.link(id).await["refundedAmount"]["value"] == 1000).then_some(())
    })
    .await;
    assert_eq!(due(&app).await, None, "nothing can change any more");
}

async fn due(app: &TestApp) -> Option<OffsetDateTime> {
    sqlx::query_scalar("SELECT due_at FROM payment_links")
        .fetch_one(&app.pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn migration_makes_partial_refunds_due_again() {
    let url = empty_database().await;
    let pool = PgPoolOptions::new().connect_lazy(&url).unwrap();
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let migrator = Migrator::new(migrations).await.unwrap();
    migrator.run_to(8, &pool).await.unwrap();
    sqlx::query("INSERT INTO deployment (environment) VALUES ('sandbox')")
        .execute(&pool)
        .await
        .unwrap();
    for (refunded, status) in [(300, "Refunded"), (1000, "Refunded"), (0, "Canceled")] {
        sqlx::query(
            "INSERT INTO payment_links
                 (id, account, environment, status, request, reference, currency, amount, total_amount,
                  refunded_amount, payment_intent_id, created_by)
             VALUES (gen_random_uuid(), 'default', 'sandbox', $1, '{}', 'Order 1', 'GBP', 1000, 1000, $2,
                     gen_random_uuid()::text, 'orders')",
        )
        .bind(status)
        .bind(i64::from(refunded))
        .execute(&pool)
        .await
        .unwrap();
    }
    let migrated = program().arg("migrate").env("DATABASE_URL", &url).status();
    assert!(migrated.unwrap().success());
    let due: Vec<i64> =
        sqlx::query_scalar("SELECT refunded_amount FROM payment_links WHERE due_at IS NOT NULL")
            .fetch_all(&pool)
            .await
            .unwrap();
    assert_eq!(due, [300]);
}
