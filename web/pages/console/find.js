// Finding an order, orders, a user, the holders of a coupon.

import { orThrow } from "../client/index.js";
import { html, useEffect, useState } from "../common/html.js";
import { dateTime, money } from "../common/i18n.js";
import { Icon } from "../common/ui.js";
import { Choice, Field, formOf, ID } from "./forms.js";
import { OrderDetail } from "./order.js";
import { State } from "./overview.js";
import { api, explain, notify } from "./state.js";
import { t } from "./texts.js";

/** @typedef {import("./state.js").Schemas} Schemas */

const PAGE = 50;
const CSV_ROWS = 1_000_000;
const KINDS = ["orders", "order", "user", "holders"];

/** @param {{ path: string[] }} props `["holders", "welcome"]` and the like */
export function Find({ path }) {
  const kind = KINDS.includes(path[0] ?? "") ? path[0] : "orders";
  const id = path[1] ? decodeURIComponent(path[1]) : "";
  return html`<h1>${t("nav.find")}</h1>
    <nav class="segments segments-wide" aria-label=${t("find.what")}>
      ${KINDS.map(
        (each) => html`<a key=${each} href="#/find/${each}" aria-current=${kind === each ? "page" : undefined}>
          ${t(`find.${each}`)}
        </a>`,
      )}
    </nav>
    ${kind === "order" && html`<${FindOrder} key=${id} id=${id} />`}
    ${kind === "orders" && html`<${FindOrders} />`}
    ${kind === "user" && html`<${FindUser} key=${id} id=${id} />`}
    ${kind === "holders" && html`<${FindHolders} key=${id} id=${id} />`}`;
}

/** A search: what it found, and what went wrong. @template T */
function useSearch() {
  const [found, setFound] = useState(/** @type {T | undefined} */ (undefined));
  const [busy, setBusy] = useState(false);
  const [trouble, setTrouble] = useState("");
  /** @param {() => Promise<T>} read */
  const search = async (read) => {
    setBusy(true);
    setTrouble("");
    try {
      setFound(await read());
    } catch (error) {
      setTrouble(explain(error));
    }
    setBusy(false);
  };
  return { found, busy, trouble, search };
}

/** @param {{ busy: boolean, trouble: string }} props */
function SearchButton({ busy, trouble }) {
  return html`<button class="button" disabled=${busy}>${t(busy ? "find.searching" : "find.search")}</button>
    <div role="alert" class="wide">${trouble && html`<p class="alert">${trouble}</p>`}</div>`;
}

/** @param {{ id: string }} props */
function FindOrder({ id }) {
  const { found, busy, trouble, search } = /** @type {ReturnType<typeof useSearch<Schemas["Order"]>>} */ (useSearch());
  const read = (/** @type {string} */ order) =>
    search(() => orThrow(api().GET("/v1/orders/{id}", { params: { path: { id: order } } })));
  useEffect(() => void (id && read(id)), [id]);
  return html`<form class="card search" onSubmit=${(/** @type {SubmitEvent} */ event) => read(formOf(event).text("id"))}>
      <${Field} name="id" label=${t("find.order.id")} value=${id} spellcheck=${false} />
      <${SearchButton} busy=${busy} trouble=${trouble} />
    </form>
    ${found && html`<${OrderDetail} order=${found} onChange=${() => read(found.order_id)} />`}`;
}

