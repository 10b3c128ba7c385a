//! The Transactions API.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use dojo_sandbox::Settings;
use openapi_guard::Document;
use reqwest::Method;
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::support::{KEY, TestSandbox, id, send, ten_pounds, ten_pounds_manual, text};

const PATH: &str = "/transactions/search";
const VERSION: &str = "2023-11-12";
const OTHER: &str = "sk_sandbox_other";
const DAY: u64 = 86_400;

async fn now(sandbox: &TestSandbox) -> OffsetDateTime {
    let now = text(&sandbox.control_get("clock").await["now"]);
    OffsetDateTime::parse(&now, &Rfc3339).expect("a time")
}

fn written(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).expect("a time that can be written")
}

/// A search of the last six days and the next one.
async fn recent(sandbox: &TestSandbox) -> Value {
    let now = now(sandbox).await;
    json!({
        "startDate": written(now - Duration::days(6)),
        "endDate": written(now + Duration::days(1)),
    })
}

async fn call(sandbox: &TestSandbox, key: &str, body: &Value) -> (u16, Value) {
    sandbox
        .call_as(key, VERSION, Method::POST, PATH, body)
        .await
}

/// The page that a search returns. Panics on failure.
async fn page(sandbox: &TestSandbox, key: &str, body: &Value) -> Value {
    let (status, page) = call(sandbox, key, body).await;
    assert_eq!(status, 200, "{page}");
    check(&page);
    page
}

/// The recent transactions, newest first.
async fn search(sandbox: &TestSandbox) -> Vec<Value> {
    let page = page(sandbox, KEY, &recent(sandbox).await).await;
    page["data"].as_array().expect("data").clone()
}

/// All transactions of an intent, oldest first, as the control API lists them.
async fn listed(sandbox: &TestSandbox, intent: &str) -> Vec<Value> {
    let path = format!("transactions?paymentIntentId={intent}");
    let list = sandbox.control_get(&path).await;
    list.as_array().expect("a list").clone()
}

/// Adds transactions, and returns their ids.
async fn add(sandbox: &TestSandbox, key: &str, rows: Value) -> Vec<String> {
    let added = sandbox
        .control("transactions", &json!({"apiKey": key, "rows": rows}))
        .await;
    added.as_array().expect("a list").iter().map(id).collect()
}

/// Adds this many transactions with the same time, and returns their ids, newest first.
async fn add_tied(sandbox: &TestSandbox, count: usize) -> Vec<String> {
    let mut ids = add(sandbox, KEY, json!(vec![terminal_sale(); count])).await;
    ids.reverse();
    ids
}

fn terminal_sale() -> Value {
    json!({"type": "Sale", "status": "Authorized", "amount": 250, "paymentProduct": "Terminal"})
}

async fn change(sandbox: &TestSandbox, id: &str, body: Value) -> Value {
    sandbox.control(&format!("transactions/{id}"), &body).await
}

async fn advance(sandbox: &TestSandbox, seconds: u64) {
    let body = json!({"advanceSeconds": seconds});
    sandbox.control("clock", &body).await;
}

async fn capture(sandbox: &TestSandbox, intent: &str, body: Value) {
    let path = format!("/payment-intents/{intent}/captures");
    let (status, response) = sandbox.post(&path, &body).await;
    assert_eq!(status, 200, "{response}");
}

async fn reverse(sandbox: &TestSandbox, intent: &str) {
    let path = format!("/payment-intents/{intent}/reversal");
    let (status, response) = sandbox.post(&path, &json!({})).await;
    assert_eq!(status, 200, "{response}");
}

async fn refund(sandbox: &TestSandbox, intent: &str, amount: u64) -> u16 {
    let path = format!("/payment-intents/{intent}/refunds");
    let request = sandbox.api(Method::POST, &path);
    let request = request.header("idempotencyKey", format!("{intent} {amount}"));
    send(request.json(&json!({"amount": amount}))).await.0
}

