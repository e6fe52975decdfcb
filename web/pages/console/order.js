// One order: what is in it, and what staff can do with it.

import { orThrow } from "../client/index.js";
import { html, useState } from "../common/html.js";
import { dateTime, money } from "../common/i18n.js";
import { Field } from "./forms.js";
import { SavingForm } from "./catalogue.js";
import { State } from "./overview.js";
import { api, explain, notify, RETRY } from "./state.js";
import { t } from "./texts.js";

/** Members of servers that know payments outside. @typedef {import("./state.js").Schemas["Order"] & { amount_due?: number, hold_expires_at?: string, reference?: string, payment_reference?: string }} Order */

/** @param {{ order: Order, onChange: () => void }} props */
export function OrderDetail({ order, onChange }) {
  const [sure, setSure] = useState(false);
  const onCancel = async () => {
    if (!sure) {
      setSure(true);
      return;
    }
    setSure(false);
    try {
      const path = { id: order.order_id };
      await api().once("/v1/orders/{id}/cancel", { params: { path }, ...RETRY });
      notify("good", t("order.cancelled"));
    } catch (error) {
      notify("bad", explain(error));
    }
    onChange();
  };
  /** @type {[string, import("../common/html.js").Children][]} */
  const facts = [
    ["order.at", dateTime(order.ordered_at)],
    ["order.subtotal", money(order.subtotal)],
    ["order.discount", money(-order.discount)],
    ["order.total", money(order.total)],
    ["order.coupon", order.coupon_id ?? "–"],
    ...(order.reference ? [/** @type {[string, string]} */ (["order.reference", order.reference])] : []),
    ...(order.amount_due ? [/** @type {[string, string]} */ (["order.due", money(order.amount_due)])] : []),
    ...(order.hold_expires_at
      ? [/** @type {[string, string]} */ (["order.holds", dateTime(order.hold_expires_at)])]
      : []),
  ];
  return html`<article class="card stack" data-order=${order.order_id} data-status=${order.status}>
    <header class="row spread">
      <h2>${t("order.title", { user: order.user_id })}</h2>
      <${State} state=${order.status} />
    </header>
    <p class="small muted"><code>${order.order_id}</code></p>
    <ul class="pairs">
      ${order.items.map(
        (item) => html`<li key=${item.product_id}>
          <span>${item.name} × ${item.quantity} <code class="muted">${item.product_id}</code></span>
          <span>${money(item.amount)}</span>
        </li>`,
      )}
    </ul>
    <dl class="facts">
      ${facts.map(([name, value]) => html`<div key=${name}><dt>${t(name)}</dt><dd>${value}</dd></div>`)}
    </dl>
    ${(order.status === "paid" || /** @type {string} */ (order.status) === "pending") &&
    html`<div class="row">
      <button type="button" class="button ${sure ? "" : "button-plain"}" data-cancel onClick=${onCancel}>
        ${t(sure ? "order.cancel.sure" : "order.cancel")}
      </button>
      <a class="button button-plain" href="#/find/user/${encodeURIComponent(order.user_id)}">${t("find.user")}</a>
    </div>`}
    ${/** @type {string} */ (order.status) === "pending" && html`<${Confirm} order=${order} onChange=${onChange} />`}
  </article>`;
}

/** @param {{ order: Order, onChange: () => void }} props */
function Confirm({ order, onChange }) {
  const save = async (/** @type {ReturnType<typeof import("./forms.js").formOf>} */ form) => {
    const init = { params: { path: { id: order.order_id } }, body: { payment_reference: form.text("reference") } };
    // The client's types know this route as soon as the description does.
    const post = /** @type {(path: string, init: object) => any} */ (api().POST);
    await orThrow(post("/v1/orders/{id}/confirm", init));
    return t("order.confirmed");
  };
  return html`<${SavingForm} save=${save} onDone=${onChange}>
    <h3>${t("order.confirm")}</h3>
    <${Field} name="reference" label=${t("order.confirm.reference")} maxlength="128" />
  <//>`;
}
