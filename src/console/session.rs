//! Who may use the console: sessions, and the proxy that vouches for people.

use std::{net::SocketAddr, sync::Arc};

use askama::Template;
use axum::{
    body::Bytes,
    extract::{ConnectInfo, FromRequest, FromRequestParts, Request},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use time::format_description::well_known::Rfc3339;
use url::form_urlencoded;
use uuid::Uuid;

use super::{
    attempts::Outcome,
    form::Form,
    page::{LIVE, Layout, Stop, Trouble, broken, forbidden, page, redirect, trouble},
    person::{Person, Preferences, Token, is_for_console},
    state::Console,
};
use crate::{
    api::{ForPeople, RequestId, Sender},
    api_key::Scope,
    config::Permissions,
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

/// Where browsers say that a request comes from.
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Somebody for whom the authenticating proxy vouches.
pub(super) struct Vouched {
    /// The name of the person's client.
    client: String,
    permissions: Permissions,
}

/// What the authenticating proxy says about who sends a request.
enum Word {
    /// Nothing, or the request didn't come through it.
    None,
    Person(Vouched),
    /// It can be read in more than one way.
    Unclear,
}

/// The person whom the proxy's headers name. Anybody can send such headers, so they count only from the proxy itself.
fn word_of_proxy(console: &Console, parts: &Parts) -> Word {
    let proxy = console.proxy.as_ref();
    let Some(proxy) = proxy.filter(|proxy| peer(parts).is_some_and(|peer| proxy.is_at(peer.ip())))
    else {
        return Word::None;
    };
    let header = |name| only(parts.headers.get_all(name).iter());
    let (Ok(user), Ok(groups)) = (header(&proxy.user_header), header(&proxy.groups_header)) else {
        return Word::Unclear;
    };
    let Some(user) = user else {
        return Word::None;
    };
    match name_of(user) {
        Some(name) => Word::Person(Vouched {
            client: format!("{PERSON_PREFIX}{name}"),
            permissions: proxy.permissions(groups.unwrap_or_default()),
        }),
        None => Word::Unclear,
    }
}

/// The text of a header that is sent at most once. A second one could be the person's own, which the proxy has passed on.
fn only<'a>(mut values: impl Iterator<Item = &'a HeaderValue>) -> Result<Option<&'a str>, ()> {
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(drop),
        _ => Err(()),
    }
}

/// A person's name in one spelling. Many directories let `Ann ` in as `ann`, and some proxies pass on what was typed. Were these
/// two people, one could approve what the other requests.
fn name_of(text: &str) -> Option<String> {
    let words: Vec<_> = text.split_ascii_whitespace().collect();
    let name = words.join(" ").to_ascii_lowercase();
    // Proxies may join two headers with a comma.
    let is_clear = (1..=200).contains(&name.len()) && !name.contains(',');
    is_clear.then_some(name)
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
        check_host(console, &parts.headers, &request_id)?;
        let is_use = !parts.headers.contains_key(LIVE);
        let token = Token::of(&parts.headers, console.cookie_name(&parts.headers));
        if token.is_none() && comes_from_elsewhere(parts) {
            return Err(bounce(console, &here(parts)).into());
        }
        let vouched = vouched_for(console, parts, &request_id)?;
        let session = match &token {
            Some(token) => {
                let (pool, limits) = (&console.state.pool, console.limits);
                store::console_sessions::find(pool, &token.hash(), limits, is_use)
                    .await
                    .map_err(|error| broken(console, None, &request_id, &error))?
            }
            None => None,
        };
        let who = match (session, vouched) {
            (Some(session), Some(vouched))
                if session.scopes.is_none() && session.client == vouched.client =>
            {
                let Permissions { scopes, accounts } = vouched.permissions;
                Identified {
                    client_id: session.client_id,
                    client: session.client,
                    scopes: scopes.iter().map(ToString::to_string).collect(),
                    accounts,
                    ends_at: None,
                }
            }
            (_, Some(vouched)) => {
                return Err(let_in(console, parts, &request_id, vouched).await);
            }
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
            preferences: Preferences::of(&parts.headers),
        };
        // Some pages ask the database for more than any request to the API does.
        if console.state.rates.check(person.who.client_id).is_err() {
            return Err(too_many(console, Some(&person), &person.request_id, "1"));
        }
        // Every page shows links, or what happened to some.
        if person.may(Scope::LinksRead) {
            Ok(person)
        } else {
            Err(forbidden(console, &person, Scope::LinksRead))
        }
    }
}

/// The person for whom the proxy vouches, if it does. A request whose headers could name two people is nobody's.
pub(super) fn vouched_for(
    console: &Console,
    parts: &Parts,
    request_id: &str,
) -> Result<Option<Vouched>, Stop> {
    let (outcome, title, detail) = match word_of_proxy(console, parts) {
        Word::None => return Ok(None),
        Word::Person(vouched) if vouched.permissions.scopes.contains(&Scope::LinksRead) => {
            return Ok(Some(vouched));
        }
        Word::Person(_) => (
            Outcome::Forbidden,
            "Not permitted",
            "None of your groups has the permission links:read. Ask whoever manages them.",
        ),
        Word::Unclear => (
            Outcome::Unclear,
            "Not accepted",
            "The proxy in front of the console doesn’t say clearly who you are. Report this to whoever runs it.",
        ),
    };
    outcome.count();
    let what = Trouble::new(title, detail, request_id);
    Err(trouble(console, None, StatusCode::FORBIDDEN, what).into())
}

