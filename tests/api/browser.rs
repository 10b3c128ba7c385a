//! A customer opens the link in a browser and pays with each of Dojo's test cards.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use fantoccini::{Client, ClientBuilder, Locator, wd::WebDriverCompatibleCommand};
use hyper_util::client::legacy::connect::HttpConnector;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};
use url::{ParseError, Url};

use crate::support::{
    TestApp, eventually, eventually_within, postgres::free_port, ten_pounds, text, within,
};

/// A card number and its security code.
const SUCCEEDS: (&str, &str) = ("5200 0000 0000 1005", "020");
const CHALLENGED: (&str, &str) = ("5200 0000 0000 1096", "020");
const DECLINED: (&str, &str) = ("4456 5300 0000 1013", "341");

/// Where the browser saves files, in the folder of its profile.
const DOWNLOADS: &str = "downloads";

/// One browser at a time: it takes several seconds of processor time to start, and much longer if all start together.
static TURN: Semaphore = Semaphore::const_new(1);

/// Headless Chromium and its driver.
pub struct Browser {
    _turn: SemaphorePermit<'static>,
    pub page: Client,
    driver: Child,
    profile: PathBuf,
}

impl Browser {
    async fn open(url: &Value) -> Self {
        Self::at(url, json!({})).await
    }

    /// Opens the page with the screen of a phone.
    pub async fn open_on_phone(url: &Value) -> Self {
        let screen = json!({"width": 390, "height": 844, "pixelRatio": 2.0});
        let options = json!({"mobileEmulation": {"deviceMetrics": screen}});
        Self::at(url, options).await
    }

    async fn at(url: &Value, options: Value) -> Self {
        let browser = Self::start(options).await;
        browser.page.goto(text(url)).await.unwrap();
        browser
    }

    /// Starts the browser with additional options for Chromium.
    pub async fn start(mut options: Value) -> Self {
        let turn = TURN.acquire().await.unwrap();
        let port = free_port();
        let driver = std::env::var_os("CHROMEDRIVER").unwrap_or_else(|| "chromedriver".into());
        let driver = Command::new(driver)
            .arg(format!("--port={port}"))
            // Days are typed as they are written in this language.
            .env("LANGUAGE", "en_US")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is installed; script/test installs it");
        let profile = std::env::temp_dir().join(format!("dojo-browser-{port}-{}", driver.id()));
        options["prefs"]["download.default_directory"] = json!(profile.join(DOWNLOADS));
        let more = options["args"].as_array().cloned().unwrap_or_default();
        let args = json!([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--lang=en-US",
            "--window-size=1000,1200",
            format!("--user-data-dir={}", profile.display()),
        ]);
        options["args"] = args
            .as_array()
            .into_iter()
            .flatten()
            .chain(&more)
            .cloned()
            .collect();
        if let Ok(chromium) = std::env::var("CHROMIUM") {
            options["binary"] = json!(chromium);
        }
        let capabilities = json!({"goog:chromeOptions": options});
        let limit = Duration::from_mins(2);
        let page = eventually_within(limit, "the browser starts", async || {
            ClientBuilder::new(HttpConnector::new())
                .capabilities(capabilities.as_object().unwrap().clone())
                .connect(&format!("http://127.0.0.1:{port}"))
                .await
                .ok()
        })
        .await;
        Self {
            _turn: turn,
            page,
            driver,
            profile,
        }
    }

    /// Whether pages may run scripts. The driver's own run in any case.
    pub async fn runs_scripts(&self) -> bool {
        let page = "data:text/html,<p>off</p><script>document.querySelector('p').textContent = 'on'</script>";
        self.page.goto(page).await.unwrap();
        let text = self.page.find(Locator::Css("p")).await.unwrap();
        text.text().await.unwrap() == "on"
    }

    /// Carries out a command of Chromium's own protocol.
    pub async fn command(&self, name: &str, parameters: Value) -> Value {
        let command = DevTools(json!({"cmd": name, "params": parameters}));
        self.page.issue_cmd(command).await.unwrap()
    }

