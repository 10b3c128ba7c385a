//! The console in a browser: with and without scripts, by keyboard alone, on a phone and on a wide screen, light and dark, and
//! without anything that keeps people from using it.

use std::{fs, path::Path, sync::LazyLock};

use fantoccini::{Locator, elements::Element, key::Key};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    browser::Browser,
    commands::create_api_key,
    console::{self, Visitor, url_of},
    support::{
        API_KEY, TestApp, eventually, manual, pounds, receiver::Receiver, send, ten_pounds, text,
    },
};

/// How the page is shown.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    pub is_phone: bool,
    pub is_dark: bool,
    pub has_scripts: bool,
}

pub const WIDE: Look = Look {
    is_phone: false,
    is_dark: false,
    has_scripts: true,
};

impl Look {
    /// Opens a browser that shows pages like this.
    pub async fn open(self) -> Browser {
        let scheme = i32::from(!self.is_dark);
        let mut options = json!({
            "args": ["--window-size=1280,900", format!("--blink-settings=preferredColorScheme={scheme}")],
        });
        if self.is_phone {
            let screen = json!({"width": 390, "height": 844, "pixelRatio": 2.0});
            options["mobileEmulation"] = json!({"deviceMetrics": screen});
        }
        if !self.has_scripts {
            let blocked = json!({"profile.managed_default_content_settings.javascript": 2});
            options["prefs"] = blocked;
        }
        let browser = Browser::start(options).await;
        assert_eq!(browser.runs_scripts().await, self.has_scripts);
        browser
    }
}

impl Browser {
    pub async fn visit(&self, url: &str) {
        self.page.goto(url).await.unwrap();
    }

    /// The path that the browser is at.
    pub async fn path(&self) -> String {
        self.page.current_url().await.unwrap().path().to_owned()
    }

    pub async fn is_at(&self, path: &str) {
        eventually(&format!("the browser is at {path}"), async || {
            (self.path().await == path).then_some(())
        })
        .await;
    }

    pub async fn find_one(&self, selector: &str) -> Element {
        eventually(&format!("there is {selector}"), async || {
            self.page.find(Locator::Css(selector)).await.ok()
        })
        .await
    }

    pub async fn fill_in(&self, id: &str, what: &str) {
        let field = self.find_one(&format!("#{id}")).await;
        field.clear().await.unwrap();
        field.send_keys(what).await.unwrap();
    }

    /// Clicks the link or the button with this text.
    pub async fn press(&self, name: &str) {
        let path = format!(
            "//main//*[self::a or self::button][normalize-space()='{name}'] | //header//*[self::a or \
             self::button][normalize-space()='{name}']"
        );
        let element = eventually(&format!("there is {name:?}"), async || {
            self.page.find(Locator::XPath(&path)).await.ok()
        })
        .await;
        element.click().await.unwrap();
    }

    pub async fn sign_in(&self, url: &str, key: &str) {
        self.visit(&format!("{url}/links")).await;
        self.fill_in("key", key).await;
        self.press("Sign in").await;
        self.is_at("/links").await;
    }

    /// The value of the field with this name.
    pub async fn value(&self, name: &str) -> String {
        let field = self.find_one(&format!("input[name={name}]")).await;
        field.prop("value").await.unwrap().unwrap_or_default()
    }

    pub async fn run(&self, script: &str) -> Value {
        self.page.execute(script, Vec::new()).await.unwrap()
    }

    /// Whether nothing is wider than the screen.
    pub async fn fits(&self) {
        let wide = "return document.documentElement.scrollWidth - window.innerWidth";
        let wide = self.run(wide).await.as_i64().unwrap();
        assert!(wide <= 0, "{} is {wide} pixels too wide", self.path().await);
    }

    /// Nothing on this page keeps people from using it, as far as a program can tell.
    pub async fn is_accessible(&self) {
        self.passes("rules: {'target-size': {enabled: true}}").await;
    }

    /// All text on this page differs enough from what is behind it. Nothing else depends on the colours.
    pub async fn is_legible(&self) {
        self.passes("runOnly: ['color-contrast']").await;
    }

