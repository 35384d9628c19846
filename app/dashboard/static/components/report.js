// The report on a dataset: what a job would learn from it, what is risky in it, and what to do about either.

import { h } from "../dom.js";
import { bytes, count, duration, fraction } from "../format.js";
import { criticLine } from "./critic.js";
import { notice } from "./feedback.js";
import { card, facts } from "./parts.js";
import { plot } from "./plot.js";
import { riskRows, TREATMENTS } from "./report_rows.js";

/**
 * Return a finished report as cards. `exclude(body)` leaves rows out by the API, or is null where the key may not; what it is
 * given is a body of `POST /v1/files/{id}/exclude`.
 */
export async function reportView(report, { exclude, signal }) {
  return h(
    "div",
    { class: "stack" },
    summary(report),
    remarks(report, exclude),
    await risks(report, exclude, signal),
    report.preview.length ? card("What is trained on", preview(report)) : null,
    await lengths(report, signal),
    card("How the rows are read", format(report)),
  );
}

/** What a job on this data takes, as far as it can be known beforehand. */
function summary(report) {
  const { rows, training, memory, lengths: found } = report;
  const { seconds, reason } = training.time;
  return card("What the job would be", [
    facts(
      [
        ["Rows", `${count(rows.kept)} of ${count(rows.total)}`],
        ["Passes", count(training.n_epochs)],
        ["Steps", count(training.steps)],
        ["Trained tokens", count(training.trained_tokens)],
        ["Longest row", `${count(found.tokens?.max)} tokens`],
        ["Expected mean beta", expectedBeta(training)],
        ["Time of a worker", seconds === null ? "–" : `about ${duration(seconds)}`],
        ["Memory", `about ${bytes(memory.estimated_bytes)}`],
      ],
      { big: true },
    ),
    h("p", { class: "small muted" }, `Time: ${reason}. Memory: ${memory.formula}.`),
  ]);
}

/** The expected mean weight of the KL penalty, with the two numbers that it lies between for sure. */
function expectedBeta(training) {
  const { expected_beta_mean: beta, expected_beta_bounds: bounds } = training;
  return [fraction(beta), bounds && h("span", { class: "small muted nowrap" }, ` ${fraction(bounds[0])} to ${fraction(bounds[1])}`)];
}

function remarks(report, exclude) {
  const { rows, end_of_turn: end, duplicates, leaks } = report;
  const found = [];
  if (rows.refused.count) found.push(withRows("bad", `${count(rows.refused.count)} rows cannot be trained on`, "A job on this file would fail.", rows.refused, exclude));
  if (rows.dropped.count) found.push(notice("warn", `${count(rows.dropped.count)} rows are dropped`, reasonsOf(rows.dropped)));
  if (rows.truncated.count) found.push(notice("warn", `${count(rows.truncated.count)} rows are cut`, `They are longer than ${count(report.policy.max_seq_length)} tokens.`));
  if (!end.trained) found.push(notice("warn", "The end of a turn is not trained", "The model may never learn to stop."));
  if (duplicates.normalised.rows) found.push(repeats(duplicates.normalised, exclude));
  if (leaks?.normalised.rows) found.push(notice("bad", `${count(leaks.normalised.rows)} validation rows are trained on, too`, "The validation loss would be too good. Take them out of one of the files."));
  if (!found.length) found.push(notice("ok", "Nothing stands against training on it", "No row is refused, repeated or cut."));
  return found;
}

function reasonsOf(list) {
  return [...new Set(list.rows.map((row) => row.reason).filter(Boolean))].join("; ");
}

function withRows(tone, title, text, list, exclude) {
  const indices = list.rows.map((each) => each.row);
  const all = indices.length === list.count;
  const element = notice(tone, title, `${text} ${reasonsOf(list)}`, `Rows ${some(indices)}`);
  if (exclude && all) element.append(h("div", { class: "actions" }, leaveOut(`Leave these ${count(indices.length)} rows out`, { rows: indices }, exclude)));
  return element;
}

