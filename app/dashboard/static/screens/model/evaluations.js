// The evaluations of a model: the newest result whole, the others by a click.

import { api, listAll, may } from "../../api.js";
import { downloadItem } from "../../components/download.js";
import { evaluationView } from "../../components/evaluation.js";
import { attempt, empty, loading, problem } from "../../components/feedback.js";
import { card, field, moment, select } from "../../components/parts.js";
import { workBadge } from "../../components/states.js";
import { h, replace } from "../../dom.js";
import { time } from "../../format.js";
import { poll } from "../../live.js";

const EVERY_S = 3;
const UNFINISHED = ["queued", "running"];

/** A card of a model's evaluations, which keeps itself up to date; `refresh()` looks for new ones at once. */
export async function evaluationsCard(model, { signal }) {
  const place = h("div", { class: "stack" });
  const head = h("div", {});
  let found = [];
  let chosen = null;
  let listed = null;
  let drawn = null;
  let drawing = new AbortController();

  const look = async () => {
    found = await listAll(`/v1/evaluations?model=${encodeURIComponent(model)}`, { signal, most: 50 });
    await redraw();
  };
  const redraw = async () => {
    const current = found.find((each) => each.id === chosen) ?? found[0];
    const list = JSON.stringify(found.map((each) => [each.id, each.status]));
    if (list !== listed) replace(head, found.length > 1 ? picker(current) : null);
    listed = list;
    const stamp = JSON.stringify(current ?? null);
    if (stamp === drawn) return;
    // Until all of it is there it counts as not drawn, so that a request that fails is made again.
    drawn = null;
    drawing.abort();
    drawing = new AbortController();
    const mine = AbortSignal.any([signal, drawing.signal]);
    if (current) await fill(current, mine);
    else replace(place, empty("Not evaluated yet", "An evaluation asks the model and its base the same prompts, and says how much safety and skill were won or lost."));
    if (!mine.aborted) drawn = stamp;
  };
  const picker = (current) => {
    const choice = field("Evaluation", select(found.map((each) => [each.id, `${time(each.created_at)} · ${each.status}`]), current.id));
    choice.control.addEventListener("change", () => {
      chosen = choice.control.value;
      attempt(null, redraw);
    });
    return h("div", { class: "filters" }, choice);
  };
  /** Show an evaluation until another one is shown, which ends `mine`. */
  const fill = async (current, mine) => {
    const unfinished = UNFINISHED.includes(current.status);
    const line = h("p", { class: "row" }, workBadge(current.status), h("code", { class: "small" }, current.id), moment(current.finished_at ?? current.created_at), unfinished && may("evaluations:write") && cancel(current));
    const succeeded = current.status === "succeeded";
    replace(place, line, unfinished || succeeded ? loading("The evaluation", 6) : h("p", {}, current.error?.message ?? ""));
    if (!succeeded) return;
    const whole = await api(`/v1/evaluations/${current.id}`, { signal });
    if (mine.aborted) return;
    const view = await evaluationView(whole, { signal: mine });
    if (!mine.aborted) replace(place, line, view, replies(whole, signal));
  };
  const cancel = (current) => {
    const button = h("button", { class: "button small", type: "button" }, "Cancel");
    button.addEventListener("click", () => attempt(button, async () => (await api(`/v1/evaluations/${current.id}/cancel`, { method: "POST", signal }), await look())));
    return button;
  };

  try {
    await look();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    replace(place, problem(error, () => attempt(null, look)));
  }
  poll(async () => (drawn === null || found.some((each) => UNFINISHED.includes(each.status)) ? look() : null), { everyS: EVERY_S, signal });
  return Object.assign(card("Before and after", h("div", { class: "stack" }, head, place)), { refresh: look });
}

function replies({ id, replies_file: file }, signal) {
  if (!file || !may("artifacts:read")) return null;
  const item = { path: `/v1/files/${file}/content`, name: `${id}.jsonl`, title: "All replies, with every verdict", what: "JSON lines; harmful replies are among them" };
  return h("ul", { class: "downloads" }, downloadItem(item, signal));
}
