// The client against a running service, also through a proxy that cuts connections.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { createClient, orThrow, RushgateProblem, type RushgateClient } from "@rushgate/client";

import { Cutter, POINTS } from "./cutter.js";
import { Instance } from "./instance.js";
import { generate, root, schemaFile } from "./schema.js";

const CHARGES = 100;
const ORDERS = 100;
const CONCURRENCY = 8;
const CUT_SHARE = 0.4;
const PRICE = 100;

// Cuts are frequent here, and the machine may be busy.
const patience = { attempts: 30, withinMs: 90_000, pauseMs: 20 };
const limits = ["--ack", "truth", "--truth-timeout-ms", "500", "--user-write-rate", "10/1s"];
const seed = Number(process.env["RUSHGATE_CLIENT_SEED"] ?? Math.floor(Math.random() * 2 ** 31));

let instance: Instance;
let staff: RushgateClient;
let service: RushgateClient;

before(async () => {
  instance = await Instance.start(...limits);
  const { baseUrl } = instance;
  staff = createClient({ baseUrl, token: instance.token("shop-staff", "admin") });
  service = createClient({ baseUrl, token: instance.token("shop-backend", "service") });
  const product = { name: "Sticker", price: PRICE, status: "on_sale", stock: 10_000 } as const;
  const params = { path: { id: "sticker" } };
  await orThrow(staff.PUT("/v1/products/{id}", { params, body: product }));
});
after(() => instance?.stop());

test("src/schema.ts is what the service's description generates", async () => {
  const committed = readFileSync(schemaFile, "utf8");
  const same = (await generate(instance)) === committed;
  assert(same, "src/schema.ts is out of date: run ./dev client --schema and commit it");
});

interface Crowd {
  /** What once() has returned: charge ids by amount, and order ids. */
  charges: Map<string, number>;
  orders: string[];
}

/** Sends the charges and orders of one user, and returns the answers. */
async function send(client: RushgateClient, user: string): Promise<Crowd> {
  const crowd: Crowd = { charges: new Map(), orders: [] };
  const work: (() => Promise<void>)[] = [];
  for (let amount = 1; amount <= CHARGES; amount += 1) {
    work.push(async () => {
      const call = { params: { path: { user } }, body: { amount }, ...patience };
      const { data } = await client.once("/v1/users/{user}/wallet/charges", call);
      crowd.charges.set(data.charge_id, amount);
    });
  }
  for (let n = 0; n < ORDERS; n += 1) {
    work.push(async () => {
      const body = { user_id: user, items: [{ product_id: "sticker", quantity: 1 }] };
      const { data } = await client.once("/v1/orders", { body, ...patience });
      crowd.orders.push(data.order_id);
    });
  }
  const queue = work.values();
  const worker = async () => {
    for (const next of queue) await next();
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, worker));
  return crowd;
}

/** Compares what the wallet's ledger says with what was asked for: one effect for each call. */
async function check(user: string, crowd: Crowd): Promise<void> {
  const params = { path: { user }, query: { limit: 100 } };
  const charged: [string, number][] = [];
  const paid: string[] = [];
  for await (const entry of service.pages("/v1/users/{user}/wallet/entries", { params })) {
    if (entry.kind === "payment") paid.push(entry.ref_id);
    // The first charge is the one that the user starts with.
    else if (entry.amount <= CHARGES) charged.push([entry.ref_id, entry.amount]);
  }
  const byAmount = (a: [string, number], b: [string, number]) => a[1] - b[1];
  assert.deepEqual(charged.sort(byAmount), [...crowd.charges].sort(byAmount));
  assert.deepEqual(paid.sort(), [...crowd.orders].sort());
  assert.deepEqual([charged.length, paid.length], [CHARGES, ORDERS]);
}

async function throughCuts(user: string, fetch = globalThis.fetch): Promise<void> {
  const params = { path: { user } };
  const body = { amount: ORDERS * PRICE * 10 };
  await service.once("/v1/users/{user}/wallet/charges", { params, body, ...patience });
  const port = Number(new URL(instance.baseUrl).port);
  const cutter = await Cutter.start(port, CUT_SHARE, seed);
  try {
    const token = instance.token("shop-backend", "service");
    const client = createClient({ baseUrl: cutter.baseUrl, token, fetch });
    const crowd = await send(client, user);
    for (const point of POINTS) assert(cutter.cuts[point] >= 10, `${point}: too few cuts`);
    await check(user, crowd);
  } finally {
    await cutter.stop();
  }
}

test("once() has one effect for each call, wherever connections are cut", async (t) => {
  t.diagnostic(`RUSHGATE_CLIENT_SEED=${seed}`);
  await throughCuts("cut-user");
});

test("the check finds a client that makes a new key for each attempt", async () => {
  const careless = (request: string | URL | Request) => {
    (request as Request).headers.set("Idempotency-Key", crypto.randomUUID());
    return fetch(request);
  };
  await assert.rejects(throughCuts("careless-user", careless), { code: "ERR_ASSERTION" });
});

