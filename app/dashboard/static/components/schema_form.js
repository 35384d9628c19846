// Forms made of the API's own description: a knob's meaning, bounds and default are written once, beside the knob.
//
// Each control is made for a schema of /openapi.json and has: `element`; `read()`, which returns what to send, or undefined for
// what was left as it is by default; and `complain(path, text)`, which says whether the field that a refusal names is one of its own.

import { api } from "../api.js";
import { h, newId, replace } from "../dom.js";
import { field, select } from "./parts.js";

// What the form of a part calls itself: its place in the list is another once a part before it is removed.
const PART = "part";

let description = null;

/** The schemas of the API's description, fetched once. */
export async function loadSchemas() {
  description ??= api("/openapi.json").catch((error) => {
    description = null;
    throw error;
  });
  return (await description).components.schemas;
}

/** Follow a reference to where the schema is. */
function resolve(schemas, schema) {
  return schema.$ref ? schemas[schema.$ref.split("/").at(-1)] : schema;
}

/** A form for an object: its `element`, `read()` and `complain()`. `given` are values to begin with. */
export function objectForm(schemas, schema, { given = {}, path }) {
  const properties = Object.entries(resolve(schemas, schema).properties).filter(([name, each]) => each.const === undefined);
  const controls = properties.map(([name, each]) => [name, control(schemas, each, { name, given: given?.[name], path: `${path}.${name}` })]);
  const element = h("div", { class: "fields" }, controls.map(([, each]) => each.element));
  const read = () => Object.fromEntries(controls.map(([name, each]) => [name, each.read()]).filter(([, value]) => value !== undefined));
  const complain = (param, text) => controls.some(([, each]) => each.complain(param, text));
  return { element, read, complain };
}

/** A form for one of several kinds of object, told apart by a field such as `method` or `type`. */
export function choiceForm(schemas, schema, { given = null, path, label, hint = null, allowed = null, optional = false, changed = () => {} }) {
  const { propertyName, mapping } = schema.discriminator;
  const kinds = Object.keys(mapping).filter((kind) => !allowed || allowed.includes(kind));
  const options = [...(optional ? [["", "By default"]] : []), ...kinds.map((kind) => [kind, kind])];
  const meaning = h("p", { class: "small muted" });
  const place = h("div", {});
  const kind = field(label, select(options, given?.[propertyName] ?? options[0][0]), { hint });
  let inner = null;
  const fill = (values) => {
    const chosen = kind.control.value;
    const target = chosen && resolve(schemas, { $ref: mapping[chosen] });
    inner = target ? objectForm(schemas, target, { given: values, path }) : null;
    meaning.textContent = target?.description?.replaceAll("`", "") ?? "";
    replace(place, inner?.element);
  };
  // Not at `change`, which comes later: whoever hears `input` reads the whole form.
  kind.control.addEventListener("input", () => {
    fill({});
    changed();
  });
  fill(given ?? {});
  const read = () => (kind.control.value ? { [propertyName]: kind.control.value, ...inner.read() } : undefined);
  const complain = (param, text) => {
    if (inner?.complain(param, text)) return true;
    if (param !== path && param !== `${path}.${propertyName}`) return false;
    kind.complain(text);
    return true;
  };
  return { element: h("div", { class: "nested" }, kind, meaning, place), read, complain };
}

/** What a schema with `anyOf` is: its part that is no null and no `auto`, and whether these may be. */
function open(schema) {
  const parts = schema.anyOf ?? [schema];
  return {
    core: parts.find((each) => each.type !== "null" && each.const !== "auto") ?? parts[0],
    auto: parts.some((each) => each.const === "auto"),
    nullable: parts.some((each) => each.type === "null"),
  };
}

function control(schemas, schema, { name, given, path }) {
  const { core, auto, nullable } = open(schema);
  const label = name.replaceAll("_", " ");
  const hint = (schema.description ?? core.description ?? "").replaceAll("`", "");
  if (core.discriminator) return choiceForm(schemas, core, { given, path, label, hint, optional: nullable || schema.default === undefined });
  if (core.$ref || core.properties) return objectControl(schemas, core, { label, hint, given, path, standard: schema.default });
  if (core.type === "array") return listControl(schemas, core, { label, hint, given, path, nullable });
  return valueControl(core, { label, hint: `${hint}${bounds(core, auto)}`, given, path, auto, nullable, standard: schema.default });
}

function bounds(core, auto) {
  const least = core.minimum ?? core.exclusiveMinimum;
  const most = core.maximum ?? core.exclusiveMaximum;
  if (least === undefined && most === undefined) return "";
  const from = least === undefined ? "" : `${core.minimum === undefined ? "above" : "from"} ${least} `;
  const to = most === undefined ? "" : `${core.maximum === undefined ? "below" : "to"} ${most}`;
  return ` (${auto ? "auto, or " : ""}${`${from}${to}`.trim()})`;
}

