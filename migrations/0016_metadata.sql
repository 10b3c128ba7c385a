-- no-transaction
-- Links by their metadata.
CREATE INDEX CONCURRENTLY IF NOT EXISTS payment_links_metadata ON payment_links
    USING gin ((request -> 'metadata') jsonb_path_ops) WITH (fastupdate = off);
