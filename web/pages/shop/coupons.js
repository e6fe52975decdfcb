// Coupons to get: what they take off, how many are left, when they open.

import { serverNow, useServerNow } from "../common/clock.js";
import { html, useState } from "../common/html.js";
import { dateTime, duration, money } from "../common/i18n.js";
import { templates } from "../common/live.js";
import { useStore } from "../common/store.js";
import { Meter } from "../common/ui.js";
import { api, coupons, explain, notify, refresh, RETRY, user } from "./state.js";
import { t } from "./texts.js";

/** @typedef {import("../common/live.js").Template} Template */

/** Of the crowds; they are shown in a place of their own. */
export const RIVALS = "rivals-";

/** The state by the server's clock: a read may be a second old. @param {Template} template */
export function stateNow(template) {
  const now = serverNow();
  if (now < Date.parse(template.issue_from)) return "scheduled";
  if (template.state === "closed" || now >= Date.parse(template.issue_until)) return "closed";
  return template.remaining > 0 ? "open" : "sold_out";
}

/**
 * Asks for a coupon. @param {string} templateId
 * @returns {Promise<{ serial?: number, error?: any }>}
 */
export async function takeCoupon(templateId) {
  try {
    const { data } = await api().once("/v1/coupon-templates/{id}/coupons", {
      params: { path: { id: templateId } },
      body: { user_id: user.get() },
      ...RETRY,
    });
    return "serial" in data ? { serial: data.serial } : {};
  } catch (error) {
    return { error };
  }
}

export function Coupons() {
  const shown = useStore(templates).filter((template) => !template.id.startsWith(RIVALS));
  return html`<section aria-labelledby="coupons">
    <div class="section-head">
      <h2 id="coupons">${t("coupons.title")}</h2>
      <p class="muted">${t("coupons.about")}</p>
    </div>
    ${shown.length === 0 && html`<p class="empty">${t("coupons.none")}</p>`}
    <ul class="tickets">
      ${shown.map((template) => html`<li key=${template.id}><${Ticket} template=${template} /></li>`)}
    </ul>
  </section>`;
}

/** @param {{ discount: Template["discount"] }} props */
export function Off({ discount }) {
  const { type, value } = discount;
  return html`<span class="ticket-off">
    ${type === "percent" ? `${value}%` : money(value)} <small>${t("coupon.off")}</small>
  </span>`;
}

/** @param {{ template: Template }} props */
function Ticket({ template }) {
  const held = useStore(coupons).find((coupon) => coupon.template_id === template.id);
  const [asking, setAsking] = useState(false);
  const scheduled = serverNow() < Date.parse(template.issue_from);
  useServerNow(250, scheduled);
  const state = stateNow(template);
  const left = { n: template.remaining, of: template.max_issued };
  const least = template.min_subtotal > 0 && t("coupon.from", { money: money(template.min_subtotal) });
  const max = template.discount.max && t("coupon.max", { money: money(template.discount.max) });

  const onTake = async () => {
    setAsking(true);
    const { serial, error } = await takeCoupon(template.id);
    setAsking(false);
    if (error) notify("bad", explain(error));
    else notify("good", t("coupon.got", { serial: serial ?? "" }));
    void refresh();
  };

  return html`<article class="ticket ${state === "open" || state === "scheduled" ? "" : "ticket-over"}">
    <div class="ticket-stub"><${Off} discount=${template.discount} /></div>
    <div class="ticket-body">
      <h3>${template.name}</h3>
      <p class="muted small">
        ${[max, least, t("coupon.until", { date: dateTime(template.issue_until) })].filter(Boolean).join(" · ")}
      </p>
      <div class="ticket-left">
        <${Meter} value=${template.remaining} of=${template.max_issued} label=${t("coupon.left", left)} />
        <span class="small" data-left=${template.id}>${t("coupon.left", left)}</span>
      </div>
      ${state === "scheduled"
        ? html`<p class="countdown">
            ${t("coupon.opens", { time: duration(Date.parse(template.issue_from) - serverNow()) })}
          </p>`
        : html`<button
            type="button"
            class="button"
            data-coupon=${template.id}
            disabled=${Boolean(held) || state !== "open" || asking}
            onClick=${onTake}
          >
            ${held
              ? t(held.status === "used" ? "coupon.used" : "coupon.have")
              : asking
                ? t("rush.pressing")
                : t(state === "open" ? "coupon.get" : state === "sold_out" ? "coupon.soldout" : "coupon.closed")}
          </button>`}
    </div>
  </article>`;
}
