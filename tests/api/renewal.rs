//! Renewing a link: another one takes its place, once nobody can pay it any more.

use std::time::Duration;

use dojo_payment_links::payment_link::PaymentLinkId;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::support::{Answer, QUICK, TestApp, eventually, send, ten_pounds, text};

impl TestApp {
    async fn renew(&self, link: &Value, key: &str, body: &Value) -> Answer {
        let path = format!("/v1/payment-links/{}/renew", text(&link["id"]));
        let request = self.request(Method::POST, &path);
        send(request.header("idempotency-key", key).json(body)).await
    }

    /// A link that was canceled.
    async fn canceled(&self) -> Value {
        let link = self.created().await;
        self.operate(&link, "cancel", &Value::Null)
            .await
            .expect(200);
        link
    }

    /// How many intents at Dojo can be paid.
    async fn payable(&self) -> usize {
        let intents = self.sandbox.intents().await;
        intents
            .iter()
            .filter(|intent| intent["status"] == "Created")
            .count()
    }
}

#[track_caller]
fn not_renewable(answer: Answer, words: &str) -> Value {
    let problem = answer.problem(409, "not-renewable");
    assert!(text(&problem["detail"]).contains(words), "{problem}");
    problem
}

#[tokio::test]
async fn another_link_with_the_same_terms_takes_the_place() {
    let app = TestApp::with(&[("SHORT_URL_BASE", "https://pay.example.com")]).await;
    let mut body = ten_pounds("Order 1");
    body["tipsAmount"] = json!({"value": 200, "currencyCode": "GBP"});
    body["description"] = json!("Two tickets");
    body["metadata"] = json!({"order": "1"});
    body["expireAt"] = json!("2099-01-01T00:00:00Z");
    let old = app.create(&body).await.expect(201).json();
    app.operate(&old, "cancel", &Value::Null).await.expect(200);

    let renewal = json!({"expireAt": "2099-03-01T00:00:00Z"});
    let answer = app.renew(&old, "renewal-1", &renewal).await.expect(201);
    let new = answer.json();
    assert_eq!(
        answer.header("location"),
        format!("/v1/payment-links/{}", text(&new["id"]))
    );
    assert_ne!(new["id"], old["id"]);
    assert_ne!(new["paymentIntentId"], old["paymentIntentId"]);
    assert_eq!(new["status"], "Created");
    assert_eq!(new["expireAt"], "2099-03-01T00:00:00.000000Z");
    for same in [
        "amount",
        "tipsAmount",
        "totalAmount",
        "reference",
        "description",
        "metadata",
        "account",
        "captureMode",
        "shortUrl",
    ] {
        assert_eq!(new[same], old[same], "{same}");
    }
    assert_eq!(
        (&new["replaces"], &new["replacedBy"]),
        (&old["id"], &Value::Null)
    );
    let replaced = app.link(&old["id"]).await;
    assert_eq!(
        (&replaced["replaces"], &replaced["replacedBy"]),
        (&Value::Null, &new["id"])
    );
    assert_eq!(replaced["shortUrl"], Value::Null);
    assert_eq!(replaced["status"], "Canceled");
    let path = text(&new["shortUrl"])
        .strip_prefix("https://pay.example.com")
        .unwrap();
    let opened = send(app.anonymous(Method::GET, path)).await.expect(302);
    assert_eq!(opened.header("location"), text(&new["url"]));
    let timeline = app.timeline(&old["id"]).await;
    // The webhook about the cancellation may come later.
    let entry = timeline
        .iter()
        .find(|entry| entry["type"] == "renewalRequested");
    let entry = entry.unwrap();
    assert_eq!(entry["detail"]["paymentLinkId"], new["id"]);
    assert_eq!(entry["statusAfter"], "Canceled");

    // A repetition gets the same link. Any other request finds the place taken.
    let again = app.renew(&old, "renewal-1", &renewal).await.expect(201);
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.json()["id"], new["id"]);
    let other = app.renew(&old, "renewal-2", &renewal).await;
    let problem = not_renewable(other, "has been renewed already");
    assert_eq!(problem["paymentLinkId"], new["id"]);
    assert_eq!(app.sandbox.intents().await.len(), 2);

    // The new one can be renewed in turn.
    app.operate(&new, "cancel", &Value::Null).await.expect(200);
    let third = app
        .renew(&new, "renewal-3", &json!({}))
        .await
        .expect(201)
        .json();
    assert_eq!(third["replaces"], new["id"]);
    assert_eq!(third["shortUrl"], old["shortUrl"]);
}

