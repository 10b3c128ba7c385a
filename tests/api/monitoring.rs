//! The metrics, and what is made of them: the alert rules and the dashboard in `ops/`, and the runbook. `script/test` also runs
//! promtool on the rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    TestApp, client, eventually, pounds, receiver::Receiver, send, ten_pounds, within,
};

const RULES: &str = include_str!("../../ops/prometheus/alerts.yml");
const DASHBOARD: &str = include_str!("../../ops/grafana/dashboard.json");
const OPERATIONS: &str = include_str!("../../docs/operations.md");

/// Labels that Prometheus adds to every series of a target, and to an alert.
const TARGET_LABELS: [&str; 2] = ["job", "instance"];

/// Metrics whose values of labels appear only once something happens: routes, statuses and failures.
const COUNTED_LATER: [&str; 3] = [
    "http_requests_total",
    "http_request_duration_seconds_bucket",
    "dojo_requests_total",
];

/// The labels of one series.
type Labels = BTreeMap<String, String>;

/// What `/metrics` returns: the series of each metric.
struct Exposition(BTreeMap<String, Vec<Labels>>);

impl Exposition {
    async fn of(app: &TestApp) -> Self {
        let text = app.get("/metrics").await.expect(200).text;
        let mut metrics = BTreeMap::<_, Vec<Labels>>::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, _)) = line.rsplit_once(' ') else {
                continue;
            };
            let query = Query::parse(series);
            let [(name, matchers)] = &query.selectors[..] else {
                panic!("not one series: {line}");
            };
            let labels = matchers
                .iter()
                .map(|matcher| (matcher.label.clone(), matcher.value.clone()));
            metrics
                .entry(name.clone())
                .or_default()
                .push(labels.collect());
        }
        Self(metrics)
    }

    fn has_label(&self, metric: &str, label: &str) -> bool {
        TARGET_LABELS.contains(&label)
            || self
                .0
                .get(metric)
                .is_some_and(|all| all.iter().any(|labels| labels.contains_key(label)))
    }

    fn has_value(&self, metric: &str, label: &str, value: &str) -> bool {
        self.0.get(metric).is_some_and(|all| {
            all.iter()
                .any(|labels| labels.get(label).is_some_and(|found| found == value))
        })
    }
}

/// What a query refers to. promtool checks its syntax.
#[derive(Default)]
struct Query {
    selectors: Vec<(String, Vec<Matcher>)>,
    /// Labels in `by (…)` and `on (…)`.
    grouping: Vec<String>,
}

struct Matcher {
    label: String,
    operator: String,
    value: String,
}

impl Query {
    fn parse(expression: &str) -> Self {
        const WORDS: [&str; 10] = [
            "sum", "min", "max", "count", "and", "or", "unless", "offset", "by", "on",
        ];
        let mut query = Self::default();
        let mut rest = expression;
        while let Some(first) = rest.chars().next() {
            let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if !is_part(first) && first != '$' {
                rest = &rest[first.len_utf8()..];
                continue;
            }
            let end = rest[1..]
                .find(|c| !is_part(c))
                .map_or(rest.len(), |at| at + 1);
            let word = &rest[..end];
            rest = rest[end..].trim_start();
            // Numbers, durations, and Grafana's variables.
            if first.is_ascii_digit() || first == '$' {
                continue;
            }
            if let "by" | "on" = word {
                let (labels, after) = rest.split_once(')').unwrap();
                let labels = labels.trim_start_matches('(').split(',');
                let labels = labels.map(|label| label.trim().to_owned());
                query
                    .grouping
                    .extend(labels.filter(|label| !label.is_empty()));
                rest = after;
            } else if !WORDS.contains(&word) && !rest.starts_with('(') {
                let mut matchers = Vec::new();
                if let Some(inside) = rest.strip_prefix('{') {
                    (matchers, rest) = parse_matchers(inside);
                }
                query.selectors.push((word.to_owned(), matchers));
            }
        }
        query
    }
}

/// The matchers up to the closing brace, and what follows it. No value here has an escaped quote.
fn parse_matchers(mut rest: &str) -> (Vec<Matcher>, &str) {
    let mut matchers = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return (matchers, after);
        }
        let (head, after) = rest.split_once('"').unwrap();
        let (value, after) = after.split_once('"').unwrap();
        let label = head.trim_end_matches(['=', '~', '!']);
        matchers.push(Matcher {
            label: label.to_owned(),
            operator: head[label.len()..].to_owned(),
            value: value.to_owned(),
        });
        rest = after;
    }
}

