// Text that is shown as Markdown: at once as plain text, and as HTML when the server has rendered it. This is the only
// place where the page takes HTML, and it takes only what server/markdown.py has cleaned.

import { renderMarkdown } from "./api.js";
import { el, icon } from "./dom.js";
import { t } from "./words.js";

const MIN_WAIT_MS = 150;
const SHARE_OF_TIME = 4; // waits so many times as long as the last rendering took
const CACHE = new Map(); // finished texts, so that going back to a conversation does not blink
const CACHED_TEXTS = 300;

const trusted = window.trustedTypes?.createPolicy("nalar-markdown", { createHTML: (html) => html });

function parsed(html) {
  const template = document.createElement("template");
  template.innerHTML = trusted ? trusted.createHTML(html) : html;
  return template.content;
}

/** A block that shows a growing text. */
export class MarkdownText {
  #text = "";
  #rendered = ""; // the text of the last rendering
  #tail = document.createTextNode("");
  #timer = null;
  #isBusy = false;
  #tookMs = 0;

  constructor() {
    this.element = el("div", { class: "markdown plain", dir: "auto" }, this.#tail);
  }

  /** isFinal: no more comes, so it is rendered without waiting. */
  show(text, { isFinal = false } = {}) {
    this.#text = text;
    const cached = CACHE.get(text);
    if (cached !== undefined) return this.#put(cached, text);
    this.#showTail();
    if (isFinal) this.#render();
    else this.#timer ??= setTimeout(() => this.#render(), Math.max(MIN_WAIT_MS, SHARE_OF_TIME * this.#tookMs));
    return undefined;
  }

  async #render() {
    clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#isBusy || this.#text === this.#rendered) return;
    this.#isBusy = true;
    const text = this.#text;
    const begun = performance.now();
    try {
      this.#put(await renderMarkdown(text), text);
    } catch {
      // It stays plain text, which is readable; the next change tries again.
      this.#isBusy = false;
      return;
    }
    this.#tookMs = performance.now() - begun;
    this.#isBusy = false;
    if (this.#text !== this.#rendered) this.show(this.#text);
  }

  #put(html, text) {
    if (CACHE.size >= CACHED_TEXTS) CACHE.delete(CACHE.keys().next().value);
    CACHE.set(text, html);
    const fresh = decorated(parsed(html));
    this.#tail.remove();
    this.element.classList.remove("plain");
    replaceChanged(this.element, fresh);
    this.#rendered = text;
    this.#showTail();
  }

  /** What has come since the last rendering goes to the end of the last paragraph. */
  #showTail() {
    // Markdown drops space at the end, so a space there is still to be shown.
    const shown = this.#rendered.trimEnd();
    const isLonger = this.#text.startsWith(shown);
    const rest = isLonger ? this.#text.slice(shown.length) : this.#text;
    this.#tail.data = rest.trim() ? rest : "";
    const place = isLonger ? lastPlace(this.element) : this.element;
    if (this.#tail.parentNode !== place || this.#tail.nextSibling) place.append(this.#tail);
  }
}

function lastPlace(element) {
  let place = element;
  while (place.lastElementChild?.matches("p, li, ul, ol, blockquote, pre, pre > code, .code")) place = place.lastElementChild;
  return place;
}

/** Blocks that are as they were stay, with their selection and their scroll. */
function replaceChanged(element, fresh) {
  const old = [...element.childNodes];
  const next = [...fresh.childNodes];
  let same = 0;
  while (same < old.length && same < next.length && old[same].isEqualNode(next[same])) same++;
  for (const node of old.slice(same)) node.remove();
  element.append(...next.slice(same));
}

/** Code gets a head with its language and a button; tables scroll by themselves. */
function decorated(fragment) {
  for (const pre of fragment.querySelectorAll("pre")) {
    const block = el("div", { class: "code" });
    pre.replaceWith(block);
    const copy = el("button", { type: "button", class: "code-copy", "data-copy": true }, icon("copy"), el("span", {}, t("copy")));
    block.append(el("div", { class: "code-head" }, el("span", {}, pre.dataset.language ?? ""), copy), pre);
    pre.tabIndex = 0; // so that keys can scroll it
  }
  for (const table of fragment.querySelectorAll("table")) {
    const box = el("div", { class: "table-box" });
    table.replaceWith(box);
    box.append(table);
  }
  return fragment;
}

/** One listener for all copy buttons of code. */
document.addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-copy]");
  if (button) copyText(button.closest(".code").querySelector("pre").textContent, button.querySelector("span"));
});

/** Copies, and says so in `label` for a moment. */
export async function copyText(text, label) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text); // the page came by plain http, where there is no clipboard
  }
  const before = label.textContent;
  label.textContent = t("copied");
  setTimeout(() => {
    label.textContent = before;
  }, 1500);
}

function copyBySelection(text) {
  const box = el("textarea", { class: "visually-hidden", "aria-hidden": "true" });
  box.value = text;
  document.body.append(box);
  box.select();
  document.execCommand("copy");
  box.remove();
}
