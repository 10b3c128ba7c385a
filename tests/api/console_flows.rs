//! Everything that people do at the console, done in a browser: with scripts, without them, and by keyboard alone. What became of
//! it is looked up at Dojo's stand-in and through the API.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Method, header::ACCEPT};
use serde_json::{Value, json};

use crate::{
    accounts::Folder,
    commands::{create_api_key, create_limited_key},
    console::{ALL, lose_receipt, number, path_of, proxy_at, two_sites, url_of},
    console_operator::{Mode, Operator},
    console_proxy::{SIGN_IN_FIRST, SignInProxy},
    daily_reconciliation::{UTC, around_today, lines, reconcile},
    support::{
        QUICK, TestApp, eventually, mail::MailServer, manual, pounds, send, ten_pounds, text,
        within,
    },
};

/// Where the tests' links are sent to.
const CUSTOMER: &str = "mari@example.com";

/// How long Dojo takes where a button is pressed twice, so that the second press comes before the page has changed.
const PAUSE: u64 = 400;

/// Something to do with a link: the form, and what becomes of it.
struct Action {
    /// The name of the way to the form.
    way: &'static str,
    /// The end of the form's path.
    slug: &'static str,
    link: LinkFor,
    fields: &'static [(&'static str, &'static str)],
    /// Whether what was entered is looked at once more.
    is_reviewed: bool,
    button: &'static str,
    outcome: &'static str,
    /// The call at Dojo, as the sandbox names it.
    call: &'static str,
    /// A member of the link, and its value afterwards, as JSON.
    changed: (&'static str, &'static str),
}

/// The link that an action needs.
#[derive(Clone, Copy)]
enum LinkFor {
    Waiting,
    Paid,
    WaitingToAuthorize,
    Authorized,
}

const ACTIONS: [Action; 7] = [
    Action {
        way: "Refund",
        slug: "refund",
        link: LinkFor::Paid,
        fields: &[("Amount to refund", "3.50"), ("Reason", "Returned goods")],
        is_reviewed: true,
        button: "Refund £3.50",
        outcome: "Refund of £3.50: done.",
        call: "refund",
        changed: ("/refundedAmount/value", "350"),
    },
    Action {
        way: "Capture",
        slug: "capture",
        link: LinkFor::Authorized,
        fields: &[("Amount to capture", "5.00")],
        is_reviewed: true,
        button: "Capture £5.00",
        outcome: "Capture of £5.00: done.",
        call: "capture",
        changed: ("/capturedAmount/value", "500"),
    },
    Action {
        way: "Reverse",
        slug: "reverse",
        link: LinkFor::Authorized,
        fields: &[],
        is_reviewed: false,
        button: "Reverse £10.00",
        outcome: "Reversal: done.",
        call: "reversal",
        changed: ("/status", "\"Reversed\""),
    },
    Action {
        way: "Change the amount",
        slug: "amount",
        link: LinkFor::WaitingToAuthorize,
        fields: &[("New amount", "12.00")],
        is_reviewed: true,
        button: "Change the amount to £12.00",
        outcome: "New amount £12.00: done.",
        call: "amount",
        changed: ("/amount/value", "1200"),
    },
    Action {
        way: "Change the tip",
        slug: "tip",
        link: LinkFor::WaitingToAuthorize,
        fields: &[("New tip", "2.00")],
        is_reviewed: true,
        button: "Change the tip to £2.00",
        outcome: "New tip £2.00: done.",
        call: "tips",
        changed: ("/tipsAmount/value", "200"),
    },
    Action {
        way: "Send a receipt",
        slug: "receipt",
        link: LinkFor::Paid,
        fields: &[("Email addresses", "ben@example.com")],
        is_reviewed: false,
        button: "Send the receipt",
        outcome: "Receipt: done.",
        call: "receipt",
        changed: ("/status", "\"Captured\""),
    },
    Action {
        way: "Cancel the link",
        slug: "cancel",
        link: LinkFor::Waiting,
        fields: &[],
        is_reviewed: false,
        button: "Cancel the link",
        outcome: "Cancellation: done.",
        call: "cancel",
        changed: ("/status", "\"Canceled\""),
    },
];

/// The console for two accounts, and somebody who uses it.
struct Desk {
    _folder: Folder,
    app: TestApp,
    mail: MailServer,
    operator: Operator,
    ann: String,
    ben: String,
    reader: String,
    /// Somebody who may see one of the accounts.
    eve: String,
}

