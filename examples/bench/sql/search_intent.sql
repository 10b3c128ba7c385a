\set link random(1, :links)
SELECT * FROM payment_links
WHERE payment_intent_id = 'pi_sandbox_bench_' || lpad((:link::bigint)::text, 16, '0');
