//! Sending a link to its customer by email: once, whatever the mail server does.

use std::fs;

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::Method;
use serde_json::{Value, json};

#[cfg(target_os = "linux")]
use crate::support::tls;
use crate::{
    browser::Browser,
    commands::create_api_key,
    subscriptions::operate,
    support::{
        API_KEY, Answer, DOJO_KEY, QUICK, Service, TestApp, WEBHOOK_SECRET, eventually,
        mail::{MailServer, header},
        program, send, ten_pounds, text,
    },
};

/// What else `check` needs.
#[cfg(target_os = "linux")]
const FROM: (&str, &str) = ("MAIL_FROM", "pay@theatre.example");

/// An app that sends its emails to this server, with background jobs.
async fn app(server: &MailServer, more: &[(&str, &str)]) -> TestApp {
    let mail = server.settings();
    let mail: Vec<_> = mail
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    TestApp::with(&[&QUICK[..], &mail, more].concat()).await
}

impl TestApp {
    async fn send_message(&self, link: &Value, key: &str, body: &Value) -> Answer {
        let path = format!("/v1/payment-links/{}/messages", text(&link["id"]));
        let request = self.request(Method::POST, &path);
        send(request.header("idempotency-key", key).json(body)).await
    }

    /// Sends the link to this address.
    async fn email(&self, link: &Value, to: &str) -> Value {
        let body = json!({"channel": "email", "to": to});
        self.send_message(link, to, &body).await.expect(201).json()
    }

    async fn message(&self, message: &Value) -> Value {
        let (link, id) = (text(&message["paymentLinkId"]), text(&message["id"]));
        let path = format!("/v1/payment-links/{link}/messages/{id}");
        self.get(&path).await.expect(200).json()
    }

    /// All messages about a link.
    pub async fn messages(&self, link: &Value) -> Vec<Value> {
        let path = format!("/v1/payment-links/{}/messages", text(&link["id"]));
        let page = self.get(&path).await.expect(200).json();
        page["data"].as_array().unwrap().clone()
    }

    /// Waits until the message has this status.
    async fn message_with_status(&self, message: &Value, status: &str) -> Value {
        eventually(&format!("the message is {status}"), async || {
            let message = self.message(message).await;
            (message["status"] == status).then_some(message)
        })
        .await
    }

    /// The types of the timeline's entries about messages.
    async fn timeline_of_messages(&self, link: &Value) -> Vec<Value> {
        let mut timeline = self.timeline(&link["id"]).await;
        timeline.retain(|entry| text(&entry["type"]).starts_with("message"));
        timeline
    }
}

/// Makes every message that waits due now.
async fn make_due(app: &TestApp) {
    sqlx::query(
        "UPDATE messages SET due_at = now() WHERE due_at IS NOT NULL AND leased_until IS NULL",
    )
    .execute(&app.pool)
    .await
    .unwrap();
}

/// What a phone reads from the QR code of a message.
fn scanned(message: &Value) -> String {
    let image = STANDARD.decode(text(&message["image"])).unwrap();
    let mut decoder = png::Decoder::new(std::io::Cursor::new(image));
    decoder.set_transformations(png::Transformations::EXPAND);
    let mut reader = decoder.read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let width = reader.next_frame(&mut pixels).unwrap().width as usize;
    let grey = |x, y| pixels[y * width + x];
    let mut picture = rqrr::PreparedImage::prepare_from_greyscale(width, width, grey);
    picture.detect_grids()[0].decode().unwrap().1
}