/** One value: a number, a text, a choice or a yes and no. */
function valueControl(core, { label, hint, given, path, auto, nullable, standard }) {
  const begin = given ?? standard;
  const number = core.type === "number" || core.type === "integer";
  let input;
  if (core.enum) input = select(core.enum.map((each) => [each, each]), begin);
  else if (core.type === "boolean") input = select([["true", "yes"], ["false", "no"]], String(begin));
  else input = h("input", { type: "text", inputmode: number && !auto ? "decimal" : null, value: begin ?? "", placeholder: nullable || begin === undefined ? "by default" : null, spellcheck: "false" });
  const element = field(label, input, { hint });
  const read = () => {
    const text = input.value.trim();
    if (text === "" || (text === String(standard) && given === undefined)) return undefined;
    if (core.type === "boolean") return text === "true";
    return number ? asNumber(text) : text;
  };
  return { element, read, complain: complainer(element, path) };
}

/** The number that a text is. What is none is sent as it is: the API says what is wrong with it, at its field. */
function asNumber(text) {
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

/** An object that may be there or not, such as the anchors. */
function objectControl(schemas, core, { label, hint, given, path, standard }) {
  const there = given === undefined ? standard !== undefined && standard !== null : given !== null;
  const inner = objectForm(schemas, core, { given: given ?? {}, path });
  const box = h("input", { type: "checkbox", checked: there, id: newId("part") });
  const complaint = h("span", { class: "problem", hidden: true });
  const body = h("div", { hidden: !there }, inner.element);
  box.addEventListener("change", () => (body.hidden = !box.checked));
  const element = h("fieldset", { class: "nested" }, h("legend", { class: "visually-hidden" }, label), h("div", { class: "field" }, h("label", { class: "row", for: box.id }, box, label), h("span", { class: "hint" }, hint), complaint), body);
  const read = () => {
    if (box.checked) return inner.read();
    return standard === undefined || standard === null ? undefined : null;
  };
  const complain = (param, text) => {
    if (inner.complain(param, text)) return true;
    if (param !== path) return false;
    complaint.hidden = !text;
    complaint.textContent = text ?? "";
    return true;
  };
  return { element, read, complain };
}

/** A list of objects of several kinds, such as the parts of a combined critic, or of numbers, such as their weights. */
function listControl(schemas, core, { label, hint, given, path, nullable }) {
  if (!core.items.discriminator) {
    const input = h("input", { type: "text", value: (given ?? []).join(", "), placeholder: nullable ? "by default" : null });
    const element = field(label, input, { hint: `${hint} Separated by commas.` });
    const read = () => (input.value.trim() ? input.value.split(",").map((each) => asNumber(each.trim())) : undefined);
    // A complaint names one of the numbers, which all stand in one field.
    const complain = complainer(element, path);
    return { element, read, complain: (param, text) => complain(param?.replace(/\[\d+\]$/, ""), text) };
  }
  const place = h("div", { class: "stack" });
  let parts = [];
  let complained = null;
  const add = (values) => {
    const part = { given: values, box: h("div", { class: "part" }) };
    parts.push(part);
    place.append(part.box);
    const remove = h("button", { class: "button small", type: "button" }, "Remove");
    remove.addEventListener("click", () => {
      // Nobody finds it by this place afterwards.
      complain(complained, null);
      parts = parts.filter((each) => each !== part);
      part.box.remove();
    });
    part.form = choiceForm(schemas, core.items, { given: values, path: PART, label: "Part" });
    part.box.append(part.form.element, remove);
  };
  (given ?? Array.from({ length: core.minItems ?? 0 }, () => null)).forEach(add);
  const more = h("button", { class: "button small", type: "button", onclick: () => parts.length < (core.maxItems ?? Infinity) && add(null) }, "Add a part");
  const complaint = h("p", { class: "problem", hidden: true });
  const element = h("div", { class: "field wide", role: "group", "aria-label": label }, h("span", { class: "label" }, label), h("span", { class: "hint" }, hint), complaint, place, more);
  const complain = (param, text) => {
    complained = param;
    const at = parts.findIndex((_, index) => param?.startsWith(`${path}[${index}]`));
    if (at >= 0 && parts[at].form.complain(param.replace(`${path}[${at}]`, PART), text)) return true;
    if (param !== path && !param?.startsWith(`${path}[`)) return false;
    complaint.hidden = !text;
    complaint.textContent = text ?? "";
    return true;
  };
  return { element, read: () => parts.map((part) => part.form.read()), complain };
}

function complainer(element, path) {
  return (param, text) => {
    if (param !== path) return false;
    element.complain(text);
    return true;
  };
}

/** Keep of a value only what a request may say: replies carry more beside it, such as the quality of a critic. */
export function requestable(schemas, schema, value) {
  if (value === null || value === undefined) return value;
  const { core } = open(schema);
  if (core.discriminator) {
    const { propertyName, mapping } = core.discriminator;
    const target = mapping[value[propertyName]];
    return target ? requestable(schemas, { $ref: target }, value) : undefined;
  }
  if (core.items && Array.isArray(value)) return value.map((each) => requestable(schemas, core.items, each));
  const { properties } = resolve(schemas, core);
  if (!properties) return value;
  const kept = Object.entries(properties).filter(([name]) => value[name] !== undefined);
  return Object.fromEntries(kept.map(([name, each]) => [name, requestable(schemas, each, value[name])]));
}
