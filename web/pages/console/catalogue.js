// Products and coupon templates: see, make, change, adjust stock.

import { orThrow } from "../client/index.js";
import { description } from "../common/description.js";
import { html, useEffect, useState } from "../common/html.js";
import { count, dateTime, money } from "../common/i18n.js";
import { connection, products, readCatalogue, templates, updatedAt } from "../common/live.js";
import { useStore } from "../common/store.js";
import { Dialog } from "../common/ui.js";
import { Choice, Field, formOf, ID, localTime } from "./forms.js";
import { State } from "./overview.js";
import { api, explain, notify, RETRY, Source } from "./state.js";
import { t } from "./texts.js";

/** @typedef {import("../common/live.js").Product & { sale_from?: string | null, sale_until?: string | null, per_user_limit?: number | null, attributes?: Record<string, string> }} Product */
/** @typedef {import("../common/live.js").Template} Template */
/** What is open: nothing, or a form. @typedef {{ kind: "product", product?: Product } | { kind: "template", template?: Template } | { kind: "stock", product: Product } | undefined} Editing */

const HOUR_MS = 60 * 60_000;

export function Catalogue() {
  /** @type {[Editing, (editing: Editing) => void]} */
  const [editing, edit] = useState(/** @type {Editing} */ (undefined));
  const close = () => edit(undefined);
  const live = useStore(connection) === "live";
  const source = { value: undefined, at: useStore(updatedAt), source: t(live ? "source.live" : "source.polled"), trouble: "" };
  const title =
    editing?.kind === "stock"
      ? t("catalogue.stock.label", { name: editing.product.name })
      : editing?.kind === "product"
        ? editing.product
          ? t("catalogue.change.label", { name: editing.product.name })
          : t("catalogue.new.product")
        : editing?.template
          ? t("catalogue.change.label", { name: editing.template.name })
          : t("catalogue.new.template");
  return html`<h1>${t("nav.catalogue")}</h1>
    <${ProductTable} onEdit=${edit} />
    <${TemplateTable} onEdit=${edit} />
    <${Source} of=${source} />
    <${Dialog} open=${Boolean(editing)} onClose=${close} title=${title} close=${t("close")}>
      ${editing?.kind === "product" && html`<${ProductForm} product=${editing.product} onDone=${close} />`}
      ${editing?.kind === "template" && html`<${TemplateForm} template=${editing.template} onDone=${close} />`}
      ${editing?.kind === "stock" && html`<${StockForm} product=${editing.product} onDone=${close} />`}
    <//>`;
}

/** @param {{ onEdit: (editing: Editing) => void }} props */
function ProductTable({ onEdit }) {
  const all = /** @type {Product[]} */ (useStore(products));
  return html`<section aria-labelledby="products">
    <div class="row spread">
      <h2 id="products">${t("catalogue.products")}</h2>
      <button type="button" class="button button-small" data-new="product" onClick=${() => onEdit({ kind: "product" })}>
        ${t("catalogue.new.product")}
      </button>
    </div>
    <div class="card table-card" tabindex="0" role="group" aria-labelledby="products">
      <table>
        <thead>
          <tr>
            <th scope="col">${t("col.product")}</th>
            <th scope="col" class="right">${t("col.price")}</th>
            <th scope="col" class="right">${t("col.stock")}</th>
            <th scope="col">${t("col.status")}</th>
            <th scope="col">${t("col.actions")}</th>
          </tr>
        </thead>
        <tbody>
          ${all.map(
            (product) => html`<tr key=${product.id} data-product=${product.id}>
              <th scope="row">${product.name}<br /><code class="muted">${product.id}</code></th>
              <td class="right">${money(product.price)}</td>
              <td class="right" data-stock>${count(product.stock)}</td>
              <td><${State} state=${product.status} /></td>
              <td>
                <div class="row">
                  <button
                    type="button"
                    class="button button-plain button-small"
                    aria-label=${t("catalogue.change.label", { name: product.name })}
                    onClick=${() => onEdit({ kind: "product", product })}
                  >
                    ${t("catalogue.change")}
                  </button>
                  <button
                    type="button"
                    class="button button-plain button-small"
                    aria-label=${t("catalogue.stock.label", { name: product.name })}
                    onClick=${() => onEdit({ kind: "stock", product })}
                  >
                    ${t("catalogue.stock")}
                  </button>
                </div>
              </td>
            </tr>`,
          )}
        </tbody>
      </table>
    </div>
  </section>`;
}

