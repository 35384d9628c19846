// The pieces that screens are put together from.

import { h, newId, replace, s } from "../dom.js";
import { ago, exactTime, time } from "../format.js";
import { toast } from "./feedback.js";

const FOCUSABLE = "a, button, input, select, [tabindex]";
const MINUTE_MS = 60_000;
const TONES = { ok: "✓", warn: "!", bad: "✕", held: "◆", idle: "·", busy: "▸" };

/** A word with a colour and a sign, so that neither is needed to read it. */
export function badge(text, tone = "idle", title = null) {
  return h("span", { class: `badge tone-${tone}`, title }, h("span", { class: "icon", "aria-hidden": "true" }, TONES[tone]), text);
}

/** The head of a screen. */
export function pageHead(title, { subtitle = null, actions = [] } = {}) {
  return h(
    "div",
    { class: "page-head" },
    h("div", {}, h("h1", {}, title), subtitle && h("p", { class: "subtitle" }, subtitle)),
    h("div", { class: "actions" }, actions),
  );
}

/** A box with a title. `flush` lets a table reach its edges. */
export function card(title, body, { actions = [], flush = false } = {}) {
  const label = newId("card");
  return h(
    "section",
    { class: "card", "aria-labelledby": label },
    h("header", {}, h("h2", { id: label }, title), h("div", { class: "actions" }, actions)),
    h("div", { class: flush ? "body flush" : "body" }, body),
  );
}

/** Terms and what they are: [[term, value], …]; a row whose value is null is left out. */
export function facts(rows, { big = false } = {}) {
  return h(
    "dl",
    { class: big ? "facts big" : "facts" },
    rows.filter(([, value]) => value !== null && value !== undefined).map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))),
  );
}

/**
 * A table: `columns` are { title, cell(row), class }, and a row's `key` keeps its element from one update to the next.
 * Where the window is narrow, the cells of a row go under each other; a `numeric` table keeps its columns and scrolls. Returns
 * an element with an `update(rows)` that touches only what has changed.
 */
export function table({ caption, columns, key, rows = [], numeric = false }) {
  const body = h("tbody", {});
  const known = new Map();
  const update = (fresh) => {
    const kept = new Set();
    fresh.forEach((row, at) => {
      const id = key(row);
      kept.add(id);
      const stamp = JSON.stringify(row);
      let found = known.get(id);
      if (!found || found.stamp !== stamp) {
        const element = h("tr", {}, columns.map((column) => h("td", { class: column.class, "data-title": textOf(column.title) }, column.cell(row))));
        if (found) keepFocus(found.element, element, () => found.element.replaceWith(element));
        found = { element, stamp };
        known.set(id, found);
      }
      if (body.children[at] !== found.element) body.insertBefore(found.element, body.children[at] ?? null);
    });
    for (const [id, { element }] of known) {
      if (kept.has(id)) continue;
      element.remove();
      known.delete(id);
    }
  };
  update(rows);
  const element = h(
    "div",
    { class: numeric ? "scroll" : "scroll stacked", tabindex: "0", role: "region", "aria-label": caption },
    h(
      "table",
      {},
      h("caption", { class: "visually-hidden" }, caption),
      h("thead", {}, h("tr", {}, columns.map((column) => h("th", { scope: "col", class: column.class }, column.title)))),
      body,
    ),
  );
  return Object.assign(element, { update });
}

function textOf(title) {
  return title instanceof Node ? title.textContent : title;
}

/** Put children in place of what an element has, where they are not the same; they must have no listeners. The keyboard stays where it was. */
export function revise(element, ...children) {
  const fresh = replace(element.cloneNode(false), ...children);
  if (!fresh.isEqualNode(element)) keepFocus(element, element, () => element.replaceChildren(...fresh.childNodes));
}

/** Put something `fresh` in place of what is `old` by `exchange`, and the keyboard where it was. */
function keepFocus(old, fresh, exchange) {
  const at = [...old.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement);
  exchange();
  if (at >= 0) fresh.querySelectorAll(FOCUSABLE)[at]?.focus({ preventScroll: true });
}

/** How far something is, in words for those who cannot see it. */
export function progress(done, total, label) {
  return h("progress", { max: total, value: done, "aria-label": label });
}

/** A moment as people say it, with the exact one where the pointer rests; a relative one goes on with the clock. */
export function moment(seconds, { relative = false } = {}) {
  if (seconds === null || seconds === undefined) return "–";
  return h("time", { datetime: new Date(seconds * 1000).toISOString(), title: exactTime(seconds), "data-relative": relative }, relative ? ago(seconds) : time(seconds));
}