/** @param {{ orders: Schemas["Order"][] }} props */
function OrderTable({ orders }) {
  if (orders.length === 0) return html`<p class="empty">${t("find.none")}</p>`;
  return html`<div class="card table-card" tabindex="0" role="group" aria-label=${t("find.orders")}>
    <table>
      <thead>
        <tr>
          <th scope="col">${t("col.at")}</th>
          <th scope="col">${t("col.user")}</th>
          <th scope="col">${t("order.items")}</th>
          <th scope="col" class="right">${t("col.total")}</th>
          <th scope="col">${t("col.status")}</th>
          <th scope="col">${t("col.order")}</th>
        </tr>
      </thead>
      <tbody>
        ${orders.map(
          (order) => html`<tr key=${order.order_id}>
            <td class="small">${dateTime(order.ordered_at)}</td>
            <td><a href="#/find/user/${encodeURIComponent(order.user_id)}">${order.user_id}</a></td>
            <td class="small">${order.items.map((item) => `${item.name} × ${item.quantity}`).join(", ")}</td>
            <td class="right">${money(order.total)}</td>
            <td><${State} state=${order.status} /></td>
            <td class="small"><a href="#/find/order/${order.order_id}"><code>…${order.order_id.slice(-8)}</code></a></td>
          </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

function FindOrders() {
  const [query, setQuery] = useState(/** @type {Record<string, string>} */ ({}));
  const { found, busy, trouble, search } =
    /** @type {ReturnType<typeof useSearch<{ data: Schemas["Order"][], next: string | null }>>} */ (useSearch());
  /** @param {Record<string, string>} filter @param {string} [after] */
  const read = (filter, after) =>
    search(async () => {
      const page = await orThrow(
        api().GET("/v1/orders", { params: { query: { ...filter, limit: PAGE, ...(after ? { after } : {}) } } }),
      );
      return after ? { ...page, data: [...(found?.data ?? []), ...page.data] } : page;
    });
  useEffect(() => void read({}), []);
  const onSubmit = (/** @type {SubmitEvent} */ event) => {
    const form = formOf(event);
    const filter = {
      user_id: form.optional("user_id"),
      product_id: form.optional("product_id"),
      template_id: form.optional("template_id"),
      status: form.optional("status"),
      from: form.moment("from"),
      until: form.moment("until"),
    };
    const given = Object.fromEntries(Object.entries(filter).flatMap(([name, value]) => (value ? [[name, value]] : [])));
    setQuery(given);
    void read(given);
  };
  const statuses = ["paid", "pending", "cancelled", "expired"].map((each) => [each, t(`state.${each}`)]);
  return html`<form class="card search" onSubmit=${onSubmit}>
      <${Field} optional name="user_id" label=${t("find.user.id")} ...${ID} />
      <${Field} optional name="product_id" label=${t("find.product.id")} ...${ID} />
      <${Field} optional name="template_id" label=${t("find.template.id")} ...${ID} />
      <${Choice} name="status" label=${t("find.status")} options=${[["", t("find.any")], ...statuses]} />
      <${Field} optional name="from" label=${t("find.from")} type="datetime-local" step="1" />
      <${Field} optional name="until" label=${t("find.until")} type="datetime-local" step="1" />
      <${SearchButton} busy=${busy} trouble=${trouble} />
    </form>
    ${found && html`<${OrderTable} orders=${found.data} />`}
    ${found?.next &&
    html`<button type="button" class="button button-plain" disabled=${busy} onClick=${() => read(query, found.next ?? "")}>
      ${t("find.more")}
    </button>`}`;
}

/** @typedef {{ wallet: Schemas["Wallet"], entries: Schemas["WalletEntry"][], coupons: Schemas["Coupon"][], orders: Schemas["Order"][] }} Person */

/** @param {string} user @returns {Promise<Person>} */
async function readPerson(user) {
  const params = { path: { user } };
  const page = { ...params, query: { limit: PAGE } };
  const client = api();
  const [wallet, entries, coupons, orders] = await Promise.all([
    orThrow(client.GET("/v1/users/{user}/wallet", { params })),
    orThrow(client.GET("/v1/users/{user}/wallet/entries", { params: page })),
    orThrow(client.GET("/v1/users/{user}/coupons", { params: page })),
    orThrow(client.GET("/v1/users/{user}/orders", { params: page })),
  ]);
  return { wallet, entries: entries.data, coupons: coupons.data, orders: orders.data };
}

/** @param {{ id: string }} props */
function FindUser({ id }) {
  const { found, busy, trouble, search } = /** @type {ReturnType<typeof useSearch<Person>>} */ (useSearch());
  useEffect(() => void (id && search(() => readPerson(id))), [id]);
  const onSubmit = (/** @type {SubmitEvent} */ event) => {
    const user = formOf(event).text("id");
    if (user === id) void search(() => readPerson(user));
    else location.hash = `#/find/user/${encodeURIComponent(user)}`;
  };
  return html`<form class="card search" onSubmit=${onSubmit}>
      <${Field} name="id" label=${t("find.user.id")} value=${id} ...${ID} />
      <${SearchButton} busy=${busy} trouble=${trouble} />
    </form>
    ${found &&
    html`<section>
        <h2>${t("user.wallet")}: <span data-balance>${money(found.wallet.balance)}</span></h2>
      </section>
      <section>
        <h2>${t("user.orders")}</h2>
        <${OrderTable} orders=${found.orders} />
      </section>
      <section>
        <h2>${t("user.coupons")}</h2>
        <${Rows}
          label=${t("user.coupons")}
          heads=${["col.coupon", "col.serial", "col.status", "col.at"]}
          rows=${found.coupons.map((coupon) => [
            coupon.name,
            coupon.serial,
            html`<${State} state=${coupon.status} />`,
            dateTime(coupon.issued_at),
          ])}
        />
      </section>
      <section>
        <h2>${t("user.entries")}</h2>
        <${Rows}
          label=${t("user.entries")}
          heads=${["col.at", "col.kind", "col.amount", "col.balance"]}
          rows=${found.entries.map((entry) => [
            dateTime(entry.at),
            t(`kind.${entry.kind}`),
            money(entry.amount),
            money(entry.balance),
          ])}
        />
      </section>`}`;
}

/** @param {{ label: string, heads: string[], rows: import("../common/html.js").Children[][] }} props */
function Rows({ label, heads, rows }) {
  if (rows.length === 0) return html`<p class="empty">${t("find.none")}</p>`;
  return html`<div class="card table-card" tabindex="0" role="group" aria-label=${label}>
    <table>
      <thead>
        <tr>
          ${heads.map((head) => html`<th key=${head} scope="col">${t(head)}</th>`)}
        </tr>
      </thead>
      <tbody>
        ${rows.map(
          (cells, n) => html`<tr key=${n}>
            ${cells.map((cell, at) => html`<td key=${at}>${cell}</td>`)}
          </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

/** @param {{ id: string }} props */
function FindHolders({ id }) {
  const { found, busy, trouble, search } =
    /** @type {ReturnType<typeof useSearch<{ data: Schemas["CouponHolder"][], next: string | null }>>} */ (useSearch());
  const [read, setRead] = useState(/** @type {number | undefined} */ (undefined));
  /** @param {string} template @param {string} [after] */
  const readPage = (template, after) =>
    search(async () => {
      const query = { limit: PAGE, ...(after ? { after } : {}) };
      const page = await orThrow(
        api().GET("/v1/coupon-templates/{id}/coupons", { params: { path: { id: template }, query } }),
      );
      return after ? { ...page, data: [...(found?.data ?? []), ...page.data] } : page;
    });
  useEffect(() => void (id && readPage(id)), [id]);
  const onSubmit = (/** @type {SubmitEvent} */ event) => {
    const template = formOf(event).text("id");
    if (template === id) void readPage(template);
    else location.hash = `#/find/holders/${encodeURIComponent(template)}`;
  };
  const onCsv = async () => {
    try {
      await downloadHolders(id, setRead);
    } catch (error) {
      notify("bad", explain(error));
    }
    setRead(undefined);
  };
  return html`<form class="card search" onSubmit=${onSubmit}>
      <${Field} name="id" label=${t("find.template.id")} value=${id} ...${ID} />
      <${SearchButton} busy=${busy} trouble=${trouble} />
    </form>
    ${found &&
    html`<div class="row">
        <button type="button" class="button button-plain" data-csv disabled=${read !== undefined} onClick=${onCsv}>
          <${Icon} name="download" />${read === undefined ? t("find.csv") : t("find.csv.reading", { n: read })}
        </button>
      </div>
      <${Rows}
        label=${t("find.holders")}
        heads=${["col.serial", "col.user", "col.status", "col.at", "col.order"]}
        rows=${found.data.map((holder) => [
          holder.serial,
          html`<a href="#/find/user/${encodeURIComponent(holder.user_id)}">${holder.user_id}</a>`,
          html`<${State} state=${holder.status} />`,
          dateTime(holder.issued_at),
          holder.order_id
            ? html`<a href="#/find/order/${holder.order_id}"><code>…${holder.order_id.slice(-8)}</code></a>`
            : "",
        ])}
      />`}
    ${found?.next &&
    html`<button type="button" class="button button-plain" disabled=${busy} onClick=${() => readPage(id, found.next ?? "")}>
      ${t("find.more")}
    </button>`}`;
}

/** All holders of a template, as a file. @param {string} template @param {(rows: number) => void} onRows */
async function downloadHolders(template, onRows) {
  const lines = ["serial,user_id,coupon_id,status,issued_at,expires_at,order_id"];
  const init = { params: { path: { id: template }, query: { limit: 100 } } };
  for await (const holder of api().pages("/v1/coupon-templates/{id}/coupons", init)) {
    const { serial, user_id, coupon_id, status, issued_at, expires_at, order_id = "" } = holder;
    // Quoted: spreadsheets would read some ids as numbers or dates.
    lines.push([serial, `"${user_id}"`, coupon_id, status, issued_at, expires_at, order_id].join(","));
    if (lines.length % 500 === 0) onRows(lines.length - 1);
    if (lines.length > CSV_ROWS) break;
  }
  const url = URL.createObjectURL(new Blob([`${lines.join("\r\n")}\r\n`], { type: "text/csv" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = `${template}-holders.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
