//! What a customer gets: QR codes, and texts to send.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{TestApp, eventually, ten_pounds, text};

impl TestApp {
    /// What a scanner reads from the link's QR code, and the width of the image.
    async fn scanned(&self, link: &Value, query: &str) -> (String, usize) {
        let path = format!("/v1/payment-links/{}/qr.png{query}", text(&link["id"]));
        let response = self.request(Method::GET, &path).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "image/png");
        assert_eq!(response.headers()["cache-control"], "no-store");
        let image = response.bytes().await.unwrap();
        let mut decoder = png::Decoder::new(std::io::Cursor::new(image));
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let width = reader.next_frame(&mut pixels).unwrap().width as usize;
        let grey = |x, y| pixels[y * width + x];
        let mut picture = rqrr::PreparedImage::prepare_from_greyscale(width, width, grey);
        let (_, text) = picture.detect_grids()[0].decode().unwrap();
        (text, width)
    }
}

async fn pay(app: &TestApp, link: &Value) {
    app.sandbox.pay(&link["paymentIntentId"]).await;
    eventually("the payment is confirmed", async || {
        let link = app.link(&link["id"]).await;
        (link["status"] == "Captured" && link["confirmed"] == true).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_qr_code_leads_to_the_checkout_page_even_after_the_payment() {
    let app = TestApp::with(&[("RUN_JOBS", "true")]).await;
    let link = app.created().await;
    let (read, width) = app.scanned(&link, "").await;
    assert_eq!(read, text(&link["url"]));
    assert!((300..360).contains(&width), "{width}");
    let (read, width) = app.scanned(&link, "?size=1000").await;
    assert_eq!(read, text(&link["url"]));
    assert!((1000..1060).contains(&width), "{width}");

    let path = format!("/v1/payment-links/{}/qr.svg", text(&link["id"]));
    let svg = app.get(&path).await.expect(200);
    assert_eq!(svg.header("content-type"), "image/svg+xml");

    pay(&app, &link).await;
    assert_eq!(app.scanned(&link, "").await.0, text(&link["url"]));

    let problem = app.get(&format!("{path}?size=49&color=red")).await;
    let problem = problem.problem(422, "invalid-request");
    assert_eq!(
        problem["errors"][0]["detail"],
        "must be given once and be 50 to 2000"
    );
    assert_eq!(problem["errors"][1]["pointer"], "color");
    let unknown = "/v1/payment-links/plink_01m81mqpmrf8384nj77tj0t0e4/qr.svg";
    app.get(unknown).await.problem(404, "not-found");
}

#[tokio::test]
async fn a_text_asks_for_the_payment_and_is_addressed_to_the_customer() {
    let app = TestApp::start().await;
    let mut body = ten_pounds("Order 1\r\nBcc: all@example.com");
    body["description"] = json!("Two tickets & more");
    body["customer"] =
        json!({"emailAddress": "ann+tickets@example.com", "phoneNumber": "+44 7700 900123"});
    let link = app.create(&body).await.expect(201).json();
    let path = format!("/v1/payment-links/{}/share", text(&link["id"]));
    let share = app.get(&path).await.expect(200).json();
    let url = text(&link["url"]);
    assert_eq!(share["url"], url);
    assert_eq!(
        share["subject"],
        "Payment request: Order 1 Bcc: all@example.com"
    );
    let sentence = "Please pay £10.00 for Two tickets & more (Order 1 Bcc: all@example.com):";
    assert_eq!(share["text"], format!("{sentence}\n{url}"));

    let parsed = |name: &str| {
        let url = url::Url::parse(text(&share[name])).unwrap();
        let query: Vec<_> = url.query_pairs().into_owned().collect();
        (
            url.host_str().map(str::to_owned),
            url.path().to_owned(),
            query,
        )
    };
    let parameter = |name: &str, value: String| (name.to_owned(), value);
    assert_eq!(
        parsed("mailto"),
        (
            None,
            "ann%2Btickets@example.com".to_owned(),
            vec![
                parameter("subject", text(&share["subject"]).to_owned()),
                parameter("body", format!("{sentence}\r\n{url}")),
            ]
        )
    );
    assert_eq!(
        parsed("sms"),
        (
            None,
            "+447700900123".to_owned(),
            vec![parameter("body", format!("{sentence}\n{url}"))]
        )
    );
    assert_eq!(
        parsed("whatsapp"),
        (
            Some("wa.me".to_owned()),
            "/447700900123".to_owned(),
            vec![parameter("text", format!("{sentence}\n{url}"))]
        )
    );
}

#[tokio::test]
async fn nothing_is_shared_once_nobody_can_pay() {
    let app = TestApp::with(&[("RUN_JOBS", "true")]).await;
    let (paid, canceled) = (app.created().await, app.created().await);
    pay(&app, &paid).await;
    app.operate(&canceled, "cancel", &Value::Null)
        .await
        .expect(200);
    for (link, why) in [(&paid, "it has been paid"), (&canceled, "it was canceled")] {
        let share = app
            .get(&format!("/v1/payment-links/{}/share", text(&link["id"])))
            .await;
        let problem = share.problem(409, "not-payable");
        assert_eq!(problem["detail"], format!("the link can't be paid: {why}"));
    }

    app.sandbox
        .next("create", "status", json!({"status": 400}))
        .await;
    let failed = app.create(&ten_pounds("Order 2")).await;
    let id = failed.problem(422, "rejected-by-dojo")["paymentLinkId"].clone();
    for form in ["share", "qr.svg", "qr.png"] {
        let answer = app
            .get(&format!("/v1/payment-links/{}/{form}", text(&id)))
            .await;
        let problem = answer.problem(409, "not-payable");
        assert_eq!(
            problem["detail"],
            "the link can't be paid: it was not created"
        );
    }
}
