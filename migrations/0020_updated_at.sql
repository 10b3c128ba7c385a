-- no-transaction
-- Links in the order of their changes.
CREATE INDEX CONCURRENTLY IF NOT EXISTS payment_links_updated_at ON payment_links (updated_at, id);
