// The code that would submit this job again, for the three clients.

import { askedOf } from "../../components/asked.js";
import { code, tabs } from "../../components/parts.js";
import { h, replace } from "../../dom.js";

/** Code for the job in `view`. */
export function showAgain(view) {
  const element = h("div", { class: "stack" });
  let drawn = null;
  const update = () => {
    const body = requestOf(view.job);
    const stamp = JSON.stringify(body);
    if (stamp === drawn) return;
    drawn = stamp;
    replace(
      element,
      h("p", {}, "The same data, seed and settings, as they were resolved. The key comes from the environment; nothing here has it."),
      tabs("Client", [
        ["Python", code(python(body))],
        ["curl", code(curl(body))],
        ["tether", code(cli(body))],
      ]),
    );
  };
  update();
  return Object.assign(element, { update });
}

/** The body of the request that makes this job again. */
function requestOf(job) {
  const body = {
    model: job.training.lineage[0]?.model ?? job.model,
    training_file: job.training_file,
    validation_file: job.validation_file,
    suffix: job.suffix,
    seed: job.seed,
    metadata: job.metadata,
    method: { type: "supervised", supervised: { hyperparameters: job.hyperparameters } },
    safety: askedOf(job.safety),
    training: present(askedOf(job.training)),
    integrations: job.integrations.length ? job.integrations : null,
    priority: job.priority || null,
  };
  return present(body);
}

function present(values) {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null && value !== undefined));
}

function python(body) {
  const { safety, training, priority, ...known } = body;
  const extra = { safety, training, ...(priority === undefined ? {} : { priority }) };
  const lines = Object.entries(known).map(([name, value]) => `    ${name}=${literal(value, 4)},`);
  return `import os

from openai import OpenAI

client = OpenAI(base_url="${location.origin}/v1", api_key=os.environ["TETHER_API_KEY"])
job = client.fine_tuning.jobs.create(
${lines.join("\n")}
    extra_body=${literal(extra, 4)},
)
print(job.id)`;
}

function curl(body) {
  return `curl --fail-with-body ${location.origin}/v1/fine_tuning/jobs \\
  -H "Authorization: Bearer $TETHER_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d ${quote(JSON.stringify(body, null, 2))}`;
}

function cli(body) {
  const { n_epochs: epochs, batch_size: batch, learning_rate_multiplier: factor } = body.method.supervised.hyperparameters;
  const option = (name, value) => (value === undefined || value === null ? [] : [`--${name} ${quote(typeof value === "object" ? JSON.stringify(value) : String(value))}`]);
  const words = [
    `TETHER_URL=${location.origin} tether jobs create`,
    ...option("model", body.model),
    ...option("training-file", body.training_file),
    ...option("validation-file", body.validation_file),
    ...option("safety", body.safety),
    ...option("training", body.training),
    ...option("epochs", epochs),
    ...option("batch-size", batch),
    ...option("learning-rate-multiplier", factor),
    ...option("suffix", body.suffix),
    ...option("seed", body.seed),
    ...option("priority", body.priority),
    ...Object.entries(body.metadata ?? {}).flatMap(([name, value]) => option("metadata", `${name}=${value}`)),
    ...(body.integrations ?? []).flatMap((each) => option("integration", each)),
  ];
  return words.join(" \\\n  ");
}

/** A word of a shell, whatever is in it. */
function quote(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** A JSON value as Python writes it. */
function literal(value, indent) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const pad = " ".repeat(indent + 4);
  const entries = Array.isArray(value) ? value.map((each) => literal(each, indent + 4)) : Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literal(each, indent + 4)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return entries.length ? `${open}\n${pad}${entries.join(`,\n${pad}`)},\n${" ".repeat(indent)}${close}` : open + close;
}
