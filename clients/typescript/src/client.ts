// The client: openapi-fetch with a token and a language, and on top of it `once()`, `pages()` and
// `live()`.

import createFetchClient, {
  type Client,
  type ParamsOption,
  type RequestBodyOption,
} from "openapi-fetch";

import { live, type LiveEvent, type LiveOptions } from "./live.js";
import { problemOf, RushgateProblem } from "./problem.js";
import { leavesOutcomeUnknown, repeat, type Answer, type RetryOptions } from "./repeat.js";
import type { paths } from "./schema.js";

export interface ClientOptions {
  /** Where the service is, such as `https://rushgate.shop.example`. */
  baseUrl: string;
  /** The JWT, or a function that gives it. The function is called for each attempt. */
  token?: string | (() => string | Promise<string>);
  /** In place of the global `fetch`. */
  fetch?: (request: Request) => Promise<Response>;
  /** The language of `title` and `detail` of problems, such as `ko`. */
  locale?: string;
}

type Json<R> = R extends { content: { "application/json": infer Body } } ? Body : never;
/** `[init?]` where every member of `Init` is optional. */
type Optional<Init> = {} extends Init ? [init?: Init] : [init: Init];

/** The paths that a POST is known for. */
export type PostPath = {
  [P in keyof paths]: paths[P] extends { post: { responses: unknown } } ? P : never;
}[keyof paths];
type Post<P extends PostPath> = paths[P]["post"];

export type OnceInit<P extends PostPath> = ParamsOption<Post<P>> &
  RequestBodyOption<Post<P>> &
  RetryOptions & {
    /** The idempotency key. Default: a new one for each call of `once()`. */
    key?: string;
  };

type Responses<P extends PostPath> = Post<P> extends { responses: infer R } ? R : never;
/**
 * The answer of `once()`. `status` tells a final answer (200, 201) from 202: decided and logged,
 * not yet in PostgreSQL.
 */
export type OnceAnswer<P extends PostPath> = {
  [S in keyof Responses<P> & (200 | 201 | 202)]: {
    status: S;
    data: Json<Responses<P>[S]>;
    key: string;
    attempts: number;
    response: Response;
  };
}[keyof Responses<P> & (200 | 201 | 202)];

/** The paths that give a list in pages. */
export type PagePath = {
  [P in keyof paths]: paths[P] extends { get: { responses: { 200: infer R } } }
    ? Json<R> extends { data: unknown[]; next: string | null }
      ? P
      : never
    : never;
}[keyof paths];
type Get<P extends PagePath> = paths[P]["get"];
export type PageElement<P extends PagePath> =
  Get<P> extends { responses: { 200: infer R } }
    ? Json<R> extends { data: (infer Element)[] }
      ? Element
      : never
    : never;
export type PagesInit<P extends PagePath> = ParamsOption<Get<P>> & RetryOptions;

/** `GET`, `PUT` and `POST` are those of openapi-fetch: one request, and refusals in `error`. */
export interface RushgateClient extends Pick<Client<paths>, "GET" | "PUT" | "POST"> {
  /** Sends a POST until its outcome is known. All attempts carry the same idempotency key. */
  once<P extends PostPath>(path: P, ...init: Optional<OnceInit<P>>): Promise<OnceAnswer<P>>;
  /** The elements of all pages of a list. A page that fails is asked for again, as in `once()`. */
  pages<P extends PagePath>(
    path: P,
    ...init: Optional<PagesInit<P>>
  ): AsyncGenerator<PageElement<P>, void, undefined>;
  /** Stock and coupons left as they change. Connects again after each break, until `signal`. */
  live(options: LiveOptions): AsyncGenerator<LiveEvent, void, undefined>;
}

/** Parameters, retries and body of a call, without the types that depend on its path. */
interface AnyInit extends RetryOptions {
  params?: { query?: Record<string, unknown>; header?: Record<string, unknown> };
  body?: unknown;
  key?: string;
}
type AnyCall = (path: string, init: object) => Promise<Answer<unknown>>;

export function createClient(options: ClientOptions): RushgateClient {
  const { baseUrl, token, locale } = options;
  const fetch = options.fetch ?? ((request: Request) => globalThis.fetch(request));
  // Lists in queries are `ids=a,b`.
  const querySerializer = { array: { style: "form", explode: false } } as const;
  const api = createFetchClient<paths>({ baseUrl, fetch, querySerializer });
  api.use({
    async onRequest({ request }) {
      const jwt = typeof token === "function" ? await token() : token;
      if (jwt) request.headers.set("Authorization", `Bearer ${jwt}`);
      if (locale) request.headers.set("Accept-Language", locale);
    },
  });

  function repeated(call: AnyCall, path: string, init: object, retry: RetryOptions, key?: string) {
    return repeat(
      (signal, sending) => {
        const send = (request: Request) => {
          sending();
          return fetch(request);
        };
        return call(path, { ...init, signal, fetch: send });
      },
      retry,
      key,
    );
  }

  async function once(path: string, init: AnyInit = {}): Promise<unknown> {
    const { params, body, key = crypto.randomUUID(), ...retry } = init;
    const header = { ...params?.header, "Idempotency-Key": key };
    // Written down once: a body that changed between attempts would be `idempotency-key-reused`.
    const text = JSON.stringify(body);
    const sent = { params: { ...params, header }, body, bodySerializer: () => text };
    const settled = await repeated(api.POST as AnyCall, path, sent, retry, key);
    return { status: settled.response.status, key, ...settled };
  }

  async function* pages(path: string, init: AnyInit = {}): AsyncGenerator<unknown> {
    const { params, ...retry } = init;
    let after = params?.query?.["after"];
    do {
      const query = { ...params?.query, after };
      const sent = { params: { ...params, query } };
      const { data } = await repeated(api.GET as AnyCall, path, sent, retry);
      const page = data as { data: unknown[]; next: string | null };
      yield* page.data;
      after = page.next;
    } while (after);
  }

  // Without a token, which the stream does not need: a page of a visitor who has none shows it, too.
  const open = createFetchClient<paths>({ baseUrl, fetch, querySerializer });
  function watch(options: LiveOptions): AsyncGenerator<LiveEvent, void, undefined> {
    const { products = [], templates = [] } = options;
    const query = { ...(products.length && { products }), ...(templates.length && { templates }) };
    const headers = locale ? { "Accept-Language": locale } : {};
    return live((signal, sending) => {
      const send = (request: Request) => {
        sending();
        return fetch(request);
      };
      const init = { params: { query }, headers, parseAs: "stream", signal, fetch: send };
      return (open.GET as AnyCall)("/v1/live", init) as Promise<Answer<ReadableStream<Uint8Array>>>;
    }, options);
  }

  const { GET, PUT, POST } = api;
  return { GET, PUT, POST, once, pages, live: watch } as RushgateClient;
}

/** The data of a call of `GET`, `PUT` or `POST`. A refusal is thrown as `RushgateProblem`. */
export async function orThrow<T>(
  call: Promise<
    | { data: T; error?: never; response: Response }
    | { data?: never; error: unknown; response: Response }
  >,
): Promise<T> {
  const answer = await call;
  const { data, error, response } = answer;
  if (response.ok) return data as T;
  const sent = { key: undefined, attempts: 1, outcomeUnknown: leavesOutcomeUnknown(answer) };
  throw new RushgateProblem(problemOf(error, response), response, sent);
}
