//! A second address, `PUBLIC_LISTEN_ADDR`, for what Dojo calls.

use std::time::Duration;

use dojo_sandbox::signature;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    Answer, DOJO_KEY, TestApp, WEBHOOK_SECRET, client, eventually, new_database, program, send,
    text, within,
};

/// A service with a public address, and the base URL there.
async fn app() -> (TestApp, String) {
    let app = TestApp::with(&[("PUBLIC_LISTEN_ADDR", "127.0.0.1:0")]).await;
    let line = app.logged("listening for webhooks").await.remove(0);
    let line: Value = serde_json::from_str(&line).unwrap();
    let url = format!("http://{}", text(&line["address"]));
    (app, url)
}

fn webhook(url: &str, path: &str, body: &str) -> RequestBuilder {
    client()
        .post(format!("{url}{path}"))
        .header(
            "dojo-signature",
            signature::sign(WEBHOOK_SECRET, body.as_bytes()),
        )
        .body(body.to_owned())
}

async fn get(url: &str, path: &str) -> Answer {
    send(client().get(format!("{url}{path}"))).await
}

#[tokio::test]
async fn webhooks_are_served_on_the_public_address_and_everything_else_on_the_other() {
    let (app, public) = app().await;
    app.sandbox.send_webhooks_to(&public).await;
    let link = app.created().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.link_with_status(&link["id"], "Captured").await;
    assert!(app.stored_webhooks().await > 0);

    for path in ["/webhooks/dojo", "/webhooks/dojo/leeds"] {
        let answer = send(webhook(&app.service.url, path, "{}")).await;
        answer.problem(404, "not-found");
    }
    let unknown_account = send(webhook(&public, "/webhooks/dojo/leeds", "{}")).await;
    unknown_account.problem(401, "bad-signature");

    let link = format!("/v1/payment-links/{}", text(&link["id"]));
    for path in [
        "/readyz",
        "/metrics",
        "/docs",
        "/docs/problems",
        "/openapi.yaml",
        "/v1/payment-links",
        "/v1/operations",
        "/v1/movements",
        "/v1/reconciliations/2026-11-22",
        link.as_str(),
    ] {
        app.get(path).await.expect(200);
        get(&public, path).await.problem(404, "not-found");
    }
    for url in [&app.service.url, &public] {
        assert_eq!(get(url, "/healthz").await.expect(200).text, "ok");
    }
}

#[tokio::test]
async fn the_public_address_has_the_same_limits_and_log() {
    let (app, public) = app().await;
    let large = "x".repeat(300 * 1024);
    send(webhook(&public, "/webhooks/dojo", &large))
        .await
        .problem(413, "body-too-large");
    let head = client()
        .get(format!("{public}/healthz"))
        .header("x-large", "x".repeat(64 * 1024));
    let refused = head.send().await;
    assert!(refused.is_err() || refused.is_ok_and(|answer| answer.status() == 431));

    let body = json!({"id": "evt_1", "event": "payment_intent.created", "data": {}}).to_string();
    let answer = send(webhook(&public, "/webhooks/dojo", &body))
        .await
        .expect(204);
    let id = answer.header("x-request-id").to_owned();
    let line = eventually("the request is logged", async || {
        let log = app.service.log();
        let mut lines = log.lines().filter(|line| line.contains(&id));
        let line = lines.find(|line| line.contains("request completed"));
        line.map(str::to_owned)
    })
    .await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["span"]["route"], "/webhooks/dojo");
    assert_eq!(line["status"], 204);
    let metrics = app.get("/metrics").await.text;
    let counted = r#"http_requests_total{method="POST",route="/webhooks/dojo",status="204"} 1"#;
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn on_sigterm_a_webhook_in_flight_is_stored_and_both_addresses_close() {
    let (mut app, public) = app().await;
    let body = json!({"id": "evt_1", "event": "payment_intent.created",
        "data": {"paymentIntentId": "pi_1", "paymentStatus": "Created"}})
    .to_string();
    let head = format!(
        "POST /webhooks/dojo HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\ndojo-signature: {}\r\n\
         expect: 100-continue\r\n\r\n",
        body.len(),
        signature::sign(WEBHOOK_SECRET, body.as_bytes())
    );
    let address = public.trim_start_matches("http://");
    let mut webhook = TcpStream::connect(address).await.unwrap();
    webhook.write_all(head.as_bytes()).await.unwrap();
    // This response comes when the service begins to read the body.
    let mut begun = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    let reading = webhook.read_exact(&mut begun);
    within(Duration::from_secs(20), "the body is read", reading)
        .await
        .unwrap();
    assert!(begun.starts_with(b"HTTP/1.1 100 "), "{begun:?}");

    app.service.terminate();
    for url in [&app.service.url, &public] {
        let address = url.trim_start_matches("http://");
        eventually("it accepts no more connections", async || {
            TcpStream::connect(address).await.is_err().then_some(())
        })
        .await;
    }
    webhook.write_all(body.as_bytes()).await.unwrap();
    let mut response = String::new();
    let reading = webhook.read_to_string(&mut response);
    within(Duration::from_secs(20), "the response comes", reading)
        .await
        .unwrap();
    assert!(response.starts_with("HTTP/1.1 204"), "{response}");
    assert!(app.service.ended().await.success());
    assert_eq!(app.stored_webhooks().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_cannot_be_used_is_named() {
    let (app, public) = app().await;
    let taken = public.trim_start_matches("http://").to_owned();
    let start = |command: &str, listen: &str, public: &str, database: &str| {
        let output = program()
            .arg(command)
            .env("DATABASE_URL", database)
            .env("DOJO_API_KEY", DOJO_KEY)
            .env("DOJO_API_URL", "http://127.0.0.1:9")
            .env("LISTEN_ADDR", listen)
            .env("PUBLIC_LISTEN_ADDR", public)
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let log = start("serve", "127.0.0.1:0", &taken, &app.database_url);
    let problem = format!(
        "PUBLIC_LISTEN_ADDR {taken} is in use: stop the process that listens there or choose another address"
    );
    assert!(log.contains(&problem), "{log}");

    for (listen, public) in [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("0.0.0.0:8080", "127.0.0.1:8080"),
        ("127.0.0.1:8080", "[::]:8080"),
    ] {
        let problem = format!(
            "PUBLIC_LISTEN_ADDR {public} overlaps with LISTEN_ADDR {listen}: choose another port"
        );
        for command in ["serve", "check"] {
            let log = start(command, listen, public, "postgres://127.0.0.1:9/none");
            assert!(log.contains(&problem), "{log}");
        }
    }
}

#[tokio::test]
async fn an_empty_public_address_counts_as_not_set() {
    let app = TestApp::on(new_database().await, &[("PUBLIC_LISTEN_ADDR", "")]).await;
    app.deliver("{}").await.expect(204);
    let request = app.anonymous(Method::GET, "/readyz");
    send(request).await.expect(200);
}
