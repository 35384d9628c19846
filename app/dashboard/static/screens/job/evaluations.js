// How the model of a job behaves before and after: the evaluations of it, and a way to ask for one.

import { may } from "../../api.js";
import { askForEvaluation } from "../../components/ask_evaluation.js";
import { attempt, empty, loading, problem } from "../../components/feedback.js";
import { ENDED, stateOf } from "../../components/states.js";
import { h, replace } from "../../dom.js";
import { evaluationsCard } from "../model/evaluations.js";

/** The evaluations of the model of the job in `view`, once there is one. */
export function showEvaluations(view) {
  const element = h("div", { class: "stack" });
  let drawnFor = null;
  const update = () => {
    const { fine_tuned_model: model } = view.job;
    const ended = ENDED.has(stateOf(view.job));
    const stamp = JSON.stringify([model, ended]);
    if (stamp === drawnFor) return;
    drawnFor = stamp;
    if (!may("evaluations:read")) replace(element, empty("Not allowed", "To see evaluations takes a key with the scope evaluations:read."));
    else if (model) fill(view, element, model);
    else replace(element, empty("No model yet", ended ? "The job ended without one." : "A model can be evaluated once its job has succeeded. What the gate found is under Gate."));
  };
  update();
  return Object.assign(element, { update });
}

async function fill(view, element, model) {
  replace(element, loading("Evaluations", 4));
  try {
    const found = await evaluationsCard(model, { signal: view.signal });
    const ask = async () => (await askForEvaluation(model, { baseModel: view.job.training.base_model, signal: view.signal })) && found.refresh();
    replace(element, may("evaluations:write") && h("div", { class: "actions" }, h("button", { class: "button", type: "button", onclick: (event) => attempt(event.currentTarget, ask) }, "Evaluate")), found);
  } catch (error) {
    if (error.name !== "AbortError") replace(element, problem(error, () => fill(view, element, model)));
  }
}
