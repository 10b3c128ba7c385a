//! The books: that each capture, refund and reversal is booked once, and that they add up to what Dojo reports.

use std::process::Command;

use reqwest::{Method, header::ACCEPT};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, types::time::Date};

use crate::{
    commands::{create_limited_key, error_of, output_of},
    support::{
        Answer, TestApp, empty_database, eventually, manual, pounds, program, send, ten_pounds,
        text,
    },
};

impl TestApp {
    async fn movements(&self, query: &str) -> Vec<Value> {
        let page = self.get(&format!("/v1/movements{query}")).await;
        let page = page.expect(200).json();
        page["data"].as_array().unwrap().clone()
    }

    /// The movements of a link, once there are this many.
    pub async fn booked(&self, link: &Value, count: usize) -> Vec<Value> {
        let query = format!("?paymentLinkId={}", text(&link["id"]));
        let booked = eventually(&format!("{count} movements are booked"), async || {
            let movements = self.movements(&query).await;
            (movements.len() >= count).then_some(movements)
        })
        .await;
        assert_eq!(booked.len(), count, "{booked:#?}");
        booked
    }

    async fn as_csv(&self, query: &str) -> Answer {
        let request = self.request(Method::GET, &format!("/v1/movements{query}"));
        send(request.header(ACCEPT, "text/csv")).await.expect(200)
    }
}

/// The types and the net amounts of movements.
fn lines(movements: &[Value]) -> Vec<(&str, i64)> {
    movements
        .iter()
        .map(|it| (text(&it["type"]), it["net"]["value"].as_i64().unwrap()))
        .collect()
}

#[tokio::test]
async fn a_payment_and_its_refunds_are_booked_with_who_did_what_and_when() {
    let app = TestApp::quick(&[]).await;
    let mut body = ten_pounds("Order 236");
    body["metadata"] = json!({"costCentre": "4711", "secret": "unasked"});
    let link = app.create(&body).await.expect(201).json();
    app.sandbox.pay(&link["paymentIntentId"]).await;
    let link = app.read_until_confirmed(&link["id"]).await;
    app.booked(&link, 1).await;

    let refund = json!({"amount": pounds(300)});
    let refunded = app
        .operate_with_key("refund-1", &link, "refunds", &refund)
        .await;
    let operation = refunded.expect(200).header("operation-id").to_owned();
    app.booked(&link, 2).await;
    app.sandbox
        .act(&link["paymentIntentId"], "refund", json!({"amount": 200}))
        .await;
    app.refresh(&link["id"]).await.expect(200);
    let booked = app.booked(&link, 3).await;

    assert_eq!(
        lines(&booked),
        [("capture", 1000), ("refund", -300), ("refund", -200)]
    );
    let [capture, ours, portal] = booked.as_slice() else {
        panic!("there are three");
    };
    assert_eq!(capture["amount"], pounds(1000));
    assert_eq!(capture["datedBy"], "dojo");
    assert_eq!(capture["actor"], Value::Null);
    let payment = &app.link(&link["id"]).await["payment"];
    assert_eq!(capture["authCode"], payment["authCode"]);
    assert_eq!(capture["last4"], "1005");
    assert_eq!(
        text(&capture["occurredAt"])[..19],
        text(&payment["transactionDateTime"])[..19]
    );
    assert_eq!(ours["amount"], pounds(300));
    assert_eq!(ours["operationId"], operation);
    assert_eq!(ours["actor"], "bootstrap");
    assert_eq!(ours["datedBy"], "operation");
    assert_eq!(portal["operationId"], Value::Null);
    assert_eq!(portal["actor"], Value::Null);
    assert_eq!(portal["datedBy"], "noticed");
    for movement in &booked {
        assert_eq!(movement["reference"], "Order 236");
        assert_eq!(movement["paymentIntentId"], link["paymentIntentId"]);
        assert_eq!(movement["metadata"], json!({}), "nobody asked for any");
    }

    let query = format!(
        "?paymentLinkId={}&metadataKeys=costCentre,none",
        text(&link["id"])
    );
    let movements = app.movements(&query).await;
    assert_eq!(movements[0]["metadata"], json!({"costCentre": "4711"}));
    let totals = app.get("/v1/movements/totals").await.expect(200).json();
    let net: i64 = totals["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|day| day["net"]["value"].as_i64().unwrap())
        .sum();
    assert_eq!(net, 500);
    // The feed shows the same numbers.
    let events = app
        .get("/v1/events?types=payment_link.captured,payment_link.refunded")
        .await;
    let events = events.expect(200).json();
    let told: Vec<_> = events["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| {
            let money = if event["captured"].is_null() {
                "refunded"
            } else {
                "captured"
            };
            event[money].clone()
        })
        .collect();
    let amounts: Vec<_> = booked.iter().map(|it| it["amount"].clone()).collect();
    assert_eq!(told, amounts);
}

