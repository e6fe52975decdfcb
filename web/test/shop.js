// The shopper's way.

import assert from "node:assert/strict";
import { test } from "node:test";

import { checkAccessible, checkNoSideways, DESKTOP, eventually, PHONE, picture } from "./browser.js";
import { Cable } from "./demo.js";

/** @typedef {import("./browser.js").Page} Page */

/** @param {Page} page @param {string} user */
async function shopAs(page, user) {
  await page.getByRole("button", { name: /^Shopping as/ }).click();
  await page.getByLabel(/^Number of the user/).fill(user.slice("user-".length));
  await page.getByRole("button", { name: "Shop as this user" }).click();
  await page.getByRole("button", { name: new RegExp(`^Shopping as ${user} `) }).waitFor();
}

/** @param {Page} page @param {string} text */
const told = (page, text) => page.locator(".notice", { hasText: text }).waitFor();

/** @param {import("./demo.js").Demo} demo @param {string} path @param {object} body @param {string} [token] */
function post(demo, path, body, token) {
  const headers = { "content-type": "application/json", ...(token ? { authorization: `Bearer ${token}` } : {}) };
  return fetch(demo.url + path, { method: "POST", headers, body: JSON.stringify(body) });
}

/** @param {() => import("./suite.js").Setting} setting */
export function shopTests(setting) {
  test("a shopper takes a coupon, orders with it, sees the order and cancels it", async () => {
    const { browser, demo } = setting();
    await browser.visit(DESKTOP, async (page, origin) => {
      await page.goto(`${origin}/`);
      assert.equal(new URL(page.url()).pathname, "/shop/");
      await page.locator("[data-stock=latte]").filter({ hasText: "in stock" }).waitFor();
      assert.equal(await page.locator("[data-add]").count(), (await demo.all("/v1/products")).length);
      await shopAs(page, "user-11");
      await page.locator("[data-coupon=welcome]").click();
      await told(page, "It is yours: number");
      await page.locator("[data-coupon=welcome]", { hasText: "In your wallet" }).waitFor();
      await page.locator("[data-add=latte]").click();
      await page.locator("[data-add=latte]").click();
      await page.locator("[data-add=cheesecake]").click();
      await page.getByRole("button", { name: "Open the basket, 3 pieces" }).click();
      await page.getByRole("dialog", { name: "Basket" }).waitFor();
      assert.equal(await page.locator("[data-total]").textContent(), "₩16,800");
      await checkAccessible(page);
      await page.locator("[data-pay]").click();
      await told(page, "Ordered and paid: ₩16,800.");
      await page.getByRole("link", { name: "My page" }).click();
      await page.locator("[data-balance]", { hasText: "₩83,200" }).waitFor();
      const order = page.locator("[data-order]").first();
      assert.match((await order.textContent()) ?? "", /Caffè latte × 2.*Cheesecake × 1.*Paid|Paid.*Caffè latte × 2/s);
      await checkAccessible(page);
      await order.getByRole("button", { name: /^Cancel order/ }).click();
      await told(page, "Cancelled. ₩16,800 went back.");
      await order.getByText("Cancelled", { exact: true }).waitFor();
      await page.locator("[data-balance]", { hasText: "₩100,000" }).waitFor();
    });
    const [order] = await demo.all("/v1/users/user-11/orders");
    assert.deepEqual([order.status, order.total, order.discount], ["cancelled", 16_800, 1_000]);
    assert.equal((await demo.staff("GET", "/v1/users/user-11/wallet")).balance, 100_000);
  });

  test("a wallet that is too small says so, and can be charged", async () => {
    const { browser } = setting();
    await browser.visit(DESKTOP, async (page, origin) => {
      await page.goto(`${origin}/shop/`);
      await shopAs(page, "user-12");
      await page.locator("[data-add=sneakers]").click();
      await page.locator("[data-add=tumbler]").click();
      await page.getByRole("button", { name: /^Open the basket/ }).click();
      await page.locator("[data-pay]").click();
      await page.getByRole("alert").filter({ hasText: "The wallet holds ₩100,000, and ₩124,000 are needed." }).waitFor();
      await page.keyboard.press("Escape");
      await page.getByRole("link", { name: "My page" }).click();
      await page.locator("[data-charge='50000']").click();
      await page.locator("[data-balance]", { hasText: "₩150,000" }).waitFor();
      await page.getByRole("button", { name: /^Open the basket/ }).click();
      await page.locator("[data-pay]").click();
      await told(page, "Ordered and paid: ₩124,000.");
      await page.locator("[data-balance]", { hasText: "₩26,000" }).waitFor();
    });
  });

  test("the basket shows the server's quote, and a card pays what is held", async (context) => {
    const { browser, demo } = setting();
    if (!(await demo.hasRoute("/v1/orders/quote"))) {
      return context.skip("this server gives no quotes and takes no payments outside");
    }
    await browser.visit(DESKTOP, async (page, origin) => {
      await page.goto(`${origin}/shop/`);
      await shopAs(page, "user-15");
      await page.locator("[data-add=sneakers]").click();
      await page.locator("[data-add=tumbler]").click();
      await page.getByRole("button", { name: /^Open the basket/ }).click();
      await page.locator("[data-problems]", { hasText: "The wallet holds ₩100,000, and ₩124,000 are needed." }).waitFor();
      await page.getByText("Quote by the server").waitFor();
      await checkAccessible(page);
      await page.locator("[data-pay-card]").click();
      await told(page, "Held for you. Pay within");
      const order = page.locator("[data-order]").first();
      await order.getByText("Waiting for payment").waitFor();
      await order.locator("[data-hold]", { hasText: /held for (10:00|9:\d\d) more/ }).waitFor();
      await checkAccessible(page);
      const [held] = await demo.all("/v1/users/user-15/orders");
      assert.deepEqual([held.status, held.amount_due, held.wallet_amount], ["pending", 124_000, 0]);
      await order.locator("[data-card]").click();
      await told(page, "Paid by card: ₩124,000.");
      await order.getByText("Paid", { exact: true }).waitFor();
      await page.locator("[data-balance]", { hasText: "₩100,000" }).waitFor();
    });
    const [paid] = await demo.all("/v1/users/user-15/orders");
    assert.equal(paid.status, "paid");
    assert.match(paid.payment_reference, /^card-/);
    const { token } = await (await post(demo, "/shop/token", { user_id: "user-16" })).json();
    const others = await post(demo, "/shop/card", { order_id: paid.order_id }, token);
    assert.equal(others.status, 404, "somebody else's order is not there");
    assert.equal((await post(demo, "/shop/card", { order_id: paid.order_id })).status, 401);
    return undefined;
  });

  test("a coupon counts down to its opening second and then can be taken", async () => {
    const { browser, demo } = setting();
    const opens = Date.now() + 5_000;
    await demo.staff("PUT", "/v1/coupon-templates/soon", {
      name: "Soon",
      discount: { type: "amount", value: 500 },
      max_issued: 3,
      issue_from: new Date(opens).toISOString(),
      issue_until: new Date(opens + 600_000).toISOString(),
    });
    await browser.visit(DESKTOP, async (page, origin) => {
      await page.goto(`${origin}/shop/`);
      await page.getByText(/^Opens in 0:0[1-5]$/).waitFor();
      const button = page.locator("[data-coupon=soon]");
      await button.waitFor({ timeout: 15_000 });
      assert.ok(Math.abs(Date.now() - opens) < 1_500, `shown ${Date.now() - opens} ms after the opening`);
      await button.click();
      await told(page, "It is yours: number 1.");
      await page.locator("[data-left=soon]", { hasText: "2 left of 3" }).waitFor();
    });
  });

  test("stock changes without a reload, and a lost connection is found again", async () => {
    const { browser, demo } = setting();
    const cable = await Cable.to(demo.url);
    try {
      await browser.visit({ ...DESKTOP, origin: cable.url, cut: true }, async (page, origin) => {
        await page.goto(`${origin}/shop/`);
        await shopAs(page, "user-14");
        await demo.staff("POST", "/v1/products/concert-ticket/stock-adjustments", { delta: -7 });
        await page.locator("[data-stock='concert-ticket']", { hasText: "Only 43 left" }).waitFor();
        cable.breakNow();
        await page.getByText("Connection lost. Trying again …").waitFor();
        await page.locator("[data-coupon=welcome]").click();
        await told(page, "The shop cannot be reached.");
        await demo.staff("POST", "/v1/products/concert-ticket/stock-adjustments", { delta: 7 });
        cable.mend();
        await page.locator("[data-stock='concert-ticket']", { hasText: "Only 50 left" }).waitFor();
        await page.getByText("Connection lost. Trying again …").waitFor({ state: "detached" });
        await page.locator("[data-add=latte]").click();
        await page.getByRole("button", { name: "Open the basket, 1 pieces" }).click();
        await page.locator("[data-pay]").click();
        await told(page, "Ordered and paid: ₩5,000.");
      });
    } finally {
      await cable.close();
    }
  });

  test("text from products is text, whatever it looks like", async () => {
    const { browser, demo } = setting();
    const name = `<img src=x onerror="alert(1)"><b>bold</b> & "quoted"`;
    await demo.staff("PUT", "/v1/products/html", { name, price: 1_000, status: "on_sale", stock: 5 });
    try {
      await browser.visit(DESKTOP, async (page, origin) => {
        await page.goto(`${origin}/shop/`);
        await page.getByRole("heading", { name, exact: true }).waitFor();
        await page.locator("[data-add=html]").click();
        await page.getByRole("button", { name: /^Open the basket/ }).click();
        await page.getByRole("button", { name: `Remove ${name}` }).waitFor();
        assert.equal(await page.locator("img, b:text('bold')").count(), 0);
      });
    } finally {
      await demo.staff("PUT", "/v1/products/html", { name: "Soap", price: 1_000, status: "suspended" });
    }
  });

  test("Korean and English, with money and dates as each writes them", async () => {
    const { browser } = setting();
    await browser.visit({ ...DESKTOP, locale: "ko-KR", colorScheme: "dark" }, async (page, origin) => {
      await page.goto(`${origin}/shop/`);
      await page.getByRole("heading", { name: "상품" }).waitFor();
      assert.equal(await page.evaluate(() => document.documentElement.lang), "ko");
      await page.getByText("4,500원").first().waitFor();
      await page.getByText(/\d{4}\. \d{1,2}\. \d{1,2}\. (오전|오후) /).first().waitFor();
      await checkAccessible(page);
      await page.getByRole("button", { name: "EN", exact: true }).click();
      await page.getByRole("heading", { name: "Products" }).waitFor();
      await page.getByText("₩4,500").first().waitFor();
      await page.getByText(/\d{1,2} \w{3} \d{4}, \d\d:\d\d/).first().waitFor();
      await page.reload();
      await page.getByRole("heading", { name: "Products" }).waitFor();
      // Every text of one language is there in the other: no key is shown.
      assert.doesNotMatch((await page.locator("body").innerText()) ?? "", /\b(rush|coupon|product|order)\.[a-z]+\b/);
    });
  });

  test("on a phone, nothing is wider than the screen", async () => {
    const { browser } = setting();
    await browser.visit(PHONE, async (page, origin) => {
      await page.goto(`${origin}/shop/`);
      await page.locator("[data-add=latte]").click();
      await checkNoSideways(page);
      await checkAccessible(page);
      await page.getByRole("button", { name: /^Open the basket/ }).click();
      await page.locator("[data-pay]").waitFor();
      await checkNoSideways(page);
      await page.keyboard.press("Escape");
      await page.goto(`${origin}/shop/#/mine`);
      await page.getByRole("heading", { name: "My orders" }).waitFor();
      await checkNoSideways(page);
    });
  });

  test("the keyboard reaches everything that a shopper needs", async () => {
    const { browser } = setting();
    await browser.visit({ ...DESKTOP, reducedMotion: "reduce" }, async (page, origin) => {
      await page.goto(`${origin}/shop/`);
      await page.locator("[data-add=latte]").waitFor();
      const reached = new Set();
      for (let n = 0; n < 40; n += 1) {
        await page.keyboard.press("Tab");
        reached.add(await page.evaluate(() => {
          const it = document.activeElement;
          const outlined = it && getComputedStyle(it).outlineStyle !== "none";
          return `${it?.getAttribute("data-add") ?? it?.getAttribute("data-coupon") ?? it?.textContent?.trim()}${outlined ? "" : " (no outline)"}`;
        }));
      }
      for (const wanted of ["Skip to the content", "My page", "Send 3,000 rivals", "latte"]) {
        assert.ok(reached.has(wanted), `${wanted} is not among ${[...reached].join(", ")}`);
      }
      await page.locator("[data-add=latte]").focus();
      await page.keyboard.press("Enter");
      await page.getByRole("button", { name: "Open the basket, 1 pieces" }).focus();
      await page.keyboard.press("Enter");
      await page.getByRole("dialog", { name: "Basket" }).waitFor();
      await page.keyboard.press("Escape");
      await page.getByRole("dialog", { name: "Basket" }).waitFor({ state: "hidden" });
    });
  });

  test("3,000 rivals: the visitor presses too, and the verdict is the database's", async () => {
    const { browser, demo } = setting();
    let template = "";
    await browser.visit(DESKTOP, async (page, origin) => {
      await page.goto(`${origin}/shop/`);
      await shopAs(page, "user-13");
      await page.locator("[data-start]").click();
      await page.locator("[data-press]").click();
      await page.locator("[data-result=early]").waitFor();
      await page.locator("[data-remaining]").waitFor({ timeout: 15_000 });
      await page.locator("[data-press]").click();
      await page.locator("[data-result=won], [data-result=lost]").waitFor();
      await page.locator("[data-rush=done]").waitFor({ timeout: 60_000 });
      const run = (await (await fetch(`${origin}/shop/rivals`)).json()).run;
      template = run.template_id;
      const held = await demo.all(`/v1/coupon-templates/${template}/coupons`);
      assert.equal(held.length, 100);
      assert.equal(new Set(held.map((coupon) => coupon.user_id)).size, 100);
      assert.deepEqual(held.map((coupon) => coupon.serial), Array.from({ length: 100 }, (_, n) => n + 1));
      const mine = held.find((coupon) => coupon.user_id === "user-13");
      const won = await page.locator("[data-result]").getAttribute("data-result");
      assert.equal(won, mine ? "won" : "lost", "the page and the database agree on whether the visitor got one");
      if (mine) await page.getByText(`Yours. Number ${mine.serial} of 100`).waitFor();
      assert.equal(run.outcomes.issued, held.length - (mine ? 1 : 0));
      assert.equal(run.answered, 3_000);
      const verdict = page.locator("[data-holds]");
      assert.equal(await verdict.count(), 6);
      assert.deepEqual(await verdict.evaluateAll((all) => all.map((it) => it.getAttribute("data-holds"))), Array(6).fill("true"));
      await page.getByText("Exactly 100 of 100 coupons issued").waitFor();
      await page.getByText(/^Audit clean: Redis and PostgreSQL agree in \d+ checks/).waitFor();
      await checkAccessible(page);
      await page.evaluate(() => scrollTo(0, 0));
      await page.locator(".notice").first().waitFor({ state: "detached" });
      await picture(page, "rivals");
      await page.setViewportSize(PHONE.viewport);
      await checkNoSideways(page);
    });
  });

  test("a verdict that is not clean is shown as it is", async () => {
    const { browser } = setting();
    // The same run as the server gives it, with other counts: nothing on the page is fixed.
    await browser.visit(DESKTOP, async (page, origin) => {
      const run = (await (await fetch(`${origin}/shop/rivals`)).json()).run;
      const verdict = { ...run.verdict, issued: 101, holders: 99, serials: 100, held_by_rivals: 3 };
      const audit = { ...run.audit, outcome: "differences", why: "coupons: c1: expected 100, found 101" };
      let asked = 0;
      await page.route("**/shop/rivals", (route) => {
        const state = asked++ === 0 ? "checking" : "done";
        return route.fulfill({ json: { run: { ...run, state, answered: 2_999, verdict, audit } } });
      });
      await page.goto(`${origin}/shop/`);
      await page.locator("[data-rush=done]").waitFor();
      const holds = await page.locator("[data-holds]").evaluateAll((all) => all.map((it) => it.getAttribute("data-holds")));
      assert.deepEqual(holds, Array(6).fill("false"));
      await page.getByText("101 coupons issued, and the limit is 100").waitFor();
      await page.getByText("The audit is not clean: coupons: c1: expected 100, found 101").waitFor();
    });
  });

  test("tokens and crowds are for the demo's users and within bounds", async () => {
    const { demo } = setting();
    /** @param {string} path @param {unknown} body @param {Record<string, string>} [headers] */
    const post = async (path, body, headers = { "content-type": "application/json" }) => {
      const response = await fetch(demo.url + path, { method: "POST", headers, body: JSON.stringify(body) });
      return [response.status, (await response.json()).code];
    };
    for (const user of ["user-0", "user-1001", "shop-staff", "rival-1", "user-01"]) {
      assert.deepEqual(await post("/shop/token", { user_id: user }), [422, "invalid-field"], user);
    }
    const scoped = await post("/shop/token", { user_id: "user-1", scope: "admin" });
    assert.deepEqual(scoped, [422, "invalid-field"]);
    const form = await post("/shop/token", { user_id: "user-1" }, { "content-type": "text/plain" });
    assert.deepEqual(form, [415, "unsupported-media-type"]);
    const { token } = await (
      await fetch(`${demo.url}/shop/token`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ user_id: "user-1" }),
      })
    ).json();
    const claims = JSON.parse(Buffer.from(token.split(".")[1], "base64url").toString());
    assert.deepEqual([claims.sub, claims.scope], ["user-1", "shop"]);
    assert.ok(claims.exp - Date.now() / 1000 <= 3_600);
    const status = await fetch(`${demo.url}/v1/admin/status`, { headers: { authorization: `Bearer ${token}` } });
    assert.equal(status.status, 403);
    for (const body of [
      { rivals: 3_001, coupons: 100 },
      { rivals: 0, coupons: 100 },
      { rivals: 10, coupons: 1_001 },
      { rivals: 10 },
    ]) {
      assert.deepEqual((await post("/shop/rivals", body))[0], 422, JSON.stringify(body));
    }
  });

  test("there is one crowd at a time, and a second visitor joins it", async () => {
    const { demo } = setting();
    const start = async () => {
      const response = await fetch(`${demo.url}/shop/rivals`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ rivals: 20, coupons: 30 }),
      });
      return /** @type {[number, any]} */ ([response.status, await response.json()]);
    };
    const [first, second] = [await start(), await start()];
    assert.deepEqual([first[0], first[1].started, second[0], second[1].started], [201, true, 200, false]);
    assert.equal(first[1].run.run_id, second[1].run.run_id);
    await eventually(async () => {
      const { run } = await (await fetch(`${demo.url}/shop/rivals`)).json();
      assert.deepEqual([run.state, run.outcomes], ["done", { issued: 20 }]);
      assert.deepEqual([run.verdict.issued, run.verdict.holders, run.audit.outcome], [20, 20, "clean"]);
    }, 40_000);
  });
}
