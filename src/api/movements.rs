//! The books: movements as JSON and CSV, and their daily totals.

use std::{fmt, str::FromStr};

use axum::{
    BoxError, Json,
    body::{Body, Bytes},
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderName, header},
    response::{IntoResponse, Response},
};
use futures_util::stream::try_unfold;
use time::{Date, macros::date};
use tracing::warn;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    auth::Caller,
    error::Error,
    examples,
    query::{AFTER, Page, PageParameters, Query, one_to_sixty, to_i64},
    responses::{Guarded, InvalidQuery},
    scope::LinksRead,
    state::AppState,
};
use crate::{
    payment_link::{
        Currency, PaymentLinkId,
        movement::{DailyTotal, MetadataKeys, Movement, MovementType},
        parse_day, timestamp,
    },
    store::{
        self, PgPool,
        movements::{Filter, Place, TotalsPlace},
    },
    telemetry::causes,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(totals))
}

/// Which business days and accounts to return, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `days_and_account` reads")]
struct DaysAndAccount {
    /// Only movements of this business day or later.
    from: Option<Date>,
    /// Only movements of this business day or earlier.
    to: Option<Date>,
    /// Only movements of this account.
    #[param(min_length = 1, max_length = 60)]
    account: Option<String>,
}

fn days_and_account(query: &mut Query<'_>, caller: &Caller<LinksRead>) -> Filter {
    Filter {
        open: caller.accounts().map(<[String]>::to_vec),
        from: query.day("from"),
        to: query.day("to"),
        account: query.take("account", "1 to 60 characters", one_to_sixty),
        ..Filter::default()
    }
}

/// The other filters of movements, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `list` reads")]
struct Filters {
    /// Only movements of this type. Repeat the parameter, or separate types by commas, to allow several.
    #[param(rename = "type")]
    kind: Option<Vec<MovementType>>,
    /// Only movements of this link.
    #[param(rename = "paymentLinkId", value_type = Option<String>)]
    payment_link_id: Option<String>,
    /// The links' metadata entries to return, by their keys, separated by commas. By default, those that this service has been
    /// set up for (`BOOKS_METADATA`): none, unless its operator has chosen some.
    #[param(
        rename = "metadataKeys",
        pattern = "^[^,\\x00]{1,100}(,[^,\\x00]{1,100}){0,19}$",
        example = "costCentre,order"
    )]
    metadata_keys: Option<String>,
}

/// Lists the movements: every capture, refund and reversal, in the order of their business days.
///
/// The movements are the books. They contain what the feed reports, nothing is removed, no amount changes, and `net` of all
/// movements of a link is what was captured less what was refunded. Reference, metadata, authorization code and last four digits
/// are as they were when the movement was booked. Only metadata can be erased.
///
/// A movement that is learned of late appears on the business day on which it occurred; `recordedAt` says when it was recorded.
/// So earlier days can still change: read a day again a few days later. To get each movement once and at once, follow the feed.
///
/// With `Accept: text/csv`, the response contains all movements that match, with amounts in major units (`24.50`), and ignores
/// `limit`. Texts that a spreadsheet could take for a formula begin with an apostrophe. A response that is cut
/// off is incomplete.
#[utoipa::path(
    get, path = "/v1/movements", operation_id = "listMovements", tag = "Books", params(DaysAndAccount, Filters, PageParameters),
    security(("apiKey" = ["links:read"])),
    responses(
        (status = 200, description = "A page of movements.", content(
            (Page<Movement> = "application/json", example = json!(examples::movements())),
            (String = "text/csv", example = json!(examples::movements_csv())),
        )),
        Guarded,
        InvalidQuery,
    )
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Error> {
    let mut query = Query::new(query.as_deref());
    let filter = Filter {
        types: query.any_of("type", &MovementType::ALL.map(MovementType::as_str)),
        link: query.take("paymentLinkId", "the id of a payment link", |text| {
            text.parse::<PaymentLinkId>().ok()
        }),
        metadata: query
            .take(
                "metadataKeys",
                "up to 20 keys of 1 to 100 characters, separated by commas",
                MetadataKeys::exactly,
            )
            .unwrap_or_else(|| state.books.metadata().clone()),
        ..days_and_account(&mut query, &caller)
    };
    let limit = query.limit();
    let after = query.take("after", AFTER, |text| text.parse::<Cursor>().ok());
    query.finish()?;

    let after = after.map(|cursor| cursor.0);
    let vary = (header::VARY, "accept");
    if accepts_csv(&headers) {
        return Ok(([vary], export(state.pool.clone(), filter, after)).into_response());
    }
    let movements = store::movements::list(&state.pool, &filter, after, to_i64(limit) + 1).await?;
    let start = Cursor(after.unwrap_or(Place {
        business_day: EARLIEST,
        position: 0,
    }));
    let page = Page::new(movements, limit, start.to_string(), |last| {
        Cursor(Place::behind(last)).to_string()
    });
    Ok(([vary], Json(page)).into_response())
}

