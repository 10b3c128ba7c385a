//! Responses of Dojo's that are about another intent than the requested one, or not of the documented form.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::support::{
    TestApp, eventually, eventually_within, for_each_case, manual, new_database, port_of, pounds,
    proxy::Proxy, ten_pounds, text, through,
};

/// Two links, of which the second one is paid.
async fn unpaid_and_paid(app: &TestApp) -> (Value, Value) {
    app.sandbox.drop_webhooks().await;
    let unpaid = app.created().await;
    let paid = app.created().await;
    app.sandbox.pay(&paid["paymentIntentId"]).await;
    (unpaid, paid)
}

#[tokio::test]
async fn a_read_that_returns_another_intent_changes_nothing() {
    let app = TestApp::start().await;
    let (unpaid, paid) = unpaid_and_paid(&app).await;
    let theirs = app.sandbox.intent(&paid["paymentIntentId"]).await;
    let other = json!({"intentId": paid["paymentIntentId"]});
    let faults = [
        ("otherIntent", other),
        // The right id, but everything else is the other intent's.
        (
            "fields",
            json!({"fields": {"status": "Captured", "metadata": theirs["metadata"],
                                     "paymentDetails": theirs["paymentDetails"]}}),
        ),
        ("fields", json!({"fields": {"id": null}})),
        ("fields", json!({"fields": {"id": " "}})),
    ];
    for (kind, more) in faults {
        app.sandbox.next("get", kind, more.clone()).await;
        let response = app.refresh(&unpaid["id"]).await;
        response.problem(503, "dojo-not-reached");
        assert_eq!(app.link(&unpaid["id"]).await, unpaid, "{kind} {more}");
    }
    // Metadata that is missing or names no link says nothing.
    for metadata in [
        Value::Null,
        json!({}),
        json!({"paymentLinkId": "none of ours"}),
    ] {
        app.sandbox
            .next_fields("get", json!({"metadata": metadata}))
            .await;
        let link = app.refresh(&unpaid["id"]).await.expect(200).json();
        assert_eq!(
            (&link["status"], &link["confirmed"]),
            (&json!("Created"), &json!(true))
        );
    }
}

#[tokio::test]
async fn a_search_that_mixes_up_intents_changes_nothing() {
    let app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    let orders: Vec<_> = (0..12).map(|n| ten_pounds(&format!("Order {n}"))).collect();
    let links = join_all(
        orders
            .iter()
            .map(async |order| app.create(order).await.expect(201).json()),
    )
    .await;
    sqlx::query("UPDATE payment_links SET due_at = now() + interval '1 hour'")
        .execute(&app.pool)
        .await
        .unwrap();
    let wrong: Vec<_> = links
        .iter()
        .zip(links.iter().cycle().skip(1))
        .map(|(link, other)| {
            json!({"id": link["paymentIntentId"], "status": "Captured",
                                    "totalAmount": {"value": 1000, "currencyCode": "GBP"},
                                    "metadata": {"paymentLinkId": other["id"]}})
        })
        .collect();
    app.sandbox
        .next_fields("search", json!({"data": wrong}))
        .await;
    app.sandbox.clear("requests").await;
    app.all_are_due().await;
    eventually("each intent is read by itself", async || {
        (app.sandbox.requests("get").await.len() >= links.len()).then_some(())
    })
    .await;
    assert!(!app.sandbox.requests("search").await.is_empty());
    for link in &links {
        assert_eq!(
            app.told(&link["id"], "reconciled").await,
            Vec::<Value>::new()
        );
    }
    app.in_step_with_dojo().await;
}

#[tokio::test]
async fn a_creation_that_returns_another_links_intent_is_recovered() {
    let app = TestApp::quick(&[("RECOVERY_SETTLE", "20s")]).await;
    app.sandbox.drop_webhooks().await;
    app.sandbox.search_lags(600.0).await;
    // The response to the first creation is lost, and is returned to the second one.
    app.sandbox.next("create", "cutAfter", json!({})).await;
    let first = app.create_with_key("a", &ten_pounds("Order 1")).await;
    first.problem(504, "outcome-unknown");
    let theirs = json!({"intentId": app.sandbox.first_intent().await["id"]});
    app.sandbox.next("create", "otherIntent", theirs).await;
    let second = app.create_with_key("b", &ten_pounds("Order 2")).await;
    let second = second.problem(504, "outcome-unknown")["paymentLinkId"].clone();
    let told = app.told(&second, "responseLost").await;
    let reason = text(&told[0]["detail"]["reason"]);
    assert!(reason.contains("the intent of another link"), "{reason}");

    app.sandbox.search_lags(0.0).await;
    for (key, reference) in [("a", "Order 1"), ("b", "Order 2")] {
        let link = app.the_only_link(key, &ten_pounds(reference)).await;
        let intent = app.sandbox.intent(&link["paymentIntentId"]).await;
        assert_eq!(intent["metadata"]["paymentLinkId"], link["id"]);
    }
}

