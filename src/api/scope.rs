//! The scopes of API keys, as types.

use crate::api_key::Scope;

/// A scope as a type, so that a handler's signature says which scope it requires.
pub(crate) trait RequiredScope {
    const SCOPE: Scope;
}

#[derive(Debug, Clone)]
pub(crate) struct LinksRead;

impl RequiredScope for LinksRead {
    const SCOPE: Scope = Scope::LinksRead;
}

#[derive(Debug, Clone)]
pub(crate) struct LinksWrite;

impl RequiredScope for LinksWrite {
    const SCOPE: Scope = Scope::LinksWrite;
}

#[derive(Debug, Clone)]
pub(crate) struct LinksSend;

impl RequiredScope for LinksSend {
    const SCOPE: Scope = Scope::LinksSend;
}

#[derive(Debug, Clone)]
pub(crate) struct EventsRead;

impl RequiredScope for EventsRead {
    const SCOPE: Scope = Scope::EventsRead;
}

#[derive(Debug, Clone)]
pub(crate) struct PaymentsManage;

impl RequiredScope for PaymentsManage {
    const SCOPE: Scope = Scope::PaymentsManage;
}

#[derive(Debug, Clone)]
pub(crate) struct CallbacksManage;

impl RequiredScope for CallbacksManage {
    const SCOPE: Scope = Scope::CallbacksManage;
}

#[derive(Debug, Clone)]
pub(crate) struct DataErase;

impl RequiredScope for DataErase {
    const SCOPE: Scope = Scope::DataErase;
}
