use clap::Args;
use time::{Time, macros::format_description};

use super::{ConfigError, error::Expected};
use crate::payment_link::movement::{BusinessDays, MetadataKeys};

/// The settings of the books.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Books")]
pub struct BookSettings {
    /// The time zone of business days, by a name that Postgres knows. What is already booked stays on its day.
    #[arg(
        long,
        env = "BUSINESS_TIME_ZONE",
        default_value = "Europe/London",
        value_name = "NAME",
        value_parser = time_zone
    )]
    business_time_zone: String,

    /// The local time at which a business day ends, such as `03:00`, which ends it in the following night, or `22:00`, which
    /// ends it in the evening. What is already booked stays on its day.
    #[arg(long, env = "BUSINESS_DAY_CUTOFF", default_value = "00:00", value_name = "TIME", value_parser = time_of_day)]
    business_day_cutoff: Time,

    /// Whether to compare the books of each business day with Dojo's list of transactions, a few hours after its end. The
    /// account's Dojo API key must be permitted to read transactions.
    #[arg(long, env = "RECONCILE_TRANSACTIONS", default_value_t = true, value_name = "BOOL", action = clap::ArgAction::Set)]
    reconcile_transactions: bool,

    /// The metadata entries of links that movements are shown with, by their keys, separated by commas. A request or a person
    /// can ask for others: the books have them all.
    #[arg(long, env = "BOOKS_METADATA", default_value = "", hide_default_value = true, value_name = "KEYS", value_parser = metadata_keys)]
    books_metadata: MetadataKeys,
}

impl BookSettings {
    /// The business days, if they are compared with Dojo's transactions.
    #[must_use]
    pub fn reconciled_days(&self) -> Option<BusinessDays> {
        self.reconcile_transactions.then(|| self.days())
    }

    /// The metadata entries that movements are shown with, unless others are asked for.
    #[must_use]
    pub fn metadata(&self) -> &MetadataKeys {
        &self.books_metadata
    }

    #[must_use]
    pub fn days(&self) -> BusinessDays {
        BusinessDays {
            time_zone: self.business_time_zone.clone(),
            cutoff: self.business_day_cutoff,
        }
    }

    /// The problem if Postgres doesn't know the time zone.
    #[must_use]
    pub fn unknown_time_zone(&self) -> ConfigError {
        let name = &self.business_time_zone;
        ConfigError::new(
            "BUSINESS_TIME_ZONE",
            format!("is {name}, which Postgres does not know: use a name such as Europe/London"),
        )
    }
}

/// Checks the form only. Which names there are depends on the version of Postgres and on its machine, so only Postgres knows.
fn time_zone(text: &str) -> Result<String, Expected> {
    let name = text.trim();
    let is_part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_+-".contains(&byte))
    };
    if name.starts_with(|first: char| first.is_ascii_alphabetic()) && name.split('/').all(is_part) {
        Ok(name.to_owned())
    } else {
        Err(Expected::new(
            "the name of a time zone such as Europe/London",
        ))
    }
}

fn time_of_day(text: &str) -> Result<Time, Expected> {
    Time::parse(text.trim(), format_description!("[hour]:[minute]"))
        .map_err(|_| Expected::new("a local time such as 03:00 or 22:00"))
}

fn metadata_keys(text: &str) -> Result<MetadataKeys, Expected> {
    MetadataKeys::typed(text).ok_or_else(|| {
        Expected::new("up to 20 keys of metadata entries such as costCentre,order, each of up to 100 characters")
    })
}