#[tokio::test]
async fn captures_in_parts_and_reversals_are_booked() {
    let app = TestApp::quick(&[]).await;
    let link = app.authorized().await;
    for (key, value) in [("capture-1", 400), ("capture-2", 600)] {
        let body = json!({"amount": pounds(value)});
        app.operate_with_key(key, &link, "captures", &body)
            .await
            .expect(200);
    }
    let booked = app.booked(&link, 2).await;
    assert_eq!(lines(&booked), [("capture", 400), ("capture", 600)]);
    let operations = app.operations(&link).await;
    for (movement, operation) in booked.iter().zip(&operations) {
        assert_eq!(movement["operationId"], operation["id"]);
        assert_eq!(movement["captureId"], operation["dojoId"]);
        assert_eq!(movement["datedBy"], "dojo");
    }

    let link = app.create(&manual("Order 2")).await.expect(201).json();
    app.sandbox.pay(&link["paymentIntentId"]).await;
    let link = app.read_until_confirmed(&link["id"]).await;
    app.operate(&link, "reversal", &Value::Null)
        .await
        .expect(200);
    let booked = app.booked(&link, 1).await;
    assert_eq!(lines(&booked), [("reversal", 0)]);
    assert_eq!(booked[0]["amount"], pounds(1000));
    assert_eq!(booked[0]["actor"], "bootstrap");
}

#[tokio::test]
async fn what_dojo_takes_back_is_corrected_and_needs_attention() {
    let app = TestApp::quick(&[("RECOVERY_SETTLE", "1s")]).await;
    let link = app.paid().await;
    app.booked(&link, 1).await;
    let intent = &link["paymentIntentId"];
    app.sandbox
        .act(intent, "status", json!({"status": "Created"}))
        .await;
    let booked = eventually("the correction is booked", async || {
        app.all_are_due().await;
        let query = format!("?paymentLinkId={}", text(&link["id"]));
        let movements = app.movements(&query).await;
        (movements.len() > 1).then_some(movements)
    })
    .await;
    assert_eq!(
        lines(&booked),
        [("capture", 1000), ("captureCorrection", -1000)]
    );
    let events = app
        .get("/v1/events?types=payment_link.attention_required")
        .await;
    let events = events.expect(200).json();
    assert_eq!(events["data"][0]["reason"], "amountDecreased");
}

#[tokio::test]
async fn nothing_is_booked_twice_or_never_whatever_dies() {
    let mut app = TestApp::quick(&[]).await;
    let other = app.another(&[]).await;
    let mut links = Vec::new();
    for n in 0..12 {
        let body = ten_pounds(&format!("Order {n}"));
        links.push(app.create(&body).await.expect(201).json());
    }
    for (n, link) in links.iter().enumerate() {
        app.sandbox.pay(&link["paymentIntentId"]).await;
        if n == 5 {
            app.service.kill().await;
        }
    }
    drop(other);
    app.restart().await;
    app.in_step_with_dojo().await;
    let booked: (i64, i64) = sqlx::query_as("SELECT count(*), sum(net)::bigint FROM movements")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert_eq!(booked, (12, 12_000));
}

/// A paid link with metadata, and its movement.
async fn paid_with_metadata(app: &TestApp) -> (Value, Value) {
    let mut body = ten_pounds("Order 236");
    body["metadata"] = json!({"costCentre": "4711", "guest": "Ann"});
    let link = app.create(&body).await.expect(201).json();
    app.sandbox.pay(&link["paymentIntentId"]).await;
    let link = app.read_until_confirmed(&link["id"]).await;
    let movement = app.booked(&link, 1).await.remove(0);
    (link, movement)
}

async fn run(app: &TestApp, statement: &str) {
    sqlx::query(AssertSqlSafe(statement.to_owned()))
        .execute(&app.pool)
        .await
        .unwrap();
}

