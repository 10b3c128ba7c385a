//! Several Dojo accounts: each has its own API key, webhook endpoint and background jobs, and can have its own callers.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use dojo_sandbox::signature;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    commands::{api_keys, error_of as refused, output_of as told},
    support::{
        Answer, DOJO_KEY, LEEDS_KEY, QUICK, TestApp, TestSandbox, WEBHOOK_SECRET, YORK_KEY,
        eventually, eventually_within, new_database, program, send, stable_address, ten_pounds,
        text,
    },
};

/// The checkout pages of york.
const YORK_PAGES: &str = "https://pay.york.example/checkout";

/// A temporary folder, deleted at the end of the test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("dpl-{}", uuid::Uuid::now_v7()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file and returns its path.
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

/// A service with the account `default` and two more, each with its own webhooks.
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

    /// Restarts the service with these accounts in addition to `default`.
    async fn restart_with(&mut self, accounts: &str) {
        self.app.service.kill().await;
        self.folder.write("accounts.toml", accounts);
        self.app.restart().await;
    }

    async fn link_of(&self, account: &str) -> Value {
        let link = self.app.create(&order(account)).await.expect(201).json();
        assert_eq!(link["account"], account);
        link
    }

    /// An API key that is limited to these accounts.
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

    /// Delivers a webhook to this endpoint, signed with this secret.
    async fn deliver(&self, endpoint: &str, body: &Value, secret: &str) -> Answer {
        let body = body.to_string();
        let signature = signature::sign(secret, body.as_bytes());
        let request = self.app.anonymous(Method::POST, endpoint);
        send(request.header("dojo-signature", signature).body(body)).await
    }
}

/// Subscribes this account's endpoint, like the merchant in Dojo's portal. Returns the secret.
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

async fn call(app: &TestApp, key: &str, method: Method, path: &str) -> Answer {
    send(app.anonymous(method, path).bearer_auth(key)).await
}

async fn create_as(app: &TestApp, key: &str, body: &Value) -> Answer {
    let request = app.anonymous(Method::POST, "/v1/payment-links");
    send(request.bearer_auth(key).json(body)).await
}

