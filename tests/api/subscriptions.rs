//! `webhooks list` and `webhooks register`.

use std::process::Output;

use reqwest::Method;
use serde_json::{Value, json};

use crate::accounts::{Folder, site};
use crate::support::{DOJO_KEY, LEEDS_KEY, Service, TestApp, WEBHOOK_SECRET, program, text};

const CREATED: &str = "payment_intent.created";
const STATUS_UPDATED: &str = "payment_intent.status_updated";
const RECEIPT: &str = "payment_intent.send-receipt";

/// The result of a command.
pub struct Finished {
    pub succeeded: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    fn of(output: Output) -> Self {
        Self {
            succeeded: output.status.success(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Asserts that the command succeeded.
    #[track_caller]
    pub fn success(self) -> Self {
        assert!(self.succeeded, "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Asserts that the command failed and printed no secret. Returns its standard error.
    #[track_caller]
    pub fn failure(self) -> String {
        assert!(!self.succeeded, "{}\n{}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "");
        self.stderr
    }
}

/// Runs a command as an operator does, with the settings of the app's service, overridden by `settings`.
pub async fn operate(app: &TestApp, arguments: &[&str], settings: &[(&str, &str)]) -> Finished {
    let mut command = program();
    command
        .args(arguments)
        .env("DATABASE_URL", &app.database_url)
        .env("DOJO_API_URL", &app.sandbox.url)
        .env("DOJO_CHECKOUT_URL", format!("{}/checkout", app.sandbox.url))
        .env("DOJO_API_KEY", DOJO_KEY)
        .env("DOJO_WEBHOOK_SECRETS", WEBHOOK_SECRET)
        .env("PUBLIC_URL", &app.service.url)
        .envs(settings.iter().copied());
    let output = tokio::process::Command::from(command).output().await;
    Finished::of(output.unwrap())
}

/// All subscriptions, as Dojo has them.
pub async fn subscriptions(app: &TestApp) -> Vec<Value> {
    let all = app
        .sandbox
        .api(Method::GET, "/webhooks", &Value::Null)
        .await;
    all.as_array().unwrap().clone()
}

/// Deletes the subscription that exists at the start of every test.
async fn delete_subscriptions(app: &TestApp) {
    for subscription in subscriptions(app).await {
        let path = format!("/webhooks/{}", text(&subscription["id"]));
        app.sandbox.api(Method::DELETE, &path, &Value::Null).await;
    }
}

async fn subscribe(app: &TestApp, url: &str, events: &[&str]) -> Value {
    let body = json!({"url": url, "events": events});
    app.sandbox.api(Method::POST, "/webhooks", &body).await
}

async fn register(app: &TestApp, more: &[&str]) -> Finished {
    operate(app, &[&["webhooks", "register"], more].concat(), &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_registration_prints_the_secret_and_webhooks_arrive() {
    let app = TestApp::start().await;
    delete_subscriptions(&app).await;
    let finished = register(&app, &[]).await.success();
    let all = subscriptions(&app).await;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0]["url"], format!("{}/webhooks/dojo", app.service.url));
    assert_eq!(all[0]["events"], json!([CREATED, STATUS_UPDATED, RECEIPT]));
    let secret = text(&all[0]["secrets"][0]["value"]);
    assert_eq!(finished.stdout, format!("{secret}\n"));
    assert!(!finished.stderr.contains(secret), "{}", finished.stderr);
    assert!(
        finished.stderr.contains("DOJO_WEBHOOK_SECRETS"),
        "{}",
        finished.stderr
    );

    // Once the secret is in the settings, it isn't printed again.
    let settings = [("DOJO_WEBHOOK_SECRETS", secret)];
    let again = operate(&app, &["webhooks", "register"], &settings)
        .await
        .success();
    assert_eq!(again.stdout, "");
    assert!(
        again.stderr.contains("nothing to change"),
        "{}",
        again.stderr
    );
    assert_eq!(subscriptions(&app).await, all);

    let replica = Service::start(&app.database_url, &app.sandbox.url, &settings).await;
    let moved = [settings[0], ("PUBLIC_URL", &replica.url)];
    let finished = operate(&app, &["webhooks", "register", "--replace"], &moved)
        .await
        .success();
    assert_eq!(finished.stdout, "", "the subscription keeps its secret");
    let link = app.created().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.link_with_status(&link["id"], "Captured").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registering_again_changes_nothing() {
    let app = TestApp::start().await;
    let before = subscriptions(&app).await;
    for _ in 0..2 {
        let finished = register(&app, &[]).await.success();
        assert_eq!(finished.stdout, "", "the settings contain the secret");
        assert_eq!(subscriptions(&app).await, before);
    }
    // The test's own calls, which point the sandbox to the service, have no user agent.
    let mut calls = app.sandbox.requests("webhooks").await;
    calls.retain(|call| call["headers"]["user-agent"].is_string());
    assert!(!calls.is_empty());
    let writes: Vec<_> = calls
        .iter()
        .filter(|call| call["method"] != "GET")
        .collect();
    assert_eq!(writes, Vec::<&Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_events_are_added_to_the_subscription() {
    let app = TestApp::start().await;
    delete_subscriptions(&app).await;
    let url = format!("{}/webhooks/dojo/", app.service.url);
    let ours = subscribe(&app, &url, &[CREATED]).await;
    register(&app, &[]).await.success();
    let all = subscriptions(&app).await;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0]["id"], ours["id"]);
    assert_eq!(all[0]["secrets"], ours["secrets"]);
    assert_eq!(all[0]["events"], json!([CREATED, STATUS_UPDATED, RECEIPT]));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_events_that_the_account_offers_are_subscribed() {
    let app = TestApp::start().await;
    delete_subscriptions(&app).await;
    let offer = json!({"events": [CREATED, STATUS_UPDATED]});
    app.sandbox.control("offered-events", offer).await;
    let finished = register(&app, &[]).await.success();
    assert!(
        finished
            .stderr
            .contains(&format!("does not offer {RECEIPT}")),
        "{}",
        finished.stderr
    );
    let all = subscriptions(&app).await;
    assert_eq!(all[0]["events"], json!([CREATED, STATUS_UPDATED]));

    // No other event reports payments.
    app.sandbox
        .control("offered-events", json!({"events": [CREATED]}))
        .await;
    let finished = register(&app, &[]).await.failure();
    assert!(finished.contains(STATUS_UPDATED), "{finished}");
    assert_eq!(subscriptions(&app).await, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_sent_to_another_url_are_moved_only_with_replace() {
    let app = TestApp::start().await;
    delete_subscriptions(&app).await;
    let old = subscribe(&app, "http://127.0.0.1:9/old", &[CREATED, STATUS_UPDATED]).await;
    let finished = register(&app, &[]).await.failure();
    for words in [
        text(&old["id"]),
        "http://127.0.0.1:9/old",
        "--replace",
        "nothing was changed",
    ] {
        assert!(finished.contains(words), "{finished}");
    }
    assert_eq!(subscriptions(&app).await, std::slice::from_ref(&old));

    // The subscription is moved as a whole and keeps its secret, so that there is a receiver at any time.
    let finished = register(&app, &["--replace"]).await.success();
    let all = subscriptions(&app).await;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0]["id"], old["id"]);
    assert_eq!(all[0]["url"], format!("{}/webhooks/dojo", app.service.url));
    assert_eq!(finished.stdout.trim(), text(&old["secrets"][0]["value"]));
    register(&app, &[]).await.success();
    assert_eq!(subscriptions(&app).await, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_lost_response_the_next_run_continues() {
    let app = TestApp::start().await;
    let url = subscriptions(&app).await[0]["url"].clone();
    delete_subscriptions(&app).await;
    subscribe(&app, text(&url), &["payment_intent.created"]).await;
    subscribe(&app, "http://127.0.0.1:9/", &[RECEIPT]).await;
    for (failures, kind) in ["cutAfter", "cutBefore"].into_iter().cycle().enumerate() {
        assert!(failures < 30, "it never succeeds");
        app.sandbox
            .control(
                "faults",
                json!({"operation": "webhooks", "kind": kind, "share": 0.3}),
            )
            .await;
        let finished = register(&app, &["--replace"]).await;
        app.sandbox.clear("faults").await;
        if finished.succeeded {
            break;
        }
        assert!(finished.stderr.contains("Dojo"), "{}", finished.stderr);
    }
    register(&app, &[]).await.success();
    let all = subscriptions(&app).await;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0]["events"], json!([CREATED, STATUS_UPDATED, RECEIPT]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_shows_everything_except_the_secrets() {
    let app = TestApp::start().await;
    let id = subscriptions(&app).await[0]["id"].clone();
    let path = format!("/webhooks/{}/secrets", text(&id));
    let secrets = app.sandbox.api(Method::POST, &path, &Value::Null).await;
    let finished = operate(&app, &["webhooks", "list", "--json"], &[])
        .await
        .success();
    let listed: Value = serde_json::from_str(&finished.stdout).unwrap();
    let url = format!("{}/webhooks/dojo", app.service.url);
    assert_eq!(
        listed,
        json!([{
            "account": "default",
            "environment": "sandbox",
            "subscriptions": [{
                "id": id,
                "url": url,
                "events": [CREATED, STATUS_UPDATED, RECEIPT],
                "secrets": [
                    {"id": secrets["secrets"][0]["id"], "active": true, "inSettings": true},
                    {"id": secrets["secrets"][1]["id"], "active": false, "inSettings": false},
                ],
            }],
        }])
    );
    let finished = operate(&app, &["webhooks", "list"], &[]).await.success();
    for words in [
        "active, in the settings",
        "inactive, not in the settings",
        &url,
        RECEIPT,
    ] {
        assert!(finished.stdout.contains(words), "{}", finished.stdout);
    }
    for secret in secrets["secrets"].as_array().unwrap() {
        assert!(
            !finished.stdout.contains(text(&secret["value"])),
            "{}",
            finished.stdout
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_public_url_is_rejected() {
    let app = TestApp::start().await;
    for (url, words) in [
        ("", "is required"),
        (
            "pay.example.com",
            "PUBLIC_URL must be an http or https URL, not \"pay.example.com\"",
        ),
        (
            "https://pay.example.com/webhooks/dojo",
            "without /webhooks/dojo",
        ),
        ("https://pay.example.com/?a=b", "a query"),
        ("https://user:hush@pay.example.com", "a user name"),
    ] {
        let settings = [("PUBLIC_URL", url)];
        let finished = operate(&app, &["webhooks", "register"], &settings)
            .await
            .failure();
        assert!(
            finished.contains(words) && !finished.contains("hush"),
            "{finished}"
        );
    }
    let flag = register(&app, &["--url", "pay.example.com"]).await;
    let finished = flag.failure();
    assert!(
        finished.contains("--url or PUBLIC_URL must be an http"),
        "{finished}"
    );
    let unknown = register(&app, &["--account", "leeds"]).await.failure();
    assert!(
        unknown.contains("there is no account \"leeds\". The configured accounts are: default"),
        "{unknown}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_call_is_reported_once_with_the_account_and_how_to_fix_it() {
    let app = TestApp::start().await;
    let folder = Folder::new();
    let file = folder.write(
        "accounts.toml",
        &site("leeds", "sk_sandbox_revoked_hush", "whs_hush"),
    );
    let accounts = ("DOJO_ACCOUNTS_FILE", file.as_str());
    for (arguments, settings, words) in [
        (
            &["list"][..],
            &[accounts][..],
            &[
                "account leeds: ",
                "Dojo rejected this service's API key",
                "→ create a key",
                "set it as api_key of [accounts.leeds]",
            ][..],
        ),
        (
            &["rotate-secret"],
            &[("DOJO_API_URL", "http://127.0.0.1:9")],
            &[
                "account default: ",
                "Dojo is unreachable",
                "→ check the connection from this machine to Dojo",
                "DOJO_API_URL",
            ],
        ),
    ] {
        let finished = operate(&app, &[&["webhooks"], arguments].concat(), settings).await;
        let finished = finished.failure();
        for words in words {
            assert_eq!(
                finished.matches(words).count(),
                1,
                "{words:?} in {finished}"
            );
        }
        assert!(!finished.contains("hush"), "{finished}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_account_is_registered_at_its_own_url() {
    let app = TestApp::start().await;
    let folder = Folder::new();
    let of_leeds = async || {
        let response = app
            .sandbox
            .api_as(LEEDS_KEY, Method::GET, "/webhooks", &Value::Null)
            .await;
        response.json().as_array().unwrap().clone()
    };
    let configure =
        |secrets: &str| folder.write("accounts.toml", &site("leeds", LEEDS_KEY, secrets));
    let file = configure("whs_none_yet");
    let settings = [("DOJO_ACCOUNTS_FILE", file.as_str())];
    let run = async |arguments: &[&str]| {
        operate(&app, &[&["webhooks"], arguments].concat(), &settings).await
    };

    let finished = run(&["register"]).await.failure();
    assert!(
        finished.contains("choose an account with --account: default, leeds"),
        "{finished}"
    );
    let others = subscriptions(&app).await;
    let finished = run(&["register", "--account", "leeds"]).await.success();
    let all = of_leeds().await;
    let secret = text(&all[0]["secrets"][0]["value"]).to_owned();
    assert_eq!(finished.stdout.trim(), secret);
    assert!(
        finished
            .stderr
            .contains("webhook_secrets of [accounts.leeds]"),
        "{}",
        finished.stderr
    );
    assert_eq!(
        all[0]["url"],
        format!("{}/webhooks/dojo/leeds", app.service.url)
    );
    assert_eq!(subscriptions(&app).await, others);

    // Only this account's secret is rotated.
    configure(&secret);
    let finished = run(&["rotate-secret", "--account", "leeds"])
        .await
        .success();
    let configured = finished.stdout.trim().replace(',', "\", \"");
    configure(&configured);
    let new = of_leeds().await[0]["secrets"][1]["id"].clone();
    let end = [
        "rotate-secret",
        "--account",
        "leeds",
        "--every-replica-knows",
        text(&new),
    ];
    run(&end).await.success();
    let left = of_leeds().await[0]["secrets"].clone();
    assert_eq!(left.as_array().unwrap().len(), 1);
    assert_eq!((&left[0]["id"], &left[0]["isActive"]), (&new, &json!(true)));
    assert_eq!(subscriptions(&app).await, others);

    let finished = run(&["list"]).await.success();
    for words in [
        "default (sandbox)",
        "leeds (sandbox)",
        "/webhooks/dojo/leeds",
    ] {
        assert!(finished.stdout.contains(words), "{}", finished.stdout);
    }
    let finished = run(&["list", "--account", "leeds"]).await.success();
    assert!(
        !finished.stdout.contains("default (sandbox)"),
        "{}",
        finished.stdout
    );
}
