// What an owner or an operator looks after. Each panel asks for what the key may see.

import { may } from "../api.js";
import { loading, problem } from "../components/feedback.js";
import { pageHead, tabs } from "../components/parts.js";
import { h, replace } from "../dom.js";

const PANELS = [
  ["Health", null, () => import("./admin/health.js")],
  ["Usage", "usage:read", () => import("./admin/usage.js")],
  ["Keys", "keys:read", () => import("./admin/keys.js")],
  ["Webhooks", "webhooks:read", () => import("./admin/webhooks.js")],
  ["Projects", "admin", () => import("./admin/projects.js")],
  ["Policies", "admin", () => import("./admin/policies.js")],
];

export async function show(root, { signal }) {
  const panels = PANELS.filter(([, scope]) => !scope || may(scope)).map(([title, , load]) => [title, panel(title, load, signal)]);
  replace(root, pageHead("Admin"), tabs("Administration", panels));
}

/** A panel that is filled when it is seen first. */
function panel(title, load, signal) {
  const element = h("div", { class: "stack" }, loading(title));
  const fill = async () => {
    try {
      const { show } = await load();
      await show(element, { signal });
    } catch (error) {
      if (error.name !== "AbortError") replace(element, problem(error, fill));
    }
  };
  const seen = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    seen.disconnect();
    fill();
  });
  seen.observe(element);
  signal.addEventListener("abort", () => seen.disconnect(), { once: true });
  return element;
}
