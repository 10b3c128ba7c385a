//! Several Dojo accounts: each has its own key, its own door for webhooks, its own background, and callers of its own.

use std::{fs, path::PathBuf, time::Duration};

use dojo_sandbox::signature;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    commands::{api_keys, refused, told},
    support::{
        Answer, DOJO_KEY, LEEDS_KEY, QUICK, TestApp, TestSandbox, WEBHOOK_SECRET, YORK_KEY,
        eventually, eventually_within, new_database, program, send, stable_address, ten_pounds,
        text,
    },
};

/// What york's customers pay on.
const YORK_PAGES: &str = "https://pay.york.example/checkout";

/// A folder of the test's own, gone when the test is over.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("dpl-{}", uuid::Uuid::now_v7()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Writes a file and tells where it is.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A service with the account `default` and two more, each with webhooks of its own.
struct Sites {
    app: TestApp,
    folder: Folder,
    leeds_secret: String,
    york_secret: String,
}

impl Sites {
    async fn start(more: &[(&str, &str)]) -> Self {
        let sandbox = TestSandbox::start().await;
        let address = stable_address();
        let leeds_secret = subscribe(&sandbox, LEEDS_KEY, &address, "leeds").await;
        let york_secret = subscribe(&sandbox, YORK_KEY, &address, "york").await;
        let folder = Folder::new();
        let file = folder.write(
            "accounts.toml",
            &(site("leeds", LEEDS_KEY, &leeds_secret) + &york(YORK_KEY, &york_secret)),
        );
        let address = [
            ("LISTEN_ADDR", address.as_str()),
            ("DOJO_ACCOUNTS_FILE", &file),
        ];
        let settings = [&QUICK[..], &address, more].concat();
        Self {
            app: TestApp::around(sandbox, new_database().await, &settings).await,
            folder,
            leeds_secret,
            york_secret,
        }
    }

    /// Ends the service, and starts it with these accounts beside `default`.
    async fn restart_with(&mut self, accounts: &str) {
        self.app.service.kill().await;
        self.folder.write("accounts.toml", accounts);
        self.app.restart().await;
    }

    /// A link of this account.
    async fn link_of(&self, account: &str) -> Value {
        let answer = self.app.create(&order(account)).await.expect(201).json();
        assert_eq!(answer["account"], account);
        answer
    }

    /// A key that is open to these accounts alone.
    fn limited_key(&self, accounts: &str) -> String {
        let args = [
            "create",
            "--name",
            accounts,
            "--scopes",
            "links:read,links:write",
        ];
        let mut create = api_keys(&self.app.database_url);
        told(create.args(args).args(["--accounts", accounts]))
            .trim()
            .to_owned()
    }

    /// Delivers a webhook to this door, signed with this secret.
    async fn deliver(&self, door: &str, body: &Value, secret: &str) -> Answer {
        let body = body.to_string();
        let signature = signature::sign(secret, body.as_bytes());
        let request = self.app.anonymous(Method::POST, door);
        send(request.header("dojo-signature", signature).body(body)).await
    }
}

/// Subscribes this account's door, as the merchant does in Dojo's portal; returns the secret.
async fn subscribe(sandbox: &TestSandbox, key: &str, address: &str, account: &str) -> String {
    let subscription = json!({
        "events": ["payment_intent.created", "payment_intent.status_updated"],
        "url": format!("http://{address}/webhooks/dojo/{account}"),
    });
    let subscription = sandbox
        .api_as(key, Method::POST, "/webhooks", &subscription)
        .await
        .expect(200)
        .json();
    text(&subscription["secrets"][0]["value"]).to_owned()
}

pub fn site(name: &str, key: &str, secret: &str) -> String {
    format!(
        "[accounts.{name}]\nenvironment = \"sandbox\"\napi_key = \"{key}\"\nwebhook_secrets = [\"{secret}\"]\n"
    )
}

fn york(key: &str, secret: &str) -> String {
    site("york", key, secret) + &format!("checkout_url = \"{YORK_PAGES}/\"\n")
}

