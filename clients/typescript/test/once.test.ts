// once() and pages() against answers that the test makes up.

import assert from "node:assert/strict";
import { test } from "node:test";

import {
  createClient,
  RushgateProblem,
  RushgateUnreachable,
  type RetryOptions,
} from "@rushgate/client";

type Made = Response | "cut" | "silent";

/** A client that gets these answers in turn, the last one for ever, and the keys it has sent. */
function scripted(...script: Made[]) {
  const keys: (string | null)[] = [];
  const requests: Request[] = [];
  const client = createClient({
    baseUrl: "http://shop.test",
    token: () => `jwt-${requests.length + 1}`,
    locale: "ko",
    async fetch(request) {
      const made = script[Math.min(requests.length, script.length - 1)]!;
      requests.push(request);
      keys.push(request.headers.get("Idempotency-Key"));
      if (made === "cut") throw new TypeError("fetch failed");
      if (made === "silent") return new Promise(() => {});
      return made.clone();
    },
  });
  const charge = (options: RetryOptions & { key?: string } = {}) =>
    client.once("/v1/users/{user}/wallet/charges", {
      params: { path: { user: "user-1" } },
      body: { amount: 100 },
      pauseMs: 1,
      ...options,
    });
  return { client, charge, keys, requests };
}

const charged = Response.json({ charge_id: "c-1", balance: 100 }, { status: 201 });
const accepted = Response.json({ status: "accepted", charge_id: "c-1" }, { status: 202 });
const refusal = (status: number, code: string, members = {}, headers = {}) =>
  Response.json(
    { type: `/problems/${code}`, title: "t", status, detail: "d", code, ...members },
    {
      status,
      headers,
    },
  );
const outcomeUnknown = refusal(503, "outcome-unknown");

test("202, 429, 5xx and broken connections are repeated with the same key", async () => {
  const gateway = new Response("<html>", { status: 502 });
  const held = [accepted, refusal(429, "rate-limited"), refusal(500, "internal-error")];
  const { charge, keys, requests } = scripted(...held, outcomeUnknown, gateway, "cut", charged);
  const { status, data, key, attempts } = await charge();
  assert.deepEqual([status, data.charge_id, attempts], [201, "c-1", 7]);
  assert.deepEqual(keys, Array(7).fill(key));
  assert.match(key, /^[0-9a-f-]{36}$/);
  const header = (name: string) => requests.map((request) => request.headers.get(name));
  assert.deepEqual(
    header("Authorization"),
    [1, 2, 3, 4, 5, 6, 7].map((n) => `Bearer jwt-${n}`),
  );
  assert.deepEqual(header("Accept-Language"), Array(7).fill("ko"));
  for (const request of requests) assert.equal(await request.text(), '{"amount":100}');
});

test("each call has its own key, unless it is given one", async () => {
  const { charge, keys } = scripted(charged);
  await charge();
  await charge();
  await charge({ key: "mine" });
  assert.equal(new Set(keys).size, 3);
  assert.equal(keys[2], "mine");
});

test("a refusal is final, with its members", async () => {
  for (const status of [400, 401, 403, 404, 408, 409, 413, 415, 422]) {
    const { charge, keys } = scripted(refusal(status, "x"), charged);
    await assert.rejects(charge(), { name: "RushgateProblem", status, code: "x", attempts: 1 });
    assert.equal(keys.length, 1);
  }
  const { charge } = scripted(refusal(409, "balance-limit-exceeded", { limit: 5, balance: 3 }));
  const error = await charge().catch((error: unknown) => error);
  assert(error instanceof RushgateProblem && error instanceof Error);
  assert(error.code === "balance-limit-exceeded");
  assert.deepEqual([error.limit, error.balance, error.detail], [5, 3, "d"]);
  assert.equal(error.outcomeUnknown, false);
});

test("unknown codes survive, and members do not overwrite the error's own", async () => {
  const members = { moon: "full", message: "forged", attempts: 99, ["__proto__"]: { forged: 1 } };
  const error = await scripted(refusal(409, "eclipse", members))
    .charge()
    .catch((e: unknown) => e);
  assert(error instanceof RushgateProblem);
  assert.equal(error.code as string, "eclipse");
  assert.equal((error as unknown as { moon: string }).moon, "full");
  assert.deepEqual([error.message, error.attempts], ["d", 1]);
  assert(!("forged" in error));
});

test("an answer without a problem document becomes a problem", async () => {
  const error = scripted(new Response("<html>", { status: 404 })).charge();
  await assert.rejects(error, { name: "RushgateProblem", code: "http-404", status: 404 });
});

test("the attempts are bounded, for backlog-full, too", async () => {
  const full = scripted(refusal(503, "backlog-full"));
  const code = "backlog-full";
  await assert.rejects(full.charge({ attempts: 3 }), { code, attempts: 3, outcomeUnknown: false });
  assert.equal(full.keys.length, 3);
  const cut = scripted("cut");
  const error = await cut.charge({ attempts: 3 }).catch((error: unknown) => error);
  assert(error instanceof RushgateUnreachable);
  assert.deepEqual([error.attempts, error.key], [3, cut.keys[0]]);
  assert.equal((error.cause as Error).message, "fetch failed");
});