#[tokio::test]
async fn a_link_that_dojo_let_expire_is_renewed_before_any_webhook_says_so() {
    let app = TestApp::with(&[("RUN_JOBS", "false")]).await;
    let link = app.created().await;
    app.sandbox.drop_webhooks().await;
    app.sandbox
        .control("clock", json!({"advanceSeconds": 31 * 86_400}))
        .await;
    assert_eq!(app.link(&link["id"]).await["status"], "Created");
    let new = app
        .renew(&link, "renewal-1", &json!({}))
        .await
        .expect(201)
        .json();
    assert_eq!(new["replaces"], link["id"]);
    assert_eq!(app.link(&link["id"]).await["status"], "Canceled");
    assert_eq!(app.payable().await, 1);
}

#[tokio::test]
async fn a_link_that_may_still_be_paid_or_was_paid_is_not_renewed() {
    let app = TestApp::with(&[("RUN_JOBS", "false")]).await;
    let link = app.created().await;
    // Even if its time is over here: Dojo is what counts.
    sqlx::query("UPDATE payment_links SET expire_at = now() - interval '1 day'")
        .execute(&app.pool)
        .await
        .unwrap();
    not_renewable(
        app.renew(&link, "a", &json!({})).await,
        "can still be paid: cancel it first",
    );

    app.sandbox.pay(&link["paymentIntentId"]).await;
    let paid = eventually("the payment is confirmed", async || {
        let answer = app.renew(&link, "a", &json!({})).await;
        // The webhook may come between reading the link from Dojo and reading it here.
        answer
            .headers
            .get("retry-after")
            .is_none()
            .then_some(answer)
    })
    .await;
    not_renewable(paid, "it has been paid");

    // A webhook claims that the link is paid, and Dojo doesn't confirm it.
    let link = app.created().await;
    app.deliver(&crate::support::event("evt_paid", &link, "Captured"))
        .await
        .expect(204);
    not_renewable(
        app.renew(&link, "a", &json!({})).await,
        "Dojo has not confirmed yet",
    );

    // A webhook claims that the link is canceled, and Dojo doesn't confirm it.
    let link = app.created().await;
    app.deliver(&crate::support::event("evt_forged", &link, "Canceled"))
        .await
        .expect(204);
    let answer = app.renew(&link, "b", &json!({})).await;
    assert_eq!(answer.header("retry-after"), "5");
    not_renewable(answer, "Dojo has not confirmed yet");

    app.sandbox
        .next("create", "status", json!({"status": 400}))
        .await;
    let failed = app.create(&ten_pounds("Order 2")).await;
    let failed = json!({"id": failed.problem(422, "rejected-by-dojo")["paymentLinkId"]});
    not_renewable(
        app.renew(&failed, "c", &json!({})).await,
        "was never created",
    );
    assert_eq!(app.sandbox.intents().await.len(), 3, "nothing was created");
}

