\set link random(1, :links)
\set event random(1, 9223372036854775807)
WITH link AS (
    UPDATE payment_links
    SET status = 'Captured', due_at = now(), revision = revision + 1, updated_at = now()
    WHERE id = (lpad(to_hex(:epoch::bigint + :link::bigint * 2500), 12, '0') || '70008000000000000000')::uuid
    RETURNING id, payment_intent_id
), event AS (
    INSERT INTO webhook_events
        (account, dedup_key, body, payment_intent_id, event_type, payment_status, dojo_created_at, payment_link_id)
    SELECT 'default', 'evt_' || :event::text,
           convert_to(
               '{"id":"evt_' || :event::text || '","event":"payment_intent.status_updated",'
               || '"accountId":"acc_sandbox_0123456789abcdef","createdAt":"2026-01-31T10:46:46.3202622Z",'
               || '"data":{"paymentIntentId":"' || payment_intent_id || '","paymentStatus":"Captured","captureMode":"Auto"}}',
               'UTF8'),
           payment_intent_id, 'payment_intent.status_updated', 'Captured', now(), id
    FROM link
)
INSERT INTO payment_link_events (payment_link_id, kind, status_before, status_after, cause, detail)
SELECT id, 'webhook', 'Created', 'Captured',
       jsonb_build_object('type', 'webhook', 'eventId', 'evt_' || :event::text),
       '{"verdict": "applied", "reported": "Captured", "event": "payment_intent.status_updated"}'
FROM link;
