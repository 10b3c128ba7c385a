-- no-transaction
-- The responses that versions before migration 14 stored, oldest first. They expire, and then the index is empty.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idempotency_keys_responses ON idempotency_keys (created_at)
    WHERE response_body IS NOT NULL;
