// The critics that measure risk, and the sets of rows that protect every job on a base model.

import { listAll } from "../api.js";
import { empty, toast } from "../components/feedback.js";
import { card, copy, field, moment, pageHead, table } from "../components/parts.js";
import { workBadge } from "../components/states.js";
import { h, replace } from "../dom.js";
import { count, fraction, shortId } from "../format.js";
import { poll } from "../live.js";
import { addressOf } from "./models.js";

const EVERY_S = 10;
const KINDS = { anchors: "Anchors: prompts that hold every run", alignment: "Safe demonstrations", harmful: "Harmful rows with their answers" };

/** How far a critic is, as a badge. */
export function criticBadge(critic) {
  return workBadge(critic.status, { text: critic.status === "succeeded" ? "fitted" : critic.status, title: critic.error?.message });
}

export async function show(root, { query, signal }) {
  let critics = [];
  let sets = [];
  const search = field("Search", h("input", { type: "search", value: query.get("q") ?? "", placeholder: "Base model, category or id" }));
  const grid = table({ caption: "The critics", key: (row) => row.id, columns: criticColumns() });
  const setGrid = table({ caption: "The registered sets", key: (row) => row.id, columns: setColumns() });
  const nothing = h("div", {});
  const noSets = h("div", {});
  const redraw = () => {
    const text = search.control.value.toLowerCase();
    const like = (...said) => said.join("\n").toLowerCase().includes(text);
    const wanted = critics.filter((each) => like(each.id, each.model, each.category));
    const wantedSets = sets.filter((each) => like(each.id, each.model, each.kind));
    grid.update(wanted);
    setGrid.update(wantedSets);
    grid.hidden = !wanted.length;
    setGrid.hidden = !wantedSets.length;
    replace(nothing, wanted.length ? null : empty("No critic", critics.length ? "Change the search." : "Without one nothing measures risk. The operator fits one with tether critics fit."));
    replace(noSets, wantedSets.length ? null : empty("No safety set", sets.length ? "Change the search." : "The operator registers one with tether anchors add or tether alignment add."));
  };
  const ask = async () => {
    [critics, sets] = await Promise.all([listAll("/v1/critics", { signal, most: 500 }), listAll("/v1/safety_sets", { signal, most: 500 })]);
    redraw();
  };
  search.control.addEventListener("input", redraw);
  await ask();
  replace(
    root,
    pageHead("Critics", { subtitle: "A risk is one critic’s estimate. How good each one is was measured on topics that it was not fitted on." }),
    h("div", { class: "stack" }, h("div", { class: "filters" }, search), card("Critics", [grid, nothing], { flush: true }), card("Safety sets", [setGrid, noSets], { flush: true })),
  );
  redraw();
  poll(ask, { everyS: EVERY_S, signal });
}

function criticColumns() {
  const quality = (name) => (critic) => fraction(critic.quality?.[name], 3);
  return [
    { title: "Critic", cell: (critic) => h("a", { href: `#/critics/${critic.id}`, class: "mono nowrap", title: critic.id, "aria-label": critic.id }, shortId(critic.id)) },
    { title: "Base model", cell: (critic) => (critic.model ? h("a", { href: addressOf(critic.model), class: "mono" }, critic.model) : "–") },
    { title: "Category", cell: (critic) => critic.category },
    { title: "State", cell: criticBadge },
    { title: "AUROC", class: "number", cell: quality("auroc") },
    { title: "Recall at 1 % false alarms", class: "number", cell: quality("tpr_at_1_percent_fpr") },
    { title: "Recall at the threshold", class: "number", cell: quality("recall_at_threshold") },
    { title: "Created", class: "nowrap", cell: (critic) => moment(critic.created_at, { relative: true }) },
  ];
}

function setColumns() {
  const copyDigest = ({ sha256 }) => copy(sha256, () => toast(`The browser does not let this page copy. The SHA-256 is ${sha256}`));
  return [
    { title: "Set", cell: (each) => h("code", {}, each.id) },
    { title: "Base model", cell: (each) => h("a", { href: addressOf(each.model), class: "mono" }, each.model) },
    { title: "Kind", cell: (each) => KINDS[each.kind] ?? each.kind },
    { title: "Rows", class: "number", cell: (each) => count(each.rows) },
    { title: "SHA-256", cell: (each) => h("button", { class: "button quiet small mono", type: "button", title: "Copy", "aria-label": `Copy the SHA-256 of ${each.id}`, onclick: () => copyDigest(each) }, `${each.sha256.slice(0, 12)}…`) },
    { title: "Registered", class: "nowrap", cell: (each) => moment(each.created_at, { relative: true }) },
  ];
}
