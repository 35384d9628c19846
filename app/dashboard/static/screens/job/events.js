// What the job has said, newest first.

import { api } from "../../api.js";
import { problem } from "../../components/feedback.js";
import { badge, field, moment, select, table } from "../../components/parts.js";
import { h, replace } from "../../dom.js";

const PAGE = 100;
const LEVELS = [["", "All"], ["warn", "Warnings and errors"], ["error", "Errors"]];
const TONES = { info: "idle", warn: "warn", error: "bad" };

/** The messages of the job in `view`, with `add(event)` for one that has just come. Numbers of steps are in the curves. */
export function showEvents(view) {
  let events = [];
  const level = field("Level", select(LEVELS, ""));
  const grid = table({ caption: "Events", key: ({ id }) => id, columns: COLUMNS });
  const nothing = h("p", { class: "muted", role: "status" });
  const more = h("button", { class: "button", type: "button", hidden: true, onclick: () => load() }, "Show older events");
  const trouble = h("div", {});
  const element = h("div", { class: "stack" }, h("div", { class: "filters" }, level), trouble, grid, nothing, h("div", { class: "actions" }, more));

  function redraw() {
    const wanted = { warn: ["warn", "error"], error: ["error"] }[level.control.value];
    const shown = events.filter((event) => !wanted || wanted.includes(event.level));
    grid.update(shown);
    grid.hidden = !shown.length;
    nothing.textContent = shown.length ? "" : "No event is like that.";
  }

  async function load() {
    const query = new URLSearchParams({ type: "message", limit: String(PAGE), ...(events.length ? { after: events.at(-1).id } : {}) });
    try {
      const page = await api(`${view.path}/events?${query}`, { signal: view.signal });
      const known = new Set(events.map(({ id }) => id));
      events = [...events, ...page.data.filter(({ id }) => !known.has(id))];
      more.hidden = !page.has_more;
      replace(trouble);
      redraw();
    } catch (error) {
      if (error.name !== "AbortError") replace(trouble, problem(error, load));
    }
  }

  function add(event) {
    if (event.type !== "message" || events.some(({ id }) => id === event.id)) return;
    events = [event, ...events];
    redraw();
  }

  level.control.addEventListener("input", redraw);
  load();
  return Object.assign(element, { add, update: () => {} });
}

const COLUMNS = [
  { title: "When", class: "nowrap", cell: (event) => moment(event.created_at) },
  { title: "Level", cell: (event) => badge(event.level, TONES[event.level] ?? "idle") },
  { title: "What", cell: (event) => event.message },
];
