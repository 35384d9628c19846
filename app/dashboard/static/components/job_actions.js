// What one can ask of a job: pause, resume, cancel. Both screens of jobs have the same buttons.

import { api, may } from "../api.js";
import { h } from "../dom.js";
import { attempt, confirm } from "./feedback.js";
import { ENDED, stateOf } from "./states.js";

/** The commands that mean something in this state. */
function commandsOf(state) {
  return [
    ["validating", "queued", "starting", "running"].includes(state) && ["pause", "Pause"],
    ["paused", "pausing"].includes(state) && ["resume", "Resume"],
    !ENDED.has(state) && !["signing", "held"].includes(state) && ["cancel", "Cancel"],
  ].filter(Boolean);
}

/** Buttons for a job; `changed(job)` is given the job as it stands after one of them. None without the scope. */
export function jobActions(job, { signal, changed, small = false }) {
  if (!may("jobs:write")) return [];
  return commandsOf(stateOf(job)).map(([verb, title]) => {
    const kind = ["button", small && "small", verb === "cancel" && "danger"].filter(Boolean).join(" ");
    const button = h("button", { class: kind, type: "button", "aria-label": `${title} ${job.id}` }, title);
    button.addEventListener("click", async () => {
      if (verb === "cancel" && !(await askToCancel(job, signal))) return;
      attempt(button, async () => changed(await api(`/v1/fine_tuning/jobs/${job.id}/${verb}`, { method: "POST", signal })));
    });
    return button;
  });
}

function askToCancel(job, signal) {
  return confirm({ title: "Cancel this job?", text: `${job.id} ends at its next step and cannot go on. What is on record stays.`, action: "Cancel the job", danger: true, signal });
}