    /// The rules that these options choose find nothing wrong with this page.
    async fn passes(&self, options: &str) {
        static AXE: LazyLock<String> = LazyLock::new(|| {
            let path = std::env::var("AXE").expect("AXE is axe-core; script/test installs it");
            fs::read_to_string(path).unwrap()
        });
        if self.run("return window.axe === undefined").await == json!(true) {
            self.run(&AXE).await;
        }
        let script = format!(
            "const done = arguments[arguments.length - 1];
            axe.run(document, {{resultTypes: ['violations'], {options}}})
                .then(result => done(result.violations.map(found => ({{
                    id: found.id, help: found.help, nodes: found.nodes.map(node => node.html + ' ' + node.failureSummary),
                }}))))
                .catch(error => done(String(error)));"
        );
        let found = self.page.execute_async(&script, Vec::new()).await.unwrap();
        assert_eq!(found, json!([]), "{}", self.path().await);
    }

    /// Saves what the page looks like for the documentation, if `SCREENSHOTS` names a folder.
    pub async fn photograph(&self, name: &str) {
        if let Some(folder) = std::env::var_os("SCREENSHOTS") {
            fs::create_dir_all(&folder).unwrap();
            let image = self.page.screenshot().await.unwrap();
            fs::write(Path::new(&folder).join(format!("{name}.png")), image).unwrap();
        }
    }

    /// Presses a key wherever the focus is.
    pub async fn key(&self, key: &str) {
        let focused = self.page.active_element().await.unwrap();
        focused.send_keys(key).await.unwrap();
    }

    /// Presses Tab until this element has the focus.
    async fn tab_to(&self, selector: &str) {
        let tab = char::from(Key::Tab).to_string();
        for _ in 0..60 {
            self.key(&tab).await;
            let script = format!("return document.activeElement.matches({selector:?})");
            if self.run(&script).await == json!(true) {
                return;
            }
        }
        panic!("nobody reaches {selector} by keyboard");
    }
}

/// A paid link with everything that its page can show.
async fn rich_link(app: &TestApp) -> Value {
    let mut body = ten_pounds("Order 236");
    body["amount"] = pounds(2450);
    body["description"] = json!("Two theatre tickets");
    body["customer"] = json!({"emailAddress": "ann@example.com"});
    body["metadata"] = json!({"order": "236", "till": "4"});
    body["itemLines"] = json!([{"quantity": 2, "name": "Ticket", "amountTotal": pounds(2450)}]);
    let link = app.create(&body).await.expect(201).json();
    app.sandbox.pay(&link["paymentIntentId"]).await;
    let link = app.read_until_confirmed(&link["id"]).await;
    let refund = json!({"amount": pounds(350), "refundReason": "Returned programme"});
    app.operate_with_key("a", &link, "refunds", &refund)
        .await
        .expect(200);
    link
}

fn page_of(link: &Value) -> String {
    format!("/links/{}", text(&link["id"]))
}

/// Goes back to the form with this key as it was opened, past what it led to.
async fn back_to_first_form(browser: &Browser, form: &str, key: &str) {
    eventually("the browser is back at the first form", async || {
        // Neither what was entered once more to look at, nor a form with an error.
        let field = Locator::Css(".field:not(.wrong) > #amount");
        if browser.path().await == form && browser.page.find(field).await.is_ok() {
            return Some(());
        }
        browser.page.back().await.unwrap();
        None
    })
    .await;
    // The browser may have kept the page as it was.
    browser.page.refresh().await.unwrap();
    assert_eq!(browser.value("key").await, key);
}