async fn authorized(sandbox: &TestSandbox) -> String {
    let intent = id(&sandbox.create(&ten_pounds_manual("Release")).await);
    sandbox.pay(&intent).await;
    intent
}

fn pounds(value: u64) -> Value {
    json!({"value": value, "currencyCode": "GBP"})
}

/// `Sale Authorized 1000`
fn summary(transaction: &Value) -> String {
    let (kind, status) = (text(&transaction["type"]), text(&transaction["status"]));
    format!("{kind} {status} {}", transaction["amount"]["value"])
}

fn summaries(transactions: &[Value]) -> Vec<String> {
    transactions.iter().map(summary).collect()
}

fn ids(transactions: &[Value]) -> Vec<String> {
    transactions.iter().map(id).collect()
}

/// Checks the members of a page. If `DOJO_TRANSACTIONS_OPENAPI` names Dojo's OpenAPI file of the Transactions API, the
/// page is checked against its schemas as well.
#[track_caller]
fn check(page: &Value) {
    static DOCUMENT: LazyLock<Option<Document>> = LazyLock::new(|| {
        let path = std::env::var_os("DOJO_TRANSACTIONS_OPENAPI").filter(|path| !path.is_empty())?;
        Some(Document::open(path).expect("Dojo's OpenAPI file"))
    });
    if let Some(document) = &*DOCUMENT {
        let violations = document.schema_violations("PagedTransaction", page);
        assert!(violations.is_empty(), "{violations:#?}\n{page:#}");
    }

    assert_members(page, &["after", "before", "data"], &[]);
    for transaction in page["data"].as_array().expect("data") {
        assert_members(
            transaction,
            &[
                "amount",
                "cashbackAmount",
                "dateTime",
                "id",
                "legacyId",
                "merchantId",
                "paymentDetails",
                "status",
                "tipsAmount",
                "type",
            ],
            &["paymentIntentId", "reference"],
        );
        let details = &transaction["paymentDetails"];
        let optional = ["authCode", "card"];
        assert_members(details, &["isRemote", "paymentProduct"], &optional);
        if !details["card"].is_null() {
            assert_members(&details["card"], &["fundingType", "number", "type"], &[]);
        }
    }
}

#[track_caller]
fn assert_members(object: &Value, required: &[&str], optional: &[&str]) {
    let members = object.as_object().expect("an object");
    for member in required {
        assert!(members.contains_key(*member), "{member} in {object}");
    }
    for member in members.keys().map(String::as_str) {
        assert!(
            required.contains(&member) || optional.contains(&member),
            "{member} in {object}"
        );
    }
}

#[tokio::test]
async fn a_payment_is_a_sale() {
    let sandbox = TestSandbox::start().await;
    let mut body = ten_pounds();
    body["tipsAmount"] = pounds(150);
    body["serviceChargeAmount"] = pounds(20);
    body["paymentSource"] = json!("payment-links");
    let intent = id(&sandbox.create(&body).await);
    assert_eq!(search(&sandbox).await, Vec::<Value>::new());

    let paid = sandbox.pay(&intent).await["paymentDetails"].clone();
    let found = search(&sandbox).await;
    let legacy_id = text(&found[0]["legacyId"]);
    assert_ne!(paid["transactionId"], legacy_id.as_str());
    let merchant_id = text(&found[0]["merchantId"]);
    assert!(merchant_id.starts_with("mid_sandbox_"), "{merchant_id}");
    let sale = json!({
        "id": paid["transactionId"],
        "legacyId": legacy_id,
        "dateTime": paid["transactionDateTime"],
        "paymentIntentId": intent,
        "merchantId": merchant_id,
        "type": "Sale",
        "status": "Authorized",
        "amount": pounds(1020),
        "cashbackAmount": pounds(0),
        "tipsAmount": pounds(150),
        "reference": "Order 234",
        "paymentDetails": {
            "card": {"number": "**********1005", "fundingType": "Debit", "type": "Mastercard"},
            "authCode": paid["authCode"],
            "isRemote": true,
            "paymentProduct": "PaymentLinks",
        },
    });
    assert_eq!(found, [sale]);
    assert_eq!(search(&sandbox).await, found, "nothing changes by itself");
}

