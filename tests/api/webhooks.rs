//! Dojo's webhooks: only those with a valid signature, each once, in any order.

use dojo_sandbox::signature;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{TestApp, event, eventually, send, ten_pounds, text};

/// A body that Dojo has published with two signatures.
const PUBLISHED: &str = r#"{"id":"evt_hnnHxIKR_Uy6bhZCusCltw","event":"payment_intent.created","accountId":"acc_test","createdAt":"2022-02-01T13:07:41.8667859Z","data":{"paymentIntentId":"pi_vpwd4ooAPEqyNAQe4z89WQ","paymentStatus":"Created","captureMode":"Auto"}}"#;
const PUBLISHED_SECRETS: &str = "PDYkJQq6sESYHp_zJuTTBQ,ws_OYsyzcrH70GpJfs8MMkKpg";
const SIGNATURES: [&str; 2] = [
    "sha256=4B-49-F8-FE-25-A7-E6-7D-00-4F-A7-9C-F8-0B-63-00-C7-77-B4-F2-2D-E5-E1-22-84-FA-04-18-50-A1-76-FD",
    "sha256=94-AC-93-67-D6-8B-69-6D-15-A2-C2-45-40-98-B5-E7-64-72-38-C5-1F-6D-32-D0-5F-CB-91-20-A9-20-64-F4",
];

/// A link whose own webhooks have all arrived, so that all others come from the test.
async fn quiet_link(app: &TestApp) -> Value {
    let link = app.created().await;
    eventually("the webhook about the creation has arrived", async || {
        let told = app
            .timeline(&link["id"])
            .await
            .iter()
            .any(|entry| entry["type"] == "webhook");
        told.then_some(())
    })
    .await;
    link
}

async fn verdicts(app: &TestApp, link: &Value) -> Vec<String> {
    let timeline = app.timeline(&link["id"]).await;
    timeline
        .iter()
        .filter(|entry| {
            entry["type"] == "webhook" && entry["detail"]["event"] != "payment_intent.created"
        })
        .map(|entry| text(&entry["detail"]["verdict"]).to_owned())
        .collect()
}

#[tokio::test]
async fn dojos_published_signatures_are_accepted_with_either_secret() {
    let app = TestApp::with(&[("DOJO_WEBHOOK_SECRETS", PUBLISHED_SECRETS)]).await;
    for signature in SIGNATURES {
        app.deliver_signed(PUBLISHED, signature).await.expect(204);
        let plain = signature.replace('-', "");
        app.deliver_signed(PUBLISHED, &plain).await.expect(204);
        let lower = plain.to_lowercase();
        app.deliver_signed(PUBLISHED, &lower).await.expect(204);
    }
    let (stored, deliveries): (Vec<u8>, i32) =
        sqlx::query_as("SELECT body, deliveries FROM webhook_events")
            .fetch_one(&app.pool)
            .await
            .unwrap();
    assert_eq!(stored, PUBLISHED.as_bytes(), "stored byte for byte");
    assert_eq!(deliveries, 6);
}

#[tokio::test]
async fn both_secrets_are_accepted_during_a_rotation() {
    let (old, new) = PUBLISHED_SECRETS.split_once(',').unwrap();
    for (secrets, accepted) in [
        (old, [204, 401]),
        (PUBLISHED_SECRETS, [204, 204]),
        (new, [401, 204]),
    ] {
        let app = TestApp::with(&[("DOJO_WEBHOOK_SECRETS", secrets)]).await;
        for (signature, status) in SIGNATURES.into_iter().zip(accepted) {
            app.deliver_signed(PUBLISHED, signature)
                .await
                .expect(status);
        }
    }
}

