-- no-transaction
-- What an endpoint got about one link, newest event first.
CREATE INDEX CONCURRENTLY IF NOT EXISTS callback_deliveries_of_link
    ON callback_deliveries (payment_link_id, endpoint_id, position);