test("a rate limit holds up charges, and none is lost or doubled", async () => {
  const user = "fast-user";
  const refused = { count: 0 };
  const client = createClient({
    baseUrl: instance.baseUrl,
    token: instance.token(user, "shop"),
    async fetch(request) {
      const response = await fetch(request);
      if (response.status === 429) refused.count += 1;
      return response;
    },
  });
  const params = { path: { user } };
  const charge = () =>
    client.once("/v1/users/{user}/wallet/charges", { params, body: { amount: 7 }, ...patience });
  await Promise.all(Array.from({ length: 25 }, charge));
  assert(refused.count > 0);
  const wallet = await orThrow(client.GET("/v1/users/{user}/wallet", { params }));
  assert.equal(wallet.balance, 25 * 7);
});

test("a 202 is repeated until PostgreSQL has the order", async () => {
  const body = { user_id: "user-9", items: [{ product_id: "sticker", quantity: 1 }] };
  const thaw = instance.freezePostgres();
  let accepted, later;
  try {
    accepted = await service.once("/v1/orders", { body, attempts: 2 });
    later = service.once("/v1/orders", { body, key: accepted.key, ...patience });
    // Two limits of 500 ms, so that `later` has met a 202 of its own.
    await new Promise((resolve) => setTimeout(resolve, 1_200));
  } finally {
    thaw();
  }
  assert.deepEqual([accepted.status, accepted.attempts], [202, 2]);
  const { status, data, attempts } = await later;
  assert(status === 201 && attempts > 1);
  assert.equal(data.order_id, accepted.data.order_id);
  assert.equal(data.total, PRICE);
});

test("refusals are typed problems", async () => {
  const body = { user_id: "poor-user", items: [{ product_id: "sticker", quantity: 1_000 }] };
  const error = await service.once("/v1/orders", { body }).catch((error: unknown) => error);
  assert(error instanceof RushgateProblem && error.code === "insufficient-balance");
  assert.equal(error.required, 1_000 * PRICE);
  const params = { path: { id: "nothing" } };
  await assert.rejects(orThrow(service.GET("/v1/products/{id}", { params })), {
    name: "RushgateProblem",
    code: "product-not-found",
    product_id: "nothing",
  });
});

test("pages() gives each element once, newest orders first", async () => {
  const params = { path: { user: "cut-user" }, query: { limit: 7 } };
  const ids: string[] = [];
  for await (const order of service.pages("/v1/users/{user}/orders", { params })) {
    ids.push(order.order_id);
  }
  assert.equal(new Set(ids).size, ORDERS);
  // UUIDv7: in the order of time.
  assert.deepEqual(ids, [...ids].sort().reverse());
});

test("lists in queries arrive", async () => {
  const ids = ["sticker", "nothing", "americano"];
  const { data } = await orThrow(service.GET("/v1/products", { params: { query: { ids } } }));
  const seen = data.map((product) => product.id);
  assert.deepEqual(seen, ["sticker", "americano"]);
});

test("live() tells what changes, also after its connection was cut", async () => {
  const cutter = await Cutter.start(Number(new URL(instance.baseUrl).port), 0, seed);
  const params = { path: { id: "sticker" } };
  const adjust = () =>
    staff.once("/v1/products/{id}/stock-adjustments", { params, body: { delta: -1 } });
  const watching = createClient({ baseUrl: cutter.baseUrl });
  const events = watching.live({ products: ["sticker"], templates: ["welcome"], pauseMs: 10 });
  const next = async () => {
    const { value } = await events.next();
    assert(value);
    return value;
  };
  try {
    const first = await next();
    assert(first.event === "snapshot");
    const { stock } = first.data.products[0]!;
    assert.deepEqual(first.data.products, [{ id: "sticker", stock, state: "open" }]);
    assert.equal(first.data.templates[0]!.id, "welcome");
    await adjust();
    const changed = await next();
    assert(changed.event === "product");
    assert.deepEqual([changed.data.id, changed.data.stock], ["sticker", stock - 1]);
    cutter.cutAll();
    const broken = await next();
    assert(broken.event === "disconnected");
    await adjust();
    const again = await next();
    assert(again.event === "snapshot");
    assert.equal(again.data.products[0]!.stock, stock - 2);
  } finally {
    await events.return();
    await cutter.stop();
  }
});

test("the examples of README.md compile, and the Node example runs", async () => {
  const folder = join(root, "build", "readme");
  mkdirSync(folder, { recursive: true });
  const readme = readFileSync(join(root, "README.md"), "utf8");
  const example = (language: string) => readme.split(`\`\`\`${language}\n`)[1]!.split("```")[0]!;
  writeFileSync(join(folder, "button.tsx"), example("tsx"));
  writeFileSync(join(folder, "node.mts"), example("ts"));
  const base = { extends: "../../tsconfig.json", include: ["*"], exclude: [] };
  const options = { rootDir: ".", outDir: ".", jsx: "react-jsx", types: ["node"] };
  writeFileSync(
    join(folder, "tsconfig.json"),
    JSON.stringify({ ...base, compilerOptions: { ...options, skipLibCheck: true } }),
  );
  const compiler = join(root, "node_modules", "typescript", "bin", "tsc");
  execFileSync(process.execPath, [compiler, "-p", folder], { stdio: ["ignore", 2, 2] });
  const told = execFileSync(process.execPath, [join(folder, "node.mjs")], {
    env: {
      RUSHGATE_URL: instance.baseUrl,
      RUSHGATE_TOKEN: instance.token("shop-backend", "service"),
    },
  });
  assert.match(told.toString(), /^paid 4500 won\n[0-9a-f-]{36}: 4500 won\n/);
});
