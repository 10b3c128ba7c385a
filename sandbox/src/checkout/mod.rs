//! The hosted checkout page, rendered on the server. It works without JavaScript.

mod countries;
mod fields;
mod form;
mod order;
mod page;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Form, Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use self::form::{FormInput, RequiredParts};
use self::page::{Alert, Shell};
use crate::app_state::AppState;
use crate::clock::Timestamp;
use crate::intent_store::ChangeError;
use crate::intents::{Intent, PaymentOutcome, Rejection, Status};

/// Far more than the form needs.
const MAX_FORM: usize = 64 * 1024;

pub(crate) fn routes(state: Arc<AppState>) -> Router {
    Router::new()
        .route("/{id}", get(show).post(pay))
        .route(
            "/{id}/challenge",
            get(show_challenge).post(answer_challenge),
        )
        .route("/{id}/success", get(show_success))
        .route("/{id}/cancel", post(cancel))
        .route("/{id}/canceled", get(show_canceled))
        .fallback(async || unknown())
        .layer(DefaultBodyLimit::max(MAX_FORM))
        .with_state(state)
}

/// The payment form, if the intent can still be paid.
async fn show(State(state): State<Arc<AppState>>, Path(id): Path<String>) -> Response {
    match find(&state, &id) {
        Some(intent) if intent.status == Status::Created => {
            page::form(StatusCode::OK, &intent, None, None)
        }
        Some(intent) => closed(&intent),
        None => unknown(),
    }
}

/// Attempts the payment. Whether the intent can still be paid is checked under the lock of the intents, so a form that
/// is submitted twice charges the card once, and the second response shows the paid intent.
async fn pay(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
    Form(pairs): Form<Vec<(String, String)>>,
) -> Response {
    let input = FormInput::new(pairs);
    let Some(intent) = find(&state, &id) else {
        return unknown();
    };
    if intent.status != Status::Created {
        return leave(&intent);
    }
    if let Ok(seen) = input.get("amount").parse::<i64>()
        && seen != intent.total_amount.value
    {
        return page::form(
            StatusCode::CONFLICT,
            &intent,
            Some(&input),
            Some(amount_changed()),
        );
    }
    let today = state.clock.now().date();
    let form = match form::check(&input, RequiredParts::of(&intent.config), today) {
        Ok(form) => form,
        Err(errors) => {
            let alert = Alert {
                title: "Please check your details",
                text: None,
                links: errors,
            };
            return page::form(
                StatusCode::UNPROCESSABLE_ENTITY,
                &intent,
                Some(&input),
                Some(alert),
            );
        }
    };
    let amount = intent.total_amount;
    let attempt = change(&state, &id, |intent, now| {
        if intent.total_amount != amount {
            return Err(Rejection::State("The amount has changed.".to_owned()));
        }
        form.store_in(intent);
        intent.present(form.card, now)
    });
    let Some((attempt, intent)) = attempt else {
        return unknown();
    };
    let (status, alert) = match attempt {
        Ok(PaymentOutcome::Declined) => (StatusCode::PAYMENT_REQUIRED, declined()),
        Err(_) if intent.status == Status::Created => (StatusCode::CONFLICT, amount_changed()),
        attempt => return next_page(&intent, &attempt),
    };
    page::form(status, &intent, Some(&input), Some(alert))
}

/// The bank's page, while its challenge is in progress.
async fn show_challenge(State(state): State<Arc<AppState>>, Path(id): Path<String>) -> Response {
    let Some(intent) = find(&state, &id) else {
        return unknown();
    };
    match &intent.challenge {
        Some(challenge) => page::challenge(&intent, &challenge.card),
        None if intent.status == Status::Created => see_other(&format!("/checkout/{id}")),
        None => leave(&intent),
    }
}

async fn answer_challenge(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
    Form(pairs): Form<Vec<(String, String)>>,
) -> Response {
    let passed = FormInput::new(pairs).get("answer") == "approve";
    let mut input = None;
    let attempt = change(&state, &id, |intent, now| {
        let challenge = intent.challenge.as_ref();
        input = challenge.map(|challenge| FormInput::challenged(&challenge.card));
        intent.finish_challenge(passed, now)
    });
    let Some((attempt, intent)) = attempt else {
        return unknown();
    };
    match attempt {
        Ok(PaymentOutcome::Declined) => page::form(
            StatusCode::PAYMENT_REQUIRED,
            &intent,
            input.as_ref(),
            Some(not_approved()),
        ),
        // No challenge is in progress: the form was submitted twice, or another card was used since.
        Err(_) if intent.status == Status::Created => see_other(&format!("/checkout/{id}")),
        attempt => next_page(&intent, &attempt),
    }
}

async fn show_success(State(state): State<Arc<AppState>>, Path(id): Path<String>) -> Response {
    match find(&state, &id) {
        Some(intent) if is_paid(&intent) => page::success(&intent),
        Some(intent) if intent.status == Status::Created => see_other(&format!("/checkout/{id}")),
        Some(intent) => closed(&intent),
        None => unknown(),
    }
}

