//! The books at the console: that they show what the API and the feed report, how they compare with Dojo's list, and nothing of
//! other accounts.

use std::collections::BTreeMap;

use reqwest::{Method, header::ACCEPT};
use serde_json::{Value, json};
use sqlx::types::time::Date;
use url::form_urlencoded::Serializer;

use crate::{
    accounts::Folder,
    commands::create_limited_key,
    console::{self, Visitor, hostile, path_of, run, url_of},
    console_browser::{Look, WIDE},
    daily_reconciliation::{UTC, around_today, change, lines, reconcile, time_days, transactions},
    movements::many_movements,
    support::{
        API_KEY, Answer, DOJO_KEY, LEEDS_KEY, QUICK, TestApp, eventually, pounds, send, ten_pounds,
        text,
    },
};

/// A console, and jobs that book what happens at once.
async fn start(more: &[(&str, &str)]) -> TestApp {
    console::start(&[&QUICK[..], &[UTC], more].concat()).await
}

/// The same, with the account `leeds` as well.
async fn two_sites(folder: &Folder) -> TestApp {
    let accounts =
        format!("[accounts.leeds]\nenvironment = \"sandbox\"\napi_key = \"{LEEDS_KEY}\"\n");
    let file = folder.write("accounts.toml", &accounts);
    start(&[("DOJO_ACCOUNTS_FILE", &file)]).await
}

/// The query for everything that happens in a test, even around midnight.
fn lately() -> String {
    let (from, to) = around_today();
    format!("from={from}&to={to}")
}

/// The text of a piece of a page.
fn plain(html: &str) -> String {
    let mut text = String::new();
    for piece in html.split('<') {
        let (_, rest) = piece.split_once('>').unwrap_or(("", piece));
        text.push_str(rest);
    }
    let escaped = [
        ("&#60;", "<"),
        ("&#62;", ">"),
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&#38;", "&"),
    ];
    for (escape, letter) in escaped {
        text = text.replace(escape, letter);
    }
    text.trim().to_owned()
}

/// What the cells of a column contain, from top to bottom.
fn column(table: &str, name: &str) -> Vec<String> {
    let begin = format!("data-name=\"{name}\">");
    let cells = table.split(&begin).skip(1);
    cells
        .map(|cell| plain(cell.split("</td>").next().unwrap()))
        .collect()
}

/// The table with this caption.
#[track_caller]
fn table<'a>(page: &'a str, caption: &str) -> &'a str {
    let caption = format!("<caption class=\"hidden\">{caption}");
    let found = page.split("<table").find(|table| table.contains(&caption));
    let found = found.unwrap_or_else(|| panic!("no table {caption:?} in {page}"));
    found.split("</table>").next().unwrap()
}

fn movements_of(page: &str) -> &str {
    table(page, "Movements, in the order of their business days")
}

/// An amount as pages show it.
fn shown(money: &Value) -> String {
    let value = money["value"].as_i64().unwrap();
    let sign = if value < 0 { "−" } else { "" };
    let value = value.unsigned_abs();
    assert_eq!(money["currencyCode"], "GBP");
    assert!(value < 100_000, "it has no commas");
    format!("{sign}£{}.{:02}", value / 100, value % 100)
}

/// The path of the next page.
fn next_of(page: &str) -> Option<String> {
    let before = page
        .split("rel=\"next\"")
        .next()
        .filter(|before| *before != page)?;
    let path = before.rsplit("href=\"").next()?.split('"').next()?;
    Some(path.replace("&#38;", "&"))
}

/// Items of a list of the API.
async fn listed(app: &TestApp, path: &str) -> Vec<Value> {
    let page = app.get(path).await.expect(200).json();
    page["data"].as_array().unwrap().clone()
}

/// The path with one parameter.
fn with(path: &str, name: &str, value: &str) -> String {
    let query = Serializer::new(String::new())
        .append_pair(name, value)
        .finish();
    format!("{path}?{query}")
}

/// Stores the result of a day's comparison.
pub async fn compared(app: &TestApp, account: &str, day: Date, state: &str, differences: &Value) {
    sqlx::query(
        "INSERT INTO daily_reconciliations (account, business_day, state, reconciled_at, transactions, matched,
                                            difference_count, differences)
         VALUES ($1, $2, $3, now(), 9, 7, jsonb_array_length($4), $4)",
    )
    .bind(account)
    .bind(day)
    .bind(state)
    .bind(differences)
    .execute(&app.pool)
    .await
    .unwrap();
}

