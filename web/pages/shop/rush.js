// The rush: a crowd on this machine, one coupon template, one opening second, and the verdict.
//
// Everything shown comes from the server: the run's state from `GET /shop/rivals`, the coupons left
// from the API, the verdict from PostgreSQL and the audit.

import { observeNow, serverNow, useServerNow } from "../common/clock.js";
import { StepChart } from "../common/chart.js";
import { html, useEffect, useState } from "../common/html.js";
import { clockTime, count, duration } from "../common/i18n.js";
import { createStore, useStore } from "../common/store.js";
import { Icon, Meter } from "../common/ui.js";
import { takeCoupon } from "./coupons.js";
import { explain, notify, post, refresh } from "./state.js";
import { t } from "./texts.js";

/**
 * @typedef {object} Verdict counted in PostgreSQL
 * @property {number} issued
 * @property {number} holders
 * @property {number} serials
 * @property {number | null} serial_min
 * @property {number | null} serial_max
 * @property {number} held_by_rivals
 * @property {number[]} issued_ms when each coupon was issued, from the opening on
 * @property {string} counted_at
 */
/** @typedef {{ outcome: "clean" | "differences" | "not_compared", checks: number, rows: number, took_ms: number, why?: string }} AuditResult */
/**
 * @typedef {object} Run
 * @property {string} run_id
 * @property {string} template_id
 * @property {number} rivals
 * @property {number} coupons
 * @property {"counting_down" | "running" | "checking" | "done" | "failed"} state
 * @property {string} now
 * @property {string} opens_at
 * @property {number} answered
 * @property {Record<string, number>} outcomes
 * @property {number | null} p50_ms
 * @property {Verdict | null} verdict
 * @property {AuditResult | null} audit
 * @property {string | null} failure
 */
/** @typedef {{ at: number, early?: boolean, serial?: number, error?: any }} Press `at` from the opening on */
/** @typedef {{ at: number, left: number }} Sample */

const WAITING_MS = 500;
const RUNNING_MS = 150;
const CROWDS = [300, 1000, 3000];
const LIMITS = [10, 100, 500];
/** The chart shows at least as much after the opening, and half as much again as the rush took. */
const CHART_MS = 1000;

const run = createStore(/** @type {Run | undefined} */ (undefined));
const presses = createStore(/** @type {Press[]} */ ([]));
const samples = createStore(/** @type {Sample[]} */ ([]));

/** @param {Run | null} next */
function onRun(next) {
  if (!next) return;
  observeNow(Date.parse(next.now));
  if (next.run_id !== run.get()?.run_id) {
    presses.set([]);
    samples.set([]);
  }
  run.set(next);
}

/** @param {Run | undefined} it */
const isOver = (it) => !it || it.state === "done" || it.state === "failed";

async function followRun() {
  while (!isOver(run.get())) {
    const now = run.get();
    const opened = now && serverNow() >= Date.parse(now.opens_at) - 2 * WAITING_MS;
    await new Promise((resolve) => setTimeout(resolve, opened ? RUNNING_MS : WAITING_MS));
    try {
      const [status, template] = await Promise.all([
        fetch("/shop/rivals").then((response) => response.json()),
        fetch(`/v1/coupon-templates/${now?.template_id}`).then((response) => response.json()),
      ]);
      onRun(status.run);
      const at = serverNow() - Date.parse(now?.opens_at ?? "");
      if (typeof template.remaining === "number" && at >= 0) {
        samples.set((all) => [...all, { at, left: template.remaining }]);
      }
    } catch {
      // The connection's state is shown elsewhere; the next round tries again.
    }
  }
  void refresh();
}

/** @param {number} rivals @param {number} coupons */
async function start(rivals, coupons) {
  try {
    const answer = await post("/shop/rivals", { rivals, coupons });
    onRun(answer.run);
    if (!answer.started) notify("plain", t("rush.joined"));
    void followRun();
  } catch (error) {
    notify("bad", explain(error));
  }
}

/** @param {Run} it */
async function press(it) {
  const at = serverNow() - Date.parse(it.opens_at);
  const { serial, error } = await takeCoupon(it.template_id);
  const early = error?.code === "issuance-not-open";
  /** @type {Press} */
  const made = { at, ...(early ? { early } : {}), ...(serial ? { serial } : {}), ...(error ? { error } : {}) };
  if (run.get()?.run_id === it.run_id) presses.set((all) => [...all, made]);
}

