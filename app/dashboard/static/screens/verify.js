// The record of a job, recomputed here: nothing that the server says about it is believed.

import { listAll, may, send, session } from "../api.js";
import { loading, notice, problem } from "../components/feedback.js";
import { badge, card, dropZone, facts, field, pageHead, select } from "../components/parts.js";
import { h, replace } from "../dom.js";
import { bytes, count } from "../format.js";

const KEPT = "tether-trust";
const OUTCOMES = { ok: ["ok", "Holds"], failed: ["bad", "Fails"], "not checked": ["warn", "Not checked"], "not reached": ["idle", "Not reached"] };

export async function show(root, { query, signal }) {
  if (!globalThis.crypto?.subtle) {
    replace(root, pageHead("Verify"), notice("warn", "This browser computes no hashes here", "It does so over HTTPS, or at localhost. Open the page there, or verify the bundle with tether verify."));
    return;
  }
  const chosen = { bundle: null, adapter: null };
  const result = h("div", { class: "stack", "aria-live": "polite" });
  const button = h("button", { class: "button primary", type: "button", disabled: true }, "Verify");
  const bundleName = h("p", { class: "muted", role: "status" }, "No bundle chosen.");
  const adapterName = h("p", { class: "muted small", role: "status" }, "Optional.");
  const trust = field("Trust policy", h("textarea", { class: "mono", spellcheck: "false", rows: 5, value: localStorage.getItem(KEPT) ?? "", placeholder: '[[logs]]\norigin = "…"\nkeys = ["…"]' }), {
    hint: "What “tether log trust” prints. Get it from whoever runs the service by a way that does not pass through it; without one the signature is not checked.",
  });
  let fetching = new AbortController();
  let checking = new AbortController();
  // A verdict is about the files and the policy that it was asked for, and stands beside no others.
  const forget = () => {
    checking.abort();
    replace(result);
    button.disabled = chosen.bundle === null;
  };
  const take = (file, name) => {
    fetching.abort();
    chosen.bundle = file;
    bundleName.textContent = `${name}, ${bytes(file.size)}`;
    forget();
  };
  const takeAdapter = (file) => {
    chosen.adapter = file;
    adapterName.textContent = `${file.name}, ${bytes(file.size)}`;
    forget();
  };
  /** Fetch the bundle of a job as any client would. */
  const fetchBundle = async (job) => {
    fetching.abort();
    fetching = new AbortController();
    chosen.bundle = null;
    forget();
    bundleName.textContent = job ? `Fetching the bundle of ${job}…` : "No bundle chosen.";
    if (!job) return;
    try {
      const reply = await send(`/v1/fine_tuning/jobs/${job}/evidence`, { signal: AbortSignal.any([signal, fetching.signal]) });
      take(await reply.blob(), `${job}-evidence.zip`);
    } catch (error) {
      if (error.name !== "AbortError") bundleName.textContent = error.message;
    }
  };
  trust.control.addEventListener("input", forget);
  button.addEventListener("click", () => {
    checking = new AbortController();
    verify(chosen, trust, result, button, AbortSignal.any([signal, checking.signal]));
  });
  replace(
    root,
    pageHead("Verify", { subtitle: "Chain, tree and signature of a job's record are computed again in this browser, check by check." }),
    h(
      "div",
      { class: "stack" },
      h(
        "div",
        { class: "columns" },
        card("The bundle", h("div", { class: "stack" }, dropZone({ label: "Choose a bundle", hint: "or drop an evidence.zip here; it does not leave this browser", accept: ".zip", take: (file) => take(file, file.name) }), jobPicker(fetchBundle, query.get("job"), signal), bundleName)),
        card("Whom you trust", h("div", { class: "stack" }, trust, dropZone({ label: "Choose an adapter", hint: "or drop an adapter.zip, to see whether it is the one on record", accept: ".zip", take: takeAdapter }), adapterName)),
      ),
      h("div", { class: "actions" }, button),
      result,
    ),
  );
}

