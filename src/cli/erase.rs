use std::process::ExitCode;

use clap::Args;
use dojo_payment_links::{
    config::{DatabaseSettings, Expected, PrivacySettings},
    payment_link::{PaymentLinkId, erasure::NotErasable, timeline::Cause},
    store::{PgPool, erasure},
};
use secrecy::{ExposeSecret, SecretString};

use super::{
    outcome::{Result, on_database},
    stdout::print,
};

/// Erase the personal data of a link, or of every link of a customer.
///
/// Keeps amounts, statuses, times and whatever else the books need. A link isn't erased while something about it is open: its
/// payment, an operation, or a message that is being sent. Prints each link and what happened, and exits with 1 unless all of
/// them are erased. Can be run again at any time. Dojo's own copy, backups and logs are not affected.
#[derive(Debug, Args)]
pub(super) struct Erase {
    #[command(flatten)]
    pub(super) database: DatabaseSettings,

    #[command(flatten)]
    privacy: PrivacySettings,

    #[command(flatten)]
    which: Which,

    /// Only print what would happen.
    #[arg(long)]
    dry_run: bool,
}

/// Exactly one of them.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Erase this link, plink_…
    #[arg(long, value_name = "ID", value_parser = link_id)]
    link: Option<PaymentLinkId>,

    /// Erase every link whose customer has this email address, or that was sent to it. Upper and lower case make no difference.
    #[arg(long, value_name = "ADDRESS")]
    email: Option<SecretString>,
}

fn link_id(text: &str) -> std::result::Result<PaymentLinkId, Expected> {
    text.parse()
        .map_err(|_| Expected::new("the id of a payment link, plink_…"))
}

impl Erase {
    pub(super) async fn run(self) -> Result<ExitCode> {
        let mut all_erased = true;
        on_database(&self.database, async |pool| {
            let links = self.links(pool).await?;
            if links.is_empty() {
                eprintln!("There is no link of this customer.");
            }
            for id in links {
                let (is_erased, what) = match self.erase(pool, id).await {
                    // The others are erased all the same.
                    Err(error) if self.which.email.is_some() => {
                        (false, format!("not erased: {error}"))
                    }
                    Err(error) => return Err(error),
                    Ok(erased) => match erased {
                        None => return Err(format!("there is no link {id}").into()),
                        Some(Ok(true)) => (true, "was erased before".to_owned()),
                        Some(Ok(false)) if self.dry_run => (true, "would be erased".to_owned()),
                        Some(Ok(false)) => (true, "erased".to_owned()),
                        Some(Err(why)) => (false, format!("not erased: {why}")),
                    },
                };
                all_erased &= is_erased;
                print(format_args!("{id}\t{what}\n"))?;
            }
            Ok(())
        })
        .await?;
        Ok(if all_erased {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    async fn links(&self, pool: &PgPool) -> Result<Vec<PaymentLinkId>> {
        let email = self.which.email.as_ref();
        Ok(match email.map(|email| email.expose_secret().trim()) {
            // Most likely a variable that isn't set. It must not look as if there was nothing to erase.
            Some("") => return Err("--email must not be empty".into()),
            Some(email) => erasure::links_of_email(pool, email).await?,
            None => self.which.link.into_iter().collect(),
        })
    }

    /// Returns whether the link had been erased before.
    async fn erase(
        &self,
        pool: &PgPool,
        id: PaymentLinkId,
    ) -> Result<Option<std::result::Result<bool, NotErasable>>> {
        if self.dry_run {
            return Ok(erasure::check(pool, id).await?);
        }
        let personal = &self.privacy.personal_metadata;
        let erased = erasure::erase(pool, id, personal, &Cause::Operator).await?;
        Ok(erased.map(|erased| erased.map(|erased| erased.again)))
    }
}
