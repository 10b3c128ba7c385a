//! The pages at `/docs`: they are complete, load nothing, and their commands work.

use std::{collections::HashSet, process::Command};

use fantoccini::{Locator, key::Key};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    browser::Browser,
    console_browser::{Look, WIDE},
    openapi::problem_types,
    support::{Answer, TestApp, eventually, manual, send, ten_pounds, text},
};

const PAGES: [&str; 2] = ["/docs", "/docs/problems"];

/// The id of the link in the examples.
const EXAMPLE: &str = "plink_01m81mqpmrf8384nj77tj0t0e4";

/// The values of an HTML attribute.
fn attributes<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!(" {name}=\"");
    let values = page.split(start.as_str()).skip(1);
    values.map(|rest| rest.split('"').next().unwrap()).collect()
}

#[tokio::test]
async fn the_pages_contain_every_route_schema_and_problem_type() {
    let app = TestApp::start().await;
    let page = app.get("/docs").await.expect(200).text;
    assert!(page.contains("<title>Dojo payment links API</title>"));

    let document: Value = yaml_serde::from_str(include_str!("../../openapi.yaml")).unwrap();
    let (callers, others) = page
        .split_once("<h2 id=\"for-dojo-and-for-operators\">")
        .unwrap();
    assert!(callers.contains("<h2 id=\"for-callers\">"));
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let anchor = format!("{method}{path}")
                .replace(['{', '}'], "")
                .replace(['/', '.'], "-")
                .to_lowercase();
            let heading = format!("<h4 id=\"{anchor}\">");
            let part = if path.starts_with("/v1/") {
                callers
            } else {
                others
            };
            assert_eq!(part.matches(&heading).count(), 1, "{heading}");
            assert_eq!(page.matches(&heading).count(), 1, "{heading}");
        }
    }
    for name in document["components"]["schemas"]
        .as_object()
        .unwrap()
        .keys()
    {
        assert!(page.contains(&format!("id=\"schema-{name}\"")), "{name}");
    }

    // The headers of responses are described where they are used.
    assert!(page.contains("<dd><p>The path of what was created.</p></dd>"));

    let problems = app.get("/docs/problems").await.expect(200).text;
    assert!(problems.contains("<title>Problems – Dojo payment links API</title>"));
    for slug in problem_types() {
        let (_, article) = problems
            .split_once(&format!("<h2 id=\"{slug}\">"))
            .unwrap_or_else(|| panic!("{slug}"));
        let article = article.split("</article>").next().unwrap();
        assert!(
            article.contains(&format!("/docs/problems#{slug}&#34;")),
            "{article}"
        );
    }
}

#[tokio::test]
async fn the_pages_are_self_contained_and_their_links_work() {
    let app = TestApp::start().await;
    let mut anchors = HashSet::new();
    let mut links = Vec::new();
    for path in PAGES {
        // Without an API key, like a browser.
        let page = send(app.anonymous(Method::GET, path)).await.expect(200);
        assert!(page.header("content-type").starts_with("text/html"));
        let policy = page.header("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'; style-src 'sha256-"),
            "{policy}"
        );
        assert!(
            !policy.contains("unsafe") && !policy.contains("script-src"),
            "{policy}"
        );

        let page = page.text;
        for forbidden in [
            "<script",
            " src=",
            " style=",
            " onclick=",
            "javascript:",
            "@import",
            "url(",
        ] {
            assert!(!page.contains(forbidden), "{path} has {forbidden}");
        }
        for element in page
            .split('<')
            .filter(|element| element.contains("href=\"http"))
        {
            assert!(element.starts_with("a "), "{element}");
        }
        // Markdown is rendered: none is left outside of code.
        let prose = page
            .split("<pre>")
            .map(|part| part.split("</pre>").last().unwrap());
        for part in prose {
            assert!(
                !part.contains('`') && !part.contains("| ---") && !part.contains("[<code>"),
                "{part}"
            );
        }

        for id in attributes(&page, "id") {
            assert!(anchors.insert(format!("{path}#{id}")), "{id} is not unique");
        }
        links.extend(attributes(&page, "href").into_iter().map(
            |link| match link.strip_prefix('#') {
                Some(anchor) => format!("{path}#{anchor}"),
                None => link.to_owned(),
            },
        ));
    }
    for link in links.iter().filter(|link| link.contains('#')) {
        assert!(anchors.contains(link), "{link} has no target");
    }
    assert!(
        links
            .iter()
            .any(|link| link == "/docs/problems#not-possible")
    );

    let slash = app.get("/docs/").await.expect(308);
    assert_eq!(slash.header("location"), "/docs");
}