impl Desk {
    async fn open(mode: Mode) -> Self {
        let mail = MailServer::start().await;
        let settings = mail.settings();
        let settings: Vec<_> = settings
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let own = [("CONSOLE_APPROVAL_LIMIT", "100.00"), UTC];
        let proxy = proxy_at("127.0.0.1");
        let folder = Folder::new();
        let app = two_sites(&folder, &[&QUICK[..], &settings, &own, &proxy].concat()).await;
        Self {
            _folder: folder,
            eve: create_limited_key(&app, "eve", "links:read", "leeds"),
            ann: create_api_key(&app, "ann", ALL),
            ben: create_api_key(&app, "ben", ALL),
            reader: create_api_key(&app, "reader", "links:read"),
            operator: Operator::start(mode, url_of(&app).await).await,
            app,
            mail,
        }
    }

    async fn create(&self, mut body: Value) -> Value {
        body["customer"] = json!({"emailAddress": CUSTOMER});
        self.app.create(&body).await.expect(201).json()
    }

    async fn link_for(&self, what: LinkFor, reference: &str) -> Value {
        let link = self
            .create(match what {
                LinkFor::Waiting | LinkFor::Paid => ten_pounds(reference),
                LinkFor::WaitingToAuthorize | LinkFor::Authorized => manual(reference),
            })
            .await;
        if matches!(what, LinkFor::Waiting | LinkFor::WaitingToAuthorize) {
            return link;
        }
        self.app.sandbox.pay(&link["paymentIntentId"]).await;
        self.app.read_until_confirmed(&link["id"]).await
    }

    /// The next call about this link takes a while.
    async fn slow_down(&self, call: &str, link: &Value) {
        let more = json!({"latencyMs": PAUSE, "paymentIntentId": link["paymentIntentId"]});
        self.app.sandbox.next(call, "latency", more).await;
    }

    /// How often Dojo has done something with a link.
    async fn times_done(&self, call: &str, link: &Value) -> usize {
        let mut calls = self.app.sandbox.done(call).await;
        let intent = text(&link["paymentIntentId"]);
        calls.retain(|call| call["method"] != "GET" && text(&call["path"]).contains(intent));
        calls.len()
    }

    /// How many links were created at Dojo with this reference.
    async fn times_created(&self, reference: &str) -> usize {
        let mut intents = self.app.sandbox.intents().await;
        intents.retain(|intent| intent["reference"] == reference);
        intents.len()
    }

    /// Somebody with a wrong key doesn't get in.
    async fn sign_in(&self) {
        let operator = &self.operator;
        operator.visit("/links").await;
        operator.is_at("/sign-in").await;
        operator.enter("API key", "dpl_wrong").await;
        operator.press("Sign in").await;
        operator.says("This is not an active API key.").await;
        operator.is_accessible().await;
        let sessions = "SELECT count(*) FROM console_sessions";
        assert_eq!(number(&self.app, sessions).await, 0);
        operator.sign_in(&self.ann).await;
        assert_eq!(number(&self.app, sessions).await, 1);
    }

    async fn sign_out(&self) {
        self.operator.sign_out().await;
        let sessions = "SELECT count(*) FROM console_sessions";
        assert_eq!(number(&self.app, sessions).await, 0);
        self.operator.browser.page.back().await.unwrap();
        self.operator.visit("/links").await;
        self.operator.is_at("/sign-in").await;
    }

    /// Carries out an action, and tries in every way to do it twice.
    async fn carry_out(&self, action: &Action) {
        let operator = &self.operator;
        let link = self
            .link_for(action.link, &format!("To {}", action.slug))
            .await;
        operator.open(&link).await;
        operator.press(action.way).await;
        operator
            .is_at(&path_of(&link, &format!("/{}", action.slug)))
            .await;
        operator.is_accessible().await;
        self.fill_in(action).await;
        operator.is_accessible().await;
        assert_eq!(self.times_done(action.call, &link).await, 0);
        self.slow_down(action.call, &link).await;
        operator.press_twice(action.button).await;
        operator.is_at(&path_of(&link, "")).await;
        operator.says(action.outcome).await;

        operator.reload().await;
        operator.says(action.outcome).await;
        // If the page before is what a form led to, the browser sends that form again.
        operator.go_back().await;
        operator.says("This form was sent before.").await;
        if !action.is_reviewed {
            self.fill_in(action).await;
        }
        operator.press(action.button).await;
        operator.says("Nothing new was done this time.").await;
        operator.says(action.outcome).await;

        assert_eq!(self.times_done(action.call, &link).await, 1);
        let [operation] = &self.app.operations(&link).await[..] else {
            panic!("{} is one operation", action.way);
        };
        assert_eq!(operation["status"], "Succeeded");
        assert_eq!(operation["createdBy"], "ann");
        let (member, value) = action.changed;
        let value: Value = serde_json::from_str(value).unwrap();
        eventually(&format!("{member} is {value}"), async || {
            let link = self.app.link(&link["id"]).await;
            (*link.pointer(member)? == value).then_some(())
        })
        .await;
    }

