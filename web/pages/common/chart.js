// A chart of steps: a value over time, as SVG. Colours and sizes are in base.css.

import { html, useRef, useState } from "./html.js";

/** @typedef {{ at: number, value: number }} Point `at` in milliseconds */
/** @typedef {{ at: number, label: string }} Mark */

const WIDTH = 640;
const HEIGHT = 220;
const LEFT = 58;
const RIGHT = 12;
const TOP = 14;
const BOTTOM = 26;

/** Round numbers, at most `parts` steps. @param {number} top @param {number} parts */
export function steps(top, parts) {
  const rough = Math.max(top, 1) / parts;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) ?? 1;
  const whole = Math.max(1, step);
  return Array.from({ length: Math.floor(top / whole + 1e-9) + 1 }, (_, n) => n * whole);
}

/**
 * @param {object} props
 * @param {Point[]} props.points in order of time
 * @param {number} props.from left end of the axis
 * @param {number} props.to right end
 * @param {number} props.top upper end of the value axis
 * @param {string} props.label what a screen reader says
 * @param {(at: number) => string} props.formatTime
 * @param {(value: number) => string} props.formatValue
 * @param {Mark[]} [props.marks]
 */
export function StepChart({ points, from, to, top, label, formatTime, formatValue, marks = [] }) {
  /** @type {[Point | undefined, (point: Point | undefined) => void]} */
  const [shown, show] = useState(/** @type {Point | undefined} */ (undefined));
  const svg = useRef(/** @type {SVGSVGElement | null} */ (null));
  const span = Math.max(to - from, 1);
  const ceiling = Math.max(top, 1);
  /** @param {number} at */
  const x = (at) => LEFT + ((at - from) / span) * (WIDTH - LEFT - RIGHT);
  /** @param {number} value */
  const y = (value) => TOP + (1 - value / ceiling) * (HEIGHT - TOP - BOTTOM);
  const inside = points.filter((point) => point.at >= from && point.at <= to);
  const first = inside[0];
  const line = first
    ? `M${x(first.at).toFixed(1)} ${y(first.value).toFixed(1)}` +
      inside
        .slice(1)
        .map((point) => `H${x(point.at).toFixed(1)}V${y(point.value).toFixed(1)}`)
        .join("")
    : "";
  const last = inside.at(-1);
  const area = first && last ? `${line}V${y(0)}H${x(first.at).toFixed(1)}Z` : "";
  const times = [0, 1, 2, 3, 4].map((n) => from + (span * n) / 4);

  /** @param {PointerEvent} event */
  const onMove = (event) => {
    const box = svg.current?.getBoundingClientRect();
    if (!box) return;
    const at = from + (((event.clientX - box.left) / box.width) * WIDTH - LEFT) * (span / (WIDTH - LEFT - RIGHT));
    show(inside.findLast((point) => point.at <= at));
  };

  return html`<svg
    class="chart"
    ref=${svg}
    viewBox="0 0 ${WIDTH} ${HEIGHT}"
    role="img"
    aria-label=${label}
    onPointerMove=${onMove}
    onPointerLeave=${() => show(undefined)}
  >
    ${steps(ceiling, 4).map(
      (value) => html`<g key=${value}>
        <line class="chart-grid" x1=${LEFT} x2=${WIDTH - RIGHT} y1=${y(value)} y2=${y(value)} />
        <text class="chart-text" x=${LEFT - 8} y=${y(value) + 4} text-anchor="end">${formatValue(value)}</text>
      </g>`,
    )}
    ${times.map(
      (at, n) => html`<text
        key=${n}
        class="chart-text"
        x=${x(at)}
        y=${HEIGHT - 6}
        text-anchor=${n === 0 ? "start" : n === 4 ? "end" : "middle"}
      >
        ${formatTime(at)}
      </text>`,
    )}
    <path class="chart-area" d=${area} />
    <path class="chart-line" d=${line} />
    ${marks
      .filter((mark) => mark.at >= from && mark.at <= to)
      .map(
        (mark) => html`<g key=${mark.label}>
          <line class="chart-mark" x1=${x(mark.at)} x2=${x(mark.at)} y1=${TOP} y2=${y(0)} />
          <text
            class="chart-mark-text"
            x=${x(mark.at) + (x(mark.at) > WIDTH - 90 ? -6 : 6)}
            y=${TOP + 10}
            text-anchor=${x(mark.at) > WIDTH - 90 ? "end" : "start"}
          >
            ${mark.label}
          </text>
        </g>`,
      )}
    ${last && !shown && html`<circle class="chart-dot" cx=${x(last.at)} cy=${y(last.value)} r="4" />`}
    ${shown &&
    html`<g>
      <circle class="chart-dot" cx=${x(shown.at)} cy=${y(shown.value)} r="4" />
      <text
        class="chart-value"
        x=${Math.min(Math.max(x(shown.at), LEFT + 40), WIDTH - 60)}
        y=${Math.max(y(shown.value) - 10, TOP + 4)}
        text-anchor="middle"
      >
        ${formatValue(shown.value)} · ${formatTime(shown.at)}
      </text>
    </g>`}
  </svg>`;
}
