// The staff's way.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { checkAccessible, checkNoSideways, DESKTOP, eventually, PHONE, picture } from "./browser.js";
import { Cable } from "./demo.js";

/** @typedef {import("./browser.js").Page} Page */

/** @param {Page} page @param {string} origin @param {string} token @param {string} [section] */
async function open(page, origin, token, section = "overview") {
  await page.goto(`${origin}/console/#/${section}`);
  await page.locator("[data-token]").fill(token);
  await page.locator("form button").click();
  await page.locator("nav").first().waitFor();
}

/** @param {() => import("./suite.js").Setting} setting */
export function consoleTests(setting) {
  test("a forged token opens nothing, and a token of a shopper neither", async () => {
    const { browser, demo } = setting();
    const [head, , signature] = demo.admin.split(".");
    const claims = Buffer.from(JSON.stringify({ sub: "me", scope: "admin", exp: 4e9 })).toString("base64url");
    await browser.visit(DESKTOP, async (page, origin) => {
      await page.goto(`${origin}/console/`);
      await checkAccessible(page);
      for (const [token, why] of [
        [`${head}.${claims}.${signature}`, "This token is not valid here, or it has expired."],
        ["<script>alert(1)</script>", "This token is not valid here, or it has expired."],
        [demo.token("user-1", "shop"), "This token lacks the scope admin."],
      ]) {
        await page.locator("[data-token]").fill(token ?? "");
        await page.locator("form button").click();
        await page.getByRole("alert").filter({ hasText: why ?? "" }).waitFor();
        assert.equal(await page.evaluate(() => sessionStorage.getItem("rushgate.staff")), null);
        assert.equal(await page.locator("nav").count(), 0);
      }
    });
  });

  test("the overview shows the instance as its routes do, and the token stays in the tab", async () => {
    const { browser, demo } = setting();
    await browser.visit(DESKTOP, async (page, origin) => {
      await open(page, origin, demo.printedAdminToken());
      await page.locator("[data-cell='0']", { hasText: "open" }).waitFor();
      await page.locator("[data-cell='0'] [data-lag]", { hasText: /^0$/ }).waitFor();
      assert.equal(await page.getByText("connected", { exact: true }).count(), 3);
      await page.getByText(/GET \/v1\/admin\/status ·\s+\d+ s old/).first().waitFor();
      await page.getByRole("rowheader", { name: "GET /v1/admin/status" }).waitFor({ timeout: 15_000 });
      await page.getByRole("rowheader", { name: "sold-out" }).waitFor();
      await checkAccessible(page);
      const kept = await page.evaluate(() => [JSON.stringify(localStorage), document.cookie, location.href].join());
      assert.ok(!kept.includes("ey"), `the token is kept in ${kept}`);
      await page.locator("[data-sign-out]").click();
      await page.locator("[data-token]").waitFor();
      assert.equal(await page.evaluate(() => sessionStorage.getItem("rushgate.staff")), null);
    });
  });

  test("staff make and change products and templates, and adjust stock", async () => {
    const { browser, demo } = setting();
    await browser.visit(DESKTOP, async (page, origin) => {
      await open(page, origin, demo.admin, "catalogue");
      await page.locator("[data-new=product]").click();
      await page.getByLabel(/^Id/).fill("mug");
      await page.getByLabel("Name").fill("Mug <b>blue</b>");
      await page.getByLabel("Price in won").fill("12000");
      await page.getByLabel("Stock at first").fill("40");
      await checkAccessible(page);
      await page.getByRole("button", { name: "Save" }).click();
      const mug = page.locator("[data-product=mug]");
      await mug.getByText("Mug <b>blue</b>").waitFor();
      assert.deepEqual(await product(demo, "mug"), ["Mug <b>blue</b>", 12_000, 40, "on_sale"]);

      await mug.getByRole("button", { name: /^Change/ }).click();
      await page.getByLabel("Price in won").fill("9900");
      await page.getByLabel("Status").selectOption("suspended");
      await page.getByRole("button", { name: "Save" }).click();
      await mug.getByText("₩9,900").waitFor();
      assert.deepEqual(await product(demo, "mug"), ["Mug <b>blue</b>", 9_900, 40, "suspended"]);

      await mug.getByRole("button", { name: /^Adjust/ }).click();
      await page.getByLabel(/^Add to the stock/).fill("-41");
      await page.getByRole("button", { name: "Save" }).click();
      await page.getByRole("alert").filter({ hasText: "stock-below-zero" }).waitFor();
      await page.getByLabel(/^Add to the stock/).fill("-5");
      await page.getByLabel(/^Reason/).fill("broken in transit");
      await page.getByRole("button", { name: "Save" }).click();
      await mug.locator("[data-stock]", { hasText: "35" }).waitFor();

      await page.locator("[data-new=template]").click();
      await page.getByLabel(/^Id/).fill("autumn");
      await page.getByLabel("Name").fill("Autumn: 15 %");
      await page.getByLabel("Discount").selectOption("percent");
      await page.getByLabel("Value").fill("15");
      await page.getByLabel(/^At most/).fill("3000");
      await page.getByLabel(/^Limit/).fill("250");
      await page.getByRole("button", { name: "Save" }).click();
      await page.locator("[data-template=autumn]", { hasText: "250 / 250" }).waitFor();
      await checkAccessible(page);
    });
    const template = await demo.staff("GET", "/v1/coupon-templates/autumn");
    assert.deepEqual([template.discount, template.max_issued], [{ type: "percent", value: 15, max: 3_000 }, 250]);
  });

  test("staff see a rush on the board, find the holders and download them", async () => {
    const { browser, demo } = setting();
    await browser.visit(DESKTOP, async (page, origin) => {
      await open(page, origin, demo.admin, "rush");
      const board = page.locator("[data-board='big-basket']");
      await board.getByText("1,000", { exact: true }).first().waitFor();
      for (const n of [21, 22, 23]) {
        await demo.staff("POST", "/v1/coupon-templates/big-basket/coupons", { user_id: `user-${n}` });
      }
      await board.locator(".number", { hasText: "997" }).waitFor();
      await board.getByText(/issued per s: (0\.[1-9]|[1-9])/).waitFor();
      await checkAccessible(page);
      await page.getByRole("button", { name: "Products" }).click();
      await page.locator("[data-board=latte]").waitFor();

      await page.goto(`${origin}/console/#/find/holders/big-basket`);
      await page.getByRole("link", { name: "user-22" }).waitFor();
      await checkAccessible(page);
      const [download] = await Promise.all([page.waitForEvent("download"), page.locator("[data-csv]").click()]);
      assert.equal(download.suggestedFilename(), "big-basket-holders.csv");
      const lines = readFileSync(await download.path(), "utf8").trim().split("\r\n");
      assert.equal(lines[0], "serial,user_id,coupon_id,status,issued_at,expires_at,order_id");
      const held = await demo.all("/v1/coupon-templates/big-basket/coupons");
      const wanted = held.map((it) => [it.serial, `"${it.user_id}"`, it.coupon_id, it.status, it.issued_at, it.expires_at, ""].join(","));
      assert.deepEqual(lines.slice(1), wanted);
    });
  });

  test("staff find a user and an order, and cancel it", async () => {
    const { browser, demo } = setting();
    const items = [{ product_id: "americano", quantity: 3 }];
    const order = await demo.staff("POST", "/v1/orders", { user_id: "user-31", items });
    await browser.visit(DESKTOP, async (page, origin) => {
      await open(page, origin, demo.admin, "find");
      await page.getByLabel(/^User id/).fill("user-31");
      await page.getByRole("button", { name: "Search" }).click();
      await page.getByRole("link", { name: "user-31" }).first().waitFor();
      await checkAccessible(page);
      await page.getByRole("link", { name: "user-31" }).first().click();
      await page.locator("[data-balance]", { hasText: "₩86,500" }).waitFor();
      await page.getByRole("link", { name: `…${order.order_id.slice(-8)}` }).click();
      const shown = page.locator(`[data-order='${order.order_id}']`);
      await shown.getByText("Americano × 3").waitFor();
      await shown.locator("[data-cancel]").click();
      await shown.getByText("Really cancel?").click();
      await page.locator("[data-status=cancelled]").waitFor();
      await page.getByLabel("Order id").fill("not-an-order");
      await page.getByRole("button", { name: "Search" }).click();
      await page.getByRole("alert").filter({ hasText: "must be a UUID" }).waitFor();
    });
    assert.equal((await demo.staff("GET", `/v1/orders/${order.order_id}`)).status, "cancelled");
    assert.equal((await demo.staff("GET", "/v1/users/user-31/wallet")).balance, 100_000);
  });

  test("staff confirm an order that waits for its payment", async (context) => {
    const { browser, demo } = setting();
    if (!(await demo.hasRoute("/v1/orders/{id}/confirm"))) return context.skip("this server takes no payments outside");
    const items = [{ product_id: "americano", quantity: 1 }];
    const order = await demo.staff("POST", "/v1/orders", { user_id: "user-32", items, payment: "external" });
    await browser.visit(DESKTOP, async (page, origin) => {
      await open(page, origin, demo.admin, `find/order/${order.order_id}`);
      await page.locator("[data-status=pending]").waitFor();
      await page.getByLabel("Reference of the payment").fill("bank-4711");
      await checkAccessible(page);
      await page.getByRole("button", { name: "Save" }).click();
      await page.locator("[data-status=paid]").waitFor();
    });
    const paid = await demo.staff("GET", `/v1/orders/${order.order_id}`);
    assert.deepEqual([paid.status, paid.payment_reference], ["paid", "bank-4711"]);
    return undefined;
  });

  test("staff run an audit and read it", async () => {
    const { browser, demo } = setting();
    await browser.visit({ ...DESKTOP, colorScheme: "dark" }, async (page, origin) => {
      await open(page, origin, demo.admin, "audit");
      await page.locator("[data-audit]").click();
      await page.locator("[data-audit-state=clean]").first().waitFor({ timeout: 30_000 });
      const { data } = await demo.staff("GET", "/v1/admin/audits");
      assert.equal(await page.locator("details[open] tbody tr").count(), data[0].checks.length);
      assert.ok(data[0].checks.length > 10 && data[0].state === "clean");
      await checkAccessible(page);
    });
  });

  test("a lost connection is told, and values say their age", async () => {
    const { browser, demo } = setting();
    const cable = await Cable.to(demo.url);
    try {
      await browser.visit({ ...DESKTOP, origin: cable.url, cut: true }, async (page, origin) => {
        await open(page, origin, demo.admin);
        await page.locator("[data-cell='0']").waitFor();
        cable.breakNow();
        await page.getByText("Connection lost. What you see may be old.").waitFor();
        await page.locator("[data-cell='0'] .source", { hasText: /[3-9] s old · The server does not answer\./ }).waitFor();
        cable.mend();
        await page.getByText("Connection lost. What you see may be old.").waitFor({ state: "detached" });
        await page.locator("[data-cell='0'] .source", { hasText: /[0-2] s old$/ }).waitFor();
      });
    } finally {
      await cable.close();
    }
  });

  test("the console fits a phone, in both languages", async () => {
    const { browser, demo } = setting();
    for (const locale of ["en-GB", "ko-KR"]) {
      await browser.visit({ ...PHONE, locale }, async (page, origin) => {
        await page.goto(`${origin}/console/`);
        await checkNoSideways(page);
        await open(page, origin, demo.admin);
        for (const section of ["overview", "rush", "catalogue", "find", "find/user/user-31", "find/holders/welcome", "audit"]) {
          await page.goto(`${origin}/console/#/${section}`);
          await page.getByRole("heading", { level: 1 }).waitFor();
          await eventually(() => checkNoSideways(page), 2_000);
        }
        await checkAccessible(page);
      });
    }
  });

  test("the pictures of the documentation", async () => {
    const { browser, demo } = setting();
    await browser.visit(DESKTOP, async (page, origin) => {
      await open(page, origin, demo.admin);
      await page.getByRole("rowheader", { name: "GET /v1/admin/status" }).waitFor({ timeout: 15_000 });
      await picture(page, "console");
    });
  });
}

/** @param {import("./demo.js").Demo} demo @param {string} id */
async function product(demo, id) {
  const { name, price, stock, status } = await demo.staff("GET", `/v1/products/${id}`);
  return [name, price, stock, status];
}
