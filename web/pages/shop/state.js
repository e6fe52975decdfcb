// The shopper: who is shopping, with which token, and what the shop knows of them.

import { createClient, orThrow, RushgateProblem } from "../client/index.js";
import { observeDate } from "../common/clock.js";
import { description } from "../common/description.js";
import { language } from "../common/i18n.js";
import { createStore } from "../common/store.js";
import { t, has } from "./texts.js";

/** @typedef {import("../client/index.js").Schemas} Schemas */
/** @typedef {Schemas["Coupon"]} Coupon */
/**
 * Members of servers that know payments outside.
 * @typedef {Omit<Schemas["Order"], "status"> & { status: string, amount_due?: number, hold_expires_at?: string }} Order
 */
/** @typedef {{ coupon_id: string, name: string, discount: number }} QuotedCoupon */
/** @typedef {{ subtotal: number, discount: number, total: number, orderable: boolean, problems: any[], coupons: QuotedCoupon[] }} Quote */
/** @typedef {Record<string, number>} Basket pieces by product */
/** @typedef {{ tone: "good" | "bad" | "plain", text: string, id: number }} Notice */

const KEPT_USER = "rushgate.shopper";
const KEPT_BASKET = "rushgate.basket";
const NOTICE_MS = 6000;
const HISTORY = 20;

export const user = createStore(sessionStorage.getItem(KEPT_USER) ?? "user-1");
export const balance = createStore(/** @type {number | undefined} */ (undefined));
export const coupons = createStore(/** @type {Coupon[]} */ ([]));
export const orders = createStore(/** @type {Order[]} */ ([]));
export const notices = createStore(/** @type {Notice[]} */ ([]));
export const basket = createStore(readBasket());
/** What this server can do beyond the first version, from its description. */
export const features = createStore({ quote: false, external: false });

/** @returns {Basket} */
function readBasket() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT_BASKET) ?? "{}");
  } catch {
    return {};
  }
}

// ---- calls ---------------------------------------------------------------------------------------

let token = "";

/**
 * A call that is not in the client's types: a route of the demo, or of a newer server.
 * @param {string} path @param {object} body @param {boolean} [asShopper] with the token
 * @returns {Promise<any>}
 */
export async function post(path, body, asShopper = false) {
  const headers = new Headers({ "content-type": "application/json", "accept-language": language.get() });
  if (asShopper) headers.set("authorization", `Bearer ${await currentToken()}`);
  const request = new Request(path, { method: "POST", headers, body: JSON.stringify(body) });
  const response = await (asShopper ? fetchAsShopper(request) : fetch(request));
  const answer = await response.json();
  if (response.ok) return answer;
  throw new RushgateProblem(answer, response, { key: undefined, attempts: 1, outcomeUnknown: false });
}

async function currentToken() {
  if (!token) token = (await post("/shop/token", { user_id: user.get() })).token;
  return token;
}

/** Fetches with the token; one that has expired is replaced once. @param {Request} request */
async function fetchAsShopper(request) {
  const again = request.clone();
  let response = await fetch(request);
  if (response.status === 401) {
    token = "";
    again.headers.set("authorization", `Bearer ${await currentToken()}`);
    response = await fetch(again);
  }
  observeDate(response);
  return response;
}

/** The client in the page's language. */
export function api() {
  return createClient({
    baseUrl: location.origin,
    token: currentToken,
    fetch: fetchAsShopper,
    locale: language.get(),
  });
}

/** The whole answer in few seconds, or none. */
export const RETRY = { attempts: 6, withinMs: 12_000 };

// ---- what the shopper is told --------------------------------------------------------------------

let noticed = 0;

/** @param {Notice["tone"]} tone @param {string} text */
export function notify(tone, text) {
  const id = ++noticed;
  notices.set((all) => [...all.slice(-2), { tone, text, id }]);
  setTimeout(() => notices.set((all) => all.filter((notice) => notice.id !== id)), NOTICE_MS);
}

/** A failure in the shopper's words. @param {any} error */
export function explain(error) {
  const code = `problem.${error?.code}`;
  if (has(code)) return t(code, error);
  if (error instanceof RushgateProblem) return error.message;
  if (typeof error?.detail === "string") return error.detail;
  return t("problem.unreachable");
}

// ---- reads ---------------------------------------------------------------------------------------

/** Wallet, coupons and orders; a part that cannot be read stays as it was. */
export async function refresh() {
  const shopper = user.get();
  const params = { path: { user: shopper } };
  const page = { ...params, query: { limit: HISTORY } };
  const client = api();
  const reads = [
    orThrow(client.GET("/v1/users/{user}/wallet", { params })).then((it) => () => balance.set(it.balance)),
    orThrow(client.GET("/v1/users/{user}/coupons", { params: { ...params, query: { limit: 100 } } })).then(
      (it) => () => coupons.set(it.data),
    ),
    orThrow(client.GET("/v1/users/{user}/orders", { params: page })).then((it) => () => orders.set(it.data)),
  ];
  for (const read of await Promise.allSettled(reads)) {
    // The shopper may be another one by now.
    if (read.status === "fulfilled" && user.get() === shopper) read.value();
  }
}

/** @param {string} chosen */
export function becomeUser(chosen) {
  token = "";
  sessionStorage.setItem(KEPT_USER, chosen);
  balance.set(undefined);
  coupons.set([]);
  orders.set([]);
  user.set(chosen);
  return refresh();
}

export async function readFeatures() {
  const { paths, components } = await description();
  const schemas = components?.schemas ?? {};
  features.set({
    quote: "/v1/orders/quote" in paths,
    external: "payment" in (schemas.PlaceOrder?.properties ?? {}),
  });
}

// ---- the basket ----------------------------------------------------------------------------------

/** @param {string} product @param {number} pieces */
export function setPieces(product, pieces) {
  basket.set((now) => {
    const { [product]: _, ...others } = now;
    return pieces > 0 ? { ...others, [product]: Math.min(pieces, 1000) } : others;
  });
  sessionStorage.setItem(KEPT_BASKET, JSON.stringify(basket.get()));
}

export function emptyBasket() {
  basket.set({});
  sessionStorage.setItem(KEPT_BASKET, "{}");
}

/** @param {string} product */
export function addToBasket(product) {
  setPieces(product, (basket.get()[product] ?? 0) + 1);
}

/** What a coupon takes off, as the shop computes it. @param {Coupon} coupon @param {number} subtotal */
export function discountOf(coupon, subtotal) {
  const least = /** @type {{ min_subtotal?: number }} */ (coupon).min_subtotal ?? 0;
  if (subtotal < least) return 0;
  const { type, value, max } = coupon.discount;
  const off = type === "amount" ? value : Math.floor((subtotal * value) / 100);
  return Math.min(off, max ?? off, subtotal);
}
