//! The daily reconciliation: that the books and Dojo's transactions are compared, and each difference is found.

use std::{collections::BTreeMap, process::Command};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{
    AssertSqlSafe,
    types::time::{Date, OffsetDateTime},
};

use crate::{
    commands::create_limited_key,
    support::{DOJO_KEY, TestApp, eventually, pounds, program, send, text},
};

/// Movements and transactions have the same business days whatever the time is in London.
pub const UTC: (&str, &str) = ("BUSINESS_TIME_ZONE", "UTC");

/// The command `reconcile` for these days.
pub fn reconcile(app: &TestApp, from: Date, to: Date) -> Command {
    let mut command = program();
    command
        .args([
            "reconcile",
            "--from",
            &from.to_string(),
            "--to",
            &to.to_string(),
        ])
        .env("DATABASE_URL", &app.database_url)
        .env("DOJO_API_URL", &app.sandbox.url)
        .env("DOJO_API_KEY", DOJO_KEY)
        .env(UTC.0, UTC.1);
    command
}

/// The lines that the command prints, and whether the books agree.
pub fn lines(command: &mut Command) -> (Vec<Vec<String>>, bool) {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !errors.contains("error") && !errors.contains("Dojo re"),
        "{errors}"
    );
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines
        .lines()
        .map(|line| line.split('\t').map(str::to_owned).collect());
    (lines.collect(), output.status.success())
}

async fn run(app: &TestApp, statement: &str) {
    sqlx::query(AssertSqlSafe(statement.to_owned()))
        .execute(&app.pool)
        .await
        .unwrap();
}

async fn results(app: &TestApp, day: Date) -> Vec<Value> {
    let page = app.get(&format!("/v1/reconciliations/{day}")).await;
    page.expect(200).json()["data"].as_array().unwrap().clone()
}

/// Yesterday and tomorrow: whatever happens in a test is between them, even around midnight.
pub fn around_today() -> (Date, Date) {
    let today = OffsetDateTime::now_utc().date();
    (today.previous_day().unwrap(), today.next_day().unwrap())
}

/// The transactions of an intent at Dojo, oldest first.
pub async fn transactions(app: &TestApp, link: &Value) -> Vec<Value> {
    let intent = text(&link["paymentIntentId"]);
    let found = app
        .sandbox
        .look(&format!("transactions?paymentIntentId={intent}"))
        .await;
    found.as_array().unwrap().clone()
}

