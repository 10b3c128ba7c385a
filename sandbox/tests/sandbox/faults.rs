//! Faults of API calls, and the record of calls.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{KEY, Rig, answer, eventually, read, ten_pounds, text};

async fn intents(rig: &Rig) -> usize {
    rig.look("payment-intents")
        .await
        .as_array()
        .map_or(0, Vec::len)
}

#[tokio::test]
async fn a_status_comes_instead_of_the_work_or_after_it() {
    let rig = Rig::start().await;
    let fault = json!({"operation": "create", "kind": "status", "status": 429, "retryAfter": 7});
    rig.control("faults", &fault).await;
    let request = rig
        .api(Method::POST, "/payment-intents")
        .json(&ten_pounds());
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "7");
    assert_eq!(intents(&rig).await, 0);

    rig.control(
        "faults",
        &json!({"operation": "create", "kind": "statusAfter", "status": 502}),
    )
    .await;
    assert_eq!(rig.post("/payment-intents", &ten_pounds()).await.0, 502);
    assert_eq!(intents(&rig).await, 1);
    assert_eq!(rig.post("/payment-intents", &ten_pounds()).await.0, 200);
}

#[tokio::test]
async fn a_connection_is_cut_before_the_work_or_after_it() {
    let rig = Rig::start().await;
    for (kind, done) in [("cutBefore", 0), ("cutAfter", 1)] {
        rig.control("faults", &json!({"operation": "create", "kind": kind}))
            .await;
        let request = rig
            .api(Method::POST, "/payment-intents")
            .json(&ten_pounds());
        let error = request.send().await.expect_err("no answer at all");
        assert!(error.is_request(), "{error:?}");
        assert_eq!(intents(&rig).await, done, "{kind}");
    }
    let requests = rig.look("requests").await;
    assert_eq!(requests[0]["answered"], "cut");
    assert_eq!(requests[1]["fault"], "cutAfter");
}

#[tokio::test]
async fn a_connection_stays_silent_before_the_work_or_after_it() {
    let rig = Rig::start().await;
    for (kind, done) in [("silentBefore", 0), ("silentAfter", 1)] {
        rig.control("faults", &json!({"operation": "create", "kind": kind}))
            .await;
        let request = rig
            .api(Method::POST, "/payment-intents")
            .json(&ten_pounds())
            .timeout(Duration::from_millis(500));
        let error = request.send().await.expect_err("no answer at all");
        assert!(error.is_timeout(), "not closed, but silent: {error:?}");
        assert_eq!(intents(&rig).await, done, "{kind}");
    }
    let requests = rig.look("requests").await;
    assert_eq!(requests[0]["answered"], "silent");
    assert_eq!(requests[1]["fault"], "silentAfter");
}

#[tokio::test]
async fn a_silent_connection_does_not_keep_the_sandbox_from_stopping() {
    let rig = Rig::start().await;
    rig.control(
        "faults",
        &json!({"operation": "create", "kind": "silentAfter"}),
    )
    .await;
    let request = rig
        .api(Method::POST, "/payment-intents")
        .json(&ten_pounds());
    let call = tokio::spawn(request.send());
    eventually("the work", async || {
        (intents(&rig).await == 1).then_some(())
    })
    .await;
    let start = Instant::now();
    rig.stop().await;
    assert!(start.elapsed() < Duration::from_secs(3));
    let error = call.await.expect("no panic").expect_err("no answer");
    assert!(error.is_request(), "{error:?}");
}

#[tokio::test]
async fn headers_can_be_absurd() {
    let rig = Rig::start().await;
    for value in [
        json!(u64::MAX),
        json!("18446744073709551616"),
        json!("Fri, 31 Dec 9999 23:59:59 GMT"),
        json!("soon \u{20ac}"),
        json!(""),
    ] {
        let fault = json!({
            "operation": "create", "kind": "status", "status": 429, "retryAfter": value,
        });
        rig.control("faults", &fault).await;
        let request = rig.api(Method::POST, "/payment-intents");
        let response = request.json(&ten_pounds()).send().await.expect("an answer");
        assert_eq!(response.status(), 429);
        let told = String::from_utf8_lossy(response.headers()["retry-after"].as_bytes());
        let plain = value.as_str().map_or(value.to_string(), str::to_owned);
        assert_eq!(told, plain);
    }

    let date = "Fri, 31 Dec 9999 23:59:59 GMT";
    let fault = json!({
        "operation": "create", "kind": "headers",
        "headers": {"Date": date, "Retry-After": "-1", "X-Long": "x".repeat(8_000)},
    });
    rig.control("faults", &fault).await;
    let request = rig.api(Method::POST, "/payment-intents");
    let response = request.json(&ten_pounds()).send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    let dates: Vec<_> = response.headers().get_all("date").iter().collect();
    assert_eq!(dates, [date]);
    assert_eq!(response.headers()["retry-after"], "-1");
    assert_eq!(response.headers()["x-long"].len(), 8_000);
    assert_eq!(intents(&rig).await, 1);
}

