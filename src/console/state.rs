//! What the console's handlers share.

use std::{ops::Deref, sync::Arc, time::Duration};

use axum::{Router, http::HeaderMap};
use tokio_util::task::TaskTracker;

use super::{
    attempts::Attempts,
    dojo_checks::{DojoChecks, Outside},
    person::cookie_name,
    readings::Readings,
    waiting::Waiting,
};
use crate::{
    api::AppState,
    config::{AuthenticatingProxy, ConsoleSettings, ConsoleUrl},
    store::console_sessions::SessionLimits,
};

/// What the console's handlers share.
#[derive(Clone)]
pub(super) struct Console(Arc<Shared>);

/// The contents of [`Console`].
pub(super) struct Shared {
    pub(super) state: AppState,
    /// The routes of the API, which the console calls.
    pub(super) api: Router,
    /// The address at which people open the console, if it is set.
    pub(super) url: Option<ConsoleUrl>,
    pub(super) limits: SessionLimits,
    /// The amount in minor units above which an operation needs a second person.
    pub(super) approval_limit: Option<i64>,
    pub(super) approval_expiry: Duration,
    /// The proxy that authenticates people, if there is one.
    pub(super) proxy: Option<AuthenticatingProxy>,
    /// The attempts to sign in.
    pub(super) attempts: Attempts,
    /// What the health page has found out lately.
    pub(super) readings: Readings,
    pub(super) dojo_checks: DojoChecks,
    /// The pages that wait for something to happen.
    pub(super) waiting: Waiting,
    /// Work that goes on when its person has disconnected, and that a shutdown waits for.
    pub(super) tasks: TaskTracker,
}

impl Console {
    pub(super) fn new(
        state: AppState,
        api: Router,
        settings: &ConsoleSettings,
        proxy: Option<AuthenticatingProxy>,
        outside: Outside,
        tasks: TaskTracker,
    ) -> Self {
        Self(Arc::new(Shared {
            readings: Readings::default(),
            dojo_checks: DojoChecks::new(state.clone(), outside),
            state,
            api,
            url: settings.url.clone(),
            limits: SessionLimits {
                idle: settings.session_idle,
                max: settings.session_max,
            },
            approval_limit: settings.approval_limit,
            approval_expiry: settings.approval_expiry,
            proxy,
            attempts: Attempts::default(),
            waiting: Waiting::default(),
            tasks,
        }))
    }

    /// The name of the cookie with the session's token, for whoever sent these headers.
    pub(super) fn cookie_name(&self, headers: &HeaderMap) -> &'static str {
        cookie_name(self.url.as_ref(), headers)
    }
}

impl Deref for Console {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}
