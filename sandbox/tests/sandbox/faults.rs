//! Faults in API calls, and the record of calls.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{KEY, TestSandbox, eventually, read, send, ten_pounds, text};

async fn count_intents(sandbox: &TestSandbox) -> usize {
    sandbox
        .control_get("payment-intents")
        .await
        .as_array()
        .map_or(0, Vec::len)
}

#[tokio::test]
async fn an_error_status_replaces_the_call_or_only_its_response() {
    let sandbox = TestSandbox::start().await;
    let fault = json!({"operation": "create", "kind": "status", "status": 429, "retryAfter": 7});
    sandbox.control("faults", &fault).await;
    let request = sandbox
        .api(Method::POST, "/payment-intents")
        .json(&ten_pounds());
    let response = request.send().await.expect("a response");
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "7");
    assert_eq!(count_intents(&sandbox).await, 0);

    sandbox
        .control(
            "faults",
            &json!({"operation": "create", "kind": "statusAfter", "status": 502}),
        )
        .await;
    assert_eq!(sandbox.post("/payment-intents", &ten_pounds()).await.0, 502);
    assert_eq!(count_intents(&sandbox).await, 1);
    assert_eq!(sandbox.post("/payment-intents", &ten_pounds()).await.0, 200);
}

/// Creates an intent, which gets no response because of this kind of fault.
async fn create_without_response(sandbox: &TestSandbox, kind: &str) -> reqwest::Error {
    let fault = json!({"operation": "create", "kind": kind});
    sandbox.control("faults", &fault).await;
    let request = sandbox
        .api(Method::POST, "/payment-intents")
        .json(&ten_pounds())
        .timeout(Duration::from_millis(500));
    request.send().await.expect_err("no response")
}

#[tokio::test]
async fn a_connection_is_cut_before_or_after_the_call_takes_effect() {
    let sandbox = TestSandbox::start().await;
    for (kind, done) in [("cutBefore", 0), ("cutAfter", 1)] {
        let error = create_without_response(&sandbox, kind).await;
        assert!(error.is_request() && !error.is_timeout(), "{error:?}");
        assert_eq!(count_intents(&sandbox).await, done, "{kind}");
    }
    let requests = sandbox.control_get("requests").await;
    assert_eq!(requests[0]["answered"], "cut");
    assert_eq!(requests[1]["fault"], "cutAfter");
}

#[tokio::test]
async fn a_connection_is_silent_before_or_after_the_call_takes_effect() {
    let sandbox = TestSandbox::start().await;
    for (kind, done) in [("silentBefore", 0), ("silentAfter", 1)] {
        let error = create_without_response(&sandbox, kind).await;
        assert!(error.is_timeout(), "the connection closed: {error:?}");
        assert_eq!(count_intents(&sandbox).await, done, "{kind}");
    }
    let requests = sandbox.control_get("requests").await;
    assert_eq!(requests[0]["answered"], "silent");
    assert_eq!(requests[1]["fault"], "silentAfter");
}

#[tokio::test]
async fn a_silent_connection_does_not_keep_the_sandbox_from_stopping() {
    let sandbox = TestSandbox::start().await;
    sandbox
        .control(
            "faults",
            &json!({"operation": "create", "kind": "silentAfter"}),
        )
        .await;
    let request = sandbox
        .api(Method::POST, "/payment-intents")
        .json(&ten_pounds());
    let call = tokio::spawn(request.send());
    eventually("the call to take effect", async || {
        (count_intents(&sandbox).await == 1).then_some(())
    })
    .await;
    let start = Instant::now();
    sandbox.stop().await;
    assert!(start.elapsed() < Duration::from_secs(3));
    let error = call.await.expect("no panic").expect_err("no response");
    assert!(error.is_request(), "{error:?}");
}

#[tokio::test]
async fn headers_can_be_absurd() {
    let sandbox = TestSandbox::start().await;
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
        sandbox.control("faults", &fault).await;
        let request = sandbox.api(Method::POST, "/payment-intents");
        let response = request
            .json(&ten_pounds())
            .send()
            .await
            .expect("a response");
        assert_eq!(response.status(), 429);
        let sent = String::from_utf8_lossy(response.headers()["retry-after"].as_bytes());
        let expected = value.as_str().map_or(value.to_string(), str::to_owned);
        assert_eq!(sent, expected);
    }

    let date = "Fri, 31 Dec 9999 23:59:59 GMT";
    let fault = json!({
        "operation": "create", "kind": "headers",
        "headers": {"Date": date, "Retry-After": "-1", "X-Long": "x".repeat(8_000)},
    });
    sandbox.control("faults", &fault).await;
    let request = sandbox.api(Method::POST, "/payment-intents");
    let response = request
        .json(&ten_pounds())
        .send()
        .await
        .expect("a response");
    assert_eq!(response.status(), 200);
    let dates: Vec<_> = response.headers().get_all("date").iter().collect();
    assert_eq!(dates, [date]);
    assert_eq!(response.headers()["retry-after"], "-1");
    assert_eq!(response.headers()["x-long"].len(), 8_000);
    assert_eq!(count_intents(&sandbox).await, 1);
}

