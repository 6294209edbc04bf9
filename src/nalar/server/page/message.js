// How a message looks: a question, or an answer with its thought, its tool calls, its price and its buttons.

import { ApiError } from "./api.js";
import { el, icon, iconButton } from "./dom.js";
import { copyText, MarkdownText } from "./markdown.js";
import { countTokens, duration, money, number, t } from "./words.js";

/** A question. actions: {edit(text), showVersion(step)}; version: {i, n}. */
export function questionView(node, version, actions) {
  const bubble = el("div", { class: "bubble", dir: "auto" }, node.content);
  const view = el("article", { class: "message question", "aria-label": t("you") }, bubble);
  const edit = () => view.replaceChildren(editor(node.content, actions.edit, () => view.replaceChildren(bubble, buttons)));
  const buttons = el("div", { class: "message-buttons" }, ...versionButtons(version, actions), copyButton(node.content), iconButton("edit", t("edit"), edit, { "data-edit": true }));
  view.append(buttons);
  return view;
}

function editor(text, save, cancel) {
  const box = el("textarea", { "aria-label": t("edit"), rows: 3 });
  box.value = text;
  const send = () => box.value.trim() && save(box.value);
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
    if (event.key === "Escape") {
      event.stopPropagation();
      cancel();
    }
  });
  setTimeout(() => box.focus());
  return el(
    "div",
    { class: "editor" },
    box,
    el("div", { class: "row end" }, el("button", { type: "button", class: "button quiet", click: cancel }, t("cancel")), el("button", { type: "button", class: "button strong", click: send }, t("save"))),
  );
}

function versionButtons(version, actions) {
  if (version.n < 2) return [];
  const step = (by, name, label, isOff) => iconButton(name, label, () => actions.showVersion(by), { disabled: isOff });
  return [
    el(
      "span",
      { class: "versions" },
      step(-1, "left", t("earlier"), version.i === 1),
      el("span", { "aria-label": t("version", version) }, `${version.i}/${version.n}`),
      step(1, "right", t("later"), version.i === version.n),
    ),
  ];
}

function copyButton(text) {
  const label = el("span", { class: "visually-hidden", role: "status" });
  const button = iconButton("copy", t("copy"), () => {
    copyText(text, label);
    button.classList.add("done");
    setTimeout(() => button.classList.remove("done"), 1500);
  });
  button.append(label);
  return button;
}

/** An answer, which may still grow: call `update()` after each change of its message. */
export class AnswerView {
  #node;
  #actions;
  #version;
  #thought;
  #content = new MarkdownText();
  #calls = el("div", { class: "calls" });
  #callViews = [];
  #foot = el("footer", { class: "answer-foot" });
  #waiting = el("div", { class: "waiting", role: "presentation" }, el("i"), el("i"), el("i"), el("span", {}));

