// Repeats a request until its outcome is known, within a number of attempts and a time.
//
// Each attempt ends in one of four ways: settled (a success), refused (repeating would not help),
// held up (202, 429 and 5xx), or broken (no whole answer arrived). The last two are repeated after
// a pause.
import { problemOf, RushgateProblem, RushgateUnreachable } from "./problem.js";
const LONGEST_PAUSE_MS = 5_000;
// 502 and 504 come from proxies in front of Rushgate.
const REPEATED = new Set([202, 429, 500, 502, 503, 504]);
/**
 * Resolves with a success, or with the latest 202 where nothing better came. Rejects with a
 * `RushgateProblem`, a `RushgateUnreachable`, the reason of the signal, or what kept the request
 * from being made.
 */
export async function repeat(attempt, options, key) {
    const { signal, attempts: limit = 8, withinMs = 30_000, attemptMs = 10_000 } = options;
    const deadline = performance.now() + withinMs;
    let accepted;
    let outcomeUnknown = false;
    for (let attempts = 1;; attempts += 1) {
        signal?.throwIfAborted();
        const left = deadline - performance.now();
        const { answer, broken } = await tryOnce(attempt, Math.min(attemptMs, left), signal);
        const status = answer?.response.status;
        if (answer && status && !isRepeated(status)) {
            if (answer.response.ok)
                return settled(answer, attempts);
            // A conflict is the gate's verdict on this very key. Other refusals may come from before the
            // gate (such as 401), and say nothing about earlier attempts.
            throw problem(answer, { key, attempts, outcomeUnknown: outcomeUnknown && status !== 409 });
        }
        if (answer && status === 202)
            accepted = settled(answer, attempts);
        outcomeUnknown ||= !answer || leavesOutcomeUnknown(answer);
        const pause = pauseBefore(attempts, answer, options);
        if (attempts >= limit || performance.now() + pause >= deadline) {
            if (accepted)
                return { ...accepted, attempts };
            if (answer)
                throw problem(answer, { key, attempts, outcomeUnknown });
            throw new RushgateUnreachable({ key, attempts }, broken);
        }
        await sleep(pause, signal);
    }
}
function settled({ data, response }, attempts) {
    return { data: data, response, attempts };
}
/** Whether a repeat may get another answer. */
export function isRepeated(status) {
    return REPEATED.has(status);
}
export function problem(answer, sent) {
    return new RushgateProblem(problemOf(answer.error, answer.response), answer.response, sent);
}
/** Refusals change nothing, except for these. A 503 without a problem document is a proxy's. */
export function leavesOutcomeUnknown({ error, response }) {
    if (response.status !== 503)
        return [202, 500, 502, 504].includes(response.status);
    const { code } = problemOf(error, response);
    return code === "outcome-unknown" || code.startsWith("http-");
}
async function tryOnce(attempt, ms, signal) {
    const controller = new AbortController();
    const stop = () => controller.abort(signal?.reason);
    signal?.addEventListener("abort", stop, { once: true });
    const late = () => controller.abort(new DOMException(`no answer in ${ms} ms`, "TimeoutError"));
    const timer = setTimeout(late, ms);
    let sent = false;
    try {
        const answer = await abortable(attempt(controller.signal, () => (sent = true)), controller.signal);
        // A cut that looks like the end of the body leaves a success without data.
        const cut = answer.response.ok && answer.data === undefined;
        return cut ? { broken: new TypeError("a success without a body") } : { answer };
    }
    catch (error) {
        signal?.throwIfAborted();
        // A request that cannot be made (no token, a malformed URL) fails in the same way next time.
        if (!sent)
            throw error;
        return { broken: error };
    }
    finally {
        clearTimeout(timer);
        signal?.removeEventListener("abort", stop);
    }
}
/** Also ends work that does not look at the signal: getting a token, or a `fetch` of the caller. */
export function abortable(work, signal) {
    return new Promise((resolve, reject) => {
        const stop = () => reject(signal.reason);
        if (signal.aborted)
            stop();
        signal.addEventListener("abort", stop, { once: true });
        // A stream asks for each of its pieces: without this, listeners would pile up.
        work.then(resolve, reject).finally(() => signal.removeEventListener("abort", stop));
    });
}
/** The jitter spreads the retries of a crowd that was refused in the same second. */
function pauseBefore(attempts, answer, { pauseMs = 200 }) {
    const step = Math.min(pauseMs * 2 ** (attempts - 1), LONGEST_PAUSE_MS);
    return retryAfterMs(answer) + step * (0.5 + Math.random() / 2);
}
/** A page of another origin sees the header only where CORS exposes it. The body says the same. */
export function retryAfterMs(answer) {
    if (!answer)
        return 0;
    const header = answer.response.headers.get("Retry-After");
    if (header !== null) {
        const seconds = Number(header);
        const ms = Number.isNaN(seconds) ? Date.parse(header) - Date.now() : seconds * 1_000;
        return ms > 0 ? ms : 0;
    }
    const body = answer.error;
    return typeof body?.retry_after === "number" ? body.retry_after * 1_000 : 0;
}
export function sleep(ms, signal) {
    return new Promise((resolve, reject) => {
        const stop = () => {
            clearTimeout(timer);
            reject(signal?.reason);
        };
        const timer = setTimeout(() => {
            signal?.removeEventListener("abort", stop);
            resolve();
        }, ms);
        if (signal?.aborted)
            stop();
        else
            signal?.addEventListener("abort", stop, { once: true });
    });
}
