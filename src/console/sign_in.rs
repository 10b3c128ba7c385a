//! Signing in with an API key, and signing out.

use std::net::IpAddr;

use askama::Template;
use axum::{
    extract::{Query, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    attempts::Outcome,
    page::{Layout, Stop, broken, out_of_order, page, redirect},
    person::{Token, no_cookie},
    session::{
        Submission, begin, check_host, check_origin, form, is_loaded_again, peer, request_id,
        vouched_for,
    },
    state::Console,
};
use crate::{
    api::RequestId,
    api_key::{ApiKey, Scope},
    store::{
        self,
        console_audit::{self, NewEntry},
    },
};

#[derive(Template)]
#[template(path = "console/sign_in.html")]
struct SignInPage {
    layout: Layout,
    next: String,
    /// Why the last attempt failed.
    error: Option<&'static str>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    next: String,
}

/// The longest address of a page that somebody may come back to. A header can't be much longer.
const LONGEST: usize = 4096;

/// Where to go afterwards: a path of the console, and never another site.
fn next_path(text: &str) -> String {
    let is_ours = text.len() <= LONGEST
        && text.starts_with('/')
        && !text.starts_with("//")
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if is_ours {
        text.to_owned()
    } else {
        "/links".to_owned()
    }
}

fn show(
    console: &Console,
    status: StatusCode,
    next: String,
    error: Option<&'static str>,
) -> Response {
    let layout = Layout::for_anybody(console, "Sign in");
    page(
        status,
        &SignInPage {
            layout,
            next,
            error,
        },
    )
}

/// The form again, after too many attempts.
fn show_limit(console: &Console, next: String) -> Response {
    Outcome::Limited.count();
    let error = "There were too many attempts. Wait a minute, and try again.";
    let mut response = show(console, StatusCode::TOO_MANY_REQUESTS, next, Some(error));
    let minute = HeaderValue::from_static("60");
    response.headers_mut().insert(header::RETRY_AFTER, minute);
    response
}

pub(super) async fn show_sign_in(
    State(console): State<Console>,
    RequestId(request_id): RequestId,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Result<Response, Stop> {
    // Nobody should type a key into a page that is not at its own address.
    check_host(&console, &headers, &request_id)?;
    let next = next_path(&asked.next);
    Ok(show(&console, StatusCode::OK, next, None))
}

/// What is recorded about an attempt.
struct Attempt<'a> {
    console: &'a Console,
    address: Option<IpAddr>,
    request_id: &'a str,
}

impl Attempt<'_> {
    async fn record(
        &self,
        client: Option<(Uuid, &str)>,
        outcome: &str,
    ) -> Result<(), store::Error> {
        let address = self.address.map(|address| address.to_string());
        let entry = NewEntry {
            client,
            what: "signIn",
            account: None,
            link_id: None,
            detail: address.as_deref(),
            outcome,
            request_id: self.request_id,
        };
        console_audit::record(&self.console.state.pool, &entry).await
    }
}

pub(super) async fn submit_sign_in(
    State(console): State<Console>,
    request: Request,
) -> Result<Response, Stop> {
    const WRONG: &str = "This is not an active API key.";

    let (parts, body) = request.into_parts();
    let request_id = request_id(&parts);
    check_origin(&console, &parts.headers, &request_id)
        .inspect_err(|_| Outcome::Foreign.count())?;
    let vouched = vouched_for(&console, &parts, &request_id)?;
    let address = peer(&parts).map(|peer| peer.ip().to_canonical());
    // Behind a proxy, everybody has the same address.
    let own = address.filter(|address| {
        let proxy = console.proxy.as_ref();
        proxy.is_none_or(|proxy| !proxy.is_at(*address))
    });
    let headers = parts.headers.clone();
    let form = form(&console, Request::from_parts(parts, body), &request_id).await?;
    let next = next_path(form.text("next"));
    if vouched.is_some() {
        return Ok(redirect(&next));
    }
    // No word of a session protects this form. So whoever loads the page again that another site's form has led to doesn't sign
    // in with that site's key.
    if is_loaded_again(&headers) {
        return Ok(show(&console, StatusCode::OK, next, None));
    }

    let pool = &console.state.pool;
    let attempt = Attempt {
        console: &console,
        address,
        request_id: &request_id,
    };
    let in_vain = |error: store::Error| broken(&console, None, &request_id, &error);
    let hash = ApiKey::parse(form.text("key")).map(|key| key.hash());
    let known = match &hash {
        Some(hash) => store::api_keys::identify(pool, hash)
            .await
            .map_err(in_vain)?,
        None => None,
    };
    let (Some(hash), Some(known)) = (hash, known) else {
        if !console.attempts.may_fail(own) {
            return Ok(show_limit(&console, next));
        }
        attempt.record(None, "rejected").await.map_err(in_vain)?;
        Outcome::Rejected.count();
        let status = StatusCode::UNAUTHORIZED;
        return Ok(show(&console, status, next, Some(WRONG)));
    };
    if !console.attempts.may_begin(known.client_id) {
        return Ok(show_limit(&console, next));
    }
    let client = Some((known.client_id, known.client.as_str()));
    let may_read = known
        .scopes
        .iter()
        .any(|scope| scope == Scope::LinksRead.as_str());
    if !may_read {
        attempt.record(client, "forbidden").await.map_err(in_vain)?;
        Outcome::Forbidden.count();
        let error = "This API key lacks the scope links:read, which the console needs.";
        return Ok(show(&console, StatusCode::FORBIDDEN, next, Some(error)));
    }
    attempt.record(client, "done").await.map_err(in_vain)?;
    let cookie_name = console.cookie_name(&headers);
    // Whoever was signed in in this browser is not any more. The new session has a token of its own, which nobody could have
    // planted there.
    if let Some(token) = Token::of(&headers, cookie_name) {
        store::console_sessions::end(pool, &token.hash())
            .await
            .map_err(in_vain)?;
    }
    let token = begin(&console, known.client_id, Some(&hash))
        .await
        .map_err(in_vain)?;
    Outcome::Done.count();
    let mut response = redirect(&next);
    response
        .headers_mut()
        .insert(header::SET_COOKIE, token.cookie(cookie_name));
    Ok(response)
}

pub(super) async fn sign_out(
    State(console): State<Console>,
    headers: HeaderMap,
    Submission { person, .. }: Submission,
) -> Result<Response, Stop> {
    let pool = &console.state.pool;
    let entry = NewEntry {
        client: Some((person.who.client_id, &person.who.client)),
        what: "signOut",
        account: None,
        link_id: None,
        detail: None,
        outcome: "done",
        request_id: &person.request_id,
    };
    let ended = async {
        store::console_sessions::end(pool, &person.token.hash()).await?;
        console_audit::record(pool, &entry).await
    };
    ended.await.map_err(out_of_order(&console, &person))?;
    let mut response = redirect("/sign-in");
    response
        .headers_mut()
        .insert(header::SET_COOKIE, no_cookie(console.cookie_name(&headers)));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signing_in_never_leads_to_another_site() {
        for (text, path) in [
            ("/links/plink_1?x=y", "/links/plink_1?x=y"),
            ("/", "/"),
            ("", "/links"),
            ("links", "/links"),
            ("//evil.example", "/links"),
            ("/\\evil.example", "/links"),
            ("https://evil.example", "/links"),
            ("javascript:alert(1)", "/links"),
            ("/\r\nSet-Cookie: a=b", "/links"),
            ("/\t/evil.example", "/links"),
            ("/x".repeat(LONGEST).as_str(), "/links"),
        ] {
            assert_eq!(next_path(text), path, "{text}");
        }
    }
}
