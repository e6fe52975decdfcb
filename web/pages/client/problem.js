// Refusals as errors. A refusal is a problem document (RFC 9457), and its `code` says which members
// it has. A code that is newer than this client is kept as it came.
class ProblemError extends Error {
    response;
    key;
    attempts;
    outcomeUnknown;
    constructor(problem, 
    /** The answer; its body has been read. */
    response, sent) {
        super(problem.detail);
        this.response = response;
        this.name = "RushgateProblem";
        this.key = sent.key;
        this.attempts = sent.attempts;
        this.outcomeUnknown = sent.outcomeUnknown;
        for (const [member, value] of Object.entries(problem)) {
            // A member of a later version must not overwrite `message`, `stack` or the prototype.
            if (!(member in this))
                Object.assign(this, { [member]: value });
        }
    }
}
/** `error instanceof RushgateProblem` narrows to the union of all problems. */
export const RushgateProblem = ProblemError;
/** No answer arrived before the attempts or the time were used up. `cause` is the last failure. */
export class RushgateUnreachable extends Error {
    key;
    attempts;
    outcomeUnknown = true;
    constructor(sent, cause) {
        super(`no answer from Rushgate after ${sent.attempts} attempt(s)`, { cause });
        this.name = "RushgateUnreachable";
        this.key = sent.key;
        this.attempts = sent.attempts;
    }
}
/** Reads the body of a refusal. A proxy in front of Rushgate may answer with HTML or nothing. */
export function problemOf(body, response) {
    if (typeof body === "object" &&
        body !== null &&
        "code" in body &&
        typeof body.code === "string") {
        return body;
    }
    return {
        type: "about:blank",
        title: response.statusText,
        status: response.status,
        detail: `HTTP ${response.status} without a problem document`,
        code: `http-${response.status}`,
    };
}