#[tokio::test]
async fn the_product_says_whether_it_was_a_payment_link() {
    let sandbox = TestSandbox::start().await;
    for (members, product) in [
        (json!({}), "OnlineCheckout"),
        (json!({"paymentSource": "web"}), "OnlineCheckout"),
        (json!({"isNotOnlineCheckout": false}), "OnlineCheckout"),
        (json!({"isNotOnlineCheckout": true}), "PaymentLinks"),
        (json!({"paymentSource": "payment-links"}), "PaymentLinks"),
    ] {
        let mut body = ten_pounds();
        for (name, value) in members.as_object().expect("an object") {
            body[name] = value.clone();
        }
        let intent = id(&sandbox.create(&body).await);
        sandbox.pay(&intent).await;
        let found = listed(&sandbox, &intent).await;
        let details = &found[0]["paymentDetails"];
        assert_eq!(details["paymentProduct"], product, "{members}");
    }
}

#[tokio::test]
async fn an_authorization_is_a_pre_auth_and_each_capture_a_collection() {
    let sandbox = TestSandbox::start().await;
    let mut body = ten_pounds_manual("Release");
    body["tipsAmount"] = pounds(100);
    body["cashbackAmount"] = pounds(50);
    let intent = id(&sandbox.create(&body).await);
    sandbox.pay(&intent).await;
    let found = search(&sandbox).await;
    assert_eq!(summaries(&found), ["PreAuth AwaitingCollection 1000"]);
    assert_eq!(found[0]["tipsAmount"], pounds(100));
    assert_eq!(found[0]["cashbackAmount"], pounds(50));

    capture(&sandbox, &intent, json!({"amount": 400})).await;
    let rest = json!({"amount": 650, "tipsAmount": 100});
    capture(&sandbox, &intent, rest).await;
    let found = search(&sandbox).await;
    assert_eq!(
        summaries(&found),
        [
            "Collection Authorized 650",
            "Collection Authorized 400",
            "PreAuth Authorized 1000",
        ]
    );
    assert_eq!(found[0]["tipsAmount"], pounds(100));
    assert_eq!(found[1]["tipsAmount"], pounds(0));
    let captured = sandbox.intent(&intent).await;
    assert_eq!(found[2]["id"], captured["paymentDetails"]["transactionId"]);
    assert!(id(&found[0]).starts_with("txn_sandbox_"), "{}", found[0]);
    assert_eq!(found[0]["paymentDetails"], found[2]["paymentDetails"]);
    assert_eq!(ids(&found).iter().collect::<BTreeSet<_>>().len(), 3);
}

#[tokio::test]
async fn an_authorization_ends_in_several_ways() {
    let sandbox = TestSandbox::start().await;
    let reversed = authorized(&sandbox).await;
    reverse(&sandbox, &reversed).await;
    let expired = authorized(&sandbox).await;
    let mut limited = Vec::new();
    for action in ["Release", "Capture"] {
        let mut body = ten_pounds_manual(action);
        body["autoExpireIn"] = json!("01:00:00");
        let intent = id(&sandbox.create(&body).await);
        sandbox.pay(&intent).await;
        limited.push(intent);
    }

    advance(&sandbox, 3600).await;
    let pre_auth = |status: &str| format!("PreAuth {status} 1000");
    let of = async |intent: &str| summaries(&listed(&sandbox, intent).await);
    assert_eq!(of(&reversed).await, [pre_auth("Reversed")]);
    assert_eq!(of(&limited[0]).await, [pre_auth("Released")]);
    let collection = "Collection Authorized 1000".to_owned();
    assert_eq!(of(&limited[1]).await, [pre_auth("Authorized"), collection]);
    assert_eq!(of(&expired).await, [pre_auth("AwaitingCollection")]);
    advance(&sandbox, 7 * DAY).await;
    assert_eq!(of(&expired).await, [pre_auth("Expired")]);
}

