// A receiver of Dojo's webhooks as one would write it by hand, on the service's own tables: it checks the signature, stores
// the event, moves the link and records it, in one transaction.
//
// Settings: PORT, DATABASE_URL, WEBHOOK_SECRET
import { createHmac, timingSafeEqual } from 'node:crypto';
import Fastify from 'fastify';
import pg from 'pg';

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 20 });
const app = Fastify({ logger: true });

// The signature covers the exact bytes.
app.addContentTypeParser('application/json', { parseAs: 'buffer' }, (_request, body, done) => done(null, body));

function isGenuine(header, body) {
    const given = Buffer.from(String(header ?? '').replace(/^sha256=/, '').replaceAll('-', ''), 'hex');
    const expected = createHmac('sha256', process.env.WEBHOOK_SECRET).update(body).digest();
    return given.length === expected.length && timingSafeEqual(given, expected);
}

async function store(event, body) {
    const { paymentIntentId, paymentStatus } = event.data;
    const client = await pool.connect();
    try {
        await client.query('BEGIN');
        const moved = await client.query({
            name: 'move',
            text: `UPDATE payment_links
                   SET status = $2, due_at = now(), revision = revision + 1, updated_at = now()
                   WHERE payment_intent_id = $1 RETURNING id`,
            values: [paymentIntentId, paymentStatus],
        });
        const link = moved.rows[0]?.id;
        await client.query({
            name: 'event',
            text: `INSERT INTO webhook_events
                       (account, dedup_key, body, payment_intent_id, event_type, payment_status, dojo_created_at,
                        payment_link_id)
                   VALUES ('default', $1, $2, $3, $4, $5, $6, $7)`,
            values: [event.id, body, paymentIntentId, event.event, paymentStatus, event.createdAt, link],
        });
        await client.query({
            name: 'history',
            text: `INSERT INTO payment_link_events (payment_link_id, kind, status_before, status_after, cause, detail)
                   VALUES ($1, 'webhook', 'Created', $2, $3, $4)`,
            values: [
                link,
                paymentStatus,
                { type: 'webhook', eventId: event.id },
                { verdict: 'applied', reported: paymentStatus, event: event.event },
            ],
        });
        await client.query('COMMIT');
    } catch (error) {
        await client.query('ROLLBACK');
        throw error;
    } finally {
        client.release();
    }
}

app.post('/webhooks/dojo', async (request, reply) => {
    if (!isGenuine(request.headers['dojo-signature'], request.body)) {
        return reply.code(401).send();
    }
    await store(JSON.parse(request.body), request.body);
    return reply.code(204).send();
});

app.get('/readyz', async () => ({ status: 'ready' }));

await app.listen({ host: '127.0.0.1', port: Number(process.env.PORT) });
