// Client code that uses the generated types. It is compiled by `tsc`, but never run.

import type { components, paths } from "./openapi-typescript";
import type { Order, PlaceOrderErrors, Problem, WalletEntry } from "./hey-api";

type Refusals<Path extends keyof paths, Status> = paths[Path] extends {
  post: { responses: infer R };
}
  ? Status extends keyof R
    ? R[Status] extends { content: { "application/problem+json": infer P } }
      ? P
      : never
    : never
  : never;

// `code` determines which members exist.
export function shown(problem: Refusals<"/v1/orders", 409>): string {
  switch (problem.code) {
    case "insufficient-stock":
      return `${problem.product_id}: ${problem.available.toFixed()} of ${problem.required.toFixed()}`;
    case "insufficient-balance":
      return `${(problem.required - problem.balance).toFixed()} won are missing`;
    case "coupon-expired":
      return problem.expired_at;
    default:
      return problem.detail;
  }
}

export function left(problem: Problem): number {
  return problem.code === "balance-limit-exceeded" ? problem.limit - problem.balance : 0;
}

// Using another refusal's member is an error, and so is a code that the route never returns.
export function wrong(problem: PlaceOrderErrors[409]): string {
  // @ts-expect-error sold-out is no refusal of an order
  if (problem.code === "sold-out") return "";
  // @ts-expect-error not known before the code has been looked at
  return problem.available;
}

// Numbers are numbers, not bigints.
export const total = (order: Order): number => order.total - order.discount;
export const sum = (entries: components["schemas"]["List_WalletEntry"]): number =>
  entries.data.reduce((sum, entry) => sum + entry.amount, 0);
export const paid = (entry: WalletEntry): boolean => entry.kind === "payment";
// @ts-expect-error no such kind
export const given = (entry: WalletEntry): boolean => entry.kind === "gift";

// A 202 has the id of what was created.
export const made = (
  body: paths["/v1/orders"]["post"]["responses"][202]["content"]["application/json"],
): string => body.order_id;
