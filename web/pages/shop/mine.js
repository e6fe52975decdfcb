// What the shopper has: wallet, coupons, orders.

import { serverNow, useServerNow } from "../common/clock.js";
import { html, useEffect, useState } from "../common/html.js";
import { dateTime, duration, money } from "../common/i18n.js";
import { useStore } from "../common/store.js";
import { Off } from "./coupons.js";
import { api, balance, coupons, explain, notify, orders, post, refresh, RETRY, user } from "./state.js";
import { t } from "./texts.js";

/** @typedef {import("./state.js").Order} Order */

const CHARGES = [10_000, 50_000];

export function Mine() {
  const shopper = useStore(user);
  return html`<h1>${t("mine.title", { user: shopper })}</h1>
    <${Wallet} />
    <${MyCoupons} />
    <${MyOrders} />`;
}

function Wallet() {
  const won = useStore(balance);
  /** @param {number} amount */
  const onCharge = async (amount) => {
    try {
      await api().once("/v1/users/{user}/wallet/charges", {
        params: { path: { user: user.get() } },
        body: { amount },
        ...RETRY,
      });
      notify("good", t("mine.charged", { money: money(amount) }));
    } catch (error) {
      notify("bad", explain(error));
    }
    void refresh();
  };
  return html`<section class="card wallet" aria-labelledby="wallet">
    <div>
      <h2 id="wallet">${t("mine.wallet")}</h2>
      <p class="big-money" data-balance>${won === undefined ? "…" : money(won)}</p>
    </div>
    <div class="row">
      ${CHARGES.map(
        (amount) => html`<button
          key=${amount}
          type="button"
          class="button button-plain"
          data-charge=${amount}
          onClick=${() => onCharge(amount)}
        >
          ${t("mine.charge", { money: money(amount) })}
        </button>`,
      )}
    </div>
  </section>`;
}

function MyCoupons() {
  const mine = useStore(coupons);
  return html`<section aria-labelledby="my-coupons">
    <div class="section-head"><h2 id="my-coupons">${t("mine.coupons")}</h2></div>
    ${mine.length === 0 && html`<p class="empty">${t("mine.coupons.none")}</p>`}
    <ul class="tickets">
      ${mine.map(
        (coupon) => html`<li key=${coupon.coupon_id}>
          <article class="ticket ${coupon.status === "available" ? "" : "ticket-over"}">
            <div class="ticket-stub"><${Off} discount=${coupon.discount} /></div>
            <div class="ticket-body">
              <h3>${coupon.name}</h3>
              <p class="small">
                <span class="status status-${coupon.status}">${t(`status.${coupon.status}`)}</span> ${t("coupon.serial", {
                  serial: coupon.serial,
                })}
              </p>
              <p class="muted small">${t("mine.expires", { date: dateTime(coupon.expires_at) })}</p>
            </div>
          </article>
        </li>`,
      )}
    </ul>
  </section>`;
}

function MyOrders() {
  const mine = useStore(orders);
  return html`<section aria-labelledby="my-orders">
    <div class="section-head"><h2 id="my-orders">${t("mine.orders")}</h2></div>
    ${mine.length === 0 && html`<p class="empty">${t("mine.orders.none")}</p>`}
    <ul class="orders">
      ${mine.map((order) => html`<li key=${order.order_id}><${OrderCard} order=${order} /></li>`)}
    </ul>
  </section>`;
}

/** @param {{ order: Order }} props */
function OrderCard({ order }) {
  const [busy, setBusy] = useState(false);
  const date = dateTime(order.ordered_at);
  const pending = order.status === "pending" && order.hold_expires_at;
  useServerNow(1000, Boolean(pending));
  const left = pending ? Date.parse(pending) - serverNow() : 0;
  // The order is given up soon after its time is over.
  useEffect(() => {
    if (pending && left <= 0) setTimeout(refresh, 1500);
  }, [left <= 0]);
  const onCard = async () => {
    setBusy(true);
    try {
      await post("/shop/card", { order_id: order.order_id }, true);
      notify("good", t("order.confirmed", { money: money(order.amount_due ?? order.total) }));
    } catch (error) {
      notify("bad", explain(error));
    }
    await refresh();
    setBusy(false);
  };
  const onCancel = async () => {
    setBusy(true);
    try {
      await api().once("/v1/orders/{id}/cancel", {
        params: { path: { id: order.order_id } },
        ...RETRY,
      });
      notify("good", t("mine.cancelled", { money: money(order.total) }));
    } catch (error) {
      notify("bad", explain(error));
    }
    await refresh();
    setBusy(false);
  };
  return html`<article class="card order" data-order=${order.order_id}>
    <header class="order-head">
      <h3>${date}</h3>
      <span class="status status-${order.status}">${t(`status.${order.status}`)}</span>
    </header>
    <ul class="order-items">
      ${order.items.map(
        (item) => html`<li key=${item.product_id}>
          <span>${item.name} × ${item.quantity}</span><span>${money(item.amount)}</span>
        </li>`,
      )}
      ${order.discount > 0 &&
      html`<li class="muted"><span>${t("order.discount")}</span><span>${money(-order.discount)}</span></li>`}
    </ul>
    <footer class="order-foot">
      <b>${money(order.total)}</b>
      ${pending &&
      html`<span class="small" data-hold>${t("order.expires", { time: duration(left) })}</span>
        <button type="button" class="button button-small" data-card disabled=${busy || left <= 0} onClick=${onCard}>
          ${t("order.confirm", { money: money(order.amount_due ?? order.total) })}
        </button>`}
      ${(order.status === "paid" || pending) &&
      html`<button
        type="button"
        class="button button-plain button-small"
        aria-label=${t("mine.cancel.label", { date })}
        disabled=${busy}
        onClick=${onCancel}
      >
        ${t("mine.cancel")}
      </button>`}
    </footer>
  </article>`;
}
