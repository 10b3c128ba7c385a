use clap::{Args, Subcommand, ValueEnum};
use dojo_payment_links::{
    config::{DatabaseSettings, Expected},
    payment_link::{OperationId, timeline::Cause},
    protocol::operation_recovery::{Finding, settle},
    store::{self, PgPool},
};
use time::format_description::well_known::Rfc3339;

use super::{
    outcome::{Result, on_database},
    stdout::print,
};

/// List and settle captures, refunds and other operations whose outcome can't be determined automatically.
#[derive(Debug, Args)]
pub(super) struct Operations {
    #[command(flatten)]
    pub(super) database: DatabaseSettings,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the operations that are Unconfirmed: id, operation, amount, account, payment intent, link, client and time.
    Unconfirmed,
    /// Record the outcome of an Unconfirmed operation, after you have checked the payment in Dojo's portal.
    ///
    /// The amount of a refund that was not done can be refunded again.
    Settle {
        /// The operation's id, op_…
        #[arg(long, value_name = "ID", value_parser = operation_id)]
        id: OperationId,
        /// What the portal shows.
        #[arg(long)]
        outcome: Outcome,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Outcome {
    /// The operation was done.
    Done,
    /// The operation was not done.
    NotDone,
}

fn operation_id(text: &str) -> std::result::Result<OperationId, Expected> {
    text.parse()
        .map_err(|_| Expected::new("the id of an operation, op_…"))
}

impl Operations {
    pub(super) async fn run(self) -> Result {
        on_database(&self.database, async |pool| match self.command {
            Command::Unconfirmed => list_unconfirmed(pool).await,
            Command::Settle { id, outcome } => {
                let finding = match outcome {
                    Outcome::Done => Finding::Performed,
                    Outcome::NotDone => Finding::NotPerformed,
                };
                if settle(pool, id, finding, &Cause::Operator).await? {
                    let what = match outcome {
                        Outcome::Done => "done",
                        Outcome::NotDone => "not done",
                    };
                    eprintln!("Operation {id} is recorded as {what}.");
                    Ok(())
                } else {
                    Err(format!("there is no Unconfirmed operation {id}").into())
                }
            }
        })
        .await
    }
}

async fn list_unconfirmed(pool: &PgPool) -> Result {
    let operations = store::operation_recovery::unconfirmed(pool).await?;
    if operations.is_empty() {
        eprintln!("No operation is Unconfirmed.");
    }
    for operation in operations {
        print(format_args!(
            "{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\n",
            operation.id,
            operation.action.kind().as_str(),
            operation
                .action
                .amount()
                .map_or_else(|| "-".to_owned(), |amount| amount.to_string()),
            operation.account,
            operation.payment_intent_id,
            operation.link_id,
            operation.created_by,
            operation.created_at.format(&Rfc3339)?
        ))?;
    }
    Ok(())
}