#[tokio::test]
async fn a_sale_can_be_reversed() {
    let sandbox = TestSandbox::start().await;
    sandbox.start_new_day().await;
    let intent = sandbox.create_simple().await;
    sandbox.pay(&intent).await;
    reverse(&sandbox, &intent).await;
    let found = search(&sandbox).await;
    assert_eq!(summaries(&found), ["Sale Reversed 1000"]);
}

#[tokio::test]
async fn a_declined_attempt_is_a_declined_transaction() {
    let sandbox = TestSandbox::start().await;
    let auto = sandbox.create_simple().await;
    let manual = id(&sandbox.create(&ten_pounds_manual("Release")).await);
    for (intent, kind, paid) in [
        (&auto, "Sale", "Authorized"),
        (&manual, "PreAuth", "AwaitingCollection"),
    ] {
        let path = format!("payment-intents/{intent}");
        let declined = format!("{path}/decline");
        let declined = sandbox.control(&declined, &json!({})).await;
        // An attempt that waits for its challenge isn't a transaction yet.
        let challenge = format!("{path}/challenge");
        sandbox.control(&challenge, &json!({})).await;
        let found = listed(&sandbox, intent).await;
        assert_eq!(summaries(&found), [format!("{kind} Declined 1000")]);
        let attempt = &declined["paymentEvents"][0];
        assert_eq!(found[0]["id"], attempt["transactionId"]);
        let card = json!({"number": "**********1013", "fundingType": "Debit", "type": "Visa"});
        assert_eq!(found[0]["paymentDetails"]["card"], card);
        assert!(found[0]["paymentDetails"]["authCode"].is_null());

        sandbox.pay(intent).await;
        let found = listed(&sandbox, intent).await;
        assert_eq!(summary(&found[1]), format!("{kind} {paid} 1000"));
    }
    assert_eq!(search(&sandbox).await.len(), 4);
}

#[tokio::test]
async fn each_refund_is_a_transaction() {
    let sandbox = TestSandbox::start().await;
    let intent = sandbox.create_simple().await;
    sandbox.pay(&intent).await;
    assert_eq!(refund(&sandbox, &intent, 1001).await, 400);
    assert_eq!(refund(&sandbox, &intent, 400).await, 200);
    assert_eq!(refund(&sandbox, &intent, 400).await, 200, "a repeated key");
    let portal = format!("payment-intents/{intent}/refund");
    sandbox.control(&portal, &json!({})).await;
    let found = search(&sandbox).await;
    assert_eq!(
        summaries(&found),
        [
            "Refund Authorized 600",
            "Refund Authorized 400",
            "Sale Authorized 1000",
        ]
    );
    assert_eq!(found[1]["paymentIntentId"], intent.as_str());
    assert_eq!(found[1]["tipsAmount"], pounds(0));
    let card = |transaction: &Value| transaction["paymentDetails"]["card"].clone();
    assert_eq!(card(&found[1]), card(&found[2]));
}

#[tokio::test]
async fn setting_a_status_or_an_amount_moves_no_money() {
    let sandbox = TestSandbox::start().await;
    let intent = sandbox.create_simple().await;
    let path = format!("payment-intents/{intent}");
    let status = json!({"status": "Captured"});
    sandbox.control(&format!("{path}/status"), &status).await;
    let amount = json!({"amount": 1});
    sandbox.control(&format!("{path}/amount"), &amount).await;
    assert_eq!(search(&sandbox).await, Vec::<Value>::new());
    // Without a payment, no card is known.
    assert_eq!(refund(&sandbox, &intent, 1).await, 200);
    let found = search(&sandbox).await;
    assert_eq!(summaries(&found), ["Refund Authorized 1"]);
    assert!(found[0]["paymentDetails"]["card"].is_null());
}

