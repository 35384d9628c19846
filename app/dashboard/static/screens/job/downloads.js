// Everything that can be taken away, each with what it is; what may not leave yet says why.

import { may } from "../../api.js";
import { downloadItem } from "../../components/download.js";
import { ENDED, stateOf } from "../../components/states.js";
import { h, replace } from "../../dom.js";

/** The downloads of the job in `view`. */
export function showDownloads(view) {
  const list = h("ul", { class: "downloads" });
  let drawn = null;
  const update = () => {
    const found = downloadsOf(view.job);
    const stamp = JSON.stringify(found);
    if (stamp === drawn) return;
    drawn = stamp;
    replace(list, found.map((each) => downloadItem({ ...each, path: `${view.path}/${each.path}`, name: `${view.id}-${each.name}` }, view.signal)));
  };
  update();
  return Object.assign(h("div", { class: "stack" }, list), { update });
}

function downloadsOf(job) {
  const state = stateOf(job);
  const ended = ENDED.has(state) || state === "held";
  const steps = job.training.steps_completed > 0 ? null : "no step is done yet";
  const curve = job.training.steps_pruned_at ? "the records of its steps were pruned" : steps;
  const released = state === "succeeded" ? null : ended ? `the job is ${state}: no weights leave` : "the job has not succeeded yet";
  const recorded = ended ? null : "the record is not complete yet";
  return [
    { path: "adapter", name: "adapter.zip", title: "Adapter", what: "The weights: an ordinary PEFT folder as one zip", scope: "artifacts:read", why: released },
    { path: "risk?format=csv&max_points=20000", name: "metrics.csv", title: "Numbers of the steps", what: "CSV of the curves, up to 20,000 steps of them", scope: "jobs:read", why: curve },
    { path: "risk?format=png", name: "curves.png", title: "Curves as PNG", what: "A picture for reports", scope: "jobs:read", why: curve },
    { path: "risk?format=svg", name: "curves.svg", title: "Curves as SVG", what: "The same, to be scaled", scope: "jobs:read", why: curve },
    { path: "evidence", name: "evidence.zip", title: "Evidence bundle", what: "The whole record with its proofs, for tether verify or the page Verify", scope: "audit:read", why: null },
    { path: "model_card", name: "card.html", title: "Model card", what: "One page with curves, gate, evaluations and auditors' questions", scope: "audit:read", why: null },
    { path: "attestation", name: "attestation.json", title: "Attestation", what: "The notary's signed statement about the adapter (in-toto, DSSE)", scope: "audit:read", why: released },
    { path: "receipt", name: "receipt.txt", title: "Receipt", what: "Proof that the record's head is under a signed checkpoint; keep it elsewhere", scope: "audit:read", why: recorded },
  ].map(({ scope, ...each }) => ({ ...each, why: may(scope) ? each.why : `this key does not have the scope ${scope}` }));
}