/// The arguments of each curl command on the page, as the shell parses them.
fn commands(page: &str) -> Vec<Vec<String>> {
    let commands = page.split("<pre><code>curl ").skip(1);
    let commands = commands.map(|rest| rest.split("</code></pre>").next().unwrap());
    commands
        .map(|command| {
            let command = command
                .replace("&#34;", "\"")
                .replace("&#39;", "'")
                .replace("&#60;", "<")
                .replace("&#62;", ">")
                .replace("&#38;", "&");
            let words = Command::new("sh")
                .arg("-euc")
                .arg(format!(
                    "curl() {{ printf '%s\\0' \"$@\"; }}\ncurl {command}"
                ))
                .envs([("URL", ""), ("API_KEY", crate::support::API_KEY)])
                .output()
                .unwrap();
            let words = String::from_utf8(words.stdout).unwrap();
            words.split_terminator('\0').map(str::to_owned).collect()
        })
        .collect()
}

/// Sends the request that curl would send, for a link other than that of the examples.
async fn run(app: &TestApp, command: &[String], id: &str) -> Answer {
    let mut method = None;
    let mut path = "";
    let mut headers = Vec::new();
    let mut body = None;
    let mut words = command.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "-X" => method = words.next(),
            "-H" => headers.extend(words.next().and_then(|header| header.split_once(": "))),
            "-d" => body = words.next(),
            url => path = url,
        }
    }
    let method = method.unwrap_or(if body.is_some() { "POST" } else { "GET" });
    let path = path.replace(EXAMPLE, id);
    let mut request = app.anonymous(method.parse().unwrap(), &path);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    send(match body {
        Some(body) => request.body(body.to_owned()),
        None => request,
    })
    .await
}

#[tokio::test]
async fn every_command_for_callers_succeeds() {
    // Nothing listens there, so messages wait.
    let mail = [
        ("SMTP_URL", "smtp://127.0.0.1:9?tls=none"),
        ("MAIL_FROM", "pay@theatre.example"),
    ];
    let app = TestApp::with(&[&[("RUN_JOBS", "true")], &mail[..]].concat()).await;
    let page = app.get("/docs").await.expect(200).text;
    let (page, _) = page
        .split_once("<h2 id=\"for-dojo-and-for-operators\">")
        .unwrap();
    let commands = commands(page);
    assert!(commands.len() > 12, "{commands:?}");
    for command in commands {
        // A request as callers send it, short enough to take in at a glance.
        let headers = command.windows(2).filter(|words| words[0] == "-H");
        let headers: Vec<_> = headers
            .filter_map(|words| words[1].split_once(": "))
            .map(|(name, _)| name)
            .collect();
        let has = |word: &str| command.iter().any(|given| given == word);
        let has_no_key = command.iter().any(|word| {
            word.starts_with("/v1/callback-endpoints")
                || word.ends_with("/refresh")
                || word.ends_with("/erase")
        });
        let expected: &[_] = if has("-d") && has_no_key {
            &["Authorization", "Content-Type"]
        } else if has("-d") {
            &["Authorization", "Content-Type", "Idempotency-Key"]
        } else if has("-X") && !has_no_key {
            &["Authorization", "Idempotency-Key"]
        } else {
            &["Authorization"]
        };
        assert_eq!(headers, expected, "{command:?}");
        assert!(command.join(" ").len() < 320, "{command:?}");

        let path = command.iter().find(|word| word.starts_with("/v1"));
        let path = path.unwrap().clone();
        let call = path.split('?').next().unwrap().rsplit('/').next().unwrap();
        let mut body = match call {
            "amount" | "tips-amount" | "captures" => manual("Order 236"),
            _ => ten_pounds("Order 236"),
        };
        // The amount of the examples.
        body["amount"]["value"] = json!(2450);
        let link = app.create(&body).await;
        let link = link.expect(201).json();
        let status = match call {
            "captures" => "Authorized",
            "refunds" | "reversal" | "receipt" => "Captured",
            _ => "Created",
        };
        if status != "Created" {
            app.sandbox.pay(&link["paymentIntentId"]).await;
            app.link_with_status(&link["id"], status).await;
        }
        let mut command = command;
        if call == "renew" || call == "erase" {
            app.operate(&link, "cancel", &Value::Null).await.expect(200);
            app.read_until_confirmed(&link["id"]).await;
        }
        if path.starts_with("/v1/operations/") {
            let canceled = app.operate(&link, "cancel", &Value::Null).await;
            let id = canceled.header("operation-id").to_owned();
            for word in &mut command {
                *word = word.replace("op_01kaz8v4wce7q8m6s5gq9nq2fd", &id);
            }
        }
        if path.contains("/messages/") {
            let path = format!("/v1/payment-links/{}/messages", text(&link["id"]));
            let body = json!({"channel": "email", "to": "ann@example.com"});
            let request = app.request(Method::POST, &path).json(&body);
            let request = request.header("idempotency-key", text(&link["id"]));
            let message = send(request).await.expect(201).json();
            for word in &mut command {
                *word = word.replace("msg_01m81mzv2jf8x9qk4s7wd3h6rb", text(&message["id"]));
            }
        }
        if path.starts_with("/v1/callback-endpoints/") {
            let (endpoint, event) = endpoint_and_event(&app).await;
            for word in &mut command {
                *word = word
                    .replace("cbe_01kaz8v4wce7q8m6s5gq9nq2fd", &endpoint)
                    .replace("evt_01kaz8v4wce7q8m6s5gq9nq2fd", &event);
            }
        }
        let response = run(&app, &command, text(&link["id"])).await;
        assert!(
            response.status.is_success(),
            "{command:?}: {}",
            response.text
        );
    }
}

