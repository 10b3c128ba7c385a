// The client of the service, and how to send a request so that it succeeds unless it can't.

import { setTimeout as sleep } from "node:timers/promises";

import createClient from "openapi-fetch";

import type { components, paths } from "./generated/api.ts";

type Schemas = components["schemas"];
export type Money = Schemas["Money"];
export type PaymentLink = Schemas["PaymentLink"];
export type Problem = Schemas["Problem"];
export type ProblemType = Schemas["ProblemType"];

/** What `openapi-fetch` returns from a call. */
export interface Result<T> {
  data?: T;
  error?: Problem;
  response: Response;
}

/** A response that reports a problem. */
export class ApiError extends Error {
  readonly problem: Problem;
  readonly response: Response;

  constructor(problem: Problem, response: Response) {
    super(`${problem.type}: ${problem.detail} (request ${problem.requestId})`);
    this.problem = problem;
    this.response = response;
  }

  /** Whether the problem is of this type. The compiler rejects a type that the service doesn't know. */
  is(type: ProblemType): boolean {
    return this.problem.type === type;
  }

  /** Whether the same request, with the same `Idempotency-Key`, may succeed later. */
  get retryable(): boolean {
    const { status, headers } = this.response;
    return status === 429 || status >= 500 || headers.has("retry-after") || this.is("/docs/problems#body-incomplete");
  }

  /** After how many seconds to send the request again. */
  get retryAfter(): number {
    return Number(this.response.headers.get("retry-after") ?? 1);
  }
}

export function connect(apiKey = setting("API_KEY")) {
  return createClient<paths>({
    baseUrl: setting("BASE_URL"),
    headers: { Authorization: `Bearer ${apiKey}` },
  });
}

/** The data of a response. Throws an `ApiError` if the response reports a problem. */
export function unwrap<T>({ data, error, response }: Result<T>): T {
  if (data !== undefined) return data;
  if (error === undefined) throw new Error(`${response.url} returned ${response.status} without a body`);
  throw new ApiError(error, response);
}

/**
 * Sends a request again until it succeeds or a retry won't help. `request` must send the same `Idempotency-Key` each time,
 * or a lost response makes it take effect twice.
 */
export async function send<T>(request: () => Promise<Result<T>>, attempts = 5): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return unwrap(await request());
    } catch (error) {
      // `fetch` throws a TypeError if it gets no response.
      const retryable = error instanceof ApiError ? error.retryable : error instanceof TypeError;
      if (!retryable || attempt === attempts) throw error;
      await sleep(1000 * (error instanceof ApiError ? error.retryAfter : 1));
    }
  }
}

export function setting(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set`);
  return value;
}
