// Light or dark, before the first paint: a classic script, so that the page never flashes in the wrong one.
"use strict";

{
  const KEY = "nalar.theme";
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  const chosen = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // storage is switched off
    }
  };
  const show = () => {
    root.dataset.theme = chosen() ?? (dark.matches ? "dark" : "light");
  };
  show();
  dark.addEventListener("change", show);

  // Choosing what the system has means following the system again.
  window.switchTheme = () => {
    const next = root.dataset.theme === "dark" ? "light" : "dark";
    try {
      if (next === (dark.matches ? "dark" : "light")) localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, next);
      show();
    } catch {
      root.dataset.theme = next;
    }
  };
}
