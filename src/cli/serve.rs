use clap::Args;
use dojo_payment_links::{
    application::{Application, StartError, stop_signal},
    config::{ConfigError, ServeSettings},
    dojo::Accounts,
    mail::Mailer,
    store::PgPool,
};

use super::outcome::Result;

/// Run the service.
#[derive(Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    settings: ServeSettings,
}

impl Serve {
    pub(super) async fn run(&self) -> Result {
        let application = match Application::build(&self.settings).await {
            Ok(application) => application,
            Err(StartError::Config(error)) => return Err(error.into()),
            Err(error) => return Err(error.into()),
        };
        Ok(application.run(stop_signal()).await?)
    }

    pub(super) fn validate(&self, error: &mut ConfigError) {
        validate(&self.settings, error);
    }
}

/// Adds everything that is wrong with the settings of `serve`.
pub(super) fn validate(settings: &ServeSettings, error: &mut ConfigError) {
    let accounts = error.keep(Accounts::from_settings(&settings.dojo));
    let accounts = accounts.as_ref().map(Accounts::names);
    error.keep(PgPool::new(&settings.database));
    error.keep(settings.bootstrap_api_key());
    error.keep(settings.check_listen_addresses());
    error.keep(settings.public_url.get());
    error.keep(settings.console.proxy(accounts.as_deref()));
    error.keep(Mailer::from_settings(&settings.mail));
}
