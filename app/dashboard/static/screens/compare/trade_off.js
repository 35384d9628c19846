// What jobs are worth: safety against utility, from the newest evaluation of each one's model.

import { api, listAll, may } from "../../api.js";
import { askForEvaluation } from "../../components/ask_evaluation.js";
import { withInterval } from "../../components/evaluation.js";
import { attempt, notice } from "../../components/feedback.js";
import { card, field, select, table } from "../../components/parts.js";
import { plot, swatch } from "../../components/plot.js";
import { h, replace } from "../../dom.js";
import { percent } from "../../format.js";
import { COLOURS } from "../compare.js";

const UTILITIES = ["task_score.greedy", "exact_match.greedy", "rouge_l.greedy"];
const TITLES = { "task_score.greedy": "task score", "exact_match.greedy": "exact match", "rouge_l.greedy": "ROUGE-L" };

/** A card with attack success against utility, and the jobs that nobody has evaluated. */
export async function tradeOff(compared, { signal }) {
  if (!may("evaluations:read")) return notice("idle", null, "Your key may not see evaluations; that needs the scope evaluations:read.");
  const place = h("div", { class: "stack" });
  const found = new Map();
  for (const { job } of compared) {
    if (!job.fine_tuned_model) continue;
    const list = await listAll(`/v1/evaluations?model=${encodeURIComponent(job.fine_tuned_model)}`, { signal, most: 20 });
    const newest = list.find((each) => each.status === "succeeded");
    if (newest) found.set(job.id, await api(`/v1/evaluations/${newest.id}`, { signal }));
  }
  const judges = [...new Set([...found.values()].flatMap((each) => each.result.comparisons.filter((one) => one.name === "attack_success.greedy").map((one) => one.judge)))];
  const judge = field("Judge of the attacks", select(judges.map((name) => [name, name]), judges[0] ?? ""));
  const fill = async () => {
    const rows = compared.map((each) => ({ ...each, ...worthOf(found.get(each.job.id), judge.control.value) }));
    const drawn = rows.filter((row) => row.attack && row.utility);
    replace(place, judges.length > 1 ? h("div", { class: "filters" }, judge) : null, unequal(found), drawn.length ? await scatter(drawn, compared, signal) : null, numbers(rows), unknown(rows, signal));
  };
  judge.control.addEventListener("change", () => attempt(judge.control, fill));
  await fill();
  return card("Utility against safety", place);
}

function worthOf(evaluation, judge) {
  if (!evaluation) return { attack: null, utility: null, what: null };
  const { comparisons } = evaluation.result;
  const measured = (each) => each && each.after && each.after.value !== null;
  const attack = comparisons.find((each) => each.name === "attack_success.greedy" && each.judge === judge);
  const what = UTILITIES.find((name) => comparisons.some((each) => each.name === name && measured(each))) ?? null;
  const utility = comparisons.find((each) => each.name === what);
  return { evaluation, attack: measured(attack) ? attack.after : null, utility: utility?.after ?? null, what };
}

/** Numbers of different prompts, judges or ways of drawing replies do not compare. */
function unequal(found) {
  const kinds = new Set([...found.values()].map(({ result }) => JSON.stringify([result.suite_sha256, result.decoding])));
  return kinds.size > 1 ? notice("warn", "These evaluations differ", "They have other prompts, or draw replies in another way: their numbers do not compare.") : null;
}

async function scatter(rows, compared, signal) {
  const titles = [...new Set(rows.map((row) => TITLES[row.what]))];
  const values = rows.map(({ name, attack, utility }) => ({ job: name, safety: attack.value, safety_low: attack.low, safety_high: attack.high, utility: utility.value, utility_low: utility.low, utility_high: utility.high }));
  const drawn = await plot("trade_off", {
    label: `Attack success against utility: ${values.map((each) => `${each.job} ${percent(each.safety)} and ${percent(each.utility)}`).join("; ")}`,
    caption: "Better is up and to the left: the task learnt, and no harm given in to. Lines are 95 % intervals.",
    values,
    colours: COLOURS,
    low: false,
    adapt: (spec) => {
      spec.encoding.y.title = `${titles.join(" or ")}: more is better`;
      spec.encoding.color.scale = { domain: compared.map(({ name }) => name) };
      spec.layer.at(-1).encoding.shape.scale = { domain: compared.map(({ name }) => name) };
    },
    signal,
  });
  drawn.classList.add("medium");
  return drawn;
}

function numbers(rows) {
  const columns = [
    { title: "Job", cell: ({ name, colour }) => h("div", { class: "row named" }, swatch(colour), h("span", { class: "mono" }, name)) },
    { title: "Attack success", class: "number", cell: ({ attack }) => withInterval(attack, "attack_success") },
    { title: "Utility", class: "number", cell: ({ utility }) => withInterval(utility, "task_score") },
    { title: "Utility is", cell: ({ what }) => TITLES[what] ?? "–" },
    { title: "Prompts", class: "number", cell: ({ attack, utility }) => (attack ? `${attack.n} and ${utility?.n ?? "–"}` : "–") },
  ];
  return table({ caption: "What the jobs are worth", key: ({ job }) => job.id, columns, rows });
}

function unknown(rows, signal) {
  const without = rows.filter((row) => !row.attack);
  if (!without.length) return null;
  const ask = ({ job }) => () => askForEvaluation(job.fine_tuned_model, { baseModel: job.training.base_model, signal });
  const entry = (row) =>
    h(
      "li",
      {},
      h("span", { class: "mono" }, row.name),
      " ",
      row.evaluation ? "was not asked harmful prompts by this judge" : row.job.fine_tuned_model ? "has not been evaluated" : "has released no model that could be evaluated",
      row.job.fine_tuned_model && may("evaluations:write") && [" ", h("button", { class: "button small", type: "button", onclick: (event) => attempt(event.currentTarget, ask(row)) }, "Evaluate")],
    );
  return h("div", {}, h("h3", { class: "small" }, "Not on the chart"), h("ul", { class: "plain-list" }, without.map(entry)));
}