    /// Waits until a file is saved, and returns its text.
    pub async fn downloaded(&self, name: &str) -> String {
        let path = self.profile.join(DOWNLOADS).join(name);
        eventually(&format!("{name} is saved"), async || {
            std::fs::read_to_string(&path).ok()
        })
        .await
    }

    async fn type_into(&self, autocomplete: &str, what: &str) {
        let field = format!("[autocomplete={autocomplete}]");
        let field = self.page.find(Locator::Css(&field)).await.unwrap();
        field.clear().await.unwrap();
        field.send_keys(what).await.unwrap();
    }

    /// Fills in the card, finding the fields like a browser's autofill, and pays.
    async fn pay_with(&self, (number, code): (&str, &str)) {
        self.type_into("cc-number", number).await;
        self.type_into("cc-exp", "12/29").await;
        self.type_into("cc-csc", code).await;
        self.type_into("cc-name", "Ann Example").await;
        self.click("pay").await;
    }

    /// The width or height of an element in pixels.
    async fn size(&self, dimension: &str, selector: &str) -> f64 {
        let script = format!(
            "return document.querySelector({selector:?}).getBoundingClientRect().{dimension}"
        );
        let size = self.page.execute(&script, Vec::new()).await.unwrap();
        size.as_f64().unwrap()
    }

    async fn value_of(&self, autocomplete: &str) -> String {
        let field = format!("[autocomplete={autocomplete}]");
        let field = self.page.find(Locator::Css(&field)).await.unwrap();
        field.prop("value").await.unwrap().unwrap()
    }

    async fn click(&self, id: &str) {
        self.page
            .find(Locator::Id(id))
            .await
            .unwrap()
            .click()
            .await
            .unwrap();
    }

    /// Waits until the page contains this text.
    pub async fn says(&self, words: &str) {
        eventually(&format!("the page contains {words:?}"), async || {
            let body = self.page.find(Locator::Css("body")).await.ok()?;
            body.text().await.ok()?.contains(words).then_some(())
        })
        .await;
    }

    pub async fn close(mut self) {
        let closed = self.page.clone().close();
        let _ = within(Duration::from_secs(10), "the browser closes", closed).await;
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

/// A command of Chromium's own protocol, with its parameters.
#[derive(Debug)]
struct DevTools(Value);

impl WebDriverCompatibleCommand for DevTools {
    fn endpoint(&self, driver: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        driver.join(&format!(
            "session/{}/goog/cdp/execute",
            session.unwrap_or_default()
        ))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.0.to_string()))
    }
}

impl Drop for Browser {
    /// For tests that fail before they close the browser. It exits with its driver.
    fn drop(&mut self) {
        let _ = self.driver.kill();
    }
}

#[tokio::test]
async fn a_payment_succeeds() {
    let app = TestApp::start().await;
    let link = app.created().await;
    let browser = Browser::open(&link["url"]).await;
    browser.says("£10.00").await;
    browser.pay_with(SUCCEEDS).await;
    browser.says("Payment successful").await;
    app.link_with_status(&link["id"], "Captured").await;

    browser.says("You can close this page").await;

    // When the link is opened again, there is nothing left to pay.
    browser.page.goto(text(&link["url"])).await.unwrap();
    browser.says("This payment has already been made").await;
    assert!(browser.page.find(Locator::Id("pay")).await.is_err());
    browser.close().await;
}

#[tokio::test]
async fn a_challenged_card_pays_and_returns_to_the_shop() {
    let app = TestApp::start().await;
    let shop = format!("{}/healthz", app.service.url);
    let mut request = ten_pounds("Order 1");
    request["config"] = json!({"redirectUrl": shop});
    request["captureMode"] = json!("Manual");
    request["autoExpireAction"] = json!("Release");
    let link = app.create(&request).await.expect(201).json();
    let browser = Browser::open(&link["url"]).await;
    browser.pay_with(CHALLENGED).await;
    browser.says("Confirm it’s you").await;
    browser.click("fail").await;
    browser.says("You did not approve this payment").await;
    assert_eq!(browser.value_of("cc-name").await, "Ann Example");

    browser.pay_with(CHALLENGED).await;
    browser.says("Confirm it’s you").await;
    assert_eq!(app.link(&link["id"]).await["status"], "Created");
    browser.click("approve").await;
    browser.says("ok").await;
    assert_eq!(browser.page.current_url().await.unwrap().as_str(), shop);
    app.link_with_status(&link["id"], "Authorized").await;
    browser.close().await;
}

