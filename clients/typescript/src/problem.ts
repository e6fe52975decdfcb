// Refusals as errors. A refusal is a problem document (RFC 9457), and its `code` says which members
// it has. A code that is newer than this client is kept as it came.

import type { components } from "./schema.js";

/** A refusal that the service describes, told apart by `code`. */
export type Problem = components["schemas"]["Problem"];

declare enum Unknown {
  Code = "",
}

/**
 * A code that this version of the client does not know, or `http-502` and the like where the answer
 * is no problem document. The type is an enum only to be distinct from the known codes: beside a
 * plain `string`, `switch (problem.code)` would not narrow them. The value is the code as it came.
 */
export type UnknownCode = Unknown;

/** A refusal with an unknown code. Its members are there, and have no types. */
export interface UnknownProblem {
  type: string;
  title: string;
  status: number;
  detail: string;
  code: UnknownCode;
  [member: string]: unknown;
}

/** What was sent before a call failed. */
export interface Sent {
  /** The idempotency key, if the call had one. */
  readonly key: string | undefined;
  /** How often the request was sent. */
  readonly attempts: number;
  /**
   * True where the request may have been executed: a connection broke, or an answer was 202, 500,
   * 502, 504 or `outcome-unknown`, and no later answer has settled it. Call `once()` again with the
   * same `key` to find out.
   */
  readonly outcomeUnknown: boolean;
}

class ProblemError extends Error implements Sent {
  readonly key: string | undefined;
  readonly attempts: number;
  readonly outcomeUnknown: boolean;

  constructor(
    problem: Problem | UnknownProblem,
    /** The answer; its body has been read. */
    readonly response: Response,
    sent: Sent,
  ) {
    super(problem.detail);
    this.name = "RushgateProblem";
    this.key = sent.key;
    this.attempts = sent.attempts;
    this.outcomeUnknown = sent.outcomeUnknown;
    for (const [member, value] of Object.entries(problem)) {
      // A member of a later version must not overwrite `message`, `stack` or the prototype.
      if (!(member in this)) Object.assign(this, { [member]: value });
    }
  }
}

/** A refusal, thrown. `switch (problem.code)` gives access to the members of each code. */
export type RushgateProblem = ProblemError & (Problem | UnknownProblem);

/** `error instanceof RushgateProblem` narrows to the union of all problems. */
export const RushgateProblem = ProblemError as unknown as {
  new (problem: Problem | UnknownProblem, response: Response, sent: Sent): RushgateProblem;
  readonly prototype: RushgateProblem;
};

/** No answer arrived before the attempts or the time were used up. `cause` is the last failure. */
export class RushgateUnreachable extends Error implements Sent {
  readonly key: string | undefined;
  readonly attempts: number;
  readonly outcomeUnknown = true;

  constructor(sent: Omit<Sent, "outcomeUnknown">, cause: unknown) {
    super(`no answer from Rushgate after ${sent.attempts} attempt(s)`, { cause });
    this.name = "RushgateUnreachable";
    this.key = sent.key;
    this.attempts = sent.attempts;
  }
}

/** Reads the body of a refusal. A proxy in front of Rushgate may answer with HTML or nothing. */
export function problemOf(body: unknown, response: Response): Problem | UnknownProblem {
  if (
    typeof body === "object" &&
    body !== null &&
    "code" in body &&
    typeof body.code === "string"
  ) {
    return body as Problem | UnknownProblem;
  }
  return {
    type: "about:blank",
    title: response.statusText,
    status: response.status,
    detail: `HTTP ${response.status} without a problem document`,
    code: `http-${response.status}` as string as UnknownCode,
  };
}
