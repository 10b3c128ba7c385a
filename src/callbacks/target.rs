//! Which addresses callbacks may reach.
//!
//! Callers choose the URLs, so without rules a callback could reach whatever this service can reach: databases, the cloud's
//! metadata service, other services behind the firewall. By default only public addresses can be reached. [`Allow`] adds
//! exceptions.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

/// The length of the longest URL, in bytes.
pub const LONGEST_URL: usize = 2048;

/// The exceptions from the rule that callbacks reach public addresses only.
///
/// The text is a comma-separated list of networks such as `10.0.0.0/8`, and hosts with or without a port such as
/// `hooks.internal:8080` or `[::1]:3000`. A host is a name or an address. Without a port, all its ports are permitted.
///
/// Loopback addresses and the metadata services of clouds need an entry each, because a network is easily written larger
/// than it was meant. A name permits whatever private address it resolves to. But whoever controls the name's DNS records
/// could point it at any address, so it doesn't permit loopback addresses or metadata services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allow {
    networks: Vec<IpNet>,
    addresses: Vec<(IpAddr, Option<u16>)>,
    names: Vec<(String, Option<u16>)>,
}

/// All entries of a list that are wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct AllowError {
    pub wrong: Vec<WrongEntry>,
}

/// An entry, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongEntry {
    pub entry: String,
    /// The rest of a sentence that begins with the entry.
    pub reason: &'static str,
}

impl fmt::Display for AllowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, WrongEntry { entry, reason }) in self.wrong.iter().enumerate() {
            let separator = if n == 0 { "" } else { "; " };
            write!(f, "{separator}{entry:?} {reason}")?;
        }
        Ok(())
    }
}

/// Why a URL can't be an endpoint's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlFault {
    #[error("must be an https URL")]
    Scheme,
    #[error("must have a host")]
    NoHost,
    #[error("must not contain a user name or a password")]
    UserInfo,
    #[error("must not contain a fragment")]
    Fragment,
    #[error("must have at most {LONGEST_URL} bytes")]
    TooLong,
    #[error("must not point to a private, local or reserved address")]
    Forbidden,
}

/// Finds everything about a URL that is wrong already when an endpoint is created.
///
/// A name isn't resolved, because it may resolve to another address later. Addresses are checked when a callback connects,
/// see [`Allow::permits`].
pub fn check_url(url: &Url, allow: &Allow) -> Result<(), Vec<UrlFault>> {
    let port = url.port_or_known_default().unwrap_or(0);
    // For an http or https URL, the parser has already turned all spellings of an IPv4 address into the usual one.
    let (is_listed, is_forbidden) = match url.host() {
        Some(Host::Domain(name)) => {
            let name = normalized(name);
            let is_listed = allow.lists_name(&name, port);
            let is_local = is_localhost(&name) || is_metadata_name(&name);
            (is_listed, is_local && !is_listed)
        }
        Some(Host::Ipv4(ip)) => allow.judge(ip.into(), port),
        Some(Host::Ipv6(ip)) => allow.judge(ip.into(), port),
        None => (false, false),
    };
    let scheme_is_fine = match url.scheme() {
        "https" => true,
        "http" => is_listed,
        _ => false,
    };
    let faults: Vec<_> = [
        (!scheme_is_fine, UrlFault::Scheme),
        (url.host_str().is_none_or(str::is_empty), UrlFault::NoHost),
        (
            !url.username().is_empty() || url.password().is_some(),
            UrlFault::UserInfo,
        ),
        (url.fragment().is_some(), UrlFault::Fragment),
        (url.as_str().len() > LONGEST_URL, UrlFault::TooLong),
        (is_forbidden, UrlFault::Forbidden),
    ]
    .into_iter()
    .filter_map(|(applies, fault)| applies.then_some(fault))
    .collect();
    if faults.is_empty() {
        Ok(())
    } else {
        Err(faults)
    }
}