export function Rush() {
  const it = useStore(run);
  const [rivals, setRivals] = useState(3000);
  const [coupons, setCoupons] = useState(100);
  const idle = !it;
  const size = { rivals: it?.rivals ?? rivals, coupons: it?.coupons ?? coupons };
  return html`<section class="rush" aria-labelledby="rush" data-rush=${it?.state ?? "idle"}>
    <div class="rush-text">
      <p class="kicker"><${Icon} name="bolt" />${t("rush.kicker")}</p>
      <h1 id="rush">${t("rush.title", size)}</h1>
      ${idle && html`<p class="rush-about">${t("rush.about", size)}</p>`}
      ${it && html`<${Mine} it=${it} />`}
      ${isOver(it) &&
      html`<${Controls} ...${{ rivals, coupons, setRivals, setCoupons, again: Boolean(it) }} />`}
    </div>
    ${it && html`<${Board} it=${it} />`}
    ${it && html`<${Verdicts} it=${it} />`}
  </section>`;
}

/** @param {{ rivals: number, coupons: number, setRivals: (n: number) => void, setCoupons: (n: number) => void, again: boolean }} props */
function Controls({ rivals, coupons, setRivals, setCoupons, again }) {
  return html`<div class="rush-controls">
    <${Choice} label=${t("rush.crowd")} options=${CROWDS} value=${rivals} onChoose=${setRivals} />
    <${Choice} label=${t("rush.limit")} options=${LIMITS} value=${coupons} onChoose=${setCoupons} />
    <button type="button" class="button button-rush" data-start onClick=${() => start(rivals, coupons)}>
      ${again ? t("rush.again") : t("rush.start", { n: rivals })}
    </button>
  </div>`;
}

/** @param {{ label: string, options: number[], value: number, onChoose: (n: number) => void }} props */
function Choice({ label, options, value, onChoose }) {
  return html`<div class="choice">
    <span class="choice-label" aria-hidden="true">${label}</span>
    <div class="segments" role="group" aria-label=${label}>
      ${options.map(
        (n) => html`<button key=${n} type="button" aria-pressed=${n === value} onClick=${() => onChoose(n)}>
          ${count(n)}
        </button>`,
      )}
    </div>
  </div>`;
}

/** The visitor's own button, and what became of it. @param {{ it: Run }} props */
function Mine({ it }) {
  const made = useStore(presses);
  const [asking, setAsking] = useState(false);
  const final = made.find((press) => !press.early);
  const last = made.at(-1);
  const onPress = async () => {
    setAsking(true);
    await press(it);
    setAsking(false);
  };
  return html`<div class="rush-mine">
    ${!final &&
    !isOver(it) &&
    html`<button type="button" class="button button-rush button-press" data-press disabled=${asking} onClick=${onPress}>
      ${t("rush.press")}
    </button>`}
    <p
      class="rush-result ${final?.serial ? "rush-won" : final ? "rush-lost" : ""}"
      role="status"
      aria-live="assertive"
      data-result=${final?.serial ? "won" : final ? "lost" : last ? "early" : "none"}
    >
      ${final?.serial
        ? html`<${Icon} name="check" />${t("rush.won", { serial: final.serial, n: it.coupons })}`
        : final
          ? final.error?.code === "sold-out"
            ? t("rush.lost", { n: it.coupons })
            : explain(final.error)
          : last
            ? t("rush.early")
            : t(isOver(it) ? "rush.missed" : "rush.pending")}
    </p>
  </div>`;
}

/** Countdown, then coupons left. @param {{ it: Run }} props */
function Board({ it }) {
  useServerNow(100, !isOver(it));
  const opens = Date.parse(it.opens_at);
  const before = serverNow() < opens;
  const seen = useStore(samples);
  const made = useStore(presses);
  const left = it.verdict ? it.coupons - it.verdict.issued : (seen.at(-1)?.left ?? it.coupons);
  const points = it.verdict ? exactPoints(it.verdict, it.coupons) : seenPoints(seen, it.coupons);
  const end = it.verdict ? chartEnd(it.verdict) : Math.max(CHART_MS, points.at(-1)?.at ?? 0);
  const seconds = (end / 1000).toFixed(1);
  const marks = made.filter((press) => !press.early).map((press) => ({ at: press.at, label: t("rush.you") }));
  return html`<div class="rush-board">
    ${before
      ? html`<p class="digits" role="timer">${duration(opens - serverNow())}</p>
          <p class="digits-about">${t("rush.opens")} · ${clockTime(it.opens_at)}</p>`
      : html`<p class="digits" data-remaining>${count(left)}</p>
          <p class="digits-about">${left > 0 ? t("rush.left", { n: it.coupons }) : t("rush.gone")}</p>`}
    <${StepChart}
      points=${points}
      from=${0}
      to=${end}
      top=${it.coupons}
      label=${t("rush.chart", { from: it.coupons, to: left, seconds })}
      formatTime=${(/** @type {number} */ at) => `${count(Math.round(at))} ms`}
      formatValue=${count}
      marks=${marks}
    />
    <div class="rush-answered">
      <${Meter} value=${it.answered} of=${it.rivals} label=${t("rush.answered", { n: it.answered, of: it.rivals })} />
      <p class="small">${t("rush.answered", { n: it.answered, of: it.rivals })}</p>
      <p class="small rush-outcomes">
        ${Object.entries(it.outcomes).map(
          ([outcome, n]) => html`<span key=${outcome}>${t(`outcome.${outcome}`)} <b>${count(n)}</b></span>`,
        )}
      </p>
    </div>
  </div>`;
}

