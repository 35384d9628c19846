// Stored safety policies. None is ever changed: a change is a new version.

import { api, listAll } from "../../api.js";
import { attempt, empty, toast } from "../../components/feedback.js";
import { card, code, field, moment } from "../../components/parts.js";
import { h, replace } from "../../dom.js";

export async function show(root, { signal }) {
  const list = h("div", { class: "stack" });
  const ask = async () => {
    const policies = await listAll("/v1/policies", { signal });
    replace(list, policies.length ? policies.map(render) : empty("No stored policy", "Every project is under the policy file of the installation."));
  };
  await ask();
  replace(root, card("New policy", create(ask)), list);
}

function create(done) {
  const text = field("Policy, as TOML", h("textarea", { class: "mono", rows: 10, required: true, spellcheck: "false", placeholder: 'name = "two-people"\nversion = 1\n\n[gate]\n…' }), {
    hint: "What it may say is in docs/gate.md and docs/training.md. It holds for a project once it is chosen there.",
  });
  const button = h("button", { class: "button primary" }, "Store the policy");
  const submit = async (event) => {
    event.preventDefault();
    text.complain(null);
    await attempt(button, async () => {
      let made;
      try {
        made = await api("/v1/policies", { method: "POST", body: { toml: text.control.value } });
      } catch (error) {
        text.complain(error.message);
        return;
      }
      toast(`Stored ${made.name} ${made.version} as ${made.id}.`);
      text.control.value = "";
      await done();
    });
  };
  return h("form", { class: "form", onsubmit: submit }, text, h("div", { class: "actions" }, button));
}

function render(policy) {
  const body = h("div", {});
  const open = async (event) => {
    if (!event.target.open || body.hasChildNodes()) return;
    await attempt(null, async () => replace(body, code((await api(`/v1/policies/${policy.id}`)).content)));
  };
  return card(
    `${policy.name} ${policy.version}`,
    h("div", {}, h("p", { class: "small muted" }, h("code", {}, policy.id), ", stored ", moment(policy.created_at), " by ", h("code", {}, policy.created_by)), h("details", { ontoggle: open }, h("summary", {}, "Its text"), body)),
  );
}
