export { createClient, orThrow } from "./client.js";
export type {
  ClientOptions,
  OnceAnswer,
  OnceInit,
  PageElement,
  PagePath,
  PagesInit,
  PostPath,
  RushgateClient,
} from "./client.js";
export type {
  LiveEvent,
  LiveOptions,
  LiveProduct,
  LiveProductState,
  LiveTemplate,
  LiveTemplateState,
} from "./live.js";
export { RushgateProblem, RushgateUnreachable } from "./problem.js";
export type { Problem, Sent, UnknownCode, UnknownProblem } from "./problem.js";
export type { RetryOptions } from "./repeat.js";
import type { components } from "./schema.js";
export type { paths } from "./schema.js";
/** The bodies of the API by name, such as `Schemas["Order"]`. */
export type Schemas = components["schemas"];
