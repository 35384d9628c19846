// The curves of a job on one axis of steps: drawn anew at most once a second while it runs, and more closely where one looks.

import { api, ApiError } from "../../api.js";
import { chart, colour, loadSpec } from "../../charts.js";
import { problem } from "../../components/feedback.js";
import { field, table } from "../../components/parts.js";
import { stateOf } from "../../components/states.js";
import { h, replace } from "../../dom.js";
import { count, fraction, number } from "../../format.js";
import { throttle } from "../../live.js";

const EVERY_MS = 1000;
const LEAST_POINTS = 300;
const MOST_POINTS = 1000;
const MOST_LABELS = 12;
const TABLE_ROWS = 200;
// The labels of the y axis, which the panels' widths do not count.
const MARGIN_PX = 64;

const SERIES = {
  "risk, riskiest row": "series-risk-max",
  "risk, smoothed mean": "series-risk",
  "beta, mean": "series-beta",
  "alpha, mean": "series-alpha",
  "NLL of the data": "series-nll",
  "penalty, on the data": "series-kl",
  "KL on the anchors": "series-anchor-kl",
  "drift, by the monitor": "idle",
  checkpoint: "idle",
  pause: "warn",
  policy: "bad",
};

const MEANINGS = [
  ["Risk", "How harmful the critic takes a step's rows to be, from 0 to 1: each point is the step's riskiest row, the dashed line the smoothed mean of its rows."],
  ["Beta and alpha", "Beta is the weight of the penalty that holds the model to its reference, alpha = 1 − beta that of the task; beta follows risk upwards, so that risky rows teach little."],
  ["NLL", "How badly the model predicts its training data, in nats per token; it falls as the task is learnt, and may stay high where beta is."],
  ["Penalty, KL and drift", "How far the model has moved from its safe reference, in nats per token: on its data, on the anchors' prompts, and on prompts that nobody trains on, which the monitor watches."],
];

/** The curves of the job in `view`, with `grow(step)` for each step that is heard of, and `refresh()`. */
export async function showCurves(view) {
  const spec = await loadSpec("risk");
  const seen = { curve: null, from: null, to: null };
  const from = field("From step", h("input", { type: "number", min: 1, inputmode: "numeric" }));
  const to = field("To step", h("input", { type: "number", min: 1, inputmode: "numeric" }));
  const whole = h("button", { class: "button", type: "button", onclick: () => zoom(null, null) }, "Whole run");
  const status = h("p", { class: "muted small", role: "status" });
  const trouble = h("div", {});
  const empty = h("p", { class: "muted" });
  const numbers = numbersTable();
  const plot = chart({ label: labelOf(null), build: (width) => fill(spec, seen.curve, width), table: () => numbers(seen.curve), ready: listen, signal: view.signal });
  plot.classList.add("curves");
  const controls = h("form", { class: "filters zoom", onsubmit: (event) => (event.preventDefault(), zoom(valueOf(from), valueOf(to))) }, from, to, h("button", { class: "button" }, "Show these steps"), whole);

  /** Drawing a range over a panel looks at it more closely. A finger scrolls the page instead. */
  function listen(drawn) {
    let range = null;
    for (const panel of ["risk", "loss", "distance"]) {
      drawn.addSignalListener(`zoom_${panel}`, (_, value) => (range = value.step ?? null));
    }
    const take = () => {
      const [first, last] = range ? range.map(Math.round) : [0, 0];
      range = null;
      if (last > first) zoom(Math.max(1, first), last);
    };
    drawn.container().addEventListener("pointerup", take);
    drawn.container().addEventListener("mouseup", take);
  }

  function zoom(first, last) {
    [seen.from, seen.to] = first !== null && last !== null && first > last ? [last, first] : [first, last];
    from.control.value = seen.from ?? "";
    to.control.value = seen.to ?? "";
    load();
  }

  // What is drawn stays while somebody draws a range over it.
  let drawing = false;
  plot.addEventListener("pointerdown", ({ pointerType }) => (drawing = pointerType !== "touch"));
  for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => drawing && ((drawing = false), load()), { signal: view.signal });

  const load = throttle(async () => {
    if (drawing) return;
    if (view.job.training.steps_pruned_at) return say("The records of the steps were pruned, so that there is nothing to draw.");
    try {
      seen.curve = await api(addressOf(view, seen, plot.clientWidth), { signal: view.signal });
      replace(trouble);
    } catch (error) {
      if (error.name !== "AbortError") replace(trouble, problem(error, error instanceof ApiError ? null : load));
      return;
    }
    const { rows } = seen.curve;
    plot.hidden = !rows.length;
    if (!rows.length) return say(seen.from === null ? "No step is done yet. The curves appear with the first one, after the reference pass has read the data." : "No step is done in this range.");
    empty.hidden = true;
    status.textContent = `Steps ${count(rows[0][0])} to ${count(rows.at(-1)[0])}${seen.curve.total_steps ? ` of ${count(seen.curve.total_steps)}` : ""}, ${count(rows.length)} of them drawn, with every extreme of the risk.`;
    plot.querySelector(".canvas").setAttribute("aria-label", labelOf(seen.curve));
    plot.redraw();
  }, EVERY_MS, view.signal);

  function say(text) {
    empty.hidden = false;
    empty.textContent = text;
    status.textContent = "";
    plot.hidden = true;
  }

  const element = h("div", { class: "stack" }, controls, status, trouble, empty, plot, h("dl", { class: "meanings" }, MEANINGS.map(([term, text]) => h("div", {}, h("dt", {}, term), h("dd", {}, text)))));
  return Object.assign(element, {
    refresh: load,
    grow: (step) => (seen.to === null || step <= seen.to) && load(),
    update: ({ moved }) => moved && stateOf(view.job) !== "queued" && load(),
  });
}