#[tokio::test]
async fn forgeries_are_rejected_and_not_stored() {
    let secret = PUBLISHED_SECRETS.split(',').next().unwrap();
    let app = TestApp::with(&[("DOJO_WEBHOOK_SECRETS", secret)]).await;
    let right = SIGNATURES[0];

    let mut flipped = PUBLISHED.as_bytes().to_vec();
    flipped[20] ^= 1;
    let flipped = String::from_utf8(flipped).unwrap();
    let reserialised: Value = serde_json::from_str(PUBLISHED).unwrap();
    let reserialised = serde_json::to_string_pretty(&reserialised).unwrap();
    let plain_hash = {
        use sha2::{Digest, Sha256};
        hex(&Sha256::digest(PUBLISHED.as_bytes()))
    };
    let bare = right
        .trim_start_matches("sha256=")
        .replace('-', "")
        .to_lowercase();
    let last_bit_flipped = right.replace("76-FD", "76-FC");
    for (what, body, signature) in [
        ("one flipped bit in the body", flipped.as_str(), right),
        (
            "one flipped bit in the signature",
            PUBLISHED,
            last_bit_flipped.as_str(),
        ),
        ("another secret", PUBLISHED, SIGNATURES[1]),
        ("a body serialised again", reserialised.as_str(), right),
        (
            "a hash without a secret",
            PUBLISHED,
            &format!("sha256={plain_hash}"),
        ),
        ("plain hex", PUBLISHED, bare.as_str()),
        (
            "plain hex of a hash without a secret",
            PUBLISHED,
            plain_hash.as_str(),
        ),
        ("an empty header", PUBLISHED, ""),
        ("no hex", PUBLISHED, "sha256=zz"),
        ("a newline at the end", &format!("{PUBLISHED}\n"), right),
    ] {
        let response = app.deliver_signed(body, signature).await;
        assert_eq!(response.status, 401, "{what}");
        response.problem(401, "bad-signature");
    }
    let unsigned = app
        .anonymous(Method::POST, "/webhooks/dojo")
        .body(PUBLISHED);
    send(unsigned).await.problem(401, "bad-signature");
    assert_eq!(app.stored_webhooks().await, 0);
}

#[tokio::test]
async fn without_a_secret_nothing_is_accepted() {
    let app = TestApp::with(&[("DOJO_WEBHOOK_SECRETS", "")]).await;
    let empty = signature::sign("", PUBLISHED.as_bytes());
    app.deliver_signed(PUBLISHED, &empty)
        .await
        .problem(401, "bad-signature");
}

#[tokio::test]
async fn sixty_four_concurrent_copies_are_one_event() {
    let app = TestApp::start().await;
    let link = quiet_link(&app).await;
    let body = event("evt_1", &link, "Captured");
    let responses = join_all((0..64).map(|_| app.deliver(&body))).await;
    assert!(responses.iter().all(|response| response.status == 204));
    assert_eq!(app.link(&link["id"]).await["status"], "Captured");
    assert_eq!(verdicts(&app, &link).await, ["applied"]);
    let deliveries: i32 =
        sqlx::query_scalar("SELECT deliveries FROM webhook_events WHERE dedup_key = 'evt_1'")
            .fetch_one(&app.pool)
            .await
            .unwrap();
    assert_eq!(deliveries, 64);
}

#[tokio::test]
async fn every_order_of_a_history_leads_to_the_same_status() {
    let app = TestApp::start().await;
    let history = ["Created", "Authorized", "Captured", "Refunded"];
    for order in permutations(&history) {
        let link = quiet_link(&app).await;
        for (n, status) in order.iter().enumerate() {
            let id = format!("evt_{n}_{}", text(&link["id"]));
            app.deliver(&event(&id, &link, status)).await.expect(204);
        }
        assert_eq!(
            app.link(&link["id"]).await["status"],
            "Refunded",
            "{order:?}"
        );
        assert_eq!(
            verdicts(&app, &link).await.len(),
            history.len(),
            "{order:?}"
        );
    }
}

#[tokio::test]
async fn a_concurrent_history_leads_to_the_same_status() {
    let app = TestApp::start().await;
    for _ in 0..8 {
        let link = quiet_link(&app).await;
        let bodies: Vec<_> = ["Refunded", "Captured", "Authorized", "Created"]
            .iter()
            .flat_map(|status| [*status; 4])
            .enumerate()
            .map(|(n, status)| event(&format!("evt_{n}_{}", text(&link["id"])), &link, status))
            .collect();
        let responses = join_all(bodies.iter().map(|body| app.deliver(body))).await;
        assert!(responses.iter().all(|response| response.status == 204));
        assert_eq!(app.link(&link["id"]).await["status"], "Refunded");

        // Each was judged against the status that the one before had set.
        let timeline = app.timeline(&link["id"]).await;
        for pair in timeline.windows(2) {
            assert_eq!(pair[1]["statusBefore"], pair[0]["statusAfter"]);
        }
        assert_eq!(verdicts(&app, &link).await.len(), bodies.len());
    }
}