#[tokio::test]
async fn a_message_is_sent_once_and_shows_everything_about_the_payment() {
    let server = MailServer::start().await;
    let more = [
        ("SHORT_URL_BASE", "https://pay.example.com"),
        ("MERCHANT_NAME", "The Old Theatre"),
        ("MERCHANT_CONTACT", "boxoffice@theatre.example"),
        ("MAIL_REPLY_TO", "boxoffice@theatre.example"),
    ];
    let app = app(&server, &more).await;
    let mut request = ten_pounds("Order 1");
    request["description"] = json!("Two tickets");
    request["customer"] = json!({"emailAddress": "ann@example.com"});
    request["expireAt"] = json!("2099-12-31T12:00:00Z");
    let link = app.create(&request).await.expect(201).json();

    // Without an address, it goes to the customer's.
    let body = json!({"channel": "email", "note": "See you soon,\nthe theatre", "locale": "en-GB"});
    let answer = app
        .send_message(&link, "message-1", &body)
        .await
        .expect(201);
    let message = answer.json();
    assert!(text(&message["id"]).starts_with("msg_"));
    assert_eq!(message["to"], "ann@example.com");
    assert_eq!(message["purpose"], "request");
    let path = format!(
        "/v1/payment-links/{}/messages/{}",
        text(&link["id"]),
        text(&message["id"])
    );
    assert_eq!(answer.header("location"), path);
    let sent = app.message_with_status(&message, "Sent").await;
    assert_eq!(sent["attempts"], 1);
    assert!(sent["completedAt"].is_string() && sent["failure"].is_null());

    let received = server.received(1).await;
    let [email] = received.as_slice() else {
        panic!("{received:?}");
    };
    assert_eq!(email["from"], "pay@theatre.example");
    assert_eq!(email["to"], json!(["ann@example.com"]));
    assert_eq!(header(email, "from"), "The Theatre <pay@theatre.example>");
    assert_eq!(header(email, "to"), "ann@example.com");
    assert_eq!(header(email, "reply-to"), "boxoffice@theatre.example");
    assert_eq!(
        header(email, "subject"),
        "[Test] Payment request from The Old Theatre: Order 1"
    );
    assert_eq!(
        header(email, "message-id"),
        format!("<{}@theatre.example>", text(&message["id"]))
    );
    assert_eq!(header(email, "auto-submitted"), "auto-generated");
    assert_eq!(
        email["types"],
        json!([
            "multipart/alternative",
            "text/plain",
            "multipart/related",
            "text/html",
            "image/png"
        ])
    );
    for part in ["text", "html"] {
        for words in [
            "£10.00",
            "The Old Theatre",
            "Two tickets",
            "Order 1",
            "See you soon,",
            "the theatre",
            text(&link["shortUrl"]),
            "31 December 2099",
            "boxoffice@theatre.example",
            "This is a test.",
        ] {
            assert!(
                text(&email[part]).replace("&#x2f;", "/").contains(words),
                "{words} in {part}: {}",
                email[part]
            );
        }
    }
    assert_eq!(scanned(email), text(&link["shortUrl"]));
    let image = text(&email["imageId"]).trim_matches(['<', '>']);
    assert!(text(&email["html"]).contains(&format!("src=\"cid:{image}\"")));

    // A repetition sends nothing, whatever has become of the link.
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.link_with_status(&link["id"], "Captured").await;
    let again = app
        .send_message(&link, "message-1", &body)
        .await
        .expect(201);
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.json(), app.message(&message).await);
    app.send_message(&link, "message-1", &json!({"channel": "email"}))
        .await
        .problem(422, "idempotency-key-reused");
    let problem = app
        .send_message(&link, "message-2", &body)
        .await
        .problem(409, "not-payable");
    assert!(text(&problem["detail"]).contains("paid"), "{problem}");
    assert_eq!(app.messages(&link).await.len(), 1);
    assert_eq!(server.messages().len(), 1);

    let timeline = app.timeline_of_messages(&link).await;
    let [requested, outcome] = timeline.as_slice() else {
        panic!("{timeline:?}");
    };
    assert_eq!(requested["type"], "messageRequested");
    assert_eq!(requested["cause"]["type"], "request");
    assert_eq!(outcome["type"], "messageSent");
    assert_eq!(outcome["cause"]["type"], "delivery");
    assert_eq!(
        outcome["detail"],
        json!({"messageId": message["id"], "channel": "email", "purpose": "request"})
    );
    let whole = serde_json::to_string(&app.timeline(&link["id"]).await).unwrap();
    assert!(!whole.contains("ann@example.com") && !app.service.log().contains("ann@example.com"));
}

