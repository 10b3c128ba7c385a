//! Refunds that people issue in Dojo's portal between ours. Together they never exceed what was captured, and Dojo never has to
//! reject one of ours for lack of funds.

use futures_util::future::{join, join_all};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{
    API_KEY, Answer, QUICK, Service, TestApp, eventually, for_each_case, pounds, send, text,
};

/// The refund requests that the service sent to Dojo. The portal's keys are shorter.
async fn ours(app: &TestApp) -> Vec<Value> {
    let mut requests = app.sandbox.requests("refund").await;
    requests.retain(|request| text(&request["headers"]["idempotencykey"]).len() == 64);
    requests
}

/// Checks that Dojo rejected none of ours.
async fn none_is_rejected(app: &TestApp) {
    let ours = ours(app).await;
    let rejected: Vec<_> = ours
        .iter()
        .filter(|request| request["answered"] == 400)
        .collect();
    assert!(rejected.is_empty(), "{rejected:#?}");
}

async fn refunded(app: &TestApp, link: &Value) -> i64 {
    let intent = app.sandbox.intent(&link["paymentIntentId"]).await;
    intent["refundedAmount"].as_i64().unwrap()
}

/// The body of a refund request. Without an amount, it requests all that is left.
fn body(amount: Option<i64>) -> Value {
    amount.map_or_else(|| json!({}), |amount| json!({"amount": pounds(amount)}))
}

/// Requests a refund from one of the replicas, in the background.
fn request(url: &str, link: &Value, key: &str, amount: Option<i64>) -> JoinHandle<Answer> {
    let url = format!("{url}/v1/payment-links/{}/refunds", text(&link["id"]));
    let request = crate::support::client()
        .post(url)
        .bearer_auth(API_KEY)
        .header("idempotency-key", key)
        .json(&body(amount));
    tokio::spawn(send(request))
}

#[tokio::test]
async fn after_a_portal_refund_only_the_one_of_two_refunds_that_fits_is_sent() {
    let app = TestApp::start().await;
    let replica = Service::start(&app.database_url, &app.sandbox.url, &[]).await;
    let link = app.paid().await;
    app.sandbox.refund(&link["paymentIntentId"], 400).await;
    let (six, four) = join(
        request(&app.service.url, &link, "six", Some(600)),
        request(&replica.url, &link, "four", Some(400)),
    )
    .await;
    let statuses = [six.unwrap(), four.unwrap()].map(|answer| answer.status.as_u16());
    assert!(
        statuses == [200, 409] || statuses == [409, 200],
        "{statuses:?}"
    );
    assert_eq!(ours(&app).await.len(), 1);
    none_is_rejected(&app).await;
    let sum = if statuses[0] == 200 { 1000 } else { 800 };
    assert_eq!(refunded(&app, &link).await, sum);
}

#[tokio::test]
async fn a_portal_refund_without_a_webhook_is_read_before_ours_is_sent() {
    let app = TestApp::start().await;
    let (part, whole) = (app.paid().await, app.paid().await);
    app.sandbox.drop_webhooks().await;
    app.sandbox.refund(&part["paymentIntentId"], 400).await;
    app.sandbox.refund(&whole["paymentIntentId"], 1000).await;
    for (link, amount, expected) in [
        (&part, 601, "only 6.00 GBP is left to refund"),
        (&whole, 1, "already refunded in full"),
    ] {
        let body = json!({"amount": pounds(amount)});
        let problem = app.operate_with_key("a", link, "refunds", &body).await;
        assert_eq!(problem.problem(409, "not-possible")["detail"], expected);
    }
    assert!(ours(&app).await.is_empty());
    let body = json!({"amount": pounds(600)});
    let rest = app.operate_with_key("b", &part, "refunds", &body).await;
    assert_eq!(rest.expect(200).json()["refundedAmount"]["value"], 1000);
}

