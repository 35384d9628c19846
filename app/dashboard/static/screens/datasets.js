// The files of the project: training data, prompts for evaluations, and what jobs left.

import { listAll, may } from "../api.js";
import { empty, notice, toast } from "../components/feedback.js";
import { badge, card, field, moment, pageHead, select, table } from "../components/parts.js";
import { isPart, newestJobs } from "../components/newest_jobs.js";
import { uploader } from "../components/upload.js";
import { h, replace } from "../dom.js";
import { bytes, count } from "../format.js";
import { poll } from "../live.js";

const EVERY_S = 5;
// As often while no file is being checked: only somebody else changes the list then.
const REST_S = 30;
const MOST = 1000;
const PURPOSES = { "fine-tune": "Training data", user_data: "Prompts and labelled data", "fine-tune-results": "Results of a job" };
const STATUSES = { processed: ["Good", "ok"], uploaded: ["Being checked", "busy"], error: ["Cannot be used", "bad"] };

/** Whether a file can be used, as a badge. */
export function fileBadge(file) {
  const [text, tone] = STATUSES[file.status] ?? [file.status, "idle"];
  return badge(text, tone, file.status_details);
}

export async function show(root, { query, signal }) {
  let files = [];
  let jobs = [];
  let users = new Map();
  let askedMs = 0;
  const search = field("Search", h("input", { type: "search", value: query.get("q") ?? "", placeholder: "Name or id" }));
  const purpose = field("Kind", select([["", "All"], ...Object.entries(PURPOSES)], query.get("purpose") ?? "fine-tune"));
  const grid = table({ caption: "Files", key: (row) => row.id, columns: columns() });
  const nothing = h("div", {});
  const total = h("p", { class: "muted small", role: "status" });
  const redraw = () => {
    const text = search.control.value.toLowerCase();
    const wanted = files.filter((file) => (!purpose.control.value || file.purpose === purpose.control.value) && `${file.filename}\n${file.id}`.toLowerCase().includes(text));
    grid.update(wanted.map((file) => ({ ...file, jobs: users.get(file.id) ?? [] })));
    grid.hidden = !wanted.length;
    total.textContent = files.length ? `${count(wanted.length)} of ${count(files.length)} files${files.length >= MOST ? ", the newest" : ""}${isPart(jobs) ? `; used by: of the newest ${count(jobs.length)} jobs` : ""}` : "";
    replace(nothing, wanted.length ? null : files.length ? empty("No file is like that", "Change the search or the kind.") : empty("No data yet", "Send a file of JSON lines, one example a line; it is checked at once, and every problem in it is named."));
  };
  const ask = async () => {
    jobs = may("jobs:read") ? await newestJobs(signal) : [];
    files = await listAll("/v1/files", { signal, most: MOST, limit: 1000 });
    users = usersOf(jobs);
    askedMs = performance.now();
    redraw();
  };
  for (const control of [search.control, purpose.control]) {
    control.addEventListener("input", () => {
      const kept = new URLSearchParams({ purpose: purpose.control.value, q: search.control.value });
      history.replaceState(null, "", `#/datasets?${kept}`);
      redraw();
    });
  }
  await ask();
  replace(
    root,
    pageHead("Datasets", { subtitle: "What jobs learn from, and what models are asked in evaluations." }),
    h(
      "div",
      { class: "stack" },
      may("files:write") ? card("Send a file", sender(signal)) : notice("idle", null, "Your key may look at files and not send any; that needs the scope files:write."),
      h("div", { class: "filters" }, search, purpose),
      h("div", { class: "card" }, h("div", { class: "body flush" }, grid, nothing)),
      total,
    ),
  );
  redraw();
  const isDue = () => performance.now() - askedMs >= 1000 * (files.some((file) => file.status === "uploaded") ? EVERY_S : REST_S);
  poll(async () => (isDue() ? ask() : null), { everyS: EVERY_S, signal });
}

function sender(signal) {
  const kind = field("What it is for", select([["fine-tune", "To train on"], ["user_data", "Prompts of an evaluation, or labelled requests of a critic"]], "fine-tune"));
  const done = (file) => {
    toast(`${file.filename} was taken.`);
    location.hash = `#/datasets/${file.id}`;
  };
  const place = uploader({ purpose: () => kind.control.value, hint: "or drop one here: JSON lines, UTF-8", done, signal });
  return h("div", { class: "stack" }, h("div", { class: "filters" }, kind), place);
}

function columns() {
  return [
    { title: "File", cell: (file) => [h("a", { href: `#/datasets/${file.id}` }, file.filename), h("div", { class: "muted small mono" }, file.id)] },
    { title: "Kind", cell: (file) => PURPOSES[file.purpose] ?? file.purpose },
    { title: "State", cell: (file) => fileBadge(file) },
    { title: "Rows", class: "number", cell: (file) => count(file.rows) },
    { title: "Size", class: "number nowrap", cell: (file) => bytes(file.bytes) },
    { title: "Used by", cell: (file) => usedBy(file) },
    { title: "Created", class: "nowrap", cell: (file) => moment(file.created_at, { relative: true }) },
  ];
}

function usedBy({ jobs }) {
  if (!jobs.length) return h("span", { class: "muted" }, "–");
  if (jobs.length === 1) return h("a", { href: `#/jobs/${jobs[0]}`, class: "mono small" }, jobs[0]);
  return h("span", {}, `${count(jobs.length)} jobs`);
}

/** Which jobs learn from a file, are validated by it, or left it. */
function usersOf(jobs) {
  const users = new Map();
  for (const job of jobs) {
    for (const file of new Set([job.training_file, job.validation_file, ...(job.result_files ?? [])])) {
      if (file) users.set(file, [...(users.get(file) ?? []), job.id]);
    }
  }
  return users;
}