/** @param {{ onEdit: (editing: Editing) => void }} props */
function TemplateTable({ onEdit }) {
  const all = useStore(templates);
  return html`<section aria-labelledby="templates">
    <div class="row spread">
      <h2 id="templates">${t("catalogue.templates")}</h2>
      <button
        type="button"
        class="button button-small"
        data-new="template"
        onClick=${() => onEdit({ kind: "template" })}
      >
        ${t("catalogue.new.template")}
      </button>
    </div>
    <div class="card table-card" tabindex="0" role="group" aria-labelledby="templates">
      <table>
        <thead>
          <tr>
            <th scope="col">${t("col.coupon")}</th>
            <th scope="col" class="right">${t("col.left")}</th>
            <th scope="col">${t("col.window")}</th>
            <th scope="col">${t("col.status")}</th>
            <th scope="col">${t("col.actions")}</th>
          </tr>
        </thead>
        <tbody>
          ${all.map(
            (template) => html`<tr key=${template.id} data-template=${template.id}>
              <th scope="row">${template.name}<br /><code class="muted">${template.id}</code></th>
              <td class="right">${count(template.remaining)} / ${count(template.max_issued)}</td>
              <td class="small">${dateTime(template.issue_from)} – ${dateTime(template.issue_until)}</td>
              <td><${State} state=${template.state} /></td>
              <td>
                <div class="row">
                  <button
                    type="button"
                    class="button button-plain button-small"
                    aria-label=${t("catalogue.change.label", { name: template.name })}
                    onClick=${() => onEdit({ kind: "template", template })}
                  >
                    ${t("catalogue.change")}
                  </button>
                  <a
                    class="button button-plain button-small"
                    href="#/find/holders/${encodeURIComponent(template.id)}"
                    aria-label=${t("catalogue.holders.label", { name: template.name })}
                    >${t("catalogue.holders")}</a
                  >
                </div>
              </td>
            </tr>`,
          )}
        </tbody>
      </table>
    </div>
  </section>`;
}

/**
 * A form that saves, and says what went wrong.
 * @param {{ save: (form: ReturnType<typeof formOf>) => Promise<string>, onDone: () => void, children?: import("../common/html.js").Children }} props `save` gives what to tell
 */
export function SavingForm({ save, onDone, children }) {
  const [saving, setSaving] = useState(false);
  const [trouble, setTrouble] = useState("");
  const onSubmit = async (/** @type {SubmitEvent} */ event) => {
    const form = formOf(event);
    setSaving(true);
    setTrouble("");
    try {
      notify("good", await save(form));
      onDone();
      void readCatalogue().catch(() => {});
    } catch (error) {
      setTrouble(explain(error));
    }
    setSaving(false);
  };
  return html`<form class="stack" onSubmit=${onSubmit}>
    ${children}
    <div role="alert">${trouble && html`<p class="alert">${trouble}</p>`}</div>
    <button class="button button-wide" disabled=${saving}>${saving ? t("saving") : t("save")}</button>
  </form>`;
}

/** Members that this server's products have beyond the first version. @returns {Set<string>} */
function useProductMembers() {
  const [members, setMembers] = useState(/** @type {Set<string>} */ (new Set()));
  useEffect(() => {
    void description().then(({ components }) =>
      setMembers(new Set(Object.keys(components.schemas.PutProduct?.properties ?? {}))),
    );
  }, []);
  return members;
}

/** @param {{ product?: Product, onDone: () => void }} props */
function ProductForm({ product, onDone }) {
  const members = useProductMembers();
  const windows = members.has("sale_from");
  const save = async (/** @type {ReturnType<typeof formOf>} */ form) => {
    const id = product?.id ?? form.text("id");
    const stock = form.optionalNumber("stock");
    const status = form.text("status") === "suspended" ? "suspended" : "on_sale";
    const body = {
      name: form.text("name"),
      price: form.number("price"),
      status: /** @type {"on_sale" | "suspended"} */ (status),
      ...(stock !== undefined && !product ? { stock } : {}),
      // A PUT states the whole product: what the form does not show stays as it is.
      ...(windows
        ? {
            sale_from: form.moment("sale_from") ?? null,
            sale_until: form.moment("sale_until") ?? null,
            per_user_limit: form.optionalNumber("per_user_limit") ?? null,
            ...(product?.attributes ? { attributes: product.attributes } : {}),
          }
        : {}),
    };
    const saved = await orThrow(api().PUT("/v1/products/{id}", { params: { path: { id } }, body }));
    return t("saved", { name: "name" in saved ? saved.name : id });
  };
  return html`<${SavingForm} save=${save} onDone=${onDone}>
    ${!product && html`<${Field} name="id" label=${t("field.id")} hint=${t("field.id.rule")} ...${ID} />`}
    <${Field} name="name" label=${t("field.name")} value=${product?.name} maxlength="200" />
    <${Field}
      name="price"
      label=${t("field.price")}
      type="number"
      min="100"
      step="100"
      max="1000000000"
      value=${product?.price}
    />
    <${Choice}
      name="status"
      label=${t("field.status")}
      value=${product?.status ?? "on_sale"}
      options=${[
        ["on_sale", t("state.on_sale")],
        ["suspended", t("state.suspended")],
      ]}
    />
    ${!product && html`<${Field} name="stock" label=${t("field.stock")} type="number" min="0" step="1" value="0" />`}
    ${windows &&
    html`<div class="two">
        <${Field}
          optional
          name="sale_from"
          label=${t("field.sale_from")}
          type="datetime-local"
          step="1"
          value=${localTime(product?.sale_from)}
        />
        <${Field}
          optional
          name="sale_until"
          label=${t("field.sale_until")}
          type="datetime-local"
          step="1"
          value=${localTime(product?.sale_until)}
        />
      </div>
      <${Field}
        optional
        name="per_user_limit"
        label=${t("field.per_user")}
        type="number"
        min="1"
        max="1000"
        value=${product?.per_user_limit ?? ""}
      />`}
  <//>`;
}