#[tokio::test]
async fn a_request_that_cannot_be_met_says_everything_that_is_wrong() {
    let server = MailServer::start().await;
    let app = app(&server, &[]).await;
    let link = app.created().await;
    let body = json!({"channel": "pigeon", "to": "ann@example.com\r\nBcc: bob@example.com", "locale": "e n", "note": "", "x": 1});
    let problem = app
        .send_message(&link, "1", &body)
        .await
        .problem(422, "invalid-request");
    let pointers: Vec<_> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| text(&error["pointer"]))
        .collect();
    for pointer in ["/channel", "/to", "/locale", "/note", "/x"] {
        assert!(pointers.contains(&pointer), "{pointer} in {problem}");
    }
    // The link has no customer.
    let problem = app
        .send_message(&link, "2", &json!({"channel": "email"}))
        .await
        .problem(422, "invalid-request");
    assert_eq!(problem["errors"][0]["pointer"], "/to");
    // The key is required, and so is the scope.
    let path = format!("/v1/payment-links/{}/messages", text(&link["id"]));
    let body = json!({"channel": "email", "to": "ann@example.com"});
    let problem = send(app.request(Method::POST, &path).json(&body))
        .await
        .problem(422, "invalid-request");
    assert_eq!(problem["errors"][0]["pointer"], "Idempotency-Key");
    let key = create_api_key(&app, "other", "links:read,links:write");
    let as_other = |path: &str, body: &Value| {
        let request = app.anonymous(Method::POST, path).bearer_auth(&key);
        send(request.header("idempotency-key", "other").json(body))
    };
    let problem = as_other(&path, &body).await.problem(403, "forbidden");
    assert!(text(&problem["detail"]).contains("links:send"));
    let mut new = ten_pounds("Order 2");
    new["send"] = json!({"email": "ann@example.com"});
    as_other("/v1/payment-links", &new)
        .await
        .problem(403, "forbidden");
    app.send_message(
        &json!({"id": "plink_01kaz8v4wce7q8m6s5gq9nq2fd"}),
        "3",
        &body,
    )
    .await
    .problem(404, "not-found");
    app.get(&format!("{path}/msg_01kaz8v4wce7q8m6s5gq9nq2fd"))
        .await
        .problem(404, "not-found");
    assert!(app.messages(&link).await.is_empty());

    let silent = TestApp::start().await;
    let link = silent.created().await;
    let problem = silent
        .send_message(&link, "4", &body)
        .await
        .problem(422, "invalid-request");
    assert_eq!(problem["errors"][0]["pointer"], "/channel");
    let problem = silent.create(&new).await.problem(422, "invalid-request");
    assert_eq!(problem["errors"][0]["pointer"], "/send");
}

