// The project's keys. What opens is shown once, when it is made.

import { api, listAll, may, session } from "../../api.js";
import { askFirst, attempt, notice } from "../../components/feedback.js";
import { badge, card, code, field, moment, select, table } from "../../components/parts.js";
import { h, replace } from "../../dom.js";

const LIFETIMES = [["", "as long as mine"], ["86400", "1 day"], ["2592000", "30 days"], ["7776000", "90 days"], ["31536000", "1 year"]];
const ROLES = [["member", "member: works with files and jobs"], ["owner", "owner: manages keys, too"], ["operator", "operator: everything, in every project"]];

export async function show(root, { signal }) {
  const made = h("div", { "aria-live": "polite" });
  const ask = async () => grid.update(await listAll("/v1/api_keys", { signal }));
  const grid = table({ caption: "Keys", key: (row) => row.id, columns: columns(made, ask, signal) });
  await ask();
  replace(root, may("keys:write") && card("New key", form(made, ask, signal)), made, card("Keys", grid, { flush: true }));
}

function form(made, done, signal) {
  const name = field("Name", h("input", { required: true, maxlength: 255, autocomplete: "off" }), { hint: "Who or what will use it." });
  const role = field("Role", select(ROLES.filter(([each]) => each !== "operator" || may("admin")), "member"));
  const lifetime = field("Opens for", select(LIFETIMES, ""));
  const button = h("button", { class: "button primary" }, "Make the key");
  const submit = async (event) => {
    event.preventDefault();
    await attempt(button, async () => {
      const body = { name: name.control.value, role: role.control.value };
      if (lifetime.control.value) body.expires_in_s = Number(lifetime.control.value);
      showOnce(made, await api("/v1/api_keys", { method: "POST", body, signal }));
      name.control.value = "";
      await done();
    });
  };
  return h("form", { class: "form", onsubmit: submit }, h("div", { class: "columns" }, name, role, lifetime), h("div", { class: "actions" }, button));
}

function showOnce(made, key) {
  replace(made, notice("warn", `The key “${key.name}”: copy it now`, "It is shown once. Nobody, the server included, can look it up later."), code(key.key, { label: "Copy" }));
}

function columns(made, done, signal) {
  return [
    { title: "Name", cell: (key) => [key.name, h("div", { class: "small muted mono" }, key.id), key.id === session.current.key.id && badge("this browser's", "busy")] },
    { title: "Role", cell: (key) => key.role },
    { title: "State", cell: (key) => standing(key) },
    { title: "Created", class: "nowrap", cell: (key) => moment(key.created_at, { relative: true }) },
    { title: "Last used", class: "nowrap", cell: (key) => moment(key.last_used_at, { relative: true }) },
    { title: "Expires", class: "nowrap", cell: (key) => moment(key.expires_at) },
    { title: "", cell: (key) => (may("keys:write") && !key.revoked_at ? actions(key, made, done, signal) : null) },
  ];
}

function standing(key) {
  if (key.revoked_at) return badge("revoked", "bad");
  if (key.expires_at && key.expires_at * 1000 <= Date.now()) return badge("expired", "idle");
  return key.replaced_by ? badge("replaced, still opens", "warn") : badge("opens", "ok");
}

function actions(key, made, done, signal) {
  const act = (title, danger, text, work) => {
    const button = h("button", { class: danger ? "button small danger" : "button small", type: "button", "aria-label": `${title} ${key.name}` }, title);
    return askFirst(button, { title: `${title} the key “${key.name}”?`, text, action: title, danger, signal }, async () => (await work(), await done()));
  };
  return h(
    "div",
    { class: "actions" },
    act("Rotate", false, "A new key takes its place; the old one still opens for a day.", async () => showOnce(made, await api(`/v1/api_keys/${key.id}/rotate`, { method: "POST", body: {}, signal }))),
    act("Revoke", true, "It opens nothing more from now on. Sessions of browsers that use it end, too.", () => api(`/v1/api_keys/${key.id}`, { method: "DELETE", signal })),
  );
}
