// Provokes every problem that a caller can meet and a test can cause, and checks what the service says about it.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

import { ApiError, connect, send, setting, unwrap, type PaymentLink, type ProblemType, type Result } from "./client.ts";
import * as sandbox from "./sandbox.ts";

const client = connect();
const reader = connect(setting("READ_KEY"));
const pounds = (value: number) => ({ value, currencyCode: "GBP" }) as const;
const header = (key: string = randomUUID()) => ({ "Idempotency-Key": key });
const newLink = { amount: pounds(1000), reference: "Problems" };

const create = (key?: string, body = newLink, wait?: string) =>
  client.POST("/v1/payment-links", { params: { header: { ...header(key), ...(wait && { Prefer: wait }) } }, body });

const refund = (id: string, value: number, key?: string) =>
  client.POST("/v1/payment-links/{id}/refunds", {
    params: { path: { id }, header: header(key) },
    body: { amount: pounds(value) },
  });

async function paidLink(): Promise<PaymentLink> {
  const { id, paymentIntentId } = unwrap(await create());
  await sandbox.pay(paymentIntentId);
  for (let attempt = 0; attempt < 120; attempt++) {
    const link = unwrap(await client.GET("/v1/payment-links/{id}", { params: { path: { id } } }));
    if (link.status === "Captured" && link.confirmed) return link;
    await sleep(500);
  }
  throw new Error(`${id} was not paid in time`);
}

/** Checks that the response reports this problem. */
async function expect<T>(type: ProblemType, status: number, request: Promise<Result<T>>): Promise<ApiError> {
  try {
    unwrap(await request);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    assert.ok(error.is(type), `expected ${type}, not ${error.message}`);
    assert.equal(error.problem.status, status);
    assert.equal(error.response.status, status);
    assert.equal(error.response.headers.get("x-request-id"), error.problem.requestId);
    console.log(`  ${status} ${type}: ${error.problem.detail}`);
    return error;
  }
  throw new Error(`expected ${type}, but the request succeeded`);
}

/** A request that the typed client can't send. */
async function raw(method: string, path: string, body?: string, headers?: Record<string, string>): Promise<Result<never>> {
  const response = await fetch(setting("BASE_URL") + path, {
    method,
    headers: { Authorization: `Bearer ${setting("API_KEY")}`, "Content-Type": "application/json", ...headers },
    ...(body !== undefined && { body }),
  });
  return { error: await response.json(), response };
}

async function requests() {
  await expect("/docs/problems#malformed-json", 400, raw("POST", "/v1/payment-links", "{"));
  await expect(
    "/docs/problems#unsupported-media-type",
    415,
    raw("POST", "/v1/payment-links", "{}", { "Content-Type": "text/plain" }),
  );
  await expect("/docs/problems#body-too-large", 413, create(randomUUID(), { ...newLink, reference: "x".repeat(300_000) }));

  const notAllowed = await expect("/docs/problems#method-not-allowed", 405, raw("DELETE", "/v1/payment-links"));
  assert.match(notAllowed.response.headers.get("allow") ?? "", /POST/);

  const faulty = create(randomUUID(), { amount: pounds(0), reference: "" });
  const invalid = await expect("/docs/problems#invalid-request", 422, faulty);
  assert.deepEqual(invalid.problem.errors?.map(({ pointer }) => pointer).sort(), ["/amount/value", "/reference"]);

  const nothing = client.GET("/v1/payment-links/{id}", { params: { path: { id: "plink_01kaz8v4wce7q8m6s5gq9nq2fd" } } });
  await expect("/docs/problems#not-found", 404, nothing);

  const key = randomUUID();
  await send(() => create(key));
  await expect("/docs/problems#idempotency-key-reused", 422, create(key, { ...newLink, reference: "Another" }));
}

async function keys() {
  const stranger = connect("dpl_00000000000000000000000000000000");
  const unauthenticated = await expect("/docs/problems#unauthenticated", 401, stranger.GET("/v1/payment-links"));
  assert.equal(unauthenticated.response.headers.get("www-authenticate"), "Bearer");

  const forbidden = reader.POST("/v1/payment-links", { params: { header: header() }, body: newLink });
  assert.match((await expect("/docs/problems#forbidden", 403, forbidden)).problem.detail, /links:write/);

  const unsigned = client.POST("/webhooks/dojo", { params: { header: { "dojo-signature": "sha256=00" } }, body: {} });
  await expect("/docs/problems#bad-signature", 401, unsigned);
}

async function rates() {
  const rate = Number(process.env["CLIENT_RATE"] ?? Infinity);
  if (rate > 100) {
    console.log("  skipped /docs/problems#rate-limited: set CLIENT_RATE to the service's, at most 100");
    return;
  }
  // The limit is per client, so this burst doesn't affect the others.
  const burst = await Promise.all(
    Array.from({ length: 4 * rate }, () => reader.GET("/v1/payment-links", { params: { query: { limit: 1 } } })),
  );
  const rejected = burst.find(({ response }) => response.status === 429);
  assert.ok(rejected, "some of the requests exceed the limit");
  const limited = await expect("/docs/problems#rate-limited", 429, Promise.resolve(rejected));
  assert.ok(limited.retryable && limited.retryAfter >= 1);
}