/// Changes everything about the link that a movement repeats.
const ANOTHER_LINK: &str = "UPDATE payment_links SET reference = 'Order 1',
    request = jsonb_set(request, '{metadata}', '{\"costCentre\": \"1\", \"guest\": \"Bob\"}'),
    payment = payment || '{\"authCode\": \"000000\", \"last4\": \"0000\"}'";

#[tokio::test]
async fn the_books_are_append_only() {
    let app = TestApp::quick(&[("PERSONAL_METADATA", "guest")]).await;
    let (link, _) = paid_with_metadata(&app).await;
    let refused = async |statement: &'static str| {
        let result = sqlx::query(statement).execute(&app.pool).await;
        let error = result.expect_err(statement).to_string();
        assert!(error.contains("append-only"), "{statement}: {error}");
    };
    for statement in [
        "UPDATE movements SET amount = 1",
        "UPDATE movements SET net = 1, dated_by = 'transaction'",
        "UPDATE movements SET dated_by = 'transaction', occurred_at = now(), amount = 1",
        "UPDATE movements SET occurred_at = now()",
        "UPDATE movements SET reference = 'Order 1'",
        "UPDATE movements SET reference = NULL",
        "UPDATE movements SET auth_code = NULL, last4 = '0000'",
        "UPDATE movements SET metadata = metadata - 'guest'",
        "DELETE FROM movements",
        "TRUNCATE movements CASCADE",
    ] {
        refused(statement).await;
    }
    let path = format!("/v1/payment-links/{}/erase", text(&link["id"]));
    send(app.request(Method::POST, &path)).await.expect(200);
    // Metadata may go when the link is erased, and nothing else.
    for statement in [
        "UPDATE movements SET metadata = metadata || '{\"guest\": \"Bob\"}'",
        "UPDATE movements SET metadata = '{\"costCentre\": \"1\"}'",
        "UPDATE movements SET metadata = NULL",
        "UPDATE movements SET metadata = '{}', last4 = NULL",
    ] {
        refused(statement).await;
    }
    let query = format!(
        "?paymentLinkId={}&metadataKeys=costCentre,guest",
        text(&link["id"])
    );
    let movements = app.movements(&query).await;
    assert_eq!(movements[0]["metadata"], json!({"costCentre": "4711"}));
    assert_eq!(movements[0]["reference"], "Order 236");
}

#[tokio::test]
async fn a_movement_stays_as_it_was_booked_whatever_becomes_of_the_link() {
    let app = TestApp::quick(&[("BOOKS_METADATA", "costCentre,guest")]).await;
    let (link, movement) = paid_with_metadata(&app).await;
    assert_eq!(
        movement["metadata"],
        json!({"costCentre": "4711", "guest": "Ann"})
    );
    assert_eq!(movement["last4"], "1005");
    let csv = app.as_csv("").await.text;
    run(&app, ANOTHER_LINK).await;
    assert_eq!(app.link(&link["id"]).await["payment"]["last4"], "0000");
    assert_eq!(app.booked(&link, 1).await, [movement]);
    assert_eq!(app.as_csv("").await.text, csv);
}

#[tokio::test]
async fn movements_of_an_earlier_version_get_what_they_lack_from_their_link() {
    let app = TestApp::with(&[("BOOKS_METADATA", "guest")]).await;
    let mut body = ten_pounds("Order 236");
    body["metadata"] = json!({"guest": "Ann"});
    let link = app.paid_as(&body, "Captured").await;
    // It booked more of them than are filled in at once.
    many_movements(&app, &link, 1200).await;
    let code = &app.link(&link["id"]).await["payment"]["authCode"];
    let complete = |movement: &Value| {
        assert_eq!(movement["reference"], "Order 236");
        assert_eq!(movement["metadata"], json!({"guest": "Ann"}));
        assert_eq!(&movement["authCode"], code);
        assert_eq!(movement["last4"], "1005");
    };
    complete(&app.movements("?limit=1").await[0]);

    let _worker = app
        .another(&[("RUN_JOBS", "true"), ("BOOKS_METADATA", "guest")])
        .await;
    eventually("they are filled in", async || {
        let lacking: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM movements WHERE reference IS NULL OR metadata IS NULL OR last4 IS NULL",
        )
        .fetch_one(&app.pool)
        .await
        .unwrap();
        (lacking == 0).then_some(())
    })
    .await;
    run(&app, ANOTHER_LINK).await;
    complete(&app.movements("?limit=1").await[0]);
}