#[tokio::test]
async fn pages_go_through_transactions_with_the_same_time() {
    let sandbox = TestSandbox::start().await;
    let old = sandbox.create_simple().await;
    sandbox.pay(&old).await;
    let mut newest_first = add_tied(&sandbox, 5).await;
    newest_first.extend(ids(&listed(&sandbox, &old).await));
    let period = recent(&sandbox).await;
    let turn = async |cursor: Value| {
        let mut body = period.clone();
        body["cursor"] = cursor;
        let page = page(&sandbox, KEY, &body).await;
        (ids(page["data"].as_array().expect("data")), page)
    };

    let (found, first) = turn(json!({"limit": 2})).await;
    assert_eq!(found, newest_first[..2]);
    assert!(first["before"].is_null());
    // A transaction that is added in the meantime doesn't shift the pages.
    let late = add_tied(&sandbox, 1).await;
    let (found, second) = turn(json!({"limit": 2, "after": first["after"]})).await;
    assert_eq!(found, newest_first[2..4]);
    let (found, last) = turn(json!({"limit": 2, "after": second["after"]})).await;
    assert_eq!(found, newest_first[4..]);
    assert!(last["after"].is_null());

    let (found, back) = turn(json!({"limit": 2, "before": second["before"]})).await;
    assert_eq!(found, newest_first[..2]);
    let (found, _) = turn(json!({"limit": 2, "before": back["before"]})).await;
    assert_eq!(found, late);

    // An empty page leads back to the pages beside it.
    for id in &newest_first[4..] {
        change(&sandbox, id, json!({"hidden": true})).await;
    }
    let (found, empty) = turn(json!({"limit": 2, "after": second["after"]})).await;
    assert!(found.is_empty() && empty["after"].is_null(), "{empty}");
    let (found, _) = turn(json!({"limit": 2, "before": empty["before"]})).await;
    assert_eq!(found, newest_first[2..4]);
}

#[tokio::test]
async fn a_page_has_at_most_fifty_transactions_by_default() {
    let sandbox = TestSandbox::start().await;
    let newest_first = add_tied(&sandbox, 120).await;
    let mut body = recent(&sandbox).await;
    for (limit, length) in [(json!(null), 50), (json!(1), 1), (json!(100), 100)] {
        if !limit.is_null() {
            body["cursor"] = json!({"limit": limit});
        }
        let page = page(&sandbox, KEY, &body).await;
        let found = ids(page["data"].as_array().expect("data"));
        assert_eq!(found, newest_first[..length]);
        assert!(page["after"].is_string(), "{limit}");
    }
}

#[tokio::test]
async fn a_late_transaction_appears_among_earlier_ones() {
    let sandbox = TestSandbox::start().await;
    let now = now(&sandbox).await;
    let mut added = Vec::new();
    for hours in [1, 3, 2] {
        let mut row = terminal_sale();
        row["dateTime"] = json!(written(now - Duration::hours(hours)));
        added.extend(add(&sandbox, KEY, json!([row])).await);
    }
    let found = ids(&search(&sandbox).await);
    assert_eq!(found, [0, 2, 1].map(|index: usize| added[index].clone()));
}

#[tokio::test]
async fn a_period_includes_both_ends_and_lasts_at_most_seven_days() {
    let sandbox = TestSandbox::start().await;
    let start = now(&sandbox).await - Duration::days(7);
    let end = start + Duration::days(7);
    let tick = Duration::nanoseconds(100);
    let rows = [start - tick, start, end, end + tick].map(|time| {
        let mut row = terminal_sale();
        row["dateTime"] = json!(written(time));
        row
    });
    let added = add(&sandbox, KEY, json!(rows)).await;
    let body = |start, end| json!({"startDate": written(start), "endDate": written(end)});
    let page = page(&sandbox, KEY, &body(start, end)).await;
    let found = ids(page["data"].as_array().expect("data"));
    assert_eq!(found, [added[2].as_str(), &added[1]]);
    assert_eq!(call(&sandbox, KEY, &body(end, end)).await.0, 200);

    for (start, end) in [(start - tick, end), (end, start)] {
        let (status, problem) = call(&sandbox, KEY, &body(start, end)).await;
        assert_eq!(status, 400);
        assert!(problem["errors"]["EndDate"].is_array(), "{problem}");
    }
}

