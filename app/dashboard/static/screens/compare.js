// Jobs beside each other: their curves, what they are worth, and in what they differ.

import { api, listAll } from "../api.js";
import { criticName } from "../components/critic.js";
import { empty, notice, problem } from "../components/feedback.js";
import { card, field, pageHead, select, table } from "../components/parts.js";
import { plot, swatch } from "../components/plot.js";
import { ENDED, protectionBadge, stateBadge, stateOf } from "../components/states.js";
import { h, newId, replace } from "../dom.js";
import { count, fraction, number } from "../format.js";
import { poll } from "../live.js";
import { differences } from "./compare/differences.js";
import { tradeOff } from "./compare/trade_off.js";

const MOST = 6;
const EVERY_S = 3;
const POINTS = 1000;
/** Colours of the jobs, in their order. */
export const COLOURS = ["series-risk", "series-beta", "series-nll", "series-kl", "series-anchor-kl", "series-alpha"];
const METRICS = {
  risk_smoothed: ["Risk, smoothed mean", "0 to 1", [0, 1]],
  risk_max: ["Risk, riskiest row", "0 to 1", [0, 1]],
  beta_mean: ["Beta, mean", "0 to 1", [0, 1]],
  nll: ["NLL of the data", "nats per token", null],
  kl: ["Penalty on the data", "nats per token", null],
  anchor_kl: ["KL on the anchors", "nats per token", null],
  drift: ["Drift of the run", "nats per token", null],
};
const AXES = { step: "optimiser step", share: "share of the run" };

export async function show(root, { query, signal }) {
  const jobs = await listAll("/v1/fine_tuning/jobs", { signal, most: 500 });
  const known = new Map(jobs.map((job) => [job.id, job]));
  let chosen = (query.get("jobs") ?? "").split(",").filter(Boolean).slice(0, MOST);
  for (const id of chosen.filter((each) => !known.has(each))) known.set(id, await api(`/v1/fine_tuning/jobs/${encodeURIComponent(id)}`, { signal }));
  const place = h("div", { class: "stack" });
  let shown = new AbortController();

  const redraw = async () => {
    try {
      await draw();
    } catch (error) {
      // What was chosen before is not drawn any more.
      if (error.name !== "AbortError") replace(place, problem(error, redraw));
    }
  };
  const draw = async () => {
    shown.abort();
    shown = new AbortController();
    const mine = AbortSignal.any([signal, shown.signal]);
    keep(query, "jobs", chosen.join(","));
    if (!chosen.length) {
      replace(place, empty("Choose up to six jobs", "Their curves are drawn over each other, with what they are worth and in what they differ."));
      return;
    }
    const compared = chosen.map((id, at) => ({ job: known.get(id), name: nameOf(known.get(id)), colour: COLOURS[at] }));
    const grid = named(compared);
    const drawn = await curves(compared, query, { refreshed: () => grid.update(compared.map((each) => ({ ...each }))), signal: mine });
    // Meanwhile others may have been chosen, and drawn.
    if (mine.aborted) return;
    replace(place, card("What is compared", grid, { flush: true }), drawn, differences(compared));
    const worth = await tradeOff(compared, { signal: mine });
    if (!mine.aborted) place.insertBefore(worth, place.lastElementChild);
  };
  const picker = pickerOf(jobs, chosen, (fresh) => {
    chosen = fresh;
    redraw();
  });
  replace(root, pageHead("Compare jobs", { subtitle: "The same numbers of up to six jobs, over each other." }), h("div", { class: "stack" }, card("Jobs", picker), place));
  await redraw();
}

/** Put a choice into the address, which can be sent to others, and into `query`, which the next drawing begins with. */
function keep(query, name, value) {
  if (value) query.set(name, value);
  else query.delete(name);
  history.replaceState(null, "", `#/compare${query.size ? `?${String(query).replaceAll("%2C", ",")}` : ""}`);
}

/** What a job is called where there is little room. */
export function nameOf(job) {
  return [job.suffix ?? job.fine_tuned_model?.split(":").at(3) ?? null, job.safety.method, job.id.slice(-6)].filter(Boolean).join(" · ");
}

function pickerOf(jobs, begin, changed) {
  const search = h("input", { type: "search", placeholder: "Id, model, file or metadata", "aria-label": "Search among the jobs" });
  const list = h("div", { class: "picker", role: "group", "aria-label": "Jobs to choose from", tabindex: "0" });
  const said = h("p", { class: "small muted", role: "status" });
  let chosen = begin;
  const redraw = () => {
    const words = search.value.toLowerCase().split(/\s+/);
    const like = (job) => words.every((word) => [job.id, job.model, job.training_file, job.fine_tuned_model, job.safety.method, ...Object.entries(job.metadata ?? {}).flat()].join("\n").toLowerCase().includes(word));
    const wanted = jobs.filter((job) => chosen.includes(job.id) || like(job)).sort((a, b) => chosen.includes(b.id) - chosen.includes(a.id)).slice(0, 30);
    replace(list, wanted.map((job) => entry(job, chosen.includes(job.id), chosen.length >= MOST)));
    said.textContent = jobs.length ? `${count(chosen.length)} of at most ${MOST} chosen` : "There are no jobs yet.";
  };
  const entry = (job, on, full) => {
    const box = h("input", { type: "checkbox", checked: on, disabled: full && !on, id: newId("job"), value: job.id });
    box.addEventListener("change", () => {
      chosen = box.checked ? [...chosen, job.id] : chosen.filter((each) => each !== job.id);
      redraw();
      list.querySelector(`[value="${CSS.escape(job.id)}"]`)?.focus();
      changed(chosen);
    });
    return h("label", { class: "row", for: box.id }, box, h("span", { class: "mono" }, nameOf(job)), stateBadge(stateOf(job)), job.safety.protected ? null : protectionBadge(job));
  };
  search.addEventListener("input", redraw);
  redraw();
  return h("div", { class: "stack" }, search, list, said);
}

