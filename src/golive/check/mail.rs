use super::report::{Checks, LIMIT, Name};
use crate::mail::Mailer;

/// Connects to the mail server and logs in, as for an email, but sends none.
pub(super) async fn check(mailer: &Mailer) -> Checks {
    let mut checks = Checks::new();
    match mailer.probe(LIMIT).await {
        Ok(connection) => checks.pass(Name::MailServer, connection),
        Err(problem) => checks.fail(
            Name::MailServer,
            problem,
            "correct the host, the port, the encryption or the password in SMTP_URL, or let this machine reach the mail server",
        ),
    }
    checks
}
