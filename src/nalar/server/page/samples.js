// Samples of two models side by side. Their texts are the models' own: shown as text.

import { getJson } from "./api.js";
import { el } from "./dom.js";
import { countTokens, t } from "./words.js";

const FIRST = 12;

export class SamplesView {
  #run;
  #part;
  #pairs = [];
  #shown = FIRST;
  #list = el("div", { class: "pairs" });
  #more = el("button", { type: "button", class: "button quiet", click: () => this.#showMore() }, t("showMore"));

  /** there: names of the sets of samples, in the order of the models. */
  constructor(run, part, there) {
    this.#run = run;
    this.#part = part;
    this.element = el("div", { class: "samples" });
    if (!there.length) {
      this.element.append(el("p", { class: "hint" }, t("noSamples")));
      return;
    }
    const choice = (chosen, label) => {
      const select = el("select", { "aria-label": label, change: () => this.#load() }, ...there.map((name) => el("option", { value: name }, name.replace(/^(measure_|evaluate_)/, ""))));
      select.value = chosen;
      return select;
    };
    this.before = choice(there[0], t("before"));
    this.after = choice(there.at(-1), t("after"));
    this.task = el("select", { "aria-label": t("allTasks"), change: () => this.#draw() });
    this.changed = el("input", { type: "checkbox", change: () => this.#draw() });
    this.element.append(
      el("div", { class: "filters" }, el("label", {}, t("before"), " ", this.before), el("label", {}, t("after"), " ", this.after), this.task, el("label", {}, this.changed, " ", t("onlyChanged"))),
      this.#list,
      this.#more,
    );
    this.#load();
  }

  async #load() {
    const query = new URLSearchParams({ part: this.#part, before: this.before.value, after: this.after.value });
    try {
      this.#pairs = (await getJson(`/runs/${encodeURIComponent(this.#run)}/samples?${query}`)).pairs;
    } catch (error) {
      this.#list.replaceChildren(el("p", { class: "notice bad" }, error.message));
      return;
    }
    const tasks = [...new Set(this.#pairs.map((pair) => pair.task))];
    this.task.replaceChildren(el("option", { value: "" }, t("allTasks")), ...tasks.map((task) => el("option", { value: task }, task)));
    this.#shown = FIRST;
    this.#draw();
  }

  #showMore() {
    this.#shown += FIRST;
    this.#draw();
  }

  #draw() {
    const wanted = this.#pairs.filter((pair) => (!this.task.value || pair.task === this.task.value) && (!this.changed.checked || pair.before?.correct !== pair.after?.correct));
    this.#more.hidden = wanted.length <= this.#shown;
    this.#list.replaceChildren(...wanted.slice(0, this.#shown).map(pairView));
    if (!wanted.length) this.#list.append(el("p", { class: "hint" }, t("nothingHere")));
  }
}

function pairView({ task, prompt, before, after }) {
  return el("article", { class: "pair" }, el("p", { class: "pair-prompt", dir: "auto" }, el("small", {}, task), prompt), responseView(before, t("before")), responseView(after, t("after")));
}

function responseView(response, label) {
  if (!response) return el("div", { class: "response none" }, el("small", {}, label), t("nothingHere"));
  const verdict = t(response.correct ? "right" : "wrong");
  return el(
    "div",
    { class: `response ${response.correct ? "right" : "wrong"}` },
    el("small", {}, `${label} · `, el("b", {}, verdict), ` · ${countTokens(response.tokens ?? 0)}`),
    response.thought ? el("p", { class: "response-thought", dir: "auto" }, response.thought) : null,
    el("p", { class: "response-answer", dir: "auto" }, response.answer || t("nothingHere")),
  );
}
