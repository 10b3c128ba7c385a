-- no-transaction
-- Links by their customer's email address.
CREATE INDEX CONCURRENTLY IF NOT EXISTS payment_links_customer_email
    ON payment_links (lower(request #>> '{customer,emailAddress}'), created_at DESC, id DESC)
    WHERE request #>> '{customer,emailAddress}' IS NOT NULL;
