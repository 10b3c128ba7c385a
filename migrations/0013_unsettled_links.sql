-- no-transaction
-- Links whose creation isn't resolved, by account. Without this index, claiming them reads past every other link that is
-- due.
--
-- The index is built concurrently, so that webhooks don't wait for it. That can't run in a transaction. An attempt that was
-- cut short leaves an invalid index behind, which `store::migrate` drops first. On a large database an operator may have
-- built the index before the upgrade.
CREATE INDEX CONCURRENTLY IF NOT EXISTS payment_links_unsettled ON payment_links (account, due_at)
    WHERE due_at IS NOT NULL AND status IN ('Pending', 'Failed');
