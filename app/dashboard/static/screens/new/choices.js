// What is trained, and on what: a model, and a file that is there or sent now.

import { api, may } from "../../api.js";
import { field } from "../../components/parts.js";
import { listDatasets, uploader } from "../../components/upload.js";
import { h, replace } from "../../dom.js";
import { count } from "../../format.js";

/** The field in which a model is chosen; `wanted` is the one to begin with. */
export async function modelChoice(wanted, signal) {
  const models = (await api("/v1/models", { signal })).data;
  const group = (label, found, text) => (found.length ? h("optgroup", { label }, found.map((model) => h("option", { value: model.id, selected: model.id === wanted }, text(model)))) : null);
  const bases = models.filter((model) => model.base_model === null);
  const tuned = models.filter((model) => model.base_model !== null && model.adapter);
  const choice = h("select", { required: true }, group("Base models", bases, (model) => model.id), group("Fine-tuned models, to go on from", tuned, (model) => `${model.id}${model.protected ? "" : " (unprotected)"}`));
  return field("Model", choice, { hint: bases.length ? null : "No base model is registered: the operator adds one with tether models add." });
}

/** The choice of a data file: one that is there, or one that is sent now. `changed` is called with its object. */
export async function fileChoice(wanted, { changed, signal }) {
  let files = (await listDatasets(signal)).filter((file) => file.status !== "error");
  const choice = h("select", { required: true });
  const element = field("Training data", choice);
  const fill = (chosen) => {
    const text = (file) => `${file.filename}${file.rows === null ? "" : ` · ${count(file.rows)} rows`}`;
    replace(choice, h("option", { value: "" }, files.length ? "Choose a file…" : "No file yet: send one below"), files.map((file) => h("option", { value: file.id, selected: file.id === chosen }, text(file))));
  };
  const add = (file) => {
    files = [file, ...files.filter((each) => each.id !== file.id)];
    fill(file.id);
    changed(file);
  };
  const current = () => files.find((file) => file.id === choice.value) ?? null;
  choice.addEventListener("change", () => changed(current()));
  fill(wanted);
  const zone = may("files:write") ? uploader({ label: "Send a file", hint: "or drop one here: JSON lines, one example a line", done: add, signal }) : null;
  return { element: h("div", { class: "stack" }, element, zone), field: element, current, add, files: () => files };
}
