//! `webhooks rotate-secret`: the secret changes while webhooks come, and none that is genuine is refused.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    accounts::{Folder, site},
    replicas::balancer,
    subscriptions::{Told, operate, subscriptions},
    support::{
        LEEDS_KEY, Service, TestApp, WEBHOOK_SECRET, eventually_within, stable_address, ten_pounds,
        text,
    },
};

async fn rotate(app: &TestApp, more: &[&str], secrets: &str) -> Told {
    let arguments = [&["webhooks", "rotate-secret"], more].concat();
    operate(app, &arguments, &[("DOJO_WEBHOOK_SECRETS", secrets)]).await
}

/// The secrets of the one subscription, as Dojo has them.
async fn secrets(app: &TestApp) -> Vec<Value> {
    let subscription = &subscriptions(app).await[0];
    subscription["secrets"].as_array().unwrap().clone()
}

/// The second step's command, as the first step tells it, without the program's name.
#[track_caller]
fn next_command(told: &Told) -> Vec<String> {
    let line = told.stderr.lines().last().unwrap().trim();
    let arguments = line.strip_prefix("dojo-payment-links ");
    let arguments = arguments.unwrap_or_else(|| panic!("no command: {}", told.stderr));
    arguments.split(' ').map(str::to_owned).collect()
}

async fn run(app: &TestApp, arguments: &[String], secrets: &str) -> Told {
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    operate(app, &arguments, &[("DOJO_WEBHOOK_SECRETS", secrets)]).await
}

/// Has customers make and pay intents, two webhooks each, until it is enough.
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

/// Waits until this many more webhooks were sent and have arrived.
async fn more_arrive(app: &TestApp, more: usize) {
    let before = deliveries(app).await.len();
    eventually_within(Duration::from_mins(1), "webhooks arrive", async || {
        let now = deliveries(app).await;
        let arrived = now.iter().skip(before);
        (arrived.filter(|it| it["state"] == "delivered").count() >= more).then_some(())
    })
    .await;
}

