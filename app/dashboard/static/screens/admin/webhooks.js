// Where events are sent, and what became of each delivery.

import { api, listAll, may } from "../../api.js";
import { askFirst, attempt, empty, notice, toast } from "../../components/feedback.js";
import { badge, card, code, field, moment, table } from "../../components/parts.js";
import { h, newId, replace } from "../../dom.js";

const TONES = { delivered: "ok", failed: "bad", pending: "busy" };

export async function show(root, { signal }) {
  const made = h("div", { "aria-live": "polite" });
  const list = h("div", { class: "stack" });
  const types = (await api("/v1/webhook_event_types", { signal })).data;
  const ask = async () => {
    const endpoints = await listAll("/v1/webhook_endpoints", { signal });
    replace(list, endpoints.length ? endpoints.map((each) => endpoint(each, made, ask, signal)) : empty("No endpoint", "Events of jobs can be sent to a server of yours, signed."));
  };
  await ask();
  replace(root, may("webhooks:write") && card("New endpoint", create(types, made, ask, signal)), made, list);
}

function create(types, made, done, signal) {
  const name = field("Name", h("input", { required: true, maxlength: 255, autocomplete: "off" }));
  const url = field("URL", h("input", { type: "url", required: true, placeholder: "https://hooks.example.com/tether" }), { hint: "Reached by HTTPS at a public address, unless the operator named the host." });
  const boxes = types.map((type) => {
    const id = newId("type");
    return h("div", { class: "row" }, h("input", { type: "checkbox", id, value: type, checked: true }), h("label", { for: id, class: "mono" }, type));
  });
  const button = h("button", { class: "button primary" }, "Add the endpoint");
  const submit = async (event) => {
    event.preventDefault();
    await attempt(button, async () => {
      const chosen = boxes.map((box) => box.querySelector("input")).filter((each) => each.checked);
      const body = { name: name.control.value, url: url.control.value, event_types: chosen.map((each) => each.value) };
      showOnce(made, await api("/v1/webhook_endpoints", { method: "POST", body, signal }));
      await done();
    });
  };
  return h("form", { class: "form", onsubmit: submit }, h("div", { class: "columns" }, name, url), h("fieldset", { class: "plain stack" }, h("legend", {}, "Events"), boxes), h("div", { class: "actions" }, button));
}

function showOnce(made, endpoint) {
  replace(made, notice("warn", `The signing secret of “${endpoint.name}”: copy it now`, "It is shown once. The receiver checks signatures with it."), code(endpoint.signing_secret));
}

function endpoint(found, made, done, signal) {
  const path = `/v1/webhook_endpoints/${found.id}`;
  const readLog = async () => {
    const deliveries = (await api(`${path}/deliveries?limit=50`, { signal })).data;
    grid.update(deliveries);
    grid.hidden = !deliveries.length;
    nothing.hidden = deliveries.length > 0;
  };
  const grid = table({ caption: `Deliveries to ${found.name}`, key: (row) => row.id, columns: columns(path, readLog, signal) });
  grid.hidden = true;
  const nothing = h("p", { class: "muted", hidden: true }, "Nothing was sent yet.");
  const act = (title, work, { danger = false, text = null } = {}) => {
    const button = h("button", { class: danger ? "button small danger" : "button small", type: "button", "aria-label": `${title}: ${found.name}` }, title);
    if (text) return askFirst(button, { title: `${title}?`, text, action: title, danger, signal }, work);
    button.addEventListener("click", () => attempt(button, work));
    return button;
  };
  const test = async () => {
    const sent = await api(`${path}/test`, { method: "POST", body: { event_type: found.event_types[0] }, signal });
    toast(`A sample was sent; the receiver answered ${sent.status_code}.`);
    await readLog();
  };
  const rotate = async () => showOnce(made, await api(`${path}/rotate_secret`, { method: "POST", body: { keep_old_secret_active_for_24_hours: true }, signal }));
  const change = async () => {
    await api(path, { method: "POST", body: { enabled: !found.enabled }, signal });
    await done();
  };
  const remove = async () => {
    await api(path, { method: "DELETE", signal });
    await done();
  };
  return card(
    found.name,
    h(
      "div",
      { class: "stack" },
      h("div", { class: "row" }, found.enabled ? badge("enabled", "ok") : badge("disabled", "warn", found.disabled_reason), h("code", {}, found.url)),
      found.disabled_reason && h("p", { class: "small" }, found.disabled_reason),
      h("p", { class: "small muted" }, found.event_types.join(", ")),
      may("webhooks:write") &&
        h("div", { class: "actions" }, act("Send a sample", test), act(found.enabled ? "Disable" : "Enable", change), act("Rotate the secret", rotate, { text: "Deliveries are signed by both secrets for a day." }), act("Delete", remove, { danger: true, text: "Nothing more is sent to it." })),
      h("details", { ontoggle: (event) => event.target.open && attempt(null, readLog) }, h("summary", {}, "Deliveries"), grid, nothing),
    ),
  );
}

function columns(path, done, signal) {
  const again = (delivery) => {
    const button = h("button", { class: "button small", type: "button", "aria-label": `Send ${delivery.event_id} again` }, "Send again");
    button.addEventListener("click", () => attempt(button, async () => (await api(`${path}/deliveries/${delivery.id}/redeliver`, { method: "POST", signal }), await done())));
    return button;
  };
  return [
    { title: "Event", cell: (row) => [h("span", { class: "mono" }, row.event_type), h("div", { class: "small muted mono" }, row.event_id)] },
    { title: "Outcome", cell: (row) => [badge(row.status, TONES[row.status] ?? "idle"), row.error && h("div", { class: "small muted" }, row.error)] },
    { title: "Attempts", class: "number", cell: (row) => row.attempts },
    { title: "Status", class: "number", cell: (row) => row.status_code ?? "–" },
    { title: "Last", class: "nowrap", cell: (row) => moment(row.attempted_at, { relative: true }) },
    { title: "Next", class: "nowrap", cell: (row) => moment(row.next_attempt_at, { relative: true }) },
    { title: "", cell: (row) => may("webhooks:write") && again(row) },
  ];
}
