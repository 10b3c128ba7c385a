//! Creations whose answer got lost: found or made good, never doubled, and one outcome for the caller.

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

/// Every way in which an answer gets lost, and whether Dojo has done the work all the same.
fn lost_answers() -> [(&'static str, Value, bool); 5] {
    [
        ("cutAfter", json!({}), true),
        ("statusAfter", json!({"status": 502}), true),
        ("latencyAfter", json!({"latencyMs": 4000}), true),
        ("cutBefore", json!({}), false),
        ("status", json!({"status": 500}), false),
    ]
}

/// Asks for a link whose answer gets lost; answers the pending link's id.
async fn lose(app: &TestApp, key: &str, body: &Value, kind: &str, more: Value) -> Value {
    app.sandbox.next("create", kind, more).await;
    let problem = app
        .create_with_key(key, body)
        .await
        .problem(504, "outcome-unknown");
    problem["paymentLinkId"].clone()
}

/// A link whose creation is settled.
async fn settled(app: &TestApp, id: &Value) -> Value {
    eventually("the creation is settled", async || {
        let link = app.link(id).await;
        (link["status"] != "Pending").then_some(link)
    })
    .await
}

#[tokio::test]
async fn a_lost_answer_is_made_good_and_every_repetition_gets_the_one_outcome() {
    // No webhooks: only the search can tell.
    for_each_case(&lost_answers(), &[], async |app, (kind, more, done)| {
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
            "{kind}: not before it could have come to light: {calls:#?}"
        );
    })
    .await;
}

#[tokio::test]
async fn while_search_lags_the_webhook_leads_to_the_lost_intent() {
    let app = TestApp::quick(&[("RECOVERY_SETTLE", "1m")]).await;
    app.sandbox.search_lags(600.0).await;
    let body = ten_pounds("Order 1");
    let id = lose(&app, "a", &body, "cutAfter", json!({})).await;
    let link = app.the_only_link_and_it_can_be_paid("a", &body).await;
    assert_eq!(link["id"], id);
    assert_eq!(app.sandbox.creations().await.len(), 1);
}

#[tokio::test]
async fn without_webhooks_a_search_that_lags_is_waited_for() {
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
        "patience was enough"
    );
}

