// Generations: what a model was trained on from, and what went on from it.

import { isPart } from "../../components/newest_jobs.js";
import { card } from "../../components/parts.js";
import { protectionBadge } from "../../components/states.js";
import { h } from "../../dom.js";
import { count } from "../../format.js";
import { addressOf } from "../models.js";

/** The generations of a fine-tuned model, from the base model on; `job` is null where it is another project's. */
export function lineage(model, job, jobs) {
  const known = new Map(jobs.map((each) => [each.id, each]));
  const before = (job?.training.lineage ?? []).toReversed();
  const after = jobs.filter((each) => each.training.lineage[0]?.model === model.id);
  const entry = (name, text, { of = null, current = false } = {}) =>
    h("li", { "aria-current": current ? "true" : null }, current ? h("strong", { class: "mono" }, name) : h("a", { href: addressOf(name), class: "mono" }, name), h("span", { class: "small muted" }, ` ${text}`), of && [" ", protectionBadge(of)]);
  return card("Where it comes from", [
    h(
      "ol",
      { class: "lineage" },
      entry(model.base_model, "base model, the reference of every generation"),
      before.map((each) => entry(each.model, `trained to step ${each.step}`, { of: known.get(each.job) })),
      entry(model.id, model.checkpoint ? "this checkpoint" : "this model", { of: job, current: true }),
      after.map((each) => h("li", { class: "later" }, each.fine_tuned_model ? h("a", { href: addressOf(each.fine_tuned_model), class: "mono" }, each.fine_tuned_model) : h("a", { href: `#/jobs/${each.id}`, class: "mono" }, each.id), h("span", { class: "small muted" }, each.fine_tuned_model ? " went on from it" : " a job that goes on from it"), " ", protectionBadge(each))),
    ),
    isPart(jobs) ? h("p", { class: "small muted" }, `What went on from it was looked for among the newest ${count(jobs.length)} jobs.`) : null,
  ]);
}