function valueOf({ control }) {
  const value = Math.round(Number(control.value));
  return control.value !== "" && Number.isFinite(value) ? Math.max(1, value) : null;
}

/** More points than pixels would show nothing more. */
function addressOf(view, { from, to }, width) {
  const points = Math.round(Math.min(MOST_POINTS, Math.max(LEAST_POINTS, width / 1.5)));
  const query = new URLSearchParams({ max_points: String(points) });
  if (from !== null) query.set("from_step", String(from));
  if (to !== null) query.set("to_step", String(to));
  return `${view.path}/risk?${query}`;
}

function fill(kept, curve, width) {
  if (!curve) return undefined;
  if (!curve.rows.length) return null;
  const spec = structuredClone(kept);
  const narrow = width < 560;
  const first = curve.rows[0][0];
  const last = curve.rows.at(-1)[0];
  const marks = curve.marks.filter((mark) => mark.step >= first && mark.step <= last);
  const few = marks.filter(({ kind }) => kind === "checkpoint").length <= MOST_LABELS;
  spec.datasets = {
    curve: curve.rows.map((row) => Object.fromEntries(curve.columns.map((name, at) => [name, typeof row[at] === "number" ? row[at] : null]))),
    marks: marks.map((mark) => ({ ...mark, label: few || mark.kind !== "checkpoint" ? mark.label : "" })),
  };
  delete spec.background;
  spec.config = { legend: { orient: "top", direction: "horizontal", columns: narrow ? 1 : 4, offset: 4 } };
  for (const panel of spec.vconcat) {
    panel.width = Math.max(160, width - MARGIN_PX);
    panel.title = { text: panel.title, limit: width };
    const { scale } = panel.encoding.color;
    scale.range = scale.domain.map((name) => colour(SERIES[name]));
    for (const layer of panel.layer) if (layer.mark.type === "rule" && layer.mark.color) layer.mark.color = colour("line-strong");
    if (panel.name !== "marks" && !matchMedia("(pointer: coarse)").matches) panel.layer[0].params = [{ name: `zoom_${panel.name}`, select: { type: "interval", encodings: ["x"] } }];
  }
  return spec;
}

function labelOf(curve) {
  if (!curve?.rows.length) return "Risk, beta, alpha, loss and distance from the reference over the steps of the job";
  const at = (name) => curve.columns.indexOf(name);
  const last = curve.rows.at(-1);
  return `Curves over the steps ${curve.rows[0][0]} to ${last[0]}. At the last one: smoothed risk ${fraction(last[at("risk_smoothed")])}, beta ${fraction(last[at("beta_mean")])}, alpha ${fraction(last[at("alpha_mean")])}, NLL ${number(last[at("nll")])} and penalty ${number(last[at("kl")])} nats per token.`;
}

/** A function that returns the numbers of a curve as a table, the same element from one curve to the next. */
function numbersTable() {
  let grid = null;
  return (curve) => {
    if (!curve) return h("p", {}, "Nothing yet.");
    const every = Math.max(1, Math.ceil(curve.rows.length / TABLE_ROWS));
    const rows = curve.rows.filter((_, at) => at % every === 0 || at === curve.rows.length - 1);
    const columns = curve.columns.map((name, at) => ({ title: name.replaceAll("_", " "), class: "number", cell: (row) => (at === 0 ? count(row[at]) : typeof row[at] === "string" ? row[at] : number(row[at])) }));
    grid ??= table({ caption: `Numbers of the steps, of at most ${TABLE_ROWS} of them`, key: (row) => row[0], columns, numeric: true });
    grid.update(rows);
    return grid;
  };
}