#[tokio::test]
async fn a_surplus_intent_that_may_still_be_paid_prevents_a_renewal() {
    let app = TestApp::with(&[("RUN_JOBS", "false")]).await;
    let link = app.canceled().await;
    let surplus = async |due: &str| {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "INSERT INTO payment_intents (id, account, surplus_of, due_at) VALUES ('pi_surplus', 'default', $1, {due})
             ON CONFLICT (id) DO UPDATE SET due_at = EXCLUDED.due_at"
        )))
        .bind(text(&link["id"]).parse::<PaymentLinkId>().unwrap().uuid())
        .execute(&app.pool)
        .await
        .unwrap();
    };
    surplus("now()").await;
    not_renewable(
        app.renew(&link, "a", &json!({})).await,
        "Dojo has not confirmed yet",
    );
    surplus("NULL").await;
    let new = app.renew(&link, "a", &json!({})).await.expect(201).json();

    // Somebody paid a surplus intent, so the customer owes nothing.
    app.operate(&new, "cancel", &Value::Null).await.expect(200);
    sqlx::query(
        "INSERT INTO payment_link_events (payment_link_id, kind, status_before, status_after, cause)
         VALUES ($1, 'surplusPaid', 'Canceled', 'Canceled', '{\"type\": \"reconciliation\"}')",
    )
    .bind(text(&new["id"]).parse::<PaymentLinkId>().unwrap().uuid())
    .execute(&app.pool)
    .await
    .unwrap();
    not_renewable(app.renew(&new, "b", &json!({})).await, "it has been paid");
}

#[tokio::test]
async fn what_is_wrong_with_the_request_is_named() {
    let app = TestApp::start().await;
    let link = app.canceled().await;
    let path = format!("/v1/payment-links/{}/renew", text(&link["id"]));
    let request = app
        .request(Method::POST, &path)
        .json(&json!({"expireAt": "2020-01-01T00:00:00Z", "color": 1}));
    let problem = send(request).await.problem(422, "invalid-request");
    let pointers: Vec<_> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| text(&error["pointer"]))
        .collect();
    for pointer in ["/expireAt", "/color", "Idempotency-Key"] {
        assert!(pointers.contains(&pointer), "{problem}");
    }
    let without_key = send(app.request(Method::POST, &path)).await;
    without_key.problem(422, "invalid-request");
    let unknown = json!({"id": "plink_01m81mqpmrf8384nj77tj0t0e4"});
    app.renew(&unknown, "a", &json!({}))
        .await
        .problem(404, "not-found");
    assert_eq!(app.sandbox.intents().await.len(), 1);
}

#[tokio::test]
async fn of_many_requests_at_once_one_renews() {
    let app = TestApp::start().await;
    let link = app.canceled().await;
    // Two clients' worth of requests: each key comes twice.
    let requests = (0..16).map(async |n| {
        let answer = app
            .renew(&link, &format!("renewal-{}", n / 2), &json!({}))
            .await;
        if answer.status == 201 {
            return Some(answer.json()["id"].clone());
        }
        let problem = answer.expect(409).json();
        let kind = text(&problem["type"]);
        assert!(
            kind.ends_with("#not-renewable") || kind.ends_with("#request-in-progress"),
            "{problem}"
        );
        None
    });
    let mut created: Vec<_> = join_all(requests).await.into_iter().flatten().collect();
    created.dedup();
    assert_eq!(created.len(), 1, "{created:?}");
    assert_eq!(app.payable().await, 1);
}

#[tokio::test]
async fn a_lost_response_is_found_and_the_place_stays_taken_meanwhile() {
    let app = TestApp::with(&QUICK).await;
    let link = app.canceled().await;
    app.sandbox.next("create", "cutAfter", json!({})).await;
    let lost = app.renew(&link, "renewal-1", &json!({})).await;
    let id = lost.problem(504, "outcome-unknown")["paymentLinkId"].clone();
    let other = app.renew(&link, "renewal-2", &json!({})).await;
    assert_eq!(other.header("retry-after"), "5");
    assert_eq!(
        not_renewable(other, "is renewing the link")["paymentLinkId"],
        id
    );
    let new = eventually("the outcome is known", async || {
        let answer = app.renew(&link, "renewal-1", &json!({})).await;
        (answer.status == 201).then(|| answer.json())
    })
    .await;
    assert_eq!(new["id"], id);
    assert_eq!(app.link(&link["id"]).await["replacedBy"], id);
    assert_eq!(app.payable().await, 1);
}

