//! Pages of the console that bring themselves up to date: they wait for what happens to what they show, and for nothing else, as
//! long as the session lasts.

use std::time::{Duration, Instant};

use futures_util::future::{join_all, select_all};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::{
    accounts::Folder,
    commands::create_limited_key,
    console::{Visitor, lose_receipt, path_of, run, start, two_sites},
    support::{
        Answer, QUICK, TestApp, event, eventually, receiver::Receiver, send, ten_pounds, text,
    },
};

/// Less than a page waits if nothing happens.
const SOON: Duration = Duration::from_secs(15);

/// A request for the part of a page that changes.
fn ask(visitor: &Visitor, path: &str, seen: &str, tag: &str) -> RequestBuilder {
    let request = visitor.request(Method::GET, path).header("x-live", seen);
    request.header("if-none-match", tag)
}

/// What a page says about the part of it that changes.
struct Live {
    page: String,
    path: String,
    tag: String,
    seen: i64,
}

impl Live {
    async fn of(visitor: &Visitor, path: &str) -> Self {
        let page = visitor.get(path).await.expect(200).text;
        let value = |name: &str| {
            let rest = page.split(&format!("data-{name}=\"")).nth(1).unwrap();
            let value = rest.split('"').next().unwrap();
            value.replace("&#34;", "\"").replace("&#38;", "&")
        };
        Self {
            path: value("live"),
            tag: value("tag"),
            seen: value("seen").parse().unwrap(),
            page,
        }
    }

    /// The request that the page sends to wait for what happens behind the position `seen`.
    fn request(&self, visitor: &Visitor, seen: i64) -> RequestBuilder {
        ask(visitor, &self.path, &seen.to_string(), &self.tag)
    }

    /// The response to a page that has just been loaded, if it came because something happened.
    async fn told(visitor: &Visitor, path: &str, happens: impl AsyncFnOnce()) -> Option<Answer> {
        let live = Self::of(visitor, path).await;
        let begun = Instant::now();
        let waiting = tokio::spawn(send(live.request(visitor, live.seen)));
        happens().await;
        let answer = waiting.await.unwrap();
        (begun.elapsed() < SOON).then_some(answer)
    }
}

/// Creates a link, and returns once those who see all links have been told.
async fn announced(app: &TestApp, boss: &Visitor, account: &str, reference: &str) -> Value {
    let mut body = ten_pounds(reference);
    body["account"] = json!(account);
    let mut link = Value::Null;
    let create = async || link = app.create(&body).await.expect(201).json();
    Live::told(boss, "/links", create).await;
    link
}

