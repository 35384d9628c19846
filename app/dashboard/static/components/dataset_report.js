// Asking for a report on a dataset, or for the estimate of a job, until it is there.

import { api } from "../api.js";
import { h, replace } from "../dom.js";
import { pollUntil } from "../live.js";
import { attempt, confirm, loading, notice, problem, toast } from "./feedback.js";
import { card } from "./parts.js";
import { problemTable } from "./problems.js";
import { reportView } from "./report.js";

const EVERY_S = 1.5;

/**
 * Ask for a report by `request(retry)`, wait until it is made, and show it in `place`. `exclude` is as in `reportView`. Raises
 * what the API refuses, so that a form can show it at its field.
 */
export async function showReport(place, request, { exclude, signal, retried = false }) {
  const found = await finished(place, request, { signal, retried });
  if (found.status === "invalid") {
    replace(place, card("This file cannot be trained on", found.problems ? problemTable(found) : h("p", {}, found.message)));
    return;
  }
  if (found.status !== "succeeded") {
    const again = () => showReport(place, request, { exclude, signal, retried: true }).catch((error) => error.name !== "AbortError" && replace(place, problem(error, again)));
    const box = notice("bad", "The report could not be made", found.error?.message ?? `It was ${found.status}.`);
    box.append(h("div", { class: "actions" }, h("button", { class: "button small", type: "button", onclick: again }, "Make it again")));
    replace(place, box);
    return;
  }
  const view = await reportView(found, { exclude, signal });
  if (!signal.aborted) replace(place, view);
}

/** Return the report once it is made; until then `place` says what it waits for. */
async function finished(place, request, { signal, retried }) {
  let said = "running";
  // What was shown before may be of other data.
  replace(place, waiting(said));
  const look = async (asked) => {
    const found = await asked;
    if (isUnderWay(found) && found.status !== said) replace(place, waiting((said = found.status)));
    return found;
  };
  let report = await look(request(retried));
  if (!isUnderWay(report)) return report;
  const ask = async () => (report = await look(report.id ? api(`/v1/reports/${report.id}`, { signal }) : request(false)));
  return pollUntil(ask, (found) => !isUnderWay(found), { everyS: EVERY_S, signal });
}

function isUnderWay({ status }) {
  return status === "running" || status === "validating";
}

function waiting(status) {
  const what = status === "validating" ? "The file is being checked…" : "A worker reads the rows, and the base model reads them once for their risk…";
  return h("div", { class: "stack waiting-report" }, h("p", { class: "muted" }, what), loading("The report", 10));
}

/** Return the function by which a report leaves rows out of a file: it asks first, and hands the new file to `done`. */
export function excluder(file, { signal, done }) {
  return async (body, button) => {
    const what = body.rows ? `${body.rows.length} ${body.rows.length === 1 ? "row" : "rows"}` : `All rows with a risk of ${body.risk_above} or more`;
    const agreed = await confirm({
      title: "Leave rows out?",
      text: [`${what} of ${file.filename} will not be in the new file.`, "The old file stays as it is."],
      action: "Make the new file",
      signal,
    });
    if (!agreed) return;
    await attempt(button, async () => {
      const made = await api(`/v1/files/${file.id}/exclude`, { method: "POST", body, signal });
      toast(`${made.file.filename} was made, without ${made.file.derived_from.excluded} rows.`);
      done(made.file);
    });
  };
}
