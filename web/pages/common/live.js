// Stock and coupons as they change: `GET /v1/live`, or where the server has no such route, a read of
// both catalogues every second.

import { createClient } from "../client/index.js";
import { observeDate, observeNow } from "./clock.js";
import { hasRoute } from "./description.js";
import { createStore } from "./store.js";

/** @typedef {import("../client/index.js").Schemas["Product"]} Product */
/** @typedef {import("../client/index.js").Schemas["CouponTemplate"]} Template */
/** @typedef {"connecting" | "live" | "polling" | "lost"} Connection */

const POLL_MS = 1000;
/** Names, prices and new products are not in the stream. */
const CATALOGUE_MS = 15_000;
/** After a stream that could not be had, the next attempt waits; reads go on meanwhile. */
const RETRY_MS = [0, 2000, 5000, 10_000, 30_000];
/** How many ids a stream takes, and how many of them are for templates at most. */
const LIVE_IDS = 50;
const LIVE_TEMPLATES = 30;
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

/** @param {import("../client/index.js").LiveEvent} event */
function onEvent({ event, data }) {
  if ("now" in data) observeNow(Date.parse(data.now));
  if (event === "snapshot") {
    patch(products, data.products);
    patchTemplates(data.templates);
    gateOpen.set(true);
  } else if (event === "product") {
    patch(products, [data]);
  } else if (event === "template") {
    patchTemplates([data]);
  } else {
    gateOpen.set(event === "available");
  }
  connection.set("live");
  updatedAt.set(Date.now());
}

/** What the stream is asked for: the products that come first, and the templates that came last. */
function watched() {
  const open = templates.get().filter((template) => template.state !== "closed");
  const chosen = open.slice(-LIVE_TEMPLATES).map((template) => template.id);
  const shown = products.get().map((product) => product.id);
  return { products: shown.slice(0, LIVE_IDS - chosen.length), templates: chosen };
}

/** One stream, until it breaks or other ids are wanted. @returns {Promise<boolean>} false: it broke */
async function listen() {
  const ids = watched();
  const stop = new AbortController();
  const changed = () => JSON.stringify(watched()) !== JSON.stringify(ids) && stop.abort();
  const unfollow = [products, templates].map((store) => store.follow(changed));
  const catalogue = setInterval(() => void readCatalogue().catch(() => {}), CATALOGUE_MS);
  try {
    const client = createClient({ baseUrl: location.origin });
    for await (const event of client.live({ ...ids, signal: stop.signal })) {
      if (event.event === "disconnected") return false;
      onEvent(event);
    }
    return true;
  } finally {
    stop.abort();
    clearInterval(catalogue);
    unfollow.forEach((end) => end());
  }
}

/** Whether there are values to stream, and a stream to have. */
async function canListen() {
  const ids = watched();
  return ids.products.length + ids.templates.length > 0 && (await hasRoute("/v1/live"));
}

/** Follows the catalogue for as long as the page lives: by streams, and by reads where there is none. */
export async function follow() {
  let failures = 0;
  let listenAt = 0;
  for (;;) {
    try {
      await readCatalogue();
      if (connection.get() !== "live") connection.set("polling");
      if (Date.now() >= listenAt && (await canListen())) {
        failures = (await listen()) ? 0 : failures + 1;
        listenAt = Date.now() + (RETRY_MS[Math.min(failures, RETRY_MS.length) - 1] ?? 0);
        if (failures === 0) continue;
        connection.set("polling");
      }
    } catch {
      connection.set("lost");
      // What was closed is not known until the next snapshot.
      gateOpen.set(true);
    }
    await pause(POLL_MS);
  }
}
