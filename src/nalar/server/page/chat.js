// The chat page: which conversation is open, and one answer at a time.

import { blankAnswer, requestOf, stream } from "./answering.js";
import { ApiError, keepKey, listModels } from "./api.js";
import { byId, drawIcons, el } from "./dom.js";
import { AnswerView, questionView } from "./message.js";
import { chooseModel, connectSettings, nextThinking, openSettings, settings, showThinking } from "./settings.js";
import { connectSidebar, drawSidebar } from "./sidebar.js";
import { addNode, branch, newChat, openChat, saveChat, showVersion, versions } from "./store.js";
import { t, translate } from "./words.js";

const LOADING_RETRY_S = 2;
const NEAR_END_PX = 80;

let chat = newChat();
let current = null; // {control, view}: the answer that is coming

const scroll = byId("scroll");
const list = byId("messages");
const box = byId("box");

// ---- what is shown

function draw() {
  const nodes = branch(chat);
  list.replaceChildren(...nodes.map(viewOf));
  byId("greeting").hidden = nodes.length > 0;
  document.body.classList.toggle("empty", nodes.length === 0);
  document.title = chat.title ? `${chat.title} · Nalar` : "Nalar";
  drawSidebar(chat.id, { open, removed });
  followEnd();
}

function viewOf(node) {
  const all = versions(chat, node);
  const at = all.indexOf(node);
  const show = (step) => {
    stop();
    showVersion(chat, all[at + step]);
    saveChat(chat);
    draw();
  };
  const version = { i: at + 1, n: all.length };
  if (node.role === "user") return questionView(node, version, { edit: (text) => editQuestion(node, text), showVersion: show });
  if (current?.view.node === node) return current.view.element;
  if (node.state !== "done") Object.assign(node, { state: "done", finish: "stopped" }); // the page was closed meanwhile
  return new AnswerView(node, version, answerActions(node, show)).element;
}

function answerActions(node, show) {
  return {
    retry: () => answer(node.parent),
    showVersion: show,
    sendOutput: (call, output) => {
      call.output = output;
      saveChat(chat);
      draw();
      if (node.calls.every((one) => one.output !== undefined)) answer(node.id);
    },
  };
}

/** How far the reader has scrolled up. */
function fromEndPx() {
  return scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight;
}

function followEnd() {
  scroll.scrollTop = scroll.scrollHeight;
}

function showButtons() {
  const isBusy = current !== null;
  byId("send").hidden = isBusy;
  byId("stop").hidden = !isBusy;
  byId("send").disabled = !box.value.trim();
}

function tell(words) {
  byId("status").textContent = words;
}

// ---- asking

function ask(text) {
  stop();
  const parent = chat.head;
  addNode(chat, parent, { role: "user", content: text });
  answer(chat.head);
}

function editQuestion(node, text) {
  stop();
  addNode(chat, node.parent, { role: "user", content: text });
  answer(chat.head);
}

/** A new answer behind this message; beside the old one where there is one. */
async function answer(parentId) {
  stop();
  const mine = chat;
  mine.head = parentId;
  const body = requestOf(branch(mine), settings);
  const node = addNode(mine, parentId, blankAnswer(settings.model));
  const all = versions(mine, node);
  const control = new AbortController();
  const view = new AnswerView(node, { i: all.length, n: all.length }, answerActions(node, () => {}));
  current = { control, view };
  history.replaceState(null, "", `#${mine.id}`); // so that reloading comes back here
  keepChat(mine);
  draw();
  showButtons();
  await untilReady(node, body, control.signal, view);
  if (current?.view === view) current = null;
  keepChat(mine);
  view.update();
  if (mine === chat) draw();
  showButtons();
  tell(node.error ? new ApiError(node.error.status, node.error).words() : t("statusDone"));
  afterError(node);
}

