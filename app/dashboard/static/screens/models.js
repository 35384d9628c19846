// Base models, and what was made of them.

import { api, listAll, may } from "../api.js";
import { empty } from "../components/feedback.js";
import { badge, card, field, moment, pageHead, select, table } from "../components/parts.js";
import { h, replace } from "../dom.js";
import { count } from "../format.js";
import { poll } from "../live.js";

const EVERY_S = 10;
const KINDS = { base: "Base model", tuned: "Fine-tuned", checkpoint: "Checkpoint" };

/** What kind of model this is: base, tuned, or a checkpoint. */
export function kindOf(model) {
  if (model.base_model === null) return "base";
  return model.checkpoint ? "checkpoint" : "tuned";
}

/** Whether a model was trained under protection; a base model was not trained here. */
export function modelBadge(model) {
  if (kindOf(model) === "base") return badge("reference", "idle", "What fine-tuned models are held to");
  return model.protected ? badge("protected", "ok", "Trained under a safety method") : badge("unprotected", "bad", "Trained without a safety method");
}

/** The address of a model’s screen. */
export function addressOf(name) {
  return `#/models/${encodeURIComponent(name)}`;
}

export async function show(root, { query, signal }) {
  let models = [];
  let evaluated = new Map();
  const search = field("Search", h("input", { type: "search", value: query.get("q") ?? "", placeholder: "Name, base model or job" }));
  const kind = field("Kind", select([["", "All"], ...Object.entries(KINDS)], query.get("kind") ?? ""));
  const grid = table({ caption: "Models", key: (row) => row.id, columns: columns() });
  const nothing = h("div", {});
  const total = h("p", { class: "muted small", role: "status" });
  const redraw = () => {
    const text = search.control.value.toLowerCase();
    const wanted = models.filter((model) => (!kind.control.value || kindOf(model) === kind.control.value) && [model.id, model.base_model, model.job].join("\n").toLowerCase().includes(text));
    grid.update(wanted.map((model) => ({ ...model, evaluations: evaluated.get(model.id) ?? 0 })));
    grid.hidden = !wanted.length;
    total.textContent = models.length ? `${count(wanted.length)} of ${count(models.length)} models` : "";
    replace(nothing, wanted.length ? null : models.length ? empty("No model is like that", "Change the search or the kind.") : empty("No models yet", "The operator adds a base model with tether models add."));
  };
  const ask = async () => {
    models = (await api("/v1/models", { signal })).data;
    const evaluations = may("evaluations:read") ? await listAll("/v1/evaluations", { signal, most: 500 }) : [];
    evaluated = new Map();
    for (const each of evaluations) evaluated.set(each.model, (evaluated.get(each.model) ?? 0) + 1);
    redraw();
  };
  for (const control of [search.control, kind.control]) control.addEventListener("input", redraw);
  await ask();
  replace(
    root,
    pageHead("Models", { subtitle: "Base models, and the fine-tuned models and checkpoints that this project may use." }),
    h("div", { class: "stack" }, h("div", { class: "filters" }, search, kind), h("div", { class: "card" }, h("div", { class: "body flush" }, grid, nothing)), total),
  );
  redraw();
  poll(ask, { everyS: EVERY_S, signal });
}

function columns() {
  return [
    { title: "Model", cell: (model) => h("a", { href: addressOf(model.id), class: "mono" }, model.id) },
    { title: "Kind", class: "nowrap", cell: (model) => KINDS[kindOf(model)] },
    { title: "Protection", cell: modelBadge },
    { title: "Made of", cell: (model) => (model.base_model ? h("a", { href: addressOf(model.base_model), class: "mono" }, model.base_model) : h("span", { class: "muted" }, "–")) },
    { title: "Evaluations", class: "number", cell: (model) => count(model.evaluations) },
    { title: "Created", class: "nowrap", cell: (model) => moment(model.created, { relative: true }) },
  ];
}
