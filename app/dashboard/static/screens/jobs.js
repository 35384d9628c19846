// All jobs of the project, as they stand now.

import { api, ApiError, listAll, may } from "../api.js";
import { advanceOf } from "../components/advance.js";
import { empty, loading } from "../components/feedback.js";
import { jobActions } from "../components/job_actions.js";
import { field, moment, pageHead, select, sparkline, table } from "../components/parts.js";
import { ENDED, gateBadge, nameOf, protectionBadge, stateBadge, stateOf } from "../components/states.js";
import { h, replace } from "../dom.js";
import { count, fraction, shortId } from "../format.js";
import { poll } from "../live.js";

const PATH = "/v1/fine_tuning/jobs";
const EVERY_S = 2;
// What is older changes seldom: it is asked for once in so many rounds.
const ALL_EVERY = 15;
const PAGE = 100;
const MOST = 1000;
const SPARK_POINTS = 24;
const SPARKS_A_ROUND = 6;
const FILTERS = [["", "All"], ["under-way", "Under way"], ["queued", "Queued"], ["paused", "Paused"], ["held", "Held"], ["succeeded", "Succeeded"], ["failed", "Failed"], ["cancelled", "Cancelled"]];
// Of several jobs that are asked for, these change by themselves.
const STANDING = ["paused", "held", "queued"];

export async function show(root, { query, signal }) {
  const sparks = new Map();
  const jobs = new Map();
  const remember = (found) => found.forEach((job) => jobs.set(job.id, job));
  const search = field("Search", h("input", { type: "search", value: query.get("q") ?? "", placeholder: "Id, model, file, suffix or metadata" }));
  const state = field("State", select(FILTERS, query.get("state") ?? ""));
  const changed = (job) => (remember([job]), redraw());
  const grid = table({ caption: "Jobs", key: (row) => row.id, columns: columns({ signal, changed }) });
  const nothing = h("div", {});
  let round = 0;
  let whole = false;
  const total = h("p", { class: "muted small", role: "status" });

  function redraw() {
    const all = [...jobs.values()].sort((one, other) => other.created_at - one.created_at || (other.id > one.id ? 1 : -1));
    const wanted = all.filter((job) => matches(job, search.control.value, state.control.value));
    grid.update(wanted.map((job) => ({ ...job, spark: sparks.get(job.id)?.values ?? null })));
    grid.hidden = !wanted.length;
    const said = all.length && whole ? `${count(wanted.length)} of ${count(all.length)} jobs${all.length >= MOST ? ", the newest" : ""}` : "";
    if (total.textContent !== said) total.textContent = said;
    replace(nothing, wanted.length ? null : !whole ? loading("Older jobs", 3) : all.length ? empty("No job is like that", "Change the search or the state.") : noJobs());
  }

  for (const control of [search.control, state.control]) {
    control.addEventListener("input", () => {
      const kept = new URLSearchParams(Object.entries({ q: search.control.value, state: state.control.value }).filter(([, value]) => value));
      history.replaceState(null, "", `#/jobs${kept.size ? `?${kept}` : ""}`);
      redraw();
    });
  }
  const ask = async () => {
    const all = round % ALL_EVERY === 0;
    remember(await listAll(PATH, { signal, limit: PAGE, most: all ? MOST : PAGE }));
    round += 1;
    whole = true;
    redraw();
    if (await refreshSparks([...jobs.values()], sparks, { again: all, signal })) redraw();
  };
  // The newest are shown at once, the others as soon as they are there.
  remember(await listAll(PATH, { signal, limit: PAGE, most: PAGE }));
  whole = jobs.size < PAGE;
  replace(
    root,
    pageHead("Jobs", { actions: may("jobs:write") ? [h("a", { class: "button primary", href: "#/new" }, "New job")] : [] }),
    h(
      "div",
      { class: "stack" },
      h("div", { class: "filters" }, search, state),
      h("div", { class: "card" }, h("div", { class: "body flush" }, grid, nothing)),
      total,
      h("p", { class: "muted small" }, "Risk is an estimate by the critic that a job's own page names, with how good it is on held-out data."),
    ),
  );
  redraw();
  poll(ask, { everyS: EVERY_S, signal });
}

