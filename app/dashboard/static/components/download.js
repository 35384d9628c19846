// A file to take away. The page asks for it first, so that a refusal is told here and no page of it is opened.

import { send } from "../api.js";
import { h } from "../dom.js";
import { bytes } from "../format.js";
import { attempt, toast } from "./feedback.js";

const KEPT_MS = 60_000;

/**
 * A button that saves what is at `path` as `name`. `title` says what it is, and `why`, where it is not null, why it may not
 * leave now; `taken(blob)` is given what has come.
 */
export function downloadButton({ path, name, title, why = null, small = true, taken = () => {} }, signal) {
  const button = h("button", { class: small ? "button small" : "button", type: "button", disabled: why !== null, "aria-label": `Download ${title}` }, "Download");
  button.addEventListener("click", () => attempt(button, async () => {
    const blob = await (await send(path, { signal })).blob();
    save(blob, name);
    taken(blob);
    toast(`${title}: ${bytes(blob.size)}.`);
  }));
  return button;
}

/** The same as an item of a list with the class `downloads`, with `what` is in the file. */
export function downloadItem({ what, ...file }, signal) {
  const { title, why = null } = file;
  const size = h("span", { class: "muted small" });
  const button = downloadButton({ ...file, taken: (blob) => (size.textContent = bytes(blob.size)) }, signal);
  return h("li", {}, button, h("div", {}, h("strong", {}, title), " ", size, h("div", { class: "muted small" }, why === null ? what : `${what}. Not now: ${why}.`)));
}

function save(blob, name) {
  const address = URL.createObjectURL(blob);
  const link = h("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), KEPT_MS);
}
