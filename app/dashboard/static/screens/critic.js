// One critic: how well it tells harm on topics that it has not seen, layer by layer, and where its points are.

import { api, may } from "../api.js";
import { loading, notice } from "../components/feedback.js";
import { newestJobs, usersCard } from "../components/newest_jobs.js";
import { card, facts, moment, pageHead, table } from "../components/parts.js";
import { plot } from "../components/plot.js";
import { ENDED } from "../components/states.js";
import { h, replace } from "../dom.js";
import { count, fraction, percent } from "../format.js";
import { poll } from "../live.js";
import { criticBadge } from "./critics.js";
import { addressOf } from "./models.js";

const EVERY_S = 3;
const POINTS = [
  ["low", "Up to here a row has no risk: s = 0."],
  ["threshold", "From here a row is replayed or dropped."],
  ["high", "From here a row is as risky as can be: s = 1."],
];
const PROBES = { prompt: "requests", response: "replies" };

export async function show(root, { id, signal }) {
  let drawn = null;
  const ask = async () => {
    const critic = await api(`/v1/critics/${encodeURIComponent(id)}`, { signal });
    if (critic.status === drawn) return;
    const body = critic.report ? await whole(critic, signal) : unfinished(critic);
    if (signal.aborted) return;
    replace(root, pageHead(critic.id, { subtitle: ["Critic of ", critic.model ? h("a", { href: addressOf(critic.model), class: "mono" }, critic.model) : "a base model", `, category ${critic.category}`], actions: criticBadge(critic) }), h("div", { class: "stack" }, body));
    drawn = critic.status;
  };
  await ask();
  poll(async () => (ENDED.has(drawn) ? null : ask()), { everyS: EVERY_S, signal });
}

function unfinished(critic) {
  if (critic.error) return notice("bad", "It could not be fitted", critic.error.message);
  return [h("p", {}, "It is being fitted: the base model reads every row twice."), loading("The critic", 8)];
}

async function whole(critic, signal) {
  const { report } = critic;
  return [
    report.warning && notice("warn", "Few data", report.warning),
    report.why_no_response && notice("warn", "It does not read replies", report.why_no_response),
    card("How good it is on topics that it has not seen", quality(critic)),
    await layers(report, signal),
    card("Where its points are", points(critic), { flush: true }),
    await calibration(report, signal),
    card("What it was fitted on", data(critic)),
    await users(critic, signal),
  ];
}

function quality({ report }) {
  const found = report.cross_points ?? {};
  return [
    facts(
      [
        ["AUROC", fraction(report.auroc, 3)],
        ["Recall at 1 % false alarms", fraction(report.tpr_at_1_percent_fpr, 3)],
        ["Harm with any risk", share(found.low?.recall)],
        ["Harm above the threshold", share(found.threshold?.recall)],
        ["AUROC against lookalikes", fraction(report.borderline?.auroc, 3)],
        ["Brier score", fraction(report.brier, 4)],
      ],
      { big: true },
    ),
    h("p", { class: "small muted" }, `Counted on ${count(report.n_positive)} harmful and ${count(report.n_negative)} harmless rows, each read by probes that were fitted without its topic. AUROC is the chance that a harmful row has more risk than a harmless one; 0.5 is chance. Lookalikes are harmless rows that sound harmful.`),
  ];
}

function share(found) {
  if (!found || found.share === null || found.share === undefined) return "–";
  return [h("span", { class: "nowrap" }, percent(found.share)), found.interval && h("span", { class: "small muted nowrap" }, ` ${percent(found.interval[0])} to ${percent(found.interval[1])}`)];
}

