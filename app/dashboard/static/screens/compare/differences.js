// In what the requests of jobs differ, and nothing else.

import { h } from "../../dom.js";
import { askedOf } from "../../components/asked.js";
import { card, table } from "../../components/parts.js";
import { swatch } from "../../components/plot.js";

const SETTINGS = ["model", "training_file", "validation_file", "seed", "priority", "hyperparameters", "metadata"];

/** A table of what was asked for that is not the same in all of the jobs. */
export function differences(compared) {
  const flat = compared.map(({ job }) => flatten({ ...Object.fromEntries(SETTINGS.map((name) => [name, job[name]])), safety: askedOf(job.safety), training: askedOf(job.training) }));
  const names = [...new Set(flat.flatMap((each) => [...each.keys()]))];
  const rows = names.filter((name) => new Set(flat.map((each) => each.get(name))).size > 1).map((name) => ({ name, values: flat.map((each) => each.get(name)) }));
  if (compared.length < 2) return card("What is different", h("p", { class: "muted" }, "Choose a second job."));
  if (!rows.length) return card("What is different", h("p", {}, "Nothing: they were asked for in the same way."));
  const same = `${names.length - rows.length} other settings are the same in all of them.`;
  const columns = [
    { title: "Setting", cell: (row) => h("code", {}, row.name) },
    ...compared.map(({ name, colour }, at) => ({ title: h("span", { class: "row named" }, swatch(colour), name), cell: (row) => cell(row.values, at) })),
  ];
  return card("What is different", [table({ caption: "The differences", key: (row) => row.name, columns, rows }), h("p", { class: "small muted pad" }, same)], { flush: true });
}

/** What most of the jobs have stands plain; what stands alone is in bold. */
function cell(values, at) {
  const value = values[at];
  const alone = values.length > 2 && values.filter((each) => each === value).length === 1;
  const text = value === undefined ? "–" : value;
  return alone ? h("strong", { title: "This job alone has this" }, text) : text;
}

function flatten(value, path = "", found = new Map()) {
  if (value === null || typeof value !== "object") {
    if (value !== undefined) found.set(path, value === null ? "none" : String(value));
    return found;
  }
  for (const [name, inner] of Object.entries(value)) {
    flatten(inner, path ? `${path}.${name}` : name, found);
  }
  return found;
}
