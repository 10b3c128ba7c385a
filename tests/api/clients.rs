//! Clients keep their identity when their API keys change: a request sent with one key can be repeated with the next.

use std::path::Path;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::{Connection, PgConnection, PgPool, migrate::Migrator};
use uuid::Uuid;

use dojo_payment_links::payment_link::PaymentLinkId;

use crate::{
    commands::{api_keys, create_api_key, error_of as refused, output_of as told, revoke_api_key},
    support::{
        API_KEY, Answer, Service, TestApp, empty_database, eventually, pounds, send, ten_pounds,
        text,
    },
};

const EVERYTHING: &str = "links:read,links:write,payments:manage";

/// Rotates a client's API key, like an operator. Returns the new key and the command's messages.
fn rotate(app: &TestApp, name: &str, overlap: &str) -> (String, String) {
    let mut rotate = api_keys(&app.database_url);
    let output = rotate
        .args(["rotate", "--name", name, "--overlap", overlap])
        .output()
        .unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{words}");
    let key = String::from_utf8(output.stdout).unwrap();
    // Standard output contains only the key, so that it can be redirected to a file.
    let key = key.strip_suffix('\n').unwrap();
    assert!(key.starts_with("dpl_") && key.len() == 68, "{key}");
    assert!(!words.contains(key), "{words}");
    (key.to_owned(), words)
}

/// A request with this API key.
fn with(app: &TestApp, key: &str, method: Method, path: &str) -> RequestBuilder {
    app.anonymous(method, path).bearer_auth(key)
}

/// Creates a link with this API key.
async fn create(app: &TestApp, api_key: &str, idempotency_key: &str, body: &Value) -> Answer {
    let request = with(app, api_key, Method::POST, "/v1/payment-links");
    send(
        request
            .header("idempotency-key", idempotency_key)
            .json(body),
    )
    .await
}

/// Waits until this API key is rejected. A replica may use what it knows of a key for a moment longer.
async fn is_rejected(app: &TestApp, api_key: &str) {
    eventually("the key is rejected", async || {
        (!works(app, api_key).await).then_some(())
    })
    .await;
}

/// Whether this API key is accepted.
async fn works(app: &TestApp, api_key: &str) -> bool {
    let response = send(with(app, api_key, Method::GET, "/v1/payment-links?limit=1")).await;
    if response.status == 200 {
        return true;
    }
    response.problem(401, "unauthenticated");
    false
}