#[tokio::test]
async fn a_page_brings_itself_up_to_date() {
    let app = start(&[]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let link = app.created().await;
    for path in [path_of(&link, ""), "/links".to_owned()] {
        // A scheduled read may change the page between two requests.
        eventually("the page stays the same", async || {
            let live = Live::of(&visitor, &path).await;
            let now = |tag: &str| send(ask(&visitor, &live.path, "now", tag));
            let same = now(&live.tag).await;
            let changed = now("\"other\"").await.expect(200);
            if same.status != 304 || !live.page.contains(&changed.text) {
                return None;
            }
            assert_eq!(same.header("etag"), live.tag);
            assert!(!changed.text.contains("<html") && !changed.text.contains("csrf"));
            Some(())
        })
        .await;
    }
    let path = path_of(&link, "");
    let live = Live::of(&visitor, &path).await;
    assert!(
        live.page.contains("QR code of the address"),
        "{}",
        live.page
    );
    app.sandbox.pay(&link["paymentIntentId"]).await;
    eventually("Dojo's response says that the link is paid", async || {
        let link = app.refresh(&link["id"]).await.expect(200).json();
        (link["status"] == "Captured" && link["confirmed"] == true).then_some(())
    })
    .await;
    let fresh = send(ask(&visitor, &path, "now", &live.tag)).await;
    let fresh = fresh.expect(200).text;
    assert!(fresh.contains("Paid £10.00"), "{fresh}");
    // Nobody pays it again.
    assert!(!fresh.contains("QR code"), "{fresh}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_waits_until_something_happens_to_what_it_shows() {
    let folder = Folder::new();
    let app = two_sites(&folder, &[("RUN_JOBS", "true")]).await;
    let key = create_limited_key(&app, "eve", "links:read", "leeds");
    let (boss, eve) = (
        Visitor::bootstrap(&app).await,
        Visitor::with_key(&app, &key).await,
    );
    let empty = eve.sees("/links", "There are no links here yet.").await;
    assert!(!empty.contains("<table"), "{empty}");

    eventually("the list waits for a link of its account", async || {
        let mut own = Value::Null;
        let happens = async || {
            announced(&app, &boss, "default", "Order of London").await;
            own = announced(&app, &boss, "leeds", "Order of Leeds").await;
        };
        let list = Live::told(&eve, "/links", happens).await?.expect(200);
        assert!(list.header("x-live").parse::<i64>().unwrap() > 0);
        assert!(!list.text.contains("no links"), "{}", list.text);
        list.text.contains(&path_of(&own, "")).then_some(())
    })
    .await;

    eventually("the link's page waits for its payment", async || {
        let link = announced(&app, &boss, "leeds", "Order of Leeds").await;
        let happens = async || {
            announced(&app, &boss, "leeds", "Another order").await;
            app.sandbox.pay(&link["paymentIntentId"]).await;
            app.read_until_confirmed(&link["id"]).await;
        };
        let answer = Live::told(&eve, &path_of(&link, ""), happens).await?;
        answer.text.contains("Paid £10.00").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_page_shows_after_a_while_what_is_not_in_the_feed() {
    let app = start(&[("REQUEST_TIMEOUT", "5s")]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let link = app.created().await;
    let live = Live::of(&visitor, &path_of(&link, "")).await;
    let waiting = tokio::spawn(send(live.request(&visitor, live.seen)));
    app.deliver(&event("evt_1", &link, "Captured"))
        .await
        .expect(204);
    let fresh = waiting.await.unwrap().expect(200);
    assert!(
        fresh.text.contains("Dojo hasn’t confirmed this yet"),
        "{}",
        fresh.text
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_shows_what_becomes_of_a_request_and_of_callbacks() {
    let app = start(&[&QUICK[..], &[("CALLBACK_ALLOW", "127.0.0.1")]].concat()).await;
    let receiver = Receiver::start().await;
    let visitor = Visitor::bootstrap(&app).await;
    let link = app.paid().await;
    lose_receipt(&app, "a", &link).await;
    let operation = eventually("the operation is unconfirmed", async || {
        let operation = app.operations(&link).await.pop()?;
        (operation["status"] == "Unconfirmed").then_some(operation)
    })
    .await;
    let id = text(&operation["id"]);
    let page = path_of(&link, &format!("?operation={id}"));
    let live = Live::of(&visitor, &page).await;
    assert_eq!(live.path, page);
    let notice = "data-announce>Receipt: ";
    let unknown = format!("{notice}nothing at Dojo shows");
    assert!(live.page.contains(&unknown), "{}", live.page);
    assert!(!live.page.contains(&receiver.url), "{}", live.page);

    app.subscribe(&json!({"url": receiver.url})).await;
    visitor
        .submit(&format!("/operations/{id}"), &[("outcome", "done")])
        .await
        .expect(303);
    let done = format!("{notice}done.");
    eventually("the page shows both", async || {
        let fresh = send(ask(&visitor, &live.path, "now", &live.tag)).await;
        let fresh = fresh.expect(200).text;
        assert!(fresh.contains(&done), "{fresh}");
        let is_told = fresh.contains(&receiver.url) && fresh.contains("delivered on attempt 1");
        is_told.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_page_that_waits_gets_nothing_once_its_session_has_ended() {
    let app = start(&[("RUN_JOBS", "true")]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let live = Live::of(&visitor, "/links").await;
    let waiting = tokio::spawn(send(live.request(&visitor, live.seen)));
    eventually("it waits", async || {
        (app.metric("feed_waiting_readers").await >= 1.0).then_some(())
    })
    .await;
    assert_eq!(run(&app, "DELETE FROM console_sessions").await, 1);
    app.created().await;
    assert_eq!(waiting.await.unwrap().expect(401).text, "");
}

#[tokio::test]
async fn few_pages_of_a_person_wait_and_none_when_the_service_stops() {
    let app = start(&[("SHUTDOWN_TIMEOUT", "15s")]).await;
    let visitor = Visitor::bootstrap(&app).await;
    let live = Live::of(&visitor, "/links").await;
    // Nothing that happens is news for them.
    let requests = (0..5).map(|_| Box::pin(send(live.request(&visitor, i64::MAX))));
    let (first, _, rest) = select_all(requests).await;
    assert_eq!(first.header("retry-after"), "10");
    assert_eq!(first.status, 304);
    app.service.terminate();
    for answer in join_all(rest).await {
        assert_eq!(answer.status, 304);
        assert_eq!(answer.header("retry-after"), "");
    }
}

#[tokio::test]
async fn updates_and_shortcuts_can_be_turned_off_without_scripts() {
    let app = start(&[]).await;
    let mut visitor = Visitor::bootstrap(&app).await;
    let link = app.created().await;
    let pages = ["/links".to_owned(), path_of(&link, "")];
    let (updates, shortcuts) = ("data-live=", "class=\"keys\"");
    for (has_updates, has_shortcuts) in [(true, true), (false, true), (true, false), (false, false)]
    {
        let fields = [("updates", has_updates), ("shortcuts", has_shortcuts)];
        let fields: Vec<_> = fields
            .iter()
            .filter(|(_, is_on)| *is_on)
            .map(|(name, _)| (*name, "on"))
            .collect();
        let saved = visitor.submit("/preferences", &fields).await.expect(303);
        let cookie = saved.header("set-cookie").split(';').next().unwrap();
        let session = visitor.cookie.take().unwrap();
        let session = session.split("; ").next().unwrap();
        visitor.cookie = Some(format!("{session}; {cookie}"));
        for path in &pages {
            let page = visitor.get(path).await.expect(200).text;
            assert_eq!(page.contains(updates), has_updates, "{path}");
            assert_eq!(page.contains(shortcuts), has_shortcuts, "{path}");
            assert!(page.contains("href=\"/preferences\""), "{path}");
        }
        let page = visitor.sees(saved.header("location"), "Saved.").await;
        for (name, is_on) in [("updates", has_updates), ("shortcuts", has_shortcuts)] {
            let field = page.split(&format!("name=\"{name}\"")).nth(1).unwrap();
            let field = field.split('>').next().unwrap();
            assert_eq!(field.contains("checked"), is_on, "{name}");
        }
    }
}
