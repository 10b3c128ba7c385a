//! Reminding customers of links that nobody has paid.

use reqwest::Method;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use crate::support::{
    QUICK, TestApp, eventually,
    mail::{MailServer, header},
    send, ten_pounds, text,
};

/// An app with background jobs that sends its emails to this server.
async fn app(server: &MailServer) -> TestApp {
    let mail = server.settings();
    let mail: Vec<_> = mail
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    TestApp::with(&[&QUICK[..], &mail].concat()).await
}

fn request(reminders: Value) -> Value {
    let mut request = ten_pounds("Order 1");
    request["send"] = json!({"email": "ann@example.com", "note": "Thank you."});
    request["reminders"] = reminders;
    request
}

/// Makes reminders due, as if time had passed.
async fn make_due(app: &TestApp, numbers: &[i16]) {
    sqlx::query("UPDATE reminders SET due_at = now() - interval '1 second' WHERE number = ANY($1)")
        .bind(numbers)
        .execute(&app.pool)
        .await
        .unwrap();
}

/// When the reminders that are still to come are due.
async fn due(app: &TestApp) -> Vec<OffsetDateTime> {
    sqlx::query_scalar("SELECT due_at FROM reminders ORDER BY number")
        .fetch_all(&app.pool)
        .await
        .unwrap()
}

/// The events about reminders.
async fn events(app: &TestApp) -> Vec<Value> {
    let page = app
        .get("/v1/events?types=payment_link.reminder_due")
        .await
        .expect(200)
        .json();
    page["data"].as_array().unwrap().clone()
}

fn time_of(value: &Value) -> OffsetDateTime {
    OffsetDateTime::parse(text(value), &Rfc3339).unwrap()
}

#[tokio::test]
async fn a_customer_gets_the_link_and_reminders_until_it_is_paid() {
    let server = MailServer::start().await;
    let app = app(&server).await;
    let reminders = json!([{"after": "P3D"}, {"beforeExpiry": "P1DT12H"}, {"after": "P60D"}]);
    let link = app
        .create(&request(reminders.clone()))
        .await
        .expect(201)
        .json();
    assert_eq!(link["reminders"], reminders);
    assert_eq!(link["send"]["email"], "ann@example.com");

    // The link itself, at once.
    let emails = server.received(1).await;
    assert_eq!(
        header(&emails[0], "subject"),
        "[Test] Payment request: Order 1"
    );
    assert!(text(&emails[0]["text"]).contains("Thank you."));
    // Dojo gets none of it.
    let creations = app.sandbox.creations().await;
    let sent = serde_json::to_string(&creations).unwrap();
    assert!(
        !sent.contains("ann@example.com") && !sent.contains("reminders"),
        "{sent}"
    );

    // The third one would come after the expiry, which Dojo sets to 30 days. It is scheduled all the same, and never given.
    let (created, expiry) = (time_of(&link["createdAt"]), time_of(&link["expireAt"]));
    let scheduled = due(&app).await;
    assert_eq!(scheduled[0], created + Duration::days(3));
    assert!((scheduled[1] - (expiry - Duration::hours(36))).abs() < Duration::milliseconds(1));

    make_due(&app, &[0]).await;
    let emails = server.received(2).await;
    assert_eq!(
        header(&emails[1], "subject"),
        "Reminder: [Test] Payment request: Order 1"
    );
    assert!(!text(&emails[1]["text"]).contains("Thank you."));
    assert_ne!(
        header(&emails[0], "message-id"),
        header(&emails[1], "message-id")
    );
    let [event] = eventually("the event is there", async || {
        <[Value; 1]>::try_from(events(&app).await).ok()
    })
    .await;
    assert_eq!(event["paymentLinkId"], link["id"]);
    let messages = app.messages(&link).await;
    let purposes: Vec<_> = messages
        .iter()
        .map(|message| text(&message["purpose"]))
        .collect();
    assert_eq!(purposes, ["creation", "reminder"]);
    assert_eq!(
        event["reminder"],
        json!({"after": "P3D", "beforeExpiry": null, "url": link["url"], "messageId": messages[1]["id"]})
    );
    assert!(!event.to_string().contains("ann@example.com"));

    // Paid, and Dojo's webhook about it is lost.
    app.sandbox.drop_webhooks().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    make_due(&app, &[1]).await;
    eventually("no reminder is left", async || {
        due(&app).await.is_empty().then_some(())
    })
    .await;
    assert_eq!(app.link(&link["id"]).await["status"], "Captured");
    assert_eq!((server.messages().len(), events(&app).await.len()), (2, 1));
    let timeline = app.timeline(&link["id"]).await;
    let types: Vec<_> = timeline.iter().map(|entry| text(&entry["type"])).collect();
    let about_messages: Vec<_> = types
        .iter()
        .filter(|kind| kind.starts_with("message") || kind.starts_with("rem"))
        .collect();
    assert_eq!(
        about_messages,
        [&"messageSent", &"reminderDue", &"messageSent"]
    );
    assert!(
        !serde_json::to_string(&timeline)
            .unwrap()
            .contains("ann@example.com")
    );
}

