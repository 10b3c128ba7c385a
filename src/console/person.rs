//! The person at the console, and the token of their session.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use axum::http::{HeaderMap, HeaderValue, header};
use hmac::{Hmac, KeyInit, Mac};
use rand::RngExt;
use sha2::{Digest, Sha256};

use crate::{api_key::Scope, config::ConsoleUrl, store::api_keys::Identified};

/// Somebody who is signed in.
#[derive(Clone)]
pub(super) struct Person {
    /// Whom the API sees.
    pub(super) who: Arc<Identified>,
    /// The id of the request that the person sent. The requests to the API that it leads to have the same.
    pub(super) request_id: String,
    pub(super) token: Token,
    pub(super) preferences: Preferences,
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

/// What somebody prefers in this browser, which keeps it in a cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Preferences {
    /// Whether pages bring themselves up to date.
    pub(super) has_updates: bool,
    /// Whether keys on their own do something.
    pub(super) has_shortcuts: bool,
}

impl Preferences {
    pub(super) const ALL_ON: Self = Self {
        has_updates: true,
        has_shortcuts: true,
    };

    const COOKIE: &str = "console-preferences";
    const NO_UPDATES: &str = "no-updates";
    const NO_SHORTCUTS: &str = "no-shortcuts";

    /// What the browser sent. Any other site of the same domain may have set it, but it only says what is turned off.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let value = cookie(headers, Self::COOKIE).unwrap_or_default();
        let is_off = |name| value.split('.').any(|word| word == name);
        Self {
            has_updates: !is_off(Self::NO_UPDATES),
            has_shortcuts: !is_off(Self::NO_SHORTCUTS),
        }
    }

    /// A `Set-Cookie` that has the browser keep them for as long as browsers keep anything.
    pub(super) fn cookie(self) -> HeaderValue {
        let off = [
            (self.has_updates, Self::NO_UPDATES),
            (self.has_shortcuts, Self::NO_SHORTCUTS),
        ];
        let off = off.iter().filter(|(is_on, _)| !is_on);
        let off: Vec<_> = off.map(|(_, word)| *word).collect();
        set_cookie(Self::COOKIE, &off.join("."), "; Max-Age=34560000")
    }
}

/// The token of a session: 256 random bits, in a cookie.
#[derive(Clone)]
pub(super) struct Token([u8; 32]);

impl Token {
    pub(super) fn generate() -> Self {
        Self(rand::rng().random())
    }

    /// The token that the browser sent in the cookie with this name.
    pub(super) fn of(headers: &HeaderMap, name: &str) -> Option<Self> {
        let mut token = [0; 32];
        hex::decode_to_slice(cookie(headers, name)?, &mut token).ok()?;
        Some(Self(token))
    }

    /// The SHA-256 of the token, which is all that the database stores of it.
    pub(super) fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0).into()
    }

    /// A `Set-Cookie` that hands it to the browser in the cookie with this name, until the browser is closed.
    pub(super) fn cookie(&self, name: &str) -> HeaderValue {
        set_cookie(name, &hex::encode(self.0), "")
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

/// The value of the cookie with this name.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let cookies = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';'));
    pairs.find_map(|pair| {
        let (given, value) = pair.trim().split_once('=')?;
        (given == name).then_some(value)
    })
}

/// A `Set-Cookie` that removes the token in the cookie with this name.
pub(super) fn no_cookie(name: &str) -> HeaderValue {
    set_cookie(name, "", "; Max-Age=0")
}

fn set_cookie(name: &str, value: &str, more: &str) -> HeaderValue {
    let cookie = format!("{name}={value}; Path=/; Secure; HttpOnly; SameSite=Strict{more}");
    HeaderValue::try_from(cookie).expect("names, hex digits and words are allowed in a header")
}

/// The cookie's name. Browsers accept one with the prefix only from exactly this host and over TLS, so that no other host of the
/// same domain can set it. On the person's own machine there is no TLS. There, browsers accept `Secure` without it, but not the
/// prefix.
pub(super) fn cookie_name(url: Option<&ConsoleUrl>, headers: &HeaderMap) -> &'static str {
    let is_local = match url {
        Some(url) => !url.is_tls(),
        None => is_this_machine(host_name(headers)),
    };
    if is_local {
        "console"
    } else {
        "__Host-console"
    }
}