fn hash(key: &str) -> Vec<u8> {
    Sha256::digest(key.as_bytes()).to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_refund_is_not_repeated_with_a_new_api_key() {
    let app = TestApp::quick(&[]).await;
    let old = create_api_key(&app, "orders", EVERYTHING);
    let link = app.paid().await;
    let refund = async |key: &str| {
        let path = format!("/v1/payment-links/{}/refunds", text(&link["id"]));
        let request = with(&app, key, Method::POST, &path).header("idempotency-key", "return-1");
        send(request.json(&json!({"amount": pounds(300)}))).await
    };
    app.sandbox.next("refund", "cutAfter", json!({})).await;
    refund(&old).await.problem(504, "outcome-unknown");

    let (new, _) = rotate(&app, "orders", "24h");
    for key in [&new, &old] {
        let outcome = eventually("the outcome is known", async || {
            let response = refund(key).await;
            (response.status != 409).then_some(response)
        })
        .await
        .expect(200);
        assert_eq!(outcome.header("idempotent-replayed"), "true");
    }
    let intent = app.sandbox.intent(&link["paymentIntentId"]).await;
    assert_eq!(intent["refundedAmount"], 300);
    let operations = app.operations(&link).await;
    assert_eq!(operations.len(), 1, "{operations:?}");
    assert_eq!(operations[0]["createdBy"], "orders");
}

#[tokio::test(flavor = "multi_thread")]
async fn dojo_gets_the_same_idempotency_key_whichever_api_key_the_client_uses() {
    let app = TestApp::start().await;
    let old = create_api_key(&app, "orders", EVERYTHING);
    let link = app.paid().await;
    let refund = async |key: &str| {
        let path = format!("/v1/payment-links/{}/refunds", text(&link["id"]));
        let request = with(&app, key, Method::POST, &path).header("idempotency-key", "return-1");
        send(request.json(&json!({"amount": pounds(300)}))).await
    };
    refund(&old).await.expect(200);
    // Like after restoring a backup from before the refund: only Dojo knows about it.
    for forgotten in [
        "DELETE FROM idempotency_keys WHERE key = 'return-1'",
        "DELETE FROM operations",
    ] {
        sqlx::query(forgotten).execute(&app.pool).await.unwrap();
    }
    let (rotated, _) = rotate(&app, "orders", "0");
    refund(&rotated).await.expect(200);
    let calls = app.sandbox.requests("refund").await;
    let keys: Vec<_> = calls
        .iter()
        .map(|call| &call["headers"]["idempotencykey"])
        .collect();
    assert_eq!(keys.len(), 2, "{calls:#?}");
    assert_eq!(keys[0], keys[1]);
    let intent = app.sandbox.intent(&link["paymentIntentId"]).await;
    assert_eq!(
        intent["refundedAmount"], 300,
        "Dojo recognizes the repetition"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_creation_is_not_repeated_with_a_new_api_key() {
    let app = TestApp::quick(&[]).await;
    let body = ten_pounds("Order 1");
    let old = create_api_key(&app, "orders", EVERYTHING);
    app.sandbox.next("create", "cutAfter", json!({})).await;
    let lost = create(&app, &old, "order-1", &body).await;
    let lost = lost.problem(504, "outcome-unknown");

    let (new, _) = rotate(&app, "orders", "0s");
    let link = eventually("the outcome is known", async || {
        let response = create(&app, &new, "order-1", &body).await;
        (response.status != 409).then_some(response)
    })
    .await
    .expect(201)
    .json();
    assert_eq!(link["id"], lost["paymentLinkId"]);
    assert_eq!(link["createdBy"], "orders");
    let timeline = app.timeline(&link["id"]).await;
    assert_eq!(timeline[0]["cause"]["client"], "orders");
    assert_eq!(app.sandbox.live_intents_about("Order 1").await.len(), 1);

    // The same idempotency key of another client is a different key.
    let other = app.create_with_key("order-1", &body).await.expect(201);
    assert_ne!(other.json()["id"], link["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_works_until_its_overlap_ends() {
    let app = TestApp::start().await;
    let first = create_api_key(&app, "orders", "links:read");
    let (second, words) = rotate(&app, "orders", "1500ms");
    assert!(
        words.contains("An earlier key of the client is valid until 20"),
        "{words}"
    );
    assert!(works(&app, &first).await && works(&app, &second).await);
    let expiring = told(api_keys(&app.database_url).arg("list"));
    assert!(expiring.contains("\texpires 20"), "{expiring}");
    // The log shows that the client still uses the old key.
    let ending = app.logged("\"key_ends_at\":\"20").await;
    assert!(ending[0].contains(r#""client":"orders""#), "{ending:?}");

    eventually("the overlap ends", async || {
        (!works(&app, &first).await).then_some(())
    })
    .await;
    assert!(works(&app, &second).await);

    // The new key has the client's scopes.
    let create = with(&app, &second, Method::POST, "/v1/payment-links");
    let rejected = send(create.json(&ten_pounds("Order 1"))).await;
    rejected.problem(403, "forbidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_rotation_never_extends_an_overlap() {
    let app = TestApp::start().await;
    let args = ["create", "--name", "leeds-orders", "--scopes", "links:read"];
    let mut make = api_keys(&app.database_url);
    let first = told(make.args(args).args(["--accounts", "leeds"]));
    let (second, _) = rotate(&app, "leeds-orders", "1h");
    let (third, words) = rotate(&app, "leeds-orders", "2h");
    assert_eq!(words.matches("is valid until").count(), 2, "{words}");
    let ends: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT round(extract(epoch FROM revoked_at - now()) / 3600)::bigint,
                cardinality(accounts)::bigint
         FROM api_keys WHERE name = 'leeds-orders' ORDER BY created_at",
    )
    .fetch_all(&app.pool)
    .await
    .map(|rows: Vec<(Option<i64>, i64)>| {
        let rows = rows.into_iter();
        rows.map(|(end, accounts)| (end.unwrap_or(-1), accounts))
            .collect()
    })
    .unwrap();
    assert_eq!(ends, [(1, 1), (2, 1), (-1, 1)]);
    for key in [first.trim(), &second, &third] {
        assert!(works(&app, key).await);
    }

    // A rotation without overlap ends every earlier key, even those whose overlap has not ended.
    let (fourth, words) = rotate(&app, "leeds-orders", "0");
    assert!(words.contains("rejected from now on"), "{words}");
    for key in [first.trim(), &second, &third] {
        is_rejected(&app, key).await;
    }
    assert!(works(&app, &fourth).await);

    let database = &app.database_url;
    let nobody = refused(api_keys(database).args(["rotate", "--name", "nobody"]));
    assert!(nobody.contains("api-keys create"), "{nobody}");
    let long = ["rotate", "--name", "leeds-orders", "--overlap", "32days"];
    let long = refused(api_keys(database).args(long));
    assert!(
        long.contains(
            "--overlap must be a duration such as 30m or 24h, from 0s to 31d, not \"32days\""
        ),
        "{long}"
    );
    assert!(works(&app, &fourth).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_revoked_keys_is_the_same_client_with_its_next_key() {
    let app = TestApp::start().await;
    let body = ten_pounds("Order 1");
    let first = create_api_key(&app, "orders", EVERYTHING);
    let link = create(&app, &first, "order-1", &body).await.expect(201);
    let (second, _) = rotate(&app, "orders", "1h");

    let database = &app.database_url;
    let again = ["create", "--name", "orders", "--scopes", "links:read"];
    let active = refused(api_keys(database).args(again));
    assert!(active.contains("api-keys rotate"), "{active}");
    assert!(works(&app, &first).await && works(&app, &second).await);

    revoke_api_key(&app, "orders");
    is_rejected(&app, &first).await;
    is_rejected(&app, &second).await;
    let listed = told(api_keys(database).arg("list"));
    assert_eq!(listed.matches("\trevoked 20").count(), 2, "{listed}");
    let gone = refused(api_keys(database).args(["rotate", "--name", "orders"]));
    assert!(gone.contains("no active key"), "{gone}");

    // The new key has the scopes that the operator chose this time.
    let third = create_api_key(&app, "orders", "links:write");
    is_rejected(&app, &first).await;
    is_rejected(&app, &second).await;
    let replayed = create(&app, &third, "order-1", &body).await.expect(201);
    assert_eq!(replayed.header("idempotent-replayed"), "true");
    assert_eq!(replayed.text, link.text);
    assert_eq!(app.sandbox.intents().await.len(), 1);
    let read = send(with(&app, &third, Method::GET, "/v1/payment-links")).await;
    read.problem(403, "forbidden");

    // The client doesn't see an account that its key has no access to, not even through a repetition.
    revoke_api_key(&app, "orders");
    let args = ["create", "--name", "orders", "--scopes", EVERYTHING];
    let fourth = told(api_keys(database).args(args).args(["--accounts", "leeds"]));
    let hidden = create(&app, fourth.trim(), "order-1", &body).await;
    hidden.problem(422, "invalid-request");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_bootstrap_key_belongs_to_the_same_client() {
    const NEW: &str = "dpl_another_0123456789abcdef0123456789abcdef";
    let app = TestApp::start().await;
    let body = ten_pounds("Order 1");
    let link = app.create_with_key("order-1", &body).await.expect(201);
    let settings = [("BOOTSTRAP_API_KEY", NEW)];
    let replica = Service::start(&app.database_url, &app.sandbox.url, &settings).await;
    let request = reqwest::Client::new()
        .post(format!("{}/v1/payment-links", replica.url))
        .bearer_auth(NEW)
        .header("idempotency-key", "order-1")
        .json(&body);
    let replayed = send(request).await.expect(201);
    assert_eq!(replayed.header("idempotent-replayed"), "true");
    assert_eq!(replayed.text, link.text);
    is_rejected(&app, API_KEY).await;

    // A rotated key can become the setting. A key in its overlap doesn't prevent the start.
    let (rotated, _) = rotate(&app, "bootstrap", "1h");
    for key in [rotated.as_str(), NEW] {
        let settings = [("BOOTSTRAP_API_KEY", key)];
        let service = Service::start(&app.database_url, &app.sandbox.url, &settings).await;
        let warned = service
            .log()
            .contains("the key in BOOTSTRAP_API_KEY has been rotated");
        assert_eq!(warned, key == NEW);
        assert!(works(&app, NEW).await && works(&app, &rotated).await);
    }
}

/// The hash of [`known_request`]. Every version computes the same.
const KNOWN_HASH: [u8; 32] = [
    0x0e, 0x32, 0x95, 0x0f, 0xcf, 0x4c, 0x55, 0x60, 0x61, 0x00, 0x39, 0x11, 0x4f, 0x29, 0x55, 0x63,
    0xc7, 0xd4, 0x92, 0x1a, 0x67, 0xe1, 0xdc, 0x56, 0xe6, 0xc0, 0x02, 0xc4, 0x3e, 0x6b, 0x54, 0x78,
];

fn known_request() -> Value {
    json!({"reference": "Order 1", "amount": {"value": 1000, "currencyCode": "GBP"},
           "metadata": {"b": "2", "a": "1"}})
}

/// A database of the version before clients.
async fn database_before_clients() -> (String, PgConnection) {
    let database = empty_database().await;
    let mut connection = PgConnection::connect(&database).await.unwrap();
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let migrator = Migrator::new(migrations).await.unwrap();
    migrator.run_to(8, &mut connection).await.unwrap();
    (database, connection)
}

/// Inserts an API key like the version before clients, created this many days ago.
async fn key_before_clients(
    connection: &mut PgConnection,
    name: &str,
    key: &str,
    days_ago: i32,
    revoked: bool,
) -> Uuid {
    let id = Uuid::now_v7();
    sqlx::query(
        "INSERT INTO api_keys (id, name, key_hash, scopes, created_at, revoked_at)
         VALUES ($1, $2, $3, '{links:read,links:write,payments:manage}', now() - make_interval(days => $4),
                 CASE WHEN $5 THEN now() - make_interval(days => $4 - 1) END)",
    )
    .bind(id)
    .bind(name)
    .bind(hash(key))
    .bind(days_ago)
    .bind(revoked)
    .execute(connection)
    .await
    .unwrap();
    id
}

/// Inserts a link created for [`known_request`] with this idempotency key, like the version before clients.
async fn link_before_clients(
    connection: &mut PgConnection,
    api_key: Uuid,
    key: &str,
    body: &str,
) -> PaymentLinkId {
    let link = Uuid::now_v7();
    sqlx::query(
        "INSERT INTO payment_links (id, account, environment, status, request, reference, currency, amount,
                                    payment_intent_id, url, created_by)
         VALUES ($1, 'default', 'sandbox', 'Created', $2, 'Order 1', 'GBP', 1000, $3, 'https://x', 'orders')",
    )
    .bind(link)
    .bind(known_request())
    .bind(format!("pi_sandbox_{}", link.simple()))
    .execute(&mut *connection)
    .await
    .unwrap();
    sqlx::query(
        "INSERT INTO idempotency_keys (api_key_id, key, request_hash, payment_link_id, response_body)
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(api_key)
    .bind(key)
    .bind(KNOWN_HASH)
    .bind(link)
    .bind(body)
    .execute(connection)
    .await
    .unwrap();
    PaymentLinkId::from_uuid(link)
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_the_version_before_clients_keeps_its_meaning() {
    let (database, mut connection) = database_before_clients().await;
    let before = &mut connection;
    sqlx::query("INSERT INTO deployment (environment) VALUES ('sandbox')")
        .execute(&mut *before)
        .await
        .unwrap();
    let active_key = format!("dpl_{}", "3".repeat(64));
    let oldest = key_before_clients(before, "orders", "dpl_1", 30, true).await;
    let older = key_before_clients(before, "orders", "dpl_2", 20, true).await;
    let active = key_before_clients(before, "orders", &active_key, 10, false).await;
    let first_gone = key_before_clients(before, "gone", "dpl_4", 30, true).await;
    let gone = key_before_clients(before, "gone", "dpl_5", 20, true).await;
    let mut links = std::collections::HashMap::new();
    for (api_key, key, body) in [
        (oldest, "a", "of the oldest"),
        (oldest, "b", "lost to the older one"),
        (older, "b", "of the older one"),
        (oldest, "c", "lost to the active one, first"),
        (older, "c", "lost to the active one, second"),
        (active, "c", "of the active one"),
        (active, "d", "of the active one alone"),
        (first_gone, "e", "of one that is gone"),
    ] {
        let link = link_before_clients(before, api_key, key, body).await;
        links.insert(body, json!(link));
    }
    let link_of = |body: &str| links[body].clone();
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT key, response_body FROM idempotency_keys ORDER BY 1, 2")
            .fetch_all(&mut *before)
            .await
            .unwrap();

    let app = TestApp::on(database, &[]).await;
    for (key, body) in [
        ("a", "of the oldest"),
        ("b", "of the older one"),
        ("c", "of the active one"),
        ("d", "of the active one alone"),
    ] {
        let response = create(&app, &active_key, key, &known_request()).await;
        let response = response.expect(201);
        assert_eq!(response.json()["id"], link_of(body), "{body}");
        assert_eq!(response.header("idempotent-replayed"), "true");
    }
    let next = create_api_key(&app, "gone", EVERYTHING);
    let response = create(&app, &next, "e", &known_request()).await;
    let link = response.expect(201).json();
    assert_eq!(link["id"], link_of("of one that is gone"));
    assert!(app.sandbox.creations().await.is_empty());

    // The idempotency keys that Dojo gets for refunds are derived from these ids, so active clients keep theirs.
    let clients: Vec<(String, Uuid, bool)> = sqlx::query_as(
        "SELECT name, id, retired FROM clients WHERE name <> 'bootstrap' ORDER BY name, retired, created_at",
    )
    .fetch_all(&app.pool)
    .await
    .unwrap();
    let client = |name: &str, id, retired| (name.to_owned(), id, retired);
    assert_eq!(
        clients,
        [
            client("gone", gone, false),
            client("orders", active, false),
            client("orders", oldest, true),
            client("orders", older, true),
        ]
    );
    // Nothing is lost.
    let stored: Vec<(String, String)> =
        sqlx::query_as("SELECT key, response_body FROM idempotency_keys ORDER BY 1, 2")
            .fetch_all(&app.pool)
            .await
            .unwrap();
    assert_eq!(stored, rows);
}

/// The statements of the version before clients. It runs side by side with this one during an upgrade and after a rollback.
struct Before(PgPool);

impl Before {
    /// The identity of a caller with this key.
    async fn identity(&self, key: &str) -> Option<Uuid> {
        sqlx::query_scalar("SELECT id FROM api_keys WHERE key_hash = $1 AND revoked_at IS NULL")
            .bind(hash(key))
            .fetch_optional(&self.0)
            .await
            .unwrap()
    }

    /// `api-keys create`. Returns whether it created a key.
    async fn create(&self, name: &str, key: &str) -> bool {
        let inserted = sqlx::query(
            "INSERT INTO api_keys (id, name, key_hash, scopes, accounts) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (name) WHERE revoked_at IS NULL DO NOTHING",
        )
        .bind(Uuid::now_v7())
        .bind(name)
        .bind(hash(key))
        .bind(["links:read", "links:write"])
        .bind(None::<Vec<String>>)
        .execute(&self.0)
        .await
        .unwrap();
        inserted.rows_affected() == 1
    }

    /// `api-keys revoke`.
    async fn revoke(&self, name: &str) {
        sqlx::query(
            "UPDATE api_keys SET revoked_at = now() WHERE name = $1 AND revoked_at IS NULL",
        )
        .bind(name)
        .execute(&self.0)
        .await
        .unwrap();
    }

    /// Starts with another `BOOTSTRAP_API_KEY`.
    async fn start(&self, key: &str) {
        let mut transaction = self.0.begin().await.unwrap();
        for statement in [
            "LOCK TABLE api_keys IN SHARE ROW EXCLUSIVE MODE",
            "UPDATE api_keys SET revoked_at = now() WHERE name = 'bootstrap' AND revoked_at IS NULL",
        ] {
            sqlx::query(statement)
                .execute(&mut *transaction)
                .await
                .unwrap();
        }
        sqlx::query(
            "INSERT INTO api_keys (id, name, key_hash, scopes) VALUES ($1, 'bootstrap', $2, '{links:read}')",
        )
        .bind(Uuid::now_v7())
        .bind(hash(key))
        .execute(&mut *transaction)
        .await
        .unwrap();
        transaction.commit().await.unwrap();
    }

    /// Claims an idempotency key for [`known_request`]. Returns whether this is the first request with it.
    async fn claim(&self, identity: Uuid, key: &str) -> bool {
        let claimed = sqlx::query(
            "INSERT INTO idempotency_keys AS known (api_key_id, key, request_hash) VALUES ($1, $2, $3)
             ON CONFLICT (api_key_id, key) DO UPDATE SET request_hash = known.request_hash
                 WHERE known.payment_link_id IS NULL AND known.operation_id IS NULL
                   AND known.request_hash = EXCLUDED.request_hash",
        )
        .bind(identity)
        .bind(key)
        .bind(KNOWN_HASH)
        .execute(&self.0)
        .await
        .unwrap();
        claimed.rows_affected() == 1
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_version_before_clients_agrees_about_idempotency_keys() {
    let app = TestApp::start().await;
    let before = Before(app.pool.clone());
    let key = |digit: &str| format!("dpl_{}", digit.repeat(64));
    let (first, second, third) = (key("1"), key("2"), key("3"));

    // A client created by the previous version is a client of this version.
    assert!(before.create("orders", &first).await);
    let identity = before.identity(&first).await.unwrap();
    let link = create(&app, &first, "a", &known_request()).await;
    let link = link.expect(201);
    assert_eq!(link.json()["createdBy"], "orders");
    assert!(!before.claim(identity, "a").await, "it is taken");

    // Both versions see one current key per client, and creating another one fails.
    assert!(!before.create("orders", &second).await);
    assert_eq!(before.identity(&first).await, Some(identity));

    // After a rotation, the new key identifies the same caller in the previous version. The old key is unknown to it.
    let (rotated, _) = rotate(&app, "orders", "1h");
    assert_eq!(before.identity(&rotated).await, Some(identity));
    assert_eq!(before.identity(&first).await, None);
    assert!(works(&app, &first).await);
    assert!(before.claim(identity, "b").await);
    assert!(!before.create("orders", &second).await);

    // So does a key that the previous version creates after revoking one.
    before.revoke("orders").await;
    assert!(before.create("orders", &third).await);
    assert_eq!(before.identity(&third).await, Some(identity));
    let replayed = create(&app, &third, "a", &known_request()).await;
    assert_eq!(replayed.expect(201).text, link.text);
    let (fourth, _) = rotate(&app, "orders", "0");
    assert_eq!(before.identity(&fourth).await, Some(identity));

    // And its bootstrap key.
    let bootstrap = before.identity(API_KEY).await.unwrap();
    app.create_with_key("a", &known_request()).await.expect(201);
    before.start(&key("5")).await;
    assert_eq!(before.identity(&key("5")).await, Some(bootstrap));
    assert!(!before.claim(bootstrap, "a").await, "it is taken");
    is_rejected(&app, API_KEY).await;

    // An idempotency key without a client is rejected.
    let nobody = sqlx::query(
        "INSERT INTO idempotency_keys (api_key_id, key, request_hash) VALUES (gen_random_uuid(), 'a', '')",
    );
    let error = nobody.execute(&app.pool).await.unwrap_err().to_string();
    assert!(error.contains("idempotency_keys_client"), "{error}");
    assert_eq!(app.sandbox.intents().await.len(), 2);
}
