// What both pages have around their content: the sidebar and its buttons, and lists that arrow keys walk through.

import { byId } from "./dom.js";
import { switchLanguage } from "./words.js";

export function showSidebar(isOpen) {
  document.body.classList.toggle("sidebar-open", isOpen);
  byId("menu-button").setAttribute("aria-expanded", String(isOpen));
}

export function connectFrame() {
  byId("menu-button").addEventListener("click", () => showSidebar(!document.body.classList.contains("sidebar-open")));
  byId("sidebar-shade").addEventListener("click", () => showSidebar(false));
  byId("theme-button").addEventListener("click", () => window.switchTheme());
  byId("language-button").addEventListener("click", switchLanguage);
}

/** Up and down go from entry to entry. entries: a selector within the list, one match a row. */
export function walkByArrows(list, entries) {
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...list.querySelectorAll(entries)];
    const row = event.target.closest("li");
    all[all.findIndex((entry) => row?.contains(entry)) + step]?.focus();
  });
}
