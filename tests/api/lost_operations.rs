//! Operations whose response is lost, or during which the service is killed. Each is performed once or not at all, and its
//! outcome is found out.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    QUICK, Service, TestApp, eventually, eventually_within, for_each_case, manual, pounds, program,
    received_at, text,
};

/// An operation, and how the intent shows that it was performed.
struct Case {
    operation: &'static str,
    /// The sandbox's name for it.
    call: &'static str,
    body: Value,
    shows: (&'static str, Value),
}

fn cases() -> Vec<Case> {
    let case = |operation, call, body, at, value| Case {
        operation,
        call,
        body,
        shows: (at, value),
    };
    let part = json!({"amount": pounds(400)});
    vec![
        case(
            "cancel",
            "cancel",
            Value::Null,
            "/status",
            json!("Canceled"),
        ),
        case(
            "captures",
            "capture",
            part.clone(),
            "/captures/0/amount",
            json!(400),
        ),
        case("refunds", "refund", part, "/refundedAmount", json!(400)),
        case(
            "reversal",
            "reversal",
            Value::Null,
            "/status",
            json!("Reversed"),
        ),
        case(
            "amount",
            "amount",
            json!({"amount": pounds(1250)}),
            "/amount/value",
            json!(1250),
        ),
        case(
            "tips-amount",
            "tips",
            json!({"tipsAmount": pounds(70)}),
            "/tipsAmount/value",
            json!(70),
        ),
    ]
}

impl Case {
    /// A link that allows the operation.
    async fn link(&self, app: &TestApp) -> Value {
        match self.operation {
            "refunds" => app.paid().await,
            "captures" | "reversal" => app.authorized().await,
            _ => app.create(&manual("Order 1")).await.expect(201).json(),
        }
    }

    /// The field of the intent that the operation changes.
    async fn shown(&self, app: &TestApp, link: &Value) -> Value {
        let intent = app.sandbox.intent(&link["paymentIntentId"]).await;
        intent.pointer(self.shows.0).cloned().unwrap_or_default()
    }

