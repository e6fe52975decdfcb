// The state of cells, outbox and connections, and what this instance has answered lately.

import { orThrow } from "../client/index.js";
import { hasRoute } from "../common/description.js";
import { html, useEffect, useState } from "../common/html.js";
import { count } from "../common/i18n.js";
import { api, Source, useRead } from "./state.js";
import { t } from "./texts.js";

/** @typedef {{ name: string, labels: Record<string, string>, value: number }} Sample */
/** @typedef {{ at: number, samples: Sample[] }} Scrape */

const STATUS_MS = 2000;
const METRICS_MS = 5000;
/** Metrics of the last scrapes, for rates. */
const SCRAPES_KEPT = 2;

export function Overview() {
  const status = useRead(
    "GET /v1/admin/status",
    () => orThrow(api().GET("/v1/admin/status")),
    STATUS_MS,
  );
  const metrics = useRead("GET /v1/admin/metrics", readMetrics, METRICS_MS);
  const [scrapes, setScrapes] = useState(/** @type {Scrape[]} */ ([]));
  useEffect(() => {
    const samples = metrics.value;
    if (samples) setScrapes((all) => [...all, { at: metrics.at, samples }].slice(-SCRAPES_KEPT));
  }, [metrics.at]);
  const samples = metrics.value ?? [];
  const sum = (/** @type {string} */ name) => total(samples, name);
  const lost = metrics.value && sum("rushgate_decisions_lost_total");
  return html`<h1>${t("nav.overview")}</h1>
    <section aria-labelledby="status">
      <h2 id="status">${t("status.title")}</h2>
      <div class="tiles">
        ${status.value?.cells.map((cell) => html`<${Cell} key=${cell.cell} cell=${cell} of=${status} />`)}
        <${Tile}
          name=${t("status.outbox")}
          value=${status.value?.outbox_length}
          unit=${t("status.outbox.unit")}
          of=${status}
          warn=${(status.value?.outbox_length ?? 0) > 10_000}
        />
        <${Tile}
          name=${t("status.lost")}
          value=${lost}
          unit=${t("status.lost.unit")}
          of=${metrics}
          warn=${(lost ?? 0) > 0}
        />
        <${Tile}
          name=${t("status.flight")}
          value=${metrics.value && sum("rushgate_http_requests_in_flight")}
          unit=${t("status.flight.unit")}
          of=${metrics}
        />
        <${Connections} connections=${status.value?.connections} of=${status} />
      </div>
    </section>
    <${Requests} scrapes=${scrapes} of=${metrics} />
    <${Refusals} scrapes=${scrapes} of=${metrics} />`;
}

/** An older server has no such route; then there is nothing to show. @returns {Promise<Sample[]>} */
async function readMetrics() {
  if (!(await hasRoute("/v1/admin/metrics"))) return [];
  return (await orThrow(api().GET("/v1/admin/metrics"))).data;
}

/** @param {Sample[]} samples @param {string} name */
function total(samples, name) {
  return samples.filter((sample) => sample.name === name).reduce((sum, { value }) => sum + value, 0);
}

/** @param {{ state: string }} props */
export function State({ state }) {
  return html`<span class="status status-${state}">${t(`state.${state}`)}</span>`;
}

/** @param {{ name: string, value: number | null | undefined, unit: string, of: import("./state.js").Read<unknown>, warn?: boolean }} props */
function Tile({ name, value, unit, of, warn }) {
  return html`<article class="card tile ${warn ? "tile-warn" : ""}">
    <h3>${name}</h3>
    <p class="number">${value === null || value === undefined ? "–" : count(value)}</p>
    <p class="muted small">${unit}</p>
    <${Source} of=${of} />
  </article>`;
}

/** @param {{ cell: import("./state.js").Schemas["Cell"], of: import("./state.js").Read<unknown> }} props */
function Cell({ cell, of }) {
  const number = (/** @type {number | null | undefined} */ value) => (typeof value === "number" ? count(value) : t("status.unknown"));
  return html`<article class="card tile" data-cell=${cell.cell}>
    <h3>${t("status.cell", { n: cell.cell })} <${State} state=${cell.state} /></h3>
    <p class="number" data-lag>${typeof cell.lag !== "number" ? "–" : count(cell.lag)}</p>
    <p class="muted small">${t("status.lag.unit")}</p>
    <p class="small">
      ${t("status.epoch")} ${number(cell.epoch)} · ${t("status.seq")} ${number(cell.seq)} · ${t("status.applied")}
      ${" "}${number(cell.applied)}
    </p>
    ${cell.reason && html`<p class="alert">${cell.reason}</p>`}
    ${cell.writes_refused && html`<p class="alert">${cell.writes_refused}</p>`}
    <${Source} of=${of} />
  </article>`;
}

/** @param {{ connections: import("./state.js").Schemas["Connections"] | undefined, of: import("./state.js").Read<unknown> }} props */
function Connections({ connections, of }) {
  const servers = /** @type {const} */ ([
    ["Redis", connections?.redis],
    ["PostgreSQL", connections?.postgres],
    ["RabbitMQ", connections && (connections.rabbitmq ?? "absent")],
  ]);
  return html`<article class="card tile">
    <h3>${t("status.connections")}</h3>
    <ul class="pairs">
      ${servers.map(
        ([name, state]) => html`<li key=${name}><span>${name}</span> ${state && html`<${State} state=${state} />`}</li>`,
      )}
    </ul>
    <${Source} of=${of} />
  </article>`;
}