#[tokio::test]
async fn a_mail_server_that_is_busy_or_gone_gets_the_message_later() {
    let mut server = MailServer::start().await;
    let app = app(&server, &[]).await;
    let link = app.created().await;
    let twice = app.email(&link, "twice.ann@example.com").await;
    let later = app.email(&link, "later.ann@example.com").await;
    server.stop();
    let gone = app.email(&link, "ann@example.com").await;
    eventually("the first attempts have failed", async || {
        let messages = app.messages(&link).await;
        messages
            .iter()
            .all(|message| message["failure"].is_string())
            .then_some(())
    })
    .await;
    for message in app.messages(&link).await {
        assert_eq!(message["status"], "Pending");
        assert!(!text(&message["failure"]).contains("ann@"), "{message}");
    }
    server.resume().await;
    eventually("what can be sent is sent", async || {
        make_due(&app).await;
        let sent = [app.message(&twice).await, app.message(&gone).await];
        sent.iter()
            .all(|message| message["status"] == "Sent")
            .then_some(())
    })
    .await;
    assert_eq!(app.message(&later).await["status"], "Pending");
    assert!(app.message(&later).await["attempts"].as_i64() >= Some(1));
    let mut to: Vec<_> = server
        .messages()
        .into_iter()
        .map(|email| text(&email["to"][0]).to_owned())
        .collect();
    to.sort();
    assert_eq!(to, ["ann@example.com", "twice.ann@example.com"]);

    // After a day it is given up.
    sqlx::query("UPDATE messages SET created_at = created_at - interval '25 hours'")
        .execute(&app.pool)
        .await
        .unwrap();
    let failed = eventually("the last message is given up", async || {
        make_due(&app).await;
        let message = app.message(&later).await;
        (message["status"] == "Failed").then_some(message)
    })
    .await;
    assert!(text(&failed["failure"]).contains("451"), "{failed}");
}

#[tokio::test]
async fn a_refused_message_is_not_sent_again_and_no_address_is_disclosed() {
    let server = MailServer::start().await;
    let app = app(&server, &[]).await;
    let link = app.created().await;
    for (to, words) in [
        ("unknown.ann@example.com", "refused the recipient (550)"),
        ("never.ann@example.com", "refused the message (554)"),
    ] {
        let message = app.email(&link, to).await;
        let failed = app.message_with_status(&message, "Failed").await;
        assert!(text(&failed["failure"]).contains(words), "{failed}");
    }
    assert!(server.messages().is_empty());
    let timeline = app.timeline_of_messages(&link).await;
    let failed: Vec<_> = timeline
        .iter()
        .filter(|entry| entry["type"] == "messageFailed")
        .collect();
    assert_eq!(failed.len(), 2);
    assert!(text(&failed[0]["detail"]["reason"]).contains("550"));
    let whole = serde_json::to_string(&timeline).unwrap() + &app.service.log();
    assert!(!whole.contains("ann@example.com"));
}

#[tokio::test]
async fn a_message_whose_response_is_lost_is_unknown_and_never_sent_again() {
    let server = MailServer::start().await;
    let app = app(&server, &[]).await;
    let link = app.created().await;
    let mut messages = Vec::new();
    for to in [
        "stall.ann@example.com",
        "cut.ann@example.com",
        "garbled.ann@example.com",
    ] {
        messages.push(app.email(&link, to).await);
    }
    for message in &messages {
        let unknown = app.message_with_status(message, "Unknown").await;
        assert_eq!(unknown["attempts"], 1);
        assert!(unknown["failure"].is_string());
    }
    make_due(&app).await;
    // Later messages are sent, and these are not.
    let last = app.email(&link, "ann@example.com").await;
    app.message_with_status(&last, "Sent").await;
    assert_eq!(server.messages().len(), 4);
    let timeline = app.timeline_of_messages(&link).await;
    let unknown = timeline
        .iter()
        .filter(|entry| entry["type"] == "messageUnknown");
    assert_eq!(unknown.count(), 3);
}

#[tokio::test]
async fn a_replica_that_dies_while_it_sends_leaves_an_unknown_message() {
    let server = MailServer::start().await;
    let mut app = app(&server, &[("SMTP_TIMEOUT", "2s")]).await;
    let link = app.created().await;
    server.set_mode("stall");
    let message = app.email(&link, "ann@example.com").await;
    server.received(1).await;
    app.service.kill().await;
    server.set_mode("");
    app.restart().await;
    let unknown = app.message_with_status(&message, "Unknown").await;
    assert!(
        text(&unknown["failure"]).contains("failed before"),
        "{unknown}"
    );
    assert_eq!(server.messages().len(), 1);
}