  /** actions: {retry(), showVersion(step), sendOutput(call, output)}. */
  constructor(node, version, actions) {
    this.#node = node;
    this.#actions = actions;
    this.#version = version;
    this.#thought = new ThoughtView(node);
    this.element = el("article", { class: "message answer", "aria-label": t("answerOf") }, this.#thought.element, this.#waiting, this.#content.element, this.#calls, this.#foot);
    this.update();
  }

  get node() {
    return this.#node;
  }

  update() {
    const { state, content, calls } = this.#node;
    const isDone = state === "done";
    this.element.setAttribute("aria-busy", String(!isDone));
    this.element.dataset.state = state;
    this.#thought.update();
    this.#waiting.hidden = state !== "waiting";
    this.#content.element.hidden = !content;
    if (content) this.#content.show(content, { isFinal: isDone });
    this.#updateCalls(calls, isDone);
    this.#foot.hidden = !isDone;
    if (isDone) this.#foot.replaceChildren(...this.#footParts());
  }

  /** Words beside the dots, such as that the model is loading. */
  say(words) {
    this.#waiting.lastChild.textContent = words;
  }

  #updateCalls(calls, isDone) {
    calls.forEach((call, i) => {
      this.#callViews[i] ??= this.#calls.appendChild(el("details", { class: "call", open: true }));
      drawCall(this.#callViews[i], call, isDone ? this.#actions : null);
    });
    this.#calls.hidden = !calls.length;
  }

  #footParts() {
    const node = this.#node;
    const notice = noticeOf(node);
    const parts = [];
    if (notice) parts.push(el("p", { class: `notice ${node.error ? "bad" : ""}`, role: node.error ? "alert" : null }, notice));
    const buttons = el("div", { class: "message-buttons" }, ...versionButtons(this.#version, this.#actions));
    if (node.content) buttons.append(copyButton(node.content));
    buttons.append(iconButton("retry", t("retry"), this.#actions.retry, { "data-retry": true }));
    const bill = billView(node);
    if (bill) buttons.append(bill);
    return [...parts, buttons];
  }
}

function noticeOf(node) {
  if (node.error) return new ApiError(node.error.status, node.error).words();
  if (node.finish === "stopped") return t("stopped");
  if (node.finish === "length") return node.content ? t("cutOff") : t("cutThought");
  if (node.finish === "content_filter") return t("filtered");
  return "";
}

/** Tokens in, cached and out, the price and the speed; null where the server said nothing. */
function billView({ usage, totalMs }) {
  if (!usage) return null;
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const part = (name, ...children) => el("span", { class: name }, ...children);
  const bill = el("span", { class: "bill", "aria-label": t("usageLabel"), role: "group" });
  const input = part("bill-in", `${number(usage.prompt_tokens)} ${t("input")}`);
  if (cached > 0) input.append(" (", part("bill-cached", t("cachedInput", { n: number(cached) })), ")");
  bill.append(input);
  bill.append(part("bill-out", `${number(usage.completion_tokens)} ${t("output")}`));
  if (totalMs > 0 && usage.completion_tokens > 1) bill.append(part("bill-speed", t("speed", { n: number(usage.completion_tokens / (totalMs / 1000)) })));
  if (typeof usage.cost === "number") bill.append(part("bill-cost", money(usage.cost)));
  return bill;
}

/** The thought: open and live while it comes, folded when the answer begins, opened again by whoever wants to read it. */
class ThoughtView {
  #node;
  #label = el("span", { class: "thought-label" });
  #text = el("div", { class: "thought-text", dir: "auto" });
  #begun = null;
  #timer = null;
  #wasLive = false;

  constructor(node) {
    this.#node = node;
    this.element = el("details", { class: "thought" }, el("summary", {}, icon("bulb"), this.#label, icon("chevron")), this.#text);
  }

  update() {
    const { reasoning, state } = this.#node;
    const isLive = state === "thinking";
    this.element.hidden = !reasoning;
    if (!reasoning) return;
    if (this.#text.textContent !== reasoning) this.#append(reasoning);
    if (isLive && !this.#wasLive) {
      this.#begun = performance.now();
      this.element.open = true;
      this.#timer = setInterval(() => this.#tick(), 100);
    }
    if (!isLive && this.#wasLive) {
      clearInterval(this.#timer);
      this.element.open = false;
    }
    this.#wasLive = isLive;
    this.element.classList.toggle("live", isLive);
    this.#tick();
  }

  #append(reasoning) {
    const before = this.#text.textContent;
    const box = this.#text;
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 30;
    if (reasoning.startsWith(before) && before) box.lastChild.appendData(reasoning.slice(before.length));
    else box.textContent = reasoning;
    if (isAtEnd) box.scrollTop = box.scrollHeight;
  }

  #tick() {
    const { thoughtMs, usage } = this.#node;
    if (this.#wasLive) {
      this.#label.textContent = `${t("thinkingNow")} · ${duration((performance.now() - this.#begun) / 1000)}`;
      return;
    }
    const words = thoughtMs === null ? t("thought") : t("thoughtFor", { time: duration(thoughtMs / 1000) });
    const tokens = usage?.completion_tokens_details?.reasoning_tokens;
    this.#label.textContent = tokens ? `${words}, ${countTokens(tokens)}` : words;
  }
}

function drawCall(view, call, actions) {
  const isOpenCall = actions !== null && call.output === undefined;
  const shape = JSON.stringify([call, isOpenCall]);
  if (view.dataset.shape === shape) return;
  view.dataset.shape = shape;
  view.replaceChildren(
    el("summary", {}, icon("tool"), el("span", {}, `${t("called")} `, el("code", {}, call.name)), icon("chevron")),
    el("div", { class: "call-part" }, el("h4", {}, t("arguments")), el("pre", { tabindex: 0 }, pretty(call.arguments))),
  );
  if (call.output !== undefined) {
    view.append(el("div", { class: "call-part" }, el("h4", {}, t("toolOutput")), el("pre", { tabindex: 0 }, call.output)));
  } else if (isOpenCall) {
    const box = el("textarea", { rows: 2, "aria-label": t("toolAnswer"), placeholder: t("toolAnswer") });
    const send = () => actions.sendOutput(call, box.value);
    view.append(el("div", { class: "call-part editor" }, box, el("div", { class: "row end" }, el("button", { type: "button", class: "button strong", click: send }, t("sendOutput")))));
  }
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // still coming, or not JSON
  }
}