/// The fault of a request whose account is its only fault.
#[track_caller]
fn account_fault(response: Answer) -> String {
    let problem = response.problem(422, "invalid-request");
    let errors = problem["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 1, "{problem}");
    assert_eq!(errors[0]["pointer"], "/account");
    text(&errors[0]["detail"]).to_owned()
}

#[tokio::test]
async fn each_account_uses_its_own_api_key_and_webhooks() {
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
async fn an_endpoint_accepts_only_the_secrets_of_its_account() {
    let sites = Sites::start(&[("RUN_JOBS", "false")]).await;
    let app = &sites.app;
    app.sandbox.drop_webhooks().await;
    let link = sites.link_of("leeds").await;
    let event = |id: &str| {
        json!({"id": id, "event": "payment_intent.status_updated", "createdAt": "2026-01-31T10:46:46Z",
            "data": {"paymentIntentId": link["paymentIntentId"], "paymentStatus": "Captured"}})
    };
    let secrets = [WEBHOOK_SECRET, &sites.leeds_secret, &sites.york_secret];
    for (endpoint, own) in [
        ("/webhooks/dojo", 0),
        ("/webhooks/dojo/default", 0),
        ("/webhooks/dojo/leeds", 1),
        ("/webhooks/dojo/york", 2),
    ] {
        for secret in secrets.iter().filter(|secret| **secret != secrets[own]) {
            let response = sites.deliver(endpoint, &event("evt_forged"), secret).await;
            response.problem(401, "bad-signature");
        }
    }
    for secret in secrets {
        let response = sites
            .deliver("/webhooks/dojo/nobody", &event("evt_forged"), secret)
            .await;
        response.problem(401, "bad-signature");
    }
    assert_eq!(app.stored_webhooks().await, 0);

    // A valid webhook of another account doesn't change the link.
    let event = event("evt_1");
    let york = sites.deliver("/webhooks/dojo/york", &event, &sites.york_secret);
    york.await.expect(204);
    for endpoint in ["/webhooks/dojo", "/webhooks/dojo/default"] {
        let own = sites.deliver(endpoint, &event, WEBHOOK_SECRET).await;
        own.expect(204);
    }
    assert_eq!(app.link(&link["id"]).await["status"], "Created");
    assert_eq!(app.stored_webhooks().await, 2, "two endpoints, one account");
    let leeds = sites.deliver("/webhooks/dojo/leeds", &event, &sites.leeds_secret);
    leeds.await.expect(204);
    assert_eq!(app.link(&link["id"]).await["status"], "Captured");
    let large = json!({"id": "x".repeat(256 * 1024)});
    let response = sites
        .deliver("/webhooks/dojo/leeds", &large, &sites.leeds_secret)
        .await;
    response.problem(413, "body-too-large");
}

#[tokio::test]
async fn a_webhook_of_another_account_does_not_claim_an_intent() {
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
        // Before the response to leeds's call, so that york's webhook is the first to name the intent.
        let intent = app.sandbox.first_intent().await;
        let event = event("evt_1", &intent["id"]);
        let delivery = sites.deliver("/webhooks/dojo/york", &event, &sites.york_secret);
        delivery.await.expect(204);
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
async fn an_unknown_or_inaccessible_account_is_a_fault() {
    let sites = Sites::start(&[("RUN_JOBS", "false")]).await;
    let app = &sites.app;
    let unknown = app.create(&order("nobody")).await;
    assert_eq!(account_fault(unknown), "is not an account of this service");
    let leeds = sites.limited_key("leeds");
    for body in [
        order("york"),
        order("default"),
        ten_pounds("Order 1"),
        order("nobody"),
    ] {
        let inaccessible = create_as(app, &leeds, &body).await;
        assert_eq!(
            account_fault(inaccessible),
            "is not accessible with this API key",
            "{body}"
        );
    }
    assert_eq!(app.sandbox.creations().await.len(), 0);
    create_as(app, &leeds, &order("leeds")).await.expect(201);
}

#[tokio::test]
async fn a_limited_key_sees_only_the_links_of_its_accounts() {
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
        ((ids, page["hasMore"] == true), page["after"].clone())
    };
    let [leeds, york] = [leeds, york].map(|link| link["id"].clone());
    assert_eq!(
        listed("").await.0,
        (vec![york.clone(), leeds.clone()], false)
    );
    assert_eq!(
        listed("account=leeds").await.0,
        (vec![leeds.clone()], false)
    );
    assert_eq!(listed("account=default").await.0, (vec![], false));
    let ((first, more), after) = listed("limit=1").await;
    assert_eq!((first, more), (vec![york], true));
    let (second, _) = listed(&format!("limit=1&after={}", text(&after))).await;
    assert_eq!(second, (vec![leeds], false));
    let all = app.get("/v1/payment-links").await.json();
    assert_eq!(
        all["data"].as_array().unwrap().len(),
        3,
        "an unlimited key sees all links"
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

    // The command warns of a name that no account has, if it can tell.
    for (settings, warning) in [
        (&[][..], ""),
        (
            &[("DOJO_API_KEY", DOJO_KEY)],
            "Warning: no account \"yrok\" is configured here. The configured accounts are: default.\n",
        ),
    ] {
        let name = format!("with-{}", settings.len());
        let args = ["create", "--name", &name, "--scopes", "links:read"];
        let mut create = api_keys(&app.database_url);
        create.args(args).args(["--accounts", "yrok,default"]);
        let created = create.envs(settings.iter().copied()).output().unwrap();
        assert!(created.status.success() && created.stdout.starts_with(b"dpl_"));
        assert_eq!(String::from_utf8(created.stderr).unwrap(), warning);
    }
}

#[tokio::test]
async fn background_jobs_run_for_every_account() {
    let sites = Sites::start(&[]).await;
    let app = &sites.app;
    app.sandbox.drop_webhooks().await;
    let mut links = Vec::new();
    for account in ["default", "leeds", "york"] {
        let link = sites.link_of(account).await;
        app.sandbox.pay(&link["paymentIntentId"]).await;
        links.push(link);
    }
    // A lost creation is recovered with the account's own API key.
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
        let logged = app.logged("payment link reconciled").await;
        let own = format!(r#""account":"{account}""#);
        assert!(logged.iter().any(|line| line.contains(&own)), "{logged:?}");
    }
}

#[tokio::test]
async fn an_account_with_a_rejected_key_does_not_delay_the_others() {
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
    // York's links are due first.
    let due = "UPDATE payment_links SET due_at = now() - interval '1 hour' WHERE account = 'york'";
    sqlx::query(due).execute(&app.pool).await.unwrap();
    eventually("york's jobs pause for more than 5 seconds", async || {
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
    eventually_within(Duration::from_secs(4), "leeds is not delayed", async || {
        (app.link(&leeds["id"]).await["status"] == "Captured").then_some(())
    })
    .await;
    for link in &of_york {
        assert_eq!(app.link(&link["id"]).await["status"], "Created");
    }
    app.create(&order("york"))
        .await
        .problem(502, "dojo-key-rejected");
    let refresh = app.refresh(&of_york[0]["id"]).await;
    refresh.problem(502, "dojo-key-rejected");
    let logged = app.logged("a request failed").await;
    assert!(logged[0].contains(r#""account":"york""#), "{logged:?}");
    sites.link_of("leeds").await;

    sites.restart_with(&right).await;
    sites.app.all_are_due().await;
    for link in &of_york {
        sites.app.link_with_status(&link["id"], "Captured").await;
    }
}

#[tokio::test]
async fn links_of_an_unconfigured_account_can_still_be_read() {
    let mut sites = Sites::start(&[]).await;
    let body = order("york");
    let created = sites.app.create_with_key("order-1", &body).await;
    let link = created.expect(201).json();
    let alone = site("leeds", LEEDS_KEY, &sites.leeds_secret);
    sites.restart_with(&alone).await;
    let app = &sites.app;
    let logged = app.logged("the account is no longer configured").await;
    assert!(logged[0].contains(r#""account":"york""#), "{logged:?}");
    assert!(logged[0].contains(r#""links":1"#), "{logged:?}");

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
    let cancel = app.operate_with_key("cancel-1", &link, "cancel", &Value::Null);
    cancel.await.problem(503, "account-not-configured");
    let another = app.create(&body).await;
    assert_eq!(account_fault(another), "is not an account of this service");
    let event = json!({"id": "evt_1", "event": "payment_intent.status_updated", "data": {}});
    let delivery = sites
        .deliver("/webhooks/dojo/york", &event, &sites.york_secret)
        .await;
    delivery.problem(401, "bad-signature");

    // Once the account is back, the same request with the same key is carried out.
    let both = alone + &york(YORK_KEY, &sites.york_secret);
    sites.restart_with(&both).await;
    let cancel = sites
        .app
        .operate_with_key("cancel-1", &link, "cancel", &Value::Null);
    assert_eq!(cancel.await.expect(200).json()["status"], "Canceled");
}

#[tokio::test]
async fn a_file_can_configure_all_accounts_and_refer_to_secrets_in_files() {
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
    let logged = app.logged("every webhook will be rejected").await;
    assert_eq!(logged.len(), 1);
    assert!(logged[0].contains(r#""account":"york""#), "{logged:?}");
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
async fn the_file_can_configure_the_default_account() {
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
async fn an_invalid_file_prevents_the_start_and_errors_contain_no_secret() {
    let folder = Folder::new();
    folder.write("empty", " \n");
    folder.write("wrong-secrets", "hush1\n\nsk_sandbox_hush2\n");
    let leeds = "[accounts.leeds]\nenvironment = \"sandbox\"\napi_key = \"sk_sandbox_hush1\"\n";
    let serve = |file: &str, more: &[(&str, &str)]| {
        let mut serve = program();
        serve
            .arg("serve")
            .env("DATABASE_URL", "postgres://nowhere/x");
        serve
            .env("DOJO_ACCOUNTS_FILE", file)
            .envs(more.iter().copied());
        let message = refused(&mut serve);
        assert!(!message.contains("hush"), "{message}");
        message
    };
    let wrong = |text: &str, more: &[(&str, &str)], fault: &str| {
        let message = serve(&folder.write("accounts.toml", text), more);
        assert!(
            message.contains("DOJO_ACCOUNTS_FILE") && message.contains("accounts.toml"),
            "{message}"
        );
        assert!(message.contains(fault), "{fault:?} is not in {message}");
    };
    let missing = serve("/nowhere/accounts.toml", &[]);
    assert!(
        missing.contains(
            "DOJO_ACCOUNTS_FILE names a file that cannot be read, /nowhere/accounts.toml"
        ),
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
        ("accounts = \"hush\"".to_owned(), "accounts must be a table"),
        (
            "accounts.leeds = \"sk_sandbox_hush\"".to_owned(),
            "accounts.leeds must be a table",
        ),
        (
            "[account.leeds]\napi_key = \"sk_sandbox_hush\"".to_owned(),
            "\"account\" is unknown",
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
            "[accounts.leeds] \"key\" is not a field",
        ),
        (
            format!("{leeds}api_key_file = \"empty\""),
            "[accounts.leeds] api_key and api_key_file are both set",
        ),
        (
            format!("{leeds}webhook_secrets = [\"hush\"]\nwebhook_secrets_file = \"empty\""),
            "[accounts.leeds] webhook_secrets and webhook_secrets_file are both set",
        ),
        (
            format!("{leeds}webhook_secrets = \"hush\""),
            "[accounts.leeds] webhook_secrets must be a list",
        ),
        (
            format!("{leeds}webhook_secrets = [\"hush\", 1]"),
            "[accounts.leeds] webhook_secrets is wrong: entry 2 of 2 is not a string",
        ),
        (
            format!("{leeds}webhook_secrets = [\"\", \"hush\", \"hush hush\"]"),
            "[accounts.leeds] webhook_secrets is wrong: entry 1 of 3 is empty; entry 3 of 3 contains a space",
        ),
        (
            format!("{leeds}webhook_secrets_file = \"wrong-secrets\""),
            "[accounts.leeds] webhook_secrets_file is wrong: entry 2 of 2 is an API key of Dojo",
        ),
        (
            format!("{leeds}webhook_secrets_file = \"nowhere\""),
            "[accounts.leeds] webhook_secrets_file names a file that cannot be read",
        ),
        (
            format!("{leeds}webhook_secrets_file = \"empty\""),
            "[accounts.leeds] webhook_secrets_file names an empty file",
        ),
        (
            format!("{leeds}checkout_url = \"ftp://hush\""),
            "[accounts.leeds] checkout_url must be an http or https URL",
        ),
        (
            second("york", "sandbox", "pk_hush"),
            "[accounts.york] api_key must begin with",
        ),
        (
            second("york", "sandbox", "sk_sandbox_hush\\nhush"),
            "[accounts.york] api_key contains a character",
        ),
        (
            second("york", "test", "sk_sandbox_hush2"),
            "[accounts.york] environment must be sandbox or production",
        ),
        (
            second("york", "production", "sk_sandbox_hush2"),
            "[accounts.york] environment is production, but api_key is a sandbox key",
        ),
        (
            second("york", "production", "sk_prod_hush2"),
            "[accounts.york] environment is production, but account leeds is sandbox",
        ),
        (
            second("york", "sandbox", "sk_sandbox_hush1"),
            "[accounts.york] api_key is also the key of account leeds",
        ),
        (
            second("York", "sandbox", "sk_sandbox_hush2"),
            "name \"York\" must be",
        ),
        (
            second("\"york/east\"", "sandbox", "sk_sandbox_hush2"),
            "name \"york/east\" must be",
        ),
        (
            second("\"\"", "sandbox", "sk_sandbox_hush2"),
            "name \"\" must be",
        ),
        (
            second(&too_long, "sandbox", "sk_sandbox_hush2"),
            "must be 1 to 60",
        ),
    ] {
        wrong(&text, &[], fault);
    }
    let default = [("DOJO_API_KEY", "sk_sandbox_hush1")];
    wrong(
        leeds,
        &default,
        "[accounts.leeds] api_key is also the key of account default",
    );
    let twice = second("default", "sandbox", "sk_sandbox_hush2");
    let default = [("DOJO_API_KEY", "sk_sandbox_hush3")];
    wrong(
        &twice,
        &default,
        "[accounts.default] is configured by DOJO_API_KEY already",
    );
    let default = [("DOJO_API_KEY", "sk_prod_hush")];
    wrong(
        leeds,
        &default,
        "[accounts.leeds] environment is sandbox, but account default is production",
    );

    // Errors in the environment's account don't hide errors in the file, nor the other way round.
    let all = serve(
        &folder.write("accounts.toml", "[accounts.leeds]\n"),
        &[
            ("DOJO_API_KEY", "pk_hush"),
            ("DOJO_WEBHOOK_SECRETS_FILE", "/nowhere"),
        ],
    );
    for words in [
        "DOJO_API_KEY must begin with",
        "DOJO_WEBHOOK_SECRETS_FILE names a file that cannot be read, /nowhere",
        "[accounts.leeds] api_key is missing",
    ] {
        assert!(all.contains(words), "{words:?} is not in {all}");
    }

    let file = folder.write("right.toml", leeds);
    let secrets = serve(&file, &[("DOJO_WEBHOOK_SECRETS", "whs_hush")]);
    assert!(
        secrets.contains("DOJO_WEBHOOK_SECRETS is set, but DOJO_API_KEY is not"),
        "{secrets}"
    );
    let text = leeds
        .replace("sandbox", "production")
        .replace("sk_production", "sk_prod");
    let file = folder.write("production.toml", &text);
    let clear = serve(&file, &[("DOJO_API_URL", "http://192.0.2.1")]);
    assert!(clear.contains("DOJO_API_URL must be https"), "{clear}");

    // An error about another environment's database names the setting that contains the keys.
    let app = TestApp::start().await;
    let other = serve(&file, &[("DATABASE_URL", &app.database_url)]);
    assert!(
        other.contains(
            "DOJO_ACCOUNTS_FILE configures production, but the database contains sandbox links"
        ),
        "{other}"
    );
}
