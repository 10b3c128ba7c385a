//! The daily comparison of the books with Dojo's list of transactions.

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
    query::{Query, one_to_sixty},
    responses::{Guarded, InvalidQuery},
    scope::LinksRead,
    state::AppState,
};
use crate::{
    payment_link::{daily_reconciliation::DailyReconciliation, parse_day},
    store,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(get))
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
struct Filter {
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
    get, path = "/v1/reconciliations/{date}", operation_id = "getReconciliations", tag = "Books", params(Day, Filter),
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
