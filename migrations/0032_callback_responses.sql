-- no-transaction
-- What receivers of callbacks responded, by link.
CREATE INDEX CONCURRENTLY IF NOT EXISTS callback_deliveries_responses ON callback_deliveries (payment_link_id)
    WHERE response_body IS NOT NULL;
