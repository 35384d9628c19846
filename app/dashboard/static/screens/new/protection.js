// How the job is held to its reference: a preset, or every knob by itself; what the operator's policy refuses is said here.

import { badge } from "../../components/parts.js";
import { choiceForm } from "../../components/schema_form.js";
import { h, newId, replace } from "../../dom.js";

const MEANINGS = {
  default: "What the measurements of this project chose.",
  paper: "The published form: one beta for each batch, and nothing beside it.",
  strict: "As the default, and no row is ever trained on without the reference.",
  off: "Plain fine-tuning. The model may lose its refusals, and the job is marked unprotected everywhere.",
};
const OWN = "own";

/** The choice of protection. `given` is the `safety` of another job to begin with; `changed` is called when it is another. */
export function protectionChoice(schemas, inForce, { given, changed }) {
  const presets = Object.entries(inForce.presets);
  const name = newId("protection");
  const place = h("div", { hidden: true });
  let form = null;
  let chosen = given ? OWN : (presets.find(([, preset]) => !preset.refused)?.[0] ?? OWN);
  const choose = (value) => {
    chosen = value;
    place.hidden = value !== OWN;
    if (value === OWN && !form) {
      form = choiceForm(schemas, schemas.JobCreate.properties.safety, { given, path: "safety", label: "Method", allowed: inForce.policy.methods, changed: () => changed() });
      replace(place, form.element);
    }
    changed();
  };
  const option = (value, title, text, { marks = null, refused = null } = {}) => {
    const input = h("input", { type: "radio", name, value, checked: value === chosen, disabled: refused !== null, onchange: () => choose(value), id: newId("preset") });
    return h("label", { class: "choice", for: input.id }, input, h("span", {}, h("strong", {}, title), " ", marks, h("span", { class: "small block" }, text), refused && h("span", { class: "small problem block" }, refused)));
  };
  const options = presets.map(([key, preset]) => option(key, key, `${MEANINGS[key] ?? ""} ${inWords(preset.safety)}`, { marks: preset.protected ? null : badge("unprotected", "bad"), refused: preset.refused && `Refused: ${preset.refused.message}.` }));
  const complaint = h("p", { class: "problem", hidden: true, role: "alert" });
  const element = h(
    "fieldset",
    { class: "plain" },
    h("legend", {}, "How the model is held to what it was"),
    h("div", { class: "stack" }, policyLine(inForce), h("div", { class: "choices" }, options, option(OWN, "own settings", "Method, critic and every knob, each with its meaning.")), complaint, place),
  );
  choose(chosen);
  const complain = (param, text) => {
    if (chosen === OWN && form.complain(param, text)) return true;
    if (!param?.startsWith("safety")) return false;
    complaint.hidden = !text;
    complaint.textContent = text ?? "";
    return true;
  };
  return { element, read: () => (chosen === OWN ? form.read() : chosen), complain, isPreset: () => chosen !== OWN };
}

function inWords(safety) {
  if (safety.method === "none") return "";
  const parts = [`${safety.method}: beta ${safety.beta_min} to ${safety.beta_max} by ${safety.scope}`, safety.replay && "replay", safety.anchors && `${safety.anchors.per_step} anchors a step`, safety.monitor && "monitor"];
  return `${parts.filter(Boolean).join(", ")}.`;
}

function policyLine({ name, version, policy }) {
  const demands = [
    policy.beta_min_floor > 0 && `beta_min of at least ${policy.beta_min_floor}`,
    policy.beta_max_floor > 0 && `beta_max of at least ${policy.beta_max_floor}`,
    policy.anchors_required && "anchors",
    ...Object.entries(policy.category_weights ?? {}).map(([category, weight]) => `a critic of the category ${category} with a weight of at least ${weight}`),
  ].filter(Boolean);
  const gate = policy.gate && Object.entries(policy.gate).filter(([, limit]) => limit?.action).map(([limit, each]) => `${limit} ${each.least === undefined ? `at most ${each.most}` : `at least ${each.least}`}, else ${each.action}`);
  return h(
    "p",
    { class: "small muted" },
    `The operator’s policy ${name}, version ${version}, demands ${demands.length ? demands.join(", ") : "nothing of a request"}.`,
    gate ? ` Its gate asks before the weights leave: ${gate.join("; ")}.` : " It has no gate: the weights leave as soon as the record is signed.",
  );
}