/** @param {Sample[]} seen @param {number} coupons */
function seenPoints(seen, coupons) {
  return [{ at: 0, value: coupons }, ...seen.map(({ at, left }) => ({ at, value: left }))];
}

/** By the gate's clock, as PostgreSQL has it. @param {Verdict} verdict @param {number} coupons */
function exactPoints(verdict, coupons) {
  const points = [{ at: 0, value: coupons }];
  verdict.issued_ms.forEach((at, n) => points.push({ at: Math.max(at, 0), value: coupons - n - 1 }));
  return [...points, { at: chartEnd(verdict), value: coupons - verdict.issued_ms.length }];
}

/** @param {Verdict} verdict */
const chartEnd = (verdict) => Math.max(CHART_MS, 1.5 * (verdict.issued_ms.at(-1) ?? 0));

/** @param {{ it: Run }} props */
function Verdicts({ it }) {
  if (it.state === "failed") {
    return html`<p class="rush-verdict rush-failed" role="alert">${t("rush.failed", { why: it.failure ?? "" })}</p>`;
  }
  if (it.state === "checking") return html`<p class="rush-verdict" role="status">${t("rush.checking")}</p>`;
  if (!it.verdict || !it.audit) return null;
  const { verdict, audit } = it;
  const checks = judge(it, verdict, audit);
  return html`<div class="rush-verdict" role="status">
    <h2>${t("verdict.title")}</h2>
    <ul>
      ${checks.map(
        ({ holds, text }) => html`<li key=${text} class=${holds ? "holds" : "fails"} data-holds=${holds}>
          <${Icon} name=${holds ? "check" : "cross"} />${text}
        </li>`,
      )}
    </ul>
    <p class="small">
      ${t("verdict.source", { at: clockTime(verdict.counted_at), took: (audit.took_ms / 1000).toFixed(1) })}
    </p>
  </div>`;
}

/**
 * What the counts say. Nothing is assumed: each sentence compares two numbers of the server.
 * @param {Run} it @param {Verdict} verdict @param {AuditResult} audit
 */
function judge(it, verdict, audit) {
  const n = it.coupons;
  const told = it.outcomes["issued"] ?? 0;
  // A crowd that is smaller than the limit leaves coupons.
  const exact = verdict.issued === n || (it.answered < n && verdict.issued <= n);
  const once = verdict.holders === verdict.issued;
  const serials =
    verdict.serials === verdict.issued && (verdict.issued === 0 || verdict.serial_max === verdict.issued);
  const range = { from: verdict.serial_min ?? 0, to: verdict.serial_max ?? 0, serials: verdict.serials };
  const all = told === verdict.held_by_rivals;
  const { outcome, checks, rows, why = "" } = audit;
  return [
    { holds: exact, text: t(exact ? "verdict.issued" : "verdict.issued.not", { issued: verdict.issued, n }) },
    {
      holds: once,
      text: t(once ? "verdict.once" : "verdict.once.not", { issued: verdict.issued, holders: verdict.holders }),
    },
    { holds: serials, text: t(serials ? "verdict.serials" : "verdict.serials.not", range) },
    {
      holds: all,
      text: t(all ? "verdict.told" : "verdict.told.not", { n: told, told, held: verdict.held_by_rivals }),
    },
    {
      holds: it.answered === it.rivals,
      text: t("verdict.answers", { answered: it.answered, rivals: it.rivals, p50: it.p50_ms ?? 0 }),
    },
    {
      holds: outcome === "clean",
      text: t(
        outcome === "clean"
          ? "verdict.audit"
          : outcome === "differences"
            ? "verdict.audit.not"
            : "verdict.audit.busy",
        { checks, rows, why },
      ),
    },
  ];
}

/** Joins a run that is under way when the page opens. */
export function useCurrentRun() {
  useEffect(() => {
    fetch("/shop/rivals")
      .then((response) => response.json())
      .then(({ run: found }) => {
        if (!found || isOver(found)) return;
        onRun(found);
        void followRun();
      })
      .catch(() => {});
  }, []);
}
