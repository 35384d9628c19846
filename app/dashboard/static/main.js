// The frame of the page: who is signed in, where one can go, and which screen is seen.

import { api, connection, isOnline, may, session } from "./api.js";
import { attempt, loading, problem } from "./components/feedback.js";
import { h, replace } from "./dom.js";
import { time } from "./format.js";
import { freshness, staleSince } from "./live.js";
import { NAVIGATION, SCREENS } from "./routes.js";
import { showSignIn } from "./sign_in.js";

const app = document.getElementById("app");
let leave = new AbortController();
let framed = new AbortController();

start();

async function start() {
  try {
    const found = await api("/dashboard/session");
    if (!found.signed_in) {
      showSignIn(app, found.why, showFrame);
      return;
    }
    session.current = found;
    showFrame();
  } catch (error) {
    replace(app, h("main", {}, problem(error, start)));
  }
}

addEventListener("tether-signed-out", (event) => {
  leave.abort();
  showSignIn(app, event.detail, showFrame);
});
addEventListener("hashchange", () => session.current && showScreen());
document.querySelector(".skip").addEventListener("click", (event) => {
  // The address names a screen, and no place on it.
  event.preventDefault();
  document.getElementById("main")?.focus();
});

function showFrame() {
  const side = h("header", { class: "side" });
  const toggle = () => {
    const open = side.classList.toggle("open");
    menu.setAttribute("aria-expanded", String(open));
  };
  const menu = h("button", { class: "button small menu-button", type: "button", "aria-expanded": "false", onclick: toggle }, "Menu");
  const links = NAVIGATION.filter(({ scope }) => !scope || may(scope)).map(({ path, title }) => h("li", {}, h("a", { href: `#/${path}`, "data-path": path }, title)));
  const { key, project } = session.current;
  side.append(
    h("a", { class: "brand", href: "#/jobs" }, h("img", { src: "/dashboard/static/icon.svg", alt: "" }), "Tether"),
    menu,
    h("nav", { "aria-label": "Main" }, h("ul", {}, links)),
    h(
      "div",
      { class: "who" },
      h("div", {}, h("strong", {}, project.name ?? project.id), h("div", { class: "muted" }, `${key.name ?? key.id} · ${key.role}`)),
      h("div", { class: "row" }, themeButton(), h("button", { class: "button small", type: "button", onclick: (event) => attempt(event.currentTarget, signOut) }, "Sign out")),
      h("a", { href: "/docs", target: "_blank", rel: "noopener" }, "The API"),
    ),
  );
  const banner = h("div", { class: "banner bad", role: "status" });
  const tell = () => {
    const since = staleSince();
    banner.hidden = isOnline() && since === null;
    banner.textContent = isOnline()
      ? `Not updated since ${time(since)}: the server does not answer as it should. It is asked again and again.`
      : "The server cannot be reached. What you see is what was last known; it is asked again and again.";
  };
  tell();
  framed.abort();
  framed = new AbortController();
  connection.addEventListener("change", tell, { signal: framed.signal });
  freshness.addEventListener("change", tell, { signal: framed.signal });
  replace(app, h("div", { class: "frame" }, side, h("div", {}, banner, emptyMain())));
  side.querySelector("nav").addEventListener("click", () => side.classList.contains("open") && toggle());
  showScreen();
}

function emptyMain() {
  return h("main", { id: "main", tabindex: "-1" });
}

function themeButton() {
  const button = h("button", { class: "button small", type: "button" });
  const name = () => (button.textContent = document.documentElement.dataset.theme === "dark" ? "Light" : "Dark");
  button.setAttribute("aria-label", "Change between light and dark");
  button.addEventListener("click", () => {
    localStorage.setItem("tether-theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    dispatchEvent(new Event("tether-theme-chosen"));
    name();
  });
  name();
  return button;
}

async function signOut() {
  await api("/dashboard/session", { method: "DELETE" });
  leave.abort();
  session.current = null;
  showSignIn(app, null, showFrame);
}

/** The parts of an address; one with a stray per cent sign is a single name, which no screen has. */
function namesOf(path) {
  try {
    return path.split("/").map(decodeURIComponent);
  } catch {
    return [path];
  }
}

/** Show the screen that the address names: #/jobs/ftjob-… is the screen `jobs` with its id. */
async function showScreen() {
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name = "", ...rest] = namesOf(path);
  const screen = SCREENS.find((each) => each.name === (name || "jobs") && (each.takesId ?? false) === rest.length > 0);
  // Each screen has an element of its own, so that what comes late to one that was left is not seen.
  const main = emptyMain();
  document.getElementById("main").replaceWith(main);
  for (const link of document.querySelectorAll(".side nav a")) {
    if (link.dataset.path === (screen?.under ?? name)) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!screen) {
    document.title = "Not found · Tether";
    replace(main, h("h1", {}, "There is no such page"), h("p", {}, "The address names nothing that this page can show. ", h("a", { href: "#/jobs" }, "Go to the jobs"), "."));
    return;
  }
  document.title = `${screen.title} · Tether`;
  replace(main, h("h1", {}, screen.title), loading(screen.title));
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
  try {
    const { show } = await screen.load();
    if (signal.aborted) return;
    await show(main, { id: rest.join("/"), query: new URLSearchParams(search), signal });
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    replace(main, h("h1", {}, screen.title), problem(error, showScreen));
  }
}
