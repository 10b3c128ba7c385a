//! The daily comparison of the books with Dojo's list of transactions.

use std::{fmt, str::FromStr};

use axum::{
    Json,
    extract::{FromRequestParts, Path, RawQuery, State},
    http::request::Parts,
};
use serde::Serialize;
use time::Date;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    auth::Caller,
    error::Error,
    examples,
    movements::{EARLIEST, NotACursor},
    query::{AFTER, Page, PageParameters, Query, one_to_sixty, to_i64},
    responses::{Guarded, InvalidQuery},
    scope::LinksRead,
    state::AppState,
};
use crate::{
    payment_link::{
        daily_reconciliation::{ComparedDay, DailyReconciliation, DayState},
        parse_day,
    },
    store::{
        self,
        daily_reconciliation::{Filter, Place},
    },
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get))
}

/// Which results to list, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `list` reads")]
struct Filters {
    /// Only results of this business day or later.
    from: Option<Date>,
    /// Only results of this business day or earlier.
    to: Option<Date>,
    /// Only results of this account.
    #[param(min_length = 1, max_length = 60)]
    account: Option<String>,
    /// Only results with this state. Repeat the parameter, or separate states by commas, to allow several.
    state: Option<Vec<DayState>>,
}

/// Lists how the books of each business day and account compare with Dojo's list of transactions, oldest first.
///
/// With `state=Differs`, the days on which they differ. The differences of a day are at `/v1/reconciliations/{date}`. Days that
/// have not been compared yet are not listed.
#[utoipa::path(
    get, path = "/v1/reconciliations", operation_id = "listReconciliations", tag = "Books", params(Filters, PageParameters),
    security(("apiKey" = ["links:read"])),
    responses(
        (status = 200, description = "A page of results.", body = Page<ComparedDay>, example = json!(examples::compared_days())),
        Guarded,
        InvalidQuery,
    )
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<ComparedDay>>, Error> {
    let mut query = Query::new(query.as_deref());
    let filter = Filter {
        open: caller.accounts().map(<[String]>::to_vec),
        account: query.take("account", "1 to 60 characters", one_to_sixty),
        states: query.any_of("state", &DayState::ALL.map(DayState::as_str)),
        from: query.day("from"),
        to: query.day("to"),
    };
    let limit = query.limit();
    let after = query.take("after", AFTER, |text| text.parse::<Cursor>().ok());
    query.finish()?;

    let after = after.map(|cursor| cursor.0);
    let days =
        store::daily_reconciliation::list(&state.pool, &filter, after.as_ref(), to_i64(limit) + 1)
            .await?;
    let start = Cursor(after.unwrap_or(Place {
        business_day: EARLIEST,
        account: String::new(),
    }));
    Ok(Json(Page::new(days, limit, start.to_string(), |last| {
        let place = Place {
            business_day: last.business_day,
            account: last.account.clone(),
        };
        Cursor(place).to_string()
    })))
}

/// A place in the list, as callers pass it back: `2026-01-31.leeds`.
struct Cursor(Place);

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0.business_day, self.0.account)
    }
}

impl FromStr for Cursor {
    type Err = NotACursor;

    fn from_str(text: &str) -> Result<Self, NotACursor> {
        let (day, account) = text.split_once('.').ok_or(NotACursor)?;
        Ok(Self(Place {
            business_day: parse_day(day).ok_or(NotACursor)?,
            account: account.to_owned(),
        }))
    }
}

/// A business day in a path. If it isn't a date, there is nothing at this path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
struct Day {
    /// The business day.
    #[param(example = "2026-11-22")]
    date: Date,
}

impl<S: Send + Sync> FromRequestParts<S> for Day {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Path(date) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| Error::NotFound)?;
        let date = parse_day(&date).ok_or(Error::NotFound)?;
        Ok(Self { date })
    }
}

/// The parameter in the query, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `get` reads")]
struct OneAccount {
    /// Only this account.
    #[param(min_length = 1, max_length = 60)]
    account: Option<String>,
}

/// The results of one business day.
#[derive(Serialize, ToSchema)]
struct DailyReconciliations {
    /// One for each account. Empty if the day has not been compared yet.
    data: Vec<DailyReconciliation>,
}

/// Returns how the books of a business day compare with Dojo's list of transactions.
///
/// Each business day is compared a few hours after its end, and again on later days, because Dojo may list transactions late.
/// Transactions of other payment products are left out. A difference stays until a later comparison no longer finds it.
#[utoipa::path(
    get, path = "/v1/reconciliations/{date}", operation_id = "getReconciliations", tag = "Books", params(Day, OneAccount),
    security(("apiKey" = ["links:read"])),
    responses(
        (status = 200, description = "The results of the day.", body = DailyReconciliations, example = json!(examples::reconciliations())),
        Guarded,
        (status = 404, description = "The path contains no date.", body = super::problem::Problem, content_type = "application/problem+json", examples(("not-found" = ()))),
        InvalidQuery,
    )
)]
async fn get(
    State(state): State<AppState>,
    caller: Caller<LinksRead>,
    Day { date }: Day,
    RawQuery(query): RawQuery,
) -> Result<Json<DailyReconciliations>, Error> {
    let mut query = Query::new(query.as_deref());
    let account = query.take("account", "1 to 60 characters", one_to_sixty);
    query.finish()?;
    let data =
        store::daily_reconciliation::find(&state.pool, date, caller.accounts(), account.as_deref())
            .await?;
    Ok(Json(DailyReconciliations { data }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_back() {
        for cursor in ["2026-01-31.leeds-2", "0001-01-01."] {
            let parsed = cursor.parse::<Cursor>().ok().unwrap();
            assert_eq!(parsed.to_string(), cursor);
        }
        for invalid in ["", "2026-01-31", "2026-02-30.leeds", "leeds.2026-01-31"] {
            assert!(invalid.parse::<Cursor>().is_err(), "{invalid}");
        }
    }
}
