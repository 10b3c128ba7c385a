use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use clap::Args;
use ipnet::IpNet;
use url::{Host, Position, Url};

use super::{
    ConfigError,
    error::Expected,
    value::{account_name, duration, listen_address, optional, web_url},
};
use crate::api_key::Scope;

/// The settings of the console, the web interface for the people who look after payments.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Console")]
pub struct ConsoleSettings {
    /// The IP address and port of the console. Unset: there is no console. Browsers accept its sessions only over TLS, which a
    /// proxy in front of it terminates, or at `http://localhost`.
    #[arg(id = "console-listen-addr", long, env = "CONSOLE_LISTEN_ADDR", default_value = "", hide_default_value = true,
          value_name = "ADDRESS", value_parser = optional(listen_address))]
    pub listen_addr: std::option::Option<SocketAddr>,

    /// The address at which people open the console, such as `https://console.example.com`. Requests for any other host are
    /// rejected. Unset: people open it at `localhost` or at an IP address, and requests for any other name are rejected.
    #[arg(id = "console-url", long, env = "CONSOLE_URL", default_value = "", hide_default_value = true, value_name = "URL",
          value_parser = optional(console_url))]
    pub url: std::option::Option<ConsoleUrl>,

    /// How long a person stays signed in without using the console.
    #[arg(id = "console-session-idle", long, env = "CONSOLE_SESSION_IDLE", default_value = "30m", value_name = "DURATION",
          value_parser = duration)]
    pub session_idle: Duration,

    /// The longest time that a person stays signed in.
    #[arg(id = "console-session-max", long, env = "CONSOLE_SESSION_MAX", default_value = "12h", value_name = "DURATION",
          value_parser = duration)]
    pub session_max: Duration,

    /// The amount, such as `100.00`, above which a capture, a refund, a reversal, a new amount and a new tip need the approval of
    /// a second person. The refunds of one link count together, and so do its captures. It applies to pounds and euros alike.
    /// Unset: nothing needs an approval.
    #[arg(id = "console-approval-limit", long, env = "CONSOLE_APPROVAL_LIMIT", default_value = "", hide_default_value = true,
          value_name = "AMOUNT", value_parser = optional(amount))]
    pub approval_limit: std::option::Option<i64>,

    /// How long an operation waits for its approval.
    #[arg(id = "console-approval-expiry", long, env = "CONSOLE_APPROVAL_EXPIRY", default_value = "24h",
          value_name = "DURATION", value_parser = duration)]
    pub approval_expiry: Duration,

    /// The addresses of a proxy that authenticates people before they reach the console, such as `10.0.3.7,127.0.0.1`, or
    /// networks that contain nothing else. The headers below are ignored in requests from anywhere else.
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

    /// The accounts that the members of a group may see: `support=main;finance=main,eu`. The members of a group that isn't
    /// listed may see all. Somebody in several groups gets a permission only if it applies to every account that they see.
    #[arg(id = "console-group-accounts", long, env = "CONSOLE_GROUP_ACCOUNTS", default_value = "",
          hide_default_value = true, value_name = "LIST", value_parser = group_accounts)]
    group_accounts: GroupAccounts,
}

/// The address at which people open the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleUrl(Url);

impl ConsoleUrl {
    /// Whether browsers reach it over TLS. Without, it is an address of the person's own machine.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// The value of `Origin` in requests from its pages.
    #[must_use]
    pub fn origin(&self) -> String {
        self.0.origin().ascii_serialization()
    }

    /// Whether a `Host` header names it.
    #[must_use]
    pub fn is_named_by(&self, host: &str) -> bool {
        let short = &self.0[Position::BeforeHost..Position::AfterPort];
        let name = &self.0[Position::BeforeHost..Position::AfterHost];
        // Browsers leave out the port of the scheme. Some proxies add it.
        let long = self.0.port_or_known_default();
        let long = long.map(|port| format!("{name}:{port}"));
        host.eq_ignore_ascii_case(short)
            || long.is_some_and(|long| host.eq_ignore_ascii_case(&long))
    }
}

fn console_url(text: &str) -> Result<ConsoleUrl, Expected> {
    let expected = || {
        Expected::new(
            "https:// and a host such as https://console.example.com, or http:// and this machine such as http://localhost:8082",
        )
    };
    let url = web_url(text).map_err(|_| expected())?;
    let is_plain = url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    let is_this_machine = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    // Browsers keep no session without TLS, and an API key must not be sent without it.
    if is_plain && (url.scheme() == "https" || is_this_machine) {
        Ok(ConsoleUrl(url))
    } else {
        Err(expected())
    }
}