#[tokio::test]
async fn all_errors_of_a_search_are_reported_at_once() {
    let sandbox = TestSandbox::start().await;
    let (day, week) = ("2026-03-01T00:00:00Z", "2026-03-09T00:00:00Z");
    for (body, fields) in [
        (json!({}), vec!["EndDate", "StartDate"]),
        (json!(null), vec!["$"]),
        (
            json!({"startDate": null, "endDate": 1}),
            vec!["EndDate", "StartDate"],
        ),
        (
            json!({
                "startDate": "yesterday",
                "endDate": "2026-03-01",
                "statuses": ["Authorized"],
                "cursor": {"limit": 101, "before": "cur_0", "after": 1, "page": 2},
            }),
            vec![
                "Cursor",
                "Cursor.After",
                "Cursor.Before",
                "Cursor.Limit",
                "Cursor.Page",
                "EndDate",
                "StartDate",
                "Statuses",
            ],
        ),
        (
            json!({"startDate": day, "endDate": week, "cursor": {"limit": 0}}),
            vec!["Cursor.Limit", "EndDate"],
        ),
        (
            json!({"startDate": day, "endDate": day, "cursor": {"after": "pi_1"}}),
            vec!["Cursor.After"],
        ),
    ] {
        let (status, problem) = call(&sandbox, KEY, &body).await;
        assert_eq!((status, &problem["status"]), (400, &json!(400)), "{body}");
        assert_eq!(problem["title"], "One or more validation errors occurred.");
        let errors = problem["errors"].as_object().expect("errors");
        assert_eq!(errors.keys().collect::<Vec<_>>(), fields, "{body}");
    }
    let nothing = json!({"startDate": day, "endDate": day, "cursor": null});
    let empty = json!({"data": [], "before": null, "after": null});
    assert_eq!(call(&sandbox, KEY, &nothing).await, (200, empty));
}

#[tokio::test]
async fn every_version_has_the_same_transactions() {
    let sandbox = TestSandbox::start().await;
    let intent = sandbox.create_simple().await;
    sandbox.pay(&intent).await;
    let body = recent(&sandbox).await;
    let expected = call(&sandbox, KEY, &body).await;
    assert!(expected.1["data"][0]["paymentDetails"]["card"].is_object());
    for version in ["2022-04-07", "2023-11-11", "2024-02-05", "2026-02-27"] {
        let found = sandbox
            .call_as(KEY, version, Method::POST, PATH, &body)
            .await;
        assert_eq!(found, expected, "{version}");
    }

    let request = || sandbox.request(Method::POST, PATH).json(&body);
    let unversioned = request().header("authorization", format!("Basic {KEY}"));
    assert_eq!(send(unversioned).await.0, 400);
    let (status, problem) = send(request().header("version", VERSION)).await;
    assert_eq!((status, &problem["status"]), (401, &json!(401)));
    assert_eq!(sandbox.get(PATH).await.0, 405);
}

#[tokio::test]
async fn an_account_sees_only_its_own_transactions() {
    let sandbox = TestSandbox::start().await;
    let mine = sandbox.create_simple().await;
    sandbox.pay(&mine).await;
    let theirs = add(&sandbox, OTHER, json!([terminal_sale()])).await;
    let body = recent(&sandbox).await;
    let page_of = async |key: &str| page(&sandbox, key, &body).await;
    let (of_mine, of_theirs) = (page_of(KEY).await, page_of(OTHER).await);
    assert_eq!(of_mine["data"][0]["paymentIntentId"], mine.as_str());
    assert_eq!(of_mine["data"].as_array().map(Vec::len), Some(1));
    assert!(of_mine["before"].is_null(), "the other's is newer");
    assert_eq!(of_theirs["data"][0]["id"], theirs[0].as_str());
    assert!(of_theirs["after"].is_null(), "the other's is older");
    let merchant = |page: &Value| text(&page["data"][0]["merchantId"]);
    assert_ne!(merchant(&of_mine), merchant(&of_theirs));
    assert_eq!(page_of("sk_sandbox_third").await["data"], json!([]));
}

