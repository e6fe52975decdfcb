// The rush board: what is left of each template and product, over the last minutes.

import { useServerNow } from "../common/clock.js";
import { StepChart } from "../common/chart.js";
import { html, useState } from "../common/html.js";
import { clockTime, count, duration } from "../common/i18n.js";
import { connection, products, templates, updatedAt } from "../common/live.js";
import { useStore } from "../common/store.js";
import { State } from "./overview.js";
import { Source } from "./state.js";
import { t } from "./texts.js";

/** @typedef {import("../common/chart.js").Point} Point */

const KEPT_MS = 5 * 60_000;
const SHOWN_MS = 60_000;
/** Rates are of the last seconds. */
const RATE_MS = 3000;
const POINTS = 2000;

/** What was left when, by kind and id; kept while the console is open. @type {Map<string, Point[]>} */
const history = new Map();

/** @param {string} key @param {number} value */
function record(key, value) {
  const now = Date.now();
  const points = history.get(key) ?? [];
  if (points.at(-1)?.value !== value) points.push({ at: now, value });
  while (points.length > POINTS || (points[1] && now - points[1].at > KEPT_MS)) points.shift();
  history.set(key, points);
}

/** Begins to remember, also while another section is shown. */
export function remember() {
  const all = () => {
    for (const { id, remaining } of templates.get()) record(`t ${id}`, remaining);
    for (const { id, stock } of products.get()) record(`p ${id}`, stock);
  };
  templates.follow(all);
  products.follow(all);
}

/** The value at a time. @param {Point[]} points @param {number} at */
const valueAt = (points, at) => (points.findLast((point) => point.at <= at) ?? points[0])?.value;

export function RushBoard() {
  const [kind, setKind] = useState("templates");
  const [all, setAll] = useState(false);
  useServerNow(500);
  const shown =
    kind === "templates"
      ? useStore(templates)
          .filter((template) => all || template.state !== "closed")
          .toSorted((a, b) => order(b) - order(a))
      : useStore(products).toSorted((a, b) => lastChange(`p ${b.id}`) - lastChange(`p ${a.id}`));
  const live = useStore(connection) === "live";
  const source = {
    value: undefined,
    at: useStore(updatedAt),
    source: t(live ? "source.live" : "source.polled"),
    trouble: "",
  };
  return html`<h1>${t("nav.rush")}</h1>
    <div class="row spread">
      <div class="segments" role="group" aria-label=${t("nav.rush")}>
        ${["templates", "products"].map(
          (each) => html`<button
            key=${each}
            type="button"
            aria-pressed=${kind === each}
            onClick=${() => setKind(each)}
          >
            ${t(`rush.${each}`)}
          </button>`,
        )}
      </div>
      ${kind === "templates" &&
      html`<label class="check">
        <input type="checkbox" checked=${all} onChange=${() => setAll(!all)} /> ${t("rush.all")}
      </label>`}
      <${Source} of=${source} />
    </div>
    ${shown.length === 0 && html`<p class="empty">${t("rush.none")}</p>`}
    <ul class="boards">
      ${shown.slice(0, 24).map(
        (each) =>
          html`<li key=${each.id}>
            ${"remaining" in each ? html`<${TemplateBoard} template=${each} />` : html`<${ProductBoard} product=${each} />`}
          </li>`,
      )}
    </ul>`;
}

/** What can still be had comes first, then what has changed last. @param {import("../common/live.js").Template} template */
const order = (template) =>
  (["open", "scheduled"].includes(template.state) ? 1e9 : 0) + lastChange(`t ${template.id}`);

/** Products and templates that change come first, in steps, so that they do not jump about. @param {string} key */
const lastChange = (key) => Math.floor((history.get(key)?.at(-1)?.at ?? 0) / 30_000);

/** @param {{ template: import("../common/live.js").Template }} props */
function TemplateBoard({ template }) {
  const opens = Date.parse(template.issue_from) - Date.now();
  return html`<${Board}
    id="t ${template.id}"
    name=${template.name}
    state=${template.state}
    left=${template.remaining}
    about=${t("rush.left", { n: template.max_issued })}
    top=${template.max_issued}
    rate=${t("rush.rate")}
    note=${opens > 0 ? t("rush.opens", { time: duration(opens) }) : ""}
  />`;
}

/** @param {{ product: import("../common/live.js").Product & { state?: string } }} props */
function ProductBoard({ product }) {
  const points = history.get(`p ${product.id}`) ?? [];
  const state = product.state ?? (product.status === "suspended" ? "suspended" : product.stock > 0 ? "open" : "sold_out");
  return html`<${Board}
    id="p ${product.id}"
    name=${product.name}
    state=${state}
    left=${product.stock}
    about=${t("rush.stock")}
    top=${Math.max(product.stock, ...points.map((point) => point.value))}
    rate=${t("rush.sold")}
    note=""
  />`;
}

/** @param {{ id: string, name: string, state: string, left: number, about: string, top: number, rate: string, note: string }} props */
function Board({ id, name, state, left, about, top, rate, note }) {
  const now = Date.now();
  const points = history.get(id) ?? [];
  const from = now - SHOWN_MS;
  const before = valueAt(points, from) ?? left;
  const shown = [
    { at: from, value: before },
    ...points.filter((point) => point.at > from),
    { at: now, value: left },
  ];
  const was = valueAt(points, now - RATE_MS) ?? left;
  const perSecond = Math.max(0, was - left) / (RATE_MS / 1000);
  return html`<article class="card board" data-board=${id.slice(2)}>
    <header class="row spread"><h2>${name}</h2><${State} state=${state} /></header>
    <p class="muted small"><code>${id.slice(2)}</code> ${note && html`· <b>${note}</b>`}</p>
    <p><span class="number">${count(left)}</span> <span class="muted">${about}</span></p>
    <p class="small">${rate}: <b>${perSecond.toFixed(1)}</b></p>
    <${StepChart}
      points=${shown}
      from=${from}
      to=${now}
      top=${top}
      label=${t("rush.chart", { name, n: SHOWN_MS / 1000 })}
      formatTime=${clockTime}
      formatValue=${count}
    />
  </article>`;
}