    /// Fills in the form of an action, up to the button that does it.
    async fn fill_in(&self, action: &Action) {
        for (label, what) in action.fields {
            self.operator.enter(label, what).await;
        }
        if action.is_reviewed {
            self.operator.press("Continue").await;
        }
        self.operator
            .browser
            .find_one("button[name=step][value=do]")
            .await;
    }

    /// What Dojo rejects can be tried again. A form that was sent can't be sent with other values.
    async fn refund_after_a_rejection(&self) {
        let operator = &self.operator;
        let link = self.link_for(LinkFor::Paid, "Rejected").await;
        self.app
            .sandbox
            .next("refund", "status", json!({"status": 400}))
            .await;
        operator.open(&link).await;
        operator.press("Refund").await;
        operator.enter("Amount to refund", "3.5").await;
        operator.press("Continue").await;
        operator.says("must be an amount such as 24.50").await;
        operator.is_accessible().await;
        operator.enter("Amount to refund", "3.50").await;
        operator.press("Continue").await;
        operator.press("Refund £3.50").await;
        operator.says("Rejected by Dojo").await;
        operator.says("Possible now: Refund").await;
        operator.is_accessible().await;
        assert_eq!(self.times_done("refund", &link).await, 0);
        let form = path_of(&link, "/refund");
        let form = format!("{form}?key={}", operator.browser.value("key").await);
        operator.press("Continue").await;
        operator.press("Refund £3.50").await;
        operator.says("Refund of £3.50: done.").await;

        operator.visit(&form).await;
        operator.says("This form was sent before.").await;
        operator.enter("Amount to refund", "1.00").await;
        operator.press("Continue").await;
        operator.press("Refund £1.00").await;
        operator
            .says("This form was sent before, with other values.")
            .await;
        operator.is_accessible().await;
        assert_eq!(self.times_done("refund", &link).await, 1);
    }

    /// Creates a link that is sent to its customer, with reminders.
    async fn create_and_send(&self) {
        let operator = &self.operator;
        let day = around_today().1.saturating_add(time::Duration::days(20));
        let fill_in = async |amount: &str| {
            operator.enter("Amount", amount).await;
            operator.enter("Reference", "Theatre 1").await;
            operator.enter("Customer’s email address", CUSTOMER).await;
            operator
                .enter_day("Last day to pay", &day.to_string())
                .await;
            operator
                .choose(
                    "How the money is collected",
                    "When somebody captures it; otherwise it is released",
                )
                .await;
        };
        operator.press("New link").await;
        operator.is_at("/links/new").await;
        operator.is_accessible().await;
        fill_in("ten").await;
        operator
            .tick("Send the link to the customer by email")
            .await;
        operator.enter("Note in the email", "See you soon").await;
        operator.choose("Reminder", "After 3 days").await;
        operator
            .choose("Reminder before the last day", "1 day before the last day")
            .await;
        operator.press("Create the link").await;
        operator.says("must be an amount such as 24.50").await;
        operator.is_accessible().await;
        assert_eq!(self.times_created("Theatre 1").await, 0);
        operator.enter("Amount", "10.00").await;
        let slow = json!({"latencyMs": PAUSE});
        self.app.sandbox.next("create", "latency", slow).await;
        operator.press_twice("Create the link").await;
        operator.says("Waiting for £10.00").await;
        operator.reload().await;
        operator.says("Waiting for £10.00").await;
        assert_eq!(self.times_created("Theatre 1").await, 1);

        let page = self
            .app
            .get("/v1/payment-links?reference=Theatre%201")
            .await;
        let link = page.expect(200).json()["data"][0].clone();
        operator.is_at(&path_of(&link, "")).await;
        assert_eq!(link["amount"], pounds(1000));
        assert_eq!(link["captureMode"], "Manual");
        let reminders = json!([{"after": "P3D"}, {"beforeExpiry": "P1D"}]);
        assert_eq!(link["reminders"], reminders);
        assert!(text(&link["expireAt"]).starts_with(&day.to_string()));
        assert_eq!(self.mail.received(1).await.len(), 1);
        self.send_again(&link).await;
    }

    /// Sends the link once more, with a note.
    async fn send_again(&self, link: &Value) {
        let operator = &self.operator;
        let note = "Here it is again";
        operator.press("Send to the customer").await;
        operator.is_at(&path_of(link, "/send")).await;
        operator.is_accessible().await;
        operator.enter("Note", note).await;
        operator.press("Send the email").await;
        operator.is_at(&path_of(link, "")).await;
        operator.says(&format!("Email to {CUSTOMER}")).await;
        operator.reload().await;
        operator.go_back().await;
        operator.says("This form was sent before.").await;
        operator.enter("Note", note).await;
        operator.press("Send the email").await;
        operator.says("Nothing new was done this time.").await;
        let messages = path_of(link, "/messages");
        let messages = messages.replace("/links", "/v1/payment-links");
        let messages = self.app.get(&messages).await.expect(200).json();
        assert_eq!(messages["data"].as_array().unwrap().len(), 2);
        let received = self.mail.received(2).await;
        assert_eq!(received.len(), 2);
        assert!(received[1].to_string().contains(note));
    }