#[tokio::test]
async fn young_transactions_can_be_hidden() {
    let sandbox = TestSandbox::start().await;
    let lag = json!({"seconds": 60.0});
    assert_eq!(sandbox.control("transaction-lag", &lag).await, lag);
    assert_eq!(sandbox.control_get("transaction-lag").await, lag);
    let too_long = json!({"seconds": 86_401});
    let (status, _) = sandbox.control_response("transaction-lag", &too_long).await;
    assert_eq!(status, 400);

    let intent = sandbox.create_simple().await;
    sandbox.pay(&intent).await;
    assert_eq!(search(&sandbox).await, Vec::<Value>::new());
    assert_eq!(listed(&sandbox, &intent).await.len(), 1);
    assert_eq!(sandbox.intent(&intent).await["status"], "Captured");
    advance(&sandbox, 60).await;
    assert_eq!(summaries(&search(&sandbox).await), ["Sale Authorized 1000"]);
}

#[tokio::test]
async fn transactions_can_differ_from_their_intent() {
    let sandbox = TestSandbox::start().await;
    let intent = authorized(&sandbox).await;
    let transaction = id(&search(&sandbox).await[0]);
    let changed = change(&sandbox, &transaction, json!({"amount": 999})).await;
    assert_eq!(changed["hidden"], false);
    assert_eq!(changed["amount"], pounds(999));
    for status in ["Held", "UnderReview"] {
        change(&sandbox, &transaction, json!({"status": status})).await;
        let expected = format!("PreAuth {status} 999");
        assert_eq!(summaries(&search(&sandbox).await), [expected]);
    }
    change(&sandbox, &transaction, json!({"hidden": true})).await;
    assert_eq!(search(&sandbox).await, Vec::<Value>::new());
    assert_eq!(listed(&sandbox, &intent).await[0]["hidden"], true);
    change(&sandbox, &transaction, json!({"hidden": false})).await;
    assert_eq!(search(&sandbox).await.len(), 1);
    assert_eq!(sandbox.intent(&intent).await["amount"], pounds(1000));

    // What happens to the intent still changes the status.
    reverse(&sandbox, &intent).await;
    let found = search(&sandbox).await;
    assert_eq!(summaries(&found), ["PreAuth Reversed 999"]);
    let unknown = change(&sandbox, &transaction, json!({"status": "Pondering"})).await;
    assert_eq!(unknown["status"], "Pondering");
}

