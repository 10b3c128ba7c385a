//! `check`: each check passes on a working deployment and fails when its subject is wrong.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

#[cfg(target_os = "linux")]
use crate::support::tls;
use crate::{
    accounts::{Folder, site},
    commands::revoke_api_key,
    subscriptions::{Finished, operate, subscriptions},
    support::{DOJO_KEY, LEEDS_KEY, TestApp, WEBHOOK_SECRET, empty_database, text},
};

/// The names of all checks, in order.
const CHECKS: [&str; 13] = [
    "settings",
    "database",
    "migrations",
    "writable",
    "environment",
    "api-keys",
    "database-clock",
    "dojo",
    "dojo-clock",
    "checkout-address",
    "webhook-address",
    "webhook-events",
    "webhook-secrets",
];

/// Runs `check` and returns its JSON report by check. Also makes sure that the text report is equivalent, that the exit
/// code is right, and that no secret is printed.
async fn report(app: &TestApp, settings: &[(&str, &str)]) -> BTreeMap<String, Value> {
    let json = operate(app, &["check", "--json"], settings).await;
    let plain = operate(app, &["check"], settings).await;
    let report: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(report["ok"], json.succeeded);
    assert_eq!(plain.succeeded, json.succeeded);
    let checks = report["checks"].as_array().unwrap();
    assert_eq!(
        report["ok"],
        checks.iter().all(|check| check["outcome"] == "passed")
    );
    let mut lines = plain.stdout.lines();
    for check in checks {
        let line = lines.next().unwrap();
        let mark = match text(&check["outcome"]) {
            "passed" => '✔',
            "failed" => '✘',
            _ => '-',
        };
        assert!(
            line.starts_with(&format!("{mark} {}", text(&check["name"]))),
            "{line}"
        );
        assert_eq!(
            line.contains("not checked: "),
            check["outcome"] == "skipped"
        );
        assert_eq!(
            check["fix"].is_string(),
            check["outcome"] == "failed",
            "{check}"
        );
        assert_eq!(line.contains('→'), check["fix"].is_string(), "{line}");
    }
    for Finished { stdout, stderr, .. } in [&json, &plain] {
        for secret in [DOJO_KEY, WEBHOOK_SECRET, "hush"] {
            assert!(
                !stdout.contains(secret) && !stderr.contains(secret),
                "{stdout}{stderr}"
            );
        }
    }
    checks
        .iter()
        .map(|check| (text(&check["name"]).to_owned(), check.clone()))
        .collect()
}

/// The checks that did not pass, each with its outcome.
fn not_passed(report: &BTreeMap<String, Value>) -> Vec<(&str, &str)> {
    let mut checks: Vec<_> = report
        .values()
        .filter(|check| check["outcome"] != "passed")
        .map(|check| (text(&check["name"]), text(&check["outcome"])))
        .collect();
    checks.sort_by_key(|(name, _)| CHECKS.iter().position(|check| check == name));
    checks
}

/// Asserts that only this check fails, that its text contains `words`, and that only `skipped` are skipped.
#[track_caller]
fn fails(report: &BTreeMap<String, Value>, name: &str, words: &str, skipped: &[&str]) {
    let expected: Vec<_> = std::iter::once((name, "failed"))
        .chain(skipped.iter().map(|name| (*name, "skipped")))
        .collect();
    assert_eq!(not_passed(report), expected, "{report:#?}");
    let check = &report[name];
    let line = format!("{} → {}", text(&check["detail"]), text(&check["fix"]));
    assert!(line.contains(words), "{line}");
}

async fn execute(app: &TestApp, statement: &str) {
    sqlx::query(AssertSqlSafe(statement.to_owned()))
        .execute(&app.pool)
        .await
        .unwrap();
}

