// Calls that are compiled and never run: what the types allow, and what they do not.

import { createClient, orThrow, RushgateProblem, type Schemas } from "@rushgate/client";

const shop = createClient({ baseUrl: "", token: async () => "jwt" });

export async function answers(): Promise<string> {
  const order = await shop.once("/v1/orders", { body: { user_id: "user-1", items: [] } });
  // @ts-expect-error a 202 has no total
  order.data.total satisfies number;
  if (order.status === 201) order.data.total satisfies number;
  await shop.once("/v1/products/popular/refresh");
  // @ts-expect-error the body is missing
  await shop.once("/v1/orders", {});
  // @ts-expect-error the id is missing
  await shop.once("/v1/orders/{id}/cancel", {});
  // @ts-expect-error no POST goes there
  await shop.once("/v1/products");
  const product = await orThrow(shop.GET("/v1/products/{id}", { params: { path: { id: "a" } } }));
  return order.data.order_id + (product satisfies Schemas["Product"]).name;
}

export async function lists(): Promise<void> {
  const params = { path: { user: "user-1" }, query: { limit: 100 } };
  for await (const order of shop.pages("/v1/users/{user}/orders", { params })) {
    order satisfies Schemas["Order"];
  }
  for await (const product of shop.pages("/v1/products")) product satisfies Schemas["Product"];
  // @ts-expect-error a list without pages
  shop.pages("/v1/products/popular");
}

export async function events(): Promise<void> {
  for await (const { event, data } of shop.live({ products: ["a"] })) {
    // @ts-expect-error a snapshot has no stock of its own
    data.stock satisfies number;
    if (event === "product") data.stock satisfies number;
    else if (event === "snapshot") data.templates[0]?.remaining satisfies number | undefined;
  }
}

export function problems(error: unknown): string {
  if (!(error instanceof RushgateProblem)) return "";
  // @ts-expect-error not known before the code is
  error.available satisfies number;
  switch (error.code) {
    case "insufficient-stock":
      error.available satisfies number;
      return error.product_id;
    case "already-issued":
      // @ts-expect-error a member of another code
      error.available satisfies number;
      return error.coupon_id;
    default:
      return `${error.code}: ${error.detail}`;
  }
}
