-- no-transaction
-- Payments of surplus intents, which a person must refund.
CREATE INDEX CONCURRENTLY IF NOT EXISTS payment_link_events_surplus_paid ON payment_link_events (id)
    WHERE kind = 'surplusPaid';
