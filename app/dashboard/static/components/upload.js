// Sending a file: dropped or chosen, in parts where it is large, with what is wrong with it line by line.

import { api, ApiError, listAll } from "../api.js";
import { h, replace } from "../dom.js";
import { bytes, count, percent } from "../format.js";
import { pollUntil } from "../live.js";
import { attempt, problem } from "./feedback.js";
import { dropZone } from "./parts.js";
import { badLines, problemTable, withoutLines } from "./problems.js";

const ONE_REQUEST_BYTES = 8 * 1024 * 1024;
const PART_BYTES = 8 * 1024 * 1024;
const EVERY_S = 1;

/**
 * Send a file and return its object, once it was checked or needs a worker for that. `progress` is called with the share that
 * is sent. Raises ApiError, with every problem of the file in its details.
 */
async function sendFile(file, { purpose, signal, progress }) {
  if (file.size <= ONE_REQUEST_BYTES) {
    const form = new FormData();
    form.append("purpose", purpose);
    form.append("file", file, file.name);
    return api("/v1/files", { method: "POST", body: form, signal });
  }
  const body = { filename: file.name, purpose, bytes: file.size, mime_type: "application/jsonl" };
  const upload = await api("/v1/uploads", { method: "POST", body, signal });
  try {
    const parts = [];
    for (let start = 0; start < file.size; start += PART_BYTES) {
      const form = new FormData();
      form.append("data", file.slice(start, start + PART_BYTES), "part");
      parts.push((await api(`/v1/uploads/${upload.id}/parts`, { method: "POST", body: form, signal })).id);
      progress(Math.min(1, (start + PART_BYTES) / file.size));
    }
    return (await api(`/v1/uploads/${upload.id}/complete`, { method: "POST", body: { part_ids: parts }, signal })).file;
  } catch (error) {
    // Without this its parts would take the project's room for an hour.
    api(`/v1/uploads/${upload.id}/cancel`, { method: "POST" }).catch(() => {});
    throw error;
  }
}

/**
 * A place to send a file from; a second file takes the place of one that is under way. `purpose()` is what files are for, and
 * `done` is given the file's object once it is known to be good.
 */
export function uploader({ purpose = () => "fine-tune", label = "Choose a file", hint, done, signal }) {
  const place = h("div", { class: "stack" });
  let sending = new AbortController();

  async function take(file) {
    sending.abort();
    sending = new AbortController();
    const mine = sending;
    const either = AbortSignal.any([signal, mine.signal]);
    const bar = h("progress", { max: 1, "aria-label": `Sending ${file.name}` });
    const said = h("span", { class: "small muted" }, bytes(file.size));
    const cancel = h("button", { class: "button small", type: "button", onclick: () => mine.abort() }, "Stop");
    replace(place, h("div", { class: "sending", role: "status" }, h("strong", {}, `Sending ${file.name}`), bar, h("div", { class: "row" }, said, cancel)));
    const progress = (share) => {
      bar.value = share;
      said.textContent = `${percent(share, 0)} of ${bytes(file.size)}`;
    };
    try {
      const sent = await sendFile(file, { purpose: purpose(), signal: either, progress });
      const checked = await waitUntilChecked(sent, place, either);
      if (checked.status === "error") throw new ApiError(400, { message: checked.status_details ?? "The file cannot be used.", code: "invalid_training_file" }, null);
      replace(place);
      done(checked);
    } catch (error) {
      if (sending !== mine) return;
      if (error.name === "AbortError") replace(place, h("p", { class: "muted" }, "Stopped; nothing was kept."));
      else replace(place, refused(error, file, take));
      place.firstChild?.scrollIntoView({ block: "nearest" });
    }
  }

  return h("div", { class: "stack" }, dropZone({ label, hint, accept: ".jsonl,.ndjson,application/jsonl,text/plain", take }), place);
}

function refused(error, file, take) {
  const found = error.details ?? {};
  if (!found.problems) return problem(error, () => take(file));
  const lines = badLines(found, file);
  const mend = () => attempt(null, async () => take(await withoutLines(file, lines)));
  return h(
    "div",
    { class: "stack", role: "alert" },
    h("div", { class: "notice tone-bad" }, h("h3", {}, `${file.name} was not taken`), h("p", {}, "Mend these lines and send the file again. Nothing was stored.")),
    problemTable(found),
    lines && h("div", { class: "actions" }, h("button", { class: "button", type: "button", onclick: mend }, `Leave out ${lines.length === 1 ? "this line" : `these ${count(lines.length)} lines`} and send the rest`)),
  );
}

/** Wait for the worker that checks a large file. */
function waitUntilChecked(file, place, signal) {
  if (file.status !== "uploaded") return file;
  replace(place, h("p", { role: "status", class: "notice tone-busy" }, `${file.filename} is being checked.`));
  return pollUntil(() => api(`/v1/files/${file.id}`, { signal }), (now) => now.status !== "uploaded", { everyS: EVERY_S, signal });
}

/** The data files of the project that a job may learn from, newest first. */
export function listDatasets(signal) {
  return listAll("/v1/files?purpose=fine-tune", { signal, most: 500 });
}