/// Begins a session for somebody for whom the proxy vouches, and has the browser send its request again.
async fn let_in(console: &Console, parts: &Parts, request_id: &str, vouched: Vouched) -> Stop {
    if parts.headers.contains_key(LIVE) {
        return unauthorized();
    }
    let pool = &console.state.pool;
    let begun = async {
        let id = store::api_keys::person(pool, &vouched.client).await?;
        if !console.attempts.may_begin(id) {
            return Ok(None);
        }
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
        begin(console, id, None).await.map(Some)
    };
    match begun.await {
        Ok(Some(token)) => {
            Outcome::Vouched.count();
            let mut response = redirect(&here(parts));
            let cookie = token.cookie(console.cookie_name(&parts.headers));
            response.headers_mut().insert(header::SET_COOKIE, cookie);
            response.into()
        }
        Ok(None) => {
            Outcome::Limited.count();
            too_many(console, None, request_id, "60")
        }
        Err(error) => broken(console, None, request_id, &error),
    }
}

/// Ends the handling of a request that comes too soon after many others of the same person. `wait` is in seconds.
fn too_many(
    console: &Console,
    person: Option<&Person>,
    request_id: &str,
    wait: &'static str,
) -> Stop {
    let detail = "Nothing was done. Wait a little, and try again.";
    let what = Trouble::new("Too many requests", detail, request_id);
    let mut response = trouble(console, person, StatusCode::TOO_MANY_REQUESTS, what);
    let wait = HeaderValue::from_static(wait);
    response.headers_mut().insert(header::RETRY_AFTER, wait);
    response.into()
}

/// The address that was requested. What a form was sent to shows the form, with the same key.
fn here(parts: &Parts) -> String {
    let path = parts.uri.path();
    let query = parts.uri.query();
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
    let site = parts.headers.get(SITE);
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

/// Checks that a request is for the console, by the name under which people know it.
pub(super) fn check_host(
    console: &Console,
    headers: &HeaderMap,
    request_id: &str,
) -> Result<(), Stop> {
    let url = console.url.as_ref();
    if is_for_console(url, headers) {
        return Ok(());
    }
    let detail = match url {
        Some(url) => format!(
            "The console is at {}. If that is where you are, tell whoever runs the console: the proxy in front of it must pass on \
             the header Host.",
            url.origin()
        ),
        None => "Open the console by its IP address instead or, on the machine where it runs, at localhost. Whoever runs it can make \
                 it available at the address that you used, by setting CONSOLE_URL."
            .to_owned(),
    };
    let what = Trouble {
        more: url.map(|url| (url.origin(), "Open the console".to_owned())),
        ..Trouble::new("Not at this address", detail, request_id)
    };
    Err(trouble(console, None, StatusCode::MISDIRECTED_REQUEST, what).into())
}

/// Whether the person had the browser load a page again that a form had led to. Nobody else can send a form from no site at all,
/// but the form may be one that another site has sent before.
pub(super) fn is_loaded_again(headers: &HeaderMap) -> bool {
    headers.get(SITE).is_some_and(|site| site == "none")
}

/// Checks that a form was sent by a page of the console. Browsers say where a request comes from.
pub(super) fn check_origin(
    console: &Console,
    headers: &HeaderMap,
    request_id: &str,
) -> Result<(), Stop> {
    check_host(console, headers, request_id)?;
    let text = |name: HeaderName| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap_or_default())
    };
    let is_own = |origin: &str| {
        if let Some(url) = &console.url {
            return origin == url.origin();
        }
        let host = origin.split_once("://").map(|(_, host)| host);
        host.is_some() && host == text(header::HOST)
    };
    let is_ours = match (text(SITE), text(header::ORIGIN)) {
        // Pages that send no referrer send `null` as the origin of their forms.
        (Some(site), origin) => {
            (site == "same-origin" || is_loaded_again(headers))
                && origin.is_none_or(|origin| origin == "null" || is_own(origin))
        }
        (None, Some(origin)) => is_own(origin),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_has_one_name_in_all_its_spellings() {
        for same in ["ann@example.com", "Ann@Example.COM", " ann@example.com\t"] {
            assert_eq!(name_of(same).as_deref(), Some("ann@example.com"), "{same}");
        }
        assert_eq!(name_of("Ann  \t Lee"), name_of("ann lee"));
        assert_ne!(name_of("ann lee"), name_of("annlee"));
        for unclear in ["", " ", "ann,ben", "ann, approved by ben", &"x".repeat(201)] {
            assert_eq!(name_of(unclear), None, "{unclear}");
        }
    }

    #[test]
    fn a_header_that_is_sent_twice_or_is_no_ascii_text_is_unclear() {
        let values = |texts: &[&[u8]]| -> Vec<HeaderValue> {
            let values = texts.iter().map(|text| HeaderValue::from_bytes(text));
            values.collect::<Result<_, _>>().unwrap()
        };
        let read = |texts: &[&[u8]]| {
            let values = values(texts);
            only(values.iter()).map(|text| text.map(str::to_owned))
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[b"ann"]), Ok(Some("ann".to_owned())));
        assert_eq!(read(&[b"ann", b"ann"]), Err(()));
        // A Cyrillic letter that looks like an `a`.
        assert_eq!(read(&["\u{430}nn".as_bytes()]), Err(()));
    }
}
