// One panel drawn from a kept specification: its data, and the page's colours in place of those for paper.

import { chart, colour, loadSpec } from "../charts.js";
import { h } from "../dom.js";
import { table } from "./parts.js";

const NARROW_PX = 480;

/**
 * A chart of `app/charts/NAME.json` that is `values` long; `colours` are the names in tokens.css of its series, `adapt(spec)`
 * changes what depends on the data, and `columns` make the table of the same numbers where no other stands beside it. Returns an element with `update(values)`.
 */
export async function plot(name, { values, colours, columns = null, adapt = () => {}, low = true, ...options }) {
  const spec = await loadSpec(name);
  let rows = values;
  const build = (width) => {
    if (!rows.length) return null;
    const drawn = structuredClone(spec);
    // The page is the ground; the white one is for paper.
    delete drawn.background;
    drawn.width = width;
    drawn.autosize = { type: "fit-x", contains: "padding" };
    drawn.data = { values: rows };
    drawn.config = { ...drawn.config, range: { category: colours.map(colour) } };
    adapt(drawn);
    if (width < NARROW_PX) stackLegends(drawn);
    return drawn;
  };
  const grid = columns && table({ caption: options.label, key: (row) => row.key, columns, numeric: true });
  const numbers = () => (grid.update(rows.map((row, key) => ({ key, ...row }))), grid);
  const element = chart({ ...options, build, table: grid && numbers });
  element.classList.toggle("low", low);
  const update = (fresh) => {
    rows = fresh;
    return element.redraw();
  };
  return Object.assign(element, { update });
}

/** Put the entries of the keys below each other, where two beside each other would be cut. */
function stackLegends(spec) {
  for (const { encoding = {} } of [spec, ...(spec.layer ?? [])]) {
    for (const { legend } of Object.values(encoding)) if (legend?.columns) legend.columns = 1;
  }
}

/** A line of colour and dash, as a key to what is drawn. */
export function swatch(name) {
  return h("span", { class: "swatch", style: { background: `var(--${name})` }, "aria-hidden": "true" });
}
