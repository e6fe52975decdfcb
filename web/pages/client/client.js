// The client: openapi-fetch with a token and a language, and on top of it `once()`, `pages()` and
// `live()`.
import createFetchClient, {} from "../vendor/openapi-fetch.js";
import { live } from "./live.js";
import { problemOf, RushgateProblem } from "./problem.js";
import { leavesOutcomeUnknown, repeat } from "./repeat.js";
export function createClient(options) {
    const { baseUrl, token, locale } = options;
    const fetch = options.fetch ?? ((request) => globalThis.fetch(request));
    // Lists in queries are `ids=a,b`.
    const querySerializer = { array: { style: "form", explode: false } };
    const api = createFetchClient({ baseUrl, fetch, querySerializer });
    api.use({
        async onRequest({ request }) {
            const jwt = typeof token === "function" ? await token() : token;
            if (jwt)
                request.headers.set("Authorization", `Bearer ${jwt}`);
            if (locale)
                request.headers.set("Accept-Language", locale);
        },
    });
    function repeated(call, path, init, retry, key) {
        return repeat((signal, sending) => {
            const send = (request) => {
                sending();
                return fetch(request);
            };
            return call(path, { ...init, signal, fetch: send });
        }, retry, key);
    }
    async function once(path, init = {}) {
        const { params, body, key = crypto.randomUUID(), ...retry } = init;
        const header = { ...params?.header, "Idempotency-Key": key };
        // Written down once: a body that changed between attempts would be `idempotency-key-reused`.
        const text = JSON.stringify(body);
        const sent = { params: { ...params, header }, body, bodySerializer: () => text };
        const settled = await repeated(api.POST, path, sent, retry, key);
        return { status: settled.response.status, key, ...settled };
    }
    async function* pages(path, init = {}) {
        const { params, ...retry } = init;
        let after = params?.query?.["after"];
        do {
            const query = { ...params?.query, after };
            const sent = { params: { ...params, query } };
            const { data } = await repeated(api.GET, path, sent, retry);
            const page = data;
            yield* page.data;
            after = page.next;
        } while (after);
    }
    // Without a token, which the stream does not need: a page of a visitor who has none shows it, too.
    const open = createFetchClient({ baseUrl, fetch, querySerializer });
    function watch(options) {
        const { products = [], templates = [] } = options;
        const query = { ...(products.length && { products }), ...(templates.length && { templates }) };
        const headers = locale ? { "Accept-Language": locale } : {};
        return live((signal, sending) => {
            const send = (request) => {
                sending();
                return fetch(request);
            };
            const init = { params: { query }, headers, parseAs: "stream", signal, fetch: send };
            return open.GET("/v1/live", init);
        }, options);
    }
    const { GET, PUT, POST } = api;
    return { GET, PUT, POST, once, pages, live: watch };
}
/** The data of a call of `GET`, `PUT` or `POST`. A refusal is thrown as `RushgateProblem`. */
export async function orThrow(call) {
    const answer = await call;
    const { data, error, response } = answer;
    if (response.ok)
        return data;
    const sent = { key: undefined, attempts: 1, outcomeUnknown: leavesOutcomeUnknown(answer) };
    throw new RushgateProblem(problemOf(error, response), response, sent);
}
