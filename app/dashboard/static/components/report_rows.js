// The riskiest rows of a report, and leaving some of them out.

import { h } from "../dom.js";
import { count, fraction } from "../format.js";
import { select, table } from "./parts.js";

const EDGES = ["0.8", "0.6", "0.4", "0.2"];
/** What becomes of a row, in words for one and for many. */
export const TREATMENTS = { own: "trained on", replay: "replaced by the reference’s reply", drop: "left out" };

/** The table of the riskiest rows; with `exclude`, the chosen ones or all from a risk on can be left out. */
export function riskRows(risk, { exclude, model }) {
  const chosen = new Set();
  const button = h("button", { class: "button small", type: "button", disabled: true }, "Leave the chosen rows out");
  button.addEventListener("click", () => exclude({ rows: [...chosen].sort((a, b) => a - b) }, button));
  const choose = (row, on) => {
    if (on) chosen.add(row);
    else chosen.delete(row);
    button.disabled = !chosen.size;
    button.textContent = chosen.size ? `Leave ${count(chosen.size)} chosen ${chosen.size === 1 ? "row" : "rows"} out` : "Leave the chosen rows out";
  };
  const box = (row) => h("input", { type: "checkbox", "aria-label": `Choose row ${row}`, onchange: (event) => choose(row, event.target.checked) });
  const exact = risk.visibility === "full";
  const columns = [
    exclude && { title: "Choose", cell: (row) => box(row.row) },
    { title: "Row", class: "number", cell: (row) => count(row.row) },
    { title: exact ? "Risk" : "Risk, between", class: "nowrap", cell: (row) => (exact ? fraction(row.s, 3) : row.bucket) },
    exact && { title: "Beta", class: "number", cell: (row) => fraction(row.beta) },
    risk.riskiest.some((row) => row.treatment) && { title: "What becomes of it", cell: (row) => TREATMENTS[row.treatment] ?? "–" },
    { title: "Beginning of the text", cell: (row) => (row.text ? h("div", { class: "row-text" }, row.text) : h("span", { class: "muted" }, "not shown")) },
  ].filter(Boolean);
  return h(
    "div",
    { class: "stack" },
    h("h3", {}, `The riskiest ${count(risk.riskiest.length)} of ${count(risk.rows)} rows`),
    h("div", { class: "tall" }, table({ caption: "The riskiest rows", key: (row) => row.row, columns, rows: risk.riskiest })),
    exclude && risk.riskiest.length ? h("div", { class: "actions" }, button, fromRisk(risk, model, exclude)) : null,
    exclude ? h("p", { class: "small muted" }, "Rows count from 0. Leaving rows out makes a new file; this one stays as it is.") : null,
  );
}

function fromRisk(risk, model, exclude) {
  const among = (edge) => risk.distribution.filter((each) => parseFloat(each.bucket) >= Number(edge)).reduce((sum, each) => sum + each.rows, 0);
  const edges = EDGES.filter((edge) => among(edge) > 0);
  if (!edges.length) return null;
  const from = select(edges.map((edge) => [edge, `${edge} (${count(among(edge))} rows)`]), edges[0], { "aria-label": "Risk from which rows are left out" });
  const button = h("button", { class: "button small", type: "button" }, "Leave out all rows with a risk from");
  button.addEventListener("click", () => exclude({ risk_above: Number(from.value), model }, button));
  return h("div", { class: "row" }, button, from);
}