async function states() {
  const { id } = await paidLink();
  const tooMuch = await expect("/docs/problems#not-possible", 409, refund(id, 1001));
  assert.deepEqual(tooMuch.problem.remaining, pounds(1000));
  assert.equal(tooMuch.retryable, false);

  const cancel = client.POST("/v1/payment-links/{id}/cancel", { params: { path: { id }, header: header() } });
  const captured = await expect("/docs/problems#not-possible", 409, cancel);
  assert.ok(captured.problem.allowedActions?.includes("refund"));
}

async function dojo() {
  await sandbox.failNext("create", { kind: "status", status: 422 });
  await expect("/docs/problems#rejected-by-dojo", 422, create());
  await sandbox.failNext("create", { kind: "status", status: 401 });
  await expect("/docs/problems#dojo-key-rejected", 502, create());
  await sandbox.failNext("create", { kind: "status", status: 404 });
  await expect("/docs/problems#dojo-misrouted", 502, create());

  // Dojo asks for a longer wait than a request can take, so the service passes it on.
  const key = randomUUID();
  await sandbox.failNext("create", { kind: "status", status: 429, retryAfter: 60 });
  const notReached = await expect("/docs/problems#dojo-not-reached", 503, create(key));
  assert.ok(notReached.retryable && notReached.retryAfter > 1);

  const { id } = await paidLink();
  await sandbox.failNext("refund", { kind: "status", status: 400 });
  await expect("/docs/problems#rejected-by-dojo", 409, refund(id, 100));
}

async function lostResponses() {
  const key = randomUUID();
  await sandbox.failNext("create", { kind: "cutAfter" });
  const unknown = await expect("/docs/problems#outcome-unknown", 504, create(key));
  // The same request with the same key gets the link that the lost response was about.
  const link = await send(() => create(key), 20);
  assert.equal(link.id, unknown.problem.paymentLinkId);

  // `Prefer` asks the service to wait for the outcome.
  await sandbox.failNext("create", { kind: "cutAfter" });
  const waited = await create(randomUUID(), newLink, "wait=20");
  assert.equal(waited.response.status, 201);
  assert.equal(waited.response.headers.get("preference-applied"), "wait=20");

  // The customer pays a link while its cancellation gets lost.
  const cancelKey = randomUUID();
  const cancel = () =>
    client.POST("/v1/payment-links/{id}/cancel", { params: { path: { id: link.id }, header: header(cancelKey) } });
  await sandbox.failNext("cancel", { kind: "cutBefore", count: 3 });
  await expect("/docs/problems#outcome-unknown", 504, cancel());
  await sandbox.pay(link.paymentIntentId);
  await expect("/docs/problems#not-done", 409, outcome(cancel));

  // Nothing at Dojo shows whether a receipt was sent.
  const receiptKey = randomUUID();
  const receipt = () =>
    client.POST("/v1/payment-links/{id}/receipt", {
      params: { path: { id: link.id }, header: header(receiptKey) },
      body: { emails: ["customer@example.com"] },
    });
  await sandbox.failNext("receipt", { kind: "cutAfter" });
  await expect("/docs/problems#outcome-unknown", 504, receipt());
  await expect("/docs/problems#outcome-unconfirmed", 409, outcome(receipt));
}

/** Repeats a request until its outcome is known. */
async function outcome<T>(request: () => Promise<Result<T>>): Promise<Result<T>> {
  for (let attempt = 0; attempt < 60; attempt++) {
    const result = await request();
    if (!result.response.headers.has("retry-after")) return result;
    await sleep(1000);
  }
  throw new Error("the outcome stays unknown");
}

async function concurrency() {
  const { id } = await paidLink();
  const key = randomUUID();
  await sandbox.failNext("refund", { kind: "latency", latencyMs: 3000 });
  const first = refund(id, 400, key);
  await sleep(1000);
  const second = await expect("/docs/problems#request-in-progress", 409, refund(id, 400, key));
  assert.ok(second.retryable && second.problem.operationId);
  const reversal = client.POST("/v1/payment-links/{id}/reversal", { params: { path: { id }, header: header() } });
  await expect("/docs/problems#operation-in-progress", 409, reversal);

  const done = unwrap(await first);
  const replayed = await refund(id, 400, key);
  assert.equal(replayed.response.headers.get("idempotent-replayed"), "true");
  assert.equal(unwrap(replayed).operation.id, done.operation.id);

  // Dojo's figure may not include the refund yet, so 200 is certain to be left, and 300 will be known later.
  const unclear = await expect("/docs/problems#refundable-amount-unclear", 409, refund(id, 300));
  assert.ok(unclear.retryable);
}

try {
  for (const group of [requests, keys, rates, states, dojo, lostResponses, concurrency]) await group();
} finally {
  await sandbox.clearFaults();
}
