-- no-transaction
-- Links whose status Dojo hasn't confirmed, the one that has waited longest first. Nearly all are confirmed within seconds, so
-- there are few at any time.
CREATE INDEX CONCURRENTLY IF NOT EXISTS payment_links_unconfirmed ON payment_links (updated_at, id)
    WHERE payment_intent_id IS NOT NULL AND (unsettled_status IS NOT NULL OR dojo_status <> status);
