//! Reading links: lists, filters, cursors, timelines.

use std::collections::HashSet;

use dojo_payment_links::payment_link::PaymentLinkId;
use futures_util::future::join_all;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{TestApp, eventually, ten_pounds, text};

/// The ids of a page's links.
fn ids(page: &Value) -> Vec<String> {
    let links = page["data"].as_array().unwrap();
    links
        .iter()
        .map(|link| text(&link["id"]).to_owned())
        .collect()
}

#[tokio::test]
async fn pages_stay_stable_while_links_are_added() {
    let app = TestApp::start().await;
    let mut before = Vec::new();
    for n in 0..7 {
        let link = app
            .create(&ten_pounds(&format!("Order {n}")))
            .await
            .expect(201)
            .json();
        before.insert(0, text(&link["id"]).to_owned());
    }

    let mut seen = Vec::new();
    let mut path = "/v1/payment-links?limit=2".to_owned();
    loop {
        let page = app.get(&path).await.expect(200).json();
        seen.extend(ids(&page));
        // A link is added between two pages.
        app.created().await;
        if page["hasMore"] == false {
            break;
        }
        let after = text(&page["after"]);
        path = format!("/v1/payment-links?limit=2&after={after}");
    }
    assert_eq!(
        seen, before,
        "each once, newest first, and none that was added later"
    );
}

/// While the database is busy, requests share statements. Each gets its own link, and an unreadable one fails alone.
#[tokio::test]
async fn requests_that_are_read_together_get_their_own_links() {
    let app = TestApp::start().await;
    let bodies: Vec<_> = (0..20).map(|n| ten_pounds(&format!("Order {n}"))).collect();
    let links = join_all(bodies.iter().map(async |body| {
        let link = app.create(body).await.expect(201).json();
        text(&link["id"]).to_owned()
    }))
    .await;
    let unreadable = app.created().await;
    sqlx::query("UPDATE payment_links SET captures = '1' WHERE payment_intent_id = $1")
        .bind(text(&unreadable["paymentIntentId"]))
        .execute(&app.pool)
        .await
        .unwrap();
    let unknown = PaymentLinkId::from_uuid(Uuid::from_u128(1)).to_string();

    // All readers wait for Postgres, so the requests after the first few share a statement.
    let lock = app
        .lock("LOCK TABLE payment_links IN ACCESS EXCLUSIVE MODE")
        .await;
    let read = async |id: &str| app.get(&format!("/v1/payment-links/{id}")).await;
    let reading = async {
        // Each link several times.
        join_all((0..100).map(async |n| {
            let link = read(&links[n % links.len()]).await.expect(200).json();
            assert_eq!(link["id"], links[n % links.len()]);
            assert_eq!(link["reference"], bodies[n % links.len()]["reference"]);
        }))
        .await;
    };
    let failing = async {
        let (failed, absent) = tokio::join!(read(text(&unreadable["id"])), read(&unknown));
        failed.problem(500, "internal-error");
        absent.problem(404, "not-found");
    };
    let releasing = async {
        eventually("the readers wait", async || {
            (app.waiting_for_locks().await >= 2).then_some(())
        })
        .await;
        drop(lock);
    };
    tokio::join!(reading, failing, releasing);
}

#[tokio::test]
async fn the_last_page_says_so_and_can_be_continued() {
    let app = TestApp::start().await;
    for _ in 0..4 {
        app.created().await;
    }
    let page = app
        .get("/v1/payment-links?limit=4")
        .await
        .expect(200)
        .json();
    assert_eq!((ids(&page).len(), &page["hasMore"]), (4, &json!(false)));
    let page = app
        .get("/v1/payment-links?limit=3")
        .await
        .expect(200)
        .json();
    let after = text(&page["after"]);
    let page = app
        .get(&format!("/v1/payment-links?limit=3&after={after}"))
        .await
        .json();
    assert_eq!((ids(&page).len(), &page["hasMore"]), (1, &json!(false)));

    // In the order of changes, the end is a place to wait at.
    let updates = async |after: &str| {
        let path = format!("/v1/payment-links?sort=updatedAt&after={after}");
        app.get(&path).await.expect(200).json()
    };
    let page = app
        .get("/v1/payment-links?sort=updatedAt")
        .await
        .expect(200)
        .json();
    let seen = ids(&page);
    assert_eq!(seen.len(), 4);
    let end = text(&page["after"]).to_owned();
    let page = updates(&end).await;
    assert_eq!((ids(&page).len(), text(&page["after"])), (0, end.as_str()));
    let link = app.link(&json!(seen[0])).await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.link_with_status(&link["id"], "Captured").await;
    assert_eq!(ids(&updates(&end).await), [seen[0].clone()]);
    // A cursor belongs to its order.
    app.get(&format!("/v1/payment-links?after={end}"))
        .await
        .problem(422, "invalid-request");
}

