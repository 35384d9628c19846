// Who measured a risk: a number is one critic's estimate, and means nothing without how good that critic is.

import { h } from "../dom.js";
import { fraction, shortId } from "../format.js";

const PARTS = { max: "the highest of", weighted: "the weighted sum of" };

/** Say which critic measured, and its quality on held-out topics, as a job or a report names it; null is none. */
export function criticLine(critic) {
  return h("p", { class: "small muted critic-line" }, critic ? ["Risk by ", describe(critic), ". It is an estimate."] : "No critic measured the risk.");
}

/** The same where there is little room. */
export function criticName(critic) {
  if (!critic) return "nobody";
  if (critic.critics) return critic.critics.map(criticName);
  if (critic.type !== "activation") return h("div", {}, critic.type === "judge" ? "a judge" : "a constant");
  return h("div", { class: "nowrap" }, h("a", { href: `#/critics/${critic.id}`, class: "mono", title: critic.id, "aria-label": critic.id }, shortId(critic.id)), h("div", { class: "small muted" }, `AUROC ${fraction(critic.quality?.auroc, 3)}`));
}

function describe(critic) {
  if (critic.critics) {
    const parts = critic.critics.flatMap((part, at) => [at > 0 && "; ", critic.weights && `${critic.weights[at]} × `, describe(part)]);
    return [PARTS[critic.rule] ?? critic.rule, ": ", parts];
  }
  if (critic.type === "constant") return `a constant critic: s = ${critic.s} for every row`;
  if (critic.type === "judge") return `a judge, ${critic.votes} ${critic.votes === 1 ? "vote" : "votes"} a text; how good it is nobody has measured`;
  const quality = critic.quality ?? {};
  return [
    h("a", { href: `#/critics/${critic.id}`, class: "mono" }, critic.id),
    ` (${critic.category ?? "harm"}), on held-out topics AUROC ${fraction(quality.auroc, 3)}, recall at 1 % false alarms ${fraction(quality.tpr_at_1_percent_fpr, 3)}`,
  ];
}
