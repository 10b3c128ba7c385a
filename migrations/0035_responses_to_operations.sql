-- no-transaction
-- The same for operations.
CREATE INDEX CONCURRENTLY IF NOT EXISTS operations_responses ON operations (created_at)
    WHERE response_body IS NOT NULL;