#[tokio::test]
async fn a_link_that_is_paid_in_the_meantime_is_not_sent() {
    let mut server = MailServer::start().await;
    let app = app(&server, &[]).await;
    let link = app.created().await;
    server.stop();
    let message = app.email(&link, "ann@example.com").await;
    // Dojo's webhook about it is lost.
    app.sandbox.drop_webhooks().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    // Dojo confirmed the link long ago.
    sqlx::query("UPDATE payment_links SET synced_at = synced_at - interval '10 minutes'")
        .execute(&app.pool)
        .await
        .unwrap();
    server.resume().await;
    let canceled = eventually("the message is canceled", async || {
        make_due(&app).await;
        let message = app.message(&message).await;
        (message["status"] == "Canceled").then_some(message)
    })
    .await;
    assert!(text(&canceled["failure"]).contains("paid"), "{canceled}");
    assert!(server.messages().is_empty());
    assert_eq!(app.link(&link["id"]).await["status"], "Captured");
}

#[tokio::test]
async fn no_text_of_a_caller_becomes_a_header_or_markup() {
    let server = MailServer::start().await;
    let app = app(&server, &[("MERCHANT_NAME", "Smith & <b>Sons</b>")]).await;
    let mut request = ten_pounds("Order\r\nBcc: bob@example.com\r\n\r\n<script>x</script>");
    request["description"] = json!("\r\n.\r\nMAIL FROM:<bob@example.com>\r\n<img src=x>");
    let link = app.create(&request).await.expect(201).json();
    let body = json!({"channel": "email", "to": "ann@example.com", "note": "Bcc: bob@example.com\r\n.\r\n<i>note</i>"});
    let message = app.send_message(&link, "1", &body).await.expect(201).json();
    app.message_with_status(&message, "Sent").await;
    let received = server.received(1).await;
    let [email] = received.as_slice() else {
        panic!("{received:?}");
    };
    assert_eq!(email["to"], json!(["ann@example.com"]));
    let names: Vec<_> = email["headers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|header| text(&header[0]).to_lowercase())
        .collect();
    assert!(!names.contains(&"bcc".to_owned()), "{names:?}");
    let html = text(&email["html"]);
    for markup in ["<script>", "<img src=x>", "<i>", "<b>"] {
        assert!(!html.contains(markup), "{markup} in {html}");
    }
    assert!(text(&email["text"]).contains("MAIL FROM:<bob@example.com>"));
}

#[tokio::test]
async fn each_account_has_its_own_sender() {
    let server = MailServer::start().await;
    let file = std::env::temp_dir().join(format!("accounts-mail-{}.toml", server.port));
    fs::write(
        &file,
        format!(
            "[accounts.leeds]\nenvironment = \"sandbox\"\napi_key = \"{}\"\nmerchant_name = \"Leeds\"\n\
             mail_from = \"Leeds <leeds@theatre.example>\"\nmail_reply_to = \"box@leeds.example\"\nbrand_color = \"#ffdd00\"\n",
            crate::support::LEEDS_KEY
        ),
    )
    .unwrap();
    let app = app(&server, &[("DOJO_ACCOUNTS_FILE", file.to_str().unwrap())]).await;
    let mut request = ten_pounds("Order 1");
    request["account"] = json!("leeds");
    let link = app.create(&request).await.expect(201).json();
    let message = app.email(&link, "ann@example.com").await;
    app.message_with_status(&message, "Sent").await;
    let email = &server.received(1).await[0];
    assert_eq!(header(email, "from"), "Leeds <leeds@theatre.example>");
    assert_eq!(header(email, "reply-to"), "box@leeds.example");
    assert!(header(email, "message-id").ends_with("@theatre.example>"));
    let html = text(&email["html"]);
    assert!(
        html.contains("background-color:#ffdd00;color:#000000"),
        "{html}"
    );
    fs::remove_file(file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn check_connects_to_the_mail_server_and_sends_nothing() {
    let server = MailServer::start().await;
    let app = app(&server, &[]).await;
    let settings = server.settings();
    let settings: Vec<_> = settings
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    // Even if it accepts no emails.
    server.set_mode("busy");
    let checked = operate(&app, &["check"], &settings).await.success();
    let line = format!(
        "connected to 127.0.0.1, port {}, without encryption; no password is set; no email was sent",
        server.port
    );
    assert!(checked.stdout.contains(&line), "{}", checked.stdout);
    assert!(server.messages().is_empty());
}

// On other systems, trusting a certificate takes more than a variable.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_sent_only_over_an_encrypted_connection_to_the_right_server() {
    let folder = std::env::temp_dir().join(format!("dojo-mail-tls-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let files = tls::certificate(&folder);
    let server = MailServer::with(&files).await;
    let url = format!("smtp://pay:hush@127.0.0.1:{}", server.port);
    // Reading the system's certificates takes a while on a busy machine.
    let patient = ("SMTP_TIMEOUT", "30s");
    let trusted = [
        ("SMTP_URL", url.as_str()),
        ("SSL_CERT_FILE", files[0].to_str().unwrap()),
        patient,
    ];
    let app = app(&server, &trusted).await;
    let link = app.created().await;
    let message = app.email(&link, "ann@example.com").await;
    app.message_with_status(&message, "Sent").await;

    let checked = operate(&app, &["check"], &[trusted[0], trusted[1], FROM]).await;
    let accepted = "with STARTTLS; it accepts the password; no email was sent";
    assert!(checked.success().stdout.contains(accepted));

    // A certificate that nobody trusts, a wrong password, and a server without TLS.
    let plain = MailServer::start().await;
    let wrong = format!("smtp://pay:wrong@127.0.0.1:{}", server.port);
    let without = format!("smtp://pay:hush@127.0.0.1:{}", plain.port);
    for (settings, words) in [
        (&[("SMTP_URL", url.as_str()), patient][..], "STARTTLS"),
        (
            &[("SMTP_URL", wrong.as_str()), trusted[1], patient][..],
            "authentication",
        ),
        (
            &[("SMTP_URL", without.as_str()), trusted[1], patient][..],
            "STARTTLS",
        ),
    ] {
        let app = self::app(&server, settings).await;
        let link = app.created().await;
        let message = app.email(&link, "ann@example.com").await;
        let failure = eventually("the attempt fails", async || {
            app.message(&message).await["failure"]
                .as_str()
                .map(str::to_owned)
        })
        .await;
        assert!(
            failure.contains(words) && !failure.contains("hush"),
            "{failure}"
        );
        let checked = operate(&app, &["check"], &[settings, &[FROM]].concat()).await;
        let mut lines = checked.stdout.lines();
        let failed = lines.find(|line| line.starts_with("✘ mail-server"));
        let failed = failed.unwrap();
        assert!(
            failed.contains(words) && !failed.contains("hush") && !failed.contains("wrong"),
            "{failed}"
        );
    }
    assert_eq!(server.messages().len(), 1);
    assert!(plain.messages().is_empty());
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn an_operators_templates_are_used_and_validated_at_the_start() {
    let server = MailServer::start().await;
    let folder = std::env::temp_dir().join(format!("dojo-templates-{}", server.port));
    fs::create_dir_all(folder.join("en")).unwrap();
    fs::write(
        folder.join("en/subject.txt"),
        "{% if reminder %}Again: {% endif %}Pay {{ amount }}",
    )
    .unwrap();
    fs::write(folder.join("en/body.txt"), "{{ url }} for {{ reference }}").unwrap();
    fs::write(
        folder.join("en/body.html"),
        "<p>{{ url }} {% include 'en/footer.html' %}",
    )
    .unwrap();
    fs::write(folder.join("en/footer.html"), "<small>{{ contact }}").unwrap();
    let app = app(
        &server,
        &[
            ("MAIL_TEMPLATES", folder.to_str().unwrap()),
            ("MERCHANT_CONTACT", "call us"),
        ],
    )
    .await;
    let link = app.created().await;
    let message = app.email(&link, "ann@example.com").await;
    app.message_with_status(&message, "Sent").await;
    let email = &server.received(1).await[0];
    assert_eq!(header(email, "subject"), "Pay £10.00");
    assert!(text(&email["html"]).contains("<small>call us"));

    fs::write(folder.join("en/footer.html"), "<small>{{ contat }}").unwrap();
    let output = program()
        .args(["serve", "--mail-templates", folder.to_str().unwrap()])
        .env("DATABASE_URL", &app.database_url)
        .env("DOJO_API_KEY", DOJO_KEY)
        .env("DOJO_WEBHOOK_SECRETS", WEBHOOK_SECRET)
        .env("BOOTSTRAP_API_KEY", API_KEY)
        .env("SMTP_URL", "smtp://mail.example.com")
        .env("BRAND_COLOR", "#123456")
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for words in [
        "MAIL_TEMPLATES",
        "en/footer.html:1",
        "MAIL_FROM is required",
    ] {
        assert!(message.contains(words), "{words} in {message}");
    }
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn an_erased_link_keeps_no_address_and_nothing_is_sent_again() {
    let server = MailServer::start().await;
    let app = app(&server, &[]).await;
    let mut request = ten_pounds("Order 1");
    request["send"] = json!({"email": "ann@example.com", "note": "Dear Ann"});
    let link = app.create(&request).await.expect(201).json();
    let body = json!({"channel": "email", "to": "ann@example.com", "note": "Dear Ann"});
    let message = app.send_message(&link, "1", &body).await.expect(201).json();
    app.message_with_status(&message, "Sent").await;
    server.received(2).await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    eventually("the payment is confirmed", async || {
        let link = app.link(&link["id"]).await;
        (link["status"] == "Captured" && link["confirmed"] == true).then_some(())
    })
    .await;

    let path = format!("/v1/payment-links/{}/erase", text(&link["id"]));
    let erased = send(app.request(Method::POST, &path))
        .await
        .expect(200)
        .json();
    assert!(erased.get("send").is_none(), "{erased}");
    for message in app.messages(&link).await {
        assert_eq!(message["status"], "Sent");
        assert_eq!(
            (&message["to"], &message["note"]),
            (&Value::Null, &Value::Null)
        );
    }
    app.send_message(&link, "1", &body)
        .await
        .problem(410, "erased");
    app.send_message(&link, "2", &body)
        .await
        .problem(409, "not-payable");
    assert_eq!(server.messages().len(), 2);
}

/// Nobody may be left waiting for a mail server that never comes.
#[tokio::test]
async fn what_was_to_be_sent_is_given_up_after_a_day_or_when_the_link_is_erased() {
    let mut server = MailServer::start().await;
    let mut app = app(&server, &[]).await;
    let link = app.created().await;
    server.stop();
    let old = app.email(&link, "ann@example.com").await;
    sqlx::query("UPDATE messages SET created_at = created_at - interval '25 hours'")
        .execute(&app.pool)
        .await
        .unwrap();
    // The service comes back without a mail server, and then with one.
    app.service.kill().await;
    let without = app.another(&[]).await;
    let failed = eventually("the old message is given up", async || {
        make_due(&app).await;
        let status: String = sqlx::query_scalar("SELECT status FROM messages")
            .fetch_one(&app.pool)
            .await
            .unwrap();
        (status == "Failed").then_some(())
    })
    .await;
    drop((failed, without));
    server.resume().await;
    app.restart().await;
    let sent = app.email(&link, "bob@example.com").await;
    app.message_with_status(&sent, "Sent").await;
    assert_eq!(app.message(&old).await["status"], "Failed");
    assert_eq!(server.messages().len(), 1);

    // Messages that still wait when the link is erased are ended with it: one that may have been sent, and one that wasn't.
    app.service.kill().await;
    let waiting = "INSERT INTO messages
        (id, payment_link_id, account, channel, purpose, recipient, locale, status, created_by, due_at, handed_over_at)
        SELECT gen_random_uuid(), id, account, 'email', 'request', 'ann@example.com', 'en', 'Pending', 'orders',
               now() + interval '1 hour', CASE WHEN n = 1 THEN now() END
        FROM payment_links, generate_series(1, 2) AS n";
    sqlx::query(waiting).execute(&app.pool).await.unwrap();
    app.restart().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    eventually("the payment is confirmed", async || {
        let path = format!("/v1/payment-links/{}/refresh", text(&link["id"]));
        let link = send(app.request(Method::POST, &path))
            .await
            .expect(200)
            .json();
        (link["status"] == "Captured" && link["confirmed"] == true).then_some(())
    })
    .await;
    let path = format!("/v1/payment-links/{}/erase", text(&link["id"]));
    send(app.request(Method::POST, &path)).await.expect(200);
    let messages = app.messages(&link).await;
    let mut statuses: Vec<_> = messages
        .iter()
        .map(|message| text(&message["status"]))
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, ["Canceled", "Failed", "Sent", "Unknown"]);
    assert!(messages.iter().all(|message| message["to"].is_null()));
    let timeline = app.timeline_of_messages(&link).await;
    for kind in ["messageCanceled", "messageUnknown"] {
        let told = timeline.iter().filter(|entry| entry["type"] == kind);
        assert_eq!(told.count(), 1, "{kind}");
    }
    assert_eq!(server.messages().len(), 1);
}

#[tokio::test]
async fn an_email_fits_a_phone_and_shows_its_qr_code() {
    let server = MailServer::start().await;
    let app = app(&server, &[("MERCHANT_NAME", "The Old Theatre")]).await;
    let mut request = ten_pounds("Order 1");
    request["description"] = json!("x".repeat(200));
    let link = app.create(&request).await.expect(201).json();
    app.email(&link, "ann@example.com").await;
    let email = &server.received(1).await[0];
    let image = format!("data:image/png;base64,{}", text(&email["image"]));
    let html = text(&email["html"]).replace("cid:qr", &image);
    let file = std::env::temp_dir().join(format!("email-{}.html", server.port));
    fs::write(&file, html).unwrap();

    let browser = Browser::open_on_phone(&json!(format!("file://{}", file.display()))).await;
    browser.says("Pay £10.00").await;
    let wide = "return document.documentElement.scrollWidth - window.innerWidth";
    let wide = browser.page.execute(wide, Vec::new()).await.unwrap();
    assert_eq!(wide, json!(0));
    let image = "const image = document.querySelector('img'); return [image.naturalWidth >= 400, image.alt !== '']";
    let image = browser.page.execute(image, Vec::new()).await.unwrap();
    assert_eq!(image, json!([true, true]));
    browser.close().await;
    fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn several_replicas_send_each_message_once() {
    let server = MailServer::start().await;
    let app = app(&server, &[]).await;
    let settings = server.settings();
    let settings: Vec<_> = QUICK
        .into_iter()
        .chain(settings.iter().map(|(name, value)| (*name, value.as_str())))
        .collect();
    let _second = Service::start(&app.database_url, &app.sandbox.url, &settings).await;
    let _third = Service::start(&app.database_url, &app.sandbox.url, &settings).await;
    let link = app.created().await;
    for n in 0..30 {
        app.email(&link, &format!("ann{n}@example.com")).await;
    }
    eventually("all are sent", async || {
        let messages = app.messages(&link).await;
        messages
            .iter()
            .all(|message| message["status"] == "Sent")
            .then_some(())
    })
    .await;
    let mut to: Vec<_> = server
        .messages()
        .into_iter()
        .map(|email| text(&email["to"][0]).to_owned())
        .collect();
    assert_eq!(to.len(), 30);
    to.sort();
    to.dedup();
    assert_eq!(to.len(), 30);
}
