-- Separates a status that Dojo itself reported from one that only a webhook reported, and keeps reading links after a
-- partial refund.

-- Dojo may call a payment `Refunded` after a partial refund. The rest can still be refunded, so these links are read
-- again. This comes before the ALTER TABLE, so that its lock isn't held while rows are rewritten. A transaction that locks
-- one of these rows can deadlock with the ALTER TABLE; `store::migrate` then tries again.
UPDATE payment_links SET due_at = now() + random() * interval '1 hour'
WHERE status = 'Refunded' AND due_at IS NULL AND refunded_amount < coalesce(total_amount, amount);

-- From here on, `dojo_status` is the status in the newest response from Dojo that was accepted, and always one that this
-- version knows. `unsettled_status` is the status in Dojo's latest response if that one didn't settle the link's status:
-- because it contradicts what is stored, or because the status is unknown. NULL: `dojo_status` is the latest.
ALTER TABLE payment_links ADD COLUMN unsettled_status text;
