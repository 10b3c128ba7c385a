use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use clap::Args;
use ipnet::IpNet;

use super::{
    ConfigError,
    error::Expected,
    value::{duration, listen_address, optional},
};
use crate::api_key::Scope;

/// The settings of the console, the page for the people who look after payments.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Console")]
pub struct ConsoleSettings {
    /// The IP address and port of the console. Unset: there is no console. Browsers accept its sessions only over TLS, which a
    /// proxy in front of it terminates, or at `http://localhost`.
    #[arg(id = "console-listen-addr", long, env = "CONSOLE_LISTEN_ADDR", default_value = "", hide_default_value = true,
          value_name = "ADDRESS", value_parser = optional(listen_address))]
    pub listen_addr: std::option::Option<SocketAddr>,

    /// How long a person stays signed in without using the console.
    #[arg(id = "console-session-idle", long, env = "CONSOLE_SESSION_IDLE", default_value = "30m", value_name = "DURATION",
          value_parser = duration)]
    pub session_idle: Duration,

    /// How long a person stays signed in at most.
    #[arg(id = "console-session-max", long, env = "CONSOLE_SESSION_MAX", default_value = "12h", value_name = "DURATION",
          value_parser = duration)]
    pub session_max: Duration,

    /// The amount, such as `100.00`, above which a capture, a refund, a reversal and a new amount need the approval of a second
    /// person. It applies to pounds and euros alike. Unset: nothing does.
    #[arg(id = "console-approval-limit", long, env = "CONSOLE_APPROVAL_LIMIT", default_value = "", hide_default_value = true,
          value_name = "AMOUNT", value_parser = optional(amount))]
    pub approval_limit: std::option::Option<i64>,

    /// How long an operation waits for its approval.
    #[arg(id = "console-approval-expiry", long, env = "CONSOLE_APPROVAL_EXPIRY", default_value = "24h",
          value_name = "DURATION", value_parser = duration)]
    pub approval_expiry: Duration,

    /// The networks of a proxy that authenticates people before they reach the console, such as `10.0.0.0/8,127.0.0.1`. The
    /// headers below are ignored in requests from anywhere else.
    #[arg(id = "console-proxy-addresses", long, env = "CONSOLE_PROXY_ADDRESSES", default_value = "",
          hide_default_value = true, value_name = "LIST", value_parser = networks)]
    proxy_addresses: Networks,

    /// The header in which that proxy sends a person's name, such as `X-Forwarded-User`.
    #[arg(id = "console-proxy-user-header", long, env = "CONSOLE_PROXY_USER_HEADER", default_value = "",
          hide_default_value = true, value_name = "NAME", value_parser = optional(header_name))]
    proxy_user_header: std::option::Option<String>,

    /// The header in which that proxy sends a person's groups, separated by commas, such as `X-Forwarded-Groups`.
    #[arg(id = "console-proxy-groups-header", long, env = "CONSOLE_PROXY_GROUPS_HEADER", default_value = "",
          hide_default_value = true, value_name = "NAME", value_parser = optional(header_name))]
    proxy_groups_header: std::option::Option<String>,

    /// What the members of a group may do, as scopes of API keys:
    /// `support=links:read,links:write;finance=links:read,payments:manage`.
    #[arg(id = "console-group-scopes", long, env = "CONSOLE_GROUP_SCOPES", default_value = "", hide_default_value = true,
          value_name = "LIST", value_parser = group_scopes)]
    group_scopes: GroupScopes,
}

/// Networks, separated by commas. An address is a network of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Networks(Vec<IpNet>);

fn networks(text: &str) -> Result<Networks, Expected> {
    let entries = text
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty());
    let parsed = entries.map(|entry| {
        let address = entry.parse::<IpAddr>().map(IpNet::from);
        entry.parse::<IpNet>().or(address).ok()
    });
    parsed
        .collect::<Option<_>>()
        .map(Networks)
        .ok_or_else(|| Expected::new("networks such as 10.0.0.0/8,127.0.0.1"))
}

/// What the members of each group may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct GroupScopes(BTreeMap<String, Vec<Scope>>);

fn group_scopes(text: &str) -> Result<GroupScopes, Expected> {
    let expected =
        || Expected::new("groups and their scopes such as support=links:read,links:write");
    let mut groups = BTreeMap::new();
    for entry in text
        .split(';')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
    {
        let (group, scopes) = entry.split_once('=').ok_or_else(expected)?;
        let scopes: Result<Vec<Scope>, _> = scopes
            .split(',')
            .map(|scope| scope.trim().parse())
            .collect();
        let group = group.trim();
        let is_new = !group.is_empty() && !groups.contains_key(group);
        match scopes {
            Ok(scopes) if is_new => groups.insert(group.to_owned(), scopes),
            _ => return Err(expected()),
        };
    }
    Ok(GroupScopes(groups))
}

/// The name of a header, in lower case.
fn header_name(text: &str) -> Result<String, Expected> {
    // What RFC 9110 calls a token.
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_token) {
        Ok(text.to_lowercase())
    } else {
        Err(Expected::new(
            "the name of a header such as X-Forwarded-User",
        ))
    }
}