#[tokio::test]
async fn a_nodes_clock_can_run_ahead() {
    let rig = Rig::start().await;
    let id = rig.create_simple().await;
    let right = rig.intent(&id).await;
    let path = format!("/payment-intents/{id}");
    let hour = 3_600_000;

    let fault = json!({"operation": "get", "kind": "clockSkew", "skewMs": hour});
    rig.control("faults", &fault).await;
    let response = rig.api(Method::GET, &path).send().await.expect("an answer");
    let date = response.headers()["date"]
        .to_str()
        .expect("text")
        .to_owned();
    let (_, ahead) = read(response).await;
    let told = |intent: &Value| text(&intent["updatedAt"]);
    assert!(told(&ahead) > told(&right), "{ahead}");
    assert_eq!(ahead["createdAt"], right["createdAt"]);
    let response = rig.api(Method::GET, &path).send().await.expect("an answer");
    assert_ne!(response.headers()["date"], date.as_str());
    assert_eq!(read(response).await.1, right, "the other nodes are right");

    let fault = json!({"operation": "search", "kind": "clockSkew", "skewMs": -hour});
    rig.control("faults", &fault).await;
    let (_, page) = rig.post("/payment-intents/search", &json!({})).await;
    assert!(told(&page["data"][0]) < told(&right), "{page}");
}

#[tokio::test]
async fn an_answer_can_be_about_another_intent() {
    let rig = Rig::start().await;
    let id = rig.create_simple().await;
    let path = format!("/payment-intents/{id}");
    let fault = json!({"operation": "get", "kind": "otherIntent"});
    rig.control("faults", &fault).await;
    let (_, alone) = rig.get(&path).await;
    assert_ne!(alone["id"], id.as_str(), "there is none to mistake it for");
    assert_eq!(alone["reference"], "Order 234");

    let first = rig.create_simple().await;
    let paid = rig.create_simple().await;
    rig.pay(&paid).await;
    rig.control("faults", &fault).await;
    assert_eq!(rig.get(&path).await, (200, rig.intent(&paid).await));
    let fault = json!({"operation": "create", "kind": "otherIntent", "intentId": first});
    rig.control("faults", &fault).await;
    assert_eq!(rig.create(&ten_pounds()).await["id"], first.as_str());
    assert_eq!(intents(&rig).await, 4, "it was created all the same");
    assert_eq!(rig.get(&path).await.1["id"], id.as_str());
}

#[tokio::test]
async fn a_call_can_be_misrouted() {
    let rig = Rig::start().await;
    let id = rig.create_simple().await;
    let other = rig.create_simple().await;
    rig.pay(&other).await;
    for (operation, method, path) in [
        ("cancel", Method::DELETE, format!("/payment-intents/{id}")),
        (
            "amount",
            Method::POST,
            format!("/payment-intents/{id}/amount"),
        ),
    ] {
        let fault = json!({"operation": operation, "kind": "misrouted"});
        rig.control("faults", &fault).await;
        let call = rig.api(method, &path).json(&json!({})).send();
        let (status, answer) = read(call.await.expect("an answer")).await;
        assert_eq!((status, answer), (200, rig.intent(&other).await));
    }
    let fault = json!({"operation": "refund", "kind": "misrouted", "intentId": other});
    rig.control("faults", &fault).await;
    let path = format!("/payment-intents/{id}/refunds");
    let (status, answer) = rig.post(&path, &json!({"amount": 1})).await;
    assert_eq!(status, 200);
    assert_eq!(answer["paymentIntentId"], other.as_str());
    assert_eq!(
        rig.intent(&id).await["status"],
        "Created",
        "no work was done"
    );
    assert_eq!(rig.intent(&other).await["refundedAmount"], 0);
}