    async fn renew(&self) {
        let operator = &self.operator;
        let link = self.link_for(LinkFor::Waiting, "Renewed").await;
        self.app
            .operate(&link, "cancel", &Value::Null)
            .await
            .expect(200);
        operator.open(&link).await;
        operator.press("Renew").await;
        operator.is_at(&path_of(&link, "/renew")).await;
        operator.is_accessible().await;
        let slow = json!({"latencyMs": PAUSE});
        self.app.sandbox.next("create", "latency", slow).await;
        operator.press_twice("Renew the link").await;
        operator.says("It takes the place of").await;
        operator.go_back().await;
        operator.says("This form was sent before.").await;
        operator.press("Renew the link").await;
        operator.says("Nothing new was done this time.").await;
        assert_eq!(self.times_created("Renewed").await, 2);
        let renewed = &self.app.link(&link["id"]).await["replacedBy"];
        let page = format!("/links/{}", text(renewed));
        operator.is_at(&page).await;
    }

    /// Reads a payment from Dojo that no webhook has told of.
    async fn refresh(&self) {
        let operator = &self.operator;
        let link = self.link_for(LinkFor::Waiting, "Not told").await;
        operator.open(&link).await;
        self.app.sandbox.drop_webhooks().await;
        self.app.sandbox.pay(&link["paymentIntentId"]).await;
        operator.press("Read from Dojo now").await;
        operator.says("Read from Dojo just now.").await;
        operator.says("Paid £10.00").await;
        self.app.sandbox.clear("webhook-faults").await;
        let link = self.app.link(&link["id"]).await;
        assert_eq!(
            (&link["status"], &link["confirmed"]),
            (&json!("Captured"), &json!(true))
        );
    }

    /// Finds links by what is known of them.
    async fn search(&self) {
        let operator = &self.operator;
        let mut both = Vec::new();
        for reference in ["Found 1", "Found 2"] {
            let mut body = ten_pounds(reference);
            body["customer"] = json!({"emailAddress": "found@example.com"});
            both.push(self.app.create(&body).await.expect(201).json());
        }
        self.app.sandbox.pay(&both[0]["paymentIntentId"]).await;
        self.app.read_until_confirmed(&both[0]["id"]).await;
        operator.press("Links").await;
        operator.enter("Search", "found@example.com").await;
        operator.press("Search").await;
        operator
            .says("Links whose customer’s email address is")
            .await;
        assert_eq!(self.references().await, ["Found 2", "Found 1"]);
        operator.press("Filters").await;
        operator.choose("Status", "Captured").await;
        operator.press("Apply").await;
        eventually("one is left", async || {
            (self.references().await == ["Found 1"]).then_some(())
        })
        .await;
        operator.is_accessible().await;
        let (yesterday, tomorrow) = around_today();
        let before = yesterday.previous_day().unwrap().to_string();
        operator.enter_day("Created from", &before).await;
        operator.enter_day("Created until", &before).await;
        operator.press("Apply").await;
        operator.says("Nothing was found.").await;
        let tomorrow = tomorrow.to_string();
        operator.enter_day("Created until", &tomorrow).await;
        operator.press("Apply").await;
        eventually("it was created in these days", async || {
            (self.references().await == ["Found 1"]).then_some(())
        })
        .await;
        operator.press("Clear").await;
        operator.browser.find_one("#q[value='']").await;
        self.search_instead().await;
        // What belongs to one link leads there.
        let intent = text(&both[1]["paymentIntentId"]);
        operator.enter("Search", intent).await;
        operator.press("Search").await;
        operator.is_at(&path_of(&both[1], "")).await;
    }

    /// Finds by a number what it may mean besides.
    async fn search_instead(&self) {
        let operator = &self.operator;
        let mut body = ten_pounds("10 seats");
        body["amount"] = pounds(2000);
        self.create(body).await;
        operator.enter("Search", "10").await;
        operator.press("Search").await;
        operator.says("Links whose reference starts with 10").await;
        assert_eq!(self.references().await, ["10 seats"]);
        operator.is_accessible().await;
        operator.press("amount is 10").await;
        operator.says("Links whose amount is 10").await;
        assert_eq!(self.references().await[..2], ["Found 2", "Found 1"]);
        operator.press("reference starts with 10").await;
        operator.says("Links whose reference starts with 10").await;
        assert_eq!(self.references().await, ["10 seats"]);
    }

