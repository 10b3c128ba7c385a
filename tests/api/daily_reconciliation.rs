//! The daily reconciliation: that the books and Dojo's transactions are compared, and each difference is found.

use std::process::Command;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{
    AssertSqlSafe,
    types::time::{Date, OffsetDateTime},
};
use time::format_description::well_known::Rfc3339;

use crate::{
    commands::create_limited_key,
    support::{
        DOJO_KEY, LEEDS_KEY, TestApp, eventually, manual, pounds, program, send, ten_pounds, text,
    },
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

/// A kind of payment, as the books have it and as Dojo lists it.
#[derive(Debug, Clone, Copy)]
enum Traffic {
    Sale,
    InParts,
    Tipped,
    Refunded,
    /// By two refunds in Dojo's portal, which were noticed together.
    RefundedElsewhere,
    /// In Dojo's portal, and noticed on the next day.
    RefundNoticedLate,
    /// The two sides date it on different days.
    AroundMidnight,
    Reversed,
    /// Reversed before anything was captured.
    Released,
    /// The bank returned the refund.
    RefundReturned,
}

impl Traffic {
    const ALL: [Self; 10] = [
        Self::Sale,
        Self::InParts,
        Self::Tipped,
        Self::Refunded,
        Self::RefundedElsewhere,
        Self::RefundNoticedLate,
        Self::AroundMidnight,
        Self::Reversed,
        Self::Released,
        Self::RefundReturned,
    ];
}

/// What is made wrong at Dojo about a payment.
#[derive(Debug, Clone)]
enum Plant {
    Nothing,
    /// The first transaction of this type is changed.
    Change(&'static str, Value),
    /// The amount of the first transaction of this type is a penny more.
    Penny(&'static str),
    /// There is another transaction, which differs from an ordinary sale of the payment in this.
    Extra(Value),
    /// The same, of another account.
    OfAnotherAccount,
}

/// A kind of payment, what is made wrong about it, and the difference that must be found, if any: its kind, the movement's type,
/// and the transaction's type and status.
struct Case {
    traffic: Traffic,
    plant: Plant,
    finds: Option<String>,
}

fn cases() -> Vec<Case> {
    use Plant::{Change, Extra, Nothing, OfAnotherAccount, Penny};
    use Traffic::{InParts, Refunded, Reversed, Sale, Tipped};
    let status = |status: &str| json!({"status": status});
    let hidden = || json!({"hidden": true});
    let quiet = |traffic, plant| Case {
        traffic,
        plant,
        finds: None,
    };
    let found = |traffic, plant, finds| Case {
        traffic,
        plant,
        finds: Some(finds),
    };
    let pre_auth = |status| json!({"type": "PreAuth", "status": status});
    let of_product =
        |product, intent| json!({"paymentProduct": product, "paymentIntentId": intent});
    let mut cases: Vec<_> = Traffic::ALL.map(|traffic| quiet(traffic, Nothing)).into();
    cases.extend([
        // Payments that aren't made with a link, transactions that moved no money, and those of somebody else.
        quiet(Sale, Extra(of_product("Terminal", Value::Null))),
        quiet(
            Sale,
            Extra(of_product("OnlineCheckout", json!("pi_unknown"))),
        ),
        quiet(Sale, Extra(status("Declined"))),
        quiet(Sale, Extra(pre_auth("AwaitingCollection"))),
        quiet(Sale, Extra(pre_auth("Expired"))),
        quiet(Sale, Extra(status("Reversed"))),
        quiet(Sale, OfAnotherAccount),
    ]);
    for (traffic, row, how, movement) in [
        (Sale, "Sale", hidden(), "capture"),
        (Refunded, "Refund", hidden(), "refund"),
        (Reversed, "Sale", status("Authorized"), "reversal"),
    ] {
        let finds = format!("onlyHere {movement} -");
        cases.push(found(traffic, Change(row, how), finds));
    }
    for (traffic, row, movement) in [
        (Sale, "Sale", "capture"),
        (Tipped, "Sale", "capture"),
        (InParts, "Collection", "capture"),
        (Refunded, "Refund", "refund"),
    ] {
        let finds = format!("differentAmount {movement} {row} Authorized");
        cases.push(found(traffic, Penny(row), finds));
    }
    for (traffic, row, new, kind, movement) in [
        (Sale, "Sale", "Held", "held", "capture"),
        (InParts, "Collection", "UnderReview", "held", "capture"),
        (Refunded, "Refund", "UnderReview", "held", "refund"),
        (Sale, "Sale", "Reversed", "onlyAtDojo", "capture"),
        (Refunded, "Refund", "Reversed", "onlyAtDojo", "refund"),
    ] {
        let finds = format!("{kind} {movement} {row} {new}");
        cases.push(found(traffic, Change(row, status(new)), finds));
    }
    for (how, row) in [
        (json!({}), "Sale Authorized"),
        (status("Held"), "Sale Held"),
        (json!({"type": "Refund"}), "Refund Authorized"),
        (json!({"paymentIntentId": "pi_unknown"}), "Sale Authorized"),
        (json!({"paymentIntentId": null}), "Sale Authorized"),
    ] {
        cases.push(found(Sale, Extra(how), format!("onlyAtDojo - {row}")));
    }
    cases
}

/// A payment of the month.
struct Paid {
    day: Date,
    intent: String,
    at: OffsetDateTime,
    movements: Vec<Value>,
    /// Dojo's transactions, as they are before anything is made wrong.
    rows: Vec<Value>,
}

impl Paid {
    fn new(traffic: Traffic, intent: String, at: OffsetDateTime, amount: i64) -> Self {
        let mut paid = Self {
            day: at.date(),
            intent,
            at,
            movements: Vec::new(),
            rows: Vec::new(),
        };
        let hour = time_hours(1);
        match traffic {
            Traffic::Sale => paid.both(amount, at),
            Traffic::InParts => {
                paid.row("PreAuth", "Authorized", 2 * amount + 37, at);
                for part in [amount, amount + 37] {
                    paid.movement("capture", part, at);
                    paid.row("Collection", "Authorized", part, at);
                }
            }
            Traffic::Tipped => {
                paid.movement("capture", amount + 50, at);
                paid.row("Sale", "Authorized", amount, at);
                paid.rows[0]["tipsAmount"] = json!(50);
            }
            Traffic::Refunded => {
                paid.both(amount, at);
                paid.movement("refund", -30, at);
                paid.row("Refund", "Authorized", 30, at);
            }
            Traffic::RefundedElsewhere => {
                paid.both(amount, at);
                paid.noticed("refund", -30, at + hour);
                paid.row("Refund", "Authorized", 10, at);
                paid.row("Refund", "Authorized", 20, at);
            }
            Traffic::RefundNoticedLate => {
                paid.both(amount, at);
                paid.noticed("refund", -30, at + time_days(1));
                paid.row("Refund", "Authorized", 30, at);
            }
            Traffic::AroundMidnight => {
                let midnight = at.date().next_day().unwrap().midnight().assume_utc();
                paid.movement("capture", amount, midnight + hour / 6);
                paid.row("Sale", "Authorized", amount, midnight - hour / 6);
            }
            Traffic::Reversed => {
                paid.movement("capture", amount, at);
                paid.movement("reversal", -amount, at);
                paid.row("Sale", "Reversed", amount, at);
            }
            Traffic::Released => {
                paid.movement("reversal", 0, at);
                paid.movements[0]["amount"] = json!(amount);
                paid.row("PreAuth", "Reversed", amount, at);
            }
            Traffic::RefundReturned => {
                paid.both(amount, at);
                paid.movement("refund", -30, at);
                paid.movement("refundCorrection", 30, at);
                paid.row("Refund", "Reversed", 30, at);
            }
        }
        paid
    }

    fn movement(&mut self, kind: &str, net: i64, at: OffsetDateTime) {
        self.movements.push(json!({
            "intent": self.intent, "type": kind, "amount": net.abs(), "net": net, "at": rfc3339(at),
            "day": at.date().to_string(), "dated": "dojo",
        }));
    }

    /// A movement that occurred before `at`.
    fn noticed(&mut self, kind: &str, net: i64, at: OffsetDateTime) {
        self.movement(kind, net, at);
        let last = self.movements.last_mut().unwrap();
        last["dated"] = json!("noticed");
    }

    fn row(&mut self, kind: &str, status: &str, amount: i64, at: OffsetDateTime) {
        self.rows.push(json!({
            "type": kind, "status": status, "amount": amount, "paymentProduct": "PaymentLinks",
            "paymentIntentId": self.intent, "dateTime": rfc3339(at),
        }));
    }

    /// A capture, and its sale at Dojo.
    fn both(&mut self, amount: i64, at: OffsetDateTime) {
        self.movement("capture", amount, at);
        self.row("Sale", "Authorized", amount, at);
    }
}

/// A time without fractions of a second, as the API takes it.
fn rfc3339(at: OffsetDateTime) -> String {
    let (hour, minute, second) = at.to_hms();
    format!("{}T{hour:02}:{minute:02}:{second:02}Z", at.date())
}

/// Adds transactions to Dojo's list, and returns their ids.
async fn add(app: &TestApp, key: &str, rows: &[Value]) -> Vec<String> {
    let mut ids = Vec::new();
    for rows in rows.chunks(100) {
        let body = json!({"rows": rows, "apiKey": key});
        let added = app.sandbox.control("transactions", body).await;
        let added = added.as_array().unwrap().iter();
        ids.extend(added.map(|row| text(&row["id"]).to_owned()));
    }
    ids
}

/// A difference on one line: its day and kind, the movement's type, the transaction's type and status, and the intent.
fn told(day: Date, difference: &Value) -> String {
    let (movement, transaction) = (&difference["movement"], &difference["transaction"]);
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let row = match transaction {
        Value::Null => "-".to_owned(),
        row => format!("{} {}", text(&row["type"]), text(&row["status"])),
    };
    let intent = match movement {
        Value::Null => word(&transaction["paymentIntentId"]),
        movement => word(&movement["paymentIntentId"]),
    };
    let (kind, movement) = (text(&difference["kind"]), word(&movement["type"]));
    format!("{day} {kind} {movement} {row} {intent}")
}

/// What comparing these days finds: how many transactions Dojo lists, and every difference.
async fn compared(app: &TestApp, from: Date, to: Date) -> (i64, Vec<String>) {
    let (_, agrees) = lines(&mut reconcile(app, from, to));
    let (mut transactions, mut differences) = (0, Vec::new());
    let mut next = Some(from);
    while let Some(day) = next.filter(|day| *day <= to) {
        let result = results(app, day).await.remove(0);
        let listed = result["differences"].as_array().unwrap();
        assert_eq!(result["differenceCount"], listed.len());
        let state = if listed.is_empty() {
            "Agrees"
        } else {
            "Differs"
        };
        assert_eq!(result["state"], state);
        // Each transaction either is matched or differs.
        let differs = listed.iter().filter(|it| !it["transaction"].is_null());
        let differs = i64::try_from(differs.count()).unwrap();
        let of_day = result["transactions"].as_i64().unwrap();
        assert_eq!(result["matched"], of_day - differs, "{result:#}");
        transactions += of_day;
        differences.extend(listed.iter().map(|difference| told(day, difference)));
        next = day.next_day();
    }
    assert_eq!(agrees, differences.is_empty());
    differences.sort();
    (transactions, differences)
}

/// Whether the daily reconciliation counts a transaction.
fn counts(row: &Value) -> bool {
    let is_void = ["Declined", "Expired"].contains(&text(&row["status"]));
    let is_ours = row["paymentProduct"] == "PaymentLinks";
    is_ours && !is_void && (row["type"] != "PreAuth" || row["status"] == "Reversed")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_of_random_traffic_has_exactly_the_planted_differences() {
    const DAYS: i64 = 30;
    const PER_DAY: i64 = 24;
    let app = TestApp::with(&[UTC]).await;
    let template = app.created().await;
    let first = OffsetDateTime::now_utc().date() - time_days(40);
    let last = first + time_days(DAYS - 1);
    let half = first + time_days(DAYS / 2 - 1);
    let (cases, mut random) = (cases(), StdRng::seed_from_u64(14));
    let mut month = Vec::new();
    for number in 0..DAYS * PER_DAY {
        // Each case once, and then any.
        let case = usize::try_from(number).unwrap();
        let case = if case < cases.len() {
            case
        } else {
            random.random_range(0..cases.len())
        };
        let date = first + time_days(random.random_range(0..DAYS));
        let second = random.random_range(3600..22 * 3600);
        let at = date.midnight().assume_utc() + std::time::Duration::from_secs(second);
        let intent = format!("pi_sandbox_month_{number}");
        let amount = random.random_range(100..5000);
        month.push((
            &cases[case],
            Paid::new(cases[case].traffic, intent, at, amount),
        ));
    }
    let movements: Vec<_> = month
        .iter()
        .flat_map(|(_, paid)| &paid.movements)
        .cloned()
        .collect();
    insert(&app, &template, &movements).await;
    let rows: Vec<_> = month
        .iter()
        .flat_map(|(_, paid)| &paid.rows)
        .cloned()
        .collect();
    let mut ids = add(&app, DOJO_KEY, &rows).await.into_iter();

    // Before anything is made wrong, the books agree. The other half of the month is compared for the first time afterwards.
    let counted = |month: &[(&Case, Paid)], until: Date| {
        let paid = month.iter().filter(|(_, paid)| paid.day <= until);
        let rows = paid
            .flat_map(|(_, paid)| &paid.rows)
            .filter(|row| counts(row));
        i64::try_from(rows.count()).unwrap()
    };
    assert_eq!(
        compared(&app, first, half).await,
        (counted(&month, half), Vec::new())
    );

    let (mut expected, mut hidden, mut extra) = (Vec::new(), Vec::new(), Vec::new());
    for (case, paid) in &mut month {
        let ids: Vec<_> = ids.by_ref().take(paid.rows.len()).collect();
        let is = |kind: &str| {
            paid.rows
                .iter()
                .position(|row| row["type"] == kind)
                .unwrap()
        };
        let sale = json!({
            "type": "Sale", "status": "Authorized", "amount": 55, "paymentProduct": "PaymentLinks",
            "paymentIntentId": paid.intent, "dateTime": rfc3339(paid.at),
        });
        let mut intent = json!(paid.intent);
        match &case.plant {
            Plant::Nothing => {}
            Plant::Change(kind, how) => {
                let at = is(kind);
                change(&app, &json!({"id": ids[at]}), how.clone()).await;
                if how["hidden"] == true {
                    hidden.push((paid.day, *kind, ids[at].clone()));
                    paid.rows.remove(at);
                }
            }
            Plant::Penny(kind) => {
                let at = is(kind);
                let amount = paid.rows[at]["amount"].as_i64().unwrap() + 1;
                change(&app, &json!({"id": ids[at]}), json!({"amount": amount})).await;
            }
            Plant::Extra(how) => {
                let mut row = sale;
                for (name, value) in how.as_object().unwrap() {
                    row[name] = value.clone();
                }
                intent = row["paymentIntentId"].clone();
                extra.push(row.clone());
                paid.rows.push(row);
            }
            Plant::OfAnotherAccount => {
                add(&app, LEEDS_KEY, &[sale]).await;
            }
        }
        if let Some(finds) = &case.finds {
            let intent = intent.as_str().unwrap_or("-");
            let is_late =
                matches!(&case.plant, Plant::Change("Sale", how) if how["hidden"] == true);
            let line = format!("{} {finds} {intent}", paid.day);
            expected.push((is_late, line));
        }
    }
    add(&app, DOJO_KEY, &extra).await;
    expected.sort_by(|(_, one), (_, other)| one.cmp(other));
    let all: Vec<_> = expected.iter().map(|(_, line)| line.clone()).collect();
    assert!(all.len() > 200, "{} differences are many", all.len());
    assert_eq!(
        compared(&app, first, last).await,
        (counted(&month, last), all)
    );

    // Dojo lists the missing sales at last. The missing refunds stay missing.
    let late = hidden.iter().filter(|(_, kind, _)| *kind == "Sale");
    let late: Vec<_> = late.map(|(_, _, id)| id).collect();
    for id in &late {
        change(&app, &json!({"id": id}), json!({"hidden": false})).await;
    }
    let left = expected.into_iter().filter(|(is_late, _)| !is_late);
    let left: Vec<_> = left.map(|(_, line)| line).collect();
    let transactions = counted(&month, last) + i64::try_from(late.len()).unwrap();
    assert_eq!(compared(&app, first, last).await, (transactions, left));
}

pub fn time_days(days: i64) -> std::time::Duration {
    time_hours(24 * u64::try_from(days).unwrap())
}

fn time_hours(hours: u64) -> std::time::Duration {
    std::time::Duration::from_secs(hours * 3600)
}

/// Books these movements, each for a link of its own that is like `template`.
async fn insert(app: &TestApp, template: &Value, movements: &[Value]) {
    sqlx::query(
        "WITH new AS (
             SELECT * FROM jsonb_to_recordset($1) AS new (intent text, type text, amount bigint, net bigint, at timestamptz, day date, dated text)
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
                at, dated, day
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
    let capture = |intent: &str, day: Date| json!({"intent": intent, "type": "capture", "amount": 1000, "net": 1000, "at": noon(day), "day": day.to_string(), "dated": "dojo"});
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

/// What is at Dojo instead of the transaction that proves an operation.
enum Instead {
    /// Nothing else: it is there as it was made.
    Proof,
    /// It is changed.
    Changed(Value),
    /// Another one is there as well, which differs from it in this.
    AndAnother(Value),
    /// The other one is there alone.
    Another(Value),
}

/// How far [`forget_outcomes`] and [`age`] move what was done: by then, Dojo's list is complete.
const AGE: time::Duration = time::Duration::hours(2);

/// Makes the outcome of all operations unknown, and the movements without one, as if Dojo's responses had been lost two hours ago.
async fn forget_outcomes(app: &TestApp) {
    for statement in [
        "ALTER TABLE movements DISABLE TRIGGER movement_stays",
        "UPDATE movements SET operation_id = NULL, actor = NULL",
        "ALTER TABLE movements ENABLE TRIGGER movement_stays",
    ] {
        run(app, statement).await;
    }
    let hours = AGE.whole_hours();
    run(
        app,
        &format!(
            "UPDATE operations SET status = 'Unconfirmed', completed_at = NULL,
                                   created_at = created_at - interval '{hours} hours',
                                   asked_until = asked_until - interval '{hours} hours'"
        ),
    )
    .await;
}

/// Makes Dojo list a link's transactions as made two hours before, and returns them.
async fn age(app: &TestApp, link: &Value) -> Vec<Value> {
    let mut aged = Vec::new();
    for transaction in transactions(app, link).await {
        change(app, &transaction, json!({"hidden": true})).await;
        let made_at = OffsetDateTime::parse(text(&transaction["dateTime"]), &Rfc3339).unwrap();
        aged.push(json!({
            "type": transaction["type"], "status": transaction["status"], "paymentProduct": "PaymentLinks",
            "amount": transaction["amount"]["value"], "tipsAmount": transaction["tipsAmount"]["value"],
            "paymentIntentId": link["paymentIntentId"], "dateTime": (made_at - AGE).format(&Rfc3339).unwrap(),
        }));
    }
    add(app, DOJO_KEY, &aged).await;
    let mut listed = transactions(app, link).await;
    listed.retain(|transaction| transaction["hidden"] == false);
    listed
}

/// The statuses of a link's operations, oldest first.
async fn outcomes(app: &TestApp, link: &Value) -> Vec<String> {
    let operations = app.operations(link).await;
    let outcomes = operations.iter().map(|it| text(&it["status"]).to_owned());
    outcomes.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_proves_an_unconfirmed_operation_only_if_it_can_be_no_other() {
    use Instead::{AndAnother, Another, Changed, Proof};
    let app = TestApp::quick(&[UTC]).await;
    let (from, to) = around_today();
    let a_day_ago = rfc3339(OffsetDateTime::now_utc() - time_days(1));
    let status = |status: &str| json!({"status": status});
    let mut links = Vec::new();
    for (call, kind) in [("refunds", "Refund"), ("captures", "Collection")] {
        for instead in [
            Proof,
            Changed(status("Held")),
            Changed(status("UnderReview")),
            Changed(status("Reversed")),
            Changed(status("Declined")),
            Changed(json!({"amount": 301})),
            Changed(json!({"hidden": true})),
            AndAnother(json!({})),
            AndAnother(status("Declined")),
            Another(json!({"paymentProduct": "Terminal"})),
            Another(json!({"paymentIntentId": "pi_sandbox_of_nobody"})),
            Another(json!({"dateTime": a_day_ago})),
            Another(json!({"currencyCode": "EUR"})),
            Another(json!({"tipsAmount": 20})),
            Another(json!({"type": "Sale"})),
        ] {
            let link = if kind == "Refund" {
                app.paid().await
            } else {
                app.authorized().await
            };
            let body = json!({"amount": pounds(300)});
            app.operate_with_key(text(&link["id"]), &link, call, &body)
                .await
                .expect(200);
            let made = age(&app, &link).await.pop().unwrap();
            assert_eq!(made["type"], kind);
            let is_proven = matches!(instead, Proof);
            let (changed, another) = match instead {
                Proof => (json!({}), None),
                Changed(how) => (how, None),
                AndAnother(how) => (json!({}), Some(how)),
                Another(how) => (json!({"hidden": true}), Some(how)),
            };
            let what = format!("{kind} {changed} {another:?}");
            change(&app, &made, changed).await;
            if let Some(how) = another {
                let mut row = json!({
                    "type": kind, "status": "Authorized", "amount": 300, "paymentProduct": "PaymentLinks",
                    "paymentIntentId": link["paymentIntentId"], "dateTime": made["dateTime"],
                });
                for (name, value) in how.as_object().unwrap() {
                    row[name] = value.clone();
                }
                add(&app, DOJO_KEY, &[row]).await;
            }
            links.push((what, link, is_proven));
        }
    }
    app.in_step_with_dojo().await;
    forget_outcomes(&app).await;
    lines(&mut reconcile(&app, from, to));
    for (what, link, is_proven) in links {
        let [operation] = &app.operations(&link).await[..] else {
            panic!("there is one");
        };
        let status = if is_proven {
            "Succeeded"
        } else {
            "Unconfirmed"
        };
        assert_eq!(operation["status"], status, "{what}");
        if is_proven {
            let timeline = app.timeline(&link["id"]).await;
            let mut entries = timeline.iter();
            let last = entries.rfind(|entry| entry["type"] == "operationSucceeded");
            assert_eq!(last.unwrap()["cause"]["type"], "recovery");
            eventually("the movement names it", async || {
                let count = if operation["type"] == "refund" { 2 } else { 1 };
                let last = app.booked(&link, count).await.pop().unwrap();
                (last["operationId"] == operation["id"] && last["actor"] == "bootstrap")
                    .then_some(())
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_may_be_one_of_two_operations_proves_neither() {
    let app = TestApp::quick(&[UTC]).await;
    let (from, to) = around_today();
    let (paid, authorized) = (app.paid().await, app.authorized().await);
    for (call, link) in [("refunds", &paid), ("captures", &authorized)] {
        for (key, value) in [("1", 300), ("2", 300), ("3", 200)] {
            let key = format!("{call}-{key}");
            app.operation_outcome(&key, link, call, &json!({"amount": pounds(value)}))
                .await
                .expect(200);
        }
    }
    // Dojo doesn't document whether a transaction's amount includes the tip.
    let mut body = manual("Order 1");
    body["tipsAmount"] = pounds(100);
    let tipped = app.paid_as(&body, "Authorized").await;
    for value in [300, 340] {
        let body = json!({"amount": pounds(value), "tipsAmount": pounds(40)});
        app.operation_outcome(&format!("tipped-{value}"), &tipped, "captures", &body)
            .await
            .expect(200);
    }
    app.in_step_with_dojo().await;
    // One of the two of 3.00 is missing, so the other transaction could be either operation's.
    for link in [&paid, &authorized, &tipped] {
        let listed = age(&app, link).await;
        let of_300 = listed.iter().find(|it| it["amount"]["value"] == 300);
        change(&app, of_300.unwrap(), json!({"hidden": true})).await;
    }
    forget_outcomes(&app).await;
    lines(&mut reconcile(&app, from, to));
    for link in [&paid, &authorized] {
        assert_eq!(
            outcomes(&app, link).await,
            ["Unconfirmed", "Unconfirmed", "Succeeded"]
        );
    }
    assert_eq!(outcomes(&app, &tipped).await, ["Unconfirmed"; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_may_be_a_failed_capture_proves_no_other_while_that_is_looked_for() {
    let app = TestApp::quick(&[UTC]).await;
    let (from, to) = around_today();
    let link = app.authorized().await;
    for key in ["capture-1", "capture-2"] {
        app.operation_outcome(key, &link, "captures", &json!({"amount": pounds(300)}))
            .await
            .expect(200);
    }
    app.in_step_with_dojo().await;
    let made = age(&app, &link).await.pop().unwrap();
    change(&app, &made, json!({"hidden": true})).await;
    forget_outcomes(&app).await;
    let first = "WHERE id = (SELECT min(id::text)::uuid FROM operations)";
    run(
        &app,
        &format!(
            "UPDATE operations SET status = 'Failed', completed_at = now(), due_at = now() + interval '1 hour' {first}"
        ),
    )
    .await;
    lines(&mut reconcile(&app, from, to));
    assert_eq!(outcomes(&app, &link).await, ["Failed", "Unconfirmed"]);
    // It is no longer looked for.
    run(
        &app,
        &format!("UPDATE operations SET due_at = NULL {first}"),
    )
    .await;
    lines(&mut reconcile(&app, from, to));
    assert_eq!(outcomes(&app, &link).await, ["Failed", "Succeeded"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_list_of_the_whole_time_in_which_an_operation_may_have_been_made_proves_it() {
    let app = TestApp::quick(&[UTC]).await;
    let (from, to) = around_today();
    let refund = json!({"amount": pounds(300)});
    let link = app.paid().await;
    app.operate_with_key("refund-1", &link, "refunds", &refund)
        .await
        .expect(200);
    app.in_step_with_dojo().await;
    let made = transactions(&app, &link).await.pop().unwrap();
    run(
        &app,
        "UPDATE operations SET status = 'Unconfirmed', completed_at = NULL",
    )
    .await;
    // Dojo may list others late.
    lines(&mut reconcile(&app, from, to));
    assert_eq!(outcomes(&app, &link).await, ["Unconfirmed"]);

    // The list of a day begins an hour before it. What was made before that may be the operation.
    let before = from.previous_day().unwrap();
    run(
        &app,
        &format!(
            "UPDATE operations SET created_at = '{from} 00:00Z'::timestamptz - interval '65 minutes',
                                   asked_until = '{from} 00:00Z'::timestamptz - interval '55 minutes'"
        ),
    )
    .await;
    change(&app, &made, json!({"hidden": true})).await;
    let row = json!({
        "type": "Refund", "status": "Authorized", "amount": 300, "paymentProduct": "PaymentLinks",
        "paymentIntentId": link["paymentIntentId"], "dateTime": format!("{before}T23:03:00Z"),
    });
    add(&app, DOJO_KEY, &[row]).await;
    lines(&mut reconcile(&app, from, from));
    assert_eq!(outcomes(&app, &link).await, ["Unconfirmed"]);
    lines(&mut reconcile(&app, before, before));
    assert_eq!(outcomes(&app, &link).await, ["Succeeded"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tips_are_in_the_books_in_the_feed_and_in_the_comparison() {
    let app = TestApp::quick(&[UTC]).await;
    let (from, to) = around_today();
    let mut body = ten_pounds("Order 1");
    body["tipsAmount"] = pounds(100);
    let auto = app.paid_as(&body, "Captured").await;
    let mut body = manual("Order 2");
    body["tipsAmount"] = pounds(100);
    let in_parts = app.paid_as(&body, "Authorized").await;
    let first = json!({"amount": pounds(400), "tipsAmount": pounds(40)});
    for (key, body) in [("capture-1", &first), ("capture-2", &json!({}))] {
        app.operate_with_key(key, &in_parts, "captures", body)
            .await
            .expect(200);
    }
    app.operate_with_key("refund-1", &auto, "refunds", &json!({}))
        .await
        .expect(200);
    let moved = async |link: &Value, count: usize| {
        let movements = app.booked(link, count).await;
        let net = movements.iter().map(|it| it["net"]["value"].clone());
        net.collect::<Vec<_>>()
    };
    assert_eq!(moved(&auto, 2).await, [1100, -1100]);
    assert_eq!(moved(&in_parts, 2).await, [440, 660]);
    let captured = app.get("/v1/events?types=payment_link.captured").await;
    let captured = captured.expect(200).json();
    let mut captured: Vec<_> = captured["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["captured"]["value"].as_i64().unwrap())
        .collect();
    captured.sort_unstable();
    assert_eq!(captured, [440, 660, 1100]);

    // Dojo's list has the tip apart from the amount.
    let parts = age(&app, &in_parts).await;
    let last = parts.last().unwrap();
    assert_eq!(
        (&last["amount"], &last["tipsAmount"]),
        (&pounds(600), &pounds(60))
    );
    let (found, agrees) = lines(&mut reconcile(&app, from, to));
    assert!(agrees, "{found:#?}");

    // A capture that is proven by its transaction is found in the books by its amount with the tip.
    forget_outcomes(&app).await;
    change(&app, last, json!({"amount": 601})).await;
    lines(&mut reconcile(&app, from, to));
    let operations = app.operations(&in_parts).await;
    assert_eq!(
        outcomes(&app, &in_parts).await,
        ["Succeeded", "Unconfirmed"]
    );
    eventually("the movement names its operation", async || {
        let movements = app.booked(&in_parts, 2).await;
        (movements[0]["operationId"] == operations[0]["id"]).then_some(())
    })
    .await;
    // The amount of its second capture differs.
    let (found, agrees) = lines(&mut reconcile(&app, from, to));
    assert!(!agrees);
    let differs: Vec<_> = found.iter().map(|line| line[2].as_str()).collect();
    assert!(differs.contains(&"differentAmount"), "{found:#?}");
}