/// Before every business day.
pub(super) const EARLIEST: Date = date!(0001 - 01 - 01);

/// A place in the list, as callers pass it back: `2026-01-31.1a`.
struct Cursor(Place);

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}", self.0.business_day, self.0.position)
    }
}

/// The text is no cursor.
pub(super) struct NotACursor;

impl FromStr for Cursor {
    type Err = NotACursor;

    fn from_str(text: &str) -> Result<Self, NotACursor> {
        let (day, position) = text.split_once('.').ok_or(NotACursor)?;
        let position = i64::from_str_radix(position, 16).ok();
        Ok(Self(Place {
            business_day: parse_day(day).ok_or(NotACursor)?,
            position: position.filter(|at| *at >= 0).ok_or(NotACursor)?,
        }))
    }
}

/// Whether the client asks for CSV rather than for JSON. The first of the two in `Accept` counts.
fn accepts_csv(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|range| range.split(';').next())
        .map(str::trim)
        .find(|range| ["text/csv", "application/json"].contains(range))
        == Some("text/csv")
}

/// How many movements are read at a time for CSV.
const CHUNK: i64 = 1000;

/// All movements as CSV (RFC 4180). No database connection is held while the client reads.
fn export(pool: PgPool, filter: Filter, after: Option<Place>) -> impl IntoResponse {
    const NAME: &str = "attachment; filename=\"movements.csv\"";
    let headers: [(HeaderName, &str); 2] = [
        (
            header::CONTENT_TYPE,
            "text/csv; charset=utf-8; header=present",
        ),
        (header::CONTENT_DISPOSITION, NAME),
    ];
    let begin = Some((after, true));
    let chunks = try_unfold((pool, filter, begin), |(pool, filter, next)| async move {
        let Some((after, with_header)) = next else {
            return Ok::<_, BoxError>(None);
        };
        let movements = store::movements::list(&pool, &filter, after, CHUNK)
            .await
            .inspect_err(
                |error| warn!(error = %causes(error), "an export of movements broke off"),
            )?;
        let chunk = csv_of(&movements, filter.metadata.keys(), with_header)?;
        let is_last = i64::try_from(movements.len()) != Ok(CHUNK);
        let next = movements.last().filter(|_| !is_last);
        let next = next.map(|last| (Some(Place::behind(last)), false));
        Ok(Some((Bytes::from(chunk), (pool, filter, next))))
    });
    (headers, Body::from_stream(chunks))
}

const COLUMNS: [&str; 17] = [
    "businessDay",
    "occurredAt",
    "type",
    "amount",
    "net",
    "currency",
    "account",
    "reference",
    "paymentLinkId",
    "paymentIntentId",
    "authCode",
    "last4",
    "captureId",
    "operationId",
    "actor",
    "recordedAt",
    "id",
];

fn csv_of(
    movements: &[Movement],
    metadata_keys: &[String],
    with_header: bool,
) -> Result<Vec<u8>, BoxError> {
    let mut csv = csv::WriterBuilder::new()
        .terminator(csv::Terminator::CRLF)
        .from_writer(Vec::new());
    if with_header {
        let keys = metadata_keys.iter().map(|key| text(Some(key)));
        csv.write_record(COLUMNS.map(str::to_owned).into_iter().chain(keys))?;
    }
    for movement in movements {
        let operation = movement.operation_id.map(|id| id.to_string());
        let columns = [
            movement.business_day.to_string(),
            timestamp::to_text(movement.occurred_at),
            movement.kind.as_str().to_owned(),
            movement.amount.decimal(),
            movement.net.decimal(),
            movement.amount.currency_code.code().to_owned(),
            text(Some(&movement.account)),
            text(Some(&movement.reference)),
            movement.payment_link_id.to_string(),
            text(movement.payment_intent_id.as_ref()),
            text(movement.auth_code.as_ref()),
            text(movement.last4.as_ref()),
            text(movement.capture_id.as_ref()),
            text(operation.as_ref()),
            text(movement.actor.as_ref()),
            timestamp::to_text(movement.recorded_at),
            movement.id.to_string(),
        ];
        let entries = metadata_keys
            .iter()
            .map(|key| text(movement.metadata.get(key)));
        csv.write_record(columns.into_iter().chain(entries))?;
    }
    Ok(csv.into_inner()?)
}