// A row is drawn anew only where its data change, and "5 seconds ago" would stand for ever.
setInterval(() => {
  for (const element of document.querySelectorAll("time[data-relative]")) element.textContent = ago(Date.parse(element.dateTime) / 1000);
}, MINUTE_MS);

/** A labelled control: `control` is an input, select or textarea. */
export function field(label, control, { hint = null } = {}) {
  control.id ||= newId("field");
  const hintId = hint && newId("hint");
  const complaint = h("span", { class: "problem", hidden: true, id: newId("problem") });
  control.setAttribute("aria-describedby", [hintId, complaint.id].filter(Boolean).join(" "));
  const element = h("div", { class: "field" }, h("label", { for: control.id }, label), control, hint && h("span", { class: "hint", id: hintId }, hint), complaint);
  const complain = (text) => {
    complaint.hidden = !text;
    complaint.textContent = text ?? "";
    control.setAttribute("aria-invalid", text ? "true" : "false");
  };
  return Object.assign(element, { control, complain });
}

/** A choice of values: options are [value, text]. */
export function select(options, value, properties = {}) {
  return h("select", properties, options.map(([each, text]) => h("option", { value: each, selected: each === value }, text)));
}

/** Put text into the clipboard. Over plain HTTP, or where the browser does not allow it, a page has none: then `otherwise` is called. */
export async function copy(text, otherwise) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied.");
  } catch {
    otherwise();
  }
}

/** Text that one takes away, with a button for it. */
export function code(text, { label = "Copy" } = {}) {
  const choose = () => {
    getSelection().selectAllChildren(body);
    toast("It is selected: press Ctrl+C to copy it.");
  };
  const body = h("code", {}, text);
  return h("div", { class: "code" }, h("button", { class: "button small", type: "button", onclick: () => copy(text, choose) }, label), h("pre", { tabindex: "0" }, body));
}

/** Panels of which one is seen: [[title, element], …]. */
export function tabs(label, panels) {
  const found = panels.map(([title, panel], at) => {
    const id = newId("tab");
    const body = h("div", { role: "tabpanel", id: `${id}-panel`, "aria-labelledby": id, hidden: at > 0, tabindex: "0" }, panel);
    const tab = h("button", { role: "tab", type: "button", id, "aria-controls": body.id, "aria-selected": String(at === 0), tabindex: at === 0 ? "0" : "-1" }, title);
    return { tab, body };
  });
  const show = (chosen) => {
    found.forEach(({ tab, body }, at) => {
      tab.setAttribute("aria-selected", String(at === chosen));
      tab.tabIndex = at === chosen ? 0 : -1;
      body.hidden = at !== chosen;
    });
    found[chosen].tab.focus();
  };
  found.forEach(({ tab }, at) => {
    tab.addEventListener("click", () => show(at));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) show((at + step + found.length) % found.length);
    });
  });
  return h("div", { class: "stack" }, h("div", { class: "tabs", role: "tablist", "aria-label": label }, found.map(({ tab }) => tab)), found.map(({ body }) => body));
}

/** A place to drop a file on, or to choose one with; `take(file)` is given it. */
export function dropZone({ label, hint, accept = null, take }) {
  const chosen = () => {
    const [file] = input.files;
    // The same file, mended meanwhile, must be a change when it is chosen again.
    input.value = "";
    if (file) take(file);
  };
  const input = h("input", { type: "file", accept, class: "visually-hidden", id: newId("file"), onchange: chosen });
  const zone = h(
    "div",
    { class: "drop" },
    h("label", { class: "button", for: input.id }, label),
    input,
    h("span", { class: "muted small" }, hint),
  );
  zone.addEventListener("dragover", (event) => (event.preventDefault(), zone.classList.add("over")));
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  return zone;
}

/** A small line of numbers between 0 and 1; `null` is a gap. `label` says in words what it shows. */
export function sparkline(values, label) {
  const width = 96;
  const height = 24;
  let path = "";
  let open = false;
  values.forEach((value, at) => {
    if (typeof value !== "number") {
      open = false;
      return;
    }
    const x = values.length > 1 ? (at / (values.length - 1)) * (width - 4) + 2 : width / 2;
    const y = height - 3 - Math.min(1, Math.max(0, value)) * (height - 6);
    path += `${open ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`;
    open = true;
  });
  return s(
    "svg",
    { class: "spark", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    s("line", { x1: 2, x2: width - 2, y1: height - 3, y2: height - 3, stroke: "var(--line)" }),
    s("path", { d: path, fill: "none", stroke: "currentColor", "stroke-width": 1.75, "stroke-linejoin": "round" }),
  );
}
