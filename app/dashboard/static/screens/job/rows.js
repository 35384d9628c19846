// Which rows of the data were risky, what became of them, and how often they were seen.

import { api, may } from "../../api.js";
import { loading, problem } from "../../components/feedback.js";
import { badge, table } from "../../components/parts.js";
import { ENDED, stateOf } from "../../components/states.js";
import { h, replace } from "../../dom.js";
import { count, fraction } from "../../format.js";
import { throttle } from "../../live.js";

const PAGE = 20;
const EVERY_MS = 10_000;
const TREATMENTS = {
  own: ["trained on", "idle", "The model learns from the row itself, with the weight alpha."],
  replay: ["replaced", "warn", "The model learns the reference's own reply in place of the row's."],
  drop: ["left out", "bad", "The row is not trained on."],
};

/** The riskiest rows of the job in `view`. */
export function showRows(view) {
  let rows = [];
  let readAt = 0;
  const note = h("p", { class: "muted small" });
  const grid = table({ caption: "Riskiest rows", key: (row) => row.row, columns: columns() });
  const more = h("button", { class: "button", type: "button", hidden: true, onclick: () => load(rows.at(-1)?.row) }, "Show more rows");
  const place = h("div", {}, loading("Rows", 3));
  const element = h("div", { class: "stack" }, note, place, h("div", { class: "actions" }, more));

  async function load(after = null) {
    const query = new URLSearchParams({ sort: "risk", limit: String(after === null ? Math.max(PAGE, Math.min(rows.length, 100)) : PAGE), ...(after === null ? {} : { after: String(after) }) });
    if (after === null) readAt = view.job.training.steps_completed;
    let page;
    try {
      page = await api(`${view.path}/examples?${query}`, { signal: view.signal });
    } catch (error) {
      if (error.name !== "AbortError") replace(place, problem(error, () => load()));
      return;
    }
    // Their order is that of the reference pass and stays: the rows further down are those that were read before.
    const further = after === null ? rows.slice(page.data.length) : [];
    rows = after === null ? [...page.data, ...further] : [...rows, ...page.data];
    if (!further.length) more.hidden = !page.has_more;
    grid.update(rows);
    const nothing = ENDED.has(stateOf(view.job)) ? "The job ended before its rows were read." : "The rows are read in the reference pass, before the first step.";
    note.textContent = rows.length ? notesOf(rows) : "";
    // A table that stands keeps its place and the keyboard's.
    if (!rows.length || grid.parentElement !== place) replace(place, rows.length ? grid : h("p", { class: "muted" }, nothing));
  }

  load();
  const refresh = throttle(() => load(), EVERY_MS, view.signal);
  const update = ({ moved }) => {
    const { steps_completed: done } = view.job.training;
    // The rows are on record once the reference pass is over, which the first step tells; how often they are seen grows with each.
    if (moved || (readAt === 0 && done > 0)) load();
    else if (done > readAt && !document.hidden && element.checkVisibility()) refresh();
  };
  return Object.assign(element, { update });
}

function notesOf(rows) {
  const hidden = "text" in rows[0] ? "" : " This key may not read files, so that their texts are not shown.";
  return `Risk is the critic's estimate before training; beta is the row's own weight, before the monitor raises it.${hidden}`;
}

function columns() {
  return [
    { title: "Row", class: "number", cell: ({ row }) => count(row) },
    { title: "Risk", cell: ({ risk }) => [h("meter", { min: 0, max: 1, value: risk ?? 0, hidden: risk === null, "aria-label": "Risk" }), h("div", { class: "number" }, fraction(risk))] },
    { title: "Beta", class: "number", cell: ({ beta }) => fraction(beta) },
    { title: "Alpha", class: "number", cell: ({ alpha }) => fraction(alpha) },
    { title: "What became of it", cell: ({ treatment, status }) => [badge(...(TREATMENTS[treatment] ?? [treatment])), status === "ok" ? null : h("div", { class: "small muted" }, `critic: ${status}`)] },
    { title: "Times seen", class: "number", cell: ({ times_seen: seen }) => count(seen) },
    ...(may("files:read") ? [{ title: "Text", cell: ({ text }) => (text ? h("div", { class: "row-text small", tabindex: "0" }, text) : h("span", { class: "muted" }, "the file is not there any more")) }] : []),
  ];
}