#[tokio::test]
async fn without_an_address_a_reminder_is_only_an_event() {
    // No emails can be sent.
    let app = TestApp::with(&QUICK).await;
    let mut new = ten_pounds("Order 1");
    new["reminders"] = json!([{"after": "PT1H"}, {"after": "PT2H"}, {"after": "PT3H"}]);
    let link = app.create(&new).await.expect(201).json();
    // Two are due at once, because the service was down for a while. They count as one.
    make_due(&app, &[0, 1]).await;
    eventually("the event is there", async || {
        (!events(&app).await.is_empty()).then_some(())
    })
    .await;
    assert_eq!(due(&app).await.len(), 1);
    make_due(&app, &[2]).await;
    let all = eventually("the next event is there", async || {
        let events = events(&app).await;
        (events.len() == 2).then_some(events)
    })
    .await;
    assert_eq!(all[1]["reminder"]["after"], "PT3H");
    assert_eq!(all[1]["reminder"]["messageId"], Value::Null);
    assert!(app.messages(&link).await.is_empty());
}

#[tokio::test]
async fn nobody_is_reminded_unless_dojo_says_that_the_link_is_unpaid() {
    let server = MailServer::start().await;
    let app = app(&server).await;
    let link = app
        .create(&request(json!([{"after": "PT1H"}])))
        .await
        .expect(201)
        .json();
    server.received(1).await;
    app.sandbox
        .control(
            "faults",
            json!({"operation": "get", "kind": "status", "status": 500, "count": 1000}),
        )
        .await;
    make_due(&app, &[0]).await;
    eventually("the attempts fail", async || {
        app.service
            .log()
            .contains("\"job\":\"reminders\"")
            .then_some(())
    })
    .await;
    assert_eq!((server.messages().len(), due(&app).await.len()), (1, 1));
    let clear = app.sandbox.url.clone() + "/_sandbox/faults";
    send(crate::support::client().delete(clear))
        .await
        .expect(204);
    server.received(2).await;
    assert_eq!(events(&app).await.len(), 1);
    assert_eq!(app.link(&link["id"]).await["status"], "Created");
}

#[tokio::test]
async fn reminders_that_make_no_sense_are_rejected() {
    let app = TestApp::start().await;
    let mut new = ten_pounds("Order 1");
    let tomorrow = OffsetDateTime::now_utc() + Duration::days(1);
    new["expireAt"] = json!(tomorrow.format(&Rfc3339).unwrap());
    new["reminders"] =
        json!([{"after": "P2D"}, {"beforeExpiry": "P1M"}, {}, {"after": "PT1H", "x": 1}]);
    let problem = app.create(&new).await.problem(422, "invalid-request");
    let errors = problem["errors"].as_array().unwrap();
    for pointer in [
        "/reminders/0/after",
        "/reminders/1/beforeExpiry",
        "/reminders/2",
        "/reminders/3/x",
    ] {
        assert!(
            errors.iter().any(|error| error["pointer"] == pointer),
            "{pointer} in {problem}"
        );
    }
    new["reminders"] = json!(vec![json!({"after": "PT1H"}); 11]);
    app.create(&new).await.problem(422, "invalid-request");
}

#[tokio::test]
async fn a_renewed_link_is_sent_only_if_the_renewal_says_so() {
    let server = MailServer::start().await;
    let app = app(&server).await;
    let old = app
        .create(&request(json!([{"after": "P3D"}])))
        .await
        .expect(201)
        .json();
    server.received(1).await;
    app.operate(&old, "cancel", &Value::Null).await.expect(200);
    let renew = async |link: &Value, key: &str, body: Value| {
        let path = format!("/v1/payment-links/{}/renew", text(&link["id"]));
        let request = app
            .request(Method::POST, &path)
            .header("idempotency-key", key);
        send(request.json(&body)).await.expect(201).json()
    };
    let silent = renew(&old, "1", json!({})).await;
    assert!(
        silent.get("send").is_none() && silent.get("reminders").is_none(),
        "{silent}"
    );
    assert!(app.messages(&silent).await.is_empty());
    app.operate(&silent, "cancel", &Value::Null)
        .await
        .expect(200);
    let body =
        json!({"send": {"email": "ann@example.com"}, "reminders": [{"beforeExpiry": "P1D"}]});
    let loud = renew(&silent, "2", body).await;
    assert_eq!(loud["reminders"], json!([{"beforeExpiry": "P1D"}]));
    let emails = server.received(2).await;
    assert!(text(&emails[1]["text"]).contains(text(&loud["url"])));
}
