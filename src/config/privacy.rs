use clap::Args;

use super::error::Expected;
use crate::payment_link::erasure::PersonalMetadata;

/// The settings of erasing personal data.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Privacy")]
pub struct PrivacySettings {
    /// The keys of the metadata entries that contain personal data, separated by commas. They are erased together with the
    /// customer, addresses and everything else that is personal. Set the same for `serve`, `erase` and `prune`.
    #[arg(long, env = "PERSONAL_METADATA", default_value = "", hide_default_value = true, value_name = "KEYS",
          value_parser = metadata_keys)]
    pub personal_metadata: PersonalMetadata,
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "clap's parsers return a result, and every text is a list of keys"
)]
fn metadata_keys(text: &str) -> Result<PersonalMetadata, Expected> {
    let keys = text.split(',').map(str::trim).filter(|key| !key.is_empty());
    Ok(keys.map(str::to_owned).collect())
}
