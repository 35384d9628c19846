// Runs the checks apart from the page, which stays responsive over a hundred thousand records.

import { checkBundle } from "./checks.js";
import { parseTrust } from "./note.js";

addEventListener("message", async ({ data: { bundle, trust, adapter } }) => {
  let policy = null;
  try {
    policy = trust ? await parseTrust(trust) : null;
  } catch (error) {
    postMessage({ kind: "policy", message: error.message });
    return;
  }
  try {
    const tell = (records) => postMessage({ kind: "progress", records });
    postMessage({ kind: "done", report: await checkBundle(bundle, { trust: policy, adapter, tell }) });
  } catch (error) {
    postMessage({ kind: "error", message: error.message });
  }
});
