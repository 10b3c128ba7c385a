//! Searching payment intents.

use serde_json::{Value, json};

use crate::support::{TestSandbox, id, text};

async fn search(sandbox: &TestSandbox, body: &Value) -> (Vec<String>, Value) {
    let (status, page) = sandbox.post("/payment-intents/search", body).await;
    assert_eq!(status, 200, "{page}");
    (
        page["data"]
            .as_array()
            .expect("data")
            .iter()
            .map(id)
            .collect(),
        page,
    )
}

async fn create(sandbox: &TestSandbox, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(sandbox.create_simple().await);
    }
    ids.reverse();
    ids
}

#[tokio::test]
async fn pages_go_from_new_to_old_and_back() {
    let sandbox = TestSandbox::start().await;
    let newest_first = create(&sandbox, 5).await;

    let (ids, first) = search(&sandbox, &json!({"cursor": {"limit": 2}})).await;
    assert_eq!(ids, newest_first[..2]);
    assert!(first["before"].is_null());

    // An intent that is created in the meantime doesn't shift the pages.
    let late = sandbox.create_simple().await;
    let (ids, second) = search(
        &sandbox,
        &json!({"cursor": {"limit": 2, "after": first["after"]}}),
    )
    .await;
    assert_eq!(ids, newest_first[2..4]);

    let (ids, last) = search(
        &sandbox,
        &json!({"cursor": {"limit": 2, "after": second["after"]}}),
    )
    .await;
    assert_eq!(ids, newest_first[4..]);
    assert!(last["after"].is_null());

    let (ids, back) = search(
        &sandbox,
        &json!({"cursor": {"limit": 2, "before": second["before"]}}),
    )
    .await;
    assert_eq!(ids, newest_first[..2]);
    let (ids, _) = search(
        &sandbox,
        &json!({"cursor": {"limit": 2, "before": back["before"]}}),
    )
    .await;
    assert_eq!(ids, [late]);
}

#[tokio::test]
async fn intents_are_found_by_status_and_time() {
    let sandbox = TestSandbox::start().await;
    let ids = create(&sandbox, 3).await;
    sandbox.pay(&ids[0]).await;
    sandbox
        .delete(&format!("/payment-intents/{}", ids[1]))
        .await;

    assert_eq!(search(&sandbox, &json!({})).await.0, ids);
    assert_eq!(
        search(&sandbox, &json!({"statuses": ["Captured"]})).await.0,
        ids[..1]
    );
    assert_eq!(
        search(&sandbox, &json!({"statuses": ["Canceled", "Created"]}))
            .await
            .0,
        ids[1..]
    );
    let middle = text(&sandbox.intent(&ids[1]).await["createdAt"]);
    assert_eq!(
        search(&sandbox, &json!({"startDate": middle})).await.0,
        ids[..2]
    );
    assert_eq!(
        search(&sandbox, &json!({"endDate": middle})).await.0,
        ids[1..]
    );
}

#[tokio::test]
async fn invalid_searches_are_rejected() {
    let sandbox = TestSandbox::start().await;
    for body in [
        json!({"cursor": {"before": "cur_0", "after": "cur_0"}}),
        json!({"cursor": {"after": "cur_0"}}),
        json!({"cursor": {"limit": 0}}),
        json!({"cursor": {"limit": 101}}),
        json!({"statuses": ["Lost"]}),
        json!({"startDate": "yesterday"}),
        json!({"unknown": 1}),
    ] {
        assert_eq!(
            sandbox.post("/payment-intents/search", &body).await.0,
            400,
            "{body}"
        );
    }
}

#[tokio::test]
async fn search_can_lag_behind() {
    let sandbox = TestSandbox::start().await;
    sandbox.control("search-lag", &json!({"seconds": 60})).await;
    let id = sandbox.create_simple().await;
    assert!(search(&sandbox, &json!({})).await.0.is_empty());
    assert_eq!(sandbox.intent(&id).await["status"], "Created");
    sandbox
        .control("clock", &json!({"advanceSeconds": 60}))
        .await;
    assert_eq!(search(&sandbox, &json!({})).await.0, [id]);
}