/// The intent stays `Created`, so the customer can come back and pay with the same link.
async fn cancel(State(state): State<Arc<AppState>>, Path(id): Path<String>) -> Response {
    let Some(intent) = find(&state, &id) else {
        return unknown();
    };
    let target = intent.config.cancel_url.as_deref().and_then(safe_url);
    see_other(&target.unwrap_or_else(|| format!("/checkout/{id}/canceled")))
}

async fn show_canceled(State(state): State<Arc<AppState>>, Path(id): Path<String>) -> Response {
    match find(&state, &id) {
        Some(intent) if intent.status == Status::Created => page::notice(
            StatusCode::OK,
            &Shell::of(&intent),
            "Payment not completed",
            "You cancelled this payment and have not been charged. You can still pay using the same link.",
            Some((format!("/checkout/{id}"), "Return to payment")),
        ),
        Some(intent) => closed(&intent),
        None => unknown(),
    }
}

/// The next page after an attempt that doesn't lead back to the form.
fn next_page(intent: &Intent, attempt: &Result<PaymentOutcome, Rejection>) -> Response {
    match attempt {
        Ok(PaymentOutcome::Challenged) => see_other(&format!("/checkout/{}/challenge", intent.id)),
        // Paid, or rejected because the intent was paid, canceled or expired in the meantime.
        _ => leave(intent),
    }
}

fn declined() -> Alert {
    Alert {
        title: "Payment declined",
        text: Some(
            "Your bank declined this card. You have not been charged. Check your card details or try another card.",
        ),
        links: Vec::new(),
    }
}

/// It was the customer who didn't approve the payment, not the bank.
fn not_approved() -> Alert {
    Alert {
        title: "Payment not approved",
        text: Some(
            "You did not approve this payment. You have not been charged. Try again or use another card.",
        ),
        links: Vec::new(),
    }
}

fn amount_changed() -> Alert {
    Alert {
        title: "The amount has changed",
        text: Some("You have not been charged. Check the new amount before you pay."),
        links: Vec::new(),
    }
}

/// The page for a customer who has nothing left to pay.
fn leave(intent: &Intent) -> Response {
    if !is_paid(intent) {
        return closed(intent);
    }
    let target = intent.config.redirect_url.as_deref().and_then(safe_url);
    see_other(&target.unwrap_or_else(|| format!("/checkout/{}/success", intent.id)))
}

fn is_paid(intent: &Intent) -> bool {
    matches!(intent.status, Status::Authorized | Status::Captured)
}

/// The page of a link that can no longer be paid.
fn closed(intent: &Intent) -> Response {
    let (heading, text) = match intent.status {
        Status::Canceled if intent.expired => (
            "This payment link has expired",
            "You have not been charged. Ask the business for a new link.",
        ),
        Status::Canceled => (
            "This payment was cancelled",
            "You have not been charged. If you still want to pay, ask the business for a new link.",
        ),
        Status::Authorized | Status::Captured => {
            return page::settled(intent, "This payment has already been made");
        }
        Status::Refunded => return page::settled(intent, "This payment was refunded"),
        Status::Reversed => return page::settled(intent, "This payment was reversed"),
        _ => (
            "This payment link has already been used",
            "There is nothing to pay. If you were expecting something else, contact the business.",
        ),
    };
    page::notice(StatusCode::GONE, &Shell::of(intent), heading, text, None)
}

fn unknown() -> Response {
    page::notice(
        StatusCode::NOT_FOUND,
        &Shell::nameless(),
        "We can’t find this payment",
        "Check that you have the complete link, or ask the business for a new one.",
        None,
    )
}

fn find(state: &AppState, id: &str) -> Option<Intent> {
    state.with_intents(|intents| intents.find(id).cloned())
}

/// Changes the intent, and returns the outcome and the intent as it is now.
fn change(
    state: &AppState,
    id: &str,
    rule: impl FnOnce(&mut Intent, Timestamp) -> Result<PaymentOutcome, Rejection>,
) -> Option<(Result<PaymentOutcome, Rejection>, Intent)> {
    state.with_intents(|intents| {
        let attempt = match intents.change(id, rule) {
            Ok((attempt, _)) => Ok(attempt),
            Err(ChangeError::Rejected(rejection)) => Err(rejection),
            Err(ChangeError::UnknownIntent) => return None,
        };
        intents.find(id).cloned().map(|intent| (attempt, intent))
    })
}

/// The merchant's URL, unless its scheme would be harmful in a redirect.
fn safe_url(url: &str) -> Option<String> {
    let url = reqwest::Url::parse(url).ok()?;
    let harmful = matches!(
        url.scheme(),
        "javascript" | "data" | "blob" | "file" | "about"
    );
    (!harmful).then(|| url.to_string())
}

fn see_other(target: &str) -> Response {
    let Ok(location) = HeaderValue::from_str(target) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let headers = [
        (header::LOCATION, location),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (
            header::REFERRER_POLICY,
            HeaderValue::from_static("no-referrer"),
        ),
    ];
    (StatusCode::SEE_OTHER, headers).into_response()
}
