-- no-transaction
-- Links by their reference, or by its start. Replaces two indexes, which the next migration drops.
CREATE INDEX CONCURRENTLY IF NOT EXISTS payment_links_reference ON payment_links
    (reference text_pattern_ops, created_at DESC, id DESC);