/** @param {{ product: Product, onDone: () => void }} props */
function StockForm({ product, onDone }) {
  const save = async (/** @type {ReturnType<typeof formOf>} */ form) => {
    const reason = form.optional("reason");
    const { data } = await api().once("/v1/products/{id}/stock-adjustments", {
      params: { path: { id: product.id } },
      body: { delta: form.number("delta"), ...(reason ? { reason } : {}) },
      ...RETRY,
    });
    return t("adjusted", { name: product.name, n: "stock" in data ? data.stock : "?" });
  };
  return html`<${SavingForm} save=${save} onDone=${onDone}>
    <${Field} name="delta" label=${t("field.delta")} type="number" step="1" />
    <${Field} optional name="reason" label=${t("field.reason")} maxlength="200" />
  <//>`;
}

/** @param {{ template?: Template, onDone: () => void }} props */
function TemplateForm({ template, onDone }) {
  const save = async (/** @type {ReturnType<typeof formOf>} */ form) => {
    const id = template?.id ?? form.text("id");
    const max = form.optionalNumber("max");
    const type = /** @type {"amount" | "percent"} */ (form.text("type"));
    const body = {
      name: form.text("name"),
      discount: { type, value: form.number("value"), ...(max && type === "percent" ? { max } : {}) },
      max_issued: form.number("max_issued"),
      issue_from: form.moment("issue_from") ?? "",
      issue_until: form.moment("issue_until") ?? "",
      min_subtotal: form.number("min_subtotal"),
    };
    const saved = await orThrow(api().PUT("/v1/coupon-templates/{id}", { params: { path: { id } }, body }));
    return t("saved", { name: "name" in saved ? saved.name : id });
  };
  const discount = template?.discount;
  const now = Date.now();
  return html`<${SavingForm} save=${save} onDone=${onDone}>
    ${!template && html`<${Field} name="id" label=${t("field.id")} hint=${t("field.id.rule")} ...${ID} />`}
    <${Field} name="name" label=${t("field.name")} value=${template?.name} maxlength="200" />
    <${Choice}
      name="type"
      label=${t("field.discount")}
      value=${discount?.type ?? "amount"}
      options=${[
        ["amount", t("field.discount.amount")],
        ["percent", t("field.discount.percent")],
      ]}
    />
    <div class="two">
      <${Field} name="value" label=${t("field.value")} type="number" min="1" step="1" value=${discount?.value} />
      <${Field} optional name="max" label=${t("field.max")} type="number" min="1" step="1" value=${discount?.max} />
    </div>
    <div class="two">
      <${Field} name="max_issued" label=${t("field.limit")} type="number" min="1" step="1" value=${template?.max_issued} />
      <${Field}
        name="min_subtotal"
        label=${t("field.least")}
        type="number"
        min="0"
        step="1"
        value=${template?.min_subtotal ?? 0}
      />
    </div>
    <div class="two">
      <${Field}
        name="issue_from"
        label=${t("field.from")}
        type="datetime-local"
        step="1"
        value=${localTime(template?.issue_from ?? now)}
      />
      <${Field}
        name="issue_until"
        label=${t("field.until")}
        type="datetime-local"
        step="1"
        value=${localTime(template?.issue_until ?? now + 24 * HOUR_MS)}
      />
    </div>
  <//>`;
}