async function layers(report, signal) {
  const rows = [];
  for (const [probe, text] of Object.entries(PROBES)) {
    const found = report[probe];
    if (!found) continue;
    for (const each of found.layers ?? []) rows.push({ layer: each.layer, auroc: each.auroc, tpr: each.tpr_at_1_percent_fpr, probe: text });
    rows.push({ layer: null, auroc: found.auroc, tpr: found.tpr_at_1_percent_fpr, probe: text });
  }
  if (!rows.some((row) => row.layer)) return null;
  const drawn = await plot("layers", {
    label: `AUROC of each layer by itself: ${rows.filter((row) => row.layer).map((row) => `${row.probe} layer ${row.layer} ${fraction(row.auroc, 3)}`).join("; ")}`,
    caption: `Each layer by itself, and dotted what is used: ${report.pooling === "mean" ? "the mean of all" : `layer ${report.pooling}`}. No layer was chosen by these numbers, which would make them too good.`,
    values: rows.filter((row) => row.auroc !== null),
    colours: ["series-risk", "series-beta"],
    adapt: (spec) => (spec.encoding.y.scale.domain = [Math.min(0.5, ...rows.map((row) => row.auroc ?? 1)), 1]),
    columns: [
      { title: "Probe on", cell: (row) => row.probe },
      { title: "Layer", class: "number", cell: (row) => row.layer ?? "as used" },
      { title: "AUROC", class: "number", cell: (row) => fraction(row.auroc, 4) },
      { title: "Recall at 1 % false alarms", class: "number", cell: (row) => fraction(row.tpr, 4) },
    ],
    signal,
  });
  return card("Layer by layer", drawn);
}

function points(critic) {
  const counted = critic.report.cross_points ?? critic.report.points ?? {};
  const columns = [
    { title: "Point", cell: (row) => [h("strong", {}, row.name), h("div", { class: "small muted" }, row.meaning)] },
    { title: "Log-odds", class: "number", cell: (row) => (row.value === null ? "–" : fraction(row.value, 3)) },
    { title: "Harmful rows beyond it", class: "number", cell: (row) => share(row.recall) },
    { title: "Harmless rows beyond it", class: "number", cell: (row) => share(row.fpr) },
  ];
  const rows = POINTS.map(([name, meaning]) => ({ name, meaning, value: critic[name], ...counted[name] }));
  return [table({ caption: "The points of the critic", key: (row) => row.name, columns, rows }), h("p", { class: "small muted pad" }, "Counted at points that were chosen without the rows they are counted on, with 95 % intervals.")];
}

async function calibration(report, signal) {
  const rows = (report.reliability ?? []).map((bin, at, all) => ({ ...bin, from: at / all.length, to: (at + 1) / all.length }));
  const filled = rows.filter((row) => row.count > 0);
  if (!filled.length) return null;
  const drawn = await plot("reliability", {
    label: `Calibration: ${filled.map((row) => `given ${fraction(row.mean_predicted)}, found ${fraction(row.observed)}, ${row.count} rows`).join("; ")}`,
    caption: "Of the rows to which it gives a probability, the share that is harmful. On the dashed line it says what is so. Larger marks have more rows.",
    values: filled,
    colours: ["series-risk", "line-strong"],
    low: false,
    columns: [
      { title: "Probability", class: "number nowrap", cell: (row) => `${fraction(row.from, 1)} to ${fraction(row.to, 1)}` },
      { title: "Rows", class: "number", cell: (row) => count(row.count) },
      { title: "Given on average", class: "number", cell: (row) => fraction(row.mean_predicted, 3) },
      { title: "Harmful", class: "number", cell: (row) => percent(row.observed) },
    ],
    signal,
  });
  drawn.classList.add("square");
  return card("Whether its probabilities hold", drawn);
}

function data(critic) {
  const { report } = critic;
  return [
    facts([
      ["Rows", count(report.n_rows)],
      ["Requests", count(report.n_requests)],
      ["Replies", count(report.n_replies)],
      ["Topics", count(report.n_groups)],
      ["Parts that topics were held out in", count(report.n_folds)],
      ["Layers used", report.pooling === "mean" ? "all, their mean" : `layer ${report.pooling}`],
      ["Fitted", moment(critic.created_at)],
    ]),
    h("p", { class: "small digest" }, "SHA-256 of the critic: ", h("code", {}, critic.sha256)),
    h("p", { class: "small digest" }, "SHA-256 of the base model that it reads: ", h("code", {}, critic.base_model_sha256)),
  ];
}

async function users(critic, signal) {
  if (!may("jobs:read")) return null;
  const uses = (chosen) => chosen && (chosen.id === critic.id || chosen.fallback === critic.id || (chosen.critics ?? []).some(uses));
  return usersCard(await newestJobs(signal), {
    used: (job) => uses(job.safety.critic),
    title: "Jobs that it measured",
    none: "was measured by it",
    columns: [{ title: "Mean risk", class: "number", cell: (job) => fraction(job.safety.risk_mean) }],
  });
}