/// Networks, separated by commas. An address is a network of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Networks(Vec<IpNet>);

/// The widest network that may be a proxy's. Whoever is in it can claim to be anybody, and a wider one is most likely a slip.
const WIDEST: u8 = 8;

fn networks(text: &str) -> Result<Networks, Expected> {
    let entries = text
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty());
    let parsed = entries.map(|entry| {
        let address = entry.parse::<IpAddr>().map(IpNet::from);
        let network = entry.parse::<IpNet>().or(address).ok();
        network.filter(|network| network.prefix_len() >= WIDEST)
    });
    parsed.collect::<Option<_>>().map(Networks).ok_or_else(|| {
        Expected::new(format!(
            "networks such as 10.0.3.7,127.0.0.1, none of them wider than /{WIDEST}"
        ))
    })
}

/// The entries of a list such as `support=a,b;finance=c`. `None` if one has no group, or a group has two.
fn by_group<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<BTreeMap<String, Vec<T>>> {
    let mut groups = BTreeMap::new();
    let entries = text.split(';').map(str::trim);
    for entry in entries.filter(|entry| !entry.is_empty()) {
        let (group, values) = entry.split_once('=')?;
        let values = values.split(',').map(|value| parse(value.trim()));
        let values: Vec<_> = values.collect::<Option<_>>()?;
        let group = group.trim();
        if group.is_empty() || groups.insert(group.to_owned(), values).is_some() {
            return None;
        }
    }
    Some(groups)
}

/// What the members of each group may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct GroupScopes(BTreeMap<String, Vec<Scope>>);

fn group_scopes(text: &str) -> Result<GroupScopes, Expected> {
    by_group(text, |scope| scope.parse().ok())
        .map(GroupScopes)
        .ok_or_else(|| {
            Expected::new("groups and their scopes such as support=links:read,links:write")
        })
}

/// The accounts that the members of each group may see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct GroupAccounts(BTreeMap<String, Vec<String>>);

fn group_accounts(text: &str) -> Result<GroupAccounts, Expected> {
    by_group(text, |name| account_name(name).ok())
        .map(GroupAccounts)
        .ok_or_else(|| {
            Expected::new("groups and their accounts such as support=main;finance=main,eu")
        })
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

/// An amount in minor units. It has two decimal places or none: with one or three, nobody could tell what is meant.
fn amount(text: &str) -> Result<i64, Expected> {
    let is_digits =
        |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let (pounds, pence) = text.split_once('.').unwrap_or((text, "00"));
    let value = if is_digits(pounds) && is_digits(pence) && pence.len() == 2 {
        let pounds: Option<i64> = pounds.parse().ok();
        pounds
            .and_then(|pounds| pounds.checked_mul(100))
            .and_then(|value| value.checked_add(pence.parse().ok()?))
    } else {
        None
    };
    value.ok_or_else(|| Expected::new("an amount such as 100 or 100.00"))
}

/// A proxy that authenticates the people who use the console.
#[derive(Debug, Clone)]
pub struct AuthenticatingProxy {
    addresses: Vec<IpNet>,
    /// In lower case.
    pub user_header: String,
    /// In lower case.
    pub groups_header: String,
    groups: BTreeMap<String, Group>,
}

/// A group of people.
#[derive(Debug, Clone)]
struct Group {
    scopes: Vec<Scope>,
    /// `None`: all.
    accounts: Option<Vec<String>>,
}

/// What somebody may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permissions {
    /// For every account that the person may see.
    pub scopes: Vec<Scope>,
    /// The accounts that the person may see. `None`: all.
    pub accounts: Option<Vec<String>>,
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
    ///
    /// The person sees the accounts for which a group permits reading. A request is checked for its scope and for its account,
    /// one after the other. So that no two groups together permit what neither does, a scope counts only if the groups that
    /// give it do so for every account that the person sees.
    #[must_use]
    pub fn permissions(&self, groups: &str) -> Permissions {
        let names: BTreeSet<_> = groups.split(',').map(str::trim).collect();
        let groups = names.into_iter().filter_map(|name| self.groups.get(name));
        let groups: Vec<_> = groups.collect();
        let seen = accounts_with(&groups, Scope::LinksRead);
        let scopes = Scope::ALL
            .into_iter()
            .filter(|scope| covers(accounts_with(&groups, *scope).as_ref(), seen.as_ref()));
        Permissions {
            scopes: scopes.collect(),
            accounts: seen.map(|names| names.into_iter().map(str::to_owned).collect()),
        }
    }
}