#[tokio::test]
async fn an_intent_that_belongs_to_another_link_is_reported() {
    let app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    let first = app.created().await;
    let body = ten_pounds("Order 2");
    // Nothing but the id shows it.
    let fields = json!({"id": first["paymentIntentId"], "metadata": null});
    app.sandbox.next_fields("create", fields).await;
    let problem = app.create_with_key("b", &body).await;
    let problem = problem.problem(504, "outcome-unknown");
    let second = &problem["paymentLinkId"];
    let errors = app.logged("belongs to another one").await;
    assert_eq!(errors.len(), 1, "{errors:#?}");
    for part in [text(second), text(&first["id"]), r#""level":"ERROR""#] {
        assert!(errors[0].contains(part), "{part}: {}", errors[0]);
    }
    assert!(
        !app.service
            .log()
            .contains("the database could not complete the request")
    );
    assert!((app.metric("intents_of_other_links_total").await - 1.0).abs() < f64::EPSILON);
    let told = app.told(second, "responseLost").await;
    assert!(
        text(&told[0]["detail"]["reason"]).contains("belongs to"),
        "{told:#?}"
    );

    // Its own intent is found, and the other link keeps its own.
    let found = app.the_only_link("b", &body).await;
    assert_eq!(&found["id"], second);
    app.sandbox.pay(&first["paymentIntentId"]).await;
    app.all_are_due().await;
    app.link_with_status(&first["id"], "Captured").await;
    assert_eq!(app.told(&first["id"], "surplusFound").await.len(), 0);
    assert_eq!(app.told(second, "surplusFound").await.len(), 0);
    app.in_step_with_dojo().await;
}

#[tokio::test]
async fn a_lost_creation_whose_intent_another_link_has_stays_pending() {
    let app = TestApp::quick(&[("RECOVERY_SETTLE", "20s")]).await;
    app.sandbox.drop_webhooks().await;
    app.sandbox.search_lags(600.0).await;
    app.sandbox.next("create", "cutAfter", json!({})).await;
    let first = app.create_with_key("a", &ten_pounds("Order 1")).await;
    let first = first.problem(504, "outcome-unknown")["paymentLinkId"].clone();
    let lost = app.sandbox.first_intent().await;
    // The second link gets the first one's intent, and nothing shows it.
    app.sandbox
        .next_fields("create", json!({"id": lost["id"], "metadata": null}))
        .await;
    let second = app.create_with_key("b", &ten_pounds("Order 2")).await;
    let second = second.expect(201).json();
    assert_eq!(second["paymentIntentId"], lost["id"]);

    app.sandbox.search_lags(0.0).await;
    let errors = app.logged("belongs to another one").await;
    assert!(errors[0].contains(text(&first)) && errors[0].contains(text(&second["id"])));
    let outcome = r#"jobs_total{job_name="creation_recovery",outcome="intent_of_another_link"}"#;
    eventually("the metric counts it", async || {
        (app.metric(outcome).await >= 1.0).then_some(())
    })
    .await;
    assert_eq!(app.link(&first).await["status"], "Pending");
    let intent = app.sandbox.intent(&lost["id"]).await;
    assert_eq!(intent["status"], "Created", "it must not be canceled");
}