#[tokio::test]
async fn of_two_intents_for_one_link_one_is_adopted_and_the_other_canceled() {
    // Search lags for longer than anybody waits: nothing shows that the first try came to something.
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

/// The settlement window is an assumption. A request that Dojo works on after it leads to a second intent.
#[tokio::test]
async fn a_request_that_dojo_works_on_after_the_settlement_window_leads_to_a_surplus_intent() {
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

/// The HTTP client may not send a request again by itself when a connection from its pool breaks.
#[tokio::test]
async fn a_connection_that_was_used_before_and_breaks_does_not_make_the_client_ask_twice() {
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
async fn a_second_intent_that_somebody_paid_is_told_loudly_and_left_to_people() {
    let app = TestApp::quick(&[("RECOVERY_SETTLE", "1s")]).await;
    app.sandbox.search_lags(600.0).await;
    let id = lose(&app, "a", &ten_pounds("Order 1"), "cutAfter", json!({})).await;
    let first = app.sandbox.first_intent().await["id"].clone();
    app.sandbox.pay(&first).await;

    let told = eventually("it is told", async || {
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
async fn a_surplus_intent_that_cannot_be_canceled_is_tried_less_and_less_often() {
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
async fn a_creation_that_was_retried_for_a_day_is_searched_for_from_its_last_retry() {
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
        .next("create", "latencyAfter", json!({"latencyMs": 1000}))
        .await;
    let link = app.created().await;
    assert_eq!(
        app.told(&link["id"], "webhook").await.len(),
        1,
        "it was early"
    );
    eventually("the intent is read", async || {
        app.sandbox.requests("get").await.pop()
    })
    .await;
}

#[tokio::test]
async fn what_was_found_out_too_late_is_given_up_and_says_so() {
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
async fn a_link_that_expired_meanwhile_fails_and_nothing_can_be_paid() {
    // Whether Dojo had done nothing, or had done it and could not show it in time.
    for_each_case(&["cutBefore", "cutAfter"], &[], async |app, kind| {
        app.sandbox.drop_webhooks().await;
        app.sandbox.search_lags(600.0).await;
        let mut body = ten_pounds("Order 1");
        // Before it may be created again.
        let expire_at = OffsetDateTime::now_utc() + SETTLE * 3 / 4;
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
async fn what_dojo_refuses_the_second_time_has_failed_with_its_reasons() {
    let app = TestApp::quick(&[]).await;
    let body = ten_pounds("Order 1");
    let id = lose(&app, "a", &body, "cutBefore", json!({})).await;
    app.sandbox
        .next("create", "status", json!({"status": 400}))
        .await;
    let link = settled(&app, &id).await;
    assert_eq!(link["status"], "Failed");
    assert_eq!(link["failure"]["reason"], "refused");
    let again = app.create_with_key("a", &body).await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.problem(422, "refused-by-dojo")["paymentLinkId"], id);
    assert!(app.sandbox.intents().await.is_empty());
    assert_eq!(app.sandbox.creations().await.len(), 2);
}

#[tokio::test]
async fn what_recovery_loses_again_is_looked_for_again() {
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
async fn a_try_that_dojo_had_no_time_for_is_repeated_within_the_request() {
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
async fn a_moment_in_which_nobody_listens_at_dojos_address_is_bridged_within_the_request() {
    let address = stable_address();
    let url = format!("http://{address}");
    let app = TestApp::with(&[("DOJO_API_URL", &url)]).await;
    let body = ten_pounds("Order 1");
    let creating = app.create_with_key("a", &body);
    let coming_back = async {
        eventually("a try found nobody", async || {
            let refused = r#"dojo_requests_total{operation="create",outcome="unreachable"}"#;
            (app.metric(refused).await >= 1.0).then_some(())
        })
        .await;
        forward(&address, app.sandbox.url.trim_start_matches("http://")).await;
    };
    let (answer, ()) = tokio::join!(creating, coming_back);
    assert_eq!(answer.expect(201).json()["status"], "Created");
    assert_eq!(app.sandbox.creations().await.len(), 1);
}

/// From now on whoever calls this address reaches that one.
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
async fn a_hundred_lost_creations_are_all_made_good() {
    let app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    for kind in ["cutAfter", "cutBefore"] {
        let fault = json!({"operation": "create", "kind": kind, "share": 0.4});
        app.sandbox.control("faults", fault).await;
    }
    let orders: Vec<_> = (0..100).map(|n| format!("Order {n}")).collect();
    let answers = join_all(orders.iter().map(async |order| {
        app.create_with_key(order, &ten_pounds(order))
            .await
            .status
            .as_u16()
    }))
    .await;
    assert!(answers.iter().all(|status| [201, 504].contains(status)));
    assert!(answers.iter().filter(|status| **status == 504).count() > 20);
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
async fn an_intent_that_comes_to_light_after_its_link_has_failed_is_canceled() {
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
    eventually("its timeline tells of it", async || {
        let timeline = app.timeline(&id).await;
        timeline
            .iter()
            .any(|entry| entry["type"] == "surplusCanceled")
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_search_that_fails_keeps_no_payment_from_being_told() {
    let app = TestApp::quick(&[]).await;
    app.sandbox.drop_webhooks().await;
    // Asked for twice, so every look at it also searches for a second intent.
    let body = ten_pounds("Order 1");
    let id = lose(&app, "a", &body, "cutBefore", json!({})).await;
    let link = settled(&app, &id).await;
    assert_eq!(app.told(&id, "creationRetried").await.len(), 1);

    let fault = json!({"operation": "search", "kind": "status", "status": 500, "share": 1.0});
    app.sandbox.control("faults", fault).await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    let told = app.refresh(&id).await.expect(200).json();
    assert_eq!(told["status"], "Captured");
    app.logged("the search for a second intent was not completed")
        .await;

    // The background's looks are no different.
    app.sandbox.refund(&link["paymentIntentId"], 1000).await;
    app.all_are_due().await;
    app.link_with_status(&id, "Refunded").await;
}

/// A database whose clock is ahead of this machine's, as a replica with a slow clock finds it.
async fn database_ahead(seconds: i32) -> String {
    let url = empty_database().await;
    let mut database = PgConnection::connect(&url).await.unwrap();
    let name: String = sqlx::query_scalar("SELECT current_database()")
        .fetch_one(&mut database)
        .await
        .unwrap();
    // Postgres looks into its own schema first, unless told otherwise.
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
async fn a_replica_whose_clock_is_slow_finds_what_a_lost_answer_had_made() {
    // Ten minutes: more than a search looks ahead of its clock.
    let app = TestApp::quick_on(database_ahead(600).await, &[]).await;
    app.sandbox
        .control("clock", json!({"advanceSeconds": 600}))
        .await;
    app.sandbox.drop_webhooks().await;
    let body = ten_pounds("Order 1");
    let id = lose(&app, "a", &body, "cutAfter", json!({})).await;

    let link = app.the_only_link("a", &body).await;
    assert_eq!(link["id"], id);
    let asked_at: OffsetDateTime = sqlx::query_scalar("SELECT created_at FROM payment_links")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    let ahead = asked_at - OffsetDateTime::now_utc();
    assert!(ahead > time::Duration::minutes(9), "the clocks differ");
    assert_eq!(app.sandbox.creations().await.len(), 1);
}

#[tokio::test]
async fn a_replica_whose_clock_is_slow_finds_a_second_intent() {
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