    /// Copies what a link's page shows, and presses the button once too often.
    async fn copy(&self) {
        let operator = &self.operator;
        let link = self.link_for(LinkFor::Waiting, "To copy").await;
        operator.open(&link).await;
        let button = "button[data-copy]:not([hidden])";
        operator.browser.find_one(button).await;
        // The browser's own clipboard belongs to the whole machine.
        let stub = "window.copied = [];
            navigator.clipboard.writeText = async (text) => { copied.push(text); };";
        for (button, source) in [
            ("Copy the id", ".copyable code"),
            ("Copy the address", "[data-copy-source]"),
        ] {
            operator.read(stub).await;
            operator.press_twice(button).await;
            let shown = format!("return document.querySelector('{source}').textContent");
            let shown = operator.read(&shown).await;
            eventually("it is copied twice", async || {
                let copied = operator.read("return copied").await;
                (copied == json!([shown, shown])).then_some(())
            })
            .await;
            let announced = "return document.getElementById('announcement').textContent";
            assert_eq!(operator.read(announced).await, "Copied");
            let names = "return [...document.querySelectorAll('[data-copy]')].map(button => button.textContent)";
            eventually("the button has its name again", async || {
                let names = operator.read(names).await;
                (names == json!(["Copy the address", "Copy the id"])).then_some(())
            })
            .await;
        }
    }

    /// Goes to the main pages by two keys, until that is turned off.
    async fn set_preferences(&self) {
        let operator = &self.operator;
        if operator.has_scripts() {
            for (key, path) in [("a", "/attention"), ("b", "/books"), ("l", "/links")] {
                operator.use_shortcut(["g", key]).await;
                operator.is_at(path).await;
            }
        }
        operator.press("Preferences").await;
        operator.is_at("/preferences").await;
        operator.is_accessible().await;
        operator.untick("Keyboard shortcuts").await;
        operator.press("Save").await;
        operator.says("Saved.").await;
        operator.is_accessible().await;
        operator.press("Links").await;
        operator.is_at("/links").await;
        operator.browser.find_one("footer").await;
        let shortcuts = "return document.querySelectorAll('.keys').length";
        assert_eq!(operator.read(shortcuts).await, 0);
    }

    /// The references in the list.
    async fn references(&self) -> Vec<String> {
        let script = "return [...document.querySelectorAll('tbody th')].map(cell => cell.textContent.trim())";
        let found = self.operator.read(script).await;
        serde_json::from_value(found).unwrap()
    }

    async fn turn_pages(&self) {
        let operator = &self.operator;
        let bodies: Vec<_> = (0..27)
            .map(|n| ten_pounds(&format!("Page {n:02}")))
            .collect();
        for answer in join_all(bodies.iter().map(|body| self.app.create(body))).await {
            answer.expect(201);
        }
        operator.press("Links").await;
        operator.enter("Search", "Page").await;
        operator.press("Search").await;
        operator.says("Links whose reference starts with").await;
        let mut found = self.references().await;
        assert_eq!(found.len(), 25);
        operator.press("Older").await;
        operator.browser.find_one("a[rel=first]").await;
        found.extend(self.references().await);
        found.sort();
        let all: Vec<_> = (0..27).map(|n| format!("Page {n:02}")).collect();
        assert_eq!(found, all);
        operator.press("Newest").await;
        eventually("the newest are shown", async || {
            (self.references().await.len() == 25).then_some(())
        })
        .await;
        // They are the newest that the search finds.
        operator.says("Links whose reference starts with").await;
    }

    /// One person requests refunds above the limit, and withdraws one.
    async fn request_approvals(&self, link: &Value) {
        let operator = &self.operator;
        for amount in ["150.00", "160.00", "170.00"] {
            operator.open(link).await;
            operator.press("Refund").await;
            operator.enter("Amount to refund", amount).await;
            operator.press("Continue").await;
            operator.says("A second person must approve it").await;
            operator.is_accessible().await;
            operator.press("Request the approval").await;
            operator.says("Waits for a second person").await;
        }
        operator.go_back().await;
        operator.says("This form was sent before.").await;
        operator.press("Request the approval").await;
        operator.says("Nothing new was requested this time.").await;
        operator.press("Withdraw").await;
        operator.says("Decided by").await;
        operator.is_accessible().await;
        assert_eq!(self.times_done("refund", link).await, 0);
        let approvals = "SELECT count(*) FROM console_approvals";
        assert_eq!(number(&self.app, approvals).await, 3);
    }

    /// Another person approves one and rejects one.
    async fn decide(&self, link: &Value) {
        let operator = &self.operator;
        operator.press("Approvals").await;
        operator.is_at("/approvals").await;
        operator.is_accessible().await;
        operator.press("Refund of £150.00").await;
        operator.says("Waits for a second person").await;
        operator.is_accessible().await;
        self.slow_down("refund", link).await;
        operator.press_twice("Approve and carry out").await;
        operator.says("Approved and done").await;
        operator.is_accessible().await;
        operator.press("Approvals").await;
        operator.is_at("/approvals").await;
        operator.press("Refund of £160.00").await;
        operator.press("Reject").await;
        operator.says("Decided by").await;
        assert_eq!(self.times_done("refund", link).await, 1);
        let [operation] = &self.app.operations(link).await[..] else {
            panic!("it is one operation");
        };
        assert_eq!(operation["createdBy"], "ann, approved by ben");
        let refunded = &self.app.link(&link["id"]).await["refundedAmount"];
        assert_eq!(*refunded, pounds(15_000));
    }

