-- no-transaction
-- Links by the start of their reference.
CREATE INDEX CONCURRENTLY IF NOT EXISTS payment_links_reference_prefix
    ON payment_links (reference text_pattern_ops);
