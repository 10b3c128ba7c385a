-- no-transaction
-- Links for which Dojo reports another amount than the one that was requested, newest first.
CREATE INDEX CONCURRENTLY IF NOT EXISTS payment_links_mismatch ON payment_links (created_at DESC, id DESC)
    WHERE mismatch IS NOT NULL;