pub async fn change(app: &TestApp, transaction: &Value, how: Value) {
    let path = format!("transactions/{}", text(&transaction["id"]));
    app.sandbox.control(&path, how).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_books_agree_with_dojo_and_every_planted_difference_is_found() {
    let app = TestApp::quick(&[UTC]).await;
    let (from, to) = around_today();
    let auto = app.paid().await;
    app.operate_with_key(
        "refund-1",
        &auto,
        "refunds",
        &json!({"amount": pounds(300)}),
    )
    .await
    .expect(200);
    let manual = app.authorized().await;
    for (key, value) in [("capture-1", 400), ("capture-2", 500)] {
        app.operate_with_key(key, &manual, "captures", &json!({"amount": pounds(value)}))
            .await
            .expect(200);
    }
    let reversed = app.authorized().await;
    app.operate(&reversed, "reversal", &Value::Null)
        .await
        .expect(200);
    let portal = app.paid().await;
    app.sandbox
        .act(&portal["paymentIntentId"], "refund", json!({"amount": 200}))
        .await;
    app.refresh(&portal["id"]).await.expect(200);
    app.in_step_with_dojo().await;
    // Other products of the same account are left out.
    let terminal = json!({"type": "Sale", "status": "Authorized", "amount": 4200, "paymentProduct": "Terminal"});
    app.sandbox
        .control(
            "transactions",
            json!({"rows": [terminal], "apiKey": DOJO_KEY}),
        )
        .await;

    let (found, agrees) = lines(&mut reconcile(&app, from, to));
    assert!(agrees, "{found:#?}");
    assert_eq!(found.len(), 3, "{found:#?}");
    // A sale and its refund, two collections, a reversed authorization, a sale and a refund in the portal.
    let matched: u32 = found
        .iter()
        .map(|line| {
            line[3]
                .strip_suffix(" matched")
                .unwrap()
                .parse::<u32>()
                .unwrap()
        })
        .sum();
    assert_eq!(matched, 7);
    // Dojo's list dates the refund in the portal.
    let refund = transactions(&app, &portal).await.pop().unwrap();
    let query = format!(
        "/v1/movements?paymentLinkId={}&type=refund",
        text(&portal["id"])
    );
    let movement = app.get(&query).await.expect(200).json()["data"][0].clone();
    assert_eq!(movement["datedBy"], "transaction");
    assert_eq!(
        text(&movement["occurredAt"])[..19],
        text(&refund["dateTime"])[..19]
    );

    let [sale, refund] = &transactions(&app, &auto).await[..] else {
        panic!("there are two");
    };
    change(&app, sale, json!({"status": "UnderReview"})).await;
    change(&app, refund, json!({"amount": 301})).await;
    let last = transactions(&app, &manual).await.pop().unwrap();
    change(&app, &last, json!({"hidden": true})).await;
    let sale = transactions(&app, &portal).await.swap_remove(0);
    change(&app, &sale, json!({"status": "Reversed"})).await;
    let stranger = json!({
        "type": "Sale", "status": "Authorized", "amount": 999, "paymentProduct": "PaymentLinks",
        "paymentIntentId": "pi_sandbox_of_nobody", "reference": "Order of nobody",
    });
    app.sandbox
        .control(
            "transactions",
            json!({"rows": [stranger], "apiKey": DOJO_KEY}),
        )
        .await;

    let (found, agrees) = lines(&mut reconcile(&app, from, to));
    assert!(!agrees);
    let mut kinds: Vec<_> = found
        .iter()
        .filter(|line| line.len() == 5 && !["Agrees", "Differs"].contains(&line[2].as_str()))
        .collect();
    kinds.sort_by_key(|line| line[2].clone());
    let kinds: Vec<_> = kinds.iter().map(|line| line[2].as_str()).collect();
    assert_eq!(
        kinds,
        [
            "differentAmount",
            "held",
            "onlyAtDojo",
            "onlyAtDojo",
            "onlyHere"
        ],
        "{found:#?}"
    );
    let mut differences = Vec::new();
    let mut day = Some(from);
    while let Some(current) = day.filter(|day| *day <= to) {
        for result in results(&app, current).await {
            let count = result["differenceCount"].as_u64().unwrap();
            let listed = result["differences"].as_array().unwrap().clone();
            assert_eq!(listed.len() as u64, count);
            assert_eq!(
                result["state"],
                if count == 0 { "Agrees" } else { "Differs" }
            );
            differences.extend(listed);
        }
        day = current.next_day();
    }
    assert_eq!(differences.len(), 5);
    let of_kind = |kind: &str| {
        let found: Vec<_> = differences
            .iter()
            .filter(|it| it["kind"] == kind)
            .cloned()
            .collect();
        found
    };
    assert_eq!(
        of_kind("onlyHere")[0]["movement"]["paymentLinkId"],
        manual["id"]
    );
    assert_eq!(of_kind("onlyHere")[0]["transaction"], Value::Null);
    assert_eq!(
        of_kind("differentAmount")[0]["movement"]["amount"],
        pounds(300)
    );
    assert_eq!(
        of_kind("differentAmount")[0]["transaction"]["amount"]["value"],
        301
    );
    assert_eq!(of_kind("held")[0]["movement"]["paymentLinkId"], auto["id"]);
    let mut at_dojo = of_kind("onlyAtDojo");
    at_dojo.sort_by_key(|it| it["movement"].is_null());
    assert_eq!(at_dojo[0]["movement"]["paymentLinkId"], portal["id"]);
    assert_eq!(at_dojo[1]["transaction"]["reference"], "Order of nobody");
}

/// What is planted into one payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Plant {
    Nothing,
    OnlyHere,
    OnlyAtDojo,
    DifferentAmount,
    Held,
}

