//! What needs attention, in the console: everything that does, the oldest first, and what isn't shown.

use serde_json::{Value, json};

use crate::{
    commands::create_api_key,
    console::{ALL, Visitor, lose_receipt, number, run, start},
    console_books::{compared, only_at_dojo},
    daily_reconciliation::around_today,
    support::{TestApp, text},
};

/// A section of the page.
#[track_caller]
fn section<'a>(page: &'a str, title: &str) -> &'a str {
    let heading = format!("{title}</h2>");
    let (_, rest) = page
        .split_once(&heading)
        .unwrap_or_else(|| panic!("{title} is not in {page}"));
    rest.split("</section>").next().unwrap()
}

/// Has a receipt sent that a person must find out about.
async fn leave_unconfirmed(app: &TestApp, link: &Value) {
    lose_receipt(app, "a", link).await;
    let given_up = "UPDATE operations SET status = 'Unconfirmed', due_at = NULL";
    assert_eq!(run(app, given_up).await, 1);
}

/// Adds receipts like the one there is, with this status, requested this many minutes ago.
async fn add_receipts(app: &TestApp, count: u32, status: &str, minutes: u32) {
    let copy = format!(
        "INSERT INTO operations (id, payment_link_id, account, kind, action, amount, status, created_by, created_at)
         SELECT gen_random_uuid(), payment_link_id, account, kind, action, amount, '{status}', created_by,
                now() - interval '{minutes} min'
         FROM (SELECT * FROM operations WHERE kind = 'receipt' LIMIT 1) receipt, generate_series(1, {count})"
    );
    assert_eq!(run(app, &copy).await, u64::from(count));
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_needs_attention_is_listed_with_its_entry_of_the_runbook() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let link = app.paid().await;
    leave_unconfirmed(&app, &link).await;
    add_receipts(&app, 1, "Pending", 11).await;
    let id = format!("payment_intent_id = '{}'", text(&link["paymentIntentId"]));
    for statement in [
        format!("UPDATE payment_links SET mismatch = '{{\"value\": 2000, \"currencyCode\": \"GBP\"}}', unsettled_status = '',
                 updated_at = now() - interval '1 h', due_at = NULL WHERE {id}"),
        format!(
            "INSERT INTO payment_link_events (payment_link_id, kind, status_before, status_after, cause, detail)
             SELECT id, 'surplusPaid', status, status, '{{\"type\": \"recovery\"}}', '{{\"paymentIntentId\": \"pi_2\"}}'
             FROM payment_links WHERE {id}"
        ),
    ] {
        assert_eq!(run(&app, &statement).await, 1);
    }
    let waiting = app.created().await;
    let waiting = format!(
        "payment_intent_id = '{}'",
        text(&waiting["paymentIntentId"])
    );
    run(&app, &format!(
        "UPDATE payment_links SET status = 'Pending', dojo_status = NULL, payment_intent_id = NULL, url = NULL,
                created_at = now() - interval '11 min' WHERE {waiting}"
    ))
    .await;
    let endpoint = app
        .subscribe(&json!({"url": "https://shop.example.com/"}))
        .await;
    run(&app, &format!(
        "INSERT INTO callback_deliveries (endpoint_id, position, event_id, type, payment_link_id, generation, status, attempts, due_at)
         SELECT callback_endpoints.id, 1, gen_random_uuid(), 'payment_link.paid', payment_links.id, 0, 'Failed', 10, now()
         FROM callback_endpoints, payment_links WHERE {id}"
    ))
    .await;
    run(
        &app,
        "UPDATE callback_endpoints SET status = 'Paused', pause_reason = 'Gone'",
    )
    .await;
    let (yesterday, _) = around_today();
    compared(
        &app,
        "default",
        yesterday,
        "Differs",
        &json!([only_at_dojo("Order 1")]),
    )
    .await;

    let page = visitor.sees("/attention", "Needs attention").await;
    let runbook = visitor.open("/runbook").await;
    for (title, words, entry) in [
        (
            "Operations with an unconfirmed outcome",
            "Record the outcome",
            "an-operation-is-unconfirmed",
        ),
        (
            "Second payments for one link",
            "intent pi_2 of account default",
            "a-surplus-intent-was-paid",
        ),
        (
            "Links with another amount at Dojo",
            "Dojo would charge 20.00 GBP",
            "dojo-reports-a-different-amount",
        ),
        (
            "Links that Dojo hasn’t confirmed",
            "Captured since",
            "dojo-contradicts-a-webhook",
        ),
        (
            "Links that are not created yet",
            "requested on",
            "links-stay-pending",
        ),
        (
            "Operations that are taking a long time",
            "requested by bootstrap",
            "an-operation-stays-pending",
        ),
        (
            "Differences between the books and Dojo",
            "1 only at Dojo",
            "the-books-and-dojos-transactions-differ",
        ),
        (
            "Callbacks that failed",
            "not accepted by https://shop.example.com/",
            "a-callback-failed",
        ),
        (
            "Callback endpoints that are paused",
            "is paused: Gone",
            "a-callback-endpoint-is-paused",
        ),
    ] {
        let section = section(&page, title);
        assert!(section.contains(words), "{words}: {section}");
        assert!(
            section.contains(&format!("href=\"/runbook#{entry}\"")),
            "{entry}: {section}"
        );
        assert!(runbook.contains(&format!("<h2 id=\"{entry}\">")), "{entry}");
    }
    assert!(page.contains(text(&endpoint["id"])), "{page}");
    assert!(
        !page.contains("Checked, with nothing found") && !page.contains("Not shown"),
        "{page}"
    );
    assert!(!page.contains("mari@"), "{page}");

    // Who may not see callbacks is told so.
    let ann = Visitor::with_key(&app, &create_api_key(&app, "ann", ALL)).await;
    let page = ann
        .sees("/attention", "you lack the permission callbacks:manage")
        .await;
    assert!(!page.contains("shop.example.com"), "{page}");
}

#[tokio::test]
async fn the_oldest_come_first_and_the_rest_are_counted() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let link = app.paid().await;
    let emails = json!({"emails": ["mari@example.com"]});
    app.operate_with_key("a", &link, "receipt", &emails)
        .await
        .expect(200);

    // However many are new, the old one is found.
    add_receipts(&app, 70, "Pending", 0).await;
    let quiet = visitor.get("/attention").await.expect(200).text;
    assert!(
        quiet.contains("<li>Operations that are taking a long time</li>"),
        "{quiet}"
    );
    add_receipts(&app, 1, "Pending", 20).await;
    let page = visitor.get("/attention").await.expect(200).text;
    let found = section(&page, "Operations that are taking a long time");
    assert_eq!(found.matches("<li>").count(), 1, "{found}");
    assert!(!found.contains("more."), "{found}");

    add_receipts(&app, 62, "Unconfirmed", 5).await;
    let page = visitor.get("/attention").await.expect(200).text;
    let found = section(&page, "Operations with an unconfirmed outcome");
    assert_eq!(found.matches("<li>").count(), 50, "{found}");
    assert!(found.contains("And 12 more."), "{found}");
    add_receipts(&app, 1000, "Unconfirmed", 5).await;
    visitor.sees("/attention", "And at least 950 more.").await;

    // Days come newest first, and are counted as well.
    let (yesterday, _) = around_today();
    for days in 0..30 {
        let day = yesterday - time::Duration::days(days);
        for account in ["default", "leeds"] {
            compared(
                &app,
                account,
                day,
                "Differs",
                &json!([only_at_dojo("Order 1")]),
            )
            .await;
        }
    }
    let page = visitor.get("/attention").await.expect(200).text;
    let found = section(&page, "Differences between the books and Dojo");
    let first = found.split("<li>").nth(1).unwrap();
    assert!(
        first.contains(&format!("/books/reconciliations/{yesterday}")),
        "{first}"
    );
    assert!(found.contains("And 10 more."), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_records_is_in_the_audit_list_with_what_came_of_it() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let link = app.paid().await;
    leave_unconfirmed(&app, &link).await;
    let page = visitor.get("/attention").await.expect(200).text;
    let path = page.split("href=\"/operations/").nth(1).unwrap();
    let path = format!("/operations/{}", path.split('"').next().unwrap());
    visitor
        .submit(&path, &[("outcome", "not-done")])
        .await
        .expect(303);
    let entries = |outcome: &str| {
        format!(
            "SELECT count(*) FROM console_audit WHERE what = 'settle' AND detail LIKE 'op_%: not done' AND outcome = '{outcome}'"
        )
    };
    for outcome in ["requested", "done"] {
        assert_eq!(number(&app, &entries(outcome)).await, 1, "{outcome}");
    }
    let csrf = visitor.csrf().await;
    visitor
        .post(&path, &[("csrf", &csrf), ("outcome", "not-done")])
        .await
        .expect(409);
    assert_eq!(number(&app, &entries("not-possible")).await, 1);
}
