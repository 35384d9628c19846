// Everything of a job that can be left as it is: hyperparameters, training options, names and numbers.

import { field, select } from "../../components/parts.js";
import { objectForm } from "../../components/schema_form.js";
import { h, newId } from "../../dom.js";

const HYPERPARAMETERS = "method.supervised.hyperparameters";
const MOST_METADATA = 16;

/** The options of a job, with those of another one to begin with. */
export function jobOptions(schemas, { job, files }) {
  const properties = schemas.JobCreate.properties;
  const hyperparameters = objectForm(schemas, { $ref: "Hyperparameters" }, { given: job?.hyperparameters, path: HYPERPARAMETERS });
  const training = objectForm(schemas, { $ref: "TrainingOptions" }, { given: job?.training, path: "training" });
  const validation = field("validation file", select([["", "none"], ...files.filter((file) => file.status === "processed").map((file) => [file.id, file.filename])], job?.validation_file ?? ""), { hint: "Rows that are not trained on, and tell how well the model does on new ones." });
  const suffix = text("suffix", { hint: "A part of the model’s name: letters, digits, dot, dash and underscore.", maxlength: 64, value: job?.suffix });
  const seed = text("seed", { hint: "The same seed and data give the same adapter on the same hardware. By default a random one.", inputmode: "numeric", value: job?.seed });
  const priority = text("priority", { hint: `Among the project’s own jobs that wait, higher goes first (from ${properties.priority.minimum} to ${properties.priority.maximum}).`, inputmode: "numeric", value: job?.priority || undefined, placeholder: "0" });
  const metadata = metadataEditor(job?.metadata ?? {});
  const integrations = integrationsChoice(job?.integrations ?? []);
  const plain = { validation_file: validation, suffix, seed, priority };
  const element = h(
    "div",
    { class: "stack" },
    h("details", {}, h("summary", {}, "Name, seed and order"), h("div", { class: "fields" }, suffix, validation, seed, priority), metadata.element, integrations.element),
    h("details", {}, h("summary", {}, "Hyperparameters"), hyperparameters.element),
    h("details", {}, h("summary", {}, "Training options"), training.element),
  );
  const read = () => ({
    validation_file: validation.control.value || undefined,
    suffix: suffix.control.value.trim() || undefined,
    seed: whole(seed.control.value),
    priority: whole(priority.control.value),
    metadata: metadata.read(),
    integrations: integrations.read(),
    training: filled(training.read()),
    method: filled(hyperparameters.read()) && { type: "supervised", supervised: { hyperparameters: hyperparameters.read() } },
  });
  const complain = (param, message) => {
    const own = plain[param];
    const found = own ? (own.complain(message), own) : null;
    const taken = found || [hyperparameters, training, metadata, integrations].some((part) => part.complain(param, message));
    // A field that is complained about must be seen.
    if (taken && message) element.querySelectorAll("details").forEach((each) => (each.open ||= each.querySelector("[aria-invalid=true], .problem:not([hidden])") !== null));
    return Boolean(taken);
  };
  return { element, read, complain };
}

function text(label, { hint, value, ...properties }) {
  return field(label, h("input", { type: "text", value: value ?? "", spellcheck: "false", placeholder: "by default", ...properties }), { hint });
}

function whole(value) {
  const said = value.trim();
  if (said === "") return undefined;
  // What is no whole number is sent as it is, and the API says what is wrong with it.
  return /^-?\d+$/.test(said) ? Number(said) : said;
}

function filled(object) {
  return Object.keys(object).length ? object : undefined;
}

function metadataEditor(given) {
  const rows = h("div", { class: "stack" });
  const add = (key = "", value = "") => {
    const row = h("div", { class: "pair" }, h("input", { type: "text", value: key, maxlength: 64, "aria-label": "Key", placeholder: "key" }), h("input", { type: "text", value, maxlength: 512, "aria-label": "Value", placeholder: "value" }));
    row.append(h("button", { class: "button small", type: "button", "aria-label": "Remove this pair", onclick: () => row.remove() }, "Remove"));
    rows.append(row);
  };
  Object.entries(given).forEach(([key, value]) => add(key, value));
  const more = h("button", { class: "button small", type: "button", onclick: () => rows.children.length < MOST_METADATA && add() }, "Add a pair");
  const { element, complain } = group("metadata", "Words of yours to find the job by; at most 16 pairs.", [rows, h("div", {}, more)]);
  const read = () => {
    const pairs = [...rows.children].map((row) => [...row.querySelectorAll("input")].map((input) => input.value)).filter(([key]) => key);
    return pairs.length ? Object.fromEntries(pairs) : undefined;
  };
  return { element, read, complain };
}

/** Where another job is shown besides: this one is, too, unless a box is cleared. Nothing where that job has none. */
function integrationsChoice(given) {
  const boxes = given.map((each) => {
    const box = h("input", { type: "checkbox", checked: true, id: newId("integration") });
    return { each, box, element: h("label", { class: "row", for: box.id }, box, `${each.type}: `, h("code", {}, JSON.stringify(each[each.type]))) };
  });
  const { element, complain } = group("integrations", "Where the other job is shown besides, and this one will be.", boxes.map((one) => one.element));
  const read = () => {
    const kept = boxes.filter(({ box }) => box.checked).map(({ each }) => each);
    return kept.length ? kept : undefined;
  };
  return { element: given.length ? element : null, read, complain: (...said) => given.length > 0 && complain(...said) };
}

/** Controls under the name of one field of the request, and the complaints about it and its parts. */
function group(name, hint, controls) {
  const label = newId(name);
  const complaint = h("p", { class: "problem", hidden: true });
  const element = h("div", { class: "field", role: "group", "aria-labelledby": label }, h("span", { class: "label", id: label }, name), h("span", { class: "hint" }, hint), complaint, controls);
  const complain = (param, message) => {
    if (!param?.startsWith(name)) return false;
    complaint.hidden = !message;
    complaint.textContent = message ?? "";
    return true;
  };
  return { element, complain };
}