/// The webhooks that were answered with this status, at least once.
async fn answered(app: &TestApp, status: u16) -> Vec<Value> {
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

/// Restarts the replicas one by one with these secrets, as an operator does: told to stop, and waited for.
async fn roll(app: &TestApp, replicas: &mut [Service], addresses: &[String], secrets: &str) {
    for (running, address) in replicas.iter_mut().zip(addresses) {
        running.terminate();
        assert!(running.ended().await.success());
        *running = replica(app, address, secrets).await;
        more_arrive(app, 5).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_changes_under_traffic_and_no_genuine_webhook_is_refused() {
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
        let first = rotate(&app, &[], WEBHOOK_SECRET).await.done();
        let configured = first.stdout.trim();
        let new = configured
            .strip_prefix(&format!("{WEBHOOK_SECRET},"))
            .unwrap();
        assert!(!first.stderr.contains(new) && !first.stderr.contains(WEBHOOK_SECRET));
        more_arrive(&app, 10).await;

        // Cut short here, it goes on where it was.
        let again = rotate(&app, &[], WEBHOOK_SECRET).await.done();
        assert_eq!(again.stdout, first.stdout);
        assert_eq!(secrets(&app).await.len(), 2);

        // Whoever is too quick is stopped.
        let command = next_command(&first);
        let told = run(&app, &command, WEBHOOK_SECRET).await.refused();
        assert!(told.contains("not even the settings here hold"), "{told}");
        assert_eq!(secrets(&app).await[0]["isActive"], true);

        roll(&app, &mut replicas, &addresses, configured).await;
        let told = run(&app, &command, configured).await.done();
        assert_eq!(told.stdout, "");
        assert!(!told.stderr.contains(new), "{}", told.stderr);
        let left = secrets(&app).await;
        assert_eq!(left.len(), 1);
        assert_eq!(
            (text(&left[0]["value"]), &left[0]["isActive"]),
            (new, &json!(true))
        );
        more_arrive(&app, 10).await;

        // Later, when what was signed before has arrived or is given up.
        roll(&app, &mut replicas, &addresses, new).await;
        more_arrive(&app, 10).await;
        enough.store(true, Ordering::Relaxed);
        new.to_owned()
    };
    let (new, ()) = tokio::join!(rotation, traffic(&app, &enough));

    eventually_within(Duration::from_mins(1), "all have arrived", async || {
        let all = deliveries(&app).await;
        all.iter()
            .all(|it| it["state"] == "delivered")
            .then_some(())
    })
    .await;
    assert!(deliveries(&app).await.len() > 60);
    assert_eq!(answered(&app, 401).await, Vec::<Value>::new());

    // Without the steps, it would have been seen: a secret that nobody knows is refused.
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
    eventually_within(Duration::from_mins(1), "it is refused", async || {
        (answered(&app, 401).await.len() == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_is_taken_up_wherever_it_was_cut_short() {
    let app = TestApp::start().await;
    let subscription = subscriptions(&app).await[0]["id"].clone();
    let path = format!("/webhooks/{}/secrets", text(&subscription));

    // After the secret was made, before anybody saw it: its answer is lost.
    let made = app.sandbox.api(Method::POST, &path, &Value::Null).await;
    let (old, new) = (&made["secrets"][0], &made["secrets"][1]);
    let told = rotate(&app, &[], WEBHOOK_SECRET).await.done();
    let configured = format!("{WEBHOOK_SECRET},{}", text(&new["value"]));
    assert_eq!(told.stdout.trim(), configured);
    assert_eq!(secrets(&app).await.len(), 2);
    let command = next_command(&told);

    // After it was activated, before the old one was deleted.
    let activate = format!("{path}/{}/activate", text(&new["id"]));
    app.sandbox.api(Method::PUT, &activate, &Value::Null).await;
    let told = rotate(&app, &[], &configured).await.refused();
    for words in ["was not ended", text(&old["id"]), &command.join(" ")] {
        assert!(told.contains(words), "{told}");
    }
    assert_eq!(secrets(&app).await.len(), 2, "no third one is made");
    run(&app, &command, &configured).await.done();
    let left = secrets(&app).await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["id"], new["id"]);

    // After everything: nothing is left to do.
    let told = run(&app, &command, &configured).await.done();
    assert!(told.stderr.contains("signs already"), "{}", told.stderr);
    assert_eq!(secrets(&app).await, left);

    // A new rotation begins, and a secret that is not there ends none.
    let told = rotate(&app, &[], &configured).await.done();
    assert!(
        told.stdout.starts_with(&format!("{configured},")),
        "the settings lose nothing"
    );
    let wrong = ["--every-replica-knows", "sc_nowhere"];
    let told = rotate(&app, &wrong, &configured).await.refused();
    assert!(told.contains("no secret sc_nowhere"), "{told}");
    assert_eq!(secrets(&app).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_dojos_that_is_lost_on_the_way_harms_no_step() {
    let app = TestApp::start().await;
    let first = rotate(&app, &[], WEBHOOK_SECRET).await.done();
    let (configured, command) = (first.stdout.trim(), next_command(&first));
    // Each call of the second step goes wrong once, with the work done and not done: the run ends with an error, and
    // the next one gets further.
    let mut runs = 0;
    for kind in ["cutAfter", "cutBefore"].into_iter().cycle() {
        runs += 1;
        assert!(runs < 20, "it never ends");
        app.sandbox
            .control(
                "faults",
                json!({"operation": "webhooks", "kind": kind, "share": 0.3}),
            )
            .await;
        let told = run(&app, &command, configured).await;
        app.sandbox.clear("faults").await;
        let now = secrets(&app).await;
        assert!(now.iter().any(|it| it["isActive"] == true), "{now:?}");
        if told.succeeded {
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
async fn a_secret_that_signs_and_is_not_configured_is_shown_as_well() {
    let app = TestApp::start().await;
    let told = rotate(&app, &[], "whs_stale").await.done();
    assert!(
        told.stdout
            .starts_with(&format!("whs_stale,{WEBHOOK_SECRET},"))
    );
    assert!(told.stderr.contains("Take care"), "{}", told.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn should_dojo_let_a_new_secret_sign_at_once_the_old_one_is_put_back() {
    let app = TestApp::start().await;
    app.sandbox
        .control("new-secrets", json!({"sign": true}))
        .await;
    let told = rotate(&app, &[], WEBHOOK_SECRET).await.done();
    assert!(told.stderr.contains("was put back"), "{}", told.stderr);
    let now = secrets(&app).await;
    assert_eq!([&now[0]["isActive"], &now[1]["isActive"]], [true, false]);

    // From here on it is like any other.
    let again = rotate(&app, &[], WEBHOOK_SECRET).await.done();
    assert_eq!(again.stdout, told.stdout);
    run(&app, &next_command(&told), told.stdout.trim())
        .await
        .done();
    let left = secrets(&app).await;
    assert_eq!(left.len(), 1);
    assert_eq!(
        (&left[0]["id"], &left[0]["isActive"]),
        (&now[1]["id"], &json!(true))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_subscriptions_one_is_named() {
    let app = TestApp::start().await;
    let first = subscriptions(&app).await[0]["id"].clone();
    let path = format!("/webhooks/{}", text(&first));
    let fewer = json!({"events": ["payment_intent.status_updated"]});
    app.sandbox.api(Method::PATCH, &path, &fewer).await;
    let rest = json!({"events": ["payment_intent.created"], "url": "http://127.0.0.1:9/"});
    let second = app.sandbox.api(Method::POST, "/webhooks", &rest).await;

    let told = rotate(&app, &[], WEBHOOK_SECRET).await.refused();
    for id in [&first, &second["id"]] {
        assert!(told.contains(text(id)), "{told}");
    }
    let named = ["--subscription", text(&first)];
    let told = rotate(&app, &named, WEBHOOK_SECRET).await.done();
    let configured = told.stdout.trim();
    run(&app, &next_command(&told), configured).await.done();
    let after = subscriptions(&app).await;
    assert_eq!(after[0]["secrets"].as_array().unwrap().len(), 1);
    assert!(configured.ends_with(text(&after[0]["secrets"][0]["value"])));
    assert_eq!(after[1], second);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secrets_of_an_account_of_the_file_are_asked_for_in_the_files_own_form() {
    let app = TestApp::start().await;
    let folder = Folder::new();
    let entry = |secret: &str| folder.write("accounts.toml", &site("leeds", LEEDS_KEY, secret));
    let run = async |command: &str, file: &str| {
        let arguments = ["webhooks", command, "--account", "leeds"];
        operate(&app, &arguments, &[("DOJO_ACCOUNTS_FILE", file)])
            .await
            .done()
    };
    let registered = run("register", &entry("whs_none_yet")).await;
    let told = run("rotate-secret", &entry(registered.stdout.trim())).await;
    for words in [
        "under [accounts.leeds] as webhook_secrets = [\"…\", \"…\"]",
        "webhook_secrets_file",
    ] {
        assert!(told.stderr.contains(words), "{words}: {}", told.stderr);
    }
    assert!(
        !told.stderr.contains("DOJO_WEBHOOK_SECRETS"),
        "{}",
        told.stderr
    );

    // In that form they are what the second step asks for.
    let list = told.stdout.trim().replace(',', "\", \"");
    let command = next_command(&told);
    let arguments: Vec<_> = command.iter().map(String::as_str).collect();
    operate(&app, &arguments, &[("DOJO_ACCOUNTS_FILE", &entry(&list))])
        .await
        .done();
}
