//! The form for a person's preferences, which a cookie in the browser keeps.

use askama::Template;
use axum::{
    extract::{Query, State},
    http::{StatusCode, header},
    response::Response,
};
use serde::Deserialize;

use super::{
    page::{Layout, Part, page, redirect},
    person::{Person, Preferences},
    session::Submission,
    state::Console,
};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    /// Whether they have just been saved.
    saved: Option<String>,
}

#[derive(Template)]
#[template(path = "console/preferences.html")]
struct PreferencesPage {
    layout: Layout,
    form_token: String,
    is_saved: bool,
}

pub(super) async fn show_preferences(
    State(console): State<Console>,
    person: Person,
    Query(asked): Query<Asked>,
) -> Response {
    let page_of = PreferencesPage {
        layout: Layout::new(&console, &person, Part::Other, "Preferences"),
        form_token: person.token.form_token(),
        is_saved: asked.saved.is_some(),
    };
    page(StatusCode::OK, &page_of)
}

pub(super) async fn submit_preferences(Submission { form, .. }: Submission) -> Response {
    let preferences = Preferences {
        has_updates: form.has("updates"),
        has_shortcuts: form.has("shortcuts"),
    };
    let mut response = redirect("/preferences?saved=yes");
    response
        .headers_mut()
        .insert(header::SET_COOKIE, preferences.cookie());
    response
}
