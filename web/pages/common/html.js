// Markup: preact with htm's templates. Interpolated text is always text, never markup.

import htm from "../vendor/htm.js";
import { h } from "../vendor/preact.js";

export const html = htm.bind(h);
export { render } from "../vendor/preact.js";
export {
  useCallback,
  useEffect,
  useLayoutEffect,
  useMemo,
  useRef,
  useState,
} from "../vendor/preact-hooks.js";

/** @typedef {import("../vendor/preact.js").ComponentChildren} Children */
