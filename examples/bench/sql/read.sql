\set link random(1, :links)
SELECT * FROM payment_links
WHERE id = (lpad(to_hex(:epoch::bigint + :link::bigint * 2500), 12, '0') || '70008000000000000000')::uuid;