    /// A paid link over 500.00 GBP.
    async fn large_link(&self) -> Value {
        let mut body = ten_pounds("Large");
        body["amount"] = pounds(50_000);
        let link = self.create(body).await;
        self.app.sandbox.pay(&link["paymentIntentId"]).await;
        self.app.read_until_confirmed(&link["id"]).await
    }

    /// Two receipts whose outcome nobody knows.
    async fn lose_outcomes(&self) {
        for key in ["lost-1", "lost-2"] {
            let link = self.link_for(LinkFor::Paid, key).await;
            lose_receipt(&self.app, key, &link).await;
        }
    }

    async fn settle(&self) {
        let operator = &self.operator;
        let unconfirmed = "/v1/operations?status=Unconfirmed";
        eventually("both are unconfirmed", async || {
            let found = self.app.get(unconfirmed).await.expect(200).json();
            (found["data"].as_array()?.len() == 2).then_some(())
        })
        .await;
        for (button, outcome, status) in [
            (
                "The portal shows it: it was done",
                "Receipt: done.",
                "Succeeded",
            ),
            (
                "The portal doesn’t show it: it was not done",
                "Receipt: not done.",
                "Failed",
            ),
        ] {
            operator.press("Needs attention").await;
            operator.is_at("/attention").await;
            operator.is_accessible().await;
            operator.press("Record the outcome").await;
            operator
                .says("What you record here can’t be changed.")
                .await;
            operator.is_accessible().await;
            let form = operator.browser.path().await;
            operator.press(button).await;
            operator.says(outcome).await;
            let operation = self.app.get(&format!("/v1{form}")).await.expect(200).json();
            assert_eq!(operation["status"], status);
        }
        operator.press("Needs attention").await;
        operator.says("Nothing needs your attention now.").await;
    }

    /// Somebody who may only read is offered nothing else.
    async fn only_read(&self) {
        let link = self.link_for(LinkFor::Paid, "For reading").await;
        self.operator.sign_in(&self.reader).await;
        self.is_offered_only_reading(&link).await;
        self.sign_out().await;
    }

    async fn is_offered_only_reading(&self, link: &Value) {
        let operator = &self.operator;
        operator.open(link).await;
        operator.says("Paid £10.00").await;
        operator.is_accessible().await;
        let ways = "return document.querySelectorAll('main .ways a, header a[href=\"/links/new\"]').length";
        assert_eq!(operator.read(ways).await, 0);
        let here = operator.browser.page.current_url().await.unwrap();
        let form = here.join(&path_of(link, "/refund")).unwrap();
        operator.browser.visit(form.as_str()).await;
        operator.browser.find_one("h1").await;
        operator.is_accessible().await;
        let forms = "return document.querySelectorAll('main form').length";
        assert_eq!(operator.read(forms).await, 0);
    }

    /// Somebody who is signed in at a proxy needs no key. The proxy says with each request who they are and what they may do.
    async fn come_through_a_proxy(&self) {
        const CLEO: &str = "console:cleo@example.com";
        let operator = &self.operator;
        let proxy = SignInProxy::to(url_of(&self.app).await).await;
        let enter = async |path: &str| {
            let url = format!("{}{path}", proxy.url);
            operator.browser.visit(&url).await;
        };
        let link = self.link_for(LinkFor::Paid, "Through a proxy").await;
        let page = path_of(&link, "");
        enter(&page).await;
        operator.says(SIGN_IN_FIRST).await;

        proxy.sign_in("Cleo@example.com", "finance,staff");
        enter(&page).await;
        operator.is_at(&page).await;
        operator.says("Paid £10.00").await;
        let name = "return document.querySelector('header .person span').textContent";
        assert_eq!(operator.read(name).await, CLEO);
        operator.press("Refund").await;
        operator.enter("Amount to refund", "2.00").await;
        operator.press("Continue").await;
        operator.press("Refund £2.00").await;
        operator.says("Refund of £2.00: done.").await;
        operator.says(&format!("Requested by {CLEO}")).await;
        let [operation] = &self.app.operations(&link).await[..] else {
            panic!("it is one operation");
        };
        assert_eq!(operation["createdBy"], CLEO);
        operator.press("Audit").await;
        operator.is_at("/audit").await;
        let entries = self.audited().await;
        for (what, outcome) in [("Sign in", "done"), ("Refund", "done")] {
            let entry = [CLEO, what, outcome].map(str::to_owned);
            assert!(entries.contains(&entry), "{entry:?} in {entries:?}");
        }

        // The session ends here. Whoever is still signed in at the proxy gets another one.
        let sessions = "SELECT count(*) FROM console_sessions";
        operator.sign_out().await;
        assert_eq!(number(&self.app, sessions).await, 0);
        enter("/links").await;
        operator.is_at("/links").await;
        assert_eq!(number(&self.app, sessions).await, 1);
        proxy.sign_out();
        operator.reload().await;
        operator.says(SIGN_IN_FIRST).await;
        // Without the proxy, the session is worth nothing.
        operator.visit("/links").await;
        operator.is_at("/sign-in").await;

        proxy.sign_in("dan@example.com", "support");
        enter("/links").await;
        self.is_offered_only_reading(&link).await;
    }

