// Drawings of the seed's products; other products get their initial.

import { html } from "../common/html.js";

/** @type {Record<string, () => unknown>} */
const DRAWINGS = {
  americano: () => html`
    <path class="art-soft" d="M40 34c-4-6 4-9 0-16M54 34c-4-6 4-9 0-16" />
    <path class="art-fill" d="M24 42h46v20a18 18 0 0 1-18 18H42a18 18 0 0 1-18-18z" />
    <path class="art-dark" d="M28 46h38v4H28z" />
    <path class="art-line" d="M70 48h6a8 8 0 0 1 0 18h-6" />
    <path class="art-line" d="M20 88h56" />
  `,
  latte: () => html`
    <path class="art-fill" d="M30 22h40l-5 62a4 4 0 0 1-4 4H39a4 4 0 0 1-4-4z" />
    <path class="art-dark" d="m33 50 34 0-2.800 34a4 4 0 0 1-4 4H39.800a4 4 0 0 1-4-4z" />
    <path class="art-soft" d="M58 22 68 8" />
    <path class="art-line" d="M30 22h40" />
    <circle class="art-light" cx="46" cy="62" r="4" />
    <circle class="art-light" cx="56" cy="72" r="3" />
  `,
  cheesecake: () => html`
    <path class="art-fill" d="M14 56 66 30c12 2 20 12 20 26z" />
    <path class="art-dark" d="M14 56h72v8H14z" />
    <path class="art-light" d="M14 64h72v16H14z" />
    <circle class="art-berry" cx="64" cy="28" r="8" />
    <path class="art-line" d="M10 88h80" />
  `,
  tumbler: () => html`
    <path class="art-fill" d="M32 28h36l-4 58a4 4 0 0 1-4 4H40a4 4 0 0 1-4-4z" />
    <path class="art-dark" d="M28 20h44a3 3 0 0 1 3 3v5H25v-5a3 3 0 0 1 3-3z" />
    <path class="art-light" d="M34 50h32l-1.200 16H35.200z" />
    <path class="art-soft" d="M58 20 62 6" />
  `,
  sneakers: () => html`
    <path class="art-fill" d="M12 46c8 4 16 2 22-8l18 16c6 5 14 7 24 8 8 1 12 6 12 12H12z" />
    <path class="art-light" d="M10 74h80v6a4 4 0 0 1-4 4H14a4 4 0 0 1-4-4z" />
    <path class="art-line" d="m40 46 6-5M47 52l6-5M54 58l6-5" />
    <path class="art-dark" d="M12 60c10 2 18 2 26-2l-4 12H12z" />
  `,
  "concert-ticket": () => html`
    <g transform="rotate(-12 50 50)">
      <path class="art-fill" d="M12 32h76v12a7 7 0 0 0 0 14v12H12V58a7 7 0 0 0 0-14z" />
      <path class="art-dash" d="M66 34v34" />
      <path class="art-dark" d="M38 60V42l14-3v17" />
      <circle class="art-dark" cx="34.500" cy="60" r="4.500" />
      <circle class="art-dark" cx="48.500" cy="57" r="4.500" />
    </g>
  `,
};

/** @param {{ id: string, name: string }} props */
export function Art({ id, name }) {
  const drawing = DRAWINGS[id];
  const tint = [...id].reduce((sum, letter) => sum + letter.charCodeAt(0), 0) % 6;
  return html`<svg class="art art-${tint}" viewBox="0 0 100 100" aria-hidden="true">
    ${drawing ? drawing() : html`<text class="art-letter" x="50" y="66">${[...name][0]}</text>`}
  </svg>`;
}
