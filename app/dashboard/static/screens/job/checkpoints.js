// The checkpoints that are offered, to choose one by what it costs and what it risks.

import { api, may } from "../../api.js";
import { downloadButton } from "../../components/download.js";
import { empty, problem } from "../../components/feedback.js";
import { moment, table } from "../../components/parts.js";
import { stateOf } from "../../components/states.js";
import { h, replace } from "../../dom.js";
import { count, fraction, number, percent } from "../../format.js";
import { addressOf } from "../models.js";

/** The checkpoints of the job in `view`. */
export function showCheckpoints(view) {
  const grid = table({ caption: "Checkpoints", key: ({ id }) => id, columns: columns(view) });
  const place = h("div", {});
  let known = -1;

  async function load() {
    try {
      const { data } = await api(`${view.path}/checkpoints?limit=100`, { signal: view.signal });
      known = data.length;
      grid.update(data.map((each) => ({ ...each, released: stateOf(view.job) === "succeeded" })));
      replace(place, data.length ? grid : empty("No checkpoints", "One is offered at the end of every pass over the data."));
    } catch (error) {
      if (error.name !== "AbortError") replace(place, problem(error, load));
    }
  }

  load();
  const update = ({ moved }) => {
    const { n_epochs: epochs } = view.job.hyperparameters;
    const { steps_completed: done, total_steps: total } = view.job.training;
    // A pass that has ended since brings another one.
    const due = total && typeof epochs === "number" ? Math.floor((done / total) * epochs) : 0;
    if (moved || (known >= 0 && due > known)) load();
  };
  return Object.assign(h("div", { class: "stack" }, place), { update });
}

function columns({ id: job, path, signal }) {
  const adapterOf = ({ id, step_number: step }) => downloadButton({ path: `${path}/checkpoints/${encodeURIComponent(id)}/adapter`, name: `${job}-step-${step}-adapter.zip`, title: `adapter of step ${step}` }, signal);
  return [
    { title: "Step", class: "number", cell: ({ step_number: step }) => count(step) },
    { title: "Model", cell: ({ fine_tuned_model_checkpoint: name }) => h("a", { href: addressOf(name), class: "mono nowrap", title: name, "aria-label": name }, name.slice(name.lastIndexOf(":") + 1)) },
    { title: "Loss, training", class: "number", cell: ({ metrics }) => number(metrics.train_loss) },
    { title: "Loss, validation", class: "number", cell: ({ metrics }) => number(metrics.full_valid_loss ?? metrics.valid_loss) },
    { title: "Tokens right", class: "number", cell: ({ metrics }) => percent(metrics.train_mean_token_accuracy) },
    { title: "Risk, mean", class: "number", cell: ({ safety }) => fraction(safety.risk_mean) },
    { title: "Risk, max", class: "number", cell: ({ safety }) => fraction(safety.risk_max) },
    { title: "Beta, mean", class: "number", cell: ({ safety }) => fraction(safety.beta_mean) },
    { title: "Saved", class: "nowrap", cell: ({ created_at: at }) => moment(at, { relative: true }) },
    { title: "Adapter", cell: (row) => (row.released && may("artifacts:read") ? adapterOf(row) : h("span", { class: "muted small" }, row.released ? "needs artifacts:read" : "after release")) },
  ];
}
