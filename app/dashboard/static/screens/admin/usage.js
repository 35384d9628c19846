// What the project has used, and what it may.

import { api } from "../../api.js";
import { problem } from "../../components/feedback.js";
import { card, facts, field, table } from "../../components/parts.js";
import { nameOf } from "../../components/states.js";
import { h, replace } from "../../dom.js";
import { bytes, count, duration, UNKNOWN } from "../../format.js";

export async function show(root, { signal }) {
  const month = field("Month (UTC)", h("input", { type: "month" }));
  const body = h("div", { class: "stack" });
  const ask = async () => {
    const asked = month.control.value;
    const usage = await api(`/v1/usage${asked ? `?month=${asked}` : ""}`, { signal });
    // Another month may have been chosen meanwhile.
    if (month.control.value !== asked) return;
    month.control.value ||= usage.month;
    replace(body, render(usage));
  };
  const change = async () => {
    try {
      await ask();
    } catch (error) {
      if (error.name !== "AbortError") replace(body, problem(error, change));
    }
  };
  month.control.addEventListener("change", change);
  await ask();
  replace(root, h("div", { class: "filters" }, month), body);
}

function render(usage) {
  const { limits } = usage;
  const of = (value, limit, format) => `${format(value)}${limit ? ` of ${format(limit)}` : ", no limit"}`;
  const running = Object.entries(usage.jobs).reduce((sum, [state, n]) => sum + (["starting", "running", "pausing", "finalising"].includes(state) ? n : 0), 0);
  return [
    card(
      `Project ${usage.project_name}`,
      facts([
        ["Storage", of(usage.storage_bytes, limits.storage_bytes, bytes)],
        [`GPU time in ${usage.month}`, of(usage.gpu_seconds, limits.gpu_seconds, duration)],
        ["Jobs that run", of(running, limits.running_jobs, count)],
        ["Jobs that wait", of(usage.jobs.queued ?? 0, limits.queued_jobs, count)],
        ["Tokens trained", count(usage.trained_tokens)],
      ]),
    ),
    card("Jobs by state", Object.keys(usage.jobs).length ? facts(Object.entries(usage.jobs).map(([state, n]) => [nameOf(state), count(n)])) : h("p", { class: "muted" }, "No job yet.")),
    card(
      "GPU time by day (UTC)",
      usage.gpu_seconds_by_day.length
        ? table({ caption: "GPU time by day", key: (row) => row.date, rows: usage.gpu_seconds_by_day, columns: [{ title: "Day", cell: (row) => row.date }, { title: "GPU time", class: "number", cell: (row) => duration(row.gpu_seconds) }] })
        : h("p", { class: "muted" }, UNKNOWN),
      { flush: usage.gpu_seconds_by_day.length > 0 },
    ),
  ];
}
