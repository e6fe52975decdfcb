// Stock and coupons as they change: `GET /v1/live`, or where the server has no such route, a read of
// both catalogues every second.

import { observeDate, observeNow } from "./clock.js";
import { hasRoute } from "./description.js";
import { createStore } from "./store.js";

/** @typedef {import("../client/index.js").Schemas["Product"]} Product */
/** @typedef {import("../client/index.js").Schemas["CouponTemplate"]} Template */
/** @typedef {"connecting" | "live" | "polling" | "lost"} Connection */

const POLL_MS = 1000;
/** Names, prices and new products are not in the stream. */
const CATALOGUE_MS = 15_000;
/** The stream sends a heartbeat every 15 s. */
const SILENCE_MS = 40_000;
const RETRY_MS = [500, 1000, 2000, 4000];
const LIVE_IDS = 50;
const REQUEST_LIMIT_MS = 5000;

/** @type {import("./store.js").Store<Connection>} */
export const connection = createStore(/** @type {Connection} */ ("connecting"));
/** Whether the gate decides; only the stream tells. */
export const gateOpen = createStore(true);
/** @type {import("./store.js").Store<Product[]>} */
export const products = createStore(/** @type {Product[]} */ ([]));
/** @type {import("./store.js").Store<Template[]>} */
export const templates = createStore(/** @type {Template[]} */ ([]));
/** When the latest value arrived, by this machine's clock. */
export const updatedAt = createStore(0);

/** @param {number} ms */
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * All pages of a list.
 * @template T
 * @param {string} path
 * @returns {Promise<T[]>}
 */
async function readAll(path) {
  /** @type {T[]} */
  const all = [];
  let after = "";
  do {
    const query = `?limit=100${after && `&after=${encodeURIComponent(after)}`}`;
    const response = await fetch(path + query, { signal: AbortSignal.timeout(REQUEST_LIMIT_MS) });
    if (!response.ok) throw new Error(`${path}: ${response.status}`);
    observeDate(response);
    const page = await response.json();
    all.push(...page.data);
    after = page.next ?? "";
  } while (after && all.length < 2000);
  return all;
}

/** Reads the whole catalogue now. */
export async function readCatalogue() {
  const [allProducts, allTemplates] = await Promise.all([
    /** @type {Promise<Product[]>} */ (readAll("/v1/products")),
    /** @type {Promise<Template[]>} */ (readAll("/v1/coupon-templates")),
  ]);
  products.set(allProducts);
  templates.set(allTemplates);
  updatedAt.set(Date.now());
}

/**
 * @template {{ id: string }} T
 * @param {import("./store.js").Store<T[]>} store
 * @param {{ id: string }[]} changes
 */
function patch(store, changes) {
  const byId = new Map(changes.map((change) => [change.id, change]));
  store.set((all) => all.map((each) => ({ ...each, ...byId.get(each.id) })));
}

/** @param {{ id: string, remaining?: number }[]} changes */
function patchTemplates(changes) {
  patch(templates, changes);
  templates.set((all) => all.map((each) => ({ ...each, issued: each.max_issued - each.remaining })));
}

/** @param {string} name @param {any} data */
function onEvent(name, data) {
  if (data.now) observeNow(typeof data.now === "number" ? data.now : Date.parse(data.now));
  if (name === "snapshot") {
    patch(products, data.products ?? []);
    patchTemplates(data.templates ?? []);
    gateOpen.set(true);
  } else if (name === "product") {
    patch(products, [data]);
  } else if (name === "template") {
    patchTemplates([data]);
  } else if (name === "unavailable" || name === "available") {
    gateOpen.set(name === "available");
  }
  updatedAt.set(Date.now());
}

/** Events of a `text/event-stream`. @param {ReadableStream<Uint8Array>} body @param {() => void} heard */
async function* events(body, heard) {
  let text = "";
  const decoder = new TextDecoder();
  const reader = body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard();
    text += decoder.decode(value, { stream: true });
    const blocks = text.replaceAll("\r\n", "\n").split("\n\n");
    text = blocks.pop() ?? "";
    for (const block of blocks) {
      const fields = block.split("\n").map((line) => line.split(/: ?(.*)/s));
      const name = fields.find(([field]) => field === "event")?.[1] ?? "message";
      const data = fields.filter(([field]) => field === "data").map(([, line]) => line ?? "");
      if (data.length > 0) yield { name, data: JSON.parse(data.join("\n")) };
    }
  }
}

/** What the stream is asked for. */
function wanted() {
  const open = templates.get().filter((template) => template.state !== "closed");
  const newest = open.slice(-LIVE_IDS + 20).map((template) => template.id);
  const shown = products.get().slice(0, LIVE_IDS - newest.length).map((product) => product.id);
  return `/v1/live?products=${shown.join(",")}&templates=${newest.join(",")}`;
}

/** One connection, until it ends. */
async function listen() {
  const ids = wanted();
  const stop = new AbortController();
  let silent = setTimeout(() => stop.abort(), SILENCE_MS);
  const heard = () => {
    clearTimeout(silent);
    silent = setTimeout(() => stop.abort(), SILENCE_MS);
  };
  const unfollow = [products, templates].map((store) =>
    // Other ids need another connection.
    store.follow(() => wanted() !== ids && stop.abort()),
  );
  const catalogue = setInterval(() => void readCatalogue().catch(() => {}), CATALOGUE_MS);
  try {
    const response = await fetch(ids, { signal: stop.signal });
    if (!response.ok || !response.body) throw new Error(`/v1/live: ${response.status}`);
    connection.set("live");
    for await (const event of events(response.body, heard)) onEvent(event.name, event.data);
  } catch (error) {
    if (!stop.signal.aborted) throw error;
  } finally {
    stop.abort();
    clearTimeout(silent);
    clearInterval(catalogue);
    unfollow.forEach((end) => end());
  }
}

async function poll() {
  for (;;) {
    await pause(POLL_MS);
    try {
      await readCatalogue();
      connection.set("polling");
    } catch {
      connection.set("lost");
    }
  }
}

/** Follows the catalogue for as long as the page lives. */
export async function follow() {
  let failures = 0;
  for (;;) {
    try {
      await readCatalogue();
      if (!(await hasRoute("/v1/live"))) {
        connection.set("polling");
        return poll();
      }
      await listen();
      failures = 0;
    } catch {
      connection.set("lost");
      await pause(RETRY_MS[Math.min(failures, RETRY_MS.length - 1)] ?? 0);
      failures += 1;
    }
  }
}