/** A choice among the jobs of the project; `choose` is called with the id of one, or with an empty one. */
function jobPicker(choose, wanted, signal) {
  if (!session.current || !may("audit:read") || !may("jobs:read")) return h("p", { class: "small muted" }, "Your key may not download evidence; drop a bundle that you have.");
  const picker = select([["", "Loading the jobs…"]], "");
  picker.addEventListener("change", () => choose(picker.value));
  const fill = async () => {
    const jobs = await listAll("/v1/fine_tuning/jobs", { signal, most: 200 });
    replace(picker, h("option", { value: "" }, jobs.length ? "Choose a job" : "There is no job yet"), jobs.map((job) => h("option", { value: job.id }, `${job.id} · ${job.safety.state}`)));
    if (wanted) {
      if (!jobs.some((job) => job.id === wanted)) picker.append(h("option", { value: wanted }, wanted));
      picker.value = wanted;
      await choose(wanted);
    }
  };
  fill().catch((error) => error.name !== "AbortError" && replace(picker, h("option", { value: "" }, error.message)));
  return field("Or a job of this project", picker);
}

function verify({ bundle, adapter }, trust, result, button, signal) {
  localStorage.setItem(KEPT, trust.control.value);
  trust.complain(null);
  button.disabled = true;
  const progress = h("p", { class: "muted", role: "status" }, "Reading…");
  replace(result, progress, loading("Verifying", 4));
  const worker = new Worker("/dashboard/static/verify/worker.js", { type: "module" });
  const stop = () => {
    worker.terminate();
    button.disabled = false;
  };
  signal.addEventListener("abort", stop, { once: true });
  const hear = ({ data }) => {
    if (data.kind === "progress") progress.textContent = `${count(data.records)} records read`;
    else if (data.kind === "done") replace(result, report(data.report));
    else if (data.kind === "policy") {
      trust.complain(data.message);
      replace(result);
    } else replace(result, notice("bad", "This could not be verified", data.message));
    if (data.kind !== "progress") stop();
  };
  worker.addEventListener("message", hear, { signal });
  worker.addEventListener("error", (event) => {
    replace(result, problem(new Error(event.message)));
    stop();
  }, { signal });
  worker.postMessage({ bundle, adapter, trust: trust.control.value.trim() || null });
}

function report({ checks, facts: found, bad }) {
  const failed = checks.filter((each) => each.outcome === "failed");
  const open = checks.filter((each) => each.outcome === "not checked");
  const holds = (name) => checks.find((each) => each.name === name).outcome === "ok";
  const signed = holds("signature");
  const verdict = failed.length
    ? notice("bad", "This record does not hold", `${failed.length} of ${checks.length} checks failed; the first is “${failed[0].name}”.`)
    : signed && holds("end")
      ? notice("ok", "No check failed", "The record is whole, and signed by a key that you trust.")
      : signed
        ? notice("warn", "No check failed, and the job has not ended", "What is under the signed head was not changed since; the last records may not be under it yet, and are nobody's word.")
      : notice("warn", "No check failed, and the signature was not checked", "Somebody who made the whole bundle anew would not be noticed. Give the trust policy of whoever runs the service.");
  verdict.id = "verdict";
  return [
    verdict,
    card("What was read", facts([["Job", found.job ?? "–"], ["State", found.state ?? "–"], ["Records", count(found.records)], ["Root", found.root ? h("code", {}, found.root) : "–"]])),
    bad && card("The first bad record", h("div", { class: "stack" }, h("p", {}, bad.record === null ? `In ${bad.member}; no single line is to blame.` : `Line ${bad.record} of ${bad.member}, counted from 0.`), bad.text && h("div", { class: "code" }, h("pre", { tabindex: "0" }, h("code", {}, pretty(bad.text)))))),
    card("Check by check", h("ol", { class: "checks" }, checks.map(line))),
    h("p", { class: "small muted" }, `${open.length} not checked. Whether every beta is what the control law gives, whether each row was trained on as planned, and what evaluations and the gate found is checked by `, h("code", {}, "tether verify"), " and by the one-file verifier that ", h("code", {}, "make verifier"), " builds."),
  ];
}

function line({ name, title, outcome, detail }) {
  const [tone, word] = OUTCOMES[outcome];
  return h("li", { "data-check": name, "data-outcome": outcome }, h("div", { class: "row" }, badge(word, tone), h("strong", {}, name)), h("p", {}, title), h("p", { class: "small muted" }, detail));
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
