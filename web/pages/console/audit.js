// Audits: run one, read the latest.

import { orThrow } from "../client/index.js";
import { html, useState } from "../common/html.js";
import { count, dateTime } from "../common/i18n.js";
import { State } from "./overview.js";
import { api, explain, notify, Source, useRead } from "./state.js";
import { t } from "./texts.js";

const IDLE_MS = 5000;

/** @typedef {import("./state.js").Schemas["Audit"]} AuditRun */

export function Audits() {
  const [starting, setStarting] = useState(false);
  const audits = useRead("GET /v1/admin/audits", () => orThrow(api().GET("/v1/admin/audits")), IDLE_MS);
  const running = audits.value?.data[0]?.state === "running";
  const onRun = async () => {
    setStarting(true);
    try {
      await orThrow(api().POST("/v1/admin/audits"));
      // Small shops are audited in less than a second.
      setTimeout(audits.again, 700);
    } catch (error) {
      notify("bad", explain(error));
    }
    audits.again();
    setStarting(false);
  };
  return html`<h1>${t("audit.title")}</h1>
    <p class="muted">${t("audit.about")}</p>
    <div class="row">
      <button type="button" class="button" data-audit disabled=${starting || running} onClick=${onRun}>
        ${t("audit.run")}
      </button>
    </div>
    <${Source} of=${audits} />
    ${audits.value?.data.length === 0 && html`<p class="empty">${t("audit.none")}</p>`}
    ${audits.value?.data.map((run, n) => html`<${AuditCard} key=${run.audit_id} run=${run} open=${n === 0} />`)}`;
}

/** @param {{ run: AuditRun, open: boolean }} props */
function AuditCard({ run, open }) {
  const about = [
    t("audit.started", { at: dateTime(run.started_at) }),
    run.took_ms !== null && t("audit.took", { n: (run.took_ms / 1000).toFixed(1) }),
    run.seq !== null && t("audit.at", { seq: run.seq, epoch: run.epoch ?? 0 }),
  ];
  return html`<details class="card audit" open=${open} data-audit-state=${run.state}>
    <summary><${State} state=${run.state} /> ${about.filter(Boolean).join(" · ")}</summary>
    ${run.failure && html`<p class="alert">${run.failure}</p>`}
    ${run.checks.length > 0 &&
    html`<div class="table-card" tabindex="0" role="group" aria-label=${t("audit.title")}>
      <table>
        <thead>
          <tr>
            <th scope="col">${t("audit.check")}</th>
            <th scope="col">${t("audit.rule")}</th>
            <th scope="col" class="right">${t("audit.looked")}</th>
            <th scope="col">${t("audit.result")}</th>
          </tr>
        </thead>
        <tbody>
          ${run.checks.map((check) => html`<${CheckRow} key=${check.name} check=${check} />`)}
        </tbody>
      </table>
    </div>`}
  </details>`;
}

/** @param {{ check: AuditRun["checks"][number] }} props */
function CheckRow({ check }) {
  const wrong = check.differences.length + check.more;
  return html`<tr>
    <th scope="row"><code>${check.name}</code></th>
    <td class="small">
      ${check.rule}
      ${wrong > 0 &&
      html`<ul class="small">
        ${check.differences.map((each) => html`<li key=${each.id}>${t("audit.diff", { ...each })}</li>`)}
      </ul>`}
    </td>
    <td class="right">${count(check.looked_at)}</td>
    <td>
      <span class="status ${wrong > 0 ? "status-bad" : "status-clean"}">
        ${wrong > 0 ? t("audit.bad", { n: wrong }) : t("audit.ok")}
      </span>
    </td>
  </tr>`;
}