#[tokio::test]
async fn an_operation_whose_response_is_about_another_intent_is_lost_and_recovered() {
    let cases = [
        (
            "cancel",
            "cancel",
            Value::Null,
            "/status",
            json!("Canceled"),
        ),
        (
            "refunds",
            "refund",
            json!({"amount": pounds(400)}),
            "/refundedAmount",
            json!(400),
        ),
        (
            "amount",
            "amount",
            json!({"amount": pounds(1250)}),
            "/amount/value",
            json!(1250),
        ),
        (
            "tips-amount",
            "tips",
            json!({"tipsAmount": pounds(70)}),
            "/tipsAmount/value",
            json!(70),
        ),
    ];
    for_each_case(
        &cases,
        &[],
        async |app, (operation, call, body, at, value)| {
            app.sandbox.drop_webhooks().await;
            let link = app.create(&manual("Order 1")).await.expect(201).json();
            let link = if *call == "refund" {
                app.paid().await
            } else {
                link
            };
            // The other intent may be in the requested state. Only its id shows that the response is about another one.
            let other = app.create(&manual("Order 2")).await.expect(201).json();
            if *call == "cancel" {
                app.operate(&other, "cancel", &Value::Null)
                    .await
                    .expect(200);
            }
            app.sandbox.clear("requests").await;
            let fault = json!({"intentId": other["paymentIntentId"]});
            app.sandbox.next(call, "misrouted", fault).await;
            let problem = app.operate_with_key("a", &link, operation, body).await;
            problem.problem(504, "outcome-unknown");
            assert_eq!(app.sandbox.requests(call).await.len(), 1);
            let told = app.told(&link["id"], "operationResponseLost").await;
            let reason = text(&told[0]["detail"]["reason"]);
            assert!(reason.contains(text(&other["paymentIntentId"])), "{reason}");

            let outcome = app.operation_outcome("a", &link, operation, body).await;
            outcome.expect(200);
            let intent = app.sandbox.intent(&link["paymentIntentId"]).await;
            assert_eq!(intent.pointer(at), Some(value), "{operation}");
            app.in_step_with_dojo().await;
        },
    )
    .await;
}

#[tokio::test]
async fn a_response_with_the_id_of_an_earlier_operation_is_lost_and_recovered() {
    let cases = [
        ("captures", "capture", "captureId"),
        ("refunds", "refund", "refundId"),
    ];
    for_each_case(&cases, &[], async |app, (operation, call, id)| {
        app.sandbox.drop_webhooks().await;
        let link = match *call {
            "capture" => app.authorized().await,
            _ => app.paid().await,
        };
        let first = json!({"amount": pounds(400)});
        let answer = app.operate_with_key("a", &link, operation, &first).await;
        let first_id = answer.expect(200).json()["operation"]["dojoId"].clone();
        assert!(first_id.is_string(), "{first_id}");

        app.sandbox.next_fields(call, json!({*id: first_id})).await;
        // It fits in any case, even if the first refund isn't in what Dojo shows.
        let second = json!({"amount": pounds(200)});
        let answer = app.operate_with_key("b", &link, operation, &second).await;
        answer.problem(504, "outcome-unknown");
        let outcome = app.operation_outcome("b", &link, operation, &second).await;
        let outcome = outcome.expect(200).json();
        assert_ne!(outcome["operation"]["dojoId"], first_id);
        let intent = app.sandbox.intent(&link["paymentIntentId"]).await;
        match *call {
            "capture" => assert_eq!(intent["captures"].as_array().map(Vec::len), Some(2)),
            _ => assert_eq!(intent["refundedAmount"], 600),
        }
        app.in_step_with_dojo().await;
    })
    .await;
}

#[tokio::test]
async fn a_cancellation_whose_response_shows_another_status_is_lost_and_recovered() {
    let app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    let link = app.created().await;
    for status in ["Created", "Captured"] {
        app.sandbox
            .next_fields("cancel", json!({"status": status}))
            .await;
    }
    let answer = app
        .operate_with_key("a", &link, "cancel", &Value::Null)
        .await;
    answer.problem(504, "outcome-unknown");
    let outcome = app.operation_outcome("a", &link, "cancel", &Value::Null);
    let canceled = outcome.await.expect(200).json();
    assert_eq!(
        (&canceled["status"], &canceled["confirmed"]),
        (&json!("Canceled"), &json!(true))
    );
    app.in_step_with_dojo().await;
}

#[tokio::test]
async fn a_surplus_intent_is_not_canceled_by_a_response_about_another_intent() {
    let app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    let link = app.created().await;
    let canceled = app.created().await;
    app.operate(&canceled, "cancel", &Value::Null)
        .await
        .expect(200);
    let mut body = ten_pounds("Order 1");
    body["metadata"] = json!({"paymentLinkId": link["id"]});
    let surplus = app
        .sandbox
        .api(Method::POST, "/payment-intents", &body)
        .await;
    app.sandbox.clear("requests").await;
    let fault = json!({"intentId": canceled["paymentIntentId"]});
    app.sandbox.next("cancel", "misrouted", fault).await;
    let event = json!({"id": "evt_1", "event": "payment_intent.created",
        "data": {"paymentIntentId": surplus["id"], "paymentStatus": "Created"}});
    app.deliver(&event.to_string()).await.expect(204);
    eventually_within(
        Duration::from_secs(30),
        "the surplus intent is canceled",
        async || {
            let intent = app.sandbox.intent(&surplus["id"]).await;
            (intent["status"] == "Canceled").then_some(())
        },
    )
    .await;
    eventually("the cancellation is in the timeline", async || {
        (app.told(&link["id"], "surplusCanceled").await.len() == 1).then_some(())
    })
    .await;
    assert_eq!(app.sandbox.requests("cancel").await.len(), 2);
}