/// A text as a cell that no spreadsheet takes for a formula (OWASP, CSV injection).
fn text(value: Option<&String>) -> String {
    let value = value.map_or("", String::as_str);
    let is_formula =
        value.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠']);
    if is_formula {
        format!("'{value}")
    } else {
        value.to_owned()
    }
}

/// Returns the totals of the movements of each business day, account and currency.
///
/// Earlier business days can change: when a movement is learned of late, and when Dojo's list of transactions says when a
/// refund in Dojo's portal occurred.
#[utoipa::path(
    get, path = "/v1/movements/totals", operation_id = "listDailyTotals", tag = "Books", params(DaysAndAccount, PageParameters),
    security(("apiKey" = ["links:read"])),
    responses(
        (status = 200, description = "A page of totals, oldest first.", body = Page<DailyTotal>, example = json!(examples::daily_totals())),
        Guarded,
        InvalidQuery,
    )
)]
async fn totals(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<DailyTotal>>, Error> {
    let mut query = Query::new(query.as_deref());
    let filter = days_and_account(&mut query, &caller);
    let limit = query.limit();
    let after = query.take("after", AFTER, |text| text.parse::<TotalsCursor>().ok());
    query.finish()?;

    let after = after.map(|cursor| cursor.0);
    let totals =
        store::movements::daily_totals(&state.pool, &filter, after.as_ref(), to_i64(limit) + 1)
            .await?;
    let start = TotalsCursor(after.unwrap_or(TotalsPlace {
        business_day: EARLIEST,
        account: String::new(),
        currency: Currency::Eur,
    }));
    Ok(Json(Page::new(totals, limit, start.to_string(), |last| {
        let place = TotalsPlace {
            business_day: last.business_day,
            account: last.account.clone(),
            currency: last.net.currency_code,
        };
        TotalsCursor(place).to_string()
    })))
}

/// A place in the list of totals, as callers pass it back: `2026-01-31.GBP.leeds`.
struct TotalsCursor(TotalsPlace);

impl fmt::Display for TotalsCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TotalsPlace {
            business_day,
            account,
            currency,
        } = &self.0;
        write!(f, "{business_day}.{}.{account}", currency.code())
    }
}

impl FromStr for TotalsCursor {
    type Err = NotACursor;

    fn from_str(text: &str) -> Result<Self, NotACursor> {
        let mut parts = text.splitn(3, '.');
        let mut next = || parts.next().ok_or(NotACursor);
        Ok(Self(TotalsPlace {
            business_day: parse_day(next()?).ok_or(NotACursor)?,
            currency: next()?.parse().map_err(|_| NotACursor)?,
            account: next()?.to_owned(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_is_taken_for_a_formula() {
        for (value, cell) in [
            ("Order 1", "Order 1"),
            (
                "=HYPERLINK(\"http://evil\")",
                "'=HYPERLINK(\"http://evil\")",
            ),
            ("+44 20", "'+44 20"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\t=1"),
            ("＝1", "'＝1"),
            ("1=1", "1=1"),
        ] {
            assert_eq!(text(Some(&value.to_owned())), cell);
        }
    }

    #[test]
    fn cursors_are_read_back() {
        for cursor in ["2026-01-31.1a", "0001-01-01.0"] {
            let parsed = cursor.parse::<Cursor>().ok().unwrap();
            assert_eq!(parsed.to_string(), cursor);
        }
        for cursor in ["2026-01-31.GBP.leeds-2", "0001-01-01.EUR."] {
            let parsed = cursor.parse::<TotalsCursor>().ok().unwrap();
            assert_eq!(parsed.to_string(), cursor);
        }
        for invalid in [
            "",
            "2026-01-31",
            "2026-02-30.1",
            "2026-01-31.-1",
            "2026-01-31.xyz",
        ] {
            assert!(invalid.parse::<Cursor>().is_err(), "{invalid}");
        }
    }

    #[test]
    fn the_first_known_media_type_counts() {
        for (accept, csv) in [
            ("text/csv", true),
            ("text/csv;q=0.9, application/json;q=0.1", true),
            ("application/json, text/csv", false),
            ("*/*", false),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
            assert_eq!(accepts_csv(&headers), csv, "{accept}");
        }
        assert!(!accepts_csv(&HeaderMap::new()));
    }
}
