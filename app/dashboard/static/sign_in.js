// The door: a key, once; the browser keeps it where no script can read it.

import { api, session } from "./api.js";
import { field } from "./components/parts.js";
import { h, replace } from "./dom.js";

/** Ask for a key until one opens, then call `done`. `why` says why somebody who was signed in stands here. */
export function showSignIn(app, why, done) {
  document.title = "Sign in · Tether";
  // A password manager wants a name to keep the key under.
  const name = h("input", { type: "text", name: "username", value: "tether", autocomplete: "username", hidden: true });
  const key = field("API key", h("input", { type: "password", name: "key", required: true, autocomplete: "current-password", spellcheck: "false", maxlength: 200 }), {
    hint: "The one that tether serve showed at its first start, or one that tether keys add made.",
  });
  const button = h("button", { class: "button primary" }, "Sign in");
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    key.complain(null);
    try {
      session.current = await api("/dashboard/session", { method: "POST", body: { key: key.control.value.trim() } });
      done();
    } catch (error) {
      key.complain(error.message);
      key.control.focus();
    } finally {
      button.disabled = false;
    }
  };
  replace(
    app,
    h(
      "main",
      { class: "sign-in", id: "main", tabindex: "-1" },
      h(
        "section",
        { class: "card" },
        h("header", {}, h("h1", { class: "brand" }, h("img", { src: "/dashboard/static/icon.svg", alt: "" }), "Tether")),
        h(
          "div",
          { class: "body" },
          why && h("p", { class: "notice tone-warn", role: "alert" }, why),
          h("form", { class: "form", onsubmit: submit }, name, key, button),
          h("p", { class: "small muted" }, "The key goes into a cookie that no script can read, for twelve hours. The browser sends it to every service with this host name, whatever its port."),
        ),
      ),
    ),
  );
  key.control.focus();
}
