//! The versions of Dojo's API. The handlers implement the newest version. This module translates requests and responses
//! of older versions. The Transactions API has had only one version, 2023-11-12, so nothing is translated there.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::{Value, json};
use time::Date;
use time::format_description::FormatItem;
use time::macros::{date, format_description};

use super::names::lower_initials;
use crate::clock::Timestamp;
use crate::faults::Operation;
use crate::problem::Problem;

const HEADER: &str = "version";
const YEAR_MONTH_DAY: &[FormatItem<'_>] = format_description!("[year]-[month]-[day]");

/// Ordered by age, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    V2022_04_07,
    V2024_02_05,
    V2025_09_10,
    V2026_02_27,
}

/// The first date of each version, newest first.
const FIRST_DATES: [(Date, Version); 4] = [
    (date!(2026 - 02 - 27), Version::V2026_02_27),
    (date!(2025 - 09 - 10), Version::V2025_09_10),
    (date!(2024 - 02 - 05), Version::V2024_02_05),
    (date!(2022 - 04 - 07), Version::V2022_04_07),
];

impl Version {
    /// In declaration order.
    pub(super) const ALL: [Self; 4] = [
        Self::V2022_04_07,
        Self::V2024_02_05,
        Self::V2025_09_10,
        Self::V2026_02_27,
    ];

    /// The newest version up to the date in the call's `version` header. An earlier date means the first version:
    /// one of Dojo's samples sends 2022-01-03.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let Some(value) = headers.get(HEADER) else {
            return Err(Problem::invalid_field(
                HEADER,
                "The version header is required.",
            ));
        };
        let date = value
            .to_str()
            .ok()
            .and_then(|text| Date::parse(text, YEAR_MONTH_DAY).ok())
            .ok_or_else(|| {
                Problem::invalid_field(HEADER, "The version must be a date such as 2026-02-27.")
            })?;
        Ok(FIRST_DATES
            .iter()
            .find(|(first, _)| *first <= date)
            .map_or(Self::V2022_04_07, |(_, version)| *version))
    }

    /// Whether manual capture requires `autoExpireAction`. Dojo's samples for the first version leave it out.
    pub(super) fn requires_auto_expire_action(self) -> bool {
        self > Self::V2022_04_07
    }

    /// Handles a call of this version, and translates its request and response.
    pub(super) async fn serve(self, mut request: Request, next: Next) -> Response {
        request.extensions_mut().insert(self);
        let operation = Operation::of(request.method(), request.uri().path());
        if self > Self::V2022_04_07 || operation == Operation::Transactions {
            return next.run(request).await;
        }
        let (mut parts, body) = request.into_parts();
        let body = rewrite(&mut parts.headers, body, upgrade).await;
        let response = next.run(Request::from_parts(parts, body)).await;
        if !response.status().is_success() {
            return response;
        }
        let (mut parts, body) = response.into_parts();
        let body = rewrite(&mut parts.headers, body, |json| {
            match json.get_mut("data").and_then(Value::as_array_mut) {
                Some(page) => page.iter_mut().for_each(downgrade),
                None => downgrade(json),
            }
        })
        .await;
        Response::from_parts(parts, body)
    }
}

/// Changes a body, if it is JSON.
async fn rewrite(headers: &mut HeaderMap, body: Body, change: impl FnOnce(&mut Value)) -> Body {
    // The body is in memory already, and its size was checked when it arrived.
    let bytes = axum::body::to_bytes(body, usize::MAX)
        .await
        .unwrap_or_default();
    let Ok(mut json) = serde_json::from_slice(&bytes) else {
        return Body::from(bytes);
    };
    change(&mut json);
    // It is the length of the original body.
    headers.remove(header::CONTENT_LENGTH);
    Body::from(json.to_string())
}

/// Translates a request body of version 2022-04-07 into the newest version. Invalid values stay as they are, so that
/// validation rejects them.
fn upgrade(body: &mut Value) {
    lower_initials(body);
    let Some(members) = body.as_object_mut() else {
        return;
    };
    for (member, words) in [
        ("captureMode", ["Auto", "Manual"]),
        ("autoExpireAction", ["Release", "Capture"]),
    ] {
        let given = members
            .get(member)
            .and_then(Value::as_str)
            .unwrap_or_default();
        if let Some(word) = words.iter().find(|word| given.eq_ignore_ascii_case(word)) {
            members.insert(member.to_owned(), json!(word));
        }
    }
    for member in ["expireAt", "autoExpireAt"] {
        let utc = members
            .get(member)
            .and_then(Value::as_str)
            .filter(|text| Timestamp::parse(text).is_none())
            .map(|text| format!("{text}Z"))
            .filter(|text| Timestamp::parse(text).is_some());
        if let Some(utc) = utc {
            members.insert(member.to_owned(), json!(utc));
        }
    }
    rename_in_lines(body, "caption", "name");
}

/// Translates an intent into version 2022-04-07: item lines have captions, and card details are directly in
/// `paymentDetails`.
fn downgrade(intent: &mut Value) {
    rename_in_lines(intent, "name", "caption");
    if let Some(details) = intent
        .get_mut("paymentDetails")
        .and_then(Value::as_object_mut)
        && let Some(Value::Object(card)) = details.remove("card")
    {
        details.extend(card);
    }
}

fn rename_in_lines(object: &mut Value, from: &str, to: &str) {
    let lines = object.get_mut("itemLines").and_then(Value::as_array_mut);
    for line in lines.into_iter().flatten() {
        if let Some(members) = line.as_object_mut()
            && !members.contains_key(to)
            && let Some(value) = members.remove(from)
        {
            members.insert(to.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderMap;

    use super::Version;

    #[test]
    fn a_date_means_the_newest_version_up_to_it() {
        let of = |date: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("version", date.parse().expect("a header"));
            Version::of(&headers).ok()
        };
        for (date, version) in [
            ("2022-01-03", Some(Version::V2022_04_07)),
            ("2022-04-07", Some(Version::V2022_04_07)),
            ("2022-07-04", Some(Version::V2022_04_07)),
            ("2024-02-05", Some(Version::V2024_02_05)),
            ("2025-09-09", Some(Version::V2024_02_05)),
            ("2026-02-26", Some(Version::V2025_09_10)),
            ("2026-02-27", Some(Version::V2026_02_27)),
            ("9999-12-31", Some(Version::V2026_02_27)),
            ("2026-02-30", None),
            ("latest", None),
            ("", None),
        ] {
            assert_eq!(of(date), version, "{date}");
        }
    }
}
