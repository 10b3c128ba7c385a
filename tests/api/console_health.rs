//! The console's health page: it says in words what is wrong, and looking at it costs nobody anything.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    accounts::{Folder, site},
    commands::{create_api_key, create_limited_key},
    console::{ALL, Visitor, run, start},
    subscriptions::subscriptions,
    support::{
        Answer, LEEDS_KEY, TestApp, TestSandbox, event, eventually, mail::MailServer, new_database,
        send, text,
    },
};

/// Where Dojo would send webhooks, if it were Dojo.
const PUBLIC_URL: (&str, &str) = ("PUBLIC_URL", "http://pay.example.com");

/// A console, and a subscription that leads to its service.
async fn subscribed(settings: &[(&str, &str)]) -> TestApp {
    let app = start(&[&[PUBLIC_URL], settings].concat()).await;
    app.sandbox.send_webhooks_to(PUBLIC_URL.1).await;
    app
}

/// What the page says about one thing: its word, the text, and what to do. `name` may be its beginning.
fn finding(page: &str, name: &str) -> Option<String> {
    let rest = page.split(&format!("<dt>{name}")).nth(1)?;
    let (_, rest) = rest.split_once("<dd>")?;
    Some(rest.split("</dd>").next()?.to_owned())
}

/// Waits until the page says all of this about one thing.
async fn says(visitor: &Visitor, name: &str, words: &[&str]) -> String {
    eventually(&format!("{name} says {words:?}"), async || {
        let page = visitor.get("/health").await.expect(200).text;
        let found = finding(&page, name)?;
        words
            .iter()
            .all(|words| found.contains(words))
            .then_some(found)
    })
    .await
}

/// Presses the button that has Dojo asked again.
async fn ask_again(visitor: &Visitor) -> Answer {
    let csrf = visitor.csrf().await;
    visitor
        .post("/health", &[("csrf", &csrf)])
        .await
        .expect(303)
}

/// How often the service has asked Dojo for its subscriptions, as each check does once.
async fn checks(sandbox: &TestSandbox) -> usize {
    let calls = sandbox.look("requests").await;
    let calls = calls.as_array().unwrap().iter();
    let checks = calls.filter(|call| {
        // The test's own calls have no user agent.
        call["headers"]["user-agent"].is_string()
            && call["path"] == "/webhooks"
            && call["method"] == "GET"
    });
    checks.count()
}

#[tokio::test]
async fn each_check_and_each_alert_has_its_line() {
    let app = subscribed(&[("RUN_JOBS", "true")]).await;
    app.created().await;
    let visitor = Visitor::bootstrap(&app).await;
    for (name, words) in [
        ("Ready", &["Fine", "It serves requests."] as &[_]),
        ("Server", &["Fine", "Postgres"]),
        ("Migrations", &["Fine", "All applied"]),
        ("Writable", &["Fine", "Yes."]),
        ("Environment", &["Fine", "sandbox"]),
        ("API keys of clients", &["Fine", "1."]),
        ("Clock of the database", &["Fine"]),
        ("Mail server", &["Note", "No emails are sent (SMTP_URL)."]),
        ("Dojo and the API key", &["Fine", "sandbox: test money"]),
        ("Clock of Dojo", &["Fine"]),
        ("Checkout pages", &["Fine", &app.sandbox.url]),
        (
            "Webhook subscription",
            &["Fine", "http://pay.example.com/webhooks/dojo"],
        ),
        (
            "Events of the subscription",
            &["Fine", "payment_intent.status_updated"],
        ),
        ("Webhook secret", &["Fine", "which is in the settings"]),
        ("Links of the last 24 hours", &["1 Created."]),
        ("Links to read from Dojo", &["Fine"]),
        ("Operations with an unconfirmed outcome", &["Fine", "None."]),
        (
            "Creation recovery, account default",
            &["Fine", "Made progress"],
        ),
        ("Feed", &["Fine"]),
        ("Endpoints", &["Fine", "There are no endpoints."]),
        ("Requests that failed (500)", &["Fine", "None."]),
        ("Calls to Dojo that failed", &["Fine", "None of "]),
        (
            "Last genuine webhook, on any replica",
            &["There has been none."],
        ),
        ("Other replicas", &["Note", "Whether other replicas run"]),
    ] {
        says(&visitor, name, words).await;
    }
}

