//! Who may use the console: sessions, and the proxy that vouches for people.

use std::{net::SocketAddr, sync::Arc};

use askama::Template;
use axum::{
    body::Bytes,
    extract::{ConnectInfo, FromRequest, FromRequestParts, Request},
    http::{HeaderMap, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use time::format_description::well_known::Rfc3339;
use url::form_urlencoded;
use uuid::Uuid;

use super::{
    form::Form,
    page::{LIVE, Layout, Stop, Trouble, broken, forbidden, page, redirect, trouble},
    person::{Person, Token},
    state::Console,
};
use crate::{
    api::{ForPeople, RequestId, Sender},
    api_key::Scope,
    store::{
        self,
        api_keys::{Identified, PERSON_PREFIX},
        console_audit::{self, NewEntry},
    },
};

/// Begins a session with a new token.
pub(super) async fn begin(
    console: &Console,
    client_id: Uuid,
    key_hash: Option<&[u8]>,
) -> Result<Token, store::Error> {
    let token = Token::generate();
    let pool = &console.state.pool;
    store::console_sessions::begin(pool, &token.hash(), client_id, key_hash, console.limits)
        .await?;
    Ok(token)
}

/// Somebody for whom the authenticating proxy vouches.
struct Vouched {
    /// The name of the person's client.
    client: String,
    scopes: Vec<String>,
}

/// The person whom the proxy's headers name. Anybody can send such headers, so they count only from the proxy itself.
fn vouched_for(console: &Console, parts: &Parts) -> Option<Vouched> {
    let proxy = console.proxy.as_ref()?;
    let ConnectInfo(peer) = parts.extensions.get::<ConnectInfo<SocketAddr>>()?;
    if !proxy.is_at(peer.ip()) {
        return None;
    }
    let mut users = parts.headers.get_all(&proxy.user_header).iter();
    // A second one could be the person's own, which the proxy has passed on.
    let (Some(user), None) = (users.next(), users.next()) else {
        return None;
    };
    let user = user.to_str().ok().map(str::trim)?;
    let groups = parts.headers.get_all(&proxy.groups_header).iter();
    let groups: Vec<_> = groups.filter_map(|value| value.to_str().ok()).collect();
    let scopes = proxy.scopes(&groups.join(","));
    (!user.is_empty() && user.len() <= 200).then(|| Vouched {
        client: format!("{PERSON_PREFIX}{user}"),
        scopes: scopes
            .into_iter()
            .map(|scope| scope.as_str().to_owned())
            .collect(),
    })
}

/// The address that a request comes from.
pub(super) fn peer(parts: &Parts) -> Option<SocketAddr> {
    parts
        .extensions
        .get::<ConnectInfo<SocketAddr>>()
        .map(|ConnectInfo(peer)| *peer)
}

pub(super) fn request_id(parts: &Parts) -> String {
    parts
        .extensions
        .get::<RequestId>()
        .map_or_else(String::new, |id| id.0.clone())
}

impl FromRequestParts<Console> for Person {
    type Rejection = Stop;

    async fn from_request_parts(parts: &mut Parts, console: &Console) -> Result<Self, Stop> {
        let request_id = request_id(parts);
        let is_use = !parts.headers.contains_key(LIVE);
        let token = Token::of(&parts.headers);
        if token.is_none() && comes_from_elsewhere(parts) {
            return Err(bounce(console, &here(parts)).into());
        }
        let session = match &token {
            Some(token) => {
                let (pool, limits) = (&console.state.pool, console.limits);
                store::console_sessions::find(pool, &token.hash(), limits, is_use)
                    .await
                    .map_err(|error| broken(console, None, &request_id, &error))?
            }
            None => None,
        };
        let vouched = vouched_for(console, parts);
        let who = match (session, vouched) {
            (Some(session), Some(vouched))
                if session.scopes.is_none() && session.client == vouched.client =>
            {
                Identified {
                    client_id: session.client_id,
                    client: session.client,
                    scopes: vouched.scopes,
                    accounts: None,
                    ends_at: None,
                }
            }
            (_, Some(vouched)) => return Err(let_in(console, parts, &request_id, vouched).await),
            (Some(session), None) => match session.scopes {
                Some(scopes) => Identified {
                    client_id: session.client_id,
                    client: session.client,
                    scopes,
                    accounts: session.accounts,
                    ends_at: session.ends_at,
                },
                // The proxy no longer vouches for the person.
                None => return Err(sign_in_first(parts)),
            },
            (None, None) => return Err(sign_in_first(parts)),
        };
        let Some(token) = token else {
            return Err(sign_in_first(parts));
        };
        if let Some(sender) = parts.extensions.get::<Sender>() {
            sender.authenticated();
        }
        let span = tracing::Span::current();
        span.record("client", &who.client);
        if let Some(ends_at) = who.ends_at.and_then(|at| at.format(&Rfc3339).ok()) {
            span.record("key_ends_at", ends_at);
        }
        let person = Self {
            who: Arc::new(who),
            request_id,
            token,
        };
        // Every page shows links, or what happened to some.
        if person.may(Scope::LinksRead) {
            Ok(person)
        } else {
            Err(forbidden(console, &person, Scope::LinksRead))
        }
    }
}

/// Begins a session for somebody for whom the proxy vouches, and has the browser send its request again.
async fn let_in(console: &Console, parts: &Parts, request_id: &str, vouched: Vouched) -> Stop {
    if parts.headers.contains_key(LIVE) {
        return unauthorized();
    }
    let pool = &console.state.pool;
    let begun = async {
        let id = store::api_keys::person(pool, &vouched.client).await?;
        let entry = NewEntry {
            client: Some((id, &vouched.client)),
            what: "signIn",
            account: None,
            link_id: None,
            detail: Some("through the proxy"),
            outcome: "done",
            request_id,
        };
        console_audit::record(pool, &entry).await?;
        begin(console, id, None).await
    };
    match begun.await {
        Ok(token) => {
            let mut response = redirect(&here(parts));
            let cookie = token.cookie(&parts.headers);
            response.headers_mut().insert(header::SET_COOKIE, cookie);
            response.into()
        }
        Err(error) => broken(console, None, request_id, &error),
    }
}

/// The path that was requested. What a form was sent to shows the form.
fn here(parts: &Parts) -> String {
    let path = parts.uri.path();
    let query = parts.uri.query().filter(|_| parts.method == Method::GET);
    query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"))
}

/// Leads somebody who isn't signed in to the form for it.
fn sign_in_first(parts: &Parts) -> Stop {
    if parts.headers.contains_key(LIVE) {
        return unauthorized();
    }
    let next: String = form_urlencoded::byte_serialize(here(parts).as_bytes()).collect();
    redirect(&format!("/sign-in?next={next}")).into()
}

/// Whether somebody follows a link from another site, such as a ticket.
fn comes_from_elsewhere(parts: &Parts) -> bool {
    let site = parts.headers.get("sec-fetch-site");
    parts.method == Method::GET && site.is_some_and(|site| site == "cross-site")
}

/// A page that leads to itself. A browser that comes from another site doesn't send the cookie, but it does when it comes
/// from this page.
fn bounce(console: &Console, to: &str) -> Response {
    #[derive(Template)]
    #[template(path = "console/bounce.html")]
    struct Bounce<'a> {
        layout: Layout,
        to: &'a str,
    }

    let layout = Layout::for_anybody(console, "One moment");
    page(StatusCode::OK, &Bounce { layout, to })
}

/// The response to a page that would bring itself up to date, but whose session has ended.
fn unauthorized() -> Stop {
    let mut response = StatusCode::UNAUTHORIZED.into_response();
    response.extensions_mut().insert(ForPeople);
    response.into()
}

/// Checks that a form was sent by a page of the console. Browsers say where a request comes from.
pub(super) fn check_origin(
    console: &Console,
    headers: &HeaderMap,
    request_id: &str,
) -> Result<(), Stop> {
    let text = |name: header::HeaderName| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap_or_default())
    };
    let site = text(header::HeaderName::from_static("sec-fetch-site"));
    let is_ours = match (site, text(header::ORIGIN)) {
        // Nobody but the person can send it without a site: with the button that loads a page again.
        (Some(site), _) => site == "same-origin" || site == "none",
        (None, Some(origin)) => {
            let host = origin.split_once("://").map(|(_, host)| host);
            host.is_some() && host == text(header::HOST)
        }
        (None, None) => false,
    };
    if is_ours {
        return Ok(());
    }
    let detail = "The form was not sent by a page of this console. Nothing was done.";
    let what = Trouble::new("Not accepted", detail, request_id);
    Err(trouble(console, None, StatusCode::FORBIDDEN, what).into())
}