#[tokio::test]
async fn another_intent_is_adopted_if_the_best_belongs_to_another_link() {
    let app = TestApp::quick(&[("RECOVERY_SETTLE", "20s")]).await;
    app.sandbox.drop_webhooks().await;
    app.sandbox.search_lags(600.0).await;
    app.sandbox.next("create", "cutAfter", json!({})).await;
    let body = ten_pounds("Order 1");
    let first = app.create_with_key("a", &body).await;
    let first = first.problem(504, "outcome-unknown")["paymentLinkId"].clone();
    let lost = app.sandbox.first_intent().await;
    // The second link gets the first one's intent. The first link has two more: its own, and a surplus one.
    app.sandbox
        .next_fields("create", json!({"id": lost["id"], "metadata": null}))
        .await;
    let second = app.create_with_key("b", &ten_pounds("Order 2")).await;
    assert_eq!(second.expect(201).json()["paymentIntentId"], lost["id"]);
    let mut others = Vec::new();
    for _ in 0..2 {
        let mut body = body.clone();
        body["metadata"] = json!({"paymentLinkId": first});
        let intent = app.sandbox.api(Method::POST, "/payment-intents", &body);
        others.push(intent.await["id"].clone());
    }

    app.sandbox.search_lags(0.0).await;
    let link = app.link_with_status(&first, "Created").await;
    assert_eq!(link["paymentIntentId"], others[0]);
    eventually("the surplus intent is canceled", async || {
        let intent = app.sandbox.intent(&others[1]).await;
        (intent["status"] == "Canceled").then_some(())
    })
    .await;
    let errors = app.logged("belongs to another one").await;
    assert!(errors[0].contains(text(&first)), "{}", errors[0]);
    let intent = app.sandbox.intent(&lost["id"]).await;
    assert_eq!(
        intent["status"], "Created",
        "it is not the first link's to cancel"
    );
}

/// Postgres commits the adoption, and its response is lost. So the service tries again, and finds that the link already has
/// its intent.
#[tokio::test]
async fn a_mismatch_is_reported_if_the_response_to_its_commit_is_lost() {
    /// A commit that stores an intent waits for this lock.
    const LOCK: i64 = 236;

    let database_url = new_database().await;
    let proxy = Proxy::to(port_of(&database_url)).await;
    let limits = [
        ("DATABASE_STATEMENT_TIMEOUT", "2s"),
        ("DOJO_TIMEOUT", "30s"),
    ];
    let app = TestApp::on(through(proxy.port, &database_url), &limits)
        .await
        .with_database(&database_url);
    app.sandbox.drop_webhooks().await;
    sqlx::raw_sql(AssertSqlSafe(format!(
        "CREATE FUNCTION wait_for_test() RETURNS trigger LANGUAGE plpgsql
             AS $$ BEGIN PERFORM pg_advisory_xact_lock({LOCK}); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER at_commit AFTER UPDATE ON payment_links DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW WHEN (OLD.payment_intent_id IS NULL AND NEW.payment_intent_id IS NOT NULL)
             EXECUTE FUNCTION wait_for_test();"
    )))
    .execute(&app.pool)
    .await
    .unwrap();
    let mut lock = app.pool.acquire().await.unwrap();
    sqlx::query("SELECT pg_advisory_lock($1)")
        .bind(LOCK)
        .execute(&mut *lock)
        .await
        .unwrap();
    let amount = json!({"amount": {"value": 100, "currencyCode": "GBP"}});
    app.sandbox.next_fields("create", amount).await;

    let body = ten_pounds("Order 1");
    let committing = async {
        eventually("the commit waits", async || {
            sqlx::query_scalar::<_, i32>(
                "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted",
            )
            .fetch_optional(&app.pool)
            .await
            .unwrap()
        })
        .await;
        proxy.silence();
        drop(lock.detach());
    };
    let (response, ()) = tokio::join!(app.create(&body), committing);
    let link = response.expect(201).json();
    assert_eq!(link["reportedAmount"]["value"], 100);
    assert_eq!(app.told(&link["id"], "created").await.len(), 1);
    assert_eq!(app.told(&link["id"], "amountMismatch").await.len(), 1);
    app.logged("an amount other than").await;
    assert!(app.metric("amount_mismatches_total").await >= 1.0);
}