/// Finds a link, refunds a part of it, and sees the outcome, by clicking.
async fn refund_a_part(browser: &Browser, app: &TestApp, url: &str, link: &Value) {
    browser.sign_in(url, API_KEY).await;
    browser.fill_in("q", "order@example.com").await;
    browser.press("Search").await;
    browser
        .says("Links whose customer’s email address is")
        .await;
    browser.press("Order 7").await;
    browser.is_at(&page_of(link)).await;
    browser.says("Paid £10.00").await;
    browser.press("Refund").await;
    browser.find_one("#amount").await;
    let key = browser.value("key").await;
    browser.fill_in("amount", "3.5").await;
    browser.press("Continue").await;
    browser.says("must be an amount such as 24.50").await;
    browser.fill_in("amount", "3.50").await;
    browser.fill_in("reason", "Returned goods").await;
    browser.press("Continue").await;
    browser.says("This can’t be undone.").await;
    browser.press("Refund £3.50").await;
    browser.is_at(&page_of(link)).await;
    browser.says("Refund of £3.50: done.").await;
    browser.says("£3.50 refunded").await;

    // Back and forth, and once more: it is still one refund.
    browser.page.refresh().await.unwrap();
    browser.says("Refund of £3.50: done.").await;
    // The page before is what a form led to, so the browser sends that again.
    browser.page.back().await.unwrap();
    browser.page.refresh().await.unwrap();
    browser.says("This form was sent before.").await;
    browser.press("Refund £3.50").await;
    browser.says("Nothing new was done this time.").await;
    browser.says("Refund of £3.50: done.").await;
    assert_eq!(app.sandbox.done("refund").await.len(), 1);

    // All the way back to the first form, which is still the same one.
    let form = format!("{}/refund", page_of(link));
    back_to_first_form(browser, &form, &key).await;
    browser.says("This form was sent before.").await;
    browser.fill_in("amount", "3.50").await;
    browser.fill_in("reason", "Returned goods").await;
    browser.press("Continue").await;
    browser.press("Refund £3.50").await;
    browser.says("Nothing new was done this time.").await;
    assert_eq!(app.sandbox.done("refund").await.len(), 1);

    // With another amount, it says what to do instead.
    back_to_first_form(browser, &form, &key).await;
    browser.fill_in("amount", "1.00").await;
    browser.press("Continue").await;
    browser.press("Refund £1.00").await;
    browser
        .says("This form was sent before, with other values.")
        .await;
    assert_eq!(app.sandbox.done("refund").await.len(), 1);
    browser.press("Open a new form").await;
    browser.is_at(&form).await;
    assert_ne!(browser.value("key").await, key);
    browser.press("Sign out").await;
    browser.is_at("/sign-in").await;
    browser.page.back().await.unwrap();
    browser.visit(&format!("{url}/links")).await;
    browser.is_at("/sign-in").await;
}

async fn paid_order(app: &TestApp) -> Value {
    let mut body = ten_pounds("Order 7");
    body["customer"] = json!({"emailAddress": "order@example.com"});
    let link = app.create(&body).await.expect(201).json();
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.read_until_confirmed(&link["id"]).await
}

#[tokio::test]
async fn a_part_is_refunded_with_and_without_scripts() {
    for has_scripts in [true, false] {
        let app = console::start(&[]).await;
        let link = paid_order(&app).await;
        let browser = Look {
            has_scripts,
            ..WIDE
        }
        .open()
        .await;
        refund_a_part(&browser, &app, &url_of(&app).await, &link).await;
        assert_eq!(app.sandbox.done("refund").await.len(), 1);
        browser.close().await;
    }
}

#[tokio::test]
async fn everything_can_be_done_by_keyboard() {
    let app = console::start(&[]).await;
    let link = paid_order(&app).await;
    let url = url_of(&app).await;
    let browser = WIDE.open().await;
    let enter = char::from(Key::Enter).to_string();
    browser.visit(&format!("{url}/links")).await;
    browser.tab_to("#key").await;
    browser.key(API_KEY).await;
    browser.key(&enter).await;
    browser.is_at("/links").await;

    // The first stop skips the navigation.
    browser.tab_to(".skip").await;
    browser.key(&enter).await;
    let focused = browser.run("return document.activeElement.id").await;
    assert_eq!(focused, json!("main"));
    // The slash goes to the search, and is an ordinary character there.
    browser.key("/").await;
    let focused = browser.run("return document.activeElement.id").await;
    assert_eq!(focused, json!("q"));
    browser.key("a/g l").await;
    let typed = browser.run("return document.activeElement.value").await;
    assert_eq!(typed, json!("a/g l"));
    browser.fill_in("q", "Order 7").await;
    browser.key(&enter).await;
    browser.says("Links whose reference starts with").await;
    browser.tab_to("tbody a").await;
    browser.key(&enter).await;
    browser.is_at(&page_of(&link)).await;
    browser.tab_to("a[href$='/refund']").await;
    browser.key(&enter).await;
    browser.tab_to("#reason").await;
    browser.key("Returned goods").await;
    browser.tab_to("button[name=step]").await;
    browser.key(&enter).await;
    browser.says("Refund £10.00").await;
    browser.tab_to("button[value=do]").await;
    browser.key(&enter).await;
    browser.says("Refund of £10.00: done.").await;
    // Every stop shows where the focus is.
    let outline = "return getComputedStyle(document.activeElement).outlineStyle";
    browser.tab_to("button[value], a[href='/attention']").await;
    assert_ne!(browser.run(outline).await, json!("none"));
    browser.close().await;
}