#[tokio::test]
async fn the_work_is_done_even_if_the_caller_does_not_wait_for_it() {
    let rig = Rig::start().await;
    let fault = json!({"operation": "create", "kind": "latency", "latencyMs": 1000});
    rig.control("faults", &fault).await;
    let request = rig
        .api(Method::POST, "/payment-intents")
        .json(&ten_pounds());
    let call = tokio::spawn(request.send());
    eventually("the call", async || {
        (rig.look("requests").await != json!([])).then_some(())
    })
    .await;
    call.abort();
    assert!(call.await.expect_err("no patience").is_cancelled());
    eventually("the work", async || {
        (intents(&rig).await == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_answer_can_be_late_though_the_work_is_done() {
    let rig = Rig::start().await;
    let fault = json!({"operation": "create", "kind": "latencyAfter", "latencyMs": 60000});
    rig.control("faults", &fault).await;
    let request = rig
        .api(Method::POST, "/payment-intents")
        .json(&ten_pounds());
    let call = tokio::spawn(request.send());
    eventually("the work", async || {
        (intents(&rig).await == 1).then_some(())
    })
    .await;
    assert!(!call.is_finished());
    call.abort();
}

#[tokio::test]
async fn latency_delays_the_answer() {
    let rig = Rig::start().await;
    rig.control(
        "faults",
        &json!({"operation": "any", "kind": "latency", "latencyMs": 100}),
    )
    .await;
    let start = Instant::now();
    assert_eq!(rig.post("/payment-intents", &ten_pounds()).await.0, 200);
    assert!(start.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn a_share_of_calls_fails_until_cleared_and_a_seed_repeats_which() {
    let rig = Rig::start().await;
    let mut runs = Vec::new();
    for _ in 0..2 {
        rig.sandbox.seed(42);
        let fault = json!({"operation": "search", "kind": "status", "status": 503, "share": 0.5});
        rig.control("faults", &fault).await;
        let mut statuses = Vec::new();
        for _ in 0..20 {
            statuses.push(rig.post("/payment-intents/search", &json!({})).await.0);
        }
        assert!(
            statuses.contains(&200) && statuses.contains(&503),
            "{statuses:?}"
        );
        runs.push(statuses);
        assert_eq!(rig.look("faults").await[0]["share"], 0.5);
        rig.clear("faults").await;
        assert_eq!(rig.look("faults").await, json!([]));
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn fields_of_an_answer_are_replaced_and_the_work_is_done() {
    let rig = Rig::start().await;
    let fields = json!({"status": null, "id": "", "new": 1});
    let fault = json!({"operation": "create", "kind": "fields", "fields": fields});
    rig.control("faults", &fault).await;
    let (status, told) = rig.post("/payment-intents", &ten_pounds()).await;
    assert_eq!(status, 200);
    for (name, value) in fields.as_object().expect("an object") {
        assert_eq!(&told[name], value, "{name}");
    }
    assert_eq!(told["amount"], ten_pounds()["amount"]);
    assert_eq!(rig.look("payment-intents").await[0]["status"], "Created");
}

#[tokio::test]
async fn a_fault_that_makes_no_sense_is_refused() {
    let rig = Rig::start().await;
    for fault in [
        json!({"operation": "create", "kind": "status"}),
        json!({"operation": "create", "kind": "status", "status": 200}),
        json!({"operation": "create", "kind": "latency"}),
        json!({"operation": "bake", "kind": "cutAfter"}),
        json!({"operation": "create", "kind": "cutAfter", "cuont": 1}),
        json!({"operation": "create", "kind": "cutAfter", "share": -1}),
        json!({"operation": "get", "kind": "clockSkew"}),
        json!({"operation": "get", "kind": "headers"}),
        json!({"operation": "get", "kind": "fields"}),
        json!({"operation": "get", "kind": "headers", "headers": {"content-length": "1"}}),
        json!({"operation": "get", "kind": "headers", "headers": {"a b": "1"}}),
        json!({"operation": "get", "kind": "status", "status": 429, "retryAfter": "a\nb"}),
    ] {
        assert_eq!(rig.try_control("faults", &fault).await.0, 400, "{fault}");
    }
}

#[tokio::test]
async fn calls_are_recorded_without_the_key() {
    let rig = Rig::start().await;
    let request = rig
        .api(Method::POST, "/payment-intents?trace=1")
        .json(&ten_pounds());
    answer(request.header("x-mine", "here")).await;
    rig.get("/payment-intents/pi_1").await;
    let requests = rig.look("requests").await;
    assert_eq!(requests.as_array().map(Vec::len), Some(2));
    let create = &requests[0];
    assert_eq!(create["method"], "POST");
    assert_eq!(create["path"], "/payment-intents");
    assert_eq!(create["query"], "trace=1");
    assert_eq!(create["operation"], "create");
    assert_eq!(create["headers"]["x-mine"], "here");
    assert_eq!(create["headers"]["version"], "2026-02-27");
    assert_eq!(create["body"], ten_pounds());
    assert_eq!(create["answered"], 200);
    assert_eq!(requests[1]["body"], Value::Null);
    assert_eq!(requests[1]["answered"], 404);
    assert!(!requests.to_string().contains(KEY));

    assert_eq!(
        rig.look("requests?operation=get")
            .await
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    rig.clear("requests").await;
    assert_eq!(rig.look("requests").await, json!([]));
}
