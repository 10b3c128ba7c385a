-- no-transaction
-- Operations whose outcome isn't known, for the list of them.
CREATE INDEX CONCURRENTLY IF NOT EXISTS operations_open ON operations (status, id)
    WHERE status IN ('Pending', 'Unconfirmed');