#[tokio::test]
async fn a_response_can_come_from_a_node_with_a_skewed_clock() {
    let sandbox = TestSandbox::start().await;
    let id = sandbox.create_simple().await;
    let original = sandbox.intent(&id).await;
    let path = format!("/payment-intents/{id}");
    let hour = 3_600_000;

    let fault = json!({"operation": "get", "kind": "clockSkew", "skewMs": hour});
    sandbox.control("faults", &fault).await;
    let response = sandbox
        .api(Method::GET, &path)
        .send()
        .await
        .expect("a response");
    let date = response.headers()["date"]
        .to_str()
        .expect("text")
        .to_owned();
    let (_, ahead) = read(response).await;
    let updated_at = |intent: &Value| text(&intent["updatedAt"]);
    assert!(updated_at(&ahead) > updated_at(&original), "{ahead}");
    assert_eq!(ahead["createdAt"], original["createdAt"]);
    let response = sandbox
        .api(Method::GET, &path)
        .send()
        .await
        .expect("a response");
    assert_ne!(response.headers()["date"], date.as_str());
    assert_eq!(
        read(response).await.1,
        original,
        "only one response is skewed"
    );

    let fault = json!({"operation": "search", "kind": "clockSkew", "skewMs": -hour});
    sandbox.control("faults", &fault).await;
    let (_, page) = sandbox.post("/payment-intents/search", &json!({})).await;
    assert!(
        updated_at(&page["data"][0]) < updated_at(&original),
        "{page}"
    );
}

#[tokio::test]
async fn a_response_can_show_another_intent() {
    let sandbox = TestSandbox::start().await;
    let id = sandbox.create_simple().await;
    let path = format!("/payment-intents/{id}");
    let fault = json!({"operation": "get", "kind": "otherIntent"});
    sandbox.control("faults", &fault).await;
    let (_, alone) = sandbox.get(&path).await;
    assert_ne!(alone["id"], id.as_str(), "there is no other intent");
    assert_eq!(alone["reference"], "Order 234");

    let first = sandbox.create_simple().await;
    let paid = sandbox.create_simple().await;
    sandbox.pay(&paid).await;
    sandbox.control("faults", &fault).await;
    assert_eq!(sandbox.get(&path).await, (200, sandbox.intent(&paid).await));
    let fault = json!({"operation": "create", "kind": "otherIntent", "intentId": first});
    sandbox.control("faults", &fault).await;
    assert_eq!(sandbox.create(&ten_pounds()).await["id"], first.as_str());
    assert_eq!(count_intents(&sandbox).await, 4, "the call takes effect");
    assert_eq!(sandbox.get(&path).await.1["id"], id.as_str());
}

#[tokio::test]
async fn a_response_can_go_on_without_end() {
    let sandbox = TestSandbox::start().await;
    let id = sandbox.create_simple().await;
    let fault = json!({"operation": "get", "kind": "endless"});
    sandbox.control("faults", &fault).await;
    let call = sandbox.api(Method::GET, &format!("/payment-intents/{id}"));
    let mut response = call.send().await.expect("a response");
    assert_eq!(response.status(), 200);
    let mut body = Vec::new();
    while body.len() < 10_000_000 {
        let chunk = response.chunk().await.expect("a chunk");
        body.extend_from_slice(&chunk.expect("the response has no end"));
    }
    let intent: Value = serde_json::from_slice(&body).expect("spaces follow the JSON");
    assert_eq!(intent["id"], id.as_str());
}

#[tokio::test]
async fn a_call_can_be_misrouted() {
    let sandbox = TestSandbox::start().await;
    let id = sandbox.create_simple().await;
    let other = sandbox.create_simple().await;
    sandbox.pay(&other).await;
    for (operation, method, path) in [
        ("cancel", Method::DELETE, format!("/payment-intents/{id}")),
        (
            "amount",
            Method::POST,
            format!("/payment-intents/{id}/amount"),
        ),
    ] {
        let fault = json!({"operation": operation, "kind": "misrouted"});
        sandbox.control("faults", &fault).await;
        let call = sandbox.api(method, &path).json(&json!({})).send();
        let (status, response) = read(call.await.expect("a response")).await;
        assert_eq!((status, response), (200, sandbox.intent(&other).await));
    }
    let fault = json!({"operation": "refund", "kind": "misrouted", "intentId": other});
    sandbox.control("faults", &fault).await;
    let path = format!("/payment-intents/{id}/refunds");
    let (status, response) = sandbox.post(&path, &json!({"amount": 1})).await;
    assert_eq!(status, 200);
    assert_eq!(response["paymentIntentId"], other.as_str());
    assert_eq!(
        sandbox.intent(&id).await["status"],
        "Created",
        "the call has no effect"
    );
    assert_eq!(sandbox.intent(&other).await["refundedAmount"], 0);
}