/// An amount with its two decimal places, in minor units. Without them, nobody could tell pounds from pence.
fn amount(text: &str) -> Result<i64, Expected> {
    let is_digits =
        |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('.')
        .filter(|(pounds, pence)| is_digits(pounds) && is_digits(pence) && pence.len() == 2)
        .and_then(|(pounds, pence)| {
            let pounds = pounds.parse::<i64>().ok()?.checked_mul(100)?;
            pounds.checked_add(pence.parse().ok()?)
        })
        .ok_or_else(|| Expected::new("an amount with two decimal places such as 100.00"))
}

/// A proxy that authenticates the people who use the console.
#[derive(Debug, Clone)]
pub struct AuthenticatingProxy {
    addresses: Vec<IpNet>,
    /// In lower case.
    pub user_header: String,
    /// In lower case.
    pub groups_header: String,
    scopes: BTreeMap<String, Vec<Scope>>,
}

impl AuthenticatingProxy {
    /// Whether requests from this address are the proxy's.
    #[must_use]
    pub fn is_at(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.addresses
            .iter()
            .any(|network| network.contains(&address))
    }

    /// What a member of these groups, which are separated by commas, may do.
    #[must_use]
    pub fn scopes(&self, groups: &str) -> Vec<Scope> {
        let given: BTreeSet<_> = groups
            .split(',')
            .filter_map(|group| self.scopes.get(group.trim()))
            .flatten()
            .map(|scope| scope.as_str())
            .collect();
        Scope::ALL
            .into_iter()
            .filter(|scope| given.contains(scope.as_str()))
            .collect()
    }
}

impl ConsoleSettings {
    /// The proxy that authenticates people, if there is one.
    pub fn proxy(&self) -> Result<Option<AuthenticatingProxy>, ConfigError> {
        let missing = [
            ("CONSOLE_PROXY_ADDRESSES", self.proxy_addresses.0.is_empty()),
            (
                "CONSOLE_PROXY_USER_HEADER",
                self.proxy_user_header.is_none(),
            ),
            (
                "CONSOLE_PROXY_GROUPS_HEADER",
                self.proxy_groups_header.is_none(),
            ),
            ("CONSOLE_GROUP_SCOPES", self.group_scopes.0.is_empty()),
        ];
        if missing.iter().all(|(_, is_missing)| *is_missing) {
            return Ok(None);
        }
        let mut error = ConfigError::default();
        for (setting, _) in missing.iter().filter(|(_, is_missing)| *is_missing) {
            error.add(
                *setting,
                "is required: a proxy that authenticates people needs all four CONSOLE_PROXY_ and CONSOLE_GROUP_ settings",
            );
        }
        match (&self.proxy_user_header, &self.proxy_groups_header) {
            (Some(user_header), Some(groups_header)) if error.is_empty() => {
                Ok(Some(AuthenticatingProxy {
                    addresses: self.proxy_addresses.0.clone(),
                    user_header: user_header.clone(),
                    groups_header: groups_header.clone(),
                    scopes: self.group_scopes.0.clone(),
                }))
            }
            _ => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_has_two_decimal_places() {
        assert_eq!(amount("100.00"), Ok(10_000));
        assert_eq!(amount("0.05"), Ok(5));
        for text in [
            "100",
            "100.0",
            "100.000",
            "-1.00",
            "+1.00",
            ".50",
            "1,000.00",
            "92233720368547758.08",
            "1.+1",
        ] {
            assert!(amount(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_member_of_several_groups_may_do_what_any_of_them_may() {
        let GroupScopes(scopes) =
            group_scopes("support=links:read, links:write; finance = links:read,payments:manage;")
                .unwrap();
        let proxy = AuthenticatingProxy {
            addresses: networks("10.0.0.0/8, ::1").unwrap().0,
            user_header: String::new(),
            groups_header: String::new(),
            scopes,
        };
        let both = proxy.scopes("finance, staff,support");
        assert_eq!(
            both,
            [Scope::LinksRead, Scope::LinksWrite, Scope::PaymentsManage]
        );
        assert!(proxy.scopes("Support").is_empty());
        assert!(proxy.scopes("").is_empty());
        for (address, is_proxy) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("::1", true),
            ("11.0.0.1", false),
            ("::2", false),
        ] {
            assert_eq!(proxy.is_at(address.parse().unwrap()), is_proxy, "{address}");
        }
    }

    #[test]
    fn wrong_lists_are_rejected() {
        for text in [
            "support",
            "=links:read",
            "support=",
            "support=links:all",
            "a=links:read;a=links:write",
        ] {
            assert!(group_scopes(text).is_err(), "{text}");
        }
        assert!(networks("10.0.0.0/33").is_err());
        assert!(networks("proxy.example.com").is_err());
        assert!(header_name("X Forwarded User").is_err());
        assert_eq!(
            header_name("X-Forwarded-User").as_deref(),
            Ok("x-forwarded-user")
        );
    }
}
