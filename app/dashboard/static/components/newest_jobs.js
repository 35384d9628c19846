// The newest jobs of the project, for screens that look among them for those that used something.

import { listAll } from "../api.js";
import { h } from "../dom.js";
import { count } from "../format.js";
import { card, moment, table } from "./parts.js";
import { protectionBadge, stateBadge, stateOf } from "./states.js";

const MOST = 500;

/** Return the newest jobs of the project. */
export function newestJobs(signal) {
  return listAll("/v1/fine_tuning/jobs", { signal, most: MOST });
}

/** Whether there may be older jobs than these. */
export function isPart(jobs) {
  return jobs.length >= MOST;
}

/** A card of those of the newest jobs that `used` something: `title` says so of some, `none` of no job. `columns` are beside those of every job. */
export function usersCard(newest, { used, title, none, columns = [] }) {
  const jobs = newest.filter(used);
  if (!jobs.length) return card("Jobs", h("p", { class: "muted" }, isPart(newest) ? `None of the newest ${count(newest.length)} jobs of this project ${none}.` : `No job of this project ${none}.`));
  const grid = table({
    caption: title,
    key: (job) => job.id,
    rows: jobs,
    columns: [
      { title: "Job", cell: (job) => h("a", { href: `#/jobs/${job.id}`, class: "mono" }, job.id) },
      { title: "State", cell: (job) => stateBadge(stateOf(job)) },
      { title: "Protection", cell: protectionBadge },
      ...columns,
      { title: "Created", class: "nowrap", cell: (job) => moment(job.created_at) },
    ],
  });
  return card(title, [h("div", { class: "tall" }, grid), isPart(newest) && h("p", { class: "small muted pad" }, `Of the newest ${count(newest.length)} jobs.`)], { flush: true });
}