    /// Shows the links of one account.
    async fn filter_by_account(&self) {
        let operator = &self.operator;
        let mut body = ten_pounds("Of Leeds");
        body["account"] = json!("leeds");
        self.create(body).await;
        operator.press("Links").await;
        operator.browser.find_one("#q[value='']").await;
        operator.press("Filters").await;
        for account in ["default", "leeds"] {
            operator.choose("Account", account).await;
            operator.press("Apply").await;
            eventually("only its links are shown", async || {
                let cells = "return [...document.querySelectorAll('td[data-name=Account]')].map(cell => cell.textContent)";
                let cells = operator.read(cells).await;
                let cells = cells.as_array().unwrap();
                (!cells.is_empty() && cells.iter().all(|cell| cell == account)).then_some(())
            })
            .await;
        }
        assert_eq!(self.references().await, ["Of Leeds"]);
        operator.is_accessible().await;
    }

    /// Somebody who may see one account sees its links, and nothing to choose.
    async fn see_one_account(&self) {
        let operator = &self.operator;
        operator.sign_in(&self.eve).await;
        operator.says("Of Leeds").await;
        assert_eq!(self.references().await, ["Of Leeds"]);
        operator.press("Filters").await;
        operator.browser.find_one("#status").await;
        let accounts = "return document.querySelectorAll('#account, [data-name=Account]').length";
        assert_eq!(operator.read(accounts).await, 0);
        operator.is_accessible().await;
        self.sign_out().await;
    }

    /// Reads the books of several days, saves them, and looks at a comparison.
    async fn read_the_books(&self) {
        let operator = &self.operator;
        self.app.everything_is_booked().await;
        let (from, to) = around_today();
        operator.press("Books").await;
        operator.is_at("/books").await;
        operator.is_accessible().await;
        operator
            .enter_day("First business day", &from.to_string())
            .await;
        operator
            .enter_day("Last business day", &to.to_string())
            .await;
        operator.press("Show").await;
        let file = operator
            .browser
            .find_one(&format!("a[download][href*='{to}']"))
            .await;
        let file = file.attr("href").await.unwrap().unwrap();
        operator.is_accessible().await;
        let movements = file.replace("/books/movements.csv", "/v1/movements");
        let listed = self.app.get(&movements).await.expect(200).json();
        let listed: Vec<_> = listed["data"].as_array().unwrap().clone();
        let mut references: Vec<_> = listed
            .iter()
            .map(|movement| text(&movement["reference"]).to_owned())
            .collect();
        assert!(references.contains(&"Large".to_owned()), "{references:?}");
        let ledger = "return [...document.querySelectorAll('.ledger tbody th')].map(cell => cell.textContent.trim())";
        let shown = operator.read(ledger).await;
        let mut shown: Vec<String> = serde_json::from_value(shown).unwrap();
        references.sort();
        shown.sort();
        assert_eq!(shown, references);

        operator.press("Download as CSV").await;
        let name = format!("movements-{from}-to-{to}.csv");
        let saved = operator.browser.downloaded(&name).await;
        let request = self.app.request(Method::GET, &movements);
        let csv = send(request.header(ACCEPT, "text/csv")).await.expect(200);
        assert_eq!(saved, csv.text);

        operator.press("Today").await;
        operator.says("Previous day").await;
        operator.press("Previous day").await;
        operator.says("Next day").await;
        operator.press("See the comparison of this day").await;
        operator.says("compared with Dojo").await;
        let path = operator.browser.path().await;
        let day = path.rsplit('/').next().unwrap();
        let date = [from, from.previous_day().unwrap(), to]
            .into_iter()
            .find(|date| date.to_string() == day)
            .unwrap();
        operator.says("Not compared").await;
        lines(&mut reconcile(&self.app, date, date));
        operator.reload().await;
        operator.says("Transactions at Dojo").await;
        operator.is_accessible().await;
    }

