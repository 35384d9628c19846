// What a policy's gate found, limit by limit, and who has decided what.

import { h } from "../dom.js";
import { number } from "../format.js";
import { badge, moment, table } from "./parts.js";

const LIMITS = {
  critic_auroc: ["Quality of the critic (AUROC on held-out topics)", "at least"],
  critic_recall: ["Harm that the critic finds at 1 % false alarms", "at least"],
  fallback_share: ["Rows that the critic itself did not measure", "at most"],
  attack_success_increase: ["Rise of the attack success, worst end of its interval", "at most"],
  over_refusal_increase: ["Rise of refusals of harmless requests, worst end of its interval", "at most"],
  utility_loss: ["Loss of the task score, worst end of its interval", "at most"],
};

const LIMIT_COLUMNS = [
  { title: "Holds", cell: (row) => (row.broken ? badge("broken", "bad") : badge("kept", "ok")) },
  { title: "Limit", cell: (row) => [LIMITS[row.limit]?.[0] ?? row.limit, h("div", { class: "small muted mono" }, row.limit)] },
  { title: "Found", class: "number", cell: (row) => (row.found === null ? "nothing" : number(row.found)) },
  { title: "Allowed", class: "number nowrap", cell: (row) => `${LIMITS[row.limit]?.[1] ?? ""} ${number(row.bound)}`.trim() },
  { title: "If it does not hold", cell: (row) => row.action },
];

const DECISION_COLUMNS = [
  { title: "When", class: "nowrap", cell: ({ at }) => moment(at) },
  { title: "Who", cell: ({ by }) => h("span", { class: "mono" }, by) },
  { title: "Decision", cell: ({ decision }) => badge(decision, decision === "approved" ? "ok" : "bad") },
  { title: "Reason", cell: ({ reason }) => reason },
];

/** A table of limits with what was found. */
export function limitsTable(limits, caption) {
  return table({ caption, key: (row) => row.limit, columns: LIMIT_COLUMNS, rows: limits });
}

/** A table of what people have decided; null where nobody has. */
export function decisionsTable(decisions, caption) {
  return decisions.length ? table({ caption, key: (row) => `${row.by}${row.at}`, columns: DECISION_COLUMNS, rows: decisions }) : null;
}
