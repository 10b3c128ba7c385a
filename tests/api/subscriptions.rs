//! `webhooks list` and `webhooks register`: what Dojo sends here, shown and brought in line.

use std::process::Output;

use reqwest::Method;
use serde_json::{Value, json};

use crate::accounts::{Folder, site};
use crate::support::{DOJO_KEY, LEEDS_KEY, Service, TestApp, WEBHOOK_SECRET, program, text};

const CREATED: &str = "payment_intent.created";
const STATUS_UPDATED: &str = "payment_intent.status_updated";
const RECEIPT: &str = "payment_intent.send-receipt";

/// What a command answered.
pub struct Told {
    pub succeeded: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Told {
    fn of(output: Output) -> Self {
        Self {
            succeeded: output.status.success(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Once the command succeeded.
    #[track_caller]
    pub fn done(self) -> Self {
        assert!(self.succeeded, "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// What it said against it, once the command failed, without a secret.
    #[track_caller]
    pub fn refused(self) -> String {
        assert!(!self.succeeded, "{}\n{}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "");
        self.stderr
    }
}

/// Runs a command of the operator's, with the settings of the app's service and these on top.
pub async fn operate(app: &TestApp, arguments: &[&str], settings: &[(&str, &str)]) -> Told {
    let mut command = program();
    command
        .args(arguments)
        .env("DATABASE_URL", &app.database_url)
        .env("DOJO_API_URL", &app.sandbox.url)
        .env("DOJO_API_KEY", DOJO_KEY)
        .env("DOJO_WEBHOOK_SECRETS", WEBHOOK_SECRET)
        .env("PUBLIC_URL", &app.service.url)
        .envs(settings.iter().copied());
    let output = tokio::process::Command::from(command).output().await;
    Told::of(output.unwrap())
}

/// All subscriptions, as Dojo has them.
pub async fn subscriptions(app: &TestApp) -> Vec<Value> {
    let all = app
        .sandbox
        .api(Method::GET, "/webhooks", &Value::Null)
        .await;
    all.as_array().unwrap().clone()
}

/// Takes away the subscription that every test begins with.
async fn without_any(app: &TestApp) {
    for subscription in subscriptions(app).await {
        let path = format!("/webhooks/{}", text(&subscription["id"]));
        app.sandbox.api(Method::DELETE, &path, &Value::Null).await;
    }
}

async fn subscribe(app: &TestApp, url: &str, events: &[&str]) -> Value {
    let body = json!({"url": url, "events": events});
    app.sandbox.api(Method::POST, "/webhooks", &body).await
}

async fn register(app: &TestApp, more: &[&str]) -> Told {
    operate(app, &[&["webhooks", "register"], more].concat(), &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_registration_shows_its_secret_and_webhooks_come() {
    let app = TestApp::start().await;
    without_any(&app).await;
    let told = register(&app, &[]).await.done();
    let all = subscriptions(&app).await;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0]["url"], format!("{}/webhooks/dojo", app.service.url));
    assert_eq!(all[0]["events"], json!([CREATED, STATUS_UPDATED, RECEIPT]));
    let secret = text(&all[0]["secrets"][0]["value"]);
    assert_eq!(told.stdout, format!("{secret}\n"));
    assert!(!told.stderr.contains(secret), "{}", told.stderr);
    assert!(
        told.stderr.contains("DOJO_WEBHOOK_SECRETS"),
        "{}",
        told.stderr
    );

    // The operator configures it, and it is not shown again.
    let settings = [("DOJO_WEBHOOK_SECRETS", secret)];
    let again = operate(&app, &["webhooks", "register"], &settings)
        .await
        .done();
    assert_eq!(again.stdout, "");
    assert!(
        again.stderr.contains("nothing to change"),
        "{}",
        again.stderr
    );
    assert_eq!(subscriptions(&app).await, all);

    let replica = Service::start(&app.database_url, &app.sandbox.url, &settings).await;
    let moved = [settings[0], ("PUBLIC_URL", &replica.url)];
    let told = operate(&app, &["webhooks", "register", "--replace"], &moved)
        .await
        .done();
    assert_eq!(told.stdout, "", "the secret has moved along");
    let link = app.created().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.link_with_status(&link["id"], "Captured").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registering_again_changes_nothing_at_dojo() {
    let app = TestApp::start().await;
    let before = subscriptions(&app).await;
    for _ in 0..2 {
        let told = register(&app, &[]).await.done();
        assert_eq!(told.stdout, "", "the settings hold the secret");
        assert_eq!(subscriptions(&app).await, before);
    }
    // The test's own calls, which point the sandbox to the service, name no program.
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
async fn a_subscription_with_other_events_is_brought_in_line() {
    let app = TestApp::start().await;
    without_any(&app).await;
    let url = format!("{}/webhooks/dojo/", app.service.url);
    let ours = subscribe(&app, &url, &[CREATED]).await;
    register(&app, &[]).await.done();
    let all = subscriptions(&app).await;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0]["id"], ours["id"]);
    assert_eq!(all[0]["secrets"], ours["secrets"]);
    assert_eq!(all[0]["events"], json!([CREATED, STATUS_UPDATED, RECEIPT]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_offers_less_is_subscribed_to_what_it_offers() {
    let app = TestApp::start().await;
    without_any(&app).await;
    let offer = json!({"events": [CREATED, STATUS_UPDATED]});
    app.sandbox.control("offered-events", offer).await;
    let told = register(&app, &[]).await.done();
    assert!(
        told.stderr.contains(&format!("does not offer {RECEIPT}")),
        "{}",
        told.stderr
    );
    let all = subscriptions(&app).await;
    assert_eq!(all[0]["events"], json!([CREATED, STATUS_UPDATED]));

    // Nothing else tells of payments.
    app.sandbox
        .control("offered-events", json!({"events": [CREATED]}))
        .await;
    let told = register(&app, &[]).await.refused();
    assert!(told.contains(STATUS_UPDATED), "{told}");
    assert_eq!(subscriptions(&app).await, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_elsewhere_is_reported_and_moved_only_when_told() {
    let app = TestApp::start().await;
    without_any(&app).await;
    let old = subscribe(&app, "http://127.0.0.1:9/old", &[CREATED, STATUS_UPDATED]).await;
    let told = register(&app, &[]).await.refused();
    for words in [
        text(&old["id"]),
        "http://127.0.0.1:9/old",
        "--replace",
        "nothing was changed",
    ] {
        assert!(told.contains(words), "{told}");
    }
    assert_eq!(subscriptions(&app).await, std::slice::from_ref(&old));

    // Moved whole, with its secret, so that no event is without a receiver.
    let told = register(&app, &["--replace"]).await.done();
    let all = subscriptions(&app).await;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0]["id"], old["id"]);
    assert_eq!(all[0]["url"], format!("{}/webhooks/dojo", app.service.url));
    assert_eq!(told.stdout.trim(), text(&old["secrets"][0]["value"]));
    register(&app, &[]).await.done();
    assert_eq!(subscriptions(&app).await, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_told_and_the_next_run_finds_what_was_done() {
    let app = TestApp::start().await;
    let url = subscriptions(&app).await[0]["url"].clone();
    without_any(&app).await;
    subscribe(&app, text(&url), &["payment_intent.created"]).await;
    subscribe(&app, "http://127.0.0.1:9/", &[RECEIPT]).await;
    for (failures, kind) in ["cutAfter", "cutBefore"].into_iter().cycle().enumerate() {
        assert!(failures < 30, "it never ends");
        app.sandbox
            .control(
                "faults",
                json!({"operation": "webhooks", "kind": kind, "share": 0.3}),
            )
            .await;
        let told = register(&app, &["--replace"]).await;
        app.sandbox.clear("faults").await;
        if told.succeeded {
            break;
        }
        assert!(told.stderr.contains("Dojo"), "{}", told.stderr);
    }
    register(&app, &[]).await.done();
    let all = subscriptions(&app).await;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0]["events"], json!([CREATED, STATUS_UPDATED, RECEIPT]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_shows_everything_but_a_secrets_text() {
    let app = TestApp::start().await;
    let id = subscriptions(&app).await[0]["id"].clone();
    let path = format!("/webhooks/{}/secrets", text(&id));
    let secrets = app.sandbox.api(Method::POST, &path, &Value::Null).await;
    let told = operate(&app, &["webhooks", "list", "--json"], &[])
        .await
        .done();
    let listed: Value = serde_json::from_str(&told.stdout).unwrap();
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
    let told = operate(&app, &["webhooks", "list"], &[]).await.done();
    for words in [
        "active, in the settings",
        "inactive, not in the settings",
        &url,
        RECEIPT,
    ] {
        assert!(told.stdout.contains(words), "{}", told.stdout);
    }
    for secret in secrets["secrets"].as_array().unwrap() {
        assert!(
            !told.stdout.contains(text(&secret["value"])),
            "{}",
            told.stdout
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_url_that_cannot_be_is_refused() {
    let app = TestApp::start().await;
    for (url, words) in [
        ("", "is required"),
        ("pay.example.com", "PUBLIC_URL is no web address"),
        (
            "https://pay.example.com/webhooks/dojo",
            "leave out /webhooks/dojo",
        ),
        ("https://pay.example.com/?a=b", "a query"),
        ("https://user:hush@pay.example.com", "a user's name"),
    ] {
        let settings = [("PUBLIC_URL", url)];
        let told = operate(&app, &["webhooks", "register"], &settings)
            .await
            .refused();
        assert!(told.contains(words) && !told.contains("hush"), "{told}");
    }
    let flag = register(&app, &["--url", "pay.example.com"]).await;
    let told = flag.refused();
    assert!(told.contains("--url or PUBLIC_URL is no web"), "{told}");
    let unknown = register(&app, &["--account", "leeds"]).await.refused();
    assert!(
        unknown.contains("no account \"leeds\"; there is default"),
        "{unknown}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dojo_says_against_it_is_told_once_with_the_account_and_the_mend() {
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
                "Dojo refused this service's API key",
                "→ make a key",
                "set it as api_key of [accounts.leeds]",
            ][..],
        ),
        (
            &["rotate-secret"],
            &[("DOJO_API_URL", "http://127.0.0.1:9")],
            &[
                "account default: ",
                "Dojo was not reached",
                "→ see that Dojo",
                "DOJO_API_URL",
            ],
        ),
    ] {
        let told = operate(&app, &[&["webhooks"], arguments].concat(), settings).await;
        let told = told.refused();
        for words in words {
            assert_eq!(told.matches(words).count(), 1, "{words:?} in {told}");
        }
        assert!(!told.contains("hush"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_account_is_registered_at_its_own_door() {
    let app = TestApp::start().await;
    let folder = Folder::new();
    let of_leeds = async || {
        let answer = app
            .sandbox
            .api_as(LEEDS_KEY, Method::GET, "/webhooks", &Value::Null)
            .await;
        answer.json().as_array().unwrap().clone()
    };
    let configure =
        |secrets: &str| folder.write("accounts.toml", &site("leeds", LEEDS_KEY, secrets));
    let file = configure("whs_none_yet");
    let settings = [("DOJO_ACCOUNTS_FILE", file.as_str())];
    let run = async |arguments: &[&str]| {
        operate(&app, &[&["webhooks"], arguments].concat(), &settings).await
    };

    let told = run(&["register"]).await.refused();
    assert!(
        told.contains("name one with --account: default, leeds"),
        "{told}"
    );
    let others = subscriptions(&app).await;
    let told = run(&["register", "--account", "leeds"]).await.done();
    let all = of_leeds().await;
    let secret = text(&all[0]["secrets"][0]["value"]).to_owned();
    assert_eq!(told.stdout.trim(), secret);
    assert!(
        told.stderr.contains("webhook_secrets of [accounts.leeds]"),
        "{}",
        told.stderr
    );
    assert_eq!(
        all[0]["url"],
        format!("{}/webhooks/dojo/leeds", app.service.url)
    );
    assert_eq!(subscriptions(&app).await, others);

    // Its secret changes alone.
    configure(&secret);
    let told = run(&["rotate-secret", "--account", "leeds"]).await.done();
    let configured = told.stdout.trim().replace(',', "\", \"");
    configure(&configured);
    let new = of_leeds().await[0]["secrets"][1]["id"].clone();
    let end = [
        "rotate-secret",
        "--account",
        "leeds",
        "--every-replica-knows",
        text(&new),
    ];
    run(&end).await.done();
    let left = of_leeds().await[0]["secrets"].clone();
    assert_eq!(left.as_array().unwrap().len(), 1);
    assert_eq!((&left[0]["id"], &left[0]["isActive"]), (&new, &json!(true)));
    assert_eq!(subscriptions(&app).await, others);

    let told = run(&["list"]).await.done();
    for words in [
        "default (sandbox)",
        "leeds (sandbox)",
        "/webhooks/dojo/leeds",
    ] {
        assert!(told.stdout.contains(words), "{}", told.stdout);
    }
    let told = run(&["list", "--account", "leeds"]).await.done();
    assert!(
        !told.stdout.contains("default (sandbox)"),
        "{}",
        told.stdout
    );
}
