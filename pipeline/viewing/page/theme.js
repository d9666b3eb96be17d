// Dark or light as the system says, until somebody chooses.
"use strict";

Spacer.theme = {
  system: window.matchMedia("(prefers-color-scheme: dark)"),
  chosen: null,

  apply() {
    const dark = this.chosen === null ? this.system.matches : this.chosen === "dark";
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    document.dispatchEvent(new CustomEvent("spacer-theme"));
  },

  start(button) {
    this.system.addEventListener("change", () => this.apply());
    button.addEventListener("click", () => {
      this.chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      this.apply();
    });
    this.apply();
  },
};