/// A transaction that only Dojo has, with this text wherever Dojo sends one.
pub fn only_at_dojo(mark: &str) -> Value {
    json!({"kind": "onlyAtDojo", "movement": null, "transaction": {
        "id": mark, "occurredAt": "2026-11-22T16:20:09.114000Z", "type": mark, "status": mark,
        "amount": {"value": 999, "currencyCode": mark}, "tipsAmount": null, "cashbackAmount": null,
        "paymentIntentId": mark, "reference": mark, "paymentProduct": "PaymentLinks",
    }})
}

#[tokio::test]
async fn the_books_show_what_the_api_and_the_feed_report() {
    let app = start(&[]).await;
    let link = app.paid().await;
    app.booked(&link, 1).await;
    let refund = json!({"amount": pounds(300)});
    app.operate_with_key("refund-1", &link, "refunds", &refund)
        .await
        .expect(200);
    app.booked(&link, 2).await;
    app.sandbox
        .act(&link["paymentIntentId"], "refund", json!({"amount": 200}))
        .await;
    app.refresh(&link["id"]).await.expect(200);
    app.booked(&link, 3).await;
    let other = app.create(&ten_pounds("Order 2")).await.expect(201).json();
    app.sandbox.pay(&other["paymentIntentId"]).await;
    app.read_until_confirmed(&other["id"]).await;
    app.booked(&other, 1).await;

    let visitor = Visitor::bootstrap(&app).await;
    let page = visitor
        .get(&format!("/books?{}", lately()))
        .await
        .expect(200)
        .text;
    let movements = listed(&app, &format!("/v1/movements?{}", lately())).await;
    let rows = movements_of(&page);
    let column_of = |name: &str| column(rows, name);
    let amounts: Vec<_> = movements.iter().map(|it| shown(&it["amount"])).collect();
    assert_eq!(column_of("Amount"), amounts);
    let net: Vec<_> = movements.iter().map(|it| shown(&it["net"])).collect();
    assert_eq!(column_of("Net"), net);
    let kinds: Vec<_> = movements
        .iter()
        .map(|it| match text(&it["type"]) {
            "capture" => "Capture",
            "refund" => "Refund",
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(column_of("Kind"), kinds);
    for ((movement, card), by) in movements
        .iter()
        .zip(column_of("Card"))
        .zip(column_of("Requested by"))
    {
        let code = text(&movement["authCode"]);
        assert_eq!(card, format!("··1005 authorization {code}"));
        let expected = match (&movement["operationId"], text(&movement["type"])) {
            (Value::String(id), _) => format!("bootstrap {id}"),
            (_, "capture") => "the customer, or elsewhere".to_owned(),
            _ => "elsewhere".to_owned(),
        };
        assert_eq!(by, expected);
        let path = format!("href=\"/links/{}\"", text(&movement["paymentLinkId"]));
        assert!(rows.contains(&path), "{path} is not in {rows}");
    }
    assert_eq!(
        rows.matches("when noticed").count(),
        1,
        "the portal's refund"
    );

    // The totals are those of the API, and of the feed.
    let totals = table(&page, "Totals by account and currency");
    let total = |name: &str| column(totals, name).concat();
    let days = listed(&app, &format!("/v1/movements/totals?{}", lately())).await;
    let sum = |name: &str| {
        let values = days.iter().map(|day| day[name]["value"].as_i64().unwrap());
        shown(&pounds(values.sum()))
    };
    for (name, field) in [
        ("Captured", "captured"),
        ("Refunded", "refunded"),
        ("Reversed", "reversed"),
        ("Net", "net"),
    ] {
        assert_eq!(total(name), sum(field), "{name}");
    }
    assert_eq!(total("Movements"), "4");
    let types = "payment_link.captured,payment_link.refunded";
    let events = listed(&app, &format!("/v1/events?types={types}")).await;
    let told = |name: &str| {
        let values = events
            .iter()
            .filter_map(|event| event[name]["value"].as_i64());
        shown(&pounds(values.sum()))
    };
    assert_eq!(total("Captured"), told("captured"));
    assert_eq!(total("Refunded"), told("refunded"));
    // Each day has a line of its own, which leads to its page.
    let each = table(&page, "Totals of each business day");
    assert_eq!(column(each, "Net").len(), days.len());
    for day in &days {
        let day = text(&day["businessDay"]);
        assert!(each.contains(&format!("href=\"/books?from={day}&#38;to={day}\"")));
    }

    // The file is the API's.
    let file = visitor
        .get(&format!("/books/movements.csv?{}", lately()))
        .await
        .expect(200);
    let (from, to) = around_today();
    assert_eq!(
        file.header("content-disposition"),
        format!("attachment; filename=\"movements-{from}-to-{to}.csv\"")
    );
    assert_eq!(
        file.header("content-type"),
        "text/csv; charset=utf-8; header=present"
    );
    assert_eq!(file.header("cache-control"), "no-store");
    assert_eq!(file.text, as_csv(&app, &lately()).await.text);
}

/// The API's own file.
async fn as_csv(app: &TestApp, query: &str) -> Answer {
    let request = app.request(Method::GET, &format!("/v1/movements?{query}"));
    send(request.header(ACCEPT, "text/csv")).await.expect(200)
}

async fn current_day(app: &TestApp, zone: &str) -> String {
    let day: Date = sqlx::query_scalar("SELECT business_day(now(), $1, '03:00')")
        .bind(zone)
        .fetch_one(&app.pool)
        .await
        .unwrap();
    day.to_string()
}

#[tokio::test]
async fn the_books_open_on_the_business_day_that_it_is_there() {
    // One of the two is always on another day than UTC is.
    for zone in ["Pacific/Kiritimati", "Pacific/Midway"] {
        let app = console::start(&[
            ("BUSINESS_TIME_ZONE", zone),
            ("BUSINESS_DAY_CUTOFF", "03:00"),
        ])
        .await;
        let visitor = Visitor::bootstrap(&app).await;
        let before = current_day(&app, zone).await;
        let words = format!("A business day ends at 03:00 the next day, in {zone}.");
        let page = visitor.sees("/books", &words).await;
        let days = [before, current_day(&app, zone).await];
        for field in ["from", "to"] {
            let is_there = |day: &String| {
                page.contains(&format!("id=\"{field}\" name=\"{field}\" value=\"{day}\""))
            };
            assert!(days.iter().any(is_there), "{days:?}: {page}");
        }
        assert!(page.contains("The books have no movements of this business day."));
        assert!(!page.contains("Next day"), "{page}");
        assert!(page.contains("Previous day"), "{page}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_days_is_said() {
    let app = console::start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    for (query, fault) in [
        (
            "from=yesterday",
            "“yesterday” is not a date such as 2026-11-27.",
        ),
        ("to=2026-02-30", "“2026-02-30” is not a date"),
        (
            "from=2026-01-02&to=2026-01-01",
            "The first day is after the last one.",
        ),
        (
            &format!("metadata={}", "k".repeat(101)),
            "Metadata takes up to 20 names",
        ),
    ] {
        let page = visitor.sees(&format!("/books?{query}"), fault).await;
        assert!(!page.contains("Download as CSV"), "{page}");
        let answer = visitor
            .get(&format!("/books/movements.csv?{query}"))
            .await
            .expect(303);
        visitor.sees(answer.header("location"), fault).await;
    }
    let long = "account=none&from=2025-01-01&to=2026-01-01";
    let page = visitor
        .sees(&format!("/books?{long}"), "A page covers 92 days at most.")
        .await;
    assert!(page.contains("Download as CSV"), "{page}");
    let file = visitor.get(&format!("/books/movements.csv?{long}")).await;
    assert_eq!(file.expect(200).text.lines().count(), 1);
    visitor
        .get(&with("/books", "after", "nowhere"))
        .await
        .expect(422);
}

#[tokio::test]
async fn a_long_day_has_pages_and_its_file_is_passed_on_as_it_is_written() {
    let app = start(&[]).await;
    let link = app.paid().await;
    app.booked(&link, 1).await;
    many_movements(&app, &link, 2500).await;
    let visitor = Visitor::bootstrap(&app).await;
    let (mut pages, mut amounts) = (0, Vec::new());
    let mut path = Some("/books?from=2026-01-02".to_owned());
    while let Some(here) = path {
        let page = visitor.get(&here).await.expect(200).text;
        let totals = table(&page, "Totals by account and currency");
        // The totals are those of the whole day on every page.
        assert_eq!(column(totals, "Captured"), ["£3.58"]);
        assert_eq!(column(totals, "Movements"), ["358"]);
        assert_eq!(page.contains("First page"), pages > 0);
        amounts.extend(column(movements_of(&page), "Amount"));
        pages += 1;
        path = next_of(&page);
    }
    assert_eq!((pages, amounts.len()), (8, 358));
    assert!(amounts.iter().all(|amount| amount == "£0.01"));

    let query = "from=2026-01-01&to=2026-12-31";
    let file = visitor
        .get(&format!("/books/movements.csv?{query}"))
        .await
        .expect(200);
    assert!(file.text.lines().count() > 2500);
    // What has a length was collected before it was sent.
    assert_eq!(file.header("content-length"), "");
    assert_eq!(file.text, as_csv(&app, query).await.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_difference_is_told_with_both_sides_until_it_is_resolved() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let (from, to) = around_today();
    let link = app.paid().await;
    app.operate_with_key(
        "refund-1",
        &link,
        "refunds",
        &json!({"amount": pounds(300)}),
    )
    .await
    .expect(200);
    app.booked(&link, 2).await;
    app.in_step_with_dojo().await;
    let page_of = |day: Date| format!("/books/reconciliations/{day}");
    visitor
        .sees(&page_of(to), "This business day isn’t over.")
        .await;
    visitor
        .sees("/books/reconciliations/2020-01-01", "Not compared yet.")
        .await;
    for wrong in ["yesterday", "2026-02-30"] {
        let path = format!("/books/reconciliations/{wrong}");
        visitor.get(&path).await.expect(404);
    }

    let [sale, refund] = &transactions(&app, &link).await[..] else {
        panic!("there are two");
    };
    let status = sale["status"].clone();
    change(&app, sale, json!({"status": "UnderReview"})).await;
    change(&app, refund, json!({"amount": 301})).await;
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
    let (_, agrees) = lines(&mut reconcile(&app, from, to));
    assert!(!agrees);

    let mut all = String::new();
    let attention = visitor.get("/attention").await.expect(200).text;
    let mut found = 0;
    let mut day = Some(from);
    while let Some(current) = day.filter(|day| *day <= to) {
        let page = visitor.get(&page_of(current)).await.expect(200).text;
        let results = listed(&app, &format!("/v1/reconciliations/{current}")).await;
        let count = results[0]["differenceCount"].as_i64().unwrap();
        assert!(page.contains(&format!("<dt>Differences</dt><dd>{count}</dd>")));
        let is_listed = attention.contains(&format!("{}#account-default", page_of(current)));
        assert_eq!(is_listed, count > 0, "{current}: {attention}");
        let words = if count == 0 { "Agrees" } else { "Differs" };
        assert!(page.contains(words), "{page}");
        found += count;
        all.push_str(&page);
        day = current.next_day();
    }
    assert_eq!(found, 3);
    for words in [
        "In the books: Capture of £10.00. In Dojo’s list: Sale of £10.00, UnderReview.",
        "Don’t hand over goods until Dojo releases it.",
        "In the books: Refund of £3.00. In Dojo’s list: Refund of £3.01, Authorized.",
        "Dojo’s portal shows what the customer paid.",
        "In the books: nothing. In Dojo’s list: Sale of £9.99, Authorized.",
        "If another program creates payment links with the same account",
        "<a href=\"/links?q=pi_sandbox_of_nobody\">Order of nobody</a>",
        "dojo-payment-links reconcile --from",
    ] {
        assert!(all.contains(words), "{words:?} is not in {all}");
    }
    let own = format!("<a href=\"{}\">Order 1</a>", path_of(&link, ""));
    assert_eq!(all.matches(&own).count(), 2, "{all}");
    assert!(attention.contains("Differences between the books and Dojo</h2>"));
    let page = visitor
        .get(&format!("/books?{}", lately()))
        .await
        .expect(200)
        .text;
    assert!(page.contains("#account-default"), "{page}");

    change(&app, sale, json!({"status": status})).await;
    change(&app, refund, json!({"amount": 300})).await;
    let nobody = json!({"paymentIntentId": "pi_sandbox_of_nobody"});
    for row in transactions(&app, &nobody).await {
        change(&app, &row, json!({"hidden": true})).await;
    }
    let (found, agrees) = lines(&mut reconcile(&app, from, to));
    assert!(agrees, "{found:#?}");
    let attention = visitor.get("/attention").await.expect(200).text;
    assert!(
        !attention.contains("/books/reconciliations/"),
        "{attention}"
    );
    visitor.sees(&page_of(from), "Agrees").await;
    let words = "differ on none of the business days that were compared";
    visitor.sees(&format!("/books?{}", lately()), words).await;
}

#[tokio::test]
async fn a_day_that_cannot_be_compared_says_why() {
    let app = console::start(&[UTC, ("RECONCILE_TRANSACTIONS", "false")]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let (yesterday, _) = around_today();
    let page_of = format!("/books/reconciliations/{yesterday}");
    visitor
        .sees(&page_of, "The comparison is switched off")
        .await;
    visitor
        .sees("/health", "Switched off (RECONCILE_TRANSACTIONS).")
        .await;
    compared(&app, "default", yesterday, "Unavailable", &json!([])).await;
    let words = "Dojo doesn’t let the account’s key read its transactions.";
    let page = visitor.sees(&page_of, words).await;
    assert!(!page.contains("<dt>Matched</dt>"), "{page}");
    // It isn't a difference.
    let attention = visitor.get("/attention").await.expect(200).text;
    assert!(
        !attention.contains("/books/reconciliations/"),
        "{attention}"
    );
}

#[tokio::test]
async fn differences_are_shown_for_a_month_and_counted_beyond_those_that_are_stored() {
    let app = console::start(&[UTC]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let (yesterday, _) = around_today();
    let ago = |days: i64| yesterday - time_days(days);
    let difference = json!([only_at_dojo("Order 1")]);
    for day in [ago(29), ago(32)] {
        compared(&app, "default", day, "Differs", &difference).await;
    }
    let page = visitor
        .sees("/attention", "1 difference: 1 only at Dojo")
        .await;
    assert!(page.contains(&ago(29).to_string()), "{page}");
    assert!(!page.contains(&ago(32).to_string()), "{page}");
    run(
        &app,
        "UPDATE daily_reconciliations SET difference_count = 1500",
    )
    .await;
    let path = format!("/books/reconciliations/{}", ago(29));
    visitor.sees(&path, "There are 1499 more differences").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_who_is_limited_to_one_account_sees_nothing_of_another_in_the_books() {
    let folder = Folder::new();
    let app = two_sites(&folder).await;
    let mut links = BTreeMap::new();
    for account in ["default", "leeds"] {
        let mut body = ten_pounds(&format!("Order of {account}"));
        body["account"] = json!(account);
        let link = app.create(&body).await.expect(201).json();
        app.sandbox.pay(&link["paymentIntentId"]).await;
        app.read_until_confirmed(&link["id"]).await;
        app.booked(&link, 1).await;
        let (yesterday, _) = around_today();
        let differences = json!([only_at_dojo(&format!("Difference of {account}"))]);
        compared(&app, account, yesterday, "Differs", &differences).await;
        links.insert(account, link);
    }
    let key = create_limited_key(&app, "leeds-finance", "links:read", "leeds");
    let limited = Visitor::with_key(&app, &key).await;
    let everybody = Visitor::bootstrap(&app).await;
    let (yesterday, _) = around_today();
    let lately = lately();
    for (path, words) in [
        (format!("/books?{lately}"), "Order of "),
        (format!("/books?{lately}&account=default"), "Order of "),
        (format!("/books/movements.csv?{lately}"), "Order of "),
        (
            format!("/books/movements.csv?{lately}&account=default"),
            "Order of ",
        ),
        (
            format!("/books/reconciliations/{yesterday}"),
            "Difference of ",
        ),
        ("/attention".to_owned(), "account "),
        ("/health".to_owned(), "Account "),
    ] {
        let page = limited.get(&path).await.expect(200).text;
        for secret in [
            format!("{words}default"),
            text(&links["default"]["id"]).to_owned(),
            "account-default".to_owned(),
        ] {
            assert!(!page.contains(&secret), "{secret:?} is in {path}: {page}");
        }
        let is_filtered = path.contains("account=");
        assert_eq!(
            page.contains(&format!("{words}leeds")),
            !is_filtered,
            "{path}: {page}"
        );
        everybody.sees(&path, &format!("{words}default")).await;
    }
    let page = limited
        .get(&format!("/books?{lately}"))
        .await
        .expect(200)
        .text;
    let totals = table(&page, "Totals by account and currency");
    assert_eq!(column(totals, "Net"), ["£10.00"]);
    assert!(!page.contains("<select"), "there is no account to choose");
    let page = everybody
        .get(&format!("/books?{lately}"))
        .await
        .expect(200)
        .text;
    let totals = table(&page, "Totals by account and currency");
    assert_eq!(column(totals, "Net"), ["£10.00", "£10.00"]);
    let page = everybody
        .get(&format!("/books?{lately}&account=leeds"))
        .await
        .expect(200)
        .text;
    assert_eq!(column(movements_of(&page), "Account"), ["leeds"]);
}

#[tokio::test]
async fn the_books_show_metadata_and_so_does_their_file() {
    let app = start(&[("BOOKS_METADATA", "costCentre, order")]).await;
    let mut body = ten_pounds("Order 1");
    body["metadata"] = json!({"costCentre": "4711", "=2+3": "@SUM(1)"});
    let link = app.paid_as(&body, "Captured").await;
    app.booked(&link, 1).await;
    let visitor = Visitor::bootstrap(&app).await;
    let cells = async |path: &str| {
        let file = visitor.get(path).await.expect(200).text;
        let mut reader = csv::Reader::from_reader(file.as_bytes());
        let header = reader.headers().unwrap().clone();
        let row = reader.records().next().unwrap().unwrap();
        let metadata = header
            .iter()
            .zip(&row)
            .skip_while(|(name, _)| *name != "id");
        let cells = metadata
            .skip(1)
            .map(|(name, cell)| format!("{name}: {cell}"));
        cells.collect::<Vec<_>>()
    };

    // What the operator has chosen.
    let page = visitor.get(&format!("/books?{}", lately())).await;
    let page = page.expect(200).text;
    assert!(
        page.contains("name=\"metadata\" value=\"costCentre,order\""),
        "{page}"
    );
    let rows = movements_of(&page);
    assert_eq!(column(rows, "costCentre"), ["4711"]);
    assert_eq!(column(rows, "order"), [""]);
    let path = format!("/books/movements.csv?{}", lately());
    assert_eq!(cells(&path).await, ["costCentre: 4711", "order: "]);

    // What the person asks for. The other pages and the file keep it.
    let asked = Serializer::new(lately())
        .append_pair("metadata", "=2+3")
        .finish();
    let page = visitor.get(&format!("/books?{asked}")).await;
    let page = page.expect(200).text;
    assert_eq!(column(movements_of(&page), "=2+3"), ["@SUM(1)"]);
    let escaped = asked.replace('&', "&#38;");
    assert!(
        page.contains(&format!("href=\"/books/movements.csv?{escaped}\"")),
        "{page}"
    );
    let path = format!("/books/movements.csv?{asked}");
    assert_eq!(cells(&path).await, ["'=2+3: '@SUM(1)"]);
    let each = table(&page, "Totals of each business day");
    assert!(each.contains("&#38;metadata=%3D2%2B3\""), "{each}");
}

#[tokio::test]
async fn the_books_need_a_session() {
    let app = console::start(&[]).await;
    let visitor = Visitor::new(&app).await;
    for path in [
        "/books",
        "/books/movements.csv",
        "/books/reconciliations/2026-11-26",
    ] {
        let answer = visitor.get(path).await.expect(303);
        assert!(answer.header("location").starts_with("/sign-in?next="));
    }
}

#[tokio::test]
async fn whatever_callers_and_dojo_send_is_shown_as_text_in_the_books() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let (yesterday, _) = around_today();

    for (number, mark) in [
        (0, "<script>alert(1)</script>"),
        (1, "\"><img src=x onerror=alert(1)>"),
        (2, "'onfocus=alert(1) x='"),
    ] {
        let link = app.create(&hostile(mark)).await.expect(201).json();
        app.sandbox.pay(&link["paymentIntentId"]).await;
        app.read_until_confirmed(&link["id"]).await;
        app.booked(&link, 1).await;
        let day = yesterday - time_days(number);
        let differences = json!([only_at_dojo(mark)]);
        compared(&app, "default", day, "Differs", &differences).await;
        for path in [
            format!("/books?{}", lately()),
            with("/books", "from", mark),
            with("/books", "to", mark),
            with("/books", "account", mark),
            with("/books", "metadata", mark),
            format!("{}&{}", with("/books", "metadata", mark), lately()),
            with("/books", "after", mark),
            format!("/books/reconciliations/{day}"),
            "/attention".to_owned(),
        ] {
            let page = visitor.get(&path).await.text;
            assert!(!page.contains(mark), "{path} contains {mark}");
            for raw in ["<img src=x", "<script>alert", "='onfocus"] {
                assert!(!page.contains(raw), "{path} contains {raw}");
            }
        }
        // They do show it.
        for path in [
            format!("/books?{}", lately()),
            format!("{}&{}", with("/books", "metadata", mark), lately()),
            with("/books", "from", mark),
            format!("/books/reconciliations/{day}"),
        ] {
            let page = visitor.get(&path).await.expect(200).text;
            assert!(plain(&page).contains(mark), "{mark} is not in {page}");
        }
        let wrong = with("/books/movements.csv", "from", mark);
        let answer = visitor.get(&wrong).await.expect(303);
        assert!(answer.header("location").starts_with("/books?from=%"));
    }
}

#[tokio::test]
async fn no_cell_of_the_file_is_taken_for_a_formula() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    for reference in ["=HYPERLINK(\"http://evil.example\")", "+1", "@SUM(1)"] {
        let link = app.create(&ten_pounds(reference)).await.expect(201).json();
        app.sandbox.pay(&link["paymentIntentId"]).await;
        app.read_until_confirmed(&link["id"]).await;
        app.booked(&link, 1).await;
    }
    let file = visitor
        .get(&format!("/books/movements.csv?{}", lately()))
        .await
        .expect(200);
    let mut reader = csv::Reader::from_reader(file.text.as_bytes());
    let header = reader.headers().unwrap().clone();
    let at = header.iter().position(|name| name == "reference").unwrap();
    let mut references: Vec<_> = reader
        .records()
        .map(|row| row.unwrap()[at].to_owned())
        .collect();
    references.sort();
    assert_eq!(
        references,
        ["'+1", "'=HYPERLINK(\"http://evil.example\")", "'@SUM(1)"]
    );
}

#[tokio::test]
async fn the_health_page_says_how_the_books_are_doing() {
    let app = console::start(&[UTC]).await;
    let visitor = Visitor::bootstrap(&app).await;
    // What is read is shown for a few seconds.
    let says = async |words: &str| {
        eventually(&format!("it says {words}"), async || {
            let page = visitor.get("/health").await.expect(200).text;
            page.contains(words).then_some(())
        })
        .await;
    };
    for words in [
        "No events wait.",
        "No business day of the last ten was compared.",
        "None that is older than a day.",
    ] {
        says(words).await;
    }
    let (yesterday, _) = around_today();
    let before = yesterday - time_days(3);
    compared(
        &app,
        "default",
        before,
        "Differs",
        &json!([only_at_dojo("Order 1")]),
    )
    .await;
    says("1 difference older than a day: 1 only at Dojo. Needs attention leads to").await;
    says("Up to ").await;
    run(
        &app,
        "UPDATE daily_reconciliations SET due_at = now() - interval '7 hours'",
    )
    .await;
    says("A business day has been waiting to be compared for 7 h.").await;
    run(
        &app,
        "UPDATE daily_reconciliations SET due_at = NULL, state = 'Unavailable', differences = '[]'",
    )
    .await;
    says("Dojo doesn’t let the account’s key read its transactions.").await;
    run(&app, "UPDATE feed SET head = head + 3").await;
    says("3 events wait").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_books_fit_and_keep_nobody_out() {
    let folder = Folder::new();
    let app = two_sites(&folder).await;
    let mut body = ten_pounds("Order 1");
    let note = "A-note-that-has-no-spaces-".repeat(4);
    body["metadata"] = json!({"costCentre": "4711", "note": note});
    let link = app.paid_as(&body, "Captured").await;
    app.operate_with_key(
        "refund-1",
        &link,
        "refunds",
        &json!({"amount": pounds(350)}),
    )
    .await
    .expect(200);
    let booked = app.booked(&link, 2).await;
    let day = text(&booked[0]["businessDay"]);
    let (yesterday, _) = around_today();
    let movement = json!({
        "id": booked[0]["id"], "type": "capture", "amount": pounds(1000), "occurredAt": booked[0]["occurredAt"],
        "datedBy": "dojo", "paymentLinkId": link["id"], "paymentIntentId": link["paymentIntentId"],
        "reference": "Order 1",
    });
    let held = json!({"kind": "held", "movement": movement, "transaction": {
        "id": "0b6de1f3-7f0c-4f5e-9d3c-2f1f0a8f3c11", "occurredAt": booked[0]["occurredAt"], "type": "Sale",
        "status": "Held", "amount": pounds(1000), "tipsAmount": null, "cashbackAmount": null,
        "paymentIntentId": link["paymentIntentId"], "reference": "Order 1", "paymentProduct": "PaymentLinks",
    }});
    let only_here = json!({"kind": "onlyHere", "movement": movement, "transaction": null});
    let stranger = only_at_dojo("Order-of-nobody-with-a-reference-that-has-no-spaces-at-all");
    let differences = json!([only_here, stranger, held]);
    compared(&app, "default", yesterday, "Differs", &differences).await;
    let url = url_of(&app).await;
    for is_phone in [false, true] {
        for is_dark in [false, true] {
            let look = Look {
                is_phone,
                is_dark,
                ..WIDE
            };
            let browser = look.open().await;
            browser.sign_in(&url, API_KEY).await;
            let pages = [
                ("books", format!("/books?from={day}")),
                ("books-days", format!("/books?{}", lately())),
                (
                    "books-metadata",
                    format!("/books?metadata=costCentre,note&{}", lately()),
                ),
                ("books-fault", "/books?from=yesterday".to_owned()),
                ("comparison", format!("/books/reconciliations/{yesterday}")),
                ("attention-books", "/attention".to_owned()),
                ("health-books", "/health".to_owned()),
            ];
            for (name, path) in pages {
                browser.visit(&format!("{url}{path}")).await;
                browser.find_one("h1").await;
                let open =
                    "for (const part of document.querySelectorAll('details')) part.open = true";
                browser.run(open).await;
                browser.fits().await;
                browser.is_accessible().await;
                let screen = if is_phone { "phone" } else { "wide" };
                let scheme = if is_dark { "dark" } else { "light" };
                browser
                    .photograph(&format!("console-{name}-{screen}-{scheme}"))
                    .await;
            }
            // Where a table has just become one, it has the least space.
            browser.visit(&format!("{url}/books?{}", lately())).await;
            browser.find_one("h1").await;
            for width in [600, 760, 900] {
                browser.page.set_window_size(width, 900).await.unwrap();
                browser.fits().await;
                browser.is_accessible().await;
            }
            browser.close().await;
        }
    }
}

#[tokio::test]
async fn the_books_are_two_keys_away_and_work_without_scripts() {
    let app = start(&[]).await;
    let link = app.paid().await;
    app.booked(&link, 1).await;
    let url = url_of(&app).await;
    for has_scripts in [true, false] {
        let browser = Look {
            has_scripts,
            ..WIDE
        }
        .open()
        .await;
        browser.sign_in(&url, API_KEY).await;
        if has_scripts {
            browser.says("books").await;
            browser.key("g").await;
            browser.key("b").await;
        } else {
            browser.press("Books").await;
        }
        browser.is_at("/books").await;
        browser.press("Previous day").await;
        browser.says("Next day").await;
        browser.press("Next day").await;
        browser.press("Show").await;
        browser.visit(&format!("{url}/books?{}", lately())).await;
        browser.says("the customer, or elsewhere").await;
        browser.press("Order 1").await;
        browser.is_at(&path_of(&link, "")).await;
        browser.close().await;
    }
}