/// An expression, where it's from, and the text in which its labels are shown.
struct Use {
    place: String,
    expression: String,
    shown: String,
}

fn alerts() -> Vec<Value> {
    let rules: Value = yaml_serde::from_str(RULES).unwrap();
    let groups = rules["groups"].as_array().unwrap();
    let alerts: Vec<Value> = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap().clone())
        .collect();
    assert!(alerts.len() > 30);
    alerts
}

fn uses() -> Vec<Use> {
    let mut uses: Vec<_> = alerts()
        .iter()
        .map(|alert| Use {
            place: alert["alert"].to_string(),
            expression: alert["expr"].as_str().unwrap().to_owned(),
            shown: alert["annotations"]["summary"].to_string(),
        })
        .collect();
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            uses.push(Use {
                place: format!("the panel {}", panel["title"]),
                expression: target["expr"].as_str().unwrap().to_owned(),
                shown: target["legendFormat"].as_str().unwrap().to_owned(),
            });
        }
    }
    uses
}

/// The labels in `{{ $labels.name }}` or, in a legend, `{{name}}`.
fn shown_labels(text: &str) -> impl Iterator<Item = &str> {
    text.split("{{").skip(1).filter_map(|part| {
        let inside = part.split("}}").next()?.split('|').next()?.trim();
        match inside.strip_prefix("$labels.") {
            Some(label) => Some(label),
            None => (!inside.starts_with('$')).then_some(inside),
        }
    })
}

