use std::sync::LazyLock;

use sqlx::migrate::Migrator;

/// Ignores migrations that a later version has added: during an upgrade, a replica of the previous version may still
/// restart.
pub(super) static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!();
    migrator.set_ignore_missing(true);
    // `take_turns` does the locking.
    migrator.set_locking(false);
    migrator
});
