// Takes a payment by link, refunds half of it, and reads what happened.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

import { connect, send, unwrap, type PaymentLink, type Result } from "./client.ts";
import * as sandbox from "./sandbox.ts";

const client = connect();

/** Requests a link. However often this is called with the same key, there is one link. */
function createLink(key: string, reference: string, value: number): Promise<PaymentLink> {
  return send(() =>
    client.POST("/v1/payment-links", {
      params: { header: { "Idempotency-Key": key } },
      body: {
        amount: { value, currencyCode: "GBP" },
        reference,
        metadata: { order: reference, value: String(value) },
      },
    }),
  );
}

/** Waits until the link is paid. A response is empty as long as nothing has changed. */
async function untilPaid(id: string): Promise<PaymentLink> {
  let etag: string | null = null;
  for (const deadline = Date.now() + 60_000; Date.now() < deadline; await sleep(500)) {
    const result: Result<PaymentLink> = await client.GET("/v1/payment-links/{id}", {
      params: { path: { id }, header: etag === null ? {} : { "If-None-Match": etag } },
    });
    if (result.response.status === 304) continue;
    const link = unwrap(result);
    // A webhook alone changes the status. `confirmed` means that Dojo reported it to the service, too.
    if (link.status === "Captured" && link.confirmed) return link;
    etag = result.response.headers.get("etag");
  }
  throw new Error(`${id} was not paid in time`);
}

/** Every link with this reference, newest first. */
async function* links(reference: string): AsyncGenerator<PaymentLink> {
  let after: string | undefined;
  for (;;) {
    const query = { reference, limit: 2, ...(after !== undefined && { after }) };
    const page = await send(() => client.GET("/v1/payment-links", { params: { query } }));
    yield* page.data;
    if (!page.hasMore) return;
    after = page.after;
  }
}

const order = `order-${randomUUID()}`;

const link = await createLink(`${order}-1`, order, 2450);
assert.equal(link.status, "Created");
assert.ok(link.url, "the URL to send to the customer");
const repeated = await createLink(`${order}-1`, order, 2450);
assert.equal(repeated.id, link.id, "a retry gets the same link");
console.log(`  created    ${link.id} ${link.url}`);

await sandbox.pay(link.paymentIntentId);
const paid = await untilPaid(link.id);
assert.equal(paid.capturedAmount.value, 2450);
console.log(`  paid       ${paid.capturedAmount.value} by card …${paid.payment?.last4}`);

// If nothing has changed since a response, its ETag gets a 304.
const read = await client.GET("/v1/payment-links/{id}", { params: { path: { id: link.id } } });
const unchanged = await client.GET("/v1/payment-links/{id}", {
  params: { path: { id: link.id }, header: { "If-None-Match": read.response.headers.get("etag") ?? "" } },
});
assert.equal(unchanged.response.status, 304);

for (const n of [2, 3, 4, 5]) await createLink(`${order}-${n}`, order, 100 * n);
const listed: PaymentLink[] = [];
for await (const item of links(order)) listed.push(item);
assert.deepEqual(listed.map(({ amount }) => amount.value), [500, 400, 300, 200, 2450]);
console.log(`  listed     ${listed.length} links in pages of 2`);

const metadata = [`order:${order}`, "value:400"];
const byMetadata = await send(() => client.GET("/v1/payment-links", { params: { query: { metadata } } }));
assert.deepEqual(byMetadata.data.map(({ amount }) => amount.value), [400]);

const refunded = await send(() =>
  client.POST("/v1/payment-links/{id}/refunds", {
    params: { path: { id: link.id }, header: { "Idempotency-Key": `${order}-refund` } },
    body: { amount: { value: 1225, currencyCode: "GBP" }, refundReason: "Returned goods" },
  }),
);
const { operation } = refunded;
assert.equal(operation.status, "Succeeded");
assert.equal(refunded.refundableAmount.value, 1225);
console.log(`  refunded   ${operation.id}: ${refunded.refundedAmount.value}, left: ${refunded.refundableAmount.value}`);

const timeline = await send(() =>
  client.GET("/v1/payment-links/{id}/events", { params: { path: { id: link.id } } }),
);
for (const entry of timeline.data) {
  // `type` tells the compiler what `detail` contains.
  const why = entry.type === "webhook" ? ` (${entry.detail.event}: ${entry.detail.verdict})` : "";
  console.log(`  timeline   ${entry.occurredAt} ${entry.type} ${entry.statusAfter}${why}`);
}
assert.ok(timeline.data.some(({ type, statusAfter }) => type === "webhook" && statusAfter === "Captured"));
const succeeded = timeline.data.find((entry) => entry.type === "operationSucceeded");
assert.equal(succeeded?.detail.operationId, operation.id);

const ofLink = await send(() =>
  client.GET("/v1/payment-links/{id}/operations", { params: { path: { id: link.id } } }),
);
assert.deepEqual(ofLink.data, [operation]);

const newest = await send(() =>
  client.GET("/v1/operations", { params: { query: { status: ["Succeeded"], limit: 1 } } }),
);
assert.equal(newest.data[0]?.status, "Succeeded");

const found = await send(() => client.GET("/v1/operations/{id}", { params: { path: { id: operation.id } } }));
assert.ok(found.type === "refund", "`type` tells the compiler what `request` contains");
assert.equal(found.request.amount?.value, 1225);
console.log(`  operation  ${found.id} by ${found.createdBy}: ${found.status}`);
