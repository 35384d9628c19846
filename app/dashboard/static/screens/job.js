// One job: where it stands, its curves as they grow, and everything that it leaves behind.

import { api } from "../api.js";
import { toast } from "../components/feedback.js";
import { card, tabs } from "../components/parts.js";
import { stateOf } from "../components/states.js";
import { h, replace } from "../dom.js";
import { follow, throttle } from "../live.js";
import { showAgain } from "./job/again.js";
import { showCheckpoints } from "./job/checkpoints.js";
import { showCurves } from "./job/curves.js";
import { showDownloads } from "./job/downloads.js";
import { showEvaluations } from "./job/evaluations.js";
import { showEvents } from "./job/events.js";
import { showGate } from "./job/gate.js";
import { showRows } from "./job/rows.js";
import { showSettings } from "./job/settings.js";
import { buildHead } from "./job/summary.js";

const REFRESH_MS = 2000;

export async function show(root, { id, signal }) {
  const path = `/v1/fine_tuning/jobs/${encodeURIComponent(id)}`;
  // The stream begins after what is newest before the list of events is read: an event between the two is in both, and known.
  const [job, newest] = await Promise.all([api(path, { signal }), api(`${path}/events?limit=1`, { signal })]);
  const view = { id, path, signal, job };
  const head = buildHead(view, changed);
  const curves = await showCurves(view);
  const sections = [
    ["Riskiest rows", showRows(view)],
    ["Before and after", showEvaluations(view)],
    ["Gate", showGate(view)],
    ["Events", showEvents(view)],
    ["Checkpoints", showCheckpoints(view)],
    ["Downloads", showDownloads(view)],
    ["Settings", showSettings(view)],
    ["Submit again", showAgain(view)],
  ];
  const parts = [head, curves, ...sections.map(([, section]) => section)];

  function changed(job) {
    const before = stateOf(view.job);
    view.job = job;
    document.title = `${job.suffix ?? job.id} · Tether`;
    for (const part of parts) part.update({ moved: stateOf(job) !== before });
  }

  replace(root, h("div", { class: "stack" }, head, card("Curves", curves), card("Details", tabs(`Details of ${id}`, sections))));
  changed(view.job);
  curves.refresh();
  const read = () => api(path, { signal }).then(changed, () => {});
  watch(view, { read, curves, events: sections[3][1], changed, after: newest.data[0]?.id ?? null });
}

/** Follow what happens from now on; what was before has been asked for by each section. */
function watch(view, { read, curves, events, changed, after }) {
  const refresh = throttle(read, REFRESH_MS, view.signal);
  const close = follow(
    `${view.path}/stream`,
    {
      job: changed,
      event: (event) => {
        events.add(event);
        refresh();
      },
      step: (record) => {
        view.job.training.steps_completed = Math.max(view.job.training.steps_completed, record.step);
        curves.grow(record.step);
        refresh();
      },
      end: ({ reason, message }) => {
        // The other reasons are the server's own; the browser connects again.
        if (reason !== "job_ended" && reason !== "key_revoked") return;
        close();
        if (reason === "key_revoked") toast(message, { bad: true });
        refresh();
        curves.refresh();
      },
    },
    { signal: view.signal, after, refresh: read },
  );
}