#[tokio::test]
async fn no_refund_is_sent_while_dojo_cannot_be_read() {
    let app = TestApp::start().await;
    let link = app.paid().await;
    let failing = json!({"operation": "get", "kind": "status", "status": 500, "share": 1.0});
    app.sandbox.control("faults", failing).await;
    let body = json!({"amount": pounds(100)});
    let answer = app.operate_with_key("a", &link, "refunds", &body).await;
    assert!(!answer.header("retry-after").is_empty());
    answer.problem(503, "dojo-not-reached");
    assert!(ours(&app).await.is_empty());
    assert_eq!(app.operations(&link).await.len(), 0);
    app.sandbox.clear("faults").await;
    app.operate_with_key("a", &link, "refunds", &body)
        .await
        .expect(200);
    // A repetition needs no read.
    let before = app.sandbox.requests("get").await.len();
    app.operate_with_key("a", &link, "refunds", &body)
        .await
        .expect(200);
    assert_eq!(app.sandbox.requests("get").await.len(), before);
}

#[tokio::test]
async fn while_the_refundable_amount_is_unclear_the_caller_is_told_to_retry() {
    let app = TestApp::with(&[("RECOVERY_SETTLE", "4s"), ("DOJO_TIMEOUT", "20s")]).await;
    let link = app.paid().await;
    // Dojo has made the refund, but not responded yet. What Dojo shows may be this refund or one made in the portal.
    app.sandbox
        .next("refund", "latencyAfter", json!({"latencyMs": 8000}))
        .await;
    let first = request(&app.service.url, &link, "first", Some(400));
    eventually("Dojo has made the first", async || {
        (refunded(&app, &link).await == 400).then_some(())
    })
    .await;
    app.sandbox.refund(&link["paymentIntentId"], 100).await;
    let five = json!({"amount": pounds(500)});
    for body in [&five, &json!({})] {
        let answer = app.operate_with_key("second", &link, "refunds", body).await;
        assert_eq!(answer.header("retry-after"), "1");
        answer.problem(409, "refundable-amount-unclear");
    }
    // A refund that exceeds what Dojo has left is rejected. One that fits in any case is made.
    let answer = app
        .operate_with_key("more", &link, "refunds", &json!({"amount": pounds(501)}))
        .await;
    let problem = answer.problem(409, "not-possible");
    assert_eq!(problem["detail"], "only 5.00 GBP is left to refund");
    app.operate_with_key("less", &link, "refunds", &json!({"amount": pounds(100)}))
        .await
        .expect(200);
    assert!(!first.is_finished(), "the first is still under way");
    assert_eq!(
        app.operations(&link).await.len(),
        2,
        "nothing else is saved"
    );

    first.await.unwrap().expect(200);
    // All of ours have ended. A copy of Dojo's data may still show refunds made elsewhere in their place.
    let answer = app
        .operate_with_key("second", &link, "refunds", &json!({}))
        .await;
    let wait: u64 = answer.header("retry-after").parse().unwrap();
    assert!((2..=5).contains(&wait), "{wait}");
    answer.problem(409, "refundable-amount-unclear");
    // The key is free, because the request saved nothing.
    let rest = eventually("the refund is clear", async || {
        let answer = app
            .operate_with_key("second", &link, "refunds", &json!({}))
            .await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert_eq!(rest.json()["refundedAmount"]["value"], 1000);
    assert_eq!(refunded(&app, &link).await, 1000);
    none_is_rejected(&app).await;
}

#[tokio::test]
async fn a_lost_refund_is_not_repeated_if_portal_refunds_left_too_little_for_it() {
    let part = |amount| json!({"amount": pounds(amount)});
    // Without background jobs at first. They would repeat the refund before the portal refund.
    let quiet = [&QUICK[1..], &[("RUN_JOBS", "false")]].concat();
    let app = TestApp::with(&quiet).await;
    let link = app.paid().await;
    for (key, amount) in [("six", 600), ("four", 400)] {
        app.sandbox.next("refund", "cutBefore", json!({})).await;
        app.operate_with_key(key, &link, "refunds", &part(amount))
            .await
            .problem(504, "outcome-unknown");
    }
    let lost_in_full = app.paid().await;
    app.sandbox.next("refund", "cutBefore", json!({})).await;
    app.operate_with_key("all", &lost_in_full, "refunds", &part(1000))
        .await
        .problem(504, "outcome-unknown");
    let made = app.paid().await;
    app.sandbox.next("refund", "cutAfter", json!({})).await;
    app.operate_with_key("made", &made, "refunds", &part(600))
        .await
        .problem(504, "outcome-unknown");
    app.sandbox.refund(&link["paymentIntentId"], 1).await;
    app.sandbox
        .refund(&lost_in_full["paymentIntentId"], 999)
        .await;
    app.sandbox.refund(&made["paymentIntentId"], 400).await;

    let _background = Service::start(&app.database_url, &app.sandbox.url, &QUICK).await;
    join_all([
        // Of two that no longer fit together, the earlier one is made.
        settles(&app, "six", &link, 600, Ok(())),
        settles(&app, "four", &link, 400, Err("not-done")),
        settles(&app, "all", &lost_in_full, 1000, Err("not-done")),
        // A refund that was made is found by its key, although nothing is left.
        settles(&app, "made", &made, 600, Ok(())),
    ])
    .await;
    none_is_rejected(&app).await;
    assert_eq!(refunded(&app, &link).await, 601);
    assert_eq!(refunded(&app, &lost_in_full).await, 999);
    assert_eq!(refunded(&app, &made).await, 1000);
    // The reserved amount is free again.
    app.operate_with_key("rest", &link, "refunds", &part(399))
        .await
        .expect(200);
}

#[tokio::test]
async fn a_refund_is_not_retried_before_dojo_is_read_again() {
    let app = TestApp::quick(&[]).await;
    let link = app.paid().await;
    // Dojo is busy. Meanwhile, a part is refunded in the portal.
    app.sandbox
        .next(
            "refund",
            "status",
            json!({"status": 429, "retryAfter": 0, "latencyMs": 500}),
        )
        .await;
    let all = request(&app.service.url, &link, "all", Some(1000));
    eventually("the refund has reached Dojo", async || {
        (!ours(&app).await.is_empty()).then_some(())
    })
    .await;
    app.sandbox.refund(&link["paymentIntentId"], 1).await;
    all.await.unwrap().problem(503, "dojo-not-reached");
    let body = json!({"amount": pounds(1000)});
    app.operate_with_key("all", &link, "refunds", &body)
        .await
        .problem(409, "not-possible");
    assert_eq!(ours(&app).await.len(), 1);
    none_is_rejected(&app).await;
}

#[tokio::test]
async fn a_lost_refund_that_no_longer_fits_fails_if_dojo_calls_the_payment_refunded() {
    let quiet = [&QUICK[1..], &[("RUN_JOBS", "false")]].concat();
    let app = TestApp::with(&quiet).await;
    let link = app.paid().await;
    app.sandbox.next("refund", "cutBefore", json!({})).await;
    let body = json!({"amount": pounds(600)});
    app.operate_with_key("six", &link, "refunds", &body)
        .await
        .problem(504, "outcome-unknown");
    app.sandbox.refund(&link["paymentIntentId"], 500).await;
    // Dojo may report this status after a partial refund, too.
    let fields = json!({"operation": "get", "kind": "fields", "share": 1.0, "fields": {"status": "Refunded"}});
    app.sandbox.control("faults", fields).await;
    let _background = Service::start(&app.database_url, &app.sandbox.url, &QUICK).await;
    settles(&app, "six", &link, 600, Err("not-done")).await;
    assert_eq!(ours(&app).await.len(), 1);
    assert_eq!(refunded(&app, &link).await, 500);
}

/// Waits for the outcome of a refund and checks it.
async fn settles(app: &TestApp, key: &str, link: &Value, amount: i64, expected: Result<(), &str>) {
    let body = json!({"amount": pounds(amount)});
    let answer = app.operation_outcome(key, link, "refunds", &body).await;
    match expected {
        Ok(()) => drop(answer.expect(200)),
        Err(slug) => drop(answer.problem(409, slug)),
    }
}

/// A refund that was requested from the service.
struct Requested {
    key: String,
    body: Value,
    response: JoinHandle<Answer>,
}

/// Refunds a payment at random, through two replicas and in the portal. Dojo responds at once, late or never.
async fn refund_at_random(app: &TestApp, replica: &Service, rng: &mut StdRng) {
    let link = app.paid().await;
    let mut requests: Vec<Requested> = Vec::new();
    let mut elsewhere = 0;
    for _ in 0..12 {
        // A portal refund between the read and the arrival of our refund can't be known to the service.
        eventually("all refunds under way have arrived at Dojo", async || {
            all_have_arrived(app, &link, &requests, elsewhere)
                .await
                .then_some(())
        })
        .await;
        app.sandbox.clear("faults").await;
        let left = 1000 - refunded(app, &link).await;
        if left > 0 && rng.random_bool(0.4) {
            let amount = rng.random_range(1..=left.min(300));
            app.sandbox.refund(&link["paymentIntentId"], amount).await;
            elsewhere += amount;
            continue;
        }
        let fault = ["none", "none", "latencyAfter", "cutAfter"].choose(rng);
        if let Some(fault) = fault.filter(|fault| **fault != "none") {
            let how = json!({"latencyMs": rng.random_range(0..700)});
            app.sandbox.next("refund", fault, how).await;
        }
        // One refund, or two at once that may not fit together.
        let urls = [&app.service.url, &replica.url];
        for url in urls.iter().skip(rng.random_range(0..2)) {
            let key = format!("{}-{}", text(&link["id"]), requests.len());
            let whole = rng.random_bool(0.1);
            let amount = (!whole).then(|| rng.random_range(1..=500));
            requests.push(Requested {
                body: body(amount),
                response: request(url, &link, &key, amount),
                key,
            });
        }
    }
    for Requested {
        key,
        body,
        response,
    } in requests
    {
        response.await.unwrap();
        let answer = app.operation_outcome(&key, &link, "refunds", &body).await;
        if answer.status == 409 {
            answer.problem(409, "not-possible");
        } else {
            answer.expect(200);
        }
    }
    let operations = app.operations(&link).await;
    assert!(
        operations
            .iter()
            .all(|operation| operation["status"] == "Succeeded"),
        "{operations:#?}"
    );
    assert_eq!(
        refunded(app, &link).await,
        elsewhere + requested(&operations)
    );
}

/// The sum of the refunds that have not failed, in minor units.
fn requested(operations: &[Value]) -> i64 {
    let amounts = operations
        .iter()
        .filter(|one| one["status"] != "Failed")
        .map(|one| &one["request"]["amount"]);
    amounts
        .map(|amount| amount["value"].as_i64().unwrap())
        .sum()
}

/// Whether Dojo has made every refund that will be sent to it: each request has a response or has led to an operation, and
/// Dojo shows all of these.
async fn all_have_arrived(
    app: &TestApp,
    link: &Value,
    requests: &[Requested],
    elsewhere: i64,
) -> bool {
    let open: Vec<_> = requests
        .iter()
        .filter(|one| !one.response.is_finished())
        .map(|one| one.key.clone())
        .collect();
    let saved: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM idempotency_keys WHERE key = ANY($1) AND operation_id IS NOT NULL",
    )
    .bind(&open)
    .fetch_one(&app.pool)
    .await
    .unwrap();
    let operations = app.operations(link).await;
    usize::try_from(saved) == Ok(open.len())
        && refunded(app, link).await == elsewhere + requested(&operations)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dojo_rejects_no_refund_of_ours_in_any_order() {
    let seeds = [1, 2, 3];
    for_each_case(&seeds, &[], async |app, seed| {
        let replica = Service::start(&app.database_url, &app.sandbox.url, &QUICK).await;
        // A partial refund causes no webhook, and the webhook for the last part may be lost.
        app.sandbox.drop_webhooks().await;
        let mut rng = StdRng::seed_from_u64(*seed);
        for _ in 0..4 {
            refund_at_random(&app, &replica, &mut rng).await;
        }
        none_is_rejected(&app).await;
    })
    .await;
}