#[tokio::test]
async fn a_call_takes_effect_after_its_caller_disconnects() {
    let sandbox = TestSandbox::start().await;
    let fault = json!({"operation": "create", "kind": "latency", "latencyMs": 1000});
    sandbox.control("faults", &fault).await;
    let request = sandbox
        .api(Method::POST, "/payment-intents")
        .json(&ten_pounds());
    let call = tokio::spawn(request.send());
    eventually("the call to arrive", async || {
        (sandbox.control_get("requests").await != json!([])).then_some(())
    })
    .await;
    call.abort();
    assert!(call.await.expect_err("aborted").is_cancelled());
    eventually("the call to take effect", async || {
        (count_intents(&sandbox).await == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_response_can_be_late_after_the_call_took_effect() {
    let sandbox = TestSandbox::start().await;
    let fault = json!({"operation": "create", "kind": "latencyAfter", "latencyMs": 60000});
    sandbox.control("faults", &fault).await;
    let request = sandbox
        .api(Method::POST, "/payment-intents")
        .json(&ten_pounds());
    let call = tokio::spawn(request.send());
    eventually("the call to take effect", async || {
        (count_intents(&sandbox).await == 1).then_some(())
    })
    .await;
    assert!(!call.is_finished());
    call.abort();
}

#[tokio::test]
async fn latency_delays_the_response() {
    let sandbox = TestSandbox::start().await;
    sandbox
        .control(
            "faults",
            &json!({"operation": "any", "kind": "latency", "latencyMs": 100}),
        )
        .await;
    let start = Instant::now();
    assert_eq!(sandbox.post("/payment-intents", &ten_pounds()).await.0, 200);
    assert!(start.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn a_share_of_calls_fails_and_a_seed_repeats_which() {
    let sandbox = TestSandbox::start().await;
    let mut runs = Vec::new();
    for _ in 0..2 {
        sandbox.server.seed(42);
        let fault = json!({"operation": "search", "kind": "status", "status": 503, "share": 0.5});
        sandbox.control("faults", &fault).await;
        let mut statuses = Vec::new();
        for _ in 0..20 {
            statuses.push(sandbox.post("/payment-intents/search", &json!({})).await.0);
        }
        assert!(
            statuses.contains(&200) && statuses.contains(&503),
            "{statuses:?}"
        );
        runs.push(statuses);
        assert_eq!(sandbox.control_get("faults").await[0]["share"], 0.5);
        sandbox.control_delete("faults").await;
        assert_eq!(sandbox.control_get("faults").await, json!([]));
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn members_of_a_response_can_be_replaced() {
    let sandbox = TestSandbox::start().await;
    let fields = json!({"status": null, "id": "", "new": 1});
    let fault = json!({"operation": "create", "kind": "fields", "fields": fields});
    sandbox.control("faults", &fault).await;
    let (status, response) = sandbox.post("/payment-intents", &ten_pounds()).await;
    assert_eq!(status, 200);
    for (name, value) in fields.as_object().expect("an object") {
        assert_eq!(&response[name], value, "{name}");
    }
    assert_eq!(response["amount"], ten_pounds()["amount"]);
    assert_eq!(
        sandbox.control_get("payment-intents").await[0]["status"],
        "Created"
    );
}

#[tokio::test]
async fn an_invalid_fault_is_rejected() {
    let sandbox = TestSandbox::start().await;
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
        assert_eq!(
            sandbox.control_response("faults", &fault).await.0,
            400,
            "{fault}"
        );
    }
}

#[tokio::test]
async fn calls_are_recorded_without_their_key() {
    let sandbox = TestSandbox::start().await;
    let request = sandbox
        .api(Method::POST, "/payment-intents?trace=1")
        .json(&ten_pounds());
    send(request.header("x-mine", "here")).await;
    sandbox.get("/payment-intents/pi_1").await;
    let requests = sandbox.control_get("requests").await;
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
        sandbox
            .control_get("requests?operation=get")
            .await
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    sandbox.control_delete("requests").await;
    assert_eq!(sandbox.control_get("requests").await, json!([]));
}