impl Allow {
    /// Whether a callback to a URL with this host may connect to this address, which the host has been resolved to.
    #[must_use]
    pub fn permits(&self, host: &str, ip: IpAddr, port: u16) -> bool {
        let host = normalized(host);
        let is_listed = self.lists_name(&host, port);
        if is_metadata_name(&host) && !is_listed {
            return false;
        }
        let ip = canonical(ip);
        self.lists_address(ip, port)
            || parts(ip).all(|part| match Class::of(part) {
                _ if self.lists_address(part, port) => true,
                Class::Public => true,
                Class::Private => is_listed || self.lists_network(part),
                // Names under `localhost` mean the loopback interface by definition (RFC 6761).
                Class::Loopback => is_listed && is_localhost(&host),
                Class::Metadata => false,
            })
    }

    /// Whether an entry matches an address, and whether the address is forbidden.
    fn judge(&self, ip: IpAddr, port: u16) -> (bool, bool) {
        let is_permitted = self.permits("", ip, port);
        let ip = canonical(ip);
        let is_listed = self.lists_address(ip, port) || self.lists_network(ip);
        (is_permitted && is_listed, !is_permitted)
    }

    fn lists_name(&self, name: &str, port: u16) -> bool {
        self.names
            .iter()
            .any(|(listed, at)| listed == name && at.is_none_or(|at| at == port))
    }

    fn lists_address(&self, ip: IpAddr, port: u16) -> bool {
        self.addresses
            .iter()
            .any(|(listed, at)| *listed == ip && at.is_none_or(|at| at == port))
    }

    fn lists_network(&self, ip: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&ip))
    }

    fn add(&mut self, entry: &str) -> Result<(), &'static str> {
        const FORM: &str = "is not a network such as 10.0.0.0/8, or a host such as hooks.internal, \
            hooks.internal:8080 or [::1]:3000";

        if entry.contains('/') {
            let network: IpNet = entry.parse().map_err(|_| FORM)?;
            self.networks.push(check_network(network)?);
        } else if let Ok(ip) = entry.parse() {
            self.addresses.push((canonical(ip), None));
        } else {
            let (host, port) = match entry.rsplit_once(':') {
                // The last colon is within an IPv6 address.
                Some(_) if entry.ends_with(']') => (entry, None),
                Some((host, port)) => (host, Some(parse_port(port).ok_or(FORM)?)),
                None => (entry, None),
            };
            match Host::parse(host).map_err(|_| FORM)? {
                Host::Ipv4(ip) => self.addresses.push((ip.into(), port)),
                Host::Ipv6(ip) => self.addresses.push((canonical(ip.into()), port)),
                Host::Domain(name) => {
                    let name = normalized(&name);
                    if !is_name(&name) {
                        return Err(FORM);
                    }
                    self.names.push((name, port));
                }
            }
        }
        Ok(())
    }
}

impl FromStr for Allow {
    type Err = AllowError;

    fn from_str(text: &str) -> Result<Self, AllowError> {
        let mut allow = Self::default();
        let mut wrong = Vec::new();
        for entry in text.split(',').map(str::trim).filter(|e| !e.is_empty()) {
            if let Err(reason) = allow.add(entry) {
                let entry = entry.to_owned();
                wrong.push(WrongEntry { entry, reason });
            }
        }
        if wrong.is_empty() {
            Ok(allow)
        } else {
            Err(AllowError { wrong })
        }
    }
}

/// Rejects networks that are slips or have no effect.
fn check_network(network: IpNet) -> Result<IpNet, &'static str> {
    const COMPATIBLE: Ipv6Net = v6(Ipv6Addr::UNSPECIFIED, 96);
    const LOOPBACK_NETWORK: &str = "is a loopback network: list each address without a prefix";

    if network.addr() != network.network() {
        return Err("has bits beyond its prefix");
    }
    match network {
        IpNet::V4(network) if LOOPBACK.contains(&network) => Err(LOOPBACK_NETWORK),
        IpNet::V6(network) if network.prefix_len() == 128 && network.addr().is_loopback() => {
            Err(LOOPBACK_NETWORK)
        }
        IpNet::V6(network) if COMPATIBLE.contains(&network) || MAPPED.contains(&network) => {
            Err("contains no IPv6 addresses: write IPv4 networks such as 10.0.0.0/8")
        }
        network
            if network.prefix_len() == network.max_prefix_len()
                && METADATA.contains(&network.addr()) =>
        {
            Err("is a cloud's metadata service: list the address without a prefix")
        }
        network => Ok(network),
    }
}

