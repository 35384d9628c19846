// The head of a job: its state in words, how far it is, what it waits for or why it ended.

import { may } from "../../api.js";
import { advanceOf } from "../../components/advance.js";
import { criticLine } from "../../components/critic.js";
import { notice } from "../../components/feedback.js";
import { jobActions } from "../../components/job_actions.js";
import { facts, moment, pageHead, revise } from "../../components/parts.js";
import { ENDED, gateBadge, protectionBadge, stateBadge, stateOf } from "../../components/states.js";
import { h, replace } from "../../dom.js";
import { count, duration, fraction, UNKNOWN } from "../../format.js";

/** Build the head of the job in `view`; `changed(job)` is called with what a button made of it. */
export function buildHead(view, changed) {
  const badges = h("div", { class: "row", role: "status" });
  const buttons = h("div", { class: "actions" });
  const notices = h("div", { class: "stack" });
  const advance = h("div", { class: "advance" });
  const numbers = h("div", {});
  const element = h(
    "div",
    { class: "stack" },
    pageHead(view.job.id, { subtitle: subtitleOf(view.job), actions: [buttons] }),
    badges,
    notices,
    h("section", { class: "card", "aria-label": "Progress" }, h("div", { class: "body stack" }, advance, numbers, criticLine(view.job.safety.critic))),
  );
  let buttonsFor = null;
  let saidFor = null;
  element.update = () => {
    const { job } = view;
    const state = stateOf(job);
    const said = JSON.stringify([state, job.safety.gate?.verdict]);
    // A reader that follows this line hears of a change, and only of a change.
    if (said !== saidFor) replace(badges, stateBadge(state), protectionBadge(job), gateBadge(job.safety.gate));
    saidFor = said;
    if (state !== buttonsFor) replace(buttons, jobActions(job, { signal: view.signal, changed }), linksOf(job));
    buttonsFor = state;
    revise(notices, noticesOf(job));
    revise(advance, progressOf(job));
    revise(numbers, numbersOf(job));
  };
  return element;
}

function subtitleOf(job) {
  return [job.suffix, `${job.model}`, job.safety.method].filter(Boolean).join(" · ");
}

function linksOf(job) {
  return [
    stateOf(job) === "held" && h("a", { class: "button primary", href: "#/approvals" }, "Decide about its release"),
    h("a", { class: "button", href: `#/compare?jobs=${encodeURIComponent(job.id)}` }, "Compare"),
    may("jobs:write") && h("a", { class: "button", href: `#/new?from=${encodeURIComponent(job.id)}` }, "New job like it"),
  ];
}

function noticesOf(job) {
  const { state, pause_reason: paused, waits_for: waits } = job.safety;
  const found = [];
  if (!job.safety.protected) found.push(notice("bad", "Unprotected", "Nothing held this job to its safe reference while it trained. Its curves still show how risky its data are."));
  if (state === "failed") found.push(notice("bad", `Failed: ${job.error?.code ?? "unknown"}`, job.error?.message ?? "The server gives no reason.", ...(job.error?.param ? [`It is about ${job.error.param}.`] : [])));
  if (state === "cancelled") found.push(notice("idle", "Cancelled", `It ended after ${count(job.training.steps_completed)} steps. What is on record stays, and no weights came of it.`));
  if (state === "paused") found.push(notice("warn", "Paused", paused ? `It paused itself: ${paused}.` : "Somebody asked for it. It holds no device, and goes on after its last step when it is resumed."));
  if (state === "held") found.push(notice("held", "Held", "The gate of the operator's policy keeps its weights. Somebody with the scope jobs:release decides; what the gate found is below.", ...(waits ? [`It waits for ${waits}.`] : [])));
  if (state === "signing") found.push(notice("idle", "Waits for its signature", waits ? `It waits for ${waits}.` : "Its record is complete; the notary signs it within seconds."));
  if (state === "queued") found.push(notice("idle", "Waits for a worker", queueOf(job)));
  if (state === "validating") found.push(notice("idle", "Checking the data", "Its training file is being read from end to end; a job on bad data never starts."));
  if (job.training.steps_pruned_at) found.push(notice("warn", "Its steps were pruned", "The operator keeps the records of steps for a limited time. The means below, the events and the evidence stay; the curves are gone."));
  return found;
}

function queueOf({ queue, safety }) {
  if (safety.waits_for) return `It waits for ${safety.waits_for}.`;
  if (!queue?.position) return "It has no place in the queue yet.";
  const soon = queue.eta ? ` It starts in about ${duration(queue.eta - Date.now() / 1000)}.` : "";
  return `It is number ${queue.position} in the queue${queue.ahead_in_project ? `, ${count(queue.ahead_in_project)} of them of this project` : ""}.${soon}`;
}

function progressOf(job) {
  const { bar, steps, left } = advanceOf(job);
  return [bar, h("div", { class: "row spread muted" }, h("span", {}, steps), h("span", {}, left ?? (ENDED.has(stateOf(job)) ? "" : `${UNKNOWN} left`)))];
}

function numbersOf(job) {
  const { started_at: started } = job.training;
  return facts([
    ["Risk, mean", fraction(job.safety.risk_mean)],
    ["Beta, mean", fraction(job.safety.beta_mean)],
    ["Attempts", count(job.safety.attempts)],
    ["Trained tokens", count(job.trained_tokens)],
    ["Created", moment(job.created_at)],
    ["Started", moment(started)],
    ["Ended", moment(job.finished_at)],
    ["Took", job.finished_at && started ? duration(job.finished_at - started) : UNKNOWN],
    ["Model", job.fine_tuned_model ? h("a", { href: `#/models/${encodeURIComponent(job.fine_tuned_model)}` }, job.fine_tuned_model) : UNKNOWN],
    ["Data", h("a", { class: "mono", href: `#/datasets/${encodeURIComponent(job.training_file)}` }, job.training_file)],
  ]);
}