function noJobs() {
  return empty("No jobs yet", "A job fine-tunes a model on a file of yours, and holds it to its safe reference while it does.", may("jobs:write") && h("a", { class: "button primary", href: "#/new" }, "New job"));
}

function columns({ signal, changed }) {
  return [
    { title: "Job", cell: (job) => [h("a", { href: `#/jobs/${job.id}`, class: "mono nowrap", title: job.id, "aria-label": job.id }, shortId(job.id)), h("div", { class: "muted small" }, [job.suffix, job.model].filter(Boolean).join(" · "))] },
    { title: "State", cell: (job) => [stateBadge(stateOf(job)), waiting(job)] },
    { title: "Progress", cell: advance },
    { title: "Risk", cell: (job) => [job.spark ? sparkline(job.spark, `Risk over the steps of ${job.id}, from 0 to 1`) : h("div", { class: "spark" }), h("div", { class: "small muted nowrap" }, `mean ${fraction(job.safety.risk_mean)}`)] },
    { title: "Protection, gate", cell: (job) => [protectionBadge(job), h("div", { class: "small muted" }, job.safety.gate ? ["gate: ", gateBadge(job.safety.gate)] : "no gate")] },
    { title: "Created", class: "small nowrap", cell: (job) => moment(job.created_at, { relative: true }) },
    ...(may("jobs:write") ? [{ title: "Actions", cell: (job) => actionsOf(job, { signal, changed }) }] : []),
  ];
}

function actionsOf(job, options) {
  const buttons = jobActions(job, { ...options, small: true });
  return buttons.length ? h("div", { class: "actions" }, buttons) : null;
}

function waiting(job) {
  const { queue, safety, error } = job;
  const place = queue?.position ? `${count(queue.position)} in the queue` : null;
  const text = stateOf(job) === "failed" ? error?.code : (place ?? safety.pause_reason ?? safety.waits_for);
  return text && h("div", { class: "small muted" }, text);
}

function advance(job) {
  const { bar, steps, left } = advanceOf(job);
  return [bar, ...[steps, left].filter(Boolean).map((text) => h("div", { class: "small muted nowrap" }, text))];
}

function matches(job, text, state) {
  const found = stateOf(job);
  const wanted = state === "under-way" ? !ENDED.has(found) && !STANDING.includes(found) : !state || found === state;
  const said = [job.id, job.model, job.training_file, job.suffix, job.fine_tuned_model, nameOf(found), ...Object.entries(job.metadata ?? {}).flat()].join("\n").toLowerCase();
  return wanted && text.toLowerCase().split(/\s+/).every((word) => said.includes(word));
}

/** Fetch a few curves that have grown, those of jobs that run first, and `again` those that were refused. Says whether there was any. */
async function refreshSparks(jobs, sparks, { again, signal }) {
  const isOld = (job) => {
    const known = sparks.get(job.id);
    return known?.step !== job.training.steps_completed || (again && known.refused);
  };
  const grown = jobs.filter((job) => job.training.steps_completed && !job.training.steps_pruned_at && isOld(job));
  grown.sort((one, other) => ENDED.has(stateOf(one)) - ENDED.has(stateOf(other)) || other.created_at - one.created_at);
  for (const job of grown.slice(0, SPARKS_A_ROUND)) {
    const { steps_completed: step } = job.training;
    try {
      sparks.set(job.id, { step, values: await readSpark(job, signal) });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      // One curve that cannot be read says nothing of the list, nor of the curves after it.
      sparks.set(job.id, { step, values: sparks.get(job.id)?.values ?? null, refused: true });
    }
  }
  return grown.length > 0;
}

async function readSpark(job, signal) {
  const curve = await api(`${PATH}/${job.id}/risk?max_points=${SPARK_POINTS}`, { signal });
  const at = curve.columns.indexOf("risk_smoothed");
  return curve.rows.map((row) => (typeof row[at] === "number" ? row[at] : null));
}