    /// Reads who did what, back to the beginning.
    async fn audit(&self) {
        let operator = &self.operator;
        operator.press("Audit").await;
        operator.is_at("/audit").await;
        operator.is_accessible().await;
        let mut entries: Vec<[String; 3]> = Vec::new();
        loop {
            entries.extend(self.audited().await);
            let is_last = "return document.querySelector('a[rel=next]') === null";
            if operator.read(is_last).await == json!(true) {
                break;
            }
            let before = operator.browser.page.current_url().await.unwrap();
            operator.press("Older").await;
            eventually("older entries are shown", async || {
                let now = operator.browser.page.current_url().await.unwrap();
                (now != before).then_some(())
            })
            .await;
        }
        let count = number(&self.app, "SELECT count(*) FROM console_audit").await;
        assert_eq!(i64::try_from(entries.len()).unwrap(), count);
        for (who, what, outcome) in [
            ("nobody", "Sign in", "rejected"),
            ("ann", "Refund", "done"),
            ("ann", "New link", "done"),
            ("ann", "Read from Dojo", "done"),
        ] {
            let entry = [who, what, outcome].map(str::to_owned);
            assert!(entries.contains(&entry), "{entry:?} in {entries:?}");
        }
    }

    /// Who did what, and what came of it, on this page of the audit list.
    async fn audited(&self) -> Vec<[String; 3]> {
        let table = "return [...document.querySelectorAll('tbody tr')].map(row =>
            ['Who', 'What', 'Outcome'].map(name => row.querySelector(`[data-name=${name}]`).firstChild.textContent.trim()))";
        serde_json::from_value(self.operator.read(table).await).unwrap()
    }

    async fn look_at_health(&self) {
        let operator = &self.operator;
        operator.press("Health").await;
        operator.is_at("/health").await;
        operator
            .says(&format!("Version {}", env!("CARGO_PKG_VERSION")))
            .await;
        operator.says("It serves requests.").await;
        self.app.get("/readyz").await.expect(200);
        operator.is_accessible().await;
        let times_asked = async || {
            let calls = self.app.sandbox.look("requests").await;
            let calls = calls.as_array().unwrap().iter();
            calls.filter(|call| call["path"] == "/webhooks").count()
        };
        let before = times_asked().await;
        operator.press("Ask Dojo again").await;
        eventually("Dojo is asked", async || {
            (times_asked().await > before).then_some(())
        })
        .await;
        operator.says("Dojo was last asked on").await;
    }

    /// Everything that can be done with a link.
    async fn manage_links(&self) {
        self.sign_in().await;
        self.create_and_send().await;
        let requested = "SELECT count(*) FROM console_audit WHERE outcome = 'requested'";
        let before = number(&self.app, requested).await;
        for action in &ACTIONS {
            self.carry_out(action).await;
        }
        // Each form was sent again later. A browser may send it once for a double click, but not each time.
        let sent = number(&self.app, requested).await - before;
        assert!(sent > 2 * i64::try_from(ACTIONS.len()).unwrap(), "{sent}");
        self.refund_after_a_rejection().await;
        self.renew().await;
        self.refresh().await;
        if self.operator.has_scripts() {
            self.copy().await;
        }
        self.audit().await;
        self.sign_out().await;
    }

    /// Everything else.
    async fn look_after_the_rest(&self) {
        self.lose_outcomes().await;
        let large = self.large_link().await;
        self.operator.sign_in(&self.ann).await;
        self.request_approvals(&large).await;
        self.sign_out().await;
        self.operator.sign_in(&self.ben).await;
        self.decide(&large).await;
        self.settle().await;
        self.search().await;
        self.turn_pages().await;
        self.filter_by_account().await;
        self.read_the_books().await;
        self.look_at_health().await;
        self.set_preferences().await;
        self.sign_out().await;
        self.see_one_account().await;
        self.only_read().await;
        self.come_through_a_proxy().await;
    }
}

/// How long the work of one test may take, even on a busy machine. A browser that hangs responds to nothing.
const LIMIT: Duration = Duration::from_mins(5);

async fn manage_links(mode: Mode) {
    let desk = Desk::open(mode).await;
    within(LIMIT, "everything is done with links", desk.manage_links()).await;
    desk.operator.browser.close().await;
}

async fn look_after_the_rest(mode: Mode) {
    let desk = Desk::open(mode).await;
    within(LIMIT, "everything else is done", desk.look_after_the_rest()).await;
    desk.operator.browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_done_with_links_with_scripts() {
    manage_links(Mode::Scripts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_done_with_links_without_scripts() {
    manage_links(Mode::NoScripts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_done_with_links_by_keyboard_alone() {
    manage_links(Mode::Keyboard).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_else_is_done_with_scripts() {
    look_after_the_rest(Mode::Scripts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_else_is_done_without_scripts() {
    look_after_the_rest(Mode::NoScripts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_else_is_done_by_keyboard_alone() {
    look_after_the_rest(Mode::Keyboard).await;
}
