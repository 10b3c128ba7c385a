//! `check`: each line fails when what it is about is wrong, and passes when it is right.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::{
    accounts::{Folder, site},
    commands::revoke_api_key,
    subscriptions::{Told, operate, subscriptions},
    support::{DOJO_KEY, LEEDS_KEY, TestApp, WEBHOOK_SECRET, empty_database, text},
};

const LINES: [&str; 12] = [
    "settings",
    "database",
    "migrations",
    "writable",
    "environment",
    "api-keys",
    "database-clock",
    "dojo",
    "dojo-clock",
    "webhook-address",
    "webhook-events",
    "webhook-secrets",
];

/// The report as JSON, after it was seen to be the same in words, with the right exit code and without a secret.
async fn report(app: &TestApp, settings: &[(&str, &str)]) -> BTreeMap<String, Value> {
    let machine = operate(app, &["check", "--json"], settings).await;
    let people = operate(app, &["check"], settings).await;
    let report: Value = serde_json::from_str(&machine.stdout).unwrap();
    assert_eq!(report["ok"], machine.succeeded);
    assert_eq!(people.succeeded, machine.succeeded);
    let checks = report["checks"].as_array().unwrap();
    assert_eq!(
        report["ok"],
        checks.iter().all(|check| check["outcome"] == "passed")
    );
    let mut lines = people.stdout.lines();
    for check in checks {
        let line = lines.next().unwrap();
        let mark = if check["outcome"] == "passed" {
            '✔'
        } else {
            '✘'
        };
        assert!(
            line.starts_with(&format!("{mark} {}", text(&check["name"]))),
            "{line}"
        );
        assert_eq!(
            line.contains("skipped, because"),
            check["outcome"] == "skipped"
        );
        assert_eq!(
            check["mend"].is_string(),
            check["outcome"] == "failed",
            "{check}"
        );
        assert_eq!(line.contains('→'), check["mend"].is_string(), "{line}");
    }
    for Told { stdout, stderr, .. } in [&machine, &people] {
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

/// The lines that did not pass, each with its outcome.
fn not_passed(report: &BTreeMap<String, Value>) -> Vec<(&str, &str)> {
    let mut lines: Vec<_> = report
        .values()
        .filter(|check| check["outcome"] != "passed")
        .map(|check| (text(&check["name"]), text(&check["outcome"])))
        .collect();
    lines.sort_by_key(|(name, _)| LINES.iter().position(|line| line == name));
    lines
}

/// Checks that this line alone fails and says this, or with others that are skipped for it.
#[track_caller]
fn fails(report: &BTreeMap<String, Value>, name: &str, words: &str, skipped: &[&str]) {
    let expected: Vec<_> = std::iter::once((name, "failed"))
        .chain(skipped.iter().map(|name| (*name, "skipped")))
        .collect();
    assert_eq!(not_passed(report), expected, "{report:#?}");
    let check = &report[name];
    let said = format!("{} → {}", text(&check["detail"]), text(&check["mend"]));
    assert!(said.contains(words), "{said}");
}

async fn execute(app: &TestApp, statement: &str) {
    sqlx::query(AssertSqlSafe(statement.to_owned()))
        .execute(&app.pool)
        .await
        .unwrap();
}

/// A statement about the whole database, whose name is put in place of `{}`; new connections obey it.
async fn alter_database(app: &TestApp, statement: &str) {
    let name = app.database_url.rsplit('/').next().unwrap();
    let name = name.split('?').next().unwrap();
    execute(app, &statement.replace("{}", name)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_is_right_passes() {
    let app = TestApp::start().await;
    let report = report(&app, &[]).await;
    assert_eq!(not_passed(&report), []);
    assert_eq!(report.len(), LINES.len());
    let said = |name: &str| text(&report[name]["detail"]).to_owned();
    assert!(said("dojo").contains("sandbox"), "{report:#?}");
    assert_eq!(
        said("webhook-address"),
        format!("{}/webhooks/dojo", app.service.url)
    );
    assert_eq!(report["dojo"]["account"], "default");
    assert_eq!(report["database"]["account"], Value::Null);

    // It has changed nothing: not even a new database is claimed.
    let mut calls = app.sandbox.look("requests").await;
    let calls = calls.as_array_mut().unwrap();
    // The test's own, which point the sandbox to the service, name no program.
    calls.retain(|call| call["headers"]["user-agent"].is_string());
    assert_eq!(calls.len(), 6, "three calls, asked for twice: {calls:#?}");
    for call in calls {
        let is_search = call["path"] == "/payment-intents/search";
        assert!(is_search || call["method"] == "GET", "{call}");
    }
    execute(&app, "DELETE FROM deployment").await;
    let report = self::report(&app, &[]).await;
    assert!(text(&report["environment"]["detail"]).contains("not settled yet"));
    let claims: i64 = sqlx::query_scalar("SELECT count(*) FROM deployment")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert_eq!(claims, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_are_wrong_are_named_and_the_rest_is_asked_all_the_same() {
    let app = TestApp::start().await;
    let dojo = &LINES[7..];
    for (settings, words, skipped) in [
        (
            &[("DOJO_API_KEY", "pk_hush")][..],
            "DOJO_API_KEY begins with neither",
            dojo,
        ),
        (&[("DOJO_API_KEY", "")], "DOJO_API_KEY is required", dojo),
        (
            &[("BOOTSTRAP_API_KEY", "dpl_hush")],
            "BOOTSTRAP_API_KEY",
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
            &LINES[1..7],
        ),
        // What cannot even be read leaves nothing to ask.
        (&[("LISTEN_ADDR", "nowhere")], "LISTEN_ADDR", &LINES[1..]),
        (
            &[("DOJO_TIMEOUT", "10 parsecs")],
            "DOJO_TIMEOUT is wrong: unknown time unit",
            &LINES[1..],
        ),
    ] {
        let report = report(&app, settings).await;
        // Without accounts nobody knows which environment the database has to be for.
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
    let said = text(&report["settings"]["detail"]);
    assert!(
        said.contains("DOJO_API_KEY") && said.contains("BOOTSTRAP_API_KEY"),
        "{said}"
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
    let said = text(&report["settings"]["detail"]);
    for (name, _) in wrong {
        assert!(said.contains(&format!("{name} is ")), "{name}: {said}");
    }
    // What was given as a flag is called so.
    let flag = ["check", "--listen-addr=nowhere", "--run-jobs", "perhaps"];
    let told = operate(&app, &flag, &wrong[..2]).await;
    for name in ["--listen-addr", "--run-jobs", "DOJO_TIMEOUT"] {
        let words = format!("{name} is ");
        assert!(told.stdout.contains(&words), "{name}: {}", told.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_webhook_secret_nothing_is_ready() {
    let app = TestApp::start().await;
    let report = report(&app, &[("DOJO_WEBHOOK_SECRETS", "")]).await;
    assert_eq!(
        not_passed(&report),
        [("settings", "failed"), ("webhook-secrets", "failed")]
    );
    assert!(text(&report["settings"]["detail"]).contains("DOJO_WEBHOOK_SECRETS"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_reached_or_not_migrated_fails() {
    let app = TestApp::start().await;
    let nowhere = [("DATABASE_URL", "postgres://dojo:hush@127.0.0.1:9/dojo")];
    let after = &LINES[2..7];
    fails(
        &report(&app, &nowhere).await,
        "database",
        "DATABASE_URL",
        after,
    );

    let empty = empty_database().await;
    let found = report(&app, &[("DATABASE_URL", &empty)]).await;
    let rest = ["environment", "api-keys"];
    fails(
        &found,
        "migrations",
        "run dojo-payment-links migrate",
        &rest,
    );
    let tables: i64 =
        sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
            .fetch_one(&sqlx::PgPool::connect(&empty).await.unwrap())
            .await
            .unwrap();
    assert_eq!(tables, 0, "it migrates nothing");

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
        "2 did not end, or differ",
        &rest,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_a_later_version_fails_the_check_but_not_a_replica_that_starts_again() {
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
        "999999 are of a later version",
        &[],
    );
    // As in the middle of an upgrade, when a replica of the version before crashes.
    let settings = [("MIGRATE_ON_START", "true")];
    let again =
        crate::support::Service::start(&app.database_url, &app.sandbox.url, &settings).await;
    let ready = app.anonymous(Method::GET, "/readyz").send().await.unwrap();
    assert_eq!(ready.status(), 200);
    drop(again);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_only_reads_or_tells_another_time_fails() {
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
async fn a_database_of_the_other_environment_and_one_without_keys_fail() {
    let app = TestApp::start().await;
    // The address is one where nobody listens: nothing real can be asked for.
    let production = [
        ("DOJO_API_KEY", "sk_prod_hush"),
        ("DOJO_API_URL", "https://127.0.0.1:9"),
    ];
    let found = report(&app, &production).await;
    assert_eq!(
        not_passed(&found)[..2],
        [("environment", "failed"), ("dojo", "failed")]
    );
    let said = text(&found["environment"]["detail"]);
    assert!(
        said.contains("the key is for production, and the database for sandbox"),
        "{said}"
    );

    revoke_api_key(&app, "bootstrap");
    fails(&report(&app, &[]).await, "api-keys", "api-keys create", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn dojo_that_refuses_the_key_or_is_not_there_fails() {
    let app = TestApp::start().await;
    let after = &LINES[8..];
    let wrong = report(&app, &[("DOJO_API_KEY", "sk_sandbox_hush")]).await;
    fails(
        &wrong,
        "dojo",
        "make a key in Dojo's developer portal",
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
        "does not tell of its webhooks",
        &LINES[10..],
    );
    app.sandbox.clear("faults").await;

    // Slow, and still told in time.
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

#[tokio::test(flavor = "multi_thread")]
async fn a_key_for_real_money_is_called_so() {
    let sandbox = dojo_sandbox::Sandbox::start(dojo_sandbox::Settings {
        api_key: Some("sk_prod_hush".to_owned()),
        ..dojo_sandbox::Settings::default()
    })
    .await
    .unwrap();
    let app = TestApp::start().await;
    let settings = [
        ("DOJO_API_KEY", "sk_prod_hush"),
        ("DOJO_API_URL", sandbox.url()),
    ];
    let found = report(&app, &settings).await;
    assert_eq!(found["dojo"]["outcome"], "passed");
    assert!(
        text(&found["dojo"]["detail"]).contains("REAL MONEY"),
        "{found:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_not_dojos_fails() {
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
async fn webhooks_that_go_elsewhere_or_nowhere_fail() {
    let app = TestApp::start().await;
    let found = report(&app, &[("PUBLIC_URL", "")]).await;
    fails(
        &found,
        "webhook-address",
        "give it with --url or PUBLIC_URL",
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
    assert!(text(&elsewhere["webhook-address"]["mend"]).contains("--replace"));

    let id = subscriptions(&app).await[0]["id"].clone();
    let path = format!("/webhooks/{}", text(&id));
    app.sandbox.api(Method::DELETE, &path, &Value::Null).await;
    let nowhere = report(&app, &[]).await;
    fails(
        &nowhere,
        "webhook-address",
        "Dojo sends nothing anywhere",
        &rest,
    );
    assert!(!text(&nowhere["webhook-address"]["mend"]).contains("--replace"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_event_fails_and_one_that_is_not_offered_is_said() {
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
    let said = text(&found["webhook-events"]["detail"]);
    assert!(
        said.contains("does not offer payment_intent.send-receipt"),
        "{said}"
    );

    let none = json!({"events": ["payment_intent.created"]});
    app.sandbox.control("offered-events", none).await;
    fails(&report(&app, &[]).await, "webhook-events", "ask Dojo", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_the_settings_do_not_hold_and_none_at_all_fail() {
    let app = TestApp::start().await;
    let found = report(&app, &[("DOJO_WEBHOOK_SECRETS", "whs_another_hush")]).await;
    let subscription = subscriptions(&app).await.remove(0);
    let secret = text(&subscription["secrets"][0]["id"]);
    fails(
        &found,
        "webhook-secrets",
        &format!("{secret} signs, and the settings do not"),
        &[],
    );

    let path = format!("/webhooks/{}/secrets/{secret}", text(&subscription["id"]));
    app.sandbox.api(Method::DELETE, &path, &Value::Null).await;
    fails(&report(&app, &[]).await, "webhook-secrets", "unsigned", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_account_has_lines_of_its_own() {
    let app = TestApp::start().await;
    let folder = Folder::new();
    let leeds = site("leeds", LEEDS_KEY, "whs_leeds_hush");
    let york = site("york", "sk_sandbox_revoked_hush", "whs_york_hush");
    let file = folder.write("accounts.toml", &(leeds + &york));
    let told = operate(&app, &["check", "--json"], &[("DOJO_ACCOUNTS_FILE", &file)]).await;
    assert!(
        !told.succeeded && !told.stdout.contains("hush"),
        "{}",
        told.stdout
    );
    let report: Value = serde_json::from_str(&told.stdout).unwrap();
    let outcomes = |account: &str| {
        let checks = report["checks"].as_array().unwrap();
        let of_account = checks.iter().filter(|check| check["account"] == account);
        let outcomes: Vec<_> = of_account.map(|check| text(&check["outcome"])).collect();
        outcomes.join(" ")
    };
    assert_eq!(outcomes("default"), "passed passed passed passed passed");
    assert_eq!(outcomes("leeds"), "passed passed failed skipped skipped");
    assert_eq!(outcomes("york"), "failed skipped skipped skipped skipped");
    assert!(told.stdout.contains("--account leeds"), "{}", told.stdout);

    // With an address for all, each is looked for at its own door.
    let told = operate(&app, &["check"], &[("DOJO_ACCOUNTS_FILE", &file)]).await;
    let door = format!("nothing is sent to {}/webhooks/dojo/leeds", app.service.url);
    assert!(told.stdout.contains(&door), "{}", told.stdout);
}