#[tokio::test]
async fn webhooks_before_the_create_call_returns_are_applied() {
    let app = TestApp::start().await;
    // Dojo creates the intent and sends its webhook, and responds late.
    app.sandbox
        .next("create", "latencyAfter", json!({"latencyMs": 1500}))
        .await;
    let body = ten_pounds("Order 1");
    let creating = app.create(&body);
    let paying = async {
        let intent = eventually("the intent exists", async || {
            app.sandbox.intents().await.pop()
        })
        .await;
        eventually("the webhook about its creation is stored", async || {
            (app.stored_webhooks().await == 1).then_some(())
        })
        .await;
        app.sandbox.pay(&intent["id"]).await;
        eventually("the webhook about its payment is stored", async || {
            (app.stored_webhooks().await >= 2).then_some(())
        })
        .await;
    };
    let (response, ()) = tokio::join!(creating, paying);
    let link = response.expect(201).json();
    assert_eq!(link["status"], "Captured", "paid before its id was known");

    let kinds: Vec<_> = app
        .timeline(&link["id"])
        .await
        .iter()
        .map(|entry| {
            (
                text(&entry["type"]).to_owned(),
                text(&entry["statusAfter"]).to_owned(),
            )
        })
        .collect();
    let expected = [
        ("requested", "Pending"),
        ("created", "Created"),
        ("webhook", "Created"),
        ("webhook", "Captured"),
    ];
    assert_eq!(
        kinds,
        expected.map(|(kind, status)| (kind.to_owned(), status.to_owned()))
    );
}

