// Jobs that wait for a person: held by the policy's gate, or paused by it before their first step.

import { api, listAll, may, session } from "../api.js";
import { attempt, confirm, empty, notice, toast } from "../components/feedback.js";
import { decisionsTable, limitsTable } from "../components/gate.js";
import { badge, card, facts, moment, pageHead } from "../components/parts.js";
import { protectionBadge, stateBadge, stateOf } from "../components/states.js";
import { h, replace } from "../dom.js";
import { poll } from "../live.js";

const EVERY_S = 3;

export async function show(root, { signal }) {
  const list = h("div", { class: "stack" });
  let stamp = null;
  const ask = async () => {
    const jobs = (await listAll("/v1/fine_tuning/jobs?state=held&state=paused", { signal })).filter(waitsForPerson);
    // A reason that is being written, and the place on the screen, stay while nothing has changed.
    if (stamp === JSON.stringify(jobs)) return;
    stamp = JSON.stringify(jobs);
    replace(list, jobs.length ? jobs.map((job) => request(job, { done: ask, signal })) : empty("Nothing waits for you", "A job that the policy's gate holds, or pauses before its first step, appears here."));
  };
  await ask();
  replace(
    root,
    pageHead("Approvals", { subtitle: "What the gate of the operator's policy keeps until a person decides. Every decision is in the installation's log." }),
    may("jobs:release") ? null : notice("idle", null, "Your key may look and not decide; that needs the scope jobs:release."),
    list,
  );
  poll(ask, { everyS: EVERY_S, signal });
}

/** Whether a job waits for somebody's decision. */
function waitsForPerson(job) {
  const paused = stateOf(job) === "paused" && job.safety.gate?.start?.verdict === "pause" && job.training.steps_completed === 0;
  return stateOf(job) === "held" || paused;
}

function request(job, options) {
  const gate = job.safety.gate;
  const held = stateOf(job) === "held";
  const findings = (held ? gate?.limits : gate?.start?.limits) ?? [];
  const mine = job.created_by === session.current.key.id;
  const secondPerson = gate?.second_person;
  return card(
    h("span", {}, h("a", { href: `#/jobs/${job.id}`, class: "mono" }, job.id)),
    h(
      "div",
      { class: "stack" },
      h("div", { class: "row" }, stateBadge(stateOf(job)), protectionBadge(job), job.safety.waits_for && badge(`waits for ${job.safety.waits_for}`, "busy")),
      facts([
        ["Asked by", h("span", {}, h("code", {}, job.created_by ?? "–"), mine && " (your key)")],
        ["Created", moment(job.created_at)],
        ["Model", job.model],
        ["Policy", gate?.policy?.name ?? gate?.policy ?? "–"],
        ["Needs", secondPerson ? "two people, neither of them who asked" : "one person"],
      ]),
      job.safety.pause_reason && h("p", {}, job.safety.pause_reason),
      gate?.evaluation_error && notice("bad", "The evaluation could not be made", gate.evaluation_error),
      findings.length
        ? limitsTable(findings, `What the gate found of ${job.id}`)
        : notice("warn", null, "The record has no verdict of the gate; without one the weights stay."),
      decisionsTable(gate?.decisions ?? [], `Decisions about ${job.id}`),
      may("jobs:release") && !job.safety.waits_for && buttons(job, held, mine && secondPerson, options),
      mine && secondPerson && h("p", { class: "small muted" }, "The policy asks for a second person: the key that submitted a job cannot approve it."),
    ),
  );
}

function buttons(job, held, needsAnother, { done, signal }) {
  const act = (verb, title, { text, danger = false, reasonLabel }) => {
    const button = h("button", { class: danger ? "button danger" : "button primary", type: "button" }, title);
    button.addEventListener("click", async () => {
      const answer = await confirm({ title: `${title}?`, text, action: title, danger, reasonLabel, signal });
      if (answer === null) return;
      const body = reasonLabel ? { reason: answer.reason } : undefined;
      await attempt(button, async () => {
        await api(`/v1/fine_tuning/jobs/${job.id}/${verb}`, { method: "POST", body, signal });
        toast(`${title}: done.`);
        await done();
      });
    });
    return button;
  };
  const reasonLabel = "Why? It is kept beside the job; the log has its digest.";
  if (!held) {
    return !needsAnother && h("div", { class: "actions" }, act("resume", "Let it go on", { text: `${job.id} was paused by the gate before its first step. Your approval is on record.` }));
  }
  return h(
    "div",
    { class: "actions" },
    !needsAnother && act("release", "Release", { text: `The weights of ${job.id} may leave once the notary has signed the release.`, reasonLabel }),
    act("reject", "Reject", { text: `${job.id} ends as failed, and its weights are deleted. This cannot be taken back.`, danger: true, reasonLabel }),
  );
}