fn parse_port(text: &str) -> Option<u16> {
    // The standard parser accepts a leading `+`.
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| is_number && *port != 0)
}

/// Whether a name can be a host's. `Host::parse` accepts more, for example `*.internal`, which would permit nothing.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

/// A name as it is compared. A dot at its end means that it is complete, and changes nothing else.
fn normalized(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn is_localhost(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

/// Google's metadata service accepts requests by name only. The others are reached by address, and have no name of their
/// own.
fn is_metadata_name(name: &str) -> bool {
    matches!(name, "metadata.google.internal" | "metadata.goog")
}

/// An IPv4 address that is written as an IPv6 address, as an IPv4 address.
fn canonical(ip: IpAddr) -> IpAddr {
    match ip {
        // The unspecified and the loopback address look like IPv4-compatible ones.
        IpAddr::V6(v6) if !v6.is_unspecified() && !v6.is_loopback() => {
            v6.to_ipv4().map_or(ip, IpAddr::V4)
        }
        ip => ip,
    }
}

/// The address, and the IPv4 address that a gateway would translate it to.
fn parts(ip: IpAddr) -> impl Iterator<Item = IpAddr> {
    let embedded = match ip {
        IpAddr::V6(v6) if NAT64.contains(&v6) => {
            let [.., a, b, c, d] = v6.octets();
            Some([a, b, c, d])
        }
        IpAddr::V6(v6) if SIX_TO_FOUR.contains(&v6) => {
            let [_, _, a, b, c, d, ..] = v6.octets();
            Some([a, b, c, d])
        }
        _ => None,
    };
    [ip].into_iter().chain(embedded.map(IpAddr::from))
}

/// What an address reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Public,
    /// Private networks, and ranges with a special purpose.
    Private,
    /// This machine.
    Loopback,
    /// A service of the cloud that this machine runs in, which hands out credentials.
    Metadata,
}

impl Class {
    fn of(ip: IpAddr) -> Self {
        if METADATA.contains(&ip) {
            return Self::Metadata;
        }
        // Linux connects to the loopback interface if the address is unspecified.
        match ip {
            IpAddr::V4(ip) if LOOPBACK.contains(&ip) || ip.is_unspecified() => Self::Loopback,
            IpAddr::V6(ip) if ip.is_loopback() || ip.is_unspecified() => Self::Loopback,
            IpAddr::V4(ip) if SPECIAL_V4.iter().any(|range| range.contains(&ip)) => Self::Private,
            IpAddr::V6(ip) if NAT64.contains(&ip) => Self::Public,
            // All other public addresses are in this range. Listing what is special outside it would miss something.
            IpAddr::V6(ip) if !GLOBAL_UNICAST.contains(&ip) => Self::Private,
            IpAddr::V6(ip) if SPECIAL_V6.iter().any(|range| range.contains(&ip)) => Self::Private,
            IpAddr::V4(_) | IpAddr::V6(_) => Self::Public,
        }
    }
}

const LOOPBACK: Ipv4Net = v4([127, 0, 0, 0], 8);
const MAPPED: Ipv6Net = v6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);
const NAT64: Ipv6Net = v6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);
const SIX_TO_FOUR: Ipv6Net = v6(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16);
const GLOBAL_UNICAST: Ipv6Net = v6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// From IANA's registries of special-purpose and multicast addresses.
const SPECIAL_V4: [Ipv4Net; 14] = [
    // This network.
    v4([0, 0, 0, 0], 8),
    // Private.
    v4([10, 0, 0, 0], 8),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
    // Shared by the customers of a carrier.
    v4([100, 64, 0, 0], 10),
    // Link-local.
    v4([169, 254, 0, 0], 16),
    // IETF protocol assignments.
    v4([192, 0, 0, 0], 24),
    // Documentation.
    v4([192, 0, 2, 0], 24),
    v4([198, 51, 100, 0], 24),
    v4([203, 0, 113, 0], 24),
    // Relays of 6to4.
    v4([192, 88, 99, 0], 24),
    // Benchmarks.
    v4([198, 18, 0, 0], 15),
    // Multicast.
    v4([224, 0, 0, 0], 4),
    // Reserved, and the broadcast address.
    v4([240, 0, 0, 0], 4),
];

