// What the page says about itself: loading, nothing there, something wrong, something done.

import { ApiError, Unreachable } from "../api.js";
import { h, newId } from "../dom.js";

/** Grey bars in the place of what is being loaded, as many lines high as it will be. */
export function loading(what = "Loading", lines = 6) {
  const bars = Array.from({ length: lines }, (_, at) =>
    h("div", { class: "skeleton", style: { width: `${[92, 78, 85, 64][at % 4]}%` } }),
  );
  return h("div", { class: "stack", role: "status", "aria-label": `${what}…` }, bars);
}

/** A place that has nothing in it, and what one would do about that. */
export function empty(title, text, ...actions) {
  return h("div", { class: "state" }, h("span", { class: "icon", "aria-hidden": "true" }, "∅"), h("h3", {}, title), h("p", {}, text), h("div", { class: "actions" }, actions));
}

/** What went wrong, in the server's words, and a way to try again. */
export function problem(error, retry) {
  const known = error instanceof ApiError || error instanceof Unreachable;
  if (!known) console.error(error);
  const title = error instanceof Unreachable ? "The server cannot be reached" : error.status === 403 ? "Not allowed" : error.status === 404 ? "Not found" : "This did not work";
  const text = known ? error.message : "The page has met an error of its own. Load it again; if that does not help, the browser's console has the details.";
  return h(
    "div",
    { class: "notice tone-bad", role: "alert" },
    h("h3", {}, title),
    h("p", {}, text),
    error.requestId && h("p", { class: "small muted" }, "Request ", h("code", {}, error.requestId)),
    retry && h("div", { class: "actions" }, h("button", { class: "button small", type: "button", onclick: retry }, "Try again")),
  );
}

/** A remark that matters on this screen. `tone` is ok, warn, bad, held or idle. */
export function notice(tone, title, ...paragraphs) {
  return h("div", { class: `notice tone-${tone}` }, title && h("h3", {}, title), paragraphs.map((each) => h("p", {}, each)));
}

/** Say that something was done, or failed, without moving the screen; screen readers hear it. */
export function toast(text, { bad = false } = {}) {
  const box = h("div", { class: bad ? "toast bad" : "toast" }, text);
  document.getElementById("toasts").append(box);
  setTimeout(() => box.remove(), bad ? 12000 : 6000);
}

/** Run what a button asks for; it cannot be pressed twice, and a failure is told. Returns whether it worked. */
export async function attempt(button, work) {
  if (button) button.disabled = true;
  try {
    await work();
    return true;
  } catch (error) {
    if (error.name !== "AbortError") toast(error.message, { bad: true });
    return false;
  } finally {
    if (button) button.disabled = false;
  }
}

/** Have a button ask `question`, as `confirm` does, before its work. It is not disabled meanwhile: the dialog gives it the focus back. */
export function askFirst(button, question, work) {
  button.addEventListener("click", async () => {
    if (await confirm(question)) await attempt(button, work);
  });
  return button;
}

/**
 * Ask before something that matters. With `reasonLabel` a reason must be given. Resolves to null where it is not wanted, else to
 * `{ reason }`. `signal` is the screen's: a question does not outlive the screen, and the session, that it was asked in.
 */
export function confirm({ title, text, action, danger = false, reasonLabel = null, signal = null }) {
  if (signal?.aborted) return Promise.resolve(null);
  return new Promise((resolve) => {
    const reason = reasonLabel && h("textarea", { id: newId("reason"), required: true, maxlength: 2000 });
    const titleId = newId("title");
    const form = h(
      "form",
      { method: "dialog", class: "form" },
      h("h2", { id: titleId }, title),
      [text].flat().map((each) => h("p", {}, each)),
      reason && h("div", { class: "field" }, h("label", { for: reason.id }, reasonLabel), reason),
      h(
        "div",
        { class: "actions" },
        h("button", { class: danger ? "button danger" : "button primary", value: "yes" }, action),
        h("button", { class: "button", value: "no", formnovalidate: true }, "Leave it as it is"),
      ),
    );
    const dialog = h("dialog", { "aria-labelledby": titleId }, form);
    const leave = () => dialog.close("no");
    signal?.addEventListener("abort", leave);
    dialog.addEventListener("close", () => {
      signal?.removeEventListener("abort", leave);
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? { reason: reason?.value.trim() ?? null } : null);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