/** Streams; while the model is loading, again and again. */
async function untilReady(node, body, signal, view) {
  let told = "";
  const changed = () => {
    if (told !== node.state) tell({ thinking: t("statusThinking"), answering: t("statusAnswering") }[node.state] ?? "");
    told = node.state;
    schedule(view);
  };
  for (;;) {
    await stream(node, body, { signal, changed });
    if (node.error?.code !== "engine_unavailable" || node.content || node.reasoning) return;
    const waitS = Math.max(1, Math.round(node.error.retryAfterS ?? LOADING_RETRY_S));
    Object.assign(node, { state: "waiting", error: null });
    for (let left = waitS; left > 0; left--) {
      view.update();
      view.say(t("errorLoadingRetry", { n: left }));
      await pause(1000, signal);
      if (signal.aborted) {
        Object.assign(node, { state: "done", finish: "stopped" });
        return;
      }
    }
    view.say("");
  }
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

/** At most one drawing a frame, however fast the chunks come. */
const waiting = new Set();
function schedule(view) {
  if (!waiting.size) {
    requestAnimationFrame(() => {
      const isNear = fromEndPx() < NEAR_END_PX;
      for (const one of waiting) one.update();
      waiting.clear();
      if (isNear) followEnd();
    });
  }
  waiting.add(view);
}

function stop() {
  current?.control.abort();
  if (current) Object.assign(current.view.node, { state: "done", finish: current.view.node.finish ?? "stopped" });
  current = null;
  showButtons();
}

function keepChat(one) {
  byId("storage-full").hidden = saveChat(one);
}

/** A key that is wanted is asked for; a wait that is wanted is counted down. */
function afterError(node) {
  if (node.error?.status === 401) wantKey();
  else if (!node.error) byId("key-bar").hidden = true;
  if (node.error?.status === 429 && node.error.retryAfterS) countDown(Math.ceil(node.error.retryAfterS));
}

function countDown(seconds) {
  const notice = list.querySelector(".message:last-child .notice.bad");
  const retry = list.querySelector(".message:last-child [data-retry]");
  if (!notice || !retry) return;
  let left = seconds;
  const tick = () => {
    if (!notice.isConnected) return;
    retry.disabled = left > 0;
    notice.textContent = left > 0 ? t("errorBusyRetry", { n: left }) : t("errorBusy");
    if (left-- > 0) setTimeout(tick, 1000);
  };
  tick();
}

// ---- conversations

function open(id) {
  stop();
  chat = openChat(id) ?? newChat();
  history.replaceState(null, "", `#${chat.id}`);
  draw();
  box.focus();
}

function startNew() {
  stop();
  chat = newChat();
  history.replaceState(null, "", location.pathname);
  draw();
  box.focus();
}

function removed(id) {
  if (id === chat.id) startNew();
  else drawSidebar(chat.id, { open, removed });
}

// ---- models and keys

async function loadModels() {
  const picker = byId("model");
  try {
    const names = await listModels();
    picker.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
    chooseModel(names.includes(settings.model) ? settings.model : (names[0] ?? ""));
    picker.value = settings.model;
    picker.disabled = names.length === 0;
    byId("key-bar").hidden = true;
  } catch (error) {
    picker.replaceChildren(el("option", { value: settings.model }, settings.model || t("noModel")));
    if (error.status === 401) wantKey();
    else setTimeout(loadModels, 3000); // it is loading, or not there yet
  }
}

function wantKey() {
  byId("key-words").textContent = new ApiError(401).words();
  byId("key-bar").hidden = false;
  byId("key").focus();
}

async function useKey(event) {
  event.preventDefault();
  keepKey(byId("key").value.trim());
  byId("key-bar").hidden = true;
  await loadModels();
  const last = branch(chat).at(-1);
  if (last?.error?.status === 401 && byId("key-bar").hidden) answer(last.parent);
}

// ---- keys and buttons

function sendBox() {
  const text = box.value.trim();
  if (!text || current) return;
  box.value = "";
  fitBox();
  ask(text);
}

function fitBox() {
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight, 240)}px`;
  showButtons();
}

function connectKeys() {
  box.addEventListener("input", fitBox);
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      sendBox();
    }
    if (event.key === "ArrowUp" && !box.value) {
      event.preventDefault();
      [...list.querySelectorAll("[data-edit]")].at(-1)?.click();
    }
  });
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest("input, textarea, select, [contenteditable]");
    if (event.key === "Escape" && current && !document.querySelector("dialog[open]")) stopAndDraw();
    if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      box.focus();
    }
  });
}

function stopAndDraw() {
  stop();
  box.focus();
}

function connectButtons() {
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    sendBox();
  });
  byId("stop").addEventListener("click", stopAndDraw);
  byId("new-chat").addEventListener("click", startNew);
  byId("settings-button").addEventListener("click", openSettings);
  byId("thinking-button").addEventListener("click", nextThinking);
  byId("model").addEventListener("change", (event) => chooseModel(event.target.value));
  byId("key-bar").addEventListener("submit", useKey);
  byId("jump").addEventListener("click", followEnd);
  scroll.addEventListener("scroll", () => {
    byId("jump").hidden = fromEndPx() < 3 * NEAR_END_PX;
  });
  for (const example of document.querySelectorAll("[data-example]")) {
    example.addEventListener("click", () => ask(example.textContent));
  }
  document.addEventListener("nalar:key", loadModels);
  document.addEventListener("nalar:language", () => {
    showThinking();
    draw();
  });
  window.addEventListener("pagehide", () => current && saveChat(chat)); // what has come so far
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }
}

translate();
drawIcons();
connectSettings();
connectSidebar();
connectKeys();
connectButtons();
chat = openChat(location.hash.slice(1)) ?? chat;
draw();
fitBox();
loadModels();
box.focus();
