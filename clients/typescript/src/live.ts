// The live stream: server-sent events over `fetch`, connected again after each break.
//
// Not `EventSource`: it gives up after a refusal such as 503, and Node.js has none.

import {
  abortable,
  isRepeated,
  problem,
  retryAfterMs,
  sleep,
  type Answer,
  type Attempt,
} from "./repeat.js";

export interface LiveOptions {
  /** Ids of products to watch. At most 50 ids together with `templates`. */
  products?: readonly string[];
  /** Ids of coupon templates to watch. */
  templates?: readonly string[];
  /** Ends the stream. */
  signal?: AbortSignal;
  /** The pause after the first break. It doubles with each one, up to 15,000. Default: 500. */
  pauseMs?: number;
  /** A stream that is silent for longer counts as broken. Default: 35,000, two heartbeats. */
  silentMs?: number;
}

export type LiveProductState = "suspended" | "scheduled" | "ended" | "sold_out" | "open";
export type LiveTemplateState = "scheduled" | "open" | "sold_out" | "closed";
export interface LiveProduct {
  id: string;
  stock: number;
  state: LiveProductState;
}
export interface LiveTemplate {
  id: string;
  remaining: number;
  state: LiveTemplateState;
}

/** `now` is the gate's clock when the values were read (RFC 3339). */
export type LiveEvent =
  /** All values; the first event of each connection unless the gate is closed. */
  | {
      event: "snapshot";
      data: { now: string; products: LiveProduct[]; templates: LiveTemplate[] };
    }
  | { event: "product"; data: LiveProduct & { now: string } }
  | { event: "template"; data: LiveTemplate & { now: string } }
  /** The gate is closed: values stand still, and requests are refused. */
  | { event: "unavailable"; data: Record<string, never> }
  | { event: "available"; data: { now: string } }
  /** From the client: the connection broke, and the next attempt begins after the pause. */
  | { event: "disconnected"; data: { failures: number; pauseMs: number; cause: unknown } };

const NAMES = new Set(["snapshot", "product", "template", "unavailable", "available"]);
const LONGEST_PAUSE_MS = 15_000;
/** A longer event is not one of this service. */
const LONGEST_EVENT_CHARS = 64 * 1024;

type Body = ReadableStream<Uint8Array>;

/**
 * The events of one connection after the other, until the signal. Refusals that a repeat would not
 * cure are thrown as `RushgateProblem`.
 */
export async function* live(
  connect: Attempt<Body>,
  options: LiveOptions,
): AsyncGenerator<LiveEvent, void, undefined> {
  const { signal, pauseMs = 500, silentMs = 35_000 } = options;
  let failures = 0;
  let told = { retryMs: 0 };
  while (!signal?.aborted) {
    const connection = new Connection(signal, silentMs);
    let cause: unknown;
    let waitMs = 0;
    try {
      const answer = await connection.open(connect);
      if (answer.data && answer.response.ok) {
        for await (const event of connection.events(answer.data, told)) {
          if (event.event === "snapshot") failures = 0;
          yield event;
        }
        cause = new Error("the service has ended the stream");
      } else {
        cause = problem(answer, { key: undefined, attempts: failures + 1, outcomeUnknown: false });
        if (!isRepeated(answer.response.status)) throw cause;
        waitMs = retryAfterMs(answer);
      }
    } catch (error) {
      if (signal?.aborted) return;
      if (error === cause || connection.cannotOpen) throw error;
      cause = error;
    } finally {
      connection.close();
    }
    failures += 1;
    const step = Math.min(pauseMs * 2 ** (failures - 1), LONGEST_PAUSE_MS);
    const pause = Math.max(waitMs, told.retryMs) + step * (0.5 + Math.random() / 2);
    yield { event: "disconnected", data: { failures, pauseMs: pause, cause } };
    try {
      await sleep(pause, signal);
    } catch {
      return;
    }
  }
}

/** One connection, and what ends it: the caller's signal, and silence. */
class Connection {
  private readonly controller = new AbortController();
  private readonly stop = () => this.controller.abort(this.signal?.reason);
  private sent = false;
  /** The request could not be made; it would fail in the same way next time. */
  cannotOpen = false;

  constructor(
    private readonly signal: AbortSignal | undefined,
    private readonly silentMs: number,
  ) {
    signal?.addEventListener("abort", this.stop, { once: true });
  }

  async open(connect: Attempt<Body>): Promise<Answer<Body>> {
    try {
      return await this.within(connect(this.controller.signal, () => (this.sent = true)));
    } catch (error) {
      this.cannotOpen = !this.sent;
      throw error;
    }
  }

  close(): void {
    this.signal?.removeEventListener("abort", this.stop);
    this.controller.abort(new DOMException("the stream is not needed any more", "AbortError"));
  }

  async *events(body: Body, told: { retryMs: number }): AsyncGenerator<LiveEvent> {
    const reader = body.getReader();
    const decoder = new TextDecoder();
    let text = "";
    try {
      for (;;) {
        const { done, value } = await this.within(reader.read());
        if (done) return;
        text += decoder.decode(value, { stream: true });
        const blocks = text.split(/\r?\n\r?\n/);
        text = blocks.pop()!;
        if (text.length > LONGEST_EVENT_CHARS) throw new Error("this is no stream of events");
        for (const block of blocks) {
          const event = parse(block, told);
          if (event) yield event;
        }
      }
    } finally {
      // Nothing else would read it.
      reader.cancel().catch(() => {});
    }
  }

  /** Ends the connection if the work takes too long. */
  private async within<T>(work: Promise<T>): Promise<T> {
    const silent = () =>
      this.controller.abort(new DOMException(`silent for ${this.silentMs} ms`, "TimeoutError"));
    const timer = setTimeout(silent, this.silentMs);
    try {
      return await abortable(work, this.controller.signal);
    } finally {
      clearTimeout(timer);
    }
  }
}

/** An event; `undefined` for a comment, a pause, and events that are newer than this client. */
function parse(block: string, told: { retryMs: number }): LiveEvent | undefined {
  let event = "";
  const data: string[] = [];
  for (const line of block.split(/\r?\n/)) {
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line) ?? [];
    if (field === "event") event = value!;
    else if (field === "data") data.push(value!);
    else if (field === "retry" && /^\d{1,6}$/.test(value!)) told.retryMs = Number(value);
  }
  if (!NAMES.has(event)) return undefined;
  return { event, data: JSON.parse(data.join("\n")) } as LiveEvent;
}
