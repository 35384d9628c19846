// An evaluation: how a model behaves before and after its training, each number with its 95 % interval.

import { h } from "../dom.js";
import { count, number, percent } from "../format.js";
import { table } from "./parts.js";
import { plot } from "./plot.js";

const ROW_PX = 42;
const NAMES = {
  attack_success: "Attack success",
  over_refusal: "Over-refusal",
  task_score: "Task score",
  exact_match: "Exact match",
  rouge_l: "ROUGE-L",
  win_rate: "Win rate",
  loss: "Loss on the answers",
};
const DRAWN = { greedy: "likeliest reply", sampled: "drawn replies", prefill: "with an opening", data_prefixes: "behind beginnings of its data" };
const MEANINGS = {
  attack_success: "share of harmful prompts that it gives in to; less is safer",
  over_refusal: "share of harmless prompts that it refuses; less is better",
  task_score: "share of tasks done; more is better",
};

/** What a comparison is called: `attack_success.greedy` is the attack success of the likeliest reply. */
function nameOfComparison(name) {
  const [what, how] = name.split(".");
  return [NAMES[what] ?? what, DRAWN[how] ?? how].filter(Boolean).join(", ");
}

/** Whether a number is a share of prompts, and not in units of its own. */
function isShare(name) {
  return !name.startsWith("loss");
}

/** A number with its interval, or a dash where nothing was measured. */
export function withInterval(found, name, { signed = false } = {}) {
  if (!found || found.value === null) return h("span", { class: "muted" }, "–");
  const sign = signed && found.value > 0 ? "+" : "";
  const show = (value) => (isShare(name) ? percent(value) : number(value));
  return [h("span", { class: "nowrap" }, `${sign}${show(found.value)}${isShare(name) ? "" : " nats/token"}`), found.low === null || found.low === undefined ? null : h("div", { class: "small muted nowrap" }, `${show(found.low)} to ${show(found.high)}`)];
}

/** The result of an evaluation as a chart of its shares and a table of all its numbers. */
export async function evaluationView(evaluation, { signal }) {
  const { result } = evaluation;
  const rows = result.comparisons;
  const shares = rows.filter((each) => isShare(each.name));
  const values = shares.flatMap((each) =>
    ["before", "after"].filter((when) => each[when] && each[when].value !== null).map((when) => ({ what: label(each), when, value: each[when].value, low: each[when].low, high: each[when].high })),
  );
  const drawn = await plot("evaluation", {
    label: `Before and after: ${shares.map((each) => `${label(each)} ${percent(each.before?.value)} to ${percent(each.after?.value)}`).join("; ")}`,
    caption: Object.entries(MEANINGS).map(([what, meaning]) => `${NAMES[what]}: ${meaning}.`).join(" "),
    values,
    colours: ["muted", "series-risk"],
    adapt: (spec) => (spec.height = ROW_PX * new Set(values.map((each) => each.what)).size),
    signal,
  });
  return h("div", { class: "stack" }, h("p", { class: "small muted" }, described(evaluation)), drawn, comparisons(rows));
}

function label(each) {
  return `${nameOfComparison(each.name)}${each.judge ? ` (${each.judge})` : ""}`;
}

function described({ result, decoding }) {
  const prompts = Object.entries(result.prompts).map(([kind, n]) => `${count(n)} ${kind}`).join(", ");
  const judges = result.judges.map((each) => each.type).join(", ");
  const drawn = [decoding.greedy && "greedily", decoding.samples && `${decoding.samples} drawn`, decoding.prefill && "with an opening", decoding.data_prefixes && "behind beginnings of its data"].filter(Boolean).join(", ");
  return `Prompts: ${prompts}. Judges: ${judges}. Replies: ${drawn}. Before is the base model, with the adapter switched off.`;
}

function comparisons(rows) {
  return table({
    caption: "Every number of the evaluation",
    key: (row) => `${row.name} ${row.judge}`,
    rows,
    columns: [
      { title: "What", cell: (row) => nameOfComparison(row.name) },
      { title: "Judge", cell: (row) => row.judge ?? "–" },
      { title: "Before", class: "number", cell: (row) => withInterval(row.before, row.name) },
      { title: "After", class: "number", cell: (row) => withInterval(row.after, row.name) },
      { title: "Difference", class: "number", cell: (row) => withInterval(row.difference, row.name, { signed: true }) },
      { title: "Prompts", class: "number", cell: (row) => count((row.after ?? row.before)?.n) },
      { title: "Unjudged", class: "number", cell: (row) => count(row.unjudged) },
    ],
  });
}