#[tokio::test]
async fn the_page_formats_the_card_and_keeps_it_after_a_mistake() {
    let app = TestApp::start().await;
    let link = app.created().await;
    let browser = Browser::open(&link["url"]).await;
    for (field, typed, shown) in [
        ("cc-number", "378282246310005", "3782 822463 10005"),
        ("cc-number", "5200000000001005", "5200 0000 0000 1005"),
        ("cc-number", "5200-0000-0000-1005", "5200 0000 0000 1005"),
        ("cc-exp", "1229", "12/29"),
        ("cc-exp", "12/2029", "12/2029"),
        ("cc-exp", "9/29", "09/29"),
        ("cc-exp", "929", "09/29"),
    ] {
        browser.type_into(field, typed).await;
        assert_eq!(browser.value_of(field).await, shown, "{typed}");
    }
    // The caret stays where the customer types and doesn't jump to the end.
    let number = browser.page.find(Locator::Css("[autocomplete=cc-number]"));
    let number = number.await.unwrap();
    let (home, right, backspace) = ("\u{e011}", "\u{e014}".repeat(2), "\u{e003}");
    number
        .send_keys(&format!("{home}{right}4{backspace}"))
        .await
        .unwrap();
    number.send_keys("9").await.unwrap();
    assert_eq!(browser.value_of("cc-number").await, "5290 0000 0000 0100 5");
    number.send_keys(backspace).await.unwrap();

    browser.type_into("cc-csc", "02").await;
    browser.type_into("cc-name", "Ann Example").await;
    browser.click("pay").await;
    browser
        .says("Enter the CVV, the 3 digits on the back of your card")
        .await;
    assert_eq!(browser.value_of("cc-number").await, "5200 0000 0000 1005");
    assert_eq!(browser.value_of("cc-exp").await, "09/29");
    assert_eq!(browser.value_of("cc-csc").await, "");

    browser.type_into("cc-csc", "020").await;
    browser.click("pay").await;
    browser.says("Payment successful").await;
    browser.close().await;
}

#[tokio::test]
async fn the_page_fits_on_a_phone() {
    let app = TestApp::start().await;
    let link = app.created().await;
    let browser = Browser::open_on_phone(&link["url"]).await;
    browser.says("Secure checkout").await;
    assert!(browser.size("width", ".secure span").await > 90.0);
    assert!(browser.size("width", "html").await <= 390.0);

    // There is space between error messages.
    browser.click("pay").await;
    browser.says("Please check your details").await;
    let gap = "const [one, two] = [...document.querySelectorAll('.alert li')].map(li => li.getBoundingClientRect());
        return two.top - one.bottom";
    let gap = browser.page.execute(gap, Vec::new()).await.unwrap();
    assert!(gap.as_f64().unwrap() >= 6.0, "{gap}");

    browser.pay_with(CHALLENGED).await;
    browser.says("3-D Secure").await;
    let name = browser.size("height", ".whole").await;
    assert!(name < 30.0, "it takes two lines, {name} pixels high");
    browser.click("approve").await;
    browser.says("Payment successful").await;
    browser.close().await;
}

#[tokio::test]
async fn a_payment_succeeds_after_a_declined_card() {
    let app = TestApp::start().await;
    let link = app.created().await;
    let browser = Browser::open(&link["url"]).await;
    browser.pay_with(DECLINED).await;
    browser.says("declined").await;
    assert_eq!(app.link(&link["id"]).await["status"], "Created");
    browser.pay_with(SUCCEEDS).await;
    browser.says("Payment successful").await;
    app.link_with_status(&link["id"], "Captured").await;
    browser.close().await;
}
