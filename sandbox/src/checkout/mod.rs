//! The hosted checkout page: HTML from the server, complete without JavaScript.

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

use self::form::{Asked, Entered};
use self::page::{Alert, Shell};
use crate::intents::{Attempt, Intent, Refusal, Status};
use crate::world::World;

/// A form of addresses and a card is far smaller.
const LARGEST_FORM: usize = 64 * 1024;

pub(crate) fn routes(world: Arc<World>) -> Router {
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
        .layer(DefaultBodyLimit::max(LARGEST_FORM))
        .with_state(world)
}

/// The page to pay on, for as long as there is something to pay.
async fn show(State(world): State<Arc<World>>, Path(id): Path<String>) -> Response {
    match find(&world, &id) {
        Some(intent) if intent.status == Status::Created => {
            page::form(StatusCode::OK, &intent, None, None)
        }
        Some(intent) => closed(&intent),
        None => unknown(),
    }
}

/// Presents the card. Whether the intent can still be paid is decided under the ledger's lock, so a
/// form that is sent twice charges once, and the second answer shows that it is paid.
async fn pay(
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
    Form(pairs): Form<Vec<(String, String)>>,
) -> Response {
    let entered = Entered::new(pairs);
    let Some(intent) = find(&world, &id) else {
        return unknown();
    };
    if intent.status != Status::Created {
        return leave(&intent);
    }
    if let Ok(seen) = entered.get("amount").parse::<i64>()
        && seen != intent.total_amount.value
    {
        return page::form(
            StatusCode::CONFLICT,
            &intent,
            Some(&entered),
            Some(amount_changed()),
        );
    }
    let today = world.clock.now().date();
    let filled = match form::check(&entered, Asked::by(&intent.config), today) {
        Ok(filled) => filled,
        Err(faults) => {
            let alert = Alert {
                title: "Please check your details",
                text: None,
                links: faults,
            };
            return page::form(
                StatusCode::UNPROCESSABLE_ENTITY,
                &intent,
                Some(&entered),
                Some(alert),
            );
        }
    };
    let amount = intent.total_amount;
    let attempt = change(&world, &id, |intent, now| {
        if intent.total_amount != amount {
            return Err(Refusal::State(
                "The amount changed in the meantime.".to_owned(),
            ));
        }
        filled.note_on(intent);
        intent.present(filled.card, now)
    });
    let Some((attempt, intent)) = attempt else {
        return unknown();
    };
    let (status, alert) = match attempt {
        Ok(Attempt::Declined) => (StatusCode::PAYMENT_REQUIRED, declined()),
        Err(_) if intent.status == Status::Created => (StatusCode::CONFLICT, amount_changed()),
        attempt => return go_on(&intent, &attempt),
    };
    page::form(status, &intent, Some(&entered), Some(alert))
}

/// The bank's page, while its question is open.
async fn show_challenge(State(world): State<Arc<World>>, Path(id): Path<String>) -> Response {
    let Some(intent) = find(&world, &id) else {
        return unknown();
    };
    match &intent.challenge {
        Some(challenge) => page::challenge(&intent, &challenge.card),
        None if intent.status == Status::Created => see_other(&format!("/checkout/{id}")),
        None => leave(&intent),
    }
}

async fn answer_challenge(
    State(world): State<Arc<World>>,
    Path(id): Path<String>,
    Form(pairs): Form<Vec<(String, String)>>,
) -> Response {
    let passed = Entered::new(pairs).get("answer") == "approve";
    let mut holder = String::new();
    let attempt = change(&world, &id, |intent, now| {
        if let Some(challenge) = &intent.challenge {
            holder.clone_from(&challenge.card.holder);
        }
        intent.answer_challenge(passed, now)
    });
    let Some((attempt, intent)) = attempt else {
        return unknown();
    };
    match attempt {
        Ok(Attempt::Declined) => page::form(
            StatusCode::PAYMENT_REQUIRED,
            &intent,
            // The card's number is gone: nothing keeps it while the bank asks.
            Some(&Entered::holder(holder)),
            Some(not_approved()),
        ),
        // No question was open: the answer came twice, or after another card was tried.
        Err(_) if intent.status == Status::Created => see_other(&format!("/checkout/{id}")),
        attempt => go_on(&intent, &attempt),
    }
}

async fn show_success(State(world): State<Arc<World>>, Path(id): Path<String>) -> Response {
    match find(&world, &id) {
        Some(intent) if is_paid(&intent) => page::success(&intent),
        Some(intent) if intent.status == Status::Created => see_other(&format!("/checkout/{id}")),
        Some(intent) => closed(&intent),
        None => unknown(),
    }
}

