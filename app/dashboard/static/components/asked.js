// What was asked for of a job, told apart from what came of it: its object has both beside each other.

const FOUND = new Set(["state", "gate", "pause_reason", "waits_for", "protected", "risk_mean", "beta_mean", "attempts", "quality", "base_model", "lineage", "started_at", "steps_completed", "total_steps", "steps_pruned_at"]);

/** Return a job's `safety` or `training`, or a value in them, without what the server has found. */
export function askedOf(value) {
  if (Array.isArray(value)) return value.map(askedOf);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).filter(([name]) => !FOUND.has(name)).map(([name, each]) => [name, askedOf(each)]));
}
