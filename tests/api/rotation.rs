//! `webhooks rotate-secret`: the secret is rotated while webhooks arrive, and no genuine webhook is rejected.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    accounts::{Folder, site},
    replicas::balancer,
    subscriptions::{Finished, operate, subscriptions},
    support::{
        LEEDS_KEY, Service, TestApp, WEBHOOK_SECRET, eventually_within, stable_address, ten_pounds,
        text,
    },
};

async fn rotate(app: &TestApp, more: &[&str], secrets: &str) -> Finished {
    let arguments = [&["webhooks", "rotate-secret"], more].concat();
    operate(app, &arguments, &[("DOJO_WEBHOOK_SECRETS", secrets)]).await
}

/// The secrets of the only subscription, as Dojo lists them.
async fn secrets(app: &TestApp) -> Vec<Value> {
    let subscription = &subscriptions(app).await[0];
    subscription["secrets"].as_array().unwrap().clone()
}

/// The command for the second step that the first step printed, without the program's name.
#[track_caller]
fn next_command(finished: &Finished) -> Vec<String> {
    let line = finished.stderr.lines().last().unwrap().trim();
    let arguments = line.strip_prefix("dojo-payment-links ");
    let arguments =
        arguments.unwrap_or_else(|| panic!("no command was printed: {}", finished.stderr));
    arguments.split(' ').map(str::to_owned).collect()
}

async fn run(app: &TestApp, arguments: &[String], secrets: &str) -> Finished {
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    operate(app, &arguments, &[("DOJO_WEBHOOK_SECRETS", secrets)]).await
}