#[tokio::test]
async fn a_movement_that_waits_for_an_erasure_is_booked_without_what_was_erased() {
    let app = TestApp::with(&[("BOOKS_METADATA", "costCentre,guest")]).await;
    let mut body = ten_pounds("Order 236");
    body["metadata"] = json!({"costCentre": "4711", "guest": "Ann"});
    let link = app.paid_as(&body, "Captured").await;
    let mut erasure = app.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM payment_links FOR UPDATE")
        .execute(&mut *erasure)
        .await
        .unwrap();
    let _worker = app.another(&[("RUN_JOBS", "true")]).await;
    eventually("the job waits for the link", async || {
        let waits: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                            AND (query LIKE '%FOR KEY SHARE%' OR query LIKE '%INSERT INTO movements%'))",
        )
        .fetch_one(&app.pool)
        .await
        .unwrap();
        waits.then_some(())
    })
    .await;
    sqlx::query(
        "UPDATE payment_links SET request = request #- '{metadata,guest}', erased_at = now()",
    )
    .execute(&mut *erasure)
    .await
    .unwrap();
    erasure.commit().await.unwrap();
    let booked = app.booked(&link, 1).await;
    assert_eq!(booked[0]["metadata"], json!({"costCentre": "4711"}));
}

#[tokio::test]
async fn movements_show_the_metadata_that_the_operator_chose_unless_others_are_asked_for() {
    let app = TestApp::quick(&[("BOOKS_METADATA", "costCentre, order")]).await;
    let (_, movement) = paid_with_metadata(&app).await;
    assert_eq!(movement["metadata"], json!({"costCentre": "4711"}));
    let others = app.movements("?metadataKeys=guest").await;
    assert_eq!(others[0]["metadata"], json!({"guest": "Ann"}));
    for (query, columns) in [("", ",costCentre,order"), ("?metadataKeys=guest", ",guest")] {
        let csv = app.as_csv(query).await.text;
        let header = csv.lines().next().unwrap();
        assert!(
            header.ends_with(&format!("recordedAt,id{columns}")),
            "{header}"
        );
    }
}

#[tokio::test]
async fn a_business_day_ends_at_the_cutoff_in_local_time() {
    let app = TestApp::quick(&[]).await;
    for (at, zone, cutoff, day) in [
        (
            "2026-11-20T23:59:59Z",
            "Europe/London",
            "00:00",
            "2026-11-20",
        ),
        (
            "2026-11-21T00:00:00Z",
            "Europe/London",
            "00:00",
            "2026-11-21",
        ),
        // In summer, London is an hour ahead of UTC.
        (
            "2026-07-20T22:59:59Z",
            "Europe/London",
            "00:00",
            "2026-07-20",
        ),
        (
            "2026-07-20T23:00:00Z",
            "Europe/London",
            "00:00",
            "2026-07-21",
        ),
        // The night in which clocks go forward.
        (
            "2026-03-29T00:30:00Z",
            "Europe/London",
            "00:00",
            "2026-03-29",
        ),
        (
            "2026-03-29T22:59:59Z",
            "Europe/London",
            "00:00",
            "2026-03-29",
        ),
        (
            "2026-03-29T23:00:00Z",
            "Europe/London",
            "00:00",
            "2026-03-30",
        ),
        // A day that ends in the following night, and one that ends in its evening.
        (
            "2026-11-21T02:59:59Z",
            "Europe/London",
            "03:00",
            "2026-11-20",
        ),
        (
            "2026-11-21T03:00:00Z",
            "Europe/London",
            "03:00",
            "2026-11-21",
        ),
        (
            "2026-11-20T21:59:59Z",
            "Europe/London",
            "22:00",
            "2026-11-20",
        ),
        (
            "2026-11-20T22:00:00Z",
            "Europe/London",
            "22:00",
            "2026-11-21",
        ),
        (
            "2026-11-20T12:00:00Z",
            "Pacific/Kiritimati",
            "00:00",
            "2026-11-21",
        ),
    ] {
        let found: Date = sqlx::query_scalar("SELECT business_day($1::timestamptz, $2, $3::time)")
            .bind(at)
            .bind(zone)
            .bind(cutoff)
            .fetch_one(&app.pool)
            .await
            .unwrap();
        assert_eq!(found.to_string(), day, "{at} in {zone} until {cutoff}");
    }
}