/// A mark that a page loses when it is loaded again.
const MARK: &str = "window.isTheSamePage = true";
const MARKED: &str = "return window.isTheSamePage";

#[tokio::test]
async fn a_page_shows_a_payment_without_being_loaded_again() {
    let app = console::start(&[("RUN_JOBS", "true")]).await;
    let link = app.created().await;
    let url = url_of(&app).await;
    let browser = WIDE.open().await;
    browser.sign_in(&url, API_KEY).await;
    browser.visit(&format!("{url}{}", page_of(&link))).await;
    browser.says("Waiting for £10.00").await;
    browser.find_one("img.code").await;
    browser.run(MARK).await;
    browser.tab_to("a[href$='/cancel']").await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.read_until_confirmed(&link["id"]).await;
    // It is gone from a link that is paid, so the page waits until the person is elsewhere.
    browser.run("document.activeElement.blur()").await;
    browser.says("Paid £10.00").await;
    let codes = "return document.querySelectorAll('img.code, [data-copy-source]').length";
    assert_eq!(browser.run(codes).await, json!(0));
    assert_eq!(browser.run(MARKED).await, json!(true));
    // Nothing was refused by the content security policy.
    let style = "return getComputedStyle(document.querySelector('.state')).borderRadius";
    assert_eq!(browser.run(style).await, json!("12px"));

    // What somebody is at stays.
    browser.tab_to("a[href$='/refund']").await;
    let refund = json!({"amount": pounds(350), "refundReason": "Returned goods"});
    app.operate_with_key("a", &link, "refunds", &refund)
        .await
        .expect(200);
    browser.says("£3.50 refunded").await;
    let at = "return document.activeElement.getAttribute('href').endsWith('/refund')";
    assert_eq!(browser.run(at).await, json!(true));
    assert_eq!(browser.run(MARKED).await, json!(true));
    browser.close().await;
}

#[tokio::test]
async fn the_list_shows_new_links_and_payments_without_being_loaded_again() {
    let app = console::start(&[("RUN_JOBS", "true")]).await;
    let browser = WIDE.open().await;
    browser.sign_in(&url_of(&app).await, API_KEY).await;
    browser.says("There are no links here yet.").await;
    browser.run(MARK).await;

    let link = app.created().await;
    browser.says("Waiting for payment").await;
    let cells = "return [...document.querySelectorAll('main tbody tr')].map(
        row => [row.querySelector('a').pathname, row.querySelector('.state').textContent])";
    let row = |state: &str| json!([[page_of(&link), state]]);
    assert_eq!(browser.run(cells).await, row("Waiting for payment"));
    let empty = "return document.querySelector('main').textContent.includes('no links here')";
    assert_eq!(browser.run(empty).await, json!(false));

    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.read_until_confirmed(&link["id"]).await;
    eventually("the row says that the link is paid", async || {
        (browser.run(cells).await == row("Paid")).then_some(())
    })
    .await;
    assert_eq!(browser.run(MARKED).await, json!(true));
    browser.close().await;
}

/// Notes how long the page's pauses should be, and lets them pass 20 times as fast.
const HURRY: &str = "const wait = window.setTimeout;
    window.pauses = [];
    window.setTimeout = (done, time) => { pauses.push(time); return wait(done, time / 20); };";

/// Waits until the page's last pauses are these.
async fn pauses_are(browser: &Browser, last: &[u32]) {
    let script = format!("return pauses.slice(-{})", last.len());
    eventually(&format!("the page pauses for {last:?}"), async || {
        (browser.run(&script).await == json!(last)).then_some(())
    })
    .await;
}

/// How many listeners the page's scripts have added that something still refers to.
async fn listeners(browser: &Browser) -> Value {
    let command = async |name: &str| browser.command(name, json!({})).await;
    command("Performance.enable").await;
    command("HeapProfiler.collectGarbage").await;
    let found = command("Performance.getMetrics").await;
    let metrics = found["metrics"].as_array().unwrap();
    let number = metrics
        .iter()
        .find(|metric| metric["name"] == "JSEventListeners");
    number.unwrap()["value"].clone()
}