#[tokio::test]
async fn a_change_that_is_stored_late_is_found_from_a_minute_before() {
    let app = TestApp::start().await;
    let late = app.created().await;
    let updates = async |query: &str| {
        let path = format!("/v1/payment-links?sort=updatedAt&{query}");
        app.get(&path).await.expect(200).json()
    };
    // This transaction is still open when another change is stored and read.
    let mut change = app.pool.begin().await.unwrap();
    let change_late = "UPDATE payment_links SET updated_at = now() WHERE reference = 'Order 1'";
    sqlx::query(change_late)
        .execute(&mut *change)
        .await
        .unwrap();
    let newer = app.create(&ten_pounds("Order 2")).await.expect(201).json();
    let page = updates("").await;
    assert_eq!(ids(&page).last().unwrap(), text(&newer["id"]));
    let end = text(&page["after"]).to_owned();
    change.commit().await.unwrap();

    assert!(ids(&updates(&format!("after={end}")).await).is_empty());
    let seen = time::OffsetDateTime::parse(
        text(&newer["updatedAt"]),
        &time::format_description::well_known::Rfc3339,
    )
    .unwrap();
    let since = (seen - time::Duration::minutes(1))
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap();
    let found = updates(&format!("updatedAfter={since}")).await;
    let found = found["data"].as_array().unwrap();
    let found = found.iter().find(|link| link["id"] == late["id"]).unwrap();
    assert_ne!(found["updatedAt"], late["updatedAt"]);
}

#[tokio::test]
async fn filters_select_matching_links() {
    let app = TestApp::start().await;
    let a = app.create(&ten_pounds("Order A")).await.expect(201).json();
    let b = app
        .create(&ten_pounds("Order B & sons"))
        .await
        .expect(201)
        .json();
    app.sandbox.pay(&b["paymentIntentId"]).await;
    app.link_with_status(&b["id"], "Captured").await;
    let (a_id, b_id) = (text(&a["id"]).to_owned(), text(&b["id"]).to_owned());
    let both = vec![b_id.clone(), a_id.clone()];

    let since = |link: &Value| text(&link["createdAt"]).to_owned();
    for (query, expected) in [
        (String::new(), both.clone()),
        ("status=Created".into(), vec![a_id.clone()]),
        ("status=Captured".into(), vec![b_id.clone()]),
        ("status=Canceled".into(), vec![]),
        ("reference=Order+B+%26+sons".into(), vec![b_id.clone()]),
        (
            format!("paymentIntentId={}", text(&a["paymentIntentId"])),
            vec![a_id.clone()],
        ),
        (format!("createdAfter={}", since(&b)), vec![b_id.clone()]),
        (format!("createdBefore={}", since(&b)), vec![a_id.clone()]),
        (
            format!(
                "createdAfter={}&createdBefore=2999-01-01T00:00:00Z",
                since(&a)
            ),
            both,
        ),
        ("status=Captured&reference=Order+A".into(), vec![]),
    ] {
        let page = app
            .get(&format!("/v1/payment-links?{query}"))
            .await
            .expect(200)
            .json();
        assert_eq!(ids(&page), expected, "{query}");
    }
}

#[tokio::test]
async fn every_fault_of_a_query_is_reported() {
    let app = TestApp::start().await;
    let response = app
        .get("/v1/payment-links?status=Paid&reference=%00&createdAfter=today&limit=101&after=x&limit=1&page=2")
        .await;
    let problem = response.problem(422, "invalid-request");
    let named: HashSet<_> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fault| text(&fault["pointer"]))
        .collect();
    let expected = [
        "status",
        "reference",
        "createdAfter",
        "limit",
        "after",
        "page",
    ];
    assert_eq!(named, HashSet::from(expected));
}

#[tokio::test]
async fn a_timeline_is_paged() {
    let app = TestApp::start().await;
    let link = app.created().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.link_with_status(&link["id"], "Captured").await;
    let whole = app.timeline(&link["id"]).await;

    let base = format!("/v1/payment-links/{}/events?limit=1", text(&link["id"]));
    let mut pieces = Vec::new();
    let mut path = base.clone();
    loop {
        let page = app.get(&path).await.expect(200).json();
        pieces.extend(page["data"].as_array().unwrap().clone());
        if page["hasMore"] == false {
            break;
        }
        let after = text(&page["after"]);
        path = format!("{base}&after={after}");
    }
    assert_eq!(pieces, whole);

    // Behind the end there is an empty page, unlike for a link that does not exist.
    let last = text(&whole.last().unwrap()["id"]);
    let page = app
        .get(&format!("{base}&after={last}"))
        .await
        .expect(200)
        .json();
    assert_eq!(page["data"], serde_json::json!([]));
}
