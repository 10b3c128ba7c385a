use std::{path::PathBuf, time::Duration};

use clap::Args;
use lettre::message::Mailbox;
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

use super::{
    ConfigError,
    error::Expected,
    value::{duration, optional, path, secret},
};
use crate::payment_link::message::is_email_address;

const SMTP_URL: &str = "SMTP_URL";
const MAIL_FROM: &str = "MAIL_FROM";

/// The settings of emails to customers.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Email")]
pub struct MailSettings {
    /// The mail server that sends emails: `smtps://USER:PASSWORD@HOST` for TLS from the start (port 465), or `smtp://…` for
    /// STARTTLS (port 587), which the server must offer. `smtp://…?tls=none` doesn't encrypt. It is for a server on this machine
    /// or in a trusted network, and allows a password only on this machine. User and password are percent-encoded. Unset: no emails
    /// can be sent.
    #[arg(long, env = "SMTP_URL", hide_env_values = true, value_name = "URL")]
    smtp_url: Option<SecretString>,

    /// A file that contains `SMTP_URL`.
    #[arg(long, env = "SMTP_URL_FILE", value_name = "FILE", value_parser = path())]
    smtp_url_file: Option<PathBuf>,

    /// The sender of emails: an address, or a name and an address, such as `Theatre <pay@theatre.example>`. Required with
    /// `SMTP_URL`. An account in `DOJO_ACCOUNTS_FILE` may override it with `mail_from`.
    #[arg(long, env = "MAIL_FROM", default_value = "", hide_default_value = true, value_name = "ADDRESS",
          value_parser = optional(mailbox))]
    mail_from: std::option::Option<Mailbox>,

    /// Where customers' replies go, in the form of `MAIL_FROM`. Unset: to the sender. An account in `DOJO_ACCOUNTS_FILE` may
    /// override it with `mail_reply_to`.
    #[arg(long, env = "MAIL_REPLY_TO", default_value = "", hide_default_value = true, value_name = "ADDRESS",
          value_parser = optional(mailbox))]
    pub mail_reply_to: std::option::Option<Mailbox>,

    /// The color of the button in emails, such as `#1f5fbf`. An account in `DOJO_ACCOUNTS_FILE` may override it with
    /// `brand_color`.
    #[arg(long, env = "BRAND_COLOR", default_value = "#1f5fbf", value_name = "COLOR", value_parser = color)]
    pub brand_color: String,

    /// A folder with templates for emails, instead of the ones that are built in: for each language a folder such as `en`
    /// with `subject.txt`, `body.txt` and `body.html`. They are validated at the start.
    #[arg(long, env = "MAIL_TEMPLATES", value_name = "FOLDER", value_parser = path())]
    mail_templates: Option<PathBuf>,

    /// How long the mail server may take for each of three steps: to connect and accept the sender and the recipient, to get
    /// ready for the content, and to accept the message. At most 2m.
    #[arg(long, env = "SMTP_TIMEOUT", default_value = "30s", value_name = "DURATION", value_parser = timeout)]
    pub smtp_timeout: Duration,
}

/// A mail server.
#[derive(Debug, Clone)]
pub struct MailServer {
    pub host: String,
    pub port: u16,
    pub encryption: Encryption,
    pub credentials: Option<Credentials>,
}

/// How the connection to a mail server is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// TLS from the start (RFC 8314).
    Tls,
    /// STARTTLS (RFC 3207). A server that doesn't offer it gets nothing.
    StartTls,
    None,
}

/// What this service authenticates with at a mail server.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub user: String,
    pub password: SecretString,
}

impl MailSettings {
    /// The mail server, and the sender of emails. `None` if no emails can be sent.
    pub fn server(&self) -> Result<Option<(MailServer, Mailbox)>, ConfigError> {
        let mut error = ConfigError::default();
        let url = secret(
            SMTP_URL,
            self.smtp_url.as_ref(),
            self.smtp_url_file.as_ref(),
        );
        let Some(url) = error.keep(url).flatten() else {
            return if error.is_empty() {
                Ok(None)
            } else {
                Err(error)
            };
        };
        let server = server(url.expose_secret()).map_err(|text| ConfigError::new(SMTP_URL, text));
        let server = error.keep(server);
        if self.mail_from.is_none() {
            error.add(
                MAIL_FROM,
                "is required with SMTP_URL: set it to the sender of emails, such as Theatre <pay@theatre.example>",
            );
        }
        match (server, &self.mail_from) {
            (Some(server), Some(from)) => Ok(Some((server, from.clone()))),
            _ => Err(error),
        }
    }

    /// The folder with templates, if there is one.
    #[must_use]
    pub fn templates(&self) -> Option<&PathBuf> {
        let folder = self.mail_templates.as_ref();
        folder.filter(|folder| !folder.as_os_str().is_empty())
    }
}

