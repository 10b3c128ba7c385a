-- no-transaction
-- Links by the email address that they are sent to, for the same purpose.
CREATE INDEX CONCURRENTLY IF NOT EXISTS payment_links_recipient ON payment_links (lower(request #>> '{send,email}'))
    WHERE request #>> '{send,email}' IS NOT NULL;