function repeats({ rows, groups, group_count: all }, exclude) {
  const repeated = groups.flatMap((group) => group.rows.slice(1));
  const element = notice("warn", `${count(rows)} rows repeat another`, `What is said twice is learnt twice. The first: rows ${some(groups[0].rows)}.`);
  if (exclude && repeated.length === rows && groups.length === all) {
    element.append(h("div", { class: "actions" }, leaveOut(`Leave the ${count(rows)} repeats out`, { rows: repeated }, exclude)));
  }
  return element;
}

function some(indices, most = 12) {
  return indices.slice(0, most).join(", ") + (indices.length > most ? ` and ${count(indices.length - most)} more` : "");
}

function leaveOut(text, body, exclude) {
  return h("button", { class: "button small", type: "button", onclick: (event) => exclude(body, event.currentTarget) }, text);
}

async function risks(report, exclude, signal) {
  const { risk } = report;
  if (!risk.distribution) return card("Risk", [criticLine(risk.critic), risk.note && h("p", {}, risk.note)]);
  const drawn = await plot("risk_distribution", {
    label: `How many rows have which risk: ${risk.distribution.map((each) => `${each.bucket}: ${each.rows}`).join("; ")}`,
    values: risk.distribution,
    colours: ["series-risk"],
    columns: [
      { title: "Risk", cell: (row) => row.bucket },
      { title: "Rows", class: "number", cell: (row) => count(row.rows) },
    ],
    signal,
  });
  return card("Risk", [
    criticLine(risk.critic),
    risk.note && h("p", { class: "small" }, risk.note),
    risk.rows_failed ? notice("warn", `${count(risk.rows_failed)} rows could not be measured`, "Each of them is treated as as risky as can be.") : null,
    drawn,
    treatments(risk.treatments),
    riskRows(risk, { exclude, model: report.model }),
  ]);
}

function treatments(found) {
  if (!found) return null;
  const said = Object.entries(found).map(([name, rows]) => `${count(rows)} ${TREATMENTS[name] ?? name}`);
  return h("p", {}, `Rows: ${said.join("; ")}.`);
}

function preview(report) {
  const shown = report.preview.map((each) => [
    h("h3", { class: "small" }, `Row ${each.row}`, h("span", { class: "muted" }, ` · ${count(each.tokens)} tokens, ${count(each.trained_tokens)} trained${each.cut ? ", its beginning" : ""}`)),
    // What is marked is told without colour, too: it is underlined, and read out as inserted text.
    h("p", { class: "segments mono" }, each.segments.map((part) => (part.trained ? h("ins", {}, part.text) : part.text))),
  ]);
  return [h("p", { class: "small muted" }, "The first rows as the model sees them. Underlined is what it learns to write; all else it only reads."), h("div", { class: "previews", tabindex: "0", role: "region", "aria-label": "The first rows, with what is trained on" }, shown)];
}

async function lengths(report, signal) {
  const { tokens } = report.lengths;
  if (!tokens) return null;
  const quantiles = Object.entries(tokens.quantiles ?? {}).map(([share, value]) => [`${(100 * share).toFixed(0)} %`, count(value)]);
  const drawn = await plot("lengths", {
    label: `How long the rows are: from ${tokens.min} to ${tokens.max} tokens, ${fraction(tokens.mean, 1)} on average`,
    caption: `Longest row that is taken: ${count(report.policy.max_seq_length)} tokens; longer ones: ${report.policy.overlength}.`,
    values: tokens.histogram ?? [],
    colours: ["series-beta"],
    columns: [
      { title: "From, tokens", class: "number", cell: (row) => fraction(row.from, 1) },
      { title: "To, tokens", class: "number", cell: (row) => fraction(row.to, 1) },
      { title: "Rows", class: "number", cell: (row) => count(row.rows) },
    ],
    signal,
  });
  return card("Lengths", [drawn, h("h3", { class: "small" }, "So many tokens at most have"), facts(quantiles)]);
}

function format({ format: found }) {
  const example = (title, value) => h("div", {}, h("h3", { class: "small" }, title), h("pre", { class: "json", tabindex: "0", "aria-label": title }, JSON.stringify(value, null, 2)));
  return [
    h("p", {}, "Format ", h("code", {}, found.name), `: ${found.read_as}.`),
    h("div", { class: "columns" }, example("A row in the file", found.before), found.name === "chat" ? null : example("As it is trained on", found.after)),
  ];
}