#[tokio::test]
async fn a_webhook_that_races_its_creation_is_applied() {
    let app = TestApp::start().await;
    // The sandbox sends the webhook about each creation at once, so that it races the response.
    let links = join_all((0..40).map(async |n| {
        let link = app
            .create(&ten_pounds(&format!("Order {n}")))
            .await
            .expect(201)
            .json();
        app.sandbox.pay(&link["paymentIntentId"]).await;
        link
    }))
    .await;
    for link in &links {
        app.link_with_status(&link["id"], "Captured").await;
    }
    eventually("every webhook found its link", async || {
        let (all, claimed): (i64, i64) =
            sqlx::query_as("SELECT count(*), count(payment_link_id) FROM webhook_events")
                .fetch_one(&app.pool)
                .await
                .unwrap();
        (all == 80 && claimed == 80).then_some(())
    })
    .await;
    let metrics = app.get("/metrics").await.text;
    assert!(
        !metrics.contains(r#"route="/webhooks/dojo",status="503""#),
        "each was stored at the first attempt"
    );
}

#[tokio::test]
async fn a_webhook_that_waits_for_its_creation_to_commit_is_applied() {
    let app = TestApp::start().await;
    app.sandbox
        .control("webhook-faults", json!({"kind": "drop", "share": 1.0}))
        .await;
    app.sandbox
        .next("create", "latencyAfter", json!({"latencyMs": 1000}))
        .await;
    // Blocks the creation in the middle of its transaction, with the intent's row written.
    let lock = app.block_adoption().await;
    let body = ten_pounds("Order 1");
    let creating = app.create_with_key("order-1", &body);
    let delivering = async {
        let intent = eventually("Dojo has created the intent", async || {
            app.sandbox.intents().await.pop()
        })
        .await;
        eventually("the creation waits", async || waiting(&app, 1).await).await;
        let webhook = event(
            "evt_1",
            &json!({"paymentIntentId": intent["id"]}),
            "Captured",
        );
        let delivering = app.deliver(&webhook);
        let committing = async {
            eventually("the webhook waits too", async || waiting(&app, 2).await).await;
            drop(lock);
        };
        tokio::join!(delivering, committing).0.expect(204);
    };
    let (response, ()) = tokio::join!(creating, delivering);
    let link = response.expect(201).json();
    assert_eq!(app.link(&link["id"]).await["status"], "Captured");
    assert_eq!(verdicts(&app, &link).await, ["applied"]);
}

/// `Some` if this many statements wait for a lock.
async fn waiting(app: &TestApp, count: usize) -> Option<()> {
    (app.waiting_for_locks().await == count).then_some(())
}

#[tokio::test]
async fn contradictory_and_unknown_statuses_change_nothing_and_are_recorded() {
    for (first, then, verdict) in [
        ("Canceled", "Captured", "contradictory"),
        ("Captured", "Canceled", "contradictory"),
        ("Captured", "PartiallyRefunded", "unknownStatus"),
        ("Captured", "Pending", "unknownStatus"),
    ] {
        let app = TestApp::start().await;
        let link = quiet_link(&app).await;
        app.deliver(&event("evt_1", &link, first)).await.expect(204);
        app.deliver(&event("evt_2", &link, then)).await.expect(204);
        assert_eq!(app.link(&link["id"]).await["status"], first);
        assert_eq!(verdicts(&app, &link).await, ["applied", verdict]);
        let last = app.timeline(&link["id"]).await.pop().unwrap();
        assert_eq!(
            last["detail"]["reported"], then,
            "the word itself is recorded"
        );
    }
}

#[tokio::test]
async fn webhooks_about_no_link_are_stored_and_acknowledged() {
    let app = TestApp::start().await;
    let nobody = json!({"paymentIntentId": "pi_nobody"});
    app.deliver(&event("evt_1", &nobody, "Captured"))
        .await
        .expect(204);
    app.deliver(r#"{"id":"evt_2","event":"terminal.moved","accountId":"acc_1","data":{"x":1}}"#)
        .await
        .expect(204);
    let odd_time = r#"{"id":"evt_4","event":"x","createdAt":"9999-12-31T23:59:59-12:00"}"#;
    app.deliver(odd_time).await.expect(204);
    app.deliver(r#"{"id":"evt_3","event":"customer.created"}"#)
        .await
        .expect(204);
    let kept: Vec<(String, Option<String>)> =
        sqlx::query_as("SELECT dedup_key, problem FROM webhook_events ORDER BY id")
            .fetch_all(&app.pool)
            .await
            .unwrap();
    assert_eq!(
        kept,
        ["evt_1", "evt_2", "evt_4", "evt_3"].map(|id| (id.to_owned(), None))
    );
}

#[tokio::test]
async fn a_signed_body_that_is_not_understood_is_stored() {
    let app = TestApp::start().await;
    let long_id = format!(r#"{{"id":"{}","event":"e"}}"#, "x".repeat(5000));
    let bodies = [
        "not json at all",
        "",
        "[]",
        r#"{"event":"e"}"#,
        r#"{"id":"evt_\u0000","event":"e"}"#,
        r#"{"id":"evt_1","event":"e","data":{"paymentIntentId":"pi_\u0000"}}"#,
        &long_id,
    ];
    for body in bodies {
        app.deliver(body).await.expect(204);
        app.deliver(body).await.expect(204);
    }
    let kept: Vec<(Vec<u8>, bool, i32)> = sqlx::query_as(
        "SELECT body, problem IS NOT NULL, deliveries FROM webhook_events ORDER BY id",
    )
    .fetch_all(&app.pool)
    .await
    .unwrap();
    assert_eq!(kept, bodies.map(|body| (body.as_bytes().to_vec(), true, 2)));
    app.logged("was not understood").await;
    assert!(!app.service.log().contains("not json at all"));
}

#[tokio::test]
async fn a_webhook_over_256_kib_is_413() {
    let app = TestApp::start().await;
    let body = "x".repeat(256 * 1024);
    app.deliver(&body).await.expect(204);
    app.deliver(&(body + "x"))
        .await
        .problem(413, "body-too-large");
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

fn permutations(items: &[&'static str]) -> Vec<Vec<&'static str>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (n, item) in items.iter().enumerate() {
        let rest: Vec<_> = [&items[..n], &items[n + 1..]].concat();
        for mut permutation in permutations(&rest) {
            permutation.insert(0, item);
            all.push(permutation);
        }
    }
    all
}