#[tokio::test]
async fn a_key_that_dojo_rejects_is_named_with_its_setting() {
    let app = subscribed(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    says(&visitor, "Dojo and the API key", &["Fine"]).await;
    let fault = json!({"operation": "any", "kind": "status", "status": 401, "share": 1.0});
    app.sandbox.control("faults", fault).await;
    ask_again(&visitor).await;
    let words = [
        "Wrong",
        "set it as DOJO_API_KEY",
        "href=\"/runbook#dojo-rejects-the-key\"",
    ];
    says(&visitor, "Dojo and the API key", &words).await;
    says(&visitor, "Webhook subscription", &["Not checked"]).await;
    says(
        &visitor,
        "Calls for which Dojo rejected the key",
        &["Wrong", "1 (probe)."],
    )
    .await;
    // The summary leads to it.
    visitor
        .sees(
            "/health",
            "<a href=\"#account-default\">Account default</a>: Dojo and the API key.",
        )
        .await;

    app.sandbox.clear("faults").await;
    ask_again(&visitor).await;
    says(&visitor, "Dojo and the API key", &["Fine"]).await;
}

#[tokio::test]
async fn a_dojo_that_fails_or_takes_long_keeps_no_page_waiting() {
    let app = subscribed(&[("DOJO_TIMEOUT", "1s")]).await;
    let fault = json!({"operation": "any", "kind": "silentBefore", "share": 1.0});
    app.sandbox.control("faults", fault).await;
    let visitor = Visitor::bootstrap(&app).await;
    let words = [
        "Wrong",
        "DOJO_API_URL",
        "href=\"/runbook#dojo-is-unreachable\"",
    ];
    says(&visitor, "Dojo and the API key", &words).await;
    says(&visitor, "Calls to Dojo that failed", &["Wrong", "1 of 1."]).await;

    // With the usual time limit, pages come long before Dojo's response.
    let app = subscribed(&[("DOJO_TIMEOUT", "60s")]).await;
    let fault = json!({"operation": "any", "kind": "silentBefore", "share": 1.0});
    app.sandbox.control("faults", fault).await;
    let visitor = Visitor::bootstrap(&app).await;
    let page = visitor.sees("/health", "Dojo is being asked now.").await;
    let found = finding(&page, "Dojo").unwrap();
    assert!(
        found.contains("Note") && found.contains("It is being asked"),
        "{found}"
    );
}

#[tokio::test]
async fn a_mail_server_that_is_out_of_reach_is_wrong() {
    const NAME: &str = "Mail server";
    let mut server = MailServer::start().await;
    let mail = server.settings();
    let mail: Vec<_> = mail
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let app = start(&mail).await;
    let visitor = Visitor::bootstrap(&app).await;
    let port = server.port.to_string();
    says(&visitor, NAME, &["Fine", &port]).await;

    server.stop();
    ask_again(&visitor).await;
    let words = [
        "Wrong",
        "SMTP_URL",
        "href=\"/runbook#messages-are-not-sent\"",
    ];
    says(&visitor, NAME, &words).await;
    // Dojo's side is shown all the same.
    says(&visitor, "Dojo and the API key", &["Fine"]).await;
    visitor
        .sees("/health", "<a href=\"#mail\">Mail</a>: Mail server.")
        .await;

    server.resume().await;
    ask_again(&visitor).await;
    says(&visitor, NAME, &["Fine"]).await;
}

#[tokio::test]
async fn a_subscription_that_is_missing_or_leads_elsewhere_is_wrong() {
    const NAME: &str = "Webhook subscription";
    let app = subscribed(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    says(&visitor, NAME, &["Fine"]).await;
    app.sandbox
        .send_webhooks_to("http://other.example.com")
        .await;
    ask_again(&visitor).await;
    let words = [
        "Wrong",
        "Dojo sends webhooks to http://other.example.com/webhooks/dojo",
        "webhooks register --url http://pay.example.com/",
        "href=\"/runbook#no-webhooks-arrive\"",
    ];
    says(&visitor, NAME, &words).await;

    let id = subscriptions(&app).await[0]["id"].clone();
    let path = format!("/webhooks/{}", text(&id));
    app.sandbox.api(Method::DELETE, &path, &Value::Null).await;
    ask_again(&visitor).await;
    let words = ["Wrong", "has no webhook subscription for payment events"];
    says(&visitor, NAME, &words).await;
    says(&visitor, "Webhook secret", &["Note", "Not checked"]).await;

    // Without the setting, nobody can tell.
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    says(
        &visitor,
        NAME,
        &["Note", "its public URL is not set", &app.service.url],
    )
    .await;
}

#[tokio::test]
async fn a_missing_webhook_secret_is_wrong_and_so_are_webhooks_that_are_rejected_for_it() {
    const REJECTED: &str = "Webhooks without a valid signature";
    let app = subscribed(&[("DOJO_WEBHOOK_SECRETS", "whs_another")]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let words = [
        "Wrong",
        "which is not in the settings, so these webhooks are rejected",
        "Add it to DOJO_WEBHOOK_SECRETS",
        "href=\"/runbook#webhooks-are-rejected\"",
    ];
    says(&visitor, "Webhook secret", &words).await;
    let link = app.created().await;
    for number in 0..10 {
        let id = format!("evt_{number}");
        app.deliver(&event(&id, &link, "Captured"))
            .await
            .expect(401);
    }
    says(&visitor, REJECTED, &["Fine", "10."]).await;
    app.deliver(&event("evt_10", &link, "Captured"))
        .await
        .expect(401);
    let found = says(&visitor, REJECTED, &["Warning", "11."]).await;
    assert!(
        found.contains("href=\"/runbook#webhooks-are-rejected\""),
        "{found}"
    );
}

#[tokio::test]
async fn other_clocks_and_checkout_pages_of_another_server_are_wrong() {
    let app = subscribed(&[("DOJO_CHECKOUT_URL", "https://pay.dojo.tech/checkout")]).await;
    app.sandbox
        .control("clock", json!({"advanceSeconds": 3600}))
        .await;
    let visitor = Visitor::bootstrap(&app).await;
    says(&visitor, "Clock of Dojo", &["Wrong", "NTP"]).await;
    says(
        &visitor,
        "Checkout pages",
        &["Wrong", "Set DOJO_CHECKOUT_URL"],
    )
    .await;
    says(&visitor, "Dojo and the API key", &["Fine"]).await;
}

#[tokio::test]
async fn work_that_waits_for_too_long_is_a_warning() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    says(
        &visitor,
        "Jobs",
        &["Note", "This replica runs none (RUN_JOBS)."],
    )
    .await;
    says(
        &visitor,
        "Links to read from Dojo",
        &["Fine", "No links wait."],
    )
    .await;
    let link = app.created().await;
    let words = [
        "Warning",
        "1 link waits, for ",
        "href=\"/runbook#background-jobs-fall-behind\"",
    ];
    eventually("a link has been waiting for an hour", async || {
        // The webhook about the creation makes the link due at the time when it arrives.
        let long_due = "UPDATE payment_links SET due_at = now() - interval '1 h'";
        run(&app, long_due).await;
        let page = visitor.get("/health").await.expect(200).text;
        let found = finding(&page, "Links to read from Dojo")?;
        words
            .iter()
            .all(|words| found.contains(words))
            .then_some(())
    })
    .await;
    let id = format!("payment_intent_id = '{}'", text(&link["paymentIntentId"]));
    run(&app, &format!("UPDATE payment_links SET mismatch = '{{\"value\": 2000, \"currencyCode\": \"GBP\"}}' WHERE {id}")).await;
    let words = [
        "Wrong",
        "1.",
        "href=\"/runbook#dojo-reports-a-different-amount\"",
    ];
    says(&visitor, "Links with another amount at Dojo", &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callback_endpoints_that_get_nothing_are_warnings_for_those_who_may_see_them() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let link = app.created().await;
    for name in ["one", "two", "three"] {
        app.subscribe(&json!({"url": format!("https://{name}.example.com/")}))
            .await;
    }
    says(&visitor, "Endpoints", &["Fine", "All 3 get their events."]).await;
    run(&app, "UPDATE callback_endpoints SET status = 'Paused', pause_reason = 'Gone' WHERE url LIKE '%one%'").await;
    run(&app, &format!(
        "INSERT INTO callback_deliveries (endpoint_id, position, event_id, type, payment_link_id, generation, status, attempts, due_at)
         SELECT callback_endpoints.id, 1, gen_random_uuid(), 'payment_link.created', payment_links.id, 0, 'Failed', 10, now()
         FROM callback_endpoints, payment_links
         WHERE callback_endpoints.url LIKE '%two%' AND payment_intent_id = '{}'",
        text(&link["paymentIntentId"])
    )).await;
    let words = [
        "Warning",
        "paused",
        "href=\"/runbook#a-callback-endpoint-is-paused\"",
    ];
    says(&visitor, "https://one.example.com/", &words).await;
    let words = [
        "Warning",
        "1 callback failed",
        "href=\"/runbook#a-callback-failed\"",
    ];
    says(&visitor, "https://two.example.com/", &words).await;
    let words = ["Fine", "1 endpoint without problems"];
    says(&visitor, "Other endpoints", &words).await;

    let other = Visitor::with_key(&app, &create_api_key(&app, "ann", ALL)).await;
    says(
        &other,
        "Callbacks",
        &["Note", "you lack the permission callbacks:manage"],
    )
    .await;
    let page = other.get("/health").await.expect(200).text;
    assert!(!page.contains("example.com/ ("), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_with_one_account_sees_the_health_of_that_one() {
    let folder = Folder::new();
    let accounts = site("leeds", LEEDS_KEY, "whs_leeds");
    let file = folder.write("accounts.toml", &accounts);
    let app = start(&[("DOJO_ACCOUNTS_FILE", &file), ("RUN_JOBS", "true")]).await;
    let key = create_limited_key(&app, "lee", ALL, "leeds");
    let lee = Visitor::with_key(&app, &key).await;
    let page = eventually("Dojo was asked", async || {
        let page = lee.get("/health").await.expect(200).text;
        page.contains("<dt>Dojo and the API key").then_some(page)
    })
    .await;
    assert!(
        page.contains("Account leeds") && page.contains("Reconciliation, account leeds"),
        "{page}"
    );
    assert!(
        !page.contains("Account default") && !page.contains("Reconciliation, account default"),
        "{page}"
    );
    assert!(finding(&page, "Requests that failed").is_none());
    let hidden = finding(&page, "Books, requests and calls").unwrap();
    assert!(hidden.contains("Not shown"), "{hidden}");
}

#[tokio::test]
async fn a_read_only_database_can_be_seen_on_the_page() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    says(&visitor, "Writable", &["Fine"]).await;
    // Old enough that a page would store that the session is used.
    run(
        &app,
        "UPDATE console_sessions SET last_used_at = now() - interval '5 min'",
    )
    .await;
    let name = app.database_url.rsplit('/').next().unwrap();
    run(
        &app,
        &format!("ALTER DATABASE {name} SET default_transaction_read_only = on"),
    )
    .await;
    // It applies to new connections.
    run(&app, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()").await;
    let words = [
        "Wrong",
        "read-only",
        "href=\"/runbook#the-database-is-down\"",
    ];
    eventually("the page says so", async || {
        // While connections are being replaced, there may be none.
        let page = visitor.get("/health").await.text;
        let ready = finding(&page, "Ready")?;
        let found = finding(&page, "Writable")?;
        let is_said = words.iter().all(|words| found.contains(words));
        (is_said && ready.contains("Wrong") && ready.contains("read-only")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_database_user_that_may_not_write_is_wrong() {
    let database = new_database().await;
    let role = format!("role_{}", Uuid::now_v7().simple());
    let url = database.replace("postgres@", &format!("{role}@"));
    assert_ne!(url, database);
    let owner = sqlx::PgPool::connect(&database).await.unwrap();
    let execute = async |statement: String| {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement))
            .execute(&owner)
            .await
            .unwrap();
    };
    execute(format!(
        "CREATE ROLE {role} LOGIN;
         GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};
         GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}"
    ))
    .await;
    let settings = [
        ("CONSOLE_LISTEN_ADDR", "127.0.0.1:0"),
        ("MIGRATE_ON_START", "false"),
    ];
    let app = TestApp::on(url, &settings).await.with_database(&database);
    let visitor = Visitor::bootstrap(&app).await;
    says(&visitor, "Writable", &["Fine"]).await;
    execute(format!("REVOKE INSERT ON webhook_events FROM {role}")).await;
    let words = [
        "Wrong",
        "may not write to webhook_events",
        "grant it SELECT",
    ];
    says(&visitor, "Writable", &words).await;
    execute(format!("DROP OWNED BY {role}")).await;
    drop(app);
    execute(format!("DROP ROLE {role}")).await;
}

#[tokio::test]
async fn dojo_is_asked_once_for_everybody_and_not_at_will() {
    let app = subscribed(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let before = checks(&app.sandbox).await;
    let pages = join_all((0..20).map(|_| visitor.get("/health"))).await;
    assert!(pages.into_iter().all(|page| page.status == 200));
    says(&visitor, "Dojo and the API key", &["Fine"]).await;
    assert_eq!(checks(&app.sandbox).await, before + 1);

    let csrf = visitor.csrf().await;
    let pressed = (0..100).map(|_| send(visitor.form("/health", &[("csrf", &csrf)])));
    let pressed = join_all(pressed).await;
    let refused = pressed
        .iter()
        .filter(|answer| answer.header("location") == "/health?soon=1");
    assert!(refused.count() > 50);
    visitor
        .sees(
            "/health?soon=1",
            "It was asked several times in the last minute.",
        )
        .await;
    let asked = checks(&app.sandbox).await - before;
    assert!(asked < 50, "{asked}");
}
