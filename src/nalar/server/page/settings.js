// The settings: a panel of fields, kept in the browser as they are typed.

import { toolsOf } from "./answering.js";
import { keepKey, readKey } from "./api.js";
import { byId } from "./dom.js";
import { readSettings, writeSettings } from "./store.js";
import { t } from "./words.js";

const FIELDS = ["budget", "temperature", "topP", "maxTokens", "seed", "system", "tools"];

export const settings = readSettings();

const keep = () => writeSettings(settings);

/** Joins fields and settings. */
export function connectSettings() {
  for (const name of FIELDS) {
    const field = byId(`set-${name}`);
    field.value = settings[name];
    field.addEventListener("input", () => {
      if (name === "tools") field.setCustomValidity(toolsOf(field.value) === null ? t("badTools") : "");
      if (!field.checkValidity()) {
        field.reportValidity();
        return;
      }
      settings[name] = field.value;
      keep();
    });
  }
  for (const radio of document.querySelectorAll("input[name=thinking]")) {
    radio.checked = radio.value === settings.thinking;
    radio.addEventListener("change", () => setThinking(radio.value));
  }
  const key = byId("set-key");
  key.value = readKey();
  key.addEventListener("change", () => {
    keepKey(key.value.trim());
    document.dispatchEvent(new Event("nalar:key"));
  });
  showThinking();
}

/** default → on → off → default, from the button beside the message. */
export function nextThinking() {
  const order = ["default", "on", "off"];
  setThinking(order[(order.indexOf(settings.thinking) + 1) % order.length]);
}

function setThinking(value) {
  settings.thinking = value;
  keep();
  for (const radio of document.querySelectorAll("input[name=thinking]")) radio.checked = radio.value === value;
  showThinking();
}

/** The button beside the message says how the model will think; the budget is grey where it will not. */
export function showThinking() {
  const words = { default: "thinkingDefault", on: "thinkingOn", off: "thinkingOff" }[settings.thinking];
  byId("thinking-words").textContent = settings.thinking === "default" ? t("thinking") : `${t("thinking")}: ${t(words).toLowerCase()}`;
  byId("thinking-button").dataset.thinking = settings.thinking;
  byId("set-budget").disabled = settings.thinking === "off";
}

export function chooseModel(model) {
  settings.model = model;
  keep();
}

export function openSettings() {
  byId("set-key").value = readKey();
  byId("settings").showModal();
}
