-- no-transaction
-- Links by their amount.
CREATE INDEX CONCURRENTLY IF NOT EXISTS payment_links_amount ON payment_links (amount, created_at DESC, id DESC);
