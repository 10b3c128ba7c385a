use std::{process::ExitCode, time::Duration};

use clap::Args;
use dojo_payment_links::{
    config::{BookSettings, ConfigError, DatabaseSettings, DojoSettings, Expected},
    dojo::{Account, Accounts},
    payment_link::{
        daily_reconciliation::{Comparison, Difference},
        parse_day,
    },
    protocol::{
        self,
        daily_reconciliation::{compare_day, list},
    },
    store::{self, PgPool},
    telemetry,
};
use time::Date;

use super::{
    accounts::choose,
    outcome::{Result, on_database},
    stdout::print,
};

/// The most days that one run compares.
const MAX_DAYS: i64 = 366;

/// The pause before each call, so that Dojo doesn't throttle the account.
const PAUSE: Duration = Duration::from_millis(50);

/// Compare the books of business days with Dojo's list of transactions, as the service does every night.
///
/// Prints the result of each day, with a line for each difference, and stores it, so that the API shows it. Exits with 1 unless
/// the books agree with Dojo. An Unconfirmed operation becomes Succeeded if one of Dojo's transactions can only be its result.
/// Can be run again at any time. Run it with the settings of `serve`.
#[derive(Debug, Args)]
pub(super) struct Reconcile {
    #[command(flatten)]
    database: DatabaseSettings,

    #[command(flatten)]
    dojo: DojoSettings,

    #[command(flatten)]
    books: BookSettings,

    /// The first business day, such as 2026-01-31.
    #[arg(long, value_name = "DAY", value_parser = day)]
    from: Date,

    /// The last business day. Default: the same as `--from`.
    #[arg(long, value_name = "DAY", value_parser = day)]
    to: Option<Date>,

    /// The account. Default: all accounts.
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
}

fn day(text: &str) -> std::result::Result<Date, Expected> {
    parse_day(text).ok_or_else(|| Expected::new("a date such as 2026-01-31"))
}

impl Reconcile {
    pub(super) async fn run(self) -> Result<ExitCode> {
        let accounts = Accounts::from_settings(&self.dojo)?;
        let name = self.account.as_deref();
        let chosen: Vec<_> = match name {
            Some(_) => vec![choose(&accounts, name)?],
            None => accounts.iter().collect(),
        };
        let (from, to) = (self.from, self.to.unwrap_or(self.from));
        if to < from || (to - from).whole_days() >= MAX_DAYS {
            return Err("--to must be a day from --from on, and at most a year later".into());
        }
        let mut agrees = true;
        on_database(&self.database, async |pool| {
            let time_zone = self.books.days().time_zone;
            if !store::movements::knows_time_zone(pool, &time_zone).await? {
                return Err(self.books.unknown_time_zone().into());
            }
            let mut day = Some(from);
            while let Some(current) = day.filter(|day| *day <= to) {
                for account in &chosen {
                    match self.compare(pool, account, current).await {
                        Ok(comparison) => {
                            agrees &= comparison.differences.is_empty();
                            report(current, &account.name, &comparison)?;
                        }
                        Err(protocol::Error::Store(error)) => return Err(error.into()),
                        // The other days and accounts are compared all the same.
                        Err(error) => {
                            agrees = false;
                            eprintln!("{current} {}: {}", account.name, telemetry::causes(&error));
                        }
                    }
                }
                day = current.next_day();
            }
            Ok(())
        })
        .await?;
        Ok(if agrees {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    async fn compare(
        &self,
        pool: &PgPool,
        account: &Account,
        day: Date,
    ) -> std::result::Result<Comparison, protocol::Error> {
        let days = self.books.days();
        let listed = list(pool, account, &days, day, || tokio::time::sleep(PAUSE)).await?;
        compare_day(pool, account, &days, &listed).await
    }

    pub(super) fn validate(&self, error: &mut ConfigError) {
        error.keep(PgPool::new(&self.database));
        error.keep(Accounts::from_settings(&self.dojo));
    }
}

fn report(day: Date, account: &str, comparison: &Comparison) -> Result {
    let state = if comparison.differences.is_empty() {
        "Agrees"
    } else {
        "Differs"
    };
    let (matched, differences) = (comparison.matched, comparison.differences.len());
    print(format_args!(
        "{day}\t{account}\t{state}\t{matched} matched\t{differences} differences\n"
    ))?;
    for difference in &comparison.differences {
        print(format_args!("{day}\t{account}\t{}\n", line(difference)))?;
    }
    Ok(())
}

/// A difference: its kind, the movement or `-`, and the transaction or `-`.
fn line(difference: &Difference) -> String {
    let movement = difference.movement.as_ref().map(|movement| {
        let (kind, amount) = (movement.kind.as_str(), movement.amount);
        format!("{kind} {amount} of {}", movement.payment_link_id)
    });
    let transaction = difference.transaction.as_ref().map(|transaction| {
        let (kind, status) = (&transaction.kind, &transaction.status);
        let (value, currency) = (transaction.amount.value, &transaction.amount.currency_code);
        format!("{kind} {status} {value} {currency} {}", transaction.id)
    });
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    format!(
        "{}\t{}\t{}",
        difference.kind.as_str(),
        or_none(movement),
        or_none(transaction)
    )
}