#[tokio::test]
async fn a_recovered_creation_with_another_amount_is_reported() {
    // An orphaned intent is read after five seconds. Until then the creation must not be retried.
    let settings = [("RECOVERY_SETTLE", "20s")];
    for_each_case(&["search", "webhook"], &settings, async |app, found_by| {
        app.sandbox.drop_webhooks().await;
        app.sandbox.search_lags(600.0).await;
        app.sandbox.next("create", "cutAfter", json!({})).await;
        let body = ten_pounds("Order 1");
        let problem = app.create_with_key("a", &body).await;
        let id = problem.problem(504, "outcome-unknown")["paymentLinkId"].clone();
        let intent = app.sandbox.first_intent().await;
        app.sandbox
            .act(&intent["id"], "amount", json!({"amount": 100}))
            .await;
        if *found_by == "search" {
            app.sandbox.search_lags(0.0).await;
        } else {
            let event = json!({"id": "evt_1", "event": "payment_intent.created",
                "data": {"paymentIntentId": intent["id"], "paymentStatus": "Created"}});
            app.deliver(&event.to_string()).await.expect(204);
        }
        let link = app.link_with_status(&id, "Created").await;
        assert_eq!(link["reportedAmount"]["value"], 100, "{found_by}");
        assert_eq!(app.told(&id, "amountMismatch").await.len(), 1, "{found_by}");
        let errors = app.logged("an amount other than").await;
        assert_eq!(errors.len(), 1, "{found_by}: {errors:#?}");
        assert!(errors[0].contains(text(&id)) && errors[0].contains(r#""level":"ERROR""#));
        let mismatches = app.metric("amount_mismatches_total").await;
        assert!((mismatches - 1.0).abs() < f64::EPSILON, "{found_by}");
    })
    .await;
}

#[tokio::test]
async fn a_retried_creation_with_another_amount_is_reported() {
    let app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    app.sandbox.next("create", "cutBefore", json!({})).await;
    let amount = json!({"amount": {"value": 100, "currencyCode": "GBP"}});
    app.sandbox.next_fields("create", amount).await;
    let problem = app.create_with_key("a", &ten_pounds("Order 1")).await;
    let id = problem.problem(504, "outcome-unknown")["paymentLinkId"].clone();
    let link = app.link_with_status(&id, "Created").await;
    assert_eq!(app.told(&id, "creationRetried").await.len(), 1);
    assert_eq!(link["reportedAmount"]["value"], 100);
    assert_eq!(app.told(&id, "amountMismatch").await.len(), 1);
    assert_eq!(app.logged("an amount other than").await.len(), 1);
    let mismatches = app.metric("amount_mismatches_total").await;
    assert!((mismatches - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_creation_with_an_odd_status_is_stored() {
    let app = TestApp::start().await;
    app.sandbox.drop_webhooks().await;
    for status in [
        Value::Null,
        json!(5),
        json!({"is": "Created"}),
        json!(""),
        json!("a\u{0}"),
    ] {
        app.sandbox
            .next_fields("create", json!({"status": status}))
            .await;
        let link = app.created().await;
        assert_eq!(
            (&link["status"], &link["confirmed"]),
            (&json!("Created"), &json!(false)),
            "{status}"
        );
        let link = app.refresh(&link["id"]).await.expect(200).json();
        assert_eq!(
            (&link["status"], &link["confirmed"]),
            (&json!("Created"), &json!(true)),
            "{status}"
        );
    }
}

#[tokio::test]
async fn a_creation_without_a_proper_id_is_recovered() {
    let ids = [json!(""), json!("  "), Value::Null, json!(5)];
    for_each_case(&ids, &[], async |app, id| {
        app.sandbox.drop_webhooks().await;
        app.sandbox.next_fields("create", json!({"id": id})).await;
        let body = ten_pounds("Order 1");
        app.create_with_key("a", &body)
            .await
            .problem(504, "outcome-unknown");
        app.the_only_link("a", &body).await;
    })
    .await;
}
