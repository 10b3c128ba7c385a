use url::{Host, Url};

use crate::payment_link::{Environment, NewPaymentLink};

/// The path at which this service receives an account's webhooks.
fn path(account: &str) -> String {
    if account == NewPaymentLink::DEFAULT_ACCOUNT {
        "/webhooks/dojo".to_owned()
    } else {
        format!("/webhooks/dojo/{account}")
    }
}

/// The URL to which Dojo must send an account's webhooks. `public_url` is this service's public base URL.
#[must_use]
pub fn webhook_address(public_url: &Url, account: &str) -> String {
    let base = public_url.as_str().trim_end_matches('/');
    format!("{base}{}", path(account))
}

/// Whether two URLs are equal, apart from differences in spelling.
pub(super) fn is_same(one: &str, other: &str) -> bool {
    match (Url::parse(one), Url::parse(other)) {
        (Ok(one), Ok(other)) => {
            one.as_str().trim_end_matches('/') == other.as_str().trim_end_matches('/')
        }
        _ => one == other,
    }
}

/// Why Dojo can't send webhooks to a URL, or `None` if it can. A sandbox on this machine, whose API is called without TLS,
/// can send them anywhere.
pub(super) fn objection(public_url: &Url, api: &Url) -> Option<&'static str> {
    if api.scheme() != "https" {
        return None;
    }
    if public_url.scheme() != "https" {
        return Some("is not https, but Dojo sends webhooks only to https URLs");
    }
    let is_private = match public_url.host() {
        Some(Host::Domain(name)) => name == "localhost" || !name.contains('.'),
        Some(Host::Ipv4(ip)) => {
            ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified()
        }
        Some(Host::Ipv6(ip)) => {
            ip.is_loopback()
                || ip.is_unique_local()
                || ip.is_unicast_link_local()
                || ip.is_unspecified()
        }
        None => true,
    };
    is_private.then_some("is not a public address, so Dojo cannot reach it")
}

/// Whether checkout pages are Dojo's own, while `api` is a sandbox, which is called without TLS. Dojo's pages don't know its
/// intents.
pub(super) fn is_elsewhere(checkout_url: &str, api: &Url, environment: Environment) -> bool {
    let is_sandbox = environment == Environment::Sandbox && api.scheme() != "https";
    let is_dojo = Url::parse(checkout_url).is_ok_and(|url| {
        url.domain()
            .is_some_and(|name| name == "dojo.tech" || name.ends_with(".dojo.tech"))
    });
    is_sandbox && is_dojo
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn the_path_is_appended_to_the_base_url() {
        for (base, account, address) in [
            (
                "https://pay.example.com",
                "default",
                "https://pay.example.com/webhooks/dojo",
            ),
            (
                "https://pay.example.com/",
                "leeds",
                "https://pay.example.com/webhooks/dojo/leeds",
            ),
            (
                "https://example.com/pay/",
                "default",
                "https://example.com/pay/webhooks/dojo",
            ),
        ] {
            assert_eq!(webhook_address(&url(base), account), address);
        }
    }

    #[test]
    fn urls_are_compared_regardless_of_spelling() {
        assert!(is_same(
            "https://Pay.example.com:443/webhooks/dojo/",
            "https://pay.example.com/webhooks/dojo"
        ));
        assert!(!is_same(
            "https://pay.example.com/webhooks/dojo",
            "http://pay.example.com/webhooks/dojo"
        ));
        assert!(!is_same(
            "https://pay.example.com/webhooks/dojo/leeds",
            "https://pay.example.com/webhooks/dojo"
        ));
    }

    #[test]
    fn dojo_sends_only_to_public_https_urls() {
        let dojo = url("https://api.dojo.tech");
        assert_eq!(objection(&url("https://pay.example.com"), &dojo), None);
        for wrong in [
            "http://pay.example.com",
            "https://localhost",
            "https://service:8080",
            "https://10.1.2.3",
            "https://192.168.0.1",
            "https://127.0.0.1",
            "https://[::1]",
            "https://[fd00::1]",
        ] {
            assert!(objection(&url(wrong), &dojo).is_some(), "{wrong}");
            assert_eq!(objection(&url(wrong), &url("http://localhost:9400")), None);
        }
    }

    #[test]
    fn dojos_checkout_pages_do_not_know_a_sandboxs_intents() {
        const PAGES: &str = "https://pay.dojo.tech/checkout";
        let (sandbox, dojo) = (url("http://localhost:9400"), url("https://api.dojo.tech"));
        assert!(is_elsewhere(PAGES, &sandbox, Environment::Sandbox));
        assert!(!is_elsewhere(PAGES, &sandbox, Environment::Production));
        assert!(!is_elsewhere(PAGES, &dojo, Environment::Sandbox));
        assert!(!is_elsewhere(
            "http://localhost:9400/checkout",
            &sandbox,
            Environment::Sandbox
        ));
        assert!(!is_elsewhere(
            "https://notdojo.tech/checkout",
            &sandbox,
            Environment::Sandbox
        ));
    }
}