function named(compared) {
  const columns = [
    { title: "Job", cell: ({ job, name, colour }) => h("div", { class: "row named" }, swatch(colour), h("a", { href: `#/jobs/${job.id}`, class: "mono" }, name)) },
    { title: "State", cell: ({ job }) => stateBadge(stateOf(job)) },
    { title: "Protection", cell: ({ job }) => protectionBadge(job) },
    { title: "Steps", class: "number nowrap", cell: ({ job }) => `${count(job.training.steps_completed)} of ${count(job.training.total_steps)}` },
    { title: "Mean risk", class: "number", cell: ({ job }) => fraction(job.safety.risk_mean) },
    { title: "Mean beta", class: "number", cell: ({ job }) => fraction(job.safety.beta_mean) },
    { title: "Risk by", cell: ({ job }) => criticName(job.safety.critic) },
  ];
  return table({ caption: "The compared jobs", key: ({ job }) => job.id, columns, rows: compared });
}

async function curves(compared, query, { refreshed, signal }) {
  const metric = field("Number", select(Object.entries(METRICS).map(([name, [text]]) => [name, text]), query.get("metric") ?? "risk_smoothed"));
  const axis = field("Along", select(Object.entries(AXES), query.get("axis") ?? "step"));
  const found = new Map();
  const read = async ({ job, name }) => {
    const step = job.training.steps_completed;
    if (!step || found.get(job.id)?.step === step) return;
    const curve = await api(`/v1/fine_tuning/jobs/${job.id}/risk?max_points=${POINTS}`, { signal }).catch((error) => {
      if (error.name === "AbortError") throw error;
      return { columns: [], rows: [], why: error.message };
    });
    found.set(job.id, { step, name, curve });
  };
  await Promise.all(compared.map(read));
  const values = () => compared.flatMap(({ job, name }) => points(found.get(job.id)?.curve, name, metric.control.value, axis.control.value, job.training.total_steps));
  const missing = h("div", {});
  const say = () => {
    const without = compared.filter(({ job, name }) => !values().some((point) => point.job === name && typeof point.value === "number"));
    replace(missing, without.length ? notice("idle", null, `Without this number: ${without.map(({ job, name }) => `${name}${found.get(job.id)?.curve.why ? ` (${found.get(job.id).curve.why})` : ""}`).join("; ")}.`) : null);
  };
  const adapt = (spec) => {
    const [text, unit, domain] = METRICS[metric.control.value];
    spec.encoding.y.title = `${text}, ${unit}`;
    if (domain) spec.encoding.y.scale.domain = domain;
    spec.encoding.x.title = AXES[axis.control.value];
    spec.encoding.x.axis = axis.control.value === "share" ? { format: ".0%" } : { tickMinStep: 1, format: ",d" };
    for (const channel of ["color", "strokeDash"]) spec.encoding[channel].scale = { ...spec.encoding[channel].scale, domain: compared.map(({ name }) => name) };
  };
  const drawn = await plot("compare", {
    label: "The chosen number of each job along its run; the table below has the same numbers.",
    values: values(),
    colours: COLOURS,
    adapt,
    low: false,
    columns: [
      { title: "Job", cell: (row) => row.job },
      { title: "Step", class: "number", cell: (row) => count(row.step) },
      { title: "Value", class: "number", cell: (row) => number(row.value) },
    ],
    signal,
  });
  drawn.classList.add("medium");
  const again = () => {
    drawn.update(values());
    say();
  };
  for (const [name, { control }] of Object.entries({ metric, axis })) {
    control.addEventListener("change", () => {
      keep(query, name, control.value);
      again();
    });
  }
  say();
  poll(
    async () => {
      for (const each of compared) {
        if (ENDED.has(stateOf(each.job))) continue;
        each.job = await api(`/v1/fine_tuning/jobs/${each.job.id}`, { signal });
        refreshed();
        const before = found.get(each.job.id)?.step;
        await read(each);
        if (found.get(each.job.id)?.step !== before) again();
      }
    },
    { everyS: EVERY_S, signal },
  );
  return card("Curves over each other", h("div", { class: "stack" }, h("div", { class: "filters" }, metric, axis), drawn, missing));
}

function points(curve, job, metric, axis, total) {
  const at = curve?.columns.indexOf(metric) ?? -1;
  if (at < 0) return [];
  const step = curve.columns.indexOf("step");
  const last = total ?? curve.rows.at(-1)?.[step];
  return curve.rows.filter((row) => typeof row[at] === "number").map((row) => ({ job, step: row[step], x: axis === "share" ? row[step] / last : row[step], value: row[at] }));
}
