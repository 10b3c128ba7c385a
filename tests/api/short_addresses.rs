//! Short addresses: where they lead, what their pages say, and what they keep to themselves.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    browser::Browser,
    support::{
        Answer, QUICK, TestApp, client, event, eventually, new_database, port_of, proxy::Proxy,
        send, ten_pounds, text, through,
    },
};

/// The service's settings. The addresses begin as if customers came through another server.
const SETTINGS: [(&str, &str); 3] = [
    ("SHORT_URL_BASE", "https://pay.example.com/shop/"),
    ("MERCHANT_NAME", "The <Old> Theatre"),
    ("MERCHANT_CONTACT", "boxoffice@example.com"),
];

async fn app(more: &[(&str, &str)]) -> TestApp {
    TestApp::with(&[&SETTINGS, more].concat()).await
}

/// The path of the link's short address at the service.
fn path_of(link: &Value) -> String {
    let path = text(&link["shortUrl"]).strip_prefix("https://pay.example.com/shop");
    path.unwrap().to_owned()
}

impl TestApp {
    /// Opens a link's short address, as a customer without an API key does.
    async fn opened(&self, link: &Value) -> Answer {
        let answer = send(self.anonymous(Method::GET, &path_of(link))).await;
        for (name, value) in [
            ("cache-control", "no-store"),
            ("referrer-policy", "no-referrer"),
            ("x-robots-tag", "noindex, nofollow"),
        ] {
            assert_eq!(answer.header(name), value);
        }
        answer
    }

    /// Opens a short address whose page says this, with this status.
    async fn says(&self, link: &Value, status: u16, heading: &str) {
        let page = self.opened(link).await.expect(status);
        is_page(&page, heading);
        for private in ["Order", "Ann", "10.00", "£", "pi_", "plink_"] {
            assert!(!page.text.contains(private), "{}", page.text);
        }
    }
}

#[track_caller]
fn is_page(page: &Answer, heading: &str) {
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert!(
        page.header("content-security-policy")
            .starts_with("default-src 'none'")
    );
    assert!(
        page.text.contains(&format!("<h1>{heading}</h1>")),
        "{}",
        page.text
    );
    assert!(!page.text.contains("<script"));
}

fn request() -> Value {
    let mut request = ten_pounds("Order 1");
    request["customer"] = json!({"emailAddress": "ann@example.com"});
    request
}

#[tokio::test]
async fn an_address_leads_to_the_checkout_page_until_the_link_is_paid() {
    let app = app(&[("RUN_JOBS", "true")]).await;
    let link = app.create(&request()).await.expect(201).json();
    let code = path_of(&link).strip_prefix("/p/").unwrap().to_owned();
    assert_eq!(code.len(), 16);
    assert_eq!(app.link(&link["id"]).await["shortUrl"], link["shortUrl"]);
    let share = format!("/v1/payment-links/{}/share", text(&link["id"]));
    assert_eq!(
        app.get(&share).await.expect(200).json()["url"],
        link["shortUrl"]
    );

    let opened = app.opened(&link).await.expect(302);
    assert_eq!(opened.header("location"), text(&link["url"]));
    assert_eq!(opened.text, "");
    let typed = format!("/p/{}", code.to_uppercase());
    let opened = send(app.anonymous(Method::GET, &typed)).await.expect(302);
    assert_eq!(opened.header("location"), text(&link["url"]));
    send(app.anonymous(Method::HEAD, &typed)).await.expect(302);

    app.sandbox.pay(&link["paymentIntentId"]).await;
    eventually("the payment is confirmed", async || {
        let link = app.link(&link["id"]).await;
        (link["status"] == "Captured" && link["confirmed"] == true).then_some(())
    })
    .await;
    app.says(&link, 200, "This has already been paid").await;
    let page = app.opened(&link).await.text;
    assert!(
        page.contains("Questions? Contact The &#60;Old&#62; Theatre: boxoffice@example.com"),
        "{page}"
    );
    // The code is not logged: whoever reads it could pay.
    assert!(!app.service.log().contains(&code));
}

#[tokio::test]
async fn the_page_says_why_a_link_cannot_be_paid() {
    let app = app(&[("RUN_JOBS", "false")]).await;
    let canceled = app.create(&request()).await.expect(201).json();
    app.operate(&canceled, "cancel", &Value::Null)
        .await
        .expect(200);
    app.says(&canceled, 200, "This link has been withdrawn")
        .await;
    set(&app, &canceled, "expire_at = now() - interval '1 second'").await;
    app.says(&canceled, 200, "This link has expired").await;

    // As long as Dojo hasn't confirmed it, somebody may have paid in the last moment.
    let late = app.create(&request()).await.expect(201).json();
    set(&app, &late, "expire_at = now() - interval '1 second'").await;
    app.says(&late, 200, "We are checking this payment").await;

    // A webhook alone doesn't say that the link is paid.
    let claimed = app.create(&request()).await.expect(201).json();
    app.deliver(&event("evt_1", &claimed, "Captured"))
        .await
        .expect(204);
    app.says(&claimed, 200, "We are checking this payment")
        .await;
    let share = format!("/v1/payment-links/{}/share", text(&claimed["id"]));
    let problem = app.get(&share).await;
    assert_eq!(problem.header("retry-after"), "5");
    problem.problem(409, "not-payable");

    let pending = app.create(&request()).await.expect(201).json();
    set(
        &app,
        &pending,
        "status = 'Pending', payment_intent_id = NULL, url = NULL",
    )
    .await;
    let page = app.opened(&pending).await;
    assert_eq!(page.header("retry-after"), "60");
    app.says(&pending, 503, "This link is not ready yet").await;

    for unknown in ["0123456789abcdef", "x", "%00", "%ff", "..%2fadmin", "<b>"] {
        let page = send(app.anonymous(Method::GET, &format!("/p/{unknown}"))).await;
        is_page(&page.expect(404), "There is no such link");
    }
}

