//! The person at the console, and the token of their session.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, header};
use hmac::{Hmac, KeyInit, Mac};
use rand::RngExt;
use sha2::{Digest, Sha256};

use crate::{api_key::Scope, store::api_keys::Identified};

/// Somebody who is signed in.
#[derive(Clone)]
pub(super) struct Person {
    /// Whom the API sees.
    pub(super) who: Arc<Identified>,
    /// The id of the request that the person sent. The requests to the API that it leads to have the same.
    pub(super) request_id: String,
    pub(super) token: Token,
}

impl Person {
    pub(super) fn may(&self, scope: Scope) -> bool {
        self.who.scopes.iter().any(|name| name == scope.as_str())
    }

    /// The accounts that the person is limited to, if there is a limit.
    pub(super) fn accounts(&self) -> Option<&[String]> {
        self.who.accounts.as_deref()
    }

    /// Whether the person may see this account and its links.
    pub(super) fn may_see(&self, account: &str) -> bool {
        self.accounts()
            .is_none_or(|open| open.iter().any(|name| name == account))
    }
}

/// The token of a session: 256 random bits, in a cookie.
#[derive(Clone)]
pub(super) struct Token([u8; 32]);

impl Token {
    pub(super) fn generate() -> Self {
        Self(rand::rng().random())
    }

    /// The token that the browser sent.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let name = cookie_name(headers);
        let cookies = headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|value| value.split(';'));
        let value = pairs.find_map(|pair| {
            let (given, value) = pair.trim().split_once('=')?;
            (given == name).then_some(value)
        })?;
        let mut token = [0; 32];
        hex::decode_to_slice(value, &mut token).ok()?;
        Some(Self(token))
    }

    /// The SHA-256 of the token, which is all that the database stores of it.
    pub(super) fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0).into()
    }

    /// A `Set-Cookie` that hands it to the browser that sent these headers, until the browser is closed.
    pub(super) fn cookie(&self, headers: &HeaderMap) -> HeaderValue {
        set_cookie(headers, &hex::encode(self.0), "")
    }

    /// The word that every form of the session contains, and that no other site knows.
    pub(super) fn form_token(&self) -> String {
        hex::encode(self.mac().finalize().into_bytes())
    }

    /// Whether this is [`Self::form_token`]. Takes the same time for every wrong one.
    pub(super) fn is_form_token(&self, text: &str) -> bool {
        hex::decode(text).is_ok_and(|bytes| self.mac().verify_slice(&bytes).is_ok())
    }

    fn mac(&self) -> Hmac<Sha256> {
        Hmac::<Sha256>::new_from_slice(&self.0)
            .expect("HMAC accepts keys of any length")
            .chain_update("form")
    }
}

/// A `Set-Cookie` that removes the token.
pub(super) fn no_cookie(headers: &HeaderMap) -> HeaderValue {
    set_cookie(headers, "", "; Max-Age=0")
}

fn set_cookie(headers: &HeaderMap, value: &str, more: &str) -> HeaderValue {
    let name = cookie_name(headers);
    let cookie = format!("{name}={value}; Path=/; Secure; HttpOnly; SameSite=Strict{more}");
    HeaderValue::try_from(cookie).expect("names and hex digits are allowed in a header")
}

/// The cookie's name. Browsers accept one with the prefix only from exactly this host and over TLS, so that no other host of the
/// same domain can set it. On the person's own machine there is no TLS. There, browsers accept `Secure` without it, but not the
/// prefix.
fn cookie_name(headers: &HeaderMap) -> &'static str {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    if is_this_machine(host) {
        "console"
    } else {
        "__Host-console"
    }
}

/// Whether a `Host` header names the person's own machine.
fn is_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = address
        .parse::<std::net::IpAddr>()
        .is_ok_and(|address| address.is_loopback());
    is_loopback || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(host: &str, cookie: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        headers.insert(header::COOKIE, cookie.parse().unwrap());
        headers
    }

    #[test]
    fn the_cookie_belongs_to_this_host_alone_unless_it_is_the_persons_own_machine() {
        for (host, is_local) in [
            ("localhost", true),
            ("localhost:8082", true),
            ("127.0.0.1:8082", true),
            ("[::1]:8082", true),
            ("[::1]", true),
            ("console.example.com", false),
            ("localhost.example.com", false),
            ("127.0.0.1.example.com:443", false),
            ("10.0.0.1", false),
            ("", false),
        ] {
            let cookie = Token::generate().cookie(&headers(host, ""));
            let cookie = cookie.to_str().unwrap();
            let name = if is_local {
                "console="
            } else {
                "__Host-console="
            };
            assert!(cookie.starts_with(name), "{host}: {cookie}");
            assert!(cookie.ends_with("; Path=/; Secure; HttpOnly; SameSite=Strict"));
        }
    }

    #[test]
    fn a_token_is_read_back_from_its_cookie() {
        let token = Token::generate();
        let cookie = token.cookie(&headers("c.example", ""));
        let pair = cookie.to_str().unwrap().split(';').next().unwrap();
        let read = |cookie: &str| Token::of(&headers("c.example", cookie));
        let given = read(&format!("a=b; {pair}; c=d")).unwrap();
        assert_eq!(given.hash(), token.hash());
        for wrong in ["", "__Host-console=", "__Host-console=00", "console=00"] {
            assert!(read(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_form_token_belongs_to_one_session() {
        let (one, other) = (Token::generate(), Token::generate());
        assert!(one.is_form_token(&one.form_token()));
        assert!(!one.is_form_token(&other.form_token()));
        for wrong in ["", "00", "x"] {
            assert!(!one.is_form_token(wrong));
        }
    }
}
