// Projects, their limits and their policies.

import { api, listAll } from "../../api.js";
import { attempt, toast } from "../../components/feedback.js";
import { card, field, moment, select } from "../../components/parts.js";
import { h, replace } from "../../dom.js";

const LIMITS = [
  ["storage_bytes", "Storage, bytes"],
  ["running_jobs", "Jobs that run at once"],
  ["queued_jobs", "Jobs that wait at once"],
  ["gpu_seconds", "GPU time a month, seconds"],
];

export async function show(root, { signal }) {
  const list = h("div", { class: "stack" });
  const ask = async () => {
    const [projects, policies] = await Promise.all([listAll("/v1/projects", { signal }), listAll("/v1/policies", { signal })]);
    replace(list, projects.map((project) => edit(project, policies, ask)));
  };
  await ask();
  replace(root, card("New project", create(ask)), list);
}

function create(done) {
  const name = field("Name", h("input", { required: true, maxlength: 255, autocomplete: "off" }));
  const button = h("button", { class: "button primary" }, "Make the project");
  const submit = async (event) => {
    event.preventDefault();
    await attempt(button, async () => {
      await api("/v1/projects", { method: "POST", body: { name: name.control.value } });
      name.control.value = "";
      await done();
    });
  };
  return h("form", { class: "form", onsubmit: submit }, name, h("div", { class: "actions" }, button));
}

function edit(project, policies, done) {
  const policy = field("Policy", select([["", "The installation's"], ...policies.map((each) => [each.id, `${each.name} ${each.version} (${each.id})`])], project.policy ?? ""));
  const limits = LIMITS.map(([name, title]) => [
    name,
    field(title, h("input", { type: "number", min: 0, value: project.own_limits[name] ?? "", placeholder: project.limits[name] ? String(project.limits[name]) : "no limit" }), { hint: "Empty: the installation's. 0: none." }),
  ]);
  const button = h("button", { class: "button primary" }, "Save");
  const submit = async (event) => {
    event.preventDefault();
    const body = { policy: policy.control.value || null, limits: {} };
    for (const [name, { control }] of limits) body.limits[name] = control.value === "" ? null : Number(control.value);
    await attempt(button, async () => {
      await api(`/v1/projects/${project.id}`, { method: "PATCH", body });
      toast(`Saved ${project.name}.`);
      await done();
    });
  };
  return card(
    project.name,
    h("form", { class: "form", onsubmit: submit }, h("p", { class: "small muted" }, h("code", {}, project.id), ", made ", moment(project.created_at)), policy, h("div", { class: "columns" }, limits.map(([, each]) => each)), h("div", { class: "actions" }, button)),
  );
}