/// Changes the link's row.
async fn set(app: &TestApp, link: &Value, change: &str) {
    let statement = format!("UPDATE payment_links SET {change} WHERE payment_intent_id = $1");
    sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(text(&link["paymentIntentId"]))
        .execute(&app.pool)
        .await
        .unwrap();
}

#[tokio::test]
async fn without_a_base_url_there_are_no_short_addresses() {
    let app = TestApp::start().await;
    let link = app.created().await;
    assert_eq!(link["shortUrl"], Value::Null);
    let addresses: i64 = sqlx::query_scalar("SELECT count(*) FROM short_addresses")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert_eq!(addresses, 0);
}

#[tokio::test]
async fn a_repeated_request_gets_the_same_address() {
    let app = app(&QUICK).await;
    app.sandbox.next("create", "cutAfter", json!({})).await;
    let first = app.create_with_key("order-1", &request()).await;
    let id = first.problem(504, "outcome-unknown")["paymentLinkId"].clone();
    let link = eventually("the link is found", async || {
        let answer = app.create_with_key("order-1", &request()).await;
        (answer.status == StatusCode::CREATED).then(|| answer.json())
    })
    .await;
    assert_eq!(link["id"], id);
    let again = app
        .create_with_key("order-1", &request())
        .await
        .expect(201)
        .json();
    assert_eq!(again["shortUrl"], link["shortUrl"]);
    app.opened(&link).await.expect(302);
}

#[tokio::test]
async fn too_many_customers_at_once_get_a_page() {
    let app = app(&[("PAGE_RATE", "1")]).await;
    let link = app.create(&request()).await.expect(201).json();
    let busy = eventually("the limit is reached", async || {
        let page = app.opened(&link).await;
        (page.status == StatusCode::TOO_MANY_REQUESTS).then_some(page)
    })
    .await;
    is_page(&busy, "Too many people are here right now");
    assert_eq!(busy.header("retry-after"), "60");
    // Clients have a limit of their own.
    app.link(&link["id"]).await;
}

#[tokio::test]
async fn a_database_outage_is_no_reason_to_ask_for_another_link() {
    let database = new_database().await;
    let proxy = Proxy::to(port_of(&database)).await;
    let impatient = [
        ("DATABASE_ACQUIRE_TIMEOUT", "500ms"),
        ("DATABASE_STATEMENT_TIMEOUT", "500ms"),
    ];
    let settings = [&SETTINGS[..], &impatient].concat();
    let app = TestApp::on(through(proxy.port, &database), &settings).await;
    let link = app.create(&request()).await.expect(201).json();
    proxy.cut();
    let page = app.opened(&link).await.expect(503);
    is_page(&page, "The link can’t be looked up right now");
    assert_eq!(page.header("retry-after"), "60");
    app.logged("the database could not complete the request")
        .await;
}

#[tokio::test]
async fn addresses_are_served_on_the_public_address_only() {
    let app = app(&[("PUBLIC_LISTEN_ADDR", "127.0.0.1:0")]).await;
    let listening = app.logged("listening for webhooks").await.remove(0);
    let listening: Value = serde_json::from_str(&listening).unwrap();
    let link = app.create(&request()).await.expect(201).json();
    let url = format!("http://{}{}", text(&listening["address"]), path_of(&link));
    send(client().get(url)).await.expect(302);
    let internal = send(app.anonymous(Method::GET, &path_of(&link))).await;
    internal.problem(404, "not-found");
}

#[tokio::test]
async fn the_page_fits_a_phone() {
    let app = app(&[]).await;
    let link = app.create(&request()).await.expect(201).json();
    app.operate(&link, "cancel", &Value::Null).await.expect(200);
    let url = json!(format!("{}{}", app.service.url, path_of(&link)));
    let browser = Browser::open_on_phone(&url).await;
    browser.says("This link has been withdrawn").await;
    browser.says("boxoffice@example.com").await;
    let wide = "return document.documentElement.scrollWidth - window.innerWidth";
    let wide = browser.page.execute(wide, Vec::new()).await.unwrap();
    assert_eq!(wide, json!(0));
    let main = "return getComputedStyle(document.querySelector('main')).borderRadius";
    let style = browser.page.execute(main, Vec::new()).await.unwrap();
    assert_eq!(style, json!("12px"), "the policy allows the style");
    browser.close().await;
}