fn order(account: &str) -> Value {
    let mut body = ten_pounds("Order 1");
    body["account"] = json!(account);
    body
}

/// A request with this API key.
async fn call(app: &TestApp, key: &str, method: Method, path: &str) -> Answer {
    send(app.anonymous(method, path).bearer_auth(key)).await
}

async fn create_as(app: &TestApp, key: &str, body: &Value) -> Answer {
    let request = app.anonymous(Method::POST, "/v1/payment-links");
    send(request.bearer_auth(key).json(body)).await
}

/// The fault of a request whose only fault is its account.
#[track_caller]
fn account_fault(answer: Answer) -> String {
    let problem = answer.problem(422, "invalid-request");
    let errors = problem["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 1, "{problem}");
    assert_eq!(errors[0]["pointer"], "/account");
    text(&errors[0]["detail"]).to_owned()
}

#[tokio::test]
async fn a_link_is_made_with_its_accounts_key_and_moved_by_its_accounts_webhooks() {
    let sites = Sites::start(&[("RUN_JOBS", "false")]).await;
    let app = &sites.app;
    let keys = [
        ("default", DOJO_KEY),
        ("leeds", LEEDS_KEY),
        ("york", YORK_KEY),
    ];
    for (account, key) in keys {
        let link = sites.link_of(account).await;
        let intent = text(&link["paymentIntentId"]);
        let path = format!("/payment-intents/{intent}");
        for (_, other) in keys {
            let seen = app.sandbox.api_as(other, Method::GET, &path, &Value::Null);
            let status = if other == key { 200 } else { 404 };
            assert_eq!(seen.await.status.as_u16(), status, "{account}");
        }
        let pages = if account == "york" {
            YORK_PAGES.to_owned()
        } else {
            format!("{}/checkout", app.sandbox.url)
        };
        assert_eq!(link["url"], format!("{pages}/{intent}"));
        app.sandbox.pay(&link["paymentIntentId"]).await;
        app.link_with_status(&link["id"], "Captured").await;
    }
    let unnamed = app.created().await;
    assert_eq!(unnamed["account"], "default");
}

#[tokio::test]
async fn a_door_opens_to_its_own_accounts_secrets_alone() {
    let sites = Sites::start(&[("RUN_JOBS", "false")]).await;
    let app = &sites.app;
    app.sandbox.drop_webhooks().await;
    let link = sites.link_of("leeds").await;
    let event = |id: &str| {
        json!({"id": id, "event": "payment_intent.status_updated", "createdAt": "2026-01-31T10:46:46Z",
            "data": {"paymentIntentId": link["paymentIntentId"], "paymentStatus": "Captured"}})
    };
    let secrets = [WEBHOOK_SECRET, &sites.leeds_secret, &sites.york_secret];
    for (door, own) in [
        ("/webhooks/dojo", 0),
        ("/webhooks/dojo/default", 0),
        ("/webhooks/dojo/leeds", 1),
        ("/webhooks/dojo/york", 2),
    ] {
        for secret in secrets.iter().filter(|secret| **secret != secrets[own]) {
            let answer = sites.deliver(door, &event("evt_forged"), secret).await;
            answer.problem(401, "bad-signature");
        }
    }
    for secret in secrets {
        let answer = sites
            .deliver("/webhooks/dojo/nobody", &event("evt_forged"), secret)
            .await;
        answer.problem(401, "bad-signature");
    }
    assert_eq!(app.stored_webhooks().await, 0);

    // A genuine one of another account says nothing about a link that is not its own.
    let event = event("evt_1");
    let york = sites.deliver("/webhooks/dojo/york", &event, &sites.york_secret);
    york.await.expect(204);
    for door in ["/webhooks/dojo", "/webhooks/dojo/default"] {
        let own = sites.deliver(door, &event, WEBHOOK_SECRET).await;
        own.expect(204);
    }
    assert_eq!(app.link(&link["id"]).await["status"], "Created");
    assert_eq!(app.stored_webhooks().await, 2, "two doors, one account");
    let leeds = sites.deliver("/webhooks/dojo/leeds", &event, &sites.leeds_secret);
    leeds.await.expect(204);
    assert_eq!(app.link(&link["id"]).await["status"], "Captured");
    let large = json!({"id": "x".repeat(256 * 1024)});
    let answer = sites
        .deliver("/webhooks/dojo/leeds", &large, &sites.leeds_secret)
        .await;
    answer.problem(413, "body-too-large");
}

#[tokio::test]
async fn a_webhook_of_another_account_takes_no_intent_away_from_its_own() {
    let sites = Sites::start(&[("RUN_JOBS", "false")]).await;
    let app = &sites.app;
    app.sandbox.drop_webhooks().await;
    app.sandbox
        .next("create", "latencyAfter", json!({"latencyMs": 1000}))
        .await;
    let event = |id: &str, intent: &Value| {
        json!({"id": id, "event": "payment_intent.status_updated", "createdAt": "2026-01-31T10:46:46Z",
            "data": {"paymentIntentId": intent, "paymentStatus": "Captured"}})
    };
    let body = order("leeds");
    let foreign = async {
        // Before leeds' own call has returned, so that york's is the first to name it.
        let intent = app.sandbox.first_intent().await;
        let event = event("evt_1", &intent["id"]);
        let door = sites.deliver("/webhooks/dojo/york", &event, &sites.york_secret);
        door.await.expect(204);
    };
    let (link, ()) = tokio::join!(app.create(&body), foreign);
    let link = link.expect(201).json();
    assert_eq!(link["status"], "Created");
    let event = event("evt_2", &link["paymentIntentId"]);
    let own = sites.deliver("/webhooks/dojo/leeds", &event, &sites.leeds_secret);
    own.await.expect(204);
    assert_eq!(app.link(&link["id"]).await["status"], "Captured");
}

#[tokio::test]
async fn an_account_that_is_not_there_or_not_open_is_a_fault() {
    let sites = Sites::start(&[("RUN_JOBS", "false")]).await;
    let app = &sites.app;
    let unknown = app.create(&order("nobody")).await;
    assert_eq!(account_fault(unknown), "is no account of this service");
    let leeds = sites.limited_key("leeds");
    for body in [
        order("york"),
        order("default"),
        ten_pounds("Order 1"),
        order("nobody"),
    ] {
        let closed = create_as(app, &leeds, &body).await;
        assert_eq!(
            account_fault(closed),
            "is not open to this API key",
            "{body}"
        );
    }
    assert_eq!(app.sandbox.creations().await.len(), 0);
    create_as(app, &leeds, &order("leeds")).await.expect(201);
}

#[tokio::test]
async fn a_limited_key_sees_its_own_accounts_and_nothing_of_the_others() {
    let sites = Sites::start(&[("RUN_JOBS", "false")]).await;
    let app = &sites.app;
    let key = sites.limited_key("leeds,york");
    let [default, leeds, york] = [
        sites.link_of("default").await,
        sites.link_of("leeds").await,
        sites.link_of("york").await,
    ];
    let calls = |link: &Value| {
        let path = format!("/v1/payment-links/{}", text(&link["id"]));
        [
            (Method::GET, path.clone()),
            (Method::GET, format!("{path}/events")),
            (Method::POST, format!("{path}/refresh")),
        ]
    };
    for (method, path) in calls(&default) {
        call(app, &key, method, &path)
            .await
            .problem(404, "not-found");
    }
    for (method, path) in calls(&leeds).into_iter().chain(calls(&york)) {
        call(app, &key, method, &path).await.expect(200);
    }

    let listed = async |query: &str| {
        let path = format!("/v1/payment-links?{query}");
        let page = call(app, &key, Method::GET, &path).await.expect(200).json();
        let ids: Vec<_> = page["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|link| link["id"].clone())
            .collect();
        (ids, page["after"].clone())
    };
    let [leeds, york] = [leeds, york].map(|link| link["id"].clone());
    assert_eq!(
        listed("").await,
        (vec![york.clone(), leeds.clone()], Value::Null)
    );
    assert_eq!(
        listed("account=leeds").await,
        (vec![leeds.clone()], Value::Null)
    );
    assert_eq!(listed("account=default").await.0, [] as [Value; 0]);
    let (first, after) = listed("limit=1").await;
    assert_eq!(first, [york]);
    let (second, after) = listed(&format!("limit=1&after={}", text(&after))).await;
    assert_eq!((second, after), (vec![leeds], Value::Null));
    let all = app.get("/v1/payment-links").await.json();
    assert_eq!(
        all["data"].as_array().unwrap().len(),
        3,
        "a key without limits sees all"
    );
    let of_default = app.get("/v1/payment-links?account=default").await.json();
    assert_eq!(of_default["data"][0]["id"], default["id"]);
    app.get("/v1/payment-links?account=")
        .await
        .problem(422, "invalid-request");

    let keys = told(api_keys(&app.database_url).arg("list"));
    assert!(
        keys.contains("\tleeds,york\t") && keys.contains("\tall accounts\t"),
        "{keys}"
    );
    let args = [
        "create",
        "--name",
        "x",
        "--scopes",
        "links:read",
        "--accounts",
        "Leeds",
    ];
    let wrong = refused(api_keys(&app.database_url).args(args));
    assert!(wrong.contains("--accounts"), "{wrong}");
}

#[tokio::test]
async fn the_background_sees_to_every_account() {
    let sites = Sites::start(&[]).await;
    let app = &sites.app;
    app.sandbox.drop_webhooks().await;
    let mut links = Vec::new();
    for account in ["default", "leeds", "york"] {
        let link = sites.link_of(account).await;
        app.sandbox.pay(&link["paymentIntentId"]).await;
        links.push(link);
    }
    // An answer that is lost is found with the account's own key.
    app.sandbox.next("create", "cutAfter", json!({})).await;
    let lost = app.create_with_key("order-2", &order("leeds")).await;
    lost.problem(504, "outcome-unknown");
    app.all_are_due().await;
    for link in &links {
        app.link_with_status(&link["id"], "Captured").await;
    }
    let found = app
        .outcome("order-2", &order("leeds"))
        .await
        .expect(201)
        .json();
    assert_eq!(found["account"], "leeds");
    assert_eq!(app.sandbox.intents().await.len(), 4);

    let metrics = app.get("/metrics").await.text;
    for account in ["default", "leeds", "york"] {
        assert!(
            metrics.contains(&format!(
                r#"backlog_links{{account="{account}",state="due"}}"#
            )),
            "{metrics}"
        );
        let told = app.logged("payment link reconciled").await;
        let own = format!(r#""account":"{account}""#);
        assert!(told.iter().any(|line| line.contains(&own)), "{told:?}");
    }
}

#[tokio::test]
async fn an_account_whose_key_dojo_refuses_holds_up_no_other() {
    let mut sites = Sites::start(&[]).await;
    sites.app.sandbox.drop_webhooks().await;
    let leeds = sites.link_of("leeds").await;
    let mut of_york = Vec::new();
    for _ in 0..8 {
        of_york.push(sites.link_of("york").await);
    }
    let right =
        |key| site("leeds", LEEDS_KEY, &sites.leeds_secret) + &york(key, &sites.york_secret);
    let (right, wrong) = (right(YORK_KEY), right("sk_sandbox_revoked"));
    sites.restart_with(&wrong).await;
    let app = &sites.app;
    for link in of_york.iter().chain([&leeds]) {
        app.sandbox.pay(&link["paymentIntentId"]).await;
    }
    // York's links are the first in the queue.
    let due = "UPDATE payment_links SET due_at = now() - interval '1 hour' WHERE account = 'york'";
    sqlx::query(due).execute(&app.pool).await.unwrap();
    eventually("york's background pauses for long", async || {
        let log = app.service.log();
        let paused = |line: &str| {
            let event: Value = serde_json::from_str(line).ok()?;
            (event["span"]["account"] == "york").then(|| event["seconds"].as_f64())?
        };
        log.lines()
            .filter_map(paused)
            .find(|seconds| *seconds > 5.5)
    })
    .await;
    sqlx::query("UPDATE payment_links SET due_at = now() WHERE account = 'leeds'")
        .execute(&app.pool)
        .await
        .unwrap();
    eventually_within(
        Duration::from_secs(4),
        "leeds does not wait for it",
        async || (app.link(&leeds["id"]).await["status"] == "Captured").then_some(()),
    )
    .await;
    for link in &of_york {
        assert_eq!(app.link(&link["id"]).await["status"], "Created");
    }
    app.create(&order("york"))
        .await
        .problem(502, "dojo-key-refused");
    let refresh = app.refresh(&of_york[0]["id"]).await;
    refresh.problem(502, "dojo-key-refused");
    let told = app.logged("a request failed").await;
    assert!(told[0].contains(r#""account":"york""#), "{told:?}");
    sites.link_of("leeds").await;

    sites.restart_with(&right).await;
    sites.app.all_are_due().await;
    for link in &of_york {
        sites.app.link_with_status(&link["id"], "Captured").await;
    }
}

#[tokio::test]
async fn links_of_an_account_that_is_no_longer_configured_can_be_read() {
    let mut sites = Sites::start(&[]).await;
    let body = order("york");
    let created = sites.app.create_with_key("order-1", &body).await;
    let link = created.expect(201).json();
    let alone = site("leeds", LEEDS_KEY, &sites.leeds_secret);
    sites.restart_with(&alone).await;
    let app = &sites.app;
    let told = app.logged("the account is configured no longer").await;
    assert!(told[0].contains(r#""account":"york""#), "{told:?}");
    assert!(told[0].contains(r#""links":1"#), "{told:?}");

    assert_eq!(app.link(&link["id"]).await["url"], link["url"]);
    assert!(!app.timeline(&link["id"]).await.is_empty());
    let listed = app.get("/v1/payment-links?account=york").await.json();
    assert_eq!(listed["data"][0]["id"], link["id"]);
    let problem = app
        .refresh(&link["id"])
        .await
        .problem(503, "account-not-configured");
    assert_eq!(problem["paymentLinkId"], link["id"]);
    let again = app.create_with_key("order-1", &body).await.expect(201);
    assert_eq!(again.header("idempotent-replayed"), "true");
    let another = app.create(&body).await;
    assert_eq!(account_fault(another), "is no account of this service");
    let event = json!({"id": "evt_1", "event": "payment_intent.status_updated", "data": {}});
    let door = sites
        .deliver("/webhooks/dojo/york", &event, &sites.york_secret)
        .await;
    door.problem(401, "bad-signature");
}

#[tokio::test]
async fn accounts_of_a_file_need_no_other_and_may_have_their_secrets_in_files() {
    let folder = Folder::new();
    folder.write("leeds-key", &format!("{LEEDS_KEY}\n"));
    folder.write("leeds-secrets", "whs_old\nwhs_new, whs_newest\n");
    let file = folder.write(
        "accounts.toml",
        "[accounts.leeds]\nenvironment = \"sandbox\"\napi_key_file = \"leeds-key\"\n\
         webhook_secrets_file = \"leeds-secrets\"\n\
         [accounts.york]\nenvironment = \"sandbox\"\napi_key = \"sk_sandbox_york\"\n",
    );
    let settings = [
        ("DOJO_ACCOUNTS_FILE", file.as_str()),
        ("DOJO_API_KEY", ""),
        ("DOJO_WEBHOOK_SECRETS", ""),
    ];
    let app = TestApp::with(&settings).await;
    let told = app.logged("every webhook of it will be refused").await;
    assert_eq!(told.len(), 1);
    assert!(told[0].contains(r#""account":"york""#), "{told:?}");
    app.create(&order("leeds")).await.expect(201);
    let none = account_fault(app.create(&ten_pounds("Order 1")).await);
    assert!(none.contains("no account default"), "{none}");

    let event = r#"{"id":"evt_1","event":"payment_intent.created","data":{}}"#;
    let sites = ["whs_old", "whs_new", "whs_newest"].map(|secret| {
        let signature = signature::sign(secret, event.as_bytes());
        app.anonymous(Method::POST, "/webhooks/dojo/leeds")
            .header("dojo-signature", signature)
            .body(event)
    });
    for request in sites {
        send(request).await.expect(204);
    }
    app.deliver(event).await.problem(401, "bad-signature");
}

#[tokio::test]
async fn the_file_may_name_the_account_that_is_meant_by_none() {
    let folder = Folder::new();
    let file = folder.write("accounts.toml", &site("default", DOJO_KEY, WEBHOOK_SECRET));
    let settings = [
        ("DOJO_ACCOUNTS_FILE", file.as_str()),
        ("DOJO_API_KEY", ""),
        ("DOJO_WEBHOOK_SECRETS", ""),
    ];
    let app = TestApp::with(&settings).await;
    let link = app.created().await;
    assert_eq!(link["account"], "default");
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.link_with_status(&link["id"], "Captured").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_file_stops_the_start_and_is_named_by_entry_without_any_secret() {
    let folder = Folder::new();
    folder.write("empty", " \n");
    let leeds = "[accounts.leeds]\nenvironment = \"sandbox\"\napi_key = \"sk_sandbox_hush1\"\n";
    let serve = |file: &str, more: &[(&str, &str)]| {
        let mut serve = program();
        serve
            .arg("serve")
            .env("DATABASE_URL", "postgres://nowhere/x");
        serve
            .env("DOJO_ACCOUNTS_FILE", file)
            .envs(more.iter().copied());
        let told = refused(&mut serve);
        assert!(!told.contains("hush"), "{told}");
        told
    };
    let wrong = |text: &str, more: &[(&str, &str)], fault: &str| {
        let told = serve(&folder.write("accounts.toml", text), more);
        assert!(
            told.contains("DOJO_ACCOUNTS_FILE") && told.contains("accounts.toml"),
            "{told}"
        );
        assert!(told.contains(fault), "{fault:?} is not in {told}");
    };
    let missing = serve("/nowhere/accounts.toml", &[]);
    assert!(
        missing.contains("DOJO_ACCOUNTS_FILE cannot be read from /nowhere/accounts.toml"),
        "{missing}"
    );
    let none = serve(&folder.write("none.toml", "# nobody\n"), &[]);
    assert!(none.contains("DOJO_API_KEY is required"), "{none}");

    let second = |name: &str, environment: &str, key: &str| {
        format!("{leeds}[accounts.{name}]\nenvironment = \"{environment}\"\napi_key = \"{key}\"\n")
    };
    let too_long = "x".repeat(61);
    for (text, fault) in [
        (
            "[accounts.leeds]\napi_key = sk_sandbox_hush".to_owned(),
            "line 2, column 11",
        ),
        ("accounts = \"hush\"".to_owned(), "accounts is no table"),
        (
            "accounts.leeds = \"sk_sandbox_hush\"".to_owned(),
            "accounts.leeds is no table",
        ),
        (
            "[account.leeds]\napi_key = \"sk_sandbox_hush\"".to_owned(),
            "\"account\" is not known",
        ),
        (
            "[accounts.leeds]\nenvironment = \"sandbox\"".to_owned(),
            "[accounts.leeds] api_key is missing",
        ),
        (
            "[accounts.leeds]\napi_key = \"sk_sandbox_hush\"".to_owned(),
            "[accounts.leeds] environment is missing",
        ),
        (
            format!("{leeds}key = \"hush\""),
            "[accounts.leeds] \"key\" is no field",
        ),
        (
            format!("{leeds}api_key_file = \"empty\""),
            "[accounts.leeds] api_key and api_key_file are both there",
        ),
        (
            format!("{leeds}webhook_secrets = [\"hush\"]\nwebhook_secrets_file = \"empty\""),
            "[accounts.leeds] webhook_secrets and webhook_secrets_file are both there",
        ),
        (
            format!("{leeds}webhook_secrets = \"hush\""),
            "[accounts.leeds] webhook_secrets is no list",
        ),
        (
            format!("{leeds}webhook_secrets = [\"hush\", 1]"),
            "[accounts.leeds] webhook_secrets holds",
        ),
        (
            format!("{leeds}webhook_secrets_file = \"nowhere\""),
            "[accounts.leeds] webhook_secrets_file cannot be read",
        ),
        (
            format!("{leeds}webhook_secrets_file = \"empty\""),
            "[accounts.leeds] webhook_secrets_file is an empty file",
        ),
        (
            format!("{leeds}checkout_url = \"ftp://hush\""),
            "[accounts.leeds] checkout_url is wrong",
        ),
        (
            second("york", "sandbox", "pk_hush"),
            "[accounts.york] api_key begins with neither",
        ),
        (
            second("york", "sandbox", "sk_sandbox_hush\\nhush"),
            "[accounts.york] api_key holds a character",
        ),
        (
            second("york", "test", "sk_sandbox_hush2"),
            "[accounts.york] environment is neither",
        ),
        (
            second("york", "production", "sk_sandbox_hush2"),
            "[accounts.york] environment is production, and api_key is one of sandbox",
        ),
        (
            second("york", "production", "sk_prod_hush2"),
            "[accounts.york] environment is production, and that of leeds is sandbox",
        ),
        (
            second("york", "sandbox", "sk_sandbox_hush1"),
            "[accounts.york] api_key is that of leeds as well",
        ),
        (
            second("York", "sandbox", "sk_sandbox_hush2"),
            "name \"York\" is not",
        ),
        (
            second("\"york/east\"", "sandbox", "sk_sandbox_hush2"),
            "name \"york/east\" is not",
        ),
        (
            second("\"\"", "sandbox", "sk_sandbox_hush2"),
            "name \"\" is not",
        ),
        (
            second(&too_long, "sandbox", "sk_sandbox_hush2"),
            "is not 1 to 60",
        ),
    ] {
        wrong(&text, &[], fault);
    }
    let default = [("DOJO_API_KEY", "sk_sandbox_hush1")];
    wrong(
        leeds,
        &default,
        "[accounts.leeds] api_key is that of default as well",
    );
    let twice = second("default", "sandbox", "sk_sandbox_hush2");
    let default = [("DOJO_API_KEY", "sk_sandbox_hush3")];
    wrong(
        &twice,
        &default,
        "[accounts.default] is the account of DOJO_API_KEY already",
    );
    let default = [("DOJO_API_KEY", "sk_prod_hush")];
    wrong(
        leeds,
        &default,
        "[accounts.leeds] environment is sandbox, and that of default is production",
    );

    // What is wrong with the environment's own account hides nothing of the file, nor the other way round.
    let all = serve(
        &folder.write("accounts.toml", "[accounts.leeds]\n"),
        &[
            ("DOJO_API_KEY", "pk_hush"),
            ("DOJO_WEBHOOK_SECRETS_FILE", "/nowhere"),
        ],
    );
    for words in [
        "DOJO_API_KEY begins with neither",
        "DOJO_WEBHOOK_SECRETS cannot be read from /nowhere",
        "[accounts.leeds] api_key is missing",
    ] {
        assert!(all.contains(words), "{words:?} is not in {all}");
    }

    let file = folder.write("right.toml", leeds);
    let secrets = serve(&file, &[("DOJO_WEBHOOK_SECRETS", "whs_hush")]);
    assert!(
        secrets.contains("DOJO_WEBHOOK_SECRETS is set without DOJO_API_KEY"),
        "{secrets}"
    );
    let text = leeds
        .replace("sandbox", "production")
        .replace("sk_production", "sk_prod");
    let file = folder.write("production.toml", &text);
    let clear = serve(&file, &[("DOJO_API_URL", "http://192.0.2.1")]);
    assert!(clear.contains("DOJO_API_URL is not https"), "{clear}");

    // What is wrong with another database is told of the setting that holds the keys.
    let app = TestApp::start().await;
    let other = serve(&file, &[("DATABASE_URL", &app.database_url)]);
    assert!(
        other.contains("DOJO_ACCOUNTS_FILE is for production"),
        "{other}"
    );
}
