// The states of a job, in words that do not need the documentation.

import { badge } from "./parts.js";

const STATES = {
  validating: ["Checking data", "busy", "Its data file is still being checked."],
  queued: ["Queued", "idle", "It waits for a worker."],
  starting: ["Starting", "busy", "A worker verifies digests and loads the model."],
  running: ["Running", "busy", "The reference pass or a training step is under way."],
  pausing: ["Pausing", "warn", "Its last step is done; the checkpoint is being written."],
  paused: ["Paused", "warn", "It holds no device, and goes on after its last step when it is resumed."],
  finalising: ["Finalising", "busy", "The last step is on record; the adapter is being published."],
  signing: ["Signing", "busy", "Its record is complete and waits for the notary's signature."],
  held: ["Held", "held", "The policy's gate keeps the weights until somebody releases or rejects them."],
  succeeded: ["Succeeded", "ok", "Its record is complete and signed, and its weights may leave."],
  failed: ["Failed", "bad", "It ended by an error."],
  cancelled: ["Cancelled", "idle", "It ended at somebody's wish."],
};

export const ENDED = new Set(["succeeded", "failed", "cancelled"]);

/** The finer state of a job. */
export function stateOf(job) {
  return job.safety.state;
}

/** What a state is called. */
export function nameOf(state) {
  return STATES[state]?.[0] ?? state;
}

/** A state as a badge. */
export function stateBadge(state) {
  const [text, tone, meaning] = STATES[state] ?? [state, "idle", null];
  return badge(text, tone, meaning);
}

/** How far other work is, such as an evaluation, as a badge. */
export function workBadge(status, { text = status, title = null } = {}) {
  return badge(text, { succeeded: "ok", failed: "bad", cancelled: "idle", queued: "idle" }[status] ?? "busy", title);
}

/** What the policy's gate says of a job, or null where it has none. */
export function gateBadge(gate) {
  if (!gate) return null;
  const verdict = gate.verdict ?? gate.start?.verdict;
  const tone = { pass: "ok", warn: "warn", hold: "held", pause: "held", fail: "bad", tighten: "warn" }[verdict] ?? "idle";
  return badge(verdict ?? "not yet", tone, `The gate of the policy ${gate.policy?.name ?? gate.policy ?? ""}`);
}

/** A job that was trained without protection is told as that everywhere. */
export function protectionBadge(job) {
  return job.safety.protected ? badge(job.safety.method, "ok", "Trained under a safety method") : badge("unprotected", "bad", "Trained without a safety method");
}