/// Creates and pays intents, which cause two webhooks each, until `enough` is set.
async fn traffic(app: &TestApp, enough: &AtomicBool) {
    while !enough.load(Ordering::Relaxed) {
        let intent = app
            .sandbox
            .api(Method::POST, "/payment-intents", &ten_pounds("Order 1"))
            .await;
        app.sandbox.pay(&intent["id"]).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn deliveries(app: &TestApp) -> Vec<Value> {
    let deliveries = app.sandbox.look("deliveries").await;
    deliveries.as_array().unwrap().clone()
}

/// Waits until this many more webhooks have been sent and delivered.
async fn more_arrive(app: &TestApp, more: usize) {
    let before = deliveries(app).await.len();
    eventually_within(
        Duration::from_mins(1),
        "webhooks are delivered",
        async || {
            let now = deliveries(app).await;
            let arrived = now.iter().skip(before);
            (arrived.filter(|it| it["state"] == "delivered").count() >= more).then_some(())
        },
    )
    .await;
}

/// The webhooks that got a response with this status at least once.
async fn with_response(app: &TestApp, status: u16) -> Vec<Value> {
    let mut all = deliveries(app).await;
    all.retain(|it| {
        let mut attempts = it["attempts"].as_array().unwrap().iter();
        attempts.any(|attempt| attempt["status"] == status)
    });
    all
}

async fn replica(app: &TestApp, address: &str, secrets: &str) -> Service {
    let settings = [("LISTEN_ADDR", address), ("DOJO_WEBHOOK_SECRETS", secrets)];
    Service::start(&app.database_url, &app.sandbox.url, &settings).await
}

/// Restarts the replicas one by one with these secrets, as an operator does.
async fn roll(app: &TestApp, replicas: &mut [Service], addresses: &[String], secrets: &str) {
    for (running, address) in replicas.iter_mut().zip(addresses) {
        running.terminate();
        assert!(running.ended().await.success());
        *running = replica(app, address, secrets).await;
        more_arrive(app, 5).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_under_traffic_rejects_no_genuine_webhook() {
    let app = TestApp::start().await;
    let addresses = [stable_address(), stable_address()];
    let mut replicas = Vec::new();
    for address in &addresses {
        replicas.push(replica(&app, address, WEBHOOK_SECRET).await);
    }
    let public = balancer(&addresses).await;
    app.sandbox.send_webhooks_to(&public).await;

    let enough = AtomicBool::new(false);
    let rotation = async {
        more_arrive(&app, 10).await;
        let first = rotate(&app, &[], WEBHOOK_SECRET).await.success();
        let configured = first.stdout.trim();
        let new = configured
            .strip_prefix(&format!("{WEBHOOK_SECRET},"))
            .unwrap();
        assert!(!first.stderr.contains(new) && !first.stderr.contains(WEBHOOK_SECRET));
        more_arrive(&app, 10).await;

        // After an interruption, the first step continues.
        let again = rotate(&app, &[], WEBHOOK_SECRET).await.success();
        assert_eq!(again.stdout, first.stdout);
        assert_eq!(secrets(&app).await.len(), 2);

        // The second step fails if it is run too early.
        let command = next_command(&first);
        let finished = run(&app, &command, WEBHOOK_SECRET).await.failure();
        assert!(
            finished.contains("is not in the settings of this command, so webhooks signed with it would be rejected"),
            "{finished}"
        );
        assert_eq!(secrets(&app).await[0]["isActive"], true);

        roll(&app, &mut replicas, &addresses, configured).await;
        let finished = run(&app, &command, configured).await.success();
        assert_eq!(finished.stdout, "");
        assert!(!finished.stderr.contains(new), "{}", finished.stderr);
        let left = secrets(&app).await;
        assert_eq!(left.len(), 1);
        assert_eq!(
            (text(&left[0]["value"]), &left[0]["isActive"]),
            (new, &json!(true))
        );
        more_arrive(&app, 10).await;

        // Later, once webhooks that were signed with the old secret have been delivered or given up.
        roll(&app, &mut replicas, &addresses, new).await;
        more_arrive(&app, 10).await;
        enough.store(true, Ordering::Relaxed);
        new.to_owned()
    };
    let (new, ()) = tokio::join!(rotation, traffic(&app, &enough));

    eventually_within(
        Duration::from_mins(1),
        "all webhooks are delivered",
        async || {
            let all = deliveries(&app).await;
            all.iter()
                .all(|it| it["state"] == "delivered")
                .then_some(())
        },
    )
    .await;
    assert!(deliveries(&app).await.len() > 60);
    assert_eq!(with_response(&app, 401).await, Vec::<Value>::new());

    // Cross-check: a secret that no replica has leads to rejections.
    let id = subscriptions(&app).await[0]["id"].clone();
    let path = format!("/webhooks/{}/secrets", text(&id));
    let made = app.sandbox.api(Method::POST, &path, &Value::Null).await;
    let unknown = &made["secrets"][1];
    assert_ne!(text(&unknown["value"]), new);
    let path = format!("{path}/{}/activate", text(&unknown["id"]));
    app.sandbox.api(Method::PUT, &path, &Value::Null).await;
    app.sandbox
        .api(Method::POST, "/payment-intents", &ten_pounds("Order 2"))
        .await;
    eventually_within(
        Duration::from_mins(1),
        "the webhook is rejected",
        async || (with_response(&app, 401).await.len() == 1).then_some(()),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_continues_after_an_interruption_at_any_step() {
    let app = TestApp::start().await;
    let subscription = subscriptions(&app).await[0]["id"].clone();
    let path = format!("/webhooks/{}/secrets", text(&subscription));

    // Interrupted after the secret was created, when the response is lost.
    let made = app.sandbox.api(Method::POST, &path, &Value::Null).await;
    let (old, new) = (&made["secrets"][0], &made["secrets"][1]);
    let finished = rotate(&app, &[], WEBHOOK_SECRET).await.success();
    let configured = format!("{WEBHOOK_SECRET},{}", text(&new["value"]));
    assert_eq!(finished.stdout.trim(), configured);
    assert_eq!(secrets(&app).await.len(), 2);
    let command = next_command(&finished);

    // Interrupted after the new secret was activated, before the old one was deleted.
    let activate = format!("{path}/{}/activate", text(&new["id"]));
    app.sandbox.api(Method::PUT, &activate, &Value::Null).await;
    let finished = rotate(&app, &[], &configured).await.failure();
    for words in [
        "an earlier rotation is not finished",
        text(&old["id"]),
        &command.join(" "),
    ] {
        assert!(finished.contains(words), "{finished}");
    }
    assert_eq!(secrets(&app).await.len(), 2, "no third secret is created");
    run(&app, &command, &configured).await.success();
    let left = secrets(&app).await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["id"], new["id"]);

    // Nothing is left to do.
    let finished = run(&app, &command, &configured).await.success();
    assert!(
        finished.stderr.contains("is already active"),
        "{}",
        finished.stderr
    );
    assert_eq!(secrets(&app).await, left);

    // A new rotation can begin. The second step fails for an unknown secret.
    let finished = rotate(&app, &[], &configured).await.success();
    assert!(
        finished.stdout.starts_with(&format!("{configured},")),
        "the configured secrets are printed too"
    );
    let wrong = ["--every-replica-knows", "sc_nowhere"];
    let finished = rotate(&app, &wrong, &configured).await.failure();
    assert!(finished.contains("no secret sc_nowhere"), "{finished}");
    assert_eq!(secrets(&app).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_responses_harm_no_step() {
    let app = TestApp::start().await;
    let first = rotate(&app, &[], WEBHOOK_SECRET).await.success();
    let (configured, command) = (first.stdout.trim(), next_command(&first));
    // Calls of the second step fail, some before and some after Dojo did the work. A run then ends with an error, and the
    // next one gets further.
    let mut runs = 0;
    for kind in ["cutAfter", "cutBefore"].into_iter().cycle() {
        runs += 1;
        assert!(runs < 200, "it never succeeds");
        app.sandbox
            .control(
                "faults",
                json!({"operation": "webhooks", "kind": kind, "share": 0.3}),
            )
            .await;
        let finished = run(&app, &command, configured).await;
        app.sandbox.clear("faults").await;
        let now = secrets(&app).await;
        assert!(now.iter().any(|it| it["isActive"] == true), "{now:?}");
        if finished.succeeded {
            break;
        }
    }
    let left = secrets(&app).await;
    assert_eq!(left.len(), 1);
    assert_eq!(
        configured,
        format!("{WEBHOOK_SECRET},{}", text(&left[0]["value"]))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_active_secret_that_is_not_in_the_settings_is_printed_too() {
    let app = TestApp::start().await;
    let finished = rotate(&app, &[], "whs_stale").await.success();
    assert!(
        finished
            .stdout
            .starts_with(&format!("whs_stale,{WEBHOOK_SECRET},"))
    );
    assert!(finished.stderr.contains("Warning"), "{}", finished.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn if_dojo_activates_a_new_secret_at_once_the_old_one_is_activated_again() {
    let app = TestApp::start().await;
    app.sandbox
        .control("new-secrets", json!({"sign": true}))
        .await;
    let finished = rotate(&app, &[], WEBHOOK_SECRET).await.success();
    assert!(
        finished
            .stderr
            .contains("the old secret was activated again"),
        "{}",
        finished.stderr
    );
    let now = secrets(&app).await;
    assert_eq!([&now[0]["isActive"], &now[1]["isActive"]], [true, false]);

    // From here on it is a normal rotation.
    let again = rotate(&app, &[], WEBHOOK_SECRET).await.success();
    assert_eq!(again.stdout, finished.stdout);
    run(&app, &next_command(&finished), finished.stdout.trim())
        .await
        .success();
    let left = secrets(&app).await;
    assert_eq!(left.len(), 1);
    assert_eq!(
        (&left[0]["id"], &left[0]["isActive"]),
        (&now[1]["id"], &json!(true))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_subscriptions_one_must_be_chosen() {
    let app = TestApp::start().await;
    let first = subscriptions(&app).await[0]["id"].clone();
    let path = format!("/webhooks/{}", text(&first));
    let fewer = json!({"events": ["payment_intent.status_updated"]});
    app.sandbox.api(Method::PATCH, &path, &fewer).await;
    let rest = json!({"events": ["payment_intent.created"], "url": "http://127.0.0.1:9/"});
    let second = app.sandbox.api(Method::POST, "/webhooks", &rest).await;

    let finished = rotate(&app, &[], WEBHOOK_SECRET).await.failure();
    for id in [&first, &second["id"]] {
        assert!(finished.contains(text(id)), "{finished}");
    }
    let named = ["--subscription", text(&first)];
    let finished = rotate(&app, &named, WEBHOOK_SECRET).await.success();
    let configured = finished.stdout.trim();
    run(&app, &next_command(&finished), configured)
        .await
        .success();
    let after = subscriptions(&app).await;
    assert_eq!(after[0]["secrets"].as_array().unwrap().len(), 1);
    assert!(configured.ends_with(text(&after[0]["secrets"][0]["value"])));
    assert_eq!(after[1], second);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_of_an_account_in_the_file_are_requested_in_the_files_format() {
    let app = TestApp::start().await;
    let folder = Folder::new();
    let entry = |secret: &str| folder.write("accounts.toml", &site("leeds", LEEDS_KEY, secret));
    let run = async |command: &str, file: &str| {
        let arguments = ["webhooks", command, "--account", "leeds"];
        operate(&app, &arguments, &[("DOJO_ACCOUNTS_FILE", file)])
            .await
            .success()
    };
    let registered = run("register", &entry("whs_none_yet")).await;
    let finished = run("rotate-secret", &entry(registered.stdout.trim())).await;
    for words in [
        "under [accounts.leeds] as webhook_secrets = [\"…\", \"…\"]",
        "webhook_secrets_file",
    ] {
        assert!(
            finished.stderr.contains(words),
            "{words}: {}",
            finished.stderr
        );
    }
    assert!(
        !finished.stderr.contains("DOJO_WEBHOOK_SECRETS"),
        "{}",
        finished.stderr
    );

    // The second step accepts secrets in that format.
    let list = finished.stdout.trim().replace(',', "\", \"");
    let command = next_command(&finished);
    let arguments: Vec<_> = command.iter().map(String::as_str).collect();
    operate(&app, &arguments, &[("DOJO_ACCOUNTS_FILE", &entry(&list))])
        .await
        .success();
}
