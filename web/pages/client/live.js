// The live stream: server-sent events over `fetch`, connected again after each break.
//
// Not `EventSource`: it gives up after a refusal such as 503, and Node.js has none.
import { abortable, isRepeated, problem, retryAfterMs, sleep, } from "./repeat.js";
const NAMES = new Set(["snapshot", "product", "template", "unavailable", "available"]);
const LONGEST_PAUSE_MS = 15_000;
/** A longer event is not one of this service. */
const LONGEST_EVENT_CHARS = 64 * 1024;
/**
 * The events of one connection after the other, until the signal. Refusals that a repeat would not
 * cure are thrown as `RushgateProblem`.
 */
export async function* live(connect, options) {
    const { signal, pauseMs = 500, silentMs = 35_000 } = options;
    let failures = 0;
    let told = { retryMs: 0 };
    while (!signal?.aborted) {
        const connection = new Connection(signal, silentMs);
        let cause;
        let waitMs = 0;
        try {
            const answer = await connection.open(connect);
            if (answer.data && answer.response.ok) {
                for await (const event of connection.events(answer.data, told)) {
                    if (event.event === "snapshot")
                        failures = 0;
                    yield event;
                }
                cause = new Error("the service has ended the stream");
            }
            else {
                cause = problem(answer, { key: undefined, attempts: failures + 1, outcomeUnknown: false });
                if (!isRepeated(answer.response.status))
                    throw cause;
                waitMs = retryAfterMs(answer);
            }
        }
        catch (error) {
            if (signal?.aborted)
                return;
            if (error === cause || connection.cannotOpen)
                throw error;
            cause = error;
        }
        finally {
            connection.close();
        }
        failures += 1;
        const step = Math.min(pauseMs * 2 ** (failures - 1), LONGEST_PAUSE_MS);
        const pause = Math.max(waitMs, told.retryMs) + step * (0.5 + Math.random() / 2);
        yield { event: "disconnected", data: { failures, pauseMs: pause, cause } };
        try {
            await sleep(pause, signal);
        }
        catch {
            return;
        }
    }
}
/** One connection, and what ends it: the caller's signal, and silence. */
class Connection {
    signal;
    silentMs;
    controller = new AbortController();
    stop = () => this.controller.abort(this.signal?.reason);
    sent = false;
    /** The request could not be made; it would fail in the same way next time. */
    cannotOpen = false;
    constructor(signal, silentMs) {
        this.signal = signal;
        this.silentMs = silentMs;
        signal?.addEventListener("abort", this.stop, { once: true });
    }
    async open(connect) {
        try {
            return await this.within(connect(this.controller.signal, () => (this.sent = true)));
        }
        catch (error) {
            this.cannotOpen = !this.sent;
            throw error;
        }
    }
    close() {
        this.signal?.removeEventListener("abort", this.stop);
        this.controller.abort(new DOMException("the stream is not needed any more", "AbortError"));
    }
    async *events(body, told) {
        const reader = body.getReader();
        const decoder = new TextDecoder();
        let text = "";
        try {
            for (;;) {
                const { done, value } = await this.within(reader.read());
                if (done)
                    return;
                text += decoder.decode(value, { stream: true });
                const blocks = text.split(/\r?\n\r?\n/);
                text = blocks.pop();
                if (text.length > LONGEST_EVENT_CHARS)
                    throw new Error("this is no stream of events");
                for (const block of blocks) {
                    const event = parse(block, told);
                    if (event)
                        yield event;
                }
            }
        }
        finally {
            // Nothing else would read it.
            reader.cancel().catch(() => { });
        }
    }
    /** Ends the connection if the work takes too long. */
    async within(work) {
        const silent = () => this.controller.abort(new DOMException(`silent for ${this.silentMs} ms`, "TimeoutError"));
        const timer = setTimeout(silent, this.silentMs);
        try {
            return await abortable(work, this.controller.signal);
        }
        finally {
            clearTimeout(timer);
        }
    }
}
/** An event; `undefined` for a comment, a pause, and events that are newer than this client. */
function parse(block, told) {
    let event = "";
    const data = [];
    for (const line of block.split(/\r?\n/)) {
        const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line) ?? [];
        if (field === "event")
            event = value;
        else if (field === "data")
            data.push(value);
        else if (field === "retry" && /^\d{1,6}$/.test(value))
            told.retryMs = Number(value);
    }
    if (!NAMES.has(event))
        return undefined;
    return { event, data: JSON.parse(data.join("\n")) };
}