/// Executes a statement that applies to new connections to the database. `{}` stands for the database's name.
async fn alter_database(app: &TestApp, statement: &str) {
    let name = app.database_url.rsplit('/').next().unwrap();
    let name = name.split('?').next().unwrap();
    execute(app, &statement.replace("{}", name)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_working_deployment_passes() {
    let app = TestApp::start().await;
    let report = report(&app, &[]).await;
    assert_eq!(not_passed(&report), []);
    assert_eq!(report.len(), CHECKS.len());
    let detail = |name: &str| text(&report[name]["detail"]).to_owned();
    assert!(detail("dojo").contains("sandbox"), "{report:#?}");
    assert_eq!(
        detail("webhook-address"),
        format!("{}/webhooks/dojo", app.service.url)
    );
    assert_eq!(report["dojo"]["account"], "default");
    assert_eq!(report["database"]["account"], Value::Null);

    // It changes nothing: it doesn't even set the environment of a new database.
    let mut calls = app.sandbox.look("requests").await;
    let calls = calls.as_array_mut().unwrap();
    // The test's own calls, which point the sandbox to the service, have no user agent.
    calls.retain(|call| call["headers"]["user-agent"].is_string());
    assert_eq!(
        calls.len(),
        6,
        "three calls in each of two runs: {calls:#?}"
    );
    for call in calls {
        let is_search = call["path"] == "/payment-intents/search";
        assert!(is_search || call["method"] == "GET", "{call}");
    }
    execute(&app, "DELETE FROM deployment").await;
    let report = self::report(&app, &[]).await;
    assert!(text(&report["environment"]["detail"]).contains("not set yet"));
    let claims: i64 = sqlx::query_scalar("SELECT count(*) FROM deployment")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert_eq!(claims, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_settings_are_named_and_the_other_checks_still_run() {
    let app = TestApp::start().await;
    let dojo = &CHECKS[7..];
    for (settings, words, skipped) in [
        (
            &[("DOJO_API_KEY", "pk_hush")][..],
            "DOJO_API_KEY must begin with",
            dojo,
        ),
        (&[("DOJO_API_KEY", "")], "DOJO_API_KEY is required", dojo),
        (
            &[("BOOTSTRAP_API_KEY", "dpl_hush")],
            "BOOTSTRAP_API_KEY",
            &[],
        ),
        (
            &[("BUSINESS_TIME_ZONE", "Europe/Londen")],
            "BUSINESS_TIME_ZONE is Europe/Londen, which Postgres does not know",
            &[],
        ),
        (
            &[("PUBLIC_URL", "https://hush:hush@x.example.com")],
            "PUBLIC_URL",
            &["webhook-address"],
        ),
        (
            &[("DATABASE_URL", "mysql://root:hush@localhost/x")],
            "DATABASE_URL",
            &CHECKS[1..7],
        ),
        // A value that can't be parsed leaves nothing to check.
        (&[("LISTEN_ADDR", "nowhere")], "LISTEN_ADDR", &CHECKS[1..]),
        (
            &[("DOJO_TIMEOUT", "10 parsecs")],
            "DOJO_TIMEOUT must be a duration such as ",
            &CHECKS[1..],
        ),
    ] {
        let report = report(&app, settings).await;
        // Without accounts, the environment is unknown.
        let mut skipped = skipped.to_vec();
        if skipped == dojo {
            skipped.insert(0, "environment");
        }
        fails(&report, "settings", words, &skipped);
    }

    // Several at once.
    let wrong = [
        ("DOJO_API_KEY", "pk_hush"),
        ("BOOTSTRAP_API_KEY", "dpl_hush"),
    ];
    let report = report(&app, &wrong).await;
    let detail = text(&report["settings"]["detail"]);
    assert!(
        detail.contains("DOJO_API_KEY") && detail.contains("BOOTSTRAP_API_KEY"),
        "{detail}"
    );
    let wrong = [
        ("DOJO_TIMEOUT", "10 parsecs"),
        ("LISTEN_ADDR", "nowhere"),
        ("RUN_JOBS", "perhaps"),
        ("DATABASE_MAX_CONNECTIONS", "0"),
        ("LOG_FORMAT", "xml"),
        ("LOG_FILTER", "=,="),
    ];
    let report = self::report(&app, &wrong).await;
    let detail = text(&report["settings"]["detail"]);
    for (name, _) in wrong {
        let words = format!("{name} must be ");
        assert!(detail.contains(&words), "{name}: {detail}");
    }
    // A value that was given as a flag is reported by its flag.
    let flag = ["check", "--listen-addr=nowhere", "--run-jobs", "perhaps"];
    let finished = operate(&app, &flag, &wrong[..2]).await;
    for name in ["--listen-addr", "--run-jobs", "DOJO_TIMEOUT"] {
        let words = format!("{name} must be ");
        assert!(
            finished.stdout.contains(&words),
            "{name}: {}",
            finished.stdout
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_webhook_secret_fails() {
    let app = TestApp::start().await;
    let report = report(&app, &[("DOJO_WEBHOOK_SECRETS", "")]).await;
    assert_eq!(
        not_passed(&report),
        [("settings", "failed"), ("webhook-secrets", "failed")]
    );
    assert!(text(&report["settings"]["detail"]).contains("DOJO_WEBHOOK_SECRETS"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_unreachable_or_not_migrated_fails() {
    let app = TestApp::start().await;
    let nowhere = [("DATABASE_URL", "postgres://dojo:hush@127.0.0.1:9/dojo")];
    let after = &CHECKS[2..7];
    fails(
        &report(&app, &nowhere).await,
        "database",
        "DATABASE_URL",
        after,
    );

    let empty = empty_database().await;
    let found = report(&app, &[("DATABASE_URL", &empty)]).await;
    let rest = ["writable", "environment", "api-keys"];
    fails(
        &found,
        "migrations",
        "run dojo-payment-links migrate",
        &rest,
    );
    let detail = text(&found["migrations"]["detail"]);
    assert!(
        detail.starts_with("pending: 1 to ") && detail.len() < 50,
        "{detail}"
    );
    let tables: i64 =
        sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
            .fetch_one(&sqlx::PgPool::connect(&empty).await.unwrap())
            .await
            .unwrap();
    assert_eq!(tables, 0, "check doesn't migrate");

    execute(
        &app,
        "UPDATE _sqlx_migrations SET version = 999999 WHERE version = 3",
    )
    .await;
    let found = report(&app, &[]).await;
    fails(&found, "migrations", "pending: 3", &rest);
    execute(
        &app,
        "UPDATE _sqlx_migrations SET version = 3 WHERE version = 999999",
    )
    .await;

    execute(
        &app,
        "UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = 2",
    )
    .await;
    fails(
        &report(&app, &[]).await,
        "migrations",
        "incomplete, or different from this version's: 2",
        &rest,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_a_later_version_fails_but_a_replica_can_start_on_it() {
    let app = TestApp::start().await;
    execute(
        &app,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (999999, 'of a later version', true, '\\x00', 0)",
    )
    .await;
    fails(
        &report(&app, &[]).await,
        "migrations",
        "from a later version: 999999",
        &[],
    );
    // This happens during an upgrade, when a replica of the previous version crashes.
    let settings = [("MIGRATE_ON_START", "true")];
    let again =
        crate::support::Service::start(&app.database_url, &app.sandbox.url, &settings).await;
    let ready = app.anonymous(Method::GET, "/readyz").send().await.unwrap();
    assert_eq!(ready.status(), 200);
    drop(again);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_read_only_or_whose_clock_differs_fails() {
    let app = TestApp::start().await;
    alter_database(
        &app,
        "ALTER DATABASE {} SET default_transaction_read_only = on",
    )
    .await;
    fails(&report(&app, &[]).await, "writable", "primary", &[]);
    app.pool.close().await;

    let app = TestApp::start().await;
    execute(&app, "CREATE SCHEMA other").await;
    execute(
        &app,
        "CREATE FUNCTION other.now() RETURNS timestamptz LANGUAGE sql
         AS $$ SELECT pg_catalog.now() + interval '31 seconds' $$",
    )
    .await;
    alter_database(
        &app,
        "ALTER DATABASE {} SET search_path = other, pg_catalog, public",
    )
    .await;
    fails(&report(&app, &[]).await, "database-clock", "NTP", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_user_that_may_not_read_or_write_fails() {
    let app = TestApp::start().await;
    let role = format!("role_{}", uuid::Uuid::now_v7().simple());
    let url = app.database_url.replace("postgres@", &format!("{role}@"));
    execute(&app, &format!("CREATE ROLE {role} LOGIN")).await;
    let found = report(&app, &[("DATABASE_URL", &url)]).await;
    let words = "the user lacks a privilege";
    fails(&found, "migrations", words, &CHECKS[3..7]);

    for statement in [
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}",
        "GRANT INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}",
        "REVOKE UPDATE ON operations FROM {role}",
    ] {
        execute(&app, &statement.replace("{role}", &role)).await;
    }
    let words = "may not write to operations → use the user that owns";
    fails(
        &report(&app, &[("DATABASE_URL", &url)]).await,
        "writable",
        words,
        &[],
    );
    execute(&app, &format!("DROP OWNED BY {role}")).await;
    execute(&app, &format!("DROP ROLE {role}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_the_other_environment_or_without_api_keys_fails() {
    let app = TestApp::start().await;
    // Nobody listens at this address, so nothing real can be requested.
    let production = [
        ("DOJO_API_KEY", "sk_prod_hush"),
        ("DOJO_API_URL", "https://127.0.0.1:9"),
    ];
    let found = report(&app, &production).await;
    assert_eq!(
        not_passed(&found)[..2],
        [("environment", "failed"), ("dojo", "failed")]
    );
    let detail = text(&found["environment"]["detail"]);
    assert!(
        detail.contains("the key is for production, but the database is for sandbox"),
        "{detail}"
    );

    revoke_api_key(&app, "bootstrap");
    fails(&report(&app, &[]).await, "api-keys", "api-keys create", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_key_and_an_unreachable_dojo_fail() {
    let app = TestApp::start().await;
    let after = &CHECKS[8..];
    let wrong = report(&app, &[("DOJO_API_KEY", "sk_sandbox_hush")]).await;
    fails(
        &wrong,
        "dojo",
        "create a key in Dojo's developer portal",
        after,
    );
    let nowhere = report(&app, &[("DOJO_API_URL", "http://127.0.0.1:9")]).await;
    fails(&nowhere, "dojo", "DOJO_API_URL", after);

    app.sandbox
        .control(
            "faults",
            json!({"operation": "webhooks", "kind": "status", "status": 503, "share": 1.0}),
        )
        .await;
    fails(
        &report(&app, &[]).await,
        "webhook-address",
        "Dojo did not return the webhook subscriptions",
        &CHECKS[11..],
    );
    app.sandbox.clear("faults").await;

    // A slow Dojo doesn't exceed the time limit.
    app.sandbox
        .control(
            "faults",
            json!({"operation": "search", "kind": "latency", "latencyMs": 60_000, "share": 1.0}),
        )
        .await;
    fails(
        &report(&app, &[("DOJO_TIMEOUT", "1s")]).await,
        "dojo",
        "lost",
        after,
    );
}

// On other systems, trusting a certificate takes more than a variable.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_production_key_is_reported_as_real_money() {
    let sandbox = dojo_sandbox::Sandbox::start(dojo_sandbox::Settings {
        api_key: Some("sk_prod_hush".to_owned()),
        ..dojo_sandbox::Settings::default()
    })
    .await
    .unwrap();
    let folder = Folder::new();
    let files = tls::certificate(folder.path());
    let url = tls::proxy(&files, sandbox.url());
    let app = TestApp::start().await;
    let settings = [
        ("DOJO_API_KEY", "sk_prod_hush"),
        ("DOJO_API_URL", url.as_str()),
        ("SSL_CERT_FILE", files[0].to_str().unwrap()),
    ];
    let found = report(&app, &settings).await;
    assert_eq!(found["dojo"]["outcome"], "passed");
    assert!(
        text(&found["dojo"]["detail"]).contains("REAL MONEY"),
        "{found:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_differs_from_dojos_fails() {
    let app = TestApp::start().await;
    app.sandbox
        .control("clock", json!({"advanceSeconds": 20}))
        .await;
    assert_eq!(not_passed(&report(&app, &[]).await), []);
    app.sandbox
        .control("clock", json!({"advanceSeconds": 15}))
        .await;
    fails(&report(&app, &[]).await, "dojo-clock", "NTP", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_server_that_is_wrong_unreachable_or_silent_fails() {
    let app = TestApp::start().await;
    let from = ("MAIL_FROM", "pay@theatre.example");
    let wrong = [("SMTP_URL", "smtp://pay@hush.example"), from];
    fails(&report(&app, &wrong).await, "settings", "SMTP_URL", &[]);

    let nowhere = [("SMTP_URL", "smtp://127.0.0.1:9?tls=none"), from];
    let found = report(&app, &nowhere).await;
    fails(&found, "mail-server", "127.0.0.1, port 9", &[]);
    assert!(text(&found["mail-server"]["fix"]).contains("SMTP_URL"));

    // The system accepts the connection, and nobody responds on it.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("smtp://{}?tls=none", silent.local_addr().unwrap());
    let silent = [("SMTP_URL", url.as_str()), from, ("SMTP_TIMEOUT", "200ms")];
    let found = report(&app, &silent).await;
    fails(&found, "mail-server", "did not respond in time", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_to_another_url_or_to_none_fail() {
    let app = TestApp::start().await;
    let found = report(&app, &[("PUBLIC_URL", "")]).await;
    fails(
        &found,
        "webhook-address",
        "set it with PUBLIC_URL or --public-url",
        &[],
    );
    assert!(text(&found["webhook-address"]["detail"]).contains(&app.service.url));

    let elsewhere = report(&app, &[("PUBLIC_URL", "http://pay.example.com")]).await;
    let rest = ["webhook-events", "webhook-secrets"];
    fails(
        &elsewhere,
        "webhook-address",
        "register --url http://pay.example.com/",
        &rest,
    );
    assert!(text(&elsewhere["webhook-address"]["fix"]).contains("--replace"));

    let id = subscriptions(&app).await[0]["id"].clone();
    let path = format!("/webhooks/{}", text(&id));
    app.sandbox.api(Method::DELETE, &path, &Value::Null).await;
    let nowhere = report(&app, &[]).await;
    fails(
        &nowhere,
        "webhook-address",
        "the account has no webhook subscription for payment events",
        &rest,
    );
    assert!(!text(&nowhere["webhook-address"]["fix"]).contains("--replace"));
}

#[tokio::test(flavor = "multi_thread")]
async fn links_of_a_sandbox_that_lead_to_dojo_fail() {
    let app = TestApp::start().await;
    let dojo = [("DOJO_CHECKOUT_URL", "https://pay.dojo.tech/checkout")];
    let found = report(&app, &dojo).await;
    fails(&found, "checkout-address", "set DOJO_CHECKOUT_URL", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_event_fails_and_one_that_is_not_offered_is_mentioned() {
    let app = TestApp::start().await;
    let id = subscriptions(&app).await[0]["id"].clone();
    let path = format!("/webhooks/{}", text(&id));
    let fewer = json!({"events": ["payment_intent.created", "payment_intent.status_updated"]});
    app.sandbox.api(Method::PATCH, &path, &fewer).await;
    let found = report(&app, &[]).await;
    fails(
        &found,
        "webhook-events",
        "not subscribed: payment_intent.send-receipt",
        &[],
    );

    app.sandbox.control("offered-events", fewer).await;
    let found = report(&app, &[]).await;
    assert_eq!(not_passed(&found), []);
    let detail = text(&found["webhook-events"]["detail"]);
    assert!(
        detail.contains("does not offer payment_intent.send-receipt"),
        "{detail}"
    );

    let none = json!({"events": ["payment_intent.created"]});
    app.sandbox.control("offered-events", none).await;
    fails(&report(&app, &[]).await, "webhook-events", "ask Dojo", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_active_secret_that_is_not_in_the_settings_and_unsigned_webhooks_fail() {
    let app = TestApp::start().await;
    let found = report(&app, &[("DOJO_WEBHOOK_SECRETS", "whs_another_hush")]).await;
    let subscription = subscriptions(&app).await.remove(0);
    let secret = text(&subscription["secrets"][0]["id"]);
    fails(
        &found,
        "webhook-secrets",
        &format!("Dojo signs with {secret}, which is not in the settings"),
        &[],
    );

    let path = format!("/webhooks/{}/secrets/{secret}", text(&subscription["id"]));
    app.sandbox.api(Method::DELETE, &path, &Value::Null).await;
    fails(&report(&app, &[]).await, "webhook-secrets", "unsigned", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_account_has_its_own_checks() {
    let app = TestApp::start().await;
    let folder = Folder::new();
    let leeds = site("leeds", LEEDS_KEY, "whs_leeds_hush");
    let york = site("york", "sk_sandbox_revoked_hush", "whs_york_hush");
    let file = folder.write("accounts.toml", &(leeds + &york));
    let finished = operate(&app, &["check", "--json"], &[("DOJO_ACCOUNTS_FILE", &file)]).await;
    assert!(
        !finished.succeeded && !finished.stdout.contains("hush"),
        "{}",
        finished.stdout
    );
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    let outcomes = |account: &str| {
        let checks = report["checks"].as_array().unwrap();
        let of_account = checks.iter().filter(|check| check["account"] == account);
        let outcomes: Vec<_> = of_account.map(|check| text(&check["outcome"])).collect();
        outcomes.join(" ")
    };
    assert_eq!(
        outcomes("default"),
        "passed passed passed passed passed passed"
    );
    assert_eq!(
        outcomes("leeds"),
        "passed passed passed failed skipped skipped"
    );
    assert_eq!(
        outcomes("york"),
        "failed skipped skipped skipped skipped skipped"
    );
    assert!(
        finished.stdout.contains("--account leeds"),
        "{}",
        finished.stdout
    );

    // Each account has its own webhook URL.
    let finished = operate(&app, &["check"], &[("DOJO_ACCOUNTS_FILE", &file)]).await;
    let words = format!(
        "Dojo sends no webhooks to {}/webhooks/dojo/leeds",
        app.service.url
    );
    assert!(finished.stdout.contains(&words), "{}", finished.stdout);
}
