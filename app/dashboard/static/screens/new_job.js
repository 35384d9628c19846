// A new job: choose a model and data, see what is in the data, choose how the model is protected, and submit.

import { api, ApiError, may } from "../api.js";
import { excluder, showReport } from "../components/dataset_report.js";
import { notice, problem } from "../components/feedback.js";
import { card, pageHead } from "../components/parts.js";
import { loadSchemas, requestable } from "../components/schema_form.js";
import { h, replace } from "../dom.js";
import { duration } from "../format.js";
import { fileChoice, modelChoice } from "./new/choices.js";
import { jobOptions } from "./new/options.js";
import { protectionChoice } from "./new/protection.js";

export async function show(root, { query, signal }) {
  const from = query.get("from");
  const [schemas, inForce, earlier] = await Promise.all([
    loadSchemas(),
    api("/v1/policies/in_force", { signal }),
    from && api(`/v1/fine_tuning/jobs/${encodeURIComponent(from)}`, { signal }),
  ]);
  const job = earlier && asRequested(schemas, earlier);
  // The parts of the form tell of their first values while they are being made.
  let ready = false;
  const model = await modelChoice(query.get("model") ?? job?.model ?? null, signal);
  const data = await fileChoice(query.get("file") ?? job?.training_file ?? null, { changed: () => changed(), signal });
  const options = jobOptions(schemas, { job, files: data.files() });
  const protection = protectionChoice(schemas, inForce, { given: job?.safety, changed: () => changed() });

  const body = () => ({ model: model.control.value, training_file: data.current()?.id, ...options.read(), safety: protection.read() });
  const report = reportPanel({ body, complain, data, signal });
  const said = h("div", { class: "stack" });
  const submit = h("button", { class: "button primary", disabled: true }, "Submit the job");
  const form = h(
    "form",
    { class: "stack", novalidate: true, onsubmit: (event) => (event.preventDefault(), send()) },
    h("div", { class: "columns" }, card("1. Model", model), card("2. Data", data.element)),
    card("3. Protection", protection.element),
    card("4. Options", options.element),
    h("section", { class: "stack", "aria-labelledby": "what-it-is" }, h("h2", { id: "what-it-is" }, "5. What is in the data, and what the job would be"), report.element),
    h("div", { class: "submit" }, said, h("div", { class: "actions" }, submit, await allowance(signal))),
  );
  let complained = null;
  let attempt = { of: null, key: null };

  function complain(error) {
    if (complained) [options, protection].some((part) => part.complain(complained, null));
    model.complain(null);
    data.field.complain(null);
    complained = null;
    replace(said);
    if (!error) return;
    const { param } = error;
    const taken = param === "model" ? (model.complain(error.message), true) : param === "training_file" ? (data.field.complain(error.message), true) : [options, protection].some((part) => part.complain(param, error.message));
    complained = taken ? param : null;
    replace(said, taken ? notice("bad", "The job cannot be created as it is", error.message) : problem(error, null));
    form.querySelector('[aria-invalid="true"]')?.focus();
  }

  function changed() {
    if (!ready) return;
    submit.disabled = !body().training_file || !body().model;
    report.changed(protection.isPreset());
  }

  async function send() {
    submit.disabled = true;
    const wanted = body();
    const text = JSON.stringify(wanted);
    // The same request sent again, because its reply was lost, must not be a second job.
    if (attempt.of !== text) attempt = { of: text, key: randomKey() };
    try {
      complain(null);
      const made = await api("/v1/fine_tuning/jobs", { method: "POST", body: wanted, headers: { "idempotency-key": attempt.key }, signal });
      location.hash = `#/jobs/${made.id}`;
    } catch (error) {
      if (error.name === "AbortError") return;
      complain(error);
      submit.disabled = false;
    }
  }

  form.addEventListener("input", () => report.stale());
  model.control.addEventListener("change", changed);
  replace(root, pageHead("New job", { subtitle: job ? ["As ", h("a", { href: `#/jobs/${earlier.id}`, class: "mono" }, earlier.id), ", with what you change."] : "A job fine-tunes a model on your data, and holds it to its safe reference while it does." }), form);
  ready = true;
  changed();
}

/** The report on the data and the estimate of the job, asked for when something is chosen and on demand when it is edited. */
function reportPanel({ body, complain, data, signal }) {
  const place = h("div", {});
  const again = h("button", { class: "button", type: "button", onclick: () => ask() }, "Work it out for these settings");
  const remark = h("div", { class: "notice tone-warn", hidden: true, role: "status" }, h("p", {}, "The settings have changed since this was worked out."), h("div", { class: "actions" }, again));
  const element = h("div", { class: "stack" }, remark, place);
  let asked = new AbortController();
  let shown = null;

  async function ask() {
    asked.abort();
    asked = new AbortController();
    const mine = AbortSignal.any([signal, asked.signal]);
    const wanted = body();
    shown = JSON.stringify(wanted);
    remark.hidden = true;
    const request = (retry) => api(`/v1/fine_tuning/jobs/estimate?retry=${retry}`, { method: "POST", body: wanted, signal: mine });
    const exclude = may("files:write") ? excluder(data.current(), { signal, done: data.add }) : null;
    try {
      complain(null);
      await showReport(place, request, { exclude, signal: mine });
    } catch (error) {
      if (error.name === "AbortError") return;
      shown = null;
      // What is wrong with a field is said there; the rest stands where the report would.
      if (error instanceof ApiError && error.param) {
        complain(error);
        replace(place, notice("idle", null, "The report appears here when the settings above are good."));
      } else replace(place, problem(error, ask));
    }
  }

  const stale = () => (remark.hidden = shown === null || shown === JSON.stringify(body()));
  const changed = (atOnce) => {
    const { model, training_file: file } = body();
    if (!model || !file) {
      asked.abort();
      shown = null;
      remark.hidden = true;
      replace(place, notice("idle", null, "Choose a model and data, and the whole report on them appears here: problems, what is trained on, risky rows, the expected beta, steps and time."));
    } else if (atOnce || shown === null) ask();
    else stale();
  };
  return { element, changed, stale };
}

/** What of another job's object a request may say. */
function asRequested(schemas, job) {
  const kept = (schema, value) => requestable(schemas, schema, value);
  return {
    ...job,
    safety: kept(schemas.JobCreate.properties.safety, job.safety),
    training: kept({ $ref: "TrainingOptions" }, job.training),
    suffix: job.suffix,
  };
}

async function allowance(signal) {
  if (!may("usage:read")) return null;
  const usage = await api("/v1/usage", { signal });
  const most = usage.limits.gpu_seconds;
  const of = most ? ` of ${duration(most)}` : ", without a limit";
  return h("span", { class: "small muted" }, `Workers have spent ${duration(usage.gpu_seconds)}${of} on this project’s jobs this month.`);
}

function randomKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