test("the time is bounded, and so is each attempt", async () => {
  const { charge, keys } = scripted("silent");
  const begin = performance.now();
  await assert.rejects(charge({ attemptMs: 50, withinMs: 300 }), RushgateUnreachable);
  const took = performance.now() - begin;
  assert(took >= 40 && took < 2_000, `${took} ms`);
  assert(keys.length >= 2, `${keys.length} attempts`);
});

test("Retry-After is waited for, and not begun when it is longer than the time", async () => {
  const soon = scripted(refusal(429, "rate-limited", {}, { "Retry-After": "1" }), charged);
  const begin = performance.now();
  await soon.charge();
  assert(performance.now() - begin >= 1_000);
  // A browser may not show the header to a page of another origin.
  const midnight = scripted(refusal(429, "rate-limited", { retry_after: 40_000 }));
  await assert.rejects(midnight.charge(), { code: "rate-limited", attempts: 1 });
  const date = new Date(Date.now() + 3_600_000).toUTCString();
  const dated = scripted(refusal(503, "overloaded", {}, { "Retry-After": date }));
  await assert.rejects(dated.charge(), { code: "overloaded", attempts: 1 });
});

test("pauses grow and have jitter", async (t) => {
  const pauses: number[] = [];
  const { setTimeout } = globalThis;
  t.mock.method(globalThis, "setTimeout", (work: () => void, ms: number) => {
    if (ms < 9_000) pauses.push(ms);
    return setTimeout(work, ms < 9_000 ? 0 : ms);
  });
  await assert.rejects(scripted("cut").charge({ pauseMs: 200 }));
  assert.equal(pauses.length, 7);
  pauses.forEach((ms, n) => {
    const step = Math.min(200 * 2 ** n, 5_000);
    assert(ms >= step / 2 && ms <= step, `pause ${n}: ${ms}`);
  });
  assert(new Set(pauses.map((ms, n) => ms / 2 ** n)).size > 1);
});

test("a 202 that stays one is returned as accepted", async () => {
  const { charge } = scripted(outcomeUnknown, accepted, accepted, "cut");
  const { status, data, attempts } = await charge({ attempts: 4 });
  assert.deepEqual([status, data.charge_id, attempts], [202, "c-1", 4]);
});

test("a refusal after an unknown outcome says so, unless the gate has decided", async () => {
  const expired = scripted("cut", refusal(401, "unauthenticated"));
  await assert.rejects(expired.charge(), { code: "unauthenticated", outcomeUnknown: true });
  const decided = scripted("cut", refusal(409, "sold-out"));
  await assert.rejects(decided.charge(), { code: "sold-out", outcomeUnknown: false });
  const late = scripted(outcomeUnknown, refusal(429, "rate-limited"));
  await assert.rejects(late.charge({ attempts: 2 }), {
    code: "rate-limited",
    outcomeUnknown: true,
  });
});

test("a signal ends an attempt and a pause", async () => {
  for (const made of ["silent", "cut"] as const) {
    const { charge } = scripted(made);
    const signal = AbortSignal.timeout(50);
    await assert.rejects(charge({ signal, pauseMs: 5_000 }), { name: "TimeoutError" });
  }
  const { charge, keys } = scripted(charged);
  await assert.rejects(charge({ signal: AbortSignal.abort(new Error("left the page")) }), {
    message: "left the page",
  });
  assert.equal(keys.length, 0);
});

test("what keeps a request from being made is not repeated", async () => {
  let calls = 0;
  const body = { user_id: "user-1" };
  const params = { path: { id: "welcome" } };
  const failing = createClient({
    baseUrl: "http://shop.test",
    token: () => {
      calls += 1;
      throw new Error("not logged in");
    },
  });
  const issue = failing.once("/v1/coupon-templates/{id}/coupons", { params, body });
  await assert.rejects(issue, { message: "not logged in" });
  assert.equal(calls, 1);
  const lost = createClient({ baseUrl: "shop.test" });
  await assert.rejects(lost.once("/v1/coupon-templates/{id}/coupons", { params, body }), TypeError);
});

test("pages() follows `next`, and asks again where a page fails", async () => {
  const page = (data: number[], next: string | null) => Response.json({ data, next });
  const { client, requests, keys } = scripted(page([1, 2], "p2"), "cut", page([3], null));
  const seen: unknown[] = [];
  const params = { query: { limit: 2 } };
  for await (const product of client.pages("/v1/products", { params, pauseMs: 1 })) {
    seen.push(product);
  }
  assert.deepEqual(seen, [1, 2, 3]);
  const queries = requests.map((request) => new URL(request.url).search);
  assert.deepEqual(queries, ["?limit=2", "?limit=2&after=p2", "?limit=2&after=p2"]);
  assert.deepEqual(keys, [null, null, null]);
  await assert.rejects(
    scripted(refusal(404, "user-not-found")).client.pages("/v1/products").next(),
    {
      code: "user-not-found",
    },
  );
});
