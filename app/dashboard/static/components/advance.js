// How far a job is, for both screens of jobs.

import { count, duration } from "../format.js";
import { progress } from "./parts.js";
import { ENDED, stateOf } from "./states.js";

/** A job's progress as a `bar`, its `steps` in words, and the time that is `left` in words, or null where nobody knows. */
export function advanceOf(job) {
  const { steps_completed: done, total_steps: total } = job.training;
  return {
    bar: progress(done, total ?? 1, `Steps of ${job.id}`),
    steps: total ? `${count(done)} of ${count(total)} steps` : "not planned yet",
    left: job.estimated_finish && !ENDED.has(stateOf(job)) ? `about ${duration(job.estimated_finish - Date.now() / 1000)} left` : null,
  };
}