/// The accounts for which one of these groups gives this scope. `None`: all.
fn accounts_with<'a>(groups: &[&'a Group], scope: Scope) -> Option<BTreeSet<&'a str>> {
    let giving = groups.iter().filter(|group| group.scopes.contains(&scope));
    let mut names = BTreeSet::new();
    for group in giving {
        names.extend(group.accounts.as_ref()?.iter().map(String::as_str));
    }
    Some(names)
}

/// Whether the one set of accounts contains the other, and that is not empty.
fn covers(accounts: Option<&BTreeSet<&str>>, others: Option<&BTreeSet<&str>>) -> bool {
    let is_within = match (accounts, others) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(accounts), Some(others)) => others.is_subset(accounts),
    };
    is_within && others.is_none_or(|others| !others.is_empty())
}

impl ConsoleSettings {
    /// The proxy that authenticates people, if there is one. `accounts` are the names of those that are configured; `None` if
    /// their own settings are wrong, so that nobody knows.
    pub fn proxy(
        &self,
        accounts: Option<&[&str]>,
    ) -> Result<Option<AuthenticatingProxy>, ConfigError> {
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
        let is_unset = missing.iter().all(|(_, is_missing)| *is_missing);
        if is_unset && self.group_accounts.0.is_empty() {
            return Ok(None);
        }
        let mut error = ConfigError::default();
        for (setting, _) in missing.iter().filter(|(_, is_missing)| *is_missing) {
            error.add(
                *setting,
                "is required: a proxy that authenticates people needs CONSOLE_GROUP_SCOPES and all three CONSOLE_PROXY_ settings",
            );
        }
        if self.proxy_user_header.is_some() && self.proxy_user_header == self.proxy_groups_header {
            error.add(
                "CONSOLE_PROXY_GROUPS_HEADER",
                "must not be the header with the person's name",
            );
        }
        self.check_group_accounts(accounts, &mut error);
        match (&self.proxy_user_header, &self.proxy_groups_header) {
            (Some(user_header), Some(groups_header)) if error.is_empty() => {
                let group = |(name, scopes): (&String, &Vec<Scope>)| {
                    let accounts = self.group_accounts.0.get(name).cloned();
                    let scopes = scopes.clone();
                    (name.clone(), Group { scopes, accounts })
                };
                Ok(Some(AuthenticatingProxy {
                    addresses: self.proxy_addresses.0.clone(),
                    user_header: user_header.clone(),
                    groups_header: groups_header.clone(),
                    groups: self.group_scopes.0.iter().map(group).collect(),
                }))
            }
            _ => Err(error),
        }
    }