/// Parses the URL of a mail server. On error, returns what is wrong, without any part of the URL, which may contain a password.
fn server(text: &str) -> Result<MailServer, &'static str> {
    const FORM: &str = "must be a URL such as smtps://USER:PASSWORD@mail.example.com or smtp://mail.example.com:587";
    let url = Url::parse(text).map_err(|_| FORM)?;
    let (mut encryption, port) = match url.scheme() {
        "smtps" => (Encryption::Tls, 465),
        "smtp" => (Encryption::StartTls, 587),
        _ => return Err(FORM),
    };
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or(FORM)?;
    // IPv6 addresses are in brackets in a URL, and nowhere else.
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    if !matches!(url.path(), "" | "/") || url.fragment().is_some() {
        return Err("must not contain a path or a fragment");
    }
    for (name, value) in url.query_pairs() {
        match (name.as_ref(), value.as_ref()) {
            ("tls", "required") => {}
            ("tls", "none") if encryption == Encryption::StartTls => encryption = Encryption::None,
            _ => {
                return Err(
                    "must not have parameters other than tls=required or, with smtp, tls=none",
                );
            }
        }
    }
    let decode = |text: &str| {
        let text = percent_decode_str(text).decode_utf8();
        text.map(std::borrow::Cow::into_owned)
            .map_err(|_| "has a user name or password that isn't UTF-8")
    };
    let credentials = match (url.username(), url.password()) {
        ("", None) => None,
        (user, Some(password)) if !user.is_empty() => Some(Credentials {
            user: decode(user)?,
            password: decode(password)?.into(),
        }),
        _ => return Err("must have both a user name and a password, or neither"),
    };
    let is_here = match url::Host::parse(&host) {
        Ok(Host::Ipv4(address)) => address.is_loopback(),
        _ => host == "localhost" || host == "::1",
    };
    if credentials.is_some() && encryption == Encryption::None && !is_here {
        return Err("would send the password unencrypted: remove tls=none");
    }
    Ok(MailServer {
        host,
        port: url.port().unwrap_or(port),
        encryption,
        credentials,
    })
}

pub(super) fn mailbox(text: &str) -> Result<Mailbox, Expected> {
    let expected = || {
        Expected::new(
            "an email address, or a name and an address such as Theatre <pay@theatre.example>",
        )
    };
    let mailbox: Mailbox = text.parse().map_err(|_| expected())?;
    if is_email_address(mailbox.email.as_ref()) {
        Ok(mailbox)
    } else {
        Err(expected())
    }
}

pub(super) fn color(text: &str) -> Result<String, Expected> {
    let is_color = text.len() == 7
        && text.starts_with('#')
        && text[1..].bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_color {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(Expected::new("a color such as #1f5fbf"))
    }
}

fn timeout(text: &str) -> Result<Duration, Expected> {
    duration(text)
        .ok()
        .filter(|limit| *limit <= Duration::from_mins(2))
        .ok_or_else(|| Expected::new("a duration from 1ms to 2m, such as 30s"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mail_server_is_encrypted_unless_the_url_says_otherwise() {
        for (url, host, port, encryption) in [
            (
                "smtps://mail.example.com",
                "mail.example.com",
                465,
                Encryption::Tls,
            ),
            (
                "smtp://mail.example.com",
                "mail.example.com",
                587,
                Encryption::StartTls,
            ),
            (
                "smtp://mail.example.com:25?tls=required",
                "mail.example.com",
                25,
                Encryption::StartTls,
            ),
            (
                "smtp://127.0.0.1:2525/?tls=none",
                "127.0.0.1",
                2525,
                Encryption::None,
            ),
            ("smtp://[::1]:2525?tls=none", "::1", 2525, Encryption::None),
        ] {
            let server = server(url).unwrap();
            assert_eq!(
                (server.host.as_str(), server.port, server.encryption),
                (host, port, encryption),
                "{url}"
            );
            assert!(server.credentials.is_none());
        }
        let server = server("smtps://pay%40example.com:p%3A%2Fss@mail.example.com").unwrap();
        let credentials = server.credentials.unwrap();
        assert_eq!(credentials.user, "pay@example.com");
        assert_eq!(credentials.password.expose_secret(), "p:/ss");
    }

    #[test]
    fn a_url_that_makes_no_sense_is_rejected() {
        for url in [
            "",
            "mail.example.com",
            "https://mail.example.com",
            "smtp://",
            "smtp://mail.example.com/inbox",
            "smtps://mail.example.com?tls=none",
            "smtp://mail.example.com?tls=maybe",
            "smtp://user@mail.example.com",
            "smtp://:hush@mail.example.com",
            "smtp://user:hush@mail.example.com?tls=none",
            "smtp://mail.example.com#x",
        ] {
            let error = server(url).unwrap_err();
            assert!(!error.contains("hush"), "{error}");
        }
        assert!(server("smtp://user:hush@localhost:25?tls=none").is_ok());
    }

    #[test]
    fn a_sender_may_have_a_name() {
        assert!(mailbox("pay@theatre.example").is_ok());
        assert_eq!(
            mailbox("Theatre <pay@theatre.example>")
                .unwrap()
                .name
                .as_deref(),
            Some("Theatre")
        );
        for text in [
            "Theatre",
            "pay@theatre",
            "a@b.example, c@d.example",
            "x <pay@theatre.example>\nBcc: b@c.example",
        ] {
            assert!(mailbox(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_color_is_six_hexadecimal_digits() {
        assert_eq!(color("#1F5FBF").unwrap(), "#1f5fbf");
        for text in ["red", "#fff", "1f5fbf0", "#1f5fbg", "#1f5f\u{e9}"] {
            assert!(color(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_error_contains_the_password(url in "smtps?://[a-z:@/?#%.0-9]{0,12}hush[a-z:@/?#%.0-9]{0,12}") {
            if let Err(error) = server(&url) {
                prop_assert!(!error.contains("hush"));
            }
        }
    }
}
