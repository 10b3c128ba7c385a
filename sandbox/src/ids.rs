//! Random identifiers and secrets in the formats that Dojo uses.

use rand::RngExt;

const BASE64_URL: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const HEX: &[u8] = b"0123456789abcdef";

/// `prefix` and 22 base64url characters, such as `pi_sandbox_G_FeegU8WESxtY_Nct8jqw`.
pub(crate) fn prefixed(prefix: &str) -> String {
    format!("{prefix}{}", base64_url(22))
}

/// Random base64url characters.
pub(crate) fn base64_url(length: usize) -> String {
    pick(BASE64_URL, length)
}

/// Random lower-case hex digits.
pub(crate) fn hex(length: usize) -> String {
    pick(HEX, length)
}

/// A random UUID: the format of Dojo's transaction and refund ids.
pub(crate) fn uuid() -> String {
    let variant = pick(b"89ab", 1);
    format!(
        "{}-{}-4{}-{variant}{}-{}",
        hex(8),
        hex(4),
        hex(3),
        hex(3),
        hex(12)
    )
}

/// Six random digits: the format of an authorization code.
pub(crate) fn auth_code() -> String {
    pick(b"0123456789", 6)
}

fn pick(alphabet: &[u8], length: usize) -> String {
    let mut rng = rand::rng();
    (0..length)
        .map(|_| char::from(alphabet[rng.random_range(0..alphabet.len())]))
        .collect()
}