/**
 * The quantile of a histogram: the bucket's upper bound, in seconds.
 * @param {[bound: number, count: number][]} buckets cumulative
 * @param {number} q
 */
export function quantile(buckets, q) {
  const sorted = [...buckets].sort(([a], [b]) => a - b);
  const all = sorted.at(-1)?.[1] ?? 0;
  if (all <= 0) return undefined;
  return sorted.find(([, n]) => n >= all * q)?.[0];
}

/**
 * What happened between the last two scrapes, by series.
 * @param {Scrape[]} scrapes @param {string} name
 */
function between(scrapes, name) {
  const [before, after] = scrapes;
  const key = (/** @type {Sample} */ sample) => JSON.stringify(sample.labels);
  const old = new Map(before?.samples.filter((s) => s.name === name).map((s) => [key(s), s.value]));
  const now = after?.samples.filter((sample) => sample.name === name) ?? [];
  const secs = before && after ? (after.at - before.at) / 1000 : 0;
  // A counter that fell was started anew.
  const grown = now.map((sample) => {
    const was = old.get(key(sample)) ?? 0;
    return { labels: sample.labels, more: sample.value >= was ? sample.value - was : sample.value };
  });
  return { grown, secs };
}

/** @param {{ scrapes: Scrape[], of: import("./state.js").Read<unknown> }} props */
function Requests({ scrapes, of }) {
  const { grown, secs } = between(scrapes, "rushgate_http_requests_total");
  const { grown: took } = between(scrapes, "rushgate_http_request_duration_seconds_bucket");
  /** @type {Map<string, number>} */
  const routes = new Map();
  for (const { labels, more } of grown) {
    const route = `${labels["method"]} ${labels["route"]}`;
    if (more > 0) routes.set(route, (routes.get(route) ?? 0) + more);
  }
  const within = (/** @type {string} */ route, /** @type {number} */ q) => {
    const buckets = took.filter(({ labels }) => `${labels["method"]} ${labels["route"]}` === route);
    const bound = quantile(
      buckets.map(({ labels, more }) => [labels["le"] === "+Inf" ? Infinity : Number(labels["le"]), more]),
      q,
    );
    if (bound === undefined) return "–";
    return bound === Infinity ? "> 10 s" : `${count(bound * 1000)} ms`;
  };
  const rows = [...routes].sort(([, a], [, b]) => b - a).slice(0, 12);
  return html`<section aria-labelledby="requests">
    <h2 id="requests">${t("requests.title")}</h2>
    <p class="muted small">${t("requests.about", { n: Math.round(secs) })}</p>
    ${rows.length === 0
      ? html`<p class="empty">${t("requests.none")}</p>`
      : html`<div class="card table-card" tabindex="0" role="group" aria-labelledby="requests">
          <table>
            <thead>
              <tr>
                <th scope="col">${t("requests.route")}</th>
                <th scope="col" class="right">${t("requests.rate")}</th>
                <th scope="col" class="right">${t("requests.p50")}</th>
                <th scope="col" class="right">${t("requests.p99")}</th>
              </tr>
            </thead>
            <tbody>
              ${rows.map(
                ([route, n]) => html`<tr key=${route}>
                  <th scope="row"><code>${route}</code></th>
                  <td class="right">${(n / secs).toFixed(1)}</td>
                  <td class="right">${within(route, 0.5)}</td>
                  <td class="right">${within(route, 0.99)}</td>
                </tr>`,
              )}
            </tbody>
          </table>
        </div>`}
    <${Source} of=${of} />
  </section>`;
}

/** @param {{ scrapes: Scrape[], of: import("./state.js").Read<unknown> }} props */
function Refusals({ scrapes, of }) {
  const name = "rushgate_http_requests_total";
  const { grown, secs } = between(scrapes, name);
  /** @type {Map<string, { now: number, all: number }>} */
  const codes = new Map();
  for (const { labels, value } of scrapes.at(-1)?.samples.filter((sample) => sample.name === name) ?? []) {
    const code = labels["code"];
    if (code) codes.set(code, { now: 0, all: (codes.get(code)?.all ?? 0) + value });
  }
  for (const { labels, more } of grown) {
    const known = codes.get(labels["code"] ?? "");
    if (known) known.now += more;
  }
  const rows = [...codes].sort(([, a], [, b]) => b.all - a.all);
  return html`<section aria-labelledby="refusals">
    <h2 id="refusals">${t("refusals.title")}</h2>
    ${rows.length === 0
      ? html`<p class="empty">${t("refusals.none")}</p>`
      : html`<div class="card table-card" tabindex="0" role="group" aria-labelledby="refusals">
          <table>
            <thead>
              <tr>
                <th scope="col">${t("refusals.code")}</th>
                <th scope="col" class="right">${t("refusals.now")}</th>
                <th scope="col" class="right">${t("refusals.all")}</th>
              </tr>
            </thead>
            <tbody>
              ${rows.map(
                ([code, { now, all }]) => html`<tr key=${code}>
                  <th scope="row"><code>${code}</code></th>
                  <td class="right">${secs > 0 ? (now / secs).toFixed(1) : "–"}</td>
                  <td class="right">${count(all)}</td>
                </tr>`,
              )}
            </tbody>
          </table>
        </div>`}
    <${Source} of=${of} />
  </section>`;
}