#[tokio::test]
async fn transactions_can_belong_to_no_intent_or_to_an_unknown_one() {
    let sandbox = TestSandbox::start().await;
    let now = now(&sandbox).await;
    let earlier = written(now - Duration::days(2));
    let rows = json!([
        terminal_sale(),
        {
            "type": "Refund", "status": "UnderReview", "amount": 300, "tipsAmount": 20, "currencyCode": "EUR",
            "paymentProduct": "PaymentLinks", "paymentIntentId": "pi_unknown",
            "reference": "Somebody else's", "dateTime": earlier,
        },
    ]);
    add(&sandbox, KEY, rows).await;
    let found = search(&sandbox).await;
    assert_eq!(
        summaries(&found),
        ["Sale Authorized 250", "Refund UnderReview 300"]
    );
    let details = json!({"isRemote": false, "paymentProduct": "Terminal"});
    assert_eq!(found[0]["paymentDetails"], details);
    assert!(found[0]["paymentIntentId"].is_null());
    let euros = |value: u64| json!({"value": value, "currencyCode": "EUR"});
    assert_eq!(found[1]["amount"], euros(300));
    assert_eq!(found[1]["tipsAmount"], euros(20));
    assert_eq!(found[1]["reference"], "Somebody else's");
    let date_time = text(&found[1]["dateTime"]);
    assert_eq!(date_time[..19], earlier[..19]);
    assert_eq!(ids(&listed(&sandbox, "pi_unknown").await), ids(&found[1..]));
    let all = sandbox.control_get("transactions").await;
    assert_eq!(all.as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn invalid_calls_of_the_control_api_are_rejected() {
    let sandbox = TestSandbox::start().await;
    let mut undated = terminal_sale();
    undated["dateTime"] = json!("yesterday");
    let mut unknown = terminal_sale();
    unknown["hidden"] = json!(true);
    for (path, body, expected) in [
        ("transactions", json!({"rows": []}), 400),
        ("transactions", json!({"apiKey": KEY, "rows": [{}]}), 400),
        (
            "transactions",
            json!({"apiKey": KEY, "rows": [undated]}),
            400,
        ),
        (
            "transactions",
            json!({"apiKey": KEY, "rows": [unknown]}),
            400,
        ),
        ("transactions/txn_unknown", json!({"amount": 1}), 404),
        ("transactions/txn_unknown", json!({"amuont": 1}), 400),
    ] {
        let (status, problem) = sandbox.control_response(path, &body).await;
        assert_eq!(status, expected, "{path} {body}: {problem}");
    }
    assert_eq!(sandbox.control_get("transactions").await, json!([]));

    // A sandbox with a list of keys has a default.
    let sandbox = TestSandbox::with_settings(Settings {
        api_key: Some(KEY.to_owned()),
        ..Settings::default()
    })
    .await;
    let body = json!({"rows": [terminal_sale()]});
    sandbox.control("transactions", &body).await;
    assert_eq!(search(&sandbox).await.len(), 1);
}

#[tokio::test]
async fn a_search_can_fail() {
    let sandbox = TestSandbox::start().await;
    let body = recent(&sandbox).await;
    let fault =
        |status: u16| json!({"operation": "transactions", "kind": "status", "status": status});
    for status in [401, 403, 429, 503] {
        sandbox.control("faults", &fault(status)).await;
        let (found, problem) = call(&sandbox, KEY, &body).await;
        assert_eq!((found, &problem["status"]), (status, &json!(status)));
        assert_eq!(call(&sandbox, KEY, &body).await.0, 200);
    }
    // Without access until the faults are cleared. Other calls are unaffected.
    let mut forbidden = fault(403);
    forbidden["share"] = json!(1);
    sandbox.control("faults", &forbidden).await;
    for _ in 0..2 {
        assert_eq!(call(&sandbox, KEY, &body).await.0, 403);
    }
    let intents = sandbox.post("/payment-intents/search", &json!({})).await;
    assert_eq!(intents.0, 200);

    let requests = sandbox.control_get("requests?operation=transactions").await;
    let requests = requests.as_array().expect("a list");
    assert_eq!(requests.len(), 10);
    assert_eq!(requests[0]["operation"], "transactions");
    assert_eq!(requests[0]["path"], PATH);
    assert_eq!(requests[0]["body"], body);
    assert_eq!(requests[0]["answered"], 401);
}

#[tokio::test]
async fn transactions_stay_in_their_time_when_the_clock_moves() {
    let sandbox = TestSandbox::start().await;
    let intent = authorized(&sandbox).await;
    let before = recent(&sandbox).await;
    advance(&sandbox, 7 * DAY).await;
    // The authorization has ended by the time of the search.
    assert_eq!(search(&sandbox).await, Vec::<Value>::new());
    let page = page(&sandbox, KEY, &before).await;
    assert_eq!(summary(&page["data"][0]), "PreAuth Expired 1000");
    assert_eq!(page["data"][0]["paymentIntentId"], intent.as_str());

    let paid = sandbox.create_simple().await;
    sandbox.pay(&paid).await;
    let found = search(&sandbox).await;
    assert_eq!(summaries(&found), ["Sale Authorized 1000"]);
}