#[tokio::test]
async fn business_days_follow_the_settings() {
    // Whenever this runs, the local day there differs from the one in the other place.
    let far = [
        ("BUSINESS_TIME_ZONE", "Pacific/Kiritimati"),
        ("BUSINESS_DAY_CUTOFF", "03:00"),
    ];
    let app = TestApp::quick(&far).await;
    let link = app.paid().await;
    let booked = app.booked(&link, 1).await;
    let expected: Date = sqlx::query_scalar(
        "SELECT (occurred_at AT TIME ZONE 'Pacific/Kiritimati' - interval '3 hours')::date FROM movements",
    )
    .fetch_one(&app.pool)
    .await
    .unwrap();
    assert_eq!(booked[0]["businessDay"], expected.to_string());
    let day = expected.to_string();
    assert_eq!(
        app.movements(&format!("?from={day}&to={day}")).await.len(),
        1
    );
    let before = expected.previous_day().unwrap();
    assert!(app.movements(&format!("?to={before}")).await.is_empty());
    let next = expected.next_day().unwrap();
    assert!(app.movements(&format!("?from={next}")).await.is_empty());
}

fn serve(database_url: &str) -> Command {
    let mut command = program();
    command
        .arg("serve")
        .env("DATABASE_URL", database_url)
        .env("LISTEN_ADDR", "127.0.0.1:0")
        .env("DOJO_API_KEY", "sk_sandbox_test");
    command
}

#[tokio::test]
async fn a_wrong_setting_of_the_books_stops_the_start() {
    let database_url = empty_database().await;
    let error = error_of(serve(&database_url).env("BUSINESS_TIME_ZONE", "Europe/Londen"));
    assert!(
        error.contains("BUSINESS_TIME_ZONE is Europe/Londen, which Postgres does not know"),
        "{error}"
    );
    let mut reconcile = program();
    reconcile
        .args(["reconcile", "--from", "2026-01-31"])
        .env("DATABASE_URL", &database_url)
        .env("DOJO_API_KEY", "sk_sandbox_test");
    let again = error_of(reconcile.env("BUSINESS_TIME_ZONE", "Europe/Londen"));
    assert!(error.ends_with(&again), "{again}");
    let error = error_of(serve(&database_url).env("BUSINESS_DAY_CUTOFF", "25:00"));
    assert!(error.contains("BUSINESS_DAY_CUTOFF"), "{error}");
    let error = error_of(serve(&database_url).env("BOOKS_METADATA", "k".repeat(101)));
    assert!(error.contains("BOOKS_METADATA"), "{error}");
}

/// Books this many captures of a penny for a link.
pub async fn many_movements(app: &TestApp, link: &Value, count: i64) {
    sqlx::query(
        "INSERT INTO movements (position, id, type, account, payment_link_id, event_id, currency, amount, net,
                                occurred_at, dated_by, business_day)
         SELECT head + n, gen_random_uuid(), 'capture', 'default', link.id, gen_random_uuid(), 'GBP', 1, 1,
                now(), 'dojo', date '2026-01-01' + (n % 7)::int
         FROM books, payment_links link, generate_series(1, $1) n
         WHERE link.reference = $2",
    )
    .bind(count)
    .bind(text(&link["reference"]))
    .execute(&app.pool)
    .await
    .unwrap();
    sqlx::query("UPDATE books SET head = head + $1")
        .bind(count)
        .execute(&app.pool)
        .await
        .unwrap();
}

