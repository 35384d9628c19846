// Asking for an evaluation of a model, in a dialog made of the API's own description.

import { api, listAll } from "../api.js";
import { h, newId } from "../dom.js";
import { attempt, toast } from "./feedback.js";
import { field, select } from "./parts.js";
import { loadSchemas, objectForm } from "./schema_form.js";

const JUDGES = { rules: "rules: phrases of refusal", miniature: "miniature: the exact judge of the miniature’s world", openai: "openai: the operator’s judge model", classifier: "classifier: the operator’s text classifier" };
const BUILT_IN = "miniature";

/** Ask what to evaluate a model with, and for the evaluation. Resolves to it, or to null where it is not wanted. */
export async function askForEvaluation(model, { baseModel, signal }) {
  const [schemas, files] = await Promise.all([loadSchemas(), listAll("/v1/files?purpose=user_data", { signal, most: 200 })]);
  const isMiniature = baseModel === BUILT_IN;
  const suites = [...files.map((file) => [file.id, file.filename]), ...(isMiniature ? [[BUILT_IN, "miniature, which comes with Tether"]] : [])];
  const suite = field("Prompts", select(suites.length ? suites : [["", "none yet"]], suites[0]?.[0] ?? ""), { hint: "A file of harmful, borderline and utility prompts, sent under Datasets." });
  const judges = Object.entries(JUDGES).map(([type, text]) => {
    const box = h("input", { type: "checkbox", value: type, checked: type === "rules" || (isMiniature && type === "miniature"), id: newId("judge") });
    return h("label", { class: "row", for: box.id }, box, text);
  });
  const decoding = objectForm(schemas, { $ref: "Decoding" }, { path: "decoding" });
  const complaint = h("p", { class: "problem", role: "alert", hidden: true });
  const titleId = newId("title");
  return new Promise((resolve) => {
    const send = h("button", { class: "button primary" }, "Evaluate");
    const body = () => ({
      model,
      suite: suite.control.value,
      judge: judges.map((each) => each.querySelector("input")).filter((box) => box.checked).map((box) => ({ type: box.value })),
      decoding: decoding.read(),
    });
    let made = null;
    const submit = async (event) => {
      event.preventDefault();
      complaint.hidden = true;
      suite.complain(null);
      await attempt(send, async () => {
        try {
          made = await api("/v1/evaluations", { method: "POST", body: body(), signal });
        } catch (error) {
          if (error.name === "AbortError") throw error;
          if (error.param === "suite") suite.complain(error.message);
          else if (!decoding.complain(error.param, error.message)) {
            complaint.textContent = error.message;
            complaint.hidden = false;
          }
          return;
        }
        toast("The evaluation was asked for.");
        dialog.close();
      });
    };
    const leave = h("button", { class: "button", type: "button", onclick: () => dialog.close() }, "Leave it");
    const dialog = h(
      "dialog",
      { "aria-labelledby": titleId },
      h("form", { class: "form", onsubmit: submit }, h("h2", { id: titleId }, `Evaluate ${model}`), suite, h("fieldset", { class: "plain stack" }, h("legend", {}, "Judges"), judges), h("details", {}, h("summary", {}, "How replies are drawn"), decoding.element), complaint, h("div", { class: "actions" }, send, leave)),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(made);
    });
    signal.addEventListener("abort", () => dialog.close(), { once: true });
    document.body.append(dialog);
    dialog.showModal();
  });
}
