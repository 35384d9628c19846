// Runs before the first paint, so that no page flashes in the other theme. It also turns what the system prefers into
// data-theme, so that the style sheet has the dark colours once.
(function () {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  function apply() {
    const chosen = localStorage.getItem("tether-theme");
    const theme = chosen === "light" || chosen === "dark" ? chosen : dark.matches ? "dark" : "light";
    document.documentElement.dataset.theme = theme;
    dispatchEvent(new CustomEvent("tether-theme", { detail: theme }));
  }
  dark.addEventListener("change", apply);
  addEventListener("storage", apply);
  addEventListener("tether-theme-chosen", apply);
  apply();
})();
