// Whether jobs can run, what is missing where they cannot, and how long the queue is.

import { may, noteConnection, send } from "../../api.js";
import { notice } from "../../components/feedback.js";
import { badge, card, facts, table } from "../../components/parts.js";
import { h, replace } from "../../dom.js";
import { count, duration } from "../../format.js";
import { poll } from "../../live.js";

const EVERY_S = 5;

export async function show(root, { signal }) {
  const head = h("div", { class: "stack" });
  // The table is made once: the keyboard may be in it while its numbers change.
  const grid = table({ caption: "Workers and queues", key: (row) => row.queue, columns: columns() });
  const log = h("div", { class: "stack" });
  const ask = async () => {
    // Said first, and whatever becomes of the numbers: what was ready once must not stay green.
    replace(head, standing(await readiness(signal)));
    if (!may("metrics:read")) return;
    const metrics = await collect(signal);
    grid.update(queues(metrics));
    replace(log, record(metrics));
  };
  await ask();
  replace(root, head, may("metrics:read") ? [card("Workers and queues", grid, { flush: true }), log] : h("p", { class: "muted small" }, "Workers and queues are for keys with the scope metrics:read."));
  poll(ask, { everyS: EVERY_S, signal });
}

/** Return the status and the body of /readyz, each null where there is none. Its 503 with what is missing is an answer. */
async function readiness(signal) {
  let reply = null;
  let body = null;
  try {
    reply = await fetch("/readyz", { signal });
    body = await reply.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  noteConnection(reply !== null);
  return { status: reply?.status ?? null, body };
}

/** What is neither "ready" nor a list of what is missing comes from a proxy or a defect, and says nothing about jobs. */
function standing({ status, body }) {
  const advice = body?.advice ?? [];
  return [
    status === 200 && body?.status === "ready"
      ? notice("ok", "Jobs can run", "Database, broker, storage, workers and notary answer.")
      : status === 503 && body?.missing?.length
        ? notice("bad", "Jobs cannot run", ...body.missing)
        : notice("warn", "Whether jobs can run is unknown", status === null ? "The server cannot be reached." : `The server answered with status ${status} and does not say what it lacks.`),
    advice.length ? notice("warn", "Advice", ...advice) : null,
  ];
}

/** Return a function from a metric's name to its samples, [{ labels, value }]. */
async function collect(signal) {
  const text = await (await send("/metrics", { signal })).text();
  const samples = text.split("\n").flatMap((line) => {
    const found = /^(tether_\w+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found) return [];
    const labels = Object.fromEntries([...(found[2] ?? "").matchAll(/(\w+)="([^"]*)"/g)].map(([, name, value]) => [name, value]));
    return [{ name: found[1], labels, value: Number(found[3]) }];
  });
  return (name) => samples.filter((sample) => sample.name === name);
}

function queues(metrics) {
  const of = (name, queue) => metrics(name).find((sample) => sample.labels.queue === queue)?.value ?? 0;
  return [...new Set(["gpu", "cpu", "notary", ...metrics("tether_workers").map((sample) => sample.labels.queue)])].map((queue) => ({
    queue,
    workers: of("tether_workers", queue),
    length: of("tether_queue_length", queue),
    oldest: of("tether_queue_oldest_seconds", queue),
  }));
}

function columns() {
  return [
    { title: "Queue", cell: (row) => row.queue },
    { title: "Workers", cell: (row) => (row.workers ? badge(`${row.workers} alive`, "ok") : badge("none", "bad")) },
    { title: "Waiting", class: "number", cell: (row) => count(row.length) },
    { title: "Longest wait", class: "number", cell: (row) => (row.length ? duration(row.oldest) : "–") },
  ];
}

function record(metrics) {
  const one = (name) => metrics(name)[0]?.value;
  const jobs = metrics("tether_jobs").filter((sample) => sample.value > 0);
  const lag = one("tether_anchor_lag_seconds");
  return [
    card(
      "The installation's log",
      facts([
        ["Notary", one("tether_notary_refuses") ? badge("refuses to sign", "bad") : badge("signs", "ok")],
        ["Acts in no log yet", count(one("tether_log_pending_events"))],
        ["Oldest checkpoint that is not outside", lag === undefined ? "no anchor is set" : duration(lag)],
      ]),
    ),
    card("Jobs of all projects by state", jobs.length ? facts(jobs.map(({ labels, value }) => [labels.state, count(value)])) : h("p", { class: "muted" }, "None yet.")),
  ];
}