/// Whether a request is for the console. A browser that shows a page of another site sends that site's name, wherever somebody
/// has made the name point to. That page could read every response and send any header.
pub(super) fn is_for_console(url: Option<&ConsoleUrl>, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok());
    if let Some(url) = url {
        return host.is_some_and(|host| url.is_named_by(host));
    }
    // Nobody can make these point elsewhere.
    let name = host_name(headers);
    is_this_machine(name) || address_in(name).is_some()
}

/// The `Host` header without the port.
fn host_name(headers: &HeaderMap) -> &str {
    let host = headers.get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok());
    let host = host.unwrap_or_default();
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// The IP address that is a host's name.
fn address_in(name: &str) -> Option<IpAddr> {
    match name.strip_prefix('[') {
        Some(rest) => rest
            .strip_suffix(']')?
            .parse::<Ipv6Addr>()
            .ok()
            .map(IpAddr::from),
        None => name.parse::<Ipv4Addr>().ok().map(IpAddr::from),
    }
}

/// Whether a host's name is the person's own machine.
fn is_this_machine(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost")
        || address_in(name).is_some_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(host: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        headers
    }

    #[test]
    fn the_cookie_belongs_to_this_host_alone_unless_it_is_the_persons_own_machine() {
        for (host, is_ours, is_local) in [
            ("localhost", true, true),
            ("LOCALHOST:8082", true, true),
            ("127.0.0.1:8082", true, true),
            ("[::1]:8082", true, true),
            ("[::1]", true, true),
            ("10.0.0.1", true, false),
            ("[2001:db8::1]:8082", true, false),
            ("console.example.com", false, false),
            ("localhost.example.com", false, false),
            ("127.0.0.1.example.com:443", false, false),
            ("127.1", false, false),
            ("0x7f000001", false, false),
            ("localhost.", false, false),
            ("a@localhost", false, false),
            ("", false, false),
        ] {
            let headers = headers(host);
            assert_eq!(is_for_console(None, &headers), is_ours, "{host}");
            let name = if is_local {
                "console"
            } else {
                "__Host-console"
            };
            assert_eq!(cookie_name(None, &headers), name, "{host}");
        }
        assert!(!is_for_console(None, &HeaderMap::new()));
        let cookie = Token::generate().cookie("__Host-console");
        let cookie = cookie.to_str().unwrap();
        assert!(cookie.starts_with("__Host-console="), "{cookie}");
        assert!(cookie.ends_with("; Path=/; Secure; HttpOnly; SameSite=Strict"));
    }

    #[test]
    fn a_token_is_read_back_from_its_cookie() {
        let token = Token::generate();
        let cookie = token.cookie("a-name");
        let pair = cookie.to_str().unwrap().split(';').next().unwrap();
        let read = |cookie: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::COOKIE, cookie.parse().unwrap());
            Token::of(&headers, "a-name")
        };
        let given = read(&format!("a=b; {pair}; c=d")).unwrap();
        assert_eq!(given.hash(), token.hash());
        for wrong in ["", "a-name=", "a-name=00", &pair.replace("a-", "")] {
            assert!(read(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn preferences_are_read_back_from_their_cookie_and_everything_else_is_on() {
        let read = |cookie: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::COOKIE, cookie.parse().unwrap());
            Preferences::of(&headers)
        };
        for has_updates in [true, false] {
            for has_shortcuts in [true, false] {
                let preferences = Preferences {
                    has_updates,
                    has_shortcuts,
                };
                let cookie = preferences.cookie();
                let pair = cookie.to_str().unwrap().split(';').next().unwrap();
                assert_eq!(read(&format!("a=b; {pair}")), preferences);
            }
        }
        for other in [
            "a=b",
            "console-preferences=<script>",
            "preferences=no-updates",
        ] {
            assert_eq!(read(other), Preferences::ALL_ON, "{other}");
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
