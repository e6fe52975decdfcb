// The server's clock, as far as its answers tell. Countdowns follow it, not this machine's clock.

import { useEffect, useState } from "./html.js";

/** The server's time less this machine's, in milliseconds. */
let ahead = 0;
let best = -Infinity;

/** @param {number} now the server's time when it sent an answer, in milliseconds */
export function observeNow(now) {
  ahead = now - Date.now();
  best = ahead;
}

/**
 * The header `Date` is cut to whole seconds and was written before it arrived, so the truth is never
 * below `date - arrival`. The largest of these differences is the closest.
 * @param {Response} response
 */
export function observeDate(response) {
  const date = Date.parse(response.headers.get("date") ?? "");
  if (Number.isNaN(date)) return;
  const least = date - Date.now();
  // A clock that was set back shows as a difference that is off by more than the cut.
  if (least > best || least < best - 1500) {
    best = least;
    ahead = least;
  }
}

export function serverNow() {
  return Date.now() + ahead;
}

/**
 * The server's time; the component is rendered again every `everyMs` while `running`.
 * @param {number} everyMs
 * @param {boolean} running
 */
export function useServerNow(everyMs, running = true) {
  const [, tick] = useState(0);
  useEffect(() => {
    if (!running) return;
    const timer = setInterval(() => tick((n) => n + 1), everyMs);
    return () => clearInterval(timer);
  }, [everyMs, running]);
  return serverNow();
}
