// live() against streams that the test makes up.

import assert from "node:assert/strict";
import { test } from "node:test";

import { createClient, RushgateProblem, type LiveEvent, type LiveOptions } from "@rushgate/client";

const snapshot = (stock: number) =>
  `event: snapshot\ndata: {"now":"2026-11-22T09:00:00.000Z","products":[{"id":"머그","stock":${stock},"state":"open"}],"templates":[]}\n\n`;
const change = (stock: number) =>
  `event: product\ndata: {"now":"2026-11-22T09:00:01.000Z","id":"머그","stock":${stock},"state":"open"}\n\n`;

type Made = Response | "cut" | string[];

/** Text in pieces of these bytes; `silent` is at the end of a stream that stays open. */
function stream(pieces: string[], bytes = 1_000): Response {
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      for (const piece of pieces.filter((piece) => piece !== "silent")) {
        const all = new TextEncoder().encode(piece);
        for (let at = 0; at < all.length; at += bytes) {
          controller.enqueue(all.subarray(at, at + bytes));
        }
      }
      if (!pieces.includes("silent")) controller.close();
    },
  });
  return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
}

function scripted(...script: Made[]) {
  const requests: Request[] = [];
  const client = createClient({
    baseUrl: "http://shop.test",
    token: () => {
      throw new Error("the stream needs no token");
    },
    locale: "ko",
    async fetch(request) {
      const made = script[Math.min(requests.length, script.length - 1)]!;
      requests.push(request);
      if (made === "cut") throw new TypeError("fetch failed");
      return made instanceof Response ? made.clone() : stream(made);
    },
  });
  return { client, requests };
}

/** The first events, with their numbers. */
async function take(events: AsyncIterable<LiveEvent>, count: number): Promise<string[]> {
  const seen: string[] = [];
  for await (const { event, data } of events) {
    const stock = "products" in data ? data.products[0]?.stock : "stock" in data ? data.stock : "";
    seen.push(`${event}${stock ?? ""}`);
    if (seen.length === count) break;
  }
  return seen;
}

const quick: LiveOptions = { products: ["머그"], pauseMs: 1 };

test("a stream is read whatever its pieces, and read again when it ends", async () => {
  const text = `retry: 2\n\n:\n\n${snapshot(5)}${change(4)}event: unknown\ndata: 1\n\n`;
  for (const bytes of [1, 2, 3, 7, 1_000]) {
    const { client, requests } = scripted(stream([text], bytes), [snapshot(3).replaceAll("\n", "\r\n")]);
    const seen = await take(client.live(quick), 4);
    assert.deepEqual(seen, ["snapshot5", "product4", "disconnected", "snapshot3"]);
    assert.equal(requests.length, 2);
  }
});

test("the request names the ids, without a token", async () => {
  const { client, requests } = scripted([snapshot(1)]);
  await take(client.live({ products: ["a", "b"], templates: ["c"] }), 1);
  const [request] = requests;
  assert.equal(new URL(request!.url).pathname + new URL(request!.url).search, "/v1/live?products=a,b&templates=c");
  assert.equal(request!.headers.get("Authorization"), null);
  assert.equal(request!.headers.get("Accept-Language"), "ko");
  assert(request!.signal.aborted, "the connection is closed when nobody reads on");
});

test("breaks, busy instances and proxies are tried again", async () => {
  const busy = Response.json({ code: "overloaded", detail: "d" }, { status: 503 });
  const { client } = scripted("cut", busy, new Response("<html>", { status: 502 }), [snapshot(2)]);
  const seen = await take(client.live(quick), 4);
  assert.deepEqual(seen, ["disconnected", "disconnected", "disconnected", "snapshot2"]);
});

test("Retry-After is waited for", async () => {
  const headers = { "Retry-After": "1" };
  const busy = Response.json({ code: "overloaded", detail: "d" }, { status: 503, headers });
  const begin = performance.now();
  await take(scripted(busy, [snapshot(2)]).client.live(quick), 2);
  assert(performance.now() - begin >= 1_000);
});

test("a refusal that a repeat would not cure is thrown", async () => {
  const body = { type: "t", title: "t", status: 422, detail: "d", code: "invalid-field", field: "products" };
  const { client, requests } = scripted(Response.json(body, { status: 422 }));
  const error = await take(client.live(quick), 1).catch((error: unknown) => error);
  assert(error instanceof RushgateProblem && error.code === "invalid-field");
  assert.equal(error.field, "products");
  assert.equal(requests.length, 1);
});

test("a request that cannot be made is not repeated", async () => {
  await assert.rejects(take(createClient({ baseUrl: "shop.test" }).live(quick), 1), TypeError);
});

test("a silent stream counts as broken, and a comment is no silence", async () => {
  const { client } = scripted([snapshot(5), "silent"], [snapshot(4)]);
  const events = client.live({ ...quick, silentMs: 100 });
  const begin = performance.now();
  const seen = await take(events, 3);
  assert.deepEqual(seen, ["snapshot5", "disconnected", "snapshot4"]);
  assert(performance.now() - begin >= 90);
});

test("pauses grow up to their bound, have jitter, and begin anew after a snapshot", async () => {
  const { client } = scripted("cut", "cut", [snapshot(1)], "cut");
  const pauses: number[] = [];
  for await (const { event, data } of client.live({ ...quick, pauseMs: 4 })) {
    if (event === "disconnected") pauses.push(data.pauseMs);
    if (pauses.length === 5) break;
  }
  [4, 8, 4, 8, 16].forEach((step, n) => {
    assert(pauses[n]! >= step / 2 && pauses[n]! <= step, `pause ${n}: ${pauses[n]}`);
  });
});

test("pauses are bounded", async (t) => {
  const { setTimeout } = globalThis;
  const made = (work: () => void, ms: number) => setTimeout(work, ms > 30_000 ? ms : 0);
  t.mock.method(globalThis, "setTimeout", made);
  const pauses: number[] = [];
  for await (const { event, data } of scripted("cut").client.live({ products: ["a"] })) {
    if (event === "disconnected") pauses.push(data.pauseMs);
    if (pauses.length === 20) break;
  }
  assert(Math.max(...pauses) <= 15_000 && pauses.at(-1)! >= 7_500, `${pauses}`);
});

test("the signal ends a stream, a pause and an attempt without an error", async () => {
  for (const made of [[snapshot(1), "silent"], "cut"] as const) {
    const { client } = scripted(made as Made);
    const signal = AbortSignal.timeout(50);
    const seen = await take(client.live({ ...quick, pauseMs: 5_000, signal }), 9);
    assert.equal(seen.length, 1);
  }
  const { client, requests } = scripted([snapshot(1)]);
  assert.deepEqual(await take(client.live({ ...quick, signal: AbortSignal.abort() }), 9), []);
  assert.equal(requests.length, 0);
});