/// The form in the body of a request.
pub(super) async fn form(
    console: &Console,
    request: Request,
    request_id: &str,
) -> Result<Form, Stop> {
    match Bytes::from_request(request, &()).await {
        Ok(body) => Ok(Form::parse(&body)),
        Err(rejection) => {
            let what = Trouble::new(
                "Not accepted",
                "The form is too large, or was cut off. Nothing was done.",
                request_id,
            );
            Err(trouble(console, None, rejection.status(), what).into())
        }
    }
}

/// A form that somebody who is signed in has sent from a page of the console.
pub(super) struct Submission {
    pub(super) person: Person,
    pub(super) form: Form,
}

impl FromRequest<Console> for Submission {
    type Rejection = Stop;

    async fn from_request(request: Request, console: &Console) -> Result<Self, Stop> {
        let (mut parts, body) = request.into_parts();
        check_origin(console, &parts.headers, &request_id(&parts))?;
        let person = Person::from_request_parts(&mut parts, console).await?;
        let request = Request::from_parts(parts, body);
        let form = form(console, request, &person.request_id).await?;
        if !person.token.is_form_token(form.text("csrf")) {
            let detail = "The form belongs to another session. Nothing was done. Go back, load the page again, and send \
                          the form once more.";
            let what = Trouble::new("Not accepted", detail, &person.request_id);
            let page = trouble(console, Some(&person), StatusCode::FORBIDDEN, what);
            return Err(page.into());
        }
        Ok(Self { person, form })
    }
}
