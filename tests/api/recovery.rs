//! Lost creations: found or retried, never duplicated, with one outcome for the caller.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{
    SETTLE, TestApp, empty_database, eventually, eventually_within, for_each_case, received_at,
    stable_address, ten_pounds, text,
};

/// Every way in which a response gets lost, and whether Dojo has created the intent nevertheless.
fn lost_responses() -> [(&'static str, Value, bool); 5] {
    [
        ("cutAfter", json!({}), true),
        ("statusAfter", json!({"status": 502}), true),
        ("latencyAfter", json!({"latencyMs": 4000}), true),
        ("cutBefore", json!({}), false),
        ("status", json!({"status": 500}), false),
    ]
}

/// Requests a link whose creation is lost. Returns the pending link's id.
async fn lose(app: &TestApp, key: &str, body: &Value, kind: &str, more: Value) -> Value {
    app.sandbox.next("create", kind, more).await;
    let problem = app
        .create_with_key(key, body)
        .await
        .problem(504, "outcome-unknown");
    problem["paymentLinkId"].clone()
}

/// The link once it is no longer pending.
async fn settled(app: &TestApp, id: &Value) -> Value {
    eventually("the link is no longer pending", async || {
        let link = app.link(id).await;
        (link["status"] != "Pending").then_some(link)
    })
    .await
}

#[tokio::test]
async fn a_lost_creation_is_recovered_and_every_retry_gets_its_outcome() {
    // Without webhooks, only the search can find the intent.
    for_each_case(&lost_responses(), &[], async |app, (kind, more, done)| {
        app.sandbox.drop_webhooks().await;
        let body = ten_pounds("Order 1");
        let id = lose(&app, "a", &body, kind, more.clone()).await;

        let meanwhile = app.create_with_key("a", &body).await;
        let meanwhile = meanwhile.problem(409, "request-in-progress");
        assert_eq!(meanwhile["paymentLinkId"], id, "{kind}");

        let link = app.the_only_link("a", &body).await;
        assert_eq!(link["id"], id, "{kind}");
        assert_eq!(link["status"], "Created", "{kind}");
        let asked_again = app.told(&id, "creationRetried").await.len();
        assert_eq!(asked_again, usize::from(!*done), "{kind}");
        let calls = app.sandbox.creations().await;
        assert_eq!(calls.len(), 1 + asked_again, "{kind}");
        assert_eq!(app.told(&id, "created").await.len(), 1, "{kind}");
        let settle =
            calls.last().map(received_at) >= calls.first().map(|first| received_at(first) + SETTLE);
        assert!(
            *done || settle,
            "{kind}: retried before the settlement window was over: {calls:#?}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_webhook_leads_to_the_lost_intent_while_search_lags() {
    let app = TestApp::quick(&[("RECOVERY_SETTLE", "1m")]).await;
    app.sandbox.search_lags(600.0).await;
    let body = ten_pounds("Order 1");
    let id = lose(&app, "a", &body, "cutAfter", json!({})).await;
    let link = app.the_only_link_and_it_can_be_paid("a", &body).await;
    assert_eq!(link["id"], id);
    assert_eq!(app.sandbox.creations().await.len(), 1);
}

#[tokio::test]
async fn recovery_waits_for_a_search_that_lags() {
    let app = TestApp::quick(&[("RECOVERY_SETTLE", "20s")]).await;
    app.sandbox.drop_webhooks().await;
    app.sandbox.search_lags(3.0).await;
    let body = ten_pounds("Order 1");
    let id = lose(&app, "a", &body, "cutAfter", json!({})).await;
    let link = app.the_only_link("a", &body).await;
    assert_eq!(link["id"], id);
    assert_eq!(
        app.sandbox.creations().await.len(),
        1,
        "the intent appeared within the settlement window"
    );
}

#[tokio::test]
async fn of_two_intents_one_is_adopted_and_the_other_canceled() {
    // Search lags for longer than recovery waits, so nothing shows that the first request created an intent.
    let app = TestApp::quick(&[("RECOVERY_SETTLE", "1s")]).await;
    app.sandbox.search_lags(600.0).await;
    let body = ten_pounds("Order 1");
    let id = lose(&app, "a", &body, "cutAfter", json!({})).await;
    let first = app.sandbox.first_intent().await["id"].clone();

    let link = settled(&app, &id).await;
    assert_eq!(app.sandbox.creations().await.len(), 2);
    let second = link["paymentIntentId"].clone();
    assert_ne!(first, second);
    let canceled = eventually("the first intent is canceled", async || {
        app.told(&id, "surplusCanceled").await.pop()
    })
    .await;
    assert_eq!(canceled["detail"]["paymentIntentId"], first);
    assert_eq!(app.told(&id, "surplusFound").await.len(), 1);
    assert_eq!(app.told(&id, "surplusCanceled").await.len(), 1);
    assert_eq!(app.sandbox.intent(&first).await["status"], "Canceled");

    let link = app.the_only_link_and_it_can_be_paid("a", &body).await;
    assert_eq!(link["paymentIntentId"], second);
}

/// The settlement window is an assumption. A request that takes effect after it leads to a second intent.
#[tokio::test]
async fn a_request_that_takes_effect_after_the_window_leads_to_a_surplus_intent() {
    let app = TestApp::quick(&[("DOJO_TIMEOUT", "1s"), ("RECOVERY_SETTLE", "1s")]).await;
    let body = ten_pounds("Order 1");
    let late = json!({"latencyMs": 5000});
    let id = lose(&app, "a", &body, "latency", late).await;
    let link = app.the_only_link("a", &body).await;
    assert_eq!(link["id"], id);
    assert_eq!(app.sandbox.intents().await.len(), 1);

    let canceled = eventually("the surplus intent is canceled", async || {
        app.told(&id, "surplusCanceled").await.pop()
    })
    .await;
    assert_ne!(
        canceled["detail"]["paymentIntentId"],
        link["paymentIntentId"]
    );
    assert_eq!(app.sandbox.intents().await.len(), 2);
    let link = app.the_only_link_and_it_can_be_paid("a", &body).await;
    assert_eq!(link["id"], id);
}

/// The HTTP client must not repeat a request by itself when a connection from its pool breaks.
#[tokio::test]
async fn a_pooled_connection_that_breaks_does_not_repeat_the_request() {
    let app = TestApp::start().await;
    for (n, kind) in ["cutBefore", "cutAfter"].into_iter().enumerate() {
        app.create(&ten_pounds("warm")).await.expect(201);
        let calls = app.sandbox.creations().await.len();
        let key = format!("cut {n}");
        lose(&app, &key, &ten_pounds(&key), kind, json!({})).await;
        assert_eq!(app.sandbox.creations().await.len(), calls + 1, "{kind}");
        let intents = app.sandbox.live_intents_about(&key).await;
        assert_eq!(intents.len(), n, "{kind}");
    }
}

#[tokio::test]
async fn a_paid_surplus_intent_is_reported_and_left_alone() {
    let app = TestApp::quick(&[("RECOVERY_SETTLE", "1s")]).await;
    app.sandbox.search_lags(600.0).await;
    let id = lose(&app, "a", &ten_pounds("Order 1"), "cutAfter", json!({})).await;
    let first = app.sandbox.first_intent().await["id"].clone();
    app.sandbox.pay(&first).await;

    let told = eventually("it is reported", async || {
        app.told(&id, "surplusPaid").await.pop()
    })
    .await;
    assert_eq!(told["detail"]["paymentIntentId"], first);
    assert!(app.metric("surplus_paid_total").await >= 1.0);
    let error = &app.logged("has been paid").await[0];
    assert!(error.contains(r#""level":"ERROR""#), "{error}");
    assert_eq!(app.sandbox.intent(&first).await["status"], "Captured");
    assert_eq!(app.link(&id).await["status"], "Created");
}

#[tokio::test]
async fn a_surplus_intent_that_was_refunded_in_part_is_reported() {
    let app = TestApp::quick(&[("RECOVERY_SETTLE", "1s")]).await;
    app.sandbox.search_lags(600.0).await;
    let id = lose(&app, "a", &ten_pounds("Order 1"), "cutAfter", json!({})).await;
    let first = app.sandbox.first_intent().await["id"].clone();
    app.sandbox.pay(&first).await;
    app.sandbox.refund(&first, 300).await;
    app.sandbox
        .act(&first, "status", json!({"status": "Refunded"}))
        .await;
    let told = eventually("it is reported", async || {
        app.told(&id, "surplusPaid").await.pop()
    })
    .await;
    assert_eq!(told["detail"]["paymentIntentId"], first);
    assert!(app.metric("surplus_paid_total").await >= 1.0);
    assert!(app.told(&id, "surplusCanceled").await.is_empty());
}

#[tokio::test]
async fn a_surplus_intent_that_dojo_does_not_cancel_backs_off() {
    let app = TestApp::quick(&[("RECOVERY_SETTLE", "1s")]).await;
    app.sandbox.search_lags(600.0).await;
    let rejection = json!({"operation": "cancel", "kind": "status", "status": 409, "share": 1.0});
    app.sandbox.control("faults", rejection).await;
    let id = lose(&app, "a", &ten_pounds("Order 1"), "cutAfter", json!({})).await;
    eventually("it was tried several times", async || {
        sqlx::query("UPDATE payment_intents SET due_at = now() WHERE surplus_of IS NOT NULL AND due_at IS NOT NULL")
            .execute(&app.pool)
            .await
            .unwrap();
        (app.sandbox.requests("cancel").await.len() >= 4).then_some(())
    })
    .await;
    eventually("it waits for longer", async || {
        let wait: Option<f64> = sqlx::query_scalar(
            "SELECT extract(epoch FROM due_at - now())::float8 FROM payment_intents
             WHERE surplus_of IS NOT NULL",
        )
        .fetch_one(&app.pool)
        .await
        .unwrap();
        wait.filter(|wait| *wait > 15.0)
    })
    .await;

    app.sandbox.clear("faults").await;
    sqlx::query("UPDATE payment_intents SET due_at = now() WHERE surplus_of IS NOT NULL")
        .execute(&app.pool)
        .await
        .unwrap();
    eventually("it is canceled", async || {
        app.told(&id, "surplusCanceled").await.pop()
    })
    .await;
}

/// The pages take longer than one round may last, and the newest are shown first.
#[tokio::test]
async fn a_second_intent_is_found_behind_very_many_newer_ones() {
    let settings = [("RECOVERY_SETTLE", "1s"), ("BACKGROUND_RATE", "4")];
    let app = TestApp::quick(&settings).await;
    app.sandbox.drop_webhooks().await;
    app.sandbox.search_lags(600.0).await;
    let body = ten_pounds("Order 1");
    let id = lose(&app, "a", &body, "cutAfter", json!({})).await;
    settled(&app, &id).await;
    assert_eq!(app.sandbox.live_intents_about("Order 1").await.len(), 2);
    app.sandbox
        .control("payment-intents", json!({"count": 2_500}))
        .await;
    app.sandbox.search_lags(0.0).await;
    app.all_are_due().await;
    eventually_within(Duration::from_mins(1), "it is canceled", async || {
        app.told(&id, "surplusCanceled").await.pop()
    })
    .await;
    app.the_only_link("a", &body).await;
}

/// What was searched in full before each retry is not searched again, so that the search stays short.
#[tokio::test]
async fn a_creation_retried_for_a_day_is_searched_for_from_its_last_retry() {
    let app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    let lost = json!({"operation": "create", "kind": "cutBefore", "share": 1.0});
    app.sandbox.control("faults", lost).await;
    let body = ten_pounds("Order 1");
    let problem = app.create_with_key("a", &body).await;
    let id = problem.problem(504, "outcome-unknown")["paymentLinkId"].clone();
    eventually("it is retried", async || {
        app.told(&id, "creationRetried").await.pop()
    })
    .await;
    sqlx::query("UPDATE payment_links SET created_at = created_at - interval '20 hours'")
        .execute(&app.pool)
        .await
        .unwrap();
    app.sandbox.clear("requests").await;
    app.sandbox.clear("faults").await;
    app.the_only_link("a", &body).await;
    let search = &app.sandbox.requests("search").await[0];
    let start = text(&search["body"]["startDate"]);
    let start = OffsetDateTime::parse(start, &Rfc3339).unwrap();
    let searched = OffsetDateTime::now_utc() - start;
    assert!(
        searched < Duration::from_mins(10),
        "{searched} are searched"
    );
}

#[tokio::test]
async fn an_early_webhook_is_followed_by_a_read_at_once() {
    let app = TestApp::quick(&[("POLL_INTERVAL", "1h")]).await;
    app.sandbox
        .next("create", "latencyAfter", json!({"latencyMs": 1500}))
        .await;
    let paying = async {
        let intent = eventually("the intent exists", async || {
            app.sandbox.intents().await.pop()
        })
        .await;
        app.sandbox.pay(&intent["id"]).await;
    };
    let (link, ()) = tokio::join!(app.created(), paying);
    let early = app.told(&link["id"], "webhook").await;
    assert!(
        early.iter().any(|entry| entry["statusAfter"] == "Captured"),
        "it was early: {early:?}"
    );
    eventually("the intent is read", async || {
        app.sandbox.requests("get").await.pop()
    })
    .await;
}

#[tokio::test]
async fn a_lost_creation_is_given_up_after_the_limit() {
    let app = TestApp::quick(&[("RECOVERY_GIVE_UP", "1s")]).await;
    let body = ten_pounds("Order 1");
    let id = lose(&app, "a", &body, "cutBefore", json!({})).await;
    let link = settled(&app, &id).await;
    assert_eq!(link["status"], "Failed");
    assert_eq!(link["failure"]["reason"], "notCreated");
    let again = app.create_with_key("a", &body).await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.problem(409, "not-created")["paymentLinkId"], id);
    assert!(app.sandbox.intents().await.is_empty());
    assert_eq!(app.sandbox.creations().await.len(), 1);
}

#[tokio::test]
async fn a_lost_creation_that_expires_fails_and_cannot_be_paid() {
    // Whether Dojo did nothing, or created an intent that its search did not show in time.
    let settle = [("RECOVERY_SETTLE", "20s")];
    for_each_case(&["cutBefore", "cutAfter"], &settle, async |app, kind| {
        app.sandbox.drop_webhooks().await;
        app.sandbox.search_lags(600.0).await;
        let mut body = ten_pounds("Order 1");
        // Before the creation may be retried.
        let expire_at = OffsetDateTime::now_utc() + Duration::from_secs(16);
        body["expireAt"] = json!(expire_at.format(&Rfc3339).unwrap());
        let id = lose(&app, "a", &body, kind, json!({})).await;

        let link = settled(&app, &id).await;
        assert_eq!(link["status"], "Failed", "{kind}");
        assert_eq!(link["failure"]["reason"], "notCreated", "{kind}");
        assert_eq!(link["url"], Value::Null, "{kind}");
        let alive = app.sandbox.live_intents_about("Order 1").await;
        assert!(alive.is_empty(), "{kind}: {alive:#?}");
        assert_eq!(app.sandbox.creations().await.len(), 1, "{kind}");
    })
    .await;
}

#[tokio::test]
async fn a_retry_that_dojo_rejects_fails_the_link_with_its_reasons() {
    let app = TestApp::quick(&[]).await;
    let body = ten_pounds("Order 1");
    let id = lose(&app, "a", &body, "cutBefore", json!({})).await;
    app.sandbox
        .next("create", "status", json!({"status": 400}))
        .await;
    let link = settled(&app, &id).await;
    assert_eq!(link["status"], "Failed");
    assert_eq!(link["failure"]["reason"], "rejected");
    let again = app.create_with_key("a", &body).await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.problem(422, "rejected-by-dojo")["paymentLinkId"], id);
    assert!(app.sandbox.intents().await.is_empty());
    assert_eq!(app.sandbox.creations().await.len(), 2);
}

#[tokio::test]
async fn a_retry_whose_response_is_lost_is_recovered_too() {
    let app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    let body = ten_pounds("Order 1");
    let id = lose(&app, "a", &body, "cutBefore", json!({})).await;
    app.sandbox.next("create", "cutAfter", json!({})).await;
    let link = app.the_only_link("a", &body).await;
    assert_eq!(link["id"], id);
    assert_eq!(app.told(&id, "responseLost").await.len(), 2);
    assert_eq!(app.told(&id, "creationRetried").await.len(), 1);
    assert_eq!(app.sandbox.intents().await.len(), 1);
}

#[tokio::test]
async fn a_busy_dojo_is_retried_within_the_request() {
    let app = TestApp::start().await;
    app.sandbox
        .next("create", "status", json!({"status": 429, "count": 2}))
        .await;
    let link = app
        .create_with_key("a", &ten_pounds("Order 1"))
        .await
        .expect(201)
        .json();
    assert_eq!(link["status"], "Created");
    assert_eq!(app.sandbox.creations().await.len(), 3);
    assert_eq!(app.sandbox.intents().await.len(), 1);
}

#[tokio::test]
async fn a_refused_connection_is_retried_within_the_request() {
    let address = stable_address();
    let url = format!("http://{address}");
    let app = TestApp::with(&[("DOJO_API_URL", &url)]).await;
    let body = ten_pounds("Order 1");
    let creating = app.create_with_key("a", &body);
    let coming_back = async {
        eventually("a connection was refused", async || {
            let unreachable = r#"dojo_requests_total{operation="create",outcome="unreachable"}"#;
            (app.metric(unreachable).await >= 1.0).then_some(())
        })
        .await;
        forward(&address, app.sandbox.url.trim_start_matches("http://")).await;
    };
    let (response, ()) = tokio::join!(creating, coming_back);
    assert_eq!(response.expect(201).json()["status"], "Created");
    assert_eq!(app.sandbox.creations().await.len(), 1);
}

/// Forwards connections from one address to another.
async fn forward(from: &str, to: &str) {
    let (listener, to) = (TcpListener::bind(from).await.unwrap(), to.to_owned());
    tokio::spawn(async move {
        while let Ok((mut caller, _)) = listener.accept().await {
            let mut called = TcpStream::connect(&to).await.unwrap();
            tokio::spawn(
                async move { tokio::io::copy_bidirectional(&mut caller, &mut called).await },
            );
        }
    });
}

#[tokio::test]
async fn a_hundred_lost_creations_are_recovered() {
    let app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    for kind in ["cutAfter", "cutBefore"] {
        let fault = json!({"operation": "create", "kind": kind, "share": 0.4});
        app.sandbox.control("faults", fault).await;
    }
    let orders: Vec<_> = (0..100).map(|n| format!("Order {n}")).collect();
    let responses = join_all(orders.iter().map(async |order| {
        app.create_with_key(order, &ten_pounds(order))
            .await
            .status
            .as_u16()
    }))
    .await;
    assert!(responses.iter().all(|status| [201, 504].contains(status)));
    assert!(responses.iter().filter(|status| **status == 504).count() > 20);
    app.sandbox.clear("faults").await;

    app.in_step_with_dojo().await;
    let intents = app.sandbox.intents().await;
    assert_eq!(intents.len(), 100);
    for order in &orders {
        assert!(
            intents
                .iter()
                .any(|intent| text(&intent["reference"]) == order)
        );
    }
}

#[tokio::test]
async fn an_intent_that_appears_after_its_link_has_failed_is_canceled() {
    let app = TestApp::quick(&[("RECOVERY_GIVE_UP", "1s")]).await;
    app.sandbox.drop_webhooks().await;
    app.sandbox.search_lags(600.0).await;
    let id = lose(&app, "a", &ten_pounds("Order 1"), "cutAfter", json!({})).await;
    assert_eq!(settled(&app, &id).await["status"], "Failed");
    assert_eq!(app.sandbox.live_intents_about("Order 1").await.len(), 1);

    app.sandbox.search_lags(0.0).await;
    eventually("it is canceled", async || {
        app.sandbox
            .live_intents_about("Order 1")
            .await
            .is_empty()
            .then_some(())
    })
    .await;
    assert_eq!(app.link(&id).await["status"], "Failed");
    eventually("the timeline records it", async || {
        let timeline = app.timeline(&id).await;
        timeline
            .iter()
            .any(|entry| entry["type"] == "surplusCanceled")
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_search_that_fails_does_not_keep_a_payment_from_being_stored() {
    let app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    // The creation is retried, so every reconciliation also searches for a second intent.
    let body = ten_pounds("Order 1");
    let id = lose(&app, "a", &body, "cutBefore", json!({})).await;
    let link = settled(&app, &id).await;
    assert_eq!(app.told(&id, "creationRetried").await.len(), 1);

    let fault = json!({"operation": "search", "kind": "status", "status": 500, "share": 1.0});
    app.sandbox.control("faults", fault).await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    let told = app.refresh(&id).await.expect(200).json();
    assert_eq!(told["status"], "Captured");
    app.logged("the search for a surplus intent was not completed")
        .await;

    // The background does the same.
    app.sandbox.refund(&link["paymentIntentId"], 1000).await;
    app.all_are_due().await;
    app.link_with_status(&id, "Refunded").await;
}

/// A database whose clock is ahead of this machine's, as for a replica with a slow clock.
async fn database_ahead(seconds: i32) -> String {
    let url = empty_database().await;
    let mut database = PgConnection::connect(&url).await.unwrap();
    let name: String = sqlx::query_scalar("SELECT current_database()")
        .fetch_one(&mut database)
        .await
        .unwrap();
    // By default, Postgres searches its own schema first.
    let statement = format!(
        "CREATE FUNCTION public.now() RETURNS timestamptz STABLE LANGUAGE sql
             AS $$ SELECT pg_catalog.now() + make_interval(secs => {seconds}) $$;
         ALTER DATABASE {name} SET search_path = public, pg_catalog;"
    );
    sqlx::raw_sql(AssertSqlSafe(statement))
        .execute(&mut database)
        .await
        .unwrap();
    url
}

#[tokio::test]
async fn a_replica_with_a_slow_clock_finds_a_lost_creation() {
    // Ten minutes are more than a search reads ahead of its own clock.
    let app = TestApp::quick_on(database_ahead(600).await, &[]).await;
    app.sandbox
        .control("clock", json!({"advanceSeconds": 600}))
        .await;
    app.sandbox.drop_webhooks().await;
    let body = ten_pounds("Order 1");
    let id = lose(&app, "a", &body, "cutAfter", json!({})).await;

    let link = app.the_only_link("a", &body).await;
    assert_eq!(link["id"], id);
    let created_at: OffsetDateTime = sqlx::query_scalar("SELECT created_at FROM payment_links")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    let ahead = created_at - OffsetDateTime::now_utc();
    assert!(ahead > time::Duration::minutes(9), "the clocks differ");
    assert_eq!(app.sandbox.creations().await.len(), 1);
}

#[tokio::test]
async fn a_replica_with_a_slow_clock_finds_a_second_intent() {
    let app = TestApp::quick_on(database_ahead(600).await, &[("RECOVERY_SETTLE", "1s")]).await;
    app.sandbox
        .control("clock", json!({"advanceSeconds": 600}))
        .await;
    app.sandbox.drop_webhooks().await;
    app.sandbox.search_lags(6000.0).await;
    let body = ten_pounds("Order 1");
    let id = lose(&app, "a", &body, "cutAfter", json!({})).await;
    settled(&app, &id).await;
    assert_eq!(app.sandbox.live_intents_about("Order 1").await.len(), 2);

    app.sandbox.search_lags(0.0).await;
    app.all_are_due().await;
    eventually("the first intent is canceled", async || {
        app.told(&id, "surplusCanceled").await.pop()
    })
    .await;
    app.the_only_link("a", &body).await;
}
