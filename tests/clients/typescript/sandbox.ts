// The sandbox's control API, which takes the place of the customer and of a faulty network.

import { setting } from "./client.ts";

async function control(method: string, path: string, body?: object): Promise<void> {
  const response = await fetch(`${setting("SANDBOX_URL")}/_sandbox/${path}`, {
    method,
    headers: { "Content-Type": "application/json" },
    ...(body && { body: JSON.stringify(body) }),
  });
  if (!response.ok) throw new Error(`${method} ${path} returned ${response.status}: ${await response.text()}`);
}

/** Pays with a test card that succeeds, as the customer does. */
export async function pay(paymentIntentId: string | null): Promise<void> {
  await control("POST", `payment-intents/${paymentIntentId}/pay`, {});
}

/** Makes the next call of this kind to Dojo fail. */
export async function failNext(operation: string, fault: { kind: string } & Record<string, unknown>): Promise<void> {
  await control("DELETE", "faults");
  await control("POST", "faults", { operation, ...fault });
}

export async function clearFaults(): Promise<void> {
  await control("DELETE", "faults");
}
