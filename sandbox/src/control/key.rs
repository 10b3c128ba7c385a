//! Which account a request of the control API means.

use crate::account::Account;
use crate::app_state::AppState;
use crate::problem::Problem;

/// The account of a key. Default: the first key that the sandbox accepts.
pub(super) fn account(state: &AppState, api_key: Option<&str>) -> Result<Account, Problem> {
    let first = || state.api_keys.first().map(String::as_str);
    api_key.or_else(first).map(Account::of_key).ok_or_else(|| {
        Problem::bad_request("apiKey is required, because this sandbox accepts any key.")
    })
}
