//! A mail server, as a client of it sees it.
//!
//! The library's own `send` doesn't say whether the server may have got the message when it fails. Here, the steps before the
//! message's content are apart from the content itself, so that every failure is one or the other.

use std::time::Duration;

use lettre::{
    address::Envelope,
    transport::smtp::{
        Error,
        authentication::{Credentials, DEFAULT_MECHANISMS},
        client::{AsyncSmtpConnection, TlsParameters},
        commands::{Data, Mail, Rcpt},
        extension::ClientId,
    },
};
use secrecy::ExposeSecret;
use tokio::time::timeout;

use crate::config::{ConfigError, Encryption, MailServer};

/// How long to wait for the mail server's goodbye, which changes nothing.
const GOODBYE: Duration = Duration::from_secs(2);

/// Why a mail server takes no message. It has got none.
///
/// The texts contain no address, and nothing that the mail server said except for its code, because that often contains one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The server can't be reached, or is busy: a later attempt may succeed.
    ForNow(String),
    /// The server won't take it.
    ForGood(String),
}

/// What became of a message whose content was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    Accepted,
    Refused(Refusal),
    /// The response was lost, so the server may have accepted the message.
    Unknown(String),
}

pub(super) struct Server {
    host: String,
    port: u16,
    encryption: Encryption,
    tls: TlsParameters,
    credentials: Option<Credentials>,
    hello: ClientId,
    timeout: Duration,
}

/// A connection on which the mail server is ready for a message's content.
pub struct Session {
    connection: AsyncSmtpConnection,
    timeout: Duration,
}

impl Server {
    pub(super) fn new(server: MailServer, timeout: Duration) -> Result<Self, ConfigError> {
        let tls = TlsParameters::builder(server.host.clone()).build();
        let tls = tls.map_err(|error| {
            ConfigError::new(
                "SMTP_URL",
                format!("cannot be used, because TLS cannot be set up: {error}"),
            )
        })?;
        let credentials = server.credentials.map(|credentials| {
            Credentials::new(
                credentials.user,
                credentials.password.expose_secret().to_owned(),
            )
        });
        Ok(Self {
            host: server.host,
            port: server.port,
            encryption: server.encryption,
            tls,
            credentials,
            hello: ClientId::default(),
            timeout,
        })
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Connects and logs in as for a message, and sends none. Returns what the connection is like, or what failed.
    pub(super) async fn probe(&self, limit: Duration) -> Result<String, String> {
        let (host, port) = (&self.host, self.port);
        let failed = |what: &str| format!("{host}, port {port}: {what}");
        let connection = match timeout(self.timeout.min(limit), self.connected()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(Refusal::ForNow(what) | Refusal::ForGood(what))) => return Err(failed(&what)),
            Err(_) => return Err(failed("the mail server did not respond in time")),
        };
        let session = Session {
            connection,
            timeout: self.timeout,
        };
        session.abandon().await;
        let encryption = match self.encryption {
            Encryption::Tls => "with TLS",
            Encryption::StartTls => "with STARTTLS",
            Encryption::None => "without encryption",
        };
        let password = match self.credentials {
            Some(_) => "it accepts the password",
            None => "no password is set",
        };
        Ok(format!(
            "connected to {host}, port {port}, {encryption}; {password}; no email was sent"
        ))
    }

    /// Connects, and tells the server from whom and to whom a message is.
    pub(super) async fn announce(&self, envelope: &Envelope) -> Result<Session, Refusal> {
        timeout(self.timeout, self.announced(envelope))
            .await
            .unwrap_or_else(|_| {
                Err(Refusal::ForNow(
                    "the mail server did not respond in time".to_owned(),
                ))
            })
    }

    async fn announced(&self, envelope: &Envelope) -> Result<Session, Refusal> {
        let mut connection = self.connected().await?;
        if let Err(error) = connection
            .command(Mail::new(envelope.from().cloned(), Vec::new()))
            .await
        {
            return Err(refused("the sender", &error));
        }
        for recipient in envelope.to() {
            let command = Rcpt::new(recipient.clone(), Vec::new());
            if let Err(error) = connection.command(command).await {
                return Err(refused("the recipient", &error));
            }
        }
        Ok(Session {
            connection,
            timeout: self.timeout,
        })
    }

    /// Whatever goes wrong here isn't about the message, so a later attempt may succeed.
    async fn connected(&self) -> Result<AsyncSmtpConnection, Refusal> {
        let implicit = (self.encryption == Encryption::Tls).then(|| self.tls.clone());
        let address = (self.host.as_str(), self.port);
        let mut connection =
            AsyncSmtpConnection::connect_tokio1(address, None, &self.hello, implicit, None)
                .await
                .map_err(|error| Refusal::ForNow(what_failed("the connection", &error)))?;
        if self.encryption == Encryption::StartTls {
            connection
                .starttls(self.tls.clone(), &self.hello)
                .await
                .map_err(|error| Refusal::ForNow(what_failed("STARTTLS", &error)))?;
        }
        if let Some(credentials) = &self.credentials {
            connection
                .auth(DEFAULT_MECHANISMS, credentials)
                .await
                .map_err(|error| Refusal::ForNow(what_failed("the authentication", &error)))?;
        }
        Ok(connection)
    }
}

impl Session {
    /// Sends the message's content.
    pub async fn send(mut self, content: &[u8]) -> Delivery {
        // 354: the server is waiting for the content, and has got nothing of it.
        match timeout(self.timeout, self.connection.command(Data)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Delivery::Refused(refused("the message", &error)),
            Err(_) => {
                return Delivery::Refused(Refusal::ForNow(
                    "the mail server did not respond in time".to_owned(),
                ));
            }
        }
        match timeout(self.timeout, self.connection.message(content)).await {
            Ok(Ok(_)) => {
                // The connection is closed in any case.
                let _ = timeout(GOODBYE, self.connection.quit()).await;
                Delivery::Accepted
            }
            Ok(Err(error)) if error.status().is_some() => {
                Delivery::Refused(refused("the message", &error))
            }
            Ok(Err(error)) => Delivery::Unknown(what_failed("the response to the message", &error)),
            Err(_) => Delivery::Unknown(
                "the mail server did not respond in time to the message".to_owned(),
            ),
        }
    }

    /// Closes the connection without sending anything.
    pub async fn abandon(mut self) {
        let _ = timeout(GOODBYE, self.connection.abort()).await;
    }
}

/// Whether a response to a command refuses it for good.
fn refused(what: &str, error: &Error) -> Refusal {
    match error.status() {
        Some(code) if error.is_permanent() => {
            Refusal::ForGood(format!("the mail server refused {what} ({code})"))
        }
        Some(code) => Refusal::ForNow(format!(
            "the mail server did not accept {what} for now ({code})"
        )),
        None => Refusal::ForNow(what_failed("the connection", error)),
    }
}

/// What failed, without what the mail server said.
fn what_failed(what: &str, error: &Error) -> String {
    match error.status() {
        Some(code) => format!("{what} failed: the mail server responded with {code}"),
        // A response that isn't SMTP is part of the error's text.
        None if error.is_response() => {
            format!("{what} failed: the mail server's response makes no sense")
        }
        None => format!("{what} failed: {error}"),
    }
}