#[tokio::test]
async fn a_failed_renewal_leaves_the_place_to_another() {
    let app = TestApp::with(&[("SHORT_URL_BASE", "https://pay.example.com")]).await;
    let link = app.canceled().await;
    app.sandbox
        .next("create", "status", json!({"status": 400}))
        .await;
    let rejected = app.renew(&link, "renewal-1", &json!({})).await;
    let first = rejected.problem(422, "rejected-by-dojo")["paymentLinkId"].clone();
    assert_eq!(app.link(&link["id"]).await["replacedBy"], first);

    // Dojo is busy, so the same request may be repeated.
    let busy = json!({"status": 429, "retryAfter": 60});
    app.sandbox.next("create", "status", busy).await;
    let rejected = app.renew(&link, "renewal-2", &json!({})).await;
    rejected.problem(503, "dojo-not-reached");
    let third = app
        .renew(&link, "renewal-3", &json!({}))
        .await
        .expect(201)
        .json();
    assert_eq!(app.link(&link["id"]).await["replacedBy"], third["id"]);
    assert_eq!(third["shortUrl"], link["shortUrl"]);

    // By now, the place is taken. The final failure stays what it is.
    let late = app.renew(&link, "renewal-2", &json!({})).await;
    assert_eq!(
        not_renewable(late, "renewed already")["paymentLinkId"],
        third["id"]
    );
    app.renew(&link, "renewal-1", &json!({}))
        .await
        .problem(422, "rejected-by-dojo");
    assert_eq!(app.payable().await, 1);
}

#[tokio::test]
async fn a_failure_that_passes_does_not_take_the_place_from_the_request_before() {
    let app = TestApp::with(&[("SHORT_URL_BASE", "https://pay.example.com")]).await;
    let link = app.canceled().await;
    let busy = json!({"status": 429, "retryAfter": 60});
    for key in ["renewal-1", "renewal-2"] {
        app.sandbox.next("create", "status", busy.clone()).await;
        let rejected = app.renew(&link, key, &json!({})).await;
        rejected.problem(503, "dojo-not-reached");
    }
    let new = app
        .renew(&link, "renewal-1", &json!({}))
        .await
        .expect(201)
        .json();
    assert_eq!(app.link(&link["id"]).await["replacedBy"], new["id"]);
    assert_eq!(new["shortUrl"], link["shortUrl"]);
    let late = app.renew(&link, "renewal-2", &json!({})).await;
    assert_eq!(
        not_renewable(late, "renewed already")["paymentLinkId"],
        new["id"]
    );
    assert_eq!(app.payable().await, 1);
}

#[tokio::test]
async fn a_repetition_gets_its_outcome_even_after_the_new_expiry() {
    let app = TestApp::start().await;
    let link = app.canceled().await;
    let soon = OffsetDateTime::now_utc() + Duration::from_secs(3);
    let renewal = json!({"expireAt": soon.format(&Rfc3339).unwrap()});
    let new = app
        .renew(&link, "renewal-1", &renewal)
        .await
        .expect(201)
        .json();
    let again = eventually("the time is over", async || {
        let again = app.renew(&link, "renewal-1", &renewal).await.expect(201);
        (OffsetDateTime::now_utc() > soon).then_some(again)
    })
    .await;
    assert_eq!(again.json()["id"], new["id"]);
    let other = app.renew(&link, "renewal-2", &renewal).await;
    other.problem(422, "invalid-request");
}

/// The same request, repeated after a failure that has passed, uses its link again.
#[tokio::test]
async fn a_renewal_is_repeated_after_a_failure_that_passes() {
    let app = TestApp::with(&[("SHORT_URL_BASE", "https://pay.example.com")]).await;
    let link = app.canceled().await;
    let busy = json!({"status": 429, "retryAfter": 60});
    app.sandbox.next("create", "status", busy).await;
    let rejected = app.renew(&link, "renewal-1", &json!({})).await;
    let id = rejected.problem(503, "dojo-not-reached")["paymentLinkId"].clone();
    let new = app
        .renew(&link, "renewal-1", &json!({}))
        .await
        .expect(201)
        .json();
    assert_eq!(new["id"], id);
    assert_eq!(new["replaces"], link["id"]);
    assert_eq!(new["shortUrl"], link["shortUrl"]);
    assert_eq!(app.payable().await, 1);
}
