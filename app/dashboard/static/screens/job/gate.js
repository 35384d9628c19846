// What the policy's gate found, limit by limit, and who has decided what.

import { empty } from "../../components/feedback.js";
import { decisionsTable, limitsTable } from "../../components/gate.js";
import { facts } from "../../components/parts.js";
import { gateBadge } from "../../components/states.js";
import { h, replace } from "../../dom.js";
import { fraction, UNKNOWN } from "../../format.js";

/** The gate of the job in `view`. */
export function showGate(view) {
  const element = h("div", { class: "stack" });
  let drawn = null;
  const update = () => {
    const { gate } = view.job.safety;
    const stamp = JSON.stringify(gate);
    if (stamp === drawn) return;
    drawn = stamp;
    replace(element, gate ? describe(gate) : empty("No gate", "The policy that this job was created under has no limits on what may leave."));
  };
  update();
  return Object.assign(element, { update });
}

function describe(gate) {
  // Until the end there is what was found at the start; then all of it.
  const limits = gate.limits.length ? gate.limits : (gate.start?.limits ?? []);
  return [
    facts([
      ["Verdict", gateBadge(gate)],
      ["Policy", typeof gate.policy === "string" ? gate.policy : [gate.policy?.name, gate.policy?.version].filter((each) => each !== undefined).join(", version ")],
      ["A second person", gate.second_person ? "two keys must approve" : "one key is enough"],
      ["Least beta from the start", gate.start?.floor === undefined ? UNKNOWN : fraction(gate.start.floor)],
    ]),
    gate.evaluation_error && h("p", { class: "problem" }, `The evaluation could not be done: ${gate.evaluation_error}`),
    limits.length
      ? limitsTable(limits, "Limits of the gate")
      : h("p", { class: "muted" }, "No limit has been judged yet: those on the critic are judged before the first step, those on changes after the last."),
    decisionsTable(gate.decisions, "Decisions"),
  ];
}
