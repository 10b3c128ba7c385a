-- no-transaction
-- Keys that were left free again, by the link of the operation that they were for.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idempotency_keys_freed ON idempotency_keys (freed_from)
    WHERE freed_from IS NOT NULL;