/// Waits until the metrics of callbacks exist: those of an endpoint appear with the endpoint.
async fn call_back(app: &TestApp) {
    let receiver = Receiver::start().await;
    app.subscribe(&json!({"url": receiver.url})).await;
    app.create(&ten_pounds("Order 2")).await.expect(201);
    receiver.until(1).await;
    eventually("the endpoint is measured", async || {
        let text = app.get("/metrics").await.expect(200).text;
        (text.contains("callback_lag_seconds{") && text.contains("callback_attempts_total{"))
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn rules_and_dashboard_use_only_metrics_and_labels_that_exist() {
    let app = TestApp::quick(&[("CALLBACK_ALLOW", "127.0.0.1")]).await;
    let recent = r#"recent_links{account="default",status="Created"}"#;
    eventually("the jobs have reported", async || {
        let text = app.get("/metrics").await.expect(200).text;
        text.contains(recent).then_some(())
    })
    .await;
    // Whatever an alert counts must exist before it happens: Prometheus doesn't see the step from nothing to 1.
    let before = Exposition::of(&app).await;
    let link = app.created().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.link_with_status(&link["id"], "Captured").await;
    call_back(&app).await;
    let after = Exposition::of(&app).await;

    let mut wrong = BTreeSet::new();
    for Use {
        place,
        expression,
        shown,
    } in uses()
    {
        let query = Query::parse(&expression);
        assert!(!query.selectors.is_empty(), "{place} uses no metric");
        for (metric, matchers) in &query.selectors {
            if !matchers
                .iter()
                .any(|matcher| matcher.label == "job" && matcher.value == "dojo-payment-links")
            {
                wrong.insert(format!("{place}: {metric} of any service"));
            }
            if metric == "up" {
                continue;
            }
            if !after.0.contains_key(metric) {
                wrong.insert(format!("{place}: {metric} doesn't exist"));
            }
            for Matcher {
                label,
                operator,
                value,
            } in matchers
            {
                if !after.has_label(metric, label) {
                    wrong.insert(format!("{place}: {metric} has no label {label}"));
                }
                let is_known = TARGET_LABELS.contains(&label.as_str())
                    || COUNTED_LATER.contains(&metric.as_str());
                for value in value.split('|').filter(|_| !is_known) {
                    if !before.has_value(metric, label, value) {
                        wrong.insert(format!("{place}: {metric} has no {label}{operator}{value}"));
                    }
                }
            }
        }
        let labels = query.grouping.iter().map(String::as_str);
        for label in labels.chain(shown_labels(&shown)) {
            let mut metrics = query.selectors.iter().map(|(metric, _)| metric);
            if !label.is_empty() && !metrics.any(|metric| after.has_label(metric, label)) {
                wrong.insert(format!("{place}: no metric has the label {label}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn every_metric_is_described_and_documented() {
    let app = TestApp::quick(&[("CALLBACK_ALLOW", "127.0.0.1")]).await;
    let link = app.created().await;
    app.sandbox.pay(&link["paymentIntentId"]).await;
    app.link_with_status(&link["id"], "Captured").await;
    call_back(&app).await;
    let text = app.get("/metrics").await.expect(200).text;
    let names = text.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        Some(name)
    });
    let names: BTreeSet<_> = names.collect();
    assert!(names.len() > 25, "{names:?}");
    let undescribed: Vec<_> = names
        .iter()
        .filter(|name| !text.contains(&format!("# HELP {name} ")))
        .collect();
    assert!(undescribed.is_empty(), "without HELP: {undescribed:?}");
    let undocumented: Vec<_> = names
        .iter()
        .filter(|name| !OPERATIONS.contains(&format!("\n| `{name}` |")))
        .collect();
    assert!(
        undocumented.is_empty(),
        "not in the table of docs/operations.md: {undocumented:?}"
    );
}

/// The anchor that GitHub gives a heading.
fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn every_alert_has_a_runbook_entry() {
    let (_, runbook) = OPERATIONS.split_once("\n## What to do\n").unwrap();
    let anchors: BTreeSet<_> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .map(anchor)
        .collect();
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        let url = alert["annotations"]["runbook_url"].as_str().unwrap();
        let target = url.strip_prefix("docs/operations.md#").unwrap();
        assert!(anchors.contains(target), "{name}: no entry {target}");
        assert!(
            OPERATIONS.contains(&format!("\n| `{name}` |")),
            "{name} isn't in the table of docs/operations.md"
        );
        let severity = alert["labels"]["severity"].as_str().unwrap();
        assert!(["critical", "warning"].contains(&severity), "{name}");
        assert!(alert["annotations"]["summary"].is_string(), "{name}");
    }
}

#[tokio::test]
async fn a_scrape_waits_for_no_lock_in_the_database() {
    let app = TestApp::start().await;
    let lock = app.lock("LOCK TABLE payment_links, operations").await;
    within(Duration::from_secs(2), "a scrape", app.get("/metrics"))
        .await
        .expect(200);
    drop(lock);
}

#[tokio::test]
async fn statements_that_get_no_connection_are_counted() {
    let settings = [
        ("DATABASE_MAX_CONNECTIONS", "1"),
        ("DATABASE_ACQUIRE_TIMEOUT", "2s"),
    ];
    let app = TestApp::with(&settings).await;
    app.get("/v1/payment-links").await.expect(200);
    assert!(app.metric("database_acquire_timeouts_total").await < 1.0);
    let lock = app.lock("LOCK TABLE payment_links").await;
    let (one, other) = tokio::join!(app.get("/v1/payment-links"), app.get("/v1/payment-links"));
    drop(lock);
    for answer in [one, other] {
        answer.problem(503, "database-unavailable");
    }
    assert!(app.metric("database_acquire_timeouts_total").await >= 1.0);
}

#[tokio::test]
async fn recent_links_and_the_oldest_lost_operation_are_reported() {
    let app = TestApp::start().await;
    for _ in 0..3 {
        app.created().await;
    }
    sqlx::query(
        "UPDATE payment_links SET created_at = now() - interval '25 hours'
         WHERE id = (SELECT min(id::text)::uuid FROM payment_links)",
    )
    .execute(&app.pool)
    .await
    .unwrap();
    let link = app.authorized().await;
    app.sandbox.next("capture", "cutBefore", json!({})).await;
    let body = json!({"amount": pounds(400)});
    app.operate(&link, "captures", &body).await.expect(504);
    sqlx::query("UPDATE operations SET created_at = now() - interval '1 hour'")
        .execute(&app.pool)
        .await
        .unwrap();
    // The capture may still take effect for an hour, so its outcome stays unknown.
    let worker = app.another(&[("RECOVERY_SETTLE", "1h")]).await;
    let metrics = format!("{}/metrics", worker.url);
    for line in [
        r#"recent_links{account="default",status="Created"} 2"#,
        r#"recent_links{account="default",status="Authorized"} 1"#,
        r#"recent_links{account="default",status="Failed"} 0"#,
        r#"backlog_operations{account="default"} 1"#,
        r#"backlog_operations_lag_seconds{account="default"} 36"#,
    ] {
        eventually(line, async || {
            let text = send(client().get(&metrics)).await.expect(200).text;
            text.contains(line).then_some(())
        })
        .await;
    }
}
