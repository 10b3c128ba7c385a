-- no-transaction
-- Links whose creation is not settled, account by account: their claim would otherwise read past every other link that is
-- due. Built beside running writes, which webhooks must not wait for; that cannot be done in a transaction. An attempt that
-- was cut short leaves an invalid index behind, which `store::migrate` drops before it tries again.
CREATE INDEX CONCURRENTLY payment_links_unsettled ON payment_links (account, due_at)
    WHERE due_at IS NOT NULL AND status IN ('Pending', 'Failed');