#[tokio::test]
async fn updates_leave_nothing_behind_and_a_page_that_is_in_use_asks_less_often() {
    let app = console::start(&[("RUN_JOBS", "true")]).await;
    let link = app.create(&manual("Order 7")).await.expect(201).json();
    let (url, page) = (url_of(&app).await, page_of(&link));
    let visitor = Visitor::bootstrap(&app).await;
    let change = async |value: i64| {
        let amount = json!({"amount": pounds(value)});
        let answer = app.operate(&link, "amount", &amount).await;
        answer.expect(200);
    };
    let browser = WIDE.open().await;
    browser.sign_in(&url, API_KEY).await;
    browser.visit(&format!("{url}{page}")).await;
    browser.says("Waiting for £10.00").await;
    browser.run(HURRY).await;
    let before = listeners(&browser).await;
    assert!(before.as_f64().unwrap() > 0.0);
    for pence in 1..=10 {
        change(1000 + pence).await;
        browser.says(&format!("Waiting for £10.{pence:02}")).await;
    }
    assert_eq!(listeners(&browser).await, before);
    let announced = "return document.getElementById('announcement').textContent";
    let announced = browser.run(announced).await;
    assert!(text(&announced).starts_with("Waiting for £10.10"));

    // What somebody has selected stays, however often the page asks.
    browser
        .run("getSelection().selectAllChildren(document.querySelector('.sentence'))")
        .await;
    change(2000).await;
    pauses_are(&browser, &[10_000, 10_000]).await;
    let sentence = "return getSelection().toString()";
    let sentence = browser.run(sentence).await;
    assert!(text(&sentence).starts_with("Waiting for £10.10"));
    browser.run("getSelection().removeAllRanges()").await;
    browser.says("Waiting for £20.00").await;
    pauses_are(&browser, &[2000]).await;

    // Other windows of the same person wait, and there is no place for another one.
    let waiting = async |number: f64| {
        eventually(&format!("{number} requests wait"), async || {
            let waiting = app.metric("feed_waiting_readers").await;
            ((waiting - number).abs() < 0.5).then_some(())
        })
        .await;
    };
    browser.visit(&format!("{url}/preferences")).await;
    waiting(0.0).await;
    let others = [(); 4].map(|()| {
        let request = visitor.request(Method::GET, "/links");
        // Nothing that happens is news for them.
        tokio::spawn(send(request.header("x-live", i64::MAX)))
    });
    waiting(4.0).await;
    browser.visit(&format!("{url}{page}")).await;
    browser.run(HURRY).await;
    pauses_are(&browser, &[10_000]).await;
    for other in others {
        other.abort();
    }
    browser.close().await;
}

