// One file: the whole report on it, who used it, and how to be rid of it.

import { api, may } from "../api.js";
import { excluder, showReport } from "../components/dataset_report.js";
import { downloadButton } from "../components/download.js";
import { askFirst, notice, problem, toast } from "../components/feedback.js";
import { newestJobs, usersCard } from "../components/newest_jobs.js";
import { card, facts, field, moment, pageHead, select } from "../components/parts.js";
import { h, replace } from "../dom.js";
import { bytes, count } from "../format.js";
import { fileBadge } from "./datasets.js";

const LEFT_BEHIND = {
  same_bytes: "The same file, uploaded again",
  derived_files: "Files made of it by leaving rows out",
  models: "Models that learnt from it",
  later_models: "Models that went on from one of these",
  replies_files: "Replies of evaluations with its rows",
};

export async function show(root, { id, query, signal }) {
  const file = await api(`/v1/files/${encodeURIComponent(id)}`, { signal });
  const trainable = file.purpose === "fine-tune";
  replace(
    root,
    pageHead(file.filename, { subtitle: h("code", {}, file.id), actions: actions(root, file, trainable, signal) }),
    h("div", { class: "stack" }, card("The file", about(file)), await users(file, signal), trainable ? await report(file, query, signal) : null),
  );
}

function about(file) {
  const { derived_from: from } = file;
  return facts([
    ["State", fileBadge(file)],
    ["Rows", count(file.rows)],
    ["Size", bytes(file.bytes)],
    ["Format", file.format ? `${file.format}, ${file.read_as}` : null],
    ["Created", moment(file.created_at)],
    ["Deleted on", file.expires_at ? moment(file.expires_at) : null],
    ["Made from", from ? [h("a", { href: `#/datasets/${from.file}`, class: "mono small" }, from.file), h("div", { class: "small muted" }, `without ${count(from.excluded)} rows${from.risk_above === undefined ? "" : `, those with a risk of ${from.risk_above} or more`}`)] : null],
  ]);
}

function actions(root, file, trainable, signal) {
  const found = [];
  if (trainable && file.status === "processed" && may("jobs:write")) found.push(h("a", { class: "button primary", href: `#/new?file=${file.id}` }, "Train on it"));
  found.push(downloadButton({ path: `/v1/files/${file.id}/content`, name: file.filename, title: file.filename, small: false }, signal));
  if (may("files:write")) found.push(deleteButton(file, signal), eraseButton(root, file, signal));
  return found;
}

function deleteButton(file, signal) {
  const question = { title: "Delete this file?", text: `${file.filename} can be used no more, and its bytes go. What jobs have recorded of it stays.`, action: "Delete the file", danger: true, signal };
  return askFirst(h("button", { class: "button danger", type: "button" }, "Delete"), question, async () => {
    await api(`/v1/files/${file.id}`, { method: "DELETE", signal });
    toast(`${file.filename} was deleted.`);
    location.hash = "#/datasets";
  });
}

function eraseButton(root, file, signal) {
  const text = ["Its bytes go, its name, what was found of its rows, and the key by which records name them. Nobody can undo this, and nothing on record can be compared with the rows again.", "You are told what else may still hold them: models, copies, replies."];
  const question = { title: "Erase this file for good?", text, action: "Erase for good", danger: true, signal };
  return askFirst(h("button", { class: "button danger", type: "button" }, "Erase"), question, async () => {
    showLeftBehind(root, file, await api(`/v1/files/${file.id}/erase`, { method: "POST", signal }));
  });
}

function showLeftBehind(root, file, left) {
  const lists = Object.entries(LEFT_BEHIND).filter(([name]) => left[name].length);
  const listed = lists.map(([name, title]) => h("div", {}, h("h3", {}, title), h("ul", {}, left[name].map((each) => h("li", {}, link(name, each))))));
  replace(
    root,
    pageHead("The file was erased", { subtitle: h("code", {}, file.id) }),
    card("What may still hold its rows", listed.length ? h("div", { class: "stack" }, listed) : "Nothing else of this project is known to hold them."),
    h("p", {}, h("a", { href: "#/datasets" }, "To the datasets")),
  );
  root.focus();
}

function link(kind, name) {
  const screen = kind.endsWith("models") ? "models" : "datasets";
  return h("a", { href: `#/${screen}/${name}`, class: "mono" }, name);
}

async function report(file, query, signal) {
  const bases = (await api("/v1/models", { signal })).data.filter((model) => model.base_model === null).map((model) => model.id);
  if (!bases.length) return notice("idle", "No base model is registered", "A report needs one to read the rows with; the operator adds it with tether models add.");
  const model = field("Base model", select(bases.map((name) => [name, name]), query.get("model") ?? bases[0]));
  const preset = field("Protection that is expected of a job", select(["default", "paper", "strict", "off"].map((name) => [name, name]), "default"));
  const place = h("div", {});
  let asked = new AbortController();
  const ask = () => {
    asked.abort();
    asked = new AbortController();
    const mine = AbortSignal.any([signal, asked.signal]);
    const request = (retry) => {
      const sent = new URLSearchParams({ model: model.control.value, safety: preset.control.value, retry: String(retry) });
      return api(`/v1/files/${file.id}/report?${sent}`, { signal: mine });
    };
    const exclude = may("files:write") ? excluder(file, { signal, done: (made) => (location.hash = `#/datasets/${made.id}`) }) : null;
    showReport(place, request, { exclude, signal: mine }).catch((error) => {
      if (error.name !== "AbortError") replace(place, problem(error, ask));
    });
  };
  model.control.addEventListener("change", ask);
  preset.control.addEventListener("change", ask);
  ask();
  return h("section", { class: "stack", "aria-label": "Report" }, h("h2", {}, "Report"), h("div", { class: "filters" }, model, preset), place);
}

async function users(file, signal) {
  if (!may("jobs:read")) return null;
  return usersCard(await newestJobs(signal), {
    used: (job) => [job.training_file, job.validation_file, ...job.result_files].includes(file.id),
    title: "Jobs that used this file",
    none: "has used this file",
    columns: [{ title: "What it did", cell: (job) => (job.training_file === file.id ? "trained on it" : job.validation_file === file.id ? "validated by it" : "left it") }],
  });
}