#[tokio::test]
async fn csv_has_all_movements_and_no_formulas() {
    let app = TestApp::quick(&[]).await;
    let mut body = ten_pounds("=HYPERLINK(\"http://evil.example\")");
    body["metadata"] = json!({"note": "@SUM(1), \"quoted\"\nline"});
    let link = app.create(&body).await.expect(201).json();
    app.sandbox.pay(&link["paymentIntentId"]).await;
    let link = app.read_until_confirmed(&link["id"]).await;
    app.booked(&link, 1).await;

    let answer = app.as_csv("?metadataKeys=note").await;
    assert_eq!(
        answer.header("content-type"),
        "text/csv; charset=utf-8; header=present"
    );
    let mut reader = csv::Reader::from_reader(answer.text.as_bytes());
    let header = reader.headers().unwrap().clone();
    let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 1);
    let cell = |name| {
        let at = header.iter().position(|column| column == name).unwrap();
        &rows[0][at]
    };
    assert_eq!(cell("reference"), "'=HYPERLINK(\"http://evil.example\")");
    assert_eq!(cell("note"), "'@SUM(1), \"quoted\"\nline");
    assert_eq!(
        (cell("amount"), cell("net"), cell("currency")),
        ("10.00", "10.00", "GBP")
    );
    assert_eq!(cell("paymentLinkId"), text(&link["id"]));

    many_movements(&app, &link, 2500).await;
    let answer = app.as_csv("?limit=1").await;
    let mut reader = csv::Reader::from_reader(answer.text.as_bytes());
    let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 2501);
    let days: Vec<_> = rows.iter().map(|row| row[0].to_owned()).collect();
    assert!(days.is_sorted());
    let answer = app.as_csv("?from=2026-01-02&to=2026-01-02").await;
    assert_eq!(answer.text.lines().count(), 1 + 358);

    // The same in pages of JSON.
    let (mut ids, mut after) = (Vec::new(), String::new());
    loop {
        let page = app
            .get(&format!("/v1/movements?limit=100{after}"))
            .await
            .expect(200)
            .json();
        ids.extend(
            page["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|it| text(&it["id"]).to_owned()),
        );
        after = format!("&after={}", text(&page["after"]));
        if page["hasMore"] == false {
            break;
        }
    }
    let of_csv: Vec<_> = rows.iter().map(|row| row[16].to_owned()).collect();
    assert_eq!(ids, of_csv);
    let totals = app
        .get("/v1/movements/totals?limit=3&to=2026-01-07")
        .await
        .expect(200)
        .json();
    assert_eq!(totals["data"].as_array().unwrap().len(), 3);
    let after = text(&totals["after"]);
    let rest = app
        .get(&format!("/v1/movements/totals?to=2026-01-07&after={after}"))
        .await;
    let rest = rest.expect(200).json();
    assert_eq!(rest["data"].as_array().unwrap().len(), 4);
    assert_eq!(rest["data"][0]["businessDay"], "2026-01-04");
}

#[tokio::test]
async fn a_key_sees_the_movements_of_its_accounts_only() {
    let app = TestApp::quick(&[]).await;
    let link = app.paid().await;
    app.booked(&link, 1).await;
    let key = create_limited_key(&app, "leeds", "links:read", "leeds");
    for path in [
        "/v1/movements",
        "/v1/movements/totals",
        "/v1/movements?account=default",
    ] {
        let request = app.anonymous(Method::GET, path).bearer_auth(&key);
        let page = send(request).await.expect(200).json();
        assert_eq!(page["data"], json!([]), "{path}");
    }
    let request = app
        .anonymous(Method::GET, "/v1/movements")
        .bearer_auth(&key);
    let csv = send(request.header(ACCEPT, "text/csv"))
        .await
        .expect(200)
        .text;
    assert_eq!(csv.lines().count(), 1);
    let key = create_limited_key(&app, "writer", "links:write", "default");
    let request = app
        .anonymous(Method::GET, "/v1/movements")
        .bearer_auth(&key);
    send(request).await.problem(403, "forbidden");
}

#[tokio::test]
async fn every_fault_of_a_query_is_named() {
    let app = TestApp::start().await;
    let path =
        "/v1/movements?from=yesterday&to=2026-02-30&type=gift&metadataKeys=,&after=1&color=red";
    let problem = app.get(path).await.problem(422, "invalid-request");
    let at: Vec<_> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| text(&it["pointer"]))
        .collect();
    for name in ["from", "to", "type", "metadataKeys", "after", "color"] {
        assert!(at.contains(&name), "{name} in {at:?}");
    }
}

#[tokio::test]
async fn events_are_not_removed_before_they_are_booked() {
    let mut app = TestApp::quick(&[]).await;
    let link = app.paid().await;
    app.booked(&link, 1).await;
    app.service.kill().await;
    for statement in [
        "UPDATE feed_events SET occurred_at = occurred_at - interval '500 days'",
        "UPDATE books SET feed_position = (SELECT head - 1 FROM feed)",
    ] {
        sqlx::query(AssertSqlSafe(statement))
            .execute(&app.pool)
            .await
            .unwrap();
    }
    let mut prune = program();
    prune
        .args(["prune", "--older-than", "400d"])
        .env("DATABASE_URL", &app.database_url);
    output_of(&mut prune);
    let left: Vec<i64> = sqlx::query_scalar("SELECT position FROM feed_events ORDER BY position")
        .fetch_all(&app.pool)
        .await
        .unwrap();
    let head: i64 = sqlx::query_scalar("SELECT head FROM feed")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert_eq!(left, [head], "the last one isn't booked");
}