/// What is special within [`GLOBAL_UNICAST`].
const SPECIAL_V6: [Ipv6Net; 4] = [
    // IETF protocol assignments, among them Teredo, benchmarks and ORCHID.
    v6(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    // Documentation.
    v6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    v6(Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
    SIX_TO_FOUR,
];

const METADATA: [IpAddr; 10] = [
    // AWS, Azure, Google, Oracle and most others.
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    // AWS: credentials of ECS tasks and EKS pods.
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    // Alibaba.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    // Azure: the channel between a virtual machine and its host, at a public address.
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    // Google.
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    // Oracle.
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
];

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(ip: Ipv6Addr, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(ip, prefix)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn allow(text: &str) -> Allow {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn check(url: &str, list: &str) -> Result<(), Vec<UrlFault>> {
        check_url(&Url::parse(url).unwrap(), &allow(list))
    }

    /// The spellings of an IPv4 address as an IPv6 address.
    fn embedded(ip: Ipv4Addr) -> [Ipv6Addr; 4] {
        let [a, b, c, d] = ip.octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        [
            Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, high, low),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
        ]
    }

    const PUBLIC: [&str; 18] = [
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "169.253.255.255",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "198.17.255.255",
        "223.255.255.255",
        "2606:4700:4700::1111",
        "2001:200::1",
        "2a00:1450:4009::200e",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
    ];

    const PRIVATE: [&str; 40] = [
        "0.1.2.3",
        "10.0.0.0",
        "10.255.255.255",
        "100.64.0.0",
        "100.127.255.255",
        "169.254.0.1",
        "169.254.255.255",
        "172.16.0.0",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.0",
        "192.168.255.255",
        "198.18.0.0",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::ffff:10.0.0.1",
        "::10.0.0.1",
        "::2",
        "64:ff9b::10.0.0.1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:2::1",
        "2001:1ff::1",
        "2001:db8::1",
        "2002:808:808::1",
        "2002:a00:1::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd12:3456::1",
        "fe80::1",
        "fec0::1",
    ];

    const EXACT_ONLY: [&str; 17] = [
        "127.0.0.1",
        "127.255.255.255",
        "0.0.0.0",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::127.0.0.1",
        "2002:7f00:1::1",
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "168.63.129.16",
        "fd00:ec2::254",
        "fd20:ce::254",
    ];

    #[test]
    fn only_public_addresses_are_permitted_without_an_entry() {
        let none = Allow::default();
        for address in PUBLIC {
            assert!(none.permits("hooks.test", ip(address), 443), "{address}");
        }
        for address in PRIVATE.into_iter().chain(EXACT_ONLY) {
            assert!(!none.permits("hooks.test", ip(address), 443), "{address}");
        }
        for multicast in ["ff02::1", "ff0e::1"] {
            assert!(!none.permits("hooks.test", ip(multicast), 443));
        }
    }

    #[test]
    fn a_network_permits_no_loopback_and_metadata_addresses() {
        let all = allow("0.0.0.0/0,::/0");
        for address in PRIVATE {
            assert!(all.permits("hooks.test", ip(address), 443), "{address}");
        }
        for address in EXACT_ONLY {
            assert!(!all.permits("hooks.test", ip(address), 443), "{address}");
        }
    }

    #[test]
    fn a_name_permits_no_loopback_and_metadata_addresses() {
        let list = allow("hooks.internal");
        for address in PRIVATE {
            assert!(
                list.permits("hooks.internal", ip(address), 443),
                "{address}"
            );
            assert!(!list.permits("a.hooks.internal", ip(address), 443));
            assert!(!list.permits("other.internal", ip(address), 443));
        }
        for address in EXACT_ONLY {
            assert!(
                !list.permits("hooks.internal", ip(address), 443),
                "{address}"
            );
        }
    }

    #[test]
    fn an_address_permits_itself_under_any_name() {
        for address in PRIVATE.into_iter().chain(EXACT_ONLY) {
            for entry in [address.to_owned(), format!("[{address}]")] {
                if let Ok(list) = entry.parse::<Allow>() {
                    assert!(list.permits("hooks.test", ip(address), 443), "{entry}");
                    assert!(!list.permits("hooks.test", ip("10.9.9.9"), 443), "{entry}");
                }
            }
        }
    }

    #[test]
    fn ports_are_compared() {
        let list =
            allow("127.0.0.1:3000,[::1]:3001,hooks.internal:8080,[fd00::1]:80,localhost:3002");
        for (host, address, port, expected) in [
            ("127.0.0.1", "127.0.0.1", 3000, true),
            ("127.0.0.1", "127.0.0.1", 3001, false),
            ("127.0.0.2", "127.0.0.2", 3000, false),
            ("hooks.test", "::ffff:127.0.0.1", 3000, true),
            ("hooks.test", "64:ff9b::127.0.0.1", 3000, true),
            ("[::1]", "::1", 3001, true),
            ("[::1]", "::1", 3000, false),
            ("hooks.internal", "10.0.0.1", 8080, true),
            ("HOOKS.Internal.", "10.0.0.1", 8080, true),
            ("hooks.internal", "10.0.0.1", 443, false),
            ("hooks.internal", "127.0.0.1", 8080, false),
            ("hooks.test", "fd00::1", 80, true),
            ("hooks.test", "fd00::1", 443, false),
            ("localhost", "127.0.0.1", 3002, true),
            ("localhost", "::1", 3002, true),
            ("localhost", "169.254.169.254", 3002, false),
            ("localhost", "127.0.0.1", 3003, false),
            ("hooks.test", "127.0.0.1", 3002, false),
        ] {
            let permitted = list.permits(host, ip(address), port);
            assert_eq!(permitted, expected, "{host} {address} {port}");
        }
    }

    #[test]
    fn metadata_services_need_a_name_and_an_address() {
        let (host, address) = ("metadata.google.internal", ip("169.254.169.254"));
        for (list, expected) in [
            ("", false),
            ("169.254.0.0/16", false),
            ("metadata.google.internal", false),
            ("169.254.169.254", false),
            ("169.254.169.254,metadata.google.internal", true),
        ] {
            assert_eq!(allow(list).permits(host, address, 80), expected, "{list}");
        }
        assert!(!Allow::default().permits("metadata.google.internal.", ip("8.8.8.8"), 443));
    }

    #[test]
    fn lists_are_parsed() {
        let text = "10.0.0.0/8, 127.0.0.1:3000,Hooks.internal.,hooks.internal:8080,[::1]:3000,\
            fd00::/8,::1,[fd00::1],,10.1.1.1,xn--bcher-kva.example,a_b.internal,";
        let list = allow(text);
        assert_eq!(list.networks.len(), 2);
        assert_eq!(
            list.addresses,
            [
                (ip("127.0.0.1"), Some(3000)),
                (ip("::1"), Some(3000)),
                (ip("::1"), None),
                (ip("fd00::1"), None),
                (ip("10.1.1.1"), None),
            ]
        );
        assert_eq!(list.names[0], ("hooks.internal".to_owned(), None));
        assert_eq!(list.names[1], ("hooks.internal".to_owned(), Some(8080)));
        assert_eq!(list.names.len(), 4);
        assert_eq!(allow(" , "), Allow::default());
        assert_eq!(allow("b\u{fc}cher.example"), allow("xn--bcher-kva.example"));
        assert_eq!(allow("[::ffff:127.0.0.1]:80"), allow("127.0.0.1:80"));
    }

    #[test]
    fn an_error_names_every_wrong_entry() {
        let wrong = [
            "10.0.0.0/33",
            "10.0.0.1/8",
            "fd00::1/8",
            "127.0.0.0/8",
            "127.0.0.1/32",
            "::1/128",
            "::ffff:10.0.0.0/104",
            "169.254.169.254/32",
            "hooks.internal/8",
            "https://hooks.internal",
            "hooks.internal:",
            "hooks.internal:0",
            "hooks.internal:+80",
            "hooks.internal:65536",
            ":8080",
            "*.internal",
            "-a.internal",
            "a..internal",
            ".internal",
            "hooks internal",
            "user@hooks.internal",
            "10.0.0.256",
            "1.2.3.4.5",
            "[::1",
            "[::1]3000",
            "[::1]:",
            "[fe80::1%eth0]",
            "fe80::1%1",
        ];
        let list = format!("10.0.0.0/8,{},fine.internal", wrong.join(","));
        let error = list.parse::<Allow>().unwrap_err();
        let named: Vec<_> = error.wrong.iter().map(|wrong| &wrong.entry).collect();
        assert_eq!(named, wrong.iter().collect::<Vec<_>>());
        for entry in wrong {
            assert!(error.to_string().contains(entry), "{error}");
        }
    }

    #[test]
    fn urls_are_checked() {
        use UrlFault::{Forbidden, Fragment, NoHost, Scheme, TooLong, UserInfo};

        let long = format!("https://hooks.test/{}", "a".repeat(LONGEST_URL));
        let longest = &long[..LONGEST_URL];
        for (url, list, faults) in [
            ("https://hooks.test/a?b=c", "", &[][..]),
            ("https://hooks.test:8443", "", &[]),
            ("https://8.8.8.8", "", &[]),
            (longest, "", &[]),
            (&long, "", &[TooLong]),
            ("http://hooks.test", "", &[Scheme]),
            ("http://8.8.8.8", "", &[Scheme]),
            ("ftp://hooks.test", "hooks.test", &[Scheme]),
            ("mailto:hooks@hooks.test", "", &[Scheme, NoHost]),
            ("file:///etc/passwd", "", &[Scheme, NoHost]),
            ("https://user@hooks.test", "", &[UserInfo]),
            ("https://:password@hooks.test", "", &[UserInfo]),
            ("https://hooks.test/#", "", &[Fragment]),
            (
                "http://a:b@127.1/#c",
                "",
                &[Scheme, UserInfo, Fragment, Forbidden],
            ),
            // Names.
            ("https://localhost", "", &[Forbidden]),
            ("https://LOCALHOST./", "", &[Forbidden]),
            ("https://app.localhost", "", &[Forbidden]),
            ("https://localhost.test", "", &[]),
            ("https://metadata.google.internal", "", &[Forbidden]),
            ("http://localhost:3000", "localhost", &[]),
            ("http://localhost:3000", "localhost:3000", &[]),
            (
                "http://localhost:3001",
                "localhost:3000",
                &[Scheme, Forbidden],
            ),
            ("http://localhost:3000", "127.0.0.1", &[Scheme, Forbidden]),
            ("http://hooks.internal", "hooks.internal", &[]),
            ("http://hooks.internal.:80", "hooks.internal:80", &[]),
            ("http://hooks.internal", "hooks.internal:8080", &[Scheme]),
            ("http://hooks.internal", "10.0.0.0/8", &[Scheme]),
            ("https://hooks.internal", "", &[]),
            // Addresses, in all spellings.
            ("https://10.0.0.1", "", &[Forbidden]),
            ("https://10.0.0.1.", "", &[Forbidden]),
            ("https://10.1", "", &[Forbidden]),
            ("https://167772161", "", &[Forbidden]),
            ("https://0x0a000001", "", &[Forbidden]),
            ("https://012.0.0.1", "", &[Forbidden]),
            ("https://0xA.0.1", "", &[Forbidden]),
            ("https://%31%30.0.0.1", "", &[Forbidden]),
            ("https://\u{ff11}\u{ff10}.0.0.1", "", &[Forbidden]),
            ("https://[::ffff:10.0.0.1]", "", &[Forbidden]),
            ("https://[::ffff:a00:1]", "", &[Forbidden]),
            ("https://[::10.0.0.1]", "", &[Forbidden]),
            ("https://[fd00::1]", "", &[Forbidden]),
            ("https://[2606:4700:4700::1111]", "", &[]),
            ("http://10.1", "10.0.0.0/8", &[]),
            ("http://[::ffff:10.0.0.1]", "10.0.0.0/8", &[]),
            ("http://10.0.0.1:81", "10.0.0.1:80", &[Scheme, Forbidden]),
            ("http://[fd00::1]", "fd00::/8", &[]),
            ("http://127.0.0.1:3000", "127.0.0.1:3000", &[]),
            ("http://2130706433:3000", "127.0.0.1:3000", &[]),
            ("http://127.0.0.1", "0.0.0.0/0", &[Scheme, Forbidden]),
            ("https://169.254.169.254", "0.0.0.0/0", &[Forbidden]),
            ("http://169.254.169.254", "169.254.169.254", &[]),
            ("http://8.8.8.8", "8.0.0.0/8", &[]),
        ] {
            let expected = if faults.is_empty() {
                Ok(())
            } else {
                Err(faults.to_vec())
            };
            assert_eq!(check(url, list), expected, "{url} {list}");
        }
    }

    proptest! {
        #[test]
        fn what_the_standard_library_calls_special_is_not_permitted(bits: u32) {
            let v4 = Ipv4Addr::from_bits(bits);
            let special = v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_broadcast()
                || v4.is_documentation()
                || v4.is_multicast()
                || v4.is_unspecified();
            prop_assert!(!special || !Allow::default().permits("hooks.test", v4.into(), 443));
        }

        #[test]
        fn no_ipv6_spelling_of_an_ipv4_address_is_a_way_around(bits: u32, list in lists()) {
            let list = allow(list);
            let v4 = Ipv4Addr::from_bits(bits);
            let permitted = list.permits("hooks.test", v4.into(), 443);
            for spelling in embedded(v4) {
                if spelling.is_loopback() || spelling.is_unspecified() {
                    continue;
                }
                let as_v6 = list.permits("hooks.test", spelling.into(), 443);
                prop_assert!(permitted || !as_v6, "{v4} {spelling}");
            }
        }

        #[test]
        fn ipv6_addresses_outside_the_global_range_are_not_permitted(bits: u128) {
            let v6 = Ipv6Addr::from_bits(bits);
            let is_global = v6.segments()[0] & 0xe000 == 0x2000;
            let is_permitted = Allow::default().permits("hooks.test", v6.into(), 443);
            prop_assert!(is_global || !is_permitted, "{v6}");
            prop_assert!(!is_permitted || !(v6.is_unique_local() || v6.is_unicast_link_local()));
        }

        #[test]
        fn every_spelling_of_a_url_has_the_same_result(bits: u32, list in lists()) {
            let [a, b, c, d] = bits.to_be_bytes();
            let verdict = check(&format!("https://{a}.{b}.{c}.{d}"), list);
            for spelling in [
                format!("{bits}"),
                format!("{bits:#x}"),
                format!("0{bits:o}"),
                format!("{a:#x}.0{b:o}.{c}.{d}"),
                format!("{a}.{}", bits & 0x00ff_ffff),
                format!("{a}.{b}.{}", bits & 0xffff),
                format!("[::ffff:{a}.{b}.{c}.{d}]"),
            ] {
                prop_assert_eq!(check(&format!("https://{spelling}"), list), verdict.clone());
            }
        }

        #[test]
        fn an_accepted_url_with_an_address_is_permitted_when_connecting(
            bits: u32,
            list in lists(),
            port in 1u16..,
        ) {
            let v4 = Ipv4Addr::from_bits(bits);
            let accepted = check(&format!("https://{v4}:{port}"), list).is_ok();
            prop_assert_eq!(accepted, allow(list).permits(&v4.to_string(), v4.into(), port));
        }

        #[test]
        fn no_text_causes_a_panic(text in "[0-9a-f.:/\\[\\],*-]*|\\PC*") {
            if let Err(error) = text.parse::<Allow>() {
                prop_assert!(!error.wrong.is_empty());
            }
        }
    }

    fn lists() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["", "0.0.0.0/0", "10.0.0.0/8,192.168.0.0/16", "::/0"])
    }
}