#[tokio::test]
async fn whoever_turns_updates_and_shortcuts_off_has_none() {
    let app = console::start(&[("RUN_JOBS", "true")]).await;
    let link = app.created().await;
    let url = url_of(&app).await;
    let browser = WIDE.open().await;
    let focused = "return document.activeElement.id";
    let sent = "return performance.getEntriesByType('resource').filter(
        entry => entry.initiatorType === 'fetch').length";
    browser.sign_in(&url, API_KEY).await;
    browser.key("/").await;
    assert_eq!(browser.run(focused).await, json!("q"));
    browser.find_one("footer a").await.click().await.unwrap();
    browser.is_at("/preferences").await;
    for name in ["updates", "shortcuts"] {
        let field = browser.find_one(&format!("input[name={name}]")).await;
        field.click().await.unwrap();
    }
    browser.press("Save").await;
    browser.says("Saved.").await;

    browser.visit(&format!("{url}{}", page_of(&link))).await;
    browser.says("Waiting for £10.00").await;
    for key in ["g", "b", "/"] {
        browser.key(key).await;
    }
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.read_until_confirmed(&link["id"]).await;
    // Neither did a key lead elsewhere, nor has the page asked for anything.
    assert_eq!(browser.path().await, page_of(&link));
    assert_eq!(browser.run(sent).await, json!(0));
    browser.says("Waiting for £10.00").await;
    browser.visit(&format!("{url}/links")).await;
    browser.key("/").await;
    assert_ne!(browser.run(focused).await, json!("q"));

    // The page does ask once updates are on again.
    browser.visit(&format!("{url}/preferences")).await;
    let field = browser.find_one("input[name=updates]").await;
    field.click().await.unwrap();
    browser.press("Save").await;
    browser.says("Saved.").await;
    browser.visit(&format!("{url}/links")).await;
    app.created().await;
    browser.says("Waiting for payment").await;
    assert_ne!(browser.run(sent).await, json!(0));
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_fits_and_keeps_nobody_out() {
    let app = console::start(&[
        ("CONSOLE_APPROVAL_LIMIT", "15"),
        ("RUN_JOBS", "true"),
        ("POLL_INTERVAL", "200ms"),
        ("CALLBACK_ALLOW", "127.0.0.1"),
    ])
    .await;
    let receiver = Receiver::start().await;
    app.subscribe(&json!({"url": receiver.url})).await;
    let link = rich_link(&app).await;
    receiver.until(1).await;
    let authorized = app.create(&manual("Order 237")).await.expect(201).json();
    app.sandbox.pay(&authorized["paymentIntentId"]).await;
    let mismatch = app
        .create(&ten_pounds("Order 238"))
        .await
        .expect(201)
        .json();
    let reported = "UPDATE payment_links SET due_at = NULL, mismatch = '{\"value\": 2000, \"currencyCode\": \"GBP\"}'
                    WHERE payment_intent_id = $1";
    sqlx::query(reported)
        .bind(text(&mismatch["paymentIntentId"]))
        .execute(&app.pool)
        .await
        .unwrap();
    let key = create_api_key(
        &app,
        "ann",
        "links:read,links:write,links:send,payments:manage,callbacks:manage",
    );
    let url = url_of(&app).await;
    let mut approval = None;
    for is_phone in [false, true] {
        for is_dark in [false, true] {
            let look = Look {
                is_phone,
                is_dark,
                has_scripts: true,
            };
            let browser = look.open().await;
            browser.visit(&format!("{url}/sign-in")).await;
            let dark = "return matchMedia('(prefers-color-scheme: dark)').matches";
            assert_eq!(browser.run(dark).await, json!(is_dark));
            browser.is_accessible().await;
            browser.fits().await;
            browser.sign_in(&url, &key).await;
            if approval.is_none() {
                browser
                    .visit(&format!("{url}{}/refund", page_of(&link)))
                    .await;
                browser.press("Continue").await;
                browser.is_accessible().await;
                browser.press("Request the approval").await;
                browser.says("Waits for a second person").await;
                approval = Some(browser.path().await);
            }
            let pages = [
                ("links", "/links".to_owned()),
                ("search", "/links?q=Order&status=Created".to_owned()),
                ("link", page_of(&link)),
                ("unpaid", page_of(&mismatch)),
                ("refund", format!("{}/refund", page_of(&link))),
                ("capture", format!("{}/capture", page_of(&authorized))),
                ("tip", format!("{}/tip", page_of(&authorized))),
                ("receipt", format!("{}/receipt", page_of(&link))),
                ("cancel", format!("{}/cancel", page_of(&mismatch))),
                ("create", "/links/new".to_owned()),
                ("attention", "/attention".to_owned()),
                ("approvals", "/approvals".to_owned()),
                ("approval", approval.clone().unwrap()),
                ("audit", "/audit".to_owned()),
                ("health", "/health".to_owned()),
                ("runbook", "/runbook".to_owned()),
                ("preferences", "/preferences".to_owned()),
                ("missing", "/links/nothing".to_owned()),
            ];
            for (name, path) in pages {
                browser.visit(&format!("{url}{path}")).await;
                browser.find_one("h1").await;
                browser.fits().await;
                browser.is_accessible().await;
                let screen = if is_phone { "phone" } else { "wide" };
                let scheme = if is_dark { "dark" } else { "light" };
                browser
                    .photograph(&format!("console-{name}-{screen}-{scheme}"))
                    .await;
            }
            // A form with errors.
            browser.visit(&format!("{url}/links/new")).await;
            browser.fill_in("amount", "ten").await;
            browser.fill_in("reference", "Order 239").await;
            browser.press("Create the link").await;
            browser.says("must be an amount such as 24.50").await;
            browser.is_accessible().await;
            browser.fits().await;
            browser.close().await;
        }
    }
}
