\set link random(1, :links)
\set event random(1, 9223372036854775807)
WITH link AS (
    UPDATE bare_links SET status = 'Captured', updated_at = now() WHERE id = :link RETURNING id
), event AS (
    INSERT INTO bare_events (id, body, link_id)
    SELECT 'evt_' || :event::text,
           convert_to(
               '{"id":"evt_' || :event::text || '","event":"payment_intent.status_updated",'
               || '"accountId":"acc_sandbox_0123456789abcdef","createdAt":"2026-01-31T10:46:46.3202622Z",'
               || '"data":{"paymentIntentId":"pi_sandbox_0123456789abcdefghijkl","paymentStatus":"Captured","captureMode":"Auto"}}',
               'UTF8'),
           id
    FROM link
)
INSERT INTO bare_history (link_id, status_before, status_after, detail)
SELECT id, 'Created', 'Captured',
       '{"verdict": "applied", "reported": "Captured", "event": "payment_intent.status_updated"}'
FROM link;
