// Charts: the Vega-Lite specifications that the server draws PNG and SVG from, drawn here in the page's own colours.

import { send, session, Unreachable } from "./api.js";
import { problem } from "./components/feedback.js";
import { h, replace } from "./dom.js";

const REDRAW_MS = 1000;
let loaded = null;

/** Load what draws, once, when the first chart needs it. */
function load() {
  loaded ??= new Promise((resolve, reject) => {
    const script = h("script", { src: "/dashboard/vega.js", type: "module", onload: () => resolve(window.vegaEmbed), onerror: () => ((loaded = null), reject(new Unreachable("The chart library could not be loaded."))) });
    document.head.append(script);
  });
  return loaded;
}

const specs = new Map();

/** Return a specification by its name, as it is kept beside the server's. */
export async function loadSpec(name) {
  if (!specs.has(name)) specs.set(name, await (await send(`/dashboard/static/charts/${name}.json`)).json());
  return structuredClone(specs.get(name));
}

/** The colours of the theme that is seen now, by their names in tokens.css. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function themed() {
  const text = colour("muted");
  return {
    background: "transparent",
    font: getComputedStyle(document.body).fontFamily,
    view: { stroke: null },
    axis: { gridColor: colour("grid"), domainColor: colour("line-strong"), tickColor: colour("line-strong"), labelColor: text, titleColor: text, titleFontWeight: "normal", labelFontSize: 12, titleFontSize: 12 },
    legend: { labelColor: colour("text"), titleColor: text, labelFontSize: 12, labelLimit: 300, symbolStrokeWidth: 3 },
    title: { color: colour("text"), subtitleColor: text, anchor: "start", fontSize: 13 },
  };
}

/**
 * A chart that follows its data and the theme. `build(width)` returns a complete specification for so many pixels, null where
 * there is nothing to draw, or undefined while nobody knows; `label` says in words what the chart shows; `table()` returns the
 * same numbers as an element, for those who do not see it; `ready(view)` is called with what was drawn, each time. Returns an
 * element with `redraw()`, which draws at most once a second.
 */
export function chart({ label, caption = null, build, table = null, ready = () => {}, signal }) {
  const canvas = h("div", { class: "canvas", role: "img", "aria-label": label }, h("p", { class: "state muted" }, "Drawing…"));
  const listed = table && numbers(table);
  const element = h("figure", { class: "chart" }, canvas, caption && h("figcaption", {}, caption), listed);
  let view = null;
  let busy = false;
  let again = false;
  let last = -Infinity;

  async function draw() {
    if (busy) {
      again = true;
      return;
    }
    busy = true;
    try {
      do {
        again = false;
        await pause(Math.max(0, last + REDRAW_MS - performance.now()));
        if (signal.aborted) return;
        last = performance.now();
        listed?.refresh();
        await drawNow();
      } while (again);
    } catch (error) {
      // Nobody waits for a drawing: what is wrong is told in its place.
      say(problem(error, draw));
    } finally {
      busy = false;
    }
  }

  async function drawNow() {
    const width = canvas.clientWidth;
    const spec = width > 0 ? build(width) : undefined;
    if (spec === undefined) return;
    if (spec === null) {
      say(h("p", { class: "state muted" }, "There is nothing to draw."));
      return;
    }
    if (!session.current?.charts) {
      say(h("p", { class: "state muted" }, "Charts need the extra “charts” on the server: pip install 'tether[charts]'. The numbers are in the table below."));
      return;
    }
    // Drawn aside and put in place at once, so that nothing flickers or moves.
    const aside = h("div", {});
    const embed = await load();
    const drawn = await embed(aside, { ...spec, config: merge(spec.config ?? {}, themed()) }, { ast: true, actions: false, renderer: "svg", defaultStyle: false, tooltip: { disableDefaultStyle: true } });
    if (signal.aborted) {
      drawn.finalize();
      return;
    }
    view?.finalize();
    view = drawn;
    canvas.replaceChildren(aside);
    canvas.setAttribute("role", "img");
    // The figure has said what it is; its inner parts would be read out one by one.
    aside.setAttribute("aria-hidden", "true");
    ready(drawn.view);
  }

  /** Put words in place of the picture, whose role would hide them, and their buttons, from a reader. */
  function say(words) {
    view?.finalize();
    view = null;
    canvas.setAttribute("role", "group");
    replace(canvas, words);
  }

  const resized = new ResizeObserver(() => draw());
  resized.observe(canvas);
  addEventListener("tether-theme", draw, { signal });
  signal.addEventListener("abort", () => (resized.disconnect(), view?.finalize()), { once: true });
  return Object.assign(element, { redraw: draw });
}

function numbers(table) {
  const body = h("div", {});
  const refresh = () => {
    if (!details.open) return;
    const found = table();
    // A table that stands keeps its place and the keyboard's.
    if (found !== body.firstChild) replace(body, found);
  };
  const details = h("details", { ontoggle: refresh }, h("summary", {}, "The numbers as a table"), body);
  return Object.assign(details, { refresh });
}

function merge(spec, theme) {
  const merged = { ...spec };
  for (const [name, value] of Object.entries(theme)) {
    merged[name] = typeof value === "object" && value !== null ? { ...spec[name], ...value } : value;
  }
  return merged;
}

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