/// The ids of a callback endpoint that is paused, so that nothing is sent to it, and of an event.
async fn endpoint_and_event(app: &TestApp) -> (String, String) {
    let url = json!({"url": format!("https://receiver.invalid/{}", uuid::Uuid::now_v7())});
    let created = app.subscribe(&url).await;
    let id = text(&created["id"]).to_owned();
    let pause = format!("/v1/callback-endpoints/{id}/pause");
    send(app.request(Method::POST, &pause)).await.expect(200);
    let event = eventually("there is an event", async || {
        let events = app.get("/v1/events").await.expect(200).json();
        Some(events["data"].get(0)?["id"].as_str()?.to_owned())
    })
    .await;
    (id, event)
}

#[tokio::test]
async fn examples_have_the_same_members_as_real_responses() {
    let names = |object: &Value| -> HashSet<String> {
        object.as_object().unwrap().keys().cloned().collect()
    };
    let document: Value = yaml_serde::from_str(include_str!("../../openapi.yaml")).unwrap();
    let example = |path: &str, method: &str, status: &str| {
        document["paths"][path][method]["responses"][status]["content"]["application/json"]["example"].clone()
    };
    let app = TestApp::start().await;
    let link = app.created().await;
    assert_eq!(
        names(&example("/v1/payment-links", "post", "201")),
        names(&link)
    );
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.link_with_status(&link["id"], "Captured").await;
    let refund = json!({"refundReason": "Returned goods"});
    let refunded = app
        .operate_with_key("return-17", &link, "refunds", &refund)
        .await
        .expect(200)
        .json();
    let example_of_refund = example("/v1/payment-links/{id}/refunds", "post", "200");
    assert_eq!(names(&example_of_refund), names(&refunded));
    assert_eq!(
        names(&example_of_refund["payment"]),
        names(&refunded["payment"])
    );

    for (part, entries) in [
        ("events", app.timeline(&link["id"]).await),
        ("operations", app.operations(&link).await),
    ] {
        let path = format!("/v1/payment-links/{{id}}/{part}");
        assert_eq!(
            names(&example(&path, "get", "200")["data"][0]),
            names(&entries[0]),
            "{part}"
        );
    }
}