/// The customer turns away. The intent stays as it is: they may come back and pay by the same link.
async fn cancel(State(world): State<Arc<World>>, Path(id): Path<String>) -> Response {
    let Some(intent) = find(&world, &id) else {
        return unknown();
    };
    let target = intent.config.cancel_url.as_deref().and_then(web_target);
    see_other(&target.unwrap_or_else(|| format!("/checkout/{id}/canceled")))
}

async fn show_canceled(State(world): State<Arc<World>>, Path(id): Path<String>) -> Response {
    match find(&world, &id) {
        Some(intent) if intent.status == Status::Created => page::notice(
            StatusCode::OK,
            &Shell::of(&intent),
            "Payment not completed",
            "You cancelled, and you have not been charged. You can still pay by the same link.",
            Some((format!("/checkout/{id}"), "Return to payment")),
        ),
        Some(intent) => closed(&intent),
        None => unknown(),
    }
}

/// Where an attempt leads that does not end at the form.
fn go_on(intent: &Intent, attempt: &Result<Attempt, Refusal>) -> Response {
    match attempt {
        Ok(Attempt::Challenged) => see_other(&format!("/checkout/{}/challenge", intent.id)),
        // Paid; or refused, because another tab, the merchant or the clock was quicker.
        _ => leave(intent),
    }
}

fn declined() -> Alert {
    Alert {
        title: "Payment declined",
        text: Some(
            "Your bank declined this card. You have not been charged. Check the details, or use another card.",
        ),
        links: Vec::new(),
    }
}

/// The customer said no on the bank's page; the bank did not.
fn not_approved() -> Alert {
    Alert {
        title: "Payment not approved",
        text: Some(
            "You did not approve this payment, so you have not been charged. Try again, or use another card.",
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

/// Sends a customer who is done on their way.
fn leave(intent: &Intent) -> Response {
    if !is_paid(intent) {
        return closed(intent);
    }
    let target = intent.config.redirect_url.as_deref().and_then(web_target);
    see_other(&target.unwrap_or_else(|| format!("/checkout/{}/success", intent.id)))
}

fn is_paid(intent: &Intent) -> bool {
    matches!(intent.status, Status::Authorized | Status::Captured)
}

/// A link that has nothing left to pay: reassuring where the payment was made, a way on where it was not.
fn closed(intent: &Intent) -> Response {
    let (heading, text) = match intent.status {
        Status::Canceled if intent.expired => (
            "This payment link has expired",
            "You have not been charged. Ask the business for a new link.",
        ),
        Status::Canceled => (
            "This payment was cancelled",
            "You have not been charged. Ask the business for a new link if you still want to pay.",
        ),
        Status::Authorized | Status::Captured => {
            return page::settled(intent, "This has already been paid");
        }
        Status::Refunded => return page::settled(intent, "This payment was refunded"),
        Status::Reversed => return page::settled(intent, "This payment was reversed"),
        _ => (
            "This payment link has been used",
            "There is nothing to pay here. Ask the business if you expected something else.",
        ),
    };
    page::notice(StatusCode::GONE, &Shell::of(intent), heading, text, None)
}

fn unknown() -> Response {
    page::notice(
        StatusCode::NOT_FOUND,
        &Shell::nameless(),
        "We cannot find this payment",
        "Check that the whole link was copied, or ask the business for a new one.",
        None,
    )
}

fn find(world: &World, id: &str) -> Option<Intent> {
    world.with_ledger(|ledger| ledger.find(id).cloned())
}

/// Changes the intent, and tells how that went and how the intent is now.
fn change(
    world: &World,
    id: &str,
    rule: impl FnOnce(&mut Intent, crate::clock::Timestamp) -> Result<Attempt, Refusal>,
) -> Option<(Result<Attempt, Refusal>, Intent)> {
    use crate::ledger::ChangeError;

    world.with_ledger(|ledger| {
        let attempt = match ledger.change(id, rule) {
            Ok((attempt, _)) => Ok(attempt),
            Err(ChangeError::Refused(refusal)) => Err(refusal),
            Err(ChangeError::NoSuchIntent) => return None,
        };
        ledger.find(id).cloned().map(|intent| (attempt, intent))
    })
}

/// Where the merchant wants the customer, if that is somewhere a browser should go.
fn web_target(url: &str) -> Option<String> {
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
