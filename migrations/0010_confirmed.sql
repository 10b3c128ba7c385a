-- Tells a status that Dojo itself answered from one that only a webhook reported, and watches partial refunds on.
SET LOCAL lock_timeout = '2s';

-- Dojo may call a payment `Refunded` after a partial refund. What is left can still go back, so these are read again.
-- Before the ALTER, so that the table is not locked while rows are rewritten.
UPDATE payment_links SET due_at = now() + random() * interval '1 hour'
WHERE status = 'Refunded' AND due_at IS NULL AND refunded_amount < coalesce(total_amount, amount);

-- `dojo_status` is the status in the newest answer of Dojo's that was accepted; from here on always a word that is known
-- here. This is Dojo's word in its latest answer, where that one did not settle the status: it is in dispute, or the word
-- is not known. NULL: `dojo_status` is the latest.
ALTER TABLE payment_links ADD COLUMN unsettled_status text;