#[tokio::test]
async fn the_pages_work_on_a_phone_without_javascript() {
    let app = TestApp::start().await;
    let browser = Browser::start(json!({
        "mobileEmulation": {"deviceMetrics": {"width": 390, "height": 844, "pixelRatio": 2.0, "touch": true}},
        "prefs": {"profile.managed_default_content_settings.javascript": 2},
    }))
    .await;
    let page = &browser.page;
    assert!(!browser.runs_scripts().await);

    for path in PAGES {
        page.goto(&format!("{}{path}", app.service.url))
            .await
            .unwrap();
        // The driver's scripts run in spite of the setting. The page is widest with all details open.
        let result = page
            .execute(
                "for (const details of document.querySelectorAll('details')) details.open = true;
                 const skip = getComputedStyle(document.querySelector('.skip'));
                 return {wide: document.documentElement.scrollWidth, styled: skip.position}",
                vec![],
            )
            .await
            .unwrap();
        assert_eq!(result, json!({"wide": 390, "styled": "absolute"}), "{path}");
    }

    page.goto(&format!("{}/docs", app.service.url))
        .await
        .unwrap();
    // The driver's own click would wait for scripts of the page.
    let result = page
        .execute(
            "const contents = document.querySelector('.contents details');
             const call = contents.querySelector(\"a[href='#post-v1-payment-links-id-refunds']\");
             const seen = [call.checkVisibility()];
             contents.querySelector('summary').click();
             seen.push(call.checkVisibility());
             call.click();
             return seen",
            vec![],
        )
        .await
        .unwrap();
    assert_eq!(result, json!([false, true]));
    let place = page.current_url().await.unwrap();
    assert_eq!(place.fragment(), Some("post-v1-payment-links-id-refunds"));

    // From there, a link leads back to the contents. They are open, until another link is followed.
    for path in PAGES {
        page.goto(&format!("{}{path}", app.service.url))
            .await
            .unwrap();
        let result = page
            .execute(
                "const last = [...document.querySelectorAll('.contents a[href^=\"#\"]')].pop();
                 const isOnScreen = (element) => {
                     const {top, bottom} = element.getBoundingClientRect();
                     return element.checkVisibility() && top >= 0 && bottom <= innerHeight;
                 };
                 const target = document.getElementById(last.hash.slice(1));
                 last.click();
                 const back = document.querySelector('a[href=\"#contents\"]');
                 const seen = [isOnScreen(target), isOnScreen(back), last.checkVisibility()];
                 back.click();
                 const first = document.querySelector('.contents a');
                 seen.push(isOnScreen(target), isOnScreen(first), last.checkVisibility());
                 last.click();
                 seen.push(isOnScreen(target), last.checkVisibility());
                 return seen",
                vec![],
            )
            .await
            .unwrap();
        let (there, contents, there_again) =
            ([true, true, false], [false, true, true], [true, false]);
        let expected = [&there[..], &contents, &there_again].concat();
        assert_eq!(result, json!(expected), "{path}");
        // Whatever the link hides while it stays on the screen, it hides whole lines.
        let result = page
            .execute(
                "const {left, right} = document.querySelector('.back').getBoundingClientRect();
                 return [left, right]",
                vec![],
            )
            .await
            .unwrap();
        assert_eq!(result, json!([0, 390]), "{path}");
    }
    browser.close().await;
}

/// Leaves one element of each kind, by its place and its classes. On the whole page, axe would work for minutes.
const ONE_OF_EACH: &str = "
    const kind = (element) => element === document.body ? ''
        : `${kind(element.parentElement)} ${element.localName}.${element.className}`;
    const seen = new Set();
    for (const element of [...document.body.querySelectorAll('*')].reverse()) {
        const own = kind(element);
        if (element.childElementCount === 0 && seen.has(own)) element.remove();
        else seen.add(own);
    }";

#[tokio::test]
async fn the_pages_are_legible_in_the_dark() {
    let app = TestApp::start().await;
    let look = Look {
        is_dark: true,
        ..WIDE
    };
    let browser = look.open().await;
    for path in PAGES {
        browser.visit(&format!("{}{path}", app.service.url)).await;
        let paper = "return getComputedStyle(document.body).backgroundColor";
        assert_ne!(browser.run(paper).await, "rgb(255, 255, 255)", "{path}");
        browser.run(ONE_OF_EACH).await;
        browser.is_legible().await;
    }
    browser.close().await;
}

#[tokio::test]
async fn the_keyboard_reaches_the_content_first() {
    let app = TestApp::start().await;
    let browser = Browser::start(json!({})).await;
    let page = &browser.page;
    page.goto(&format!("{}/docs", app.service.url))
        .await
        .unwrap();
    let body = page.find(Locator::Css("body")).await.unwrap();
    body.send_keys(&String::from(char::from(Key::Tab)))
        .await
        .unwrap();
    let focused = page.active_element().await.unwrap();
    assert_eq!(focused.text().await.unwrap(), "Skip to the content");
    focused
        .send_keys(&String::from(char::from(Key::Enter)))
        .await
        .unwrap();
    assert_eq!(page.current_url().await.unwrap().fragment(), Some("main"));
    // On a wide screen, the contents are always visible.
    let result = page
        .execute(
            "return document.querySelector(\".contents a[href='#post-v1-payment-links-id-refunds']\").checkVisibility()",
            vec![],
        )
        .await
        .unwrap();
    assert_eq!(result, true);
    browser.close().await;
}
