// One model: where it comes from, how it behaves before and after, what was made of it, and its weights.

import { api, may, session } from "../api.js";
import { askForEvaluation } from "../components/ask_evaluation.js";
import { downloadItem } from "../components/download.js";
import { askFirst, attempt, toast } from "../components/feedback.js";
import { newestJobs, usersCard } from "../components/newest_jobs.js";
import { card, code, facts, moment, pageHead } from "../components/parts.js";
import { protectionBadge } from "../components/states.js";
import { h, replace } from "../dom.js";
import { count, shortId } from "../format.js";
import { addressOf, kindOf, modelBadge } from "./models.js";
import { evaluationsCard } from "./model/evaluations.js";
import { lineage } from "./model/lineage.js";

export async function show(root, { id, signal }) {
  const model = await api(`/v1/models/${encodeURIComponent(id)}`, { signal });
  const isBase = kindOf(model) === "base";
  const own = !isBase && model.owned_by === session.current.project.id;
  const jobs = may("jobs:read") ? await newestJobs(signal) : [];
  const job = own && may("jobs:read") ? await api(`/v1/fine_tuning/jobs/${model.job}`, { signal }) : null;
  const evaluations = may("evaluations:read") ? await evaluationsCard(model.id, { signal }) : null;
  const evaluate = async () => {
    if (await askForEvaluation(model.id, { baseModel: model.base_model ?? model.id, signal })) await evaluations?.refresh();
  };
  replace(
    root,
    pageHead(model.id, { subtitle: isBase ? "Base model" : ["Made of ", h("a", { href: addressOf(model.base_model), class: "mono" }, model.base_model)], actions: actions(model, { own, isBase, evaluate, signal }) }),
    h(
      "div",
      { class: "stack" },
      card("What it is", isBase ? aboutBase(model) : aboutTuned(model, job)),
      isBase ? null : lineage(model, job, jobs),
      evaluations,
      isBase ? null : downloads(model, own, signal),
      isBase ? madeOfIt(model, jobs) : null,
    ),
  );
}

function aboutBase(model) {
  return [
    facts([
      ["Protection", modelBadge(model)],
      ["Longest row", `${count(model.max_position_embeddings)} tokens`],
      ["Hidden units", count(model.hidden_size)],
      ["Revision", model.revision],
      ["Registered", moment(model.created)],
    ]),
    h("p", { class: "small" }, "SHA-256 of its files: ", h("code", {}, model.sha256)),
    h("p", {}, h("a", { href: `#/critics?q=${encodeURIComponent(model.id)}` }, "The critics and safety sets that were made for it")),
  ];
}

function aboutTuned(model, job) {
  return facts([
    ["Protection", job ? protectionBadge(job) : modelBadge(model)],
    ["Job", job ? h("a", { href: `#/jobs/${model.job}`, class: "mono" }, shortId(model.job)) : h("span", {}, "of another project")],
    ["Kind", model.checkpoint ? "a checkpoint on the way" : "the end of the job"],
    ["Data", job ? h("a", { href: `#/datasets/${job.training_file}`, class: "mono" }, shortId(job.training_file)) : null],
    ["Trained tokens", job ? count(job.trained_tokens) : null],
    ["Weights", model.adapter ? "kept" : "not kept"],
    ["Created", moment(model.created)],
  ]);
}

function actions(model, { own, isBase, evaluate, signal }) {
  return [
    may("jobs:write") && (isBase || model.adapter) && h("a", { class: "button primary", href: `#/new?model=${encodeURIComponent(model.id)}` }, isBase ? "Train it" : "Train on from it"),
    may("evaluations:write") && (isBase || model.adapter) && evaluateButton(evaluate),
    own && may("models:write") && deleteButton(model, signal),
  ];
}

function evaluateButton(evaluate) {
  const button = h("button", { class: "button", type: "button" }, "Evaluate");
  button.addEventListener("click", async () => {
    await attempt(button, evaluate);
    // What is disabled gets no focus back from a dialog.
    button.focus();
  });
  return button;
}

function deleteButton(model, signal) {
  const text = "Its weights go, and the result file that is the same adapter. Its checkpoints are models of their own; the job and its record stay.";
  const question = { title: `Delete ${model.id}?`, text, action: "Delete the model", danger: true, signal };
  return askFirst(h("button", { class: "button danger", type: "button" }, "Delete"), question, async () => {
    await api(`/v1/models/${encodeURIComponent(model.id)}`, { method: "DELETE", signal });
    toast(`${model.id} was deleted.`);
    location.hash = "#/models";
  });
}

function downloads(model, own, signal) {
  const path = `/v1/fine_tuning/jobs/${model.job}`;
  const files = [];
  if (may("artifacts:read") && model.adapter) files.push({ path: model.adapter, name: `${model.id.replaceAll(":", "-")}-adapter.zip`, title: "Adapter", what: "An ordinary PEFT folder, as one zip" });
  if (own && may("audit:read")) {
    files.push(
      { path: `${path}/model_card`, name: `${model.job}-card.html`, title: "Model card", what: "A page that needs nothing but itself" },
      { path: `${path}/attestation`, name: `${model.job}-attestation.json`, title: "Attestation", what: "The notary’s signed statement about the adapter" },
      { path: `${path}/evidence`, name: `${model.job}-evidence.zip`, title: "Evidence", what: "Everything that tether verify needs, offline" },
    );
  }
  const serve = `vllm serve ${model.base_model} --enable-lora --lora-modules '${model.id}=./adapter'`;
  const nothing = h("p", { class: "muted" }, model.adapter ? "Your key may not download weights; that needs the scope artifacts:read." : "The weights are not kept any more.");
  return card("Downloads", h("div", { class: "stack" }, files.length ? h("ul", { class: "downloads" }, files.map((file) => downloadItem(file, signal))) : nothing, model.adapter ? [h("h3", { class: "small" }, "Serve it, unpacked, with vLLM"), code(serve)] : null));
}

function madeOfIt(model, jobs) {
  return usersCard(jobs, {
    used: (job) => job.training.base_model === model.id,
    title: "Jobs that trained it",
    none: "has trained it",
    columns: [{ title: "Model", cell: (job) => (job.fine_tuned_model ? h("a", { href: addressOf(job.fine_tuned_model), class: "mono" }, job.fine_tuned_model) : "–") }],
  });
}
