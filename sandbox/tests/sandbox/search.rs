//! Searching payment intents.

use serde_json::{Value, json};

use crate::support::{Rig, id, text};

async fn search(rig: &Rig, body: &Value) -> (Vec<String>, Value) {
    let (status, page) = rig.post("/payment-intents/search", body).await;
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

async fn create(rig: &Rig, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(rig.create_simple().await);
    }
    ids.reverse();
    ids
}

#[tokio::test]
async fn pages_go_from_new_to_old_and_back() {
    let rig = Rig::start().await;
    let newest_first = create(&rig, 5).await;

    let (ids, first) = search(&rig, &json!({"cursor": {"limit": 2}})).await;
    assert_eq!(ids, newest_first[..2]);
    assert!(first["before"].is_null());

    // What comes in between the pages does not move them.
    let late = rig.create_simple().await;
    let (ids, second) = search(
        &rig,
        &json!({"cursor": {"limit": 2, "after": first["after"]}}),
    )
    .await;
    assert_eq!(ids, newest_first[2..4]);

    let (ids, last) = search(
        &rig,
        &json!({"cursor": {"limit": 2, "after": second["after"]}}),
    )
    .await;
    assert_eq!(ids, newest_first[4..]);
    assert!(last["after"].is_null());

    let (ids, back) = search(
        &rig,
        &json!({"cursor": {"limit": 2, "before": second["before"]}}),
    )
    .await;
    assert_eq!(ids, newest_first[..2]);
    let (ids, _) = search(
        &rig,
        &json!({"cursor": {"limit": 2, "before": back["before"]}}),
    )
    .await;
    assert_eq!(ids, [late]);
}

#[tokio::test]
async fn finds_by_status_and_time() {
    let rig = Rig::start().await;
    let ids = create(&rig, 3).await;
    rig.pay(&ids[0]).await;
    rig.delete(&format!("/payment-intents/{}", ids[1])).await;

    assert_eq!(search(&rig, &json!({})).await.0, ids);
    assert_eq!(
        search(&rig, &json!({"statuses": ["Captured"]})).await.0,
        ids[..1]
    );
    assert_eq!(
        search(&rig, &json!({"statuses": ["Canceled", "Created"]}))
            .await
            .0,
        ids[1..]
    );
    let middle = text(&rig.intent(&ids[1]).await["createdAt"]);
    assert_eq!(
        search(&rig, &json!({"startDate": middle})).await.0,
        ids[..2]
    );
    assert_eq!(search(&rig, &json!({"endDate": middle})).await.0, ids[1..]);
}

#[tokio::test]
async fn refuses_what_it_cannot_mean() {
    let rig = Rig::start().await;
    for body in [
        json!({"cursor": {"before": "cur_0", "after": "cur_0"}}),
        json!({"cursor": {"after": "cur_0"}}),
        json!({"cursor": {"limit": 0}}),
        json!({"cursor": {"limit": 101}}),
        json!({"statuses": ["Lost"]}),
        json!({"startDate": "yesterday"}),
        json!({"unheard": 1}),
    ] {
        assert_eq!(
            rig.post("/payment-intents/search", &body).await.0,
            400,
            "{body}"
        );
    }
}

#[tokio::test]
async fn search_can_lag_behind() {
    let rig = Rig::start().await;
    rig.control("search-lag", &json!({"seconds": 60})).await;
    let id = rig.create_simple().await;
    assert!(search(&rig, &json!({})).await.0.is_empty());
    assert_eq!(rig.intent(&id).await["status"], "Created");
    rig.control("clock", &json!({"advanceSeconds": 60})).await;
    assert_eq!(search(&rig, &json!({})).await.0, [id]);
}