impl Plant {
    fn kind(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::OnlyHere => "onlyHere",
            Self::OnlyAtDojo => "onlyAtDojo",
            Self::DifferentAmount => "differentAmount",
            Self::Held => "held",
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_of_random_traffic_has_exactly_the_planted_differences() {
    const PER_DAY: i64 = 20;
    let app = TestApp::quick(&[UTC, ("RECONCILE_TRANSACTIONS", "false")]).await;
    let template = app.created().await;
    let mut random = StdRng::seed_from_u64(14);
    let today = OffsetDateTime::now_utc().date();
    let first = today - time_days(40);
    let (mut movements, mut rows, mut planted) = (Vec::new(), Vec::new(), BTreeMap::new());
    for day in 0..30 {
        let date = first + time_days(day);
        for number in 0..PER_DAY {
            let intent = format!("pi_sandbox_m{day}_{number}");
            let amount = random.random_range(1..5000_i64);
            let second = random.random_range(0..86_400_u64);
            let at = date.midnight() + std::time::Duration::from_secs(second);
            let plant = match random.random_range(0..12) {
                0 => Plant::OnlyHere,
                1 => Plant::OnlyAtDojo,
                2 => Plant::DifferentAmount,
                3 => Plant::Held,
                _ => Plant::Nothing,
            };
            let (hour, minute, second) = at.time().as_hms();
            let at_text = format!("{date}T{hour:02}:{minute:02}:{second:02}Z");
            if plant != Plant::OnlyAtDojo {
                movements.push(json!({"intent": intent, "type": "capture", "amount": amount, "net": amount, "at": at_text, "day": date.to_string()}));
            }
            let (status, at_dojo) = match plant {
                Plant::Held => ("Held", amount),
                Plant::DifferentAmount => ("Authorized", amount + 1),
                _ => ("Authorized", amount),
            };
            let row = |kind: &str, status: &str, amount: i64| {
                json!({
                    "type": kind, "status": status, "amount": amount, "paymentProduct": "PaymentLinks",
                    "paymentIntentId": intent, "dateTime": at_text,
                })
            };
            if plant != Plant::OnlyHere {
                rows.push(row("Sale", status, at_dojo));
            }
            if random.random_bool(0.3) && amount > 10 {
                movements.push(json!({"intent": intent, "type": "refund", "amount": 7, "net": -7, "at": at_text, "day": date.to_string()}));
                rows.push(row("Refund", "Authorized", 7));
            }
            if plant != Plant::Nothing {
                *planted.entry((date.to_string(), plant.kind())).or_insert(0) += 1;
            }
        }
    }
    insert(&app, &template, &movements).await;
    for rows in rows.chunks(100) {
        app.sandbox
            .control("transactions", json!({"rows": rows, "apiKey": DOJO_KEY}))
            .await;
    }

    let (found, agrees) = lines(&mut reconcile(&app, first, first + time_days(29)));
    assert!(!agrees);
    let mut differences = BTreeMap::new();
    for line in found
        .iter()
        .filter(|line| !["Agrees", "Differs"].contains(&line[2].as_str()))
    {
        *differences
            .entry((line[0].clone(), line[2].as_str()))
            .or_insert(0) += 1;
    }
    assert_eq!(differences, planted);
    assert!(
        planted.len() > 60,
        "every kind on many days: {}",
        planted.len()
    );
}

pub fn time_days(days: i64) -> std::time::Duration {
    std::time::Duration::from_secs(u64::try_from(days).unwrap() * 86_400)
}

/// Books these movements, each for a link of its own that is like `template`.
async fn insert(app: &TestApp, template: &Value, movements: &[Value]) {
    sqlx::query(
        "WITH new AS (
             SELECT * FROM jsonb_to_recordset($1) AS new (intent text, type text, amount bigint, net bigint, at timestamptz, day date)
         ), links AS (
             INSERT INTO payment_links
             SELECT (jsonb_populate_record(NULL::payment_links, to_jsonb(link) || jsonb_build_object(
                         'id', gen_random_uuid(), 'payment_intent_id', intent, 'due_at', NULL, 'created_at', now()))).*
             FROM (SELECT DISTINCT intent FROM new) intents, payment_links link WHERE link.reference = $2
             RETURNING id, payment_intent_id
         )
         INSERT INTO movements (position, id, type, account, payment_link_id, event_id, currency, amount, net,
                                occurred_at, dated_by, business_day)
         SELECT row_number() OVER (), gen_random_uuid(), type, 'default', links.id, gen_random_uuid(), 'GBP', amount, net,
                at, 'dojo', day
         FROM new JOIN links ON links.payment_intent_id = new.intent",
    )
    .bind(json!(movements))
    .bind(text(&template["reference"]))
    .execute(&app.pool)
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_night_the_days_that_ended_are_compared() {
    let app = TestApp::quick(&[UTC]).await;
    let template = app.created().await;
    let today = OffsetDateTime::now_utc().date();
    let (missing, agreed) = (today - time_days(4), today - time_days(3));
    let noon = |day: Date| format!("{day}T12:00:00Z");
    let capture = |intent: &str, day: Date| json!({"intent": intent, "type": "capture", "amount": 1000, "net": 1000, "at": noon(day), "day": day.to_string()});
    insert(
        &app,
        &template,
        &[
            capture("pi_sandbox_a", missing),
            capture("pi_sandbox_b", agreed),
        ],
    )
    .await;
    let row = json!({
        "type": "Sale", "status": "Authorized", "amount": 1000, "paymentProduct": "PaymentLinks",
        "paymentIntentId": "pi_sandbox_b", "dateTime": noon(agreed),
    });
    app.sandbox
        .control("transactions", json!({"rows": [row], "apiKey": DOJO_KEY}))
        .await;
    // The account's first link was requested four days ago.
    run(&app, "UPDATE payment_links SET created_at = now() - interval '4 days' WHERE payment_intent_id = 'pi_sandbox_a'").await;
    let state = async |day| {
        let results = results(&app, day).await;
        Some(text(&results.first()?["state"]).to_owned())
    };
    for (day, expected) in [(missing, "Differs"), (agreed, "Agrees")] {
        let found = eventually("the day is compared", async || state(day).await).await;
        assert_eq!(found, expected, "{day}");
    }
    assert_eq!(state(today).await, None, "it isn't over");
    assert_eq!(
        state(missing - time_days(1)).await,
        None,
        "there was no link yet"
    );
    eventually("the metric shows the difference", async || {
        let metric = "daily_reconciliation_differences{account=\"default\",kind=\"onlyHere\"}";
        (app.metric(metric).await > 0.5).then_some(())
    })
    .await;

    // The transaction appears late. The next comparison finds it.
    let row = json!({
        "type": "Sale", "status": "Authorized", "amount": 1000, "paymentProduct": "PaymentLinks",
        "paymentIntentId": "pi_sandbox_a", "dateTime": noon(missing),
    });
    app.sandbox
        .control("transactions", json!({"rows": [row], "apiKey": DOJO_KEY}))
        .await;
    eventually("the books agree", async || {
        run(
            &app,
            "UPDATE daily_reconciliations SET due_at = now() WHERE state = 'Differs'",
        )
        .await;
        (state(missing).await.as_deref() == Some("Agrees")).then_some(())
    })
    .await;

    let key = create_limited_key(&app, "leeds", "links:read", "leeds");
    let path = format!("/v1/reconciliations/{missing}");
    let request = app.anonymous(Method::GET, &path).bearer_auth(&key);
    assert_eq!(send(request).await.expect(200).json()["data"], json!([]));
    app.get("/v1/reconciliations/yesterday")
        .await
        .problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_days_that_differ_are_listed() {
    let app = TestApp::start().await;
    let difference = json!([
        {"kind": "onlyHere", "movement": null, "transaction": null},
        {"kind": "held", "movement": null, "transaction": null},
        {"kind": "held", "movement": null, "transaction": null},
    ]);
    sqlx::query(
        "INSERT INTO daily_reconciliations (account, business_day, state, reconciled_at, transactions, matched,
                                            difference_count, differences)
         VALUES ('default', '2026-01-01', 'Agrees', now(), 4, 4, 0, '[]'),
                ('default', '2026-01-02', 'Differs', now(), 5, 3, 3, $1),
                ('leeds', '2026-01-02', 'Differs', now(), 5, 3, 3, $1),
                ('default', '2026-01-03', 'Unavailable', now(), 0, 0, 0, '[]'),
                ('default', '2026-01-04', NULL, NULL, 0, 0, 0, '[]')",
    )
    .bind(difference)
    .execute(&app.pool)
    .await
    .unwrap();
    let page_of = async |query: &str| {
        let page = app.get(&format!("/v1/reconciliations?{query}")).await;
        page.expect(200).json()
    };
    let days_of = |page: &Value| {
        let days = page["data"].as_array().unwrap().iter();
        days.map(|day| format!("{} {}", text(&day["businessDay"]), text(&day["account"])))
            .collect::<Vec<_>>()
    };

    let all = page_of("").await;
    let expected = [
        "2026-01-01 default",
        "2026-01-02 default",
        "2026-01-02 leeds",
        "2026-01-03 default",
    ];
    assert_eq!(
        days_of(&all),
        expected,
        "the day that was not compared is left out"
    );
    assert_eq!(all["hasMore"], false);
    let differs = &all["data"][1];
    assert_eq!(
        differs["kinds"],
        json!({"onlyHere": 1, "onlyAtDojo": 0, "differentAmount": 0, "held": 2})
    );
    assert_eq!(differs["differenceCount"], 3);
    assert_eq!(differs["matched"], 3);

    for (query, days) in [
        ("state=Differs", &expected[1..3]),
        (
            "state=Differs,Unavailable&account=default",
            &["2026-01-02 default", "2026-01-03 default"],
        ),
        ("from=2026-01-02&to=2026-01-02", &expected[1..3]),
        ("from=2026-01-05", &[]),
    ] {
        assert_eq!(days_of(&page_of(query).await), days, "{query}");
    }
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let page = page_of(&format!("limit=1{after}")).await;
        found.extend(days_of(&page));
        after = format!("&after={}", text(&page["after"]));
        if page["hasMore"] == false {
            break;
        }
    }
    assert_eq!(found, expected);

    let key = create_limited_key(&app, "leeds", "links:read", "leeds");
    let request = app.anonymous(Method::GET, "/v1/reconciliations");
    let page = send(request.bearer_auth(&key)).await.expect(200).json();
    assert_eq!(days_of(&page), ["2026-01-02 leeds"]);
    let key = create_limited_key(&app, "writer", "links:write", "default");
    let request = app.anonymous(Method::GET, "/v1/reconciliations");
    send(request.bearer_auth(&key))
        .await
        .problem(403, "forbidden");
    let problem = app
        .get("/v1/reconciliations?from=yesterday&state=Odd&after=1&color=red")
        .await
        .problem(422, "invalid-request");
    let faults = problem["errors"].as_array().unwrap();
    let at: Vec<_> = faults.iter().map(|it| text(&it["pointer"])).collect();
    for name in ["from", "state", "after", "color"] {
        assert!(at.contains(&name), "{name} in {at:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_may_not_read_transactions_holds_up_nothing() {
    let app = TestApp::quick(&[UTC]).await;
    app.sandbox
        .control(
            "faults",
            json!({"operation": "transactions", "kind": "status", "status": 403, "share": 1.0}),
        )
        .await;
    app.created().await;
    run(
        &app,
        "UPDATE payment_links SET created_at = now() - interval '2 days'",
    )
    .await;
    let day = OffsetDateTime::now_utc().date() - time_days(2);
    let result = eventually("the day is tried", async || results(&app, day).await.pop()).await;
    assert_eq!(result["state"], "Unavailable");
    // The account's other work goes on.
    let link = app.paid().await;
    assert_eq!(link["status"], "Captured");

    let output = reconcile(&app, day, day).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        error.contains("Dojo rejected this service's API key with status 403"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_proves_an_unconfirmed_refund() {
    let app = TestApp::quick(&[UTC]).await;
    let (from, to) = around_today();
    let link = app.paid().await;
    for (key, value) in [("refund-1", 300), ("refund-2", 300), ("refund-3", 200)] {
        app.operation_outcome(key, &link, "refunds", &json!({"amount": pounds(value)}))
            .await
            .expect(200);
    }
    app.in_step_with_dojo().await;
    run(
        &app,
        "UPDATE operations SET status = 'Unconfirmed', completed_at = NULL",
    )
    .await;
    lines(&mut reconcile(&app, from, to));
    let operations = app.operations(&link).await;
    let outcomes: Vec<_> = operations.iter().map(|it| text(&it["status"])).collect();
    // Either of the two transactions over 3.00 could be either operation.
    assert_eq!(outcomes, ["Unconfirmed", "Unconfirmed", "Succeeded"]);
    let timeline = app.timeline(&link["id"]).await;
    let last = timeline
        .iter()
        .rfind(|entry| entry["type"] == "operationSucceeded")
        .unwrap();
    assert_eq!(last["cause"]["type"], "recovery");
}