    /// Waits until the operation has succeeded, and checks that it was performed once.
    async fn succeeds_once(&self, app: &TestApp, link: &Value) {
        let answer = app
            .operation_outcome("a", link, self.operation, &self.body)
            .await
            .expect(200);
        assert_eq!(answer.header("idempotent-replayed"), "true");
        assert_eq!(
            self.shown(app, link).await,
            self.shows.1,
            "{}",
            self.operation
        );
        let intent = app.sandbox.intent(&link["paymentIntentId"]).await;
        assert!(
            intent["captures"]
                .as_array()
                .is_none_or(|captures| captures.len() <= 1)
        );
        let [operation] = &app.operations(link).await[..] else {
            panic!("there is one operation");
        };
        assert_eq!(operation["status"], "Succeeded");
        assert_eq!(operation["id"], answer.header("operation-id"));
        app.in_step_with_dojo().await;
        let entries = app.operation_entries(link).await;
        let succeeded = entries.iter().filter(|kind| *kind == "operationSucceeded");
        assert_eq!(succeeded.count(), 1, "{entries:?}");
    }
}

#[tokio::test]
async fn an_operation_whose_response_was_lost_is_found_to_have_succeeded() {
    for_each_case(&cases(), &[], async |app, case| {
        let link = case.link(&app).await;
        app.sandbox.next(case.call, "cutAfter", json!({})).await;
        let problem = app
            .operate_with_key("a", &link, case.operation, &case.body)
            .await;
        let problem = problem.problem(504, "outcome-unknown");
        assert_eq!(problem["paymentLinkId"], link["id"]);
        assert!(text(&problem["operationId"]).starts_with("op_"));
        case.succeeds_once(&app, &link).await;
        // An operation that is visible at Dojo is not repeated. A refund is found by its key only. The link may have the new
        // tip already, if it was reconciled meanwhile, and then the tip proves nothing.
        let calls = app.sandbox.requests(case.call).await;
        let most = 1 + usize::from(matches!(case.call, "refund" | "tips"));
        assert!(calls.len() <= most, "{calls:?}");
        assert!(
            calls
                .iter()
                .all(|call| call["headers"]["idempotencykey"]
                    == calls[0]["headers"]["idempotencykey"])
        );
    })
    .await;
}

#[tokio::test]
async fn an_operation_that_was_not_performed_is_repeated_unless_it_is_a_capture() {
    for_each_case(&cases(), &[], async |app, case| {
        let link = case.link(&app).await;
        app.sandbox.next(case.call, "cutBefore", json!({})).await;
        app.operate_with_key("a", &link, case.operation, &case.body)
            .await
            .problem(504, "outcome-unknown");
        if case.call != "capture" {
            case.succeeds_once(&app, &link).await;
            return;
        }
        // A capture is not repeated. It fails, and can be requested again with a new key.
        let answer = app
            .operation_outcome("a", &link, case.operation, &case.body)
            .await;
        answer.problem(409, "not-done");
        assert_eq!(app.sandbox.requests("capture").await.len(), 1);
        assert_eq!(case.shown(&app, &link).await, Value::Null);
        app.operate_with_key("b", &link, case.operation, &case.body)
            .await
            .expect(200);
        assert_eq!(case.shown(&app, &link).await, case.shows.1);
    })
    .await;
}

#[tokio::test]
async fn the_outcome_is_found_after_a_kill_before_it_was_stored() {
    for_each_case(&cases(), &[], async |mut app, case| {
        let link = case.link(&app).await;
        app.sandbox
            .next(case.call, "latencyAfter", json!({"latencyMs": 1500}))
            .await;
        {
            let request = app.try_to_operate("a", &link, case.operation, &case.body);
            let done = eventually("Dojo has performed the operation", async || {
                (case.shown(&app, &link).await == case.shows.1).then_some(())
            });
            tokio::select! {
                answer = request => panic!("the service should have died before: {answer:?}"),
                () = done => {}
            }
        }
        app.service.kill().await;
        app.restart().await;
        let again = app.operate_with_key("a", &link, case.operation, &case.body);
        let again = again.await;
        // On a busy machine, the outcome may be known by the time that the service has started again.
        if again.status.is_success() {
            assert_eq!(
                again.header("idempotent-replayed"),
                "true",
                "{}",
                again.text
            );
        } else {
            again.problem(409, "request-in-progress");
        }
        case.succeeds_once(&app, &link).await;
        // Reconciliation may have read the new amount before the operation was known to have succeeded. It is not a mismatch.
        let timeline = app.timeline(&link["id"]).await;
        assert!(
            timeline
                .iter()
                .all(|entry| entry["type"] != "amountMismatch"),
            "{timeline:?}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_capture_is_not_sent_after_a_kill_before_it_was_sent_and_its_key_is_free() {
    let mut app = TestApp::quick(&[("RUN_JOBS", "false")]).await;
    let link = app.authorized().await;
    let part = json!({"amount": pounds(400)});
    let before = app.sandbox.requests("get").await.len();
    app.sandbox
        .next("get", "latency", json!({"latencyMs": 1500}))
        .await;
    {
        let request = app.try_to_operate("a", &link, "captures", &part);
        let reached = eventually("the service has read the payment", async || {
            (app.sandbox.requests("get").await.len() > before).then_some(())
        });
        tokio::select! {
            answer = request => panic!("the service should have died before: {answer:?}"),
            () = reached => {}
        }
    }
    app.service.kill().await;
    app.restart().await;
    // With background jobs only now. Before, they would also have read the payment.
    let _replica = Service::start(&app.database_url, &app.sandbox.url, &QUICK).await;
    eventually("the capture has failed", async || {
        (app.operations(&link).await[0]["status"] == "Failed").then_some(())
    })
    .await;
    assert!(app.sandbox.requests("capture").await.is_empty());
    app.operate_with_key("a", &link, "captures", &part)
        .await
        .expect(200);
    assert_eq!(app.sandbox.requests("capture").await.len(), 1);
}

#[tokio::test]
async fn a_receipt_whose_response_was_lost_is_not_sent_again() {
    let app = TestApp::quick(&[]).await;
    let link = app.paid().await;
    app.sandbox.next("receipt", "cutAfter", json!({})).await;
    let body = json!({"emails": ["mari@example.com"]});
    app.operate_with_key("a", &link, "receipt", &body)
        .await
        .problem(504, "outcome-unknown");
    let answer = app.operation_outcome("a", &link, "receipt", &body).await;
    answer.problem(409, "outcome-unconfirmed");
    assert_eq!(app.sandbox.requests("receipt").await.len(), 1);
    assert_eq!(app.operations(&link).await[0]["status"], "Unconfirmed");
    assert_eq!(
        app.operation_entries(&link).await,
        [
            "operationRequested",
            "operationResponseLost",
            "operationUnconfirmed"
        ]
    );
}

#[tokio::test]
async fn a_refund_that_may_have_been_made_is_unconfirmed_and_stays_reserved() {
    let app = TestApp::quick(&[]).await;
    let link = app.paid().await;
    let part = json!({"amount": pounds(400)});
    app.sandbox.next("refund", "cutAfter", json!({})).await;
    // Dojo has forgotten the key, or does not honor it: each repetition is rejected.
    let rejecting = json!({"operation": "refund", "kind": "status", "status": 400, "share": 1.0});
    app.sandbox.control("faults", rejecting).await;
    app.operate_with_key("a", &link, "refunds", &part)
        .await
        .problem(504, "outcome-unknown");
    let answer = app.operation_outcome("a", &link, "refunds", &part).await;
    answer.problem(409, "outcome-unconfirmed");
    app.logged("the outcome of an operation cannot be determined")
        .await;

    app.sandbox.clear("faults").await;
    // For one settlement window, what Dojo shows may be a refund made elsewhere.
    let rest = app
        .operation_outcome("b", &link, "refunds", &json!({}))
        .await
        .expect(200);
    assert_eq!(rest.json()["refundedAmount"]["value"], 1000);
    assert_eq!(
        app.operations(&link).await[1]["request"]["amount"],
        pounds(600)
    );
}

#[tokio::test]
async fn an_unconfirmed_operation_is_settled_by_a_person() {
    let app = TestApp::quick(&[]).await;
    let settle = |arguments: &[&str]| {
        program()
            .arg("operations")
            .args(arguments)
            .env("DATABASE_URL", &app.database_url)
            .output()
            .unwrap()
    };
    let emails = json!({"emails": ["mari@example.com"]});
    for (found, status) in [("done", "Succeeded"), ("not-done", "Failed")] {
        let link = app.paid().await;
        app.sandbox.next("receipt", "cutAfter", json!({})).await;
        app.operate_with_key(found, &link, "receipt", &emails)
            .await
            .problem(504, "outcome-unknown");
        app.operation_outcome(found, &link, "receipt", &emails)
            .await
            .problem(409, "outcome-unconfirmed");
        let operation = app.operations(&link).await[0].clone();
        let id = text(&operation["id"]);
        let listed = String::from_utf8(settle(&["unconfirmed"]).stdout).unwrap();
        let intent = text(&link["paymentIntentId"]);
        assert!(listed.contains(id) && listed.contains(intent), "{listed}");
        assert!(!listed.contains("mari@"), "{listed}");

        let settled = settle(&["settle", "--id", id, "--outcome", found]);
        assert!(settled.status.success(), "{settled:?}");
        let words = format!("{id} is recorded as {}.\n", found.replace('-', " "));
        let said = String::from_utf8(settled.stderr).unwrap();
        assert!(said.ends_with(&words), "{said}");
        assert_eq!(app.operations(&link).await[0]["status"], status);
        let timeline = app.timeline(&link["id"]).await;
        assert_eq!(timeline.last().unwrap()["cause"]["type"], "operator");
        // It can be settled only once.
        let again = settle(&["settle", "--id", id, "--outcome", found]);
        assert!(!again.status.success());
        assert!(settle(&["unconfirmed"]).stdout.is_empty());
        let answer = app
            .operation_outcome(found, &link, "receipt", &emails)
            .await;
        if found == "done" {
            answer.expect(200);
        } else {
            answer.problem(409, "not-done");
        }
    }
    assert_eq!(app.sandbox.requests("receipt").await.len(), 2);
}

#[tokio::test]
async fn a_lost_refund_that_is_not_visible_and_is_then_rejected_has_failed() {
    let app = TestApp::quick(&[]).await;
    let link = app.paid().await;
    app.sandbox.next("refund", "cutBefore", json!({})).await;
    let rejecting = json!({"operation": "refund", "kind": "status", "status": 400, "share": 1.0});
    app.sandbox.control("faults", rejecting).await;
    app.operate_with_key("a", &link, "refunds", &json!({}))
        .await
        .problem(504, "outcome-unknown");
    let answer = app
        .operation_outcome("a", &link, "refunds", &json!({}))
        .await;
    answer.problem(409, "rejected-by-dojo");
    app.sandbox.clear("faults").await;
    app.operate_with_key("b", &link, "refunds", &json!({}))
        .await
        .expect(200);
    assert_eq!(
        app.sandbox.intent(&link["paymentIntentId"]).await["refundedAmount"],
        1000
    );
}

#[tokio::test]
async fn a_reversal_under_way_has_not_failed_although_its_repetition_is_rejected() {
    let app = TestApp::quick(&[("DOJO_TIMEOUT", "1s"), ("RECOVERY_SETTLE", "5s")]).await;
    let link = app.authorized().await;
    // The first is performed long after its caller has stopped waiting. The second is rejected before that.
    app.sandbox
        .next("reversal", "latency", json!({"latencyMs": 4000}))
        .await;
    app.sandbox
        .next("reversal", "status", json!({"status": 409}))
        .await;
    app.operate_with_key("a", &link, "reversal", &json!({}))
        .await
        .problem(504, "outcome-unknown");
    // Any repetition that got through would perform the reversal, so all of them are rejected.
    let rejecting = json!({"operation": "reversal", "kind": "status", "status": 409, "share": 1.0});
    app.sandbox.control("faults", rejecting).await;
    let answer = app
        .operation_outcome("a", &link, "reversal", &json!({}))
        .await
        .expect(200);
    assert_eq!(answer.header("idempotent-replayed"), "true");
    assert!(app.sandbox.requests("reversal").await.len() > 1);
    assert_eq!(
        app.link_with_status(&link["id"], "Reversed").await["capturedAmount"]["value"],
        0
    );
}

#[tokio::test]
async fn a_lost_refund_is_repeated_with_pauses_and_recorded_once() {
    let app = TestApp::quick(&[]).await;
    let link = app.paid().await;
    let failing =
        json!({"operation": "refund", "kind": "statusAfter", "status": 500, "share": 1.0});
    app.sandbox.control("faults", failing).await;
    app.operate_with_key("a", &link, "refunds", &json!({}))
        .await
        .problem(504, "outcome-unknown");
    eventually_within(
        Duration::from_secs(30),
        "the refund is sent again and again",
        async || (app.sandbox.requests("refund").await.len() >= 5).then_some(()),
    )
    .await;
    let calls = app.sandbox.requests("refund").await;
    for two in calls.windows(2) {
        let pause = received_at(&two[1]) - received_at(&two[0]);
        assert!(pause >= Duration::from_secs(1), "{pause}");
    }
    assert_eq!(
        app.operation_entries(&link).await,
        ["operationRequested", "operationResponseLost"]
    );
    // The gauge counts the refund although it is not due at the moment.
    eventually("the gauge counts the refund", async || {
        let waiting = app.metric("backlog_operations{account=\"default\"}").await;
        (waiting > 0.0).then_some(())
    })
    .await;
    app.sandbox.clear("faults").await;
    app.operation_outcome("a", &link, "refunds", &json!({}))
        .await
        .expect(200);
    assert_eq!(
        app.sandbox.intent(&link["paymentIntentId"]).await["refundedAmount"],
        1000
    );
}

#[tokio::test]
async fn a_failed_capture_is_not_mistaken_for_a_later_one() {
    let app = TestApp::quick(&[("DOJO_TIMEOUT", "6s"), ("RECOVERY_SETTLE", "1s")]).await;
    let link = app.authorized().await;
    let part = json!({"amount": pounds(300)});
    app.sandbox.next("capture", "cutBefore", json!({})).await;
    app.operate_with_key("a", &link, "captures", &part)
        .await
        .problem(504, "outcome-unknown");
    app.operation_outcome("a", &link, "captures", &part)
        .await
        .problem(409, "not-done");
    // Performed at once. The response arrives after the first capture was checked once more.
    app.sandbox
        .next("capture", "latencyAfter", json!({"latencyMs": 4500}))
        .await;
    app.operate_with_key("b", &link, "captures", &part)
        .await
        .expect(200);
    eventually_within(
        Duration::from_secs(30),
        "the first capture is no longer checked",
        async || {
            let due: i64 =
                sqlx::query_scalar("SELECT count(*) FROM operations WHERE due_at IS NOT NULL")
                    .fetch_one(&app.pool)
                    .await
                    .unwrap();
            (due == 0).then_some(())
        },
    )
    .await;
    let operations = app.operations(&link).await;
    let statuses: Vec<_> = operations.iter().map(|one| text(&one["status"])).collect();
    assert_eq!(statuses, ["Failed", "Succeeded"]);
    let intent = app.sandbox.intent(&link["paymentIntentId"]).await;
    assert_eq!(intent["captures"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_receipt_is_not_sent_again_after_a_kill() {
    let mut app = TestApp::quick(&[]).await;
    let link = app.paid().await;
    let body = json!({"emails": ["mari@example.com"]});
    app.sandbox
        .next("receipt", "latencyAfter", json!({"latencyMs": 1500}))
        .await;
    {
        let request = app.try_to_operate("a", &link, "receipt", &body);
        let sent = eventually("the receipt is sent", async || {
            (!app.sandbox.requests("receipt").await.is_empty()).then_some(())
        });
        tokio::select! {
            answer = request => panic!("the service should have died before: {answer:?}"),
            () = sent => {}
        }
    }
    app.service.kill().await;
    app.restart().await;
    let answer = app.operation_outcome("a", &link, "receipt", &body).await;
    answer.problem(409, "outcome-unconfirmed");
    assert_eq!(app.sandbox.requests("receipt").await.len(), 1);
}

#[tokio::test]
async fn a_409_for_a_refund_proves_nothing_because_its_first_attempt_may_be_under_way() {
    let app = TestApp::quick(&[]).await;
    let link = app.paid().await;
    let conflict = json!({"operation": "refund", "kind": "status", "status": 409, "share": 1.0});
    app.sandbox.control("faults", conflict).await;
    app.operate_with_key("a", &link, "refunds", &json!({}))
        .await
        .problem(504, "outcome-unknown");
    let answer = app
        .operation_outcome("a", &link, "refunds", &json!({}))
        .await;
    answer.problem(409, "outcome-unconfirmed");
    assert!(app.sandbox.requests("refund").await.len() > 1);
}

#[tokio::test]
async fn an_operation_that_dojo_never_performs_fails_in_the_end() {
    let settings = [("RECOVERY_GIVE_UP", "3s"), ("RECOVERY_SETTLE", "1s")];
    let cases = [("cancel", "cancel"), ("refunds", "refund")];
    for_each_case(&cases, &settings, async |app, (operation, call)| {
        let link = if *call == "cancel" {
            app.created().await
        } else {
            app.paid().await
        };
        let cut = json!({"operation": call, "kind": "cutBefore", "share": 1.0});
        app.sandbox.control("faults", cut).await;
        app.operate_with_key("a", &link, operation, &json!({}))
            .await
            .problem(504, "outcome-unknown");
        let answer = app
            .operation_outcome("a", &link, operation, &json!({}))
            .await;
        answer.problem(409, "not-done");
        let sent = app.sandbox.requests(call).await.len();
        assert!(sent > 1, "sent {sent} times");
        app.sandbox.clear("faults").await;
        app.in_step_with_dojo().await;
        assert_eq!(app.sandbox.requests(call).await.len(), sent);
    })
    .await;
}

#[tokio::test]
async fn while_a_refund_is_lost_its_amount_stays_reserved() {
    let app = TestApp::quick(&[]).await;
    let link = app.paid().await;
    app.sandbox
        .control(
            "faults",
            json!({"operation": "refund", "kind": "cutBefore", "share": 1.0}),
        )
        .await;
    let part = json!({"amount": pounds(800)});
    app.operate_with_key("a", &link, "refunds", &part)
        .await
        .problem(504, "outcome-unknown");
    let problem = app
        .operate_with_key("b", &link, "refunds", &json!({"amount": pounds(201)}))
        .await
        .problem(409, "not-possible");
    assert_eq!(problem["detail"], "only 2.00 GBP is left to refund");
    app.operate_with_key("c", &link, "reversal", &Value::Null)
        .await
        .problem(409, "operation-in-progress");
    app.sandbox.clear("faults").await;
    app.operation_outcome("a", &link, "refunds", &part)
        .await
        .expect(200);
    assert_eq!(
        app.sandbox.intent(&link["paymentIntentId"]).await["refundedAmount"],
        800
    );
}

#[tokio::test]
async fn a_capture_that_appears_after_it_failed_is_recorded() {
    let app = TestApp::quick(&[("DOJO_TIMEOUT", "500ms"), ("RECOVERY_SETTLE", "1s")]).await;
    let link = app.authorized().await;
    app.sandbox
        .next("capture", "latency", json!({"latencyMs": 4500}))
        .await;
    let part = json!({"amount": pounds(400)});
    app.operate_with_key("a", &link, "captures", &part)
        .await
        .problem(504, "outcome-unknown");
    app.operation_outcome("a", &link, "captures", &part)
        .await
        .problem(409, "not-done");
    eventually_within(
        Duration::from_secs(30),
        "the capture has succeeded after all",
        async || (app.operations(&link).await[0]["status"] == "Succeeded").then_some(()),
    )
    .await;
    assert_eq!(
        app.operation_entries(&link).await,
        [
            "operationRequested",
            "operationResponseLost",
            "operationFailed",
            "operationSucceeded"
        ]
    );
    let link = app.read_until_confirmed(&link["id"]).await;
    assert_eq!(
        (&link["status"], &link["capturedAmount"]["value"]),
        (&json!("Captured"), &json!(400))
    );
}

#[tokio::test]
async fn two_replicas_recover_a_lost_refund_once() {
    let app = TestApp::quick(&[]).await;
    let _replica = Service::start(&app.database_url, &app.sandbox.url, &QUICK).await;
    let link = app.paid().await;
    let part = json!({"amount": pounds(100)});
    app.sandbox
        .control(
            "faults",
            json!({"operation": "refund", "kind": "cutAfter", "count": 5}),
        )
        .await;
    for n in 0..5 {
        // The fault may hit the repetition of an earlier refund instead.
        let answer = app
            .operate_with_key(&n.to_string(), &link, "refunds", &part)
            .await;
        assert!(
            matches!(answer.status.as_u16(), 200 | 504),
            "{}",
            answer.text
        );
    }
    for n in 0..5 {
        app.operation_outcome(&n.to_string(), &link, "refunds", &part)
            .await
            .expect(200);
    }
    assert_eq!(
        app.sandbox.intent(&link["paymentIntentId"]).await["refundedAmount"],
        500
    );
    let succeeded = app.operation_entries(&link).await;
    let succeeded = succeeded
        .iter()
        .filter(|kind| *kind == "operationSucceeded")
        .count();
    assert_eq!(succeeded, 5);
}