    /// Adds the groups and accounts in `CONSOLE_GROUP_ACCOUNTS` that don't exist. A mistake must not let anybody see more than was
    /// meant.
    fn check_group_accounts(&self, accounts: Option<&[&str]>, error: &mut ConfigError) {
        const SETTING: &str = "CONSOLE_GROUP_ACCOUNTS";

        for (group, names) in &self.group_accounts.0 {
            if !self.group_scopes.0.contains_key(group) {
                let text = format!("names the group {group:?}, which CONSOLE_GROUP_SCOPES doesn't");
                error.add(SETTING, text);
            }
            let is_unknown = |name: &&String| {
                accounts.is_some_and(|accounts| !accounts.contains(&name.as_str()))
            };
            for name in names.iter().filter(is_unknown) {
                error.add(
                    SETTING,
                    format!("names the account {name:?}, which is not configured"),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_has_two_decimal_places_or_none() {
        assert_eq!(amount("100.00"), Ok(10_000));
        assert_eq!(amount("100"), Ok(10_000));
        assert_eq!(amount("0"), Ok(0));
        assert_eq!(amount("0.05"), Ok(5));
        for text in [
            "100.",
            "100.0",
            "100.000",
            "-1.00",
            "+1.00",
            "-1",
            "+1",
            ".50",
            ".",
            "1,000.00",
            "1,000",
            "1.0.0",
            "£100",
            "92233720368547758.08",
            "92233720368547759",
            "1.+1",
        ] {
            assert!(amount(text).is_err(), "{text}");
        }
    }

    /// A proxy with these groups.
    fn proxy(scopes: &str, accounts: &str) -> AuthenticatingProxy {
        let accounts = group_accounts(accounts).unwrap().0;
        let groups = group_scopes(scopes).unwrap().0.into_iter();
        AuthenticatingProxy {
            addresses: networks("10.0.0.0/8, ::1").unwrap().0,
            user_header: String::new(),
            groups_header: String::new(),
            groups: groups
                .map(|(name, scopes)| {
                    let accounts = accounts.get(&name).cloned();
                    (name, Group { scopes, accounts })
                })
                .collect(),
        }
    }

    #[test]
    fn only_the_proxys_own_addresses_are_trusted() {
        let proxy = proxy("", "");
        for (address, is_proxy) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("::1", true),
            ("11.0.0.1", false),
            ("::ffff:11.0.0.1", false),
            ("::2", false),
        ] {
            assert_eq!(proxy.is_at(address.parse().unwrap()), is_proxy, "{address}");
        }
    }

    #[test]
    fn a_member_of_several_groups_may_do_what_any_of_them_may() {
        let scopes = "support=links:read, links:write; finance = links:read,payments:manage;";
        let proxy = proxy(scopes, "");
        let both = Permissions {
            scopes: vec![Scope::LinksRead, Scope::LinksWrite, Scope::PaymentsManage],
            accounts: None,
        };
        assert_eq!(proxy.permissions("finance, staff,support"), both);
        for nobody in ["Support", "", "support finance", "support=links:read"] {
            assert!(proxy.permissions(nobody).scopes.is_empty(), "{nobody}");
        }
    }

    #[test]
    fn groups_together_permit_nothing_that_none_of_them_does() {
        use Scope::{LinksRead, LinksWrite, PaymentsManage};

        let proxy = proxy(
            "support=links:read,links:write;finance=links:read,payments:manage;money=payments:manage;all=links:read",
            "support=main;finance=main,eu;money=uk",
        );
        let (main, both) = (Some(&["main"] as &[_]), Some(&["eu", "main"] as &[_]));
        for (groups, scopes, accounts) in [
            ("support", &[LinksRead, LinksWrite] as &[_], main),
            ("finance", &[LinksRead, PaymentsManage], both),
            // The one who writes on `main` alone would also write on `eu`.
            ("support,finance", &[LinksRead, PaymentsManage], both),
            ("all", &[LinksRead], None),
            ("all,support,finance", &[LinksRead], None),
            // A group that doesn't permit reading shows no account.
            ("money", &[], Some(&[])),
            ("money,support", &[LinksRead, LinksWrite], main),
            ("nobody", &[], Some(&[])),
        ] {
            let expected = Permissions {
                scopes: scopes.to_vec(),
                accounts: accounts
                    .map(|names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect()),
            };
            assert_eq!(proxy.permissions(groups), expected, "{groups}");
        }
    }

    #[test]
    fn the_console_has_one_address() {
        for (url, origin, hosts, others) in [
            (
                "https://Console.example.com/",
                "https://console.example.com",
                &["console.example.com", "CONSOLE.example.com:443"] as &[_],
                &[
                    "example.com",
                    "console.example.com:8082",
                    "console.example.com.",
                    "localhost",
                    "",
                ] as &[_],
            ),
            (
                "https://console.example.com:8443",
                "https://console.example.com:8443",
                &["console.example.com:8443"],
                &["console.example.com"],
            ),
            (
                "http://localhost:8082",
                "http://localhost:8082",
                &["localhost:8082"],
                &["localhost", "127.0.0.1:8082"],
            ),
            (
                "http://[::1]",
                "http://[::1]",
                &["[::1]", "[::1]:80"],
                &["::1"],
            ),
        ] {
            let url = console_url(url).unwrap();
            assert_eq!(url.origin(), origin);
            assert_eq!(url.is_tls(), origin.starts_with("https"));
            for host in hosts {
                assert!(url.is_named_by(host), "{host}");
            }
            for host in others {
                assert!(!url.is_named_by(host), "{host}");
            }
        }
        for wrong in [
            "console.example.com",
            "http://console.example.com",
            "http://localhost.example.com",
            "https://console.example.com/console",
            "https://ann@console.example.com",
            "https://console.example.com?",
            "ftp://localhost",
        ] {
            assert!(console_url(wrong).is_err(), "{wrong}");
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
        for text in [
            "support",
            "=main",
            "support=",
            "support=Main",
            "a=main;a=eu",
        ] {
            assert!(group_accounts(text).is_err(), "{text}");
        }
        for text in [
            "10.0.0.0/33",
            "proxy.example.com",
            "0.0.0.0/0",
            "::/0",
            "10.0.0.1,0.0.0.0/1",
        ] {
            assert!(networks(text).is_err(), "{text}");
        }
        assert!(header_name("X Forwarded User").is_err());
        assert_eq!(
            header_name("X-Forwarded-User").as_deref(),
            Ok("x-forwarded-user")
        );
    }
}
