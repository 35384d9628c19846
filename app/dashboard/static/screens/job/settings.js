// How the job was set up: what was asked for, with every default filled in.

import { askedOf } from "../../components/asked.js";
import { facts } from "../../components/parts.js";
import { h, replace } from "../../dom.js";
import { UNKNOWN } from "../../format.js";

/** The resolved settings of the job in `view`. */
export function showSettings(view) {
  const element = h("div", { class: "stack" });
  let drawn = null;
  const update = () => {
    const { job } = view;
    const groups = [
      ["Safety", askedOf(job.safety)],
      ["Training", { ...askedOf(job.training), ...job.hyperparameters, seed: job.seed }],
      ["Job", { validation_file: job.validation_file, suffix: job.suffix ?? null, priority: job.priority, created_by: job.created_by ?? null }],
      ["Metadata", job.metadata ?? {}],
    ];
    const stamp = JSON.stringify([groups, job.training.lineage, job.integrations]);
    if (stamp === drawn) return;
    drawn = stamp;
    replace(element, h("div", { class: "columns" }, groups.map(([title, values]) => group(title, values))), lineage(job), integrations(job));
  };
  update();
  return Object.assign(element, { update });
}

function group(title, values) {
  const rows = Object.entries(values).map(([name, value]) => [name.replaceAll("_", " "), say(value)]);
  return h("div", {}, h("h3", {}, title), rows.length ? facts(rows) : h("p", { class: "muted" }, "none"));
}

function say(value) {
  if (value === null || value === undefined) return UNKNOWN;
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "object") return String(value);
  return h("ul", { class: "plain-list small" }, Object.entries(value).map(([name, each]) => h("li", {}, `${name.replaceAll("_", " ")}: `, typeof each === "object" && each !== null ? JSON.stringify(each) : String(each ?? UNKNOWN))));
}

function lineage(job) {
  const { lineage: before, base_model: base } = job.training;
  const links = [...before].reverse().map((each) => h("li", {}, h("a", { href: `#/models/${encodeURIComponent(each.model)}` }, each.model), ` (step ${each.step})`));
  const name = h("li", {}, h("a", { href: `#/models/${encodeURIComponent(base)}` }, base), " (base model)");
  return h("div", {}, h("h3", {}, "Lineage"), h("ol", {}, name, links, h("li", {}, "this job")));
}

function integrations({ integrations: found }) {
  if (!found.length) return null;
  return h("div", {}, h("h3", {}, "Integrations"), h("ul", {}, found.map((each) => h("li", {}, `${each.type}: `, h("code", {}, JSON.stringify(each[each.type] ?? {}))))));
}
